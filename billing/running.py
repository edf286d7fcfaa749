"""The running balance: posted money less what the meter's readings say is owed since.

Stage: between readings and every balance that is shown, alarmed on or posted. One set of pure functions serves
ingest (step by step), the interfaces (one account) and the auditor (from the database). Takes a checkpoint and points
of the account's energy curve; returns the charge still to be posted. Never reads a clock: money time is the later
of the latest accepted reading and the end of the last closed day.

A point is (instant, energy to date): the register carried over roll-overs and meter swaps, so it only rises. Energy
between two points that straddle a period edge is split there in proportion to time, the remainder on the later side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum

from billing.calendar import LocalCalendar, days_in, next_period, period_of
from billing.rating import Lines, added, charge_to_date, difference, total
from billing.tariff import Tariff

ONE_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Point:
    """Energy to date at an instant, as the meter reported it."""

    at_ms: int
    energy_wh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an account is charged by: constant between two dated changes."""

    tariff: Tariff
    load_w: int
    opened_on: date


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An account's posted state.

    Invariants: days before `through` are closed; `charged` holds the lines posted for the period of `through`;
    `period_start_wh` is the energy to date at that period's first midnight (or at the opening); `closed_wh` is the
    energy to date that journals have booked.
    """

    posted_minor: int
    through: date
    period_start_wh: int
    closed_wh: int
    charged: Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Where a curve has been followed to from a checkpoint.

    Invariants: `done_minor` is the charge of periods completed since the checkpoint, less what was already charged
    to the checkpoint's own period; `last` is the latest point seen.
    """

    period: date
    period_start_wh: int
    done_minor: int
    last: Point


class EdgeQuality(StrEnum):
    """How the energy at an edge in time is known."""

    READ = "read"
    ESTIMATED = "estimated"
    UNREAD = "unread"


@dataclass(frozen=True, slots=True, kw_only=True)
class DayUsage:
    """One closed local day: what its journal books."""

    day: date
    period: date
    from_wh: int
    to_wh: int
    quality: EdgeQuality
    lines: Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodPosted:
    """What journals have booked for one period so far."""

    period: date
    energy_wh: int
    lines: Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class LateUsage:
    """The difference that late readings make to a period that journals have booked."""

    period: date
    energy_wh: int
    lines: Lines


def period_lines(terms: Terms, *, period: date, energy_wh: int, through_day: date) -> Lines:
    """Return the lines of one period's bill up to and including a local day.

    A day's fixed charge accrues whole, from the day the account opened.
    """
    first = max(period, terms.opened_on)
    last = min(through_day, next_period(period) - ONE_DAY)
    return charge_to_date(
        terms.tariff,
        load_w=terms.load_w,
        energy_wh=energy_wh,
        fixed_days=max(0, (last - first).days + 1),
        period_days=days_in(period),
    )


def begin(checkpoint: Checkpoint, anchor: Point) -> Walk:
    """Start to follow a curve at the last point known at the checkpoint (or at the installation)."""
    return Walk(
        period=period_of(checkpoint.through),
        period_start_wh=checkpoint.period_start_wh,
        done_minor=-total(checkpoint.charged),
        last=anchor,
    )


def advance(walk: Walk, terms: Terms, point: Point, calendar: LocalCalendar) -> Walk:
    """Follow the curve to a later point, completing each period whose end lies on the way."""
    period, start_wh, done_minor = walk.period, walk.period_start_wh, walk.done_minor
    following = next_period(period)
    while (edge_ms := calendar.midnight_ms(following)) <= point.at_ms:
        edge_wh = energy_between(walk.last, point, edge_ms)
        lines = period_lines(terms, period=period, energy_wh=edge_wh - start_wh, through_day=following - ONE_DAY)
        done_minor += total(lines)
        period, start_wh, following = following, edge_wh, next_period(following)
    return Walk(period=period, period_start_wh=start_wh, done_minor=done_minor, last=point)


