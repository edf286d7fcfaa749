"""Two homes, one of them with a simulated meter that keeps its profile: what gaps are tried on."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from billing.calendar import from_ms
from headend.edges.gap_desk import GapLimits, look_at_gaps
from meter_sim.edges.fleet import Fleet, FleetSettings, ScaledClock
from meter_sim.meter import MeterSettings, SimulatedMeter
from prepaid.embedded import EmbeddedNats
from tests.integration.supply_street import NoReader
from tests.support import CALENDAR, DAY_MS, HOUR_MS, REGISTER_WH, WAIT_S, Home, Site, now_ms, open_site

HALF_MS = HOUR_MS // 2
# A local midnight some days ago: what a meter still has in its store.
OPENED_MS = CALENDAR.midnight_ms(CALENDAR.day_of(now_ms() - 4 * DAY_MS))
ALL_SHARDS = tuple(range(32))


@dataclass(slots=True, kw_only=True)
class Village:
    """Homes, one of them with a simulated meter on line."""

    site: Site
    home: Home
    other: Home
    meter: SimulatedMeter
    fleet: Fleet

    async def measure(self, first: int, last: int, *, lost: bool = False) -> None:
        """Let half hours pass; what is `lost` was taken by a broker that has lost its disk since."""
        for number in range(first, last + 1):
            self.meter.advance(OPENED_MS + number * HALF_MS, 100 + number)
        if lost:
            self.meter.lose_unsent()

    async def report(self, first: int, last: int) -> None:
        """Let half hours pass, then the meter be on line until the broker has everything it said."""
        await self.fleet.go_offline("M1")
        await self.measure(first, last)
        await self.fleet.go_online("M1")
        await self.fleet.wait_sent("M1", timeout_s=WAIT_S)

    async def send(self) -> None:
        """Let the meter be on line until all it has said is stored."""
        await self.fleet.go_online("M1")
        await self.fleet.wait_sent("M1", timeout_s=WAIT_S)
        await self.site.settled()

    async def hurry(self) -> None:
        """Let the time that gaps and orders wait be over."""
        await self.site.rows("update gaps set ask_at = '-infinity', look_at = '-infinity' returning id")

    async def gaps(self) -> list[tuple[str, int]]:
        """Return the gaps: state, missing."""
        return [tuple(row) for row in await self.site.rows("select state, missing from gaps order by id")]

    async def bills(self) -> dict[str, tuple[object, object]]:
        """Return what each home owes and has left, by serial."""
        found = await self.site.snapshot([self.home, self.other])
        return {
            home.serial: (
                [found.bills[key] for key in found.bills if key[0] == home.serial],
                found.balances[home.serial],
            )
            for home in (self.home, self.other)
        }

    async def until_gaps(self, *expected: tuple[str, int]) -> None:
        """Look at gaps, as the dispatcher does every few seconds, until they are these."""

        async def so() -> bool:
            await look_at_gaps(self.site.conn, ALL_SHARDS, now_ms(), GapLimits())
            return await self.gaps() == list(expected)

        await self.site.until(so, f"gaps become {expected}")


@asynccontextmanager
async def open_village(database_url: str, nats: EmbeddedNats) -> AsyncIterator[Village]:
    """Register two homes and connect the meter of one, which is away at first; ingest does not run."""
    meter = SimulatedMeter(
        serial="M1", token_reader=NoReader(), settings=MeterSettings(interval_s=1_800), register_wh=REGISTER_WH
    )
    fleet = Fleet(
        [meter],
        settings=FleetSettings(host=nats.mqtt_host, port=nats.mqtt_port),
        clock=ScaledClock(now_ms()),
        rng=random.Random(5),
    )
    async with open_site(database_url, nats) as site:
        home = await site.add_home("M1", opened_at=from_ms(OPENED_MS))
        other = await site.add_home("M2", opened_at=from_ms(OPENED_MS))
        async with fleet:
            await fleet.wait_connected(timeout_s=WAIT_S)
            await fleet.go_offline("M1")
            yield Village(site=site, home=home, other=other, meter=meter, fleet=fleet)
