"""Tariffs as the database keeps them: immutable documents, parsed once for each text.

Stage: between the registry and pure money. A document is known by its checksum, so that what is kept in memory can
never be an older one of the same id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from billing.tariff import Tariff
from billing.tariff_document import parse_tariff
from db.errors import DatabaseError
from db.named import sql

# Parsed tariffs by checksum; a utility has some hundred documents over ten years.
_parsed: dict[str, Tariff] = {}


class TariffConflict(DatabaseError):
    """A tariff id that is taken by another document, or that does not exist."""

    code = "tariff_conflict"


async def add_tariff(conn: AsyncConnection, document: str) -> bool:
    """Add a tariff document; return whether it is new. The same document again changes nothing.

    Raises: TariffError for a document that breaks a rule; TariffConflict when its id has another text.
    """
    tariff = parse_tariff(document)
    digest = hashlib.sha256(document.encode()).hexdigest()
    parameters = {
        "id": tariff.id,
        "document": document,
        "sha256": digest,
        "edges": _edges(tariff),
        "asks_demand": any(band.demand_milli_per_kw for band in tariff.bands),
    }
    cursor = await conn.execute(sql("add_tariff"), parameters)
    if cursor.rowcount == 1:
        return True
    cursor = await conn.execute(sql("tariff_checksum"), {"id": tariff.id})
    row = await cursor.fetchone()
    if row is None or row[0] != digest:
        raise TariffConflict(f"tariff {tariff.id}: expected the document that has this id, got another text")
    return False


async def tariff_by_id(conn: AsyncConnection, tariff_id: str) -> Tariff:
    """Read a tariff.

    Raises: TariffConflict when there is none.
    """
    cursor = await conn.execute(sql("tariff_checksum"), {"id": tariff_id})
    row = await cursor.fetchone()
    if row is None:
        raise TariffConflict(f"tariff: expected a known id, got {tariff_id!r}")
    return (await tariffs_by_checksum(conn, [row[0]]))[row[0]]


async def tariffs_by_checksum(conn: AsyncConnection, checksums: Collection[str]) -> dict[str, Tariff]:
    """Return tariffs by their documents' checksums, parsed once in a process."""
    missing = [checksum for checksum in set(checksums) if checksum not in _parsed]
    if missing:
        cursor = await conn.execute(sql("tariff_documents"), {"sha256s": missing})
        for checksum, document in await cursor.fetchall():
            _parsed[checksum] = parse_tariff(document)
    return {checksum: _parsed[checksum] for checksum in checksums}


def _edges(tariff: Tariff) -> Jsonb | None:
    """Return at which minutes of a day and on which days a look at an account needs points on both sides."""
    minutes = tariff.zones.edge_minutes if tariff.zones else ()
    if not minutes and not tariff.change_days:
        return None
    return Jsonb({"minutes": list(minutes), "days": [day.isoformat() for day in tariff.change_days]})
