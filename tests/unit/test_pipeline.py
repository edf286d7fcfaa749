"""The ingest pipeline as a pure function: a batch in, what its transaction writes out."""

import bisect
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.calendar import from_ms, to_ms
from billing.supply import Supply
from headend.pipeline import Held, Late, Plan, Received, place_late, plan, receive
from headend.state import MeterState
from headend.validate import Reason
from protocols.native import (
    CommandReply,
    MeterEvent,
    OrderKind,
    Readings,
    Relay,
    ReplyResult,
    decode_uplink,
    encode_event,
    encode_readings,
    encode_reply,
)
from protocols.rows import ReadingRow
from protocols.topics import event_topic, reading_topic, shard_of
from tests.support import (
    CALENDAR,
    CREDIT_MINOR,
    DAY_MS,
    HOUR_MS,
    REGISTER_WH,
    T0,
    Message,
    block,
    meter_state,
    reading,
)

NOW_MS = T0 + 400 * DAY_MS
SHARD = shard_of("M1")


def _received(*messages: Message, stored_at_ms: int = NOW_MS) -> list[Received]:
    return [receive(shard_of(topic.split("/")[1]), topic, payload, stored_at_ms) for topic, payload in messages]


def _plan(*messages: Message, meter: MeterState | None = None) -> Plan:
    meter = meter or meter_state()
    return plan(_received(*messages), {meter.serial: meter}, CALENDAR)


def _with_status(
    message: Message, *, clock_ms: int | None, relay: Relay | None, events: tuple[int, ...] = ()
) -> Message:
    topic, payload = message
    readings = decode_uplink(topic, payload)
    assert isinstance(readings, Readings)
    return topic, encode_readings(msgspec.structs.replace(readings, clock_ms=clock_ms, relay=relay, events=events))


def _reply(at_ms: int, relay: Relay | None, *, order_id: int = 1) -> Message:
    reply = CommandReply(
        serial="M1",
        seq=None,
        at_ms=at_ms,
        order_id=order_id,
        epoch=order_id,
        kind=OrderKind.SUPPLY,
        result=ReplyResult.DONE,
        relay=relay,
        threshold_minor=None,
    )
    return event_topic("M1"), encode_reply(reply)


def _registers(made: Plan) -> list[tuple[int, int]]:
    return [(to_ms(row.read_at), row.import_wh) for row in made.rows]


def _counted(made: Plan, shard: int | None = SHARD) -> dict[str, int]:
    return dict(made.counts[shard])


def test_good_reading_becomes_a_row_and_moves_the_mark() -> None:
    """A good reading is stored, and the next one is validated against it."""
    made = _plan(reading("M1", T0 + HOUR_MS, 2_000, voltage_mv=230_000))
    assert made.rows == [ReadingRow(1, from_ms(T0 + HOUR_MS), 2_000, None, 230_000, None, None, None, None)]
    state = made.states["M1"]
    assert (state.mark_ms, state.mark_wh) == (T0 + HOUR_MS, 2_000)
    assert state.account.walk.last.energy_wh == 1_000
    assert _counted(made) == {"messages": 1, "received": 1, "stored": 1}
    assert made.candidates == set()


def test_known_states_are_not_touched_by_a_plan() -> None:
    """What ingest knows changes only after a commit, so a plan never changes what it was given."""
    meters = {"M1": meter_state()}
    plan(_received(reading("M1", T0 + HOUR_MS, 2_000)), meters, CALENDAR)
    assert meters == {"M1": meter_state()}


def test_block_is_as_many_readings_as_intervals() -> None:
    """A block of 24 counts 24 readings and one message, and nulls in it are no readings."""
    made = _plan(block("M1", T0 + HOUR_MS, [REGISTER_WH + 10 * n for n in range(24)]))
    assert len(made.rows) == 24
    assert _counted(made) == {"messages": 1, "received": 24, "stored": 24}
    topic = reading_topic("M1")
    payload = b'{"v":1,"meter":"M1","block":{"at":%d,"step_s":3600,"import_wh":[1100,null,1200]}}' % (T0 + HOUR_MS)
    made = _plan((topic, payload))
    assert _registers(made) == [(T0 + HOUR_MS, 1_100), (T0 + 3 * HOUR_MS, 1_200)]
    assert _counted(made)["received"] == 2


