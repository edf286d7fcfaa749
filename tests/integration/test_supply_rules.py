"""Supply rules, holds and the exempt list as rows: what may be added, by whom, and what it leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

import db.migrate
from billing.supply_rule_document import SupplyRulesError, builtin_supply_documents
from db.errors import DatabaseError
from db.migrate import migrate, migrations
from db.named import sql
from db.pool import APPLICATION_ROLE, connect
from db.supply_holds import (
    ExemptionRefused,
    Hold,
    HoldRefused,
    HoldState,
    approve_hold,
    ask_hold,
    clear_exemption,
    list_exemptions,
    list_holds,
    release_hold,
    set_exemption,
)
from db.supply_rules import SupplyRulesRefused, add_supply_rules, exhausted_and_on, rules_in_force

pytestmark = pytest.mark.db

TODAY = date(2026, 11, 21)
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ONE_DAY = timedelta(days=1)
# The accounts that the plan of a look-up is judged by, and how few of them it is for.
ACCOUNTS, EXHAUSTED_EACH = 4_000, 100

ADD_ACCOUNTS = b"""
with consumer as (insert into consumers (name) values ('Household') returning id),
     place as (insert into usage_points (code) select 'UP-' || n from generate_series(1, %(accounts)s) n returning id)
insert into accounts (number, consumer_id, usage_point_id, shard, opened_on, through, anchor_at, exhausted_raised)
select 'A' || p.id, c.id, p.id, p.id %% 32, '2026-04-01', '2026-04-01', '2026-03-31 18:30+00', p.id %% %(each)s = 0
from place p cross join consumer c order by p.id
"""


@asynccontextmanager
async def open_rows(database_url: str, *, accounts: int = 2) -> AsyncIterator[AsyncConnection]:
    """Migrate, add some accounts, and work with the rights of a process."""
    async with await connect(database_url, application="owner") as owner:
        await migrate(owner)
        await owner.execute(ADD_ACCOUNTS, {"accounts": accounts, "each": EXHAUSTED_EACH})
        await owner.execute(b"analyze accounts")
    async with await connect(database_url, application="office", role=APPLICATION_ROLE) as conn:
        yield conn


async def one(conn: AsyncConnection, query: str, *parameters: object) -> Any:
    """Return the first column of the first row: of any type, as the query says."""
    row = await (await conn.execute(query.encode(), parameters)).fetchone()
    return None if row is None else row[0]


async def fed(conn: AsyncConnection) -> list[tuple[int, int]]:
    """Return the feed's accounts and versions in the order they came."""
    cursor = await conn.execute(b"select account_id, version from change_feed order by version, account_id")
    return await cursor.fetchall()


def rules_text(from_day: date, name: str = "bihar") -> str:
    """Return a shipped document from another day on."""
    text = builtin_supply_documents()[name]
    begins = next(line for line in text.splitlines() if line.startswith("effective_from"))
    return text.replace(begins, f"effective_from = {from_day}")


# Rules -------------------------------------------------------------------------------------------------------------


def test_rules_in_force_are_the_shipped_ones_before_the_first_and_the_latest_begun_after(database_url: str) -> None:
    """A document holds from its local day on; the same document is read once."""

    async def story() -> None:
        async with open_rows(database_url) as conn:
            assert (await rules_in_force(conn, TODAY)).id == "punjab"
            await add_supply_rules(conn, rules_text(TODAY + ONE_DAY), first_open_day=TODAY)
            later = rules_text(TODAY + 9 * ONE_DAY, "uttar-pradesh")
            await add_supply_rules(conn, later, first_open_day=TODAY)
            days = (TODAY, TODAY + ONE_DAY, TODAY + 8 * ONE_DAY, TODAY + 9 * ONE_DAY, TODAY + 999 * ONE_DAY)
            found = [await rules_in_force(conn, day) for day in days]
            assert [rules.id for rules in found] == ["punjab", "bihar", "bihar", "uttar-pradesh", "uttar-pradesh"]
            assert found[1] is found[2]
            assert found[1].of("DS") is found[1].default

    asyncio.run(story())


