"""A family's evening, told on the real parts: the alarm at six, a protected night, the morning's cut, light again.

A home whose scheme protects nights and holidays runs out of credit. Everything is as in production: database, broker,
ingest, dispatcher, the vending interface over HTTP, and the home's meter on MQTT. Only the clock is the story's own.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import structlog
import uvicorn
from fastapi import FastAPI

from billing.notices import Language
from db.audit import run_checks
from db.notices import list_notices
from db.registry import NewAccount, NewMeter, StsIdentity, add_meter, add_vendor, open_account
from db.reports import accounts_of_meters
from db.supply_rules import add_supply_rules
from meter_sim.edges.fleet import Fleet, FleetSettings
from prepaid.embedded import EmbeddedNats
from protocols.native import OrderKind, Relay
from tests.integration.calendar_town import JUNE_1, NIGHT_RULES, SetClock, Told, at, told
from tests.integration.supply_street import RememberingMeter
from tests.integration.vending_shop import MASTER, SGC, STS, VENDING_KEY
from tests.support import (
    CALENDAR,
    OPENED_AT,
    RATED_W,
    REGISTER_END_WH,
    REGISTER_WH,
    RULES,
    TARIFF,
    WAIT_S,
    Home,
    Site,
    open_site,
    running_dispatch,
    running_ingest,
)
from vending.edges.api import create_app
from vending.edges.keys import NewApiKey, Role, add_vending_key, issue_api_key, load_security_module
from vending.sts.identity import luhn_check_digit

pytestmark = [pytest.mark.db, pytest.mark.broker]

SERIAL, NUMBER = "PB000123", "100200300"
THRESHOLD_MINOR, CREDIT_MINOR = 10_000, 30_000
DRN_DIGITS = f"{int(NUMBER):010d}"
# A sweep looks at one page between two waits for messages, 0.2 s each: some 7 s for 32 shards of a quiet town.
SWEEP_WAIT_S = 2 * WAIT_S
_log = structlog.get_logger("story")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The home, its meter, and the phones of the family and of the neighbour."""

    site: Site
    clock: SetClock
    home: Home
    meter: RememberingMeter
    fleet: Fleet
    http: httpx.AsyncClient
    own_key: NewApiKey
    shop_key: NewApiKey

    async def use(self, at_ms: int, energy_wh: int) -> None:
        """Let the time pass and the meter report what was used meanwhile; return when it is settled."""
        self.clock.at_ms = at_ms
        await self.fleet.advance(SERIAL, energy_wh, at_ms=at_ms)
        await self.fleet.wait_sent(SERIAL, timeout_s=WAIT_S)
        await self.site.settled()

    async def told(self) -> Told:
        """Return what has become of the home."""
        return await told(self.site.conn, self.home)

    async def latest_notice(self, language: Language) -> tuple[str, str]:
        """Return kind and words of the latest notice in the app, in a language."""
        (latest, *_) = await list_notices(self.site.conn, self.home.account_id, language=language, calendar=CALENDAR)
        return latest.kind, f"{latest.subject}. {latest.body}"

    async def why(self) -> tuple[str, str, str | None]:
        """Return what the family's app says of supply: desired, why, and until when."""
        answered = await self.http.get("/v1/consumer/me/summary", headers={"X-Api-Key": self.own_key.header})
        assert answered.status_code == 200, answered.text
        supply = answered.json()["supply"]
        return supply["desired"], supply["why"]["code"], supply["why"]["until"]

    async def until_order(self, kind: str, state: str) -> None:
        """Wait until the meter's latest order of a kind is in a state."""

        async def so() -> bool:
            return bool(
                await self.site.one(
                    "select (select state from supply_orders where kind = %s order by id desc limit 1) = %s",
                    kind,
                    state,
                )
            )

        await self.site.until(so, f"the {kind} order is {state}", within_s=SWEEP_WAIT_S)


