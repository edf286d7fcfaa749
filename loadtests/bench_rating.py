"""`bench rating`: accounts rated per second and core by vectorised rating, beside the plain form on the same accounts.

Stage: the computing part of every balance and of closing a day. One mix of accounts is of all tariffs that ship with
the product in equal parts, with loads, areas, seasons and energies mixed: worse than any city; the other is of the
usual domestic tariff alone. All is timed by the processor time of this one thread, so that a figure is per core and
hardly depends on who else runs. Every result of every batch size is compared with the plain form's.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from random import Random
from statistics import median
from typing import Final

import numpy as np
import numpy.typing as npt

from billing.rate_table import RateTable
from billing.rating import Lines, Quantities, charge_to_date, total
from billing.rating_batch import account_lines, charge_lines, charge_totals
from billing.tariff import Rates, Tariff
from billing.tariff_document import builtin_documents, parse_tariff
from loadtests.bench_machine import machine_facts, measured_at

# The plain form takes some 20 microseconds for each account: its runs are 6 seconds a mix.
ACCOUNTS: Final = 100_000
BATCHES: Final = (1_000, 5_000, 20_000)
RUNS: Final = 5
PLAIN_RUNS: Final = 3
# What most accounts of a city are rated by.
DOMESTIC: Final = "punjab-ds-2026-27"
LOADS_W: Final = (500, 1_000, 2_000, 3_000, 5_000, 7_000, 8_000, 15_000, 30_000, 60_000)
AREAS: Final = ("urban", "rural")
MONTH_DAYS: Final = (28, 30, 31)
_SEED: Final = 20_260_401
WORK_PER_ACCOUNT: Final = {
    "totals": "all lines to date of a bill part and their sum",
    "lines": "the same, and each account's lines by name as its journal of a day books them",
    "reference": "the plain form, billing.rating, one account at a time: lines and their sum",
}

Int64 = npt.NDArray[np.int64]
Account = tuple[Rates, Quantities]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Accounts as the arguments of vectorised rating."""

    table: RateTable
    rows: Int64
    before_wh: Int64
    energy_wh: Int64
    days: Int64
    zone_wh: Int64
    demand_w: Int64

    def totals(self) -> list[int]:
        """Rate the batch; return the sum of each account's lines."""
        totals: list[int] = charge_totals(
            self.table,
            self.rows,
            self.before_wh,
            self.energy_wh,
            self.days,
            zone_wh=self.zone_wh,
            demand_w=self.demand_w,
        ).tolist()
        return totals

    def lines(self) -> list[Lines]:
        """Rate the batch; return each account's lines."""
        groups = charge_lines(
            self.table,
            self.rows,
            self.before_wh,
            self.energy_wh,
            self.days,
            zone_wh=self.zone_wh,
            demand_w=self.demand_w,
        )
        return account_lines(groups, len(self.rows))


def bench_rating(accounts: int = ACCOUNTS) -> dict[str, object]:
    """Measure vectorised rating; return the report."""
    facts = machine_facts()
    tariffs = [parse_tariff(text) for _, text in sorted(builtin_documents().items())]
    domestic = [tariff for tariff in tariffs if tariff.id == DOMESTIC]
    reports, wrong = [], 0
    for name, mixed in (("all tariffs", tariffs), (DOMESTIC, domestic)):
        report, wrong_of_mix = _measured(name, _accounts(mixed, accounts))
        reports.append(report)
        wrong += wrong_of_mix
    return {
        "benchmark": "rating",
        "measured_at": measured_at(),
        "machine": facts,
        "work_per_account": WORK_PER_ACCOUNT,
        "tariffs": len(tariffs),
        "accounts": accounts,
        "runs": RUNS,
        "mixes": reports,
        "wrong": wrong,
    }


