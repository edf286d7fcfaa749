"""Which of the orders that are due leave now, which wait and for what, and which are ordered anew.

Stage: the dispatcher's decision, between what is due and what is claimed. Takes due orders with the facts that decide,
the transports at hand and the schemes' hours; returns a `SendPlan`. Pure: never a clock, a database, a meter.

The rules; the first that holds decides:

| due order                                                       | what becomes of it                          |
|-----------------------------------------------------------------|---------------------------------------------|
| no port for the meter's transport                               | waits, is looked at again every minute      |
| the meter did it, and named the other position of its relay     | ordered anew, since an epoch is done once   |
| the same was done before; the meter has contradicted it since   | waits out the grace and the time in between |
| a cut-off or load limit outside the hours of its scheme         | waits for them                              |
| a cut-off for which its area has no place left                  | stays due, and the area is told of          |
| an alarm or threshold while another command is on its way       | waits for that one                          |
| any other                                                       | leaves                                      |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from billing.calendar import LocalCalendar
from billing.supply_policy import SupplyRules, may_cut, next_cut_ms, window_closes_ms

# A port appears when a dispatcher that has it is started.
TRANSPORT_WAIT_MS = 60_000
# Rules may be replaced before the hours that they name have come: looked at again at the latest after an hour.
HOURS_WAIT_MS_MAX = 3_600_000
# Of a meter's two commands of one moment the second follows when the first has had its 2 s to be answered.
LANE_WAIT_MS = 2_000


class Waits(StrEnum):
    """What an order was put off for."""

    HOURS = "hours"
    TRANSPORT = "transport"
    LANE = "lane"
    CONTRADICTING = "contradicting"


@dataclass(frozen=True, slots=True, kw_only=True)
class DueOrder:
    """An order that is due, with what decides whether it leaves.

    Units: milliseconds by the database's clock, below 0 if that has been set back. `same_before_ms` is the age of the
    meter's previous supply order if that asked for the same and was done; `busy_ms` is how long another command of
    the meter is still on its way. None where there is none. `category` matters to cut-offs and load limits, `area` to
    cut-offs only.
    """

    id: int
    meter_id: int
    transport: str
    kind: str
    relay: str | None
    area: str
    category: str | None
    contradicted: bool
    is_first_try: bool
    age_ms: int
    same_before_ms: int | None
    busy_ms: int | None

    @property
    def is_cut_off(self) -> bool:
        """Tell whether the order takes supply away as a whole: its area has limits."""
        return self.kind == "supply" and self.relay == "off"

    @property
    def has_hours(self) -> bool:
        """Tell whether the order takes supply away, whole or but for a small load: its scheme has hours for that."""
        return self.kind == "supply" and self.relay != "on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """Whether supply may be cut or limited now: if so, when the command must have expired; if not, how long until then.

    Invariants: None means never, of the instants that are looked at.
    """

    allowed: bool
    closes_ms: int | None = None
    opens_in_ms: int | None = None


# The hours of a category at the moment of the plan.
HoursOf = Callable[[str], Hours]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How a meter that contradicts is met: not before its word is this old, and not more often than that."""

    grace_ms: int
    again_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOffLimits:
    """How many cut-offs may leave for an area.

    Invariants: in any minute at most `per_minute_max` commands leave, tries again included; an area that has had
    `per_hour_max` new cut-offs within an hour gets no command until somebody releases it. `minute_s` is a multiple of
    6, the steps in which is counted; shorter in tests.
    """

    per_minute_max: int
    per_hour_max: int
    minute_s: int = 60
    hour_s: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaCount:
    """Commands that left for an area in the last minute, new cut-offs of the last hour; `held` until released."""

    minute_sent: int
    hour_sent: int
    held: bool

    def places(self, limits: CutOffLimits) -> int:
        """Return how many commands may leave now."""
        return 0 if self.held else max(0, limits.per_minute_max - self.minute_sent)

    def new_places(self, limits: CutOffLimits) -> int:
        """Return how many new cut-offs the hour has room for."""
        return 0 if self.held else max(0, limits.per_hour_max - self.hour_sent)


class AlarmKind(StrEnum):
    """What holds the cut-offs of an area back: the minute's limit, or the hour's, until somebody releases them."""

    CAPPED = "capped"
    HELD = "held"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupplyAlarm:
    """Cut-offs that a limit holds back: how many had left, and how many at most may."""

    area: str
    kind: AlarmKind
    sent: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PutOff:
    """An order to be looked at again later."""

    id: int
    wait_ms: int
    why: Waits


@dataclass(slots=True, kw_only=True)
class SendPlan:
    """What becomes of the orders that are due.

    Invariants: each due order stands in exactly one of `send`, `put_off`, `anew`, or is a cut-off without a place;
    `send` is in the order in which they came; `closes_ms` has the cut-offs and load limits to send whose command must
    have expired at an instant; `alarms` has each area that lacks a place once, unless it is known to be held.
    """

    send: list[DueOrder] = field(default_factory=list)
    put_off: list[PutOff] = field(default_factory=list)
    anew: list[int] = field(default_factory=list)
    closes_ms: dict[int, int] = field(default_factory=dict)
    alarms: list[SupplyAlarm] = field(default_factory=list)


