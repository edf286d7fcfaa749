"""The blocks that a slip is made of, in the order they are printed.

Stage: between the facts of a sale, coupon or batch and the renderers. Texts are in their language already; amounts are
still integers, so that every form prints the same ones. Never: a width, a font, markup.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vending.slips.words import Words


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something to be seen first, in a frame; `text` may be empty."""

    head: str
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The head of the rows that follow."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A label with its value; `value` may be empty."""

    label: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """A label with a sum of money; `strong` for what is added up or paid."""

    label: str
    amount_minor: int
    strong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Digits to be typed, in groups, big; `repr` shows none."""

    label: str
    groups: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A QR code; a printer without one leaves it out."""

    payload: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A line of prose."""

    text: str


Block = Notice | Section | Fact | Amount | Digits | Code | Sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Utility:
    """Who sells the energy: its name, and a line that says where to get help."""

    name: str | None = None
    help_line: str | None = None


NO_UTILITY = Utility()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slip:
    """A whole slip.

    Invariants: `reference` names it among all slips; `currency` is that of every amount.
    """

    words: Words
    title: str
    reference: str
    currency: str
    utility: Utility
    blocks: tuple[Block, ...]
