"""The ledger as a whole: journals, legs, usage batches, booked times, dues.

Stage: one pass over all journals in id order, a range at a time, each range two or three set-based statements. A
limited audit reads the journals of its accounts only, and can say nothing of batches, the whole ledger and the clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from billing.tariff import Tariff
from db.audit.reading import FIRST_ID, LAST_ID, Audit, Ids, column, first_row, ranges, rows, slices
from db.audit.report import LAST_KEY
from db.prepayment import check_dues
from db.registry import account_id_of
from db.tariffs import tariffs_by_checksum

# Ids are drawn a moment before booked times, by transactions that run at once; more than this is a clock set back.
SKEW_S = 300


async def check_ledger(conn: AsyncConnection, audit: Audit) -> None:
    """Check every journal, each usage batch, and the sums over all."""
    levies = await _levies(conn)
    if audit.account_ids is not None:
        for account_ids in slices(audit.account_ids, audit.limits.accounts):
            found = await column(conn, "audit_journals_of", {"ids": account_ids})
            for journal_ids in slices(found, audit.limits.rows):
                only = Ids(after=FIRST_ID, upto=LAST_ID, only=journal_ids)
                await _check_journals(conn, audit, only, levies)
        return
    ledger_minor = clearing_minor = 0
    latest: datetime | None = None
    # By batch and line, what members were charged less what the batch booked; a whole batch leaves nothing behind.
    owed: defaultdict[tuple[int, str], int] = defaultdict(int)
    async for ids in ranges(conn, "audit_next_journals", most=audit.limits.rows):
        amount_minor, range_clearing_minor = await _check_journals(conn, audit, ids, levies)
        ledger_minor += amount_minor
        clearing_minor += range_clearing_minor
        await _add_batch_lines(conn, ids, owed)
        latest = await _check_booked_times(conn, audit, ids, latest)
        audit.progress("journals (id)", min(ids.upto, audit.last_journal_id), audit.last_journal_id)
    _report_batches(audit, owed)
    for name, sum_minor in (("whole ledger", ledger_minor), ("ledger usage_clearing", clearing_minor)):
        if sum_minor:
            audit.book.fail("I1", f"{name}: sums to {sum_minor} minor", key=LAST_KEY)


async def check_all_dues(conn: AsyncConnection, audit: Audit) -> None:
    """Check what is worked off over time; only of the whole database."""
    if audit.account_ids is not None:
        return
    audit.book.count("dues", (await first_row(conn, "audit_dues", {}))[0])
    for number, text in enumerate(await check_dues(conn)):
        # Each finding begins with its account; they come in the order of its id.
        account = text.partition(":")[0].removeprefix("account ")
        account_id = await account_id_of(conn, account) if number == 0 else None
        audit.book.fail("dues", text, key=number, account_id=account_id)


async def _levies(conn: AsyncConnection) -> dict[str, object]:
    """Return the bill lines that some tariff, and that every tariff with them, collects for others, and since when."""
    checksums = await column(conn, "audit_tariffs", {})
    tariffs: list[Tariff] = list((await tariffs_by_checksum(conn, checksums)).values())
    some = {name for tariff in tariffs for name in tariff.levies}
    own = {share.name for tariff in tariffs for share in tariff.shares if share.name not in tariff.levies}
    (since,) = await first_row(conn, "audit_levies_since", {})
    return {"levies": sorted(some), "only_levies": sorted(some - own), "levies_since": since}


async def _check_journals(conn: AsyncConnection, audit: Audit, ids: Ids, levies: dict[str, object]) -> tuple[int, int]:
    """Check some journals, each for itself; return the sum of their legs, and of those on usage clearing."""
    journals, amount_minor, clearing_minor, broken, unsold = await first_row(
        conn, "audit_journals", ids.parameters | levies
    )
    audit.book.count("I1", journals)
    for row in broken:
        text = f"{_journal(row['id'], row['number'])}: {_broken_journal(row)}"
        audit.book.fail("I1", text, key=row["id"], account_id=row["account_id"], journal_id=row["id"])
    for journal_id, account_id, number in unsold:
        text = f"{_journal(journal_id, number)}: kind vend, and no vend names it"
        audit.book.fail("I6", text, key=journal_id, account_id=account_id, journal_id=journal_id)
    return amount_minor, clearing_minor


def _broken_journal(row: Mapping[str, Any]) -> str:
    """Say what is wrong with a journal: the first thing that a person would see."""
    if row["legs"] == 0:
        return "no legs"
    if row["kind"] is None or row["amount_minor"]:
        return f"{row['legs']} legs that sum to {row['amount_minor']} minor"
    if row["misbooked"]:
        return f"books {row['misbooked']}"
    if row["lines"] is None:
        return f"{row['kind']} with {row['clearing_minor']} minor on usage_clearing"
    if row["prepaid_minor"] != -row["lines_minor"]:
        return f"prepaid leg of {row['prepaid_minor']} minor, its lines sum to {row['lines_minor']}"
    if row["batch_id"] is not None:
        lines = "" if row["by_line"] == {} else f", and legs by line {row['by_line']}"
        return (
            f"usage_clearing leg of {row['clearing_minor']} minor{lines}, its lines sum to {row['lines_minor']} and are"
            f" for batch {row['batch_id']} to book"
        )
    return f"legs by line {row['by_line']}, its lines are {row['lines']}"


async def _add_batch_lines(conn: AsyncConnection, ids: Ids, owed: defaultdict[tuple[int, str], int]) -> None:
    """Add what a range leaves open; members and their batch mostly lie side by side, so that little is kept."""
    for row in await rows(conn, "audit_batch_lines", ids.parameters):
        key = row["batch_id"], row["line"]
        owed[key] += row["amount_minor"]
        if not owed[key]:
            del owed[key]


def _report_batches(audit: Audit, owed: Mapping[tuple[int, str], int]) -> None:
    by_batch: defaultdict[int, dict[str, int]] = defaultdict(dict)
    for (batch_id, line), amount_minor in sorted(owed.items()):
        by_batch[batch_id][line] = amount_minor
    for batch_id, lines in by_batch.items():
        short = ", ".join(f"{line} {amount_minor} minor" for line, amount_minor in lines.items())
        audit.book.fail("I1", f"batch journal {batch_id}: its members' lines less its legs: {short}", key=batch_id)


async def _check_booked_times(
    conn: AsyncConnection, audit: Audit, ids: Ids, latest: datetime | None
) -> datetime | None:
    """Check that booked times follow the sequence; return the latest so far."""
    parameters = ids.parameters | {"clock": audit.clock, "skew_s": SKEW_S, "latest": latest}
    journals, range_latest, broken = await first_row(conn, "audit_booked_times", parameters)
    audit.book.count("I13-clock", journals)
    for journal_id, account_id, number, booked_at, ahead in broken:
        why = f"ahead of the database's clock, {audit.clock.isoformat()}" if ahead else "before earlier journals"
        text = f"{_journal(journal_id, number)}: booked at {booked_at}, {why}"
        audit.book.fail("I13-clock", text, key=journal_id, account_id=account_id, journal_id=journal_id)
    return max(filter(None, (latest, range_latest)), default=None)


def _journal(journal_id: int, number: str | None) -> str:
    return f"journal {journal_id}" + ("" if number is None else f" of account {number}")
