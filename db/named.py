"""Named SQL: every query of the product lives in `db/queries/*.sql` under a name and a one-line purpose.

A file holds blocks that begin with `-- name: purpose`. Queries are sent as they are written; none is built from
strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources

from db.errors import QueryMissing

_PARAMETER = re.compile(rb"%\((?P<name>[a-z_0-9]+)\)s|%%")
_HEAD = re.compile(r"^-- (?P<name>[a-z_0-9]+): (?P<purpose>.+)$", re.MULTILINE)


@cache
def queries() -> dict[str, bytes]:
    """Return all named queries. A name used twice is refused."""
    found: dict[str, bytes] = {}
    folder = resources.files("db") / "queries"
    for entry in folder.iterdir():
        if entry.name.endswith(".sql"):
            for name, sql in _blocks(entry.read_text(encoding="utf-8")):
                assert name not in found, f"query {name}: expected one definition, got two"
                found[name] = sql.encode()
    return found


def sql(name: str) -> bytes:
    """Return a query's text.

    Raises: QueryMissing when no file defines it.
    """
    try:
        return queries()[name]
    except KeyError:
        raise QueryMissing(f"query: expected a name from db/queries, got {name!r}") from None


@cache
def numbered(name: str) -> tuple[bytes, tuple[str, ...]]:
    """Return a query with its parameters as $1, $2 and so on, and their names in that order.

    For `AsyncRawCursor`: psycopg translates names anew at each call where a query is long or has many (2026-11-22).
    Raises: QueryMissing when no file defines it.
    """
    names: dict[bytes, int] = {}

    def number(found: re.Match[bytes]) -> bytes:
        if found["name"] is None:
            return b"%"
        return b"$%d" % names.setdefault(found["name"], len(names) + 1)

    text = _PARAMETER.sub(number, sql(name))
    return text, tuple(each.decode() for each in names)


def array_text(values: Iterable[int | None]) -> str:
    """Write whole numbers as PostgreSQL reads an array: a tenth of what psycopg takes for a list (2026-11-22)."""
    return "{" + ",".join("null" if value is None else str(value) for value in values) + "}"


def _blocks(text: str) -> list[tuple[str, str]]:
    heads = list(_HEAD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [(head["name"], text[head.end() : end].strip()) for head, end in zip(heads, ends, strict=True)]
