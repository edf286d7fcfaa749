"""The auditor on a real PostgreSQL: silent on a true database, and each broken invariant named by its own check."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import psycopg
import pytest
from psycopg import AsyncConnection
from typer.testing import CliRunner, Result

from billing.journals import JournalKind
from billing.supply import Mode
from db.audit import AuditReport, Limits, Scope, missing_migrations, run_checks, shown_lines
from db.batches import add_counts, add_segment
from db.errors import MigrationError, UnknownAccount
from db.floats import take_float
from db.meter_records import RecordFields, record_to_mint, write_record
from db.migrate import migrate
from db.pool import connect
from db.posting import lock_and_look, post_threshold
from db.registry import add_vendor
from db.vends import NewToken, NewVend, add_token, add_vend, take_tid
from headend.edges.close_day import STRIDES
from prepaid.__main__ import app
from prepaid.arguments import CommandRefused
from prepaid.embedded import EmbeddedPostgres
from tests.databases import scratch_database
from tests.integration.test_posting import (
    APRIL,
    KOLKATA,
    NOW_MS,
    RULES,
    Home,
    Seen,
    close,
    local,
    money,
    open_home,
    read,
)

pytestmark = pytest.mark.db

FREE_LEGS, FREE_JOURNALS = (f"alter table {table} disable trigger append_only" for table in ("legs", "journals"))
STEADY = "(select id from accounts where number = 'STEADY')"
APRIL_DAY = f"(select id from journals where account_id = {STEADY} and local_day = '2026-04-10')"
# A closed day charged one rupee too much, the same in lines, legs and balance; and a register that falls.
OVERCHARGED = [
    FREE_LEGS,
    FREE_JOURNALS,
    f"""update journals set lines = jsonb_set(lines, '{{energy_1}}', to_jsonb((lines ->> 'energy_1')::bigint + 100))
        where id = {APRIL_DAY}""",
    f"update legs set amount_minor = amount_minor - 100 where journal_id = {APRIL_DAY} and ledger = 'prepaid'",
    f"update legs set amount_minor = amount_minor + 100 where journal_id = {APRIL_DAY} and line = 'energy_1'",
    f"update accounts set posted_minor = posted_minor - 100 where id = {STEADY}",
]
FALLEN = [
    """update readings set import_wh = 0 where read_at = '2026-04-10 19:30Z'
       and meter_id = (select id from meters where serial = 'M-STEADY')"""
]


@contextmanager
def true_template(postgres: EmbeddedPostgres, migrated: str) -> Iterator[str]:
    """The name of a true database that nobody is connected to, to be copied by each test."""
    with scratch_database(postgres, template=migrated) as name:
        asyncio.run(_build(postgres.url_of(name)))
        yield name


@pytest.fixture(scope="module")
def template(postgres: EmbeddedPostgres, migrated: str) -> Iterator[str]:
    """A true database to be copied."""
    with true_template(postgres, migrated) as name:
        yield name


@pytest.fixture
def audited_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A copy of the true database."""
    with scratch_database(postgres, template=template) as name:
        yield postgres.url_of(name)


