"""One account in full, for whoever has to find out why it breaks an invariant.

Stage: after the checks, on the same snapshot. Everything is bounded: the newest rows of each kind, the bill parts that
differ and the newest, the readings around the newest edges. No consumer's name or contact is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms
from billing.rating import difference, total
from billing.running import Point, charged_lines, open_bills
from db.audit.cases import Case, read_cases
from db.audit.meters import Curve, curve_of_meter
from db.audit.reading import column
from db.audit.recount import Booked, recounted
from db.audit.report import Offence

# A screen or two: ten journals have some sixty legs.
ROWS_MAX, JOURNALS_MAX, PARTS_MAX, EDGES_MAX, READINGS_MAX = 10, 10, 12, 6, 6


async def shown_in_full(conn: AsyncConnection, offence: Offence, calendar: LocalCalendar) -> dict[str, object]:
    """Return what is stored of an account and what its readings say, as values that JSON has."""
    account_id = offence.account_id
    # Composed by the database: objects and lists of plain values.
    shown: dict[str, Any] = {
        "account_id": account_id,
        "breaks": [{"check": check_id, "found": text} for check_id, text in offence.breaks],
    }
    for found in await column(conn, "audit_shown_account", {"id": account_id, "most": ROWS_MAX}):
        shown |= {name: value if value is not None else [] for name, value in found.items()}
    parameters = {"id": account_id, "journal_ids": offence.journal_ids, "most": JOURNALS_MAX}
    shown["journals"] = await column(conn, "audit_shown_journals", parameters)
    _, cases = await read_cases(conn, [account_id], calendar)
    for case in cases.values():
        curve = await curve_of_meter(conn, case.view.meter.id)
        shown |= _money(case, calendar)
        shown["bill_parts"] = _bill_parts(case, curve, calendar)
        shown["readings"] = _readings(case, curve, calendar)
    return shown


def shown_lines(shown: Mapping[str, Any]) -> list[str]:
    """Return an account shown in full as lines for a person."""
    # Values of JSON, as `shown_in_full` has put them together.
    lines = [f"first offending account: {shown.get('account', {}).get('number', shown['account_id'])}"]
    lines += [f"  breaks {each['check']}: {each['found']}" for each in shown["breaks"]]
    for name in ("account", "meter", "checkpoint", "running"):
        if shown.get(name):
            lines.append(f"  {name}: {_pairs(shown[name])}")
    for name in ("assignments", "register_segments", "alarms", "orders", "dues", "readings"):
        lines += [f"  {name}:", *(f"    {_pairs(row)}" for row in shown[name])] if shown.get(name) else []
    for part in shown.get("bill_parts", ()):
        lines.append(f"  bill part {part['first']} to {part['last']}, {part['state']}:")
        lines += [f"    {name}: {_pairs(part[name])}" for name in ("booked", "recomputed", "short") if part[name]]
    for journal in shown["journals"]:
        lines.append(f"  journal {_pairs({name: value for name, value in journal.items() if name != 'legs'})}")
        lines += [f"    {' '.join(filter(None, leg[:2])):<32}{leg[2]:>14}" for leg in journal["legs"]]
    return lines


def _money(case: Case, calendar: LocalCalendar) -> dict[str, Any]:
    """Return the checkpoint beside what journals say of it, and the running balance."""
    view, checkpoint = case.view, case.view.checkpoint
    current = case.periods.get(view.terms.part_at(checkpoint.through).first, Booked())
    return {
        "checkpoint": {
            "through": checkpoint.through.isoformat(),
            "posted_minor": checkpoint.posted_minor,
            "prepaid_legs_minor": case.prepaid_minor,
            "closed_wh": checkpoint.closed_wh,
            "journals_wh": case.postings.energy_wh,
            "charged_minor": checkpoint.charged_minor,
            "journals_charged_minor": total(current.lines),
            "days": case.postings.days,
            "anchor": _point(checkpoint.anchor),
        },
        "running": {"balance_minor": view.balance_minor(calendar), "last_point": _point(view.points[-1])},
    }


def _bill_parts(case: Case, curve: Curve | None, calendar: LocalCalendar) -> list[dict[str, Any]]:
    """Return closed parts that differ and the newest, then the open one, booked beside recomputed."""
    around = curve.around(case.edges_ms(calendar)) if curve else []
    closed = list(recounted(case.parts, case.periods, case.curve(around), calendar))
    differing = [each for each in closed if each.short or each.short_wh][:PARTS_MAX]
    newest = [each for each in closed[-PARTS_MAX:] if each not in differing]
    parts = [
        {
            "first": each.part.first.isoformat(),
            "last": each.part.last.isoformat(),
            "state": "closed",
            "booked": _bill(each.booked.energy_wh, each.booked.lines, each.booked.assessed_wh),
            "recomputed": _bill(each.energy_wh, each.lines, each.booked.assessed_wh),
            "short": _bill(each.short_wh, each.short) if each.short or each.short_wh else {},
        }
        for each in sorted([*differing, *newest], key=lambda each: each.part.first)
    ]
    return [*parts, _open_part(case, calendar)]


def _open_part(case: Case, calendar: LocalCalendar) -> dict[str, Any]:
    checkpoint, terms = case.view.checkpoint, case.view.terms
    part = terms.part_at(checkpoint.through)
    booked = case.periods.get(part.first, Booked())
    again = charged_lines(checkpoint, terms)
    short = difference(again, booked.lines)
    to_date: tuple[int, dict[str, int]] = (0, {})
    to_date = open_bills(checkpoint, terms, case.view.points, calendar).get(part.first, to_date)
    return {
        "first": part.first.isoformat(),
        "last": part.last.isoformat(),
        "state": f"open, booked before {checkpoint.through}, {to_date[0]} Wh and {total(to_date[1])} minor to date",
        "booked": _bill(booked.energy_wh, booked.lines, booked.assessed_wh),
        "recomputed": _bill(checkpoint.closed_wh - checkpoint.part_start_wh, again),
        "short": _bill(checkpoint.closed_wh - checkpoint.part_start_wh - booked.energy_wh, short) if short else {},
    }


def _bill(energy_wh: int, lines: Mapping[str, int], assessed_wh: int = 0) -> dict[str, int]:
    assessed = {"assessed_wh": assessed_wh} if assessed_wh else {}
    return {"energy_wh": energy_wh, **assessed, **lines, "total_minor": total(lines)}


def _readings(case: Case, curve: Curve | None, calendar: LocalCalendar) -> list[dict[str, object]]:
    """Return energy to date around the newest edges of parts and days, and the last readings."""
    if curve is None:
        return []
    edges: Sequence[date] = [part.end for part in case.parts[-EDGES_MAX:]] + [case.view.checkpoint.through]
    around = curve.around([calendar.midnight_ms(day) for day in edges])
    return [_point(point) for point in sorted({*around, *curve.latest(READINGS_MAX)})]


def _point(point: Point) -> dict[str, object]:
    return {"at": from_ms(point.at_ms).isoformat(), "energy_wh": point.energy_wh}


def _pairs(row: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.items() if value is not None)
