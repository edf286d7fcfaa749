"""XMLVend's use cases on the vending desk: each is one call of the desk, answered in XMLVend's form.

Stage: between the XMLVend route and the same desk that the other routes ask. Whatever is refused, kept or counted is so
by the desk. Never: HTTP, XML as text, a rule of its own but which message of a station is which of the desk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import structlog
from psycopg import AsyncConnection

from billing.calendar import from_ms
from db.floats import read_float
from db.meter_records import RecordRow, record_of_token, record_to_mint, records_of_meter
from db.vending_acts import StoredAct, find_act
from vending.advice import Advice
from vending.edges.act_routes import asking_seller, test_token_digits, utility_seller, who_asks
from vending.edges.acts import ENGINEERING, KEY_CHANGE, Asked, engineering_token, move_to_key, report_fault
from vending.edges.advice import AWAITED, advise, reprint_of
from vending.edges.auth import Caller, VendorCaller, require_engineer, require_scope, require_vendor
from vending.edges.desk import Answered, Seller, one_meter
from vending.edges.errors import RequestDeclined, VendReleased, VendUnknown
from vending.edges.issues import issue
from vending.edges.meter_desk import confirm_meter, verify_token
from vending.edges.routes import AppState, seller_of
from vending.edges.store import sell, stored_vend, trial
from vending.roles import Scope
from vending.vends import Declined, Funding, VendOrder, VendState, read_order
from vending.xmlvend import answers
from vending.xmlvend.answers import MeterFacts, Reply, Till
from vending.xmlvend.errors import ClientMismatch
from vending.xmlvend.names import UseCase
from vending.xmlvend.requests import (
    AdviceAsked,
    EngineeringAsked,
    FaultAsked,
    Head,
    MessageId,
    MeterAsked,
    TestAsked,
    TokenAsked,
    VendAsked,
    message_of,
)
from vending.xmlvend.writer import Node

_REFUSED_FROM = 400
_WITHDRAWN = "withdrawn"
_OTHER_FAULT = "other"
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An answer that says no and that the desk has stored, so that nothing is raised for it."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request on its way: who asks, what names it, and the connection that it is answered on."""

    state: AppState
    conn: AsyncConnection
    caller: Caller
    head: Head
    use_case: UseCase

    def reply(self, told: str = "") -> Reply:
        """Return the beginning of the answer, as of now."""
        return answers.reply_to(self.head, self.use_case, self.now(), told)

    def now(self) -> str:
        """Return the instant as answers have it."""
        return from_ms(self.state.desk.clock()).isoformat(timespec="milliseconds")

    async def seller(self) -> Seller:
        """Return under whose message ids the caller asks."""
        return await asking_seller(self.conn, self.caller, self.head.terminal.value, self.head.operator)


Work = Callable[[Visit, Any], Awaitable[Node | Refused]]


def require_client(caller: Caller, head: Head) -> None:
    """Hold a message's clientID and terminalID against who calls; the clientID of the utility's people is their key id.

    Raises: ClientMismatch.
    """
    is_vendor = isinstance(caller, VendorCaller)
    if head.client.value != (caller.name if isinstance(caller, VendorCaller) else caller.key_id):
        expected = "the name of the vendor" if is_vendor else "the key id"
        raise ClientMismatch(f"clientID: expected {expected} that calls, got another; key {caller.key_id}")
    if isinstance(caller, VendorCaller) and caller.terminal not in (None, head.terminal.value):
        raise ClientMismatch(f"terminalID: expected terminal {caller.terminal}, got another; key {caller.key_id}")


async def confirm_customer(visit: Visit, asked: MeterAsked) -> Node:
    """Say whose meter it is and between which amounts it may be sold to."""
    stored = await confirm_meter(visit.conn, visit.state.desk, visit.caller, asked.meter)
    refusal: Any = stored["refusal"]
    least = f"{stored['currency']} {stored['sell_at_least']}"
    told = f"Supply is on after {least} or more" if refusal is None else refusal["message"]
    meter = await _meter(visit, str(stored["meter_serial"]))
    return answers.confirm_customer(visit.reply(told), stored, meter)


async def confirm_key_data(visit: Visit, asked: MeterAsked) -> Node:
    """Say which key data a meter has."""
    stored = await confirm_meter(visit.conn, visit.state.desk, visit.caller, asked.meter)
    return answers.confirm_meter(visit.reply(), await _meter(visit, str(stored["meter_serial"])))


