"""Exceptions as rows: what is open, the evidence beside it, who works on it, decisions with their trail, dated rules.

Stage: beneath the exceptions desk. An exception is a row of quarantine that is held, a flag of a stored reading, or a
gap that is not filled. Knows nothing of what rules say; every change is in the caller's transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from db.errors import DatabaseError
from db.named import sql

# What a screen of evidence holds of each sort.
EVIDENCE_ROWS_MAX = 12


class UnknownException(DatabaseError):
    """There is no exception of this kind and number."""

    code = "unknown_exception"


class ExceptionRefused(DatabaseError):
    """What is asked does not fit the exception as it stands; nothing was done."""

    code = "exception_refused"


class ExceptionKind(StrEnum):
    """Where an exception comes from."""

    QUARANTINE = "quarantine"
    FLAG = "flag"
    GAP = "gap"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceptionKey:
    """Kind and number of an exception: `gap-7`."""

    kind: ExceptionKind
    id: int

    def __str__(self) -> str:
        """Return the key as people write it."""
        return f"{self.kind}-{self.id}"

    @classmethod
    def read(cls, text: str) -> ExceptionKey:
        """Read a key. Raises: UnknownException for what is none."""
        kind, _, number = text.partition("-")
        if kind not in tuple(ExceptionKind) or not number.isascii() or not number.isdecimal() or len(number) > 18:
            raise UnknownException(f"exception: expected quarantine-, flag- or gap- and a number, got {text[:40]!r}")
        return cls(kind=ExceptionKind(kind), id=int(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenException:
    """A line of the queue; `decision` is the number of one that waits for a second person."""

    kind: str
    item_id: int
    severity: str
    rule: str
    serial: str | None
    at: datetime | None
    to_at: datetime | None
    since: datetime
    detail: str
    area: str
    account: str | None
    assigned_to: str | None
    decision: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceptionItem:
    """One exception with its meter and account, None where nobody registered them."""

    kind: str
    item_id: int
    severity: str
    rule: str
    serial: str | None
    at: datetime | None
    to_at: datetime | None
    since: datetime
    detail: str
    state: str
    meter_id: int | None
    interval_s: int | None
    make: str | None
    model: str | None
    area: str
    account: str | None
    account_id: int | None
    category: str | None
    assigned_to: str | None
    closed_as: str | None
    closed_at: datetime | None

    @property
    def key(self) -> ExceptionKey:
        """Its kind and number."""
        return ExceptionKey(kind=ExceptionKind(self.kind), id=self.item_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceptionCount:
    """Open exceptions of a kind and severity by age: up to a day, a week, 30 days, older."""

    kind: str
    severity: str
    day: int
    week: int
    month: int
    older: int
    oldest: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """What was decided on an exception; `effect` is what the dry run said when it was asked for."""

    id: int
    action: str
    parameters: Mapping[str, Any]  # JSON values, as the desk wrote them.
    effect: Mapping[str, Any]  # JSON values, as the desk wrote them.
    correction_id: int | None
    asked_by: str
    why: str
    asked_at: datetime
    state: str
    ended_by: str | None
    ended_why: str | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailStep:
    """One step of an exception's trail."""

    step: str
    by_whom: str
    why: str
    facts: Mapping[str, Any]  # JSON values.
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueAsked:
    """Which open exceptions; None asks nothing, an empty `assigned_to` those that nobody works on."""

    kind: str | None = None
    severity: str | None = None
    rule: str | None = None
    serial: str | None = None
    area: str | None = None
    assigned_to: str | None = None
    before: datetime | None = None
    after: tuple[datetime, str, int] | None = None


# One row of evidence as plain values by column: typed by the query.
EvidenceRow = dict[str, Any]


async def list_exceptions(conn: AsyncConnection, asked: QueueAsked, *, most: int) -> list[OpenException]:
    """List open exceptions, the oldest first."""
    after_since, after_kind, after_id = asked.after or (None, None, None)
    parameters = {
        "kind": asked.kind,
        "severity": asked.severity,
        "rule": asked.rule,
        "serial": asked.serial,
        "area": asked.area,
        "assigned_to": asked.assigned_to,
        "before": asked.before,
        "after_since": after_since,
        "after_kind": after_kind,
        "after_id": after_id,
        "most": most,
    }
    async with conn.cursor(row_factory=class_row(OpenException)) as cursor:
        await cursor.execute(sql("exceptions_open"), parameters)
        return await cursor.fetchall()


async def count_exceptions(conn: AsyncConnection, now: datetime) -> list[ExceptionCount]:
    """Count open exceptions by kind, severity and age."""
    async with conn.cursor(row_factory=class_row(ExceptionCount)) as cursor:
        await cursor.execute(sql("exceptions_counted"), {"now": now})
        return await cursor.fetchall()


async def read_exception(conn: AsyncConnection, key: ExceptionKey) -> ExceptionItem:
    """Read one exception, open or not.

    Raises: UnknownException.
    """
    async with conn.cursor(row_factory=class_row(ExceptionItem)) as cursor:
        await cursor.execute(sql("exception_item"), {"kind": key.kind.value, "id": key.id})
        found = await cursor.fetchone()
    if found is None:
        raise UnknownException(f"exception: expected a known one, got {key}")
    return found


async def read_decisions(conn: AsyncConnection, key: ExceptionKey) -> list[DecisionRow]:
    """Read what was decided on an exception, in order."""
    async with conn.cursor(row_factory=class_row(DecisionRow)) as cursor:
        await cursor.execute(sql("exception_decisions_of"), {"kind": key.kind.value, "id": key.id})
        return await cursor.fetchall()


