"""A meter beside its check meter: their registers paired by instant, the error weighted by energy, and the verdict.

Stage: between stored registers and the report. Takes what both meters read in the time of pairing; returns totals,
months, intervals out of the limit and what is missing, each by name. Registers are cumulative, so a pair that is
missing loses no energy: the stretch between the pairs around it is compared as one.

Units: Wh; errors in hundredths of a percent of what the check meter counted, above zero for a meter that runs fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from billing.calendar import LocalCalendar, period_of
from billing.disputes.case import CaseRefused, Verdict
from billing.money import round_half_up
from billing.running import Point
from billing.tariff import BASIS_POINTS

# Below this the whole Wh of two registers are more than a hundredth of a percent or two: no verdict of them.
CHECK_WH_MIN = 20_000
# Registers are whole Wh at both ends of an interval, at both meters.
RESOLUTION_WH = 2
# Half-hours of a decade; more is a wrong span.
INTERVALS_MAX = 200_000
WORST_SHOWN, MISSING_SHOWN = 10, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """What is compared: a span, the time between readings, the limit of the meter's class, the pairs that it needs."""

    from_ms: int
    until_ms: int
    interval_ms: int
    limit_basis_points: int
    coverage_percent: int
    # The span is shorter than the rules ask for.
    too_short: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What both meters counted between two instants at which both were read."""

    from_ms: int
    until_ms: int
    meter_wh: int
    check_wh: int

    @property
    def error_basis_points(self) -> int | None:
        """The meter's error; None where the check meter counted nothing."""
        return error_of(self.meter_wh, self.check_wh)


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Instants in a row that have no pair, and which of the meters was not read at them."""

    first_ms: int
    last_ms: int
    instants: int
    meter: bool
    check: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The report on a meter and its check meter.

    Invariants: the energies of `months` add up to `meter_wh` and `check_wh`; `reason` says why the verdict is what it
    is. `missing` names the first spans without pairs, `missing_instants` counts them all; `outside` counts single
    intervals beyond the limit, and `worst` shows those with the greatest difference.
    """

    from_ms: int | None
    until_ms: int | None
    meter_wh: int
    check_wh: int
    error_basis_points: int | None
    limit_basis_points: int
    pairs: int
    expected: int
    missing_instants: int
    missing: tuple[Missing, ...]
    intervals: int
    outside: int
    worst: tuple[Compared, ...]
    months: dict[date, Compared]
    verdict: Verdict
    reason: str


def error_of(meter_wh: int, check_wh: int) -> int | None:
    """Return a meter's error in hundredths of a percent of what the check meter counted.

    Rounds: half away from zero. None where the check meter counted nothing.
    """
    if check_wh <= 0:
        return None
    difference_wh = meter_wh - check_wh
    size = round_half_up(abs(difference_wh) * BASIS_POINTS, check_wh)
    return size if difference_wh >= 0 else -size


def verdict_of(error_basis_points: int, limit_basis_points: int) -> Verdict:
    """Return what an error says of a meter; one at the limit is right."""
    if abs(error_basis_points) <= limit_basis_points:
        return Verdict.RIGHT
    return Verdict.FAST if error_basis_points > 0 else Verdict.SLOW