async def _build(url: str) -> None:
    """Homes: steady, cut off twice, postpaid, silent, one whose register rolled over, two that are read at midnight."""
    async with await connect(url, application="test") as conn:
        await migrate(conn)
        steady = await open_home(conn, "STEADY", threshold_minor=1_000, opening_credit_minor=500_000)
        cut = await open_home(conn, "CUT", threshold_minor=5_000, opening_credit_minor=20_000)
        postpaid = await open_home(
            conn, "POSTPAID", mode=Mode.POSTPAID, postpaid_approval="CE/12", opening_credit_minor=0
        )
        silent = await open_home(conn, "SILENT", opening_credit_minor=900_000)
        rolled = await open_home(conn, "ROLLED", opening_credit_minor=900_000, register_wh=999_990_000)
        await open_home(conn, "UNHEARD", opening_credit_minor=0, opened_at=local(date(2026, 5, 11)))
        exact = [await open_home(conn, "EXACT1", opening_credit_minor=900_000)]
        # A sweep closes every so-manieth account of its range in one batch: these two go together.
        restart = f"alter table accounts alter column id restart with {exact[0].account_id + STRIDES}"
        await conn.execute(restart.encode())
        exact.append(await open_home(conn, "EXACT2", opening_credit_minor=900_000))
        for home in exact:
            await _send(conn, home, [(local(APRIL, 24 * n), 8_000 * n) for n in range(1, 41)])
        # Every six hours, past midnight by one, so that no edge is read exactly.
        await _send(conn, steady, [(local(APRIL, 6 * n + 1), 900 * n) for n in range(160)])
        await _send(conn, cut, [(local(APRIL, 10 * n), 5_500 * n) for n in range(1, 11)])
        await _sell(conn, cut, "V1", 50_000, tid=101)
        await _send(conn, cut, [(local(date(2026, 4, 6), 12 * n), 55_000 + 6_000 * n) for n in range(1, 60)])
        await _sell(conn, cut, "V2", 100, tid=102)
        await _refuse(conn, cut, "V3")
        await _send(conn, postpaid, [(local(date(2026, 4, 20)), 70_000), (local(date(2026, 5, 20)), 160_000)])
        await _send(conn, silent, [(local(date(2026, 4, 20)), 70_000)])
        await _send(conn, rolled, [(local(APRIL, 20), 999_995_000)])
        rolled_at = local(APRIL, 30)
        await add_segment(conn, rolled.meter_id, rolled_at, register_wh=3_000, start_wh=13_000, reason="rollover")
        await _send(conn, rolled, [(rolled_at, 3_000), (local(date(2026, 5, 2)), 203_000)])
        await close(conn, date(2026, 5, 6))
        await _send(conn, silent, [(local(date(2026, 5, 8)), 190_000)])
        await _send(conn, rolled, [(local(date(2026, 4, 29)), 190_000)], late=True)
        await close(conn, date(2026, 5, 10))
        async with conn.transaction():
            view = await lock_and_look(conn, steady.account_id, RULES)
            await post_threshold(conn, view, 2_000, rules=RULES, now_ms=NOW_MS)


async def _send(conn: AsyncConnection, home: Home, seen: list[Seen], *, late: bool = False) -> None:
    """Store readings with their batch, and let the account catch up."""
    await read(conn, home, seen, late=late)
    await add_counts(conn, {}, {None: {"messages": len(seen), "received": len(seen), "stored": len(seen)}})


async def _sell(conn: AsyncConnection, home: Home, message_id: str, amount_minor: int, *, tid: int) -> None:
    posted = await money(conn, home, JournalKind.VEND, amount_minor)
    vend = await _vend(conn, home, message_id, amount_minor, status=200, journal_id=posted.journal_ids[0])
    vend_id, _ = await add_vend(conn, vend)
    await take_tid(conn, home.meter_id, 2014, tid)
    record = await record_to_mint(conn, home.meter_id)
    record_id = record.id if record else await _record(conn, home)
    token = NewToken(
        vend_id=vend_id,
        meter_id=home.meter_id,
        record_id=record_id,
        engine="sts",
        kind="credit",
        era=2014,
        tid=tid,
        digits=f"{tid:020}",
        subclass=4,
    )
    await add_token(conn, token)
    await take_float(conn, vend.vendor_id, amount_minor, journal_id=posted.journal_ids[0])


async def _record(conn: AsyncConnection, home: Home) -> int:
    """Give a home's meter its first record."""
    fields = RecordFields(
        engine="sts", capabilities=("electricity", "currency"), ea=11, tct=2, dkga=4, sgc="201457", key_type=2, krn=1,
        tariff_index="01", ken=255, base_year=2014, key_change_tokens=4,
    )  # fmt: skip
    await write_record(conn, home.meter_id, fields, by="test", reason="test", at=local(APRIL))
    record = await record_to_mint(conn, home.meter_id)
    assert record is not None
    return record.id


