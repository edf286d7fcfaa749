"""The exceptions desk: what a decision would do to money, decisions alone or by two, bulk actions, evidence whole.

Stage: between the engineers' routes and commands and what carries a decision out: the quarantine desk for what is held,
corrections for what is stored. A decision that moves more money than the rules of estimation allow one person, or whose
money cannot be worked out, waits for a second; so does every edit and estimate. Each decision is a transaction of its
own or one that goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from psycopg import AsyncConnection

from billing.money import BillingError
from db.correction_scope import ReadingEdit
from db.corrections import (
    apply,
    approve,
    cancel,
    compute,
    propose_edits,
    propose_estimates,
    read_correction,
    summary_of,
)
from db.errors import DatabaseError
from db.exceptions import (
    DecisionRow,
    ExceptionItem,
    ExceptionKey,
    ExceptionKind,
    ExceptionRefused,
    add_decision,
    add_step,
    close_exception,
    end_decision,
    lock_exception,
    read_decisions,
    read_exception,
    require_open,
)
from db.orders import PostingRules
from db.quarantine import reject, release
from headend.edges.exceptions_effect import (
    Effect,
    effect_of_correction,
    effect_of_release,
    no_effect,
    view_of_item,
)
from headend.edges.exceptions_estimates import edits_by_rule, estimates_of
from headend.estimation.document import EstimationRules
from headend.estimation.values import EstimationRule

# Each item is a dry run and a transaction of its own, some 30 ms: 200 are 6 s of one request.
BULK_ITEMS_MAX = 200
_DRY_RUN = "dry run"


class Action(StrEnum):
    """What may be decided; the value is what the database keeps."""

    RELEASE = "release"
    REJECT = "reject"
    KEEP = "keep"
    EDIT = "edit"
    VOID = "void"
    ESTIMATE = "estimate"


# What fits what: a held reading is not stored yet, a gap has nothing to edit.
ACTIONS: Mapping[ExceptionKind, tuple[Action, ...]] = {
    ExceptionKind.QUARANTINE: (Action.RELEASE, Action.REJECT),
    ExceptionKind.FLAG: (Action.KEEP, Action.EDIT, Action.VOID, Action.ESTIMATE),
    ExceptionKind.GAP: (Action.KEEP, Action.ESTIMATE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is decided: `import_wh` of an edit, `rule` and `counted_wh` of an estimate, `as_reset` of a release."""

    action: Action
    import_wh: int | None = None
    rule: EstimationRule | None = None
    counted_wh: tuple[int | None, ...] | None = None
    as_reset: bool = False

    def to_json(self) -> dict[str, object]:
        """Return what the database keeps of it, without the action; what is not given is left out."""
        kept: dict[str, object] = {"as_reset": True} if self.as_reset else {}
        if self.import_wh is not None:
            kept["import_wh"] = self.import_wh
        if self.rule is not None:
            kept["rule"] = self.rule.value
        if self.counted_wh is not None:
            kept["counted_wh"] = list(self.counted_wh)
        return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a decision would do: to money, to how many registers, and whether one person may decide it."""

    effect: Effect
    edits: Sequence[ReadingEdit]
    needs_second_person: bool

    def to_json(self) -> dict[str, object]:
        """Return what is kept and shown."""
        effect = self.effect
        return {
            "before_minor": effect.before_minor,
            "after_minor": effect.after_minor,
            "difference_minor": effect.difference_minor,
            "crosses": None if effect.crosses is None else effect.crosses.value,
            "cut_offs": effect.cut_offs,
            "told": effect.told,
            "registers": len(self.edits),
            "needs_second_person": self.needs_second_person,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What became of a decision: `done`, or `proposed` and waiting for a second person."""

    key: ExceptionKey
    decision_id: int
    state: str
    correction_id: int | None
    dry_run: DryRun


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOutcome:
    """What became of one of many: a state and the decision's number, or the code and words of a refusal."""

    key: ExceptionKey
    state: str
    decision_id: int | None = None
    code: str | None = None
    told: str | None = None
    difference_minor: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Office:
    """What every decision needs besides itself: posting rules, and the rules of estimation that hold today."""

    posting: PostingRules
    estimation: EstimationRules


