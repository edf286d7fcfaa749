"""One batch, one transaction: the writing half of ingest.

Stage: between a plan and its commit. The first statement fences the leases; accounts are locked before anything
refers to them; the batch never waits for an account, it leaves the busy ones to be settled right after.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from psycopg import AsyncConnection

from billing.calendar import from_ms, to_ms
from billing.supply import crosses
from db.accounts import AccountView, look
from db.batches import (
    BatchTransaction,
    QuarantineRow,
    add_counts,
    add_quarantine,
    add_segment,
    ask_recheck,
    confirm_order,
    end_impossible,
    save_relay,
)
from db.binary_copy import encode_readings
from db.coupons import note_coupon_entries
from db.crossings import (
    NOTHING_CLAIMED,
    Claimed,
    Crossing,
    Standing,
    Written,
    decide_known,
    decide_looked_at,
    send_claim,
    send_crossings,
    take_claim,
)
from db.gaps import note_gaps, touch_gaps
from db.leases import Lease, Owner
from db.named import sql
from db.orders import PostingRules, threatens
from db.posting import lock_free, may_move_closed_edges, post_readings
from db.prepayment import Prepayment, prepayments_of
from db.quarantine import settle_released
from db.readings import columns_from_rows, compare_readings, copy_encoded, copy_readings, neighbours
from db.rollups import note_late
from db.sequences import send_arrivals
from db.token_deliveries import note_entries
from db.validation_rules import add_flags
from headend.edges.cache import state_from_view
from headend.edges.event_alarms import raise_alarms
from headend.edges.event_notices import store_events
from headend.edges.noted_rows import flag_rows, settled_rows
from headend.events import SUPPLY_UNSWITCHABLE
from headend.gaps import Intervals, Spans, spans_of
from headend.pipeline import Held, Plan, Segment, place_late
from headend.state import AccountState, MeterState
from protocols.columns import concatenate
from protocols.native import OrderKind, ReplyResult
from protocols.rows import ReadingRow

# Refused, expired and stale answers leave an order open: it is sent again with backoff until confirmed or superseded. A
# meter that can never do it says so; then it ends, or stands untried.


@dataclass(slots=True, kw_only=True)
class Batch:
    """A plan ready to be written: its new readings encoded, sorted by meter and instant.

    Invariants: `amended` has the accounts whose crossings were written, as they are after the commit, by serial.
    """

    made: Plan
    encoded: memoryview | None
    spans: Spans | None = None
    amended: dict[str, AccountState] = field(default_factory=dict)


def encode_plan(made: Plan, intervals: Intervals | None = None) -> Batch:
    """Encode what was planned in columns and one by one; find the gaps by what is known of the meters' intervals."""
    parts = [columns_from_rows(made.rows)] if made.rows else []
    if made.ordinary is not None and len(made.ordinary.columns):
        parts.append(made.ordinary.columns)
    encoded = encode_readings(concatenate(parts).sorted_by_meter()) if parts else None
    return Batch(made=made, encoded=encoded, spans=spans_of(made, intervals) if intervals else None)


def reconsider(batch: Batch, amended: Mapping[str, AccountState]) -> None:
    """Let a batch that was planned ahead know the accounts that the one before it has amended, by serial.

    Most have crossed with that one, and have nothing to be looked at for any more.
    """
    crossed = {} if batch.made.ordinary is None else batch.made.ordinary.crossed
    for account in amended.values():
        found = crossed.pop(account.id, None)
        if found is None:
            continue
        if crosses(account.levels, found.balance_minor, waits=account.waits):
            crossed[account.id] = replace(found, meter=replace(found.meter, account=account))
        else:
            batch.made.candidates.discard(account.id)


@dataclass(slots=True, kw_only=True)
class Turn:
    """A batch's place among those that one owner writes on connections of its own.

    Before its turn, while `earlier` is not committed, a batch holds its leases, locks accounts that nobody holds and
    copies readings that are new: nothing in which two batches could wait for each other. Invariants: `ready` is set
    when all that it leaves is known, so that the next may begin; never set where only the commit tells.
    """

    earlier: Awaitable[None] | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def come(self) -> None:
        """Wait until the batch before is committed. Raises: what that one failed with."""
        if self.earlier is not None:
            earlier, self.earlier = self.earlier, None
            await earlier


