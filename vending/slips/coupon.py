"""The slip of a recharge coupon: what is sold to be redeemed later, for a meter of any make.

Stage: between a coupon that was sold and the renderers. The PIN is known to the slip only; nothing stores it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date

from billing.calendar import LocalCalendar
from billing.notices.formats import format_day
from vending.slips.blocks import Amount, Block, Code, Digits, Fact, Section, Sentence, Slip, Utility
from vending.slips.words import Words

_GROUP_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CouponFacts:
    """A coupon as its buyer gets it.

    Invariants: `valid_through` is the last local day on which it can be redeemed, None for one that is not sold yet;
    `link` opens the page that redeems it, None without such a page.
    """

    serial: str
    pin: str = field(repr=False)
    amount_minor: int
    currency: str
    issued_ms: int
    valid_through: date | None
    vendor: str | None = None
    terminal: str | None = None
    link: str | None = field(default=None, repr=False)


def coupon_slip(facts: CouponFacts, *, words: Words, utility: Utility, calendar: LocalCalendar) -> Slip:
    """Return the slip of a coupon."""
    return Slip(
        words=words,
        title=words.titles["coupon"],
        reference=facts.serial,
        currency=facts.currency,
        utility=utility,
        blocks=tuple(_blocks(facts, words, calendar)),
    )


def _blocks(facts: CouponFacts, words: Words, calendar: LocalCalendar) -> Iterator[Block]:
    says = words.says
    pin = facts.pin
    yield Amount(label=says["coupon_amount"], amount_minor=facts.amount_minor, strong=True)
    yield Fact(label=says["coupon_serial"], value=facts.serial)
    yield Digits(label=says["coupon_pin"], groups=tuple(pin[at : at + _GROUP_DIGITS] for at in _starts(pin)))
    yield Code(payload=facts.link or pin)
    if facts.link is not None:
        yield Fact(label=says["coupon_link"], value=facts.link)
    yield Section(text="")
    yield Fact(label=says["coupon_issued"], value=words.instant(facts.issued_ms, calendar))
    if facts.valid_through is None:
        yield Sentence(text=says["coupon_from_sale"])
    else:
        yield Fact(label=says["coupon_valid"], value=format_day(facts.valid_through, None))
    for name, value in (("vendor", facts.vendor), ("terminal", facts.terminal)):
        if value:
            yield Fact(label=says[name], value=value)
    yield Sentence(text=says["coupon_how"])
    yield Sentence(text=says["coupon_lapsed"])


def _starts(pin: str) -> range:
    return range(0, len(pin), _GROUP_DIGITS)
