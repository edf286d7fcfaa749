"""The vending interface as one application: statuses, error answers, limits, start and stop.

Stage: the outer edge of vending. Enters: HTTP. Leaves: JSON, every refusal in one form with a stable code. Never: a
stack trace, a key, a whole token or a name in an error or a log.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import psycopg
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from billing.calendar import LocalCalendar
from billing.forecast import BadThreshold
from billing.money import BadAmount
from billing.statement import StatementError
from db.orders import PostingRules
from db.pool import make_pool
from vending.edges.answers import error_to_api
from vending.edges.body_limit import BODY_BYTES_MAX, BODY_TIMEOUT_S, BodyLimit
from vending.edges.consumer_page import page_router
from vending.edges.consumer_routes import consumer_router
from vending.edges.contact_routes import contact_router
from vending.edges.errors import RequestDeclined, TokenUnreadable
from vending.edges.metrics import VendingMetrics
from vending.edges.routes import AppState, answer, router, state_of
from vending.edges.statement_routes import statement_router
from vending.edges.store import Desk
from vending.edges.threshold_routes import threshold_router
from vending.security import SecurityModule
from vending.sts.errors import MalformedToken
from vending.vends import DeclineReason, VendingError, VendLimits

# A vend takes some 10 ms, so six connections sell some hundred a second; the rest of the server's connections
# belong to ingest and the other processes.
POOL_CONNECTIONS_MAX = 6
# The server has this long to accept the first connection at start.
OPEN_TIMEOUT_S = 10.0
# The locks that make a database busy are held for milliseconds; 2 s lets a burst pass.
RETRY_AFTER_S = 2
STATUS_VENDED = 200

STATUS_OF_DECLINE: Mapping[DeclineReason, int] = {
    DeclineReason.UNKNOWN_METER: 404,
    DeclineReason.AMBIGUOUS_METER: 409,
    DeclineReason.METER_NOT_BILLED: 409,
    DeclineReason.METER_WITHOUT_STS: 409,
    DeclineReason.METER_KEY_UNSUPPORTED: 409,
    DeclineReason.AMOUNT_BELOW_MINIMUM: 422,
    DeclineReason.AMOUNT_ABOVE_MAXIMUM: 422,
    DeclineReason.VENDOR_INACTIVE: 403,
    DeclineReason.POSTPAID_ACCOUNT: 409,
    DeclineReason.KEY_EXPIRED: 409,
    DeclineReason.KEY_TYPE_REFUSED: 409,
    DeclineReason.VENDING_KEY_UNKNOWN: 409,
    DeclineReason.TID_TOO_FAR_AHEAD: 409,
    DeclineReason.TID_ERA_EXHAUSTED: 409,
}
_STATUS_OF_CODE: Mapping[str, int] = {
    "malformed": 400,
    "bad_address": 400,
    "bad_amount": 400,
    "bad_instant": 400,
    "bad_period": 400,
    "bad_threshold": 400,
    "drn_check_digit": 400,
    "malformed_token": 400,
    "api_key_wrong": 401,
    "signature_missing": 401,
    "signature_expired": 401,
    "signature_wrong": 401,
    "not_allowed": 403,
    "unknown_account": 404,
    "unknown_vend": 404,
    "unknown_contact": 404,
    "sms_not_configured": 404,
    "message_id_reused": 409,
    "too_many_contacts": 409,
    "code_wrong": 422,
    "code_expired": 422,
    "code_spent": 422,
    "no_code": 422,
    "too_many_codes": 429,
    "period_too_long": 422,
    "token_not_issued": 422,
}
_CODE_OF_STATUS: Mapping[int, str] = {404: "unknown_path", 405: "method_not_allowed"}
_STATUS_UNREADABLE = 422
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PLACE_CHARACTERS_MAX = 80
_FAULTS_MAX = 3

_log = structlog.get_logger(__name__)


def wall_clock_ms() -> int:
    """Return UTC milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def create_app(
    *,
    database_url: str,
    calendar: LocalCalendar,
    security_module: SecurityModule,
    vend_min_minor: int,
    vend_max_minor: int,
    stale_reading_s: int | None,
    sms_secret: bytes | None = None,
    clock: Callable[[], int] = wall_clock_ms,
) -> FastAPI:
    """Build the application; its lifespan opens and closes the pool."""
    metrics = VendingMetrics()
    desk = Desk(
        rules=PostingRules(calendar=calendar, stale_ms=None if stale_reading_s is None else stale_reading_s * 1000),
        limits=VendLimits(min_minor=vend_min_minor, max_minor=vend_max_minor),
        security_module=security_module,
        clock=clock,
        status_vended=STATUS_VENDED,
        status_of=STATUS_OF_DECLINE.__getitem__,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = make_pool(database_url, application="vending", size_max=POOL_CONNECTIONS_MAX)
        await pool.open(wait=True, timeout=OPEN_TIMEOUT_S)
        try:
            app.state.vending = AppState(desk=desk, pool=pool, metrics=metrics, sms_secret=sms_secret)
            yield
        finally:
            await pool.close()

    app = FastAPI(title="Prepaid vending", version="1", lifespan=lifespan, redirect_slashes=False)
    app.include_router(router)
    app.include_router(statement_router)
    app.include_router(contact_router)
    app.include_router(consumer_router)
    app.include_router(threshold_router)
    app.include_router(page_router)
    _add_error_answers(app)
    # The one added last sees a request first.
    app.add_middleware(
        BodyLimit,
        too_large=answer(
            error_to_api("body_too_large", f"body: expected at most {BODY_BYTES_MAX} bytes, got more"),
            status=413,
            headers={"connection": "close"},
        ),
        too_slow=answer(
            error_to_api("body_too_slow", f"body: expected all of it within {BODY_TIMEOUT_S:.0f} s, got less"),
            status=408,
            headers={"connection": "close"},
        ),
    )
    app.add_middleware(_Observed, metrics=metrics)
    return app


class _Observed:
    """Middleware that counts and times every request under its route's template."""

    def __init__(self, app: ASGIApp, *, metrics: VendingMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        status = 500

        async def send_seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_seen)
        finally:
            self._metrics.request_answered(
                method=scope["method"] if scope["method"] in _METHODS else "other",
                route=_route_of(scope),
                status=status,
                seconds=time.perf_counter() - started_s,
            )


def _add_error_answers(app: FastAPI) -> None:
    """Give every kind of failure its answer."""
    for kind in (VendingError, BadAmount, BadThreshold, MalformedToken, StatementError):
        app.add_exception_handler(kind, _coded)
    app.add_exception_handler(TokenUnreadable, _unreadable)
    app.add_exception_handler(RequestDeclined, _declined)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http)
    # The pool's time-outs are operational errors too; a session ended for idling in a transaction is not.
    app.add_exception_handler(psycopg.OperationalError, _busy)
    app.add_exception_handler(psycopg.errors.IdleInTransactionSessionTimeout, _busy)
    app.add_exception_handler(Exception, _internal)


