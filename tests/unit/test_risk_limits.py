"""Limits of a security module's day: what is allotted, what is refused, what a failed mint costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from billing.calendar import LocalCalendar
from tests.unit.test_security_module import METER, SEALED, module_with
from vending.edges.risk_limited import RiskFigures, RiskLimitedModule
from vending.risk_limits import Amounts, RiskLimits, currency_risk, unit_risk
from vending.security import (
    ModuleBusy,
    ModuleTimeout,
    RiskLimitReached,
    SecurityModule,
    SecurityModuleError,
    VendingKeyUnknown,
)
from vending.sts.amounts import CurrencyField, encode_unit_amount
from vending.sts.identity import MeterKeyRecord
from vending.sts.management import ManagementKind
from vending.sts.tokens import CreditService, TokenNumber

CALENDAR = LocalCalendar(ZoneInfo("Asia/Kolkata"))
DAY = date(2026, 11, 22)
DAY_MS = CALENDAR.midnight_ms(DAY)
maybe = st.none() | st.integers(0, 500)


class Ledger:
    """A module's days in memory, as the database keeps them; counts how often it is asked."""

    def __init__(self) -> None:
        self.days: dict[date, Amounts] = {}
        self.asked = 0

    async def take(self, day: date, allot: Callable[[Amounts], Amounts]) -> tuple[Amounts, Amounts]:
        """Take what is allotted to what was taken before."""
        self.asked += 1
        before = self.days.get(day, Amounts())
        took = allot(before)
        self.days[day] = before.plus(took)
        return before, took


class Clock:
    """A clock that stands still until it is set."""

    now_ms = DAY_MS

    def __call__(self) -> int:
        return self.now_ms


class FailingModule:
    """A module that raises what it is told to, and mints nothing."""

    def __init__(self, error: SecurityModuleError) -> None:
        self._error = error

    async def mint_currency_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount: CurrencyField, tid: int
    ) -> TokenNumber:
        """Raise."""
        raise self._error


def limited(
    limits: RiskLimits, ledger: Ledger, clock: Clock | None = None, module: SecurityModule | None = None
) -> RiskLimitedModule:
    """Put limits around a module."""
    return RiskLimitedModule(
        module or module_with(SEALED),
        name="soft",
        limits=limits,
        calendar=CALENDAR,
        clock=clock or Clock(),
        take=ledger.take,
    )


async def sell(module: RiskLimitedModule, amount_minor: int, tid: int = 1) -> TokenNumber:
    """Mint a currency token."""
    amount = CurrencyField.encode(amount_minor * 1_000)
    return await module.mint_currency_credit(METER, service=CreditService.ELECTRICITY, amount=amount, tid=tid)


@given(
    limits=st.builds(RiskLimits, tokens=maybe, minor=maybe, tenths=maybe),
    needs=st.lists(st.builds(Amounts, st.integers(0, 3), st.integers(0, 200), st.integers(0, 200)), max_size=60),
)
def test_allotments_never_pass_a_limit_and_always_meet_the_need(limits: RiskLimits, needs: list[Amounts]) -> None:
    """Whatever is asked for in whatever order, the sum of what was taken stays within the limits."""
    taken = Amounts()
    for need in needs:
        took = limits.allot(taken, limits.counted(need))
        if limits.over(taken, limits.counted(need)) is None:
            assert not any(took.lacking(limits.counted(need)))
        else:
            assert took == Amounts()
        taken = taken.plus(took)
    for most, used in zip((limits.tokens, limits.minor, limits.tenths), taken, strict=True):
        assert used <= most if most is not None else used == 0


