"""The vectorised form of rating says for every account what the plain form says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.rate_table import DEMAND_W_MAX, RateTable
from billing.rating import Lines, Quantities, added, charge_to_date, difference, total
from billing.rating_batch import (
    BeyondLimits,
    account_lines,
    charge_lines,
    charge_totals,
    difference_lines,
    line_sums,
)
from billing.tariff import (
    BASIS_POINTS,
    ENERGY_WH_MAX,
    LOAD_W_MAX,
    MONTH_RATE_MILLI_MAX,
    RATE_MILLI_MAX,
    Beyond,
    Rates,
    Share,
    ShareKind,
    Slab,
    Subsidy,
    TariffError,
)
from billing.tariff_document import builtin_documents, builtin_tariff, parse_tariff
from billing.terms import one_assignment
from tests.properties.tariff_strategies import quantities, rates_of, tariff_texts

BOUNDED = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
GROUPS = ("energy", "zone", "fppca", "fixed", "meter_rent", "demand", "minimum")
# Everything at its limit and each kind of line there.
LARGEST = Rates(
    slabs=(
        Slab(to_wh=1_000, rate_milli_per_kwh=RATE_MILLI_MAX),
        Slab(to_wh=ENERGY_WH_MAX, rate_milli_per_kwh=RATE_MILLI_MAX),
        Slab(to_wh=None, rate_milli_per_kwh=RATE_MILLI_MAX),
    ),
    whole_quantity=False,
    zone_names=("peak", "night"),
    zone_milli=(RATE_MILLI_MAX, -RATE_MILLI_MAX),
    fppca_milli=RATE_MILLI_MAX,
    load_w=0,
    fixed_micro=MONTH_RATE_MILLI_MAX * LOAD_W_MAX,
    meter_rent_micro=MONTH_RATE_MILLI_MAX * LOAD_W_MAX,
    minimum_micro=MONTH_RATE_MILLI_MAX * LOAD_W_MAX,
    minimum_of=("zone",),
    demand_milli_per_kw=MONTH_RATE_MILLI_MAX,
    shares=tuple(
        Share(
            name=f"share_{number}",
            kind=ShareKind.LEVY,
            of=(*GROUPS, *(f"share_{before}" for before in range(number))),
            basis_points=BASIS_POINTS,
        )
        for number in range(3)
    ),
    subsidy=None,
)
FULL = Quantities(
    before_wh=ENERGY_WH_MAX,
    energy_wh=ENERGY_WH_MAX,
    zone_wh=(ENERGY_WH_MAX, ENERGY_WH_MAX),
    days=31,
    period_days=28,
    slab_days=28,
    demand_w=DEMAND_W_MAX,
)

Account = tuple[Rates, Quantities]


def batch_of(table: RateTable, accounts: Sequence[Account]) -> dict[str, np.ndarray]:
    """Return the arguments of the vectorised form, all but the table."""
    width = max((len(used.zone_wh) for _, used in accounts), default=0)

    def column(values: Sequence[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    return {
        "rows": column([table.row(rates, used.period_days, used.slab_days) for rates, used in accounts]),
        "before_wh": column([used.before_wh for _, used in accounts]),
        "energy_wh": column([used.energy_wh for _, used in accounts]),
        "days": column([used.days for _, used in accounts]),
        "demand_w": column([used.demand_w for _, used in accounts]),
        "zone_wh": np.array(
            [[*used.zone_wh, *[0] * (width - len(used.zone_wh))] for _, used in accounts], dtype=np.int64
        ).reshape(len(accounts), width),
    }


def not_zero(lines: Lines) -> Lines:
    return {name: amount for name, amount in lines.items() if amount}


def require_equal(accounts: Sequence[Account]) -> None:
    """Rate a batch in both forms: totals, lines, and their sums."""
    table = RateTable()
    batch = batch_of(table, accounts)
    plain = [charge_to_date(rates, used) for rates, used in accounts]
    assert charge_totals(table, **batch).tolist() == [total(lines) for lines in plain]
    groups = charge_lines(table, **batch)
    assert account_lines(groups, len(accounts)) == [not_zero(lines) for lines in plain]
    sums: Lines = {}
    for lines, _ in line_sums(groups):
        sums = added(sums, lines)
    expected: Lines = {}
    for lines in plain:
        expected = added(expected, lines)
    assert not_zero(sums) == not_zero(expected)


@st.composite
def batches(draw: st.DrawFn) -> list[Account]:
    """Draw accounts of one to three tariffs, mixed."""
    accounts: list[Account] = []
    for number in range(draw(st.integers(1, 3))):
        tariff = parse_tariff(draw(tariff_texts(tariff_id=f"drawn{number}")))
        for _ in range(draw(st.integers(1, 4))):
            rates = draw(rates_of(tariff))
            accounts += [(rates, draw(quantities(rates))) for _ in range(draw(st.integers(1, 3)))]
    return draw(st.permutations(accounts))


@BOUNDED
@given(batches())
def test_batch_of_any_tariffs_equals_the_plain_form(accounts: list[Account]) -> None:
    """Whatever the tariffs, loads, areas and days, each account's lines and total are those of the plain form."""
    require_equal(accounts)


