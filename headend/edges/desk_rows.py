"""The walk behind every answer of the desk: meter by meter or account by account, a page at a time.

Stage: between a question and the writers of answers. Enters: a question. Leaves: a page of rows and the key to go on
behind. Each page is a few short statements of its own: rows that are added meanwhile come where their key is, nothing
is given twice or left out, and a walk of hours holds no snapshot and no more memory than one of a second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import itemgetter
from typing import Any

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms, to_ms
from db import desk
from db.desk import DeskSpans, DeskWhose, PlaceRow
from headend.events import meaning_of
from headend.queries.columns import QUALITIES, Column, Subject
from headend.queries.cursors import Key
from headend.queries.errors import QueryRefused
from headend.queries.questions import DAY_MS, SLOT_MS, Interval, Question, columns_of
from headend.queries.slots import CurvePoint, Slot, slots_of
from headend.queries.windows import (
    ALWAYS_MS,
    Place,
    Window,
    bucket_end,
    bucket_window,
    first_start,
    reading_window,
)

# Meters or accounts that one statement looks at: 500 windows are 20 kB of parameters and some ms.
BLOCK_MAX = 500
# A sum touches every meter, and each block looks for the area's meters anew: 20,000 windows are 2 MB of parameters.
SUM_BLOCK = 20_000
# Looks of one page where nothing is found; then the page ends early, with the cursor behind what was looked at.
LOOKS_MAX = 200
# Slots are made of a month of readings at a time.
_SLOTS_SPAN_MS = 31 * DAY_MS
_PERIODS_MS = {
    Interval.RAW: 1_800_000, Interval.HOUR: 3_600_000, Interval.DAY: DAY_MS,
    Interval.MONTH: 28 * DAY_MS, Interval.BILLING: 28 * DAY_MS,
}  # fmt: skip
_BALANCES = frozenset({"currency", "balance_minor", "balance_at"})

# Key and values in the order of all columns of the subject: of each column's own type.
_Keyed = tuple[Key, tuple[Any, ...]]
_Fetch = Callable[[list[Window], dict[int, str], int], Awaitable[list[_Keyed]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Rows of an answer, values in the order of the question's columns; `after` is None where there are no more.

    A page may be short, or empty, and not the last: then whoever was looked at had nothing in the span.
    """

    rows: list[tuple[Any, ...]]
    after: Key | None


async def read_page(conn: AsyncConnection, question: Question, calendar: LocalCalendar) -> Page:
    """Return the next rows of an answer.

    Raises: QueryRefused for a meter, account or consumer that is not there, or not in the area of whoever asks.
    """
    if question.total:
        found, after = await _totals(conn, question, calendar)
    elif question.subject in (Subject.CHARGES, Subject.ACCOUNTS):
        found, after = await _walk_accounts(conn, question, calendar)
    elif question.subject is Subject.METERS:
        found, after = await _walk_meter_list(conn, question, calendar)
    else:
        found, after = await _walk_meters(conn, question, calendar)
    return Page(rows=_chosen(question, found), after=after)


def _chosen(question: Question, found: list[_Keyed]) -> list[tuple[Any, ...]]:
    whole = columns_of(question.subject, question.interval, total=question.total)
    if question.columns == whole:
        return [values for _, values in found]
    places = [whole.index(column) for column in question.columns]
    if len(places) == 1:
        return [(values[places[0]],) for _, values in found]
    pick = itemgetter(*places)
    return [pick(values) for _, values in found]


class _Ids:
    """Gives ids in order, block by block: those of a name, or all among which the ones asked for are."""

    def __init__(
        self, conn: AsyncConnection, whose: DeskWhose, named: list[int] | None, *, accounts: bool, after: int
    ) -> None:
        self._conn = conn
        self._whose = whose
        self._named = named
        self._next = desk.next_accounts if accounts else desk.next_meters
        self._after = after
        self.ended = False

    async def take(self, most: int) -> list[int]:
        """Return the next ids; `ended` tells that there are none behind them."""
        if self._named is None:
            ids = await self._next(self._conn, self._whose, after=self._after, most=most)
        else:
            ids = [each for each in self._named if each > self._after][:most]
        self.ended = len(ids) < most
        self._after = ids[-1] if ids else self._after
        return ids


