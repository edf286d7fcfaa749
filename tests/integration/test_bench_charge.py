"""The benchmarks with very many accounts, on very few: the report's shape, honest ratios, a sound state. No timing."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import LocalCalendar
from db.audit import run_checks
from db.pool import connect
from loadtests.bench_accounts import AccountsLoad, bench_accounts
from loadtests.bench_charge import QUICK, ChargeLoad, bench_charge, prepare
from loadtests.scratch import BenchError
from prepaid.settings import Settings

ACCOUNTS, READINGS = 300, 200


def _no_progress(*_: object) -> None:
    pass


@pytest.mark.db
def test_seeded_accounts_are_what_the_auditor_finds_clean(database_url: str) -> None:
    """Accounts opened by sets keep every invariant, as if they had been opened one by one."""
    calendar = LocalCalendar(ZoneInfo("Asia/Kolkata"))

    async def story() -> None:
        await prepare(database_url, ACCOUNTS, calendar)
        async with await connect(database_url, application="test") as conn:
            report = await run_checks(conn, calendar)
            checked = {check.id: check.checked for check in report.checks}
            assert checked["I1"] == checked["I2"] == checked["I8"] == ACCOUNTS
            assert [check.line() for check in report.checks if check.broken] == []
            # What is opened next gets a number of its own.
            cursor = await conn.execute("insert into consumers (name) values ('next') returning id")
            assert await cursor.fetchone() == (ACCOUNTS + 1,)

    asyncio.run(story())


@pytest.mark.db
def test_bench_charge_of_a_tiny_load_reports_every_pair(data_dir: Path) -> None:
    """Both runs of a pair store all readings; ratios are those of the figures; nothing is left behind."""
    report: dict[str, Any] = bench_charge(Settings(data_dir=data_dir), QUICK, _no_progress)
    assert report["complete"] is True, "the sum of charges is that of the plain rating of the rows"
    assert report["deadlocks"] == 0
    assert report["settings"]["fsync"] == report["settings"]["synchronous_commit"] == "on"
    assert datetime.fromisoformat(report["measured_at"]).tzinfo == UTC
    assert [(row["writers"], row["batch"]) for row in report["rows"]] == [(1, 20), (1, 100), (2, 20), (2, 100)]
    for row in report["rows"]:
        assert row["readings"] == READINGS
        assert row["batches"] >= READINGS // row["batch"]
        assert row["ratio_lowest"] <= row["ratio"] <= row["ratio_highest"]
        rates = row["charge"]["readings_per_second"] / row["bare"]["readings_per_second"]
        assert row["ratio"] == pytest.approx(rates, abs=0.01)
        assert row["charge"]["wal_bytes_per_reading"] > 0
    days = report["with_close_day"]
    assert days["readings"] == 48 * QUICK.day_accounts
    assert days["ratio_lowest"] <= days["ratio"] <= days["ratio_highest"] < days["ratio_without"]
    assert list(data_dir.iterdir()) == [], "the scratch folder is removed"


@pytest.mark.db
def test_bench_accounts_of_a_tiny_load_sweeps_all_and_tells_their_room(data_dir: Path) -> None:
    """Every account is opened and charged once; each table has a size before and after."""
    report: dict[str, Any] = bench_accounts(
        Settings(data_dir=data_dir), AccountsLoad(accounts=ACCOUNTS, writers=2), _no_progress
    )
    assert report["complete"] is True
    assert report["sweep"]["readings"] == ACCOUNTS
    assert report["bytes_opened"].keys() == report["bytes_swept"].keys() >= {"accounts", "readings"}
    assert report["accounts_table_bytes_each"] == pytest.approx(
        report["bytes_swept"]["accounts"]["table"] / ACCOUNTS, abs=0.1
    )


@pytest.mark.parametrize(
    "load",
    [
        ChargeLoad(accounts=0, readings=1, pairs=1),
        ChargeLoad(accounts=10, readings=11, pairs=1),
        ChargeLoad(accounts=10, readings=10, pairs=0),
        ChargeLoad(accounts=10, readings=10, pairs=8),
        ChargeLoad(accounts=10, readings=10, pairs=1, batches=(0,)),
        ChargeLoad(accounts=10, readings=10, pairs=1, writers=(33,)),
    ],
)
def test_load_out_of_bounds_is_refused_before_anything_starts(tmp_path: Path, load: ChargeLoad) -> None:
    """A load that makes no sense is one line and leaves no folder."""
    settings = Settings(data_dir=tmp_path / "data")
    with pytest.raises(BenchError):
        bench_charge(settings, load, _no_progress)
    assert not settings.data_dir.exists()
