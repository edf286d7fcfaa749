"""`bench gateway`: thousands of simulated Modbus meters of mixed makes, polled on time, stored and charged.

Stage: the READ story of meters that do not speak MQTT, on a scratch folder with its own database and broker, and the
processes `ingest` and `gateway` as `up` starts them; the meters are a process of their own, whose processor time is
told apart. Two rounds: all meters well, then one in ten dead or slow. After them every balance is compared with the
plain rating, and the auditor looks at everything; then raw polls of our line client and of pymodbus's, in turn.

What is counted in a round, of the meters that are well: every place of a meter's schedule needs one stored reading,
whose instant tells how late it was. Nothing is asked of the gateway itself.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

import uvloop
from psycopg import AsyncConnection

from billing.calendar import from_ms
from db.audit import run_checks
from db.audit.report import AuditReport
from headend.edges.stream import stream_backlog
from headend.polling import phase_of
from loadtests.bench_gateway_meters import TownHandle, TownSettings, simulated_town
from loadtests.bench_gateway_raw import RAW_LINES, measure_raw, raw_lines, require_pymodbus
from loadtests.bench_gateway_town import METERS_STEP, LinePlan, ailing, enter_lines, models, plan_lines, units_of
from loadtests.bench_machine import (
    cpu_seconds,
    family_cpu_seconds,
    log_warnings,
    machine_cpu_seconds,
    machine_facts,
    measured_at,
    parts_facts,
)
from loadtests.flood_process import raise_file_limit
from loadtests.ingest_charged import Charged, read_charged
from loadtests.ingest_stage import Stage, read_clocks, used_since
from loadtests.population import ACCOUNTS_MAX, TARIFF, serial_of
from loadtests.scratch import BenchError, Progress, scratch_settings
from loadtests.seed_accounts import seed_accounts
from prepaid.embedded import EmbeddedNats, EmbeddedPostgres
from prepaid.embedded.process import LOOPBACK
from prepaid.processes import calendar_of
from prepaid.settings import Settings
from prepaid.system import System, running_system

PROCESSES: Final = ("ingest", "gateway")
TARGET_LATE_S: Final = 5.0
# So much credit that hardly anybody is cut off, which is another benchmark's matter.
_MARGIN_DAYS: Final = 3_650
# Leases are taken and every meter is read once within its interval; a line's first tries may take a time-out each.
_BEGIN_S_MAX: Final = 120.0
# A reading waits for its batch and its place in the broker: seconds, not more.
_STORED_S_MAX: Final = 30.0
_POLL_S: Final = 0.5
# Readings are stamped by the wall clock to a millisecond, polls begin by a steady one: so far they may be apart.
_EARLY_S: Final = 0.1
_SETTINGS_SHOWN: Final = ("synchronous_commit", "fsync", "full_page_writes", "shared_buffers")
_WHOLE_MACHINE: Final = "whole_machine"
_WORK_PER_POLL: Final = (
    "block reads of all channels the make has, over the line's one connection",
    "decode by the make's map, judge, compare with the register before",
    "outbox, publish to the broker, its acknowledgement from the file store",
    "ingest: decode, validate, rate, compare with the account's levels, COPY and commit, fsync on",
)
_READ_SINCE: Final = b"""
select m.serial, r.read_at from readings r join meters m on m.id = r.meter_id where r.read_at >= %s
"""
_METERS_READ: Final = b"select count(distinct meter_id) from readings"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLoad:
    """What is offered: meters, how often each is polled, and how long a round and a pass of raw polls last."""

    meters: int
    poll_s: int
    timeout_ms: int
    seconds: float
    raw_seconds: float
    raw_pairs: int


FULL: Final = GatewayLoad(meters=2_000, poll_s=60, timeout_ms=1_000, seconds=180, raw_seconds=5, raw_pairs=5)
# Seconds on any machine: what the test suite runs.
QUICK: Final = GatewayLoad(meters=40, poll_s=5, timeout_ms=300, seconds=10, raw_seconds=0.3, raw_pairs=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How meters were served in a round.

    Invariants: `late_s` has one value for each place that has a reading, ascending; `doubled` counts further ones.
    """

    meters: int
    offered: int
    late_s: tuple[float, ...]
    doubled: int

    @property
    def stored(self) -> int:
        """Places that have a reading."""
        return len(self.late_s)

    @property
    def lost(self) -> int:
        """Places that have none."""
        return self.offered - self.stored

    def report(self) -> dict[str, object]:
        """Return it by name."""
        late = {name: round(_quantile(self.late_s, part), 3) for name, part in _QUANTILES} if self.late_s else {}
        return {
            "meters": self.meters,
            "offered": self.offered,
            "stored": self.stored,
            "lost": self.lost,
            "doubled": self.doubled,
            "late_s": late,
        }


