"""The simulated city of the benchmarks: real shards, rising registers, credit spread as it says."""

import numpy as np
import pytest

from loadtests.population import (
    MARGIN_DAYS,
    RATED_W,
    STEP_MS,
    STEPS_A_DAY,
    arrivals,
    homes,
    readings_at,
    serial_of,
    shards_of,
)
from protocols.columns import ABSENT
from protocols.topics import SHARDS, shard_of

NUMBERS = np.arange(1, 20_001, dtype=np.int64)


def test_shards_are_those_of_the_serials() -> None:
    """The shards of many meters at once are those that the broker and the registry compute one by one."""
    numbers = np.array([0, 1, 7, 99, 12_345, 9_999_999, 99_999_999], dtype=np.int64)
    assert shards_of(numbers).tolist() == [shard_of(serial_of(number)) for number in numbers.tolist()]
    assert set(shards_of(NUMBERS).tolist()) == set(range(SHARDS))


def test_registers_only_rise_and_within_what_the_meters_are_rated_for() -> None:
    """No reading of the benchmark is held by validation."""
    before_wh = homes(NUMBERS).register_wh
    for step in range(1, STEPS_A_DAY + 1):
        now_wh = readings_at(NUMBERS, step, 0).import_wh
        consumed_wh = now_wh - before_wh
        assert consumed_wh.min() > 0
        assert consumed_wh.max() <= RATED_W * STEP_MS // 3_600_000
        before_wh = now_wh


def test_credit_lies_above_the_level_by_up_to_the_days_it_is_spread_over() -> None:
    """Nobody starts at a level, half of the accounts have a threshold, and margins are spread evenly."""
    made = homes(NUMBERS)
    margin_minor = made.credit_minor - np.maximum(made.threshold_minor, 0)
    fixed_minor = np.array([193, 386, 810, 1_346, 1_884])[NUMBERS % 5]
    day_minor = (62 + NUMBERS * 7 % 105) * STEPS_A_DAY * 443 // 1_000
    assert (margin_minor >= fixed_minor).all()
    days = (margin_minor - fixed_minor) / day_minor
    share, _ = np.histogram(days, bins=MARGIN_DAYS, range=(0, MARGIN_DAYS))
    assert share.min() > 0.9 * len(NUMBERS) / MARGIN_DAYS
    assert (made.threshold_minor == -1).mean() == pytest.approx(0.5)


def test_arrivals_hold_every_meter_once_in_sorted_batches() -> None:
    """Batches are of the size asked for, sorted, and a sample of all meters each."""
    batches = arrivals(NUMBERS, 3_000, np.random.default_rng(1))
    assert [len(batch) for batch in batches] == [3_000] * 6 + [2_000]
    assert sorted(np.concatenate(batches).tolist()) == NUMBERS.tolist()
    for batch in batches:
        assert (np.diff(batch) > 0).all()
        assert batch[0] < 100 < 19_900 < batch[-1]


def test_readings_have_all_channels_but_export() -> None:
    """Six channels hold a value, as in `bench ingest`; export is absent."""
    columns = readings_at(NUMBERS, 3, 1_000)
    assert {name for name, column in columns.named() if (column == ABSENT).any()} == {"export_wh"}
    assert set(columns.at_ms.tolist()) == {1_000 + 3 * STEP_MS}
