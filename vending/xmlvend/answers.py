"""Answers of XMLVend, made of what the desk answered.

Stage: between the desk's answers, as they are stored, and the writer. Every element and type is one of the schema,
except where `docs/xmlvend.md` says so. Never: a rule, a sum, or a figure that the desk has not given.

Standard: NRS 009-6-10 (XMLVend 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from billing.money import format_minor
from vending.floats import CURRENCY
from vending.xmlvend.faults import Fault, fault_of
from vending.xmlvend.names import ENGINEERING_OF_KIND, TEST_OF_KIND, UseCase
from vending.xmlvend.requests import DeviceId, Head, MessageId
from vending.xmlvend.writer import Node, node

# An answer of the desk: JSON as it is stored.
Stored = Mapping[str, Any]

_SERVER = "prepaid"
# A rate in thousandths of a minor unit has five decimals in currency units.
_RATE_DECIMALS, _KWH_DECIMALS = 5, 3
_STEPS_SHOWN = 8
# What a token carries: its unit here, the schema's unit and resource.
_RESOURCE_OF = {
    "currency": (CURRENCY, "CurrencyResource"),
    "kWh": ("kWh", "Electricity"),
    "m3": ("m3", "Water"),
    "min": ("min", "ConnectionTime"),
    "days": ("days", "ConnectionTime"),
}
_KEY_SECTIONS = ("set1stMeterKey", "set2ndMeterKey", "set3rdMeterKey", "set4thMeterKey")
_SUBCLASS_OF = ("Electricity Token", "Water Token", "Gas Token", "Connection time Token")
_SUBCLASS_CURRENCY = "Currency Token"
_HEADER_OF: Mapping[UseCase, str] = {
    UseCase.CONFIRM_CUSTOMER: "Confirm Customer",
    UseCase.CONFIRM_METER: "Confirm Meter",
    UseCase.CREDIT_VEND: "Credit Vend",
    UseCase.TRIAL_CREDIT_VEND: "Trial Credit Vend",
    UseCase.FREE_ISSUE: "Free Issue",
    UseCase.CANCEL_VEND: "Cancel Vend",
    UseCase.REPRINT: "Reprint",
    UseCase.VERIFY: "Verify Token",
    UseCase.UPDATE_METER_KEY: "Update Meter Key",
    UseCase.METER_SPECIFIC_ENG: "Engineering Token",
    UseCase.NON_METER_SPECIFIC_ENG: "Test Token",
    UseCase.REPORT_FAULT: "Fault Report",
    UseCase.CONFIRMATION: "Confirmation Advice",
    UseCase.REVERSAL: "Reversal Advice",
    UseCase.LAST_RESPONSE: "Last Response Advice",
    UseCase.VENDOR_STATEMENT: "Vendor Statement",
    UseCase.START_BATCH: "Start Batch",
    UseCase.END_BATCH: "End Batch",
    UseCase.TOTAL_BATCH: "Batch Total",
    UseCase.REPRINT_END_BATCH: "Reprint End Batch",
}
_FAULT_HEADER = "Request refused"
_ENGINEERING_ELEMENT = {
    "PwrLmtReq": "pwrLmtToken",
    "PhUnbalReq": "phUnbalance",
    "ClearCreditReq": "clearCredit",
    "ClearTamperReq": "clearTamper",
    "SetWaterFactorReq": "waterFactor",
}
_KIND_OF_ENGINEERING = {order: kind for kind, order in ENGINEERING_OF_KIND.items()}
_MANAGEMENT_OF_SUBCLASS = {
    0: "SetPwrLmt",
    1: "ClearCred",
    3: "EngKCT",
    4: "EngKCT",
    5: "ClearTamper",
    6: "SetPhUnbalance",
    7: "SetWaterFact",
    8: "EngKCT",
    9: "EngKCT",
}
_CLASS_CREDIT, _CLASS_MANAGEMENT = 0, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterFacts:
    """A meter with its key data, empty where it has none."""

    msno: str
    sgc: str = ""
    krn: str = ""
    ti: str = ""
    algorithm: str = ""
    carrier: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Till:
    """What each answer to a sale tells besides: the utility, the vendor, and what it could sell now.

    Units: minor units; None where no credit limit bounds it.
    """

    utility: str
    vendor: str
    available_minor: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Whom an answer goes to, about which message, when, under which header and words."""

    client: DeviceId
    terminal: DeviceId
    message: MessageId
    at: str
    header: str
    told: str = ""

    def nodes(self) -> tuple[Node, ...]:
        """Return the elements with which each answer begins."""
        told = (node("b:operatorMsg", text=self.told),) if self.told else ()
        return (
            device("b:clientID", self.client),
            node("b:serverID", kind="b:GenericDeviceID", id=_SERVER),
            device("b:terminalID", self.terminal),
            message("b:reqMsgID", self.message),
            node("b:respDateTime", text=self.at),
            node("b:dispHeader", text=self.header),
            *told,
        )


