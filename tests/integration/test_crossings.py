"""Crossings of a whole batch on a real PostgreSQL: what is written by sets is what posting one by one writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from psycopg import AsyncConnection

from billing.calendar import to_ms
from db.accounts import look
from db.crossings import LastReading, lock_free_and_look, post_crossings
from db.pool import connect
from db.posting import lock_free, post_readings
from db.readings import copy_readings, ensure_partitions
from protocols.rows import ReadingRow
from tests.integration.test_assignments import APRIL, DAY, KOLKATA, RULES, local, on_database, open_home, view_of

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


@pytest.mark.parametrize("stale_ms", [None, 1])
def test_crossings_by_sets_leave_what_posting_one_by_one_leaves(database_url: str, stale_ms: int | None) -> None:
    """Alarms, epochs of orders, held cut-offs, notices, versions and feed rows are the same; the second time none."""
    rules = replace(RULES, stale_ms=stale_ms)

    async def story(conn: AsyncConnection) -> None:
        single, many = await open_crossing(conn, "S"), await open_crossing(conn, "T")
        for _ in range(2):
            async with conn.transaction():
                await lock_free(conn, single)
                for _, view in sorted((await look(conn, single, KOLKATA)).items()):
                    await post_readings(conn, view, late_since_ms=None, rules=rules, now_ms=NOW_MS)
            async with conn.transaction():
                free, views = await lock_free_and_look(conn, many, {}, KOLKATA)
                assert free == set(many)
                ordered = [view for _, view in sorted(views.items())]
                after = await post_crossings(conn, ordered, rules=rules, now_ms=NOW_MS)
            assert {view.id: view for view in after} == await look(conn, many, KOLKATA)
            found = await written(conn, many)
            assert found == await written(conn, single)
            said = {value for row in found for value in row if isinstance(value, str)}
            assert {"low", "exhausted", "alarm", "supply", "superseded", "held" if stale_ms else "pending"} <= said

    on_database(database_url, story)


def test_look_with_the_last_reading_at_hand_is_the_look_at_all_readings(database_url: str) -> None:
    """Views are equal where only the latest reading counts; others are looked up; what somebody holds is left out."""

    async def story(conn: AsyncConnection) -> None:
        ids = await open_crossing(conn, "S")
        zoned = await open_home(conn, "Z", tariff_id="punjab-tod-commercial-2026-27")
        swapped = await open_home(conn, "W")
        last = {}
        for account_id in (*ids, zoned):
            view = await view_of(conn, account_id)
            register_wh = 700 if account_id == zoned else view.mark_register_wh or 0
            last[account_id] = LastReading(meter_id=view.meter.id, at_ms=to_ms(AT), register_wh=register_wh)
        meter_id = last[zoned].meter_id
        await copy_readings(conn, [ReadingRow(meter_id, AT, 700, None, None, None, None, None, None)])
        last[swapped] = LastReading(meter_id=meter_id, at_ms=to_ms(AT), register_wh=700)
        every = [*ids, zoned, swapped]
        async with await connect(database_url, application="holder") as holder, holder.transaction():
            await lock_free(holder, ids[:1])
            async with conn.transaction():
                free, views = await lock_free_and_look(conn, every, last, KOLKATA)
        assert free == views.keys() == set(every[1:])
        assert views == await look(conn, every[1:], KOLKATA)
        later = {each: replace(seen, at_ms=to_ms(AT + 40 * DAY)) for each, seen in last.items()}
        async with conn.transaction():
            # The register is believed only inside the bill part: here all are looked up.
            assert (await lock_free_and_look(conn, every, later, KOLKATA))[1] == await look(conn, every, KOLKATA)

    on_database(database_url, story)
