"""The routes of free and subsidised recharges: issued by one person, or proposed by one and decided by another.

Stage: between HTTP and the issues desk. Never: a transaction of its own, or an answer other than the desk's.
"""

from __future__ import annotations

from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Path, Request, Response
from pydantic import Field

from db.issues import IssueProposal
from vending.edges.act_models import IssueBody, Reason
from vending.edges.act_routes import utility_seller
from vending.edges.advice_routes import AfterQuery
from vending.edges.auth import require_engineer, require_scope
from vending.edges.issues import (
    PROPOSALS_SHOWN,
    Decision,
    decide_issue,
    issue,
    propose,
    state_of_proposal,
    waiting_issues,
)
from vending.edges.models import AnswerBody, Money, RequestBody, VendAnswer, with_example
from vending.edges.refusals import SALE_CODES, refusals
from vending.edges.routes import CallerOf, answer, state_of
from vending.receipt import money_to_api
from vending.roles import Scope
from vending.vends import Funding, Release, VendOrder, read_order

_log = structlog.get_logger(__name__)
issue_router = APIRouter()

NumberPath = Annotated[int, Path(ge=1, le=2**62, description="the proposal's number")]
_STATUS_SOLD = 200
_DECISION_CODES = ("unknown_proposal", "same_person", "proposal_decided", "message_id_reused", *SALE_CODES)


class IssueDecisionBody(RequestBody):
    """What a second person says of a proposed issue."""

    model_config = with_example({"verdict": "approve", "reason": "order 17 seen, household is on its list"})

    verdict: Literal["approve", "reject"]
    reason: Reason


class ProposalAnswer(AnswerBody):
    """A proposed issue. Its receipt, once approved, is that of its message id."""

    number: int
    state: Literal["proposed", "approved", "rejected"]
    message_id: str
    kind: Literal["free_issue", "subsidy"]
    meter: str
    account_number: str
    amount: Money = Field(description="what it came to when it was proposed")
    amount_minor: int
    reason: str
    proposed_by: str = Field(description="id of the key", examples=["0f3c9a1be7d24c58"])
    proposed_at: str
    decided_by: str | None
    decided_at: str | None
    decision_reason: str | None
    issued: bool = Field(description="approved and sold; false also where the sale was refused")
    receipt_number: str | None = Field(description="of the sale or its refusal under the message id")


class ProposalsAnswer(AnswerBody):
    """Issues that wait for a second person, the oldest first; `more` when there are later ones."""

    proposals: list[ProposalAnswer]
    more: bool


@issue_router.post(
    "/v1/issues",
    summary="Issue a free or subsidised recharge",
    response_model=VendAnswer,
    responses=refusals(*SALE_CODES, "message_id_reused", "second_person_needed"),
)
async def post_issue(body: IssueBody, request: Request, caller: CallerOf) -> Response:
    """Recharge an account at the utility's cost or the government's; a vend of the utility's own, with its reason.

    More within a day than one person may give to an account is refused: it is proposed, and approved by another.
    """
    engineer = require_engineer(caller, Scope.ISSUE)
    state = state_of(request)
    async with state.pool.connection() as conn:
        answered = await issue(conn, state.desk, await utility_seller(conn, engineer, Funding(body.kind)), _order(body))
    _log.info("recharge_issued", funding=body.kind, outcome=answered.outcome, meter=body.meter, key_id=engineer.key_id)
    return answer(answered.stored.answer, status=answered.stored.status)


@issue_router.post(
    "/v1/issue-proposals",
    summary="Propose a free or subsidised recharge",
    response_model=ProposalAnswer,
    responses=refusals(*SALE_CODES, "message_id_reused"),
)
async def post_proposal(body: IssueBody, request: Request, caller: CallerOf) -> Response:
    """Ask for a recharge that a second person has to approve; nothing is made or booked before."""
    engineer = require_engineer(caller, Scope.ISSUE)
    state = state_of(request)
    async with state.pool.connection() as conn:
        seller = await utility_seller(conn, engineer, Funding(body.kind))
        found = await propose(conn, state.desk, seller, _order(body), by=engineer.key_id, reason=body.reason)
    _log.info("issue_proposed", number=found.id, meter=body.meter, key_id=engineer.key_id)
    return answer(_proposal_to_api(found))


@issue_router.get(
    "/v1/issue-proposals",
    summary="List recharges that wait for a second person",
    response_model=ProposalsAnswer,
    responses=refusals(),
)
async def get_proposals(request: Request, caller: CallerOf, after: AfterQuery = 0) -> Response:
    """List proposed issues that nobody has decided."""
    require_scope(caller, Scope.READ_ALL)
    async with state_of(request).pool.connection() as conn:
        found = await waiting_issues(conn, after=after)
    return answer({"proposals": [_proposal_to_api(each) for each in found], "more": len(found) == PROPOSALS_SHOWN})


@issue_router.post(
    "/v1/issue-proposals/{number}/decision",
    summary="Approve or reject a proposed recharge",
    response_model=ProposalAnswer,
    responses=refusals(*_DECISION_CODES),
)
async def post_issue_decision(
    number: NumberPath, body: IssueDecisionBody, request: Request, caller: CallerOf
) -> Response:
    """Decide as a second person. Approved, it is sold under its message id; whoever asked for it reads the receipt."""
    engineer = require_engineer(caller, Scope.ISSUE)
    state = state_of(request)
    decision = Decision(approved=body.verdict == "approve", by=engineer.key_id, reason=body.reason)
    async with state.pool.connection() as conn:
        seller = await utility_seller(conn, engineer, Funding.FREE_ISSUE)
        found = await decide_issue(conn, state.desk, seller, number, decision)
    _log.info("issue_decided", number=number, verdict=body.verdict, key_id=engineer.key_id)
    return answer(_proposal_to_api(found))


def _order(body: IssueBody) -> VendOrder:
    return read_order(
        message_id=body.message_id,
        meter=body.meter,
        amount=body.amount,
        units=body.units,
        tender=None,
        release=Release(body.release),
        reason=body.reason,
    )


def _proposal_to_api(found: IssueProposal) -> dict[str, object]:
    return {
        "number": found.id,
        "state": state_of_proposal(found),
        "message_id": found.message_id,
        "kind": found.funding,
        "meter": found.meter,
        "account_number": found.account,
        **money_to_api("amount", found.quoted_minor),
        "reason": found.reason,
        "proposed_by": found.proposed_by,
        "proposed_at": found.proposed_at.isoformat(timespec="milliseconds"),
        "decided_by": found.decided_by,
        "decided_at": None if found.decided_at is None else found.decided_at.isoformat(timespec="milliseconds"),
        "decision_reason": found.decision_reason,
        "issued": found.vend_status == _STATUS_SOLD,
        "receipt_number": None if found.vend_id is None else str(found.vend_id),
    }
