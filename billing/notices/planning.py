"""Which way a notice goes: channel, contact, instant, or the reason why it goes nowhere.

Stage: between a stored notice and its deliveries. Takes what is known of contacts and earlier tries; returns rows to
add. Knows no gateway and no clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from billing.calendar import LocalCalendar
from billing.notices.kinds import Channel, KindRule, Language, NoticeError

_MS = 1_000
_HOUR_MINUTES = 60
_QUIET = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)
# Tries after 5, 10, 20 s ... and then every half hour: ten tries bridge 45 minutes, and a kind's life ends them.
BACKOFF_MS_FIRST, BACKOFF_MS_MAX = 5_000, 1_800_000
# A gateway that asks for more than an hour is asked again after one.
ASKED_MS_MAX = 3_600_000
_DOUBLINGS_MAX = 20
_PERCENT = 100


class DeliveryState(StrEnum):
    """What has become of a delivery; `dead` and `skipped` are its ends without success."""

    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    DEAD = "dead"
    SKIPPED = "skipped"


class SkipReason(StrEnum):
    """Why a channel was not tried."""

    NOT_CONFIGURED = "not_configured"
    NO_CONTACT = "no_contact"
    UNVERIFIED = "unverified"
    STOPPED = "stopped"
    DAILY_CAP = "daily_cap"
    TOO_OLD = "too_old"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietHours:
    """Local minutes of the day between which what can wait is not sent; past midnight where `last` is the smaller."""

    first: int
    last: int

    def ends_ms(self, at_ms: int, calendar: LocalCalendar) -> int | None:
        """Return when the quiet hours that hold an instant end; None outside of them."""
        today = calendar.day_of(at_ms)
        for day in (today - timedelta(days=1), today):
            end_day = day + timedelta(days=1) if self.last <= self.first else day
            begin_ms, end_ms = calendar.instant_ms(day, self.first), calendar.instant_ms(end_day, self.last)
            if begin_ms <= at_ms < end_ms:
                return end_ms
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """Where a consumer can be reached; of several the usable one of the lowest `priority` is taken."""

    id: int
    channel: Channel
    address: str
    language: Language
    priority: int
    verified: bool
    failing: bool
    stopped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRules:
    """What an installation has chosen: channels that are set up, quiet hours, messages a day, account and channel."""

    channels: frozenset[Channel]
    quiet: QuietHours | None
    per_day_max: int
    calendar: LocalCalendar


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A notice without a way yet.

    `tried` has what became of channels before; `asked_by` is the contact that asked for it, who alone is answered.
    """

    id: int
    rule: KindRule
    created_ms: int
    asked_by: Contact | None
    tried: Mapping[Channel, DeliveryState]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A delivery to add: to a contact, or skipped for a reason."""

    notice_id: int
    channel: Channel
    contact: Contact | None
    skipped: SkipReason | None
    next_try_ms: int
    expires_ms: int


def parse_quiet_hours(text: str) -> QuietHours | None:
    """Read quiet hours such as `21:00-07:00`; `none` for none.

    Raises: NoticeError.
    """
    if text == "none":
        return None
    match = _QUIET.fullmatch(text)
    if match is None or match[1] + match[2] == match[3] + match[4]:
        raise NoticeError(f"quiet hours: expected none or two different times such as 21:00-07:00, got {text[:20]!r}")
    first, last = (int(match[n]) * _HOUR_MINUTES + int(match[n + 1]) for n in (1, 3))
    return QuietHours(first=first, last=last)


def plan(
    waiting: Waiting, contacts: Iterable[Contact], sent_today: Mapping[Channel, int], rules: DeliveryRules, now_ms: int
) -> Iterator[Planned]:
    """Yield the deliveries to add: skipped channels in their order, and at most one that is sent.

    `sent_today` counts the account's capped deliveries of the local day by channel.
    """
    known = list(contacts)
    expires_ms = waiting.created_ms + waiting.rule.life_s * _MS
    for channel in _channels(waiting, rules):
        earlier = waiting.tried.get(channel)
        if earlier in (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.SENT):
            return
        if earlier is not None:
            continue
        contact = waiting.asked_by or _best(known, channel)
        skipped = _skipped(waiting, contact, channel, sent_today, rules, late=now_ms >= expires_ms)
        yield Planned(
            notice_id=waiting.id,
            channel=channel,
            contact=contact,
            skipped=skipped,
            next_try_ms=may_send_ms(waiting.rule, now_ms, rules),
            expires_ms=expires_ms,
        )
        if skipped in (None, SkipReason.DAILY_CAP, SkipReason.TOO_OLD):
            return


def may_send_ms(rule: KindRule, at_ms: int, rules: DeliveryRules) -> int:
    """Return when a notice may be sent at the earliest: at once, or at the end of the quiet hours for what waits."""
    if rules.quiet is None or not rule.waits:
        return at_ms
    return rules.quiet.ends_ms(at_ms, rules.calendar) or at_ms


def backoff_ms(attempts: int, *, jitter_percent: int, at_least_ms: int = 0) -> int:
    """Return how long to wait after so many tries; `at_least_ms` is what a gateway has asked for.

    Units: `jitter_percent` 75 to 125 spreads the tries of many messages.
    """
    doubled = BACKOFF_MS_FIRST << min(attempts - 1, _DOUBLINGS_MAX)
    spread = min(doubled, BACKOFF_MS_MAX) * jitter_percent // _PERCENT
    return max(spread, min(at_least_ms, ASKED_MS_MAX))


def _channels(waiting: Waiting, rules: DeliveryRules) -> tuple[Channel, ...]:
    """Return the channels to try in order: those that are set up, or one to say that none is."""
    if waiting.asked_by:
        return (waiting.asked_by.channel,)
    return tuple(each for each in waiting.rule.channels if each in rules.channels) or waiting.rule.channels[:1]


def _best(contacts: Iterable[Contact], channel: Channel) -> Contact | None:
    """Return the contact to be tried: usable before not usable, then by the consumer's priority."""
    mine = [contact for contact in contacts if contact.channel is channel]
    return min(mine, key=_usable_first, default=None)


def _usable_first(contact: Contact) -> tuple[bool, bool, bool, int, int]:
    return not contact.verified, contact.stopped, contact.failing, contact.priority, contact.id


def _skipped(
    waiting: Waiting,
    contact: Contact | None,
    channel: Channel,
    sent_today: Mapping[Channel, int],
    rules: DeliveryRules,
    *,
    late: bool,
) -> SkipReason | None:
    if late:
        return SkipReason.TOO_OLD
    if channel not in rules.channels:
        return SkipReason.NOT_CONFIGURED
    if contact is None:
        return SkipReason.NO_CONTACT
    if waiting.asked_by is None and not contact.verified:
        return SkipReason.UNVERIFIED
    if waiting.asked_by is None and contact.stopped:
        return SkipReason.STOPPED
    capped = waiting.rule.capped and sent_today.get(channel, 0) >= rules.per_day_max
    return SkipReason.DAILY_CAP if capped else None
