"""Stations as a process of their own: requests made before the clock starts, sent when they are due, over HTTP/1.1.

Stage: between `bench vend` and whatever it measures. The schedule waits for nobody: a request that finds every line
busy waits at the stations, and all the time from when it was due counts. The child opens its lines for each round
anew, answers with when each request was due, left and was answered, and ends when the benchmark closes the pipe.
"""

from __future__ import annotations

import asyncio
import gc
import re
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Final, cast

import numpy as np
import uvloop

from loadtests.scratch import BenchError
from prepaid.embedded.process import LOOPBACK
from protocols.columns import Int64Column

# A round is given up so long after its last request was due: longer than a till waits for any answer.
LATE_S_MAX: Final = 30.0
# A process that loads, connects and answers takes seconds; on a busy machine some more.
HEARD_S_MAX: Final = 60.0
NEVER: Final = -1
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CODE: Final = re.compile(rb'"code": ?"([a-z_0-9]{1,64})"')
_STATUS: Final = slice(9, 12)
DONE: Final = "done"
CUT: Final = "connection_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Requests to send to a port of loopback, each complete as it goes over one of so many lines.

    Units: `rate` is requests a second; without one, each line sends its next request as soon as it has an answer, for
    `seconds` or until all are sent.
    """

    port: int
    lines: int
    requests: Sequence[bytes] = field(repr=False)
    rate: float | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """What became of a round.

    Shape: one value a request, in their order. Units: nanoseconds since the beginning; -1 is never; `status` is 0 where
    no answer came. `outcomes` counts answers by code, `done` for those of status 200.
    """

    due_ns: Int64Column
    sent_ns: Int64Column
    answered_ns: Int64Column
    status: Int64Column
    outcomes: dict[str, int]
    cpu_s: float

    @property
    def took_ms(self) -> list[float]:
        """Time from when each answered request was due, rising."""
        there = self.answered_ns >= 0
        took: list[float] = (np.sort(self.answered_ns[there] - self.due_ns[there]) / 1e6).tolist()
        return took

    @property
    def seconds(self) -> float:
        """Time from the first request that was due to the last answer."""
        return float(self.answered_ns.max(initial=0)) / 1e9

    @property
    def behind_ms_max(self) -> float:
        """How late a request left at worst."""
        left = self.sent_ns >= 0
        return float((self.sent_ns[left] - self.due_ns[left]).max(initial=0)) / 1e6


class StationsHandle:
    """The stations as the benchmark sees them."""

    def __init__(self, pipe: Connection, pid: int) -> None:
        self._pipe = pipe
        self.pid = pid

    def serve(self, asked: Round) -> Answers:
        """Let a round be sent; return what became of it. Raises: BenchError."""
        self._pipe.send(asked)
        within_s = HEARD_S_MAX + LATE_S_MAX + max(asked.seconds, len(asked.requests) / (asked.rate or 1e9))
        try:
            if self._pipe.poll(within_s):
                answers = self._pipe.recv()
                assert isinstance(answers, Answers), "stations answer with what became of a round"
                return answers
        except EOFError:
            raise BenchError("bench: expected the stations' answer, got their end; see above") from None
        raise BenchError(f"bench: expected the stations' answer within {within_s:.0f} s, got none")


@contextmanager
def running_stations() -> Iterator[StationsHandle]:
    """Run stations until the context ends."""
    processes = get_context("spawn")
    ours, theirs = processes.Pipe()
    child = processes.Process(target=serve_until_closed, args=(theirs,), daemon=True)
    child.start()
    theirs.close()
    try:
        assert child.pid is not None, "started"
        yield StationsHandle(ours, child.pid)
    finally:
        ours.close()
        child.join(HEARD_S_MAX + LATE_S_MAX)


def serve_until_closed(pipe: Connection) -> None:
    """Send the parent's rounds until it closes the pipe: the main function of the stations' process."""
    while True:
        try:
            asked = pipe.recv()
        except (EOFError, OSError):
            return
        # A walk over all requests would stop the schedule.
        gc.collect()
        gc.freeze()
        gc.disable()
        answers = uvloop.run(_Stations(asked).run())
        gc.unfreeze()
        gc.enable()
        pipe.send(answers)


class _Stations:
    """One round on its way. Invariants: a line carries one request at a time; each request is sent at most once."""

    def __init__(self, asked: Round) -> None:
        self._asked = asked
        count = len(asked.requests)
        self._due_ns = [NEVER] * count
        self._sent_ns = [NEVER] * count
        self._answered_ns = [NEVER] * count
        self._status = [0] * count
        self._outcomes: Counter[str] = Counter()
        # Who has waited longest is next: a server closes lines that lie idle for seconds.
        self._idle: deque[_Line] = deque()
        self._waiting: deque[int] = deque()
        self._open = 0
        self._next = 0
        self._began_ns = 0
        self._all_answered = asyncio.Event()

    async def run(self) -> Answers:
        """Open the lines, send, wait for the answers, close."""
        loop, port = asyncio.get_running_loop(), self._asked.port
        opened = [
            (await loop.create_connection(lambda: _Line(self), LOOPBACK, port))[1] for _ in range(self._asked.lines)
        ]
        self._idle.extend(opened)
        cpu_before_s = time.process_time()
        self._began_ns = time.monotonic_ns()
        if self._asked.rate is None:
            await self._as_answered(opened)
        else:
            await self._on_schedule(self._asked.rate)
        cpu_s = time.process_time() - cpu_before_s
        for line in opened:
            line.close()
        return Answers(
            due_ns=np.array(self._due_ns, dtype=np.int64),
            sent_ns=np.array(self._sent_ns, dtype=np.int64),
            answered_ns=np.array(self._answered_ns, dtype=np.int64),
            status=np.array(self._status, dtype=np.int64),
            outcomes=dict(self._outcomes),
            cpu_s=cpu_s,
        )

    async def _on_schedule(self, rate: float) -> None:
        for number in range(len(self._asked.requests)):
            due_ns = int(number * 1e9 / rate)
            self._due_ns[number] = due_ns
            await asyncio.sleep(max(0, due_ns - self._now_ns()) / 1e9)
            self._open += 1
            self._waiting.append(number)
            self._send_waiting()
        await self._wait(LATE_S_MAX)

    async def _as_answered(self, lines: Sequence[_Line]) -> None:
        for line in lines:
            self._send_next(line)
        await self._wait(self._asked.seconds + LATE_S_MAX)

    async def _wait(self, seconds_max: float) -> None:
        if self._open:
            self._all_answered.clear()
            try:
                await asyncio.wait_for(self._all_answered.wait(), seconds_max)
            except TimeoutError:
                self._outcomes["unanswered"] += self._open

    def _now_ns(self) -> int:
        return time.monotonic_ns() - self._began_ns

    def _send_waiting(self) -> None:
        while self._waiting and self._idle:
            self._send(self._idle.popleft(), self._waiting.popleft())

    def _send_next(self, line: _Line) -> None:
        now_ns = self._now_ns()
        if self._next < len(self._asked.requests) and now_ns < self._asked.seconds * 1e9:
            self._open += 1
            self._due_ns[self._next] = now_ns
            self._next += 1
            self._send(line, self._next - 1)

    def _send(self, line: _Line, number: int) -> None:
        self._sent_ns[number] = self._now_ns()
        line.send(number, self._asked.requests[number])

    def answered(self, line: _Line, number: int, status: int, body: bytes) -> None:
        """Note an answer; the line is free."""
        self._answered_ns[number] = self._now_ns()
        self._status[number] = status
        code = _CODE.search(body) if status != 200 else None
        self._outcomes[DONE if status == 200 else code[1].decode() if code else str(status)] += 1
        if self._asked.rate is None:
            self._send_next(line)
        else:
            self._idle.append(line)
            self._send_waiting()
        self._over()

    def lost(self, line: _Line, number: int | None) -> None:
        """Note that a line is gone, with or without a request on it."""
        if number is not None:
            self._outcomes[CUT] += 1
            self._over()
        elif line in self._idle:
            self._idle.remove(line)

    def _over(self) -> None:
        self._open -= 1
        if not self._open:
            self._all_answered.set()


class _Line(asyncio.Protocol):
    """One connection that is kept: a request, its answer, the next request."""

    def __init__(self, stations: _Stations) -> None:
        self._stations = stations
        self._transport: asyncio.Transport | None = None
        self._number: int | None = None
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is one by its methods only.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        number, self._number = self._number, None
        self._stations.lost(self, number)

    def send(self, number: int, request: bytes) -> None:
        """Write a request."""
        assert self._transport is not None, "connected"
        self._number = number
        self._transport.write(request)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._number = None
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        head = self._unread.find(_HEAD_END)
        if head < 0:
            return
        length = _LENGTH.search(self._unread, 0, head + len(_HEAD_END))
        assert length is not None, "an answer says how long it is"
        body_at = head + len(_HEAD_END)
        if len(self._unread) < body_at + int(length[1]):
            return
        answer, self._unread = self._unread, b""
        number, self._number = self._number, None
        assert number is not None, "an answer belongs to a request"
        self._stations.answered(self, number, int(answer[_STATUS]), answer[body_at:])
