"""The rows that corrections read and write by sets: what is booked, points of curves, assignments, edits of readings.

Stage: beneath `db.correcting`. A row of assignments or edits is never changed but to name what was put in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from billing.calendar import from_ms, to_ms
from billing.rerate import CorrectionRefused
from billing.running import PeriodPosted, Point
from billing.tariff import Tariff
from billing.terms import Assignment, Terms
from db.accounts import AccountView, former_points, through_all_meters
from db.correction_scope import EstimatedFrom
from db.named import sql
from db.tariffs import tariffs_by_checksum


@dataclass(frozen=True, slots=True, kw_only=True)
class EditedReading:
    """A register to put in the place of a reading's; None makes the reading void.

    With `estimated` nothing was read at that instant: the register is an estimate, or None where one is taken back.
    """

    meter_id: int
    read_at: datetime
    import_wh: int | None
    estimated: EstimatedFrom | None = None


async def booked_since(conn: AsyncConnection, starts: Mapping[int, date]) -> dict[int, dict[date, PeriodPosted]]:
    """Read what journals have booked for accounts by bill part, each from a day on."""
    cursor = await conn.execute(sql("booked_since"), {"ids": list(starts), "since": list(starts.values())})
    found: dict[int, dict[date, PeriodPosted]] = {}
    for account_id, period, energy_wh, demand_w, assessed_wh, lines in await cursor.fetchall():
        found.setdefault(account_id, {})[period] = PeriodPosted(
            period=period, energy_wh=energy_wh, lines=lines, demand_w=demand_w, assessed_wh=assessed_wh
        )
    return found


async def points_of_many(
    conn: AsyncConnection, edges: Sequence[tuple[AccountView, datetime]]
) -> dict[int, list[Point]]:
    """Read the points on both sides of instants of accounts' curves, none later than each one's latest."""
    found: dict[int, list[Point]] = {view.id: [] for view, _ in edges}
    by_id = {view.id: view for view, _ in edges}
    parameters = {
        "account_ids": [view.id for view, _ in edges],
        "meter_ids": [view.meter.id for view, _ in edges],
        "edges": [at for _, at in edges],
        "latest": [from_ms(view.points[-1].at_ms) for view, _ in edges],
    }
    cursor = await conn.execute(sql("points_of_many"), parameters)
    for account_id, read_at, register_wh in await cursor.fetchall():
        at_ms = to_ms(read_at)
        energy_wh = by_id[account_id].meter.energy_to_date(at_ms, register_wh)
        found[account_id].append(Point(at_ms=at_ms, energy_wh=energy_wh))
    for view in by_id.values():
        if view.meter.formers:
            former = await former_points(conn, view.meter, [at for each, at in edges if each.id == view.id])
            found[view.id] = through_all_meters(view.meter, found[view.id], former)
    return found


async def assessed_by(
    conn: AsyncConnection, correction_id: int | None, ids: Sequence[int]
) -> dict[int, dict[date, int]]:
    """Read the energy that a correction has assessed for accounts, by bill part."""
    cursor = await conn.execute(sql("assessed_by"), {"id": correction_id, "ids": list(ids)})
    found: dict[int, dict[date, int]] = {}
    for account_id, period, assessed_wh in await cursor.fetchall():
        found.setdefault(account_id, {})[period] = assessed_wh
    return found


async def restored_assignments(
    conn: AsyncConnection, correction_id: int, terms: Mapping[int, Terms]
) -> dict[int, tuple[Assignment, ...] | str]:
    """Return accounts' assignments without what a correction wrote, or why that cannot be."""
    parameters = {"id": correction_id, "ids": list(terms)}
    cursor = await conn.execute(sql("count_assignments_by"), parameters)
    buried = {account_id for account_id, written, holding in await cursor.fetchall() if holding < written}
    cursor = await conn.execute(sql("assignments_before"), parameters)
    earlier = await cursor.fetchall()
    cursor = await conn.execute(sql("assignments_of_many"), {"ids": list(terms)})
    standing = await cursor.fetchall()
    tariffs = await tariffs_by_checksum(conn, {row[2] for row in earlier} | {row[4] for row in standing})
    rows: dict[int, dict[date, Assignment]] = {account_id: {} for account_id in terms}
    for account_id, _, from_day, written_by, *values in standing:
        if written_by != correction_id:
            rows[account_id][from_day] = _assignment(from_day, values, tariffs)
    for account_id, from_day, *values in earlier:
        rows[account_id][from_day] = _assignment(from_day, values, tariffs)
    found: dict[int, tuple[Assignment, ...] | str] = {}
    for account_id, by_day in rows.items():
        assignments = tuple(by_day[day] for day in sorted(by_day))
        if account_id in buried:
            found[account_id] = "expected terms that no later correction has changed; reverse that one first"
        else:
            found[account_id] = "nothing changes" if assignments == terms[account_id].assignments else assignments
    return found


