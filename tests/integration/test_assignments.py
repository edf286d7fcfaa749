"""Dated changes of terms on a real PostgreSQL: for open days only, once, and charged as if rated from scratch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import AsyncConnection

import prepaid.tariff_assignments
from billing.assigning import AssignmentRefused, AssignmentRequest
from billing.calendar import LocalCalendar, to_ms
from billing.rating import Lines
from billing.running import Point, bill_by_month
from billing.tariff_document import builtin_documents
from db.accounts import AccountView, day_demands, look
from db.assignments import assign
from db.audit import run_checks
from db.migrate import migrate
from db.orders import PostingRules
from db.pool import connect
from db.posting import lock_and_look, post_readings
from db.readings import copy_readings, ensure_partitions
from db.registry import NewAccount, NewMeter, add_meter, open_account
from db.reports import bills
from db.tariffs import add_tariff, tariff_by_id
from headend.edges.close_day import close_day
from prepaid.csv_lines import ImportRefused
from prepaid.settings import Settings
from prepaid.tariff_assignments import run_assign
from protocols.rows import ReadingRow

pytestmark = pytest.mark.db

KOLKATA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
RULES = PostingRules(calendar=KOLKATA)
NOW_MS = to_ms(datetime(2026, 7, 1, tzinfo=UTC))
APRIL, MAY, JUNE = date(2026, 4, 1), date(2026, 5, 1), date(2026, 6, 1)
DOMESTIC = "punjab-ds-2026-27"
PRO_RATA = builtin_documents()[DOMESTIC].replace(DOMESTIC, "pro-rata").replace('"whole"', '"pro_rata"')
DOCUMENTS = (
    DOMESTIC, "punjab-ds-2026-27-subsidy", "punjab-nrs-2026-27", "punjab-tod-commercial-2026-27", "pro-rata",
)  # fmt: skip
COLUMNS = "account,from_day,tariff_id,category,sanctioned_load_w,area_type,meter_rent"
DAY = timedelta(days=1)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of an installation on the test's own database."""
    return Settings(database_url=database_url, data_dir=tmp_path / "var")


def on_database(url: str, story: Callable[[AsyncConnection], Awaitable[None]]) -> None:
    """Run a story on one connection to a migrated database that also has a tariff with shared-out slab limits."""

    async def run() -> None:
        async with await connect(url, application="test") as conn:
            await migrate(conn)
            await add_tariff(conn, PRO_RATA)
            await story(conn)

    asyncio.run(run())


async def open_home(conn: AsyncConnection, number: str = "A1", **terms: object) -> int:
    """Open an account on 1 April with Rs 100,000 on the domestic tariff."""
    await add_meter(conn, NewMeter(serial=f"M-{number}", rated_w=60_000, register_end_wh=1_000_000_000))
    account = {
        "number": number,
        "consumer": number,
        "usage_point": number,
        "meter_serial": f"M-{number}",
        "opened_at": local(APRIL),
        "register_wh": 0,
        "tariff_id": DOMESTIC,
        "sanctioned_load_w": 2_000,
        "opening_credit_minor": 10_000_000,
    }
    account_id = await open_account(conn, NewAccount(**(account | terms)), rules=RULES, now_ms=NOW_MS)  # type: ignore[arg-type]  # Fields by name.
    assert account_id is not None
    return account_id


def local(day: date, hours: float = 0) -> datetime:
    """Return the instant so many hours after a local midnight."""
    return datetime(day.year, day.month, day.day, tzinfo=KOLKATA.zone).astimezone(UTC) + timedelta(hours=hours)


