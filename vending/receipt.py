"""The receipt of a vend: what the money bought, line by line.

Stage: between a posted vend and its stored answer. Enters: amounts, states and the token of one vend. Leaves: the
lines a station prints and the answer as plain JSON values. Never: rating, the database, a clock. Nothing is ever
taken for the return of supply (Supply Code 2024 item 17, R-17iii), so no line for it exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import assert_never

from billing.calendar import from_ms
from billing.estimate import Purchase
from billing.money import format_minor
from billing.rating import Lines, total
from billing.statement import line_title
from billing.supply import Supply
from billing.tariff import BASIS_POINTS
from vending.engines.port import CarriedUnit, IssuedToken

_WH_PER_TENTH_KWH = 100
_GROUP_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptLine:
    """One printed line; `code` is stable, `amount_minor` is None where the line is no sum of money."""

    code: str
    text: str
    amount_minor: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MonthSoFar:
    """The bill of an account from the first day of its bill part to its money time, as its running lines say."""

    first: date
    energy_wh: int
    lines: Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A vend that was credited.

    Invariants: `balance_after_minor = balance_before_minor + amount_minor - earlier_arrears_paid_minor`, and the token
    carries what is kept, not what is recovered; `restores_with_minor` is 0 exactly when there is credit after the vend:
    then supply should be on, and without credit it may still be (billing.supply_policy). It counts in what the next
    recharge loses to arrears. Earlier arrears are those brought in from before prepayment; a balance below zero is not
    one of them. `supply_before` is what the meter last reported, `supply_after` what it should have now; `energy_wh` is
    about what the credit that the recharge leaves pays for at this month's rates, `buys` the same step by step.
    `key_change_first` is how many key-change tokens the meter has to take before this one, `key_change_tokens` their
    digits in order, where they are known.
    """

    message_id: str
    vendor: str
    account_number: str
    meter_serial: str
    drn: str
    currency: str
    amount_minor: int
    balance_before_minor: int
    balance_after_minor: int
    token: IssuedToken
    supply_before: Supply
    supply_after: Supply
    restores_with_minor: int
    rebate_basis_points: int
    energy_wh: int
    issued_ms: int
    earlier_arrears_paid_minor: int = 0
    earlier_arrears_left_minor: int = 0
    key_change_first: int = 0
    key_change_tokens: tuple[str, ...] = field(default=(), repr=False)
    buys: Purchase | None = None
    month: MonthSoFar | None = None
    receipt_number: str | None = None
    terminal: str | None = None
    operator: str | None = None
    tender: str | None = None

    def __post_init__(self) -> None:
        after_minor = self.balance_before_minor + self.kept_minor
        assert self.balance_after_minor == after_minor, f"receipt {self.message_id}: balances differ by another amount"
        fits = self.balance_after_minor <= 0 if self.restores_with_minor else self.supply_after is Supply.ON
        assert fits, f"receipt {self.message_id}: supply against what restores"

    @property
    def kept_minor(self) -> int:
        """How much of the recharge was credited to the balance for good."""
        return self.amount_minor - self.earlier_arrears_paid_minor

    @property
    def arrears_cleared_minor(self) -> int:
        """How much of the recharge went to energy used on debt."""
        return min(self.kept_minor, max(0, -self.balance_before_minor))


def receipt_lines(receipt: Receipt) -> Iterator[ReceiptLine]:
    """Yield the lines in the order they are printed."""
    cash = f"{receipt.currency} "
    if receipt.key_change_first:
        text = f"Enter the {receipt.key_change_first} key-change tokens first, then this one"
        yield ReceiptLine(code="key_change_first", text=text)
    yield _money_line("recharge", f"Recharge received: {cash}", receipt.amount_minor)
    if receipt.earlier_arrears_paid_minor:
        label = f"Paid towards earlier arrears: {cash}"
        yield _money_line("earlier_arrears_paid", label, receipt.earlier_arrears_paid_minor)
    if receipt.arrears_cleared_minor:
        yield _money_line("arrears", f"Arrears cleared: {cash}", receipt.arrears_cleared_minor)
    if receipt.balance_after_minor >= 0:
        yield _money_line("credit", f"Credit on account: {cash}", receipt.balance_after_minor)
    else:
        yield _money_line("arrears_left", f"Arrears left: {cash}", -receipt.balance_after_minor)
    if receipt.earlier_arrears_left_minor:
        yield _money_line("earlier_arrears_left", f"Earlier arrears left: {cash}", receipt.earlier_arrears_left_minor)
    kwh = receipt.energy_wh // _WH_PER_TENTH_KWH
    text = f"About {kwh // 10}.{kwh % 10} kWh at this month's rates, before fixed charges"
    yield ReceiptLine(code="energy", text=text)
    yield _supply_line(receipt)
    yield ReceiptLine(code="token", text=f"Token: {receipt.token.grouped}")
    yield ReceiptLine(code="token_amount", text=f"The token carries: {_carried(receipt)}")
    if receipt.rebate_basis_points:
        percent = format_percent(receipt.rebate_basis_points)
        yield ReceiptLine(code="rebate", text=f"{percent} % rebate on energy charges is given as the energy is used")


