"""One batch, one transaction: the writing half of ingest.

Stage: between a plan and its commit. The first statement fences the leases; accounts are locked before anything
refers to them; the batch never waits for an account, it leaves the busy ones to be settled right after.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence

from psycopg import AsyncConnection

from billing.calendar import from_ms, to_ms
from db.accounts import AccountView, look
from db.batches import (
    QuarantineRow,
    add_counts,
    add_events,
    add_quarantine,
    add_segment,
    ask_recheck,
    batch_transaction,
    confirm_order,
    save_relay,
)
from db.crossings import LastReading, lock_free_and_look, post_crossings
from db.leases import Lease, Owner
from db.named import sql
from db.orders import PostingRules
from db.posting import lock_free, may_move_closed_edges, post_readings
from db.readings import columns_from_rows, compare_readings, copy_columns, copy_readings, neighbours
from headend.edges.cache import state_from_view
from headend.pipeline import Held, Plan, place_late
from headend.state import MeterState
from protocols.columns import concatenate
from protocols.native import OrderKind, ReplyResult
from protocols.rows import ReadingRow

# Refused, expired and stale answers leave an order open: it is sent again with backoff until confirmed or superseded.


async def write_plan(
    conn: AsyncConnection, made: Plan, *, owner: Owner, leases: Mapping[int, Lease], rules: PostingRules
) -> None:
    """Write a batch in one transaction under its leases.

    Raises: LeaseLost; psycopg.errors.UniqueViolation when a reading planned as new is stored already.
    """
    # What becomes of late readings is known, and counted, only after a look at the database.
    async with batch_transaction(conn, owner, leases, made.counts, counted=not made.late):
        await _write_segments(conn, made)
        await _write_new(conn, made)
        if made.late:
            await _write_late(conn, made, rules)
        for meter_id, relay, at_ms in made.relays:
            await save_relay(conn, meter_id, relay.value, from_ms(at_ms))
        await _write_replies(conn, made)
        await add_events(conn, [(meter_id, from_ms(at_ms), code) for meter_id, at_ms, code in made.events])
        if made.candidates:
            await _write_candidates(conn, made, rules)
        await add_quarantine(conn, _quarantine_rows(made.held))
        if made.late:
            await add_counts(conn, leases, made.counts)


async def settle_account(conn: AsyncConnection, account_id: int, *, rules: PostingRules) -> None:
    """Look at one account under its lock, in a transaction of its own, and write what its balance asks for.

    An account that somebody else holds is not waited for; it stays, or becomes, a recheck.
    """
    async with conn.transaction():
        if not await lock_free(conn, [account_id]):
            await ask_recheck(conn, account_id)
            return
        cursor = await conn.execute(sql("settle_recheck"), {"account_id": account_id})
        asked = await cursor.fetchone()
        late_since_ms = to_ms(asked[0]) if asked and asked[0] else None
        views = await look(conn, [account_id], rules.calendar)
        for view in views.values():
            await post_readings(conn, view, late_since_ms=late_since_ms, rules=rules, now_ms=_now_ms())


async def _write_segments(conn: AsyncConnection, made: Plan) -> None:
    """Write where registers rolled over. No account is locked for it: segments and readings commit together, and
    whoever looks reads both in one snapshot."""
    for segment in made.segments:
        await add_segment(
            conn,
            segment.meter_id,
            from_ms(segment.from_ms),
            register_wh=segment.register_wh,
            start_wh=segment.start_wh,
        )


async def _write_new(conn: AsyncConnection, made: Plan) -> None:
    """Append what was planned in columns and one by one, sorted by meter and instant."""
    parts = [columns_from_rows(made.rows)] if made.rows else []
    if made.ordinary is not None and len(made.ordinary.columns):
        parts.append(made.ordinary.columns)
    if parts:
        await copy_columns(conn, concatenate(parts).sorted_by_meter())


async def _write_late(conn: AsyncConnection, made: Plan, rules: PostingRules) -> None:
    """Drop known readings, fit new ones between their neighbours, quarantine the rest."""
    rows = [late.row for late in made.late]
    known = await compare_readings(conn, rows)
    unknown = [(number, row) for number, row in enumerate(rows) if number not in known]
    around = await neighbours(conn, unknown) if unknown else {}
    # Before a meter's first reading stands its installation: without it, any register would do.
    firsts = {made.late[number].meter.account.id for number, found in around.items() if found.before is None}
    views = await look(conn, sorted(firsts), rules.calendar) if firsts else {}
    placed: dict[tuple[int, object], ReadingRow] = {}
    last: dict[int, tuple[int, int]] = {}
    for number, late in enumerate(made.late):
        key = (late.row.meter_id, late.row.read_at)
        same = placed[key] == late.row if key in placed else known.get(number)
        found = around.get(number)
        # A roll-over of this very batch counts for the neighbours that came with it.
        meter = made.states.get(late.meter.serial, late.meter)
        before = _energy(meter, found.before) if found else None
        if before is None and late.meter.account.id in views:
            installed = views[late.meter.account.id].meter.segments[0]
            before = installed.from_ms, installed.start_wh
        after = _energy(meter, found.after) if found else None
        before = max(filter(None, (before, last.get(late.row.meter_id))), default=None)
        row = place_late(made, late, same=same, before=before, after=after)
        if row is not None:
            placed[key] = row
            last[row.meter_id] = (late.at_ms, late.meter.energy_to_date(late.at_ms, row.import_wh))
    await copy_readings(conn, list(placed.values()))


def _energy(meter: MeterState, neighbour: tuple[int, int] | None) -> tuple[int, int] | None:
    if neighbour is None:
        return None
    at_ms, register_wh = neighbour
    return at_ms, meter.energy_to_date(at_ms, register_wh)


async def _write_replies(conn: AsyncConnection, made: Plan) -> None:
    for meter_id, reply in made.replies:
        if reply.result is ReplyResult.DONE:
            await confirm_order(
                conn,
                order_id=reply.order_id,
                meter_id=meter_id,
                epoch=reply.epoch,
                # Every reply tells the relay; only an order about the relay is measured by it.
                relay=reply.relay.value if reply.relay and reply.kind is OrderKind.SUPPLY else None,
            )


async def _write_candidates(conn: AsyncConnection, made: Plan, rules: PostingRules) -> None:
    """Lock the candidates that are free, look at them, post; leave the others to be settled right after."""
    now_ms = _now_ms()
    crossed = {} if made.ordinary is None else made.ordinary.crossed
    last = {
        account_id: LastReading(meter_id=meter_id, at_ms=at_ms, register_wh=register_wh)
        for account_id, (meter_id, at_ms, register_wh) in crossed.items()
    }
    free, views = await lock_free_and_look(conn, sorted(made.candidates), last, rules.calendar)
    ordinary: list[AccountView] = []
    for account_id, view in sorted(views.items()):
        since_ms = made.late_since_ms.get(account_id)
        if may_move_closed_edges(view, since_ms, rules.calendar):
            await post_readings(conn, view, late_since_ms=since_ms, rules=rules, now_ms=now_ms)
        else:
            ordinary.append(view)
    if ordinary:
        # Known after the commit without a look: else each crossing would be one again until the feed is read.
        for view in await post_crossings(conn, ordinary, rules=rules, now_ms=now_ms):
            made.states[view.meter.serial] = state_from_view(view, rules.calendar)
    for account_id in sorted(made.candidates - free):
        late_ms = made.late_since_ms.get(account_id)
        await ask_recheck(conn, account_id, None if late_ms is None else from_ms(late_ms))


def _quarantine_rows(held: Sequence[Held]) -> list[QuarantineRow]:
    """Return the rows of what is held. Items of one frame share its digest; its bytes are kept once."""
    kept: set[bytes] = set()
    rows = []
    for each in held:
        digest = hashlib.sha256(each.topic.encode() + each.raw).digest()
        rows.append(
            QuarantineRow(
                shard=each.shard,
                topic=each.topic,
                serial=each.serial,
                read_at=None if each.read_at_ms is None else from_ms(each.read_at_ms),
                reason=each.fault.reason.value,
                detail=each.fault.detail,
                raw=b"" if digest in kept else each.raw,
                sha256=digest,
                item=each.item,
            )
        )
        kept.add(digest)
    return rows


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
