"""CSV import of Modbus lines and meters on them: a file is taken as a whole, or refused with the places of its errors.

Stage: administration, as `prepaid.imports`, whose form of a file it has: columns in any order, those marked * required.
A file is read and checked line by line, then against what is stored; then all of it is written in one transaction. A
meter that stands on a line already is left as it is. Never logs or prints what is in a file beyond the wrong field.

serial* (of a registered meter), line* (its name), unit*, model*; where the line is, on one of its rows or on all, and
on none if it is entered already: tcp (HOST[:PORT]), rtu_tcp (HOST:PORT) or port (/dev/...) with baud and parity, and
timeout_ms; poll_s, word_order, base, confirmed (yes or no), relay_model, relay_unit, relay_address, device_serial.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation

from db.gateways import (
    TIMEOUT_MS,
    GatewayError,
    KnownLine,
    NewLine,
    NewPolledMeter,
    add_line,
    add_polled_meter,
    known_lines,
    placed_meters,
    registered_serials,
    taken_units,
)
from prepaid.administration import on_database
from prepaid.csv_lines import (
    Errors,
    FieldError,
    Fields,
    ImportRefused,
    Line,
    like,
    name_field,
    one_of,
    read_lines,
    refuse_repeated,
    shown,
    text_field,
    whole_field,
)
from prepaid.gateway_parts import fault_of, known_maps, placed_at
from prepaid.settings import Settings
from protocols.modbus.maps import RegisterMap
from protocols.modbus.values import WordOrder

_REQUIRED = ("serial", "line", "unit", "model")
_PLACE = ("tcp", "rtu_tcp", "port", "baud", "parity", "timeout_ms")
_METER = ("poll_s", "word_order", "base", "confirmed", "relay_model", "relay_unit", "relay_address", "device_serial")
_LINE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayImported:
    """What an import has entered: new lines, and meters new and known."""

    lines: int
    added: int
    known: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """What a file asks for: meters, and lines by name with the row that says where each is."""

    meters: Sequence[Line[NewPolledMeter]]
    lines: Mapping[str, Line[NewLine]]


def run_import_gateway(settings: Settings, file: Path) -> GatewayImported:
    """Enter the lines and meters of a file, all or none.

    Raises: ImportRefused.
    """
    errors = Errors(file)
    wanted = _read_file(file, known_maps(settings.gateway_maps), errors)
    errors.refuse_any()

    async def work(conn: AsyncConnection) -> GatewayImported:
        lines, meters = await _check(conn, wanted, errors)
        errors.refuse_any()
        number = 0
        try:
            async with conn.transaction():
                for entered in lines:
                    number = entered.number
                    await add_line(conn, entered.value)
                for placed in meters:
                    number = placed.number
                    await add_polled_meter(conn, placed.value)
        except (GatewayError, UniqueViolation) as error:
            # Checked a moment ago: somebody else has changed lines or meters since.
            raise ImportRefused(
                f"{file.name} line {number}: expected what was free to stay so, got {error}; nothing was imported"
            ) from error
        return GatewayImported(lines=len(lines), added=len(meters), known=len(wanted.meters) - len(meters))

    return on_database(settings, work)


# What the file says ------------------------------------------------------------------------------------------------


def _read_file(file: Path, maps: Mapping[str, RegisterMap], errors: Errors) -> _File:
    rows = read_lines(file, _REQUIRED, (*_PLACE, *_METER), errors)
    refuse_repeated(rows, ("serial",), errors)
    meters: list[Line[NewPolledMeter]] = []
    lines: dict[str, Line[NewLine]] = {}
    units: dict[tuple[str, int], int] = {}
    relays: dict[tuple[str, int, int | None], int] = {}
    for number, columns in rows:
        fields = Fields(number, columns, errors)
        meter = _read_meter(fields)
        fault = fault_of(meter, maps) if fields.good else None
        if fault is not None:
            fields.refuse(fault.field, fault.expected, shown(fault.got))
        first = units.setdefault((meter.line, meter.unit), number)
        if fields.good and first != number:
            fields.refuse("unit", "each unit of a line once", f"{meter.unit} again after line {first}")
        if fields.good and meter.relay_unit is not None:
            first = relays.setdefault((meter.line, meter.relay_unit, meter.relay_address), number)
            if first != number:
                # Who cuts one would cut the other.
                fields.refuse("relay_unit", "each relay for one meter", f"that of line {first} again")
        place = _read_place(fields, meter.line)
        if place is not None and fields.good:
            _take_place(lines, Line(number=number, value=place), fields)
        if fields.good:
            meters.append(Line(number=number, value=meter))
    _refuse_shared(lines, errors)
    return _File(meters=meters, lines=lines)


def _read_meter(fields: Fields) -> NewPolledMeter:
    return NewPolledMeter(
        serial=fields.require("serial", name_field, ""),
        line=fields.require("line", like(_LINE_NAME, "1 to 64 of A-Z a-z 0-9 _ . -"), ""),
        unit=fields.require("unit", whole_field(0, 255), 0),
        model=fields.require("model", text_field, ""),
        poll_s=fields.read("poll_s", whole_field(1, 86_400), 60),
        word_order=fields.read("word_order", one_of(*WordOrder), None),
        base=fields.read("base", whole_field(0, 1), None),
        confirmed=fields.read("confirmed", one_of("yes", "no"), "no") == "yes",
        relay_model=fields.read("relay_model", text_field, None),
        relay_unit=fields.read("relay_unit", whole_field(0, 255), None),
        relay_address=fields.read("relay_address", whole_field(0, 65_535), None),
        device_serial=fields.read("device_serial", text_field, None),
    )


def _read_place(fields: Fields, name: str) -> NewLine | None:
    """Read where a row's line is; None where the row does not say."""
    given = [column for column in ("tcp", "rtu_tcp", "port") if fields.has(column)]
    if len(given) > 1:
        fields.refuse(given[1], f"one of tcp, rtu_tcp and port, here {given[0]}", "another beside it")
        return None
    if not given:
        for column in ("baud", "parity", "timeout_ms"):
            if fields.has(column):
                fields.refuse(column, "it beside the line's tcp, rtu_tcp or port", "it alone")
        return None
    parity = fields.read("parity", one_of("none", "even", "odd"), "none")
    baud = fields.read("baud", whole_field(300, 1_000_000), 9_600)
    for column in ("baud", "parity"):
        if fields.has(column) and given != ["port"]:
            fields.refuse(column, "it with a serial port only", f"it with {given[0]}")
    place = fields.read(given[0], _place_field(given[0], baud, parity), None)
    timeout_ms = fields.read("timeout_ms", whole_field(50, 60_000), TIMEOUT_MS)
    return None if place is None else replace(place, name=name, timeout_ms=timeout_ms)


