"""Further thresholds crossed by readings: by sets as one by one, through ingest, and at the meter."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from psycopg import AsyncConnection

from billing.calendar import to_ms
from billing.forecast import Threshold, ThresholdKind, make_threshold
from billing.journals import JournalKind
from db.accounts import look
from db.crossings import Standing, decide_known, decide_looked_at, send_claim, send_crossings, take_claim
from db.posting import lock_and_look, lock_free, post_readings
from db.prepayment import prepayments_of
from db.readings import copy_readings, ensure_partitions
from db.thresholds import set_thresholds
from prepaid.embedded import EmbeddedNats
from protocols.native import OrderKind
from protocols.rows import ReadingRow
from tests.integration.supply_street import Street, tell
from tests.integration.test_assignments import APRIL, KOLKATA, RULES, local, on_database, open_home, view_of
from tests.support import HOUR_MS, REGISTER_WH, T0, WAIT_S, Home, Site, open_site, reading, running_ingest

pytestmark = [pytest.mark.db, pytest.mark.broker]

AT = local(APRIL, 12)
NOW_MS = to_ms(AT) + HOUR_MS
# Opening credit, amounts to be warned at, energy read. 20 kWh and a day's fixed charge cost some 120 rupees.
KINDS: tuple[tuple[int, tuple[int, ...], int], ...] = (
    (10_000_000, (5_000, 9_000), 500),
    (20_000, (100, 15_000), 20_000),
    (20_000, (15_000, 100), 20_000),
    (20_000, (15_000, 14_000, 100, 13_000), 20_000),
    (20_000, (15_000, 14_000, 13_000), 1_000),
    (1_000, (100, 500), 20_000),
    (1_000, (900,), 20_000),
)


def amounts(*minor: int) -> list[Threshold]:
    return [make_threshold(ThresholdKind.AMOUNT, each) for each in minor]


async def want(conn: AsyncConnection, account_id: int, *wanted: Threshold) -> None:
    """Let the consumer of an account want to be warned by these."""
    async with conn.transaction():
        view = await lock_and_look(conn, account_id, RULES)
        await set_thresholds(conn, view, wanted, rules=RULES, now_ms=NOW_MS)


async def open_homes(conn: AsyncConnection, prefix: str) -> list[int]:
    """Open an account of every kind, the same for each prefix, and read each once."""
    ids = []
    await ensure_partitions(conn, {AT.date()})
    for number, (credit_minor, wanted, register_wh) in enumerate(KINDS):
        account_id = await open_home(conn, f"{prefix}{number}", opening_credit_minor=credit_minor)
        await want(conn, account_id, *amounts(*wanted))
        meter_id = (await view_of(conn, account_id)).meter.id
        await copy_readings(conn, [ReadingRow(meter_id, AT, register_wh, None, None, None, None, None, None)])
        ids.append(account_id)
    return ids


async def written(conn: AsyncConnection, ids: Sequence[int]) -> list[Any]:
    """Read everything that crossings leave, by the accounts' order; of orders, what the meter is to do."""
    place = {account_id: number for number, account_id in enumerate(ids)}
    found: list[Any] = []
    for query in (
        b"select id, low_raised, exhausted_raised, low_arm, exhausted_arm, desired, version from accounts where id",
        b"select account_id, n, kind, value, level_minor, arm, raised from alarm_thresholds where account_id",
        b"select account_id, version from change_feed where account_id",
        b"select account_id, level, n, arm, level_minor, balance_minor from alarms where account_id",
        b"select account_id, kind, relay, level, balance_minor, threshold_minor, cause from supply_orders"
        b" where state = 'pending' and account_id",
        b"select account_id, kind, facts from notices where account_id",
    ):
        cursor = await conn.execute(query + b" = any(%s)", [list(ids)])
        found += sorted((place[account_id], *map(str, row)) for account_id, *row in await cursor.fetchall())
    return found


async def cross(conn: AsyncConnection, ids: Sequence[int], *, known: bool) -> None:
    """Let accounts cross by sets, as their owner knows them or looked at."""
    views = await look(conn, ids, KOLKATA)
    standings = {account_id: Standing.of(view, KOLKATA) for account_id, view in views.items()} if known else {}
    async with conn.transaction():
        async with conn.pipeline():
            claim = await send_claim(conn, ids, standings)
        claimed = await take_claim(claim)
        if known:
            crossings = [decide_known(each, claimed, rules=RULES, now_ms=NOW_MS) for each in standings.values()]
        else:
            crossings = [decide_looked_at(views[each], rules=RULES, now_ms=NOW_MS) for each in ids]
        prepayments = await prepayments_of(conn, dict.fromkeys(ids))
        async with conn.pipeline():
            await send_crossings(conn, crossings, prepayments, cause="reading", now_ms=NOW_MS)
        for each in crossings:
            assert each.decision.levels == (await view_of(conn, each.standing.account_id)).levels


