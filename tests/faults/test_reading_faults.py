"""Readings as meters of the field send them: again, out of order, late, over the register's end, from wrong clocks.

Every test makes its readings from a seed, counts the faults that it has put in, and ends with the same proof: what was
stored is what the meters said, what was refused is kept, and every balance is what the plain oracle says.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import LocalCalendar, from_ms, to_ms
from db.registry import NewMeter, add_meter
from headend.edges.close_day import close_day
from prepaid.embedded import EmbeddedNats
from protocols.topics import shard_of
from tests.faults.harness import Facts, Key, Meter, Town, Trial, make_town, prove, prove_money, settle_in
from tests.support import (
    CALENDAR,
    DAY_MS,
    HOUR_MS,
    RATED_W,
    REGISTER_END_WH,
    RULES,
    T0,
    Message,
    Site,
    now_ms,
    open_site,
    reading,
    running_ingest,
)

pytestmark = [pytest.mark.db, pytest.mark.broker]

UNHURRIED_S = 60.0
# Register ends of meters with five to eight digits of kWh.
REGISTER_ENDS_WH = (100_000_000, 1_000_000_000, 10_000_000_000, 100_000_000_000)


def _trial(
    database_url: str,
    nats: EmbeddedNats,
    town: Town,
    story: Callable[[Site, Trial], Awaitable[None]],
) -> None:
    """Tell a story of a town with ingest running."""

    async def told() -> None:
        with Trial(town.seed) as trial:
            # Nothing comes again of itself, however slow the machine: what does is counted.
            async with open_site(database_url, nats, ack_wait_s=UNHURRIED_S) as site:
                await settle_in(site, town)
                async with running_ingest(site, lease_s=UNHURRIED_S, ack_wait_s=UNHURRIED_S, calendar=town.calendar):
                    await story(site, trial)

    asyncio.run(told())


def _again(rng: random.Random, messages: Sequence[Message], share: float) -> list[Message]:
    """Send some messages once more, at any later place."""
    sent = list(messages)
    for place in sorted(rng.sample(range(len(messages)), int(share * len(messages))), reverse=True):
        sent.insert(rng.randint(place + 1, len(sent)), messages[place])
    return sent


def _out_of_order(rng: random.Random, messages: Sequence[Message], window: int) -> list[Message]:
    """Let messages arrive up to a window's length away from their places."""
    places = sorted(range(len(messages)), key=lambda place: place + rng.uniform(0, window))
    return [messages[place] for place in places]


def _turned(messages: Sequence[Message], town: Town) -> int:
    """Count the neighbours of one meter that arrive in the wrong order."""
    instant_of = {meter.message(at_ms): at_ms for meter in town.meters for at_ms in meter.energy_wh}
    arrived: dict[str, list[int]] = {}
    for message in messages:
        arrived.setdefault(message[0], []).append(instant_of[message])
    return sum(later < earlier for instants in arrived.values() for earlier, later in pairwise(instants))


@pytest.mark.parametrize("seed", [1_301, pytest.param(1_302, marks=pytest.mark.faults)])
def test_repeated_and_reordered_readings_cost_what_they_cost_in_order(
    database_url: str, nats: EmbeddedNats, seed: int
) -> None:
    """F13: half of all readings come again, all come up to 100 places out of order: the same bills, each counted."""
    town = make_town(seed, meters=25, readings=96)

    async def story(site: Site, trial: Trial) -> None:
        messages = _out_of_order(trial.rng, _again(trial.rng, town.messages, 0.5), window=100)
        again, turned = len(messages) - len(town.messages), _turned(messages, town)
        trial.note(f"{again} again, {turned} turned around")
        assert again > 1_000
        assert turned > 500
        await site.publish(*messages)
        await prove(site, town)
        totals = await site.totals()
        assert (totals.received, totals.duplicate) == (len(messages), again)

    _trial(database_url, nats, town, story)


