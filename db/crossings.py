"""Crossings of a whole batch: what `db.posting.post_readings` writes account by account, in a few statements for all.

Stage: inside a batch's transaction. Takes accounts as their shard's owner knows them; they are locked, and those whose
version is still the known one need no look: nothing that their balance depends on has changed since. Writes raised
levels, alarms, orders, notices and feed rows of accounts whose readings moved nothing that is closed. A test proves
that it leaves what `post_readings` would, but for the numbers of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from psycopg import AsyncConnection, AsyncCursor

from billing.calendar import LocalCalendar, from_ms
from billing.notices import Facts
from billing.supply import Decision, LevelName, Levels, Raised, Supply, decide, is_exhausted
from billing.supply_policy import Scheme
from db.accounts import AccountView, OpenOrder
from db.further_levels import save_further_levels
from db.named import sql
from db.notices import send_notices
from db.orders import PostingRules, SupplyStep, notices_of, recharge_to_restore, supply_step, threatens
from db.prepayment import Prepayment, prepayments_from_rows

_SUPPLY = "supply"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """An account at its latest reading: all that tells whether it crosses a level.

    Units: balance in minor units at money time; `read_ms` is the latest point of its curve, UTC milliseconds.
    """

    account_id: int
    version: int
    shard: int
    meter_id: int
    levels: Levels
    scheme: Scheme
    balance_minor: int
    read_ms: int
    relay: Supply | None

    @staticmethod
    def of(view: AccountView, calendar: LocalCalendar) -> Standing:
        """Return where an account stands that was looked at."""
        return Standing(
            account_id=view.id,
            version=view.version,
            shard=view.shard,
            meter_id=view.meter.id,
            levels=view.levels,
            scheme=view.scheme,
            balance_minor=view.balance_minor(calendar),
            read_ms=view.points[-1].at_ms,
            relay=view.meter.relay,
        )

    @property
    def may_be_threatened(self) -> bool:
        """Tell whether the consumer may have to be told what restores supply."""
        return self.levels.desired is not Supply.OFF and is_exhausted(self.levels, self.balance_minor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """One locked account, and what its balance changes."""

    standing: Standing
    number: str
    open_order: OpenOrder | None
    # Of orders of the meter that are open; None where that was not read.
    open_kinds: frozenset[str] | None
    decision: Decision
    step: SupplyStep

    @property
    def warned(self) -> Raised | None:
        """Return the warning that rings at the meter, of several the lowest."""
        low = [raised for raised in self.decision.raised if raised.level is LevelName.LOW]
        return min(low, key=lambda raised: raised.level_minor, default=None)

    @property
    def version(self) -> int:
        """The account's version when the crossing is written."""
        return self.standing.version + (self.decision.levels != self.standing.levels)

    @property
    def is_ordered(self) -> bool:
        """Tell whether the crossing makes an order of supply."""
        return self.step in (SupplyStep.ORDER, SupplyStep.ORDER_HELD)

    @property
    def told(self) -> Supply | None:
        """What the meter is told by the order that is open then, None without one."""
        if self.is_ordered:
            return self.decision.levels.desired
        return self.open_order.relay if self.open_order else None

    @property
    def held(self) -> bool:
        """Tell whether that order waits for a word of the meter."""
        if self.is_ordered:
            return self.step is SupplyStep.ORDER_HELD
        return self.open_order is not None and self.open_order.held and self.step is not SupplyStep.RELEASE


@dataclass(slots=True, kw_only=True)
class Claim:
    """Statements that lock accounts and read what their owner cannot know; answered when the pipeline has ended."""

    standings: Mapping[int, Standing]
    locking: AsyncCursor
    orders: AsyncCursor | None
    prepaying: AsyncCursor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """Locked accounts, and of those that are as they were known what their owner could not know."""

    free: frozenset[int]
    numbers: Mapping[int, str]
    open_kinds: Mapping[int, frozenset[str]]
    open_orders: Mapping[int, OpenOrder]
    prepayments: Mapping[int, Prepayment]


NOTHING_CLAIMED = Claimed(free=frozenset(), numbers={}, open_kinds={}, open_orders={}, prepayments={})


@dataclass(slots=True, kw_only=True)
class Written:
    """Crossings on their way; `orders_of` is known when the pipeline has ended."""

    crossings: Sequence[Crossing]
    ordering: AsyncCursor | None = None

    async def open_orders(self) -> dict[int, OpenOrder]:
        """Return the open supply order that each account has now, by account; those without are left out."""
        rows = await self.ordering.fetchall() if self.ordering else []
        made = {meter_id: order_id for meter_id, kind, order_id, _ in rows if kind == _SUPPLY}
        found: dict[int, OpenOrder] = {}
        for each in self.crossings:
            if each.told is not None:
                known_id = each.open_order.id if each.open_order else 0
                order_id = made[each.standing.meter_id] if each.is_ordered else known_id
                found[each.standing.account_id] = OpenOrder(id=order_id, relay=each.told, held=each.held)
        return found


