"""Keys and cipher tables of the `sts` commands: from files to a meter's decoder key.

Stage: the command line over the pure STS engine. A key comes from a file only, never from an argument, and stands in no
message. The meter's record has no secret: it is given as `drn=...,sgc=...`, and a key change as the fields that change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from prepaid.settings import PrepaidError
from vending.sts.errors import StsError
from vending.sts.identity import (
    IIN_OF_13_DIGIT_DRN,
    BaseDate,
    Drn,
    EncryptionAlgorithm,
    KeyDerivation,
    KeyType,
    MeterKeyRecord,
)
from vending.sts.keys import DECODER_KEY_BYTES, VENDING_KEY_BYTES_BY_DKGA, DecoderKey, derive_decoder_key
from vending.sts.sta import IEC_SAMPLE_TABLES, StaTables
from vending.sts.sta_tables import parse_sta_tables

# The longest key has 40 hexadecimal digits; the rest is room for blanks and an end of line.
KEY_FILE_BYTES_MAX: Final = 256
# A tables file has some 500 characters.
TABLES_FILE_BYTES_MAX: Final = 65_536
_IIN_OF_11_DIGIT_DRN: Final = "600727"
_DEFAULTS: Final = {"ea": "11", "dkga": "04", "kt": "2", "ken": "255", "base_date": "2014"}
# What a decoder key given as such leaves open; the rest of a record serves to derive it.
_NEEDED_TO_DERIVE: Final = ("drn", "sgc", "krn", "ti")
RECORD_FIELDS: Final = (*_NEEDED_TO_DERIVE, "iin", *_DEFAULTS)


class StsCommandRefused(PrepaidError):
    """An argument or a file of a command does not fit; the message begins with the engine's code where it refused."""

    code: ClassVar[str] = "sts_command_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFiles:
    """Where a meter's key is to come from.

    Invariants: at most one of the two is given.
    """

    decoder_key: Path | None = None
    vending_key: Path | None = None

    def __post_init__(self) -> None:
        if self.decoder_key is not None and self.vending_key is not None:
            raise StsCommandRefused("expected a decoder key file or a vending key file, got both")

    @property
    def given(self) -> bool:
        """Tell whether there is any key."""
        return self.decoder_key is not None or self.vending_key is not None


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what the engine or a file refuses into one line."""
    try:
        yield
    except StsError as error:
        raise StsCommandRefused(f"{error.code}: {error}") from None
    except UnicodeDecodeError:
        raise StsCommandRefused("expected a file of UTF-8 text, got other bytes") from None
    except OSError as error:
        raise StsCommandRefused(f"file {error.filename}: {error.strerror}") from None


def parse_record(text: str, *, onto: Mapping[str, str] | None = None) -> dict[str, str]:
    """Read `name=value,...`, over the fields of another record where one is given.

    Raises: StsCommandRefused.
    """
    fields = dict(onto or {})
    seen: set[str] = set()
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, equals, value = (each.strip() for each in part.partition("="))
        if name not in RECORD_FIELDS or not equals or not value or name in seen:
            raise StsCommandRefused(
                f"meter record: expected each of {', '.join(RECORD_FIELDS)} once as name=value, got {part[:40]!r}"
            )
        seen.add(name)
        fields[name] = value
    return fields


def record_of(fields: Mapping[str, str]) -> MeterKeyRecord:
    """Return the meter's record.

    Raises: StsCommandRefused for a field that is missing or of another form; StsError for a wrong check digit or range.
    """
    missing = [name for name in _NEEDED_TO_DERIVE if name not in fields]
    if missing:
        raise StsCommandRefused(f"meter record: expected {', '.join(missing)}, got none (--meter name=value,...)")
    drn = Drn(fields["drn"])
    iin = IIN_OF_13_DIGIT_DRN if len(drn.digits) == 13 else _IIN_OF_11_DIGIT_DRN
    return MeterKeyRecord(
        iin=fields.get("iin", iin),
        drn=drn,
        ea=cipher_of(fields),
        dkga=KeyDerivation(_choice(fields, "dkga", {each.value: each.value for each in KeyDerivation})),
        sgc=fields["sgc"],
        kt=key_type_of(fields),
        krn=_number(fields, "krn"),
        tariff_index=_number(fields, "ti"),
        ken=ken_of(fields),
        base_date=base_date_of(fields),
    )


def cipher_of(fields: Mapping[str, str]) -> EncryptionAlgorithm:
    """Return the meter's cipher."""
    return EncryptionAlgorithm(_choice(fields, "ea", {each.value: each.value for each in EncryptionAlgorithm}))