async def read(
    conn: AsyncConnection, account_id: int, seen: Sequence[tuple[datetime, int]], *, late: bool = False
) -> None:
    """Store readings, and let the account catch up with them."""
    meter_id = (await view_of(conn, account_id)).meter.id
    rows = [ReadingRow(meter_id, at, wh, None, None, None, None, None, None) for at, wh in seen]
    await ensure_partitions(conn, {row.read_at.date() for row in rows})
    await copy_readings(conn, rows)
    async with conn.transaction():
        view = await lock_and_look(conn, account_id, RULES)
        since_ms = to_ms(min(at for at, _ in seen)) if late else None
        await post_readings(conn, view, late_since_ms=since_ms, rules=RULES, now_ms=NOW_MS)


async def give(
    conn: AsyncConnection, account_id: int, day: date, tariff_id: str | None = None, **terms: object
) -> bool:
    """Assign other terms from a day on."""
    tariff = None if tariff_id is None else await tariff_by_id(conn, tariff_id)
    request = AssignmentRequest(from_day=day, tariff=tariff, **terms)  # type: ignore[arg-type]  # Fields by name.
    return await assign(conn, account_id, request, rules=RULES, now_ms=NOW_MS)


async def view_of(conn: AsyncConnection, account_id: int) -> AccountView:
    """Look at an account."""
    return (await look(conn, [account_id], KOLKATA))[account_id]


async def one(conn: AsyncConnection, query: str) -> object:
    """Read one value."""
    row = await (await conn.execute(query.encode())).fetchone()
    assert row is not None
    return row[0]


async def assert_charged_from_scratch(conn: AsyncConnection, account_id: int) -> dict[date, tuple[int, Lines]]:
    """Check that journals and open charge are what rating all readings at once says, and that the audit is clean."""
    view = await view_of(conn, account_id)
    cursor = await conn.execute(
        b"select read_at, import_wh from readings where meter_id = %s order by read_at", [view.meter.id]
    )
    curve = [Point(at_ms=view.meter.installed_ms, energy_wh=0)]
    curve += [Point(at_ms=to_ms(at), energy_wh=wh) for at, wh in await cursor.fetchall()]
    last_day = max(KOLKATA.day_of(curve[-1].at_ms), view.checkpoint.through)
    cursor = await conn.execute(
        b"select local_day, demand_w from journals where account_id = %s and demand_w is not null", [account_id]
    )
    demands = dict(await cursor.fetchall())
    rated = bill_by_month(view.terms, curve, last_day=last_day, calendar=KOLKATA, demands_w=demands)
    booked = {
        period: (bill.energy_wh, without_zeros(bill.lines))
        for period, bill in (await bills(conn, [view], KOLKATA))[account_id].items()
    }
    assert booked == {period: (energy_wh, without_zeros(lines)) for period, (energy_wh, lines) in rated.items()}
    await assert_audit_clean(conn)
    return booked


async def assert_audit_clean(conn: AsyncConnection) -> None:
    """Check every invariant but the count of batches: readings are stored here without one."""
    report = await run_checks(conn, KOLKATA)
    assert [check.line() for check in report.checks if check.broken and check.id != "I3-rows"] == []


def without_zeros(lines: Lines) -> Lines:
    return {name: amount for name, amount in lines.items() if amount}


