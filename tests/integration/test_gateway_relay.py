"""Supply orders to Modbus meters: the coil is written, read back, and only what was read is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nats as nats_client
import pytest

from billing.calendar import from_ms
from billing.journals import JournalKind
from db.audit import run_checks
from db.gateways import NewPolledMeter, add_polled_meter
from db.order_control import list_orders, read_status
from headend.edges.gateway_metrics import GatewayMetrics
from headend.events import SUPPLY_UNSWITCHABLE
from prepaid.embedded import EmbeddedNats
from protocols.native import Command, OrderKind, Relay, encode_command
from protocols.topics import command_topic
from tests.integration.gateway_line import RELAY_UNIT, Line, Meter, counted, enter, running_gateway, running_line
from tests.support import CALENDAR, DAY_MS, Home, Site, now_ms, open_site, running_dispatch, running_ingest

pytestmark = [pytest.mark.db, pytest.mark.broker]

COIL = 3
BARE = NewPolledMeter(serial="M1", line="north", unit=1, model="sdm120", poll_s=1)
WIRED = replace(BARE, relay_model="relay-coil", relay_unit=RELAY_UNIT, relay_address=COIL)


@dataclass(slots=True, kw_only=True)
class Yard:
    """A home whose meter stands on a line beside a module of relays."""

    site: Site
    home: Home
    line: Line
    meter: Meter
    metrics: GatewayMetrics

    async def until_orders(self, *expected: tuple[str, str]) -> None:
        """Wait until the meter's supply orders are these."""

        async def so() -> bool:
            found = await self.site.rows(
                "select relay, state from supply_orders where meter_id = %s and kind = 'supply' order by epoch",
                self.home.meter_id,
            )
            return found == list(expected)

        await self.site.until(so, f"orders become {expected}")

    async def until_counted(self, name: str, count: int, **labels: str) -> None:
        """Wait until a counter has come so far."""

        async def so() -> bool:
            return counted(self.metrics, name, **labels) >= count

        await self.site.until(so, f"{name} {labels} comes to {count}")


@asynccontextmanager
async def open_yard(
    database_url: str, nats: EmbeddedNats, folder: Path, *, credit_minor: int, relay: bool = True
) -> AsyncIterator[Yard]:
    """Open the yard with ingest, a dispatcher and a gateway; leave it with everything stopped."""
    meter = Meter(import_kwh=1.0)
    async with (
        running_line({1: meter}) as line,
        open_site(database_url, nats) as site,
        running_ingest(site),
        running_dispatch(site),
    ):
        opened = now_ms() // DAY_MS * DAY_MS - DAY_MS
        threshold_minor = None if relay else 50_000
        home = await site.add_home(
            "M1", credit_minor=credit_minor, threshold_minor=threshold_minor, opened_at=from_ms(opened), days=2
        )
        await enter(site, line, [WIRED if relay else BARE])
        async with running_gateway(site, folder) as metrics:
            yield Yard(site=site, home=home, line=line, meter=meter, metrics=metrics)


def tell(
    story: Callable[[Yard], Coroutine[Any, Any, None]], *where: Any, credit_minor: int = 100_000, relay: bool = True
) -> None:
    """Tell a story of the yard."""

    async def told() -> None:
        database_url, nats, folder = where
        async with open_yard(database_url, nats, folder, credit_minor=credit_minor, relay=relay) as yard:
            await story(yard)

    asyncio.run(told())


async def send(yard: Yard, *commands: Command) -> None:
    """Publish commands as the dispatcher does."""
    client = await nats_client.connect(yard.site.nats.nats_url)
    for command in commands:
        await client.publish(command_topic("M1").replace("/", "."), encode_command(command))
    await client.flush()
    await client.close()


def supply(epoch: int, relay: Relay, *, expires_in_ms: int = 60_000, limit_w: int | None = None) -> Command:
    return Command(
        order_id=1_000 + epoch, epoch=epoch, kind=OrderKind.SUPPLY, relay=relay, level=None, balance_minor=None,
        threshold_minor=None, expires_at_ms=now_ms() + expires_in_ms, limit_w=limit_w,
    )  # fmt: skip


def test_meter_without_credit_is_cut_by_its_coil_and_restored(
    database_url: str, nats: EmbeddedNats, tmp_path: Path
) -> None:
    """Credit ends: the coil opens, is read back, the order is confirmed; a recharge closes it; the audit is clean."""

    async def story(yard: Yard) -> None:
        await yard.until_orders(("off", "confirmed"))
        assert yard.line.writes == [(COIL, False)]
        assert yard.line.coils == [True, True, True, False, True, True, True, True]
        await yard.site.post(yard.home, JournalKind.ADJUSTMENT, 500_000)
        await yard.until_orders(("off", "confirmed"), ("on", "confirmed"))
        assert yard.line.writes == [(COIL, False), (COIL, True)]

        async def switched() -> bool:
            codes = await yard.site.rows("select code from meter_events order by at")
            return [code for (code,) in codes] == [301, 302]

        await yard.site.until(switched, "the switch is told to have opened and closed")
        await yard.site.settled()
        report = await run_checks(yard.site.conn, CALENDAR)
        assert report.clean, "\n".join(report.lines())

        async def kept() -> bool:
            return bool(await yard.site.one("select supply_epoch from modbus_meters") == 2)

        await yard.site.until(kept, "what was obeyed is kept for the next gateway")

    tell(story, database_url, nats, tmp_path, credit_minor=0)


