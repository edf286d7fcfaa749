"""A correction of some hundred accounts, killed, raced and overtaken: every account once, and the same money."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import date, timedelta

import pytest
from psycopg import AsyncConnection

from billing.journals import JournalKind
from db.correction_scope import TermsScope
from db.corrections import (
    CorrectionNotReady,
    CutOffsExceeded,
    account_rows,
    apply,
    approve,
    cancel,
    compute,
    propose_reversal,
    propose_terms,
    read_correction,
    summary_of,
)
from db.pool import connect
from db.posting import lock_and_look, post_money
from db.readings import ensure_partitions
from headend.edges.close_day import close_day
from loadtests.seed_accounts import seed_accounts
from prepaid.embedded import EmbeddedPostgres
from tests.databases import scratch_database
from tests.integration.correction_street import (
    CLERK,
    DEAR_ID,
    OFFICER,
    add_tariffs,
    assert_clean,
    carried_out,
)
from tests.integration.test_posting import APRIL, RULES, TARIFF_ID, local, on_database, rows

pytestmark = pytest.mark.db

ACCOUNTS, DAYS = 240, 36
MAY_4 = date(2026, 5, 4)
# Ten times what a step takes on two busy cores.
WAIT_S = 60.0
POLL_S = 0.002
SCOPE = TermsScope(tariff_id=TARIFF_ID, from_day=date(2026, 4, 11), new_tariff_id=DEAR_ID, new_category="NRS")

# What a correction has done, by account: journals' parts, energy, money and lines, and the account row.
Done = list[tuple[object, ...]]


@pytest.fixture(scope="module")
def prepared(postgres: EmbeddedPostgres, migrated: str) -> Iterator[str]:
    """A database with homes that have used power over April, closed into May; its name."""

    async def story(conn: AsyncConnection) -> None:
        await add_tariffs(conn)
        url = postgres.url_of(name)
        await seed_accounts(url, ACCOUNTS, opened_at=local(APRIL), opened_on=APRIL, tariff_id=TARIFF_ID)
        first = local(APRIL)
        await ensure_partitions(conn, {(first + timedelta(days=day)).date() for day in range(DAYS + 1)})
        # Twice a day, at midnight and at noon, from what each meter showed when it was installed.
        await conn.execute(
            "insert into readings (meter_id, read_at, import_wh)"
            " select s.meter_id, s.from_at + n * interval '12 hours',"
            " s.register_wh + n * (2000 + 37 * (s.meter_id %% 90))"
            " from register_segments s, generate_series(1, %s) n",
            (2 * DAYS,),
        )
        await conn.execute("update accounts set threshold_minor = 20000")
        async with conn.transaction():
            # Enough for what was used, for some of them hardly: a dearer tariff will cut a part of them.
            ids = [row["id"] for row in await rows(conn, "select id from accounts order by id")]
        for account_id in ids:
            async with conn.transaction():
                view = await lock_and_look(conn, account_id, RULES)
                short_minor = 5_000 + 4_000 * (account_id % 40) - view.balance_minor(RULES.calendar)
                await post_money(conn, view, JournalKind.ADJUSTMENT, short_minor, rules=RULES, now_ms=0)
        await close_day(conn, MAY_4, rules=RULES)

    with scratch_database(postgres, template=migrated) as name:
        on_database(postgres.url_of(name), story)
        yield name


@pytest.fixture
def street_url(postgres: EmbeddedPostgres, prepared: str) -> Iterator[str]:
    """A copy of the prepared database for each test."""
    with scratch_database(postgres, template=prepared) as name:
        yield postgres.url_of(name)


@pytest.fixture(scope="module")
def undisturbed(postgres: EmbeddedPostgres, prepared: str) -> Done:
    """What the correction does when nothing comes in between."""
    found: Done = []

    async def story(conn: AsyncConnection) -> None:
        correction = await propose_terms(conn, SCOPE, reason="order", by=CLERK)
        summary = await carried_out(conn, correction)
        assert summary.applied == ACCOUNTS
        await assert_clean(conn)
        found.extend(await _done(conn))

    with scratch_database(postgres, template=prepared) as name:
        on_database(postgres.url_of(name), story)
    return found


async def _done(conn: AsyncConnection) -> Done:
    """Read what must not depend on what happened on the way."""
    cursor = await conn.execute(
        "select j.account_id, j.kind, j.period, j.energy_wh, j.assessed_wh, j.lines::text, j.reason"
        " from journals j where j.correction_id is not null order by 1, 3, 6"
    )
    journals = await cursor.fetchall()
    cursor = await conn.execute(
        "select a.id, a.posted_minor, a.charged_minor, a.through, a.part_start_wh, a.closed_wh, a.desired, a.low_arm,"
        " a.exhausted_arm, a.version,"
        " (select array_agg((x.from_day, x.tariff_id, x.category)::text order by x.from_day)"
        " from assignments x where x.account_id = a.id and x.replaced_by is null),"
        " (select array_agg((o.kind, o.relay, o.state)::text order by o.id) from supply_orders o"
        " where o.account_id = a.id)"
        " from accounts a order by a.id"
    )
    return [*journals, *await cursor.fetchall()]


class Child:
    """A command of ours as a process, ended by its own id."""

    def __init__(self, url: str, *arguments: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PREPAID_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prepaid", "corrections", *arguments],
            env=clean | {"PREPAID_DATABASE_URL": url, "PREPAID_NATS_URL": "nats://127.0.0.1:4222"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill(self) -> None:
        """End it without warning, if it has not ended by itself."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def finished(self) -> int:
        """Wait for its end; return its status."""
        self._process.communicate(timeout=WAIT_S)
        return self._process.returncode


