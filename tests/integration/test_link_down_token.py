"""A token typed in while the meter's link is down, in central-credit mode: real database, broker, desk and meter."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import httpx
import pytest

from billing.calendar import from_ms
from db.audit import run_checks
from db.readings import ensure_partitions
from db.registry import NewAccount, NewMeter, add_meter, add_vendor, open_account
from db.reports import accounts_of_meters
from db.token_deliveries import push_token
from headend.edges import dispatch
from meter_sim.durable import DurableMeter
from meter_sim.edges.fleet import Fleet, FleetSettings, ScaledClock
from meter_sim.memory import MeterMemory
from meter_sim.meter import MeterSettings
from meter_sim.token_reader import EntryResult, TokenReader
from prepaid.embedded import EmbeddedNats
from protocols.native import Relay
from tests.integration.vending_shop import MASTER, SGC, STS, VENDING_KEY, key_of
from tests.support import (
    CALENDAR,
    DAY_MS,
    HOUR_MS,
    RATED_W,
    REGISTER_END_WH,
    REGISTER_WH,
    RULES,
    T0,
    TARIFF,
    WAIT_S,
    Home,
    Site,
    now_ms,
    open_site,
    running_dispatch,
    running_ingest,
)
from vending.edges.api import create_app
from vending.edges.keys import Role, add_vending_key, issue_api_key, load_security_module
from vending.sts.identity import luhn_check_digit
from vending.sts.keys import derive_decoder_key

pytestmark = [pytest.mark.db, pytest.mark.broker]

DRN = f"0100200300{luhn_check_digit('0100200300')}"
CREDIT_MINOR = 2_000
SOLD_MINOR = 50_000
# What a kWh costs on the meter alone: far above the tariff, and far below it.
DEAR, CHEAP = 2_000_000, 100_000


@pytest.fixture(autouse=True)
def tended_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dispatcher looks every fifth of a second for what it else looks for every five."""
    monkeypatch.setattr(dispatch, "TEND_EVERY_S", 0.2)


