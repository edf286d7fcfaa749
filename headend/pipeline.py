"""A batch of messages to what one transaction has to write.

Stage: the whole of ingest between bytes and database, as one pure function: decode, validate, follow the energy
curve, find accounts to look at. `plan` takes messages in stream order and what is known of their meters; it returns
a `Plan` and never touches the state it was given. Late readings need the database and are settled by the edge with
`place_late`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import itemgetter

import msgspec

from billing.calendar import LocalCalendar, from_ms
from billing.running import Point, follow
from billing.supply import Supply
from headend.column_plan import ColumnPlan
from headend.reading_flags import Accepted, ReadingFlag, flag, message_flags, reading_flags
from headend.release import FALLS, Approved, Outcome, Settled
from headend.rules import BUILTIN_RULES, Action, RuleSet
from headend.sequences import made_ms
from headend.state import MeterState, RegisterSegment
from headend.validate import (
    Fault,
    Reason,
    Reset,
    Rollover,
    began_again,
    is_possible_jump,
    validate_late,
    validate_register,
    validate_time,
)
from protocols.errors import FrameError
from protocols.native import (
    CommandReply,
    CouponEntered,
    MeterEvent,
    Readings,
    TokenEntered,
    Uplink,
    decode_uplink,
)
from protocols.rows import ReadingRow


class Received(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message as it came, with its decoded form or the reason it has none.

    Invariants: `approved` is None for whatever comes from the broker; only the quarantine's rows make one.
    """

    shard: int | None
    topic: str
    payload: bytes
    stored_at_ms: int
    uplink: Uplink | None
    fault: Fault | None
    approved: Approved | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What goes to quarantine: one reading of a message, or a whole message that is none."""

    shard: int | None
    topic: str
    serial: str | None
    read_at_ms: int | None
    fault: Fault
    raw: bytes
    item: int
    severity: str
    stored_at_ms: int
    rejected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """A reading at or before its meter's mark: known already, or to be fitted between its neighbours."""

    meter: MeterState
    row: ReadingRow
    at_ms: int
    message: Received
    item: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A register that rolled over or was reset; the reason is what the database keeps, None that of the next one."""

    meter_id: int
    from_ms: int
    register_wh: int
    start_wh: int
    reason: str | None = "rollover"


# The number that a meter has given a message: shard, meter, number, when it was made, payload.
Numbered = tuple[int | None, int, int, int, bytes]


@dataclass(slots=True, kw_only=True)
class Plan:
    """What one transaction writes, and what ingest knows after its commit.

    Invariants: `rows` are sorted by meter and instant, `ordinary` is what was planned in columns; `flags` are those of
    `events` that came with readings, `noted` what rules note of readings that are stored; `settled` says of each
    released row, by its id, what became of it; `counts` hold, per shard, received = stored + duplicate + rejected +
    quarantined once the late readings are placed.
    """

    rows: list[ReadingRow] = field(default_factory=list)
    ordinary: ColumnPlan | None = None
    late: list[Late] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    relays: list[tuple[int, Supply, int]] = field(default_factory=list)
    events: list[tuple[int, int, int]] = field(default_factory=list)
    flags: set[tuple[int, int, int]] = field(default_factory=set)
    numbers: list[Numbered] = field(default_factory=list)
    replies: list[tuple[int, CommandReply]] = field(default_factory=list)
    entries: list[tuple[int, TokenEntered]] = field(default_factory=list)
    coupons: list[tuple[int, CouponEntered]] = field(default_factory=list)
    states: dict[str, MeterState] = field(default_factory=dict)
    candidates: set[int] = field(default_factory=set)
    late_since_ms: dict[int, int] = field(default_factory=dict)
    stale_serials: set[str] = field(default_factory=set)
    since_ms: dict[int, int] = field(default_factory=dict)
    noted: list[ReadingFlag] = field(default_factory=list)
    settled: dict[int, Settled] = field(default_factory=dict)
    counts: dict[int | None, Counter[str]] = field(default_factory=dict)

    def count(self, shard: int | None, outcome: str, number: int = 1) -> None:
        """Add to one shard's count of an outcome."""
        counts = self.counts.get(shard)
        if counts is None:
            counts = self.counts[shard] = Counter()
        counts[outcome] += number

    def hold(
        self,
        message: Received,
        fault: Fault,
        *,
        rules: RuleSet = BUILTIN_RULES.default,
        at_ms: int | None = None,
        item: int = 0,
    ) -> None:
        """Send one reading, or a message that is none, to quarantine and count it; a released one goes back there."""
        serial = message.uplink.serial if message.uplink else None
        rejects = rules.actions[fault.reason] is Action.REJECT
        self.count(message.shard, "rejected" if rejects else "quarantined")
        if message.approved is not None and item == (message.approved.item or 0):
            self.settled[message.approved.quarantine_id] = Settled(
                quarantine_id=message.approved.quarantine_id,
                outcome=Outcome.HELD,
                reason=fault.reason,
                detail=fault.detail,
                serial=serial,
                read_at_ms=at_ms,
                rejected=rejects,
            )
            return
        self.held.append(
            Held(
                shard=message.shard,
                topic=message.topic,
                serial=serial,
                read_at_ms=at_ms,
                fault=fault,
                raw=message.payload,
                item=item,
                severity=rules.severities[fault.reason].value,
                stored_at_ms=message.stored_at_ms,
                rejected=rejects,
            )
        )

    def settle(self, message: Received, outcome: Outcome) -> None:
        """Say what became of a released row; of a message of several readings, the most that became of one."""
        if message.approved is None:
            return
        quarantine_id = message.approved.quarantine_id
        known = self.settled.get(quarantine_id)
        if known is None or (known.outcome is Outcome.DUPLICATE and outcome is Outcome.STORED):
            self.settled[quarantine_id] = Settled(quarantine_id=quarantine_id, outcome=outcome)

    def repeat(self, message: Received) -> None:
        """Count a reading that is there already."""
        self.count(message.shard, "duplicate")
        self.settle(message, Outcome.DUPLICATE)


