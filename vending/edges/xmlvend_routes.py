"""The route of XMLVend: one address, one message, one answer.

Stage: between HTTP and XMLVend's use cases on the desk. Whoever calls is let in by the same gate as elsewhere, before
the message is read. A SOAP message that is refused is answered with a SOAP fault under status 500, as SOAP 1.1 asks and
stations expect; what is no SOAP message, and who is not let in, with the status of the code. Never: a transaction of
its own; a line of a message in a log.

Standard: SOAP 1.1, section 6.2; NRS 009-6-10 (XMLVend 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from fastapi import APIRouter, Request, Response

from billing.calendar import from_ms
from vending.edges.refusals import Responses, refusals
from vending.edges.routes import CallerOf, state_of
from vending.edges.xmlvend_batches import BATCH_WORK_OF
from vending.edges.xmlvend_desk import WORK_OF, Refused, Visit, require_client
from vending.errors_catalogue import described
from vending.xmlvend.answers import reply_to, soap_fault
from vending.xmlvend.errors import NotAMessage
from vending.xmlvend.faults import FAULT_OF_CODE, fault_of
from vending.xmlvend.names import UseCase
from vending.xmlvend.requests import Head, read_envelope, read_head, read_request, read_use_case
from vending.xmlvend.tree import read_tree
from vending.xmlvend.writer import Node, document

XMLVEND_PATH = "/xmlvend"
STATUS_FAULT = 500
_MEDIA = "text/xml; charset=utf-8"
_TEXT_XML: dict[str, object] = {"text/xml": {"schema": {"type": "string"}}}
_WORK = {**WORK_OF, **BATCH_WORK_OF}

_log = structlog.get_logger(__name__)
xmlvend_router = APIRouter(tags=["XMLVend"])


@dataclass(slots=True, kw_only=True)
class _Heard:
    """How much of a SOAP message was understood when it was refused."""

    head: Head | None = None
    use_case: UseCase | None = None


class _XmlResponse(Response):
    media_type = "text/xml"


def _responses() -> Responses:
    """Describe the statuses of the route: what is no message, who is not let in, and SOAP faults."""
    told: Responses = {status: each for status, each in refusals().items() if status in (408, 413)}
    at_gate = described(
        "malformed",
        "api_key_wrong",
        "signature_missing",
        "signature_expired",
        "signature_wrong",
        "nonce_reused",
        "not_allowed",
        "too_many_requests",
        "database_busy",
    )
    for status, text in {
        200: "an XMLVend response",
        **at_gate,
        STATUS_FAULT: "a SOAP fault with an xmlvendFaultResp; `faultCode` is ours",
    }.items():
        told[status] = {"description": text, "content": _TEXT_XML}
    return told


@xmlvend_router.post(
    XMLVEND_PATH,
    summary="Take an XMLVend 2.1 request",
    response_class=_XmlResponse,
    responses=_responses(),
    openapi_extra={"requestBody": {"required": True, "content": _TEXT_XML}},
)
async def post_message(request: Request, caller: CallerOf) -> Response:
    """Take one SOAP 1.1 message of XMLVend 2.1 and answer in its form, by the same rules as every other interface."""
    if "xml" not in request.headers.get("content-type", ""):
        # A page in a browser cannot send this type elsewhere without asking first: it borrows no client certificate.
        raise NotAMessage("content-type: expected text/xml, got another")
    element = read_envelope(read_tree(await request.body()))
    heard = request.state.xmlvend = _Heard()
    heard.head = head = read_head(element)
    require_client(caller, head)
    heard.use_case = use_case = read_use_case(element)
    caller.act.act = f"POST {XMLVEND_PATH} {use_case.value}"
    caller.act.reference = head.message_id
    asked = read_request(element, use_case)
    state = state_of(request)
    async with state.pool.connection() as conn:
        visit = Visit(state=state, conn=conn, caller=caller, head=head, use_case=use_case)
        done = await _WORK[use_case](visit, asked)
    outcome = done.code if isinstance(done, Refused) else "answered"
    _log.info("xmlvend_answered", use_case=use_case.value, outcome=outcome, message_id=head.message_id)
    if isinstance(done, Refused):
        return _fault(request, heard, done.code, done.message, STATUS_FAULT)
    return Response(document(done), media_type=_MEDIA)


def refused_as_fault(
    request: Request, code: str, message: str, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer a refusal of this route in its form; `status` is what it has elsewhere."""
    heard: _Heard | None = getattr(request.state, "xmlvend", None)
    if heard is not None and heard.use_case is UseCase.CREDIT_VEND:
        state_of(request).metrics.vend_answered(code)
    return _fault(request, heard, code, message, status if heard is None else STATUS_FAULT, headers)


def _fault(
    request: Request,
    heard: _Heard | None,
    code: str,
    message: str,
    status: int,
    headers: Mapping[str, str] | None = None,
) -> Response:
    assert code in FAULT_OF_CODE, f"code {code}: stands for a fault"
    at = from_ms(state_of(request).desk.clock()).isoformat(timespec="milliseconds")
    use_case = None if heard is None else heard.use_case
    reply = None
    if heard is not None and heard.head is not None:
        reply = reply_to(heard.head, use_case, at, message)
    fault: Node = soap_fault(reply, code, message, use_case)
    _log.info("xmlvend_fault", fault=fault_of(code, use_case).value, code=code, status=status)
    return Response(document(fault), status_code=status, media_type=_MEDIA, headers=dict(headers or {}))
