"""A correction of some accounts: what it changes, worked out in memory, and how that is posted.

Stage: between a correction's scope and posting. `work_out` serves the dry run, in a snapshot that is rolled back, and
the posting, under the accounts' locks: both see the same by construction. Terms change in memory; an edit of a reading
is written before it is worked out, since everything that reads registers has to see it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

import psycopg
from psycopg import AsyncConnection

from billing.assigning import AssignmentRefused, AssignmentRequest, require_area
from billing.calendar import LocalCalendar, from_ms, period_of
from billing.correction import OverhaulRefused, assess, edge_days
from billing.journals import Journal, overhaul_journal
from billing.rerate import (
    CorrectionRefused,
    Crossing,
    Rerated,
    State,
    TermsChange,
    TermsFilter,
    asks_demand,
    changed_assignments,
    crossing_of,
    levy_split,
    rerate,
)
from billing.running import PeriodPosted, Point
from billing.terms import ONE_DAY, Assignment, Terms
from db.accounts import AccountView, add_former_demands
from db.correction_rows import (
    EditedReading,
    assessed_by,
    booked_since,
    edits_undoing,
    points_of_many,
    restored_assignments,
    write_assignments,
    write_edits,
)
from db.correction_scope import CorrectionKind, EditScope, OverhaulScope, ReversalScope, Scope, TermsScope
from db.named import sql
from db.orders import PostingRules
from db.posting import Change, closed_edges_ms, parts_between, write_change
from db.tariffs import tariff_by_id

_REFUSALS = (CorrectionRefused, OverhaulRefused, AssignmentRefused)
_ONE_MS = timedelta(milliseconds=1)
NOTHING_CHANGES = "nothing changes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a correction proposes: its number, kind, reason and scope."""

    id: int
    kind: CorrectionKind
    reason: str
    scope: Scope

    @property
    def taken_back(self) -> int | None:
        """The correction that this one reverses."""
        return self.scope.reverses if isinstance(self.scope, ReversalScope) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a correction does to one account.

    Invariants: without `rerated` the account is refused for the reason in `detail`.
    """

    view: AccountView
    rerated: Rerated | None = None
    detail: str | None = None

    @property
    def crosses(self) -> Crossing | None:
        """What the change of balance does to supply or alarm."""
        if self.rerated is None:
            return None
        return crossing_of(self.view.levels, self.rerated.before_minor, self.rerated.after_minor)


@dataclass(slots=True, kw_only=True)
class _Target:
    """What an account is to be under a correction: `since` is the first day that may change."""

    terms: Terms
    since: date
    edge_days: Sequence[date] = ()
    edge_ats: Sequence[datetime] = ()
    assessments_wh: dict[date, int] = field(default_factory=dict)


async def work_out(
    conn: AsyncConnection, proposal: Proposal, views: Mapping[int, AccountView], calendar: LocalCalendar
) -> dict[int, Outcome]:
    """Work out what a correction does to some accounts, in the caller's transaction; edits of readings are written.

    An account that refuses leaves nothing behind.
    """
    if proposal.kind is not CorrectionKind.EDIT:
        return await _work_out(conn, proposal, views, calendar)
    outcomes: dict[int, Outcome] = {}
    for account_id, view in views.items():
        async with conn.transaction():
            try:
                edits = await _edits_of(conn, proposal, view)
                await write_edits(conn, proposal.id, edits)
                outcomes |= await _work_out(conn, proposal, {account_id: view}, calendar, edits)
            except _REFUSALS as refusal:
                outcomes[account_id] = Outcome(view=view, detail=str(refusal))
            if outcomes[account_id].rerated is None:
                raise psycopg.Rollback
    return outcomes


async def write_outcomes(
    conn: AsyncConnection, proposal: Proposal, outcomes: Iterable[Outcome], *, rules: PostingRules, now_ms: int
) -> None:
    """Post what was worked out under the accounts' locks in this transaction: assignments, journals, posted state."""
    changed = [outcome for outcome in outcomes if outcome.rerated is not None]
    await write_assignments(
        conn,
        proposal.id,
        {outcome.view.id: (outcome.view.terms, outcome.rerated.state.terms) for outcome in changed if outcome.rerated},
    )
    for outcome in changed:
        rerated, view = outcome.rerated, outcome.view
        assert rerated is not None, "refused accounts are left out"
        change = Change(
            journals=tuple(_journals(proposal, outcome, rerated)),
            checkpoint=rerated.state.checkpoint,
            levels=view.levels,
            cause="correction",
            may_rearm=True,
        )
        corrected = replace(view, terms=rerated.state.terms, points=rerated.state.points)
        await write_change(conn, corrected, change, rules, now_ms)


