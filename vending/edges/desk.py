"""The vending desk's own parts: what every use case needs, who sells, what was answered, and the look-ups they share.

Stage: beside the use cases of `vending.edges.store`, `advice`, `acts` and `meter_desk`. Never: a write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from psycopg import AsyncConnection

from db.accounts import AccountView
from db.api_access import DayLimit
from db.orders import PostingRules
from db.prepayment import Prepayment, prepayment_of
from db.vends import NamedMeter, StoredAnswer, find_meters
from vending.edges.audit_trail import Act
from vending.security import SecurityModule
from vending.vends import Declined, DeclineReason, Funding, VendLimits, VendState, require_drn_check_digit


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What every use case needs besides its request.

    Units: `clock` gives UTC milliseconds; it is read once per use case, after the locks it waits for.
    """

    rules: PostingRules
    limits: VendLimits
    security_module: SecurityModule
    clock: Callable[[], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seller:
    """Who sells, whose money it is, and at which terminal by whose hand.

    Invariants: message ids are unique per `vendor_id`, whatever the funding, terminal or operator.
    """

    vendor_id: int
    name: str
    active: bool
    funding: Funding = Funding.VENDOR
    terminal: str | None = None
    operator: str | None = None
    # What the vendor may sell a day, and the request's line of the audit trail, written with the answer.
    day_limits: tuple[DayLimit, ...] = ()
    act: Act | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer that is stored; `outcome` is vended, repeated or the reason of a refusal.

    Invariants: `token_id` is set exactly where a token was made, held back or not.
    """

    stored: StoredAnswer
    outcome: str
    vend_id: int
    state: VendState
    token_id: int | None
    journal_id: int | None = None
    amount_minor: int = 0


async def one_meter(conn: AsyncConnection, meter: str) -> NamedMeter | Declined:
    """Find the one meter that a serial or DRN means.

    Raises: DrnCheckDigit when there is none and the digits are a DRN with a wrong last one.
    """
    return the_one(await find_meters(conn, meter), meter)


def the_one(named: list[NamedMeter], meter: str) -> NamedMeter | Declined:
    """Return the one meter of those that a name may mean. Raises: DrnCheckDigit, as `one_meter`."""
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


async def prepayment_at(conn: AsyncConnection, desk: Desk, view: AccountView, now_ms: int) -> Prepayment:
    """Return the rules that hold for an account on the local day of an instant."""
    return await prepayment_of(conn, view.id, desk.rules.calendar.day_of(now_ms))


def not_billed(meter: NamedMeter) -> Declined:
    """Refuse a meter that no account is billed by."""
    return Declined(
        reason=DeclineReason.METER_NOT_BILLED,
        message=f"meter {meter.serial}: expected one that an account is billed by, got none now",
    )


def without_record(meter: NamedMeter) -> Declined:
    """Refuse a meter that has no record to make tokens by."""
    return Declined(
        reason=DeclineReason.METER_WITHOUT_STS,
        message=f"meter {meter.serial}: expected an STS key record, got none",
    )
