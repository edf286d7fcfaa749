"""The desk where a consumer says when to be warned: one transaction for all wishes.

Stage: between the HTTP route and the database, as `vending.edges.store`. Never: HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from psycopg import AsyncConnection

from billing.forecast import Threshold, ThresholdKind, make_threshold, make_thresholds
from billing.money import parse_amount
from db.consumer_facts import ConsumerAccount, ConsumerWishes, read_wishes
from db.errors import UnknownAccount
from db.posting import lock_and_look
from db.thresholds import set_thresholds
from vending.edges.consumer_models import AmountWish, DaysWish, PercentWish
from vending.edges.errors import AccountUnknown
from vending.edges.store import Desk


@dataclass(frozen=True, slots=True, kw_only=True)
class WishesSet:
    """What a consumer is warned by now; `changed` is false where all of it was so before."""

    found: ConsumerWishes
    changed: bool


def read_thresholds(body: Sequence[AmountWish | DaysWish | PercentWish]) -> tuple[Threshold, ...]:
    """Read the wishes of a request.

    Raises: BadAmount; BadThreshold for one out of range, too many, or two that are equal.
    """
    return make_thresholds([_threshold(wish) for wish in body])


async def put_thresholds(
    conn: AsyncConnection, desk: Desk, account: ConsumerAccount, wanted: Sequence[Threshold]
) -> WishesSet:
    """Warn the consumer of an account by these and no others; the same again changes nothing.

    Raises: AccountUnknown for an account without a billing meter.
    """
    try:
        async with conn.transaction():
            view = await lock_and_look(conn, account.id, desk.rules)
            posted = await set_thresholds(conn, view, wanted, rules=desk.rules, now_ms=desk.clock())
        found = await read_wishes(conn, account.id, desk.rules.calendar)
    except UnknownAccount:
        raise AccountUnknown(f"account {account.number}: expected one with a billing meter, got none") from None
    return WishesSet(found=found, changed=posted is not None)


def _threshold(wish: AmountWish | DaysWish | PercentWish) -> Threshold:
    match wish:
        case AmountWish():
            return make_threshold(ThresholdKind.AMOUNT, parse_amount(wish.amount))
        case DaysWish():
            return make_threshold(ThresholdKind.DAYS, wish.days)
        case PercentWish():
            return make_threshold(ThresholdKind.PERCENT, wish.percent)
        case _:
            assert_never(wish)
