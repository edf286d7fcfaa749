"""The vending interface as one application: statuses, error answers, limits, start and stop.

Stage: the outer edge of vending. Enters: HTTP. Leaves: JSON, every refusal in one form with a stable code. Never: a
stack trace, a key, a whole token or a name in an error or a log.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, get_args

import psycopg
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from billing.calendar import LocalCalendar
from billing.forecast import BadThreshold
from billing.money import BadAmount
from billing.statement import StatementError
from db.meter_records import RecordConflict
from db.orders import PostingRules
from db.pool import make_pool
from vending.coupon_pins import coupon_keys
from vending.edges.access_routes import access_router
from vending.edges.act_routes import act_router
from vending.edges.advice_routes import advice_router
from vending.edges.answers import error_to_api
from vending.edges.audit_trail import Trail, act_of
from vending.edges.body_limit import BODY_BYTES_MAX, BODY_TIMEOUT_S, BodyLimit
from vending.edges.consumer_page import page_router
from vending.edges.consumer_routes import consumer_router
from vending.edges.contact_routes import contact_router
from vending.edges.coupon_keypad import open_keypad
from vending.edges.coupon_routes import coupon_router
from vending.edges.errors import RequestDeclined, TokenUnreadable, TooManyRequests
from vending.edges.float_routes import float_router
from vending.edges.gate import Gate, PlainKeys
from vending.edges.held_vends import taking_back_held
from vending.edges.issue_routes import issue_router
from vending.edges.key_ring import LOOK_EVERY_MS, KeyRing
from vending.edges.limits import Limiter
from vending.edges.metrics import VendingMetrics
from vending.edges.payment_desk import OnlineSettings, open_online
from vending.edges.payment_routes import payment_router
from vending.edges.receipt_routes import receipt_router
from vending.edges.recharge_page import recharge_page_router
from vending.edges.risk_limited import RiskFigures, RiskLimitedModule
from vending.edges.routes import AppState, answer, router, sale_router, state_of
from vending.edges.statement_routes import statement_router
from vending.edges.store import Desk
from vending.edges.threshold_routes import threshold_router
from vending.edges.xmlvend_routes import XMLVEND_PATH, refused_as_fault, xmlvend_router
from vending.errors_catalogue import status_of
from vending.key_custody import MASTER_KEY_BYTES
from vending.security import ModuleAbsent, SecurityModule
from vending.slips.blocks import NO_UTILITY, Utility
from vending.sts.errors import MalformedToken
from vending.vends import VendingError, VendLimits

# A vend takes some 10 ms, so six connections sell some hundred a second; the rest of the server's connections
# belong to ingest and the other processes.
POOL_CONNECTIONS_MAX = 6
# The server has this long to accept the first connection at start.
OPEN_TIMEOUT_S = 10.0
# The locks that make a database busy are held for milliseconds; 2 s lets a burst pass.
RETRY_AFTER_S = 2
_CODE_OF_STATUS: Mapping[int, str] = {404: "unknown_path", 405: "method_not_allowed"}
_STATUS_UNREADABLE = 422
_STATUS_NOT_THIS_METHOD = 405
# What is refused by a code of its own.
_Coded = VendingError | BadAmount | BadThreshold | MalformedToken | StatementError | RecordConflict
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PLACE_CHARACTERS_MAX = 80
_FAULTS_MAX = 3

_log = structlog.get_logger(__name__)


# Held sales are confirmed within minutes; a till that was switched off for the night confirms the next day.
HELD_MAX_S = 172_800


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
    utility: Utility = NO_UTILITY,
    master: bytes | None = None,
    plain_keys: PlainKeys = PlainKeys.LOOPBACK,
    look_every_ms: int = LOOK_EVERY_MS,
    online: OnlineSettings | None = None,
    held_max_s: int = HELD_MAX_S,
    clock: Callable[[], int] = wall_clock_ms,
) -> FastAPI:
    """Build the application; its lifespan opens and closes the pool. Without a master key no request can be signed."""
    metrics = VendingMetrics()
    if isinstance(security_module, RiskLimitedModule):
        metrics.registry.register(RiskFigures(security_module))
    desk = Desk(
        rules=PostingRules(calendar=calendar, stale_ms=None if stale_reading_s is None else stale_reading_s * 1000),
        limits=VendLimits(min_minor=vend_min_minor, max_minor=vend_max_minor),
        security_module=security_module,
        clock=clock,
    )
    gate = _gate(master, plain_keys, look_every_ms=look_every_ms, clock=clock)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = make_pool(database_url, application="vending", size_max=POOL_CONNECTIONS_MAX)
        await pool.open(wait=True, timeout=OPEN_TIMEOUT_S)
        keys = None if master is None else coupon_keys(master)
        try:
            async with (
                open_online(pool, desk, online) as recharge,
                open_keypad(pool, desk, keys),
                taking_back_held(pool, desk, held_max_s=held_max_s, count=metrics.never_confirmed),
            ):
                app.state.vending = AppState(
                    desk=desk,
                    pool=pool,
                    metrics=metrics,
                    gate=gate,
                    sms_secret=sms_secret,
                    utility=utility,
                    coupon_keys=keys,
                    online=recharge,
                )
                yield
        finally:
            await pool.close()

    app = FastAPI(title="Prepaid vending", version="1", lifespan=lifespan, redirect_slashes=False)
    _add_routes(app)
    _add_error_answers(app)
    app.openapi = partial(_document, app)  # type: ignore[method-assign]  # FastAPI's own way to change its document.
    _add_middleware(app, metrics)
    return app


def _add_routes(app: FastAPI) -> None:
    app.include_router(sale_router)
    app.include_router(router)
    app.include_router(advice_router)
    app.include_router(act_router)
    app.include_router(issue_router)
    app.include_router(access_router)
    app.include_router(receipt_router)
    app.include_router(statement_router)
    app.include_router(float_router)
    app.include_router(contact_router)
    app.include_router(consumer_router)
    app.include_router(threshold_router)
    app.include_router(page_router)
    app.include_router(payment_router)
    app.include_router(recharge_page_router)
    app.include_router(coupon_router)
    app.include_router(xmlvend_router)


def _add_middleware(app: FastAPI, metrics: VendingMetrics) -> None:
    # The one added last sees a request first.
    app.add_middleware(Trail, connection=lambda scope: scope["app"].state.vending.pool.connection())
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


def _gate(master: bytes | None, plain_keys: PlainKeys, *, look_every_ms: int, clock: Callable[[], int]) -> Gate:
    # What is not the installation's opens no secret; the trail's digests then agree within this process only.
    key = master or secrets.token_bytes(MASTER_KEY_BYTES)
    return Gate(
        ring=KeyRing(master=key, clock=clock, steady_ms=_steady_ms, look_every_ms=look_every_ms),
        limiter=Limiter(steady_ms=_steady_ms),
        plain_keys=plain_keys,
        master=key,
        clock=clock,
    )


def _steady_ms() -> int:
    return time.monotonic_ns() // 1_000_000


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


def _document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document without what FastAPI adds by itself: a malformed request is answered 400 here."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for methods in document["paths"].values():
            for operation in methods.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema


def _add_error_answers(app: FastAPI) -> None:
    """Give every kind of failure its answer."""
    for kind in get_args(_Coded):
        app.add_exception_handler(kind, _coded)
    app.add_exception_handler(TokenUnreadable, _unreadable)
    app.add_exception_handler(RequestDeclined, _declined)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ModuleAbsent, _module_absent)
    # The pool's time-outs are operational errors too; a session ended for idling in a transaction is not.
    app.add_exception_handler(psycopg.OperationalError, _busy)
    app.add_exception_handler(psycopg.errors.IdleInTransactionSessionTimeout, _busy)
    app.add_exception_handler(Exception, _internal)


async def _coded(request: Request, error: Exception) -> Response:
    assert isinstance(error, _Coded), type(error)
    headers = {"www-authenticate": "ApiKey"} if error.code == "api_key_wrong" else None
    if isinstance(error, TooManyRequests):
        headers = {"retry-after": str(error.retry_after_s)}
    return _refuse(request, error.code, str(error), status_of(error.code), headers)


async def _unreadable(request: Request, error: Exception) -> Response:
    assert isinstance(error, TokenUnreadable), type(error)
    return _refuse(request, error.token_code, str(error), _STATUS_UNREADABLE)


async def _declined(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestDeclined), type(error)
    reason = error.declined.reason
    return _refuse(request, reason.value, error.declined.message, status_of(reason.value))


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


async def _module_absent(request: Request, error: Exception) -> Response:
    assert isinstance(error, ModuleAbsent), type(error)
    _log.warning("security_module_absent", code=error.code)
    message = "security module: expected an answer in time, got none; try again, a vend under the same message id"
    return _refuse(request, error.code, message, 503, {"retry-after": str(RETRY_AFTER_S)})


async def _internal(request: Request, error: Exception) -> Response:
    _log.error("internal_error", error=type(error).__name__, route=_route_of(request.scope))
    message = "server: expected to answer, met a fault of its own; try again, a vend under the same message id"
    return _refuse(request, "internal_error", message, 500)


def _refuse(
    request: Request, code: str, message: str, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    route = _route_of(request.scope)
    act = act_of(request.scope)
    if act is not None:
        act.refused(code)
    _log.info("request_refused", code=code, status=status, method=request.method, route=route)
    if (request.method, route) == ("POST", "/v1/vends"):
        state_of(request).metrics.vend_answered(code)
    if route == XMLVEND_PATH and status != _STATUS_NOT_THIS_METHOD:
        return refused_as_fault(request, code, message, status, headers)
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
