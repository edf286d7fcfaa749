"""Where in a TOML text each table and field stands, so that a refusal can name the line.

Stage: beside `billing.tariff_document`. Takes a text that `tomllib` has read without complaint; returns line numbers by
path. A path is the way `tomllib`'s value is walked: keys, and numbers within arrays. Never judges the text.

Standard: TOML 1.0.
"""

from __future__ import annotations

import re

# The way to a value: ("band", 0, "energy", 1, "to_kwh").
Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r"""
    (?P<blank>[ \t\r]+|\#[^\n]*)
    | (?P<newline>\n)
    | (?P<text>\"\"\"(?:\\.|[^\\])*?\"{3,5}|'''.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*')
    | (?P<mark>[\[\]{}=,.])
    | (?P<bare>[^\s\[\]{}=,.\#"']+)
    """,
    re.VERBOSE | re.DOTALL,
)


def lines_by_path(text: str) -> dict[Path, int]:
    """Return the line, from 1, on which each table, field and element of an array begins."""
    return _Scan(text).run()


class _Scan:
    """One pass over the tokens of a text."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, int]] = []
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "blank":
                self._tokens.append((match[0], line))
            line += match[0].count("\n")
        self._tokens.append(("", line))
        self._place = 0
        self._lines: dict[Path, int] = {}
        # How many tables each array of tables has so far.
        self._counts: dict[Path, int] = {}

    def run(self) -> dict[Path, int]:
        table: Path = ()
        while (token := self._token()) != "":
            if token == "\n":
                self._place += 1
            elif token == "[":
                table = self._header()
            else:
                self._field(table)
        return self._lines

    def _token(self) -> str:
        return self._tokens[self._place][0]

    def _line(self) -> int:
        return self._tokens[self._place][1]

    def _skip(self, *marks: str) -> None:
        while self._token() in marks:
            self._place += 1

    def _header(self) -> Path:
        """Read `[a.b]` or `[[a.b]]`; return the path of the table that begins."""
        line, begins = self._line(), self._place
        self._skip("[")
        of_array = self._place - begins == 2
        *before, last = self._key()
        self._skip("]")
        path: Path = ()
        for part in before:
            path = (*path, part)
            # A table that only its parts name begins with the first of them.
            self._lines.setdefault(path, line)
            path = self._latest(path)
        path = (*path, last)
        if of_array:
            number = self._counts.get(path, 0)
            self._counts[path] = number + 1
            self._lines.setdefault(path, line)
            path = (*path, number)
        self._lines[path] = line
        return path

    def _latest(self, path: Path) -> Path:
        """Return a table's path, in an array of tables that of its latest."""
        return (*path, self._counts[path] - 1) if path in self._counts else path

    def _key(self) -> list[str]:
        parts = []
        while self._token() not in ("=", "]", "\n", ""):
            if self._token() != ".":
                parts.append(self._token().strip("\"'"))
            self._place += 1
        return parts

    def _field(self, table: Path) -> None:
        line = self._line()
        path = table
        for part in self._key():
            path = (*path, part)
            self._lines.setdefault(path, line)
        self._skip("=")
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._token() == "[":
            self._array(path)
        elif self._token() == "{":
            self._place += 1
            while self._token() not in ("}", ""):
                self._field(path)
                self._skip(",")
            self._place += 1
        else:
            while self._token() not in (",", "]", "}", "\n", ""):
                self._place += 1

    def _array(self, path: Path) -> None:
        self._place += 1
        self._skip("\n")
        number = 0
        while self._token() not in ("]", ""):
            self._lines[*path, number] = self._line()
            self._value((*path, number))
            self._skip("\n", ",")
            number += 1
        self._place += 1
