"""The exceptions desk over HTTP, for engineers: the queue, evidence, dry runs, decisions by one or two, bulk actions.

Stage: beside the engineers' other routes, in the same process; who may ask and who asks is decided by the application
that the routes are added to. A person is the name on a key, or its first key: two keys of one person are one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from billing.calendar import from_ms
from db.corrections import ApprovalRefused, CorrectionNotReady, CutOffsExceeded, ProposalRefused
from db.exceptions import (
    ExceptionKey,
    ExceptionKind,
    ExceptionRefused,
    OpenException,
    QueueAsked,
    UnknownException,
    assign_exception,
    count_exceptions,
    list_exceptions,
    read_decisions,
    read_evidence,
    read_exception,
    read_trail,
)
from db.orders import PostingRules
from db.quarantine import QuarantineRefused
from headend.edges.exceptions_answers import (
    bulk_to_api,
    counts_to_api,
    decided_to_api,
    decision_to_api,
    evidence_to_api,
    open_to_api,
    rules_to_api,
)
from headend.edges.exceptions_bodies import (
    ITEM_PATTERN,
    ApprovalBody,
    AssignmentBody,
    BulkBody,
    DecisionBody,
    LookBody,
    WhyBody,
)
from headend.edges.exceptions_desk import (
    Office,
    approve_decision,
    cancel_decision,
    decide,
    decide_many,
    dry_run,
)
from headend.edges.exceptions_estimates import estimates_of, rules_on
from headend.rules import Severity

ROWS_MAX = 500
_YEAR_FIRST, _YEAR_LAST = 2000, 2199
_UNKNOWN, _STATE, _BAD = 404, 409, 400
_REFUSED = (ExceptionRefused, QuarantineRefused)
_EXAMPLE = {
    "item": "gap-7",
    "severity": "warning",
    "rule": "gap",
    "meter": "PB000123",
    "account": "100200300",
    "area": "north",
    "at": "2026-04-30T18:30:00+00:00",
    "to": "2026-05-01T06:30:00+00:00",
    "since": "2026-05-01T06:31:00+00:00",
    "age_h": 30,
    "detail": "23 intervals missing, given_up",
    "assigned_to": None,
    "decision": None,
}
_EFFECT = {
    "before_minor": 120_000,
    "after_minor": 119_400,
    "difference_minor": -600,
    "crosses": "none",
    "cut_offs": 0,
    "told": "",
    "registers": 23,
    "needs_second_person": True,
}

Item = Annotated[str, Path(pattern=ITEM_PATTERN, description="kind and number, as `gap-7`")]
# PostgreSQL has no text with a zero in it.
Words = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")]


class CursorRefused(ExceptionRefused):
    """A place to go on from that no page has given."""

    code = "bad_cursor"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceptionsDesk:
    """What the routes need besides their requests; `who_asks` is a dependency that names the person who asks."""

    pool_of: Callable[[Request], AsyncConnectionPool[AsyncConnection]]
    rules: PostingRules
    clock: Callable[[], int]
    who_asks: Callable[..., Awaitable[str]]

    @property
    def now(self) -> datetime:
        """The clock's time."""
        return from_ms(self.clock())

    async def office(self, conn: AsyncConnection) -> Office:
        """Return the rules that decisions go by today."""
        return Office(posting=self.rules, estimation=await rules_on(conn, self.rules.calendar, self.now))


def add_exceptions_api(
    app: FastAPI,
    desk: ExceptionsDesk,
    guard: Callable[..., Awaitable[object]],
    refusals: dict[int | str, dict[str, Any]],
) -> None:
    """Add the routes of exceptions to an application.

    `guard` is a dependency that lets only engineers pass; `refusals` describes what any of the routes refuses.
    """
    error = {"content": {"application/json": {"example": {"error": {"code": "exception_refused", "message": "..."}}}}}
    responses = {
        **refusals,
        _UNKNOWN: {"description": "`unknown_exception`: no exception of this kind and number", **error},
        _STATE: {
            "description": "`exception_refused` and others: it does not fit as it stands; nothing was done",
            **error,
        },
    }
    router = APIRouter(prefix="/v1/exceptions", tags=["exceptions"], dependencies=[Depends(guard)], responses=responses)
    _add_queue(router, desk)
    _add_one(router, desk)
    _add_decisions(router, desk)
    _add_bulk(router, desk)
    app.include_router(router)
    kinds = (UnknownException, CursorRefused, *_REFUSED, ApprovalRefused, CorrectionNotReady, CutOffsExceeded)
    for kind in (*kinds, ProposalRefused):
        app.add_exception_handler(kind, _refused)


