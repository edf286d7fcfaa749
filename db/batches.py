"""Writing a batch: the statements of one ingest transaction, in their order.

Stage: inside the transaction that the ingest edge opens. Values in, rows out; deciding is done elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection, AsyncTransaction

from db.leases import Lease, Owner, require_fenced, send_fence
from db.named import sql

OUTCOMES = ("messages", "received", "stored", "duplicate", "rejected", "quarantined")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineRow:
    """One reading, or a whole message that is none, that could not be stored."""

    shard: int | None
    topic: str
    serial: str | None
    read_at: datetime | None
    reason: str
    detail: str
    raw: bytes
    sha256: bytes
    item: int


@asynccontextmanager
async def batch_transaction(
    conn: AsyncConnection,
    owner: Owner,
    leases: Mapping[int, Lease],
    counts: Mapping[int | None, Mapping[str, int]],
    *,
    counted: bool,
) -> AsyncIterator[None]:
    """Run a batch's transaction: begun, the shards of `counts` fenced and, if `counted`, their counts written, in one
    round trip.

    A batch whose counts are known only in its course, since it has readings to look up, writes them itself, with
    `add_counts`; in any other, what looks at readings says so first (`plan_each`). Raises: LeaseLost.
    """
    held = [leases[shard] for shard in counts if shard is not None]
    async with AsyncExitStack() as stack:
        async with conn.pipeline():
            # Not `conn.transaction()`, which would keep the connection in the pipeline up to its end: no COPY.
            await stack.enter_async_context(AsyncTransaction(conn))
            if counted:
                await conn.execute(sql("plan_once"))
            fencing = await send_fence(conn, owner, held)
            if counted:
                await add_counts(conn, leases, counts)
        require_fenced(fencing, owner, held)
        yield


async def add_counts(
    conn: AsyncConnection, leases: Mapping[int, Lease], counts: Mapping[int | None, Mapping[str, int]]
) -> None:
    """Write one row per shard: what came in this transaction and what became of it. Leftovers have no shard."""
    await conn.execute(
        sql("add_batches"),
        {
            "shards": list(counts),
            "epochs": [0 if shard is None else leases[shard].epoch for shard in counts],
            **{outcome: [counted.get(outcome, 0) for counted in counts.values()] for outcome in OUTCOMES},
        },
    )


async def add_quarantine(conn: AsyncConnection, rows: Sequence[QuarantineRow]) -> None:
    """Keep what could not be stored, with its bytes and the reason."""
    if not rows:
        return
    # One statement may touch a row once: what comes again within a batch is counted here. The first is kept.
    times: Counter[tuple[bytes, int]] = Counter((row.sha256, row.item) for row in rows)
    first: dict[tuple[bytes, int], QuarantineRow] = {}
    for row in rows:
        first.setdefault((row.sha256, row.item), row)
    kept = first.values()
    await conn.execute(
        sql("add_quarantine"),
        {
            "shards": [row.shard for row in kept],
            "topics": [row.topic.replace("\x00", "�") for row in kept],
            "serials": [row.serial for row in kept],
            "read_ats": [row.read_at for row in kept],
            "reasons": [row.reason for row in kept],
            "details": [row.detail.replace("\x00", "�") for row in kept],
            "raws": [row.raw for row in kept],
            "sha256s": [row.sha256 for row in kept],
            "items": [row.item for row in kept],
            "times": [times[key] for key in first],
        },
    )


async def add_events(conn: AsyncConnection, events: Iterable[tuple[int, datetime, int]]) -> None:
    """Store meter events (meter, instant, code), each once."""
    rows = list(events)
    if rows:
        meter_ids, ats, codes = (list(column) for column in zip(*rows, strict=True))
        await conn.execute(sql("add_events"), {"meter_ids": meter_ids, "ats": ats, "codes": codes})


async def add_segment(
    conn: AsyncConnection, meter_id: int, from_at: datetime, *, register_wh: int, start_wh: int
) -> None:
    """Record that a meter's register rolled over."""
    await conn.execute(
        sql("add_segment"),
        {
            "meter_id": meter_id,
            "from_at": from_at,
            "register_wh": register_wh,
            "start_wh": start_wh,
            "reason": "rollover",
        },
    )


async def save_relay(conn: AsyncConnection, meter_id: int, relay: str, at: datetime) -> None:
    """Note what a meter says its relay does."""
    await conn.execute(sql("save_relay"), {"meter_id": meter_id, "relay": relay, "at": at})


async def confirm_order(conn: AsyncConnection, *, order_id: int, meter_id: int, epoch: int, relay: str | None) -> None:
    """Book that a meter did what the order it names asked; a stale or contradicting answer changes nothing."""
    parameters = {"order_id": order_id, "meter_id": meter_id, "epoch": epoch, "relay": relay}
    await conn.execute(sql("confirm_order"), parameters)


async def ask_recheck(conn: AsyncConnection, account_id: int, late_since: datetime | None = None) -> None:
    """Leave an account that is locked by somebody else to be looked at right after."""
    await conn.execute(sql("ask_recheck"), {"account_id": account_id, "late_since": late_since})