@dataclass(slots=True, kw_only=True)
class _Orders:
    """Orders of several kinds, of a meter at most one of each, in the order in which they get their epochs."""

    crossings: list[Crossing] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def add(self, kind: str, crossings: Iterable[Crossing]) -> None:
        for crossing in crossings:
            self.crossings.append(crossing)
            self.kinds.append(kind)


async def send_claim(conn: AsyncConnection, ids: Sequence[int], standings: Mapping[int, Standing]) -> Claim:
    """Lock those of the accounts that nobody holds, never waiting; to be sent in a pipeline.

    `standings` has those that may be as their owner knows them.
    """
    locking = await conn.execute(sql("claim_accounts"), {"ids": list(ids)})
    orders = prepaying = None
    if standings:
        meter_ids = [standing.meter_id for standing in standings.values()]
        orders = await conn.execute(sql("orders_open_at"), {"meter_ids": meter_ids})
    exhausted = [each.account_id for each in standings.values() if each.may_be_threatened]
    if exhausted:
        prepaying = await conn.execute(sql("prepayments_of"), {"ids": exhausted, "days": [None] * len(exhausted)})
    return Claim(standings=standings, locking=locking, orders=orders, prepaying=prepaying)


async def take_claim(claim: Claim) -> Claimed:
    """Read what a claim has found, once its pipeline has ended."""
    locked = {account_id: (number, version) for account_id, number, version in await claim.locking.fetchall()}
    known = {
        account_id: number
        for account_id, (number, version) in locked.items()
        if account_id in claim.standings and claim.standings[account_id].version == version
    }
    rows = await claim.orders.fetchall() if claim.orders else []
    open_kinds: dict[int, set[str]] = {account_id: set() for account_id in known}
    for account_id, kind, *_ in rows:
        open_kinds.setdefault(account_id, set()).add(kind)
    return Claimed(
        free=frozenset(locked),
        numbers=known,
        open_kinds={account_id: frozenset(kinds) for account_id, kinds in open_kinds.items()},
        open_orders={
            account_id: OpenOrder(id=order_id, relay=Supply(relay), held=state == "held")
            for account_id, kind, order_id, relay, state in rows
            if kind == _SUPPLY
        },
        prepayments=prepayments_from_rows(await claim.prepaying.fetchall()) if claim.prepaying else {},
    )


def decide_known(standing: Standing, claimed: Claimed, *, rules: PostingRules, now_ms: int) -> Crossing:
    """Compare a locked account, which is as its owner knows it, with its levels."""
    account_id = standing.account_id
    return _decide(
        standing,
        number=claimed.numbers[account_id],
        open_order=claimed.open_orders.get(account_id),
        open_kinds=claimed.open_kinds[account_id],
        rules=rules,
        now_ms=now_ms,
    )


def decide_looked_at(view: AccountView, *, rules: PostingRules, now_ms: int) -> Crossing:
    """Compare an account that was looked at under its lock with its levels."""
    standing = Standing.of(view, rules.calendar)
    return _decide(
        standing, number=view.number, open_order=view.open_order, open_kinds=None, rules=rules, now_ms=now_ms
    )


def _decide(
    standing: Standing,
    *,
    number: str,
    open_order: OpenOrder | None,
    open_kinds: frozenset[str] | None,
    rules: PostingRules,
    now_ms: int,
) -> Crossing:
    # A reading never lifts a level's arm.
    decision = decide(
        standing.levels,
        standing.balance_minor,
        may_rearm=False,
        scheme=standing.scheme,
        now_ms=now_ms,
        calendar=rules.calendar,
    )
    step = supply_step(
        decision.levels,
        open_order=open_order,
        relay=standing.relay,
        read_ms=standing.read_ms,
        rules=rules,
        now_ms=now_ms,
    )
    return Crossing(
        standing=standing,
        number=number,
        open_order=open_order,
        open_kinds=open_kinds,
        decision=decision,
        step=step,
    )


