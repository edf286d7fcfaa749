"""The plan in columns is the plan one by one, for any batch and any state that ingest may be in."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.running import Point, begin, follow, opening
from billing.supply import FurtherLevel, Mode, Supply
from billing.tariff import ENERGY_WH_MAX
from billing.tariff_document import builtin_tariff
from billing.terms import one_assignment
from db.readings import rows_from_columns
from headend.batch_plan import plan_batch
from headend.charge_table import RATED_W_MAX
from headend.edges.cache import StateCache
from headend.pipeline import Plan, Received, plan, receive
from headend.rules import Action, Change, Reason, ValidationRules, rule_set
from headend.state import MeterState, RegisterSegment
from headend.validate import CLOCK_CEILING_MS, CLOCK_FLOOR_MS, FUTURE_SLACK_MS
from protocols.native import (
    CommandReply,
    EntryResult,
    MeterEvent,
    OrderKind,
    Readings,
    Relay,
    ReplyResult,
    TokenEntered,
    encode_event,
    encode_readings,
    encode_reply,
    encode_token_entered,
)
from protocols.rows import ReadingRow
from protocols.topics import event_topic, reading_topic, shard_of
from tests.support import CALENDAR, CREDIT_MINOR, DAY_MS, HOUR_MS, MINUTE_MS, REGISTER_WH, T0, meter_state

SERIALS = ("M1", "M2", "M3", "M4")
NOW_MS = T0 + 45 * DAY_MS
PART_END_MS = T0 + 30 * DAY_MS
TARIFFS = ("punjab-ds-2026-27", "punjab-nrs-2026-27", "punjab-ds-2026-27-subsidy", "punjab-tod-commercial-2026-27")
BOUNDED = settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])

instants = st.one_of(
    st.integers(0, 60).map(lambda hour: T0 + hour * HOUR_MS),
    st.sampled_from([0, T0 - 1, T0, T0 + 1, PART_END_MS - 1, PART_END_MS, PART_END_MS + HOUR_MS]),
    st.sampled_from([CLOCK_FLOOR_MS - 1, CLOCK_FLOOR_MS, CLOCK_CEILING_MS - 1, CLOCK_CEILING_MS, 253_402_300_799_999]),
    st.sampled_from([NOW_MS, NOW_MS + FUTURE_SLACK_MS, NOW_MS + FUTURE_SLACK_MS + 1]),
    st.integers(T0, NOW_MS),
)
registers_wh = st.one_of(
    st.integers(REGISTER_WH, REGISTER_WH + 60_000),
    st.sampled_from([0, REGISTER_WH - 1, REGISTER_WH, 999_999_900, 1_000_000_000, 10**10, 2**63 - 1]),
)
_RULES = rule_set()
# One model is told of little and soon, another's falls and jumps are accepted.
_NARROW = {
    Reason.GAP: Change(limits={"longer_than_s": 3_600}),
    Reason.STUCK: Change(limits={"load_w": 1, "with_load_s": 60, "without_load_s": 7_200}),
    Reason.WRONG_INTERVAL: Change(action=Action.ACCEPT_AND_FLAG, limits={"step_s": 3_600}),
}
_MILD = {
    Reason.REGISTER_RESET: Change(action=Action.ACCEPT_AND_FLAG),
    Reason.JUMP: Change(action=Action.ACCEPT_AND_FLAG),
    Reason.ROLLOVER: Change(action=Action.ACCEPT_AND_FLAG),
    Reason.EXPORT: Change(action=Action.ACCEPT),
    Reason.CONFLICT: Change(action=Action.REJECT),
}
MODELS = ("", "narrow", "mild")
VALIDATION = ValidationRules(
    id="drawn",
    default=_RULES,
    models={("acme", "narrow"): rule_set(_NARROW), ("acme", "mild"): rule_set(_MILD)},
)
channel = st.one_of(st.none(), st.integers(0, 300_000))
relays = st.sampled_from([None, *Relay])
seldom = st.sampled_from([False] * 9 + [True])
further_levels = st.builds(
    FurtherLevel,
    n=st.just(1),
    level_minor=st.sampled_from([0, 800, CREDIT_MINOR]),
    arm=st.just(1),
    raised=st.booleans(),
)


@st.composite
def meters(draw: st.DrawFn, serial: str, meter_id: int) -> MeterState:
    """Draw what ingest knows of a meter: any tariff, mark, levels and flags, one roll-over or none."""
    tariff = builtin_tariff(draw(st.sampled_from((TARIFFS[0], TARIFFS[0], TARIFFS[0], *TARIFFS))))
    terms = one_assignment(tariff, load_w=draw(st.sampled_from([900, 3_000, 25_000])), opened_on=CALENDAR.day_of(T0))
    posted_minor = draw(st.sampled_from([-1, 0, 500, 2_000, CREDIT_MINOR, 10**12]))
    checkpoint = opening(terms, posted_minor=posted_minor, at=Point(at_ms=T0, energy_wh=0))
    before_wh = draw(st.sampled_from([0] * 6 + [150_000, ENERGY_WH_MAX, ENERGY_WH_MAX + 1]))
    checkpoint = replace(checkpoint, before_wh=before_wh)
    mark_ms = T0 + draw(st.sampled_from([0, HOUR_MS, 20 * HOUR_MS, 20 * HOUR_MS, 29 * DAY_MS, 31 * DAY_MS]))
    mark_wh = REGISTER_WH if mark_ms == T0 else REGISTER_WH + draw(st.integers(0, 30_000))
    walk = begin(checkpoint, terms)
    if mark_ms > T0:
        walk = follow(walk, terms, [Point(at_ms=mark_ms, energy_wh=mark_wh - REGISTER_WH)], CALENDAR)
    plain = meter_state(serial, meter_id=meter_id)
    levels = replace(
        plain.account.levels,
        mode=draw(st.sampled_from([Mode.PREPAID, Mode.PREPAID, Mode.PREPAID, Mode.POSTPAID])),
        threshold_minor=draw(st.sampled_from([None, 0, 1_000, CREDIT_MINOR])),
        emergency_credit_minor=draw(st.sampled_from([0, 1_500])),
        low_raised=draw(st.booleans()),
        exhausted_raised=draw(st.booleans()),
        desired=draw(st.sampled_from([Supply.ON, Supply.ON, Supply.OFF, Supply.LIMITED])),
        absent=draw(seldom),
        thresholds=draw(st.lists(further_levels, max_size=2).map(tuple)),
    )
    account = replace(
        plain.account,
        terms=terms,
        checkpoint=checkpoint,
        walk=walk,
        levels=levels,
        silent=draw(seldom),
        held=draw(seldom),
        told=draw(st.sampled_from([None, Supply.ON, Supply.OFF])),
        waits=draw(st.booleans()),
    )
    model = draw(st.sampled_from(MODELS))
    return replace(
        plain,
        make="Acme",
        model=model,
        rules=VALIDATION.of("Acme", model),
        may_export=draw(st.booleans()),
        still_ms=0 if mark_ms == T0 else draw(st.sampled_from([0, 0, HOUR_MS, 29 * DAY_MS])),
        rated_w=draw(st.sampled_from([15_000] * 6 + [RATED_W_MAX, RATED_W_MAX + 1])),
        register_end_wh=draw(st.sampled_from([10**9, REGISTER_WH + 31_000])),
        segments=(RegisterSegment(from_ms=T0, offset_wh=-REGISTER_WH),),
        mark_ms=mark_ms,
        mark_wh=mark_wh,
        relay=draw(st.sampled_from([None, *Supply])),
        relay_at_ms=draw(st.sampled_from([None, T0 + HOUR_MS])),
        account=account,
    )


@st.composite
def messages(draw: st.DrawFn) -> Received:
    """Draw a message: mostly readings as a meter sends them, some absurd; else an event, a reply, a token, nonsense."""
    serial = draw(st.sampled_from((*SERIALS, *SERIALS, "M9")))
    kind = draw(st.sampled_from(["orderly"] * 16 + ["readings"] * 2 + ["event", "reply", "token", "nonsense"]))
    topic, payload = event_topic(serial), b"{"
    if kind == "orderly":
        topic, payload = reading_topic(serial), encode_readings(draw(_orderly_readings(serial)))
    elif kind == "readings":
        topic, payload = reading_topic(serial), encode_readings(draw(_readings(serial)))
    elif kind == "event":
        at_ms = draw(st.integers(T0, NOW_MS))
        payload = encode_event(MeterEvent(serial=serial, seq=None, at_ms=at_ms, code=draw(st.integers(1, 300))))
    elif kind == "token":
        result = draw(st.sampled_from(EntryResult))
        token = TokenEntered(serial=serial, seq=None, at_ms=NOW_MS, tid=1, last_digits="0001", result=result)
        payload = encode_token_entered(token)
    elif kind == "reply":
        payload = encode_reply(
            CommandReply(
                serial=serial,
                seq=None,
                at_ms=draw(instants),
                order_id=1,
                epoch=1,
                kind=OrderKind.SUPPLY,
                result=draw(st.sampled_from(ReplyResult)),
                relay=draw(relays),
                threshold_minor=None,
            )
        )
    return receive(shard_of(serial), topic, payload, NOW_MS - draw(st.sampled_from([0, 0, 0, 40 * DAY_MS])))


@st.composite
def _orderly_readings(draw: st.DrawFn, serial: str) -> Readings:
    """Draw readings that come after most marks and rise with time, whatever the order of the messages."""
    first_hour = draw(st.integers(21, 29 * 24))
    read_at_ms = [T0 + (first_hour + place) * HOUR_MS for place in range(draw(st.integers(1, 3)))]
    nothing: list[int | None] = [None] * len(read_at_ms)
    # A register that stands still, or rises hour by hour.
    stands = draw(st.sampled_from([False, False, True]))
    return Readings(
        serial=serial,
        seq=None,
        clock_ms=None,
        read_at_ms=read_at_ms,
        import_wh=[REGISTER_WH + 30_000 + (0 if stands else (at_ms - T0) // HOUR_MS * 60) for at_ms in read_at_ms],
        export_wh=[draw(st.sampled_from([None, 0, 5]))] * len(read_at_ms),
        voltage_mv=nothing,
        current_ma=nothing,
        power_w=[draw(st.sampled_from([None, 0, 500]))] * len(read_at_ms),
        pf_milli=nothing,
        freq_mhz=nothing,
        relay=draw(st.sampled_from([None, None, None, Relay.ON])),
        credit_minor=None,
        events=(),
    )


@st.composite
def _readings(draw: st.DrawFn, serial: str) -> Readings:
    first_ms = draw(instants)
    rising = draw(st.booleans())
    count = draw(st.integers(1, 5)) if first_ms < CLOCK_CEILING_MS else 1
    found = draw(st.lists(registers_wh, min_size=count, max_size=count))
    step_ms = draw(st.sampled_from([MINUTE_MS, HOUR_MS, DAY_MS]))
    number = draw(st.integers(1, 3))
    return Readings(
        serial=serial,
        seq=draw(st.one_of(st.none(), st.integers(0, 3))),
        clock_ms=draw(st.one_of(st.none(), instants)),
        read_at_ms=[first_ms + place * step_ms for place in range(count)],
        # Everybody's third reading is alike: duplicates come by themselves.
        import_wh=sorted(found) if rising else [REGISTER_WH + number * 400 + place for place in range(count)],
        export_wh=draw(st.lists(channel, min_size=count, max_size=count)),
        voltage_mv=[None] * count,
        current_ma=[number] * count,
        power_w=[None] * count,
        pf_milli=[None] * count,
        freq_mhz=[50_000] * count,
        relay=draw(relays),
        credit_minor=None,
        events=draw(st.sampled_from([(), (), (101,), (101, 102)])),
    )


def _rows(made: Plan) -> list[ReadingRow]:
    ordinary = [] if made.ordinary is None else rows_from_columns(made.ordinary.columns)
    return sorted([*made.rows, *ordinary], key=lambda row: (row.meter_id, row.read_at))


def _counts(made: Plan) -> dict[int | None, Counter[str]]:
    # A count of none says nothing.
    return {shard: +counted for shard, counted in made.counts.items() if +counted}


def _adopted(known: Mapping[str, MeterState], made: Plan) -> dict[str, MeterState]:
    after = {**known, **made.states}
    return {serial: state for serial, state in after.items() if serial not in made.stale_serials}


@BOUNDED
@given(
    st.tuples(*(meters(serial, number) for number, serial in enumerate(SERIALS, start=1))),
    st.lists(st.lists(messages(), min_size=1, max_size=8), min_size=1, max_size=3),
)
def test_any_batch_is_planned_in_columns_as_one_by_one(
    found: Sequence[MeterState], batches: Sequence[Sequence[Received]]
) -> None:
    """Rows, quarantine, late readings, segments, relays, events, replies, tokens, counts and states are equal."""
    known = {state.serial: state for state in found}
    cache = StateCache(CALENDAR, validation=VALIDATION)
    for state in found:
        cache.put(state)
    for batch in batches:
        plain, made = plan(batch, known, CALENDAR), plan_batch(batch, cache.table, CALENDAR)
        assert _rows(made) == _rows(plain)
        assert made.held == plain.held
        assert made.late == plain.late
        assert made.segments == plain.segments
        assert sorted(made.noted) == sorted(plain.noted)
        assert made.relays == plain.relays
        assert made.events == plain.events
        assert (made.flags, made.numbers) == (plain.flags, plain.numbers)
        assert made.replies == plain.replies
        assert made.entries == plain.entries
        assert made.candidates == plain.candidates
        assert made.stale_serials == plain.stale_serials
        assert _counts(made) == _counts(plain)
        known = _adopted(known, plain)
        cache.adopt(made)
        assert dict(cache.table) == known
