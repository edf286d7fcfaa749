"""Stations and API processes for the fault tests of vending, and what must hold after every fault.

Stage: shared by the fault tests of vending. A `Street` is a database with homes that can buy, a vendor that is bounded
by its float, and any number of `prepaid api` processes on it. `prove` compares what is there with what must be: a token
exists exactly where one journal is posted, every message id has one answer, and the auditor finds nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from psycopg import AsyncConnection
from psycopg import sql as compose

from db.audit import run_checks
from db.pool import connect
from db.registry import add_vendor
from prepaid.embedded import Parts
from prepaid.embedded.process import LOOPBACK, accepts, free_ports, is_running, log_tail
from prepaid.settings import load_settings
from prepaid.system import System
from tests.faults.harness import kill
from tests.integration.vending_shop import CALENDAR, MASTER, SGC, VENDING_KEY, Home, add_home
from vending.edges.api import create_app
from vending.edges.keys import NewApiKey, add_vending_key, issue_api_key, load_security_module
from vending.roles import Role
from vending.security import SecurityModule

# Loading the framework takes 2 s of a core; several start at once.
START_S = 60.0
WAIT_S = 20.0
AMOUNT = "500.00"
AMOUNT_MINOR = 50_000


@dataclass(slots=True, kw_only=True)
class Street:
    """A database that sells, and a connection of the test's own."""

    conn: AsyncConnection
    database_url: str
    homes: list[Home]
    vendor_id: int
    key: NewApiKey

    async def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Read rows; for what only tests ask."""
        return await (await self.conn.execute(query.encode(), parameters)).fetchall()

    async def one(self, query: str, *parameters: object) -> Any:  # A column of any type.
        """Read one value."""
        ((value,),) = await self.rows(query, *parameters)
        return value

    async def until(self, happened: Callable[[], Awaitable[object]], what: str) -> None:
        """Ask again and again until the answer is true."""
        deadline_s = time.monotonic() + WAIT_S
        while not await happened():
            assert time.monotonic() < deadline_s, f"within {WAIT_S:.0f} s: {what}"
            await asyncio.sleep(0.01)

    async def vend_waits(self) -> bool:
        """Tell whether a vend stands inside its transaction and waits for a lock."""
        return bool(await self.one(f"select count(*) {_SESSIONS} and wait_event_type = 'Lock'"))

    async def sessions(self) -> int:
        """Count the sessions of vending that are inside a transaction."""
        return int(await self.one(f"select count(*) {_SESSIONS} and state <> 'idle'"))

    def body(self, message_id: str, *, home: Home | None = None, amount: str = AMOUNT) -> dict[str, str]:
        """Return the body of a vend."""
        return {"message_id": message_id, "meter": (home or self.homes[0]).serial, "amount": amount, "tender": "upi"}


_SESSIONS = "from pg_stat_activity where datname = current_database() and application_name = 'vending'"


@asynccontextmanager
async def open_street(database_url: str, *, homes: int = 1) -> AsyncIterator[Street]:
    """Fill a migrated database: homes with key records, one vendor with its key."""
    async with await connect(database_url, application="test") as conn:
        await add_vending_key(conn, MASTER, sgc=SGC, krn=1, key=VENDING_KEY)
        built = [await add_home(conn, f"PB{number:06d}", f"{100200300 + number}") for number in range(homes)]
        vendor_id = await add_vendor(conn, "Station 17")
        key = await issue_api_key(conn, Role.VENDOR, vendor_id=vendor_id, master=MASTER)
        yield Street(conn=conn, database_url=database_url, homes=built, vendor_id=vendor_id, key=key)


@asynccontextmanager
async def api_processes(urls: Sequence[str], folder: Path) -> AsyncIterator[list[System]]:
    """Run one `prepaid api` for each database address; the master key comes from the environment.

    Waits in the loop: an address may be that of a proxy which lives there.
    """
    systems = []
    try:
        # All at once: one that has not bound its port yet would not keep the next from choosing it.
        ports = free_ports([f"api{number}" for number in range(len(urls))], taken=set())
        for url, (name, port) in zip(urls, ports.items(), strict=True):
            home = folder / name
            home.mkdir(parents=True)
            # The API asks no broker for anything.
            parts = Parts(database_url=url, nats_url=f"nats://{LOOPBACK}:1", mqtt_host=LOOPBACK, mqtt_port=1)
            system = System(settings=load_settings().model_copy(update={"data_dir": home}), parts=parts, api_port=port)
            systems.append(system)
            system.start("api")
        deadline_s = time.monotonic() + START_S
        while not all(accepts(system.api_port) for system in systems):
            for system in systems:
                assert is_running(system.pid("api")), log_tail(system.settings.data_dir / "api.log")
            assert time.monotonic() < deadline_s, f"every API listens within {START_S:.0f} s"
            await asyncio.sleep(0.02)
        yield systems
    except BaseException as error:
        for system in systems:
            error.add_note(f"{system.api_url}: {log_tail(system.settings.data_dir / 'api.log')}")
        raise
    finally:
        for system in systems:
            system.stop()


def end(system: System) -> None:
    """Kill an API process; return when it is gone."""
    kill(system.pid("api"))


@asynccontextmanager
async def station(address: str, key: NewApiKey) -> AsyncIterator[httpx.AsyncClient]:
    """Open a station's line to one API process."""
    async with httpx.AsyncClient(base_url=address, headers={"X-Api-Key": key.header}, timeout=60) as http:
        yield http


