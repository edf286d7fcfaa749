"""How the shards are shared by the processes that live: who may take how many, and who gives which back.

Stage: the arithmetic of rebalancing. Pure: the edge counts processes and holds leases.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from protocols.topics import LANES, SHARDS, lane_of

SHARDS_A_LANE = SHARDS // LANES


def fair_share(processes: int) -> int:
    """Return how many shards a process may hold: the lanes by the number of processes, rounded up, times their shards.

    So the shares together are never fewer than the shards, and one who holds no more than its share keeps all of it:
    with three processes 12, 12 and 8 is at rest, whoever has the 8.
    """
    return -(-LANES // max(1, processes)) * SHARDS_A_LANE


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """How many processes were alive at the last two counts.

    Invariants: a process that was missed once, or seen once, moves no shard: more are taken only by a share that holds
    at both counts, and given back only above both.
    """

    last: int
    before: int

    def then(self, processes: int) -> Census:
        """Return the census after another count."""
        return Census(last=processes, before=self.last)

    @property
    def most_taken(self) -> int:
        """Up to how many shards may be taken."""
        return fair_share(max(self.last, self.before))

    @property
    def most_kept(self) -> int:
        """Above how many shards some are given back."""
        return fair_share(min(self.last, self.before))


def surplus(held: Iterable[int], most: int) -> frozenset[int]:
    """Return which shards to give back: the last lanes, so that the first, with the leftovers, moves least."""
    return frozenset(sorted(held, key=lambda shard: (lane_of(shard), shard))[most:])
