"""What integration and fault tests share: a small installation on the real parts, its processes, and its snapshot."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from psycopg import AsyncConnection, OperationalError
from psycopg import sql as compose

from billing.calendar import LocalCalendar, from_ms, to_ms
from billing.journals import JournalKind
from billing.rating import Lines
from billing.running import Point, begin, follow, opening
from billing.supply import Levels, Mode, Supply
from billing.supply_rule_document import builtin_supply_rules
from billing.tariff_document import builtin_tariff
from billing.terms import one_assignment
from db.accounts import AccountView
from db.migrate import migrate
from db.orders import PostingRules, wall_ms
from db.pool import connect
from db.posting import lock_and_look, post_money
from db.readings import ensure_partitions
from db.registry import NewAccount, NewMeter, add_meter, open_account
from db.reports import BatchTotals, accounts_of_meters, batch_totals, bills, look_all
from headend.dispatch_plan import CutOffLimits, Patience
from headend.edges.command_ports import Transports
from headend.edges.dispatch import PATIENCE, Dispatcher, DispatchSettings, wall_clock_ms
from headend.edges.dispatch_metrics import DispatchMetrics
from headend.edges.ingest import Ingest, IngestSettings
from headend.edges.metrics import IngestMetrics
from headend.edges.stream import StreamUnavailable, prepare_stream, stream_backlog
from headend.state import AccountState, MeterState, RegisterSegment
from meter_sim.edges.bulk import BulkPublisher
from prepaid.embedded import EmbeddedNats, Parts
from prepaid.embedded.process import stable_ports
from prepaid.settings import load_settings
from prepaid.system import System
from protocols.native import Readings, encode_readings
from protocols.topics import reading_topic, shard_of

T = TypeVar("T")

CALENDAR = LocalCalendar(ZoneInfo("Asia/Kolkata"))
RULES = PostingRules(calendar=CALENDAR)
TARIFF = "punjab-ds-2026-27"
# Midnight of 1 June 2025 in Asia/Kolkata: past on every clock, and the start of a billing period.
OPENED_AT = datetime(2025, 5, 31, 18, 30, tzinfo=UTC)
T0 = to_ms(OPENED_AT)
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
RATED_W = 15_000
REGISTER_END_WH = 1_000_000_000
REGISTER_WH = 1_000
CREDIT_MINOR = 100_000
# Ten times what a step takes on two busy cores.
WAIT_S = 20.0
# Short, so that a test may wait for another owner; `ack_wait` is what a crash costs before its messages come again.
LEASE_S, ACK_WAIT_S = 2.0, 1.0
POLL_S = 0.01
# Far above what a test of something else cuts.
LIMITS = CutOffLimits(per_minute_max=600, per_hour_max=3_000)

# A topic and its payload.
Message = tuple[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """One meter and its account."""

    serial: str
    meter_id: int
    account_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What must be the same whatever happened on the way. Keyed by serial and level, never by generated id.

    Invariants: `readings` holds one key for each stored reading; `content` is a digest over keys and channels.
    """

    readings: frozenset[tuple[str, int]]
    content: str
    bills: dict[tuple[str, date], tuple[int, Lines]]
    balances: dict[str, int]
    alarms: frozenset[tuple[str, str, int, int]]
    quarantine: frozenset[tuple[str | None, int | None, str]]


