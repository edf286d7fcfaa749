"""Import of makers' lists: what each registered meter holds, line by line.

Stage: administration. Good lines go in, each in a transaction of its own, under the lock that vends take; bad ones are
refused and listed, as a list of thousands of meters should not wait for one mistyped number. A line that says what is
known changes nothing, so a file can be run again; one that says otherwise makes a new version of the meter's record
with the file as its reason. A file with a column of keys is refused whole. Never logs what is in a file.

Standard: RFC 4180, UTF-8; the forms are in `record_formats`.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from psycopg import AsyncConnection

from db.errors import DatabaseError
from db.vends import find_meters
from prepaid.administration import on_database
from prepaid.console import progress_bars
from prepaid.csv_lines import FieldError, ImportRefused, amount_field, read_capabilities, shown, whole_field
from prepaid.record_formats import ListForm, is_secret_header, plain_header
from prepaid.settings import Settings
from vending.edges.record_desk import Wanted, set_record
from vending.vends import VendingError

# Each field of a record is shorter.
_FIELD_LENGTH_MAX = 200


@dataclass(slots=True, kw_only=True)
class ImportOutcome:
    """What became of a file's lines; `refused` holds the line's number and what is wrong with it."""

    new: int = 0
    changed: int = 0
    same: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)
    ignored_columns: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    number: int
    texts: Mapping[str, str]


def run_import_records(settings: Settings, file: Path, form: ListForm, *, by: str, dry_run: bool) -> ImportOutcome:
    """Import a list; with `dry_run` every line is tried and nothing is kept.

    Raises: ImportRefused for a file that is no list of this form, or that has a column of keys.
    """
    outcome = ImportOutcome()
    lines = list(_read(file, form, outcome))

    async def work(conn: AsyncConnection) -> ImportOutcome:
        seen: dict[str, int] = {}
        with progress_bars() as bars:
            for done, line in enumerate(lines, 1):
                refusal = await _import_line(conn, line, seen, f"import {file.name}", by, dry_run, outcome)
                if refusal:
                    outcome.refused.append((line.number, refusal))
                bars("records", done, len(lines))
        return outcome

    return on_database(settings, work)


async def _import_line(
    conn: AsyncConnection,
    line: _Line,
    seen: dict[str, int],
    reason: str,
    by: str,
    dry_run: bool,
    outcome: ImportOutcome,
) -> str | None:
    """Import one line; return why not, or None."""
    name = line.texts.get("serial") or line.texts.get("drn", "")
    if not name:
        return "serial: expected a serial or a DRN, got none"
    try:
        changes = _changes(line.texts)
    except FieldError as error:
        return str(error)
    meters = await find_meters(conn, name)
    if len(meters) != 1:
        expected = "a registered meter" if not meters else "a name of one meter"
        return f"serial: expected {expected}, got {shown(name)}"
    serial = meters[0].serial
    if seen.setdefault(serial, line.number) != line.number:
        return f"serial: expected each meter once, got {serial} again after line {seen[serial]}"
    wanted = Wanted(serial=serial, changes=changes, by=by, reason=reason, drn=line.texts.get("drn") or None)
    try:
        async with conn.transaction(force_rollback=dry_run):
            version = await set_record(conn, wanted, now_ms=time.time_ns() // 1_000_000)
    except (VendingError, DatabaseError) as error:
        return str(error)
    if version is None:
        outcome.same += 1
    elif version == 1:
        outcome.new += 1
    else:
        outcome.changed += 1
    return None


def _read(file: Path, form: ListForm, outcome: ImportOutcome) -> Iterator[_Line]:
    """Yield the lines by field. A line of another length is refused; empty ones do not count."""
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened, strict=True, delimiter=form.separator)
        begins = 1
        try:
            fields = _fields_of_header([name.strip() for name in next(reader, [])], file, form, outcome)
            begins = reader.line_num + 1
            for row in reader:
                if any(row) and len(row) != len(fields):
                    outcome.refused.append((begins, f"expected {len(fields)} fields, got {len(row)}"))
                elif any(row):
                    yield _Line(number=begins, texts=_texts(fields, row, form))
                begins = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            message = f"{file.name} line {begins}: expected CSV in UTF-8, got {error}; nothing was imported"
            raise ImportRefused(message) from None


def _fields_of_header(header: list[str], file: Path, form: ListForm, outcome: ImportOutcome) -> list[str | None]:
    """Return the field of each column, None for one that is not read."""
    for name in header:
        if is_secret_header(name):
            raise ImportRefused(
                f"{file.name} column {shown(name)}: expected a list without keys or secrets, got such a column; "
                "take it out, nothing was imported"
            )
    fields = [form.columns.get(plain_header(name)) for name in header]
    known = [each for each in fields if each is not None]
    if not {"serial", "drn"} & set(known):
        raise ImportRefused(
            f"{file.name} line 1: expected a column of the serial or DRN as in form {form.name}, got "
            f"{', '.join(map(shown, header[:6])) or 'nothing'}; nothing was imported"
        )
    twice = sorted({each for each in known if known.count(each) > 1})
    if twice:
        raise ImportRefused(f"{file.name} line 1: expected one column of {twice[0]}, got more; nothing was imported")
    outcome.ignored_columns = [name for name, each in zip(header, fields, strict=True) if each is None]
    return fields


def _texts(fields: list[str | None], row: list[str], form: ListForm) -> dict[str, str]:
    texts = dict(form.constants)
    for name, text in zip(fields, row, strict=True):
        if name is not None and text.strip():
            words = form.words.get(name, {})
            texts[name] = words.get(text.strip().casefold(), text.strip())
    return texts


def _changes(texts: Mapping[str, str]) -> dict[str, object]:
    """Read the given fields. Raises: FieldError naming every wrong one."""
    changes: dict[str, object] = {}
    wrong = []
    for name, text in texts.items():
        parse = _PARSED.get(name)
        if parse is None:
            continue
        column = "day_price_minor" if name == "day_price" else name
        try:
            changes[column] = parse(text[:_FIELD_LENGTH_MAX])
        except FieldError as error:
            wrong.append(f"{name}: expected {error}, got {shown(text)}")
    if wrong:
        raise FieldError("; ".join(wrong))
    return changes


def read_tariff_index(text: str) -> str:
    """Read a tariff index; a spreadsheet drops its leading zero."""
    return f"{whole_field(0, 99)(text):02d}"


# A field's range is held against its engine's rules with the others; here only its form.
_PARSED: dict[str, Callable[[str], object]] = {
    "engine": str.casefold,
    "ea": whole_field(0, 99),
    "tct": whole_field(0, 99),
    "dkga": whole_field(0, 99),
    "sgc": str,
    "key_type": whole_field(0, 9),
    "krn": whole_field(0, 99),
    "tariff_index": read_tariff_index,
    "ken": whole_field(0, 9_999),
    "base_year": whole_field(0, 9_999),
    "key_change_tokens": whole_field(0, 9),
    "capabilities": read_capabilities,
    "day_price": amount_field,
}
