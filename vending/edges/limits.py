"""Limits of callers: requests a second in this process, vends and money a local day in the database.

Stage: the first at the gate, the second last of all in a vend's transaction. A vendor's limits are data with who and
why; every other caller, and a vendor without any, has the limit of its role. Requests are counted by each API process
for itself, since they protect the process; what a vendor may sell a day is counted once for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar
from db.api_access import CalledKey, DayLimit, take_vend_day
from vending.edges.errors import TooManyRequests, VendDayFull
from vending.rate_limits import Bucket, RateLimit, full_bucket
from vending.roles import Role

# A vendor of the size of a state sells some hundred a second; a consumer's page asks some ten things at once.
USUAL_LIMITS: Mapping[Role, RateLimit] = {
    Role.VENDOR: RateLimit(per_s=1_000, burst=2_000),
    Role.SUPERVISOR: RateLimit(per_s=1_000, burst=2_000),
    Role.ENGINEER: RateLimit(per_s=200, burst=1_000),
    Role.CASHIER: RateLimit(per_s=50, burst=200),
    Role.AUDITOR: RateLimit(per_s=50, burst=200),
    Role.READER: RateLimit(per_s=50, burst=200),
    Role.CONSUMER: RateLimit(per_s=20, burst=100),
}
# Ten megabytes; when there are more, those that are full again are forgotten.
_BUCKETS_MAX = 50_000
_MS = 1_000

# A role with an owner, and a terminal.
_Who = tuple[str, str]


class Limiter:
    """Counts requests by vendor, by terminal, and by key for everybody else."""

    def __init__(self, *, steady_ms: Callable[[], int]) -> None:
        """Take a steady clock in milliseconds."""
        self._steady_ms = steady_ms
        self._buckets: dict[_Who, Bucket] = {}
        self._limits: dict[_Who, RateLimit] = {}

    def take(self, key: CalledKey) -> None:
        """Count a request. Raises: TooManyRequests."""
        now_ms = self._steady_ms()
        for who, limit in _limits_of(key):
            wait_ms = self._bucket(who, limit, now_ms).take(limit, now_ms)
            if wait_ms:
                raise TooManyRequests(
                    f"requests of {who[0]}{who[1] and ' at terminal '}{who[1]}: expected at most {limit.per_s} a "
                    f"second and {limit.burst} at once, got one more",
                    retry_after_s=-(-wait_ms // _MS),
                )

    def _bucket(self, who: _Who, limit: RateLimit, now_ms: int) -> Bucket:
        if who not in self._buckets and len(self._buckets) >= _BUCKETS_MAX:
            self._forget_full(now_ms)
        self._limits[who] = limit
        return self._buckets.setdefault(who, full_bucket(limit, now_ms))

    def _forget_full(self, now_ms: int) -> None:
        full = [
            who
            for who, bucket in self._buckets.items()
            if bucket.level_at(self._limits[who], now_ms) >= self._limits[who].burst * _MS
        ]
        for who in full:
            del self._buckets[who], self._limits[who]


def day_limits(key: CalledKey) -> tuple[DayLimit, ...]:
    """Return what a key's vendor, and its terminal, may sell a day; empty where there is no limit."""
    both = (
        DayLimit(terminal="", vends_max=key.vends_per_day, amount_max=key.amount_per_day),
        DayLimit(
            terminal=key.terminal or "",
            vends_max=key.terminal_vends_per_day,
            amount_max=key.terminal_amount_per_day,
        ),
    )
    return tuple(each for each in both if each.vends_max is not None or each.amount_max is not None)


async def count_vend(
    conn: AsyncConnection,
    vendor_id: int,
    limits: Sequence[DayLimit],
    *,
    amount_minor: int,
    calendar: LocalCalendar,
    now_ms: int,
) -> None:
    """Count a vend of today under limits of the day, in the vend's own transaction and last in it.

    A reversal gives nothing back. What is refused is not stored: the same message id may be used tomorrow.
    Raises: VendDayFull; the transaction must be given up.
    """
    day = calendar.day_of(now_ms)
    full = await take_vend_day(conn, vendor_id, limits, day=day, amount_minor=amount_minor)
    if full is None:
        return
    left_ms = calendar.midnight_ms(day + timedelta(days=1)) - now_ms
    whose = f"terminal {full.terminal}" if full.terminal else "vendor"
    raise VendDayFull(
        f"vends of {whose} on {day}: expected at most {_shown(full.vends_max)} vends and "
        f"{_shown(full.amount_max)} minor units, got one more of {amount_minor}",
        retry_after_s=max(1, -(-left_ms // _MS)),
    )


def _limits_of(key: CalledKey) -> list[tuple[_Who, RateLimit]]:
    role = Role(key.role)
    if key.vendor_id is None:
        return [((f"key {key.key_id}", ""), USUAL_LIMITS[role])]
    whole = _rate(key.requests_per_s, key.burst) or USUAL_LIMITS[role]
    one = _rate(key.terminal_requests_per_s, key.terminal_burst)
    vendor = f"vendor {key.vendor_id}"
    return [((vendor, ""), whole), *([((vendor, key.terminal), one)] if one and key.terminal else [])]


def _rate(per_s: int | None, burst: int | None) -> RateLimit | None:
    return None if per_s is None or burst is None else RateLimit(per_s=per_s, burst=burst)


def _shown(limit: int | None) -> str:
    return "any number of" if limit is None else str(limit)