def test_new_order_from_the_first_of_a_month_leaves_the_month_before_alone(database_url: str) -> None:
    """April at 3.85, May as the commercial placeholder says; version and change feed tell the shard's owner."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn)
        await read(conn, home, [(local(APRIL, 24 * 12), 50_000)])
        await close_day(conn, date(2026, 4, 10), rules=RULES)
        before = await view_of(conn, home)
        fed = await one(conn, "select count(*) from change_feed")
        assert await give(conn, home, MAY, "punjab-nrs-2026-27", category="NRS", load_w=5_000, area="rural")
        after = await view_of(conn, home)
        assert after.version == before.version + 1
        assert await one(conn, "select count(*) from change_feed") == fed + 1  # type: ignore[operator]  # A number.
        assert after.checkpoint == before.checkpoint
        await read(conn, home, [(local(MAY), 100_000), (local(JUNE), 160_000)])
        await close_day(conn, date(2026, 5, 31), rules=RULES)
        booked = await assert_charged_from_scratch(conn, home)
        assert booked[APRIL] == (100_000, {"energy_1": 38_500, "fixed": 10_000, "rebate": -385, "duty": 7_217})
        # 60 x 6.25, 5 x 60, 1 % off the energy, 15 % of the rest.
        assert booked[MAY] == (60_000, {"energy_1": 37_500, "fixed": 30_000, "rebate": -375, "duty": 10_069})

    on_database(database_url, story)


def test_new_load_from_the_first_open_day_ends_the_bill_part_there(database_url: str) -> None:
    """2 kW for ten days and 5 kW for twenty; slabs go on where the first part left them."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn)
        await read(conn, home, [(local(date(2026, 4, 11)), 200_000), (local(date(2026, 4, 12)), 220_000)])
        await close_day(conn, date(2026, 4, 10), rules=RULES)
        assert await give(conn, home, date(2026, 4, 11), load_w=5_000)
        checkpoint = (await view_of(conn, home)).checkpoint
        assert (checkpoint.charged_minor, checkpoint.before_wh, checkpoint.part_start_wh) == (0, 200_000, 200_000)
        await assert_charged_from_scratch(conn, home)
        await read(conn, home, [(local(MAY), 350_000)])
        await close_day(conn, date(2026, 4, 30), rules=RULES)
        _, lines = (await assert_charged_from_scratch(conn, home))[APRIL]
        # 100 x 10/30 + 350 x 20/30; 200 units in the first part, 100 more to 300 in the second, 50 above.
        assert (lines["fixed"], lines["energy_1"], lines["energy_2"]) == (3_333 + 23_333, 77_000 + 38_500, 35_250)

    on_database(database_url, story)


def test_new_terms_at_the_end_of_a_silent_stretch_settle_the_days_that_were_closed_unread(database_url: str) -> None:
    """The edge between the parts is where the readings say, also when days before it were closed on old ones."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn)
        await read(conn, home, [(local(date(2026, 4, 5)), 100_000)])
        await close_day(conn, date(2026, 4, 10), rules=RULES)
        await read(conn, home, [(local(date(2026, 4, 15)), 200_000)])
        assert await give(conn, home, date(2026, 4, 11), "punjab-tod-commercial-2026-27", load_w=20_000)
        await assert_charged_from_scratch(conn, home)
        assert await one(conn, "select sum(energy_wh)::int from journals where kind = 'late_usage'") == 60_000

    on_database(database_url, story)


def test_shared_out_slab_limits_are_charged_anew_when_the_month_is_cut_short(database_url: str) -> None:
    """With limits by days, a change on the 21st leaves 200 of 300 units to the days before, closed ones too."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, tariff_id="pro-rata")
        await read(conn, home, [(local(date(2026, 4, 11)), 250_000)])
        await close_day(conn, date(2026, 4, 10), rules=RULES)
        assert await give(conn, home, date(2026, 4, 21), load_w=5_000)
        late = "select lines->>'energy_2' from journals where kind = 'late_usage'"
        assert await one(conn, late) == "35250"
        await assert_charged_from_scratch(conn, home)

    on_database(database_url, story)


