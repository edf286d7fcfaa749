"""Further balances to be warned at, as rows: what a consumer asked for, and the level that it means now.

Stage: beside posting, under the account's lock. The amount that the meter keeps stands in the account's own row; these
are the others. What days and percent mean is `billing.forecast`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from psycopg import AsyncConnection

from billing.forecast import PresentUse, Threshold, ThresholdKind, level_minor
from billing.journals import Journal, JournalKind
from billing.supply import FurtherLevel, Levels
from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherWish:
    """A wish to be warned as it is kept; `level_minor` is the balance it means now, None while that is not known."""

    n: int
    threshold: Threshold
    level_minor: int | None
    arm: int
    raised: bool


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


async def read_further(conn: AsyncConnection, account_id: int) -> list[FurtherWish]:
    """Read what the consumer of an account asked for besides the amount that the meter keeps, by number."""
    cursor = await conn.execute(sql("further_thresholds"), {"account_id": account_id})
    return [
        FurtherWish(
            n=n,
            threshold=Threshold(kind=ThresholdKind(kind), value=value),
            level_minor=minor,
            arm=arm,
            raised=raised,
        )
        for n, kind, value, minor, arm, raised in await cursor.fetchall()
    ]


async def drop_further(conn: AsyncConnection, account_id: int, ns: Sequence[int], levels: Levels) -> Levels:
    """Forget some of an account's wishes; return the levels that are left."""
    if not ns:
        return levels
    await conn.execute(sql("drop_further"), {"account_id": account_id, "ns": list(ns)})
    return replace(levels, thresholds=tuple(each for each in levels.thresholds if each.n not in ns))


async def add_further(
    conn: AsyncConnection,
    account_id: int,
    wanted: Sequence[Threshold],
    levels: Levels,
    *,
    taken: Sequence[int],
    use: PresentUse | None,
    last_recharge_minor: int | None,
) -> Levels:
    """Keep more wishes of an account, under numbers that are not taken; return the levels with theirs.

    Each begins with an arm that has never rung.
    """
    if not wanted:
        return levels
    free = (n for n in count(1) if n not in taken)
    parameters = {
        "account_id": account_id,
        "ns": [next(free) for _ in wanted],
        "kinds": [each.kind.value for each in wanted],
        "values": [each.value for each in wanted],
        "level_minors": [level_minor(each, use=use, last_recharge_minor=last_recharge_minor) for each in wanted],
    }
    return await _moved(conn, "add_further", parameters, levels)


async def levels_by_recharge(
    conn: AsyncConnection, account_id: int, levels: Levels, journals: Sequence[Journal]
) -> Levels:
    """Move the levels that are a share of the last recharge to what they are with journals that are being booked.

    A recharge that is taken back is none: the one before it counts again.
    """
    sold = [journal.prepaid_minor for journal in journals if journal.kind is JournalKind.VEND]
    taken = [journal.about_id for journal in journals if journal.kind is JournalKind.REVERSAL]
    if not sold and not taken:
        return levels
    amount_minor = sold[-1] if sold else await read_recharge_basis(conn, account_id, taken=taken)
    return await _moved(conn, "set_percent_levels", {"account_id": account_id, "amount_minor": amount_minor}, levels)


async def read_recharge_basis(
    conn: AsyncConnection, account_id: int, *, taken: Sequence[int | None] = ()
) -> int | None:
    """Return an account's last recharge in minor units, leaving out what was taken back, and journals just being so."""
    cursor = await conn.execute(sql("recharge_basis"), {"account_id": account_id, "taken": list(taken)})
    row = await cursor.fetchone()
    return None if row is None else int(row[0])


async def levels_at_present_use(
    conn: AsyncConnection, account_id: int, levels: Levels, use: PresentUse | None
) -> Levels:
    """Move the levels that are days of use to what they are at present use; one not known any more stays."""
    wishes = [each.threshold for each in await read_further(conn, account_id)]
    by_days = [each for each in wishes if each.kind is ThresholdKind.DAYS]
    parameters = {
        "account_id": account_id,
        "values": [each.value for each in by_days],
        "level_minors": [level_minor(each, use=use, last_recharge_minor=None) for each in by_days],
    }
    return await _moved(conn, "set_day_levels", parameters, levels)


async def _moved(conn: AsyncConnection, query: str, parameters: dict[str, object], levels: Levels) -> Levels:
    """Change levels in the table; return an account's levels as they are then, without those that are not known."""
    cursor = await conn.execute(sql(query), parameters)
    kept = {each.n: each for each in levels.thresholds}
    for n, minor, arm, raised in await cursor.fetchall():
        kept.pop(n, None)
        if minor is not None:
            kept[n] = FurtherLevel(n=n, level_minor=minor, arm=arm, raised=raised)
    return replace(levels, thresholds=tuple(each for _, each in sorted(kept.items())))
