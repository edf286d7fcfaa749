"""The vending desk: each use case as one transaction or one unlocked look.

Stage: between the HTTP routes and the database. A vend is one transaction under READ COMMITTED: message id, account
lock, TID, token, journal, stored answer; it is answered after its commit or not at all. Never: HTTP, or an answer
made from a view that another transaction has since changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from psycopg import AsyncConnection

from billing.calendar import from_ms
from billing.estimate import energy_bought_wh
from billing.money import parse_amount
from billing.prepayment import Split, recharge_to_keep, split_recharge
from billing.running import Walk
from billing.supply import restores_with_minor
from db.accounts import AccountView, look, points_around
from db.errors import UnknownAccount
from db.money_events import post_recharge
from db.orders import PostingRules
from db.posting import Posted, lock_and_look, post_threshold
from db.prepayment import Prepayment, prepayment_of
from db.vends import (
    MeterStsRow,
    NamedMeter,
    NewVend,
    StoredAnswer,
    add_token,
    add_vend,
    find_account,
    find_meters,
    find_vend,
    is_token_issued,
    lock_message,
    read_consumer_name,
    read_last_recharge,
    read_meter_sts,
    take_tid,
)
from vending.edges.answers import (
    account_to_api,
    day_use,
    declined_to_api,
    meter_to_api,
    money_day,
    supply_state,
    threshold_to_api,
    token_to_api,
)
from vending.edges.auth import (
    Caller,
    VendorCaller,
    require_account,
    require_account_or_vendor,
    require_staff,
)
from vending.edges.errors import AccountUnknown, RequestDeclined, TokenNotIssued, TokenUnreadable, VendUnknown
from vending.receipt import CURRENCY_ELECTRICITY_SUBCLASS, Receipt, money_to_api, receipt_to_api
from vending.security import SecurityModule, TokenRefused
from vending.sts.errors import StsError
from vending.vends import (
    Declined,
    DeclineReason,
    IssuedToken,
    MessageIdReused,
    StsFields,
    VendLimits,
    VendRequest,
    category_limits,
    choose_tid,
    declined_by_module,
    issue_token,
    judge_amount,
    judge_key,
    judge_mode,
    judge_vendor,
    key_record,
    read_meter,
    read_token,
    request_digest,
    require_drn_check_digit,
)

VENDED = "vended"
REPEATED = "repeated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What every use case needs besides its request.

    Units: `clock` gives UTC milliseconds; it is read once per use case, after the locks it waits for.
    """

    rules: PostingRules
    limits: VendLimits
    security_module: SecurityModule
    clock: Callable[[], int]
    status_vended: int
    status_of: Callable[[DeclineReason], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer that is stored and committed; `outcome` is vended, repeated or the reason of a refusal."""

    stored: StoredAnswer
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sale:
    receipt: Receipt
    account_id: int
    meter_id: int
    journal_id: int


async def vend(conn: AsyncConnection, desk: Desk, vendor: VendorCaller, request: VendRequest) -> Answered:
    """Sell once: the first request under a message id sells or is refused, every later one reads that answer.

    Raises: MessageIdReused for another request under the id; DrnCheckDigit; both leave nothing stored.
    """
    digest = request_digest(request)
    async with conn.transaction():
        # Copies of one request queue here; each but the first finds the first one's committed answer.
        await lock_message(conn, vendor.vendor_id, request.message_id)
        stored = await find_vend(conn, vendor.vendor_id, request.message_id)
        if stored is not None:
            if stored.request_sha256 != digest:
                raise MessageIdReused(
                    f"message_id {request.message_id}: expected the meter and amount it was first used with, "
                    f"got others, vendor {vendor.name}"
                )
            return Answered(stored=stored, outcome=REPEATED)
        sale = await _sell(conn, desk, vendor, request)
        if isinstance(sale, Declined):
            answered = await _store_refusal(conn, desk, vendor, request, sale)
        else:
            answered = await _store_sale(conn, desk, vendor, request, sale)
    return answered


async def stored_vend(conn: AsyncConnection, vendor: VendorCaller, message_id: str) -> StoredAnswer:
    """Read what a message id was answered, waiting for a vend under it that is under way.

    Raises: VendUnknown.
    """
    async with conn.transaction():
        await lock_message(conn, vendor.vendor_id, message_id)
        stored = await find_vend(conn, vendor.vendor_id, message_id)
    if stored is None:
        raise VendUnknown(
            f"message_id {message_id}: expected one that was answered, got none of vendor {vendor.name}; "
            "send the vend again under the same id"
        )
    return stored


async def confirm_meter(conn: AsyncConnection, desk: Desk, caller: Caller, text: str) -> dict[str, object]:
    """Say who and what a meter is, what restores its supply, and whether a vend would be refused.

    Raises: RequestDeclined, DrnCheckDigit, NotAllowed.
    """
    meter = await _one_meter(conn, read_meter(text))
    account_id = None if isinstance(meter, Declined) else meter.account_id
    require_account_or_vendor(caller, account_id)
    if isinstance(meter, Declined):
        raise RequestDeclined(meter)
    views = await look(conn, [account_id], desk.rules.calendar) if account_id is not None else {}
    view = next(iter(views.values()), None)
    if view is None or view.meter.id != meter.id:
        raise RequestDeclined(_not_billed(meter))
    sts = await read_meter_sts(conn, meter.id)
    refusal = judge_mode(view.levels.mode, view.number) or _judge_sts(desk, meter, sts)
    consumer = await read_consumer_name(conn, view.id)
    prepayment = await _prepayment(conn, desk, view, desk.clock())
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
    prepayment = await _prepayment(conn, desk, view, desk.clock())
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
    require_staff(caller)
    number = read_token(token)
    named = await _one_meter(conn, read_meter(meter))
    if isinstance(named, Declined):
        raise RequestDeclined(named)
    # The CRC is 16 bits: a vendor who may ask about any digits would find a working token in some 65,000 questions.
    if isinstance(caller, VendorCaller) and not await is_token_issued(conn, named.id, number.digits):
        raise TokenNotIssued(
            f"token {number}: expected one issued here for meter {named.serial}, got another: "
            "mistyped, or of another meter"
        )
    sts = await read_meter_sts(conn, named.id)
    record = _without_sts(named) if sts is None else key_record(_fields(sts))
    if isinstance(record, Declined):
        raise RequestDeclined(record)
    try:
        read = desk.security_module.verify(record, number)
    except StsError as error:
        raise RequestDeclined(declined_by_module(record, error)) from error
    if isinstance(read, TokenRefused):
        raise TokenUnreadable(read.code, f"{read.reason}, meter {named.serial}")
    return token_to_api(named, record, number, read)


async def _sell(conn: AsyncConnection, desk: Desk, vendor: VendorCaller, request: VendRequest) -> _Sale | Declined:
    """Lock, look, mint and post; what is refused has written nothing."""
    declined = judge_vendor(name=vendor.name, active=vendor.active) or judge_amount(request.amount_minor, desk.limits)
    if declined:
        return declined
    meter = await _one_meter(conn, request.meter)
    if isinstance(meter, Declined):
        return meter
    view = await _locked_view(conn, desk, meter)
    if isinstance(view, Declined):
        return view
    now_ms = desk.clock()
    prepayment = await _prepayment(conn, desk, view, now_ms)
    limits = category_limits(desk.limits, prepayment.rules)
    declined = judge_mode(view.levels.mode, view.number) or judge_amount(request.amount_minor, limits)
    if declined:
        return declined
    split = split_recharge(request.amount_minor, prepayment.arrears_minor, prepayment.rules)
    sts = await read_meter_sts(conn, meter.id)
    if sts is None:
        return _without_sts(meter)
    # The one call to a security module inside a transaction: the soft module computes in this process, without
    # waiting for anything. A module behind a wire has to be asked before, with the TID committed first.
    # The token carries what the account keeps: a meter that counts down on its own must not give more than that.
    issued = issue_token(desk.security_module, _fields(sts), split.kept_minor, now_ms=now_ms)
    if isinstance(issued, Declined):
        return issued
    await take_tid(conn, meter.id, issued.tid)
    posted = await post_recharge(conn, view, split, rules=desk.rules, now_ms=now_ms)
    balance_before_minor = view.balance_minor(desk.rules.calendar)
    walk = view.walk(desk.rules.calendar)
    receipt = _receipt(
        vendor, request, view, sts, issued, posted, prepayment, split, balance_before_minor, walk, now_ms
    )
    return _Sale(receipt=receipt, account_id=view.id, meter_id=meter.id, journal_id=posted.journal_ids[0])


def _receipt(
    vendor: VendorCaller,
    request: VendRequest,
    view: AccountView,
    sts: MeterStsRow,
    issued: IssuedToken,
    posted: Posted,
    prepayment: Prepayment,
    split: Split,
    balance_before_minor: int,
    walk: Walk,
    now_ms: int,
) -> Receipt:
    levels = posted.decision.levels
    # What clears arrears was used before: only the credit that is left buys energy.
    credit_minor = min(split.kept_minor, max(0, posted.balance_minor))
    left_minor = prepayment.arrears_minor - split.recovered_minor
    needed_minor = restores_with_minor(levels, posted.balance_minor)
    return Receipt(
        message_id=request.message_id,
        vendor=vendor.name,
        account_number=view.number,
        meter_serial=view.meter.serial,
        drn=sts.drn or "",
        currency=view.terms.tariff.currency,
        amount_minor=request.amount_minor,
        balance_before_minor=balance_before_minor,
        balance_after_minor=posted.balance_minor,
        token=issued.number,
        tid=issued.tid,
        token_amount_e5=issued.amount_e5,
        supply_before=supply_state(view),
        supply_after=levels.desired,
        restores_with_minor=recharge_to_keep(needed_minor, left_minor, prepayment.rules),
        rebate_basis_points=view.terms.tariff.rebate_basis_points,
        energy_wh=energy_bought_wh(
            walk.part,
            before_wh=walk.before_wh,
            used_wh=walk.last.energy_wh - walk.start_wh,
            credit_minor=credit_minor,
        ),
        issued_ms=now_ms,
        earlier_arrears_paid_minor=split.recovered_minor,
        earlier_arrears_left_minor=left_minor,
    )


async def _store_sale(
    conn: AsyncConnection, desk: Desk, vendor: VendorCaller, request: VendRequest, sale: _Sale
) -> Answered:
    new = NewVend(
        vendor_id=vendor.vendor_id,
        message_id=request.message_id,
        request_sha256=request_digest(request),
        account_id=sale.account_id,
        amount_minor=request.amount_minor,
        journal_id=sale.journal_id,
        status=desk.status_vended,
        answer=receipt_to_api(sale.receipt),
    )
    vend_id, stored = await add_vend(conn, new)
    await add_token(
        conn,
        vend_id=vend_id,
        meter_id=sale.meter_id,
        tid=sale.receipt.tid,
        digits=sale.receipt.token.digits,
        subclass=CURRENCY_ELECTRICITY_SUBCLASS,
    )
    return Answered(stored=stored, outcome=VENDED)


async def _store_refusal(
    conn: AsyncConnection, desk: Desk, vendor: VendorCaller, request: VendRequest, declined: Declined
) -> Answered:
    new = NewVend(
        vendor_id=vendor.vendor_id,
        message_id=request.message_id,
        request_sha256=request_digest(request),
        account_id=None,
        amount_minor=request.amount_minor,
        journal_id=None,
        status=desk.status_of(declined.reason),
        answer=declined_to_api(declined),
    )
    _, stored = await add_vend(conn, new)
    return Answered(stored=stored, outcome=declined.reason.value)


async def _one_meter(conn: AsyncConnection, meter: str) -> NamedMeter | Declined:
    """Find the one meter that a serial or DRN means.

    Raises: DrnCheckDigit when there is none and the digits are a DRN with a wrong last one.
    """
    named = await find_meters(conn, meter)
    if len(named) == 1:
        return named[0]
    if named:
        # One meter's serial is another's DRN: to guess here would credit somebody else.
        return Declined(
            reason=DeclineReason.AMBIGUOUS_METER,
            message=f"meter {meter}: expected a name of one meter, got the serial of one and the DRN of another",
        )
    require_drn_check_digit(meter)
    return Declined(reason=DeclineReason.UNKNOWN_METER, message=f"meter {meter}: expected a known serial or DRN")


async def _locked_view(conn: AsyncConnection, desk: Desk, meter: NamedMeter) -> AccountView | Declined:
    """Lock the account that a meter is billed to and look at it; the meter may have been swapped meanwhile."""
    if meter.account_id is None:
        return _not_billed(meter)
    try:
        view = await lock_and_look(conn, meter.account_id, desk.rules)
    except UnknownAccount:
        return _not_billed(meter)
    return view if view.meter.id == meter.id else _not_billed(meter)


async def _prepayment(conn: AsyncConnection, desk: Desk, view: AccountView, now_ms: int) -> Prepayment:
    return await prepayment_of(conn, view.id, desk.rules.calendar.day_of(now_ms))


async def _own_account(conn: AsyncConnection, caller: Caller, number: str) -> int:
    account_id = await find_account(conn, number)
    require_account(caller, account_id)
    if account_id is None:
        raise AccountUnknown(f"account {number}: expected a known number")
    return account_id


def _judge_sts(desk: Desk, meter: NamedMeter, sts: MeterStsRow | None) -> Declined | None:
    """Tell what would refuse a token for a meter now."""
    if sts is None:
        return _without_sts(meter)
    record = key_record(_fields(sts))
    if isinstance(record, Declined):
        return record
    tid = choose_tid(record, sts.last_tid, now_ms=desk.clock())
    return tid if isinstance(tid, Declined) else judge_key(desk.security_module, record)


def _fields(sts: MeterStsRow) -> StsFields:
    return StsFields(**asdict(sts))


def _not_billed(meter: NamedMeter) -> Declined:
    return Declined(
        reason=DeclineReason.METER_NOT_BILLED,
        message=f"meter {meter.serial}: expected one that an account is billed by, got none now",
    )


def _without_sts(meter: NamedMeter) -> Declined:
    return Declined(
        reason=DeclineReason.METER_WITHOUT_STS,
        message=f"meter {meter.serial}: expected an STS key record, got none",
    )