def test_tariff_with_zones_from_an_open_day_counts_energy_by_zone_from_there(database_url: str) -> None:
    """A night in the new tariff is a night; demand of its half hours counts from its first day."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn)
        day = date(2026, 4, 9)
        await read(conn, home, [(local(day, half / 2), 1_000 * half) for half in range(1, 5 * 48)])
        await close_day(conn, day, rules=RULES)
        assert await give(conn, home, day + DAY, "punjab-tod-commercial-2026-27", load_w=1_500)
        await close_day(conn, day + 2 * DAY, rules=RULES)
        _, lines = (await assert_charged_from_scratch(conn, home))[APRIL]
        assert lines["zone_night"] < 0 < lines["zone_peak"]
        assert lines["demand"] > 0
        view = await view_of(conn, home)
        assert set(await day_demands(conn, [view], day + 4 * DAY, KOLKATA)) == {home}

    on_database(database_url, story)


def test_tariff_with_zones_from_the_first_of_an_open_month_begins_its_zones_at_nothing(database_url: str) -> None:
    """Nothing of May is closed, so only the count of zones changes in what is posted."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn)
        await read(conn, home, [(local(MAY), 30_000)])
        await close_day(conn, date(2026, 4, 30), rules=RULES)
        assert await give(conn, home, MAY, "punjab-tod-commercial-2026-27")
        checkpoint = (await view_of(conn, home)).checkpoint
        assert (checkpoint.closed_zones, checkpoint.anchor_zones) == ((0,) * 4, (0,) * 4)
        await read(conn, home, [(local(MAY, 3), 40_000), (local(MAY, 10), 50_000)])
        await close_day(conn, MAY, rules=RULES)
        await assert_charged_from_scratch(conn, home)

    on_database(database_url, story)


def test_larger_load_that_empties_the_balance_warns_at_once(database_url: str) -> None:
    """The running charge changes with the terms, so levels are decided in the same transaction."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, opening_credit_minor=2_000, threshold_minor=500)
        await close_day(conn, APRIL, rules=RULES)
        assert await one(conn, "select count(*) from alarms") == 0
        # A day of 2 kW cost Rs 3.83, a day of 60 kW costs Rs 230.
        assert await give(conn, home, APRIL + DAY, load_w=60_000)
        assert await one(conn, "select string_agg(level, ' ' order by level) from alarms") == "exhausted low"
        assert await one(conn, "select relay from supply_orders where kind = 'supply'") == "off"
        await assert_audit_clean(conn)

    on_database(database_url, story)


def test_same_assignment_again_changes_nothing(database_url: str) -> None:
    """Also when its day has been closed since, and also one that says what holds anyway."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn)
        assert await give(conn, home, date(2026, 4, 3), load_w=3_000)
        await close_day(conn, date(2026, 4, 10), rules=RULES)
        version = (await view_of(conn, home)).version
        assert not await give(conn, home, date(2026, 4, 3), load_w=3_000)
        assert not await give(conn, home, date(2026, 4, 20), load_w=3_000, category="DS")
        assert (await view_of(conn, home)).version == version
        assert await one(conn, "select count(*) from assignments") == 2

    on_database(database_url, story)


@pytest.mark.parametrize(
    ("day", "terms", "says"),
    [
        (APRIL, {"load_w": 1}, "from_day: expected a day after the opening on 2026-04-01"),
        (date(2026, 4, 9), {"load_w": 1}, "expected 2026-04-11, the first day that is not closed, or later; earlier"),
        (date(2026, 4, 15), {"load_w": 1}, "from_day: expected a day after the last assignment of 2026-04-20"),
        (date(2026, 4, 20), {"load_w": 1}, "to change that one takes a correction"),
        (MAY, {"area": "hill"}, "area_type: expected one of rural, urban as in punjab-nrs-2026-27, got 'hill'"),
        (MAY, {"tariff_id": "kenya-domestic-2018-19"}, "tariff_id: expected a tariff in INR"),
    ],
)
def test_assignment_that_cannot_stand_is_refused(
    database_url: str, day: date, terms: dict[str, object], says: str
) -> None:
    """Closed days, days before a later assignment, unknown areas and other currencies."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn)
        await close_day(conn, date(2026, 4, 10), rules=RULES)
        assert await give(conn, home, date(2026, 4, 20), "punjab-nrs-2026-27")
        with pytest.raises(AssignmentRefused, match=says):
            await give(conn, home, day, **terms)  # type: ignore[arg-type]  # Fields by name.
        assert await one(conn, "select count(*) from assignments") == 2

    on_database(database_url, story)


def test_tariff_is_refused_before_its_first_day(database_url: str) -> None:
    """A new order does not hold before it is in force."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, opened_at=local(date(2026, 3, 1)), tariff_id="punjab-ds-2025-26")
        with pytest.raises(AssignmentRefused, match="got punjab-ds-2026-27, which begins on 2026-04-01"):
            await give(conn, home, date(2026, 3, 20), DOMESTIC)
        assert await give(conn, home, APRIL, DOMESTIC)

    on_database(database_url, story)


