"""CSV import of meters and accounts: a file is taken as a whole, or refused with the places of its errors.

Stage: administration. A file is read and checked line by line, then against what is stored; only then is anything
written, some hundred lines a transaction. Serials and account numbers that are there already are left as they are,
so that an import that was stopped goes on when it is run again. Never logs or prints what is in a file; an error
names file, line, column, what was expected and what was found.

The form is CSV in UTF-8 with a header line that names the columns, in any order; an empty field is one that is not
given. Columns marked * are required.

Meters: serial*, rated_w* (W), register_end_wh* (Wh at which the register rolls over), make, model, custody (licensee
or consumer), and for an STS meter all of drn, ea, dkga, sgc, key_type, krn, tariff_index, ken, base_year.

Accounts: number*, consumer* (name), usage_point*, meter_serial*, opened_at* (ISO 8601 with zone), register_wh* (Wh
then), tariff_id*, sanctioned_load_w* (W), language, phone, email, area, feeder, mode (prepaid or postpaid),
postpaid_approval, category, emergency_credit, threshold, opening_credit (amounts such as 500 or 500.00).

Standard: IEC 62055-41 for the STS columns; RFC 4180 for CSV.
"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation

from billing.money import BadAmount, parse_amount
from billing.supply import Mode
from db.named import sql
from db.registry import NewAccount, NewMeter, RegistryError, StsIdentity, add_meter, open_account
from prepaid.administration import on_database
from prepaid.console import progress_bars
from prepaid.processes import rules_of
from prepaid.settings import PrepaidError, Settings
from vending.sts.errors import StsError
from vending.sts.identity import (
    SGC_DIGITS,
    BaseDate,
    Drn,
    EncryptionAlgorithm,
    KeyDerivation,
    KeyType,
    require_digits,
)

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

LINES_PER_TRANSACTION = 500
# One line of text for a person: five errors of some 150 characters.
ERRORS_SHOWN_MAX = 5
TEXT_LENGTH_MAX = 200
_SHOWN_LENGTH_MAX = 40
_INT4_MAX, _INT8_MAX = 2**31 - 1, 2**63 - 1
# Meters and accounts of before 2000 do not exist here; a date that says so lost digits.
_FIRST_YEAR = 2000

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", re.ASCII)
_PHONE = re.compile(r"\+?[0-9][0-9 -]{4,19}", re.ASCII)
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")

_METER_REQUIRED = ("serial", "rated_w", "register_end_wh")
_METER_OPTIONAL = ("make", "model", "custody")
_STS = ("drn", "ea", "dkga", "sgc", "key_type", "krn", "tariff_index", "ken", "base_year")
_ACCOUNT_REQUIRED = (
    "number",
    "consumer",
    "usage_point",
    "meter_serial",
    "opened_at",
    "register_wh",
    "tariff_id",
    "sanctioned_load_w",
)
_ACCOUNT_OPTIONAL = (
    "language",
    "phone",
    "email",
    "area",
    "feeder",
    "mode",
    "postpaid_approval",
    "category",
    "emergency_credit",
    "threshold",
    "opening_credit",
)


class ImportRefused(PrepaidError):
    """A file that cannot be imported; the message names the places, and nothing of it was written unless it says so."""

    code: ClassVar[str] = "import_refused"


class _FieldError(Exception):
    """One field is not of its form: what was expected and what was found."""


class _Errors:
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
class _Line(Generic[T]):
    """What one line of a file asks for."""

    number: int
    value: T


class _Fields:
    """The fields of one line; each is read once, by its column, and a wrong one is noted and read as its default."""

    def __init__(self, line: int, fields: Mapping[str, str], errors: _Errors) -> None:
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
        except _FieldError as error:
            self.refuse(column, str(error), _shown(text))
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


def run_import_meters(settings: Settings, file: Path) -> tuple[int, int]:
    """Register the meters of a file; return how many are new and how many were there.

    Raises: ImportRefused.
    """
    errors = _Errors(file)
    meters = _read_meters(file, errors)
    errors.refuse_any()

    async def work(conn: AsyncConnection) -> tuple[int, int]:
        await _check_meters(conn, meters, errors)
        errors.refuse_any()

        async def write(meter: NewMeter) -> bool:
            return await add_meter(conn, meter)

        return await _write(conn, file, "meters", meters, write)

    return on_database(settings, work)


def run_import_accounts(settings: Settings, file: Path) -> tuple[int, int]:
    """Open the accounts of a file; return how many are new and how many were there.

    Raises: ImportRefused.
    """
    errors = _Errors(file)
    accounts = _read_accounts(file, errors)
    errors.refuse_any()
    rules = rules_of(settings)

    async def work(conn: AsyncConnection) -> tuple[int, int]:
        await _check_accounts(conn, accounts, errors)
        errors.refuse_any()

        async def write(account: NewAccount) -> bool:
            now_ms = time.time_ns() // 1_000_000
            return await open_account(conn, account, rules=rules, now_ms=now_ms) is not None

        return await _write(conn, file, "accounts", accounts, write)

    return on_database(settings, work)


async def _write(
    conn: AsyncConnection,
    file: Path,
    phase: str,
    lines: Sequence[_Line[T]],
    write: Callable[[T], Awaitable[bool]],
) -> tuple[int, int]:
    """Write all lines; return how many were new and how many known."""
    added = done = 0
    with progress_bars() as bars:
        for chunk in _chunks(lines):
            try:
                async with conn.transaction():
                    for line in chunk:
                        added += await write(line.value)
            except (RegistryError, UniqueViolation) as error:
                # Checked a moment ago: somebody else has changed the register since.
                raise ImportRefused(
                    f"{file.name} line {line.number}: expected what was free to stay so, got {_reason(error)};"
                    f" {done} lines before are imported, run the import again"
                ) from error
            done += len(chunk)
            bars(phase, done, len(lines))
    return added, done - added


def _reason(error: RegistryError | UniqueViolation) -> str:
    return f"a second {error.diag.constraint_name}" if isinstance(error, UniqueViolation) else str(error)


def _chunks(lines: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(lines)
    while chunk := list(islice(remaining, LINES_PER_TRANSACTION)):
        yield chunk


# What the file says ------------------------------------------------------------------------------------------------


def _read_meters(file: Path, errors: _Errors) -> list[_Line[NewMeter]]:
    lines = _read_lines(file, _METER_REQUIRED, (*_METER_OPTIONAL, *_STS), errors)
    _refuse_repeated(lines, ("serial", "drn"), errors)
    read = []
    for number, fields in lines:
        line = _Fields(number, fields, errors)
        meter = NewMeter(
            serial=line.require("serial", _name, ""),
            make=line.read("make", _text, ""),
            model=line.read("model", _text, ""),
            rated_w=line.require("rated_w", _whole(1, _INT4_MAX), 1),
            register_end_wh=line.require("register_end_wh", _whole(1, _INT8_MAX), 1),
            custody=line.read("custody", _one_of("licensee", "consumer"), "licensee"),
            sts=_read_sts(line),
        )
        if line.good:
            read.append(_Line(number=number, value=meter))
    return read


def _read_sts(line: _Fields) -> StsIdentity | None:
    """Read an STS meter's key record: all of its columns, or none."""
    if not any(line.has(column) for column in _STS):
        return None
    return StsIdentity(
        drn=line.require("drn", _drn, ""),
        ea=line.require("ea", _code(EncryptionAlgorithm), 0),
        dkga=line.require("dkga", _code(KeyDerivation), 0),
        sgc=line.require("sgc", _digits(SGC_DIGITS), ""),
        key_type=line.require("key_type", _whole(min(KeyType), max(KeyType)), 0),
        krn=line.require("krn", _whole(1, 9), 1),
        tariff_index=line.require("tariff_index", _digits(2), ""),
        ken=line.require("ken", _whole(0, 255), 0),
        base_year=line.require("base_year", _base_year, 0),
    )


