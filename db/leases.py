"""Leases: each shard of a role has one owner, and an owner that lost it cannot write.

Stage: the first statement of every batch. A lease row holds owner, epoch and the time it runs out; taking it raises
the epoch. `fence` renews and a batch locks it only where shard, epoch and owner still match, one row each, or aborts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg import AsyncConnection, AsyncCursor

from db.errors import LeaseLost
from db.named import array_text, sql
from protocols.topics import SHARDS


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


async def take_leases(
    conn: AsyncConnection, owner: Owner, shards: Iterable[int], *, most: int = SHARDS, lanes: int = SHARDS
) -> list[Lease]:
    """Take up to `most` of the shards that nobody holds. Ends sessions of paused owners that still lock their rows.

    Shards with the same remainder by `lanes` are taken together or not at all.
    """
    await conn.execute(sql("end_expired_backends"), {"role": owner.role})
    cursor = await conn.execute(
        sql("take_leases"),
        {
            "role": owner.role,
            "shards": list(shards),
            "owner": owner.name,
            "lease_s": owner.lease_s,
            "lanes": lanes,
            "shards_a_lane": SHARDS // lanes,
            "lanes_most": most * lanes // SHARDS,
        },
    )
    rows = await cursor.fetchall()
    return [Lease(shard=shard, epoch=epoch, feed_from=feed_from) for shard, epoch, feed_from in rows]


async def fence(conn: AsyncConnection, owner: Owner, leases: Iterable[Lease]) -> None:
    """Renew leases.

    Raises: LeaseLost when any of them belongs to another epoch or owner by now.
    """
    held = list(leases)
    parameters = {"role": owner.role, "epochs": _epochs_text(held), "owner": owner.name, "lease_s": owner.lease_s}
    require_fenced(await conn.execute(sql("fence"), parameters), owner, held)


async def send_hold(conn: AsyncConnection, owner: Owner, leases: Sequence[Lease]) -> AsyncCursor:
    """Lock leases up to the end of a batch's transaction, so that nobody takes them meanwhile.

    In a pipeline its outcome is known, to `require_fenced`, when that has ended. Not renewed by it: a lease that ran
    out is still ours until somebody takes it.
    """
    parameters = {"role": owner.role, "epochs": _epochs_text(leases), "owner": owner.name}
    return await conn.execute(sql("hold_leases"), parameters)


def require_fenced(sent: AsyncCursor, owner: Owner, leases: Sequence[Lease]) -> None:
    """Abort where not all leases were found to be ours.

    Raises: LeaseLost.
    """
    if sent.rowcount != len(leases):
        raise LeaseLost(f"leases of {owner.name}: expected {len(leases)} shards to be ours, got {sent.rowcount}")


def _epochs_text(leases: Iterable[Lease]) -> str:
    """Write the epochs by shard, as an array with a place for each shard up to the last."""
    epochs = {lease.shard: lease.epoch for lease in leases}
    return array_text(epochs.get(shard) for shard in range(max(epochs, default=-1) + 1))


async def give_back(conn: AsyncConnection, owner: Owner, shards: Iterable[int]) -> None:
    """Give some of an owner's shards back."""
    await conn.execute(sql("give_back"), {"role": owner.role, "owner": owner.name, "shards": list(shards)})


async def release_leases(conn: AsyncConnection, owner: Owner) -> None:
    """Give all of an owner's shards back."""
    await conn.execute(sql("release_leases"), {"role": owner.role, "owner": owner.name})
