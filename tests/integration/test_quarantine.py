"""The quarantine desk on the real parts: what is released is charged as if it had come in time, and nothing else is."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest

from db.audit import run_checks
from db.orders import wall_ms
from db.pool import connect
from db.quarantine import QuarantineRefused, list_quarantine, reject, release, show_quarantine
from db.registry import NewMeter, add_meter
from db.validation_rules import add_validation_document, noted_flags, permit_export
from headend.edges.close_day import close_day
from headend.rule_document import parse_rule_document
from prepaid.embedded import EmbeddedNats
from tests.support import (
    CALENDAR,
    HOUR_MS,
    REGISTER_WH,
    RULES,
    T0,
    Home,
    Message,
    Site,
    block,
    now_ms,
    open_site,
    reading,
    running_ingest,
)

pytestmark = [pytest.mark.db, pytest.mark.broker]

WHO = {"by": "A. Kaur", "why": "seen on site"}
# What the desk holds of one meter is accepted of another at once: the balance that a release has to lead to.
MILD = """
id = "mild"
title = "One model may reset and jump"
effective_from = 2026-01-01

[[model]]
make = "Mild"
rule.register_reset.action = "accept_and_flag"
rule.jump = { action = "accept_and_flag", severity = "info" }
rule.wrong_interval = { action = "accept_and_flag", step_s = 1800 }
"""


def _run(
    database_url: str,
    nats: EmbeddedNats,
    story: Callable[[Site], Awaitable[None]],
    clock: Callable[[], int] = wall_ms,
) -> None:
    """Tell a story on an installation with ingest running; counts add up and the audit is clean at its end."""

    async def told() -> None:
        async with open_site(database_url, nats) as site:
            document = parse_rule_document(MILD)
            day = document.effective_from
            await add_validation_document(site.conn, MILD, from_day=day, first_open_day=day)
            async with running_ingest(site, clock=clock):
                await story(site)
            totals = await site.totals()
            assert totals.stored == await site.one("select count(*) from readings")
            held = await site.rows(
                "select coalesce(sum(times - refused), 0), coalesce(sum(refused), 0) from quarantine"
            )
            assert held == [(totals.quarantined, totals.rejected)]
            report = await run_checks(site.conn, CALENDAR)
            assert report.clean, report.lines()

    asyncio.run(told())


async def _mild_home(site: Site, serial: str) -> Home:
    """Open a home whose meter's model may reset and jump."""
    home = await site.add_home(serial)
    await site.rows("update meters set make = 'Mild' where serial = %s returning id", serial)
    return home


async def _held_ids(site: Site, **chosen: str) -> list[int]:
    rows = await list_quarantine(site.conn, most=100, **chosen)  # type: ignore[arg-type]  # Filters that are texts.
    return sorted(row.id for row in rows)


async def _settle(site: Site, ids: list[int]) -> list[str]:
    """Wait until the owner has settled released rows; return their states in the order of their numbers."""

    async def settled() -> bool:
        return not await site.one("select count(*) from quarantine where state = 'released'")

    await site.until(settled, "released rows are settled")
    await site.settled()
    return [state for (state,) in await site.rows("select state from quarantine where id = any(%s) order by id", ids)]


async def _release(site: Site, ids: list[int], *, as_reset: bool = False) -> list[str]:
    assert await release(site.conn, ids, **WHO, as_reset=as_reset) == ids
    return await _settle(site, ids)


async def _same_money(site: Site, *homes: Home) -> None:
    found = await site.snapshot(homes)
    first, *others = (
        ({key[1]: bill for key, bill in found.bills.items() if key[0] == home.serial}, found.balances[home.serial])
        for home in homes
    )
    assert all(other == first for other in others)


def _sent(serial: str, registers: dict[int, int]) -> list[Message]:
    """Make a meter's readings: register by hour."""
    return [reading(serial, T0 + hour * HOUR_MS, register_wh) for hour, register_wh in registers.items()]


