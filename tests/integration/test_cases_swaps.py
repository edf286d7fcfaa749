"""A meter is swapped on a real PostgreSQL: each Wh is billed once, whichever meter counted it; the audit is clean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import AsyncConnection

from billing.calendar import to_ms
from billing.correction import Fault, Overhaul, StatedEnergy
from billing.journals import JournalKind
from billing.rating import Lines
from billing.running import Point, bill_by_month
from db.correction_scope import TermsScope
from db.corrections import propose_overhaul, propose_terms
from db.registry import NewMeter, add_meter
from db.swaps import Swap, Swapped, SwapRefused, swap_meter
from tests.commands import run_command, settings_for
from tests.integration.correction_street import (
    CLERK,
    DEMAND_ID,
    ZONED_ID,
    add_tariffs,
    assert_clean,
    carried_out,
    curve,
)
from tests.integration.test_posting import (
    APRIL,
    KOLKATA,
    MAY,
    NOW_MS,
    RULES,
    Home,
    Seen,
    booked,
    close,
    local,
    money,
    on_database,
    open_home,
    orders,
    read,
    rows,
    view_of,
    without_zeros,
)

pytestmark = pytest.mark.db

# The new meter's register stood here when it was installed.
OPENING_WH = 50_000
MAY_20 = date(2026, 5, 20)


async def new_meter(conn: AsyncConnection, serial: str = "NEW") -> None:
    await add_meter(conn, NewMeter(serial=serial, rated_w=15_000, register_end_wh=1_000_000_000))


async def swapped(conn: AsyncConnection, home: Home, at: datetime, **changes: Any) -> Swapped:
    """Swap a home's meter for the new one."""
    fields: dict[str, Any] = {
        "account_id": home.account_id, "new_serial": "NEW", "at": at, "closing_wh": None, "opening_wh": OPENING_WH,
        "reason": "burnt", "by": CLERK,
    }  # fmt: skip
    async with conn.transaction():
        return await swap_meter(conn, Swap(**(fields | changes)), rules=RULES, now_ms=NOW_MS)


async def at_new(conn: AsyncConnection, home: Home) -> Home:
    """Return the home with the meter that stands there now."""
    view = await view_of(conn, home)
    return Home(account_id=home.account_id, meter_id=view.meter.id, number=home.number)


def split(seen: Sequence[Seen], at: datetime, closing_wh: int) -> tuple[list[Seen], list[Seen]]:
    """Return what the old meter reads until a swap, and the new one after it."""
    before = [(when, wh) for when, wh in seen if when <= at]
    return before, [(when, wh - closing_wh + OPENING_WH) for when, wh in seen if when > at]


async def rated(conn: AsyncConnection, home: Home, points: Iterable[Seen]) -> dict[date, tuple[int, Lines]]:
    """Rate a whole curve at once, under the home's terms."""
    view = await view_of(conn, home)
    whole = [
        Point(at_ms=to_ms(local(APRIL)), energy_wh=0),
        *(Point(at_ms=to_ms(at), energy_wh=wh) for at, wh in points),
    ]
    last_day = max(KOLKATA.day_of(whole[-1].at_ms), view.checkpoint.through)
    found = bill_by_month(view.terms, whole, last_day=last_day, calendar=KOLKATA)
    return {month: (wh, without_zeros(lines)) for month, (wh, lines) in found.items()}


# When the meter is changed, and up to which day the account is closed then.
SWAPS = {
    "in_an_open_day": (local(MAY_20, 14.5), MAY_20 - timedelta(days=3)),
    "in_a_closed_day": (local(MAY_20, 14.5), MAY_20 + timedelta(days=2)),
    "at_midnight_of_a_month": (local(MAY), APRIL + timedelta(days=27)),
    "before_a_month_that_was_closed_unread": (local(APRIL, 24 * 29 + 23), MAY + timedelta(days=2)),
}