def test_bad_interval_of_a_block_is_held_alone() -> None:
    """One register that fell does not cost the other intervals of its block."""
    made = _plan(block("M1", T0 + HOUR_MS, [1_100, 50, 1_200]))
    assert _registers(made) == [(T0 + HOUR_MS, 1_100), (T0 + 3 * HOUR_MS, 1_200)]
    (held,) = made.held
    assert (held.fault.reason, held.item, held.read_at_ms) == (Reason.REGISTER_FELL, 1, T0 + 2 * HOUR_MS)
    assert _counted(made) == {"messages": 1, "received": 3, "stored": 2, "quarantined": 1}


@pytest.mark.parametrize(
    ("at_ms", "register_wh", "reason"),
    [
        (0, 2_000, Reason.CLOCK_ABSURD),
        (NOW_MS + 300_001, 2_000, Reason.FUTURE),
        (T0 - 1, 2_000, Reason.BEFORE_INSTALLATION),
        (T0 + HOUR_MS, 999, Reason.REGISTER_FELL),
        (T0 + HOUR_MS, 16_011, Reason.JUMP),
    ],
)
def test_bad_reading_is_held_with_its_bytes_and_the_next_good_one_is_stored(
    at_ms: int, register_wh: int, reason: Reason
) -> None:
    """A fault is named, keeps the raw message, and changes nothing for the reading after it."""
    bad, good = reading("M1", at_ms, register_wh), reading("M1", T0 + 2 * HOUR_MS, 2_000)
    made = _plan(bad, good)
    (held,) = made.held
    assert (held.fault.reason, held.raw, held.topic, held.serial) == (reason, bad[1], bad[0], "M1")
    assert made.rows == _plan(good).rows
    assert made.states == _plan(good).states
    assert _counted(made) == {"messages": 2, "received": 2, "stored": 1, "quarantined": 1}


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("amr/M1/rd", b'{"v":1,"meter":"M1","at":17'),
        ("amr/M1/rd", b"\xff\xfe"),
        ("amr/M1/rd", b'{"v":1,"meter":"M1","at":1,"import_wh":1,"relay":"\xff"}'),
        ("amr/M1/rd", b'{"v":1,"meter":"M2","at":1,"import_wh":1}'),
        ("amr/M1/rd", b"x" * 200_000),
        ("amr/M1/rd", b""),
        ("amr/M1/rd", b'{"v":1,"meter":"M1","at":1,"import_wh":-4611686018427387905}'),
        ("amr/M1/rd", b'{"v":1,"meter":"M1","at":1,"import_wh":1e400}'),
        ("amr/M1/rd", b'{"v":1,"meter":"M1","at":1,"import_wh":NaN}'),
        ("amr/M1/rd", b'{"v":1,"meter":"M1","x":' + b"[" * 30_000),
        ("amr/M1/ev", b'{"v":1,"meter":"M1","at":1}'),
        ("amr/M1/cmd", b'{"v":1}'),
        ("amr/M 1/rd", b'{"v":1}'),
    ],
)
def test_message_that_is_none_is_malformed(topic: str, payload: bytes) -> None:
    """Wrong bytes become a fault, never an exception, and count as one rejected reading."""
    made = plan([receive(SHARD, topic, payload, NOW_MS)], {"M1": meter_state()}, CALENDAR)
    (held,) = made.held
    assert (held.fault.reason, held.raw, held.serial) == (Reason.MALFORMED, payload, None)
    assert _counted(made) == {"messages": 1, "received": 1, "rejected": 1}


def test_leftover_of_the_stream_is_an_unknown_topic() -> None:
    """What no shard asks for has no shard; it is rejected and counted there."""
    made = plan([receive(None, "foo/bar", b"x", NOW_MS)], {}, CALENDAR)
    assert made.held[0].fault.reason is Reason.UNKNOWN_TOPIC
    assert _counted(made, None) == {"messages": 1, "received": 1, "rejected": 1}


