"""A security module that stops at its limits of the day: the port around any module.

Stage: between the vending desk and the module. What is left of an allotment is counted in memory; a new allotment is
taken in a short transaction on a connection of its own, since the vend that waits for it holds one already. Never: a
key or a token; more minted than was taken before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import date, datetime
from functools import partial
from typing import TypeVar

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from billing.calendar import LocalCalendar
from db.pool import APPLICATION_ROLE, connect
from db.risk import take_of_day
from vending.openpaygo.devices import PaygoDevice
from vending.openpaygo.errors import PaygoError
from vending.openpaygo.tokens import PaygoKind, PaygoToken
from vending.risk_limits import Amounts, RiskLimits, currency_risk, unit_risk
from vending.security import ExtendedSet, ModuleTimeout, RiskLimitReached, SecurityModule, TokenRefused
from vending.sts.amounts import CurrencyField
from vending.sts.errors import StsError
from vending.sts.identity import EncryptionAlgorithm, MeterKeyRecord
from vending.sts.management import AnyToken, ManagementKind
from vending.sts.tokens import CreditService, TokenNumber

_log = structlog.get_logger(__name__)

T = TypeVar("T")
# Takes for a day what a function of the amounts taken before says; returns those, and what it took.
TakeOfDay = Callable[[date, Callable[[Amounts], Amounts]], Awaitable[tuple[Amounts, Amounts]]]


class RiskLimitedModule:
    """A security module within its limits of a local day.

    Invariants: all that was minted on a day was taken before from the day's limits; a refused mint is not counted, one
    whose outcome is unknown is.
    """

    def __init__(
        self,
        module: SecurityModule,
        *,
        name: str,
        limits: RiskLimits,
        calendar: LocalCalendar,
        clock: Callable[[], int],
        take: TakeOfDay,
    ) -> None:
        self.name = name
        self.limits = limits
        self._module = module
        self._calendar = calendar
        self._clock = clock
        self._take = take
        self._lock = asyncio.Lock()
        self._day = date.min
        self._left = Amounts()
        # What all processes had taken when we last looked; others may have taken more since.
        self.taken = Amounts()
        self.refusals = dict.fromkeys(Amounts._fields, 0)
        self._alarmed: set[str] = set()

    async def mint_unit_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount16: int, tid: int
    ) -> TokenNumber:
        """As the port; raises RiskLimitReached."""
        mint = partial(self._module.mint_unit_credit, meter, service=service, amount16=amount16, tid=tid)
        return await self._counted(unit_risk(amount16), mint)

    async def mint_currency_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount: CurrencyField, tid: int
    ) -> TokenNumber:
        """As the port; raises RiskLimitReached."""
        mint = partial(self._module.mint_currency_credit, meter, service=service, amount=amount, tid=tid)
        return await self._counted(currency_risk(amount), mint)

    async def mint_management(
        self, meter: MeterKeyRecord, *, kind: ManagementKind | ExtendedSet, value16: int, tid: int
    ) -> TokenNumber:
        """As the port; raises RiskLimitReached."""
        mint = partial(self._module.mint_management, meter, kind=kind, value16=value16, tid=tid)
        return await self._counted(Amounts(tokens=1), mint)

    async def mint_key_change(
        self, old: MeterKeyRecord, new: MeterKeyRecord, *, carry_sgc: bool, issued_at: datetime
    ) -> tuple[TokenNumber, ...]:
        """As the port; raises RiskLimitReached. Each token of the set counts."""
        mint = partial(self._module.mint_key_change, old, new, carry_sgc=carry_sgc, issued_at=issued_at)
        sections = 4 if new.ea is EncryptionAlgorithm.MISTY1 else 3 if carry_sgc else 2
        return await self._counted(Amounts(tokens=sections), mint)

    async def verify(self, meter: MeterKeyRecord, number: TokenNumber) -> AnyToken | TokenRefused:
        """As the port."""
        return await self._module.verify(meter, number)

    async def key_check_value(self, *, sgc: str, krn: int) -> str:
        """As the port."""
        return await self._module.key_check_value(sgc=sgc, krn=krn)

    async def mint_paygo(
        self, device: PaygoDevice, *, sealed_key: bytes, kind: PaygoKind, value: int | None, count: int
    ) -> PaygoToken:
        """As the port; raises RiskLimitReached. Time is no amount that is limited, only the token counts."""
        mint = partial(self._module.mint_paygo, device, sealed_key=sealed_key, kind=kind, value=value, count=count)
        return await self._counted(Amounts(tokens=1), mint)

    async def verify_paygo(
        self, device: PaygoDevice, *, sealed_key: bytes, digits: str, last_count: int
    ) -> PaygoToken | TokenRefused:
        """As the port."""
        return await self._module.verify_paygo(device, sealed_key=sealed_key, digits=digits, last_count=last_count)

    async def _counted(self, need: Amounts, mint: Callable[[], Awaitable[T]]) -> T:
        counted = self.limits.counted(need)
        day = await self._spend(counted)
        try:
            return await mint()
        except ModuleTimeout:
            # The token may have been made.
            raise
        except (StsError, PaygoError):
            # Else requests that are refused would use up the day for those that are not.
            if day == self._day:
                self._left = self._left.plus(counted)
            raise

    async def _spend(self, need: Amounts) -> date:
        """Take a need off the allotment, and a new allotment when it does not do. Raises: RiskLimitReached."""
        async with self._lock:
            day = self._calendar.day_of(self._clock())
            if day != self._day:
                self._day, self._left, self.taken = day, Amounts(), Amounts()
                self._alarmed.clear()
            lacking = self._left.lacking(need)
            if any(lacking):
                await self._take_more(day, lacking)
            self._left = self._left.minus(need)
            return day

    async def _take_more(self, day: date, lacking: Amounts) -> None:
        # What others have taken only grows: a need that did not fit before does not fit now.
        over = self.limits.over(self.taken, lacking)
        if over is None:
            before, took = await self._take(day, lambda taken: self.limits.allot(taken, lacking))
            self.taken = before.plus(took)
            self._left = self._left.plus(took)
            over = self.limits.over(before, lacking)
        if over is not None:
            self._refuse(day, over)

    def _refuse(self, day: date, over: str) -> None:
        self.refusals[over] += 1
        most = getattr(self.limits, over)
        if over not in self._alarmed:
            self._alarmed.add(over)
            _log.error("risk_limit_reached", module=self.name, day=str(day), quantity=over, limit=most)
        raise RiskLimitReached(
            f"security module {self.name}: expected at most {most} {over} on {day}, got more asked for"
        )


class RiskFigures(Collector):
    """A module's limits, what is taken of them, and what was refused, for one scrape."""

    def __init__(self, module: RiskLimitedModule) -> None:
        self._module = module

    def collect(self) -> Iterable[Metric]:
        """Yield the figures; `taken` is of the day of this process's latest token."""
        labels = ["module", "quantity"]
        most = GaugeMetricFamily("prepaid_risk_limit", "What a security module may make on a day", labels=labels)
        taken = GaugeMetricFamily(
            "prepaid_risk_taken", "What processes have taken of a security module's day, as last seen", labels=labels
        )
        refused = CounterMetricFamily(
            "prepaid_risk_refusals", "Tokens not made because a limit of the day was reached", labels=labels
        )
        for name in Amounts._fields:
            limit = getattr(self._module.limits, name)
            if limit is not None:
                most.add_metric([self._module.name, name], limit)
                taken.add_metric([self._module.name, name], getattr(self._module.taken, name))
                refused.add_metric([self._module.name, name], self._module.refusals[name])
        return most, taken, refused


def taking_from(database_url: str, module: str) -> TakeOfDay:
    """Return what takes allotments of a module from the installation's database, on a connection for each."""

    async def take(day: date, allot: Callable[[Amounts], Amounts]) -> tuple[Amounts, Amounts]:
        async with await connect(
            database_url, application="prepaid-risk", lock_timeout_s=5, role=APPLICATION_ROLE
        ) as conn:
            before, took = await take_of_day(conn, module, day, lambda taken: allot(Amounts(*taken)))
        return Amounts(*before), Amounts(*took)

    return take
