"""`bench accounts`: ten million accounts on one machine: the room they take, and one sweep over all of them.

Stage: beside `bench charge`, on a scratch database. Opens the accounts, charges one reading of each, and reports times
and the size of every table an account has rows in. The account table counts without its indexes
(`pg_table_size`), the figure that has to stay in memory for look-ups to stay quick.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import psycopg
import uvloop

from billing.calendar import LocalCalendar
from loadtests.bench_charge import prepare
from loadtests.bench_machine import machine_facts, measured_at
from loadtests.charge_oracle import owed_minor
from loadtests.charge_runs import Run, run_task, writing
from loadtests.charge_writer import Task
from loadtests.population import ACCOUNTS_MAX, OPENED_ON, STEP_MS
from loadtests.scratch import BenchError, Progress, scratch_database
from prepaid.settings import Settings

BATCH: Final = 20_000
# Rows of a run are made before its clock starts: 2 million are 300 MB.
READINGS_A_RUN: Final = 2_000_000
# 300 bytes an account, with room for changed rows: 10 million fit into the memory of the machine they are meant for.
ACCOUNTS_TABLE_BYTES_MAX: Final = 300
_TABLES: Final = (
    "accounts",
    "assignments",
    "journals",
    "legs",
    "consumers",
    "usage_points",
    "meters",
    "meter_state",
    "installations",
    "register_segments",
    "readings",
)
# Of a partitioned table the sum of its partitions.
_SIZES: Final = b"""
select n.name, sum(pg_table_size(t.id))::bigint, sum(pg_indexes_size(t.id))::bigint
from unnest(%s::text[]) with ordinality n(name, place)
cross join lateral (select n.name::regclass as id union select p.relid from pg_partition_tree(n.name::regclass) p) t
group by n.name, n.place order by n.place
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountsLoad:
    """How many accounts are opened, and how many writers sweep over them."""

    accounts: int
    writers: int


def bench_accounts(settings: Settings, load: AccountsLoad, progress: Progress) -> dict[str, object]:
    """Open accounts, charge one reading of each; return the report.

    Raises: BenchError; EmbeddedError.
    """
    if not 1 <= load.accounts <= ACCOUNTS_MAX:
        raise BenchError(f"bench: expected 1 to {ACCOUNTS_MAX} accounts, got {load.accounts}")
    facts = machine_facts()
    calendar = LocalCalendar(settings.zone)
    with scratch_database(settings) as url:
        progress("accounts opened", 0, load.accounts)
        began_s = time.monotonic()
        uvloop.run(prepare(url, load.accounts, calendar, days=1))
        opened_s = time.monotonic() - began_s
        with psycopg.connect(url, autocommit=True) as conn:
            opened = _sizes(conn)
            with writing(url, load.writers, accounts=load.accounts, calendar=calendar) as pipes:
                runs = []
                for first in range(1, load.accounts + 1, READINGS_A_RUN):
                    last = min(first + READINGS_A_RUN - 1, load.accounts)
                    progress("accounts charged", first - 1, load.accounts)
                    task = Task(charge=True, batch=BATCH, steps=range(1, 2), first=first, last=last, seed=first)
                    runs.append(run_task(conn, pipes, task))
            swept = _sizes(conn)
            read, owed = owed_minor(conn, calendar.midnight_ms(OPENED_ON) + STEP_MS, OPENED_ON)
    return {
        "benchmark": "accounts",
        "measured_at": measured_at(),
        "machine": facts,
        "accounts": load.accounts,
        "writers": load.writers,
        "seconds_opened": round(opened_s, 1),
        "sweep": _sweep(runs),
        "bytes_opened": opened,
        "bytes_swept": swept,
        "accounts_table_bytes_each": round(swept["accounts"]["table"] / load.accounts, 1),
        "accounts_table_bytes_each_max": ACCOUNTS_TABLE_BYTES_MAX,
        "charged_minor": sum(run.charged_minor for run in runs),
        "oracle_minor": owed,
        "complete": read == load.accounts and owed == sum(run.charged_minor for run in runs),
    }


def _sweep(runs: list[Run]) -> dict[str, object]:
    readings, seconds = sum(run.readings for run in runs), sum(run.seconds for run in runs)
    return {
        "batch": BATCH,
        "readings": readings,
        "seconds": round(seconds, 1),
        "readings_per_second": round(readings / seconds),
        "wal_bytes_per_reading": round(sum(run.wal_bytes for run in runs) / readings, 1),
        "alarms": sum(run.alarms for run in runs),
        "accounts_dead_tuples": runs[-1].accounts_dead,
    }


def _sizes(conn: psycopg.Connection) -> dict[str, dict[str, int]]:
    """Return the bytes of each table and of its indexes."""
    found = conn.execute(_SIZES, [list(_TABLES)]).fetchall()
    return {name: {"table": table, "indexes": indexes} for name, table, indexes in found}
