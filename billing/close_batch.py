"""Closing one local day of many accounts at once: the vectorised form of `billing.running.close_days`.

Stage: the middle of the paced sweep. Takes the posted state of accounts whose register was read exactly at the day's
end and whose bill part has no zones and no demand; returns what their journals book and the new posted state. A
property test proves it equal to the plain form. Closing such a day changes no balance: the charge moves from running
to posted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from billing.rate_table import RateTable
from billing.rating import Lines
from billing.rating_batch import LineGroup, account_lines, charge_lines, difference_lines
from billing.terms import ONE_DAY, BillPart

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactDay:
    """One account's posted state before the day, and the energy to date read at the day's end.

    Units: Wh, minor units. `part` is the bill part that holds the day; `next_fresh` tells whether the part after it
    starts its slabs at 0.
    """

    account_id: int
    part: BillPart
    next_fresh: bool
    posted_minor: int
    charged_minor: int
    before_wh: int
    part_start_wh: int
    closed_wh: int
    to_wh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedBatch:
    """What a batch of days books, and the posted state after it.

    Shape: `lines` and the arrays have one entry for each account of the batch; `groups` holds the same lines by
    tariff shape, to be summed for the batch's counter-legs.
    """

    lines: list[Lines]
    groups: list[LineGroup]
    charge_minor: Int64
    posted_minor: Int64
    charged_minor: Int64
    before_wh: Int64
    part_start_wh: Int64


def close_batch(day: date, accounts: Sequence[ExactDay], table: RateTable) -> ClosedBatch:
    """Close one day of some accounts.

    Rounds: as `billing.rating`. Raises: BeyondLimits.
    """
    parts = [account.part for account in accounts]
    rows = _column(table.row_of(part) for part in parts)
    before_wh = _column(account.before_wh for account in accounts)
    start_wh = _column(account.part_start_wh for account in accounts)
    closed_wh = _column(account.closed_wh for account in accounts)
    to_wh = _column(account.to_wh for account in accounts)
    days = _column((day - part.first).days + 1 for part in parts)
    to_date = charge_lines(table, rows, before_wh, to_wh - start_wh, days)
    # Before a part's first day nothing is booked: no energy and no days are rated as nothing.
    booked = charge_lines(table, rows, before_wh, closed_wh - start_wh, days - 1)
    groups = difference_lines(to_date, booked)
    lines = account_lines(groups, len(accounts))
    charge = _column(sum(each.values()) for each in lines)
    ends = np.array([part.end == day + ONE_DAY for part in parts], dtype=np.bool_)
    fresh = np.array([account.next_fresh for account in accounts], dtype=np.bool_)
    carried_wh = np.where(fresh, 0, before_wh + to_wh - start_wh)
    return ClosedBatch(
        lines=lines,
        groups=groups,
        charge_minor=charge,
        posted_minor=_column(account.posted_minor for account in accounts) - charge,
        charged_minor=np.where(ends, 0, _column(account.charged_minor for account in accounts) + charge),
        before_wh=np.where(ends, carried_wh, before_wh),
        part_start_wh=np.where(ends, to_wh, start_wh),
    )


def _column(values: Iterable[int]) -> Int64:
    return np.fromiter(values, dtype=np.int64)