async def _refuse(conn: AsyncConnection, home: Home, message_id: str) -> None:
    await add_vend(conn, await _vend(conn, home, message_id, 1, status=422, journal_id=None))


async def _vend(
    conn: AsyncConnection, home: Home, message_id: str, amount_minor: int, *, status: int, journal_id: int | None
) -> NewVend:
    return NewVend(
        vendor_id=await add_vendor(conn, "Kiosk"),
        message_id=message_id,
        request_sha256=bytes(32),
        account_id=home.account_id,
        amount_minor=amount_minor,
        journal_id=journal_id,
        status=status,
        answer={},
        state="refused" if journal_id is None else "released",
        funding="vendor",
    )


def audited(url: str, *, scope: Scope | None = None, limits: Limits | None = None, connections: int = 1) -> AuditReport:
    """Audit a database."""

    async def run() -> AuditReport:
        async with await connect(url, application="test") as conn:
            if connections == 1:
                return await run_checks(conn, KOLKATA, scope=scope, limits=limits)
            async with await connect(url, application="test") as second:
                return await run_checks(conn, KOLKATA, scope=scope, limits=limits, second=second)

    return asyncio.run(run())


def corrupt(url: str, statements: list[str]) -> None:
    """Change what nothing of the product would change."""
    with psycopg.connect(url) as conn:
        for statement in statements:
            changed = conn.execute(statement.encode())
            assert changed.rowcount != 0, f"nothing changed: {statement}"


def broken_checks(report: AuditReport) -> dict[str, list[str]]:
    """Return the examples of the checks that are broken."""
    return {check.id: check.examples for check in report.checks if check.broken}


def test_true_database_is_clean_and_counted(audited_url: str) -> None:
    """Nothing is reported where everything was done by the product's own functions, and everything was looked at."""
    report = audited(audited_url)
    assert report.clean, report.lines()
    checked = {check.id: check.checked for check in report.checks}
    with psycopg.connect(audited_url) as conn:
        counted = {
            "I1": "select count(*) from journals",
            "I2": "select count(*) from accounts",
            "I3": "select count(*) from readings",
            "I3-rows": "select count(*) from readings",
            "I3-batches": "select count(*) from batches",
            "I6": "select count(*) from vends",
            "I6-tokens": "select count(*) from tokens",
            "I6-records": "select count(distinct meter_id) from meter_records",
            "I7": "select count(*) from float_entries",
            "I7-floats": "select count(*) from vendor_floats",
            "I8-orders": "select count(*) from supply_orders",
        }
        for check_id, query in counted.items():
            row = conn.execute(query.encode()).fetchone()
            assert row == (checked[check_id],), check_id
    # Seven accounts with a closed and an open period; the one opened in May has an open one.
    assert (checked["I5"], checked["I8"], checked["rechecks"]) == (15, 8, 0)


def test_story_reaches_what_it_is_meant_to(audited_url: str) -> None:
    """The true database holds late usage, roll-overs, both alarms twice, open and superseded orders, usage batches."""
    with psycopg.connect(audited_url) as conn:
        late = conn.execute(
            "select number, count(*) from journals join accounts a on a.id = account_id"
            " where kind = 'late_usage' group by 1 order by 1"
        ).fetchall()
        alarms = conn.execute("select level, arm from alarms order by level, arm").fetchall()
        orders = conn.execute("select relay, state from supply_orders where kind = 'supply' order by id").fetchall()
        batched = conn.execute(
            "select count(distinct batch_id), count(*) from journals where batch_id is not null"
        ).fetchone()
    assert late == [("ROLLED", 2), ("SILENT", 1)]
    # Both homes' forty days, and a day of CUT that was read at its end.
    assert batched == (41, 81)
    assert alarms == [("exhausted", 1), ("exhausted", 1), ("exhausted", 2), ("low", 1), ("low", 2)]
    assert sorted(orders) == [("off", "pending"), ("off", "pending"), ("off", "superseded"), ("on", "superseded")]


