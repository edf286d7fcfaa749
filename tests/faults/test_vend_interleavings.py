"""F27: top-up, debit, cut-off and restore of one account in every order: money, float and supply agree at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import httpx
import pytest

from billing.calendar import from_ms
from billing.supply import Supply
from db.audit import run_checks
from db.readings import ensure_partitions
from db.registry import NewAccount, NewMeter, add_meter, add_vendor, open_account
from db.reports import accounts_of_meters, look_all
from db.vendors import set_limit
from prepaid.embedded import EmbeddedNats
from protocols.native import CommandReply, OrderKind, Relay, ReplyResult, encode_reply
from protocols.topics import event_topic
from tests.faults.harness import Trial
from tests.faults.vend_street import AMOUNT, AMOUNT_MINOR, Street, instance, minted_as_posted
from tests.integration.vending_shop import MASTER, SGC, STS, VENDING_KEY
from tests.support import (
    CALENDAR,
    DAY_MS,
    HOUR_MS,
    OPENED_AT,
    REGISTER_END_WH,
    REGISTER_WH,
    RULES,
    T0,
    TARIFF,
    Message,
    Site,
    now_ms,
    open_site,
    reading,
    running_ingest,
)
from vending.edges.keys import add_vending_key, issue_api_key
from vending.roles import Role
from vending.sts.identity import luhn_check_digit

pytestmark = [pytest.mark.db, pytest.mark.broker]

STEPS = ("top_up", "debit", "cut_off", "restore")
ORDERS = tuple(permutations(STEPS))
# Lasts for the first day's fixed charge and 5 kWh, not for 10.
CREDIT_MINOR = 5_000
DEBIT_WH = 10_000
# Two top-ups fewer than are asked for: the vendor's float ends before the last ones.
LIMIT_MINOR = (len(ORDERS) - 2) * AMOUNT_MINOR


@dataclass(slots=True, kw_only=True)
class Account:
    """An account, the order in which things happen to it, and whether it was topped up."""

    serial: str
    meter_id: int
    account_id: int
    order: Sequence[str]
    topped_up: bool = False


async def _open(site: Site, number: int, order: Sequence[str]) -> Account:
    serial, body = f"V{number}", f"{100300400 + number:010d}"
    sts = replace(STS, drn=f"{body}{luhn_check_digit(body)}")
    await add_meter(site.conn, NewMeter(serial=serial, rated_w=15_000, register_end_wh=REGISTER_END_WH, sts=sts))
    account = NewAccount(
        number=serial,
        consumer=f"Household {serial}",
        usage_point=serial,
        area="test",
        meter_serial=serial,
        opened_at=OPENED_AT,
        register_wh=REGISTER_WH,
        tariff_id=TARIFF,
        sanctioned_load_w=3_000,
        opening_credit_minor=CREDIT_MINOR,
    )
    assert await open_account(site.conn, account, rules=RULES, now_ms=now_ms()) is not None
    meter_id, account_id = (await accounts_of_meters(site.conn, [serial]))[serial]
    return Account(serial=serial, meter_id=meter_id, account_id=account_id, order=order)


async def _answers(site: Site, account: Account, relay: Relay, step: int) -> list[Message]:
    """Let a meter do and confirm the latest order for this supply that it was ever given, stale or not."""
    found = await site.rows(
        "select id, epoch from supply_orders where meter_id = %s and kind = 'supply' and relay = %s"
        " order by epoch desc limit 1",
        account.meter_id,
        relay.value,
    )
    return [_reply(account.serial, order_id, epoch, relay, step) for order_id, epoch in found]


def _reply(serial: str, order_id: int, epoch: int, relay: Relay, step: int) -> Message:
    said = CommandReply(
        serial=serial,
        seq=None,
        at_ms=T0 + DAY_MS + step * HOUR_MS,
        order_id=order_id,
        epoch=epoch,
        kind=OrderKind.SUPPLY,
        result=ReplyResult.DONE,
        relay=relay,
        threshold_minor=None,
    )
    return event_topic(serial), encode_reply(said)


async def _step(site: Site, till: httpx.AsyncClient, accounts: Sequence[Account], step: int) -> list[int]:
    """Let what stands at this place of each account's order happen, all at once; return the statuses of top-ups."""
    due: dict[str, list[Account]] = {name: [a for a in accounts if a.order[step] == name] for name in STEPS}
    messages = [reading(a.serial, T0 + HOUR_MS, REGISTER_WH + DEBIT_WH) for a in due["debit"]]
    for account in due["cut_off"]:
        messages += await _answers(site, account, Relay.OFF, step)
    for account in due["restore"]:
        messages += await _answers(site, account, Relay.ON, step)

    async def top_up(account: Account) -> int:
        body = {"message_id": f"up-{account.serial}", "meter": account.serial, "amount": AMOUNT, "tender": "upi"}
        answer = await till.post("/v1/vends", json=body)
        account.topped_up = answer.status_code == 200
        return answer.status_code

    _, *statuses = await asyncio.gather(site.publish(*messages), *(top_up(account) for account in due["top_up"]))
    await site.settled()
    return statuses


