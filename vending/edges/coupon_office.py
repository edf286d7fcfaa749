"""The utility's side of coupons: made, shown, revalidated, taken out of use, counted.

Stage: between the command line or an engineer's routes and the database, one transaction each. What is done by hand
is kept for ever with who and why. PINs leave this module once, for the print file, and are nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms
from billing.journals import JournalKind, money_journal
from db import coupons
from db.coupons import CouponEvent, CouponRow, CouponStory, MonthOfSale
from db.floats import FloatPosted, post_float_journal
from db.orders import PostingRules, wall_ms
from vending.coupon_pins import CouponKeys, draw_pin, pin_digest
from vending.coupons import BATCH_COUPONS_MAX, CouponState, has_lapsed, read_serial, serial_of, valid_until
from vending.edges.coupon_desk import IN_FORCE, Office, coupon_of, draw_on_licence, lock_with_licence
from vending.edges.coupon_errors import (
    CouponNotLapsed,
    CouponNotVoidable,
    CouponOnHold,
    CouponUnknown,
    OrderReused,
)
from vending.receipt import money_to_api


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficeDesk:
    """The utility's own desk at the command line; `clock` gives UTC milliseconds."""

    rules: PostingRules
    clock: Callable[[], int] = wall_ms


_MONTH_SUMS = ("sold", "redeemed", "lapsed", "void", "outstanding", "revalidated")


