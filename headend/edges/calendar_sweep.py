"""The calendar's edges: exhausted accounts that are still supplied are looked at again when their time has come.

Stage: beside ingest, between batches. A window that opens, a local midnight that ends days of grace, a hold that ends
and new supply rules act without a reading and without a posting. The accounts are read from the database, page by
page, so that a city's protected consumers do not stall its readings; each page is a transaction of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import structlog
from psycopg import AsyncConnection

from billing.calendar import from_ms
from billing.supply_policy import Scheme, SupplyRules, may_cut, next_cut_ms
from db.accounts import look
from db.batches import ask_recheck
from db.crossings import decide_looked_at, send_claim, send_crossings, take_claim
from db.orders import PostingRules, threatens
from db.posting import may_move_closed_edges
from db.prepayment import prepayments_of
from db.supply_holds import any_hold_ended
from db.supply_rules import exhausted_and_off, exhausted_and_on, rules_in_force

_log = structlog.get_logger("calendar")

# Looking at 500 accounts and cutting them all takes some 0.3 s, for which readings wait.
ACCOUNTS_A_PAGE = 500
# Schemes are asked this often, in microseconds each; rules and holds are rows, and are read a tenth as often.
CHECK_MS = 1_000
READ_MS = 10_000
# Accounts are read with what holds by the database's clock, which may be behind ours: each edge is acted on once more
# this long after it.
CLOCK_SLACK_MS = 60_000


class _Find(Protocol):
    async def __call__(self, conn: AsyncConnection, shard: int, *, after: int, most: int) -> list[int]: ...


class CalendarSweep:
    """Goes through the exhausted accounts of owned shards whenever the calendar may have changed what they should have.

    Invariants: everything up to `_checked_ms` has been acted on, or is being: its shards are in `_left`.
    """

    def __init__(self, rules: PostingRules) -> None:
        self._rules = rules
        self._in_force: SupplyRules | None = None
        self._checked_ms = 0
        self._read_ms = 0
        self._left: dict[int, int] = {}
        # New rules may also give supply back: then those that are cut off are gone through as well.
        self._off_left: dict[int, int] = {}

    def begin_anew(self) -> None:
        """Forget how far the calendar was followed, and by which rules: of shards taken over it is not known."""
        self._checked_ms = 0
        self._in_force = None

    def take_over(self, shards: Collection[int]) -> None:
        """Go through shards taken over beside others: of those it is not known how far the calendar was followed."""
        self._left |= dict.fromkeys(shards, 0)
        self._off_left |= dict.fromkeys(shards, 0)

    async def step(self, conn: AsyncConnection, shards: Collection[int]) -> bool:
        """Do what is due, a page at most; return whether new rules hold, which make known accounts old.

        The first rules that are read are new ones: accounts may have been read before them, or acted on under others.
        """
        now_ms = self._rules.clock()
        renewed = False
        # A clock that was set back begins anew.
        if not 0 <= now_ms - self._checked_ms < CHECK_MS:
            due, renewed = await self._is_due(conn, now_ms)
            self._checked_ms = now_ms
            if due:
                self._left = dict.fromkeys(shards, 0)
            if renewed:
                self._off_left = dict.fromkeys(shards, 0)
        if self._left:
            await self._page(conn, shards, self._left, exhausted_and_on)
        elif self._off_left:
            await self._page(conn, shards, self._off_left, exhausted_and_off)
        return renewed

    async def _is_due(self, conn: AsyncConnection, now_ms: int) -> tuple[bool, bool]:
        calendar, before_ms = self._rules.calendar, self._checked_ms
        today = calendar.day_of(now_ms)
        # Two stretches of time: the last one, and the same a minute ago.
        stretches = [(max(0, before_ms - slack_ms), now_ms - slack_ms) for slack_ms in (0, CLOCK_SLACK_MS)]
        due = now_ms < before_ms or any(calendar.day_of(first) != calendar.day_of(last) for first, last in stretches)
        renewed = False
        if due or now_ms - self._read_ms >= READ_MS or self._in_force is None:
            rules = await rules_in_force(conn, today)
            renewed = rules is not self._in_force
            due |= renewed
            since_ms = max(self._read_ms - CLOCK_SLACK_MS, 0)
            due |= await any_hold_ended(conn, since=from_ms(since_ms), until=from_ms(now_ms))
            self._in_force, self._read_ms = rules, now_ms
        opened = (
            self._has_opened(scheme, first, last) for scheme in self._in_force.schemes for first, last in stretches
        )
        return due or any(opened), renewed

    def _has_opened(self, scheme: Scheme, before_ms: int, now_ms: int) -> bool:
        calendar = self._rules.calendar
        if may_cut(scheme, before_ms, calendar):
            return False
        opens_ms = next_cut_ms(scheme, before_ms, calendar)
        return opens_ms is not None and opens_ms <= now_ms

    async def _page(self, conn: AsyncConnection, shards: Collection[int], left: dict[int, int], find: _Find) -> None:
        """Look at the next accounts of one shard that is still ours; shards without any are passed over."""
        ids: list[int] = []
        while left and not ids:
            shard, after = next(iter(left.items()))
            ids = await find(conn, shard, after=after, most=ACCOUNTS_A_PAGE) if shard in shards else []
            if ids:
                changed = await look_again(conn, ids, self._rules)
                left[shard] = ids[-1]
                if changed:
                    _log.info("calendar_acted", shard=shard, accounts=changed)
            if len(ids) < ACCOUNTS_A_PAGE:
                del left[shard]


async def look_again(conn: AsyncConnection, ids: list[int], rules: PostingRules) -> int:
    """Look at accounts under their locks, in one transaction, and write what their levels ask for now.

    Accounts that somebody else holds, or whose readings may move what is closed, become rechecks. Returns how many
    supplies change.
    """
    now_ms = rules.clock()
    async with conn.transaction():
        claimed = await take_claim(await send_claim(conn, ids, {}))
        views = await look(conn, sorted(claimed.free), rules.calendar)
        later = {view.id for view in views.values() if may_move_closed_edges(view, None, rules.calendar)}
        crossings = [
            decide_looked_at(view, rules=rules, now_ms=now_ms)
            for account_id, view in sorted(views.items())
            if account_id not in later
        ]
        told = [each.standing.account_id for each in crossings if threatens(each.decision)]
        prepayments = await prepayments_of(conn, dict.fromkeys(told)) if told else {}
        for account_id in sorted((set(ids) - claimed.free) | later):
            await ask_recheck(conn, account_id)
        async with conn.pipeline():
            await send_crossings(conn, crossings, prepayments, cause="calendar", now_ms=now_ms)
    return sum(each.decision.supply is not None for each in crossings)
