"""What tests of corrections share: homes with closed months on a real PostgreSQL, and the way of a correction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

from psycopg import AsyncConnection

from billing.rating import Lines
from billing.running import Point, bill_by_month
from db.audit import run_checks
from db.corrections import Summary, apply, approve, compute
from db.tariffs import add_tariff
from tests.integration.test_posting import (
    APRIL,
    KOLKATA,
    RULES,
    Home,
    Seen,
    close,
    local,
    open_home,
    read,
    rows,
    view_of,
    without_zeros,
)

CLERK, OFFICER = "R. Kaur", "S. Gill"
JUNE_9 = date(2026, 6, 9)
DEAR_ID, ZONED_ID, DEMAND_ID = "test-dear", "test-zoned", "test-demand"
# Dearer, with a levy of another name, a minimum and a surcharge that is a levy under the built-in tariff only.
DEAR = f"""
id = "{DEAR_ID}"
effective_from = 2026-01-01
[[band]]
fixed_milli_per_kw_month = 9_000_000
energy = [{{ to_kwh = 100, rate_milli_per_kwh = 600_000 }}, {{ rate_milli_per_kwh = 900_000 }}]
[[share]]
name = "duty"
kind = "charge"
of = ["energy", "fixed"]
basis_points = 1_300
[[share]]
name = "cess"
kind = "levy"
of = ["energy"]
basis_points = 500
"""
ZONED = f"""
id = "{ZONED_ID}"
effective_from = 2026-01-01
[[band]]
fixed_milli_per_kw_month = 7_000_000
energy = [{{ rate_milli_per_kwh = 500_000 }}]
[zones]
[[zones.zone]]
name = "normal"
surcharge_milli_per_kwh = 0
[[zones.zone]]
name = "peak"
surcharge_milli_per_kwh = 200_000
[[zones.hours]]
zone = "normal"
from = "22:00"
to = "18:00"
[[zones.hours]]
zone = "peak"
from = "18:00"
to = "22:00"
"""
DEMAND = f"""
id = "{DEMAND_ID}"
effective_from = 2026-01-01
[[band]]
demand_milli_per_kw_month = 50_000_000
energy = [{{ rate_milli_per_kwh = 500_000 }}]
"""


def curve(days: int = 70, *, wh_a_day: int = 12_000, first: date = APRIL) -> list[Seen]:
    """Three readings a day, off every edge, of a use that rises and falls over the week."""
    seen: list[Seen] = []
    register_wh = 0
    for day in range(days):
        for hours, share in ((5, 20), (13, 30), (21, 50)):
            register_wh += wh_a_day * share * (80 + 7 * (day % 7)) // 10_000
            seen.append((local(first + timedelta(days=day), hours), register_wh))
    return seen


async def add_tariffs(conn: AsyncConnection) -> None:
    """Add the tariffs of this file."""
    for document in (DEAR, ZONED, DEMAND):
        await add_tariff(conn, document)


async def lived_in(
    conn: AsyncConnection, number: str, *, days: int = 70, until: date = JUNE_9 - timedelta(days=4), **terms: Any
) -> Home:
    """A home with readings from April into June, closed up to a day a few days before its latest reading."""
    home = await open_home(conn, number, **{"opening_credit_minor": 3_000_000, **terms})
    await read(conn, home, curve(days))
    await close(conn, until)
    return home


async def carried_out(conn: AsyncConnection, correction_id: int) -> Summary:
    """Take a correction all the way: dry run, approval by a second person, every account."""
    summary = await compute(conn, correction_id, rules=RULES)
    await approve(conn, correction_id, by=OFFICER, cut_offs=summary.to_cut)
    return await apply(conn, correction_id, rules=RULES)


async def assert_clean(conn: AsyncConnection) -> None:
    """The auditor finds nothing; tests store readings without batches, and sell without vendors."""

    report = await run_checks(conn, KOLKATA)
    found = [check.line() for check in report.checks if check.broken and check.id not in ("I3-rows", "I6")]
    assert found == []


async def scratch(conn: AsyncConnection, home: Home) -> dict[date, tuple[int, Lines]]:
    """Rate the readings of an account as they hold now, all at once, under the terms that it has."""
    view = await view_of(conn, home)
    stored = await rows(
        conn, "select read_at, import_wh from effective_readings where meter_id = %s order by read_at", home.meter_id
    )
    points = [Point(at_ms=view.meter.installed_ms, energy_wh=0)]
    points += [Point(at_ms=int(row["read_at"].timestamp() * 1000), energy_wh=row["import_wh"]) for row in stored]
    last_day = max(KOLKATA.day_of(points[-1].at_ms), view.checkpoint.through)
    rated = bill_by_month(view.terms, points, last_day=last_day, calendar=KOLKATA)
    return {month: (energy_wh, without_zeros(lines)) for month, (energy_wh, lines) in rated.items()}


async def by_part(conn: AsyncConnection, home: Home) -> dict[date, tuple[int, Mapping[str, int]]]:
    """Return energy and lines that journals have booked by bill part, parts of nothing left out."""
    found = await rows(
        conn,
        "select j.period, sum(j.energy_wh + j.assessed_wh)::bigint as wh, jsonb_agg(j.lines) as lines from journals j"
        " where j.account_id = %s and j.period is not null group by j.period",
        home.account_id,
    )
    parts = {}
    for row in found:
        lines: dict[str, int] = {}
        for each in row["lines"]:
            lines = {name: lines.get(name, 0) + each.get(name, 0) for name in {**lines, **each}}
        lines = without_zeros(lines)
        if row["wh"] or lines:
            parts[row["period"]] = (row["wh"], lines)
    return parts
