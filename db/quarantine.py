"""The quarantine desk's rows: what is held, who releases or rejects it, and what its shard's owner makes of it.

Stage: between the engineer's commands and ingest. A release is a state that only this role of the database can write;
nothing that comes from a meter is one. The owner of the shard takes released rows, plans their bytes once more and
settles them in the transaction that stores their readings, so that each is settled once, whatever fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.errors import DatabaseError
from db.named import sql

# What a release cannot make a reading of, and what to do instead.
NOT_RELEASED = {
    "unknown_topic": "the topic belongs to no meter; let the make's bridge bring it, and reject the row",
    "clock_absurd": "no account has such a day; reject the row, the meter's profile brings the reading again",
    "conflict": "a reading of this instant is stored; change it with `prepaid corrections`, or reject the row",
    "negative": "a register counts from 0; reject the row",
}
# A register that fell may be released as one that began again at 0.
RESET_REASONS = ("register_fell", "register_reset", "register_swap", "scale_slip")


class QuarantineRefused(DatabaseError):
    """A row of quarantine that cannot be released or rejected so."""

    code = "quarantine_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRow:
    """A row of quarantine without its bytes."""

    id: int
    state: str
    reason: str
    severity: str
    serial: str | None
    topic: str
    read_at: datetime | None
    item: int
    detail: str
    times: int
    first_at: datetime
    last_at: datetime
    shard: int | None
    as_reset: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskAction:
    """What somebody did to a row; nobody's name where the owner of its shard acted."""

    action: str
    by_whom: str | None
    why: str
    as_reset: bool
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedRow:
    """A released row with what is needed to plan it: one reading of its frame, or all where it has no instant."""

    id: int
    shard: int
    topic: str
    read_at: datetime | None
    item: int
    reason: str
    as_reset: bool
    stored_at: datetime
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledRow:
    """What became of a released row; reason, detail, serial and instant where it is held again."""

    id: int
    outcome: str
    reason: str | None
    detail: str | None
    serial: str | None
    read_at: datetime | None
    rejected: bool


async def list_quarantine(
    conn: AsyncConnection,
    *,
    state: str | None = "held",
    reason: str | None = None,
    serial: str | None = None,
    since: datetime | None = None,
    before: int | None = None,
    most: int,
) -> list[HeldRow]:
    """Return rows, newest first, those before an id where one is given."""
    parameters = {"state": state, "reason": reason, "serial": serial, "since": since, "before": before, "most": most}
    async with conn.cursor(row_factory=class_row(HeldRow)) as cursor:
        await cursor.execute(sql("quarantine_rows"), parameters)
        return await cursor.fetchall()


async def quarantine_totals(conn: AsyncConnection) -> list[tuple[str, str, int, int]]:
    """Return (state, reason, rows, how often they came)."""
    cursor = await conn.execute(sql("quarantine_totals"))
    return await cursor.fetchall()


async def show_quarantine(conn: AsyncConnection, row_id: int) -> tuple[HeldRow, bytes, list[DeskAction]]:
    """Return one row with its bytes and what was done to it.

    Raises: QuarantineRefused for an unknown number.
    """
    async with conn.cursor(row_factory=class_row(HeldRow)) as held:
        await held.execute(sql("quarantine_row"), {"id": row_id})
        row = await held.fetchone()
    if row is None:
        raise QuarantineRefused(f"quarantine: expected a known number, got {row_id}")
    cursor = await conn.execute(sql("quarantine_raw"), {"id": row_id})
    raw = await cursor.fetchone()
    async with conn.cursor(row_factory=class_row(DeskAction)) as actions:
        await actions.execute(sql("quarantine_actions_of"), {"id": row_id})
        return row, raw[0] if raw else b"", await actions.fetchall()


async def release(conn: AsyncConnection, ids: Iterable[int], *, by: str, why: str, as_reset: bool = False) -> list[int]:
    """Give held rows to the owners of their shards to be planned once more; return those that were held until now.

    All or none; rows that are released or settled already stay as they are. Raises: QuarantineRefused for an unknown
    number, or a row that a release cannot make a reading of.
    """
    return await _decide(conn, ids, "release", by=by, why=why, as_reset=as_reset)


async def reject(conn: AsyncConnection, ids: Iterable[int], *, by: str, why: str) -> list[int]:
    """Close held rows for good; their bytes stay. Returns those that were held until now.

    Raises: QuarantineRefused for an unknown number.
    """
    return await _decide(conn, ids, "reject", by=by, why=why, as_reset=False)


async def take_released(conn: AsyncConnection, shards: Iterable[int], *, most: int) -> list[ReleasedRow]:
    """Read released rows of some shards; each meter's in the order of their instants."""
    async with conn.cursor(row_factory=class_row(ReleasedRow)) as cursor:
        await cursor.execute(sql("take_released"), {"shards": list(shards), "most": most})
        return await cursor.fetchall()


async def settle_released(conn: AsyncConnection, rows: Sequence[SettledRow]) -> None:
    """Write what became of released rows, in the transaction that stores their readings."""
    if not rows:
        return
    await conn.execute(
        sql("settle_released"),
        {
            "ids": [row.id for row in rows],
            "outcomes": [row.outcome for row in rows],
            "reasons": [row.reason for row in rows],
            "details": [None if row.detail is None else row.detail.replace("\x00", "�") for row in rows],
            "serials": [row.serial for row in rows],
            "read_ats": [row.read_at for row in rows],
            "rejecteds": [row.rejected for row in rows],
        },
    )


async def _decide(
    conn: AsyncConnection, ids: Iterable[int], action: str, *, by: str, why: str, as_reset: bool
) -> list[int]:
    wanted = sorted(set(ids))
    async with conn.transaction():
        cursor = await conn.execute(sql("lock_quarantine"), {"ids": wanted})
        found = {row[0]: row[1:] for row in await cursor.fetchall()}
        missing = [row_id for row_id in wanted if row_id not in found]
        if missing:
            raise QuarantineRefused(f"quarantine: expected known numbers, got {missing[0]}")
        held = [row_id for row_id in wanted if found[row_id][0] == "held"]
        for row_id in held if action == "release" else ():
            _, reason, shard = found[row_id]
            _require_releasable(row_id, reason, shard, as_reset=as_reset)
        state = "released" if action == "release" else "rejected"
        await conn.execute(sql("close_quarantine"), {"ids": held, "state": state, "as_reset": as_reset})
        parameters = {"ids": held, "action": action, "by": by, "why": why, "as_reset": as_reset}
        await conn.execute(sql("add_quarantine_actions"), parameters)
    return held


def _require_releasable(row_id: int, reason: str, shard: int | None, *, as_reset: bool) -> None:
    if reason in NOT_RELEASED or shard is None:
        told = NOT_RELEASED.get(reason, NOT_RELEASED["unknown_topic"])
        raise QuarantineRefused(f"quarantine {row_id}: expected one that can become a reading, got {reason}: {told}")
    if as_reset and reason not in RESET_REASONS:
        raise QuarantineRefused(f"quarantine {row_id}: expected a register that fell, got {reason}: release it as read")