@dataclass(slots=True, kw_only=True)
class Site:
    """A small installation: a migrated database, a prepared broker, and a connection of the test's own.

    Invariants: a task of ours that died fails the next wait with its own error.
    """

    database_url: str
    nats: EmbeddedNats
    conn: AsyncConnection
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def parts(self) -> Parts:
        """Where database and broker are, as processes are told."""
        return Parts(
            database_url=self.database_url,
            nats_url=self.nats.nats_url,
            mqtt_host=self.nats.mqtt_host,
            mqtt_port=self.nats.mqtt_port,
        )

    async def add_home(
        self,
        serial: str = "M1",
        *,
        opened_at: datetime = OPENED_AT,
        register_wh: int = REGISTER_WH,
        register_end_wh: int = REGISTER_END_WH,
        credit_minor: int = CREDIT_MINOR,
        threshold_minor: int | None = None,
        load_w: int = 3_000,
        days: int = 3,
        area: str = "test",
        category: str = "DS",
        can_limit: bool = False,
    ) -> Home:
        """Register a meter and open its account; make the partitions of its first days."""
        meter = NewMeter(serial=serial, rated_w=RATED_W, register_end_wh=register_end_wh, can_limit=can_limit)
        await add_meter(self.conn, meter)
        account = NewAccount(
            number=serial,
            consumer=f"Household {serial}",
            usage_point=serial,
            area=area,
            category=category,
            meter_serial=serial,
            opened_at=opened_at,
            register_wh=register_wh,
            tariff_id=TARIFF,
            sanctioned_load_w=load_w,
            threshold_minor=threshold_minor,
            opening_credit_minor=credit_minor,
        )
        account_id = await open_account(self.conn, account, rules=RULES, now_ms=now_ms())
        assert account_id is not None, f"account {serial}: expected a new one"
        first_ms = to_ms(opened_at)
        await ensure_partitions(self.conn, {from_ms(first_ms + day * DAY_MS).date() for day in range(days + 1)})
        meter_id, _ = (await accounts_of_meters(self.conn, [serial]))[serial]
        return Home(serial=serial, meter_id=meter_id, account_id=account_id)

    async def reconnect(self) -> None:
        """Open the test's own connection again, after the database was away."""
        await self.conn.close()
        self.conn = await connect(self.database_url, application="test")

    async def publish(self, *messages: Message) -> None:
        """Publish over MQTT at QoS 1, in order; return when the broker has stored all."""
        async with BulkPublisher(self.nats.mqtt_host, self.nats.mqtt_port, connections=1) as publisher:
            for topic, payload in messages:
                await publisher.publish(topic, payload)

    async def send(self, *messages: Message) -> None:
        """Publish, and wait until ingest has settled everything."""
        await self.publish(*messages)
        await self.settled()

    async def settled(self, *, within_s: float = WAIT_S) -> None:
        """Wait until no message is left in the stream and no account waits for its look."""

        async def quiet() -> bool:
            try:
                if await stream_backlog(self.nats.nats_url):
                    return False
            except StreamUnavailable:
                return False
            return not await self.one("select count(*) from rechecks")

        await self.until(quiet, "everything published is settled", within_s=within_s)

    async def until(
        self, happened: Callable[[], Awaitable[T]], what: str, *, within_s: float = WAIT_S, poll_s: float = POLL_S
    ) -> T:
        """Ask again and again until the answer is true; fail with what was waited for, or with what died meanwhile."""
        deadline_s = time.monotonic() + within_s
        while True:
            for task in self.tasks:
                if task.done():
                    task.result()
            answer = await happened()
            if answer:
                return answer
            assert time.monotonic() < deadline_s, f"within {within_s:.0f} s: {what}"
            await asyncio.sleep(poll_s)

    async def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Read rows; for what only tests ask."""
        cursor = await self.conn.execute(query.encode(), parameters)
        return await cursor.fetchall()

    async def one(self, query: str, *parameters: object) -> Any:  # A column of any type.
        """Read one value."""
        ((value,),) = await self.rows(query, *parameters)
        return value

    async def reasons(self) -> list[str]:
        """Return the quarantine's reasons in the order they came."""
        return [reason for (reason,) in await self.rows("select reason from quarantine order by id")]

    async def registers(self, serial: str) -> dict[int, int]:
        """Return a meter's stored registers by instant in milliseconds."""
        found = await self.rows(
            "select r.read_at, r.import_wh from readings r join meters m on m.id = r.meter_id where m.serial = %s",
            serial,
        )
        return {to_ms(read_at): register_wh for read_at, register_wh in found}

    async def view(self, home: Home) -> AccountView:
        """Look at an account without a lock."""
        return (await look_all(self.conn, [home.account_id], CALENDAR))[home.account_id]

    async def balance(self, home: Home) -> int:
        """Return an account's running balance in minor units."""
        return (await self.view(home)).balance_minor(CALENDAR)

    async def post(self, home: Home, kind: JournalKind, amount_minor: int) -> None:
        """Post money to an account as vending does: lock, look, post, in one transaction."""
        await post(self.conn, home, kind, amount_minor)

    async def totals(self) -> BatchTotals:
        """Return what all batches received and what became of it."""
        return await batch_totals(self.conn)

    async def snapshot(self, homes: Iterable[Home]) -> Snapshot:
        """Return what is stored and charged."""
        return await snapshot(self.conn, [home.serial for home in homes])


@asynccontextmanager
async def open_site(database_url: str, nats: EmbeddedNats, *, ack_wait_s: float = ACK_WAIT_S) -> AsyncIterator[Site]:
    """Migrate a fresh database and prepare the broker's stream."""
    site = Site(database_url=database_url, nats=nats, conn=await connect(database_url, application="test"))
    try:
        await migrate(site.conn)
        await prepare_stream(nats.nats_url, nats.mqtt_host, nats.mqtt_port, ack_wait_s=ack_wait_s)
        yield site
    finally:
        await site.conn.close()


