"""`bench gateway` on a very small load: all real processes, everything counted, nothing lost. No timing."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from headend.polling import phase_of
from loadtests.bench_gateway import QUICK, bench_gateway, served
from loadtests.bench_gateway_town import METERS_STEP, ailing, models, plan_lines, units_of
from loadtests.scratch import BenchError
from prepaid.bench_commands import bench_app
from prepaid.settings import Settings

BEGIN_S = 1_790_000_000.0


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """A command sets up logging to its own standard error, which ends with the test."""
    yield
    structlog.reset_defaults()


@pytest.mark.slow
@pytest.mark.db
@pytest.mark.broker
def test_bench_gateway_of_a_tiny_town_stores_every_place_and_charges_it(data_dir: Path) -> None:
    """Each meter that is well has a reading for each place, also beside dead ones; all is charged, the audit clean."""
    result = CliRunner().invoke(
        bench_app, ["gateway", "--quick", "--json", "--data", str(data_dir)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["complete"] is True
    assert report["lost"] == 0
    assert report["audit"] == {"clean": True, "broken": []}
    assert {"cpu_model", "cores", "python", "postgresql", "nats_server", "file_system"} <= report["machine"].keys()
    assert sum(report["makes"].values()) == report["meters"] == QUICK.meters
    assert set(report["makes"]) == set(models()), "every make that needs no probe takes part"
    all_well, some_ail = report["rounds"]
    assert all_well["ailing"] is None
    assert all_well["well"]["meters"] == QUICK.meters
    assert some_ail["well"]["meters"] + some_ail["ailing"]["meters"] == QUICK.meters
    for each in (all_well, some_ail):
        well = each["well"]
        assert well["offered"] == well["stored"] >= well["meters"] * (QUICK.seconds // QUICK.poll_s - 1)
        assert {"gateway", "ingest", "simulated_meters", "whole_machine"} <= each["cpu_seconds"].keys()
    charged = report["charged"]
    assert charged["charged"] == charged["stored"] > 0
    assert charged["accounts_wrong"] == 0
    for client in ("ours", "pymodbus"):
        assert report["raw_polls"][client]["polls"] > 0
    assert list(data_dir.iterdir()) == [], "the scratch folder is removed"


def test_places_without_a_reading_are_lost_and_second_readings_are_counted() -> None:
    """A reading belongs to the latest place before it; one that comes late is late, one that is missing is lost."""
    poll_s, serial = 60, "BN-1"
    first_s = BEGIN_S + (phase_of(serial, poll_s) - BEGIN_S) % poll_s
    at = [first_s + 0.5, first_s + 60 + 4, first_s + 60 + 30, first_s + 180, first_s - 60]
    readings = [(serial, datetime.fromtimestamp(each, UTC)) for each in at] + [("BN-2", datetime.now(UTC))]
    found = served(readings, [serial], poll_s=poll_s, begin_s=BEGIN_S, end_s=BEGIN_S + 240)
    assert (found.offered, found.stored, found.lost, found.doubled) == (4, 3, 1, 1)
    assert found.late_s == pytest.approx((0, 0.5, 4), abs=1e-3)


def test_town_has_every_meter_once_each_make_and_every_kind_of_line() -> None:
    """Meters stand on lines of one, five and ten; one in ten ails, on lines of every kind; units do not collide."""
    makes = models()
    lines = plan_lines(2_000, makes)
    units = list(units_of(lines))
    assert [unit.number for unit in units] == list(range(1, 2_001))
    assert {unit.model for unit in units} == set(makes)
    assert all(len({unit.unit for unit in line.units}) == len(line.units) for line in lines)
    ill = {ailment.number for ailment in ailing(2_000, 1_000)}
    assert len(ill) == 2_000 // 10
    kinds = {(line.framing, len(line.units)) for line in lines}
    assert {(line.framing, len(line.units)) for line in lines for unit in line.units if unit.number in ill} == kinds


@pytest.mark.parametrize(
    "change", [{"meters": METERS_STEP + 1}, {"meters": 0}, {"poll_s": 0}, {"seconds": 1.0}, {"raw_pairs": 0}]
)
def test_load_out_of_bounds_is_refused_before_anything_starts(tmp_path: Path, change: dict[str, Any]) -> None:
    """A load that makes no sense is one line and leaves no folder."""
    settings = Settings(data_dir=tmp_path / "data")
    with pytest.raises(BenchError):
        bench_gateway(settings, replace(QUICK, **change), lambda *_: None)
    assert not settings.data_dir.exists()
