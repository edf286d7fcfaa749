"""What the desk's routes take and give, as their OpenAPI document shows it: parameters, rows, examples.

Stage: beside the routes. Parameters stay texts: `headend.queries.questions` reads them, here and on the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from headend.edges.desk_formats import MEDIA_TYPES, Format
from headend.queries.columns import CHARGE_SUMS, COLUMNS, TOTALS, Column, Kind, Subject
from headend.queries.cursors import CURSOR_CHARACTERS_MAX
from headend.queries.questions import PAGE_ROWS, PAGE_ROWS_MAX

# PostgreSQL has no text with a zero in it.
_NAME = r"^[^\x00]*$"
_NAME_CHARACTERS_MAX = 200
_SERIAL = r"^[A-Za-z0-9_-]{1,32}$"
_INSTANT = "a local day, a local time or an instant with its zone"


class ListAsked(BaseModel):
    """Whose rows, which columns, which page, in which form."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    meter: str | None = Field(None, pattern=_SERIAL, description="serial of a meter", examples=["PB000123"])
    consumer: str | None = Field(None, pattern=r"^[0-9]{1,18}$", description="number of a consumer: `/v1/accounts`")
    account: str | None = Field(None, pattern=_SERIAL, description="number of an account", examples=["100200300"])
    area: str | None = Field(None, description="only this area", pattern=_NAME, max_length=_NAME_CHARACTERS_MAX)
    feeder: str | None = Field(None, description="only this feeder", pattern=_NAME, max_length=_NAME_CHARACTERS_MAX)
    make: str | None = Field(
        None, description="only meters of this make", pattern=_NAME, max_length=_NAME_CHARACTERS_MAX
    )
    fields: str | None = Field(None, max_length=1_000, description="columns, with commas between; default: all")
    limit: str | None = Field(
        None, pattern=r"^[0-9]{1,5}$", description=f"rows of a page, 1 to {PAGE_ROWS_MAX}; default: {PAGE_ROWS}"
    )
    cursor: str | None = Field(None, max_length=CURSOR_CHARACTERS_MAX, description="`next` of the page before")
    format: Format = Field(Format.JSON, description="json is a page; csv, arrow and parquet are whole files")


class SpanAsked(ListAsked):
    """The same between two instants."""

    since: str = Field(alias="from", max_length=40, description=_INSTANT, examples=["2026-11-20"])
    until: str = Field(alias="to", max_length=40, description=_INSTANT + "; excluded", examples=["2026-11-22"])


class ReadingsAsked(SpanAsked):
    """Readings as they came."""

    interval: Literal["raw"] | None = Field(None, description="readings are raw; `/v1/profiles` has intervals")


class ProfilesAsked(SpanAsked):
    """Readings by interval."""

    interval: Literal["15min", "30min", "hour", "day", "month", "billing"] | None = Field(
        None, description="default: hour; a billing period is a calendar month"
    )
    total: Literal["true", "false"] | None = Field(None, description="put all meters together, bucket by bucket")


class ChargesAsked(SpanAsked):
    """Charges by interval."""

    interval: Literal["day", "month", "billing"] | None = Field(
        None, description="default: day, each usage journal; billing is a bill part"
    )


class UseAsked(BaseModel):
    """Whose use, on which local days."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    account: str = Field(pattern=_SERIAL, description="number of an account", examples=["100200300"])
    since: str = Field(alias="from", max_length=10, description="a local day", examples=["2026-11-01"])
    until: str = Field(alias="to", max_length=10, description="a local day; excluded", examples=["2026-12-01"])


class LossesAsked(BaseModel):
    """Which feeder's losses, on which local days."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    feeder: str = Field(min_length=1, max_length=_NAME_CHARACTERS_MAX, pattern=_NAME, examples=["F1"])
    since: str = Field(alias="from", max_length=10, description="a local day", examples=["2026-11-01"])
    until: str = Field(alias="to", max_length=10, description="a local day; excluded", examples=["2026-12-01"])


_JSON_TYPES: dict[Kind, dict[str, Any]] = {
    Kind.TEXT: {"type": ["string", "null"]},
    Kind.INTEGER: {"type": ["integer", "null"]},
    Kind.INSTANT: {"type": ["string", "null"], "format": "date-time"},
    Kind.DAY: {"type": ["string", "null"], "format": "date"},
    Kind.FLAG: {"type": ["boolean", "null"]},
    Kind.WORDS: {"type": "array", "items": {"type": "string"}},
    Kind.AMOUNTS: {"type": "object", "additionalProperties": {"type": "integer"}},
}
# What each route may give besides all columns of its subject.
_OTHERS: dict[Subject, Sequence[Column]] = {Subject.PROFILES: TOTALS, Subject.CHARGES: CHARGE_SUMS}
_SPAN = "from=2026-11-20&to=2026-11-22"
EXAMPLES: dict[Subject, tuple[str, ...]] = {
    Subject.READINGS: (
        f"meter=PB000123&{_SPAN}",
        f"account=100200300&{_SPAN}&fields=meter,read_at,import_wh,received_wh,edited&format=csv",
    ),
    Subject.PROFILES: (
        f"account=100200300&{_SPAN}&interval=30min",
        f"meter=PB000123&{_SPAN}&interval=day&format=parquet",
        f"area=&{_SPAN}&interval=hour&total=true",
    ),
    Subject.CHARGES: (
        f"account=100200300&{_SPAN}",
        "account=100200300&from=2026-11-01&to=2026-12-01&interval=billing",
    ),
    Subject.EVENTS: (f"meter=PB000123&{_SPAN}&limit=100",),
    Subject.METERS: ("make=&limit=50", "account=100200300&fields=meter,relay,readings_until"),
    Subject.ACCOUNTS: ("account=100200300", "fields=account,balance_minor,balance_at&format=arrow"),
}


def answers_of(subject: Subject) -> dict[int | str, dict[str, Any]]:
    """Describe what a route of the desk answers when it answers."""
    columns = {column.name: column for column in (*COLUMNS[subject], *_OTHERS.get(subject, ()))}
    row = {
        "type": "object",
        "properties": {name: _JSON_TYPES[column.kind] for name, column in columns.items()},
        "additionalProperties": False,
    }
    page = {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": row}, "next": {"type": ["string", "null"]}},
        "required": ["rows", "next"],
    }
    files: dict[str, Any] = {MEDIA_TYPES[form].partition(";")[0]: {} for form in Format if form is not Format.JSON}
    return {
        200: {
            "description": "a page, or a whole file",
            "content": {"application/json": {"schema": page}, **files},
        },
        304: {"description": "the page is the one that `If-None-Match` names"},
    }


def samples(path: str, questions: Sequence[str]) -> dict[str, Any]:
    """Describe how a route is asked, as documentation tools show it."""
    return {
        "x-codeSamples": [
            {"lang": "shell", "source": f'curl -s -H "X-Api-Key: $KEY" "$API{path}?{question}"'}
            for question in questions
        ]
    }


FIGURES_EXAMPLES = (
    "account=100200300&from=2026-11-01&to=2026-12-01",
    "feeder=F1&from=2026-11-01&to=2026-12-01",
)
FIGURES_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "the figures", "content": {"application/json": {"schema": {"type": "object"}}}},
    304: {"description": "the figures are those that `If-None-Match` names"},
}