@pytest.mark.parametrize("known", [True, False])
def test_further_thresholds_crossed_by_sets_leave_what_posting_one_by_one_leaves(
    database_url: str, known: bool
) -> None:
    """Levels, arms, alarms, notices, versions and what the meter is to do are the same; the second time nothing."""

    async def story(conn: AsyncConnection) -> None:
        single, many = await open_homes(conn, "S"), await open_homes(conn, "T")
        assert await written(conn, many) == await written(conn, single)
        for _ in range(2):
            async with conn.transaction():
                await lock_free(conn, single)
                for _, view in sorted((await look(conn, single, KOLKATA)).items()):
                    await post_readings(conn, view, late_since_ms=None, rules=RULES, now_ms=NOW_MS)
            await cross(conn, many, known=known)
            found = await written(conn, many)
            assert found == await written(conn, single)
        cursor = await conn.execute(
            b"select account_id, array_agg(n order by n) from alarms where level = 'low' and account_id = any(%s)"
            b" group by account_id order by account_id",
            [many],
        )
        rung = {many.index(account_id): ns for account_id, ns in await cursor.fetchall()}
        assert rung == {1: [1], 2: [0], 3: [0, 1, 3], 5: [0, 1], 6: [0]}

    on_database(database_url, story)


async def rung(site: Site) -> list[tuple[Any, ...]]:
    """Return number and arm of the warnings that have rung."""
    return await site.rows("select n, arm from alarms where level = 'low' order by id")


def test_readings_through_ingest_ring_each_further_threshold_once(database_url: str, nats: EmbeddedNats) -> None:
    """Wishes that come while ingest knows the account count from then on; repeated and late readings ring none."""

    async def told() -> None:
        async with open_site(database_url, nats) as site:
            home = await site.add_home("M1", credit_minor=20_000)

            async def read(hour: int, energy_wh: int) -> None:
                await site.send(reading("M1", T0 + hour * HOUR_MS, REGISTER_WH + energy_wh))

            async with running_ingest(site):
                await read(1, 100)
                await want(site.conn, home.account_id, *amounts(5_000, 15_000, 10_000))
                await read(2, 2_000)
                assert await rung(site) == []
                await read(3, 12_000)
                assert await site.balance(home) <= 15_000
                assert await rung(site) == [(1, 1)]
                for hour, energy_wh in ((2, 2_000), (3, 12_000), (4, 12_100), (2, 2_000)):
                    await read(hour, energy_wh)
                assert await rung(site) == [(1, 1)]
                await read(10, 40_000)
                assert sorted(await rung(site)) == [(0, 1), (1, 1), (2, 1)]
                await site.post(home, JournalKind.VEND, 40_000)
                await read(11, 40_100)
                assert len(await rung(site)) == 3
                await read(40, 200_000)
                assert sorted(await rung(site)) == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
                assert await site.one("select count(*) from notices where kind = 'low'") == 3

    asyncio.run(told())


def test_further_threshold_sounds_at_the_meter_which_keeps_its_own_amount(
    database_url: str, nats: EmbeddedNats
) -> None:
    """A further alarm carries the first amount, is shown and confirmed, ends with a recharge or with the wish."""

    async def story(street: Street) -> None:
        home: Home = street.home
        await street.use(1, 100)
        await want(street.site.conn, home.account_id, *amounts(500, 5_000))
        await street.until_orders((None, "confirmed"), kind="threshold")
        assert (street.meter.threshold_minor, street.meter.buzzer_on) == (500, False)
        await street.use(2, 5_000)
        await street.until_orders((None, "confirmed"), kind="alarm")
        assert (street.meter.threshold_minor, street.meter.buzzer_on) == (500, True)
        assert street.meter.display.startswith("LOW")
        (command,) = street.meter.given(OrderKind.ALARM)
        balance_minor = await street.site.balance(home)
        assert 500 < balance_minor <= 5_000
        assert (command.threshold_minor, command.balance_minor) == (500, balance_minor)
        assert (await rung(street.site), await street.notices()) == ([(1, 1)], ["low"])
        await street.site.post(home, JournalKind.VEND, 10_000)
        await street.until_orders((None, "confirmed"), (None, "confirmed"), kind="threshold")
        assert not street.meter.buzzer_on
        assert street.meter.balance_minor == balance_minor + 10_000
        assert len(street.meter.given(OrderKind.ALARM)) == 1
        await want(street.site.conn, home.account_id, *amounts(500, 100_000))
        await street.fleet.wait_for(lambda: street.meter.buzzer_on, timeout_s=WAIT_S)
        await want(street.site.conn, home.account_id, *amounts(500))
        await street.fleet.wait_for(lambda: not street.meter.buzzer_on, timeout_s=WAIT_S)
        assert street.meter.threshold_minor == 500

    tell(database_url, nats, story, credit_minor=7_000)