def test_risk_of_tokens_is_counted_as_they_carry_it() -> None:
    """The encoded amount counts, rounded up; taking credit away counts like giving it."""
    sold = CurrencyField.encode(50_000_000)
    assert currency_risk(sold) == Amounts(tokens=1, minor=-(-sold.amount_e5 // 1_000))
    assert currency_risk(CurrencyField.encode(1)).minor == 1
    assert currency_risk(CurrencyField.encode(-5_000)) == currency_risk(CurrencyField.encode(5_000))
    assert unit_risk(encode_unit_amount(256)) == Amounts(tokens=1, tenths=256)


def test_tokens_of_a_day_stop_at_the_limit_and_go_on_the_next_local_day() -> None:
    """Refused with its own code, alarmed once, counted each time; local midnight opens the next day."""
    ledger, clock = Ledger(), Clock()
    module = limited(RiskLimits(tokens=5), ledger, clock)

    async def story() -> None:
        clock.now_ms = DAY_MS + 86_399_999
        for tid in range(5):
            await sell(module, 100, tid)
        for _ in range(3):
            with pytest.raises(RiskLimitReached, match="at most 5 tokens on 2026-11-22") as refusal:
                await sell(module, 100)
            assert refusal.value.code == "risk_limit"
        clock.now_ms += 1
        await sell(module, 100)

    with capture_logs() as logs:
        asyncio.run(story())
    alarms = [each for each in logs if each["event"] == "risk_limit_reached"]
    assert [(each["log_level"], each["quantity"], each["limit"]) for each in alarms] == [("error", "tokens", 5)]
    assert module.refusals["tokens"] == 3
    assert ledger.days == {DAY: Amounts(tokens=5), DAY + timedelta(days=1): Amounts(tokens=1)}


def test_allotment_is_used_up_before_the_ledger_is_asked_again() -> None:
    """A hundredth of the day costs one transaction, whatever the number of tokens."""
    ledger = Ledger()
    module = limited(RiskLimits(tokens=10_000, minor=100_000_000), ledger)

    async def story() -> None:
        for tid in range(250):
            await sell(module, 1_000, tid)

    asyncio.run(story())
    assert ledger.asked == 3
    assert ledger.days[DAY] == Amounts(tokens=300, minor=1_000_000)


def test_amount_that_does_not_fit_leaves_room_for_a_smaller_one() -> None:
    """A large sale is refused, a small one after it goes through, and a refused one does not ask the ledger twice."""
    ledger = Ledger()
    module = limited(RiskLimits(minor=10_000), ledger)

    async def story() -> None:
        await sell(module, 9_000)
        for _ in range(4):
            with pytest.raises(RiskLimitReached):
                await sell(module, 2_000)
        await sell(module, 900)
        with pytest.raises(RiskLimitReached):
            await sell(module, 200)

    asyncio.run(story())
    # Once for each sale: what does not fit is seen from what was left at the last one.
    assert ledger.asked == 2
    assert 9_900 < ledger.days[DAY].minor <= 10_000


def test_refused_mint_costs_nothing_and_an_unknown_outcome_counts() -> None:
    """Requests that are refused must not use up the day; a lost answer may have been a token."""

    async def left_after(error: SecurityModuleError) -> int:
        # The one method that is called here is all there is.
        module = limited(RiskLimits(tokens=2), Ledger(), module=FailingModule(error))  # type: ignore[arg-type]
        failed = 0
        for _ in range(10):
            try:
                await sell(module, 100)
            except RiskLimitReached:
                break
            except SecurityModuleError:
                failed += 1
        return failed

    async def story() -> None:
        assert await left_after(VendingKeyUnknown("key")) == 10
        assert await left_after(ModuleBusy("busy")) == 10
        assert await left_after(ModuleTimeout("lost")) == 2

    asyncio.run(story())


def test_every_kind_of_token_counts() -> None:
    """Units by their tenths, management by its token; reading costs nothing."""
    ledger = Ledger()
    module = limited(RiskLimits(tokens=3, tenths=100), ledger)

    async def story() -> None:
        number = await module.mint_unit_credit(METER, service=CreditService.GAS, amount16=100, tid=1)
        with pytest.raises(RiskLimitReached, match="tenths"):
            await module.mint_unit_credit(METER, service=CreditService.GAS, amount16=1, tid=2)
        for tid in (3, 4):
            await module.mint_management(METER, kind=ManagementKind.CLEAR_TAMPER, value16=0, tid=tid)
        with pytest.raises(RiskLimitReached, match="tokens"):
            await module.mint_management(METER, kind=ManagementKind.CLEAR_TAMPER, value16=0, tid=5)
        assert await module.verify(METER, number)
        assert await module.key_check_value(sgc=METER.sgc, krn=METER.krn)

    asyncio.run(story())


def test_figures_show_limits_taken_and_refusals_by_module() -> None:
    """Operators see how near the day's end of credit is, and how often it was reached; no limit, no figure."""
    module = limited(RiskLimits(tokens=1), Ledger())

    async def story() -> None:
        await sell(module, 100)
        with pytest.raises(RiskLimitReached):
            await sell(module, 100)

    asyncio.run(story())
    samples = {
        each.name: (each.labels, each.value) for family in RiskFigures(module).collect() for each in family.samples
    }
    labels = {"module": "soft", "quantity": "tokens"}
    assert samples["prepaid_risk_limit"] == (labels, 1)
    assert samples["prepaid_risk_taken"] == (labels, 1)
    assert samples["prepaid_risk_refusals_total"] == (labels, 1)
