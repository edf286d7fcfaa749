"""Two things at once, in every order that matters, scripted with locks: nothing is lost, nothing done twice."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import date, timedelta
from pathlib import Path

import pytest
from psycopg import AsyncConnection

from billing.journals import JournalKind
from billing.running import Point, bill_by_month
from db.accounts import AccountView
from db.audit import run_checks
from db.pool import connect
from db.posting import lock_and_look, post_money
from headend.edges.close_day import close_day
from prepaid.embedded import EmbeddedNats
from prepaid.system import System
from tests.support import (
    CALENDAR,
    DAY_MS,
    HOUR_MS,
    REGISTER_WH,
    RULES,
    T0,
    Home,
    Message,
    Site,
    block,
    child_processes,
    ingest_waits,
    now_ms,
    open_site,
    post,
    reading,
    running_ingest,
    table_held,
)

pytestmark = [pytest.mark.db, pytest.mark.broker]

# Half of it lock timeout: a batch may be held up for 5 s before it gives up.
PATIENT_LEASE_S = 10.0
# Lasts for the first day's fixed charge and 5 kWh, not for 10.
CREDIT_MINOR = 5_000
FIVE_KWH = reading("M1", T0 + HOUR_MS, REGISTER_WH + 5_000)
TEN_KWH = reading("M1", T0 + HOUR_MS, REGISTER_WH + 10_000)
OTHER = reading("M2", T0 + HOUR_MS, REGISTER_WH + 1_000)


def _run(database_url: str, nats: EmbeddedNats, story: Callable[[Site, Home], Awaitable[None]]) -> None:
    """Tell a story of one home on an installation with ingest; afterwards the auditor must find nothing."""

    async def told() -> None:
        async with open_site(database_url, nats) as site:
            home = await site.add_home(credit_minor=CREDIT_MINOR, days=45)
            await site.add_home("M2")
            async with running_ingest(site, lease_s=PATIENT_LEASE_S):
                await story(site, home)
                await site.settled()
            await _audited(site)

    asyncio.run(told())


async def _audited(site: Site) -> None:
    """Let the auditor look; only I6 is left out, since these vends come without a vendor."""
    report = await run_checks(site.conn, CALENDAR)
    assert [check.line() for check in report.checks if check.broken and check.id != "I6"] == []


@asynccontextmanager
async def _locked(site: Site, home: Home) -> AsyncIterator[tuple[AsyncConnection, AccountView]]:
    """Hold an account's lock from a second connection, having looked; the lock ends with the context, committed."""
    async with await connect(site.database_url, application="vending") as conn, conn.transaction():
        yield conn, await lock_and_look(conn, home.account_id, RULES)


async def _reverse(conn: AsyncConnection, view: AccountView, amount_minor: int) -> None:
    await post_money(conn, view, JournalKind.REVERSAL, amount_minor, rules=RULES, now_ms=now_ms())


async def _exhausted_once(site: Site, home: Home) -> None:
    """Wait until the cut-off is ordered; it and its alarm must be there once."""

    async def ordered() -> bool:
        return bool(await site.one("select count(*) from supply_orders where account_id = %s", home.account_id))

    await site.until(ordered, "the cut-off comes")
    await site.settled()
    assert await site.rows("select relay, state from supply_orders where account_id = %s", home.account_id) == [
        ("off", "pending")
    ]
    assert await site.rows("select level, arm from alarms where account_id = %s", home.account_id) == [("exhausted", 1)]
    assert await site.rows("select kind from notices where account_id = %s", home.account_id) == [("exhausted",)]
    assert await site.balance(home) <= 0


async def _stored(site: Site, serial: str, number: int = 1) -> None:
    """Wait until so many readings of a meter are committed."""

    async def stored() -> bool:
        return len(await site.registers(serial)) >= number

    await site.until(stored, f"{number} readings of {serial} are committed")


def test_reading_and_reversal_that_exhaust_only_together_still_cut(database_url: str, nats: EmbeddedNats) -> None:
    """The reversal looked before the reading was committed, the batch knew nothing of the reversal: both commit."""

    async def story(site: Site, home: Home) -> None:
        async with _locked(site, home) as (conn, view):
            await site.send(FIVE_KWH)
            assert await site.one("select count(*) from rechecks") == 0
            await _reverse(conn, view, -3_500)
            assert await site.one("select count(*) from alarms") == 0
        await _exhausted_once(site, home)

    _run(database_url, nats, story)


