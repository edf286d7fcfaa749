"""`bench ingest`: readings per second from MQTT publish to acknowledged commit, beside a bare COPY of the same rows.

Stage: the READ story under full load, on a scratch data folder with its own database and broker. Enters a number of
meters and readings; leaves one report: offered, acknowledged, stored and lost counts, seconds, and the ratio to the
reference run of the same call on the same server. Nothing of it touches an installation's data.

The reference is the least that storing these rows can cost: the rows of each batch, sorted and already encoded, go by
one binary COPY and one commit into the same table with the same key and partitions. Its batches have the mean size
of those that ingest made; only COPY and commit are timed.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from statistics import median
from typing import Final
from urllib.parse import urlsplit

import uvloop
from psycopg import AsyncConnection

from billing.calendar import from_ms, to_ms
from db.migrate import migrate
from db.named import sql
from db.orders import PostingRules
from db.pool import connect
from db.readings import ensure_partitions
from db.registry import NewAccount, NewMeter, add_meter, open_account
from db.reports import BatchTotals, accounts_of_meters, batch_totals, count_lost
from headend.edges.ingest import BATCH_MESSAGES_MAX
from headend.edges.stream import stream_backlog
from loadtests.bench_machine import cpu_seconds, machine_facts, measured_at, parts_facts
from loadtests.scratch import BenchError, scratch_settings
from meter_sim.edges.bulk import BulkPublisher
from prepaid.processes import calendar_of
from prepaid.replay import ENOUGH_CREDIT_MINOR, LOADS_W, RATED_W, REGISTER_END_WH, REGISTER_STEP_WH, Progress
from prepaid.settings import Settings
from prepaid.system import System, running_system
from protocols.native import BLOCK_INTERVALS_MAX, Readings, encode_readings
from protocols.rows import ReadingRow
from protocols.topics import reading_topic

TARIFF: Final = "punjab-ds-2026-27"
# Half-hourly intervals, the usual profile of a prepaid meter in India.
STEP_MS: Final = 1_800_000
STEPS_A_DAY: Final = 48
# Messages are made before the clock starts: 2,000,000 blocks of one reading are 500 MB of payloads.
READINGS_MAX: Final = 2_000_000
# The row of single readings is as long as three twentieths of the other one: 60,000 beside 400,000.
SINGLES_SHARE: Final = (3, 20)
# A quiet server repeats a bare COPY within 10 percent; the median of three drops one outlier.
REFERENCE_RUNS: Final = 3
MQTT_CONNECTIONS: Final = 4
# A look at the backlog costs the broker 34 requests; ten a second are below one percent of a core.
BACKLOG_POLL_S: Final = 0.1
# A batch commits well under a second; a minute without one means that ingest has stopped.
STALL_S_MAX: Final = 60.0
WORK_PER_READING: Final = (
    "decode",
    "validate",
    "rate: running charge and supply decision, once per meter and batch",
    "COPY",
    "commit, fsync on",
    "acknowledge, per message",
)
SETTINGS_SHOWN: Final = ("synchronous_commit", "fsync", "full_page_writes", "shared_buffers", "max_wal_size")
_POSTGRES_EPOCH_US: Final = 946_684_800_000_000
# Field count, then length and value of each of the nine columns; the second register is null.
_COPY_ROW: Final = struct.Struct(">hiiiqiqiiiiiiiiiii")
_COPY_HEAD: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_COPY_TAIL: Final = b"\xff\xff"


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestLoad:
    """What is offered: readings in all, in messages of `block`, by so many meters in turn."""

    readings: int
    block: int
    meters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One measured row: intervals `first_step` and after of every meter, cut into blocks."""

    block: int
    first_step: int
    steps: int
    meters: int
    start_ms: int

    @property
    def readings(self) -> int:
        return self.steps * self.meters

    def blocks(self) -> Iterator[tuple[int, Readings]]:
        """Yield meter number and message in the order of publishing: every meter's next block in turn."""
        end = self.first_step + self.steps
        for first in range(self.first_step, end, self.block):
            for number in range(self.meters):
                yield number, simulated_readings(number, range(first, min(first + self.block, end)), self.start_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What became of one case."""

    messages: int
    messages_pubacked: int
    totals: BatchTotals
    lost: int
    transactions: int
    seconds_pubacked: float
    seconds: float
    ingest_cpu_s: float | None


def bench_ingest(settings: Settings, load: IngestLoad, progress: Progress) -> dict[str, object]:
    """Measure ingest end to end and the reference beside it; return the report.

    Raises: BenchError; EmbeddedError.
    """
    facts = machine_facts()
    cases = _cases(load)
    with scratch_settings(settings) as scratch, running_system(scratch, ["ingest"]) as system:
        parts, accounts_s, runs = uvloop.run(_measure(system, cases, progress))
        # The reference has the server to itself.
        system.stop()
        rows = [
            _row(case, run, uvloop.run(_reference(system.parts.database_url, case, _mean_batch(run), progress)))
            for case, run in zip(cases, runs, strict=True)
        ]
    return {
        "benchmark": "ingest",
        "measured_at": measured_at(),
        "machine": facts | parts["machine"],
        "settings": parts["settings"] | _ingest_settings(),
        "work_per_reading": list(WORK_PER_READING),
        "meters": load.meters,
        "accounts_seconds": round(accounts_s, 1),
        "rows": rows,
        "lost": sum(run.lost for run in runs),
        "complete": all(run.totals.stored == case.readings for case, run in zip(cases, runs, strict=True)),
    }


def simulated_readings(number: int, steps: range, start_ms: int) -> Readings:
    """Make a meter's readings of some intervals: always the same ones, six channels each."""
    power_w = [580 + (number * 31 + step * 17) % 41 for step in steps]
    voltage_mv = [228_000 + (number * 131 + step * 797) % 4_001 for step in steps]
    return Readings(
        serial=serial_of(number),
        seq=None,
        clock_ms=start_ms + steps[-1] * STEP_MS,
        read_at_ms=[start_ms + step * STEP_MS for step in steps],
        # The spread of 97 stays below the 300 Wh of each half hour, so that the register only rises.
        import_wh=[number * REGISTER_STEP_WH + 300 * step + (number * 31 + step * 17) % 97 for step in steps],
        export_wh=[None] * len(steps),
        voltage_mv=list(voltage_mv),
        current_ma=[watts * 1_000_000 // millivolts for watts, millivolts in zip(power_w, voltage_mv, strict=True)],
        power_w=list(power_w),
        pf_milli=[950 + (number + step) % 50 for step in steps],
        freq_mhz=[49_950 + (number + step * 7) % 100 for step in steps],
        relay=None,
        credit_minor=None,
        events=(),
    )


def serial_of(number: int) -> str:
    """Return the serial of a simulated meter."""
    return f"BN-{number:06d}"


def encode_copy(rows: Sequence[ReadingRow]) -> bytes:
    """Encode rows without a second register as one binary COPY."""
    body = b"".join(
        _COPY_ROW.pack(
            len(row),
            *(4, row.meter_id),
            *(8, to_ms(row.read_at) * 1000 - _POSTGRES_EPOCH_US),
            *(8, row.import_wh),
            -1,
            *(4, row.voltage_mv),
            *(4, row.current_ma),
            *(4, row.power_w),
            *(4, row.pf_milli),
            *(4, row.freq_mhz),
        )
        for row in rows
    )
    return _COPY_HEAD + body + _COPY_TAIL


def _cases(load: IngestLoad) -> list[_Case]:
    """Cut the load into the row asked for and one of single readings, which begins on a day of its own."""
    steps = load.readings // max(1, load.meters)
    if load.meters < 1 or not 1 <= load.block <= BLOCK_INTERVALS_MAX:
        raise BenchError(
            f"bench: expected 1 or more meters and blocks of 1 to {BLOCK_INTERVALS_MAX},"
            f" got {load.meters} and {load.block}"
        )
    if steps < 1 or load.readings > READINGS_MAX:
        raise BenchError(
            f"bench: expected one reading a meter or more and at most {READINGS_MAX},"
            f" got {load.readings} readings and {load.meters} meters"
        )
    # Interval 0 warms up; each row starts with a UTC day, so that its partitions are empty as in the reference.
    shares = [(load.block, steps)]
    if load.block > 1:
        shares.append((1, max(1, steps * SINGLES_SHARE[0] // SINGLES_SHARE[1])))
    first_steps, first = [], STEPS_A_DAY
    for _, number in shares:
        first_steps.append(first)
        first += -(-number // STEPS_A_DAY) * STEPS_A_DAY
    midnight = datetime.combine(datetime.now(UTC).date(), datetime.min.time(), tzinfo=UTC)
    start_ms = to_ms(midnight - timedelta(days=first // STEPS_A_DAY))
    return [
        _Case(block=block, first_step=first_step, steps=number, meters=load.meters, start_ms=start_ms)
        for (block, number), first_step in zip(shares, first_steps, strict=True)
    ]


async def _measure(
    system: System, cases: Sequence[_Case], progress: Progress
) -> tuple[dict[str, dict[str, object]], float, list[_Run]]:
    """Register the meters, let ingest get to know them, then run every case."""
    meters, start_ms = cases[0].meters, cases[0].start_ms
    async with _database(system.parts.database_url) as conn:
        parts = await parts_facts(conn, system.parts.nats_url, SETTINGS_SHOWN)
        for case in cases:
            await ensure_partitions(conn, _days(case))
        began_s = time.monotonic()
        await _register(conn, PostingRules(calendar=calendar_of(system.settings)), meters, start_ms, progress)
        accounts_s = time.monotonic() - began_s
        warm_up = _Case(block=1, first_step=0, steps=1, meters=meters, start_ms=start_ms)
        await _publish_and_settle(system, _messages(warm_up), progress)
        runs = [await _run_case(conn, system, case, progress) for case in cases]
    return parts, accounts_s, runs


async def _register(conn: AsyncConnection, rules: PostingRules, meters: int, start_ms: int, progress: Progress) -> None:
    now_ms = time.time_ns() // 1_000_000
    for number in range(meters):
        progress("accounts", number + 1, meters)
        serial = serial_of(number)
        await add_meter(conn, NewMeter(serial=serial, rated_w=RATED_W, register_end_wh=REGISTER_END_WH))
        account = NewAccount(
            number=serial,
            consumer=f"Simulated home {serial}",
            usage_point=serial,
            area="bench",
            meter_serial=serial,
            opened_at=from_ms(start_ms - STEP_MS),
            register_wh=number * REGISTER_STEP_WH,
            tariff_id=TARIFF,
            sanctioned_load_w=LOADS_W[number % len(LOADS_W)],
            opening_credit_minor=ENOUGH_CREDIT_MINOR,
        )
        await open_account(conn, account, rules=rules, now_ms=now_ms)


async def _run_case(conn: AsyncConnection, system: System, case: _Case, progress: Progress) -> _Run:
    """Publish a case as fast as the broker takes it and wait until ingest has acknowledged all."""
    messages = _messages(case)
    before, batches_before = await batch_totals(conn), await _transactions(conn)
    # The reference starts each run from a checkpoint as well.
    await conn.execute("checkpoint")
    cpu_before_s = cpu_seconds(system.pid("ingest"))
    acknowledged, seconds_pubacked, seconds = await _publish_and_settle(system, messages, progress)
    cpu_after_s = cpu_seconds(system.pid("ingest"))
    return _Run(
        messages=len(messages),
        messages_pubacked=acknowledged,
        totals=(await batch_totals(conn)).since(before),
        lost=await _count_lost(system.parts.database_url, case),
        transactions=await _transactions(conn) - batches_before,
        seconds_pubacked=seconds_pubacked,
        seconds=seconds,
        ingest_cpu_s=None if cpu_before_s is None or cpu_after_s is None else cpu_after_s - cpu_before_s,
    )


def _messages(case: _Case) -> list[tuple[str, bytes]]:
    return [(reading_topic(readings.serial), encode_readings(readings)) for _, readings in case.blocks()]


async def _publish_and_settle(
    system: System, messages: Sequence[tuple[str, bytes]], progress: Progress
) -> tuple[int, float, float]:
    """Return the messages the broker acknowledged, seconds to the last PUBACK, seconds to an empty stream."""
    began_s = time.monotonic()
    parts = system.parts
    async with BulkPublisher(parts.mqtt_host, parts.mqtt_port, connections=MQTT_CONNECTIONS) as publisher:
        for topic, payload in messages:
            await publisher.publish(topic, payload)
        acknowledged = await publisher.drain()
    seconds_pubacked = time.monotonic() - began_s
    last, changed_s = -1, time.monotonic()
    while backlog := await stream_backlog(parts.nats_url):
        progress(f"of {len(messages)} messages", len(messages) - backlog, len(messages))
        if backlog != last:
            last, changed_s = backlog, time.monotonic()
        if time.monotonic() - changed_s > STALL_S_MAX:
            log = (system.settings.data_dir / "ingest.log").read_text(encoding="utf-8", errors="replace")
            raise BenchError(f"bench: expected ingest to go on, got {backlog} messages for a minute: {log[-500:]}")
        await asyncio.sleep(BACKLOG_POLL_S)
    return acknowledged, seconds_pubacked, time.monotonic() - began_s


async def _count_lost(database_url: str, case: _Case) -> int:
    """Count the keys of a case that are in neither table."""
    # On a connection of its own: the keys stand in a temporary table.
    async with _database(database_url) as conn:
        ids = await accounts_of_meters(conn, [serial_of(number) for number in range(case.meters)])
        keys = (
            (ids[readings.serial][0], readings.serial, from_ms(at_ms))
            for _, readings in case.blocks()
            for at_ms in readings.read_at_ms
        )
        return await count_lost(conn, keys)


async def _reference(database_url: str, case: _Case, batch: int, progress: Progress) -> dict[str, object]:
    """Copy the same rows into the same table of an empty database, in batches of the size that ingest made."""
    url = urlsplit(database_url)._replace(path="/bench_reference").geturl()
    async with _database(database_url) as conn:
        await conn.execute("drop database if exists bench_reference")
        await conn.execute("create database bench_reference")
    seconds = []
    async with _database(url) as conn:
        await migrate(conn)
        await ensure_partitions(conn, _days(case))
        for number in range(REFERENCE_RUNS):
            progress("reference", number + 1, REFERENCE_RUNS)
            await conn.execute("truncate readings")
            await conn.execute("checkpoint")
            seconds.append(await _copy_all(conn, case, batch))
        await _require_count(conn, case.readings)
    return {
        "readings": case.readings,
        "batch": batch,
        "runs": REFERENCE_RUNS,
        "seconds": round(median(seconds), 3),
        "readings_per_second": round(case.readings / median(seconds)),
    }


async def _copy_all(conn: AsyncConnection, case: _Case, batch: int) -> float:
    """Return the seconds of all COPYs and commits; rows are made, sorted and encoded outside of them."""
    seconds = 0.0
    arriving = _rows(case)
    while rows := sorted(itertools.islice(arriving, batch), key=itemgetter(0, 1)):
        encoded = encode_copy(rows)
        began_s = time.perf_counter()
        async with conn.transaction(), conn.cursor() as cursor, cursor.copy(sql("copy_readings")) as copy:
            await copy.write(encoded)
        seconds += time.perf_counter() - began_s
    return seconds


def _rows(case: _Case) -> Iterator[ReadingRow]:
    for number, readings in case.blocks():
        columns = zip(
            readings.read_at_ms,
            readings.import_wh,
            readings.export_wh,
            readings.voltage_mv,
            readings.current_ma,
            readings.power_w,
            readings.pf_milli,
            readings.freq_mhz,
            strict=True,
        )
        for at_ms, *channels in columns:
            yield ReadingRow(number + 1, from_ms(at_ms), *channels)


async def _require_count(conn: AsyncConnection, expected: int) -> None:
    cursor = await conn.execute("select count(*) from readings")
    row = await cursor.fetchone()
    assert row == (expected,), f"reference: expected {expected} rows, got {row}"


async def _transactions(conn: AsyncConnection) -> int:
    """Count the transactions that wrote batches; one writes a row per shard."""
    cursor = await conn.execute("select count(distinct xmin::text) from batches")
    row = await cursor.fetchone()
    assert row is not None, "a count returns one row"
    return int(row[0])


def _ingest_settings() -> dict[str, object]:
    return {
        "ingest_processes": 1,
        "batch_messages_max": BATCH_MESSAGES_MAX,
        "mqtt_connections": MQTT_CONNECTIONS,
    }


def _row(case: _Case, run: _Run, reference: dict[str, object]) -> dict[str, object]:
    per_second = round(case.readings / run.seconds)
    copied_per_second = reference["readings_per_second"]
    assert isinstance(copied_per_second, int)
    return {
        "block": case.block,
        "offered": case.readings,
        "messages": run.messages,
        "messages_pubacked": run.messages_pubacked,
        "stored": run.totals.stored,
        "duplicate": run.totals.duplicate,
        "rejected": run.totals.rejected,
        "quarantined": run.totals.quarantined,
        "lost": run.lost,
        "transactions": run.transactions,
        "readings_per_transaction": _mean_batch(run),
        "seconds_pubacked": round(run.seconds_pubacked, 3),
        "seconds": round(run.seconds, 3),
        "readings_per_second": per_second,
        "ingest_cpu_us_per_reading": (
            None if run.ingest_cpu_s is None else round(run.ingest_cpu_s / case.readings * 1_000_000, 1)
        ),
        "reference": reference,
        "ratio": round(per_second / copied_per_second, 3),
    }


def _mean_batch(run: _Run) -> int:
    return max(1, round(run.totals.received / max(1, run.transactions)))


def _days(case: _Case) -> set[date]:
    steps = (0, *range(case.first_step, case.first_step + case.steps))
    return {from_ms(case.start_ms + step * STEP_MS).date() for step in steps}


@asynccontextmanager
async def _database(url: str) -> AsyncIterator[AsyncConnection]:
    async with await connect(url, application="prepaid-bench") as conn:
        yield conn
