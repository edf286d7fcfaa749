"""Rules of disputes: a dated TOML document to values, every rule checked, errors that name the line and the rule.

Stage: where the rules of disputes enter; the form is described in docs/disputes.md. A case goes by the rules of the
day on which it was opened. No document may permit a longer overhaul than `billing.correction` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from functools import cache
from importlib import resources
from types import MappingProxyType

from billing.correction import PERMITTED, Fault
from billing.money import BillingError
from billing.toml_table import Table, read_document, shown

BUILTIN_CASE_RULES = "punjab"
# A class of 10 % is no meter; ten years of hours are no clock.
LIMIT_BASIS_POINTS_MAX, HOURS_MAX, DAYS_MAX, MONTHS_MAX = 1_000, 87_600, 365, 24
FEE_MINOR_MAX = 10**9
_HEAD = {
    "id",
    "title",
    "source",
    "effective_from",
    "check_meter",
    "replacement",
    "disputed_bill",
    "test_fee",
    "accuracy",
    "overhaul",
    "banking",
}


class CaseRulesError(BillingError):
    """A document of rules of disputes breaks a rule; the message names document, line, table and rule."""

    code = "case_rules_error"


class Way(StrEnum):
    """Ways to assess what a meter should have counted (`billing.correction`)."""

    PERCENT_ERROR = "percent_error"
    SAME_DAYS_LAST_YEAR = "same_days_last_year"
    DAY_AVERAGE = "day_average"
    STATED_ENERGY = "stated_energy"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverhaulRule:
    """How far back the overhaul of a fault may reach, and how it may be assessed."""

    fault: Fault
    months: int
    ways: tuple[Way, ...]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRules:
    """The rules of disputes from a day on.

    Units: `limits_basis_points` in hundredths of a percent by accuracy class; `test_fee_minor` in minor units.
    """

    id: str
    title: str
    source: str
    effective_from: date
    check_meter_days: int
    paired_months: int
    coverage_percent: int
    check_meter_source: str
    urban_hours: int
    rural_hours: int
    replacement_source: str
    settle_hours: int
    settle_source: str
    test_fee_minor: int
    test_fee_source: str
    limits_basis_points: Mapping[str, int]
    overhauls: Mapping[Fault, OverhaulRule]
    banking_year_ends_month: int
    banking_source: str


def parse_case_rules(text: str) -> CaseRules:
    """Read a document of rules of disputes.

    Raises: CaseRulesError naming the line and the rule that is broken.
    """
    name, top = read_document(text, "dispute rules", CaseRulesError)
    top.require_known(_HEAD)
    check = top.table("check_meter", {"source", "due_days", "paired_months", "coverage_percent"})
    replacement = top.table("replacement", {"source", "urban_hours", "rural_hours"})
    bill = top.table("disputed_bill", {"source", "settle_hours"})
    fee = top.table("test_fee", {"source", "amount_minor"})
    banking = top.table("banking", {"source", "year_ends_month"})
    return CaseRules(
        id=name,
        title=top.text("title"),
        source=top.text("source"),
        effective_from=top.effective_from(),
        check_meter_days=check.whole("due_days", DAYS_MAX, least=1),
        paired_months=check.whole("paired_months", MONTHS_MAX, least=1),
        coverage_percent=check.whole("coverage_percent", 100, least=1),
        check_meter_source=check.text("source"),
        urban_hours=replacement.whole("urban_hours", HOURS_MAX, least=1),
        rural_hours=replacement.whole("rural_hours", HOURS_MAX, least=1),
        replacement_source=replacement.text("source"),
        settle_hours=bill.whole("settle_hours", HOURS_MAX, least=1),
        settle_source=bill.text("source"),
        test_fee_minor=fee.whole("amount_minor", FEE_MINOR_MAX),
        test_fee_source=fee.text("source"),
        limits_basis_points=MappingProxyType(_limits(top)),
        overhauls=MappingProxyType(_overhauls(top)),
        banking_year_ends_month=banking.whole("year_ends_month", 12, least=1),
        banking_source=banking.text("source"),
    )


def builtin_case_documents() -> dict[str, str]:
    """Return the texts of the documents that ship with the product, by id."""
    folder = resources.files("billing.disputes") / "documents"
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return {entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8") for entry in files}


@cache
def builtin_case_rules() -> CaseRules:
    """Return the rules that hold before the utility's first document."""
    return parse_case_rules(builtin_case_documents()[BUILTIN_CASE_RULES])


def _limits(top: Table) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in top.rows("accuracy", {"class", "limit_basis_points"}):
        name = row.text("class")
        if name in found:
            row.refuse(f"class: expected each class once, got {shown(name)} again", "class")
        found[name] = row.whole("limit_basis_points", LIMIT_BASIS_POINTS_MAX, least=1)
    if not found:
        top.refuse("accuracy: expected [[accuracy]] tables, got none")
    return found


def _overhauls(top: Table) -> dict[Fault, OverhaulRule]:
    found: dict[Fault, OverhaulRule] = {}
    for row in top.rows("overhaul", {"fault", "months", "ways", "source"}):
        fault = row.choice("fault", list(Fault))
        if fault in found:
            row.refuse(f"fault: expected each fault once, got {fault} again", "fault")
        months = row.whole("months", MONTHS_MAX, least=1)
        if months > PERMITTED[fault].months:
            row.refuse(f"months: expected at most {PERMITTED[fault].months} ({PERMITTED[fault].source})", "months")
        ways = row.names("ways", [way.value for way in Way])
        if not ways:
            row.refuse("ways: expected one way of assessment or more, got none", "ways")
        found[fault] = OverhaulRule(
            fault=fault, months=months, ways=tuple(Way(way) for way in ways), source=row.text("source")
        )
    missing = [fault.value for fault in Fault if fault not in found]
    if missing:
        top.refuse(f"overhaul: expected a table for each fault, got none for {', '.join(missing)}")
    return found
