"""Events that an operator has to see: the same again is one alarm, what a reading repeats is one event.

Stage: between events that are stored for the first time and the rows of alarms. Events, flags and what is known of
earlier flags enter; events, alarms that ring and alarms that may have ended leave. Pure; instants are UTC milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from headend.events import MOVED_BY_ITSELF, SWITCH_CLOSED, SWITCH_OPEN, Severity, meaning_of

# A meter: an instant, a code.
Event = tuple[int, int, int]
# Readings every half hour repeat a flag four times within this; what an hourly meter left out once is the same still.
FLAG_APART_MS: Final = 2 * 3_600_000
# A contact that chatters, a voltage at its limit: begun again within a quarter of an hour, it is the same alarm.
SAME_WITHIN_MS: Final = 900_000
# Alarms of this many meters of an area with one code are one line of the list.
GROUP_FROM: Final = 20
# The clocks of meter and head-end differ, and a command is in flight for a while.
ORDER_SLACK_MS: Final = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """What a meter's readings say again and again: since when, and when last."""

    meter_id: int
    code: int
    since_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """An event that rings for a meter, so many times between two instants."""

    meter_id: int
    code: int
    severity: Severity
    first_ms: int
    last_ms: int
    times: int


def new_flags(flags: Iterable[Event], standing: Mapping[tuple[int, int], Flag]) -> tuple[set[Event], list[Flag]]:
    """Tell which flags are events of their own and not the last one's repetition; return the flags as they stand now.

    `standing` has flags by meter and code.
    """
    known = dict(standing)
    fresh: set[Event] = set()
    for meter_id, at_ms, code in sorted(flags):
        flag = known.get((meter_id, code))
        if flag is not None and flag.since_ms - FLAG_APART_MS <= at_ms <= flag.last_ms + FLAG_APART_MS:
            since_ms, last_ms = min(flag.since_ms, at_ms), max(flag.last_ms, at_ms)
        else:
            fresh.add((meter_id, at_ms, code))
            # One that is told of late stands no more; the later one does.
            if flag is not None and at_ms < flag.since_ms:
                continue
            since_ms = last_ms = at_ms
        known[(meter_id, code)] = Flag(meter_id=meter_id, code=code, since_ms=since_ms, last_ms=last_ms)
    return fresh, [flag for key, flag in sorted(known.items()) if standing.get(key) != flag]


def rings_of(events: Iterable[Event]) -> list[Ring]:
    """Put events that are graver than information together, by meter and code."""
    rings: dict[tuple[int, int], Ring] = {}
    for meter_id, at_ms, code in events:
        severity = meaning_of(code).severity
        if severity is Severity.INFO:
            continue
        ring = rings.get((meter_id, code))
        rings[(meter_id, code)] = Ring(
            meter_id=meter_id,
            code=code,
            severity=severity,
            first_ms=at_ms if ring is None else min(ring.first_ms, at_ms),
            last_ms=at_ms if ring is None else max(ring.last_ms, at_ms),
            times=1 if ring is None else ring.times + 1,
        )
    return [ring for _, ring in sorted(rings.items())]


def may_end(events: Iterable[Event]) -> set[tuple[int, int, int]]:
    """Return what may have ended: meter, code and the code of its end. Ends may come before what they end."""
    ended = set()
    for meter_id, _, code in events:
        begun = meaning_of(code).ends
        if begun is not None:
            ended.add((meter_id, begun, code))
        elif meaning_of(code + 1).ends == code:
            ended.add((meter_id, code, code + 1))
    return ended


def moves_of(events: Iterable[Event]) -> list[Event]:
    """Return the events of load switches that opened or closed."""
    return [event for event in events if event[2] in (SWITCH_OPEN, SWITCH_CLOSED)]


def moved_alone(moves: Iterable[Event]) -> list[Event]:
    """Return what moves without an order are to an operator."""
    return [(meter_id, at_ms, MOVED_BY_ITSELF) for meter_id, at_ms, _ in moves]
