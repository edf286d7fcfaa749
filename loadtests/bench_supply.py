"""`bench supply`: how soon a meter is cut off after its credit ran out, and restored after a recharge, under load.

Stage: both stories at once, on a scratch folder with a database, a broker, and the processes `ingest`, `dispatch` and
`api` as `up` starts them. Meters of many accounts report one by one at a steady pace over MQTT; some cross zero on the
way and are told so; each of those buys a recharge over HTTP some seconds later. Nothing of it touches an installation's
data.

What is measured, for each order: from the commit that wrote it to the dispatcher's note that it left, which is what is
asked; to its arrival at the meter's end of the broker; and from what caused it, the reading or the request, to there.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Final

import httpx
import numpy as np
import uvloop
from psycopg import AsyncConnection

from billing.calendar import from_ms
from billing.terms import ONE_DAY
from db.pool import connect
from db.readings import ensure_partitions
from db.registry import add_vendor
from db.reports import BatchTotals, batch_totals, count_lost
from headend.edges.stream import stream_backlog
from loadtests.bench_machine import (
    cpu_seconds,
    family_cpu_seconds,
    log_warnings,
    machine_cpu_seconds,
    machine_facts,
    measured_at,
    parts_facts,
)
from loadtests.population import ACCOUNTS_MAX, STEP_MS, STEPS_A_DAY, TARIFF, serial_of
from loadtests.scratch import BenchError, Progress, scratch_settings
from loadtests.seed_accounts import give_sts_keys, seed_accounts
from loadtests.supply_load import SELLERS, ListeningMeters, Pace, Shop, encoded_sweep, publish_at
from loadtests.supply_orders import (
    Order,
    areas_limited,
    count_messages,
    deadlocks,
    last_order,
    open_orders,
    order_counts,
    percentiles_ms,
    read_orders,
    stored_by_slot,
    to_published,
)
from meter_sim.edges.bulk import BulkPublisher
from prepaid.embedded import EmbeddedNats, EmbeddedPostgres
from prepaid.processes import calendar_of
from prepaid.settings import Settings
from prepaid.system import System, running_system
from protocols.columns import Int64Column
from vending.edges.keys import issue_api_key
from vending.roles import Role

PROCESSES: Final = ("ingest", "dispatch", "api")
MQTT_CONNECTIONS: Final = 4
# A commit keeps its instant: eight bytes a transaction, beside its state.
SERVER_OPTIONS: Final = {"track_commit_timestamp": "on"}
TARGET_P99_MS: Final = 500
READINGS_MAX: Final = 2_000_000
# The first sweep is the warm-up; all of a run's belong to one local day, whose fixed charge that one brings.
SWEEPS_MAX: Final = STEPS_A_DAY - 2
# The pace at which ingest stores is shown for slots of this length.
SLOT_S: Final = 5
POLL_S: Final = 0.1
# Longer than any wait between two tries of an order that is answered; a run in which nothing moves for so long ends.
STALL_S_MAX: Final = 30.0
# Whatever else runs takes from what is measured; the difference to the sum of ours tells how much.
WHOLE_MACHINE: Final = "whole_machine"
SETTINGS_SHOWN: Final = ("synchronous_commit", "fsync", "full_page_writes", "shared_buffers", "track_commit_timestamp")
WORK_PER_READING: Final = (
    "MQTT QoS 1, stored by the broker",
    "decode, validate, rate, compare with the account's levels",
    "COPY and commit, fsync on",
    "acknowledge, per message",
)
WORK_PER_CUT_OFF: Final = (
    "lock, alarm, order and notice in the batch's transaction",
    "wake-up of the dispatcher",
    "fence, limits of the area, claim, publish to MQTT, note",
    "the meter's event and answer through ingest",
)
WORK_PER_RESTORE: Final = (
    "HTTP vend: lock, balance, journal, token, receipt, order in one transaction",
    "wake-up of the dispatcher",
    "fence, claim, publish to MQTT, note",
    "the meter's event and answer through ingest",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupplyLoad:
    """What is offered.

    Units: `margin_days` is how many days of energy the accounts' credit above their levels is spread over: one reading
    in 96 of its days takes an account without a threshold below zero. Who is cut off buys `recharge_after_s` later.
    """

    accounts: int
    per_second: int
    seconds: int
    areas: int
    margin_days: int
    recharge_after_s: float

    @property
    def readings(self) -> int:
        """Readings of the measured part."""
        return self.per_second * self.seconds


FULL: Final = SupplyLoad(accounts=100_000, per_second=5_000, seconds=60, areas=100, margin_days=2, recharge_after_s=3.0)
# Seconds on any machine: what the test suite runs.
QUICK: Final = SupplyLoad(accounts=400, per_second=200, seconds=4, areas=4, margin_days=1, recharge_after_s=0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Messages made before the clock starts: meter `arrivals[k % n]` sends number `k` of the measured ones."""

    arrivals: Int64Column
    opened_ms: int
    warm_up: list[tuple[str, bytes]]
    measured: list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What became of the measured part."""

    pace: Pace
    pubacked: int
    backlog: int
    settled_s: float
    cpu_s: Mapping[str, float | None]
    totals: BatchTotals
    lost: int
    orders: Sequence[Order]
    messages: tuple[int, int]
    limited: int
    deadlocks: int
    stored_per_second: Sequence[int]
    arrived_ns: Mapping[int, int]
    asked_ns: Mapping[str, int]
    repeated: int
    shop: Mapping[str, int]


def bench_supply(settings: Settings, load: SupplyLoad, progress: Progress) -> dict[str, object]:
    """Measure cut-offs and restores under a steady load of readings; return the report.

    Raises: BenchError; EmbeddedError.
    """
    _require_possible(load)
    facts = machine_facts()
    with (
        scratch_settings(settings) as scratch,
        EmbeddedPostgres(scratch.data_dir / "pg", options=SERVER_OPTIONS) as server,
        EmbeddedNats(scratch.data_dir / "nats") as broker,
    ):
        mqtt_url = f"mqtt://{broker.mqtt_host}:{broker.mqtt_port}"
        outside = {"database_url": server.database_url, "nats_url": broker.nats_url, "mqtt_url": mqtt_url}
        with running_system(scratch.model_copy(update=outside | {"api_port": 0}), []) as system:
            began_s = time.monotonic()
            # Yesterday, as after a close-day: nothing of older days is looked at, and no reading is of the future.
            calendar = calendar_of(system.settings)
            opened_on = calendar.day_of(time.time_ns() // 1_000_000) - ONE_DAY
            key = uvloop.run(_seed(system, load, opened_on))
            accounts_s = time.monotonic() - began_s
            system.start_all(PROCESSES)
            plan = _plan(load, calendar.midnight_ms(opened_on), progress)
            cpu_of = _cpu_clocks(system, server, broker)
            with _without_old_walks():
                parts, warm_up_s, run = uvloop.run(_measure(system, load, plan, key, cpu_of, progress))
            warnings = {name: log_warnings([system.settings.data_dir / f"{name}.log"]) for name in PROCESSES}
    return {
        "benchmark": "supply",
        "measured_at": measured_at(),
        "machine": facts | parts["machine"],
        "settings": parts["settings"] | _limits_shown(settings),
        "work_per_reading": list(WORK_PER_READING),
        "work_per_cut_off": list(WORK_PER_CUT_OFF),
        "work_per_restore": list(WORK_PER_RESTORE),
        "accounts": load.accounts,
        "areas": load.areas,
        "accounts_seconds": round(accounts_s, 1),
        "warm_up_seconds": round(warm_up_s, 1),
        "warnings": warnings,
    } | _figures(load, plan, run)


def _require_possible(load: SupplyLoad) -> None:
    if not 1 <= load.accounts <= ACCOUNTS_MAX or min(load.areas, load.margin_days, load.per_second, load.seconds) < 1:
        raise BenchError(f"bench: expected 1 to {ACCOUNTS_MAX} accounts, and 1 or more of all else, got {load}")
    sweeps_max = min(SWEEPS_MAX * load.accounts, READINGS_MAX)
    if load.readings > sweeps_max:
        raise BenchError(
            f"bench: expected at most {SWEEPS_MAX} readings an account and {READINGS_MAX} in all, got {load.readings}"
        )


def _plan(load: SupplyLoad, opened_ms: int, progress: Progress) -> _Plan:
    """Make all messages: every meter once to warm up, then again and again in the same random order."""
    arrivals = np.random.default_rng(1).permutation(np.arange(1, load.accounts + 1, dtype=np.int64))
    measured: list[tuple[str, bytes]] = []
    step = 2
    while len(measured) < load.readings:
        progress("messages", len(measured), load.readings)
        measured += encoded_sweep(arrivals[: load.readings - len(measured)], step, opened_ms)
        step += 1
    return _Plan(
        arrivals=arrivals,
        opened_ms=opened_ms,
        warm_up=encoded_sweep(arrivals, 1, opened_ms),
        measured=measured,
    )


async def _seed(system: System, load: SupplyLoad, opened_on: date) -> str:
    """Open the accounts and make a vendor; return its key."""
    url, opened_ms = system.parts.database_url, calendar_of(system.settings).midnight_ms(opened_on)
    await seed_accounts(
        url,
        load.accounts,
        opened_at=from_ms(opened_ms),
        opened_on=opened_on,
        tariff_id=TARIFF,
        areas=load.areas,
        margin_days=load.margin_days,
    )
    async with _database(system) as conn:
        await ensure_partitions(conn, {from_ms(opened_ms + step * STEP_MS).date() for step in range(STEPS_A_DAY)})
        await give_sts_keys(conn, load.accounts)
        return (await issue_api_key(conn, Role.VENDOR, vendor_id=await add_vendor(conn, "Bench shop"))).header


async def _measure(
    system: System,
    load: SupplyLoad,
    plan: _Plan,
    key: str,
    cpu_of: Mapping[str, Callable[[], float | None]],
    progress: Progress,
) -> tuple[dict[str, dict[str, object]], float, _Run]:
    """Let every meter report once, then run the load and wait until nothing is left to be done."""
    parts = system.parts
    limits = httpx.Limits(max_connections=SELLERS)
    async with (
        _database(system) as conn,
        httpx.AsyncClient(base_url=system.api_url, headers={"X-Api-Key": key}, limits=limits) as http,
        BulkPublisher(parts.mqtt_host, parts.mqtt_port, connections=MQTT_CONNECTIONS) as publisher,
        BulkPublisher(parts.mqtt_host, parts.mqtt_port, connections=1) as answers,
    ):
        facts = await parts_facts(conn, parts.nats_url, SETTINGS_SHOWN)
        shop = Shop(http=http, after_s=load.recharge_after_s)
        meters = ListeningMeters(publisher=answers, on_cut=shop.owe)
        stage = _Stage(system=system, conn=conn, publisher=publisher, shop=shop, meters=meters, cpu_of=cpu_of)
        async with _at_work(meters.listen(parts.mqtt_host, parts.mqtt_port), *(shop.sell() for _ in range(SELLERS))):
            await meters.listens.wait()
            began_s = time.monotonic()
            for topic, payload in plan.warm_up:
                await publisher.publish(topic, payload)
            await stage.settle(progress)
            warm_up_s = time.monotonic() - began_s
            return facts, warm_up_s, await stage.run(load, plan, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """All that takes part in a run."""

    system: System
    conn: AsyncConnection
    publisher: BulkPublisher
    shop: Shop
    meters: ListeningMeters
    cpu_of: Mapping[str, Callable[[], float | None]]

    async def run(self, load: SupplyLoad, plan: _Plan, progress: Progress) -> _Run:
        """Offer the measured readings, wait for the end of all that they cause, and count."""
        after, before = await last_order(self.conn), await batch_totals(self.conn)
        acknowledged, cpu_before = self.publisher.acknowledged, self._cpu_s()
        repeated, shop_before = self.meters.repeated, self._shop_counts()
        progress("readings", 0, load.readings)
        pace = await publish_at(self.publisher, plan.measured, load.per_second)
        cpu_s = _since(self._cpu_s(), cpu_before)
        backlog = await stream_backlog(self.system.parts.nats_url)
        ended_s = time.monotonic()
        await self.settle(progress)
        settled_s = time.monotonic() - ended_s
        return _Run(
            pace=pace,
            pubacked=self.publisher.acknowledged - acknowledged,
            backlog=backlog,
            settled_s=settled_s,
            cpu_s=cpu_s,
            totals=(await batch_totals(self.conn)).since(before),
            lost=await _count_lost(self.system, plan),
            orders=await read_orders(self.conn, after),
            messages=await count_messages(self.conn, after),
            limited=await areas_limited(self.conn),
            deadlocks=await deadlocks(self.conn),
            stored_per_second=await stored_by_slot(self.conn, pace.sent_ns[0], SLOT_S),
            arrived_ns=self.meters.arrived_ns,
            asked_ns=self.shop.asked_ns,
            repeated=self.meters.repeated - repeated,
            shop={name: now - shop_before[name] for name, now in self._shop_counts().items()},
        )

    async def settle(self, progress: Progress) -> None:
        """Wait until every message is acknowledged, every recharge sold and every order confirmed; or nothing moves."""
        await self.publisher.drain()
        last, changed_s = (-1, -1, -1), time.monotonic()
        while time.monotonic() - changed_s < STALL_S_MAX:
            now = (
                await stream_backlog(self.system.parts.nats_url),
                await open_orders(self.conn),
                self.shop.sold + self.shop.refused,
            )
            progress("backlog", 0, now[0])
            if now[:2] == (0, 0) and self.shop.idle:
                return
            if now != last:
                last, changed_s = now, time.monotonic()
            await asyncio.sleep(POLL_S)

    def _cpu_s(self) -> dict[str, float | None]:
        return {name: read() for name, read in self.cpu_of.items()}

    def _shop_counts(self) -> dict[str, int]:
        return {"sold": self.shop.sold, "refused": self.shop.refused, "asked_again": self.shop.repeated}


def _since(now: Mapping[str, float | None], before: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return what each has used between two looks; None for one that has ended."""
    return {
        name: None if used is None or (begun := before[name]) is None else used - begun for name, used in now.items()
    }


