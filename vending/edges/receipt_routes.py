"""The route of receipts: a sale as JSON, as text for a printer, as a page.

Stage: between HTTP and the stored answer of a sale. Each text or page that leaves is counted as a print, in the
transaction that read the sale: the first is the original, the others say DUPLICATE. Never: a token that may still be
taken back, a cached page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import structlog
from fastapi import APIRouter, Query, Request, Response
from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms, to_ms
from billing.notices.kinds import Language
from db.receipt_prints import StoredSlip, add_print, read_slip
from db.vends import lock_message
from vending.edges.act_models import ReprintBody
from vending.edges.advice import reprint_of
from vending.edges.answers import without_token
from vending.edges.auth import Caller, EngineerCaller, require_scope, require_vendor
from vending.edges.errors import VendUnknown
from vending.edges.receipt_models import AnyReceipt, ReceiptQuery
from vending.edges.refusals import METER_CODES, SALE_CODES, refusals
from vending.edges.routes import AppState, CallerOf, MessagePath, answer, seller_of, state_of
from vending.edges.store import UNTIL_CONFIRMED, system_seller
from vending.roles import Scope
from vending.slips.blocks import Slip, Utility
from vending.slips.facts import SaleFacts, SaleState, facts_of
from vending.slips.html import render_html
from vending.slips.sale import Print, sale_slip, token_code
from vending.slips.text import render_text
from vending.slips.words import words_of
from vending.vends import Funding

receipt_router = APIRouter()

_log = structlog.get_logger(__name__)
_FORM_OF_TYPE = {
    "application/json": "json",
    "application/*": "json",
    "*/*": "json",
    "text/plain": "text",
    "text/html": "html",
    "text/*": "html",
}
_MEDIA_TYPES = {"text": "text/plain; charset=utf-8", "html": "text/html; charset=utf-8"}
# A receipt is of one moment and one person: nobody keeps it. A page of it runs and loads nothing.
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "vary": "Accept, Accept-Language",
    "x-content-type-options": "nosniff",
}
_FORMS: dict[str, object] = {
    "application/json": {},
    "text/plain": {"schema": {"type": "string"}},
    "text/html": {"schema": {"type": "string"}},
}
DUPLICATE_HEADER = "x-prepaid-duplicate"
# Number 1 is the original.
FIRST_COPY = 2
# Accept and Accept-Language of browsers have a dozen entries; more than these are not looked at.
_CHOICES_MAX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """How a receipt is to be shown."""

    form: str
    language: Language
    with_code: bool


@receipt_router.post(
    "/v1/reprints",
    summary="Print a sale again",
    response_model=AnyReceipt,
    responses={200: {"content": _FORMS}, **refusals(*SALE_CODES, *METER_CODES, "unknown_vend")},
)
async def post_reprint(
    body: ReprintBody, query: Annotated[ReceiptQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Find a sale by message id, by receipt number, or as this vendor's last one to a meter, and print it.

    Text and page are the receipt of that sale and say DUPLICATE with its number; as JSON it is the stored answer, and
    the number stands in the header `X-Prepaid-Duplicate`. Each is counted with the receipt's own prints.
    """
    vendor = require_vendor(caller, Scope.READ_OWN)
    state, wanted = state_of(request), _wanted(query, request)
    async with state.pool.connection() as conn:
        found = await reprint_of(
            conn,
            seller_of(vendor, body.terminal),
            message_id=body.message_id,
            receipt_number=body.receipt_number,
            meter=body.meter,
        )
        if "error" in found.stored.answer:
            return answer(found.stored.answer, status=found.stored.status)
        message_id = str(found.stored.answer["message_id"])
        sale, printed = await _print(conn, state, caller.key_id, vendor.vendor_id, message_id, wanted, is_copy=True)
    assert printed is not None, f"message_id {message_id}: a copy is always counted"
    if wanted.form == "json":
        return answer(found.stored.answer, headers={DUPLICATE_HEADER: str(printed.number - 1)})
    return _slip_of(state, sale, printed, wanted, message_id)


