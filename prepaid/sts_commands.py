"""`prepaid sts`: check a vector file, read a token, issue a test token.

Stage: the command line over the pure STS engine. Reads files, calls one function, prints. Never: a key as an
argument or in the output; credit, which only a vend makes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from prepaid import console
from prepaid.settings import PrepaidError
from vending.sts.amounts import CurrencyField, decode_unit_amount
from vending.sts.check import CheckResult, check_vectors
from vending.sts.errors import StsError
from vending.sts.identity import EncryptionAlgorithm
from vending.sts.keys import DECODER_KEY_BYTES, DecoderKey
from vending.sts.management import AnyToken, Management, ManagementKind, decode_any_token
from vending.sts.sta import IEC_SAMPLE_TABLES, StaTables
from vending.sts.sta_tables import parse_sta_tables
from vending.sts.tokens import (
    DisplayTest,
    ExtendedRead,
    TokenNumber,
    UnitCredit,
    display_test_control,
    encode_token,
    split_class,
)

# A decoder key is 32 hexadecimal digits; the rest is room for blanks and an end of line.
KEY_FILE_BYTES_MAX = 256
# A tables file has some 500 characters.
TABLES_FILE_BYTES_MAX = 65_536
_LIMIT_KINDS = (ManagementKind.SET_POWER_LIMIT, ManagementKind.SET_UNBALANCE_LIMIT)

sts_app = typer.Typer(help="STS tokens (IEC 62055-41).", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Ea07Tables = Annotated[
    Path | None, typer.Option("--ea07-tables", help="The operator's EA07 tables (JSON); else the IEC samples.")
]


class StsCommandRefused(PrepaidError):
    """An argument or a file of a command does not fit; the message begins with the engine's code where it refused."""

    code: ClassVar[str] = "sts_command_refused"


class EaCode(StrEnum):
    """The cipher of a meter, as typed."""

    STA = "07"
    MISTY1 = "11"


@sts_app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A vector file, one JSON case a line.")],
    ea07_tables: Ea07Tables = None,
    json_output: Json = False,
) -> None:
    """Run a file of STS test vectors; status 1 if any failed."""
    with _refusals():
        tables = None if ea07_tables is None else _read_text(ea07_tables, TABLES_FILE_BYTES_MAX)
        with file.open(encoding="utf-8") as lines:
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
    decoder_key_file: Annotated[
        Path | None, typer.Option("--decoder-key-file", help="The meter's decoder key in hexadecimal; not for class 1.")
    ] = None,
    ea: Annotated[EaCode, typer.Option("--ea", help="The meter's cipher.")] = EaCode.MISTY1,
    ea07_tables: Ea07Tables = None,
    json_output: Json = False,
) -> None:
    """Say what a token carries; the digits and keys themselves are not repeated."""
    with _refusals():
        number = TokenNumber("".join(token.split()))
        tables = _tables(ea07_tables)
        key = None if decoder_key_file is None else _read_key(decoder_key_file, EncryptionAlgorithm(ea.value), tables)
        contents = decode_any_token(number, key)
    told: dict[str, object] = {"token": number.masked, "class": split_class(number)[0], **_contents(contents)}
    if key is not None and key.sta_tables is not None:
        told["ea07_tables"] = key.sta_tables.name
    _print_told(told, json_output)


@sts_app.command()
def issue(
    test: Annotated[int | None, typer.Option("--test", help="Test or display number, 0 for all tests.")] = None,
    read_index: Annotated[int | None, typer.Option("--read", help="Index of an extended read, 0-63.")] = None,
    maker_digits: Annotated[int, typer.Option("--maker-digits", help="2 or 4, as the meter's maker code.")] = 2,
    maker_code: Annotated[
        int, typer.Option("--maker-code", help="The maker's code as it stands in the token; 0 fits every maker.")
    ] = 0,
    json_output: Json = False,
) -> None:
    """Issue a test or display token (class 1), which every meter takes without a key."""
    if (test is None) == (read_index is None):
        raise StsCommandRefused("expected one of --test and --read")
    with _refusals():
        if read_index is not None:
            number = encode_token(ExtendedRead(index=read_index), None)
        else:
            control = display_test_control(test or 0, maker_digits=maker_digits)
            request = DisplayTest(maker_digits=maker_digits, maker_code=maker_code, control=control)
            number = encode_token(request, None)
    if json_output:
        console.print_json({"token": number.digits, "grouped": number.grouped})
    else:
        console.out.print(number.grouped, markup=False)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except StsError as error:
        raise StsCommandRefused(f"{error.code}: {error}") from None
    except UnicodeDecodeError:
        raise StsCommandRefused("expected a file of UTF-8 text, got other bytes") from None


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


def _tables(file: Path | None) -> StaTables:
    return IEC_SAMPLE_TABLES if file is None else parse_sta_tables(_read_text(file, TABLES_FILE_BYTES_MAX))


def _read_key(file: Path, ea: EncryptionAlgorithm, tables: StaTables) -> DecoderKey:
    digits = "".join(_read_text(file, KEY_FILE_BYTES_MAX).split())
    expected = 2 * DECODER_KEY_BYTES[ea]
    if not re.fullmatch(f"[0-9A-Fa-f]{{{expected}}}", digits):
        raise StsCommandRefused(f"decoder key file: expected {expected} hexadecimal digits for EA{ea}, got other text")
    return DecoderKey(ea=ea, key=bytes.fromhex(digits), sta_tables=tables if ea is EncryptionAlgorithm.STA else None)


def _read_text(file: Path, bytes_max: int) -> str:
    with file.open("rb") as opened:
        content = opened.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise StsCommandRefused(f"file {file.name}: expected at most {bytes_max} bytes, got more")
    return content.decode("utf-8")


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
    return told


def _print_told(told: dict[str, object], json_output: bool) -> None:
    if json_output:
        console.print_json(told)
        return
    for name, value in told.items():
        console.out.print(f"{name:<16} {value}", markup=False)