async def _until(happened: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not await happened():
        assert time.monotonic() < deadline_s, f"within {WAIT_S:.0f} s: {what}"
        await asyncio.sleep(POLL_S)


async def _count(conn: AsyncConnection, correction: int, state: str) -> int:
    cursor = await conn.execute(
        "select count(*) from correction_accounts where correction_id = %s and state = %s", (correction, state)
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def _waits(conn: AsyncConnection) -> bool:
    """Tell whether a command of ours waits for a lock inside its transaction."""
    cursor = await conn.execute(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name = 'prepaid-admin' and wait_event_type = 'Lock'"
    )
    row = await cursor.fetchone()
    return bool(row and row[0])


async def _gone(conn: AsyncConnection) -> bool:
    """Tell whether no session of a command is left: the server has seen its end."""
    cursor = await conn.execute(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name = 'prepaid-admin'"
    )
    row = await cursor.fetchone()
    return bool(row and not row[0])


async def _approved(conn: AsyncConnection) -> int:
    correction = await propose_terms(conn, SCOPE, reason="order", by=CLERK)
    summary = await compute(conn, correction, rules=RULES)
    assert summary.to_cut > 0
    await approve(conn, correction, by=OFFICER, cut_offs=summary.to_cut)
    return correction


# Tables in the order in which a range writes them.
@pytest.mark.parametrize(
    "table",
    [
        "assignments",
        "legs",
        "corrections",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("accounts", "journals", "correction_accounts")),
    ],
)
def test_apply_killed_at_a_step_has_done_nothing_there_and_goes_on(
    street_url: str, undisturbed: Done, table: str
) -> None:
    """Killed before each kind of write of a range, after an earlier one was committed: then the rest, each once."""

    async def story(conn: AsyncConnection) -> None:
        correction = await _approved(conn)
        async with await connect(street_url, application="holder") as holder:
            child = Child(street_url, "apply", str(correction), "--pause-s", "0.3")

            async def some_applied() -> bool:
                return await _count(conn, correction, "applied") > 0

            await _until(some_applied, "a range is applied")
            async with holder.transaction():
                await holder.execute(f"lock table {table} in share row exclusive mode".encode())
                await _until(lambda: _waits(conn), f"the next range waits for {table}")
                applied = await _count(conn, correction, "applied")
                child.kill()
        await _until(lambda: _gone(conn), "the server has ended the session")
        assert await _count(conn, correction, "applied") == applied
        assert 0 < applied < ACCOUNTS
        corrected = await rows(
            conn, "select count(distinct account_id) as n from journals where correction_id is not null"
        )
        assert corrected[0]["n"] == applied
        await assert_clean(conn)
        assert Child(street_url, "apply", str(correction)).finished() == 0
        assert await _done(conn) == undisturbed
        stands = await read_correction(conn, correction)
        assert (stands.state, stands.cut_offs) == ("applied", stands.approved_cut_offs)
        await assert_clean(conn)

    on_database(street_url, story)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_step_killed_at_any_moment_ends_the_same(street_url: str, undisturbed: Done, seed: int) -> None:
    """Dry run, approval and posting, each killed three times at random moments and given again."""

    async def story(conn: AsyncConnection) -> None:
        rng = random.Random(seed)
        correction = await propose_terms(conn, SCOPE, reason="order", by=CLERK)

        async def killed_and_given_again(*arguments: str, longest_s: float) -> None:
            for _ in range(3):
                child = Child(street_url, *arguments)
                await asyncio.sleep(rng.uniform(0.8, longest_s))
                child.kill()
            child = Child(street_url, *arguments)
            # An approval or posting that was complete before its end came is refused, which is as good.
            assert child.finished() in (0, 2)

        before = await _done(conn)
        await killed_and_given_again("compute", str(correction), longest_s=2.5)
        assert await _done(conn) == before
        summary = await summary_of(conn, correction)
        assert summary.computed == ACCOUNTS
        cut_offs = str(summary.to_cut)
        approval = ("approve", str(correction), "--by", OFFICER, "--cut-offs", cut_offs)
        await killed_and_given_again(*approval, longest_s=1.5)
        assert (await read_correction(conn, correction)).approved_by == OFFICER
        await killed_and_given_again("apply", str(correction), longest_s=2.5)
        await _until(lambda: _gone(conn), "the server has ended the sessions")
        assert (await read_correction(conn, correction)).state == "applied"
        assert await _done(conn) == undisturbed
        await assert_clean(conn)

    on_database(street_url, story)


def test_two_that_apply_at_once_apply_each_account_once(street_url: str, undisturbed: Done) -> None:
    """Two processes share the work, or the second finds nothing left."""

    async def story(conn: AsyncConnection) -> None:
        correction = await _approved(conn)
        children = [Child(street_url, "apply", str(correction), "--pause-s", "0") for _ in range(2)]
        statuses = {child.finished() for child in children}
        assert 0 in statuses
        assert statuses <= {0, 2}
        assert await _done(conn) == undisturbed
        await assert_clean(conn)

    on_database(street_url, story)


def test_reversal_of_a_bulk_correction_brings_every_account_back(street_url: str) -> None:
    """Taken back, killed in the middle and given again: money and terms of every account are as they were."""

    async def story(conn: AsyncConnection) -> None:
        query = "select id, posted_minor, charged_minor, closed_wh, part_start_wh, desired from accounts order by id"
        before = await rows(conn, query)
        correction = await _approved(conn)
        await apply(conn, correction, rules=RULES)
        assert await rows(conn, query) != before
        back = await propose_reversal(conn, correction, reason="withdrawn", by=CLERK)
        summary = await compute(conn, back, rules=RULES)
        assert (summary.computed, summary.to_cut) == (ACCOUNTS, 0)
        await approve(conn, back, by=OFFICER, cut_offs=0)
        child = Child(street_url, "apply", str(back), "--pause-s", "0.3")

        async def some_applied() -> bool:
            return await _count(conn, back, "applied") > 0

        await _until(some_applied, "a range is taken back")
        child.kill()
        await _until(lambda: _gone(conn), "the server has ended the session")
        assert Child(street_url, "apply", str(back)).finished() == 0
        assert await rows(conn, query) == before
        await assert_clean(conn)

    on_database(street_url, story)


def test_approved_number_of_cut_offs_is_never_passed_however_often_it_is_tried(street_url: str) -> None:
    """The count is in the database: each new process stops at it, and no supply is cut beyond it."""

    async def story(conn: AsyncConnection) -> None:
        correction = await _approved(conn)
        approved = (await read_correction(conn, correction)).approved_cut_offs
        assert approved is not None
        # One account of the last range has become so poor that it would be cut as well.
        spared = [row for row in await account_rows(conn, correction, most=ACCOUNTS) if row.crosses == "none"][-1]
        assert spared.after_minor is not None
        async with conn.transaction():
            view = await lock_and_look(conn, spared.account_id, RULES)
            await post_money(conn, view, JournalKind.ADJUSTMENT, -spared.after_minor, rules=RULES, now_ms=0)
        with pytest.raises(CutOffsExceeded, match=f"at most {approved} cut-offs"):
            await apply(conn, correction, rules=RULES)
        for _ in range(2):
            assert Child(street_url, "apply", str(correction)).finished() == 2
        stands = await read_correction(conn, correction)
        assert stands.cut_offs <= approved
        cut = await rows(conn, "select count(*) as n from supply_orders where relay = 'off' and cause = 'correction'")
        assert cut[0]["n"] == stands.cut_offs
        await assert_clean(conn)
        summary = await compute(conn, correction, rules=RULES)
        assert stands.cut_offs + summary.to_cut == approved + 1
        await approve(conn, correction, by=OFFICER, cut_offs=approved + 1)
        assert (await apply(conn, correction, rules=RULES)).applied == ACCOUNTS
        assert (await read_correction(conn, correction)).cut_offs == approved + 1
        await assert_clean(conn)

    on_database(street_url, story)


def test_recharges_readings_and_closed_days_beside_a_bulk_correction_are_not_lost(street_url: str) -> None:
    """While ranges are applied, accounts are recharged and a day is closed: both come through, and books agree."""

    async def story(conn: AsyncConnection) -> None:
        correction = await _approved(conn)
        await conn.execute(
            "insert into readings (meter_id, read_at, import_wh)"
            " select s.meter_id, %s::timestamptz, s.register_wh + 600000 from register_segments s",
            (local(APRIL + timedelta(days=DAYS), 1),),
        )
        child = Child(street_url, "apply", str(correction), "--pause-s", "0.05")
        for account_id in range(1, ACCOUNTS + 1, 7):
            async with conn.transaction():
                view = await lock_and_look(conn, account_id, RULES)
                await post_money(conn, view, JournalKind.ADJUSTMENT, 500_000, rules=RULES, now_ms=0)
        await close_day(conn, MAY_4 + timedelta(days=1), rules=RULES)
        while child.finished() == 2:
            # More were used up meanwhile than was approved: look and approve again, as a person would.
            summary = await compute(conn, correction, rules=RULES)
            cut_offs = (await read_correction(conn, correction)).cut_offs + summary.to_cut
            await approve(conn, correction, by=OFFICER, cut_offs=cut_offs)
            child = Child(street_url, "apply", str(correction))
        assert (await summary_of(conn, correction)).applied == ACCOUNTS
        await assert_clean(conn)

    on_database(street_url, story)


def test_correction_cancelled_while_it_is_applied_stops_between_ranges(street_url: str) -> None:
    """What was applied stays and can be taken back; nothing more is posted after the cancelling has committed."""

    async def story(conn: AsyncConnection) -> None:
        correction = await _approved(conn)
        child = Child(street_url, "apply", str(correction), "--pause-s", "0.5")

        async def some_applied() -> bool:
            return await _count(conn, correction, "applied") > 0

        await _until(some_applied, "a range is applied")
        await cancel(conn, correction, by=OFFICER)
        applied = await _count(conn, correction, "applied")
        assert child.finished() == 2
        assert await _count(conn, correction, "applied") == applied < ACCOUNTS
        await assert_clean(conn)
        with pytest.raises(CorrectionNotReady):
            await apply(conn, correction, rules=RULES)
        back = await propose_reversal(conn, correction, reason="withdrawn", by=CLERK)
        assert (await carried_out(conn, back)).applied == applied
        await assert_clean(conn)

    on_database(street_url, story)