async def write_batch(
    conn: AsyncConnection,
    batch: Batch,
    *,
    owner: Owner,
    leases: Mapping[int, Lease],
    rules: PostingRules,
    meanwhile: Callable[[], None] | None = None,
    turn: Turn | None = None,
) -> None:
    """Write a batch in one transaction under its leases.

    `meanwhile` is called while the server writes, unless what the batch leaves has to be learnt from the database: it
    may plan the next batch as if this one were committed. Raises: LeaseLost; psycopg.errors.UniqueViolation when a
    reading planned as new is stored already; what the batch of the turn before failed with.
    """
    made, turn = batch.made, turn or Turn()
    standings, now_ms = _standings(made), rules.clock()
    # What becomes of late readings, and so who has to be looked at, is known only after a look at the database.
    early = sorted(made.candidates) if not made.late else []
    claim, claimed = None, NOTHING_CLAIMED
    async with BatchTransaction(conn, owner, leases, made.counts) as transaction:
        async with transaction.opening(counted=not made.late):
            if early:
                claim = await send_claim(conn, early, standings)
        if claim:
            claimed = await take_claim(claim)
        simple = not made.late and not made.segments and claimed.free == claimed.numbers.keys()
        crossings = [
            decide_known(standings[account_id], claimed, rules=rules, now_ms=now_ms) for account_id in claimed.numbers
        ]
        _amend(batch, crossings)

        def copied() -> None:
            if simple and meanwhile:
                meanwhile()
            if simple and _only_reads(made):
                turn.ready.set()

        await _write_segments(conn, made.segments)
        began = len(made.segments)
        if batch.encoded is not None:
            await copy_encoded(conn, batch.encoded, copied)
        await turn.come()
        if made.late:
            await _write_late(conn, made, rules)
            await _write_segments(conn, made.segments[began:])
            claimed = await take_claim(await send_claim(conn, sorted(made.candidates), {}))
        for meter_id, relay, at_ms in made.relays:
            await save_relay(conn, meter_id, relay.value, from_ms(at_ms))
        await _write_answers(conn, made, now_ms)
        await store_events(conn, made.events, flags=made.flags, now_ms=now_ms)
        await _note_spans(conn, batch.spans)
        looked_at, views = await _look(conn, made, sorted(claimed.free - claimed.numbers.keys()), rules, now_ms)
        prepayments = await _prepayments(conn, claimed, looked_at)
        for account_id in sorted(made.candidates - claimed.free):
            late_ms = made.late_since_ms.get(account_id)
            await ask_recheck(conn, account_id, None if late_ms is None else from_ms(late_ms))
        await add_quarantine(conn, _quarantine_rows(made.held))
        await add_flags(conn, flag_rows(made.noted, rules.calendar))
        await settle_released(conn, settled_rows(made.settled.values()))
        if made.late:
            await add_counts(conn, leases, made.counts)
        async with transaction.closing():
            await send_arrivals(conn, made.numbers, {each.raw for each in made.held})
            crossings += looked_at
            written = await send_crossings(conn, crossings, prepayments, cause="reading", now_ms=now_ms)
            if simple:
                turn.ready.set()
    await _remember(batch, written, views, rules)


def _only_reads(made: Plan) -> bool:
    """Tell whether a batch, after its readings, touches nothing but accounts that it has locked: no other can be in its
    way."""
    return not (made.relays or made.replies or made.events or made.entries or made.coupons)


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
            await post_readings(conn, view, late_since_ms=late_since_ms, rules=rules, now_ms=rules.clock())


async def _write_segments(conn: AsyncConnection, segments: Sequence[Segment]) -> None:
    """Write where registers began again. No account is locked for it: segments and readings commit together, and
    whoever looks reads both in one snapshot."""
    for segment in segments:
        await add_segment(
            conn,
            segment.meter_id,
            from_ms(segment.from_ms),
            register_wh=segment.register_wh,
            start_wh=segment.start_wh,
            reason=segment.reason,
        )


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
            installed = views[late.meter.account.id].meter.installation
            before = installed.at_ms, installed.energy_wh
        after = _energy(meter, found.after) if found else None
        before = max(filter(None, (before, last.get(late.row.meter_id))), default=None)
        row = place_late(made, late, same=same, before=before, after=after)
        if row is not None:
            placed[key] = row
            placed_meter = made.states.get(late.meter.serial, late.meter)
            last[row.meter_id] = (late.at_ms, placed_meter.energy_to_date(late.at_ms, row.import_wh))
    await copy_readings(conn, list(placed.values()))
    if placed:
        await touch_gaps(conn, {meter_id for meter_id, _ in placed})
        await note_late(conn, [(row.meter_id, row.read_at) for row in placed.values()])


