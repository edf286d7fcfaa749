"""Prepayment rules: what a document may say, and the shares, parts and instalments that follow."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.prepayment import (
    SHARE_WHOLE,
    CategoryRules,
    Due,
    DuePart,
    RecoveryOrder,
    RulesError,
    Split,
    absence_ends_at_latest,
    builtin_rules_text,
    instalment_day,
    interest_minor,
    parse_rules,
    parts_given_back,
    parts_oldest_first,
    recharge_to_keep,
    security_held_minor,
    security_instalments,
    split_recharge,
)

RULES = parse_rules(builtin_rules_text()).default
AMOUNTS = st.integers(min_value=0, max_value=10**9)
# A share of everything needs a floor; the rules' own validation keeps to it.
TERMS = st.builds(
    lambda share, floor: replace(
        RULES, recovery_share_basis_points=share, recovery_floor_minor=floor + (share == SHARE_WHOLE)
    ),
    st.integers(min_value=0, max_value=SHARE_WHOLE),
    st.integers(min_value=0, max_value=10**6),
)


def changed(old: str, new: str) -> str:
    """Return the shipped document with one place changed."""
    document = builtin_rules_text()
    assert old in document
    return document.replace(old, new, 1)


def dues_of(*sums: tuple[int, int]) -> list[Due]:
    """Make dues of (total, outstanding), each a day younger than the one before."""
    return [
        Due(id=number, opened_on=date(2026, 1, number), total_minor=total, outstanding_minor=outstanding)
        for number, (total, outstanding) in enumerate(sums, start=1)
    ]


def test_builtin_rules_hold_what_the_supply_code_says() -> None:
    """No emergency credit, one month's security, cash limits of Rs 5,000 and 10,000, no interest on a balance."""
    rules = parse_rules(builtin_rules_text())
    assert (rules.id, rules.effective_from) == ("punjab", date(2024, 11, 14))
    assert "illustrative" in rules.title
    assert rules.default.emergency_credit_minor == 0
    assert (rules.default.cash_monthly_minor, rules.default.cash_two_monthly_minor) == (500_000, 1_000_000)
    assert (rules.default.security_months, rules.default.security_instalments) == (1, 6)
    assert rules.default.interest_on_advance is False
    assert rules.default.recovery_order is RecoveryOrder.OLDEST_FIRST


def test_category_has_its_own_rules_over_the_default_and_an_unnamed_one_the_default() -> None:
    """Government connections recharge Rs 1,000 at least and share everything else."""
    rules = parse_rules(builtin_rules_text())
    government = rules.of("GOVT")
    assert government.recharge_min_minor == 100_000
    assert replace(government, category="default", recharge_min_minor=1_000) == rules.default
    assert rules.of("DS") is rules.default