def test_crossing_from_the_feed_survives_a_session_that_ends_before_it_is_settled(
    database_url: str, nats: EmbeddedNats
) -> None:
    """What the change feed told is told again until it was settled, though the meter never reads again."""

    async def story(site: Site, home: Home) -> None:
        async with table_held(site, "alarms"):
            async with _locked(site, home) as (conn, view):
                await site.send(FIVE_KWH)
                await _reverse(conn, view, -3_500)
            await site.until(lambda: ingest_waits(site), "ingest settles the account")
            ended = await site.one(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                " where datname = current_database() and application_name like 'ingest-%%'"
            )
            assert ended == 2
        await _exhausted_once(site, home)

    _run(database_url, nats, story)


def test_exhausting_reading_does_not_wait_for_a_reversal(database_url: str, nats: EmbeddedNats) -> None:
    """The batch leaves a locked account to be settled right after; its readings are stored at once."""

    async def story(site: Site, home: Home) -> None:
        async with _locked(site, home) as (conn, view):
            await site.publish(TEN_KWH, OTHER)
            await _stored(site, "M1")
            await _stored(site, "M2")
            assert await site.one("select count(*) from rechecks") == 1
            # Others go on for as long as the account is held.
            await site.publish(reading("M2", T0 + 2 * HOUR_MS, REGISTER_WH + 1_100))
            await _stored(site, "M2", 2)
            assert await site.one("select count(*) from alarms") == 0
            await _reverse(conn, view, -1)
        await _exhausted_once(site, home)
        assert await site.one("select count(*) from rechecks") == 0

    _run(database_url, nats, story)


def test_reversal_waits_for_the_batch_that_looks_at_its_account(database_url: str, nats: EmbeddedNats) -> None:
    """A batch that has the account's lock decides first; the reversal then sees its reading and its alarm."""

    async def story(site: Site, home: Home) -> None:
        async with await connect(site.database_url, application="vending") as conn:
            async with table_held(site, "alarms"):
                await site.publish(TEN_KWH)
                await site.until(lambda: ingest_waits(site), "the batch stands before its commit")
                reversal = asyncio.create_task(post(conn, home, JournalKind.REVERSAL, -100))
                await site.until(lambda: _waits(site, "vending"), "the reversal waits for the account")
                assert await site.registers("M1") == {}
            await reversal
        await _exhausted_once(site, home)

    _run(database_url, nats, story)


async def _waits(site: Site, application: str) -> bool:
    return bool(
        await site.one(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = %s"
            " and wait_event_type = 'Lock'",
            application,
        )
    )


def test_vend_that_commits_before_the_exhausting_reading_is_looked_at_prevents_the_cut(
    database_url: str, nats: EmbeddedNats
) -> None:
    """The reading would exhaust the old balance; the vend holds the account and commits; nothing is cut or alarmed."""

    async def story(site: Site, home: Home) -> None:
        async with _locked(site, home) as (conn, view):
            await site.publish(TEN_KWH)
            await _stored(site, "M1")
            await post_money(conn, view, JournalKind.VEND, 50_000, rules=RULES, now_ms=now_ms())
        await site.settled()
        assert await site.one("select count(*) from supply_orders") == 0
        assert await site.one("select count(*) from alarms") == 0
        assert await site.rows("select kind from notices") == [("recharged",)]
        assert await site.balance(home) > 0

    _run(database_url, nats, story)


def test_vend_that_waits_for_a_cut_off_restores_supply(database_url: str, nats: EmbeddedNats) -> None:
    """The cut-off commits first; the vend, which waited, sees it and orders supply on under the next epoch."""

    async def story(site: Site, home: Home) -> None:
        async with await connect(site.database_url, application="vending") as conn:
            async with table_held(site, "alarms"):
                await site.publish(TEN_KWH)
                await site.until(lambda: ingest_waits(site), "the batch stands before its commit")
                vend = asyncio.create_task(post(conn, home, JournalKind.VEND, 50_000))
                await site.until(lambda: _waits(site, "vending"), "the vend waits for the account")
            await vend
        await site.settled()
        assert await site.rows("select relay, state, epoch from supply_orders order by id") == [
            ("off", "superseded", 1),
            ("on", "pending", 2),
        ]
        assert await site.rows("select kind from notices order by id") == [
            ("exhausted",),
            ("recharged",),
            ("restored",),
        ]
        assert await site.one("select desired from accounts where id = %s", home.account_id) == "on"

    _run(database_url, nats, story)


