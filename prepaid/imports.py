"""CSV import of meters and accounts: a file is taken as a whole, or refused with the places of its errors.

Stage: administration. A file is read and checked line by line, then against what is stored; only then is anything
written, some hundred lines a transaction. Serials and account numbers that are there already are left as they are,
so that an import that was stopped goes on when it is run again. Never logs or prints what is in a file; an error
names file, line, column, what was expected and what was found.

The form is CSV in UTF-8 with a header line that names the columns, in any order; an empty field is one that is not
given. Columns marked * are required.

Meters: serial*, rated_w* (W), register_end_wh* (Wh at which the register rolls over), make, model, custody (licensee
or consumer), can_limit, can_read_again (yes or no), interval_s (seconds between readings), and for an STS meter all of
drn, ea, dkga, sgc, key_type, krn, tariff_index, ken, base_year, and if known tct, key_change_tokens and capabilities
(docs/meter-records.md).

Accounts: number*, consumer* (name), usage_point*, meter_serial*, opened_at* (ISO 8601 with zone), register_wh* (Wh
then), tariff_id*, sanctioned_load_w* (W), language, phone, email, area, feeder, mode (prepaid or postpaid),
postpaid_approval, category, area_type, emergency_credit, threshold, opening_credit (amounts such as 500 or 500.00).

Standard: IEC 62055-41 for the STS columns; RFC 4180 for CSV.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TypeVar

from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation

from billing.assigning import AssignmentRefused, require_area
from billing.supply import Mode
from billing.tariff import LOAD_W_MAX, Tariff
from db.meter_records import RecordFields
from db.named import sql
from db.registry import (
    USUAL_CAPABILITIES,
    NewAccount,
    NewMeter,
    RegistryError,
    StsIdentity,
    add_meter,
    open_account,
)
from db.tariffs import tariff_by_id
from prepaid.administration import on_database
from prepaid.console import progress_bars
from prepaid.csv_lines import (
    FIRST_YEAR,
    TARIFF_EXPECTED,
    Errors,
    FieldError,
    Fields,
    ImportRefused,
    Line,
    amount_field,
    area_type_field,
    instant_field,
    like,
    name_field,
    one_of,
    read_capabilities,
    read_lines,
    refuse_repeated,
    shown,
    text_field,
    whole_field,
)
from prepaid.processes import rules_of
from prepaid.settings import Settings
from vending.engines.records import KEYPAD_CARRIER, EngineName, faults_of, usual_key_change_tokens
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
_INT4_MAX, _INT8_MAX = 2**31 - 1, 2**63 - 1

_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", re.ASCII)
_PHONE = re.compile(r"\+?[0-9][0-9 -]{4,19}", re.ASCII)
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")

_METER_REQUIRED = ("serial", "rated_w", "register_end_wh")
_METER_OPTIONAL = ("make", "model", "custody", "can_limit", "can_read_again", "interval_s")
_STS = ("drn", "ea", "dkga", "sgc", "key_type", "krn", "tariff_index", "ken", "base_year")
_STS_OPTIONAL = ("tct", "key_change_tokens", "capabilities")
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
    "area_type",
    "emergency_credit",
    "threshold",
    "opening_credit",
)


def run_import_meters(settings: Settings, file: Path) -> tuple[int, int]:
    """Register the meters of a file; return how many are new and how many were there.

    Raises: ImportRefused.
    """
    errors = Errors(file)
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
    errors = Errors(file)
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
    lines: Sequence[Line[T]],
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


def _read_meters(file: Path, errors: Errors) -> list[Line[NewMeter]]:
    lines = read_lines(file, _METER_REQUIRED, (*_METER_OPTIONAL, *_STS, *_STS_OPTIONAL), errors)
    refuse_repeated(lines, ("serial", "drn"), errors)
    read = []
    for number, fields in lines:
        line = Fields(number, fields, errors)
        meter = NewMeter(
            serial=line.require("serial", name_field, ""),
            make=line.read("make", text_field, ""),
            model=line.read("model", text_field, ""),
            rated_w=line.require("rated_w", whole_field(1, _INT4_MAX), 1),
            register_end_wh=line.require("register_end_wh", whole_field(1, _INT8_MAX), 1),
            custody=line.read("custody", one_of("licensee", "consumer"), "licensee"),
            can_limit=line.read("can_limit", one_of("yes", "no"), "no") == "yes",
            can_read_again=line.read("can_read_again", one_of("yes", "no"), "yes") == "yes",
            interval_s=line.read("interval_s", whole_field(1, 86_400), 0) or None,
            sts=_read_sts(line),
        )
        if line.good:
            read.append(Line(number=number, value=meter))
    return read


def _read_sts(line: Fields) -> StsIdentity | None:
    """Read an STS meter's key record: all of its columns, or none; what fits no engine is refused here."""
    if not any(line.has(column) for column in _STS):
        return None
    sts = StsIdentity(
        drn=line.require("drn", _drn, ""),
        ea=line.require("ea", _code(EncryptionAlgorithm), 0),
        dkga=line.require("dkga", _code(KeyDerivation), 0),
        sgc=line.require("sgc", _digits(SGC_DIGITS), ""),
        key_type=line.require("key_type", whole_field(min(KeyType), max(KeyType)), 0),
        krn=line.require("krn", whole_field(1, 9), 1),
        tariff_index=line.require("tariff_index", _digits(2), ""),
        ken=line.require("ken", whole_field(0, 255), 0),
        base_year=line.require("base_year", _base_year, 0),
        tct=line.read("tct", whole_field(1, 99), KEYPAD_CARRIER),
        key_change_tokens=line.read("key_change_tokens", whole_field(0, 4), None),
        capabilities=line.read("capabilities", read_capabilities, USUAL_CAPABILITIES),
    )
    tokens = usual_key_change_tokens(sts.ea) if sts.key_change_tokens is None else sts.key_change_tokens
    values = {name: value for name, value in asdict(sts).items() if name not in ("drn", "key_change_tokens")}
    record = RecordFields(engine=EngineName.STS.value, key_change_tokens=tokens, **values)
    for fault in faults_of(record, drn=sts.drn) if line.good else ():
        line.refuse(fault.field, fault.expected, fault.got)
    return sts