def reply_to(head: Head, use_case: UseCase | None, at: str, told: str = "") -> Reply:
    """Return the beginning of the answer to a request."""
    return Reply(
        client=head.client,
        terminal=head.terminal,
        message=head.message,
        at=at,
        header=_FAULT_HEADER if use_case is None else _HEADER_OF[use_case],
        told=told,
    )


def header_of(use_case: UseCase) -> str:
    """Return the header under which a use case is answered."""
    return _HEADER_OF[use_case]


def device(tag: str, named: DeviceId) -> Node:
    """Write a client or terminal as it was sent."""
    if named.is_ean:
        return node(tag, kind="b:EANDeviceID", ean=named.value)
    return node(tag, kind="b:GenericDeviceID", id=named.value)


def message(tag: str, named: MessageId) -> Node:
    """Write a message id as it was sent."""
    return node(tag, dateTime=named.date_time, uniqueNumber=named.unique_number)


def money(tag: str, amount_minor: int) -> Node:
    """Write an amount: a decimal of currency units with the currency's symbol."""
    return node(tag, value=format_minor(amount_minor), symbol=CURRENCY)


def fault_response(reply: Reply | None, code: str, text: str, use_case: UseCase | None, *, tag: str = "") -> Node:
    """Write the answer that says no; without `reply` that to somebody who is not known."""
    fault = fault_of(code, use_case)
    head = reply.nodes() if reply is not None else (node("b:dispHeader", text=_FAULT_HEADER),)
    said = node(
        "b:fault",
        node("b:desc", text=text),
        node("b:faultCode", text=code),
        kind=f"b:{fault.type_name}",
    )
    return node(tag or "b:xmlvendFaultResp", *head, said, kind="b:XMLVendFaultResp" if tag else "")


def soap_fault(reply: Reply | None, code: str, text: str, use_case: UseCase | None) -> Node:
    """Write a SOAP 1.1 fault with XMLVend's own in its detail."""
    side = "soap:Server" if fault_of(code, use_case) is Fault.SYSTEM else "soap:Client"
    return node(
        "soap:Fault",
        node("faultcode", text=side),
        node("faultstring", text=text),
        node("detail", fault_response(reply, code, text, use_case)),
    )


def confirm_customer(reply: Reply, stored: Stored, meter: MeterFacts) -> Node:
    """Write whose meter it is, whether it may be sold to, and between which amounts."""
    result = node(
        "r:confirmCustResult",
        node(
            "r:custVendDetail",
            name=stored["consumer"],
            address="",
            accNo=stored["account_number"],
        ),
        node(
            "r:custVendConfig",
            node("r:canVend", text="true" if stored["vendable"] else "false"),
            money("r:maxVendAmt", stored["vend_max_minor"]),
            money("r:minVendAmt", stored["vend_min_minor"]),
        ),
        _meter_detail("r:meterDetail", meter),
    )
    return node("r:confirmCustomerResp", *reply.nodes(), result)


def confirm_meter(reply: Reply, meter: MeterFacts) -> Node:
    """Write the key data of a meter."""
    return node(
        "m:confirmMeterResp",
        *reply.nodes(),
        node("m:confirmMeterResult", _meter_detail("m:meterDetail", meter)),
    )


