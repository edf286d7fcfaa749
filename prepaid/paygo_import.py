"""Import of makers' device lists: the secret key of each OpenPAYGO device, sealed before anything is written.

Stage: administration. The file is taken as a whole or refused with the places of its errors. It must be readable by its
owner alone, as it holds open keys; nothing of it is printed or logged but serials, and no error shows a field. Meters
are registered before (`prepaid meters import`). A device that is known as it stands in the file stays, so that an
import can be run again; one that is known otherwise is refused unless the caller replaces it.

Standard: the example device list of OpenPAYGO Token (EnAccess), RFC 4180.
"""

from __future__ import annotations

import csv
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from psycopg import AsyncConnection

from db.paygo_devices import PaygoDeviceRow, PaygoMeter, meters_as_paygo, write_paygo_devices
from prepaid.administration import on_database
from prepaid.csv_lines import Errors, FieldError, Fields, ImportRefused, name_field, whole_field
from prepaid.keys import master_key
from prepaid.record_formats import plain_header
from prepaid.settings import Settings
from vending.edges.keys import require_master
from vending.key_custody import open_device_key, seal_device_key
from vending.openpaygo.devices import FIRST_COUNT, STARTING_CODE_MAX, TIME_DIVIDER_MAX
from vending.openpaygo.tokens import COUNT_MAX