def test_late_reading_of_a_locked_account_is_charged_right_after(database_url: str, nats: EmbeddedNats) -> None:
    """A late reading moves a closed month's edge; the account was locked, so the difference is booked afterwards."""
    before, after = T0 + 25 * DAY_MS, T0 + 40 * DAY_MS
    curve = [
        Point(at_ms=T0, energy_wh=0),
        Point(at_ms=before, energy_wh=50_000),
        Point(at_ms=T0 + 31 * DAY_MS, energy_wh=200_000),
        Point(at_ms=after, energy_wh=250_000),
    ]

    async def story(site: Site, home: Home) -> None:
        await site.send(*(reading("M1", p.at_ms, REGISTER_WH + p.energy_wh) for p in (curve[1], curve[3])))
        await close_day(site.conn, CALENDAR.day_of(after) - timedelta(days=1), rules=RULES)
        await site.settled()
        async with _locked(site, home):
            await site.publish(reading("M1", curve[2].at_ms, REGISTER_WH + curve[2].energy_wh))
            await _stored(site, "M1", 3)
            assert await site.one("select late_since is not null from rechecks") is True
        await site.settled()
        await _billed_as(site, home, curve)

    _run(database_url, nats, story)


async def _billed_as(site: Site, home: Home, curve: list[Point]) -> None:
    """Compare an account's bills with a rating of its whole curve."""
    view = await site.view(home)
    last_day = max(CALENDAR.day_of(curve[-1].at_ms), view.checkpoint.through)
    expected = bill_by_month(view.terms, curve, last_day=last_day, calendar=CALENDAR)
    found = (await site.snapshot([home])).bills
    for period, (energy_wh, lines) in expected.items():
        billed_wh, billed = found[(home.serial, period)]
        assert (billed_wh, {n: a for n, a in billed.items() if a}) == (energy_wh, {n: a for n, a in lines.items() if a})
    assert len(found) == len(expected)


JULY_5 = date(2025, 7, 5)
SILENT_FROM_MS, HEARD_AT_MS = T0 + 24 * DAY_MS, T0 + 36 * DAY_MS
SILENT_CURVE = [
    Point(at_ms=T0, energy_wh=0),
    Point(at_ms=SILENT_FROM_MS, energy_wh=240_000),
    Point(at_ms=HEARD_AT_MS, energy_wh=420_000),
]
HEARD = reading("M1", HEARD_AT_MS, REGISTER_WH + 420_000)


async def _fall_silent(site: Site) -> None:
    await site.send(reading("M1", SILENT_FROM_MS, REGISTER_WH + 240_000))


def test_meter_silent_over_a_months_end_is_charged_in_the_right_months(database_url: str, nats: EmbeddedNats) -> None:
    """The month is closed unread; the next reading tells what was used before its end, and it is booked there."""

    async def story(site: Site, home: Home) -> None:
        await _fall_silent(site)
        await close_day(site.conn, JULY_5, rules=RULES)
        assert await site.one("select count(*) from journals where edge_quality = 'unread'") > 0
        await site.send(HEARD)
        await _billed_as(site, home, SILENT_CURVE)
        found = await site.rows("select period, energy_wh > 0 from journals where kind = 'late_usage' order by period")
        assert found == [(date(2025, 6, 1), True)]
        await close_day(site.conn, JULY_5 + timedelta(days=1), rules=RULES)
        await site.send(HEARD, reading("M1", HEARD_AT_MS + 2 * DAY_MS, REGISTER_WH + 430_000))
        later = Point(at_ms=HEARD_AT_MS + 2 * DAY_MS, energy_wh=430_000)
        await _billed_as(site, home, [*SILENT_CURVE, later])

    _run(database_url, nats, story)


def test_days_closed_while_the_reading_was_on_its_way_are_corrected(database_url: str, nats: EmbeddedNats) -> None:
    """The batch planned before the days were closed and commits after; no later reading is needed to put it right."""

    async def story(site: Site, home: Home) -> None:
        await _fall_silent(site)
        async with table_held(site, "batches"):
            await site.publish(HEARD)
            await site.until(lambda: ingest_waits(site), "the batch stands before its commit")
            await close_day(site.conn, JULY_5, rules=RULES)
        await site.settled()

        async def booked() -> bool:
            return bool(await site.one("select count(*) from journals where kind = 'late_usage'"))

        await site.until(booked, "the energy found later is booked")
        await _billed_as(site, home, SILENT_CURVE)

    _run(database_url, nats, story)


# Two processes -------------------------------------------------------------------------------------------------------

DAY_OF_READINGS = block("M1", T0 + HOUR_MS, [REGISTER_WH + 100 * hour for hour in range(1, 25)])
BAD = reading("M1", T0 + 30 * HOUR_MS, 1)


