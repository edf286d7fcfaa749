"""The slip of a sale: what must be seen first, the token, the money, what it buys, the bill so far.

Stage: between the facts of a stored answer and the renderers. Enters: facts, the state of the sale and how often it was
printed. Leaves: blocks. Never: the database, a clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from billing.calendar import LocalCalendar
from billing.notices.formats import format_day
from billing.statement import format_kwh
from vending.slips.blocks import Amount, Block, Code, Digits, Fact, Notice, Section, Sentence, Slip, Utility
from vending.slips.facts import BillLine, Bought, Credited, SaleFacts, SaleState, StepBought, TokenGiven
from vending.slips.words import Words, format_rate, format_units


@dataclass(frozen=True, slots=True, kw_only=True)
class Print:
    """One print of a slip; number 1 is the original.

    Invariants: `first_ms <= at_ms`, and both are the same for the original.
    """

    number: int
    first_ms: int
    at_ms: int


def sale_slip(
    facts: SaleFacts,
    *,
    state: SaleState,
    printed: Print,
    words: Words,
    utility: Utility,
    calendar: LocalCalendar,
) -> Slip:
    """Return the slip of a sale as it stands."""
    token = facts.token if state.gives_token else None
    blocks = [
        *_marks(state, printed, words, calendar),
        *(_key_change(facts, words) if state.gives_token else ()),
        *(() if token is None else _token(token, facts.currency, words)),
        *_order(facts, words),
        *_head(facts, words, calendar),
        *(() if facts.credited is None else _money(facts.credited, state, words)),
    ]
    return Slip(
        words=words,
        title=words.titles.get(facts.kind, words.titles["credit"]),
        reference=facts.receipt_number or facts.message_id,
        currency=facts.currency,
        utility=utility,
        blocks=tuple(blocks),
    )


def token_code(facts: SaleFacts, state: SaleState) -> str | None:
    """Return what the QR code of a sale holds: the digits of its token, nothing where none is given."""
    return "".join(facts.token.groups) if facts.token is not None and state.gives_token else None


def _marks(state: SaleState, printed: Print, words: Words, calendar: LocalCalendar) -> Iterator[Block]:
    says = words.says
    if not state.gives_token:
        yield Notice(head=says[state.value], text=says[f"{state.value}_text"])
    if printed.number > 1:
        at, first = (words.instant(at_ms, calendar) for at_ms in (printed.at_ms, printed.first_ms))
        head = says["duplicate"].format(number=printed.number - 1)
        yield Notice(head=head, text=says["duplicate_text"].format(at=at, first=first))


def _key_change(facts: SaleFacts, words: Words) -> Iterator[Block]:
    if not facts.key_change_pending:
        return
    says = words.says
    if not facts.key_change:
        yield Notice(head=says["key_change"], text=says["key_change_other_slip"])
        return
    then = says["key_change_order" if facts.token is None else "key_change_then"]
    yield Notice(head=says["key_change"], text=f"{says['key_change_older']} {then}")
    for masked in facts.unused_tokens:
        yield Fact(label=says["unused_token"], value=masked)
    for number, groups in enumerate(facts.key_change, start=1):
        label = says["key_change_token"].format(number=number, count=len(facts.key_change))
        yield Digits(label=label, groups=groups)


def _token(token: TokenGiven, currency: str, words: Words) -> Iterator[Block]:
    yield Digits(label=words.says["token"], groups=token.groups)
    yield Code(payload="".join(token.groups))
    if token.carried is not None and token.unit is not None:
        money = token.unit == "currency"
        carried = f"{currency} {token.carried}" if money else f"{token.carried} {words.value(token.unit)}"
        yield Fact(label=words.says["token_carries"], value=carried)
    if token.tid is not None:
        yield Fact(label=words.says["token_number"], value=str(token.tid))


def _order(facts: SaleFacts, words: Words) -> Iterator[Block]:
    """Yield what is no sale: what a token does, or the number of a fault."""
    if facts.order is not None:
        value = f" {facts.order_value}" if facts.order_value else ""
        yield Fact(label=words.says["order"], value=f"{words.value(facts.order)}{value}")
    if facts.fault_number is not None:
        yield Fact(label=words.says["fault_number"], value=facts.fault_number)
    if facts.fault is not None:
        yield Fact(label=words.says["fault"], value=words.value(facts.fault))


def _head(facts: SaleFacts, words: Words, calendar: LocalCalendar) -> Iterator[Block]:
    yield Section(text="")
    values = {
        "receipt_number": facts.receipt_number,
        "reference": facts.message_id,
        "date": words.instant(facts.issued_ms, calendar),
        "account": facts.account_number,
        "meter": facts.meter_serial,
        "drn": facts.drn,
        "vendor": facts.vendor,
        "terminal": facts.terminal,
        "operator": facts.operator,
        "tender": None if facts.tender is None else words.value(facts.tender),
    }
    for name, value in values.items():
        if value:
            yield Fact(label=words.says[name], value=value)


def _money(credited: Credited, state: SaleState, words: Words) -> Iterator[Block]:
    says = words.says
    yield Section(text=says["amounts"])
    yield Amount(label=says["recharge"], amount_minor=credited.amount_minor, strong=True)
    if not state.stands:
        # What it did to balance and supply was undone.
        return
    if credited.earlier_arrears_paid_minor:
        yield Amount(label=says["earlier_arrears_paid"], amount_minor=credited.earlier_arrears_paid_minor)
    if credited.earlier_arrears_left_minor:
        yield Amount(label=says["earlier_arrears_left"], amount_minor=credited.earlier_arrears_left_minor)
    yield Amount(label=says["balance_before"], amount_minor=credited.balance_before_minor)
    if credited.arrears_cleared_minor:
        yield Amount(label=says["arrears_cleared"], amount_minor=credited.arrears_cleared_minor)
    yield Amount(label=says["balance_after"], amount_minor=credited.balance_after_minor, strong=True)
    yield from _supply(credited, words)
    yield from _buys(credited.bought, words)
    if credited.month is not None:
        yield Section(text=says["month"].format(day=format_day(credited.month.first, None)))
        yield Fact(label=says["month_energy"], value=_kwh(credited.month.energy_wh, words))
        yield from _lines(credited.month.lines, words)
        yield Amount(label=says["month_charged"], amount_minor=credited.month.charged_minor, strong=True)


def _supply(credited: Credited, words: Words) -> Iterator[Block]:
    says = words.says
    yield Section(text=says["supply"])
    yield Fact(label=says["supply_before"], value=words.value(credited.supply_before))
    yield Fact(label=says["supply_after"], value=words.value(credited.supply_after))
    if credited.restores_with_minor:
        needed = "restores_credit" if credited.supply_after == "on" else "restores"
        yield Amount(label=says[needed], amount_minor=credited.restores_with_minor)
    elif credited.supply_before == "off":
        yield Sentence(text=says["supply_returns"])
    elif credited.supply_before == "limited":
        yield Sentence(text=says["supply_limit_ends"])


def _buys(bought: Bought, words: Words) -> Iterator[Block]:
    if not bought.energy_wh:
        return
    yield Section(text=words.says["buys"])
    yield Fact(label=words.says["buys_energy"], value=_kwh(bought.energy_wh, words))
    for step in bought.steps:
        yield Amount(label=_step(step, words), amount_minor=step.amount_minor)
    yield from _lines(bought.lines, words)
    if bought.cost_minor is not None:
        yield Amount(label=words.says["buys_cost"], amount_minor=bought.cost_minor, strong=True)
    yield Sentence(text=words.says["buys_note"])


def _step(step: StepBought, words: Words) -> str:
    open_form = "step_open" if step.from_wh else "step_only"
    form = open_form if step.to_wh is None else "step"
    return words.says[form].format(
        energy=format_kwh(step.energy_wh),
        rate=format_rate(step.rate_milli_per_kwh),
        number=step.number,
        **{"from": format_units(step.from_wh), "to": "" if step.to_wh is None else format_units(step.to_wh)},
    )


def _lines(lines: tuple[BillLine, ...], words: Words) -> Iterator[Block]:
    for each in lines:
        yield Amount(label=words.line(each.line, each.title), amount_minor=each.amount_minor)


def _kwh(energy_wh: int, words: Words) -> str:
    return f"{format_kwh(energy_wh)} {words.value('kWh')}"
