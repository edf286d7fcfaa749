"""Connections: one way to open them, with the session settings every process relies on."""

from __future__ import annotations

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.adapt import AdaptersMap
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper
from psycopg_pool import AsyncConnectionPool

# A statement that runs a minute is stuck: the longest one we send, closing a catch-up of years, takes seconds.
STATEMENT_TIMEOUT_S = 60
# What processes work under: it cannot change or delete a journal (migration 0005). Migrating is the owner's.
APPLICATION_ROLE = "prepaid_app"


def session_options(
    *,
    idle_in_transaction_s: int | None = None,
    lock_timeout_s: int | None = None,
    role: str | None = None,
    plans_kept: bool = False,
) -> str:
    """Return the libpq `options` of a session; without a `role` it has the rights of its login.

    `idle_in_transaction_s` must lie below the lease time for sessions that write under a lease, so that a paused
    owner's transaction ends before another takes its shard. `plans_kept` plans each statement once a session, which
    suits looks at single accounts; sets of thousands are planned each time.
    """
    options = [f"-c statement_timeout={STATEMENT_TIMEOUT_S}s", "-c timezone=UTC", "-c jit=off"]
    # A generic plan cannot leave partitions out before it runs: with a year of days, 50 ms a look at many accounts
    # instead of 5 (2026-11-21). Planning a look at one account takes 8 ms and its work 1 (2026-11-22).
    options.append(f"-c plan_cache_mode={'force_generic_plan' if plans_kept else 'force_custom_plan'}")
    if plans_kept:
        # One made while a table was small is kept while it grows: reading it whole would be kept, too.
        options.append("-c enable_seqscan=off")
    if role is not None:
        options.append(f"-c role={role}")
    if idle_in_transaction_s is not None:
        options.append(f"-c idle_in_transaction_session_timeout={idle_in_transaction_s}s")
    if lock_timeout_s is not None:
        options.append(f"-c lock_timeout={lock_timeout_s}s")
    return " ".join(options)


async def connect(
    url: str,
    *,
    application: str,
    idle_in_transaction_s: int | None = None,
    lock_timeout_s: int | None = None,
    role: str | None = None,
) -> AsyncConnection:
    """Open one connection in autocommit mode; transactions are opened where they are needed."""
    return await AsyncConnection.connect(
        url,
        autocommit=True,
        application_name=application,
        connect_timeout=10,
        options=session_options(idle_in_transaction_s=idle_in_transaction_s, lock_timeout_s=lock_timeout_s, role=role),
    )


def pool_adapters() -> AdaptersMap:
    """Return adapters that send every whole number as a bigint, and write and read JSON eight times as fast.

    By itself psycopg sends each number in the smallest type that holds it, and a statement is prepared anew for each
    mix of types: one with ten amounts would hardly ever be met again.
    """
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_dumper(int, Int8Dumper)
    adapters.register_dumper(int, Int8BinaryDumper)
    set_json_dumps(msgspec.json.encode, adapters)
    set_json_loads(msgspec.json.decode, adapters)
    return adapters


def make_pool(url: str, *, application: str, size_max: int) -> AsyncConnectionPool[AsyncConnection]:
    """Make a closed pool of autocommit connections under the application's role; the caller opens and closes it."""
    return AsyncConnectionPool(
        url,
        min_size=1,
        max_size=size_max,
        open=False,
        # 5 s is well inside the 10 s that a point of sale waits; then the caller gets a clear error.
        timeout=5,
        kwargs={
            "autocommit": True,
            "application_name": application,
            "connect_timeout": 10,
            "context": pool_adapters(),
            "options": session_options(
                idle_in_transaction_s=5, lock_timeout_s=5, role=APPLICATION_ROLE, plans_kept=True
            ),
        },
    )
