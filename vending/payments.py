"""An online recharge before its writes: what a gateway says of an order, and what follows from it.

Stage: between a gateway's words, webhooks and answers alike, and the transaction that credits or takes back. Words come
late, twice, in any order or not at all; every one is judged against what is stored, so that money received less money
sent back is always what was credited less what was taken back. Never: a database, a clock, a gateway.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

# Asked again after so long, doubling: a payer takes a minute or two, and a gateway that is away is not hurried.
_FIRST_ASK_MS = 30_000
_ASK_MS_MAX = 3_600_000
# A bank may confirm a payment that was begun in time so long after the order has ended.
_LATE_MS = 86_400_000
# What was credited is asked about after 1, 2, 4, 8 and 16 days: a refund at the gateway's own desk whose word was lost.
_CREDITED_ASKS = 5
_DAY_MS = 86_400_000
# 30 s doubled so often is above the hour; keeps the power small.
_DOUBLINGS_MAX = 7


class PaymentState(StrEnum):
    """Where an order stands. The first four are before any money; `failed` and `expired` may still be paid late."""

    CREATED = "created"
    OPEN = "open"
    FAILED = "failed"
    EXPIRED = "expired"
    CREDITED = "credited"
    REFUND_DUE = "refund_due"
    REFUNDED = "refunded"


UNPAID = frozenset({PaymentState.CREATED, PaymentState.OPEN, PaymentState.FAILED, PaymentState.EXPIRED})


class CaptureState(StrEnum):
    """What became of money that a gateway received."""

    CREDITED = "credited"
    REFUND_DUE = "refund_due"
    REFUNDED = "refunded"


class FactKind(StrEnum):
    """What a gateway can say."""

    PAID = "paid"
    FAILED = "failed"
    EXPIRED = "expired"
    REFUNDED = "refunded"
    OTHER = "other"


class Why(StrEnum):
    """Why money goes back."""

    AMOUNT_MISMATCH = "amount_mismatch"
    PAID_TWICE = "paid_twice"
    VEND_REFUSED = "vend_refused"
    ASKED = "asked"
    AT_GATEWAY = "at_gateway"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What a gateway says: of an order by our own reference, of money by the gateway's id of it.

    Units: minor units; `refunded_minor` is what has gone back of this money so far.
    Invariants: `capture` and `amount_minor` are set for paid and refunded.
    """

    kind: FactKind
    reference: str | None = None
    capture: str | None = None
    amount_minor: int = 0
    currency: str = ""
    refunded_minor: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order as stored; `is_answered` once a vend was made or refused under its id, which is for ever."""

    amount_minor: int
    currency: str
    state: PaymentState
    is_answered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """Money as stored; without an order while only its refund is known."""

    state: CaptureState
    amount_minor: int
    has_order: bool


class Note(StrEnum):
    """What a word came to where no money moves; the value is stored."""

    DUPLICATE = "duplicate"
    IGNORED = "ignored"
    UNKNOWN_ORDER = "unknown_order"
    # Sent back in part, at the gateway's own desk: for people to put right.
    PARTIAL_REFUND = "partial_refund"
    FAILED = "failed"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Sell the recharge that was paid for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBack:
    """Keep the money apart and send it back."""

    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeBack:
    """The money has gone back: so must the credit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """The money has gone back, and nothing was credited for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Money whose refund came first: its order is known now."""


Step = Note | Credit | GiveBack | TakeBack | Gone | Attach


def judge(fact: Fact, order: Order | None, capture: Capture | None) -> Step:
    """Return what follows from a gateway's word, given what is stored; the same word again changes nothing."""
    match fact.kind:
        case FactKind.OTHER:
            return Note.IGNORED
        case FactKind.FAILED | FactKind.EXPIRED:
            return _judge_unpaid(fact.kind, order)
        case FactKind.PAID:
            return _judge_paid(fact, order, capture)
        case FactKind.REFUNDED:
            return _judge_refunded(fact, capture)
        case _:
            assert_never(fact.kind)


def state_of_captures(captures: Iterable[CaptureState]) -> PaymentState | None:
    """Return where an order stands by the money received for it; None without any."""
    states = set(captures)
    for state in (CaptureState.REFUND_DUE, CaptureState.CREDITED, CaptureState.REFUNDED):
        if state in states:
            return PaymentState(state.value)
    return None


def next_ask_ms(state: PaymentState, *, asks: int, now_ms: int, expires_ms: int) -> int | None:
    """Return when the gateway is asked about an order again, `asks` times after its last change; None for never.

    Units: UTC milliseconds.
    """
    wait_ms = min(_FIRST_ASK_MS << min(asks, _DOUBLINGS_MAX), _ASK_MS_MAX)
    match state:
        case PaymentState.CREATED | PaymentState.OPEN | PaymentState.FAILED | PaymentState.EXPIRED:
            return now_ms + wait_ms if now_ms < expires_ms + _LATE_MS else None
        case PaymentState.REFUND_DUE:
            return now_ms + wait_ms
        case PaymentState.CREDITED:
            return now_ms + (_DAY_MS << asks) if asks < _CREDITED_ASKS else None
        case PaymentState.REFUNDED:
            return None
        case _:
            assert_never(state)


def _judge_unpaid(kind: FactKind, order: Order | None) -> Step:
    if order is None:
        return Note.UNKNOWN_ORDER
    if order.state not in UNPAID or order.state is PaymentState.EXPIRED:
        return Note.IGNORED
    return Note.FAILED if kind is FactKind.FAILED else Note.EXPIRED


def _judge_paid(fact: Fact, order: Order | None, capture: Capture | None) -> Step:
    if order is None:
        return Note.UNKNOWN_ORDER
    if capture is not None:
        return Note.DUPLICATE if capture.has_order else Attach()
    if fact.refunded_minor >= fact.amount_minor:
        return Gone()
    if (fact.amount_minor, fact.currency) != (order.amount_minor, order.currency):
        return GiveBack(why=Why.AMOUNT_MISMATCH)
    # An order is credited once, also when it was paid twice and the first money has gone back since.
    return GiveBack(why=Why.PAID_TWICE) if order.is_answered else Credit()


def _judge_refunded(fact: Fact, capture: Capture | None) -> Step:
    amount_minor = fact.amount_minor if capture is None else capture.amount_minor
    if fact.refunded_minor < amount_minor:
        return Note.PARTIAL_REFUND
    if capture is None or capture.state is CaptureState.REFUND_DUE:
        return Gone()
    return TakeBack() if capture.state is CaptureState.CREDITED else Note.DUPLICATE
