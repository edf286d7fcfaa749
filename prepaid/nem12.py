"""NEM12: interval data as Australian meter data providers exchange it.

Stage: between lines and readings; see `prepaid.reading_files`. Of each connection the stream of energy taken from the
network (suffix E) is imported; energy fed back (B), reactive energy and a meter's second E stream are left out
and counted. Times are those of the market, UTC+10 all year.

Source: AEMO, "Meter Data File Format Specification NEM12 & NEM13", whose clauses were not gone through one by one;
layouts compared with the examples of the packages nemreader and nemwriter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from billing.calendar import to_ms
from prepaid.csv_lines import shown
from prepaid.reading_files import FileReading, LineError, Tally, number_of, serial_of

# Wh in a unit; energy in others is not imported.
_UNITS: Final = {"wh": 1, "kwh": 1_000, "mwh": 1_000_000}
_LENGTHS_MIN: Final = (5, 15, 30)
_MARKET_OFFSET_MS: Final = 10 * 3_600_000
_DAY_MIN: Final = 1_440
_MINUTE_MS: Final = 60_000
# Actual, estimated, final substitute, null, substitute, variable; a method of two digits may follow.
_QUALITY: Final = re.compile(r"([AEFNSV])(\d{2})?", re.ASCII)
_DAY: Final = re.compile(r"\d{8}", re.ASCII)


@dataclass(slots=True, kw_only=True)
class _Stream:
    """The 200 record in force."""

    serial: str
    per_value: int
    length_min: int
    left_out: str

    @property
    def count(self) -> int:
        return _DAY_MIN // self.length_min


@dataclass(slots=True, kw_only=True)
class _Day:
    """A 300 record of variable quality, until the 400 records behind it have told which."""

    midnight_ms: int
    values: list[Decimal | None]
    qualities: list[str]


class Nem12:
    """One file of NEM12."""

    name = "nem12"
    delimiter = ","

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._stream: _Stream | None = None
        self._day: _Day | None = None
        # Of each serial the stream that is imported: connection and suffix.
        self._streams: dict[str, str] = {}
        self._ended = False

    @property
    def is_waiting(self) -> bool:
        """A day of variable quality waits for its 400 records."""
        return self._day is not None

    def take(self, fields: list[str]) -> list[FileReading]:
        """Read a record; a day is complete when another record than 400 comes."""
        record = fields[0]
        if self._ended:
            raise LineError("nothing behind the 900 record", shown(record))
        if record == "400":
            self._take_quality(fields)
            return []
        complete = self.end()
        try:
            return complete + self._take_record(record, fields)
        except LineError as error:
            error.readings = complete
            raise

    def end(self) -> list[FileReading]:
        """Return the day that was waiting."""
        day, self._day = self._day, None
        return [] if day is None else self._readings(day)

    def memory(self) -> dict[str, object]:
        """Return the stream in force, and which were taken."""
        stream = self._stream
        told = None if stream is None else [stream.serial, stream.per_value, stream.length_min, stream.left_out]
        return {"stream": told, "streams": dict(self._streams), "ended": self._ended}

    def remember(self, memory: dict[str, object]) -> None:
        """Go on within that stream."""
        stream, streams = memory["stream"], memory["streams"]
        assert isinstance(streams, dict), "memory of this format"
        self._streams = dict(streams)
        self._ended = bool(memory["ended"])
        if isinstance(stream, list):
            serial, per_value, length_min, left_out = stream
            self._stream = _Stream(serial=serial, per_value=per_value, length_min=length_min, left_out=left_out)

    def _take_record(self, record: str, fields: list[str]) -> list[FileReading]:
        match record:
            case "200":
                # What fails here must not let the days behind it go to the connection before.
                self._stream = None
                self._stream = self._take_stream(fields)
            case "300":
                return self._take_day(fields)
            case "900":
                self._ended = True
            case "100" | "500":
                pass
            case _:
                raise LineError("a record 100, 200, 300, 400, 500 or 900", shown(record))
        return []

    def _take_stream(self, fields: list[str]) -> _Stream:
        if len(fields) < 9:
            raise LineError("a 200 record of 9 fields or more", str(len(fields)))
        nmi, suffix, meter, unit, length = fields[1], fields[4].upper(), fields[6], fields[7].lower(), fields[8]
        if not length.isdecimal() or int(length[:4]) not in _LENGTHS_MIN:
            raise LineError("an interval length of 5, 15 or 30", shown(length))
        serial = serial_of(meter or nmi)
        left_out = ""
        if not suffix.startswith("E") or unit not in _UNITS:
            left_out = f"stream {suffix or '?'} in {unit or '?'}"
        elif self._streams.setdefault(serial, f"{nmi} {suffix}") != f"{nmi} {suffix}":
            left_out = f"second stream {suffix} of a meter"
        return _Stream(serial=serial, per_value=_UNITS.get(unit, 0), length_min=int(length), left_out=left_out)

    def _take_day(self, fields: list[str]) -> list[FileReading]:
        stream = self._stream
        if stream is None:
            raise LineError("a good 200 record before", "none")
        if len(fields) < stream.count + 3:
            raise LineError(f"a 300 record of {stream.count} values and their quality", f"{len(fields)} fields")
        if not _DAY.fullmatch(fields[1]):
            raise LineError("a day as YYYYMMDD", shown(fields[1]))
        try:
            midnight = datetime.strptime(fields[1], "%Y%m%d").replace(tzinfo=UTC)
        except ValueError:
            raise LineError("a day of the calendar as YYYYMMDD", shown(fields[1])) from None
        if midnight.year < 1971:
            raise LineError("a day from 1971 on", shown(fields[1]))
        values = [number_of(text) for text in fields[2 : 2 + stream.count]]
        quality = _quality(fields[2 + stream.count])
        day = _Day(midnight_ms=to_ms(midnight) - _MARKET_OFFSET_MS, values=values, qualities=[quality] * stream.count)
        if quality == "V":
            self._day = day
            return []
        return self._readings(day)

    def _take_quality(self, fields: list[str]) -> None:
        """Let intervals of the day before be of a quality of their own."""
        if self._day is None:
            raise LineError("a 400 record behind a 300 record of quality V", "another")
        if len(fields) < 4 or not all(text.isdecimal() and len(text) < 5 for text in fields[1:3]):
            raise LineError("a 400 record with first and last interval and quality", shown(",".join(fields)))
        first, last = int(fields[1]), int(fields[2])
        if not 1 <= first <= last <= len(self._day.values):
            raise LineError(f"intervals of 1 to {len(self._day.values)}", f"{first} to {last}")
        self._day.qualities[first - 1 : last] = [_quality(fields[3])] * (last - first + 1)

    def _readings(self, day: _Day) -> list[FileReading]:
        stream = self._stream
        assert stream is not None, "a day belongs to a stream"
        if stream.left_out:
            self._tally.leave_out(stream.left_out, len(day.values))
            return []
        readings = []
        for number, (value, quality) in enumerate(zip(day.values, day.qualities, strict=True), start=1):
            # A null interval has a number, mostly 0, that says nothing.
            if value is None or quality == "N":
                self._tally.missing += 1
                continue
            self._tally.qualities[quality] = self._tally.qualities.get(quality, 0) + 1
            at_ms = day.midnight_ms + number * stream.length_min * _MINUTE_MS
            readings.append(FileReading(stream.serial, at_ms, None, value * stream.per_value, 1, quality))
        return readings


def _quality(text: str) -> str:
    match = _QUALITY.fullmatch(text.upper())
    if not match:
        raise LineError("a quality A, E, F, N, S or V", shown(text))
    return match[1]
