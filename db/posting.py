"""The one `post`: everything that changes an account's money, alarms or supply goes through here.

Stage: the middle of every transaction that touches an account. The caller opens the transaction, locks with `lock`,
reads with `look`, and posts; nothing is written that was decided before the lock. A post writes the journals and
their legs, the new checkpoint, alarms, orders, notices and the change-feed row, or nothing at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from billing.calendar import LocalCalendar, from_ms
from billing.journals import Journal, JournalKind, day_journal, late_journal, money_journal
from billing.late_usage import late_usage
from billing.notices import Facts, Recharged
from billing.running import Checkpoint, PeriodPosted, close_days, running_balance
from billing.supply import Decision, LevelName, Levels, Supply, decide
from billing.terms import BillPart, Terms
from billing.zones import zone_clock
from db.accounts import AccountView, day_demands, look, points_around, posted_periods
from db.errors import UnknownAccount
from db.further_levels import levels_by_recharge, save_further_levels
from db.named import sql
from db.orders import (
    PostingRules,
    align_supply,
    notices_of,
    order_threshold,
    raise_alarm,
    recharge_to_restore,
    sound_alarm,
    threatens,
)
from db.prepayment import prepayment_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """What a post did to one account."""

    account_id: int
    balance_minor: int
    decision: Decision
    journal_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is about to be written for one account: for the modules of this package that post."""

    journals: tuple[Journal, ...] = ()
    checkpoint: Checkpoint
    levels: Levels
    cause: str
    may_rearm: bool = False
    recharge_minor: int = 0
    # Digits that the consumer is told with the recharge, in groups; none for a token that is held back.
    recharge_token: str | None = field(default=None, repr=False)
    threshold_changed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A change that is decided; `row` is what `post_change` writes of it: journals, account row, notices, feed."""

    balance_minor: int
    decision: Decision
    row: Mapping[str, object] = field(repr=False)


async def lock(conn: AsyncConnection, ids: Sequence[int]) -> None:
    """Lock accounts in id order, waiting for each. A statement of its own: look later."""
    await conn.execute(sql("lock_accounts"), {"ids": list(ids)})


async def lock_free(conn: AsyncConnection, ids: Sequence[int]) -> set[int]:
    """Lock those of the accounts that nobody holds; return them."""
    cursor = await conn.execute(sql("lock_free_accounts"), {"ids": list(ids)})
    return {row[0] for row in await cursor.fetchall()}


async def lock_and_look(conn: AsyncConnection, account_id: int, rules: PostingRules) -> AccountView:
    """Lock one account and read it.

    Raises: UnknownAccount.
    """
    await lock(conn, [account_id])
    views = await look(conn, [account_id], rules.calendar)
    if account_id not in views:
        raise UnknownAccount(f"account: expected one with a billing meter, got id {account_id}")
    return views[account_id]


async def post_money(
    conn: AsyncConnection,
    view: AccountView,
    kind: JournalKind,
    amount_minor: int,
    *,
    rules: PostingRules,
    now_ms: int,
    reason: str | None = None,
    about_id: int | None = None,
    correction_id: int | None = None,
) -> Posted:
    """Book a money event: a vend, reversal, opening credit, adjustment and so on. Minor units, signed."""
    journal = money_journal(kind, amount_minor, reason, about_id=about_id, correction_id=correction_id)
    before = view.checkpoint
    change = Change(
        journals=(journal,),
        checkpoint=replace(before, posted_minor=before.posted_minor + journal.prepaid_minor),
        levels=view.levels,
        cause=kind.value,
        may_rearm=True,
        recharge_minor=amount_minor if kind is JournalKind.VEND else 0,
    )
    return await write_change(conn, view, change, rules, now_ms)


async def post_days(
    conn: AsyncConnection, view: AccountView, until: date, *, rules: PostingRules, now_ms: int
) -> Posted | None:
    """Close an account's days up to and including `until`; None when there is none to close.

    `view` must have been looked at with step `day`. A month end that was closed unread is settled first: closing
    further days would bury it.
    """
    if view.checkpoint.through > until:
        return None
    change = Change(checkpoint=view.checkpoint, levels=view.levels, cause="close_day")
    if may_move_closed_edges(view, None, rules.calendar):
        change = await _late_change(conn, view, change, None, rules.calendar)
    anchor = change.checkpoint.anchor
    points = (anchor, *(point for point in view.points if point.at_ms > anchor.at_ms))
    demands = await day_demands(conn, [view], until, rules.calendar)
    closed = list(
        close_days(
            change.checkpoint,
            view.terms,
            points,
            until=until,
            calendar=rules.calendar,
            demands_w=demands.get(view.id),
        )
    )
    days = (day_journal(usage, view.terms.part_at(usage.day).tariff.levies) for usage, _ in closed)
    change = replace(change, journals=(*change.journals, *days), checkpoint=closed[-1][1])
    return await write_change(conn, view, change, rules, now_ms)


async def post_threshold(
    conn: AsyncConnection, view: AccountView, threshold_minor: int | None, *, rules: PostingRules, now_ms: int
) -> Posted:
    """Change the balance at which the consumer is warned; one at or above the balance warns at once."""
    change = Change(
        checkpoint=view.checkpoint,
        levels=replace(view.levels, threshold_minor=threshold_minor),
        cause="threshold",
        may_rearm=True,
        threshold_changed=True,
    )
    return await write_change(conn, view, change, rules, now_ms)


async def post_readings(
    conn: AsyncConnection,
    view: AccountView,
    *,
    late_since_ms: int | None,
    rules: PostingRules,
    now_ms: int,
) -> Posted | None:
    """Let an account catch up with its readings: late usage, alarms, supply. None when its row stays as it is.

    `late_since_ms` is the earliest reading that came after later ones had been stored.
    """
    change = Change(checkpoint=view.checkpoint, levels=view.levels, cause="reading")
    if may_move_closed_edges(view, late_since_ms, rules.calendar):
        change = await _late_change(conn, view, change, late_since_ms, rules.calendar)
    balance_minor = _balance_minor(change.checkpoint, view, rules.calendar)
    decision = _decide(view, view.levels, balance_minor, change, rules, now_ms)
    unchanged = (change.checkpoint, decision.levels) == (view.checkpoint, view.levels)
    if unchanged and not change.journals:
        await align_supply(conn, view, view.levels, balance_minor, cause="reading", rules=rules, now_ms=now_ms)
        return None
    return await write_change(conn, view, change, rules, now_ms)


async def write_change(
    conn: AsyncConnection, view: AccountView, change: Change, rules: PostingRules, now_ms: int
) -> Posted:
    """Write one account's change: journals, checkpoint, alarms, orders, notices, feed. Under the account's lock."""
    prepared = await prepare_change(conn, view, change, rules, now_ms)
    row = await (await conn.execute(sql("post_change"), prepared.row)).fetchone()
    assert row is not None, "post_change returns its row"
    return Posted(
        account_id=view.id,
        balance_minor=prepared.balance_minor,
        decision=prepared.decision,
        journal_ids=tuple(row[0]),
    )


async def prepare_change(
    conn: AsyncConnection, view: AccountView, change: Change, rules: PostingRules, now_ms: int
) -> Prepared:
    """Decide one account's change and write its alarms and orders; the caller writes the rest, `Prepared.row`."""
    balance_minor = _balance_minor(change.checkpoint, view, rules.calendar)
    levels = change.levels
    if view.warns_by_recharge:
        levels = await levels_by_recharge(conn, view.id, levels, change.journals)
    decision = _decide(view, levels, balance_minor, change, rules, now_ms)
    notices = await _notices(conn, view, change, decision, balance_minor, now_ms)
    await save_further_levels(conn, {view.id: (view.levels, decision.levels)})
    low_raised = any(raised.level is LevelName.LOW for raised in decision.raised)
    # The alarm tells the meter its threshold, too, unless there is none any more.
    alarm_tells = low_raised and decision.levels.threshold_minor is not None
    if (change.threshold_changed or _warns_again(levels, decision.levels)) and not alarm_tells:
        await order_threshold(conn, view, decision.levels, balance_minor, cause=change.cause)
    for raised in decision.raised:
        await raise_alarm(conn, view.id, raised, balance_minor)
    if low_raised:
        await sound_alarm(conn, view, decision.levels, balance_minor)
    await align_supply(conn, view, decision.levels, balance_minor, cause=change.cause, rules=rules, now_ms=now_ms)
    row = _account_parameters(view, change, decision.levels, notices)
    return Prepared(balance_minor=balance_minor, decision=decision, row=row)


