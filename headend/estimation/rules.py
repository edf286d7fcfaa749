"""Rules of estimation, one pure function each: registers and evidence in, an estimate or a named refusal out.

Stage: pure. The energy of a span is known from the registers on both sides of it; a rule says how it is spread over the
intervals between. So whatever a rule says, the account pays for the same energy in all.

Rounds: shares are cut so that they add up exactly, remainders on the later side.
Source: names and purposes as in ../shared/reference/vee_catalogue.md (estimation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Final

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

RuleFunction = Callable[[Span, Evidence, RuleLimits], Outcome]
DAY_MS = 86_400_000


def spread(total_wh: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Spread energy over intervals in proportion to weights, of which at least one is above 0.

    Rounds: the running sum down, so the parts add up and what is left over falls to the later ones.
    """
    of = sum(weights)
    assert of > 0, "weights: expected one above 0"
    assert min(weights) >= 0, "weights: expected none below 0"
    edges, done = [0], 0
    for weight in weights:
        done += weight
        edges.append(total_wh * done // of)
    return tuple(later - earlier for earlier, later in pairwise(edges))


def interpolation(span: Span, evidence: Evidence, limits: RuleLimits) -> Outcome:
    """Spread the energy evenly over time: for short spans, in which use hardly changes."""
    rule = EstimationRule.INTERPOLATION
    return _unfit(rule, span, limits) or _estimate(rule, span, span.lengths_ms, {"total_wh": span.total_wh})


def average_of_like_days(span: Span, evidence: Evidence, limits: RuleLimits) -> Outcome:
    """Spread the energy as the consumer used it at the same hours of like days."""
    rule, days = EstimationRule.AVERAGE_OF_LIKE_DAYS, evidence.like_days_wh
    if unfit := _unfit(rule, span, limits):
        return unfit
    if len(days) < limits.least_like_days:
        return Declined(
            rule=rule,
            reason=DeclineReason.TOO_FEW_LIKE_DAYS,
            detail=f"like days: expected {limits.least_like_days} or more, got {len(days)}",
        )
    # All days have the same number, so their sums are shares as good as their means.
    sums = tuple(map(sum, zip(*days, strict=True)))
    return _shaped(rule, span, sums, {"like_days": len(days), "like_days_wh": tuple(map(sum, days))})


def proxy_day(span: Span, evidence: Evidence, limits: RuleLimits) -> Outcome:
    """Spread the energy as on one other day that stands for it."""
    rule = EstimationRule.PROXY_DAY
    if unfit := _unfit(rule, span, limits):
        return unfit
    if evidence.proxy_day_wh is None:
        return Declined(
            rule=rule, reason=DeclineReason.NO_PROXY_DAY, detail="proxy day: expected a whole one, got none"
        )
    return _shaped(rule, span, evidence.proxy_day_wh, {"proxy_wh": sum(evidence.proxy_day_wh)})


def profile(span: Span, evidence: Evidence, limits: RuleLimits) -> Outcome:
    """Spread the energy by the profile of the consumer's category."""
    rule = EstimationRule.PROFILE
    if unfit := _unfit(rule, span, limits):
        return unfit
    if evidence.profile_weights is None:
        return Declined(rule=rule, reason=DeclineReason.NO_PROFILE, detail="profile: expected one, got none")
    return _shaped(rule, span, evidence.profile_weights, {"total_wh": span.total_wh})


def prorate(span: Span, evidence: Evidence, limits: RuleLimits) -> Outcome:
    """Give each interval its part of the energy in proportion to its days: the last resort for a long span."""
    rule = EstimationRule.PRORATE
    inputs = {"total_wh": span.total_wh, "length_ms": span.length_ms}
    return _unfit(rule, span, limits) or _estimate(rule, span, span.lengths_ms, inputs)


def scalar_from_intervals(span: Span, evidence: Evidence, limits: RuleLimits) -> Outcome:
    """Build registers from intervals that another source has counted, where their sum agrees with the registers."""
    rule, counted = EstimationRule.SCALAR_FROM_INTERVALS, evidence.counted_wh
    if unfit := _unfit(rule, span, limits):
        return unfit
    known = tuple(wh for wh in counted or () if wh is not None)
    if len(known) < len(span.lengths_ms):
        detail = f"intervals: expected all {len(span.lengths_ms)} counted, got {len(known)}"
        return Declined(rule=rule, reason=DeclineReason.INTERVALS_MISSING, detail=detail)
    if abs(sum(known) - span.total_wh) > limits.differs_wh_max:
        detail = f"sum: expected {span.total_wh} Wh within {limits.differs_wh_max}, got {sum(known)}"
        return Declined(rule=rule, reason=DeclineReason.SUM_DIFFERS, detail=detail)
    return _shaped(rule, span, known, {"counted_wh": sum(known)})


def subtractive(span: Span, evidence: Evidence, limits: RuleLimits) -> Outcome:
    """Take known intervals from the energy of the span; what is left goes to the others in proportion to time."""
    rule = EstimationRule.SUBTRACTIVE
    if unfit := _unfit(rule, span, limits):
        return unfit
    parts = evidence.parts_wh or ()
    known_wh = sum(wh for wh in parts if wh is not None)
    lacking = [0 if wh is not None else length for wh, length in zip(parts, span.lengths_ms, strict=False)]
    if len(parts) != len(span.lengths_ms) or not any(lacking) or all(wh is None for wh in parts):
        detail = "parts: expected some intervals known and some not, got all or none"
        return Declined(rule=rule, reason=DeclineReason.INTERVALS_MISSING, detail=detail)
    left_wh = span.total_wh - known_wh
    if left_wh < 0:
        detail = f"parts: expected at most {span.total_wh} Wh, got {known_wh}"
        return Declined(rule=rule, reason=DeclineReason.PARTS_ABOVE_TOTAL, detail=detail)
    shares = spread(left_wh, lacking)
    filled = tuple(share if wh is None else wh for wh, share in zip(parts, shares, strict=True))
    return Estimate(rule=rule, span=span, intervals_wh=filled, inputs={"known_wh": known_wh, "left_wh": left_wh})


RULE_FUNCTIONS: Final[Mapping[EstimationRule, RuleFunction]] = MappingProxyType(
    {
        EstimationRule.INTERPOLATION: interpolation,
        EstimationRule.AVERAGE_OF_LIKE_DAYS: average_of_like_days,
        EstimationRule.PROFILE: profile,
        EstimationRule.PROXY_DAY: proxy_day,
        EstimationRule.PRORATE: prorate,
        EstimationRule.SCALAR_FROM_INTERVALS: scalar_from_intervals,
        EstimationRule.SUBTRACTIVE: subtractive,
    }
)


def _unfit(rule: EstimationRule, span: Span, limits: RuleLimits) -> Declined | None:
    """Refuse what no rule can do: a span that is too long for it, or over which energy falls."""
    if span.total_wh < 0:
        detail = f"energy: expected no less than before, got {span.total_wh} Wh"
        return Declined(rule=rule, reason=DeclineReason.ENERGY_FALLS, detail=detail)
    if span.length_ms > limits.longest_s * 1_000:
        detail = f"span: expected at most {limits.longest_s} s, got {span.length_ms // 1_000}"
        return Declined(rule=rule, reason=DeclineReason.SPAN_TOO_LONG, detail=detail)
    return None


def _shaped(
    rule: EstimationRule, span: Span, shape: Sequence[int], inputs: Mapping[str, int | tuple[int, ...]]
) -> Outcome:
    """Adjust a shape to the energy of the span; a shape of nothing fits only a span of nothing."""
    assert len(shape) == len(span.lengths_ms), "a shape has one figure an interval"
    if any(shape):
        return _estimate(rule, span, shape, inputs)
    if span.total_wh:
        detail = f"shape: expected some use for {span.total_wh} Wh, got none"
        return Declined(rule=rule, reason=DeclineReason.NO_SHAPE, detail=detail)
    return _estimate(rule, span, span.lengths_ms, inputs)


def _estimate(
    rule: EstimationRule, span: Span, weights: Sequence[int], inputs: Mapping[str, int | tuple[int, ...]]
) -> Estimate:
    return Estimate(rule=rule, span=span, intervals_wh=spread(span.total_wh, weights), inputs=inputs)
