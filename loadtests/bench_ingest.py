"""`bench ingest`: meters' publishes to charged and durable readings, under an open-loop flood of real MQTT connections.

Stage: the READ story under load, on a scratch folder with its own database, broker and ingest processes; nothing of it
touches an installation's data. For each way in which meters report, an installation of its own: accounts opened, every
meter heard once, then bursts on a schedule that waits for nobody. After each the keys that were sent are looked for,
after all of them every balance is compared with the plain rating, the auditor looks at everything, and the same rows
are written by bare COPY.

Bursts: one at the rate asked for; with `knee`, short ones to the highest rate at which lag stays bounded, and one at
half of it; with `overload`, one at twice the knee.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import uvloop

from db.audit import run_checks
from db.audit.report import AuditReport
from headend.edges.ingest import BATCH_MESSAGES_MAX
from loadtests.bench_machine import log_warnings, machine_facts, measured_at, parts_facts
from loadtests.burst_figures import Finished, burst_figures
from loadtests.flood_frames import FIRST_STEP, Mode, Part, Roster
from loadtests.flood_process import FloodHandle, FloodSettings, Order, flooding, raise_file_limit
from loadtests.ingest_charged import Charged, read_charged
from loadtests.ingest_marks import lag_at_end_ms, read_counters, read_stored
from loadtests.ingest_reference import Reference, copy_bare
from loadtests.ingest_stage import (
    AREAS,
    SETTINGS_SHOWN,
    Stage,
    drop_empty_days,
    open_accounts,
    read_clocks,
    staged,
    start_ingest,
    stop_ingest,
    used_since,
    watching_memory,
)
from loadtests.mqtt_flood import WINDOW_MESSAGES
from loadtests.mqtt_sink import null_sink
from loadtests.population import ACCOUNTS_MAX, STEPS_A_DAY
from loadtests.scratch import BenchError, Progress, scratch_settings
from prepaid.embedded.process import LOOPBACK
from prepaid.settings import Settings
from protocols.topics import SHARDS

# What is asked of two cores, messages a second: 15,000 single ones, 25,000 from gateways, 150,000 readings in blocks.
RATES: Final = {Mode.SINGLE: 15_000, Mode.GATEWAY: 25_000, Mode.BLOCK48: 3_125}
# The accounts' first month, whose charges are of one billing period.
DAYS_MAX: Final = 28
# A burst's frames are in the flood's memory: 5 million single ones are 1.3 GB, as many readings in blocks 0.3 GB.
MESSAGES_MAX: Final = 5_000_000
KNEE_STEP_S: Final = 15
KNEE_LAG_MS_MAX: Final = 2_000
# From the rate asked for a quarter up or down until one holds and one does not, then halved: 7 steps meet within 8 %.
KNEE_STEPS_MAX: Final = 7
KNEE_FACTOR: Final = 1.25
KNEE_CLOSE: Final = 1.08
SINK_S: Final = 2
POLL_S: Final = 0.1
WORK_PER_READING: Final = (
    "MQTT QoS 1 over a real connection, stored by the broker before its PUBACK",
    "decode, validate",
    "rate: running charge, compared with the account's levels; crossings locked, decided, alarms and orders written",
    "COPY and commit, fsync on",
    "acknowledge to the broker, per message",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestLoad:
    """What is offered.

    Units: `rate` is messages a second, None for what each mode is asked for; `as_fast` has every connection publish as
    soon as its last publish is acknowledged, as many messages as `rate` would in `seconds`.
    """

    modes: tuple[Mode, ...] = tuple(Mode)
    rate: float | None = None
    as_fast: bool = False
    seconds: float = 60
    meters: int = 100_000
    connections: int = 2_000
    processes: int = 1
    knee: bool = False
    overload: bool = False
    knee_step_s: float = KNEE_STEP_S

    def rate_of(self, mode: Mode) -> float:
        """Return the rate that a mode is asked for."""
        return RATES[mode] if self.rate is None else self.rate


def bench_ingest(settings: Settings, load: IngestLoad, progress: Progress) -> dict[str, object]:
    """Measure ingest end to end; return the report.

    Raises: BenchError; EmbeddedError.
    """
    _require_possible(load)
    raise_file_limit(load.connections)
    facts = machine_facts()
    modes = [_measure_mode(settings, load, mode, progress) for mode in load.modes]
    parts = modes[0].facts
    return {
        "benchmark": "ingest",
        "measured_at": measured_at(),
        "machine": facts | parts["machine"],
        "settings": parts["settings"] | _settings_shown(load),
        "work_per_reading": list(WORK_PER_READING),
        "modes": [_mode_report(mode) for mode in modes],
        "lost": sum(burst.lost for mode in modes for burst in mode.bursts),
        "complete": all(mode.complete for mode in modes),
    }


@dataclass(slots=True, kw_only=True)
class _ModeRun:
    """What became of one mode."""

    mode: Mode
    facts: dict[str, dict[str, object]]
    own_limit: dict[str, object]
    accounts_seconds: float
    owners: int
    bursts: list[Finished] = field(default_factory=list)
    knee: dict[str, object] | None = None
    charged: Charged
    audit: AuditReport
    reference: Reference
    warnings: Mapping[str, int]

    @property
    def complete(self) -> bool:
        """Tell whether all that was offered is acknowledged, stored, charged, and nothing is broken."""
        return (
            all(burst.complete for burst in self.bursts)
            and self.charged.charged == self.charged.stored
            and self.audit.clean
        )


def _require_possible(load: IngestLoad) -> None:
    if not 1 <= load.meters <= ACCOUNTS_MAX or not 1 <= load.connections <= load.meters:
        raise BenchError(
            f"bench: expected 1 to {ACCOUNTS_MAX} meters and at most one connection each,"
            f" got {load.meters} and {load.connections}"
        )
    rates = [load.rate_of(mode) for mode in load.modes]
    if min(load.seconds, load.knee_step_s, *rates) <= 0 or not 1 <= load.processes <= SHARDS:
        raise BenchError(f"bench: expected a rate and seconds above 0 and 1 to {SHARDS} ingest processes, got {load}")
    if load.overload and not load.knee:
        raise BenchError("bench: expected --knee with --overload, which is twice the knee")
    for mode in load.modes:
        if load.meters % mode.messages_per_write:
            raise BenchError(f"bench: expected meters by {mode.messages_per_write}s in {mode.value}, got {load.meters}")


def _measure_mode(settings: Settings, load: IngestLoad, mode: Mode, progress: Progress) -> _ModeRun:
    """Measure one mode on an installation of its own."""
    own_limit = _own_limit(load, mode)
    with scratch_settings(settings) as scratch, staged(scratch) as stage:
        began_s = asyncio.run(_opened(stage, load))
        start_ingest(stage, load.processes)
        roster = Roster(meters=load.meters, connections=load.connections, opened_ms=stage.opened_ms)
        parts = stage.parts
        with flooding(FloodSettings(host=parts.mqtt_host, port=parts.mqtt_port, roster=roster)) as flood:
            run = _Run(stage=stage, roster=roster, flood=flood, load=load, mode=mode, progress=progress)
            facts, owners = uvloop.run(run.all_bursts())
        stop_ingest(stage)
        charged, audit = uvloop.run(_judged(stage, progress))
        first = run.bursts[0]
        progress("reference", 0, 1)
        reference = uvloop.run(copy_bare(stage, roster, first.sent.part, first.mean_batch))
        return _ModeRun(
            mode=mode,
            facts=facts,
            own_limit=own_limit,
            accounts_seconds=began_s,
            owners=owners,
            bursts=run.bursts,
            knee=run.knee,
            charged=charged,
            audit=audit,
            reference=reference,
            warnings=log_warnings(scratch.data_dir.glob("ingest-*.log")),
        )


async def _opened(stage: Stage, load: IngestLoad) -> float:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await open_accounts(stage, load.meters, DAYS_MAX)
    return loop.time() - began_s


def _own_limit(load: IngestLoad, mode: Mode) -> dict[str, object]:
    """Measure how fast the flood is against a broker that does nothing."""
    each = mode.messages_per_write
    count = _whole(load.rate_of(mode) * min(SINK_S, load.seconds), each)
    roster = Roster(meters=load.meters, connections=load.connections, opened_ms=0)
    with null_sink() as port, flooding(FloodSettings(host=LOOPBACK, port=port, roster=roster)) as flood:
        flood.prepare(Order(part=Part(mode=mode, first=0, count=count), rate=None))
        flood.begin()
        sent = flood.take()
    return {
        "messages": count,
        "messages_per_second": round(sent.pubacked / sent.seconds_pubacked),
        "cpu_us_per_message": round(sent.cpu_s / count * 1e6, 1),
        "messages_per_cpu_second": round(count / max(sent.cpu_s, 1e-3)),
    }


@dataclass(slots=True, kw_only=True)
class _Run:
    """The bursts of one mode.

    Invariants: messages are numbered on from burst to burst, so that no meter skips an interval.
    """

    stage: Stage
    roster: Roster
    flood: FloodHandle
    load: IngestLoad
    mode: Mode
    progress: Progress
    bursts: list[Finished] = field(default_factory=list)
    knee: dict[str, object] | None = None
    _next: int = 0

    async def all_bursts(self) -> tuple[dict[str, dict[str, object]], int]:
        """Let every meter report once, then run what was asked for."""
        async with self.stage.database() as conn:
            facts = await parts_facts(conn, self.stage.parts.nats_url, SETTINGS_SHOWN)
            owners = await self.stage.await_owners(conn)
        warm_up = Part(mode=self.mode, first=0, count=self.roster.meters, warm_up=True)
        await self._burst("warm_up", warm_up, rate=None)
        load, rate = self.load, self.load.rate_of(self.mode)
        self.bursts.append(await self._at("sustained", None if load.as_fast else rate, load.seconds))
        if load.knee:
            knee = await self._find_knee(rate)
            self.bursts.append(await self._at("half_knee", knee / 2, load.seconds))
            if load.overload:
                self.bursts.append(await self._at("overload", 2 * knee, load.seconds))
        return facts, owners

    async def _find_knee(self, rate: float) -> float:
        """Return the highest rate tried at which lag stayed bounded; half of the lowest if it never did."""
        held, failed, steps = 0.0, 0.0, []
        for _ in range(KNEE_STEPS_MAX):
            burst = await self._at("knee", rate, self.load.knee_step_s)
            self.bursts.append(burst)
            lag_ms = lag_at_end_ms(burst.sent, burst.stored)
            steps.append({"rate": round(rate), "lag_at_end_ms": round(lag_ms)})
            if lag_ms < KNEE_LAG_MS_MAX:
                held = rate
            else:
                failed = rate
            if held and failed and failed < held * KNEE_CLOSE:
                break
            rate = (held * failed) ** 0.5 if held and failed else (held * KNEE_FACTOR or failed / KNEE_FACTOR)
        self.knee = {"messages_per_second": round(held), "readings_per_second": round(held * self.mode.intervals)}
        self.knee["steps"] = steps
        return held or failed / 2

    async def _at(self, name: str, rate: float | None, seconds: float) -> Finished:
        """Run a burst at a rate; without one, as fast as acknowledgements come."""
        count = _whole((rate or self.load.rate_of(self.mode)) * seconds, self.mode.messages_per_write)
        part = Part(mode=self.mode, first=self._next, count=count)
        days = -(-(FIRST_STEP + -(-(part.first + count) // self.roster.meters) * self.mode.intervals) // STEPS_A_DAY)
        if count > MESSAGES_MAX or days > DAYS_MAX:
            raise BenchError(
                f"bench: expected at most {MESSAGES_MAX} messages a burst and {DAYS_MAX} days of readings a meter,"
                f" got {count} and {days}; more meters, fewer seconds or a lower rate"
            )
        self._next += count
        return await self._burst(name, part, rate)

    async def _burst(self, name: str, part: Part, rate: float | None) -> Finished:
        """Publish a part, wait until ingest has acknowledged all of it, and count."""
        stage, of = self.stage, part.count
        self.progress(f"{name}: frames", 0, of)
        self.flood.prepare(Order(part=part, rate=rate))
        loop = asyncio.get_running_loop()
        async with stage.database() as conn, watching_memory(stage) as memory_mib:
            before = await read_counters(conn)
            clocks = stage.cpu_clocks()
            cpu_before = read_clocks(clocks)
            began_s = loop.time()
            self.flood.begin()
            while not self.flood.is_done:
                self.progress(f"{name}: seconds", round(loop.time() - began_s), round(of / rate) if rate else 0)
                await asyncio.sleep(POLL_S)
            sent = self.flood.take()
            store_bytes = stage.store_bytes()
            ended_s = loop.time()
            await stage.settle(lambda backlog: self.progress(f"{name}: drained", of - backlog, of))
            cpu_s = used_since(read_clocks(clocks), cpu_before)
            return Finished(
                name=name,
                sent=sent,
                cpu_s=cpu_s | {"flood": sent.cpu_s},
                elapsed_s=loop.time() - began_s,
                drained_s=loop.time() - ended_s,
                memory_mib=dict(memory_mib),
                broker_store_bytes=store_bytes,
                before=before,
                after=await read_counters(conn),
                stored=await read_stored(conn, self.roster, part),
            )


async def _judged(stage: Stage, progress: Progress) -> tuple[Charged, AuditReport]:
    """Compare every balance, and check every invariant."""
    async with stage.database() as conn, stage.database() as second:
        await drop_empty_days(conn)
        progress("balances", 0, 1)
        charged = await read_charged(conn, stage)
        return charged, await run_checks(conn, stage.calendar, second=second, progress=progress)


def _mode_report(run: _ModeRun) -> dict[str, object]:
    figures = [burst_figures(burst) for burst in run.bursts]
    readings_per_second = run.bursts[0].readings_per_second
    return {
        "mode": run.mode.value,
        "readings_per_message": run.mode.intervals,
        "messages_per_write": run.mode.messages_per_write,
        "flood_alone": run.own_limit,
        "accounts_seconds": round(run.accounts_seconds, 1),
        "ingest_processes_with_shards": run.owners,
        "bursts": figures,
        "knee": run.knee,
        "charged": run.charged.report(),
        "audit": {"clean": run.audit.clean, "broken": [each.line() for each in run.audit.checks if each.broken]},
        "reference": run.reference.report(),
        "ratio": round(readings_per_second / run.reference.per_second, 3),
        "warnings": dict(run.warnings),
        "complete": run.complete,
    }


def _settings_shown(load: IngestLoad) -> dict[str, object]:
    return {
        "ingest_processes": load.processes,
        "batch_messages_max": BATCH_MESSAGES_MAX,
        "meters": load.meters,
        "areas": AREAS,
        "mqtt_connections": load.connections,
        "unanswered_a_connection_max": WINDOW_MESSAGES,
    }


def _whole(messages: float, each: int) -> int:
    """Return at least one write, and whole ones. Rounds: up."""
    return max(1, -(-round(messages) // each)) * each