def _decide(
    view: AccountView, levels: Levels, balance_minor: int, change: Change, rules: PostingRules, now_ms: int
) -> Decision:
    return decide(
        levels,
        balance_minor,
        may_rearm=change.may_rearm,
        scheme=view.scheme,
        now_ms=now_ms,
        calendar=rules.calendar,
    )


def _warns_again(before: Levels, after: Levels) -> bool:
    """Tell whether a warning that the meter may show has ended: its level is armed again."""
    pairs = zip(before.thresholds, after.thresholds, strict=True)
    return after.low_arm > before.low_arm or any(will_be.arm > was.arm for was, will_be in pairs)


async def _notices(
    conn: AsyncConnection, view: AccountView, change: Change, decision: Decision, balance_minor: int, now_ms: int
) -> list[Facts]:
    """Return what the consumer is told of a change."""
    restores_minor = 0
    if threatens(decision) or (change.recharge_minor and decision.levels.desired is not Supply.ON):
        prepayment = await prepayment_of(conn, view.id, change.checkpoint.through)
        restores_minor = recharge_to_restore(decision.levels, balance_minor, prepayment)
    told: list[Facts] = []
    if change.recharge_minor:
        told.append(
            Recharged(
                amount_minor=change.recharge_minor,
                balance_minor=balance_minor,
                token=change.recharge_token,
                restores_minor=restores_minor or None,
            )
        )
    return told + notices_of(
        decision,
        balance_minor,
        restores_minor=restores_minor,
        now_ms=now_ms,
        limit_w=view.scheme.limit_w or 0,
    )


