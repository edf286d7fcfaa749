"""The meters of `bench gateway`: which stand on which line, of which make, and which of them are made to ail.

Stage: before the clock starts. Numbers in, plans out; the database rows of lines and meters are written from them, and
the simulator's process is built from them. An account's number is its meter's, as in `loadtests.population`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import AsyncConnection

from db.gateways import NewLine, NewPolledMeter, add_line, add_polled_meter
from loadtests.population import serial_of
from meter_sim.modbus_faults import ModbusFault
from meter_sim.modbus_wire import Framing
from protocols.modbus.maps import RegisterMap, builtin_maps

# Of 20 meters 5 talk TCP themselves, 5 stand behind one converter that talks TCP, 10 on a serial line behind a socket.
_LINES_OF_20: Final = (*((Framing.TCP, 1),) * 5, (Framing.TCP, 5), (Framing.RTU, 10))
METERS_STEP: Final = sum(units for _, units in _LINES_OF_20)
# One in ten, on lines of each kind: 7 is prime to the 20 of a group, so that they come by in turn.
_AILING_STEP: Final = 10
# Half are silent. The others answer, some after three time-outs and some in time but slowly; in percent of a time-out.
_AILMENTS: Final = (
    (ModbusFault.SILENT, 0),
    (ModbusFault.SLOW, 300),
    (ModbusFault.SILENT, 0),
    (ModbusFault.SLOW, 70),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlan:
    """One meter on a line."""

    unit: int
    number: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePlan:
    """One line; its place in the plan is its name."""

    name: str
    framing: Framing
    units: tuple[UnitPlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ailment:
    """What a meter suffers from, and how late its answers come."""

    number: int
    fault: ModbusFault
    delay_ms: int


def models() -> list[str]:
    """Return the makes that need no probe before they are charged."""
    return [model for model, made in builtin_maps().items() if _is_sure(made)]


def plan_lines(meters: int, makes: Sequence[str]) -> tuple[LinePlan, ...]:
    """Place meters 1 to `meters`, a multiple of 20, on lines; makes come by in turn."""
    assert meters % METERS_STEP == 0, f"meters: expected a multiple of {METERS_STEP}, got {meters}"
    numbers = iter(range(1, meters + 1))
    lines = []
    for group in range(meters // METERS_STEP):
        for place, (framing, units) in enumerate(_LINES_OF_20):
            on_line = tuple(
                UnitPlan(unit=unit, number=number, model=makes[(number * 7 + group) % len(makes)])
                for unit, number in zip(range(1, units + 1), numbers, strict=False)
            )
            lines.append(LinePlan(name=f"line-{group}-{place}", framing=framing, units=on_line))
    return tuple(lines)


def ailing(meters: int, timeout_ms: int) -> tuple[Ailment, ...]:
    """Return one meter in ten with what it suffers from, beside the time-out of its line."""
    numbers = range(1, meters + 1)
    chosen = [number for number in numbers if (number + number // METERS_STEP) % _AILING_STEP == 3]
    return tuple(
        Ailment(number=number, fault=fault, delay_ms=timeout_ms * percent // 100)
        for place, number in enumerate(chosen)
        for fault, percent in (_AILMENTS[place % len(_AILMENTS)],)
    )


def units_of(lines: Sequence[LinePlan]) -> Iterator[UnitPlan]:
    """Return the meters of all lines."""
    return (unit for line in lines for unit in line.units)


async def enter_lines(
    conn: AsyncConnection, lines: Sequence[LinePlan], ports: Sequence[int], *, host: str, poll_s: int, timeout_ms: int
) -> None:
    """Enter all lines and meters, as an operator would by a file; the meters are registered already."""
    async with conn.transaction():
        for line, port in zip(lines, ports, strict=True):
            entered = NewLine(name=line.name, framing=line.framing.value, host=host, port=port, timeout_ms=timeout_ms)
            await add_line(conn, entered)
            for unit in line.units:
                await add_polled_meter(
                    conn,
                    NewPolledMeter(
                        serial=serial_of(unit.number),
                        line=line.name,
                        unit=unit.unit,
                        model=unit.model,
                        poll_s=poll_s,
                    ),
                )


def _is_sure(made: RegisterMap) -> bool:
    return not made.is_relay_only and not made.doubts
