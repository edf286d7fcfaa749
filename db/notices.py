"""Notices as rows: written with their cause, given a way to a person, claimed for tries, ended, listed.

Stage: the outbox. A notice's row is written in the transaction of its cause; everything here comes after. Several
processes at once are safe: one at a time plans, and what one has claimed no other takes until the claim runs out.
Times are arguments. Never sends anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from billing.calendar import LocalCalendar, from_ms, to_ms
from billing.notices import Channel, Facts, Language, NoticeError, Rendered, read_facts, render
from billing.notices.kinds import KindRule, rule_of
from billing.notices.planning import Contact, DeliveryRules, DeliveryState, Planned, Waiting, plan
from billing.notices.render import render_written
from db.named import sql

# Any constant will do; it only has to be the same in every process of this product.
_PLAN_KEY = 7_405_206_107
# 500 notices are planned in some 80 ms (2026-11-22); vends and ingest wait for none of the rows.
PLAN_MOST = 500
ID_MAX = 2**63 - 1
# Who asks for a dead message to be tried again gets a day of tries.
RETRY_LIFE_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A delivery claimed for one try; `claimed` fences: only this try may write its end."""

    id: int
    claimed: int
    attempts: int
    notice_id: int
    address: str
    language: str
    message_id: str
    expires_at: datetime
    last_error: str | None
    kind: str
    facts: dict[str, object] = field(repr=False)
    body: str | None = field(repr=False)
    created_at: datetime
    account_number: str

    def render(self, channel: Channel, calendar: LocalCalendar) -> Rendered:
        """Put the notice into words for its reader.

        Raises: NoticeError when its facts cannot be read.
        """
        return _words(self.kind, self.facts, self.body, Language(self.language), channel, self.account_number, calendar)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedNotice:
    """A notice as a person reads it in a list."""

    id: int
    kind: str
    created_at: datetime
    subject: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRow:
    """One way of a notice with its state; `last_error` is the reason of one that was skipped."""

    id: int
    notice_id: int
    channel: str
    address: str | None
    language: str
    state: str
    attempts: int
    next_try_at: datetime
    last_error: str | None
    message_id: str
    sent_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadDelivery:
    """A message that could not be delivered."""

    id: int
    notice_id: int
    account_number: str
    kind: str
    channel: str
    address: str
    attempts: int
    last_error: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCount:
    """How many messages of a channel are in a state, since when; skipped ones by reason."""

    channel: str
    state: str
    reason: str | None
    count: int
    oldest_at: datetime


async def write_notice(conn: AsyncConnection, account_id: int, facts: Facts) -> int:
    """Write a notice in the transaction of its cause; return its id."""
    (notice_id,) = await write_notices(conn, [(account_id, facts)])
    return notice_id


async def write_notices(conn: AsyncConnection, notices: Sequence[tuple[int, Facts]]) -> list[int]:
    """Write notices, by account, in the transaction of their causes; return their ids in order."""
    cursor = await send_notices(conn, notices)
    return sorted(row[0] for row in await cursor.fetchall())


async def send_notices(conn: AsyncConnection, notices: Sequence[tuple[int, Facts]]) -> AsyncCursor:
    """Send the statement of `write_notices`; in a pipeline its outcome is known when that has ended."""
    parameters = {
        "account_ids": [account_id for account_id, _ in notices],
        "kinds": [facts.kind.value for _, facts in notices],
        "facts": [Jsonb(facts.to_json()) for _, facts in notices],
    }
    return await conn.execute(sql("write_notices"), parameters)


async def write_answer(
    conn: AsyncConnection, account_id: int, facts: Facts, *, contact_id: int, language: Language | None = None
) -> int:
    """Write a notice for the contact that has asked for it, and for no other; return its id.

    It is in the language of the contact, or in that of the question.
    """
    parameters = {
        "account_id": account_id,
        "kind": facts.kind.value,
        "facts": Jsonb(facts.to_json()),
        "contact_id": contact_id,
        "language": None if language is None else language.value,
    }
    cursor = await conn.execute(sql("write_answer"), parameters)
    row = await cursor.fetchone()
    assert row is not None, "write_answer returns an id"
    return int(row[0])


