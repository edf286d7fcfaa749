"""The calendar's edges on a real PostgreSQL: with no reading and no posting, what is due is done, once."""

from __future__ import annotations

from datetime import timedelta

import pytest

from billing.calendar import from_ms
from db.accounts import look
from db.pool import connect
from db.posting import lock_free
from db.supply_holds import approve_hold, ask_hold
from db.supply_rules import add_supply_rules
from headend.edges import calendar_sweep
from headend.edges.calendar_sweep import CHECK_MS, READ_MS
from headend.edges.commit import settle_account
from protocols.topics import shard_of
from tests.integration.calendar_town import (
    GRACE,
    JUNE_1,
    MUCH_WH,
    SHOP,
    Town,
    any_time_from,
    at,
    in_town,
)
from tests.support import CALENDAR, DAY_MS, HOUR_MS, now_ms

pytestmark = pytest.mark.db

CUT = [("off", "pending", "calendar")]
RANG_ONCE = [("exhausted", 0, 1)]
HOMES = 5


def test_opening_window_cuts_with_no_reading_and_no_posting(database_url: str) -> None:
    """Told in the evening until when, cut at the opening and told of it; nothing twice, however often it is looked."""

    async def story(town: Town) -> None:
        home = await town.home("M1")
        await town.use(home)
        evening = await town.told(home)
        ((kind, facts),) = evening.notices
        assert (kind, facts["protected_until_ms"]) == ("exhausted", at(6, "10:00"))
        assert (evening.orders, evening.alarms) == ([], RANG_ONCE)
        before = await town.written()
        for quiet in (at(5, "23:00"), at(6, "00:00"), at(6, "09:59:59")):
            await town.set_to(quiet)
            assert await town.written() == before
        await town.set_to(at(6, "10:00"))
        cut = await town.told(home)
        assert (cut.orders, cut.kinds, cut.alarms) == (CUT, ["exhausted", "cut"], RANG_ONCE)
        assert cut.notices[1][1]["cut_at_ms"] == at(6, "10:00")
        # What restores is what was said in the evening: nothing has moved the money.
        assert cut.notices[1][1]["restores_minor"] == facts["restores_minor"]
        ((orders, notices, alarms, version, fed, *moved),) = await town.written()
        assert (orders, notices, alarms) == (1, 2, 1)
        assert (version, fed) == (before[0][3] + 1, before[0][4] + 1)
        assert moved == list(before[0][5:])
        after = await town.written()
        town.sweep.begin_anew()
        for again in (at(6, "10:00"), at(6, "10:01")):
            await town.set_to(again)
            assert await town.written() == after

    in_town(database_url, at(5, "20:00"), story)


@pytest.mark.parametrize(
    ("evening", "opens"),
    [
        pytest.param(at(5, "20:00"), at(6, "10:00"), id="thursday"),
        pytest.param(at(6, "13:00"), at(7, "10:00"), id="first_saturday"),
        pytest.param(at(7, "20:00"), at(9, "10:00"), id="over_sunday"),
        pytest.param(at(10, "20:00"), at(12, "10:00"), id="over_a_holiday"),
        pytest.param(at(13, "20:00"), at(16, "10:00"), id="over_second_saturday_and_sunday"),
        pytest.param(at(9, "09:59"), at(9, "10:00"), id="a_minute_before"),
    ],
)
def test_protected_days_pass_without_a_cut_off(database_url: str, evening: int, opens: int) -> None:
    """Looked at every hour: nights, Sundays, second Saturdays, holidays change nothing; the next opening cuts."""

    async def story(town: Town) -> None:
        home = await town.home("M1")
        await town.use(home)
        assert (await town.told(home)).notices[0][1]["protected_until_ms"] == opens
        before = await town.written()
        for hour_ms in range(evening + HOUR_MS, opens, HOUR_MS):
            await town.set_to(hour_ms)
        await town.set_to(opens - CHECK_MS)
        assert await town.written() == before
        await town.set_to(opens)
        cut = await town.told(home)
        assert (cut.orders, cut.kinds, cut.alarms) == (CUT, ["exhausted", "cut"], RANG_ONCE)

    in_town(database_url, evening, story)


