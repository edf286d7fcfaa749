"""Alarms, orders to meters and notices: the effects of a post that reach out of the ledger.

Stage: inside the transaction of a post. Rows only: dispatchers send them after the commit. A new order of a kind
supersedes the meter's open one of that kind; epochs rise per meter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar
from billing.notices import Cut, Exhausted, Facts, Limited, Low, Restored
from billing.prepayment import recharge_to_keep
from billing.supply import Decision, LevelName, Levels, Raised, Supply, restores_with_minor
from db.accounts import AccountView, OpenOrder
from db.named import sql
from db.prepayment import Prepayment


def wall_ms() -> int:
    """Return the instant, UTC milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PostingRules:
    """What every post needs to know besides the account.

    Invariants: `stale_ms` None never holds a cut-off; else one is held while the latest reading is older than that
    against `now_ms`. `clock` tells the instant, UTC milliseconds, by which supply is decided; money never reads it.
    """

    calendar: LocalCalendar
    stale_ms: int | None = None
    clock: Callable[[], int] = wall_ms


async def raise_alarm(conn: AsyncConnection, account_id: int, raised: Raised, balance_minor: int) -> None:
    """Write an alarm."""
    await conn.execute(
        sql("add_alarm"),
        {
            "account_id": account_id,
            "level": raised.level.value,
            "n": raised.n,
            "arm": raised.arm,
            "level_minor": raised.level_minor,
            "balance_minor": balance_minor,
        },
    )


async def sound_alarm(conn: AsyncConnection, view: AccountView, levels: Levels, balance_minor: int) -> None:
    """Order the meter to sound and show that the balance is low: once, however many warnings ring."""
    await _order(conn, view, kind="alarm", level="low", levels=levels, balance_minor=balance_minor, cause="alarm")


def notices_of(
    decision: Decision, balance_minor: int, *, restores_minor: int, now_ms: int, limit_w: int
) -> list[Facts]:
    """Return what a consumer is told of a decision.

    Units: `restores_minor` is the least recharge that restores, `limit_w` what a limited supply carries. Credit that
    runs out and supply that is cut with it are one notice; one whose supply nothing threatens is not told of either.
    """
    told: list[Facts] = []
    low = [raised for raised in decision.raised if raised.level is LevelName.LOW]
    if low:
        # Several at once, after a large use: one warning, of the least that was asked for.
        told.append(Low(balance_minor=balance_minor, threshold_minor=min(raised.level_minor for raised in low)))
    ran_out = any(raised.level is LevelName.EXHAUSTED for raised in decision.raised)
    until_ms = decision.verdict.until_ms
    if ran_out and (decision.supply is Supply.OFF or until_ms is not None):
        told.append(Exhausted(balance_minor=balance_minor, restores_minor=restores_minor, protected_until_ms=until_ms))
    match decision.supply:
        case Supply.OFF if not ran_out:
            told.append(Cut(balance_minor=balance_minor, restores_minor=restores_minor, cut_at_ms=now_ms))
        case Supply.LIMITED:
            told.append(Limited(balance_minor=balance_minor, restores_minor=restores_minor, limit_w=limit_w))
        case Supply.ON:
            told.append(Restored(balance_minor=balance_minor))
        case _:
            pass
    return told


def threatens(decision: Decision) -> bool:
    """Tell whether the notices of a decision name what restores supply."""
    ran_out = any(raised.level is LevelName.EXHAUSTED for raised in decision.raised)
    return ran_out or decision.supply in (Supply.OFF, Supply.LIMITED)


def recharge_to_restore(levels: Levels, balance_minor: int, prepayment: Prepayment) -> int:
    """Return the least recharge that restores supply, minor units: earlier arrears take their share of it first."""
    needed_minor = restores_with_minor(levels, balance_minor)
    return recharge_to_keep(needed_minor, prepayment.arrears_minor, prepayment.rules)


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
        return SupplyStep.ORDER_HELD if stale and levels.desired is not Supply.ON else SupplyStep.ORDER
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
        "limit_w": view.scheme.limit_w if relay is Supply.LIMITED else None,
        "cause": cause,
        "state": "held" if held else "pending",
    }
    await conn.execute(sql("add_order"), parameters)
    await conn.execute(sql("wake_dispatch"), {"shard": view.shard})
