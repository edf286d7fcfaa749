"""Lines of simulated Modbus meters, as masters that nobody here wrote see them: `mbpoll` and pymodbus's client."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import termios
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
from pymodbus import FramerType, ModbusException
from pymodbus.client import AsyncModbusTcpClient

from meter_sim.edges.modbus_server import Line, ModbusServer, bring_up, take_down
from meter_sim.modbus_faults import FaultSettings, LineFault, ModbusFault
from meter_sim.modbus_load import steady_load
from meter_sim.modbus_meter import MeterPlate, ModbusMeter, RelayModule
from meter_sim.modbus_wire import Framing, Request, framed
from protocols.modbus.maps import RelayKind, RelayMap, builtin_maps

NOW_MS = 1_780_000_000_000
METERS = [made for made in builtin_maps().values() if not made.is_relay_only]
RELAY_UNIT = 100
COILS = RelayMap(kind=RelayKind.COIL, address=0, on=1, off=0, read_function=1)
FRAMERS = {Framing.TCP: FramerType.SOCKET, Framing.RTU: FramerType.RTU}
# Counts of other makes as an outside reader shows them: 230.0 V in tenths, 1234.56 kWh in tenths and in Wh.
MORE_MAKES = (
    ("em340", ("-t", "3:int", "-r", "0"), "[0]: \t2300\n"),
    ("em340", ("-t", "3:int", "-r", str(0x34)), "[52]: \t12345\n"),
    ("iem3155", ("-t", "4:hex", "-r", str(0x0C83), "-c", "4"), "[3206]: \t0xD680\n"),
    ("ddsu666", ("-t", "3:float", "-B", "-r", str(0x2004)), "[8196]: \t2.3\n"),
)
mbpoll = shutil.which("mbpoll")
needs_mbpoll = pytest.mark.skipif(mbpoll is None, reason="mbpoll is not installed (Debian package mbpoll)")


class _StillClock:
    """A clock that stands, so that nothing moves between two looks."""

    def now_ms(self) -> int:
        return NOW_MS

    async def sleep_until(self, at_ms: int) -> None:
        raise AssertionError("nobody waits by this clock")


@asynccontextmanager
async def _serving(framing: Framing) -> AsyncIterator[tuple[Line, dict[int, ModbusMeter]]]:
    """Run one line with a meter of every map, units from 1 on, and a module of relays beside them."""
    meters = {
        unit: ModbusMeter(
            MeterPlate(serial_number=1_000 + unit, map=made, load=steady_load(2_300), register_wh=1_234_560),
            now_ms=NOW_MS,
        )
        for unit, made in enumerate(METERS, start=1)
    }
    module = RelayModule(COILS, {unit - 1: meter for unit, meter in meters.items()})
    line = Line(framing=framing, units={**meters, RELAY_UNIT: module})
    async with ModbusServer([line], clock=_StillClock()):
        yield line, meters


async def _run_mbpoll(*arguments: str) -> str:
    assert mbpoll is not None, "the test is skipped without it"
    child = await asyncio.create_subprocess_exec(
        mbpoll, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await child.communicate()
    text = said.decode(errors="replace")
    assert child.returncode == 0, text
    return text


@needs_mbpoll
def test_mbpoll_reads_the_registers_of_several_makes_over_tcp() -> None:
    """Floats, 32-bit integers low word first and holding registers read as the makes' manuals have them."""

    async def story() -> None:
        async with _serving(Framing.TCP) as (line, meters):

            async def poll(model: str, *asked: str) -> str:
                unit = _unit(model)
                where = ("-m", "tcp", "-p", str(line.port), "-a", str(unit), "-0", "-1", *asked, "127.0.0.1")
                return await _run_mbpoll(*where)

            assert "[0]: \t230\n" in await poll("sdm120", "-t", "3:float", "-B", "-r", "0")
            assert "[12]: \t2300\n" in await poll("sdm120", "-t", "3:float", "-B", "-r", "12")
            assert "[72]: \t1234.56\n" in await poll("sdm630", "-t", "3:float", "-B", "-r", str(0x48))
            for model, asked, shown in MORE_MAKES:
                if model in builtin_maps():
                    assert shown in await poll(model, *asked), model
            assert all(meter.requests for meter in (meters[_unit("sdm120")], meters[_unit("sdm630")]))

    asyncio.run(story())


@needs_mbpoll
def test_mbpoll_opens_and_closes_a_relay_over_tcp() -> None:
    """A coil written 0 cuts the meter's load and reads back 0; written 1 the load is there again."""

    async def story() -> None:
        async with _serving(Framing.TCP) as (line, meters):
            where = ("-m", "tcp", "-p", str(line.port), "-a", str(RELAY_UNIT), "-0", "-1", "-t", "0", "-r", "0")
            await _run_mbpoll(*where, "127.0.0.1", "0")
            assert not meters[1].is_supplied
            assert "[0]: \t0\n" in await _run_mbpoll(*where, "127.0.0.1")
            await _run_mbpoll(*where, "127.0.0.1", "1")
            assert meters[1].is_supplied
            assert "[0]: \t1\n" in await _run_mbpoll(*where, "127.0.0.1")

    asyncio.run(story())


@needs_mbpoll
def test_mbpoll_reads_a_meter_over_a_serial_line_with_check_values() -> None:
    """On a pseudo-terminal in front of an RTU line the outside master accepts every frame."""

    async def story() -> None:
        async with _serving(Framing.RTU) as (line, _), _serial_port(line.port) as device:
            where = ("-m", "rtu", "-b", "9600", "-P", "none", "-a", str(_unit("sdm120")), "-0", "-1")
            said = await _run_mbpoll(*where, "-t", "3:float", "-B", "-r", "70", "-c", "2", device)
            assert "[72]: \t1234.56\n" in said

    asyncio.run(story())


