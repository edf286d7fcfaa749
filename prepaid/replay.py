"""`replay`: recorded load profiles through the real broker, ingest and database.

Stage: the READ story with simulated meters. The same arguments always make the same meters and send the same keys,
so that a second replay is all duplicates. Times are the recorded ones, moved by whole days if asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import structlog
from psycopg import AsyncConnection, OperationalError

from billing.calendar import LocalCalendar, from_ms
from billing.rating import Lines, total
from billing.running import Point
from db.orders import PostingRules
from db.pool import APPLICATION_ROLE, connect
from db.readings import ensure_partitions
from db.registry import NewAccount, NewMeter, add_meter, open_account
from db.reports import BatchTotals, Bill, accounts_of_meters, batch_totals, bills, count_events, count_lost, look_all
from headend.edges.close_day import close_day
from headend.edges.stream import StreamUnavailable, stream_backlog
from meter_sim.edges.bulk import BulkPublisher
from meter_sim.recorded import Profile, parse_profile
from prepaid.preview import curve_of
from prepaid.settings import PrepaidError
from prepaid.system import System
from protocols.native import BLOCK_INTERVALS_MAX, Readings, encode_readings
from protocols.topics import reading_topic

_log = structlog.get_logger("replay")

DAY_MS = 86_400_000
# Sanctioned loads of the replayed homes in turn, W: both sides of every band of the fixed charge.
LOADS_W = (1_000, 2_000, 3_000, 5_000, 7_000, 8_000, 10_000)
# A 60 A single-phase meter: 60 A at 250 V.
RATED_W = 15_000
# Six digits of kWh.
REGISTER_END_WH = 1_000_000_000
# Registers start apart, so that a reading charged to the wrong meter shows.
REGISTER_STEP_WH = 1_000
# Rs 1,000,000: more than any home of the recorded files uses in three years.
ENOUGH_CREDIT_MINOR = 100_000_000
DRAIN_POLL_S = 0.2
# A database that was killed is back within a second or two; after 15 s the replay gives up with its error.
DATABASE_WAITS_S = (1.0, 2.0, 4.0, 8.0)

T = TypeVar("T")


class ReplayError(PrepaidError):
    """A replay that cannot be run as asked."""

    code = "replay_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What to replay and how. Money in minor units; `speed` None is as fast as the system takes it."""

    files: tuple[Path, ...]
    meters: int
    speed: float | None
    shift_days: int
    block: int
    credit_minor: int
    threshold_minor: int | None
    tariff_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayMeter:
    """One simulated home: its meter, load and the curve its register follows."""

    serial: str
    load_w: int
    profile: Profile
    curve: list[Point]

    @property
    def opened_at(self) -> datetime:
        """When the meter was installed: the start of the record."""
        return from_ms(self.curve[0].at_ms)


@dataclass(slots=True, kw_only=True)
class ReplayReport:
    """What was sent and what became of it. Energy in Wh, money in minor units."""

    meters: int
    sent: int
    totals: BatchTotals
    lost: int
    energy_sent_wh: int
    energy_charged_wh: int
    charges: Lines
    alarms: int
    cut_offs: int
    restores: int
    closed_days: int
    seconds: float
    seconds_total: float
    meter_months: list[dict[str, object]] = field(default_factory=list)

    def to_json(self, *, detail: bool) -> dict[str, object]:
        """Return the report as the `--json` output shows it."""
        shown: dict[str, object] = {
            "meters": self.meters,
            "sent": self.sent,
            "stored": self.totals.stored,
            "duplicate": self.totals.duplicate,
            "rejected": self.totals.rejected,
            "quarantined": self.totals.quarantined,
            "lost": self.lost,
            "energy_sent_wh": self.energy_sent_wh,
            "energy_charged_wh": self.energy_charged_wh,
            "charges": self.charges,
            "charged_minor": total(self.charges),
            "alarms": self.alarms,
            "cut_offs": self.cut_offs,
            "restores": self.restores,
            "closed_days": self.closed_days,
            "seconds": round(self.seconds, 3),
            "readings_per_second": round(self.totals.received / self.seconds) if self.seconds else 0,
            "seconds_total": round(self.seconds_total, 3),
        }
        if detail:
            shown["meter_months"] = self.meter_months
        return shown