def test_waiting_account_is_not_judged_by_its_balance(audited_url: str) -> None:
    """A crossing that ingest has still to settle is no fault: asked for, or changed beside a batch of this moment."""
    corrupt(audited_url, [f"update accounts set desired = 'off' where id = {STEADY}"])
    assert broken_checks(audited(audited_url)).keys() == {"I8"}
    ask = f"insert into rechecks (account_id, shard) values ({STEADY}, 0)"
    corrupt(audited_url, [ask])
    assert audited(audited_url).clean
    feed = f"insert into change_feed (shard, account_id, version) values (7, {STEADY}, 99)"
    batch = "insert into batches (shard, epoch, messages, received, stored, duplicate, rejected, quarantined)"
    corrupt(audited_url, ["delete from rechecks", feed])
    assert not audited(audited_url).clean
    corrupt(audited_url, [f"{batch} values (7, 1, 0, 0, 0, 0, 0, 0)"])
    assert audited(audited_url).clean


@pytest.mark.parametrize(
    ("limits", "connections"), [(Limits(accounts=1, rows=1), 1), (Limits(), 2), (Limits(accounts=1, rows=1), 2)]
)
def test_small_chunks_and_a_second_connection_find_the_same(audited_url: str, limits: Limits, connections: int) -> None:
    """How many rows are read at a time, and by how many, changes nothing: neither counts nor findings."""
    corrupt(audited_url, [*OVERCHARGED, *FALLEN])
    whole = audited(audited_url)
    assert audited(audited_url, limits=limits, connections=connections).to_json() == whole.to_json()
    assert broken_checks(whole).keys() == {"I4", "I5"}


def test_audit_of_some_accounts_judges_them_only(audited_url: str) -> None:
    """By number or by sample only those accounts are read; what belongs to the whole ledger is left out."""
    corrupt(audited_url, OVERCHARGED)
    one = audited(audited_url, scope=Scope(numbers=("STEADY",)))
    assert broken_checks(one).keys() == {"I5"}
    assert one.scope == "accounts STEADY"
    others = audited(audited_url, scope=Scope(numbers=("ROLLED", "EXACT1")), limits=Limits(accounts=1, rows=7))
    assert others.clean
    checked = {check.id: check.checked for check in others.checks}
    with psycopg.connect(audited_url) as conn:
        mine = "from accounts a join {} where a.number in ('ROLLED', 'EXACT1')"
        for check_id, joined in {
            "I1": "journals j on j.account_id = a.id",
            "I3": "installations i using (usage_point_id) join readings r using (meter_id)",
            "I2": "consumers c on c.id = a.consumer_id",
        }.items():
            row = conn.execute(f"select count(*) {mine.format(joined)}".encode()).fetchone()
            assert row == (checked[check_id],), check_id
    assert [checked[name] for name in ("I3-batches", "I3-rows", "I13-clock", "dues")] == [0, 0, 0, 0]
    with pytest.raises(UnknownAccount, match="'NOBODY'"):
        audited(audited_url, scope=Scope(numbers=("STEADY", "NOBODY")))


def test_sample_is_as_large_as_asked_and_always_the_same(audited_url: str) -> None:
    """A sample of all accounts finds what a full audit finds about accounts; a smaller one has its size."""
    corrupt(audited_url, OVERCHARGED)
    everyone = audited(audited_url, scope=Scope(sample=1000))
    assert broken_checks(everyone).keys() == {"I5"}
    assert everyone.scope == "sample of 8 accounts"
    some = audited(audited_url, scope=Scope(sample=3), connections=2)
    assert {check.id: check.checked for check in some.checks}["I2"] == 3
    assert audited(audited_url, scope=Scope(sample=3)).to_json() == some.to_json()