async def plan_notices(conn: AsyncConnection, rules: DeliveryRules, *, domain: str, now_ms: int) -> int:
    """Give up to `PLAN_MOST` notices their way; return how many, 0 also while another process plans.

    `domain` is the right side of message ids.
    """
    async with conn.transaction():
        cursor = await conn.execute(sql("plan_alone"), {"key": _PLAN_KEY})
        if await cursor.fetchone() != (True,):
            return 0
        async with conn.cursor(row_factory=dict_row) as rows:
            await rows.execute(sql("notices_to_plan"), {"most": PLAN_MOST})
            found = await rows.fetchall()
        if found:
            await _plan(conn, found, rules, domain, now_ms)
        return len(found)


async def claim_deliveries(
    conn: AsyncConnection, channel: Channel, *, most: int, now_ms: int, until_ms: int
) -> list[Claimed]:
    """Claim what is due on a channel; claims that are not ended until `until_ms` are due again."""
    parameters = {"channel": channel.value, "most": most, "now": from_ms(now_ms), "until": from_ms(until_ms)}
    async with conn.cursor(row_factory=class_row(Claimed)) as cursor:
        await cursor.execute(sql("claim_deliveries"), parameters)
        return await cursor.fetchall()


async def end_sent(conn: AsyncConnection, claimed: Claimed, *, now_ms: int) -> None:
    """Note that a try has succeeded."""
    await conn.execute(sql("delivery_sent"), {**_fence(claimed), "now": from_ms(now_ms)})


async def end_later(conn: AsyncConnection, claimed: Claimed, *, next_try_ms: int, error: str) -> None:
    """Note that a try has failed, and when the next one is due."""
    await conn.execute(sql("delivery_later"), {**_fence(claimed), "next_try": from_ms(next_try_ms), "error": error})


async def put_back(conn: AsyncConnection, claimed: Claimed, *, next_try_ms: int) -> None:
    """Give a claim back without a try."""
    await conn.execute(sql("delivery_put_back"), {**_fence(claimed), "next_try": from_ms(next_try_ms)})


async def end_dead(conn: AsyncConnection, claimed: Claimed, *, error: str, contact_fails: bool, now_ms: int) -> None:
    """Note that tries have ended without success; the notice is planned again, for its second channel."""
    parameters = {**_fence(claimed), "error": error, "contact_fails": contact_fails, "now": from_ms(now_ms)}
    await conn.execute(sql("delivery_dead"), parameters)


async def list_notices(
    conn: AsyncConnection,
    account_id: int,
    *,
    language: Language,
    calendar: LocalCalendar,
    before_id: int = ID_MAX,
    limit: int = 50,
    show_tokens: bool = False,
) -> list[ListedNotice]:
    """Read what an account's consumer was told, newest first, in a language; tokens masked unless asked for."""
    parameters = {"account_id": account_id, "before_id": before_id, "most": limit}
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("notices_of_account"), parameters)
        return [_listed(row, language, calendar, show_tokens=show_tokens) async for row in cursor]


async def deliveries_of(conn: AsyncConnection, notice_ids: Sequence[int]) -> dict[int, list[DeliveryRow]]:
    """Read every way of some notices with its state, by notice."""
    found: dict[int, list[DeliveryRow]] = {notice_id: [] for notice_id in notice_ids}
    async with conn.cursor(row_factory=class_row(DeliveryRow)) as cursor:
        await cursor.execute(sql("deliveries_of_notices"), {"notice_ids": list(notice_ids)})
        async for row in cursor:
            found[row.notice_id].append(row)
    return found