# Called with a phase, the steps done and the steps in all.
Progress = Callable[[str, int, int], None]


def make_meters(options: ReplayOptions) -> list[ReplayMeter]:
    """Make the simulated homes of a replay; the same arguments always make the same ones.

    Raises: ReplayError; ProfileError for a file that is no profile.
    """
    if options.meters < 1 or not 1 <= options.block <= BLOCK_INTERVALS_MAX:
        raise ReplayError(
            f"replay: expected 1 or more meters and blocks of 1 to {BLOCK_INTERVALS_MAX},"
            f" got {options.meters} and {options.block}"
        )
    profiles = [_read_profile(path, options.shift_days) for path in options.files]
    made = []
    for number in range(options.meters):
        profile, digest = profiles[number % len(profiles)]
        made.append(
            ReplayMeter(
                serial=f"RP-{digest}-{number:05d}",
                load_w=LOADS_W[number % len(LOADS_W)],
                profile=profile,
                curve=curve_of(profile, register_wh=number * REGISTER_STEP_WH),
            )
        )
    return made


async def replay(
    system: System,
    options: ReplayOptions,
    meters: Sequence[ReplayMeter],
    calendar: LocalCalendar,
    progress: Progress,
) -> ReplayReport:
    """Send every reading of the meters, wait until all are settled, close the days, and report."""
    began_s = time.monotonic()
    rules = PostingRules(calendar=calendar)

    async def enter(conn: AsyncConnection) -> BatchTotals:
        await _make_partitions(conn, meters)
        await _register(conn, meters, options, rules, progress)
        return await batch_totals(conn)

    async def settle(conn: AsyncConnection) -> ReplayReport:
        until = calendar.day_of(max(meter.curve[-1].at_ms for meter in meters)) - timedelta(days=1)
        closed = await _close(conn, until, rules, progress)
        return await _report(conn, meters, calendar, before, sent, closed)

    before = await _on_database(system, enter)
    sending_s = time.monotonic()
    sent = await tended(system, _send_all(system, meters, options, progress))
    seconds = time.monotonic() - sending_s
    report = await _on_database(system, settle)
    report.seconds = seconds
    report.seconds_total = time.monotonic() - began_s
    return report


def blocks_of(meter: ReplayMeter, block: int) -> Iterator[Readings]:
    """Cut a meter's curve into messages of equally spaced readings, at most `block` in each."""
    profile, points = meter.profile, meter.curve
    measured = {end_ms: number for number, end_ms in enumerate(profile.end_ms)}
    chunk: list[Point] = []
    for before, point in itertools.pairwise(points):
        even = point.at_ms - before.at_ms == profile.step_ms
        if chunk and (not even or len(chunk) == block):
            yield _message(meter, chunk, measured)
            chunk = []
        chunk.append(point)
    if chunk:
        yield _message(meter, chunk, measured)


def _message(meter: ReplayMeter, chunk: list[Point], measured: dict[int, int]) -> Readings:
    profile = meter.profile
    numbers = [measured.get(point.at_ms) for point in chunk]

    def channel(values: list[int | None]) -> list[int | None]:
        return [None if number is None else values[number] for number in numbers]

    return Readings(
        serial=meter.serial,
        seq=None,
        clock_ms=chunk[-1].at_ms,
        read_at_ms=[point.at_ms for point in chunk],
        import_wh=[point.energy_wh for point in chunk],
        export_wh=[None] * len(chunk),
        voltage_mv=channel(profile.voltage_mv),
        current_ma=channel(profile.current_ma),
        power_w=channel(profile.power_w),
        pf_milli=[None] * len(chunk),
        freq_mhz=[None] * len(chunk),
        relay=None,
        credit_minor=None,
        events=(),
    )


