"""The `bench` commands on a very small load: the shape of the report, nothing lost, honest ratios. No timing."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from loadtests.bench_ingest import IngestLoad, bench_ingest
from loadtests.flood_frames import Mode
from loadtests.ingest_stage import last_month
from loadtests.scratch import BenchError
from prepaid.bench_commands import bench_app
from prepaid.settings import Settings

# Five turns of forty meters in a second.
METERS, CONNECTIONS, RATE = 40, 8, 200


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """A command sets up logging to its own standard error, which ends with the test."""
    yield
    structlog.reset_defaults()


def _run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(bench_app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.mark.db
@pytest.mark.broker
def test_bench_ingest_of_a_tiny_load_stores_and_charges_all_in_every_mode(data_dir: Path) -> None:
    """What is offered is acknowledged, stored and charged, the books are whole, and ratios are of figures beside."""
    report = _run(
        "ingest",
        *("--meters", str(METERS), "--connections", str(CONNECTIONS), "--rate", str(RATE), "--seconds", "1"),
        *("--data", str(data_dir)),
    )
    assert report["lost"] == 0
    assert report["complete"] is True
    assert report["settings"]["fsync"] == report["settings"]["synchronous_commit"] == "on"
    assert datetime.fromisoformat(report["measured_at"]).tzinfo == UTC
    assert {"cpu_model", "cores", "python", "postgresql", "nats_server", "file_system"} <= report["machine"].keys()
    assert [mode["mode"] for mode in report["modes"]] == ["single", "gateway", "block48"]
    for mode in report["modes"]:
        (burst,) = mode["bursts"]
        assert burst["messages_offered"] == burst["messages_published"] == burst["messages_pubacked"] == RATE
        assert burst["readings_stored"] == burst["readings_offered"] == RATE * mode["readings_per_message"]
        assert burst["duplicate"] == burst["rejected"] == burst["quarantined"] == burst["lost"] == 0
        assert burst["publish_to_puback_ms"]["of"] == burst["publish_to_commit_ms"]["of"] == RATE
        assert burst["publish_to_commit_ms"]["p50"] > burst["publish_to_puback_ms"]["p50"] > 0
        assert {"broker", "ingest", "database", "flood"} <= burst["cpu_seconds_per_million_readings"].keys()
        # The warm-up has charged one reading of each meter more.
        charged = mode["charged"]
        assert charged["charged"] == charged["stored"] == burst["readings_stored"] + METERS
        assert charged["charged_minor"] == charged["expected_minor"] > 0
        assert mode["audit"] == {"clean": True, "broken": []}
        assert mode["reference"]["readings"] == burst["readings_stored"]
        per_second = mode["reference"]["readings_per_second"]
        assert mode["ratio"] == pytest.approx(burst["readings_per_second_committed"] / per_second, abs=0.002)
    assert list(data_dir.iterdir()) == [], "the scratch folder is removed"


@pytest.mark.db
@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bench_ingest_beyond_its_knee_loses_nothing_and_drains(data_dir: Path) -> None:
    """Twice the highest rate that held is stored to the last acknowledged message, some time."""
    load = IngestLoad(
        modes=(Mode.SINGLE,),
        rate=4_000,
        seconds=2,
        meters=10_000,
        connections=500,
        processes=2,
        knee=True,
        overload=True,
        knee_step_s=1,
    )
    report = bench_ingest(Settings(data_dir=data_dir), load, lambda *_: None)
    assert report["lost"] == 0
    assert report["complete"] is True
    (mode,) = report["modes"]  # type: ignore[misc]  # The report is made of plain values.
    names = [burst["name"] for burst in mode["bursts"]]
    steps = len(mode["knee"]["steps"])
    assert names == ["sustained", *["knee"] * steps, "half_knee", "overload"]
    overload = mode["bursts"][-1]
    assert overload["messages_per_second_asked"] == pytest.approx(2 * mode["knee"]["messages_per_second"], abs=2)
    assert overload["readings_stored"] == overload["messages_pubacked"]


def test_bench_sts_reports_rates_of_both_ciphers_and_the_odds_of_random_digits() -> None:
    """Every token reads back as what it was made of, and random digits pass as often as the CRC lets them."""
    report = _run("sts", "--tokens", "200", "--fuzz", "2000")
    assert report["wrong"] == 0
    assert report["ciphers"].keys() == {"EA07", "EA11"}
    for figures in report["ciphers"].values():
        for job in ("module_issue", "module_decode", "engine_issue", "engine_decode"):
            rate, reference = figures[f"{job}_per_second"], figures["reference_per_second"]
            assert figures[f"ratio_{job}"] == round(rate / reference, 3)
    assert report["fuzz"]["sound"] is True
    assert all(report["fuzz"][cipher]["escaped"] == 0 for cipher in ("EA07", "EA11"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"meters": 0},
        {"connections": 0},
        {"meters": 10, "connections": 20},
        {"meters": 2_005},
        {"seconds": 0},
        {"rate": 0},
        {"processes": 33},
        {"overload": True},
    ],
)
def test_load_that_makes_no_sense_is_refused_before_anything_starts(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """A load that makes no sense is one line and leaves no folder."""
    settings = Settings(data_dir=tmp_path / "data")
    with pytest.raises(BenchError):
        bench_ingest(settings, IngestLoad(**wrong), lambda *_: None)
    assert not settings.data_dir.exists()


@pytest.mark.parametrize(
    ("today", "first"), [("2026-11-22", "2026-10-01"), ("2026-03-31", "2026-02-01"), ("2027-01-01", "2026-12-01")]
)
def test_accounts_open_on_the_first_day_of_the_month_before(today: str, first: str) -> None:
    """A benchmark's readings are of a billing period that is over."""
    assert last_month(date.fromisoformat(today)) == date.fromisoformat(first)
