"""The batches of one owner, written on two connections in turn: one is begun while the one before is written.

Stage: around `headend.edges.commit`. The server copies and the disk syncs one batch while the other connection's
server begins with the next, which is committed only after it. What fails takes the one after it along: both are to be
written again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from psycopg import AsyncConnection

from db.leases import Lease, Owner
from db.orders import PostingRules
from headend.edges.commit import Batch, Turn, write_batch


class BatchWriter:
    """Writes batches in their order.

    Invariants: at most two batches are open, each on a connection of its own.
    """

    def __init__(self, conns: Sequence[AsyncConnection], owner: Owner, rules: PostingRules) -> None:
        assert len(conns) == 2, f"connections: expected 2, got {len(conns)}"
        self._conns = list(conns)
        self._owner = owner
        self._rules = rules
        # Of the two connections, the one used last is last; the first one's batch comes first.
        self._open: list[asyncio.Task[None]] = []

    async def write(
        self,
        batch: Batch,
        leases: Mapping[int, Lease],
        *,
        meanwhile: Callable[[], None] | None = None,
        committed: Callable[[], None] | None = None,
    ) -> None:
        """Write a batch; return when the next may begin, at the latest when this one is committed.

        `meanwhile` is that of `write_batch`; `committed` is called after the commit, batch after batch. Raises: what
        `write_batch` raises, of this batch or one before it that was open; nothing is open then.
        """
        if len(self._open) == len(self._conns):
            await self._finish(self._open[0])
        turn = Turn(earlier=self._open[-1] if self._open else None)
        conn = self._conns[0]

        async def written() -> None:
            await write_batch(
                conn, batch, owner=self._owner, leases=leases, rules=self._rules, meanwhile=meanwhile, turn=turn
            )
            if committed:
                committed()

        task = asyncio.create_task(written())
        self._conns.reverse()
        self._open.append(task)
        task.add_done_callback(lambda _: turn.ready.set())
        await turn.ready.wait()
        if task.done():
            await self.settle()

    async def settle(self) -> None:
        """Wait for all commits. Raises: what the first that failed did so with; nothing is open then."""
        while self._open:
            await self._finish(self._open[0])

    async def abandon(self) -> None:
        """End what is open without its commit."""
        for task in self._open:
            task.cancel()
        await self._clear()

    async def _finish(self, task: asyncio.Task[None]) -> None:
        try:
            await asyncio.shield(task)
        except Exception:
            # Those after it fail by its error.
            await self._clear()
            raise
        self._open.remove(task)

    async def _clear(self) -> None:
        await asyncio.gather(*self._open, return_exceptions=True)
        self._open.clear()
