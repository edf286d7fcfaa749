"""What ingest knows of each meter it owns: enough to validate and rate its next reading without the database.

Stage: between batches. Values only; the edge loads them from the database, takes over the new ones after a commit
and drops them when a commit failed or its outcome is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

from billing.calendar import LocalCalendar
from billing.running import Checkpoint, Walk, owed_minor
from billing.supply import Levels, Supply, crosses
from billing.supply_policy import Scheme
from billing.terms import Terms
from headend.rules import BUILTIN_RULES, RuleSet


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterSegment:
    """From an instant on, energy to date is the register plus `offset_wh`."""

    from_ms: int
    offset_wh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """The account a meter's readings are charged to.

    Invariants: `walk` has followed the curve to the meter's mark; `told` is the supply the meter has or was ordered
    to have; `silent` says that a closed period end waits for the next reading; `waits` that credit is exhausted and
    supply still on, which the next reading does not change (billing.supply.crosses).
    """

    id: int
    version: int
    terms: Terms
    checkpoint: Checkpoint
    levels: Levels
    walk: Walk
    silent: bool
    told: Supply | None
    held: bool
    scheme: Scheme
    waits: bool

    def balance_minor(self, calendar: LocalCalendar) -> int:
        """Return the running balance at money time."""
        owed = owed_minor(self.walk, through=self.checkpoint.through, calendar=calendar)
        return self.checkpoint.posted_minor - owed

    def needs_look(self, calendar: LocalCalendar) -> bool:
        """Tell whether the account has to be locked and looked at: a candidate, decided only under the lock."""
        return self.held or crosses(self.levels, self.balance_minor(calendar), waits=self.waits)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterState:
    """A billing meter and its account.

    Invariants: `mark_ms` is the latest accepted reading (or the installation) and `mark_wh` the register then;
    `segments` rise in time and there is at least one; `relay` is the meter's latest word on its relay; `still_ms` is
    how long the register had stood still at the mark, as far as its owner has seen; `rules` are those of its model.
    """

    serial: str
    shard: int
    meter_id: int
    rated_w: int
    register_end_wh: int
    installed_ms: int
    segments: tuple[RegisterSegment, ...]
    mark_ms: int
    mark_wh: int
    relay: Supply | None
    relay_at_ms: int | None
    account: AccountState
    make: str = ""
    model: str = ""
    may_export: bool = False
    still_ms: int = 0
    rules: RuleSet = BUILTIN_RULES.default

    def energy_to_date(self, at_ms: int, register_wh: int) -> int:
        """Carry a register over roll-overs: energy to date in Wh at a reading."""
        return energy_to_date(self.segments, at_ms, register_wh)


def energy_to_date(segments: tuple[RegisterSegment, ...], at_ms: int, register_wh: int) -> int:
    """Carry a register over roll-overs, which rise in time: energy to date in Wh at a reading."""
    for segment in reversed(segments):
        if segment.from_ms <= at_ms:
            return register_wh + segment.offset_wh
    return register_wh + segments[0].offset_wh