def _read_profile(path: Path, shift_days: int) -> tuple[Profile, str]:
    data = path.read_bytes()
    profile = parse_profile(path.name, data)
    shift_ms = shift_days * DAY_MS
    digest = hashlib.sha256(data + str(shift_days).encode()).hexdigest()[:8]
    moved = Profile(
        step_ms=profile.step_ms,
        start_ms=[at_ms + shift_ms for at_ms in profile.start_ms],
        end_ms=[at_ms + shift_ms for at_ms in profile.end_ms],
        energy_wh=profile.energy_wh,
        voltage_mv=profile.voltage_mv,
        current_ma=profile.current_ma,
        power_w=profile.power_w,
        missing_rows=profile.missing_rows,
        duplicate_rows=profile.duplicate_rows,
    )
    return moved, digest


async def _make_partitions(conn: AsyncConnection, meters: Sequence[ReplayMeter]) -> None:
    """Ask for the span of the record before anything is sent: batches never make partitions."""
    days: set[date] = set()
    for profile in {id(meter.profile): meter.profile for meter in meters}.values():
        days |= {from_ms(at_ms).date() for at_ms in (*profile.start_ms, *profile.end_ms)}
    await ensure_partitions(conn, days)


async def _register(
    conn: AsyncConnection,
    meters: Sequence[ReplayMeter],
    options: ReplayOptions,
    rules: PostingRules,
    progress: Progress,
) -> None:
    now_ms = time.time_ns() // 1_000_000
    for number, meter in enumerate(meters):
        progress("accounts", number + 1, len(meters))
        await add_meter(conn, NewMeter(serial=meter.serial, rated_w=RATED_W, register_end_wh=REGISTER_END_WH))
        account = NewAccount(
            number=meter.serial,
            consumer=f"Replayed home {meter.serial}",
            usage_point=meter.serial,
            area="replay",
            meter_serial=meter.serial,
            opened_at=meter.opened_at,
            register_wh=meter.curve[0].energy_wh,
            tariff_id=options.tariff_id,
            sanctioned_load_w=meter.load_w,
            threshold_minor=options.threshold_minor,
            opening_credit_minor=options.credit_minor,
        )
        await open_account(conn, account, rules=rules, now_ms=now_ms)


async def _send(system: System, meters: Sequence[ReplayMeter], options: ReplayOptions, progress: Progress) -> int:
    """Publish every message of every meter, in order of time, and wait for all acknowledgements."""
    streams = [blocks_of(meter, options.block) for meter in meters]
    readings_total = sum(len(meter.curve) - 1 for meter in meters)
    first_ms = min(meter.curve[0].at_ms for meter in meters)
    began_s = time.monotonic()
    sent = 0
    async with BulkPublisher(system.parts.mqtt_host, system.parts.mqtt_port) as publisher:
        while streams:
            alive = []
            for stream in streams:
                readings = next(stream, None)
                if readings is None:
                    continue
                alive.append(stream)
                if options.speed is not None:
                    due_s = began_s + (readings.read_at_ms[-1] - first_ms) / 1000 / options.speed
                    await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                await publisher.publish(reading_topic(readings.serial), encode_readings(readings))
                sent += len(readings.read_at_ms)
            streams = alive
            progress("readings sent", sent, readings_total)
        await publisher.drain()
    return sent


async def _await_settled(system: System, progress: Progress) -> None:
    """Wait until no message is left in the stream: each has been committed and acknowledged."""
    most = 0
    while backlog := await _backlog(system):
        most = max(most, backlog)
        progress("messages settled", most - backlog, most)
        await asyncio.sleep(DRAIN_POLL_S)


