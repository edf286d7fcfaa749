"""What is asked of the desk once besides sales: key changes, engineering tokens, fault reports.

Stage: between the HTTP routes and the database. Each is one transaction under the lock of its message id, answered the
same for ever; what is refused leaves nothing stored, so that the message id may be used again. Never: HTTP, a key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from billing.calendar import from_ms
from db.meter_records import RecordConflict, RecordRow, open_tokens, record_in_force, record_to_mint
from db.vending_acts import (
    NewStoredAct,
    add_act,
    add_fault_report,
    close_fault_report,
    find_act,
    hand_out_key_change,
    key_change_to_give,
    latest_key_revision,
)
from db.vends import NamedMeter, StoredAnswer, find_message, lock_message
from vending.edges.desk import Desk, Seller, one_meter
from vending.edges.errors import FaultReportUnknown, RequestDeclined
from vending.edges.quotes import NEEDS_KEY_CHANGE
from vending.edges.record_desk import (
    OPEN_TOKENS_SHOWN,
    Wanted,
    change_key,
    confirm_change,
    issue_management,
    load_record,
)
from vending.engines.choice import engine_of
from vending.engines.orders import read_order
from vending.engines.port import IssuedToken
from vending.vends import Declined, DeclineReason, MessageIdReused, digest_of, read_meter

KEY_CHANGE = "key_change"
ENGINEERING = "engineering"
FAULT_REPORT = "fault_report"
STATUS_DONE = 200
# A key without an end of its own, as a revision of a vending key usually is.
_KEN_OPEN = 255
_GROUP_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked once, of whom, by whom.

    Invariants: `what` holds everything that tells two requests of one message id apart.
    """

    message_id: str
    meter: str
    what: Mapping[str, object]
    by: str


async def move_to_key(
    conn: AsyncConnection, desk: Desk, seller: Seller, asked: Asked, *, changes: Mapping[str, object], reason: str
) -> StoredAnswer:
    """Give out the tokens that move a meter to another key: those that wait, or new ones for what is asked.

    Without `changes` a station asks for what the meter needs: the set of a key change under way, or, for a key past its
    expiry, one to the latest revision of its supply group. The record stays pending until somebody confirms it or the
    meter takes its first token under it.
    Raises: RequestDeclined, RecordRefused, RecordConflict, MessageIdReused, DrnCheckDigit, ModuleAbsent.
    """

    async def work(meter: NamedMeter) -> dict[str, object]:
        now_ms = desk.clock()
        row = await record_to_mint(conn, meter.id)
        if row is None:
            raise RequestDeclined(_no_key_change(meter, "no record to change"))
        if row.state != "pending":
            wanted = changes or await _next_revision(conn, desk, meter, row)
            change = Wanted(serial=meter.serial, changes=wanted, by=asked.by, reason=reason)
            await change_key(conn, desk.security_module, change, now_ms=now_ms)
            row = await record_to_mint(conn, meter.id)
            assert row is not None, f"meter {meter.serial}: has the record that was just made"
        elif changes and not _says(row, changes):
            raise RecordConflict(
                f"meter {meter.serial}: expected no other key change under way, got version {row.version}"
            )
        await hand_out_key_change(conn, row.id, at=from_ms(now_ms), by=asked.by)
        return await _key_change_to_api(conn, seller, asked, meter, row, now_ms)

    return await _once(conn, desk, seller, KEY_CHANGE, asked, work)


async def confirm_key(conn: AsyncConnection, desk: Desk, meter: str, *, by: str) -> int:
    """Put a pending version of a meter's record in force; return its number.

    Raises: RequestDeclined, DrnCheckDigit; RecordConflict where none is pending.
    """
    named = _known(await one_meter(conn, read_meter(meter)))
    return await confirm_change(conn, named.serial, by=by, now_ms=desk.clock())


async def engineering_token(
    conn: AsyncConnection, desk: Desk, seller: Seller, asked: Asked, *, kind: str, value: int, reason: str
) -> StoredAnswer:
    """Give out a token that sets or clears something in a meter.

    Raises: MalformedRequest for another kind; RequestDeclined, MessageIdReused, DrnCheckDigit, ModuleAbsent.
    """
    order = read_order(kind, value)

    async def work(meter: NamedMeter) -> dict[str, object]:
        now_ms = desk.clock()
        token = await issue_management(
            conn, desk.security_module, meter.serial, order, by=asked.by, reason=reason, now_ms=now_ms
        )
        what = {"order": kind, "value": value, "reason": reason}
        return {**_head(seller, asked, meter, now_ms), "kind": ENGINEERING, **what, **_token_to_api(token)}

    return await _once(conn, desk, seller, ENGINEERING, asked, work)


async def report_fault(
    conn: AsyncConnection, desk: Desk, seller: Seller, asked: Asked, *, what: str, note: str, phone: str | None
) -> StoredAnswer:
    """Store a fault that a consumer tells of; the answer has its number.

    Raises: RequestDeclined, MessageIdReused, DrnCheckDigit.
    """

    async def work(meter: NamedMeter) -> dict[str, object]:
        now_ms = desk.clock()
        number = await add_fault_report(
            conn,
            meter_id=meter.id,
            vendor_id=seller.vendor_id,
            what=what,
            note=note,
            phone=phone,
            reported_at=from_ms(now_ms),
        )
        return {**_head(seller, asked, meter, now_ms), "kind": FAULT_REPORT, "fault_number": str(number), "what": what}

    return await _once(conn, desk, seller, FAULT_REPORT, asked, work)


