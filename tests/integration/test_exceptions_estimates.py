"""Estimates of gaps and money: whatever was estimated, once readings arrive the account has paid the bill on them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import date, datetime, timedelta

import pytest
from psycopg import AsyncConnection

from billing.calendar import from_ms, to_ms
from billing.running import Point, bill_by_month
from db.correction_scope import EstimatedFrom, ReadingEdit
from db.corrections import account_rows, compute, propose_estimates, propose_reversal
from headend.estimation.rules import spread
from tests.integration.correction_street import (
    CLERK,
    JUNE_9,
    ZONED_ID,
    add_tariffs,
    assert_clean,
    by_part,
    carried_out,
    curve,
)
from tests.integration.test_posting import (
    KOLKATA,
    RULES,
    TARIFF_ID,
    Home,
    Seen,
    booked,
    close,
    from_scratch,
    local,
    on_database,
    open_home,
    read,
    rows,
    view_of,
    without_zeros,
)

pytestmark = pytest.mark.db

APRIL_29, MAY_3 = date(2026, 4, 29), date(2026, 5, 3)


def with_gap() -> tuple[list[Seen], list[Seen]]:
    """Return readings of ten weeks, and those that are missing over the end of April."""
    seen = curve()
    missing = [each for each in seen if local(APRIL_29) < each[0] < local(MAY_3)]
    return [each for each in seen if each not in missing], missing


def around(known: Sequence[Seen], missing: Sequence[Seen]) -> tuple[Seen, Seen]:
    """Return the readings on both sides of a gap."""
    before = max(each for each in known if each[0] < missing[0][0])
    return before, min(each for each in known if each[0] > missing[-1][0])


def guessed(known: Sequence[Seen], missing: Sequence[Seen], rng: random.Random) -> list[ReadingEdit]:
    """Estimate half-hours of a gap by weights that chance has drawn: as wrong as a rule may be."""
    (from_at, from_wh), (to_at, to_wh) = around(known, missing)
    ats: list[datetime] = []
    at = from_at + timedelta(minutes=30)
    while at < to_at:
        ats.append(at)
        at += timedelta(minutes=30)
    parts = spread(to_wh - from_wh, [rng.choice((0, 1, 50)) for _ in ats] + [1])
    made = EstimatedFrom(rule="profile", inputs={"seed": 1}, from_at=from_at, from_wh=from_wh, to_at=to_at, to_wh=to_wh)
    done, edits = from_wh, []
    for at, part in zip(ats, parts, strict=False):
        done += part
        edits.append(ReadingEdit(serial="M-A1", meter_id=0, read_at=at, import_wh=done, estimated=made))
    return edits


async def lived(conn: AsyncConnection, tariff_id: str, known: Sequence[Seen]) -> Home:
    """A home with a gap over the end of April, closed into June."""
    await add_tariffs(conn)
    home = await open_home(conn, "A1", opening_credit_minor=3_000_000, tariff_id=tariff_id)
    await read(conn, home, known)
    await close(conn, JUNE_9 - timedelta(days=4))
    return home


async def scratch_estimated(conn: AsyncConnection, home: Home) -> dict[date, tuple[int, dict[str, int]]]:
    """Rate readings and the estimates that hold at once."""
    view = await view_of(conn, home)
    found = await rows(
        conn,
        "select read_at, import_wh from effective_readings where meter_id = %s"
        " union select read_at, import_wh from held_estimates where meter_id = %s order by 1",
        home.meter_id,
        home.meter_id,
    )
    points = [Point(at_ms=view.meter.installed_ms, energy_wh=0)]
    points += [Point(at_ms=to_ms(row["read_at"]), energy_wh=row["import_wh"]) for row in found]
    last_day = max(KOLKATA.day_of(points[-1].at_ms), view.checkpoint.through)
    rated = bill_by_month(view.terms, points, last_day=last_day, calendar=KOLKATA)
    return {month: (energy_wh, dict(without_zeros(lines))) for month, (energy_wh, lines) in rated.items()}


@pytest.mark.parametrize(("tariff_id", "seed"), [(TARIFF_ID, 1), (ZONED_ID, 2), (ZONED_ID, 3)])
def test_estimated_gap_settles_to_the_bill_on_actual_readings(database_url: str, tariff_id: str, seed: int) -> None:
    """Estimate, correct, close on, then the readings arrive in any order: charges telescope to the actual bill."""

    async def story(conn: AsyncConnection) -> None:
        rng = random.Random(seed)
        known, missing = with_gap()
        home = await lived(conn, tariff_id, known)
        parts_before = await by_part(conn, home)
        edits = [
            ReadingEdit(
                serial=edit.serial,
                meter_id=home.meter_id,
                read_at=edit.read_at,
                import_wh=edit.import_wh,
                estimated=edit.estimated,
            )
            for edit in guessed(known, missing, rng)
        ]
        correction = await propose_estimates(conn, "A1", edits, reason="gap over the month's end", by=CLERK)
        await compute(conn, correction, rules=RULES)
        (row,) = await account_rows(conn, correction, most=10)
        # The dry run wrote nothing and says what applying does.
        assert await by_part(conn, home) == parts_before
        await carried_out(conn, correction)
        assert row.parts
        assert await by_part(conn, home) != parts_before
        assert await booked(conn, home) == await scratch_estimated(conn, home)
        await assert_clean(conn)
        await close(conn, JUNE_9)
        assert await booked(conn, home) == await scratch_estimated(conn, home)
        rng.shuffle(missing)
        while missing:
            number = rng.randint(1, len(missing))
            some, missing = sorted(missing[:number]), missing[number:]
            await read(conn, home, some, late=True)
            # The first actual reading has ended all estimates of the gap.
            assert await booked(conn, home) == await from_scratch(conn, home, JUNE_9 + timedelta(days=1))
        assert await rows(conn, "select * from held_estimates") == []
        await assert_clean(conn)

    on_database(database_url, story)


def test_estimates_are_taken_back_by_a_reversal_and_end_with_their_readings(database_url: str) -> None:
    """A reversal restores every part to the paisa; an estimate of a gap that has changed since is refused."""

    async def story(conn: AsyncConnection) -> None:
        known, missing = with_gap()
        home = await lived(conn, ZONED_ID, known)
        parts_before = await by_part(conn, home)
        (from_at, from_wh), (to_at, to_wh) = around(known, missing)
        made = EstimatedFrom(rule="profile", inputs={}, from_at=from_at, from_wh=from_wh, to_at=to_at, to_wh=to_wh)
        # All at the beginning of the gap: April's.
        at = from_ms(to_ms(from_at) + 1_800_000)
        edit = ReadingEdit(serial="M-A1", meter_id=home.meter_id, read_at=at, import_wh=to_wh, estimated=made)
        correction = await propose_estimates(conn, "A1", [edit], reason="gap", by=CLERK)
        await carried_out(conn, correction)
        assert await by_part(conn, home) != parts_before
        await carried_out(conn, await propose_reversal(conn, correction, reason="wrong house", by=CLERK))
        assert await by_part(conn, home) == parts_before
        await assert_clean(conn)
        late = await propose_estimates(conn, "A1", [edit], reason="gap", by=CLERK)
        await read(conn, home, [missing[0]], late=True)
        assert (await compute(conn, late, rules=RULES)).refused == 1
        (row,) = await account_rows(conn, late, most=1)
        assert "a gap that is still open" in str(row.detail)

    on_database(database_url, story)
