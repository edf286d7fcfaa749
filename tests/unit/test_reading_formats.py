"""Files of readings: what a line says in each format, exactly, and what is no reading."""

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.calendar import to_ms
from db.reading_imports import RegisterStart
from prepaid.reading_files import FileReading, LineError, Lines, ReadingsRefused, Tally, fields_of
from prepaid.reading_formats import FormatOptions, format_of
from prepaid.reading_registers import Metered, Registers, messages_of
from protocols.native import decode_uplink, encode_readings
from protocols.topics import reading_topic

T0 = to_ms(datetime(2025, 6, 1, tzinfo=UTC))
HALF_MS = 1_800_000
LONDON = ZoneInfo("Europe/London")


def _read(text: str, **options: object) -> tuple[list[FileReading], list[str], Tally]:
    """Read a file's text: readings, what is wrong with bad lines, and what was counted."""
    tally, readings, bad = Tally(), [], []
    first, *rest = text.splitlines()
    form = format_of("file", first, FormatOptions(**options), tally)  # type: ignore[arg-type]  # Options by name.
    for line in rest:
        try:
            readings += form.take(fields_of(line, form.delimiter))
        except LineError as error:
            readings += error.readings
            bad.append(str(error))
    return readings + form.end(), bad, tally


def _starting(*serials: str, register_wh: int = 0, installed_ms: int = 0, end_wh: int = 10**9) -> Registers:
    registers = Registers()
    start = RegisterStart(register_wh=register_wh, end_wh=end_wh, installed_ms=installed_ms, mark_ms=installed_ms)
    registers.know(dict.fromkeys(serials, start))
    return registers


def _metered(registers: Registers, readings: list[FileReading]) -> list[tuple[int, int]]:
    made = [registers.meter(reading) for reading in readings]
    return [(each.at_ms, each.register_wh) for each in made if each is not None]


def test_columns_are_found_by_their_names_in_any_order() -> None:
    """Registers in kWh become whole Wh, rounded down; empty values are counted; times carry their zone."""
    text = "register_kwh,note,SERIAL,time\n12.3456,x,M1,2025-06-01T05:30:00+05:30\n,x,M1,2025-06-01T06:00:00+05:30\n"
    readings, bad, tally = _read(text)
    assert [(each.serial, each.at_ms, each.register_wh) for each in readings] == [("M1", T0, 12_345)]
    assert (bad, tally.missing) == ([], 1)


def test_columns_of_other_names_and_times_are_mapped() -> None:
    """A file without a serial column is of one meter; starts of intervals become their ends."""
    text = "Begin;Consumption (kWh)\n01.06.2025 05:30;0,5\n01.06.2025 06:00;0.25\n"
    readings, bad, _ = _read(
        text,
        serial="M7",
        zone=ZoneInfo("Asia/Kolkata"),
        time_pattern="%d.%m.%Y %H:%M",
        interval_min=30,
        columns={"start": "Begin", "interval_kwh": "Consumption (kWh)"},
    )
    assert [(each.serial, each.at_ms, each.energy) for each in readings] == [("M7", T0 + 2 * HALF_MS, Decimal(250))]
    assert bad == ["expected a number, got '0,5'"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("M1,2025-06-01T05:30:00", "expected a time with its zone, or --zone"),
        ("M1,yesterday,1", "expected a time such as"),
        ("M1,1969-12-31T05:30:00+00:00,1", "expected a year of 1971"),
        ("M 1,2025-06-01T05:30:00+00:00,1", "expected a serial"),
        ("M1,2025-06-01T05:30:00+00:00,-1", "expected a number of 0 or more"),
        ("M1,2025-06-01T05:30:00+00:00,NaN", "expected a number"),
        ("M1,2025-06-01T05:30:00+00:00,1e999", "expected at most 13 digits"),
        ("M1,2025-06-01T05:30:00+00:00,1,2", "expected 3 fields, got 4"),
        ('M1,"2025-06-01T05:30:00+00:00,1', "expected delimited text"),
    ],
)
def test_line_that_is_no_reading_says_what_was_expected(line: str, complaint: str) -> None:
    """A bad line stops nothing: the next one is read."""
    line = line if line.count(",") > 1 or '"' in line else f"{line},1"
    readings, bad, _ = _read(f"serial,time,register_wh\n{line}\nM1,2025-06-01T05:30:00+00:00,9\n")
    assert [each.register_wh for each in readings] == [9]
    assert len(bad) == 1
    assert bad[0].startswith(complaint)


@pytest.mark.parametrize(
    ("header", "options"),
    [
        ("serial,time", {}),
        ("serial,time,register_wh,interval_wh", {}),
        ("serial,register_wh", {}),
        ("serial,start,interval_wh", {}),
        ("time,register_wh", {}),
        ("serial,time,register_wh", {"columns": {"serial": "nmi"}}),
        ("serial,start,register_wh", {"interval_min": 30}),
        ("start,value", {}),
    ],
)
def test_header_that_leaves_something_open_is_refused(header: str, options: dict[str, object]) -> None:
    """One energy, one time, and a meter: by column or by option."""
    with pytest.raises(ReadingsRefused, match="file line 1: expected"):
        _read(f"{header}\n", **options)