def test_rules_are_immutable() -> None:
    """A rule that was read cannot be changed."""
    with pytest.raises(FrozenInstanceError):
        RULES.recharge_min_minor = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id = "punjab"', 'id = ""', "rules document: id: expected a text, got ''"),
        ("effective_from = 2024-11-14", "", "rules punjab: effective_from: expected a date, got nothing"),
        ("effective_from = 2024-11-14", "effective_from = 2024-11-14T00:00:00", "expected a date"),
        ('currency = "INR"', "currency = 1", "rules punjab: currency: expected a text, got 1"),
        ("emergency_credit_minor = 0", "", "category default: emergency_credit_minor: expected a whole number"),
        ("emergency_credit_minor = 0", "emergency_credit_minor = 0.5", "expected a whole number from 0 to"),
        ("emergency_credit_minor = 0", "emergency_credit_minor = true", "expected a whole number from 0 to"),
        ("emergency_credit_minor = 0", "free = 1", "category default: expected only absence, arrears"),
        ("minimum_minor = 1_000\n", "", "category default: recharge.minimum_minor: expected a whole number from 1"),
        ("minimum_minor = 100_000", "minimum_minor = 0", "category GOVT: recharge.minimum_minor: expected a whole"),
        (
            "minimum_minor = 100_000",
            "minimum_minor = 6_000_000",
            "category GOVT: recharge.maximum_minor: expected at least minimum_minor 6000000, got 5000000",
        ),
        ("minimum_minor = 100_000", "least = 1", "category GOVT: expected only cash_monthly_minor"),
        ("[category.GOVT.recharge]\nminimum_minor = 100_000", "[category]\nGOVT = 1", "GOVT: expected a table, got 1"),
        (
            "share_basis_points = 2_500\nfloor_minor = 5_000",
            "share_basis_points = 10_000\nfloor_minor = 0",
            "category default: arrears.floor_minor: expected above 0 beside a share of everything",
        ),
        ("share_basis_points = 2_500", "share_basis_points = 10_001", "arrears.share_basis_points: expected a whole"),
        ('order = "oldest_first"', 'order = "any"', "arrears.order: expected one of oldest_first, got 'any'"),
        ("months = 1\n", "months = -1\n", "security.months: expected a whole number from 0 to 60, got -1"),
        ("instalments = 6", "instalments = 0", "security.instalments: expected a whole number from 1 to 36, got 0"),
        ("on_advance = false", "on_advance = 1", "interest.on_advance: expected true or false, got 1"),
        ("on_advance = false", "on_advance = true", "interest.rate_basis_points: expected above 0 where on_advance"),
        ("rate_basis_points = 0", "rate_basis_points = 675", "interest.source: expected where the rate was read"),
        ("[default.interest]", "[default.interests]", "category default: expected only absence"),
        ("[default]", "[default", "rules document: expected TOML"),
    ],
)
def test_broken_document_is_refused_by_document_category_and_rule(old: str, new: str, message: str) -> None:
    """The message says where to look, what was expected and what was found."""
    with pytest.raises(RulesError, match=re.escape(message)):
        parse_rules(changed(old, new))


@pytest.mark.parametrize(
    ("amount_minor", "outstanding_minor", "recovered_minor"),
    [
        (100_000, 1_000_000, 25_000),
        (100_000, 10_000, 10_000),
        (100_000, 0, 0),
        # Below and at the floor nothing is recovered; just above it no more than is above.
        (4_999, 1_000_000, 0),
        (5_000, 1_000_000, 0),
        (5_001, 1_000_000, 1),
        (6_000, 1_000_000, 1_000),
        (10_000, 1_000_000, 2_500),
        # A quarter of 100.03 is 25.0075.
        (10_003, 1_000_000, 2_500),
        (0, 1_000_000, 0),
    ],
)
def test_recharge_is_split_by_share_floor_and_what_is_left(
    amount_minor: int, outstanding_minor: int, recovered_minor: int
) -> None:
    """A quarter, of what is above Rs 50, while there are arrears; the share is rounded down."""
    assert split_recharge(amount_minor, outstanding_minor, RULES) == Split(
        recovered_minor=recovered_minor, kept_minor=amount_minor - recovered_minor
    )


@given(amount_minor=AMOUNTS, outstanding_minor=AMOUNTS, rules=TERMS)
def test_split_parts_sum_and_keep_share_floor_and_arrears(
    amount_minor: int, outstanding_minor: int, rules: CategoryRules
) -> None:
    """Nothing is lost, never more than the share or the arrears is taken, the floor stays, something is left."""
    split = split_recharge(amount_minor, outstanding_minor, rules)
    assert split.recovered_minor + split.kept_minor == amount_minor
    assert 0 <= split.recovered_minor <= outstanding_minor
    assert split.recovered_minor * SHARE_WHOLE <= amount_minor * rules.recovery_share_basis_points
    assert split.kept_minor >= min(amount_minor, rules.recovery_floor_minor)
    assert split.kept_minor > 0 or amount_minor == 0


@given(needed_minor=AMOUNTS, outstanding_minor=AMOUNTS, rules=TERMS)
def test_recharge_to_keep_is_the_smallest_that_leaves_enough(
    needed_minor: int, outstanding_minor: int, rules: CategoryRules
) -> None:
    """It leaves what is needed, and one minor unit less would not."""
    amount_minor = recharge_to_keep(needed_minor, outstanding_minor, rules)
    assert split_recharge(amount_minor, outstanding_minor, rules).kept_minor >= needed_minor
    if amount_minor:
        assert split_recharge(amount_minor - 1, outstanding_minor, rules).kept_minor < needed_minor
    assert recharge_to_keep(-needed_minor, outstanding_minor, rules) == 0


