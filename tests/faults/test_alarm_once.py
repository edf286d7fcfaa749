"""One alarm for each crossing, whatever order readings come in, how often, how late, and whatever is done in between.

Homes on a tariff of one paisa a Wh: a balance is money less energy, so that the plain model of this file knows it
without asking. Readings are shuffled, repeated and held back; between them people pay, books are adjusted, readings
are put right, wishes change and days are closed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import date, timedelta

import pytest

from billing.calendar import from_ms
from billing.forecast import Threshold, ThresholdKind
from billing.journals import JournalKind
from db.audit import run_checks
from db.corrections import apply, approve, compute, propose_edits
from db.posting import lock_and_look
from db.readings import ensure_partitions
from db.registry import NewAccount, NewMeter, add_meter, open_account
from db.reports import accounts_of_meters
from db.tariffs import add_tariff
from db.thresholds import set_thresholds
from headend.edges.close_day import close_day
from prepaid.embedded import EmbeddedNats
from tests.support import (
    CALENDAR,
    HOUR_MS,
    RATED_W,
    REGISTER_END_WH,
    REGISTER_WH,
    RULES,
    Home,
    Message,
    Site,
    now_ms,
    open_site,
    reading,
    running_ingest,
)

pytestmark = [pytest.mark.db, pytest.mark.broker]

FLAT = """
id = "a-paisa-a-wh"
effective_from = 2025-01-01

