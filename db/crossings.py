"""Crossings of a whole batch: what `db.posting.post_readings` writes account by account, in a few statements for all.

Stage: inside a batch's transaction, after the accounts were locked and looked at. Takes accounts whose readings moved
nothing that is closed; writes raised levels, alarms, orders, notices and feed rows. A test proves that it leaves what
`post_readings` would, but for the numbers of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import dict_row

from billing.calendar import LocalCalendar, from_ms
from billing.notices import NoticeKind, low_notice, restored_notice
from billing.supply import Decision, LevelName, Raised, Supply, decide
from db.accounts import AccountView, OpenOrder, look, views_from_rows
from db.named import sql
from db.orders import PostingRules, SupplyStep, cut_off_text, supply_step
from db.posting import silent_over_part_end
from db.prepayment import Prepayment, prepayments_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crossing:
    """One account at its balance, and what that changes."""

    view: AccountView
    balance_minor: int
    decision: Decision
    step: SupplyStep

    def raised(self, level: LevelName) -> Raised | None:
        """Return the alarm of a level, if it rings."""
        return next((raised for raised in self.decision.raised if raised.level is level), None)


@dataclass(slots=True, kw_only=True)
class _Orders:
    """Orders of one kind; of a meter at most one."""

    kind: str
    level: str | None
    cause: str
    crossings: list[_Crossing] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class LastReading:
    """The latest reading of an account's meter, written by this very transaction."""

    meter_id: int
    at_ms: int
    register_wh: int


async def lock_free_and_look(
    conn: AsyncConnection, ids: Sequence[int], last: Mapping[int, LastReading], calendar: LocalCalendar
) -> tuple[set[int], dict[int, AccountView]]:
    """Lock those of the accounts that nobody holds and look at them; never wait.

    Where `last` has an account's latest reading and nothing but that matters to its balance, no reading is looked up:
    one round trip instead of three, and no planning over the partitions.
    """
    async with conn.pipeline():
        locking = await conn.execute(sql("lock_free_accounts"), {"ids": list(ids)})
        looking = conn.cursor(row_factory=dict_row)
        await looking.execute(sql("look_but_readings"), {"ids": list(last)})
    free = {row[0] for row in await locking.fetchall()}
    rows = [_with_reading(row, last[row["id"]]) for row in await looking.fetchall() if row["id"] in free]
    found = await views_from_rows(conn, rows)
    views = {view.id: view for view in found.values() if _is_simple(view, last[view.id], calendar)}
    if others := sorted(free - views.keys()):
        await conn.execute(sql("plan_each"))
        views |= await look(conn, others, calendar)
    return free, views


def _with_reading(row: dict[str, Any], last: LastReading) -> dict[str, Any]:
    # A row of `look_but_readings`, to be one of `look`: its columns are typed by the migration.
    at = from_ms(last.at_ms)
    return row | {"ats": [at], "registers": [last.register_wh], "mark_at": at, "mark_register_wh": last.register_wh}


def _is_simple(view: AccountView, last: LastReading, calendar: LocalCalendar) -> bool:
    """Tell whether of all points since the checkpoint only the latest matters: inside its bill part, without zones."""
    part = view.terms.part_at(view.checkpoint.through)
    return (
        view.meter.id == last.meter_id
        and view.checkpoint.anchor.at_ms < last.at_ms < calendar.midnight_ms(part.end)
        and not part.zone_count
        and not silent_over_part_end(view, calendar)
    )


async def post_crossings(
    conn: AsyncConnection, views: Sequence[AccountView], *, rules: PostingRules, now_ms: int
) -> list[AccountView]:
    """Let locked accounts catch up with their readings: alarms, supply. Rows stay as they are where nothing changes.

    Returns the accounts as they are after the commit, so that nobody has to look at them again.
    """
    found = [_crossing(view, rules, now_ms) for view in views]
    exhausted = {each.view.id: each.view.checkpoint.through for each in found if _tells_of_cut_off(each)}
    prepayments = await prepayments_of(conn, exhausted) if exhausted else {}
    alarms = _Orders(kind="alarm", level="low", cause="alarm")
    alarms.crossings = [each for each in found if each.raised(LevelName.LOW)]
    supplies = _Orders(kind="supply", level=None, cause="reading")
    supplies.crossings = [each for each in found if each.step in (SupplyStep.ORDER, SupplyStep.ORDER_HELD)]
    released = [each for each in found if each.step is SupplyStep.RELEASE]
    async with conn.pipeline():
        await _save_levels(conn, [each for each in found if each.decision.levels != each.view.levels])
        await _add_alarms(conn, [(each, raised) for each in found for raised in each.decision.raised])
        # In this order: of the orders of one meter the later one has the higher epoch.
        await _add_orders(conn, alarms)
        ordering = await _add_orders(conn, supplies)
        if released:
            ids = [each.view.open_order.id for each in released if each.view.open_order]
            await conn.execute(sql("release_orders"), {"ids": ids})
        await _add_notices(conn, found, prepayments)
        if woken := {each.view.shard for each in (*alarms.crossings, *supplies.crossings, *released)}:
            await conn.execute(sql("wake_dispatchers"), {"shards": sorted(woken)})
    ordered: dict[int, int] = dict(await ordering.fetchall()) if ordering else {}
    return [_after(each, ordered.get(each.view.meter.id)) for each in found]