@dataclass(slots=True, kw_only=True)
class Station:
    """A home whose meter reads tokens, a desk that sells them, ingest and a dispatcher."""

    site: Site
    fleet: Fleet
    home: Home
    http: httpx.AsyncClient
    headers: dict[str, str]
    hour: int = 0
    sold: list[str] = field(default_factory=list)

    @property
    def meter(self) -> DurableMeter:
        meter = self.fleet.meters["M1"]
        assert isinstance(meter, DurableMeter)
        return meter

    async def use(self, energy_wh: int) -> None:
        """Let an hour's load be offered to the meter, heard or not."""
        self.hour += 1
        await self.fleet.advance("M1", energy_wh, at_ms=T0 + self.hour * HOUR_MS)

    async def heard(self) -> None:
        """Wait until what the meter had to say is settled."""
        await self.fleet.wait_sent("M1", timeout_s=WAIT_S)
        await self.site.settled()

    async def exhaust(self) -> None:
        """Use the credit up, and wait until the meter is cut off for it."""
        await self.use(15_000)
        await self.heard()
        await self.fleet.wait_for(lambda: self.meter.relay is Relay.OFF, timeout_s=WAIT_S)
        await self.heard()
        assert await self.site.balance(self.home) < 0

    async def sell(self, amount_minor: int = SOLD_MINOR) -> str:
        """Sell a token at a station; the account is credited at once."""
        body = {
            "message_id": f"sale-{len(self.sold)}",
            "meter": "M1",
            "amount": f"{amount_minor // 100}.{amount_minor % 100:02d}",
        }
        answer = await self.http.post("/v1/vends", json=body, headers=self.headers)
        assert answer.status_code in (200, 201), answer.text
        self.sold.append(str(answer.json()["token"]["digits"]))
        return self.sold[-1]

    async def type(self, digits: str) -> EntryResult:
        """Type a token in at the meter."""
        return (await self.fleet.enter_token("M1", digits)).result

    async def come_back(self) -> None:
        """Let the meter connect, and wait until the head-end knows all and the meter has been told what is new."""
        await self.fleet.go_online("M1")
        await self.fleet.wait_connected(timeout_s=WAIT_S)
        await self.agreed()

    async def agreed(self) -> None:
        """Wait until meter and account agree about supply, and nothing is left to be told."""

        async def so() -> bool:
            if self.meter.stored_count or await self.site.one("select count(*) from local_credits"):
                return False
            open_orders = "select count(*) from supply_orders where state in ('pending', 'held', 'sent')"
            if await self.site.one(open_orders):
                return False
            desired, reported = (
                await self.site.rows("select a.desired, s.relay from accounts a cross join meter_state s")
            )[0]
            return bool(desired == reported == self.meter.relay.value)

        await self.heard()
        await self.site.until(so, "meter and account agree", within_s=2 * WAIT_S)

    async def assert_copy_is_true(self) -> None:
        """The meter's copy is the account's balance: it was told since it last moved by itself."""
        assert self.meter.balance_minor == await self.site.balance(self.home)

    async def deliveries(self) -> list[tuple[str, str]]:
        """Return the tokens delivered: digits, result."""
        return await self.site.rows(
            "select t.digits, d.result from token_deliveries d join tokens t on t.id = d.token_id order by t.id"
        )

    async def assert_counted_once(self) -> None:
        """Every sale is one credit of the account, whatever was typed; the auditor finds nothing."""
        credited = await self.site.one(
            "select coalesce(sum(l.amount_minor), 0)::bigint from journals j join legs l on l.journal_id = j.id"
            " where j.kind = 'vend' and l.ledger = 'prepaid'"
        )
        assert abs(credited) == await self.site.one("select coalesce(sum(amount_minor), 0)::bigint from vends")
        assert await self.site.one("select count(*) from journals where kind = 'vend'") == len(self.sold)
        report = await run_checks(self.site.conn, CALENDAR)
        assert report.clean, "\n".join(report.lines())


@asynccontextmanager
async def open_station(database_url: str, nats: EmbeddedNats, *, rate: int) -> AsyncIterator[Station]:
    """Open the station; leave it with everything stopped."""
    reader = TokenReader(derive_decoder_key(VENDING_KEY, key_of(DRN)).key)
    meter = DurableMeter(
        serial="M1",
        token_reader=reader,
        memory=MeterMemory(),
        settings=MeterSettings(interval_s=3_600, fallback_rate_milli_per_kwh=rate),
        register_wh=REGISTER_WH,
    )
    async with open_site(database_url, nats) as site:
        home = await add_sts_home(site)
        await add_vending_key(site.conn, MASTER, sgc=SGC, krn=1, key=VENDING_KEY)
        vendor_id = await add_vendor(site.conn, "Station 17")
        key = await issue_api_key(site.conn, Role.VENDOR, vendor_id=vendor_id)
        app = create_app(
            database_url=database_url,
            calendar=CALENDAR,
            security_module=await load_security_module(site.conn, MASTER),
            vend_min_minor=1_000,
            vend_max_minor=5_000_000,
            stale_reading_s=None,
            clock=now_ms,
        )
        fleet = Fleet(
            [meter],
            settings=FleetSettings(host=nats.mqtt_host, port=nats.mqtt_port),
            clock=ScaledClock(T0 + DAY_MS),
            rng=random.Random(7),
        )
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://shop", timeout=60) as http,
            running_ingest(site),
            running_dispatch(site),
            fleet,
        ):
            await fleet.wait_connected(timeout_s=WAIT_S)
            yield Station(site=site, fleet=fleet, home=home, http=http, headers={"X-Api-Key": key.header})