# One reading on its way: instant, row without its time object, message, item number.
Arrived = tuple[int, ReadingRow, Received, int]


def receive(shard: int | None, topic: str, payload: bytes, stored_at_ms: int) -> Received:
    """Decode one message; bytes that are wrong become a fault, never an exception."""
    uplink: Uplink | None = None
    fault: Fault | None = None
    if shard is None:
        fault = Fault(reason=Reason.UNKNOWN_TOPIC, detail=f"topic: expected amr/<serial>/rd or ev, got {topic[:80]!r}")
    else:
        try:
            uplink = decode_uplink(topic, payload)
        except FrameError as error:
            fault = Fault(reason=Reason.MALFORMED, detail=str(error))
    return Received(shard=shard, topic=topic, payload=payload, stored_at_ms=stored_at_ms, uplink=uplink, fault=fault)


def slices(messages: Sequence[Received], readings_max: int) -> Iterator[Sequence[Received]]:
    """Cut messages, in their order, into parts of at most so many readings; one message is never cut."""
    first = readings = 0
    for number, message in enumerate(messages):
        count = len(message.uplink.read_at_ms) if isinstance(message.uplink, Readings) else 1
        if number > first and readings + count > readings_max:
            yield messages[first:number]
            first, readings = number, 0
        readings += count
    yield messages[first:]


