"""A disputed meter and what it is tested against: check meter, its registers, comparison, laboratories, the swap.

Stage: beside `db.cases`, each function one transaction under the case's lock. What a check meter reads is kept apart
from readings: it is read out on the spot, never charged, and only compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms, next_period, period_of, to_ms
from billing.correction import ERROR_BASIS_POINTS_MAX, ERROR_BASIS_POINTS_MIN
from billing.disputes.banking import BankOverhaul, MonthFlow, overhaul_bank
from billing.disputes.case import CaseKind, CaseRefused, StepKind, Verdict, paired_until_ms
from billing.disputes.comparison import Comparison, Pairing, compare, percent_text, verdict_of
from billing.running import Point
from db.accounts import AccountView, FormerMeter, MeterView, look
from db.cases import CaseConflict, CaseFile, Entry, lock_case, read_case, take_step
from db.named import sql
from db.orders import PostingRules
from db.swaps import Swap, Swapped, swap_meter

# Meters that do not say how far apart their readings are read every half-hour.
INTERVAL_S = 1_800
# Three months of half-hours are 4,416; a year of quarter-hours 35,040.
CHECK_READINGS_MAX = 40_000
BANKING_MONTHS_MAX = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReading:
    """Registers of a check meter at an instant. Units: Wh; the export is None where it does not count one."""

    at: datetime
    import_wh: int
    export_wh: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the comparison of a meter with its check meter says: of its import, and of a net meter's export."""

    taken: Comparison
    sent: Comparison | None
    verdict: Verdict
    reason: str


async def install_check_meter(
    conn: AsyncConnection, case_id: int, serial: str, accuracy_class: str, entry: Entry, calendar: LocalCalendar
) -> CaseFile:
    """Note that a check meter stands beside the disputed one from an instant on.

    Raises: CaseRefused for a meter that stands somewhere or is of a worse class; UnknownCase.
    """
    async with conn.transaction():
        await lock_case(conn, case_id)
        file = await read_case(conn, case_id)
        limits = file.rules.limits_basis_points
        if limits.get(accuracy_class, 2**31) > limits[file.row.accuracy_class]:
            raise CaseRefused(
                f"check meter: expected a class as good as {file.row.accuracy_class}, got {accuracy_class!r}"
            )
        meter = await (await conn.execute(sql("case_check_meter"), {"serial": serial})).fetchone()
        if meter is None or meter[1] or (meter[2] is not None and meter[2] > entry.at):
            raise CaseRefused(f"check meter: expected a registered one that stands nowhere, got {serial!r}")
        facts = {"meter_id": meter[0], "meter": serial, "accuracy_class": accuracy_class}
        file = await take_step(conn, case_id, StepKind.INSTALL_CHECK, entry, calendar, facts=facts)
        place = {"meter_id": meter[0], "account_id": file.row.account_id, "at": entry.at}
        await conn.execute(sql("case_install_check"), place)
        return file


async def add_check_readings(conn: AsyncConnection, case_id: int, readings: Sequence[CheckReading]) -> int:
    """Keep what a check meter has read; return how many are new.

    Raises: CaseRefused without a check meter or before it was installed; CaseConflict for another register at an
    instant that is stored; UnknownCase.
    """
    if not 1 <= len(readings) <= CHECK_READINGS_MAX or len({each.at for each in readings}) < len(readings):
        raise CaseRefused(f"check readings: expected 1 to {CHECK_READINGS_MAX}, each instant once, got {len(readings)}")
    async with conn.transaction():
        await lock_case(conn, case_id)
        installed = (await read_case(conn, case_id)).last(StepKind.INSTALL_CHECK)
        first = min(each.at for each in readings)
        if installed is None or first < installed.at:
            since = "a case with a check meter" if installed is None else f"instants from {installed.at.isoformat()} on"
            raise CaseRefused(f"check readings: expected {since}, got {first.isoformat()}")
        parameters = {
            "meter_id": installed.facts["meter_id"],
            "case_id": case_id,
            "ats": [each.at for each in readings],
            "imports": [each.import_wh for each in readings],
            "exports": [each.export_wh for each in readings],
        }
        other = await (await conn.execute(sql("check_readings_differ"), parameters)).fetchone()
        if other is not None:
            raise CaseConflict(f"check readings: expected the stored register at {other[0].isoformat()}, got another")
        return (await conn.execute(sql("add_check_readings"), parameters)).rowcount


async def compare_meters(
    conn: AsyncConnection, case_id: int, entry: Entry, calendar: LocalCalendar, *, until: datetime | None = None
) -> tuple[CaseFile, Report]:
    """Compare a meter with its check meter, and take the step; without `until`, up to the end of the pairing.

    Raises: CaseRefused; UnknownCase.
    """
    async with conn.transaction():
        await lock_case(conn, case_id)
        report = await comparison_of(conn, case_id, calendar, now=entry.at, until=until)
        facts = report_to_json(report)
        file = await take_step(conn, case_id, StepKind.COMPARE, entry, calendar, facts=facts, verdict=report.verdict)
        return file, report


