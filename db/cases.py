"""Cases as rows: opened, their trail of steps, documents, and where they stand.

Stage: between the engineers' commands and routes and the pure case (`billing.disputes.case`). Each step is one
transaction under the case's lock: read the trail, take the step, append it, keep where the case stands now. The trail
is never changed. Money is moved in `db.case_money`, meters are compared in `db.case_tests`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from billing.calendar import LocalCalendar, from_ms, to_ms
from billing.disputes.case import (
    Area,
    Case,
    CaseKind,
    CaseRefused,
    Clock,
    Decision,
    State,
    Step,
    StepKind,
    Verdict,
    clocks,
    due_ms,
    opened,
    resumed,
    taken,
)
from billing.disputes.rules import CaseRules, CaseRulesError, builtin_case_rules, parse_case_rules
from db.errors import DatabaseError
from db.named import sql

# A scan of some pages; more belongs into an archive, with its number here. As the table has it.
DOCUMENT_BYTES_MAX = 5_000_000
# Photographs, reports and letters of a case: two dozen are many.
DOCUMENTS_MAX = 50


class UnknownCase(DatabaseError):
    """A number that no case has, or of a document that is not there."""

    code = "unknown_case"


class CaseConflict(DatabaseError):
    """What is entered stands in the way of what is stored."""

    code = "case_conflict"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCase:
    """A complaint as it comes in."""

    account: str
    kind: CaseKind
    area: Area
    accuracy_class: str
    complaint: str
    by: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRow:
    """A case as it is stored."""

    id: int
    account_id: int
    account: str
    kind: str
    area: str
    meter_id: int
    meter: str
    accuracy_class: str
    complaint: str
    opened_by: str
    opened_at: datetime
    rules: str
    state: str
    due_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCase:
    """A line of the list of cases."""

    id: int
    account: str
    kind: str
    area: str
    meter: str
    state: str
    opened_at: datetime
    opened_by: str
    due_at: datetime | None
    overdue: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """A step of the trail; `facts` are what its kind keeps."""

    n: int
    step: str
    at: datetime
    by: str
    note: str
    # JSON, as the code that takes the step wrote it.
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRow:
    """A document of a case, without its content."""

    id: int
    name: str
    media_type: str
    sha256: str
    bytes: int
    added_by: str
    added_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFile:
    """A case with its rules and its trail."""

    row: CaseRow
    rules: CaseRules
    steps: tuple[StepRow, ...]

    @property
    def case(self) -> Case:
        """The case that the trail comes to."""
        return resumed(CaseKind(self.row.kind), Area(self.row.area), map(_step, self.steps))

    def clocks(self, calendar: LocalCalendar) -> list[Clock]:
        """Return the clocks of the case."""
        return clocks(self.case, self.rules, calendar)

    def last(self, *kinds: StepKind) -> StepRow | None:
        """Return the latest step of some kinds."""
        return next((step for step in reversed(self.steps) if step.step in kinds), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A step as it is entered: when, by whom, with which words."""

    by: str
    at: datetime
    note: str = ""


async def open_case(conn: AsyncConnection, new: NewCase, calendar: LocalCalendar) -> int:
    """Open a case about the meter that stands at an account; return its number.

    Raises: UnknownCase for an account without a meter; CaseRefused for a class that the rules do not know.
    """
    async with conn.transaction():
        row = await (await conn.execute(sql("case_account"), {"account": new.account})).fetchone()
        if row is None:
            raise UnknownCase(f"account: expected one with a billing meter, got {new.account!r}")
        rules = await rules_on(conn, calendar.day_of(to_ms(new.at)))
        if new.accuracy_class not in rules.limits_basis_points:
            known = ", ".join(rules.limits_basis_points)
            raise CaseRefused(f"accuracy class: expected one of {known}, got {new.accuracy_class!r}")
        case = opened(new.kind, new.area, at_ms=to_ms(new.at), by=new.by)
        parameters = {
            "account_id": row[0],
            "kind": new.kind.value,
            "area": new.area.value,
            "meter_id": row[1],
            "accuracy_class": new.accuracy_class,
            "complaint": new.complaint,
            "opened_by": new.by,
            "opened_at": new.at,
            "rules": rules.id,
            **_standing(case, rules, calendar),
        }
        added = await (await conn.execute(sql("add_case"), parameters)).fetchone()
        assert added is not None, "an insert returns its row"
        case_id = int(added[0])
        await _append(conn, case_id, case.steps[0], new.complaint, {})
        return case_id


