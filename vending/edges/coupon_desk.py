"""The coupon desk: coupons redeemed and sold, each in the one transaction of their money.

Stage: between the routes, the SMS desk and the keypad on one side and the database on the other. A redemption is a vend
of the system vendor `coupons` with the serial as its message id: coupon, vend, token and journal change together, once
for ever. A guess is counted and committed before anything is answered. Never: HTTP; a PIN in the database, a log or an
error.

Order of locks: guesser, licence, coupon, vendor's float, message id, account.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Protocol

from psycopg import AsyncConnection

from billing.calendar import from_ms, to_ms
from billing.journals import JournalKind, money_journal
from billing.money import format_minor
from db import coupon_licences, coupons
from db.coupons import CouponEvent, CouponRow, NewSale, Redemption
from db.floats import FloatRefused, post_float_journal
from db.orders import PostingRules
from db.vends import NamedMeter
from vending.coupon_pins import CouponKeys, pin_digest, read_pin
from vending.coupons import (
    EVERYBODY,
    EVERYBODY_LIMIT,
    Coupon,
    CouponFault,
    CouponState,
    Redeemable,
    Redeemer,
    Refused,
    Tries,
    judge_redemption,
    limit_of,
    locked,
    one_more,
    read_serial,
    serials_between,
    unknown,
    valid_until,
    wait_of,
)
from vending.edges.auth import VendorCaller
from vending.edges.coupon_errors import CouponNotForSale, VendorCredit
from vending.edges.desk import Answered, Desk, one_meter
from vending.edges.errors import RequestDeclined
from vending.edges.store import sell, stored_vend, system_seller
from vending.receipt import money_to_api
from vending.vends import (
    Declined,
    Funding,
    MessageIdReused,
    VendOrder,
    VendState,
    digest_of,
    judge_vendor,
    read_meter,
)

IN_FORCE = "in_force"


class Office(Protocol):
    """What the utility's side of coupons needs: no security module, since nothing is minted there.

    Units: `clock` gives UTC milliseconds.
    """

    @property
    def rules(self) -> PostingRules:
        """What every post goes by."""

    @property
    def clock(self) -> Callable[[], int]:
        """Return the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A redemption as asked for. Invariants: `pin` and `serial` are of their form; the PIN shows in no `repr`."""

    redeemer: Redeemer
    pin: str = field(repr=False)
    serial: str | None
    meter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Redeemed:
    """A coupon that has become a vend, now or before."""

    serial: str
    answered: Answered
    again: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NotVended:
    """A coupon that is good, and a vend that is refused: the coupon stays as it is, for another meter or day."""

    code: str
    status: int
    answer: dict[str, Any]  # As any refused vend is answered.


class _VendRefused(Exception):
    """Takes a refused vend back, which would otherwise be the coupon's answer for ever."""

    def __init__(self, refused: NotVended) -> None:
        super().__init__(refused.status)
        self.refused = refused


def read_asked(redeemer: Redeemer, *, pin: str, serial: str | None, meter: str) -> Asked:
    """Read the fields of a redemption.

    Raises: BadCoupon for a slip of the finger, which counts as no try; MalformedRequest.
    """
    return Asked(
        redeemer=redeemer,
        pin=read_pin(pin),
        serial=None if serial is None else read_serial(serial),
        meter=read_meter(meter),
    )


async def redeem_coupon(
    conn: AsyncConnection, desk: Desk, keys: CouponKeys, asked: Asked
) -> Redeemed | NotVended | Refused:
    """Turn a coupon into a vend, once; whoever redeemed it gets the same answer again for the same meter.

    Raises: RequestDeclined for a meter that is not known; DrnCheckDigit; ModuleAbsent. Nothing is stored then.
    """
    now_ms = desk.clock()
    async with conn.transaction():
        found = await _find(conn, keys, asked, now_ms)
    if isinstance(found, Refused):
        return found
    try:
        async with conn.transaction():
            return await _redeem(conn, desk, asked, found, now_ms)
    except _VendRefused as taken_back:
        return taken_back.refused


