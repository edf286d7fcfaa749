"""The report of balances on a real PostgreSQL: every balance as everybody else sees it, filters, sums, the command."""

from __future__ import annotations

import csv
import json
import random
import subprocess
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import AsyncConnection

from billing.calendar import to_ms
from billing.supply import Mode, Supply
from billing.tariff_document import builtin_documents
from db.balances import Asked, BalanceRow, BalanceTotals, read_balances
from db.reports import look_all
from db.tariffs import add_tariff
from prepaid.report_commands import CSV_COLUMNS
from protocols.topics import shard_of
from tests.commands import run_command, settings_for
from tests.integration.test_posting import (
    APRIL,
    KOLKATA,
    MAY,
    TARIFF_ID,
    close,
    local,
    on_database,
    open_home,
    read,
    rows,
    store,
    view_of,
)

pytestmark = pytest.mark.db

TOD = "punjab-tod-commercial-2026-27"
NOW_MS = to_ms(datetime(2026, 6, 1, tzinfo=UTC))
DAY = timedelta(days=1)


async def report(
    conn: AsyncConnection, asked: Asked | None = None, *, accounts_per_range: int = 7
) -> tuple[dict[str, BalanceRow], BalanceTotals]:
    """Return the listed rows by account number, and the sums."""
    listed: list[BalanceRow] = []
    totals = BalanceTotals()
    async for found in read_balances(conn, KOLKATA, asked or Asked(), accounts_per_range=accounts_per_range):
        totals.add(found, now_ms=NOW_MS)
        listed += found.rows
    by_number = {row.number: row for row in listed}
    assert len(by_number) == len(listed) == totals.listed
    return by_number, totals


async def assert_as_looked_at(conn: AsyncConnection) -> BalanceTotals:
    """Compare every account's row with a look at the account."""
    found, totals = await report(conn)
    ids = [row["id"] for row in await rows(conn, "select id from accounts order by id")]
    views = await look_all(conn, ids, KOLKATA)
    assert {number: row.balance_minor for number, row in found.items()} == {
        view.number: view.balance_minor(KOLKATA) for view in views.values()
    }
    assert {number: row.last_reading_ms for number, row in found.items()} == {
        view.number: view.mark_ms for view in views.values()
    }
    assert totals.accounts == len(ids) == len(views) + totals.without_meter
    return totals


async def assign(conn: AsyncConnection, account_id: int, from_day: date, tariff_id: str, load_w: int) -> None:
    await conn.execute(
        "insert into assignments (account_id, from_day, tariff_id, category, load_w) values (%s, %s, %s, 'NRS', %s)",
        (account_id, from_day, tariff_id, load_w),
    )


async def add_pro_rata(conn: AsyncConnection) -> None:
    document = builtin_documents()[TARIFF_ID].replace(TARIFF_ID, "pro-rata")
    assert await add_tariff(conn, document.replace('part_months = "whole"', 'part_months = "pro_rata"'))