async def add_sts_home(site: Site) -> Home:
    """Register a meter with an STS record and open its account."""
    sts = replace(STS, drn=DRN)
    await add_meter(site.conn, NewMeter(serial="M1", rated_w=RATED_W, register_end_wh=REGISTER_END_WH, sts=sts))
    account = NewAccount(
        number="M1",
        consumer="Household M1",
        usage_point="M1",
        meter_serial="M1",
        opened_at=from_ms(T0),
        register_wh=REGISTER_WH,
        tariff_id=TARIFF,
        sanctioned_load_w=3_000,
        opening_credit_minor=CREDIT_MINOR,
    )
    account_id = await open_account(site.conn, account, rules=RULES, now_ms=now_ms())
    assert account_id is not None
    await ensure_partitions(site.conn, {from_ms(T0 + day * DAY_MS).date() for day in range(4)})
    ((meter_id, _),) = (await accounts_of_meters(site.conn, ["M1"])).values()
    return Home(serial="M1", meter_id=meter_id, account_id=account_id)


def tell(
    database_url: str, nats: EmbeddedNats, story: Callable[[Station], Awaitable[None]], *, rate: int = DEAR
) -> None:
    """Tell a story of the station."""

    async def told() -> None:
        async with open_station(database_url, nats, rate=rate) as station:
            await story(station)

    asyncio.run(told())


def test_token_typed_while_the_link_is_down_restores_supply_and_settles(database_url: str, nats: EmbeddedNats) -> None:
    """The copy takes the credit and counts down; at the next contact it is the account's balance, credited once."""

    async def story(station: Station) -> None:
        await station.exhaust()
        copy_minor = station.meter.balance_minor
        assert copy_minor is not None
        await station.fleet.go_offline("M1")
        token = await station.sell()
        assert station.meter.relay is Relay.OFF
        assert await station.type(token) is EntryResult.ACCEPTED
        assert station.meter.relay is Relay.ON
        assert 0 <= station.meter.balance_minor - (copy_minor + SOLD_MINOR) <= SOLD_MINOR // 1_000
        for _ in range(3):
            await station.use(2_000)
        local_minor = station.meter.balance_minor
        # Three hours of 2 kWh at the meter's own rate.
        assert 0 <= local_minor - (copy_minor + SOLD_MINOR - 3 * 4_000) <= SOLD_MINOR // 1_000
        assert await station.type(token) is EntryResult.USED
        assert station.meter.balance_minor == local_minor
        await station.come_back()
        await station.assert_copy_is_true()
        # The tariff is a fraction of what the meter counted down by.
        assert station.meter.balance_minor > local_minor
        assert station.meter.relay is Relay.ON
        assert await station.deliveries() == [(token, "accepted")]
        results = await station.site.rows("select result from token_entries order by received_at, result")
        assert sorted(results) == [("accepted",), ("used",)]
        await station.assert_counted_once()

    tell(database_url, nats, story)


@pytest.mark.parametrize(("rate", "energy_wh", "relay"), [(DEAR, 10_000, Relay.ON), (CHEAP, 15_000, Relay.OFF)])
def test_local_credit_used_up_before_the_link_returns_opens_by_itself(
    database_url: str, nats: EmbeddedNats, rate: int, energy_wh: int, relay: Relay
) -> None:
    """At zero the meter opens without any word; the next contact brings supply back only if the account has credit."""

    async def story(station: Station) -> None:
        await station.exhaust()
        await station.fleet.go_offline("M1")
        token = await station.sell()
        assert await station.type(token) is EntryResult.ACCEPTED
        register_wh = station.meter.register_wh
        while station.meter.relay is Relay.ON:
            await station.use(energy_wh)
        assert station.meter.balance_minor <= 0
        assert station.meter.register_wh > register_wh
        register_wh = station.meter.register_wh
        await station.use(energy_wh)
        assert station.meter.register_wh == register_wh
        await station.come_back()
        await station.assert_copy_is_true()
        assert station.meter.relay is relay
        assert (station.meter.balance_minor > 0) is (relay is Relay.ON)
        assert await station.deliveries() == [(token, "accepted")]
        await station.assert_counted_once()

    tell(database_url, nats, story, rate=rate)


