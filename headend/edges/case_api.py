"""Cases over HTTP, for engineers: opened, tested, decided, proposed, approved by a second person, posted, closed.

Stage: beside the engineers' other routes, in the same process; who may ask and who asks is decided by the application
that the routes are added to. A person is the name on a key, or its first key: two keys of one person are one. Never:
money or a trail of its own; both are written by the cases' functions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from billing.calendar import from_ms
from billing.correction import OverhaulRefused
from billing.disputes.case import CaseRefused, State, StepKind
from billing.disputes.proposal import Asked
from db.case_money import approve_money, last_closed_day, post_money, propose_money, refuse_money
from db.case_tests import (
    add_check_readings,
    bank_of,
    compare_meters,
    comparison_of,
    enter_test,
    install_check_meter,
    replace_meter,
    report_to_json,
)
from db.cases import (
    CaseConflict,
    CaseFile,
    Entry,
    NewCase,
    UnknownCase,
    add_document,
    decide_case,
    enter_step,
    list_cases,
    list_documents,
    open_case,
    read_case,
    read_document_of,
)
from db.corrections import ApprovalRefused, CorrectionNotReady, CutOffsExceeded, ProposalRefused
from db.orders import PostingRules
from db.swaps import Swap, SwapRefused
from headend.edges.case_answers import bank_to_api, case_to_api, document_to_api, listed_to_api
from headend.edges.case_bodies import (
    CheckMeterBody,
    CheckReadingsBody,
    CompareBody,
    Day,
    DecisionBody,
    DocumentBody,
    ErrorBasisPoints,
    OpenBody,
    ProposalBody,
    Register,
    ReplacementBody,
    StepBody,
    TestBody,
    amount_of,
    asked_of,
    instant_of,
)

ROWS_MAX = 500
_UNKNOWN, _STATE = 404, 409
_REFUSED = (
    CaseRefused,
    CaseConflict,
    SwapRefused,
    OverhaulRefused,
    ProposalRefused,
    ApprovalRefused,
    CorrectionNotReady,
    CutOffsExceeded,
)
_CASE_EXAMPLE = {
    "case": 12,
    "account": "100200300",
    "kind": "inaccurate",
    "area": "urban",
    "meter": "PB000123",
    "accuracy_class": "1",
    "complaint": "the meter counts while the main switch is off",
    "state": "paired",
    "verdict": None,
    "decision": None,
    "overdue": False,
    "clocks": [],
    "steps": [],
    "documents": [],
}

Number = Annotated[int, Path(alias="id", ge=1, lt=2**63, description="the case's number")]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseDesk:
    """What the routes need besides their requests; `who_asks` is a dependency that names the person who asks."""

    pool_of: Callable[[Request], AsyncConnectionPool[AsyncConnection]]
    rules: PostingRules
    clock: Callable[[], int]
    who_asks: Callable[..., Awaitable[str]]

    @property
    def now(self) -> datetime:
        """The clock's time."""
        return from_ms(self.clock())

    def entry(self, by: str, note: str, at: datetime | None) -> Entry:
        """Return a step as it is entered. Raises: CaseRefused."""
        return Entry(by=by, at=instant_of(at, self.now), note=note)

    async def answer(self, conn: AsyncConnection, file: CaseFile, **more: object) -> Response:
        """Return a case whole."""
        documents = await list_documents(conn, file.row.id)
        shown = case_to_api(file, documents, now=self.now, calendar=self.rules.calendar)
        return _answer({**shown, **more})


