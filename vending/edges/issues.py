"""Free and subsidised recharges: small ones by one person, large ones proposed by one and approved by another.

Stage: between the engineers' routes and the vending desk, one transaction each. What one person may give to an account
within a day is the category's rule of that day (`issues.alone_minor` of the prepayment rules). A proposal mints
nothing; its approval sells under the proposal's message id, so that it can do so once. Never: HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from psycopg import AsyncConnection

from billing.calendar import from_ms
from billing.money import format_minor
from db.issues import (
    IssueProposal,
    NewIssueProposal,
    add_issue_decision,
    add_issue_proposal,
    find_issue_proposal,
    holder_of_key,
    issued_alone_minor,
    open_issue_proposals,
)
from db.prepayment import prepayment_of
from db.vends import NamedMeter, find_message, lock_message
from vending.edges.desk import Answered, Desk, Seller, not_billed, one_meter
from vending.edges.errors import (
    ProposalDecided,
    ProposalUnknown,
    RequestDeclined,
    SamePerson,
    SecondPersonNeeded,
)
from vending.edges.store import sell, trial
from vending.vends import Declined, Funding, MessageIdReused, Release, VendOrder, digest_of, order_digest

# One screen of proposals that wait.
PROPOSALS_SHOWN = 100
APPROVED, REJECTED, PROPOSED = "approved", "rejected", "proposed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a second person says of a proposed issue; `by` is the id of the key."""

    approved: bool
    by: str
    reason: str


async def issue(conn: AsyncConnection, desk: Desk, seller: Seller, order: VendOrder) -> Answered:
    """Issue what one person may, once under a message id.

    Raises: SecondPersonNeeded, with nothing stored; what `sell` raises.
    """
    async with conn.transaction():
        await lock_message(conn, seller.vendor_id, order.message_id)
        use = await find_message(conn, seller.vendor_id, order.message_id)
        if use.vend is None and not use.is_act:
            await _require_small(conn, desk, seller, order)
        return await sell(conn, desk, seller, order)


async def propose(
    conn: AsyncConnection, desk: Desk, seller: Seller, order: VendOrder, *, by: str, reason: str
) -> IssueProposal:
    """Store an issue for somebody else to decide; the same again is the same proposal.

    Raises: RequestDeclined with what would refuse it now; MessageIdReused; DrnCheckDigit; ModuleAbsent.
    """
    digest = _digest(seller.funding, order)
    async with conn.transaction():
        await lock_message(conn, seller.vendor_id, order.message_id)
        stored = await find_issue_proposal(conn, vendor_id=seller.vendor_id, message_id=order.message_id)
        if stored is None:
            use = await find_message(conn, seller.vendor_id, order.message_id)
            if use.vend is not None or use.is_act:
                raise _reused(order)
            stored = await _add_proposal(conn, desk, seller, order, digest, by=by, reason=reason)
        elif bytes(stored.request_sha256) != digest:
            raise _reused(order)
        if seller.act is not None:
            await seller.act.write(
                conn, outcome=state_of_proposal(stored), status=200, subject=order.meter, reference=order.message_id
            )
    return stored


async def decide_issue(
    conn: AsyncConnection, desk: Desk, seller: Seller, number: int, decision: Decision
) -> IssueProposal:
    """Approve a proposed issue, which sells it, or reject it; the same decision again changes nothing.

    `seller` is the utility's of any funding, with the request's line of the audit trail. A refusal of the sale is the
    answer under the message id, as for any other; the proposal stays approved.
    Raises: ProposalUnknown, SamePerson, ProposalDecided; what `sell` raises, with nothing decided.
    """
    found = await _proposal(conn, number)
    async with conn.transaction():
        await lock_message(conn, found.vendor_id, found.message_id)
        found = await _proposal(conn, number)
        if found.approved is None:
            if decision.approved:
                await _require_other(conn, found, decision.by)
            await add_issue_decision(
                conn, found.id, approved=decision.approved, by=decision.by, at=from_ms(desk.clock()),
                reason=decision.reason,
            )  # fmt: skip
        elif found.approved is not decision.approved:
            raise ProposalDecided(f"proposal {number}: expected one to decide, got one {state_of_proposal(found)}")
        if decision.approved:
            funded = replace(seller, funding=Funding(found.funding), operator=found.proposed_by)
            await sell(conn, desk, funded, _order_of(found))
        elif seller.act is not None:
            await seller.act.write(conn, outcome=REJECTED, status=200, subject=found.meter, reference=found.message_id)
        return await _proposal(conn, number)


