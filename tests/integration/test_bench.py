"""The `bench` commands on a very small load: the shape of the report, nothing lost, honest ratios. No timing."""

import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from loadtests.bench import BenchError, IngestLoad, bench_ingest, encode_copy, simulated_readings
from prepaid.bench_commands import bench_app
from prepaid.settings import Settings
from protocols.rows import ReadingRow

METERS, READINGS, BLOCK = 20, 2_000, 24
# Twenty meters with 100 intervals each: four blocks of 24 and one of 4; then three twentieths as single readings.
MESSAGES, SINGLES = 100, 300


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
def test_bench_ingest_of_a_tiny_load_stores_all_and_reports_both_runs(data_dir: Path) -> None:
    """Every reading offered is acknowledged and stored, and each ratio is that of the two figures beside it."""
    report = _run(
        "ingest",
        *("--meters", str(METERS), "--readings", str(READINGS), "--block", str(BLOCK), "--data", str(data_dir)),
    )
    assert report["lost"] == 0
    assert report["complete"] is True
    assert report["settings"]["fsync"] == report["settings"]["synchronous_commit"] == "on"
    assert datetime.fromisoformat(report["measured_at"]).tzinfo == UTC
    assert {"cpu_model", "cores", "python", "postgresql", "nats_server", "file_system"} <= report["machine"].keys()
    assert [(row["block"], row["offered"], row["messages"]) for row in report["rows"]] == [
        (BLOCK, READINGS, MESSAGES),
        (1, SINGLES, SINGLES),
    ]
    for row in report["rows"]:
        assert row["messages_pubacked"] == row["messages"]
        assert row["stored"] == row["offered"] == row["reference"]["readings"]
        assert row["duplicate"] == row["rejected"] == row["quarantined"] == row["lost"] == 0
        assert row["reference"]["batch"] == row["readings_per_transaction"] >= 1
        assert row["ratio"] == round(row["readings_per_second"] / row["reference"]["readings_per_second"], 3)
    assert list(data_dir.iterdir()) == [], "the scratch folder is removed"


def test_bench_sts_reports_rates_beside_the_bare_ciphers() -> None:
    """Every token minted reads back as what it was made of."""
    report = _run("sts")
    assert report["wrong"] == 0
    assert report["ratio_mint"] == round(report["mints_per_second"] / report["reference_per_second"], 3)
    assert report["ratio_decode"] == round(report["decodes_per_second"] / report["reference_per_second"], 3)


@pytest.mark.parametrize(
    ("readings", "block", "meters"),
    [(100, 0, 10), (100, 97, 10), (5, 24, 10), (100, 24, 0), (2_000_001, 24, 10)],
)
def test_load_out_of_bounds_is_refused_before_anything_starts(
    tmp_path: Path, readings: int, block: int, meters: int
) -> None:
    """A load that makes no sense is one line and leaves no folder."""
    settings = Settings(data_dir=tmp_path / "data")
    with pytest.raises(BenchError):
        bench_ingest(settings, IngestLoad(readings=readings, block=block, meters=meters), lambda *_: None)
    assert not settings.data_dir.exists()


def test_simulated_registers_only_rise() -> None:
    """A simulated register never falls, so that no reading of the benchmark is held."""
    register_wh = simulated_readings(1_234, range(2_000), 0).import_wh
    assert register_wh == sorted(set(register_wh))


def test_encoded_row_is_that_of_the_binary_copy_format() -> None:
    """A row has a field count, then length and value of each column; null is length -1 (made by hand)."""
    row = ReadingRow(7, datetime(2000, 1, 1, 0, 0, 1, tzinfo=UTC), 11, None, 1, 2, 3, 4, 5)
    fields = [
        *(struct.pack(">iq", 8, 1_000_000), struct.pack(">iq", 8, 11), b"\xff\xff\xff\xff"),
        *(struct.pack(">ii", 4, number) for number in (1, 2, 3, 4, 5)),
    ]
    expected = struct.pack(">hii", 9, 4, 7) + b"".join(fields)
    assert encode_copy([row]) == b"PGCOPY\n\xff\r\n\x00" + bytes(8) + expected + b"\xff\xff"