_QUANTILES: Final = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    name: str
    seconds: float
    well: Served
    ailing: Served | None
    cpu_s: Mapping[str, float]
    requests: int

    def report(self) -> dict[str, object]:
        readings = self.well.stored + (0 if self.ailing is None else self.ailing.stored)
        return {
            "round": self.name,
            "seconds": round(self.seconds, 1),
            "well": self.well.report(),
            "ailing": None if self.ailing is None else self.ailing.report(),
            "target_late_p99_s": TARGET_LATE_S,
            "reached": self.on_time,
            "readings_per_second": round(readings / self.seconds, 1),
            "requests_heard_by_meters": self.requests,
            "cpu_seconds": {name: round(used, 2) for name, used in self.cpu_s.items()},
            "gateway_cpu_s_per_1000_readings": round(self.cpu_s.get("gateway", 0.0) / max(1, readings) * 1000, 3),
        }

    @property
    def on_time(self) -> bool:
        return bool(self.well.late_s) and _quantile(self.well.late_s, 0.99) <= TARGET_LATE_S


def bench_gateway(
    settings: Settings, load: GatewayLoad, progress: Progress, *, profile: Path | None = None
) -> dict[str, object]:
    """Measure polling end to end, then raw polls; return the report.

    Raises: BenchError; EmbeddedError; ProfileError when the recorded profile cannot be used.
    """
    _require_possible(load)
    require_pymodbus()
    lines, makes = plan_lines(load.meters, models()), models()
    facts = machine_facts()
    raise_file_limit(2 * (len(lines) + RAW_LINES))
    recording = None if profile is None else (profile.name, profile.read_bytes())
    town_settings = TownSettings(lines=(*lines, *raw_lines(load.meters + 1)), profile=recording)
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_settings(settings))
        server = stack.enter_context(EmbeddedPostgres(scratch.data_dir / "pg"))
        broker = stack.enter_context(EmbeddedNats(scratch.data_dir / "nats"))
        town = stack.enter_context(simulated_town(town_settings))
        mqtt_url = f"mqtt://{broker.mqtt_host}:{broker.mqtt_port}"
        outside = {"database_url": server.database_url, "nats_url": broker.nats_url, "mqtt_url": mqtt_url}
        system = stack.enter_context(running_system(scratch.model_copy(update=outside), []))
        stage = _stage(system, server, broker)
        uvloop.run(_seed(stage, load, lines, town))
        system.start_all(PROCESSES)
        run = _Run(system=system, stage=stage, town=town, load=load, lines=lines, progress=progress)
        parts, rounds = uvloop.run(run.both())
        system.stop()
        charged, audit = uvloop.run(_judged(stage, progress))
        warnings = {name: log_warnings([scratch.data_dir / f"{name}.log"]) for name in PROCESSES}
        raw = measure_raw(
            town,
            LOOPBACK,
            town.ports[len(lines) :],
            seconds=load.raw_seconds,
            pairs=load.raw_pairs,
            progress=progress,
        )
    whole = all(each.on_time and not each.well.lost for each in rounds) and charged.charged == charged.stored
    return {
        "benchmark": "gateway",
        "measured_at": measured_at(),
        "machine": facts | parts["machine"],
        "settings": parts["settings"] | _load_shown(load),
        "work_per_poll": list(_WORK_PER_POLL),
        "load": "formula" if profile is None else profile.name,
        "meters": load.meters,
        "makes": dict(Counter(unit.model for unit in units_of(lines))),
        "lines": dict(Counter(f"{line.framing.value}, {len(line.units)} a line" for line in lines)),
        "makes_used": len(makes),
        "rounds": [each.report() for each in rounds],
        "charged": charged.report(),
        "audit": {"clean": audit.clean, "broken": [each.line() for each in audit.checks if each.broken]},
        "warnings": warnings,
        "raw_polls": raw,
        "lost": sum(each.well.lost for each in rounds),
        "complete": whole and audit.clean,
    }


