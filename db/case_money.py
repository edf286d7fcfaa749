"""What a decided case does to an account's money: a proposal, a second person's approval, the posting, the test fee.

Stage: between cases and money. An overhaul goes through a correction, with its dry run, its bounds and its cut-offs
(`db.corrections`); a disputed bill and the fee of a meter that proved right are adjustments. The step of the case and
what it posts are tied together by the correction's number or the journals', which the trail keeps.

A posting that was killed goes on where it stood: an applied correction is not applied again, and the adjustment and its
step are one transaction.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from typing import Any

from psycopg import AsyncConnection

from billing.calendar import to_ms
from billing.disputes.case import CaseRefused, Decision, State, StepKind
from billing.disputes.proposal import Asked, overhaul_of
from billing.terms import ONE_DAY
from db.accounts import look
from db.cases import CaseFile, Entry, lock_case, read_case, take_step
from db.corrections import account_rows, apply, approve, cancel, compute, propose_overhaul, read_correction, summary_of
from db.money_events import Instruction, adjust
from db.named import sql
from db.orders import PostingRules

_TESTS = (StepKind.COMPARE, StepKind.LABORATORY, StepKind.THIRD_PARTY)


async def propose_money(
    conn: AsyncConnection, case_id: int, wanted: Asked | int, entry: Entry, *, rules: PostingRules
) -> CaseFile:
    """Propose an overhaul, with its dry run, or an adjustment (minor units, signed) of a disputed bill.

    Raises: CaseRefused; OverhaulRefused; UnknownCase.
    """
    file = await _ready(conn, case_id, StepKind.PROPOSE)
    if (file.case.decision is Decision.ADJUST) is not isinstance(wanted, int):
        expected = "an amount" if file.case.decision is Decision.ADJUST else "an overhaul"
        raise CaseRefused(f"propose: expected {expected} in a case of kind {file.row.kind}")
    if isinstance(wanted, int):
        if wanted == 0:
            raise CaseRefused("propose: expected an amount other than 0")
        facts: dict[str, Any] = {"amount_minor": wanted}
    else:
        facts = await _dry_run(conn, file, wanted, entry, rules)
    async with conn.transaction():
        await lock_case(conn, case_id)
        return await take_step(conn, case_id, StepKind.PROPOSE, entry, rules.calendar, facts=facts)


async def approve_money(conn: AsyncConnection, case_id: int, entry: Entry, *, rules: PostingRules) -> CaseFile:
    """Approve what is proposed, with the cut-offs that its dry run reports, as a second person.

    Raises: CaseRefused for the one who proposed it; ApprovalRefused; UnknownCase.
    """
    async with conn.transaction():
        await lock_case(conn, case_id)
        file = await take_step(conn, case_id, StepKind.APPROVE, entry, rules.calendar)
        correction = _proposed(file).get("correction")
        if correction is not None:
            await approve(conn, correction, by=entry.by, cut_offs=_proposed(file)["summary"]["to_cut"])
        return file


async def refuse_money(conn: AsyncConnection, case_id: int, entry: Entry, *, rules: PostingRules) -> CaseFile:
    """Refuse what is proposed, or give up what is approved and not posted; another proposal may follow.

    Raises: CaseRefused; CorrectionNotReady for one that is applied; UnknownCase.
    """
    async with conn.transaction():
        await lock_case(conn, case_id)
        file = await take_step(conn, case_id, StepKind.REFUSE, entry, rules.calendar)
        correction = _proposed(file).get("correction")
        if correction is not None:
            await cancel(conn, correction, by=entry.by)
        return file


async def post_money(conn: AsyncConnection, case_id: int, entry: Entry, *, rules: PostingRules) -> CaseFile:
    """Post what was approved, or the fee of a meter that proved right.

    Raises: CaseRefused; CutOffsExceeded; CorrectionNotReady; UnknownCase.
    """
    file = await _ready(conn, case_id, StepKind.POST)
    approved = file.row.state == State.APPROVED
    correction = _proposed(file).get("correction") if approved else None
    if correction is not None:
        if (await read_correction(conn, correction)).state != "applied":
            await apply(conn, correction, rules=rules)
        return await _posted_overhaul(conn, case_id, correction, entry, rules)
    async with conn.transaction():
        await lock_case(conn, case_id)
        file = await read_case(conn, case_id)
        right = file.case.decision is Decision.METER_RIGHT
        if not right and file.row.state != State.APPROVED:
            raise CaseRefused(f"post: expected a case that is approved, got one that is {file.row.state}")
        amount_minor = -file.rules.test_fee_minor if right else _proposed(file)["amount_minor"]
        what = "test fee, the meter is right" if right else "disputed bill"
        facts: dict[str, object] = {"amount_minor": amount_minor, "journals": []}
        if amount_minor:
            reason = f"case {case_id}: {what}"
            order = Instruction(reason=reason, by=entry.by, now_ms=to_ms(entry.at), rules=rules)
            done = await adjust(conn, file.row.account_id, amount_minor, order)
            facts |= {"journals": list(done.journal_ids), "balance_minor": done.balance_minor}
        # Refuses what is not ready, and all of it is rolled back.
        return await take_step(conn, case_id, StepKind.POST, entry, rules.calendar, facts=facts)


async def _posted_overhaul(
    conn: AsyncConnection, case_id: int, correction: int, entry: Entry, rules: PostingRules
) -> CaseFile:
    summary = await summary_of(conn, correction)
    cursor = await conn.execute(sql("case_journals"), {"correction_id": correction})
    journals = [row[0] for row in await cursor.fetchall()]
    facts = {"correction": correction, "journals": journals, "summary": asdict(summary)}
    async with conn.transaction():
        await lock_case(conn, case_id)
        return await take_step(conn, case_id, StepKind.POST, entry, rules.calendar, facts=facts)


async def _ready(conn: AsyncConnection, case_id: int, kind: StepKind) -> CaseFile:
    """Read a case that a step may be taken in. Raises: CaseRefused; UnknownCase."""
    file = await read_case(conn, case_id)
    states = {StepKind.PROPOSE: ("decided",), StepKind.POST: ("approved", "decided")}[kind]
    if file.row.state not in states:
        raise CaseRefused(f"{kind}: expected a case that is {' or '.join(states)}, got one that is {file.row.state}")
    return file


async def _dry_run(
    conn: AsyncConnection, file: CaseFile, asked: Asked, entry: Entry, rules: PostingRules
) -> dict[str, Any]:
    """Ask for the overhaul as a correction, and work it out. Raises: CaseRefused for one that the account refuses."""
    views = await look(conn, [file.row.account_id], rules.calendar)
    view = views[file.row.account_id]
    test = file.last(*_TESTS)
    error = None if test is None else test.facts.get("error_basis_points")
    overhaul = overhaul_of(file.case.kind, file.rules, asked, opened_on=view.terms.opened_on, error_basis_points=error)
    reason = f"case {file.row.id}: {file.row.kind}"
    correction = await propose_overhaul(conn, [file.row.account], overhaul, reason=reason, by=entry.by)
    summary = await compute(conn, correction, rules=rules)
    (row,) = await account_rows(conn, correction, most=1)
    if summary.refused or row.difference_minor is None:
        await cancel(conn, correction, by=entry.by)
        raise CaseRefused(f"overhaul: {row.detail}")
    return {
        "correction": correction,
        "first": overhaul.first.isoformat(),
        "last": overhaul.last.isoformat(),
        "source": overhaul.source,
        "before_minor": row.before_minor,
        "after_minor": row.after_minor,
        "parts": [
            {"from": first.isoformat(), "assessed_wh": part.assessed_wh, "lines": dict(part.lines)}
            for first, part in sorted(row.parts.items())
        ],
        "summary": asdict(summary),
    }


async def last_closed_day(conn: AsyncConnection, case_id: int, *, rules: PostingRules) -> date | None:
    """Return the last day of the latest bill part of a case's account that is closed; None where none is."""
    file = await read_case(conn, case_id)
    view = (await look(conn, [file.row.account_id], rules.calendar))[file.row.account_id]
    first = view.terms.part_at(view.checkpoint.through).first
    return first - ONE_DAY if first > view.terms.opened_on else None


def _proposed(file: CaseFile) -> dict[str, Any]:
    # What `propose_money` kept in the trail.
    step = file.last(StepKind.PROPOSE)
    return dict(step.facts) if step is not None else {}