def test_block_of_an_unknown_meter_is_rejected_reading_by_reading() -> None:
    """Each reading of an unknown meter can be found again by serial and instant."""
    made = _plan(block("M9", T0 + HOUR_MS, [1, 2, 3]))
    assert [(held.serial, held.read_at_ms, held.item) for held in made.held] == [
        ("M9", T0 + HOUR_MS, 0),
        ("M9", T0 + 2 * HOUR_MS, 1),
        ("M9", T0 + 3 * HOUR_MS, 2),
    ]
    assert {held.fault.reason for held in made.held} == {Reason.UNKNOWN_METER}
    assert _counted(made, shard_of("M9")) == {"messages": 1, "received": 3, "rejected": 3}


def test_duplicate_in_a_batch_is_counted_once_stored() -> None:
    """The same reading again in a batch costs nothing and is counted."""
    again = reading("M1", T0 + HOUR_MS, 2_000)
    made = _plan(again, again, again)
    assert len(made.rows) == 1
    assert _counted(made) == {"messages": 3, "received": 3, "stored": 1, "duplicate": 2}


def test_conflict_in_a_batch_keeps_the_first_and_holds_the_second() -> None:
    """Same meter and instant with other values is never a duplicate to drop."""
    first, second = reading("M1", T0 + HOUR_MS, 2_000), reading("M1", T0 + HOUR_MS, 2_001)
    made = _plan(first, second)
    assert _registers(made) == [(T0 + HOUR_MS, 2_000)]
    assert [(held.fault.reason, held.raw) for held in made.held] == [(Reason.CONFLICT, second[1])]
    other_channel = reading("M1", T0 + HOUR_MS, 2_000, voltage_mv=1)
    assert _plan(first, other_channel).held[0].fault.reason is Reason.CONFLICT


def test_good_reading_after_a_bad_one_of_the_same_instant_is_stored() -> None:
    """A held reading does not take the key of a good one."""
    made = _plan(reading("M1", T0 + HOUR_MS, 1), reading("M1", T0 + HOUR_MS, 2_000))
    assert _registers(made) == [(T0 + HOUR_MS, 2_000)]
    assert _counted(made) == {"messages": 2, "received": 2, "stored": 1, "quarantined": 1}


def test_readings_out_of_order_in_a_batch_are_followed_in_order() -> None:
    """Within a batch time counts, not arrival."""
    messages = [reading("M1", T0 + hour * HOUR_MS, 1_000 + hour) for hour in (3, 1, 2)]
    made = _plan(*messages)
    assert _registers(made) == [(T0 + hour * HOUR_MS, 1_000 + hour) for hour in (1, 2, 3)]
    assert made.late == []


def test_rows_of_a_batch_are_sorted_by_meter_and_instant() -> None:
    """COPY goes in in key order."""
    meters = {"M1": meter_state("M1", meter_id=7), "M2": meter_state("M2", meter_id=3)}
    messages = [reading(serial, T0 + hour * HOUR_MS, 1_000 + hour) for hour in (2, 1) for serial in ("M1", "M2")]
    made = plan(_received(*messages), meters, CALENDAR)
    assert [(row.meter_id, to_ms(row.read_at)) for row in made.rows] == [
        (3, T0 + HOUR_MS),
        (3, T0 + 2 * HOUR_MS),
        (7, T0 + HOUR_MS),
        (7, T0 + 2 * HOUR_MS),
    ]


def test_rollover_opens_a_segment_and_energy_goes_on() -> None:
    """A register that rolls over, also sent twice, loses no energy and opens one segment."""
    end_wh = 100_000
    meter = meter_state(register_end_wh=end_wh, mark_ms=T0 + HOUR_MS, mark_wh=end_wh - 400)
    messages = [reading("M1", T0 + 2 * HOUR_MS, 600), reading("M1", T0 + 3 * HOUR_MS, 800)]
    made = _plan(*messages, *messages, meter=meter)
    (segment,) = made.segments
    assert (segment.from_ms, segment.register_wh) == (T0 + 2 * HOUR_MS, 600)
    assert segment.start_wh == end_wh - 400 - REGISTER_WH + 1_000
    assert made.states["M1"].account.walk.last.energy_wh == end_wh - 400 - REGISTER_WH + 1_200
    assert made.candidates == {meter.account.id}
    assert _counted(made) == {"messages": 4, "received": 4, "stored": 2, "duplicate": 2}


