"""`prepaid sts`: check a vector file, read a token, issue any token, make a key-change set.

Stage: the command line over the pure STS engine. Reads files, calls one function, prints. Never: a key as an argument
or in the output, or the database: what is issued here stands in no account. It serves test meters, commissioning and
the comparison of engines; a sale is a vend.
"""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prepaid import console
from prepaid.arguments import Json
from prepaid.sts_files import (
    TABLES_FILE_BYTES_MAX,
    KeyFiles,
    StsCommandRefused,
    base_date_of,
    decoder_key_of,
    ken_of,
    key_type_of,
    parse_record,
    read_bounded,
    record_of,
    refusals,
)
from prepaid.sts_requests import REGISTERS, TokenKind, TokenRequest
from vending.security import CreditKeyTypeRefused, VendingKeyExpired
from vending.sts.amounts import CurrencyField, decode_unit_amount
from vending.sts.check import CheckResult, check_vectors
from vending.sts.identity import BaseDate, EncryptionAlgorithm, KeyType, MeterKeyRecord
from vending.sts.key_change import issue_key_change
from vending.sts.keys import DecoderKey
from vending.sts.management import AnyToken, Management, ManagementKind, decode_any_token, encode_any_token
from vending.sts.tid import is_key_expired, minute_of_tid, require_tid, special_tid_at, tid_at
from vending.sts.tokens import CreditService, TokenNumber, UnitCredit, split_class

_LIMIT_KINDS = (ManagementKind.SET_POWER_LIMIT, ManagementKind.SET_UNBALANCE_LIMIT)
_RND_VALUES = 16

sts_app = typer.Typer(help="STS tokens (IEC 62055-41).", no_args_is_help=True)

DecoderKeyFile = Annotated[
    Path | None, typer.Option("--decoder-key-file", help="The meter's decoder key in hexadecimal; not for class 1.")
]
VendingKeyFile = Annotated[
    Path | None, typer.Option("--vending-key-file", help="A vending key in hexadecimal, with the whole --meter.")
]
Ea07Tables = Annotated[
    Path | None, typer.Option("--ea07-tables", help="The operator's EA07 tables (JSON); else the IEC samples.")
]
Meter = Annotated[
    str,
    typer.Option(
        "--meter",
        help="The meter's record: drn=..,sgc=..,krn=..,ti=.. and, where they differ, "
        "iin=600727,ea=11,dkga=04,kt=2,ken=255,base_date=2014.",
    ),
]


class EaCode(StrEnum):
    """The cipher of a meter, as typed."""

    STA = "07"
    MISTY1 = "11"


Ea = Annotated[EaCode | None, typer.Option("--ea", help="The meter's cipher: the same as ea= in --meter.")]
At = Annotated[
    str | None, typer.Option("--at", help="Issue time, ISO 8601, UTC unless it names its zone; else the clock.")
]


class Service(StrEnum):
    """What a credit is for, as typed."""

    ELECTRICITY = "electricity"
    WATER = "water"
    GAS = "gas"
    TIME = "time"


@sts_app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A vector file, one JSON case a line.")],
    ea07_tables: Ea07Tables = None,
    json_output: Json = False,
) -> None:
    """Run a file of STS test vectors; status 1 if any failed."""
    with refusals():
        tables = None if ea07_tables is None else read_bounded(ea07_tables, TABLES_FILE_BYTES_MAX)
        with file.open(encoding="utf-8-sig") as lines:
            result = check_vectors(lines, ea07_tables=tables)
    if json_output:
        _print_check_json(result)
    else:
        _print_check(result)
    if result.failed:
        sys.exit(1)


@sts_app.command()
def decode(
    token: Annotated[str, typer.Argument(help="20 digits, with or without blanks.")],
    decoder_key_file: DecoderKeyFile = None,
    vending_key_file: VendingKeyFile = None,
    meter: Meter = "",
    ea: Ea = None,
    ea07_tables: Ea07Tables = None,
    json_output: Json = False,
) -> None:
    """Say what a token carries; the digits and keys themselves are not repeated."""
    record = _record_fields(meter, ea)
    with refusals():
        number = TokenNumber("".join(token.split()))
        key = decoder_key_of(KeyFiles(decoder_key=decoder_key_file, vending_key=vending_key_file), record, ea07_tables)
        contents = decode_any_token(number, key)
    told = {"token": number.masked, "class": split_class(number)[0], **_contents(contents), **_tables_name(key)}
    if "tid" in told and "base_date" in record:
        told["minute"] = _minute(contents, base_date_of(record))
    _print_told(told, json_output)