def served(
    readings: Collection[tuple[str, datetime]], serials: Collection[str], *, poll_s: int, begin_s: float, end_s: float
) -> Served:
    """Match readings to the places of their meters' schedules within a span.

    A place is due once in each interval; a reading belongs to the latest place before it.
    """
    wanted = set(serials)
    first = {serial: _first_place_s(serial, poll_s, begin_s) for serial in wanted}
    offered = sum(max(0, math.ceil((end_s - place_s) / poll_s)) for place_s in first.values())
    late: dict[tuple[str, int], float] = {}
    doubled = 0
    for serial, read_at in sorted(readings):
        if serial not in wanted:
            continue
        place, late_s = divmod(read_at.timestamp() - first[serial] + _EARLY_S, poll_s)
        if place < 0 or first[serial] + place * poll_s >= end_s:
            continue
        doubled += (serial, int(place)) in late
        late.setdefault((serial, int(place)), max(0.0, late_s - _EARLY_S))
    return Served(meters=len(wanted), offered=offered, late_s=tuple(sorted(late.values())), doubled=doubled)


@dataclass(slots=True, kw_only=True)
class _Run:
    """Both rounds of one run."""

    system: System
    stage: Stage
    town: TownHandle
    load: GatewayLoad
    lines: Sequence[LinePlan]
    progress: Progress

    async def both(self) -> tuple[dict[str, dict[str, object]], list[_Round]]:
        """Wait until every meter was read once, then measure all well, and with one in ten ailing."""
        ill = ailing(self.load.meters, self.load.timeout_ms)
        async with _database(self.stage) as conn:
            facts = await parts_facts(conn, self.stage.parts.nats_url, _SETTINGS_SHOWN)
            await self._all_read(conn)
            rounds = [await self._round(conn, "all_well", ())]
            self.town.ail(ill)
            rounds.append(await self._round(conn, "one_in_ten_ailing", [ailment.number for ailment in ill]))
            self.town.ail(())
            await self._settled()
        return facts, rounds

    async def _round(self, conn: AsyncConnection, name: str, ill: Sequence[int]) -> _Round:
        clocks = self._cpu_clocks()
        heard, cpu_before, begin_s = self.town.look(), read_clocks(clocks), time.time()
        while (gone_s := time.time() - begin_s) < self.load.seconds:
            self.progress(f"{name}: seconds", round(gone_s), round(self.load.seconds))
            await asyncio.sleep(min(_POLL_S, self.load.seconds - gone_s))
        end_s = time.time()
        cpu_s, requests = used_since(read_clocks(clocks), cpu_before), self.town.look().requests - heard.requests
        well, unwell = await self._stored(conn, {serial_of(number) for number in ill}, begin_s, end_s)
        return _Round(name=name, seconds=end_s - begin_s, well=well, ailing=unwell, cpu_s=cpu_s, requests=requests)

    async def _stored(
        self, conn: AsyncConnection, ill: Collection[str], begin_s: float, end_s: float
    ) -> tuple[Served, Served | None]:
        """Return what was stored of a round, once all of it is there or it is too late for it."""
        serials = {serial_of(unit.number) for unit in units_of(self.lines)}
        span = partial(served, poll_s=self.load.poll_s, begin_s=begin_s, end_s=end_s)
        since = from_ms(int(begin_s * 1000))
        while True:
            readings = await (await conn.execute(_READ_SINCE, (since,))).fetchall()
            well = span(readings, serials - set(ill))
            if not well.lost or time.time() > end_s + _STORED_S_MAX:
                return well, span(readings, ill) if ill else None
            await asyncio.sleep(_POLL_S)

    async def _all_read(self, conn: AsyncConnection) -> None:
        """Wait until every meter has a reading. Raises: BenchError."""
        deadline_s = time.monotonic() + self.load.poll_s + _BEGIN_S_MAX
        while True:
            row = await (await conn.execute(_METERS_READ)).fetchone()
            read = 0 if row is None else int(row[0])
            self.progress("meters read once", read, self.load.meters)
            if read == self.load.meters:
                return
            self.system.tend()
            if time.monotonic() > deadline_s:
                raise BenchError(f"bench: expected {self.load.meters} meters read once, got {read}")
            await asyncio.sleep(_POLL_S)

    async def _settled(self) -> None:
        """Wait until ingest has everything the broker has. Raises: BenchError."""
        deadline_s = time.monotonic() + _STORED_S_MAX
        while await stream_backlog(self.stage.parts.nats_url):
            if time.monotonic() > deadline_s:
                raise BenchError("bench: expected ingest to take everything, got messages that wait")
            await asyncio.sleep(_POLL_S)

    def _cpu_clocks(self) -> dict[str, Callable[[], float | None]]:
        stage = self.stage
        return {
            **{name: partial(cpu_seconds, self.system.pid(name)) for name in PROCESSES},
            "database": partial(family_cpu_seconds, stage.database_pid),
            "broker": partial(cpu_seconds, stage.broker_pid),
            "simulated_meters": lambda: self.town.look().cpu_s,
            "benchmark": time.process_time,
            _WHOLE_MACHINE: machine_cpu_seconds,
        }


