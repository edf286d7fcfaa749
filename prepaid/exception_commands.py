"""`prepaid exceptions`: what is held, flagged or missing, its evidence, dry runs, and decisions by one or two people.

Stage: the command line's outermost layer, as in `__main__`. The same answers as over HTTP; docs/exceptions.md walks
through them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing.money import format_minor
from headend.estimation.document import parse_estimation_rules
from headend.estimation.values import EstimationRule
from headend.rules import Severity
from prepaid import console
from prepaid.arguments import (
    By,
    CommandRefused,
    DataDir,
    Json,
    line,
    local,
    read_name,
    read_text,
    read_words,
    run,
    settings_of,
)
from prepaid.settings import Settings

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from headend.edges.exceptions_desk import Decision, Office

exceptions_app = typer.Typer(help="Exceptions: queue, evidence, dry run, decision.", no_args_is_help=True)
estimation_app = typer.Typer(help="Dated rules of estimation.", no_args_is_help=True)
exceptions_app.add_typer(estimation_app, name="rules")

ROWS_SHOWN, ROWS_SHOWN_MAX = 100, 10_000

Item = Annotated[str, typer.Argument(help="Kind and number, as gap-7.")]
Why = Annotated[str, typer.Option("--why", help="Why; kept in the trail.")]
ActionName = Annotated[str, typer.Option("--action", help="release, reject, keep, edit, void or estimate.")]
RuleName = Annotated[EstimationRule | None, typer.Option("--rule", help="Of an estimate; default: the first that can.")]
Register = Annotated[int | None, typer.Option("--register-wh", min=0, help="Of an edit: the register that holds.")]
AsReset = Annotated[bool, typer.Option("--as-reset", help="Of a release: the register began again at 0.")]


@exceptions_app.command(name="list")
def list_command(
    kind: Annotated[str | None, typer.Option(help="Only quarantine, flag or gap.")] = None,
    severity: Annotated[Severity | None, typer.Option(help="Only of this severity.")] = None,
    rule: Annotated[str | None, typer.Option(help="Only what this rule of validation has caught.")] = None,
    meter: Annotated[str | None, typer.Option(help="Only this meter, by serial.")] = None,
    area: Annotated[str | None, typer.Option(help="Only this area.")] = None,
    assigned_to: Annotated[str | None, typer.Option(help="Only this person's; empty: nobody's.")] = None,
    older_than_h: Annotated[int, typer.Option(min=0, max=87_600, help="Open for so many hours.")] = 0,
    after: Annotated[str | None, typer.Option(help="Go on after this place, `next` of the page before.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=ROWS_SHOWN_MAX, help="Rows at most.")] = ROWS_SHOWN,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Open exceptions, the oldest first, with their age and who works on them."""
    from db.exceptions import ExceptionKind, QueueAsked, list_exceptions
    from headend.edges.exceptions_answers import open_to_api
    from headend.edges.exceptions_api import place_from, place_of

    if kind is not None and kind not in tuple(ExceptionKind):
        raise CommandRefused(f"kind: expected one of {', '.join(ExceptionKind)}, got {kind[:40]!r}")
    settings, now = settings_of(data), datetime.now(UTC)
    asked = QueueAsked(
        kind=kind,
        severity=severity,
        rule=rule,
        serial=meter,
        area=area,
        assigned_to=assigned_to,
        before=now - timedelta(hours=older_than_h) if older_than_h else None,
        after=None if after is None else place_from(after),
    )
    found = run(settings, lambda conn: list_exceptions(conn, asked, most=limit))
    following = place_of(found[-1]) if len(found) == limit else None
    rows = [open_to_api(each, now) for each in found]
    if json_output:
        console.print_json({"exceptions": rows, "next": following})
        return
    for row in rows:
        waits = f"  decision {row['decision']} waits" if row["decision"] else ""
        line(
            f"{row['item']:<18} {row['severity']:<7} {row['rule']:<19} {row['meter'] or '-':<16} {row['age_h']:>5} h"
            f"  {row['assigned_to'] or '-':<16} {row['detail']}{waits}"
        )
    if following:
        line(f"more: --after '{following}'")


@exceptions_app.command(name="counts")
def counts_command(data: DataDir = None, json_output: Json = False) -> None:
    """How many are open, by kind, severity and age."""
    from db.exceptions import count_exceptions
    from headend.edges.exceptions_answers import counts_to_api

    found = counts_to_api(run(settings_of(data), lambda conn: count_exceptions(conn, datetime.now(UTC))))
    if json_output:
        console.print_json(found)
        return
    line(f"{'kind':<12}{'severity':<10}{'<= 1 day':>10}{'<= 7':>8}{'<= 30':>8}{'older':>8}")
    for each in found["counts"]:
        ages = f"{each['up_to_a_day']:>10}{each['up_to_a_week']:>8}{each['up_to_30_days']:>8}{each['older']:>8}"
        line(f"{each['kind']:<12}{each['severity']:<10}{ages}")


