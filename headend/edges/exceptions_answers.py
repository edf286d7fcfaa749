"""Exceptions as JSON: one form for the interface and the command line.

Stage: beside the engineers' routes of exceptions. Values in, plain JSON out; instants as ISO 8601 texts in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from billing.calendar import from_ms
from db.exceptions import DecisionRow, EvidenceRow, ExceptionCount, ExceptionItem, OpenException, TrailStep
from headend.edges.exceptions_desk import BulkOutcome, Decided
from headend.edges.exceptions_estimates import SpanEstimates
from headend.estimation.document import EstimationRules
from headend.estimation.values import Declined, Outcome

Api = dict[str, Any]  # JSON values of any shape.
_HOUR_S = 3_600


def open_to_api(row: OpenException, now: datetime) -> Api:
    """Return a line of the queue."""
    return {
        "item": f"{row.kind}-{row.item_id}",
        "severity": row.severity,
        "rule": row.rule,
        "meter": row.serial,
        "account": row.account,
        "area": row.area,
        "at": _text(row.at),
        "to": _text(row.to_at),
        "since": row.since.isoformat(),
        "age_h": _age_h(row.since, now),
        "detail": row.detail,
        "assigned_to": row.assigned_to,
        "decision": row.decision,
    }


def counts_to_api(counts: Iterable[ExceptionCount]) -> Api:
    """Return how many are open by kind, severity and age."""
    rows = [
        {
            "kind": each.kind,
            "severity": each.severity,
            "up_to_a_day": each.day,
            "up_to_a_week": each.week,
            "up_to_30_days": each.month,
            "older": each.older,
            "open": each.day + each.week + each.month + each.older,
            "oldest": each.oldest.isoformat(),
        }
        for each in counts
    ]
    return {"open": sum(row["open"] for row in rows if isinstance(row["open"], int)), "counts": rows}


def evidence_to_api(
    item: ExceptionItem,
    evidence: Mapping[str, Sequence[EvidenceRow]],
    estimates: Sequence[SpanEstimates],
    trail: Sequence[TrailStep],
    decisions: Sequence[DecisionRow],
    now: datetime,
) -> Api:
    """Return one exception with everything that a decision needs."""
    return {
        "item": str(item.key),
        "state": "closed" if item.closed_at is not None else item.state,
        "severity": item.severity,
        "rule": item.rule,
        "detail": item.detail,
        "meter": item.serial,
        "make": item.make,
        "model": item.model,
        "account": item.account,
        "category": item.category,
        "area": item.area,
        "at": _text(item.at),
        "to": _text(item.to_at),
        "since": item.since.isoformat(),
        "age_h": _age_h(item.since, now),
        "assigned_to": item.assigned_to,
        "closed_as": item.closed_as,
        **{name: [_plain(row) for row in rows] for name, rows in evidence.items()},
        "spans": [_span_to_api(each) for each in estimates],
        "decisions": [decision_to_api(each) for each in decisions],
        "trail": [
            {"step": each.step, "by": each.by_whom, "why": each.why, "facts": each.facts, "at": each.at.isoformat()}
            for each in trail
        ],
    }


def decision_to_api(row: DecisionRow) -> Api:
    """Return a decision as it stands."""
    return {
        "decision": row.id,
        "action": row.action,
        "parameters": row.parameters,
        "effect": row.effect,
        "correction": row.correction_id,
        "asked_by": row.asked_by,
        "why": row.why,
        "asked_at": row.asked_at.isoformat(),
        "state": row.state,
        "ended_by": row.ended_by,
        "ended_why": row.ended_why,
        "ended_at": _text(row.ended_at),
    }


def decided_to_api(decided: Decided) -> Api:
    """Return what became of a decision."""
    return {
        "item": str(decided.key),
        "decision": decided.decision_id,
        "state": decided.state,
        "correction": decided.correction_id,
        "effect": decided.dry_run.to_json(),
    }


def bulk_to_api(found: Sequence[BulkOutcome]) -> Api:
    """Return what became of many, counted."""
    states = [each.state for each in found]
    return {
        "counts": {state: states.count(state) for state in ("looked", "done", "proposed", "refused")},
        "moved_minor": sum(abs(each.difference_minor or 0) for each in found if each.state != "refused"),
        "items": [
            {
                "item": str(each.key),
                "state": each.state,
                "decision": each.decision_id,
                "difference_minor": each.difference_minor,
                "code": each.code,
                "told": each.told,
            }
            for each in found
        ],
    }


def rules_to_api(rules: EstimationRules) -> Api:
    """Return the rules of estimation in force."""
    return {
        "id": rules.id,
        "title": rules.title,
        "effective_from": rules.effective_from.isoformat(),
        "second_person_above_minor": rules.second_person_above_minor,
        "like_weeks": rules.like_weeks,
        "order": [
            {
                "rule": rule.value,
                "longest_s": rules.limits[rule].longest_s,
                "least_like_days": rules.limits[rule].least_like_days,
                "differs_wh_max": rules.limits[rule].differs_wh_max,
            }
            for rule in rules.order
        ],
    }


def _span_to_api(each: SpanEstimates) -> Api:
    span, evidence = each.span, each.evidence
    return {
        "from": from_ms(span.edges_ms[0]).isoformat(),
        "to": from_ms(span.edges_ms[-1]).isoformat(),
        "from_wh": span.from_wh,
        "to_wh": span.to_wh,
        "total_wh": span.total_wh,
        "edges": [from_ms(edge_ms).isoformat() for edge_ms in span.edges_ms],
        "like_days_wh": [list(day) for day in evidence.like_days_wh],
        "proxy_day_wh": None if evidence.proxy_day_wh is None else list(evidence.proxy_day_wh),
        "estimates": [_outcome_to_api(outcome) for outcome in each.outcomes],
    }


def _outcome_to_api(outcome: Outcome) -> Api:
    if isinstance(outcome, Declined):
        return {"rule": outcome.rule.value, "declined": outcome.reason.value, "detail": outcome.detail}
    return {"rule": outcome.rule.value, "intervals_wh": list(outcome.intervals_wh), "inputs": dict(outcome.inputs)}


def _plain(row: EvidenceRow) -> Api:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _age_h(since: datetime, now: datetime) -> int:
    return max(int((now - since).total_seconds()) // _HOUR_S, 0)


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
