"""Corrections from proposal to the last account: asked for, worked out, approved, applied, taken back.

Stage: administration. The dry run and the posting go through accounts range by range in id order; what is done is kept
in the database, so that either goes on after it was killed at any point and nothing is done twice. Journals and legs
are never changed: a correction is taken back by another one.

A range is applied in one transaction: accounts locked, worked out again under the lock, posted, marked, and its
cut-offs counted against the number approved. A range that would pass that number is not applied at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.errors import DeadlockDetected, UniqueViolation
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from billing.correction import Overhaul, require_permitted
from billing.rerate import Crossing, PartDifference
from billing.tariff import LOAD_W_MAX
from db.accounts import AccountView, look
from db.correcting import NOTHING_CHANGES, Outcome, Proposal, work_out, write_outcomes
from db.correction_scope import (
    CorrectionKind,
    EditScope,
    OverhaulScope,
    ReadingEdit,
    ReversalScope,
    Scope,
    TermsScope,
    scope_from_json,
    scope_to_json,
)
from db.errors import DatabaseError
from db.named import sql
from db.orders import PostingRules
from db.posting import lock
from db.tariffs import tariff_by_id

# A dry run of 200 accounts takes a second and locks nothing.
ACCOUNTS_PER_DRY_RUN = 200
# As in the sweep of days: 100 accounts are some 1,000 short statements, 0.3 s, for which a vend on one would wait.
ACCOUNTS_PER_RANGE = 100
# A batch that stores relay reports of the same meters can stand across a range; five times in a row it does not.
DEADLOCKS_MAX = 5
DEADLOCK_WAIT_S = 0.2
# More edits at once are a job for a tool that looks at the meters.
EDITS_MAX = 1_000
# 35 days of half-hours.
ESTIMATES_MAX = 1_680

# How many accounts are done, and how many there are at the most.
Progress = Callable[[int, int], None]


class ProposalRefused(DatabaseError):
    """A correction that cannot be asked for so."""

    code = "proposal_refused"


class CorrectionNotReady(DatabaseError):
    """A correction that is not in a state for what is asked of it."""

    code = "correction_not_ready"


class ApprovalRefused(DatabaseError):
    """An approval by the wrong person, or of other figures than the dry run's."""

    code = "approval_refused"


