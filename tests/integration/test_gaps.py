"""Gaps on the real parts: noted by ingest, asked of a meter, filled by its blocks; the bill as without any."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from typer.testing import CliRunner

from billing.calendar import from_ms
from db.audit import run_checks
from db.gaps import note_gaps
from db.migrate import migrate
from db.pool import connect
from db.registry import NewMeter, add_meter
from headend.edges.gap_desk import GapLimits, look_at_gaps
from prepaid.__main__ import app
from prepaid.embedded import EmbeddedNats
from tests.integration.village import ALL_SHARDS, HALF_MS, OPENED_MS, Village, open_village
from tests.support import (
    CALENDAR,
    DAY_MS,
    REGISTER_WH,
    block,
    now_ms,
    open_site,
    reading,
    running_dispatch,
    running_ingest,
)

pytestmark = [pytest.mark.db, pytest.mark.broker]


@asynccontextmanager
async def _village(database_url: str, nats: EmbeddedNats) -> AsyncIterator[Village]:
    async with open_village(database_url, nats) as village, running_ingest(village.site):
        yield village


def test_gap_is_asked_for_and_filled_and_the_bill_is_as_without_it(database_url: str, nats: EmbeddedNats) -> None:
    """What the broker lost comes again from the meter's store; both homes used the same and owe the same."""

    async def story() -> None:
        async with _village(database_url, nats) as village:
            site = village.site
            await village.measure(1, 6)
            await village.send()
            await village.fleet.go_offline("M1")
            await village.measure(7, 60, lost=True)
            await village.measure(61, 64)
            # The same readings, all of them, from the other home's meter.
            profile = [stored.register_wh for stored in village.meter._profile]
            await site.send(block("M2", OPENED_MS + HALF_MS, profile, step_ms=HALF_MS))
            async with running_dispatch(site):
                await village.send()
                await village.until_gaps(("open", 54))
                await village.hurry()
                await village.until_gaps(("filled", 0))
            await site.settled()
            assert await site.rows("select kind, state, balance_minor from supply_orders") == [
                ("read", "confirmed", None)
            ]
            assert await site.one("select count(*) from readings") == 128
            bills = await village.bills()
            assert bills["M1"] == bills["M2"]
            report = await run_checks(site.conn, CALENDAR)
            assert [check.line() for check in report.checks if check.broken] == []

    asyncio.run(story())


def test_meter_that_was_away_for_a_day_leaves_no_gap_and_no_order(database_url: str, nats: EmbeddedNats) -> None:
    """What it kept comes first, oldest first; a meter that sends its newest reading first fills the gap by itself."""

    async def story() -> None:
        async with _village(database_url, nats) as village:
            site = village.site
            await village.measure(1, 4)
            await village.send()
            await village.fleet.go_offline("M1")
            await village.measure(5, 52)
            await village.send()
            assert await village.gaps() == []
            await site.send(block("M2", OPENED_MS + HALF_MS, [REGISTER_WH + 1, REGISTER_WH + 2], step_ms=HALF_MS))
            await site.send(reading("M2", OPENED_MS + 8 * HALF_MS, REGISTER_WH + 8))
            assert await village.gaps() == [("noted", 5)]
            await look_at_gaps(site.conn, ALL_SHARDS, now_ms(), GapLimits())
            # Half an hour lies most often between its readings; nothing is ordered for the first minutes.
            assert await village.gaps() == [("open", 5)]
            assert await site.one("select interval_s from meters where serial = 'M2'") == 1_800
            for first, registers in ((6, [6, 7]), (3, [3, 4, 5])):
                registers_wh = [REGISTER_WH + wh for wh in registers]
                await site.send(block("M2", OPENED_MS + first * HALF_MS, registers_wh, step_ms=HALF_MS))
                await look_at_gaps(site.conn, ALL_SHARDS, now_ms(), GapLimits())
                expected = ("open", 3) if first == 6 else ("filled", 0)
                assert await village.gaps() == [expected]
            assert await site.one("select count(*) from supply_orders") == 0

    asyncio.run(story())