@asynccontextmanager
async def open_family(site: Site, *, at_ms: int) -> AsyncIterator[Family]:
    """Open the home and start everything around it; leave with all processes stopped."""
    clock, meter = SetClock(at_ms=at_ms), RememberingMeter(SERIAL)
    await add_supply_rules(site.conn, NIGHT_RULES, first_open_day=JUNE_1)
    home = await _open_home(site)
    own_key = await issue_api_key(site.conn, Role.CONSUMER, account_id=home.account_id)
    vendor_id = await add_vendor(site.conn, "Phone recharge")
    shop_key = await issue_api_key(site.conn, Role.VENDOR, vendor_id=vendor_id)
    settings = FleetSettings(host=site.nats.mqtt_host, port=site.nats.mqtt_port)
    async with (
        running_ingest(site, clock=clock),
        running_dispatch(site, now_ms=clock),
        Fleet([meter], settings=settings, clock=clock, rng=random.Random(7)) as fleet,
        _served(await _application(site, clock)) as url,
        httpx.AsyncClient(base_url=url, timeout=WAIT_S) as http,
    ):
        await fleet.wait_connected(timeout_s=WAIT_S)
        yield Family(
            site=site,
            clock=clock,
            home=home,
            meter=meter,
            fleet=fleet,
            http=http,
            own_key=own_key,
            shop_key=shop_key,
        )


def test_family_is_warned_protected_cut_in_the_morning_and_has_light_with_the_recharge(
    database_url: str, nats: EmbeddedNats
) -> None:
    """Warned at six, supplied all night, cut at ten by the clock alone, recharged from a neighbour's phone."""

    async def story() -> None:
        async with open_site(database_url, nats) as site:
            async with open_family(site, at_ms=at(5, "17:30")) as family:
                await _half_past_five(family)
                await _six_in_the_evening(family)
                await _half_past_eleven_at_night(family)
                await _ten_in_the_morning(family)
                await _neighbour_recharges(family)
                await site.settled()
            # An auditor leaves out accounts that a running ingest has still to look at.
            report = await run_checks(site.conn, CALENDAR)
            assert [check.line() for check in report.checks if check.broken] == []
            looked_at = {check.id for check in report.checks if check.checked}
            assert {"I1", "I2", "I3", "I4-charged", "I5", "I6", "I8", "I8-orders", "I9", "I13"} <= looked_at

    asyncio.run(story())


async def _half_past_five(family: Family) -> None:
    """There is credit above the threshold: nothing rings."""
    await family.use(at(5, "17:30"), 30_000)
    assert await family.site.balance(family.home) > THRESHOLD_MINOR
    assert await family.told() == Told(orders=[], notices=[], alarms=[])
    assert not family.meter.buzzer_on
    assert (await family.why())[:2] == ("on", "credit")


async def _six_in_the_evening(family: Family) -> None:
    """The balance falls to the threshold: the meter shows and sounds it and says so, the app has it in words."""
    meter = family.meter
    await family.use(at(5, "18:00"), 7_000)
    balance_minor = await family.site.balance(family.home)
    assert 0 < balance_minor <= THRESHOLD_MINOR
    await family.until_order("alarm", "confirmed")
    assert meter.buzzer_on
    assert meter.display.startswith("LOW BALANCE")
    assert (meter.balance_minor, meter.threshold_minor, meter.relay) == (balance_minor, THRESHOLD_MINOR, Relay.ON)
    found = await family.told()
    assert (found.orders, found.kinds, found.alarms) == ([], ["low"], [("low", 0, 1)])
    words = {
        Language.ENGLISH: "You asked to be warned",
        Language.HINDI: "बैलेंस",
        Language.PUNJABI: "ਤੁਸੀਂ ₹100.00 'ਤੇ ਚੇਤਾਵਨੀ ਮੰਗੀ ਸੀ",
    }
    for language, expected in words.items():
        kind, said = await family.latest_notice(language)
        assert kind == "low"
        assert expected in said
        assert f"{balance_minor // 100}.{balance_minor % 100:02d}" in said
    await family.fleet.press_button(SERIAL)
    assert not family.meter.buzzer_on
    assert meter.display.startswith("LOW BALANCE")