def follow(walk: Walk, terms: Terms, points: Sequence[Point], calendar: LocalCalendar) -> Walk:
    """Follow the curve through many later points that rise in time; the same as `advance` for each.

    Only points on both sides of a period edge and the last one can matter.
    """
    edge_ms = calendar.midnight_ms(next_period(walk.period))
    for number, point in enumerate(points):
        if point.at_ms >= edge_ms:
            if number:
                walk = advance(walk, terms, points[number - 1], calendar)
            walk = advance(walk, terms, point, calendar)
            edge_ms = calendar.midnight_ms(next_period(walk.period))
    return advance(walk, terms, points[-1], calendar) if points else walk


def owed_minor(walk: Walk, terms: Terms, *, through: date, calendar: LocalCalendar) -> int:
    """Return the charge since the checkpoint at money time, in minor units.

    Money time is the later of the walk's last point and the midnight that opens `through`.
    """
    money_day = max(calendar.day_of(walk.last.at_ms), through)
    lines = period_lines(
        terms,
        period=walk.period,
        energy_wh=walk.last.energy_wh - walk.period_start_wh,
        through_day=money_day,
    )
    return walk.done_minor + total(lines)


def running_balance(checkpoint: Checkpoint, terms: Terms, points: Sequence[Point], calendar: LocalCalendar) -> int:
    """Return the account's balance at money time, in minor units; below zero is a debt.

    `points` rise in time: the last one at or before the checkpoint, those on both sides of each later period edge,
    and the latest. More points change nothing.
    """
    walk = follow(begin(checkpoint, points[0]), terms, points[1:], calendar)
    return checkpoint.posted_minor - owed_minor(walk, terms, through=checkpoint.through, calendar=calendar)


def energy_between(earlier: Point, later: Point, at_ms: int) -> int:
    """Return energy to date at an instant between two points.

    Rounds: down, so that the remainder of the split falls on the later side.
    """
    if at_ms <= earlier.at_ms:
        return earlier.energy_wh
    span_ms = later.at_ms - earlier.at_ms
    return earlier.energy_wh + (later.energy_wh - earlier.energy_wh) * (at_ms - earlier.at_ms) // span_ms


def energy_at(points: Sequence[Point], at_ms: int) -> tuple[int, EdgeQuality]:
    """Return energy to date at an instant of a curve, and how it is known.

    After the last point nothing is known: the last register stands, marked unread.
    """
    earlier = points[0]
    for point in points:
        if point.at_ms == at_ms:
            return point.energy_wh, EdgeQuality.READ
        if point.at_ms > at_ms:
            return energy_between(earlier, point, at_ms), EdgeQuality.ESTIMATED
        earlier = point
    return earlier.energy_wh, EdgeQuality.UNREAD


def close_days(
    checkpoint: Checkpoint, terms: Terms, points: Sequence[Point], *, until: date, calendar: LocalCalendar
) -> Iterator[tuple[DayUsage, Checkpoint]]:
    """Close each day from the checkpoint up to and including `until`; yield its usage and the new checkpoint.

    `points` rise in time and reach from the last one at or before the checkpoint to the latest.
    """
    day = checkpoint.through
    remaining = list(points)
    while day <= until:
        edge_ms = calendar.midnight_ms(day + ONE_DAY)
        # Points before the previous one cannot matter to this or a later edge.
        while len(remaining) > 1 and remaining[1].at_ms < edge_ms:
            del remaining[0]
        to_wh, quality = energy_at(remaining, edge_ms)
        usage, checkpoint = _close_day(checkpoint, terms, day=day, to_wh=to_wh, quality=quality)
        yield usage, checkpoint
        day += ONE_DAY


