"""`prepaid import` on the real parts: counted by what became of each reading, interrupted anywhere, the same once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from billing.calendar import from_ms, to_ms
from db.audit import run_checks
from prepaid.embedded import EmbeddedNats
from tests.support import CALENDAR, HOUR_MS, MINUTE_MS, REGISTER_WH, T0, WAIT_S, Site, open_site

pytestmark = [pytest.mark.db, pytest.mark.broker]

COMMAND_S_MAX = 120
# What an import of 20,000 readings a chunk and a million lines may hold, and five times less than the lines themselves.
MEMORY_KB_MAX = 250_000


class Desk:
    """Where an operator types commands: an installation whose ingest is started by the command itself."""

    def __init__(self, database_url: str, nats: EmbeddedNats, folder: Path) -> None:
        self.database_url, self.nats, self.folder = database_url, nats, folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PREPAID_")}
        self.environment: Mapping[str, str] = clean | {
            "PREPAID_DATABASE_URL": database_url,
            "PREPAID_NATS_URL": nats.nats_url,
            "PREPAID_MQTT_URL": f"mqtt://{nats.mqtt_host}:{nats.mqtt_port}",
            "PREPAID_DATA_DIR": str(folder / "data"),
        }

    def file(self, name: str, text: str) -> Path:
        """Write a file."""
        path = self.folder / name
        path.write_text(text)
        return path

    def run(self, *arguments: object, status: int = 0) -> dict[str, Any]:
        """Import, and read the answer."""
        with self.started(*arguments) as process:
            out, err = process.communicate(timeout=COMMAND_S_MAX)
        assert process.returncode == status, f"{arguments}: status {process.returncode}\n{out}\n{err[-3000:]}"
        return dict(json.loads(out)) if status == 0 else {"refusal": err.strip().splitlines()[-1]}

    @contextmanager
    def started(self, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        """Start an import; end it at the latest with the context."""
        command = [sys.executable, "-m", "prepaid", "import", *map(str, arguments), "--json"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            process.wait()

    def tell(self, story: Callable[[Site], Awaitable[Any]]) -> Any:
        """Do something with the installation while no command runs."""

        async def told() -> Any:
            async with open_site(self.database_url, self.nats) as site:
                return await story(site)

        return asyncio.run(told())


@pytest.fixture
def desk(database_url: str, nats: EmbeddedNats, tmp_path: Path) -> Desk:
    """A desk of its own for each test."""
    return Desk(database_url, nats, tmp_path)


async def _three_homes(site: Site) -> None:
    for serial in ("M1", "M2", "NMI7"):
        await site.add_home(serial)


async def _is_sound(site: Site) -> None:
    report = await run_checks(site.conn, CALENDAR)
    assert [check.line() for check in report.checks if check.broken] == []


def _line(serial: str, hours: int, register_wh: int) -> str:
    return f"{serial},{from_ms(T0 + hours * HOUR_MS).isoformat()},{register_wh}\n"


def test_import_counts_what_became_of_each_reading(desk: Desk) -> None:
    """sent = stored + duplicate + quarantined + rejected, by reason; bad lines by name; the same again is all known."""
    desk.tell(_three_homes)
    lines = [_line("M1", hours, REGISTER_WH + 100 * hours) for hours in range(1, 25)]
    lines += [lines[3], _line("M1", 30, REGISTER_WH - 1), _line("M2", -5, REGISTER_WH), _line("M2", 5, REGISTER_WH)]
    lines += [_line("stranger", 5, 1), "M2,never,5\n", _line("M1", 4, REGISTER_WH + 399)]
    registers = desk.file("registers.csv", "serial,time,register_wh\n" + "".join(lines))
    # Market days are UTC+10: the first of these begins after the installation.
    day = datetime(2025, 6, 2, tzinfo=UTC)
    intervals = desk.file(
        "nem12.csv",
        f"100,NEM12,202506050800,A,B\n200,NMI7,E1,1,E1,N1,,KWH,30,\n"
        f"300,{day:%Y%m%d},{','.join(['0.0333'] * 48)},A,,,\n300,{day:%d%m%Y},1,A\n900\n",
    )
    first = desk.run(registers, intervals)
    reasons = {"register_fell": 1, "before_installation": 1, "unknown_meter": 1, "conflict": 1}
    assert first["reasons"] == reasons
    assert (first["sent"], first["stored"], first["duplicate"], first["lost"]) == (78, 24 + 1 + 48, 1, 0)
    assert (first["quarantined"], first["rejected"], first["bad_lines"]) == (3, 1, 2)
    assert first["bad"] == [
        "registers.csv line 31: expected a time such as 2026-04-01T00:30:00+05:30, got 'never'",
        "nem12.csv line 4: expected a 300 record of 48 values and their quality, got 4 fields",
    ]
    again = desk.run(registers, intervals)
    assert (again["sent"], again["stored"], again["duplicate"], again["reasons"]) == (78, 0, 74, reasons)

    async def stored(site: Site) -> None:
        found = await site.registers("NMI7")
        midnight_ms = to_ms(datetime(2025, 6, 1, 14, tzinfo=UTC))
        # 33.3 Wh each: nothing is lost to rounding.
        expected = {midnight_ms + n * HOUR_MS // 2: REGISTER_WH + 333 * n // 10 for n in range(1, 49)}
        assert found == expected
        assert len(await site.registers("M1")) == 24
        totals = await site.totals()
        assert (totals.received, totals.stored) == (156, 73)
        await _is_sound(site)

    desk.tell(stored)


def test_strict_import_ends_at_the_first_bad_line(desk: Desk) -> None:
    """The refusal names file, line, what was expected and what came; without waiting nothing is looked for."""
    desk.tell(_three_homes)
    path = desk.file(
        "bad.csv", "serial,time,register_wh\n" + _line("M1", 1, 1_100) + "M1,x,1\n" + _line("M1", 2, 1_200)
    )
    refusal = desk.run(path, "--strict", status=2)["refusal"]
    assert "bad.csv line 3: expected a time" in refusal
    answer = desk.run(path, "--no-wait")
    assert (answer["sent"], answer["bad_lines"]) == (2, 1)
    assert "stored" not in answer


def _minutes(count: int) -> Iterator[str]:
    yield "serial,time,interval_wh\n"
    for number in range(1, count + 1):
        yield f"M1,{from_ms(T0 + number * MINUTE_MS).isoformat()},33.3\n"


def _progress(desk: Desk) -> dict[str, Any]:
    """Read how far the import that runs has come."""
    for path in (desk.folder / "data" / "imports").glob("*.json"):
        try:
            return dict(json.loads(path.read_bytes()))
        except FileNotFoundError:
            continue
    return {"offset": 0, "done": False}


def test_import_that_was_killed_goes_on_where_it_stood(desk: Desk) -> None:
    """Killed after its first chunk, and again after the next: every reading is stored once, with its exact register."""
    desk.tell(_three_homes)
    count = 70_000
    path = desk.file("minutes.csv", "".join(_minutes(count)))
    reached = 0
    for _ in range(2):
        with desk.started(path) as process:
            deadline_s = time.monotonic() + 3 * WAIT_S
            while _progress(desk)["offset"] <= reached:
                assert process.poll() is None, "the import ended before it could be killed"
                assert time.monotonic() < deadline_s, "no chunk was taken"
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
        kept = _progress(desk)
        assert reached < kept["offset"] < path.stat().st_size
        assert not kept["done"]
        reached = kept["offset"]
    answer = desk.run(path)
    assert answer["resumed"]
    assert (answer["lines"], answer["sent"], answer["lost"]) == (count + 1, count, 0)
    assert (answer["stored"], answer["duplicate"], answer["reasons"]) == (count, 0, {})

    async def stored(site: Site) -> None:
        found = await site.registers("M1")
        assert found == {T0 + n * MINUTE_MS: REGISTER_WH + 333 * n // 10 for n in range(1, count + 1)}
        await _is_sound(site)

    desk.tell(stored)
    assert list((desk.folder / "data" / "imports").glob("*.json")) == []


@pytest.mark.slow
def test_million_lines_are_imported_in_bounded_memory(desk: Desk) -> None:
    """A file is never held as a whole: the import of a million lines stays under a quarter of a gigabyte."""
    desk.tell(_three_homes)
    count = 1_000_000
    path = desk.folder / "million.csv"
    with path.open("w") as opened:
        opened.writelines(_minutes(450_000))
        opened.writelines(f"M2,{from_ms(T0 + n * MINUTE_MS).isoformat()},10\n" for n in range(1, 450_001))
        # The others by time, two meters in turn: a message each.
        for number in range(1, 50_001):
            later = from_ms(T0 + (450_000 + number) * MINUTE_MS).isoformat()
            opened.write(f"M1,{later},10\nNMI7,{from_ms(T0 + number * MINUTE_MS).isoformat()},10\n")
    most_kb = 0
    with desk.started(path) as process:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                break
            most_kb = max([most_kb, *(int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM"))])
            time.sleep(0.2)
        out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    answer = json.loads(out)
    assert (answer["sent"], answer["stored"], answer["lost"]) == (count, count, 0)
    assert 0 < most_kb < MEMORY_KB_MAX