def _read_accounts(file: Path, errors: _Errors) -> list[_Line[NewAccount]]:
    lines = _read_lines(file, _ACCOUNT_REQUIRED, _ACCOUNT_OPTIONAL, errors)
    _refuse_repeated(lines, ("number", "usage_point", "meter_serial"), errors)
    read = []
    for number, fields in lines:
        line = _Fields(number, fields, errors)
        account = _read_account(line)
        if account.mode is Mode.POSTPAID and not account.postpaid_approval:
            line.refuse("postpaid_approval", "who approved that the account is postpaid", "none")
        if line.good:
            read.append(_Line(number=number, value=account))
    return read


def _read_account(line: _Fields) -> NewAccount:
    return NewAccount(
        number=line.require("number", _name, ""),
        consumer=line.require("consumer", _text, ""),
        language=line.read("language", _like(_LANGUAGE, "a language such as en or pa"), "en"),
        phone=line.read("phone", _like(_PHONE, "a telephone number such as +91 98765 43210"), None),
        email=line.read("email", _like(_EMAIL, "an e-mail address"), None),
        usage_point=line.require("usage_point", _text, ""),
        area=line.read("area", _text, ""),
        feeder=line.read("feeder", _text, ""),
        meter_serial=line.require("meter_serial", _name, ""),
        opened_at=line.require("opened_at", _instant, datetime(_FIRST_YEAR, 1, 1, tzinfo=UTC)),
        register_wh=line.require("register_wh", _whole(0, _INT8_MAX), 0),
        mode=Mode(line.read("mode", _one_of(*Mode), Mode.PREPAID.value)),
        postpaid_approval=line.read("postpaid_approval", _text, None),
        category=line.read("category", _text, "DS"),
        tariff_id=line.require("tariff_id", _text, ""),
        sanctioned_load_w=line.require("sanctioned_load_w", _whole(1, _INT4_MAX), 1),
        emergency_credit_minor=line.read("emergency_credit", _amount, 0),
        threshold_minor=line.read("threshold", _amount, None),
        opening_credit_minor=line.read("opening_credit", _amount, 0),
    )


