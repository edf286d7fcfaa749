"""The exceptions desk on a real PostgreSQL: evidence, dry run, one person or two, bulk, and what money says then."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
from psycopg import AsyncConnection

from billing.calendar import to_ms
from db.batches import QuarantineRow, add_quarantine
from db.exceptions import (
    ExceptionKey,
    ExceptionRefused,
    QueueAsked,
    UnknownException,
    add_estimation_document,
    assign_exception,
    count_exceptions,
    list_exceptions,
    read_exception,
    read_trail,
)
from db.migrate import migrate, migrations
from db.pool import connect
from headend.edges.exceptions_api import evidence_of
from headend.edges.exceptions_desk import (
    Action,
    Decision,
    Office,
    approve_decision,
    cancel_decision,
    decide,
    decide_many,
    dry_run,
)
from headend.edges.exceptions_estimates import rules_on
from headend.estimation.document import builtin_estimation_rules
from headend.estimation.values import EstimationRule
from prepaid.embedded import EmbeddedPostgres
from protocols.topics import shard_of
from tests.databases import scratch_database
from tests.integration.correction_street import CLERK, JUNE_9, OFFICER, ZONED_ID, add_tariffs, assert_clean, by_part
from tests.integration.test_exceptions_estimates import around, with_gap
from tests.integration.test_posting import (
    KOLKATA,
    RULES,
    Home,
    booked,
    close,
    from_scratch,
    home_of,
    local,
    on_database,
    open_home,
    read,
    rows,
    view_of,
)

pytestmark = pytest.mark.db

OFFICE = Office(posting=RULES, estimation=builtin_estimation_rules())
NOW = datetime(2026, 6, 10, tzinfo=UTC)
SERIAL = "M-A1"
ADD_FLAG = (
    "insert into reading_flags (meter_id, day, rule, severity, at, expected, got)"
    " values (%s, %s, %s, 'warning', %s, 1, 2) returning id"
)
KEEP, WHY = Decision(action=Action.KEEP), "seen on site"
LIKE_DAYS = Decision(action=Action.ESTIMATE, rule=EstimationRule.AVERAGE_OF_LIKE_DAYS)


@pytest.fixture(scope="module")
def prepared(postgres: EmbeddedPostgres, migrated: str) -> Iterator[str]:
    """A database with a home of ten weeks and a gap over the end of April, given up; its name."""

    async def story(conn: AsyncConnection) -> None:
        await add_tariffs(conn)
        known, missing = with_gap()
        home = await open_home(conn, "A1", opening_credit_minor=3_000_000, tariff_id=ZONED_ID)
        await conn.execute("update meters set interval_s = 28800 where id = %s", (home.meter_id,))
        await read(conn, home, known)
        await close(conn, JUNE_9 - timedelta(days=4))
        (from_at, _), (to_at, _) = around(known, missing)
        await conn.execute(
            "insert into gaps (meter_id, shard, from_at, to_at, state, missing, closed_at)"
            " values (%s, %s, %s, %s, 'given_up', %s, now())",
            (home.meter_id, shard_of(SERIAL), from_at, to_at, len(missing)),
        )

    with scratch_database(postgres, template=migrated) as name:
        on_database(postgres.url_of(name), story)
        yield name


@pytest.fixture
def home_url(postgres: EmbeddedPostgres, prepared: str) -> Iterator[str]:
    """A copy of the prepared database for each test."""
    with scratch_database(postgres, template=prepared) as name:
        yield postgres.url_of(name)


async def add_flag(conn: AsyncConnection, home: Home, rule: str, at: datetime) -> ExceptionKey:
    """Note something of a stored reading; return its key."""
    cursor = await conn.execute(ADD_FLAG.encode(), (home.meter_id, at.date(), rule, at))
    row = await cursor.fetchone()
    assert row is not None
    return ExceptionKey.read(f"flag-{row[0]}")


async def hold(conn: AsyncConnection, at: datetime, import_wh: int, *, reason: str = "jump") -> ExceptionKey:
    """Hold a reading with its bytes; return its key."""
    raw = json.dumps({"v": 1, "meter": SERIAL, "at": to_ms(at), "import_wh": import_wh}).encode()
    row = QuarantineRow(
        shard=shard_of(SERIAL),
        topic=f"amr/{SERIAL}/rd",
        serial=SERIAL,
        read_at=at,
        reason=reason,
        detail="register: held",
        raw=raw,
        sha256=hashlib.sha256(raw).digest(),
        item=0,
        severity="alarm",
        stored_at=at,
        rejected=False,
    )
    await add_quarantine(conn, [row])
    found = await rows(conn, "select max(id) as id from quarantine")
    return ExceptionKey.read(f"quarantine-{found[0]['id']}")


async def only_gap(conn: AsyncConnection) -> ExceptionKey:
    """Return the gap's key."""
    (found,) = await list_exceptions(conn, QueueAsked(kind="gap"), most=9)
    return ExceptionKey.read(f"{found.kind}-{found.item_id}")


