"""Limits on cut-offs by area, holds and their release, what an operator sees, and how little waiting orders cost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from psycopg import AsyncConnection

import db.migrate
from billing.journals import JournalKind
from db.migrate import migrate, migrations
from db.named import sql
from db.order_control import AreaNotHeld, read_open_orders, read_status, release_area
from db.pool import APPLICATION_ROLE, connect
from headend.dispatch_plan import CutOffLimits, Hours, Patience, PutOff, Waits, plan_sends
from headend.edges.command_ports import Outgoing
from headend.edges.due_orders import Due, claim, find_due, put_off
from prepaid.embedded import EmbeddedNats
from protocols.native import Relay, decode_command
from protocols.topics import SHARDS
from tests.commands import run_command, settings_for
from tests.support import Home, Site, open_site, running_dispatch

pytestmark = pytest.mark.db

ALL_SHARDS = range(SHARDS)
TODAY = date(2026, 1, 1)
WIDE = CutOffLimits(per_minute_max=1_000, per_hour_max=10_000)

# Homes as rows, without money: what the dispatcher reads of them. {n} homes in {areas} areas, each with one open order.
SEED = """
insert into consumers (name) values ('Household');
insert into meters (serial, shard, rated_w, register_end_wh)
select 'S' || g, g % 32, 15000, 1000000000 from generate_series(1, {n}) g;
insert into meter_state (meter_id, order_epoch, relay) select id, 1, 'on' from meters;
insert into usage_points (code, area) select 'U' || g, 'area ' || g % {areas} from generate_series(1, {n}) g;
insert into accounts (number, consumer_id, usage_point_id, shard, opened_on, through, anchor_at, desired)
select 'N' || u.id, 1, u.id, u.id % 32, '2025-06-01', '2025-06-01', '2025-06-01', 'off' from usage_points u;
insert into assignments (account_id, from_day, tariff_id, category, load_w)
select id, '2025-06-01', 'punjab-ds-2026-27', 'DS', 3000 from accounts;
insert into installations (usage_point_id, meter_id, role, from_at)
select id, id, 'billing', '2025-06-01' from usage_points;
insert into supply_orders (meter_id, account_id, shard, kind, epoch, relay, balance_minor, cause)
select a.id, a.id, a.shard, 'supply', 1, 'off', -5, 'reading' from accounts a order by a.id"""
KNOWN_AREAS = b"insert into cut_off_areas (area) select distinct area from usage_points"


@asynccontextmanager
async def _waiting(database_url: str, number: int, *, areas: int = 1) -> AsyncIterator[AsyncConnection]:
    """A database with so many cut-offs due, in some areas; a connection with the rights of a process."""
    async with await connect(database_url, application="owner") as owner:
        await migrate(owner)
        for statement in SEED.format(n=number, areas=areas).split(";\n"):
            await owner.execute(statement.encode())
        await owner.execute(KNOWN_AREAS)
    async with await connect(database_url, application="process", role=APPLICATION_ROLE) as conn:
        yield conn


async def _round(
    conn: AsyncConnection, limits: CutOffLimits, *, shards: Sequence[int] = ALL_SHARDS
) -> tuple[Due, list[int]]:
    """Find, decide and claim as a dispatcher does, in the caller's transaction; return what was found and claimed."""
    due = await find_due(conn, list(shards), limits, TODAY)
    plan = plan_sends(
        due.orders,
        transports={"mqtt"},
        hours_of=lambda category: Hours(allowed=True),
        patience=Patience(grace_ms=0, again_ms=0),
        areas=due.areas,
        limits=limits,
    )
    return due, [order.id for order in await claim(conn, [order.id for order in plan.send], limits)]


async def _one(conn: AsyncConnection, query: str) -> Any:  # A column of any type.
    row = await (await conn.execute(query.encode())).fetchone()
    return row and row[0]


def test_cut_offs_of_an_area_keep_to_the_limit_whatever_waits(database_url: str) -> None:
    """Of two areas each gets its places a minute, first come first sent; the next round finds no place."""

    async def story() -> None:
        limits = CutOffLimits(per_minute_max=3, per_hour_max=100)
        async with _waiting(database_url, 20, areas=2) as conn:
            async with conn.transaction():
                _, claimed = await _round(conn, limits)
            assert sorted(claimed) == [1, 2, 3, 4, 5, 6]
            async with conn.transaction():
                due, claimed = await _round(conn, limits)
            assert claimed == []
            assert {area.minute_sent for area in due.areas.values()} == {3}
            # Tries again count as well: each is a command that may cut.
            await conn.execute(b"update supply_orders set next_try_at = '-infinity' where state = 'sent'")
            async with conn.transaction():
                assert (await _round(conn, limits))[1] == []

    asyncio.run(story())


