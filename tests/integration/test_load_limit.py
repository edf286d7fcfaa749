"""Load limits end to end: rules, database, dispatcher, broker, and meters that can limit beside others that cannot."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pytest

from billing.calendar import to_ms
from billing.journals import JournalKind
from db.audit import run_checks
from db.order_control import read_status
from db.supply_rules import add_supply_rules
from headend.dispatch_plan import CutOffLimits
from meter_sim.edges.fleet import Fleet, FleetSettings, ScaledClock
from prepaid.embedded import EmbeddedNats
from protocols.native import OrderKind, Relay
from tests.integration.supply_street import CREDIT_MINOR, RememberingMeter
from tests.support import CALENDAR, DAY_MS, HOUR_MS, T0, WAIT_S, Home, Site, open_site, running_dispatch, running_ingest

pytestmark = [pytest.mark.db, pytest.mark.broker]

LIMIT_W = 500
# A home on this scheme keeps a fan and some lamps.
RULES_TEXT = f"""
id = "limit"
title = "A small load instead of none"
source = "a test"
effective_from = 2025-06-01
default = "small_load"

[scheme.small_load]
title = "Limited where the meter is able to"
source = "a test"
limit_w = {LIMIT_W}
"""
# Rules of a day that only the dispatcher has reached: what ingest orders at any hour now, it sends within these.
LATER_RULES_TEXT = f"""
id = "later"
title = "A small load, and that in the late morning only"
source = "a test"
effective_from = 2091-01-01
default = "late_morning"

[scheme.late_morning]
title = "10:00 to 13:00"
source = "a test"
limit_w = {LIMIT_W}

[[scheme.late_morning.window]]
days = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
from = "10:00"
to = "13:00"
"""


@dataclass(slots=True, kw_only=True)
class Lane:
    """Homes with their meters on line, ingest and a dispatcher."""

    site: Site
    fleet: Fleet
    homes: dict[str, Home]
    meters: dict[str, RememberingMeter]

    async def use(self, hour: int, energy_wh: int) -> dict[str, int]:
        """Let every home use energy for an hour, if it flows; return how far each register moved."""
        before = {serial: meter.register_wh for serial, meter in self.meters.items()}
        for serial in self.meters:
            await self.fleet.advance(serial, energy_wh, at_ms=T0 + hour * HOUR_MS)
        for serial in self.meters:
            await self.fleet.wait_sent(serial, timeout_s=WAIT_S)
        await self.site.settled()
        return {serial: meter.register_wh - before[serial] for serial, meter in self.meters.items()}

    async def until_orders(self, serial: str, *expected: tuple[str, int | None, str]) -> None:
        """Wait until a meter's supply orders are these: relay, limit, state."""

        async def so() -> bool:
            found = await self.site.rows(
                "select relay, limit_w, state from supply_orders where meter_id = %s and kind = 'supply'"
                " order by epoch",
                self.homes[serial].meter_id,
            )
            return found == list(expected)

        await self.site.until(so, f"supply orders of {serial} become {expected}")

    async def notices(self, serial: str) -> list[str]:
        """Return the kinds of notices a home got."""
        account_id = self.homes[serial].account_id
        rows = await self.site.rows("select kind from notices where account_id = %s order by id", account_id)
        return [kind for (kind,) in rows]

    async def reported(self) -> dict[str, str | None]:
        """Return what each meter last said of its relay."""
        return dict(
            await self.site.rows(
                "select m.serial, s.relay from meters m join meter_state s on s.meter_id = m.id order by 1"
            )
        )


