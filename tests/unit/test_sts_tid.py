"""TIDs: published instants, the reserved minute, and the allocation rule."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.sts.errors import TidOutOfRange
from vending.sts.identity import BaseDate
from vending.sts.tid import (
    TID_LOOKAHEAD_MINUTES_MAX,
    TID_MAX,
    TidDeclined,
    TidDeclineReason,
    is_key_expired,
    is_reserved,
    minute_of_tid,
    next_tid,
    special_tid_at,
    tid_at,
)

tids = st.integers(0, TID_MAX)


@pytest.mark.parametrize(
    ("issued_at", "base_date", "tid"),
    [
        # Origin: NectarAPI/tokens-service TransferElectricityCreditTokenIdentifierTest.
        (datetime(1996, 3, 25, 13, 55, 22, tzinfo=UTC), BaseDate.Y1993, 1_698_595),
        # Origin: sts.org.za "Token identifier (TID)" page.
        (datetime(2020, 1, 1, 8, 0, tzinfo=UTC), BaseDate.Y1993, 14_200_320),
        (datetime(2020, 1, 1, 8, 0, tzinfo=UTC), BaseDate.Y2014, 3_155_520),
        (datetime(2024, 11, 24, 20, 15, tzinfo=UTC), BaseDate.Y1993, TID_MAX),
        (datetime(2045, 11, 24, 20, 15, tzinfo=UTC), BaseDate.Y2014, TID_MAX),
        # Origin: STS 531 CTSA09 step 2: a token of 00:01 gets 00:02.
        (datetime(2004, 3, 29, 0, 0, tzinfo=UTC), BaseDate.Y1993, 5_911_200),
        (datetime(2004, 3, 29, 0, 1, tzinfo=UTC), BaseDate.Y1993, 5_911_202),
    ],
)
def test_tid_published_instant_gives_published_tid(issued_at: datetime, base_date: BaseDate, tid: int) -> None:
    """Whole minutes since the base date, seconds dropped, 00:01 moved to 00:02."""
    assert tid_at(issued_at, base_date) == tid


def test_tid_counts_in_utc_whatever_zone_the_instant_is_given_in() -> None:
    """One instant has one TID."""
    there = timezone(timedelta(hours=5, minutes=30))
    assert tid_at(datetime(2026, 1, 1, 5, 30, tzinfo=there), BaseDate.Y2014) == tid_at(
        datetime(2026, 1, 1, tzinfo=UTC), BaseDate.Y2014
    )


@pytest.mark.parametrize(
    "issued_at", [datetime(2013, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2045, 11, 24, 20, 16, tzinfo=UTC)]
)
def test_tid_outside_the_era_is_refused(issued_at: datetime) -> None:
    """No TID is negative and none wraps around."""
    with pytest.raises(TidOutOfRange, match="2014-01-01 00:00 to 2045-11-24 20:15"):
        tid_at(issued_at, BaseDate.Y2014)


@given(tid=tids, base_date=st.sampled_from(BaseDate))
def test_tid_and_minute_are_two_forms_of_one_thing(tid: int, base_date: BaseDate) -> None:
    """A minute has its TID back, and a special token may have any minute."""
    minute = minute_of_tid(tid, base_date)
    assert special_tid_at(minute + timedelta(seconds=59), base_date) == tid
    assert is_reserved(tid) == ((minute.hour, minute.minute) == (0, 1))
    assert not is_reserved(tid_at(minute, base_date))


@given(last_tid=st.none() | tids, now_tid=tids)
def test_next_tid_rises_skips_reserved_and_stays_near_now(last_tid: int | None, now_tid: int) -> None:
    """Whatever is given is above the last, at or after now, not reserved and within the look-ahead."""
    answer = next_tid(last_tid, now_tid)
    if isinstance(answer, TidDeclined):
        assert last_tid is not None or now_tid == TID_MAX
        assert answer.wanted_tid > now_tid
        return
    assert last_tid is None or answer > last_tid
    assert now_tid <= answer <= min(TID_MAX, now_tid + TID_LOOKAHEAD_MINUTES_MAX)
    assert not is_reserved(answer)


@given(now_tid=st.integers(0, TID_MAX - 2 * TID_LOOKAHEAD_MINUTES_MAX))
def test_next_tid_in_one_minute_gives_a_bounded_run_of_distinct_tids(now_tid: int) -> None:
    """Many tokens in one minute take the following minutes, up to the look-ahead, then none."""
    given_tids: list[int] = []
    answer = next_tid(None, now_tid)
    while isinstance(answer, int):
        given_tids.append(answer)
        answer = next_tid(answer, now_tid)
    assert answer.reason is TidDeclineReason.TOO_FAR_AHEAD
    assert given_tids == [
        tid for tid in range(now_tid, now_tid + TID_LOOKAHEAD_MINUTES_MAX + 1) if not is_reserved(tid)
    ]


def test_next_tid_after_a_large_clock_set_back_is_declined() -> None:
    """A clock a day behind the meter's last token gets an answer that says so."""
    answer = next_tid(500_000, 500_000 - 1440)
    assert isinstance(answer, TidDeclined)
    assert (answer.reason, answer.wanted_tid) == (TidDeclineReason.TOO_FAR_AHEAD, 500_001)


def test_next_tid_after_the_last_of_the_era_is_declined() -> None:
    """The last minute is given once; then the meter needs a base-date change."""
    assert next_tid(TID_MAX - 1, TID_MAX) == TID_MAX
    answer = next_tid(TID_MAX, TID_MAX)
    assert isinstance(answer, TidDeclined)
    assert answer.reason is TidDeclineReason.ERA_EXHAUSTED


@pytest.mark.parametrize(("last_tid", "now_tid"), [(None, -1), (None, TID_MAX + 1), (TID_MAX + 1, 5), (-1, 5)])
def test_next_tid_of_something_that_is_no_tid_is_refused(last_tid: int | None, now_tid: int) -> None:
    """A TID is 24 bits."""
    with pytest.raises(TidOutOfRange):
        next_tid(last_tid, now_tid)


@given(tid=tids, ken=st.integers(0, 255))
def test_key_expiry_compares_the_top_byte(tid: int, ken: int) -> None:
    """A key is expired from the first minute after its block of 65,536 minutes, and 255 never."""
    assert is_key_expired(tid, ken) == (tid >= (ken + 1) * 65_536)
    assert not is_key_expired(tid, 255)
