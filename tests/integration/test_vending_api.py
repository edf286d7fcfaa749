"""Selling, confirming, reading and warning over HTTP, against a real PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from billing.calendar import to_ms
from billing.rating import total
from billing.supply import Mode
from billing.tariff_document import builtin_tariff
from billing.terms import one_assignment, part_lines
from db.accounts import look
from db.posting import lock, post_days
from db.registry import NewMeter, add_meter
from meter_sim.token_reader import EntryResult
from tests.integration.vending_shop import (
    CALENDAR,
    CONSUMER,
    MASTER,
    NOON,
    RULES,
    STS,
    TARIFF,
    Shop,
    add_home,
    key_of,
    open_shop,
)
from vending.edges.keys import load_security_module
from vending.edges.models import AccountAnswer, MeterAnswer, ThresholdAnswer, TokenAnswer, VendAnswer
from vending.security import SecurityModule
from vending.sts.amounts import CurrencyField
from vending.sts.identity import MeterKeyRecord
from vending.sts.tokens import CreditService, TokenNumber

pytestmark = pytest.mark.db

COPIES = 50


def test_vend_credits_the_account_and_mints_a_token_the_meter_takes_once(database_url: str) -> None:
    """One vend is one answer, one balanced journal, one token that the meter's own reader decodes."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(10_000)
            response = await shop.vend("m-1")
            answer = response.json()
            VendAnswer.model_validate(answer)
            assert response.status_code == 200
            assert (answer["balance_before"], answer["balance_after"]) == ("100.00", "600.00")
            assert (answer["vendor"], answer["account_number"]) == ("Station 17", shop.home.number)
            assert (answer["meter_serial"], answer["drn"]) == (shop.home.serial, shop.home.drn)
            reader = shop.token_reader()
            entry = reader.enter(answer["token"]["digits"], now_ms=0)
            assert (entry.result, entry.amount, entry.tid) == (EntryResult.ACCEPTED, 50_002_624, answer["tid"])
            assert answer["token"]["amount"] == "500.02624"
            assert reader.enter(answer["token"]["digits"], now_ms=1).result is EntryResult.USED
            assert (
                await shop.one("select last_tid from last_tids where meter_id = %s", shop.home.meter_id)
                == (answer["tid"])
            )
            assert await shop.one(
                "select array_agg(l.amount_minor order by l.n) from vends v join legs l on l.journal_id = v.journal_id"
            ) == [50_000, -50_000]
            account = (await shop.get(f"/v1/accounts/{shop.home.number}", "engineer")).json()
            assert account["balance"] == "600.00"
            assert account["last_recharge"]["amount"] == "500.00"

    asyncio.run(story())


def test_repeated_message_id_gets_the_same_bytes_for_ever(database_url: str) -> None:
    """A retry, the amount written otherwise, GET, and a later day read the stored answer; nothing is sold again."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            first = await shop.vend("m-1")
            again = [await shop.vend("m-1"), await shop.vend("m-1", "500"), await shop.get("/v1/vends/m-1")]
            shop.clock.now_ms += 86_400_000 * 400
            await shop.set_balance(-1)
            again.append(await shop.vend("m-1"))
            assert {(each.status_code, each.content) for each in again} == {(200, first.content)}
            assert await shop.count("tokens") == 1

    asyncio.run(story())


def test_parallel_copies_of_one_request_sell_once(database_url: str) -> None:
    """Fifty copies at a time get one answer, one token, one credit."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            responses = await asyncio.gather(*(shop.vend("m-1") for _ in range(COPIES)))
            assert {each.status_code for each in responses} == {200}
            assert len({each.content for each in responses}) == 1
            assert [await shop.count(table) for table in ("tokens", "vends")] == [1, 1]
            assert await shop.one("select count(*) from journals where kind = 'vend'") == 1

    asyncio.run(story())