def test_rules_document_is_never_replaced_nor_put_in_force_for_the_past(database_url: str) -> None:
    """The same document again is no news; another for its day, one for a past day, or a broken one is refused."""

    async def story() -> None:
        async with open_rows(database_url) as conn:
            await add_supply_rules(conn, rules_text(TODAY), first_open_day=TODAY)
            again = await add_supply_rules(conn, rules_text(TODAY), first_open_day=TODAY + 9 * ONE_DAY)
            assert again.id == "bihar"
            with pytest.raises(SupplyRulesRefused, match="expected a day without a document, 2026-11-21 has another"):
                await add_supply_rules(conn, rules_text(TODAY, "uttar-pradesh"), first_open_day=TODAY)
            with pytest.raises(SupplyRulesRefused, match="expected 2026-11-21 or later"):
                await add_supply_rules(conn, rules_text(TODAY - ONE_DAY), first_open_day=TODAY)
            with pytest.raises(
                SupplyRulesError, match=r"supply rules bihar, line \d+, \[\[scheme\.happy_hours\.window"
            ):
                await add_supply_rules(conn, rules_text(TODAY).replace("17:30", "10:30"), first_open_day=TODAY)
            assert await one(conn, "select count(*) from supply_rules") == 1

    asyncio.run(story())


@pytest.mark.parametrize(
    "statement",
    [
        "update supply_rules set document = ''",
        "delete from supply_rules",
        "delete from exemption_changes",
        "update exemption_changes set reason = 'another'",
        "delete from supply_holds",
    ],
)
def test_what_was_laid_down_is_never_taken_back(database_url: str, statement: str) -> None:
    """Documents, changes of the exempt list and holds stay, whoever asks."""

    async def story() -> None:
        async with open_rows(database_url) as conn:
            await add_supply_rules(conn, rules_text(TODAY), first_open_day=TODAY)
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                await conn.execute(statement.encode())

    asyncio.run(story())


def test_exhausted_accounts_that_are_supplied_are_found_by_their_index(database_url: str) -> None:
    """A shard's few are read from the partial index alone, page by page; those that are off are not among them."""

    async def story() -> None:
        async with open_rows(database_url, accounts=ACCOUNTS) as conn:
            parameters = {"shard": 4, "after": 0, "most": 1000}
            query = b"explain (format json) " + sql("exhausted_and_on")
            plan = str((await (await conn.execute(query, parameters)).fetchone() or ("",))[0])
            assert "'Index Name': 'exhausted_and_on'" in plan
            assert "Seq Scan" not in plan
            assert "'Sort'" not in plan
            cursor = await conn.execute(b"select id from accounts where exhausted_raised and shard = 4 order by id")
            expected = [row[0] for row in await cursor.fetchall()]
            assert len(expected) > 3
            found = await exhausted_and_on(conn, 4, after=0, most=2)
            found += await exhausted_and_on(conn, 4, after=found[-1], most=1000)
            assert found == expected
            await conn.execute(b"update accounts set desired = 'off' where id = %s", (expected[0],))
            await conn.execute(b"update accounts set desired = 'limited' where id = %s", (expected[1],))
            # What is limited is supplied: its scheme may cease to limit.
            assert await exhausted_and_on(conn, 4, after=0, most=1000) == expected[1:]

    asyncio.run(story())


# Holds -------------------------------------------------------------------------------------------------------------


def test_hold_is_in_force_once_another_person_approves_it(database_url: str) -> None:
    """Asked, approved, released; each step tells the shard's owner when supply may change, and not before."""

    async def story() -> None:
        async with open_rows(database_url) as conn:
            hold_id = await ask_hold(conn, 1, reason="oxygen at home", by="A. Kaur", until=None, now=NOW)
            (asked,) = await list_holds(conn, most=9)
            assert (asked.id, asked.number, asked.state(NOW)) == (hold_id, "A1", HoldState.ASKED)
            assert await fed(conn) == []
            with pytest.raises(HoldRefused, match=r"expected another person than the one who asked, got a\. kaur"):
                await approve_hold(conn, hold_id, by="a. kaur", now=NOW)
            held = await approve_hold(conn, hold_id, by="B. Singh", now=NOW)
            assert (held.state(NOW), held.approved_by, held.approved_at) == (HoldState.IN_FORCE, "B. Singh", NOW)
            with pytest.raises(HoldRefused, match="expected one that waits for approval, got one in_force"):
                await approve_hold(conn, hold_id, by="C. Rani", now=NOW)
            released = await release_hold(conn, hold_id, by="A. Kaur", now=NOW + ONE_DAY)
            assert (released.state(NOW), released.released_by) == (HoldState.RELEASED, "A. Kaur")
            with pytest.raises(HoldRefused, match=r"expected one not released yet, got one released by A\. Kaur"):
                await release_hold(conn, hold_id, by="A. Kaur", now=NOW)
            assert await list_holds(conn, most=9) == []
            assert await list_holds(conn, account_id=1, most=9) == [released]
            assert await fed(conn) == [(1, 2), (1, 3)]
            assert await one(conn, "select version from accounts where id = 1") == 3

    asyncio.run(story())