def _load_shown(load: GatewayLoad) -> dict[str, object]:
    return {"processes": list(PROCESSES), "poll_s": load.poll_s, "timeout_ms": load.timeout_ms}


def _require_possible(load: GatewayLoad) -> None:
    if not 1 <= load.meters <= ACCOUNTS_MAX or load.meters % METERS_STEP:
        raise BenchError(f"bench: expected meters by {METERS_STEP}s up to {ACCOUNTS_MAX}, got {load.meters}")
    if min(load.poll_s, load.seconds, load.raw_seconds, load.raw_pairs) <= 0 or load.seconds < load.poll_s:
        raise BenchError(f"bench: expected rounds at least as long as an interval, all above 0, got {load}")


def _stage(system: System, server: EmbeddedPostgres, broker: EmbeddedNats) -> Stage:
    assert server.pid is not None, "the database was started"
    assert broker.pid is not None, "the broker was started"
    calendar = calendar_of(system.settings)
    return Stage(
        settings=system.settings,
        parts=system.parts,
        calendar=calendar,
        # Today: meters are read now, and all days of a run are of one billing period.
        opened_on=calendar.day_of(time.time_ns() // 1_000_000),
        database_pid=server.pid,
        broker_pid=broker.pid,
    )


async def _seed(stage: Stage, load: GatewayLoad, lines: Sequence[LinePlan], town: TownHandle) -> None:
    await seed_accounts(
        stage.parts.database_url,
        load.meters,
        opened_at=from_ms(stage.opened_ms),
        opened_on=stage.opened_on,
        tariff_id=TARIFF,
        areas=1,
        margin_days=_MARGIN_DAYS,
    )
    async with _database(stage) as conn:
        ports = town.ports[: len(lines)]
        await enter_lines(conn, lines, ports, host=LOOPBACK, poll_s=load.poll_s, timeout_ms=load.timeout_ms)


async def _judged(stage: Stage, progress: Progress) -> tuple[Charged, AuditReport]:
    """Compare every balance, and check every invariant."""
    async with _database(stage) as conn, _database(stage) as second:
        progress("balances", 0, 1)
        charged = await read_charged(conn, stage)
        return charged, await run_checks(conn, stage.calendar, second=second, progress=progress)


def _first_place_s(serial: str, poll_s: int, begin_s: float) -> float:
    return begin_s + (phase_of(serial, poll_s) - begin_s) % poll_s


def _quantile(rising: Sequence[float], part: float) -> float:
    return rising[max(0, math.ceil(len(rising) * part) - 1)]


def _database(stage: Stage) -> AbstractAsyncContextManager[AsyncConnection]:
    return stage.database()
