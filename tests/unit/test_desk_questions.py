"""Questions, cursors, windows, slots and figures of the desk, without a database."""

from __future__ import annotations

import random
from datetime import date
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.calendar import LocalCalendar
from headend.queries.columns import Subject
from headend.queries.cursors import read_cursor, write_cursor
from headend.queries.errors import QueryRefused
from headend.queries.questions import Interval, behind, read_days, read_instant, read_question
from headend.queries.slots import CurvePoint, slots_of
from headend.queries.summary import HourUse, period_before, summarise
from headend.queries.windows import Place, bucket_end, bucket_start, bucket_window, first_start, reading_window

INDIA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
BERLIN = LocalCalendar(ZoneInfo("Europe/Berlin"))
SPAN = {"from": "2026-11-01", "to": "2026-11-08"}
HOUR_MS, DAY_MS = 3_600_000, 86_400_000


def refusal(**asked: str) -> str:
    """Return the code by which a question about profiles is refused."""
    with pytest.raises(QueryRefused) as refused:
        read_question(Subject.PROFILES, {**SPAN, **asked}, INDIA)
    return refused.value.code


def test_instants_of_every_form_are_the_same_instant() -> None:
    """A local day, a local time and an instant with its zone, also with its plus sign lost on the way."""
    texts = ("2026-11-01", "2026-11-01T00:00", "2026-11-01T00:00:00+05:30", "2026-11-01T00:00:00 05:30",
             "2026-10-31T18:30:00Z")  # fmt: skip
    assert {read_instant("from", text, INDIA) for text in texts} == {1_793_471_400_000}


def test_wrong_questions_are_refused_by_name() -> None:
    """Each fault of a question has its code."""
    assert refusal(interval="raw") == "bad_interval"
    assert refusal(fields="import_wh,import_wh") == "bad_fields"
    assert refusal(limit="10001") == "bad_limit"
    assert refusal(total="yes") == "bad_total"
    assert refusal(consumer="x") == "bad_name"
    assert refusal(area="a\0") == "bad_name"
    assert refusal(to="2026-10-01") == "bad_span"
    assert refusal(to="9999-12-31") == "bad_instant"
    assert refusal(interval="15min", to="2029-01-01") == "period_too_long"
    with pytest.raises(QueryRefused, match="expected `from` and `to`"):
        read_question(Subject.EVENTS, {"from": "2026-11-01"}, INDIA)
    for days in ({"from": "2026-11-02", "to": "2026-11-02"}, {"from": "2026-11-01", "to": "2028-11-01"}):
        with pytest.raises(QueryRefused):
            read_days(days)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3), st.integers(0, 200), st.integers(1, 255))
def test_cursor_comes_back_whole_or_is_refused(key: list[int], place: int, change: int) -> None:
    """A cursor gives its key back to its question; changed anywhere, or for another question, it is refused."""
    text = write_cursor("question", tuple(key))
    assert read_cursor("question", text, len(key)) == tuple(key)
    place %= len(text)
    changed = text[:place] + chr(33 + (ord(text[place]) + change) % 90) + text[place + 1 :]
    wrong = [("other question", text, len(key)), ("question", text, len(key) + 1), ("question", text[:-1], len(key))]
    if changed != text:
        wrong.append(("question", changed, len(key)))
    # The last character has bits that are no byte's.
    same_bytes = place == len(text) - 1
    for question, sent, length in wrong:
        if sent == changed and same_bytes:
            continue
        with pytest.raises(QueryRefused):
            read_cursor(question, sent, length)


def test_cursor_belongs_to_its_question_and_its_area() -> None:
    """Columns and limit may change on the way; whose rows, the span and the caller's area may not."""
    first = read_question(Subject.READINGS, SPAN, INDIA)
    cursor = first.cursor((7, 5))
    same = read_question(Subject.READINGS, {**SPAN, "cursor": cursor, "limit": "5", "fields": "read_at"}, INDIA)
    assert same.after == (7, 5)
    assert behind(first, (7, 5)).after == (7, 5)
    for asked, area in (({"meter": "M1"}, None), ({"to": "2026-11-09"}, None), ({}, "north")):
        with pytest.raises(QueryRefused):
            read_question(Subject.READINGS, {**SPAN, **asked, "cursor": cursor}, INDIA, only_area=area)


@pytest.mark.parametrize("calendar", [INDIA, BERLIN])
@given(at_ms=st.integers(1_700_000_000_000, 1_800_000_000_000), interval=st.sampled_from(list(Interval)[1:]))
def test_buckets_follow_each_other(calendar: LocalCalendar, at_ms: int, interval: Interval) -> None:
    """An instant lies in its bucket; the next one begins where it ends, on the day of a clock change, too."""
    started_ms = bucket_start(at_ms, interval, calendar)
    ends_ms = bucket_end(started_ms, interval, calendar)
    assert started_ms <= at_ms < ends_ms
    assert bucket_start(ends_ms, interval, calendar) == ends_ms
    assert first_start(at_ms, interval, calendar) == (at_ms if at_ms == started_ms else ends_ms)