async def _half_past_eleven_at_night(family: Family) -> None:
    """Credit runs out: supply stays on, and the notice says until when; the night brings nothing more."""
    await family.use(at(5, "23:30"), 25_000)
    assert await family.site.balance(family.home) <= 0
    found = await family.told()
    assert (found.orders, found.kinds) == ([], ["low", "exhausted"])
    assert found.alarms == [("low", 0, 1), ("exhausted", 0, 1)]
    assert found.notices[1][1]["protected_until_ms"] == at(6, "10:00")
    until = {
        Language.ENGLISH: "Supply stays on until 6 June 2025, 10:00.",
        Language.HINDI: "6 जून 2025",
        Language.PUNJABI: "6 ਜੂਨ 2025",
    }
    for language, expected in until.items():
        kind, said = await family.latest_notice(language)
        assert kind == "exhausted"
        assert expected in said
    assert await family.why() == ("on", "protected", "2025-06-06T04:30:00.000+00:00")
    # The fridge runs on over the night, and is paid for.
    await family.use(at(6, "06:00"), 1_000)
    await family.use(at(6, "09:59"), 500)
    assert await family.told() == found
    assert (family.meter.given(OrderKind.SUPPLY), family.meter.relay) == ([], Relay.ON)


async def _ten_in_the_morning(family: Family) -> None:
    """The window opens with no reading and no posting: the meter opens its relay and says so, the app is told."""
    written = "select (select count(*) from readings), (select array_agg(kind order by id) from journals)"
    before = await family.site.rows(written)
    register_wh = family.meter.register_wh
    family.clock.at_ms = at(6, "10:00")
    await family.fleet.wait_for(lambda: family.meter.relay is Relay.OFF, timeout_s=SWEEP_WAIT_S)
    await family.until_order("supply", "confirmed")
    await family.site.settled()
    assert await family.site.rows(written) == before
    found = await family.told()
    assert found.orders == [("off", "confirmed", "calendar")]
    assert found.kinds == ["low", "exhausted", "cut"]
    assert found.notices[2][1]["cut_at_ms"] == at(6, "10:00")
    assert await family.site.rows("select relay from meter_state") == [("off",)]
    assert (await family.why())[:2] == ("off", "still_off")
    _, said = await family.latest_notice(Language.PUNJABI)
    assert "ਬਿਜਲੀ ਕੱਟੀ ਗਈ" in said
    assert "ਕੋਈ ਫ਼ੀਸ ਨਹੀਂ" in said
    # What the family plugs in now uses nothing, and costs nothing.
    await family.use(at(6, "10:30"), 2_000)
    assert family.meter.register_wh == register_wh


async def _neighbour_recharges(family: Family) -> None:
    """The shop's page names the amount that restores; it is sold, and light comes before anybody does anything else."""
    site, headers = family.site, {"X-Api-Key": family.shop_key.header}
    family.clock.at_ms = at(6, "11:15")
    before_minor = await site.balance(family.home)
    confirmed = (await family.http.get(f"/v1/meters/{SERIAL}", headers=headers)).json()
    assert (confirmed["supply"]["desired"], confirmed["supply"]["reported"]) == ("off", "off")
    assert confirmed["supply"]["restores_with_minor"] == 1 - before_minor
    body = {"message_id": "NEIGHBOUR-1", "meter": SERIAL, "amount": confirmed["sell_at_least"]}
    answered = await family.http.post("/v1/vends", json=body, headers=headers)
    answered_at = datetime.now(UTC)
    assert answered.status_code == 200, answered.text
    receipt = answered.json()
    assert (receipt["supply"]["state_before"], receipt["supply"]["state_after_desired"]) == ("off", "on")
    assert receipt["supply"]["restores_with_minor"] == 0
    await family.fleet.wait_for(lambda: family.meter.relay is Relay.ON, timeout_s=WAIT_S)
    await family.until_order("supply", "confirmed")
    await _in_the_order_of_events(site, answered_at)
    found = await family.told()
    assert found.orders == [("off", "confirmed", "calendar"), ("on", "confirmed", "vend")]
    assert found.kinds == ["low", "exhausted", "cut", "recharged", "restored"]
    assert found.alarms == [("low", 0, 1), ("exhausted", 0, 1)]
    assert await site.rows("select relay from meter_state") == [("on",)]
    assert (await family.why())[:2] == ("on", "credit")
    _, said = await family.latest_notice(Language.PUNJABI)
    assert "ਕੋਈ ਫ਼ੀਸ ਨਹੀਂ ਲੱਗੇਗੀ" in said
    # Every paisa that was paid is on the account: a cut and a restore cost nothing.
    paid_minor = receipt["amount_minor"]
    assert await site.balance(family.home) == before_minor + paid_minor == receipt["balance_after_minor"]
    assert await site.rows("select kind from journals order by id") == [("opening",), ("vend",)]
    legs = await site.rows("select ledger, line, amount_minor from legs where amount_minor > 0 order by journal_id")
    assert legs == [("prepaid", "", CREDIT_MINOR), ("prepaid", "", paid_minor)]


