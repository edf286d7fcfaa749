"""Free and subsidised recharges as rows: what one person gave out alone, and what waits for a second one.

Stage: inside the transactions of the issues desk, under the lock of a message id. Proposals and decisions are never
changed; what became of one is the vend under its message id.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class NewIssueProposal:
    """An issue to be decided by somebody else. Units: minor units, Wh; exactly one of the two is set."""

    vendor_id: int
    message_id: str
    request_sha256: bytes
    account_id: int
    meter: str
    funding: str
    amount_minor: int | None
    energy_wh: int | None
    release: str
    reason: str
    quoted_minor: int
    proposed_by: str
    proposed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueProposal:
    """An issue as it was proposed, and what became of it.

    Invariants: `approved` is None while nobody has decided; a vend is there after an approval alone.
    """

    id: int
    vendor_id: int
    message_id: str
    request_sha256: bytes
    meter: str
    account: str
    funding: str
    amount_minor: int | None
    energy_wh: int | None
    release: str
    reason: str
    quoted_minor: int
    proposed_by: str
    proposed_at: datetime
    approved: bool | None
    decided_by: str | None
    decided_at: datetime | None
    decision_reason: str | None
    vend_id: int | None
    vend_status: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyHolder:
    """Whose a key is: the first key that it was rotated from, and the name on it, which may be empty."""

    first_key: str
    name: str


async def issued_alone_minor(conn: AsyncConnection, account_id: int) -> int:
    """Add up what single persons issued to an account within a day; other issues to it wait from here on."""
    await conn.execute(sql("lock_account_of_issue"), {"account_id": account_id})
    row = await (await conn.execute(sql("issued_alone"), {"account_id": account_id})).fetchone()
    assert row is not None, "issued_alone returns one row"
    return int(row[0])


async def add_issue_proposal(conn: AsyncConnection, proposal: NewIssueProposal) -> None:
    """Store an issue that waits for a second person."""
    await conn.execute(sql("add_issue_proposal"), asdict(proposal))


async def find_issue_proposal(
    conn: AsyncConnection, *, number: int | None = None, vendor_id: int | None = None, message_id: str | None = None
) -> IssueProposal | None:
    """Read a proposed issue by its number, or by its seller's message id."""
    named = {"id": number, "vendor_id": vendor_id, "message_id": message_id}
    async with conn.cursor(row_factory=class_row(IssueProposal)) as cursor:
        await cursor.execute(sql("issue_proposal"), named)
        return await cursor.fetchone()


async def open_issue_proposals(conn: AsyncConnection, *, after: int, most: int) -> list[IssueProposal]:
    """Read proposed issues that nobody has decided, the oldest first, from after a number on."""
    cursor = await conn.execute(sql("open_issue_proposals"), {"after": after, "most": most})
    found = [await find_issue_proposal(conn, number=row[0]) for row in await cursor.fetchall()]
    return [proposal for proposal in found if proposal is not None]


async def add_issue_decision(
    conn: AsyncConnection, proposal_id: int, *, approved: bool, by: str, at: datetime, reason: str
) -> None:
    """Store what a second person said."""
    parameters = {
        "proposal_id": proposal_id,
        "approved": approved,
        "decided_by": by,
        "decided_at": at,
        "reason": reason,
    }
    await conn.execute(sql("add_issue_decision"), parameters)


async def holder_of_key(conn: AsyncConnection, key_id: str) -> KeyHolder:
    """Tell whose an interface key is."""
    row = await (await conn.execute(sql("holder_of_key"), {"key_id": key_id})).fetchone()
    assert row is not None, f"key {key_id}: is stored"
    return KeyHolder(first_key=row[0], name=row[1])
