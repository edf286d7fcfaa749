"""What a desk looks up and changes besides selling: meters before a sale, accounts, thresholds, tokens.

Stage: between the HTTP routes and the database, beside `vending.edges.store`. Never: HTTP.
"""

from __future__ import annotations

from psycopg import AsyncConnection

from billing.calendar import from_ms
from billing.money import parse_amount
from db.accounts import look, points_around
from db.errors import UnknownAccount
from db.meter_records import record_of_token, record_to_mint
from db.posting import lock_and_look, post_threshold
from db.vending_acts import key_change_to_give
from db.vends import NamedMeter, find_account, is_token_issued, read_consumer_name, read_last_recharge
from vending.edges.answers import account_to_api, day_use, meter_to_api, money_day, threshold_to_api, token_to_api
from vending.edges.auth import Caller, VendorCaller, require_account, require_account_or_vendor, require_scope
from vending.edges.desk import Desk, not_billed, one_meter, prepayment_at, without_record
from vending.edges.errors import AccountUnknown, RequestDeclined, TokenNotIssued, TokenUnreadable
from vending.edges.quotes import asking_for_key_change, key_change_under_way
from vending.edges.record_desk import load_record
from vending.engines.choice import engine_of
from vending.receipt import money_to_api
from vending.roles import Scope
from vending.security import TokenRefused
from vending.vends import Declined, category_limits, judge_mode, read_digits, read_meter


async def confirm_meter(conn: AsyncConnection, desk: Desk, caller: Caller, text: str) -> dict[str, object]:
    """Say who and what a meter is, what restores its supply, and whether a vend would be refused.

    Raises: RequestDeclined, DrnCheckDigit, NotAllowed.
    """
    meter = await one_meter(conn, read_meter(text))
    account_id = None if isinstance(meter, Declined) else meter.account_id
    require_account_or_vendor(caller, account_id)
    if isinstance(meter, Declined):
        raise RequestDeclined(meter)
    views = await look(conn, [account_id], desk.rules.calendar) if account_id is not None else {}
    view = next(iter(views.values()), None)
    if view is None or view.meter.id != meter.id:
        raise RequestDeclined(not_billed(meter))
    refusal = judge_mode(view.levels.mode, view.number) or await _judge_meter(conn, desk, meter)
    consumer = await read_consumer_name(conn, view.id)
    prepayment = await prepayment_at(conn, desk, view, desk.clock())
    limits = category_limits(desk.limits, prepayment.rules)
    return meter_to_api(meter, view, consumer, prepayment, refusal, limits=limits, calendar=desk.rules.calendar)


async def read_account(conn: AsyncConnection, desk: Desk, caller: Caller, number: str) -> dict[str, object]:
    """Read an account without locking it.

    Raises: AccountUnknown, NotAllowed.
    """
    calendar = desk.rules.calendar
    account_id = await _own_account(conn, caller, number)
    views = await look(conn, [account_id], calendar)
    if account_id not in views:
        raise AccountUnknown(f"account {number}: expected one with a billing meter, got none")
    view = views[account_id]
    midnight = from_ms(calendar.midnight_ms(money_day(view, calendar)))
    around = await points_around(conn, view.meter, [midnight])
    recharge = await read_last_recharge(conn, account_id)
    prepayment = await prepayment_at(conn, desk, view, desk.clock())
    return account_to_api(view, day_use(view, around, calendar), recharge, prepayment, calendar)


async def set_threshold(
    conn: AsyncConnection, desk: Desk, caller: Caller, number: str, threshold: str | None
) -> dict[str, object]:
    """Change the balance at which the consumer is warned; the same threshold again changes nothing.

    Raises: AccountUnknown, NotAllowed, BadAmount.
    """
    threshold_minor = None if threshold is None else parse_amount(threshold)
    account_id = await _own_account(conn, caller, number)
    async with conn.transaction():
        try:
            view = await lock_and_look(conn, account_id, desk.rules)
        except UnknownAccount:
            raise AccountUnknown(f"account {number}: expected one with a billing meter, got none") from None
        levels, balance_minor = view.levels, view.balance_minor(desk.rules.calendar)
        if threshold_minor != levels.threshold_minor:
            posted = await post_threshold(conn, view, threshold_minor, rules=desk.rules, now_ms=desk.clock())
            levels, balance_minor = posted.decision.levels, posted.balance_minor
    return {
        "account_number": view.number,
        "currency": view.terms.tariff.currency,
        **threshold_to_api(levels.threshold_minor),
        **money_to_api("balance", balance_minor),
        "low_alarm": levels.low_raised,
    }


async def verify_token(
    conn: AsyncConnection, desk: Desk, caller: Caller, *, meter: str, token: str
) -> dict[str, object]:
    """Read a token under a meter's key, whether it was used or not.

    Raises: MalformedToken for anything but 20 digits; TokenNotIssued, TokenUnreadable, RequestDeclined, NotAllowed.
    """
    require_scope(caller, Scope.VERIFY)
    digits = read_digits(token)
    named = await one_meter(conn, read_meter(meter))
    if isinstance(named, Declined):
        raise RequestDeclined(named)
    # The CRC is 16 bits: a vendor who may ask about any digits would find a working token in some 65,000 questions.
    if isinstance(caller, VendorCaller) and not await is_token_issued(conn, named.id, digits):
        raise TokenNotIssued(
            f"token ...{digits[-4:]}: expected one issued here for meter {named.serial}, got another: "
            "mistyped, or of another meter"
        )
    row = await record_of_token(conn, named.id, digits) or await record_to_mint(conn, named.id)
    record = without_record(named) if row is None else await load_record(conn, row)
    if isinstance(record, Declined):
        raise RequestDeclined(record)
    read = await engine_of(record, desk.security_module).verify(record, digits)
    if isinstance(read, Declined):
        raise RequestDeclined(read)
    if isinstance(read, TokenRefused):
        raise TokenUnreadable(read.code, f"{read.reason}, meter {named.serial}")
    return token_to_api(named, read)


async def _own_account(conn: AsyncConnection, caller: Caller, number: str) -> int:
    account_id = await find_account(conn, number)
    require_account(caller, account_id)
    if account_id is None:
        raise AccountUnknown(f"account {number}: expected a known number")
    return account_id


async def _judge_meter(conn: AsyncConnection, desk: Desk, meter: NamedMeter) -> Declined | None:
    """Tell what would refuse a token for a meter now."""
    row = await record_to_mint(conn, meter.id)
    if row is None:
        return without_record(meter)
    record = await load_record(conn, row)
    if isinstance(record, Declined):
        return record
    if row.state == "pending" and not (await key_change_to_give(conn, row.id))[1]:
        return key_change_under_way(row)
    declined = await engine_of(record, desk.security_module).judge(record, now_ms=desk.clock())
    return None if declined is None else asking_for_key_change(declined)
