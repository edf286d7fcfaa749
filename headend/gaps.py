"""Gaps in a meter's readings: found in a batch, narrowed by what comes late, asked for, and given up.

Stage: beside the plan of a batch (`spans_of`), and later, at the gap's look (`decide`). Ingest only compares spacings
with what it knows of intervals, as columns; whether something is missing, and what is done about it, is decided from
what is stored. Pure: the edges read, write and order.

A gap is a span between two stored readings of a meter in which at least one interval has no reading; a reading may
come a quarter of an interval early or late.

| a gap at its look                                              | becomes                                         |
|----------------------------------------------------------------|-------------------------------------------------|
| nothing is missing                                             | filled; forgotten if it was only noted          |
| it ended before what a meter's store reaches back to           | given up                                        |
| the meter's interval is not known yet                          | waits for more readings, a day                  |
| an order is open                                               | waits, for an hour; then it is ordered later    |
| an order was answered within the last half minute              | waits: blocks may be on their way               |
| answered, and something is missing still                       | ordered later; given up after three answers     |
| an order may be written, and the meter obeys such orders       | ordered                                         |
| any other                                                      | waits                                           |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from billing.calendar import to_ms
from headend.pipeline import Plan
from headend.validate import LATE_WINDOW_MS
from protocols.columns import Int64Column

# Of a meter that has told no interval yet: the profile of most prepaid meters (IS 15959: 15 or 30 minutes).
INTERVAL_S_DEFAULT: Final = 1_800
# Meters that report every few seconds are not asked for single readings: bills need registers, not every reading.
INTERVAL_S_MIN: Final = 300
INTERVAL_S_MAX: Final = 86_400
# What a meter keeps, and what is accepted late.
STORE_MS: Final = LATE_WINDOW_MS
# An order that a meter has not answered within an hour gives its place to another.
ORDER_LIFE_MS: Final = 3_600_000
# A reply comes before the blocks it announces: 18 of them, of 35 days, in some seconds.
SETTLE_MS: Final = 30_000
# What a meter has answered three times without sending it is not in its store.
ANSWERS_MAX: Final = 3
# A quarter of an hour after the first order, an hour, 4 h, 16 h, then once a day: 38 orders until 35 days are over.
ASK_AGAIN_MS_FIRST: Final = 900_000
ASK_AGAIN_MS_MAX: Final = 86_400_000
# What waits for a place, a row that is locked, or an answer is looked at again this soon.
LOOK_AGAIN_MS: Final = 60_000
_FIRST_CAPACITY: Final = 1_024


class GapState(StrEnum):
    """Where a gap stands; the last two are its ends."""

    NOTED = "noted"
    OPEN = "open"
    ASKED = "asked"
    FILLED = "filled"
    GIVEN_UP = "given_up"


LIVE: Final = frozenset({GapState.NOTED, GapState.OPEN, GapState.ASKED})


class Intervals:
    """Seconds between the readings of meters, by meter id: what is known of them, else `INTERVAL_S_DEFAULT`."""

    def __init__(self) -> None:
        self._known = np.full(_FIRST_CAPACITY, INTERVAL_S_DEFAULT, dtype=np.int32)

    def of(self, meter_id: Int64Column) -> Int64Column:
        """Return the interval of each meter."""
        self._reach(int(meter_id.max()))
        return self._known[meter_id].astype(np.int64)

    def learn(self, intervals_s: Mapping[int, int]) -> None:
        """Know the intervals of some meters."""
        for meter_id, interval_s in intervals_s.items():
            self._reach(meter_id)
            self._known[meter_id] = max(interval_s, INTERVAL_S_MIN)

    def _reach(self, meter_id: int) -> None:
        if meter_id >= len(self._known):
            more = np.full(max(len(self._known), meter_id + 1 - len(self._known)), INTERVAL_S_DEFAULT, dtype=np.int32)
            self._known = np.concatenate([self._known, more])


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Times between two readings of a meter that may lack others: meter, from, to (ms), intervals missing.

    `intervals` is what was known of the meters, and may learn.
    """

    found: list[tuple[int, int, int, int]]
    intervals: Intervals