def compare(meter: Iterable[Point], check: Iterable[Point], pairing: Pairing, calendar: LocalCalendar) -> Comparison:
    """Compare energy to date of a meter with that of its check meter.

    Raises: CaseRefused for a span that no pairing has.
    """
    first_ms = -(-pairing.from_ms // pairing.interval_ms) * pairing.interval_ms
    expected = max(0, (pairing.until_ms - first_ms) // pairing.interval_ms + 1)
    if expected > INTERVALS_MAX:
        raise CaseRefused(f"comparison: expected at most {INTERVALS_MAX} intervals, got {expected}")
    instants = range(first_ms, first_ms + expected * pairing.interval_ms, pairing.interval_ms)
    by_meter = {point.at_ms: point.energy_wh for point in meter}
    by_check = {point.at_ms: point.energy_wh for point in check}
    paired = [at_ms for at_ms in instants if at_ms in by_meter and at_ms in by_check]
    stretches = [
        Compared(
            from_ms=earlier,
            until_ms=later,
            meter_wh=by_meter[later] - by_meter[earlier],
            check_wh=by_check[later] - by_check[earlier],
        )
        for earlier, later in pairwise(paired)
    ]
    if fallen := [each for each in stretches if each.meter_wh < 0 or each.check_wh < 0]:
        raise CaseRefused(f"comparison: expected registers that only rise, got a fall before {fallen[0].until_ms} ms")
    missing = _missing(instants, by_meter.keys(), by_check.keys())
    meter_wh, check_wh = (sum(getattr(each, name) for each in stretches) for name in ("meter_wh", "check_wh"))
    single = [each for each in stretches if each.until_ms - each.from_ms == pairing.interval_ms]
    outside = [each for each in single if _outside(each, pairing.limit_basis_points)]
    verdict, reason = _verdict(meter_wh, check_wh, len(paired), expected, pairing)
    return Comparison(
        from_ms=paired[0] if paired else None,
        until_ms=paired[-1] if paired else None,
        meter_wh=meter_wh,
        check_wh=check_wh,
        error_basis_points=error_of(meter_wh, check_wh),
        limit_basis_points=pairing.limit_basis_points,
        pairs=len(paired),
        expected=expected,
        missing_instants=expected - len(paired),
        missing=tuple(missing[:MISSING_SHOWN]),
        intervals=len(single),
        outside=len(outside),
        worst=tuple(sorted(outside, key=lambda each: -abs(each.meter_wh - each.check_wh))[:WORST_SHOWN]),
        months=_months(stretches, calendar),
        verdict=verdict,
        reason=reason,
    )


def _outside(each: Compared, limit_basis_points: int) -> bool:
    """Tell whether an interval is beyond the limit by more than whole Wh can explain."""
    beyond_wh = abs(each.meter_wh - each.check_wh) - RESOLUTION_WH
    return beyond_wh * BASIS_POINTS > limit_basis_points * each.check_wh


def _verdict(meter_wh: int, check_wh: int, pairs: int, expected: int, pairing: Pairing) -> tuple[Verdict, str]:
    if pairing.too_short:
        return Verdict.INCONCLUSIVE, "the meters have not stood side by side for as long as the rules ask for"
    if pairs * 100 < expected * pairing.coverage_percent:
        return (
            Verdict.INCONCLUSIVE,
            f"{pairs} of {expected} pairs are there, the rules ask for {pairing.coverage_percent} %",
        )
    error = error_of(meter_wh, check_wh)
    if error is None or check_wh < CHECK_WH_MIN:
        return Verdict.INCONCLUSIVE, f"the check meter counted {check_wh} Wh, a verdict needs {CHECK_WH_MIN} Wh"
    verdict = verdict_of(error, pairing.limit_basis_points)
    sign = "-" if error < 0 else ""
    return verdict, (f"error {sign}{percent_text(abs(error))} %, limit {percent_text(pairing.limit_basis_points)} %")


def percent_text(basis_points: int) -> str:
    """Print hundredths of a percent, e.g. `-4.25`."""
    sign = "-" if basis_points < 0 else ""
    whole, part = divmod(abs(basis_points), 100)
    return f"{sign}{whole}.{part:02d}"


def _missing(instants: Iterable[int], meter: Iterable[int], check: Iterable[int]) -> list[Missing]:
    meter_at, check_at = frozenset(meter), frozenset(check)
    found: list[Missing] = []
    before_ms: int | None = None
    for at_ms in instants:
        lacks = at_ms not in meter_at, at_ms not in check_at
        if any(lacks):
            last = found[-1] if found else None
            if last is not None and last.last_ms == before_ms and (last.meter, last.check) == lacks:
                found[-1] = Missing(
                    first_ms=last.first_ms, last_ms=at_ms, instants=last.instants + 1, meter=lacks[0], check=lacks[1]
                )
            else:
                found.append(Missing(first_ms=at_ms, last_ms=at_ms, instants=1, meter=lacks[0], check=lacks[1]))
        before_ms = at_ms
    return found


def _months(stretches: Sequence[Compared], calendar: LocalCalendar) -> dict[date, Compared]:
    """Add stretches up by the local month in which they end; energy that ends at its first midnight is the last's."""
    months: dict[date, Compared] = {}
    for each in stretches:
        month = period_of(calendar.day_of(each.until_ms - 1))
        before = months.get(month)
        months[month] = Compared(
            from_ms=before.from_ms if before else each.from_ms,
            until_ms=each.until_ms,
            meter_wh=each.meter_wh + (before.meter_wh if before else 0),
            check_wh=each.check_wh + (before.check_wh if before else 0),
        )
    return months