@asynccontextmanager
async def running_ingest(
    site: Site,
    *,
    lease_s: float = LEASE_S,
    ack_wait_s: float = ACK_WAIT_S,
    stale_reading_s: int | None = None,
    clock: Callable[[], int] = wall_ms,
    calendar: LocalCalendar = CALENDAR,
    database_url: str | None = None,
    nats_url: str | None = None,
) -> AsyncIterator[IngestMetrics]:
    """Run ingest as a task of this process, through other addresses if given; return when it owns all shards."""
    settings = IngestSettings(
        database_url=database_url or site.database_url,
        nats_url=nats_url or site.nats.nats_url,
        calendar=calendar,
        lease_s=lease_s,
        ack_wait_s=ack_wait_s,
        stale_reading_s=stale_reading_s,
        clock=clock,
    )
    metrics = IngestMetrics()
    async with _running(site, Ingest(settings, metrics).run):
        await site.until(lambda: _owned(site, "ingest"), "ingest owns all shards")
        yield metrics


@asynccontextmanager
async def running_dispatch(
    site: Site,
    *,
    lease_s: float = LEASE_S,
    limits: CutOffLimits = LIMITS,
    patience: Patience = PATIENCE,
    ports: Transports | None = None,
    now_ms: Callable[[], int] = wall_clock_ms,
    steady_s: Callable[[], float] = time.monotonic,
) -> AsyncIterator[DispatchMetrics]:
    """Run a dispatcher as a task of this process; return when it owns all shards."""
    settings = DispatchSettings(
        database_url=site.database_url,
        nats_url=site.nats.nats_url,
        lease_s=lease_s,
        calendar=CALENDAR,
        limits=limits,
        patience=patience,
    )
    metrics = DispatchMetrics()
    async with _running(site, Dispatcher(settings, metrics, ports=ports, now_ms=now_ms, steady_s=steady_s).run):
        await site.until(lambda: _owned(site, "dispatch"), "the dispatcher owns all shards")
        yield metrics


