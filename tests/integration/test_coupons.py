"""Coupons through the interface: three months, once, for any meter, guessed by nobody, owed to the last paisa."""

from __future__ import annotations

import asyncio

import pytest

from db.floats import read_float
from tests.integration.coupon_counter import Counter, open_counter
from tests.integration.vending_shop import add_home
from vending.coupon_pins import draw_pin
from vending.coupons import CALLER_LIMIT, EVERYBODY_LIMIT, VENDOR_LIMIT

pytestmark = pytest.mark.db


async def books(counter: Counter) -> tuple[int, int]:
    """Return what the ledger owes for coupons, and the vendor's float."""
    report = await counter.report()
    state = await read_float(counter.shop.conn, counter.shop.vendor_id)
    return report["ledger"]["coupons_minor"], state.balance_minor


def test_coupon_of_november_is_good_through_february_and_after_revalidation(database_url: str) -> None:
    """Bought on 30 November, redeemed on 28 February, refused on 1 March with the way to revalidate, then redeemed."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            counter.at(2026, 11, 30, 23, 59)
            sold = await counter.sell(0, 2)
            assert sold.status_code == 200, sold.text
            assert sold.json()["valid_until"] == "2027-02-28"
            assert await books(counter) == (150_000, -150_000)

            counter.at(2027, 2, 28, 23, 59)
            redeemed = await counter.redeem(0, who="other_vendor")
            assert redeemed.status_code == 200, redeemed.text
            receipt = redeemed.json()
            assert (receipt["amount_minor"], receipt["message_id"]) == (50_000, counter.drawer[0].serial)
            reader = counter.shop.token_reader()
            assert reader.enter(receipt["token"]["digits"], counter.shop.clock()).accepted
            assert await books(counter) == (100_000, -150_000)

            counter.at(2027, 3, 1, 0, 0)
            lapsed = await counter.redeem(1)
            assert (lapsed.status_code, lapsed.json()["error"]["code"]) == (409, "coupon_lapsed")
            assert "2027-02-28" in lapsed.json()["error"]["message"]
            assert "revalidates" in lapsed.json()["error"]["message"]
            shown = (await counter.shop.get(f"/v1/coupons/{counter.drawer[1].serial}")).json()
            assert (shown["state"], shown["valid_until"]) == ("lapsed", "2027-02-28")

            renewed = await counter.office(1, "revalidate", "was in hospital")
            assert (renewed.status_code, renewed.json()["valid_until"]) == (200, "2027-06-01")
            again = await counter.office(1, "revalidate")
            assert (again.status_code, again.json()["error"]["code"]) == (409, "coupon_not_lapsed")
            counter.at(2027, 6, 1, 23, 59)
            assert (await counter.redeem(1)).status_code == 200

            report = await counter.report()
            (month,) = report["months"]
            counts = {name: month[name]["coupons"] for name in month if name != "month"}
            assert month["month"] == "2026-11"
            assert counts == {
                "sold": 3, "redeemed": 2, "lapsed": 1, "void": 0, "outstanding": 0, "revalidated": 1,
            }  # fmt: skip
            whole = (await counter.shop.get(f"/v1/coupons/{counter.drawer[1].serial}", "engineer")).json()
            assert [(each["event"], each["reason"]) for each in whole["events"]] == [("revalidated", "was in hospital")]
            assert await counter.shop.one("select count(*) from vends where funding = 'coupon'") == 2

    asyncio.run(story())


def test_second_redemption_tells_its_redeemer_again_and_anybody_else_nothing(database_url: str) -> None:
    """The same station and meter get the very same receipt; others hear that it is used; fifty at once redeem once."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await counter.sell(0, 1)
            many = await asyncio.gather(*(counter.redeem(0) for _ in range(50)))
            assert {each.status_code for each in many} == {200}
            assert len({each.content for each in many}) == 1
            home = await add_home(counter.shop.conn, "PB000200", "100200400")
            for other in (
                await counter.redeem(0, who="other_vendor"),
                await counter.redeem(0, who="consumer"),
                await counter.redeem(0, meter=home.serial),
            ):
                assert (other.status_code, other.json()["error"]["code"]) == (409, "coupon_redeemed")
                assert counter.shop.home.serial not in other.text
            # By the number printed on the meter, too, it is the same meter.
            assert (await counter.redeem(0, meter=counter.shop.home.drn)).content == many[0].content
            assert await counter.shop.one("select count(*) from tokens") == 1
            assert await books(counter) == (50_000, -100_000)

    asyncio.run(story())


def test_refused_vend_leaves_the_coupon_for_another_meter(database_url: str) -> None:
    """An unknown meter, or one that takes less, costs nobody's coupon: it is redeemed for the next meter."""

    async def story() -> None:
        async with open_counter(database_url, amount_minor=6_000_000) as counter:
            await counter.sell(0, 1)
            above = await counter.redeem(0)
            assert (above.status_code, above.json()["error"]["code"]) == (422, "amount_above_maximum")
            unknown = await counter.redeem(0, meter="PB999999")
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_meter")
            foreign = await counter.redeem(0, who="consumer", meter="PB999999")
            assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "not_allowed")
            assert await counter.shop.one("select count(*) from vends") == 0
            assert await books(counter) == (12_000_000, -12_000_000)

    asyncio.run(story())


