"""How a token reaches its meter: given out, sent to its consumer, entered by the head-end; each attempt a record.

Stage: beside the vending desk. The credit is the account's since the sale; a token that its meter has accepted, or
knows as used, is delivered whoever brought it. Never: a token's digits.
"""

from __future__ import annotations

from psycopg import AsyncConnection

from billing.notices.addresses import mask_address
from db.payments import Attempt, Delivery, read_attempts, read_delivery
from db.token_deliveries import TokenNotPushable, push_token


async def push_to_meter(conn: AsyncConnection, token_id: int) -> bool:
    """Order the head-end to enter a token at its meter; False where it is there, on its way, or has nowhere to go."""
    try:
        return await push_token(conn, token_id) is not None
    except TokenNotPushable:
        return False


async def read_token_delivery(conn: AsyncConnection, vend_id: int) -> dict[str, object]:
    """Say whether a vend's token has reached its meter, and what was tried."""
    delivered = await read_delivery(conn, vend_id)
    attempts = await read_attempts(conn, vend_id)
    return {
        "state": _state(delivered, attempts),
        "delivered_at": None if delivered is None else delivered.entered_at.isoformat(timespec="milliseconds"),
        "result": None if delivered is None else delivered.result,
        "attempts": [_attempt_to_api(each) for each in attempts],
    }


def _state(delivered: Delivery | None, attempts: list[Attempt]) -> str:
    if delivered is not None:
        return "delivered"
    if any(each.way == "meter" and each.state in ("pending", "held", "sent") for each in attempts):
        return "under_way"
    return "given_out"


def _attempt_to_api(attempt: Attempt) -> dict[str, object]:
    return {
        "way": attempt.way,
        "state": attempt.state,
        "at": attempt.at.isoformat(timespec="milliseconds"),
        "tries": attempt.tries,
        "address": None if attempt.address is None else mask_address(attempt.address),
    }
