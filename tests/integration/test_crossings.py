"""Crossings of a whole batch on a real PostgreSQL: what is written by sets is what posting one by one writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import pytest
from psycopg import AsyncConnection

from billing.calendar import to_ms
from billing.supply_rule_document import builtin_supply_documents
from db.accounts import AccountView, look
from db.crossings import (
    Crossing,
    Standing,
    decide_known,
    decide_looked_at,
    send_claim,
    send_crossings,
    take_claim,
)
from db.orders import PostingRules
from db.pool import connect
from db.posting import lock_free, post_readings
from db.prepayment import prepayments_of
from db.readings import copy_readings, ensure_partitions
from db.supply_rules import add_supply_rules
from protocols.rows import ReadingRow
from tests.integration.test_assignments import APRIL, KOLKATA, RULES, local, on_database, open_home, view_of

pytestmark = pytest.mark.db

AT = local(APRIL, 12)
# An hour at which government connections are protected.
NOW_MS = to_ms(AT) + 3_600_000
# In force on any day that this runs on.
RULES_FROM = date(2025, 1, 1)
LIMITING = """
[scheme.limiting]
title = "A load of 500 W instead of a cut-off"
source = "a test"
limit_w = 500
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An account before its reading: its credit, what its meter says, an open order of supply, what was asked for.

    Units: minor units, further thresholds too; `register_wh` is what is read.
    """

    credit: int = 1_000
    threshold: int | None = None
    emergency_credit: int = 0
    relay: str | None = None
    order: str | None = None
    order_state: str = "pending"
    register_wh: int = 20_000
    category: str = "DS"
    exempt: bool = False
    can_limit: bool = False
    further: tuple[int, ...] = ()


KINDS = (
    Kind(credit=10_000_000, register_wh=500),
    Kind(credit=10_000, threshold=9_900),
    Kind(),
    Kind(threshold=900, relay="on"),
    Kind(threshold=900, emergency_credit=50_000, relay="on"),
    Kind(relay="off"),
    Kind(credit=10_000_000, relay="off", register_wh=500),
    Kind(credit=10_000_000, relay="on", order="off", order_state="held", register_wh=500),
    Kind(credit=10_000_000, relay="on", order="off", register_wh=500),
    Kind(relay="on", order="off", order_state="held"),
    # Protected hours, an exempt account, an exempt category.
    Kind(category="GOVT", threshold=900, relay="on"),
    Kind(exempt=True, relay="on"),
    Kind(exempt=True, relay="off", order="off"),
    Kind(category="HOSPITAL", threshold=900),
    # A limit instead of a cut-off, where the meter is able to.
    Kind(category="LIMITED", can_limit=True, threshold=900, relay="on"),
    Kind(category="LIMITED", relay="on"),
    Kind(credit=10_000_000, category="LIMITED", can_limit=True, relay="limited", order="limited", register_wh=500),
    # Several thresholds, of which the balance passes none, one, or all.
    Kind(credit=10_000_000, further=(9_000, 4_000), register_wh=500),
    Kind(credit=10_000_000, threshold=900, further=(9_990_000, 4_000)),
    Kind(threshold=900, further=(950, 800)),
)


async def add_rules(conn: AsyncConnection) -> None:
    """Put rules in force that know a load limit."""
    text = builtin_supply_documents()["punjab"].replace("2024-11-14", str(RULES_FROM)) + LIMITING
    text = text.replace("[category]", '[category]\nLIMITED = "limiting"')
    await add_supply_rules(conn, text, first_open_day=RULES_FROM)


async def open_crossing(conn: AsyncConnection, prefix: str) -> list[int]:
    """Open accounts of every kind, the same for each prefix, and read each once."""
    ids = []
    await ensure_partitions(conn, {AT.date()})
    for number, kind in enumerate(KINDS):
        account_id = await open_home(
            conn,
            f"{prefix}{number}",
            opening_credit_minor=kind.credit,
            threshold_minor=kind.threshold,
            category=kind.category,
        )
        await set_up(conn, await view_of(conn, account_id), kind)
        ids.append(account_id)
    return ids


async def set_up(conn: AsyncConnection, view: AccountView, kind: Kind) -> None:
    """Make an account one of a kind, and read it."""
    await conn.execute(
        b"update accounts set emergency_credit_minor = %s, exempt_reason = %s where id = %s",
        [kind.emergency_credit, "a test" if kind.exempt else None, view.id],
    )
    await conn.execute(b"update meters set can_limit = %s where id = %s", [kind.can_limit, view.meter.id])
    await conn.execute(
        b"update meter_state set relay = %s, relay_at = %s where meter_id = %s", [kind.relay, AT, view.meter.id]
    )
    for n, minor in enumerate(kind.further, start=1):
        await conn.execute(
            b"insert into alarm_thresholds (account_id, n, kind, value, level_minor) values (%s, %s, 'amount', %s, %s)",
            [view.id, n, minor, minor],
        )
    if kind.order:
        await conn.execute(
            b"insert into supply_orders (meter_id, account_id, shard, kind, epoch, relay, limit_w, balance_minor,"
            b" cause, state) values (%s, %s, %s, 'supply', 100, %s, %s, 0, 'test', %s)",
            [
                view.meter.id,
                view.id,
                view.shard,
                kind.order,
                500 if kind.order == "limited" else None,
                kind.order_state,
            ],
        )
    await copy_readings(conn, [ReadingRow(view.meter.id, AT, kind.register_wh, None, None, None, None, None, None)])


async def written(conn: AsyncConnection, ids: Sequence[int]) -> list[Any]:
    """Read everything that crossings leave, by the accounts' order."""
    place = {account_id: number for number, account_id in enumerate(ids)}
    found: list[Any] = []
    for query in (
        b"select id, low_raised, exhausted_raised, exhausted_at, low_arm, exhausted_arm, desired, version from accounts"
        b" where id",
        b"select account_id, version from change_feed where account_id",
        b"select account_id, level, n, arm, level_minor, balance_minor from alarms where account_id",
        b"select account_id, n, arm, raised, level_minor from alarm_thresholds where account_id",
        b"select account_id, kind, epoch, relay, limit_w, level, balance_minor, threshold_minor, cause, state"
        b" from supply_orders where account_id",
        b"select account_id, kind, channel, body, facts from notices where account_id",
    ):
        cursor = await conn.execute(query + b" = any(%s)", [list(ids)])
        found += sorted((place[account_id], *map(str, row)) for account_id, *row in await cursor.fetchall())
    return found