@pytest.mark.parametrize("framing", Framing)
def test_outside_client_reads_every_map_in_whole_blocks(framing: Framing) -> None:
    """Each register of each make reads by itself, with its neighbours, and equals what the meter holds."""

    async def story() -> None:
        async with _serving(framing) as (line, meters), _client(line) as client:
            for unit, made in enumerate(METERS, start=1):
                values = meters[unit].values(NOW_MS)
                for entry in made.registers:
                    read = client.read_holding_registers if entry.function == 3 else client.read_input_registers
                    answer = await read(made.wire_address(entry), count=entry.words, device_id=unit)
                    data = struct.pack(f">{entry.words}H", *answer.registers)
                    got, wanted = made.value(entry, data), values[entry.quantity]
                    assert got is not None, (made.model, entry.quantity)
                    assert wanted is not None, (made.model, entry.quantity)
                    assert abs(got - wanted) <= max(entry.factor, abs(wanted) / 2**23), (made.model, entry.quantity)
            assert line.unanswered == 0

    asyncio.run(story())


def test_outside_client_gets_exceptions_and_no_answer_from_a_unit_that_is_not_there() -> None:
    """What a make has not is refused by number; a unit that the line has not stays silent."""

    async def story() -> None:
        async with _serving(Framing.TCP) as (line, _), _client(line) as client:
            refused = await client.read_input_registers(0x7000, count=2, device_id=_unit("sdm120"))
            assert refused.isError()
            assert refused.exception_code == 2
            written = await client.write_register(0x1C, 1, device_id=_unit("sdm120"))
            assert written.exception_code == 1
            with pytest.raises(ModbusException):
                await client.read_input_registers(0, count=2, device_id=99)
            assert line.unanswered >= 1

    asyncio.run(story())


def test_outside_client_gets_over_noise_torn_and_stray_answers() -> None:
    """Whole answers arrive though some come in two pieces, or behind an answer to something else."""

    async def story() -> None:
        async with _serving(Framing.TCP) as (line, meters), _client(line) as client:
            for fault in (ModbusFault.TORN, ModbusFault.SLOW):
                spoiling = LineFault(fault, Random(5), FaultSettings(every=2, delay_ms=20))
                meters[1].suffer(spoiling, NOW_MS)
                for _ in range(4):
                    entry = METERS[0].registers[0]
                    read = client.read_holding_registers if entry.function == 3 else client.read_input_registers
                    answer = await read(METERS[0].wire_address(entry), count=entry.words, device_id=1)
                    assert not answer.isError()
                assert spoiling.met == {fault: 2}

    asyncio.run(story())


def test_late_answer_of_a_slow_unit_comes_after_the_next_one_on_the_same_connection() -> None:
    """A slow unit's answer does not hold back its neighbour's; it arrives with its own transaction later."""

    async def story() -> None:
        async with _serving(Framing.TCP) as (line, meters):
            slow, quick = _unit("sdm120"), _unit("sdm630")
            meters[slow].suffer(LineFault(ModbusFault.SLOW, Random(1), FaultSettings(delay_ms=300)), NOW_MS)
            reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
            for number, unit in enumerate((slow, quick)):
                writer.write(framed(Request(unit, 70 + number, b""), struct.pack(">BHH", 4, 0, 2)))
            heads = [(await reader.readexactly(13))[:7] for _ in range(2)]
            assert [(head[1], head[6]) for head in heads] == [(71, quick), (70, slow)]
            writer.close()

    asyncio.run(story())


def test_line_that_is_down_cuts_its_masters_until_it_is_up_again() -> None:
    """A master of a failed line loses its connection and gets none that lasts; later it is served again."""

    async def story() -> None:
        async with _serving(Framing.TCP) as (line, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
            writer.write(framed(Request(_unit("sdm120"), 1, b""), struct.pack(">BHH", 4, 0, 2)))
            assert await reader.readexactly(13)
            take_down(line)
            assert await _ended(reader)
            again, other = await asyncio.open_connection("127.0.0.1", line.port)
            assert await _ended(again)
            bring_up(line)
            async with _client(line) as client:
                answer = await client.read_input_registers(0, count=2, device_id=_unit("sdm120"))
                assert not answer.isError()
            writer.close()
            other.close()

    asyncio.run(story())


def _unit(model: str) -> int:
    return [made.model for made in METERS].index(model) + 1


async def _ended(reader: asyncio.StreamReader) -> bool:
    try:
        return not await reader.read(1)
    except ConnectionError:
        return True


@asynccontextmanager
async def _client(line: Line) -> AsyncIterator[AsyncModbusTcpClient]:
    client = AsyncModbusTcpClient(
        "127.0.0.1", port=line.port, framer=FRAMERS[line.framing], timeout=1, retries=0, reconnect_delay=0
    )
    assert await client.connect()
    try:
        yield client
    finally:
        client.close()


@asynccontextmanager
async def _serial_port(port: int) -> AsyncIterator[str]:
    """Lend a pseudo-terminal whose other end is a line's port."""
    ours, theirs = os.openpty()
    tty.setraw(theirs, termios.TCSANOW)
    os.set_blocking(ours, False)
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    loop.add_reader(ours, lambda: writer.write(os.read(ours, 1024)))

    async def back() -> None:
        while data := await reader.read(1024):
            os.write(ours, data)

    task = asyncio.create_task(back())
    try:
        yield os.ttyname(theirs)
    finally:
        loop.remove_reader(ours)
        task.cancel()
        writer.close()
        os.close(ours)
        os.close(theirs)
