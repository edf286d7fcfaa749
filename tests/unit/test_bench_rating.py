"""The rating benchmark, on very few accounts: the report's shape and that nothing is wrong. No timing."""

from __future__ import annotations

from typing import Any

import pytest

from billing.rating_batch import charge_totals
from billing.tariff_document import builtin_documents
from loadtests import bench_rating as bench

ACCOUNTS = 300


def test_bench_rating_reports_every_batch_size_beside_the_plain_form() -> None:
    """Both mixes have a reference and a ratio for each batch size; no result differs from the plain form's."""
    report: dict[str, Any] = bench.bench_rating(ACCOUNTS)
    assert report["wrong"] == 0
    assert report["accounts"] == ACCOUNTS
    assert report["tariffs"] == len(builtin_documents())
    assert [mix["mix"] for mix in report["mixes"]] == ["all tariffs", bench.DOMESTIC]
    for mix in report["mixes"]:
        assert mix["reference_per_second_and_core"] > 0
        assert [row["batch"] for row in mix["batches"]] == list(bench.BATCHES)
        assert all(row["ratio_totals"] > 0 and row["ratio_lines"] > 0 for row in mix["batches"])


def test_bench_rating_counts_every_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A total that is off by one in each batch is counted once for each batch, size and mix."""

    def off_by_one(*args: Any, **kwargs: Any) -> Any:
        totals = charge_totals(*args, **kwargs)
        totals[0] += 1
        return totals

    monkeypatch.setattr(bench, "charge_totals", off_by_one)
    assert bench.bench_rating(ACCOUNTS)["wrong"] == 2 * len(bench.BATCHES)