@sts_app.command(context_settings={"ignore_unknown_options": True})
def issue(
    kind: Annotated[TokenKind, typer.Argument(help="The token.")],
    value: Annotated[
        str | None,
        typer.Argument(
            help="credit: 0.1 kWh, m3 or minutes; currency: units of it, -1.5 too; test: 0-18; read: 0-63; limits: "
            "watts; clear-credit: a register's name or all; control: INDEX=VALUE; flag: NUMBER=0|1."
        ),
    ] = None,
    service: Annotated[Service, typer.Option("--service", help="What the credit is for.")] = Service.ELECTRICITY,
    decoder_key_file: DecoderKeyFile = None,
    vending_key_file: VendingKeyFile = None,
    meter: Meter = "",
    ea: Ea = None,
    ea07_tables: Ea07Tables = None,
    at: At = None,
    tid: Annotated[int | None, typer.Option("--tid", help="The TID itself, in place of the issue time.")] = None,
    special: Annotated[
        bool, typer.Option("--special", help="The minute 00:01 is kept for special tokens, and this is one.")
    ] = False,
    rnd: Annotated[int | None, typer.Option("--rnd", help="0-15, to repeat a token; else a random one.")] = None,
    maker_digits: Annotated[int, typer.Option("--maker-digits", help="2 or 4, as the meter's maker code.")] = 2,
    maker_code: Annotated[
        int, typer.Option("--maker-code", help="The maker's code as it stands in the token; 0 fits every maker.")
    ] = 0,
    json_output: Json = False,
) -> None:
    """Issue one token of any kind, outside every account; key changes come by keychange."""
    record = _record_fields(meter, ea)
    request = TokenRequest(
        kind=kind,
        value=value,
        service=CreditService[service.name],
        maker_digits=maker_digits,
        maker_code=maker_code,
    )
    with refusals():
        files = KeyFiles(decoder_key=decoder_key_file, vending_key=vending_key_file)
        key = None if kind.is_clear else _key_to_issue(files, record, ea07_tables, kind)
        base_date = base_date_of(record)
        issued_tid = 0 if kind.is_clear else _tid(at, tid, base_date, special=special)
        if not kind.is_clear:
            _require_in_force(record, issued_tid)
        contents = request.contents(rnd=secrets.randbelow(_RND_VALUES) if rnd is None else rnd, tid=issued_tid)
        number = encode_any_token(contents, key)
    told: dict[str, object] = {"class": split_class(number)[0], **_contents(contents), **_tables_name(key)}
    if not kind.is_clear:
        told["minute"] = _minute(contents, base_date)
    _print_tokens({"token": number.digits, "grouped": number.grouped, **told}, [number], told, json_output)


