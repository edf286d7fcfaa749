"""Makers' device lists on a real PostgreSQL: keys in once, sealed, from a private file, and tokens made with them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

from db.paygo_devices import read_paygo_device
from db.pool import connect
from meter_sim.openpaygo_reader import OpenPaygoReader
from prepaid.__main__ import app
from prepaid.csv_lines import ImportRefused
from prepaid.imports import run_import_meters
from prepaid.keys import soft_security_module
from prepaid.paygo_import import ImportedKeys, run_import_device_keys
from prepaid.settings import Settings
from vending.openpaygo.devices import PaygoDevice
from vending.openpaygo.tokens import PaygoKind, next_count

pytestmark = pytest.mark.db

# Origin: the example device list of EnAccess/OpenPAYGO-Token, published test keys.
HEADER = "Serial Number,Starting Code,Key,Count,Time Divider,Restricted Digit Mode,Hardware Model,Version,Test Code"
KEYS = ("bc41ec9530f6dac86b1a29ab82edc5fb", "dac86b1a29ab82edc5fbbc41ec9530f6")
LINES = (
    HEADER,
    f"SLT220000001,516959010,{KEYS[0]},1,4,1,SuperLight,X20,",
    f"SLT240000002,432435255,{KEYS[1]},10,,0,SuperLight,X40,999333777",
)
NOW_MS = 1_795_000_000_000
DAY_MS = 86_400_000


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """An installation on the test's own database, with both meters registered."""
    made = Settings(database_url=database_url, data_dir=tmp_path / "var")
    meters = tmp_path / "meters.csv"
    meters.write_text("serial,rated_w,register_end_wh\nSLT220000001,60,1000000\nSLT240000002,60,1000000\n")
    assert run_import_meters(made, meters) == (2, 0)
    return made


def write(tmp_path: Path, *lines: str, mode: int = 0o600) -> Path:
    path = tmp_path / "devices.csv"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(mode)
    return path


def imported(settings: Settings, file: Path, *, replace: bool = False) -> ImportedKeys:
    return run_import_device_keys(settings, file, by="A. Kaur", replace=replace)


def refused(settings: Settings, file: Path) -> str:
    with pytest.raises(ImportRefused) as caught:
        imported(settings, file)
    message = str(caught.value)
    assert not [key for key in KEYS if key[:8] in message.lower()]
    return message


def stored(settings: Settings, query: str) -> list[tuple[object, ...]]:
    assert settings.database_url is not None
    with psycopg.connect(settings.database_url) as conn:
        return conn.execute(query.encode()).fetchall()


def test_tokens_under_imported_keys_are_taken_by_the_devices(settings: Settings, tmp_path: Path) -> None:
    """From the maker's list through sealed rows and the module to the keypad, each device in its own form of token."""
    assert imported(settings, write(tmp_path, *LINES)) == ImportedKeys(new=2, same=0, replaced=0, sharing=0)
    counts = dict(stored(settings, "select serial, last_tid from last_tids join meters on id = meter_id where era = 0"))
    assert counts == {"SLT220000001": 1, "SLT240000002": 10}

    async def mint(serial: str, last_count: int) -> str:
        assert settings.database_url is not None
        module = await soft_security_module(settings, settings.database_url)
        async with await connect(settings.database_url, application="test") as conn:
            cursor = await conn.execute("select id from meters where serial = %s", (serial,))
            ((meter_id,),) = await cursor.fetchall()
            row = await read_paygo_device(conn, meter_id)
        assert row is not None
        device = PaygoDevice(
            serial=row.serial,
            starting_code=row.starting_code,
            time_divider=row.time_divider,
            restricted_digits=row.restricted_digits,
            extended=row.extended,
        )
        count = next_count(last_count, PaygoKind.ADD_TIME)
        token = await module.mint_paygo(
            device, sealed_key=row.sealed_key, kind=PaygoKind.ADD_TIME, value=2 * row.time_divider, count=count
        )
        return token.digits

    readers = (
        OpenPaygoReader(bytes.fromhex(KEYS[0]), 516959010, time_divider=4, four_keys=True),
        OpenPaygoReader(bytes.fromhex(KEYS[1]), 432435255),
    )
    for reader, (serial, last_count) in zip(readers, counts.items(), strict=True):
        digits = asyncio.run(mint(str(serial), int(str(last_count))))
        assert reader.enter(digits, NOW_MS).accepted
        assert reader.time_left_ms(NOW_MS) == 2 * DAY_MS


