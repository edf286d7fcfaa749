"""What a plan notes of readings and settles of released rows, as rows of the database.

Stage: between a plan and the statements of its transaction.
"""

from __future__ import annotations

from collections.abc import Iterable

from billing.calendar import LocalCalendar, from_ms
from db.quarantine import SettledRow
from db.validation_rules import FlagRow
from headend.reading_flags import ReadingFlag
from headend.release import Settled


def flag_rows(noted: Iterable[ReadingFlag], calendar: LocalCalendar) -> list[FlagRow]:
    """Return the rows of what rules noted, by local day."""
    return [
        FlagRow(
            meter_id=flag.meter_id,
            day=calendar.day_of(flag.at_ms),
            rule=flag.reason.value,
            severity=flag.severity,
            at=from_ms(flag.at_ms),
            expected=flag.expected,
            got=flag.got,
        )
        for flag in noted
    ]


def settled_rows(settled: Iterable[Settled]) -> list[SettledRow]:
    """Return what became of released rows."""
    return [
        SettledRow(
            id=each.quarantine_id,
            outcome=each.outcome.value,
            reason=each.reason and each.reason.value,
            detail=each.detail,
            serial=each.serial,
            read_at=None if each.read_at_ms is None else from_ms(each.read_at_ms),
            rejected=each.rejected,
        )
        for each in settled
    ]