@sts_app.command()
def keychange(
    meter: Meter,
    new: Annotated[str, typer.Option("--new", help="The fields that change: ti=..,krn=..,sgc=..,ken=..,base_date=..")],
    decoder_key_file: DecoderKeyFile = None,
    vending_key_file: VendingKeyFile = None,
    new_decoder_key_file: Annotated[
        Path | None, typer.Option("--new-decoder-key-file", help="The decoder key to move to.")
    ] = None,
    new_vending_key_file: Annotated[
        Path | None,
        typer.Option("--new-vending-key-file", help="The vending key to move to; the old one if SGC and KRN stay."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="How many the meter takes: EA07 2 or 3 (with the SGC), EA11 4.")
    ] = None,
    ea07_tables: Ea07Tables = None,
    at: At = None,
    json_output: Json = False,
) -> None:
    """Make the set of tokens that moves a meter to another key, with what it costs the meter's owner."""
    with refusals():
        old_fields = parse_record(meter)
        new_fields = parse_record(new, onto=old_fields)
        old_record, new_record = record_of(old_fields), record_of(new_fields)
        old_files = KeyFiles(decoder_key=decoder_key_file, vending_key=vending_key_file)
        new_files = KeyFiles(decoder_key=new_decoder_key_file, vending_key=new_vending_key_file)
        new_files = new_files if new_files.given else _same_vending_key(old_files, old_record, new_record)
        old_key = decoder_key_of(old_files, old_fields, ea07_tables)
        new_key = decoder_key_of(new_files, new_fields, ea07_tables)
        if old_key is None or new_key is None:
            raise StsCommandRefused("keychange: expected a key file of the present and of the new key")
        carries_sgc = _carries_sgc(new_record, tokens)
        numbers = issue_key_change(
            old=old_record,
            new=new_record,
            old_key=old_key,
            new_key=new_key,
            carry_sgc=carries_sgc,
            issued_at=_instant(at),
        )
    roll_over = old_record.base_date is not new_record.base_date
    warnings = key_change_warnings(old_record, new_record, carries_sgc=carries_sgc)
    told = {"roll_over": roll_over, **_tables_name(old_key)}
    report = {"tokens": [each.digits for each in numbers], "grouped": [each.grouped for each in numbers], **told}
    listed = [{"name": name, "text": text} for name, text in warnings.items()]
    _print_tokens({**report, "warnings": listed}, numbers, told, json_output)
    if not json_output:
        for name, text in warnings.items():
            console.out.print(f"warning: {name}: {text}", markup=False)


def key_change_warnings(old: MeterKeyRecord, new: MeterKeyRecord, *, carries_sgc: bool) -> dict[str, str]:
    """Return what whoever enters the set must know first, by name."""
    warnings = {
        "unused_tokens_die": f"every token made under SGC {old.sgc} KRN {old.krn} TI {old.tariff_index:02d} base date "
        f"{old.base_date.starts_at.year} and not entered before the set is refused for ever: enter them first",
        "enter_together": "the meter holds a part of the set for about ten minutes; any order will do",
    }
    if old.base_date is not new.base_date:
        warnings["tid_memory_cleared"] = (
            f"the base date moves from {old.base_date.starts_at.year} to {new.base_date.starts_at.year}: "
            "the set carries RO, and the meter forgets the TIDs it has seen"
        )
    if not carries_sgc and new.ea is EncryptionAlgorithm.STA:
        warnings["sgc_cleared"] = "a set of two carries no SGC: the one stored in the meter becomes 0"
    if new.kt is KeyType.DEFAULT:
        warnings["no_credit"] = "under a default key the meter takes no credit until it gets a unique or common one"
    return warnings


def _same_vending_key(files: KeyFiles, old: MeterKeyRecord, new: MeterKeyRecord) -> KeyFiles:
    """Return where the new key comes from when no file is named for it: the vending key that both records name."""
    if (old.sgc, old.krn, old.base_date) != (new.sgc, new.krn, new.base_date) or files.vending_key is None:
        raise StsCommandRefused("keychange: expected --new-vending-key-file or --new-decoder-key-file for the new key")
    return files


def _carries_sgc(new: MeterKeyRecord, tokens: int | None) -> bool:
    offered = (2, 3) if new.ea is EncryptionAlgorithm.STA else (4,)
    if tokens is not None and tokens not in offered:
        raise StsCommandRefused(f"keychange: expected {' or '.join(map(str, offered))} tokens for EA{new.ea}")
    return new.ea is EncryptionAlgorithm.MISTY1 or tokens == offered[-1]


def _record_fields(meter: str, ea: EaCode | None) -> dict[str, str]:
    fields_given = parse_record(meter)
    if ea is not None and fields_given.setdefault("ea", ea.value) != ea.value:
        raise StsCommandRefused(f"expected --ea and ea= in --meter alike, got {ea.value} and another")
    return fields_given


