"""What is stored about accounts, gathered by chunks: rows turned into what the checks compare.

Stage: between the database and the checks of accounts. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import class_row

from billing.calendar import LocalCalendar, from_ms
from billing.running import Point
from billing.terms import BillPart
from db.accounts import AccountView, former_points, look, through_all_meters
from db.audit.recount import Booked, Periods, parts_of
from db.named import sql
from db.posting import closed_edges_ms

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What alarms and orders say of one account: a row of `audit_accounts`."""

    id: int
    number: str
    meter_id: int | None
    complete: bool | None
    low_arms: list[int]
    exhausted_arms: list[int]
    # Of further thresholds, by their numbers.
    further_arms: dict[str, list[int]]
    ordered: str | None
    order_state: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Postings:
    """What journals say of one account in all: a row of `audit_postings`."""

    account_id: int
    journals: int = 0
    energy_wh: int = 0
    days: int = 0
    first_day: date | None = None
    last_day: date | None = None
    unread_days: list[date] = field(default_factory=list)
    behind: int = 0
    days_behind: int = 0
    ahead: int = 0
    first_out_of_order: int | None = None
    undocumented: int = 0
    first_undocumented: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One account with a billing meter, its parts, and what journals, legs, alarms and orders say of it."""

    view: AccountView
    facts: Facts
    postings: Postings
    prepaid_minor: int
    periods: Periods
    parts: list[BillPart]
    # Of meters that stood there before, around the same edges.
    former: list[Point] = field(default_factory=list)

    def edges_ms(self, calendar: LocalCalendar) -> list[int]:
        """Return the instants around which the curve has to be known."""
        return closed_edges_ms(self.parts, self.view.checkpoint.through, calendar)

    def curve(self, around: Sequence[Point]) -> list[Point]:
        """Return the curve from the first installation on, from the points of the present meter around its edges."""
        return through_all_meters(self.view.meter, around, self.former)


async def read_cases(
    conn: AsyncConnection, ids: Sequence[int], calendar: LocalCalendar
) -> tuple[list[Facts], dict[int, Case]]:
    """Read some accounts; those without a billing meter that has a first register and a state have facts only."""
    parameters = {"ids": list(ids)}
    facts = await _records(conn, "audit_accounts", parameters, Facts)
    views = await look(conn, [row.id for row in facts if row.complete], calendar)
    postings = {
        row.account_id: row
        for row in await _records(conn, "audit_postings", {**parameters, "zone": calendar.zone.key}, Postings)
    }
    cursor = await conn.execute(sql("audit_prepaid"), parameters)
    prepaid_minor: dict[int, int] = dict(await cursor.fetchall())
    booked = await _booked(conn, ids)
    cases = {
        row.id: Case(
            view=views[row.id],
            facts=row,
            postings=postings.get(row.id) or Postings(account_id=row.id),
            prepaid_minor=prepaid_minor.get(row.id, 0),
            periods=booked[row.id],
            parts=parts_of(views[row.id]),
        )
        for row in facts
        if row.id in views
    }
    for account_id, case in cases.items():
        if case.view.meter.formers:
            edges = [from_ms(edge_ms) for edge_ms in case.edges_ms(calendar)]
            former = await former_points(conn, case.view.meter, edges)
            cases[account_id] = replace(case, former=former)
    return facts, cases


async def _booked(conn: AsyncConnection, ids: Sequence[int]) -> dict[int, Periods]:
    found: dict[int, Periods] = {account_id: {} for account_id in ids}
    cursor = await conn.execute(sql("account_demands"), {"ids": list(ids)})
    for account_id, period, energy_wh, demand_w, assessed_wh in await cursor.fetchall():
        found[account_id][period] = Booked(energy_wh=energy_wh, demand_w=demand_w, assessed_wh=assessed_wh)
    cursor = await conn.execute(sql("account_bills"), {"ids": list(ids)})
    for account_id, period, line, amount_minor in await cursor.fetchall():
        found[account_id][period].lines[line] = amount_minor
    return found


async def _records(conn: AsyncConnection, query: str, parameters: dict[str, Any], record: type[T]) -> list[T]:
    async with conn.cursor(row_factory=class_row(record)) as cursor:
        await cursor.execute(sql(query), parameters)
        return await cursor.fetchall()
