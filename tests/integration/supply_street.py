"""A street of one home for supply tests: its meter on line, ingest and a dispatcher."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from billing.calendar import from_ms
from headend.edges.dispatch_metrics import DispatchMetrics
from meter_sim.edges.fleet import Fleet, FleetSettings, ScaledClock
from meter_sim.meter import MeterSettings, SimulatedMeter, TokenResult
from prepaid.embedded import EmbeddedNats
from protocols.native import Command, CommandReply, MeterEvent, OrderKind, Relay, ReplyResult, encode_reply
from protocols.topics import event_topic
from tests.support import (
    DAY_MS,
    HOUR_MS,
    REGISTER_WH,
    T0,
    WAIT_S,
    Home,
    Message,
    Site,
    open_site,
    reading,
    running_dispatch,
    running_ingest,
)

# 1 kWh and the first day's fixed charge cost 12.43: this credit lasts for them and not for 10 kWh.
CREDIT_MINOR = 2_000


class NoReader:
    """No token is typed in these stories."""

    def enter(self, digits: str, now_ms: int) -> TokenResult:
        raise AssertionError("no token is typed here")


class RememberingMeter(SimulatedMeter):
    """A simulated meter that remembers every command it was given."""

    def __init__(self, serial: str, *, can_limit: bool = False) -> None:
        super().__init__(
            serial=serial,
            token_reader=NoReader(),
            settings=MeterSettings(interval_s=3_600, can_limit=can_limit),
            register_wh=REGISTER_WH,
        )
        self.commands: list[Command] = []

    def obey(self, command: Command, now_ms: int) -> tuple[MeterEvent | CommandReply, ...]:
        self.commands.append(command)
        return super().obey(command, now_ms)

    def given(self, kind: OrderKind) -> list[Command]:
        """Return the commands of one kind."""
        return [command for command in self.commands if command.kind is kind]


@dataclass(slots=True, kw_only=True)
class Street:
    """A home with its meter on line, ingest and a dispatcher."""

    site: Site
    fleet: Fleet
    home: Home
    meter: RememberingMeter
    metrics: DispatchMetrics

    async def use(self, hour: int, energy_wh: int) -> None:
        """Let the meter report an hour's use; return when it is settled."""
        await self.fleet.advance("M1", energy_wh, at_ms=T0 + hour * HOUR_MS)
        await self.fleet.wait_sent("M1", timeout_s=WAIT_S)
        await self.site.settled()

    async def orders(self, kind: str = "supply") -> list[tuple[Any, ...]]:
        """Return the meter's orders of a kind: relay, state."""
        return await self.site.rows(
            "select relay, state from supply_orders where meter_id = %s and kind = %s order by epoch",
            self.home.meter_id,
            kind,
        )

    async def until_orders(self, *expected: tuple[str | None, str], kind: str = "supply") -> None:
        """Wait until the meter's orders of a kind are these."""

        async def so() -> bool:
            return await self.orders(kind) == list(expected)

        await self.site.until(so, f"{kind} orders become {expected}")

    async def notices(self) -> list[str]:
        """Return the kinds of notices the consumer got."""
        return [kind for (kind,) in await self.site.rows("select kind from notices order by id")]

    async def alarms(self) -> list[tuple[Any, ...]]:
        """Return the account's alarms: level, arm."""
        return await self.site.rows("select level, arm from alarms order by id")


@asynccontextmanager
async def open_street(
    database_url: str,
    nats: EmbeddedNats,
    *,
    threshold_minor: int | None = None,
    credit_minor: int = CREDIT_MINOR,
    stale_reading_s: int | None = None,
    opened_ms: int = T0,
    category: str = "DS",
    **dispatch: Any,  # What `running_dispatch` takes.
) -> AsyncIterator[Street]:
    """Open the street; leave it with everything stopped."""
    meter = RememberingMeter("M1")
    async with open_site(database_url, nats) as site:
        home = await site.add_home(
            "M1",
            credit_minor=credit_minor,
            threshold_minor=threshold_minor,
            opened_at=from_ms(opened_ms),
            category=category,
        )
        fleet = Fleet(
            [meter],
            settings=FleetSettings(host=nats.mqtt_host, port=nats.mqtt_port),
            clock=ScaledClock(opened_ms + DAY_MS),
            rng=random.Random(7),
        )
        async with (
            running_ingest(site, stale_reading_s=stale_reading_s),
            running_dispatch(site, **dispatch) as metrics,
            fleet,
        ):
            await fleet.wait_connected(timeout_s=WAIT_S)
            yield Street(site=site, fleet=fleet, home=home, meter=meter, metrics=metrics)


def tell(
    database_url: str,
    nats: EmbeddedNats,
    story: Callable[[Street], Awaitable[None]],
    **street: Any,  # What `open_street` takes.
) -> None:
    """Tell a story of the street."""

    async def told() -> None:
        async with open_street(database_url, nats, **street) as opened:
            await story(opened)

    asyncio.run(told())


def exhausting(at_ms: int = T0 + 5 * HOUR_MS) -> Message:
    """Make a reading that exhausts the credit."""
    return reading("M1", at_ms, REGISTER_WH + 20_000)


def reply(order_id: int, epoch: int, relay: Relay, *, serial: str = "M1", at_ms: int = T0 + DAY_MS) -> Message:
    """Make a meter's answer that it has done what an order of supply asked."""
    said = CommandReply(
        serial=serial,
        seq=None,
        at_ms=at_ms,
        order_id=order_id,
        epoch=epoch,
        kind=OrderKind.SUPPLY,
        result=ReplyResult.DONE,
        relay=relay,
        threshold_minor=None,
    )
    return event_topic(serial), encode_reply(said)
