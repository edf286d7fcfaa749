"""The desk of vendors' floats: what each has, its deposits, its batches, its statement.

Stage: between the HTTP routes (and the command line) and the database. What is changed is one transaction, with its act
in the audit trail; what is read is one snapshot. Never: HTTP, or a sale.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms
from billing.statement import BadPeriod
from db.api_access import has_other_key
from db.errors import DatabaseError
from db.float_batches import (
    Batch,
    BatchOf,
    BatchUnknown,
    EntrySum,
    end_batch,
    find_batch,
    list_batches,
    open_batch,
    start_batch,
    sum_batch,
)
from db.float_statements import FloatEntry, FloatSpan, find_span, read_entries, sum_span
from db.floats import FloatState, UnknownVendor, find_float, read_float
from db.money_events import ReferenceReused
from db.named import sql
from db.vendor_deposits import (
    Deposit,
    DepositRefused,
    DepositUnknown,
    NewDeposit,
    deposit,
    find_deposit,
    take_deposit_back,
)
from vending.edges.auth import Caller, VendorCaller, require_scope, require_vendor
from vending.floats import (
    BatchKind,
    Day,
    DepositInvalid,
    DepositReferenceReused,
    EntryKind,
    FloatError,
    FloatStatement,
    Moved,
    NoSuchBatch,
    NoSuchDeposit,
    StatementEntry,
    Totals,
    VendorRequired,
    VendorUnknown,
    csv_head,
    csv_lines,
    csv_tail,
    day_of,
    totals_of,
)
from vending.roles import Role, Scope

# 1,000 entries are some 300 kB of JSON, a few seconds of a station's line.
ENTRIES_MAX = 1_000
# A page of CSV is written while the next one is read; 5,000 entries are 0.5 MB.
CSV_PAGE_ENTRIES = 5_000
BATCHES_MAX = 100
# A year and the days around it.
DAYS_MAX = 400
# A sale dated just before midnight is committed within seconds, or never: a minute later the day holds all of its own.
SETTLE_MS = 60_000
DONE, REPEATED = "done", "repeated"

# Lends a connection for a moment.
Connect = Callable[[], AbstractAsyncContextManager[AsyncConnection]]

_ERROR_OF: dict[type[DatabaseError], type[FloatError]] = {
    UnknownVendor: VendorUnknown,
    BatchUnknown: NoSuchBatch,
    DepositUnknown: NoSuchDeposit,
    DepositRefused: DepositInvalid,
    ReferenceReused: DepositReferenceReused,
}
_REFUSED = tuple(_ERROR_OF)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """A batch with its totals: final once it has ended."""

    vendor: str
    kind: BatchKind
    batch: Batch
    totals: Totals
    first_at: datetime | None


async def vendor_of(conn: AsyncConnection, caller: Caller, named: str | None, scope: Scope) -> FloatState:
    """Return the float that a caller asks about: a vendor's own, or for the utility's people one by its name.

    Raises: NotAllowed, VendorRequired, VendorUnknown.
    """
    if isinstance(caller, VendorCaller):
        require_scope(caller, scope)
        # A key is of a vendor that sells, never of the utility's own sellers: its float is there.
        return await read_float(conn, caller.vendor_id)
    require_scope(caller, Scope.READ_VENDORS)
    if named is None:
        raise VendorRequired("vendor: expected the name of one, got none")
    return await named_vendor(conn, named)


async def named_vendor(conn: AsyncConnection, name: str) -> FloatState:
    """Return the float of a vendor by its name.

    Raises: VendorUnknown.
    """
    try:
        return await find_float(conn, name)
    except UnknownVendor as error:
        raise VendorUnknown(str(error)) from None


async def take_deposit(conn: AsyncConnection, caller: Caller | None, new: NewDeposit) -> tuple[Deposit, bool]:
    """Book a deposit once under its reference; whether it was booked now. `caller` is None at the command line.

    Raises: DepositReferenceReused, DepositInvalid, VendorUnknown.
    """
    try:
        async with conn.transaction():
            taken, is_new = await deposit(conn, new)
            await _record(conn, caller, taken.vendor, taken.reference, is_new=is_new)
    except _REFUSED as error:
        raise _error(error) from None
    return taken, is_new


async def return_deposit(
    conn: AsyncConnection, caller: Caller | None, reference: str, *, by: str, reason: str
) -> tuple[Deposit, bool]:
    """Take a deposit back that was no money, once; whether it was taken back now.

    Raises: NoSuchDeposit.
    """
    try:
        async with conn.transaction():
            returned, is_new = await take_deposit_back(conn, reference, by=by, reason=reason)
            await _record(conn, caller, returned.vendor, reference, is_new=is_new)
    except _REFUSED as error:
        raise _error(error) from None
    return returned, is_new


async def deposit_receipt(conn: AsyncConnection, caller: Caller, reference: str) -> Deposit:
    """Return a deposit to print its receipt again: any for the utility's people, its own for a vendor.

    Raises: NoSuchDeposit, NotAllowed.
    """
    require_scope(caller, Scope.FLOAT if isinstance(caller, VendorCaller) else Scope.READ_VENDORS)
    try:
        found = await find_deposit(conn, reference)
    except DepositUnknown as error:
        raise _error(error) from None
    if isinstance(caller, VendorCaller) and found.vendor_id != caller.vendor_id:
        # As if there was none: a reference is a bank's, and could be guessed.
        raise NoSuchDeposit(f"deposit: expected a known reference, got {reference!r}")
    return found


async def who_counts(conn: AsyncConnection, caller: Caller, *, now: datetime) -> VendorCaller:
    """Return the vendor's caller who starts and ends batches: a supervisor, or whoever has the vendor's only key.

    In a shop of one person nobody else could. With a second key in force it is a supervisor's act again.
    Raises: NotAllowed.
    """
    vendor = require_vendor(caller, Scope.FLOAT)
    # A supervisor's key without the scope was narrowed on purpose.
    is_alone = vendor.role is Role.VENDOR and not await has_other_key(conn, vendor.key_id, now=now)
    if not is_alone:
        require_scope(vendor, Scope.BATCHES)
    return vendor


async def start(conn: AsyncConnection, caller: VendorCaller, kind: BatchKind, scope: str, by: str) -> BatchReport:
    """Note who starts the open batch; again, it stays as it was."""
    of = BatchOf(vendor_id=caller.vendor_id, kind=kind.value, scope=scope)
    async with conn.transaction():
        batch = await start_batch(conn, of, by)
        await _record(conn, caller, f"{kind.value} {scope}".strip(), str(batch.number), is_new=True)
    return await _report(conn, caller.name, of, batch)


async def end(
    conn: AsyncConnection, caller: VendorCaller, kind: BatchKind, scope: str, number: int, by: str
) -> BatchReport:
    """End a batch after the latest sale and report it; again, the same report.

    Raises: NoSuchBatch.
    """
    of = BatchOf(vendor_id=caller.vendor_id, kind=kind.value, scope=scope)
    try:
        async with conn.transaction():
            batch = await end_batch(conn, of, number, by)
            await _record(conn, caller, f"{kind.value} {scope}".strip(), str(number), is_new=True)
    except BatchUnknown as error:
        raise _error(error) from None
    # After the commit, so that no sale waits for the sums: what an ended batch holds does not change.
    return await _report(conn, caller.name, of, batch)


async def report(
    conn: AsyncConnection, owner: FloatState, kind: BatchKind, scope: str, number: int | None
) -> BatchReport:
    """Report a batch by its number, or the open one so far.

    Raises: NoSuchBatch.
    """
    of = BatchOf(vendor_id=owner.vendor_id, kind=kind.value, scope=scope)
    async with conn.transaction():
        await conn.execute(sql("statement_snapshot"))
        try:
            batch = await (open_batch(conn, of) if number is None else find_batch(conn, of, number))
        except BatchUnknown as error:
            raise _error(error) from None
        return await _report(conn, owner.vendor, of, batch)


async def open_totals(conn: AsyncConnection, owner: FloatState, terminal: str, operator: str) -> list[BatchReport]:
    """Report all that is open: the sales of a terminal, the shift of an operator, what goes to the bank."""
    scopes = {BatchKind.SALES: terminal, BatchKind.SHIFT: operator, BatchKind.BANK: ""}
    return [await report(conn, owner, kind, scope, None) for kind, scope in scopes.items()]


async def recent_batches(conn: AsyncConnection, owner: FloatState, kind: BatchKind) -> list[Batch]:
    """Return the latest batches of a kind that somebody started or ended, without their totals."""
    return await list_batches(conn, owner.vendor_id, kind.value, most=BATCHES_MAX)


async def end_of_day(
    conn: AsyncConnection, owner: FloatState, day: date, *, calendar: LocalCalendar, now_ms: int
) -> Day:
    """Report a local day of a vendor; once it is over the report stays as it is."""
    async with conn.transaction():
        await conn.execute(sql("statement_snapshot"))
        span = await _span(conn, owner, day, day, calendar)
        sums = await sum_span(conn, owner.vendor_id, span)
    return day_of(
        day,
        [_moved(each) for each in sums],
        is_over=calendar.midnight_ms(day + timedelta(days=1)) + SETTLE_MS <= now_ms,
        opening_minor=span.opening_minor,
        closing_minor=span.closing_minor,
    )


async def statement(
    conn: AsyncConnection, owner: FloatState, first: date, last: date, *, after: int | None, calendar: LocalCalendar
) -> FloatStatement:
    """Return a vendor's statement, or its page after an entry.

    Raises: BadPeriod.
    """
    async with conn.transaction():
        await conn.execute(sql("statement_snapshot"))
        span = await _span(conn, owner, first, last, calendar)
        after_n = max(span.before_n, after or 0)
        found = await read_entries(conn, owner.vendor_id, after_n=after_n, last_n=span.last_n, most=ENTRIES_MAX)
    entries = [_entry(row) for row in found]
    opening_minor = entries[0].balance_minor - entries[0].amount_minor if entries else span.closing_minor
    is_whole = not entries or entries[-1].n == span.last_n
    return FloatStatement(
        vendor=owner.vendor,
        first=first,
        last=last,
        opening_minor=opening_minor,
        entries=entries,
        closing_minor=entries[-1].balance_minor if entries else span.closing_minor,
        next_after=None if is_whole else entries[-1].n,
    )


async def statement_csv(
    connect: Connect, owner: FloatState, first: date, last: date, *, calendar: LocalCalendar
) -> AsyncIterator[str]:
    """Write a whole statement as CSV, a page at a time; no connection is held while a page is sent.

    Entries never change, so that pages of different moments go together.
    Raises: BadPeriod.
    """
    async with connect() as conn:
        span = await _span(conn, owner, first, last, calendar)
    return _pages(connect, owner, span, first, last, calendar)


async def _pages(
    connect: Connect, owner: FloatState, span: FloatSpan, first: date, last: date, calendar: LocalCalendar
) -> AsyncIterator[str]:
    yield csv_head(owner.vendor, first, last, span.opening_minor)
    after_n = span.before_n
    while after_n < span.last_n:
        async with connect() as conn:
            found = await read_entries(
                conn, owner.vendor_id, after_n=after_n, last_n=span.last_n, most=CSV_PAGE_ENTRIES
            )
        assert found, f"entries of {owner.vendor}: expected some up to {span.last_n} after {after_n}"
        yield csv_lines(map(_entry, found), calendar.zone)
        after_n = found[-1].n
    yield csv_tail(last, span.closing_minor)


async def _span(
    conn: AsyncConnection, owner: FloatState, first: date, last: date, calendar: LocalCalendar
) -> FloatSpan:
    days = (last - first).days + 1
    if not 1 <= days <= DAYS_MAX:
        raise BadPeriod(f"statement: expected 1 to {DAYS_MAX} days, got {first} to {last}")
    from_at = from_ms(calendar.midnight_ms(first))
    until_at = from_ms(calendar.midnight_ms(last + timedelta(days=1)))
    return await find_span(conn, owner.vendor_id, from_at, until_at)


async def _report(conn: AsyncConnection, vendor: str, of: BatchOf, batch: Batch) -> BatchReport:
    sums = await sum_batch(conn, of, batch)
    return BatchReport(
        vendor=vendor,
        kind=BatchKind(of.kind),
        batch=batch,
        totals=totals_of(map(_moved, sums)),
        first_at=min((each.first_at for each in sums), default=None),
    )


async def _record(conn: AsyncConnection, caller: Caller | None, subject: str, reference: str, *, is_new: bool) -> None:
    """Write the act in the transaction of what it did; the command line has no key to record."""
    if caller is not None:
        outcome = DONE if is_new else REPEATED
        await caller.act.write(conn, outcome=outcome, status=200, subject=subject, reference=reference)


def _moved(each: EntrySum) -> Moved:
    return Moved(
        terminal=each.terminal,
        kind=EntryKind(each.kind),
        tender=each.tender,
        count=each.count,
        amount_minor=each.amount_minor,
    )


def _entry(row: FloatEntry) -> StatementEntry:
    return StatementEntry(
        n=row.n,
        booked_at=row.booked_at,
        kind=EntryKind(row.kind),
        amount_minor=row.amount_minor,
        balance_minor=row.balance_minor,
        reference=row.reference,
        account=row.account,
        terminal=row.terminal,
        operator=row.operator,
        tender=row.tender,
    )


def _error(error: DatabaseError) -> FloatError:
    return _ERROR_OF[type(error)](str(error))
