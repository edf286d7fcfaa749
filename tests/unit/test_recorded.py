"""Recorded profiles: exact energies, honest gaps, clear refusals."""

import gzip
from contextlib import suppress
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from math import floor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_sim.recorded import ProfileError, parse_profile, round_half_up

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ROOT / "prepaid" / "recorded" / "home_hourly.csv"
SHARED = ROOT.parent / "shared" / "data"
UCI_HEADER = (
    "Date;Time;Global_active_power;Global_reactive_power;Voltage;Global_intensity;"
    "Sub_metering_1;Sub_metering_2;Sub_metering_3\r\n"
)
HOUR_MS = 3_600_000


def hourly(*rows: str) -> bytes:
    """Compose a `start,value` file of rows."""
    return "\n".join(["start,value", *rows, ""]).encode()


def minutes(*rows: str) -> bytes:
    """Compose a UCI file of rows."""
    return (UCI_HEADER + "".join(f"{row}\r\n" for row in rows)).encode()


def test_hourly_file_becomes_intervals_of_an_hour_in_wh() -> None:
    """A row is the energy from its start to an hour later."""
    profile = parse_profile("a.csv", hourly("2020-04-01 01:00:00+00:00,0.078", "2020-04-01 02:00:00+00:00,1.5"))
    assert profile.start_ms == [1585702800000, 1585702800000 + HOUR_MS]
    assert profile.end_ms == [1585702800000 + HOUR_MS, 1585702800000 + 2 * HOUR_MS]
    assert profile.energy_wh == [78, 1500]
    assert profile.voltage_mv == profile.current_ma == profile.power_w == [None, None]


def test_start_without_zone_is_utc_and_another_zone_is_converted() -> None:
    """The three ways to write one instant agree."""
    plain = parse_profile("a", hourly("2020-04-01 01:00:00,1", "2020-04-01 02:00:00,1"))
    zulu = parse_profile("a", hourly("2020-04-01T01:00:00Z,1", "2020-04-01T02:00:00Z,1"))
    india = parse_profile("a", hourly("2020-04-01 06:30:00+05:30,1", "2020-04-01 07:30:00+05:30,1"))
    assert plain == zulu == india


def test_gzip_file_equals_its_plain_text() -> None:
    """Compression is recognised by content, whatever the name."""
    data = hourly("2020-04-01 01:00:00,1", "2020-04-01 02:00:00,1")
    assert parse_profile("a.csv", gzip.compress(data)) == parse_profile("a.csv", data)


def test_half_hourly_spacing_is_found_although_the_file_has_gaps() -> None:
    """The most common spacing is the interval's length."""
    times = ("00:00", "00:30", "01:00", "05:00", "05:30")
    profile = parse_profile("a", hourly(*(f"2020-04-01 {time}:00,1" for time in times)))
    assert profile.step_ms == 1_800_000
    assert profile.end_ms[2] + 7 * 1_800_000 == profile.start_ms[3]


@pytest.mark.parametrize("value", ["", " ", "nan", "NaN", "inf", "?", "n/a", "1_0", "٣"])
def test_value_that_is_no_number_is_a_counted_gap(value: str) -> None:
    """A missing value leaves no interval and is counted."""
    rows = ("2020-04-01 01:00:00,1", f"2020-04-01 02:00:00,{value}", "2020-04-01 03:00:00,2")
    profile = parse_profile("a", hourly(*rows))
    assert profile.energy_wh == [1000, 2000]
    assert profile.missing_rows == 1


def test_unsorted_rows_are_sorted_and_exact_duplicates_counted() -> None:
    """Order and repetition of rows do not change the profile."""
    rows = ["2020-04-01 03:00:00,3", "2020-04-01 01:00:00,1", "2020-04-01 02:00:00,2", "2020-04-01 01:00:00,1.0"]
    profile = parse_profile("a", hourly(*rows))
    assert profile.energy_wh == [1000, 2000, 3000]
    assert profile.duplicate_rows == 1