async def read_trail(conn: AsyncConnection, key: ExceptionKey) -> list[TrailStep]:
    """Read who did what to an exception, in order."""
    async with conn.cursor(row_factory=class_row(TrailStep)) as cursor:
        await cursor.execute(sql("exception_trail_of"), {"kind": key.kind.value, "id": key.id})
        return await cursor.fetchall()


async def read_evidence(
    conn: AsyncConnection, meter_id: int, from_at: datetime, to_at: datetime
) -> dict[str, list[EvidenceRow]]:
    """Read what is known of a meter around a stretch of time: readings, places, segments, swaps, events, relay."""
    parameters = {"meter_id": meter_id, "from_at": from_at, "to_at": to_at, "most": EVIDENCE_ROWS_MAX}
    found = {}
    for name, query in (
        ("neighbours", "exception_neighbours"),
        ("places", "exception_places"),
        ("segments", "exception_segments"),
        ("swaps", "exception_swaps"),
        ("events", "exception_events"),
        ("orders", "exception_orders"),
    ):
        async with conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(sql(query), parameters)
            found[name] = await cursor.fetchall()
    return found


async def read_curves(
    conn: AsyncConnection, meter_id: int, windows: Sequence[tuple[datetime, datetime]]
) -> list[list[tuple[datetime, int]]]:
    """Read a meter's readings as they hold in windows of time, each with the reading at or before and after it."""
    parameters = {
        "meter_id": meter_id,
        "ns": list(range(len(windows))),
        "froms": [from_at for from_at, _ in windows],
        "tos": [to_at for _, to_at in windows],
    }
    found: list[list[tuple[datetime, int]]] = [[] for _ in windows]
    cursor = await conn.execute(sql("exception_curves"), parameters)
    for number, read_at, import_wh in await cursor.fetchall():
        found[number].append((read_at, import_wh))
    return found


async def lock_exception(conn: AsyncConnection, key: ExceptionKey) -> None:
    """Work on an exception alone until the end of the transaction."""
    await conn.execute(sql("lock_exception"), {"kind": key.kind.value, "id": key.id})


async def assign_exception(conn: AsyncConnection, key: ExceptionKey, *, to: str | None, by: str, why: str) -> None:
    """Give an exception to somebody, or to nobody.

    Raises: UnknownException, ExceptionRefused for one that is closed.
    """
    async with conn.transaction():
        await lock_exception(conn, key)
        require_open(await read_exception(conn, key))
        await conn.execute(sql("assign_exception"), {"kind": key.kind.value, "id": key.id, "to": to})
        await add_step(conn, key, "assign", by=by, why=why, facts={"to": to})


async def close_exception(conn: AsyncConnection, key: ExceptionKey, closed_as: str) -> None:
    """Close an exception as what was decided."""
    await conn.execute(sql("close_exception"), {"kind": key.kind.value, "id": key.id, "closed_as": closed_as})


async def add_step(
    conn: AsyncConnection, key: ExceptionKey, step: str, *, by: str, why: str, facts: Mapping[str, object]
) -> None:
    """Add a step to an exception's trail."""
    parameters = {"kind": key.kind.value, "id": key.id, "step": step, "by": by, "why": why, "facts": Jsonb(dict(facts))}
    await conn.execute(sql("add_exception_step"), parameters)


async def add_decision(
    conn: AsyncConnection,
    key: ExceptionKey,
    action: str,
    *,
    parameters: Mapping[str, object],
    effect: Mapping[str, object],
    correction_id: int | None,
    by: str,
    why: str,
    done: bool,
) -> int:
    """Keep what somebody decides; return its number."""
    values = {
        "kind": key.kind.value,
        "id": key.id,
        "action": action,
        "parameters": Jsonb(dict(parameters)),
        "effect": Jsonb(dict(effect)),
        "correction_id": correction_id,
        "by": by,
        "why": why,
        "state": "done" if done else "proposed",
    }
    row = await (await conn.execute(sql("add_exception_decision"), values)).fetchone()
    assert row is not None, "add_exception_decision returns an id"
    return int(row[0])


async def end_decision(conn: AsyncConnection, decision_id: int, state: str, *, by: str, why: str) -> None:
    """Say that a decision was carried out or cancelled."""
    await conn.execute(sql("end_exception_decision"), {"id": decision_id, "state": state, "by": by, "why": why})


def require_open(item: ExceptionItem) -> None:
    """Refuse what is closed. Raises: ExceptionRefused."""
    closed = item.state not in ("held",) if item.kind == ExceptionKind.QUARANTINE else item.closed_at is not None
    if closed or item.state == "filled":
        raise ExceptionRefused(f"exception {item.key}: expected one that is open, got {item.closed_as or item.state}")


async def estimation_document(conn: AsyncConnection, day: date) -> str | None:
    """Return the utility's document of estimation in force on a local day; None before its first."""
    row = await (await conn.execute(sql("estimation_rules_on"), {"day": day})).fetchone()
    return None if row is None else str(row[0])


async def add_estimation_document(conn: AsyncConnection, text: str, *, from_day: date, today: date, by: str) -> None:
    """Store a document, checked before, from a local day on; the same document again changes nothing.

    Raises: ExceptionRefused for a past day, or one that has another document.
    """
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    row = await (await conn.execute(sql("estimation_rules_at"), {"from_day": from_day})).fetchone()
    if row is not None and row[0] == sha256:
        return
    if from_day < today:
        raise ExceptionRefused(f"effective_from: expected {today} or later, got {from_day}")
    parameters = {"from_day": from_day, "document": text, "sha256": sha256, "by": by}
    if row is not None or not (await conn.execute(sql("add_estimation_rules"), parameters)).rowcount:
        raise ExceptionRefused(f"effective_from: expected a day without a document, {from_day} has another")