# A line has some 80 characters: 100,000 devices.
FILE_BYTES_MAX = 8_000_000
_REQUIRED = ("serial number", "starting code", "key")
_OPTIONAL = ("count", "time divider", "restricted digit mode", "extended token")
# In the makers' form, and of no use here. Tokens are not held against a test code: one in a billion meets it.
_UNREAD = ("hardware model", "version", "test code")
_KEY = re.compile(r"[0-9A-Fa-f]{32}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedKeys:
    """What became of a list; `sharing` devices have a key that another one of the list has, too."""

    new: int
    same: int
    replaced: int
    sharing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _ListedDevice:
    line: int
    serial: str
    key: bytes = field(repr=False)
    starting_code: int = field(repr=False)
    count: int
    time_divider: int
    restricted_digits: bool
    extended: bool


def run_import_device_keys(settings: Settings, file: Path, *, by: str, replace: bool) -> ImportedKeys:
    """Import a maker's device list.

    Raises: ImportRefused; SealBroken for another master key than the installation's.
    """
    # First of all, as from then on this process leaves no core dump in which the list could be read.
    master = master_key(settings)
    errors = Errors(file)
    devices = _read_devices(file, errors)
    errors.refuse_any()

    async def work(conn: AsyncConnection) -> ImportedKeys:
        await require_master(conn, master)
        async with conn.transaction():
            return await _write(conn, master, devices, errors, by=by, reason=f"import {file.name}", replace=replace)

    return on_database(settings, work)


async def _write(
    conn: AsyncConnection,
    master: bytes,
    devices: list[_ListedDevice],
    errors: Errors,
    *,
    by: str,
    reason: str,
    replace: bool,
) -> ImportedKeys:
    known = await meters_as_paygo(conn, [device.serial for device in devices])
    rows, same, replaced = [], 0, 0
    for device in devices:
        meter = known.get(device.serial)
        if meter is None:
            errors.add(device.line, "serial number", "a registered meter (prepaid meters import)", device.serial)
        elif meter.sealed_key is not None and _is_known(master, meter, device):
            same += 1
        elif meter.sealed_key is not None and not replace:
            errors.add(
                device.line, "serial number", "a device as it is known (or --replace)", f"another {device.serial}"
            )
        else:
            replaced += meter.sealed_key is not None
            rows.append(_row(master, meter, device, by, reason))
    errors.refuse_any()
    await write_paygo_devices(conn, rows)
    shared = Counter(device.key for device in devices)
    sharing = sum(count for count in shared.values() if count > 1)
    return ImportedKeys(new=len(rows) - replaced, same=same, replaced=replaced, sharing=sharing)


def _is_known(master: bytes, meter: PaygoMeter, device: _ListedDevice) -> bool:
    """Tell whether a device is stored as it is listed. Raises: SealBroken under another master key."""
    assert meter.sealed_key is not None, f"meter {meter.serial}: asked of devices only"
    return (
        meter.starting_code == device.starting_code
        and meter.time_divider == device.time_divider
        and meter.restricted_digits == device.restricted_digits
        and meter.extended == device.extended
        and open_device_key(master, meter.serial, meter.sealed_key) == device.key
    )


def _row(master: bytes, meter: PaygoMeter, device: _ListedDevice, by: str, reason: str) -> PaygoDeviceRow:
    return PaygoDeviceRow(
        meter_id=meter.meter_id,
        starting_code=device.starting_code,
        time_divider=device.time_divider,
        restricted_digits=device.restricted_digits,
        extended=device.extended,
        sealed_key=seal_device_key(master, device.serial, device.key),
        count=device.count,
        written_by=by,
        reason=reason,
    )


def _read_devices(file: Path, errors: Errors) -> list[_ListedDevice]:
    """Read a list. Raises: ImportRefused for a file that others may read, or that is no such list."""
    reader = csv.reader(StringIO(_read_private(file), newline=""), strict=True)
    devices: list[_ListedDevice] = []
    first_line: dict[str, int] = {}
    begins = 1
    try:
        header = [plain_header(name) for name in next(reader, [])]
        _require_header(header, errors)
        begins = reader.line_num + 1
        for row in reader:
            if any(row) and len(row) != len(header):
                errors.add(begins, "any", f"{len(header)} fields", str(len(row)))
            elif any(row):
                texts = {name: text.strip() for name, text in zip(header, row, strict=True)}
                device = _read_device(begins, texts, errors)
                if device and first_line.setdefault(device.serial, begins) != begins:
                    errors.add(begins, "serial number", "each device once", f"one of line {first_line[device.serial]}")
                devices += [device] if device else []
            begins = reader.line_num + 1
    except csv.Error as error:
        errors.add(begins, "any", "CSV", str(error))
        errors.refuse_any()
    return devices


def _read_private(file: Path) -> str:
    """Read a file that nobody but us can read, looking at its rights on the file as opened."""
    with file.open("rb") as opened:
        about = os.fstat(opened.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
            raise ImportRefused(
                f"{file.name}: expected a file of your own that nobody else can read (chmod 600), as it holds open "
                f"keys, got mode {stat.S_IMODE(about.st_mode):03o}; nothing was imported"
            )
        content = opened.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise ImportRefused(f"{file.name}: expected at most {FILE_BYTES_MAX} bytes, got more; nothing was imported")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Raised afresh: the codec's own error carries the whole file.
        raise ImportRefused(f"{file.name}: expected UTF-8, got other bytes; nothing was imported") from None


def _require_header(header: list[str], errors: Errors) -> None:
    for name in _REQUIRED:
        if name not in header:
            errors.add(1, name, "this column in the header", "none")
    for name in header:
        if name not in (*_REQUIRED, *_OPTIONAL, *_UNREAD):
            errors.add(1, "any", f"columns of {', '.join((*_REQUIRED, *_OPTIONAL, *_UNREAD))}", "another one")
        elif header.count(name) > 1:
            errors.add(1, name, "each column once", str(header.count(name)))
    errors.refuse_any()


def _read_device(line: int, texts: Mapping[str, str], errors: Errors) -> _ListedDevice | None:
    """Read one line; None when a field is wrong."""
    fields = _UnshownFields(line, texts, errors)
    device = _ListedDevice(
        line=line,
        serial=fields.require("serial number", name_field, ""),
        key=fields.require("key", _key_field, b""),
        starting_code=fields.require("starting code", whole_field(0, STARTING_CODE_MAX), 0),
        count=fields.read("count", whole_field(0, COUNT_MAX), FIRST_COUNT),
        time_divider=fields.read("time divider", whole_field(1, TIME_DIVIDER_MAX), 1),
        restricted_digits=fields.read("restricted digit mode", whole_field(0, 1), 0) == 1,
        extended=fields.read("extended token", whole_field(0, 1), 0) == 1,
    )
    return device if fields.good else None


class _UnshownFields(Fields):
    """Fields of which none is shown where it is wrong: it may be a key in the wrong column."""

    def refuse(self, column: str, expected: str, got: str) -> None:
        """Note that a field is wrong, without it."""
        super().refuse(column, expected, "none" if got == "none" else "another text")


def _key_field(text: str) -> bytes:
    if not _KEY.fullmatch(text):
        raise FieldError("32 hexadecimal digits")
    return bytes.fromhex(text)
