"""`prepaid gateway import`: lines and meters from a file, all of it or nothing, every wrong row named by its line."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from db.pool import connect
from db.registry import NewMeter, add_meter
from prepaid.csv_lines import ImportRefused
from prepaid.gateway_import import GatewayImported, run_import_gateway
from prepaid.settings import Settings

pytestmark = pytest.mark.db

HEADER = (
    "serial,line,unit,model,tcp,rtu_tcp,port,baud,poll_s,confirmed,relay_model,relay_unit,relay_address,device_serial\n"
)


async def register(url: str, count: int) -> None:
    async with await connect(url, application="test") as conn, conn.transaction():
        for number in range(count):
            await add_meter(conn, NewMeter(serial=f"M{number}", rated_w=15_000, register_end_wh=10**9))


async def entered(url: str) -> tuple[int, int]:
    async with await connect(url, application="test") as conn:
        cursor = await conn.execute("select (select count(*) from modbus_lines), (select count(*) from modbus_meters)")
        lines, meters = await cursor.fetchone() or (0, 0)
        return lines, meters


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(database_url=database_url, data_dir=tmp_path)


def imported(settings: Settings, folder: Path, rows: list[str], header: str = HEADER) -> GatewayImported:
    file = folder / "gateway.csv"
    file.write_text(header + "\n".join(rows) + "\n")
    return run_import_gateway(settings, file)


def test_thousands_of_meters_are_entered_at_once_and_again_are_known(settings: Settings, tmp_path: Path) -> None:
    """A line's place stands on one of its rows, a known line's on none; the same file again changes nothing."""
    assert settings.database_url is not None
    asyncio.run(register(settings.database_url, 1_001))
    rows = []
    for number in range(1_000):
        tcp = f"10.0.{number // 20}.7:502" if number % 20 == 0 else ""
        rows.append(f"M{number},l{number // 20},{number % 20 + 1},sdm630,{tcp},,,,300,,relay-coil,200,{number % 20},")
    assert imported(settings, tmp_path, rows) == GatewayImported(lines=50, added=1_000, known=0)
    again = imported(settings, tmp_path, [*rows, "M1000,l7,77,sdm120,,,,,,,,,,12345"])
    assert again == GatewayImported(lines=0, added=1, known=1_000)
    assert asyncio.run(entered(settings.database_url)) == (50, 1_001)


WRONG = [
    ("M1,north,1,sdm999,10.0.0.7,,,,,,,,,", "line 2 column model: expected one of abb-b21"),
    ("M1,north,256,sdm120,10.0.0.7,,,,,,,,,", "line 2 column unit: expected a whole number from 0 to 255"),
    ("M1,north,1,em2m,10.0.0.7,,,,,,,,,", "line 2 column confirmed: expected base of a em2m confirmed by a probe"),
    ("M1,north,1,sdm120,10.0.0.7,,/dev/ttyS0,,,,,,,", "line 2 column port: expected one of tcp, rtu_tcp and port"),
    ("M1,north,1,sdm120,,,,9600,,,,,,", "line 2 column baud: expected it beside"),
    ("M1,north,1,sdm120,10.0.0.7:70000,,,,,,,,,", "line 2 column tcp: expected HOST:PORT"),
    ("M1,north,1,sdm120,10.0.0.7,,,,,,relay-coil,,,", "line 2 column relay_unit: expected one beside relay_model"),
    ("M1,north,1,sdm120,10.0.0.7,,,,,,sdm120,9,,", "line 2 column relay_model: expected one of relay-coil"),
    ("M1,north,1,ddsu666,10.0.0.7,,,,,,,,,77", "line 2 column device_serial: expected none"),
    ("M1,north,1,sdm120,,,,,,,,,,", "line 2 column line: expected tcp, rtu_tcp or port on a row of a new line"),
    ("M9,north,1,sdm120,10.0.0.7,,,,,,,,,", "line 2 column serial: expected a registered meter, got 'M9'"),
    ("M1,north,1,sdm120,10.0.0.7,,,,,,,,,\nM2,north,1,sdm120,,,,,,,,,,", "line 3 column unit: expected each unit"),
    ("M1,north,1,sdm120,10.0.0.7,,,,,,,,,\nM1,north,2,sdm120,,,,,,,,,,", "line 3 column serial: expected each value"),
    ("M1,north,1,sdm120,10.0.0.7,,,,,,,,,\nM2,north,2,sdm120,10.0.0.8,,,,,,,,,", "line 3 column line: expected one"),
    ("M1,north,1,sdm120,10.0.0.7,,,,,,,,,\nM2,south,2,sdm120,10.0.0.7,,,,,,,,,", "line 3 column line: expected one"),
    (
        "M1,north,1,sdm120,10.0.0.7,,,,,,relay-coil,9,1,\nM2,north,2,sdm120,,,,,,,relay-coil,9,1,",
        "line 3 column relay_unit: expected each relay for one meter",
    ),
    ("M1,there,9,sdm120,10.0.0.9,,,,,,,,,", "line 2 column line: expected the place that the line is entered with"),
    ("M1,other,9,sdm120,10.9.9.9,,,,,,,,,", "line 2 column line: expected one line to a place"),
    ("M1,there,1,sdm120,,,,,,,,,,", "line 2 column unit: expected a unit that no other meter has, got 1 of meter M0"),
]  # fmt: skip


def test_wrong_rows_are_named_by_line_and_nothing_is_written(settings: Settings, tmp_path: Path) -> None:
    """Each fault of a file is refused with line, column, what was expected and what was found; nothing is imported."""
    assert settings.database_url is not None
    asyncio.run(register(settings.database_url, 4))
    imported(settings, tmp_path, ["M0,there,1,sdm120,10.9.9.9,,,,,,,,,"])
    for rows, told in WRONG:
        with pytest.raises(ImportRefused, match="nothing was imported") as refused:
            imported(settings, tmp_path, ["M3,fine,1,sdm120,10.1.1.1,,,,,,,,,", rows][::-1])
        assert told in str(refused.value), rows
    assert asyncio.run(entered(settings.database_url)) == (1, 1)