@exceptions_app.command(name="show")
def show_command(item: Item, data: DataDir = None, json_output: Json = False) -> None:
    """One exception with its evidence, what each rule would estimate, decisions and trail."""
    from db.exceptions import ExceptionKey
    from headend.edges.exceptions_api import evidence_of

    settings = settings_of(data)

    async def work(conn: AsyncConnection) -> dict[str, Any]:
        return await evidence_of(conn, ExceptionKey.read(item), await _office(conn, settings), datetime.now(UTC))

    found = run(settings, work)
    if json_output:
        console.print_json(found)
        return
    _print_evidence(found, settings)


@exceptions_app.command(name="assign")
def assign_command(
    item: Item,
    by: By,
    why: Why,
    to: Annotated[str | None, typer.Option("--to", help="Who is to work on it; nobody where left out.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Give an exception to somebody."""
    from db.exceptions import ExceptionKey, assign_exception

    name, words, whom = read_name(by), read_words("why", why), None if to is None else read_name(to)

    async def work(conn: AsyncConnection) -> None:
        await assign_exception(conn, ExceptionKey.read(item), to=whom, by=name, why=words)

    run(settings_of(data), work)
    _print({"item": item, "assigned_to": whom}, f"{item}: {whom or 'nobody'}", json_output)


@exceptions_app.command(name="dry-run")
def dry_run_command(
    item: Item,
    action: ActionName,
    rule: RuleName = None,
    register_wh: Register = None,
    as_reset: AsReset = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """What a decision would do to money; nothing is written."""
    from db.exceptions import ExceptionKey, read_exception
    from headend.edges.exceptions_desk import dry_run

    settings, decision = settings_of(data), _decision(action, rule, register_wh, as_reset)

    async def work(conn: AsyncConnection) -> dict[str, object]:
        found = await read_exception(conn, ExceptionKey.read(item))
        return (await dry_run(conn, found, decision, await _office(conn, settings))).to_json()

    effect = run(settings, work)
    _print(effect, _effect_line(effect), json_output)


@exceptions_app.command(name="decide")
def decide_command(
    item: Item,
    action: ActionName,
    by: By,
    why: Why,
    rule: RuleName = None,
    register_wh: Register = None,
    as_reset: AsReset = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Carry a decision out, or keep it for a second person where it moves much money or changes readings."""
    from db.exceptions import ExceptionKey
    from headend.edges.exceptions_answers import decided_to_api
    from headend.edges.exceptions_desk import decide

    settings, decision = settings_of(data), _decision(action, rule, register_wh, as_reset)
    name, words = read_name(by), read_words("why", why)

    async def work(conn: AsyncConnection) -> dict[str, Any]:
        key, office = ExceptionKey.read(item), await _office(conn, settings)
        return decided_to_api(await decide(conn, key, decision, office, by=name, why=words))

    found = run(settings, work)
    _print(found, f"{item}: {found['state']}; {_effect_line(found['effect'])}", json_output)


@exceptions_app.command(name="approve")
def approve_command(
    item: Item,
    by: By,
    why: Why,
    cut_offs: Annotated[int, typer.Option("--cut-offs", min=0, max=1, help="As the dry run says.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Carry out what was proposed, as a second person."""
    from db.exceptions import ExceptionKey
    from headend.edges.exceptions_answers import decision_to_api
    from headend.edges.exceptions_desk import approve_decision

    settings, name, words = settings_of(data), read_name(by), read_words("why", why)

    async def work(conn: AsyncConnection) -> dict[str, Any]:
        key, office = ExceptionKey.read(item), await _office(conn, settings)
        return decision_to_api(await approve_decision(conn, key, office, by=name, why=words, cut_offs=cut_offs))

    found = run(settings, work)
    _print({"item": item, **found}, f"{item}: {found['action']} {found['state']}", json_output)


@exceptions_app.command(name="cancel")
def cancel_command(item: Item, by: By, why: Why, data: DataDir = None, json_output: Json = False) -> None:
    """Give up what was proposed; the exception stays open."""
    from db.exceptions import ExceptionKey
    from headend.edges.exceptions_answers import decision_to_api
    from headend.edges.exceptions_desk import cancel_decision

    name, words = read_name(by), read_words("why", why)

    async def work(conn: AsyncConnection) -> dict[str, Any]:
        return decision_to_api(await cancel_decision(conn, ExceptionKey.read(item), by=name, why=words))

    found = run(settings_of(data), work)
    _print({"item": item, **found}, f"{item}: {found['action']} {found['state']}", json_output)


@exceptions_app.command(name="bulk")
def bulk_command(
    items: Annotated[list[str], typer.Argument(help="Kinds and numbers, as gap-7 flag-3.")],
    action: ActionName,
    by: By,
    why: Why,
    bound_minor: Annotated[int, typer.Option("--bound-minor", min=0, help="Money that all together may move.")],
    rule: RuleName = None,
    as_reset: AsReset = False,
    only_look: Annotated[bool, typer.Option("--dry-run", help="Only tell what it would do.")] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """One decision on many exceptions, each wholly or not at all, after a dry run of all against the bound."""
    from db.exceptions import ExceptionKey
    from headend.edges.exceptions_answers import bulk_to_api
    from headend.edges.exceptions_desk import decide_many

    settings, decision = settings_of(data), _decision(action, rule, None, as_reset)
    name, words = read_name(by), read_words("why", why)

    async def work(conn: AsyncConnection) -> dict[str, Any]:
        found = await decide_many(
            conn,
            [ExceptionKey.read(item) for item in items],
            decision,
            await _office(conn, settings),
            by=name,
            why=words,
            bound_minor=bound_minor,
            only_look=only_look,
        )
        return bulk_to_api(found)

    found = run(settings, work)
    if json_output:
        console.print_json(found)
        return
    for each in found["items"]:
        line(f"{each['item']:<18} {each['state']:<9} {each['told'] or ''}")
    counted = ", ".join(f"{number} {state}" for state, number in found["counts"].items() if number)
    line(f"{counted}; {format_minor(found['moved_minor'])} moved")


@estimation_app.command(name="show")
def rules_show_command(data: DataDir = None, json_output: Json = False) -> None:
    """The rules of estimation in force today."""
    from headend.edges.exceptions_answers import rules_to_api

    settings = settings_of(data)

    async def work(conn: AsyncConnection) -> dict[str, Any]:
        return rules_to_api((await _office(conn, settings)).estimation)

    found = run(settings, work)
    order = "\n".join(f"  {each['rule']:<24} up to {each['longest_s']} s" for each in found["order"])
    _print(found, f"{found['id']}, from {found['effective_from']}: {found['title']}\n{order}", json_output)


@estimation_app.command(name="check")
def rules_check_command(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)]) -> None:
    """Read a document and say nothing if it is good."""
    parse_estimation_rules(read_text(file))


@estimation_app.command(name="add")
def rules_add_command(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    by: By,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Put a document in force from its day on; days that are past keep theirs."""
    from db.exceptions import add_estimation_document

    settings, text, name = settings_of(data), read_text(file), read_name(by)
    rules = parse_estimation_rules(text)
    today = datetime.now(settings.zone).date()

    async def work(conn: AsyncConnection) -> None:
        await add_estimation_document(conn, text, from_day=rules.effective_from, today=today, by=name)

    run(settings, work)
    shown = {"id": rules.id, "effective_from": rules.effective_from.isoformat()}
    _print(shown, f"{rules.id}: in force from {rules.effective_from}", json_output)


async def _office(conn: AsyncConnection, settings: Settings) -> Office:
    from headend.edges.exceptions_desk import Office
    from headend.edges.exceptions_estimates import rules_on
    from prepaid.processes import calendar_of, rules_of

    estimation = await rules_on(conn, calendar_of(settings), datetime.now(UTC))
    return Office(posting=rules_of(settings), estimation=estimation)


def _decision(action: str, rule: EstimationRule | None, register_wh: int | None, as_reset: bool) -> Decision:
    from headend.edges.exceptions_desk import Action, Decision

    if action not in tuple(Action):
        raise CommandRefused(f"action: expected one of {', '.join(Action)}, got {action[:40]!r}")
    return Decision(action=Action(action), import_wh=register_wh, rule=rule, as_reset=as_reset)


def _effect_line(effect: dict[str, Any]) -> str:
    if effect["difference_minor"] is None:
        return f"money not known: {effect['told']}"
    two = "; a second person is needed" if effect["needs_second_person"] else ""
    before, after = format_minor(effect["before_minor"]), format_minor(effect["after_minor"])
    return f"balance {before} before, {after} after, {effect['cut_offs']} cut-offs{two}"


def _print(found: dict[str, Any], text: str, json_output: bool) -> None:
    if json_output:
        console.print_json(found)
    else:
        line(text)


def _print_evidence(found: dict[str, Any], settings: Settings) -> None:
    line(f"{found['item']}, {found['severity']}, {found['rule']}, {found['state']}: {found['detail']}")
    line(f"  meter {found['meter'] or '-'}, account {found['account'] or '-'}, open for {found['age_h']} h")
    for row in found.get("neighbours", ()):
        edited = f"  edited to {row['edited_wh']}" if row["edited"] else ""
        line(f"  {local(row['read_at'], settings)} {row['received_wh']:>12} Wh{edited}")
    for span in found["spans"]:
        line(f"  from {local(span['from'], settings)} to {local(span['to'], settings)}: {span['total_wh']} Wh")
        for each in span["estimates"]:
            said = f"declined, {each['detail']}" if "declined" in each else str(each["intervals_wh"][:12])
            line(f"    {each['rule']:<24} {said}")
    for each in found["decisions"]:
        line(f"  decision {each['decision']}: {each['action']} by {each['asked_by']}, {each['state']}: {each['why']}")
    for step in found["trail"]:
        line(f"  {local(step['at'], settings)} {step['step']:<18} {step['by']}: {step['why']}")
