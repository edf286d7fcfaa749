"""The forms in which makers hand over what their meters hold: header names to the fields of a record.

Stage: administration, before a line is read. A form is a small table: which column is which field, what every line
says without a column, and which words stand for which codes. An operator writes another as a TOML file. Never: a
column of keys, which no form may name and no file may have.

Standard: RFC 4180 with another separator where a form says so. The forms of makers are made after lists as they come
with meters, none is a maker's own specification.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from prepaid.settings import PrepaidError

RECORD_FIELDS = (
    "serial",
    "drn",
    "engine",
    "ea",
    "tct",
    "dkga",
    "sgc",
    "key_type",
    "krn",
    "tariff_index",
    "ken",
    "base_year",
    "key_change_tokens",
    "capabilities",
    "day_price",
)
SEPARATORS = {",", ";", "\t", "|"}
# Headers of columns that hold secrets. A header such as `key type` or `key revision` is none of them.
_SECRET = re.compile(
    r"(.*\b)?(key|keys|key (hex|value|data|component|check value)|secret.*|password|pin|seed)"
    r"|(vk|dk|vudk|vddk|vcdk|ditk|ddtk|dutk|dctk|mdk|kek|master) ?\d*",
    re.IGNORECASE,
)


class FormRefused(PrepaidError):
    """A form of lists that cannot be used, or that nobody knows."""

    code: ClassVar[str] = "form_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListForm:
    """How one maker's list is read.

    Invariants: `columns` takes headers as `plain_header` writes them to fields, `constants` fields to texts, `words`
    fields to what their words stand for; `serial` or `drn` is among the columns.
    """

    name: str
    separator: str = ","
    columns: Mapping[str, str]
    constants: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


_CIPHER_WORDS = {"sta": "7", "misty1": "11", "des": "7"}
_KEY_TYPE_WORDS = {"ditk": "0", "ddtk": "1", "dutk": "2", "dctk": "3"}
_BASE_WORDS = {
    "93": "1993",
    "14": "2014",
    "35": "2035",
    **{f"{first}{year}": year for year in ("1993", "2014", "2035") for first in ("01/01/", "1/1/", "01.01.", "01-01-")},
    **{f"{year}-01-01": year for year in ("1993", "2014", "2035")},
}
BUILTIN_FORMS = {
    form.name: form
    for form in (
        ListForm(name="generic", columns={name.replace("_", " "): name for name in RECORD_FIELDS}),
        # The list that comes with a box of keypad meters: the number on the label is the DRN, codes are words.
        ListForm(
            name="delivery-list",
            separator=";",
            columns={
                "meter no": "serial",
                "drn": "drn",
                "supply group code": "sgc",
                "key revision no": "krn",
                "tariff index": "tariff_index",
                "key type": "key_type",
                "key expiry no": "ken",
                "encryption algorithm": "ea",
                "decoder key generation algorithm": "dkga",
                "base date": "base_year",
                "kct count": "key_change_tokens",
            },
            constants={"engine": "sts", "tct": "2"},
            words={"ea": _CIPHER_WORDS, "key_type": _KEY_TYPE_WORDS, "base_year": _BASE_WORDS},
        ),
        # The short list of codes: everything by its abbreviation, the meter by its DRN alone.
        ListForm(
            name="code-list",
            columns={
                "drn": "drn",
                "sgc": "sgc",
                "krn": "krn",
                "ti": "tariff_index",
                "kt": "key_type",
                "ken": "ken",
                "ea": "ea",
                "dkga": "dkga",
                "tct": "tct",
                "bdt": "base_year",
                "kct": "key_change_tokens",
            },
            constants={"engine": "sts"},
            words={"ea": _CIPHER_WORDS, "key_type": _KEY_TYPE_WORDS, "base_year": _BASE_WORDS},
        ),
    )
}


def plain_header(text: str) -> str:
    """Write a header in one way: small letters, one blank for every run of other signs."""
    return re.sub(r"[^a-z0-9]+", " ", text.casefold()).strip()


def is_secret_header(text: str) -> bool:
    """Tell whether a column holds keys or other secrets, by its name."""
    return bool(_SECRET.fullmatch(plain_header(text)))


def form_named(name: str) -> ListForm:
    """Return a built-in form.

    Raises: FormRefused.
    """
    form = BUILTIN_FORMS.get(name)
    if form is None:
        raise FormRefused(f"form: expected one of {', '.join(BUILTIN_FORMS)}, got {name[:40]!r}")
    return form


def parse_form(text: str, name: str) -> ListForm:
    """Read an operator's form, a TOML document with `separator`, `[columns]`, `[constants]` and `[words.FIELD]`.

    Raises: FormRefused.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormRefused(f"{name}: expected TOML, got {error}") from None
    unknown = sorted(set(document) - {"separator", "columns", "constants", "words"})
    if unknown:
        raise FormRefused(f"{name}: expected separator, columns, constants, words, got {unknown[0]!r}")
    separator = document.get("separator", ",")
    if separator not in SEPARATORS:
        raise FormRefused(f"{name}: expected a separator out of comma, semicolon, tab, bar, got {separator!r}")
    headers = _texts(document.get("columns"), name, "columns")
    secret = sorted(header for header in headers if is_secret_header(header))
    if secret:
        raise FormRefused(f"{name}: expected no column of keys, got {secret[0]!r}")
    columns = {plain_header(header): field for header, field in headers.items()}
    constants = _texts(document.get("constants", {}), name, "constants")
    words = document.get("words", {})
    if not isinstance(words, dict):
        raise FormRefused(f"{name}: expected tables under words, got another value")
    _require_fields([*columns.values(), *constants, *words], name)
    if not {"serial", "drn"} & {*columns.values()}:
        raise FormRefused(f"{name}: expected a column of the serial or the DRN, got none")
    read_words = {each: _texts(words[each], name, f"words.{each}") for each in words}
    return ListForm(
        name=name,
        separator=separator,
        columns=columns,
        constants=constants,
        words={each: {word.casefold(): code for word, code in table.items()} for each, table in read_words.items()},
    )


def _texts(table: object, name: str, whose: str) -> dict[str, str]:
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise FormRefused(f"{name}: expected texts under {whose}, got another value")
    return {str(key): str(value) for key, value in table.items()}


def _require_fields(fields: list[str], name: str) -> None:
    unknown = sorted(set(fields) - {*RECORD_FIELDS})
    if unknown:
        raise FormRefused(f"{name}: expected fields out of {', '.join(RECORD_FIELDS)}, got {unknown[0][:40]!r}")
    twice = sorted({each for each in fields if fields.count(each) > 1} - {"serial"})
    # Words and a column of one field belong together; a constant beside a column does not.
    if any(fields.count(each) > 2 for each in twice):
        raise FormRefused(f"{name}: expected each field once, got {twice[0]}")
