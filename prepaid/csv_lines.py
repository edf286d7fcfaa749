"""CSV files that an operator hands in: lines by column, fields of their form, and every error with its place.

Stage: administration, before anything is written. A file is read and checked as a whole; an error names file, line,
column, what was expected and what was found. Never logs or prints what is in a file beyond the field that is wrong.

Standard: RFC 4180.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from billing.money import BadAmount, parse_amount
from prepaid.settings import PrepaidError

T = TypeVar("T")

# One line of text for a person: five errors of some 150 characters.
ERRORS_SHOWN_MAX = 5
TEXT_LENGTH_MAX = 200
_SHOWN_LENGTH_MAX = 40
# Meters and accounts of before 2000 do not exist here; a date that says so lost digits.
FIRST_YEAR = 2000
TARIFF_EXPECTED = "a tariff that was added (prepaid tariffs list)"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
_AREA_TYPE = re.compile(r"[a-z_]{1,32}", re.ASCII)


class ImportRefused(PrepaidError):
    """A file that cannot be imported; the message names the places, and nothing of it was written unless it says so."""

    code: ClassVar[str] = "import_refused"


class FieldError(Exception):
    """One field is not of its form: what was expected and what was found."""


class Errors:
    """The errors found in one file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._texts: list[str] = []

    def add(self, line: int, column: str, expected: str, got: str) -> None:
        self._texts.append(f"{self._file.name} line {line} column {column}: expected {expected}, got {got}")

    def refuse_any(self) -> None:
        """Raise: ImportRefused when there is any."""
        if self._texts:
            more = len(self._texts) - ERRORS_SHOWN_MAX
            rest = f"; and {more} more errors" if more > 0 else ""
            raise ImportRefused("; ".join(self._texts[:ERRORS_SHOWN_MAX]) + rest + "; nothing was imported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line(Generic[T]):
    """What one line of a file asks for."""

    number: int
    value: T


class Fields:
    """The fields of one line; each is read once, by its column, and a wrong one is noted and read as its default."""

    def __init__(self, line: int, fields: Mapping[str, str], errors: Errors) -> None:
        self.line = line
        self._fields = fields
        self._errors = errors
        self.good = True

    def has(self, column: str) -> bool:
        """Tell whether a column is given."""
        return bool(self._fields.get(column))

    def read(self, column: str, parse: Callable[[str], T], default: T) -> T:
        """Read a field that may be left out."""
        text = self._fields.get(column, "")
        if not text:
            return default
        try:
            return parse(text)
        except FieldError as error:
            self.refuse(column, str(error), shown(text))
            return default

    def require(self, column: str, parse: Callable[[str], T], placeholder: T) -> T:
        """Read a field that must be there."""
        if not self.has(column):
            self.refuse(column, "a value", "none")
        return self.read(column, parse, placeholder)

    def refuse(self, column: str, expected: str, got: str) -> None:
        """Note that a field is wrong."""
        self.good = False
        self._errors.add(self.line, column, expected, got)


def read_lines(
    file: Path, required: Sequence[str], optional: Sequence[str], errors: Errors
) -> list[tuple[int, dict[str, str]]]:
    """Read a file into fields by column, with the number of the line that each begins on.

    Raises: ImportRefused for a file that is no CSV in UTF-8 or has other columns.
    """
    lines: list[tuple[int, dict[str, str]]] = []
    begins = 1
    # The byte order mark that spreadsheets write is no part of the first column's name.
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, required, optional, errors)
            begins = reader.line_num + 1
            for row in reader:
                if any(row) and len(row) != len(header):
                    errors.add(begins, header[min(len(row), len(header)) - 1], f"{len(header)} fields", str(len(row)))
                elif any(row):
                    lines.append((begins, {name: text.strip() for name, text in zip(header, row, strict=True)}))
                begins = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            errors.add(begins, "any", "CSV in UTF-8", str(error))
            errors.refuse_any()
    return lines