def test_guessing_of_pins_is_locked_with_growing_wait(database_url: str) -> None:
    """Five wrong PINs are free; then the wait doubles and holds the right PIN up as well; a slip is no try."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await counter.sell(0)
            guesses = iter(range(10**6))

            async def guess() -> tuple[int, str, str | None]:
                body = {"pin": draw_pin(lambda _: next(guesses)), "meter": counter.shop.home.serial}
                answered = await counter.shop.http.post(
                    "/v1/coupons/redeem", json=body, headers=counter.shop.headers("consumer")
                )
                return answered.status_code, answered.json()["error"]["code"], answered.headers.get("retry-after")

            for _ in range(CALLER_LIMIT.free):
                assert await guess() == (404, "coupon_unknown", None)
            assert await guess() == (429, "coupon_locked", "60")
            right = await counter.redeem(0, who="consumer")
            assert (right.status_code, right.headers["retry-after"]) == (429, "60")
            counter.shop.clock.now_ms += 60_000
            assert (await guess())[0] == 404
            assert await guess() == (429, "coupon_locked", "120")
            assert (await counter.redeem(0, pin="0000 0000 0000 0001", who="consumer")).status_code == 400
            # Another caller is not held up by it; a serial that is not the PIN's looks like a PIN that is none.
            wrong = await counter.redeem(0, serial=counter.drawer[1].serial)
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "coupon_unknown")
            counter.shop.clock.now_ms += 120_000
            assert (await counter.redeem(0, who="consumer")).status_code == 200

    asyncio.run(story())


def test_guesses_of_everybody_hold_up_pins_without_their_serial(database_url: str) -> None:
    """Above the budget of all callers a PIN alone has to wait; whoever holds the coupon names its serial."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await counter.sell(0)
            await counter.shop.conn.execute(
                "insert into coupon_tries values ('everybody', %s, to_timestamp(%s / 1000.0))",
                (EVERYBODY_LIMIT.free, counter.shop.clock()),
            )
            alone = await counter.redeem(0)
            assert (alone.status_code, alone.headers["retry-after"]) == (429, "60")
            assert "serial" in alone.json()["error"]["message"]
            assert (await counter.redeem(0, serial=counter.drawer[0].serial)).status_code == 200

    asyncio.run(story())


def test_coupon_that_is_not_sold_or_void_is_not_redeemed(database_url: str) -> None:
    """A stolen one from stock is worth nothing; a void one gives its vendor the money back, once."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            stock = await counter.redeem(0)
            assert (stock.status_code, stock.json()["error"]["code"]) == (409, "coupon_not_sold")
            await counter.sell(0, 1)
            for _ in range(2):
                assert (await counter.office(0, "void", "pack was stolen")).json()["state"] == "void"
            refused = await counter.redeem(0)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "coupon_void")
            assert await books(counter) == (50_000, -50_000)
            await counter.redeem(1)
            late = await counter.office(1, "void")
            assert (late.status_code, late.json()["error"]["code"]) == (409, "coupon_not_voidable")

    asyncio.run(story())


def test_sale_is_answered_once_and_bounded_by_the_float(database_url: str) -> None:
    """The same message id sells once; sold coupons are not sold again; a float that does not reach sells none."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            first = await counter.sell(0, 1)
            copies = await asyncio.gather(*(counter.sell(0, 1) for _ in range(5)))
            assert {each.content for each in copies} == {first.content}
            reused = await counter.sell(2, 3)
            assert (reused.status_code, reused.json()["error"]["code"]) == (409, "message_id_reused")
            taken = await counter.sell(1, 2, message_id="S-2")
            assert (taken.status_code, taken.json()["error"]["code"]) == (409, "coupon_not_for_sale")
            await counter.shop.conn.execute("update vendor_floats set limit_minor = 120000")
            poor = await counter.sell(2, message_id="S-3")
            assert (poor.status_code, poor.json()["error"]["code"]) == (402, "vendor_credit")
            assert await books(counter) == (100_000, -100_000)
            forbidden = await counter.sell(2, message_id="S-4", who="engineer")
            assert forbidden.status_code == 403

    asyncio.run(story())


def test_pins_are_nowhere_in_the_database(database_url: str) -> None:
    """Digests under a key that no database holds: no column of any coupon's row or event shows a PIN's digits."""

    async def story() -> None:
        async with open_counter(database_url) as counter:
            await counter.sell(0)
            await counter.redeem(0)
            for table in ("coupons", "coupon_events", "coupon_sales", "vends", "audit_trail"):
                cursor = await counter.shop.conn.execute(f"select t::text from {table} t".encode())
                text = "".join(row[0] for row in await cursor.fetchall())
                assert not [each for each in counter.drawer if each.pin in text]
            assert VENDOR_LIMIT.wait_s(VENDOR_LIMIT.free + 50) == VENDOR_LIMIT.wait_s_max

    asyncio.run(story())
