"""Which due orders leave, which wait and for what: every row of the dispatcher's table, and the limits of an area."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from billing.calendar import LocalCalendar, to_ms
from billing.supply_rule_document import builtin_supply_documents, parse_supply_rules
from headend.dispatch_plan import (
    HOURS_WAIT_MS_MAX,
    LANE_WAIT_MS,
    TRANSPORT_WAIT_MS,
    AlarmKind,
    AreaCount,
    CutOffLimits,
    DueOrder,
    Hours,
    Patience,
    PutOff,
    SendPlan,
    SupplyAlarm,
    Waits,
    hours_at,
    plan_sends,
)

ANY_HOUR = Hours(allowed=True)
PATIENCE = Patience(grace_ms=15_000, again_ms=600_000)
LIMITS = CutOffLimits(per_minute_max=3, per_hour_max=5)
WIDE = CutOffLimits(per_minute_max=100, per_hour_max=100)
NOTHING_SENT = {"north": AreaCount(minute_sent=0, hour_sent=0, held=False)}
CUT = DueOrder(
    id=1,
    meter_id=1,
    transport="mqtt",
    kind="supply",
    relay="off",
    area="north",
    category="DS",
    contradicted=False,
    is_first_try=True,
    age_ms=1_000,
    same_before_ms=None,
    busy_ms=None,
)
LOAD_LIMIT = replace(CUT, relay="limited")
AGAIN = replace(CUT, is_first_try=False)
RESTORE = replace(CUT, relay="on", category=None)
ALARM = replace(CUT, kind="alarm", relay=None, category=None)


def _plan(
    *orders: DueOrder,
    hours: Hours = ANY_HOUR,
    areas: Mapping[str, AreaCount] = NOTHING_SENT,
    limits: CutOffLimits = WIDE,
) -> SendPlan:
    return plan_sends(
        orders,
        transports={"mqtt"},
        hours_of=lambda category: hours,
        patience=PATIENCE,
        areas=areas,
        limits=limits,
    )


def _within(orders: Iterable[DueOrder], areas: Mapping[str, AreaCount]) -> tuple[list[DueOrder], list[SupplyAlarm]]:
    """Return what leaves within the limits, and the alarms."""
    plan = _plan(*orders, areas=areas, limits=LIMITS)
    return plan.send, plan.alarms


def test_order_without_obstacle_leaves() -> None:
    """Cut-off, restore and alarm of different meters leave together, in the order in which they came."""
    orders = [replace(RESTORE, id=1, meter_id=1), replace(CUT, id=2, meter_id=2), replace(ALARM, id=3, meter_id=3)]
    plan = _plan(*orders)
    assert plan.send == orders
    assert (plan.put_off, plan.anew, plan.closes_ms) == ([], [], {})


def test_transport_without_a_port_waits() -> None:
    """An order for a meter that no port leads to is looked at again every minute, a restore as well."""
    plan = _plan(replace(RESTORE, transport="modbus"))
    assert plan.put_off == [PutOff(id=1, wait_ms=TRANSPORT_WAIT_MS, why=Waits.TRANSPORT)]
    assert plan.send == []


def test_contradicted_order_is_ordered_anew() -> None:
    """A meter never executes an epoch again, so that sending the same once more would be of no use."""
    plan = _plan(replace(CUT, contradicted=True))
    assert (plan.anew, plan.send, plan.put_off) == ([1], [], [])


def test_same_order_again_waits_for_the_grace() -> None:
    """A word that crossed the confirmation is not answered with an order at once."""
    plan = _plan(replace(RESTORE, age_ms=4_000, same_before_ms=3_600_000))
    assert plan.put_off == [PutOff(id=1, wait_ms=11_000, why=Waits.CONTRADICTING)]


def test_same_order_again_waits_out_the_time_between() -> None:
    """A switch that somebody moves back again and again is moved at most every ten minutes."""
    plan = _plan(replace(CUT, age_ms=60_000, same_before_ms=200_000))
    assert plan.put_off == [PutOff(id=1, wait_ms=400_000, why=Waits.CONTRADICTING)]
    assert _plan(replace(CUT, age_ms=60_000, same_before_ms=600_000)).send != []


def test_clock_set_back_makes_no_wait_longer() -> None:
    """An order written under a clock that was an hour ahead waits no longer than one written now."""
    plan = _plan(replace(CUT, age_ms=-3_600_000, same_before_ms=-3_600_000))
    assert plan.put_off == [PutOff(id=1, wait_ms=PATIENCE.again_ms, why=Waits.CONTRADICTING)]


def test_cut_off_outside_its_hours_waits_for_them() -> None:
    """A cut-off waits for the opening, and is looked at every hour, since rules may be replaced; a restore leaves."""
    closed = Hours(allowed=False, opens_in_ms=50_000)
    assert _plan(CUT, hours=closed).put_off == [PutOff(id=1, wait_ms=50_000, why=Waits.HOURS)]
    tomorrow = Hours(allowed=False, opens_in_ms=40_000_000)
    assert _plan(CUT, hours=tomorrow).put_off == [PutOff(id=1, wait_ms=HOURS_WAIT_MS_MAX, why=Waits.HOURS)]
    never = Hours(allowed=False)
    assert _plan(CUT, hours=never).put_off == [PutOff(id=1, wait_ms=HOURS_WAIT_MS_MAX, why=Waits.HOURS)]
    assert _plan(RESTORE, hours=closed).send == [RESTORE]


def test_load_limit_obeys_the_hours_of_a_cut_off() -> None:
    """An evening that is protected is protected from a limit, too; one on its way expires with the hours."""
    closed = Hours(allowed=False, opens_in_ms=50_000)
    assert _plan(LOAD_LIMIT, hours=closed).put_off == [PutOff(id=1, wait_ms=50_000, why=Waits.HOURS)]
    plan = _plan(LOAD_LIMIT, hours=Hours(allowed=True, closes_ms=77))
    assert (plan.send, plan.closes_ms) == ([LOAD_LIMIT], {1: 77})


def test_cut_off_within_its_hours_expires_with_them() -> None:
    """What is delayed on its way must not cut when the hours are over."""
    assert _plan(CUT, hours=Hours(allowed=True, closes_ms=77)).closes_ms == {1: 77}


def test_second_command_of_a_meter_waits_for_the_first() -> None:
    """A meter has one command on its way: supply first, then the alarm."""
    plan = _plan(CUT, replace(ALARM, id=2))
    assert (plan.send, plan.put_off) == ([CUT], [PutOff(id=2, wait_ms=LANE_WAIT_MS, why=Waits.LANE)])
    plan = _plan(replace(ALARM, id=2, busy_ms=64_000))
    assert plan.put_off == [PutOff(id=2, wait_ms=64_000, why=Waits.LANE)]


def test_alarm_of_a_meter_whose_cut_off_waits_leaves() -> None:
    """A protected evening silences no warning."""
    alarm = replace(ALARM, id=2)
    plan = _plan(CUT, alarm, hours=Hours(allowed=False, opens_in_ms=1))
    assert plan.send == [alarm]


def test_alarm_of_a_meter_whose_cut_off_has_no_place_leaves() -> None:
    """Nor does a full area."""
    alarm = replace(ALARM, id=2)
    plan = _plan(CUT, alarm, areas={"north": AreaCount(minute_sent=0, hour_sent=0, held=True)})
    assert (plan.send, plan.put_off) == ([alarm], [])


def test_protected_cut_off_takes_no_place() -> None:
    """What waits for its hours neither takes a place nor alarms."""
    closed = Hours(allowed=False, opens_in_ms=1)
    plan = _plan(*_cuts(5), hours=closed, limits=LIMITS)
    assert (plan.send, plan.alarms, len(plan.put_off)) == ([], [], 5)


def test_hours_come_from_the_scheme_of_the_category() -> None:
    """Government connections are cut on working days from 10:00 to 13:00, homes at any hour."""
    rules = parse_supply_rules(builtin_supply_documents()["punjab"])
    calendar = LocalCalendar(ZoneInfo("Asia/Kolkata"))

    def at(hour: int, minute: int = 0) -> int:
        return to_ms(datetime(2026, 11, 25, hour, minute, tzinfo=calendar.zone).astimezone(UTC))

    within = hours_at(rules, at(12, 30), calendar)
    assert within("GOVT") == Hours(allowed=True, closes_ms=at(13))
    assert within("DS") == Hours(allowed=True)
    evening = hours_at(rules, at(18), calendar)
    assert evening("GOVT") == Hours(allowed=False, opens_in_ms=16 * 3_600_000)


def _cuts(number: int, area: str = "north") -> list[DueOrder]:
    return [replace(CUT, id=place, meter_id=place, area=area) for place in range(1, number + 1)]


def test_cut_offs_beyond_the_minutes_limit_stay_and_alarm() -> None:
    """Three a minute, one of them gone: two leave, the area is told of once; restores are never counted."""
    restores = [replace(RESTORE, id=90 + place, meter_id=90 + place) for place in range(9)]
    areas = {"north": AreaCount(minute_sent=1, hour_sent=1, held=False)}
    kept, alarms = _within([*restores, *_cuts(5)], areas)
    assert kept == [*restores, *_cuts(2)]
    assert alarms == [SupplyAlarm(area="north", kind=AlarmKind.CAPPED, sent=3, most=3)]


def test_load_limits_are_no_cut_offs_to_an_area() -> None:
    """Nobody is in the dark with a small load: limits leave at once, even of an area on hold, and are not counted."""
    load_limits = [replace(LOAD_LIMIT, id=90 + place, meter_id=90 + place) for place in range(9)]
    areas = {"north": AreaCount(minute_sent=0, hour_sent=0, held=True)}
    assert _within([*load_limits, *_cuts(1)], areas) == (load_limits, [])
    assert _within([replace(LOAD_LIMIT, area="never counted in")], {})[0] != []


def test_cut_offs_that_fit_raise_no_alarm() -> None:
    """A limit that is met exactly holds nothing back."""
    areas = {"north": AreaCount(minute_sent=0, hour_sent=0, held=False)}
    assert _within(_cuts(3), areas) == (_cuts(3), [])


def test_cut_offs_beyond_the_hours_limit_are_held() -> None:
    """The hour's limit of five is met by the second that leaves now: the rest waits for somebody's release."""
    areas = {"north": AreaCount(minute_sent=0, hour_sent=3, held=False)}
    kept, alarms = _within(_cuts(3), areas)
    assert kept == _cuts(2)
    assert alarms == [SupplyAlarm(area="north", kind=AlarmKind.HELD, sent=5, most=5)]


def test_tries_again_take_places_of_the_minute_and_none_of_the_hour() -> None:
    """Meters that are out of reach for good fill no hour; a hold stops them as well."""
    again = [replace(order, is_first_try=False) for order in _cuts(5)]
    full = {"north": AreaCount(minute_sent=0, hour_sent=5, held=False)}
    kept, alarms = _within(again, full)
    assert kept == again[:3]
    assert alarms == [SupplyAlarm(area="north", kind=AlarmKind.CAPPED, sent=3, most=3)]
    held = {"north": AreaCount(minute_sent=0, hour_sent=0, held=True)}
    assert _within(again, held) == ([], [])


def test_held_area_sends_nothing_and_alarms_no_more() -> None:
    """An area on hold is known to operators; other areas go on."""
    areas = {
        "north": AreaCount(minute_sent=0, hour_sent=0, held=True),
        "south": AreaCount(minute_sent=0, hour_sent=0, held=False),
    }
    south = _cuts(2, "south")
    assert _within([*_cuts(3), *south], areas) == (south, [])


@given(
    orders=st.lists(
        st.tuples(st.sampled_from(["north", "south", "east"]), st.sampled_from([RESTORE, CUT, AGAIN])), max_size=40
    ),
    sent=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.booleans()), min_size=3, max_size=3),
)
def test_limits_hold_for_any_mix(orders: list[tuple[str, DueOrder]], sent: list[tuple[int, int, bool]]) -> None:
    """No area ever passes a limit, every restore leaves, and who holds something back is told of unless held."""
    areas = {
        name: AreaCount(minute_sent=minute, hour_sent=max(minute, hour), held=held)
        for name, (minute, hour, held) in zip(["north", "south", "east"], sent, strict=True)
    }
    due = [replace(order, id=place, meter_id=place, area=area) for place, (area, order) in enumerate(orders)]
    kept, alarms = _within(due, areas)
    assert [order for order in due if not order.is_cut_off] == [order for order in kept if not order.is_cut_off]
    for name, area in areas.items():
        leaving = [order for order in kept if order.is_cut_off and order.area == name]
        waiting = sum(order.is_cut_off and order.area == name for order in due) - len(leaving)
        new = sum(order.is_first_try for order in leaving)
        assert len(leaving) <= area.places(LIMITS)
        assert new <= area.new_places(LIMITS)
        assert waiting == 0 or len(leaving) == area.places(LIMITS) or new == area.new_places(LIMITS)
        assert (name in {alarm.area for alarm in alarms}) == (waiting > 0 and not area.held)
