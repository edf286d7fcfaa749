"""Estimates for one exception: its spans, the evidence of other days, what each rule says, and the edits that follow.

Stage: inside the exceptions desk, between readings as they hold and the pure rules. Reads only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms, to_ms
from billing.running import Point
from db.accounts import AccountView
from db.correction_scope import EstimatedFrom, ReadingEdit
from db.exceptions import ExceptionItem, ExceptionKind, ExceptionRefused, estimation_document, read_curves
from headend.estimation.document import (
    EstimationRules,
    builtin_estimation_rules,
    estimate_by,
    estimates_by,
    parse_estimation_rules,
)
from headend.estimation.evidence import gap_spans, like_shifts, profile_weights, proxy_shifts, shape_of
from headend.estimation.values import INTERVALS_MAX, Declined, Estimate, EstimationRule, Evidence, Outcome, Span
from headend.gaps import INTERVAL_S_DEFAULT, INTERVAL_S_MIN


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanEstimates:
    """A span of an exception with its evidence and what each rule says, in the order of preference."""

    span: Span
    evidence: Evidence
    outcomes: Sequence[Outcome]


async def rules_on(conn: AsyncConnection, calendar: LocalCalendar, now: datetime) -> EstimationRules:
    """Return the rules of estimation that hold today."""
    text = await estimation_document(conn, calendar.day_of(to_ms(now)))
    return builtin_estimation_rules() if text is None else parse_estimation_rules(text)


async def estimates_of(
    conn: AsyncConnection,
    item: ExceptionItem,
    rules: EstimationRules,
    calendar: LocalCalendar,
    counted_wh: Sequence[int | None] | None = None,
) -> list[SpanEstimates]:
    """Return what each rule says of an exception's spans; none where there is nothing to estimate between readings.

    `counted_wh` is energy by interval that another source has counted, None where it has not; of one span only.
    """
    spans = await spans_of(conn, item)
    if counted_wh is not None and (len(spans) != 1 or len(counted_wh) != len(spans[0].lengths_ms)):
        expected = f"one span of {len(spans[0].lengths_ms)} intervals" if len(spans) == 1 else "a gap of one span"
        raise ExceptionRefused(f"exception {item.key}: expected {expected}, got {len(counted_wh)} counted")
    found = []
    for span in spans:
        evidence = await _evidence(conn, item, span, rules, calendar, counted_wh)
        found.append(SpanEstimates(span=span, evidence=evidence, outcomes=estimates_by(rules, span, evidence)))
    return found


async def spans_of(conn: AsyncConnection, item: ExceptionItem) -> list[Span]:
    """Return the spans to estimate: of a gap what is missing in it, of a flag both sides of its reading."""
    if item.meter_id is None or item.at is None:
        return []
    if item.kind == ExceptionKind.GAP and item.to_at is not None:
        (points,) = await _points(conn, item.meter_id, [(item.at, item.to_at)])
        return gap_spans(points, interval_ms_of(item))
    if item.kind != ExceptionKind.FLAG:
        return []
    at_ms = to_ms(item.at)
    (points,) = await _points(conn, item.meter_id, [(from_ms(at_ms - 1), from_ms(at_ms + 1))])
    before = max((point for point in points if point.at_ms < at_ms), default=None)
    after = min((point for point in points if point.at_ms > at_ms), default=None)
    if before is None or after is None or len(points) == len((before, after)):
        return []
    edges_ms = (before.at_ms, at_ms, after.at_ms)
    return [Span(edges_ms=edges_ms, from_wh=before.energy_wh, to_wh=after.energy_wh)]


def interval_ms_of(item: ExceptionItem) -> int:
    """Return the interval of an exception's meter, as gaps take it."""
    return max(item.interval_s or INTERVAL_S_DEFAULT, INTERVAL_S_MIN) * 1_000


