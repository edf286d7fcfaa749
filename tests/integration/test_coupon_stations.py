"""Stations without a line: what their licence allows, what their log shows, and that no buyer suffers by either."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from db.coupon_licences import read_findings
from db.floats import read_float
from tests.integration.coupon_counter import DAY_MS, Counter, Station, open_counter, open_station
from vending.edges.coupon_errors import CouponNotForSale
from vending.edges.coupon_stations import close_licence, revoke_licence
from vending.offline import LicenceWrong, SignedSale, read_licence, sign_licence

pytestmark = pytest.mark.db

VALUE = 50_000


async def held(counter: Counter) -> tuple[int, int]:
    """Return what is held for licences and what sold coupons come to; the ledger agrees, or `report` fails."""
    ledger = (await counter.report())["ledger"]
    return ledger["held_for_licences_minor"], ledger["sold_not_redeemed_minor"]


async def findings(counter: Counter, station: Station) -> dict[int, list[str]]:
    """Return what is odd about a station's sales, by entry."""
    rows = await read_findings(counter.shop.conn, station.licence.number)
    return {row["seq"]: row["findings"] for row in rows}


def test_coupon_sold_offline_is_redeemed_before_and_after_the_upload(database_url: str) -> None:
    """The buyer redeems at once; the log comes later, books the others, and puts the day of sale right."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            counter.at(2026, 11, 28)
            station = await open_station(counter, 0, 4, limit_minor=4 * VALUE)
            assert await held(counter) == (4 * VALUE, 0)
            assert (await read_float(counter.shop.conn, counter.shop.vendor_id)).balance_minor == -4 * VALUE
            for place in (0, 1):
                assert station.sell(counter.drawer[place].serial, VALUE)
            counter.at(2026, 12, 2)
            assert (await counter.redeem(0, who="other_vendor")).status_code == 200
            assert await held(counter) == (3 * VALUE, 0)
            taken = await station.upload(counter)
            assert (taken.status_code, taken.json()["new"], taken.json()["findings"]) == (200, 2, [])
            assert (await station.upload(counter)).json()["new"] == 0
            assert await held(counter) == (2 * VALUE, VALUE)
            months = [month["month"] for month in (await counter.report())["months"]]
            assert months == ["2026-11"]
            shown = (await counter.shop.get(f"/v1/coupons/{counter.drawer[1].serial}")).json()
            assert (shown["state"], shown["sold_on"], shown["valid_until"]) == ("sold", "2026-11-28", "2027-02-28")
            counter.at(2027, 2, 28)
            assert (await counter.redeem(1)).status_code == 200
            rest = await close_licence(counter.shop.conn, counter.desk, 1, reason="season is over", by="field office")
            assert rest == 2 * VALUE
            assert await held(counter) == (0, 0)
            assert (await read_float(counter.shop.conn, counter.shop.vendor_id)).balance_minor == -2 * VALUE
            assert (await counter.redeem(2)).json()["error"]["code"] == "coupon_not_sold"
            assert (await station.upload(counter)).json()["error"]["code"] == "licence_closed"

    asyncio.run(story())


def test_log_with_a_hole_a_rewritten_or_altered_entry_is_refused_and_kept(database_url: str) -> None:
    """Nothing of such an upload is booked; the refusal stays with the licence, the whole log is welcome after it."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            station = await open_station(counter, 0, 4, limit_minor=5 * VALUE)
            for place in range(4):
                station.sell(counter.drawer[place].serial, VALUE)
            gap = await station.upload(counter, station.log[2:])
            assert (gap.status_code, gap.json()["error"]["code"]) == (409, "log_gap")
            assert "expected entry 1, got 3" in gap.json()["error"]["message"]
            hole = await station.upload(counter, [station.log[0], station.log[2]])
            assert hole.json()["error"]["code"] == "log_gap"
            altered = replace(station.log[0].sale, serial=counter.drawer[4].serial)
            broken = await station.upload(counter, [SignedSale(sale=altered, signature=station.log[0].signature)])
            assert (broken.status_code, broken.json()["error"]["code"]) == (400, "log_broken")
            assert await held(counter) == (5 * VALUE, 0)

            assert (await station.upload(counter, station.log[:2])).json()["known_through"] == 2
            other = Station(licence=station.licence, utility_key=station.utility_key, clock=station.clock)
            other.sell(counter.drawer[3].serial, VALUE)
            forked = await other.upload(counter)
            assert (forked.status_code, forked.json()["error"]["code"]) == (409, "log_forked")
            assert (await station.upload(counter)).json()["new"] == 2
            refused = "select array_agg(code order by id) from coupon_log_refusals"
            assert await counter.shop.one(refused) == ["log_gap", "log_gap", "log_broken", "log_forked"]
            foreign = await counter.shop.http.post(
                "/v1/coupons/logs", json={"licence": 1, "entries": []}, headers=counter.shop.headers("other_vendor")
            )
            assert foreign.json()["error"]["code"] == "unknown_licence"

    asyncio.run(story())