def add_case_api(
    app: FastAPI, desk: CaseDesk, guard: Callable[..., Awaitable[object]], refusals: dict[int | str, dict[str, Any]]
) -> None:
    """Add the routes of cases to an application.

    `guard` is a dependency that lets only engineers pass; `refusals` describes what any of the routes refuses.
    """
    error = {"content": {"application/json": {"example": {"error": {"code": "case_refused", "message": "..."}}}}}
    responses = {
        **refusals,
        _UNKNOWN: {"description": "`unknown_case`: no case, account or document of this number", **error},
        _STATE: {"description": "`case_refused` and others: not what the case is ready for; nothing was done", **error},
    }
    router = APIRouter(prefix="/v1/cases", tags=["cases"], dependencies=[Depends(guard)], responses=responses)
    _add_reading(router, desk)
    _add_documents(router, desk)
    _add_words(router, desk)
    _add_check_meter(router, desk)
    _add_tests(router, desk)
    _add_money(router, desk)
    app.include_router(router)
    for kind in (UnknownCase, *_REFUSED):
        app.add_exception_handler(kind, _refused)


def _add_reading(router: APIRouter, desk: CaseDesk) -> None:
    shown: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"example": _CASE_EXAMPLE}}}}

    @router.post("", summary="Open a case", responses=shown)
    async def post_case(request: Request, body: OpenBody, who: str = Depends(desk.who_asks)) -> Response:
        """Open a case about the meter that stands at an account; its clocks run from the complaint on."""
        new = NewCase(
            account=body.account,
            kind=body.kind,
            area=body.area,
            accuracy_class=body.accuracy_class,
            complaint=body.complaint,
            by=who,
            at=instant_of(body.at, desk.now),
        )
        async with desk.pool_of(request).connection() as conn:
            case_id = await open_case(conn, new, desk.rules.calendar)
            return await desk.answer(conn, await read_case(conn, case_id))

    @router.get("", summary="List cases")
    async def get_cases(
        request: Request,
        state: State | None = None,
        account: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = None,
        overdue: Annotated[bool, Query(description="only those of which a clock has run out")] = False,
        after: Annotated[int, Query(ge=0, lt=2**63, description="`next` of the page before")] = 0,
        limit: Annotated[int, Query(ge=1, le=ROWS_MAX)] = 100,
    ) -> Response:
        """Return cases in the order of their numbers."""
        asked = {"state": state, "account": account, "overdue": overdue}
        async with desk.pool_of(request).connection() as conn:
            found = await list_cases(conn, now=desk.now, **asked, after=after, most=limit)  # type: ignore[arg-type]  # Named alike.
        following = found[-1].id if len(found) == limit else None
        return _answer({"cases": [listed_to_api(each) for each in found], "next": following})

    @router.get("/{id}", summary="Show a case", responses=shown)
    async def get_case(request: Request, number: Number) -> Response:
        """Return a case with its clocks, trail and documents."""
        async with desk.pool_of(request).connection() as conn:
            return await desk.answer(conn, await read_case(conn, number))