async def _walk_meters(
    conn: AsyncConnection, question: Question, calendar: LocalCalendar
) -> tuple[list[_Keyed], Key | None]:
    whose, whole = _whose(question), _is_whole(question)
    named = await desk.named_meters(conn, whose)
    if named is not None and not await desk.read_places(conn, whose, named, whole=whole):
        raise _unknown(question)
    fetch = _fetch_of(conn, question, calendar)
    ids = _Ids(conn, whose, named, accounts=False, after=question.after[0] - 1 if question.after else 0)
    block = min(BLOCK_MAX, question.limit // _rows_expected(question) + 1)
    found: list[_Keyed] = []
    for _ in range(LOOKS_MAX):
        some = await ids.take(block)
        rows = await desk.read_places(conn, whose, some, whole=whole) if some else []
        windows = _windows(question, rows, calendar)
        left = question.limit - len(found)
        if windows:
            found += await fetch(windows, {row.meter_id: row.serial for row in rows}, left)
        if len(found) >= question.limit:
            return found, found[-1][0]
        if ids.ended:
            return found, None
        block = min(BLOCK_MAX, block * 2)
    return found, _behind(some[-1], question)


def _rows_expected(question: Question) -> int:
    """Return how many rows a meter probably has, so that a page reads few that it does not give."""
    assert question.interval is not None or question.subject is Subject.EVENTS, question.subject
    period_ms = DAY_MS if question.interval is None else _PERIODS_MS.get(question.interval, 1)
    return (question.to_ms - question.from_ms) // period_ms + 1


def _behind(last: int, question: Question) -> Key:
    """Return the key behind everything of a meter or account."""
    length = 3 if question.subject is Subject.EVENTS else 2
    return (last, *[ALWAYS_MS] * (length - 1))


def _windows(question: Question, rows: Iterable[PlaceRow], calendar: LocalCalendar) -> list[Window]:
    """Return what is still to be given of each meter's places; a bucket that two stays at one place share is one's."""
    found: list[Window] = []
    for row in rows:
        place = _place(row)
        if question.subject is Subject.PROFILES:
            assert question.interval is not None, "profiles have an interval"
            window = bucket_window(
                place, question.interval, calendar, since_ms=question.from_ms, until_ms=question.to_ms
            )
        else:
            window = reading_window(place, since_ms=question.from_ms, until_ms=question.to_ms)
        if window is None:
            continue
        if found and found[-1].meter_id == window.meter_id:
            window = replace(window, from_ms=max(window.from_ms, found[-1].to_ms))
        window = _behind_given(question, window)
        if window.from_ms < window.to_ms:
            found.append(window)
    return found


def _behind_given(question: Question, window: Window) -> Window:
    after = question.after
    if after is None or after[0] != window.meter_id:
        return window
    if question.subject is not Subject.EVENTS:
        return replace(window, from_ms=max(window.from_ms, after[1] + 1))
    if after[1] < window.from_ms:
        return window
    return replace(window, from_ms=after[1], after=min(after[2], 2**31 - 1))


def _fetch_of(conn: AsyncConnection, question: Question, calendar: LocalCalendar) -> _Fetch:
    if question.subject is Subject.EVENTS:
        return lambda windows, serials, most: _events(conn, windows, serials, most, calendar)
    if question.subject is Subject.READINGS:
        with_flags = any(column.name == "flags" for column in question.columns)
        return lambda windows, serials, most: _readings(conn, windows, serials, most, calendar, with_flags=with_flags)
    interval = question.interval
    assert interval is not None, "profiles have an interval"
    if interval in SLOT_MS:
        return lambda windows, serials, most: _slots(conn, windows, serials, most, calendar, interval)
    return lambda windows, serials, most: _buckets(conn, windows, serials, most, calendar, interval)


async def _readings(
    conn: AsyncConnection,
    windows: list[Window],
    serials: dict[int, str],
    most: int,
    calendar: LocalCalendar,
    *,
    with_flags: bool,
) -> list[_Keyed]:
    rows = await desk.read_readings(conn, _spans(windows), most=most, with_flags=with_flags)
    zone = calendar.zone
    return [
        ((row[0], to_ms(row[1])), (serials[row[0]], row[1].astimezone(zone), *row[2:11], row[11] or [])) for row in rows
    ]


async def _events(
    conn: AsyncConnection, windows: list[Window], serials: dict[int, str], most: int, calendar: LocalCalendar
) -> list[_Keyed]:
    rows = await desk.read_events(conn, _spans(windows), [window.after for window in windows], most=most)
    found: list[_Keyed] = []
    for meter_id, at, code, received_at in rows:
        meaning = meaning_of(code)
        values = (
            serials[meter_id], at.astimezone(calendar.zone), received_at.astimezone(calendar.zone), code,
            meaning.title, meaning.sort.value, meaning.severity.value,
        )  # fmt: skip
        found.append(((meter_id, to_ms(at), code), values))
    return found


async def _buckets(
    conn: AsyncConnection,
    windows: list[Window],
    serials: dict[int, str],
    most: int,
    calendar: LocalCalendar,
    interval: Interval,
) -> list[_Keyed]:
    if interval is Interval.HOUR:
        rows = await desk.read_hours(conn, _spans(windows), most=most)
        return [_bucket(row, to_ms(row[1]), serials, calendar, interval) for row in rows]
    spans = _day_spans(windows, calendar)
    read = desk.read_days if interval is Interval.DAY else desk.read_months
    return [
        _bucket(row, calendar.midnight_ms(row[1]), serials, calendar, interval)
        for row in await read(conn, spans, most=most)
    ]


def _bucket(
    row: Sequence[Any], started_ms: int, serials: dict[int, str], calendar: LocalCalendar, interval: Interval
) -> _Keyed:
    started_at = from_ms(started_ms).astimezone(calendar.zone)
    final = row[12] is not None and bucket_end(started_ms, interval, calendar) <= to_ms(row[12])
    return (row[0], started_ms), (serials[row[0]], started_at, *row[2:11], QUALITIES[row[11]], final)


async def _slots(
    conn: AsyncConnection,
    windows: list[Window],
    serials: dict[int, str],
    most: int,
    calendar: LocalCalendar,
    interval: Interval,
) -> list[_Keyed]:
    found: list[_Keyed] = []
    step_ms = SLOT_MS[interval]
    for window in windows:
        first_ms = first_start(window.from_ms, interval, calendar)
        while first_ms < window.to_ms and len(found) < most:
            last_ms = min(first_ms + _SLOTS_SPAN_MS, first_start(window.to_ms, interval, calendar))
            points = [
                _point(row)
                for row in await desk.read_points(conn, window.meter_id, from_ms(first_ms), from_ms(last_ms))
            ]
            latest_ms = max((point.at_ms for point in points), default=0)
            for slot in slots_of(points, step_ms, from_ms=first_ms, to_ms=last_ms)[: most - len(found)]:
                key = (window.meter_id, slot.started_ms)
                found.append((key, _slot_values(slot, step_ms, serials[window.meter_id], latest_ms, calendar)))
            first_ms = last_ms
    return found


def _point(row: Sequence[Any]) -> CurvePoint:
    at, wh, opens, export_wh, voltage_mv, pf_milli, edited, suspect = row
    return CurvePoint(
        at_ms=to_ms(at), wh=wh, opens=opens, export_wh=export_wh, voltage_mv=voltage_mv, pf_milli=pf_milli,
        edited=edited, suspect=suspect,
    )  # fmt: skip


def _slot_values(slot: Slot, step_ms: int, serial: str, latest_ms: int, calendar: LocalCalendar) -> tuple[Any, ...]:
    volts, factors = slot.voltages_mv, slot.pfs_milli
    return (
        serial, from_ms(slot.started_ms).astimezone(calendar.zone), slot.readings, slot.import_wh, slot.export_wh,
        slot.estimated_wh, slot.demand_w(step_ms), min(volts, default=None), max(volts, default=None),
        sum(volts) // len(volts) if volts else None, sum(factors) // len(factors) if factors else None,
        QUALITIES[slot.quality], slot.started_ms + step_ms <= latest_ms,
    )  # fmt: skip


async def _totals(
    conn: AsyncConnection, question: Question, calendar: LocalCalendar
) -> tuple[list[_Keyed], Key | None]:
    """Sum buckets over all meters that are asked for; an answer is of as many moments as there were blocks."""
    whose = _whose(question)
    named = await desk.named_meters(conn, whose)
    if named is not None and not await desk.read_places(conn, whose, named, whole=False):
        raise _unknown(question)
    interval = Interval.MONTH if question.interval is Interval.BILLING else question.interval
    assert interval is not None, "profiles have an interval"
    ids = _Ids(conn, whose, named, accounts=False, after=0)
    sums: dict[int, list[Any]] = {}
    everything = replace(question, after=None)
    while not ids.ended:
        some = await ids.take(SUM_BLOCK)
        rows = await desk.read_places(conn, whose, some, whole=False) if some else []
        windows = _windows(everything, rows, calendar)
        if windows:
            spans = _spans(windows) if interval is Interval.HOUR else _day_spans(windows, calendar)
            for began, *values in await desk.read_sums(conn, interval.value, spans):
                started_ms = to_ms(began) if isinstance(began, datetime) else calendar.midnight_ms(began)
                sums[started_ms] = _added(sums[started_ms], values) if started_ms in sums else values
    after_ms = question.after[1] if question.after else -1
    places = sorted(started_ms for started_ms in sums if started_ms > after_ms)
    given = places[: question.limit]
    found: list[_Keyed] = [
        ((0, started_ms), _total_values(started_ms, sums[started_ms], interval, calendar)) for started_ms in given
    ]
    return found, (0, given[-1]) if len(given) < len(places) else None


# Behind the begin of a sum: what becomes of each of its values where two blocks are put together.
_MERGES: tuple[Callable[[Iterable[Any]], Any], ...] = (sum, sum, sum, sum, sum, min, max, sum, sum, sum, sum, max, min)


def _added(left: Sequence[Any], right: Sequence[Any]) -> list[Any]:
    found = []
    for merge, *pair in zip(_MERGES, left, right, strict=True):
        known = [value for value in pair if value is not None]
        found.append(merge(known) if known else None)
    return found


def _total_values(
    started_ms: int, values: Sequence[Any], interval: Interval, calendar: LocalCalendar
) -> tuple[Any, ...]:
    (meters, readings, import_wh, export_wh, estimated_wh, volts_min, volts_max, volts, volts_n, factors, factors_n,
     quality, upto) = values  # fmt: skip
    return (
        from_ms(started_ms).astimezone(calendar.zone), meters, readings, import_wh, export_wh, estimated_wh,
        volts_min, volts_max, volts // volts_n if volts_n else None, factors // factors_n if factors_n else None,
        QUALITIES[quality], upto is not None and bucket_end(started_ms, interval, calendar) <= to_ms(upto),
    )  # fmt: skip


async def _walk_meter_list(
    conn: AsyncConnection, question: Question, calendar: LocalCalendar
) -> tuple[list[_Keyed], Key | None]:
    whose = _whose(question)
    named = await desk.named_meters(conn, whose)
    ids = _Ids(conn, whose, named, accounts=False, after=question.after[0] if question.after else 0)
    names = _names(columns_of(question.subject, None))
    found: list[_Keyed] = []
    for _ in range(LOOKS_MAX):
        some = await ids.take(min(BLOCK_MAX, question.limit))
        rows = await desk.read_meters(conn, whose, some, most=question.limit - len(found)) if some else []
        found += [((row["id"],), tuple(_local(row[name], calendar) for name in names)) for row in rows]
        if len(found) >= question.limit:
            return found, found[-1][0]
        if ids.ended:
            if named is not None and not found and question.after is None:
                raise _unknown(question)
            return found, None
    return found, (some[-1],)


async def _walk_accounts(
    conn: AsyncConnection, question: Question, calendar: LocalCalendar
) -> tuple[list[_Keyed], Key | None]:
    whose = _whose(question)
    named = await desk.named_accounts(conn, whose)
    if named is not None and not await desk.fitting_accounts(conn, whose, named):
        raise _unknown(question)
    lists = question.subject is Subject.ACCOUNTS
    given = 0 if question.after is None else question.after[0]
    # What is left of the account given last comes first, where it has rows of its own.
    ids = _Ids(conn, whose, named, accounts=True, after=given if lists or not given else given - 1)
    names = _names(columns_of(question.subject, question.interval))
    found: list[_Keyed] = []
    for _ in range(LOOKS_MAX):
        block = question.limit - len(found) if lists else question.limit // _rows_expected(question) + 1
        some = await ids.take(min(BLOCK_MAX, block))
        fitting = await desk.fitting_accounts(conn, whose, some) if some else []
        if fitting and lists:
            with_balance = any(column.name in _BALANCES for column in question.columns)
            rows = await desk.read_accounts(conn, fitting, calendar, with_balance=with_balance)
            found += [((row["id"],), tuple(_local(row[name], calendar) for name in names)) for row in rows]
        elif fitting:
            found += await _charges(conn, question, fitting, question.limit - len(found), calendar, names)
        if len(found) >= question.limit:
            return found, found[-1][0]
        if ids.ended:
            return found, None
    return found, (some[-1],) if lists else _behind(some[-1], question)


async def _charges(
    conn: AsyncConnection,
    question: Question,
    account_ids: list[int],
    most: int,
    calendar: LocalCalendar,
    names: Sequence[str],
) -> list[_Keyed]:
    after = question.after or (0, 0)
    parameters = {
        "account_ids": account_ids,
        "afters": [after[1] if each == after[0] else -1 for each in account_ids],
        "first_day": calendar.day_of(first_start(question.from_ms, Interval.DAY, calendar)),
        "last_day": calendar.day_of(first_start(question.to_ms, Interval.DAY, calendar)),
        "first": from_ms(question.from_ms),
        "last": from_ms(question.to_ms),
    }
    if question.interval is Interval.DAY:
        rows, key = await desk.read_charges(conn, parameters, most=most), "id"
    else:
        by_month = question.interval is Interval.MONTH
        rows, key = await desk.read_charge_sums(conn, parameters, most=most, by_month=by_month), "n"
    return [((row["account_id"], row[key]), tuple(_local(row[name], calendar) for name in names)) for row in rows]


def _local(value: Any, calendar: LocalCalendar) -> Any:  # A column's value, of any kind.
    return value.astimezone(calendar.zone) if isinstance(value, datetime) else value


def _names(columns: Iterable[Column]) -> list[str]:
    return [column.name for column in columns]


def _is_whole(question: Question) -> bool:
    """Tell whether meters are asked for wherever they stood."""
    whose = question.whose
    placed = (whose.account, whose.consumer, whose.area, whose.feeder, whose.only_area)
    return all(each is None for each in placed)


def _whose(question: Question) -> DeskWhose:
    whose = question.whose
    return DeskWhose(
        meter=whose.meter, consumer=whose.consumer, account=whose.account, area=whose.area, feeder=whose.feeder,
        make=whose.make, only_area=whose.only_area,
    )  # fmt: skip


def _unknown(question: Question) -> QueryRefused:
    """Refuse a name alike whether it is nobody's, or of an area that whoever asks may not see."""
    whose = question.whose
    if whose.meter is not None:
        return QueryRefused(
            "unknown_meter", f"meter: expected a known serial, and the others to fit, got {whose.meter}"
        )
    if whose.account is not None:
        return QueryRefused(
            "unknown_account", f"account: expected a known number, and the others to fit, got {whose.account}"
        )
    return QueryRefused("unknown_consumer", f"consumer: expected a known number, got {whose.consumer}")


def _place(row: PlaceRow) -> Place:
    def instant(at: datetime | None, otherwise: int) -> int:
        return otherwise if at is None else to_ms(at)

    return Place(
        meter_id=row.meter_id,
        from_ms=instant(row.from_at, -ALWAYS_MS),
        to_ms=instant(row.to_at, ALWAYS_MS),
        apart_from_ms=instant(row.apart_from, -ALWAYS_MS),
        apart_to_ms=instant(row.apart_to, ALWAYS_MS),
    )


def _spans(windows: list[Window]) -> DeskSpans:
    return DeskSpans(
        meter_ids=[window.meter_id for window in windows],
        froms=[from_ms(window.from_ms) for window in windows],
        tos=[from_ms(window.to_ms) for window in windows],
    )


def _day_spans(windows: list[Window], calendar: LocalCalendar) -> DeskSpans:
    """Return the local days that begin within windows."""

    def day(at_ms: int) -> Any:
        return calendar.day_of(first_start(at_ms, Interval.DAY, calendar))

    return DeskSpans(
        meter_ids=[window.meter_id for window in windows],
        froms=[day(window.from_ms) for window in windows],
        tos=[day(window.to_ms) for window in windows],
    )