def test_readings_that_no_meter_has_are_given_up_after_some_answers(database_url: str, nats: EmbeddedNats) -> None:
    """The meter answers what it has: the gap is narrowed, asked for twice more with waits between, and given up."""

    async def story() -> None:
        async with _village(database_url, nats) as village:
            site = village.site
            await village.measure(1, 4)
            await village.send()
            await village.fleet.go_offline("M1")
            # Ten half hours without power: the meter measured nothing. Ten more were lost on their way.
            await village.measure(15, 24, lost=True)
            await village.measure(25, 26)
            async with running_dispatch(site):
                await village.send()
                await village.until_gaps(("open", 20))
                for answer in (1, 2, 3):
                    await village.hurry()
                    await village.until_gaps(("asked", 10))

                    async def answered(answer: int = answer) -> bool:
                        done = "select count(*) from supply_orders where state = 'confirmed'"
                        return bool(await site.one(done) == answer)

                    await site.until(answered, f"order {answer} is answered")
                    await site.settled()
                    await site.rows(
                        "update supply_orders set confirmed_at = confirmed_at - interval '1 min' returning id"
                    )
                    await village.hurry()
                    await village.until_gaps(("given_up" if answer == 3 else "open", 10))
                span = await site.rows("select from_at, to_at, answers from gaps")
                assert span == [(from_ms(OPENED_MS + 4 * HALF_MS), from_ms(OPENED_MS + 15 * HALF_MS), 3)]

    asyncio.run(story())


def test_outage_of_an_area_is_a_queue_of_orders_and_no_storm(database_url: str, nats: EmbeddedNats) -> None:
    """One gap a meter however long it lasted; orders by page, by area and in all; one that never answers gives way."""

    async def story() -> None:
        async with open_site(database_url, nats) as site, running_ingest(site):
            homes = [
                await site.add_home(f"N{number}", opened_at=from_ms(OPENED_MS), area="north" if number < 8 else "south")
                for number in range(12)
            ]
            first = [REGISTER_WH, REGISTER_WH, REGISTER_WH]
            await site.send(*(block(home.serial, OPENED_MS + HALF_MS, first, step_ms=HALF_MS) for home in homes))
            back_ms = OPENED_MS + 3 * DAY_MS
            await site.send(*(block(home.serial, back_ms, first, step_ms=HALF_MS) for home in homes))
            assert await site.one("select count(*) from gaps where missing = 140") == 12
            limits = GapLimits(looks=100, orders=4, open_by_area=5, open_in_all=7)

            async def step() -> dict[str, int]:
                await site.rows("update gaps set ask_at = '-infinity', look_at = '-infinity' returning id")
                await look_at_gaps(site.conn, ALL_SHARDS, now_ms(), limits)
                open_orders = (
                    "select area, count(*) from supply_orders where state in ('pending', 'sent') group by area"
                )
                return dict(await site.rows(open_orders))

            assert sum((await step()).values()) == 4
            full = await step()
            assert sum(full.values()) == 7
            assert full["north"] <= 5
            assert await step() == full
            await site.rows("update supply_orders set created_at = created_at - interval '1 hour' returning id")
            await look_at_gaps(site.conn, ALL_SHARDS, now_ms(), limits)
            ended = await site.one("select count(*) from supply_orders where state = 'superseded'")
            assert ended == 0
            await site.rows("update gaps set look_at = '-infinity' returning id")
            await look_at_gaps(site.conn, ALL_SHARDS, now_ms(), limits)
            assert await site.one("select count(*) from supply_orders where state = 'superseded'") == 7
            # Those that have not answered wait a quarter of an hour: the places go to others.
            others = "select count(distinct meter_id) from supply_orders where state = 'pending'"
            assert await site.one(others) == await site.one(
                "select count(*) from supply_orders where state = 'pending'"
            )
            assert await site.one("select max(asks) from gaps") == 1

    asyncio.run(story())


def test_gaps_list_shows_spans_and_counts(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator sees what is missing of whom, and how many gaps stand where."""

    async def story() -> None:
        async with await connect(database_url, application="test") as conn:
            await migrate(conn)
            await add_meter(conn, NewMeter(serial="M1", rated_w=15_000, register_end_wh=10**9))
            await note_gaps(conn, [(1, OPENED_MS, OPENED_MS + 7 * HALF_MS, 6)])

    asyncio.run(story())
    monkeypatch.setenv("PREPAID_DATABASE_URL", database_url)
    monkeypatch.setattr("prepaid.console.configure_logs", lambda level: None)
    shown = json.loads(CliRunner().invoke(app, ["gaps", "list", "--json"]).stdout)
    assert shown["counts"]["noted"] == {"gaps": 1, "missing": 6}
    assert [(gap["meter"], gap["missing"], gap["state"]) for gap in shown["gaps"]] == [("M1", 6, "noted")]
    assert CliRunner().invoke(app, ["gaps", "list", "--state", "lost"]).exit_code != 0
