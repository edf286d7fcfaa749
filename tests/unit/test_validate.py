"""Validation of readings: each rule alone, at its edges."""

import pytest

from headend.state import MeterState, RegisterSegment, energy_to_date
from headend.validate import (
    CLOCK_CEILING_MS,
    CLOCK_FLOOR_MS,
    FUTURE_SLACK_MS,
    JUMP_SLACK_WH,
    LATE_WINDOW_MS,
    REJECTED,
    Fault,
    Reason,
    Rollover,
    energy_limit_wh,
    in_late_window,
    validate_late,
    validate_register,
    validate_time,
)
from tests.support import DAY_MS, HOUR_MS, RATED_W, REGISTER_END_WH, REGISTER_WH, T0, meter_state

METER = meter_state()
MARK_MS = T0 + 100 * DAY_MS


def _reason(found: Fault | Rollover | None) -> Reason | None:
    assert not isinstance(found, Rollover)
    return None if found is None else found.reason


@pytest.mark.parametrize(
    ("at_ms", "stored_at_ms", "reason"),
    [
        (0, T0, Reason.CLOCK_ABSURD),
        (CLOCK_FLOOR_MS - 1, T0, Reason.CLOCK_ABSURD),
        (CLOCK_FLOOR_MS, T0, Reason.BEFORE_INSTALLATION),
        (CLOCK_CEILING_MS, T0, Reason.CLOCK_ABSURD),
        (CLOCK_CEILING_MS - 1, T0, Reason.FUTURE),
        (T0 - 1, T0, Reason.BEFORE_INSTALLATION),
        (T0, T0, None),
        (T0 + FUTURE_SLACK_MS, T0, None),
        (T0 + FUTURE_SLACK_MS + 1, T0, Reason.FUTURE),
    ],
)
def test_instant_is_bounded_by_calendar_arrival_and_installation(
    at_ms: int, stored_at_ms: int, reason: Reason | None
) -> None:
    """A clock in 1970 or 2100, more than 300 s ahead of the broker, or before the installation is named as such."""
    assert _reason(validate_time(METER, at_ms, stored_at_ms)) == reason


def test_clock_that_lost_its_time_is_absurd_even_before_the_installation() -> None:
    """1970 is a lost clock, not merely a reading from before the installation."""
    fault = validate_time(METER, 0, T0)
    assert fault is not None
    assert fault.reason is Reason.CLOCK_ABSURD
    assert "1970-01-01" in fault.detail
    assert "M1" in fault.detail


def test_energy_limit_is_rated_power_times_time_and_a_slack() -> None:
    """A meter of 15 kW passes at most 15 kWh an hour, read a moment late."""
    assert energy_limit_wh(RATED_W, HOUR_MS) == 15_000 + JUMP_SLACK_WH
    assert energy_limit_wh(RATED_W, 0) == JUMP_SLACK_WH


@pytest.mark.parametrize(
    ("consumed_wh", "reason"),
    [
        (0, None),
        (15_000 + JUMP_SLACK_WH, None),
        (15_000 + JUMP_SLACK_WH + 1, Reason.JUMP),
        (-1, Reason.REGISTER_FELL),
        (-REGISTER_WH, Reason.REGISTER_FELL),
    ],
)
def test_register_rises_by_at_most_rated_power(consumed_wh: int, reason: Reason | None) -> None:
    """A register neither falls nor jumps beyond what the meter can pass."""
    found = validate_register(METER, T0, REGISTER_WH, T0 + HOUR_MS, REGISTER_WH + consumed_wh)
    assert _reason(found) == reason