class CutOffsExceeded(DatabaseError):
    """Applying would cut more supplies than were approved; it stopped before."""

    code = "cut_offs_exceeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A correction as it stands."""

    id: int
    kind: str
    reason: str
    scope: Mapping[str, Any]  # As `scope_to_json` wrote it.
    asked_by: str
    asked_at: datetime
    state: str
    approved_by: str | None
    approved_at: datetime | None
    approved_cut_offs: int | None
    cut_offs: int
    ended_by: str | None
    ended_at: datetime | None
    reverses: int | None

    @property
    def proposal(self) -> Proposal:
        """What applying it does."""
        kind = CorrectionKind(self.kind)
        return Proposal(id=self.id, kind=kind, reason=self.reason, scope=scope_from_json(kind, self.scope))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Accounts of a correction by state, what is still to be crossed, and money by direction. Minor units."""

    computed: int
    applied: int
    refused: int
    to_warn: int
    to_cut: int
    to_restore: int
    debited: int
    debited_minor: int
    credited: int
    credited_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRow:
    """What a correction does, or did, to one account; `parts` by the first day of the bill part."""

    number: str
    account_id: int
    state: str
    before_minor: int | None
    after_minor: int | None
    difference_minor: int | None
    crosses: str | None
    detail: str | None
    parts: dict[date, PartDifference]


# Proposals ---------------------------------------------------------------------------------------------------------


async def propose_terms(conn: AsyncConnection, scope: TermsScope, *, reason: str, by: str) -> int:
    """Ask for other terms from a day on; return the correction's id.

    Raises: ProposalRefused; TariffConflict for an unknown tariff.
    """
    if scope.numbers is None and not any((scope.category, scope.tariff_id, scope.area)):
        raise ProposalRefused("terms: expected account numbers, or a category, tariff or area, got none")
    if scope.numbers is not None:
        await _require_known(conn, scope.numbers)
    if not any((scope.new_tariff_id, scope.new_category, scope.new_load_w, scope.new_area_type)):
        raise ProposalRefused("terms: expected a new tariff, category, load or area type, got none")
    if scope.until_day is not None and scope.until_day < scope.from_day:
        raise ProposalRefused(f"terms: expected a last day from {scope.from_day} on, got {scope.until_day}")
    if scope.new_load_w is not None and not 1 <= scope.new_load_w <= LOAD_W_MAX:
        raise ProposalRefused(f"terms: expected a load of 1 to {LOAD_W_MAX} W, got {scope.new_load_w}")
    if scope.new_tariff_id is not None:
        tariff = await tariff_by_id(conn, scope.new_tariff_id)
        if scope.from_day < tariff.effective_from:
            raise ProposalRefused(
                f"terms: expected days from {tariff.effective_from} on, when {tariff.id} begins, got {scope.from_day}"
            )
    return await _add(conn, CorrectionKind.TERMS, scope, reason, by)


async def propose_edits(
    conn: AsyncConnection, edits: Sequence[tuple[str, datetime, int | None]], *, reason: str, by: str
) -> int:
    """Ask for other registers in the place of readings (serial, instant, register), None for none; return the id.

    Raises: ProposalRefused for readings that are not there.
    """
    if not 1 <= len(edits) <= EDITS_MAX or len({(serial, at) for serial, at, _ in edits}) < len(edits):
        raise ProposalRefused(f"edits: expected 1 to {EDITS_MAX} readings, each once, got {len(edits)}")
    serials = {serial for serial, _, _ in edits}
    cursor = await conn.execute(sql("meters_by_serial"), {"serials": list(serials)})
    meters = {serial: (meter_id, number) for serial, meter_id, number in await cursor.fetchall()}
    if unknown := sorted(serials - meters.keys()):
        raise ProposalRefused(f"edits: expected billing meters of accounts, got serial {unknown[0]!r}")
    keys = [(meters[serial][0], at) for serial, at, _ in edits]
    parameters = {"meter_ids": [meter_id for meter_id, _ in keys], "ats": [at for _, at in keys]}
    cursor = await conn.execute(sql("readings_at"), parameters)
    stored = {(meter_id, read_at) for meter_id, read_at in await cursor.fetchall()}
    if missing := [key for key in keys if key not in stored]:
        raise ProposalRefused(f"edits: expected readings that are stored, got none at {missing[0][1].isoformat()}")
    rows = tuple(
        ReadingEdit(serial=serial, meter_id=meters[serial][0], read_at=at, import_wh=wh) for serial, at, wh in edits
    )
    numbers = tuple(sorted({number for _, number in meters.values()}))
    return await _add(conn, CorrectionKind.EDIT, EditScope(edits=rows, numbers=numbers), reason, by)


async def propose_estimates(
    conn: AsyncConnection, number: str, edits: Sequence[ReadingEdit], *, reason: str, by: str
) -> int:
    """Ask for estimated registers inside a gap of an account's meter; return the correction's id.

    Raises: ProposalRefused.
    """
    if not 1 <= len(edits) <= ESTIMATES_MAX or any(edit.estimated is None for edit in edits):
        raise ProposalRefused(f"estimates: expected 1 to {ESTIMATES_MAX} estimated registers, got {len(edits)}")
    return await _add(conn, CorrectionKind.EDIT, EditScope(edits=tuple(edits), numbers=(number,)), reason, by)


async def propose_overhaul(
    conn: AsyncConnection, numbers: Sequence[str], overhaul: Overhaul, *, reason: str, by: str
) -> int:
    """Ask for an overhaul of accounts (R-20, R-21); return the correction's id.

    Raises: OverhaulRefused for what the rules do not permit; ProposalRefused for unknown accounts.
    """
    require_permitted(overhaul)
    await _require_known(conn, numbers)
    scope = OverhaulScope(numbers=tuple(numbers), overhaul=overhaul)
    return await _add(conn, CorrectionKind.OVERHAUL, scope, reason, by)


async def propose_reversal(conn: AsyncConnection, correction_id: int, *, reason: str, by: str) -> int:
    """Ask for everything that a correction did to be taken back; return the id of the new correction.

    Raises: CorrectionNotReady for one that did nothing, is a reversal itself, or is being reversed.
    """
    correction = await read_correction(conn, correction_id)
    if correction.reverses is not None:
        raise CorrectionNotReady(f"correction {correction_id}: expected no reversal, got one; propose it anew")
    if correction.state not in ("applied", "cancelled") or not (await summary_of(conn, correction_id)).applied:
        raise CorrectionNotReady(f"correction {correction_id}: expected one that was applied, got {correction.state}")
    scope = ReversalScope(reverses=correction_id)
    try:
        return await _add(conn, CorrectionKind(correction.kind), scope, reason, by, reverses=correction_id)
    except UniqueViolation:
        raise CorrectionNotReady(f"correction {correction_id}: expected no reversal yet, got one") from None


async def _add(
    conn: AsyncConnection, kind: CorrectionKind, scope: Scope, reason: str, by: str, *, reverses: int | None = None
) -> int:
    if not reason.strip() or not by.strip():
        raise ProposalRefused("expected a reason and a name, got an empty one")
    parameters = {
        "kind": kind.value,
        "reason": reason.strip(),
        "scope": Jsonb(scope_to_json(scope)),
        "asked_by": by.strip(),
        "reverses": reverses,
    }
    cursor = await conn.execute(sql("add_correction"), parameters)
    row = await cursor.fetchone()
    assert row is not None, "add_correction returns an id"
    return int(row[0])


async def _require_known(conn: AsyncConnection, numbers: Sequence[str]) -> None:
    cursor = await conn.execute(sql("import_numbers"), {"numbers": list(numbers)})
    unknown = sorted(set(numbers) - {row[0] for row in await cursor.fetchall()})
    if unknown or not numbers:
        raise ProposalRefused(f"expected numbers of accounts, got {unknown[0] if unknown else 'none'!r}")


# What stands -------------------------------------------------------------------------------------------------------


async def read_correction(conn: AsyncConnection, correction_id: int) -> Correction:
    """Read a correction.

    Raises: CorrectionNotReady when there is none.
    """
    async with conn.cursor(row_factory=class_row(Correction)) as cursor:
        await cursor.execute(sql("correction"), {"id": correction_id})
        found = await cursor.fetchone()
    if found is None:
        raise CorrectionNotReady(f"correction: expected a known id, got {correction_id}")
    return found


async def summary_of(conn: AsyncConnection, correction_id: int) -> Summary:
    """Count a correction's accounts, crossings and money."""
    async with conn.cursor(row_factory=class_row(Summary)) as cursor:
        await cursor.execute(sql("correction_summary"), {"id": correction_id})
        found = await cursor.fetchone()
    assert found is not None, "correction_summary returns one row"
    return found