[[band]]
energy = [{ rate_milli_per_kwh = 1_000_000 }]
"""
# A month ends on the third day: late readings move an edge between two bills.
FIRST_DAY = date(2025, 6, 29)
OPENED_MS = CALENDAR.midnight_ms(FIRST_DAY)
HOMES, ROUNDS, HOURS_A_ROUND = 5, 12, 8
HOUR_WH_MAX = 500
EMERGENCY_MINOR = (0, 300)
# The meter's amount ends in 50, the others in 00: no wish is ever both.
OWN_MINOR = tuple(range(50, 3_000, 100))
FURTHER_MINOR = tuple(range(100, 4_000, 100))
REPEATED, LATE = 0.3, 0.1

# A level that rang: its name in the table, and its balance.
Rung = tuple[str, int]


@dataclass(slots=True, kw_only=True)
class Level:
    """One balance to ring at; `raised` until the balance has been above it by something that people did."""

    name: str
    minor: int
    raised: bool = False

    def compare(self, balance_minor: int, *, people: bool, rung: list[Rung]) -> None:
        """The whole rule: below, it rings unless it has; only what people do makes it ready to ring again."""
        if balance_minor <= self.minor and not self.raised:
            self.raised = True
            rung.append((self.name, self.minor))
        elif balance_minor > self.minor and people:
            self.raised = False


@dataclass(slots=True, kw_only=True)
class Plain:
    """What is known of one home without the database: money, readings as they hold, levels."""

    home: Home
    money_minor: int
    own: Level
    exhausted: Level
    further: list[Level] = field(default_factory=list)
    # By hour since the opening: what the register will show, and what holds of it that has arrived.
    registers: list[int] = field(default_factory=list)
    holds: dict[int, int | None] = field(default_factory=dict)
    rung: list[Rung] = field(default_factory=list)

    @property
    def latest_hour(self) -> int:
        """The latest hour whose reading holds; 0 is the installation."""
        return max((hour for hour, register in self.holds.items() if register is not None), default=0)

    @property
    def balance_minor(self) -> int:
        """Money less energy."""
        latest = self.holds.get(self.latest_hour)
        return self.money_minor - ((REGISTER_WH if latest is None else latest) - REGISTER_WH)

    def compare(self, *, people: bool) -> None:
        """Compare the balance with all levels."""
        for level in (self.own, *self.further, self.exhausted):
            level.compare(self.balance_minor, people=people, rung=self.rung)

    def message(self, hour: int) -> Message:
        """Make the reading of an hour."""
        return reading(self.home.serial, _hour_ms(hour), self.registers[hour])


@dataclass(slots=True, kw_only=True)
class Street:
    """The homes, chance, and what is held back."""

    site: Site
    rng: random.Random
    homes: list[Plain]
    late: list[tuple[Plain, int]] = field(default_factory=list)
    seen_alarm: int = 0
    seen_notice: int = 0
    done: Counter[str] = field(default_factory=Counter)

    async def read(self, round_number: int) -> None:
        """Send a round of hours: shuffled, some repeated, some not yet, with some that were held back before."""
        first = 1 + round_number * HOURS_A_ROUND
        fresh = [(plain, hour) for plain in self.homes for hour in range(first, first + HOURS_A_ROUND)]
        held = [each for each in fresh if self.rng.random() < LATE]
        due = [each for each in self.late if self.rng.random() < 0.5]
        self.late = [each for each in (*self.late, *held) if each not in due]
        sent = [each for each in fresh if each not in held] + due
        known = [(plain, hour) for plain in self.homes for hour in plain.holds]
        again = self.rng.sample(sent + known, round(REPEATED * len(sent)))
        messages = [plain.message(hour) for plain, hour in sent + again]
        self.rng.shuffle(messages)
        await self.site.send(*messages)
        self.done.update(sent=len(sent), again=len(again), late=len(due))
        for plain, hour in sent:
            plain.holds[hour] = plain.registers[hour]
        for plain in self.homes:
            plain.compare(people=False)
        await self.agree()

    async def pay(self, plain: Plain) -> None:
        """A recharge, or an entry of the office that may take as well as give."""
        kind, least = (JournalKind.VEND, 100) if self.rng.random() < 0.6 else (JournalKind.ADJUSTMENT, -1_500)
        amount_minor = self.rng.randrange(least, 4_000) or 1
        await self.site.post(plain.home, kind, amount_minor)
        plain.money_minor += amount_minor
        plain.compare(people=True)
        self.done[kind.value] += 1

    async def wish(self, plain: Plain) -> None:
        """Other wishes: another amount for the meter, one more, one less, one in the place of another."""
        amounts = [level.minor for level in plain.further]
        match self.rng.randrange(3):
            case 0:
                plain.own.minor = self.rng.choice(OWN_MINOR)
            case 1 if amounts:
                amounts.remove(self.rng.choice(amounts))
            case _:
                amounts = [*amounts[-2:], self.rng.choice([each for each in FURTHER_MINOR if each not in amounts])]
        wanted = [Threshold(kind=ThresholdKind.AMOUNT, value=minor) for minor in (plain.own.minor, *amounts)]
        async with self.site.conn.transaction():
            view = await lock_and_look(self.site.conn, plain.home.account_id, RULES)
            await set_thresholds(self.site.conn, view, wanted, rules=RULES, now_ms=now_ms())
        kept = {level.minor: level for level in plain.further}
        plain.further = [kept.get(minor) or Level(name="low", minor=minor) for minor in amounts]
        plain.compare(people=True)
        self.done["wish"] += 1

    async def put_right(self, plain: Plain) -> None:
        """The latest reading was wrong: another register is put in its place, or none."""
        hour = plain.latest_hour
        before = max((each for each, wh in plain.holds.items() if wh is not None and each < hour), default=0)
        holds = plain.holds.get(hour)
        if not before or holds is None or holds == plain.registers[hour - 1]:
            return
        register_wh = None
        if self.rng.random() < 0.7:
            register_wh = self.rng.randrange(plain.registers[hour - 1], holds)
        correction = await propose_edits(
            self.site.conn, [(plain.home.serial, from_ms(_hour_ms(hour)), register_wh)], reason="photograph", by="Kaur"
        )
        summary = await compute(self.site.conn, correction, rules=RULES)
        await approve(self.site.conn, correction, by="Gill", cut_offs=summary.to_cut)
        assert (await apply(self.site.conn, correction, rules=RULES)).applied == 1
        plain.holds[hour] = register_wh
        plain.compare(people=True)
        self.done["void" if register_wh is None else "edit"] += 1

    async def close(self) -> None:
        """Close the days before the latest reading's, whatever is still on its way."""
        latest = min(plain.latest_hour for plain in self.homes)
        until = CALENDAR.day_of(_hour_ms(latest)) - timedelta(days=1)
        if until >= FIRST_DAY:
            await close_day(self.site.conn, until, rules=RULES)
            self.done["close"] += 1

    async def agree(self) -> None:
        """Compare what was written since the last time with what the model has rung, home by home."""
        await self.site.settled()
        alarms = await self.site.rows(
            "select id, account_id, level, level_minor, balance_minor from alarms where id > %s order by id",
            self.seen_alarm,
        )
        notices = await self.site.rows(
            "select id, account_id, kind, (facts ->> 'threshold_minor')::bigint from notices"
            " where id > %s and kind in ('low', 'exhausted') order by id",
            self.seen_notice,
        )
        for plain in self.homes:
            own = plain.home.account_id
            rang = [(level, minor) for _, account, level, minor, _ in alarms if account == own]
            assert Counter(rang) == Counter(plain.rung), plain.home.serial
            _agree_notices(plain, [(kind, minor) for _, account, kind, minor in notices if account == own])
            plain.rung.clear()
        assert all(balance_minor <= level_minor for *_, level_minor, balance_minor in alarms)
        self.seen_alarm = max([self.seen_alarm, *(row[0] for row in alarms)])
        self.seen_notice = max([self.seen_notice, *(row[0] for row in notices)])


def _agree_notices(plain: Plain, told: list[tuple[str, int | None]]) -> None:
    """Each exhaustion is told once; of warnings that rang at once the lowest, none twice, none that did not ring."""
    low = [minor for name, minor in plain.rung if name == "low"]
    warned = [minor for kind, minor in told if kind == "low"]
    assert not Counter(warned) - Counter(low)
    assert bool(warned) == bool(low)
    if low:
        assert min(low) in warned
    exhausted = [minor for name, minor in plain.rung if name == "exhausted"]
    assert len([kind for kind, _ in told if kind == "exhausted"]) == len(exhausted)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 7))])
