"""The limits of a security module's day hold over all processes, and a vend over them is a stored refusal."""

from __future__ import annotations

import asyncio
from datetime import date

import pytest
from structlog.testing import capture_logs

from db.migrate import migrate
from db.pool import connect
from db.risk import read_day
from tests.integration.vending_shop import CALENDAR, MASTER, NOON, SGC, VENDING_KEY, Clock, Shop, open_shop
from tests.unit.test_security_module import METER, SEALED, module_with
from vending.edges.risk_limited import RiskLimitedModule, taking_from
from vending.key_custody import SealedVendingKey, seal_vending_key
from vending.risk_limits import Amounts, RiskLimits
from vending.security import RiskLimitReached, SecurityModule
from vending.soft_module import SoftSecurityModule
from vending.sts.tokens import CreditService

pytestmark = pytest.mark.db

TODAY = CALENDAR.day_of(int(NOON.timestamp()) * 1000)


def limited(database_url: str, module: SecurityModule, limits: RiskLimits) -> RiskLimitedModule:
    """Put limits around a module, as each process does for itself."""
    return RiskLimitedModule(
        module, name="soft", limits=limits, calendar=CALENDAR, clock=Clock(), take=taking_from(database_url, "soft")
    )


async def mint(module: RiskLimitedModule, tokens: int, tenths: int) -> Amounts:
    """Mint as many unit tokens as the limits let; return what was made."""
    made = Amounts()
    for tid in range(tokens):
        try:
            await module.mint_unit_credit(METER, service=CreditService.ELECTRICITY, amount16=tenths, tid=tid)
        except RiskLimitReached:
            continue
        made = made.plus(Amounts(tokens=1, tenths=tenths))
    return made


async def taken(database_url: str, day: date) -> Amounts:
    """Read what the database says was taken."""
    async with await connect(database_url, application="test") as conn:
        return Amounts(*await read_day(conn, "soft", day))


def test_processes_together_never_pass_a_limit(database_url: str) -> None:
    """Four processes at once make as many tokens as the day has, to the last one, and count what they took."""

    async def story() -> None:
        async with await connect(database_url, application="test") as conn:
            await migrate(conn)
        limits = RiskLimits(tokens=60, tenths=1_000_000)
        processes = [limited(database_url, module_with(SEALED), limits) for _ in range(4)]
        made = await asyncio.gather(*(mint(each, 25, tenths=7) for each in processes))
        total = Amounts()
        for each in made:
            total = total.plus(each)
        assert total.tokens == 60
        day = await taken(database_url, TODAY)
        assert day.tokens == 60
        # An allotment is a hundredth of the day; each process may have one that it has not used up.
        assert total.tenths <= day.tenths <= total.tenths + 4 * 10_000

    asyncio.run(story())


def test_process_that_dies_loses_its_allotment_and_nothing_else(database_url: str) -> None:
    """The next one goes on with what is left of the day: early by one allotment at most, never late."""

    async def story() -> None:
        async with await connect(database_url, application="test") as conn:
            await migrate(conn)
        limits = RiskLimits(tokens=1_000)
        made = 0
        for _ in range(3):
            made += (await mint(limited(database_url, module_with(SEALED), limits), 5, tenths=1)).tokens
        last = limited(database_url, module_with(SEALED), limits)
        made += (await mint(last, 2_000, tenths=1)).tokens
        assert 1_000 - 3 * 10 <= made <= 1_000
        assert (await taken(database_url, TODAY)).tokens == 1_000

    asyncio.run(story())


def test_vends_over_the_limit_are_refused_alarmed_and_counted(database_url: str) -> None:
    """Of twelve vends at once five are sold and seven refused for ever; none waits for another one's connection."""
    sealed = SealedVendingKey(sgc=SGC, krn=1, sealed=seal_vending_key(MASTER, SGC, 1, VENDING_KEY))
    soft = SoftSecurityModule(MASTER, [sealed], rnd_nibble=lambda: 5)

    async def story() -> None:
        module = limited(database_url, soft, RiskLimits(tokens=5))
        async with open_shop(database_url, module=module) as shop:
            answers = await asyncio.gather(*(shop.vend(f"m-{number}", "20.00") for number in range(12)))
            codes = [each.json().get("error", {}).get("code", "sold") for each in answers]
            assert sorted(codes) == ["risk_limit"] * 7 + ["sold"] * 5
            refused = f"m-{codes.index('risk_limit')}"
            again = await shop.vend(refused, "20.00")
            assert (again.status_code, again.json()["error"]["code"]) == (409, "risk_limit")
            assert await shop.count("tokens") == 5
            figures = (await shop.http.get("/metrics")).text
            assert 'prepaid_risk_limit{module="soft",quantity="tokens"} 5.0' in figures
            assert 'prepaid_risk_refusals_total{module="soft",quantity="tokens"} 7.0' in figures
            assert await _verified(shop, answers[codes.index("sold")].json()["token"]["digits"])

    with capture_logs() as logs:
        asyncio.run(story())
    assert [each["log_level"] for each in logs if each["event"] == "risk_limit_reached"] == ["error"]


async def _verified(shop: Shop, digits: str) -> bool:
    body = {"meter": shop.home.serial, "token": digits}
    response = await shop.http.post("/v1/tokens/verify", json=body, headers=shop.headers("vendor"))
    return response.status_code == 200
