"""Batches of one owner on two connections: each may be begun before the one before it is committed, and ends after."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from psycopg import AsyncConnection, OperationalError
from psycopg.errors import UniqueViolation

from db.audit import run_checks
from db.leases import Lease, Owner, take_leases
from db.pool import connect
from db.readings import ensure_partitions
from headend.batch_plan import plan_batch
from headend.edges.batch_writer import BatchWriter
from headend.edges.cache import StateCache
from headend.edges.commit import Batch, encode_plan, reconsider, settle_account
from headend.pipeline import receive
from prepaid.embedded import EmbeddedNats
from protocols.topics import SHARDS, shard_of
from tests.support import (
    CALENDAR,
    HOUR_MS,
    REGISTER_WH,
    RULES,
    T0,
    Home,
    Message,
    Site,
    now_ms,
    open_site,
    reading,
    table_held,
)

pytestmark = [pytest.mark.db, pytest.mark.broker]

OWNER = Owner(role="ingest", name="ingest-test", lease_s=60.0)
# 14 kWh in an hour, the most a meter of 15 kW passes, use it up.
CREDIT_MINOR, CUTTING_WH = 6_000, 14_000
HOMES = 12


@dataclass(slots=True, kw_only=True)
class Shop:
    """An owner of all shards that writes what it is given, each batch planned as if the one before were committed."""

    site: Site
    conns: list[AsyncConnection]
    leases: dict[int, Lease]
    writer: BatchWriter
    cache: StateCache = field(default_factory=lambda: StateCache(CALENDAR))
    ahead: Batch | None = None

    async def plan(self, messages: Sequence[Message]) -> Batch:
        """Plan messages by what is known, looking up the meters that are not."""
        await self.cache.load(self.conns[0], _serials(messages))
        return self._planned(messages)

    def adopting(self, batch: Batch, following: Sequence[Message] | None) -> Callable[[], None]:
        """Return what plans the next batch while this one is written, if all of its meters are known."""

        def meanwhile() -> None:
            if following and not batch.made.stale_serials and _serials(following) <= self.cache.table.place_of.keys():
                self.cache.adopt(batch.made)
                self.ahead = self._planned(following)

        return meanwhile

    async def write_all(self, batches: Sequence[Sequence[Message]]) -> int:
        """Write batches in turn; return how many were planned ahead."""
        planned_ahead = 0
        for number, messages in enumerate(batches):
            batch = self.ahead or await self._settled_plan(messages)
            planned_ahead += self.ahead is not None
            self.ahead = None
            following = batches[number + 1] if number + 1 < len(batches) else None
            await self.writer.write(batch, self.leases, meanwhile=self.adopting(batch, following))
            if self.ahead is None:
                await self.writer.settle()
                self.cache.adopt(batch.made)
            else:
                reconsider(self.ahead, batch.amended)
            self.cache.amend(batch.amended)
        await self.writer.settle()
        return planned_ahead

    def _planned(self, messages: Sequence[Message]) -> Batch:
        received = [receive(shard_of(topic.split("/")[1]), topic, payload, now_ms()) for topic, payload in messages]
        return encode_plan(plan_batch(received, self.cache.table, CALENDAR))

    async def _settled_plan(self, messages: Sequence[Message]) -> Batch:
        await self.writer.settle()
        return await self.plan(messages)


def _serials(messages: Sequence[Message]) -> set[str]:
    return {topic.split("/")[1] for topic, _ in messages}


@asynccontextmanager
async def open_shop(database_url: str, nats: EmbeddedNats) -> AsyncIterator[Shop]:
    async with open_site(database_url, nats) as site, AsyncExitStack() as stack:
        await ensure_partitions(site.conn, {CALENDAR.day_of(T0 + hour * HOUR_MS) for hour in range(-24, 72, 12)})
        conns = [await stack.enter_async_context(await connect(database_url, application=OWNER.name)) for _ in range(2)]
        leases = {lease.shard: lease for lease in await take_leases(conns[0], OWNER, range(SHARDS))}
        assert len(leases) == SHARDS
        yield Shop(site=site, conns=conns, leases=leases, writer=BatchWriter(conns, OWNER, RULES))


def tell(database_url: str, nats: EmbeddedNats, story: Callable[[Shop], Awaitable[None]]) -> None:
    async def run() -> None:
        async with open_shop(database_url, nats) as shop:
            await story(shop)

    asyncio.run(run())


def sweep(homes: Sequence[Home], hour: int, *, used_wh: int = 300) -> list[Message]:
    """Make a reading of each home at an hour."""
    return [reading(home.serial, T0 + hour * HOUR_MS, REGISTER_WH + hour * used_wh) for home in homes]


def cutting_reading(home: Home) -> Message:
    """Make a reading of the second hour that exhausts the credit."""
    return reading(home.serial, T0 + 2 * HOUR_MS, REGISTER_WH + CUTTING_WH)


async def open_homes(shop: Shop) -> list[Home]:
    return [await shop.site.add_home(f"W{number}", credit_minor=CREDIT_MINOR) for number in range(HOMES)]


async def _write_whole(shop: Shop, batch: Batch) -> None:
    await shop.writer.write(batch, shop.leases)
    await shop.writer.settle()


async def stored(shop: Shop) -> int:
    return int(await shop.site.one("select count(*) from readings"))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_batches_in_turn_leave_what_their_readings_say_in_any_order(
    database_url: str, nats: EmbeddedNats, seed: int
) -> None:
    """Random batches with crossings, repeated and late readings: each stored once, one alarm each, the audit clean."""

    async def story(shop: Shop) -> None:
        rng, homes = random.Random(seed), await open_homes(shop)
        sent = [message for hour in range(1, 30) for message in sweep(homes, hour, used_wh=1_400)]
        for _ in range(8):
            # A few come late, a few again.
            moved = sent.pop(rng.randrange(len(sent) // 2))
            sent.insert(rng.randrange(len(sent) // 2, len(sent)), moved)
            sent.append(rng.choice(sent))
        batches, first = [], 0
        while first < len(sent):
            size = rng.choice((3, HOMES, 2 * HOMES))
            batches.append(sent[first : first + size])
            first += size
        assert await shop.write_all(batches) > 0
        for account_id in await shop.cache.refresh(shop.conns[0], shop.leases):
            await settle_account(shop.conns[0], account_id, rules=RULES)
        for (account_id,) in await shop.site.rows("select account_id from rechecks"):
            await settle_account(shop.conns[0], account_id, rules=RULES)
        assert await stored(shop) == len(homes) * 29
        assert (await shop.site.totals()).stored == len(homes) * 29
        assert await shop.site.one("select count(*) from alarms where level = 'exhausted'") == len(homes)
        assert await shop.site.one("select count(*) from supply_orders where relay = 'off'") == len(homes)
        report = await run_checks(shop.site.conn, CALENDAR)
        assert report.clean, report.lines()

    tell(database_url, nats, story)


def test_next_batch_is_written_while_the_one_before_waits_and_committed_after_it(
    database_url: str, nats: EmbeddedNats
) -> None:
    """A batch that cannot end holds up the commit of the next one, not its beginning."""

    async def story(shop: Shop) -> None:
        homes = await open_homes(shop)
        await shop.write_all([sweep(homes, 1)])
        cutting = await shop.plan([cutting_reading(homes[0])])
        async with table_held(shop.site, "supply_orders"):
            await shop.writer.write(cutting, shop.leases, meanwhile=shop.adopting(cutting, sweep(homes[1:], 2)))
            following = shop.ahead
            assert following is not None
            second = asyncio.create_task(shop.writer.write(following, shop.leases))

            async def copied() -> bool:
                # Both have sent their readings: one waits for the table, the other for its turn.
                return bool(await shop.site.one(
                    "select count(*) = 1 from pg_stat_activity where application_name = %s"
                    " and datname = current_database() and state = 'idle in transaction' and query ilike 'copy%%'",
                    OWNER.name,
                ))  # fmt: skip

            await shop.site.until(copied, "the next batch is copied")
            assert await stored(shop) == HOMES
        await second
        await shop.writer.settle()
        assert await stored(shop) == 2 * HOMES

    tell(database_url, nats, story)


def test_failed_batch_takes_the_next_one_along(database_url: str, nats: EmbeddedNats) -> None:
    """Nothing of a batch that was planned by one that failed is stored; both can be written anew."""

    async def story(shop: Shop) -> None:
        homes = await open_homes(shop)
        await shop.write_all([sweep(homes, 1)])
        cutting = await shop.plan([cutting_reading(homes[0])])
        async with table_held(shop.site, "supply_orders"):
            await shop.writer.write(cutting, shop.leases, meanwhile=shop.adopting(cutting, sweep(homes, 3)))
            following = shop.ahead
            assert following is not None
            await shop.writer.write(following, shop.leases)

            async def ended() -> int:
                return int(await shop.site.one(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = %s"
                    " and datname = current_database() and wait_event_type = 'Lock'",
                    OWNER.name,
                ))  # fmt: skip

            assert await shop.site.until(ended, "the first batch waits for the table and is ended") == 1
            with pytest.raises(OperationalError):
                await shop.writer.settle()
        assert await stored(shop) == HOMES
        shop.conns[:] = [await connect(database_url, application=OWNER.name) for _ in range(2)]
        shop.writer, shop.ahead = BatchWriter(shop.conns, OWNER, RULES), None
        shop.cache.clear()
        await shop.write_all([[cutting_reading(homes[0])], sweep(homes[1:], 3)])
        assert await stored(shop) == 2 * HOMES
        for conn in shop.conns:
            await conn.close()

    tell(database_url, nats, story)


def test_reading_that_is_there_already_fails_its_batch_alone(database_url: str, nats: EmbeddedNats) -> None:
    """The batch before a conflict is committed, the one with it is not."""

    async def story(shop: Shop) -> None:
        homes = await open_homes(shop)
        known = await shop.plan(sweep(homes[1:], 1))
        await shop.writer.write(known, shop.leases)
        await shop.writer.settle()
        # Planned before the other was stored.
        first = await shop.plan(sweep(homes[:1], 1))
        again = encode_plan(known.made)
        await shop.writer.write(first, shop.leases)
        with pytest.raises(UniqueViolation):
            await _write_whole(shop, again)
        assert await stored(shop) == HOMES

    tell(database_url, nats, story)
