"""The billing engineers' desk over HTTP: readings, profiles, charges, events, meters and accounts.

Stage: beside the vending interface, in the same process; whose rows a caller may see is told by the guard that the
routes are given: all, or those of one area. Reads only. Never: a consumer's name.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from starlette.types import Receive, Scope, Send

from billing.calendar import LocalCalendar
from headend.edges.desk_figures import FiguresAsked, losses_of_feeder, use_of_account
from headend.edges.desk_formats import MEDIA_TYPES, Format, Writer, page_to_json, writer_of
from headend.edges.desk_models import (
    EXAMPLES,
    FIGURES_ANSWERS,
    FIGURES_EXAMPLES,
    ChargesAsked,
    ListAsked,
    LossesAsked,
    ProfilesAsked,
    ReadingsAsked,
    SpanAsked,
    UseAsked,
    answers_of,
    samples,
)
from headend.edges.desk_rows import Page, read_page
from headend.queries.columns import Subject
from headend.queries.errors import QueryRefused
from headend.queries.questions import Question, behind, read_days, read_question

# A piece of a file keeps the process busy for some 20 ms, in which nobody else is answered.
FILE_PAGE_ROWS = 2_000
# Files that are written at once by a process: each holds a connection of its pool now and then, and half a core.
FILES_MAX = 2
RETRY_AFTER_S = 10
_STATUS: Mapping[str, int] = {
    "unknown_meter": 404,
    "unknown_account": 404,
    "unknown_consumer": 404,
    "unknown_feeder": 404,
    "period_too_long": 422,
    "too_many_files": 429,
}
_TITLES = {
    Subject.READINGS: "Read readings as they hold now, with what was received before an edit",
    Subject.PROFILES: "Read energy, demand, voltage and power factor by interval",
    Subject.CHARGES: "Read what was charged, line by line",
    Subject.EVENTS: "Read events of meters in the order of their instants",
    Subject.METERS: "List meters with where they stand",
    Subject.ACCOUNTS: "List accounts with their balance",
}

IfNoneMatch = Annotated[str | None, Header(max_length=2_000)]
# The area that a caller may see; None is all of them.
AreaOf = Callable[..., Awaitable[str | None]]


@dataclass(slots=True, kw_only=True)
class QueryDesk:
    """What every answer needs besides its request; `files` counts those that are being written."""

    pool_of: Callable[[Request], AsyncConnectionPool[AsyncConnection]]
    calendar: LocalCalendar
    files: int = 0


def add_query_api(app: FastAPI, desk: QueryDesk, area_of: AreaOf, refusals: dict[int | str, dict[str, Any]]) -> None:
    """Add the desk's routes to an application; `refusals` describes what any of them refuses."""
    router = APIRouter(prefix="/v1", tags=["desk"])
    _add_list(router, desk, area_of, refusals, Subject.READINGS, ReadingsAsked)
    _add_list(router, desk, area_of, refusals, Subject.PROFILES, ProfilesAsked)
    _add_list(router, desk, area_of, refusals, Subject.CHARGES, ChargesAsked)
    _add_list(router, desk, area_of, refusals, Subject.EVENTS, SpanAsked)
    _add_list(router, desk, area_of, refusals, Subject.METERS, ListAsked)
    _add_list(router, desk, area_of, refusals, Subject.ACCOUNTS, ListAsked)
    _add_figures(router, desk, area_of, refusals)
    app.include_router(router)
    app.add_exception_handler(QueryRefused, _refused)