def test_payment_goes_to_the_oldest_dues_first() -> None:
    """By the day they were opened, then by id; what is settled already gets nothing."""
    dues = dues_of((100, 0), (200, 150), (300, 300))
    assert parts_oldest_first(reversed(dues), 151) == (
        DuePart(due_id=2, amount_minor=150),
        DuePart(due_id=3, amount_minor=1),
    )
    assert parts_oldest_first(dues, 0) == ()


@given(
    sums=st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**6)), max_size=6),
    data=st.data(),
)
def test_payment_undone_leaves_every_due_as_it_was(sums: list[tuple[int, int]], data: st.DataObject) -> None:
    """What was paid oldest first and is given back newest first restores each due."""
    # As recovery leaves them: the oldest are settled, one at most is paid in part.
    dues = dues_of(*((total, total) for total, _ in sums))
    paid_minor = data.draw(st.integers(0, sum(due.total_minor for due in dues)))
    dues = _applied(dues, {part.due_id: -part.amount_minor for part in parts_oldest_first(dues, paid_minor)})
    more_minor = data.draw(st.integers(0, sum(due.outstanding_minor for due in dues)))
    parts = parts_oldest_first(dues, more_minor)
    assert sum(part.amount_minor for part in parts) == more_minor
    after = _applied(dues, {part.due_id: -part.amount_minor for part in parts})
    assert all(0 <= due.outstanding_minor <= due.total_minor for due in after)
    undone = parts_given_back(after, more_minor)
    assert _applied(after, {part.due_id: part.amount_minor for part in undone}) == dues


def _applied(dues: list[Due], changes: dict[int, int]) -> list[Due]:
    return [replace(due, outstanding_minor=due.outstanding_minor + changes.get(due.id, 0)) for due in dues]


@given(total_minor=AMOUNTS, number=st.integers(min_value=1, max_value=36))
def test_security_instalments_sum_exactly_and_differ_by_one_at_most(total_minor: int, number: int) -> None:
    """Nothing of the deposit is lost to rounding, and what is left over comes first."""
    parts = security_instalments(total_minor, number)
    assert (len(parts), sum(parts)) == (number, total_minor)
    assert max(parts) - min(parts) <= 1
    assert list(parts) == sorted(parts, reverse=True)


@pytest.mark.parametrize(
    ("opened_on", "number", "day"),
    [
        (date(2026, 11, 21), 1, date(2026, 12, 1)),
        (date(2026, 11, 1), 2, date(2027, 1, 1)),
        (date(2026, 12, 31), 13, date(2028, 1, 1)),
    ],
)
def test_instalments_are_due_on_the_first_of_the_months_after(opened_on: date, number: int, day: date) -> None:
    """The first is due on the first of the next month."""
    assert instalment_day(opened_on, number) == day


@pytest.mark.parametrize(
    ("begins_on", "months", "day"),
    [
        (date(2026, 11, 21), 12, date(2027, 11, 21)),
        (date(2026, 1, 31), 1, date(2026, 3, 1)),
        (date(2026, 12, 31), 2, date(2027, 3, 1)),
        (date(2026, 5, 5), 0, date(2026, 5, 5)),
    ],
)
def test_absence_may_last_the_months_that_a_deposit_covers(begins_on: date, months: int, day: date) -> None:
    """A day that the last month does not have is the first of the next."""
    assert absence_ends_at_latest(begins_on, replace(RULES, absence_deposit_months=months)) == day


def test_security_held_is_the_categorys_months_of_charges() -> None:
    """One month for a prepaid consumer (R-9.7)."""
    assert security_held_minor(123_456, RULES) == 123_456


@pytest.mark.parametrize(
    ("balance_minor", "days", "rate_basis_points", "minor"),
    [
        (10_000_000, 365, 675, 675_000),
        # 1,000.00 at 6.75 % for a day is 18.49 paise; 0.5 paise rounds up.
        (100_000, 1, 675, 18),
        (36_500, 1, 50, 1),
        (36_499, 1, 50, 0),
        (36_500, 0, 50, 0),
    ],
)
def test_interest_is_actual_days_over_365_rounded_once_half_up(
    balance_minor: int, days: int, rate_basis_points: int, minor: int
) -> None:
    """Simple interest, in whole paise."""
    assert interest_minor(balance_minor, days, rate_basis_points) == minor
