"""The simulated meters of `bench gateway` as a process of their own, so that what they use is told apart.

Stage: on the other side of the lines. Plans come through a pipe, the lines' ports go back; then words: who ails, what
was heard. It ends when the benchmark closes the pipe or dies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from random import Random
from threading import Thread
from typing import Final

import numpy as np
import uvloop

from loadtests.bench_gateway_town import Ailment, LinePlan, units_of
from loadtests.flood_process import raise_file_limit
from loadtests.population import homes
from loadtests.scratch import BenchError
from meter_sim.edges.fleet import ScaledClock
from meter_sim.edges.modbus_server import Line, ModbusServer
from meter_sim.modbus_faults import FaultSettings, LineFault
from meter_sim.modbus_load import Load, formula_load, recorded_load
from meter_sim.modbus_meter import MeterPlate, ModbusMeter
from meter_sim.recorded import parse_profile
from protocols.modbus.maps import builtin_maps

READY_S_MAX: Final = 60.0
_STOP_S_MAX: Final = 20.0
# The coarsest counter steps by 100 Wh: a register that begins so far above the account's opening never shows less.
_STEP_WH_MAX: Final = 100
# Homes differ: each draws 40 to 120 percent of the recording, and begins at another minute of it.
_SCALE_PERCENT_MIN: Final = 40
_SCALES: Final = 81
_OFFSET_STEP_MS: Final = 7 * 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TownSettings:
    """What the simulator is built from: lines, and a recorded profile's name and bytes or none."""

    lines: tuple[LinePlan, ...]
    profile: tuple[str, bytes] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What the simulator has seen so far: requests answered or not, and its processor time."""

    requests: int
    unanswered: int
    cpu_s: float


class TownHandle:
    """The simulator as the benchmark sees it; `ports` are those of the lines in their order."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.ports: list[int] = []

    def open(self) -> None:
        """Wait until every line listens. Raises: BenchError."""
        said = self._hear()
        assert isinstance(said, list), "the simulator says its ports first"
        self.ports = said

    def ail(self, ailments: Sequence[Ailment]) -> None:
        """Let these meters ail, and all others be well. Raises: BenchError."""
        self._pipe.send(tuple(ailments))
        self._hear()

    def look(self) -> Heard:
        """Return what was heard so far. Raises: BenchError."""
        self._pipe.send("look")
        said = self._hear()
        assert isinstance(said, Heard), "asked to look, it says what it heard"
        return said

    def _hear(self) -> object:
        try:
            if self._pipe.poll(READY_S_MAX):
                return self._pipe.recv()
        except EOFError:
            raise BenchError("bench: expected the simulator's answer, got its end; its last words are above") from None
        raise BenchError(f"bench: expected the simulator's answer within {READY_S_MAX:.0f} s, got none")


@contextmanager
def simulated_town(settings: TownSettings) -> Iterator[TownHandle]:
    """Run the meters until the context ends.

    Raises: BenchError.
    """
    processes = get_context("spawn")
    ours, theirs = processes.Pipe()
    child = processes.Process(target=serve_until_closed, args=(settings, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        handle = TownHandle(ours)
        handle.open()
        yield handle
    finally:
        ours.close()
        child.join(_STOP_S_MAX)


def town_load(profile: tuple[str, bytes] | None) -> Load:
    """Return what homes draw: the recording, or a formula where there is none."""
    return formula_load() if profile is None else recorded_load(parse_profile(*profile))


def serve_until_closed(settings: TownSettings, pipe: Connection) -> None:
    """Answer on all lines until the parent closes the pipe: the main function of the simulator's process."""
    # A listening socket and a connection for each line.
    raise_file_limit(2 * len(settings.lines))
    uvloop.run(_serve(settings, pipe))


async def _serve(settings: TownSettings, pipe: Connection) -> None:
    clock = ScaledClock(time.time_ns() // 1_000_000)
    meters = _meters(settings, clock.now_ms())
    lines = [
        Line(framing=line.framing, units={unit.unit: meters[unit.number] for unit in line.units})
        for line in settings.lines
    ]
    words = _words(pipe)
    async with ModbusServer(lines, clock=clock) as server:
        pipe.send([line.port for line in lines])
        while (word := await words.get()) is not None:
            if isinstance(word, tuple):
                _ail(meters, word, clock.now_ms())
            unanswered = sum(line.unanswered for line in lines)
            pipe.send(Heard(requests=server.requests, unanswered=unanswered, cpu_s=time.process_time()))


def _meters(settings: TownSettings, now_ms: int) -> dict[int, ModbusMeter]:
    load = town_load(settings.profile)
    plans = {unit.number: unit for unit in units_of(settings.lines)}
    registers = homes(np.array(list(plans), dtype=np.int64)).register_wh.tolist()
    return {
        number: ModbusMeter(
            MeterPlate(
                serial_number=number,
                map=builtin_maps()[plan.model],
                load=load,
                register_wh=register_wh + _STEP_WH_MAX,
                offset_ms=number * _OFFSET_STEP_MS,
                scale_percent=_SCALE_PERCENT_MIN + number * 31 % _SCALES,
            ),
            now_ms=now_ms,
        )
        for (number, plan), register_wh in zip(plans.items(), registers, strict=True)
    }


def _ail(meters: dict[int, ModbusMeter], ailments: Sequence[Ailment], now_ms: int) -> None:
    of_number = {ailment.number: ailment for ailment in ailments}
    for number, meter in meters.items():
        ailment = of_number.get(number)
        if ailment is None:
            meter.suffer(None, now_ms)
            continue
        settings = FaultSettings(delay_ms=ailment.delay_ms)
        meter.suffer(LineFault(ailment.fault, Random(number), settings), now_ms)


def _words(pipe: Connection) -> asyncio.Queue[object]:
    """Return what the parent says, as it says it; None is its end."""
    words: asyncio.Queue[object] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        said: object = pipe
        while said is not None:
            try:
                said = pipe.recv()
            except (EOFError, OSError):
                said = None
            loop.call_soon_threadsafe(words.put_nowait, said)

    # A thread, as in `loadtests.flood_process`; it sleeps while meters answer.
    Thread(target=read, daemon=True).start()
    return words