def test_account_has_one_hold_at_a_time_and_a_past_one_makes_room(database_url: str) -> None:
    """A second ask is refused until the first is released or its end is reached."""

    async def story() -> None:
        async with open_rows(database_url) as conn:
            first = await ask_hold(conn, 1, reason="one", by="A. Kaur", until=NOW + ONE_DAY, now=NOW)
            await approve_hold(conn, first, by="B. Singh", now=NOW)
            with pytest.raises(
                HoldRefused, match=f"account A1: expected one without a hold, got hold {first}, in_force"
            ):
                await ask_hold(conn, 1, reason="two", by="A. Kaur", until=None, now=NOW)
            await ask_hold(conn, 2, reason="another account", by="A. Kaur", until=None, now=NOW)
            ends = NOW + ONE_DAY
            (held,) = await list_holds(conn, account_id=1, most=9)
            assert (held.state(ends - timedelta(seconds=1)), held.state(ends)) == (HoldState.IN_FORCE, HoldState.ENDED)
            second = await ask_hold(conn, 1, reason="two", by="A. Kaur", until=None, now=ends)
            holds = await list_holds(conn, account_id=1, most=9)
            assert [(hold.id, hold.state(ends), hold.released_by) for hold in holds] == [
                (second, HoldState.ASKED, None),
                (first, HoldState.RELEASED, "its end"),
            ]

    asyncio.run(story())


def test_hold_that_cannot_be_is_refused(database_url: str) -> None:
    """An end that is past, a number that does not exist, an approval after the end."""

    async def story() -> None:
        async with open_rows(database_url) as conn:
            with pytest.raises(HoldRefused, match="expected an end later than"):
                await ask_hold(conn, 1, reason="late", by="A. Kaur", until=NOW, now=NOW)
            with pytest.raises(HoldRefused, match="expected a known number, got 99"):
                await release_hold(conn, 99, by="A. Kaur", now=NOW)
            hold_id = await ask_hold(conn, 1, reason="short", by="A. Kaur", until=NOW + ONE_DAY, now=NOW)
            with pytest.raises(HoldRefused, match="expected one that waits for approval, got one ended"):
                await approve_hold(conn, hold_id, by="B. Singh", now=NOW + ONE_DAY)

    asyncio.run(story())


def test_hold_is_approved_once_however_many_approve_at_once(database_url: str) -> None:
    """The account's lock lets one of two approvals through; of two asks at once one is refused."""

    async def attempt(work: Any) -> Hold | int | DatabaseError:
        try:
            result: Hold | int = await work
        except DatabaseError as refused:
            return refused
        return result

    async def story() -> None:
        async with open_rows(database_url) as conn, await connect(database_url, application="second") as second:
            both = [
                attempt(ask_hold(each, 1, reason="one", by="A. Kaur", until=None, now=NOW)) for each in (conn, second)
            ]
            asked = await asyncio.gather(*both)
            (hold_id,) = [each for each in asked if isinstance(each, int)]
            both = [attempt(approve_hold(each, hold_id, by="B. Singh", now=NOW)) for each in (conn, second)]
            approved = await asyncio.gather(*both)
            assert sorted(type(each).__name__ for each in (*asked, *approved)) == [
                "Hold",
                "HoldRefused",
                "HoldRefused",
                "int",
            ]
            assert await fed(conn) == [(1, 2)]

    asyncio.run(story())