def test_released_jump_is_charged_though_later_readings_are_stored(database_url: str, nats: EmbeddedNats) -> None:
    """A jump that was real is fitted in before what came after it, and costs what it would have cost in time."""
    curve = {1: REGISTER_WH + 500, 2: REGISTER_WH + 20_000, 4: REGISTER_WH + 20_500}

    async def story(site: Site) -> None:
        home, control = await site.add_home("M1"), await _mild_home(site, "M2")
        for serial in ("M1", "M2"):
            for message in _sent(serial, curve):
                await site.send(message)
        (row_id,) = await _held_ids(site)
        assert await _release(site, [row_id]) == ["stored"]
        assert await site.registers("M1") == await site.registers("M2")
        await _same_money(site, home, control)
        (flag,) = await noted_flags(site.conn, most=9, rule="jump")
        assert (flag.serial, flag.severity) == ("M2", "info")
        row, raw, actions = await show_quarantine(site.conn, row_id)
        assert (row.state, raw) == ("stored", _sent("M1", curve)[1][1])
        assert [(each.action, each.by_whom, each.why) for each in actions] == [
            ("release", "A. Kaur", "seen on site"),
            ("stored", None, "stored"),
        ]
        # Released again, and sent again by the meter: nothing more is charged.
        assert await release(site.conn, [row_id], **WHO) == []
        await site.send(_sent("M1", curve)[1])
        assert (await site.totals()).duplicate == 1
        await _same_money(site, home, control)

    _run(database_url, nats, story)


def test_released_reset_begins_a_segment_and_the_readings_after_it_follow(
    database_url: str, nats: EmbeddedNats
) -> None:
    """The first is released as a reset, those after it as read, all at once; energy goes on from before the reset."""
    curve = {1: REGISTER_WH + 500, 30: REGISTER_WH + 90_000, 31: 300, 32: 900, 33: 2_000}

    async def story(site: Site) -> None:
        home, control = await site.add_home("M1"), await _mild_home(site, "M2")
        for serial in ("M1", "M2"):
            await site.send(*_sent(serial, curve))
        assert await site.reasons() == ["register_reset"] * 3
        first, *others = await _held_ids(site)
        # Without the reset the others are below the mark still: held again, with the reason.
        assert await _release(site, [others[0]]) == ["held"]
        assert await _release(site, [first], as_reset=True) == ["stored"]
        assert await _release(site, others) == ["stored", "stored"]
        assert await site.registers("M1") == await site.registers("M2")
        await _same_money(site, home, control)
        segments = await site.rows(
            "select reason, register_wh, start_wh from register_segments where meter_id = %s order by from_at",
            home.meter_id,
        )
        assert segments == [("installed", REGISTER_WH, 0), ("reset", 300, 90_300)]
        await site.send(*_sent("M1", {34: 2_500}), *_sent("M2", {34: 2_500}))
        await _same_money(site, home, control)

    _run(database_url, nats, story)


@pytest.mark.slow
def test_zero_read_between_good_ones_cannot_be_released_as_a_reset(database_url: str, nats: EmbeddedNats) -> None:
    """A brown-out read 0 once and the register went on: as a reset it is held again, and costs nothing."""
    curve = {1: REGISTER_WH + 500, 30: REGISTER_WH + 90_000, 31: 0, 32: REGISTER_WH + 90_500}

    async def story(site: Site) -> None:
        home = await site.add_home()
        await site.send(*_sent("M1", curve))
        balance = await site.balance(home)
        (row_id,) = await _held_ids(site)
        assert await _release(site, [row_id], as_reset=True) == ["held"]
        assert await site.balance(home) == balance
        assert await reject(site.conn, [row_id], **WHO) == [row_id]
        assert await reject(site.conn, [row_id], **WHO) == await release(site.conn, [row_id], **WHO) == []
        # What is rejected stays so when the frame comes again.
        await site.send(_sent("M1", curve)[2])
        assert await site.rows("select state, times from quarantine") == [("rejected", 3)]

    _run(database_url, nats, story)


@pytest.mark.parametrize("closed_days", [pytest.param(0, marks=pytest.mark.slow), 35])
def test_released_reading_beyond_the_late_window_costs_what_it_would_have_cost_in_time(
    database_url: str, nats: EmbeddedNats, closed_days: int
) -> None:
    """36 days late, with the month closed meanwhile or not: the bills are those of the meter that was in time."""
    mark = 40 * 24
    late = 4 * 24 - 1
    curve = {1: REGISTER_WH + 100, late: REGISTER_WH + 60_000, mark: REGISTER_WH + 300_000}

    async def story(site: Site) -> None:
        home, control = [await site.add_home(serial, days=41) for serial in ("M1", "M2")]
        await site.send(*_sent("M2", curve))
        first, held, last = _sent("M1", curve)
        await site.send(first, last)
        if closed_days:
            await close_day(site.conn, CALENDAR.day_of(T0) + timedelta(days=closed_days - 1), rules=RULES)
        await site.send(held)
        assert await site.reasons() == ["too_late"]
        assert await _release(site, await _held_ids(site)) == ["stored"]
        await _same_money(site, home, control)

    _run(database_url, nats, story)


