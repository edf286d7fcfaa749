"""Files of readings: lines with their place, and what a line says in whichever format.

Stage: `prepaid import`, before anything is sent. Bytes enter, `FileReading`s leave; a line that is none raises
`LineError` with what was expected and what came. A file is read line by line: its size never matters. Energy is a
decimal number until it is whole Wh; a binary float never appears. Opens files, and nothing else.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO, ClassVar, Final, NamedTuple, Protocol, cast
from zoneinfo import ZoneInfo

from billing.calendar import to_ms
from prepaid.csv_lines import shown
from prepaid.settings import PrepaidError

# A NEM12 day of 5-minute intervals is 288 values of some 10 digits, 3 kB; twenty times that.
LINE_BYTES_MAX: Final = 65_536
# A city's year is 10^13 Wh; twelve decimals of a kWh are a millionth of a joule.
_DIGITS_BEFORE_POINT_MAX: Final = 13
_DIGITS_AFTER_POINT_MAX: Final = 20
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_SERIAL: Final = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
_GZIP_MAGIC: Final = b"\x1f\x8b"
# Channels beside the register are stored in 32 bits.
_MEASURED_MAX: Final = 2**31 - 1
# What a payload can say, and a person can mean.
_FIRST_YEAR, _LAST_YEAR = 1970, 9998


class ReadingsRefused(PrepaidError):
    """Files of readings that cannot be imported as asked; the message is one line."""

    code: ClassVar[str] = "readings_refused"


class LineError(Exception):
    """A line that is no reading: what was expected and what came. Earlier ones that it completed are in `readings`."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.readings: list[FileReading] = []


class FileReading(NamedTuple):
    """One reading or interval of a file.

    `at_ms` is the instant, or the interval's end, UTC milliseconds. Either `register_wh` is given, or what was used in
    the interval is `energy`, of which `per_wh` are a Wh. `quality` is the file's own word, empty if it has none.
    """

    serial: str
    at_ms: int
    register_wh: int | None
    energy: Decimal
    per_wh: int
    quality: str = ""
    voltage_mv: int | None = None
    current_ma: int | None = None
    power_w: int | None = None


class Format(Protocol):
    """What turns the lines of a file into readings, in their order.

    Invariants: `memory` is all that it knows besides its header, as JSON values; after `remember` of it, the lines that
    follow mean the same. While `is_waiting`, the next line may still change what an earlier one said.
    """

    name: str
    delimiter: str

    @property
    def is_waiting(self) -> bool:
        """Tell whether what was read is not complete before the next line."""

    def take(self, fields: list[str]) -> list[FileReading]:
        """Return the readings that are complete with one more line. Raises: LineError."""

    def end(self) -> list[FileReading]:
        """Return what is complete with the end of the file. Raises: LineError."""

    def memory(self) -> dict[str, object]:
        """Return what has to be known to go on from here."""

    def remember(self, memory: dict[str, object]) -> None:
        """Go on from where `memory` was taken."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was found in a file besides readings, by kind: values left empty, streams and qualities not imported."""

    missing: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    qualities: dict[str, int] = field(default_factory=dict)

    def leave_out(self, what: str, number: int = 1) -> None:
        """Count what is not imported."""
        self.left_out[what] = self.left_out.get(what, 0) + number


