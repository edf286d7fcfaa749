"""Modbus lines and the meters on them: what gateways poll, who polls it, and how it goes.

Stage: beside the registry. An operator enters lines and meters; a gateway reads those of the shards it holds by lease
(`db.leases`, role `gateway`) and notes what changes. Readings do not pass here: they leave through the broker.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation
from psycopg.rows import class_row

from db.errors import DatabaseError
from db.named import sql

ROLE = "gateway"
# An answer of 120 registers takes 0.6 s at 2400 baud, the slowest default of a make; a meter behind TCP takes 0.1 s.
TIMEOUT_MS = 1_000


class GatewayError(DatabaseError):
    """A line or a meter does not fit what is there."""

    code = "gateway_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLine:
    """A line to poll.

    Invariants: either host and port, or device, baud and parity; framing `tcp` needs a host.
    """

    name: str
    framing: str
    host: str | None = None
    port: int | None = None
    device: str | None = None
    baud: int | None = None
    parity: str | None = None
    timeout_ms: int = TIMEOUT_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPolledMeter:
    """A registered meter, where it stands, and what was found otherwise than its model's map says."""

    serial: str
    line: str
    unit: int
    model: str
    poll_s: int = 60
    word_order: str | None = None
    base: int | None = None
    confirmed: bool = False
    relay_model: str | None = None
    relay_unit: int | None = None
    relay_address: int | None = None
    device_serial: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolledMeter:
    """A meter as a gateway needs it; what it has obeyed, and how it went, is no part of what it is."""

    line_id: int
    meter_id: int
    serial: str
    unit: int
    model: str
    poll_s: int
    word_order: str | None
    base: int | None
    confirmed: bool
    relay_model: str | None
    relay_unit: int | None
    relay_address: int | None
    device_serial: str | None
    rated_w: int
    was_silent: bool = field(default=False, compare=False)
    supply_epoch: int = field(default=0, compare=False)
    supply_order_id: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolledLine:
    """A line as a gateway needs it."""

    id: int
    name: str
    framing: str
    host: str | None
    port: int | None
    device: str | None
    baud: int | None
    parity: str | None
    timeout_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterStateNote:
    """How polling of a meter goes since an instant."""

    serial: str
    state: str
    detail: str | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Obeyed:
    """An order of supply that a meter has obeyed."""

    serial: str
    epoch: int
    order_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedLine:
    """A line as an operator sees it; `owner` is the gateway that polls it."""

    name: str
    framing: str
    host: str | None
    port: int | None
    device: str | None
    baud: int | None
    parity: str | None
    timeout_ms: int
    enabled: bool
    owner: str | None
    meters: int
    meters_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedMeter:
    """A polled meter as an operator sees it."""

    serial: str
    line: str
    unit: int
    model: str
    poll_s: int
    word_order: str | None
    base: int | None
    confirmed: bool
    relay_model: str | None
    relay_unit: int | None
    relay_address: int | None
    device_serial: str | None
    enabled: bool
    state: str
    detail: str | None
    state_at: datetime


