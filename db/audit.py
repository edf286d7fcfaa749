"""The auditor: every invariant that the database alone can tell, checked on a live installation.

Stage: after the fact, whenever an operator asks. Reads everything in one repeatable-read, read-only transaction, in
chunks of bounded size; what the pure functions say of the stored rows is compared with what posts have written. It
never writes, locks an account or looks at a clock. While it runs, its snapshot keeps old row versions from being
vacuumed away.

A crossing that two transactions made together is settled by ingest right after them: accounts that wait for that
look are not judged by their balance.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row

from billing.calendar import LocalCalendar, from_ms, to_ms
from billing.rating import Lines, difference, total
from billing.running import EdgeQuality, Point, charged_lines, energy_at, open_bills, with_assessed, zones_of
from billing.supply import Supply, desired_supply
from billing.terms import ONE_DAY, BillPart, part_lines
from db.accounts import AccountView, look
from db.named import sql
from db.posting import closed_edges_ms, parts_between, silent_over_part_end

EXAMPLES_MAX = 5
# 500 accounts of a year are 180,000 day journals, one second of work and 50 MB of rows at the most.
ACCOUNTS_PER_CHUNK = 500
# 100 meters of a year at half-hourly readings are 1.8 million rows, which sort within a few seconds.
METERS_PER_CHUNK = 100
# 50,000 journals have some 300,000 legs.
ROWS_PER_CHUNK = 50_000
# Ingest settles in milliseconds what the change feed names; a busy account waits for one lock time-out of 5 s more.
SETTLE_S = 6
_FIRST_ID, _LAST_METER_ID, _LAST_ID = -1, 2**31 - 1, 2**63 - 1


@dataclass(slots=True, kw_only=True)
class Check:
    """One invariant: how many things were checked, how many break it, and a few of these by name."""

    id: str
    title: str
    unit: str
    checked: int = 0
    broken: int = 0
    examples: list[str] = field(default_factory=list)

    def fail(self, example: str, number: int = 1) -> None:
        """Count what is broken and keep it as an example while there are few."""
        self.broken += number
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(example)

    def line(self) -> str:
        """Return the finding as a line for a person."""
        checked = f"{self.id:<10} {self.title}: {self.checked:,} {self.unit}, "
        return checked + (f"{self.broken:,} BROKEN: {'; '.join(self.examples)}" if self.broken else "ok")

    def to_json(self) -> dict[str, object]:
        """Return the finding as the `--json` output shows it."""
        return {
            "id": self.id,
            "title": self.title,
            "checked": self.checked,
            "broken": self.broken,
            "examples": list(self.examples),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found, one check per invariant."""

    checks: tuple[Check, ...]

    @property
    def clean(self) -> bool:
        """Tell whether no invariant is broken."""
        return not any(check.broken for check in self.checks)

    def lines(self) -> list[str]:
        """Return one plain line per check."""
        return [check.line() for check in self.checks]

    def to_json(self) -> dict[str, object]:
        """Return the report as the `--json` output shows it."""
        return {"clean": self.clean, "checks": [check.to_json() for check in self.checks]}


_CHECKS = (
    ("I1", "every journal has legs that sum to zero, and so has the whole ledger", "journals"),
    ("I2", "checkpoints equal the sum of their journals", "accounts"),
    ("days", "no local day is missing between opening and last closed day", "accounts"),
    ("I3", "no reading is older than its meter's installation", "readings"),
    ("I3-batches", "received = stored + duplicate + rejected + quarantined", "batches"),
    ("I3-rows", "stored counts equal rows", "readings"),
    ("I4", "energy to date only rises", "readings"),
    ("I4-charged", "energy charged = last reading - installation", "accounts"),
    ("I5", "from-scratch rating equals what journals booked", "periods"),
    ("I6", "an accepted vend has one journal and one token of its amount, a refused one none", "vends"),
    ("I6-tokens", "a token belongs to one accepted vend; its TID is its meter's own", "tokens"),
    ("I8", "desired supply follows the balance, and the meter has it or was ordered to", "accounts"),
    ("I8-orders", "one open supply order a meter, rising epochs, no cut-off of a postpaid account", "orders"),
    ("I9", "one alarm per level and arm, none missing", "accounts"),
    ("rechecks", "waiting for a look, not judged by their balance", "accounts"),
)


