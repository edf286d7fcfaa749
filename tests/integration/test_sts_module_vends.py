"""Vends and commands over a hardware security module, simulated on loopback."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from meter_sim.edges.security_module import Fault
from meter_sim.token_reader import EntryResult
from prepaid.keys import installation_module
from prepaid.module_commands import module_app
from prepaid.settings import SettingsError, load_settings
from tests.integration.module_bench import MAP_TEXT, REGISTERS, TIMES, open_bench
from tests.integration.vending_shop import Shop, open_shop

REGISTERS_JSON = {
    str(number): {
        "sgc": each.sgc,
        "krn": each.krn,
        "key_type": int(each.kt),
        "base_year": each.base_date.starts_at.year,
        "ken": each.ken,
        "key": each.key.hex(),
    }
    for number, each in REGISTERS.items()
}


async def _nothing_is_stored(shop: Shop) -> None:
    assert [await shop.count(table) for table in ("vends", "tokens", "journals")] == [0, 0, 0]


@pytest.mark.db
def test_vend_without_module_is_unavailable_and_sells_once_when_it_is_back(database_url: str) -> None:
    """503 with a time to come back, nothing stored under the message id; the same id then mints one token."""

    async def story() -> None:
        async with open_bench() as bench, open_shop(database_url, module=bench.client) as shop:
            port = bench.server.port
            await bench.server.stop()
            for _ in range(2):
                absent = await shop.vend("m-1")
                assert (absent.status_code, absent.json()["error"]["code"]) == (503, "module_unavailable")
                assert absent.headers["retry-after"] == "2"
                await _nothing_is_stored(shop)
            assert (await shop.get("/v1/vends/m-1")).json()["error"]["code"] == "unknown_vend"
            await bench.server.listen(port)
            sold = await shop.vend("m-1")
            assert sold.status_code == 200
            assert (await shop.vend("m-1")).content == sold.content
            assert bench.server.module.minted == 1
            entry = shop.token_reader().enter(sold.json()["token"]["digits"], now_ms=0)
            assert (entry.result, entry.amount, entry.tid) == (EntryResult.ACCEPTED, 50_002_624, sold.json()["tid"])

    asyncio.run(story())


@pytest.mark.db
def test_vend_whose_answer_is_lost_for_good_sells_later_under_the_same_tid(database_url: str) -> None:
    """The token of the lost answer was given to nobody: one TID, one token stored, one credit."""

    async def story() -> None:
        lost = True

        def fault_of(request: str) -> Fault:
            return Fault.SILENT if lost and request.startswith("SM?VC") else Fault.NONE

        async with open_bench(fault_of=fault_of) as bench, open_shop(database_url, module=bench.client) as shop:
            timed_out = await shop.vend("m-1")
            assert (timed_out.status_code, timed_out.json()["error"]["code"]) == (503, "module_timeout")
            await _nothing_is_stored(shop)
            assert bench.server.module.minted > 0
            lost = False
            sold = [await shop.vend("m-1"), await shop.vend("m-2")]
            assert [each.status_code for each in sold] == [200, 200]
            assert [await shop.count(table) for table in ("vends", "tokens")] == [2, 2]
            reader = shop.token_reader()
            for each in sold:
                entry = reader.enter(each.json()["token"]["digits"], now_ms=0)
                assert entry.result is EntryResult.ACCEPTED

    asyncio.run(story())


@pytest.mark.db
def test_module_that_stays_busy_is_answered_busy(database_url: str) -> None:
    """503 `module_busy` once the time of a request is over, and nothing stored."""

    async def story() -> None:
        times = replace(TIMES, request_s=0.3)
        async with (
            open_bench(fault_of=lambda request: Fault.BUSY, times=times) as bench,
            open_shop(database_url, module=bench.client) as shop,
        ):
            busy = await shop.vend("m-1")
            assert (busy.status_code, busy.json()["error"]["code"]) == (503, "module_busy")
            await _nothing_is_stored(shop)

    asyncio.run(story())


@contextmanager
def _simulated(folder: Path) -> Iterator[str]:
    """Run `prepaid module simulate` as a process of its own; give its address."""
    file = folder / "registers.json"
    file.write_text(json.dumps(REGISTERS_JSON), encoding="utf-8")
    command = [sys.executable, "-m", "prepaid", "module", "simulate", str(file), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"tcp://\S+", process.stdout.readline())
            assert found is not None
            yield found[0]
        finally:
            process.terminate()


def test_module_check_compares_the_registers_of_a_simulated_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started by its command, the module is asked who it is; agreement is printed, a difference stops a start."""
    with _simulated(tmp_path) as address:
        monkeypatch.setenv("PREPAID_STS_MODULE", address)
        monkeypatch.setenv("PREPAID_STS_MODULE_REGISTERS", MAP_TEXT)
        result = CliRunner().invoke(module_app, ["check", "--json"], catch_exceptions=False)
        report = json.loads(result.stdout)
        assert (report["module_id"], report["agree"], len(report["registers"])) == ("SIM00001", True, 5)
        assert report["registers"][1] == {"register": 2, "sgc": "201457", "krn": 2, "base_year": 2014, "ken": 200}
        monkeypatch.setenv("PREPAID_STS_MODULE_REGISTERS", "2=201457/2/2014/255")
        settings = load_settings()
        with pytest.raises(SettingsError, match=r"PREPAID_STS_MODULE: security module register 2: expected SGC"):
            asyncio.run(installation_module(settings, "postgresql://nobody"))
        refused = CliRunner().invoke(module_app, ["check"])
        assert isinstance(refused.exception, SettingsError)
    with pytest.raises(SettingsError, match="PREPAID_STS_MODULE: security module: expected a line to it"):
        asyncio.run(installation_module(settings, "postgresql://nobody"))


@pytest.mark.parametrize(
    ("module", "registers", "named"),
    [
        ("tcp://10.0.0.7:5100", None, "sts_module_registers beside it"),
        (None, "1=201457/1/2014/255", "sts_module_registers beside it"),
        ("10.0.0.7:5100", "1=201457/1/2014/255", "sts_module: expected tcp://"),
        ("tcp://10.0.0.7:5100", "1=201457", "sts_module_registers: expected register=SGC"),
    ],
)
def test_settings_of_a_module_are_whole_and_of_their_form(
    monkeypatch: pytest.MonkeyPatch, module: str | None, registers: str | None, named: str
) -> None:
    """An address without registers, registers without address, or either misspelt stops the start."""
    for name, text in (("PREPAID_STS_MODULE", module), ("PREPAID_STS_MODULE_REGISTERS", registers)):
        if text is not None:
            monkeypatch.setenv(name, text)
    with pytest.raises(SettingsError, match=named):
        load_settings()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"1": {}}', b'{"x": 1}', b"\xff", b'{"1": {"sgc": "a"}}'])
def test_simulated_module_refuses_a_file_of_another_form(tmp_path: Path, content: bytes) -> None:
    """One line names the file and what belongs in it."""
    file = tmp_path / "registers.json"
    file.write_bytes(content)
    result = CliRunner().invoke(module_app, ["simulate", str(file), "--port", "0"])
    assert "registers.json: expected a JSON object of registers" in str(result.exception)