async def account_rows(
    conn: AsyncConnection,
    correction_id: int,
    *,
    most: int,
    after: int = 0,
    number: str | None = None,
    crossing: bool = False,
) -> list[AccountRow]:
    """Read what a correction does to accounts, in id order; one of them, or those that cross a level, if asked."""
    parameters = {"id": correction_id, "after": after, "most": most, "number": number, "crossing": crossing}
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("correction_rows"), parameters)
        rows = await cursor.fetchall()
    return [AccountRow(parts=_parts_from_json(row.pop("lines") or {}), **row) for row in rows]


async def list_corrections(conn: AsyncConnection, *, most: int) -> list[dict[str, Any]]:
    """Read the latest corrections with what became of their accounts."""
    # Rows as the command line prints them: typed by the query.
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("corrections_listed"), {"most": most})
        return await cursor.fetchall()


# The dry run -------------------------------------------------------------------------------------------------------


async def compute(
    conn: AsyncConnection, correction_id: int, *, rules: PostingRules, progress: Progress | None = None
) -> Summary:
    """Work out what a correction would do, account by account; nothing of an account is written.

    Accounts that have a dry run at their present version are passed over, so that a run that was stopped goes on.
    Raises: CorrectionNotReady.
    """
    await _advance(conn, "correction_begins", correction_id, "one that is not being applied")
    correction = await read_correction(conn, correction_id)
    proposal = correction.proposal
    scope = _scope_parameters(proposal.scope)
    cursor = await conn.execute(sql("count_to_correct"), {"numbers": scope["numbers"]})
    row = await cursor.fetchone()
    most = int(row[0]) if row else 0
    done = after = 0
    while True:
        parameters = {"id": correction_id, "after": after, "most": ACCOUNTS_PER_DRY_RUN, **scope}
        cursor = await conn.execute(sql("accounts_to_correct"), parameters)
        accounts = {account_id: version for account_id, _, version in await cursor.fetchall()}
        if not accounts:
            break
        await _compute_range(conn, proposal, accounts, rules, listed=scope["numbers"] is not None)
        done, after = done + len(accounts), max(accounts)
        if progress:
            progress(done, max(most, done))
    await _advance(conn, "correction_computed", correction_id, "one that nobody else is working on")
    return await summary_of(conn, correction_id)


