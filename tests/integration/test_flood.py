"""The ingest benchmark's flood: nothing acknowledged twice, nothing forgotten, and no process left behind."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loadtests.flood_frames import Mode, PacketIds, Part, Roster, encode_part
from loadtests.mqtt_flood import WINDOW_MESSAGES, Burst, Flood
from meter_sim.edges.bulk import take_packets
from prepaid.embedded.process import LOOPBACK, is_running

WAIT_S = 20.0
PUBLISH, PUBLISH_AGAIN, CONNECT, PUBACK = 0x32, 0x3A, 0x10, b"\x40\x02"

# Answers a publish (its first byte and packet id); None closes the connection instead.
Answer = Callable[[int, bytes], bytes | None]


@asynccontextmanager
async def _broker(answer: Answer) -> AsyncIterator[int]:
    """A broker that answers publishes as told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inbound = bytearray()
        while data := await reader.read(65_536):
            inbound += data
            for first, body in take_packets(inbound):
                if first == CONNECT:
                    writer.write(b"\x20\x02\x00\x00")
                elif first in (PUBLISH, PUBLISH_AGAIN):
                    topic = int.from_bytes(body[:2])
                    told = answer(first, body[2 + topic : 4 + topic])
                    if told is None:
                        writer.close()
                        return
                    writer.write(told)
        writer.close()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _flooded(
    answer: Answer, *, count: int, rate: float, connections: int = 4, seconds_max: float = WAIT_S
) -> tuple[Flood, Burst]:
    """Publish a burst to such a broker."""
    roster = Roster(meters=20, connections=connections, opened_ms=0)
    frames = encode_part(roster, Part(mode=Mode.SINGLE, first=0, count=count), PacketIds(connections=connections))
    async with _broker(answer) as port:
        flood = Flood(LOOPBACK, port, connections, name="test")
        await flood.open()
        burst = Burst(frames, rate)
        await flood.send(burst, seconds_max=seconds_max)
        await flood.close()
    return flood, burst


def test_flood_whose_connection_is_closed_sends_again_what_was_not_acknowledged() -> None:
    """A connection that the broker closes comes back, and its unanswered messages are acknowledged once each."""
    heard: list[int] = []

    def answer(first: int, packet_id: bytes) -> bytes | None:
        heard.append(first)
        return None if len(heard) == 30 else PUBACK + packet_id

    flood, burst = asyncio.run(_flooded(answer, count=200, rate=2_000))
    assert flood.trouble.closed == 1
    assert flood.trouble.resent >= 1
    assert PUBLISH_AGAIN in heard
    assert burst.left == flood.trouble.unexpected == 0
    assert min(burst.acked_ns) >= 0


def test_flood_without_answers_keeps_to_its_window() -> None:
    """No connection has more unanswered than its window, however much is due and for however long."""
    heard: list[int] = []

    def answer(first: int, packet_id: bytes) -> bytes | None:
        heard.append(first)
        return b""

    _, burst = asyncio.run(_flooded(answer, count=400, rate=1e6, seconds_max=1.0))
    assert len(heard) == WINDOW_MESSAGES * 4
    assert burst.left == 400
    assert sum(sent_ns >= 0 for sent_ns in burst.sent_ns) == len(heard)


def test_flood_takes_answers_out_of_their_order() -> None:
    """Each PUBACK is that of the message it names, also when a later one is answered first."""
    waiting: list[bytes] = []

    def answer(first: int, packet_id: bytes) -> bytes | None:
        waiting.append(packet_id)
        return b"".join(PUBACK + each for each in reversed(waiting)) if len(waiting) == 20 else b""

    flood, burst = asyncio.run(_flooded(answer, count=20, rate=10_000, connections=1))
    assert burst.left == flood.trouble.unexpected == 0
    assert min(burst.acked_ns) >= 0


_PARENT = """
from loadtests.flood_frames import Mode, Part, Roster
from loadtests.flood_process import FloodSettings, Order, flooding
from loadtests.mqtt_sink import null_sink

if __name__ == "__main__":
    roster = Roster(meters=20, connections=4, opened_ms=0)
    with null_sink() as port, flooding(FloodSettings(host="127.0.0.1", port=port, roster=roster)) as flood:
        flood.prepare(Order(part=Part(mode=Mode.SINGLE, first=0, count=2_000), rate=10))
        flood.begin()
        print(flood.pid, flush=True)
        flood.take()
"""


@pytest.mark.timeout(60)
def test_flood_whose_parent_is_killed_ends_by_itself(tmp_path: Path) -> None:
    """A benchmark that dies in the middle of a burst leaves no flood behind."""
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.send_signal(signal.SIGKILL)
    deadline_s = time.monotonic() + WAIT_S
    while is_running(pid):
        assert time.monotonic() < deadline_s, f"flood {pid} still runs"
        time.sleep(0.02)