@asynccontextmanager
async def open_lane(
    database_url: str,
    nats: EmbeddedNats,
    *,
    registered: dict[str, bool],
    able: dict[str, bool] | None = None,
    texts: tuple[str, ...] = (RULES_TEXT,),
    **dispatch: Any,  # What `running_dispatch` takes.
) -> AsyncIterator[Lane]:
    """Open homes whose meters are registered as able to limit or not; `able` tells what they are indeed."""
    able = registered if able is None else able
    meters = {serial: RememberingMeter(serial, can_limit=able[serial]) for serial in registered}
    async with open_site(database_url, nats) as site:
        for text in texts:
            await add_supply_rules(site.conn, text, first_open_day=date(2025, 6, 1))
        homes = {
            serial: await site.add_home(serial, credit_minor=CREDIT_MINOR, can_limit=can_limit)
            for serial, can_limit in registered.items()
        }
        fleet = Fleet(
            meters.values(),
            settings=FleetSettings(host=nats.mqtt_host, port=nats.mqtt_port),
            clock=ScaledClock(T0 + DAY_MS),
            rng=random.Random(7),
        )
        async with running_ingest(site), running_dispatch(site, **dispatch), fleet:
            await fleet.wait_connected(timeout_s=WAIT_S)
            yield Lane(site=site, fleet=fleet, homes=homes, meters=meters)


def tell(
    database_url: str,
    nats: EmbeddedNats,
    story: Callable[[Lane], Awaitable[None]],
    **lane: Any,  # What `open_lane` takes.
) -> None:
    """Tell a story of the lane."""

    async def told() -> None:
        async with open_lane(database_url, nats, **lane) as opened:
            await story(opened)

    asyncio.run(told())


def test_home_whose_meter_can_limit_keeps_a_small_load_and_its_neighbour_is_cut(
    database_url: str, nats: EmbeddedNats
) -> None:
    """At the end of credit one is limited and the other off; both are back with a recharge, and nothing costs a fee."""

    async def story(lane: Lane) -> None:
        site, limited, cut = lane.site, lane.meters["M1"], lane.meters["M2"]
        assert await lane.use(1, 1_000) == {"M1": 1_000, "M2": 1_000}
        assert await lane.use(2, 10_000) == {"M1": 10_000, "M2": 10_000}
        await lane.until_orders("M1", ("limited", LIMIT_W, "confirmed"))
        await lane.until_orders("M2", ("off", None, "confirmed"))
        assert (limited.relay, cut.relay) == (Relay.LIMITED, Relay.OFF)
        assert limited.display.startswith("SUPPLY LIMITED TO 500 W")
        assert [command.limit_w for command in limited.given(OrderKind.SUPPLY)] == [LIMIT_W]

        before_minor = await site.balance(lane.homes["M1"])
        assert await lane.use(3, 10_000) == {"M1": LIMIT_W, "M2": 0}
        assert await lane.use(4, 200) == {"M1": 200, "M2": 0}
        assert await site.balance(lane.homes["M1"]) < before_minor < 0
        # Deeper in debt it stays as it is: no further order, alarm or notice.
        assert await lane.reported() == {"M1": "limited", "M2": "off"}
        assert await lane.notices("M1") == ["limited"]
        assert await lane.notices("M2") == ["exhausted"]
        assert await site.rows("select level, count(*) from alarms group by level") == [("exhausted", 2)]
        assert await site.one("select sum(sent) from cut_off_counts") == 1
        status = await read_status(site.conn, hours=1)
        assert (status.matrix, status.differing) == ({"limited": {"limited": 1}, "off": {"off": 1}}, 0)

        for home in lane.homes.values():
            owed_minor = -await site.balance(home)
            await site.post(home, JournalKind.VEND, owed_minor)
            await site.settled()
            await site.post(home, JournalKind.VEND, 10_000)
        await lane.until_orders("M1", ("limited", LIMIT_W, "confirmed"), ("on", None, "confirmed"))
        await lane.until_orders("M2", ("off", None, "confirmed"), ("on", None, "confirmed"))
        assert (limited.relay, limited.limit_w, limited.display) == (Relay.ON, None, "BALANCE 100.00")
        assert await site.balance(lane.homes["M1"]) == 10_000
        assert await lane.use(5, 800) == {"M1": 800, "M2": 800}
        assert await lane.notices("M1") == ["limited", "recharged", "recharged", "restored"]
        assert await lane.reported() == {"M1": "on", "M2": "on"}
        report = await run_checks(site.conn, CALENDAR)
        # The recharges of this story are postings without a station: no vend names them.
        assert [check.line() for check in report.checks if check.broken and check.id != "I6"] == []

    tell(database_url, nats, story, registered={"M1": True, "M2": False})


