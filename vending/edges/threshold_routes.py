"""The route by which a consumer says when to be warned.

Stage: between HTTP and the threshold desk. Never: a transaction of its own, or an account of somebody else.
"""

from __future__ import annotations

import structlog
from fastapi import APIRouter, Request, Response

from vending.edges.consumer_answers import thresholds_to_api
from vending.edges.consumer_models import ThresholdsAnswer, ThresholdsBody
from vending.edges.consumer_routes import ConsumerPath, own_account
from vending.edges.models import ErrorAnswer
from vending.edges.routes import CallerOf, answer, state_of
from vending.edges.threshold_desk import put_thresholds, read_thresholds

_log = structlog.get_logger(__name__)
threshold_router = APIRouter(prefix="/v1/consumer", tags=["consumer"])

_REFUSALS = {
    400: "`malformed`, `bad_amount`, `bad_threshold`: out of range, or two equal",
    401: "`api_key_wrong`",
    403: "`not_allowed`: a vendor, another's account, an engineer for `me`",
    404: "`unknown_account`",
    503: "`database_busy`: try again",
}


@threshold_router.put(
    "/{account}/thresholds",
    summary="Choose when to be warned",
    response_model=ThresholdsAnswer,
    responses={
        **{status: {"model": ErrorAnswer, "description": text} for status, text in _REFUSALS.items()},
        "default": {"model": ErrorAnswer, "description": "any other refusal or error"},
    },
)
async def put_wishes(account: ConsumerPath, body: ThresholdsBody, request: Request, caller: CallerOf) -> Response:
    """Put these wishes in the place of those before; one at or above the balance warns at once. Repeat freely."""
    wanted = read_thresholds(body.thresholds)
    state = state_of(request)
    async with state.pool.connection() as conn:
        own = await own_account(conn, caller, account)
        done = await put_thresholds(conn, state.desk, own, wanted)
    _log.info("thresholds_set", account=own.number, key_id=caller.key_id, wishes=len(wanted), changed=done.changed)
    return answer(thresholds_to_api(done.found))
