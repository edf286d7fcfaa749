"""The demo's home on a Modbus line: a meter of a real make that speaks no MQTT, and a relay module beside it.

Stage: inside `prepaid.demo`, in the present time, since a gateway stamps what it reads. The home and its line are
simulated in this process; the gateway that polls it and writes its coil is a real one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms
from billing.rating import total
from billing.tariff_document import builtin_tariff
from billing.terms import one_assignment, part_lines
from db.gateways import NewLine, NewPolledMeter, add_line, add_polled_meter
from db.orders import PostingRules
from db.registry import NewAccount, NewMeter, StsIdentity, add_meter, open_account
from meter_sim.edges.fleet import ScaledClock
from meter_sim.edges.modbus_server import LOOPBACK, Line, ModbusServer
from meter_sim.modbus_load import steady_load
from meter_sim.modbus_meter import MeterPlate, ModbusMeter, RelayModule
from meter_sim.modbus_wire import Framing
from protocols.modbus.maps import builtin_maps

SERIAL: Final = "DEMO-MODBUS"
MODEL: Final = "sdm120"
RELAY_MODEL: Final = "relay-coil"
_UNIT: Final = 1
_RELAY_UNIT: Final = 100
_COIL: Final = 0
# Three water heaters: what is left beyond the day's fixed charge is used up in 2 seconds.
_LOAD_W: Final = 9_000
_CREDIT_WH: Final = 5
_RATED_W: Final = 15_000
_REGISTER_END_WH: Final = 10**9
_POLL_S: Final = 1
_NUMBER: Final = 120_001


@dataclass(frozen=True, slots=True, kw_only=True)
class ModbusHome:
    """The simulated home: its meter, and the line that it stands on."""

    meter: ModbusMeter
    line: Line
    title: str


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def modbus_home() -> AsyncIterator[ModbusHome]:
    """Run the home's line until the context ends."""
    maps = builtin_maps()
    now_ms = _now_ms()
    plate = MeterPlate(serial_number=_NUMBER, map=maps[MODEL], load=steady_load(_LOAD_W))
    meter = ModbusMeter(plate, now_ms=now_ms)
    relay = maps[RELAY_MODEL].relay
    assert relay is not None, f"map {RELAY_MODEL} has a relay"
    module = RelayModule(relay, {_COIL: meter})
    line = Line(framing=Framing.TCP, units={_UNIT: meter, _RELAY_UNIT: module})
    async with ModbusServer([line], clock=ScaledClock(now_ms)):
        yield ModbusHome(meter=meter, line=line, title=maps[MODEL].title)


async def enter_modbus_home(
    conn: AsyncConnection,
    home: ModbusHome,
    calendar: LocalCalendar,
    rules: PostingRules,
    *,
    tariff_id: str,
    sts: StsIdentity,
) -> int:
    """Enter the meter, its account and its line as an operator would; return the opening credit.

    The credit is what today's bill says for the little energy that is to be used up.
    """
    today = calendar.day_of(_now_ms())
    part = one_assignment(builtin_tariff(tariff_id), load_w=_LOAD_W, opened_on=today).part_at(today)
    credit_minor = total(part_lines(part, before_wh=0, energy_wh=_CREDIT_WH, zone_wh=(), through_day=today))
    await add_meter(
        conn, NewMeter(serial=SERIAL, model=MODEL, rated_w=_RATED_W, register_end_wh=_REGISTER_END_WH, sts=sts)
    )
    account = NewAccount(
        number=SERIAL,
        consumer="Household on a Modbus line",
        usage_point=SERIAL,
        area="demo",
        meter_serial=SERIAL,
        opened_at=from_ms(calendar.midnight_ms(today)),
        register_wh=0,
        tariff_id=tariff_id,
        sanctioned_load_w=_LOAD_W,
        threshold_minor=None,
        opening_credit_minor=credit_minor,
    )
    await open_account(conn, account, rules=rules, now_ms=_now_ms())
    await _enter_line(conn, home.line.port)
    return credit_minor


async def _enter_line(conn: AsyncConnection, port: int) -> None:
    name = f"line-{SERIAL}"
    async with conn.transaction():
        await add_line(conn, NewLine(name=name, framing=Framing.TCP.value, host=LOOPBACK, port=port))
        await add_polled_meter(
            conn,
            NewPolledMeter(
                serial=SERIAL,
                line=name,
                unit=_UNIT,
                model=MODEL,
                poll_s=_POLL_S,
                relay_model=RELAY_MODEL,
                relay_unit=_RELAY_UNIT,
                relay_address=_COIL,
            ),
        )
