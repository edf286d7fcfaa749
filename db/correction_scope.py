"""What a correction is about, as checked values and as the document that the database keeps.

Stage: between what a person proposes and the dry run. Values only; nothing here reads or writes rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any, assert_never

from billing.correction import (
    Assessment,
    Connection,
    DayAverage,
    Fault,
    Overhaul,
    PercentError,
    SameDaysLastYear,
    StatedEnergy,
)


class CorrectionKind(StrEnum):
    """The kinds of correction."""

    OVERHAUL = "overhaul"
    EDIT = "edit"
    TERMS = "terms"


@dataclass(frozen=True, slots=True, kw_only=True)
class TermsScope:
    """Other terms for listed accounts, or for all assignments that a filter means; None names nothing.

    Invariants: without `numbers`, at least one of `category`, `tariff_id` and `area` is given.
    """

    from_day: date
    until_day: date | None = None
    numbers: tuple[str, ...] | None = None
    category: str | None = None
    tariff_id: str | None = None
    area: str | None = None
    new_tariff_id: str | None = None
    new_category: str | None = None
    new_load_w: int | None = None
    new_area_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedFrom:
    """What a register was estimated from: the rule's name, its inputs, and the readings on both sides of the gap."""

    rule: str
    inputs: Mapping[str, Any]  # JSON values of the rule's own.
    from_at: datetime
    from_wh: int
    to_at: datetime
    to_wh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingEdit:
    """A reading of a meter and the register to put in its place; None makes it void.

    Invariants: with `estimated` nothing was read at that instant, and there is a register.
    """

    serial: str
    meter_id: int
    read_at: datetime
    import_wh: int | None
    estimated: EstimatedFrom | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EditScope:
    """Readings to edit; `numbers` are the accounts of their meters."""

    edits: tuple[ReadingEdit, ...]
    numbers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverhaulScope:
    """An overhaul of listed accounts."""

    numbers: tuple[str, ...]
    overhaul: Overhaul


@dataclass(frozen=True, slots=True, kw_only=True)
class ReversalScope:
    """Everything that another correction did, taken back."""

    reverses: int


Scope = TermsScope | EditScope | OverhaulScope | ReversalScope


def scope_to_json(scope: Scope) -> dict[str, object]:
    """Return the document of a scope; what is not given is left out."""
    match scope:
        case TermsScope():
            fields = {name: getattr(scope, name) for name in TermsScope.__dataclass_fields__}
            return {name: _plain(value) for name, value in fields.items() if value is not None}
        case EditScope(edits=edits, numbers=numbers):
            return {"edits": [_edit_to_json(edit) for edit in edits], "numbers": list(numbers)}
        case OverhaulScope(numbers=numbers, overhaul=overhaul):
            return {"numbers": list(numbers), "overhaul": _overhaul_to_json(overhaul)}
        case ReversalScope(reverses=reverses):
            return {"reverses": reverses}
        case _:
            assert_never(scope)


def scope_from_json(kind: CorrectionKind, document: Mapping[str, Any]) -> Scope:
    """Read a document that `scope_to_json` wrote."""
    if "reverses" in document:
        return ReversalScope(reverses=document["reverses"])
    match kind:
        case CorrectionKind.TERMS:
            days = {name: date.fromisoformat(document[name]) for name in ("from_day", "until_day") if name in document}
            numbers = {"numbers": tuple(document["numbers"])} if "numbers" in document else {}
            # What the document has is what the class has: it was written from it.
            return TermsScope(**{**document, **days, **numbers})
        case CorrectionKind.EDIT:
            edits = (
                ReadingEdit(
                    serial=row["serial"],
                    meter_id=row["meter_id"],
                    read_at=datetime.fromisoformat(row["read_at"]),
                    import_wh=row["import_wh"],
                    estimated=_estimated_from_json(row["estimated"]) if "estimated" in row else None,
                )
                for row in document["edits"]
            )
            return EditScope(edits=tuple(edits), numbers=tuple(document["numbers"]))
        case CorrectionKind.OVERHAUL:
            return OverhaulScope(numbers=tuple(document["numbers"]), overhaul=_overhaul_from_json(document["overhaul"]))
        case _:
            assert_never(kind)


def _edit_to_json(edit: ReadingEdit) -> dict[str, object]:
    row: dict[str, object] = {
        "serial": edit.serial,
        "meter_id": edit.meter_id,
        "read_at": edit.read_at.isoformat(),
        "import_wh": edit.import_wh,
    }
    if (made := edit.estimated) is not None:
        row["estimated"] = {
            "rule": made.rule,
            "inputs": dict(made.inputs),
            "from_at": made.from_at.isoformat(),
            "from_wh": made.from_wh,
            "to_at": made.to_at.isoformat(),
            "to_wh": made.to_wh,
        }
    return row


def _estimated_from_json(document: Mapping[str, Any]) -> EstimatedFrom:
    ats = {name: datetime.fromisoformat(document[name]) for name in ("from_at", "to_at")}
    return EstimatedFrom(**{**document, **ats})


def _plain(value: object) -> object:
    if isinstance(value, date):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


def _overhaul_to_json(overhaul: Overhaul) -> dict[str, object]:
    return {
        "fault": overhaul.fault.value,
        "connection": overhaul.connection.value,
        "first": overhaul.first.isoformat(),
        "last": overhaul.last.isoformat(),
        "began_on": None if overhaul.began_on is None else overhaul.began_on.isoformat(),
        "assessment": _assessment_to_json(overhaul.assessment),
    }


def _assessment_to_json(assessment: Assessment) -> dict[str, object]:
    match assessment:
        case PercentError(basis_points=error):
            return {"way": "percent_error", "basis_points": error}
        case SameDaysLastYear():
            return {"way": "same_days_last_year"}
        case DayAverage(first=first, last=last):
            return {"way": "day_average", "first": first.isoformat(), "last": last.isoformat()}
        case StatedEnergy(month_wh=month_wh):
            return {"way": "stated_energy", "month_wh": month_wh}
        case _:
            assert_never(assessment)


def _overhaul_from_json(document: Mapping[str, Any]) -> Overhaul:
    began_on = document["began_on"]
    return Overhaul(
        fault=Fault(document["fault"]),
        connection=Connection(document["connection"]),
        first=date.fromisoformat(document["first"]),
        last=date.fromisoformat(document["last"]),
        began_on=None if began_on is None else date.fromisoformat(began_on),
        assessment=_assessment_from_json(document["assessment"]),
    )


def _assessment_from_json(document: Mapping[str, Any]) -> Assessment:
    match document["way"]:
        case "percent_error":
            return PercentError(basis_points=document["basis_points"])
        case "same_days_last_year":
            return SameDaysLastYear()
        case "day_average":
            first, last = (date.fromisoformat(document[name]) for name in ("first", "last"))
            return DayAverage(first=first, last=last)
        case way:
            assert way == "stated_energy", f"way of assessment: expected a known one, got {way!r}"
            return StatedEnergy(month_wh=document["month_wh"])