def test_rows_of_one_instant_that_differ_name_both_lines() -> None:
    """A conflict is the file owner's to settle."""
    rows = ["2020-04-01 01:00:00,1", "2020-04-01 02:00:00,2", "2020-04-01 01:00:00,1.0001"]
    with pytest.raises(ProfileError, match=r"b\.csv line 4: .* another value for the interval of line 2"):
        parse_profile("b.csv", hourly(*rows))


def test_rows_closer_than_the_interval_are_refused_as_overlap() -> None:
    """Energy of overlapping intervals would be counted twice."""
    times = ("00:00", "01:00", "01:40", "02:40", "03:40")
    with pytest.raises(ProfileError, match="overlap"):
        parse_profile("a", hourly(*(f"2020-04-01 {time}:00,1" for time in times)))


@pytest.mark.parametrize(
    ("text", "energy_wh"),
    [
        ("0.0005", 1),
        ("0.0004999999999999999999", 0),
        ("0.028999999999999998", 29),
        ("1.0025", 1003),
        ("7.8e-05", 0),
        ("1E+2", 100_000),
        ("-0", 0),
        (".5", 500),
    ],
)
def test_energy_is_rounded_half_up_to_wh(text: str, energy_wh: int) -> None:
    """Each interval is rounded on its own decimal digits."""
    rows = (f"2020-04-01 01:00:00,{text}", "2020-04-01 02:00:00,1")
    assert parse_profile("a", hourly(*rows)).energy_wh[0] == energy_wh


@given(st.decimals(0, 9_999_999, places=18, allow_nan=False))
def test_energy_of_any_value_equals_decimal_rounding(value: Decimal) -> None:
    """The integer arithmetic equals Decimal's own ROUND_HALF_UP."""
    rows = (f"2020-04-01 01:00:00,{value:f}", "2020-04-01 02:00:00,1")
    expected = int((value * 1000).quantize(Decimal(1), rounding=ROUND_HALF_UP))
    assert parse_profile("a", hourly(*rows)).energy_wh[0] == expected


@given(st.integers(0, 10**30), st.integers(1, 10**30))
def test_round_half_up_equals_exact_fractions(numerator: int, denominator: int) -> None:
    """Rounding is floor of the exact quotient plus one half."""
    assert round_half_up(numerator, denominator) == floor(Fraction(numerator, denominator) + Fraction(1, 2))


def test_minute_file_gives_wh_of_one_minute_and_its_channels() -> None:
    """Mean kW of a minute is a sixtieth of its kWh."""
    data = minutes(
        "16/12/2006;17:24:00;4.216;0.418;234.840;18.400;0.000;1.000;17.000",
        "1/2/2007;00:00:00;0.326;0.128;243.150;1.400;0.000;0.000;0.000",
        "1/2/2007;00:01:00;0.030;0.128;243.150;1.400;0.000;0.000;0.000",
    )
    profile = parse_profile("uci.txt", data)
    assert profile.start_ms == [1166289840000, 1170288000000, 1170288060000]
    assert profile.energy_wh == [70, 5, 1]
    assert profile.power_w == [4216, 326, 30]
    assert profile.voltage_mv == [234840, 243150, 243150]
    assert profile.current_ma == [18400, 1400, 1400]
    assert profile.step_ms == 60_000


