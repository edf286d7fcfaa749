"""When a consumer is warned: several wishes, by amount, days left or share of the last recharge.

Stage: behind the consumer's interface, and once a day after close-day, which moves the levels that are days of use.
Posts like everything that changes an account's levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from psycopg import AsyncConnection

from billing.forecast import RECENT_DAYS, USE_DAYS, USE_DAYS_MIN, PresentUse, Threshold, ThresholdKind
from billing.supply import Levels
from db.accounts import AccountView, look
from db.further_levels import add_further, drop_further, levels_at_present_use, read_further, read_recharge_basis
from db.named import sql
from db.orders import PostingRules
from db.posting import Change, Posted, lock, write_change

# A transaction of 100 looks at an account each takes some 0.1 s.
ACCOUNTS_A_PAGE = 100


async def set_thresholds(
    conn: AsyncConnection, view: AccountView, wanted: Sequence[Threshold], *, rules: PostingRules, now_ms: int
) -> Posted | None:
    """Warn the consumer of a locked account by these and no others; the same again changes nothing, and returns None.

    `wanted` is what `billing.forecast.make_thresholds` lets pass. A wish that was there stays as it is, rung or not;
    a new one at or above the balance rings at once. The meter keeps one amount: the one it has, else the first.
    """
    held = await read_further(conn, view.id)
    amount_minor = _amount_for_meter(wanted, view.levels.threshold_minor)
    further = [each for each in wanted if (each.kind, each.value) != (ThresholdKind.AMOUNT, amount_minor)]
    gone = [each for each in held if each.threshold not in further]
    stays = [each for each in held if each not in gone]
    new = [each for each in further if each not in {wish.threshold for wish in stays}]
    if not gone and not new and amount_minor == view.levels.threshold_minor:
        return None
    levels = await drop_further(conn, view.id, [each.n for each in gone], view.levels)
    levels = await add_further(
        conn,
        view.id,
        new,
        levels,
        taken=[each.n for each in stays],
        use=(await present_uses(conn, [view.id])).get(view.id),
        last_recharge_minor=await read_recharge_basis(conn, view.id),
    )
    change = _change(view, replace(levels, threshold_minor=amount_minor))
    # The meter may still show a warning that nobody asks for any more.
    change = replace(change, threshold_changed=change.threshold_changed or any(each.raised for each in gone))
    return await write_change(conn, view, change, rules, now_ms)


async def accounts_by_days(conn: AsyncConnection, after: int) -> list[int]:
    """Return the next accounts, in id order after one, whose consumers want to be warned some days ahead."""
    cursor = await conn.execute(sql("accounts_by_days"), {"after": after, "most": ACCOUNTS_A_PAGE})
    return [row[0] for row in await cursor.fetchall()]


async def move_day_levels(conn: AsyncConnection, ids: Sequence[int], *, rules: PostingRules) -> int:
    """Move levels that are days of use to present use, in a transaction; return how many accounts have changed.

    Harmless twice.
    """
    moved = 0
    async with conn.transaction():
        await lock(conn, ids)
        uses = await present_uses(conn, ids)
        for account_id, view in sorted((await look(conn, ids, rules.calendar)).items()):
            levels = await levels_at_present_use(conn, account_id, view.levels, uses.get(account_id))
            if levels != view.levels:
                await write_change(conn, view, _change(view, levels), rules, rules.clock())
                moved += 1
    return moved


def _amount_for_meter(wanted: Sequence[Threshold], kept_minor: int | None) -> int | None:
    amounts_minor = [each.value for each in wanted if each.kind is ThresholdKind.AMOUNT]
    return kept_minor if kept_minor in amounts_minor else next(iter(amounts_minor), None)


def _change(view: AccountView, levels: Levels) -> Change:
    return Change(
        checkpoint=view.checkpoint,
        levels=levels,
        cause="threshold",
        may_rearm=True,
        threshold_changed=levels.threshold_minor != view.levels.threshold_minor,
    )


async def present_uses(conn: AsyncConnection, ids: Sequence[int]) -> dict[int, PresentUse]:
    """Return the present use of those of some accounts of which it is known."""
    parameters = {"ids": list(ids), "days_most": USE_DAYS, "recent_days": RECENT_DAYS}
    cursor = await conn.execute(sql("present_uses"), parameters)
    return {
        account_id: PresentUse(days=days, energy_wh=energy_wh, charge_minor=charge_minor)
        for account_id, days, energy_wh, charge_minor in await cursor.fetchall()
        if days >= USE_DAYS_MIN
    }