@pytest.mark.parametrize("closed", [False, True])
def test_readings_late_by_up_to_35_days_cost_what_they_cost_in_time(
    database_url: str, nats: EmbeddedNats, closed: bool
) -> None:
    """F14: 1 h, 1 day and 34 days late are fitted in, also into closed days; 36 days late is held, uncharged."""
    # A reading every 6 hours for 40 days, over the end of a month.
    town = make_town(1_401 + closed, meters=12, readings=160, step_ms=6 * HOUR_MS)

    async def story(site: Site, trial: Trial) -> None:
        last_ms = max(at_ms for _, at_ms in town.keys)
        kinds: dict[str, list[Key]] = {"an hour": [], "a day": [], "34 days": [], "36 days": []}
        for meter in town.meters:
            instants = sorted(meter.energy_wh)
            kinds["an hour"].append((meter.serial, instants[-2]))
            kinds["a day"].append((meter.serial, trial.rng.choice([at for at in instants if at < last_ms - DAY_MS])))
            near = [at for at in instants if last_ms - 35 * DAY_MS <= at < last_ms - 33 * DAY_MS]
            kinds["34 days"].extend((meter.serial, at) for at in trial.rng.sample(near, 2))
            far = [at for at in instants if at < last_ms - 36 * DAY_MS]
            kinds["36 days"].extend((meter.serial, at) for at in trial.rng.sample(far, 2))
        for kind, keys in kinds.items():
            trial.note(f"late by {kind}: {len(keys)}")
            assert len(keys) >= len(town.meters)
        late = {key for keys in kinds.values() for key in keys}
        too_late = {key for key in late if key[1] < last_ms - 35 * DAY_MS}
        assert too_late >= set(kinds["36 days"])
        by_key = dict(zip(town.keys, town.messages, strict=True))
        await site.send(*[message for key, message in by_key.items() if key not in late])
        if closed:
            await close_day(site.conn, CALENDAR.day_of(last_ms) - timedelta(days=2), rules=RULES)
        await site.publish(*trial.rng.sample([by_key[key] for key in sorted(late)], len(late)))
        await prove(site, town, Facts(held=frozenset(too_late), not_stored=frozenset(too_late)))

    _trial(database_url, nats, town, story)


@pytest.mark.parametrize("seed", [1_501, pytest.param(1_502, marks=pytest.mark.faults)])
def test_registers_that_roll_over_lose_no_energy_even_repeated(
    database_url: str, nats: EmbeddedNats, seed: int
) -> None:
    """F15: registers of five to eight digits pass their end, half of all readings come again: every Wh counts once."""
    town = make_town(seed, meters=24, readings=48, end_wh=REGISTER_ENDS_WH, ends_after_wh=4_000)

    async def story(site: Site, trial: Trial) -> None:
        fell = sum(
            meter.register_wh(later) < meter.register_wh(earlier)
            for meter in town.meters
            for earlier, later in pairwise(sorted(meter.energy_wh))
        )
        trial.note(f"{fell} registers roll over")
        assert fell >= len(town.meters) * 3 // 4
        messages = _again(trial.rng, town.messages, 0.5)
        # In several sends, so that roll-overs lie in batches of their own and in the middle of others.
        for first in range(0, len(messages), 300):
            await site.send(*messages[first : first + 300])
        await prove(site, town)
        rolled = await site.one("select count(*) from register_segments where reason = 'rollover'")
        assert rolled == fell
        assert (await site.totals()).duplicate == len(messages) - len(town.messages)

    _trial(database_url, nats, town, story)


def test_registers_that_fall_are_kept_and_charge_nothing(database_url: str, nats: EmbeddedNats) -> None:
    """F16: zeros of brown-outs, jumps back and registers that begin anew are held; what is right goes on counting."""
    town = make_town(1_601, meters=24, readings=48)

    async def story(site: Site, trial: Trial) -> None:
        wrong: list[tuple[Key, Message]] = []
        not_stored: set[Key] = set()
        for number, meter in enumerate(town.meters):
            instants = sorted(meter.energy_wh)
            # Between its good readings: a zero, a register of some time ago.
            for register_wh in (0, meter.start_wh - 1):
                at_ms = trial.rng.choice(instants[1:-1]) - trial.rng.randrange(1, HOUR_MS)
                wrong.append(((meter.serial, at_ms), reading(meter.serial, at_ms, register_wh)))
            if number % 4 == 0:
                # From some hour on the register counts from nothing: an engineer has to say what was used.
                began_ms = instants[trial.rng.randrange(10, 40)]
                for at_ms in instants[instants.index(began_ms) :]:
                    not_stored.add((meter.serial, at_ms))
                    since_wh = meter.energy_wh[at_ms] - meter.energy_wh[began_ms]
                    shown = reading(meter.serial, at_ms, min(since_wh, meter.start_wh - 1))
                    wrong.append(((meter.serial, at_ms), shown))
        trial.note(f"{len(wrong)} wrong readings, {len(not_stored)} of them after a reset")
        assert len(not_stored) > 40
        by_key = {key: message for key, message in zip(town.keys, town.messages, strict=True) if key not in not_stored}
        everything = sorted([*by_key.items(), *wrong], key=lambda each: each[0][1])
        await site.publish(*_again(trial.rng, [message for _, message in everything], 0.2))
        held = frozenset(key for key, _ in wrong)
        await prove(site, town, Facts(held=held, not_stored=frozenset(not_stored)))

    _trial(database_url, nats, town, story)