def test_keys_lie_sealed_and_a_second_run_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    """No row holds a key in any of its bytes; the same list again is all known; a count is never lowered."""
    file = write(tmp_path, *LINES)
    imported(settings, file)
    rows = stored(settings, "select sealed_key, d::text from paygo_devices d")
    assert len(rows) == 2
    for sealed, text in rows:
        assert isinstance(sealed, bytes)
        assert not [key for key in KEYS if bytes.fromhex(key) in sealed or key in str(text)]
    lower = write(tmp_path, *(line.replace(",10,", ",3,") for line in LINES))
    assert imported(settings, lower) == ImportedKeys(new=0, same=2, replaced=0, sharing=0)
    assert stored(settings, "select max(last_tid) from last_tids where era = 0") == [(10,)]


def test_key_that_differs_is_refused_unless_it_replaces(settings: Settings, tmp_path: Path) -> None:
    """A device's key is not exchanged unseen; whoever shares a key is counted."""
    imported(settings, write(tmp_path, *LINES))
    other = write(tmp_path, HEADER, LINES[1], LINES[2].replace(KEYS[1], KEYS[0]))
    assert "line 3 column serial number: expected a device as it is known" in refused(settings, other)
    assert imported(settings, other, replace=True) == ImportedKeys(new=0, same=1, replaced=1, sharing=2)
    assert imported(settings, other) == ImportedKeys(new=0, same=2, replaced=0, sharing=2)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_list_that_others_may_read_is_refused(settings: Settings, tmp_path: Path, mode: int) -> None:
    """Open keys in a file for everybody are a leak already; they are not taken as if they were secret."""
    assert f"got mode {mode:03o}" in refused(settings, write(tmp_path, *LINES, mode=mode))


def test_wrong_lines_are_named_without_their_fields_and_nothing_is_written(settings: Settings, tmp_path: Path) -> None:
    """Line, column and what was expected, for every error; a key in the wrong column shows in none."""
    file = write(
        tmp_path,
        HEADER,
        f"SLT220000001,{KEYS[0]},516959010,1,4,1,,,",
        f"SLT 24,432435255,{KEYS[1]},10,256,2,,,",
    )
    message = refused(settings, file)
    for place in (
        "line 2 column key: expected 32 hexadecimal digits, got another text",
        "line 2 column starting code: expected a whole number",
        "line 3 column serial number",
        "line 3 column time divider: expected a whole number from 1 to 255",
        "line 3 column restricted digit mode",
    ):
        assert place in message
    twice = write(tmp_path, HEADER, LINES[1], LINES[1], f"SLT9,1,{KEYS[1]},,,,,,")
    assert "line 3 column serial number: expected each device once" in refused(settings, twice)
    unknown = write(tmp_path, HEADER, LINES[1], f"SLT9,1,{KEYS[1]},,,,,,")
    assert "line 3 column serial number: expected a registered meter" in refused(settings, unknown)
    assert "column key: expected this column" in refused(
        settings, write(tmp_path, "Serial Number,Starting Code", "A,1")
    )
    assert "another one" in refused(settings, write(tmp_path, f"{HEADER},{KEYS[0]}", f"{LINES[1]},"))
    assert stored(settings, "select count(*) from paygo_devices") == [(0,)]


def test_command_prints_counts_and_asks_to_destroy_the_list(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed names the file and no key."""
    assert settings.database_url is not None
    monkeypatch.setenv("PREPAID_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("PREPAID_DATA_DIR", str(settings.data_dir))
    file = write(tmp_path, *LINES)
    shown = CliRunner().invoke(app, ["paygo", "import-keys", str(file), "--by", "A. Kaur", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout) == {"new": 2, "same": 0, "replaced": 0, "sharing": 0, "file": file.name}
    assert "destroy it" in shown.stderr
    assert not [key for key in KEYS if key in shown.output]
