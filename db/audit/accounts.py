"""Accounts: what the pure functions say of journals and readings, compared with what posts have written.

Stage: a chunk of accounts and their meters at a time, each chunk a dozen set-based statements. Two connections may
take chunks in turn.

A crossing that two transactions made together is settled by ingest right after them: accounts that wait for that
look are not judged by their balance.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, to_ms
from billing.rating import Lines, difference, total
from billing.running import Point, charged_lines, open_bills
from billing.supply import Supply, decide, is_exhausted
from billing.terms import ONE_DAY
from db.audit.cases import Case, Facts, read_cases
from db.audit.meters import KnownCurve, check_curves, check_orders
from db.audit.reading import FIRST_ID, LAST_METER_ID, Audit, Ids, column, rows, slices
from db.audit.recount import Booked, recounted, strays
from db.audit.report import Book
from db.posting import silent_over_part_end

# Ingest settles in milliseconds what the change feed names; a busy account waits for one lock time-out of 5 s more.
SETTLE_S = 6
# An hour that opens, or days of grace that end, are acted on within a minute.
EDGE_SLACK_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Some accounts and some meters that are read together."""

    account_ids: list[int]
    meter_ids: Ids


async def check_accounts(conn: AsyncConnection, audit: Audit) -> None:
    """Take chunks of accounts and meters until none is left."""
    while chunk := await _next_chunk(conn, audit):
        await _check_curves_and_accounts(conn, audit, chunk)
        audit.accounts_done += len(chunk.account_ids)
        audit.progress("accounts", min(audit.accounts_done, audit.accounts), audit.accounts)


async def check_unmetered(conn: AsyncConnection, audit: Audit) -> None:
    """Report accounts that no meter leads to; a limited audit has met them among its accounts."""
    if audit.account_ids is None:
        for ids in slices(await column(conn, "audit_unmetered", {}), audit.limits.accounts):
            facts, _ = await read_cases(conn, ids, audit.calendar)
            _report_meterless(audit.book, facts)


async def _next_chunk(conn: AsyncConnection, audit: Audit) -> _Chunk | None:
    """Take the next accounts of the list, or the next meters in id order with their accounts."""
    async with audit.turn:
        if audit.exhausted:
            return None
        most, after = audit.limits.accounts, audit.taken_to
        if audit.account_ids is not None:
            ids = [account_id for account_id in audit.account_ids if account_id > after][:most]
            audit.exhausted = not ids
            audit.taken_to = ids[-1] if ids else after
            places = await rows(conn, "audit_places_of", {"ids": ids})
            meters = sorted(place["meter_id"] for place in places if place["meter_id"] is not None)
            span = Ids(after=FIRST_ID, upto=LAST_METER_ID, only=meters)
            return _Chunk(account_ids=ids, meter_ids=span) if ids else None
        meters = await column(conn, "audit_next_meters", {"after": after, "most": most})
        audit.exhausted = not meters
        # Readings of ids that nobody registered lie between and behind those of meters.
        span = Ids(after=after, upto=meters[-1] if meters else LAST_METER_ID)
        audit.taken_to = span.upto
    places = await rows(conn, "audit_places", span.parameters)
    return _Chunk(account_ids=[place["id"] for place in places], meter_ids=span)


async def _check_curves_and_accounts(conn: AsyncConnection, audit: Audit, chunk: _Chunk) -> None:
    calendar = audit.calendar
    facts, cases = await read_cases(conn, chunk.account_ids, calendar)
    parameters = {"ids": chunk.account_ids, "recent_shards": audit.recent_shards}
    waiting = set(await column(conn, "audit_waiting", parameters))
    edges_ms = {case.view.meter.id: case.edges_ms(calendar) for case in cases.values()}
    curves = await check_curves(conn, audit, chunk.meter_ids, edges_ms)
    await check_orders(conn, audit, chunk.meter_ids)
    _report_meterless(audit.book, [row for row in facts if row.id not in cases])
    for account_id, case in cases.items():
        _check_account(audit, case, curves.get(case.view.meter.id) or KnownCurve(), account_id in waiting)


def _report_meterless(book: Book, facts: Sequence[Facts]) -> None:
    for row in facts:
        book.count("I2")
        text = f"account {row.number}: no billing meter with a first register and a state"
        book.fail("I2", text, key=row.id, account_id=row.id)


def _check_account(audit: Audit, case: Case, known: KnownCurve, waiting: bool) -> None:
    book, calendar = audit.book, audit.calendar
    _check_checkpoint(book, case)
    _check_days(book, case)
    _check_order(book, case)
    _check_charged(book, case, known.last, calendar)
    _check_alarms(book, case)
    if waiting:
        book.count("rechecks")
        return
    edge_wh = _check_closed_parts(book, case, case.curve(known.around), calendar)
    _check_open_part(book, case, edge_wh)
    _check_levels(book, case, case.view.balance_minor(calendar), to_ms(audit.clock), calendar)


