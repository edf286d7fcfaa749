"""`prepaid gateway` as an operator gives it: lines, meters, maps, and the probe on a real server and a serial port."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from db.pool import connect
from db.registry import NewMeter, add_meter
from headend.edges.modbus_line import LineAddress, NoAnswer, Read, open_line
from protocols.modbus.frames import Framing, crc16, registers_of
from tests.commands import run_command, settings_for
from tests.integration.gateway_line import Meter, running_line


@pytest.mark.db
def test_lines_and_meters_are_entered_and_listed(database_url: str, tmp_path: Path) -> None:
    """A registered meter is placed on a line with its relay, others from a file; what does not fit is refused."""
    environment = settings_for(database_url, tmp_path)

    async def register() -> None:
        async with await connect(database_url, application="test") as conn:
            for serial in ("M1", "M2"):
                await add_meter(conn, NewMeter(serial=serial, rated_w=15_000, register_end_wh=10**9))

    asyncio.run(register())

    def gateway(*arguments: str, status: int = 0) -> str:
        found = run_command("gateway", *arguments, environment=environment, status=status)
        return found.stdout + found.stderr

    gateway("lines", "add", "cellar", "--serial", "/dev/ttyUSB0", "--baud", "2400", "--parity", "even")
    relay = ("--relay-model", "relay-coil", "--relay-unit", "200", "--relay-address", "3")
    gateway("meters", "add", "M1", "--line", "cellar", "--unit", "1", "--model", "sdm120", *relay)
    assert "confirmed by a probe" in gateway(
        "meters", "add", "M2", "--line", "cellar", "--unit", "2", "--model", "em2m", status=2
    )
    (tmp_path / "gateway.csv").write_text("serial,line,unit,model,tcp\nM2,north,1,sdm120,10.0.0.7\n")
    assert gateway("import", str(tmp_path / "gateway.csv")) == "1 new lines, 1 meters placed, 0 were there\n"
    meter, _ = json.loads(gateway("meters", "list", "--json"))["meters"]
    assert (meter["serial"], meter["relay_unit"], meter["relay_address"], meter["state"]) == ("M1", 200, 3, "new")


def test_maps_check_names_what_is_wrong(tmp_path: Path) -> None:
    """A map file is told everything that is wrong with it, and the command's status says so."""
    (tmp_path / "bad.toml").write_text('model = "x"\n')
    found = run_command("gateway", "maps", "check", str(tmp_path / "bad.toml"), environment={}, status=1)
    assert "bad.toml" in found.stdout


def test_probe_finds_model_and_word_order_and_shows_what_it_reads() -> None:
    """A meter whose words come low first is found with that order; its values are shown."""

    async def probed() -> str:
        async with running_line({7: Meter(import_kwh=321.5, low_word_first=True)}) as line:
            return await asyncio.to_thread(
                lambda: run_command(
                    "gateway", "probe", f"127.0.0.1:{line.port}", "--unit", "7", "--model", "sdm120",
                    "--timeout-ms", "300", "--json", environment={},
                ).stdout
            )  # fmt: skip

    best = json.loads(asyncio.run(probed()))["found"][0]
    assert (best["model"], best["word_order"], best["unit"]) == ("sdm120", "cdab", 7)
    assert best["values"]["import_wh"] == 321_500


@contextmanager
def serial_meter(words: bytes) -> Iterator[str]:
    """A meter at the other end of a serial port: answers unit 1, and puts noise before each answer."""
    ours, theirs = pty.openpty()

    def serve() -> None:
        while True:
            try:
                request = os.read(ours, 256)
            except OSError:
                return
            if request[:1] == b"\1":
                body = bytes((1, request[1], len(words))) + words
                os.write(ours, b"\x55\xaa" + body + crc16(body).to_bytes(2, "little"))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield os.ttyname(theirs)
    finally:
        os.close(theirs)
        thread.join(10)
        os.close(ours)


def test_serial_port_is_asked_in_rtu_and_noise_before_an_answer_is_dropped() -> None:
    """On a port the answer is found behind noise; a unit that is not there costs its time-out and nothing more."""
    words = struct.pack(">f", 231.5)
    strayed: list[int] = []

    async def asked(device: str) -> bytes:
        address = LineAddress(framing=Framing.RTU, timeout_s=0.5, device=device, baud=9_600, parity="none")
        session = await open_line(address, lambda: None, strayed.append)
        read = Read.of(4, 0, 2)
        with pytest.raises(NoAnswer):
            await session.ask(2, read.pdu, read.answer_bytes)
        answer = await session.ask(1, read.pdu, read.answer_bytes)
        session.close()
        return registers_of(answer)

    with serial_meter(words) as device:
        assert asyncio.run(asked(device)) == words
    assert sum(strayed) == 2


def test_answer_that_comes_after_its_time_is_thrown_away() -> None:
    """A late answer bears an old transaction: the next request gets its own."""

    async def story() -> tuple[bytes, int]:
        strayed: list[int] = []
        held: list[bytes] = []

        class Slow(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                held.append(data)
                if len(held) == 2:
                    for number, request in enumerate(held):
                        answer = request[:4] + b"\0\5" + request[6:7] + bytes((4, 2, 0, number))
                        self.transport.write(answer)  # type: ignore[attr-defined]

        server = await asyncio.get_running_loop().create_server(Slow, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        address = LineAddress(framing=Framing.TCP, timeout_s=0.3, host="127.0.0.1", port=port)
        session = await open_line(address, lambda: None, strayed.append)
        read = Read.of(4, 0, 1)
        with pytest.raises(NoAnswer):
            await session.ask(1, read.pdu, read.answer_bytes)
        answer = await session.ask(1, read.pdu, read.answer_bytes)
        session.close()
        server.close()
        return registers_of(answer), len(strayed)

    assert asyncio.run(story()) == (b"\0\1", 1)


def test_probe_of_a_silent_line_says_so() -> None:
    """Where nothing answers the probe says it and ends with status 1."""

    async def probed() -> str:
        async with running_line({1: Meter()}) as line:
            line.silent.add(1)
            return await asyncio.to_thread(
                lambda: run_command(
                    "gateway", "probe", f"127.0.0.1:{line.port}", "--model", "sdm120", "--timeout-ms", "50",
                    environment={}, status=1,
                ).stdout
            )  # fmt: skip

    assert asyncio.run(probed()) == "nothing answered\n"
