"""Ingest end to end: MQTT in, rows and money out, against the real broker and database."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from billing.calendar import from_ms
from db.reports import BatchTotals
from headend.edges.close_day import close_day
from headend.edges.stream import StreamReader
from prepaid.embedded import EmbeddedNats
from protocols.topics import shard_of
from tests.support import (
    ACK_WAIT_S,
    CALENDAR,
    CREDIT_MINOR,
    DAY_MS,
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

INT64_MAX = 2**63 - 1
TIME_MS_MAX = 253_402_300_799_999
# One kWh on the first day at 3 kW: energy 3.85, fixed 7.00, rebate -0.04, duty 1.62.
GOOD_AT_MS, GOOD_WH, GOOD_CHARGE_MINOR = T0 + HOUR_MS, REGISTER_WH + 1_000, 1_243
GOOD = reading("M1", GOOD_AT_MS, GOOD_WH)


def _run(database_url: str, nats: EmbeddedNats, story: Callable[[Site], Awaitable[None]]) -> None:
    """Tell a story on an installation with ingest running; whatever happened, its counts must add up."""

    async def told() -> None:
        async with open_site(database_url, nats) as site:
            async with running_ingest(site):
                await story(site)
            unsound = await site.rows(
                "select * from batches where received <> stored + duplicate + rejected + quarantined"
            )
            assert unsound == []
            stored = await site.one("select count(*) from readings")
            refused = await site.one("select coalesce(sum(times), 0) from quarantine")
            totals = await site.totals()
            assert (totals.stored, totals.rejected + totals.quarantined) == (stored, refused)

    asyncio.run(told())


def _json(topic: str, **fields: object) -> Message:
    return topic, json.dumps({"v": 1, "meter": "M1", **fields}).encode()


def _good(serial: str) -> Message:
    return reading(serial, GOOD_AT_MS, GOOD_WH)


def _with_payload(change: Callable[[bytes], bytes]) -> Callable[[str], Message]:
    """Make the good message with other bytes."""
    return lambda serial: (f"amr/{serial}/rd", change(_good(serial)[1]))


def _with_reading(at_ms: int, register_wh: int) -> Callable[[str], Message]:
    return lambda serial: reading(serial, at_ms, register_wh)


FAULTS: dict[str, tuple[Callable[[str], Message], str]] = {
    "truncated JSON": (_with_payload(lambda payload: payload[:-9]), "malformed"),
    "200 kB": (_with_payload(lambda payload: payload.ljust(200_000)), "malformed"),
    "empty": (_with_payload(lambda payload: b""), "malformed"),
    "bad UTF-8": (_with_payload(lambda payload: payload.replace(b'"M', b'"\xff')), "malformed"),
    "topic and payload disagree": (_with_payload(lambda payload: payload.replace(b'"M', b'"N')), "malformed"),
    "unknown meter": (lambda serial: _good(f"un-{serial}"), "unknown_meter"),
    "unknown topic": (lambda serial: (f"amr/{serial}/zz", b"x"), "unknown_topic"),
    "foreign topic": (lambda serial: (f"home/{serial}", b"21"), "unknown_topic"),
    "register fell": (_with_reading(GOOD_AT_MS, REGISTER_WH - 1), "register_fell"),
    "brown-out zero": (_with_reading(GOOD_AT_MS, 0), "register_fell"),
    "jump": (_with_reading(GOOD_AT_MS, REGISTER_WH + 15_011), "jump"),
    "register of 64 bits": (_with_reading(GOOD_AT_MS, INT64_MAX), "jump"),
    "clock in 1970": (_with_reading(3_600_000, GOOD_WH), "clock_absurd"),
    "clock in 2106": (_with_reading(4_294_967_295_000, GOOD_WH), "clock_absurd"),
    "clock in 9999": (_with_reading(TIME_MS_MAX, GOOD_WH), "clock_absurd"),
    "future": (_with_reading(now_ms() + DAY_MS, GOOD_WH), "future"),
    "before installation": (_with_reading(T0 - 1, GOOD_WH), "before_installation"),
    "wrong register at installation": (_with_reading(T0, INT64_MAX), "jump"),
}


def test_fault_is_quarantined_by_name_and_the_next_good_reading_is_charged(
    database_url: str, nats: EmbeddedNats
) -> None:
    """A bad frame is kept with its bytes and its reason; the next good reading is charged as if it had never come."""

    async def story(site: Site) -> None:
        for number, (name, (make, reason)) in enumerate(FAULTS.items()):
            serial = f"M{number}"
            home = await site.add_home(serial)
            before = await site.totals()
            topic, payload = make(serial)
            await site.send((topic, payload))
            await site.send(_good(serial))
            held = await site.rows(
                "select reason, topic, raw, item, times, detail <> '' from quarantine order by id desc limit 1"
            )
            assert held == [(reason, topic, payload, 0, 1, True)], name
            assert await site.registers(serial) == {GOOD_AT_MS: GOOD_WH}, name
            assert await site.balance(home) == CREDIT_MINOR - GOOD_CHARGE_MINOR, name
            rejected = int(reason in ("malformed", "unknown_meter", "unknown_topic"))
            assert (await site.totals()).since(before) == BatchTotals(
                received=2, stored=1, duplicate=0, rejected=rejected, quarantined=1 - rejected
            ), name
        assert await site.one("select count(*) from quarantine") == len(FAULTS)

    _run(database_url, nats, story)


def test_all_faults_in_one_batch_cost_the_good_readings_nothing(database_url: str, nats: EmbeddedNats) -> None:
    """Bad frames, each sent twice between good readings, are counted up; every good reading is charged."""

    async def story(site: Site) -> None:
        home, other = await site.add_home(), await site.add_home("M3")
        bad = [make("M1") for make, _ in FAULTS.values()]
        good = [reading("M1", T0 + hour * HOUR_MS, REGISTER_WH + 100 * hour) for hour in range(2, 2 + len(bad))]
        mixed = [message for pair in zip(bad, good, strict=True) for message in pair]
        await site.send(*mixed, *bad, reading("M3", GOOD_AT_MS, GOOD_WH))
        totals = await site.totals()
        assert (totals.received, totals.stored, totals.duplicate) == (3 * len(bad) + 1, len(good) + 1, 0)
        assert await site.one("select count(*) from quarantine") == len(bad)
        assert await site.one("select min(times) from quarantine") == 2
        assert len(await site.registers("M1")) == len(good)
        charged = (await site.snapshot([home])).bills[("M1", CALENDAR.day_of(T0))]
        assert charged[0] == 100 * (1 + len(good))
        assert await site.balance(other) == CREDIT_MINOR - GOOD_CHARGE_MINOR

    _run(database_url, nats, story)


def test_duplicates_cost_nothing_and_are_counted(database_url: str, nats: EmbeddedNats) -> None:
    """The same reading in the same batch, in the next one, and in a block is charged once."""

    async def story(site: Site) -> None:
        home = await site.add_home()
        await site.send(GOOD, GOOD)
        balance = await site.balance(home)
        await site.send(GOOD)
        day = block("M1", GOOD_AT_MS, [GOOD_WH + 10 * hour for hour in range(24)])
        await site.send(day)
        after_day = await site.balance(home)
        await site.send(day, GOOD, day)
        assert balance == CREDIT_MINOR - GOOD_CHARGE_MINOR
        assert await site.balance(home) == after_day < balance
        totals = await site.totals()
        assert (totals.stored, totals.duplicate) == (24, 3 + 49)
        assert await site.reasons() == []

    _run(database_url, nats, story)


def test_conflict_keeps_the_first_and_quarantines_the_second(database_url: str, nats: EmbeddedNats) -> None:
    """Other content under a stored key is held, in the same batch and later; it charges nothing."""

    async def story(site: Site) -> None:
        home = await site.add_home()
        await site.send(GOOD, reading("M1", GOOD_AT_MS, GOOD_WH + 5))
        await site.send(reading("M1", GOOD_AT_MS, GOOD_WH, voltage_mv=230_000))
        assert await site.reasons() == ["conflict", "conflict"]
        assert await site.registers("M1") == {GOOD_AT_MS: GOOD_WH}
        assert await site.balance(home) == CREDIT_MINOR - GOOD_CHARGE_MINOR
        await site.send(reading("M1", GOOD_AT_MS + HOUR_MS, GOOD_WH + 10))
        assert len(await site.registers("M1")) == 2

    _run(database_url, nats, story)


def test_rollover_loses_no_energy_even_sent_twice(database_url: str, nats: EmbeddedNats) -> None:
    """A register that passes its end goes on being charged from where it was, whatever is repeated."""

    async def story(site: Site) -> None:
        home = await site.add_home(register_wh=999_500, register_end_wh=1_000_000)
        messages = [
            reading("M1", T0 + HOUR_MS, 999_900),
            reading("M1", T0 + 2 * HOUR_MS, 300),
            reading("M1", T0 + 3 * HOUR_MS, 500),
        ]
        for message in messages:
            await site.send(message)
        await site.send(*messages)
        assert (await site.snapshot([home])).bills[("M1", CALENDAR.day_of(T0))][0] == 1_000
        assert await site.balance(home) == CREDIT_MINOR - GOOD_CHARGE_MINOR
        # A late one from before the roll-over is fitted in on its own side; one that falls is held.
        await site.send(reading("M1", T0 + HOUR_MS // 2, 999_700), reading("M1", T0 + HOUR_MS + 1, 999_800))
        assert await site.reasons() == ["register_fell"]
        assert await site.balance(home) == CREDIT_MINOR - GOOD_CHARGE_MINOR
        assert (await site.totals()).duplicate == 3
        assert await site.rows("select start_wh, reason from register_segments order by from_at") == [
            (0, "installed"),
            (800, "rollover"),
        ]

    _run(database_url, nats, story)


def test_late_reading_in_the_batch_of_a_rollover_is_fitted_in(database_url: str, nats: EmbeddedNats) -> None:
    """The neighbour after a late reading may have rolled over in the very same batch."""

    async def story(site: Site) -> None:
        home = await site.add_home(register_wh=999_500, register_end_wh=1_000_000)
        await site.send(reading("M1", T0 + 2 * HOUR_MS, 999_900))
        await site.send(
            block("M1", T0 + 3 * HOUR_MS, [300, 500]),
            reading("M1", T0 + HOUR_MS, 999_700),
            reading("M1", T0 + 2 * HOUR_MS + 1, 999_900),
        )
        assert await site.reasons() == []
        assert len(await site.registers("M1")) == 5
        assert (await site.snapshot([home])).bills[("M1", CALENDAR.day_of(T0))][0] == 1_000

    _run(database_url, nats, story)


# A mark 40 days after the opening; what lies back from it, and which of it is still taken.
MARK_MS = T0 + 40 * DAY_MS
# An hour less than 10 days lies beside the edge of the month.
LATE_MS = (HOUR_MS, DAY_MS, 10 * DAY_MS - HOUR_MS, 34 * DAY_MS)


def _curve_wh(at_ms: int) -> int:
    """A load that is not even, so that a reading at an edge moves money across it."""
    hours = (at_ms - T0) // HOUR_MS
    return REGISTER_WH + 300 * hours + (5_000 if at_ms > MARK_MS - 10 * DAY_MS else 0)


@pytest.mark.parametrize("closed_days", [0, 35])
def test_late_readings_cost_what_they_would_have_cost_in_time(
    database_url: str, nats: EmbeddedNats, closed_days: int
) -> None:
    """1 h, 1 day and 34 days late are fitted in, also into closed days; 36 days late is held and charges nothing."""
    instants = sorted(MARK_MS - late_ms for late_ms in LATE_MS)
    in_time = [MARK_MS - 36 * DAY_MS - HOUR_MS, *instants, MARK_MS]
    in_order = [reading("M2", at_ms, _curve_wh(at_ms)) for at_ms in in_time]
    punctual = [reading("M1", at_ms, _curve_wh(at_ms)) for at_ms in (in_time[0], MARK_MS)]
    late = [reading("M1", at_ms, _curve_wh(at_ms)) for at_ms in reversed(instants)]
    too_late = reading("M1", MARK_MS - 36 * DAY_MS, _curve_wh(MARK_MS - 36 * DAY_MS))

    async def story(site: Site) -> None:
        homes = [await site.add_home("M1", days=41), await site.add_home("M2", days=41)]
        await site.send(*in_order)
        await site.send(*punctual)
        if closed_days:
            until = CALENDAR.day_of(T0) + timedelta(days=closed_days - 1)
            await close_day(site.conn, until, rules=RULES)
        for message in late:
            await site.send(message)
        await site.send(too_late, late[0])
        found = await site.snapshot(homes)
        assert {at_ms for serial, at_ms in found.readings if serial == "M1"} == set(in_time)
        assert {key[1]: bill for key, bill in found.bills.items() if key[0] == "M1"} == {
            key[1]: bill for key, bill in found.bills.items() if key[0] == "M2"
        }
        assert found.balances["M1"] == found.balances["M2"]
        assert found.quarantine == {("M1", MARK_MS - 36 * DAY_MS, "too_late")}
        assert (await site.totals()).duplicate == 1
        moved = await site.rows(
            "select distinct a.number, sum(j.energy_wh) over () from journals j join accounts a on a.id = j.account_id"
            " where j.kind = 'late_usage'"
        )
        # Energy only moves across the closed edge of the month; none is found and none is lost.
        assert moved == ([("M1", 0)] if closed_days else [])

    _run(database_url, nats, story)


def test_late_reading_before_the_first_one_lies_above_the_installation(database_url: str, nats: EmbeddedNats) -> None:
    """Where no reading stands before, the register at the installation does."""

    async def story(site: Site) -> None:
        home = await site.add_home()
        await site.send(reading("M1", T0 + 3 * HOUR_MS, GOOD_WH))
        await site.send(
            reading("M1", T0 + HOUR_MS, REGISTER_WH - 1),
            reading("M1", T0, REGISTER_WH - 1),
            reading("M1", T0, REGISTER_WH),
            reading("M1", T0 + 2 * HOUR_MS, REGISTER_WH + 10),
        )
        assert await site.reasons() == ["register_fell", "register_fell"]
        assert await site.registers("M1") == {
            T0: REGISTER_WH,
            T0 + 2 * HOUR_MS: REGISTER_WH + 10,
            T0 + 3 * HOUR_MS: GOOD_WH,
        }
        assert await site.balance(home) == CREDIT_MINOR - GOOD_CHARGE_MINOR

    _run(database_url, nats, story)


def test_meter_that_is_registered_later_is_charged_from_then_on(database_url: str, nats: EmbeddedNats) -> None:
    """An unknown serial stays unknown only until it is registered."""

    async def story(site: Site) -> None:
        await site.send(GOOD)
        home = await site.add_home()
        await site.send(GOOD)
        assert await site.reasons() == ["unknown_meter"]
        assert await site.balance(home) == CREDIT_MINOR - GOOD_CHARGE_MINOR

    _run(database_url, nats, story)


POISON: list[Message] = [
    ("amr/M1/rd", b'{"v":1,"meter":"M1\\u0000","at":1,"import_wh":1}'),
    ("amr/M1/rd", b'{"v":1,"meter":"M1","at":1,"import_wh":1,"relay":"\\u0000"}'),
    ("amr/M1/rd", b'{"v":1,"meter":"M1","at":1,"import_wh":1,"relay":"\\ud800"}'),
    ("amr/M1/rd", b'{"v":1,"meter":"M1","at":1,"import_wh":1,"relay":"\xed\xa0\x80"}'),
    ("amr/M1/rd", b"\x00" * 100),
    ("amr/M1/rd", b'{"v":1,"meter":"M1","x":' + b"[" * 50_000),
    ("caf\u00e9/\U0010ffff/\uffff", b"\x00"),
    ("amr/*/rd", b"x"),
    ("amr/>/ev", b"x"),
    ("amr/" + "x" * 60_000 + "/rd", b"x"),
    ("$SYS/x", b"x"),
    ("amr/M1/cmd/x", b"\x00"),
    _json("amr/M1/rd", at=T0 + 1, import_wh=INT64_MAX + 1),
    _json("amr/M1/rd", at=T0 + 1, import_wh=REGISTER_WH, voltage_mv=2**31),
    _json("amr/M1/rd", at=TIME_MS_MAX + 1, import_wh=1),
    _json("amr/M1/rd", block={"at": T0, "step_s": 1, "import_wh": [INT64_MAX] * 96}),
    _json("amr/M1/rd", block={"at": TIME_MS_MAX - 999, "step_s": 86_400, "import_wh": [1]}),
    _json("amr/M1/rd", block={"at": TIME_MS_MAX - 999, "step_s": 86_400, "import_wh": [1, 2]}),
    _json("amr/M1/rd", clock=TIME_MS_MAX, at=T0 - 5, import_wh=1, events=[65_535] * 64, relay="off"),
    _json("amr/M1/ev", at=TIME_MS_MAX, event={"code": 65_535}),
    _json("amr/M1/ev", at=0, event={"code": 0}),
    _json("amr/M1/ev", at=T0, event={"code": 65_536}),
    _json("amr/M1/ev", at=T0, reply={"order": INT64_MAX, "epoch": INT64_MAX, "kind": "supply", "result": "done"}),
    _json("amr/M1/ev", at=TIME_MS_MAX, reply={"order": 0, "epoch": 0, "kind": "alarm", "result": "refused"}),
]


def _mutated(rng: random.Random, payload: bytes) -> bytes:
    """Damage a frame at a few places, as a bad line does."""
    damaged = bytearray(payload)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(damaged))
        match rng.randrange(4):
            case 0:
                damaged[at] = rng.randrange(256)
            case 1:
                del damaged[at:]
                damaged = damaged or bytearray(b"\x00")
            case 2:
                damaged[at:at] = rng.choice([b"\x00", b"9" * 20, b"-", b"\\ud800", b'"', b"[[", b"\xff", b"e308"])
            case _:
                damaged[at : at + 1] = damaged[at : at + 1] * rng.randint(2, 30)
    return bytes(damaged)


def test_no_message_makes_the_database_refuse_a_batch(database_url: str, nats: EmbeddedNats) -> None:
    """NUL, half surrogates, 64-bit numbers, year 9999, wild cards and random damage: all are counted, none blocks."""
    rng = random.Random(20_250_601)
    whole = [
        reading("M1", T0 + HOUR_MS, GOOD_WH, voltage_mv=230_000, current_ma=900, power_w=180),
        block("M1", T0 + HOUR_MS, [GOOD_WH] * 5, freq_mhz=50_000),
        _json("amr/M1/ev", at=T0, reply={"order": 1, "epoch": 1, "kind": "supply", "result": "done", "relay": "on"}),
    ]
    damaged = [(topic, _mutated(rng, payload)) for topic, payload in whole for _ in range(150)]

    async def story(site: Site) -> None:
        await site.add_home()
        for message in POISON:
            await site.send(message)
        await site.send(*damaged)
        good = reading("M1", T0 + 48 * HOUR_MS, REGISTER_WH + 600_000)
        await site.send(good)
        assert (await site.registers("M1"))[T0 + 48 * HOUR_MS] == REGISTER_WH + 600_000
        everything = len(POISON) + len(damaged) + 1
        assert await site.one("select sum(messages) from batches") == everything

    _run(database_url, nats, story)


def test_ingest_reads_on_when_the_database_fails_while_it_waits_for_redelivery(
    database_url: str, nats: EmbeddedNats
) -> None:
    """Shards whose lease is ours are read in the end, though the first attempt to begin was interrupted."""

    async def told() -> None:
        async with open_site(database_url, nats) as site:
            home = await site.add_home()
            await site.publish(GOOD)
            # Another owner has the message in hand, so that a new one waits for it to come again.
            async with StreamReader.connect(nats.nats_url, ack_wait_s=ACK_WAIT_S) as old:
                await old.own({shard_of("M1")}, leftovers=False)
                assert len(await old.take(messages_max=9, bytes_max=9_000, wait_s=10)) == 1
                async with running_ingest(site):
                    ended = await site.one(
                        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                        " where datname = current_database() and application_name like 'ingest-%%'"
                    )
                    assert ended == 2
                    await site.settled()
                    assert await site.balance(home) == CREDIT_MINOR - GOOD_CHARGE_MINOR

    asyncio.run(told())


def test_ended_session_costs_a_retry_and_no_reading(database_url: str, nats: EmbeddedNats) -> None:
    """A database session that is ended again and again under load loses nothing and stores nothing twice."""
    messages = [reading("M1", T0 + minute * 60_000, REGISTER_WH + minute) for minute in range(1, 601)]

    async def story(site: Site) -> None:
        home = await site.add_home()
        for first in range(0, len(messages), 200):
            await site.publish(*messages[first : first + 200])
            await site.rows(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and application_name like 'ingest-%%'"
            )
        await site.settled()
        assert len(await site.registers("M1")) == 600
        assert (await site.snapshot([home])).bills[("M1", CALENDAR.day_of(T0))][0] == 600

    _run(database_url, nats, story)


async def _partition_days(site: Site, home: Home) -> set[object]:
    found = await site.rows("select distinct read_at::date from readings where meter_id = %s", home.meter_id)
    return {day for (day,) in found}


def test_missing_partitions_are_made_before_the_batch(database_url: str, nats: EmbeddedNats) -> None:
    """Readings of days that nobody prepared are stored all the same, new ones and late ones."""

    async def story(site: Site) -> None:
        home = await site.add_home(days=0)
        await site.send(reading("M1", T0 + 20 * DAY_MS, GOOD_WH))
        await site.send(reading("M1", T0 + 10 * DAY_MS, GOOD_WH - 1))
        assert await site.reasons() == []
        assert await _partition_days(site, home) == {from_ms(T0 + days * DAY_MS).date() for days in (10, 20)}

    _run(database_url, nats, story)
