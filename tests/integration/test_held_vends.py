"""Held sales that nobody confirms: taken back after their time, counted, listed, and refused a late confirmation."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from billing.calendar import to_ms
from db.audit import run_checks
from tests.commands import run_command, settings_for
from tests.integration.vending_shop import CALENDAR, Shop, open_shop
from vending.edges.desk import Desk
from vending.edges.held_vends import take_back_held

pytestmark = pytest.mark.db

HOUR_S = 3_600


async def _advise(shop: Shop, message_id: str, advice: str) -> httpx.Response:
    return await shop.http.post(f"/v1/vends/{message_id}/{advice}", json={}, headers=shop.headers("vendor"))


async def _sweep(shop: Shop, *, hours_on: int) -> int:
    """Let hours go by since the sales, which the database's clock has dated; take back what is held for two."""
    shop.clock.now_ms = to_ms(datetime.now(UTC)) + hours_on * HOUR_S * 1_000
    desk: Desk = shop.app.state.vending.desk
    return await take_back_held(shop.conn, desk, held_max_s=2 * HOUR_S)


async def _story(database_url: str) -> None:
    async with open_shop(database_url) as shop:
        await shop.set_balance(5_000)
        for message_id in ("H-1", "H-2", "H-3"):
            assert (await shop.vend(message_id, release="on_confirm")).status_code == 200
        await shop.vend("R-1")
        assert (await _advise(shop, "H-2", "confirm")).json()["state"] == "confirmed"
        assert await _sweep(shop, hours_on=1) == 0
        assert [await _sweep(shop, hours_on=3) for _ in range(2)] == [2, 0]
        late = await _advise(shop, "H-1", "confirm")
        assert (late.status_code, late.json()["error"]["code"]) == (409, "never_confirmed")
        # What was meant to be taken back, was; what is sold again needs a new id.
        assert (await _advise(shop, "H-1", "reverse")).json()["state"] == "reversed"
        again = await shop.vend("H-1", release="on_confirm")
        assert again.json()["error"]["code"] == "vend_reversed"
        moves = (await shop.get("/v1/vends/H-1/state")).json()["moves"]
        assert [(move["to"], move["reason"]) for move in moves] == [("reversed", "never_confirmed")]
        assert await shop.one("select count(*) from journals where kind = 'reversal'") == 2
        assert (
            await shop.one("select balance_minor from vendor_floats where vendor_id = %s", shop.vendor_id) == -100_000
        )
        report = await run_checks(shop.conn, CALENDAR)
        assert report.clean, report.lines()


def test_held_sale_is_taken_back_after_its_time_and_its_late_confirmation_is_refused(
    database_url: str, tmp_path: Path
) -> None:
    """Only what is held for longer than allowed is, once; money and float are back, and people see which they were."""
    asyncio.run(_story(database_url))
    listed = run_command("vendors", "held", environment=settings_for(database_url, tmp_path)).stdout
    assert [line.split()[0] for line in listed.splitlines() if "never confirmed" in line] == ["H-1", "H-3"]