def _add_list(
    router: APIRouter,
    desk: QueryDesk,
    area_of: AreaOf,
    refusals: dict[int | str, dict[str, Any]],
    subject: Subject,
    model: type[ListAsked],
) -> None:
    path = f"/{subject.value}"

    async def get_rows(
        request: Request,
        asked: ListAsked,
        area: str | None,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Give a page of rows and the cursor to go on with, or all rows as one file."""
        texts = asked.model_dump(by_alias=True)
        form: Format = texts.pop("format")
        question = read_question(subject, texts, desk.calendar, only_area=area)
        if form is not Format.JSON:
            return await _file(request, desk, question, form, limited=texts["limit"] is not None)
        async with desk.pool_of(request).connection() as conn:
            page = await read_page(conn, question, desk.calendar)
        following = None if page.after is None else question.cursor(page.after)
        return tagged(page_to_json(question.columns, page.rows, following), if_none_match)

    # Each subject has parameters of its own; the framework reads them from the annotations.
    get_rows.__annotations__ |= {"asked": Annotated[model, Query()], "area": Annotated[str | None, Depends(area_of)]}
    router.add_api_route(
        path,
        get_rows,
        methods=["GET"],
        summary=_TITLES[subject],
        name=f"list_{subject.value}",
        response_class=Response,
        responses={**refusals, **answers_of(subject)},
        openapi_extra=samples(f"/v1{path}", EXAMPLES[subject]),
    )


def _add_figures(
    router: APIRouter, desk: QueryDesk, area_of: AreaOf, refusals: dict[int | str, dict[str, Any]]
) -> None:
    async def get_use(
        request: Request, asked: Annotated[UseAsked, Query()], area: str | None, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Return energy, peak demand, load factor, energy by zone, the period before, and consumers like this one."""
        first, last = read_days(asked.model_dump(by_alias=True))
        async with desk.pool_of(request).connection() as conn:
            figures = FiguresAsked(name=asked.account, first=first, last=last, only_area=area)
            return tagged(msgspec.json.encode(await use_of_account(conn, figures, desk.calendar)), if_none_match)

    async def get_losses(
        request: Request, asked: Annotated[LossesAsked, Query()], area: str | None, if_none_match: IfNoneMatch = None
    ) -> Response:
        """Return what went into a feeder by its own meter, what its consumers took, and the rest."""
        first, last = read_days(asked.model_dump(by_alias=True))
        async with desk.pool_of(request).connection() as conn:
            figures = FiguresAsked(name=asked.feeder, first=first, last=last, only_area=area)
            return tagged(msgspec.json.encode(await losses_of_feeder(conn, figures, desk.calendar)), if_none_match)

    for path, endpoint, summary, example in (
        ("/profiles/summary", get_use, "Read a consumer's use in figures", FIGURES_EXAMPLES[0]),
        ("/profiles/losses", get_losses, "Read a feeder's losses", FIGURES_EXAMPLES[1]),
    ):
        endpoint.__annotations__ |= {"area": Annotated[str | None, Depends(area_of)]}
        router.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            summary=summary,
            response_class=Response,
            responses={**refusals, **FIGURES_ANSWERS},
            openapi_extra=samples(f"/v1{path}", [example]),
        )


def tagged(body: bytes, if_none_match: str | None) -> Response:
    """Send a JSON body under its tag, or only say that it is the one that a caller has."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    known = [each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


async def _file(request: Request, desk: QueryDesk, question: Question, form: Format, *, limited: bool) -> Response:
    if limited:
        raise QueryRefused("bad_limit", f"limit: expected none with format {form.value}, which is all rows, got one")
    if desk.files >= FILES_MAX:
        raise QueryRefused("too_many_files", f"files: expected at most {FILES_MAX} at once, got one more")
    desk.files += 1
    try:
        whole = replace(question, limit=FILE_PAGE_ROWS)
        # Whatever is refused is refused before the answer has begun.
        async with desk.pool_of(request).connection() as conn:
            page = await read_page(conn, whole, desk.calendar)
        writer = writer_of(form, question.columns, desk.calendar.zone.key)
    except BaseException:
        desk.files -= 1
        raise
    pieces = _pieces(desk.pool_of(request), desk.calendar, whole, page, writer)
    name = f"{question.subject.value}.{form.value}"
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
    return _FileResponse(desk, pieces, media_type=MEDIA_TYPES[form], headers=headers)


async def _pieces(
    pool: AsyncConnectionPool[AsyncConnection], calendar: LocalCalendar, question: Question, page: Page, writer: Writer
) -> AsyncIterator[bytes]:
    """Yield a file; a connection is held only while a page is read."""
    yield writer.head()
    while True:
        piece = await asyncio.to_thread(writer.rows, page.rows)
        if piece:
            yield piece
        if page.after is None:
            break
        question = behind(question, page.after)
        async with pool.connection() as conn:
            page = await read_page(conn, question, calendar)
    yield await asyncio.to_thread(writer.end)


class _FileResponse(StreamingResponse):
    """A file on its way; it is counted until its last byte is sent or its caller is gone."""

    def __init__(self, desk: QueryDesk, pieces: AsyncIterator[bytes], **more: Any) -> None:  # As the base takes them.
        super().__init__(pieces, **more)
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._desk.files -= 1


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, QueryRefused), type(error)
    headers = {"retry-after": str(RETRY_AFTER_S)} if error.code == "too_many_files" else None
    body = {"error": {"code": error.code, "message": str(error)}}
    return JSONResponse(body, status_code=_STATUS.get(error.code, 400), headers=headers)
