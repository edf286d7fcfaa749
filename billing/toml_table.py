"""Reading a document that a person wrote in TOML: field by field, each refusal with its line, table and field.

Stage: below the documents of tariffs, supply rules and validation rules. Takes the text; leaves typed values of what is
asked for, or the document's own error. Knows no rule of any document.

Standard: TOML 1.0.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any, NoReturn, TypeVar

from billing.money import BillingError
from billing.toml_lines import Path, lines_by_path
from billing.zones import DAY_MINUTES

E = TypeVar("E", bound=Enum)

# The order of a whole state has some hundred lines; nothing a person wrote comes near a megabyte.
DOCUMENT_CHARACTERS_MAX = 1_000_000
TEXT_LENGTH_MAX = 300

_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}", re.ASCII)
_NAME = re.compile(r"[a-z][a-z_0-9]{0,31}", re.ASCII)
_CLOCK = re.compile(r"(\d\d):(\d\d)", re.ASCII)
_MONTH_DAY = re.compile(r"(\d\d)-(\d\d)", re.ASCII)
# 2000 is a leap year: every month and day exists in it.
_A_LEAP_YEAR = 2000
# Any other is a slip of the finger.
_YEARS = range(2000, 2200)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """The document that tables belong to: how messages name it, where its parts stand, what it is refused with."""

    name: str
    lines: Mapping[Path, int]
    refusal: type[BillingError]


def read_document(text: str, kind: str, refusal: type[BillingError]) -> tuple[str, Table]:
    """Read TOML; return the document's id and its top table.

    Raises: the given error, for what is no TOML or has no id.
    """
    if len(text) > DOCUMENT_CHARACTERS_MAX:
        raise refusal(f"{kind} document: expected at most {DOCUMENT_CHARACTERS_MAX} characters, got {len(text)}")
    # As TOML reads it, and as editors count lines.
    text = text.replace("\r\n", "\n")
    try:
        fields, lines = tomllib.loads(text), lines_by_path(text)
    except RecursionError:
        raise refusal(f"{kind} document: expected TOML, got tables or lists nested without end") from None
    except ValueError as error:
        # A number of thousands of digits is a plain ValueError.
        raise refusal(f"{kind} document: expected TOML, {error}") from error
    name = fields.get("id")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        rule = f"id: expected a-z, 0-9, dots and dashes, at most 64, got {shown(name)}"
        raise refusal(f"{kind} document, line {lines.get(('id',), 1)}: {rule}")
    return name, Table(fields, (), _Source(name=f"{kind} {name}", lines=lines, refusal=refusal))


class Table:
    """One table of a document; reads fields and refuses what breaks a rule, with the line of the field."""

    def __init__(self, fields: dict[str, Any], path: Path, source: _Source) -> None:
        """Know where the table stands; fields are untyped until each is read."""
        self.fields = fields
        self._path = path
        self._source = source

    def refuse(self, rule: str, key: str | None = None) -> NoReturn:
        """Refuse the document at a field, or at the table."""
        path = self._path if key is None else (*self._path, key)
        lines = self._source.lines
        while path and path not in lines:
            path = path[:-1]
        raise self._source.refusal(f"{self._source.name}, line {lines.get(path, 1)}, {self._what()}: {rule}")

    def require_known(self, known: Collection[str]) -> None:
        """Refuse any other field."""
        for key in self.fields:
            if key not in known:
                self.refuse(f"expected only {', '.join(sorted(known))}, got {key}", key)

    def rows(self, key: str, known: Collection[str]) -> list[Table]:
        """Return the tables of an array of tables, none if there is none."""
        rows = self.fields.get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self.refuse(f"{key}: expected [[{key}]] tables, got {shown(rows)}", key)
        tables = [Table(row, (*self._path, key, number), self._source) for number, row in enumerate(rows)]
        for table in tables:
            table.require_known(known)
        return tables

    def table(self, key: str, known: Collection[str] | None = None) -> Table:
        """Return a table, an empty one if there is none; without `known`, of any fields."""
        fields = self.fields.get(key, {})
        if not isinstance(fields, dict):
            self.refuse(f"{key}: expected a table, got {shown(fields)}", key)
        table = Table(fields, (*self._path, key), self._source)
        if known is not None:
            table.require_known(known)
        return table

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text of one line, which must be there and not be empty where there is no default."""
        value = self.fields.get(key, default)
        good = isinstance(value, str) and len(value) <= TEXT_LENGTH_MAX and value.isprintable()
        if not good or (default is None and not value):
            self.refuse(f"{key}: expected one line of text, at most {TEXT_LENGTH_MAX} long, got {shown(value)}", key)
        return str(value)

    def name(self, key: str) -> str:
        """Return a name that other parts of the document go by."""
        value = self.text(key, "")
        if not is_name(value):
            self.refuse(f"{key}: expected a name of a-z, 0-9 and _, at most 32, got {shown(value)}", key)
        return value

    def names(self, key: str, allowed: Sequence[str], default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return a list of names, each out of those allowed and given once."""
        value = self.fields.get(key, list(default))
        if not isinstance(value, list) or len(set(map(str, value))) != len(value):
            self.refuse(f"{key}: expected a list of different names, got {shown(value)}", key)
        unknown = [each for each in value if each not in allowed]
        if unknown:
            self.refuse(f"{key}: expected names out of {', '.join(allowed)}, got {shown(unknown[0])}", key)
        return tuple(value)

    def several(self, key: str, allowed: Collection[object], expected: str) -> list[Any]:
        """Return a list of different values, one or more, each out of those allowed."""
        value = self.fields.get(key)
        if not isinstance(value, list) or not value:
            self.refuse(f"{key}: expected a list of {expected}, got {shown(value)}", key)
        for place, each in enumerate(value):
            # To Python, true is 1.
            if isinstance(each, bool) or each not in allowed or each in value[:place]:
                self.refuse(f"{key}: expected {expected}, each once, got {shown(each)}", key)
        return value

    def choice(self, key: str, of: Sequence[E], default: E | None = None) -> E:
        """Return one of a closed set by its value."""
        value = self.fields.get(key, None if default is None else default.value)
        # To Python, 1.0 and true are 1.
        chosen = next((each for each in of if type(value) is type(each.value) and value == each.value), None)
        if chosen is None:
            allowed = ", ".join(str(each.value) for each in of)
            self.refuse(f"{key}: expected one of {allowed}, got {shown(value)}", key)
        return chosen

    def one_field(self, keys: Collection[str], *, required: bool) -> str | None:
        """Return which one of several fields is given."""
        given = [key for key in self.fields if key in keys]
        if len(given) > 1 or (required and not given):
            many = "exactly" if required else "at most"
            got = " and ".join(given) or "none"
            self.refuse(f"expected {many} one of {', '.join(keys)}, got {got}", given[-1] if given else None)
        return given[0] if given else None

    def flag(self, key: str) -> bool:
        """Return true or false; false if it is not there."""
        value = self.fields.get(key, False)
        if not isinstance(value, bool):
            self.refuse(f"{key}: expected true or false, got {shown(value)}", key)
        return value

    def whole(self, key: str, most: int, *, least: int = 0) -> int:
        """Return a whole number that must be there."""
        value = self.fields.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.refuse(f"{key}: expected a whole number from {least} to {most}, got {shown(value)}", key)
        return value

    def day(self, key: str) -> date:
        """Return a day that must be there."""
        value = self.fields.get(key)
        # A TOML date with a time is read as a datetime, which Python counts among the dates.
        if type(value) is not date:
            self.refuse(f"{key}: expected a date such as 2026-04-01, got {shown(value)}", key)
        return value

    def effective_from(self) -> date:
        """Return the day from which the document holds."""
        day = self.day("effective_from")
        if day.year not in _YEARS:
            self.refuse(f"effective_from: expected a year from 2000 to 2199, got {day}", "effective_from")
        return day

    def minute(self, key: str, most: int = DAY_MINUTES) -> int:
        """Return a local time as minutes of the day; 24:00 ends it."""
        value = self.fields.get(key)
        match = _CLOCK.fullmatch(value) if isinstance(value, str) else None
        minute = int(match[1]) * 60 + int(match[2]) if match and int(match[2]) < 60 else -1
        if not 0 <= minute <= most:
            self.refuse(f"{key}: expected a time from 00:00 to {clock(most)}, got {shown(value)}", key)
        return minute

    def month_day(self, key: str) -> tuple[int, int]:
        """Return a month and a day of it."""
        value = self.fields.get(key)
        match = _MONTH_DAY.fullmatch(value) if isinstance(value, str) else None
        try:
            day = date(_A_LEAP_YEAR, int(match[1]), int(match[2])) if match else None
        except ValueError:
            day = None
        if day is None:
            self.refuse(f"{key}: expected a month and day such as 04-01, got {shown(value)}", key)
        return day.month, day.day

    def _what(self) -> str:
        """Name the table as the document writes it: `[zones]`, or `[[band]] 2` for the second."""
        names = ".".join(str(part) for part in self._path if isinstance(part, str))
        if not names:
            return "the document"
        last = self._path[-1]
        return f"[[{names}]] {last + 1}" if isinstance(last, int) else f"[{names}]"


def is_name(text: str) -> bool:
    """Tell whether a text is a name that parts of a document go by."""
    return _NAME.fullmatch(text) is not None


def shown(value: object) -> str:
    """Return a value as an error message shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"[:80]
    return "none" if value is None else repr(value)[:80]


def clock(minute: int) -> str:
    """Return a minute of the day as a local clock shows it."""
    return f"{minute // 60:02d}:{minute % 60:02d}"
