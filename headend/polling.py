"""When a meter is polled, when it is tried again, and whether what it says of its register is believed.

Stage: the rules of a gateway, without its sockets. Instants of a steady clock and registers enter; when the meter is
due, what was late or missed, and a verdict leave. Pure: never reads a clock, draws no lots. Source: complaint lists of
other systems, where one slow meter stalls the rest and one corrupt read poisons a total.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final
from zlib import crc32

_MS_PER_HOUR: Final = 3_600_000
_GOLDEN: Final = 0x9E37_79B1
# A meter that missed one answer is asked again within its minute; one that is gone costs a time-out every 5 minutes:
# of a 1 s time-out that is a third of a per cent of a shared line for each dead meter.
BACKOFF_S_FIRST: Final = 2.0
BACKOFF_S_MAX: Final = 300.0
# A register counts in steps and is read a moment after its time stamp.
STEP_SLACK_WH: Final = 10
# A home may draw above its rating for a while before a fuse does its work.
OVERLOAD: Final = 2


def phase_of(serial: str, poll_s: float) -> float:
    """Place a meter within its interval: the same place for ever, whoever polls it, spread evenly over all serials."""
    # Serials that count up have check sums that lie close; multiplied by the golden ratio of 2**32 they are spread.
    return (crc32(serial.encode()) * _GOLDEN & 0xFFFF_FFFF) / 2**32 * poll_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A poll that begins: how long after its time, and how many of its times have passed without any."""

    late_s: float
    missed: int


@dataclass(slots=True, kw_only=True)
class Schedule:
    """When one meter is due.

    Invariants: without failures it is due at its place in every interval, neither more nor less often; after a failure
    it is due `BACKOFF_S_FIRST` later, and twice as long after each further one, up to `BACKOFF_S_MAX`. Instants are
    those of a steady clock, `place_s` the next of its places.
    """

    poll_s: float
    place_s: float
    due_s: float
    failures: int = 0

    @classmethod
    def starting(cls, serial: str, poll_s: float, *, wall_s: float, steady_s: float) -> Schedule:
        """Begin: due at the meter's next place by the wall clock, of which two gateways have the same."""
        wait_s = (phase_of(serial, poll_s) - wall_s) % poll_s
        return cls(poll_s=poll_s, place_s=steady_s + wait_s, due_s=steady_s + wait_s)

    def begin(self, now_s: float) -> Begun:
        """Begin a poll; tell what was late. A try after a failure is not late, but may have missed places."""
        behind_s = now_s - self.place_s
        if behind_s < 0:
            return Begun(late_s=0.0, missed=0)
        missed = int(behind_s // self.poll_s)
        self.place_s += (missed + 1) * self.poll_s
        return Begun(late_s=0.0 if self.failures else behind_s, missed=missed)

    def succeed(self) -> None:
        """Note an answer: due at the next place."""
        self.failures = 0
        self.due_s = self.place_s

    def fail(self, now_s: float) -> None:
        """Note that no answer came."""
        self.failures += 1
        self.due_s = now_s + backoff_s(self.failures)

    def wait_for_line(self) -> None:
        """Note that the line was away, which is no fault of the meter: due at the next place."""
        self.due_s = self.place_s


def backoff_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row, at least one."""
    return float(min(BACKOFF_S_FIRST * 2 ** min(failures - 1, 30), BACKOFF_S_MAX))


class Verdict(Enum):
    """What becomes of a register that was read."""

    ACCEPTED = "accepted"
    AGAIN = "again"
    CONFIRMED = "confirmed"
    DROPPED = "dropped"


@dataclass(slots=True, kw_only=True)
class RegisterWatch:
    """What is believed of one meter's register.

    Invariants: a register that falls, or rises above what the rating allows, is believed only when a second read right
    after says the same, give or take what may have flowed between; so is the first one. `known` and `doubted` are an
    instant in ms and Wh.
    """

    rated_w: int
    known: tuple[int, int] | None = None
    doubted: tuple[int, int] | None = None

    def judge(self, at_ms: int, register_wh: int) -> Verdict:
        """Judge a read; after AGAIN the next one is the second read, which decides."""
        doubted, self.doubted = self.doubted, None
        if self.known is not None and self._fits(self.known, at_ms, register_wh):
            self.known = (at_ms, register_wh)
            return Verdict.ACCEPTED
        if doubted is None:
            self.doubted = (at_ms, register_wh)
            return Verdict.AGAIN
        if not self._fits(doubted, at_ms, register_wh):
            return Verdict.DROPPED
        first, self.known = self.known is None, (at_ms, register_wh)
        return Verdict.ACCEPTED if first else Verdict.CONFIRMED

    def forget_doubt(self) -> None:
        """Note that the second read did not come."""
        self.doubted = None

    def _fits(self, before: tuple[int, int], at_ms: int, register_wh: int) -> bool:
        before_ms, before_wh = before
        most_wh = OVERLOAD * self.rated_w * max(0, at_ms - before_ms) // _MS_PER_HOUR + STEP_SLACK_WH
        return 0 <= register_wh - before_wh <= most_wh