@pytest.mark.parametrize("seed", range(6))
def test_any_run_of_readings_closed_days_and_assignments_is_charged_as_from_scratch(
    database_url: str, seed: int
) -> None:
    """Whatever comes in whatever order, journals equal one rating of everything, and the audit is clean."""
    chance = random.Random(seed)

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, tariff_id=chance.choice(DOCUMENTS), sanctioned_load_w=chance.choice([900, 8_000]))
        at, register_wh, day = local(APRIL, 0.25), 0, APRIL
        for _ in range(25):
            match chance.choice(["read", "read", "late", "close", "assign"]):
                case "read":
                    seen = []
                    for _ in range(chance.choice([1, 3, 40])):
                        at += timedelta(minutes=chance.choice([15, 30, 30, 900]))
                        register_wh += chance.randrange(0, 2_000)
                        seen.append((at, register_wh))
                    await read(conn, home, seen)
                case "late":
                    # A reading between two others comes after them.
                    first, at = at, at + timedelta(minutes=chance.choice([60, 3_000]))
                    register_wh += 5_000
                    await read(conn, home, [(at, register_wh)])
                    between = first + (at - first) / 2
                    await read(conn, home, [(between, register_wh - chance.randrange(0, 5_000))], late=True)
                case "close":
                    day += chance.randrange(0, 5) * DAY
                    await close_day(conn, day, rules=RULES)
                case _:
                    through = (await view_of(conn, home)).checkpoint.through
                    last = (await view_of(conn, home)).terms.assignments[-1].from_day
                    from_day = max(last + DAY, through) + chance.choice([0, 0, 3, 9]) * DAY
                    load_w = chance.choice([700, 2_000, 9_000])
                    await give(conn, home, from_day, chance.choice(DOCUMENTS), load_w=load_w)
            await assert_charged_from_scratch(conn, home)
        await close_day(conn, max(day, KOLKATA.day_of(to_ms(at))), rules=RULES)
        await assert_charged_from_scratch(conn, home)

    on_database(database_url, story)


def write(tmp_path: Path, *lines: str) -> Path:
    """Write a file of assignments."""
    path = tmp_path / "a.csv"
    path.write_text("\n".join((COLUMNS, *lines)) + "\n")
    return path


def test_file_assigns_what_it_names_and_leaves_blanks_as_before(settings: Settings, tmp_path: Path) -> None:
    """Two changes of one account and one of another; the file again is all known."""
    assert settings.database_url is not None

    async def story(conn: AsyncConnection) -> None:
        await open_home(conn, "A1")
        await open_home(conn, "A2")

    on_database(settings.database_url, story)
    file = write(
        tmp_path,
        "A1,2026-04-10,punjab-tod-commercial-2026-27,NRS,20000,rural,no",
        "A2,2026-05-01,,,3500,,",
        "A1,2026-06-01,,,,urban,yes",
    )
    assert run_assign(settings, file) == (3, 0)
    assert run_assign(settings, file) == (0, 3)
    with psycopg.connect(settings.database_url) as conn:
        stored = conn.execute(
            "select number, from_day::text, tariff_id, x.category, load_w, area_type, meter_rent"
            " from assignments x join accounts a on a.id = account_id order by number, from_day"
        ).fetchall()
    tod = "punjab-tod-commercial-2026-27"
    assert stored == [
        ("A1", "2026-04-01", DOMESTIC, "DS", 2_000, "urban", True),
        ("A1", "2026-04-10", tod, "NRS", 20_000, "rural", False),
        ("A1", "2026-06-01", tod, "NRS", 20_000, "urban", True),
        ("A2", "2026-04-01", DOMESTIC, "DS", 2_000, "urban", True),
        ("A2", "2026-05-01", DOMESTIC, "DS", 3_500, "urban", True),
    ]