def credit_vend(
    reply: Reply, stored: Stored, meter: MeterFacts, till: Till, *, tag: str = "r:creditVendResp", kind: str = ""
) -> Node:
    """Write the receipt of a sale, of a trial or of a free issue."""
    paid_minor = stored["earlier_arrears_paid_minor"]
    free = stored.get("kind") is not None
    credit = node(
        "r:tx",
        money("r:amt", stored["amount_minor"] - paid_minor),
        _credit_token(stored, meter, kind="b:FreeCredTokenIssue" if free else "b:SaleCredTokenIssue"),
        _key_tokens("r:kcTokenIssue", stored, meter, meter) if stored["key_change_tokens"] else None,
        _tariff(stored),
        kind="r:CreditVendTx",
        receiptNo=stored.get("receipt_number") or "",
    )
    arrears = node(
        "r:tx",
        money("r:amt", paid_minor),
        node("r:accDesc", text="Earlier arrears"),
        money("r:balance", stored["earlier_arrears_left_minor"]),
        kind="r:DebtRecoveryTx",
    )
    transactions = node(
        "r:transactions",
        credit,
        arrears if paid_minor else None,
        money("r:tenderAmt", 0 if free else stored["amount_minor"]),
        money("r:change", 0),
    )
    receipt = node("r:creditVendReceipt", transactions, receiptNo=stored.get("receipt_number") or "")
    return node(tag, *reply.nodes(), *_till(till, stored["account_number"]), receipt, kind=kind)


def update_meter_key(
    reply: Reply,
    stored: Stored,
    before: MeterFacts,
    after: MeterFacts,
    till: Till,
    *,
    tag: str = "m:updateMeterKeyResp",
    kind: str = "",
) -> Node:
    """Write a key-change set; the tokens in the order in which they are entered."""
    issue = _key_tokens("m:updateMeterKey", stored, before, after)
    return node(tag, *reply.nodes(), *_till(till, ""), issue, kind=kind)


def engineering(
    reply: Reply, stored: Stored, meter: MeterFacts, till: Till, *, tag: str = "m:meterSpecificEngResp"
) -> Node:
    """Write a token that sets or clears something in a meter."""
    kind = _KIND_OF_ENGINEERING[stored["order"]]
    order, value = stored["order"], str(stored["value"])
    what = None
    if order in ("power_limit", "unbalance_limit"):
        what = node("b:pwrLmt", value=value, siUnit="W")
    elif order == "water_factor":
        what = node("b:waterFactor", value=value)
    issue = node(
        f"m:{_ENGINEERING_ELEMENT[kind]}",
        node("b:desc", text=order.replace("_", " ")),
        _meter_detail("b:meterDetail", meter),
        _sts_token("b:token", stored["token"]["digits"]),
        what,
    )
    return node(tag, *reply.nodes(), *_till(till, ""), issue, kind=f"m:{kind.removesuffix('Req')}Resp")


def test_token(reply: Reply, kind: str, digits: str) -> Node:
    """Write a token that tests any meter."""
    issue = node(
        f"m:{TEST_OF_KIND[kind][1]}",
        node("m:desc", text=kind.removesuffix("Req")),
        node("m:meterType", at="07", tt="02"),
        _sts_token("m:token", digits),
    )
    return node("m:nonMeterSpecificEngResp", *reply.nodes(), issue, kind=f"m:{kind.removesuffix('Req')}Resp")


def fault_logged(reply: Reply, stored: Stored, *, tag: str = "m:custReportFaultResp", kind: str = "") -> Node:
    """Write the number under which a reported fault is kept."""
    log = node(
        "m:custFaultLog",
        node("m:custDetail", name="", address=""),
        node(
            "m:faultReport",
            node("m:desc", text=stored["what"]),
            node("m:meterInfo", node("b:meterIdentifier", kind="b:MeterNumber", msno=stored["meter_serial"])),
            kind="m:MeterFaultReport",
        ),
        refNo=stored["fault_number"],
    )
    return node(tag, *reply.nodes(), log, kind=kind)


def verify(reply: Reply, stored: Stored, till: Till) -> Node:
    """Write what a token says."""
    info = node(
        "r:tokenInfo",
        node("b:tokenID", text=str(stored["tid"] or 0)),
        node("b:transferAmt", text=stored["amount"] or "0"),
        node("b:tokenClass", _token_class(stored["class"], stored["subclass"])),
        kind="b:STS1TokenInfo",
    )
    return node("r:verifyResp", *reply.nodes(), *_till(till, ""), info)


def reprint(reply: Reply, response: Node) -> Node:
    """Write a sale again."""
    return node("r:reprintResp", *reply.nodes(), response)


def last_response(reply: Reply, about: MessageId, response: Node) -> Node:
    """Write what an earlier message was answered."""
    return node(
        "b:adviceResp",
        *reply.nodes(),
        message("b:adviceReqMsgID", about),
        response,
        kind="b:LastRespAdviceResp",
    )


def confirmation(reply: Reply, about: MessageId, *, confirmed: bool) -> Node:
    """Write whether a sale stands confirmed."""
    return node(
        "b:adviceResp",
        *reply.nodes(),
        message("b:adviceReqMsgID", about),
        kind="b:ConfirmationAdviceResp",
        txConfirmed="true" if confirmed else "false",
    )


