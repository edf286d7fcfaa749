"""What follows from a gateway's word, in every order the words can come in."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from vending.payments import (
    Attach,
    Capture,
    CaptureState,
    Credit,
    Fact,
    FactKind,
    GiveBack,
    Gone,
    Note,
    Order,
    PaymentState,
    TakeBack,
    judge,
    next_ask_ms,
    state_of_captures,
)

AMOUNT = 50_000
DAY_MS = 86_400_000


@dataclass(slots=True)
class Model:
    """The stored side of one order, moved by the steps alone; a vend is refused where `refuses`."""

    refuses: bool = False
    is_answered: bool = False
    credited_minor: int = 0
    money: dict[str, Capture] = field(default_factory=dict)

    def hear(self, fact: Fact) -> None:
        """Take the step that a word asks for."""
        capture = None if fact.capture is None else self.money.get(fact.capture)
        order = Order(amount_minor=AMOUNT, currency="INR", state=self.state, is_answered=self.is_answered)
        step = judge(fact, None if fact.reference is None else order, capture)
        name, has_order = fact.capture or "", fact.reference is not None or (capture is not None and capture.has_order)
        match step:
            case Credit():
                self.is_answered = True
                self.credited_minor += 0 if self.refuses else AMOUNT
                state = CaptureState.REFUND_DUE if self.refuses else CaptureState.CREDITED
                self.money[name] = Capture(state=state, amount_minor=fact.amount_minor, has_order=True)
            case GiveBack():
                self.money[name] = Capture(
                    state=CaptureState.REFUND_DUE, amount_minor=fact.amount_minor, has_order=True
                )
            case TakeBack() | Gone():
                self.credited_minor -= AMOUNT if isinstance(step, TakeBack) else 0
                self.money[name] = Capture(
                    state=CaptureState.REFUNDED, amount_minor=fact.amount_minor, has_order=has_order
                )
            case Attach():
                assert capture is not None
                self.money[name] = replace(capture, has_order=True)
            case Note():
                pass

    @property
    def state(self) -> PaymentState:
        """Where the order stands."""
        return state_of_captures(each.state for each in self.money.values()) or PaymentState.OPEN

    @property
    def kept_minor(self) -> int:
        """What was received and neither went back nor is due to."""
        return sum(each.amount_minor for each in self.money.values() if each.state is CaptureState.CREDITED)


def paid(capture: str, amount_minor: int = AMOUNT, refunded_minor: int = 0) -> Fact:
    """Money came."""
    return Fact(
        kind=FactKind.PAID, reference="P", capture=capture, amount_minor=amount_minor, currency="INR",
        refunded_minor=refunded_minor,
    )  # fmt: skip


def refunded(capture: str, amount_minor: int = AMOUNT, refunded_minor: int | None = None) -> Fact:
    """Money went back; the gateway does not say of which order."""
    gone_minor = amount_minor if refunded_minor is None else refunded_minor
    return Fact(
        kind=FactKind.REFUNDED, capture=capture, amount_minor=amount_minor, currency="INR", refunded_minor=gone_minor
    )


WORDS = [
    paid("a"), paid("b"), paid("c", AMOUNT - 1), refunded("a"), refunded("c", AMOUNT - 1),
    Fact(kind=FactKind.FAILED, reference="P"), Fact(kind=FactKind.EXPIRED, reference="P"),
]  # fmt: skip


@given(order=st.permutations(WORDS + WORDS), refuses=st.booleans())
def test_money_kept_is_money_credited_whatever_the_order_of_words(order: list[Fact], refuses: bool) -> None:
    """Paid twice, with a wrong amount, refunded, failed, expired, each told twice: one credit at most."""
    model = Model(refuses=refuses)
    for fact in order:
        model.hear(fact)
        assert model.credited_minor == model.kept_minor in (0, AMOUNT)
    assert model.money["a"].state is CaptureState.REFUNDED
    assert model.money["c"].state is CaptureState.REFUNDED
    assert all(each.has_order for each in model.money.values())


def test_refund_before_its_payment_is_told_credits_nothing() -> None:
    """Of two words in the wrong order the sum is the same: nothing was received in the end."""
    for words in itertools.permutations([paid("a"), refunded("a"), paid("a", refunded_minor=AMOUNT)]):
        model = Model()
        for fact in words:
            model.hear(fact)
        assert (model.credited_minor, model.state) == (0, PaymentState.REFUNDED)


def test_word_about_an_unknown_order_or_a_part_of_the_money_moves_nothing() -> None:
    """What only people can settle is noted for them."""
    assert judge(replace(paid("a"), reference=None), None, None) is Note.UNKNOWN_ORDER
    model = Model()
    for fact in (refunded("a", refunded_minor=1), paid("a"), refunded("a", refunded_minor=AMOUNT - 1)):
        model.hear(fact)
    assert model.credited_minor == AMOUNT


def test_gateway_is_asked_until_an_order_is_settled() -> None:
    """Unpaid orders until a day after their end, money to be sent back for ever, credited orders for a month."""
    for state in PaymentState:
        now_ms, asked_ms, asks = 0, [], 0
        while (next_ms := next_ask_ms(state, asks=asks, now_ms=now_ms, expires_ms=1_200_000)) and asks < 100:
            asked_ms.append(next_ms)
            now_ms, asks = next_ms, asks + 1
        if state is PaymentState.REFUNDED:
            assert asked_ms == []
        elif state is PaymentState.REFUND_DUE:
            assert (asks, asked_ms[0]) == (100, 30_000)
        elif state is PaymentState.CREDITED:
            assert [each // DAY_MS for each in asked_ms] == [1, 3, 7, 15, 31]
        else:
            assert asked_ms[:3] == [30_000, 90_000, 210_000]
            assert DAY_MS < asked_ms[-1] < DAY_MS + 2 * 3_600_000