def test_odd_sales_are_found_and_no_money_is_made_of_them(database_url: str) -> None:
    """Sold twice, not of the licence, of another amount, beyond the limit: each by name, booked once at the most."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            station = await open_station(counter, 0, 3, limit_minor=2 * VALUE)
            serials = [each.serial for each in counter.drawer]
            for serial in (serials[0], serials[0], serials[4], serials[1]):
                station.sell(serial, VALUE, slips=True)
            station.sell(serials[2], VALUE - 1, slips=True)
            # The float reaches for one coupon beyond the limit of the licence, not for two.
            await counter.shop.conn.execute("update vendor_floats set limit_minor = %s", (3 * VALUE,))
            station.sell(serials[3], VALUE, slips=True)
            assert (await station.upload(counter)).status_code == 200
            assert await findings(counter, station) == {
                2: ["sold_twice"],
                3: ["not_in_range"],
                5: ["other_amount", "over_limit"],
                6: ["over_limit", "not_paid"],
            }
            assert await held(counter) == (0, 3 * VALUE)
            assert (await counter.redeem(2)).status_code == 200
            unpaid = await counter.redeem(3)
            assert (unpaid.status_code, unpaid.json()["error"]["code"]) == (409, "coupon_on_hold")
            await counter.shop.conn.execute("update vendor_floats set limit_minor = null")
            assert (await counter.redeem(3)).status_code == 200
            assert (await counter.redeem(4)).json()["error"]["code"] == "coupon_not_sold"

    asyncio.run(story())


def test_clock_of_a_station_is_never_held_against_a_buyer(database_url: str) -> None:
    """A clock that is set back, or runs ahead, is found; the coupon counts as sold as late as it can have been."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            counter.at(2026, 11, 10)
            now_ms = counter.shop.clock()
            told = iter((now_ms + DAY_MS, now_ms + 1, now_ms - 400 * DAY_MS, now_ms + 60 * DAY_MS))
            station = await open_station(counter, 0, 3, limit_minor=4 * VALUE)
            for place in range(4):
                at_ms = next(told)
                station.clock = lambda at_ms=at_ms: at_ms  # type: ignore[misc]  # A clock that stands.
                station.sell(counter.drawer[place].serial, VALUE, slips=True)
            counter.at(2026, 11, 13)
            assert (await station.upload(counter)).status_code == 200
            assert await findings(counter, station) == {
                2: ["clock_set_back"],
                3: ["clock_set_back", "outside_licence"],
                4: ["clock_ahead", "outside_licence"],
            }
            days = "select array_agg(sold_on::text order by serial) from coupons where state = 'sold'"
            assert await counter.shop.one(days) == ["2026-11-11", "2026-11-13", "2026-11-13", "2026-11-13"]

    asyncio.run(story())


def test_revoked_licence_sells_no_more_and_its_coupons_wait_for_the_office(database_url: str) -> None:
    """What was sold before counts; what a thief sells is on hold until the office has looked at it."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            station = await open_station(counter, 0, 3, limit_minor=4 * VALUE)
            station.sell(counter.drawer[0].serial, VALUE)
            counter.shop.clock.now_ms += 60_000
            for _ in range(2):
                await revoke_licence(counter.shop.conn, counter.desk, 1, reason="stolen", by="field office")
            station.sell(counter.drawer[1].serial, VALUE)
            listed = (await counter.shop.get("/v1/coupons/revocations")).json()
            assert listed["utility_key"] == station.utility_key.hex()
            station.hear(listed)
            assert not station.sell(counter.drawer[2].serial, VALUE)
            held_back = await counter.redeem(0)
            assert (held_back.status_code, held_back.json()["error"]["code"]) == (409, "coupon_on_hold")
            taken = await station.upload(counter)
            assert taken.json()["state"] == "revoked"
            assert await findings(counter, station) == {2: ["after_revocation"]}
            assert (await counter.redeem(0)).status_code == 200
            assert (await counter.redeem(1)).json()["error"]["code"] == "coupon_on_hold"
            assert (await counter.office(1, "revalidate", "bought in good faith")).status_code == 200
            assert (await counter.redeem(1)).status_code == 200
            assert await held(counter) == (2 * VALUE, 0)

    asyncio.run(story())


def test_licence_is_refused_for_coupons_that_are_taken_and_altered_ones(database_url: str) -> None:
    """Coupons are in one hand at a time; nobody but the utility makes or changes a licence."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await counter.sell(1)
            with pytest.raises(CouponNotForSale):
                await open_station(counter, 0, 3, limit_minor=VALUE)
            with pytest.raises(LicenceWrong, match="expected a limit of at most 1000"):
                await open_station(counter, 2, 3, limit_minor=3 * VALUE)
            with pytest.raises(LicenceWrong, match="31 days at most"):
                await open_station(counter, 2, 3, limit_minor=VALUE, days=32)
            station = await open_station(counter, 2, 3, limit_minor=VALUE)
            signed: dict[str, Any] = sign_licence(bytes(32), station.licence)
            with pytest.raises(LicenceWrong):
                read_licence(signed, station.utility_key)
            # Held for the licence, the rest of the range is still in it: sold to nobody else.
            assert (await counter.sell(3, message_id="S-9")).json()["error"]["code"] == "coupon_not_for_sale"

    asyncio.run(story())
