"""Close-day killed at any point goes on where it stood: the same books, nothing posted twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from psycopg import AsyncConnection

from headend.edges.close_day import close_day
from tests.integration.test_assignments import RULES, assert_audit_clean, on_database
from tests.integration.test_sweeps import LAST_DAY, books, close_one_by_one, days_closed_twice, open_homes

pytestmark = pytest.mark.db

KILLS = 6
# A child says when it has connected; the sweep of 20 homes then takes about half a second.
_CHILD = """
import asyncio, sys
from datetime import date
from db.pool import connect
from headend.edges import close_day as sweeping
from tests.integration.test_assignments import RULES

async def run():
    # Small transactions, so that a kill finds many places between them.
    sweeping.ACCOUNTS_ONE_BY_ONE = 2
    async with await connect(sys.argv[1], application="close-day") as conn:
        print("ready", flush=True)
        await sweeping.close_day(conn, date.fromisoformat(sys.argv[2]), rules=RULES, last=int(sys.argv[3]))

asyncio.run(run())
"""


def _killed_after(url: str, last: int, delay_s: float) -> None:
    """Run a sweep as a process of its own and kill it."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, url, LAST_DAY.isoformat(), str(last)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(delay_s)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def test_sweep_killed_at_any_point_goes_on_where_it_stood(database_url: str) -> None:
    """Whatever transactions a killed sweep had committed, the next one does the rest, once."""
    rng = random.Random(11)

    async def story(conn: AsyncConnection) -> None:
        swept, single = await open_homes(conn, "S"), await open_homes(conn, "T")
        for _ in range(KILLS):
            _killed_after(database_url, max(swept), rng.uniform(0.0, 0.6))
        await close_day(conn, LAST_DAY, rules=RULES, last=max(swept))
        await close_one_by_one(conn, single, LAST_DAY)
        assert await books(conn, swept) == await books(conn, single)
        assert await days_closed_twice(conn) == 0
        await assert_audit_clean(conn)

    on_database(database_url, story)
