"""Recorded load profiles: files of measured intervals become what a simulated meter is offered.

Bytes of a file enter, columns of intervals in ascending time leave. Two formats are recognised by their first
line: `start,value` (UTC start of the interval, kWh in it; hourly or half-hourly by the file's own spacing)
and the UCI "Individual household electric power consumption" format (`;`, d/m/y, kW as the mean of one
minute; times taken as UTC). Either may be gzip-compressed. All arithmetic is on integers; a binary float
never appears. Reads no file itself.
"""

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from operator import attrgetter
from typing import ClassVar, Final

PROFILE_BYTES_MAX: Final = 256 * 1024 * 1024  # The whole UCI file, 2,075,259 minutes, is 133 MB; twice that.
# The largest value taken is 10^9 kWh or kW, a city's; with 40 decimals no exponent can exhaust memory.
_DIGITS_BEFORE_POINT_MAX: Final = 10
_DIGITS_AFTER_POINT_MAX: Final = 40
_CSV_STEPS_MS: Final = (3_600_000, 1_800_000)
_MINUTE_MS: Final = 60_000
_GZIP_MAGIC: Final = b"\x1f\x8b"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UCI_HEADER: Final = ("date", "time", "global_active_power", "global_reactive_power", "voltage", "global_intensity")
_UCI_TIME: Final = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4}) (\d{1,2}):(\d{2}):(\d{2})", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SHOWN_MAX: Final = 60  # An error message shows a field's worth of a broken line.


