"""What tests of the desk share: two areas with homes, readings of some days, one edited, rolled up and closed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx

from billing.calendar import from_ms, to_ms
from db.readings import ensure_partitions
from db.registry import NewAccount, NewMeter, add_meter, open_account
from db.rollups import RollupSweep
from headend.edges.close_day import close_day
from prepaid.engineers import add_engineers
from prepaid.settings import load_settings
from tests.integration.vending_shop import CALENDAR, MASTER, NOON, OPENED_AT, RULES, TARIFF, Shop, open_shop
from vending.edges.keys import issue_api_key
from vending.roles import Role

HALF_HOUR = timedelta(minutes=30)
WITH_ZONES = "punjab-tod-commercial-2026-27"
FIRST, LAST = date(2026, 11, 10), date(2026, 11, 14)
# The span that tests ask for: three whole local days inside the readings.
SPAN = {"from": "2026-11-11", "to": "2026-11-14"}
FROM = datetime(2026, 11, 10, 18, 30, tzinfo=UTC)
TO = datetime(2026, 11, 13, 18, 30, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Town:
    """A shop with four homes: N1 (with zones), N2, N3 in the north at feeder F1, S1 in the south."""

    shop: Shop
    meter_ids: dict[str, int]

    async def get(self, path: str, who: str = "engineer", **query: str) -> httpx.Response:
        """Ask the desk."""
        return await self.shop.http.get(f"/v1/{path}", params=query, headers=self.shop.headers(who))

    async def pages(self, path: str, who: str = "engineer", **query: str) -> list[dict[str, Any]]:
        """Ask for all rows, page by page."""
        rows: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            answer = await self.get(path, who, **query, **cursor)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            rows += page["rows"]
            if page["next"] is None:
                return rows
            cursor = {"cursor": page["next"]}

    async def add_readings(self, serial: str, first: datetime, count: int, *, from_wh: int) -> None:
        """Store half-hourly readings of a meter, each 100 Wh and a little above the one before."""
        days = {(first + HALF_HOUR * number).date() for number in range(count)}
        await ensure_partitions(self.shop.conn, days)
        rows = [
            (self.meter_ids[serial], first + HALF_HOUR * number, from_wh + 100 * number + number % 7, 230_000 + number)
            for number in range(count)
        ]
        async with self.shop.conn.cursor() as cursor:
            await cursor.executemany(
                "insert into readings (meter_id, read_at, import_wh, voltage_mv) values (%s, %s, %s, %s)", rows
            )

    async def roll_up(self) -> None:
        """Bring rollups up to what is stored."""
        assert (await RollupSweep(calendar=CALENDAR).run(self.shop.conn)).whole


async def add_town_home(shop: Shop, serial: str, *, area: str, feeder: str = "", tariff: str = TARIFF) -> int:
    """Add a home of an area with a meter whose register begins at 5,000 Wh; return its meter's id."""
    await add_meter(shop.conn, NewMeter(serial=serial, rated_w=15_000, register_end_wh=1_000_000_000, make="acme"))
    account = NewAccount(
        number=f"A{serial}", consumer=f"Person {serial}", usage_point=f"UP-{serial}", area=area, feeder=feeder,
        meter_serial=serial, opened_at=OPENED_AT, register_wh=5_000, tariff_id=tariff, sanctioned_load_w=3_000,
    )  # fmt: skip
    assert await open_account(shop.conn, account, rules=RULES, now_ms=to_ms(NOON)) is not None
    return int(await shop.one("select id from meters where serial = %s", serial))


@asynccontextmanager
async def open_town(database_url: str) -> AsyncIterator[Town]:
    """Open a town whose days up to the 13th are closed and rolled up."""
    async with open_shop(database_url) as shop:
        add_engineers(shop.app, load_settings())
        shop.keys["north"] = await issue_api_key(shop.conn, Role.READER, area="north", master=MASTER)
        shop.keys["south"] = await issue_api_key(shop.conn, Role.READER, area="south", master=MASTER)
        ids = {
            "N1": await add_town_home(shop, "N1", area="north", feeder="F1", tariff=WITH_ZONES),
            "N2": await add_town_home(shop, "N2", area="north", feeder="F1"),
            "N3": await add_town_home(shop, "N3", area="north", feeder="F1"),
            "S1": await add_town_home(shop, "S1", area="south", feeder="F2"),
        }
        town = Town(shop=shop, meter_ids=ids)
        begin = from_ms(CALENDAR.midnight_ms(FIRST))
        for serial in ids:
            # 7 minutes after the half hour at one meter: its buckets are split.
            shift = timedelta(minutes=7) if serial == "N2" else timedelta(0)
            await town.add_readings(serial, begin + shift, 48 * 5, from_wh=6_000)
        await shop.conn.execute(
            "insert into meter_events (meter_id, at, code) select %s, %s + n * interval '1 minute', c"
            " from generate_series(0, 4) n, unnest(array[101, 201]) c",
            (ids["N1"], FROM),
        )
        await close_day(shop.conn, LAST - timedelta(days=1), rules=RULES)
        await town.roll_up()
        yield town