@pytest.mark.parametrize(
    ("mark_wh", "register_wh", "expected"),
    [
        (REGISTER_END_WH - 100, 900, Rollover(consumed_wh=1_000)),
        (REGISTER_END_WH - 1, 0, Rollover(consumed_wh=1)),
        # In the last tenth, but further than rated power allows.
        (REGISTER_END_WH * 9 // 10, 0, Reason.REGISTER_RESET),
        (REGISTER_END_WH - 100, 16_000, Reason.REGISTER_SWAP),
        # A reset far from the end is no roll-over.
        (REGISTER_END_WH * 9 // 10 - 1, 0, Reason.REGISTER_RESET),
        (500, 0, Reason.REGISTER_FELL),
    ],
)
def test_fall_is_a_rollover_only_near_the_end_and_at_a_plausible_power(
    mark_wh: int, register_wh: int, expected: Rollover | Reason
) -> None:
    """A register that fell is believed to have rolled over only if energy and position allow it."""
    found = validate_register(METER, T0, mark_wh, T0 + HOUR_MS, register_wh)
    if isinstance(expected, Rollover):
        assert found == expected
    else:
        assert _reason(found) == expected


@pytest.mark.parametrize("digits", [5, 6, 7, 8])
def test_rollover_of_a_small_register_is_seen_at_each_width(digits: int) -> None:
    """Registers of 5 to 8 digits of kWh roll over alike."""
    end_wh = 10 ** (digits + 3)
    meter = meter_state(register_end_wh=end_wh)
    assert validate_register(meter, T0, end_wh - 400, T0 + HOUR_MS, 600) == Rollover(consumed_wh=1_000)


def test_rollover_just_after_a_small_register_began_is_a_fall() -> None:
    """A brown-out zero read of a young register is no roll-over."""
    meter = meter_state(register_end_wh=100_000)
    assert _reason(validate_register(meter, T0, 5_000, T0 + DAY_MS, 0)) is Reason.REGISTER_FELL


def _late(meter: MeterState, at_ms: int, energy_wh: int, **around: tuple[int, int]) -> Reason | None:
    return _reason(validate_late(meter, at_ms, energy_wh, before=around.get("before"), after=around.get("after")))


@pytest.mark.parametrize(
    ("late_ms", "inside"),
    [(HOUR_MS, True), (DAY_MS, True), (34 * DAY_MS, True), (LATE_WINDOW_MS, True), (LATE_WINDOW_MS + 1, False)],
)
def test_late_window_is_35_days_before_the_mark(late_ms: int, inside: bool) -> None:
    """The window counts back from the meter's mark, not from today."""
    meter = meter_state(mark_ms=MARK_MS)
    assert in_late_window(meter, MARK_MS - late_ms) is inside
    assert _late(meter, MARK_MS - late_ms, 5) == (None if inside else Reason.TOO_LATE)


@pytest.mark.parametrize(
    ("energy_wh", "reason"),
    [
        (99, Reason.REGISTER_FELL),
        (100, None),
        (900, None),
        (901, Reason.REGISTER_FELL),
    ],
)
def test_late_reading_lies_between_its_neighbours(energy_wh: int, reason: Reason | None) -> None:
    """Energy to date only rises, also where a reading is fitted in."""
    meter = meter_state(mark_ms=MARK_MS)
    around = {"before": (MARK_MS - 2 * HOUR_MS, 100), "after": (MARK_MS, 900)}
    assert _late(meter, MARK_MS - HOUR_MS, energy_wh, **around) == reason


def test_late_reading_jumps_neither_from_before_nor_to_after() -> None:
    """Rated power holds on both sides of a reading that is fitted in."""
    meter = meter_state(mark_ms=MARK_MS)
    around = {"before": (MARK_MS - 10 * HOUR_MS, 0), "after": (MARK_MS, 100_000)}
    assert _late(meter, MARK_MS - 9 * HOUR_MS, 15_011, **around) is Reason.JUMP
    assert _late(meter, MARK_MS - 9 * HOUR_MS, 15_010, **around) is None
    assert _late(meter, MARK_MS - HOUR_MS, 84_989, **around) is Reason.JUMP
    assert _late(meter, MARK_MS - HOUR_MS, 84_990, **around) is None


def test_only_frames_that_are_no_readings_of_ours_are_rejected() -> None:
    """Rejected is what is no reading of a meter of ours; all other faults are held for an engineer."""
    assert {Reason.MALFORMED, Reason.UNKNOWN_METER, Reason.UNKNOWN_TOPIC} == REJECTED


def test_energy_to_date_follows_the_segment_of_the_instant() -> None:
    """A reading is carried over by the latest segment at or before it, the first one before all."""
    segments = (RegisterSegment(from_ms=T0, offset_wh=-10), RegisterSegment(from_ms=T0 + HOUR_MS, offset_wh=990))
    assert energy_to_date(segments, T0 - 1, 10) == 0
    assert energy_to_date(segments, T0 + HOUR_MS - 1, 900) == 890
    assert energy_to_date(segments, T0 + HOUR_MS, 5) == 995


@pytest.mark.parametrize(
    ("mark_wh", "register_wh", "reason"),
    [
        # What the meter can pass in the hour is 15,010 Wh: a fall of no more is a bad or an old reading.
        (500_000, 500_000 - 15_010, Reason.REGISTER_FELL),
        (500_000, 500_000 - 15_011, Reason.REGISTER_SWAP),
        (500_000, 15_011, Reason.REGISTER_SWAP),
        (500_000, 15_010, Reason.REGISTER_RESET),
        (500_000, 0, Reason.REGISTER_RESET),
        (15_010, 0, Reason.REGISTER_FELL),
        (15_011, 0, Reason.REGISTER_RESET),
        (500_000, -1, Reason.NEGATIVE),
    ],
)
def test_fallen_register_tells_reset_swap_and_fall_apart(mark_wh: int, register_wh: int, reason: Reason) -> None:
    """A reset begins again near 0, another meter's register stands anywhere, a small fall is neither."""
    assert _reason(validate_register(METER, T0, mark_wh, T0 + HOUR_MS, register_wh)) is reason


@pytest.mark.parametrize(
    ("register_wh", "reason"),
    [
        # kWh in the place of Wh: 500 kWh up to what an hour may add.
        (499, Reason.REGISTER_RESET),
        (500, Reason.SCALE_SLIP),
        (515, Reason.SCALE_SLIP),
        (516, Reason.REGISTER_RESET),
        # mWh in the place of Wh.
        (499_998_999, Reason.JUMP),
        (499_999_000, Reason.SCALE_SLIP),
        (515_010_999, Reason.SCALE_SLIP),
        (515_011_000, Reason.JUMP),
    ],
)
def test_register_out_of_scale_is_told_from_reset_and_jump(register_wh: int, reason: Reason) -> None:
    """A register that is a thousand times what was to come, or a thousandth, has slipped by a unit."""
    assert _reason(validate_register(METER, T0, 500_000, T0 + HOUR_MS, register_wh)) is reason


def test_register_below_ten_kwh_says_nothing_of_its_scale() -> None:
    """A young register would take nearly anything for a slip."""
    assert _reason(validate_register(METER, T0, 9_999, T0 + HOUR_MS, 10)) is Reason.REGISTER_FELL
    assert _reason(validate_register(METER, T0, 10_000, T0 + HOUR_MS, 10)) is Reason.SCALE_SLIP


@pytest.mark.parametrize(
    ("consumed_wh", "reason"),
    [
        (500_000 // 4 - 1, Reason.JUMP),
        (500_000 // 4, Reason.SCALE_SLIP),
        (500_000 * 4, Reason.SCALE_SLIP),
        (500_000 * 4 + 1, Reason.JUMP),
    ],
)
def test_increment_a_thousand_times_its_history_has_slipped(consumed_wh: int, reason: Reason) -> None:
    """500 W for 100 days, then 1,000 times 500 Wh in an hour, give or take a factor of four."""
    mark_wh = REGISTER_WH + 100 * 24 * 500
    found = validate_register(METER, MARK_MS, mark_wh, MARK_MS + HOUR_MS, mark_wh + consumed_wh)
    assert _reason(found) is reason


def test_increment_of_a_meter_without_a_day_of_history_is_a_jump() -> None:
    """Before a day has passed there is no history to compare with."""
    mark_ms = T0 + DAY_MS - 1
    found = validate_register(METER, mark_ms, REGISTER_WH + 5_000, mark_ms + HOUR_MS, REGISTER_WH + 213_000)
    assert _reason(found) is Reason.JUMP