def _key_to_issue(files: KeyFiles, record: Mapping[str, str], tables_file: Path | None, kind: TokenKind) -> DecoderKey:
    key = decoder_key_of(files, record, tables_file)
    if key is None:
        raise StsCommandRefused(f"{kind}: expected --decoder-key-file, or --vending-key-file with --meter")
    kt = key_type_of(record)
    if kind.is_credit and kt in (KeyType.INITIALISATION, KeyType.DEFAULT):
        raise CreditKeyTypeRefused(f"credit: expected key type 2 or 3, got {kt:d}")
    return key


def _require_in_force(record: Mapping[str, str], tid: int) -> None:
    ken = ken_of(record)
    if is_key_expired(tid, ken):
        raise VendingKeyExpired(f"key: expected TID block up to KEN {ken}, got {tid >> 16}")


def _tid(at: str | None, tid: int | None, base_date: BaseDate, *, special: bool) -> int:
    if tid is not None:
        if at is not None:
            raise StsCommandRefused("expected --at or --tid, got both")
        require_tid(tid)
        return tid
    return special_tid_at(_instant(at), base_date) if special else tid_at(_instant(at), base_date)


def _instant(at: str | None) -> datetime:
    if at is None:
        return datetime.now(UTC)
    try:
        instant = datetime.fromisoformat(at)
    except ValueError:
        raise StsCommandRefused(f"--at: expected an ISO 8601 time, got {at[:40]!r}") from None
    try:
        return instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)
    except OverflowError:
        raise StsCommandRefused(f"--at: expected a time this calendar holds, got {at[:40]!r}") from None


def _minute(contents: AnyToken, base_date: BaseDate) -> str:
    tid = getattr(contents, "tid", 0)
    return f"{minute_of_tid(tid, base_date):%Y-%m-%dT%H:%MZ}"


def _tables_name(key: DecoderKey | None) -> dict[str, object]:
    return {} if key is None or key.sta_tables is None else {"ea07_tables": key.sta_tables.name}


def _print_tokens(
    report: Mapping[str, object],
    numbers: list[TokenNumber] | tuple[TokenNumber, ...],
    told: Mapping[str, object],
    json_output: bool,
) -> None:
    if json_output:
        console.print_json(report)
        return
    for number in numbers:
        console.out.print(number.grouped, markup=False)
    if split_class(numbers[0])[0] != 1:
        _print_told(told, json_output=False)


def _print_check_json(result: CheckResult) -> None:
    console.print_json(
        {
            "passed": result.passed,
            "failed": result.failed,
            "skipped": result.skipped,
            "skipped_by_reason": dict(result.skipped_by_reason),
            "failures": [str(detail) for detail in result.details if detail.verdict == "failed"],
        }
    )


def _print_check(result: CheckResult) -> None:
    for reason, number in result.skipped_by_reason.items():
        console.out.print(f"skipped {number}: {reason}", markup=False)
    for detail in result.details:
        if detail.verdict == "failed":
            console.out.print(str(detail), markup=False)
    for note in result.notes:
        console.err.print(f"note: line {note.line}: {note.reason}", markup=False)
    console.out.print(f"passed {result.passed}, failed {result.failed}, skipped {result.skipped}")


def _contents(contents: AnyToken) -> dict[str, object]:
    """Return the fields by name, without parts of a key, and the amount they stand for."""
    told: dict[str, object] = {"kind": re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(contents).__name__).lower()}
    for each in fields(contents):
        value = getattr(contents, each.name)
        if isinstance(value, CurrencyField):
            told["amount_e5"] = value.amount_e5
        elif each.repr:
            told[each.name] = value.name.lower() if isinstance(value, Enum) else value
    if isinstance(contents, UnitCredit):
        told["amount_tenths"] = decode_unit_amount(contents.amount16)
    elif isinstance(contents, Management):
        told["kind"] = contents.kind.name.lower()
        if contents.kind in _LIMIT_KINDS:
            told["limit_w"] = decode_unit_amount(contents.value16)
        elif contents.kind is ManagementKind.CLEAR_CREDIT:
            told["register"] = next((name for name, place in REGISTERS.items() if place == contents.value16), "unknown")
    return told


def _print_told(told: Mapping[str, object], json_output: bool) -> None:
    if json_output:
        console.print_json(told)
        return
    for name, value in told.items():
        console.out.print(f"{name:<16} {value}", markup=False)