async def _compute_range(
    conn: AsyncConnection, proposal: Proposal, accounts: Mapping[int, int], rules: PostingRules, *, listed: bool
) -> None:
    async with conn.transaction(force_rollback=True):
        # One snapshot: no account changes between what is read of it.
        await conn.execute(sql("one_snapshot"))
        views = await look(conn, list(accounts), rules.calendar)
        outcomes = await work_out(conn, proposal, views, rules.calendar)
    rows = [_row(outcome, outcome.view.version) for outcome in outcomes.values()]
    rows += [
        _refused(account_id, version, "expected an account with a billing meter")
        for account_id, version in accounts.items()
        if account_id not in views
    ]
    # A filter means many accounts that have nothing to do with it after all.
    unchanged = [row for row in rows if row["details"] == NOTHING_CHANGES and not listed]
    kept = [row for row in rows if row not in unchanged]
    async with conn.transaction():
        await _require_state(conn, proposal.id, "proposed")
        await conn.execute(sql("put_dry_runs"), {"id": proposal.id, **_columns(kept)})
        gone = [row["account_ids"] for row in unchanged]
        await conn.execute(sql("drop_dry_runs"), {"id": proposal.id, "account_ids": gone})


# Approval ----------------------------------------------------------------------------------------------------------


async def approve(conn: AsyncConnection, correction_id: int, *, by: str, cut_offs: int) -> None:
    """Approve what the dry run reports, as a second person who states how many supplies will be cut.

    Raises: ApprovalRefused, CorrectionNotReady.
    """
    async with conn.transaction():
        await conn.execute(sql("lock_correction"), {"id": correction_id})
        correction = await read_correction(conn, correction_id)
        _require(correction, "computed")
        if not by.strip() or by.strip().casefold() == correction.asked_by.casefold():
            raise ApprovalRefused(f"correction {correction_id}: expected a second person, got {by.strip() or 'nobody'}")
        summary = await summary_of(conn, correction_id)
        if not summary.computed:
            raise ApprovalRefused(f"correction {correction_id}: expected accounts to correct, got none")
        expected = correction.cut_offs + summary.to_cut
        if cut_offs != expected:
            raise ApprovalRefused(
                f"correction {correction_id}: expected the {expected} cut-offs that the dry run reports, got {cut_offs}"
            )
        parameters = {"id": correction_id, "by": by.strip(), "cut_offs": cut_offs}
        await conn.execute(sql("correction_approved"), parameters)