def _measured(name: str, accounts: Sequence[Account]) -> tuple[dict[str, object], int]:
    """Rate one mix in both forms; return its report and how many results were wrong."""
    expected = [charge_to_date(rates, used) for rates, used in accounts]
    expected_minor = [total(lines) for lines in expected]
    expected_lines = [{line: amount for line, amount in lines.items() if amount} for lines in expected]
    table = RateTable()
    by_size = {size: _batches(table, accounts, size) for size in BATCHES}
    wrong = sum(
        _differing([each for batch in batches for each in batch.totals()], expected_minor)
        + _differing([each for batch in batches for each in batch.lines()], expected_lines)
        for batches in by_size.values()
    )
    # What is kept to compare with would have to be looked through whenever a timed run makes dicts.
    gc.collect()
    gc.freeze()
    plain = _per_second(partial(_rate_plainly, accounts), len(accounts), PLAIN_RUNS)
    rows: list[dict[str, object]] = []
    for size, batches in by_size.items():
        totals = _per_second(partial(_each, _Batch.totals, batches), len(accounts), RUNS)
        lines = _per_second(partial(_each, _Batch.lines, batches), len(accounts), RUNS)
        rows.append(
            {
                "batch": size,
                "totals_per_second_and_core": totals,
                "lines_per_second_and_core": lines,
                "ratio_totals": round(totals / plain, 1),
                "ratio_lines": round(lines / plain, 1),
                "microseconds_a_batch": round(size / totals * 1e6),
            }
        )
    gc.unfreeze()
    report: dict[str, object] = {
        "mix": name,
        "rows": len(table),
        "reference_per_second_and_core": plain,
        "batches": rows,
        "wrong": wrong,
    }
    return report, wrong


def _rate_plainly(accounts: Sequence[Account]) -> None:
    for rates, used in accounts:
        total(charge_to_date(rates, used))


def _each(rate: Callable[[_Batch], object], batches: Sequence[_Batch]) -> None:
    for batch in batches:
        rate(batch)


def _per_second(job: Callable[[], object], accounts: int, runs: int) -> int:
    seconds = []
    for _ in range(runs):
        began_s = time.thread_time()
        job()
        seconds.append(time.thread_time() - began_s)
    return round(accounts / median(seconds))


def _differing(found: Sequence[object], expected: Sequence[object]) -> int:
    return sum(a != b for a, b in zip(found, expected, strict=True))


def _accounts(tariffs: Sequence[Tariff], count: int) -> list[Account]:
    """Draw accounts of some tariffs in turn, the same ones at every call."""
    rng = Random(_SEED)
    rates = {tariff.id: [_rates(tariff, rng) for _ in range(200)] for tariff in tariffs}
    accounts = []
    for number in range(count):
        drawn = rng.choice(rates[tariffs[number % len(tariffs)].id])
        accounts.append((drawn, _quantities(drawn, rng)))
    rng.shuffle(accounts)
    return accounts


def _rates(tariff: Tariff, rng: Random) -> Rates:
    return tariff.rates(
        load_w=rng.choice(LOADS_W),
        area=rng.choice(AREAS),
        meter_rent=rng.random() < 0.8,
        day=tariff.effective_from + timedelta(days=rng.randrange(365)),
    )


def _quantities(rates: Rates, rng: Random) -> Quantities:
    """Draw what a bill part holds: energy in every slab, a tenth of the parts not the first of their month."""
    limits_wh = [slab.to_wh for slab in rates.slabs if slab.to_wh is not None]
    period_days = rng.choice(MONTH_DAYS)
    energy_wh = rng.randrange(2 * max(limits_wh, default=500_000))
    shares = [rng.random() for _ in rates.zone_names]
    zone_wh = [int(energy_wh * share / sum(shares)) for share in shares[1:]]
    return Quantities(
        before_wh=rng.randrange(200_000) if rng.random() < 0.1 else 0,
        energy_wh=energy_wh,
        zone_wh=(energy_wh - sum(zone_wh), *zone_wh) if shares else (),
        days=rng.randint(1, period_days),
        period_days=period_days,
        slab_days=period_days,
        demand_w=rng.randrange(2 * rates.load_w),
    )


def _batches(table: RateTable, accounts: Sequence[Account], size: int) -> list[_Batch]:
    return [_batch(table, accounts[first : first + size]) for first in range(0, len(accounts), size)]


def _batch(table: RateTable, accounts: Sequence[Account]) -> _Batch:
    used = [each for _, each in accounts]
    width = max(len(each.zone_wh) for each in used)
    zone_wh = [[*each.zone_wh, *[0] * (width - len(each.zone_wh))] for each in used]
    return _Batch(
        table=table,
        rows=_column([table.row(rates, each.period_days, each.slab_days) for rates, each in accounts]),
        before_wh=_column([each.before_wh for each in used]),
        energy_wh=_column([each.energy_wh for each in used]),
        days=_column([each.days for each in used]),
        zone_wh=np.array(zone_wh, dtype=np.int64).reshape(len(used), width),
        demand_w=_column([each.demand_w for each in used]),
    )


def _column(values: Sequence[int]) -> Int64:
    return np.array(values, dtype=np.int64)
