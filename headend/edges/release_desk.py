"""Released rows of quarantine are stored by the owner of their shard, as if their readings had come in time.

Stage: beside ingest, between batches. The bytes that were kept go through decoding and the plan one by one once more,
passing the rule they were held for; readings and the rows' outcome are written in one transaction under the leases.
What fails is tried again and costs nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec
import structlog
from psycopg import AsyncConnection

from billing.calendar import to_ms
from db.leases import Lease, Owner
from db.orders import PostingRules
from db.quarantine import ReleasedRow, take_released
from db.readings import ensure_partitions
from headend.edges.cache import StateCache
from headend.edges.commit import encode_plan, write_batch
from headend.pipeline import Plan, Received, plan, receive
from headend.release import Approved
from headend.rules import Reason

_log = structlog.get_logger("release")

# An engineer's release is looked for as often as the change feed is read while no batch comes.
LOOK_S = 0.2
# A released frame is at most 64 kB: 500 are 32 MB; a late reading takes 0.1 ms, for which readings wait.
RELEASED_A_BATCH = 500


class ReleaseDesk:
    """Stores what engineers have released of owned shards.

    Invariants: nothing is written for a shard without its lease; a row leaves the state `released` only in the
    transaction that stores, counts or holds its readings.
    """

    def __init__(self, owner: Owner, rules: PostingRules) -> None:
        self._owner = owner
        self._rules = rules
        self._look_at_s = 0.0

    async def step(self, conn: AsyncConnection, cache: StateCache, leases: Mapping[int, Lease]) -> bool:
        """Store what is released, a batch at most; return whether there was something, and known states have moved."""
        now_s = time.monotonic()
        if now_s < self._look_at_s:
            return False
        rows = await take_released(conn, leases, most=RELEASED_A_BATCH)
        if len(rows) < RELEASED_A_BATCH:
            self._look_at_s = now_s + LOOK_S
        if not rows:
            return False
        made = await self._plan(conn, cache, [_received(row, self._rules.clock()) for row in rows])
        batch = encode_plan(made)
        await write_batch(conn, batch, owner=self._owner, leases=leases, rules=self._rules)
        cache.adopt(made)
        cache.amend(batch.amended)
        outcomes = [settled.outcome.value for settled in made.settled.values()]
        _log.info("released", **{outcome: outcomes.count(outcome) for outcome in set(outcomes)})
        return True

    async def _plan(self, conn: AsyncConnection, cache: StateCache, received: Sequence[Received]) -> Plan:
        """Plan by what the database says now: what is stored but void counts as known, too."""
        serials = {message.uplink.serial for message in received if message.uplink is not None}
        await cache.forget(conn, serials)
        await cache.raise_marks(conn, serials)
        made = plan(received, cache.table, self._rules.calendar, cache.table.uninstalled)
        made.stale_serials.update(serials & cache.table.place_of.keys())
        days = {row.read_at.date() for row in made.rows} | {late.row.read_at.date() for late in made.late}
        await ensure_partitions(conn, days)
        return made


def _received(row: ReleasedRow, now_ms: int) -> Received:
    """Decode a released frame once more; what was held as of the future is judged by the time it is now."""
    reason = Reason(row.reason)
    stored_at_ms = now_ms if reason is Reason.FUTURE else to_ms(row.stored_at)
    item = None if row.read_at is None else row.item
    approved = Approved(quarantine_id=row.id, item=item, reason=reason, as_reset=row.as_reset)
    return msgspec.structs.replace(receive(row.shard, row.topic, row.raw, stored_at_ms), approved=approved)