def _fail(book: Book, check_id: str, case: Case, text: str, journal_id: int | None = None) -> None:
    """Report a break of an account; `text` goes on after its number."""
    example, account_id = f"account {case.view.number}{text}", case.view.id
    book.fail(check_id, example, key=account_id, account_id=account_id, journal_id=journal_id)


def _check_checkpoint(book: Book, case: Case) -> None:
    book.count("I2")
    checkpoint, terms = case.view.checkpoint, case.view.terms
    current = case.periods.get(terms.part_at(checkpoint.through).first, Booked())
    start_wh = checkpoint.closed_wh - current.energy_wh
    wrong = [
        f"{name}: checkpoint {kept}, journals {booked}"
        for name, kept, booked in (
            ("posted minor", checkpoint.posted_minor, case.prepaid_minor),
            ("closed Wh", checkpoint.closed_wh, case.postings.energy_wh),
            ("part start Wh", checkpoint.part_start_wh, start_wh),
            ("charged minor", checkpoint.charged_minor, total(current.lines)),
            ("demand W", checkpoint.demand_w, current.demand_w),
        )
        if kept != booked
    ]
    short = difference(current.lines, charged_lines(checkpoint, terms))
    if short:
        wrong.append(f"charged this part: journals less checkpoint {_text(short)}")
    if wrong:
        _fail(book, "I2", case, f": {', '.join(wrong)}")


def _check_days(book: Book, case: Case) -> None:
    book.count("days")
    opened_on, through, booked = case.view.terms.opened_on, case.view.checkpoint.through, case.postings
    expected = (through - opened_on).days
    # Days are unique per account, so that the right number between the right ends leaves no gap.
    ends = (opened_on, through - ONE_DAY) if expected else (None, None)
    if (booked.days, booked.first_day, booked.last_day) != (expected, *ends):
        text = (
            f": expected {expected} days from {opened_on} to before {through},"
            f" got {booked.days} from {booked.first_day} to {booked.last_day}"
        )
        _fail(book, "days", case, text)


def _check_order(book: Book, case: Case) -> None:
    """Journals of an account are written under its lock: a later one has a later booked time, day after day."""
    found = case.postings
    book.count("I13", found.journals)
    breaks = (
        (found.behind, "booked before the journal before them"),
        (found.days_behind, "of a day that is not after those closed before"),
        (found.ahead, "of a day or bill part that began after they were booked"),
    )
    for number, why in breaks:
        if number:
            text = f"account {case.view.number}: {number} journals {why}, the first out of order is"
            text = f"{text} {found.first_out_of_order}"
            account_id = case.view.id
            book.fail(
                "I13", text, key=account_id, number=number, account_id=account_id, journal_id=found.first_out_of_order
            )


def _check_charged(book: Book, case: Case, last: Point | None, calendar: LocalCalendar) -> None:
    """Compare the metered energy of all bills, closed and open, with the registers at both ends.

    What a correction has assessed is no metered energy; it needs the correction.
    """
    book.count("I4-charged")
    view, found = case.view, case.postings
    current = view.terms.part_at(view.checkpoint.through).first
    charged_wh = sum(booked.energy_wh for period, booked in case.periods.items() if period < current)
    running = open_bills(view.checkpoint, view.terms, view.points, calendar)
    charged_wh += sum(energy_wh for energy_wh, _ in running.values())
    # Energy to date begins with the account, also where another meter stands by now.
    begins = view.meter.installation
    # What the meter read in another place before is not the account's.
    metered_wh = (last if last and last.at_ms >= begins.at_ms else begins).energy_wh
    if charged_wh != metered_wh:
        text = f", meter {view.meter.serial}: charged {charged_wh} Wh, registers say {metered_wh} Wh"
        _fail(book, "I4-charged", case, text)
    if found.undocumented:
        text = f": {found.undocumented} journals of assessed energy without a correction"
        _fail(book, "I4-charged", case, text, found.first_undocumented)


def _check_closed_parts(book: Book, case: Case, curve: Sequence[Point], calendar: LocalCalendar) -> int | None:
    """Rate each closed part from its readings; compare with the journals. Return the last edge's Wh, if it is known.

    What was used until an unread edge is not known yet: the meter's next reading makes it good.
    """
    for period in strays(case.parts, case.periods):
        _fail(book, "I5", case, f", from {period}: journals have booked this and no bill part begins there")
    edge_wh: int | None = 0
    known = 1
    for recount in recounted(case.parts, case.periods, curve, calendar):
        book.count("I5")
        known += 1
        edge_wh = recount.edge_wh
        if not recount.short and not recount.short_wh:
            continue
        if recount.part.last in case.postings.unread_days and silent_over_part_end(case.view, calendar):
            # Closed as unread and read since; ingest books the difference with the meter's next reading.
            return None
        text = f"journals are short of {recount.short_wh} Wh, {_text(recount.short)}"
        _fail(book, "I5", case, f", from {recount.part.first}: {text}")
    return edge_wh if known == len(case.parts) else None


