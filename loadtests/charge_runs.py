"""Writers of the benchmarks with very many accounts, as their parent sees them: started, told, timed together.

Stage: between a benchmark and its writers' processes. A run is one task for all writers at once; what it took is from
the first batch's begin to the last one's commit, whoever's they were.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

import psycopg

from billing.calendar import LocalCalendar
from loadtests.charge_writer import Done, Task, WriterSettings, write_until_closed
from loadtests.scratch import BenchError
from protocols.topics import SHARDS

# A run of 5 million rows takes half a minute; five minutes without an answer mean that a writer is stuck.
WRITER_WAIT_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of all writers: seconds from the first batch's begin to the last one's commit, and what it left."""

    seconds: float
    batches: int
    readings: int
    candidates: int
    charged_minor: int
    wal_bytes: int
    alarms: int
    accounts_dead: int

    @property
    def per_second(self) -> float:
        return self.readings / self.seconds


@contextmanager
def writing(url: str, writers: int, *, accounts: int, calendar: LocalCalendar) -> Iterator[list[Connection]]:
    """Run writers, each the owner of its part of the shards, until the context ends."""
    # Spawned, not forked: a writer starts with nothing but its settings, as a process of an installation does.
    processes = multiprocessing.get_context("spawn")
    pipes, children = [], []
    try:
        for number in range(writers):
            settings = WriterSettings(
                database_url=url,
                shards=tuple(range(number, SHARDS, writers)),
                accounts=accounts,
                zone=calendar.zone.key,
            )
            ours, theirs = processes.Pipe()
            child = processes.Process(target=write_until_closed, args=(settings, theirs), daemon=True)
            child.start()
            theirs.close()
            pipes.append(ours)
            children.append(child)
        for pipe in pipes:
            _hear(pipe)
        yield pipes
        for pipe in pipes:
            pipe.send(None)
            _hear(pipe)
    finally:
        for pipe in pipes:
            pipe.close()
        for child in children:
            child.join(WRITER_WAIT_S)


def run_task(conn: psycopg.Connection, pipes: Sequence[Connection], task: Task) -> Run:
    """Give all writers a task, let them begin together, wait for all."""
    for pipe in pipes:
        pipe.send(task)
    for pipe in pipes:
        _hear(pipe)
    before_lsn = one(conn, "select pg_current_wal_insert_lsn()::text")
    before_alarms = one(conn, "select count(*) from alarms")
    for pipe in pipes:
        pipe.send("go")
    done = []
    for pipe in pipes:
        answer = _hear(pipe)
        assert isinstance(answer, Done), "a writer that was told to go is done some time"
        done.append(answer)
    return Run(
        seconds=max(each.ended_s for each in done) - min(each.began_s for each in done),
        batches=sum(each.batches for each in done),
        readings=sum(each.readings for each in done),
        candidates=sum(each.candidates for each in done),
        charged_minor=sum(each.charged_minor for each in done),
        wal_bytes=int(one(conn, "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s::pg_lsn)::bigint", before_lsn)),
        alarms=one(conn, "select count(*) from alarms") - before_alarms,
        accounts_dead=one(conn, "select n_dead_tup from pg_stat_user_tables where relname = 'accounts'"),
    )


def one(conn: psycopg.Connection, query: str, *parameters: object) -> Any:  # A column of any type.
    """Read one value."""
    ((value,),) = conn.execute(query.encode(), parameters or None).fetchall()
    return value


def _hear(pipe: Connection) -> object:
    try:
        if pipe.poll(WRITER_WAIT_S):
            return pipe.recv()
    except EOFError:
        raise BenchError("bench: expected a writer's answer, got its end; its last words are above") from None
    raise BenchError(f"bench: expected a writer's answer within {WRITER_WAIT_S:.0f} s, got none")