async def dead_deliveries(conn: AsyncConnection, *, before_id: int = ID_MAX, limit: int) -> list[DeadDelivery]:
    """Read the messages that could not be delivered, newest first."""
    async with conn.cursor(row_factory=class_row(DeadDelivery)) as cursor:
        await cursor.execute(sql("dead_deliveries"), {"before_id": before_id, "most": limit})
        return await cursor.fetchall()


async def retry_dead(conn: AsyncConnection, ids: Sequence[int], *, now_ms: int) -> list[int]:
    """Try dead messages again, under their message ids; return which of them will be."""
    parameters = {"ids": list(ids), "now": from_ms(now_ms), "expires": from_ms(now_ms + RETRY_LIFE_MS)}
    cursor = await conn.execute(sql("retry_dead"), parameters)
    return sorted(row[0] for row in await cursor.fetchall())


async def delivery_states(conn: AsyncConnection) -> list[StateCount]:
    """Count messages by channel and state."""
    async with conn.cursor(row_factory=class_row(StateCount)) as cursor:
        await cursor.execute(sql("delivery_states"))
        return await cursor.fetchall()


async def unplanned(conn: AsyncConnection) -> tuple[int, datetime | None]:
    """Count notices that wait for their way, and tell since when."""
    cursor = await conn.execute(sql("notices_unplanned"))
    row = await cursor.fetchone()
    assert row is not None, "notices_unplanned returns one row"
    return row[0], row[1]


async def _plan(
    conn: AsyncConnection, found: Sequence[dict[str, Any]], rules: DeliveryRules, domain: str, now_ms: int
) -> None:
    """Add the deliveries of notices, under the planning lock."""
    contacts, askers = await _contacts(conn, found)
    tried = await _tried(conn, [row["id"] for row in found])
    today = await _today(conn, {row["account_id"] for row in found}, rules.calendar, now_ms)
    planned: list[tuple[Planned, int, KindRule]] = []
    for row in found:
        rule = rule_of(row["kind"])
        if rule is None:
            # Of a newer version that runs beside this one; it is in the app's list all the same.
            continue
        waiting = Waiting(
            id=row["id"],
            rule=rule,
            created_ms=to_ms(row["created_at"]),
            asked_by=_asker(askers.get(row["contact_id"]), row["language"]),
            tried=tried[row["id"]],
        )
        sent_today = today[row["account_id"]]
        for way in plan(waiting, contacts[row["consumer_id"]], sent_today, rules, now_ms):
            planned.append((way, row["account_id"], rule))
            if way.skipped is None and rule.capped:
                sent_today[way.channel] += 1
    await _add(conn, planned, domain, now_ms)
    under_way = [way.notice_id for way, _, _ in planned if way.skipped is None]
    ids = [row["id"] for row in found]
    await conn.execute(sql("notices_planned"), {"ids": ids, "under_way": under_way, "now": from_ms(now_ms)})


def _asker(contact: Contact | None, language: str | None) -> Contact | None:
    """Return who has asked, to be answered in the language of the question."""
    return contact if contact is None or language is None else replace(contact, language=Language(language))


async def _contacts(
    conn: AsyncConnection, found: Sequence[dict[str, Any]]
) -> tuple[dict[int, list[Contact]], dict[int, Contact]]:
    """Return the contacts of consumers, and those that have asked for something by their id."""
    asked = {row["contact_id"] for row in found if row["contact_id"] is not None}
    by_consumer: dict[int, list[Contact]] = defaultdict(list)
    by_id: dict[int, Contact] = {}
    parameters = {"consumer_ids": sorted({row["consumer_id"] for row in found}), "ids": sorted(asked)}
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("contacts_to_plan"), parameters)
        async for row in cursor:
            contact = Contact(
                id=row["id"],
                channel=Channel(row["channel"]),
                address=row["address"],
                language=Language(row["language"]),
                priority=row["priority"],
                verified=row["verified"],
                failing=row["failing"],
                stopped=row["stopped"],
            )
            by_consumer[row["consumer_id"]].append(contact)
            by_id[contact.id] = contact
    return by_consumer, by_id