def test_minute_row_of_question_marks_is_a_counted_gap() -> None:
    """The format marks a missing minute with question marks."""
    data = minutes("1/2/2007;00:00:00;?;?;?;?;?;?;", "1/2/2007;00:01:00;6;0;?;1;0;0;0")
    profile = parse_profile("uci.txt", data)
    assert (profile.energy_wh, profile.voltage_mv, profile.missing_rows) == ([100], [None], 1)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "expected header"),
        (b"time,kwh\n", "expected header"),
        (hourly(), "apart"),
        (hourly("2020-04-01 01:00:00,1"), "apart"),
        (hourly("2020-04-01 01:00:00,1", "2020-04-02 01:00:00,1"), "got 86400 s"),
        (hourly("2020-04-01 01:00:00,", "2020-04-01 02:00:00,"), "at least one row with a value"),
        (hourly("2020-04-01 01:00:00,-0.001", "2020-04-01 02:00:00,1"), "line 2: expected a value of 0 or more"),
        (hourly("2020-04-01 01:00:00,1e10", "2020-04-01 02:00:00,1"), "line 2: expected at most 10 digits"),
        (hourly("2020-04-01 01:00:00,1e-99", "2020-04-01 02:00:00,1"), "line 2: expected at most 10 digits"),
        (hourly("2020-04-01 01:00:00,1e99999999999999999999"), "line 2: expected"),
        (hourly("yesterday,1"), "line 2: expected an ISO 8601 start, got 'yesterday'"),
        (hourly("0001-01-01T00:00:00+14:00,1"), "line 2"),
        (hourly("1969-12-31T23:00:00Z,1"), "from 1970 on"),
        (hourly("2020-04-01 01:00:00,1,2"), "line 2: expected 2 fields, got 3"),
        (minutes("32/1/2007;00:00:00;1;1;1;1;0;0;0"), "line 2: expected d/m/y"),
        (minutes("1-1-2007;00:00:00;1;1;1;1;0;0;0"), "line 2: expected d/m/y"),
        (minutes("1/1/2007;00:00:00;1"), "line 2: expected 6 fields"),
        (b"start,value\n\xff\xff,1\n", "line 2: expected UTF-8"),
        (b"\x1f\x8b" + bytes(20), "expected a whole gzip file"),
        (gzip.compress(hourly("2020-04-01 01:00:00,1"), mtime=0)[:-9], "expected a whole gzip file"),
    ],
)
def test_unusable_file_is_refused_by_name_and_line(data: bytes, complaint: str) -> None:
    """A refusal names the file, the line where there is one, expected and got."""
    with pytest.raises(ProfileError, match=r"^f\.csv") as caught:
        parse_profile("f.csv", data)
    assert complaint in str(caught.value)


@given(st.binary(max_size=200), st.sampled_from([b"", b"start,value\n", UCI_HEADER.encode(), b"\x1f\x8b\x08"]))
def test_arbitrary_bytes_raise_nothing_but_profile_error(data: bytes, head: bytes) -> None:
    """No file, however broken, escapes as another exception."""
    with suppress(ProfileError):
        parse_profile("f", head + data)


def test_packaged_home_has_forty_whole_days() -> None:
    """The recorded home in the package is 960 hours without a gap."""
    profile = parse_profile(PACKAGED.name, PACKAGED.read_bytes())
    assert len(profile.start_ms) == 960
    assert profile.end_ms[:-1] == profile.start_ms[1:]
    assert (sum(profile.energy_wh), profile.missing_rows, profile.duplicate_rows) == (195_179, 0, 0)


@pytest.mark.parametrize(
    ("name", "step_ms", "rows", "duplicate_rows"),
    [
        ("uk-electricity-hdd-only-hourly-sample-0.csv.gz", HOUR_MS, 23_508, 0),
        ("uk-electricity-hdd-only-hourly-sample-1.csv.gz", HOUR_MS // 2, 22_521, 15),
        ("uci_household_power_2007-02-01_02.txt", 60_000, 2_882, 0),
    ],
)
def test_recorded_file_of_another_origin_is_read_whole(name: str, step_ms: int, rows: int, duplicate_rows: int) -> None:
    """Files nobody prepared for this parser keep every distinct row."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the repository")
    profile = parse_profile(name, path.read_bytes())
    assert (profile.step_ms, len(profile.start_ms)) == (step_ms, rows)
    assert (profile.missing_rows, profile.duplicate_rows) == (0, duplicate_rows)
