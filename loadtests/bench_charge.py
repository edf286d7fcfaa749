"""`bench charge`: the charge transaction alone, beside a bare COPY of the same rows, with very many accounts.

Stage: the middle of the READ story without broker and decoder: arrays of readings in; validated, rated, thresholds
checked, crossings settled at their natural share, commit out. Runs on a scratch database with its own server.

How it is measured: writers are processes of their own, each owner of its part of the shards. Runs come in pairs, first
the bare binary COPY of the rows, sorted and already encoded, into the same keyed and partitioned table, then the
charge of the same readings. Both start with empty tables and a checkpoint, and end with the commit of the last batch.
The ratio of each pair is taken; reported are medians, lowest and highest. A batch holds readings of as many different
accounts at one instant, in random order over all accounts, sorted by meter: worse for the key's index than rows in
the order of ids, for both.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from multiprocessing.connection import Connection
from statistics import median
from typing import Final

import psycopg
import uvloop

from billing.calendar import LocalCalendar, from_ms
from billing.terms import ONE_DAY
from db.migrate import migrate
from db.orders import PostingRules
from db.pool import connect
from db.readings import ensure_partitions
from headend.edges.close_day import close_day
from loadtests.bench_machine import machine_facts, measured_at
from loadtests.charge_oracle import owed_minor
from loadtests.charge_runs import Run, one, run_task, writing
from loadtests.charge_writer import Task
from loadtests.population import ACCOUNTS_MAX, OPENED_ON, STEP_MS, STEPS_A_DAY, TARIFF
from loadtests.scratch import BenchError, Progress, scratch_database
from loadtests.seed_accounts import seed_accounts
from prepaid.settings import Settings
from protocols.topics import SHARDS

BATCHES: Final = (1_000, 5_000, 20_000)
WRITERS: Final = (1, 2)
PAIRS_MIN: Final = 1
# Rows of a run are made before its clock starts: 150 bytes each as columns and encoded, 750 MB.
READINGS_MAX: Final = 5_000_000
SETTINGS_SHOWN: Final = ("synchronous_commit", "fsync", "full_page_writes", "shared_buffers", "max_wal_size")
WORK_PER_READING: Final = (
    "fence",
    "validate",
    "rate, compare with the account's levels",
    "encode",
    "COPY",
    "counts",
    "crossings: lock, look, alarm, order, notice",
    "commit, fsync on",
)
# Not in it: decoding, acknowledging, reading the change feed between batches. What the writers know of their accounts
# before the first batch is made by formula, not looked up.
# The share of the bare COPY's rate that a charge has to reach, by number of writers and size of batch.
TARGETS: Final = {(1, 20_000): 0.75, (1, 5_000): 0.70, (1, 1_000): 0.60, (2, 20_000): 0.70, (2, 5_000): 0.70}
CLOSED_TARGET: Final = 0.60


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeLoad:
    """What is measured: accounts there are, readings of a run (one an account at most), pairs of runs a figure.

    `day_accounts` are read through whole days, each followed by its close-day; 0 leaves that out.
    """

    accounts: int
    readings: int
    pairs: int
    batches: tuple[int, ...] = BATCHES
    writers: tuple[int, ...] = WRITERS
    day_accounts: int = 0


# Seconds on any machine: what the test suite runs.
QUICK: Final = ChargeLoad(accounts=300, readings=200, pairs=1, batches=(20, 100), writers=(1, 2), day_accounts=40)


def bench_charge(settings: Settings, load: ChargeLoad, progress: Progress) -> dict[str, object]:
    """Measure the charge transaction and the bare COPY in pairs; return the report.

    Raises: BenchError; EmbeddedError.
    """
    _require_possible(load)
    facts = machine_facts()
    calendar = LocalCalendar(settings.zone)
    with scratch_database(settings) as url:
        uvloop.run(prepare(url, load.accounts, calendar, days=load.pairs + 2))
        with psycopg.connect(url, autocommit=True) as conn:
            rows = _sweeps(conn, url, load, calendar, progress)
            days = day_row(conn, url, load, calendar, progress) if load.day_accounts else None
            shown = {name: one(conn, "select current_setting(%s)", name) for name in SETTINGS_SHOWN}
            deadlocks = one(
                conn, "select coalesce(deadlocks, 0) from pg_stat_database where datname = current_database()"
            )
            version = one(conn, "select current_setting('server_version')")
    return {
        "benchmark": "charge",
        "measured_at": measured_at(),
        "machine": facts | {"postgresql": version},
        "settings": shown,
        "work_per_reading": list(WORK_PER_READING),
        "accounts": load.accounts,
        "readings_a_run": load.readings,
        "pairs": load.pairs,
        "rows": rows,
        "with_close_day": days,
        "deadlocks": deadlocks,
        "complete": all(row["complete"] for row in rows) and (days is None or bool(days["complete"])),
    }


def _require_possible(load: ChargeLoad) -> None:
    if not 1 <= load.accounts <= ACCOUNTS_MAX or not 1 <= load.readings <= min(load.accounts, READINGS_MAX):
        raise BenchError(
            f"bench: expected 1 to {ACCOUNTS_MAX} accounts and at most one reading each, {READINGS_MAX} in all,"
            f" got {load.accounts} and {load.readings}"
        )
    if not 0 <= load.day_accounts <= min(load.accounts, READINGS_MAX // STEPS_A_DAY):
        raise BenchError(f"bench: expected at most {READINGS_MAX // STEPS_A_DAY} accounts to be read for whole days")
    if load.pairs < PAIRS_MIN or min(*load.batches, *load.writers, 1) < 1 or max(load.writers) > SHARDS:
        raise BenchError(f"bench: expected {PAIRS_MIN} pair or more, batches of 1 or more, 1 to {SHARDS} writers")
    if (load.pairs * len(load.batches) + 1) * len(load.writers) >= STEPS_A_DAY:
        raise BenchError(f"bench: expected fewer than {STEPS_A_DAY} runs of pairs in all, one half hour of a day each")


async def prepare(url: str, accounts: int, calendar: LocalCalendar, *, days: int = 2) -> None:
    """Migrate a database, make the partitions of some days and open accounts at the first midnight."""
    opened_ms = calendar.midnight_ms(OPENED_ON)
    async with await connect(url, application="prepaid-bench") as conn:
        await migrate(conn)
        await ensure_partitions(
            conn, {from_ms(opened_ms + step * STEP_MS).date() for step in range(days * STEPS_A_DAY + 1)}
        )
    await seed_accounts(url, accounts, opened_at=from_ms(opened_ms), opened_on=OPENED_ON, tariff_id=TARIFF)


def _sweeps(
    conn: psycopg.Connection, url: str, load: ChargeLoad, calendar: LocalCalendar, progress: Progress
) -> list[dict[str, object]]:
    """Measure every number of writers with every size of batch: a pair of runs takes one reading of each account."""
    rows = []
    steps = itertools.count(1)
    total = load.pairs * len(load.batches) * len(load.writers)
    for writers in load.writers:
        with writing(url, writers, accounts=load.accounts, calendar=calendar) as pipes:
            # Not counted: writers that start anew set the accounts right that an emptied table has left cut off.
            _pair(conn, pipes, calendar, _one_step(load, load.batches[-1], next(steps)))
            for batch in load.batches:
                pairs = []
                for _ in range(load.pairs):
                    step = next(steps)
                    progress("pairs", step, total)
                    pairs.append(_pair(conn, pipes, calendar, _one_step(load, batch, step)))
                rows.append(_row(writers, batch, pairs))
    return rows


def _one_step(load: ChargeLoad, batch: int, step: int) -> Task:
    return Task(charge=True, batch=batch, steps=range(step, step + 1), first=1, last=load.readings, seed=step)


def _pair(
    conn: psycopg.Connection, pipes: Sequence[Connection], calendar: LocalCalendar, task: Task
) -> tuple[Run, Run, bool]:
    """Run the bare COPY, then the charge, of the same readings into the same empty table.

    Also tells whether all were charged: as many as there are rows, and as much as the plain rating of the rows says.
    """
    runs = []
    for charge in (False, True):
        # Outcomes are counted in `batches`, which goes with the readings it counts.
        conn.execute("truncate readings, batches")
        conn.execute("checkpoint")
        runs.append(run_task(conn, pipes, replace(task, charge=charge)))
        stored = one(conn, "select count(*) from readings")
        assert stored == runs[-1].readings, f"run: expected {runs[-1].readings} rows, got {stored}"
    at_ms = calendar.midnight_ms(OPENED_ON) + task.steps[-1] * STEP_MS
    read, owed = owed_minor(conn, at_ms, calendar.day_of(at_ms))
    whole = read == task.last - task.first + 1 and owed == runs[1].charged_minor
    return runs[0], runs[1], whole


def day_row(
    conn: psycopg.Connection, url: str, load: ChargeLoad, calendar: LocalCalendar, progress: Progress
) -> dict[str, object]:
    """Measure whole days: all half hours of some accounts by bare COPY, then by charge with the close-day after it."""
    pairs, closes, complete = [], [], True
    batch = max(load.batches)
    with writing(url, 1, accounts=load.accounts, calendar=calendar) as pipes:
        for number in range(load.pairs + 1):
            progress("days", number, load.pairs)
            # The first day only brings the accounts to a midnight, and is not counted.
            first = number * STEPS_A_DAY if number else STEPS_A_DAY - 1
            steps = range(first + 1, (number + 1) * STEPS_A_DAY + 1)
            task = Task(charge=True, batch=batch, steps=steps, first=1, last=load.day_accounts, seed=number)
            bare, charge, whole = _pair(conn, pipes, calendar, task)
            day = OPENED_ON + number * ONE_DAY
            began_s = time.monotonic()
            uvloop.run(_close(url, day, load.day_accounts, calendar))
            close_s = time.monotonic() - began_s
            complete &= whole and _is_posted(conn, day, load.day_accounts, calendar)
            if number:
                pairs.append((bare, charge))
                closes.append(close_s)
    ratios = [bare.seconds / charge.seconds for bare, charge in pairs]
    closed = [bare.seconds / (charge.seconds + close_s) for (bare, charge), close_s in zip(pairs, closes, strict=True)]
    return {
        "writers": 1,
        "batch": batch,
        "accounts": load.day_accounts,
        "readings": pairs[0][1].readings,
        "bare": _figures([bare for bare, _ in pairs]),
        "charge": _figures([charge for _, charge in pairs]),
        "close_day_seconds": round(median(closes), 2),
        "accounts_closed_per_second": round(load.day_accounts / median(closes)),
        "ratio_without": round(median(ratios), 3),
        "ratio": round(median(closed), 3),
        "ratio_lowest": round(min(closed), 3),
        "ratio_highest": round(max(closed), 3),
        "target": CLOSED_TARGET,
        "complete": complete,
    }


async def _close(url: str, day: date, last: int, calendar: LocalCalendar) -> None:
    async with (
        await connect(url, application="prepaid-bench") as conn,
        await connect(url, application="prepaid-bench") as beside,
    ):
        closed = await close_day(conn, day, rules=PostingRules(calendar=calendar), last=last, beside=beside)
        assert closed.exact == last, f"close-day: expected {last} exact days, got {closed}"


def _is_posted(conn: psycopg.Connection, day: date, last: int, calendar: LocalCalendar) -> bool:
    """Tell whether what is posted is what the plain rating of the registers at the day's end says."""
    read, owed = owed_minor(conn, calendar.midnight_ms(day + ONE_DAY), day)
    booked = one(
        conn,
        "select -sum(g.amount_minor)::bigint from legs g join journals j on j.id = g.journal_id"
        " where j.kind = 'day' and g.ledger = 'prepaid'",
    )
    return bool(read == last and owed == booked)