async def send_crossings(
    conn: AsyncConnection,
    crossings: Sequence[Crossing],
    prepayments: Mapping[int, Prepayment],
    *,
    cause: str,
    now_ms: int,
) -> Written:
    """Let locked accounts catch up with their readings: alarms, supply; to be sent in a pipeline.

    Rows stay as they are where nothing changes. `prepayments` has the accounts that are told what restores supply.
    """
    orders = _Orders()
    # In this order: of the orders of one meter the later one has the higher epoch.
    orders.add("alarm", [each for each in crossings if each.warned])
    orders.add(_SUPPLY, [each for each in crossings if each.is_ordered])
    released = [each for each in crossings if each.step is SupplyStep.RELEASE]
    await _save_levels(conn, [each for each in crossings if each.decision.levels != each.standing.levels])
    await _add_alarms(conn, [(each, raised) for each in crossings for raised in each.decision.raised])
    ordering = await _add_orders(conn, orders, cause)
    if released:
        ids = [each.open_order.id for each in released if each.open_order]
        await conn.execute(sql("release_orders"), {"ids": ids})
    if notices := _notices(crossings, prepayments, now_ms):
        await send_notices(conn, notices)
    return Written(crossings=crossings, ordering=ordering)


async def _save_levels(conn: AsyncConnection, changed: Sequence[Crossing]) -> None:
    if not changed:
        return
    parameters = {
        "ids": [each.standing.account_id for each in changed],
        "shards": [each.standing.shard for each in changed],
        "low_raised": [each.decision.levels.low_raised for each in changed],
        "exhausted_raised": [each.decision.levels.exhausted_raised for each in changed],
        "exhausted_ats": [
            None if at_ms is None else from_ms(at_ms)
            for at_ms in (each.decision.levels.exhausted_at_ms for each in changed)
        ],
        "desired": [each.decision.levels.desired.value for each in changed],
    }
    await conn.execute(sql("save_levels"), parameters)
    levels = {each.standing.account_id: (each.standing.levels, each.decision.levels) for each in changed}
    await save_further_levels(conn, levels)


async def _add_alarms(conn: AsyncConnection, alarms: Sequence[tuple[Crossing, Raised]]) -> None:
    if not alarms:
        return
    parameters = {
        "ids": [crossing.standing.account_id for crossing, _ in alarms],
        "levels": [raised.level.value for _, raised in alarms],
        "ns": [raised.n for _, raised in alarms],
        "arms": [raised.arm for _, raised in alarms],
        "level_minors": [raised.level_minor for _, raised in alarms],
        "balance_minors": [crossing.standing.balance_minor for crossing, _ in alarms],
    }
    await conn.execute(sql("add_alarms"), parameters)


async def _add_orders(conn: AsyncConnection, orders: _Orders, cause: str) -> AsyncCursor | None:
    """Send the statements; the cursor has meters and ids of their supply orders when the pipeline has ended."""
    made, kinds = orders.crossings, orders.kinds
    if not made:
        return None
    parameters = {
        "meter_ids": [each.standing.meter_id for each in made],
        "kinds": kinds,
        "ids": [each.standing.account_id for each in made],
        "shards": [each.standing.shard for each in made],
        "relays": [
            each.decision.levels.desired.value if kind == _SUPPLY else None
            for each, kind in zip(made, kinds, strict=True)
        ],
        "limits_w": [
            each.standing.scheme.limit_w if kind == _SUPPLY and each.decision.levels.desired is Supply.LIMITED else None
            for each, kind in zip(made, kinds, strict=True)
        ],
        "cause": cause,
        "balance_minors": [each.standing.balance_minor for each in made],
        "threshold_minors": [each.decision.levels.threshold_minor for each in made],
        "states": [
            "held" if kind == _SUPPLY and each.step is SupplyStep.ORDER_HELD else "pending"
            for each, kind in zip(made, kinds, strict=True)
        ],
    }
    older = [
        (each.standing.meter_id, kind)
        for each, kind in zip(made, kinds, strict=True)
        if each.open_kinds is None or kind in each.open_kinds
    ]
    if older:
        meter_ids, of_kinds = (list(column) for column in zip(*older, strict=True))
        await conn.execute(sql("supersede_many"), {"meter_ids": meter_ids, "kinds": of_kinds})
    return await conn.execute(sql("add_orders"), parameters)


def _notices(
    crossings: Sequence[Crossing], prepayments: Mapping[int, Prepayment], now_ms: int
) -> list[tuple[int, Facts]]:
    """Return what consumers are told, by account."""
    notices: list[tuple[int, Facts]] = []
    for each in crossings:
        account_id, decision, balance_minor = each.standing.account_id, each.decision, each.standing.balance_minor
        restores_minor = 0
        if threatens(decision):
            restores_minor = recharge_to_restore(decision.levels, balance_minor, prepayments[account_id])
        told = notices_of(
            decision,
            balance_minor,
            restores_minor=restores_minor,
            now_ms=now_ms,
            limit_w=each.standing.scheme.limit_w or 0,
        )
        notices += [(account_id, facts) for facts in told]
    return notices
