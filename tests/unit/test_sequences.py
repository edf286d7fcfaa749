"""What a meter has sent by its own count: holes, messages that come again, counts that begin anew."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headend.sequences import AHEAD_MAX, ANEW_FIRST_MAX, HOLES_MAX, Arrival, Track, made_ms
from protocols.native import MeterEvent

# A message as (number, minute in which it was made).
Sent = tuple[int, int]


def follow(*sent: Sent) -> Track:
    """Follow messages that come in this order."""
    track = Track()
    track.follow(Arrival(seq=seq, sent_ms=60_000 * minute) for seq, minute in sent)
    return track


def figures(track: Track) -> tuple[int, int, int, int]:
    """Return sent, stored, duplicate and missing."""
    return track.sent, track.stored, track.duplicate, track.missing


@pytest.mark.parametrize(
    ("sent", "expected", "holes"),
    [
        ([(7, 0), (8, 1), (9, 2)], (3, 3, 0, 0), []),
        ([(7, 0), (9, 2), (12, 5)], (6, 3, 0, 3), [(0, 8, 8), (0, 10, 11)]),
        ([(7, 0), (12, 5), (9, 2)], (6, 3, 0, 3), [(0, 8, 8), (0, 10, 11)]),
        ([(7, 0), (9, 2), (8, 1)], (3, 3, 0, 0), []),
        ([(7, 0), (7, 0), (8, 1), (7, 0), (8, 1)], (2, 2, 3, 0), []),
        # One from before the first that came: nothing is known of what was then.
        ([(7, 5), (5, 3)], (1, 1, 1, 0), []),
    ],
)
def test_numbers_of_one_count_are_told_apart(
    sent: Sequence[Sent], expected: tuple[int, int, int, int], holes: list[tuple[int, int, int]]
) -> None:
    """What lies between numbers is missing until it comes; what comes again is a duplicate."""
    track = follow(*sent)
    assert (figures(track), track.holes) == (expected, holes)


def test_count_that_begins_anew_is_no_old_duplicate() -> None:
    """Low numbers made later are a new epoch; the same numbers made earlier are what came before."""
    track = follow((500, 0), (501, 1), (1, 2), (2, 3), (500, 0), (2, 3), (1, 2))
    assert (track.epoch, figures(track)) == (1, (4, 4, 3, 0))
    # The first numbers of the new epoch are missing until they come.
    assert follow((500, 0), (4, 9)).holes == [(1, 1, 3)]
    assert figures(follow((500, 0), (4, 9), (2, 7))) == (5, 3, 0, 2)
    assert follow((5_000, 0), (ANEW_FIRST_MAX + 1, 9)).holes == []


def test_hole_of_an_earlier_epoch_is_filled_after_the_count_began_anew() -> None:
    """A late message belongs to the epoch in which it was made, though the new one has its number too."""
    track = follow((1, 0), (4, 3), (1, 10), (5, 14))
    assert track.holes == [(0, 2, 3), (1, 2, 4)]
    track.follow([Arrival(seq=3, sent_ms=2 * 60_000), Arrival(seq=3, sent_ms=2 * 60_000)])
    assert (track.holes, track.duplicate) == ([(0, 2, 2), (1, 2, 4)], 1)
    track.follow([Arrival(seq=3, sent_ms=12 * 60_000)])
    assert track.holes == [(0, 2, 2), (1, 2, 2), (1, 4, 4)]


def test_holes_beyond_the_bound_are_counted_and_named_no_more() -> None:
    """A radio that loses every second message has few holes named and all of them counted."""
    track = follow(*((2 * number, number) for number in range(HOLES_MAX + 5)))
    assert (len(track.holes), track.given_up, track.missing) == (HOLES_MAX, 4, HOLES_MAX + 4)
    assert track.sent == 2 * (HOLES_MAX + 4) + 1
    # One that was given up is taken for one that came before.
    track.follow([Arrival(seq=1, sent_ms=1)])
    assert (track.duplicate, track.missing) == (1, HOLES_MAX + 4)


def test_count_that_runs_far_ahead_is_another_count() -> None:
    """A number a million ahead, as broken bytes make it, does not leave a million missing."""
    assert follow((1, 0), (2 + AHEAD_MAX, 1)).missing == 0
    assert follow((1, 0), (1 + AHEAD_MAX, 1)).missing == AHEAD_MAX - 1


def test_quarantined_message_came_and_is_not_stored() -> None:
    """Sent is stored, quarantined and missing together."""
    track = Track()
    track.follow([Arrival(seq=1, sent_ms=1, quarantined=True), Arrival(seq=1, sent_ms=1, quarantined=True)])
    track.follow([Arrival(seq=3, sent_ms=3)])
    assert (track.sent, track.stored, track.quarantined, track.missing, track.duplicate) == (3, 1, 1, 1, 1)


def test_message_of_a_clock_ahead_was_made_when_it_was_stored() -> None:
    """A clock in 2090 must not hide that the count begins anew."""
    event = MeterEvent(serial="M1", seq=1, at_ms=3_800_000_000_000, code=1)
    assert made_ms(event, 1_000) == 1_000


@given(st.data())
def test_any_loss_order_and_repetition_adds_up(data: st.DataObject) -> None:
    """Whatever is lost, comes late within its epoch or comes again: figures are those of sets of numbers."""
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    track, minute, came, again = Track(), 0, 0, 0
    expected_missing = 0
    for epoch, length in enumerate(lengths):
        made = [(seq, minute + seq) for seq in range(1, length + 1)]
        minute += length + 1
        kept = data.draw(st.lists(st.sampled_from(made), min_size=1, max_size=20))
        # That a count began anew shows only by a number that was there before: its first one comes first.
        order = kept if epoch == 0 else [made[0], *kept]
        first_seq = order[0][0] if epoch == 0 else 1
        order = [each for each in order if each[0] >= first_seq]
        track.follow(Arrival(seq=seq, sent_ms=60_000 * at) for seq, at in order)
        numbers = {seq for seq, _ in order}
        came += len(numbers)
        again += len(order) - len(numbers)
        expected_missing += max(numbers) - first_seq + 1 - len(numbers)
    assert (track.came, track.duplicate, track.missing) == (came, again, expected_missing)
    assert track.sent == track.stored + track.quarantined + track.missing