async def dry_run(conn: AsyncConnection, item: ExceptionItem, decision: Decision, office: Office) -> DryRun:
    """Work out what a decision would do to money; nothing is written.

    Raises: ExceptionRefused for a decision that does not fit the exception.
    """
    _require_fits(item, decision)
    match decision.action:
        case Action.RELEASE:
            effect = await effect_of_release(conn, item, as_reset=decision.as_reset, rules=office.posting)
            return DryRun(effect=effect, edits=(), needs_second_person=_needs_two(effect, office))
        case Action.REJECT | Action.KEEP:
            return DryRun(effect=await no_effect(conn, item, office.posting), edits=(), needs_second_person=False)
        case Action.EDIT | Action.VOID | Action.ESTIMATE:
            edits = await _edits(conn, item, decision, office)

            async def propose() -> int:
                return await _propose(conn, item, edits, why=_DRY_RUN, by=_DRY_RUN)

            effect = await effect_of_correction(conn, item, propose, office.posting)
            return DryRun(effect=effect, edits=edits, needs_second_person=True)
        case _:
            assert_never(decision.action)


async def decide(
    conn: AsyncConnection, key: ExceptionKey, decision: Decision, office: Office, *, by: str, why: str
) -> Decided:
    """Decide an exception after its dry run: at once where one person may, else as a proposal to a second.

    Raises: UnknownException, ExceptionRefused, QuarantineRefused, ProposalRefused; then nothing was done.
    """
    async with conn.transaction():
        await lock_exception(conn, key)
        item = await read_exception(conn, key)
        require_open(item)
        if waiting := await _waiting(conn, key):
            raise ExceptionRefused(
                f"exception {key}: expected no open decision, got {waiting.id} by {waiting.asked_by}"
            )
        found = await dry_run(conn, item, decision, office)
        correction_id = None
        if found.edits:
            correction_id = await _propose(conn, item, found.edits, why=why, by=by)
        done = not found.needs_second_person
        if done:
            await _carry_out(conn, key, decision.action, as_reset=decision.as_reset, by=by, why=why)
        decision_id = await add_decision(
            conn,
            key,
            decision.action.value,
            parameters=decision.to_json(),
            effect=found.to_json(),
            correction_id=correction_id,
            by=by,
            why=why,
            done=done,
        )
        facts = {"decision": decision_id, "correction": correction_id, **decision.to_json(), **found.to_json()}
        await add_step(
            conn, key, decision.action.value if done else f"propose_{decision.action}", by=by, why=why, facts=facts
        )
    if correction_id is not None:
        # The correction's own dry run, kept for the second person; it works in transactions of its own.
        await compute(conn, correction_id, rules=office.posting)
    return Decided(
        key=key,
        decision_id=decision_id,
        state="done" if done else "proposed",
        correction_id=correction_id,
        dry_run=found,
    )


async def approve_decision(
    conn: AsyncConnection, key: ExceptionKey, office: Office, *, by: str, why: str, cut_offs: int
) -> DecisionRow:
    """Carry out what was proposed, as a second person who states how many supplies that cuts; resumable.

    Raises: UnknownException, ExceptionRefused; CorrectionNotReady, ApprovalRefused and CutOffsExceeded of corrections.
    """
    await read_exception(conn, key)
    waiting = await _required(conn, key)
    if waiting.asked_by.casefold() == by.casefold():
        raise ExceptionRefused(f"exception {key}: expected a second person, got {by}")
    if waiting.correction_id is not None:
        await _apply(conn, key, waiting.correction_id, office, by=by, cut_offs=cut_offs)
    async with conn.transaction():
        await lock_exception(conn, key)
        # Somebody may have been faster; then it is done.
        waiting = await _required(conn, key)
        action = Action(waiting.action)
        if waiting.correction_id is None:
            await _require_same_effect(conn, key, waiting, office, cut_offs)
        as_reset = bool(waiting.parameters.get("as_reset", False))
        await _carry_out(conn, key, action, as_reset=as_reset, by=waiting.asked_by, why=waiting.why)
        await end_decision(conn, waiting.id, "done", by=by, why=why)
        await add_step(conn, key, "approve", by=by, why=why, facts={"decision": waiting.id, "cut_offs": cut_offs})
    return (await read_decisions(conn, key))[-1]


