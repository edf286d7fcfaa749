"""Writing a batch: the statements of one ingest transaction, in their order.

Stage: inside the transaction that the ingest edge opens. Values in, rows out; deciding is done elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.pq import TransactionStatus

from db.leases import Lease, Owner, require_fenced, send_hold
from db.named import array_text, sql

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
    severity: str
    stored_at: datetime
    rejected: bool


class BatchTransaction:
    """A batch's transaction: begun by `opening`, ended by `closing`, each one round trip; rolled back on any error.

    Not `conn.transaction()`: in a pipeline that would last up to the end of the transaction, and there is no COPY in
    one. The connection has to be in autocommit mode.
    """

    def __init__(
        self,
        conn: AsyncConnection,
        owner: Owner,
        leases: Mapping[int, Lease],
        counts: Mapping[int | None, Mapping[str, int]],
    ) -> None:
        self._conn = conn
        self._owner = owner
        self._leases = leases
        self._counts = counts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # A commit that failed has ended the transaction itself; a broken connection has no need of a word.
        if error is not None and self._conn.info.transaction_status is not TransactionStatus.IDLE:
            with suppress(OperationalError, InterfaceError):
                await self._conn.execute(sql("rollback_batch"))

    @asynccontextmanager
    async def opening(self, *, counted: bool) -> AsyncIterator[None]:
        """Begin: the shards' leases held, if `counted` their counts written, and what the context sends besides.

        A batch whose counts are known only in its course, since it has readings to look up, writes them itself, with
        `add_counts`; in any other, what looks at readings says so first (`plan_each`). Raises: LeaseLost.
        """
        held = [self._leases[shard] for shard in self._counts if shard is not None]
        async with self._conn.pipeline():
            await self._conn.execute(sql("begin_batch"))
            if counted:
                await self._conn.execute(sql("plan_once"))
            fencing = await send_hold(self._conn, self._owner, held)
            if counted:
                await add_counts(self._conn, self._leases, self._counts)
            yield
        require_fenced(fencing, self._owner, held)

    @asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """Commit, with what the context sends before."""
        async with self._conn.pipeline():
            yield
            await self._conn.execute(sql("commit_batch"))


async def add_counts(
    conn: AsyncConnection, leases: Mapping[int, Lease], counts: Mapping[int | None, Mapping[str, int]]
) -> None:
    """Write one row per shard: what came in this transaction and what became of it. Leftovers have no shard."""
    await conn.execute(
        sql("add_batches"),
        {
            "shards": array_text(counts),
            "epochs": array_text(0 if shard is None else leases[shard].epoch for shard in counts),
            **{outcome: array_text(counted.get(outcome, 0) for counted in counts.values()) for outcome in OUTCOMES},
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
            "severities": [row.severity for row in kept],
            "stored_ats": [row.stored_at for row in kept],
            "rejecteds": [row.rejected for row in kept],
        },
    )


async def add_events(conn: AsyncConnection, events: Iterable[tuple[int, datetime, int]]) -> list[tuple[int, int, int]]:
    """Store meter events (meter, instant, code), each once; return those that are new, their instants in ms."""
    rows = list(events)
    if not rows:
        return []
    meter_ids, ats, codes = (list(column) for column in zip(*rows, strict=True))
    cursor = await conn.execute(sql("add_events"), {"meter_ids": meter_ids, "ats": ats, "codes": codes})
    return await cursor.fetchall()


async def add_segment(
    conn: AsyncConnection, meter_id: int, from_at: datetime, *, register_wh: int, start_wh: int, reason: str | None
) -> None:
    """Record that a meter's register began again; without a reason, for that of the segment after it."""
    await conn.execute(
        sql("add_segment"),
        {
            "meter_id": meter_id,
            "from_at": from_at,
            "register_wh": register_wh,
            "start_wh": start_wh,
            "reason": reason,
        },
    )


async def save_relay(conn: AsyncConnection, meter_id: int, relay: str, at: datetime) -> None:
    """Note what a meter says its relay does."""
    await conn.execute(sql("save_relay"), {"meter_id": meter_id, "relay": relay, "at": at})


async def confirm_order(conn: AsyncConnection, *, order_id: int, meter_id: int, epoch: int, relay: str | None) -> None:
    """Book that a meter did what the order it names asked; a stale or contradicting answer changes nothing."""
    parameters = {"order_id": order_id, "meter_id": meter_id, "epoch": epoch, "relay": relay}
    await conn.execute(sql("confirm_order"), parameters)


async def end_impossible(conn: AsyncConnection, *, order_id: int, meter_id: int, epoch: int) -> bool:
    """Book that a meter can never do what the order it names asked; tell whether it is one of supply, which stands.

    Such a one is tried no more, and nothing else is ordered until a newer decision takes its place.
    """
    cursor = await conn.execute(sql("order_impossible"), {"order_id": order_id, "meter_id": meter_id, "epoch": epoch})
    return await cursor.fetchone() is not None


async def ask_recheck(conn: AsyncConnection, account_id: int, late_since: datetime | None = None) -> None:
    """Leave an account that is locked by somebody else to be looked at right after."""
    await conn.execute(sql("ask_recheck"), {"account_id": account_id, "late_since": late_since})