def _energy(meter: MeterState, neighbour: tuple[int, int] | None) -> tuple[int, int] | None:
    if neighbour is None:
        return None
    at_ms, register_wh = neighbour
    return at_ms, meter.energy_to_date(at_ms, register_wh)


async def _note_spans(conn: AsyncConnection, spans: Spans | None) -> None:
    if spans is not None:
        spans.intervals.learn(await note_gaps(conn, spans.found))


async def _write_answers(conn: AsyncConnection, made: Plan, now_ms: int) -> None:
    """Write what meters say of their orders, of tokens, and of coupons that were typed at them.

    Supply that a meter can never switch as it should be rings: it takes a person to bring it about.
    """
    await note_entries(conn, made.entries)
    await note_coupon_entries(conn, made.coupons)
    unswitchable = []
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
        elif reply.result is ReplyResult.IMPOSSIBLE and await end_impossible(
            conn, order_id=reply.order_id, meter_id=meter_id, epoch=reply.epoch
        ):
            unswitchable.append((meter_id, now_ms, SUPPLY_UNSWITCHABLE))
    if unswitchable:
        await raise_alarms(conn, unswitchable, now_ms=now_ms)


def _standings(made: Plan) -> dict[int, Standing]:
    """Return where accounts stand of which nothing but readings in columns came: their owner knows all else of them."""
    if made.ordinary is None:
        return {}
    told = {meter_id for meter_id, _, _ in made.relays} | {meter_id for meter_id, _ in made.replies}
    return {
        account_id: Standing(
            account_id=account_id,
            version=each.meter.account.version,
            shard=each.meter.shard,
            meter_id=each.meter.meter_id,
            levels=each.meter.account.levels,
            scheme=each.meter.account.scheme,
            balance_minor=each.balance_minor,
            read_ms=each.at_ms,
            relay=each.meter.relay,
        )
        for account_id, each in made.ordinary.crossed.items()
        # A hold ends by the clock, without a new version: such an account is looked at.
        if each.meter.meter_id not in told and not each.meter.account.levels.hold
    }


async def _look(
    conn: AsyncConnection, made: Plan, ids: Sequence[int], rules: PostingRules, now_ms: int
) -> tuple[list[Crossing], dict[int, AccountView]]:
    """Compare locked accounts that are not as they were known with their levels; also return what was seen of them.

    One whose readings move what is closed is posted on its own.
    """
    if not ids:
        return [], {}
    await conn.execute(sql("plan_each"))
    views = await look(conn, ids, rules.calendar)
    crossings = []
    for account_id, view in sorted(views.items()):
        since_ms = made.late_since_ms.get(account_id)
        if may_move_closed_edges(view, since_ms, rules.calendar):
            await post_readings(conn, view, late_since_ms=since_ms, rules=rules, now_ms=now_ms)
        else:
            crossings.append(decide_looked_at(view, rules=rules, now_ms=now_ms))
    return crossings, views


async def _prepayments(conn: AsyncConnection, claimed: Claimed, looked_at: Sequence[Crossing]) -> dict[int, Prepayment]:
    """Return what is needed to tell consumers what restores their supply."""
    told = [each.standing.account_id for each in looked_at if threatens(each.decision)]
    return {**claimed.prepayments, **(await prepayments_of(conn, dict.fromkeys(told)) if told else {})}


def _amend(batch: Batch, crossings: Sequence[Crossing]) -> None:
    """Keep what crossings change of accounts that are as they were known: each would be one again otherwise."""
    for each in crossings:
        assert batch.made.ordinary is not None, "what is known stands in columns"
        meter = batch.made.ordinary.crossed[each.standing.account_id].meter
        batch.amended[meter.serial] = replace(
            meter.account,
            levels=each.decision.levels,
            version=each.version,
            told=each.told,
            held=each.held,
            waits=each.decision.waits,
        )


async def _remember(batch: Batch, written: Written, views: Mapping[int, AccountView], rules: PostingRules) -> None:
    """Keep what crossings have changed of accounts that were looked at."""
    if not views:
        return
    orders = await written.open_orders()
    for each in written.crossings:
        view = views.get(each.standing.account_id)
        if view is not None:
            order = orders.get(view.id)
            after = replace(view, levels=each.decision.levels, version=each.version, open_order=order)
            batch.made.states[after.meter.serial] = state_from_view(after, rules.calendar)


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
                severity=each.severity,
                stored_at=from_ms(each.stored_at_ms),
                rejected=each.rejected,
            )
        )
        kept.add(digest)
    return rows