def test_first_offender_is_shown_in_full(audited_url: str) -> None:
    """Of all accounts that break something, the one of the lowest id is shown with everything that led there."""
    corrupt(audited_url, [*OVERCHARGED, "update accounts set posted_minor = posted_minor + 1 where number = 'ROLLED'"])
    report = audited(audited_url)
    assert broken_checks(report).keys() == {"I2", "I5"}
    shown = json.loads(json.dumps(report.to_json()))["first_offender"]
    assert shown["account"]["number"] == "STEADY"
    assert [each["check"] for each in shown["breaks"]] == ["I5"]
    (april,) = (part for part in shown["bill_parts"] if part["short"])
    assert (april["first"], april["last"], april["state"]) == ("2026-04-01", "2026-04-30", "closed")
    assert april["short"] == {"energy_wh": 0, "energy_1": -100, "total_minor": -100}
    assert april["booked"]["energy_1"] - april["recomputed"]["energy_1"] == 100
    assert shown["bill_parts"][-1]["state"].startswith("open, booked before 2026-05-11")
    assert shown["assignments"][0]["tariff_id"] == "punjab-ds-2026-27"
    assert shown["checkpoint"]["posted_minor"] == shown["checkpoint"]["prepaid_legs_minor"]
    assert len(shown["journals"]) == 10
    assert all(sum(leg[2] for leg in journal["legs"]) == 0 for journal in shown["journals"])
    # Around the end of April, then the last ones.
    assert [reading["at"][:16] for reading in shown["readings"][:2]] == ["2026-04-30T13:30", "2026-04-30T19:30"]
    lines = shown_lines(shown)
    assert lines[0] == "first offending account: STEADY"
    assert any("energy_1 -100" in line for line in lines)
    assert len(lines) < 200


def test_curves_are_judged_as_edits_have_left_them(audited_url: str) -> None:
    """A reading that falls is a fault until an edit makes it void; it still counts as sent."""
    corrupt(audited_url, FALLEN)
    assert broken_checks(audited(audited_url)).keys() == {"I4"}
    void = """
        with correction as (
            insert into corrections (kind, reason, scope, asked_by) values ('edit', 'test', '{}', 'test') returning id)
        insert into reading_edits (meter_id, read_at, import_wh, correction_id)
        select meter_id, read_at, null, correction.id from readings, correction where import_wh = 0 and read_at between
        '2026-04-10' and '2026-04-11'"""
    corrupt(audited_url, [void])
    report = audited(audited_url)
    assert report.clean, report.lines()
    checked = {check.id: check.checked for check in report.checks}
    assert checked["I3"] == checked["I3-rows"] == checked["I4"] + 1


def test_first_offender_shows_the_journals_that_it_is_about(audited_url: str) -> None:
    """A journal long ago is shown beside the newest ones, also of an account that has lost its meter."""
    lost = "delete from installations where meter_id = (select id from meters where serial = 'M-STEADY')"
    corrupt(audited_url, [FREE_LEGS, f"delete from legs where journal_id = {APRIL_DAY}", lost])
    shown = audited(audited_url).first_offender
    assert shown is not None
    journals = shown["journals"]
    assert isinstance(journals, list)
    assert [journal["local_day"] for journal in journals if not journal["legs"]] == ["2026-04-10"]
    assert len(journals) == 11
    assert shown_lines(shown)


def test_clean_audit_has_no_offender_and_tells_its_progress(audited_url: str) -> None:
    """Progress goes up to what there is, on both connections."""
    told: dict[str, list[tuple[int, int]]] = {}

    async def run() -> AuditReport:
        async with await connect(audited_url, application="test") as conn:
            return await run_checks(
                conn,
                KOLKATA,
                limits=Limits(accounts=3, rows=50),
                progress=lambda phase, done, of: told.setdefault(phase, []).append((done, of)),
            )

    assert asyncio.run(run()).first_offender is None
    assert told.keys() == {"journals (id)", "accounts"}
    for steps in told.values():
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1] > 0