def _add_queue(router: APIRouter, desk: ExceptionsDesk) -> None:
    @router.get("", summary="List open exceptions", responses=_shown({"exceptions": [_EXAMPLE], "next": None}))
    async def get_exceptions(
        request: Request,
        kind: ExceptionKind | None = None,
        severity: Severity | None = None,
        rule: Words = None,
        meter: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = None,
        area: Words = None,
        assigned_to: Annotated[
            str | None, Query(max_length=64, pattern=r"^[^\x00]*$", description="a name; empty: nobody's")
        ] = None,
        older_than_h: Annotated[int, Query(ge=0, le=87_600, description="open for so many hours")] = 0,
        after: Annotated[str | None, Query(max_length=120, description="`next` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=ROWS_MAX)] = 100,
    ) -> Response:
        """Return what is held, flagged or missing and nobody has closed, the oldest first."""
        asked = QueueAsked(
            kind=kind,
            severity=severity,
            rule=rule,
            serial=meter,
            area=area,
            assigned_to=assigned_to,
            before=desk.now - timedelta(hours=older_than_h) if older_than_h else None,
            after=None if after is None else place_from(after),
        )
        async with desk.pool_of(request).connection() as conn:
            found = await list_exceptions(conn, asked, most=limit)
        following = place_of(found[-1]) if len(found) == limit else None
        return _answer({"exceptions": [open_to_api(each, desk.now) for each in found], "next": following})

    @router.get("/counts", summary="Count open exceptions by kind, severity and age")
    async def get_counts(request: Request) -> Response:
        """Return how many are open up to a day, a week, 30 days and longer."""
        async with desk.pool_of(request).connection() as conn:
            return _answer(counts_to_api(await count_exceptions(conn, desk.now)))

    @router.get("/rules", summary="Show the rules of estimation in force")
    async def get_rules(request: Request) -> Response:
        """Return the order of rules, their limits and what a second person is asked for."""
        async with desk.pool_of(request).connection() as conn:
            return _answer(rules_to_api((await desk.office(conn)).estimation))


def _add_one(router: APIRouter, desk: ExceptionsDesk) -> None:
    @router.get("/{item}", summary="Show an exception with its evidence")
    async def get_exception(request: Request, item: Item) -> Response:
        """Return neighbours, the meter's history, like days, what each rule would estimate, decisions and trail."""
        async with desk.pool_of(request).connection() as conn:
            return _answer(await evidence_of(conn, ExceptionKey.read(item), await desk.office(conn), desk.now))

    @router.post("/{item}/assignment", summary="Give an exception to somebody")
    async def post_assignment(
        request: Request, item: Item, body: AssignmentBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Keep who is to work on an exception, and who said so."""
        async with desk.pool_of(request).connection() as conn:
            await assign_exception(conn, ExceptionKey.read(item), to=body.to, by=who, why=body.why)
        return _answer({"item": item, "assigned_to": body.to})


def _add_decisions(router: APIRouter, desk: ExceptionsDesk) -> None:
    @router.post("/{item}/dry-run", summary="Tell what a decision would do to money", responses=_shown(_EFFECT))
    async def post_dry_run(request: Request, item: Item, body: LookBody) -> Response:
        """Work a decision out and write nothing."""
        async with desk.pool_of(request).connection() as conn:
            found = await read_exception(conn, ExceptionKey.read(item))
            return _answer((await dry_run(conn, found, body.decision(), await desk.office(conn))).to_json())

    example = {"item": "gap-7", "decision": 3, "state": "proposed", "correction": 12, "effect": _EFFECT}

    @router.post("/{item}/decision", summary="Decide an exception", responses=_shown(example))
    async def post_decision(
        request: Request, item: Item, body: DecisionBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Carry a decision out, or keep it for a second person where it moves much money or changes readings."""
        async with desk.pool_of(request).connection() as conn:
            office = await desk.office(conn)
            decided = await decide(conn, ExceptionKey.read(item), body.decision(), office, by=who, why=body.why)
        return _answer(decided_to_api(decided))

    @router.post("/{item}/approval", summary="Approve what was decided, as a second person")
    async def post_approval(
        request: Request, item: Item, body: ApprovalBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Carry out what was proposed, with the cut-offs that its dry run says; once, however often it is asked."""
        async with desk.pool_of(request).connection() as conn:
            office, key = await desk.office(conn), ExceptionKey.read(item)
            row = await approve_decision(conn, key, office, by=who, why=body.why, cut_offs=body.cut_offs)
        return _answer({"item": item, **decision_to_api(row)})

    @router.post("/{item}/cancellation", summary="Give up what was proposed")
    async def post_cancellation(
        request: Request, item: Item, body: WhyBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Leave the exception open; another decision may follow."""
        async with desk.pool_of(request).connection() as conn:
            row = await cancel_decision(conn, ExceptionKey.read(item), by=who, why=body.why)
        return _answer({"item": item, **decision_to_api(row)})


def _add_bulk(router: APIRouter, desk: ExceptionsDesk) -> None:
    @router.post("/bulk", summary="Decide many exceptions alike")
    async def post_bulk(request: Request, body: BulkBody, who: str = Depends(desk.who_asks)) -> Response:
        """Decide each wholly or not at all, after a dry run of all against the bound; the result is counted."""
        async with desk.pool_of(request).connection() as conn:
            found = await decide_many(
                conn,
                body.keys(),
                body.decision(),
                await desk.office(conn),
                by=who,
                why=body.why,
                bound_minor=body.bound_minor,
                only_look=body.dry_run,
            )
        return _answer(bulk_to_api(found))


async def evidence_of(conn: AsyncConnection, key: ExceptionKey, office: Office, now: datetime) -> dict[str, Any]:
    """Return one exception with everything that a decision needs, as JSON. Raises: UnknownException."""
    item = await read_exception(conn, key)
    evidence = {}
    if item.meter_id is not None and item.at is not None:
        evidence = await read_evidence(conn, item.meter_id, item.at, item.to_at or item.at)
    estimates = await estimates_of(conn, item, office.estimation, office.posting.calendar)
    trail, decisions = await read_trail(conn, key), await read_decisions(conn, key)
    return evidence_to_api(item, evidence, estimates, trail, decisions, now)


def place_of(row: OpenException) -> str:
    """Return where a page ends, as the next is asked for."""
    return f"{row.since.isoformat()}~{row.kind}~{row.item_id}"


def place_from(text: str) -> tuple[datetime, str, int]:
    """Read where a page ended. Raises: CursorRefused."""
    try:
        since, kind, number = text.replace(" ", "+").split("~")
        at, item_id = datetime.fromisoformat(since), int(number)
    except ValueError:
        at, kind, item_id = None, "", 0
    known = kind in tuple(ExceptionKind) and 0 <= item_id < 2**63
    if at is None or at.tzinfo is None or not _YEAR_FIRST <= at.year <= _YEAR_LAST or not known:
        raise CursorRefused("after: expected `next` of the page before, got something else")
    return at, kind, item_id


def _shown(example: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:  # OpenAPI's own shape.
    return {200: {"content": {"application/json": {"example": dict(example)}}}}


async def _refused(request: Request, error: Exception) -> Response:
    code = getattr(error, "code", None)
    assert isinstance(code, str), type(error)
    status = _UNKNOWN if isinstance(error, UnknownException) else _BAD if isinstance(error, CursorRefused) else _STATE
    return JSONResponse({"error": {"code": code, "message": str(error)}}, status_code=status)


def _answer(body: Mapping[str, Any]) -> Response:  # JSON values of any shape.
    return JSONResponse(dict(body), headers={"cache-control": "no-store"})