def _check_open_part(book: Book, case: Case, edge_wh: int | None) -> None:
    """Compare the open part's first edge with the readings, if it is known, and rate its closed days again."""
    checkpoint, terms = case.view.checkpoint, case.view.terms
    book.count("I5")
    if edge_wh is not None and edge_wh != checkpoint.part_start_wh:
        first, kept_wh = terms.part_at(checkpoint.through).first, checkpoint.part_start_wh
        _fail(book, "I5", case, f", from {first}: begins at {kept_wh} Wh, readings say {edge_wh} Wh")
    lines = charged_lines(checkpoint, terms)
    if total(lines) != checkpoint.charged_minor:
        again = f"charged {checkpoint.charged_minor} minor, rated again {total(lines)}: {_text(lines)}"
        _fail(book, "I5", case, f" before {checkpoint.through}: {again}")
    if checkpoint.closed_zones and sum(checkpoint.closed_zones) != checkpoint.closed_wh - checkpoint.part_start_wh:
        _fail(book, "I5", case, f": zones {checkpoint.closed_zones} do not sum to the energy of the part")


def _check_levels(book: Book, case: Case, balance_minor: int, now_ms: int, calendar: LocalCalendar) -> None:
    """Compare desired supply and raised levels with what the balance asks for now."""
    view, levels = case.view, case.view.levels
    book.count("I8")
    # An hour that opens or a grace that ends is acted on within a minute.
    wanted = {
        decide(levels, balance_minor, may_rearm=False, scheme=view.scheme, now_ms=at_ms, calendar=calendar).verdict
        for at_ms in (now_ms, now_ms - EDGE_SLACK_MS)
    }
    told = _told(case)
    if levels.desired not in {verdict.supply for verdict in wanted}:
        asked = " or ".join(sorted(f"{verdict.supply} ({verdict.reason})" for verdict in wanted))
        _fail(book, "I8", case, f": desired {levels.desired}, balance {balance_minor} minor asks for {asked}")
    elif told is not levels.desired:
        way = f"was ordered {told}" if view.open_order else f"has {told} and no open order"
        _fail(book, "I8", case, f": desired {levels.desired}, meter {view.meter.serial} {way}")
    low_minor = levels.threshold_minor
    if low_minor is not None and balance_minor <= low_minor and not levels.low_raised:
        _fail(book, "I9", case, f": balance {balance_minor} minor, threshold {low_minor}, low was not raised")
    for each in levels.thresholds:
        if balance_minor <= each.level_minor and not each.raised:
            at = f"threshold {each.n} at {each.level_minor}"
            _fail(book, "I9", case, f": balance {balance_minor} minor, {at}, low was not raised")
    if is_exhausted(levels, balance_minor) and not levels.exhausted_raised:
        _fail(book, "I9", case, f": balance {balance_minor} minor, exhausted was not raised")


def _told(case: Case) -> Supply:
    """Return the supply the meter was last ordered, else reported, else confirmed; new meters are on."""
    view, facts = case.view, case.facts
    if view.open_order:
        return view.open_order.relay
    if view.meter.relay:
        return view.meter.relay
    return Supply(facts.ordered) if facts.ordered and facts.order_state == "confirmed" else Supply.ON


def _check_alarms(book: Book, case: Case) -> None:
    """Every arm before the present one has its alarm, the present one only if it is raised."""
    book.count("I9")
    levels, facts = case.view.levels, case.facts
    further = dict(facts.further_arms)
    known = [
        ("level low", levels.low_arm, levels.low_raised, facts.low_arms),
        ("level exhausted", levels.exhausted_arm, levels.exhausted_raised, facts.exhausted_arms),
        *((f"threshold {each.n}", each.arm, each.raised, further.pop(str(each.n), [])) for each in levels.thresholds),
    ]
    for level, arm, raised, arms in known:
        state = f"{level} at arm {arm}, {'raised' if raised else 'not raised'}"
        _check_arms(book, case, state, arms, last=arm if raised else arm - 1)
    for n, arms in further.items():
        _check_arms(book, case, f"threshold {n}, not in force", arms, last=arms[-1])


def _check_arms(book: Book, case: Case, state: str, arms: list[int], *, last: int) -> None:
    expected = list(range(1, last + 1))
    if arms != expected:
        wrong = [at for at, _ in itertools.groupby(sorted(arms + expected)) if arms.count(at) != (at in expected)]
        counts = f"expected {len(expected)} alarms, got {len(arms)}, first wrong at arm {wrong[0]}"
        _fail(book, "I9", case, f": {state}: {counts}")


def _text(lines: Lines) -> str:
    return ", ".join(f"{name} {amount_minor} minor" for name, amount_minor in lines.items()) or "no money"