def test_midnight_that_ends_the_days_of_grace_cuts(database_url: str) -> None:
    """The rest of the day and two whole days of grace; the midnight after them acts by itself, and no other does."""

    async def story(town: Town) -> None:
        home = await town.home("M1", category=GRACE)
        await town.use(home)
        assert (await town.told(home)).notices[0][1]["protected_until_ms"] == at(8, "00:00")
        before = await town.written()
        for quiet in (at(6, "00:00"), at(6, "10:00"), at(7, "00:00"), at(7, "23:59:59")):
            await town.set_to(quiet)
            assert await town.written() == before
        await town.set_to(at(8, "00:00"))
        cut = await town.told(home)
        assert (cut.orders, cut.kinds, cut.alarms) == (CUT, ["exhausted", "cut"], RANG_ONCE)

    in_town(database_url, at(5, "20:00"), story)


def test_closing_window_restores_nothing(database_url: str) -> None:
    """Who was cut stays off over nights and holidays, without another order or notice, until a recharge is enough."""

    async def story(town: Town) -> None:
        home = await town.home("M1")
        await town.use(home)
        await town.set_to(at(6, "10:00"))
        cut = await town.written()
        for later in (at(6, "12:59"), at(6, "13:00"), at(7, "00:00"), at(7, "10:00"), at(8, "12:00"), at(11, "12:00")):
            await town.set_to(later)
            assert await town.written() == cut
        await town.set_to(at(11, "23:00"))
        await town.pay(home, 1_000_000)
        paid = await town.told(home)
        assert [order[0] for order in paid.orders] == ["off", "on"]
        assert paid.kinds == ["exhausted", "cut", "recharged", "restored"]

    in_town(database_url, at(5, "20:00"), story)


def test_recharge_before_the_opening_keeps_supply_on(database_url: str) -> None:
    """Who paid during the night is not looked at in the morning; who paid too little is told again, and cut."""

    async def story(town: Town) -> None:
        paid, short = await town.home("M1"), await town.home("M2")
        for home in (paid, short):
            await town.use(home)
        town.clock.at_ms = at(6, "06:00")
        await town.pay(paid, 1_000_000)
        await town.pay(short, 100)
        await town.set_to(at(6, "10:00"))
        assert (await town.told(paid)).orders == []
        assert (await town.told(paid)).kinds == ["exhausted", "recharged"]
        assert (await town.told(short)).orders == CUT
        assert (await town.told(short)).kinds == ["exhausted", "recharged", "cut"]
        # The exhaustion of another day is another alarm.
        await town.set_to(at(6, "20:00"))
        await town.use(paid, 40 * MUCH_WH)
        assert (await town.told(paid)).alarms == [("exhausted", 0, 1), ("exhausted", 0, 2)]

    in_town(database_url, at(5, "20:00"), story)


def test_new_rules_act_from_their_midnight_on(database_url: str) -> None:
    """What they permit is done when their day begins, not before; that they hold is told once."""

    async def story(town: Town) -> None:
        home = await town.home("M1")
        await town.use(home)
        await add_supply_rules(town.conn, any_time_from(JUNE_1 + timedelta(days=8)), first_open_day=JUNE_1)
        assert not await town.set_to(at(8, "23:59"))
        assert (await town.told(home)).orders == []
        assert await town.set_to(at(9, "00:00"))
        assert (await town.told(home)).orders == CUT
        assert not await town.set_to(at(9, "10:00"))

    # A Sunday: no edge of the rules before comes in between.
    in_town(database_url, at(8, "12:00"), story)


def test_new_rules_of_the_running_day_act_within_seconds(database_url: str) -> None:
    """Added in the evening, they are found when rules are read again: no midnight and no opening is waited for."""

    async def story(town: Town) -> None:
        home = await town.home("M1")
        await town.use(home)
        await add_supply_rules(town.conn, any_time_from(JUNE_1 + timedelta(days=6)), first_open_day=JUNE_1)
        assert await town.set_to(at(7, "20:00") + READ_MS)
        assert (await town.told(home)).orders == CUT
        assert not await town.set_to(at(7, "20:00") + 2 * READ_MS)

    in_town(database_url, at(7, "20:00"), story)