def test_gap_is_estimated_by_like_days_with_a_second_person_and_settles(home_url: str) -> None:
    """Evidence, dry run, proposal, approval by another, then the readings: each step says what the next one finds."""

    async def story(conn: AsyncConnection) -> None:
        home, key, (known, missing) = await home_of(conn, "A1"), await only_gap(conn), with_gap()
        parts_before = await by_part(conn, home)
        shown = await evidence_of(conn, key, OFFICE, NOW)
        (span,) = shown["spans"]
        by_rule = {each["rule"]: each for each in span["estimates"]}
        assert list(by_rule) == [rule.value for rule in OFFICE.estimation.order]
        assert by_rule["interpolation"]["declined"] == "span_too_long"
        # The week's use comes again: like days say what was used to some Wh.
        guess, used = by_rule["average_of_like_days"]["intervals_wh"], [wh for _, wh in missing]
        assert len(span["like_days_wh"]) >= 4
        edges = [span["from_wh"], *used]
        assert max(abs(a - (c - b)) for a, b, c in zip(guess, edges, edges[1:], strict=False)) < 50
        place = known.index(around(known, missing)[0])
        assert [row["received_wh"] for row in shown["neighbours"]] == [wh for _, wh in known[place - 12 : place + 14]]
        looked = await dry_run(conn, await read_exception(conn, key), LIKE_DAYS, OFFICE)
        assert looked.needs_second_person
        assert await by_part(conn, home) == parts_before
        assert await rows(conn, "select id from corrections") == []
        before_minor = (await view_of(conn, home)).balance_minor(KOLKATA)
        decided = await decide(conn, key, LIKE_DAYS, OFFICE, by=CLERK, why="gap")
        assert (decided.state, decided.dry_run.effect) == ("proposed", looked.effect)
        with pytest.raises(ExceptionRefused, match="no open decision"):
            await decide(conn, key, KEEP, OFFICE, by=OFFICER, why=WHY)
        with pytest.raises(ExceptionRefused, match="second person"):
            await approve_decision(conn, key, OFFICE, by=CLERK.upper(), why=WHY, cut_offs=0)
        assert await by_part(conn, home) == parts_before
        row = await approve_decision(conn, key, OFFICE, by=OFFICER, why=WHY, cut_offs=0)
        assert (row.state, row.asked_by, row.ended_by) == ("done", CLERK, OFFICER)
        after_minor = (await view_of(conn, home)).balance_minor(KOLKATA)
        assert after_minor - before_minor == looked.effect.difference_minor != 0
        held = await rows(conn, "select rule, inputs from held_estimates")
        assert len(held) == len(missing)
        assert {each["rule"] for each in held} == {"average_of_like_days"}
        assert held[0]["inputs"]["like_days"] == len(span["like_days_wh"])
        assert await list_exceptions(conn, QueueAsked(kind="gap"), most=9) == []
        with pytest.raises(ExceptionRefused, match="expected one that is open"):
            await decide(conn, key, KEEP, OFFICE, by=CLERK, why=WHY)
        assert [step.step for step in await read_trail(conn, key)] == ["propose_estimate", "approve"]
        await assert_clean(conn)
        await read(conn, home, missing, late=True)
        assert await booked(conn, home) == await from_scratch(conn, home, JUNE_9)
        await assert_clean(conn)

    on_database(home_url, story)