async def take_step(
    conn: AsyncConnection,
    case_id: int,
    kind: StepKind,
    entry: Entry,
    calendar: LocalCalendar,
    *,
    facts: Mapping[str, Any] | None = None,
    verdict: Verdict | None = None,
    decision: Decision | None = None,
) -> CaseFile:
    """Take a step of a case that is locked by the caller's transaction; return the case with it.

    Raises: CaseRefused, with nothing written; UnknownCase.
    """
    file = await read_case(conn, case_id)
    step = Step(kind=kind, at_ms=to_ms(entry.at), by=entry.by, verdict=verdict, decision=decision)
    case = taken(file.case, step)
    kept = dict(facts or {})
    if verdict is not None:
        kept["verdict"] = verdict.value
    if decision is not None:
        kept["decision"] = decision.value
    await _append(conn, case_id, step, entry.note, kept)
    await conn.execute(sql("case_stands"), {"id": case_id, **_standing(case, file.rules, calendar)})
    return await read_case(conn, case_id)


async def enter_step(
    conn: AsyncConnection,
    case_id: int,
    kind: StepKind,
    entry: Entry,
    calendar: LocalCalendar,
    *,
    decision: Decision | None = None,
) -> CaseFile:
    """Take a step that is nothing but words: an inquiry, its answer, the end of a case.

    Raises: CaseRefused; UnknownCase.
    """
    async with conn.transaction():
        await lock_case(conn, case_id)
        return await take_step(conn, case_id, kind, entry, calendar, decision=decision)


async def decide_case(
    conn: AsyncConnection, case_id: int, decision: Decision, entry: Entry, calendar: LocalCalendar
) -> CaseFile:
    """Decide what follows for the account; a check meter that still stands there is taken away.

    Raises: CaseRefused; UnknownCase.
    """
    async with conn.transaction():
        await lock_case(conn, case_id)
        file = await take_step(conn, case_id, StepKind.DECIDE, entry, calendar, decision=decision)
        installed = file.last(StepKind.INSTALL_CHECK)
        if installed is not None:
            end = {"meter_id": installed.facts["meter_id"], "at": entry.at}
            await conn.execute(sql("case_end_check"), end)
        return file


async def lock_case(conn: AsyncConnection, case_id: int) -> None:
    """Let one step of a case be taken at a time. A statement of its own: look later.

    Raises: UnknownCase.
    """
    cursor = await conn.execute(sql("lock_case"), {"id": case_id})
    if await cursor.fetchone() is None:
        raise UnknownCase(f"case: expected a known number, got {case_id}")


async def read_case(conn: AsyncConnection, case_id: int) -> CaseFile:
    """Read a case with its trail.

    Raises: UnknownCase.
    """
    async with conn.cursor(row_factory=class_row(CaseRow)) as cursor:
        await cursor.execute(sql("case_row"), {"id": case_id})
        row = await cursor.fetchone()
    if row is None:
        raise UnknownCase(f"case: expected a known number, got {case_id}")
    async with conn.cursor(row_factory=class_row(StepRow)) as steps:
        await steps.execute(sql("case_trail"), {"id": case_id})
        found = tuple(await steps.fetchall())
    return CaseFile(row=row, rules=await rules_named(conn, row.rules), steps=found)


async def list_cases(
    conn: AsyncConnection,
    *,
    now: datetime,
    state: State | None = None,
    account: str | None = None,
    overdue: bool = False,
    after: int = 0,
    most: int,
) -> list[ListedCase]:
    """Return cases in the order of their numbers from after one on."""
    parameters = {
        "now": now,
        "state": None if state is None else state.value,
        "account": account,
        "overdue": overdue,
        "after": after,
        "most": most,
    }
    async with conn.cursor(row_factory=class_row(ListedCase)) as cursor:
        await cursor.execute(sql("cases_listed"), parameters)
        return await cursor.fetchall()


# Documents ---------------------------------------------------------------------------------------------------------


