"""Estimation documents: TOML text to the order of rules, their limits and what the desk asks a second person for.

Stage: where the utility's own order of rules enters; the form is described in docs/exceptions.md. A document holds from
its local day on and is whole: what it does not name is not used. It is refused as a whole, with line and field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache, lru_cache
from importlib import resources
from types import MappingProxyType

from billing.money import BillingError
from billing.toml_table import Table, read_document
from headend.estimation.rules import RULE_FUNCTIONS
from headend.estimation.values import (
    Declined,
    DeclineReason,
    Estimate,
    EstimationRule,
    Evidence,
    Outcome,
    RuleLimits,
    Span,
)

_HEAD = ("id", "title", "effective_from", "order", "desk", "rule", "profile")
_DAY_S, _HOURS = 86_400, 24
# As far as a meter's store and late readings reach; a crore of rupees; a year of weeks.
LONGEST_S_MAX, MINOR_MAX, WEEKS_MAX, WEIGHT_MAX = 35 * _DAY_S, 10**9, 52, 1_000_000


class EstimationRulesError(BillingError):
    """An estimation document breaks a rule of its form; the message names the line."""

    code = "estimation_rules_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimationRules:
    """The rules of estimation from a local day on.

    Invariants: every rule of `order` has limits. Units: `profiles` hold 24 hourly weights by category.
    """

    id: str
    title: str
    effective_from: date
    order: tuple[EstimationRule, ...]
    limits: Mapping[EstimationRule, RuleLimits]
    profiles: Mapping[str, tuple[int, ...]]
    second_person_above_minor: int
    like_weeks: int

    def profile_of(self, category: str) -> tuple[int, ...] | None:
        """Return the hourly weights of a category, or those of all without their own."""
        return self.profiles.get(category) or self.profiles.get("default")

    def needs_second_person(self, difference_minor: int | None) -> bool:
        """Tell whether a decision that moves so much money, or an unknown amount, needs a second person."""
        return difference_minor is None or abs(difference_minor) > self.second_person_above_minor


def estimates_by(rules: EstimationRules, span: Span, evidence: Evidence) -> list[Outcome]:
    """Return what each rule says of a span, in the order of preference."""
    return [RULE_FUNCTIONS[rule](span, evidence, rules.limits[rule]) for rule in rules.order]


def estimate_by(rules: EstimationRules, span: Span, evidence: Evidence, rule: EstimationRule | None) -> Outcome:
    """Return what a named rule says, or the first in the order of preference that can; refusals are the last one's."""
    if rule is not None and rule not in rules.order:
        detail = f"rule: expected one of {', '.join(rules.order)}, got {rule}"
        return Declined(rule=rule, reason=DeclineReason.NOT_IN_ORDER, detail=detail)
    outcomes: Sequence[Outcome] = estimates_by(rules, span, evidence)
    if rule is not None:
        return outcomes[rules.order.index(rule)]
    return next((outcome for outcome in outcomes if isinstance(outcome, Estimate)), outcomes[-1])


@cache
def builtin_estimation_rules() -> EstimationRules:
    """Return the rules that ship; they hold before the utility's first document."""
    text = (resources.files("headend.estimation") / "documents" / "built-in.toml").read_text(encoding="utf-8")
    return parse_estimation_rules(text)


@lru_cache(maxsize=16)
def parse_estimation_rules(text: str) -> EstimationRules:
    """Read a document.

    Raises: EstimationRulesError naming the line and what is wrong.
    """
    name, top = read_document(text, "estimation rules", EstimationRulesError)
    top.require_known(_HEAD)
    order = tuple(map(EstimationRule, top.names("order", tuple(EstimationRule))))
    if not order:
        top.refuse("order: expected one rule or more, got none", "order")
    tables = top.table("rule", tuple(EstimationRule))
    desk = top.table("desk", ("second_person_above_minor", "like_weeks"))
    return EstimationRules(
        id=name,
        title=top.text("title"),
        effective_from=top.effective_from(),
        order=order,
        limits=MappingProxyType({rule: _limits(tables.table(rule.value), rule) for rule in order}),
        profiles=_profiles(top.table("profile")),
        second_person_above_minor=desk.whole("second_person_above_minor", MINOR_MAX),
        like_weeks=desk.whole("like_weeks", WEEKS_MAX, least=1),
    )


def _limits(table: Table, rule: EstimationRule) -> RuleLimits:
    likes, differs = rule is EstimationRule.AVERAGE_OF_LIKE_DAYS, rule is EstimationRule.SCALAR_FROM_INTERVALS
    own = (("least_like_days",) if likes else ()) + (("differs_wh_max",) if differs else ())
    table.require_known(("longest_s", *own))
    return RuleLimits(
        longest_s=table.whole("longest_s", LONGEST_S_MAX, least=60),
        least_like_days=table.whole("least_like_days", 2 * WEEKS_MAX, least=1) if likes else 0,
        differs_wh_max=table.whole("differs_wh_max", WEIGHT_MAX) if differs else 0,
    )


def _profiles(table: Table) -> Mapping[str, tuple[int, ...]]:
    found = {}
    for category, weights in table.fields.items():
        good = isinstance(weights, list) and len(weights) == _HOURS and all(_is_weight(each) for each in weights)
        if not good or not any(weights):
            table.refuse(f"{category}: expected {_HOURS} hourly weights from 0 to {WEIGHT_MAX}, one above 0", category)
        found[category] = tuple(weights)
    return MappingProxyType(found)


def _is_weight(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= WEIGHT_MAX
