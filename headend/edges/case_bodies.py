"""Bodies of the routes of cases, each with an example that runs, and how they become values.

Stage: between HTTP and the cases' functions. Refuses what has no form; what a case is not ready for is refused there.
"""

from __future__ import annotations

import base64
import binascii
from datetime import date, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from billing.correction import (
    ERROR_BASIS_POINTS_MAX,
    ERROR_BASIS_POINTS_MIN,
    Assessment,
    DayAverage,
    Fault,
    SameDaysLastYear,
    StatedEnergy,
)
from billing.disputes.case import Area, CaseKind, CaseRefused, Decision
from billing.disputes.proposal import Asked
from billing.money import parse_amount
from billing.tariff import ENERGY_WH_MAX
from db.case_tests import CheckReading

# A request's body is bounded; a week of half-hours at a time is well inside.
CHECK_READINGS_PER_REQUEST_MAX = 700
REGISTER_WH_MAX = 10**15
DAY_FIRST, DAY_LAST = date(2000, 1, 1), date(2199, 12, 31)


def _storable(text: str) -> str:
    # PostgreSQL has no text with a zero in it, and a line of a trail is one line.
    if not text.replace("\n", " ").isprintable():
        raise ValueError("expected printable text")
    return text


def _base64(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("expected base 64") from None
    return text


Words = Annotated[str, Field(min_length=1, max_length=2_000), AfterValidator(_storable)]
Short = Annotated[str, Field(min_length=1, max_length=120), AfterValidator(_storable)]
Serial = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
Register = Annotated[int, Field(ge=0, le=REGISTER_WH_MAX, description="Wh")]
Day = Annotated[date, Field(ge=DAY_FIRST, le=DAY_LAST)]
ErrorBasisPoints = Annotated[
    int, Field(ge=ERROR_BASIS_POINTS_MIN, le=ERROR_BASIS_POINTS_MAX, description="hundredths of a percent")
]
At = Annotated[AwareDatetime | None, Field(description="when it was, not in the future; default: now")]


def _example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", str_strip_whitespace=True, json_schema_extra={"example": example})


class StepBody(BaseModel):
    """Words that go with a step."""

    model_config: ClassVar[ConfigDict] = _example({"note": "seen with the consumer"})

    note: Words
    at: At = None


class OpenBody(BaseModel):
    """A complaint."""

    model_config: ClassVar[ConfigDict] = _example(
        {
            "account": "100200300",
            "kind": "inaccurate",
            "area": "urban",
            "accuracy_class": "1",
            "complaint": "the meter counts while the main switch is off",
        }
    )

    account: Serial
    kind: CaseKind
    area: Area
    accuracy_class: Annotated[str, Field(min_length=1, max_length=8), AfterValidator(_storable)]
    complaint: Words
    at: At = None


class DocumentBody(BaseModel):
    """A document, its content in base 64."""

    model_config: ClassVar[ConfigDict] = _example(
        {"name": "seal.txt", "media_type": "text/plain", "content": "c2VhbCA0NzExLCB3aG9sZQ=="}
    )

    name: Short
    media_type: str = Field(pattern=r"^[a-z]+/[a-zA-Z0-9.+-]{1,80}$")
    content: Annotated[str, Field(min_length=1), AfterValidator(_base64)]

    @property
    def content_bytes(self) -> bytes:
        """The document's bytes."""
        return base64.b64decode(self.content)


class CheckMeterBody(BaseModel):
    """A check meter beside the disputed one."""

    model_config: ClassVar[ConfigDict] = _example(
        {"meter": "CHECK01", "accuracy_class": "0.5S", "note": "sealed in the consumer's presence"}
    )

    meter: Serial
    accuracy_class: Annotated[str, Field(min_length=1, max_length=8), AfterValidator(_storable)]
    note: Words
    at: At = None


class CheckReadingBody(BaseModel):
    """Registers of the check meter at an instant."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    at: AwareDatetime
    import_wh: Register
    export_wh: Register | None = None


class CheckReadingsBody(BaseModel):
    """What was read out of the check meter."""

    model_config: ClassVar[ConfigDict] = _example(
        {"readings": [{"at": "2026-04-01T00:30:00+05:30", "import_wh": 1250}]}
    )

    readings: list[CheckReadingBody] = Field(min_length=1, max_length=CHECK_READINGS_PER_REQUEST_MAX)

    def values(self) -> list[CheckReading]:
        """Return the registers."""
        return [CheckReading(at=each.at, import_wh=each.import_wh, export_wh=each.export_wh) for each in self.readings]


class CompareBody(BaseModel):
    """Up to when to compare; by default to the end of the pairing."""

    model_config: ClassVar[ConfigDict] = _example({"note": "after three months"})

    note: Words
    until: AwareDatetime | None = None
    at: At = None


class TestBody(BaseModel):
    """What a laboratory found."""

    model_config: ClassVar[ConfigDict] = _example(
        {
            "kind": "laboratory",
            "error_basis_points": 312,
            "laboratory": "ME lab Ludhiana",
            "note": "certificate 88/2026",
        }
    )

    kind: Literal["laboratory", "third_party"]
    error_basis_points: ErrorBasisPoints
    laboratory: Short
    note: Words
    at: At = None


class ReplacementBody(BaseModel):
    """Another meter in the place of the disputed one."""

    model_config: ClassVar[ConfigDict] = _example(
        {"meter": "PB000999", "at": "2026-05-20T14:30:00+05:30", "closing_wh": None, "opening_wh": 0, "note": "burnt"}
    )

    meter: Serial
    at: AwareDatetime
    closing_wh: Register | None = Field(description="null: it could not be read; its last reading stands")
    opening_wh: Register
    note: Words


class DecisionBody(BaseModel):
    """What follows from a case."""

    model_config: ClassVar[ConfigDict] = _example({"decision": "overhaul", "note": "the meter runs fast"})

    decision: Decision
    note: Words
    at: At = None


class OverhaulBody(BaseModel):
    """An overhaul; what is left out follows from the case and the rules."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    first: Day | None = None
    last: Day | None = Field(default=None, description="default: the end of the last closed bill part")
    began_on: Day | None = Field(default=None, description="when the meter's data shows that it began")
    fault: Fault | None = Field(default=None, description="of a seasonal connection's meter")
    same_days_last_year: bool = False
    average_first: Day | None = None
    average_last: Day | None = None
    month_wh: Annotated[int, Field(ge=0, le=ENERGY_WH_MAX)] | None = None


class ProposalBody(BaseModel):
    """An overhaul, or an amount for a disputed bill."""

    model_config: ClassVar[ConfigDict] = _example({"overhaul": {}, "note": "by the comparison"})

    overhaul: OverhaulBody | None = None
    amount: str | None = Field(
        default=None, pattern=r"^-?\d{1,9}(\.\d{2})?$", description="the account gets it; below zero it pays"
    )
    note: Words
    at: At = None


def amount_of(body: ProposalBody) -> int | None:
    """Return the amount that is proposed, in minor units.

    Raises: CaseRefused for both an amount and an overhaul, or neither.
    """
    if (body.amount is None) is (body.overhaul is None):
        raise CaseRefused("propose: expected either an overhaul or an amount")
    if body.amount is None:
        return None
    size = parse_amount(body.amount.removeprefix("-"))
    return -size if body.amount.startswith("-") else size


def asked_of(body: OverhaulBody, last: date | None) -> Asked:
    """Return what is asked of an overhaul; `last` is its last day where the body names none.

    Raises: CaseRefused.
    """
    last = body.last or last
    if last is None:
        raise CaseRefused("overhaul: expected an account with a closed bill part, got none")
    return Asked(
        first=body.first,
        last=last,
        began_on=body.began_on,
        fault=body.fault,
        assessment=assessment_of(body.same_days_last_year, body.average_first, body.average_last, body.month_wh),
    )


def assessment_of(
    same_days_last_year: bool, average_first: date | None, average_last: date | None, month_wh: int | None
) -> Assessment | None:
    """Return the one way of assessment that is given, None where none is.

    Raises: CaseRefused for several.
    """
    found: list[Assessment] = []
    if same_days_last_year:
        found.append(SameDaysLastYear())
    if average_first is not None and average_last is not None:
        found.append(DayAverage(first=average_first, last=average_last))
    elif average_first is not None or average_last is not None:
        raise CaseRefused("overhaul: expected both days of a base period, got one")
    if month_wh is not None:
        found.append(StatedEnergy(month_wh=month_wh))
    if len(found) > 1:
        raise CaseRefused("overhaul: expected one way of assessment, got several")
    return found[0] if found else None


def instant_of(at: datetime | None, now: datetime) -> datetime:
    """Return when a step was taken.

    Raises: CaseRefused for an instant before 2000 or in the future.
    """
    if at is None:
        return now
    if not DAY_FIRST.year <= at.year or at > now:
        raise CaseRefused(f"instant: expected one from {DAY_FIRST.year} on and not in the future, got {at.isoformat()}")
    return at