def test_two_dispatchers_share_one_limit(database_url: str) -> None:
    """While one counts in an area the other leaves it alone; then it finds the places taken."""

    async def story() -> None:
        limits = CutOffLimits(per_minute_max=3, per_hour_max=100)
        async with (
            _waiting(database_url, 64) as first,
            await connect(database_url, application="other", role=APPLICATION_ROLE) as second,
        ):
            async with first.transaction():
                _, claimed = await _round(first, limits, shards=range(16))
                async with second.transaction():
                    due, others = await _round(second, limits, shards=range(16, 32))
                assert (len(claimed), others, dict(due.areas)) == (3, [], {})
            async with second.transaction():
                assert (await _round(second, limits, shards=range(16, 32)))[1] == []

    asyncio.run(story())


def test_counts_under_a_clock_that_was_set_back_count_as_of_now(database_url: str) -> None:
    """The clock went back an hour: what had left just before still takes its places, and only for a minute."""

    async def story() -> None:
        limits = CutOffLimits(per_minute_max=3, per_hour_max=100)
        async with _waiting(database_url, 20) as conn:
            async with conn.transaction():
                await _round(conn, limits)
            await conn.execute(b"update cut_off_counts set at = at + interval '1 hour'")
            async with conn.transaction():
                _, claimed = await _round(conn, limits)
            assert claimed == []
            assert await _one(conn, "select count(*) from cut_off_counts where at > clock_timestamp()") == 0
            await conn.execute(b"update cut_off_counts set at = at - interval '71 seconds'")
            async with conn.transaction():
                assert len((await _round(conn, limits))[1]) == 3

    asyncio.run(story())


def test_protected_cut_offs_leave_the_lane(database_url: str) -> None:
    """Cut-offs that wait for their hours are not found again before, and hold back nothing of their area."""

    async def story() -> None:
        limits = CutOffLimits(per_minute_max=5, per_hour_max=100)
        async with _waiting(database_url, 20) as conn:
            async with conn.transaction():
                await put_off(conn, [PutOff(id=number, wait_ms=60_000, why=Waits.HOURS) for number in range(1, 16)])
            async with conn.transaction():
                due, claimed = await _round(conn, limits)
            assert claimed == [16, 17, 18, 19, 20]
            assert len(due.orders) == 5
            counts = {(each.state, each.waits_for): each.count for each in (await read_open_orders(conn)).counts}
            assert counts == {("pending", "hours"): 15, ("sent", None): 5}

    asyncio.run(story())


def test_a_restore_passes_twenty_thousand_waiting_cut_offs(database_url: str) -> None:
    """Full areas cost a round a bounded number of rows: the restore leaves in it, and no table is read through."""

    async def story() -> None:
        limits = CutOffLimits(per_minute_max=1, per_hour_max=100)
        async with _waiting(database_url, 20_000, areas=40) as conn:
            async with conn.transaction():
                assert len((await _round(conn, limits))[1]) == 40
            await conn.execute(
                b"update supply_orders set relay = 'on', next_try_at = '-infinity' where id = 19000 returning id"
            )
            began_s = time.monotonic()
            async with conn.transaction():
                due, claimed = await _round(conn, limits)
            took_s = time.monotonic() - began_s
            assert claimed == [19_000]
            # A place more than every area has, and the restore.
            assert len(due.orders) == 41
            assert took_s < 1
            lane = {"shards": list(ALL_SHARDS), "of_shard": 64, "most": 500, "areas_most": 200}
            areas = {"areas": ["area 1"], "numbers": [1], "area": "area 1"}
            for query in ("due_restores", "due_messages", "waiting_areas", "due_cut_offs", "end_capped"):
                cursor = await conn.execute(b"explain " + sql(query), lane | areas)
                plan = "\n".join(row[0] for row in await cursor.fetchall())
                assert "Seq Scan on supply_orders" not in plan, f"{query}:\n{plan}"

    asyncio.run(story())