async def _backlog(system: System) -> int:
    """Count what is left in the stream; while the broker is away that is not nothing."""
    try:
        return await stream_backlog(system.parts.nats_url)
    except StreamUnavailable:
        return 1


async def _send_all(system: System, meters: Sequence[ReplayMeter], options: ReplayOptions, progress: Progress) -> int:
    sent = await _send(system, meters, options, progress)
    await _await_settled(system, progress)
    return sent


async def tended(system: System, work: Coroutine[Any, Any, T]) -> T:
    """Do some work, bringing back processes that die meanwhile; end with the first that stays broken."""
    working = asyncio.create_task(work)
    try:
        while not working.done():
            system.tend()
            await asyncio.wait({working}, timeout=DRAIN_POLL_S)
        return working.result()
    finally:
        working.cancel()


async def _on_database(system: System, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Do some work that may be done twice; again on a new connection if the database dies under it."""
    url = system.parts.database_url
    for wait_s in DATABASE_WAITS_S:
        try:
            async with await connect(url, application="prepaid-replay", role=APPLICATION_ROLE) as conn:
                return await work(conn)
        except OperationalError as error:
            _log.warning("database_away", detail=str(error).strip()[:200], retry_s=wait_s)
            await asyncio.sleep(wait_s)
            system.tend()
    async with await connect(url, application="prepaid-replay", role=APPLICATION_ROLE) as conn:
        return await work(conn)


async def _close(conn: AsyncConnection, until: date, rules: PostingRules, progress: Progress) -> int:
    accounts = 0

    def count(number: int) -> None:
        nonlocal accounts
        accounts += number
        progress("accounts closed", accounts, accounts)

    today = rules.calendar.day_of(time.time_ns() // 1_000_000)
    closed = await close_day(conn, min(until, today - timedelta(days=1)), rules=rules, progress=count)
    return closed.days


async def _report(
    conn: AsyncConnection,
    meters: Sequence[ReplayMeter],
    calendar: LocalCalendar,
    before: BatchTotals,
    sent: int,
    closed_days: int,
) -> ReplayReport:
    ids = await accounts_of_meters(conn, [meter.serial for meter in meters])
    account_ids = [account_id for _, account_id in ids.values()]
    views = await look_all(conn, account_ids, calendar)
    billed = await bills(conn, views.values(), calendar)
    keys = ((ids[meter.serial][0], meter.serial, from_ms(point.at_ms)) for meter in meters for point in meter.curve[1:])
    lost = await count_lost(conn, keys)
    alarms, cut_offs, restores = await count_events(conn, account_ids)
    charges: Counter[str] = Counter()
    for months in billed.values():
        for bill in months.values():
            charges.update(bill.lines)
    return ReplayReport(
        meters=len(meters),
        sent=sent,
        totals=(await batch_totals(conn)).since(before),
        lost=lost,
        energy_sent_wh=sum(meter.curve[-1].energy_wh - meter.curve[0].energy_wh for meter in meters),
        energy_charged_wh=sum(bill.energy_wh for months in billed.values() for bill in months.values()),
        charges=dict(charges),
        alarms=alarms,
        cut_offs=cut_offs,
        restores=restores,
        closed_days=closed_days,
        seconds=0.0,
        seconds_total=0.0,
        meter_months=_meter_months(meters, ids, billed),
    )


def _meter_months(
    meters: Sequence[ReplayMeter], ids: dict[str, tuple[int, int]], billed: dict[int, dict[date, Bill]]
) -> list[dict[str, object]]:
    return [
        {
            "meter": meter.serial,
            "load_w": meter.load_w,
            "period": f"{period:%Y-%m}",
            "energy_wh": bill.energy_wh,
            "lines": bill.lines,
            "total_minor": total(bill.lines),
        }
        for meter in meters
        for period, bill in sorted(billed[ids[meter.serial][1]].items())
    ]
