"""Evidence for estimates: a gap cut into spans, and the shape of use on other days, from readings as they hold.

Stage: pure, between the readings that were looked up and the rules. A day serves as evidence only if it was read whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from billing.calendar import LocalCalendar, from_ms
from billing.running import Point, energy_between
from headend.estimation.values import INTERVALS_MAX, Span

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
# A reading may come a quarter of an interval early or late, and so may the one before it (headend.gaps).
_GAP_QUARTERS = 7
_PROXY_DAYS = 7


def gap_spans(points: Sequence[Point], interval_ms: int) -> list[Span]:
    """Return the stretches between readings in which others should have been, cut into intervals from the first on.

    Stretches of more than 35 days of half-hours are left out: nobody's rule reaches so far.
    """
    found = []
    for before, after in pairwise(points):
        if (after.at_ms - before.at_ms) * 4 < interval_ms * _GAP_QUARTERS:
            continue
        # What is less than three quarters of an interval before the next reading belongs to that one.
        inside = range(before.at_ms + interval_ms, after.at_ms - interval_ms * 3 // 4 + 1, interval_ms)
        if len(inside) <= INTERVALS_MAX:
            edges_ms = (before.at_ms, *inside, after.at_ms)
            found.append(Span(edges_ms=edges_ms, from_wh=before.energy_wh, to_wh=after.energy_wh))
    return found


def like_shifts(span: Span, weeks: int) -> list[int]:
    """Return how far like days are from a span, in ms: the same days of the week before and after it."""
    least = -(-span.length_ms // WEEK_MS)
    return [way * week * WEEK_MS for way in (-1, 1) for week in range(least, least + weeks)]


def proxy_shifts(span: Span) -> list[int]:
    """Return how far the days that may stand for a span are from it, the nearest first, in ms."""
    least = -(-span.length_ms // DAY_MS)
    return [-(least + day) * DAY_MS for day in range(_PROXY_DAYS)]


def shape_of(span: Span, shift_ms: int, points: Sequence[Point], interval_ms: int) -> tuple[int, ...] | None:
    """Return energy by interval of a span as it was used so much earlier or later; None where that was not read whole.

    Units: Wh. Rounds: an edge between two readings is split in proportion to time.
    """
    edges_ms = [edge_ms + shift_ms for edge_ms in span.edges_ms]
    if not points or points[0].at_ms > edges_ms[0] or points[-1].at_ms < edges_ms[-1]:
        return None
    steps = list(pairwise(points))
    if any(after.energy_wh < before.energy_wh for before, after in steps):
        return None
    if any((after.at_ms - before.at_ms) * 4 >= interval_ms * _GAP_QUARTERS for before, after in steps):
        return None
    ats_ms = [point.at_ms for point in points]
    known = [_energy_at(points, bisect_left(ats_ms, edge_ms), edge_ms) for edge_ms in edges_ms]
    return tuple(later - earlier for earlier, later in pairwise(known))


def profile_weights(span: Span, hourly: Sequence[int], calendar: LocalCalendar) -> tuple[int, ...]:
    """Return the weight of each interval by the local hour in which it begins; longer ones weigh more."""
    hours = (from_ms(edge_ms).astimezone(calendar.zone).hour for edge_ms in span.edges_ms[:-1])
    return tuple(hourly[hour] * length_ms for hour, length_ms in zip(hours, span.lengths_ms, strict=True))


def _energy_at(points: Sequence[Point], place: int, at_ms: int) -> int:
    """Return energy to date at an instant; `place` is that of the first point at or after it."""
    if points[place].at_ms == at_ms:
        return points[place].energy_wh
    return energy_between(points[place - 1], points[place], at_ms)
