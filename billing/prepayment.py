"""Prepayment rules as data: what a utility lays down per category of consumer, and the arithmetic that follows.

Stage: beside the ledger, before a recharge, a conversion or an instalment is posted. Takes the text of a rules
document, or amounts in minor units; returns rules, shares, parts and instalments. Never: an account, a database, the
day's date, a float. One document holds a utility's rules from a day on; a category that it does not name has the
default.

Source: PSERC Supply Code 2024 items 9, 17, 23, 26, 27 (R-9.7, R-17iii, R-23, R-26, R-27).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from importlib import resources
from typing import Any

from billing.money import BillingError, round_half_up

SHARE_WHOLE = 10_000
DAYS_A_YEAR = 365
# Three years of instalments: longer is no refund.
INSTALMENTS_MAX = 36
MONTHS_MAX = 60
DEFAULT_CATEGORY = "default"
BUILTIN_RULES = "punjab"

_HEAD = {"id", "title", "source", "currency", "effective_from", "default", "category"}
_TABLES = {
    "recharge": ("minimum_minor", "maximum_minor", "cash_monthly_minor", "cash_two_monthly_minor"),
    "arrears": ("share_basis_points", "floor_minor", "order"),
    "security": ("months", "instalments"),
    "absence": ("deposit_months",),
    "interest": ("on_advance", "rate_basis_points", "source"),
    "issues": ("alone_minor",),
}
# What a document of before there was this rule says by its silence.
_ISSUES_ALONE = {"issues": {"alone_minor": 1_000_000}}
_CREDIT = "emergency_credit_minor"


class RulesError(BillingError):
    """A rules document breaks a rule; the message names document, category and rule."""

    code = "rules_error"


class RecoveryOrder(StrEnum):
    """In which order arrears are recovered."""

    OLDEST_FIRST = "oldest_first"


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryRules:
    """What prepayment means for one category of consumer.

    Units: minor units; shares and rates (a year) in basis points; months and instalments are counts.
    Invariants: 1 <= `recharge_min_minor` <= `recharge_max_minor`; a share of everything has a floor above 0, so that a
    recharge always leaves something; interest on advance has a rate and names its source.
    """

    category: str
    emergency_credit_minor: int
    recharge_min_minor: int
    recharge_max_minor: int
    # The most that is taken in cash from a consumer billed monthly and two-monthly.
    cash_monthly_minor: int
    cash_two_monthly_minor: int
    recovery_share_basis_points: int
    recovery_floor_minor: int
    recovery_order: RecoveryOrder
    security_months: int
    security_instalments: int
    absence_deposit_months: int
    interest_on_advance: bool
    interest_basis_points: int
    interest_source: str
    # The most that one person may issue free or subsidised to an account within a day; above it, two.
    issues_alone_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepaymentRules:
    """A utility's rules from one day on."""

    id: str
    title: str
    source: str
    currency: str
    effective_from: date
    default: CategoryRules
    categories: tuple[CategoryRules, ...]

    def of(self, category: str) -> CategoryRules:
        """Return the rules of a category; the default for one the document does not name."""
        return next((rules for rules in self.categories if rules.category == category), self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A recharge in two parts: what arrears take, and what the consumer keeps."""

    recovered_minor: int
    kept_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A sum that is worked off over time: arrears, a security deposit, an absence deposit.

    Invariants: 0 <= `outstanding_minor` <= `total_minor`.
    """

    id: int
    opened_on: date
    total_minor: int
    outstanding_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DuePart:
    """How much of an amount belongs to one due; above zero."""

    due_id: int
    amount_minor: int


def split_recharge(amount_minor: int, outstanding_minor: int, rules: CategoryRules) -> Split:
    """Divide a recharge between arrears and the consumer.

    Recovered is the category's share of the recharge, but never more than the arrears left, and never so much that
    less than the floor of this recharge stays with the consumer: of a recharge up to the floor nothing is recovered.
    Rounds: the share down to whole minor units, in the consumer's favour.
    """
    assert amount_minor >= 0, f"recharge: expected 0 or more, got {amount_minor}"
    assert outstanding_minor >= 0, f"arrears: expected 0 or more, got {outstanding_minor}"
    share_minor = amount_minor * rules.recovery_share_basis_points // SHARE_WHOLE
    above_floor_minor = max(0, amount_minor - rules.recovery_floor_minor)
    recovered_minor = min(share_minor, above_floor_minor, outstanding_minor)
    return Split(recovered_minor=recovered_minor, kept_minor=amount_minor - recovered_minor)


def recharge_to_keep(needed_minor: int, outstanding_minor: int, rules: CategoryRules) -> int:
    """Return the smallest recharge of which at least `needed_minor` stay with the consumer; 0 for none needed."""
    if needed_minor <= 0:
        return 0
    # What is kept never falls as the recharge rises by one, and recovery never takes more than the arrears.
    low_minor, high_minor = needed_minor, needed_minor + outstanding_minor
    while low_minor < high_minor:
        middle_minor = (low_minor + high_minor) // 2
        if split_recharge(middle_minor, outstanding_minor, rules).kept_minor >= needed_minor:
            high_minor = middle_minor
        else:
            low_minor = middle_minor + 1
    return low_minor


def parts_oldest_first(dues: Iterable[Due], amount_minor: int) -> tuple[DuePart, ...]:
    """Divide what is paid among dues, the oldest first; the sum of the parts is the amount.

    The amount must not be above what is outstanding in all.
    """
    parts = []
    for due in sorted(dues, key=_age):
        part_minor = min(amount_minor, due.outstanding_minor)
        if part_minor:
            parts.append(DuePart(due_id=due.id, amount_minor=part_minor))
        amount_minor -= part_minor
    assert amount_minor == 0, f"dues: expected no more than is outstanding, got {amount_minor} minor over"
    return tuple(parts)


def parts_given_back(dues: Iterable[Due], amount_minor: int) -> tuple[DuePart, ...]:
    """Divide what is to be owed again among dues, the newest first: a payment undone leaves what was before it.

    The amount must not be above what has been paid in all.
    """
    parts = []
    for due in sorted(dues, key=_age, reverse=True):
        part_minor = min(amount_minor, due.total_minor - due.outstanding_minor)
        if part_minor:
            parts.append(DuePart(due_id=due.id, amount_minor=part_minor))
        amount_minor -= part_minor
    assert amount_minor == 0, f"dues: expected no more than was paid, got {amount_minor} minor over"
    return tuple(parts)


def security_instalments(total_minor: int, number: int) -> tuple[int, ...]:
    """Divide a security deposit into instalments that sum to it exactly.

    Rounds: each down to whole minor units; the minor units left over go one each to the first instalments.
    """
    assert total_minor >= 0, f"security: expected 0 or more, got {total_minor}"
    assert number >= 1, f"instalments: expected 1 or more, got {number}"
    each_minor, left = divmod(total_minor, number)
    return tuple(each_minor + (place < left) for place in range(number))


def instalment_day(opened_on: date, number: int) -> date:
    """Return the day an instalment is due, counted from 1: the first of each month after the opening."""
    months = opened_on.year * 12 + opened_on.month - 1 + number
    return date(months // 12, months % 12 + 1, 1)


def absence_ends_at_latest(begins_on: date, rules: CategoryRules) -> date:
    """Return the latest day up to which an absence may be deposited for (R-23).

    Rounds: a day that the last month does not have, to the first of the month after.
    """
    months = begins_on.year * 12 + begins_on.month - 1 + rules.absence_deposit_months
    try:
        return begins_on.replace(year=months // 12, month=months % 12 + 1)
    except ValueError:
        return instalment_day(begins_on, rules.absence_deposit_months + 1)


def security_held_minor(month_minor: int, rules: CategoryRules) -> int:
    """Return the security that stays held, from one month's charges (R-9.7)."""
    return month_minor * rules.security_months


def interest_minor(balance_minor: int, days: int, rate_basis_points: int) -> int:
    """Return simple interest on a balance held for some days.

    Units: minor units; basis points a year, actual days over 365, also in a leap year.
    Rounds: once, half up.
    Source: Supply Code 2024 item 27 (R-27) for the rate; the day count is our convention.
    """
    assert days >= 0, f"interest: expected 0 days or more, got {days}"
    return round_half_up(balance_minor * days * rate_basis_points, DAYS_A_YEAR * SHARE_WHOLE)


def parse_rules(text: str) -> PrepaymentRules:
    """Read a rules document.

    Raises: RulesError naming document, category and the rule that is broken.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesError(f"rules document: expected TOML, {error}") from error
    name = document.get("id")
    if not isinstance(name, str) or not name:
        raise RulesError(f"rules document: id: expected a text, got {name!r}")
    head = _Reader(name, "", document)
    head.require_known(_HEAD)
    effective_from = head.day("effective_from")
    default = head.table("default")
    categories = head.table("category")
    return PrepaymentRules(
        id=name,
        title=head.text("title"),
        source=head.text("source"),
        currency=head.text("currency"),
        effective_from=effective_from,
        default=_category_rules(name, DEFAULT_CATEGORY, default, {}),
        categories=tuple(
            _category_rules(name, category, default, _Reader(name, category, categories).table(category))
            for category in sorted(categories)
        ),
    )


def builtin_rules_text() -> str:
    """Return the text of the rules that ship with the product."""
    file = resources.files("billing").joinpath("rules", f"{BUILTIN_RULES}.toml")
    return file.read_text(encoding="utf-8")


# A TOML table is untyped until each of its fields is read.
_Table = dict[str, Any]


class _Reader:
    """Reads the fields of one table; every refusal names the document, the category and the rule."""

    def __init__(self, document: str, category: str, table: _Table, prefix: str = "") -> None:
        self._where = f"rules {document}" + (f", category {category}" if category else "")
        self._document, self._category, self._prefix = document, category, prefix
        self._table = table

    def require_known(self, fields: Iterable[str]) -> None:
        unknown = sorted(self._table.keys() - set(fields))
        if unknown:
            names = ", ".join(self._prefix + field for field in unknown)
            raise RulesError(f"{self._where}: expected only {', '.join(sorted(fields))}, got {names}")

    def table(self, field: str) -> _Table:
        value = self._table.get(field, {})
        if not isinstance(value, dict):
            raise self._refusal(field, "a table", value)
        return value

    def whole(self, field: str, *, least: int = 0, most: int = 10**15) -> int:
        value = self._table.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._refusal(field, f"a whole number from {least} to {most}", value)
        return value

    def flag(self, field: str) -> bool:
        value = self._table.get(field)
        if not isinstance(value, bool):
            raise self._refusal(field, "true or false", value)
        return value

    def text(self, field: str) -> str:
        value = self._table.get(field)
        if not isinstance(value, str):
            raise self._refusal(field, "a text", value)
        return value

    def day(self, field: str) -> date:
        value = self._table.get(field)
        # A TOML date with a time is read as a datetime, which Python counts among the dates.
        if not isinstance(value, date) or isinstance(value, datetime):
            raise self._refusal(field, "a date", value)
        return value

    def within(self, field: str, default: _Table) -> _Reader:
        """Read a table whose fields the default's table of the same name completes."""
        own = _Reader(self._document, self._category, self.table(field), f"{field}.")
        own.require_known(_TABLES[field])
        base = _Reader(self._document, DEFAULT_CATEGORY, default).table(field)
        return _Reader(self._document, self._category, {**base, **self.table(field)}, f"{field}.")

    def refuse(self, field: str, expected: str, got: object) -> None:
        raise self._refusal(field, expected, got)

    def _refusal(self, field: str, expected: str, got: object) -> RulesError:
        found = "nothing" if got is None else repr(got)
        return RulesError(f"{self._where}: {self._prefix}{field}: expected {expected}, got {found}")


def _category_rules(document: str, category: str, default: _Table, own: _Table) -> CategoryRules:
    """Read a category's table over the default's, rule by rule."""
    reader = _Reader(document, category, {_CREDIT: default.get(_CREDIT), **own} if own else default)
    reader.require_known({_CREDIT, *_TABLES})
    recharge = reader.within("recharge", default)
    arrears = reader.within("arrears", default)
    security = reader.within("security", default)
    interest = reader.within("interest", default)
    rules = CategoryRules(
        category=category,
        emergency_credit_minor=reader.whole(_CREDIT),
        recharge_min_minor=recharge.whole("minimum_minor", least=1),
        recharge_max_minor=recharge.whole("maximum_minor", least=1),
        cash_monthly_minor=recharge.whole("cash_monthly_minor"),
        cash_two_monthly_minor=recharge.whole("cash_two_monthly_minor"),
        recovery_share_basis_points=arrears.whole("share_basis_points", most=SHARE_WHOLE),
        recovery_floor_minor=arrears.whole("floor_minor"),
        recovery_order=_order(arrears),
        security_months=security.whole("months", most=MONTHS_MAX),
        security_instalments=security.whole("instalments", least=1, most=INSTALMENTS_MAX),
        absence_deposit_months=reader.within("absence", default).whole("deposit_months", most=MONTHS_MAX),
        interest_on_advance=interest.flag("on_advance"),
        interest_basis_points=interest.whole("rate_basis_points", most=SHARE_WHOLE),
        interest_source=interest.text("source"),
        issues_alone_minor=reader.within("issues", _ISSUES_ALONE | default).whole("alone_minor"),
    )
    if rules.recharge_max_minor < rules.recharge_min_minor:
        recharge.refuse("maximum_minor", f"at least minimum_minor {rules.recharge_min_minor}", rules.recharge_max_minor)
    if rules.recovery_share_basis_points == SHARE_WHOLE and not rules.recovery_floor_minor:
        arrears.refuse("floor_minor", "above 0 beside a share of everything, a recharge must leave some credit", 0)
    if rules.interest_on_advance and not rules.interest_basis_points:
        interest.refuse("rate_basis_points", "above 0 where on_advance is true", 0)
    if rules.interest_basis_points and not rules.interest_source:
        interest.refuse("source", "where the rate was read", rules.interest_source)
    return rules


def _order(arrears: _Reader) -> RecoveryOrder:
    value = arrears.text("order")
    if value not in set(RecoveryOrder):
        arrears.refuse("order", f"one of {', '.join(RecoveryOrder)}", value)
    return RecoveryOrder(value)


def _age(due: Due) -> tuple[date, int]:
    return due.opened_on, due.id
