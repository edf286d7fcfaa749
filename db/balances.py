"""Running balances of very many accounts: a walk over the installation in ranges of ids, rated by columns.

Stage: bulk reports; reads only. One statement a range fetches posted state, terms of the open month and latest point
of its accounts. Those whose latest point lies in their checkpoint's bill part, without time-of-day zones, are rated
together (`billing.running_batch`); all others are looked at as everybody looks (`db.accounts.look`). No balance is
stored anywhere, and the clock is never asked.

Each range is read from a snapshot of its own, not the whole walk from one: a snapshot of many minutes would keep every
row version of that time from being vacuumed away. So an account's figures are all of one moment, and the sums over the
installation are of as many moments as there were ranges; accounts opened meanwhile are there, if their id was still to
come.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import starmap
from typing import Any, NamedTuple

import numpy as np
from psycopg import AsyncConnection

from billing.calendar import LocalCalendar
from billing.rate_table import Int64, RateTable
from billing.rating_batch import BeyondLimits
from billing.running import Checkpoint, Point
from billing.running_batch import DAY_MS, RunningAccounts
from billing.supply import Mode, Supply
from billing.tariff import Tariff
from billing.terms import Assignment, BillPart, Terms
from db.accounts import look
from db.named import sql
from db.tariffs import tariffs_by_checksum
from protocols.topics import SHARDS

# 5,000 accounts are a snapshot of some tenths of a second and 5 MB of rows.
ACCOUNTS_PER_RANGE = 5_000
# A look at 500 accounts is what other bulk readers take, too (`db.reports.look_all`).
ACCOUNTS_PER_LOOK = 500
# Use per day is taken of a week, so that every kind of day is in it once.
USE_DAYS = 7
# Bill parts by terms and first open day: a city has some thousand at a time, and 65,536 are 40 MB.
PARTS_MAX = 65_536
# Last days of each stretch of a debt's age, the last one open.
AGE_DAYS = (7, 30, 90)

# Terms of an open month: the first open day, the opening or the month's first day, assignments as JSON.
_TermsKey = tuple[date, date, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which accounts a report covers (`shards`, `category`) and which of these it lists.

    A listed account has a balance below `below_minor` and fewer than `days_left` days of credit, as far as given.
    `rows_most` is how many are listed at most, in the order of their ids; the others are only counted.
    """

    shards: tuple[int, ...] = tuple(range(SHARDS))
    category: str | None = None
    below_minor: int | None = None
    days_left: int | None = None
    rows_most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What an account's last closed days came to: at most `USE_DAYS`, fewer since its opening."""

    days: int
    energy_wh: int
    charge_minor: int

    @property
    def day_energy_wh(self) -> int | None:
        """Return the average energy of a day; None before the first closed one. Rounds: down."""
        return self.energy_wh // self.days if self.days else None

    @property
    def day_charge_minor(self) -> int | None:
        """Return the average charge of a day; None before the first closed one. Rounds: down."""
        return self.charge_minor // self.days if self.days else None


