"""What the slip of a sale is made of, read from its stored answer alone.

Stage: between the stored answer of a message id and its slip, so that a reprint in ten years says what the first print
said. Enters: JSON values as `vending.receipt` wrote them; answers of before a fact existed lack it. Never: the account
or the tariff of today.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import Any

from billing.calendar import to_ms

# JSON as it was stored: its values are of any type.
Answer = Mapping[str, Any]


class SaleState(StrEnum):
    """Where a sale stands when its slip is printed."""

    RELEASED = "released"
    CONFIRMED = "confirmed"
    HELD = "held"
    UNKNOWN = "unknown"
    REVERSED = "reversed"
    CANCELLED = "cancelled"

    @property
    def stands(self) -> bool:
        """Tell whether the sale was not taken back, or not yet."""
        return self not in (SaleState.REVERSED, SaleState.CANCELLED)

    @property
    def gives_token(self) -> bool:
        """Tell whether the token may be shown; what may still be taken back, or was, shows none."""
        return self in (SaleState.RELEASED, SaleState.CONFIRMED)


@dataclass(frozen=True, slots=True, kw_only=True)
class BillLine:
    """One line of a bill; `title` is its English one."""

    line: str
    title: str
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBought:
    """Energy at one rate; `to_wh` is None for the open last step."""

    number: int
    from_wh: int
    to_wh: int | None
    energy_wh: int
    rate_milli_per_kwh: int
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """What the credit buys; answers of before the steps were told have the energy only, and no cost."""

    energy_wh: int
    steps: tuple[StepBought, ...] = ()
    lines: tuple[BillLine, ...] = ()
    cost_minor: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BillSoFar:
    """The account's bill since a day."""

    first: date
    energy_wh: int
    lines: tuple[BillLine, ...]
    charged_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGiven:
    """The token of a sale: digits in groups, and what they carry as it was written."""

    groups: tuple[str, ...] = field(repr=False)
    tid: int | None
    carried: str | None
    unit: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credited:
    """The money of a sale; a key change has none."""

    amount_minor: int
    earlier_arrears_paid_minor: int
    earlier_arrears_left_minor: int
    arrears_cleared_minor: int
    balance_before_minor: int
    balance_after_minor: int
    supply_before: str
    supply_after: str
    restores_with_minor: int
    bought: Bought
    month: BillSoFar | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaleFacts:
    """A sale, an issue without payment, a key change, an engineering token or a fault report.

    Invariants: `key_change` has the digits of each token in the order of entry, in groups; it is empty where a key
    change is pending (`key_change_pending`) whose digits the answer does not have. `unused_tokens` are the last digits
    of those that die with the old key; `order` is what an engineering token does, with its value.
    """

    kind: str
    message_id: str
    receipt_number: str | None
    issued_ms: int
    vendor: str | None
    terminal: str | None
    operator: str | None
    tender: str | None
    account_number: str | None
    meter_serial: str
    drn: str | None
    currency: str
    credited: Credited | None
    token: TokenGiven | None
    key_change: tuple[tuple[str, ...], ...] = field(repr=False)
    key_change_pending: bool
    unused_tokens: tuple[str, ...]
    order: str | None
    order_value: int | None
    fault_number: str | None
    fault: str | None


def facts_of(answer: Answer) -> SaleFacts:
    """Read the facts of a sale from its stored answer."""
    token = answer.get("token") or {}
    key_change = tuple(tuple(each["grouped"].split()) for each in answer.get("key_change_tokens") or ())
    return SaleFacts(
        kind=answer.get("kind") or "credit",
        message_id=answer["message_id"],
        receipt_number=answer.get("receipt_number"),
        issued_ms=to_ms(datetime.fromisoformat(answer["issued_at"])),
        vendor=answer.get("vendor"),
        terminal=answer.get("terminal"),
        operator=answer.get("operator"),
        tender=answer.get("tender"),
        account_number=answer.get("account_number"),
        meter_serial=answer["meter_serial"],
        drn=answer.get("drn") or None,
        currency=answer.get("currency") or "INR",
        credited=_credited(answer) if "balance_after_minor" in answer else None,
        token=_token(answer, token) if token.get("grouped") else None,
        key_change=key_change,
        key_change_pending=bool(key_change) or "key_change_first" in _line_codes(answer),
        unused_tokens=tuple(each["token"] for each in answer.get("unused_tokens") or ()),
        order=answer.get("order"),
        order_value=answer.get("value"),
        fault_number=answer.get("fault_number"),
        fault=answer.get("what"),
    )


def _credited(answer: Answer) -> Credited:
    supply, month = answer["supply"], answer.get("month")
    cleared = (line["amount_minor"] for line in answer["lines"] if line["code"] == "arrears")
    return Credited(
        amount_minor=answer["amount_minor"],
        earlier_arrears_paid_minor=answer.get("earlier_arrears_paid_minor", 0),
        earlier_arrears_left_minor=answer.get("earlier_arrears_left_minor", 0),
        arrears_cleared_minor=next(cleared, 0),
        balance_before_minor=answer["balance_before_minor"],
        balance_after_minor=answer["balance_after_minor"],
        supply_before=supply["state_before"],
        supply_after=supply["state_after_desired"],
        restores_with_minor=supply["restores_with_minor"],
        bought=_bought(answer),
        month=None if month is None else _month(month),
    )


def _bought(answer: Answer) -> Bought:
    buys = answer.get("buys")
    if buys is None:
        return Bought(energy_wh=answer.get("energy_wh", 0))
    steps = tuple(
        StepBought(
            number=int(step["line"].removeprefix("energy_")),
            from_wh=step["from_wh"],
            to_wh=step["to_wh"],
            energy_wh=step["energy_wh"],
            rate_milli_per_kwh=step["rate_milli_per_kwh"],
            amount_minor=step["amount_minor"],
        )
        for step in buys["steps"]
    )
    lines = _bill_lines(buys["lines"])
    return Bought(energy_wh=buys["energy_wh"], steps=steps, lines=lines, cost_minor=buys["cost_minor"])


def _month(month: Answer) -> BillSoFar:
    return BillSoFar(
        first=date.fromisoformat(month["from"]),
        energy_wh=month["energy_wh"],
        lines=_bill_lines(month["lines"]),
        charged_minor=month["charged_minor"],
    )


def _bill_lines(lines: list[Answer]) -> tuple[BillLine, ...]:
    return tuple(BillLine(line=each["line"], title=each["title"], amount_minor=each["amount_minor"]) for each in lines)


def _token(answer: Answer, token: Answer) -> TokenGiven:
    groups = tuple(token["grouped"].split())
    return TokenGiven(groups=groups, tid=answer.get("tid"), carried=token.get("amount"), unit=token.get("unit"))


def _line_codes(answer: Answer) -> set[str]:
    return {line["code"] for line in answer.get("lines") or ()}