async def _owner(site: Site) -> tuple[str, int]:
    ((owner, epoch),) = await site.rows("select owner, epoch from shard_leases where role = 'ingest' and shard = 11")
    return owner or "", epoch


async def _owns(site: Site, system: System) -> bool:
    owner, _ = await _owner(site)
    return owner.startswith(f"ingest-{system.pid('ingest')}-")


def _events(folder: Path) -> list[str]:
    lines = (folder / "ingest.log").read_text().splitlines()
    assert all(line.startswith("{") for line in lines), "an ingest process writes no traceback"
    return [json.loads(line)["event"] for line in lines]


@pytest.mark.parametrize("table", ["readings", "batches"])
def test_paused_owner_is_fenced_and_nothing_is_lost_or_twice(
    database_url: str, nats: EmbeddedNats, data_dir: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """An owner is stopped inside its batch, another takes its shards and stores it; the old one goes on and may not."""
    monkeypatch.setenv("PREPAID_LEASE_S", "3")
    monkeypatch.setenv("PREPAID_ACK_WAIT_S", "1")

    async def story() -> None:
        async with open_site(database_url, nats) as site:
            home = await site.add_home()
            with (
                child_processes(site.parts, data_dir / "old", ["ingest"]) as old,
                child_processes(site.parts, data_dir / "new", []) as new,
            ):
                await site.until(lambda: _owns(site, old), "the first owner is there")
                _, epoch = await _owner(site)
                async with table_held(site, table):
                    await site.publish(DAY_OF_READINGS, BAD)
                    await site.until(lambda: ingest_waits(site), "the batch is under way")
                    os.kill(old.pid("ingest"), signal.SIGSTOP)
                new.start("ingest")
                await site.until(lambda: _owns(site, new), "another takes the shards")
                await site.publish(reading("M1", T0 + 40 * HOUR_MS, REGISTER_WH + 3_000))
                await site.settled()
                os.kill(old.pid("ingest"), signal.SIGCONT)

                async def fenced() -> bool:
                    return "lease_lost" in _events(data_dir / "old")

                await site.until(fenced, "the old owner notices that it is none")
                await site.publish(reading("M1", T0 + 41 * HOUR_MS, REGISTER_WH + 3_100))
                await site.settled()
                assert await _owner(site) == ((await _owner(site))[0], epoch + 1)
                assert await _owns(site, new)
                assert len(await site.registers("M1")) == 26
                assert await site.rows("select reason, times from quarantine") == [("register_fell", 1)]
                totals = await site.totals()
                assert (totals.stored, totals.duplicate, totals.quarantined) == (26, 0, 1)
                assert await site.one("select count(*) from batches where epoch <> %s", epoch + 1) == 0
                charged = (await site.snapshot([home])).bills[("M1", CALENDAR.day_of(T0))]
                assert charged[0] == 3_100
                # The old one is alive and well: it takes over when the new one stops.
                new.stop()
                await site.until(lambda: _owns(site, old), "the old owner takes the shards back")
                await site.send(reading("M1", T0 + 42 * HOUR_MS, REGISTER_WH + 3_200))
                assert len(await site.registers("M1")) == 27
            await _audited(site)

    asyncio.run(story())


def test_second_ingest_waits_until_the_first_gives_its_shards_back(
    database_url: str, nats: EmbeddedNats, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes one owns a shard; a clean stop hands its shards over without waiting for the lease."""
    monkeypatch.setenv("PREPAID_LEASE_S", "60")
    monkeypatch.setenv("PREPAID_ACK_WAIT_S", "1")

    def messages(first: int) -> list[Message]:
        return [reading("M1", T0 + hour * HOUR_MS, REGISTER_WH + 10 * hour) for hour in range(first, first + 20)]

    async def story() -> None:
        async with open_site(database_url, nats) as site:
            await site.add_home()
            with (
                child_processes(site.parts, data_dir / "first", ["ingest"]) as first,
                child_processes(site.parts, data_dir / "second", []) as second,
            ):
                await site.until(lambda: _owns(site, first), "the first owner is there")
                second.start("ingest")
                await site.publish(*messages(1))
                await site.settled()
                assert await _owns(site, first)
                await site.publish(*messages(21))
                first.stop()
                await site.until(lambda: _owns(site, second), "the second takes over")
                await site.publish(*messages(41))
                await site.settled()
                assert sorted(await site.registers("M1")) == [T0 + hour * HOUR_MS for hour in range(1, 61)]
                assert await site.reasons() == []
                assert _events(data_dir / "first")[-1] == "stopped"

    asyncio.run(story())
