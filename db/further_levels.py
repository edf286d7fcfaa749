"""Further balances to be warned at, as rows: what a consumer asked for, and the level that it means now.

Stage: beside posting, under the account's lock. The first amount stands in the account's own row and in the meter;
these are the others. What days and percent mean is `billing.forecast`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from psycopg import AsyncConnection

from billing.forecast import PresentUse, Threshold, ThresholdKind, level_minor
from billing.supply import FurtherLevel, Levels
from db.named import sql


async def save_further_levels(conn: AsyncConnection, changed: Mapping[int, tuple[Levels, Levels]]) -> None:
    """Write which further levels have rung or been armed again, by account: levels before and after."""
    rows = [
        (account_id, each)
        for account_id, (before, after) in changed.items()
        if before.thresholds != after.thresholds
        for each in after.thresholds
    ]
    if rows:
        parameters = {
            "ids": [account_id for account_id, _ in rows],
            "ns": [each.n for _, each in rows],
            "arms": [each.arm for _, each in rows],
            "raised": [each.raised for _, each in rows],
        }
        await conn.execute(sql("save_further_levels"), parameters)


async def read_further(conn: AsyncConnection, account_id: int) -> list[Threshold]:
    """Read what the consumer of an account asked for besides the first amount, in the order of asking."""
    cursor = await conn.execute(sql("further_thresholds"), {"account_id": account_id})
    return [Threshold(kind=ThresholdKind(kind), value=value) for kind, value in await cursor.fetchall()]


async def put_further(
    conn: AsyncConnection,
    account_id: int,
    wanted: Sequence[Threshold],
    *,
    use: PresentUse | None,
    last_recharge_minor: int | None,
) -> tuple[FurtherLevel, ...]:
    """Put other wishes in the place of an account's further ones; return the levels that they mean now.

    Each begins with an arm that has never rung.
    """
    levels = [level_minor(each, use=use, last_recharge_minor=last_recharge_minor) for each in wanted]
    parameters = {
        "account_id": account_id,
        "kinds": [each.kind.value for each in wanted],
        "values": [each.value for each in wanted],
        "level_minors": levels,
    }
    await conn.execute(sql("drop_further"), {"account_id": account_id})
    cursor = await conn.execute(sql("put_further"), parameters)
    return tuple(
        FurtherLevel(n=n, level_minor=minor, arm=arm, raised=False)
        for n, minor, arm in sorted(await cursor.fetchall())
        if minor is not None
    )


async def levels_after_recharge(conn: AsyncConnection, account_id: int, levels: Levels, amount_minor: int) -> Levels:
    """Move the levels that are a share of the last recharge to what they are of this one, in minor units."""
    return await _moved(conn, "set_percent_levels", {"account_id": account_id, "amount_minor": amount_minor}, levels)


async def levels_at_present_use(
    conn: AsyncConnection, account_id: int, levels: Levels, use: PresentUse | None
) -> Levels:
    """Move the levels that are days of use to what they are at present use."""
    wishes = [each for each in await read_further(conn, account_id) if each.kind is ThresholdKind.DAYS]
    parameters = {
        "account_id": account_id,
        "values": [each.value for each in wishes],
        "level_minors": [level_minor(each, use=use, last_recharge_minor=None) for each in wishes],
    }
    return await _moved(conn, "set_day_levels", parameters, levels)


async def _moved(conn: AsyncConnection, query: str, parameters: dict[str, object], levels: Levels) -> Levels:
    cursor = await conn.execute(sql(query), parameters)
    moved = {
        n: FurtherLevel(n=n, level_minor=minor, arm=arm, raised=raised)
        for n, minor, arm, raised in await cursor.fetchall()
    }
    if not moved:
        return levels
    kept = {each.n: each for each in levels.thresholds} | moved
    return replace(levels, thresholds=tuple(each for _, each in sorted(kept.items())))