def _place_field(column: str, baud: int, parity: str) -> Callable[[str], NewLine]:
    def parse(text: str) -> NewLine:
        place = placed_at(column, text, baud, parity)
        if place is None:
            raise FieldError("a serial port such as /dev/ttyUSB0" if column == "port" else "HOST:PORT")
        return place

    return parse


def _take_place(lines: dict[str, Line[NewLine]], line: Line[NewLine], fields: Fields) -> None:
    before = lines.setdefault(line.value.name, line)
    if before.value != line.value:
        fields.refuse("line", f"one place for a line, as on line {before.number}", "another")


def _refuse_shared(lines: Mapping[str, Line[NewLine]], errors: Errors) -> None:
    """Note two lines to one place: they would talk into each other's answers."""
    seen: dict[tuple[str | None, int | None, str | None], str] = {}
    for name, line in lines.items():
        value = line.value
        first = seen.setdefault((value.host, value.port, value.device), name)
        if first != name:
            errors.add(line.number, "line", "one line to a place", f"{shown(name)} where {shown(first)} is")


# What is stored already --------------------------------------------------------------------------------------------


async def _check(
    conn: AsyncConnection, wanted: _File, errors: Errors
) -> tuple[list[Line[NewLine]], list[Line[NewPolledMeter]]]:
    """Note what does not fit what is stored; return the lines and meters that are new."""
    known = {line.name: line for line in await known_lines(conn)}
    serials = [meter.value.serial for meter in wanted.meters]
    placed = await placed_meters(conn, serials)
    registered = await registered_serials(conn, serials)
    taken = await taken_units(conn, sorted({meter.value.line for meter in wanted.meters}))
    new = [meter for meter in wanted.meters if meter.value.serial not in placed]
    for meter in new:
        value = meter.value
        if value.serial not in registered:
            errors.add(meter.number, "serial", "a registered meter", shown(value.serial))
        if value.line not in wanted.lines and value.line not in known:
            errors.add(meter.number, "line", "tcp, rtu_tcp or port on a row of a new line", shown(value.line))
        holder = taken.get((value.line, value.unit))
        if holder is not None:
            errors.add(meter.number, "unit", "a unit that no other meter has", f"{value.unit} of meter {holder}")
    return _check_lines(wanted.lines, known, errors), new


def _check_lines(
    lines: Mapping[str, Line[NewLine]], known: Mapping[str, KnownLine], errors: Errors
) -> list[Line[NewLine]]:
    """Note lines that are entered elsewhere, or whose place another has; return the new ones."""
    places = {(line.host, line.port, line.device): line.name for line in known.values()}
    new = []
    for name, line in lines.items():
        value = line.value
        place = value.host, value.port, value.device
        entered = known.get(name)
        if entered is not None and (entered.framing, entered.host, entered.port, entered.device) != (
            value.framing,
            *place,
        ):
            errors.add(line.number, "line", "the place that the line is entered with", shown(name))
        elif entered is None and place in places:
            errors.add(line.number, "line", "one line to a place", f"{shown(name)} where {shown(places[place])} is")
        elif entered is None:
            new.append(line)
    return new