async def sell_coupons(
    conn: AsyncConnection, desk: Desk, vendor: VendorCaller, *, message_id: str, first: str, last: str
) -> dict[str, Any]:  # JSON, as stored.
    """Sell a range of coupons to a vendor: they are active, valid from today, and paid for by its float.

    Raises: BadCoupon, MessageIdReused, CouponNotForSale, VendorCredit, RequestDeclined for a stopped vendor.
    """
    first, last = read_serial(first), read_serial(last)
    number = serials_between(first, last)
    digest = digest_of({"first": first, "last": last})
    async with conn.transaction():
        stored = await coupons.lock_sale(conn, vendor.vendor_id, message_id)
        if stored is not None:
            if stored[0] != digest:
                raise MessageIdReused(f"message_id {message_id}: expected the coupons it was first used with")
            return stored[1]
        declined = judge_vendor(name=vendor.name, active=vendor.active)
        if declined is not None:
            raise RequestDeclined(declined)
        rows = await in_stock(conn, first, last, number)
        now_ms = desk.clock()
        sold_on = desk.rules.calendar.day_of(now_ms)
        amount_minor = sum(amount for _, amount in rows)
        posted = await post_float_journal(
            conn,
            vendor.vendor_id,
            money_journal(JournalKind.COUPON_SALE, amount_minor, f"{number} coupons {first} to {last}"),
        )
        if isinstance(posted, FloatRefused):
            raise VendorCredit(credit_text(posted))
        answer = {
            "message_id": message_id,
            "first": first,
            "last": last,
            "coupons": number,
            **money_to_api("amount", amount_minor),
            "sold_on": sold_on.isoformat(),
            "valid_until": valid_until(sold_on).isoformat(),
            **money_to_api("float_balance", posted.taken.balance_minor),
        }
        sale = NewSale(
            vendor_id=vendor.vendor_id,
            message_id=message_id,
            request_sha256=digest,
            amount_minor=amount_minor,
            journal_id=posted.journal_id,
            sold_at=from_ms(now_ms),
            sold_by=vendor.key_id,
            answer=answer,
        )
        ids = [coupon_id for coupon_id, _ in rows]
        sale_id = await coupons.add_sale(conn, sale, ids, sold_on=sold_on, valid_until=valid_until(sold_on))
        detail = {"first": first, "last": last}
        event = CouponEvent(at=sale.sold_at, event="sold", by=vendor.key_id, sale_id=sale_id, detail=detail)
        await coupons.add_event(conn, event)
    return answer


async def in_stock(conn: AsyncConnection, first: str, last: str, number: int) -> list[tuple[int, int]]:
    """Lock a range of coupons, all of which must be in stock: id and amount.

    Raises: CouponNotForSale naming the first one that is not.
    """
    rows = await coupons.lock_range(conn, batch_id=int(first[:5]), first=first, last=last)
    taken = next(((serial, state) for _, serial, state, _ in rows if state != CouponState.ISSUED), None)
    if taken is not None:
        raise CouponNotForSale(f"coupon {taken[0]}: expected one in stock, got one that is {taken[1]}")
    if len(rows) != number:
        raise CouponNotForSale(f"coupons {first} to {last}: expected {number} in stock, got {len(rows)}")
    return [(coupon_id, amount_minor) for coupon_id, _, _, amount_minor in rows]


async def lock_with_licence(
    conn: AsyncConnection, coupon_id: int
) -> tuple[CouponRow, coupon_licences.LicenceRow | None]:
    """Lock a coupon, and before it the licence that it is reserved for."""
    licence_id = await coupons.licence_of_coupon(conn, coupon_id)
    licence = None if licence_id is None else await coupon_licences.lock_licence(conn, licence_id)
    return await coupons.lock_coupon(conn, coupon_id), licence


def coupon_of(desk: Office, row: CouponRow, licence: coupon_licences.LicenceRow | None) -> Coupon:
    """Return a coupon as rules see it; one that no log has told of may have been sold on its licence's last day."""
    reserved = row.state == CouponState.RESERVED
    # One that was set aside for a licence this very moment is not under that licence's lock.
    ours = licence is not None and licence.id == row.licence_id
    until = row.valid_until
    if reserved and licence is not None and ours:
        until = valid_until(desk.rules.calendar.day_of(to_ms(licence.valid_until) - 1))
    return Coupon(
        serial=row.serial,
        state=CouponState(row.state),
        amount_minor=row.amount_minor,
        valid_until=until,
        may_draw=reserved and licence is not None and ours and licence.state == IN_FORCE,
        redeemed_by=row.redeemed_by,
        meter_id=row.meter_id,
    )


