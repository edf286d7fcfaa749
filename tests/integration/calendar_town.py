"""What tests of the calendar share: a clock that is set, supply rules with nights, homes that use up their credit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from psycopg import AsyncConnection

from billing.calendar import from_ms, to_ms
from billing.journals import JournalKind
from db.migrate import migrate
from db.orders import PostingRules
from db.pool import connect
from db.posting import lock_and_look, post_money
from db.readings import copy_readings, ensure_partitions
from db.registry import NewAccount, NewMeter, add_meter, open_account
from db.reports import accounts_of_meters
from db.supply_rules import add_supply_rules
from headend.edges.calendar_sweep import CalendarSweep
from headend.edges.commit import settle_account
from protocols.rows import ReadingRow
from protocols.topics import SHARDS
from tests.support import CALENDAR, OPENED_AT, RATED_W, REGISTER_END_WH, REGISTER_WH, TARIFF, Home

# 1 June 2025, when homes are opened, is a Sunday; the 7th is the first Saturday, the 14th the second.
JUNE_1 = date(2025, 6, 1)
NIGHTS, GRACE, SHOP = "DS", "GRACE", "SHOP"
# Lasts for some days' fixed charge and not for 100 kWh.
CREDIT_MINOR = 20_000
MUCH_WH = 100_000
NIGHT_RULES = """
id = "nights"
title = "Nights are protected"
source = "a test"
effective_from = 2025-06-01
default = "protected_nights"

[category]
GRACE = "two_days_of_grace"
SHOP = "any_time"

[scheme.protected_nights]
title = "10:00 to 13:00 on working days"
source = "a test"
not_on_holidays = true
not_on_saturdays = [2]

[[scheme.protected_nights.window]]
days = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday"]
from = "10:00"
to = "13:00"

[scheme.two_days_of_grace]
title = "At any time, after two days of grace"
source = "a test"
emergency_days = 2

[scheme.any_time]
title = "At any time"
source = "a test"