def test_exhausting_reading_makes_its_account_a_candidate() -> None:
    """A crossing seen in a batch is looked at; one that is far away is not."""
    meter = meter_state(posted_minor=1_000)
    assert _plan(reading("M1", T0 + HOUR_MS, 1_001), meter=meter).candidates == set()
    assert _plan(reading("M1", T0 + HOUR_MS, 15_000), meter=meter).candidates == {meter.account.id}
    warned = meter_state(threshold_minor=CREDIT_MINOR)
    assert _plan(reading("M1", T0 + HOUR_MS, 1_001), meter=warned).candidates == {warned.account.id}


def test_account_that_waits_for_its_hour_is_no_candidate_until_it_has_credit() -> None:
    """Exhausted and protected: readings change nothing; one not decided yet, or that has credit again, is looked at."""
    spent = reading("M1", T0 + HOUR_MS, 15_000)
    for waits in (False, True):
        meter = meter_state(posted_minor=1_000, waits=waits)
        levels = replace(meter.account.levels, exhausted_raised=True, exhausted_at_ms=T0)
        meter = replace(meter, account=replace(meter.account, levels=levels))
        assert _plan(spent, meter=meter).candidates == (set() if waits else {meter.account.id})
    recharged = meter_state(waits=True)
    assert _plan(spent, meter=recharged).candidates == {recharged.account.id}


def test_silent_or_held_account_is_looked_at_with_its_next_reading() -> None:
    """A reading releases a held cut-off and settles a period end that was closed unread."""
    meter = meter_state()
    for changed in ({"silent": True}, {"held": True}):
        account = replace(meter.account, **changed)
        made = _plan(reading("M1", T0 + HOUR_MS, 1_001), meter=replace(meter, account=account))
        assert made.candidates == {account.id}


def test_events_of_every_message_of_a_batch_are_kept() -> None:
    """A meter's messages each bring their own events, whatever comes after them."""
    messages = [
        _with_status(
            reading("M1", T0 + hour * HOUR_MS, 1_000 + hour), clock_ms=T0 + hour * HOUR_MS, relay=None, events=e
        )
        for hour, e in ((1, (101, 102)), (2, (103,)), (3, ()))
    ]
    made = _plan(*messages)
    assert made.events == [(1, T0 + HOUR_MS, 101), (1, T0 + HOUR_MS, 102), (1, T0 + 2 * HOUR_MS, 103)]
    event = MeterEvent(serial="M1", seq=None, at_ms=T0, code=7)
    assert _plan((event_topic("M1"), encode_event(event))).events == [(1, T0, 7)]


def test_status_of_a_meter_with_an_absurd_clock_is_not_believed() -> None:
    """Relay and events of a message from 1970 say nothing about now."""
    message = _with_status(reading("M1", T0 + HOUR_MS, 1_001), clock_ms=0, relay=Relay.OFF, events=(101,))
    made = _plan(message)
    assert (made.events, made.relays) == ([], [])
    assert len(made.rows) == 1


def test_relay_follows_the_last_word_of_a_batch() -> None:
    """Cut off, confirmed and restored within one batch: the meter is on, and both moves are known in order."""
    meter = meter_state(relay=Supply.ON)
    off, on = _reply(T0 + HOUR_MS, Relay.OFF), _reply(T0 + HOUR_MS + 1, Relay.ON, order_id=2)
    made = _plan(off, on, meter=meter)
    assert made.relays == [(1, Supply.OFF, T0 + HOUR_MS), (1, Supply.ON, T0 + HOUR_MS + 1)]
    assert made.states["M1"].relay is Supply.ON
    assert made.stale_serials == {"M1"}
    status = _with_status(reading("M1", T0 + 2 * HOUR_MS, 1_001), clock_ms=T0 + 2 * HOUR_MS, relay=Relay.ON)
    made = _plan(off, status, meter=meter)
    assert [relay for _, relay, _ in made.relays] == [Supply.OFF, Supply.ON]
    assert made.states["M1"].relay is Supply.ON


def test_relay_that_is_not_as_desired_makes_a_candidate() -> None:
    """A meter that was switched by hand is looked at, unless an order is on its way to it."""
    message = _with_status(reading("M1", T0 + HOUR_MS, 1_001), clock_ms=T0 + HOUR_MS, relay=Relay.OFF)
    assert _plan(message, meter=meter_state(relay=Supply.ON)).candidates == {101}
    limited = _with_status(reading("M1", T0 + HOUR_MS, 1_001), clock_ms=T0 + HOUR_MS, relay=Relay.LIMITED)
    assert _plan(limited, meter=meter_state(relay=Supply.ON)).candidates == {101}
    as_desired = _plan(limited, meter=meter_state(relay=Supply.ON, desired=Supply.LIMITED))
    assert as_desired.relays == [(1, Supply.LIMITED, T0 + HOUR_MS)]
    told = meter_state(relay=Supply.ON, told=Supply.ON)
    assert _plan(message, meter=told).candidates == set()


