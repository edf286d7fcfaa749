"""Sent and come: what a meter has sent by its own count of messages, and which of them never came.

Stage: after the fact, apart from the batches that noted the numbers. Numbers in the order in which their messages were
stored enter, what is known of a meter goes from one state to the next. A number says something only beside the time of
its message by the meter's clock: the same message again carries the same time, a count that begins anew carries low
numbers at later times. A meter therefore counts its messages in the order in which it makes them. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocols.native import Readings, Uplink

# Holes of one message each, as a radio that loses every tenth makes them, fill this in a week of half-hours. What is
# beyond is counted and no longer named: 24 bytes a hole, 800 bytes a meter at worst.
HOLES_MAX: Final = 32
# A message a minute makes a million in two years. A count that runs ahead further is another count.
AHEAD_MAX: Final = 1_000_000
# A count that begins anew begins at 0 or 1; where the first number to come is a little above, those before are missing.
ANEW_FIRST_MAX: Final = 1_000

# Numbers that have not come: epoch, first, last.
Hole = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A message that came: its number, when it was made by the meter's clock, and whether any of it was quarantined."""

    seq: int
    sent_ms: int
    quarantined: bool = False


@dataclass(slots=True, kw_only=True)
class Track:
    """What is known of one meter's count.

    Invariants: `sent` = `came` + `missing`, `came` = `stored` + `quarantined`; `holes` rise, have no common number, and
    are `HOLES_MAX` at most; those of `epoch` lie below `last_seq`. `duplicate` counts messages that had come before.
    `given_up` is how many numbers have not come and are named no more. Messages made up to `began_ms` belong to an
    earlier epoch; `last_ms` is the latest time of a message.
    """

    epoch: int = 0
    began_ms: int = -1
    last_seq: int = -1
    last_ms: int = -1
    came: int = 0
    duplicate: int = 0
    quarantined: int = 0
    given_up: int = 0
    holes: list[Hole] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Count the numbers that have not come."""
        return self.given_up + sum(last - first + 1 for _, first, last in self.holes)

    @property
    def sent(self) -> int:
        """Count the messages that the meter has made, from the first one that came."""
        return self.came + self.missing

    @property
    def stored(self) -> int:
        """Count the messages that came and of which nothing was quarantined."""
        return self.came - self.quarantined

    def follow(self, arrivals: Iterable[Arrival]) -> None:
        """Take messages in the order in which they were stored."""
        for each in arrivals:
            if self._is_new(each.seq, each.sent_ms):
                self.came += 1
                self.quarantined += each.quarantined
            else:
                self.duplicate += 1
        self._name_fewer()

    def _is_new(self, seq: int, sent_ms: int) -> bool:
        """Tell whether a message has not come before, and note it."""
        if self.last_seq < 0:
            self.last_seq, self.last_ms = seq, sent_ms
            return True
        if sent_ms <= self.began_ms:
            return self._fill(seq, earlier=True)
        if seq > self.last_seq:
            self._go_on(seq, sent_ms)
            return True
        if sent_ms > self.last_ms:
            self._begin_anew(seq, sent_ms, missing_from=1 if seq <= ANEW_FIRST_MAX else seq)
            return True
        return self._fill(seq, earlier=False)

    def _go_on(self, seq: int, sent_ms: int) -> None:
        if seq - self.last_seq > AHEAD_MAX:
            self._begin_anew(seq, sent_ms, missing_from=seq)
            return
        if seq > self.last_seq + 1:
            self.holes.append((self.epoch, self.last_seq + 1, seq - 1))
        self.last_seq, self.last_ms = seq, max(self.last_ms, sent_ms)

    def _begin_anew(self, seq: int, sent_ms: int, *, missing_from: int) -> None:
        self.epoch += 1
        self.began_ms = self.last_ms
        if missing_from < seq:
            self.holes.append((self.epoch, missing_from, seq - 1))
        self.last_seq, self.last_ms = seq, max(self.last_ms, sent_ms)

    def _fill(self, seq: int, *, earlier: bool) -> bool:
        """Take a number out of the holes, the latest first; False if it lies in none."""
        for place in range(len(self.holes) - 1, -1, -1):
            epoch, first, last = self.holes[place]
            if first <= seq <= last and (epoch < self.epoch) == earlier:
                parts = ((epoch, first, seq - 1), (epoch, seq + 1, last))
                self.holes[place : place + 1] = [part for part in parts if part[1] <= part[2]]
                return True
        return False

    def _name_fewer(self) -> None:
        beyond = self.holes[: max(0, len(self.holes) - HOLES_MAX)]
        self.given_up += sum(last - first + 1 for _, first, last in beyond)
        del self.holes[: len(beyond)]


def made_ms(uplink: Uplink, stored_at_ms: int) -> int:
    """Tell when a message was made by its meter's clock, which may not run ahead of the broker's."""
    if not isinstance(uplink, Readings):
        return min(uplink.at_ms, stored_at_ms)
    at_ms = uplink.read_at_ms[-1] if uplink.clock_ms is None else uplink.clock_ms
    return min(at_ms, stored_at_ms)


def ranges_of(holes: Sequence[Hole], epoch: int) -> list[tuple[int, int]]:
    """Return the holes of an epoch as first and last numbers."""
    return [(first, last) for of, first, last in holes if of == epoch]