def _add_documents(router: APIRouter, desk: CaseDesk) -> None:
    @router.post("/{id}/documents", summary="Add a document to a case")
    async def post_document(
        request: Request, number: Number, body: DocumentBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Keep a small document; larger ones, up to 5 MB, go by the command line. The same again changes nothing."""
        entry = Entry(by=who, at=desk.now)
        async with desk.pool_of(request).connection() as conn:
            found = await add_document(
                conn, number, entry, name=body.name, media_type=body.media_type, content=body.content_bytes
            )
        return _answer({"documents": [document_to_api(each) for each in found]})

    @router.get("/{id}/documents/{document}", summary="Read a document of a case", response_class=Response)
    async def get_document(
        request: Request, number: Number, document: Annotated[int, Path(ge=1, lt=2**63)]
    ) -> Response:
        """Return the document's bytes as they came; never shown by a browser in place."""
        async with desk.pool_of(request).connection() as conn:
            _, _, content = await read_document_of(conn, number, document)
        headers = {
            "cache-control": "no-store",
            "content-disposition": f'attachment; filename="case-{number}-{document}"',
            "x-content-type-options": "nosniff",
        }
        return Response(content, media_type="application/octet-stream", headers=headers)


def _add_words(router: APIRouter, desk: CaseDesk) -> None:
    """Add the steps that are nothing but words."""

    def add(path: str, kind: StepKind, summary: str, doc: str) -> None:
        async def post_step(
            request: Request, number: Number, body: StepBody, who: str = Depends(desk.who_asks)
        ) -> Response:
            entry = desk.entry(who, body.note, body.at)
            async with desk.pool_of(request).connection() as conn:
                return await desk.answer(conn, await enter_step(conn, number, kind, entry, desk.rules.calendar))

        post_step.__doc__ = doc
        router.post(path, summary=summary, name=f"post_{kind.value}")(post_step)

    add("/{id}/inquiry", StepKind.ASK, "Ask for more information", "The clock of a disputed bill stands still.")
    add("/{id}/answer", StepKind.ANSWER, "Note that the information is there", "The clock begins anew.")
    add("/{id}/closing", StepKind.CLOSE, "Close a case", "Nothing can be added to it any more.")

    @router.post("/{id}/decision", summary="Decide a case")
    async def post_decision(
        request: Request, number: Number, body: DecisionBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Decide what follows for the account; a check meter that still stands there is taken away."""
        entry = desk.entry(who, body.note, body.at)
        async with desk.pool_of(request).connection() as conn:
            return await desk.answer(conn, await decide_case(conn, number, body.decision, entry, desk.rules.calendar))


def _add_check_meter(router: APIRouter, desk: CaseDesk) -> None:
    calendar = desk.rules.calendar

    @router.post("/{id}/check-meter", summary="Install a check meter")
    async def post_check_meter(
        request: Request, number: Number, body: CheckMeterBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Note that a check meter stands beside the disputed one; it is never charged."""
        entry = desk.entry(who, body.note, body.at)
        async with desk.pool_of(request).connection() as conn:
            file = await install_check_meter(conn, number, body.meter, body.accuracy_class, entry, calendar)
            return await desk.answer(conn, file)

    @router.post("/{id}/check-readings", summary="Enter what a check meter has read")
    async def post_check_readings(request: Request, number: Number, body: CheckReadingsBody) -> Response:
        """Keep registers of the check meter; the same again changes nothing, others at a stored instant are refused."""
        readings = body.values()
        for each in readings:
            instant_of(each.at, desk.now)
        async with desk.pool_of(request).connection() as conn:
            return _answer({"added": await add_check_readings(conn, number, readings), "received": len(readings)})

    @router.get("/{id}/comparison", summary="Compare a meter with its check meter so far")
    async def get_comparison(request: Request, number: Number) -> Response:
        """Return the report on what both meters have read up to now; nothing is kept."""
        async with desk.pool_of(request).connection() as conn:
            return _answer(report_to_json(await comparison_of(conn, number, calendar, now=desk.now)))

    @router.post("/{id}/comparison", summary="Compare a meter with its check meter, for the case")
    async def post_comparison(
        request: Request, number: Number, body: CompareBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Keep the report in the case's trail, with its verdict."""
        entry = desk.entry(who, body.note, body.at)
        until = None if body.until is None else instant_of(body.until, desk.now)
        async with desk.pool_of(request).connection() as conn:
            file, report = await compare_meters(conn, number, entry, calendar, until=until)
            return await desk.answer(conn, file, comparison=report_to_json(report))


def _add_tests(router: APIRouter, desk: CaseDesk) -> None:
    calendar = desk.rules.calendar

    @router.post("/{id}/tests", summary="Enter a laboratory's test")
    async def post_test(
        request: Request, number: Number, body: TestBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Keep the error that a laboratory found; the limit of the meter's class makes the verdict."""
        entry, kind = desk.entry(who, body.note, body.at), StepKind(body.kind)
        async with desk.pool_of(request).connection() as conn:
            file = await enter_test(conn, number, kind, body.error_basis_points, body.laboratory, entry, calendar)
            return await desk.answer(conn, file)

    @router.post("/{id}/replacement", summary="Replace the disputed meter")
    async def post_replacement(
        request: Request, number: Number, body: ReplacementBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Swap the meter: days before are closed from the old one, from then on the new one counts."""
        swap = Swap(
            account_id=0,
            new_serial=body.meter,
            at=instant_of(body.at, desk.now),
            closing_wh=body.closing_wh,
            opening_wh=body.opening_wh,
            reason=body.note,
            by=who,
        )
        async with desk.pool_of(request).connection() as conn:
            file, _ = await replace_meter(conn, number, swap, rules=desk.rules, now_ms=desk.clock())
            return await desk.answer(conn, file)

    @router.get("/{id}/bank", summary="Show a net meter's bank as counted and put right")
    async def get_bank(
        request: Request,
        number: Number,
        first: Annotated[Day, Query(description="a day of the first month")],
        last: Annotated[Day, Query(description="a day of the last month")],
        import_error: Annotated[ErrorBasisPoints, Query()] = 0,
        export_error: Annotated[ErrorBasisPoints, Query()] = 0,
        opening_wh: Annotated[Register, Query(description="in the bank before the first month, Wh")] = 0,
    ) -> Response:
        """Set export off against import month by month, with both registers as read and with their errors put right."""
        async with desk.pool_of(request).connection() as conn:
            found = await bank_of(
                conn,
                number,
                calendar,
                first=first,
                last=last,
                import_error_basis_points=import_error,
                export_error_basis_points=export_error,
                opening_wh=opening_wh,
            )
        return _answer(bank_to_api(found))


def _add_money(router: APIRouter, desk: CaseDesk) -> None:
    rules = desk.rules

    @router.post("/{id}/proposal", summary="Propose what a case does to the account")
    async def post_proposal(
        request: Request, number: Number, body: ProposalBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Propose an overhaul with its dry run, or an amount for a disputed bill; nothing is booked."""
        entry, amount_minor = desk.entry(who, body.note, body.at), amount_of(body)
        async with desk.pool_of(request).connection() as conn:
            wanted: Asked | int
            if body.overhaul is None:
                assert amount_minor is not None, "one of the two is given"
                wanted = amount_minor
            else:
                wanted = asked_of(body.overhaul, await last_closed_day(conn, number, rules=rules))
            return await desk.answer(conn, await propose_money(conn, number, wanted, entry, rules=rules))

    @router.post("/{id}/approval", summary="Approve what is proposed")
    async def post_approval(
        request: Request, number: Number, body: StepBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Approve as a second person, with the cut-offs that the dry run reports."""
        entry = desk.entry(who, body.note, body.at)
        async with desk.pool_of(request).connection() as conn:
            return await desk.answer(conn, await approve_money(conn, number, entry, rules=rules))

    @router.post("/{id}/refusal", summary="Refuse what is proposed")
    async def post_refusal(
        request: Request, number: Number, body: StepBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Give a proposal up; another one may follow."""
        entry = desk.entry(who, body.note, body.at)
        async with desk.pool_of(request).connection() as conn:
            return await desk.answer(conn, await refuse_money(conn, number, entry, rules=rules))

    @router.post("/{id}/posting", summary="Post what was approved")
    async def post_posting(
        request: Request, number: Number, body: StepBody, who: str = Depends(desk.who_asks)
    ) -> Response:
        """Post the overhaul or adjustment, or the fee of a meter that proved right; once, however often it is asked."""
        entry = desk.entry(who, body.note, body.at)
        async with desk.pool_of(request).connection() as conn:
            return await desk.answer(conn, await post_money(conn, number, entry, rules=rules))


async def _refused(request: Request, error: Exception) -> Response:
    code = getattr(error, "code", None)
    assert isinstance(code, str), type(error)
    status = _UNKNOWN if isinstance(error, UnknownCase) else _STATE
    return JSONResponse({"error": {"code": code, "message": str(error)}}, status_code=status)


def _answer(body: Mapping[str, Any]) -> Response:  # JSON values of any shape.
    return JSONResponse(dict(body), headers={"cache-control": "no-store"})
