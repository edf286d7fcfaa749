"""Crossings of a whole batch on a real PostgreSQL: what is written by sets is what posting one by one writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from psycopg import AsyncConnection

from billing.calendar import to_ms
from db.accounts import look
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
from protocols.rows import ReadingRow
from tests.integration.test_assignments import APRIL, KOLKATA, RULES, local, on_database, open_home, view_of

pytestmark = pytest.mark.db

AT = local(APRIL, 12)
NOW_MS = to_ms(AT) + 3_600_000
# Credit, threshold, emergency credit, what the relay says, an open order of supply, energy read.
KINDS = (
    (10_000_000, None, 0, None, None, 500),
    (10_000, 9_900, 0, None, None, 20_000),
    (1_000, None, 0, None, None, 20_000),
    (1_000, 900, 0, "on", None, 20_000),
    (1_000, 900, 50_000, "on", None, 20_000),
    (1_000, None, 0, "off", None, 20_000),
    (10_000_000, None, 0, "off", None, 500),
    (10_000_000, None, 0, "on", "held", 500),
    (10_000_000, None, 0, "on", "pending", 500),
    (1_000, None, 0, "on", "held", 20_000),
)


async def open_crossing(conn: AsyncConnection, prefix: str) -> list[int]:
    """Open accounts of every kind, the same for each prefix, and read each once."""
    ids = []
    await ensure_partitions(conn, {AT.date()})
    for number, (credit, threshold, emergency, relay, order, register_wh) in enumerate(KINDS):
        account_id = await open_home(conn, f"{prefix}{number}", opening_credit_minor=credit, threshold_minor=threshold)
        meter_id = (await view_of(conn, account_id)).meter.id
        await conn.execute(b"update accounts set emergency_credit_minor = %s where id = %s", [emergency, account_id])
        await conn.execute(
            b"update meter_state set relay = %s, relay_at = %s where meter_id = %s", [relay, AT, meter_id]
        )
        if order:
            await conn.execute(
                b"insert into supply_orders (meter_id, account_id, shard, kind, epoch, relay, balance_minor, cause,"
                b" state) select %s, id, shard, 'supply', 100, 'off', 0, 'test', %s from accounts where id = %s",
                [meter_id, order, account_id],
            )
        await copy_readings(conn, [ReadingRow(meter_id, AT, register_wh, None, None, None, None, None, None)])
        ids.append(account_id)
    return ids


async def written(conn: AsyncConnection, ids: Sequence[int]) -> list[Any]:
    """Read everything that crossings leave, by the accounts' order."""
    place = {account_id: number for number, account_id in enumerate(ids)}
    found: list[Any] = []
    for query in (
        b"select id, low_raised, exhausted_raised, low_arm, exhausted_arm, desired, version from accounts where id",
        b"select account_id, version from change_feed where account_id",
        b"select account_id, level, arm, level_minor, balance_minor from alarms where account_id",
        b"select account_id, kind, epoch, relay, level, balance_minor, threshold_minor, cause, state from supply_orders"
        b" where account_id",
        b"select account_id, kind, channel, substring(body from '[0-9.,]+[^0-9]*$') from notices where account_id",
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
            written = await send_crossings(conn, crossings, prepayments)
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
        open_before = {number for number, kind in zip(ids, KINDS, strict=True) if kind[4]}
        assert claimed.open_orders.keys() == open_before
        # The credit of these is exhausted and nobody was told: what a notice needs is read along.
        told = {number for number in ids[2:] if standings[number].may_be_cut_off}
        assert claimed.prepayments.keys() == told != set()

    on_database(database_url, story)