def plan(
    messages: Iterable[Received],
    meters: Mapping[str, MeterState],
    calendar: LocalCalendar,
    uninstalled: Collection[str] = (),
) -> Plan:
    """Turn a batch into what its transaction writes; `uninstalled` are serials of meters that stand nowhere."""
    made = Plan()
    arrived: dict[str, list[Arrived]] = {}
    latest: dict[str, Received] = {}
    for message in messages:
        uplink = message.uplink
        # What is released was counted as a message when it came.
        made.count(message.shard, "messages", int(message.approved is None))
        if uplink is not None and uplink.seq is not None and uplink.serial in meters and message.approved is None:
            take_number(made, meters[uplink.serial].meter_id, uplink, message)
        if uplink is None:
            assert message.fault is not None, "a message that did not decode has a fault"
            made.count(message.shard, "received")
            made.hold(message, message.fault)
        elif uplink.serial not in meters:
            hold_unknown(made, message, uplink, uninstalled)
        elif isinstance(uplink, Readings):
            if message.approved is None:
                latest[uplink.serial] = message
                note_message(made, meters[uplink.serial], uplink, message)
                take_events(made, meters[uplink.serial], uplink, message)
            arrived.setdefault(uplink.serial, []).extend(_arrivals(message, uplink, meters[uplink.serial]))
        elif isinstance(uplink, MeterEvent):
            made.events.append((meters[uplink.serial].meter_id, uplink.at_ms, uplink.code))
            made.settle(message, Outcome.STORED)
        elif isinstance(uplink, TokenEntered):
            made.entries.append((meters[uplink.serial].meter_id, uplink))
            made.settle(message, Outcome.STORED)
        elif isinstance(uplink, CouponEntered):
            made.coupons.append((meters[uplink.serial].meter_id, uplink))
            made.settle(message, Outcome.STORED)
        else:
            take_reply(made, meters[uplink.serial], uplink, message)
            made.settle(message, Outcome.STORED)
    for serial, readings in sorted(arrived.items(), key=lambda entry: meters[entry[0]].meter_id):
        plan_meter(made, meters[serial], readings, calendar)
    for serial, message in latest.items():
        assert isinstance(message.uplink, Readings), "latest holds readings"
        take_status(made, meters[serial], message.uplink, message)
    return made


def place_late(
    made: Plan,
    late: Late,
    *,
    same: bool | None,
    before: tuple[int, int] | None,
    after: tuple[int, int] | None,
) -> ReadingRow | None:
    """Decide on one late reading; return it if it is to be stored.

    `same` tells whether a stored reading of the key has the same content, None that there is none; `before` and
    `after` are its neighbours as (milliseconds, energy to date).
    """
    if same:
        made.repeat(late.message)
        return None
    found = _fault_of_late(made, late, same=same, before=before, after=after)
    if found is not None:
        made.hold(late.message, found, rules=late.meter.rules, at_ms=late.at_ms, item=late.item)
        return None
    made.count(late.message.shard, "stored")
    made.settle(late.message, Outcome.STORED)
    account_id = late.meter.account.id
    since_ms = made.late_since_ms.get(account_id, late.at_ms)
    made.late_since_ms[account_id] = min(since_ms, late.at_ms)
    made.candidates.add(account_id)
    made.stale_serials.add(late.meter.serial)
    return late.row


def _fault_of_late(
    made: Plan,
    late: Late,
    *,
    same: bool | None,
    before: tuple[int, int] | None,
    after: tuple[int, int] | None,
) -> Fault | None:
    """Return why a late reading is not stored. One from just after a roll-over takes that back to its own instant."""
    meter, row = late.meter, late.row
    if same is False:
        return _conflict(meter, row)
    if row.import_wh < 0:
        return Fault(reason=Reason.NEGATIVE, detail=f"register: expected 0 Wh or more, got {row.import_wh}")
    approved = late.message.approved
    passed = approved.passed if approved else frozenset()
    if not meter.rules.holds(Reason.JUMP):
        passed |= {Reason.JUMP}
    segments = made.states.get(meter.serial, meter).segments
    fault = None
    for number, segment in enumerate(_segments_for(segments, late.at_ms)):
        energy_wh = row.import_wh + segment.offset_wh
        found = validate_late(meter, late.at_ms, energy_wh, before=before, after=after, passed=passed)
        if found is None and Reason.JUMP in passed and row.import_wh >= meter.register_end_wh:
            found = Fault(reason=Reason.JUMP, detail=f"register: expected what it has digits for, got {row.import_wh}")
        if found is None and number:
            _begin_earlier(made, late, segment, energy_wh)
        fault = fault or found
        if found is None:
            return None
    return fault


