"""What estimation takes and gives: a span between two readings, an estimate marked with its rule, and refusals.

Stage: pure, below the rules. Energy is whole Wh, instants are UTC milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise

# 35 days of half-hours, what a meter's store reaches back to.
INTERVALS_MAX = 1_680


class EstimationRule(StrEnum):
    """The rules by name; the value is what documents and the database keep."""

    INTERPOLATION = "interpolation"
    AVERAGE_OF_LIKE_DAYS = "average_of_like_days"
    PROFILE = "profile"
    PROXY_DAY = "proxy_day"
    PRORATE = "prorate"
    SCALAR_FROM_INTERVALS = "scalar_from_intervals"
    SUBTRACTIVE = "subtractive"


class DeclineReason(StrEnum):
    """Why a rule cannot estimate."""

    SPAN_TOO_LONG = "span_too_long"
    ENERGY_FALLS = "energy_falls"
    TOO_FEW_LIKE_DAYS = "too_few_like_days"
    NO_PROXY_DAY = "no_proxy_day"
    NO_PROFILE = "no_profile"
    NO_SHAPE = "no_shape"
    INTERVALS_MISSING = "intervals_missing"
    SUM_DIFFERS = "sum_differs"
    PARTS_ABOVE_TOTAL = "parts_above_total"
    NOT_IN_ORDER = "not_in_order"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """A rule that cannot estimate: which one, why, and with which figures."""

    rule: EstimationRule
    reason: DeclineReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch between two readings of a meter, cut into intervals.

    Invariants: `edges_ms` rise strictly and are at least two; the first and the last are instants of readings with the
    energy to date `from_wh` and `to_wh`.
    """

    edges_ms: tuple[int, ...]
    from_wh: int
    to_wh: int

    def __post_init__(self) -> None:
        """Refuse edges that are not in order."""
        assert len(self.edges_ms) > 1, f"edges: expected two or more, got {self.edges_ms}"
        assert all(earlier < later for earlier, later in pairwise(self.edges_ms)), "edges: expected rising instants"

    @property
    def total_wh(self) -> int:
        """Energy between the two readings."""
        return self.to_wh - self.from_wh

    @property
    def length_ms(self) -> int:
        """Time between the two readings."""
        return self.edges_ms[-1] - self.edges_ms[0]

    @property
    def lengths_ms(self) -> tuple[int, ...]:
        """The length of each interval."""
        return tuple(later - earlier for earlier, later in pairwise(self.edges_ms))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Energy by interval of a span, marked with the rule that made it and its inputs.

    Invariants: none of `intervals_wh` is below 0 and they add up to the energy of the span.
    """

    rule: EstimationRule
    span: Span
    intervals_wh: tuple[int, ...]
    inputs: Mapping[str, int | tuple[int, ...]]

    def __post_init__(self) -> None:
        """Refuse energy that does not add up."""
        assert len(self.intervals_wh) == len(self.span.lengths_ms), "an estimate has one energy an interval"
        assert min(self.intervals_wh) >= 0, f"{self.rule}: expected energy of 0 or more in each interval"
        assert sum(self.intervals_wh) == self.span.total_wh, f"{self.rule}: expected the energy of the span"

    @property
    def registers(self) -> tuple[tuple[int, int], ...]:
        """Energy to date at each edge inside the span: (instant in ms, Wh)."""
        inside = [self.span.from_wh + done for done in accumulate(self.intervals_wh)][:-1]
        return tuple(zip(self.span.edges_ms[1:-1], inside, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known besides the span's two registers; what is not known is empty.

    Units: Wh by interval of the span: on like days, on the day that stands for it, from another source (None: not
    known); `profile_weights` are shares by interval of the consumer's category; `parts_wh` is energy inside the span
    that is known from elsewhere, by interval (None: not known).
    """

    like_days_wh: Sequence[tuple[int, ...]] = ()
    proxy_day_wh: tuple[int, ...] | None = None
    profile_weights: tuple[int, ...] | None = None
    counted_wh: tuple[int | None, ...] | None = None
    parts_wh: tuple[int | None, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleLimits:
    """How far a rule may be trusted.

    Units: seconds; `least_like_days` counts days with use of their own; 0 where the rule has no such limit.
    """

    longest_s: int
    least_like_days: int = 0
    differs_wh_max: int = 0


Outcome = Estimate | Declined
