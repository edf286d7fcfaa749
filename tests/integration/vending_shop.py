"""A vending application over a database of its own, with one home, one vendor and keys of each role."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import httpx
from fastapi import FastAPI
from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, to_ms
from billing.journals import JournalKind
from billing.supply import Mode
from db.meter_records import RecordFields
from db.migrate import migrate
from db.orders import PostingRules
from db.pool import connect
from db.posting import lock_and_look, post_money
from db.readings import ensure_partitions
from db.registry import NewAccount, NewMeter, StsIdentity, add_meter, add_vendor, open_account
from meter_sim.token_reader import TokenReader
from vending.edges.api import create_app
from vending.edges.keys import NewApiKey, Role, add_vending_key, issue_api_key, load_security_module
from vending.edges.payment_desk import OnlineSettings
from vending.engines.records import StsFacts, sts_facts
from vending.security import SecurityModule
from vending.sts.identity import MeterKeyRecord, luhn_check_digit
from vending.sts.keys import derive_decoder_key

MASTER = bytes(range(32))
# Origin: STS 531 compliance tests, a published test key.
VENDING_KEY = bytes.fromhex("abababababababab949494949494949401234567")
SGC = "201457"
CALENDAR = LocalCalendar(ZoneInfo("Asia/Kolkata"))
RULES = PostingRules(calendar=CALENDAR)
TARIFF = "punjab-ds-2026-27"
# Midnight of 1 November 2026 in Asia/Kolkata.
OPENED_AT = datetime(2026, 10, 31, 18, 30, tzinfo=UTC)
NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
CONSUMER = "Gurpreet Singh"
STS = StsIdentity(
    drn="", ea=11, dkga=4, sgc=SGC, key_type=2, krn=1, tariff_index="01", ken=255, base_year=2014
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Clock:
    """A clock that stands still until it is set."""

    now_ms: int = to_ms(NOON)

    def __call__(self) -> int:
        return self.now_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """One meter and its account."""

    serial: str
    number: str
    drn: str | None
    meter_id: int
    account_id: int


@dataclass(slots=True, kw_only=True)
class Shop:
    """The application with its callers; `http` calls as nobody unless given headers."""

    conn: AsyncConnection
    app: FastAPI
    http: httpx.AsyncClient
    clock: Clock
    home: Home
    vendor_id: int
    keys: dict[str, NewApiKey] = field(default_factory=dict)

    def headers(self, who: str) -> dict[str, str]:
        """Return the headers of a caller: vendor, other_vendor, engineer, consumer."""
        return {"X-Api-Key": self.keys[who].header}

    async def vend(
        self, message_id: str, amount: str = "500.00", *, meter: str | None = None, **more: str
    ) -> httpx.Response:
        """Sell as the vendor; more fields of the body may be given."""
        body = {"message_id": message_id, "meter": meter or self.home.serial, "amount": amount, **more}
        return await self.http.post("/v1/vends", json=body, headers=self.headers("vendor"))

    async def get(self, path: str, who: str = "vendor") -> httpx.Response:
        """Read as a caller."""
        return await self.http.get(path, headers=self.headers(who))

    async def one(self, query: str, *parameters: object) -> Any:
        """Return the first column of the first row: of any type, as the query says."""
        row = await (await self.conn.execute(query.encode(), parameters)).fetchone()
        return None if row is None else row[0]

    async def count(self, table: str) -> int:
        """Count the rows of a table."""
        return int(await self.one(f"select count(*) from {table}"))

    async def set_balance(self, balance_minor: int) -> None:
        """Adjust the home's account to a balance, with all that follows from it."""
        async with self.conn.transaction():
            view = await lock_and_look(self.conn, self.home.account_id, RULES)
            change_minor = balance_minor - view.balance_minor(CALENDAR)
            now_ms = self.clock()
            await post_money(self.conn, view, JournalKind.ADJUSTMENT, change_minor, rules=RULES, now_ms=now_ms)

    async def confirm_orders(self) -> None:
        """Let the meters do what they were told."""
        await self.conn.execute(
            "update meter_state s set relay = o.relay, relay_at = now() from supply_orders o"
            " where o.meter_id = s.meter_id and o.kind = 'supply' and o.state in ('pending', 'held', 'sent')"
        )
        await self.conn.execute("update supply_orders set state = 'confirmed' where state <> 'superseded'")

    async def read(self, at: datetime, register_wh: int) -> None:
        """Store a reading of the home's meter."""
        await ensure_partitions(self.conn, [at.date()])
        await self.conn.execute(
            "insert into readings (meter_id, read_at, import_wh) values (%s, %s, %s)",
            (self.home.meter_id, at, register_wh),
        )

    def token_reader(self) -> TokenReader:
        """Return the home meter's own reader of tokens."""
        return TokenReader(derive_decoder_key(VENDING_KEY, key_of(self.home.drn or "")).key)


