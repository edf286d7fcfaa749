"""Minor units: rounding, reading and printing."""

from __future__ import annotations

import pytest

from billing.money import BadAmount, BillingError, format_minor, parse_amount, round_half_up


@pytest.mark.parametrize(
    ("numerator", "denominator", "rounded"),
    [(0, 7, 0), (1, 3, 0), (2, 3, 1), (1, 2, 1), (3, 2, 2), (5, 2, 3), (499, 1000, 0), (500, 1000, 1), (7, 1, 7)],
)
def test_round_half_up_at_and_around_a_half_rounds_the_half_up(numerator: int, denominator: int, rounded: int) -> None:
    """A half goes up, also to an odd number; less goes down."""
    assert round_half_up(numerator, denominator) == rounded


def test_round_half_up_of_more_digits_than_a_float_holds_is_exact() -> None:
    """A half paisa decides, however large the amount."""
    assert round_half_up(2 * 10**30 + 1, 2) == 10**30 + 1
    assert round_half_up(2 * 10**30, 2) == 10**30


@pytest.mark.parametrize(("numerator", "denominator"), [(-1, 2), (1, 0), (1, -2)])
def test_round_half_up_outside_its_domain_is_our_bug(numerator: int, denominator: int) -> None:
    """Negative amounts and empty denominators never reach the rounding."""
    with pytest.raises(AssertionError, match="round_half_up: expected"):
        round_half_up(numerator, denominator)


@pytest.mark.parametrize(
    ("text", "minor"),
    [
        ("0", 0),
        ("0.00", 0),
        ("0.05", 5),
        ("500", 50_000),
        ("500.25", 50_025),
        ("007", 700),
        ("9" * 12, 99_999_999_999_900),
    ],
)
def test_parse_amount_with_none_or_two_decimals_is_minor_units(text: str, minor: int) -> None:
    """A printed amount is read without any rounding."""
    assert parse_amount(text) == minor


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "+5",
        "-5",
        "1,000",
        "5.2",
        "5.250",
        "5.",
        ".50",
        "1e3",
        "5\n",
        " 5",
        "5.2x",
        "₹5",
        "0x10",
        "1_000",
        "1" * 13,
    ],
)
def test_parse_amount_of_anything_else_is_refused(text: str) -> None:
    """Signs, marks, one or three decimals and spaces are refused, never guessed at."""
    with pytest.raises(BadAmount, match="expected digits"):
        parse_amount(text)


@pytest.mark.parametrize("text", ["५००", "٥٠٠", "５００"])
def test_parse_amount_of_digits_outside_ascii_is_refused(text: str) -> None:
    """An amount is what other systems will read back: ASCII digits only."""
    with pytest.raises(BadAmount):
        parse_amount(text)


def test_bad_amount_carries_a_stable_code_and_a_short_message() -> None:
    """The interface answers with the code; a long input is not echoed whole."""
    with pytest.raises(BillingError) as caught:
        parse_amount("x" * 1000)
    assert caught.value.code == "bad_amount"
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("minor", "text"),
    [(0, "0.00"), (5, "0.05"), (-5, "-0.05"), (100, "1.00"), (-123_405, "-1234.05"), (-100, "-1.00"), (99, "0.99")],
)
def test_format_minor_prints_two_decimals_and_a_leading_sign(minor: int, text: str) -> None:
    """A debt below one rupee keeps its sign."""
    assert format_minor(minor) == text


def test_format_minor_of_a_parsed_amount_gives_the_amount_back() -> None:
    """What is printed can be read."""
    for minor in (0, 1, 99, 100, 50_025, 99_999_999_999_999):
        assert parse_amount(format_minor(minor)) == minor