def reversal(reply: Reply, about: MessageId, *, reversed_now: bool) -> Node:
    """Write whether a sale is taken back."""
    return node(
        "b:adviceResp",
        *reply.nodes(),
        message("b:adviceReqMsgID", about),
        kind="b:ReversalAdviceResp",
        txReversed="true" if reversed_now else "false",
    )


def _till(till: Till, account: str) -> tuple[Node, ...]:
    # Without a credit limit nothing bounds what is available: a figure would be a made-up one.
    credit = None if till.available_minor is None else money("b:availCredit", till.available_minor)
    status = node("b:clientStatus", credit, node("b:batchStatus", banking="open", sales="open", shift="open"))
    customer = (node("b:custVendDetail", name="", address="", accNo=account),) if account else ()
    return (
        status,
        node("b:utility", name=till.utility, address="", taxRef=""),
        node("b:vendor", name=till.vendor, address=""),
        *customer,
    )


def _meter_detail(tag: str, meter: MeterFacts) -> Node:
    kind = node("b:meterType", at=meter.algorithm, tt=meter.carrier)
    return node(tag, kind, msno=meter.msno, sgc=meter.sgc, krn=meter.krn, ti=meter.ti)


def _sts_token(tag: str, digits: str) -> Node:
    return node(tag, node("b:stsCipher", text=digits), kind="b:STS1Token")


def _credit_token(stored: Stored, meter: MeterFacts, *, kind: str) -> Node:
    token = stored["token"]
    unit, resource = _RESOURCE_OF[token["unit"] or "currency"]
    # A trial has no token: nothing is shown that somebody could type.
    cipher = None if token["digits"] is None else _sts_token("b:token", token["digits"])
    return node(
        "r:creditTokenIssue",
        node("b:desc", text="Credit token"),
        _meter_detail("b:meterDetail", meter),
        cipher,
        node("b:units", value=token["amount"], siUnit=unit),
        node("b:resource", kind=f"b:{resource}"),
        kind=kind,
    )


def _key_tokens(tag: str, stored: Stored, before: MeterFacts, after: MeterFacts) -> Node:
    tokens = [each["digits"] for each in stored["key_change_tokens"]]
    sections = [
        node(f"b:{name}", node("b:stsCipher", text=digits), kind="b:STS1Token")
        for name, digits in zip(_KEY_SECTIONS, tokens, strict=False)
    ]
    data = node(
        "b:kctData",
        fromSGC=before.sgc,
        fromKRN=before.krn,
        fromTI=before.ti,
        toSGC=after.sgc,
        toKRN=after.krn,
        toTI=after.ti,
    )
    return node(
        tag,
        node("b:desc", text=f"Enter these {len(tokens)} tokens first, in this order"),
        _meter_detail("b:meterDetail", after),
        node("b:token", *sections, kind="b:KCToken"),
        data,
    )


def _tariff(stored: Stored) -> Node | None:
    """Say what the credit buys, step by step of the tariff."""
    steps = (stored.get("buys") or {}).get("steps", [])[:_STEPS_SHOWN]
    if not steps:
        return None
    told = "; ".join(
        f"{_decimal(step['energy_wh'], _KWH_DECIMALS, 1)} kWh x "
        f"{_decimal(step['rate_milli_per_kwh'], _RATE_DECIMALS, 2)} = {step['amount']}"
        for step in steps
    )
    return node("r:tariff", node("b:name", text="Running tariff"), node("b:desc", text=told))


def _token_class(token_class: int | None, subclass: int | None) -> Node | None:
    if token_class == _CLASS_CREDIT and subclass is not None:
        unit = _SUBCLASS_OF[subclass] if subclass < len(_SUBCLASS_OF) else _SUBCLASS_CURRENCY
        return node("b:credit", text=unit)
    if token_class == _CLASS_MANAGEMENT and subclass in _MANAGEMENT_OF_SUBCLASS:
        return node("b:meterManagement", text=_MANAGEMENT_OF_SUBCLASS[subclass])
    return None


def _decimal(number: int, decimals: int, least: int) -> str:
    """Print an integer of 10^-decimals with no more decimals than it needs, and `least` of them."""
    whole, rest = divmod(number, 10**decimals)
    return f"{whole}.{f'{rest:0{decimals}d}'.rstrip('0'):0<{least}}"
