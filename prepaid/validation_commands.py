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
from prepaid.settings import PrepaidError, Settings, load_settings

validation_rules_app = typer.Typer(help="Rules that readings are validated by.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
DataDir = Annotated[Path | None, typer.Option("--data", help="Folder of the embedded parts (PREPAID_DATA_DIR).")]
Document = Annotated[Path, typer.Argument(help="A validation rules document (TOML); see docs/validation.md.")]


class ValidationCommandRefused(PrepaidError):
    """Arguments of a validation rules command that do not fit."""

    code = "validation_command_refused"


@validation_rules_app.command(name="show")
def show_command(
    day: Annotated[str | None, typer.Option(help="Day in question, YYYY-MM-DD; default: today.")] = None,
    make: Annotated[str, typer.Option(help="Make of a meter.")] = "",
    model: Annotated[str, typer.Option(help="Model of a meter.")] = "",
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Show the rules in force on a day, for all meters or for those of a make and model."""
    settings = _settings(data)
    rules = _rules_on(settings, _day(day) if day else datetime.now(settings.zone).date())
    found = rules.of(make, model)
    if json_output:
        console.print_json({"id": rules.id, "rules": {reason.value: _shown(found, reason) for reason in RULES}})
        return
    console.out.print(f"{rules.id}", markup=False)
    for reason, rule in RULES.items():
        told = f"{found.severities[reason]:<8}{found.actions[reason]:<16}{rule.catches}"
        console.out.print(f"{reason:<20}{told}", markup=False)


@validation_rules_app.command(name="check")
def check_command(file: Document, json_output: Json = False) -> None:
    """Check a document without an installation; what is wrong is named with its line."""
    _print_document(parse_rule_document(_read(file)), json_output)


@validation_rules_app.command(name="add")
def add_command(file: Document, data: DataDir = None, json_output: Json = False) -> None:
    """Put a document in force from the local midnight of the day it names; documents are never changed."""
    from db.validation_rules import add_validation_document
    from prepaid.administration import on_database

    settings, text = _settings(data), _read(file)
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
    from db.errors import UnknownAccount
    from db.registry import account_id_of
    from db.validation_rules import permit_export
    from prepaid.administration import on_database

    async def work(conn: AsyncConnection) -> bool:
        account_id = await account_id_of(conn, number)
        if account_id is None:
            raise UnknownAccount(f"account: expected a known number, got {number!r}")
        return await permit_export(conn, account_id, may_export=allow)

    changed = on_database(_settings(data), work)
    if json_output:
        console.print_json({"account": number, "may_export": allow, "changed": changed})
    else:
        console.out.print(f"account {number}: export is {'permitted' if allow else 'forbidden'}", markup=False)


def _rules_on(settings: Settings, day: date) -> ValidationRules:
    from db.validation_rules import validation_document
    from prepaid.administration import on_database

    text = on_database(settings, lambda conn: validation_document(conn, day))
    return BUILTIN_RULES if text is None else parse_rule_document(text).rules


def _shown(rules: RuleSet, reason: Reason) -> dict[str, object]:
    return {"severity": rules.severities[reason].value, "action": rules.actions[reason].value}


def _print_document(document: RuleDocument, json_output: bool) -> None:
    rules = document.rules
    models = [" ".join(filter(None, key)) for key in rules.models]
    if json_output:
        console.print_json({"id": rules.id, "from_day": str(document.effective_from), "models": models})
    else:
        console.out.print(f"{rules.id}, from {document.effective_from}: {document.title}", markup=False)
        console.out.print(f"models with rules of their own: {', '.join(models) or 'none'}", markup=False)


def _read(file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValidationCommandRefused(f"{file.name} line {line}: expected UTF-8 text, got other bytes") from None


def _settings(data: Path | None) -> Settings:
    settings = load_settings()
    if data is not None:
        settings = settings.model_copy(update={"data_dir": data})
    console.configure_logs(settings.log_level)
    return settings


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValidationCommandRefused(f"day: expected YYYY-MM-DD, got {text!r}") from None