class ProfileError(Exception):
    """A recorded profile cannot be used; the message names file, line, expected and got."""

    code: ClassVar[str] = "profile_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A recorded load as columns.

    Invariants: all lists have one length, at least one; `start_ms` ascends and no interval overlaps the next,
    though there may be gaps between them; every interval lasts `step_ms`; energies are non-negative.
    `missing_rows` counts rows without a value, `duplicate_rows` exact repetitions. `reactive_var` is as long as the
    others, or empty.
    """

    step_ms: int
    start_ms: list[int]
    end_ms: list[int]
    energy_wh: list[int]
    voltage_mv: list[int | None]
    current_ma: list[int | None]
    power_w: list[int | None]
    missing_rows: int
    duplicate_rows: int
    # Without a value where the file has none, or where nobody needs it.
    reactive_var: list[int | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Row:
    start_ms: int
    line: int
    amount: Decimal | None
    volt: Decimal | None
    ampere: Decimal | None
    reactive: Decimal | None = None

    def content(self) -> tuple[Decimal | None, ...]:
        return (self.amount, self.volt, self.ampere, self.reactive)


def parse_profile(name: str, data: bytes) -> Profile:
    """Parse a recorded file, plain or gzip; `name` only serves messages.

    Rounds: each interval half up to Wh, mV, mA and W.
    Raises: ProfileError on an unknown format, a broken line, a negative value, rows of one instant that
    differ, or intervals that overlap.
    """
    text = _text_of(name, data)
    lines = _lines(name, text)
    header = tuple(field.strip().lower() for field in next(lines, (1, [""]))[1])
    if header == ("start", "value"):
        return _hourly_profile(name, [_hourly_row(name, line, fields) for line, fields in lines])
    if header[: len(_UCI_HEADER)] == _UCI_HEADER:
        return _minute_profile(name, [_minute_row(name, line, fields) for line, fields in lines])
    shown = ",".join(header)[:_SHOWN_MAX]
    raise ProfileError(f"{name} line 1: expected header start,value or Date;Time;..., got {shown!r}")


def round_half_up(numerator: int, denominator: int) -> int:
    """Divide non-negative integers, a half going up."""
    return (2 * numerator + denominator) // (2 * denominator)


def _hourly_profile(name: str, rows: list[_Row]) -> Profile:
    starts = sorted({row.start_ms for row in rows})
    spacings = Counter(later - earlier for earlier, later in pairwise(starts))
    step_ms = min(spacings, key=lambda spacing: (-spacings[spacing], spacing), default=0)
    if step_ms not in _CSV_STEPS_MS:
        raise ProfileError(f"{name}: expected rows mostly 1800 or 3600 s apart, got {step_ms // 1000} s")
    return _profile(name, rows, step_ms, wh_per_unit=(1000, 1), mean_power=False)


def _minute_profile(name: str, rows: list[_Row]) -> Profile:
    return _profile(name, rows, _MINUTE_MS, wh_per_unit=(1000, 60), mean_power=True)


def _profile(name: str, rows: list[_Row], step_ms: int, *, wh_per_unit: tuple[int, int], mean_power: bool) -> Profile:
    present = [row for row in rows if row.amount is not None]
    kept, duplicate_rows = _distinct(name, sorted(present, key=attrgetter("start_ms", "line")), step_ms)
    if not kept:
        raise ProfileError(f"{name}: expected at least one row with a value, got none in {len(rows)} rows")
    numerator, denominator = wh_per_unit
    return Profile(
        step_ms=step_ms,
        start_ms=[row.start_ms for row in kept],
        end_ms=[row.start_ms + step_ms for row in kept],
        energy_wh=[_scaled(row.amount or Decimal(0), numerator, denominator) for row in kept],
        voltage_mv=[None if row.volt is None else _scaled(row.volt, 1000, 1) for row in kept],
        current_ma=[None if row.ampere is None else _scaled(row.ampere, 1000, 1) for row in kept],
        power_w=[_scaled(row.amount or Decimal(0), 1000, 1) if mean_power else None for row in kept],
        missing_rows=len(rows) - len(present),
        duplicate_rows=duplicate_rows,
        reactive_var=[None if row.reactive is None else _scaled(row.reactive, 1000, 1) for row in kept],
    )


def _distinct(name: str, rows: list[_Row], step_ms: int) -> tuple[list[_Row], int]:
    kept: list[_Row] = []
    duplicate_rows = 0
    for row in rows:
        if kept and row.start_ms < kept[-1].start_ms + step_ms:
            earlier = kept[-1]
            if row.start_ms == earlier.start_ms and row.content() == earlier.content():
                duplicate_rows += 1
                continue
            fault = "another value for" if row.start_ms == earlier.start_ms else "an overlap with"
            raise ProfileError(
                f"{name} line {row.line}: expected one row every {step_ms // 1000} s, "
                f"got {fault} the interval of line {earlier.line}"
            )
        kept.append(row)
    return kept, duplicate_rows


def _scaled(value: Decimal, numerator: int, denominator: int) -> int:
    over, under = value.as_integer_ratio()
    return round_half_up(over * numerator, under * denominator)


def _hourly_row(name: str, line: int, fields: list[str]) -> _Row:
    if len(fields) != 2:
        raise ProfileError(f"{name} line {line}: expected 2 fields, got {len(fields)}")
    try:
        at = datetime.fromisoformat(fields[0].strip())
        start_ms = _milliseconds(at if at.tzinfo else at.replace(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        raise ProfileError(f"{name} line {line}: expected an ISO 8601 start, got {fields[0][:_SHOWN_MAX]!r}") from error
    _require_epoch(name, line, start_ms)
    return _Row(start_ms, line, _number(name, line, fields[1]), None, None)


def _minute_row(name: str, line: int, fields: list[str]) -> _Row:
    if len(fields) < len(_UCI_HEADER):
        raise ProfileError(f"{name} line {line}: expected {len(_UCI_HEADER)} fields or more, got {len(fields)}")
    when = f"{fields[0].strip()} {fields[1].strip()}"
    match = _UCI_TIME.fullmatch(when)
    try:
        if match is None:
            raise ValueError(when)
        day, month, year, hour, minute, second = (int(part) for part in match.groups())
        start_ms = _milliseconds(datetime(year, month, day, hour, minute, second, tzinfo=UTC))
    except ValueError as error:
        raise ProfileError(f"{name} line {line}: expected d/m/y;h:m:s, got {when[:_SHOWN_MAX]!r}") from error
    _require_epoch(name, line, start_ms)
    power, reactive, volt, ampere = (_number(name, line, fields[index]) for index in (2, 3, 4, 5))
    return _Row(start_ms, line, power, volt, ampere, reactive)


def _milliseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(milliseconds=1)


def _require_epoch(name: str, line: int, start_ms: int) -> None:
    if start_ms < 0:
        raise ProfileError(f"{name} line {line}: expected a start from 1970 on, got {start_ms} ms")


def _number(name: str, line: int, text: str) -> Decimal | None:
    """Read one value; anything that is not a number is a gap."""
    stripped = text.strip()
    if _NUMBER.fullmatch(stripped) is None:
        return None
    try:
        value = Decimal(stripped)
    except InvalidOperation as error:
        raise ProfileError(f"{name} line {line}: expected a number, got {text[:_SHOWN_MAX]!r}") from error
    if value < 0:
        raise ProfileError(f"{name} line {line}: expected a value of 0 or more, got {text[:_SHOWN_MAX]!r}")
    exponent = value.as_tuple().exponent
    too_fine = isinstance(exponent, int) and exponent < -_DIGITS_AFTER_POINT_MAX
    if value.adjusted() >= _DIGITS_BEFORE_POINT_MAX or too_fine:
        raise ProfileError(
            f"{name} line {line}: expected at most {_DIGITS_BEFORE_POINT_MAX} digits before and "
            f"{_DIGITS_AFTER_POINT_MAX} after the point, got {text[:_SHOWN_MAX]!r}"
        )
    return value


def _text_of(name: str, data: bytes) -> str:
    raw = data
    if data.startswith(_GZIP_MAGIC):
        try:
            raw = gzip.GzipFile(fileobj=io.BytesIO(data)).read(PROFILE_BYTES_MAX + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ProfileError(f"{name}: expected a whole gzip file, got {error}") from error
    if len(raw) > PROFILE_BYTES_MAX:
        raise ProfileError(f"{name}: expected at most {PROFILE_BYTES_MAX} bytes, got more")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ProfileError(f"{name} line {line}: expected UTF-8 text, got other bytes") from error


def _lines(name: str, text: str) -> Iterator[tuple[int, list[str]]]:
    delimiter = ";" if ";" in text.partition("\n")[0] else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise ProfileError(f"{name} line {reader.line_num}: expected delimited text, got {error}") from error