@asynccontextmanager
async def table_held(street: Street, table: str) -> AsyncIterator[None]:
    """Let nobody else write to a table for as long as the context lasts; reading it goes on."""
    async with await connect(street.database_url, application="holder") as conn, conn.transaction():
        await conn.execute(compose.SQL("lock table {} in exclusive mode").format(compose.Identifier(table)))
        yield


async def nothing_sold(street: Street, message_id: str) -> None:
    """Check that a message id has left nothing: no answer, no token, no journal beside those of others."""
    assert await street.one("select count(*) from vends where message_id = %s", message_id) == 0
    await minted_as_posted(street)


async def sold_once(street: Street, message_id: str, response: httpx.Response) -> None:
    """Check that a message id is one vend with one journal and one token, and the answer the one that was stored."""
    assert response.status_code == 200, response.text
    found = await street.rows(
        "select v.answer, j.kind, t.digits, t.tid,"
        " (select sum(l.amount_minor) filter (where l.ledger = 'prepaid') from legs l where l.journal_id = j.id)"
        " from vends v join journals j on j.id = v.journal_id join tokens t on t.vend_id = v.id"
        " where v.message_id = %s",
        message_id,
    )
    assert len(found) == 1, f"{message_id}: expected one vend with one token, got {len(found)}"
    stored, kind, digits, tid, credited_minor = found[0]
    answer = response.json()
    assert (kind, credited_minor) == ("vend", answer["amount_minor"])
    assert (answer["token"]["digits"], answer["tid"]) == (digits, tid)
    assert answer == stored
    await minted_as_posted(street)


async def minted_as_posted(street: Street) -> None:
    """Check that there is a token of a vend exactly where there is one journal of a vend."""
    pairs = await street.rows(
        "select j.id, v.journal_id, t.vend_id from journals j full join vends v on v.journal_id = j.id"
        " full join (select * from tokens where kind = 'credit') t on t.vend_id = v.id"
        " where (j.kind = 'vend' or j.kind is null) and (v.id is null or v.status = 200)"
    )
    assert [pair for pair in pairs if None in pair] == [], "token minted <=> one posted journal"
    assert len({journal_id for journal_id, _, _ in pairs}) == len(pairs), "a journal is of one vend"
    assert await street.one("select count(*) = count(distinct (meter_id, era, tid)) from tokens where kind = 'credit'")


async def prove(street: Street) -> None:
    """Check I6 and I7 and everything else that the auditor can tell."""
    await minted_as_posted(street)
    report = await run_checks(street.conn, CALENDAR)
    assert report.clean, "\n".join(report.lines())


@asynccontextmanager
async def instance(
    street: Street, *, clock: Callable[[], int], module: SecurityModule | None = None, database_url: str | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """Open the vending interface inside this process, with a pool of its own; yield the vendor's line to it."""
    app = create_app(
        database_url=database_url or street.database_url,
        calendar=CALENDAR,
        security_module=module or await load_security_module(street.conn, MASTER),
        vend_min_minor=1_000,
        vend_max_minor=5_000_000,
        stale_reading_s=None,
        master=MASTER,
        clock=clock,
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://shop", headers={"X-Api-Key": street.key.header}, timeout=60
        ) as http,
    ):
        yield http