def test_parallel_vends_of_one_meter_get_tids_of_their_own(database_url: str) -> None:
    """Fifty different vends in one minute get fifty rising TIDs, all of them credited by the meter."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            responses = await asyncio.gather(*(shop.vend(f"m-{number}", "10.00") for number in range(COPIES)))
            answers = [each.json() for each in responses]
            tids = sorted(answer["tid"] for answer in answers)
            assert tids == list(range(tids[0], tids[0] + COPIES))
            reader = shop.token_reader()
            results = [reader.enter(answer["token"]["digits"], now_ms=0).result for answer in answers]
            assert set(results) == {EntryResult.ACCEPTED}
            posted = await shop.one("select posted_minor from accounts where id = %s", shop.home.account_id)
            assert posted == 1_000 * COPIES

    asyncio.run(story())


def test_message_id_with_another_body_is_refused_and_not_stored(database_url: str) -> None:
    """409, and the first answer stays; another vendor's same id is another vend."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            first = await shop.vend("m-1")
            for changed in (await shop.vend("m-1", "500.01"), await shop.vend("m-1", meter=shop.home.drn)):
                assert (changed.status_code, changed.json()["error"]["code"]) == (409, "message_id_reused")
            assert (await shop.vend("m-1")).content == first.content
            body = {"message_id": "m-1", "meter": shop.home.serial, "amount": "20.00"}
            other = await shop.http.post("/v1/vends", json=body, headers=shop.headers("other_vendor"))
            assert other.json()["amount"] == "20.00"
            assert (await shop.get("/v1/vends/m-1", "other_vendor")).content == other.content

    asyncio.run(story())


def test_business_refusals_are_stored_under_their_message_id(database_url: str) -> None:
    """Each refusal has its name and status, and stays the answer after its cause has gone."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await add_home(shop.conn, "POST-1", "2", mode=Mode.POSTPAID)
            await add_home(shop.conn, "NOSTS-1", "3", sts=None)
            await add_home(shop.conn, "OLDKEY-1", "4", sts=replace(STS, ken=100))
            await add_home(shop.conn, "DDTK-1", "5", sts=replace(STS, key_type=1))
            await add_home(shop.conn, "OTHER-1", "6", sts=replace(STS, sgc="000001"))
            await add_home(shop.conn, "EA07-1", "7", sts=replace(STS, ea=7))
            await add_meter(shop.conn, NewMeter(serial="STORE-1", rated_w=1, register_end_wh=1))
            # A serial that is the first home's DRN: nobody can tell which meter is meant.
            await add_home(shop.conn, shop.home.drn or "", "8")
            cases = [
                ("PB999999", "500.00", 404, "unknown_meter"),
                (shop.home.serial, "0.00", 422, "amount_below_minimum"),
                (shop.home.serial, "9.99", 422, "amount_below_minimum"),
                (shop.home.serial, "50000.01", 422, "amount_above_maximum"),
                ("POST-1", "500.00", 409, "postpaid_account"),
                ("NOSTS-1", "500.00", 409, "meter_without_sts"),
                ("OLDKEY-1", "500.00", 409, "key_change_needed"),
                ("DDTK-1", "500.00", 409, "key_type_refused"),
                ("OTHER-1", "500.00", 409, "vending_key_unknown"),
                ("EA07-1", "500.00", 409, "meter_key_unsupported"),
                ("STORE-1", "500.00", 409, "meter_not_billed"),
                (shop.home.drn, "500.00", 409, "ambiguous_meter"),
            ]
            before = await shop.count("journals")
            answers = {}
            for number, (meter, amount, status, code) in enumerate(cases):
                response = await shop.vend(f"m-{number}", amount, meter=meter)
                assert (response.status_code, response.json()["error"]["code"]) == (status, code)
                answers[number] = response.content
            await add_home(shop.conn, "PB999999", "9")
            await shop.conn.execute("alter table meter_records disable trigger keep_record")
            await shop.conn.execute("update meter_records set ken = 255, key_type = 2")
            for number, (meter, amount, status, _) in enumerate(cases):
                again = await shop.vend(f"m-{number}", amount, meter=meter)
                read = await shop.get(f"/v1/vends/m-{number}")
                assert {(each.status_code, each.content) for each in (again, read)} == {(status, answers[number])}
            limits = [(await shop.get(f"/v1/vends/m-{number}")).json()["error"]["limit"] for number in (1, 3)]
            assert limits == ["10.00", "50000.00"]
            assert await shop.count("journals") == before
            assert await shop.one("select count(*) from last_tids") == 0

    asyncio.run(story())


def test_stopped_vendor_sells_nothing_but_reads_its_answers(database_url: str) -> None:
    """What was sold before the stop can still be reprinted."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            sold = await shop.vend("m-1")
            await shop.conn.execute("update vendors set active = false")
            refused = await shop.vend("m-2")
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "vendor_inactive")
            assert (await shop.vend("m-1")).content == sold.content

    asyncio.run(story())