def test_repeated_hour_of_a_local_zone_is_told_by_its_order() -> None:
    """At the end of summer time the first 01:00 is the earlier one; a time that the spring leaves out is refused."""
    text = "serial,time,register_wh\n" + "".join(
        f"M1,2025-10-26T{clock},{number}\n"
        for number, clock in enumerate(["00:30", "01:00", "01:30", "01:00", "01:30", "02:00"])
    )
    readings, bad, _ = _read(text + "M1,2026-03-29T01:30,9\n", zone=LONDON)
    first_ms = to_ms(datetime(2025, 10, 25, 23, 30, tzinfo=UTC))
    assert [each.at_ms for each in readings] == [first_ms + number * HALF_MS for number in range(6)]
    assert bad == ["expected a time that exists in Europe/London, got '2026-03-29T01:30'"]


def test_public_data_sets_are_known_by_their_headers() -> None:
    """Minutes of mean kW, and hours of kWh from their start: a sixtieth of a kWh is carried, not rounded."""
    uci = (
        "Date;Time;Global_active_power;Global_reactive_power;Voltage;Global_intensity;Sub_metering_1\n"
        "1/6/2025;00:00:00;0.100;0.0;240.5;4.6;0\n1/6/2025;00:01:00;?;?;?;?;?\n1/6/2025;00:02:00;0.100;0.0;240;4.6;0\n"
        "1/6/2025;00:03:00;0.100;0.0;240;4.6;0\n"
    )
    readings, bad, tally = _read(uci, serial="M1")
    assert (bad, tally.missing) == ([], 1)
    assert (readings[0].voltage_mv, readings[0].current_ma, readings[0].power_w) == (240_500, 4_600, 100)
    # A third of 5 Wh each: 1, 3, 5.
    minutes = [(T0 + 60_000, 1), (T0 + 180_000, 3), (T0 + 240_000, 5)]
    assert _metered(_starting("M1"), readings) == minutes
    hours, _, _ = _read(
        "start,value\n2025-06-01 00:00:00+00:00,0.0285\n2025-06-01 01:00:00+00:00,0.0285\n", serial="M1"
    )
    assert _metered(_starting("M1"), hours) == [(T0 + 3_600_000, 28), (T0 + 7_200_000, 57)]


NEM12 = f"""100,NEM12,202506020800,MDP1,Retailer1
200,NMI0000001,E1Q1,1,E1,N1,MTR0001,KWH,30,
300,20250601,{",".join(["0.5"] * 48)},A,,,20250602040000,
300,20250602,{",".join(["0.25"] * 48)},V,,,20250603040000,
400,1,46,A,,
400,47,47,S14,27,
400,48,48,N,,
500,O,S01009,20250601120000,
200,NMI0000001,E1Q1,2,Q1,N1,MTR0001,KVARH,30,
300,20250601,{",".join(["9"] * 48)},A,,,20250602040000,
200,NMI0000002,E1,1,E1,N1,,Wh,15,
300,20250601,{",".join(["100"] * 96)},F,,,20250602040000,
900
"""


def test_nem12_days_are_read_by_stream_interval_and_quality() -> None:
    """Market time is UTC+10; a variable day waits for its 400 records; null intervals and other streams are counted."""
    readings, bad, tally = _read(NEM12)
    assert bad == []
    first = [each for each in readings if each.serial == "MTR0001"]
    midnight_ms = to_ms(datetime(2025, 5, 31, 14, tzinfo=UTC))
    assert [each.at_ms for each in first] == [midnight_ms + number * HALF_MS for number in range(1, 96)]
    assert _metered(_starting("MTR0001"), first)[-1] == (midnight_ms + 95 * HALF_MS, 24_000 + 47 * 250)
    second = [each for each in readings if each.serial == "NMI0000002"]
    assert _metered(_starting("NMI0000002"), second)[-1] == (midnight_ms + 48 * HALF_MS, 9_600)
    assert (tally.missing, tally.left_out) == (1, {"stream Q1 in kvarh": 48})
    assert tally.qualities == {"A": 94, "S": 1, "F": 96}


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ("200,NMI0000003,E1,1,E1,N1,,KWH,10,", "expected an interval length"),
        ("200,NMI", "expected a 200 record"),
        ("300,20250604,1,2,A", "expected a 300 record of 48 values"),
        (f"300,20250631,{','.join(['1'] * 48)},A", "expected a day of the calendar"),
        (f"300,20250604,{','.join(['1'] * 48)},X", "expected a quality"),
        (f"300,20250604,{','.join(['1'] * 47)},one,A", "expected a number"),
        ("400,1,48,A", "expected a 400 record behind"),
        ("250,NMI", "expected a record"),
    ],
)
def test_nem12_record_that_is_wrong_costs_no_other(record: str, complaint: str) -> None:
    """The day before it that waited for its qualities is complete; days behind a bad 200 belong to nobody."""
    day = f"300,20250605,{','.join(['1'] * 48)},A"
    head = NEM12.split("500,")[0].replace("400,1,46,A,,\n400,47,47,S14,27,\n400,48,48,N,,\n", "400,1,48,A,,\n")
    if record.startswith("400"):
        head += "500,O\n"
    readings, bad, _ = _read(f"{head}{record}\n{day}\n")
    assert bad[0].startswith(complaint)
    orphaned = record.startswith("200")
    assert bad[1:] == (["expected a good 200 record before, got none"] if orphaned else [])
    assert len(readings) == (96 if orphaned else 144)