def test_alarm_rings_once_for_each_crossing(database_url: str, nats: EmbeddedNats, seed: int) -> None:
    """Per account, level and arm one alarm, and one notice that says so: as the plain rule has it, round by round."""

    async def run() -> None:
        rng = random.Random(seed)
        async with open_site(database_url, nats) as site:
            await add_tariff(site.conn, FLAT)
            days = {from_ms(_hour_ms(hour)).date() for hour in range(1 + ROUNDS * HOURS_A_ROUND)}
            await ensure_partitions(site.conn, days)
            homes = [await _open_home(site, f"M{number}", rng) for number in range(1, HOMES + 1)]
            street = Street(site=site, rng=rng, homes=homes)
            await street.agree()
            async with running_ingest(site):
                for round_number in range(ROUNDS):
                    await street.read(round_number)
                    await _people_act(street)
            for plain in homes:
                assert await site.balance(plain.home) == plain.balance_minor
                arms = await site.rows(
                    "select level, n, array_agg(arm order by id), array_agg(distinct arm) from alarms"
                    " where account_id = %s group by 1, 2",
                    plain.home.account_id,
                )
                assert all(as_written == distinct for _, _, as_written, distinct in arms)
            assert await site.reasons() == []
            # These vends come without a vendor.
            report = await run_checks(site.conn, CALENDAR)
            assert [check.line() for check in report.checks if check.broken and check.id != "I6"] == []
            # What the story is about has happened, some of it often.
            happened = Counter(level for (level,) in await site.rows("select level from alarms"))
            assert min(happened["low"], happened["exhausted"], street.done["late"], street.done["edit"]) >= 5
            assert min(street.done["void"], street.done["close"]) >= 1

    asyncio.run(run())


async def _people_act(street: Street) -> None:
    """Let some of the homes be acted upon, one act after another."""
    for plain in street.homes:
        for act, chance in ((street.pay, 0.6), (street.wish, 0.4), (street.put_right, 0.3)):
            if street.rng.random() < chance:
                await act(plain)
                await street.agree()
    if street.rng.random() < 0.4:
        await street.close()
        await street.agree()


async def _open_home(site: Site, serial: str, rng: random.Random) -> Plain:
    """Open an account with some credit and a wish, and decide what its register will show."""
    await add_meter(site.conn, NewMeter(serial=serial, rated_w=RATED_W, register_end_wh=REGISTER_END_WH))
    own_minor, credit_minor, emergency_minor = rng.choice(OWN_MINOR), rng.randrange(3_000), rng.choice(EMERGENCY_MINOR)
    account = NewAccount(
        number=serial,
        consumer=f"Household {serial}",
        usage_point=serial,
        area="test",
        meter_serial=serial,
        opened_at=from_ms(OPENED_MS),
        register_wh=REGISTER_WH,
        tariff_id="a-paisa-a-wh",
        sanctioned_load_w=3_000,
        threshold_minor=own_minor,
        emergency_credit_minor=emergency_minor,
        opening_credit_minor=1 + credit_minor,
    )
    account_id = await open_account(site.conn, account, rules=RULES, now_ms=now_ms())
    assert account_id is not None
    meter_id, _ = (await accounts_of_meters(site.conn, [serial]))[serial]
    registers = [REGISTER_WH]
    for _ in range(ROUNDS * HOURS_A_ROUND):
        registers.append(registers[-1] + rng.randrange(HOUR_WH_MAX))
    plain = Plain(
        home=Home(serial=serial, meter_id=meter_id, account_id=account_id),
        money_minor=1 + credit_minor,
        own=Level(name="low", minor=own_minor),
        exhausted=Level(name="exhausted", minor=-emergency_minor),
        registers=registers,
    )
    plain.compare(people=True)
    return plain


def _hour_ms(hour: int) -> int:
    return OPENED_MS + hour * HOUR_MS


def test_void_reading_that_comes_again_is_a_duplicate(database_url: str, nats: EmbeddedNats) -> None:
    """A latest reading that an edit has made void is still stored: sent again, it costs nothing and stops nobody."""

    async def run() -> None:
        rng = random.Random(5)
        async with open_site(database_url, nats) as site:
            await add_tariff(site.conn, FLAT)
            await ensure_partitions(site.conn, {from_ms(_hour_ms(hour)).date() for hour in range(60)})
            home = await _open_home(site, "M1", rng)
            async with running_ingest(site):
                await site.send(home.message(1), home.message(2), home.message(3))
                edit = [("M1", from_ms(_hour_ms(3)), None)]
                correction = await propose_edits(site.conn, edit, reason="absurd", by="Kaur")
                summary = await compute(site.conn, correction, rules=RULES)
                await approve(site.conn, correction, by="Gill", cut_offs=summary.to_cut)
                await apply(site.conn, correction, rules=RULES)
                await site.settled()
                await site.send(home.message(3))
                await site.send(home.message(4))
            home.holds = {hour: home.registers[hour] for hour in (1, 2, 4)}
            assert await site.balance(home.home) == home.balance_minor

    asyncio.run(run())