async def credit_vend(visit: Visit, asked: VendAsked) -> Node | Refused:
    """Sell once under the message's id."""
    vendor = require_vendor(visit.caller)
    seller = seller_of(vendor, visit.head.terminal.value, visit.head.operator)
    return await _sold(visit, seller, await sell(visit.conn, visit.state.desk, seller, _order(visit, asked)))


async def free_issue(visit: Visit, asked: VendAsked) -> Node | Refused:
    """Recharge at the utility's cost, as far as one person may."""
    engineer = require_engineer(visit.caller, Scope.ISSUE)
    seller = await utility_seller(visit.conn, engineer, Funding.FREE_ISSUE)
    order = replace(_order(visit, asked), tender=None, reason=_reason(visit))
    return await _sold(visit, seller, await issue(visit.conn, visit.state.desk, seller, order))


async def trial_credit_vend(visit: Visit, asked: VendAsked) -> Node:
    """Answer as the sale would be answered now."""
    vendor = require_vendor(visit.caller)
    seller = seller_of(vendor, visit.head.terminal.value, visit.head.operator)
    stored = await trial(visit.conn, visit.state.desk, seller, _order(visit, asked))
    meter = await _meter(visit, str(stored["meter_serial"]))
    till = await _till(visit, seller)
    return answers.credit_vend(visit.reply(), stored, meter, till, tag="r:trialCreditVendResp")


async def cancel_vend(visit: Visit, asked: TokenAsked) -> Node:
    """Refuse to cancel: XMLVend asks for it by a token that was given out.

    Raises: VendReleased.
    """
    require_vendor(visit.caller, Scope.CANCEL)
    raise VendReleased(
        f"token ...{asked.token[-4:]}: expected one that is held back, got one that was given out; send a reversal"
    )


async def reprint(visit: Visit, asked: MeterAsked) -> Node | Refused:
    """Give the vendor's last sale to a meter again."""
    vendor = require_vendor(visit.caller, Scope.READ_OWN)
    seller = seller_of(vendor, visit.head.terminal.value, visit.head.operator)
    answered = await reprint_of(visit.conn, seller, message_id=None, receipt_number=None, meter=asked.meter)
    stored = answered.stored.answer
    if answered.stored.status >= _REFUSED_FROM:
        return Refused(**_error(stored))
    known = message_of(stored["message_id"])
    response = await _receipt(visit, seller, answered, known[0] if known else _stand_in(stored), tag="r:reprint")
    return answers.reprint(visit.reply(), response)


async def verify(visit: Visit, asked: TokenAsked) -> Node:
    """Say what a token says."""
    stored = await verify_token(visit.conn, visit.state.desk, visit.caller, meter=asked.meter, token=asked.token)
    return answers.verify(visit.reply(), stored, await _till(visit, await visit.seller()))


async def update_meter_key(visit: Visit, asked: MeterAsked) -> Node:
    """Give out the tokens that move a meter to the key of its record."""
    require_scope(visit.caller, Scope.KEY_CHANGE)
    seller = await visit.seller()
    once = Asked(message_id=visit.head.message_id, meter=asked.meter, what={"changes": {}}, by=who_asks(visit.caller))
    given = await move_to_key(visit.conn, visit.state.desk, seller, once, changes={}, reason=_reason(visit))
    before, after = await _key_change(visit, given.answer)
    told = f"{given.answer['notice']}. {given.answer['warning']}"
    return answers.update_meter_key(visit.reply(told), given.answer, before, after, await _till(visit, seller))


async def engineering(visit: Visit, asked: EngineeringAsked) -> Node:
    """Make a token that sets or clears something in a meter."""
    engineer = require_engineer(visit.caller, Scope.ENGINEERING)
    seller, reason = await visit.seller(), _reason(visit)
    what = {"kind": asked.order, "value": asked.value, "reason": reason}
    once = Asked(message_id=visit.head.message_id, meter=asked.meter, what=what, by=who_asks(engineer))
    given = await engineering_token(
        visit.conn, visit.state.desk, seller, once, kind=asked.order, value=asked.value, reason=reason
    )
    meter = await _meter(visit, given.answer["meter_serial"], given.answer["token"]["digits"])
    return answers.engineering(visit.reply(), given.answer, meter, await _till(visit, seller))


async def test_token(visit: Visit, asked: TestAsked) -> Node:
    """Give the token that tests any meter."""
    require_scope(visit.caller, Scope.VERIFY)
    return answers.test_token(visit.reply(), asked.kind, test_token_digits(asked.test))


