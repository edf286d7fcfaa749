"""One line and the meters on it: who is asked next, and what happens when the line or a meter is away.

Stage: inside a gateway, a task for each line. Commands go first, before the next request of a poll that is under way;
then the meter that is due longest of those that answer, of those not tried yet, of those that did not answer. Such a
one costs its time-out, and waits longer each time: a meter that answers waits for one of them at most. A line that is
away is opened again by one loop. What happens on one line is nothing to another.
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
# Where those that answer leave a line no pause, one that may be dead is tried after one of them, once it is so late.
STARVED_S: Final = 60.0


# When a meter is due, and its place among the units of its line.
_Due = tuple[float, int]


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
        # Units that answered when they were last polled, by their place among the units.
        self._answering: set[int] = set()
        self._tried_last = False
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
        queues = self._queues()
        try:
            while not session.lost:
                if self._commands:
                    await self._obey_next(session)
                    continue
                queue = self._next(queues)
                if queue is None:
                    await self._idle(session, min((each[0][0] for each in queues if each), default=None))
                    continue
                self._tried_last = queue is queues[-1]
                _, place = heappop(queue)
                await self._poll(session, place)
                heappush(queues[self._rank(place)], (self._units[place].schedule.due_s, place))
        except LineLost:
            pass
        finally:
            self.up = False
            self._commands.clear()
            session.close()

    def _queues(self) -> tuple[list[_Due], ...]:
        """Put the meters in order of time, by their rank; each is asked anew who it is."""
        queues: tuple[list[_Due], ...] = ([], [], [])
        for place, unit in enumerate(self._units):
            unit.may_be_another()
            queues[self._rank(place)].append((unit.schedule.due_s, place))
        for queue in queues:
            heapify(queue)
        return queues

    def _rank(self, place: int) -> int:
        """Rank a meter: those that answer, those not tried yet, those that did not answer, here or when last polled."""
        unit = self._units[place]
        if place in self._answering:
            return 0
        return 2 if unit.schedule.failures or unit.meter.was_silent else 1

    def _next(self, queues: tuple[list[_Due], ...]) -> list[_Due] | None:
        """Return the queue whose first meter is polled now; None while none is due."""
        now_s = self._loop.time()
        silent = queues[-1]
        if silent and silent[0][0] <= now_s - STARVED_S and not self._tried_last:
            return silent
        return next((queue for queue in queues if queue and queue[0][0] <= now_s), None)

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

    async def _poll(self, session: LineSession, place: int) -> None:
        """Poll one meter and set its next time."""
        unit = self._units[place]
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
        if polled.outcome is Outcome.SILENT:
            self._answering.discard(place)
        else:
            self._answering.add(place)
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