@st.composite
def builtin_accounts(draw: st.DrawFn) -> list[Account]:
    tariffs = [parse_tariff(text) for text in builtin_documents().values()]
    rates = [draw(rates_of(draw(st.sampled_from(tariffs)))) for _ in range(draw(st.integers(1, 12)))]
    return [(each, draw(quantities(each))) for each in rates]


@BOUNDED
@given(builtin_accounts())
def test_batch_of_builtin_tariffs_equals_the_plain_form(accounts: list[Account]) -> None:
    """The tariffs that ship with the product come out alike in both forms."""
    require_equal(accounts)


@pytest.mark.parametrize("whole_quantity", [False, True])
@pytest.mark.parametrize("fppca_milli", [RATE_MILLI_MAX, -RATE_MILLI_MAX])
@pytest.mark.parametrize("beyond", [None, Beyond.EXCESS, Beyond.ALL])
@pytest.mark.parametrize("before_wh", [0, ENERGY_WH_MAX - 1, ENERGY_WH_MAX])
@pytest.mark.parametrize("zone_wh", [(ENERGY_WH_MAX, ENERGY_WH_MAX), (0, ENERGY_WH_MAX), (ENERGY_WH_MAX - 1, 1)])
def test_everything_at_its_limit_does_not_overflow(
    whole_quantity: bool, fppca_milli: int, beyond: Beyond | None, before_wh: int, zone_wh: tuple[int, int]
) -> None:
    """The greatest energy, rates, loads and days are rated to the last minor unit, as with unbounded integers."""
    subsidy = None if beyond is None else Subsidy(to_wh=ENERGY_WH_MAX - 7, covers=(*GROUPS, "share_2"), beyond=beyond)
    rates = replace(LARGEST, whole_quantity=whole_quantity, fppca_milli=fppca_milli, subsidy=subsidy)
    used = replace(FULL, before_wh=before_wh, zone_wh=zone_wh)
    require_equal([(rates, used), (rates, replace(used, energy_wh=ENERGY_WH_MAX - 1)), (rates, replace(used, days=0))])


def doubling_shares(count: int) -> Rates:
    """Return rates whose shares are each taken of everything before."""
    chain = tuple(
        Share(
            name=f"share_{number}",
            kind=ShareKind.CHARGE,
            of=(*GROUPS, *(f"share_{before}" for before in range(number))),
            basis_points=BASIS_POINTS - 1,
        )
        for number in range(count)
    )
    return replace(LARGEST, shares=chain)


@pytest.mark.parametrize("count", [5, 7, 12, 16])
def test_shares_of_shares_stay_exact(count: int) -> None:
    """Shares that double each other pass what a base times basis points has room for, and are still exact."""
    require_equal([(doubling_shares(count), FULL)])