def refuse_repeated(lines: Sequence[tuple[int, Mapping[str, str]]], columns: Sequence[str], errors: Errors) -> None:
    """Note values that stand on two lines though each belongs to one."""
    for column in columns:
        seen: dict[str, int] = {}
        for number, fields in lines:
            value = fields.get(column, "")
            if value and seen.setdefault(value, number) != number:
                errors.add(number, column, "each value once", f"{shown(value)} again after line {seen[value]}")


def shown(text: str) -> str:
    """Return the beginning of a wrong field, in quotes."""
    return repr(text[:_SHOWN_LENGTH_MAX])


def text_field(text: str) -> str:
    """Read a printable text."""
    if len(text) > TEXT_LENGTH_MAX or not text.isprintable():
        raise FieldError(f"at most {TEXT_LENGTH_MAX} printable characters")
    return text


def name_field(text: str) -> str:
    """Read a serial or number."""
    if not _NAME.fullmatch(text):
        raise FieldError("1 to 32 of A-Z a-z 0-9 _ -")
    return text


def whole_field(lowest: int, highest: int) -> Callable[[str], int]:
    """Return what reads a whole number between limits."""

    def parse(text: str) -> int:
        # The length first: int() of a million digits takes minutes.
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(highest)) + 3):
            raise FieldError(f"a whole number from {lowest} to {highest}")
        if not lowest <= int(text) <= highest:
            raise FieldError(f"a whole number from {lowest} to {highest}")
        return int(text)

    return parse


def one_of(*words: str) -> Callable[[str], str]:
    """Return what reads one of some words."""

    def parse(text: str) -> str:
        if text not in words:
            raise FieldError(f"one of {', '.join(words)}")
        return text

    return parse


def like(pattern: re.Pattern[str], expected: str) -> Callable[[str], str]:
    """Return what reads a text of a pattern."""

    def parse(text: str) -> str:
        if len(text) > TEXT_LENGTH_MAX or not text.isprintable() or not pattern.fullmatch(text):
            raise FieldError(expected)
        return text

    return parse


def amount_field(text: str) -> int:
    """Read an amount of money into minor units."""
    try:
        return parse_amount(text)
    except BadAmount:
        raise FieldError("an amount such as 500 or 500.00") from None


def instant_field(text: str) -> datetime:
    """Read an aware instant, to the millisecond."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise FieldError("an instant such as 2026-04-01T00:00:00+05:30") from None
    if instant.tzinfo is None:
        raise FieldError("an instant with its zone, such as 2026-04-01T00:00:00+05:30")
    if not FIRST_YEAR < instant.year < FIRST_YEAR + 100:
        raise FieldError(f"an instant of {FIRST_YEAR + 1} to {FIRST_YEAR + 99}")
    # Readings are kept to the millisecond, and so are the instants they are compared with.
    return instant.replace(microsecond=instant.microsecond // 1000 * 1000)


def day_field(text: str) -> date:
    """Read a local day."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise FieldError("a day such as 2026-04-01") from None
    if not FIRST_YEAR < day.year < FIRST_YEAR + 100:
        raise FieldError(f"a day of {FIRST_YEAR + 1} to {FIRST_YEAR + 99}")
    return day


def area_type_field(text: str) -> str:
    """Read the type of an area, by which levies differ."""
    return like(_AREA_TYPE, "a type of area such as urban or rural, a-z and _")(text)


def read_capabilities(text: str) -> tuple[str, ...]:
    """Read what a meter takes: words with blanks, bars or commas between them."""
    return tuple(sorted(set(text.replace("|", " ").replace(",", " ").casefold().split())))


def _check_header(header: Sequence[str], required: Sequence[str], optional: Sequence[str], errors: Errors) -> None:
    known = {*required, *optional}
    for column in required:
        if column not in header:
            errors.add(1, column, "this column in the header", "none")
    for column in header:
        if column not in known:
            errors.add(1, shown(column), f"one of {', '.join((*required, *optional))}", "another column")
    for column in sorted({column for column in header if header.count(column) > 1}):
        errors.add(1, shown(column), "each column once", str(header.count(column)))
    errors.refuse_any()
