"""Slips of coupons for an 80 mm printer, from the print file of a batch.

Stage: at the press, after `prepaid coupons issue`. Enters: the print file, the only place where PINs are. Leaves: a
file of slips, one after the other, as private as the print file. Never: a PIN on the screen or in the database.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from billing.calendar import to_ms
from billing.notices.kinds import Language
from db.coupons import CouponToPrint
from prepaid.csv_lines import Errors, read_lines, refuse_repeated
from prepaid.processes import calendar_of
from prepaid.settings import Settings
from vending.coupon_pins import pin_digest, read_pin
from vending.coupons import BadCoupon, CouponState, read_serial
from vending.slips.blocks import Utility
from vending.slips.coupon import CouponFacts, coupon_slip
from vending.slips.text import render_text
from vending.slips.words import words_of

if TYPE_CHECKING:
    from vending.coupon_pins import CouponKeys

_CURRENCY = "INR"
# Redeemed and void coupons are worth nothing: a slip of one would cheat its buyer.
_PRINTED = frozenset({CouponState.ISSUED.value, CouponState.RESERVED.value, CouponState.SOLD.value})
_BETWEEN = "\n\n\n"


def read_print_file(file: Path) -> dict[str, str]:
    """Return PINs by serial. Raises: ImportRefused with the places of all errors."""
    errors = Errors(file)
    lines = read_lines(file, ("serial", "pin", "amount"), (), errors)
    refuse_repeated(lines, ("serial",), errors)
    pins: dict[str, str] = {}
    for number, texts in lines:
        try:
            pins[read_serial(texts["serial"])] = read_pin(texts["pin"])
        except BadCoupon:
            # Neither the digits nor the message of an error that may hold them.
            errors.add(number, "serial or pin", "a coupon's serial and PIN", "others")
    errors.refuse_any()
    return pins


def strangers(pins: Mapping[str, str], found: Mapping[str, CouponToPrint], keys: CouponKeys) -> list[str]:
    """Return the serials that are no coupons of this installation, or have another PIN here."""
    return [
        serial
        for serial, pin in pins.items()
        if serial not in found or not hmac.compare_digest(pin_digest(keys, pin), bytes(found[serial].pin_digest))
    ]


def slips_of(
    pins: Mapping[str, str], found: Mapping[str, CouponToPrint], settings: Settings, language: Language
) -> Iterator[str]:
    """Return the slip of each coupon that can still be redeemed, by the order of the file."""
    words, calendar = words_of(language), calendar_of(settings)
    utility = Utility(name=settings.utility_name, help_line=settings.utility_help)
    for serial, pin in pins.items():
        row = found[serial]
        if row.state not in _PRINTED:
            continue
        facts = CouponFacts(
            serial=serial,
            pin=pin,
            amount_minor=row.amount_minor,
            currency=_CURRENCY,
            issued_ms=to_ms(row.issued_at),
            valid_through=row.valid_until,
            vendor=row.vendor,
        )
        yield render_text(coupon_slip(facts, words=words, utility=utility, calendar=calendar)) + _BETWEEN
