"""Minor units: the only form of money in the product.

Stage: below everything that rates, posts or prints. Takes and returns integers (paise for rupees) and their
printed form; never a float, never a currency conversion.
"""

from __future__ import annotations

import re

MINOR_PER_MAJOR = 100

_AMOUNT = re.compile(r"(\d{1,12})(?:\.(\d{2}))?", re.ASCII)


class BillingError(Exception):
    """Base of what billing refuses; `code` is stable."""

    code = "billing_error"


class BadAmount(BillingError):
    """A text that is no amount of money."""

    code = "bad_amount"


def round_half_up(numerator: int, denominator: int) -> int:
    """Divide two non-negative integers.

    Rounds: to the nearest integer, a half up.
    """
    assert numerator >= 0, f"round_half_up: expected a numerator of 0 or more, got {numerator}"
    assert denominator > 0, f"round_half_up: expected a denominator above 0, got {denominator}"
    return (2 * numerator + denominator) // (2 * denominator)


def parse_amount(text: str) -> int:
    """Read a printed amount such as `500` or `500.25` into minor units.

    Raises: BadAmount for signs, thousands marks, or one or three decimals.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise BadAmount(f"amount: expected digits with none or two decimals, got {text[:40]!r}")
    return int(match[1]) * MINOR_PER_MAJOR + int(match[2] or 0)


def format_minor(amount_minor: int) -> str:
    """Print minor units with two decimals and no currency sign, e.g. `-1234.05`."""
    sign = "-" if amount_minor < 0 else ""
    major, minor = divmod(abs(amount_minor), MINOR_PER_MAJOR)
    return f"{sign}{major}.{minor:02d}"
