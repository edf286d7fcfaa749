"""Raw polls: our line client beside pymodbus's own, against the same simulated meters in another process.

Stage: after the rounds of `bench gateway`, with nothing else running. Each client keeps one connection a line and asks
on each for one block of registers after another, as fast as answers come; neither does anything with what it read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Final

import uvloop

from headend.edges.modbus_line import LineAddress, LineSession, Read, open_line
from loadtests.bench_gateway_meters import TownHandle
from loadtests.bench_gateway_town import LinePlan, UnitPlan
from loadtests.scratch import BenchError, Progress
from meter_sim.modbus_wire import Framing as SimulatedFraming
from protocols.modbus.frames import Framing

if TYPE_CHECKING:
    from pymodbus.client import AsyncModbusTcpClient

RAW_LINES: Final = 50
RAW_MODEL: Final = "sdm630"
# All that a reading needs of this make but its energy: one block of 72 words.
BLOCK: Final = (4, 0x0000, 72)
_UNIT: Final = 1
_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One client's turn."""

    polls: int
    seconds: float
    cpu_s: float
    simulator_cpu_s: float


# Polls on some ports of a host until an instant of the loop's clock; returns how many.
Client = Callable[[str, Sequence[int], float], Coroutine[None, None, int]]


def raw_lines(first_number: int) -> tuple[LinePlan, ...]:
    """Plan the lines that raw polls go to; their meters are no account's."""
    return tuple(
        LinePlan(
            name=f"raw-{number}",
            framing=SimulatedFraming.TCP,
            units=(UnitPlan(unit=_UNIT, number=first_number + number, model=RAW_MODEL),),
        )
        for number in range(RAW_LINES)
    )


def require_pymodbus() -> None:
    """Make sure that the other client is there.

    Raises: BenchError.
    """
    if find_spec("pymodbus") is None:
        raise BenchError("bench: expected pymodbus, which comes with the development extra, got none")


def measure_raw(
    town: TownHandle, host: str, ports: Sequence[int], *, seconds: float, pairs: int, progress: Progress
) -> dict[str, object]:
    """Let both clients poll in turn; return what they did, and the ratios of ours to the other."""
    passes: dict[str, list[Pass]] = {"ours": [], "pymodbus": []}
    clients: dict[str, Client] = {"ours": _ours, "pymodbus": _pymodbus}
    for pair in range(pairs):
        progress("raw polls", pair, pairs)
        for name, client in clients.items():
            passes[name].append(_one_pass(town, client, host, ports, seconds))
    ours, other = (_figures(passes[name]) for name in clients)
    return {
        "lines": len(ports),
        "words_a_poll": BLOCK[2],
        "seconds_a_pass": seconds,
        "pairs": pairs,
        "ours": ours,
        "pymodbus": other,
        "ratio_polls_per_second": round(ours["polls_per_second"] / other["polls_per_second"], 2),
        "ratio_cpu": round(ours["cpu_s_per_1000_polls"] / other["cpu_s_per_1000_polls"], 3),
    }


def _one_pass(town: TownHandle, client: Client, host: str, ports: Sequence[int], seconds: float) -> Pass:
    before, cpu_before_s, began_s = town.look(), time.process_time(), time.monotonic()
    polls = uvloop.run(client(host, ports, seconds))
    took_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_before_s
    heard = town.look()
    if not polls or heard.requests - before.requests < polls:
        raise BenchError(f"bench: expected meters to have heard {polls} polls, got {heard.requests - before.requests}")
    return Pass(polls=polls, seconds=took_s, cpu_s=cpu_s, simulator_cpu_s=heard.cpu_s - before.cpu_s)


def _figures(passes: Sequence[Pass]) -> dict[str, float]:
    return {
        "polls_per_second": round(median(each.polls / each.seconds for each in passes)),
        "cpu_s_per_1000_polls": round(median(each.cpu_s / each.polls * 1000 for each in passes), 4),
        "simulator_cpu_s_per_1000_polls": round(median(each.simulator_cpu_s / each.polls * 1000 for each in passes), 4),
        "polls": sum(each.polls for each in passes),
    }


async def _ours(host: str, ports: Sequence[int], seconds: float) -> int:
    read = Read.of(*BLOCK)
    addresses = [LineAddress(framing=Framing.TCP, timeout_s=_TIMEOUT_S, host=host, port=port) for port in ports]
    sessions = [await open_line(address, _nothing, _nothing_of) for address in addresses]
    end_s = asyncio.get_running_loop().time() + seconds

    async def poll(session: LineSession) -> int:
        polls, now_s = 0, asyncio.get_running_loop().time
        while now_s() < end_s:
            pdu = await session.ask(_UNIT, read.pdu, read.answer_bytes)
            if len(pdu) != read.answer_bytes:
                raise BenchError(f"bench: expected a PDU of {read.answer_bytes} bytes, got {len(pdu)}")
            polls += 1
        return polls

    counts = await asyncio.gather(*(poll(session) for session in sessions))
    for session in sessions:
        session.close()
    return sum(counts)


async def _pymodbus(host: str, ports: Sequence[int], seconds: float) -> int:
    from pymodbus.client import AsyncModbusTcpClient

    _, address, count = BLOCK
    clients = [AsyncModbusTcpClient(host, port=port, timeout=_TIMEOUT_S, reconnect_delay=0) for port in ports]
    for client in clients:
        await client.connect()
    end_s = asyncio.get_running_loop().time() + seconds

    async def poll(client: AsyncModbusTcpClient) -> int:
        polls, now_s = 0, asyncio.get_running_loop().time
        while now_s() < end_s:
            answer = await client.read_input_registers(address, count=count, device_id=_UNIT)
            if len(answer.registers) != count:
                raise BenchError(f"bench: expected {count} registers, got {answer}")
            polls += 1
        return polls

    counts = await asyncio.gather(*(poll(client) for client in clients))
    for client in clients:
        client.close()
    return sum(counts)


def _nothing() -> None:
    return None


def _nothing_of(count: int) -> None:
    return None