def _journals(proposal: Proposal, outcome: Outcome, rerated: Rerated) -> list[Journal]:
    old, new = outcome.view.terms, rerated.state.terms
    journals = []
    for usage in rerated.found:
        old_levies = old.part_at(usage.period).tariff.levies
        new_levies = new.part_at(usage.period).tariff.levies
        booked = rerated.booked.get(usage.period)
        shares = levy_split(usage, booked.lines if booked else {}, old_levies, new_levies)
        for share, levies in shares:
            journal = overhaul_journal(share, levies, reason=proposal.reason, correction_id=proposal.id)
            demand_w = None if rerated.demands_w is None else rerated.demands_w[usage.period]
            journals.append(replace(journal, demand_w=demand_w))
    return journals


async def _work_out(
    conn: AsyncConnection,
    proposal: Proposal,
    views: Mapping[int, AccountView],
    calendar: LocalCalendar,
    edits: Sequence[EditedReading] = (),
) -> dict[int, Outcome]:
    targets, outcomes = await _targets(conn, proposal, views, calendar, edits)
    starts = {}
    for account_id, target in targets.items():
        view = views[account_id]
        # A bill part whose end was closed unread begins before the day that the correction is about.
        since = min(target.since, calendar.day_of(view.checkpoint.anchor.at_ms))
        starts[account_id] = max(period_of(since), view.terms.opened_on)
    booked = await booked_since(conn, starts)
    curves = await _curves(conn, views, targets, starts, calendar)
    demands = await _demands(conn, views, targets, starts, calendar)
    for account_id, target in targets.items():
        view, start = views[account_id], starts[account_id]
        before = State(checkpoint=view.checkpoint, terms=view.terms, points=view.points)
        posted = booked.get(account_id, {})
        try:
            _require_metered(view, start, calendar)
            if isinstance(proposal.scope, OverhaulScope):
                target.assessments_wh = _assessments(proposal.scope, view, posted, curves[account_id], start, calendar)
            rerated = rerate(
                before,
                target.terms,
                curves[account_id],
                posted,
                since=start,
                calendar=calendar,
                assessments_wh=target.assessments_wh,
                demands_w=demands.get(account_id),
                readings_changed=proposal.kind is CorrectionKind.EDIT,
            )
        except _REFUSALS as refusal:
            outcomes[account_id] = Outcome(view=view, detail=str(refusal))
        else:
            outcomes[account_id] = Outcome(view=view, rerated=rerated)
    return outcomes


async def _targets(
    conn: AsyncConnection,
    proposal: Proposal,
    views: Mapping[int, AccountView],
    calendar: LocalCalendar,
    edits: Sequence[EditedReading],
) -> tuple[dict[int, _Target], dict[int, Outcome]]:
    """Return what each account is to be, and the outcome of those that refuse or that nothing changes for."""
    scope, targets, outcomes = proposal.scope, {}, {}
    match proposal.kind:
        case CorrectionKind.TERMS:
            for account_id, assignments in (await _assignments_under(conn, proposal, views)).items():
                view = views[account_id]
                if isinstance(assignments, str):
                    outcomes[account_id] = Outcome(view=view, detail=assignments)
                    continue
                terms = Terms(opened_on=view.terms.opened_on, assignments=assignments)
                targets[account_id] = _Target(terms=terms, since=_first_difference(view.terms, terms))
        case CorrectionKind.EDIT:
            for account_id, view in views.items():
                since = await _first_day_of(conn, view, edits, calendar)
                # Both sides of each edited reading: energy must rise there too.
                ats = [edit.read_at for edit in edits]
                targets[account_id] = _Target(
                    terms=view.terms, since=since, edge_ats=[*ats, *(at + _ONE_MS for at in ats)]
                )
        case CorrectionKind.OVERHAUL:
            taken = await assessed_by(conn, proposal.taken_back, list(views)) if proposal.taken_back else {}
            for account_id, view in views.items():
                if isinstance(scope, OverhaulScope):
                    overhaul = scope.overhaul
                    # Refused days are refused when all is known; until then nothing before the opening is asked for.
                    first = max(overhaul.first, view.terms.opened_on)
                    last = min(overhaul.last, view.checkpoint.through)
                    parts = parts_between(view.terms, first, max(first, last))
                    days = [day for day in edge_days(overhaul, parts) if day >= view.terms.opened_on]
                    targets[account_id] = _Target(terms=view.terms, since=first, edge_days=days)
                elif account_id in taken:
                    targets[account_id] = _taken_back(view, taken[account_id])
                else:
                    outcomes[account_id] = Outcome(view=view, detail=NOTHING_CHANGES)
    return targets, outcomes