def test_tids_run_out_of_look_ahead_after_an_hour_of_them(database_url: str) -> None:
    """A clock far behind the meter's last TID is refused rather than followed."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.vend("m-1")
            shop.clock.now_ms -= 2 * 3_600_000
            refused = await shop.vend("m-2")
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "tid_too_far_ahead")

    asyncio.run(story())


def test_recharge_of_a_cut_off_account_orders_the_restore(database_url: str) -> None:
    """Supply was off; the vend that clears the debt orders it on, under the meter's next epoch."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(-12_000)
            await shop.confirm_orders()
            answer = (await shop.vend("m-1")).json()
            assert (answer["supply"]["state_before"], answer["supply"]["state_after_desired"]) == ("off", "on")
            texts = [line["text"] for line in answer["lines"]]
            assert "Arrears cleared: INR 120.00" in texts
            assert "Supply restored: yes, it returns by itself" in texts
            relay = await shop.one("select relay from supply_orders where state = 'pending' and kind = 'supply'")
            assert relay == "on"

    asyncio.run(story())


def test_recharge_that_leaves_a_debt_keeps_supply_off_and_says_how_much_more(database_url: str) -> None:
    """The receipt and the confirmation name the same missing amount, and exactly that restores."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(-60_000)
            await shop.confirm_orders()
            orders = await shop.count("supply_orders")
            answer = (await shop.vend("m-1")).json()
            assert answer["supply"] == {
                "state_before": "off",
                "state_after_desired": "off",
                "restores_with": "100.01",
                "restores_with_minor": 10_001,
            }
            assert await shop.count("supply_orders") == orders
            confirmed = (await shop.get(f"/v1/meters/{shop.home.serial}")).json()
            assert (confirmed["supply"]["restores_with"], confirmed["sell_at_least"]) == ("100.01", "100.01")
            assert confirmed["arrears"] == "100.00"
            restored = (await shop.vend("m-2", confirmed["sell_at_least"])).json()
            assert (restored["supply"]["state_after_desired"], restored["balance_after"]) == ("on", "0.01")

    asyncio.run(story())


def test_confirmation_masks_the_consumer_and_foretells_refusals(database_url: str) -> None:
    """By serial or DRN; the name is hinted, the credit left out; a key that expired is said before selling."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await add_home(shop.conn, "OLDKEY-1", "4", sts=replace(STS, ken=100))
            by_serial = await shop.get(f"/v1/meters/{shop.home.serial}")
            assert by_serial.content == (await shop.get(f"/v1/meters/{shop.home.drn}")).content
            answer = MeterAnswer.model_validate(by_serial.json())
            assert (answer.consumer, answer.vendable) == ("G*** S***", True)
            assert CONSUMER not in by_serial.text
            refused = (await shop.get("/v1/meters/OLDKEY-1")).json()
            assert (refused["vendable"], refused["refusal"]["code"]) == (False, "key_change_needed")
            assert (await shop.get(f"/v1/meters/{shop.home.serial}", "consumer")).status_code == 200
            assert (await shop.get("/v1/meters/OLDKEY-1", "consumer")).status_code == 403
            assert await shop.count("vends") == 0

    asyncio.run(story())