def test_gap_in_open_days_or_by_a_rule_that_declines_is_refused_and_leaves_nothing(home_url: str) -> None:
    """Open days need no estimate, a rule that cannot says why, a proposal can be given up and made anew."""

    async def story(conn: AsyncConnection) -> None:
        home, key = await home_of(conn, "A1"), await only_gap(conn)
        by_name = Decision(action=Action.ESTIMATE, rule=EstimationRule.INTERPOLATION)
        with pytest.raises(ExceptionRefused, match="span_too_long"):
            await decide(conn, key, by_name, OFFICE, by=CLERK, why=WHY)
        with pytest.raises(ExceptionRefused, match="expected keep or estimate"):
            await decide(conn, key, Decision(action=Action.VOID), OFFICE, by=CLERK, why=WHY)
        counted = Decision(action=Action.ESTIMATE, counted_wh=(1, None))
        with pytest.raises(ExceptionRefused, match="one span of 13 intervals"):
            await decide(conn, key, counted, OFFICE, by=CLERK, why=WHY)
        assert await rows(conn, "select * from exception_decisions") == []
        first = await decide(conn, key, LIKE_DAYS, OFFICE, by=CLERK, why="gap")
        assert (await cancel_decision(conn, key, by=OFFICER, why="look again")).state == "cancelled"
        states = await rows(conn, "select state from corrections where id = %s", first.correction_id)
        assert states == [{"state": "cancelled"}]
        assert (await decide(conn, key, LIKE_DAYS, OFFICE, by=CLERK, why="gap")).state == "proposed"
        (june_5,) = await rows(conn, "select max(read_at) as at from readings where meter_id = %s", home.meter_id)
        await conn.execute("update gaps set to_at = %s", (june_5["at"],))
        await cancel_decision(conn, key, by=OFFICER, why="again")
        await conn.execute("update meters set interval_s = 3600 where id = %s", (home.meter_id,))
        any_rule = Decision(action=Action.ESTIMATE, rule=EstimationRule.PRORATE)
        with pytest.raises(ExceptionRefused, match="days that are closed"):
            await decide(conn, key, any_rule, OFFICE, by=CLERK, why="gap")

    on_database(home_url, story)


def test_flagged_reading_is_edited_voided_estimated_or_kept(home_url: str) -> None:
    """Edits wait for a second person and keep what was before; to keep a reading needs one person and no money."""

    async def story(conn: AsyncConnection) -> None:
        home, (known, _) = await home_of(conn, "A1"), with_gap()
        at, wh = known[30]
        key = await add_flag(conn, home, "stuck", at)
        await decide(conn, key, Decision(action=Action.EDIT, import_wh=wh - 100), OFFICE, by=CLERK, why="photograph")
        await approve_decision(conn, key, OFFICE, by=OFFICER, why=WHY, cut_offs=0)
        shown = await evidence_of(conn, key, OFFICE, NOW)
        (edited,) = [row for row in shown["neighbours"] if row["edited"]]
        assert (edited["received_wh"], edited["edited_wh"]) == (wh, wh - 100)
        guessed = await add_flag(conn, home, "clock_drift", known[40][0])
        # An hour of 1,5 intervals is not what interpolation is trusted for; proration is.
        prorate = Decision(action=Action.ESTIMATE, rule=EstimationRule.PRORATE)
        await decide(conn, guessed, prorate, OFFICE, by=CLERK, why="wrong digit")
        await approve_decision(conn, guessed, OFFICE, by=OFFICER, why=WHY, cut_offs=0)
        (estimated,) = await rows(conn, "select import_wh from reading_edits where read_at = %s", known[40][0])
        assert estimated["import_wh"] == (known[39][1] + known[41][1]) // 2
        void = await add_flag(conn, home, "export", known[50][0])
        await decide(conn, void, Decision(action=Action.VOID), OFFICE, by=CLERK, why="wrong house")
        await approve_decision(conn, void, OFFICE, by=OFFICER, why=WHY, cut_offs=0)
        await assert_clean(conn)
        kept = await add_flag(conn, home, "gap", known[60][0])
        decided = await decide(conn, kept, KEEP, OFFICE, by=CLERK, why="an empty home")
        assert (decided.state, decided.dry_run.effect.difference_minor) == ("done", 0)
        assert await list_exceptions(conn, QueueAsked(kind="flag"), most=9) == []

    on_database(home_url, story)