def _taken_back(view: AccountView, assessed: Mapping[date, int]) -> _Target:
    """Return what takes an overhaul back. Its bill parts still begin on the same days: other terms see to that."""
    assessments_wh = {period: -assessed_wh for period, assessed_wh in assessed.items()}
    return _Target(terms=view.terms, since=min(assessed), assessments_wh=assessments_wh)


async def _assignments_under(
    conn: AsyncConnection, proposal: Proposal, views: Mapping[int, AccountView]
) -> dict[int, tuple[Assignment, ...] | str]:
    """Return the assignments of accounts under a change of terms, or why there is none."""
    if proposal.taken_back is not None:
        return await restored_assignments(conn, proposal.taken_back, {view.id: view.terms for view in views.values()})
    scope = proposal.scope
    assert isinstance(scope, TermsScope), "a change of terms has a scope of its kind"
    change = TermsChange(
        request=AssignmentRequest(
            from_day=scope.from_day,
            tariff=None if scope.new_tariff_id is None else await tariff_by_id(conn, scope.new_tariff_id),
            category=scope.new_category,
            load_w=scope.new_load_w,
            area=scope.new_area_type,
        ),
        until_day=scope.until_day,
        only=TermsFilter(category=scope.category, tariff_id=scope.tariff_id),
    )
    found: dict[int, tuple[Assignment, ...] | str] = {}
    for account_id, view in views.items():
        assignments = changed_assignments(view.terms, change)
        try:
            _require_fit(view.terms, assignments)
        except _REFUSALS as refusal:
            found[account_id] = str(refusal)
        else:
            found[account_id] = NOTHING_CHANGES if assignments == view.terms.assignments else assignments
    return found


def _require_fit(terms: Terms, assignments: Sequence[Assignment]) -> None:
    """Refuse a tariff in other money or before its time, or one that does not know the type of area."""
    for assignment in assignments:
        held, tariff = terms.on(assignment.from_day), assignment.tariff
        if tariff is not held.tariff and tariff.currency != held.tariff.currency:
            raise CorrectionRefused(
                f"expected a tariff in {held.tariff.currency}, got {tariff.id} in {tariff.currency}"
            )
        if (tariff, assignment.area) != (held.tariff, held.area):
            require_area(tariff, assignment.area)


def _first_difference(old: Terms, new: Terms) -> date:
    """Return the first day on which two sets of terms differ."""
    days = sorted({assignment.from_day for terms in (old, new) for assignment in terms.assignments})
    place = {terms: {assignment.from_day: assignment for assignment in terms.assignments} for terms in (old, new)}
    return next(day for day in days if place[old].get(day) != place[new].get(day))


async def _edits_of(conn: AsyncConnection, proposal: Proposal, view: AccountView) -> list[EditedReading]:
    """Return the edits that a correction proposes of an account's meter.

    Raises: CorrectionRefused.
    """
    if proposal.taken_back is not None:
        return await edits_undoing(conn, proposal.taken_back, view.meter.id)
    scope = proposal.scope
    assert isinstance(scope, EditScope), "an edit has a scope of its kind"
    edits = [
        EditedReading(meter_id=edit.meter_id, read_at=edit.read_at, import_wh=edit.import_wh, estimated=edit.estimated)
        for edit in scope.edits
        if edit.meter_id == view.meter.id
    ]
    end_wh = view.meter.register_end_wh
    for edit in edits:
        if edit.import_wh is not None and edit.import_wh >= end_wh:
            raise CorrectionRefused(f"expected a register below its end of {end_wh} Wh, got {edit.import_wh}")
    if not edits:
        raise CorrectionRefused(f"expected readings of the account's billing meter {view.meter.serial}, got none")
    return edits


