"""Orders as an operator sees and steers them: what is desired and reported, what waits and why, areas on hold.

Stage: beside the dispatcher, which reads and writes the same rows. Everything here reads, but `release_area`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.errors import DatabaseError
from db.named import sql

OLDEST_SHOWN = 5
ENDED_SHOWN = 10


class AreaNotHeld(DatabaseError):
    """No cut-offs of the area are on hold."""

    code = "area_not_held"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCount:
    """How many orders of a kind, position and state no meter has confirmed, and what they wait for."""

    kind: str
    relay: str | None
    state: str
    waits_for: str | None
    count: int
    oldest_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """A supply order that left and was not confirmed."""

    serial: str
    make: str
    id: int
    relay: str
    area: str
    attempts: int
    cause: str
    age_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeSuccess:
    """How the meters of a make answered supply orders: `again` are those that contradicted before.

    `impossible` are those that the meter can never carry out; `open` is without them.
    """

    make: str
    sent: int
    confirmed: int
    superseded: int
    open: int
    impossible: int
    again: int
    median_ms: int | None
    p95_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitedArea:
    """An area whose cut-offs a limit holds back: `capped` by the minute's, `held` by the hour's until a release."""

    area: str
    kind: str
    raised_at: datetime
    sent: int
    most: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedAlarm:
    """A limit that held cut-offs back and no longer does; who released a hold, and why."""

    area: str
    kind: str
    raised_at: datetime
    sent: int
    most: int
    ended_at: datetime
    ended_by: str | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRow:
    """One order."""

    id: int
    serial: str
    kind: str
    relay: str | None
    level: str | None
    state: str
    epoch: int
    area: str
    cause: str
    attempts: int
    created_at: datetime
    sent_at: datetime | None
    published_at: datetime | None
    confirmed_at: datetime | None
    contradicted_at: datetime | None
    waits_for: str | None
    next_try_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOrders:
    """What is counted over open orders alone: `differing` are supply orders that the meter does not report yet."""

    counts: Sequence[OpenCount]
    differing: int
    limited: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupplyStatus:
    """Supply of the whole installation.

    Shape: `matrix` counts accounts by desired and reported supply (`on`, `limited`, `off`, `unknown`).
    """

    matrix: dict[str, dict[str, int]]
    orders: OpenOrders
    oldest: Sequence[Unconfirmed]
    makes: Sequence[MakeSuccess]
    areas: Sequence[LimitedArea]
    ended: Sequence[EndedAlarm]

    @property
    def differing(self) -> int:
        """Count the accounts whose meter does not report what is desired; one that never reported counts as on."""
        return sum(
            count
            for desired, reports in self.matrix.items()
            for reported, count in reports.items()
            if ("on" if reported == "unknown" else reported) != desired
        )


async def read_status(conn: AsyncConnection, *, hours: int) -> SupplyStatus:
    """Read the state of supply; success by make over so many hours. Goes over all accounts."""
    matrix: dict[str, dict[str, int]] = {}
    for desired, reported, count in await (await conn.execute(sql("supply_matrix"))).fetchall():
        matrix.setdefault(desired, {})[reported] = count
    async with conn.cursor(row_factory=class_row(Unconfirmed)) as rows:
        oldest = await (await rows.execute(sql("oldest_unconfirmed"), {"most": OLDEST_SHOWN})).fetchall()
    async with conn.cursor(row_factory=class_row(LimitedArea)) as limited:
        areas = await (await limited.execute(sql("limited_areas"))).fetchall()
    async with conn.cursor(row_factory=class_row(EndedAlarm)) as past:
        ended = await (await past.execute(sql("ended_supply_alarms"), {"most": ENDED_SHOWN})).fetchall()
    return SupplyStatus(
        matrix=matrix,
        orders=await read_open_orders(conn),
        oldest=oldest,
        makes=await read_success(conn, hours=hours),
        areas=areas,
        ended=ended,
    )


async def read_open_orders(conn: AsyncConnection) -> OpenOrders:
    """Count the open orders: some 50 ms for 100,000 of them, however many are closed."""
    async with conn.cursor(row_factory=class_row(OpenCount)) as rows:
        counts = await (await rows.execute(sql("open_orders"))).fetchall()
    differing = await (await conn.execute(sql("differing_orders"))).fetchone()
    limited = await (await conn.execute(sql("limited_area_counts"))).fetchall()
    return OpenOrders(counts=counts, differing=differing[0] if differing else 0, limited=dict(limited))


async def read_success(conn: AsyncConnection, *, hours: int) -> list[MakeSuccess]:
    """Count by make what became of the supply orders first sent in the last hours."""
    async with conn.cursor(row_factory=class_row(MakeSuccess)) as rows:
        return await (await rows.execute(sql("success_by_make"), {"hours": hours})).fetchall()


async def list_orders(
    conn: AsyncConnection, *, serial: str | None, states: Sequence[str] | None, area: str | None, most: int
) -> list[OrderRow]:
    """List orders, the newest first; None leaves a condition out."""
    parameters = {
        "serial": serial,
        "states": None if states is None else list(states),
        "area": area,
        "most": most,
    }
    async with conn.cursor(row_factory=class_row(OrderRow)) as rows:
        return await (await rows.execute(sql("list_orders"), parameters)).fetchall()


async def list_held(conn: AsyncConnection, *, area: str | None, most: int) -> list[OrderRow]:
    """List supply orders that wait for something else than their meter's answer, the oldest first."""
    async with conn.cursor(row_factory=class_row(OrderRow)) as rows:
        return await (await rows.execute(sql("held_orders"), {"area": area, "most": most})).fetchall()


async def limited_areas(conn: AsyncConnection) -> list[LimitedArea]:
    """List the areas whose cut-offs a limit holds back now."""
    async with conn.cursor(row_factory=class_row(LimitedArea)) as rows:
        return await (await rows.execute(sql("limited_areas"))).fetchall()


async def release_area(conn: AsyncConnection, area: str, *, by: str, reason: str) -> int:
    """Let the held cut-offs of an area go, at the pace of the minute's limit; return how many are due.

    The hour's count begins again. Raises: AreaNotHeld.
    """
    async with conn.transaction():
        await conn.execute(sql("lock_area"), {"area": area})
        cursor = await conn.execute(sql("end_hold"), {"area": area, "by": by, "reason": reason})
        if await cursor.fetchone() is None:
            raise AreaNotHeld(f"area: expected one whose cut-offs are on hold, got {area!r}")
        await conn.execute(sql("count_anew"), {"area": area})
        waiting = await (await conn.execute(sql("waiting_cut_offs"), {"area": area})).fetchone()
        # Any shard will do: it wakes whoever dispatches.
        await conn.execute(sql("wake_dispatch"), {"shard": 0})
    return waiting[0] if waiting else 0