async def _count_lost(system: System, plan: _Plan) -> int:
    """Count the measured readings that are in neither table."""
    numbers, meters = plan.arrivals.tolist(), len(plan.arrivals)
    keys = (
        (number, serial_of(number), from_ms(plan.opened_ms + (2 + k // meters) * STEP_MS))
        for k in range(len(plan.measured))
        for number in (numbers[k % meters],)
    )
    # On a connection of its own: the keys stand in a temporary table.
    async with _database(system) as conn:
        return await count_lost(conn, keys)


def _figures(load: SupplyLoad, plan: _Plan, run: _Run) -> dict[str, object]:
    cut_offs = [order for order in run.orders if order.relay == "off"]
    restores = [order for order in run.orders if order.relay == "on"]
    told, confirmed = run.messages
    whole = (
        run.totals.stored == load.readings
        and run.shop["refused"] == 0
        and all(order.state in ("confirmed", "superseded") for order in run.orders)
        and len(cut_offs) == len(restores) == run.shop["sold"]
    )
    return {
        "load": _load_figures(load, run),
        "cut_offs": _order_figures(cut_offs, run, "reading_to_meter_ms", _reading_sent(plan, run.pace)),
        "restores": _order_figures(restores, run, "request_to_meter_ms", _request_sent(run.asked_ns)),
        "alarms_at_meters": {"written": told, "confirmed": confirmed},
        "commands_received_again": run.repeated,
        "areas_held_back": run.limited,
        "deadlocks": run.deadlocks,
        "recharges": dict(run.shop),
        "cpu_seconds": {name: None if used is None else round(used, 1) for name, used in run.cpu_s.items()},
        "lost": run.lost,
        "unpublished": sum(order.published_us is None for order in run.orders),
        "complete": whole,
    }


def _load_figures(load: SupplyLoad, run: _Run) -> dict[str, object]:
    return {
        "offered_per_second": load.per_second,
        "achieved_per_second": round(run.pace.messages / run.pace.seconds),
        "seconds": round(run.pace.seconds, 1),
        "behind_schedule_ms_max": round(run.pace.behind_ms_max, 1),
        "offered": load.readings,
        "pubacked": run.pubacked,
        "stored": run.totals.stored,
        "duplicate": run.totals.duplicate,
        "rejected": run.totals.rejected,
        "quarantined": run.totals.quarantined,
        "lost": run.lost,
        f"stored_per_second_by_{SLOT_S}_s": list(run.stored_per_second),
        "unacknowledged_at_the_last_reading": run.backlog,
        "seconds_until_all_was_done": round(run.settled_s, 1),
        "one_cut_off_in_readings": round(load.readings / max(1, sum(order.relay == "off" for order in run.orders))),
    }


def _order_figures(
    orders: Sequence[Order], run: _Run, caused: str, caused_us: Callable[[Order], int | None]
) -> dict[str, object]:
    def arrived(order: Order) -> int | None:
        return run.arrived_ns[order.id] // 1_000 if order.id in run.arrived_ns else None

    published = percentiles_ms(orders, to_published)
    return {
        **order_counts(orders),
        "commit_to_published_ms": published,
        "target_p99_ms": TARGET_P99_MS,
        "reached": published.get("p99", TARGET_P99_MS + 1) <= TARGET_P99_MS,
        "commit_to_meter_ms": percentiles_ms(orders, lambda order: _between(order.committed_us, arrived(order))),
        caused: percentiles_ms(orders, lambda order: _between(caused_us(order), arrived(order))),
    }


def _between(began_us: int | None, ended_us: int | None) -> int | None:
    return None if began_us is None or ended_us is None else ended_us - began_us


def _reading_sent(plan: _Plan, pace: Pace) -> Callable[[Order], int | None]:
    """Return when the reading left that an order was written for: the meter's latest before it."""
    meters = len(plan.arrivals)
    place_of = {number: place for place, number in enumerate(plan.arrivals.tolist())}

    def sent_us(order: Order) -> int | None:
        sent = [pace.sent_at_ns(k) // 1_000 for k in range(place_of[order.number], pace.messages, meters)]
        return max((at_us for at_us in sent if at_us <= order.created_us), default=None)

    return sent_us


def _request_sent(asked_ns: Mapping[str, int]) -> Callable[[Order], int | None]:
    def sent_us(order: Order) -> int | None:
        asked = asked_ns.get(serial_of(order.number))
        return None if asked is None else asked // 1_000

    return sent_us


def _cpu_clocks(
    system: System, server: EmbeddedPostgres, broker: EmbeddedNats
) -> dict[str, Callable[[], float | None]]:
    """Return what tells the processor time of each process; the database's is that of all its connections."""
    assert server.pid is not None, "the database was started"
    assert broker.pid is not None, "the broker was started"
    clocks = {name: partial(cpu_seconds, system.pid(name)) for name in PROCESSES}
    return {
        **clocks,
        "database": partial(family_cpu_seconds, server.pid),
        "broker": partial(cpu_seconds, broker.pid),
        "meters_and_shop": time.process_time,
        WHOLE_MACHINE: machine_cpu_seconds,
    }


def _limits_shown(settings: Settings) -> dict[str, object]:
    return {
        "cut_offs_per_minute_and_area_max": settings.cut_offs_per_minute_max,
        "cut_offs_per_hour_and_area_max": settings.cut_offs_per_hour_max,
        "processes": list(PROCESSES),
        "mqtt_connections": MQTT_CONNECTIONS,
        "sellers": SELLERS,
    }


@asynccontextmanager
async def _at_work(*work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Let tasks work for as long as the context lasts; one that fails ends it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
        yield
        for task in tasks:
            task.cancel()


@contextmanager
def _without_old_walks() -> Iterator[None]:
    """Keep the collector from walking the messages made: it would stop all clocks of ours for a tenth of a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@asynccontextmanager
async def _database(system: System) -> AsyncIterator[AsyncConnection]:
    async with await connect(system.parts.database_url, application="prepaid-bench") as conn:
        yield conn