async def cancel_decision(conn: AsyncConnection, key: ExceptionKey, *, by: str, why: str) -> DecisionRow:
    """Give up what was proposed; the exception stays open.

    Raises: UnknownException, ExceptionRefused; CorrectionNotReady where it is applied by now.
    """
    async with conn.transaction():
        await lock_exception(conn, key)
        await read_exception(conn, key)
        waiting = await _required(conn, key)
        if waiting.correction_id is not None:
            await cancel(conn, waiting.correction_id, by=by)
        await end_decision(conn, waiting.id, "cancelled", by=by, why=why)
        await add_step(conn, key, "cancel", by=by, why=why, facts={"decision": waiting.id})
    return (await read_decisions(conn, key))[-1]


async def decide_many(
    conn: AsyncConnection,
    keys: Sequence[ExceptionKey],
    decision: Decision,
    office: Office,
    *,
    by: str,
    why: str,
    bound_minor: int,
    only_look: bool = False,
) -> list[BulkOutcome]:
    """Decide many exceptions alike, each wholly or not at all, after a dry run of all.

    Nothing is done where together they would move more money than `bound_minor`; amounts that cannot be worked out are
    refused one by one. `only_look` ends after the dry run. Raises: ExceptionRefused for too many, or above the bound.
    """
    wanted = list(dict.fromkeys(keys))
    if not 1 <= len(wanted) <= BULK_ITEMS_MAX or decision.action is Action.EDIT:
        raise ExceptionRefused(f"bulk: expected 1 to {BULK_ITEMS_MAX} exceptions and no edit, got {len(wanted)}")
    looked = [await _looked(conn, key, decision, office) for key in wanted]
    moved_minor = sum(abs(each.difference_minor or 0) for each in looked)
    if moved_minor > bound_minor:
        raise ExceptionRefused(f"bulk: expected at most {bound_minor} minor units moved, got {moved_minor}")
    if only_look:
        return looked
    found = []
    for each in looked:
        if each.state == "refused":
            found.append(each)
            continue
        try:
            decided = await decide(conn, each.key, decision, office, by=by, why=why)
        except (DatabaseError, BillingError) as refusal:
            found.append(_refusal(each.key, refusal))
        else:
            found.append(
                BulkOutcome(
                    key=each.key,
                    state=decided.state,
                    decision_id=decided.decision_id,
                    difference_minor=decided.dry_run.effect.difference_minor,
                )
            )
    return found


async def _looked(conn: AsyncConnection, key: ExceptionKey, decision: Decision, office: Office) -> BulkOutcome:
    """Return what a decision would do to one of many: `looked`, or `refused`."""
    try:
        item = await read_exception(conn, key)
        require_open(item)
        effect = (await dry_run(conn, item, decision, office)).effect
    except (DatabaseError, BillingError) as refusal:
        return _refusal(key, refusal)
    if effect.difference_minor is None:
        return BulkOutcome(key=key, state="refused", code="exception_refused", told=effect.told)
    return BulkOutcome(key=key, state="looked", difference_minor=effect.difference_minor)


def _refusal(key: ExceptionKey, refusal: DatabaseError | BillingError) -> BulkOutcome:
    return BulkOutcome(key=key, state="refused", code=refusal.code, told=str(refusal))


async def _carry_out(
    conn: AsyncConnection, key: ExceptionKey, action: Action, *, as_reset: bool, by: str, why: str
) -> None:
    """Do what was decided; edits and estimates have been applied by their correction. Raises: QuarantineRefused."""
    match action:
        case Action.RELEASE:
            await release(conn, [key.id], by=by, why=why, as_reset=as_reset)
        case Action.REJECT:
            await reject(conn, [key.id], by=by, why=why)
        case Action.KEEP | Action.EDIT | Action.VOID | Action.ESTIMATE:
            await close_exception(conn, key, action.value)
        case _:
            assert_never(action)