def silent_over_part_end(view: AccountView, calendar: LocalCalendar) -> bool:
    """Tell whether the end of a bill part was closed without a reading after it, so that the next one moves it."""
    part = view.terms.part_at(view.checkpoint.through)
    return view.terms.opened_on < part.first and view.points[0].at_ms < calendar.midnight_ms(part.first)


def may_move_closed_edges(view: AccountView, late_since_ms: int | None, calendar: LocalCalendar) -> bool:
    """Tell whether readings may have moved an edge that is closed, so that usage has to be booked again."""
    # Any late reading may: one that comes after a closed edge is its new neighbour if nothing was read between.
    return late_since_ms is not None or (len(view.points) > 1 and silent_over_part_end(view, calendar))


async def _late_change(
    conn: AsyncConnection, view: AccountView, change: Change, late_since_ms: int | None, calendar: LocalCalendar
) -> Change:
    """Find what late readings make closed parts short of, and book it."""
    since_ms = view.points[0].at_ms if late_since_ms is None else min(late_since_ms, view.points[0].at_ms)
    install = view.meter.known[0]
    before = [point for point in await points_around(conn, view.meter, [from_ms(since_ms)]) if point.at_ms < since_ms]
    first_ms = max([install, *before]).at_ms
    parts = parts_between(view.terms, calendar.day_of(first_ms), view.checkpoint.through)
    booked = await posted_periods(conn, view.id, parts[0].first)
    posted = [booked.get(part.first, PeriodPosted(period=part.first, energy_wh=0, lines={})) for part in parts]
    edges_ms = closed_edges_ms(parts, view.checkpoint.through, calendar, anchor_ms=view.checkpoint.anchor.at_ms)
    around = await points_around(conn, view.meter, [from_ms(edge_ms) for edge_ms in edges_ms])
    points = sorted({install, *around})
    found, checkpoint = late_usage(posted, view.checkpoint, view.terms, points, calendar)
    return replace(
        change,
        journals=tuple(late_journal(usage, view.terms.part_at(usage.period).tariff.levies) for usage in found),
        checkpoint=checkpoint,
        cause="late_usage",
        may_rearm=bool(found),
    )


def parts_between(terms: Terms, first_day: date, last_day: date) -> list[BillPart]:
    """Return the bill parts from the latest at a day whose slabs start at 0 up to another day's."""
    parts = [terms.fresh_part_at(first_day)]
    while parts[-1].end <= last_day:
        parts.append(terms.next_part(parts[-1]))
    return parts


