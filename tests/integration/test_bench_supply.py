"""`bench supply` on a very small load: all real processes, everything counted, nothing astray. No timing."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from loadtests.bench_supply import QUICK, SupplyLoad, bench_supply
from loadtests.scratch import BenchError
from loadtests.supply_orders import Order, order_counts, percentiles_ms, to_published
from prepaid.bench_commands import bench_app
from prepaid.settings import Settings


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """A command sets up logging to its own standard error, which ends with the test."""
    yield
    structlog.reset_defaults()


@pytest.mark.slow
@pytest.mark.db
@pytest.mark.broker
def test_bench_supply_of_a_tiny_load_cuts_and_restores_everybody_and_loses_nothing(data_dir: Path) -> None:
    """Each reading is stored, each order published and confirmed, each cut-off followed by a recharge and a restore."""
    result = CliRunner().invoke(
        bench_app, ["supply", "--quick", "--json", "--data", str(data_dir)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["complete"] is True
    assert report["lost"] == report["unpublished"] == report["areas_held_back"] == 0
    assert datetime.fromisoformat(report["measured_at"]).tzinfo == UTC
    assert {"cpu_model", "cores", "python", "postgresql", "nats_server", "file_system"} <= report["machine"].keys()
    assert report["settings"]["fsync"] == report["settings"]["track_commit_timestamp"] == "on"

    load = report["load"]
    assert load["offered"] == load["pubacked"] == load["stored"] == QUICK.readings
    assert load["duplicate"] == load["rejected"] == load["quarantined"] == 0
    number = report["cut_offs"]["written"]
    assert number > 0, "the load takes somebody below zero"
    assert report["recharges"] == {"sold": number, "refused": 0, "asked_again": 0}
    for name, caused in (("cut_offs", "reading_to_meter_ms"), ("restores", "request_to_meter_ms")):
        orders = report[name]
        assert orders["written"] == orders["published"] == orders["confirmed"] + orders["superseded"] == number
        assert orders["unpublished"] == orders["unconfirmed"] == 0
        for took in ("commit_to_published_ms", "commit_to_meter_ms", caused):
            assert orders[took]["of"] == number, "every order was seen on its way"
            assert 0 < orders[took]["p50"] <= orders[took]["p95"] <= orders[took]["p99"] <= orders[took]["max"]
    assert all(used >= 0 for used in report["cpu_seconds"].values())
    assert list(data_dir.iterdir()) == [], "the scratch folder is removed"


def test_percentiles_are_by_nearest_rank_and_leave_out_what_never_came() -> None:
    """Of a hundred durations of 1 to 100 ms, p99 is the ninety-ninth; an order that never left has none."""
    orders = [_order(number, committed_us=1, published_us=number * 1_000 + 1) for number in range(1, 101)]
    orders.append(_order(101, committed_us=1, published_us=None))
    assert percentiles_ms(orders, to_published) == {"of": 100, "p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert order_counts(orders)["unpublished"] == 1
    assert percentiles_ms([], to_published) == {"of": 0}


@pytest.mark.parametrize(
    ("accounts", "per_second", "seconds", "areas"),
    [(0, 10, 1, 1), (10, 0, 1, 1), (10, 10, 0, 1), (10, 10, 1, 0), (10, 461, 1, 1), (100_000, 5_000, 401, 1)],
)
def test_load_out_of_bounds_is_refused_before_anything_starts(
    tmp_path: Path, accounts: int, per_second: int, seconds: int, areas: int
) -> None:
    """A load that makes no sense is one line and leaves no folder."""
    settings = Settings(data_dir=tmp_path / "data")
    load = SupplyLoad(
        accounts=accounts,
        per_second=per_second,
        seconds=seconds,
        areas=areas,
        margin_days=1,
        recharge_after_s=0.1,
    )
    with pytest.raises(BenchError):
        bench_supply(settings, load, lambda *_: None)
    assert not settings.data_dir.exists()


def _order(number: int, *, committed_us: int, published_us: int | None) -> Order:
    return Order(
        id=number,
        number=number,
        relay="off",
        state="confirmed",
        attempts=1,
        created_us=0,
        committed_us=committed_us,
        published_us=published_us,
    )
