"""XMLVend's batches and statement on the float desk.

Stage: as `vending.edges.xmlvend_desk`, for what a vendor counts. XMLVend ends a batch without naming its number, so the
message that ends one is kept with it: a copy of the message gets the same batch again and ends no other. Never: a sum.
"""

from __future__ import annotations

from collections.abc import Mapping

from db.floats import FloatState
from vending.edges import float_desk
from vending.edges.auth import VendorCaller, require_vendor
from vending.edges.float_answers import batch_to_api, float_statement_to_api
from vending.edges.routes import seller_of
from vending.edges.xmlvend_desk import Visit, Work
from vending.floats import BatchKind, NoSuchBatch
from vending.roles import Scope
from vending.xmlvend import batches
from vending.xmlvend.errors import UseCaseUnsupported
from vending.xmlvend.names import UseCase
from vending.xmlvend.requests import BatchAsked, StatementAsked
from vending.xmlvend.writer import Node


async def statement(visit: Visit, _: StatementAsked) -> Node:
    """Give the vendor's entries of the month to date, the first 1,000 of them."""
    owner = await _owner(visit)
    calendar = visit.state.desk.rules.calendar
    today = calendar.day_of(visit.state.desk.clock())
    found = await float_desk.statement(visit.conn, owner, today.replace(day=1), today, after=None, calendar=calendar)
    told = "" if found.next_after is None else "There are more entries: ask the other interface"
    return batches.vendor_statement(
        visit.reply(told), owner.vendor_id, float_statement_to_api(found), owner.available_minor
    )


async def total_batch(visit: Visit, asked: BatchAsked) -> Node:
    """Give the totals of what is open so far."""
    owner = await _owner(visit)
    kinds = tuple(BatchKind) if asked.kind is None else (asked.kind,)
    found = [await float_desk.report(visit.conn, owner, kind, _scope(visit, kind), None) for kind in kinds]
    return batches.batch_totals(visit.reply(), [batch_to_api(each) for each in found])


async def start_batch(visit: Visit, asked: BatchAsked) -> Node:
    """Note who starts the open batch."""
    vendor, kind = _batch_vendor(visit), _one_kind(asked)
    started = await float_desk.start(visit.conn, vendor, kind, _scope(visit, kind), _by(visit))
    return batches.started_batch(visit.reply(), batch_to_api(started))


async def end_batch(visit: Visit, asked: BatchAsked) -> Node:
    """End the open batch, or give again the one that this message ended."""
    vendor, kind = _batch_vendor(visit), _one_kind(asked)
    owner, scope, by = await _owner(visit), _scope(visit, kind), _by(visit)
    # The open number first: a copy that ends it meanwhile is then seen, or ends the very same batch.
    number = (await float_desk.report(visit.conn, owner, kind, scope, None)).batch.number
    recent = await float_desk.recent_batches(visit.conn, owner, kind)
    ended = [batch.number for batch in recent if batch.scope == scope and batch.ended_by == by]
    if ended:
        report = await float_desk.report(visit.conn, owner, kind, scope, ended[0])
    else:
        report = await float_desk.end(visit.conn, vendor, kind, scope, number, by)
    return batches.ended_batch(visit.reply(), batch_to_api(report))


async def reprint_end_batch(visit: Visit, asked: BatchAsked) -> Node:
    """Give an ended batch again: the one of a number, else the last.

    Raises: NoSuchBatch.
    """
    kind = _one_kind(asked)
    owner, scope = await _owner(visit), _scope(visit, kind)
    number = asked.number
    if number is None:
        number = (await float_desk.report(visit.conn, owner, kind, scope, None)).batch.number - 1
    found = None if number < 1 else await float_desk.report(visit.conn, owner, kind, scope, number)
    if found is None or found.batch.ended_at is None:
        raise NoSuchBatch(f"batch {kind.value} {number}: expected one that was ended, got none")
    return batches.reprinted_batch(visit.reply(), batch_to_api(found))


BATCH_WORK_OF: Mapping[UseCase, Work] = {
    UseCase.VENDOR_STATEMENT: statement,
    UseCase.TOTAL_BATCH: total_batch,
    UseCase.START_BATCH: start_batch,
    UseCase.END_BATCH: end_batch,
    UseCase.REPRINT_END_BATCH: reprint_end_batch,
}


async def _owner(visit: Visit) -> FloatState:
    vendor = require_vendor(visit.caller, Scope.FLOAT)
    return await float_desk.vendor_of(visit.conn, vendor, None, Scope.FLOAT)


def _batch_vendor(visit: Visit) -> VendorCaller:
    vendor = require_vendor(visit.caller, Scope.BATCHES)
    # The act names the till and the person.
    seller_of(vendor, visit.head.terminal.value, visit.head.operator)
    return vendor


def _scope(visit: Visit, kind: BatchKind) -> str:
    match kind:
        case BatchKind.SALES:
            return visit.head.terminal.value
        case BatchKind.SHIFT:
            return visit.head.operator or ""
        case BatchKind.BANK:
            return ""


def _by(visit: Visit) -> str:
    return f"{visit.head.operator or 'key ' + visit.caller.key_id}, message {visit.head.message_id}"


def _one_kind(asked: BatchAsked) -> BatchKind:
    if asked.kind is None:
        raise UseCaseUnsupported("batch: expected sales, shift or bank, got all at once; send one request for each")
    return asked.kind
