"""A meter takes over from another one: closing register, opening register, instant; the account's energy goes on.

Stage: between an office's command and posting, one transaction under the account's lock. Days before the swap are
closed from the old meter's readings and its closing register; from then on the new meter's registers count, carried on
by a register segment. The curve of an account goes through all its meters (`db.accounts.points_around`), so that late
readings, corrections and the auditor see the days of the old one, too.

Never: energy between the last reading and a register that nobody could read. Of a burnt or stolen meter the last
reading stands, and what it did not count is assessed by a correction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from billing.calendar import from_ms, to_ms
from billing.running import Point, begin, follow
from billing.terms import ONE_DAY
from db.accounts import AccountView, look
from db.errors import DatabaseError
from db.named import sql
from db.orders import PostingRules, order_threshold
from db.posting import lock_and_look, post_days, post_readings

# Wh x 1 h in ms: what a meter of 1 W can count at the most.
_HOUR_MS = 3_600_000


class SwapRefused(DatabaseError):
    """A swap that does not fit the meters or their registers."""

    code = "swap_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """What is entered of a swap. Units: registers in Wh; `closing_wh` is None where it could not be read."""

    account_id: int
    new_serial: str
    at: datetime
    closing_wh: int | None
    opening_wh: int
    reason: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Swapped:
    """What a swap did. Units: Wh, minor units; `energy_wh` is the account's energy to date at the swap.

    `since_reading_wh` is what the closing register counted after the old meter's last reading.
    """

    id: int
    account: str
    old_serial: str
    new_serial: str
    at: datetime
    energy_wh: int
    since_reading_wh: int
    balance_minor: int


async def swap_meter(conn: AsyncConnection, swap: Swap, *, rules: PostingRules, now_ms: int) -> Swapped:
    """Put another meter in the place of an account's; the caller has opened the transaction.

    Raises: SwapRefused, with nothing done; UnknownAccount.
    """
    at_ms = to_ms(swap.at)
    view = await lock_and_look(conn, swap.account_id, rules)
    meters = await _meters(conn, [view.meter.serial, swap.new_serial])
    old, new = meters[view.meter.serial], meters.get(swap.new_serial)
    _require_free(swap, old, new, at_ms)
    assert new is not None, "a meter that is free is known"
    # What has begun to be stored of either is there before the swap is looked at.
    await conn.execute(sql("swap_fence"), {"shards": sorted({old["shard"], new["shard"]})})
    view = await _looked_at(conn, view.id, rules)
    await _require_instant(conn, view, at_ms, now_ms)
    closing = _closing(view, swap, at_ms)
    since_reading_wh = closing.energy_wh - view.points[-1].energy_wh
    await _settle(conn, view.id, closing, rules, now_ms)
    await _move(conn, view.id, swap, closing, old, new, rules)
    swap_id = await _keep(conn, swap, closing, old, new, now_ms)
    balance_minor = await _tell_new_meter(conn, view.id, rules, now_ms)
    return Swapped(
        id=swap_id,
        account=view.number,
        old_serial=old["serial"],
        new_serial=new["serial"],
        at=from_ms(at_ms),
        energy_wh=closing.energy_wh,
        since_reading_wh=since_reading_wh,
        balance_minor=balance_minor,
    )


async def _meters(conn: AsyncConnection, serials: list[str]) -> dict[str, dict[str, Any]]:
    # Rows by column name, typed by their query.
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("swap_meters"), {"serials": serials})
        return {row["serial"]: row for row in await cursor.fetchall()}


def _require_free(swap: Swap, old: dict[str, Any], new: dict[str, Any] | None, at_ms: int) -> None:
    if new is None:
        raise SwapRefused(f"new meter: expected a registered one, got serial {swap.new_serial!r}")
    if new["usage_point_id"] is not None:
        raise SwapRefused(f"new meter {swap.new_serial}: expected one that stands nowhere, got one installed")
    if new["free_from"] is not None and to_ms(new["free_from"]) > at_ms:
        raise SwapRefused(
            f"new meter {swap.new_serial}: expected an instant from {new['free_from'].isoformat()} on, when it was"
            f" taken away elsewhere, got {swap.at.isoformat()}"
        )
    if new["custody"] != old["custody"]:
        # Who owns the meter decides about its rent, which is an assignment of its own.
        raise SwapRefused(
            f"new meter {swap.new_serial}: expected one in custody of the {old['custody']}, got {new['custody']}"
        )
    if not 0 <= swap.opening_wh < new["register_end_wh"]:
        raise SwapRefused(f"opening register: expected 0 to below {new['register_end_wh']} Wh, got {swap.opening_wh}")


async def _looked_at(conn: AsyncConnection, account_id: int, rules: PostingRules) -> AccountView:
    """Look at a locked account, with the points around each of its open days."""
    return (await look(conn, [account_id], rules.calendar, step="day"))[account_id]


async def _require_instant(conn: AsyncConnection, view: AccountView, at_ms: int, now_ms: int) -> None:
    meter = view.meter
    if not meter.installed_ms < at_ms <= now_ms:
        raise SwapRefused(
            f"instant: expected one after {from_ms(meter.installed_ms).isoformat()}, when meter {meter.serial} was"
            f" installed, and not in the future, got {from_ms(at_ms).isoformat()}"
        )
    parameters = {"meter_id": meter.id, "since": from_ms(meter.installed_ms)}
    row = await (await conn.execute(sql("swap_latest"), parameters)).fetchone()
    if row is not None and row[0] is not None and to_ms(row[0]) > at_ms:
        raise SwapRefused(
            f"instant: expected one from {row[0].isoformat()} on, the latest reading of meter {meter.serial},"
            f" got {from_ms(at_ms).isoformat()}"
        )


def _closing(view: AccountView, swap: Swap, at_ms: int) -> Point:
    """Return where the old meter's curve ends."""
    latest = view.points[-1]
    if swap.closing_wh is None:
        return Point(at_ms=at_ms, energy_wh=latest.energy_wh)
    meter = view.meter
    closing = Point(at_ms=at_ms, energy_wh=meter.energy_to_date(at_ms, swap.closing_wh))
    most_wh = latest.energy_wh + (meter.rated_w * (at_ms - latest.at_ms) + _HOUR_MS - 1) // _HOUR_MS
    if swap.closing_wh >= meter.register_end_wh or not latest.energy_wh <= closing.energy_wh <= most_wh:
        least_wh = swap.closing_wh + latest.energy_wh - closing.energy_wh
        raise SwapRefused(
            f"closing register of meter {meter.serial}: expected {least_wh} Wh, its last reading, to"
            f" {least_wh + most_wh - latest.energy_wh} Wh, what its rated power can add, got {swap.closing_wh}"
        )
    return closing