class _Places:
    """The places that areas have left, taken one by one."""

    def __init__(self, areas: Mapping[str, AreaCount], limits: CutOffLimits) -> None:
        self._areas = areas
        self._limits = limits
        self._taken: Counter[str] = Counter()
        self._new: Counter[str] = Counter()
        self._short: dict[str, AlarmKind] = {}

    def take(self, order: DueOrder) -> bool:
        """Take a place for a cut-off; tell whether there was one."""
        name, area = order.area, self._areas[order.area]
        if order.is_first_try and self._new[name] >= area.new_places(self._limits):
            self._short[name] = AlarmKind.HELD
            return False
        if self._taken[name] >= area.places(self._limits):
            self._short.setdefault(name, AlarmKind.CAPPED)
            return False
        self._taken[name] += 1
        self._new[name] += order.is_first_try
        return True

    def alarms(self) -> list[SupplyAlarm]:
        """Return the areas that lacked a place, but for those on hold already."""
        return [
            self._alarm(name, self._areas[name], kind)
            for name, kind in self._short.items()
            if not self._areas[name].held
        ]

    def _alarm(self, name: str, area: AreaCount, kind: AlarmKind) -> SupplyAlarm:
        if kind is AlarmKind.HELD:
            sent, most = area.hour_sent + self._new[name], self._limits.per_hour_max
        else:
            sent, most = area.minute_sent + self._taken[name], self._limits.per_minute_max
        return SupplyAlarm(area=name, kind=kind, sent=sent, most=most)


def hours_at(rules: SupplyRules, now_ms: int, calendar: LocalCalendar) -> HoursOf:
    """Return the hours of each category at an instant, by the rules in force."""

    def hours_of(category: str) -> Hours:
        scheme = rules.of(category)
        if may_cut(scheme, now_ms, calendar):
            return Hours(allowed=True, closes_ms=window_closes_ms(scheme, now_ms, calendar))
        opens_ms = next_cut_ms(scheme, now_ms, calendar)
        return Hours(allowed=False, opens_in_ms=None if opens_ms is None else opens_ms - now_ms)

    return hours_of


def plan_sends(
    due: Iterable[DueOrder],
    *,
    transports: Collection[str],
    hours_of: HoursOf,
    patience: Patience,
    areas: Mapping[str, AreaCount],
    limits: CutOffLimits,
) -> SendPlan:
    """Decide on due orders, the most urgent first: of one meter, the first that leaves makes the others wait.

    `areas` has every area of the cut-offs among them.
    """
    plan = SendPlan()
    places = _Places(areas, limits)
    known: dict[str, Hours] = {}
    sent_to: set[int] = set()
    for order in due:
        hours = None
        if order.has_hours:
            category = order.category or ""
            if category not in known:
                known[category] = hours_of(category)
            hours = known[category]
        if order.contradicted and order.transport in transports:
            plan.anew.append(order.id)
            continue
        waits = _wait(order, transports, hours, patience, lane_taken=order.meter_id in sent_to)
        if waits is not None:
            plan.put_off.append(PutOff(id=order.id, wait_ms=waits[0], why=waits[1]))
            continue
        if order.is_cut_off and not places.take(order):
            continue
        plan.send.append(order)
        sent_to.add(order.meter_id)
        if hours is not None and hours.closes_ms is not None:
            plan.closes_ms[order.id] = hours.closes_ms
    plan.alarms = places.alarms()
    return plan


def _wait(
    order: DueOrder, transports: Collection[str], hours: Hours | None, patience: Patience, *, lane_taken: bool
) -> tuple[int, Waits] | None:
    """Return how long an order waits and for what; None for one that leaves."""
    if order.transport not in transports:
        return TRANSPORT_WAIT_MS, Waits.TRANSPORT
    again_ms = _again_in_ms(order, patience)
    if again_ms > 0:
        return again_ms, Waits.CONTRADICTING
    if hours is not None and not hours.allowed:
        opens_in_ms = HOURS_WAIT_MS_MAX if hours.opens_in_ms is None else hours.opens_in_ms
        return min(opens_in_ms, HOURS_WAIT_MS_MAX), Waits.HOURS
    if order.kind != "supply" and (lane_taken or order.busy_ms is not None):
        return max(LANE_WAIT_MS, order.busy_ms or 0), Waits.LANE
    return None


def _again_in_ms(order: DueOrder, patience: Patience) -> int:
    """Return how long the same order as before waits. A clock that was set back makes no wait longer than asked for."""
    if order.same_before_ms is None:
        return 0
    return max(patience.grace_ms - max(order.age_ms, 0), patience.again_ms - max(order.same_before_ms, 0))
