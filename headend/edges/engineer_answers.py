"""Answers to engineers as plain JSON values: the same over HTTP and on the command line.

Stage: last before bytes leave. Rows in, dictionaries out; instants as ISO 8601 texts in UTC, nothing as null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from db.completeness import AreaIntervals, TakenIntervals
from db.counting import Recount, ShardCounts
from db.event_alarms import AlarmRow, EventRow
from db.silence import SilentMeter
from headend.edges.reconcile import AllReconciled, Reconciled
from headend.events import meaning_of

Api = dict[str, Any]  # JSON values of any shape.


def counts_to_api(counts: ShardCounts) -> Api:
    """Return counts of readings by what became of them."""
    names = ("batches", "messages", "received", "stored", "duplicate", "quarantined", "rejected", "broken")
    return {**{name: getattr(counts, name) for name in names}, "adds_up": counts.adds_up}


def recount_to_api(counted: Recount) -> Api:
    """Return what batches say beside what is there."""
    return {
        "adds_up": counted.adds_up,
        "stored": {"counted": counted.stored, "there": counted.readings},
        "quarantined": {"counted": counted.quarantined, "there": counted.held},
        "rejected": {"counted": counted.rejected, "there": counted.refused},
    }


def reconciled_to_api(found: Reconciled) -> Api:
    """Return what a meter has sent and what became of it."""
    return {
        "meter": found.serial,
        "since": _text(found.since),
        "heard_at": _text(found.heard_at),
        "epoch": found.epoch,
        "last_seq": found.last_seq,
        "sent": found.sent,
        "stored": found.stored,
        "duplicate": found.duplicate,
        "quarantined": found.quarantined,
        "missing": found.missing,
        "missing_not_named": found.given_up,
        "missing_ranges": [{"epoch": epoch, "first": first, "last": last} for epoch, first, last in found.ranges],
    }


def totals_to_api(found: AllReconciled) -> Api:
    """Return the same of all meters."""
    return {
        **asdict(found.totals),
        "not_counted_yet": found.waiting,
        "not_counted_since": _text(found.waiting_since),
        "meters_with_missing": [reconciled_to_api(each) for each in found.meters],
    }


def area_intervals_to_api(found: AreaIntervals) -> Api:
    """Return an area's intervals of a day; the share is in hundredths of a percent, rounded down."""
    taken = found if isinstance(found, TakenIntervals) else None
    return {
        **({"hour": taken.hour, "taken_at": _text(taken.taken_at)} if taken else {}),
        "area": found.area,
        "meters": found.meters,
        "meters_whole": found.whole,
        "expected": found.expected,
        "present": found.present,
        "percent": share_percent(found.present, found.expected),
    }


def share_percent(present: int, expected: int) -> str | None:
    """Return a share in percent with two decimals, rounded down: 100.00 is all of it and nothing less."""
    if expected == 0:
        return None
    whole, rest = divmod(present * 10_000 // expected, 100)
    return f"{whole}.{rest:02d}"


def silent_to_api(found: SilentMeter) -> Api:
    """Return a meter that is not heard of."""
    return {
        "meter": found.serial,
        "account": found.account,
        "area": found.area,
        "last_reading": _text(found.read_at),
        "last_word": _text(found.heard_at),
        "installed_at": _text(found.installed_at),
        "supply_reported": found.relay,
        "supply_desired": found.desired,
        "balance_unknown_since": _text(found.balance_unknown_since),
    }


def event_to_api(found: EventRow) -> Api:
    """Return an event of a meter with what its code stands for."""
    return {
        "meter": found.serial,
        "at": _text(found.at),
        "received_at": _text(found.received_at),
        **_meaning(found.code),
    }


def alarm_to_api(found: AlarmRow) -> Api:
    """Return an alarm of a meter or of many."""
    return {
        "id": found.id,
        "meter": found.serial,
        "area": found.area,
        "meters": found.meters,
        **_meaning(found.code),
        "severity": found.severity,
        "times": found.times,
        "first_at": _text(found.first_at),
        "last_at": _text(found.last_at),
        "ended_at": _text(found.ended_at),
        "acknowledged_by": found.acknowledged_by,
        "acknowledged_at": _text(found.acknowledged_at),
        "note": found.note,
    }


def event_to_cursor(found: EventRow) -> str:
    """Return the place of an event in the list."""
    return f"{found.received_at.isoformat()}~{found.meter_id}~{found.at.isoformat()}~{found.code}"


def event_from_cursor(text: str) -> EventRow | None:
    """Read the place of an event in the list; None for anything else."""
    parts = text.replace(" ", "+").split("~")
    try:
        received_at, meter_id, at, code = parts
        place = EventRow(
            serial="",
            at=datetime.fromisoformat(at),
            code=int(code),
            received_at=datetime.fromisoformat(received_at),
            meter_id=int(meter_id),
        )
    except ValueError:
        return None
    small = abs(place.code) < 2**31 and abs(place.meter_id) < 2**31
    return place if small and place.at.tzinfo and place.received_at.tzinfo else None


def _meaning(code: int) -> Mapping[str, object]:
    meaning = meaning_of(code)
    return {"code": code, "title": meaning.title, "sort": meaning.sort.value, "severity": meaning.severity.value}


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
