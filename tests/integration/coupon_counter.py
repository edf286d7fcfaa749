"""A shop that deals in coupons: a printed batch in its drawer, and a station without a line that sells from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from billing.calendar import from_ms, to_ms
from tests.integration.vending_shop import MASTER, Shop, open_shop
from vending.coupon_pins import CouponKeys, coupon_keys
from vending.edges.coupon_office import CouponOrder, Printed, issue_coupons
from vending.edges.coupon_stations import LicenceAsked, give_licence
from vending.edges.desk import Desk
from vending.offline import (
    Licence,
    LoggedSale,
    SerialRange,
    SignedSale,
    first_digest,
    public_key,
    read_licence,
    read_revocations,
    sign_sale,
)

ZONE = ZoneInfo("Asia/Kolkata")
DAY_MS = 86_400_000
STATION_SEED = bytes(range(100, 132))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A shop with coupons in stock."""

    shop: Shop
    keys: CouponKeys
    drawer: list[Printed]

    def at(self, year: int, month: int, day: int, hour: int = 12, minute: int = 0) -> None:
        """Set the clock to a local time."""
        self.shop.clock.now_ms = to_ms(datetime(year, month, day, hour, minute, tzinfo=ZONE))

    async def sell(
        self, first: int, last: int | None = None, *, message_id: str = "S-1", who: str = "vendor"
    ) -> httpx.Response:
        """Let a vendor pay for coupons of the drawer, by their places in it."""
        body = {
            "message_id": message_id,
            "first": self.drawer[first].serial,
            "last": self.drawer[first if last is None else last].serial,
        }
        return await self.shop.http.post("/v1/coupons/sales", json=body, headers=self.shop.headers(who))

    async def redeem(self, place: int, *, who: str = "vendor", **more: Any) -> httpx.Response:
        """Redeem a coupon of the drawer for the home's meter."""
        body = {"pin": self.drawer[place].pin, "meter": self.shop.home.serial, **more}
        return await self.shop.http.post("/v1/coupons/redeem", json=body, headers=self.shop.headers(who))

    async def office(self, place: int, act: str, reason: str = "asked at the office") -> httpx.Response:
        """Let the utility revalidate or void a coupon."""
        path = f"/v1/coupons/{self.drawer[place].serial}/{act}"
        return await self.shop.http.post(path, json={"reason": reason}, headers=self.shop.headers("engineer"))

    async def report(self) -> dict[str, Any]:
        """Read the breakage report, which must agree with the ledger at any time."""
        answered = await self.shop.get("/v1/coupons/report", "engineer")
        assert answered.status_code == 200, answered.text
        told: dict[str, Any] = answered.json()
        assert told["ledger"]["agrees"], told["ledger"]
        for month in [*told["months"], told["total"]]:
            parts = [month[name] for name in ("redeemed", "lapsed", "void", "outstanding")]
            assert month["sold"]["amount_minor"] == sum(part["amount_minor"] for part in parts)
        return told

    @property
    def desk(self) -> Desk:
        """The desk of the application, for what has no route."""
        desk: Desk = self.shop.app.state.vending.desk
        return desk


@asynccontextmanager
async def open_counter(
    database_url: str, *, coupons: int = 6, amount_minor: int = 50_000, sms_secret: bytes | None = None
) -> AsyncIterator[Counter]:
    """Open a shop with a batch of coupons in stock."""
    async with open_shop(database_url, sms_secret=sms_secret) as shop:
        keys, drawer = coupon_keys(MASTER), list[Printed]()
        order = CouponOrder(amount_minor=amount_minor, coupons=coupons, carrier="printed", reference="PO-1")
        await issue_coupons(
            shop.conn,
            keys,
            order,
            by="press",
            now=from_ms(shop.clock()),
            draw=Random(7).randrange,
            write=drawer.extend,
        )
        yield Counter(shop=shop, keys=keys, drawer=drawer)


@dataclass(slots=True, kw_only=True)
class Station:
    """A station without a line: its licence, its drawer, its log, a clock of its own. It obeys its licence.

    `slips` lets it do what its licence forbids, as an altered one would.
    """

    licence: Licence
    utility_key: bytes
    clock: Callable[[], int]
    log: list[SignedSale] = field(default_factory=list)
    sold_minor: int = 0
    revoked: bool = False

    def sell(self, serial: str, amount_minor: int, *, slips: bool = False) -> bool:
        """Sell a coupon of the drawer; False where the licence does not allow it."""
        allowed = (
            not self.revoked
            and self.licence.holds(serial)
            and self.licence.valid_from_ms <= self.clock() < self.licence.valid_until_ms
            and self.sold_minor + amount_minor <= self.licence.limit_minor
            and serial not in {each.sale.serial for each in self.log}
        )
        if not allowed and not slips:
            return False
        sale = LoggedSale(
            licence=self.licence.number,
            seq=len(self.log) + 1,
            serial=serial,
            amount_minor=amount_minor,
            sold_at_ms=self.clock(),
            previous=self.log[-1].sale.digest if self.log else first_digest(self.licence),
        )
        self.log.append(sign_sale(STATION_SEED, sale))
        self.sold_minor += amount_minor
        return True

    def hear(self, revocations: dict[str, Any]) -> None:
        """Take in the utility's list of revoked licences."""
        numbers, _ = read_revocations(revocations, self.utility_key)
        self.revoked = self.revoked or self.licence.number in numbers

    async def upload(self, counter: Counter, entries: Sequence[SignedSale] | None = None) -> httpx.Response:
        """Hand over the log, or a part of it."""
        body = {
            "licence": self.licence.number,
            "entries": [each.to_json() for each in (self.log if entries is None else entries)],
        }
        return await counter.shop.http.post("/v1/coupons/logs", json=body, headers=counter.shop.headers("vendor"))


async def open_station(
    counter: Counter, first: int, last: int, *, limit_minor: int, days: int = 7, clock: Callable[[], int] | None = None
) -> Station:
    """Give a station of the vendor a licence for coupons of the drawer."""
    asked = LicenceAsked(
        vendor_id=counter.shop.vendor_id,
        station="hill-3",
        station_key=Ed25519PrivateKey.from_private_bytes(STATION_SEED).public_key().public_bytes_raw(),
        valid_from_ms=counter.shop.clock(),
        valid_until_ms=counter.shop.clock() + timedelta(days=days) // timedelta(milliseconds=1),
        limit_minor=limit_minor,
        ranges=(SerialRange(first=counter.drawer[first].serial, last=counter.drawer[last].serial),),
    )
    signed = await give_licence(counter.shop.conn, counter.desk, counter.keys, asked, by="field office")
    utility_key = public_key(counter.keys.licence_seed)
    return Station(
        licence=read_licence(signed, utility_key), utility_key=utility_key, clock=clock or counter.shop.clock
    )