NO_USE = Use(days=0, energy_wh=0, charge_minor=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceRow:
    """One listed account; `days_left` is None without use, and for postpaid accounts, which are never cut off."""

    number: str
    category: str
    mode: Mode
    currency: str
    balance_minor: int
    days_left: int | None
    use: Use
    desired: Supply
    reported: Supply | None
    last_reading_ms: int | None
    phone_verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Debt:
    """A balance below zero; `exhausted_ms` is when the alarm was raised that still stands, None without one."""

    currency: str
    balance_minor: int
    exhausted_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceRange:
    """What a report says of one range of accounts.

    Invariants: `accounts` counts those of the shards and category, `without_meter` those of them that no billing
    meter stands at, which have no running balance; `matching` those that would be listed without a limit of rows;
    `plain` those that were looked at one by one.
    """

    accounts: int
    without_meter: int
    plain: int
    matching: int
    rows: tuple[BalanceRow, ...]
    debts: tuple[Debt, ...]


@dataclass(slots=True)
class AgeSum:
    """How many debts, and their sum (below zero)."""

    accounts: int = 0
    balance_minor: int = 0

    def add(self, balance_minor: int) -> None:
        """Count a debt."""
        self.accounts += 1
        self.balance_minor += balance_minor


@dataclass(slots=True, kw_only=True)
class BalanceTotals:
    """Sums over all ranges of a report.

    Invariants: `debts` is by currency, then by place in `AGE_DAYS`, the next place for more days; None is for debts
    without an alarm: within the emergency credit, postpaid, or away with a deposit.
    """

    accounts: int = 0
    without_meter: int = 0
    plain: int = 0
    matching: int = 0
    listed: int = 0
    debts: dict[str, dict[int | None, AgeSum]] = field(default_factory=dict)

    def add(self, found: BalanceRange, *, now_ms: int) -> None:
        """Count a range; debts are as old as their alarm."""
        self.accounts += found.accounts
        self.without_meter += found.without_meter
        self.plain += found.plain
        self.matching += found.matching
        self.listed += len(found.rows)
        for debt in found.debts:
            age = None if debt.exhausted_ms is None else age_place((now_ms - debt.exhausted_ms) // DAY_MS)
            self.debts.setdefault(debt.currency, {}).setdefault(age, AgeSum()).add(debt.balance_minor)


def days_left(balance_minor: int, cut_at_minor: int, use: Use) -> int | None:
    """Return for how many days the balance above the cut-off level lasts at present use; None if nothing is used.

    Rounds: down. An exhausted account has 0.
    """
    if use.days == 0 or use.charge_minor <= 0:
        return None
    return max(0, balance_minor - cut_at_minor) * use.days // use.charge_minor


def age_place(days: int) -> int:
    """Return the place in `AGE_DAYS` of a debt so many whole days old; one past its end for more."""
    return sum(days > last for last in AGE_DAYS)


async def read_use(conn: AsyncConnection, account_id: int) -> Use:
    """Read what one account's last closed days came to."""
    cursor = await conn.execute(sql("balances_uses"), {"ids": [account_id], "days": USE_DAYS})
    row = await cursor.fetchone()
    return NO_USE if row is None else Use(days=row[1], energy_wh=row[2], charge_minor=row[3])


async def read_balances(
    conn: AsyncConnection,
    calendar: LocalCalendar,
    asked: Asked,
    *,
    accounts_per_range: int = ACCOUNTS_PER_RANGE,
    pause_s: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> AsyncIterator[BalanceRange]:
    """Walk over the accounts in id order, a transaction for each range, pausing between ranges.

    `progress` is told how far the walk has come: the last id read, of the last there was when it began.
    """
    reader = _Reader(conn, calendar, asked)
    cursor = await conn.execute(sql("balances_last_id"))
    row = await cursor.fetchone()
    last_id = (row[0] if row else None) or 0
    after = listed = 0
    while True:
        async with conn.transaction():
            await conn.execute(sql("balances_snapshot"))
            bounds = await reader.bounds(after, accounts_per_range)
            found = await reader.read(bounds, listed) if bounds else None
        if bounds is None or found is None:
            break
        after, listed = bounds.upto, listed + len(found.rows)
        if progress:
            progress(after, max(after, last_id))
        yield found
        await asyncio.sleep(pause_s)
    # Ids beyond the last account of the shards asked for.
    if progress and after < last_id:
        progress(last_id, last_id)


class _Bounds(NamedTuple):
    """A range of accounts, and from when on their readings matter."""

    after: int
    upto: int
    since: datetime


class _State(NamedTuple):
    """A row of `balances_states`."""

    id: int
    meter_id: int | None
    mode: str
    cut_at_minor: int
    posted_minor: int
    charged_minor: int
    through: date
    before_wh: int
    part_start_wh: int
    closed_wh: int
    demand_w: int
    anchor_ms: int
    anchor_wh: int
    opened_on: date
    terms: str
    read_ms: int | None
    last_ms: int
    last_wh: int | None


class _Facts(NamedTuple):
    """A row of `balances_facts`, without its id."""

    number: str
    category: str
    desired: str
    reported: str | None
    phone_verified: bool
    exhausted_ms: int | None


class _Reader:
    """Reads ranges one after the other; keeps tariffs, bill parts and rates that it has met."""

    def __init__(self, conn: AsyncConnection, calendar: LocalCalendar, asked: Asked) -> None:
        self._conn = conn
        self._calendar = calendar
        self._asked = asked
        self._table = RateTable()
        self._tariffs: dict[str, Tariff] = {}
        self._parts: dict[_TermsKey, BillPart] = {}

    async def bounds(self, after: int, most: int) -> _Bounds | None:
        """Return the next range, None after the last account."""
        parameters = {"after": after, "most": most, "shards": list(self._asked.shards)}
        cursor = await self._conn.execute(sql("balances_range"), parameters)
        row = await cursor.fetchone()
        assert row is not None, "balances_range returns one row"
        return None if row[0] is None else _Bounds(after=after, upto=row[0], since=row[1])

    async def read(self, bounds: _Bounds, listed: int) -> BalanceRange:
        """Read a range; `listed` rows were listed before it."""
        parameters = {**bounds._asdict(), "shards": list(self._asked.shards), "category": self._asked.category}
        cursor = await self._conn.execute(sql("balances_states"), parameters)
        everyone = list(starmap(_State, await cursor.fetchall()))
        states = [state for state in everyone if state.meter_id is not None]
        parts = await self._parts_of(states)
        balances_minor, plain = await self._balances(states, parts)
        matching, uses = await self._matching(states, balances_minor)
        most = self._asked.rows_most
        shown = matching if most is None else matching[: max(0, most - listed)]
        owing = np.flatnonzero(balances_minor < 0).tolist()
        if self._asked.days_left is None:
            uses = await self._uses([states[place].id for place in shown])
        facts = await self._facts([states[place].id for place in sorted({*shown, *owing})])
        return BalanceRange(
            accounts=len(everyone),
            without_meter=len(everyone) - len(states),
            plain=plain,
            matching=len(matching),
            rows=tuple(
                _row(states[place], int(balances_minor[place]), uses, facts, parts[place].tariff.currency)
                for place in shown
            ),
            debts=tuple(
                Debt(
                    currency=parts[place].tariff.currency,
                    balance_minor=int(balances_minor[place]),
                    exhausted_ms=facts[states[place].id].exhausted_ms,
                )
                for place in owing
            ),
        )

    async def _balances(self, states: Sequence[_State], parts: Sequence[BillPart]) -> tuple[Int64, int]:
        """Return the running balance of each account, and how many were looked at one by one."""
        kept = RunningAccounts(self._table, self._calendar)
        rated = [
            place
            for place, (state, part) in enumerate(zip(states, parts, strict=True))
            if not part.zone_count and state.last_wh is not None
        ]
        kept.extend((_checkpoint(states[place]), parts[place]) for place in rated)
        last_ms = np.array([states[place].last_ms for place in rated], dtype=np.int64)
        last_wh = np.array([states[place].last_wh for place in rated], dtype=np.int64)
        balances_minor = np.zeros(len(states), dtype=np.int64)
        left = set(range(len(states))) - set(rated)
        try:
            balances_minor[rated], others = kept.balances(np.arange(len(rated)), last_ms, last_wh)
            left |= {rated[place] for place in others.tolist()}
        except BeyondLimits:
            # One account of another century is no reason to refuse all others.
            left = set(range(len(states)))
        plain = sorted(left)
        for first in range(0, len(plain), ACCOUNTS_PER_LOOK):
            some = plain[first : first + ACCOUNTS_PER_LOOK]
            views = await look(self._conn, [states[place].id for place in some], self._calendar)
            balances_minor[some] = [views[states[place].id].balance_minor(self._calendar) for place in some]
        return balances_minor, len(plain)

    async def _matching(self, states: Sequence[_State], balances_minor: Int64) -> tuple[list[int], dict[int, Use]]:
        """Return the places of the accounts to list, and what was read for that of their use."""
        below_minor, days = self._asked.below_minor, self._asked.days_left
        below = np.flatnonzero(balances_minor < below_minor) if below_minor is not None else np.arange(len(states))
        places: list[int] = below.tolist()
        if days is None:
            return places, {}
        uses = await self._uses([states[place].id for place in places])
        lasting = (_days_left(states[place], int(balances_minor[place]), uses) for place in places)
        return [place for place, left in zip(places, lasting, strict=True) if left is not None and left < days], uses

    async def _uses(self, ids: Sequence[int]) -> dict[int, Use]:
        """Read the last closed days of those accounts that have any."""
        if not ids:
            return {}
        cursor = await self._conn.execute(sql("balances_uses"), {"ids": list(ids), "days": USE_DAYS})
        return {
            account_id: Use(days=days, energy_wh=energy_wh, charge_minor=charge_minor)
            for account_id, days, energy_wh, charge_minor in await cursor.fetchall()
        }

    async def _facts(self, ids: Sequence[int]) -> dict[int, _Facts]:
        if not ids:
            return {}
        cursor = await self._conn.execute(sql("balances_facts"), {"ids": list(ids)})
        return {row[0]: _Facts(*row[1:]) for row in await cursor.fetchall()}

    async def _parts_of(self, states: Sequence[_State]) -> list[BillPart]:
        """Return the bill part of each account's first open day; accounts of the same terms share it."""
        keys = [(state.through, state.opened_on, state.terms) for state in states]
        missing = set(keys) - self._parts.keys()
        if len(self._parts) + len(missing) > PARTS_MAX:
            self._parts.clear()
            missing = set(keys)
        if missing:
            terms = {key: json.loads(key[2]) for key in missing}
            await self._know_tariffs({row[1] for rows in terms.values() for row in rows})
            for key, rows in terms.items():
                self._parts[key] = _part(key, rows, self._tariffs)
        return [self._parts[key] for key in keys]

    async def _know_tariffs(self, ids: set[str]) -> None:
        missing = ids - self._tariffs.keys()
        if missing:
            cursor = await self._conn.execute(sql("balances_tariffs"), {"ids": sorted(missing)})
            checksums: dict[str, str] = dict(await cursor.fetchall())
            tariffs = await tariffs_by_checksum(self._conn, checksums.values())
            self._tariffs |= {tariff_id: tariffs[checksum] for tariff_id, checksum in checksums.items()}


def _part(key: _TermsKey, rows: Sequence[Sequence[Any]], tariffs: Mapping[str, Tariff]) -> BillPart:
    """Return the bill part of the first open day; of what was assigned before its month only the last counts."""
    # Rows are JSON that `balances_states` has built of typed columns.
    through, opened_on, _ = key
    by_day = {
        date.fromisoformat(from_day): Assignment(
            from_day=date.fromisoformat(from_day),
            tariff=tariffs[tariff_id],
            load_w=load_w,
            area=area_type,
            meter_rent=meter_rent,
        )
        for from_day, tariff_id, load_w, area_type, meter_rent in rows
    }
    return Terms(opened_on=opened_on, assignments=tuple(by_day.values())).part_at(through)


def _checkpoint(state: _State) -> Checkpoint:
    """Return the posted state of an account without zones."""
    return Checkpoint(
        posted_minor=state.posted_minor,
        charged_minor=state.charged_minor,
        through=state.through,
        before_wh=state.before_wh,
        part_start_wh=state.part_start_wh,
        closed_wh=state.closed_wh,
        closed_zones=(),
        demand_w=state.demand_w,
        anchor=Point(at_ms=state.anchor_ms, energy_wh=state.anchor_wh),
        anchor_zones=(),
    )


def _days_left(state: _State, balance_minor: int, uses: Mapping[int, Use]) -> int | None:
    if state.mode == Mode.POSTPAID:
        return None
    return days_left(balance_minor, state.cut_at_minor, uses.get(state.id, NO_USE))


def _row(
    state: _State, balance_minor: int, uses: Mapping[int, Use], facts: Mapping[int, _Facts], currency: str
) -> BalanceRow:
    known = facts[state.id]
    return BalanceRow(
        number=known.number,
        category=known.category,
        mode=Mode(state.mode),
        currency=currency,
        balance_minor=balance_minor,
        days_left=_days_left(state, balance_minor, uses),
        use=uses.get(state.id, NO_USE),
        desired=Supply(known.desired),
        reported=Supply(known.reported) if known.reported else None,
        last_reading_ms=state.read_ms,
        phone_verified=known.phone_verified,
    )