def test_bucket_of_two_places_is_given_to_neither() -> None:
    """A meter that moved inside a day: its day before is the first place's, its day after the second's."""
    midnight = INDIA.midnight_ms(date(2026, 11, 2))
    moved = midnight + 10 * HOUR_MS
    span = {"since_ms": midnight - DAY_MS, "until_ms": midnight + 3 * DAY_MS}
    first = Place(meter_id=1, from_ms=midnight - 30 * DAY_MS, to_ms=moved, apart_to_ms=moved)
    second = Place(meter_id=1, from_ms=moved, apart_from_ms=moved)
    windows = [bucket_window(place, Interval.DAY, INDIA, **span) for place in (first, second)]
    assert [(each.from_ms, each.to_ms) for each in windows if each] == [
        (midnight - DAY_MS, midnight), (moved, midnight + 3 * DAY_MS),
    ]  # fmt: skip
    # Also where the span ends inside that day, before the move.
    short = bucket_window(first, Interval.DAY, INDIA, since_ms=midnight - DAY_MS, until_ms=midnight + HOUR_MS)
    assert short is not None
    assert short.to_ms == midnight
    read = [reading_window(place, **span) for place in (first, second)]
    assert [each.to_ms for each in read if each] == [moved, midnight + 3 * DAY_MS]
    # From a store, and not from another place: the day of the installation is whole.
    fresh = bucket_window(Place(meter_id=1, from_ms=moved), Interval.DAY, INDIA, **span)
    assert fresh is not None
    assert fresh.from_ms == midnight


@given(seed=st.integers(0, 10_000), step_ms=st.sampled_from([900_000, 1_800_000]))
def test_slots_add_up_to_the_curve_however_they_are_cut(seed: int, step_ms: int) -> None:
    """Any readings: the slots of a span are those of its halves, and the whole adds up to the register."""
    rng = random.Random(seed)
    at_ms, wh, points = 1_800_000_000_000 + rng.randrange(step_ms), 0, []
    for _ in range(rng.randrange(2, 40)):
        points.append(CurvePoint(at_ms=at_ms, wh=wh, export_wh=wh // 3))
        at_ms += rng.choice((step_ms, 60_000, rng.randrange(1, 5 * step_ms)))
        wh += rng.randrange(0, 1_000)
    first_ms = points[0].at_ms // step_ms * step_ms
    last_ms = -(-points[-1].at_ms // step_ms) * step_ms
    whole = slots_of(points, step_ms, from_ms=first_ms, to_ms=last_ms)
    assert sum(slot.import_wh for slot in whole) == points[-1].wh
    assert sum(slot.export_wh or 0 for slot in whole) == points[-1].wh // 3
    # The first reading may end a slot that lies before the span.
    assert sum(slot.readings for slot in whole) == len(points) - (points[0].at_ms == first_ms)
    middle_ms = first_ms + rng.randrange(0, (last_ms - first_ms) // step_ms + 1) * step_ms
    parts = [
        slot
        for from_ms, to_ms in ((first_ms, middle_ms), (middle_ms, last_ms))
        for slot in slots_of(points, step_ms, from_ms=from_ms, to_ms=to_ms)
    ]
    assert parts == whole


def test_register_that_begins_again_gives_no_energy() -> None:
    """Where a meter was installed the curve begins anew: what lies between is nobody's."""
    points = [
        CurvePoint(at_ms=0, wh=100), CurvePoint(at_ms=900_000, wh=150), CurvePoint(at_ms=1_000_000, wh=7, opens=True),
        CurvePoint(at_ms=1_800_000, wh=27),
    ]  # fmt: skip
    slots = slots_of(points, 900_000, from_ms=0, to_ms=1_800_000)
    assert [slot.import_wh for slot in slots] == [50, 20]


def test_summary_splits_an_hour_at_a_zones_edge() -> None:
    """A zone that ends at a quarter past takes a quarter of the hour, rounded down; the zones add up."""
    hours = [
        HourUse(started_ms=number * HOUR_MS, import_wh=101, export_wh=None, estimated_wh=0, demand_w=300 - number)
        for number in range(2)
    ]
    edge_ms = HOUR_MS + HOUR_MS // 4
    use = summarise(hours, lambda at_ms: ("day", edge_ms) if at_ms < edge_ms else ("night", 10 * HOUR_MS))
    assert use.zones_wh == {"day": 101 + 25, "night": 76}
    assert (use.peak_w, use.peak_hour_ms, use.load_factor_milli) == (300, 0, 202 * 1_000 // 600)
    assert summarise([], lambda at_ms: (None, at_ms + 1)).load_factor_milli is None


def test_period_before_is_of_whole_months_or_days() -> None:
    """March's is February; two months' are the two before; a week's is the week before."""
    assert period_before(date(2026, 3, 1), date(2026, 4, 1)) == (date(2026, 2, 1), date(2026, 3, 1))
    assert period_before(date(2026, 1, 1), date(2026, 3, 1)) == (date(2025, 11, 1), date(2026, 1, 1))
    assert period_before(date(2026, 1, 10), date(2026, 1, 17)) == (date(2026, 1, 3), date(2026, 1, 10))
