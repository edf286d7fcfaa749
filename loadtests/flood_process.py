"""The flood as a process of its own: told what to publish by the benchmark, timed by its own clock.

Stage: between `bench ingest` and its meters. The child opens all connections, encodes a part while no clock runs, then
waits for the word to begin; it answers with when each message was due, left, and was acknowledged. It ends when the
benchmark closes the pipe or dies, also in the middle of a burst.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Thread
from typing import Final

import numpy as np
import uvloop

from loadtests.flood_frames import Frames, PacketIds, Part, Roster, encode_part
from loadtests.mqtt_flood import Burst, Flood
from loadtests.scratch import BenchError
from protocols.columns import Int64Column

# 2,000 connections open in a second; a burst of 3 million frames is encoded in half a minute.
READY_S_MAX: Final = 180.0
# A burst is given up so long after its last write was due: 64 messages on each of 2,000 connections take 13 s at 10,000
# messages/s, and a broker that closed its connections is met again within 5 s.
LATE_S_MAX: Final = 120.0
# A burst without a rate has no such instant: one message a connection at 1,000 messages/s or more.
MAX_RATE_MIN: Final = 1_000
# Beside the connections: pipes, the loop's own, libraries.
FILES_BESIDE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class FloodSettings:
    """Where to publish, for whom."""

    host: str
    port: int
    roster: Roster


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A part to publish, at so many messages a second; None: as fast as acknowledgements come."""

    part: Part
    rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sent:
    """What became of a burst.

    Shape: one value a message in the order of their numbers. Units: nanoseconds since `began_at_ns`, which is UTC since
    1970; -1 is never. `due_ns` of a burst without a rate is when the message left.
    """

    part: Part
    rate: float | None
    began_at_ns: int
    due_ns: Int64Column
    sent_ns: Int64Column
    acked_ns: Int64Column
    bytes_written: int
    cpu_s: float
    peak_mib: int
    trouble: dict[str, int]

    @property
    def published(self) -> int:
        """Messages that left."""
        return int((self.sent_ns >= 0).sum())

    @property
    def pubacked(self) -> int:
        """Messages that the broker has acknowledged."""
        return int((self.acked_ns >= 0).sum())

    @property
    def seconds(self) -> float:
        """Time from the beginning to the last message that left."""
        return float(self.sent_ns.max(initial=0)) / 1e9

    @property
    def seconds_pubacked(self) -> float:
        """Time from the beginning to the last PUBACK."""
        return float(self.acked_ns.max(initial=0)) / 1e9


class FloodHandle:
    """The flood as the benchmark sees it."""

    def __init__(self, pipe: Connection, pid: int) -> None:
        self._pipe = pipe
        self.pid = pid

    def prepare(self, order: Order) -> None:
        """Have a part encoded. Raises: BenchError."""
        self._pipe.send(order)
        self._hear(READY_S_MAX)

    def begin(self) -> None:
        """Start the clock of what was prepared."""
        self._pipe.send("go")

    @property
    def is_done(self) -> bool:
        """Tell whether what was begun is over, or the flood is gone."""
        return self._pipe.poll()

    def take(self) -> Sent:
        """Return what became of it. Raises: BenchError."""
        answer = self._hear(READY_S_MAX)
        assert isinstance(answer, Sent), "a flood that was told to go says what it sent"
        return answer

    def _hear(self, seconds: float) -> object:
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
        except EOFError:
            raise BenchError("bench: expected the flood's answer, got its end; its last words are above") from None
        raise BenchError(f"bench: expected the flood's answer within {seconds:.0f} s, got none")


@contextmanager
def flooding(settings: FloodSettings) -> Iterator[FloodHandle]:
    """Run a flood with all its connections open until the context ends.

    Raises: BenchError.
    """
    processes = get_context("spawn")
    ours, theirs = processes.Pipe()
    child = processes.Process(target=flood_until_closed, args=(settings, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        assert child.pid is not None, "started"
        handle = FloodHandle(ours, child.pid)
        handle._hear(READY_S_MAX)
        yield handle
    finally:
        ours.close()
        child.join(LATE_S_MAX)


def raise_file_limit(files: int) -> None:
    """Let this process and its children have so many files open: each connection is one at both ends.

    Raises: BenchError when the system's own limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files + FILES_BESIDE
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BenchError(f"bench: expected a limit of {wanted} open files or more (ulimit -Hn), got {hard}")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def flood_until_closed(settings: FloodSettings, pipe: Connection) -> None:
    """Publish the parent's orders until it closes the pipe: the main function of the flood's process."""
    raise_file_limit(settings.roster.connections)
    uvloop.run(_serve(settings, pipe))


async def _serve(settings: FloodSettings, pipe: Connection) -> None:
    flood = Flood(settings.host, settings.port, settings.roster.connections, name=f"flood-{time.time_ns():x}")
    ids = PacketIds(connections=settings.roster.connections)
    await flood.open()
    orders = _orders(pipe)
    pipe.send("open")
    while isinstance(order := await orders.get(), Order):
        frames = encode_part(settings.roster, order.part, ids)
        # Millions of frames that stay: walking over them would stop the schedule.
        gc.collect()
        gc.freeze()
        gc.disable()
        pipe.send("ready")
        if await orders.get() is None:
            break
        sent = await _sent(flood, frames, order.rate, orders)
        del frames
        gc.unfreeze()
        gc.enable()
        if sent is None:
            break
        pipe.send(sent)
        del sent
    await flood.close()


def _orders(pipe: Connection) -> asyncio.Queue[object]:
    """Return what the parent says, as it says it; None is its end."""
    orders: asyncio.Queue[object] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        said: object = pipe
        while said is not None:
            try:
                said = pipe.recv()
            except (EOFError, OSError):
                said = None
            loop.call_soon_threadsafe(orders.put_nowait, said)

    # A thread, since a pipe that the loop watches cannot be written to in one piece. It sleeps while a burst runs.
    Thread(target=read, daemon=True).start()
    return orders


async def _sent(flood: Flood, frames: Frames, rate: float | None, orders: asyncio.Queue[object]) -> Sent | None:
    """Publish a burst; None when the parent has gone meanwhile, which is all that it can say."""
    burst = Burst(frames, rate)
    before, cpu_before_s = flood.trouble.copy(), time.process_time()
    count = frames.part.count
    last_due_s = count / (MAX_RATE_MIN if rate is None else rate)
    sending = asyncio.ensure_future(flood.send(burst, seconds_max=last_due_s + LATE_S_MAX))
    parting = asyncio.ensure_future(orders.get())
    await asyncio.wait({sending, parting}, return_when=asyncio.FIRST_COMPLETED)
    parting.cancel()
    if not sending.done():
        sending.cancel()
        return None
    sending.result()
    sent_ns = np.repeat(np.array(burst.sent_ns, dtype=np.int64), burst.each)
    return Sent(
        part=frames.part,
        rate=rate,
        began_at_ns=burst.began_at_ns,
        due_ns=sent_ns if rate is None else _due_ns(count, burst.each, rate),
        sent_ns=sent_ns,
        acked_ns=np.array(burst.acked_ns, dtype=np.int64),
        bytes_written=sum(map(len, burst.writes)),
        cpu_s=time.process_time() - cpu_before_s,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        trouble=flood.trouble.since(before),
    )


def _due_ns(count: int, each: int, rate: float) -> Int64Column:
    """Return when each message was due: those of a write together."""
    first_of_write = np.arange(count, dtype=np.int64) // each * each
    return (first_of_write * (1e9 / rate)).astype(np.int64)