def _row(writers: int, batch: int, found: Sequence[tuple[Run, Run, bool]]) -> dict[str, object]:
    pairs = [(bare, charge) for bare, charge, _ in found]
    ratios = [charge.per_second / bare.per_second for bare, charge in pairs]
    target = TARGETS.get((writers, batch))
    return {
        "writers": writers,
        "batch": batch,
        "readings": pairs[0][1].readings,
        "batches": pairs[0][1].batches,
        "bare": _figures([bare for bare, _ in pairs]),
        "charge": _figures([charge for _, charge in pairs]),
        "candidates": sum(charge.candidates for _, charge in pairs),
        "alarms": sum(charge.alarms for _, charge in pairs),
        "ratio": round(median(ratios), 3),
        "ratio_lowest": round(min(ratios), 3),
        "ratio_highest": round(max(ratios), 3),
        "target": target,
        "complete": all(whole for _, _, whole in found),
    }


def _figures(runs: Sequence[Run]) -> dict[str, object]:
    rates = [run.per_second for run in runs]
    return {
        "readings_per_second": round(median(rates)),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
        "batch_ms": round(median(run.seconds / run.batches for run in runs) * 1_000, 2),
        "wal_bytes_per_reading": round(median(run.wal_bytes / run.readings for run in runs), 1),
        "accounts_dead_tuples": max(run.accounts_dead for run in runs),
    }
