"""What a decision on an exception does to an account's money, worked out and rolled back before anything is decided.

Stage: inside the exceptions desk. The dry run of corrections does the work, so that what is shown is what applying
says; nothing is written. Never posts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime

from psycopg import AsyncConnection

from billing.calendar import from_ms, to_ms
from billing.rerate import Crossing, crossing_of
from billing.running import Point
from db.accounts import AccountView, look, points_around
from db.correcting import work_out
from db.correction_scope import EstimatedFrom, ReadingEdit
from db.corrections import propose_estimates, read_correction
from db.exceptions import ExceptionItem
from db.orders import PostingRules
from db.quarantine import show_quarantine
from headend.pipeline import receive
from protocols.native import Readings

NOBODY = "dry run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a decision does to the balance. Minor units; None where it cannot be worked out, for the reason told.

    Invariants: `after_minor` less `before_minor` is `difference_minor`.
    """

    before_minor: int | None = None
    after_minor: int | None = None
    crosses: Crossing | None = None
    told: str = ""

    @property
    def difference_minor(self) -> int | None:
        """What the account gains; below 0 it pays."""
        if self.before_minor is None or self.after_minor is None:
            return None
        return self.after_minor - self.before_minor

    @property
    def cut_offs(self) -> int:
        """How many supplies it cuts: one or none."""
        return int(self.crosses is Crossing.EXHAUSTED)


async def view_of_item(conn: AsyncConnection, item: ExceptionItem, rules: PostingRules) -> AccountView | None:
    """Return the account that an exception's meter bills now; None where there is none."""
    if item.account_id is None:
        return None
    return (await look(conn, [item.account_id], rules.calendar)).get(item.account_id)


async def no_effect(conn: AsyncConnection, item: ExceptionItem, rules: PostingRules) -> Effect:
    """Return the effect of a decision that changes no register."""
    view = await view_of_item(conn, item, rules)
    if view is None:
        # Nobody's money.
        return Effect(before_minor=0, after_minor=0, crosses=Crossing.NONE, told="the meter bills no account")
    balance_minor = view.balance_minor(rules.calendar)
    return Effect(before_minor=balance_minor, after_minor=balance_minor, crosses=Crossing.NONE)


async def effect_of_correction(
    conn: AsyncConnection, item: ExceptionItem, propose: Callable[[], Awaitable[int]], rules: PostingRules
) -> Effect:
    """Work out what a proposed correction would do; the proposal itself is rolled back, too."""
    if item.account_id is None:
        return Effect(told="the meter bills no account")
    async with conn.transaction(force_rollback=True):
        proposal = (await read_correction(conn, await propose())).proposal
        views = await look(conn, [item.account_id], rules.calendar)
        outcome = (await work_out(conn, proposal, views, rules.calendar)).get(item.account_id)
    if outcome is None or outcome.rerated is None:
        return Effect(told=(outcome.detail if outcome else None) or "expected an account with a billing meter")
    rerated = outcome.rerated
    return Effect(before_minor=rerated.before_minor, after_minor=rerated.after_minor, crosses=outcome.crosses)


async def effect_of_release(
    conn: AsyncConnection, item: ExceptionItem, *, as_reset: bool, rules: PostingRules
) -> Effect:
    """Work out what storing a held reading would do, as long as no other comes before it."""
    view = await view_of_item(conn, item, rules)
    if view is None or item.at is None:
        return Effect(told="expected one reading of a meter that bills an account")
    import_wh = await _register_of(conn, item, item.at)
    if import_wh is None:
        return Effect(told="expected bytes that are a reading of that instant")
    at_ms, last = to_ms(item.at), view.points[-1]
    if at_ms > last.at_ms:
        energy_wh = last.energy_wh + import_wh if as_reset else view.meter.energy_to_date(at_ms, import_wh)
        if energy_wh < last.energy_wh:
            return Effect(told="the register falls: it would be held again")
        read = replace(view, points=(*view.points, Point(at_ms=at_ms, energy_wh=energy_wh)))
        before_minor, after_minor = view.balance_minor(rules.calendar), read.balance_minor(rules.calendar)
        crosses = crossing_of(view.levels, before_minor, after_minor)
        return Effect(before_minor=before_minor, after_minor=after_minor, crosses=crosses)
    if as_reset:
        return Effect(told="a register that began again before later readings: see them first")
    return await _effect_of_late(conn, item, view, at_ms, import_wh, rules)


async def _effect_of_late(
    conn: AsyncConnection, item: ExceptionItem, view: AccountView, at_ms: int, import_wh: int, rules: PostingRules
) -> Effect:
    """Work a late reading out as if it were an estimate between its neighbours: edges move as they would by it."""
    around = await points_around(conn, view.meter, [from_ms(at_ms)])
    before = max((point for point in around if point.at_ms < at_ms), default=None)
    after = min((point for point in around if point.at_ms > at_ms), default=None)
    if before is None or after is None or any(point.at_ms == at_ms for point in around):
        return Effect(told="expected a reading between two others")
    energy_wh = view.meter.energy_to_date(at_ms, import_wh)
    if not before.energy_wh <= energy_wh <= after.energy_wh:
        return Effect(told="the register does not fit between its neighbours: it would be held again")
    offset_wh = energy_wh - import_wh
    made = EstimatedFrom(
        rule="as_read",
        inputs={},
        from_at=from_ms(before.at_ms),
        from_wh=before.energy_wh - offset_wh,
        to_at=from_ms(after.at_ms),
        to_wh=after.energy_wh - offset_wh,
    )
    edit = ReadingEdit(
        serial=view.meter.serial, meter_id=view.meter.id, read_at=from_ms(at_ms), import_wh=import_wh, estimated=made
    )
    number = item.account or ""
    return await effect_of_correction(
        conn, item, lambda: propose_estimates(conn, number, [edit], reason=NOBODY, by=NOBODY), rules
    )


async def _register_of(conn: AsyncConnection, item: ExceptionItem, at: datetime) -> int | None:
    """Return the register that a held row's bytes have for its instant."""
    row, raw, _ = await show_quarantine(conn, item.item_id)
    uplink = receive(row.shard, row.topic, raw, 0).uplink
    if not isinstance(uplink, Readings) or to_ms(at) not in uplink.read_at_ms:
        return None
    return uplink.import_wh[uplink.read_at_ms.index(to_ms(at))]
