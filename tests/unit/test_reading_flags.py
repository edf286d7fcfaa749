"""What rules note of readings that are stored: each rule alone, at its edges; and what documents change of rules."""

from collections import Counter
from dataclasses import replace

import msgspec
import pytest

from headend.batch_plan import plan_batch
from headend.charge_table import ChargeTable
from headend.edges.cache import StateCache
from headend.pipeline import Plan, plan, receive
from headend.reading_flags import Accepted, message_flags, reading_flags
from headend.rules import Action, Change, Reason, ValidationRules, rule_set
from headend.state import MeterState
from protocols.native import Readings, decode_uplink, encode_readings
from protocols.topics import shard_of
from tests.support import CALENDAR, DAY_MS, HOUR_MS, MINUTE_MS, REGISTER_WH, T0, Message, block, meter_state, reading

MARK_MS = T0 + 10 * DAY_MS
NOW_MS = T0 + 400 * DAY_MS
METER = meter_state(mark_ms=MARK_MS, mark_wh=50_000)
SHARD = shard_of("M1")


def _accepted(**changes: int | None) -> Accepted:
    plain = Accepted(
        before_ms=MARK_MS, at_ms=MARK_MS + HOUR_MS, still_before_ms=0, still_ms=0, power_w=None, export_wh=None
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # Each is a field of its own type.


def _names(accepted: Accepted, meter: MeterState = METER) -> list[Reason]:
    return [flag.reason for flag in reading_flags(meter, accepted)]


@pytest.mark.parametrize(("elapsed_ms", "flags"), [(7_200_000, []), (7_200_001, [Reason.GAP])])
def test_gap_is_longer_than_four_half_hours(elapsed_ms: int, flags: list[Reason]) -> None:
    """Two hours without a reading are none; a moment more is a gap, but not before the first reading."""
    assert _names(_accepted(at_ms=MARK_MS + elapsed_ms)) == flags
    fresh = meter_state()
    assert _names(_accepted(before_ms=T0, at_ms=T0 + elapsed_ms), fresh) == []


@pytest.mark.parametrize(
    ("power_w", "still_before_ms", "still_ms", "flags"),
    [
        (199, 0, 7 * HOUR_MS, []),
        (None, 0, 7 * HOUR_MS, []),
        (200, 5 * HOUR_MS, 6 * HOUR_MS - 1, []),
        (200, 5 * HOUR_MS, 6 * HOUR_MS, [Reason.STUCK]),
        (200, 7 * HOUR_MS, 8 * HOUR_MS, [Reason.STUCK]),
        (0, 30 * DAY_MS - HOUR_MS, 30 * DAY_MS - 1, []),
        (0, 30 * DAY_MS - HOUR_MS, 30 * DAY_MS, [Reason.STUCK]),
        # An empty home is told of once, not at every reading.
        (0, 30 * DAY_MS, 31 * DAY_MS, []),
    ],
)
def test_register_is_stuck_with_load_after_hours_and_without_after_a_month(
    power_w: int | None, still_before_ms: int, still_ms: int, flags: list[Reason]
) -> None:
    """200 W for six hours without a Wh is a fault; so is a month without any."""
    found = _accepted(power_w=power_w, still_before_ms=still_before_ms, still_ms=still_ms)
    assert _names(found) == flags


@pytest.mark.parametrize(
    ("export_wh", "may_export", "flagged"), [(None, False, 0), (0, False, 0), (1, False, 1), (1, True, 0)]
)
def test_export_without_permission_is_noted(export_wh: int | None, may_export: bool, flagged: int) -> None:
    """Any energy sent to the grid is noted where nobody permitted it."""
    assert _names(_accepted(export_wh=export_wh), replace(METER, may_export=may_export)) == [Reason.EXPORT] * flagged


@pytest.mark.parametrize(
    ("drift_ms", "flags"),
    [(300_000, []), (-300_000, []), (300_001, [Reason.CLOCK_DRIFT]), (-300_001, [Reason.CLOCK_DRIFT])],
)
def test_clock_is_measured_by_the_broker_both_ways(drift_ms: int, flags: list[Reason]) -> None:
    """A clock may be 300 s ahead of or behind the broker's store time."""
    found = message_flags(METER, clock_ms=NOW_MS + drift_ms, step_ms=None, stored_at_ms=NOW_MS)
    assert [flag.reason for flag in found] == flags
    assert message_flags(METER, clock_ms=None, step_ms=None, stored_at_ms=NOW_MS) == []


def test_interval_is_judged_only_where_a_model_has_one() -> None:
    """No interval is wrong by itself; a model of which the step is known has another one noted."""
    assert message_flags(METER, clock_ms=None, step_ms=900_000, stored_at_ms=NOW_MS) == []
    changes = {Reason.WRONG_INTERVAL: Change(action=Action.ACCEPT_AND_FLAG, limits={"step_s": 1_800})}
    meter = replace(METER, rules=rule_set(changes))
    (flag,) = message_flags(meter, clock_ms=None, step_ms=900_000, stored_at_ms=NOW_MS)
    assert (flag.reason, flag.expected, flag.got) == (Reason.WRONG_INTERVAL, 1_800, 900)
    assert message_flags(meter, clock_ms=None, step_ms=1_800_000, stored_at_ms=NOW_MS) == []
    made = _plan(block("M1", MARK_MS + HOUR_MS, [50_100, 50_200, 50_300], step_ms=900_000), meter=meter)
    assert [each.reason for each in made.noted] == [Reason.WRONG_INTERVAL]


def _plan(*messages: Message, meter: MeterState = METER, uninstalled: tuple[str, ...] = ()) -> Plan:
    received = [receive(SHARD, topic, payload, NOW_MS) for topic, payload in messages]
    return plan(received, {meter.serial: meter}, CALENDAR, uninstalled)


def test_standing_register_is_followed_over_batches_and_in_columns() -> None:
    """Seven hours of one register with load: noted from the sixth on, planned one by one or in columns alike."""
    cache, known = StateCache(CALENDAR), {"M1": METER}
    cache.put(METER)
    noted: list[int] = []
    for hour in range(1, 8):
        topic, payload = reading("M1", MARK_MS + hour * HOUR_MS, 50_000, power_w=900)
        received = [receive(SHARD, topic, payload, NOW_MS)]
        plain, made = plan(received, known, CALENDAR), plan_batch(received, cache.table, CALENDAR)
        assert made.noted == plain.noted
        noted += [flag.got // 3_600 for flag in made.noted]
        known |= plain.states
        cache.adopt(made)
        assert cache.table["M1"].still_ms == known["M1"].still_ms == hour * HOUR_MS
    assert noted == [6, 7]


def test_block_of_a_standing_register_is_followed_in_columns() -> None:
    """Within a block each reading has its own stand: the register moved in the middle."""
    table = ChargeTable(CALENDAR)
    table.put(METER)
    registers = [50_000] * 7 + [50_010] * 7
    topic, payload = block("M1", MARK_MS + HOUR_MS, registers, power_w=500)
    received = [receive(SHARD, topic, payload, NOW_MS)]
    plain, made = plan(received, {"M1": METER}, CALENDAR), plan_batch(received, table, CALENDAR)
    assert made.ordinary is not None
    assert len(made.ordinary.columns) == 14
    assert sorted(made.noted) == sorted(plain.noted)
    assert [flag.got // 3_600 for flag in made.noted] == [6, 7, 6]
    assert made.ordinary.still_ms.tolist() == [6 * HOUR_MS]


def test_registered_meter_that_stands_nowhere_is_held_not_rejected() -> None:
    """A meter of ours that is not installed may be released later; a serial nobody knows is rejected."""
    made = _plan(reading("M2", MARK_MS, 5), reading("M3", MARK_MS, 5), uninstalled=("M2",))
    assert [held.fault.reason for held in made.held] == [Reason.NOT_INSTALLED, Reason.UNKNOWN_METER]
    assert made.counts[SHARD] == Counter(messages=2, received=2, quarantined=1, rejected=1)


def test_rejecting_rule_counts_as_rejected_and_keeps_the_bytes() -> None:
    """A model whose bad clock is known may have its readings rejected: they are kept, but counted apart."""
    meter = replace(METER, rules=rule_set({Reason.CLOCK_ABSURD: Change(action=Action.REJECT)}))
    made = _plan(reading("M1", 0, 60_000), meter=meter)
    assert made.counts[SHARD] == Counter(messages=1, received=1, stored=0, rejected=1)
    assert [held.fault.reason for held in made.held] == [Reason.CLOCK_ABSURD]


def test_reset_that_a_model_may_make_begins_a_segment_and_goes_on() -> None:
    """What the register shows after a permitted reset was used since; the next reading goes on from there."""
    meter = replace(
        meter_state(mark_ms=MARK_MS, mark_wh=500_000),
        rules=rule_set({Reason.REGISTER_RESET: Change(action=Action.ACCEPT_AND_FLAG)}),
    )
    before_wh = meter.energy_to_date(MARK_MS, 500_000)
    made = _plan(block("M1", MARK_MS + HOUR_MS, [400, 900]), meter=meter)
    assert made.held == []
    (segment,) = made.segments
    assert (segment.register_wh, segment.start_wh, segment.reason) == (400, before_wh + 400, "reset")
    (flag,) = made.noted
    assert (flag.reason, flag.expected, flag.got) == (Reason.REGISTER_RESET, 500_000, 400)
    assert made.states["M1"].energy_to_date(MARK_MS + 2 * HOUR_MS, 900) == before_wh + 900


def test_jump_that_a_model_may_make_is_stored_up_to_the_registers_end() -> None:
    """Where rated power says nothing, a jump is stored and noted; more than the register has digits for is held."""
    meter = replace(METER, rules=rule_set({Reason.JUMP: Change(action=Action.ACCEPT_AND_FLAG)}))
    made = _plan(reading("M1", MARK_MS + MINUTE_MS, 90_000), meter=meter)
    assert [flag.reason for flag in made.noted] == [Reason.JUMP]
    assert len(made.rows) == 1
    made = _plan(reading("M1", MARK_MS + MINUTE_MS, 2**63 - 1), meter=meter)
    assert [held.fault.reason for held in made.held] == [Reason.JUMP]


def test_rules_of_a_model_come_over_those_of_its_make_and_of_all() -> None:
    """The most particular rules hold, whatever the case of the letters."""
    one, other = rule_set(), rule_set()
    rules = ValidationRules(id="x", default=rule_set(), models={("acme", ""): one, ("acme", "x1"): other})
    assert rules.of("ACME", "X1") is other
    assert rules.of("Acme", "X2") is one
    assert rules.of("Other", "X1") is rules.default


def test_drifting_clock_is_noted_once_a_message_by_the_brokers_day() -> None:
    """The instant of the note is the broker's: the meter's own cannot be believed."""
    topic, payload = reading("M1", MARK_MS + HOUR_MS, 50_100)
    found = decode_uplink(topic, payload)
    assert isinstance(found, Readings)
    made = _plan((topic, encode_readings(msgspec.structs.replace(found, clock_ms=MARK_MS + HOUR_MS))))
    (flag,) = made.noted
    assert (flag.reason, flag.at_ms) == (Reason.CLOCK_DRIFT, NOW_MS)
    assert flag.got == (MARK_MS + HOUR_MS - NOW_MS) // 1_000


def test_register_below_zero_is_held_as_negative() -> None:
    """The frame is well formed; the register is not one."""
    made = _plan(reading("M1", MARK_MS + HOUR_MS, -1), reading("M1", MARK_MS + 2 * HOUR_MS, REGISTER_WH + 60_000))
    assert [held.fault.reason for held in made.held] == [Reason.NEGATIVE]
    assert len(made.rows) == 1