def test_release_of_much_money_waits_for_a_second_person(home_url: str) -> None:
    """A small amount is released at once; a large one, a cut-off or an unknown amount only by two; dry runs say why."""

    async def story(conn: AsyncConnection) -> None:
        home, (known, missing) = await home_of(conn, "A1"), with_gap()
        last_at, last_wh = known[-1]
        release = Decision(action=Action.RELEASE)
        small = await hold(conn, last_at + timedelta(hours=8), last_wh + 3_000)
        looked = await dry_run(conn, await read_exception(conn, small), release, OFFICE)
        assert not looked.needs_second_person
        assert (await decide(conn, small, release, OFFICE, by=CLERK, why=WHY)).state == "done"
        assert (await read_exception(conn, small)).state == "released"
        large = await hold(conn, last_at + timedelta(hours=9), last_wh + 6_000_000)
        decided = await decide(conn, large, release, OFFICE, by=CLERK, why=WHY)
        effect = decided.dry_run.effect
        assert (decided.state, effect.cut_offs) == ("proposed", 1)
        assert effect.difference_minor is not None
        assert effect.difference_minor < -OFFICE.estimation.second_person_above_minor
        with pytest.raises(ExceptionRefused, match="1 cut-offs"):
            await approve_decision(conn, large, OFFICE, by=OFFICER, why=WHY, cut_offs=0)
        assert (await read_exception(conn, large)).state == "held"
        await approve_decision(conn, large, OFFICE, by=OFFICER, why=WHY, cut_offs=1)
        assert (await read_exception(conn, large)).state == "released"
        late = await hold(conn, missing[5][0], missing[5][1], reason="too_late")
        found = (await dry_run(conn, await read_exception(conn, late), release, OFFICE)).effect
        before_minor = (await view_of(conn, home)).balance_minor(KOLKATA)
        await read(conn, home, [missing[5]], late=True)
        assert (await view_of(conn, home)).balance_minor(KOLKATA) - before_minor == found.difference_minor
        falls = await hold(conn, last_at + timedelta(hours=10), 5)
        unknown = await dry_run(conn, await read_exception(conn, falls), release, OFFICE)
        assert (unknown.effect.difference_minor, unknown.needs_second_person) == (None, True)
        assert (await decide(conn, falls, Decision(action=Action.REJECT), OFFICE, by=CLERK, why=WHY)).state == "done"
        assert (await read_exception(conn, falls)).state == "rejected"

    on_database(home_url, story)


def test_bulk_decides_each_wholly_and_counts(home_url: str) -> None:
    """What fits is done, what does not is refused by itself; above the bound nothing is; a dry run writes nothing."""

    async def story(conn: AsyncConnection) -> None:
        home, (known, _) = await home_of(conn, "A1"), with_gap()
        keys = [await add_flag(conn, home, rule, known[70][0]) for rule in ("stuck", "gap", "export")]
        await decide(conn, keys[0], KEEP, OFFICE, by=CLERK, why=WHY)
        absent = ExceptionKey.read("flag-999999")

        async def many(
            decision: Decision, bound_minor: int, *, only_look: bool = False
        ) -> list[tuple[str, str | None]]:
            wanted = [*keys, absent, keys[1]]
            found = await decide_many(
                conn, wanted, decision, OFFICE, by=CLERK, why=WHY, bound_minor=bound_minor, only_look=only_look
            )
            return [(each.state, each.code) for each in found]

        refused, unknown = ("refused", "exception_refused"), ("refused", "unknown_exception")
        looked = ("looked", None)
        assert await many(KEEP, 0, only_look=True) == [refused, looked, looked, unknown]
        assert len(await list_exceptions(conn, QueueAsked(kind="flag"), most=9)) == 2
        held = [await hold(conn, known[-1][0] + timedelta(hours=n), known[-1][1] + 2_000 * n) for n in (1, 2)]
        with pytest.raises(ExceptionRefused, match="at most 10 minor units"):
            await decide_many(conn, held, Decision(action=Action.RELEASE), OFFICE, by=CLERK, why=WHY, bound_minor=10)
        assert {(await read_exception(conn, key)).state for key in held} == {"held"}
        assert await many(KEEP, 0) == [refused, ("done", None), ("done", None), unknown]
        assert await list_exceptions(conn, QueueAsked(kind="flag"), most=9) == []

    on_database(home_url, story)