def _after(crossing: _Crossing, order_id: int | None) -> AccountView:
    """Return an account as it is when what it crossed is written, with a new order of supply or none."""
    view, levels = crossing.view, crossing.decision.levels
    order = view.open_order
    if order_id is not None:
        order = OpenOrder(id=order_id, relay=levels.desired, held=crossing.step is SupplyStep.ORDER_HELD)
    elif order and crossing.step is SupplyStep.RELEASE:
        order = replace(order, held=False)
    version = view.version + (levels != view.levels)
    return replace(view, levels=levels, version=version, open_order=order)


def _crossing(view: AccountView, rules: PostingRules, now_ms: int) -> _Crossing:
    balance_minor = view.balance_minor(rules.calendar)
    # A reading never lifts a level's arm.
    decision = decide(view.levels, balance_minor, may_rearm=False)
    return _Crossing(
        view=view,
        balance_minor=balance_minor,
        decision=decision,
        step=supply_step(view, decision.levels, rules=rules, now_ms=now_ms),
    )


def _tells_of_cut_off(crossing: _Crossing) -> bool:
    return crossing.raised(LevelName.EXHAUSTED) is not None and crossing.decision.levels.desired is Supply.OFF


async def _save_levels(conn: AsyncConnection, changed: Sequence[_Crossing]) -> None:
    if not changed:
        return
    ids = [each.view.id for each in changed]
    parameters = {
        "ids": ids,
        "low_raised": [each.decision.levels.low_raised for each in changed],
        "exhausted_raised": [each.decision.levels.exhausted_raised for each in changed],
        "desired": [each.decision.levels.desired.value for each in changed],
    }
    await conn.execute(sql("save_levels"), parameters)
    shards, versions = [each.view.shard for each in changed], [each.view.version + 1 for each in changed]
    await conn.execute(sql("feed_accounts"), {"shards": shards, "ids": ids, "versions": versions})


async def _add_alarms(conn: AsyncConnection, alarms: Sequence[tuple[_Crossing, Raised]]) -> None:
    if not alarms:
        return
    parameters = {
        "ids": [crossing.view.id for crossing, _ in alarms],
        "levels": [raised.level.value for _, raised in alarms],
        "arms": [raised.arm for _, raised in alarms],
        "level_minors": [raised.level_minor for _, raised in alarms],
        "balance_minors": [crossing.balance_minor for crossing, _ in alarms],
    }
    await conn.execute(sql("add_alarms"), parameters)


async def _add_orders(conn: AsyncConnection, orders: _Orders) -> AsyncCursor | None:
    """Send the statements; the cursor has meters and ids of their orders when the pipeline has ended."""
    made = orders.crossings
    if not made:
        return None
    supply = orders.kind == "supply"
    parameters = {
        "meter_ids": [each.view.meter.id for each in made],
        "kind": orders.kind,
        "level": orders.level,
        "cause": orders.cause,
        "ids": [each.view.id for each in made],
        "shards": [each.view.shard for each in made],
        "relays": [each.decision.levels.desired.value if supply else None for each in made],
        "balance_minors": [each.balance_minor for each in made],
        "threshold_minors": [each.decision.levels.threshold_minor for each in made],
        "states": ["held" if supply and each.step is SupplyStep.ORDER_HELD else "pending" for each in made],
    }
    await conn.execute(sql("supersede_many"), {"meter_ids": parameters["meter_ids"], "kind": orders.kind})
    return await conn.execute(sql("add_orders"), parameters)


async def _add_notices(
    conn: AsyncConnection, crossings: Sequence[_Crossing], prepayments: dict[int, Prepayment]
) -> None:
    notices: list[tuple[int, NoticeKind, str]] = []
    for each in crossings:
        view, balance_minor = each.view, each.balance_minor
        low = each.raised(LevelName.LOW)
        if low:
            notices.append((view.id, NoticeKind.LOW, low_notice(view.number, balance_minor, low.level_minor)))
        if _tells_of_cut_off(each):
            text = cut_off_text(view, each.decision.levels, balance_minor, prepayments[view.id])
            notices.append((view.id, NoticeKind.EXHAUSTED, text))
        if each.decision.supply is Supply.ON:
            notices.append((view.id, NoticeKind.RESTORED, restored_notice(view.number, balance_minor)))
    if notices:
        ids, kinds, bodies = (list(column) for column in zip(*notices, strict=True))
        await conn.execute(sql("add_notices"), {"ids": ids, "kinds": [kind.value for kind in kinds], "bodies": bodies})
