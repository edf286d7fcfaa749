"""The routes of contacts, of the codes that prove them, and of messages that the SMS gateway hands over.

Stage: between HTTP and the desks. Never: a transaction of its own, or a message without a good signature.
"""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from billing.notices.signing import NONCE_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, judge_signature
from vending.edges.contact_desk import add_contact, drop_contact, read_contacts, send_code, verify_code
from vending.edges.contact_errors import ERROR_OF_FAULT, SmsNotConfigured
from vending.edges.contact_models import (
    CodeAnswer,
    CodeBody,
    ContactAnswer,
    ContactBody,
    ContactsAnswer,
    InboundAnswer,
    InboundBody,
)
from vending.edges.refusals import refusals
from vending.edges.routes import AccountPath, CallerOf, answer, state_of
from vending.edges.sms_desk import InboundMessage, answer_message

_log = structlog.get_logger(__name__)
contact_router = APIRouter()

ContactPath = Annotated[int, Path(alias="contact", ge=1, le=2**63 - 1, examples=[17])]
_MS = 1_000


@contact_router.get(
    "/v1/accounts/{id}/contacts",
    summary="Read where a consumer is reached",
    response_model=ContactsAnswer,
    responses=refusals("unknown_account", "unknown_contact"),
)
async def get_contacts(account: AccountPath, request: Request, caller: CallerOf) -> Response:
    """Return every contact in use; addresses are masked for vendors."""
    async with state_of(request).pool.connection() as conn:
        return answer(await read_contacts(conn, caller, account))


@contact_router.post(
    "/v1/accounts/{id}/contacts",
    summary="Add a contact",
    response_model=ContactAnswer,
    responses=refusals("bad_address", "unknown_account", "too_many_contacts"),
)
async def post_contact(account: AccountPath, body: ContactBody, request: Request, caller: CallerOf) -> Response:
    """Add a telephone number or e-mail address, or change its language and priority; harmless twice."""
    async with state_of(request).pool.connection() as conn:
        contact = await add_contact(conn, caller, account, body)
    _log.info("contact_added", account=account, contact_id=contact["id"], channel=body.channel, key_id=caller.key_id)
    return answer(contact)


@contact_router.delete(
    "/v1/accounts/{id}/contacts/{contact}",
    summary="Take a contact out of use",
    response_model=ContactsAnswer,
    responses=refusals("unknown_account", "unknown_contact"),
)
async def delete_contact(account: AccountPath, contact: ContactPath, request: Request, caller: CallerOf) -> Response:
    """Send nothing there any more; return the contacts that are left."""
    state = state_of(request)
    async with state.pool.connection() as conn:
        left = await drop_contact(conn, caller, account, contact, now_ms=state.desk.clock())
    _log.info("contact_removed", account=account, contact_id=contact, key_id=caller.key_id)
    return answer(left)


@contact_router.post(
    "/v1/accounts/{id}/contacts/{contact}/code",
    summary="Send a code to a contact",
    status_code=202,
    response_model=CodeAnswer,
    responses=refusals("unknown_account", "unknown_contact", "too_many_codes"),
)
async def post_code(account: AccountPath, contact: ContactPath, request: Request, caller: CallerOf) -> Response:
    """Send six digits to the contact; they hold for ten minutes and take the place of earlier ones."""
    state = state_of(request)
    async with state.pool.connection() as conn:
        sent = await send_code(conn, caller, account, contact, now_ms=state.desk.clock())
    _log.info("code_sent", account=account, contact_id=contact, key_id=caller.key_id)
    return answer(sent, status=202)


@contact_router.post(
    "/v1/accounts/{id}/contacts/{contact}/verify",
    summary="Give a contact's code back",
    response_model=ContactAnswer,
    responses=refusals("unknown_account", "unknown_contact", "code_wrong", "code_expired", "code_spent", "no_code"),
)
async def post_verification(
    account: AccountPath, contact: ContactPath, body: CodeBody, request: Request, caller: CallerOf
) -> Response:
    """Prove the contact: from now on notices go there."""
    state = state_of(request)
    async with state.pool.connection() as conn:
        proven = await verify_code(conn, caller, account, contact, body.code, now_ms=state.desk.clock())
    _log.info("contact_verified", account=account, contact_id=contact, key_id=caller.key_id)
    return answer(proven)


@contact_router.post(
    "/v1/sms/inbound",
    summary="Hand over a message of a person",
    response_model=InboundAnswer,
    responses=refusals(
        "bad_address",
        "signature_missing",
        "signature_expired",
        "signature_wrong",
        "sms_not_configured",
        "message_id_reused",
        is_open=True,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": InboundBody.model_json_schema()}},
        },
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": {"type": "string"}}
            for name in (TIMESTAMP_HEADER, NONCE_HEADER, SIGNATURE_HEADER)
        ],
    },
)
async def post_inbound(request: Request) -> Response:
    """Answer BAL, USE, TOKEN, REDEEM, STOP, START once for each message id; the gateway may repeat a request freely."""
    state = state_of(request)
    raw = await request.body()
    _require_signature(request, state.sms_secret, raw, now_s=state.desk.clock() // _MS)
    try:
        body = InboundBody.model_validate_json(raw)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from None
    message = InboundMessage(message_id=body.message_id, sender=body.sender, text=body.text)
    async with state.pool.connection() as conn:
        outcome = await answer_message(conn, state.desk, message, state.coupon_keys)
    _log.info("sms_received", message_id=body.message_id, outcome=outcome.value)
    return answer({"message_id": body.message_id, "outcome": outcome.value})


def _require_signature(request: Request, secret: bytes | None, body: bytes, *, now_s: int) -> None:
    if secret is None:
        raise SmsNotConfigured("sms: expected an installation that takes messages, got one without PREPAID_SMS_SECRET")
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    fault = judge_signature(request.headers, secret=secret, method=request.method, path=path, body=body, now_s=now_s)
    if fault is not None:
        raise ERROR_OF_FAULT[fault]("message: expected a signature under the shared secret, made lately, got none good")