@dataclass(frozen=True, slots=True, kw_only=True)
class CouponOrder:
    """Coupons to be made. Invariants: `reference` is the order's own: the same one again makes nothing."""

    amount_minor: int
    coupons: int
    carrier: str
    reference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """A coupon as it is printed, the only time its PIN is known."""

    serial: str
    pin: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A batch; `again` where the order had made it before, and no PIN is known any more."""

    batch: int
    first: str
    last: str
    again: bool


async def issue_coupons(
    conn: AsyncConnection,
    keys: CouponKeys,
    order: CouponOrder,
    *,
    by: str,
    now: datetime,
    draw: Callable[[int], int],
    write: Callable[[Sequence[Printed]], None],
) -> Issued:
    """Make a batch; `write` puts it into the print file before anything is committed.

    Raises: OrderReused; whatever `write` raises, and nothing is made then.
    """
    assert 1 <= order.coupons <= BATCH_COUPONS_MAX, f"coupons: expected 1 to {BATCH_COUPONS_MAX}, got {order.coupons}"
    async with conn.transaction():
        made = await coupons.lock_order(conn, order.reference)
        if made is not None:
            if (made.amount_minor, made.coupons, made.carrier) != (order.amount_minor, order.coupons, order.carrier):
                raise OrderReused(f"reference {order.reference}: expected the order it was first used with")
            return _issued(made.id, made.coupons, again=True)
        told = {"amount_minor": order.amount_minor, "coupons": order.coupons, "carrier": order.carrier}
        batch = await coupons.add_batch(
            conn,
            carrier=order.carrier,
            amount_minor=order.amount_minor,
            coupons=order.coupons,
            reference=order.reference,
            at=now,
            by=by,
        )
        printed = [
            Printed(serial=serial_of(batch, number), pin=draw_pin(draw)) for number in range(1, order.coupons + 1)
        ]
        digests = ((each.serial, pin_digest(keys, each.pin)) for each in printed)
        await coupons.add_coupons(conn, batch, order.amount_minor, digests)
        await coupons.add_event(conn, CouponEvent(at=now, event="issued", by=by, batch_id=batch, detail=told))
        write(printed)
    return _issued(batch, order.coupons, again=False)


async def show_coupon(conn: AsyncConnection, desk: Office, serial: str, *, whole: bool) -> dict[str, Any]:  # JSON.
    """Return a coupon as it stands; `whole` with what was done to it, and for which meter it was redeemed.

    Raises: BadCoupon, CouponUnknown.
    """
    story = await coupons.read_story(conn, read_serial(serial))
    if story is None:
        raise _unknown(serial)
    shown = story_to_api(story, desk)
    if whole:
        shown |= {
            "batch": story.batch_id,
            "carrier": story.carrier,
            "licence": story.licence_id,
            "vendor": story.vendor,
            "meter": story.meter,
            "channel": story.channel,
            "redeemed_at": None if story.redeemed_at is None else story.redeemed_at.isoformat(timespec="milliseconds"),
            "events": [
                each | {"at": each["at"].isoformat(timespec="milliseconds")}
                for each in await coupons.read_events(conn, story.id)
            ],
        }
    return shown


def story_to_api(story: CouponStory, desk: Office) -> dict[str, Any]:  # JSON.
    """Return what everybody at a desk may know of a coupon: no PIN, no meter."""
    today = desk.rules.calendar.day_of(desk.clock())
    lapsed = story.state == CouponState.SOLD and story.valid_until is not None and today > story.valid_until
    return {
        "serial": story.serial,
        "state": "lapsed" if lapsed else story.state,
        **money_to_api("amount", story.amount_minor),
        "sold_on": None if story.sold_on is None else story.sold_on.isoformat(),
        "valid_until": None if story.valid_until is None else story.valid_until.isoformat(),
        "revalidations": story.revalidations,
    }


async def revalidate_coupon(
    conn: AsyncConnection, desk: Office, serial: str, *, reason: str, by: str
) -> dict[str, Any]:  # JSON.
    """Give a lapsed coupon three months from today; also one that a revoked licence holds back, which is then paid for.

    Raises: BadCoupon, CouponUnknown, CouponNotLapsed, CouponOnHold where nobody has the money for it.
    """
    async with conn.transaction():
        row, licence = await _lock(conn, serial)
        now_ms = desk.clock()
        today = desk.rules.calendar.day_of(now_ms)
        coupon = coupon_of(desk, row, licence)
        held_back = coupon.state is CouponState.RESERVED and licence is not None and licence.state != IN_FORCE
        if not held_back and not has_lapsed(coupon, today):
            raise CouponNotLapsed(
                f"coupon {row.serial}: expected one that was sold and has lapsed, got one that is {row.state}"
                + (f" and valid through {row.valid_until}" if row.state == CouponState.SOLD else "")
            )
        if coupon.state is CouponState.RESERVED:
            assert licence is not None, f"coupon {row.serial}: it is reserved for a licence"
            if not await draw_on_licence(conn, licence, row.serial, row.amount_minor):
                raise CouponOnHold(f"coupon {row.serial}: expected one that its station has paid for")
        until = valid_until(today)
        await coupons.revalidate(conn, row.id, sold_on=today, valid_until=until)
        detail = {"valid_until": until.isoformat(), "before": None if row.valid_until is None else str(row.valid_until)}
        at = from_ms(now_ms)
        event = CouponEvent(at=at, event="revalidated", by=by, reason=reason, coupon_id=row.id, detail=detail)
        await coupons.add_event(conn, event)
    return await show_coupon(conn, desk, row.serial, whole=False)


async def void_coupon(
    conn: AsyncConnection, desk: Office, serial: str, *, reason: str, by: str
) -> dict[str, Any]:  # JSON.
    """Take a lost or stolen coupon out of use; what its vendor paid for it goes back to that float. Twice is once.

    A redeemed one stays redeemed, unless its vend was taken back: then it is worth its money again, and nothing else.
    Raises: BadCoupon, CouponUnknown, CouponNotVoidable.
    """
    async with conn.transaction():
        row, _ = await _lock(conn, serial)
        if row.state != CouponState.VOID:
            if row.vend_id is not None and not await coupons.is_taken_back(conn, row.vend_id):
                raise CouponNotVoidable(f"coupon {row.serial}: expected one not redeemed, got one that was")
            journal_id = await _give_back(conn, row, reason)
            await coupons.void(conn, row.id, journal_id=journal_id)
            detail = {"state": row.state, **money_to_api("given_back", row.amount_minor if journal_id else 0)}
            at = from_ms(desk.clock())
            event = CouponEvent(at=at, event="voided", by=by, reason=reason, coupon_id=row.id, detail=detail)
            await coupons.add_event(conn, event)
    return await show_coupon(conn, desk, row.serial, whole=False)


async def coupon_report(conn: AsyncConnection, calendar: LocalCalendar, *, now_ms: int) -> dict[str, Any]:  # JSON.
    """Return what became of sold coupons by month of sale, and whether the ledger owes just what is open.

    Units: minor units, beside each amount as printed.
    """
    today = calendar.day_of(now_ms)
    async with conn.transaction():
        months, liability = await coupons.read_report(conn, today)
    rows = [{"month": f"{month.month:%Y-%m}", **_sums_to_api([month])} for month in months]
    return {
        "day": today.isoformat(),
        "months": rows,
        "total": _sums_to_api(months),
        "ledger": {
            **money_to_api("coupons", liability.ledger_minor),
            **money_to_api("sold_not_redeemed", liability.coupons_minor),
            **money_to_api("held_for_licences", liability.held_minor),
            "agrees": liability.agrees,
        },
    }


async def _lock(conn: AsyncConnection, serial: str) -> tuple[CouponRow, Any]:  # The licence, as the desk has it.
    coupon_id = await coupons.find_by_serial(conn, read_serial(serial))
    if coupon_id is None:
        raise _unknown(serial)
    return await lock_with_licence(conn, coupon_id)


async def _give_back(conn: AsyncConnection, row: CouponRow, reason: str) -> int | None:
    """Give a vendor what it paid for a coupon; None where nobody has."""
    if row.state not in (CouponState.SOLD, CouponState.REDEEMED):
        return None
    vendor_id = await coupons.vendor_of_coupon(conn, row.id)
    assert vendor_id is not None, f"coupon {row.serial}: somebody has sold it"
    journal = money_journal(JournalKind.COUPON_SALE, -row.amount_minor, f"coupon {row.serial} void: {reason}")
    posted = await post_float_journal(conn, vendor_id, journal)
    assert isinstance(posted, FloatPosted), "what is given back is never refused"
    return posted.journal_id


def _sums_to_api(months: Sequence[MonthOfSale]) -> dict[str, Any]:  # JSON.
    told = [asdict(month) for month in months]
    shown: dict[str, Any] = {}  # JSON, as above.
    for name in _MONTH_SUMS:
        shown[name] = {
            "coupons": sum(month[name] for month in told),
            **money_to_api("amount", sum(month[f"{name}_minor"] for month in told)),
        }
    return shown


def _issued(batch: int, number: int, *, again: bool) -> Issued:
    return Issued(batch=batch, first=serial_of(batch, 1), last=serial_of(batch, number), again=again)


def _unknown(serial: str) -> CouponUnknown:
    return CouponUnknown(f"coupon {serial}: expected a serial that was issued")
