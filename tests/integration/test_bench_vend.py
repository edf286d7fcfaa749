"""`bench vend` and the stations of locust on a very small load: all real processes, everything counted. No timing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from loadtests.bench_vend import QUICK
from loadtests.bench_vend_proof import count_kept
from prepaid.bench_commands import bench_app
from tests.faults.vend_street import Street, api_processes, open_street, prove, station
from tests.integration.vending_shop import MASTER

pytestmark = pytest.mark.db

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """A command sets up logging to its own standard error, which ends with the test."""
    yield
    structlog.reset_defaults()


@pytest.mark.slow
def test_bench_vend_of_a_tiny_load_sells_each_vend_once_and_loses_nothing(data_dir: Path) -> None:
    """Each vend that was answered is there once, with journal and token; books agree; the folder is removed."""
    result = CliRunner().invoke(
        bench_app, ["vend", "--quick", "--json", "--data", str(data_dir)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    assert (report["lost"], report["books_agree"], report["complete"]) == (0, True, True)
    many = report["many_vendors"]
    assert many["offered"] == many["answered"] == many["kept"] == QUICK.rate * QUICK.seconds
    assert report["one_hot_vendor"]["kept"] == QUICK.hot_rate * QUICK.hot_seconds
    for name in ("bare", "many_vendors", "one_hot_vendor"):
        took = report[name]["due_to_answer_ms"]
        assert 0 < took["p50"] <= took["p95"] <= took["p99"] <= took["max"]
    assert many["commits"] >= many["answered"]
    assert list(data_dir.iterdir()) == [], "the scratch folder is removed"


def test_vends_that_are_missing_or_torn_are_counted(database_url: str) -> None:
    """The proof of the benchmark finds what it looks for: answered and not there, there and not heard."""

    async def story() -> None:
        async with open_street(database_url) as street:
            vendor = street.vendor_id
            await street.conn.execute(
                b"insert into vends (vendor_id, message_id, request_sha256, amount_minor, status, answer, state,"
                b" funding) values (%s, 'refused', sha256('x'), 100, 404, '{}', 'refused', 'vendor')",
                (vendor,),
            )
            kept = await count_kept(street.conn, [vendor, vendor], ["refused", "never"], [True, False])
            assert (kept.kept, kept.lost, kept.unheard, kept.torn) == (0, 1, 0, 0)

    asyncio.run(story())


@pytest.mark.slow
def test_stations_of_locust_are_answered_within_their_limits(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few terminals buy, ask again, reprint, mistype and try for some seconds; nothing fails, the books are sound."""
    monkeypatch.setenv("PREPAID_MASTER_KEY", MASTER.hex())

    async def story() -> None:
        async with open_street(database_url, homes=5) as street, api_processes([database_url], data_dir) as (system,):
            async with station(system.api_url, street.key) as till:
                assert (await till.post("/v1/vends", json=street.body("first"))).status_code == 200
            run = await asyncio.to_thread(_swarm, system.api_url, street, data_dir)
            assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
            assert await street.one("select count(*) from vends where journal_id is not null") > 1
            await prove(street)

    asyncio.run(story())


def _swarm(address: str, street: Street, folder: Path) -> subprocess.CompletedProcess[str]:
    meters = folder / "serials.txt"
    meters.write_text("\n".join(home.serial for home in street.homes), encoding="utf-8")
    asked = ["--host", address, "--headless", "--users", "4", "--spawn-rate", "4", "--run-time", "8s"]
    return subprocess.run(
        [sys.executable, "-m", "locust", "-f", str(_ROOT / "loadtests" / "vending_users.py"), *asked],
        env={**os.environ, "STATION_KEY": street.key.header, "STATION_METERS": str(meters)},
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