async def add_document(
    conn: AsyncConnection, case_id: int, entry: Entry, *, name: str, media_type: str, content: bytes
) -> list[DocumentRow]:
    """Keep a document with a case; the same content again changes nothing. Return the case's documents.

    Raises: CaseRefused for one that is empty or too large, and in a closed case; UnknownCase.
    """
    if not 1 <= len(content) <= DOCUMENT_BYTES_MAX:
        raise CaseRefused(f"document: expected 1 to {DOCUMENT_BYTES_MAX} bytes, got {len(content)}")
    async with conn.transaction():
        await lock_case(conn, case_id)
        if (await read_case(conn, case_id)).case.state is State.CLOSED:
            raise CaseRefused("document: expected a case that is open, got one that is closed")
        row = await (await conn.execute(sql("count_case_documents"), {"id": case_id})).fetchone()
        if row is not None and row[0] >= DOCUMENTS_MAX:
            raise CaseRefused(f"document: expected at most {DOCUMENTS_MAX} of a case, got another one")
        parameters = {
            "id": case_id,
            "name": name,
            "media_type": media_type,
            "sha256": hashlib.sha256(content).digest(),
            "content": content,
            "by": entry.by,
            "at": entry.at,
        }
        await conn.execute(sql("add_case_document"), parameters)
    return await list_documents(conn, case_id)


async def list_documents(conn: AsyncConnection, case_id: int) -> list[DocumentRow]:
    """Return the documents of a case."""
    async with conn.cursor(row_factory=class_row(DocumentRow)) as cursor:
        await cursor.execute(sql("documents_of_case"), {"id": case_id})
        return await cursor.fetchall()


async def read_document_of(conn: AsyncConnection, case_id: int, document: int) -> tuple[str, str, bytes]:
    """Return name, media type and content of a document.

    Raises: UnknownCase.
    """
    cursor = await conn.execute(sql("case_document"), {"id": case_id, "document": document})
    row = await cursor.fetchone()
    if row is None:
        raise UnknownCase(f"document: expected one of case {case_id}, got {document}")
    return row[0], row[1], bytes(row[2])


# Rules -------------------------------------------------------------------------------------------------------------


async def add_rules(conn: AsyncConnection, text: str, *, by: str, now: datetime) -> CaseRules:
    """Keep a document of the utility's own; cases opened from its day on go by it.

    Raises: CaseRulesError; CaseConflict for an id or a first day that is taken.
    """
    rules = parse_case_rules(text)
    if rules.id == builtin_case_rules().id:
        raise CaseRulesError(f"id: expected another one than the built-in {rules.id}")
    parameters = {"id": rules.id, "effective_from": rules.effective_from, "document": text, "by": by, "at": now}
    if await (await conn.execute(sql("add_case_rules"), parameters)).fetchone() is None:
        raise CaseConflict(f"dispute rules: expected a new id and day, got {rules.id} from {rules.effective_from}")
    return rules


async def rules_on(conn: AsyncConnection, day: date) -> CaseRules:
    """Return the rules of cases opened on a day."""
    row = await (await conn.execute(sql("case_rules_on"), {"day": day})).fetchone()
    return builtin_case_rules() if row is None else parse_case_rules(row[0])


async def rules_named(conn: AsyncConnection, name: str) -> CaseRules:
    """Return rules by their id, which a case keeps."""
    if name == builtin_case_rules().id:
        return builtin_case_rules()
    row = await (await conn.execute(sql("case_rules_named"), {"id": name})).fetchone()
    assert row is not None, f"rules {name}: are stored and never removed"
    return parse_case_rules(row[0])


async def list_rules(conn: AsyncConnection) -> Sequence[Mapping[str, Any]]:
    """Return the utility's own documents."""
    # Rows as the command line prints them: typed by the query.
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("case_rules_listed"))
        return await cursor.fetchall()


async def _append(conn: AsyncConnection, case_id: int, step: Step, note: str, facts: Mapping[str, Any]) -> None:
    parameters = {
        "id": case_id,
        "step": step.kind.value,
        "at": from_ms(step.at_ms),
        "by": step.by,
        "note": note,
        "facts": Jsonb(dict(facts)),
    }
    await conn.execute(sql("add_case_step"), parameters)


def _standing(case: Case, rules: CaseRules, calendar: LocalCalendar) -> dict[str, object]:
    due = None if case.state is State.CLOSED else due_ms(case, rules, calendar)
    return {"state": case.state.value, "due_at": None if due is None else from_ms(due)}


def _step(row: StepRow) -> Step:
    verdict, decision = row.facts.get("verdict"), row.facts.get("decision")
    return Step(
        kind=StepKind(row.step),
        at_ms=to_ms(row.at),
        by=row.by,
        verdict=None if verdict is None else Verdict(verdict),
        decision=None if decision is None else Decision(decision),
    )