async def draw_on_licence(
    conn: AsyncConnection, licence: coupon_licences.LicenceRow, serial: str, amount_minor: int
) -> bool:
    """Take a coupon of the money held for its licence, or of its vendor's float; False if neither reaches."""
    if await coupon_licences.draw(conn, licence.id, amount_minor):
        return True
    journal = money_journal(JournalKind.COUPON_SALE, amount_minor, f"coupon {serial} beyond licence {licence.id}")
    if isinstance(await post_float_journal(conn, licence.vendor_id, journal), FloatRefused):
        return False
    await coupon_licences.hold_more(conn, licence.id, amount_minor)
    drawn = await coupon_licences.draw(conn, licence.id, amount_minor)
    assert drawn, f"licence {licence.id}: what was paid for just now is held"
    return True


def credit_text(refused: FloatRefused) -> str:
    """Say how much a vendor's float lacks."""
    return (
        f"vendor: expected a float of {format_minor(refused.needed_minor)} or more, "
        f"got {format_minor(refused.available_minor)}"
    )


async def _find(conn: AsyncConnection, keys: CouponKeys, asked: Asked, now_ms: int) -> int | Refused:
    """Find the coupon of a PIN unless its guesser has to wait; a wrong one is counted."""
    guesser = asked.redeemer.guesser
    await coupons.lock_guesser(conn, guesser)
    told = await coupons.read_tries(conn, [guesser, EVERYBODY])
    tries = {who: Tries(wrong=wrong, last_ms=to_ms(at)) for who, (wrong, at) in told.items()}
    wait_s = wait_of(tries.get(guesser), limit_of(guesser), now_ms)
    if wait_s:
        return locked(wait_s, everybody=False)
    wait_s = wait_of(tries.get(EVERYBODY), EVERYBODY_LIMIT, now_ms)
    # Whoever holds a coupon can name its serial, and guessing the PIN of one serial is hopeless.
    if wait_s and asked.serial is None:
        return locked(wait_s, everybody=True)
    found = await coupons.find_by_pin(conn, pin_digest(keys, asked.pin))
    if found is not None and asked.serial is not None and await coupons.find_by_serial(conn, asked.serial) != found:
        found = None
    if found is None:
        counted = one_more(tries.get(guesser), limit_of(guesser), now_ms)
        await coupons.count_tries(
            conn,
            guesser,
            wrong=counted.wrong,
            at=from_ms(now_ms),
            everybody_forgets_before=from_ms(now_ms - EVERYBODY_LIMIT.forget_s * 1000),
        )
        return unknown()
    return found


async def _redeem(conn: AsyncConnection, desk: Desk, asked: Asked, coupon_id: int, now_ms: int) -> Redeemed | Refused:
    meter = await one_meter(conn, asked.meter)
    row, licence = await lock_with_licence(conn, coupon_id)
    today = desk.rules.calendar.day_of(now_ms)
    coupon = coupon_of(desk, row, licence)
    meter_id = None if isinstance(meter, Declined) else meter.id
    judged = judge_redemption(coupon, asked.redeemer, meter_id=meter_id, today=today)
    if isinstance(judged, Refused):
        return judged
    if isinstance(meter, Declined):
        raise RequestDeclined(meter)
    seller = await system_seller(conn, Funding.COUPON)
    if judged is Redeemable.AGAIN:
        return Redeemed(serial=row.serial, answered=await stored_vend(conn, seller, row.serial), again=True)
    if coupon.state is CouponState.RESERVED:
        assert licence is not None, f"coupon {row.serial}: it was judged by its licence"
        if not await draw_on_licence(conn, licence, row.serial, row.amount_minor):
            message = f"coupon {row.serial}: expected one that its station has paid for; ask the station or the utility"
            return Refused(fault=CouponFault.ON_HOLD, message=message)
    order = VendOrder(message_id=row.serial, meter=meter.serial, amount_minor=row.amount_minor, tender=None)
    answered = await sell(conn, desk, seller, order)
    if answered.state is VendState.REFUSED:
        raise _VendRefused(
            NotVended(code=answered.outcome, status=answered.stored.status, answer=answered.stored.answer)
        )
    await coupons.redeem(conn, _redemption(asked.redeemer, row, meter, answered, now_ms, today))
    return Redeemed(serial=row.serial, answered=answered, again=False)


def _redemption(
    redeemer: Redeemer, row: CouponRow, meter: NamedMeter, answered: Answered, now_ms: int, today: date
) -> Redemption:
    return Redemption(
        id=row.id,
        redeemed_by=redeemer.who,
        channel=redeemer.channel.value,
        meter_id=meter.id,
        vend_id=answered.vend_id,
        redeemed_at=from_ms(now_ms),
        # Of a coupon that no log has told of; its station's log puts the day right.
        sold_on=today,
        valid_until=valid_until(today),
    )