class Lines:
    """The lines of a file, plain or gzip, with the byte at which the next one begins.

    Invariants: `offset` and `number` (of the last line) count the text, not the compressed bytes.
    """

    def __init__(self, path: Path) -> None:
        self._raw = path.open("rb")
        is_gzip = self._raw.read(2) == _GZIP_MAGIC
        self._raw.seek(0)
        # A GzipFile reads as any binary file does; typeshed names it otherwise.
        self._text = cast(BinaryIO, gzip.GzipFile(fileobj=self._raw)) if is_gzip else self._raw
        self.size = path.stat().st_size
        self.offset = 0
        self.number = 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self._raw.close()

    @property
    def bytes_read(self) -> int:
        """Return how far into the file we are, of `size`."""
        return min(self._raw.tell(), self.size) if self._text is not self._raw else self.offset

    def go_to(self, offset: int, number: int) -> None:
        """Go on at the beginning of a line."""
        self._text.seek(offset)
        self.offset, self.number = offset, number

    def next(self) -> str | None:
        """Return the next line without its end, or None at the end of the file. Raises: LineError."""
        raw = self._text.readline(LINE_BYTES_MAX)
        if not raw:
            return None
        self.number += 1
        self.offset += len(raw)
        if len(raw) == LINE_BYTES_MAX and not raw.endswith(b"\n"):
            while rest := self._text.readline(LINE_BYTES_MAX):
                self.offset += len(rest)
                if rest.endswith(b"\n"):
                    break
            raise LineError(f"a line of at most {LINE_BYTES_MAX} bytes", "more")
        try:
            # The byte order mark that spreadsheets write is no part of the first field.
            return raw.decode("utf-8-sig" if self.number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise LineError("UTF-8 text", "other bytes") from None


def fields_of(line: str, delimiter: str) -> list[str]:
    """Cut a line into fields. Raises: LineError."""
    if '"' not in line:
        return [text.strip() for text in line.split(delimiter)]
    try:
        return [text.strip() for text in next(csv.reader(io.StringIO(line), delimiter=delimiter, strict=True))]
    except csv.Error as error:
        raise LineError("delimited text, each line by itself", str(error)) from None


def serial_of(text: str) -> str:
    """Read a meter's serial. Raises: LineError."""
    if not _SERIAL.fullmatch(text):
        raise LineError("a serial of 1 to 32 of A-Z a-z 0-9 _ -", shown(text))
    return text


def number_of(text: str) -> Decimal | None:
    """Read a number of 0 or more; None of an empty field or `?`. Raises: LineError."""
    if text in ("", "?"):
        return None
    if len(text) > 60 or not _NUMBER.fullmatch(text):
        raise LineError("a number", shown(text))
    value = Decimal(text)
    if value < 0:
        raise LineError("a number of 0 or more", shown(text))
    exponent = value.as_tuple().exponent
    if value.adjusted() >= _DIGITS_BEFORE_POINT_MAX or (
        isinstance(exponent, int) and -exponent > _DIGITS_AFTER_POINT_MAX
    ):
        raise LineError(
            f"at most {_DIGITS_BEFORE_POINT_MAX} digits before and {_DIGITS_AFTER_POINT_MAX} after the point",
            shown(text),
        )
    return value


class Times:
    """Reads instants, of which those without a zone are local times of one.

    Invariants: of a local time that comes twice, at the end of summer time, the first for a meter is the earlier
    one, and what is not after that is the later one.
    """

    def __init__(self, zone: ZoneInfo | None, pattern: str | None = None) -> None:
        self._zone = zone
        self._pattern = pattern
        self._last_ms: dict[str, int] = {}

    def read(self, serial: str, text: str) -> int:
        """Read an instant of a meter, UTC milliseconds. Raises: LineError."""
        try:
            # Local times get their zone below, where it is known which of two they mean.
            at = datetime.strptime(text, self._pattern) if self._pattern else datetime.fromisoformat(text)  # noqa: DTZ007
        except ValueError:
            raise LineError(f"a time such as {self._pattern or '2026-04-01T00:30:00+05:30'}", shown(text)) from None
        if not _FIRST_YEAR < at.year < _LAST_YEAR:
            raise LineError(f"a year of {_FIRST_YEAR + 1} to {_LAST_YEAR - 1}", shown(text))
        at_ms = self._local(serial, at, text) if at.tzinfo is None else to_ms(at.astimezone(UTC))
        self._last_ms[serial] = at_ms
        return at_ms

    def memory(self) -> dict[str, int]:
        """Return the last instant of each meter."""
        return dict(self._last_ms)

    def remember(self, last_ms: dict[str, int]) -> None:
        """Go on after these instants."""
        self._last_ms = dict(last_ms)

    def _local(self, serial: str, at: datetime, text: str) -> int:
        if self._zone is None:
            raise LineError("a time with its zone, or --zone", shown(text))
        first = at.replace(tzinfo=self._zone, fold=0)
        later = at.replace(tzinfo=self._zone, fold=1)
        if first.utcoffset() == later.utcoffset():
            return to_ms(first.astimezone(UTC))
        if first.astimezone(UTC).astimezone(self._zone).replace(tzinfo=None) != at:
            raise LineError(f"a time that exists in {self._zone.key}", shown(text))
        first_ms = to_ms(first.astimezone(UTC))
        last_ms = self._last_ms.get(serial)
        return first_ms if last_ms is None or first_ms > last_ms else to_ms(later.astimezone(UTC))


def whole(value: Decimal, times: int) -> int:
    """Return a number in a smaller unit. Rounds: down."""
    return int(value * times)


def measured(text: str, times: int) -> int | None:
    """Read what was measured beside energy into a smaller unit. Rounds: half up. Raises: LineError."""
    value = number_of(text)
    if value is None:
        return None
    scaled = int(value * times + Decimal("0.5"))
    if scaled > _MEASURED_MAX:
        raise LineError(f"at most {_MEASURED_MAX // times}", shown(text))
    return scaled


def each_line(lines: Lines, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Return the lines that are not empty, as fields, with their numbers. Raises: LineError."""
    while (line := lines.next()) is not None:
        if line.strip():
            yield lines.number, fields_of(line, delimiter)
