"""The arithmetic of sharing: nobody without a share, no shard left over, no back and forth."""

import random

import pytest

from headend.shares import Census, fair_share, surplus
from protocols.topics import SHARDS, lane_of


@pytest.mark.parametrize(("processes", "share"), [(0, 32), (1, 32), (2, 16), (3, 12), (5, 8), (7, 8), (8, 4), (99, 4)])
def test_fair_share_is_rounded_up(processes: int, share: int) -> None:
    """The shares together hold all shards."""
    assert fair_share(processes) == share
    assert share * max(processes, 1) >= SHARDS


def test_surplus_is_what_is_above_the_share_from_the_end() -> None:
    """The first lanes stay, shard 0 with the leftovers among them; a lane goes as a whole."""
    first, last = {0, 8, 16, 24}, {7, 15, 23, 31}
    assert surplus(first | last, 4) == last
    assert surplus(first, 8) == frozenset()


def test_census_that_changed_once_moves_nothing() -> None:
    """A process missed at one count does not raise shares; one seen once does not lower them."""
    two = Census(last=2, before=2)
    missed = two.then(1)
    assert (missed.most_taken, missed.most_kept) == (16, 32)
    joined = two.then(3)
    assert (joined.most_taken, joined.most_kept) == (12, 16)
    assert (joined.then(3).most_taken, joined.then(3).most_kept) == (12, 12)


@pytest.mark.parametrize("seed", range(50))
def test_processes_that_come_and_go_come_to_rest_with_all_shards_owned(seed: int) -> None:
    """After any joins, ends and deaths, in any order of turns, each has at most its share, and then nothing moves."""
    rng = random.Random(seed)
    held: dict[int, set[int]] = {}
    censuses: dict[int, Census] = {}

    def turn(process: int) -> int:
        """Let one process look; return how many shards it moved."""
        count = len(held)
        censuses[process] = censuses.get(process, Census(last=count, before=count)).then(count)
        census, mine = censuses[process], held[process]
        leaving = surplus(mine, census.most_kept)
        mine -= leaving
        free = set(range(SHARDS)) - set().union(*held.values())
        in_lanes = sorted(free, key=lambda shard: (lane_of(shard), shard))
        taken = in_lanes[: max(0, census.most_taken - len(mine))] if not leaving else []
        mine |= set(taken)
        return len(leaving) + len(taken)

    for process in range(14):
        if len(held) > 1 and rng.random() < 0.4:
            held.pop(rng.choice(list(held)))
        held[process] = set()
        for _ in range(rng.randrange(20)):
            turn(rng.choice(list(held)))
    moved = [sum(turn(process) for process in rng.sample(list(held), len(held))) for _ in range(12)]
    assert moved[6:] == [0] * 6, "shards go back and forth"
    assert sorted(shard for mine in held.values() for shard in mine) == list(range(SHARDS))
    assert max(len(mine) for mine in held.values()) <= fair_share(len(held))
