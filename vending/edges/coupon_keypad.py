"""Coupons that were typed at meters: the PINs that ingest has stored, redeemed one after the other.

Stage: a task of the API process, beside its requests; several processes share the work row by row. A redeemed coupon's
token is entered at its meter by the head-end, and supply returns by the order that follows the credit; one that is
refused is told to the consumer by a notice. The digits are forgotten in the transaction that settles them. Never: a PIN
in a log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import assert_never

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from billing.calendar import from_ms
from billing.notices import CouponRefused
from db.coupons import KeypadEntry, settle_coupon_entry, take_coupon_entry
from db.notices import write_notices
from db.token_deliveries import TokenNotPushable, push_token
from vending.coupon_pins import CouponKeys
from vending.coupons import BadCoupon, CouponChannel, Redeemer, Refused
from vending.edges.coupon_desk import NotVended, Redeemed, read_asked, redeem_coupon
from vending.edges.coupon_notices import reason_of
from vending.edges.desk import Desk, one_meter
from vending.edges.errors import RequestDeclined
from vending.security import ModuleAbsent
from vending.vends import Declined

# Whoever stands at the meter waits for the light: one look a second is 1/1000 of a core.
LOOK_EVERY_S = 1.0
REDEEMED = "redeemed"

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_keypad(
    pool: AsyncConnectionPool[AsyncConnection], desk: Desk, keys: CouponKeys | None
) -> AsyncIterator[None]:
    """Settle what is typed at meters for as long as the context lasts; nothing without keys."""
    if keys is None:
        yield
        return
    stop = asyncio.Event()
    task = asyncio.create_task(keep_settling(pool, desk, keys, stop), name="coupon-keypad")
    try:
        yield
    finally:
        # Not cancelled: a cancelled statement can look like one that the database gave up, which is tried again.
        stop.set()
        await task


async def keep_settling(
    pool: AsyncConnectionPool[AsyncConnection], desk: Desk, keys: CouponKeys, stop: asyncio.Event
) -> None:
    """Settle what is typed at meters until told to stop; what the database or the module cannot do now comes again."""
    while not stop.is_set():
        try:
            async with pool.connection() as conn:
                while not stop.is_set() and await settle_one(conn, desk, keys):
                    pass
        except (psycopg.OperationalError, ModuleAbsent) as error:
            _log.warning("coupon_entries_wait", error=type(error).__name__)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOOK_EVERY_S)


async def settle_one(conn: AsyncConnection, desk: Desk, keys: CouponKeys) -> bool:
    """Redeem or refuse the oldest PIN that nobody deals with; False when there is none.

    Raises: ModuleAbsent; the PIN stays then.
    """
    async with conn.transaction():
        entry = await take_coupon_entry(conn)
        if entry is None:
            return False
        outcome = await _settle(conn, desk, keys, entry)
        await settle_coupon_entry(conn, entry.id, outcome=outcome, at=from_ms(desk.clock()))
    _log.info("coupon_entry_settled", meter=entry.meter, outcome=outcome)
    return True


async def _settle(conn: AsyncConnection, desk: Desk, keys: CouponKeys, entry: KeypadEntry) -> str:
    who = f"meter:{entry.meter_id}"
    redeemer = Redeemer(channel=CouponChannel.KEYPAD, who=who, guesser=who)
    try:
        asked = read_asked(redeemer, pin=entry.pin, serial=None, meter=entry.meter)
        done = await redeem_coupon(conn, desk, keys, asked)
    except BadCoupon as mistyped:
        return await _refuse(conn, entry, mistyped.code)
    except RequestDeclined as declined:
        return await _refuse(conn, entry, declined.declined.reason.value)
    match done:
        case Redeemed():
            await _push(conn, done)
            return REDEEMED
        case Refused():
            return await _refuse(conn, entry, done.fault.value)
        case NotVended():
            return await _refuse(conn, entry, done.code)
        case _:
            assert_never(done)


async def _push(conn: AsyncConnection, done: Redeemed) -> None:
    """Let the head-end enter the token at its meter, unless it is there or on its way."""
    token_id = done.answered.token_id
    assert token_id is not None, f"coupon {done.serial}: a redeemed one has its token"
    try:
        await push_token(conn, token_id)
    except TokenNotPushable:
        # The account has the credit, and the token is on the receipt.
        _log.warning("coupon_token_not_pushed", serial=done.serial)


async def _refuse(conn: AsyncConnection, entry: KeypadEntry, code: str) -> str:
    """Tell the consumer of the meter, if it has one, why a coupon was not taken; return the code."""
    meter = await one_meter(conn, entry.meter)
    if not isinstance(meter, Declined) and meter.account_id is not None:
        await write_notices(conn, [(meter.account_id, CouponRefused(reason=reason_of(code)))])
    return code