@receipt_router.get(
    "/v1/vends/{message_id}/receipt",
    summary="Print the receipt of a sale",
    response_model=AnyReceipt,
    responses={200: {"content": _FORMS}, **refusals(*SALE_CODES, "unknown_vend")},
)
async def get_receipt(
    message_id: MessagePath, query: Annotated[ReceiptQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Return the receipt as JSON, text or HTML; every text and page after the first says DUPLICATE.

    A vendor reads what it sold or gave out, an engineer what was issued and given out for the utility.
    """
    state = state_of(request)
    wanted = _wanted(query, request)
    async with state.pool.connection() as conn:
        vendor_id = await _vendor_id(conn, caller)
        sale, printed = await _print(conn, state, caller.key_id, vendor_id, message_id, wanted)
    if not _is_sold(sale):
        return answer(sale.answer, status=sale.status)
    if printed is None:
        headers = {**_HEADERS, "content-language": wanted.language.value}
        calendar = state.desk.rules.calendar
        shown = _to_api(sale, facts_of(sale.answer), state.utility, calendar, wanted.language)
        return answer(shown, headers=headers)
    return _slip_of(state, sale, printed, wanted, message_id)


def _slip_of(state: AppState, sale: StoredSlip, printed: Print, wanted: _Wanted, message_id: str) -> Response:
    """Answer with a slip as text or page."""
    _log.info("receipt_printed", message_id=message_id, number=printed.number)
    slip = sale_slip(
        facts_of(sale.answer),
        state=_state(sale),
        printed=printed,
        words=words_of(wanted.language),
        utility=state.utility,
        calendar=state.desk.rules.calendar,
    )
    headers = {**_HEADERS, "content-language": wanted.language.value}
    return Response(_rendered(slip, wanted), media_type=_MEDIA_TYPES[wanted.form], headers=headers)


async def _vendor_id(conn: AsyncConnection, caller: Caller) -> int:
    """Return under whose message ids a caller asks. Raises: NotAllowed."""
    if isinstance(caller, EngineerCaller):
        # A slip has tokens, which only who may give them out reads.
        require_scope(caller, Scope.ISSUE)
        return (await system_seller(conn, Funding.FREE_ISSUE)).vendor_id
    return require_vendor(caller, Scope.READ_OWN).vendor_id


async def _print(
    conn: AsyncConnection,
    state: AppState,
    key_id: str,
    vendor_id: int,
    message_id: str,
    wanted: _Wanted,
    *,
    is_copy: bool = False,
) -> tuple[StoredSlip, Print | None]:
    """Read a sale and count the print; a refusal is none, nor is JSON unless it is asked for as a copy.

    Raises: VendUnknown.
    """
    async with conn.transaction():
        # A sale under way is waited for, and two prints at once get two numbers.
        await lock_message(conn, vendor_id, message_id)
        sale = await read_slip(conn, vendor_id, message_id)
        if sale is None:
            raise VendUnknown(f"message_id {message_id}: expected one of the caller's that was answered, got none")
        if not _is_sold(sale) or (wanted.form == "json" and not is_copy):
            return sale, None
        at = from_ms(state.desk.clock())
        language = wanted.language.value
        # The station has printed the original itself, from the answer to its sale.
        least = FIRST_COPY if is_copy else 1
        number, at = await add_print(
            conn, vendor_id, message_id, at=at, key_id=key_id, form=wanted.form, language=language, least=least
        )
    return sale, Print(number=number, first_ms=to_ms(sale.first_at or at), at_ms=to_ms(at))


def _is_sold(sale: StoredSlip) -> bool:
    return "error" not in sale.answer


def _state(sale: StoredSlip) -> SaleState:
    return SaleState.CANCELLED if sale.cancelled else SaleState(sale.state)


def _rendered(slip: Slip, wanted: _Wanted) -> str:
    return render_html(slip) if wanted.form == "html" else render_text(slip, with_code=wanted.with_code)


def _to_api(
    sale: StoredSlip, facts: SaleFacts, utility: Utility, calendar: LocalCalendar, language: Language
) -> dict[str, object]:
    """Return the stored answer with what is true of it now."""
    state = _state(sale)
    printed = {
        "state": state.value,
        "issued_local": from_ms(facts.issued_ms).astimezone(calendar.zone).isoformat(timespec="seconds"),
        "language": language.value,
        "qr": token_code(facts, state),
        "utility": utility.name,
        "utility_help": utility.help_line,
        "prints": sale.prints,
        "first_printed_at": _instant(sale.first_at),
        "last_printed_at": _instant(sale.last_at),
    }
    if state.gives_token:
        return {**sale.answer, "printed": printed}
    why = UNTIL_CONFIRMED if state is SaleState.HELD else state.value
    return {**without_token(sale.answer, why), "printed": printed}


def _instant(at: datetime | None) -> str | None:
    return None if at is None else from_ms(to_ms(at)).isoformat(timespec="milliseconds")


def _wanted(query: ReceiptQuery, request: Request) -> _Wanted:
    """Choose form and language: what is asked for by name, else the first of the headers' wishes that there is."""
    types = (wish for wish in _wishes(request.headers.get("accept", "")) if wish in _FORM_OF_TYPE)
    form = _FORM_OF_TYPE[next(types, "*/*")] if query.form is None else str(query.form)
    known = {language.value: language for language in Language}
    wishes = (wish.partition("-")[0] for wish in _wishes(request.headers.get("accept-language", "")))
    first = next((known[wish] for wish in wishes if wish in known), Language.ENGLISH)
    language = first if query.lang is None else Language(query.lang)
    if form == "text" and query.charset == "ascii":
        # A printer that lacks the script gets English, whatever was wished for.
        return _Wanted(form=form, language=Language.ENGLISH, with_code=False)
    return _Wanted(form=form, language=language, with_code=query.qr)


def _wishes(header: str) -> list[str]:
    """Return what a header of content negotiation asks for, the most wanted first.

    Source: RFC 9110, 12.4.2 and 12.5: weights of q, 1 without one; 0 is not wanted.
    """
    weighed = list(_weighed(header))
    return [wish for wish, weight in sorted(weighed, key=lambda each: -each[1]) if weight]


def _weighed(header: str) -> Iterator[tuple[str, int]]:
    for entry in header.split(",")[:_CHOICES_MAX]:
        wish, *parameters = (part.strip().lower() for part in entry.split(";"))
        weights = [part.removeprefix("q=") for part in parameters if part.startswith("q=")]
        yield wish, _thousandths(weights[0]) if weights else 1_000


def _thousandths(weight: str) -> int:
    """Read a weight such as `0.8`; what is no weight is not wanted."""
    whole, _, decimals = weight.partition(".")
    digits = f"{whole}{decimals[:3].ljust(3, '0')}"
    return int(digits) if digits.isascii() and digits.isdigit() else 0