# Another meter in the same place -------------------------------------------------------------------------------------


async def _swap(site: Site, account: str, serial: str, at: datetime, *, register_wh: int, start_wh: int) -> None:
    """Take an account's meter away and put another one in its place, all in one transaction."""
    async with site.conn.transaction():
        await add_meter(site.conn, NewMeter(serial=serial, rated_w=RATED_W, register_end_wh=REGISTER_END_WH))
        place = await site.one("select usage_point_id from accounts where number = %s", account)
        await site.conn.execute(
            "update installations set to_at = %s where usage_point_id = %s and to_at is null", (at, place)
        )
        meter_id = await site.one("select id from meters where serial = %s", serial)
        await site.conn.execute(
            "insert into installations (usage_point_id, meter_id, role, from_at) values (%s, %s, 'billing', %s)",
            (place, meter_id, at),
        )
        await site.conn.execute(
            "insert into register_segments values (%s, %s, %s, %s, 'swap')", (meter_id, at, register_wh, start_wh)
        )
        # The account goes with its meter's shard, and both owners are told.
        shards = [await site.one("select shard from accounts where number = %s", account), shard_of(serial)]
        await site.conn.execute(
            "update accounts set shard = %s, version = version + 1 where number = %s", (shards[1], account)
        )
        for shard in sorted(set(shards)):
            await site.conn.execute(
                "insert into change_feed (shard, account_id, version) select %s, id, version from accounts"
                " where number = %s",
                (shard, account),
            )