def test_database_refuses_a_hold_approved_by_who_asked(database_url: str) -> None:
    """Two people are a rule of the table, not only of the command."""

    async def story() -> None:
        async with open_rows(database_url) as conn:
            await ask_hold(conn, 1, reason="one", by="A. Kaur", until=None, now=NOW)
            with pytest.raises(psycopg.errors.CheckViolation):
                await conn.execute(b"update supply_holds set approved_by = 'a. KAUR', approved_at = now()")
            with pytest.raises(psycopg.errors.UniqueViolation):
                await conn.execute(
                    b"insert into supply_holds (account_id, reason, asked_by, asked_at) values (1, 'x', 'B', now())"
                )

    asyncio.run(story())


# The exempt list ---------------------------------------------------------------------------------------------------


def test_exempt_list_keeps_who_and_why_and_tells_the_shards_owner(database_url: str) -> None:
    """Set, set with another reason, cleared; the same again is refused and changes nothing."""

    async def story() -> None:
        async with open_rows(database_url) as conn:
            await set_exemption(conn, 2, reason="dialysis", by="A. Kaur", now=NOW)
            with pytest.raises(
                ExemptionRefused, match="account id 2: expected one not on the exempt list, got one that"
            ):
                await set_exemption(conn, 2, reason="dialysis", by="B. Singh", now=NOW)
            with pytest.raises(
                ExemptionRefused, match="account id 1: expected one on the exempt list, got one that is"
            ):
                await clear_exemption(conn, 1, reason="moved", by="A. Kaur", now=NOW)
            await set_exemption(conn, 2, reason="dialysis, ward 3", by="B. Singh", now=NOW + ONE_DAY)
            (exempt,) = await list_exemptions(conn, most=9)
            assert (exempt.account_id, exempt.number, exempt.reason) == (2, "A2", "dialysis, ward 3")
            assert (exempt.set_by, exempt.set_at) == ("B. Singh", NOW + ONE_DAY)
            assert await list_exemptions(conn, after=2, most=9) == []
            await clear_exemption(conn, 2, reason="moved", by="A. Kaur", now=NOW + 2 * ONE_DAY)
            assert await list_exemptions(conn, most=9) == []
            cursor = await conn.execute(b"select exempt, reason, changed_by from exemption_changes order by id")
            assert await cursor.fetchall() == [
                (True, "dialysis", "A. Kaur"),
                (True, "dialysis, ward 3", "B. Singh"),
                (False, "moved", "A. Kaur"),
            ]
            assert await fed(conn) == [(2, 2), (2, 3), (2, 4)]

    asyncio.run(story())


# Upgrade -----------------------------------------------------------------------------------------------------------


def test_migration_of_a_database_with_rows_knows_since_when_accounts_are_exhausted(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alarm of the present arm dates an exhaustion; everybody else has none, and nobody is exempt."""
    before = [migration for migration in migrations() if migration.name < "0006"]

    async def story() -> None:
        async with await connect(empty_database_url, application="owner") as conn:
            with monkeypatch.context() as patched:
                patched.setattr(db.migrate, "migrations", lambda: before)
                assert len(await migrate(conn)) == 5
            await conn.execute(ADD_ACCOUNTS, {"accounts": 4, "each": 2})
            await conn.execute(b"update accounts set exhausted_arm = 2, desired = 'off' where id = 2")
            await conn.execute(
                b"insert into alarms (account_id, level, arm, level_minor, balance_minor, raised_at) values"
                b" (2, 'exhausted', 1, 0, -1, '2026-05-01 06:00+00'),"
                b" (2, 'exhausted', 2, 0, -1, '2026-06-01 06:00+00'),"
                b" (1, 'exhausted', 1, 0, -1, '2026-05-02 06:00+00'),"
                b" (2, 'low', 2, 100, 90, '2026-05-31 06:00+00')"
            )
            assert "0006_supply_rules.sql" in await migrate(conn)
            cursor = await conn.execute(b"select id, exhausted_at, exempt_reason, desired from accounts order by id")
            assert await cursor.fetchall() == [
                (1, None, None, "on"),
                (2, datetime(2026, 6, 1, 6, 0, tzinfo=UTC), None, "off"),
                (3, None, None, "on"),
                (4, None, None, "on"),
            ]

    asyncio.run(story())