async def log_fault(visit: Visit, asked: FaultAsked) -> Node:
    """Keep a fault that a customer tells of."""
    vendor = require_vendor(visit.caller)
    seller = seller_of(vendor, visit.head.terminal.value, visit.head.operator)
    what = {"what": _OTHER_FAULT, "note": asked.note, "phone": asked.phone}
    once = Asked(message_id=visit.head.message_id, meter=asked.meter, what=what, by=who_asks(vendor))
    stored = await report_fault(
        visit.conn, visit.state.desk, seller, once, what=_OTHER_FAULT, note=asked.note, phone=asked.phone
    )
    return answers.fault_logged(visit.reply(), stored.answer)


async def confirm_advice(visit: Visit, asked: AdviceAsked) -> Node:
    """Take the word that a sale came about."""
    state = await _advised(visit, asked, Advice.CONFIRM)
    told = "Kept until the sale comes" if state == AWAITED else ""
    return answers.confirmation(visit.reply(told), asked.about, confirmed=state == VendState.CONFIRMED)


async def reverse_advice(visit: Visit, asked: AdviceAsked) -> Node:
    """Take the word that a sale did not come about; a refused one needs no taking back."""
    state = await _advised(visit, asked, Advice.REVERSE)
    taken_back = state in (VendState.REVERSED, VendState.REFUSED)
    told = "" if taken_back else "The token was given out: it stands until the meter or the utility decides"
    return answers.reversal(visit.reply(told), asked.about, reversed_now=taken_back)


async def last_response(visit: Visit, asked: AdviceAsked) -> Node:
    """Give again what an earlier message of this terminal was answered, waiting for a sale that is under way.

    Raises: VendUnknown where nothing was stored under it.
    """
    require_scope(visit.caller, Scope.READ_OWN if isinstance(visit.caller, VendorCaller) else Scope.READ_ALL)
    seller = await visit.seller()
    message_id = asked.about.ours(visit.head.terminal.value)
    try:
        answered = await stored_vend(visit.conn, seller, message_id)
    except VendUnknown:
        act = await find_act(visit.conn, seller.vendor_id, message_id)
        if act is None:
            raise
        response = await _act_again(visit, seller, act, asked.about)
    else:
        response = await _receipt(visit, seller, answered, asked.about, tag="b:lastResponse")
    return answers.last_response(visit.reply(), asked.about, response)


WORK_OF: Mapping[UseCase, Work] = {
    UseCase.CONFIRM_CUSTOMER: confirm_customer,
    UseCase.CONFIRM_METER: confirm_key_data,
    UseCase.CREDIT_VEND: credit_vend,
    UseCase.TRIAL_CREDIT_VEND: trial_credit_vend,
    UseCase.FREE_ISSUE: free_issue,
    UseCase.CANCEL_VEND: cancel_vend,
    UseCase.REPRINT: reprint,
    UseCase.VERIFY: verify,
    UseCase.UPDATE_METER_KEY: update_meter_key,
    UseCase.METER_SPECIFIC_ENG: engineering,
    UseCase.NON_METER_SPECIFIC_ENG: test_token,
    UseCase.REPORT_FAULT: log_fault,
    UseCase.CONFIRMATION: confirm_advice,
    UseCase.REVERSAL: reverse_advice,
    UseCase.LAST_RESPONSE: last_response,
}


def _order(visit: Visit, asked: VendAsked) -> VendOrder:
    return read_order(
        message_id=visit.head.message_id,
        meter=asked.meter,
        amount=asked.amount,
        units=asked.units,
        tender=asked.tender,
    )


async def _sold(visit: Visit, seller: Seller, answered: Answered) -> Node | Refused:
    visit.state.metrics.vend_answered(answered.outcome)
    if answered.stored.status >= _REFUSED_FROM:
        return Refused(**_error(answered.stored.answer))
    return await _receipt(visit, seller, answered, visit.head.message, tag="")


async def _receipt(visit: Visit, seller: Seller, answered: Answered, about: MessageId, *, tag: str) -> Node:
    """Write a stored answer to a sale: as the answer itself, or with a tag within another one."""
    stored = answered.stored.answer
    is_free = stored.get("kind") is not None
    use_case = UseCase.FREE_ISSUE if is_free else UseCase.CREDIT_VEND
    reply = visit.reply()
    if tag:
        at = stored.get("issued_at", reply.at)
        reply = replace(reply, message=about, at=at, header=answers.header_of(use_case))
    if answered.stored.status >= _REFUSED_FROM:
        error = _error(stored)
        return answers.fault_response(reply, error["code"], error["message"], use_case, tag=tag)
    meter = await _meter(visit, stored["meter_serial"], stored["token"]["digits"])
    till = await _till(visit, seller)
    name = "freeIssueResp" if is_free else "creditVendResp"
    if not tag:
        return answers.credit_vend(reply, stored, meter, till, tag=f"r:{name}")
    return answers.credit_vend(reply, stored, meter, till, tag=tag, kind=f"r:{name[0].upper()}{name[1:]}")