def test_swapped_meters_charge_each_energy_once(database_url: str, nats: EmbeddedNats) -> None:
    """F17: the old meter goes on reporting, the new one begins later, and the old one comes back at another home."""
    drawn = make_town(1_701, meters=2, readings=24 * 6)
    # Nobody runs out of credit: who takes a meter away also has to take its orders along.
    whole = replace(drawn, meters=tuple(replace(meter, credit_minor=1_000_000) for meter in drawn.meters))
    swapped_ms = T0 + 2 * DAY_MS
    first, second = whole.meters
    later_ms = [at_ms for at_ms in sorted(first.energy_wh) if at_ms > swapped_ms]
    # What the homes use after the swap is read from other meters: T0's from "NEW", T1's from "T0", that was T0's.
    new = _from(first, "NEW", swapped_ms, register_wh=50_000)
    back = _from(second, "T0", swapped_ms, register_wh=first.register_wh(swapped_ms) + 2_000)

    async def story(site: Site, trial: Trial) -> None:
        early = [m.message(at_ms) for m in (first, second) for at_ms in sorted(m.energy_wh) if at_ms <= swapped_ms]
        await site.send(*early)
        await close_day(site.conn, CALENDAR.day_of(swapped_ms) - timedelta(days=1), rules=RULES)
        await _swap(site, "T0", "NEW", from_ms(swapped_ms), register_wh=50_000, start_wh=first.energy_wh[swapped_ms])
        trial.note("T0 is taken away, NEW stands in its place")
        # It has not heard of it, and reports for a day, from where it lies now.
        overlap = [at_ms - HOUR_MS // 2 for at_ms in later_ms[:24]]
        await site.send(*[reading("T0", at_ms, first.register_wh(swapped_ms) + 40) for at_ms in overlap])
        assert await site.one("select count(*) from quarantine where serial = 'T0'") == len(overlap)
        # The new one reports after a gap of 30 hours; what T1's old one says after it is gone counts nowhere.
        await site.send(*[new.message(at_ms) for at_ms in later_ms[30:]])
        await _swap(
            site,
            "T1",
            "T0",
            from_ms(swapped_ms),
            register_wh=back.start_wh,
            start_wh=second.energy_wh[swapped_ms],
        )
        trial.note("T0 comes back in the place of T1")
        await site.send(*[back.message(at_ms) for at_ms in later_ms])
        await site.send(*[second.message(at_ms) for at_ms in later_ms[:5]])
        assert await site.one("select count(*) from quarantine where serial = 'T1'") == 5
        await site.settled()
        stored = await site.rows(
            "select m.serial, count(*) from readings r join meters m on m.id = r.meter_id group by 1"
        )
        assert dict(stored) == {"T0": 48 + len(later_ms), "T1": 48, "NEW": len(later_ms) - 30}
        # Each home's bill is that of its own energy, whichever meter has read it.
        unread = {("T0", at_ms) for at_ms in later_ms[:30]}
        await prove_money(site, whole, [key for key in whole.keys if key not in unread])

    _trial(database_url, nats, whole, story)


def _from(meter: Meter, serial: str, at_ms: int, *, register_wh: int) -> Meter:
    """Return the meter that reads on what another one has read up to an instant."""
    before_wh = meter.energy_wh[at_ms]
    energy_wh = {at: wh - before_wh for at, wh in meter.energy_wh.items() if at > at_ms}
    return replace(meter, serial=serial, opened_ms=at_ms, start_wh=register_wh, energy_wh=energy_wh)


# Clocks --------------------------------------------------------------------------------------------------------------

BERLIN = LocalCalendar(ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize("opened_at", [datetime(2026, 3, 27, 23, tzinfo=UTC), datetime(2025, 10, 23, 22, tzinfo=UTC)])
def test_drifting_clocks_over_a_clock_change_cost_what_the_oracle_says(
    database_url: str, nats: EmbeddedNats, opened_at: datetime
) -> None:
    """F19: clocks gain or lose up to 3 s an hour, local time changes, on a tariff of hours of the day."""
    town = make_town(
        1_901,
        meters=20,
        readings=96,
        opened_ms=to_ms(opened_at),
        drift_ms=3_000,
        tariff_id="punjab-tod-commercial-2026-27",
        calendar=BERLIN,
    )

    async def story(site: Site, trial: Trial) -> None:
        offsets = {from_ms(at_ms).astimezone(BERLIN.zone).utcoffset() for _, at_ms in town.keys}
        assert len(offsets) == 2, "local time changes on the way"
        await site.publish(*_out_of_order(trial.rng, town.messages, window=20))
        await prove(site, town)

    _trial(database_url, nats, town, story)


# The end of a 32-bit clock, and its beginning.
AFTER_2106_MS, AFTER_1970_MS = 4_294_967_295_000, 0


def test_absurd_clocks_are_kept_and_charge_nothing(database_url: str, nats: EmbeddedNats) -> None:
    """F19: a meter in 1970, in 2106, a day ahead or behind is held; with its clock right it goes on counting."""
    hour_ms = now_ms() // HOUR_MS * HOUR_MS
    town = make_town(1_911, meters=24, readings=72, opened_ms=hour_ms - 73 * HOUR_MS)

    async def story(site: Site, trial: Trial) -> None:
        held: set[Key] = set()
        sent = 0
        for hour in (30, 42, 55, 70):
            wrong: list[Message] = []
            for place, meter in enumerate(town.meters):
                at_ms = sorted(meter.energy_wh)[hour - 1]
                # Some minutes beside every right reading, so that none is a conflict with one.
                beside_ms = trial.rng.randrange(1, HOUR_MS)
                clocks_ms = (
                    AFTER_1970_MS + beside_ms,
                    AFTER_2106_MS + beside_ms,
                    now_ms() + DAY_MS + beside_ms,
                    at_ms - DAY_MS - beside_ms,
                )
                clock_ms = clocks_ms[(place + hour) % 4]
                held.add((meter.serial, clock_ms))
                wrong.append(reading(meter.serial, clock_ms, meter.register_wh(at_ms)))
            upto = hour * len(town.meters)
            await site.send(*town.messages[sent:upto])
            await site.send(*wrong)
            sent = upto
            trial.note(f"hour {hour}: {len(wrong)} readings of wrong clocks")
        await site.publish(*town.messages[sent:])
        assert len(held) == 4 * len(town.meters)
        await prove(site, town, Facts(held=frozenset(held)))

    _trial(database_url, nats, town, story)
