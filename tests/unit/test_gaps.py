"""Gaps: found as columns, narrowed by what is stored, asked for, given up."""

from dataclasses import replace

import numpy as np
import pytest

from headend.charge_table import ChargeTable
from headend.column_plan import plan_columns
from headend.gaps import (
    ANSWERS_MAX,
    ASK_AGAIN_MS_MAX,
    ORDER_LIFE_MS,
    SETTLE_MS,
    STORE_MS,
    Gap,
    GapState,
    Intervals,
    ask_again_ms,
    decide,
    interval_of,
    missing_between,
    spans_of,
)
from headend.pipeline import Plan
from protocols.columns import Int64Column, ReadingColumns
from tests.support import CALENDAR, DAY_MS, HOUR_MS, MINUTE_MS, T0

HALF_MS = 30 * MINUTE_MS


def _ints(*values: int) -> Int64Column:
    return np.array(values, dtype=np.int64)


def _made(*readings: tuple[int, int], since: dict[int, int]) -> Plan:
    """Plan readings (meter, instant) in columns, after the marks of their meters."""
    meter_id, at_ms = (_ints(*column) for column in zip(*readings, strict=True))
    meters = sorted({meter for meter, _ in readings})
    columns = ReadingColumns.of(meter_id, at_ms, at_ms)
    nothing = plan_columns(ChargeTable(CALENDAR), columns.take(slice(0)), _ints().astype(np.intp), _ints(), CALENDAR)
    since_ms = _ints(*(since[meter] for meter in meters))
    return Plan(ordinary=replace(nothing, columns=columns, since_ms=since_ms))


def _gap(**changes: object) -> Gap:
    """Make an open gap of four missing half hours."""
    gap = Gap(
        id=1,
        meter_id=7,
        shard=0,
        state=GapState.OPEN,
        asks=0,
        answers=0,
        interval_s=1_800,
        can_read_again=True,
        area="north",
        from_ms=T0,
        to_ms=T0 + 5 * HALF_MS,
        ask_in_ms=None,
        order_state=None,
        order_age_ms=None,
        answered_ms=None,
        inside_ms=(),
        before_ms=(),
        after_ms=(),
    )
    return replace(gap, **changes)  # type: ignore[arg-type]  # Fields by name.


NOW_MS = T0 + DAY_MS