@contextmanager
def child_processes(parts: Parts, folder: Path, names: Sequence[str]) -> Iterator[System]:
    """Run processes of ours as children on parts that run already; other settings come from the environment."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = load_settings().model_copy(update={"data_dir": folder})
    system = System(settings=settings, parts=parts, api_port=stable_ports(folder / "ports.json", ["api"])["api"])
    try:
        system.start_all(names)
        yield system
    finally:
        system.stop()


@asynccontextmanager
async def table_held(site: Site, table: str) -> AsyncIterator[None]:
    """Let nobody else write to a table for as long as the context lasts; reading it goes on."""
    async with await connect(site.database_url, application="holder") as conn, conn.transaction():
        await conn.execute(compose.SQL("lock table {} in exclusive mode").format(compose.Identifier(table)))
        yield


async def ingest_waits(site: Site) -> bool:
    """Tell whether an ingest process stands inside a transaction and waits for a lock."""
    return bool(
        await site.one(
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and application_name like 'ingest-%%' and wait_event_type = 'Lock'"
        )
    )


async def post(conn: AsyncConnection, home: Home, kind: JournalKind, amount_minor: int) -> None:
    """Lock an account, look at it and post money, in one transaction of a connection."""
    async with conn.transaction():
        view = await lock_and_look(conn, home.account_id, RULES)
        await post_money(conn, view, kind, amount_minor, rules=RULES, now_ms=now_ms())


async def snapshot(conn: AsyncConnection, serials: Sequence[str]) -> Snapshot:
    """Read what is stored and charged for some meters, in a form that two installations can be compared by."""
    ids = await accounts_of_meters(conn, serials)
    serial_of = {account_id: serial for serial, (_, account_id) in ids.items()}
    views = await look_all(conn, sorted(serial_of), CALENDAR)
    billed = await bills(conn, views.values(), CALENDAR)
    cursor = await conn.execute(
        b"select m.serial, r.read_at, r.import_wh, r.export_wh, r.voltage_mv, r.current_ma, r.power_w, r.pf_milli,"
        b" r.freq_mhz from readings r join meters m on m.id = r.meter_id where m.serial = any(%s) order by 1, 2",
        [list(serials)],
    )
    stored = await cursor.fetchall()
    keys = [(serial, to_ms(read_at)) for serial, read_at, *_ in stored]
    assert len(keys) == len(set(keys)), "a reading is stored once"
    cursor = await conn.execute(
        b"select account_id, level, n, arm from alarms where account_id = any(%s)", [sorted(serial_of)]
    )
    alarms = [(serial_of[account_id], level, n, arm) for account_id, level, n, arm in await cursor.fetchall()]
    assert len(alarms) == len(set(alarms)), "an alarm is raised once"
    cursor = await conn.execute(b"select serial, read_at, reason from quarantine")
    held = await cursor.fetchall()
    return Snapshot(
        readings=frozenset(keys),
        content=hashlib.sha256(repr(stored).encode()).hexdigest(),
        bills={
            (serial_of[account_id], period): (bill.energy_wh, bill.lines)
            for account_id, months in billed.items()
            for period, bill in months.items()
        },
        balances={view.meter.serial: view.balance_minor(CALENDAR) for view in views.values()},
        alarms=frozenset(alarms),
        quarantine=frozenset((serial, at and to_ms(at), reason) for serial, at, reason in held),
    )


def meter_state(
    serial: str = "M1",
    *,
    meter_id: int = 1,
    mark_ms: int = T0,
    mark_wh: int = REGISTER_WH,
    register_end_wh: int = REGISTER_END_WH,
    posted_minor: int = CREDIT_MINOR,
    threshold_minor: int | None = None,
    relay: Supply | None = None,
    desired: Supply = Supply.ON,
    told: Supply | None = None,
    waits: bool = False,
) -> MeterState:
    """Make what ingest knows of a meter that was installed at T0 and has reported nothing since, or only its mark."""
    opened_on = CALENDAR.day_of(T0)
    terms = one_assignment(builtin_tariff(TARIFF), load_w=3_000, opened_on=opened_on)
    checkpoint = opening(terms, posted_minor=posted_minor, at=Point(at_ms=T0, energy_wh=0))
    levels = Levels(
        mode=Mode.PREPAID,
        threshold_minor=threshold_minor,
        emergency_credit_minor=0,
        low_arm=1,
        low_raised=False,
        exhausted_arm=1,
        exhausted_raised=False,
        desired=desired,
    )
    walk = begin(checkpoint, terms)
    if mark_ms > T0:
        walk = follow(walk, terms, [Point(at_ms=mark_ms, energy_wh=mark_wh - REGISTER_WH)], CALENDAR)
    return MeterState(
        serial=serial,
        shard=shard_of(serial),
        meter_id=meter_id,
        rated_w=RATED_W,
        register_end_wh=register_end_wh,
        installed_ms=T0,
        segments=(RegisterSegment(from_ms=T0, offset_wh=-REGISTER_WH),),
        mark_ms=mark_ms,
        mark_wh=mark_wh,
        relay_at_ms=None,
        relay=relay,
        account=AccountState(
            id=100 + meter_id,
            version=1,
            terms=terms,
            checkpoint=checkpoint,
            levels=levels,
            walk=walk,
            silent=False,
            told=told,
            held=False,
            scheme=builtin_supply_rules().default,
            waits=waits,
        ),
    )


def reading(serial: str, at_ms: int, register_wh: int, **channels: int) -> Message:
    """Make one reading's message."""
    return block(serial, at_ms, [register_wh], **channels)


def block(serial: str, first_ms: int, registers: Sequence[int], *, step_ms: int = HOUR_MS, **channels: int) -> Message:
    """Make a message of equally spaced readings, the other channels the same in each."""

    def channel(name: str) -> list[int | None]:
        return [channels.get(name)] * len(registers)

    readings = Readings(
        serial=serial,
        seq=None,
        clock_ms=None,
        read_at_ms=[first_ms + number * step_ms for number in range(len(registers))],
        import_wh=list(registers),
        export_wh=channel("export_wh"),
        voltage_mv=channel("voltage_mv"),
        current_ma=channel("current_ma"),
        power_w=channel("power_w"),
        pf_milli=channel("pf_milli"),
        freq_mhz=channel("freq_mhz"),
        relay=None,
        credit_minor=None,
        events=(),
    )
    return reading_topic(serial), encode_readings(readings)


def now_ms() -> int:
    """Tell the wall clock's time."""
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def _running(site: Site, run: Callable[[asyncio.Event], Awaitable[None]]) -> AsyncIterator[None]:
    stop = asyncio.Event()

    async def body() -> None:
        await run(stop)

    task = asyncio.create_task(body())
    site.tasks.append(task)
    try:
        yield
    finally:
        site.tasks.remove(task)
        stop.set()
        await asyncio.wait_for(task, WAIT_S)


async def _owned(site: Site, role: str) -> bool:
    try:
        held = await site.one(
            "select count(*) from shard_leases where role = %s and expires_at > clock_timestamp()",
            role,
        )
    except OperationalError:
        return False
    return bool(held == 32)
