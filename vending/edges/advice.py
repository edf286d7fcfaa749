"""Advices and decisions: what is said of a vend after its answer.

Stage: between the HTTP routes and the database. An advice is must-deliver: it is taken however often and whenever it
comes, also of a vend that is not known here yet. Each is one transaction under the lock of the message id, as the vend
is; a reversal posts its journal and gives the float back in it. Never: HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import AsyncConnection

from billing.calendar import from_ms
from billing.money import format_minor
from db.money_events import Instruction, reverse
from db.vend_states import (
    NEVER_CONFIRMED,
    OpenVend,
    VendMove,
    is_delivered,
    last_vend,
    last_vend_of_meter,
    move_vend,
    moves_of,
    note_early_confirmation,
    read_open_vends,
    vend_by_id,
)
from db.vends import NewVend, StoredVend, add_vend, find_message, lock_message
from vending.advice import Advice, AdviceRefusal, advised, decided
from vending.edges.audit_trail import Act
from vending.edges.desk import Answered, Desk, Seller, one_meter
from vending.edges.errors import (
    AdviceContradicts,
    MessageOfAnother,
    RequestDeclined,
    VendNeverConfirmed,
    VendReleased,
    VendUnknown,
)
from vending.edges.store import answered_again, stored_vend, taken_back
from vending.vends import Declined, Funding, VendState, read_meter

# One screen of vends that wait for a word.
OPEN_VENDS_SHOWN = 100
# What an advice found was moved by another one meanwhile: two at once are rare, three do not happen.
_TRIES_MAX = 3
AWAITED = "awaited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advised:
    """Where a vend stands now; `state` is `awaited` for a confirmed one that is not known here yet."""

    message_id: str
    state: str
    vend: Answered | None


async def advise(
    conn: AsyncConnection, desk: Desk, seller: Seller, message_id: str, advice: Advice, *, by: str, reason: str | None
) -> Advised:
    """Take a station's advice about one of its vends; the same advice again is answered the same.

    One about a vend that has not come yet is kept: a reversal stands in its place, a confirmation waits for it.
    Raises: AdviceContradicts, VendNeverConfirmed, VendReleased; MessageOfAnother where the id is no vend's.
    """
    for _ in range(_TRIES_MAX):
        async with conn.transaction():
            await lock_message(conn, seller.vendor_id, message_id)
            use = await find_message(conn, seller.vendor_id, message_id)
            if use.is_act:
                raise MessageOfAnother(f"message_id {message_id}: expected a vend's, got one of another request")
            if use.vend is None:
                advised_so = await _advised_early(conn, desk, seller, message_id, advice, by=by)
            else:
                if advice is Advice.CONFIRM:
                    await _require_in_time(conn, message_id, use.vend)
                delivered = await is_delivered(conn, use.vend.id)
                after = advised(VendState(use.vend.state), advice, delivered=delivered)
                moved = await _moved(conn, desk, use.vend, _granted(message_id, use.vend, advice, after), by, reason)
                if not moved:
                    continue
                advised_so = await _advised(conn, seller, message_id)
            return await _written(conn, seller, advice, advised_so)
    raise AssertionError(f"message_id {message_id}: moved by others {_TRIES_MAX} times")


async def decide(
    conn: AsyncConnection, desk: Desk, vend_id: int, advice: Advice, *, by: str, reason: str, act: Act | None = None
) -> Advised:
    """Settle a vend that waits for the utility: it stands, or is taken back with its money.

    Raises: VendUnknown; AdviceContradicts for one that is settled otherwise, or whose token the meter has.
    """
    found = await vend_by_id(conn, vend_id)
    if found is None:
        raise VendUnknown(f"receipt {vend_id}: expected a vend's number")
    vendor_id, message_id = found
    seller = Seller(vendor_id=vendor_id, name=str(vendor_id), active=True, act=act)
    for _ in range(_TRIES_MAX):
        async with conn.transaction():
            await lock_message(conn, vendor_id, message_id)
            vend = (await find_message(conn, vendor_id, message_id)).vend
            assert vend is not None, f"vend {vend_id} is stored for ever"
            after = decided(VendState(vend.state), advice, delivered=await is_delivered(conn, vend.id))
            if await _moved(conn, desk, vend, _granted(message_id, vend, advice, after), by, reason):
                return await _written(conn, seller, advice, await _advised(conn, seller, message_id))
    raise AssertionError(f"vend {vend_id}: moved by others {_TRIES_MAX} times")


async def open_vends(conn: AsyncConnection, *, after: int = 0) -> list[OpenVend]:
    """List vends that wait for somebody's word, the oldest first."""
    return await read_open_vends(conn, after=after, most=OPEN_VENDS_SHOWN)


async def state_of_vend(conn: AsyncConnection, seller: Seller, message_id: str) -> tuple[Answered, list[VendMove]]:
    """Return where a vend stands and how it came there. Raises: VendUnknown."""
    answered = await stored_vend(conn, seller, message_id)
    return answered, await moves_of(conn, answered.vend_id)


