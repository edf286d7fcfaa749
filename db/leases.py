"""Leases: each shard of a role has one owner, and an owner that lost it cannot write.

Stage: the first statement of every batch. A lease row holds owner, epoch and the time it runs out; taking it raises
the epoch, and `fence` renews it only where shard, epoch and owner still match, one row each, or aborts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg import AsyncConnection, AsyncCursor

from db.errors import LeaseLost
from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds leases: a role, a name unique per process start, and how long a lease lasts."""

    role: str
    name: str
    lease_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One shard held under an epoch; the change feed has been read up to `feed_from`."""

    shard: int
    epoch: int
    feed_from: int


async def take_leases(conn: AsyncConnection, owner: Owner, shards: Iterable[int]) -> list[Lease]:
    """Take those of the shards that nobody holds. Ends sessions of paused owners that still lock their rows."""
    await conn.execute(sql("end_expired_backends"), {"role": owner.role})
    cursor = await conn.execute(
        sql("take_leases"),
        {"role": owner.role, "shards": list(shards), "owner": owner.name, "lease_s": owner.lease_s},
    )
    rows = await cursor.fetchall()
    return [Lease(shard=shard, epoch=epoch, feed_from=feed_from) for shard, epoch, feed_from in rows]


async def fence(conn: AsyncConnection, owner: Owner, leases: Iterable[Lease]) -> None:
    """Renew leases inside a batch's transaction.

    Raises: LeaseLost when any of them belongs to another epoch or owner by now.
    """
    held = list(leases)
    require_fenced(await send_fence(conn, owner, held), owner, held)


async def send_fence(conn: AsyncConnection, owner: Owner, leases: Sequence[Lease]) -> AsyncCursor:
    """Send the statement of `fence`; in a pipeline its outcome is known, to `require_fenced`, when that has ended."""
    held = sorted(leases, key=lambda lease: lease.shard)
    return await conn.execute(
        sql("fence"),
        {
            "role": owner.role,
            "shards": [lease.shard for lease in held],
            "epochs": [lease.epoch for lease in held],
            "owner": owner.name,
            "lease_s": owner.lease_s,
        },
    )


def require_fenced(sent: AsyncCursor, owner: Owner, leases: Sequence[Lease]) -> None:
    """Abort a batch whose fence did not renew all of its leases.

    Raises: LeaseLost.
    """
    if sent.rowcount != len(leases):
        raise LeaseLost(f"leases of {owner.name}: expected {len(leases)} shards to be ours, got {sent.rowcount}")


async def release_leases(conn: AsyncConnection, owner: Owner) -> None:
    """Give all of an owner's shards back."""
    await conn.execute(sql("release_leases"), {"role": owner.role, "owner": owner.name})