def test_migration_brings_open_cut_offs_under_their_areas(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut-off that was open before there were limits has its area afterwards, and leaves; so has every new one."""
    before = [migration for migration in migrations() if migration.name < "0008"]

    async def story() -> None:
        async with await connect(empty_database_url, application="owner") as conn:
            with monkeypatch.context() as patched:
                patched.setattr(db.migrate, "migrations", lambda: before)
                await migrate(conn)
            for statement in SEED.format(n=4, areas=2).split(";\n"):
                await conn.execute(statement.encode())
            await conn.execute(b"update supply_orders set state = 'confirmed' where id = 4")
            assert "0008_order_control.sql" in await migrate(conn)
            await conn.execute(
                b"insert into supply_orders (meter_id, account_id, shard, kind, epoch, relay, balance_minor, cause)"
                b" values (4, 4, 4, 'supply', 2, 'off', -5, 'reading')"
            )
            rows = await (await conn.execute(b"select id, area from supply_orders order by id")).fetchall()
            assert rows == [(1, "area 1"), (2, "area 0"), (3, "area 1"), (4, ""), (5, "area 0")]
            await conn.execute(KNOWN_AREAS)
            async with conn.transaction():
                assert (await _round(conn, WIDE))[1] == [1, 2, 3, 5]

    asyncio.run(story())


# With a dispatcher ----------------------------------------------------------------------------------------------------


class Recorder:
    """A transport that notes when which command left."""

    def __init__(self) -> None:
        self.left: list[tuple[float, str, Relay | None]] = []

    async def send(self, commands: Sequence[Outgoing]) -> None:
        """Note the commands."""
        now_s = time.monotonic()
        self.left += [(now_s, command.serial, decode_command(command.payload).relay) for command in commands]

    def cut(self) -> list[str]:
        """Return the meters that were sent a cut-off."""
        return [serial for _, serial, relay in self.left if relay is Relay.OFF]


async def _dark_homes(site: Site, number: int, *, area: str = "north") -> list[Home]:
    """Open accounts without any credit: each is to be cut at once. Their meters are on a transport of the test's."""
    homes = []
    for place in range(number):
        home = await site.add_home(f"{area[0].upper()}{place}", credit_minor=0, area=area)
        await site.rows("update meters set transport = 'recorded' where id = %s returning id", home.meter_id)
        homes.append(home)
    return homes


async def _until_cut(site: Site, recorder: Recorder, number: int) -> None:
    async def cut() -> bool:
        return len(set(recorder.cut())) >= number

    await site.until(cut, f"{number} meters are sent a cut-off")


async def _alarms(site: Site) -> list[tuple[Any, ...]]:
    return await site.rows("select area, kind, sent, most, ended_at is null from supply_alarms order by id")


@pytest.mark.broker
def test_capped_area_alarms_until_its_cut_offs_have_left(database_url: str, nats: EmbeddedNats) -> None:
    """Two a minute, of six seconds here: never more in any of these, an alarm meanwhile, which ends by itself."""
    recorder = Recorder()
    limits = CutOffLimits(per_minute_max=2, per_hour_max=100, minute_s=6)

    async def told() -> None:
        async with open_site(database_url, nats) as site:
            await _dark_homes(site, 4)
            async with running_dispatch(site, limits=limits, ports={"recorded": recorder}):
                await _until_cut(site, recorder, 2)
                await site.until(lambda: _alarms(site), "the cap alarms")
                assert await _alarms(site) == [("north", "capped", 2, 2, True)]

                async def confirmed() -> bool:
                    return bool(
                        await site.rows(
                            "update supply_orders set state = 'confirmed' where published_at is not null"
                            " and state = 'sent' returning id"
                        )
                    )

                await site.until(confirmed, "the first are confirmed")
                await _until_cut(site, recorder, 4)
                times = [at_s for at_s, _, _ in recorder.left]
                assert all(later - earlier > 6 for earlier, later in zip(times, times[2:], strict=False))
                await site.until(confirmed, "the others are confirmed")

                async def ended() -> bool:
                    return (await _alarms(site))[-1][-1] is False

                await site.until(ended, "the alarm ends")

    asyncio.run(told())


@pytest.mark.broker
def test_hour_limit_holds_an_area_until_an_operator_releases_it(
    database_url: str, nats: EmbeddedNats, tmp_path: Path
) -> None:
    """A town is not blacked out: further cut-offs wait, restores do not, other areas do not; who released is kept."""
    recorder = Recorder()
    limits = CutOffLimits(per_minute_max=50, per_hour_max=3)

    async def told() -> None:
        async with open_site(database_url, nats) as site:
            homes = await _dark_homes(site, 5)
            await _dark_homes(site, 2, area="south")
            async with running_dispatch(site, limits=limits, ports={"recorded": recorder}) as metrics:
                await _until_cut(site, recorder, 5)
                await site.until(lambda: _alarms(site), "the hour's limit alarms")
                assert await _alarms(site) == [("north", "held", 3, 3, True)]
                assert sum(serial.startswith("N") for serial in recorder.cut()) == 3
                waiting = next(home for home in homes if home.serial not in recorder.cut())
                await site.post(waiting, JournalKind.VEND, 100_000)

                async def restored() -> bool:
                    return (waiting.serial, Relay.ON) in [(serial, relay) for _, serial, relay in recorder.left]

                await site.until(restored, "a restore passes the hold")
                await metrics.count_open(site.conn)
                shown = generate_latest(metrics.registry).decode()
                assert 'prepaid_supply_limited_areas{limit="held"} 1.0' in shown
                assert 'prepaid_dispatch_commands_total{kind="supply",relay="off"}' in shown
                status = await read_status(site.conn, hours=24)
                assert [(each.area, each.kind, each.waiting) for each in status.areas] == [("north", "held", 1)]
                with pytest.raises(AreaNotHeld, match="expected one whose cut-offs are on hold, got 'south'"):
                    await release_area(site.conn, "south", by="A. Kaur", reason="by mistake")
                assert await release_area(site.conn, "north", by="A. Kaur", reason="a real month end") == 1
                await _until_cut(site, recorder, 6)
                (past,) = (await read_status(site.conn, hours=24)).ended
                assert (past.kind, past.ended_by, past.reason) == ("held", "A. Kaur", "a real month end")

    asyncio.run(told())


@pytest.mark.broker
def test_running_dispatcher_notices_that_the_clock_was_set_back(database_url: str, nats: EmbeddedNats) -> None:
    """Against a clock that is never set, the database's fell behind by an hour: what it had scheduled is due now."""
    recorder = Recorder()
    ahead_s = 0.0

    async def told() -> None:
        nonlocal ahead_s
        async with open_site(database_url, nats) as site:
            await _dark_homes(site, 1)
            async with running_dispatch(
                site, ports={"recorded": recorder}, steady_s=lambda: time.monotonic() + ahead_s
            ):
                await _until_cut(site, recorder, 1)
                await site.rows(
                    "update supply_orders set looked_at = looked_at + interval '1 hour',"
                    " next_try_at = next_try_at + interval '1 hour' returning id"
                )
                ahead_s = 3_600.0

                async def again() -> bool:
                    return len(recorder.cut()) == 2

                await site.until(again, "the order is tried again")

    asyncio.run(told())


# The commands ---------------------------------------------------------------------------------------------------------


def _prepaid(database_url: str, folder: Path, *arguments: str, status: int = 0) -> str:
    """Give one command as a process; return what it prints."""
    settings = settings_for(database_url, folder)
    ended = run_command("supply", *arguments, environment=settings, status=status)
    return ended.stdout if not status else ended.stderr


def test_supply_commands_show_what_waits_and_release_it(database_url: str, tmp_path: Path) -> None:
    """`status`, `held` and `orders` tell of an area on hold; `release` ends it once, and refuses the second time."""

    async def prepare() -> None:
        async with _waiting(database_url, 6, areas=2) as conn:
            async with conn.transaction():
                await _round(conn, CutOffLimits(per_minute_max=1, per_hour_max=1))
            await conn.execute(b"insert into supply_alarms (area, kind, sent, most) values ('area 1', 'held', 1, 1)")
            await conn.execute(b"update supply_orders set state = 'held' where id = 6")
            await conn.execute(b"update supply_orders set next_try_at = now() + interval '1 hour' where state = 'sent'")

    asyncio.run(prepare())
    shown = json.loads(_prepaid(database_url, tmp_path, "status", "--json"))
    assert shown["desired_and_reported"] == {"off": {"on": 6}}
    assert shown["differing"] == 6
    assert [(area["area"], area["kind"], area["waiting"]) for area in shown["areas"]] == [("area 1", "held", 2)]
    assert {(each["state"], each["count"]) for each in shown["orders"]} == {("pending", 3), ("sent", 2), ("held", 1)}
    assert [each["serial"] for each in shown["oldest_unconfirmed"]] == ["S1", "S2"]
    assert [(make["sent"], make["open"]) for make in shown["makes"]] == [(2, 2)]
    held = json.loads(_prepaid(database_url, tmp_path, "held", "--json"))
    assert [(order["serial"], order["waits_for"]) for order in held["orders"]] == [("S6", "reading")]
    sent = json.loads(_prepaid(database_url, tmp_path, "orders", "--state", "sent", "--json"))
    assert [order["serial"] for order in sent["orders"]] == ["S2", "S1"]
    text = _prepaid(database_url, tmp_path, "status")
    assert "area 1: held since" in text
    release = ("release", "--area", "area 1", "--by", "A. Kaur", "--reason", "a real month end")
    assert _prepaid(database_url, tmp_path, *release) == "area area 1: 2 cut-offs may go\n"
    assert "area_not_held" in _prepaid(database_url, tmp_path, *release, status=2)
    assert "supply_command_refused" in _prepaid(database_url, tmp_path, *release[:-1], " ", status=2)
