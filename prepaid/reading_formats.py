"""The formats of `prepaid import` that have one reading a line: columns by name, and two public data sets.

Stage: between lines and readings; see `prepaid.reading_files`. NEM12 stands in `prepaid.nem12`. A format is told by the
first line of a file. Of intervals the order matters, since their energy is added up: a line that is not after the
one before of its meter is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from zoneinfo import ZoneInfo

from prepaid.csv_lines import shown
from prepaid.nem12 import Nem12
from prepaid.reading_files import (
    FileReading,
    Format,
    LineError,
    ReadingsRefused,
    Tally,
    Times,
    fields_of,
    measured,
    number_of,
    serial_of,
    whole,
)

# Fields of the format with columns, and what a number in each is in Wh.
ENERGY_FIELDS: Final = {"register_wh": 1, "register_kwh": 1_000, "interval_wh": 1, "interval_kwh": 1_000}
FIELDS: Final = ("serial", "time", "start", *ENERGY_FIELDS)
_START_VALUE: Final = ("start", "value")
_UCI: Final = ("date", "time", "global_active_power", "global_reactive_power", "voltage", "global_intensity")
_MINUTE_MS: Final = 60_000
_INTERVAL_MIN_MAX: Final = 1_440


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatOptions:
    """What a file does not say itself.

    `serial` is the meter of a file without such a column; `zone` that of times without one; `columns` are the names of
    fields that are named otherwise in the header; `interval_min` the length of intervals whose start is given.
    """

    serial: str | None = None
    zone: ZoneInfo | None = None
    time_pattern: str | None = None
    interval_min: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def format_of(name: str, first_line: str, options: FormatOptions, tally: Tally) -> Format:
    """Return the format that a file's first line tells. Raises: ReadingsRefused."""
    try:
        delimiter = max(",;\t", key=first_line.count)
        header = tuple(text.lower() for text in fields_of(first_line, delimiter))
        if header[:2] == ("100", "nem12"):
            return Nem12(tally)
        if header == _START_VALUE:
            return _hourly(options, tally)
        if header[: len(_UCI)] == _UCI:
            return UciMinutes(options, tally)
        return Columns(header, delimiter, options, tally)
    except LineError as error:
        raise ReadingsRefused(f"{name} line 1: {error}") from None


class Columns:
    """A header line with the names of columns: serial, time or start, and one of energy."""

    name = "columns"

    def __init__(self, header: Sequence[str], delimiter: str, options: FormatOptions, tally: Tally) -> None:
        self.delimiter = delimiter
        self._width = len(header)
        self._tally = tally
        self._times = Times(options.zone, options.time_pattern)
        places = _places(header, options.columns)
        energies = [each for each in ENERGY_FIELDS if each in places]
        if len(energies) != 1:
            raise LineError(f"one column of {', '.join(ENERGY_FIELDS)}", ", ".join(energies) or shown(",".join(header)))
        if ("time" in places) == ("start" in places):
            raise LineError("a column time (or start, of intervals)", shown(",".join(header)))
        self._serial = places.get("serial")
        self._only = _single(options) if self._serial is None else ""
        self._energy, self._energy_field = places[energies[0]], energies[0]
        self._time = places.get("time", places.get("start", 0))
        self._length_ms = _length_ms(options) if "start" in places else 0
        if self._length_ms and not self._is_interval:
            raise LineError("a column time with a register", "start")

    @property
    def is_waiting(self) -> bool:
        """Each line stands by itself."""
        return False

    @property
    def _is_interval(self) -> bool:
        return self._energy_field.startswith("interval")

    def take(self, fields: list[str]) -> list[FileReading]:
        """Read a line."""
        if len(fields) != self._width:
            raise LineError(f"{self._width} fields", str(len(fields)))
        serial = self._only if self._serial is None else serial_of(fields[self._serial])
        value = number_of(fields[self._energy])
        if value is None:
            self._tally.missing += 1
            return []
        at_ms = self._times.read(serial, fields[self._time]) + self._length_ms
        times = ENERGY_FIELDS[self._energy_field]
        if self._is_interval:
            return [FileReading(serial, at_ms, None, value * times, 1)]
        return [FileReading(serial, at_ms, whole(value, times), value, 1)]

    def end(self) -> list[FileReading]:
        """Nothing waits for the end."""
        return []

    def memory(self) -> dict[str, object]:
        """Return the last time of each meter."""
        return {"last_ms": self._times.memory()}

    def remember(self, memory: dict[str, object]) -> None:
        """Go on after these times."""
        last_ms = memory["last_ms"]
        assert isinstance(last_ms, dict), "memory of this format"
        self._times.remember(last_ms)


class UciMinutes(Columns):
    """The data set "Individual household electric power consumption": minutes, kW as their mean.

    Source: UCI machine learning repository, data set 235. Its times are taken as UTC unless a zone is given: it does
    not say how it treats the end of summer time.
    """

    name = "uci"

    def __init__(self, options: FormatOptions, tally: Tally) -> None:
        zoned = FormatOptions(serial=options.serial, zone=options.zone or ZoneInfo("UTC"))
        super().__init__(("time", "interval_kwh"), ";", zoned, tally)
        self._times = Times(zoned.zone, "%d/%m/%Y %H:%M:%S")

    def take(self, fields: list[str]) -> list[FileReading]:
        """Read a minute."""
        if len(fields) < len(_UCI):
            raise LineError(f"{len(_UCI)} fields or more", str(len(fields)))
        power_kw = number_of(fields[2])
        if power_kw is None:
            self._tally.missing += 1
            return []
        start_ms = self._times.read(self._only, f"{fields[0]} {fields[1]}")
        return [
            FileReading(
                self._only,
                start_ms + _MINUTE_MS,
                None,
                power_kw * 1_000,
                60,
                voltage_mv=measured(fields[4], 1_000),
                current_ma=measured(fields[5], 1_000),
                power_w=measured(fields[2], 1_000),
            )
        ]


def _hourly(options: FormatOptions, tally: Tally) -> Columns:
    """Return the form of the UK hourly sample: UTC start of the interval, kWh in it, hours unless told otherwise."""
    told = FormatOptions(
        serial=options.serial, zone=options.zone or ZoneInfo("UTC"), interval_min=options.interval_min or 60
    )
    return Columns(("start", "interval_kwh"), ",", told, tally)


def _single(options: FormatOptions) -> str:
    if options.serial is None:
        raise LineError("--serial, since the file names no meter", "none")
    return serial_of(options.serial)


def _length_ms(options: FormatOptions) -> int:
    minutes = options.interval_min
    if minutes is None or not 1 <= minutes <= _INTERVAL_MIN_MAX:
        raise LineError(f"--interval-min of 1 to {_INTERVAL_MIN_MAX} with a column start", str(minutes))
    return minutes * _MINUTE_MS


def _places(header: Sequence[str], columns: Mapping[str, str]) -> dict[str, int]:
    """Return where each field that is there stands."""
    places = {}
    for each in FIELDS:
        name = columns.get(each, each).lower()
        if header.count(name) > 1:
            raise LineError(f"one column {name}", str(header.count(name)))
        if name in header and not (each not in columns and name in columns.values()):
            places[each] = header.index(name)
        elif each in columns:
            raise LineError(f"a column {shown(columns[each])} in the header", "none")
    return places