def test_orders_that_a_meter_can_never_carry_out_end_or_stand_untried_and_ring(
    database_url: str, nats: EmbeddedNats, tmp_path: Path
) -> None:
    """Without a relay an alarm ends, a cut-off stands, is tried no more and rings; a relay that is added is written."""

    async def story(yard: Yard) -> None:
        async def stands() -> bool:
            found = await yard.site.rows(
                "select kind, state, waits_for from supply_orders where meter_id = %s order by kind", yard.home.meter_id
            )
            return found == [("alarm", "impossible", None), ("supply", "pending", "impossible")]

        await yard.site.until(stands, "the alarm ended and the cut-off stands")
        rung = await yard.site.rows("select code, severity, times from event_alarms where ended_at is null")
        assert rung == [(SUPPLY_UNSWITCHABLE, "alarm", 1)]
        (make,) = (await read_status(yard.site.conn, hours=1)).makes
        assert (make.impossible, make.open) == (1, 0)
        shown = await list_orders(yard.site.conn, serial="M1", states=["impossible"], area=None, most=9)
        assert {order.kind for order in shown} == {"alarm", "supply"}
        tries = "select max(attempts) from supply_orders where kind = 'supply'"
        tried = await yard.site.one(tries)
        read = counted(yard.metrics, "polls_total", outcome="read")
        await yard.until_counted("polls_total", read + 1, outcome="read")
        await yard.site.settled()
        assert await yard.site.one(tries) == tried
        assert await yard.site.one("select count(*) from supply_orders") == 2
        await add_polled_meter(yard.site.conn, WIRED)
        await yard.until_orders(("off", "confirmed"))
        assert yard.line.writes == [(COIL, False)]

    tell(story, database_url, nats, tmp_path, credit_minor=0, relay=False)


@pytest.mark.slow
def test_relay_that_sticks_is_not_confirmed_and_is_seen_when_it_moves(
    database_url: str, nats: EmbeddedNats, tmp_path: Path
) -> None:
    """A write that is echoed and not obeyed is refused by its read-back; the order stays open until it is obeyed."""

    async def story(yard: Yard) -> None:
        yard.line.stuck.add(COIL)
        await yard.until_counted("commands_total", 1, kind="supply", result="refused")
        await yard.until_orders(("off", "sent"))
        yard.line.stuck.clear()
        await yard.until_orders(("off", "confirmed"))

    tell(story, database_url, nats, tmp_path, credit_minor=0)


def test_commands_that_are_old_expired_or_beyond_a_relay_write_nothing(
    database_url: str, nats: EmbeddedNats, tmp_path: Path
) -> None:
    """Epoch and expiry count as in a meter; alarms, reads and limits are not possible; a copy is answered again."""

    async def story(yard: Yard) -> None:
        await yard.until_counted("polls_total", 1, outcome="read")
        off = supply(50, Relay.OFF)
        # Subscriptions follow the roster within a moment.
        while not yard.line.writes:
            await send(yard, off)
            await asyncio.sleep(0.1)
        await send(yard, off, supply(49, Relay.ON), supply(51, Relay.ON, expires_in_ms=-1))
        await send(yard, supply(52, Relay.LIMITED, limit_w=500))
        alarm = Command(
            order_id=7, epoch=1, kind=OrderKind.ALARM, relay=None, level="low", balance_minor=1, threshold_minor=None,
            expires_at_ms=now_ms() + 60_000,
        )  # fmt: skip
        read = Command(
            order_id=8, epoch=1, kind=OrderKind.READ, relay=None, level=None, balance_minor=None, threshold_minor=None,
            expires_at_ms=now_ms() + 60_000, read_from_ms=0, read_to_ms=1,
        )  # fmt: skip
        await send(yard, alarm, read)
        await yard.until_counted("commands_total", 2, kind="supply", result="done")
        await yard.until_counted("commands_total", 1, kind="supply", result="stale")
        await yard.until_counted("commands_total", 1, kind="supply", result="expired")
        await yard.until_counted("commands_total", 1, kind="supply", result="impossible")
        await yard.until_counted("commands_total", 1, kind="alarm", result="impossible")
        await yard.until_counted("commands_total", 1, kind="read", result="impossible")
        assert yard.line.writes == [(COIL, False)]
        assert counted(yard.metrics, "writes_refused_total", why="alarm") == 1

    tell(story, database_url, nats, tmp_path)
