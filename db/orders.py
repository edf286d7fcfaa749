"""Alarms, orders to meters and notices: the effects of a post that reach out of the ledger.

Stage: inside the transaction of a post. Rows only: dispatchers send them after the commit. A new order of a kind
supersedes the meter's open one of that kind; epochs rise per meter.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar
from billing.notices import NoticeKind, exhausted_notice, low_notice
from billing.prepayment import recharge_to_keep
from billing.supply import LevelName, Levels, Raised, Supply, restores_with_minor
from db.accounts import AccountView, OpenOrder
from db.named import sql
from db.prepayment import Prepayment, prepayment_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PostingRules:
    """What every post needs to know besides the account.

    Invariants: `stale_ms` None never holds a cut-off; else one is held while the latest reading is older than that
    against `now_ms`.
    """

    calendar: LocalCalendar
    stale_ms: int | None = None


async def raise_alarm(
    conn: AsyncConnection, view: AccountView, raised: Raised, levels: Levels, balance_minor: int
) -> None:
    """Write an alarm, its notice, and for a low balance the command that sounds it at the meter."""
    await conn.execute(
        sql("add_alarm"),
        {
            "account_id": view.id,
            "level": raised.level.value,
            "arm": raised.arm,
            "level_minor": raised.level_minor,
            "balance_minor": balance_minor,
        },
    )
    if raised.level is LevelName.LOW:
        await _order(conn, view, kind="alarm", level="low", levels=levels, balance_minor=balance_minor, cause="alarm")
        text = low_notice(view.number, balance_minor, raised.level_minor)
        await add_notice(conn, view.id, NoticeKind.LOW, text)
    elif levels.desired is Supply.OFF:
        prepayment = await prepayment_of(conn, view.id, view.checkpoint.through)
        await add_notice(
            conn, view.id, NoticeKind.EXHAUSTED, cut_off_text(view.number, levels, balance_minor, prepayment)
        )


def cut_off_text(number: str, levels: Levels, balance_minor: int, prepayment: Prepayment) -> str:
    """Return the notice of exhausted credit; of the recharge it asks for, earlier arrears take their share first."""
    needed_minor = restores_with_minor(levels, balance_minor)
    restores_minor = recharge_to_keep(needed_minor, prepayment.arrears_minor, prepayment.rules)
    return exhausted_notice(number, balance_minor, restores_minor)


class SupplyStep(Enum):
    """What brings a meter's supply in line with what its account should have."""

    NOTHING = "nothing"
    ORDER = "order"
    ORDER_HELD = "order_held"
    RELEASE = "release"


def supply_step(
    levels: Levels,
    *,
    open_order: OpenOrder | None,
    relay: Supply | None,
    read_ms: int,
    rules: PostingRules,
    now_ms: int,
) -> SupplyStep:
    """Compare the supply an account should have with what its meter has or was told.

    A cut-off on the word of an old reading is held until the meter is heard again.
    """
    stale = rules.stale_ms is not None and now_ms - read_ms > rules.stale_ms
    told = open_order.relay if open_order else relay or Supply.ON
    if levels.desired is not told:
        return SupplyStep.ORDER_HELD if stale and levels.desired is Supply.OFF else SupplyStep.ORDER
    return SupplyStep.RELEASE if open_order and open_order.held and not stale else SupplyStep.NOTHING


async def align_supply(
    conn: AsyncConnection,
    view: AccountView,
    levels: Levels,
    balance_minor: int,
    *,
    cause: str,
    rules: PostingRules,
    now_ms: int,
) -> None:
    """Order the difference between the supply an account should have and what its meter has or was told."""
    step = supply_step(
        levels,
        open_order=view.open_order,
        relay=view.meter.relay,
        read_ms=view.points[-1].at_ms,
        rules=rules,
        now_ms=now_ms,
    )
    if step in (SupplyStep.ORDER, SupplyStep.ORDER_HELD):
        await _order(
            conn,
            view,
            kind="supply",
            relay=levels.desired,
            levels=levels,
            balance_minor=balance_minor,
            cause=cause,
            held=step is SupplyStep.ORDER_HELD,
        )
    elif step is SupplyStep.RELEASE and view.open_order:
        await conn.execute(sql("release_order"), {"id": view.open_order.id})
        await conn.execute(sql("wake_dispatch"), {"shard": view.shard})


async def order_threshold(
    conn: AsyncConnection, view: AccountView, levels: Levels, balance_minor: int, *, cause: str
) -> None:
    """Tell the meter the consumer's threshold and the balance; the meter ends an alarm that no longer holds."""
    await _order(conn, view, kind="threshold", levels=levels, balance_minor=balance_minor, cause=cause)


async def add_notice(conn: AsyncConnection, account_id: int, kind: NoticeKind, body: str) -> None:
    """Write a notice to the consumer's list."""
    await conn.execute(sql("add_notice"), {"account_id": account_id, "kind": kind.value, "body": body})


async def _order(
    conn: AsyncConnection,
    view: AccountView,
    *,
    kind: str,
    levels: Levels,
    balance_minor: int,
    cause: str,
    relay: Supply | None = None,
    level: str | None = None,
    held: bool = False,
) -> None:
    await conn.execute(sql("supersede_orders"), {"meter_id": view.meter.id, "kind": kind})
    parameters = {
        "meter_id": view.meter.id,
        "account_id": view.id,
        "shard": view.shard,
        "kind": kind,
        "relay": relay,
        "level": level,
        "balance_minor": balance_minor,
        "threshold_minor": levels.threshold_minor,
        "cause": cause,
        "state": "held" if held else "pending",
    }
    await conn.execute(sql("add_order"), parameters)
    await conn.execute(sql("wake_dispatch"), {"shard": view.shard})