def spans_of(made: Plan, intervals: Intervals) -> Spans | None:
    """Find the spans of a planned batch that are longer than their meter's interval allows; None of most batches.

    Meters that sent three or more equally spaced readings in this batch tell their interval by that.
    """
    found: list[tuple[int, int, int, int]] = []
    if made.ordinary is not None and len(made.ordinary.columns):
        columns = made.ordinary.columns
        found += _long_spans(columns.meter_id, columns.at_ms, made.ordinary.since_ms, intervals)
    if made.rows:
        meter_id = np.array([row.meter_id for row in made.rows], dtype=np.int64)
        at_ms = np.array([to_ms(row.read_at) for row in made.rows], dtype=np.int64)
        since_ms = np.array([made.since_ms[meter] for meter in meter_id[_firsts(meter_id)].tolist()], dtype=np.int64)
        found += _long_spans(meter_id, at_ms, since_ms, intervals)
    return Spans(found=found, intervals=intervals) if found else None


def missing_between(before_ms: int, after_ms: int, interval_s: int) -> int:
    """Count the intervals without a reading between two readings.

    Rounds: down, a quarter of an interval being allowed to each side.
    """
    interval_ms = interval_s * 1000
    return max(0, (after_ms - before_ms + interval_ms // 4) // interval_ms - 1)


def interval_of(before_ms: Sequence[int], inside_ms: Sequence[int], after_ms: Sequence[int]) -> int | None:
    """Return the seconds that most often lie between neighbouring readings around a span; None if there are none.

    What lies between the three parts is no neighbourhood, since something may be missing there.
    """
    seconds = Counter(
        round((later - earlier) / 1000)
        for part in (sorted(before_ms), inside_ms, after_ms)
        for earlier, later in pairwise(part)
    )
    if not seconds:
        return None
    often = max(seconds.items(), key=lambda item: (item[1], -item[0]))[0]
    return min(max(often, INTERVAL_S_MIN), INTERVAL_S_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A gap at its look, with what is stored inside and around it.

    Units: milliseconds; ages by the database's clock. `interval_s` None is not known yet; `before_ms` and `after_ms`
    are read only then, the latest first and the earliest first. `order_state` None has no order.
    """

    id: int
    meter_id: int
    shard: int
    state: GapState
    asks: int
    answers: int
    interval_s: int | None
    can_read_again: bool
    area: str
    from_ms: int
    to_ms: int
    ask_in_ms: int | None
    order_state: str | None
    order_age_ms: int | None
    answered_ms: int | None
    inside_ms: Sequence[int]
    before_ms: Sequence[int]
    after_ms: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What becomes of a gap at its look.

    Invariants: `wants_order` only when open; `ask_in_ms` None leaves the time of the next order as it is. `learnt_s` is
    an interval that was not known before; `is_none` says that nothing ever was missing.
    """

    gap: Gap
    from_ms: int
    to_ms: int
    missing: int
    state: GapState
    answers: int
    look_in_ms: int
    ask_in_ms: int | None = None
    wants_order: bool = False
    learnt_s: int | None = None
    is_none: bool = False


def decide(gap: Gap, now_ms: int) -> Looked:
    """Decide what becomes of a gap; see the table of this module."""
    learnt_s = None if gap.interval_s else interval_of(gap.before_ms, gap.inside_ms, gap.after_ms)
    interval_s = max(gap.interval_s or learnt_s or INTERVAL_S_DEFAULT, INTERVAL_S_MIN)
    from_ms, to_ms, missing = _narrowed(gap, interval_s)
    looked = Looked(
        gap=gap,
        from_ms=from_ms,
        to_ms=to_ms,
        missing=missing,
        state=GapState.OPEN,
        answers=gap.answers,
        look_in_ms=LOOK_AGAIN_MS,
        learnt_s=learnt_s,
    )
    if not missing:
        return replace(looked, state=GapState.FILLED, is_none=gap.state is GapState.NOTED)
    if now_ms - to_ms > STORE_MS:
        return replace(looked, state=GapState.GIVEN_UP)
    if gap.interval_s is None and learnt_s is None and now_ms - gap.to_ms < ASK_AGAIN_MS_MAX:
        # A meter's first two readings tell no interval yet; the next ones will.
        return replace(looked, state=GapState.NOTED, look_in_ms=ASK_AGAIN_MS_FIRST)
    if gap.state is GapState.ASKED:
        return _asked(gap, looked)
    wait_ms = max(0, gap.ask_in_ms or 0)
    if wait_ms or not gap.can_read_again:
        return replace(looked, look_in_ms=wait_ms or ASK_AGAIN_MS_MAX)
    return replace(looked, wants_order=True)


def ask_again_ms(asks: int) -> int:
    """Return how long after the latest of some orders the next one waits."""
    return int(min(ASK_AGAIN_MS_FIRST * 4 ** min(max(asks - 1, 0), 10), ASK_AGAIN_MS_MAX))


def _asked(gap: Gap, looked: Looked) -> Looked:
    """Decide on a gap for which an order was written."""
    if gap.order_state in ("pending", "held", "sent") and (gap.order_age_ms or 0) < ORDER_LIFE_MS:
        return replace(looked, state=GapState.ASKED)
    answers = gap.answers
    if gap.order_state == "confirmed":
        if (gap.answered_ms or 0) < SETTLE_MS:
            return replace(looked, state=GapState.ASKED, look_in_ms=SETTLE_MS)
        answers += 1
    if answers >= ANSWERS_MAX:
        return replace(looked, state=GapState.GIVEN_UP, answers=answers)
    wait_ms = ask_again_ms(gap.asks)
    return replace(looked, answers=answers, look_in_ms=wait_ms, ask_in_ms=wait_ms)


def _narrowed(gap: Gap, interval_s: int) -> tuple[int, int, int]:
    """Return the stored readings before the first and after the last missing interval, and how many are missing."""
    pairs = [
        (before_ms, after_ms, missing_between(before_ms, after_ms, interval_s))
        for before_ms, after_ms in pairwise([gap.from_ms, *gap.inside_ms, gap.to_ms])
    ]
    holes = [pair for pair in pairs if pair[2]]
    if not holes:
        return gap.from_ms, gap.to_ms, 0
    return holes[0][0], holes[-1][1], sum(number for _, _, number in holes)


def _firsts(meter_id: Int64Column) -> npt.NDArray[np.bool_]:
    """Tell which rows, sorted by meter, are the first of theirs."""
    first = np.empty(len(meter_id), dtype=np.bool_)
    first[0] = True
    np.not_equal(meter_id[1:], meter_id[:-1], out=first[1:])
    return first


def _long_spans(
    meter_id: Int64Column, at_ms: Int64Column, since_ms: Int64Column, intervals: Intervals
) -> list[tuple[int, int, int, int]]:
    """Find long spans of readings sorted by meter and instant; `since_ms` has the mark of each meter before them."""
    first = _firsts(meter_id)
    before_ms = np.empty_like(at_ms)
    before_ms[1:] = at_ms[:-1]
    before_ms[first] = since_ms
    # The same as `missing_between` above 0, for all at once: 1.75 intervals or more.
    long = (at_ms - before_ms) * 4 >= intervals.of(meter_id) * 7_000
    if not bool(long.any()):
        return []
    steps_s = {meter: _step_s(meter_id, at_ms, meter) for meter in set(meter_id[long].tolist())}
    intervals.learn({meter: step_s for meter, step_s in steps_s.items() if step_s})
    interval_s = intervals.of(meter_id[long]).tolist()
    listed = zip(meter_id[long].tolist(), before_ms[long].tolist(), at_ms[long].tolist(), interval_s, strict=True)
    counted = [(meter, begin, end, missing_between(begin, end, step_s)) for meter, begin, end, step_s in listed]
    return [span for span in counted if span[3]]


def _step_s(meter_id: Int64Column, at_ms: Int64Column, meter: int) -> int | None:
    """Return the seconds between a meter's readings in a batch if there are three or more, equally spaced."""
    begin, end = np.searchsorted(meter_id, [meter, meter + 1]).tolist()
    spacings = set(np.diff(at_ms[begin:end]).tolist()) if end - begin > 2 else set()
    return int(spacings.pop()) // 1000 if len(spacings) == 1 else None