async def _in_the_order_of_events(site: Site, answered_at: datetime) -> None:
    """Booked and ordered in one transaction, then sent, then confirmed; how long it took is told, not judged."""
    ((booked_at, created_at, published_at, confirmed_at),) = await site.rows(
        "select j.booked_at, o.created_at, o.published_at, o.confirmed_at from journals j, supply_orders o"
        " where j.kind = 'vend' and o.kind = 'supply' and o.relay = 'on'"
    )
    assert max(booked_at, created_at) < published_at
    assert created_at < confirmed_at
    _log.info(
        "light_again",
        published_after_booking_ms=_ms(published_at, booked_at),
        published_after_answer_ms=_ms(published_at, answered_at),
        confirmed_after_answer_ms=_ms(confirmed_at, answered_at),
    )


def _ms(later: datetime, earlier: datetime) -> int:
    return round((later - earlier).total_seconds() * 1000)


async def _open_home(site: Site) -> Home:
    """Open the family's account at an STS meter, warned at Rs 100, with Rs 300."""
    sts: StsIdentity = replace(STS, drn=f"{DRN_DIGITS}{luhn_check_digit(DRN_DIGITS)}")
    await add_meter(site.conn, NewMeter(serial=SERIAL, rated_w=RATED_W, register_end_wh=REGISTER_END_WH, sts=sts))
    account = NewAccount(
        number=NUMBER,
        consumer="Gurpreet Singh",
        language="pa",
        usage_point=f"UP-{NUMBER}",
        area="test",
        meter_serial=SERIAL,
        opened_at=OPENED_AT,
        register_wh=REGISTER_WH,
        tariff_id=TARIFF,
        sanctioned_load_w=3_000,
        threshold_minor=THRESHOLD_MINOR,
        opening_credit_minor=CREDIT_MINOR,
    )
    account_id = await open_account(site.conn, account, rules=RULES, now_ms=at(1, "00:00"))
    assert account_id is not None
    meter_id, _ = (await accounts_of_meters(site.conn, [SERIAL]))[SERIAL]
    return Home(serial=SERIAL, meter_id=meter_id, account_id=account_id)


async def _application(site: Site, clock: SetClock) -> FastAPI:
    """Make the vending interface, which goes by the story's clock."""
    await add_vending_key(site.conn, MASTER, sgc=SGC, krn=1, key=VENDING_KEY)
    limits: dict[str, Any] = {"vend_min_minor": 1_000, "vend_max_minor": 5_000_000, "stale_reading_s": None}
    return create_app(
        database_url=site.database_url,
        calendar=CALENDAR,
        security_module=await load_security_module(site.conn, MASTER),
        clock=clock,
        **limits,
    )


@asynccontextmanager
async def _served(app: FastAPI) -> AsyncIterator[str]:
    """Serve an application on a free port; return its address."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
