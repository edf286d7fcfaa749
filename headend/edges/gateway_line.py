"""One line and the meters on it: who is asked next, and what happens when the line or a meter is away.

Stage: inside a gateway, a task for each line. Commands go first, before the next request of a poll that is under way;
then the meter that is due longest. A meter that does not answer costs its time-out, and waits longer each time; a line
that is away is opened again by one loop. What happens on one line is nothing to another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Final, Protocol

import structlog

from headend.edges.gateway_meter import Message, Polled, PolledUnit
from headend.edges.gateway_metrics import GatewayMetrics, Outcome
from headend.edges.gateway_relay import Answer
from headend.edges.modbus_line import LineAddress, LineError, LineLost, LineSession, Read, open_line
from protocols.native import Command

_log = structlog.get_logger("gateway")

# 0.5 s doubling to 30 s: a restart is met within a second, a line away for an hour is tried 120 times.
REOPEN_S_FIRST, REOPEN_S_MAX = 0.5, 30.0
# Far above what a line's meters are ordered at once, 247 at most; what is beyond is tried again by the dispatcher.
COMMANDS_MAX: Final = 500


class LineSink(Protocol):
    """What takes what comes of a line."""

    def told(self, message: Message) -> None:
        """Take a reading that is to be published."""

    def went(self, unit: PolledUnit, polled: Polled) -> None:
        """Take how a poll went."""

    def answered(self, unit: PolledUnit, command: Command, answer: Answer) -> None:
        """Take a meter's answer to a command."""

    def may_write(self) -> bool:
        """Tell whether the lines are ours for certain."""


class PolledLine:
    """A line's polls and commands.

    Invariants: one request at a time; commands of a meter are executed in the order in which they came.
    """

    def __init__(
        self,
        name: str,
        address: LineAddress,
        units: Sequence[PolledUnit],
        sink: LineSink,
        metrics: GatewayMetrics,
        now_ms: Callable[[], int],
    ) -> None:
        self.name = name
        self.up = False
        self._address = address
        self._units = units
        self._sink = sink
        self._metrics = metrics
        self._now_ms = now_ms
        self._commands: deque[tuple[PolledUnit, Command]] = deque()
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def order(self, unit: PolledUnit, command: Command) -> None:
        """Queue a command before all polls; on a line that is away it is dropped, as by a meter that is."""
        if not self.up or len(self._commands) >= COMMANDS_MAX:
            self._metrics.write_refused("line_away" if not self.up else "too_many")
            return
        self._commands.append((unit, command))
        self._wake.set()

    async def run(self) -> None:
        """Poll until cancelled; open the line again whenever it is lost."""
        retry_s = REOPEN_S_FIRST
        while True:
            try:
                session = await open_line(self._address, self._wake.set, self._metrics.strayed)
            except (OSError, TimeoutError) as error:
                _log.warning("line_away", line=self.name, detail=str(error)[:200], retry_s=retry_s)
            else:
                retry_s = REOPEN_S_FIRST
                await self._serve(session)
                _log.warning("line_lost", line=self.name)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, REOPEN_S_MAX)

    async def _serve(self, session: LineSession) -> None:
        """Work on one session until it is lost."""
        self.up = True
        _log.info("line_up", line=self.name, meters=len(self._units))
        queue = [(unit.schedule.due_s, place) for place, unit in enumerate(self._units)]
        heapify(queue)
        try:
            while not session.lost:
                if self._commands:
                    await self._obey_next(session)
                elif queue and queue[0][0] <= self._loop.time():
                    _, place = heappop(queue)
                    unit = self._units[place]
                    await self._poll(session, unit)
                    heappush(queue, (unit.schedule.due_s, place))
                else:
                    await self._idle(session, queue[0][0] if queue else None)
        except LineLost:
            pass
        finally:
            self.up = False
            self._commands.clear()
            session.close()

    async def _idle(self, session: LineSession, until_s: float | None) -> None:
        """Wait until a meter is due, a command comes or the line is lost."""
        self._wake.clear()
        if session.lost or self._commands:
            return
        timer = None if until_s is None else self._loop.call_at(until_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _poll(self, session: LineSession, unit: PolledUnit) -> None:
        """Poll one meter and set its next time."""
        schedule = unit.schedule
        self._metrics.began(schedule.begin(self._loop.time()))

        async def ask(address: int, read: Read) -> bytes:
            while self._commands:
                await self._obey_next(session)
            return await session.ask(address, read.pdu, read.answer_bytes)

        try:
            polled = await unit.poll(ask)
        except LineLost:
            self._metrics.polled(Outcome.LINE_LOST)
            schedule.wait_for_line()
            raise
        except Exception as error:  # noqa: BLE001  # One meter that trips our code must not end the line of all others.
            _log.exception("poll_failed", line=self.name, meter=unit.meter.serial)
            polled = Polled(outcome=Outcome.FAULT, detail=repr(error)[:200])
        self._metrics.polled(polled.outcome)
        if polled.message is None:
            schedule.fail(self._loop.time())
        else:
            schedule.succeed()
            self._sink.told(polled.message)
        self._sink.went(unit, polled)

    async def _obey_next(self, session: LineSession) -> None:
        """Execute the command that came first."""
        unit, command = self._commands.popleft()
        if not self._sink.may_write():
            self._metrics.write_refused("lease_over")
            return

        async def ask(address: int, read: Read) -> bytes:
            return await session.ask(address, read.pdu, read.answer_bytes)

        try:
            answer = await unit.desk.obey(command, ask, now_ms=self._now_ms)
        except LineLost:
            raise
        except LineError as error:
            _log.info("relay_unreachable", meter=unit.meter.serial, detail=str(error))
            answer = None
        if answer is None:
            self._metrics.commanded(command.kind.value, "unknown")
            return
        self._sink.answered(unit, command, answer)
