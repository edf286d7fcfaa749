"""`prepaid supply-rules`: the supply rules in force, documents checked and put in force from a day.

Stage: the command line's outermost layer, as in `__main__`. A document is checked as a whole (docs/supply-policy.md)
and never changed once it is added.
"""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Annotated

import typer
from psycopg import AsyncConnection

from billing.supply_policy import Scheme, SupplyRules, Window
from billing.supply_rule_document import WEEKDAYS, builtin_supply_documents, parse_supply_rules
from billing.toml_table import clock
from prepaid import console
from prepaid.arguments import CommandRefused, DataDir, Json, read_day, read_text, settings_of
from prepaid.settings import Settings

supply_rules_app = typer.Typer(help="Supply rules: which category is cut when.", no_args_is_help=True)

Document = Annotated[Path, typer.Argument(help="A supply rules document (TOML); see docs/supply-policy.md.")]


@supply_rules_app.command(name="show")
def show_command(
    day: Annotated[str | None, typer.Option(help="Day in question, YYYY-MM-DD; default: today.")] = None,
    builtin: Annotated[str | None, typer.Option(help="The text of a document that ships with the product.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Show the schemes in force on a day and which category has which; or a document to begin one's own with."""
    if builtin is not None:
        text = _builtin_text(builtin)
        if json_output:
            console.print_json({**shown(parse_supply_rules(text)), "document": text})
        else:
            console.out.print(text.rstrip("\n"), markup=False)
        return
    settings = settings_of(data)
    rules = run_rules_in_force(settings, read_day(day) if day else datetime.now(settings.zone).date())
    _print(rules, json_output)


@supply_rules_app.command(name="check")
def check_command(file: Document, json_output: Json = False) -> None:
    """Check a document without an installation; the first broken rule is named with its line."""
    _print(parse_supply_rules(read_text(file)), json_output)


@supply_rules_app.command(name="add")
def add_command(file: Document, data: DataDir = None, json_output: Json = False) -> None:
    """Put a document in force from the local midnight of the day it names; documents are never changed."""
    rules = run_add_supply_rules(settings_of(data), file)
    if json_output:
        console.print_json({"id": rules.id, "from_day": str(rules.effective_from)})
    else:
        console.out.print(f"supply rules {rules.id} hold from {rules.effective_from}", markup=False)


def run_rules_in_force(settings: Settings, day: date) -> SupplyRules:
    """Read the supply rules in force on a day."""
    from db.supply_rules import rules_in_force
    from prepaid.administration import on_database

    return on_database(settings, lambda conn: rules_in_force(conn, day))


def run_add_supply_rules(settings: Settings, file: Path) -> SupplyRules:
    """Store a document from the day it names, today at the earliest."""
    from db.supply_rules import add_supply_rules
    from prepaid.administration import on_database

    text, today = read_text(file), datetime.now(settings.zone).date()

    async def work(conn: AsyncConnection) -> SupplyRules:
        return await add_supply_rules(conn, text, first_open_day=today)

    return on_database(settings, work)


def shown(rules: SupplyRules) -> dict[str, object]:
    """Return supply rules as the `--json` output shows them."""
    return {
        "id": rules.id,
        "title": rules.title,
        "source": rules.source,
        "from_day": str(rules.effective_from),
        "default": rules.default.name,
        "categories": {category: scheme.name for category, scheme in rules.categories.items()},
        "schemes": {scheme.name: _scheme_shown(scheme) for scheme in rules.schemes},
        "holidays": [
            {"name": each.name, "day": str(each.day) if each.day else None, "each_year": _month_day(each.month_day)}
            for each in rules.holidays
        ],
        "last_holiday": str(rules.last_holiday) if rules.last_holiday else None,
    }


def _scheme_shown(scheme: Scheme) -> dict[str, object]:
    return {
        "title": scheme.title,
        "source": scheme.source,
        "exempt": scheme.exempt,
        "windows": {
            weekday: [[clock(first), clock(last)] for first, last in windows]
            for weekday, windows in zip(WEEKDAYS, scheme.windows, strict=True)
        },
        "not_on_holidays": bool(scheme.holidays or scheme.yearly_holidays),
        "not_on_saturdays": list(scheme.not_on_saturdays),
        "emergency_days": scheme.emergency_days,
        "limit_w": scheme.limit_w,
    }


def _print(rules: SupplyRules, json_output: bool) -> None:
    if json_output:
        console.print_json(shown(rules))
        return
    console.out.print(f"{rules.id}, from {rules.effective_from}: {rules.title}", markup=False)
    for scheme in rules.schemes:
        has = [category for category, each in rules.categories.items() if each == scheme]
        has += ["every other category"] if scheme == rules.default else []
        console.out.print(f"  {scheme.name}: {', '.join(has) or 'no category'}", markup=False)
        console.out.print(f"    {scheme.title}", markup=False)
        for line in _lines(scheme):
            console.out.print(f"    {line}", markup=False)
    if rules.last_holiday is not None:
        console.out.print(f"holidays are entered up to {rules.last_holiday}", markup=False)


def _lines(scheme: Scheme) -> list[str]:
    """Return what a scheme says, for a person."""
    if scheme.exempt:
        return ["never cut"]
    lines = [f"cut {weekday}: {_windows(windows)}" for weekday, windows in zip(WEEKDAYS, scheme.windows, strict=True)]
    if scheme.holidays or scheme.yearly_holidays:
        lines.append("not on holidays")
    if scheme.not_on_saturdays:
        lines.append(f"not on Saturdays of a month: {', '.join(map(str, scheme.not_on_saturdays))}")
    if scheme.emergency_days:
        lines.append(f"emergency days: {scheme.emergency_days}")
    if scheme.limit_w is not None:
        lines.append(f"limited to {scheme.limit_w} W where the meter is able to, instead of cut")
    return lines


def _windows(windows: tuple[Window, ...]) -> str:
    return ", ".join(f"{clock(first)}-{clock(last)}" for first, last in windows) or "never"


def _month_day(month_day: tuple[int, int] | None) -> str | None:
    return None if month_day is None else f"{month_day[0]:02d}-{month_day[1]:02d}"


def _builtin_text(name: str) -> str:
    documents = builtin_supply_documents()
    if name not in documents:
        raise CommandRefused(f"builtin: expected one of {', '.join(sorted(documents))}, got {name!r}")
    return documents[name]