def key_type_of(fields: Mapping[str, str]) -> KeyType:
    """Return the type of the meter's key."""
    return KeyType(int(_choice(fields, "kt", {f"{each:d}": f"{each:d}" for each in KeyType})))


def ken_of(fields: Mapping[str, str]) -> int:
    """Return the expiry number of the meter's key."""
    return _number(fields, "ken")


def base_date_of(fields: Mapping[str, str]) -> BaseDate:
    """Return the base date that the meter counts TIDs from."""
    return BaseDate(_choice(fields, "base_date", {str(each.starts_at.year): each.value for each in BaseDate}))


def decoder_key_of(files: KeyFiles, fields: Mapping[str, str], tables_file: Path | None) -> DecoderKey | None:
    """Return the meter's decoder key, read or derived; none where no key is given.

    Raises: StsCommandRefused; StsError.
    """
    tables = read_tables(tables_file)
    if files.decoder_key is not None:
        ea = cipher_of(fields)
        key = _read_key(files.decoder_key, DECODER_KEY_BYTES[ea], f"decoder key file for EA{ea}")
        return DecoderKey(ea=ea, key=key, sta_tables=tables if ea is EncryptionAlgorithm.STA else None)
    if files.vending_key is None:
        return None
    meter = record_of(fields)
    expected = VENDING_KEY_BYTES_BY_DKGA.get(meter.dkga)
    if expected is None:
        raise StsCommandRefused(f"DKGA{meter.dkga} is not implemented: expected 02 or 04")
    key = _read_key(files.vending_key, expected, f"vending key file for DKGA{meter.dkga}")
    return derive_decoder_key(key, meter, sta_tables=tables)


def read_tables(file: Path | None) -> StaTables:
    """Return an operator's EA07 tables, or the IEC samples where there is no file."""
    return IEC_SAMPLE_TABLES if file is None else parse_sta_tables(read_bounded(file, TABLES_FILE_BYTES_MAX))


def read_bounded(file: Path, bytes_max: int) -> str:
    """Read a text file of bounded size.

    Raises: StsCommandRefused for a larger one.
    """
    with file.open("rb") as opened:
        content = opened.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise StsCommandRefused(f"file {file.name}: expected at most {bytes_max} bytes, got more")
    return content.decode("utf-8")


def _read_key(file: Path, bytes_expected: int, whose: str) -> bytes:
    digits = "".join(read_bounded(file, KEY_FILE_BYTES_MAX).split())
    if not re.fullmatch(f"[0-9A-Fa-f]{{{2 * bytes_expected}}}", digits):
        raise StsCommandRefused(f"{whose}: expected {2 * bytes_expected} hexadecimal digits, got other text")
    return bytes.fromhex(digits)


def _number(fields: Mapping[str, str], name: str) -> int:
    text = fields.get(name, _DEFAULTS.get(name, ""))
    if not re.fullmatch("[0-9]{1,3}", text):
        raise StsCommandRefused(f"meter record: expected a whole number of at most 3 digits as {name}")
    return int(text)


def _choice(fields: Mapping[str, str], name: str, choices: Mapping[str, str]) -> str:
    text = fields.get(name, _DEFAULTS[name])
    if text not in choices:
        raise StsCommandRefused(f"meter record: expected {name} as one of {', '.join(choices)}, got {text[:20]!r}")
    return choices[text]