def test_threshold_above_the_balance_alarms_at_once_and_only_once(database_url: str) -> None:
    """The alarm is a row, and an order to the meter; the same threshold again is no news."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(20_000)
            path = f"/v1/accounts/{shop.home.number}/threshold"
            headers = shop.headers("consumer")
            first = await shop.http.put(path, json={"threshold": "250.00"}, headers=headers)
            answer = ThresholdAnswer.model_validate(first.json())
            assert (answer.threshold, answer.balance, answer.low_alarm) == ("250.00", "200.00", True)
            again = await shop.http.put(path, json={"threshold": "250"}, headers=headers)
            assert again.content == first.content
            assert await shop.one("select array_agg(level || arm) from alarms where level = 'low'") == ["low1"]
            alarmed = "select array_agg(kind) from supply_orders where state = 'pending' and kind <> 'supply'"
            assert await shop.one(alarmed) == ["alarm"]
            off = await shop.http.put(path, json={"threshold": None}, headers=shop.headers("engineer"))
            assert (off.json()["threshold"], off.json()["low_alarm"]) == (None, False)
            bad = await shop.http.put(path, json={"threshold": "-1.00"}, headers=headers)
            assert (bad.status_code, bad.json()["error"]["code"]) == (400, "bad_amount")
            vendor = await shop.http.put(path, json={"threshold": "1.00"}, headers=shop.headers("vendor"))
            assert (vendor.status_code, vendor.json()["error"]["code"]) == (403, "not_allowed")

    asyncio.run(story())


def test_account_shows_balance_and_todays_use_before_and_after_yesterday_is_closed(database_url: str) -> None:
    """Today's money is what today adds to the month's bill, whether yesterday's journal is written yet or not."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(500_000)
            untouched = AccountAnswer.model_validate((await shop.get("/v1/accounts/100200300", "consumer")).json())
            assert (untouched.today.day, untouched.today.energy_wh) == ("2026-11-01", 0)
            assert untouched.latest_reading_at is None
            midnight = datetime(2026, 11, 20, 18, 30, tzinfo=UTC)
            await shop.read(midnight - timedelta(hours=1), 305_000)
            await shop.read(midnight + timedelta(hours=1), 307_000)
            await shop.read(NOON, 310_000)
            # 300 kWh an hour before midnight and 302 an hour after: 301 at midnight, 305 now.
            expected = _bill(305_000, 21) - _bill(301_000, 20)
            answer = (await shop.get("/v1/accounts/100200300", "consumer")).json()
            AccountAnswer.model_validate(answer)
            assert answer["today"]["day"] == "2026-11-21"
            assert (answer["today"]["energy_wh"], answer["today"]["charge_minor"]) == (4_000, expected)
            assert answer["latest_reading_at"] == answer["money_time"] == "2026-11-21T12:00:00.000+00:00"
            assert answer["last_recharge"] is None
            await _close(shop, date(2026, 11, 20))
            assert (await shop.get("/v1/accounts/100200300", "consumer")).json() == answer
            await _close(shop, date(2026, 11, 21))
            closed = (await shop.get("/v1/accounts/100200300", "consumer")).json()
            assert (closed["today"]["day"], closed["today"]["energy_wh"]) == ("2026-11-22", 0)
            assert closed["today"]["charge_minor"] == _bill(305_000, 22) - _bill(305_000, 21)

    asyncio.run(story())


def test_verify_reads_a_sold_token_and_names_what_is_none(database_url: str) -> None:
    """A vendor reads what was issued here; an engineer reads any digits under the meter's key."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            sold = (await shop.vend("m-1")).json()
            grouped = sold["token"]["grouped"]
            read = await _verify(shop, grouped, "vendor")
            TokenAnswer.model_validate(read)
            assert (read["class"], read["subclass"], read["amount"]) == (0, 4, "500.02624")
            assert (read["tid"], read["tid_minute"]) == (sold["tid"], "2026-11-21T12:00+00:00")
            assert read["token"] == f"...{grouped[-4:]}"
            assert await _verify(shop, sold["token"]["digits"][:19], "vendor") == (400, "malformed_token")
            assert await _verify(shop, "1" * 20, "vendor") == (422, "token_not_issued")
            assert await _verify(shop, "1" * 20, "engineer") == (422, "token_crc_mismatch")
            assert await _verify(shop, grouped, "consumer") == (403, "not_allowed")
            assert await _verify(shop, grouped, "vendor", meter="PB999999") == (404, "unknown_meter")
            unsold = await _minted_elsewhere(shop)
            assert await _verify(shop, unsold, "vendor") == (422, "token_not_issued")
            assert (await _verify(shop, unsold, "engineer"))["amount"] == "1.00004"

    asyncio.run(story())


class _FaultyModule:
    """A security module that fails once in a way nobody foresaw."""

    def __init__(self, sound: SecurityModule) -> None:
        self._sound = sound
        self.broken = True

    def __getattr__(self, name: str) -> object:
        return getattr(self._sound, name)

    async def mint_currency_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount: CurrencyField, tid: int
    ) -> TokenNumber:
        """Fail while broken."""
        if self.broken:
            raise RuntimeError("vending key abab leaked")
        return await self._sound.mint_currency_credit(meter, service=service, amount=amount, tid=tid)


def test_fault_inside_a_vend_leaves_nothing_and_the_retry_sells(database_url: str) -> None:
    """Before the token, or at the very last row: no vend, no TID, no money; no trace in the answer either."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            module = _FaultyModule(await load_security_module(shop.conn, MASTER))
            state = shop.app.state.vending
            shop.app.state.vending = replace(state, desk=replace(state.desk, security_module=module))
            failed = await shop.vend("m-1")
            assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal_error")
            assert "leaked" not in failed.text
            module.broken = False
            await shop.conn.execute(
                "create function fail() returns trigger language plpgsql as $$ begin raise 'disk full'; end $$;"
                "create constraint trigger fail after insert on tokens deferrable initially deferred"
                " for each row execute function fail()"
            )
            assert (await shop.vend("m-1")).status_code == 500
            assert [await shop.count(table) for table in ("vends", "tokens", "journals")] == [0, 0, 0]
            assert await shop.one("select last_tid from last_tids where meter_id = %s", shop.home.meter_id) is None
            assert (await shop.get("/v1/vends/m-1")).json()["error"]["code"] == "unknown_vend"
            await shop.conn.execute("drop trigger fail on tokens")
            assert (await shop.vend("m-1")).status_code == 200

    asyncio.run(story())