async def cancel(conn: AsyncConnection, correction_id: int, *, by: str) -> None:
    """Give a correction up; accounts that it was applied to stay so, a reversal takes them back.

    Raises: CorrectionNotReady.
    """
    async with conn.transaction():
        await conn.execute(sql("lock_correction"), {"id": correction_id})
        _require(await read_correction(conn, correction_id), "proposed", "computed", "approved", "applying")
        await conn.execute(sql("correction_cancelled"), {"id": correction_id, "by": by.strip()})


# Applying ----------------------------------------------------------------------------------------------------------


async def apply(
    conn: AsyncConnection,
    correction_id: int,
    *,
    rules: PostingRules,
    pause_s: float = 0.0,
    progress: Progress | None = None,
) -> Summary:
    """Apply an approved correction to every account of its dry run, each once, pausing between ranges; resumable.

    Raises: CorrectionNotReady; CutOffsExceeded when accounts have changed so that more supplies would be cut.
    """
    await _advance(conn, "correction_applying", correction_id, "one that is approved")
    proposal = (await read_correction(conn, correction_id)).proposal
    before = await summary_of(conn, correction_id)
    done, most, after = before.applied, before.applied + before.computed, 0
    while True:
        parameters = {"id": correction_id, "after": after, "most": ACCOUNTS_PER_RANGE}
        cursor = await conn.execute(sql("accounts_to_apply"), parameters)
        ids = [row[0] for row in await cursor.fetchall()]
        if not ids:
            break
        await _apply_range_again(conn, proposal, ids, rules)
        done, after = done + len(ids), ids[-1]
        if progress:
            progress(done, most)
        await asyncio.sleep(pause_s)
    await conn.execute(sql("correction_applied"), {"id": correction_id})
    return await summary_of(conn, correction_id)


async def _apply_range_again(
    conn: AsyncConnection, proposal: Proposal, ids: Sequence[int], rules: PostingRules
) -> None:
    """Apply to a range; once more when the database ended it to resolve a deadlock."""
    for _ in range(DEADLOCKS_MAX):
        try:
            return await _apply_range(conn, proposal, ids, rules)
        except DeadlockDetected:
            await asyncio.sleep(DEADLOCK_WAIT_S)
        except CutOffsExceeded:
            # The range is rolled back; what was approved no longer holds.
            await conn.execute(sql("correction_stopped"), {"id": proposal.id})
            raise
    return await _apply_range(conn, proposal, ids, rules)


