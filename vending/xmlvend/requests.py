"""XMLVend requests as typed values.

Stage: after the tree, before the desk. Enters: the elements of a message. Leaves: who sends it under which id, and what
is asked. Children are found by their names in any of the three namespaces, and those that are not known are passed
over, as the stations of the field need it; the request itself must stand in its own namespace. Never: a password, a
card number or what else of the tender is nobody's business here.

Standard: SOAP 1.1; NRS 009-6-10 (XMLVend 2.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from billing.money import BadAmount
from vending.floats import CURRENCY, BatchKind
from vending.sts.management import REGISTER_ALL
from vending.vends import METER_PATTERN, TERMINAL_PATTERN, MalformedRequest, Tender, read_units
from vending.xmlvend.errors import MeterDataMissing, NotAMessage, SchemaRefused, UseCaseUnsupported
from vending.xmlvend.names import (
    ADVICE,
    ADVICE_OF_KIND,
    BASE,
    ENGINEERING_OF_KIND,
    NAMESPACES,
    REQUEST_SUFFIX,
    SOAP,
    TEST_OF_KIND,
    USE_CASE_OF,
    UseCase,
)
from vending.xmlvend.tree import Element

# Time and number of a message id, and of a terminal, that with their marks fit the 64 characters of ours.
_DATE_TIME = re.compile(r"[0-9]{14}(?:[0-9]{3})?")
_UNIQUE_NUMBER = re.compile(r"[0-9]{1,18}")
TERMINAL_CHARACTERS_MAX = 25
_MESSAGE_ID = re.compile(r"x:([0-9]{14,17})\.([0-9]{1,18}):(.+)")
_TERMINAL = re.compile(TERMINAL_PATTERN.strip("^$"))
_METER = re.compile(METER_PATTERN.strip("^$"))
_DECIMAL = re.compile(r"\+?([0-9]{1,12})(?:\.([0-9]{1,6}))?")
_PHONE = re.compile(r"\+?[0-9 -]{6,20}")
_NOTE_CHARACTERS_MAX = 500
_BATCH_MAX = 2**31 - 1
_WATT_OF = {"W": 1, "KW": 1000}
# Where the tender is left out it was cash, as elsewhere; `Unknown` is any tender without a name of its own.
_TENDER_OF: Mapping[str, Tender | None] = {
    "": Tender.CASH,
    "Cash": Tender.CASH,
    "Cheque": Tender.CHEQUE,
    "CreditCard": Tender.CARD,
    "DebitCard": Tender.CARD,
    "Unknown": None,
}
_BATCH_OF = {
    "Sales": BatchKind.SALES,
    "Shift": BatchKind.SHIFT,
    "Bank": BatchKind.BANK,
    "Banking": BatchKind.BANK,
}
_BATCH_TYPE = re.compile(r"(?:Start|End|Total|ReprintEnd)(Sales|Shift|Bank|Banking|All)Batch(?:es)?Req")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceId:
    """A client or a terminal: an EAN, or a name of any form."""

    is_ean: bool
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageId:
    """What a station calls a message; unique for its terminal.

    Invariants: `date_time` has 14 or 17 digits, `unique_number` 1 to 18, as they were sent.
    """

    date_time: str
    unique_number: str

    def ours(self, terminal: str) -> str:
        """Return the message id of the desk that stands for this one of a terminal, whatever zeros lead its number."""
        return f"x:{self.date_time}.{int(self.unique_number)}:{terminal}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Who sends a message under which id; `operator` is the name in its credentials."""

    client: DeviceId
    terminal: DeviceId
    message: MessageId
    operator: str | None

    @property
    def message_id(self) -> str:
        """The message id under which the desk keeps this request."""
        return self.message.ours(self.terminal.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterAsked:
    """What is asked of one meter: its confirmation, a reprint, its key change."""

    meter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VendAsked:
    """A sale, a trial or a free issue; one of `amount` and `units` is set, in the form of the desk."""

    meter: str
    amount: str | None
    units: str | None
    tender: Tender | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceAsked:
    """An advice about an earlier message of the same terminal."""

    about: MessageId


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAsked:
    """A token of a meter that is to be read, or cancelled."""

    meter: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineeringAsked:
    """A token that sets or clears something; `order` as `vending.engines.orders` names it."""

    meter: str
    kind: str
    order: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TestAsked:
    """A token that tests any meter, by its number."""

    kind: str
    test: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultAsked:
    """A fault that a customer tells of."""

    meter: str
    note: str
    phone: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAsked:
    """A batch to be started, ended or read; `kind` is None for all of them, `number` for the open or the last one."""

    kind: BatchKind | None
    number: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementAsked:
    """The vendor's own statement."""


Asked = (
    MeterAsked
    | VendAsked
    | AdviceAsked
    | TokenAsked
    | EngineeringAsked
    | TestAsked
    | FaultAsked
    | BatchAsked
    | StatementAsked
)


def read_envelope(root: Element) -> Element:
    """Return the one element in the body of a SOAP 1.1 message.

    Raises: NotAMessage.
    """
    if (root.namespace, root.name) != (SOAP, "Envelope"):
        raise NotAMessage("message: expected an envelope of SOAP 1.1, got another element")
    bodies = [child for child in root.children if (child.namespace, child.name) == (SOAP, "Body")]
    if len(bodies) != 1 or len(bodies[0].children) != 1:
        raise NotAMessage("message: expected one body with one request in it, got none or more")
    return bodies[0].children[0]


def read_head(request: Element) -> Head:
    """Read who sends a request under which id.

    Raises: SchemaRefused.
    """
    operator = _child(request, "authCred", "opName")
    name = operator.text if operator is not None and operator.text else None
    if name is not None and not _TERMINAL.fullmatch(name):
        raise SchemaRefused("opName: expected 1-64 letters, digits, dots, colons, dashes, got another form")
    client, terminal = _device(request, "clientID"), _device(request, "terminalID")
    if not _TERMINAL.fullmatch(terminal.value) or len(terminal.value) > TERMINAL_CHARACTERS_MAX:
        raise SchemaRefused(
            f"terminalID: expected 1-{TERMINAL_CHARACTERS_MAX} letters, digits, dots, colons, dashes, got another form"
        )
    return Head(client=client, terminal=terminal, message=_message(request, "msgID"), operator=name)


def read_use_case(request: Element) -> UseCase:
    """Tell which use case a request is of.

    Raises: UseCaseUnsupported for one of XMLVend's that is not offered; SchemaRefused for what is none.
    """
    name = (request.namespace, request.name)
    if name == ADVICE and request.kind in ADVICE_OF_KIND:
        return ADVICE_OF_KIND[request.kind]
    if name == ADVICE:
        raise SchemaRefused("adviceReq: expected the type of one of the three advices, got another")
    if name in USE_CASE_OF:
        return USE_CASE_OF[name]
    if request.namespace in NAMESPACES and request.name.endswith(REQUEST_SUFFIX):
        raise UseCaseUnsupported(f"{request.name[:40]}: expected a use case that is offered here, got another")
    raise SchemaRefused("message: expected a request of XMLVend 2.1 in its namespace, got another element")


def read_request(request: Element, use_case: UseCase) -> Asked:
    """Read what is asked.

    Raises: SchemaRefused, BadAmount, MeterDataMissing, UseCaseUnsupported.
    """
    return _READER_OF[use_case](request)


def message_of(message_id: str) -> tuple[MessageId, str] | None:
    """Return the message and the terminal that a message id of the desk stands for; None for one of another origin."""
    match = _MESSAGE_ID.fullmatch(message_id)
    return None if match is None else (MessageId(date_time=match[1], unique_number=match[2]), match[3])


def _vend(request: Element) -> VendAsked:
    value = _child(request, "purchaseValue")
    if value is None:
        raise SchemaRefused("purchaseValue: expected one, got none")
    amount, units = _child(value, "amt"), _child(value, "units")
    if (amount is None) == (units is None):
        raise SchemaRefused("purchaseValue: expected amt or units, got both or none")
    tender = _child(request, "payType")
    kind = "" if tender is None else tender.kind
    if kind not in _TENDER_OF:
        raise SchemaRefused(f"payType: expected one of {', '.join(filter(None, _TENDER_OF))}, got another type")
    return VendAsked(
        meter=_meter(request),
        amount=None if amount is None else _amount(amount),
        units=None if units is None else _units(units),
        tender=_TENDER_OF[kind],
    )


def _token(request: Element) -> TokenAsked:
    cipher = _child(request, "token", "stsCipher")
    if cipher is None:
        raise SchemaRefused("token: expected an stsCipher, got none")
    return TokenAsked(meter=_meter(request), token=cipher.text[:64])


def _engineering(request: Element) -> EngineeringAsked:
    if request.kind not in ENGINEERING_OF_KIND:
        raise _unsupported_type(request)
    order = ENGINEERING_OF_KIND[request.kind]
    value = REGISTER_ALL if order == "clear_credit" else 0
    if order in ("power_limit", "unbalance_limit"):
        limit = _child(request, "pwrLmt")
        if limit is None:
            raise SchemaRefused("pwrLmt: expected one, got none")
        value = _watts(limit)
    elif order == "water_factor":
        factor = _child(request, "waterFactor")
        value = _whole("waterFactor", "" if factor is None else factor.attributes.get("value", factor.text), 65_535)
    return EngineeringAsked(meter=_meter(request), kind=request.kind, order=order, value=value)


def _test(request: Element) -> TestAsked:
    if request.kind not in TEST_OF_KIND:
        raise _unsupported_type(request)
    return TestAsked(kind=request.kind, test=TEST_OF_KIND[request.kind][0])


def _fault(request: Element) -> FaultAsked:
    report = _child(request, "custFaultReport")
    meter = None if report is None else _child(report, "meterInfo", "meterIdentifier")
    if report is None or meter is None:
        raise MeterDataMissing("custFaultReport: expected a MeterFaultReport that names its meter, got another")
    note = _child(report, "desc")
    text = "" if note is None else note.text
    if len(text) > _NOTE_CHARACTERS_MAX:
        raise SchemaRefused(f"desc: expected at most {_NOTE_CHARACTERS_MAX} characters, got {len(text)}")
    customer = _child(request, "custDetail")
    phone = "" if customer is None else customer.attributes.get("contactNo", "").strip()
    return FaultAsked(meter=_number_of(meter), note=text, phone=phone if _PHONE.fullmatch(phone) else None)


def _batch(request: Element) -> BatchAsked:
    match = _BATCH_TYPE.fullmatch(request.kind)
    if match is None:
        raise SchemaRefused(f"{request.name}: expected the type of a batch request, got another")
    number = _child(request, "seqNo")
    return BatchAsked(
        kind=_BATCH_OF.get(match[1]), number=None if number is None else _whole("seqNo", number.text, _BATCH_MAX)
    )


_READER_OF: Mapping[UseCase, Callable[[Element], Asked]] = {
    UseCase.CONFIRM_CUSTOMER: lambda request: MeterAsked(meter=_meter(request)),
    UseCase.CONFIRM_METER: lambda request: MeterAsked(meter=_meter(request)),
    UseCase.REPRINT: lambda request: MeterAsked(meter=_meter(request)),
    UseCase.UPDATE_METER_KEY: lambda request: MeterAsked(meter=_meter(request)),
    UseCase.CREDIT_VEND: _vend,
    UseCase.TRIAL_CREDIT_VEND: _vend,
    UseCase.FREE_ISSUE: _vend,
    UseCase.CANCEL_VEND: _token,
    UseCase.VERIFY: _token,
    UseCase.METER_SPECIFIC_ENG: _engineering,
    UseCase.NON_METER_SPECIFIC_ENG: _test,
    UseCase.REPORT_FAULT: _fault,
    UseCase.CONFIRMATION: lambda request: AdviceAsked(about=_message(request, "adviceReqMsgID")),
    UseCase.REVERSAL: lambda request: AdviceAsked(about=_message(request, "adviceReqMsgID")),
    UseCase.LAST_RESPONSE: lambda request: AdviceAsked(about=_message(request, "adviceReqMsgID")),
    UseCase.VENDOR_STATEMENT: lambda _: StatementAsked(),
    UseCase.START_BATCH: _batch,
    UseCase.END_BATCH: _batch,
    UseCase.TOTAL_BATCH: _batch,
    UseCase.REPRINT_END_BATCH: _batch,
}


def _child(element: Element, *path: str) -> Element | None:
    """Return the one child of a name, and of that its own. Raises: SchemaRefused where there are more."""
    for name in path:
        found = [child for child in element.children if child.name == name and child.namespace in NAMESPACES]
        if len(found) > 1:
            raise SchemaRefused(f"{name}: expected one, got {len(found)}")
        if not found:
            return None
        element = found[0]
    return element


def _device(request: Element, name: str) -> DeviceId:
    device = _child(request, name)
    ean = None if device is None else device.attributes.get("ean")
    value = ean if device is None or ean is not None else device.attributes.get("id")
    if value is None or not value.strip() or device is None or device.namespace != BASE:
        raise SchemaRefused(f"{name}: expected an EANDeviceID or a GenericDeviceID, got none")
    return DeviceId(is_ean=ean is not None, value=value.strip())


def _message(request: Element, name: str) -> MessageId:
    message = _child(request, name)
    attributes = {} if message is None else message.attributes
    date_time, number = attributes.get("dateTime", ""), attributes.get("uniqueNumber", "")
    if not _DATE_TIME.fullmatch(date_time) or not _UNIQUE_NUMBER.fullmatch(number):
        raise SchemaRefused(f"{name}: expected a dateTime of 14 or 17 digits and a uniqueNumber of 1 to 18")
    return MessageId(date_time=date_time, unique_number=number)


def _meter(request: Element) -> str:
    """Return the number of the meter that a request names in one of the forms of the schema."""
    method = _child(request, "idMethod")
    if method is None:
        raise SchemaRefused("idMethod: expected one, got none")
    # A key change names its meter in the method itself.
    return _number_of(_child(method, "meterIdentifier") or method)


def _number_of(meter: Element) -> str:
    number = meter.attributes.get("msno")
    if number is None:
        raise MeterDataMissing("idMethod: expected the number of a meter (MeterNumber, MeterDetail), got another form")
    if not _METER.fullmatch(number):
        raise SchemaRefused("msno: expected a serial of 1-32 letters, digits, dashes, or a DRN, got another form")
    return number


def _amount(amount: Element) -> str:
    """Read a decimal of currency units into the form of the desk: two decimals. Raises: BadAmount, SchemaRefused."""
    if amount.attributes.get("symbol", CURRENCY).upper() != CURRENCY:
        raise SchemaRefused(f"amt: expected an amount in {CURRENCY}, got another symbol")
    value = amount.attributes.get("value", "")
    match = _DECIMAL.fullmatch(value.strip())
    decimals = "" if match is None else (match[2] or "").rstrip("0")
    if match is None or len(decimals) > 2:
        raise BadAmount(f"amt: expected a decimal of at most two places, got {value[:40]!r}")
    return f"{int(match[1])}.{decimals:0<2}"


def _units(units: Element) -> str:
    """Read kWh into the form of the desk: none or one decimal. Raises: SchemaRefused."""
    value, unit = units.attributes.get("value", ""), units.attributes.get("siUnit", "")
    match = _DECIMAL.fullmatch(value.strip())
    tenths = "" if match is None else (match[2] or "").rstrip("0")
    if match is None or len(tenths) > 1 or unit.upper() != "KWH":
        raise SchemaRefused("units: expected kWh with none or one decimal, got another form")
    text = f"{int(match[1])}.{tenths:0<1}"
    try:
        read_units(text)
    except MalformedRequest as error:
        raise SchemaRefused(str(error)) from None
    return text


def _watts(limit: Element) -> int:
    value, unit = limit.attributes.get("value", ""), limit.attributes.get("siUnit", "W")
    match = _DECIMAL.fullmatch(value.strip())
    watts_per = _WATT_OF.get(unit.upper())
    decimals = "" if match is None else (match[2] or "").rstrip("0")
    if match is None or watts_per is None or (decimals and watts_per == 1) or len(decimals) > 3:
        raise SchemaRefused("pwrLmt: expected whole W, or kW with at most three decimals, got another form")
    return int(match[1]) * watts_per + int(f"{decimals:0<3}")


def _whole(name: str, text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) > most:
        raise SchemaRefused(f"{name}: expected a whole number up to {most}, got another form")
    return int(text)


def _unsupported_type(request: Element) -> UseCaseUnsupported:
    return UseCaseUnsupported(f"{request.name}: expected a type that is offered here, got {request.kind[:40]!r}")