class _Book:
    """The checks of one audit by id."""

    def __init__(self) -> None:
        self._checks = {name: Check(id=name, title=title, unit=unit) for name, title, unit in _CHECKS}

    def __getitem__(self, name: str) -> Check:
        return self._checks[name]

    def report(self) -> AuditReport:
        return AuditReport(checks=tuple(self._checks.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What rows say of one account beside its checkpoint: a row of `audit_accounts`."""

    id: int
    number: str
    meter_id: int | None
    complete: bool | None
    prepaid_minor: int
    energy_wh: int
    days: int
    first_day: date | None
    last_day: date | None
    unread_days: list[date]
    low_arms: list[int]
    exhausted_arms: list[int]
    ordered: str | None
    order_state: str | None
    last_at: datetime | None
    last_register_wh: int | None


@dataclass(slots=True, kw_only=True)
class _Booked:
    """What journals have booked for one bill part."""

    energy_wh: int = 0
    demand_w: int = 0
    assessed_wh: int = 0
    lines: Lines = field(default_factory=dict)


_Periods = dict[date, _Booked]


async def run_checks(conn: AsyncConnection, calendar: LocalCalendar) -> AuditReport:
    """Check every invariant on one snapshot. `conn` must not be in a transaction."""
    book = _Book()
    async with conn.transaction():
        await conn.execute(sql("audit_snapshot"))
        await _check_ledger(conn, book)
        await _check_accounts(conn, book, calendar)
        await _check_meters(conn, book)
        await _check_batches(conn, book)
        await _check_vends(conn, book)
    return book.report()


async def _ranges(conn: AsyncConnection, query: str, *, most: int, last: int) -> AsyncIterator[dict[str, int]]:
    """Yield ranges (after, upto] of ids that hold at most so many known rows and leave none out."""
    after = _FIRST_ID
    while True:
        cursor = await conn.execute(sql(query), {"after": after, "most": most})
        row = await cursor.fetchone()
        upto = row[0] if row else None
        if upto is None:
            yield {"after": after, "upto": last}
            return
        yield {"after": after, "upto": upto}
        after = upto


async def _rows(conn: AsyncConnection, query: str, parameters: Mapping[str, object]) -> list[dict[str, Any]]:
    # Rows by column name: typed by the query and the migration.
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql(query), parameters)
        return await cursor.fetchall()


async def _first(conn: AsyncConnection, query: str, parameters: Mapping[str, object]) -> tuple[Any, ...]:
    # One row of an aggregate, typed by its query.
    cursor = await conn.execute(sql(query), parameters)
    row = await cursor.fetchone()
    assert row is not None, f"{query} returns one row"
    return row


# The ledger and what was sold ------------------------------------------------------------------------------------


async def _check_ledger(conn: AsyncConnection, book: _Book) -> None:
    ledger_minor = 0
    async for ids in _ranges(conn, "audit_next_journals", most=ROWS_PER_CHUNK, last=_LAST_ID):
        journals, amount_minor, broken, unsold = await _first(conn, "audit_journals", ids)
        book["I1"].checked += journals
        ledger_minor += amount_minor
        for journal_id, number, legs, sum_minor in broken:
            found = f"{legs} legs that sum to {sum_minor} minor" if legs else "no legs"
            book["I1"].fail(f"journal {journal_id} of account {number}: {found}")
        for journal_id, number in unsold:
            book["I6"].fail(f"journal {journal_id} of account {number}: kind vend, and no vend names it")
    if ledger_minor:
        book["I1"].fail(f"whole ledger: sums to {ledger_minor} minor")


async def _check_vends(conn: AsyncConnection, book: _Book) -> None:
    async for ids in _ranges(conn, "audit_next_vends", most=ROWS_PER_CHUNK, last=_LAST_ID):
        book["I6"].checked += (await _first(conn, "audit_vends", ids))[0]
        for row in await _rows(conn, "audit_broken_vends", ids):
            book["I6"].fail(_broken_vend(row))
    async for ids in _ranges(conn, "audit_next_tokens", most=ROWS_PER_CHUNK, last=_LAST_ID):
        book["I6-tokens"].checked += (await _first(conn, "audit_tokens", ids))[0]
        for row in await _rows(conn, "audit_broken_tokens", ids):
            book["I6-tokens"].fail(_broken_token(row))


def _broken_vend(row: Mapping[str, Any]) -> str:
    who = f"vend {row['id']} (message {row['message_id']}, account {row['number']}, status {row['status']})"
    if row["repeated"]:
        return f"{who}: its message id is used twice by its vendor"
    if row["journal_id"] is not None and row["journal_ok"] is not True:
        return f"{who}: journal {row['journal_id']} is no vend of its account"
    if row["journal_id"] is not None and row["credited_minor"] != row["amount_minor"]:
        return f"{who}: amount {row['amount_minor']} minor, journal {row['journal_id']} credits {row['credited_minor']}"
    journals = 0 if row["journal_id"] is None else 1
    return f"{who}: {journals} journals and {row['tokens']} tokens"


def _broken_token(row: Mapping[str, Any]) -> str:
    who = f"token {row['id']} of meter {row['serial']}, TID {row['tid']}"
    if row["repeated"]:
        return f"{who}: another token of the meter has the same TID"
    if not row["sold"]:
        return f"{who}: no accepted vend"
    if not row["at_home"]:
        return f"{who}: the vend is of an account that the meter never stood at"
    return f"{who}: the meter's last TID is {row['last_tid']}"


# Meters and what they sent ---------------------------------------------------------------------------------------


async def _check_meters(conn: AsyncConnection, book: _Book) -> None:
    async for ids in _ranges(conn, "audit_next_meters", most=METERS_PER_CHUNK, last=_LAST_METER_ID):
        for row in await _rows(conn, "audit_curves", ids):
            _check_curve(book, row)
        for row in await _rows(conn, "audit_orders", ids):
            _check_orders(book, row)


def _check_curve(book: _Book, row: Mapping[str, Any]) -> None:
    book["I3"].checked += row["readings"]
    book["I4"].checked += row["readings"]
    who = f"meter {row['serial']} (id {row['meter_id']})"
    if row["outside"]:
        example = f"{who}: {row['outside']} from {row['outside_at'].isoformat()} on"
        book["I3"].fail(example, row["outside"])
    if row["falls"]:
        book["I4"].fail(f"{who}: falls {row['falls']} times, first at {row['falls_at'].isoformat()}", row["falls"])


def _check_orders(book: _Book, row: Mapping[str, Any]) -> None:
    check = book["I8-orders"]
    check.checked += row["orders"]
    who = f"meter {row['serial']} (id {row['meter_id']})"
    if row["open_supply"] > 1:
        check.fail(f"{who}: {row['open_supply']} open supply orders", row["open_supply"] - 1)
    if row["fallen"]:
        check.fail(f"{who}: {row['fallen']} orders whose epoch does not rise", row["fallen"])
    if row["epoch"] > row["order_epoch"]:
        check.fail(f"{who}: epoch {row['epoch']} was ordered, the meter's last is {row['order_epoch']}")
    if row["postpaid_cut"]:
        check.fail(f"{who}: {row['postpaid_cut']} cut-offs of a postpaid account", row["postpaid_cut"])


async def _check_batches(conn: AsyncConnection, book: _Book) -> None:
    batches, stored, broken = await _first(conn, "audit_batches", {})
    check = book["I3-batches"]
    check.checked = batches
    if broken:
        rows = await _rows(conn, "audit_broken_batches", {"most": EXAMPLES_MAX})
        check.examples += [
            f"batch {row['id']} of shard {row['shard']}: received {row['received']}, stored {row['stored']},"
            f" duplicate {row['duplicate']}, rejected {row['rejected']}, quarantined {row['quarantined']}"
            for row in rows
        ]
        check.broken = broken
    # The meters' curves have been read: every row was counted there.
    rows_stored = book["I3-rows"].checked = book["I3"].checked
    if stored != rows_stored:
        example = f"batches stored {stored:,} readings, the table holds {rows_stored:,}"
        book["I3-rows"].fail(example, abs(stored - rows_stored))


# Accounts ----------------------------------------------------------------------------------------------------------


async def _check_accounts(conn: AsyncConnection, book: _Book, calendar: LocalCalendar) -> None:
    cursor = await conn.execute(sql("audit_recent_shards"), {"settle_s": SETTLE_S})
    recent_shards = [row[0] for row in await cursor.fetchall()]
    after = _FIRST_ID
    while True:
        cursor = await conn.execute(sql("audit_next_accounts"), {"after": after, "most": ACCOUNTS_PER_CHUNK})
        ids = [row[0] for row in await cursor.fetchall()]
        if not ids:
            break
        cursor = await conn.execute(sql("audit_waiting"), {"ids": ids, "recent_shards": recent_shards})
        waiting = {row[0] for row in await cursor.fetchall()}
        await _check_chunk(conn, book, ids, waiting, calendar)
        after = ids[-1]


async def _check_chunk(
    conn: AsyncConnection, book: _Book, ids: Sequence[int], waiting: Collection[int], calendar: LocalCalendar
) -> None:
    async with conn.cursor(row_factory=class_row(_Facts)) as cursor:
        await cursor.execute(sql("audit_accounts"), {"ids": list(ids)})
        facts = {row.id: row for row in await cursor.fetchall()}
    views = await look(conn, [row.id for row in facts.values() if row.complete], calendar)
    booked = await _booked(conn, ids)
    curves = await _edge_points(conn, views.values(), calendar)
    for account_id, fact in facts.items():
        book["I2"].checked += 1
        view = views.get(account_id)
        if view is None:
            book["I2"].fail(f"account {fact.number}: no billing meter with a first register and a state")
            continue
        periods = booked[account_id]
        _check_checkpoint(book["I2"], view, fact, periods)
        _check_days(book["days"], view, fact)
        _check_charged(book["I4-charged"], view, fact, periods, calendar)
        _check_alarms(book["I9"], view, fact)
        if account_id in waiting:
            book["rechecks"].checked += 1
        else:
            edge_wh = _check_closed_parts(book["I5"], view, fact, periods, curves[account_id], calendar)
            _check_open_part(book["I5"], view, fact, edge_wh)
            _check_levels(book, view, fact, view.balance_minor(calendar))


async def _booked(conn: AsyncConnection, ids: Sequence[int]) -> dict[int, _Periods]:
    found: dict[int, _Periods] = {account_id: {} for account_id in ids}
    cursor = await conn.execute(sql("account_demands"), {"ids": list(ids)})
    for account_id, period, energy_wh, demand_w, assessed_wh in await cursor.fetchall():
        found[account_id][period] = _Booked(energy_wh=energy_wh, demand_w=demand_w, assessed_wh=assessed_wh)
    cursor = await conn.execute(sql("account_bills"), {"ids": list(ids)})
    for account_id, period, line, amount_minor in await cursor.fetchall():
        found[account_id][period].lines[line] = amount_minor
    return found


async def _edge_points(
    conn: AsyncConnection, views: Iterable[AccountView], calendar: LocalCalendar
) -> dict[int, list[Point]]:
    """Read what is needed to know each account's energy at its closed parts' edges, from readings alone."""
    by_id = {view.id: view for view in views}
    edges = [
        (view.id, view.meter.id, from_ms(edge_ms))
        for view in by_id.values()
        for edge_ms in closed_edges_ms(_parts(view), view.checkpoint.through, calendar)
    ]
    curves = {account_id: {_installation(view)} for account_id, view in by_id.items()}
    if edges:
        account_ids, meter_ids, ats = (list(column) for column in zip(*edges, strict=True))
        parameters = {"account_ids": account_ids, "meter_ids": meter_ids, "edges": ats}
        cursor = await conn.execute(sql("audit_edges"), parameters)
        for account_id, read_at, register_wh in await cursor.fetchall():
            curves[account_id].add(_point(by_id[account_id], read_at, register_wh))
    return {account_id: sorted(points) for account_id, points in curves.items()}


def _check_checkpoint(check: Check, view: AccountView, fact: _Facts, periods: _Periods) -> None:
    checkpoint = view.checkpoint
    current = periods.get(view.terms.part_at(checkpoint.through).first, _Booked())
    start_wh = checkpoint.closed_wh - current.energy_wh
    wrong = [
        f"{name}: checkpoint {kept}, journals {booked}"
        for name, kept, booked in (
            ("posted minor", checkpoint.posted_minor, fact.prepaid_minor),
            ("closed Wh", checkpoint.closed_wh, fact.energy_wh),
            ("part start Wh", checkpoint.part_start_wh, start_wh),
            ("charged minor", checkpoint.charged_minor, total(current.lines)),
            ("demand W", checkpoint.demand_w, current.demand_w),
        )
        if kept != booked
    ]
    short = difference(current.lines, charged_lines(checkpoint, view.terms))
    if short:
        wrong.append(f"charged this part: journals less checkpoint {_text(short)}")
    if wrong:
        check.fail(f"account {fact.number}: {', '.join(wrong)}")


def _check_days(check: Check, view: AccountView, fact: _Facts) -> None:
    check.checked += 1
    opened_on, through = view.terms.opened_on, view.checkpoint.through
    expected = (through - opened_on).days
    # Days are unique per account, so that the right number between the right ends leaves no gap.
    ends = (opened_on, through - ONE_DAY) if expected else (None, None)
    if (fact.days, fact.first_day, fact.last_day) != (expected, *ends):
        check.fail(
            f"account {fact.number}: expected {expected} days from {opened_on} to before {through},"
            f" got {fact.days} from {fact.first_day} to {fact.last_day}"
        )


def _check_charged(check: Check, view: AccountView, fact: _Facts, periods: _Periods, calendar: LocalCalendar) -> None:
    """Compare the energy of all bills, closed and open, with the registers at both ends."""
    check.checked += 1
    current = view.terms.part_at(view.checkpoint.through).first
    charged_wh = sum(booked.energy_wh for period, booked in periods.items() if period < current)
    running = open_bills(view.checkpoint, view.terms, view.points, calendar)
    charged_wh += sum(energy_wh for energy_wh, _ in running.values())
    first = last = _installation(view)
    if fact.last_at is not None and fact.last_register_wh is not None:
        last = _point(view, fact.last_at, fact.last_register_wh)
    if charged_wh != last.energy_wh - first.energy_wh:
        check.fail(
            f"account {fact.number}, meter {view.meter.serial}: charged {charged_wh} Wh,"
            f" registers say {last.energy_wh - first.energy_wh} Wh"
        )


def _check_closed_parts(
    check: Check,
    view: AccountView,
    fact: _Facts,
    periods: _Periods,
    curve: Sequence[Point],
    calendar: LocalCalendar,
) -> int | None:
    """Rate each closed part from its readings; compare with the journals. Return the last edge's Wh, if it is known.

    What was used until an unread edge is not known yet: the meter's next reading makes it good.
    """
    edge_wh = curve[0].energy_wh
    before_wh = 0
    for part in _parts(view)[:-1]:
        end_ms = calendar.midnight_ms(part.end)
        end_wh, quality = energy_at(curve, end_ms)
        if quality is EdgeQuality.UNREAD:
            return None
        check.checked += 1
        energy_wh, edge_wh = end_wh - edge_wh, end_wh
        before_wh = 0 if part.fresh else before_wh
        booked = periods.get(part.first, _Booked())
        billed_wh = energy_wh + booked.assessed_wh
        lines = part_lines(
            part,
            before_wh=before_wh,
            energy_wh=billed_wh,
            zone_wh=with_assessed(zones_of(part, curve, end_ms, calendar), billed_wh),
            through_day=part.last,
            demand_w=booked.demand_w,
        )
        before_wh += billed_wh
        short = difference(lines, booked.lines)
        if not short and energy_wh == booked.energy_wh:
            continue
        if part.last in fact.unread_days and silent_over_part_end(view, calendar):
            # Closed as unread and read since; ingest books the difference with the meter's next reading.
            return None
        short_wh = energy_wh - booked.energy_wh
        check.fail(f"account {fact.number}, from {part.first}: journals are short of {short_wh} Wh, {_text(short)}")
    return edge_wh


def _check_open_part(check: Check, view: AccountView, fact: _Facts, edge_wh: int | None) -> None:
    """Compare the open part's first edge with the readings, if it is known, and rate its closed days again."""
    checkpoint = view.checkpoint
    check.checked += 1
    if edge_wh is not None and edge_wh != checkpoint.part_start_wh:
        first, kept_wh = view.terms.part_at(checkpoint.through).first, checkpoint.part_start_wh
        check.fail(f"account {fact.number}, from {first}: begins at {kept_wh} Wh, readings say {edge_wh} Wh")
    lines = charged_lines(checkpoint, view.terms)
    if total(lines) != checkpoint.charged_minor:
        check.fail(
            f"account {fact.number} before {checkpoint.through}: charged {checkpoint.charged_minor} minor,"
            f" rated again {total(lines)}: {_text(lines)}"
        )
    if checkpoint.closed_zones and sum(checkpoint.closed_zones) != checkpoint.closed_wh - checkpoint.part_start_wh:
        check.fail(f"account {fact.number}: zones {checkpoint.closed_zones} do not sum to the energy of the part")


def _check_levels(book: _Book, view: AccountView, fact: _Facts, balance_minor: int) -> None:
    """Compare desired supply and raised levels with what the balance asks for now."""
    check, levels = book["I8"], view.levels
    check.checked += 1
    wanted = desired_supply(levels, balance_minor)
    told = _told(view, fact)
    if levels.desired is not wanted:
        check.fail(f"account {fact.number}: desired {levels.desired}, balance {balance_minor} minor asks for {wanted}")
    elif told is not levels.desired:
        way = f"was ordered {told}" if view.open_order else f"has {told} and no open order"
        check.fail(f"account {fact.number}: desired {levels.desired}, meter {view.meter.serial} {way}")
    low_minor = levels.threshold_minor
    if low_minor is not None and balance_minor <= low_minor and not levels.low_raised:
        book["I9"].fail(
            f"account {fact.number}: balance {balance_minor} minor, threshold {low_minor}, low was not raised"
        )
    if wanted is Supply.OFF and not levels.exhausted_raised:
        book["I9"].fail(f"account {fact.number}: balance {balance_minor} minor, exhausted was not raised")


def _told(view: AccountView, fact: _Facts) -> Supply:
    """Return the supply the meter was last ordered, else reported, else confirmed; new meters are on."""
    if view.open_order:
        return view.open_order.relay
    if view.meter.relay:
        return view.meter.relay
    return Supply(fact.ordered) if fact.ordered and fact.order_state == "confirmed" else Supply.ON


def _check_alarms(check: Check, view: AccountView, fact: _Facts) -> None:
    """Every arm before the present one has its alarm, the present one only if it is raised."""
    check.checked += 1
    levels = view.levels
    for level, arm, raised, arms in (
        ("low", levels.low_arm, levels.low_raised, fact.low_arms),
        ("exhausted", levels.exhausted_arm, levels.exhausted_raised, fact.exhausted_arms),
    ):
        expected = list(range(1, arm + 1 if raised else arm))
        if arms != expected:
            wrong = [at for at, _ in itertools.groupby(sorted(arms + expected)) if arms.count(at) != (at in expected)]
            check.fail(
                f"account {fact.number}: level {level} at arm {arm}, {'raised' if raised else 'not raised'}:"
                f" expected {len(expected)} alarms, got {len(arms)}, first wrong at arm {wrong[0]}"
            )


def _parts(view: AccountView) -> list[BillPart]:
    """Return an account's bill parts from its opening to the open one."""
    return parts_between(view.terms, view.terms.opened_on, view.checkpoint.through)


def _installation(view: AccountView) -> Point:
    return Point(at_ms=view.meter.installed_ms, energy_wh=view.meter.segments[0].start_wh)


def _point(view: AccountView, read_at: datetime, register_wh: int) -> Point:
    at_ms = to_ms(read_at)
    return Point(at_ms=at_ms, energy_wh=view.meter.energy_to_date(at_ms, register_wh))


def _text(lines: Lines) -> str:
    return ", ".join(f"{name} {amount_minor} minor" for name, amount_minor in lines.items()) or "no money"