def _with_closing(view: AccountView, closing: Point) -> AccountView:
    points = view.points if view.points[-1].at_ms == closing.at_ms else (*view.points, closing)
    return replace(view, points=points, meter=replace(view.meter, closing=closing))


async def _settle(conn: AsyncConnection, account_id: int, closing: Point, rules: PostingRules, now_ms: int) -> None:
    """Book what the closing register says of closed days, and close the days before the swap."""
    view = _with_closing(await _looked_at(conn, account_id, rules), closing)
    if await post_readings(conn, view, late_since_ms=None, rules=rules, now_ms=now_ms) is not None:
        view = _with_closing(await _looked_at(conn, account_id, rules), closing)
    await post_days(conn, view, rules.calendar.day_of(closing.at_ms) - ONE_DAY, rules=rules, now_ms=now_ms)


async def _move(
    conn: AsyncConnection,
    account_id: int,
    swap: Swap,
    closing: Point,
    old: dict[str, Any],
    new: dict[str, Any],
    rules: PostingRules,
) -> None:
    """Take the old meter away, install the new one, and let the account's curve go on from there."""
    view = _with_closing(await _looked_at(conn, account_id, rules), closing)
    walk = follow(begin(view.checkpoint, view.terms), view.terms, view.points[1:], rules.calendar)
    at = from_ms(closing.at_ms)
    await conn.execute(sql("swap_orders"), {"meter_id": old["id"]})
    await conn.execute(sql("swap_take_away"), {"meter_id": old["id"], "at": at})
    place = {"usage_point_id": old["usage_point_id"], "meter_id": new["id"], "at": at}
    await conn.execute(sql("swap_install"), place)
    segment = {"meter_id": new["id"], "at": at, "opening_wh": swap.opening_wh, "energy_wh": closing.energy_wh}
    await conn.execute(sql("swap_segment"), segment)
    account = {
        "account_id": account_id,
        "shard": new["shard"],
        "at": at,
        "energy_wh": closing.energy_wh,
        "anchor_zones": list(walk.zone_wh) or None,
    }
    row = await (await conn.execute(sql("swap_account"), account)).fetchone()
    assert row is not None, "a locked account is there"
    await conn.execute(sql("swap_recheck"), {"account_id": account_id, "shard": new["shard"]})
    for shard in sorted({old["shard"], new["shard"]}):
        await conn.execute(sql("feed_account"), {"shard": shard, "id": account_id, "version": row[0]})


async def _keep(
    conn: AsyncConnection, swap: Swap, closing: Point, old: dict[str, Any], new: dict[str, Any], now_ms: int
) -> int:
    parameters = {
        "account_id": swap.account_id,
        "old_meter_id": old["id"],
        "new_meter_id": new["id"],
        "at": from_ms(closing.at_ms),
        "closing_wh": swap.closing_wh,
        "opening_wh": swap.opening_wh,
        "energy_wh": closing.energy_wh,
        "reason": swap.reason,
        "swapped_by": swap.by,
        "entered_at": from_ms(now_ms),
    }
    row = await (await conn.execute(sql("add_swap"), parameters)).fetchone()
    assert row is not None, "an insert returns its row"
    return int(row[0])


async def _tell_new_meter(conn: AsyncConnection, account_id: int, rules: PostingRules, now_ms: int) -> int:
    """Order the supply and threshold that the account has of its new meter; return the balance."""
    view = await lock_and_look(conn, account_id, rules)
    if await post_readings(conn, view, late_since_ms=None, rules=rules, now_ms=now_ms) is not None:
        view = await lock_and_look(conn, account_id, rules)
    balance_minor = view.balance_minor(rules.calendar)
    await order_threshold(conn, view, view.levels, balance_minor, cause="swap")
    return balance_minor
