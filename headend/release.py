"""What an engineer has released from quarantine, and what became of it.

Stage: between the quarantine desk and the plan. A release is a row of the database that only an engineer's command
writes; the owner of its shard plans the kept bytes once more, passing the rule they were held for. Nothing that a meter
sends can be one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from headend.rules import Reason

# What a release lets pass: the rule a reading was held for, where it may be stored at all.
_PASSED = {
    Reason.TOO_LATE: frozenset({Reason.TOO_LATE}),
    Reason.JUMP: frozenset({Reason.JUMP, Reason.SCALE_SLIP}),
    Reason.SCALE_SLIP: frozenset({Reason.JUMP, Reason.SCALE_SLIP}),
}
# A register that fell may be accepted as one that began again at 0.
FALLS = frozenset({Reason.REGISTER_FELL, Reason.REGISTER_RESET, Reason.REGISTER_SWAP, Reason.SCALE_SLIP})


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """The release of one reading of a message, or of a whole message where `item` is None."""

    quarantine_id: int
    item: int | None
    reason: Reason
    as_reset: bool

    @property
    def passed(self) -> frozenset[Reason]:
        """The rules that are not applied."""
        return _PASSED.get(self.reason, frozenset())


class Outcome(StrEnum):
    """What became of a released row; the value is what the database keeps. Of several readings the later one holds."""

    DUPLICATE = "duplicate"
    STORED = "stored"
    HELD = "held"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A released row that was planned: `reason` and `detail` say why it is held again."""

    quarantine_id: int
    outcome: Outcome
    reason: Reason | None = None
    detail: str | None = None
    serial: str | None = None
    read_at_ms: int | None = None
    rejected: bool = False