def _read_lines(
    file: Path, required: Sequence[str], optional: Sequence[str], errors: _Errors
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


def _check_header(header: Sequence[str], required: Sequence[str], optional: Sequence[str], errors: _Errors) -> None:
    known = {*required, *optional}
    for column in required:
        if column not in header:
            errors.add(1, column, "this column in the header", "none")
    for column in header:
        if column not in known:
            errors.add(1, _shown(column), f"one of {', '.join((*required, *optional))}", "another column")
    for column in sorted({column for column in header if header.count(column) > 1}):
        errors.add(1, _shown(column), "each column once", str(header.count(column)))
    errors.refuse_any()


def _refuse_repeated(lines: Sequence[tuple[int, Mapping[str, str]]], columns: Sequence[str], errors: _Errors) -> None:
    """Note values that stand on two lines though each belongs to one."""
    for column in columns:
        seen: dict[str, int] = {}
        for number, fields in lines:
            value = fields.get(column, "")
            if value and seen.setdefault(value, number) != number:
                errors.add(number, column, "each value once", f"{_shown(value)} again after line {seen[value]}")


# What a field may be -----------------------------------------------------------------------------------------------


def _shown(text: str) -> str:
    return repr(text[:_SHOWN_LENGTH_MAX])


def _text(text: str) -> str:
    if len(text) > TEXT_LENGTH_MAX or not text.isprintable():
        raise _FieldError(f"at most {TEXT_LENGTH_MAX} printable characters")
    return text


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise _FieldError("1 to 32 of A-Z a-z 0-9 _ -")
    return text


def _whole(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # The length first: int() of a million digits takes minutes.
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(highest)) + 3):
            raise _FieldError(f"a whole number from {lowest} to {highest}")
        if not lowest <= int(text) <= highest:
            raise _FieldError(f"a whole number from {lowest} to {highest}")
        return int(text)

    return parse


