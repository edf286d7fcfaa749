"""`prepaid validation-rules` and `prepaid accounts export`: by which rules readings are validated, who may export.

Stage: the command line's outermost layer, as in `__main__`. A document is checked as a whole (docs/validation.md) and
never changed once it is added.
"""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Annotated

import typer
from psycopg import AsyncConnection

from headend.rule_document import RuleDocument, parse_rule_document
from headend.rules import BUILTIN_RULES, RULES, Reason, RuleSet, ValidationRules
from prepaid import console
from prepaid.arguments import DataDir, Json, line, read_day, read_text, run, settings_of
from prepaid.settings import Settings

_BUILTIN = BUILTIN_RULES.default

validation_rules_app = typer.Typer(help="Rules that readings are validated by.", no_args_is_help=True)

Document = Annotated[Path, typer.Argument(help="A validation rules document (TOML); see docs/validation.md.")]


@validation_rules_app.command(name="show")
def show_command(
    day: Annotated[str | None, typer.Option(help="Day in question, YYYY-MM-DD; default: today.")] = None,
    make: Annotated[str, typer.Option(help="Make of a meter.")] = "",
    model: Annotated[str, typer.Option(help="Model of a meter.")] = "",
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Show the rules in force on a day, for all meters or for those of a make and model."""
    settings = settings_of(data)
    rules = _rules_on(settings, read_day(day) if day else datetime.now(settings.zone).date())
    found = rules.of(make, model)
    if json_output:
        console.print_json({"id": rules.id, "rules": {reason.value: _shown(found, reason) for reason in RULES}})
        return
    line(f"{rules.id}")
    for reason, rule in RULES.items():
        told = f"{found.severities[reason]:<8}{found.actions[reason]:<16}{rule.catches}"
        line(f"{reason:<20}{told}")


@validation_rules_app.command(name="check")
def check_command(file: Document, json_output: Json = False) -> None:
    """Check a document without an installation; what is wrong is named with its line."""
    _print_document(parse_rule_document(read_text(file)), json_output)


@validation_rules_app.command(name="add")
def add_command(file: Document, data: DataDir = None, json_output: Json = False) -> None:
    """Put a document in force from the local midnight of the day it names; documents are never changed."""
    from db.validation_rules import add_validation_document
    from prepaid.administration import on_database

    settings, text = settings_of(data), read_text(file)
    document, today = parse_rule_document(text), datetime.now(settings.zone).date()

    async def work(conn: AsyncConnection) -> None:
        await add_validation_document(conn, text, from_day=document.effective_from, first_open_day=today)

    on_database(settings, work)
    _print_document(document, json_output)


def export_command(
    number: Annotated[str, typer.Argument(help="The account's number.")],
    allow: Annotated[bool, typer.Option("--allow/--forbid", help="May the connection send energy to the grid?")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Permit a connection to export (net metering), or forbid it; export without permission is noted."""
    from db.validation_rules import permit_export
    from prepaid.administration import known_account

    async def work(conn: AsyncConnection) -> bool:
        return await permit_export(conn, await known_account(conn, number), may_export=allow)

    changed = run(settings_of(data), work)
    if json_output:
        console.print_json({"account": number, "may_export": allow, "changed": changed})
    else:
        line(f"account {number}: export is {'permitted' if allow else 'forbidden'}")


def _rules_on(settings: Settings, day: date) -> ValidationRules:
    from db.validation_rules import validation_document
    from prepaid.administration import on_database

    text = on_database(settings, lambda conn: validation_document(conn, day))
    return BUILTIN_RULES if text is None else parse_rule_document(text).rules


def _shown(rules: RuleSet, reason: Reason) -> dict[str, object]:
    return {"severity": rules.severities[reason].value, "action": rules.actions[reason].value}


def _print_document(document: RuleDocument, json_output: bool) -> None:
    rules = document.rules
    models = {" ".join(filter(None, key)): own for key, own in rules.models.items()}
    if json_output:
        console.print_json({"id": rules.id, "from_day": str(document.effective_from), "models": list(models)})
        return
    line(f"{rules.id}, from {document.effective_from}: {document.title}")
    for whose, own in {"all other meters" if models else "all meters": rules.default, **models}.items():
        changed = [_change(own, reason) for reason in RULES if _shown(own, reason) != _shown(_BUILTIN, reason)]
        line(f"{whose}: {'; '.join(changed) or 'severities and actions as built in'}")


def _change(rules: RuleSet, reason: Reason) -> str:
    return f"{reason} {rules.severities[reason]}, {rules.actions[reason]}"