async def last_response(conn: AsyncConnection, seller: Seller) -> Answered:
    """Return what a vendor, or its terminal where the seller names one, was answered last. Raises: VendUnknown."""
    where = f"terminal {seller.terminal}" if seller.terminal else f"vendor {seller.name}"
    return await _of_vendor(conn, seller, await last_vend(conn, seller.vendor_id, seller.terminal), where)


async def reprint_of(
    conn: AsyncConnection, seller: Seller, *, message_id: str | None, receipt_number: str | None, meter: str | None
) -> Answered:
    """Find a vendor's own sale again: by its message id, its receipt number, or as the last one of a meter.

    Raises: VendUnknown; RequestDeclined, DrnCheckDigit for a meter that is not known.
    """
    if message_id is not None:
        return await stored_vend(conn, seller, message_id)
    if receipt_number is not None:
        return await _of_vendor(conn, seller, int(receipt_number), f"receipt {receipt_number}")
    assert meter is not None, "reprint: expected one of three names"
    named = await one_meter(conn, read_meter(meter))
    if isinstance(named, Declined):
        raise RequestDeclined(named)
    vend_id = await last_vend_of_meter(conn, seller.vendor_id, named.id)
    return await _of_vendor(conn, seller, vend_id, f"meter {named.serial}")


async def _of_vendor(conn: AsyncConnection, seller: Seller, vend_id: int | None, what: str) -> Answered:
    found = None if vend_id is None else await vend_by_id(conn, vend_id)
    if found is None or found[0] != seller.vendor_id:
        raise VendUnknown(f"{what}: expected a vend of vendor {seller.name}, got none")
    return await stored_vend(conn, seller, found[1])


async def _advised_early(
    conn: AsyncConnection, desk: Desk, seller: Seller, message_id: str, advice: Advice, *, by: str
) -> Advised:
    at = from_ms(desk.clock())
    if advice is Advice.CONFIRM:
        await note_early_confirmation(conn, seller.vendor_id, message_id, at=at, by=by)
        return Advised(message_id=message_id, state=AWAITED, vend=None)
    # A reversal has overtaken its vend: the vend must not be sold when it comes.
    stored = taken_back(message_id)
    blocked = NewVend(
        vendor_id=seller.vendor_id,
        message_id=message_id,
        request_sha256=None,
        account_id=None,
        amount_minor=0,
        journal_id=None,
        status=stored.status,
        answer=stored.answer,
        state=VendState.REVERSED.value,
        funding=Funding.VENDOR.value,
        terminal=seller.terminal,
        operator=seller.operator,
    )
    await add_vend(conn, blocked)
    return await _advised(conn, seller, message_id)


async def _moved(
    conn: AsyncConnection, desk: Desk, vend: StoredVend, after: VendState, by: str, reason: str | None
) -> bool:
    """Let a vend stand where it is to stand; False when somebody else has moved it meanwhile."""
    if after == vend.state:
        return True
    now_ms = desk.clock()
    if after is not VendState.REVERSED:
        return await move_vend(
            conn, vend.id, from_state=vend.state, to_state=after.value, at=from_ms(now_ms), by=by, reason=reason
        )
    assert vend.journal_id is not None, f"vend {vend.id}: has a journal to take back"
    order = Instruction(reason=reason or f"vend {vend.id} taken back", by=by, now_ms=now_ms, rules=desk.rules)
    # Posts the journal, gives the float back and moves the vend.
    await reverse(conn, vend.journal_id, order)
    return True


async def _advised(conn: AsyncConnection, seller: Seller, message_id: str) -> Advised:
    vend = (await find_message(conn, seller.vendor_id, message_id)).vend
    assert vend is not None, f"message_id {message_id}: is stored"
    return Advised(message_id=message_id, state=vend.state, vend=answered_again(vend))


async def _written(conn: AsyncConnection, seller: Seller, advice: Advice, advised_so: Advised) -> Advised:
    """Write an advice into the audit trail, beside what it did."""
    if seller.act is not None:
        outcome = f"{advice.value}: {advised_so.state}"
        await seller.act.write(conn, outcome=outcome, status=200, reference=advised_so.message_id)
    return advised_so


async def _require_in_time(conn: AsyncConnection, message_id: str, vend: StoredVend) -> None:
    """Raises: VendNeverConfirmed for a held vend that was taken back since no confirmation came."""
    if vend.state != VendState.REVERSED or vend.journal_id is None:
        return
    moves = await moves_of(conn, vend.id)
    if moves and moves[-1].reason == NEVER_CONFIRMED:
        raise VendNeverConfirmed(
            f"message_id {message_id}, {format_minor(vend.amount_minor)}: expected a confirmation before"
            f" {moves[-1].at.isoformat(timespec='seconds')}, when the vend was taken back; sell under a new id"
        )


def _granted(message_id: str, vend: StoredVend, advice: Advice, after: VendState | AdviceRefusal) -> VendState:
    """Return where a vend is to stand. Raises: AdviceContradicts, VendReleased."""
    if isinstance(after, VendState):
        return after
    what = f"message_id {message_id}, {format_minor(vend.amount_minor)}"
    if after is AdviceRefusal.RELEASED_ALREADY:
        raise VendReleased(f"{what}: expected a token that is held back, got one that was given out; send a reversal")
    raise AdviceContradicts(f"{what}: expected one that a {advice.value} fits, got {vend.state}")
