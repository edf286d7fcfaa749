"""Administration commands: each opens what it needs, calls one function, returns its result.

Stage: between the command line and the packages. With embedded parts these commands start them on the data folder,
or join those of a running `prepaid up`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import date
from typing import TypeVar

from psycopg import AsyncConnection

from db.audit import AuditReport, Scope, missing_migrations, run_checks
from db.errors import MigrationError, UnknownAccount
from db.migrate import migrate
from db.named import sql
from db.pool import APPLICATION_ROLE, connect
from db.registry import account_id_of
from headend.edges.close_day import ClosedDays, close_day, settle_prepayment
from prepaid.console import progress_bars
from prepaid.embedded import embedded_parts
from prepaid.keys import login_name, sealing_master
from prepaid.processes import calendar_of, rules_of
from prepaid.settings import Settings
from vending.edges.key_desk import give_key
from vending.roles import Role

T = TypeVar("T")


def on_database(settings: Settings, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Do some work on one connection to the installation's database, migrated."""

    async def run(url: str) -> T:
        async with await connect(url, application="prepaid-admin") as conn:
            await migrate(conn)
            # Migrating is the owner's; whatever follows has the rights of any other process.
            await conn.execute(sql("work_as_application"))
            return await work(conn)

    return _at_address(settings, run)


def _at_address(settings: Settings, run: Callable[[str], Coroutine[None, None, T]]) -> T:
    """Do some work with the address of the installation's database, started if it is embedded and down."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    # Only the database is needed: a broker address that is never used keeps the embedded one from starting.
    only_database = settings.model_copy(update={"nats_url": settings.nats_url or "nats://127.0.0.1:4222"})
    with embedded_parts(only_database) as parts:
        return asyncio.run(run(parts.database_url))


def run_migrate(settings: Settings) -> list[str]:
    """Apply missing migrations; return their names."""

    async def run(url: str) -> list[str]:
        async with await connect(url, application="prepaid-migrate") as conn:
            return await migrate(conn)

    return _at_address(settings, run)


def run_close_day(settings: Settings, until: date) -> ClosedDays:
    """Close days up to and including `until`, on two connections."""
    rules = rules_of(settings)

    async def run(url: str) -> ClosedDays:
        accounts = 0
        async with await connect(url, application="prepaid-close-day") as conn:
            await migrate(conn)
            await conn.execute(sql("work_as_application"))
            with progress_bars() as bars:

                def count(number: int) -> None:
                    nonlocal accounts
                    accounts += number
                    bars("accounts closed", accounts, accounts)

                async with await connect(url, application="prepaid-close-day", role=APPLICATION_ROLE) as beside:
                    closed = await close_day(conn, until, rules=rules, progress=count, beside=beside)
            await settle_prepayment(conn, until, rules=rules)
        return closed

    return _at_address(settings, run)


def run_audit(settings: Settings, scope: Scope) -> AuditReport:
    """Check the invariants on two connections that share a snapshot. Applies no migration: nothing is written.

    Raises: MigrationError for a database that lacks migrations; UnknownAccount.
    """

    async def run(url: str) -> AuditReport:
        async with await connect(url, application="prepaid-audit") as conn:
            missing = await missing_migrations(conn)
            if missing:
                raise MigrationError(f"audit: expected all migrations, got a database without {', '.join(missing)}")
            async with await connect(url, application="prepaid-audit") as second:
                for each in (conn, second):
                    await each.execute(sql("work_as_application"))
                with progress_bars() as bars:
                    return await run_checks(conn, calendar_of(settings), scope=scope, second=second, progress=bars)

    return _at_address(settings, run)


async def known_account(conn: AsyncConnection, number: str) -> int:
    """Return the id of an account by its number.

    Raises: UnknownAccount.
    """
    account_id = await account_id_of(conn, number)
    if account_id is None:
        raise UnknownAccount(f"account: expected a known number, got {number!r}")
    return account_id


def run_consumer_key(settings: Settings, number: str) -> str:
    """Return a new API key of the consumer of an account.

    Raises: UnknownAccount.
    """

    async def work(conn: AsyncConnection) -> str:
        account_id = await known_account(conn, number)
        master = await sealing_master(settings, conn)
        return (await give_key(conn, master, Role.CONSUMER, account_id=account_id, by=login_name())).header

    return on_database(settings, work)