def _late(made: Plan) -> Late:
    (late,) = made.late
    return late


def test_reading_at_or_before_the_mark_waits_for_the_database() -> None:
    """Only the database knows whether a late reading is a duplicate, a conflict or new."""
    meter = meter_state(mark_ms=T0 + 5 * HOUR_MS, mark_wh=5_000)
    for at_ms in (T0 + 5 * HOUR_MS, T0 + 2 * HOUR_MS, T0):
        made = _plan(reading("M1", at_ms, 3_000), meter=meter)
        assert (_late(made).at_ms, made.rows, made.states) == (at_ms, [], {})
        assert _counted(made) == {"messages": 1, "received": 1, "stored": 0}


def test_late_reading_is_duplicate_conflict_or_fitted_in() -> None:
    """Same content is a duplicate, other content a conflict, a new key is stored and its account looked at."""
    meter = meter_state(mark_ms=T0 + 5 * HOUR_MS, mark_wh=5_000)
    message = reading("M1", T0 + 2 * HOUR_MS, 3_000)

    made = _plan(message, meter=meter)
    assert place_late(made, _late(made), same=True, before=None, after=None) is None
    assert _counted(made) | {"stored": 0} == {"messages": 1, "received": 1, "stored": 0, "duplicate": 1}
    assert (made.candidates, made.stale_serials) == (set(), set())

    made = _plan(message, meter=meter)
    assert place_late(made, _late(made), same=False, before=None, after=None) is None
    assert [held.fault.reason for held in made.held] == [Reason.CONFLICT]

    made = _plan(message, meter=meter)
    row = place_late(made, _late(made), same=None, before=(T0, 0), after=(T0 + 5 * HOUR_MS, 4_000))
    assert row == _late(made).row
    assert made.candidates == {meter.account.id}
    assert made.stale_serials == {"M1"}
    assert made.late_since_ms == {meter.account.id: T0 + 2 * HOUR_MS}
    assert _counted(made) == {"messages": 1, "received": 1, "stored": 1}

    made = _plan(message, meter=meter)
    assert place_late(made, _late(made), same=None, before=(T0, 2_001), after=(T0 + 5 * HOUR_MS, 4_000)) is None
    assert [held.fault.reason for held in made.held] == [Reason.REGISTER_FELL]


def test_earliest_of_several_late_readings_is_remembered() -> None:
    """Late usage is looked for from the earliest reading that came late."""
    meter = meter_state(mark_ms=T0 + 5 * HOUR_MS, mark_wh=5_000)
    made = _plan(block("M1", T0 + HOUR_MS, [2_000, 3_000]), meter=meter)
    for late in reversed(made.late):
        assert place_late(made, late, same=None, before=None, after=None) is not None
    assert made.late_since_ms == {meter.account.id: T0 + HOUR_MS}


# Any interleaving, repetition and split into batches ------------------------------------------------------------------


