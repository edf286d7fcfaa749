"""Cases and comparisons as a person reads them, and the file of a check meter as it is read.

Stage: beside the commands of cases, in the command line's outermost layer.
"""

from __future__ import annotations

import csv
from datetime import datetime
from typing import TYPE_CHECKING, Any

from billing.money import format_minor
from prepaid.arguments import CommandRefused, line, local
from prepaid.settings import Settings

if TYPE_CHECKING:
    from billing.disputes.banking import BankOverhaul
    from db.case_tests import CheckReading, Report


def print_case(found: dict[str, Any], settings: Settings) -> None:
    """Print a case for a person, from its JSON form."""
    line(f"case {found['case']}, {found['kind']}, {found['state']}: account {found['account']}, meter {found['meter']}")
    line(f"  {found['complaint']}")
    for name in ("verdict", "decision"):
        if found[name] is not None:
            line(f"  {name}: {found[name]}")
    for clock in found["clocks"]:
        met = "running" if clock["met_at"] is None else f"met {local(clock['met_at'], settings)}"
        late = "  OVERDUE" if clock["overdue"] else ""
        line(f"  clock {clock['clock']}: due {local(clock['due_at'], settings)}, {met}{late}")
    for step in found["steps"]:
        line(f"  {step['n']:>3}  {local(step['at'], settings)}  {step['step']:<14} {step['by']}: {step['note']}")
        for fact in _fact_lines(step["facts"]):
            line(f"       {fact}")
    for document in found["documents"]:
        line(
            f"  document {document['document']}: {document['name']}, {document['bytes']:,} bytes, {document['sha256']}"
        )


def _fact_lines(facts: dict[str, Any]) -> list[str]:
    """Return what a person looks for in a step: verdict, correction, money."""
    lines = [str(facts["reason"])] if "reason" in facts else []
    if "correction" in facts:
        lines.append(f"correction {facts['correction']}: prepaid corrections show {facts['correction']}")
    if "before" in facts and "after" in facts:
        lines.append(f"balance {facts['before']} before, {facts['after']} after")
    for part in facts.get("parts", ()):
        total = format_minor(sum(part["lines"].values()))
        lines.append(f"bill part from {part['from']}: {part['assessed_wh']:,} Wh, {total}")
    if "amount" in facts:
        lines.append(f"amount {facts['amount']}")
    if facts.get("journals"):
        lines.append(f"journals {', '.join(map(str, facts['journals']))}")
    return lines


def print_report(report: Report, settings: Settings) -> None:
    """Print a comparison: totals, months, and every span without pairs."""
    from billing.calendar import from_ms
    from billing.disputes.comparison import percent_text

    for title, found in (("import", report.taken), ("export", report.sent)):
        if found is None:
            continue
        error = "none" if found.error_basis_points is None else f"{percent_text(found.error_basis_points)} %"
        line(f"{title}: meter {found.meter_wh:,} Wh, check meter {found.check_wh:,} Wh, error {error}")
        line(
            f"  {found.pairs:,} of {found.expected:,} pairs; {found.outside:,} of {found.intervals:,} intervals outside"
        )
        for month, each in sorted(found.months.items()):
            percent = each.error_basis_points
            shown = "none" if percent is None else f"{percent_text(percent)} %"
            line(f"  {month:%Y-%m}: meter {each.meter_wh:,} Wh, check meter {each.check_wh:,} Wh, error {shown}")
        for gap in found.missing:
            who = " and ".join(name for name, lacks in (("meter", gap.meter), ("check meter", gap.check)) if lacks)
            since, until = (local(from_ms(at_ms), settings) for at_ms in (gap.first_ms, gap.last_ms))
            line(f"  missing of the {who}: {since} to {until}, {gap.instants} pairs")
    line(f"verdict {report.verdict}: {report.reason}")


def print_bank(found: BankOverhaul) -> None:
    """Print a net meter's bank: what was set off, billed and banked, and what each month was billed short."""
    for before, after in zip(found.counted, found.corrected, strict=True):
        line(
            f"{before.month:%Y-%m}: billed {before.billed_wh:,} Wh, should be {after.billed_wh:,} Wh,"
            f" short {found.short_wh[before.month]:,} Wh; banked {before.bank_wh:,} Wh, should be {after.bank_wh:,} Wh"
        )


def read_check_readings(text: str) -> list[CheckReading]:
    """Read a file of a check meter.

    Raises: CommandRefused with the number of the line.
    """
    from db.case_tests import CheckReading

    rows = list(csv.reader(text.splitlines()))
    if not rows or [name.strip() for name in rows[0]] not in (
        ["read_at", "import_wh"],
        ["read_at", "import_wh", "export_wh"],
    ):
        raise CommandRefused("line 1: expected the columns read_at,import_wh or read_at,import_wh,export_wh")
    found = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            at = datetime.fromisoformat(row[0])
            registers = [int(each) for each in row[1:] if each != ""]
            if at.tzinfo is None or len(row) != len(rows[0]) or not registers or min(registers) < 0:
                raise ValueError
        except (ValueError, IndexError):
            expected = "an instant with its zone and registers in whole Wh"
            raise CommandRefused(f"line {number}: expected {expected}, got {','.join(row)[:60]!r}") from None
        found.append(
            CheckReading(at=at, import_wh=registers[0], export_wh=registers[1] if len(registers) > 1 else None)
        )
    return found