def test_second_consumption_stream_of_a_meter_is_left_out() -> None:
    """Two streams added up into one register would need both at once; what is left out is counted, never summed."""
    stream = "200,NMI1,E1E2,1,{},N1,MTR1,KWH,30,\n300,20250601," + ",".join(["1"] * 48) + ",A\n"
    readings, _, tally = _read("100,NEM12,1,A,B\n" + stream.format("E1") + stream.format("E2"))
    assert len(readings) == 48
    assert tally.left_out == {"second stream E2 of a meter": 48}


def test_format_goes_on_from_its_memory() -> None:
    """Cut anywhere between complete readings, with memory carried over, a file says the same."""
    whole, _, _ = _read(NEM12)
    header, *lines = NEM12.splitlines()
    for cut in range(len(lines)):
        form = format_of("file", header, FormatOptions(), Tally())
        found = [reading for line in lines[:cut] for reading in form.take(fields_of(line, ","))]
        if form.is_waiting:
            continue
        later = format_of("file", header, FormatOptions(), Tally())
        later.remember(form.memory())
        found += [reading for line in lines[cut:] for reading in later.take(fields_of(line, ","))]
        assert found == whole


def test_registers_start_at_the_installation_and_roll_over() -> None:
    """What was used before a meter was installed is not counted; a register's end is its own; order matters."""
    readings = [FileReading("M1", T0 + number * HALF_MS, None, Decimal("600"), 1) for number in (1, 2, 3, 3, 4)]
    registers = _starting("M1", register_wh=500, installed_ms=T0 + HALF_MS, end_wh=2_000)
    assert _metered(registers, readings) == [
        (T0 + HALF_MS, 500),
        (T0 + 2 * HALF_MS, 1_100),
        (T0 + 3 * HALF_MS, 1_700),
        (T0 + 4 * HALF_MS, 300),
    ]


@given(
    st.lists(st.decimals(0, 100, places=7, allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    st.sampled_from([1, 60]),
)
def test_no_energy_is_lost_or_made_by_rounding(energies: list[Decimal], per_wh: int) -> None:
    """After any number of intervals the register is the exact sum, rounded down once; also if interrupted anywhere."""
    readings = [FileReading("M1", T0 + n * 60_000, None, energy, per_wh) for n, energy in enumerate(energies, start=1)]
    registers = _starting("M1")
    half = len(readings) // 2
    _metered(registers, readings[:half])
    resumed = _starting("M1")
    resumed.remember(registers.memory())
    made = [*_metered(_starting("M1"), readings[:half]), *_metered(resumed, readings[half:])]
    assert made[-1][1] == int(sum(energies) // per_wh)
    assert made == _metered(_starting("M1"), readings)


def _instants() -> Iterator[Metered]:
    for serial, instants in (("M1", range(100)), ("M2", (0, 1, 2, 4, 6, 8)), ("M1", (200, 199))):
        for number in instants:
            yield Metered(serial, T0 + number * HALF_MS, number)


def test_readings_are_cut_into_blocks_of_equal_steps() -> None:
    """96 at most, one meter each, in their order; every message is one that a meter might send."""
    messages = list(messages_of(_instants()))
    assert [(each.serial, len(each.read_at_ms)) for each in messages] == [
        ("M1", 96),
        ("M1", 4),
        ("M2", 3),
        ("M2", 3),
        ("M1", 1),
        ("M1", 1),
    ]
    for message in messages:
        assert decode_uplink(reading_topic(message.serial), encode_readings(message)) == message


def test_lines_know_the_byte_where_the_next_begins(tmp_path: Path) -> None:
    """Plain or gzip, with any line ends; a line that is too long or no text is skipped as one."""
    raw = b"\xef\xbb\xbfone\r\ntwo\n" + b"x" * 200_000 + b"\n\xff\xfe\nlast"
    for path in (tmp_path / "plain", tmp_path / "packed"):
        path.write_bytes(raw if path.name == "plain" else gzip.compress(raw))
        with Lines(path) as lines:
            assert (lines.next(), lines.next(), lines.offset) == ("one", "two", 12)
            for complaint in ("65536 bytes", "UTF-8"):
                with pytest.raises(LineError, match=complaint):
                    lines.next()
            place = lines.offset, lines.number
            assert (lines.next(), lines.next()) == ("last", None)
            lines.go_to(*place)
            assert (lines.next(), lines.number) == ("last", 5)