def receipt_to_api(receipt: Receipt) -> dict[str, object]:
    """Return the answer to a vend as plain JSON values."""
    return {
        "message_id": receipt.message_id,
        "vendor": receipt.vendor,
        "account_number": receipt.account_number,
        "meter_serial": receipt.meter_serial,
        "drn": receipt.drn,
        "currency": receipt.currency,
        "issued_at": from_ms(receipt.issued_ms).isoformat(timespec="milliseconds"),
        **money_to_api("amount", receipt.amount_minor),
        **money_to_api("balance_before", receipt.balance_before_minor),
        **money_to_api("balance_after", receipt.balance_after_minor),
        **money_to_api("earlier_arrears_paid", receipt.earlier_arrears_paid_minor),
        **money_to_api("earlier_arrears_left", receipt.earlier_arrears_left_minor),
        "tid": receipt.token.tid,
        "token": _token_to_api(receipt.token),
        "supply": {
            "state_before": receipt.supply_before.value,
            "state_after_desired": receipt.supply_after.value,
            **money_to_api("restores_with", receipt.restores_with_minor),
        },
        "energy_wh": receipt.energy_wh,
        "lines": [_line_to_api(line) for line in receipt_lines(receipt)],
        "key_change_tokens": [_digits_to_api(digits) for digits in receipt.key_change_tokens],
        "buys": None if receipt.buys is None else _purchase_to_api(receipt.buys),
        "month": None if receipt.month is None else _month_to_api(receipt.month),
        "receipt_number": receipt.receipt_number,
        "terminal": receipt.terminal,
        "operator": receipt.operator,
        "tender": receipt.tender,
    }


def money_to_api(name: str, amount_minor: int) -> dict[str, object]:
    """Return an amount in both of its forms: printed, and as an integer of minor units."""
    return {name: format_minor(amount_minor), f"{name}_minor": amount_minor}


def format_percent(basis_points: int) -> str:
    """Print a share in percent without idle decimals, e.g. `1` or `1.25`."""
    whole, rest = divmod(basis_points * 100, BASIS_POINTS)
    decimals = f"{rest * 100 // BASIS_POINTS:02d}".rstrip("0")
    return f"{whole}.{decimals}" if decimals else f"{whole}"


def _carried(receipt: Receipt) -> str:
    """Print what the token really carries, in money, energy or time."""
    carried = receipt.token.carried
    assert carried is not None, f"receipt {receipt.message_id}: a credit token carries an amount"
    if carried.unit is CarriedUnit.CURRENCY:
        return f"{receipt.currency} {carried.text}"
    return f"{carried.text} {carried.unit.value}"


def _token_to_api(token: IssuedToken) -> dict[str, object]:
    return {
        "digits": token.digits,
        "grouped": token.grouped,
        "engine": token.engine.value,
        "class": token.token_class,
        "subclass": token.subclass,
        "amount": token.carried and token.carried.text,
        "unit": token.carried and token.carried.unit.value,
    }


def _supply_line(receipt: Receipt) -> ReceiptLine:
    if not receipt.restores_with_minor:
        match receipt.supply_before:
            case Supply.ON:
                return ReceiptLine(code="supply_on", text="Supply is on")
            case Supply.LIMITED:
                return ReceiptLine(code="supply_restored", text="Supply restored: yes, its limit is lifted by itself")
            case Supply.OFF:
                return ReceiptLine(code="supply_restored", text="Supply restored: yes, it returns by itself")
            case _:
                assert_never(receipt.supply_before)
    more = f"{receipt.currency} {format_minor(receipt.restores_with_minor)} more"
    match receipt.supply_after:
        case Supply.ON:
            # Protected hours, emergency days, a hold or an exemption.
            code, text = "supply_on", f"Supply is on without credit, {more} gives credit"
        case Supply.LIMITED:
            code, text = "supply_limited", f"Supply restored: no, it is limited to a small load, {more} restores it"
        case Supply.OFF:
            code, text = "supply_off", f"Supply restored: no, {more} restores it"
        case _:
            assert_never(receipt.supply_after)
    return ReceiptLine(code=code, text=text, amount_minor=receipt.restores_with_minor)


def _money_line(code: str, label: str, amount_minor: int) -> ReceiptLine:
    return ReceiptLine(code=code, text=f"{label}{format_minor(amount_minor)}", amount_minor=amount_minor)


def _digits_to_api(digits: str) -> dict[str, object]:
    groups = [digits[at : at + _GROUP_DIGITS] for at in range(0, len(digits), _GROUP_DIGITS)]
    return {"digits": digits, "grouped": " ".join(groups)}


def _purchase_to_api(buys: Purchase) -> dict[str, object]:
    steps = [
        {
            "line": step.line,
            "from_wh": step.from_wh,
            "to_wh": step.to_wh,
            "energy_wh": step.energy_wh,
            "rate_milli_per_kwh": step.rate_milli_per_kwh,
            **money_to_api("amount", step.amount_minor),
        }
        for step in buys.steps
    ]
    cost = money_to_api("cost", buys.cost_minor)
    return {"energy_wh": buys.energy_wh, "steps": steps, "lines": _lines_to_api(buys.lines), **cost}


def _month_to_api(month: MonthSoFar) -> dict[str, object]:
    charged = money_to_api("charged", total(month.lines))
    lines = _lines_to_api(month.lines)
    return {"from": month.first.isoformat(), "energy_wh": month.energy_wh, "lines": lines, **charged}


def _lines_to_api(lines: Mapping[str, int]) -> list[dict[str, object]]:
    return [
        {"line": name, "title": line_title(name, {}), **money_to_api("amount", amount_minor)}
        for name, amount_minor in lines.items()
        if amount_minor
    ]


def _line_to_api(line: ReceiptLine) -> dict[str, object]:
    money = {} if line.amount_minor is None else money_to_api("amount", line.amount_minor)
    return {"code": line.code, "text": line.text, **money}