[[holiday]]
name = "A day of the town"
day = 2025-06-11
"""


def any_time_from(day: date) -> str:
    """Return rules that permit a cut-off at any time, from a day on."""
    head, _, _ = NIGHT_RULES.partition("[category]")
    begins = head.replace("2025-06-01", day.isoformat()).replace("protected_nights", "any_time")
    return f'{begins}[scheme.any_time]\ntitle = "At any time"\nsource = "a test"\n'


def at(day: int, clock: str) -> int:
    """Return the instant at which the clock of the town shows a time on a day of June 2025."""
    return to_ms(datetime.fromisoformat(f"2025-06-{day:02d}T{clock}").replace(tzinfo=CALENDAR.zone))


@dataclass(slots=True, kw_only=True)
class SetClock:
    """A clock that stands where it is set; also that of simulated meters."""

    at_ms: int

    def __call__(self) -> int:
        return self.at_ms

    def now_ms(self) -> int:
        """Tell the time, as simulated meters ask for it."""
        return self.at_ms

    async def sleep_until(self, at_ms: int) -> None:
        """No meter of these tests waits for the clock."""
        raise AssertionError("nobody waits for a clock that stands")


@dataclass(slots=True, kw_only=True)
class Told:
    """What has become of a home: orders of supply, notices and alarms, each in the order in which they came."""

    orders: list[tuple[str, str, str]]
    notices: list[tuple[str, dict[str, Any]]]
    alarms: list[tuple[str, int, int]]

    @property
    def kinds(self) -> list[str]:
        """The kinds of notices."""
        return [kind for kind, _ in self.notices]


@dataclass(slots=True, kw_only=True)
class Town:
    """A database with homes, and the sweep of a process that owns all shards."""

    conn: AsyncConnection
    clock: SetClock
    rules: PostingRules
    sweep: CalendarSweep

    async def home(
        self,
        serial: str,
        *,
        category: str = NIGHTS,
        credit_minor: int = CREDIT_MINOR,
        threshold_minor: int | None = None,
        opened_at: datetime = OPENED_AT,
    ) -> Home:
        """Open an account with a meter."""
        return await open_home(
            self.conn,
            serial,
            self.rules,
            category=category,
            opening_credit_minor=credit_minor,
            threshold_minor=threshold_minor,
            opened_at=opened_at,
        )

    async def use(self, home: Home, energy_wh: int = MUCH_WH) -> None:
        """Store what the meter reads now, and let the account catch up with it."""
        read_at = from_ms(self.clock.at_ms)
        await ensure_partitions(self.conn, {read_at.date()})
        row = ReadingRow(home.meter_id, read_at, REGISTER_WH + energy_wh, None, None, None, None, None, None)
        await copy_readings(self.conn, [row])
        await settle_account(self.conn, home.account_id, rules=self.rules)

    async def pay(self, home: Home, amount_minor: int) -> None:
        """Credit a recharge."""
        async with self.conn.transaction():
            view = await lock_and_look(self.conn, home.account_id, self.rules)
            await post_money(self.conn, view, JournalKind.VEND, amount_minor, rules=self.rules, now_ms=self.clock.at_ms)

    async def set_to(self, at_ms: int) -> bool:
        """Set the clock and do all that is due then; return whether new rules hold."""
        self.clock.at_ms = at_ms
        # One page a shard, the step that finds what is due among them, and one for a shard of two pages.
        renewed = [await self.sweep.step(self.conn, range(SHARDS)) for _ in range(SHARDS + 1)]
        return any(renewed)

    async def told(self, home: Home) -> Told:
        """Return what has become of a home."""
        return await told(self.conn, home)

    async def written(self) -> list[tuple[Any, ...]]:
        """Return how much there is of everything that a sweep may write, and must not write twice."""
        cursor = await self.conn.execute(
            "select (select count(*) from supply_orders), (select count(*) from notices),"
            " (select count(*) from alarms), (select sum(version) from accounts), (select count(*) from change_feed),"
            " (select count(*) from journals), (select count(*) from readings), (select count(*) from rechecks)"
        )
        return await cursor.fetchall()


async def open_home(conn: AsyncConnection, serial: str, rules: PostingRules, **terms: Any) -> Home:
    """Open an account whose meter counts from REGISTER_WH on; terms are fields of the account, by name."""
    await add_meter(conn, NewMeter(serial=serial, rated_w=RATED_W, register_end_wh=REGISTER_END_WH))
    account: dict[str, Any] = {
        "number": serial,
        "consumer": f"Household {serial}",
        "usage_point": serial,
        "area": "test",
        "meter_serial": serial,
        "opened_at": OPENED_AT,
        "register_wh": REGISTER_WH,
        "tariff_id": TARIFF,
        "sanctioned_load_w": 3_000,
    }
    account_id = await open_account(conn, NewAccount(**(account | terms)), rules=rules, now_ms=rules.clock())
    assert account_id is not None, f"account {serial}: expected a new one"
    meter_id, _ = (await accounts_of_meters(conn, [serial]))[serial]
    return Home(serial=serial, meter_id=meter_id, account_id=account_id)


async def told(conn: AsyncConnection, home: Home) -> Told:
    """Read what has become of a home."""
    queries = (
        "select relay, state, cause from supply_orders where account_id = %s and kind = 'supply' order by id",
        "select kind, facts from notices where account_id = %s order by id",
        "select level, n, arm from alarms where account_id = %s order by id",
    )
    orders, notices, alarms = [
        await (await conn.execute(query.encode(), (home.account_id,))).fetchall() for query in queries
    ]
    return Told(orders=orders, notices=notices, alarms=alarms)


@asynccontextmanager
async def open_town(database_url: str, *, at_ms: int, stale_ms: int | None = None) -> AsyncIterator[Town]:
    """Migrate, put the rules in force, and let the sweep see the clock where it stands."""
    clock = SetClock(at_ms=at_ms)
    rules = PostingRules(calendar=CALENDAR, stale_ms=stale_ms, clock=clock)
    async with await connect(database_url, application="test") as conn:
        await migrate(conn)
        await add_supply_rules(conn, NIGHT_RULES, first_open_day=JUNE_1)
        town = Town(conn=conn, clock=clock, rules=rules, sweep=CalendarSweep(rules))
        await town.set_to(at_ms)
        yield town


def in_town(
    database_url: str, at_ms: int, story: Callable[[Town], Awaitable[None]], *, stale_ms: int | None = None
) -> None:
    """Tell a story of the town that begins at an instant."""

    async def run() -> None:
        async with open_town(database_url, at_ms=at_ms, stale_ms=stale_ms) as town:
            await story(town)

    asyncio.run(run())
