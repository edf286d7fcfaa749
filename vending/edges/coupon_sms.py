"""Coupons by SMS: REDEEM, the PIN in groups or not, and a meter where it is not the sender's own.

Stage: behind the SMS desk, inside its transaction; a message is answered once, however often the gateway brings it.
The token goes whole to a proven number alone, as everywhere; the credit is on the account whoever asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from psycopg import AsyncConnection

from billing.calendar import to_ms
from billing.notices import CouponReason, CouponRefused, Facts, TokenResend, WhichAccount
from billing.notices.facts import mask_token
from db.contacts import AccountOfNumber
from db.coupons import meter_of_account
from db.vends import find_meters
from vending.coupon_pins import PIN_DIGITS, CouponKeys
from vending.coupons import BadCoupon, CouponChannel, Redeemer, plain_digits
from vending.edges.coupon_desk import NotVended, Redeemed, read_asked, redeem_coupon
from vending.edges.coupon_notices import reason_of
from vending.edges.desk import Desk
from vending.edges.errors import RequestDeclined
from vending.vends import DrnCheckDigit, MalformedRequest, read_meter


async def redeem_by_sms(
    conn: AsyncConnection,
    desk: Desk,
    keys: CouponKeys,
    sender: str,
    words: Sequence[str],
    known: Sequence[AccountOfNumber],
) -> Facts:
    """Redeem what a message says for the account or meter that it names, else for the sender's only account."""
    pin, named = _read(words)
    if named is None and len(known) > 1:
        return WhichAccount(command="REDEEM")
    who = f"phone:{sender}"
    try:
        serial = await _meter_of(conn, named, known)
        if serial is None:
            return CouponRefused(reason=CouponReason.COUPON_METER)
        redeemer = Redeemer(channel=CouponChannel.SMS, who=who, guesser=who)
        done = await redeem_coupon(conn, desk, keys, read_asked(redeemer, pin=pin, serial=None, meter=serial))
    except (BadCoupon, DrnCheckDigit) as error:
        return CouponRefused(reason=reason_of(error.code))
    except MalformedRequest:
        return CouponRefused(reason=CouponReason.COUPON_METER)
    except RequestDeclined as error:
        return CouponRefused(reason=reason_of(error.declined.reason.value))
    if isinstance(done, Redeemed):
        return _token_of(done, whole=known[0].verified)
    return CouponRefused(reason=reason_of(done.code if isinstance(done, NotVended) else done.fault.value))


def _read(words: Sequence[str]) -> tuple[str, str | None]:
    """Return the PIN, put together from its groups, and the word after it."""
    pin = ""
    for word in words:
        if len(pin) >= PIN_DIGITS:
            return pin, word
        pin += plain_digits(word)
    return pin, None


async def _meter_of(conn: AsyncConnection, named: str | None, known: Sequence[AccountOfNumber]) -> str | None:
    """Return what names the meter: of one of the sender's accounts, or as it was sent, or in capitals.

    Raises: MalformedRequest.
    """
    if named is None:
        return await meter_of_account(conn, known[0].account_id)
    for each in known:
        if each.number.casefold() == named.casefold():
            return await meter_of_account(conn, each.account_id)
    return named if await find_meters(conn, read_meter(named)) else named.upper()


def _token_of(done: Redeemed, *, whole: bool) -> Facts:
    # The receipt as it is stored: digits in groups of four, the amount, the instant.
    told = done.answered.stored.answer
    grouped = str(told["token"]["grouped"])
    return TokenResend(
        token=grouped if whole else mask_token(grouped),
        amount_minor=int(told["amount_minor"]),
        at_ms=to_ms(datetime.fromisoformat(str(told["issued_at"]))),
    )