@pytest.mark.parametrize(
    ("swap", "tariff"),
    [
        ("in_an_open_day", ZONED_ID),
        ("in_a_closed_day", None),
        ("before_a_month_that_was_closed_unread", ZONED_ID),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("in_an_open_day", None),
                ("in_a_closed_day", ZONED_ID),
                ("before_a_month_that_was_closed_unread", None),
                ("at_midnight_of_a_month", None),
                ("at_midnight_of_a_month", ZONED_ID),
            )
        ),
    ],
)
def test_swapped_meter_is_billed_as_one_curve(database_url: str, swap: str, tariff: str | None) -> None:
    """Bills of all months are those of one curve through both meters, also after late readings and other terms."""
    at, closed = SWAPS[swap]

    async def story(conn: AsyncConnection) -> None:
        await add_tariffs(conn)
        terms = {"tariff_id": tariff} if tariff else {}
        home = await open_home(conn, "A1", opening_credit_minor=3_000_000, **terms)
        seen = curve(70)
        closing_wh = next(wh for when, wh in reversed(seen) if when <= at) + 700
        whole = sorted([*seen, (at, closing_wh)])
        # From the swap on the home uses what it used, less what the old meter still counted.
        before, after = split(seen, at, closing_wh - 700)
        whole = [*before, (at, closing_wh), *((when, wh - OPENING_WH + closing_wh) for when, wh in after)]
        await read(conn, home, before)
        await close(conn, closed)
        await new_meter(conn)
        done = await swapped(conn, home, at, closing_wh=closing_wh)
        assert (done.energy_wh, done.since_reading_wh, done.old_serial) == (closing_wh, 700, "M-A1")
        await assert_clean(conn)
        home = await at_new(conn, home)
        late = after[len(after) // 2]
        await read(conn, home, [each for each in after if each != late])
        assert await booked(conn, home) == await rated(conn, home, [p for p in whole if p[0] != late[0]])
        await close(conn, KOLKATA.day_of(to_ms(after[-1][0])) - timedelta(days=2))
        await assert_clean(conn)
        await read(conn, home, [late], late=True)
        await assert_clean(conn)
        assert await booked(conn, home) == await rated(conn, home, whole)
        scope = TermsScope(numbers=("A1",), from_day=date(2026, 4, 15), new_load_w=4_000)
        await carried_out(conn, await propose_terms(conn, scope, reason="load order", by=CLERK))
        await assert_clean(conn)
        assert await booked(conn, home) == await rated(conn, home, whole)
        await close(conn, KOLKATA.day_of(to_ms(after[-1][0])))
        await assert_clean(conn)

    on_database(database_url, story)


def test_burnt_meter_is_overhauled_for_months_before_it_was_swapped(database_url: str) -> None:
    """The last reading stands for a register that nobody could read; a correction assesses the old one's months."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=3_000_000)
        seen = curve(45)
        await read(conn, home, seen)
        await new_meter(conn)
        done = await swapped(conn, home, local(MAY_20, 9))
        assert (done.energy_wh, done.since_reading_wh) == (seen[-1][1], 0)
        home = await at_new(conn, home)
        await read(conn, home, [(local(MAY_20, 10 + 6 * n), OPENING_WH + 900 * n) for n in range(1, 80)])
        await close(conn, date(2026, 6, 5))
        overhaul = Overhaul(
            fault=Fault.BURNT,
            first=date(2026, 5, 16),
            last=date(2026, 5, 31),
            assessment=StatedEnergy(month_wh=400_000),
        )
        correction = await propose_overhaul(conn, ["A1"], overhaul, reason="burnt", by=CLERK)
        summary = await carried_out(conn, correction)
        assert (summary.applied, summary.refused, summary.debited) == (1, 0, 1)
        await assert_clean(conn)

    on_database(database_url, story)


def test_swap_takes_supply_alarm_and_demand_along(database_url: str) -> None:
    """The old meter's orders are over, the new one gets its own; the demand of a swapped day is the greater one's."""

    async def story(conn: AsyncConnection) -> None:
        await add_tariffs(conn)
        home = await open_home(conn, "A1", opening_credit_minor=20_000, threshold_minor=10_000)
        await read(conn, home, [(local(APRIL, 24), 60_000)])
        assert (await orders(conn, home))[-1][:2] == ("off", "pending")
        await new_meter(conn)
        await swapped(conn, home, local(APRIL, 26))
        assert [state for _, state, _ in await orders(conn, home)] == ["superseded", "pending"]
        open_at = await rows(
            conn,
            "select distinct m.serial from supply_orders o join meters m on m.id = o.meter_id"
            " where o.state = 'pending' order by 1",
        )
        assert [row["serial"] for row in open_at] == ["NEW"]
        await assert_clean(conn)
        await money(conn, home, JournalKind.VEND, 500_000)
        other = await open_home(conn, "D1", tariff_id=DEMAND_ID, opening_credit_minor=3_000_000)
        await read(conn, other, [(local(APRIL, n / 2), 1_000 * n) for n in range(1, 20)])
        await new_meter(conn, "NEW2")
        await swapped(conn, other, local(APRIL, 10), new_serial="NEW2", closing_wh=19_500)
        other = await at_new(conn, other)
        await read(conn, other, [(local(APRIL, 10 + n / 2), OPENING_WH + 500 * n) for n in range(1, 40)])
        await close(conn, APRIL)
        assert (await view_of(conn, other)).checkpoint.demand_w == 2_000
        await assert_clean(conn)

    on_database(database_url, story)


def test_swap_that_does_not_fit_the_meters_is_refused_and_changes_nothing(database_url: str) -> None:
    """A register below the last reading or beyond the rated power, an instant before it, a meter in use elsewhere."""

    async def story(conn: AsyncConnection) -> None:
        home, other = await open_home(conn, "A1"), await open_home(conn, "A2")
        await read(conn, home, [(local(APRIL, 24), 6_000)])
        await new_meter(conn)
        noon = local(APRIL, 36)
        for at, changes, named in (
            (noon, {"closing_wh": 5_999}, "closing register"),
            (noon, {"closing_wh": 6_000 + 12 * 15_000 + 1}, "closing register"),
            (noon, {"opening_wh": 1_000_000_000}, "opening register"),
            (noon, {"new_serial": "M-A2"}, "stands nowhere"),
            (noon, {"new_serial": "M-A1"}, "stands nowhere"),
            (noon, {"new_serial": "X"}, "registered"),
            (local(APRIL, 23), {}, "latest reading"),
            (local(APRIL), {}, "was installed"),
            (datetime.fromtimestamp(NOW_MS / 1000 + 1, KOLKATA.zone), {}, "not in the future"),
        ):
            with pytest.raises(SwapRefused, match=named):
                await swapped(conn, home, at, **changes)
        assert (await view_of(conn, home)).meter.serial == "M-A1"
        # It comes back at another home, and what it counted at the first one is not charged there.
        await swapped(conn, home, noon, closing_wh=6_500)
        await swapped(conn, other, local(APRIL, 40), new_serial="M-A1", opening_wh=6_500)
        back = await at_new(conn, other)
        await read(conn, back, [(local(APRIL, 60), 7_500)])
        assert (await view_of(conn, other)).points[-1].energy_wh == 1_000
        await close(conn, APRIL + timedelta(days=1))
        await assert_clean(conn)

    on_database(database_url, story)


def test_swap_command_prints_what_was_swapped_and_refuses_in_one_line(database_url: str, tmp_path: Path) -> None:
    """One JSON object; a register that is none, or a meter nobody registered, is refused with status 2."""

    async def story(conn: AsyncConnection) -> None:
        await read(conn, await open_home(conn, "A1"), [(local(APRIL, 24), 6_000)])
        await new_meter(conn)

    on_database(database_url, story)
    settings = settings_for(database_url, tmp_path)
    at = ("--at", local(APRIL, 36).isoformat(), "--opening", "50000", "--reason", "burnt", "--by", CLERK)
    for arguments, named in (
        (("NEW", "--closing", "many"), "--closing: expected a register in Wh or `unread`"),
        (("X", "--closing", "unread"), "expected a registered one"),
    ):
        refused = run_command("meters", "swap", "A1", *arguments, *at, environment=settings, status=2)
        assert named in refused.stderr
    swap = ("meters", "swap", "A1", "NEW", "--closing", "6500", *at, "--json")
    done = json.loads(run_command(*swap, environment=settings).stdout)
    assert (done["old_serial"], done["new_serial"], done["energy_wh"], done["since_reading_wh"]) == (
        "M-A1", "NEW", 6_500, 500,
    )  # fmt: skip
