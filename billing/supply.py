"""Alarm levels and the desired supply state, as a pure function of balance and settings.

Stage: after every balance. Takes the account's levels and its balance; returns what changes: alarms to raise, the
state supply should have. Knows nothing of meters, orders, messages or days. Exhaustion is not a disconnection and a
restore never costs anything (Supply Code 2024 item 17, R-17iii).

The policy; the first row that holds decides:

| account                                              | supply |
|------------------------------------------------------|--------|
| postpaid                                             | on     |
| absent with a deposit, until the absence ends (R-23) | on     |
| prepaid, balance above minus the emergency credit    | on     |
| prepaid, balance at or below it                      | off    |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Mode(StrEnum):
    """How an account pays; postpaid is an approved exception."""

    PREPAID = "prepaid"
    POSTPAID = "postpaid"


class Supply(StrEnum):
    """The state of supply, as wanted or as reported."""

    ON = "on"
    OFF = "off"


class LevelName(StrEnum):
    """The levels of balance that ring."""

    LOW = "low"
    EXHAUSTED = "exhausted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """An account's alarm levels and desired supply.

    Invariants: a level is raised at most once per arm; arms only rise. `threshold_minor` is the balance the consumer
    chose to be warned at; None means no warning before exhaustion. `absent` holds from the deposit for a long absence
    to the posting that ends it; `emergency_credit_minor` is the larger of the account's own and its category's.
    """

    mode: Mode
    threshold_minor: int | None
    emergency_credit_minor: int
    low_arm: int
    low_raised: bool
    exhausted_arm: int
    exhausted_raised: bool
    desired: Supply
    absent: bool = False

    @property
    def cut_at_minor(self) -> int:
        """Balance at or below which credit is exhausted."""
        return -self.emergency_credit_minor


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """An alarm to raise, once for its (level, arm)."""

    level: LevelName
    arm: int
    level_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a balance changes; `supply` is None when the desired state stays."""

    levels: Levels
    raised: tuple[Raised, ...]
    supply: Supply | None


def crosses(levels: Levels, balance_minor: int) -> bool:
    """Tell whether `decide` may change anything: the cheap test a batch makes for each account."""
    low = levels.threshold_minor is not None and balance_minor <= levels.threshold_minor
    exhausted = desired_supply(levels, balance_minor) is Supply.OFF
    return (
        (low and not levels.low_raised)
        or (exhausted and not levels.exhausted_raised)
        or desired_supply(levels, balance_minor) is not levels.desired
    )


def desired_supply(levels: Levels, balance_minor: int) -> Supply:
    """Return the state supply should have: off only for a prepaid account whose credit is exhausted.

    Source: Supply Code 2024 items 17 and 23 (R-17iii, R-23).
    """
    if levels.mode is Mode.POSTPAID or levels.absent:
        return Supply.ON
    return Supply.OFF if balance_minor <= levels.cut_at_minor else Supply.ON


def decide(levels: Levels, balance_minor: int, *, may_rearm: bool) -> Decision:
    """Compare a balance with the levels.

    `may_rearm` is true for a posting or a change of threshold: only these lift a level's arm once the balance is
    above it again, so that a reading can never ring the same alarm twice.
    """
    raised: list[Raised] = []
    low_minor = levels.threshold_minor
    after = levels
    if low_minor is not None and balance_minor <= low_minor:
        if not levels.low_raised:
            raised.append(Raised(level=LevelName.LOW, arm=levels.low_arm, level_minor=low_minor))
            after = replace(after, low_raised=True)
    elif levels.low_raised and may_rearm:
        after = replace(after, low_raised=False, low_arm=levels.low_arm + 1)
    if desired_supply(levels, balance_minor) is Supply.OFF:
        if not levels.exhausted_raised:
            raised.append(Raised(level=LevelName.EXHAUSTED, arm=levels.exhausted_arm, level_minor=levels.cut_at_minor))
            after = replace(after, exhausted_raised=True)
    elif levels.exhausted_raised and may_rearm:
        after = replace(after, exhausted_raised=False, exhausted_arm=levels.exhausted_arm + 1)
    wanted = desired_supply(levels, balance_minor)
    supply = wanted if wanted is not levels.desired else None
    return Decision(levels=replace(after, desired=wanted), raised=tuple(raised), supply=supply)


def restores_with_minor(levels: Levels, balance_minor: int) -> int:
    """Return the smallest recharge, in minor units, that takes the balance above exhaustion; 0 if it is."""
    if desired_supply(levels, balance_minor) is Supply.ON:
        return 0
    return levels.cut_at_minor - balance_minor + 1
