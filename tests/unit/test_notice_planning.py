"""The way a notice takes: channels, contacts, quiet hours, the day's cap, and how tries back off."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.calendar import LocalCalendar, from_ms, to_ms
from billing.notices import Channel, Language, NoticeError, NoticeKind
from billing.notices.kinds import KindRule, Rank, kind_rules, rule_of
from billing.notices.planning import (
    ASKED_MS_MAX,
    BACKOFF_MS_FIRST,
    BACKOFF_MS_MAX,
    Contact,
    DeliveryRules,
    DeliveryState,
    Planned,
    QuietHours,
    SkipReason,
    Waiting,
    backoff_ms,
    may_send_ms,
    parse_quiet_hours,
    plan,
)

INDIA = ZoneInfo("Asia/Kolkata")
CALENDAR = LocalCalendar(INDIA)
NIGHT = QuietHours(first=21 * 60, last=7 * 60)
RULES = DeliveryRules(channels=frozenset({Channel.SMS, Channel.EMAIL}), quiet=NIGHT, per_day_max=2, calendar=CALENDAR)
RULE = KindRule(channels=(Channel.SMS, Channel.EMAIL), waits=False, life_s=3_600, rank=Rank.SUPPLY, capped=True)
NOON_MS = to_ms(datetime(2026, 11, 22, 12, 0, tzinfo=INDIA))
PHONE = Contact(
    id=1, channel=Channel.SMS, address="+919876543210", language=Language.HINDI, priority=1, verified=True,
    failing=False, stopped=False,
)  # fmt: skip
MAIL = replace(PHONE, id=2, channel=Channel.EMAIL, address="a@b.in")
WAITING = Waiting(id=7, rule=RULE, created_ms=NOON_MS, asked_by=None, tried={})


def ways(
    *contacts: Contact,
    waiting: Waiting = WAITING,
    today: dict[Channel, int] | None = None,
    rules: DeliveryRules = RULES,
    now_ms: int = NOON_MS,
) -> list[tuple[Channel, int | None, SkipReason | None]]:
    """Plan, and return channel, contact and reason of each way."""
    planned = list(plan(waiting, contacts, today or {}, rules, now_ms))
    assert all(isinstance(way, Planned) and way.notice_id == waiting.id for way in planned)
    return [(way.channel, way.contact.id if way.contact and not way.skipped else None, way.skipped) for way in planned]


def test_first_channel_with_a_proven_contact_is_taken() -> None:
    """One message a notice: the second channel is not used beside the first."""
    assert ways(PHONE, MAIL) == [(Channel.SMS, 1, None)]


@pytest.mark.parametrize(
    ("contacts", "reason"),
    [
        ((), SkipReason.NO_CONTACT),
        ((replace(PHONE, verified=False),), SkipReason.UNVERIFIED),
        ((replace(PHONE, stopped=True),), SkipReason.STOPPED),
    ],
)
def test_second_channel_is_taken_when_the_first_has_no_usable_contact(
    contacts: tuple[Contact, ...], reason: SkipReason
) -> None:
    """Why the first was passed over stays visible."""
    assert ways(*contacts, MAIL) == [(Channel.SMS, None, reason), (Channel.EMAIL, 2, None)]


def test_channel_that_is_not_set_up_is_passed_over() -> None:
    """An installation with mail only sends mail; where nothing can be sent, that is said once."""
    mail_only = replace(RULES, channels=frozenset({Channel.EMAIL}))
    assert ways(PHONE, MAIL, rules=mail_only) == [(Channel.EMAIL, 2, None)]
    sms_rule = replace(WAITING, rule=replace(RULE, channels=(Channel.SMS,)))
    nowhere = [(Channel.SMS, None, SkipReason.NOT_CONFIGURED)]
    assert ways(PHONE, MAIL, waiting=sms_rule, rules=mail_only) == nowhere
    assert ways(PHONE, MAIL, waiting=replace(WAITING, asked_by=PHONE), rules=mail_only) == nowhere


def test_second_channel_follows_when_the_first_is_dead() -> None:
    """A notice that was planned before goes on where it stands; one under way stays as it is."""
    dead = replace(WAITING, tried={Channel.SMS: DeliveryState.DEAD})
    assert ways(PHONE, MAIL, waiting=dead) == [(Channel.EMAIL, 2, None)]
    for state in (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.SENT):
        assert ways(PHONE, MAIL, waiting=replace(WAITING, tried={Channel.SMS: state})) == []
    both = {Channel.SMS: DeliveryState.DEAD, Channel.EMAIL: DeliveryState.DEAD}
    assert ways(PHONE, MAIL, waiting=replace(WAITING, tried=both)) == []


def test_of_several_contacts_the_usable_one_of_the_lowest_priority_is_taken() -> None:
    """Proven before not, wanted before stopped, working before failing, then as the consumer chose."""
    second = replace(PHONE, id=3, priority=2)
    assert ways(second, PHONE) == [(Channel.SMS, 1, None)]
    assert ways(second, replace(PHONE, failing=True)) == [(Channel.SMS, 3, None)]
    assert ways(second, replace(PHONE, verified=False)) == [(Channel.SMS, 3, None)]
    assert ways(second, replace(PHONE, stopped=True)) == [(Channel.SMS, 3, None)]
    assert ways(replace(PHONE, failing=True)) == [(Channel.SMS, 1, None)]


def test_more_than_the_days_messages_are_skipped_and_take_no_second_channel() -> None:
    """A flood ends at the cap of its channel, visibly; what was asked for is not counted."""
    assert ways(PHONE, MAIL, today={Channel.SMS: 2}) == [(Channel.SMS, None, SkipReason.DAILY_CAP)]
    assert ways(PHONE, MAIL, today={Channel.SMS: 1}) == [(Channel.SMS, 1, None)]
    uncapped = replace(WAITING, rule=replace(RULE, capped=False))
    assert ways(PHONE, waiting=uncapped, today={Channel.SMS: 99}) == [(Channel.SMS, 1, None)]


def test_notice_nobody_needs_any_more_is_skipped() -> None:
    """After an outage of days nobody gets a week of messages."""
    assert ways(PHONE, MAIL, now_ms=NOON_MS + 3_600_000) == [(Channel.SMS, None, SkipReason.TOO_OLD)]
    assert ways(PHONE, MAIL, now_ms=NOON_MS + 3_599_999) == [(Channel.SMS, 1, None)]


def test_answer_goes_to_who_asked_and_to_nobody_else() -> None:
    """Whether the contact is proven or has sent STOP: it has asked."""
    asker = replace(PHONE, id=9, verified=False, stopped=True)
    asked = replace(WAITING, asked_by=asker)
    assert ways(PHONE, MAIL, waiting=asked) == [(Channel.SMS, 9, None)]
    assert ways(PHONE, MAIL, waiting=replace(asked, tried={Channel.SMS: DeliveryState.DEAD})) == []


@pytest.mark.parametrize(
    ("local", "until"),
    [
        ("2026-11-22 20:59", None),
        ("2026-11-22 21:00", "2026-11-23 07:00"),
        ("2026-11-23 00:00", "2026-11-23 07:00"),
        ("2026-11-23 06:59", "2026-11-23 07:00"),
        ("2026-11-23 07:00", None),
    ],
)
def test_what_can_wait_is_held_until_the_quiet_hours_end(local: str, until: str | None) -> None:
    """Quiet hours hold from their first minute to the one before their last."""
    at_ms = to_ms(datetime.fromisoformat(local).replace(tzinfo=INDIA))
    ends_ms = None if until is None else to_ms(datetime.fromisoformat(until).replace(tzinfo=INDIA))
    assert NIGHT.ends_ms(at_ms, CALENDAR) == ends_ms
    waits = replace(RULE, waits=True)
    assert may_send_ms(waits, at_ms, RULES) == (ends_ms or at_ms)
    assert may_send_ms(RULE, at_ms, RULES) == at_ms
    assert may_send_ms(waits, at_ms, replace(RULES, quiet=None)) == at_ms


@given(
    at_ms=st.integers(to_ms(datetime(2026, 1, 1, tzinfo=INDIA)), to_ms(datetime(2027, 1, 1, tzinfo=INDIA))),
    first=st.integers(0, 1439),
    last=st.integers(0, 1439),
    zone=st.sampled_from(["Asia/Kolkata", "Europe/Berlin", "America/New_York"]),
)
def test_end_of_quiet_hours_is_outside_of_them(at_ms: int, first: int, last: int, zone: str) -> None:
    """Nothing is put off to a moment that is quiet again, whatever the clock of the zone does."""
    if first == last:
        return
    quiet, calendar = QuietHours(first=first, last=last), LocalCalendar(ZoneInfo(zone))
    ends_ms = quiet.ends_ms(at_ms, calendar)
    if ends_ms is None:
        return
    assert at_ms < ends_ms <= at_ms + 26 * 3_600_000
    assert quiet.ends_ms(ends_ms, calendar) is None


@given(minute=st.integers(0, 1439), first=st.integers(0, 1439), last=st.integers(0, 1439))
def test_quiet_hours_equal_a_look_at_the_clock(minute: int, first: int, last: int) -> None:
    """Quiet is when the local clock shows a minute from the first to before the last."""
    if first == last:
        return
    at_ms = CALENDAR.midnight_ms(CALENDAR.day_of(NOON_MS)) + minute * 60_000
    shown = from_ms(at_ms).astimezone(INDIA)
    assert shown.hour * 60 + shown.minute == minute
    inside = first <= minute < last if first < last else minute >= first or minute < last
    assert (QuietHours(first=first, last=last).ends_ms(at_ms, CALENDAR) is not None) == inside


def test_quiet_hours_are_read_as_two_local_times() -> None:
    """None is a choice; anything else but two different times is refused."""
    assert parse_quiet_hours("21:00-07:00") == NIGHT
    assert parse_quiet_hours("none") is None
    for text in ("", "21-7", "24:00-07:00", "07:00-07:00", "21:00-07:60", "21:00 - 07:00"):
        with pytest.raises(NoticeError, match="quiet hours: expected"):
            parse_quiet_hours(text)


@given(attempts=st.integers(1, 10_000), jitter=st.integers(75, 125), asked=st.integers(0, 10**12))
def test_tries_back_off_within_bounds(attempts: int, jitter: int, asked: int) -> None:
    """Never sooner than asked for up to an hour, never later than the bounds say."""
    wait_ms = backoff_ms(attempts, jitter_percent=jitter, at_least_ms=asked)
    assert wait_ms >= min(asked, ASKED_MS_MAX)
    assert BACKOFF_MS_FIRST * 75 // 100 <= wait_ms <= max(BACKOFF_MS_MAX * 125 // 100, ASKED_MS_MAX)
    assert backoff_ms(attempts + 1, jitter_percent=jitter) >= backoff_ms(attempts, jitter_percent=jitter)


def test_tries_double_from_five_seconds() -> None:
    """5, 10, 20 s at first."""
    assert [backoff_ms(attempts, jitter_percent=100) for attempts in (1, 2, 3)] == [5_000, 10_000, 20_000]


def test_every_kind_has_a_rule_that_makes_sense() -> None:
    """What ends supply or was asked for never waits for the morning; what was asked for counts in no cap."""
    rules = kind_rules()
    assert set(rules) == set(NoticeKind)
    for kind in (NoticeKind.LOW, NoticeKind.EXHAUSTED, NoticeKind.CUT, NoticeKind.RESTORED, NoticeKind.OTP):
        assert not rules[kind].waits
    for rule in rules.values():
        assert rule.capped == (rule.rank is not Rank.ASKED)
    assert rule_of("wedding") is None
    assert rule_of("low") is rules[NoticeKind.LOW]