async def add_line(conn: AsyncConnection, line: NewLine) -> int:
    """Enter a line, or give the one of that name another address; return its id."""
    cursor = await conn.execute(sql("gateway_add_line"), asdict(line))
    row = await cursor.fetchone()
    assert row is not None, "gateway_add_line returns an id"
    return int(row[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLine:
    """Where a line is that was entered."""

    name: str
    framing: str
    host: str | None
    port: int | None
    device: str | None


async def known_lines(conn: AsyncConnection) -> list[KnownLine]:
    """Return where all lines are."""
    async with conn.cursor(row_factory=class_row(KnownLine)) as cursor:
        await cursor.execute(sql("gateway_known_lines"))
        return await cursor.fetchall()


async def registered_serials(conn: AsyncConnection, serials: Sequence[str]) -> set[str]:
    """Return those of some serials that a registered meter has."""
    cursor = await conn.execute(sql("import_serials"), {"serials": list(serials)})
    return {row[0] for row in await cursor.fetchall()}


async def placed_meters(conn: AsyncConnection, serials: Sequence[str]) -> set[str]:
    """Return those of some meters that stand on a line."""
    cursor = await conn.execute(sql("gateway_placed"), {"serials": list(serials)})
    return {row[0] for row in await cursor.fetchall()}


async def taken_units(conn: AsyncConnection, names: Sequence[str]) -> dict[tuple[str, int], str]:
    """Return the units of some lines that are taken, and by which meter."""
    cursor = await conn.execute(sql("gateway_taken_units"), {"names": list(names)})
    return {(line, unit): serial for line, unit, serial in await cursor.fetchall()}


async def add_polled_meter(conn: AsyncConnection, meter: NewPolledMeter) -> None:
    """Place a registered meter on a line; from then on its orders leave over Modbus.

    Raises: GatewayError for an unknown meter or line, or a unit that is taken.
    """
    try:
        cursor = await conn.execute(sql("gateway_add_meter"), asdict(meter))
    except UniqueViolation:
        raise GatewayError(f"line {meter.line}: expected a free unit, got {meter.unit}, meter {meter.serial}") from None
    if cursor.rowcount != 1:
        raise GatewayError(f"expected a registered meter and a line, got {meter.serial!r} and {meter.line!r}")


async def enable_line(conn: AsyncConnection, name: str, *, enabled: bool) -> None:
    """Let a line be polled, or no more.

    Raises: GatewayError for an unknown one.
    """
    cursor = await conn.execute(sql("gateway_enable_line"), {"name": name, "enabled": enabled})
    if cursor.rowcount != 1:
        raise GatewayError(f"line: expected a known name, got {name!r}")


async def enable_meter(conn: AsyncConnection, serial: str, *, enabled: bool) -> None:
    """Let a meter be polled, or no more.

    Raises: GatewayError for one that stands on no line.
    """
    cursor = await conn.execute(sql("gateway_enable_meter"), {"serial": serial, "enabled": enabled})
    if cursor.rowcount != 1:
        raise GatewayError(f"meter: expected one on a line, got {serial!r}")


async def any_line(conn: AsyncConnection) -> bool:
    """Tell whether anything is to be polled."""
    cursor = await conn.execute(sql("gateway_any_line"))
    row = await cursor.fetchone()
    return bool(row and row[0])


async def polled(conn: AsyncConnection, shards: Iterable[int]) -> tuple[list[PolledLine], list[PolledMeter]]:
    """Return the lines of some shards and the meters on them."""
    held = {"shards": list(shards)}
    async with conn.cursor(row_factory=class_row(PolledLine)) as lines:
        await lines.execute(sql("gateway_lines"), held)
        async with conn.cursor(row_factory=class_row(PolledMeter)) as meters:
            await meters.execute(sql("gateway_meters"), held)
            return await lines.fetchall(), await meters.fetchall()


async def note_states(conn: AsyncConnection, notes: Sequence[MeterStateNote]) -> None:
    """Keep how polling of some meters goes, each meter once."""
    parameters = {
        "serials": [note.serial for note in notes],
        "states": [note.state for note in notes],
        "details": [note.detail for note in notes],
        "ats": [note.at for note in notes],
    }
    await conn.execute(sql("gateway_note_states"), parameters)


async def note_obeyed(conn: AsyncConnection, obeyed: Sequence[Obeyed]) -> None:
    """Keep the latest orders of supply that some meters have obeyed, each meter once."""
    parameters = {
        "serials": [each.serial for each in obeyed],
        "epochs": [each.epoch for each in obeyed],
        "orders": [each.order_id for each in obeyed],
    }
    await conn.execute(sql("gateway_note_obeyed"), parameters)


async def wake_orders(conn: AsyncConnection, meter_ids: Collection[int]) -> None:
    """Let orders of supply that some meters could not carry out be tried again: they have a relay now."""
    await conn.execute(sql("gateway_wake_orders"), {"meter_ids": sorted(meter_ids)})


async def end_gateway_alarms(conn: AsyncConnection, meter_ids: Collection[int], codes: Sequence[int]) -> None:
    """End what rings of some meters by some codes: they are read again."""
    await conn.execute(sql("gateway_end_alarms"), {"meter_ids": sorted(meter_ids), "codes": list(codes)})


async def list_lines(conn: AsyncConnection) -> list[ListedLine]:
    """Return all lines."""
    async with conn.cursor(row_factory=class_row(ListedLine)) as cursor:
        await cursor.execute(sql("gateway_list_lines"))
        return await cursor.fetchall()


async def list_meters(
    conn: AsyncConnection, *, line: str | None = None, state: str | None = None, after: str = "", most: int
) -> list[ListedMeter]:
    """Return polled meters behind a serial, in the order of serials."""
    async with conn.cursor(row_factory=class_row(ListedMeter)) as cursor:
        await cursor.execute(sql("gateway_list_meters"), {"line": line, "state": state, "after": after, "most": most})
        return await cursor.fetchall()