def test_shares_of_shares_beyond_64_bits_are_refused() -> None:
    """Shares that double each other beyond 64 bits are refused before anything is rated."""
    with pytest.raises(TariffError, match="shares of shares"):
        RateTable().row(doubling_shares(24), 30, 30)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", 2),
        ("before_wh", -1),
        ("energy_wh", ENERGY_WH_MAX + 1),
        ("energy_wh", -(2**63)),
        ("days", 32),
        ("demand_w", DEMAND_W_MAX + 1),
        ("zone_wh", -5),
    ],
)
def test_quantity_beyond_its_limit_is_refused_by_name(name: str, value: int) -> None:
    """What is not proven to fit is refused, naming the quantity, its limit and the value."""
    table = RateTable()
    batch = batch_of(table, [(LARGEST, FULL), (replace(LARGEST, load_w=5), FULL)])
    batch[name].reshape(-1)[-1] = value
    label = "row" if name == "rows" else name
    with pytest.raises(BeyondLimits, match=rf"{label}: expected 0 to \d+, got {value}"):
        charge_totals(table, **batch)


def test_array_of_another_kind_is_refused() -> None:
    """Numbers other than 64-bit integers, a wrong count and missing zones never reach the arithmetic."""
    table = RateTable()
    batch = batch_of(table, [(LARGEST, FULL)])
    for wrong in (
        {"energy_wh": np.array([1.5])},
        {"days": np.array([1, 2])},
        {"zone_wh": None},
        {"zone_wh": batch["zone_wh"][:, :1]},
    ):
        with pytest.raises(BeyondLimits):
            charge_totals(table, **{**batch, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"fixed_micro": MONTH_RATE_MILLI_MAX * LOAD_W_MAX + 1},
        {"fppca_milli": -RATE_MILLI_MAX - 1},
        {"load_w": LOAD_W_MAX + 1},
        {"slabs": (Slab(to_wh=None, rate_milli_per_kwh=RATE_MILLI_MAX + 1),)},
    ],
)
def test_rates_beyond_the_limits_get_no_row(wrong: dict[str, object]) -> None:
    """A table takes in no rates that 64 bits are not proven for."""
    with pytest.raises(TariffError, match="expected"):
        RateTable().row(replace(LARGEST, **wrong), 30, 30)


def test_no_accounts_have_no_charge() -> None:
    """An empty batch is rated."""
    table = RateTable()
    batch = batch_of(table, [])
    assert charge_totals(table, **batch).tolist() == []
    assert charge_lines(table, **batch) == []


def test_accounts_that_opened_on_different_days_share_a_row() -> None:
    """A row is of rates, not of bill parts: a city's accounts need few of them."""
    tariff = builtin_tariff("punjab-ds-2026-27")
    table = RateTable()
    parts = [
        one_assignment(tariff, load_w=2_000, opened_on=date(2026, 4, day)).part_at(date(2026, 6, 3))
        for day in range(1, 29)
    ]
    assert len(set(map(id, parts))) == len(parts)
    assert {table.row_of(part) for part in parts} == {0}
    assert len(table) == 1


def test_many_rows_keep_their_numbers_while_the_table_grows() -> None:
    """Rows taken in before a table grew are rated as after it."""
    tariff = builtin_tariff("punjab-ds-2026-27")
    used = Quantities(before_wh=0, energy_wh=123_456, zone_wh=(), days=7, period_days=30, slab_days=30)
    day = date(2026, 6, 1)
    require_equal(
        [(tariff.rates(load_w=load_w, area="urban", meter_rent=True, day=day), used) for load_w in range(1, 9_000, 31)]
    )


@BOUNDED
@given(batches())
def test_difference_of_two_bills_equals_the_plain_difference(accounts: list[Account]) -> None:
    """What a day's journals book is what the plain form leaves between two bills, and nothing charged yet is zero."""
    table = RateTable()
    later = batch_of(table, accounts)
    halved = [(rates, replace(used, energy_wh=0, zone_wh=(0,) * len(used.zone_wh), days=0)) for rates, used in accounts]
    earlier = batch_of(table, halved)
    found = account_lines(difference_lines(charge_lines(table, **later), charge_lines(table, **earlier)), len(accounts))
    assert found == [
        difference(charge_to_date(rates, used), charge_to_date(*before))
        for (rates, used), before in zip(accounts, halved, strict=True)
    ]
    assert found == [not_zero(charge_to_date(rates, used)) for rates, used in accounts]