@dataclass(slots=True)
class _Store:
    """The database as far as ingest needs it, in plain dictionaries: the reference for what batches may not change."""

    meters: dict[str, MeterState]
    rows: dict[tuple[int, int], ReadingRow] = field(default_factory=dict)
    held: Counter[tuple[str | None, int | None, Reason]] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, messages: Sequence[Message]) -> None:
        made = plan(_received(*messages), self.meters, CALENDAR)
        fresh = {(row.meter_id, to_ms(row.read_at)): row for row in made.rows}
        assert len(fresh) == len(made.rows)
        assert not fresh.keys() & self.rows.keys()
        self.rows |= fresh
        for late in made.late:
            self._place(made, late)
        for state in made.states.values():
            self.meters[state.serial] = state
        self.held.update(_fault(held) for held in made.held)
        for counted in made.counts.values():
            assert counted["received"] == sum(
                counted[outcome] for outcome in ("stored", "duplicate", "rejected", "quarantined")
            )
            self.counts.update(counted)

    def _place(self, made: Plan, late: Late) -> None:
        stored = self.rows.get((late.row.meter_id, late.at_ms))
        same = None if stored is None else stored == late.row
        before, after = self._around(late)
        row = place_late(made, late, same=same, before=before, after=after)
        if row is not None:
            self.rows[(row.meter_id, late.at_ms)] = row

    def _around(self, late: Late) -> tuple[tuple[int, int], tuple[int, int] | None]:
        curve = [(T0, 0)] + [
            (at_ms, late.meter.energy_to_date(at_ms, row.import_wh))
            for (meter_id, at_ms), row in sorted(self.rows.items())
            if meter_id == late.row.meter_id and at_ms != late.at_ms
        ]
        number = bisect.bisect_right(curve, (late.at_ms, -1))
        before = curve[number - 1] if number else curve[0]
        return before, curve[number] if number < len(curve) else None


def _fault(held: Held) -> tuple[str | None, int | None, Reason]:
    return held.serial, held.read_at_ms, held.fault.reason


@st.composite
def _deliveries(draw: st.DrawFn) -> tuple[list[Message], list[Message], list[int]]:
    """Draw readings of two meters, a disordered repetition of them, and where batches end."""
    messages: list[Message] = []
    for serial in ("M1", "M2"):
        at_ms, register_wh = T0, REGISTER_WH
        for _ in range(draw(st.integers(1, 8))):
            hours = draw(st.integers(1, 40))
            used_wh = draw(st.integers(0, 900))
            at_ms, register_wh = at_ms + hours * HOUR_MS, register_wh + used_wh
            messages.append(reading(serial, at_ms, register_wh))
    sent = draw(st.permutations(messages + draw(st.lists(st.sampled_from(messages), max_size=8))))
    cuts = draw(st.lists(st.integers(0, len(sent)), max_size=6))
    return messages, list(sent), sorted(cuts)


def _stored(batches: Iterable[Sequence[Message]]) -> _Store:
    store = _Store({"M1": meter_state("M1", meter_id=1), "M2": meter_state("M2", meter_id=2)})
    for batch in batches:
        store.take(batch)
    return store


@settings(max_examples=200, deadline=None)
@given(_deliveries())
def test_order_repetition_and_split_of_readings_change_nothing(
    drawn: tuple[list[Message], list[Message], list[int]],
) -> None:
    """However readings are mixed, repeated and cut into batches, the same rows and states come out."""
    messages, sent, cuts = drawn
    plain = _stored([messages])
    edges = [0, *cuts, len(sent)]
    mixed = _stored([sent[begin:end] for begin, end in itertools.pairwise(edges)])
    assert mixed.rows == plain.rows
    assert not mixed.held
    for serial, state in plain.meters.items():
        assert (mixed.meters[serial].mark_ms, mixed.meters[serial].mark_wh) == (state.mark_ms, state.mark_wh)
        assert mixed.meters[serial].account.walk.last == state.account.walk.last
    assert mixed.counts["stored"] == len(messages)
    assert mixed.counts["duplicate"] == len(sent) - len(messages)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 60), st.integers(0, 30_000)), max_size=20), st.integers(1, 20))
def test_counts_add_up_for_any_readings(found: list[tuple[int, int]], size: int) -> None:
    """Whatever comes, each reading received is stored, duplicate, rejected or quarantined, and registers only rise."""
    messages = [reading("M1", T0 + hour * HOUR_MS, register_wh) for hour, register_wh in found]
    store = _stored([messages[begin : begin + size] for begin in range(0, len(messages), size)])
    assert store.counts["received"] == len(messages)
    registers = [row.import_wh for _, row in sorted(store.rows.items())]
    assert registers == sorted(registers)
    assert all(register_wh >= REGISTER_WH for register_wh in registers)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["amr/M1/rd", "amr/M1/ev", "amr/M1/cmd", "amr/", "x"]))
def test_any_bytes_end_as_a_fault_or_a_plan(payload: bytes, topic: str) -> None:
    """No bytes and no topic make the pipeline raise."""
    made = plan([receive(SHARD, topic, payload, NOW_MS)], {"M1": meter_state()}, CALENDAR)
    assert made.counts[SHARD]["messages"] == 1
