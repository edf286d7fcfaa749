"""Event codes of meters: what each one is, how grave, and what a consumer is told of it.

Stage: between stored events and notices. Codes, instants and earlier notices enter, facts leave. Never decides about
money or supply, and never a clock: `now_ms` is given. Codes are the IS 15959 ids that two public code bases agree on;
of phases and pairs the odd id begins what the even one ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from billing.notices import Facts, Outage, RestoredPower, Tamper, TamperEvent
from headend.rules import Severity as Severity
from headend.validate import DAY_MS, FUTURE_SLACK_MS

POWER_FAILED = 101
POWER_BACK = 102
SWITCH_OPEN = 301
SWITCH_CLOSED = 302
# What the head-end itself finds out, above every code that a meter can send.
OWN_CODES = 70_000
COMMUNICATION_LOST = 70_001
MOVED_BY_ITSELF = 70_002
SUPPLY_UNSWITCHABLE = 70_003
VALUES_IMPLAUSIBLE = 70_004
OTHER_METER = 70_005
# What the head-end itself sees the end of.
ENDED_BY_US = frozenset({COMMUNICATION_LOST, VALUES_IMPLAUSIBLE, OTHER_METER})
# Who hears of yesterday's event can still act; a replay of last year's must tell nobody.
TOLD_WITHIN_MS = DAY_MS
# A quarter of an hour: a magnet that is moved about or a cover that is tried again is one thing to hear of.
APART_MS = 900_000
# Power that is back within three minutes was a flicker; nobody needs a message about each.
OUTAGE_MS_MIN = 180_000


class EventSort(StrEnum):
    """What an event is about."""

    TAMPER = "tamper"
    POWER_FAILED = "power_failed"
    POWER_BACK = "power_back"
    QUALITY = "quality"
    SETTINGS = "settings"
    SWITCH = "switch"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventMeaning:
    """What a code stands for; `tamper` is what its consumer hears of, None for nothing; `ends` what it ends."""

    title: str
    sort: EventSort
    severity: Severity
    tamper: TamperEvent | None = None
    # The code that this one ends.
    ends: int | None = None

    @property
    def is_told(self) -> bool:
        """Tell whether a consumer may hear of it."""
        return self.tamper is not None or self.sort in (EventSort.POWER_FAILED, EventSort.POWER_BACK)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerEvent:
    """Power that failed or came back at a meter, with the power event next to it on the other side of the outage.

    Invariants: `beside_code` is that of the event after a failure, of the one before a return; None without one.
    """

    meter_id: int
    at_ms: int
    code: int
    beside_ms: int | None
    beside_code: int | None


OTHER = EventMeaning(title="other", sort=EventSort.OTHER, severity=Severity.INFO)


def meaning_of(code: int) -> EventMeaning:
    """Return what a code stands for; what is on no list is `OTHER`."""
    return EVENTS.get(code, OTHER)


def codes_of(severity: Severity) -> set[int]:
    """Return the known codes of a severity."""
    return {code for code, meaning in EVENTS.items() if meaning.severity is severity}


def ended_codes() -> set[int]:
    """Return the codes that something else ends; an alarm of any other is over when somebody has seen it."""
    return {meaning.ends for meaning in EVENTS.values() if meaning.ends is not None} | ENDED_BY_US


def may_be_told(code: int, at_ms: int, now_ms: int) -> bool:
    """Tell whether a consumer hears of an event: of a kind that is told, of the last day, not of the future."""
    return meaning_of(code).is_told and -FUTURE_SLACK_MS <= now_ms - at_ms <= TOLD_WITHIN_MS


def outage_of(event: PowerEvent) -> RestoredPower | None:
    """Return the outage that a power event ends, or that had ended before it was known; None for a flicker."""
    if event.beside_ms is None or {event.code, event.beside_code} != {POWER_FAILED, POWER_BACK}:
        return None
    since_ms, until_ms = sorted((event.at_ms, event.beside_ms))
    return RestoredPower(since_ms=since_ms, until_ms=until_ms) if until_ms - since_ms >= OUTAGE_MS_MIN else None


def apart(told: Iterable[Facts], new: Iterable[Facts]) -> list[Facts]:
    """Return new facts in order of time, without those within `APART_MS` of one of their kind that is told already."""
    seen: dict[tuple[str, ...], list[int]] = {}
    for facts in told:
        key, at_ms = _kind_and_instant(facts)
        seen.setdefault(key, []).append(at_ms)
    kept = []
    for facts in sorted(new, key=lambda each: _kind_and_instant(each)[1]):
        key, at_ms = _kind_and_instant(facts)
        if all(abs(at_ms - other_ms) >= APART_MS for other_ms in seen.get(key, ())):
            seen.setdefault(key, []).append(at_ms)
            kept.append(facts)
    return kept


def _kind_and_instant(facts: Facts) -> tuple[tuple[str, ...], int]:
    match facts:
        case Tamper():
            return (facts.kind, facts.event), facts.at_ms
        case Outage():
            return (facts.kind,), facts.since_ms
        case RestoredPower():
            return (facts.kind,), facts.until_ms
        case _:
            raise AssertionError(f"facts of an event: expected tamper, outage or restored_power, got {facts.kind}")


def _pairs(first: int, titles: Iterable[str], sort: EventSort, severity: Severity) -> dict[int, EventMeaning]:
    """Return the meanings of ids in pairs, what begins and what ends."""
    found = {}
    for place, title in enumerate(titles):
        code = first + 2 * place
        found[code] = EventMeaning(title=title, sort=sort, severity=severity)
        found[code + 1] = EventMeaning(title=f"{title}: over", sort=sort, severity=Severity.INFO, ends=code)
    return found


def _singles(first: int, titles: Iterable[str], sort: EventSort) -> dict[int, EventMeaning]:
    return {
        first + place: EventMeaning(title=title, sort=sort, severity=Severity.INFO)
        for place, title in enumerate(titles)
    }


def _tamper(title: str, tamper: TamperEvent) -> EventMeaning:
    return EventMeaning(title=title, sort=EventSort.TAMPER, severity=Severity.ALARM, tamper=tamper)


_PHASES = ("R", "Y", "B")
_SETTINGS = (
    "clock set", "demand period set", "capture period set", "billing date set", "calendar set",
)  # fmt: skip

EVENTS: Mapping[int, EventMeaning] = {
    **_pairs(1, (f"voltage missing, phase {each}" for each in _PHASES), EventSort.QUALITY, Severity.WARNING),
    **_pairs(7, ("over-voltage", "low voltage", "voltage unbalance"), EventSort.QUALITY, Severity.WARNING),
    **_pairs(51, (f"current reversed, phase {each}" for each in _PHASES), EventSort.TAMPER, Severity.ALARM),
    **{code: _tamper(f"current reversed, phase {each}", TamperEvent.CURRENT_REVERSED)
       for code, each in zip((51, 53, 55), _PHASES, strict=True)},
    **_pairs(57, (f"current transformer open, phase {each}" for each in _PHASES), EventSort.TAMPER, Severity.ALARM),
    **_pairs(63, ("current unbalance",), EventSort.QUALITY, Severity.WARNING),
    **_pairs(65, ("current bypassed",), EventSort.TAMPER, Severity.ALARM),
    **_pairs(67, ("over-current",), EventSort.QUALITY, Severity.WARNING),
    **_pairs(69, ("load to earth",), EventSort.TAMPER, Severity.ALARM),
    POWER_FAILED: EventMeaning(title="power failed", sort=EventSort.POWER_FAILED, severity=Severity.WARNING),
    POWER_BACK: EventMeaning(
        title="power back", sort=EventSort.POWER_BACK, severity=Severity.INFO, ends=POWER_FAILED
    ),
    **_singles(151, _SETTINGS, EventSort.SETTINGS),
    157: EventMeaning(title="firmware activated", sort=EventSort.SETTINGS, severity=Severity.INFO),
    **_singles(158, ("load limit set", "load limit on", "load limit off"), EventSort.SETTINGS),
    **_singles(161, (f"key or secret {number} changed" for number in range(1, 6)), EventSort.SETTINGS),
    **_singles(166, ("maximum demand reset", "metering mode set"), EventSort.SETTINGS),
    **_pairs(201, ("magnet",), EventSort.TAMPER, Severity.ALARM),
    201: _tamper("magnet", TamperEvent.MAGNET),
    **_pairs(203, ("neutral disturbed",), EventSort.TAMPER, Severity.ALARM),
    203: _tamper("neutral disturbed", TamperEvent.NEUTRAL_DISTURBED),
    **_pairs(205, ("low power factor",), EventSort.QUALITY, Severity.WARNING),
    **_pairs(207, ("neutral missing",), EventSort.TAMPER, Severity.ALARM),
    **_pairs(209, ("communication module removed",), EventSort.TAMPER, Severity.WARNING),
    **_singles(211, ("to postpaid", "to prepaid", "to forward only", "to import and export"), EventSort.SETTINGS),
    **_pairs(215, ("overload",), EventSort.QUALITY, Severity.WARNING),
    251: _tamper("cover opened", TamperEvent.COVER_OPEN),
    253: EventMeaning(title="load switch welded", sort=EventSort.SWITCH, severity=Severity.ALARM),
    **_singles(SWITCH_OPEN, ("load switch open", "load switch closed"), EventSort.SWITCH),
    COMMUNICATION_LOST: EventMeaning(title="communication lost", sort=EventSort.OTHER, severity=Severity.WARNING),
    MOVED_BY_ITSELF: EventMeaning(
        title="load switch moved without an order", sort=EventSort.SWITCH, severity=Severity.WARNING
    ),
    SUPPLY_UNSWITCHABLE: EventMeaning(
        title="supply cannot be switched as ordered", sort=EventSort.SWITCH, severity=Severity.ALARM
    ),
    VALUES_IMPLAUSIBLE: EventMeaning(
        title="values that no meter of its model has", sort=EventSort.OTHER, severity=Severity.WARNING
    ),
    OTHER_METER: EventMeaning(
        title="another device answers in the meter's place", sort=EventSort.OTHER, severity=Severity.ALARM
    ),
}  # fmt: skip