def key_of(drn: str, **changes: Any) -> MeterKeyRecord:
    """Return the key record of a meter as homes have it, with some fields of it changed."""
    values = {name: getattr(STS, name) for name in StsIdentity.__dataclass_fields__ if name != "drn"}
    facts = sts_facts(RecordFields(engine="sts", **(values | changes)), drn)
    assert isinstance(facts, StsFacts), facts
    return facts.key


@asynccontextmanager
async def open_shop(
    database_url: str,
    *,
    module: SecurityModule | None = None,
    sms_secret: bytes | None = None,
    online: OnlineSettings | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Shop]:
    """Open the application on an empty database."""
    async with await connect(database_url, application="test") as conn:
        await migrate(conn)
        await add_vending_key(conn, MASTER, sgc=SGC, krn=1, key=VENDING_KEY)
        clock = clock or Clock()
        app = create_app(
            database_url=database_url,
            calendar=CALENDAR,
            security_module=module or await load_security_module(conn, MASTER),
            vend_min_minor=1_000,
            vend_max_minor=5_000_000,
            stale_reading_s=None,
            sms_secret=sms_secret,
            master=MASTER,
            # What a test changes by SQL is seen at once.
            look_every_ms=0,
            online=online,
            clock=clock,
        )
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://shop", timeout=60) as http,
        ):
            home = await add_home(conn, "PB000123", "100200300")
            vendor_id = await add_vendor(conn, "Station 17")
            shop = Shop(conn=conn, app=app, http=http, clock=clock, home=home, vendor_id=vendor_id)
            other_id = await add_vendor(conn, "Station 18")
            shop.keys["vendor"] = await issue_api_key(conn, Role.VENDOR, vendor_id=vendor_id, master=MASTER)
            shop.keys["other_vendor"] = await issue_api_key(conn, Role.VENDOR, vendor_id=other_id, master=MASTER)
            shop.keys["supervisor"] = await issue_api_key(conn, Role.SUPERVISOR, vendor_id=vendor_id, master=MASTER)
            shop.keys["engineer"] = await issue_api_key(conn, Role.ENGINEER, master=MASTER)
            shop.keys["consumer"] = await issue_api_key(conn, Role.CONSUMER, account_id=home.account_id, master=MASTER)
            yield shop


async def add_home(
    conn: AsyncConnection, serial: str, number: str, *, sts: StsIdentity | None = STS, mode: Mode = Mode.PREPAID
) -> Home:
    """Add a meter and open its account; the meter's DRN is made from the account number."""
    drn = None
    if sts is not None:
        digits = f"{int(number):010d}"
        drn = f"{digits}{luhn_check_digit(digits)}"
        sts = replace(sts, drn=drn)
    await add_meter(conn, NewMeter(serial=serial, rated_w=15_000, register_end_wh=1_000_000_000, sts=sts))
    account = NewAccount(
        number=number,
        consumer=CONSUMER,
        usage_point=f"UP-{number}",
        meter_serial=serial,
        opened_at=OPENED_AT,
        register_wh=5_000,
        mode=mode,
        postpaid_approval="PSERC-1" if mode is Mode.POSTPAID else None,
        tariff_id=TARIFF,
        sanctioned_load_w=3_000,
    )
    account_id = await open_account(conn, account, rules=RULES, now_ms=to_ms(NOON))
    assert account_id is not None
    row = await (await conn.execute("select id from meters where serial = %s", (serial,))).fetchone()
    assert row is not None
    return Home(serial=serial, number=number, drn=drn, meter_id=row[0], account_id=account_id)