async def cross(conn: AsyncConnection, ids: Sequence[int], rules: PostingRules, *, known: bool) -> list[Any]:
    """Let accounts cross by sets, as their owner knows them or looked at; return how each is left."""
    views = await look(conn, ids, KOLKATA)
    standings = {account_id: Standing.of(view, KOLKATA) for account_id, view in views.items()} if known else {}
    async with conn.transaction():
        async with conn.pipeline():
            claim = await send_claim(conn, ids, standings)
        claimed = await take_claim(claim)
        assert claimed.free == set(ids)
        assert claimed.numbers.keys() == standings.keys()
        crossings: list[Crossing] = [
            decide_known(each, claimed, rules=rules, now_ms=NOW_MS) for each in standings.values()
        ] or [decide_looked_at(views[account_id], rules=rules, now_ms=NOW_MS) for account_id in ids]
        prepayments = claimed.prepayments if known else await prepayments_of(conn, dict.fromkeys(ids))
        async with conn.pipeline():
            written = await send_crossings(conn, crossings, prepayments, cause="reading", now_ms=NOW_MS)
    orders = await written.open_orders()
    return [(each.standing.account_id, each.decision.levels, each.version, orders) for each in crossings]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("stale_ms", [None, 1])
def test_crossings_by_sets_leave_what_posting_one_by_one_leaves(
    database_url: str, stale_ms: int | None, known: bool
) -> None:
    """Alarms, epochs of orders, held cut-offs, notices, versions and feed rows are the same; the second time none."""
    rules = replace(RULES, stale_ms=stale_ms)

    async def story(conn: AsyncConnection) -> None:
        await add_rules(conn)
        single, many = await open_crossing(conn, "S"), await open_crossing(conn, "T")
        for _ in range(2):
            async with conn.transaction():
                await lock_free(conn, single)
                for _, view in sorted((await look(conn, single, KOLKATA)).items()):
                    await post_readings(conn, view, late_since_ms=None, rules=rules, now_ms=NOW_MS)
            left = await cross(conn, many, rules, known=known)
            for account_id, view in (await look(conn, many, KOLKATA)).items():
                after = (account_id, view.levels, view.version, view.open_order)
                assert after in [
                    (number, levels, version, orders.get(number)) for number, levels, version, orders in left
                ]
            found = await written(conn, many)
            assert found == await written(conn, single)
            said = {value for row in found for value in row if isinstance(value, str)}
            assert {"low", "exhausted", "alarm", "supply", "superseded", "held" if stale_ms else "pending"} <= said

    on_database(database_url, story)


def test_claim_leaves_out_what_is_held_and_knows_only_accounts_of_the_same_version(database_url: str) -> None:
    """An account that somebody holds is not locked and not waited for; one that has changed has to be looked at."""

    async def story(conn: AsyncConnection) -> None:
        ids = await open_crossing(conn, "S")
        standings = {number: Standing.of(view, KOLKATA) for number, view in (await look(conn, ids, KOLKATA)).items()}
        standings[ids[1]] = replace(standings[ids[1]], version=standings[ids[1]].version - 1)
        async with await connect(database_url, application="holder") as holder, holder.transaction():
            await lock_free(holder, ids[:1])
            async with conn.transaction():
                claimed = await take_claim(await send_claim(conn, ids, standings))
        assert claimed.free == set(ids[1:])
        assert claimed.numbers.keys() == set(ids[2:])
        open_before = {number for number, kind in zip(ids, KINDS, strict=True) if kind.order}
        assert claimed.open_orders.keys() == open_before
        # The credit of these is exhausted and nobody was told: what a notice needs is read along.
        told = {number for number in ids[2:] if standings[number].may_be_threatened}
        assert claimed.prepayments.keys() == told != set()

    on_database(database_url, story)