def test_new_rules_that_exempt_a_category_give_its_supply_back(database_url: str) -> None:
    """Who is cut off and may not be any more is on again without a reading and without a posting."""

    async def story(town: Town) -> None:
        home = await town.home("M1", category=SHOP)
        await town.use(home)
        await town.set_to(at(7, "20:00") + READ_MS)
        assert [order[0] for order in (await town.told(home)).orders] == ["off"]
        exempt = any_time_from(CALENDAR.day_of(now_ms())) + "exempt = true\n"
        await add_supply_rules(town.conn, exempt, first_open_day=JUNE_1)
        for number in range(2, 5):
            await town.set_to(now_ms() + number * READ_MS)
        assert [order[0] for order in (await town.told(home)).orders] == ["off", "on"]

    in_town(database_url, at(7, "20:00"), story)


def test_hold_that_ends_cuts(database_url: str) -> None:
    """A hold kept supply on; its end acts by itself, within seconds."""

    async def story(town: Town) -> None:
        home = await town.home("M1", category=SHOP, opened_at=from_ms(now_ms() - 2 * DAY_MS))
        now = from_ms(town.clock.at_ms)
        until = now + timedelta(hours=1)
        hold_id = await ask_hold(town.conn, home.account_id, reason="oxygen", by="A. Kaur", until=until, now=now)
        await approve_hold(town.conn, hold_id, by="B. Singh", now=now)
        await town.use(home, 300_000)
        assert (await town.told(home)).alarms == RANG_ONCE
        await town.set_to(town.clock.at_ms + READ_MS)
        assert (await town.told(home)).orders == []
        # The database's own clock tells whether a hold has ended: its end is moved to now.
        await town.conn.execute("update supply_holds set until_at = clock_timestamp()")
        await town.set_to(now_ms() + 2 * READ_MS)
        cut = await town.told(home)
        assert (cut.orders, cut.alarms) == (CUT, RANG_ONCE)
        assert cut.kinds[-1] == "cut"
        before = await town.written()
        await town.set_to(town.clock.at_ms + 2 * READ_MS)
        assert await town.written() == before

    # On the wall clock's day: holds end by the database's.
    in_town(database_url, now_ms() - READ_MS, story)


def test_locked_account_becomes_a_recheck_and_is_settled(database_url: str) -> None:
    """A sweep waits for nobody: who is held is left for a look of its own, which decides by the same hour."""

    async def story(town: Town) -> None:
        held, free = await town.home("M1"), await town.home("M2")
        for home in (held, free):
            await town.use(home)
        async with await connect(database_url, application="vending") as vending, vending.transaction():
            assert await lock_free(vending, [held.account_id]) == {held.account_id}
            await town.set_to(at(6, "10:00"))
            assert (await town.told(free)).orders == CUT
            assert (await town.told(held)).orders == []
            cursor = await town.conn.execute("select account_id from rechecks")
            assert await cursor.fetchall() == [(held.account_id,)]
        await settle_account(town.conn, held.account_id, rules=town.rules)
        cut = await town.told(held)
        assert ([order[:2] for order in cut.orders], cut.kinds) == ([("off", "pending")], ["exhausted", "cut"])
        cursor = await town.conn.execute("select account_id from rechecks")
        assert await cursor.fetchall() == []

    in_town(database_url, at(5, "20:00"), story)


def test_locked_account_that_is_settled_after_the_closing_waits_for_the_next_opening(database_url: str) -> None:
    """The hour of the look decides, not that of the sweep: nobody is cut at night for having been busy at noon."""

    async def story(town: Town) -> None:
        home = await town.home("M1")
        await town.use(home)
        async with await connect(database_url, application="vending") as vending, vending.transaction():
            await lock_free(vending, [home.account_id])
            await town.set_to(at(6, "12:59"))
        town.clock.at_ms = at(6, "13:00")
        await settle_account(town.conn, home.account_id, rules=town.rules)
        assert (await town.told(home)).orders == []
        await town.set_to(at(7, "10:00"))
        assert (await town.told(home)).orders == CUT

    in_town(database_url, at(5, "20:00"), story)