def test_queue_is_paged_filtered_aged_and_assigned(home_url: str) -> None:
    """The oldest come first, a page goes on where the last ended, and what somebody works on is theirs."""

    async def story(conn: AsyncConnection) -> None:
        home, (known, _) = await home_of(conn, "A1"), with_gap()
        flags = [await add_flag(conn, home, rule, known[70][0]) for rule in ("stuck", "export")]
        held = await hold(conn, known[-1][0] + timedelta(hours=1), 7)
        await conn.execute("update quarantine set first_at = now() - interval '40 days'")
        first = (await list_exceptions(conn, QueueAsked(), most=1))[0]
        rest = await list_exceptions(conn, QueueAsked(after=(first.since, first.kind, first.item_id)), most=9)
        assert [f"{each.kind}-{each.item_id}" for each in (first, *rest)] == [
            str(held), *[str(await only_gap(conn))], *map(str, flags)
        ]  # fmt: skip
        await assign_exception(conn, flags[0], to="A. Kaur", by=CLERK, why="her feeder")
        mine = await list_exceptions(conn, QueueAsked(assigned_to="A. Kaur"), most=9)
        assert [each.item_id for each in mine] == [flags[0].id]
        assert len(await list_exceptions(conn, QueueAsked(assigned_to="", serial=SERIAL), most=9)) == 3
        old = await list_exceptions(conn, QueueAsked(before=datetime.now(UTC) - timedelta(days=30)), most=9)
        assert [each.kind for each in old] == ["quarantine"]
        counts = {(each.kind, each.severity): each for each in await count_exceptions(conn, datetime.now(UTC))}
        assert counts["quarantine", "alarm"].older == 1
        assert counts["flag", "warning"].day == 2
        with pytest.raises(UnknownException):
            ExceptionKey.read("reading-1")

    on_database(home_url, story)


def test_flags_of_before_the_desk_are_exceptions_after_the_upgrade(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database with flags is upgraded; each gets a number and stands in the queue."""
    every = migrations()

    async def story() -> None:
        async with await connect(empty_database_url, application="test") as conn:
            with monkeypatch.context() as earlier:
                earlier.setattr("db.migrate.migrations", lambda: [each for each in every if each.name < "0040"])
                await migrate(conn)
            home = await open_home(conn, "A1")
            await conn.execute(
                "insert into reading_flags (meter_id, day, rule, severity, at, expected, got)"
                " select %s, '2026-04-02', 'rule ' || n, 'warning', now(), 1, n from generate_series(1, 3) n",
                (home.meter_id,),
            )
            await migrate(conn)
            found = await list_exceptions(conn, QueueAsked(), most=9)
            assert sorted(each.item_id for each in found) == [1, 2, 3]
            await add_flag(conn, home, "stuck", NOW)
            assert len(await list_exceptions(conn, QueueAsked(rule="stuck", serial=SERIAL), most=9)) == 1

    asyncio.run(story())


def test_estimation_rules_hold_from_their_day(home_url: str) -> None:
    """A document is added for a day that has not passed; the built-in one holds before it."""

    async def story(conn: AsyncConnection) -> None:
        text = (
            'id = "own"\ntitle = "t"\neffective_from = 2026-07-01\norder = ["prorate"]\n'
            "[desk]\nsecond_person_above_minor = 1\nlike_weeks = 1\n[rule.prorate]\nlongest_s = 60\n"
        )
        july = date(2026, 7, 1)
        for _ in range(2):
            await add_estimation_document(conn, text, from_day=july, today=JUNE_9, by=CLERK)
        assert (await rules_on(conn, KOLKATA, NOW)).id == "built-in"
        assert (await rules_on(conn, KOLKATA, local(july, 1))).id == "own"
        for day, told in ((JUNE_9 - timedelta(days=1), "or later"), (july, "has another")):
            with pytest.raises(ExceptionRefused, match=told):
                await add_estimation_document(conn, text + "#", from_day=day, today=JUNE_9, by=CLERK)

    on_database(home_url, story)