def late_usage(
    posted: Sequence[PeriodPosted],
    checkpoint: Checkpoint,
    terms: Terms,
    points: Sequence[Point],
    calendar: LocalCalendar,
) -> tuple[list[LateUsage], Checkpoint]:
    """Recompute the closed edges of booked periods and return what the journals are short of.

    `posted` holds consecutive periods ending with the period of the checkpoint's `through` (booked in part, or not
    at all); `points` cover the time from before the second of them begins. Also returns the checkpoint with those
    differences booked.
    """
    edges_wh = _edges(posted, checkpoint, points, calendar)
    found: list[LateUsage] = []
    for number, booked in enumerate(posted[:-1]):
        end = next_period(booked.period) - ONE_DAY
        energy_wh = edges_wh[number + 1] - edges_wh[number]
        lines = period_lines(terms, period=booked.period, energy_wh=energy_wh, through_day=end)
        found.append(_short(booked, energy_wh, lines))
    current = posted[-1]
    start_wh = edges_wh[-1]
    # A silent meter's energy, found now, lies before the edge; energy already booked after it moves across.
    closed_wh = start_wh
    charged = checkpoint.charged
    if checkpoint.through > current.period:
        closed_wh = max(checkpoint.closed_wh, start_wh)
        energy_wh = closed_wh - start_wh
        lines = period_lines(
            terms, period=current.period, energy_wh=energy_wh, through_day=checkpoint.through - ONE_DAY
        )
        change = _short(current, energy_wh, lines)
        found.append(change)
        charged = added(charged, change.lines)
    found = [change for change in found if change.energy_wh or change.lines]
    owed = sum(total(change.lines) for change in found)
    return found, Checkpoint(
        posted_minor=checkpoint.posted_minor - owed,
        through=checkpoint.through,
        period_start_wh=start_wh,
        closed_wh=closed_wh,
        charged=charged,
    )


def bill_by_period(
    terms: Terms, points: Iterable[Point], *, last_day: date, calendar: LocalCalendar
) -> dict[date, tuple[int, Lines]]:
    """Return energy (Wh) and lines of every period of a whole curve, from its first point to `last_day`."""
    curve = list(points)
    return _bills(terms, curve, period_of(terms.opened_on), curve[0].energy_wh, last_day, calendar)


def open_bills(
    checkpoint: Checkpoint, terms: Terms, points: Sequence[Point], calendar: LocalCalendar
) -> dict[date, tuple[int, Lines]]:
    """Return energy (Wh) and lines to date of the checkpoint's period and those after it, up to money time."""
    last_day = max(calendar.day_of(points[-1].at_ms), checkpoint.through)
    period = period_of(checkpoint.through)
    return _bills(terms, points, period, checkpoint.period_start_wh, last_day, calendar)


def _bills(
    terms: Terms, points: Sequence[Point], period: date, start_wh: int, last_day: date, calendar: LocalCalendar
) -> dict[date, tuple[int, Lines]]:
    bills: dict[date, tuple[int, Lines]] = {}
    while period <= last_day:
        through_day = min(last_day, next_period(period) - ONE_DAY)
        end_wh, _ = energy_at(points, calendar.midnight_ms(through_day + ONE_DAY))
        energy_wh = end_wh - start_wh
        lines = period_lines(terms, period=period, energy_wh=energy_wh, through_day=through_day)
        bills[period] = (energy_wh, lines)
        period, start_wh = next_period(period), end_wh
    return bills


def _close_day(
    checkpoint: Checkpoint, terms: Terms, *, day: date, to_wh: int, quality: EdgeQuality
) -> tuple[DayUsage, Checkpoint]:
    period = period_of(day)
    to_date = period_lines(terms, period=period, energy_wh=to_wh - checkpoint.period_start_wh, through_day=day)
    lines = difference(to_date, checkpoint.charged)
    usage = DayUsage(day=day, period=period, from_wh=checkpoint.closed_wh, to_wh=to_wh, quality=quality, lines=lines)
    through = day + ONE_DAY
    opens_period = period_of(through) != period
    return usage, Checkpoint(
        posted_minor=checkpoint.posted_minor - total(lines),
        through=through,
        period_start_wh=to_wh if opens_period else checkpoint.period_start_wh,
        closed_wh=to_wh,
        charged={} if opens_period else to_date,
    )


def _edges(
    posted: Sequence[PeriodPosted], checkpoint: Checkpoint, points: Sequence[Point], calendar: LocalCalendar
) -> list[int]:
    """Return the energy to date at the start of each booked period, as the points say it now."""
    before_wh = checkpoint.closed_wh - sum(booked.energy_wh for booked in posted)
    edges_wh = [before_wh]
    for booked in posted[1:]:
        edge_wh, _ = energy_at(points, calendar.midnight_ms(booked.period))
        edges_wh.append(edge_wh)
    return edges_wh


def _short(booked: PeriodPosted, energy_wh: int, lines: Lines) -> LateUsage:
    return LateUsage(
        period=booked.period,
        energy_wh=energy_wh - booked.energy_wh,
        lines=difference(lines, booked.lines),
    )
