"""Banking of a net meter: what was sent into the grid, set off against what was taken, month by month.

Stage: pure, beside a case about a net (bi-directional) meter. Takes what both registers counted by month; returns what
is billed and banked, and the same with both registers' errors put right: the overhaul of the bank (R-21). Energy in
integer Wh; export is banked as energy, so no rate and no money enters here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from billing.correction import ERROR_BASIS_POINTS_MAX, ERROR_BASIS_POINTS_MIN
from billing.disputes.case import CaseRefused
from billing.money import round_half_up
from billing.tariff import BASIS_POINTS


@dataclass(frozen=True, slots=True, kw_only=True)
class MonthFlow:
    """What a net meter counted in both directions in a month, named by its first day. Wh."""

    month: date
    import_wh: int
    export_wh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BankedMonth:
    """A month's account of the bank.

    Units: Wh. Invariants: `billed_wh` = import less what was set off; `bank_wh` is left after the month, `lapsed_wh`
    was left at the end of the banking year; nothing is below zero.
    """

    month: date
    import_wh: int
    export_wh: int
    set_off_wh: int
    billed_wh: int
    bank_wh: int
    lapsed_wh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BankOverhaul:
    """The bank as counted and as it should have been, and the Wh that each month was billed short (above zero)."""

    counted: tuple[BankedMonth, ...]
    corrected: tuple[BankedMonth, ...]
    short_wh: dict[date, int]


def bank(flows: Iterable[MonthFlow], *, opening_wh: int = 0, year_ends_month: int) -> tuple[BankedMonth, ...]:
    """Set export off against import, month after month; what is left lapses at the end of the banking year."""
    months: list[BankedMonth] = []
    bank_wh = opening_wh
    for flow in sorted(flows, key=lambda each: each.month):
        available_wh = bank_wh + flow.export_wh
        set_off_wh = min(flow.import_wh, available_wh)
        left_wh = available_wh - set_off_wh
        lapsed_wh = left_wh if flow.month.month == year_ends_month else 0
        bank_wh = left_wh - lapsed_wh
        months.append(
            BankedMonth(
                month=flow.month,
                import_wh=flow.import_wh,
                export_wh=flow.export_wh,
                set_off_wh=set_off_wh,
                billed_wh=flow.import_wh - set_off_wh,
                bank_wh=bank_wh,
                lapsed_wh=lapsed_wh,
            )
        )
    return tuple(months)


def overhaul_bank(
    flows: Iterable[MonthFlow],
    *,
    import_error_basis_points: int,
    export_error_basis_points: int,
    opening_wh: int = 0,
    year_ends_month: int,
) -> BankOverhaul:
    """Return the bank as counted and with the errors of both registers put right.

    Rounds: each month's register half up, to whole Wh, as `billing.correction` does.
    Raises: CaseRefused for errors that are none of a meter that runs.
    """
    for error in (import_error_basis_points, export_error_basis_points):
        if not ERROR_BASIS_POINTS_MIN <= error <= ERROR_BASIS_POINTS_MAX:
            raise CaseRefused(f"error: expected -90 % to 1000 %, got {error} basis points")
    seen = list(flows)
    right = [
        MonthFlow(
            month=flow.month,
            import_wh=_corrected(flow.import_wh, import_error_basis_points),
            export_wh=_corrected(flow.export_wh, export_error_basis_points),
        )
        for flow in seen
    ]
    counted = bank(seen, opening_wh=opening_wh, year_ends_month=year_ends_month)
    corrected = bank(right, opening_wh=opening_wh, year_ends_month=year_ends_month)
    short_wh = {
        before.month: after.billed_wh - before.billed_wh for before, after in zip(counted, corrected, strict=True)
    }
    return BankOverhaul(counted=counted, corrected=corrected, short_wh=short_wh)


def _corrected(counted_wh: int, error_basis_points: int) -> int:
    return round_half_up(counted_wh * BASIS_POINTS, BASIS_POINTS + error_basis_points)