def test_load_limits_are_not_held_back_by_the_limits_on_cut_offs(database_url: str, nats: EmbeddedNats) -> None:
    """An area that has had its cut-offs of the hour goes on to be limited; its cut-offs wait."""

    async def story(lane: Lane) -> None:
        await lane.use(2, 20_000)
        for serial in ("M1", "M2", "M3"):
            await lane.until_orders(serial, ("limited", LIMIT_W, "confirmed"))

        async def cut() -> list[tuple[Any, ...]]:
            return await lane.site.rows(
                "select serial from supply_orders o join meters m on m.id = o.meter_id"
                " where relay = 'off' and o.state = 'confirmed'"
            )

        assert len(await lane.site.until(cut, "one is cut")) == 1
        await lane.use(3, 20_000)
        assert len(await cut()) == 1
        held = await lane.site.rows("select kind, sent, most from supply_alarms")
        assert held == [("held", 1, 1)]

    able = {"M1": True, "M2": True, "M3": True, "M4": False, "M5": False}
    tell(database_url, nats, story, registered=able, limits=CutOffLimits(per_minute_max=1, per_hour_max=1))


def test_load_limit_waits_for_the_hours_of_its_scheme_and_expires_with_them(
    database_url: str, nats: EmbeddedNats
) -> None:
    """Exhausted in the evening, a home is limited in the window, by a command that dies with it."""
    at = {"ms": _local_ms(18)}

    async def story(lane: Lane) -> None:
        await lane.use(2, 20_000)

        async def waits() -> bool:
            return bool(await lane.site.one("select waits_for = 'hours' from supply_orders where kind = 'supply'"))

        await lane.site.until(waits, "the limit waits for its hours")
        meter = lane.meters["M1"]
        assert (meter.given(OrderKind.SUPPLY), meter.relay) == ([], Relay.ON)
        at["ms"] = _local_ms(12, 58)
        await lane.site.rows(
            "update supply_orders set next_try_at = '-infinity' where state <> 'confirmed' returning id"
        )
        await lane.until_orders("M1", ("limited", LIMIT_W, "confirmed"))
        (command,) = meter.given(OrderKind.SUPPLY)
        assert command.expires_at_ms == _local_ms(13)

    tell(
        database_url,
        nats,
        story,
        registered={"M1": True},
        texts=(RULES_TEXT, LATER_RULES_TEXT),
        now_ms=lambda: at["ms"],
    )


def test_limit_refused_by_a_meter_that_cannot_stays_open_and_visible(database_url: str, nats: EmbeddedNats) -> None:
    """A meter wrongly registered as able keeps its supply; operators see what differs; a recharge ends the order."""

    async def story(lane: Lane) -> None:
        meter = lane.meters["M1"]
        await lane.use(2, 20_000)

        def refused_twice() -> bool:
            return len(meter.given(OrderKind.SUPPLY)) >= 2

        await lane.fleet.wait_for(refused_twice, timeout_s=WAIT_S)
        await lane.fleet.wait_sent("M1", timeout_s=WAIT_S)
        await lane.site.settled()
        assert (meter.relay, meter.display) == (Relay.ON, "BALANCE --")
        await lane.until_orders("M1", ("limited", LIMIT_W, "sent"))
        status = await read_status(lane.site.conn, hours=1)
        assert (status.matrix, status.differing) == ({"limited": {"on": 1}}, 1)
        (late,) = status.oldest
        assert (late.serial, late.relay) == ("M1", "limited")
        assert late.attempts >= 2
        await lane.site.post(lane.homes["M1"], JournalKind.VEND, 100_000)
        await lane.until_orders("M1", ("limited", LIMIT_W, "superseded"), ("on", None, "confirmed"))

    tell(database_url, nats, story, registered={"M1": True}, able={"M1": False})


def _local_ms(hour: int, minute: int = 0) -> int:
    return to_ms(datetime(2091, 1, 10, hour, minute, tzinfo=CALENDAR.zone).astimezone(UTC))