def _digits(length: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            require_digits(text, length, whose="digits")
        except StsError:
            raise _FieldError(f"{length} digits") from None
        return text

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise _FieldError(f"one of {', '.join(words)}")
        return text

    return parse


def _like(pattern: re.Pattern[str], expected: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if len(text) > TEXT_LENGTH_MAX or not text.isprintable() or not pattern.fullmatch(text):
            raise _FieldError(expected)
        return text

    return parse


def _drn(text: str) -> str:
    try:
        return Drn(text).digits
    except StsError as error:
        raise _FieldError(f"a DRN, 11 or 13 digits with their check digit ({error})") from None


def _code(codes: type[E]) -> Callable[[str], int]:
    """Read a two-digit STS code; a spreadsheet drops the leading zero."""

    def parse(text: str) -> int:
        known = [str(code.value) for code in codes]
        if text.zfill(2) not in known:
            raise _FieldError(f"one of {', '.join(known)}")
        return int(text)

    return parse


def _base_year(text: str) -> int:
    years = {str(base.starts_at.year): base.starts_at.year for base in BaseDate}
    if text not in years:
        raise _FieldError(f"one of {', '.join(years)}")
    return years[text]


def _amount(text: str) -> int:
    try:
        return parse_amount(text)
    except BadAmount:
        raise _FieldError("an amount such as 500 or 500.00") from None


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise _FieldError("an instant such as 2026-04-01T00:00:00+05:30") from None
    if instant.tzinfo is None:
        raise _FieldError("an instant with its zone, such as 2026-04-01T00:00:00+05:30")
    if not _FIRST_YEAR < instant.year < _FIRST_YEAR + 100:
        raise _FieldError(f"an instant of {_FIRST_YEAR + 1} to {_FIRST_YEAR + 99}")
    # Readings are kept to the millisecond, and so are the instants they are compared with.
    return instant.replace(microsecond=instant.microsecond // 1000 * 1000)


# What is stored already --------------------------------------------------------------------------------------------


async def _check_meters(conn: AsyncConnection, meters: Sequence[_Line[NewMeter]], errors: _Errors) -> None:
    """Note DRNs that another meter has."""
    for chunk in _chunks(meters):
        drns = [line.value.sts.drn for line in chunk if line.value.sts]
        cursor = await conn.execute(sql("import_drns"), {"drns": drns})
        holders: dict[str, str] = dict(await cursor.fetchall())
        for line in chunk:
            sts = line.value.sts
            holder = holders.get(sts.drn) if sts else None
            if sts and holder not in (None, line.value.serial):
                errors.add(line.number, "drn", "a DRN that no other meter has", f"{sts.drn} of meter {holder}")


async def _check_accounts(conn: AsyncConnection, accounts: Sequence[_Line[NewAccount]], errors: _Errors) -> None:
    """Note new accounts whose meter, usage point or tariff is not there to be used."""
    cursor = await conn.execute(sql("import_tariffs"))
    tariffs = sorted(row[0] for row in await cursor.fetchall())
    for chunk in _chunks(accounts):
        numbers = [line.value.number for line in chunk]
        cursor = await conn.execute(sql("import_numbers"), {"numbers": numbers})
        known = {row[0] for row in await cursor.fetchall()}
        codes = [line.value.usage_point for line in chunk]
        cursor = await conn.execute(sql("import_usage_points"), {"codes": codes})
        taken = {row[0] for row in await cursor.fetchall()}
        serials = [line.value.meter_serial for line in chunk]
        cursor = await conn.execute(sql("import_serials"), {"serials": serials})
        meters = {serial: (end_wh, installed) for serial, end_wh, installed in await cursor.fetchall()}
        for line in chunk:
            account = line.value
            if account.number in known:
                continue
            if account.tariff_id not in tariffs:
                errors.add(line.number, "tariff_id", f"one of {', '.join(tariffs)}", _shown(account.tariff_id))
            if account.usage_point in taken:
                errors.add(line.number, "usage_point", "one that has no account", _shown(account.usage_point))
            _check_meter(line, meters.get(account.meter_serial), errors)


def _check_meter(line: _Line[NewAccount], meter: tuple[int, bool] | None, errors: _Errors) -> None:
    serial = _shown(line.value.meter_serial)
    if meter is None:
        errors.add(line.number, "meter_serial", "a registered meter", serial)
        return
    end_wh, installed = meter
    if installed:
        errors.add(line.number, "meter_serial", "a meter that stands nowhere", serial)
    if line.value.register_wh >= end_wh:
        errors.add(
            line.number, "register_wh", f"less than {end_wh}, where the register ends", str(line.value.register_wh)
        )