async def _apply(
    conn: AsyncConnection, key: ExceptionKey, correction_id: int, office: Office, *, by: str, cut_offs: int
) -> None:
    """Approve and apply a correction from where it stands. Raises: ExceptionRefused for one that changes nothing."""
    state = (await read_correction(conn, correction_id)).state
    if state in ("proposed", "computed"):
        # What was read since counts; an account at its old version is passed over.
        await compute(conn, correction_id, rules=office.posting)
        await approve(conn, correction_id, by=by, cut_offs=cut_offs)
    if state != "applied":
        await apply(conn, correction_id, rules=office.posting)
    if not (await summary_of(conn, correction_id)).applied:
        raise ExceptionRefused(f"exception {key}: expected correction {correction_id} to change something, it did not")


async def _require_same_effect(
    conn: AsyncConnection, key: ExceptionKey, waiting: DecisionRow, office: Office, cut_offs: int
) -> None:
    """Refuse a release whose cut-offs are others than the second person has stated. Raises: ExceptionRefused."""
    item = await read_exception(conn, key)
    require_open(item)
    as_reset = bool(waiting.parameters.get("as_reset", False))
    effect = await effect_of_release(conn, item, as_reset=as_reset, rules=office.posting)
    if effect.cut_offs != cut_offs:
        raise ExceptionRefused(
            f"exception {key}: expected the {effect.cut_offs} cut-offs of the dry run, got {cut_offs}"
        )


async def _edits(
    conn: AsyncConnection, item: ExceptionItem, decision: Decision, office: Office
) -> Sequence[ReadingEdit]:
    """Return the registers that a decision puts in place. Raises: ExceptionRefused."""
    view = await view_of_item(conn, item, office.posting)
    if view is None or view.meter.id != item.meter_id or item.at is None:
        raise ExceptionRefused(f"exception {item.key}: expected a meter that bills an account, got {item.serial}")
    if decision.action is Action.ESTIMATE:
        calendar = office.posting.calendar
        found = await estimates_of(conn, item, office.estimation, calendar, decision.counted_wh)
        return edits_by_rule(item, view, decision.rule, found, office.estimation, calendar)
    return [
        ReadingEdit(serial=view.meter.serial, meter_id=view.meter.id, read_at=item.at, import_wh=decision.import_wh)
    ]


async def _propose(
    conn: AsyncConnection, item: ExceptionItem, edits: Sequence[ReadingEdit], *, why: str, by: str
) -> int:
    """Ask for the correction that puts registers in place. Raises: ProposalRefused."""
    if edits[0].estimated is not None:
        return await propose_estimates(conn, item.account or "", edits, reason=why, by=by)
    stored = [(edit.serial, edit.read_at, edit.import_wh) for edit in edits]
    return await propose_edits(conn, stored, reason=why, by=by)


def _require_fits(item: ExceptionItem, decision: Decision) -> None:
    allowed = ACTIONS[ExceptionKind(item.kind)]
    if decision.action not in allowed:
        raise ExceptionRefused(f"exception {item.key}: expected {' or '.join(allowed)}, got {decision.action}")
    if (decision.import_wh is not None) is not (decision.action is Action.EDIT):
        raise ExceptionRefused(f"exception {item.key}: expected a register for an edit, and only then")
    named = decision.rule is not None or decision.counted_wh is not None
    if named and decision.action is not Action.ESTIMATE:
        raise ExceptionRefused(f"exception {item.key}: expected a rule only for an estimate, got {decision.action}")
    if decision.as_reset and decision.action is not Action.RELEASE:
        raise ExceptionRefused(f"exception {item.key}: expected a reset only with a release, got {decision.action}")


def _needs_two(effect: Effect, office: Office) -> bool:
    # A cut-off is somebody's light: one person does not decide it, however small the amount.
    return office.estimation.needs_second_person(effect.difference_minor) or effect.cut_offs > 0


async def _waiting(conn: AsyncConnection, key: ExceptionKey) -> DecisionRow | None:
    """Return the decision that waits for a second person."""
    return next((row for row in await read_decisions(conn, key) if row.state == "proposed"), None)


async def _required(conn: AsyncConnection, key: ExceptionKey) -> DecisionRow:
    waiting = await _waiting(conn, key)
    if waiting is None:
        raise ExceptionRefused(f"exception {key}: expected a decision that waits for a second person, got none")
    return waiting
