"""The fast lane of close-day on a real PostgreSQL: it leaves what closing the same accounts one by one leaves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest
from psycopg import AsyncConnection

from billing.calendar import from_ms
from db.binary_copy import encode_readings
from db.named import sql
from db.pool import connect
from db.posting import lock
from db.readings import copy_encoded, copy_readings, ensure_partitions
from db.sweeps import DaySweep
from headend.edges import close_day as sweeping
from headend.edges.close_day import close_day
from loadtests.bench_charge import prepare
from loadtests.population import OPENED_ON, STEPS_A_DAY, readings_at
from protocols.rows import ReadingRow
from tests.integration.test_assignments import (
    APRIL,
    DAY,
    DOCUMENTS,
    KOLKATA,
    RULES,
    assert_audit_clean,
    give,
    local,
    on_database,
    open_home,
    view_of,
)

pytestmark = pytest.mark.db

LAST_DAY = date(2026, 5, 3)
HOMES = 20


async def open_homes(conn: AsyncConnection, prefix: str) -> list[int]:
    """Open homes of every kind, the same ones for each prefix, and read them from April to May."""
    rng = random.Random(7)
    ids = []
    for number in range(HOMES):
        opened_on = APRIL + rng.choice([0, 0, 12]) * DAY
        account_id = await open_home(
            conn,
            f"{prefix}{number}",
            tariff_id=DOCUMENTS[number % len(DOCUMENTS)],
            opened_at=local(opened_on),
            sanctioned_load_w=rng.choice([900, 2_000, 8_000]),
        )
        if number % 4 == 3:
            await give(conn, account_id, opened_on + rng.randint(3, 30) * DAY, load_w=rng.choice([1_000, 5_000]))
        meter_id = (await view_of(conn, account_id)).meter.id
        rows, register_wh, day = [], 0, opened_on
        silent = rng.sample(range(1, 34), 4) if number % 3 == 2 else []
        while day <= LAST_DAY:
            day += DAY
            register_wh += rng.randint(0, 30_000)
            # A silent meter is read at noon, or not at all around the month's end.
            if (day - APRIL).days in silent:
                at = local(day, 12)
            elif number % 5 == 4 and date(2026, 4, 29) <= day <= date(2026, 5, 2):
                continue
            else:
                at = local(day)
            rows.append(ReadingRow(meter_id, at, register_wh, None, None, None, None, None, None))
        await ensure_partitions(conn, {row.read_at.date() for row in rows})
        await copy_readings(conn, rows)
        ids.append(account_id)
    return ids


async def close_one_by_one(conn: AsyncConnection, ids: Sequence[int], until: date) -> None:
    """Close days as `db.posting.post_days` does."""
    await sweeping._close_others(conn, ids, until, RULES)


async def books(conn: AsyncConnection, ids: Sequence[int]) -> list[Any]:
    """Read journals, posted state and the sums of the ledgers, by the accounts' order."""
    place = {account_id: number for number, account_id in enumerate(ids)}
    cursor = await conn.execute(
        b"select account_id, kind, local_day, period, from_wh, to_wh, energy_wh, edge_quality, demand_w,"
        b" (select jsonb_object_agg(key, value) from jsonb_each(lines) where value <> '0') as lines"
        b" from journals where account_id = any(%s) and kind <> 'opening' order by account_id, local_day, id",
        [list(ids)],
    )
    found: list[Any] = [(place[account_id], *row) for account_id, *row in await cursor.fetchall()]
    cursor = await conn.execute(
        b"select id, posted_minor, charged_minor, through, before_wh, part_start_wh, closed_wh, closed_zones, demand_w,"
        b" anchor_at, anchor_wh, anchor_zones, desired from accounts where id = any(%s) order by id",
        [list(ids)],
    )
    found += [(place[account_id], *row) for account_id, *row in await cursor.fetchall()]
    return found