def closed_edges_ms(
    parts: Sequence[BillPart], through: date, calendar: LocalCalendar, *, anchor_ms: int = 0
) -> list[int]:
    """Return the instants around which closed bill parts must be known: their ends, and those of their zones.

    `anchor_ms` is where a meter took over in a day that is open: its zones are known until then.
    """
    through_ms = calendar.midnight_ms(through)
    until_ms = max(through_ms, anchor_ms)
    edges_ms = [calendar.midnight_ms(part.first) for part in parts[1:]]
    for part in parts:
        zones = part.tariff.zones
        if zones is not None:
            start_ms, end_ms = calendar.midnight_ms(part.first), min(calendar.midnight_ms(part.end), until_ms)
            edges_ms += [start_ms, *zone_clock(zones, calendar).edges_between(start_ms, end_ms), end_ms]
            edges_ms += [through_ms] if through_ms < end_ms else []
    return edges_ms


def _balance_minor(checkpoint: Checkpoint, view: AccountView, calendar: LocalCalendar) -> int:
    """Return the running balance from a changed checkpoint on."""
    anchor = checkpoint.anchor
    points = (anchor, *(point for point in view.points if point.at_ms > anchor.at_ms))
    return running_balance(checkpoint, view.terms, points, calendar)


async def add_journals(conn: AsyncConnection, journals: Sequence[Journal]) -> tuple[int, ...]:
    """Append journals about no account, a deposit of a vendor or a sale of coupons; return the ids in order."""
    cursor = await conn.execute(sql("add_journals"), {"journals": _journals_to_json(journals)})
    return tuple(row[0] for row in await cursor.fetchall())


def _journals_to_json(journals: Sequence[Journal]) -> Jsonb:
    # A document: arrays of each column take psycopg five times as long to write (2026-11-22).
    return Jsonb([_journal_to_row(journal) for journal in journals])


def _journal_to_row(journal: Journal) -> dict[str, object]:
    legs = [
        {"n": number, "ledger": leg.ledger.value, "line": leg.line, "amount_minor": leg.amount_minor}
        for number, leg in enumerate(journal.legs, start=1)
    ]
    return {
        "kind": journal.kind.value,
        "local_day": None if journal.local_day is None else journal.local_day.isoformat(),
        "period": None if journal.period is None else journal.period.isoformat(),
        "from_wh": journal.from_wh,
        "to_wh": journal.to_wh,
        "energy_wh": journal.energy_wh,
        "assessed_wh": journal.assessed_wh,
        "edge_quality": journal.edge_quality,
        "demand_w": journal.demand_w,
        "lines": journal.lines,
        "reason": journal.reason,
        "about_id": journal.about_id,
        "correction_id": journal.correction_id,
        "legs": legs,
    }


def _account_parameters(
    view: AccountView, change: Change, levels: Levels, notices: Sequence[Facts]
) -> dict[str, object]:
    checkpoint = change.checkpoint
    return {
        "id": view.id,
        "shard": view.shard,
        "version": view.version + 1,
        "journals": _journals_to_json(change.journals),
        "notices": Jsonb([{"kind": facts.kind.value, "facts": facts.to_json()} for facts in notices]),
        "posted_minor": checkpoint.posted_minor,
        "charged_minor": checkpoint.charged_minor,
        "through": checkpoint.through,
        "before_wh": checkpoint.before_wh,
        "part_start_wh": checkpoint.part_start_wh,
        "closed_wh": checkpoint.closed_wh,
        "closed_zones": list(checkpoint.closed_zones) or None,
        "demand_w": checkpoint.demand_w,
        "anchor_at": from_ms(checkpoint.anchor.at_ms),
        "anchor_wh": checkpoint.anchor.energy_wh,
        "anchor_zones": list(checkpoint.anchor_zones) or None,
        "low_arm": levels.low_arm,
        "low_raised": levels.low_raised,
        "exhausted_arm": levels.exhausted_arm,
        "exhausted_raised": levels.exhausted_raised,
        "exhausted_at": None if levels.exhausted_at_ms is None else from_ms(levels.exhausted_at_ms),
        "desired": levels.desired.value,
        "threshold_minor": levels.threshold_minor,
    }