def test_frame_of_a_meter_that_was_unknown_or_stood_nowhere_is_released_after_it_is_installed(
    database_url: str, nats: EmbeddedNats
) -> None:
    """A block that came before the paperwork is charged in full; what the meter has sent again is a duplicate."""

    async def story(site: Site) -> None:
        await add_meter(site.conn, NewMeter(serial="M1", rated_w=15_000, register_end_wh=10**9))
        frame = block("M1", T0 + HOUR_MS, [REGISTER_WH + 100 * hour for hour in range(1, 6)])
        await site.send(frame, reading("M3", T0 + HOUR_MS, REGISTER_WH + 7))
        reasons = await site.rows("select reason, count(*) from quarantine group by reason order by reason")
        assert reasons == [("not_installed", 5), ("unknown_meter", 1)]
        ids = await _held_ids(site, reason="not_installed")
        assert await _release(site, ids[:1]) == ["held"]
        home, control, third = [await site.add_home(serial) for serial in ("M1", "M2", "M3")]
        await site.send(
            ("amr/M2/rd", frame[1].replace(b'"M1"', b'"M2"')), reading("M1", T0 + HOUR_MS, REGISTER_WH + 100)
        )
        assert await _release(site, ids) == ["duplicate", "stored", "stored", "stored", "stored"]
        await _same_money(site, home, control)
        assert await _release(site, await _held_ids(site)) == ["stored"]
        assert await site.registers(third.serial) == {T0 + HOUR_MS: REGISTER_WH + 7}

    _run(database_url, nats, story)


def test_malformed_frame_is_decoded_again_when_it_is_released(database_url: str, nats: EmbeddedNats) -> None:
    """After software learnt to read it, its readings are stored; a bad one takes the frame's place at the desk."""

    async def story(site: Site) -> None:
        home, control = await site.add_home("M1"), await site.add_home("M2")
        good = block("M1", T0 + HOUR_MS, [REGISTER_WH + 100, REGISTER_WH + 200])
        await site.send(("amr/M2/rd", good[1].replace(b'"M1"', b'"M2"')))
        bad_first = block("M1", T0 + 4 * HOUR_MS, [0, REGISTER_WH + 300, REGISTER_WH + 400])
        for message in (good, bad_first, ("amr/M1/rd", b"{")):
            # As an older release would have held it: bytes that it could not read.
            await site.send((message[0], b"{" + message[1]))
            await site.rows(
                "update quarantine set raw = %s where id = (select max(id) from quarantine) returning id", message[1]
            )
        assert await site.reasons() == ["malformed"] * 3
        assert await _release(site, await _held_ids(site)) == ["stored", "held", "held"]
        assert await site.reasons() == ["malformed", "register_fell", "malformed"]
        row = await site.rows("select serial, read_at is not null, item from quarantine where reason = 'register_fell'")
        assert row == [("M1", True, 0)]
        await site.send(*_sent("M2", {5: REGISTER_WH + 300, 6: REGISTER_WH + 400}))
        await _same_money(site, home, control)

    _run(database_url, nats, story)


def test_reading_of_the_future_is_released_when_its_time_has_come(database_url: str, nats: EmbeddedNats) -> None:
    """While it is still ahead it is held again; by a later clock it is stored."""

    @dataclass
    class Clock:
        ahead_ms: int = 0

        def __call__(self) -> int:
            return wall_ms() + self.ahead_ms

    clock = Clock()

    async def story(site: Site) -> None:
        await site.add_home()
        await site.send(reading("M1", now_ms() + HOUR_MS, REGISTER_WH + 10))
        ids = await _held_ids(site, reason="future")
        assert await _release(site, ids) == ["held"]
        clock.ahead_ms = 2 * HOUR_MS
        assert await _release(site, ids) == ["stored"]

    _run(database_url, nats, story, clock)


def test_two_engineers_and_a_forging_meter_release_each_reading_once(database_url: str, nats: EmbeddedNats) -> None:
    """Of two at once one releases; what a meter writes into its messages releases nothing, and is held as before."""

    async def story(site: Site) -> None:
        home, control = await site.add_home("M1"), await _mild_home(site, "M2")
        curve = {1: REGISTER_WH + 500, 2: REGISTER_WH + 20_000}
        await site.send(*_sent("M1", curve), *_sent("M2", curve))
        ids = await _held_ids(site)
        fields = json.loads(_sent("M1", curve)[1][1])
        claims = {"approved": {"quarantine_id": ids[0], "item": 0}, "release": ids[0], "state": "released"}
        await site.send(
            ("amr/M1/rd", json.dumps(fields | claims).encode()),
            ("amr/M1/release", json.dumps(claims).encode()),
            ("quarantine/release", str(ids[0]).encode()),
        )
        held = await site.rows("select reason, state, count(*) from quarantine group by reason, state order by reason")
        assert held == [("jump", "held", 2), ("unknown_topic", "held", 2)]
        async with await connect(site.database_url, application="other") as other:
            done = await asyncio.gather(
                release(site.conn, ids, **WHO), release(other, ids, by="B. Singh", why="me too")
            )
        assert sorted(done) == [[], ids]
        assert await _settle(site, ids) == ["stored"]
        await _same_money(site, home, control)
        with pytest.raises(QuarantineRefused, match="belongs to no meter"):
            await release(site.conn, await _held_ids(site, reason="unknown_topic"), **WHO)

    _run(database_url, nats, story)


