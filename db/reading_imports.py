"""What an import of readings asks the database: where registers stand before, and what became of what was sent.

Stage: beside `prepaid import`; readings themselves are stored by ingest alone. Reads only, but for a table of its own
session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from psycopg import AsyncConnection

from billing.calendar import from_ms
from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterStart:
    """Where a meter's register stands before a file's first reading of it; it rolls over at `end_wh`.

    Invariants: before `installed_ms` nothing is counted. `mark_ms` is the meter's latest reading, or its installation.
    A meter that is not installed has None in both.
    """

    register_wh: int
    end_wh: int
    installed_ms: int | None
    mark_ms: int | None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of readings that were sent: sent = stored + duplicate + those held by reason + lost."""

    stored: int = 0
    duplicate: int = 0
    held: dict[str, int] = field(default_factory=dict)
    lost: int = 0


async def ingest_lives(conn: AsyncConnection) -> bool:
    """Tell whether some ingest process is at work."""
    return bool(await _one(conn, "ingest_lives"))


async def current_xid(conn: AsyncConnection) -> str:
    """Return a transaction before which every row that is there was written."""
    return str(await _one(conn, "current_xid"))


async def register_starts(conn: AsyncConnection, instants_ms: Mapping[str, int]) -> dict[str, RegisterStart]:
    """Return where registers stand at an instant for each serial; a meter that is not installed starts at 0."""
    parameters = {"serials": list(instants_ms), "ats": [from_ms(at_ms) for at_ms in instants_ms.values()]}
    cursor = await conn.execute(sql("import_starts"), parameters)
    found = {
        serial: RegisterStart(register_wh=register_wh, end_wh=end_wh, installed_ms=installed_ms, mark_ms=mark_ms)
        for serial, installed_ms, end_wh, register_wh, mark_ms in await cursor.fetchall()
    }
    nothing = RegisterStart(register_wh=0, end_wh=2**62, installed_ms=None, mark_ms=None)
    return {serial: found.get(serial, nothing) for serial in instants_ms}


class SentKeys:
    """Readings that were sent, in a table of the session, to be looked for among what is stored and what is held."""

    def __init__(self, conn: AsyncConnection) -> None:
        self._conn = conn
        self._first: datetime | None = None
        self._last: datetime | None = None

    async def begin(self) -> None:
        """Make the table."""
        await self._conn.execute(sql("make_import_keys"))

    async def empty(self) -> None:
        """Forget what was added."""
        await self._conn.execute(sql("empty_import_keys"))
        self._first = self._last = None

    async def add(self, readings: Iterable[tuple[str, datetime, int]]) -> None:
        """Add readings: serial, instant, register."""
        async with self._conn.cursor() as cursor, cursor.copy(sql("copy_import_keys")) as copy:
            copy.set_types(("text", "timestamptz", "int8"))
            for reading in readings:
                at = reading[1]
                self._first = at if self._first is None else min(self._first, at)
                self._last = at if self._last is None else max(self._last, at)
                await copy.write_row(reading)

    async def outcome(self, since_xid: str) -> Outcome:
        """Tell what became of them; stored are those that were not there before a transaction."""
        made = Outcome()
        if self._first is None:
            return made
        await self._conn.execute(sql("analyze_import_keys"))
        parameters = {"since": since_xid, "first": self._first, "last": self._last}
        cursor = await self._conn.execute(sql("import_outcome"), parameters)
        for outcome, number, again in await cursor.fetchall():
            if outcome == "stored":
                made.stored, made.duplicate = number, again
            elif outcome is None:
                made.lost = number
            else:
                made.held[outcome] = number
        return made


async def _one(conn: AsyncConnection, query: str) -> object:
    cursor = await conn.execute(sql(query))
    row = await cursor.fetchone()
    assert row is not None, f"{query} returns one row"
    value: object = row[0]
    return value