def test_file_with_any_error_assigns_nothing(settings: Settings, tmp_path: Path) -> None:
    """Unknown accounts and tariffs, wrong fields, closed days, lines twice: each with its place."""
    assert settings.database_url is not None

    async def story(conn: AsyncConnection) -> None:
        await open_home(conn)
        await close_day(conn, date(2026, 4, 10), rules=RULES)

    on_database(settings.database_url, story)

    def refused(*lines: str) -> list[str]:
        with pytest.raises(ImportRefused) as caught:
            run_assign(settings, write(tmp_path, *lines))
        return str(caught.value).split("; ")

    good = "A1,2026-05-01,,,3000,,"
    assert refused(good, "A1,5 May,,,,,", "A1,2026-05-01,,,4000,,", "A1,2026-06-01,,,0,Town,maybe") == [
        "a.csv line 3 column from_day: expected a day such as 2026-04-01, got '5 May'",
        "a.csv line 4 column from_day: expected one line for an account and day, got another after line 2",
        "a.csv line 5 column meter_rent: expected one of yes, no, got 'maybe'",
        "a.csv line 5 column sanctioned_load_w: expected a whole number from 1 to 100000000, got '0'",
        "a.csv line 5 column area_type: expected a type of area such as urban or rural, a-z and _, got 'Town'",
        "nothing was imported",
    ]
    assert refused(good, "A1,2026-06-01,no-such,,,,")[0] == (
        "a.csv line 3 column tariff_id: expected a tariff that was added (prepaid tariffs list), got 'no-such'"
    )
    assert refused(good, "A9,2026-05-01,,,1,,", "A1,2026-04-10,,,1,,", "A1,2026-04-20,,,1,,") == [
        "a.csv line 3 column account: expected a known account, got 'A9'",
        "a.csv line 4 column from_day: expected 2026-04-11, the first day that is not closed, or later",
        "earlier days take a correction, got 2026-04-10",
        "a.csv line 5 column from_day: expected a day after the last assignment of 2026-05-01",
        "to change that one takes a correction, got 2026-04-20",
        "nothing was imported",
    ]
    with psycopg.connect(settings.database_url) as conn:
        assert conn.execute("select count(*) from assignments").fetchone() == (1,)


def test_file_that_was_stopped_goes_on(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days closed while a file is written stop it at its line; the lines before stand, a corrected file goes on."""
    assert settings.database_url is not None

    async def story(conn: AsyncConnection) -> None:
        for number in ("A1", "A2", "A3"):
            await open_home(conn, number)

    on_database(settings.database_url, story)
    given = 0

    async def assign_while_days_are_closed(conn, account_id, request, **more):  # type: ignore[no-untyped-def]  # As the real one.
        nonlocal given
        given += 1
        if given == 2:
            async with await connect(settings.database_url or "", application="other") as other:
                await close_day(other, date(2026, 4, 10), rules=RULES)
        return await assign(conn, account_id, request, **more)

    monkeypatch.setattr(prepaid.tariff_assignments, "assign", assign_while_days_are_closed)
    lines = [f"A{number},2026-04-05,,,{number}000,," for number in (1, 4, 3)]
    lines[1] = "A2,2026-04-05,,,4000,,"
    with pytest.raises(ImportRefused, match=r"a\.csv line 3: from_day: .* the 1 lines before are done, give the file"):
        run_assign(settings, write(tmp_path, *lines))
    corrected = [lines[0], lines[1].replace("-05,", "-11,"), lines[2].replace("-05,", "-11,")]
    assert run_assign(settings, write(tmp_path, *corrected)) == (2, 1)
