"""When a meter is polled and whether its register is believed."""

from __future__ import annotations

from headend.polling import BACKOFF_S_MAX, RegisterWatch, Schedule, Verdict, backoff_s, phase_of

RATED_W = 15_000
MINUTE_MS = 60_000


def test_schedule_of_many_meters_is_spread_over_the_interval() -> None:
    """Each tenth of an interval has about a tenth of the meters, and a meter keeps its place."""
    places = [phase_of(f"M{number}", 60) for number in range(2_000)]
    tenths = [sum(int(place // 6) == tenth for place in places) for tenth in range(10)]
    assert min(tenths) > 150
    assert max(tenths) < 250
    assert phase_of("M7", 60) == places[7]


def test_schedule_of_two_gateways_has_the_same_place_by_the_wall_clock() -> None:
    """Whoever takes a line over polls at the instant at which the one before would have."""
    first = Schedule.starting("M1", 60, wall_s=1_000.0, steady_s=5.0)
    other = Schedule.starting("M1", 60, wall_s=1_030.0, steady_s=77.0)
    assert abs((first.due_s - 5.0 + 1_000.0) % 60 - (other.due_s - 77.0 + 1_030.0) % 60) < 1e-6


def test_schedule_late_poll_counts_the_places_that_passed() -> None:
    """A poll 130 s after its place of every 60 s is late and has missed two; the next is due at a place."""
    schedule = Schedule(poll_s=60, place_s=100.0, due_s=100.0)
    begun = schedule.begin(230.0)
    assert (begun.late_s, begun.missed) == (130.0, 2)
    schedule.succeed()
    assert schedule.due_s == 280.0


def test_schedule_dead_meter_costs_one_try_a_step_of_its_backoff() -> None:
    """Failures double the wait from 2 s to 5 minutes; an answer brings the meter back to its place."""
    schedule = Schedule(poll_s=60, place_s=0.0, due_s=0.0)
    tries, now_s = 0, 0.0
    while now_s < 3_600:
        schedule.begin(now_s)
        schedule.fail(now_s)
        tries, now_s = tries + 1, schedule.due_s
    assert tries == 8 + (3_600 - 510) // 300 + 1
    assert backoff_s(1_000) == BACKOFF_S_MAX
    begun = schedule.begin(now_s)
    assert (begun.late_s, begun.missed) == (0.0, 4)
    schedule.succeed()
    assert now_s < schedule.due_s <= now_s + 60
    assert schedule.due_s % 60 == 0


def test_register_within_its_rating_is_accepted_at_once() -> None:
    """After a first read that a second agreed with, what may have flowed is believed."""
    watch = RegisterWatch(rated_w=RATED_W)
    assert watch.judge(0, 5_000) is Verdict.AGAIN
    assert watch.judge(100, 5_000) is Verdict.ACCEPTED
    assert watch.judge(MINUTE_MS, 5_250) is Verdict.ACCEPTED
    assert watch.judge(2 * MINUTE_MS, 5_250) is Verdict.ACCEPTED


def test_register_corrupt_once_is_read_again_and_the_second_read_counts() -> None:
    """A jump or fall that the second read does not repeat is gone; the good register is accepted."""
    for wrong in (0, 4_999, 90_000_000):
        watch = RegisterWatch(rated_w=RATED_W, known=(0, 5_000))
        assert watch.judge(MINUTE_MS, wrong) is Verdict.AGAIN
        assert watch.judge(MINUTE_MS + 100, 5_200) is Verdict.ACCEPTED
        assert watch.known == (MINUTE_MS + 100, 5_200)


def test_register_that_truly_changed_is_confirmed_by_the_second_read() -> None:
    """A meter that was exchanged says the same twice: the head-end's own rules judge it."""
    watch = RegisterWatch(rated_w=RATED_W, known=(0, 5_000))
    assert watch.judge(MINUTE_MS, 12) is Verdict.AGAIN
    assert watch.judge(MINUTE_MS + 100, 12) is Verdict.CONFIRMED
    assert watch.judge(2 * MINUTE_MS, 40) is Verdict.ACCEPTED


def test_register_two_different_absurd_reads_are_dropped() -> None:
    """Nothing is believed where two reads agree neither with the past nor with each other."""
    watch = RegisterWatch(rated_w=RATED_W, known=(0, 5_000))
    assert watch.judge(MINUTE_MS, 1_000_000) is Verdict.AGAIN
    assert watch.judge(MINUTE_MS + 100, 7_000_000) is Verdict.DROPPED
    assert watch.known == (0, 5_000)
    assert watch.judge(2 * MINUTE_MS, 5_100) is Verdict.ACCEPTED
    assert watch.judge(3 * MINUTE_MS, 1) is Verdict.AGAIN
    watch.forget_doubt()
    assert watch.judge(4 * MINUTE_MS, 1) is Verdict.AGAIN
