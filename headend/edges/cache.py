"""Meter states of the shards a process owns: loaded when first needed, refreshed by the change feed.

Stage: beside ingest, between batches. A state is taken over from a plan only after its commit and dropped when a
commit failed or its outcome is unknown; what the feed names is read again, by version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from datetime import date

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms
from billing.supply import Supply, decide, is_exhausted
from db.accounts import AccountView, look
from db.leases import Lease
from db.named import sql
from db.orders import wall_ms
from db.posting import silent_over_part_end
from db.validation_rules import validation_document
from headend.charge_table import ChargeTable
from headend.pipeline import Plan
from headend.rule_document import parse_validation_rules
from headend.rules import BUILTIN_RULES, ValidationRules
from headend.state import AccountState, MeterState, RegisterSegment

# 5,000 looks take under 3 s even over a year of partitions: well inside lease and statement time-out. What is left of
# a longer backlog (an import, a close-day while ingest was down) is no longer newer at the next refresh.
ACCOUNTS_PER_REFRESH = 5_000
# New validation rules hold ten seconds after they were added, or after the midnight from which they are to.
RULES_READ_MS = 10_000


class StateCache:
    """Meter states by serial.

    Invariants: holds only meters of owned shards; `feed_from` is a transaction before which every change has been
    read and every account that it brought below a level has been looked at.
    """

    def __init__(
        self,
        calendar: LocalCalendar,
        clock: Callable[[], int] = wall_ms,
        validation: ValidationRules = BUILTIN_RULES,
    ) -> None:
        self._calendar = calendar
        self._clock = clock
        self._validation = validation
        self._rules_read_ms = 0
        self._table = ChargeTable(calendar)
        self._serial_of: dict[int, str] = {}
        self._feed_from = 0
        self._feed_read = 0
        self._left = 0
        self._refreshed: dict[str, int] = {}

    def own(self, leases: Iterable[Lease]) -> None:
        """Start with newly taken leases: nothing is known of their meters, the feed goes on where the last owner stood.

        Where we already read for other shards and stood further back, it goes on there. What is known of those stays:
        the feed is read again by version.
        """
        taken = list(leases)
        self.leave({lease.shard for lease in taken})
        stood = [self._feed_from] if self._feed_from else []
        self._feed_from = self._feed_read = min([*stood, *(lease.feed_from for lease in taken)])

    def leave(self, shards: Set[int]) -> None:
        """Forget the meters of shards that are not ours any more: nobody tells us of their changes."""
        for serial in [serial for serial in self._table.place_of if self._table.kept(serial).shard in shards]:
            account_id = self._table.kept(serial).account.id
            if self._serial_of.get(account_id) == serial:
                del self._serial_of[account_id]
            self._table.drop(serial)

    def clear(self) -> None:
        """Forget all states; what the last refresh read of the feed is read again, since it may not be settled."""
        self._table = ChargeTable(self._calendar)
        self._serial_of.clear()
        self._feed_read = self._feed_from

    @property
    def table(self) -> ChargeTable:
        """What is known, by serial and as columns."""
        return self._table

    def adopt(self, made: Plan) -> None:
        """Take over the states of a plan that was committed, or is being; forget those that the database has to tell.

        Whoever adopts before the commit clears when it fails.
        """
        for state in made.states.values():
            self._table.put(self._ruled(state))
        if made.ordinary is not None:
            moved = made.ordinary
            self._table.move_marks(moved.places, moved.mark_ms, moved.mark_wh, moved.still_ms)
        for serial in made.stale_serials:
            self._table.drop(serial)

    def amend(self, accounts: Mapping[str, AccountState]) -> None:
        """Take over accounts, by serial, whose crossings were committed; their meters' marks stay where they are."""
        for serial, account in accounts.items():
            self._table.amend(serial, account)

    def put(self, state: MeterState) -> None:
        """Know a meter's state as the database has it at the moment: but for how long its register stands still."""
        known = self._table.get(state.serial)
        if known is not None and (known.mark_ms, known.mark_wh) == (state.mark_ms, state.mark_wh):
            state = replace(state, still_ms=max(state.still_ms, known.still_ms))
        before = self._serial_of.get(state.account.id, state.serial)
        if before != state.serial:
            # Another meter stands there now: what the old one goes on saying is no longer this account's.
            self._table.drop(before)
        self._table.put(self._ruled(state))
        self._serial_of[state.account.id] = state.serial

    async def load(self, conn: AsyncConnection, serials: Iterable[str]) -> None:
        """Read the states of meters not known yet; unknown serials stay unknown."""
        wanted = [serial for serial in set(serials) if serial not in self._table.place_of]
        if not wanted:
            return
        cursor = await conn.execute(sql("find_meters"), {"serials": wanted})
        found = await cursor.fetchall()
        self._table.uninstalled = frozenset(serial for serial, _, _, account_id in found if account_id is None)
        await self._read(conn, [account_id for _, _, _, account_id in found if account_id is not None])

    async def forget(self, conn: AsyncConnection, serials: Iterable[str]) -> None:
        """Read the states of meters anew, whatever is known of them."""
        for serial in serials:
            self._table.drop(serial)
        await self.load(conn, serials)

    async def follow_rules(self, conn: AsyncConnection) -> bool:
        """Take over the validation rules of today, now and then; return whether they changed, and all is forgotten."""
        now_ms = self._clock()
        # A clock that was set back begins anew.
        if 0 <= now_ms - self._rules_read_ms < RULES_READ_MS:
            return False
        self._rules_read_ms = now_ms
        text = await validation_document(conn, self._calendar.day_of(now_ms))
        rules = BUILTIN_RULES if text is None else parse_validation_rules(text)
        if rules is self._validation:
            return False
        self._validation = rules
        self.clear()
        return True

    async def raise_marks(self, conn: AsyncConnection, serials: Iterable[str]) -> None:
        """Move marks to the latest stored readings, void ones too: what comes again of them is then late, and known."""
        states = [self._table[serial] for serial in serials if serial in self._table.place_of]
        parameters = {
            "meter_ids": [state.meter_id for state in states],
            "since": from_ms(min((state.mark_ms for state in states), default=0)),
        }
        cursor = await conn.execute(sql("latest_stored"), parameters)
        latest: dict[int, int] = dict(await cursor.fetchall())
        for state in states:
            stored_ms = latest.get(state.meter_id, state.mark_ms)
            if stored_ms > state.mark_ms:
                self._table.put(replace(state, mark_ms=stored_ms))

    def drop_assigned_from(self, day: date) -> int:
        """Forget accounts whose tariff or category changes with a day: their scheme is another; return how many."""
        serials = [
            serial
            for serial in self._table.place_of
            if any(each.from_day == day for each in self._table.kept(serial).account.terms.assignments)
        ]
        for serial in serials:
            self._table.drop(serial)
        return len(serials)

    async def refresh(self, conn: AsyncConnection, shards: Iterable[int]) -> list[int]:
        """Read the change feed; return the accounts that now have to be looked at under their lock.

        Every account in the feed is checked, with or without a new reading. The caller settles them before the next
        refresh, or clears.
        """
        self._feed_from = self._feed_read
        cursor = await conn.execute(sql("feed_horizon"))
        row = await cursor.fetchone()
        assert row is not None, "feed_horizon returns one row"
        cursor = await conn.execute(sql("read_feed"), {"shards": list(shards), "since": str(self._feed_from)})
        changed: dict[int, int] = dict(await cursor.fetchall())
        newer = [account_id for account_id, version in changed.items() if self._version(account_id) < version]
        part = newer[:ACCOUNTS_PER_REFRESH]
        self._left = len(newer) - len(part)
        await self._read(conn, part)
        self._refreshed = {self._serial_of[each]: each for each in part if each in self._serial_of}
        if len(part) == len(newer):
            self._feed_read = row[0]
        return sorted(account_id for account_id in part if self._needs_look(account_id))

    @property
    def refreshed(self) -> dict[str, int]:
        """The accounts that the last refresh has read again, by their meters' serials."""
        return self._refreshed

    @property
    def left(self) -> int:
        """How many changed accounts the last refresh has left to the next."""
        return self._left

    @property
    def feed_from(self) -> int:
        """The transaction from which the next refresh reads."""
        return self._feed_from

    def _version(self, account_id: int) -> int:
        serial = self._serial_of.get(account_id, "")
        return self._table.kept(serial).account.version if serial in self._table.place_of else 0

    def _needs_look(self, account_id: int) -> bool:
        state = self._table.get(self._serial_of.get(account_id, ""))
        if state is None:
            return False
        # The end of a bill part was closed as unread while the reading that tells about it was on its way.
        account = state.account
        edge_ms = self._calendar.midnight_ms(account.terms.part_at(account.checkpoint.through).first)
        read_since = account.silent and state.mark_ms >= edge_ms
        # Somebody has changed the account: what it waited for may be over, or what it was cut for.
        decision = decide(
            account.levels,
            account.balance_minor(self._calendar),
            may_rearm=False,
            scheme=account.scheme,
            now_ms=self._clock(),
            calendar=self._calendar,
        )
        return read_since or account.held or decision.levels != account.levels

    def _ruled(self, state: MeterState) -> MeterState:
        """Give a meter the rules of its make and model."""
        rules = self._validation.of(state.make, state.model)
        return state if state.rules is rules else replace(state, rules=rules)

    async def _read(self, conn: AsyncConnection, account_ids: list[int]) -> None:
        if not account_ids:
            return
        views = await look(conn, account_ids, self._calendar)
        for view in views.values():
            self.put(state_from_view(view, self._calendar))