def test_vend_whose_connection_dies_is_busy_and_sells_on_retry(database_url: str) -> None:
    """503 with a time to come back, nothing half written; the same message id then sells once."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            async with await psycopg.AsyncConnection.connect(database_url) as holder:
                await lock(holder, [shop.home.account_id])
                waiting = asyncio.create_task(shop.vend("m-1"))
                while not await shop.one(
                    "select bool_or(pg_terminate_backend(pid)) from pg_stat_activity"
                    " where application_name = 'vending' and wait_event_type = 'Lock'"
                ):
                    pass
                busy = await waiting
            assert (busy.status_code, busy.json()["error"]["code"]) == (503, "database_busy")
            assert busy.headers["retry-after"] == "2"
            assert await shop.count("vends") == 0
            assert (await shop.vend("m-1")).status_code == 200
            assert await shop.count("tokens") == 1

    asyncio.run(story())


def test_logs_hold_no_token_secret_or_name(database_url: str) -> None:
    """Ids and outcomes are logged, what could be spent or hurt is not."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            with capture_logs() as logs:
                digits = (await shop.vend("m-1")).json()["token"]["digits"]
                await _verify(shop, digits, "vendor")
                await _verify(shop, digits, "engineer", meter="PB999999")
                await shop.get(f"/v1/accounts/{shop.home.number}", "engineer")
                await shop.vend("m-2", "0.00")
            text = str(logs)
            assert {"vend_answered", "token_read", "request_refused"} <= {each["event"] for each in logs}
            secrets = [key.secret for key in shop.keys.values()]
            assert not any(word in text for word in (digits, CONSUMER, *CONSUMER.split(), *secrets))

    asyncio.run(story())


async def _verify(shop: Shop, token: str, who: str, *, meter: str | None = None) -> Any:
    """Return the answer of a token that could be read, a dictionary, or else status and code."""
    body = {"meter": meter or shop.home.serial, "token": token}
    response = await shop.http.post("/v1/tokens/verify", json=body, headers=shop.headers(who))
    answer = response.json()
    return answer if response.status_code == 200 else (response.status_code, answer["error"]["code"])


async def _minted_elsewhere(shop: Shop) -> str:
    """Mint a good token for the home's meter that no vend here knows of."""
    module = await load_security_module(shop.conn, MASTER)
    record = key_of(shop.home.drn or "")
    amount = CurrencyField.encode(100_000)
    number = await module.mint_currency_credit(record, service=CreditService.ELECTRICITY, amount=amount, tid=1)
    return number.digits


async def _close(shop: Shop, until: date) -> None:
    """Close the home's days up to one."""
    async with shop.conn.transaction():
        await lock(shop.conn, [shop.home.account_id])
        views = await look(shop.conn, [shop.home.account_id], CALENDAR, step="day")
        view = views[shop.home.account_id]
        await post_days(shop.conn, view, until, rules=RULES, now_ms=to_ms(NOON))


def _bill(energy_wh: int, days: int) -> int:
    month = date(2026, 4, 1)
    part = one_assignment(builtin_tariff(TARIFF), load_w=3_000, opened_on=month).part_at(month)
    through_day = month + timedelta(days=days - 1)
    return total(part_lines(part, before_wh=0, energy_wh=energy_wh, zone_wh=(), through_day=through_day))