def test_balances_of_mixed_accounts_equal_a_look_at_each(database_url: str) -> None:
    """Zones, demand, changes of terms, silence, part ends, roll-overs, edits: the same minor unit as everywhere."""

    async def story(conn: AsyncConnection) -> None:
        await add_pro_rata(conn)
        day = date(2026, 4, 9)
        half_hours = [(local(APRIL, half / 2), 900 * half) for half in range(1, 10 * 48)]
        plain = await open_home(conn, "PLAIN")
        zones = await open_home(conn, "ZONES", tariff_id=TOD, sanctioned_load_w=1_500)
        pro_rata = await open_home(conn, "PRO-RATA", tariff_id="pro-rata", opened_at=local(APRIL, 30.5))
        changed = await open_home(conn, "CHANGED")
        before = await open_home(conn, "BEFORE", opened_at=local(date(2026, 2, 11)))
        early = await open_home(conn, "EARLY", opened_at=local(APRIL) + timedelta(microseconds=400))
        into = await open_home(conn, "INTO-ZONES")
        await open_home(conn, "NEVER-HEARD", opened_at=local(date(2026, 2, 20), 5))
        silent = await open_home(conn, "SILENT", opened_at=local(date(2026, 3, 2)))
        kenya = await open_home(conn, "KENYA", tariff_id="kenya-domestic-2018-19", opened_at=local(APRIL))
        await read(conn, silent, [(local(date(2026, 3, 5), 7), 44_000)])
        for home in (plain, zones, changed, into):
            await read(conn, home, half_hours)
        for home, wh in ((pro_rata, 201_000), (before, 777_777), (early, 55_501), (kenya, 61_000)):
            await read(conn, home, [(local(day - DAY, 3), wh // 2), (local(day, 20.5), wh)])
        for account, from_day, tariff_id in (
            (before, date(2026, 3, 4), "pro-rata"),
            (changed, date(2026, 4, 5), "pro-rata"),
            (changed, date(2026, 4, 20), TARIFF_ID),
            (into, day + 5 * DAY, TOD),
        ):
            await assign(conn, account.account_id, from_day, tariff_id, 4_000)
        await assert_as_looked_at(conn)
        await close(conn, day)
        totals = await assert_as_looked_at(conn)
        assert totals.plain == 1
        # Past the end of an open part of each kind, without a day closed meanwhile.
        for home in (plain, zones, changed, into, pro_rata, before, early):
            await store(conn, home, [(local(date(2026, 4, 22), 11), 990_000), (local(MAY, 31), 1_234_567)])
        await store(conn, kenya, [(local(date(2026, 4, 30), 23.9), 90_000)])
        totals = await assert_as_looked_at(conn)
        assert totals.plain == 7
        await close(conn, MAY)
        await assert_as_looked_at(conn)

    on_database(database_url, story)


def test_balances_after_roll_overs_edits_and_without_a_meter_equal_a_look(database_url: str) -> None:
    """Energy to date is carried over, a void reading does not count, and an account without a meter is counted."""

    async def story(conn: AsyncConnection) -> None:
        homes = [await open_home(conn, f"A{number}", register_wh=1_000) for number in range(4)]
        for home in homes:
            await read(conn, home, [(local(APRIL, hour), 1_000 + 300 * hour) for hour in range(6, 60, 6)])
        rolled, edited, void, gone = homes
        await conn.execute(
            "insert into register_segments (meter_id, from_at, register_wh, start_wh, reason)"
            " values (%s, %s, 0, 20000, 'rollover')",
            (rolled.meter_id, local(APRIL, 57) + timedelta(microseconds=300)),
        )
        await store(conn, rolled, [(local(APRIL, 57), 5_000)])
        await conn.execute(
            "insert into corrections (kind, reason, scope, asked_by) values ('edit', 'test', '{}', 'A. Kaur')"
        )
        for home, register_wh in ((edited, 9_000), (void, None)):
            await conn.execute(
                "insert into reading_edits (meter_id, read_at, import_wh, correction_id)"
                " select %s, %s, %s, id from corrections",
                (home.meter_id, local(APRIL, 54), register_wh),
            )
        await conn.execute(
            "update installations set to_at = %s where meter_id = %s", (local(APRIL, 100), gone.meter_id)
        )
        totals = await assert_as_looked_at(conn)
        assert (totals.accounts, totals.without_meter) == (4, 1)
        await close(conn, APRIL)
        await assert_as_looked_at(conn)

    on_database(database_url, story)


def test_balances_of_any_accounts_equal_a_look_at_each(database_url: str) -> None:
    """Drawn tariffs, loads, readings and gaps, whatever was closed in between."""
    rng = random.Random(20261122)  # Any seed will do; a fixed one is the same tomorrow.

    async def story(conn: AsyncConnection) -> None:
        await add_pro_rata(conn)
        tariffs = [TARIFF_ID, "pro-rata", TOD, "punjab-ds-2026-27-subsidy", "punjab-nrs-2026-27"]
        homes = []
        for number in range(30):
            opened_at = local(APRIL, rng.randrange(0, 20 * 24))
            terms = {"tariff_id": rng.choice(tariffs), "sanctioned_load_w": rng.choice([900, 2_000, 7_500])}
            homes.append((await open_home(conn, f"R{number}", opened_at=opened_at, **terms), opened_at))
        registers = [0] * len(homes)
        for until in (date(2026, 4, 12), date(2026, 4, 28), date(2026, 5, 3)):
            for place, (home, opened_at) in enumerate(homes):
                last_at = opened_at
                for read_at in sorted({local(until, -rng.randrange(1, 300) / 2) for _ in range(rng.randrange(0, 5))}):
                    known = (await view_of(conn, home)).mark_ms
                    if to_ms(read_at) > max(to_ms(last_at), known or 0):
                        registers[place] += rng.randrange(0, 90_000)
                        await read(conn, home, [(read_at, registers[place])])
            await assert_as_looked_at(conn)
            await close(conn, until - rng.randrange(1, 4) * DAY)
            await assert_as_looked_at(conn)

    on_database(database_url, story)


def test_report_lists_what_is_below_the_amount_and_runs_out(database_url: str) -> None:
    """Both filters narrow; rows say how long credit lasts, what supply is, and whether a phone can be reached."""

    async def story(conn: AsyncConnection) -> None:
        rich = await open_home(conn, "RICH", phone="+91 98140 00001", opening_credit_minor=10_000_000)
        poor = await open_home(conn, "POOR", phone="+91 98140 00002", opening_credit_minor=60_000)
        owing = await open_home(conn, "OWING", email="a@example.org", opening_credit_minor=1_000, category="NRS")
        credited = await open_home(conn, "CREDIT", opening_credit_minor=1_000, emergency_credit_minor=5_000_000)
        later = await open_home(
            conn, "LATER", mode=Mode.POSTPAID, postpaid_approval="CE/12", opening_credit_minor=0, category="GOVT"
        )
        for home in (rich, poor, owing, credited, later):
            await read(conn, home, [(local(APRIL, 24 * day), 8_000 * day) for day in range(1, 11)])
        await close(conn, date(2026, 4, 10))
        await conn.execute("update contacts set verified_at = now() where address like '%%2'")
        await conn.execute("update meter_state set relay = 'on' where meter_id <> %s", (owing.meter_id,))
        found, totals = await report(conn)
        assert (totals.accounts, totals.matching, totals.listed) == (5, 5, 5)
        assert {number: row.use.day_energy_wh for number, row in found.items()} == dict.fromkeys(found, 8_000)
        week = await rows(
            conn,
            "select sum(value::bigint) as minor from journals, jsonb_each_text(lines)"
            " where account_id = %s and kind = 'day' and local_day between '2026-04-04' and '2026-04-10'",
            poor.account_id,
        )
        assert found["POOR"].use.charge_minor == week[0]["minor"]
        assert found["POOR"].days_left == found["POOR"].balance_minor * 7 // int(week[0]["minor"])
        assert (found["OWING"].days_left, found["LATER"].days_left) == (0, None)
        assert found["CREDIT"].balance_minor < 0 < (found["CREDIT"].days_left or 0)
        assert {number for number, row in found.items() if row.phone_verified} == {"POOR"}
        assert (found["OWING"].desired, found["OWING"].reported) == (Supply.OFF, None)
        assert (found["POOR"].desired, found["POOR"].reported) == (Supply.ON, Supply.ON)
        assert {number: row.category for number, row in found.items() if row.category != "DS"} == {
            "OWING": "NRS",
            "LATER": "GOVT",
        }

        async def numbers(**asked: Any) -> set[str]:
            return set((await report(conn, Asked(**asked)))[0])

        poor_minor = found["POOR"].balance_minor
        assert await numbers(below_minor=poor_minor) == {"OWING", "CREDIT", "LATER"}
        assert await numbers(below_minor=poor_minor + 1) == {"OWING", "CREDIT", "LATER", "POOR"}
        poor_days = found["POOR"].days_left or 0
        assert await numbers(days_left=poor_days) == {"OWING"}
        assert await numbers(days_left=poor_days + 1) == {"OWING", "POOR"}
        assert await numbers(days_left=poor_days + 1, below_minor=poor_minor) == {"OWING"}
        assert await numbers(category="NRS") == {"OWING"}
        assert await numbers(category="AP") == set()
        limited, totals = await report(conn, Asked(below_minor=0, rows_most=2), accounts_per_range=2)
        assert (set(limited), totals.matching, totals.listed) == ({"OWING", "CREDIT"}, 3, 2)

    on_database(database_url, story)


def test_shards_of_a_report_are_apart_and_together_everything(database_url: str) -> None:
    """Reports over parts of the shards, made side by side, cover each account once; progress ends at the whole."""

    async def story(conn: AsyncConnection) -> None:
        for number in range(25):
            await open_home(conn, f"S{number}")
        everything, _ = await report(conn)
        parts = [await report(conn, Asked(shards=shards)) for shards in ((0, 1, 2, 3), tuple(range(4, 31)), (31,))]
        assert sum(totals.accounts for _, totals in parts) == 25
        assert everything == parts[0][0] | parts[1][0] | parts[2][0]
        steps: list[tuple[int, int]] = []
        asked = Asked(shards=tuple(range(4, 31)))
        async for _ in read_balances(
            conn, KOLKATA, asked, accounts_per_range=4, progress=lambda done, of: steps.append((done, of))
        ):
            pass
        assert len(steps) >= parts[1][1].accounts // 4
        assert steps == sorted(set(steps))
        assert {of for _, of in steps} == {25}
        assert steps[-1] == (25, 25)

    on_database(database_url, story)


def test_debts_are_summed_by_the_age_of_their_alarm(database_url: str) -> None:
    """Days since the standing alarm; an alarm of before a recharge does not count, a debt on credit has none."""

    async def story(conn: AsyncConnection) -> None:
        for number, days in enumerate((0, 7, 8, 31, 400)):
            home = await open_home(conn, f"D{number}", opening_credit_minor=0)
            # An earlier arm's alarm of long ago, before a recharge.
            await conn.execute(
                "insert into alarms (account_id, level, arm, level_minor, balance_minor, raised_at)"
                " values (%s, 'exhausted', 7, 0, -1, '2020-01-01')",
                (home.account_id,),
            )
            await conn.execute(
                "update alarms set raised_at = %s where account_id = %s and arm = 1",
                (datetime.fromtimestamp(NOW_MS // 1000, UTC) - timedelta(days=days, hours=1), home.account_id),
            )
        await open_home(conn, "ON-CREDIT", opening_credit_minor=0, emergency_credit_minor=10_000)
        await open_home(conn, "KENYA", opening_credit_minor=10_000, tariff_id="kenya-domestic-2018-19")
        _, totals = await report(conn, Asked(rows_most=0))
        assert totals.listed == 0
        ages = {place: (each.accounts, each.balance_minor) for place, each in totals.debts["INR"].items()}
        assert ages == {0: (2, -766), 1: (1, -383), 2: (1, -383), 3: (1, -383), None: (1, -383)}
        assert set(totals.debts) == {"INR"}

    on_database(database_url, story)


def command(
    database_url: str, folder: Path, *arguments: str, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `prepaid report balances` as a process and check its exit status."""
    settings = settings_for(database_url, folder) | environment
    return run_command("report", "balances", *arguments, environment=settings, status=status)


def test_report_of_an_empty_installation_is_zero(database_url: str, tmp_path: Path) -> None:
    """Nothing to list is an answer: status 0, sums of nothing, a file with its header only."""
    answer = json.loads(command(database_url, tmp_path, "--below", "100", "--json").stdout)
    assert answer == {
        "accounts": 0,
        "without_meter": 0,
        "matching": 0,
        "listed": 0,
        "debts": {},
        "rows": [],
    }
    file = tmp_path / "rows.csv"
    assert command(database_url, tmp_path, "--csv", str(file)).stdout.startswith("0 accounts, 0 as asked for")
    assert file.read_text(encoding="utf-8").splitlines() == [",".join(CSV_COLUMNS)]


def test_operator_lists_accounts_on_screen_in_a_file_and_as_json(database_url: str, tmp_path: Path) -> None:
    """The three forms say the same; progress goes to standard error only."""

    async def story(conn: AsyncConnection) -> None:
        for number, credit_minor in enumerate((0, 5_000, 700_000)):
            home = await open_home(conn, f"C{number}", opening_credit_minor=credit_minor)
            await read(conn, home, [(local(APRIL, 30), 12_000)])
        await close(conn, APRIL)

    on_database(database_url, story)
    answer = json.loads(command(database_url, tmp_path, "--below", "100.00", "--json").stdout)
    assert (answer["accounts"], answer["matching"], answer["listed"]) == (3, 2, 2)
    first = answer["rows"][0]
    assert (first["number"], first["supply_desired"], first["supply_reported"]) == ("C0", "off", None)
    assert first["latest_reading"] == "2026-04-02T06:00:00+05:30"
    assert list(answer["debts"]["INR"]["days_below"]) == ["0-7"]
    assert answer["debts"]["INR"]["balance_minor"] == sum(min(row["balance_minor"], 0) for row in answer["rows"])
    file = tmp_path / "rows.csv"
    shown = command(database_url, tmp_path, "--days-left", "5000", "--csv", str(file), FORCE_COLOR="1")
    assert "account ids read" in shown.stderr
    assert "account ids read" not in shown.stdout
    assert "3 accounts, 3 as asked for, 3 of them listed" in shown.stdout
    with file.open(encoding="utf-8", newline="") as opened:
        written = list(csv.DictReader(opened))
    assert [row["number"] for row in written] == ["C0", "C1", "C2"]
    assert int(first["balance_minor"]) == round(float(written[0]["balance"]) * 100)
    assert (written[0]["days_left"], written[0]["phone_verified"]) == ("0", "no")
    assert list(tmp_path.glob("*.part")) == []
    screen = command(database_url, tmp_path, "--below", "-10", "--limit", "1").stdout
    assert "C0" in screen
    assert "C2" not in screen
    shard = shard_of("M-C2")
    of_shard = json.loads(command(database_url, tmp_path, "--shards", f"{shard}", "--category", "DS", "--json").stdout)
    numbers = [f"C{number}" for number in range(3) if shard_of(f"M-C{number}") == shard]
    assert [row["number"] for row in of_shard["rows"]] == numbers
    assert of_shard["accounts"] == len(numbers)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--below", "1,000"), "bad_amount: amount: expected digits with none or two decimals, got '1,000'"),
        (("--below", "--5"), "bad_amount: amount: expected digits"),
        (("--shards", "0-32"), "report_refused: shards: expected 0 to 31 such as 0-7,16, got '0-32'"),
        (("--days-left", "0"), "report_refused: days-left: expected 1 to 100000, got 0"),
        (("--limit", "100001"), "report_refused: limit: expected 1 to 100000, got 100001"),
        (("--csv", "."), "report_refused: csv: expected the name of a file, got the folder '.'"),
    ],
)
def test_report_that_cannot_be_made_is_refused_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    """Nothing is started for it: the database given does not exist."""
    refused = command("postgresql://nobody@127.0.0.1:1/none", tmp_path, *arguments, status=2)
    assert refused.stderr.startswith(f"prepaid: {says}")
    assert refused.stderr.count("\n") == 1
    assert refused.stdout == ""


def test_file_of_a_report_that_fails_is_not_left_behind(tmp_path: Path) -> None:
    """A list that broke off is never taken for a whole one; an earlier file stays."""
    file = tmp_path / "rows.csv"
    file.write_text("earlier\n", encoding="utf-8")
    command("postgresql://nobody@127.0.0.1:1/none", tmp_path, "--csv", str(file), status=2)
    assert [path.name for path in tmp_path.glob("rows*")] == ["rows.csv"]
    assert file.read_text(encoding="utf-8") == "earlier\n"


def test_account_of_another_century_spoils_no_range(database_url: str) -> None:
    """Instants too far apart for the columns leave the range to the plain form."""

    async def story(conn: AsyncConnection) -> None:
        await open_home(conn, "NOW")
        await open_home(conn, "CENTURY", opened_at=local(date(2099, 4, 1)))
        totals = await assert_as_looked_at(conn)
        assert totals.plain == 2

    on_database(database_url, story)


def test_ranges_are_read_only_snapshots(database_url: str) -> None:
    """Each range is a transaction of its own, and no transaction stays open while the caller works."""

    async def story(conn: AsyncConnection) -> None:
        for number in range(3):
            await open_home(conn, f"T{number}")
        seen = []
        async for found in read_balances(conn, KOLKATA, Asked(), accounts_per_range=1):
            seen.append(found.rows[0].number)
            home = (await rows(conn, "select id from accounts where number = 'T2'"))[0]["id"]
            await conn.execute("update accounts set posted_minor = posted_minor + 1 where id = %s", (home,))
        assert seen == ["T0", "T1", "T2"]
        # Two of the three updates came before the range of T2.
        assert found.rows[0].balance_minor == (await report(conn))[0]["T2"].balance_minor - 1

    on_database(database_url, story)
