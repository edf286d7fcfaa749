"""When a consumer is warned: several wishes, by amount, days left or share of the last recharge.

Stage: behind the consumer's interface, and once a day after close-day, which moves the levels that are days of use.
Posts like everything that changes an account's levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from psycopg import AsyncConnection

from billing.forecast import USE_DAYS, USE_DAYS_MIN, PresentUse, Threshold, ThresholdKind
from billing.supply import Levels
from db.accounts import AccountView, look
from db.further_levels import levels_at_present_use, put_further, read_further
from db.named import sql
from db.orders import PostingRules
from db.posting import Change, Posted, lock, write_change

THRESHOLDS_MAX = 5
# A transaction of 100 looks at an account each takes some 0.1 s.
ACCOUNTS_A_PAGE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What days and percent are counted by: None while it is not known."""

    use: PresentUse | None
    last_recharge_minor: int | None


_NO_BASIS = Basis(use=None, last_recharge_minor=None)


async def set_thresholds(
    conn: AsyncConnection, view: AccountView, wanted: Sequence[Threshold], *, rules: PostingRules, now_ms: int
) -> Posted | None:
    """Warn the consumer of a locked account by these and no others; the same again changes nothing, and returns None.

    The first amount is kept in the meter. A threshold at or above the balance warns at once.
    """
    first = next((each for each in wanted if each.kind is ThresholdKind.AMOUNT), None)
    amount_minor = None if first is None else first.value
    further = [each for each in wanted if each is not first]
    levels = view.levels
    if further != await read_further(conn, view.id):
        basis = (await _bases(conn, [view.id])).get(view.id, _NO_BASIS)
        placed = await put_further(conn, view.id, further, use=basis.use, last_recharge_minor=basis.last_recharge_minor)
        levels = replace(levels, thresholds=placed)
    elif amount_minor == levels.threshold_minor:
        return None
    levels = replace(levels, threshold_minor=amount_minor)
    return await write_change(conn, view, _change(view, levels), rules, now_ms)


async def move_day_levels(conn: AsyncConnection, *, rules: PostingRules) -> int:
    """Move all levels that are days of use to present use; return how many accounts have moved. Harmless twice."""
    moved = after = 0
    while True:
        cursor = await conn.execute(sql("accounts_by_days"), {"after": after, "most": ACCOUNTS_A_PAGE})
        ids = [row[0] for row in await cursor.fetchall()]
        if not ids:
            return moved
        after = ids[-1]
        async with conn.transaction():
            await lock(conn, ids)
            bases = await _bases(conn, ids)
            for account_id, view in sorted((await look(conn, ids, rules.calendar)).items()):
                use = bases.get(account_id, _NO_BASIS).use
                levels = await levels_at_present_use(conn, account_id, view.levels, use)
                if levels != view.levels:
                    await write_change(conn, view, _change(view, levels), rules, rules.clock())
                    moved += 1


def _change(view: AccountView, levels: Levels) -> Change:
    return Change(
        checkpoint=view.checkpoint,
        levels=levels,
        cause="threshold",
        may_rearm=True,
        threshold_changed=levels.threshold_minor != view.levels.threshold_minor,
    )


async def _bases(conn: AsyncConnection, ids: Sequence[int]) -> dict[int, Basis]:
    cursor = await conn.execute(sql("threshold_basis"), {"ids": list(ids), "days_most": USE_DAYS})
    return {
        account_id: Basis(
            use=PresentUse(days=days, energy_wh=energy_wh, charge_minor=charge_minor) if days >= USE_DAYS_MIN else None,
            last_recharge_minor=recharge_minor,
        )
        for account_id, days, energy_wh, charge_minor, recharge_minor in await cursor.fetchall()
    }
