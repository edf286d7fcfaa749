"""Corrections on a real PostgreSQL: dry run, second person, posting, taking back; the auditor looks after each."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from billing.correction import DayAverage, Fault, Overhaul, OverhaulRefused, PercentError, StatedEnergy
from billing.journals import JournalKind
from billing.rating import total
from db.correction_scope import TermsScope
from db.corrections import (
    ApprovalRefused,
    CorrectionNotReady,
    CutOffsExceeded,
    ProposalRefused,
    account_rows,
    apply,
    approve,
    cancel,
    compute,
    propose_edits,
    propose_overhaul,
    propose_reversal,
    propose_terms,
    read_correction,
    summary_of,
)
from prepaid.embedded import EmbeddedPostgres
from tests.commands import run_command
from tests.databases import scratch_database
from tests.integration.correction_street import (
    CLERK,
    DEAR_ID,
    DEMAND_ID,
    JUNE_9,
    OFFICER,
    ZONED_ID,
    add_tariffs,
    assert_clean,
    by_part,
    carried_out,
    curve,
    lived_in,
    scratch,
)
from tests.integration.test_posting import (
    APRIL,
    KOLKATA,
    MAY,
    RULES,
    TARIFF_ID,
    booked,
    close,
    home_of,
    local,
    money,
    on_database,
    open_home,
    orders,
    read,
    rows,
    view_of,
)

pytestmark = pytest.mark.db

APRIL_15, MAY_20, MAY_31 = date(2026, 4, 15), date(2026, 5, 20), date(2026, 5, 31)


@pytest.fixture(scope="module")
def prepared(postgres: EmbeddedPostgres, migrated: str) -> Iterator[str]:
    """A database with one home that has lived from April into June, and the tariffs; its name."""

    async def story(conn: AsyncConnection) -> None:
        await add_tariffs(conn)
        await lived_in(conn, "A1")

    with scratch_database(postgres, template=migrated) as name:
        on_database(postgres.url_of(name), story)
        yield name


@pytest.fixture
def home_url(postgres: EmbeddedPostgres, prepared: str) -> Iterator[str]:
    """A copy of the prepared database for each test."""
    with scratch_database(postgres, template=prepared) as name:
        yield postgres.url_of(name)


# From which day to which other terms: over closed months, into the open one, from the opening, and mid-month.
CHANGES = {
    "another_load_from_mid_month": TermsScope(numbers=("A1",), from_day=APRIL_15, new_load_w=5_000),
    "another_tariff_from_the_opening": TermsScope(numbers=("A1",), from_day=APRIL, new_tariff_id=DEAR_ID),
    "another_tariff_for_some_weeks": TermsScope(
        numbers=("A1",), from_day=APRIL_15, until_day=MAY_20, new_tariff_id=DEAR_ID
    ),
    "another_tariff_for_one_month": TermsScope(numbers=("A1",), from_day=MAY, until_day=MAY_31, new_tariff_id=DEAR_ID),
    "zones_from_the_opening": TermsScope(numbers=("A1",), from_day=APRIL, new_tariff_id=ZONED_ID),
    "zones_for_some_weeks": TermsScope(numbers=("A1",), from_day=APRIL_15, until_day=MAY_20, new_tariff_id=ZONED_ID),
    "zones_in_the_open_month": TermsScope(numbers=("A1",), from_day=date(2026, 6, 3), new_tariff_id=ZONED_ID),
    "another_tariff_from_an_open_day": TermsScope(numbers=("A1",), from_day=JUNE_9, new_tariff_id=DEAR_ID),
    "another_category_by_filter": TermsScope(
        category="DS", from_day=APRIL_15, new_category="NRS", new_load_w=2_500, new_tariff_id=DEAR_ID
    ),
}


@pytest.mark.parametrize("scope", CHANGES.values(), ids=CHANGES)
def test_other_terms_book_the_difference_and_their_reversal_takes_it_back(home_url: str, scope: TermsScope) -> None:
    """Every bill is that of the new terms from scratch; taken back, every part is as it was, to the paisa."""

    async def story(conn: AsyncConnection) -> None:
        home = await home_of(conn, "A1")
        parts_before, bills_before = await by_part(conn, home), await booked(conn, home)
        before_minor = (await view_of(conn, home)).balance_minor(KOLKATA)
        terms_before = (await view_of(conn, home)).terms.assignments
        correction = await propose_terms(conn, scope, reason="tariff order 7/2026", by=CLERK)
        await compute(conn, correction, rules=RULES)
        (row,) = await account_rows(conn, correction, most=10)
        assert await by_part(conn, home) == parts_before
        assert (await view_of(conn, home)).terms.assignments == terms_before
        await carried_out(conn, correction)
        assert await booked(conn, home) == await scratch(conn, home) != bills_before
        after_minor = (await view_of(conn, home)).balance_minor(KOLKATA)
        assert (row.before_minor, row.after_minor) == (before_minor, after_minor)
        assert row.difference_minor == -sum(total(part.lines) for part in row.parts.values()) != 0
        await assert_clean(conn)
        journals = await rows(conn, "select kind, reason, correction_id from journals where correction_id is not null")
        assert {(each["kind"], each["reason"], each["correction_id"]) for each in journals} <= {
            ("overhaul", "tariff order 7/2026", correction)
        }
        await carried_out(conn, await propose_reversal(conn, correction, reason="order withdrawn", by=CLERK))
        assert await by_part(conn, home) == parts_before
        view = await view_of(conn, home)
        assert view.terms.assignments == terms_before
        assert view.balance_minor(KOLKATA) == before_minor
        await assert_clean(conn)
        await close(conn, JUNE_9)
        assert await booked(conn, home) == await scratch(conn, home)
        await assert_clean(conn)

    on_database(home_url, story)


def test_levies_go_back_to_the_ledger_they_were_booked_on(database_url: str) -> None:
    """Duty is a levy under the old tariff and income under the new one: each ledger holds its own, all of it."""

    async def story(conn: AsyncConnection) -> None:
        await add_tariffs(conn)
        home = await lived_in(conn, "A1", until=JUNE_9)
        scope = TermsScope(numbers=("A1",), from_day=APRIL, new_tariff_id=DEAR_ID)
        await carried_out(conn, await propose_terms(conn, scope, reason="wrong category", by=CLERK))
        legs = await rows(
            conn,
            "select g.ledger, g.line, sum(g.amount_minor)::bigint as minor from legs g"
            " where g.line in ('duty', 'cess') group by 1, 2 having sum(g.amount_minor) <> 0",
        )
        parts = await by_part(conn, home)
        sums = {name: sum(lines.get(name, 0) for _, lines in parts.values()) for name in ("duty", "cess")}
        assert {(leg["ledger"], leg["line"], leg["minor"]) for leg in legs} == {
            ("revenue", "duty", sums["duty"]),
            ("levies_payable", "cess", sums["cess"]),
        }

    on_database(database_url, story)


def test_demand_of_a_corrected_month_is_that_of_its_own_days(database_url: str) -> None:
    """A tariff that charges demand is given for some weeks: half-hours of those weeks count and no others."""

    async def story(conn: AsyncConnection) -> None:
        await add_tariffs(conn)
        home = await open_home(conn, "A1", opening_credit_minor=5_000_000)
        seen, register_wh = [], 0
        for number in range(45 * 48):
            # 4 kW for half an hour on 5 April, 3 kW on 20 April, 1 kW else.
            register_wh += {4 * 48 + 20: 2_000, 19 * 48 + 20: 1_500}.get(number, 500)
            seen.append((local(APRIL, (number + 1) / 2), register_wh))
        await read(conn, home, seen)
        await close(conn, date(2026, 5, 12))
        scope = TermsScope(numbers=("A1",), from_day=APRIL_15, until_day=date(2026, 4, 30), new_tariff_id=DEMAND_ID)
        correction = await propose_terms(conn, scope, reason="contract demand", by=CLERK)
        await carried_out(conn, correction)
        # One kW above the sanctioned two, 16 of 30 days of 500 rupees a kW.
        assert (await by_part(conn, home))[APRIL_15][1]["demand"] == 26_667
        await assert_clean(conn)
        await carried_out(conn, await propose_reversal(conn, correction, reason="withdrawn", by=CLERK))
        await assert_clean(conn)

    on_database(database_url, story)


def test_edited_reading_moves_what_it_touched_and_back(home_url: str) -> None:
    """A register put right and one made void: bills follow the readings as they hold; taken back, all is as it was."""

    async def story(conn: AsyncConnection) -> None:
        home = await home_of(conn, "A1")
        seen = curve()
        parts_before = await by_part(conn, home)
        before_minor = (await view_of(conn, home)).balance_minor(KOLKATA)
        # The last reading of April with 2 kWh too many, and the first of May void.
        edits = [("M-A1", seen[89][0], seen[89][1] - 2_000), ("M-A1", seen[90][0], None)]
        correction = await propose_edits(conn, edits, reason="photograph of the display", by=CLERK)
        await carried_out(conn, correction)
        assert await by_part(conn, home) != parts_before
        assert await booked(conn, home) == await scratch(conn, home)
        # The total did not change, only the month it is charged in.
        energy_wh = sum(wh for wh, _ in (await booked(conn, home)).values())
        assert energy_wh == seen[-1][1]
        await assert_clean(conn)
        await carried_out(conn, await propose_reversal(conn, correction, reason="photograph was old", by=CLERK))
        assert await by_part(conn, home) == parts_before
        assert (await view_of(conn, home)).balance_minor(KOLKATA) == before_minor
        await assert_clean(conn)

    on_database(home_url, story)


def test_edited_mark_is_told_to_ingest_and_lets_the_meter_speak_again(database_url: str) -> None:
    """A last reading far too high is void: mark and balance go back, the feed names the account, days stay closed."""

    async def story(conn: AsyncConnection) -> None:
        home = await lived_in(conn, "A1", until=date(2026, 6, 5))
        wrong = local(date(2026, 6, 10), 6)
        right = await view_of(conn, home)
        await read(conn, home, [(wrong, 5_000_000)])
        await close(conn, date(2026, 6, 12))
        view = await view_of(conn, home)
        assert view.levels.desired == "off"
        correction = await propose_edits(conn, [("M-A1", wrong, None)], reason="test bench left its mark", by=CLERK)
        await carried_out(conn, correction)
        after = await view_of(conn, home)
        assert (after.mark_ms, after.mark_register_wh) == (right.mark_ms, right.mark_register_wh)
        assert after.levels.desired == "on"
        assert await orders(conn, home) == [("off", "superseded", 1), ("on", "pending", 2)]
        feed = await rows(conn, "select max(version) as version from change_feed")
        assert feed[0]["version"] == after.version > view.version
        assert await booked(conn, home) == await scratch(conn, home)
        await assert_clean(conn)
        await read(conn, home, [(local(date(2026, 6, 13), 6), 930_000)])
        await close(conn, date(2026, 6, 12))
        assert await booked(conn, home) == await scratch(conn, home)
        await assert_clean(conn)

    on_database(database_url, story)


def test_edit_that_makes_a_register_fall_is_refused(home_url: str) -> None:
    """Energy to date only rises, also after an edit; the account is left as it is."""

    async def story(conn: AsyncConnection) -> None:
        home = await home_of(conn, "A1")
        seen = curve()
        edits = [("M-A1", seen[40][0], seen[41][1] + 1)]
        correction = await propose_edits(conn, edits, reason="typing error", by=CLERK)
        summary = await compute(conn, correction, rules=RULES)
        assert (summary.computed, summary.refused) == (0, 1)
        (row,) = await account_rows(conn, correction, most=1)
        assert row.detail is not None
        assert "only rises" in row.detail
        with pytest.raises(ApprovalRefused, match="expected accounts to correct"):
            await approve(conn, correction, by=OFFICER, cut_offs=0)
        assert await rows(conn, "select 1 from reading_edits") == []
        with pytest.raises(ProposalRefused, match="none at"):
            await propose_edits(conn, [("M-A1", seen[40][0] + timedelta(minutes=1), 1)], reason="x", by=CLERK)
        assert await booked(conn, home) == await scratch(conn, home)

    on_database(home_url, story)


def test_overhaul_of_a_slow_meter_assesses_its_closed_months_and_back(home_url: str) -> None:
    """A meter that counts 5 % too little: each month of the span is rated with what it should have counted."""

    async def story(conn: AsyncConnection) -> None:
        home = await home_of(conn, "A1")
        parts_before = await by_part(conn, home)
        overhaul = Overhaul(
            fault=Fault.INACCURATE, first=APRIL_15, last=MAY_31, assessment=PercentError(basis_points=-500)
        )
        correction = await propose_overhaul(conn, ["A1"], overhaul, reason="laboratory report 12", by=CLERK)
        await carried_out(conn, correction)
        found = await rows(
            conn, "select period, assessed_wh from journals where correction_id = %s order by period", correction
        )
        seen = dict(curve())
        assert [row["period"] for row in found] == [APRIL, MAY]
        assert all(row["assessed_wh"] > 0 for row in found)
        may_wh = parts_before[MAY][0]
        assert found[1]["assessed_wh"] == (may_wh * 20_000 + 9_500) // 19_000 - may_wh
        assert sum(row["assessed_wh"] for row in found) < max(seen.values()) // 19
        await assert_clean(conn)
        again = await propose_overhaul(conn, ["A1"], overhaul, reason="the same again", by=CLERK)
        assert (await compute(conn, again, rules=RULES)).refused == 1
        await carried_out(conn, await propose_reversal(conn, correction, reason="laboratory withdrew", by=CLERK))
        assert await by_part(conn, home) == parts_before
        await assert_clean(conn)

    on_database(home_url, story)


@pytest.mark.parametrize(
    "assessment",
    [DayAverage(first=date(2026, 4, 5), last=date(2026, 4, 20)), StatedEnergy(month_wh=450_000)],
    ids=["day_average", "stated_energy"],
)
def test_overhaul_then_other_terms_then_both_back(home_url: str, assessment: DayAverage | StatedEnergy) -> None:
    """Assessed energy stays with its month when the month is cut by other terms, and when it is whole again."""

    async def story(conn: AsyncConnection) -> None:
        home = await home_of(conn, "A1")
        parts_before = await by_part(conn, home)
        overhaul = Overhaul(fault=Fault.DEFECTIVE, first=MAY, last=MAY_31, assessment=assessment)
        assessed = await propose_overhaul(conn, ["A1"], overhaul, reason="meter stood", by=CLERK)
        await carried_out(conn, assessed)
        parts_assessed = await by_part(conn, home)
        scope = TermsScope(numbers=("A1",), from_day=MAY_20, new_tariff_id=DEAR_ID)
        termed = await propose_terms(conn, scope, reason="wrong category", by=CLERK)
        await carried_out(conn, termed)
        await assert_clean(conn)
        await carried_out(conn, await propose_reversal(conn, termed, reason="right after all", by=CLERK))
        assert await by_part(conn, home) == parts_assessed
        await carried_out(conn, await propose_reversal(conn, assessed, reason="right after all", by=CLERK))
        assert await by_part(conn, home) == parts_before
        await assert_clean(conn)

    on_database(home_url, story)


def test_overhaul_of_an_open_month_is_refused(home_url: str) -> None:
    """Only what is closed can be assessed; what the rules do not permit cannot even be asked for."""

    async def story(conn: AsyncConnection) -> None:
        overhaul = Overhaul(
            fault=Fault.BURNT, first=MAY_20, last=date(2026, 6, 3), assessment=StatedEnergy(month_wh=300_000)
        )
        correction = await propose_overhaul(conn, ["A1"], overhaul, reason="burnt", by=CLERK)
        assert (await compute(conn, correction, rules=RULES)).refused == 1
        (row,) = await account_rows(conn, correction, most=1)
        assert row.detail is not None
        assert "bill parts that are closed" in row.detail
        long = Overhaul(fault=Fault.BURNT, first=date(2026, 2, 27), last=MAY_31, assessment=StatedEnergy(month_wh=1))
        with pytest.raises(OverhaulRefused, match="R-20"):
            await propose_overhaul(conn, ["A1"], long, reason="burnt", by=CLERK)

    on_database(home_url, story)


def test_second_person_and_the_number_of_cut_offs_are_asked_for(database_url: str) -> None:
    """Nobody approves their own proposal, an unread dry run, or another number; the database refuses it too."""

    async def story(conn: AsyncConnection) -> None:
        await add_tariffs(conn)
        home = await lived_in(conn, "A1", opening_credit_minor=650_000, threshold_minor=30_000)
        scope = TermsScope(numbers=("A1",), from_day=APRIL, new_tariff_id=DEAR_ID)
        correction = await propose_terms(conn, scope, reason="tariff order", by=CLERK)
        with pytest.raises(CorrectionNotReady, match="expected computed, got proposed"):
            await approve(conn, correction, by=OFFICER, cut_offs=0)
        summary = await compute(conn, correction, rules=RULES)
        assert (summary.to_cut, summary.to_warn) == (1, 0)
        with pytest.raises(ApprovalRefused, match="second person"):
            await approve(conn, correction, by=f" {CLERK.upper()}", cut_offs=1)
        with pytest.raises(ApprovalRefused, match="the 1 cut-offs"):
            await approve(conn, correction, by=OFFICER, cut_offs=0)
        with pytest.raises(CorrectionNotReady, match="expected one that is approved, got computed"):
            await apply(conn, correction, rules=RULES)
        with pytest.raises(psycopg.errors.CheckViolation):
            await conn.execute(
                "update corrections set approved_by = lower(asked_by), approved_at = now(), approved_cut_offs = 1"
            )
        await approve(conn, correction, by=OFFICER, cut_offs=1)
        await apply(conn, correction, rules=RULES)
        stands = await read_correction(conn, correction)
        assert (stands.state, stands.cut_offs, stands.approved_by) == ("applied", 1, OFFICER)
        assert [order[:2] for order in await orders(conn, home)] == [("off", "pending")]
        with pytest.raises(CorrectionNotReady, match="got applied"):
            await apply(conn, correction, rules=RULES)
        with pytest.raises(CorrectionNotReady, match="got applied"):
            await cancel(conn, correction, by=CLERK)
        await assert_clean(conn)
        back = await propose_reversal(conn, correction, reason="withdrawn", by=CLERK)
        with pytest.raises(CorrectionNotReady, match="no reversal yet"):
            await propose_reversal(conn, correction, reason="withdrawn", by=CLERK)
        assert (await carried_out(conn, back)).applied == 1
        assert [order[:2] for order in await orders(conn, home)] == [("off", "superseded"), ("on", "pending")]
        with pytest.raises(CorrectionNotReady, match="no reversal, got one"):
            await propose_reversal(conn, back, reason="again", by=CLERK)
        await assert_clean(conn)

    on_database(database_url, story)


def test_what_happens_between_dry_run_and_posting_is_seen_under_the_lock(home_url: str) -> None:
    """A recharge, a reading, a late reading and a closed day come in between: what is posted is right all the same."""

    async def story(conn: AsyncConnection) -> None:
        home = await home_of(conn, "A1")
        scope = TermsScope(numbers=("A1",), from_day=APRIL_15, new_tariff_id=DEAR_ID)
        correction = await propose_terms(conn, scope, reason="tariff order", by=CLERK)
        summary = await compute(conn, correction, rules=RULES)
        await approve(conn, correction, by=OFFICER, cut_offs=summary.to_cut)
        (dry,) = await account_rows(conn, correction, most=1)
        await money(conn, home, JournalKind.VEND, 50_000)
        seen = curve()
        await read(conn, home, [(local(JUNE_9, 23), seen[-1][1] + 9_000)])
        await read(conn, home, [(local(date(2026, 4, 30), 23), seen[89][1] + 20)], late=True)
        await close(conn, date(2026, 6, 8))
        await apply(conn, correction, rules=RULES)
        (done,) = await account_rows(conn, correction, most=1)
        assert dry.before_minor != done.before_minor
        assert await booked(conn, home) == await scratch(conn, home)
        await assert_clean(conn)

    on_database(home_url, story)


def test_more_cut_offs_than_approved_stop_the_correction(database_url: str) -> None:
    """An account that has become poorer would be cut unseen: its range is left alone until somebody looks again."""

    async def story(conn: AsyncConnection) -> None:
        await add_tariffs(conn)
        homes = [await lived_in(conn, number) for number in ("A1", "A2", "A3")]
        scope = TermsScope(tariff_id=TARIFF_ID, from_day=APRIL, new_tariff_id=DEAR_ID)
        correction = await propose_terms(conn, scope, reason="tariff order", by=CLERK)
        summary = await compute(conn, correction, rules=RULES)
        assert (summary.computed, summary.to_cut) == (3, 0)
        await approve(conn, correction, by=OFFICER, cut_offs=0)
        poor_minor = (await view_of(conn, homes[1])).balance_minor(KOLKATA) - 10_000
        await money(conn, homes[1], JournalKind.ADJUSTMENT, -poor_minor)
        before = [await by_part(conn, home) for home in homes]
        with pytest.raises(CutOffsExceeded, match="at most 0 cut-offs"):
            await apply(conn, correction, rules=RULES)
        assert [await by_part(conn, home) for home in homes] == before
        assert await orders(conn, homes[1]) == []
        stands = await read_correction(conn, correction)
        assert (stands.state, stands.approved_by) == ("computed", None)
        with pytest.raises(CorrectionNotReady, match="got computed"):
            await apply(conn, correction, rules=RULES)
        assert (await compute(conn, correction, rules=RULES)).to_cut == 1
        (crossing,) = await account_rows(conn, correction, most=10, crossing=True)
        assert (crossing.number, crossing.crosses) == ("A2", "exhausted")
        await approve(conn, correction, by=OFFICER, cut_offs=1)
        assert (await apply(conn, correction, rules=RULES)).applied == 3
        assert await orders(conn, homes[1]) == [("off", "pending", 1)]
        await assert_clean(conn)

    on_database(database_url, story)


def test_filter_leaves_accounts_of_other_terms_alone(database_url: str) -> None:
    """A back-dated order for one category reaches only the days on which an account was in it."""

    async def story(conn: AsyncConnection) -> None:
        await add_tariffs(conn)
        inside, outside = await lived_in(conn, "A1"), await lived_in(conn, "A2", category="NRS")
        moved = await lived_in(conn, "A3")
        scope = TermsScope(numbers=("A3",), from_day=MAY_20, new_category="NRS")
        await carried_out(conn, await propose_terms(conn, scope, reason="shop since May", by=CLERK))
        scope = TermsScope(category="DS", from_day=APRIL_15, new_load_w=4_000)
        summary = await carried_out(conn, await propose_terms(conn, scope, reason="load review", by=CLERK))
        assert summary.applied == 2
        loads = {
            home.number: [(each.from_day, each.load_w) for each in (await view_of(conn, home)).terms.assignments]
            for home in (inside, outside, moved)
        }
        assert loads == {
            "A1": [(APRIL, 2_000), (APRIL_15, 4_000)],
            "A2": [(APRIL, 2_000)],
            "A3": [(APRIL, 2_000), (APRIL_15, 4_000), (MAY_20, 2_000)],
        }
        for home in (inside, outside, moved):
            assert await booked(conn, home) == await scratch(conn, home)
        await assert_clean(conn)

    on_database(database_url, story)


def test_cancelled_correction_changes_nothing(home_url: str) -> None:
    """Given up before it was applied: no journal, no assignment, and it cannot be approved or reversed."""

    async def story(conn: AsyncConnection) -> None:
        scope = TermsScope(numbers=("A1",), from_day=APRIL, new_tariff_id=DEAR_ID)
        correction = await propose_terms(conn, scope, reason="tariff order", by=CLERK)
        await compute(conn, correction, rules=RULES)
        await cancel(conn, correction, by=OFFICER)
        for refused in (
            approve(conn, correction, by=OFFICER, cut_offs=0),
            apply(conn, correction, rules=RULES),
            propose_reversal(conn, correction, reason="x", by=CLERK),
        ):
            with pytest.raises(CorrectionNotReady, match="got cancelled"):
                await refused
        assert (await summary_of(conn, correction)).applied == 0

    on_database(home_url, story)


def test_proposals_that_make_no_sense_are_refused(database_url: str) -> None:
    """Unknown accounts, nothing to change, days in the wrong order, a tariff before its time."""

    async def story(conn: AsyncConnection) -> None:
        await add_tariffs(conn)
        await open_home(conn, "A1")
        for scope, message in (
            (TermsScope(from_day=APRIL, new_load_w=1), "expected account numbers"),
            (TermsScope(numbers=("A9",), from_day=APRIL, new_load_w=1), "got 'A9'"),
            (TermsScope(numbers=("A1",), from_day=APRIL), "got none"),
            (TermsScope(numbers=("A1",), from_day=MAY, until_day=APRIL, new_load_w=1), "last day"),
            (TermsScope(numbers=("A1",), from_day=date(2025, 12, 31), new_tariff_id=DEAR_ID), "begins"),
        ):
            with pytest.raises(ProposalRefused, match=message):
                await propose_terms(conn, scope, reason="because", by=CLERK)
        with pytest.raises(ProposalRefused, match="a reason"):
            await propose_terms(conn, TermsScope(numbers=("A1",), from_day=APRIL, new_load_w=1), reason=" ", by=CLERK)

    on_database(database_url, story)


def test_commands_take_a_correction_from_proposal_to_reversal(home_url: str) -> None:
    """Every command with its JSON, the lines shown for a person, and refusals with status 2."""

    def answer(*arguments: str) -> dict[str, Any]:
        return dict(json.loads(command(*arguments, "--json").stdout))

    def command(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        return run_command("corrections", *arguments, environment={"PREPAID_DATABASE_URL": home_url}, status=status)

    asked = ("--reason", "order 7", "--by", CLERK)
    proposed = answer("propose-terms", "--account", "A1", "--from", "2026-05-01", "--new-load-w", "4000", *asked)
    assert proposed == {"correction": 1, "state": "proposed"}
    summary = answer("compute", "1")
    assert (summary["computed"], summary["debited"], summary["to_cut"]) == (1, 1, 0)
    shown = answer("show", "1")
    (account,) = shown["accounts"]
    may = account["parts"]["2026-05-01"]
    # Two kW more at 70 instead of 50 rupees a kW: 280 for 100, and 15 % duty.
    assert (may["energy_wh"], may["lines"]) == (0, {"fixed": 18_000, "duty": 2_700})
    assert account["difference_minor"] == account["after_minor"] - account["before_minor"] == summary["debited_minor"]
    table = command("show", "1").stdout
    assert "-180.00" in table
    assert "1 to correct, 0 corrected, 0 refused" in table
    refusal = command("approve", "1", "--by", CLERK, "--cut-offs", "0", status=2).stderr
    assert "approval_refused" in refusal
    command("apply", "1", status=2)
    assert answer("approve", "1", "--by", OFFICER, "--cut-offs", "0")["approved_by"] == OFFICER
    assert answer("apply", "1")["applied"] == 1
    assert answer("reverse", "1", *asked)["correction"] == 2
    assert answer("cancel", "2", "--by", CLERK)["state"] == "cancelled"
    seen = curve()
    edit = f"M-A1,{seen[5][0].isoformat()},{seen[5][1]}"
    assert answer("propose-edit", "--edit", edit, *asked)["correction"] == 3
    assert "arguments_refused" in command("propose-edit", "--edit", "M-A1,noon,1", *asked, status=2).stderr
    span = ("--account", "A1", "--fault", "inaccurate", "--from", "2026-04-01", "--until", "2026-05-31")
    assert answer("propose-overhaul", *span, "--percent-error", "-4.25", *asked)["correction"] == 4
    assert answer("compute", "4")["computed"] == 1
    assert "arguments_refused" in command("propose-overhaul", *span, *asked, status=2).stderr
    burnt = ("--account", "A1", "--fault", "burnt", "--from", "2025-04-01", "--until", "2026-05-31")
    refusal = command("propose-overhaul", *burnt, "--month-wh", "1", *asked, status=2).stderr
    assert "overhaul_refused" in refusal
    listed = answer("list")["corrections"]
    assert [(row["id"], row["state"]) for row in listed] == [
        (4, "computed"),
        (3, "proposed"),
        (2, "cancelled"),
        (1, "applied"),
    ]