async def close_fault(conn: AsyncConnection, desk: Desk, number: int, *, by: str, outcome: str) -> None:
    """Keep what was done about a fault. Raises: FaultReportUnknown where none of that number is open."""
    if not await close_fault_report(conn, number, at=from_ms(desk.clock()), by=by, outcome=outcome):
        raise FaultReportUnknown(f"fault report {number}: expected an open one")


async def _once(
    conn: AsyncConnection,
    desk: Desk,
    seller: Seller,
    act: str,
    asked: Asked,
    work: Callable[[NamedMeter], Awaitable[dict[str, object]]],
) -> StoredAnswer:
    """Answer a message id as before, or by `work`. Raises: MessageIdReused."""
    digest = digest_of({"act": act, "meter": asked.meter, **asked.what})
    async with conn.transaction():
        await lock_message(conn, seller.vendor_id, asked.message_id)
        use = await find_message(conn, seller.vendor_id, asked.message_id)
        stored = await find_act(conn, seller.vendor_id, asked.message_id) if use.is_act else None
        if use.vend is not None or (stored is not None and bytes(stored.request_sha256) != digest):
            raise MessageIdReused(f"message_id {asked.message_id}: expected what it was first used with, got another")
        if stored is not None:
            answer = StoredAnswer(status=stored.status, answer=stored.answer)
        else:
            meter = _known(await one_meter(conn, read_meter(asked.meter)))
            answer = StoredAnswer(status=STATUS_DONE, answer=await work(meter))
            new = NewStoredAct(
                vendor_id=seller.vendor_id,
                message_id=asked.message_id,
                act=act,
                request_sha256=digest,
                meter_id=meter.id,
                status=answer.status,
                answer=answer.answer,
                by=asked.by,
                terminal=seller.terminal,
                at=from_ms(desk.clock()),
            )
            await add_act(conn, new)
        if seller.act is not None:
            await seller.act.write(
                conn, outcome=act, status=answer.status, subject=asked.meter, reference=asked.message_id
            )
    return answer


async def _next_revision(conn: AsyncConnection, desk: Desk, meter: NamedMeter, row: RecordRow) -> dict[str, object]:
    """Return the change to the latest revision of the supply group, of a meter that needs one.

    Raises: RequestDeclined.
    """
    record = await load_record(conn, row)
    if isinstance(record, Declined):
        raise RequestDeclined(record)
    needs = await engine_of(record, desk.security_module).judge(record, now_ms=desk.clock())
    if needs is None or needs.reason not in NEEDS_KEY_CHANGE:
        raise RequestDeclined(_no_key_change(meter, "one whose key takes credit, and no key change under way"))
    if row.sgc is None or row.dkga is None or row.krn is None:
        raise RequestDeclined(_no_key_change(meter, "a record without a supply group"))
    latest = await latest_key_revision(conn, row.sgc, row.dkga)
    if latest is None or latest <= row.krn:
        raise RequestDeclined(_no_key_change(meter, f"no vending key later than revision {row.krn}"))
    return {"krn": latest, "ken": _KEN_OPEN}


async def _key_change_to_api(
    conn: AsyncConnection, seller: Seller, asked: Asked, meter: NamedMeter, row: RecordRow, now_ms: int
) -> dict[str, object]:
    digits, _ = await key_change_to_give(conn, row.id)
    unused = await _unused(conn, meter)
    return {
        **_head(seller, asked, meter, now_ms),
        "kind": KEY_CHANGE,
        "version": row.version,
        "state": row.state,
        "notice": f"Enter these {len(digits)} key-change tokens first, in this order, then any new credit token",
        "warning": "Credit tokens bought before and not entered yet are lost unless they are entered before these",
        "key_change_tokens": [grouped(each) for each in digits],
        "unused_tokens": unused,
    }


async def _unused(conn: AsyncConnection, meter: NamedMeter) -> list[dict[str, object]]:
    """Return the tokens under the record in force that were not seen at the meter: they die with its key."""
    active = await record_in_force(conn, meter.id)
    tokens = [] if active is None else await open_tokens(conn, active, most=OPEN_TOKENS_SHOWN)
    return [
        {
            "kind": token.kind,
            "token": f"...{token.last_four}",
            "tid": token.tid,
            "made_at": token.made_at.isoformat(timespec="seconds"),
        }
        for token in tokens
    ]


def grouped(digits: str) -> dict[str, object]:
    """Return digits as they are answered: plain, and in groups of four."""
    groups = [digits[at : at + _GROUP_DIGITS] for at in range(0, len(digits), _GROUP_DIGITS)]
    return {"digits": digits, "grouped": " ".join(groups)}


def _head(seller: Seller, asked: Asked, meter: NamedMeter, now_ms: int) -> dict[str, object]:
    return {
        "message_id": asked.message_id,
        "vendor": seller.name,
        "meter_serial": meter.serial,
        "drn": meter.drn or "",
        "issued_at": from_ms(now_ms).isoformat(timespec="milliseconds"),
        "terminal": seller.terminal,
        "operator": seller.operator,
    }


def _token_to_api(token: IssuedToken) -> dict[str, object]:
    held = {"engine": token.engine.value, "class": token.token_class, "subclass": token.subclass}
    return {"tid": token.tid, "token": {**grouped(token.digits), **held}}


def _says(row: RecordRow, changes: Mapping[str, object]) -> bool:
    """Tell whether a version is what is asked for already."""
    fields: Any = row.fields
    return all(getattr(fields, name) == value for name, value in changes.items())


def _no_key_change(meter: NamedMeter, got: str) -> Declined:
    return Declined(
        reason=DeclineReason.KEY_CHANGE_REFUSED,
        message=f"meter {meter.serial}: expected a key change that is needed, got {got}",
    )


def _known(meter: NamedMeter | Declined) -> NamedMeter:
    if isinstance(meter, Declined):
        raise RequestDeclined(meter)
    return meter
