"""How many requests a caller may send: a bucket that fills by the second and is emptied by requests.

Stage: after a caller is known, before its request costs anything. Enters: a bucket, its limit, the instant. Leaves:
leave, or how long to wait. Never: a clock, a count that more than one process shares.
"""

from __future__ import annotations

from dataclasses import dataclass

_MILLI = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """At most `burst` requests at once, and `per_s` a second in the long run.

    Invariants: both positive.
    """

    per_s: int
    burst: int


@dataclass(slots=True, kw_only=True)
class Bucket:
    """What a caller may still send.

    Units: thousandths of a request; steady milliseconds.
    """

    level_milli: int
    at_ms: int

    def take(self, limit: RateLimit, now_ms: int) -> int:
        """Take one request; return 0, or the milliseconds until there is one.

        Rounds: the wait up, so that whoever waits is let through.
        """
        self.level_milli = self.level_at(limit, now_ms)
        self.at_ms = now_ms
        if self.level_milli >= _MILLI:
            self.level_milli -= _MILLI
            return 0
        return -(-(_MILLI - self.level_milli) // limit.per_s)

    def level_at(self, limit: RateLimit, now_ms: int) -> int:
        """Return what would be there at an instant: a request a second is a thousandth a millisecond."""
        grown = self.level_milli + (now_ms - self.at_ms) * limit.per_s
        return min(limit.burst * _MILLI, grown)


def full_bucket(limit: RateLimit, now_ms: int) -> Bucket:
    """Return the bucket of a caller that has not been heard of for long."""
    return Bucket(level_milli=limit.burst * _MILLI, at_ms=now_ms)
