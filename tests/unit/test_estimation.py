"""Rules of estimation: each spreads exactly the energy of the span, or declines by name; the document orders them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headend.estimation.document import (
    EstimationRulesError,
    builtin_estimation_rules,
    estimate_by,
    estimates_by,
    parse_estimation_rules,
)
from headend.estimation.rules import RULE_FUNCTIONS, spread
from headend.estimation.values import Declined, DeclineReason, Estimate, EstimationRule, Evidence, RuleLimits, Span

HALF_HOUR_MS = 1_800_000
WIDE = RuleLimits(longest_s=86_400, least_like_days=2, differs_wh_max=5)


def span(total_wh: int, number: int = 4) -> Span:
    return Span(
        edges_ms=tuple(HALF_HOUR_MS * each for each in range(number + 1)), from_wh=1_000, to_wh=1_000 + total_wh
    )


# Rule, evidence, and what comes of 100 Wh over four half-hours.
WORKED: dict[str, tuple[EstimationRule, dict[str, Any], tuple[int, ...]]] = {
    "evenly": (EstimationRule.INTERPOLATION, {}, (25, 25, 25, 25)),
    "prorated": (EstimationRule.PRORATE, {}, (25, 25, 25, 25)),
    "like_days": (
        EstimationRule.AVERAGE_OF_LIKE_DAYS,
        {"like_days_wh": [(10, 0, 30, 10), (10, 20, 10, 10)]},
        (20, 20, 40, 20),
    ),
    "proxy": (EstimationRule.PROXY_DAY, {"proxy_day_wh": (1, 1, 2, 0)}, (25, 25, 50, 0)),
    "profile": (EstimationRule.PROFILE, {"profile_weights": (0, 1, 2, 1)}, (0, 25, 50, 25)),
    "counted": (EstimationRule.SCALAR_FROM_INTERVALS, {"counted_wh": (10, 20, 30, 42)}, (9, 20, 29, 42)),
    "rest": (EstimationRule.SUBTRACTIVE, {"parts_wh": (None, 40, None, 10)}, (25, 40, 25, 10)),
}


@pytest.mark.parametrize("case", WORKED.values(), ids=WORKED)
def test_rule_with_its_evidence_spreads_the_energy(
    case: tuple[EstimationRule, dict[str, Any], tuple[int, ...]],
) -> None:
    """Each rule as worked by hand; the result names its rule and inputs, and registers rise to the span's end."""
    rule, evidence, expected = case
    found = RULE_FUNCTIONS[rule](span(100), Evidence(**evidence), WIDE)
    assert isinstance(found, Estimate)
    assert (found.rule, found.intervals_wh) == (rule, expected)
    assert found.inputs
    assert [wh for _, wh in found.registers] == [1_000 + sum(expected[:n]) for n in (1, 2, 3)]


