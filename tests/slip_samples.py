"""One slip of each kind, with everything on it; `python -m tests.slip_samples` writes the golden files anew."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from zoneinfo import ZoneInfo

from billing.calendar import LocalCalendar
from billing.estimate import energy_bought_wh, purchase_of
from billing.notices.kinds import Language
from billing.supply import Supply
from billing.tariff_document import builtin_tariff
from billing.terms import one_assignment, part_lines
from vending.engines.port import Carried, CarriedUnit, IssuedToken
from vending.engines.records import EngineName
from vending.receipt import MonthSoFar, Receipt, receipt_to_api
from vending.slips.batch import BatchFacts, BatchKind, TenderTotal, batch_slip
from vending.slips.blocks import Slip, Utility
from vending.slips.coupon import CouponFacts, coupon_slip
from vending.slips.facts import SaleState, facts_of
from vending.slips.sale import Print, sale_slip
from vending.slips.text import render_text
from vending.slips.words import words_of

GOLDEN = Path(__file__).parent / "golden" / "slips"
CALENDAR = LocalCalendar(ZoneInfo("Asia/Kolkata"))
UTILITY = Utility(name="Punjab Electricity", help_line="Help and complaints: 1912, any time")
# 21 November 2026, 15:45 in Asia/Kolkata.
NOON_MS = 1_795_256_100_000
MINUTE_MS = 60_000
ORIGINAL = Print(number=1, first_ms=NOON_MS, at_ms=NOON_MS)
NOVEMBER = date(2026, 11, 1)
PART = one_assignment(builtin_tariff("punjab-ds-2026-27"), load_w=3_000, opened_on=NOVEMBER).part_at(NOVEMBER)
# 25 units before the first step of the tariff ends, so that the recharge reaches the second.
USED_WH = 275_250
BOUGHT_WH = energy_bought_wh(PART, used_wh=USED_WH, credit_minor=25_500)
RECEIPT = Receipt(
    message_id="T17-20261121-000042",
    vendor="Station 17, Model Town",
    account_number="100200300",
    meter_serial="PB000123",
    drn="01002003007",
    currency="INR",
    amount_minor=50_000,
    balance_before_minor=-12_000,
    balance_after_minor=25_500,
    token=IssuedToken(
        engine=EngineName.STS,
        digits="12345678901234567890",
        grouped="1234 5678 9012 3456 7890",
        tid=6_779_175,
        token_class=0,
        subclass=4,
        carried=Carried(steps=37_502_624, steps_per_unit=100_000, unit=CarriedUnit.CURRENCY),
    ),
    supply_before=Supply.OFF,
    supply_after=Supply.ON,
    restores_with_minor=0,
    rebate_basis_points=100,
    energy_wh=BOUGHT_WH,
    issued_ms=NOON_MS,
    earlier_arrears_paid_minor=12_500,
    earlier_arrears_left_minor=1_23_456_78,
    key_change_first=2,
    key_change_tokens=("11112222333344445555", "66667777888899990000"),
    buys=purchase_of(PART, used_wh=USED_WH, energy_wh=BOUGHT_WH),
    month=MonthSoFar(
        first=NOVEMBER,
        energy_wh=USED_WH,
        lines=part_lines(PART, before_wh=0, energy_wh=USED_WH, zone_wh=(), through_day=date(2026, 11, 21)),
    ),
    receipt_number="4711",
    terminal="T17",
    operator="Asha",
    tender="cash",
)
KEY_CHANGE = {
    "kind": "key_change",
    "unused_tokens": [{"kind": "credit", "token": "...4321", "tid": 6_700_001, "made_at": "2026-11-01T10:15:00+00:00"}],
    "message_id": "T17-20261121-000043",
    "vendor": "Station 17, Model Town",
    "meter_serial": "PB000123",
    "drn": "01002003007",
    "issued_at": "2026-11-21T10:15:00.000+00:00",
    "key_change_tokens": [
        {"digits": digits, "grouped": " ".join(digits[at : at + 4] for at in range(0, 20, 4))}
        for digits in ("11112222333344445555", "66667777888899990000")
    ],
}
HEAD = {name: KEY_CHANGE[name] for name in ("vendor", "meter_serial", "drn", "issued_at")}
ENGINEERING = HEAD | {
    "kind": "engineering",
    "message_id": "U-7",
    "order": "power_limit",
    "value": 3_000,
    "tid": 6_779_180,
    "token": {"digits": "55554444333322221111", "grouped": "5555 4444 3333 2222 1111"},
}
FAULT = HEAD | {"kind": "fault_report", "message_id": "T17-9", "fault_number": "88", "what": "meter_damaged"}
COUPON = CouponFacts(
    serial="24680135798",
    pin="123456789012",
    amount_minor=20_000,
    currency="INR",
    issued_ms=NOON_MS,
    valid_through=date(2027, 2, 21),
    vendor="Station 17, Model Town",
    terminal="T17",
    link="https://recharge.example/c/24680135798",
)
BATCH = BatchFacts(
    kind=BatchKind.SHIFT,
    number="17-000311",
    vendor="Station 17, Model Town",
    terminal=None,
    operator="Asha",
    currency="INR",
    from_ms=NOON_MS - 480 * MINUTE_MS,
    until_ms=NOON_MS,
    sales=(
        TenderTotal(tender="cash", count=41, amount_minor=20_50_000),
        TenderTotal(tender="upi", count=1, amount_minor=75_005),
    ),
    reversed_sales=(TenderTotal(tender="cash", count=1, amount_minor=50_000),),
    total_minor=20_75_005,
)


def slips(language: Language) -> dict[str, Slip]:
    """Return the slip of each kind in a language, by its name."""
    words = words_of(language)
    credit = facts_of(receipt_to_api(RECEIPT))
    again = Print(number=3, first_ms=NOON_MS, at_ms=NOON_MS + 90 * MINUTE_MS)

    def sale(facts: object, state: SaleState = SaleState.RELEASED, printed: Print = ORIGINAL) -> Slip:
        read = facts_of(facts) if isinstance(facts, dict) else credit
        return sale_slip(read, state=state, printed=printed, words=words, utility=UTILITY, calendar=CALENDAR)

    free = receipt_to_api(replace(RECEIPT, tender=None, key_change_first=0, key_change_tokens=())) | {
        "kind": "free_issue"
    }
    return {
        "credit": sale(credit),
        "free_issue": sale(free),
        "reversed": sale(credit, SaleState.REVERSED, again),
        "held": sale(credit, SaleState.HELD),
        "key_change": sale(KEY_CHANGE),
        "engineering": sale(ENGINEERING),
        "fault_report": sale(FAULT),
        "coupon": coupon_slip(COUPON, words=words, utility=UTILITY, calendar=CALENDAR),
        "batch": batch_slip(BATCH, words=words, utility=UTILITY, calendar=CALENDAR),
    }


def write_golden() -> None:
    """Write the golden files; read them before they are kept."""
    for language in Language:
        for kind, slip in slips(language).items():
            (GOLDEN / f"{kind}-{language.value}.txt").write_text(render_text(slip, with_code=kind == "coupon"))


if __name__ == "__main__":
    write_golden()
