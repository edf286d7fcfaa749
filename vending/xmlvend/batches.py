"""Batches and statements of XMLVend, made of what the float desk answered.

Stage: as `vending.xmlvend.answers`, for what a vendor counts. Never: a sum of its own.

Standard: NRS 009-6-10 (XMLVend 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vending.floats import BatchKind
from vending.vends import Tender
from vending.xmlvend.answers import Reply, Stored, money
from vending.xmlvend.writer import Node, node

_NAME_OF = {BatchKind.SALES: "Sales", BatchKind.SHIFT: "Shift", BatchKind.BANK: "Bank"}
_TENDER_TOTAL_OF: Mapping[str, str] = {
    Tender.CASH.value: "CashTotal",
    Tender.CHEQUE.value: "ChequeTotal",
    Tender.CARD.value: "CreditCardTotal",
}


def started_batch(reply: Reply, stored: Stored) -> Node:
    """Write a batch that was started."""
    batch = node(
        "r:startedBatch",
        node("r:started", text=_started(reply, stored)),
        kind=f"r:{_NAME_OF[BatchKind(stored['kind'])]}StartBatch",
        seqNo=str(stored["number"]),
    )
    return node("r:startBatchResp", *reply.nodes(), batch)


def ended_batch(reply: Reply, stored: Stored, *, tag: str = "r:endBatchResp") -> Node:
    """Write a batch that was ended, with its totals."""
    return node(tag, *reply.nodes(), _batch("r:endBatch", reply, stored))


def reprinted_batch(reply: Reply, stored: Stored) -> Node:
    """Write the totals of an ended batch again."""
    return node("r:reprintEndBatchResp", *reply.nodes(), ended_batch(reply, stored, tag="r:endBatchReprint"))


def batch_totals(reply: Reply, stored: Sequence[Stored]) -> Node:
    """Write the totals of open batches so far."""
    return node("r:totalBatchResp", *reply.nodes(), *(_batch("r:totalBatch", reply, each) for each in stored))


def vendor_statement(reply: Reply, vendor_id: int, stored: Stored, available_minor: int | None) -> Node:
    """Write a vendor's entries with what it has and could sell."""
    items = [
        node(
            "r:lineItem",
            node("r:desc", text=f"{entry['kind']} {entry['reference']}".strip()),
            money("r:amt", entry["amount_minor"]),
            node("r:appliedDate", text=entry["booked_at"]),
        )
        for entry in stored["entries"]
    ]
    statement = node(
        "r:statement",
        node("r:accNo", text=str(vendor_id)),
        money("r:accBal", stored["closing_minor"]),
        None if available_minor is None else money("r:availCredit", available_minor),
        *items,
    )
    return node("r:vendorStatementResp", *reply.nodes(), statement)


def _batch(tag: str, reply: Reply, stored: Stored) -> Node:
    kind, totals = BatchKind(stored["kind"]), stored["totals"]
    report = node(
        "r:batchReport",
        _total("r:txTotal", "NormalSaleTotal", "Sales", totals["sold_minor"]),
        _total("r:txTotal", "CancellationTotal", "Reversals", -totals["reversed_minor"]),
        *_tenders(totals["sales"], 1),
        *_tenders(totals["reversals"], -1),
    )
    to_bank = node("r:depSlip", money("r:amt", totals["to_bank_minor"]), bankingRefNo=str(stored["number"]))
    return node(
        tag,
        node("r:started", text=_started(reply, stored)),
        # An open batch ends, for its totals, with the answer.
        node("r:ended", text=stored["ended_at"] or reply.at),
        money("r:batchTot", totals["net_minor"]),
        report,
        to_bank if kind is BatchKind.BANK else None,
        kind=f"r:{_NAME_OF[kind]}Batch",
        seqNo=str(stored["number"]),
    )


def _tenders(totals: Sequence[Stored], sign: int) -> list[Node]:
    return [
        _total(
            "r:payTypeTotal",
            _TENDER_TOTAL_OF.get(each["tender"], "OtherTotal"),
            each["tender"] if sign > 0 else f"{each['tender']}, reversed",
            sign * each["amount_minor"],
        )
        for each in totals
    ]


def _total(tag: str, kind: str, told: str, amount_minor: int) -> Node:
    return node(tag, node("r:desc", text=told), money("r:amt", amount_minor), kind=f"r:{kind}")


def _started(reply: Reply, stored: Stored) -> str:
    return str(stored["began_at"] or stored["started_at"] or reply.at)