async def _coded(request: Request, error: Exception) -> Response:
    assert isinstance(error, VendingError | BadAmount | BadThreshold | MalformedToken | StatementError), type(error)
    headers = {"www-authenticate": "ApiKey"} if error.code == "api_key_wrong" else None
    return _refuse(request, error.code, str(error), _STATUS_OF_CODE[error.code], headers)


async def _unreadable(request: Request, error: Exception) -> Response:
    assert isinstance(error, TokenUnreadable), type(error)
    return _refuse(request, error.token_code, str(error), _STATUS_UNREADABLE)


async def _declined(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestDeclined), type(error)
    reason = error.declined.reason
    return _refuse(request, reason.value, error.declined.message, STATUS_OF_DECLINE[reason])


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), type(error)
    return _refuse(request, "malformed", _places(error), 400)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), type(error)
    code = _CODE_OF_STATUS.get(error.status_code, "malformed")
    message = f"{request.method} {request.url.path[:_PLACE_CHARACTERS_MAX]}: {error.detail}"
    return _refuse(request, code, message, error.status_code, error.headers)


async def _busy(request: Request, error: Exception) -> Response:
    _log.warning("database_busy", error=type(error).__name__)
    message = "database: expected an answer in time, got none; try again, a vend under the same message id"
    return _refuse(request, "database_busy", message, 503, {"retry-after": str(RETRY_AFTER_S)})


async def _internal(request: Request, error: Exception) -> Response:
    _log.error("internal_error", error=type(error).__name__, route=_route_of(request.scope))
    message = "server: expected to answer, met a fault of its own; try again, a vend under the same message id"
    return _refuse(request, "internal_error", message, 500)


def _refuse(
    request: Request, code: str, message: str, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    route = _route_of(request.scope)
    _log.info("request_refused", code=code, status=status, method=request.method, route=route)
    if (request.method, route) == ("POST", "/v1/vends"):
        state_of(request).metrics.vend_answered(code)
    return answer(error_to_api(code, message), status=status, headers=headers)


def _places(error: RequestValidationError) -> str:
    """Name the first faults of a request by their place; what was sent is never repeated."""
    faults = []
    for fault in error.errors()[:_FAULTS_MAX]:
        place = ".".join(str(part) for part in fault["loc"])[:_PLACE_CHARACTERS_MAX]
        detail = fault.get("ctx", {}).get("error", "") if fault["type"] == "json_invalid" else ""
        faults.append(f"{place}: {fault['msg']}" + (f", {detail}" if detail else ""))
    return "; ".join(faults)


def _route_of(scope: Scope) -> str:
    """Return the template of the matched route, so that figures do not grow with every path tried."""
    return getattr(scope.get("route"), "path", "unmatched")
