"""A till that speaks XMLVend: its messages as an existing POS writes them, and what it reads of the answers."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

import httpx

from tests.integration.vending_shop import Shop

BASE = "http://www.nrs.eskom.co.za/xmlvend/base/2.1/schema"
REVENUE = "http://www.nrs.eskom.co.za/xmlvend/revenue/2.1/schema"
METER = "http://www.nrs.eskom.co.za/xmlvend/meter/2.1/schema"
NAMES = {"b": BASE, "r": REVENUE, "m": METER, "soap": "http://schemas.xmlsoap.org/soap/envelope/"}
KIND = "{http://www.w3.org/2001/XMLSchema-instance}type"
AT = "20261121171500"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """An answer with its parts by path."""

    status: int
    text: str
    body: ElementTree.Element

    def one(self, path: str) -> ElementTree.Element:
        """Return the one element at a path below the body."""
        found = self.body.findall(path, NAMES)
        assert len(found) == 1, f"{path}: got {len(found)} in {self.text}"
        return found[0]

    def words(self, path: str) -> str:
        """Return the text at a path."""
        return self.one(path).text or ""

    def value(self, path: str) -> str:
        """Return the value of an amount at a path."""
        return self.one(path).attrib["value"]

    @property
    def token(self) -> str:
        """The digits of the first credit token in the answer."""
        return self.words(".//r:creditTokenIssue/b:token/b:stsCipher")

    @property
    def fault(self) -> tuple[str, str]:
        """The type of the fault, and our code."""
        fault = self.one("soap:Fault/detail/b:xmlvendFaultResp/b:fault")
        return fault.attrib[KIND].partition(":")[2], self.words(".//b:fault/b:faultCode")


@dataclass(slots=True, kw_only=True)
class Till:
    """A terminal of a vendor; each message has its number."""

    shop: Shop
    who: str = "vendor"
    client: str = "Station 17"
    terminal: str = "T17"
    operator: str = "anu"

    def message(self, request: str, number: int, body: str, *, kind: str = "", prefix: str = "r") -> str:
        """Write a message as a POS does."""
        typed = f' xsi:type="{prefix}:{kind}"' if kind else ""
        return (
            f'<soap:Envelope xmlns:soap="{NAMES["soap"]}" xmlns:b="{BASE}" xmlns:r="{REVENUE}" xmlns:m="{METER}"'
            f' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soap:Body><{prefix}:{request}{typed}>'
            f'<b:clientID xsi:type="b:GenericDeviceID" id="{self.client}"/>'
            f'<b:terminalID xsi:type="b:GenericDeviceID" id="{self.terminal}"/>'
            f'<b:msgID dateTime="{AT}" uniqueNumber="{number:06d}"/>'
            f"<b:authCred><b:opName>{self.operator}</b:opName><b:password>not for us</b:password></b:authCred>"
            f"{body}</{prefix}:{request}></soap:Body></soap:Envelope>"
        )

    async def send(self, text: str | bytes) -> Heard:
        """Send a message; whatever comes back is a SOAP message."""
        headers = {"content-type": "text/xml; charset=utf-8", "SOAPAction": '""'}
        headers |= self.shop.headers(self.who) if self.who else {}
        response = await self.shop.http.post("/xmlvend", content=text, headers=headers)
        told = self.shop.app.openapi()["paths"]["/xmlvend"]["post"]["responses"]
        assert "text/xml" in told[str(response.status_code)]["content"], (
            "the description names each status and its form"
        )
        return heard_of(response)

    async def ask(self, request: str, number: int, body: str = "", *, kind: str = "", prefix: str = "r") -> Heard:
        """Ask a use case."""
        return await self.send(self.message(request, number, body, kind=kind, prefix=prefix))

    async def vend(
        self, number: int, amount: str = "500", *, meter: str = "", more: str = "", trial: bool = False
    ) -> Heard:
        """Sell for an amount."""
        asked = f'<r:amt value="{amount}" symbol="INR"/>'
        value = f'<r:purchaseValue xsi:type="r:PurchaseValueCurrency">{asked}</r:purchaseValue>'
        body = f'<b:resource xsi:type="b:Electricity"/>{self.meter(meter)}{value}{more}'
        return await self.ask("trialCreditVendReq" if trial else "creditVendReq", number, body)

    async def advise(self, kind: str, number: int, about: int) -> Heard:
        """Send an advice about an earlier message."""
        body = f'<b:adviceReqMsgID dateTime="{AT}" uniqueNumber="{about}"/>'
        return await self.ask("adviceReq", number, body, kind=kind, prefix="b")

    def meter(self, number: str = "") -> str:
        """Name a meter as a vend does."""
        name = number or self.shop.home.serial
        named = f'<b:meterIdentifier xsi:type="b:MeterNumber" msno="{name}"/>'
        return f'<b:idMethod xsi:type="b:VendIDMethod">{named}</b:idMethod>'


def heard_of(response: httpx.Response) -> Heard:
    """Read an answer."""
    assert response.headers["content-type"].startswith("text/xml"), response.text
    root = ElementTree.fromstring(response.content)
    body = root.find("soap:Body", NAMES)
    assert body is not None, response.text
    return Heard(status=response.status_code, text=response.text, body=body)