def _segments_for(segments: tuple[RegisterSegment, ...], at_ms: int) -> list[RegisterSegment]:
    """Return the segment of an instant, and the one after it: the register may have begun again before that one."""
    number = sum(segment.from_ms <= at_ms for segment in segments) or 1
    return list(segments[number - 1 : number + 1])


def _begin_earlier(made: Plan, late: Late, segment: RegisterSegment, energy_wh: int) -> None:
    """Let a register have begun again at a reading that came after the one that told of it."""
    state = made.states.get(late.meter.serial, late.meter)
    earlier = RegisterSegment(from_ms=late.at_ms, offset_wh=segment.offset_wh)
    segments = tuple(sorted((*state.segments, earlier), key=lambda each: each.from_ms))
    made.states[state.serial] = replace(state, segments=segments)
    made.segments.append(
        Segment(
            meter_id=state.meter_id,
            from_ms=late.at_ms,
            register_wh=late.row.import_wh,
            start_wh=energy_wh,
            reason=None,
        )
    )


def hold_unknown(made: Plan, message: Received, uplink: Uplink, uninstalled: Collection[str] = ()) -> None:
    """Refuse what comes from a meter that is not installed for billing."""
    reason = Reason.NOT_INSTALLED if uplink.serial in uninstalled else Reason.UNKNOWN_METER
    fault = Fault(reason=reason, detail=f"meter: expected an installed billing meter, got {uplink.serial}")
    instants: list[tuple[int, int | None]] = [(0, None)]
    if isinstance(uplink, Readings):
        instants = list(enumerate(uplink.read_at_ms))
    instants = [(item, at_ms) for item, at_ms in instants if _is_meant(message, item)]
    made.count(message.shard, "received", len(instants))
    for item, at_ms in instants:
        made.hold(message, fault, at_ms=at_ms, item=item)


def _is_meant(message: Received, item: int) -> bool:
    """Tell whether a reading of a message is planned: of a released one only the reading that was held."""
    return message.approved is None or message.approved.item in (None, item)


def _arrivals(message: Received, uplink: Readings, meter: MeterState) -> list[Arrived]:
    columns = zip(
        uplink.read_at_ms,
        uplink.import_wh,
        uplink.export_wh,
        uplink.voltage_mv,
        uplink.current_ma,
        uplink.power_w,
        uplink.pf_milli,
        uplink.freq_mhz,
        strict=True,
    )
    return [
        (at_ms, ReadingRow(meter.meter_id, from_ms(at_ms), *channels), message, item)
        for item, (at_ms, *channels) in enumerate(columns)
        if _is_meant(message, item)
    ]


