"""The installation that `bench ingest` measures: its own database and broker, ingest processes, and what they use.

Stage: around a run, on a scratch folder. Processor time, memory and disk are read from the system by process; the
database's figures are those of all its processes together.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from psycopg import AsyncConnection, sql

from billing.calendar import LocalCalendar, from_ms
from db.pool import connect
from db.readings import ensure_partitions
from headend.edges.stream import stream_backlog
from loadtests.bench_machine import (
    cpu_seconds,
    family_cpu_seconds,
    family_resident_mib,
    machine_cpu_seconds,
    resident_mib,
)
from loadtests.population import MARGIN_DAYS, TARIFF
from loadtests.scratch import BenchError
from loadtests.seed_accounts import seed_accounts
from prepaid.embedded import EmbeddedNats, EmbeddedPostgres, Parts
from prepaid.embedded.process import log_tail, spawn, stop_child
from prepaid.processes import calendar_of
from prepaid.settings import ENV_PREFIX, Settings
from prepaid.system import prepare

# A checkpoint within every run of a minute, twice; a commit keeps its instant; syncs are timed.
SERVER_OPTIONS: Final = {"checkpoint_timeout": "30s", "track_commit_timestamp": "on", "track_wal_io_timing": "on"}
SETTINGS_SHOWN: Final = (
    "synchronous_commit",
    "fsync",
    "full_page_writes",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "track_commit_timestamp",
)
# Whatever else runs takes from what is measured; the difference to the sum of ours tells how much.
WHOLE_MACHINE: Final = "whole_machine"
AREAS: Final = 100
# Leases are shared within seconds after a process has come.
SHARING_S_MAX: Final = 20.0
STALL_S_MAX: Final = 60.0
POLL_S: Final = 0.1
MEMORY_EVERY_S: Final = 1.0
_STOP_LADDER: Final = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0))
_OWNERS: Final = b"""
select count(distinct owner), count(*) from shard_leases where role = 'ingest' and expires_at > clock_timestamp()
"""
_EMPTY_DAYS: Final = b"""
select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'readings'::regclass and pg_relation_size(c.oid) = 0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What is measured, as it runs."""

    settings: Settings
    parts: Parts
    calendar: LocalCalendar
    opened_on: date
    database_pid: int
    broker_pid: int
    ingest: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def opened_ms(self) -> int:
        """When the accounts opened, UTC milliseconds."""
        return self.calendar.midnight_ms(self.opened_on)

    def cpu_clocks(self) -> dict[str, Callable[[], float | None]]:
        """Return what tells the processor time of each part but the flood."""
        return {
            "broker": partial(cpu_seconds, self.broker_pid),
            "ingest": partial(_summed, cpu_seconds, [child.pid for child in self.ingest]),
            "database": partial(family_cpu_seconds, self.database_pid),
            "benchmark": time.process_time,
            WHOLE_MACHINE: machine_cpu_seconds,
        }

    def memory_mib(self) -> dict[str, float]:
        """Return the memory that each part holds now."""
        return {
            "broker": resident_mib(self.broker_pid) or 0.0,
            "ingest": _summed(resident_mib, [child.pid for child in self.ingest]) or 0.0,
            "database": family_resident_mib(self.database_pid),
        }

    def store_bytes(self) -> int:
        """Return what the broker holds on disk."""
        store = self.settings.data_dir / "nats" / "store"
        return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())

    @asynccontextmanager
    async def database(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection as the database's owner."""
        async with await connect(self.parts.database_url, application="prepaid-bench") as conn:
            await conn.execute("set statement_timeout = 0")
            yield conn

    async def settle(self, progress: Callable[[int], None]) -> None:
        """Wait until every message is acknowledged by ingest.

        Raises: BenchError when nothing moves any more.
        """
        last, changed_s = -1, time.monotonic()
        while backlog := await stream_backlog(self.parts.nats_url):
            progress(backlog)
            if backlog != last:
                last, changed_s = backlog, time.monotonic()
            if time.monotonic() - changed_s > STALL_S_MAX:
                raise BenchError(f"bench: expected ingest to go on, got {backlog} messages for a minute: {self._log()}")
            await asyncio.sleep(POLL_S)

    async def await_owners(self, conn: AsyncConnection) -> int:
        """Wait until all shards are owned and, if they share, every process has some; return how many have."""
        deadline_s = time.monotonic() + SHARING_S_MAX
        while True:
            row = await (await conn.execute(_OWNERS)).fetchone()
            assert row is not None, "a count returns one row"
            if (row[1] and row[0] >= len(self.ingest)) or time.monotonic() > deadline_s:
                return int(row[0])
            await asyncio.sleep(POLL_S)

    def _log(self) -> str:
        return " / ".join(log_tail(_log_path(self.settings, number)) for number in range(len(self.ingest)))


