"""What a caller may do, and who did what: the two questions about access that are asked over HTTP.

Stage: beside the other routes. Reads only.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from billing.calendar import from_ms
from db.api_access import TrailQuestion, TrailRow, read_trail
from vending.edges.auth import Caller, ReaderCaller, VendorCaller, require_scope
from vending.edges.errors import BadInstant
from vending.edges.refusals import refusals
from vending.edges.routes import CallerOf, answer, state_of
from vending.receipt import money_to_api
from vending.roles import Scope

ROWS_MAX = 1_000
access_router = APIRouter()


class DayLimitAnswer(BaseModel):
    """What may be sold on a local day; null is no limit."""

    terminal: str = Field(description="empty for the whole vendor")
    vends: int | None
    amount: str | None
    amount_minor: int | None


class CallerAnswer(BaseModel):
    """Who a key is."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "key_id": "0f3c9a1be7d24c58",
                    "role": "vendor",
                    "scopes": ["float", "key_change", "read_own", "sell", "verify"],
                    "vendor": "Station 17",
                    "active": True,
                    "terminal": "T17",
                    "day_limits": [{"terminal": "T17", "vends": 200, "amount": None, "amount_minor": None}],
                    "at": "2026-11-21T12:00:00+00:00",
                }
            ]
        }
    )

    key_id: str
    role: str
    scopes: list[str]
    vendor: str | None = None
    active: bool | None = None
    terminal: str | None = None
    area: str | None = Field(default=None, description="the one area that a reader sees")
    day_limits: list[DayLimitAnswer] = Field(default_factory=list)
    at: str = Field(description="our clock, which a signature's time is compared with")


class ActAnswer(BaseModel):
    """One act of the audit trail."""

    id: int
    at: str
    actor: str
    role: str
    key_id: str | None
    terminal: str | None
    operator: str | None
    act: str
    subject: str
    reference: str
    outcome: str
    status: int | None
    request_digest: str | None


class TrailAnswer(BaseModel):
    """Acts, the newest first; `next` is the number to go on before, null at the end."""

    acts: list[ActAnswer]
    next: int | None


@access_router.get("/v1/me", summary="Read what a key may do", response_model=CallerAnswer, responses=refusals())
async def get_me(request: Request, caller: CallerOf) -> Response:
    """Return role, scopes and limits of the key that calls: the first request to try a signature with."""
    return answer(caller_to_api(caller, state_of(request).desk.clock()))


@access_router.get(
    "/v1/audit-trail",
    summary="Read who did what",
    response_model=TrailAnswer,
    responses=refusals("bad_instant"),
)
async def get_trail(
    request: Request,
    caller: CallerOf,
    key: Annotated[str | None, Query(max_length=64, description="a key's id")] = None,
    actor: Annotated[str | None, Query(max_length=200, description="a vendor, or who it was")] = None,
    act: Annotated[str | None, Query(max_length=200, description="how the act begins")] = None,
    subject: Annotated[str | None, Query(max_length=200, description="a meter, an account, a key")] = None,
    outcome: Annotated[str | None, Query(max_length=64)] = None,
    since: Annotated[datetime | None, Query(description="an instant with its zone")] = None,
    until: Annotated[datetime | None, Query(description="an instant with its zone")] = None,
    before: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=ROWS_MAX, description="acts at most")] = 100,
) -> Response:
    """Return acts that fit everything that is given, the newest first."""
    require_scope(caller, Scope.READ_TRAIL)
    question = TrailQuestion(
        key_id=_stored(key),
        actor=_stored(actor),
        act=_stored(act),
        subject=_stored(subject),
        outcome=_stored(outcome),
        since=_zoned("since", since),
        until=_zoned("until", until),
        before_id=before,
        limit=limit,
    )
    async with state_of(request).pool.connection() as conn:
        rows = await read_trail(conn, question)
    following = rows[-1].id if len(rows) == limit else None
    return answer({"acts": [_act_to_api(row) for row in rows], "next": following})


def caller_to_api(caller: Caller, now_ms: int) -> dict[str, object]:
    """Return who a caller is."""
    own: dict[str, object] = {}
    if isinstance(caller, VendorCaller):
        own = {
            "vendor": caller.name,
            "active": caller.active,
            "terminal": caller.terminal,
            "day_limits": [
                {
                    "terminal": limit.terminal,
                    "vends": limit.vends_max,
                    **(
                        {"amount": None, "amount_minor": None}
                        if limit.amount_max is None
                        else money_to_api("amount", limit.amount_max)
                    ),
                }
                for limit in caller.day_limits
            ],
        }
    elif isinstance(caller, ReaderCaller):
        own = {"area": caller.area}
    return {
        "key_id": caller.key_id,
        "role": caller.role.value,
        "scopes": sorted(caller.scopes),
        **own,
        "at": from_ms(now_ms).isoformat(),
    }


def _act_to_api(row: TrailRow) -> dict[str, object]:
    shown = {name: getattr(row, name) for name in TrailRow.__dataclass_fields__}
    digest = row.request_digest
    return shown | {"at": row.at.isoformat(), "request_digest": None if digest is None else digest.hex()}


def _zoned(name: str, at: datetime | None) -> datetime | None:
    if at is not None and at.tzinfo is None:
        raise BadInstant(f"{name}: expected an instant with its zone, got one without")
    return at


def _stored(text: str | None) -> str | None:
    """Return a text that may be asked for: PostgreSQL has none with a zero in it, and so has the trail."""
    return None if text is None else text.replace("\0", "")