def plan_meter(made: Plan, meter: MeterState, readings: list[Arrived], calendar: LocalCalendar) -> None:
    """Validate one meter's readings in order of their instants and follow its energy curve."""
    # Stable: of two with the same instant the one that came first is first.
    readings.sort(key=itemgetter(0))
    state = meter
    last: ReadingRow | None = None
    accepted: list[Point] = []
    for at_ms, row, message, item in readings:
        if last is not None and at_ms == state.mark_ms:
            if row == last:
                made.repeat(message)
            else:
                made.hold(message, _conflict(meter, row), rules=meter.rules, at_ms=at_ms, item=item)
            continue
        fault: Fault | Rollover | Reset | None = validate_time(meter, at_ms, message.stored_at_ms)
        if fault is None and at_ms <= state.mark_ms:
            made.late.append(Late(meter=meter, row=row, at_ms=at_ms, message=message, item=item))
            continue
        if fault is None:
            fault = _judged(made, state, at_ms, row.import_wh, message.approved)
        if isinstance(fault, Fault):
            made.hold(message, fault, rules=meter.rules, at_ms=at_ms, item=item)
            continue
        before, state = state, _moved(made, state, at_ms, row, fault)
        made.noted.extend(_noted(before, state, row))
        made.rows.append(row)
        made.settle(message, Outcome.STORED)
        last = row
        accepted.append(Point(at_ms=at_ms, energy_wh=state.energy_to_date(at_ms, row.import_wh)))
    shard = meter.shard
    made.count(shard, "received", len(readings))
    made.count(shard, "stored", len(accepted))
    if accepted:
        made.since_ms[meter.meter_id] = meter.mark_ms
        _follow(made, state, accepted, calendar)


def _follow(made: Plan, moved: MeterState, accepted: list[Point], calendar: LocalCalendar) -> None:
    """Follow a meter's curve over its accepted readings; find out whether its account has to be looked at."""
    walk = follow(moved.account.walk, moved.account.terms, accepted, calendar)
    account = replace(moved.account, walk=walk)
    # A reply of the same batch may have moved the relay.
    replied = made.states.get(moved.serial, moved)
    made.states[moved.serial] = replace(moved, relay=replied.relay, relay_at_ms=replied.relay_at_ms, account=account)
    if account.silent or account.needs_look(calendar):
        made.candidates.add(account.id)
    if account.held:
        # A released order shows in no version: read the account again.
        made.stale_serials.add(moved.serial)


def _judged(
    made: Plan, meter: MeterState, at_ms: int, register_wh: int, approved: Approved | None
) -> Fault | Rollover | Reset | None:
    """Check a register against the mark, and let the meter's rules, or a release, decide on what is found."""
    rules, before_wh = meter.rules, meter.mark_wh
    found = validate_register(meter, meter.mark_ms, before_wh, at_ms, register_wh)
    if isinstance(found, Rollover):
        _note(made, meter, at_ms, Reason.ROLLOVER, register_wh)
        return found
    if found is None:
        return None
    is_reset = found.reason in FALLS and approved is not None and approved.as_reset
    if is_reset or (found.reason is Reason.REGISTER_RESET and not rules.holds(found.reason)):
        reset = began_again(meter, at_ms - meter.mark_ms, register_wh)
        if reset is not None:
            _note(made, meter, at_ms, Reason.REGISTER_RESET, register_wh)
        return reset or found
    is_passed = found.reason in approved.passed if approved else not rules.holds(found.reason)
    if is_passed and is_possible_jump(meter, before_wh, register_wh):
        _note(made, meter, at_ms, found.reason, register_wh)
        return None
    return found


def _note(made: Plan, meter: MeterState, at_ms: int, reason: Reason, register_wh: int) -> None:
    """Note a register that was accepted though a rule caught it, where the meter's rules ask for that."""
    if meter.rules.flags(reason):
        made.noted.append(flag(meter, at_ms, reason, meter.mark_wh, register_wh))


def _moved(made: Plan, meter: MeterState, at_ms: int, row: ReadingRow, began: Rollover | Reset | None) -> MeterState:
    """Return where a meter stands after an accepted reading, but for its account."""
    register_wh, segments = row.import_wh, meter.segments
    if began is not None:
        start_wh = meter.energy_to_date(meter.mark_ms, meter.mark_wh) + began.consumed_wh
        segments = (*segments, RegisterSegment(from_ms=at_ms, offset_wh=start_wh - register_wh))
        made.segments.append(
            Segment(
                meter_id=meter.meter_id,
                from_ms=at_ms,
                register_wh=register_wh,
                start_wh=start_wh,
                reason="reset" if isinstance(began, Reset) else "rollover",
            )
        )
        made.candidates.add(meter.account.id)
    stands = register_wh == meter.mark_wh
    still_ms = meter.still_ms + at_ms - meter.mark_ms if stands else 0
    return replace(meter, segments=segments, mark_ms=at_ms, mark_wh=register_wh, still_ms=still_ms)