async def _apply_range(conn: AsyncConnection, proposal: Proposal, ids: Sequence[int], rules: PostingRules) -> None:
    async with conn.transaction():
        await lock(conn, ids)
        # Under the locks: whoever else applies the same correction is done with these accounts, or waits for us.
        cursor = await conn.execute(sql("accounts_still_to_apply"), {"id": proposal.id, "ids": list(ids)})
        left = [row[0] for row in await cursor.fetchall()]
        views: dict[int, AccountView] = await look(conn, left, rules.calendar) if left else {}
        outcomes = await work_out(conn, proposal, dict(sorted(views.items())), rules.calendar)
        changed = [outcome for _, outcome in sorted(outcomes.items()) if outcome.rerated is not None]
        await write_outcomes(conn, proposal, changed, rules=rules, now_ms=time.time_ns() // 1_000_000)
        rows = [_row(outcome, outcome.view.version + (outcome.rerated is not None)) for outcome in outcomes.values()]
        rows += [_refused(each, 0, "expected an account with a billing meter") for each in left if each not in views]
        await conn.execute(sql("mark_applied"), {"id": proposal.id, **_columns(rows)})
        await _count_cut_offs(conn, proposal, changed)


async def _count_cut_offs(conn: AsyncConnection, proposal: Proposal, changed: Iterable[Outcome]) -> None:
    """Count a range's cut-offs against the number approved: the last statement before the commit.

    Raises: CutOffsExceeded, CorrectionNotReady; either rolls the range back.
    """
    cut_offs = sum(outcome.crosses is Crossing.EXHAUSTED for outcome in changed)
    cursor = await conn.execute(sql("correction_advanced"), {"id": proposal.id, "cut_offs": cut_offs})
    if await cursor.fetchone() is not None:
        return
    now = await read_correction(conn, proposal.id)
    _require(now, "applying")
    raise CutOffsExceeded(
        f"correction {proposal.id}: expected at most {now.approved_cut_offs} cut-offs as approved, got {now.cut_offs}"
        f" so far and {cut_offs} more in the next range; compute it again, look, and approve what it says then"
    )


# Rows --------------------------------------------------------------------------------------------------------------


async def _advance(conn: AsyncConnection, query: str, correction_id: int, expected: str) -> None:
    cursor = await conn.execute(sql(query), {"id": correction_id})
    if await cursor.fetchone() is None:
        state = (await read_correction(conn, correction_id)).state
        raise CorrectionNotReady(f"correction {correction_id}: expected {expected}, got {state}")


async def _require_state(conn: AsyncConnection, correction_id: int, state: str) -> None:
    cursor = await conn.execute(sql("correction_is"), {"id": correction_id, "state": state})
    if await cursor.fetchone() is None:
        _require(await read_correction(conn, correction_id), state)


def _require(correction: Correction, *states: str) -> None:
    if correction.state not in states:
        expected = " or ".join(states)
        raise CorrectionNotReady(f"correction {correction.id}: expected {expected}, got {correction.state}")


def _scope_parameters(scope: Scope) -> dict[str, Any]:
    """Return what `accounts_to_correct` asks of an account; None asks nothing."""
    wanted: dict[str, Any] = dict.fromkeys(("numbers", "reverses", "area", "category", "tariff_id"))
    match scope:
        case TermsScope(numbers=numbers):
            wanted |= {"area": scope.area, "category": scope.category, "tariff_id": scope.tariff_id}
            wanted["numbers"] = None if numbers is None else list(numbers)
        case EditScope(numbers=numbers) | OverhaulScope(numbers=numbers):
            wanted["numbers"] = list(numbers)
        case ReversalScope(reverses=reverses):
            wanted["reverses"] = reverses
    return wanted


def _row(outcome: Outcome, version: int) -> dict[str, Any]:
    rerated, crosses = outcome.rerated, outcome.crosses
    if rerated is None or crosses is None:
        return _refused(outcome.view.id, version, outcome.detail or NOTHING_CHANGES)
    return {
        "account_ids": outcome.view.id,
        "versions": version,
        "befores": rerated.before_minor,
        "afters": rerated.after_minor,
        "lines": Jsonb(_parts_to_json(rerated.differences)),
        "crosses": crosses.value,
        "details": None,
    }


def _refused(account_id: int, version: int, detail: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("befores", "afters", "lines", "crosses"))
    return {"account_ids": account_id, "versions": version, **nothing, "details": detail}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = ("account_ids", "versions", "befores", "afters", "lines", "crosses", "details")
    return {name: [row[name] for row in rows] for name in names}


def _parts_to_json(parts: Mapping[date, PartDifference]) -> dict[str, object]:
    return {
        first.isoformat(): {"energy_wh": part.energy_wh, "assessed_wh": part.assessed_wh, "lines": part.lines}
        for first, part in parts.items()
    }


def _parts_from_json(document: Mapping[str, Any]) -> dict[date, PartDifference]:
    return {date.fromisoformat(first): PartDifference(**part) for first, part in sorted(document.items())}
