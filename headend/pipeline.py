"""A batch of messages to what one transaction has to write.

Stage: the whole of ingest between bytes and database, as one pure function: decode, validate, follow the energy
curve, find accounts to look at. `plan` takes messages in stream order and what is known of their meters; it returns
a `Plan` and never touches the state it was given. Late readings need the database and are settled by the edge with
`place_late`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

from billing.calendar import LocalCalendar, from_ms
from billing.running import Point, follow
from billing.supply import Supply
from headend.column_plan import ColumnPlan
from headend.state import MeterState, RegisterSegment, energy_to_date
from headend.validate import REJECTED, Fault, Reason, Rollover, validate_late, validate_register, validate_time
from protocols.errors import FrameError
from protocols.native import CommandReply, MeterEvent, Readings, Uplink, decode_uplink
from protocols.rows import ReadingRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message as it came, with its decoded form or the reason it has none."""

    shard: int | None
    topic: str
    payload: bytes
    stored_at_ms: int
    uplink: Uplink | None
    fault: Fault | None


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
    """A register that rolled over."""

    meter_id: int
    from_ms: int
    register_wh: int
    start_wh: int


@dataclass(slots=True, kw_only=True)
class Plan:
    """What one transaction writes, and what ingest knows after its commit.

    Invariants: `rows` are sorted by meter and instant, `ordinary` is what was planned in columns; `counts` hold, per
    shard, received = stored + duplicate + rejected + quarantined once the late readings are placed.
    """

    rows: list[ReadingRow] = field(default_factory=list)
    ordinary: ColumnPlan | None = None
    late: list[Late] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    relays: list[tuple[int, Supply, int]] = field(default_factory=list)
    events: list[tuple[int, int, int]] = field(default_factory=list)
    replies: list[tuple[int, CommandReply]] = field(default_factory=list)
    states: dict[str, MeterState] = field(default_factory=dict)
    candidates: set[int] = field(default_factory=set)
    late_since_ms: dict[int, int] = field(default_factory=dict)
    stale_serials: set[str] = field(default_factory=set)
    counts: dict[int | None, Counter[str]] = field(default_factory=dict)

    def count(self, shard: int | None, outcome: str, number: int = 1) -> None:
        """Add to one shard's count of an outcome."""
        self.counts.setdefault(shard, Counter())[outcome] += number

    def hold(self, message: Received, fault: Fault, *, at_ms: int | None = None, item: int = 0) -> None:
        """Send one reading, or a message that is none, to quarantine and count it."""
        serial = message.uplink.serial if message.uplink else None
        self.held.append(
            Held(
                shard=message.shard,
                topic=message.topic,
                serial=serial,
                read_at_ms=at_ms,
                fault=fault,
                raw=message.payload,
                item=item,
            )
        )
        self.count(message.shard, "rejected" if fault.reason in REJECTED else "quarantined")


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


def plan(messages: Iterable[Received], meters: Mapping[str, MeterState], calendar: LocalCalendar) -> Plan:
    """Turn a batch into what its transaction writes."""
    made = Plan()
    arrived: dict[str, list[Arrived]] = {}
    latest: dict[str, Received] = {}
    for message in messages:
        made.count(message.shard, "messages")
        uplink = message.uplink
        if uplink is None:
            assert message.fault is not None, "a message that did not decode has a fault"
            made.count(message.shard, "received")
            made.hold(message, message.fault)
        elif uplink.serial not in meters:
            hold_unknown(made, message, uplink)
        elif isinstance(uplink, Readings):
            latest[uplink.serial] = message
            take_events(made, meters[uplink.serial], uplink, message)
            arrived.setdefault(uplink.serial, []).extend(_arrivals(message, uplink, meters[uplink.serial]))
        elif isinstance(uplink, MeterEvent):
            made.events.append((meters[uplink.serial].meter_id, uplink.at_ms, uplink.code))
        else:
            take_reply(made, meters[uplink.serial], uplink, message)
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
        made.count(late.message.shard, "duplicate")
        return None
    if same is False:
        made.hold(late.message, _conflict(late.meter, late.row), at_ms=late.at_ms, item=late.item)
        return None
    energy_wh = late.meter.energy_to_date(late.at_ms, late.row.import_wh)
    fault = validate_late(late.meter, late.at_ms, energy_wh, before=before, after=after)
    if fault is not None:
        made.hold(late.message, fault, at_ms=late.at_ms, item=late.item)
        return None
    made.count(late.message.shard, "stored")
    account_id = late.meter.account.id
    since_ms = made.late_since_ms.get(account_id, late.at_ms)
    made.late_since_ms[account_id] = min(since_ms, late.at_ms)
    made.candidates.add(account_id)
    made.stale_serials.add(late.meter.serial)
    return late.row