async def _tried(conn: AsyncConnection, notice_ids: Sequence[int]) -> dict[int, dict[Channel, DeliveryState]]:
    tried: dict[int, dict[Channel, DeliveryState]] = defaultdict(dict)
    cursor = await conn.execute(sql("deliveries_tried"), {"notice_ids": list(notice_ids)})
    for notice_id, channel, state in await cursor.fetchall():
        tried[notice_id][Channel(channel)] = DeliveryState(state)
    return tried


async def _today(
    conn: AsyncConnection, account_ids: Iterable[int], calendar: LocalCalendar, now_ms: int
) -> dict[int, dict[Channel, int]]:
    since = from_ms(calendar.midnight_ms(calendar.day_of(now_ms)))
    today: dict[int, dict[Channel, int]] = defaultdict(lambda: defaultdict(int))
    cursor = await conn.execute(sql("deliveries_today"), {"account_ids": sorted(account_ids), "since": since})
    for account_id, channel, count in await cursor.fetchall():
        today[account_id][Channel(channel)] = count
    return today


async def _add(
    conn: AsyncConnection, planned: Sequence[tuple[Planned, int, KindRule]], domain: str, now_ms: int
) -> None:
    if not planned:
        return
    ways = [way for way, _, _ in planned]
    parameters = {
        "notice_ids": [way.notice_id for way in ways],
        "account_ids": [account_id for _, account_id, _ in planned],
        "channels": [way.channel.value for way in ways],
        "contact_ids": [way.contact.id if way.contact else None for way in ways],
        "addresses": [way.contact.address if way.contact else None for way in ways],
        "languages": [(way.contact.language if way.contact else Language.ENGLISH).value for way in ways],
        "states": [(DeliveryState.SKIPPED if way.skipped else DeliveryState.PENDING).value for way in ways],
        "ranks": [rule.rank.value for _, _, rule in planned],
        "cappeds": [rule.capped for _, _, rule in planned],
        "next_tries": [from_ms(way.next_try_ms) for way in ways],
        "expiries": [from_ms(way.expires_ms) for way in ways],
        "skips": [way.skipped.value if way.skipped else None for way in ways],
        "message_ids": [f"notice-{way.notice_id}-{way.channel.value}@{domain}" for way in ways],
        "now": from_ms(now_ms),
    }
    await conn.execute(sql("add_deliveries"), parameters)


def _fence(claimed: Claimed) -> dict[str, object]:
    return {"id": claimed.id, "claimed": claimed.claimed}


def _listed(row: dict[str, Any], language: Language, calendar: LocalCalendar, *, show_tokens: bool) -> ListedNotice:
    # A row of `notices_of_account`: its columns are typed by the migration.
    try:
        words = _words(
            row["kind"],
            row["facts"],
            row["body"],
            language,
            Channel.APP,
            row["account_number"],
            calendar,
            masked=not show_tokens,
        )
    except NoticeError:
        # Of a newer version that runs beside this one: there, but without words.
        words = Rendered(subject=row["kind"], body="")
    return ListedNotice(
        id=row["id"], kind=row["kind"], created_at=row["created_at"], subject=words.subject, body=words.body
    )


def _words(
    kind: str,
    stored: dict[str, object],
    body: str | None,
    language: Language,
    channel: Channel,
    account: str,
    calendar: LocalCalendar,
    *,
    masked: bool = False,
) -> Rendered:
    """Put a stored notice into words: its facts, or the sentence that an earlier version wrote."""
    if not stored and body is not None:
        return render_written(body, language=language, channel=channel, account=account)
    facts = read_facts(kind, stored)
    return render(
        facts.masked() if masked else facts, language=language, channel=channel, account=account, calendar=calendar
    )