async def days_closed_twice(conn: AsyncConnection) -> int:
    """Count the accounts' days that have more than one journal."""
    cursor = await conn.execute(
        b"select count(*) from (select from journals where kind = 'day'"
        b" group by account_id, local_day having count(*) > 1) twice"
    )
    ((number,),) = await cursor.fetchall()
    return int(number)


class _ClockGoingBack:
    """A server's clock that steps back by an hour at each look."""

    def __init__(self) -> None:
        self.now_ns = 1_800_000_000 * 10**9

    def time_ns(self) -> int:
        self.now_ns -= 3_600 * 10**9
        return self.now_ns


def test_sweep_leaves_what_closing_one_by_one_leaves(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any mix of tariffs, zones, silent meters and changes of terms, over a month's end, and any clock."""

    async def story(conn: AsyncConnection) -> None:
        swept, single = await open_homes(conn, "S"), await open_homes(conn, "T")
        with monkeypatch.context() as patch:
            patch.setattr(sweeping, "time", _ClockGoingBack())
            exact = 0
            for until in (date(2026, 4, 20), LAST_DAY, LAST_DAY):
                exact += (await close_day(conn, until, rules=RULES, last=max(swept))).exact
        for until in (date(2026, 4, 20), LAST_DAY):
            await close_one_by_one(conn, single, until)
        assert exact > HOMES * 10, "most days take the fast lane"
        assert await books(conn, swept) == await books(conn, single)
        await assert_audit_clean(conn)

    on_database(database_url, story)


def test_two_sweeps_at_once_close_every_day_once(database_url: str) -> None:
    """Sweeps that meet wait for each other's accounts and find their days closed."""

    async def story(conn: AsyncConnection) -> None:
        swept, single = await open_homes(conn, "S"), await open_homes(conn, "T")
        await close_one_by_one(conn, single, LAST_DAY)
        async with await connect(database_url, application="other") as other:
            done = await asyncio.gather(*(close_day(each, LAST_DAY, rules=RULES) for each in (conn, other)))
        assert sum(each.exact for each in done) > HOMES * 10
        assert await books(conn, swept) == await books(conn, single)
        assert await days_closed_twice(conn) == 0
        await assert_audit_clean(conn)

    on_database(database_url, story)


def test_sweep_never_scans_all_accounts_or_a_days_readings(database_url: str) -> None:
    """Look and save of a range probe by key, also on a fresh day without statistics and with very many ids."""

    async def story() -> None:
        await prepare(database_url, 3_000, KOLKATA)
        async with await connect(database_url, application="test") as conn:
            opened_ms = KOLKATA.midnight_ms(OPENED_ON)
            await copy_encoded(conn, encode_readings(readings_at(np.arange(1, 3_001), STEPS_A_DAY, opened_ms)))
            ids = list(range(1, 2_001))
            edge_at = from_ms(KOLKATA.midnight_ms(OPENED_ON + DAY))
            month = {"month": OPENED_ON, "next_month": OPENED_ON + timedelta(days=30)}
            columns = ("posted_minors", "charged_minors", "before_whs", "part_start_whs", "to_whs")
            parameters = {
                "exact_days": {"ids": ids, "day": OPENED_ON, "edge_at": edge_at, **month},
                "save_exact_days": {"ids": ids, "through": OPENED_ON + DAY, "edge_at": edge_at}
                | dict.fromkeys(columns, ids),
            }
            async with conn.transaction(force_rollback=True):
                await lock(conn, ids)
                await conn.execute(sql("probe_by_key"))
                for name, values in parameters.items():
                    cursor = await conn.execute(b"explain " + sql(name), values)
                    shown = "\n".join(line for (line,) in await cursor.fetchall())
                    assert "accounts_pkey" in shown
                    # Not a day's readings, each of which would then be looked for among the accounts.
                    assert name == "save_exact_days" or "(meter_id = i.meter_id) AND (read_at = " in shown
                    assert not [part for part in ("Seq Scan", "Bitmap") if part in shown], shown
            async with conn.transaction():
                await lock(conn, ids)
                assert await DaySweep(KOLKATA).close(conn, ids, OPENED_ON) == len(ids)

    asyncio.run(story())