def test_database_without_all_migrations_is_named(empty_database_url: str, audited_url: str) -> None:
    """An auditor changes nothing: it says what is missing instead of applying it."""

    async def missing(url: str) -> list[str]:
        async with await connect(url, application="test") as conn:
            return await missing_migrations(conn)

    assert asyncio.run(missing(audited_url)) == []
    assert "0001_initial.sql" in asyncio.run(missing(empty_database_url))


def test_command_audits_as_told_and_refuses_in_one_line(
    audited_url: str, empty_database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1 and the first offender for what is broken; a database that lacks migrations stays as it is."""
    corrupt(audited_url, OVERCHARGED)
    # The runner closes its standard error after each command; logs must not stay bound to it.
    monkeypatch.setattr("prepaid.console.configure_logs", lambda level: None)

    def audit(url: str, *arguments: str) -> Result:
        monkeypatch.setenv("PREPAID_DATABASE_URL", url)
        return CliRunner().invoke(app, ["audit", "--data", str(data_dir), *arguments])

    told = audit(audited_url, "--account", "STEADY", "--json")
    shown = json.loads(told.stdout)
    assert (told.exit_code, shown["scope"], shown["clean"]) == (1, "accounts STEADY", False)
    assert shown["first_offender"]["account"]["number"] == "STEADY"
    assert audit(audited_url, "--account", "ROLLED", "--account", "CUT").exit_code == 0
    assert audit(audited_url, "--sample", "2", "--json").exit_code in (0, 1)
    refused = {
        audit(audited_url, "--sample", "2", "--account", "CUT").exception: CommandRefused,
        audit(audited_url, "--account", "NOBODY").exception: UnknownAccount,
        audit(empty_database_url).exception: MigrationError,
    }
    for refusal, kind in refused.items():
        assert isinstance(refusal, kind)
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("select to_regclass('accounts')").fetchone() == (None,)


def test_report_has_one_line_a_check_and_few_examples(audited_url: str) -> None:
    """A person gets a line per check with its counts, a script the same as JSON; long lists are cut."""
    corrupt(audited_url, [FREE_LEGS, "delete from legs"])
    report = audited(audited_url)
    shown = json.loads(json.dumps(report.to_json()))
    ledger = shown["checks"][0]
    assert shown["clean"] is False
    assert ledger["id"] == "I1"
    # Each journal, and each batch by its members' lines.
    assert ledger["broken"] == ledger["checked"] + 41
    assert len(ledger["examples"]) == 5
    lines = report.lines()
    assert len(lines) == len(shown["checks"])
    assert f"{ledger['broken']:,} BROKEN: journal 1 of account STEADY: no legs; " in lines[0]
    assert any(line.startswith("I4 ") and line.endswith(" readings, ok") for line in lines)
    assert all("\n" not in line for line in lines)


def test_audit_neither_waits_for_locks_nor_writes(audited_url: str) -> None:
    """On a live database an account that is being posted to does not stop the audit, which changes nothing."""
    with psycopg.connect(audited_url) as poster:
        poster.execute("select id from accounts for update")
        poster.execute("update accounts set posted_minor = posted_minor + 1")
        assert audited(audited_url).clean

    async def run() -> None:
        async with await connect(audited_url, application="test") as conn:
            await run_checks(conn, KOLKATA)
            cursor = await conn.execute("show transaction_read_only")
            assert await cursor.fetchone() == ("off",)

    asyncio.run(run())


def test_empty_database_is_clean(database_url: str) -> None:
    """A new installation has nothing to complain of."""

    async def run() -> AuditReport:
        async with await connect(database_url, application="test") as conn:
            await migrate(conn)
            return await run_checks(conn, KOLKATA)

    report = asyncio.run(run())
    assert report.clean
    assert {check.checked for check in report.checks} == {0}
