"""The fast lane of close-day: days that a reading at their very end closes, many accounts in one transaction.

Stage: inside a transaction of the sweep. Accounts whose day has an exact end, no zones, no demand and no change of
terms in its month are closed set-wise; their journals carry two legs each, and one `usage_batch` journal books their
bill lines. All others are left to `db.posting.post_days`, which takes any account.

A day closed here changes no balance and no level, so it writes no change-feed row: what ingest knows of the account
stays right (docs/decisions/0008-exact-days-close-in-batches.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms
from billing.close_batch import ClosedBatch, ExactDay, close_batch
from billing.journals import Ledger, Leg, usage_batch_journal
from billing.rate_table import RateTable
from billing.rating_batch import line_sums
from billing.terms import ONE_DAY, Assignment, BillPart, Terms
from db.named import sql
from db.tariffs import tariffs_by_checksum


class DaySweep:
    """Closes one day of ranges of accounts; keeps the rates it has met.

    Invariants: the caller holds the locks of the accounts it passes.
    """

    def __init__(self, calendar: LocalCalendar) -> None:
        self._calendar = calendar
        self._table = RateTable()
        self._parts: dict[tuple[object, ...], tuple[BillPart, bool]] = {}

    async def close(self, conn: AsyncConnection, ids: Sequence[int], day: date) -> int:
        """Close a day of those of some locked accounts that end it exactly; return how many."""
        accounts = await self._look(conn, ids, day)
        if not accounts:
            return 0
        batch = close_batch(day, accounts, self._table)
        await _write(conn, day, self._edge_at(day), accounts, batch)
        return len(accounts)

    async def _look(self, conn: AsyncConnection, ids: Sequence[int], day: date) -> list[ExactDay]:
        month = day.replace(day=1)
        parameters = {
            "ids": list(ids),
            "day": day,
            "edge_at": self._edge_at(day),
            "month": month,
            "next_month": (month + 31 * ONE_DAY).replace(day=1),
        }
        # A scan of all accounts or of a day's readings for one range would stall the sweep.
        await conn.execute(sql("probe_by_key"))
        cursor = await conn.execute(sql("exact_days"), parameters)
        rows = await cursor.fetchall()
        tariffs = await tariffs_by_checksum(conn, {row[_CHECKSUM] for row in rows})
        accounts = []
        for row in rows:
            part, next_fresh = self._part(row, day, tariffs)
            silent = row[_ANCHOR_AT] < from_ms(self._calendar.midnight_ms(part.first)) and row[_OPENED_ON] < part.first
            if not part.zone_count and not silent:
                accounts.append(_exact_day(row, part, next_fresh))
        return accounts

    def _edge_at(self, day: date) -> datetime:
        return from_ms(self._calendar.midnight_ms(day + ONE_DAY))

    def _part(self, row: tuple[Any, ...], day: date, tariffs: dict[str, Any]) -> tuple[BillPart, bool]:
        """Return the bill part of a row of `exact_days`: all accounts of the same terms share it."""
        opened_on, from_day, *terms = row[_OPENED_ON:]
        # What began before the month makes no difference within it.
        first = max(opened_on, from_day, day.replace(day=1))
        key = (day, first, *terms)
        found = self._parts.get(key)
        if found is None:
            checksum, load_w, area_type, meter_rent = terms
            assignment = Assignment(
                from_day=first, tariff=tariffs[checksum], load_w=load_w, area=area_type, meter_rent=meter_rent
            )
            all_terms = Terms(opened_on=first, assignments=(assignment,))
            part = all_terms.part_at(day)
            found = self._parts[key] = part, all_terms.next_part(part).fresh
        return found


# Columns of `exact_days`.
_ANCHOR_AT = 7
_OPENED_ON = 8
_CHECKSUM = 10
_PREPAID, _CLEARING = Ledger.PREPAID.value, Ledger.USAGE_CLEARING.value
# The batch's own journal in `copy_day_journals`.
_COPY_BATCH = "{id}\tusage_batch" + 5 * "\t\\N" + "\t0" + 3 * "\t\\N" + "\n"


def _exact_day(row: tuple[Any, ...], part: BillPart, next_fresh: bool) -> ExactDay:
    account_id, posted_minor, charged_minor, before_wh, part_start_wh, closed_wh, to_wh = row[:_ANCHOR_AT]
    return ExactDay(
        account_id=account_id,
        part=part,
        next_fresh=next_fresh,
        posted_minor=posted_minor,
        charged_minor=charged_minor,
        before_wh=before_wh,
        part_start_wh=part_start_wh,
        closed_wh=closed_wh,
        to_wh=to_wh,
    )


async def _write(
    conn: AsyncConnection, day: date, edge_at: datetime, accounts: Sequence[ExactDay], batch: ClosedBatch
) -> None:
    """Write a batch of closed days: journals, legs, posted state."""
    cursor = await conn.execute(sql("take_journal_ids"), {"number": len(accounts) + 1})
    batch_id, *ids = [row[0] for row in await cursor.fetchall()]
    counter_legs = usage_batch_journal(line_sums(batch.groups)).legs
    # Text is built much faster than rows are adapted; nothing in it needs escaping: numbers, dates and line names. A
    # dictionary of such prints as JSON does but for its quotes; the legs are those of `batched_day_legs`.
    journals = [_COPY_BATCH.format(id=batch_id)]
    legs = [_leg(batch_id, number, leg) for number, leg in enumerate(counter_legs, start=1)]
    charges_minor = batch.charge_minor.tolist()
    for journal_id, account, lines, charge_minor in zip(ids, accounts, batch.lines, charges_minor, strict=True):
        from_wh, to_wh = account.closed_wh, account.to_wh
        journals.append(
            f"{journal_id}\tday\t{account.account_id}\t{day}\t{account.part.first}\t{from_wh}\t{to_wh}"
            f"\t{to_wh - from_wh}\tread\t{lines}\t{batch_id}\n"
        )
        legs.append(f"{journal_id}\t1\t{_PREPAID}\t\t{-charge_minor}\n{journal_id}\t2\t{_CLEARING}\t\t{charge_minor}\n")
    async with conn.cursor() as writer:
        async with writer.copy(sql("copy_day_journals")) as copy:
            await copy.write("".join(journals).replace("'", '"'))
        async with writer.copy(sql("copy_legs")) as copy:
            await copy.write("".join(legs))
    parameters = {
        "ids": _listed(account.account_id for account in accounts),
        "posted_minors": _listed(batch.posted_minor.tolist()),
        "charged_minors": _listed(batch.charged_minor.tolist()),
        "before_whs": _listed(batch.before_wh.tolist()),
        "part_start_whs": _listed(batch.part_start_wh.tolist()),
        "to_whs": _listed(account.to_wh for account in accounts),
        "through": day + ONE_DAY,
        "edge_at": edge_at,
    }
    await conn.execute(sql("save_exact_days"), parameters)


def _listed(numbers: Iterable[int]) -> str:
    """Write integers as the text of an array, in a quarter of the time that adapting them one by one takes."""
    return f"{{{','.join(map(str, numbers))}}}"


def _leg(journal_id: int, number: int, leg: Leg) -> str:
    return f"{journal_id}\t{number}\t{leg.ledger}\t{leg.line}\t{leg.amount_minor}\n"