def hold_unknown(made: Plan, message: Received, uplink: Uplink) -> None:
    """Refuse what comes from a meter that is not installed for billing."""
    fault = Fault(
        reason=Reason.UNKNOWN_METER, detail=f"meter: expected an installed billing meter, got {uplink.serial}"
    )
    instants: Sequence[int | None] = uplink.read_at_ms if isinstance(uplink, Readings) else [None]
    made.count(message.shard, "received", len(instants))
    for item, at_ms in enumerate(instants):
        made.hold(message, fault, at_ms=at_ms, item=item)


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
    ]


def plan_meter(made: Plan, meter: MeterState, readings: list[Arrived], calendar: LocalCalendar) -> None:
    """Validate one meter's readings in order of their instants and follow its energy curve."""
    # Stable: of two with the same instant the one that came first is first.
    readings.sort(key=itemgetter(0))
    segments = meter.segments
    mark_ms, mark_wh = meter.mark_ms, meter.mark_wh
    last: ReadingRow | None = None
    accepted: list[Point] = []
    for at_ms, row, message, item in readings:
        if last is not None and at_ms == mark_ms:
            if row == last:
                made.count(message.shard, "duplicate")
            else:
                made.hold(message, _conflict(meter, row), at_ms=at_ms, item=item)
            continue
        fault: Fault | Rollover | None = validate_time(meter, at_ms, message.stored_at_ms)
        if fault is None and at_ms <= mark_ms:
            made.late.append(Late(meter=meter, row=row, at_ms=at_ms, message=message, item=item))
            continue
        if fault is None:
            fault = validate_register(meter, mark_ms, mark_wh, at_ms, row.import_wh)
        if isinstance(fault, Rollover):
            before_wh = energy_to_date(segments, mark_ms, mark_wh)
            segments = _roll_over(made, meter, segments, at_ms, row.import_wh, before_wh + fault.consumed_wh)
        elif fault is not None:
            made.hold(message, fault, at_ms=at_ms, item=item)
            continue
        made.rows.append(row)
        mark_ms, mark_wh, last = at_ms, row.import_wh, row
        accepted.append(Point(at_ms=at_ms, energy_wh=energy_to_date(segments, at_ms, mark_wh)))
    shard = meter.shard
    made.count(shard, "received", len(readings))
    made.count(shard, "stored", len(accepted))
    if not accepted:
        return
    walk = follow(meter.account.walk, meter.account.terms, accepted, calendar)
    account = replace(meter.account, walk=walk)
    # A reply of the same batch may have moved the relay.
    state = made.states.get(meter.serial, meter)
    made.states[meter.serial] = replace(state, segments=segments, mark_ms=mark_ms, mark_wh=mark_wh, account=account)
    if account.silent or account.needs_look(calendar):
        made.candidates.add(account.id)
    if account.held:
        # A released order shows in no version: read the account again.
        made.stale_serials.add(meter.serial)


def _roll_over(
    made: Plan,
    meter: MeterState,
    segments: tuple[RegisterSegment, ...],
    at_ms: int,
    register_wh: int,
    start_wh: int,
) -> tuple[RegisterSegment, ...]:
    made.segments.append(Segment(meter_id=meter.meter_id, from_ms=at_ms, register_wh=register_wh, start_wh=start_wh))
    made.candidates.add(meter.account.id)
    return (*segments, RegisterSegment(from_ms=at_ms, offset_wh=start_wh - register_wh))


def take_events(made: Plan, meter: MeterState, uplink: Readings, message: Received) -> None:
    """Take the events that came with readings, of every message."""
    sent_ms = _sent_ms(uplink)
    if uplink.events and validate_time(meter, sent_ms, message.stored_at_ms) is None:
        made.events.extend((meter.meter_id, sent_ms, code) for code in uplink.events)


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
