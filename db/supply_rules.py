"""Supply rules as rows: which schemes hold on a day, and which accounts wait for a window to open.

Stage: beside posting and the dispatcher. Stores documents, never changes them, and reads the one in force. Decides
nothing: see billing.supply_policy.
"""

from __future__ import annotations

import hashlib
from datetime import date
from functools import lru_cache

from psycopg import AsyncConnection

from billing.supply_policy import SupplyRules
from billing.supply_rule_document import builtin_supply_rules, parse_supply_rules
from db.errors import DatabaseError
from db.named import sql


class SupplyRulesRefused(DatabaseError):
    """A supply rules document that cannot be added."""

    code = "supply_rules_refused"


async def add_supply_rules(conn: AsyncConnection, text: str, *, first_open_day: date) -> SupplyRules:
    """Store a document from the local midnight of the day it names; the same document again changes nothing.

    Raises: SupplyRulesError for a broken document; SupplyRulesRefused for a day before `first_open_day`, or one that
    has another.
    """
    rules = parse_supply_rules(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    from_day = rules.effective_from
    cursor = await conn.execute(sql("supply_rules_at"), {"from_day": from_day})
    row = await cursor.fetchone()
    if row is not None and row[0] == sha256:
        return rules
    if from_day < first_open_day:
        raise SupplyRulesRefused(
            f"supply rules {rules.id}: effective_from: expected {first_open_day} or later, what is past was decided by"
            f" the rules of then, got {from_day}"
        )
    parameters = {"from_day": from_day, "document": text, "sha256": sha256}
    if row is not None or not (await conn.execute(sql("add_supply_rules"), parameters)).rowcount:
        raise SupplyRulesRefused(
            f"supply rules {rules.id}: effective_from: expected a day without a document, {from_day} has another"
        )
    return rules


async def rules_in_force(conn: AsyncConnection, day: date) -> SupplyRules:
    """Return the rules in force on a local day: those that ship with the product before the utility's first.

    The same document is the same value: it is read once.
    """
    cursor = await conn.execute(sql("supply_rules_on"), {"day": day})
    row = await cursor.fetchone()
    return _parsed(None if row is None else row[0])


async def exhausted_and_on(conn: AsyncConnection, shard: int, *, after: int, most: int) -> list[int]:
    """Return accounts of a shard with exhausted credit that are still supplied, in id order from one id on."""
    return await _exhausted(conn, "exhausted_and_on", shard, after, most)


async def exhausted_and_off(conn: AsyncConnection, shard: int, *, after: int, most: int) -> list[int]:
    """Return accounts of a shard that are cut off, in id order from one id on."""
    return await _exhausted(conn, "exhausted_and_off", shard, after, most)


async def _exhausted(conn: AsyncConnection, query: str, shard: int, after: int, most: int) -> list[int]:
    parameters = {"shard": shard, "after": after, "most": most}
    cursor = await conn.execute(sql(query), parameters)
    return [row[0] for row in await cursor.fetchall()]


async def rules_by_checksum(conn: AsyncConnection, sha256: str | None) -> SupplyRules:
    """Return stored rules, parsed once in a process; None are those that ship with the product."""
    if sha256 is None:
        return _parsed(None)
    if sha256 not in _by_checksum:
        cursor = await conn.execute(sql("supply_rules_document"), {"sha256": sha256})
        row = await cursor.fetchone()
        assert row is not None, f"supply rules: expected the document {sha256}, which is never deleted"
        _by_checksum[sha256] = _parsed(row[0])
    return _by_checksum[sha256]


# One document a tariff year: a handful.
_by_checksum: dict[str, SupplyRules] = {}


@lru_cache(maxsize=64)
def _parsed(document: str | None) -> SupplyRules:
    return builtin_supply_rules() if document is None else parse_supply_rules(document)