def test_what_a_release_cannot_make_a_reading_of_is_refused_with_what_to_do(
    database_url: str, nats: EmbeddedNats
) -> None:
    """Absurd clocks, conflicts and unknown numbers change nothing, not even for the others of the same command."""

    async def story(site: Site) -> None:
        await site.add_home()
        good = reading("M1", T0 + HOUR_MS, REGISTER_WH + 10)
        await site.send(good, reading("M1", T0 + HOUR_MS, REGISTER_WH + 11), reading("M1", 0, REGISTER_WH))
        await site.send(reading("M1", T0 + 2 * HOUR_MS, 2**63 - 1), reading("M1", T0 + 3 * HOUR_MS, -5))
        (conflict,), (absurd,), (jump,), (negative,) = [
            await _held_ids(site, reason=name) for name in ("conflict", "clock_absurd", "jump", "negative")
        ]
        for bad, told in (
            (conflict, "corrections"),
            (absurd, "profile"),
            (negative, "counts from 0"),
            (9_999, "known"),
        ):
            with pytest.raises(QuarantineRefused, match=told):
                await release(site.conn, [jump, bad], **WHO)
        with pytest.raises(QuarantineRefused, match="register that fell"):
            await release(site.conn, [jump], **WHO, as_reset=True)
        assert await site.one("select count(*) from quarantine_actions") == 0
        # More than the register has digits for: nobody can accept it.
        assert await _release(site, [jump]) == ["held"]

    _run(database_url, nats, story)


def test_flags_are_noted_once_a_meter_rule_and_day(database_url: str, nats: EmbeddedNats) -> None:
    """Export without permission, gaps and wrong intervals are stored, charged and noted; permission ends the first."""

    async def story(site: Site) -> None:
        home = await _mild_home(site, "M1")
        messages = [
            reading("M1", T0 + hour * HOUR_MS, REGISTER_WH + hour, export_wh=hour) for hour in (1, 2, 10, 11, 20)
        ]
        await site.send(*messages)
        await site.send(block("M1", T0 + 21 * HOUR_MS, [REGISTER_WH + 21, REGISTER_WH + 22]))
        flags = await noted_flags(site.conn, most=9)
        assert sorted((flag.rule, flag.expected, flag.got) for flag in flags) == [
            ("export", 0, 1),
            ("gap", 7_200, 8 * 3_600),
            ("wrong_interval", 1_800, 3_600),
        ]
        assert await permit_export(site.conn, home.account_id, may_export=True)
        assert not await permit_export(site.conn, home.account_id, may_export=True)
        await site.send(reading("M1", T0 + 25 * HOUR_MS, REGISTER_WH + 30, export_wh=30))
        assert len(await site.registers("M1")) == 8
        assert {flag.rule for flag in await noted_flags(site.conn, most=9, rule="export")} == {"export"}
        assert len(await noted_flags(site.conn, most=9)) == 4

    _run(database_url, nats, story)


def test_late_reading_from_just_after_a_rollover_takes_that_back_to_its_instant(
    database_url: str, nats: EmbeddedNats
) -> None:
    """The reading that told of the roll-over came first: the one before it counts from the end of the register, too."""
    registers = {1: 999_900, 2: 300, 3: 500, 4: 700}

    async def story(site: Site) -> None:
        homes = [await site.add_home(serial, register_wh=999_500, register_end_wh=1_000_000) for serial in ("M1", "M2")]
        await site.send(*_sent("M1", registers))
        told = {message: hour for hour, message in zip(registers, _sent("M2", registers), strict=True)}
        for hour in (1, 3, 2, 4):
            await site.send(*(message for message, at in told.items() if at == hour))
        assert await site.reasons() == []
        assert len(await site.registers("M2")) == 4
        await _same_money(site, *homes)
        found = await site.rows(
            "select register_wh, start_wh, reason from register_segments where meter_id = %s order by from_at",
            homes[1].meter_id,
        )
        assert found == [(999_500, 0, "installed"), (300, 800, "rollover"), (500, 1_000, "rollover")]

    _run(database_url, nats, story)