def _read_accounts(file: Path, errors: Errors) -> list[Line[NewAccount]]:
    lines = read_lines(file, _ACCOUNT_REQUIRED, _ACCOUNT_OPTIONAL, errors)
    refuse_repeated(lines, ("number", "usage_point", "meter_serial"), errors)
    read = []
    for number, fields in lines:
        line = Fields(number, fields, errors)
        account = _read_account(line)
        if account.mode is Mode.POSTPAID and not account.postpaid_approval:
            line.refuse("postpaid_approval", "who approved that the account is postpaid", "none")
        if line.good:
            read.append(Line(number=number, value=account))
    return read


def _read_account(line: Fields) -> NewAccount:
    return NewAccount(
        number=line.require("number", name_field, ""),
        consumer=line.require("consumer", text_field, ""),
        language=line.read("language", like(_LANGUAGE, "a language such as en or pa"), "en"),
        phone=line.read("phone", like(_PHONE, "a telephone number such as +91 98765 43210"), None),
        email=line.read("email", like(_EMAIL, "an e-mail address"), None),
        usage_point=line.require("usage_point", text_field, ""),
        area=line.read("area", text_field, ""),
        feeder=line.read("feeder", text_field, ""),
        meter_serial=line.require("meter_serial", name_field, ""),
        opened_at=line.require("opened_at", instant_field, datetime(FIRST_YEAR, 1, 1, tzinfo=UTC)),
        register_wh=line.require("register_wh", whole_field(0, _INT8_MAX), 0),
        mode=Mode(line.read("mode", one_of(*Mode), Mode.PREPAID.value)),
        postpaid_approval=line.read("postpaid_approval", text_field, None),
        category=line.read("category", text_field, "DS"),
        area_type=line.read("area_type", area_type_field, "urban"),
        tariff_id=line.require("tariff_id", text_field, ""),
        sanctioned_load_w=line.require("sanctioned_load_w", whole_field(1, LOAD_W_MAX), 1),
        emergency_credit_minor=line.read("emergency_credit", amount_field, 0),
        threshold_minor=line.read("threshold", amount_field, None),
        opening_credit_minor=line.read("opening_credit", amount_field, 0),
    )


# What a field may be -----------------------------------------------------------------------------------------------


def _digits(length: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            require_digits(text, length, whose="digits")
        except StsError:
            raise FieldError(f"{length} digits") from None
        return text

    return parse


def _drn(text: str) -> str:
    try:
        return Drn(text).digits
    except StsError as error:
        raise FieldError(f"a DRN, 11 or 13 digits with their check digit ({error})") from None


def _code(codes: type[E]) -> Callable[[str], int]:
    """Read a two-digit STS code; a spreadsheet drops the leading zero."""

    def parse(text: str) -> int:
        known = [str(code.value) for code in codes]
        if text.zfill(2) not in known:
            raise FieldError(f"one of {', '.join(known)}")
        return int(text)

    return parse


def _base_year(text: str) -> int:
    years = {str(base.starts_at.year): base.starts_at.year for base in BaseDate}
    if text not in years:
        raise FieldError(f"one of {', '.join(years)}")
    return years[text]


# What is stored already --------------------------------------------------------------------------------------------


async def _check_meters(conn: AsyncConnection, meters: Sequence[Line[NewMeter]], errors: Errors) -> None:
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


async def _check_accounts(conn: AsyncConnection, accounts: Sequence[Line[NewAccount]], errors: Errors) -> None:
    """Note new accounts whose meter, usage point or tariff is not there to be used."""
    cursor = await conn.execute(sql("import_tariffs"))
    known_tariffs = {row[0] for row in await cursor.fetchall()}
    wanted = sorted({line.value.tariff_id for line in accounts} & known_tariffs)
    tariffs = {tariff_id: await tariff_by_id(conn, tariff_id) for tariff_id in wanted}
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
            _check_tariff(line, tariffs.get(account.tariff_id), errors)
            if account.usage_point in taken:
                errors.add(line.number, "usage_point", "one that has no account", shown(account.usage_point))
            _check_meter(line, meters.get(account.meter_serial), errors)


def _check_tariff(line: Line[NewAccount], tariff: Tariff | None, errors: Errors) -> None:
    """Note an unknown tariff, or a type of area in which it would take no levy."""
    if tariff is None:
        errors.add(line.number, "tariff_id", TARIFF_EXPECTED, shown(line.value.tariff_id))
        return
    try:
        require_area(tariff, line.value.area_type)
    except AssignmentRefused as refused:
        errors.add(line.number, "area_type", refused.expected, refused.got)


def _check_meter(line: Line[NewAccount], meter: tuple[int, bool] | None, errors: Errors) -> None:
    serial = shown(line.value.meter_serial)
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
