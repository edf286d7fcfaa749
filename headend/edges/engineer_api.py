"""What engineers ask of the head-end over HTTP: counts, reconciliation, completeness, silent meters, events, alarms.

Stage: beside the vending interface, in the same process; who may ask is decided by the guard that the router is given.
Reads, but for the acknowledgement of an alarm. Lists are paged. Never: a consumer's name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, ConfigDict, Field, field_validator

from billing.calendar import LocalCalendar, from_ms
from db.completeness import intervals_of_day, taken_intervals
from db.counting import read_counts, recount, total_of
from db.event_alarms import (
    AlarmsAsked,
    AlarmSeen,
    EventsAsked,
    UnknownAlarm,
    acknowledge_alarm,
    list_alarms,
    list_events,
)
from db.silence import list_silent, silent_by_area
from headend.edges.engineer_answers import (
    alarm_to_api,
    area_intervals_to_api,
    counts_to_api,
    event_from_cursor,
    event_to_api,
    event_to_cursor,
    reconciled_to_api,
    recount_to_api,
    silent_to_api,
    totals_to_api,
)
from headend.edges.reconcile import reconcile_all, reconcile_meter
from headend.event_alarms import GROUP_FROM
from headend.events import Severity, codes_of, ended_codes
from protocols.topics import SHARDS

# What one answer holds at most; more is a page further on.
ROWS_MAX = 1_000
DAY_FIRST = date(2000, 1, 1)
_SERIAL = r"^[A-Za-z0-9_-]{1,32}$"
_STATUS: Mapping[str, int] = {
    "unknown_meter": 404,
    "unknown_alarm": 404,
    "alarm_seen": 409,
    "bad_cursor": 400,
    "bad_day": 400,
    "bad_instant": 400,
}

Limit = Annotated[int, Query(ge=1, le=ROWS_MAX, description="rows at most")]
Skip = Annotated[int, Query(ge=0, le=1_000_000, description="rows of the pages before")]
Meter = Annotated[str | None, Query(pattern=_SERIAL, description="serial of a meter")]
# PostgreSQL has no text with a zero in it.
Area = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="only this area")]
Instant = Annotated[datetime | None, Query(description="an instant with its zone")]


class EngineerRefused(Exception):
    """A request that does not fit what is there; `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Acknowledgement(BaseModel):
    """Who has seen an alarm."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", str_strip_whitespace=True)

    by: str = Field(min_length=1, max_length=200, examples=["A. Kaur"])
    note: str | None = Field(default=None, min_length=1, max_length=1_000)

    @field_validator("by", "note")
    @classmethod
    def _storable(cls, text: str | None) -> str | None:
        if text is not None and "\0" in text:
            # PostgreSQL has no text with a zero in it.
            raise ValueError("expected text without zero characters")
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What every answer needs besides its request: a meter is silent after `silent_after_h` hours."""

    pool_of: Callable[[Request], AsyncConnectionPool[AsyncConnection]]
    calendar: LocalCalendar
    silent_after_h: int
    clock: Callable[[], int]

    @property
    def now(self) -> datetime:
        """The clock's time."""
        return from_ms(self.clock())


def add_engineer_api(
    app: FastAPI, desk: Desk, guard: Callable[..., Awaitable[object]], refusals: dict[int | str, dict[str, Any]]
) -> None:
    """Add the engineers' routes to an application.

    `guard` is a dependency that lets only engineers pass; `refusals` describes what any of the routes refuses.
    """
    router = APIRouter(prefix="/v1/headend", tags=["headend"], dependencies=[Depends(guard)], responses=refusals)
    _add_counts(router, desk)
    _add_reconciliation(router, desk)
    _add_completeness(router, desk)
    _add_silence(router, desk)
    _add_events(router, desk)
    _add_alarms(router, desk)
    app.include_router(router)
    for kind in (EngineerRefused, UnknownAlarm, AlarmSeen):
        app.add_exception_handler(kind, _refused)


def _add_counts(router: APIRouter, desk: Desk) -> None:
    @router.get("/counts", summary="Count readings by what became of them")
    async def get_counts(
        request: Request,
        since: Annotated[datetime | None, Query(alias="from")] = None,
        until: Annotated[datetime | None, Query(alias="to")] = None,
        shard: Annotated[int | None, Query(ge=0, lt=SHARDS)] = None,
        again: Annotated[bool, Query(alias="recount", description="read everything again and compare")] = False,
    ) -> Response:
        """Sum what batches received from an instant and before another; `recount` is of everything there ever was."""
        span = {"since": _zoned(since, "from"), "until": _zoned(until, "to")}
        async with desk.pool_of(request).connection() as conn:
            found = await read_counts(conn, **span, shards=None if shard is None else [shard])
            counted = await recount(conn) if again else None
        return _answer(
            {
                "from": _text(since),
                "to": _text(until),
                **counts_to_api(total_of(found)),
                "shards": [counts_to_api(each) | {"shard": each.shard} for each in found],
                "recount": recount_to_api(counted) if counted else None,
            }
        )


def _add_reconciliation(router: APIRouter, desk: Desk) -> None:
    @router.get("/reconciliation", summary="Compare what meters have sent with what is stored")
    async def get_reconciliation(request: Request, skip: Skip = 0, limit: Limit = 100) -> Response:
        """Sum over all meters that count their messages; list those of which most is missing."""
        async with desk.pool_of(request).connection() as conn:
            found = await reconcile_all(conn, skip=skip, most=limit)
        return _answer(totals_to_api(found))

    @router.get("/reconciliation/{serial}", summary="Compare what a meter has sent with what is stored")
    async def get_meter(request: Request, serial: Annotated[str, Path(pattern=_SERIAL)]) -> Response:
        """Tell of one meter, up to the last batch, with the ranges that are missing."""
        async with desk.pool_of(request).connection() as conn:
            found = await reconcile_meter(conn, serial)
        if found is None:
            raise EngineerRefused("unknown_meter", f"meter: expected a known serial, got {serial}")
        return _answer(reconciled_to_api(found))


def _add_completeness(router: APIRouter, desk: Desk) -> None:
    @router.get("/completeness", summary="Tell how complete a day is")
    async def get_completeness(
        request: Request,
        day: Annotated[date | None, Query(description="a local day; default: yesterday")] = None,
        live: Annotated[
            bool | None, Query(description="count now, reading the day's keys; default: where nothing was taken")
        ] = None,
    ) -> Response:
        """Return a local day's intervals by area as they were 8, 12 and 24 hours after its end, and as they are now."""
        today = desk.calendar.day_of(desk.clock())
        asked = day or today - timedelta(days=1)
        if not DAY_FIRST <= asked <= today:
            raise EngineerRefused("bad_day", f"day: expected {DAY_FIRST} to {today}, got {asked}")
        async with desk.pool_of(request).connection() as conn:
            taken = await taken_intervals(conn, asked)
            count_now = not taken if live is None else live
            now = await intervals_of_day(conn, asked, desk.calendar) if count_now else None
        return _answer(
            {
                "day": str(asked),
                "taken": [area_intervals_to_api(each) for each in taken],
                "now": None if now is None else [area_intervals_to_api(each) for each in now],
            }
        )


def _add_silence(router: APIRouter, desk: Desk) -> None:
    @router.get("/silent", summary="List meters that are not heard of")
    async def get_silent(
        request: Request,
        hours: Annotated[int | None, Query(ge=1, le=8_784, description="for so many hours")] = None,
        area: Area = None,
        after: Annotated[int, Query(ge=0, description="`next` of the page before")] = 0,
        limit: Limit = 100,
    ) -> Response:
        """Return last reading, last word, supply, and since when the balance is not known; counts by area on top."""
        now, hours = desk.now, hours or desk.silent_after_h
        async with desk.pool_of(request).connection() as conn:
            areas = await silent_by_area(conn)
            found = await list_silent(
                conn,
                now=now,
                cutoff=now - timedelta(hours=hours),
                area=area,
                after=after,
                most=limit,
            )
        return _answer(
            {
                "hours": hours,
                "areas_hours": desk.silent_after_h,
                "areas": [
                    {"area": each.area, "meters": each.meters, "since": _text(each.since)} for each in areas[:ROWS_MAX]
                ],
                "meters": [silent_to_api(each) for each in found],
                "next": found[-1].meter_id if len(found) == limit else None,
            }
        )


def _add_events(router: APIRouter, desk: Desk) -> None:
    @router.get("/events", summary="List events of meters")
    async def get_events(
        request: Request,
        severity: Severity | None = None,
        code: Annotated[int | None, Query(ge=0, le=99_999)] = None,
        meter: Meter = None,
        since: Annotated[datetime | None, Query(alias="from", description="default: 30 days ago")] = None,
        until: Annotated[datetime | None, Query(alias="to")] = None,
        after: Annotated[str | None, Query(max_length=200, description="`next` of the page before")] = None,
        limit: Limit = 100,
    ) -> Response:
        """Return events of a severity, code, meter and span of their own instants, those that came last first."""
        asked = EventsAsked(
            serial=meter,
            codes=_codes(code, severity),
            since=_zoned(since, "from") or desk.now - timedelta(days=30),
            until=_zoned(until, "to") or datetime.max.replace(tzinfo=UTC),
            after=_cursor(after),
        )
        async with desk.pool_of(request).connection() as conn:
            found = await list_events(conn, asked, most=limit)
        following = event_to_cursor(found[-1]) if len(found) == limit else None
        return _answer({"events": [event_to_api(each) for each in found], "next": following})


def _add_alarms(router: APIRouter, desk: Desk) -> None:
    @router.get("/alarms", summary="List alarms of events")
    async def get_alarms(
        request: Request,
        severity: Severity | None = None,
        code: Annotated[int | None, Query(ge=0, le=99_999)] = None,
        meter: Meter = None,
        area: Area = None,
        ended: Annotated[bool, Query(description="those that ended within 30 days, too")] = False,
        skip: Skip = 0,
        limit: Limit = 100,
    ) -> Response:
        """Return alarms, the gravest and latest first; one code at many meters of an area is one line."""
        asked = AlarmsAsked(
            severity=severity,
            code=code,
            serial=meter,
            area=area,
            ended=ended,
            since=desk.now - timedelta(days=30),
            group_from=GROUP_FROM,
        )
        async with desk.pool_of(request).connection() as conn:
            found = await list_alarms(conn, asked, skip=skip, most=limit)
        return _answer({"alarms": [alarm_to_api(each) for each in found]})

    @router.post(
        "/alarms/{id}/acknowledgement",
        summary="Acknowledge an alarm",
        responses={409: {"description": "`alarm_seen`: somebody has acknowledged it already"}},
    )
    async def post_acknowledgement(
        request: Request, number: Annotated[int, Path(alias="id", ge=1, lt=2**63)], body: Acknowledgement
    ) -> Response:
        """Keep who has seen an alarm; one that no event can end is over by it."""
        async with desk.pool_of(request).connection() as conn:
            await acknowledge_alarm(conn, number, by=body.by, note=body.note, ending=ended_codes())
        return _answer({"id": number, "acknowledged_by": body.by})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineerRefused | UnknownAlarm | AlarmSeen), type(error)
    return JSONResponse({"error": {"code": error.code, "message": str(error)}}, status_code=_STATUS[error.code])


def _answer(body: Mapping[str, Any]) -> Response:  # JSON values of any shape.
    return JSONResponse(dict(body), headers={"cache-control": "no-store"})


def _zoned(at: datetime | None, name: str) -> datetime | None:
    if at is not None and at.tzinfo is None:
        raise EngineerRefused("bad_instant", f"{name}: expected an instant with its zone, got {at.isoformat()}")
    return at


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _codes(code: int | None, severity: Severity | None) -> Sequence[int] | None:
    if severity is None:
        return None if code is None else [code]
    found = codes_of(severity)
    return sorted(found) if code is None else sorted(found & {code})


def _cursor(text: str | None) -> Any:  # An event's place, as the database layer takes it.
    if text is None:
        return None
    found = event_from_cursor(text)
    if found is None:
        raise EngineerRefused("bad_cursor", "after: expected `next` of the page before, got something else")
    return found