async def waiting_issues(conn: AsyncConnection, *, after: int) -> list[IssueProposal]:
    """List what nobody has decided, the oldest first."""
    return await open_issue_proposals(conn, after=after, most=PROPOSALS_SHOWN)


def state_of_proposal(proposal: IssueProposal) -> str:
    """Say where a proposal stands."""
    if proposal.approved is None:
        return PROPOSED
    return APPROVED if proposal.approved else REJECTED


async def _require_small(conn: AsyncConnection, desk: Desk, seller: Seller, order: VendOrder) -> None:
    """Raises: SecondPersonNeeded. What would be refused anyway passes: it is refused by the sale."""
    meter = await one_meter(conn, order.meter)
    if isinstance(meter, Declined) or meter.account_id is None:
        return
    day = desk.rules.calendar.day_of(desk.clock())
    most_minor = (await prepayment_of(conn, meter.account_id, day)).rules.issues_alone_minor
    given_minor = await issued_alone_minor(conn, meter.account_id)
    try:
        asked_minor = await _quoted_minor(conn, desk, seller, order)
    except RequestDeclined:
        return
    if given_minor + asked_minor > most_minor:
        raise SecondPersonNeeded(
            f"meter {meter.serial}: expected at most {format_minor(most_minor)} a day by one person,"
            f" got {format_minor(asked_minor)} after {format_minor(given_minor)}; propose it"
        )


async def _quoted_minor(conn: AsyncConnection, desk: Desk, seller: Seller, order: VendOrder) -> int:
    """Return what an issue comes to. Raises: RequestDeclined."""
    if order.amount_minor is not None:
        return order.amount_minor
    told = (await trial(conn, desk, seller, order))["amount_minor"]
    assert isinstance(told, int), "a trial tells its amount"
    return told


async def _add_proposal(
    conn: AsyncConnection, desk: Desk, seller: Seller, order: VendOrder, digest: bytes, *, by: str, reason: str
) -> IssueProposal:
    meter = await one_meter(conn, order.meter)
    if isinstance(meter, NamedMeter) and meter.account_id is None:
        meter = not_billed(meter)
    if isinstance(meter, Declined):
        raise RequestDeclined(meter)
    assert meter.account_id is not None
    quoted = (await trial(conn, desk, seller, order))["amount_minor"]
    assert isinstance(quoted, int), "a trial tells its amount"
    new = NewIssueProposal(
        vendor_id=seller.vendor_id,
        message_id=order.message_id,
        request_sha256=digest,
        account_id=meter.account_id,
        meter=order.meter,
        funding=seller.funding.value,
        amount_minor=order.amount_minor,
        energy_wh=order.energy_wh,
        release=order.release.value,
        reason=reason,
        quoted_minor=quoted,
        proposed_by=by,
        proposed_at=from_ms(desk.clock()),
    )
    await add_issue_proposal(conn, new)
    stored = await find_issue_proposal(conn, vendor_id=seller.vendor_id, message_id=order.message_id)
    assert stored is not None, f"message_id {order.message_id}: is stored"
    return stored


async def _require_other(conn: AsyncConnection, proposal: IssueProposal, key_id: str) -> None:
    """Raises: SamePerson where the key is the proposer's, was rotated from it or into it, or has its name on it."""
    first, second = await holder_of_key(conn, proposal.proposed_by), await holder_of_key(conn, key_id)
    if first.first_key == second.first_key or (first.name and first.name == second.name):
        raise SamePerson(
            f"proposal {proposal.id}: expected another person's key than {proposal.proposed_by}, got {key_id}"
        )


async def _proposal(conn: AsyncConnection, number: int) -> IssueProposal:
    found = await find_issue_proposal(conn, number=number)
    if found is None:
        raise ProposalUnknown(f"proposal {number}: expected the number of a proposed issue")
    return found


def _order_of(proposal: IssueProposal) -> VendOrder:
    return VendOrder(
        message_id=proposal.message_id,
        meter=proposal.meter,
        amount_minor=proposal.amount_minor,
        energy_wh=proposal.energy_wh,
        tender=None,
        release=Release(proposal.release),
        reason=proposal.reason,
    )


def _digest(funding: Funding, order: VendOrder) -> bytes:
    return digest_of({"funding": funding.value, "order": order_digest(order).hex()})


def _reused(order: VendOrder) -> MessageIdReused:
    return MessageIdReused(f"message_id {order.message_id}: expected what it was first used with, got another")