async def comparison_of(
    conn: AsyncConnection, case_id: int, calendar: LocalCalendar, *, now: datetime, until: datetime | None = None
) -> Report:
    """Compare a meter with its check meter as far as both were read; writes nothing.

    Raises: CaseRefused without a check meter; UnknownCase.
    """
    file = await read_case(conn, case_id)
    installed = file.last(StepKind.INSTALL_CHECK)
    if installed is None:
        raise CaseRefused("comparison: expected a case with a check meter, got none")
    ends_ms = paired_until_ms(to_ms(installed.at), file.rules, calendar)
    until = until or min(now, from_ms(ends_ms))
    interval = await (await conn.execute(sql("case_interval"), {"meter_id": file.row.meter_id})).fetchone()
    assert interval is not None, "the meter of a case is registered"
    pairing = Pairing(
        from_ms=to_ms(installed.at),
        until_ms=to_ms(until),
        interval_ms=(interval[0] or INTERVAL_S) * 1_000,
        limit_basis_points=file.rules.limits_basis_points[file.row.accuracy_class],
        coverage_percent=file.rules.coverage_percent,
        too_short=to_ms(until) < ends_ms,
    )
    span = {"since": installed.at, "until": until}
    meter = await _registers(conn, "case_registers", {**span, "meter_id": file.row.meter_id})
    check = await _registers(conn, "check_registers", {**span, "meter_id": installed.facts["meter_id"]})
    stood = await _stood(conn, file, calendar)
    own = [Point(at_ms=at_ms, energy_wh=stood.energy_to_date(at_ms, wh)) for at_ms, wh, _ in meter]
    taken = compare(own, _points(check, 1), pairing, calendar)
    if file.row.kind != CaseKind.NET_METER:
        return Report(taken=taken, sent=None, verdict=taken.verdict, reason=taken.reason)
    sent = compare(_points(meter, 2), _points(check, 2), pairing, calendar)
    if taken.verdict is Verdict.RIGHT and sent.verdict is not Verdict.RIGHT:
        # The fee is for a meter that is right in both directions; what was taken is billed as it is.
        reason = f"import: {taken.reason}; export: {sent.reason}; its bank is to be overhauled"
        return Report(taken=taken, sent=sent, verdict=Verdict.INCONCLUSIVE, reason=reason)
    return Report(taken=taken, sent=sent, verdict=taken.verdict, reason=f"import: {taken.reason}")


async def enter_test(
    conn: AsyncConnection,
    case_id: int,
    kind: StepKind,
    error_basis_points: int,
    laboratory: str,
    entry: Entry,
    calendar: LocalCalendar,
) -> CaseFile:
    """Note what a laboratory, or one of the consumer's choice, has found; the limit of the class makes the verdict.

    Raises: CaseRefused; UnknownCase.
    """
    if not ERROR_BASIS_POINTS_MIN <= error_basis_points <= ERROR_BASIS_POINTS_MAX:
        raise CaseRefused(f"error: expected -90 % to 1000 %, got {percent_text(error_basis_points)} %")
    async with conn.transaction():
        await lock_case(conn, case_id)
        file = await read_case(conn, case_id)
        limit = file.rules.limits_basis_points[file.row.accuracy_class]
        facts = {"error_basis_points": error_basis_points, "limit_basis_points": limit, "laboratory": laboratory}
        verdict = verdict_of(error_basis_points, limit)
        return await take_step(conn, case_id, kind, entry, calendar, facts=facts, verdict=verdict)


async def replace_meter(
    conn: AsyncConnection, case_id: int, swap: Swap, *, rules: PostingRules, now_ms: int
) -> tuple[CaseFile, Swapped]:
    """Swap the disputed meter, and take the step, in one transaction.

    Raises: CaseRefused; SwapRefused; UnknownCase.
    """
    async with conn.transaction():
        await lock_case(conn, case_id)
        file = await read_case(conn, case_id)
        done = await swap_meter(conn, replace(swap, account_id=file.row.account_id), rules=rules, now_ms=now_ms)
        if done.old_serial != file.row.meter:
            raise CaseRefused(
                f"replace: expected the disputed meter {file.row.meter} at the account, got {done.old_serial}"
            )
        facts = {"swap": done.id, "meter": done.new_serial, "energy_wh": done.energy_wh}
        entry = Entry(by=swap.by, at=done.at, note=swap.reason)
        return await take_step(conn, case_id, StepKind.REPLACE, entry, rules.calendar, facts=facts), done


