"""`bench vend`: recharges sold a second over the vending interface by one API process, and how soon each is answered.

Stage: a scratch folder with a database of its own, `prepaid api` as a child, and stations as a process of their own on
the same machine. Stations send signed requests on a schedule that waits for nobody; each is a whole vend: caller,
account locked and rated, arrears split, token minted, journal, float, receipt, restore order, one commit, fsync on. The
same stations then ask a bare endpoint for one inserted row each, behind the same framework, server and pool. Nothing of
it touches an installation's data.

What is measured is the time from when a request was due. After each round, what the stations were told is compared with
what the database holds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import uvloop
from psycopg import AsyncConnection

from billing.calendar import from_ms
from billing.money import format_minor
from billing.terms import ONE_DAY
from db.binary_copy import encode_readings
from db.migrate import migrate
from db.pool import connect
from db.readings import copy_encoded, ensure_partitions, partition_span
from db.registry import add_vendor
from loadtests.bench_machine import (
    cpu_seconds,
    family_cpu_seconds,
    file_system,
    log_warnings,
    machine_cpu_seconds,
    machine_facts,
    measured_at,
)
from loadtests.bench_vend_bare import DATABASE_VARIABLE, GRANT, MAKE_TABLE, PATH
from loadtests.bench_vend_flood import DONE, Answers, Round, StationsHandle, running_stations
from loadtests.bench_vend_proof import Books, Kept, Work, count_kept, read_books, read_work
from loadtests.population import ACCOUNTS_MAX, STEPS_A_DAY, TARIFF, readings_at, serial_of
from loadtests.scratch import BenchError, Progress, scratch_settings
from loadtests.seed_accounts import give_sts_keys, seed_accounts
from prepaid.embedded import EmbeddedPostgres, Parts
from prepaid.embedded.process import LOOPBACK, accepts, free_ports, spawn, stop_child, wait_until
from prepaid.keys import master_key
from prepaid.processes import calendar_of
from prepaid.settings import Settings
from prepaid.system import System
from vending.edges.keys import NewApiKey, issue_api_key
from vending.roles import Role
from vending.signatures import sign_request

VENDS_PER_S_MIN: Final = 400
HOT_VENDS_PER_S_MIN: Final = 200
P99_MS_MAX: Final = 100.0
# Stations of a city keep some dozens of lines busy; who finds none free waits, and that counts.
LINES: Final = 128
# As many at once as saturate the process and no more: then what is measured is its pace and not its queue.
LINES_AS_FAST: Final = 16
VEND_PATH: Final = "/v1/vends"
# Whole tens of rupees, below every limit of a sale in cash.
AMOUNTS_MINOR: Final = range(10_000, 100_000, 1_000)
START_S_MAX: Final = 20.0
# Counters of a session reach the database's at most so long after its last transaction.
COUNTERS_S: Final = 1.1
SETTINGS_SHOWN: Final = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
STOP_LADDER: Final = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))
WORK_PER_VEND: Final = (
    "HTTP/1.1 request, signature checked, caller, limits",
    "message id looked up and locked, account locked, rated from its readings, rules and arrears",
    "token minted under the meter's record, token id taken",
    "journal, balance, levels, restore order, notice, change feed",
    "vendor's float, receipt stored, act in the audit trail, one commit with fsync",
)
WORK_PER_BARE: Final = ("HTTP/1.1 request, body read", "one row inserted, one commit with fsync")


@dataclass(frozen=True, slots=True, kw_only=True)
class VendLoad:
    """What is offered. Units: rates are requests a second; `hot_rate` is that of one vendor alone."""

    rate: int
    hot_rate: int
    seconds: int
    hot_seconds: int
    as_fast_seconds: int
    warm_up_seconds: int
    accounts: int
    vendors: int


FULL: Final = VendLoad(
    rate=VENDS_PER_S_MIN,
    hot_rate=HOT_VENDS_PER_S_MIN,
    seconds=60,
    hot_seconds=20,
    as_fast_seconds=10,
    # Statements are prepared at their fifth execution, on each connection of the pool.
    warm_up_seconds=3,
    accounts=20_000,
    vendors=100,
)
# Seconds on any machine: what the test suite runs.
QUICK: Final = VendLoad(
    rate=20, hot_rate=20, seconds=2, hot_seconds=1, as_fast_seconds=1, warm_up_seconds=1, accounts=200, vendors=5
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vendor:
    id: int
    key: NewApiKey = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The vends of a round, in order: who sells, to which meter, under which message id."""

    vendors: Sequence[_Vendor]
    message_ids: Sequence[str]
    requests: Sequence[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """All that takes part."""

    conn: AsyncConnection
    stations: StationsHandle
    server_pid: int
    api_pid: int
    bare_pid: int
    api_port: int
    bare_port: int
    accounts: int
    vendors: Sequence[_Vendor]


def bench_vend(settings: Settings, load: VendLoad, progress: Progress) -> dict[str, object]:
    """Measure vends of many vendors, of a single one, and bare rows; return the report.

    Raises: BenchError; EmbeddedError.
    """
    _require_possible(load)
    facts = machine_facts()
    with scratch_settings(settings) as scratch, EmbeddedPostgres(scratch.data_dir / "pg") as server:
        began_s = time.monotonic()
        progress("accounts", 0, load.accounts)
        vendors = uvloop.run(_seed(scratch, server.database_url, load))
        seeded_s = time.monotonic() - began_s
        with (
            _api(scratch, server.database_url) as system,
            _bare(scratch.data_dir, server.database_url) as bare,
            running_stations() as stations,
        ):
            report = uvloop.run(_measure(system, bare, server, stations, vendors, load, progress))
            warnings = log_warnings([scratch.data_dir / "api.log"])
        shown = file_system(scratch.data_dir)
    return {
        "benchmark": "vend",
        "measured_at": measured_at(),
        "machine": facts | {"file_system": shown},
        "work_per_vend": list(WORK_PER_VEND),
        "work_per_bare_row": list(WORK_PER_BARE),
        "accounts": load.accounts,
        "vendors": load.vendors,
        "readings_an_account": STEPS_A_DAY,
        "seconds_of_seeding": round(seeded_s, 1),
        "lines": LINES,
        "lines_as_fast": LINES_AS_FAST,
        "warnings": warnings,
    } | report


def _require_possible(load: VendLoad) -> None:
    if not 1 <= load.accounts <= ACCOUNTS_MAX or min(load.rate, load.hot_rate, load.seconds, load.vendors) < 1:
        raise BenchError(f"bench: expected 1 to {ACCOUNTS_MAX} accounts, and 1 or more of all else, got {load}")


# The town ------------------------------------------------------------------------------------------------------------


async def _seed(settings: Settings, url: str, load: VendLoad) -> list[_Vendor]:
    """Open accounts with a day of readings and key records, make vendors, each with a key that signs."""
    calendar = calendar_of(settings)
    opened_on = calendar.day_of(time.time_ns() // 1_000_000) - ONE_DAY
    opened_ms = calendar.midnight_ms(opened_on)
    async with await connect(url, application="prepaid-bench") as conn:
        await migrate(conn)
        await ensure_partitions(conn, partition_span(from_ms(opened_ms).date()))
    await seed_accounts(url, load.accounts, opened_at=from_ms(opened_ms), opened_on=opened_on, tariff_id=TARIFF)
    async with await connect(url, application="prepaid-bench") as conn:
        await _add_readings(conn, load.accounts, opened_ms, opened_on)
        await give_sts_keys(conn, load.accounts)
        await conn.execute(MAKE_TABLE)
        await conn.execute(GRANT)
        vendors = [await _add_vendor(conn, settings, number) for number in range(load.vendors)]
        await conn.execute("vacuum analyze")
    return vendors


async def _add_readings(conn: AsyncConnection, accounts: int, opened_ms: int, opened_on: date) -> None:
    numbers = np.arange(1, accounts + 1, dtype=np.int64)
    await ensure_partitions(conn, {opened_on - ONE_DAY, opened_on, opened_on + ONE_DAY})
    for step in range(1, STEPS_A_DAY):
        await copy_encoded(conn, encode_readings(readings_at(numbers, step, opened_ms)))


async def _add_vendor(conn: AsyncConnection, settings: Settings, number: int) -> _Vendor:
    vendor_id = await add_vendor(conn, f"Bench station {number}")
    key = await issue_api_key(conn, Role.VENDOR, vendor_id=vendor_id, master=master_key(settings))
    return _Vendor(id=vendor_id, key=key)


@contextmanager
def _api(settings: Settings, database_url: str) -> Iterator[System]:
    """Run `prepaid api` alone; it asks no broker for anything."""
    parts = Parts(database_url=database_url, nats_url=f"nats://{LOOPBACK}:1", mqtt_host=LOOPBACK, mqtt_port=1)
    port = free_ports(["api"], taken=set())["api"]
    system = System(settings=settings, parts=parts, api_port=port)
    try:
        system.start_all(["api"])
        yield system
    finally:
        system.stop()


@contextmanager
def _bare(folder: Path, database_url: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run the bare endpoint; yield its port and its process."""
    port = free_ports(["bare"], taken=set())["bare"]
    log_path = folder / "bare.log"
    child = spawn(
        [sys.executable, "-P", "-m", "loadtests.bench_vend_bare", str(port)],
        log_path=log_path,
        death_signal=signal.SIGTERM,
        environment={**os.environ, DATABASE_VARIABLE: database_url},
    )
    try:
        wait_until(lambda: accepts(port), child=child, name="bare endpoint", log_path=log_path, timeout_s=START_S_MAX)
        yield port, child
    finally:
        stop_child(child, name="bare endpoint", ladder=STOP_LADDER)


# The rounds ----------------------------------------------------------------------------------------------------------


async def _measure(
    system: System,
    bare: tuple[int, subprocess.Popen[bytes]],
    server: EmbeddedPostgres,
    stations: StationsHandle,
    vendors: Sequence[_Vendor],
    load: VendLoad,
    progress: Progress,
) -> dict[str, object]:
    assert server.pid is not None, "the database was started"
    async with await connect(server.database_url, application="prepaid-bench") as conn:
        stage = _Stage(
            conn=conn,
            stations=stations,
            server_pid=server.pid,
            api_pid=system.pid("api"),
            bare_pid=bare[1].pid,
            api_port=system.api_port,
            bare_port=bare[0],
            accounts=load.accounts,
            vendors=vendors,
        )
        rounds: dict[str, dict[str, object]] = {}
        for name, vends, rate, seconds, many in (
            ("warm_up", True, load.rate / 4, load.warm_up_seconds, True),
            ("warm_up_bare", False, load.rate / 4, load.warm_up_seconds, True),
            ("bare", False, float(load.rate), min(load.seconds, load.hot_seconds), True),
            ("many_vendors", True, float(load.rate), load.seconds, True),
            ("one_hot_vendor", True, float(load.hot_rate), load.hot_seconds, False),
            ("bare_as_fast", False, None, load.as_fast_seconds, True),
            ("many_vendors_as_fast", True, None, load.as_fast_seconds, True),
            ("one_hot_vendor_as_fast", True, None, load.as_fast_seconds, False),
        ):
            progress(name, len(rounds), 8)
            asked = _Asked(name=name, rate=rate, seconds=seconds, vendors=vendors if many else vendors[:1])
            rounds[name] = await (_vends(stage, asked) if vends else _bare_rows(stage, asked))
        books = await read_books(conn)
        shown = await conn.execute(
            "select name, current_setting(name) from unnest(%s::text[]) name", (list(SETTINGS_SHOWN),)
        )
        settings: dict[str, str] = dict(await shown.fetchall())
    return {"settings": settings, **rounds, **_verdict(rounds, books)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A round to be played."""

    name: str
    rate: float | None
    seconds: float
    vendors: Sequence[_Vendor]

    @property
    def count(self) -> int:
        """Requests to make: without a rate more than any machine answers."""
        return int((self.rate or 2_500) * self.seconds)

    @property
    def lines(self) -> int:
        """Connections that the stations share."""
        return LINES_AS_FAST if self.rate is None else LINES


async def _vends(stage: _Stage, asked: _Asked) -> dict[str, object]:
    """Sell; prove what was sold."""
    plan = _plan(asked, stage.accounts)
    answers, used = await _served(stage, asked, plan.requests, port=stage.api_port, pid=stage.api_pid)
    sold = [status == 200 for status in answers.status.tolist()]
    kept = await count_kept(stage.conn, [vendor.id for vendor in plan.vendors], plan.message_ids, sold)
    return _figures(asked, answers) | _kept_figures(kept) | used


async def _bare_rows(stage: _Stage, asked: _Asked) -> dict[str, object]:
    requests = [
        _request(PATH, _body(f"{asked.name}-{number}", serial_of(1), AMOUNTS_MINOR[0]), {})
        for number in range(asked.count)
    ]
    answers, used = await _served(stage, asked, requests, port=stage.bare_port, pid=stage.bare_pid)
    return _figures(asked, answers) | used


async def _served(
    stage: _Stage, asked: _Asked, requests: Sequence[bytes], *, port: int, pid: int
) -> tuple[Answers, dict[str, object]]:
    """Let stations send; also say what each process and the database did meanwhile."""
    cpu_before, work_before = _cpu_s(stage, pid), await read_work(stage.conn)
    answers = stage.stations.serve(
        Round(port=port, lines=asked.lines, requests=requests, rate=asked.rate, seconds=asked.seconds)
    )
    cpu_after = _cpu_s(stage, pid)
    await asyncio.sleep(COUNTERS_S)
    work = (await read_work(stage.conn)).since(work_before)
    cpu = {name: round(cpu_after[name] - before_s, 2) for name, before_s in cpu_before.items()}
    return answers, _work_figures(answers, work, cpu | {"stations": round(answers.cpu_s, 2)})


def _cpu_s(stage: _Stage, pid: int) -> dict[str, float]:
    found = {
        "server": cpu_seconds(pid),
        "database": family_cpu_seconds(stage.server_pid),
        "whole_machine": machine_cpu_seconds(),
    }
    return {name: used for name, used in found.items() if used is not None}


def _plan(asked: _Asked, accounts: int) -> _Plan:
    """Deal vends to vendors in turn and to meters in random order, each meter once before any comes again."""
    rng = random.Random(asked.name)
    numbers: list[int] = []
    while len(numbers) < asked.count:
        numbers += rng.sample(range(1, accounts + 1), accounts)
    vendors = [asked.vendors[number % len(asked.vendors)] for number in range(asked.count)]
    message_ids = [f"{asked.name}-{number:08d}" for number in range(asked.count)]
    at_s = int(time.time())
    requests = []
    for vendor, message_id, number in zip(vendors, message_ids, numbers, strict=False):
        body = _body(message_id, serial_of(number), rng.choice(AMOUNTS_MINOR))
        signed = sign_request(
            key_id=vendor.key.key_id,
            secret=vendor.key.secret,
            method="POST",
            path=VEND_PATH,
            body=body,
            at_s=at_s,
            nonce=message_id,
        )
        requests.append(_request(VEND_PATH, body, signed))
    return _Plan(vendors=vendors, message_ids=message_ids, requests=requests)


def _body(message_id: str, meter: str, amount_minor: int) -> bytes:
    return json.dumps({"message_id": message_id, "meter": meter, "amount": format_minor(amount_minor)}).encode()


def _request(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {LOOPBACK}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


# The figures ---------------------------------------------------------------------------------------------------------


def _figures(asked: _Asked, answers: Answers) -> dict[str, object]:
    took_ms = answers.took_ms
    done = answers.outcomes.get(DONE, 0)
    seconds = max(answers.seconds, 1e-9)
    return {
        "offered_per_second": asked.rate,
        "offered": int((answers.due_ns >= 0).sum()),
        "answered": len(took_ms),
        "done": done,
        "done_per_second": round(done / seconds, 1),
        "seconds": round(seconds, 2),
        "outcomes": answers.outcomes,
        "due_to_answer_ms": _percentiles(took_ms),
        "left_late_ms_max": round(answers.behind_ms_max, 1),
    }


def _percentiles(rising_ms: Sequence[float]) -> dict[str, float | int]:
    """Return percentiles by nearest rank: the smallest duration that so many percent of all do not exceed."""
    if not rising_ms:
        return {"of": 0}
    ranks = {f"p{percent}": -(-len(rising_ms) * percent // 100) - 1 for percent in (50, 95, 99)}
    found = {name: round(rising_ms[rank], 1) for name, rank in ranks.items()}
    return {"of": len(rising_ms), **found, "max": round(rising_ms[-1], 1)}


def _kept_figures(kept: Kept) -> dict[str, object]:
    return {"kept": kept.kept, "lost": kept.lost, "sold_and_not_heard": kept.unheard, "torn": kept.torn}


def _work_figures(answers: Answers, work: Work, cpu_s: Mapping[str, float]) -> dict[str, object]:
    answered = max(1, len(answers.took_ms))
    return {
        "cpu_seconds": dict(cpu_s),
        "server_cpu_ms_each": round(cpu_s.get("server", 0.0) * 1_000 / answered, 3),
        "database_cpu_ms_each": round(cpu_s.get("database", 0.0) * 1_000 / answered, 3),
        "commits": work.commits,
        "rollbacks": work.rollbacks,
        "deadlocks": work.deadlocks,
        "wal_bytes_each": round(work.wal_bytes / answered),
    }


def _verdict(rounds: Mapping[str, Mapping[str, object]], books: Books) -> dict[str, object]:
    """Say whether the targets are reached and everything is accounted for."""
    sold = [figures for figures in rounds.values() if "lost" in figures]
    whole = books.agree and all(
        figures["answered"] == figures["offered"] == figures["done"] and not figures["torn"] for figures in sold
    )
    return {
        "targets": {
            "vends_per_second_min": VENDS_PER_S_MIN,
            "hot_vendor_per_second_min": HOT_VENDS_PER_S_MIN,
            "p99_ms_max": P99_MS_MAX,
        },
        "reached": {
            "many_vendors": _reached(rounds["many_vendors"], VENDS_PER_S_MIN),
            "one_hot_vendor": _reached(rounds["one_hot_vendor"], HOT_VENDS_PER_S_MIN),
        },
        "server_cpu_against_bare": _against(rounds, "server_cpu_ms_each"),
        "database_cpu_against_bare": _against(rounds, "database_cpu_ms_each"),
        "as_fast_against_bare": _ratio(
            rounds["many_vendors_as_fast"]["done_per_second"], rounds["bare_as_fast"]["done_per_second"]
        ),
        "vends": books.vends,
        "sold_minor": books.sold_minor,
        "books_agree": books.agree,
        "lost": sum(int(str(figures["lost"])) for figures in sold),
        "complete": whole,
    }


def _reached(figures: Mapping[str, object], per_second_min: int) -> bool:
    """A round keeps up when it was offered as much, all was done, and the slowest hundredth is soon enough."""
    offered, took = figures["offered_per_second"], figures["due_to_answer_ms"]
    assert isinstance(offered, float), "a round on a schedule has a rate"
    assert isinstance(took, dict), "percentiles by name"
    return (
        offered >= per_second_min
        and figures["done"] == figures["offered"]
        and took.get("p99", P99_MS_MAX + 1) <= P99_MS_MAX
    )


def _against(rounds: Mapping[str, Mapping[str, object]], name: str) -> float | None:
    return _ratio(rounds["many_vendors"][name], rounds["bare"][name])


def _ratio(measured: object, reference: object) -> float | None:
    assert isinstance(measured, float), "a figure"
    assert isinstance(reference, float), "a figure"
    return round(measured / reference, 2) if reference else None