def _noted(before: MeterState, after: MeterState, row: ReadingRow) -> list[ReadingFlag]:
    accepted = Accepted(
        before_ms=before.mark_ms,
        at_ms=after.mark_ms,
        still_before_ms=before.still_ms,
        still_ms=after.still_ms,
        power_w=row.power_w,
        export_wh=row.export_wh,
    )
    return reading_flags(after, accepted)


def note_message(made: Plan, meter: MeterState, uplink: Readings, message: Received) -> None:
    """Note what a meter's rules find in a message as a whole."""
    clock_ms, step_ms = uplink.clock_ms, None
    if clock_ms is None and meter.rules.step_ms is None:
        return
    if meter.rules.step_ms is not None and len(uplink.read_at_ms) > 1:
        step_ms = min(later - earlier for earlier, later in pairwise(uplink.read_at_ms))
    made.noted.extend(message_flags(meter, clock_ms=clock_ms, step_ms=step_ms, stored_at_ms=message.stored_at_ms))


def take_events(made: Plan, meter: MeterState, uplink: Readings, message: Received) -> None:
    """Take the events that came with readings, of every message."""
    if not uplink.events:
        return
    sent_ms = _sent_ms(uplink)
    if validate_time(meter, sent_ms, message.stored_at_ms) is None:
        made.events.extend((meter.meter_id, sent_ms, code) for code in uplink.events)
        made.flags.update((meter.meter_id, sent_ms, code) for code in uplink.events)


def take_number(made: Plan, meter_id: int, uplink: Uplink, message: Received) -> None:
    """Take the number that a meter has given its message."""
    if uplink.seq is not None:
        sent_ms = made_ms(uplink, message.stored_at_ms)
        made.numbers.append((message.shard, meter_id, uplink.seq, sent_ms, message.payload))


def take_status(made: Plan, meter: MeterState, uplink: Readings, message: Received) -> None:
    """Take what a meter's last message says of the moment it was sent: the relay."""
    sent_ms = _sent_ms(uplink)
    if uplink.relay is not None and validate_time(meter, sent_ms, message.stored_at_ms) is None:
        _take_relay(made, meter, Supply(uplink.relay.value), sent_ms)


def _sent_ms(uplink: Readings) -> int:
    return uplink.clock_ms if uplink.clock_ms is not None else uplink.read_at_ms[-1]


def _take_relay(made: Plan, meter: MeterState, relay: Supply, at_ms: int) -> None:
    state = made.states.get(meter.serial, meter)
    older = state.relay_at_ms is not None and at_ms < state.relay_at_ms
    if older or relay is state.relay:
        return
    made.relays.append((meter.meter_id, relay, at_ms))
    made.states[meter.serial] = replace(state, relay=relay, relay_at_ms=at_ms)
    if meter.account.told is None and relay is not meter.account.levels.desired:
        made.candidates.add(meter.account.id)


def take_reply(made: Plan, meter: MeterState, reply: CommandReply, message: Received) -> None:
    """Take a meter's answer to an order, and what it says of the relay."""
    made.replies.append((meter.meter_id, reply))
    made.stale_serials.add(meter.serial)
    if reply.relay is not None and validate_time(meter, reply.at_ms, message.stored_at_ms) is None:
        _take_relay(made, meter, Supply(reply.relay.value), reply.at_ms)


def _conflict(meter: MeterState, row: ReadingRow) -> Fault:
    return Fault(
        reason=Reason.CONFLICT,
        detail=f"reading at {row.read_at.isoformat()}: expected what is stored, got other values, meter {meter.serial}",
    )
