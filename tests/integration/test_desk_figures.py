"""Figures of the desk: use of a consumer and losses of a feeder, as plain SQL and arithmetic have them."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta
from itertools import pairwise

import pytest

from billing.calendar import from_ms
from db.desk import set_feeder_meter
from db.registry import NewMeter, add_meter
from tests.integration.desk_town import FIRST, FROM, HALF_HOUR, SPAN, TO, add_town_home, open_town
from tests.integration.vending_shop import CALENDAR

pytestmark = pytest.mark.db


def test_use_of_a_consumer_adds_up(database_url: str) -> None:
    """Energy, peak, load factor and zones are those of the readings; the period before is the days before."""

    async def story() -> None:
        async with open_town(database_url) as town:
            use = (await town.get("profiles/summary", account="AN1", **SPAN)).json()
            readings = await (
                await town.shop.conn.execute(
                    "select read_at, import_wh from readings where meter_id = %s and read_at between %s and %s"
                    " order by read_at",
                    (town.meter_ids["N1"], FROM, TO),
                )
            ).fetchall()
            steps = [(2 * (later[1] - before[1]), before[0]) for before, later in pairwise(readings)]
            assert use["import_wh"] == readings[-1][1] - readings[0][1] == sum(use["zones_wh"].values())
            assert len(use["zones_wh"]) > 1
            peak_w = max(power for power, _ in steps)
            assert use["peak_w"] == peak_w
            assert use["peak_at"] in {
                at.astimezone(CALENDAR.zone).isoformat() for power, at in steps if power == peak_w
            }
            assert use["load_factor_milli"] == use["import_wh"] * 1_000 // (peak_w * 72)
            assert (use["before"]["from"], use["before"]["to"]) == ("2026-11-08", "2026-11-11")
            assert use["similar"] is None, "three homes tell too much of each other"
            plain = (await town.get("profiles/summary", account="AN2", **SPAN)).json()
            assert plain["zones_wh"] is None
            hidden = await town.get("profiles/summary", "south", account="AN1", **SPAN)
            missing = await town.get("profiles/summary", "south", account="AN9", **SPAN)
            assert hidden.status_code == missing.status_code == 404
            assert hidden.text.replace("AN1", "?") == missing.text.replace("AN9", "?")

    asyncio.run(story())


def test_consumers_like_one_are_told_from_ten_on(database_url: str) -> None:
    """Quartiles of others of the area, category and load band with a whole span, and not of fewer than ten."""

    async def story() -> None:
        async with open_town(database_url) as town:
            begin = from_ms(CALENDAR.midnight_ms(FIRST))
            # N2 and N3 are like N1; with seven more there are nine, with eight ten.
            for number in range(8):
                serial = f"X{number}"
                town.meter_ids[serial] = await add_town_home(town.shop, serial, area="north")
                await town.add_readings(serial, begin, 48 * 5, from_wh=6_000)
                await town.roll_up()
                found = (await town.get("profiles/summary", "north", account="AN1", **SPAN)).json()["similar"]
                assert (found is None) == (number < 7), number
            sums = await (
                await town.shop.conn.execute(
                    "select sum(import_wh)::bigint from day_rollups d join meters m on m.id = d.meter_id"
                    " where m.serial <> 'N1' and m.serial <> 'S1' and day >= %s and day < %s group by m.id order by 1",
                    (date(2026, 11, 11), date(2026, 11, 14)),
                )
            ).fetchall()
            assert found["consumers"] == len(sums) == 10
            quartiles = (found["quartile_1_wh"], found["median_wh"], found["quartile_3_wh"])
            assert quartiles == (sums[2][0], sums[4][0], sums[7][0])

    asyncio.run(story())


def test_losses_are_the_feeders_meter_less_its_consumers(database_url: str) -> None:
    """Day by day, for the days that the feeder's own meter has; a reader of part of a feeder is told of none."""

    async def story() -> None:
        async with open_town(database_url) as town:
            await add_meter(town.shop.conn, NewMeter(serial="HEAD1", rated_w=10**6, register_end_wh=10**12))
            town.meter_ids["HEAD1"] = int(await town.shop.one("select id from meters where serial = 'HEAD1'"))
            assert not await set_feeder_meter(town.shop.conn, "F1", "HEAD9", FIRST, by="A. Kaur")
            assert await set_feeder_meter(town.shop.conn, "F1", "HEAD1", FIRST + timedelta(days=2), by="A. Kaur")
            assert not await set_feeder_meter(town.shop.conn, "F1", "HEAD1", FIRST + timedelta(days=2), by="B. Singh")
            begin = from_ms(CALENDAR.midnight_ms(FIRST))
            rows = [(town.meter_ids["HEAD1"], begin + HALF_HOUR * n, 400 * n) for n in range(48 * 5)]
            async with town.shop.conn.cursor() as cursor:
                await cursor.executemany(
                    "insert into readings (meter_id, read_at, import_wh) values (%s, %s, %s)", rows
                )
            await town.roll_up()
            losses = (await town.get("profiles/losses", "north", feeder="F1", **SPAN)).json()
            taken = await town.pages("profiles", area="north", interval="day", total="true", **SPAN)
            assert losses["days_measured"] == 2, "the first day is before the feeder's meter"
            assert [day["into_wh"] for day in losses["days"]] == [48 * 400] * 2
            assert [day["taken_wh"] for day in losses["days"]] == [row["import_wh"] for row in taken[1:]]
            assert losses["losses_wh"] == 2 * 48 * 400 - sum(row["import_wh"] for row in taken[1:])
            assert all(day["meters"] == 3 and day["final"] for day in losses["days"])
            assert (await town.get("profiles/losses", "south", feeder="F1", **SPAN)).status_code == 404
            await add_town_home(town.shop, "S2", area="south", feeder="F1")
            assert (await town.get("profiles/losses", "north", feeder="F1", **SPAN)).status_code == 404
            assert (await town.get("profiles/losses", feeder="F1", **SPAN)).status_code == 200

    asyncio.run(story())
