"""Assignments as the database keeps them: dated changes of an account's terms, for days that are not closed.

Stage: administration. A change is written under the account's lock together with the posted state that it opens, the
version and the change-feed row; then the account catches up, since other terms are another running balance. Doing it
twice equals doing it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from psycopg import AsyncConnection

from billing.assigning import AssignmentRequest, assignment_of, entered, reopened_from
from billing.terms import Assignment, Terms
from db.accounts import look
from db.named import sql
from db.orders import PostingRules
from db.posting import lock_and_look, post_readings
from db.tariffs import tariffs_by_checksum


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What an account is charged by at the moment, without its lock."""

    account_id: int
    first_open_day: date
    assignments: tuple[Assignment, ...]


async def standing_of(conn: AsyncConnection, numbers: Sequence[str]) -> dict[str, Standing]:
    """Read the assignments of accounts by number; numbers that do not exist are left out."""
    cursor = await conn.execute(sql("standing_assignments"), {"numbers": list(numbers)})
    rows = await cursor.fetchall()
    tariffs = await tariffs_by_checksum(conn, {row[4] for row in rows})
    found: dict[str, Standing] = {}
    for number, account_id, through, from_day, sha256, category, load_w, area_type, meter_rent in rows:
        assignment = Assignment(
            from_day=from_day,
            tariff=tariffs[sha256],
            category=category,
            load_w=load_w,
            area=area_type,
            meter_rent=meter_rent,
        )
        before = found[number].assignments if number in found else ()
        found[number] = Standing(account_id=account_id, first_open_day=through, assignments=(*before, assignment))
    return found


async def assign(
    conn: AsyncConnection, account_id: int, request: AssignmentRequest, *, rules: PostingRules, now_ms: int
) -> bool:
    """Give an account other terms from a day on, in one transaction; return whether anything changed.

    Raises: AssignmentRefused; UnknownAccount.
    """
    async with conn.transaction():
        view = await lock_and_look(conn, account_id, rules)
        before, through = view.terms, view.checkpoint.through
        wanted = assignment_of(request, before.assignments, first_open_day=through)
        if wanted is None:
            return False
        after = Terms(opened_on=before.opened_on, assignments=(*before.assignments, wanted))
        checkpoint = entered(view.checkpoint, after) if wanted.from_day == through else view.checkpoint
        await _insert(conn, account_id, wanted)
        cursor = await conn.execute(
            sql("enter_assignment"),
            {
                "id": account_id,
                "charged_minor": checkpoint.charged_minor,
                "before_wh": checkpoint.before_wh,
                "part_start_wh": checkpoint.part_start_wh,
                "closed_zones": list(checkpoint.closed_zones) or None,
                "demand_w": checkpoint.demand_w,
                "anchor_zones": list(checkpoint.anchor_zones) or None,
            },
        )
        row = await cursor.fetchone()
        assert row is not None, "a locked account is there"
        await conn.execute(sql("feed_account"), {"shard": row[0], "id": account_id, "version": row[1]})
        # Its curve again: other terms have other edges.
        view = (await look(conn, [account_id], rules.calendar))[account_id]
        reopened = reopened_from(before, after, first_open_day=through)
        late_since_ms = None if reopened is None else rules.calendar.midnight_ms(reopened)
        await post_readings(conn, view, late_since_ms=late_since_ms, rules=rules, now_ms=now_ms)
        return True


async def _insert(conn: AsyncConnection, account_id: int, assignment: Assignment) -> None:
    parameters = {
        "account_id": account_id,
        "from_day": assignment.from_day,
        "tariff_id": assignment.tariff.id,
        "category": assignment.category,
        "load_w": assignment.load_w,
        "area_type": assignment.area,
        "meter_rent": assignment.meter_rent,
    }
    await conn.execute(sql("add_assignment"), parameters)