async def _quiet(site: Site, accounts: Sequence[Account]) -> None:
    """Let every meter do what it is ordered until nothing is open."""
    for step in range(len(STEPS), len(STEPS) + 4):
        open_orders = await site.rows(
            "select m.serial, o.id, o.epoch, o.relay from supply_orders o join meters m on m.id = o.meter_id"
            " where o.kind = 'supply' and o.state in ('pending', 'held', 'sent')"
        )
        if not open_orders:
            return
        assert len({serial for serial, *_ in open_orders}) == len(open_orders), "one open order a meter"
        await site.send(*(_reply(serial, id_, epoch, Relay(relay), step) for serial, id_, epoch, relay in open_orders))
    raise AssertionError(f"expected no open order after four rounds, got {open_orders}")


async def _agree(site: Site, accounts: Sequence[Account]) -> None:
    """I2, I7, I8: balances, float, and supply as the policy says, at the meter as in the account."""
    views = await look_all(site.conn, [account.account_id for account in accounts], CALENDAR)
    for account in accounts:
        view = views[account.account_id]
        balance_minor = view.balance_minor(CALENDAR)
        wanted = Supply.ON if balance_minor > 0 else Supply.OFF
        assert (balance_minor > 0) == account.topped_up, account
        relay = await site.one("select coalesce(relay, 'on') from meter_state where meter_id = %s", account.meter_id)
        assert (view.levels.desired, relay) == (wanted, wanted.value), account
        epochs = [
            epoch
            for (epoch,) in await site.rows(
                "select epoch from supply_orders where meter_id = %s order by id", account.meter_id
            )
        ]
        assert epochs == sorted(set(epochs)), account


def test_top_up_debit_cut_off_and_restore_agree_in_every_order(database_url: str, nats: EmbeddedNats) -> None:
    """24 accounts, each in an order of its own, through the vending interface, ingest and stale answers of meters."""

    async def told() -> None:
        with Trial(27) as trial:
            async with open_site(database_url, nats) as site, running_ingest(site):
                await add_vending_key(site.conn, MASTER, sgc=SGC, krn=1, key=VENDING_KEY)
                await ensure_partitions(site.conn, {from_ms(T0 + day * DAY_MS).date() for day in range(-1, 4)})
                accounts = [await _open(site, number, order) for number, order in enumerate(ORDERS)]
                vendor_id = await add_vendor(site.conn, "Station 17")
                await set_limit(site.conn, vendor_id, LIMIT_MINOR, by="A. Kaur", reason="trial")
                street = Street(
                    conn=site.conn,
                    database_url=database_url,
                    homes=[],
                    vendor_id=vendor_id,
                    key=await issue_api_key(site.conn, Role.VENDOR, vendor_id=vendor_id, master=MASTER),
                )
                statuses: list[int] = []
                async with instance(street, clock=now_ms) as till:
                    for step in range(len(STEPS)):
                        statuses += await _step(site, till, accounts, step)
                        trial.note(f"step {step}: top-ups {statuses}")
                await _quiet(site, accounts)
                await site.settled()
                assert sorted(statuses) == [200] * (len(ORDERS) - 2) + [402] * 2, "the float ends before the last two"
                floats = await site.rows("select balance_minor from vendor_floats where vendor_id = %s", vendor_id)
                assert floats == [(-LIMIT_MINOR,)]
                assert await site.one("select count(*) from supply_orders where relay = 'off' and state = 'superseded'")
                await _agree(site, accounts)
                await minted_as_posted(street)
                report = await run_checks(site.conn, CALENDAR)
                assert report.clean, "\n".join(report.lines())

    asyncio.run(told())