async def _first_day_of(
    conn: AsyncConnection, view: AccountView, edits: Sequence[EditedReading], calendar: LocalCalendar
) -> date:
    """Return the day of the reading before the first of some edits: what lies between is split otherwise now."""
    first_at = min(edit.read_at for edit in edits)
    found = await points_of_many(conn, [(view, first_at)])
    before = [point.at_ms for point in found[view.id] if from_ms(point.at_ms) < first_at]
    return calendar.day_of(max(before, default=view.meter.installed_ms))


async def _curves(
    conn: AsyncConnection,
    views: Mapping[int, AccountView],
    targets: Mapping[int, _Target],
    starts: Mapping[int, date],
    calendar: LocalCalendar,
) -> dict[int, list[Point]]:
    """Read each account's points around every edge of the terms it is to have, up to its latest reading."""
    edges = []
    for account_id, target in targets.items():
        view, start = views[account_id], starts[account_id]
        latest_ms = view.points[-1].at_ms
        end = max(calendar.day_of(latest_ms), view.checkpoint.through) + ONE_DAY
        parts = parts_between(target.terms, start, end)
        days = {view.checkpoint.through, *target.edge_days}
        # Just after the latest reading: it is found, or the one before it where that is void now.
        at_ms = {*closed_edges_ms(parts, end, calendar), *(calendar.midnight_ms(day) for day in days), latest_ms + 1}
        edges += [(view, at) for at in (*target.edge_ats, *(from_ms(edge_ms) for edge_ms in sorted(at_ms)))]
    found = await points_of_many(conn, edges)
    return {account_id: sorted({*views[account_id].meter.known, *found.get(account_id, ())}) for account_id in targets}


async def _demands(
    conn: AsyncConnection,
    views: Mapping[int, AccountView],
    targets: Mapping[int, _Target],
    starts: Mapping[int, date],
    calendar: LocalCalendar,
) -> dict[int, dict[date, int]]:
    """Read the greatest demand of each closed day of accounts whose terms, old or new, ask for it."""
    asking = {
        views[account_id].meter.id: account_id
        for account_id, target in targets.items()
        if views[account_id].asks_demand or asks_demand(target.terms)
    }
    found: dict[int, dict[date, int]] = {account_id: {} for account_id in asking.values()}
    if not asking:
        return found
    until = max(views[account_id].checkpoint.through for account_id in found)
    parameters = {
        "meter_ids": list(asking),
        "since": from_ms(calendar.midnight_ms(min(starts[account_id] for account_id in found))),
        "until": from_ms(calendar.midnight_ms(until)),
        "zone": calendar.zone.key,
    }
    cursor = await conn.execute(sql("day_demands"), parameters)
    for meter_id, day, demand_w in await cursor.fetchall():
        found[asking[meter_id]][day] = demand_w
    for account_id, demands_w in found.items():
        await add_former_demands(conn, views[account_id].meter, demands_w, parameters)
    return found


def _assessments(
    scope: OverhaulScope,
    view: AccountView,
    posted: Mapping[date, PeriodPosted],
    curve: Sequence[Point],
    start: date,
    calendar: LocalCalendar,
) -> dict[date, int]:
    found = assess(
        scope.overhaul,
        parts_between(view.terms, start, view.checkpoint.through),
        curve,
        opened_on=view.terms.opened_on,
        through=view.checkpoint.through,
        assessed={period: booked.assessed_wh for period, booked in posted.items()},
        calendar=calendar,
    )
    if not found:
        raise CorrectionRefused(NOTHING_CHANGES)
    return found


def _require_metered(view: AccountView, start: date, calendar: LocalCalendar) -> None:
    """Refuse bill parts from before the first meter that is known: no register says anything about them."""
    installed_on = calendar.day_of(view.meter.known[0].at_ms)
    if start < installed_on and view.terms.opened_on < installed_on:
        raise CorrectionRefused(
            f"expected days that meter {view.meter.serial} has metered, since {installed_on}, got days from {start}"
        )