@pytest.mark.parametrize(
    ("span_ms", "missing"),
    [
        (HALF_MS, 0),
        (HALF_MS * 7 // 4 - 1, 0),
        (HALF_MS * 7 // 4, 1),
        (2 * HALF_MS, 1),
        (48 * HALF_MS, 47),
    ],
)
def test_span_lacks_readings_from_one_and_three_quarters_of_an_interval_on(span_ms: int, missing: int) -> None:
    """Less than one missing interval is no gap; a reading may come a quarter of an interval early."""
    assert missing_between(T0, T0 + span_ms, 1_800) == missing
    found = spans_of(_made((7, T0 + span_ms), since={7: T0}), Intervals())
    assert (found.found if found else []) == ([(7, T0, T0 + span_ms, missing)] if missing else [])


def test_gaps_of_a_batch_are_each_meters_own() -> None:
    """A meter's first reading is measured from its mark, any other from the one before it, never from a neighbour's."""
    made = _made(
        (1, T0 + HALF_MS),
        (1, T0 + 2 * HALF_MS),
        (2, T0 + DAY_MS),
        (2, T0 + DAY_MS + HALF_MS),
        (3, T0 + HALF_MS),
        (3, T0 + 4 * HALF_MS),
        since={1: T0, 2: T0, 3: T0},
    )
    found = spans_of(made, Intervals())
    assert found is not None
    assert found.found == [(2, T0, T0 + DAY_MS, 47), (3, T0 + HALF_MS, T0 + 4 * HALF_MS, 2)]


def test_hourly_meter_in_blocks_has_no_gaps() -> None:
    """Three equally spaced readings of a batch tell the interval, and the next batch knows it."""
    intervals = Intervals()
    block = [(5_000, T0 + hour * HOUR_MS) for hour in range(1, 5)]
    assert spans_of(_made(*block, since={5_000: T0}), intervals) is None
    assert spans_of(_made((5_000, T0 + 5 * HOUR_MS), since={5_000: T0 + 4 * HOUR_MS}), intervals) is None
    assert spans_of(_made((5_000, T0 + 7 * HOUR_MS), since={5_000: T0 + 5 * HOUR_MS}), intervals) is not None


def test_interval_is_what_lies_most_often_between_neighbours() -> None:
    """A reading taken by hand in between, or a hole, does not change what a meter's interval is."""
    before = [T0, T0 - HOUR_MS, T0 - HOUR_MS - MINUTE_MS * 10, T0 - 2 * HOUR_MS, T0 - 3 * HOUR_MS]
    assert interval_of(before, [], [T0 + DAY_MS, T0 + DAY_MS + HOUR_MS]) == 3_600
    assert interval_of([T0], [], [T0 + HOUR_MS]) is None


def test_gap_with_some_readings_inside_is_narrowed() -> None:
    """It spans from before the first missing interval to after the last, both ends stored."""
    looked = decide(_gap(inside_ms=(T0 + HALF_MS, T0 + 3 * HALF_MS)), NOW_MS)
    assert (looked.from_ms, looked.to_ms, looked.missing) == (T0 + HALF_MS, T0 + 5 * HALF_MS, 2)
    assert looked.wants_order


def test_gap_without_anything_missing_is_filled_or_forgotten() -> None:
    """All intervals stored close it; a span that was only noted, by a wrong guess of the interval, never was a gap."""
    whole = tuple(T0 + number * HALF_MS for number in range(1, 5))
    looked = decide(_gap(inside_ms=whole, state=GapState.ASKED, order_state="sent", order_age_ms=1), NOW_MS)
    assert (looked.state, looked.missing, looked.is_none) == (GapState.FILLED, 0, False)
    hourly = decide(
        _gap(state=GapState.NOTED, interval_s=None, to_ms=T0 + HOUR_MS, before_ms=(T0, T0 - HOUR_MS)), NOW_MS
    )
    assert (hourly.state, hourly.is_none, hourly.learnt_s) == (GapState.FILLED, True, 3_600)


@pytest.mark.parametrize(
    ("changes", "now_ms", "state", "wants_order"),
    [
        ({}, NOW_MS, GapState.OPEN, True),
        ({"ask_in_ms": 1}, NOW_MS, GapState.OPEN, False),
        ({"ask_in_ms": -1}, NOW_MS, GapState.OPEN, True),
        ({"can_read_again": False}, NOW_MS, GapState.OPEN, False),
        ({}, T0 + 5 * HALF_MS + STORE_MS, GapState.OPEN, True),
        ({}, T0 + 5 * HALF_MS + STORE_MS + 1, GapState.GIVEN_UP, False),
        ({"interval_s": None}, T0 + 5 * HALF_MS + DAY_MS - 1, GapState.NOTED, False),
        ({"interval_s": None}, T0 + 5 * HALF_MS + DAY_MS, GapState.OPEN, True),
    ],
)
def test_open_gap_is_ordered_when_it_may_be(
    changes: dict[str, object], now_ms: int, state: GapState, wants_order: bool
) -> None:
    """Not before its time, not of a meter that cannot, not beyond its store, not while the interval is a guess."""
    looked = decide(_gap(**changes), now_ms)
    assert (looked.state, looked.wants_order) == (state, wants_order)


@pytest.mark.parametrize(
    ("order", "state", "answers"),
    [
        ({"order_state": "sent", "order_age_ms": ORDER_LIFE_MS - 1}, GapState.ASKED, 0),
        ({"order_state": "sent", "order_age_ms": ORDER_LIFE_MS}, GapState.OPEN, 0),
        ({"order_state": "confirmed", "answered_ms": SETTLE_MS - 1}, GapState.ASKED, 0),
        ({"order_state": "confirmed", "answered_ms": SETTLE_MS}, GapState.OPEN, 1),
        ({"order_state": "confirmed", "answered_ms": SETTLE_MS, "answers": ANSWERS_MAX - 1}, GapState.GIVEN_UP, 3),
        ({"order_state": "superseded"}, GapState.OPEN, 0),
    ],
)
def test_asked_gap_waits_for_its_answer_and_is_asked_again(
    order: dict[str, object], state: GapState, answers: int
) -> None:
    """An hour for the answer, half a minute for the blocks behind it; three answers without it are enough."""
    looked = decide(_gap(state=GapState.ASKED, asks=1, **order), NOW_MS)
    assert (looked.state, looked.answers, looked.wants_order) == (state, answers, False)
    assert (looked.ask_in_ms == ask_again_ms(1)) == (state is GapState.OPEN)


def test_orders_come_seldomer_and_at_last_once_a_day() -> None:
    """A meter that never answers costs one order a day."""
    waits = [ask_again_ms(asks) for asks in range(1, 8)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1], ask_again_ms(10**6)) == (900_000, ASK_AGAIN_MS_MAX, ASK_AGAIN_MS_MAX)
