"""Random digits: nothing escapes the decoder, and the share that passes is that of the CRC."""

import random

import pytest

from loadtests.bench_sts_fuzz import CRC_ODDS, bench_fuzz, fuzz_tokens, poisson_interval
from vending.sts.identity import EncryptionAlgorithm
from vending.sts.keys import DecoderKey


def test_fuzz_of_twenty_thousand_strings_lets_nothing_escape_and_keeps_to_the_odds() -> None:
    """Under either cipher every string has its typed answer, and the counts add up."""
    report = bench_fuzz(20_000, seed=20_261_122)
    assert report["sound"] is True
    for cipher in ("EA07", "EA11"):
        counts = report[cipher]
        assert isinstance(counts, dict)
        assert counts["escaped"] == 0
        assert counts["complete"] is True
        parts = (counts[name] for name in ("no_token", "reserved_class", "crc_wrong", "intact"))
        assert sum(parts) == counts["strings"] == 20_000
        # A quarter of all strings are no number of 66 bits, and a quarter of the others of the reserved class.
        assert 4_900 < counts["no_token"] < 5_600
        assert 3_400 < counts["reserved_class"] < 4_000


def test_fuzz_stops_when_its_time_is_over() -> None:
    """The bound is in time as well as in number."""
    ticks = iter([0.0, 0.5, 1.5])
    counts = fuzz_tokens(None, strings=10**9, rng=random.Random(1), seconds_max=1.0, clock=lambda: next(ticks))
    assert counts.strings == 1_000


def test_fuzz_names_what_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder with a fault is found out, and so is one that takes everything."""
    key = DecoderKey(ea=EncryptionAlgorithm.MISTY1, key=bytes(16))

    def breaks(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("loadtests.bench_sts_fuzz.decode_any_token", breaks)
    counts = fuzz_tokens(key, strings=100, rng=random.Random(2))
    assert counts.escaped > 0
    assert counts.first_escape.startswith("ZeroDivisionError on ")
    assert not counts.as_the_odds_say
    monkeypatch.setattr("loadtests.bench_sts_fuzz.decode_any_token", lambda *_: None)
    assert not fuzz_tokens(key, strings=100, rng=random.Random(3)).as_the_odds_say


@pytest.mark.parametrize(
    ("seen", "low", "high"), [(0, 0.0, 2.995732), (1, 0.051293, 4.743865), (10, 5.425406, 16.962222)]
)
def test_poisson_interval_of_a_count_is_the_tabulated_one(seen: int, low: float, high: float) -> None:
    """The exact limits for 90 % of the printed tables."""
    # Origin: the chi-square quantiles of any table, halved: e.g. 2.9957 is half of 5.9915 (2 degrees, 95 %).
    assert poisson_interval(seen, error_chance=0.1) == pytest.approx((low, high), abs=1e-5)
    assert CRC_ODDS == 1 / 65_536