def test_clock_set_back_an_hour_cuts_nobody_early_or_twice(database_url: str) -> None:
    """The same window opens twice by the clock: who was cut is not cut again, who runs out before it is protected."""

    async def story(town: Town) -> None:
        early, late = await town.home("M1"), await town.home("M2")
        await town.use(early)
        balance = await _balance(town, early.account_id)
        await town.set_to(at(6, "10:30"))
        cut = await town.told(early)
        assert cut.orders == CUT
        await town.set_to(at(6, "09:30"))
        await town.use(late)
        assert (await town.told(late)).notices[0][1]["protected_until_ms"] == at(6, "10:00")
        await town.set_to(at(6, "09:59"))
        assert (await town.told(late)).orders == []
        await town.set_to(at(6, "10:00"))
        assert (await town.told(late)).orders == CUT
        assert await town.told(early) == cut
        # A clock that is set moves no money.
        assert await _balance(town, early.account_id) == balance

    in_town(database_url, at(5, "20:00"), story)


def test_clock_set_forward_a_day_cuts_within_a_window_only(database_url: str) -> None:
    """A day that never was opens no window: at the evening it leads to nobody is cut; back again, the day acts."""

    async def story(town: Town) -> None:
        home = await town.home("M1")
        await town.use(home)
        balance = await _balance(town, home.account_id)
        before = await town.written()
        for quiet in (at(6, "20:00"), at(5, "20:05"), at(7, "09:00"), at(6, "09:05")):
            await town.set_to(quiet)
            assert await town.written() == before
        await town.set_to(at(6, "10:00"))
        cut = await town.told(home)
        assert (cut.orders, cut.kinds, cut.alarms) == (CUT, ["exhausted", "cut"], RANG_ONCE)
        for later in (at(7, "10:00"), at(6, "10:00")):
            await town.set_to(later)
        assert await town.told(home) == cut
        assert await _balance(town, home.account_id) == balance

    in_town(database_url, at(5, "20:00"), story)


def test_taker_of_a_sweep_begins_anew_and_leaves_out_nobody(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that died between two pages leaves the rest to the next, who finds them without any edge to come."""
    monkeypatch.setattr(calendar_sweep, "ACCOUNTS_A_PAGE", 2)

    async def story(town: Town) -> None:
        shard = shard_of("M1")
        serials = [serial for number in range(1, 400) if shard_of(serial := f"M{number}") == shard][:HOMES]
        homes = [await town.home(serial) for serial in serials]
        for home in homes:
            await town.use(home)
        town.clock.at_ms = at(6, "10:00")
        await town.sweep.step(town.conn, [shard])
        orders = [(await town.told(home)).orders for home in homes]
        assert orders == [CUT, CUT, [], [], []]
        taker = calendar_sweep.CalendarSweep(town.rules)
        town.clock.at_ms = at(6, "10:05")
        for _ in range(3):
            await taker.step(town.conn, [shard])
        for home in homes:
            cut = await town.told(home)
            assert (cut.orders, cut.kinds, cut.alarms) == (CUT, ["exhausted", "cut"], RANG_ONCE)

    in_town(database_url, at(5, "20:00"), story)


def test_shard_that_is_no_longer_ours_is_left_to_its_owner(database_url: str) -> None:
    """What a process has lost in the middle of a sweep it looks at no more; taken again, it is swept again."""

    async def story(town: Town) -> None:
        home = await town.home("M1")
        await town.use(home)
        others = set(range(32)) - {shard_of("M1")}
        town.clock.at_ms = at(6, "10:00")
        for _ in range(33):
            await town.sweep.step(town.conn, others)
        assert (await town.told(home)).orders == []
        town.sweep.begin_anew()
        await town.set_to(at(6, "10:00"))
        assert (await town.told(home)).orders == CUT

    in_town(database_url, at(5, "20:00"), story)


def test_cut_off_on_an_old_word_is_held_and_told_once(database_url: str) -> None:
    """At the opening the last reading is of the evening before: the order waits until the meter is heard."""

    async def story(town: Town) -> None:
        home = await town.home("M1")
        await town.use(home)
        await town.set_to(at(6, "10:00"))
        assert (await town.told(home)).orders == [("off", "held", "calendar")]
        await town.set_to(at(7, "10:00"))
        assert (await town.told(home)).orders == [("off", "held", "calendar")]
        await town.use(home, 100_100)
        heard = await town.told(home)
        assert (heard.orders, heard.kinds, heard.alarms) == (CUT, ["exhausted", "cut"], RANG_ONCE)

    in_town(database_url, at(5, "20:00"), story, stale_ms=2 * HOUR_MS)


async def _balance(town: Town, account_id: int) -> int:
    return (await look(town.conn, [account_id], CALENDAR))[account_id].balance_minor(CALENDAR)