async def _act_again(visit: Visit, seller: Seller, act: StoredAct, about: MessageId) -> Node:
    stored, tag = act.answer, "b:lastResponse"
    reply = replace(visit.reply(), message=about, at=stored["issued_at"])
    if act.act == KEY_CHANGE:
        before, after = await _key_change(visit, stored)
        reply = replace(reply, header=answers.header_of(UseCase.UPDATE_METER_KEY))
        till = await _till(visit, seller)
        return answers.update_meter_key(reply, stored, before, after, till, tag=tag, kind="m:UpdateMeterKeyResp")
    if act.act == ENGINEERING:
        meter = await _meter(visit, stored["meter_serial"], stored["token"]["digits"])
        reply = replace(reply, header=answers.header_of(UseCase.METER_SPECIFIC_ENG))
        return answers.engineering(reply, stored, meter, await _till(visit, seller), tag=tag)
    reply = replace(reply, header=answers.header_of(UseCase.REPORT_FAULT))
    return answers.fault_logged(reply, stored, tag=tag, kind="m:CustReportFaultResp")


async def _advised(visit: Visit, asked: AdviceAsked, advice: Advice) -> str:
    vendor = require_vendor(visit.caller)
    seller = seller_of(vendor, visit.head.terminal.value, visit.head.operator)
    message_id = asked.about.ours(visit.head.terminal.value)
    by = who_asks(vendor)
    advised = await advise(visit.conn, visit.state.desk, seller, message_id, advice, by=by, reason=None)
    _log.info(
        "vend_advised", advice=advice.value, state=advised.state, vendor_id=vendor.vendor_id, message_id=message_id
    )
    return advised.state


async def _meter(visit: Visit, serial: str, digits: str | None = None) -> MeterFacts:
    """Return a meter with the key data of the record that a token was made under, else of the one to make one under."""
    meter = await one_meter(visit.conn, serial)
    if isinstance(meter, Declined):
        raise RequestDeclined(meter)
    row = None if digits is None else await record_of_token(visit.conn, meter.id, digits)
    row = row or await record_to_mint(visit.conn, meter.id)
    return _facts(meter.drn or meter.serial, row)


async def _key_change(visit: Visit, stored: Mapping[str, Any]) -> tuple[MeterFacts, MeterFacts]:
    """Return the key data that a key change leads from and to."""
    meter = await one_meter(visit.conn, stored["meter_serial"])
    if isinstance(meter, Declined):
        raise RequestDeclined(meter)
    rows = [row for row in await records_of_meter(visit.conn, meter.id) if row.state != _WITHDRAWN]
    after = next((row for row in rows if row.version == stored["version"]), None)
    before = next((row for row in rows if row.version < stored["version"]), None)
    name = meter.drn or meter.serial
    return _facts(name, before), _facts(name, after)


def _facts(name: str, row: RecordRow | None) -> MeterFacts:
    if row is None:
        return MeterFacts(msno=name)
    return MeterFacts(
        msno=name,
        sgc=row.sgc or "",
        krn="" if row.krn is None else str(row.krn),
        ti=row.tariff_index or "",
        algorithm="" if row.ea is None else f"{row.ea:02d}",
        carrier="" if row.tct is None else f"{row.tct:02d}",
    )


async def _till(visit: Visit, seller: Seller) -> Till:
    available_minor = None
    if seller.funding is Funding.VENDOR:
        available_minor = (await read_float(visit.conn, seller.vendor_id)).available_minor
    return Till(utility=visit.state.utility.name or "", vendor=seller.name, available_minor=available_minor)


def _stand_in(stored: Mapping[str, Any]) -> MessageId:
    """Name a sale of another interface as XMLVend would: by its time, and by the number of its receipt."""
    issued_at = datetime.fromisoformat(stored["issued_at"])
    return MessageId(date_time=f"{issued_at:%Y%m%d%H%M%S}", unique_number=stored["receipt_number"])


def _error(stored: Mapping[str, Any]) -> dict[str, str]:
    return {"code": stored["error"]["code"], "message": stored["error"]["message"]}


def _reason(visit: Visit) -> str:
    return f"asked for over XMLVend by {visit.head.operator or 'a station'}"
