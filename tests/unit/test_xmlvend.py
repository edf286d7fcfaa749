"""XMLVend messages: hostile bytes refused, requests read exactly, answers well-formed, faults complete."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.money import BadAmount
from tests.integration.xmlvend_till import AT, BASE, METER, NAMES, REVENUE
from vending.errors_catalogue import CATALOGUE
from vending.floats import BatchKind
from vending.vends import MESSAGE_ID_PATTERN, Tender, read_message_id
from vending.xmlvend.answers import MeterFacts, Reply, Till, credit_vend, soap_fault
from vending.xmlvend.errors import MeterDataMissing, NotAMessage, SchemaRefused, UseCaseUnsupported
from vending.xmlvend.faults import _CODES_OF, FAULT_OF_CODE, FAULT_WITHIN, Fault, fault_of
from vending.xmlvend.names import ADVICE_OF_KIND, USE_CASE_OF, UseCase
from vending.xmlvend.requests import (
    TERMINAL_CHARACTERS_MAX,
    Asked,
    BatchAsked,
    DeviceId,
    EngineeringAsked,
    Head,
    MessageId,
    VendAsked,
    message_of,
    read_envelope,
    read_head,
    read_request,
    read_use_case,
)
from vending.xmlvend.tree import ATTRIBUTES_MAX, BYTES_MAX, DEPTH_MAX, ELEMENTS_MAX, read_tree
from vending.xmlvend.writer import document, node

PAGE = Path(__file__).parents[2] / "docs" / "xmlvend.md"
SOAP = NAMES["soap"]
# As a POS in the field writes it: default namespaces that change on the way, types without prefixes.
FIELD = f"""<?xml version="1.0" encoding="UTF-8"?>
<s:Envelope xmlns:s="{SOAP}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><s:Header/><s:Body>
 <n:creditVendReq xmlns:n="{REVENUE}" xsi:type="n:CreditVendReq">
  <clientID xmlns="{BASE}" xsi:type="EANDeviceID" ean="0000000000001"> </clientID>
  <terminalID xmlns="{BASE}" xsi:type="GenericDeviceID" id="T17"/>
  <msgID xmlns="{BASE}" dateTime="20261121171500" uniqueNumber="000009"/>
  <authCred xmlns="{BASE}"><opName>AG0502</opName><password>1234</password></authCred>
  <resource xmlns="{BASE}" xsi:type="Electricity"/>
  <idMethod xmlns="{BASE}" xsi:type="VendIDMethod">
   <meterIdentifier xsi:type="MeterNumber" msno="01234567897"/></idMethod>
  <n:purchaseValue xsi:type="n:PurchaseValueCurrency"><n:amt value="20.5" symbol="inr"/></n:purchaseValue>
  <extra xmlns="urn:maker">passed over</extra>
 </n:creditVendReq></s:Body></s:Envelope>""".encode()
HEAD = (
    f'<b:clientID ean="1"/><b:terminalID id="T17"/><b:msgID dateTime="{AT}" uniqueNumber="1"/>'
    '<b:idMethod><b:meterIdentifier msno="PB1"/></b:idMethod>'
)
REPLY = Reply(
    client=DeviceId(is_ean=False, value='a<b>&"'),
    terminal=DeviceId(is_ean=True, value="1"),
    message=MessageId(date_time=AT, unique_number="9"),
    at="2026-11-21T12:00:00.000+00:00",
    header="Credit Vend",
    told="no \x00 \x0b \ud800 ]]> here",
)


def test_message_of_the_field_is_read_to_the_paisa() -> None:
    """Namespaces and types as stations write them; time, number and terminal make one id, whatever zeros lead."""
    request, head = _read(FIELD)
    assert head == Head(
        client=DeviceId(is_ean=True, value="0000000000001"),
        terminal=DeviceId(is_ean=False, value="T17"),
        message=MessageId(date_time=AT, unique_number="000009"),
        operator="AG0502",
    )
    assert head.message_id == f"x:{AT}.9:T17"
    assert message_of(head.message_id) == (MessageId(date_time=AT, unique_number="9"), "T17")
    assert request == VendAsked(meter="01234567897", amount="20.50", units=None, tender=Tender.CASH)
    assert message_of("T17-20261121-000042") is None


def test_longest_message_id_of_a_station_fits_ours() -> None:
    """Milliseconds, 18 digits and the longest terminal are one id of the desk."""
    longest = MessageId(date_time="9" * 17, unique_number="9" * 18).ours("T" * TERMINAL_CHARACTERS_MAX)
    assert read_message_id(longest) == longest
    assert MESSAGE_ID_PATTERN == r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"


_ENTITIES = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
HOSTILE = {
    "entity bomb": _ENTITIES + FIELD.partition(b"?>")[2].replace(b"passed over", b"&b;&b;&b;"),
    "file": b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
    "dtd": b'<!DOCTYPE a SYSTEM "http://example.invalid/a.dtd"><a/>',
    "parameter entity": b'<!DOCTYPE a [<!ENTITY % p SYSTEM "http://example.invalid/">%p;]><a/>',
    "undeclared entity": b"<a>&nbsp;</a>",
    "processing instruction": FIELD.replace(b"<s:Header/>", b"<?php evil ?><s:Header/>"),
    "huge": b"<a>" + b"x" * BYTES_MAX + b"</a>",
    "deep": b"<a>" * (DEPTH_MAX + 1) + b"</a>" * (DEPTH_MAX + 1),
    "wide": b"<a>" + b"<b/>" * ELEMENTS_MAX + b"</a>",
    "attributes": b"<a " + b" ".join(b"a%d='1'" % n for n in range(ATTRIBUTES_MAX + 1)) + b"/>",
    "empty": b"",
    "cut": FIELD[:-5],
    "two roots": b"<a/><b/>",
    "zero": b"<a>\0</a>",
    "not UTF-8": b"<a>\xff\xfe</a>",
    "unknown encoding": b'<?xml version="1.0" encoding="no-such"?><a/>',
    "no text encoding": b'<?xml version="1.0" encoding="hex"?><a/>',
    "unbound prefix": b"<x:a/>",
    "JSON": b'{"amount": "1"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_no_message(name: str) -> None:
    """No document type, no entity, nothing huge, deep or broken: refused with nothing expanded or fetched."""
    with pytest.raises(NotAMessage):
        read_tree(HOSTILE[name])


@given(st.binary(max_size=200), st.integers(0, len(FIELD) - 1))
def test_any_damage_is_refused_by_name_or_read(damage: bytes, at: int) -> None:
    """Whatever bytes come in whatever place, nothing but our own refusals is raised."""
    with suppress(NotAMessage, SchemaRefused, MeterDataMissing, UseCaseUnsupported, BadAmount):
        _read(FIELD[:at] + damage + FIELD[at + len(damage) :])


@pytest.mark.parametrize(
    ("was", "now", "refusal"),
    [
        (SOAP, "http://www.w3.org/2003/05/soap-envelope", NotAMessage),
        ("s:Body", "s:Other", NotAMessage),
        (REVENUE, REVENUE.replace("2.1", "3.0"), SchemaRefused),
        (REVENUE, METER, UseCaseUnsupported),
        (BASE, "urn:another", SchemaRefused),
        ("creditVendReq", "fbeReq", UseCaseUnsupported),
        ("creditVendReq", "creditVend", SchemaRefused),
        ('uniqueNumber="000009"', 'uniqueNumber="9.5"', SchemaRefused),
        ('dateTime="20261121171500"', 'dateTime="2026-11-21T17:15"', SchemaRefused),
        ('id="T17"', 'id="T 17"', SchemaRefused),
        ('id="T17"', f'id="{"T" * (TERMINAL_CHARACTERS_MAX + 1)}"', SchemaRefused),
        ('ean="0000000000001"', "", SchemaRefused),
        ("AG0502", "AG 0502", SchemaRefused),
        ('msno="01234567897"', 'msno="0123/../97"', SchemaRefused),
        ('msno="01234567897"', 'track2Data="60072701234567897=2099"', MeterDataMissing),
        ('value="20.5"', 'value="20.505"', BadAmount),
        ('value="20.5"', 'value="2e1"', BadAmount),
        ('value="20.5"', 'value="-1"', BadAmount),
        ('value="20.5"', 'value="٢٠"', BadAmount),
        ('symbol="inr"', 'symbol="ZAR"', SchemaRefused),
        ("</n:purchaseValue>", "</n:purchaseValue><n:purchaseValue/>", SchemaRefused),
        ("<extra ", f'<n:payType xmlns:n="{REVENUE}" xsi:type="Shells"/><extra ', SchemaRefused),
    ],
)
def test_wrong_message_is_refused_by_what_is_wrong(was: str, now: str, refusal: type[Exception]) -> None:
    """A wrong namespace, use case, id, meter, amount or tender: each is told, and none is guessed at."""
    assert was in FIELD.decode()
    with pytest.raises(refusal):
        _read(FIELD.decode().replace(was, now).encode())


@pytest.mark.parametrize(
    ("sent", "amount"), [("20", "20.00"), ("0020.500000", "20.50"), ("+7.05", "7.05"), ("0", "0.00")]
)
def test_decimal_of_the_schema_is_an_exact_amount(sent: str, amount: str) -> None:
    """Zeros at both ends say nothing; what would be a fraction of a paisa is refused, never rounded."""
    asked, _ = _read(FIELD.decode().replace('value="20.5"', f'value="{sent}"').encode())
    assert isinstance(asked, VendAsked)
    assert asked.amount == amount


@pytest.mark.parametrize(
    ("kind", "tender"),
    [
        ("Cash", Tender.CASH),
        ("Cheque", Tender.CHEQUE),
        ("CreditCard", Tender.CARD),
        ("DebitCard", Tender.CARD),
        ("Unknown", None),
    ],
)
def test_tender_is_read_by_its_type(kind: str, tender: Tender | None) -> None:
    """Each tender of the schema is one of ours; one without a name is none."""
    asked, _ = _ask("creditVendReq", f'{HEAD}<r:purchaseValue><r:units value="25.0" siUnit="kWh"/></r:purchaseValue>'
                    f'<r:payType xsi:type="b:{kind}"/>')  # fmt: skip
    assert asked == VendAsked(meter="PB1", amount=None, units="25.0", tender=tender)


def test_requests_with_types_are_read_by_their_types() -> None:
    """Batches and engineering tokens: the type says which; one that is not offered is told so."""
    shift, _ = _ask("endBatchReq", HEAD, kind="EndShiftBatchReq")
    assert shift == BatchAsked(kind=BatchKind.SHIFT, number=None)
    bank, _ = _ask("reprintEndBatchReq", f"{HEAD}<r:seqNo>7</r:seqNo>", kind="ReprintEndBankingBatchReq")
    assert bank == BatchAsked(kind=BatchKind.BANK, number=7)
    limit, _ = _ask("meterSpecificEngReq", f'{HEAD}<m:pwrLmt value="4.6" siUnit="kW"/>', kind="PwrLmtReq", prefix="m")
    assert limit == EngineeringAsked(meter="PB1", kind="PwrLmtReq", order="power_limit", value=4_600)
    with pytest.raises(UseCaseUnsupported):
        _ask("meterSpecificEngReq", HEAD, kind="DefCreditReq", prefix="m")
    with pytest.raises(SchemaRefused):
        _ask("totalBatchReq", HEAD)
    with pytest.raises(SchemaRefused):
        _ask("adviceReq", HEAD, kind="AdviceReq", prefix="b")


def test_every_code_has_exactly_one_fault() -> None:
    """A code of the catalogue without a fault, or with two, would leave a station without a word it knows."""
    assert set(FAULT_OF_CODE) == set(CATALOGUE)
    assert sum(len(codes) for codes in _CODES_OF.values()) == len(FAULT_OF_CODE)
    assert set(FAULT_OF_CODE.values()) | set(FAULT_WITHIN.values()) == set(Fault)
    assert {code for _, code in FAULT_WITHIN} <= set(CATALOGUE)
    assert fault_of("unknown_vend", UseCase.REPRINT) is Fault.REPRINT
    assert fault_of("unknown_vend", None) is Fault.LAST_RESPONSE


def test_page_prints_the_table_of_faults() -> None:
    """Each fault has its line with the codes that it stands for, but those that no use case comes to."""
    lines = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    told = {cells[1].strip(" `"): set(re.findall(r"`(\w+)`", cells[2])) for cells in lines if "Ex`" in cells[1]}
    assert set(told) == {fault.type_name for fault in Fault}
    for fault in set(Fault) - {Fault.BUSINESS_RULE}:
        within = {code for (_, code), named in FAULT_WITHIN.items() if named is fault}
        assert told[fault.type_name] == within.union(_CODES_OF.get(fault, ()))


def test_every_use_case_has_one_request() -> None:
    """What is offered can be asked for, under one name."""
    assert sorted([*USE_CASE_OF.values(), *ADVICE_OF_KIND.values()]) == sorted(UseCase)


def test_fault_is_well_formed_whatever_it_tells() -> None:
    """Marks are escaped, and what XML cannot write is replaced: an answer never breaks by what was sent."""
    root = ElementTree.fromstring(document(soap_fault(REPLY, "vendor_credit", "<&'\"\x1b>", None)))
    fault = root.find(".//soap:Fault", NAMES)
    assert fault is not None
    assert fault.findtext("faultstring") == "<&'\"?>"
    assert root.find(".//b:clientID", NAMES).attrib["id"] == 'a<b>&"'  # type: ignore[union-attr]  # Is there.
    assert fault.findtext(".//b:faultCode", namespaces=NAMES) == "vendor_credit"


def test_receipt_tells_arrears_key_change_and_steps_apart() -> None:
    """Transactions add up to what was paid; the tokens of a key change stand in their order beside the credit."""
    stored: dict[str, Any] = {
        "account_number": "A1",
        "amount_minor": 50_000,
        "earlier_arrears_paid_minor": 12_500,
        "earlier_arrears_left_minor": 100,
        "token": {"digits": "1" * 20, "amount": "55.1", "unit": "kWh"},
        "key_change_tokens": [{"digits": str(n) * 20} for n in range(2, 6)],
        "buys": {"steps": [{"energy_wh": 55_100, "rate_milli_per_kwh": 680_500, "amount": "374.96"}]},
        "receipt_number": "42",
    }
    meter = MeterFacts(msno="01234567897", sgc="201457", krn="2", ti="01", algorithm="11", carrier="02")
    till = Till(utility="", vendor="Station 17", available_minor=None)
    told = replace(REPLY, told="")
    root = ElementTree.fromstring(document(credit_vend(told, stored, meter, till)))
    amounts = [each.attrib["value"] for each in root.findall(".//r:tx/r:amt", NAMES)]
    assert amounts == ["375.00", "125.00"]
    assert root.find(".//r:tenderAmt", NAMES).attrib == {"value": "500.00", "symbol": "INR"}  # type: ignore[union-attr]
    sections = root.findall(".//r:kcTokenIssue/b:token/*", NAMES)
    assert ["".join(each.itertext()) for each in sections] == [str(n) * 20 for n in range(2, 6)]
    assert root.findtext(".//r:tariff/b:desc", namespaces=NAMES) == "55.1 kWh x 6.805 = 374.96"
    assert root.find(".//b:availCredit", NAMES) is None
    stored["token"]["digits"] = None
    assert b"<b:stsCipher>1" not in document(credit_vend(told, stored, meter, till))


@given(st.text(max_size=40))
def test_written_text_is_read_back(text: str) -> None:
    """What is written is read by our own reader as it was, but for characters that XML does not have."""
    root = read_tree(document(node("b:desc", text=f"[{text}]", value=text)))
    kept = "".join(each if _is_xml(each) else "?" for each in text)
    assert root.children[0].children[0].text == f"[{kept}]".replace("\r\n", "\n").replace("\r", "\n")


def _is_xml(character: str) -> bool:
    code = ord(character)
    return character in "\t\n\r" or 0x20 <= code < 0xD800 or 0xE000 <= code < 0xFFFE or code >= 0x10000


def _read(body: bytes) -> tuple[Asked, Head]:
    element = read_envelope(read_tree(body))
    head = read_head(element)
    return read_request(element, read_use_case(element)), head


def _ask(request: str, body: str, *, kind: str = "", prefix: str = "r") -> tuple[Asked, Head]:
    typed = f' xsi:type="{prefix}:{kind}"' if kind else ""
    return _read(
        f'<s:Envelope xmlns:s="{SOAP}" xmlns:b="{BASE}" xmlns:r="{REVENUE}" xmlns:m="{METER}"'
        f' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><s:Body><{prefix}:{request}{typed}>{body}'
        f"</{prefix}:{request}></s:Body></s:Envelope>".encode()
    )