async def write_assignments(
    conn: AsyncConnection, correction_id: int, changes: Mapping[int, tuple[Terms, Terms]]
) -> None:
    """Put assignments of accounts in the place of those they have: (old terms, new terms) by account."""
    changed = {
        account_id: (
            {assignment.from_day: assignment for assignment in old.assignments},
            {assignment.from_day: assignment for assignment in new.assignments},
        )
        for account_id, (old, new) in changes.items()
        if old.assignments != new.assignments
    }
    if not changed:
        return
    cursor = await conn.execute(sql("assignments_of_many"), {"ids": list(changed)})
    retired = [
        row_id
        for account_id, row_id, from_day, *_ in await cursor.fetchall()
        if changed[account_id][1].get(from_day) != changed[account_id][0].get(from_day)
    ]
    added = [
        (account_id, assignment)
        for account_id, (old, new) in changed.items()
        for day, assignment in sorted(new.items())
        if old.get(day) != assignment
    ]
    await conn.execute(sql("retire_assignments"), {"ids": retired})
    await conn.execute(
        sql("add_assignments"),
        {
            "correction_id": correction_id,
            "account_ids": [account_id for account_id, _ in added],
            "from_days": [assignment.from_day for _, assignment in added],
            "tariff_ids": [assignment.tariff.id for _, assignment in added],
            "categories": [assignment.category for _, assignment in added],
            "loads_w": [assignment.load_w for _, assignment in added],
            "area_types": [assignment.area for _, assignment in added],
            "meter_rents": [assignment.meter_rent for _, assignment in added],
        },
    )
    await conn.execute(sql("name_replacements"), {"ids": retired})


async def edits_undoing(conn: AsyncConnection, correction_id: int, meter_id: int) -> list[EditedReading]:
    """Return the edits of a meter that put back what held before a correction edited it.

    Raises: CorrectionRefused.
    """
    cursor = await conn.execute(sql("edits_by"), {"id": correction_id, "meter_ids": [meter_id]})
    found = []
    for meter, read_at, holds, edited_before, before_wh, received_wh in await cursor.fetchall():
        if not holds:
            raise CorrectionRefused("expected readings that no later correction has edited; reverse that one first")
        import_wh = before_wh if edited_before else received_wh
        found.append(EditedReading(meter_id=meter, read_at=read_at, import_wh=import_wh))
    found += await estimates_undoing(conn, correction_id, meter_id)
    if not found:
        raise CorrectionRefused("nothing changes")
    return found


async def estimates_undoing(conn: AsyncConnection, correction_id: int, meter_id: int) -> list[EditedReading]:
    """Return what takes a correction's estimates of a meter back; readings that came since have ended some already."""
    cursor = await conn.execute(sql("estimates_by"), {"id": correction_id, "meter_id": meter_id})
    return [
        EditedReading(
            meter_id=meter_id,
            read_at=read_at,
            import_wh=None,
            estimated=EstimatedFrom(
                rule=rule, inputs=inputs, from_at=from_at, from_wh=from_wh, to_at=to_at, to_wh=to_wh
            ),
        )
        for read_at, rule, inputs, from_at, from_wh, to_at, to_wh in await cursor.fetchall()
    ]


async def write_estimates(conn: AsyncConnection, correction_id: int, edits: Sequence[EditedReading]) -> None:
    """Put estimated registers into gaps, in the place of earlier estimates, or take them back.

    Raises: CorrectionRefused where a gap is no longer between the readings that the estimate was made of.
    """
    keys: dict[str, object] = {
        "meter_ids": [edit.meter_id for edit in edits],
        "ats": [edit.read_at for edit in edits],
        "correction_id": correction_id,
    }
    await conn.execute(sql("withdraw_estimates"), keys)
    made = [(edit, edit.estimated) for edit in edits if edit.import_wh is not None and edit.estimated is not None]
    if not made:
        return
    parameters = {
        "meter_ids": [edit.meter_id for edit, _ in made],
        "ats": [edit.read_at for edit, _ in made],
        "import_whs": [edit.import_wh for edit, _ in made],
        "rules": [since.rule for _, since in made],
        "inputs": [Jsonb(dict(since.inputs)) for _, since in made],
        "from_ats": [since.from_at for _, since in made],
        "from_whs": [since.from_wh for _, since in made],
        "to_ats": [since.to_at for _, since in made],
        "to_whs": [since.to_wh for _, since in made],
        "correction_id": correction_id,
    }
    await conn.execute(sql("add_estimates"), parameters)
    cursor = await conn.execute(sql("count_held_estimates"), {"id": correction_id})
    row = await cursor.fetchone()
    if row is None or row[0] < len(made):
        raise CorrectionRefused("expected a gap that is still open between the same readings, got one that has changed")


async def write_edits(conn: AsyncConnection, correction_id: int, edits: Iterable[EditedReading]) -> None:
    """Put registers in the place of readings, and of earlier edits of them."""
    every = list(edits)
    if estimates := [edit for edit in every if edit.estimated is not None]:
        await write_estimates(conn, correction_id, estimates)
    rows = [edit for edit in every if edit.estimated is None]
    if not rows:
        return
    keys: dict[str, object] = {
        "meter_ids": [edit.meter_id for edit in rows],
        "ats": [edit.read_at for edit in rows],
    }
    cursor = await conn.execute(sql("retire_edits"), keys)
    retired = [row[0] for row in await cursor.fetchall()]
    registers = [edit.import_wh for edit in rows]
    await conn.execute(sql("add_edits"), {**keys, "correction_id": correction_id, "import_whs": registers})
    await conn.execute(sql("name_edits"), {"ids": retired})


def _assignment(from_day: date, values: Sequence[Any], tariffs: Mapping[str, Tariff]) -> Assignment:
    # Columns of `assignments_of_many` and `assignments_before`, typed by the migrations.
    checksum, category, load_w, area_type, meter_rent = values
    return Assignment(
        from_day=from_day,
        tariff=tariffs[checksum],
        category=category,
        load_w=load_w,
        area=area_type,
        meter_rent=meter_rent,
    )
