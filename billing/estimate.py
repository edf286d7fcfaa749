"""What a credit would buy: an estimate to print, never a promise and never a debit.

Stage: beside receipts and account views. Takes an account's terms and where it stands in its period; returns energy.
"""

from __future__ import annotations

from billing.calendar import days_in
from billing.rating import charge_to_date, total
from billing.running import Terms

# No credit that a vend may bring buys more than a million kWh.
ENERGY_WH_MAX = 1_000_000_000


def energy_bought_wh(terms: Terms, *, used_wh: int, credit_minor: int) -> int:
    """Return the energy that a credit would pay for if it were used at once, at this period's slabs.

    Units: Wh; `used_wh` is the period's energy so far. Rebate and duty are counted, further fixed charges are not.
    Rounds: down to whole Wh.
    """
    if credit_minor <= 0:
        return 0
    period_days = days_in(terms.opened_on)

    def price_minor(energy_wh: int) -> int:
        # The fixed charge of the days so far is left out on both sides of the difference.
        lines = charge_to_date(
            terms.tariff, load_w=terms.load_w, energy_wh=energy_wh, fixed_days=0, period_days=period_days
        )
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