def state_from_view(view: AccountView, calendar: LocalCalendar) -> MeterState:
    """Follow an account's curve to its mark and keep what the next reading needs."""
    segments = tuple(
        RegisterSegment(from_ms=segment.from_ms, offset_wh=segment.start_wh - segment.register_wh)
        for segment in view.meter.segments
    )
    mark_ms, mark_wh = view.mark_ms, view.mark_register_wh
    if mark_ms is None or mark_wh is None:
        mark_ms, mark_wh = view.meter.segments[-1].from_ms, view.meter.segments[-1].register_wh
    return MeterState(
        serial=view.meter.serial,
        shard=view.shard,
        meter_id=view.meter.id,
        rated_w=view.meter.rated_w,
        register_end_wh=view.meter.register_end_wh,
        installed_ms=view.meter.installed_ms,
        segments=segments,
        mark_ms=mark_ms,
        mark_wh=mark_wh,
        relay=view.meter.relay,
        relay_at_ms=view.meter.relay_at_ms,
        make=view.meter.make,
        model=view.meter.model,
        may_export=view.meter.may_export,
        account=AccountState(
            id=view.id,
            version=view.version,
            terms=view.terms,
            checkpoint=view.checkpoint,
            levels=view.levels,
            walk=view.walk(calendar),
            silent=silent_over_part_end(view, calendar),
            told=view.open_order.relay if view.open_order else None,
            held=bool(view.open_order and view.open_order.held),
            scheme=view.scheme,
            waits=_waits(view, calendar),
        ),
    )


def _waits(view: AccountView, calendar: LocalCalendar) -> bool:
    levels = view.levels
    decided = levels.exhausted_raised and levels.desired is Supply.ON
    return decided and is_exhausted(levels, view.balance_minor(calendar))