def test_token_pushed_by_the_head_end_and_typed_later_is_delivered_once(database_url: str, nats: EmbeddedNats) -> None:
    """Pushed, it is delivered, and the copy told the truth again; typed, it is used; neither moves the account."""

    async def story(station: Station) -> None:
        await station.exhaust()
        token = await station.sell()
        await station.agreed()
        balance_minor = await station.site.balance(station.home)
        token_id = await station.site.one("select id from tokens")
        assert await push_token(station.site.conn, token_id) is not None

        async def delivered() -> bool:
            return bool(await station.deliveries())

        await station.site.until(delivered, "the token is delivered")
        await station.agreed()
        await station.assert_copy_is_true()
        assert await push_token(station.site.conn, token_id) is None
        assert await station.type(token) is EntryResult.USED
        await station.agreed()
        assert station.meter.balance_minor == balance_minor
        assert await station.deliveries() == [(token, "accepted")]
        assert await station.site.rows("select state, attempts from supply_orders where kind = 'token'") == [
            ("confirmed", 1)
        ]
        await station.assert_counted_once()

    tell(database_url, nats, story)


def test_restore_sent_again_carries_the_balance_as_it_has_become(database_url: str, nats: EmbeddedNats) -> None:
    """Of two sales while the meter is away the first one writes the order; the meter is told what both left."""

    async def story(station: Station) -> None:
        await station.exhaust()
        await station.fleet.go_offline("M1")
        await station.sell()

        async def tried() -> bool:
            left = await station.site.one("select count(*) from supply_orders where published_at is not null")
            return bool(left == 2)

        await station.site.until(tried, "the cut-off and the restore have left")
        await station.sell()
        await station.come_back()
        await station.assert_copy_is_true()
        assert await station.site.one("select count(*) from supply_orders where relay = 'on'") == 1
        assert await station.deliveries() == []
        await station.assert_counted_once()

    tell(database_url, nats, story)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_tokens_and_outages_in_any_order_leave_one_credit_each(
    database_url: str, nats: EmbeddedNats, seed: int
) -> None:
    """Whatever is sold, typed, repeated, pushed and used, heard or not: in the end meter and account agree."""

    async def story(station: Station) -> None:
        rng = random.Random(seed)
        done: dict[str, int] = dict.fromkeys(("link", "sell", "type", "push", "use"), 0)
        typed: set[str] = set()
        moved = False
        for _ in range(50):
            step = rng.choices(list(done), weights=(4, 3, 5, 1, 8))[0]
            away = not station.fleet.is_connected("M1")
            if step == "link" and not away:
                await station.fleet.go_offline("M1")
            elif step == "link":
                await station.come_back()
                if moved:
                    await station.assert_copy_is_true()
                moved = False
            elif step == "sell":
                await station.sell(rng.randrange(1_000, 20_000))
            elif step == "type" and station.sold:
                typed.add(digits := rng.choice(station.sold))
                result = await station.type(digits)
                assert result in (EntryResult.ACCEPTED, EntryResult.USED)
                moved = moved or (away and result is EntryResult.ACCEPTED)
            elif step == "push" and station.sold:
                token_id = await station.site.one("select id from tokens where digits = %s", rng.choice(station.sold))
                await push_token(station.site.conn, token_id)
            elif step == "use":
                await station.use(rng.randrange(0, 12_000))
            else:
                continue
            done[step] += 1
        await station.come_back()
        typed.add(last := await station.sell())
        assert await station.type(last) is EntryResult.ACCEPTED
        await station.agreed()
        await station.assert_copy_is_true()
        assert all(done.values()), done
        delivered = await station.deliveries()
        assert typed <= {digits for digits, _ in delivered}
        assert len(delivered) == len({digits for digits, _ in delivered})
        await station.assert_counted_once()

    tell(database_url, nats, story, rate=600_000)
