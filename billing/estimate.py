"""What a credit would buy: an estimate to print, never a promise and never a debit.

Stage: beside receipts and account views. Takes an account's bill part and where it stands in it; returns energy.
"""

from __future__ import annotations

from billing.rating import total
from billing.terms import ONE_DAY, BillPart, part_lines

# No credit that a vend may bring buys more than a million kWh.
ENERGY_WH_MAX = 1_000_000_000


def energy_bought_wh(part: BillPart, *, before_wh: int = 0, used_wh: int, credit_minor: int) -> int:
    """Return the energy that a credit would pay for if it were used at once, at this month's slabs.

    Units: Wh; `used_wh` is the bill part's energy so far, `before_wh` what earlier parts took of the slabs. Shares
    such as rebate and duty are counted, further fixed charges and time-of-day surcharges are not.
    Rounds: down to whole Wh.
    """
    if credit_minor <= 0:
        return 0

    def price_minor(energy_wh: int) -> int:
        # The fixed charge of the days so far is left out on both sides of the difference.
        no_day, zones = part.first - ONE_DAY, (0,) * part.zone_count
        lines = part_lines(part, before_wh=before_wh, energy_wh=energy_wh, zone_wh=zones, through_day=no_day)
        return total(lines)

    limit_minor = price_minor(used_wh) + credit_minor
    low_wh, high_wh = 0, ENERGY_WH_MAX
    while low_wh < high_wh:
        middle_wh = (low_wh + high_wh + 1) // 2
        if price_minor(used_wh + middle_wh) <= limit_minor:
            low_wh = middle_wh
        else:
            high_wh = middle_wh - 1
    return low_wh