def edits_by_rule(
    item: ExceptionItem,
    view: AccountView,
    rule: EstimationRule | None,
    found: Sequence[SpanEstimates],
    rules: EstimationRules,
    calendar: LocalCalendar,
) -> list[ReadingEdit]:
    """Return the edits that put estimates in place, by a named rule or the first that can.

    Raises: ExceptionRefused where there is nothing to estimate, the rule declines, or the days are still open.
    """
    if not found:
        raise ExceptionRefused(
            f"exception {item.key}: expected readings on both sides of at most {INTERVALS_MAX} intervals, got none"
        )
    chosen = [estimate_by(rules, each.span, each.evidence, rule) for each in found]
    if declined := [outcome for outcome in chosen if isinstance(outcome, Declined)]:
        first = declined[0]
        raise ExceptionRefused(f"exception {item.key}: {first.rule} declined, {first.reason}: {first.detail}")
    estimates = [outcome for outcome in chosen if isinstance(outcome, Estimate)]
    if item.kind == ExceptionKind.FLAG:
        return [_edit(view, at_ms, wh, None) for estimate in estimates for at_ms, wh in estimate.registers]
    for estimate in estimates:
        _require_estimable(item, view, estimate.span, calendar)
    return [_edit(view, at_ms, wh, estimate) for estimate in estimates for at_ms, wh in estimate.registers]


def _require_estimable(item: ExceptionItem, view: AccountView, span: Span, calendar: LocalCalendar) -> None:
    from_ms_, to_ms_ = span.edges_ms[0], span.edges_ms[-1]
    if to_ms_ > calendar.midnight_ms(view.checkpoint.through):
        through = view.checkpoint.through
        raise ExceptionRefused(
            f"exception {item.key}: expected a gap in days that are closed, before {through}; open days need none"
        )
    if any(from_ms_ < segment.from_ms <= to_ms_ for segment in view.meter.segments):
        raise ExceptionRefused(f"exception {item.key}: expected one register throughout, got one that began again")


def _edit(view: AccountView, at_ms: int, import_wh: int, estimate: Estimate | None) -> ReadingEdit:
    made = None
    if estimate is not None:
        span = estimate.span
        made = EstimatedFrom(
            rule=estimate.rule.value,
            inputs={
                name: list(value) if isinstance(value, tuple) else value for name, value in estimate.inputs.items()
            },
            from_at=from_ms(span.edges_ms[0]),
            from_wh=span.from_wh,
            to_at=from_ms(span.edges_ms[-1]),
            to_wh=span.to_wh,
        )
    return ReadingEdit(
        serial=view.meter.serial, meter_id=view.meter.id, read_at=from_ms(at_ms), import_wh=import_wh, estimated=made
    )


async def _evidence(
    conn: AsyncConnection,
    item: ExceptionItem,
    span: Span,
    rules: EstimationRules,
    calendar: LocalCalendar,
    counted_wh: Sequence[int | None] | None,
) -> Evidence:
    assert item.meter_id is not None, "spans are of a meter that is known"
    likes, proxies = like_shifts(span, rules.like_weeks), proxy_shifts(span)
    windows = [(from_ms(span.edges_ms[0] + shift), from_ms(span.edges_ms[-1] + shift)) for shift in (*likes, *proxies)]
    curves = await _points(conn, item.meter_id, windows)
    interval_ms = interval_ms_of(item)
    shapes = [
        shape_of(span, shift, points, interval_ms) for shift, points in zip((*likes, *proxies), curves, strict=True)
    ]
    hourly = rules.profile_of(item.category or "default")
    return Evidence(
        like_days_wh=[shape for shape in shapes[: len(likes)] if shape is not None],
        proxy_day_wh=next((shape for shape in shapes[len(likes) :] if shape is not None), None),
        profile_weights=None if hourly is None else profile_weights(span, hourly, calendar),
        counted_wh=None if counted_wh is None else tuple(counted_wh),
        parts_wh=None if counted_wh is None else tuple(counted_wh),
    )


async def _points(
    conn: AsyncConnection, meter_id: int, windows: Sequence[tuple[datetime, datetime]]
) -> list[list[Point]]:
    """Read registers in windows of time as points; a register that began again shows as energy that falls."""
    curves = await read_curves(conn, meter_id, windows)
    return [[Point(at_ms=to_ms(at), energy_wh=wh) for at, wh in curve] for curve in curves]
