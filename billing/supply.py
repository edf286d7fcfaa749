"""Alarm levels of an account, and what a balance changes: alarms to raise, the supply it should have.

Stage: after every balance. Takes the account's levels, its balance, its category's scheme and the instant; returns the
new levels, alarms and the desired supply with its reason. Knows nothing of meters, orders or messages. Exhaustion is
not a disconnection and a restore never costs anything (Supply Code 2024 item 17, R-17iii). When an exhausted account
is cut is `billing.supply_policy`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from billing.calendar import LocalCalendar
from billing.supply_policy import Mode, Scheme, Standing, Supply, Verdict, desired_supply

__all__ = [
    "Decision",
    "FurtherLevel",
    "LevelName",
    "Levels",
    "Mode",
    "Raised",
    "Supply",
    "crosses",
    "decide",
    "is_exhausted",
    "restores_with_minor",
]


class LevelName(StrEnum):
    """The levels of balance that ring."""

    LOW = "low"
    EXHAUSTED = "exhausted"


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherLevel:
    """A further balance to be warned at, besides the one that is kept in the meter; `n` counts from 1."""

    n: int
    level_minor: int
    arm: int
    raised: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """An account's alarm levels, what keeps its supply on, and the supply desired so far.

    Invariants: a level is raised at most once per arm; arms only rise. `threshold_minor` is the balance the consumer
    chose to be warned at and the meter keeps; None means no warning before exhaustion but by `thresholds`. `absent`
    holds from the deposit for a long absence to the posting that ends it; `emergency_credit_minor` is the larger of the
    account's own and its category's. `exhausted_at_ms` is when the present exhaustion was found.
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
    exempt: bool = False
    hold: bool = False
    can_limit: bool = False
    exhausted_at_ms: int | None = None
    thresholds: tuple[FurtherLevel, ...] = ()

    @property
    def cut_at_minor(self) -> int:
        """Balance at or below which credit is exhausted."""
        return -self.emergency_credit_minor

    @property
    def warn_at_minor(self) -> int | None:
        """Return the highest balance at which a warning is still to ring; None for none."""
        own = () if self.threshold_minor is None or self.low_raised else (self.threshold_minor,)
        return max((*own, *(each.level_minor for each in self.thresholds if not each.raised)), default=None)

    @property
    def can_exhaust(self) -> bool:
        """Tell whether the account's credit can run out: not of one who pays later, nor during an absence (R-23)."""
        return self.mode is Mode.PREPAID and not self.absent


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """An alarm to raise, once for its (level, threshold, arm); `n` is 0 but for a further threshold."""

    level: LevelName
    arm: int
    level_minor: int
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a balance changes; `supply` is None when the desired state stays.

    Invariants: `waits` says that credit is exhausted and supply stays on, for what `verdict` says.
    """

    levels: Levels
    raised: tuple[Raised, ...]
    supply: Supply | None
    verdict: Verdict
    waits: bool


def is_exhausted(levels: Levels, balance_minor: int) -> bool:
    """Tell whether an account's credit has run out.

    Source: Supply Code 2024 items 17 and 23 (R-17iii, R-23).
    """
    return levels.can_exhaust and balance_minor <= levels.cut_at_minor


def crosses(levels: Levels, balance_minor: int, *, waits: bool) -> bool:
    """Tell whether `decide` may change anything: the cheap test a batch makes for each account.

    `waits` is what the last decision was left with: then an exhausted account is looked at again by the calendar, or
    when somebody changes it, and not at each reading.
    """
    warn_at_minor = levels.warn_at_minor
    if warn_at_minor is not None and balance_minor <= warn_at_minor:
        return True
    if is_exhausted(levels, balance_minor):
        return not levels.exhausted_raised or (levels.desired is Supply.ON and not waits)
    return waits or levels.desired is not Supply.ON


def decide(
    levels: Levels,
    balance_minor: int,
    *,
    may_rearm: bool,
    scheme: Scheme,
    now_ms: int,
    calendar: LocalCalendar,
) -> Decision:
    """Compare a balance with the levels.

    `may_rearm` is true for a posting or a change of threshold: only these lift a level's arm once the balance is
    above it again, so that a reading can never ring the same alarm twice.
    """
    raised: list[Raised] = []
    after = _warned(levels, balance_minor, may_rearm, raised)
    exhausted = is_exhausted(levels, balance_minor)
    if exhausted:
        after = replace(after, exhausted_at_ms=now_ms if after.exhausted_at_ms is None else after.exhausted_at_ms)
        if not levels.exhausted_raised:
            raised.append(Raised(level=LevelName.EXHAUSTED, arm=levels.exhausted_arm, level_minor=levels.cut_at_minor))
            after = replace(after, exhausted_raised=True)
    else:
        after = replace(after, exhausted_at_ms=None)
        if levels.exhausted_raised and may_rearm:
            after = replace(after, exhausted_raised=False, exhausted_arm=levels.exhausted_arm + 1)
    verdict = desired_supply(_standing(after, exhausted=exhausted), scheme=scheme, at_ms=now_ms, calendar=calendar)
    supply = verdict.supply if verdict.supply is not levels.desired else None
    after = replace(after, desired=verdict.supply)
    waits = exhausted and verdict.supply is Supply.ON
    return Decision(levels=after, raised=tuple(raised), supply=supply, verdict=verdict, waits=waits)


def restores_with_minor(levels: Levels, balance_minor: int) -> int:
    """Return the smallest recharge, in minor units, that takes the balance above exhaustion; 0 if it is."""
    if not is_exhausted(levels, balance_minor):
        return 0
    return levels.cut_at_minor - balance_minor + 1


def _warned(levels: Levels, balance_minor: int, may_rearm: bool, raised: list[Raised]) -> Levels:
    """Ring the warnings that the balance has come down to; arm those again that it has left."""
    after = levels
    low_minor = levels.threshold_minor
    if low_minor is not None and balance_minor <= low_minor:
        if not levels.low_raised:
            raised.append(Raised(level=LevelName.LOW, arm=levels.low_arm, level_minor=low_minor))
            after = replace(after, low_raised=True)
    elif levels.low_raised and may_rearm:
        after = replace(after, low_raised=False, low_arm=levels.low_arm + 1)
    further = []
    for each in levels.thresholds:
        if balance_minor <= each.level_minor and not each.raised:
            raised.append(Raised(level=LevelName.LOW, arm=each.arm, level_minor=each.level_minor, n=each.n))
            further.append(replace(each, raised=True))
        elif balance_minor > each.level_minor and each.raised and may_rearm:
            further.append(replace(each, raised=False, arm=each.arm + 1))
        else:
            further.append(each)
    return replace(after, thresholds=tuple(further)) if further else after


def _standing(levels: Levels, *, exhausted: bool) -> Standing:
    return Standing(
        mode=levels.mode,
        exhausted=exhausted,
        exhausted_at_ms=levels.exhausted_at_ms,
        absent=levels.absent,
        hold=levels.hold,
        exempt=levels.exempt,
        can_limit=levels.can_limit,
        now=levels.desired,
    )