DECLINED: dict[str, tuple[EstimationRule, dict[str, Any], int, DeclineReason]] = {
    "falls": (EstimationRule.INTERPOLATION, {}, -1, DeclineReason.ENERGY_FALLS),
    "few_days": (
        EstimationRule.AVERAGE_OF_LIKE_DAYS, {"like_days_wh": [(1, 1, 1, 1)]}, 9, DeclineReason.TOO_FEW_LIKE_DAYS,
    ),
    "empty_days": (EstimationRule.PROXY_DAY, {"proxy_day_wh": (0, 0, 0, 0)}, 9, DeclineReason.NO_SHAPE),
    "no_proxy": (EstimationRule.PROXY_DAY, {}, 9, DeclineReason.NO_PROXY_DAY),
    "no_profile": (EstimationRule.PROFILE, {}, 9, DeclineReason.NO_PROFILE),
    "not_all": (
        EstimationRule.SCALAR_FROM_INTERVALS, {"counted_wh": (1, None, 1, 1)}, 9, DeclineReason.INTERVALS_MISSING,
    ),
    "differs": (EstimationRule.SCALAR_FROM_INTERVALS, {"counted_wh": (1, 1, 1, 0)}, 9, DeclineReason.SUM_DIFFERS),
    "nothing_known": (EstimationRule.SUBTRACTIVE, {}, 9, DeclineReason.INTERVALS_MISSING),
    "too_much_known": (
        EstimationRule.SUBTRACTIVE, {"parts_wh": (10, None, None, None)}, 9, DeclineReason.PARTS_ABOVE_TOTAL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DECLINED.values(), ids=DECLINED)
def test_rule_without_its_preconditions_declines_by_name(
    case: tuple[EstimationRule, dict[str, Any], int, DeclineReason],
) -> None:
    """A rule that cannot says so with a reason; it never guesses."""
    rule, evidence, total_wh, reason = case
    found = RULE_FUNCTIONS[rule](span(total_wh), Evidence(**evidence), WIDE)
    assert isinstance(found, Declined)
    assert (found.rule, found.reason) == (rule, reason)


@pytest.mark.parametrize("rule", EstimationRule)
def test_span_longer_than_a_rule_is_trusted_for_is_declined(rule: EstimationRule) -> None:
    """Every rule has its longest span."""
    found = RULE_FUNCTIONS[rule](span(9), Evidence(), RuleLimits(longest_s=7_199))
    assert isinstance(found, Declined)
    assert found.reason is DeclineReason.SPAN_TOO_LONG


@given(total=st.integers(0, 10**12), weights=st.lists(st.integers(0, 10**9), min_size=1, max_size=60).filter(any))
def test_spread_energy_adds_up_and_no_part_is_off_by_a_wh(total: int, weights: list[int]) -> None:
    """Parts add up to the whole; none is below 0, none a whole Wh or more from its share."""
    parts = spread(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part * sum(weights) - total * weight) < sum(weights)
        assert part >= 0


@given(data=st.data(), total=st.integers(0, 10**9), number=st.integers(1, 60))
def test_every_estimate_has_the_energy_of_its_span(data: st.DataObject, total: int, number: int) -> None:
    """Whatever the evidence, what a rule makes adds up to the registers around the span (an invariant of the value)."""
    day = st.lists(st.integers(0, 10**6), min_size=number, max_size=number).map(tuple)
    some = st.lists(st.none() | st.integers(0, 10**6), min_size=number, max_size=number).map(tuple)
    evidence = Evidence(
        like_days_wh=data.draw(st.lists(day, max_size=4)),
        proxy_day_wh=data.draw(st.none() | day),
        profile_weights=data.draw(st.none() | day),
        parts_wh=data.draw(st.none() | some),
    )
    for found in estimates_by(builtin_estimation_rules(), span(total, number), evidence):
        assert isinstance(found, Declined) or (sum(found.intervals_wh), min(found.intervals_wh) >= 0) == (total, True)


def test_order_of_preference_chooses_the_first_rule_that_can() -> None:
    """Short spans are interpolated, longer ones follow the consumer's like days, then the profile; a name overrides."""
    rules = builtin_estimation_rules()
    day = Evidence(like_days_wh=[(1,) * 48] * 3, profile_weights=(1,) * 48)
    assert estimate_by(rules, span(9), Evidence(), None).rule is EstimationRule.INTERPOLATION
    assert estimate_by(rules, span(9, 48), day, None).rule is EstimationRule.AVERAGE_OF_LIKE_DAYS
    assert estimate_by(rules, span(9, 48), Evidence(profile_weights=(1,) * 48), None).rule is EstimationRule.PROFILE
    assert estimate_by(rules, span(9, 48), Evidence(), None).rule is EstimationRule.PRORATE
    named = estimate_by(rules, span(9, 48), day, EstimationRule.INTERPOLATION)
    assert isinstance(named, Declined)


DOCUMENT = """
id = "own"
title = "t"
effective_from = 2026-12-01
order = ["prorate"]
[desk]
second_person_above_minor = 0
like_weeks = 2
[rule.prorate]
longest_s = 3600
"""


def test_document_of_the_page_is_one_that_is_accepted() -> None:
    """What docs/exceptions.md shows as a utility's own document can be put in force as it stands."""
    page = (Path(__file__).parents[2] / "docs" / "exceptions.md").read_text("utf-8")
    rules = parse_estimation_rules(page.split("```toml\n")[1].split("```")[0])
    assert rules.order[0] is EstimationRule.AVERAGE_OF_LIKE_DAYS
    assert set(rules.profiles) == {"default"}


def test_document_is_read_whole_or_refused_with_its_line() -> None:
    """What a document does not name is not used; what is wrong is named with its line."""
    rules = parse_estimation_rules(DOCUMENT)
    assert (rules.order, rules.profile_of("DS"), rules.needs_second_person(1)) == (
        (EstimationRule.PRORATE,),
        None,
        True,
    )
    assert rules.needs_second_person(None)
    assert not rules.needs_second_person(0)
    unnamed = estimate_by(rules, span(9), Evidence(), EstimationRule.PROFILE)
    assert isinstance(unnamed, Declined)
    assert unnamed.reason is DeclineReason.NOT_IN_ORDER
    for wrong, told in (
        (DOCUMENT.replace('["prorate"]', '["guess"]'), "line 5"),
        (DOCUMENT.replace("3600", "59"), "line 10"),
        (DOCUMENT.replace("longest_s", "least_like_days"), "line 10"),
        (DOCUMENT.replace('["prorate"]', "[]"), "expected one rule or more"),
        (DOCUMENT + "[profile]\nDS = [1, 2]\n", "24 hourly weights"),
    ):
        with pytest.raises(EstimationRulesError, match=told):
            parse_estimation_rules(wrong)