@contextmanager
def staged(settings: Settings) -> Iterator[Stage]:
    """Run a database and a broker on a scratch folder, prepared for meters; stop what was started at the end.

    Raises: EmbeddedError.
    """
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres(settings.data_dir / "pg", options=SERVER_OPTIONS))
        broker = stack.enter_context(EmbeddedNats(settings.data_dir / "nats"))
        parts = Parts(
            database_url=server.database_url,
            nats_url=broker.nats_url,
            mqtt_host=broker.mqtt_host,
            mqtt_port=broker.mqtt_port,
        )
        asyncio.run(prepare(settings, parts))
        assert server.pid is not None, "the database was started"
        assert broker.pid is not None, "the broker was started"
        calendar = calendar_of(settings)
        stage = Stage(
            settings=settings,
            parts=parts,
            calendar=calendar,
            opened_on=last_month(calendar.day_of(time.time_ns() // 1_000_000)),
            database_pid=server.pid,
            broker_pid=broker.pid,
        )
        stack.callback(stop_ingest, stage)
        yield stage


def last_month(today: date) -> date:
    """Return the first day of the month before a day's: a whole billing period that is over."""
    return (today.replace(day=1) - timedelta(days=1)).replace(day=1)


async def open_accounts(stage: Stage, accounts: int, days: int) -> None:
    """Open accounts, and make the partitions of their first days."""
    await seed_accounts(
        stage.parts.database_url,
        accounts,
        opened_at=from_ms(stage.opened_ms),
        opened_on=stage.opened_on,
        tariff_id=TARIFF,
        areas=AREAS,
        margin_days=MARGIN_DAYS,
    )
    async with stage.database() as conn:
        first = from_ms(stage.opened_ms).date()
        await ensure_partitions(conn, {first + timedelta(days=number) for number in range(days + 2)})


async def drop_empty_days(conn: AsyncConnection) -> None:
    """Take away the days without a reading: whoever looks at 100,000 meters would look into all of them each time.

    Nobody may write any more.
    """
    for (name,) in await (await conn.execute(_EMPTY_DAYS)).fetchall():
        await conn.execute(sql.SQL("drop table {}").format(sql.Identifier(name)))


def start_ingest(stage: Stage, processes: int) -> None:
    """Start ingest processes, as `up` starts one."""
    parts = stage.parts
    values = {
        "DATABASE_URL": parts.database_url,
        "NATS_URL": parts.nats_url,
        "MQTT_URL": f"mqtt://{parts.mqtt_host}:{parts.mqtt_port}",
        "DATA_DIR": str(stage.settings.data_dir),
    }
    environment = {**os.environ, **{ENV_PREFIX + name: value for name, value in values.items()}}
    for number in range(processes):
        command = [sys.executable, "-P", "-m", "prepaid", "ingest"]
        log_path = _log_path(stage.settings, number)
        stage.ingest.append(spawn(command, log_path=log_path, death_signal=signal.SIGTERM, environment=environment))


def stop_ingest(stage: Stage) -> None:
    """Stop the ingest processes, and wait for their end."""
    while stage.ingest:
        stop_child(stage.ingest.pop(), name="ingest", ladder=_STOP_LADDER)


@asynccontextmanager
async def watching_memory(stage: Stage) -> AsyncIterator[dict[str, float]]:
    """Keep the most memory that each part was seen to hold, looked at once a second."""
    most: dict[str, float] = {}

    async def watch() -> None:
        while True:
            for name, mib in stage.memory_mib().items():
                most[name] = max(most.get(name, 0.0), mib)
            await asyncio.sleep(MEMORY_EVERY_S)

    watcher = asyncio.create_task(watch())
    try:
        yield most
    finally:
        watcher.cancel()


def read_clocks(clocks: Mapping[str, Callable[[], float | None]]) -> dict[str, float | None]:
    """Read all clocks."""
    return {name: read() for name, read in clocks.items()}


def used_since(now: Mapping[str, float | None], before: Mapping[str, float | None]) -> dict[str, float]:
    """Return what each has used between two looks, of those that have lived through both."""
    return {
        name: used - begun for name, used in now.items() if used is not None and (begun := before[name]) is not None
    }


def _summed(read: Callable[[int], float | None], pids: list[int]) -> float | None:
    values = [read(pid) for pid in pids]
    return None if None in values else sum(value for value in values if value is not None)


def _log_path(settings: Settings, number: int) -> Path:
    return settings.data_dir / f"ingest-{number}.log"
