"""Cases as JSON: one form for the interface and the command line.

Stage: beside the engineers' routes of cases. Values in, plain JSON out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from billing.calendar import LocalCalendar, from_ms
from billing.disputes.banking import BankedMonth, BankOverhaul
from billing.disputes.case import Clock, State
from billing.money import format_minor
from db.cases import CaseFile, DocumentRow, ListedCase, StepRow


def case_to_api(
    file: CaseFile, documents: Sequence[DocumentRow], *, now: datetime, calendar: LocalCalendar
) -> dict[str, object]:
    """Return a case whole: where it stands, its clocks, trail and documents."""
    row, case = file.row, file.case
    return {
        "case": row.id,
        "account": row.account,
        "kind": row.kind,
        "area": row.area,
        "meter": row.meter,
        "accuracy_class": row.accuracy_class,
        "complaint": row.complaint,
        "opened_by": row.opened_by,
        "opened_at": row.opened_at.isoformat(),
        "rules": row.rules,
        "state": row.state,
        "verdict": case.verdict,
        "decision": case.decision,
        "due_at": _text(row.due_at),
        "overdue": row.state != State.CLOSED and row.due_at is not None and row.due_at < now,
        "clocks": [_clock_to_api(each, now) for each in file.clocks(calendar)],
        "steps": [_step_to_api(each) for each in file.steps],
        "documents": [document_to_api(each) for each in documents],
    }


def listed_to_api(row: ListedCase) -> dict[str, object]:
    """Return a line of the list."""
    return {
        "case": row.id,
        "account": row.account,
        "kind": row.kind,
        "area": row.area,
        "meter": row.meter,
        "state": row.state,
        "opened_by": row.opened_by,
        "opened_at": row.opened_at.isoformat(),
        "due_at": _text(row.due_at),
        "overdue": row.overdue,
    }


def document_to_api(row: DocumentRow) -> dict[str, object]:
    """Return what is told of a document."""
    return {
        "document": row.id,
        "name": row.name,
        "media_type": row.media_type,
        "sha256": row.sha256,
        "bytes": row.bytes,
        "added_by": row.added_by,
        "added_at": row.added_at.isoformat(),
    }


def bank_to_api(found: BankOverhaul) -> dict[str, object]:
    """Return a net meter's bank as counted and put right."""
    return {
        "counted": [_banked_to_api(each) for each in found.counted],
        "corrected": [_banked_to_api(each) for each in found.corrected],
        "billed_short_wh": {month.isoformat(): wh for month, wh in found.short_wh.items()},
    }


def _banked_to_api(each: BankedMonth) -> dict[str, object]:
    return {
        "month": each.month.isoformat(),
        "import_wh": each.import_wh,
        "export_wh": each.export_wh,
        "set_off_wh": each.set_off_wh,
        "billed_wh": each.billed_wh,
        "bank_wh": each.bank_wh,
        "lapsed_wh": each.lapsed_wh,
    }


def _clock_to_api(clock: Clock, now: datetime) -> dict[str, object]:
    now_ms = int(now.timestamp() * 1000)
    return {
        "clock": clock.name,
        "since": from_ms(clock.since_ms).isoformat(),
        "due_at": from_ms(clock.due_ms).isoformat(),
        "met_at": None if clock.met_ms is None else from_ms(clock.met_ms).isoformat(),
        "overdue": clock.overdue(now_ms),
        "source": clock.source,
    }


def _step_to_api(row: StepRow) -> dict[str, object]:
    facts = dict(row.facts)
    for name in ("amount_minor", "before_minor", "after_minor"):
        if isinstance(facts.get(name), int):
            facts[name.removesuffix("_minor")] = format_minor(facts[name])
    return {"n": row.n, "step": row.step, "at": row.at.isoformat(), "by": row.by, "note": row.note, "facts": facts}


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