async def bank_of(
    conn: AsyncConnection,
    case_id: int,
    calendar: LocalCalendar,
    *,
    first: date,
    last: date,
    import_error_basis_points: int,
    export_error_basis_points: int,
    opening_wh: int = 0,
) -> BankOverhaul:
    """Return the bank of a net meter over whole months as counted, and with both errors put right; writes nothing.

    Raises: CaseRefused for months that the meter has not read in both directions.
    """
    file = await read_case(conn, case_id)
    if file.row.kind != CaseKind.NET_METER:
        raise CaseRefused(f"bank: expected a case of kind {CaseKind.NET_METER}, got {file.row.kind}")
    months = [period_of(first)]
    while months[-1] < period_of(last) and len(months) <= BANKING_MONTHS_MAX:
        months.append(next_period(months[-1]))
    if first > last or len(months) > BANKING_MONTHS_MAX:
        raise CaseRefused(f"bank: expected 1 to {BANKING_MONTHS_MAX} months, got {first} to {last}")
    edges = [from_ms(calendar.midnight_ms(day)) for day in (*months, next_period(months[-1]))]
    cursor = await conn.execute(sql("case_flows"), {"meter_id": file.row.meter_id, "ats": edges})
    registers = [(import_wh, export_wh) for _, import_wh, export_wh in await cursor.fetchall()]
    flows = []
    for month, before, after in zip(months, registers[:-1], registers[1:], strict=True):
        if None in before or None in after or before[0] > after[0] or before[1] > after[1]:
            raise CaseRefused(
                f"bank: expected registers of both directions that rise through {month:%Y-%m}, got others"
            )
        flows.append(MonthFlow(month=month, import_wh=after[0] - before[0], export_wh=after[1] - before[1]))
    return overhaul_bank(
        flows,
        import_error_basis_points=import_error_basis_points,
        export_error_basis_points=export_error_basis_points,
        opening_wh=opening_wh,
        year_ends_month=file.rules.banking_year_ends_month,
    )


def report_to_json(report: Report) -> dict[str, object]:
    """Return a comparison as the trail keeps it and the interface shows it."""
    taken = comparison_to_json(report.taken)
    return {
        **taken,
        "verdict": report.verdict.value,
        "reason": report.reason,
        "export": None if report.sent is None else comparison_to_json(report.sent),
    }


def comparison_to_json(found: Comparison) -> dict[str, object]:
    """Return one direction of a comparison."""
    return {
        "from": _text(found.from_ms),
        "until": _text(found.until_ms),
        "meter_wh": found.meter_wh,
        "check_wh": found.check_wh,
        "error_basis_points": found.error_basis_points,
        "limit_basis_points": found.limit_basis_points,
        "pairs": found.pairs,
        "expected_pairs": found.expected,
        "missing_pairs": found.missing_instants,
        "missing": [
            {
                "from": _text(each.first_ms),
                "until": _text(each.last_ms),
                "pairs": each.instants,
                "meter": each.meter,
                "check_meter": each.check,
            }
            for each in found.missing
        ],
        "intervals": found.intervals,
        "outside_limit": found.outside,
        "worst": [
            {
                "from": _text(each.from_ms),
                "until": _text(each.until_ms),
                "meter_wh": each.meter_wh,
                "check_wh": each.check_wh,
            }
            for each in found.worst
        ],
        "months": [
            {
                "month": month.isoformat(),
                "meter_wh": each.meter_wh,
                "check_wh": each.check_wh,
                "error_basis_points": each.error_basis_points,
            }
            for month, each in sorted(found.months.items())
        ],
        "verdict": found.verdict.value,
        "reason": found.reason,
    }


def _text(at_ms: int | None) -> str | None:
    return None if at_ms is None else from_ms(at_ms).isoformat()


async def _registers(
    conn: AsyncConnection, query: str, parameters: dict[str, object]
) -> list[tuple[int, int, int | None]]:
    cursor = await conn.execute(sql(query), parameters)
    return [(to_ms(at), import_wh, export_wh) for at, import_wh, export_wh in await cursor.fetchall()]


def _points(registers: Sequence[tuple[int, int, int | None]], column: int) -> list[Point]:
    """Return one of the registers as a curve; instants at which it was not read are left out."""
    return [Point(at_ms=row[0], energy_wh=wh) for row in registers if (wh := row[column]) is not None]


async def _stood(conn: AsyncConnection, file: CaseFile, calendar: LocalCalendar) -> MeterView | FormerMeter:
    """Return how the disputed meter's registers become energy, wherever it is by now."""
    views = await look(conn, [file.row.account_id], calendar)
    view: AccountView | None = views.get(file.row.account_id)
    if view is not None and view.meter.id != file.row.meter_id:
        former = next((each for each in view.meter.formers if each.id == file.row.meter_id), None)
        if former is not None:
            return former
    if view is None or view.meter.id != file.row.meter_id:
        raise CaseRefused(f"comparison: expected meter {file.row.meter} at account {file.row.account}, got none")
    return view.meter
