"""Workers: the processes that share the shards of a role, counted by the database's clock.

Stage: beside the leases. A worker says every second that it lives; who was not heard of for half a lease does not
count, so that its share is the others' before its leases run out. What a worker writes is fenced by leases alone: a
wrong count costs a hand-over, never a second owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.leases import Owner
from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process as an operator sees it; `silent_s` since its last word, None for a role whose processes say none."""

    role: str
    name: str
    started_at: datetime | None
    silent_s: float | None
    lag_ms: int | None
    shards: list[int]


def live_s(lease_s: float) -> float:
    """Return for how long a worker counts after its last word.

    Half a lease: shards that were given back for one that died are with others within the lease, too.
    """
    return lease_s / 2


async def beat(conn: AsyncConnection, owner: Owner, *, lag_ms: int | None) -> int:
    """Say that we live; return how many workers of our role do, with us."""
    parameters = {"name": owner.name, "role": owner.role, "lag_ms": lag_ms, "live_s": live_s(owner.lease_s)}
    cursor = await conn.execute(sql("beat"), parameters)
    row = await cursor.fetchone()
    assert row is not None, "beat returns one row"
    return int(row[0])


async def retire(conn: AsyncConnection, owner: Owner) -> None:
    """Say that we stop."""
    await conn.execute(sql("retire"), {"name": owner.name})


async def list_workers(conn: AsyncConnection) -> list[Worker]:
    """Return who was heard of within a day or owns a shard."""
    async with conn.cursor(row_factory=class_row(Worker)) as cursor:
        await cursor.execute(sql("list_workers"))
        return await cursor.fetchall()


async def unowned_shards(conn: AsyncConnection, role: str) -> list[int]:
    """Return the shards of a role that nobody owns at the moment."""
    cursor = await conn.execute(sql("unowned_shards"), {"role": role})
    return [shard for (shard,) in await cursor.fetchall()]
