"""The auditor on a real PostgreSQL: silent on a true database, and each broken invariant named by its own check."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from datetime import date

import psycopg
import pytest
from psycopg import AsyncConnection, sql

import db.audit
from billing.journals import JournalKind
from billing.supply import Mode
from db.audit import AuditReport, run_checks
from db.batches import add_counts, add_segment
from db.migrate import migrate
from db.pool import connect
from db.posting import lock_and_look, post_threshold
from db.registry import add_vendor
from db.vends import NewVend, add_token, add_vend, take_tid
from prepaid.embedded import EmbeddedPostgres
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

UNCHANGED = "alter table {} disable trigger append_only"
FREE_LEGS, FREE_JOURNALS, FREE_TOKENS = (UNCHANGED.format(table) for table in ("legs", "journals", "tokens"))
ACCOUNT = "(select id from accounts where number = '{}')"
METER = "(select id from meters where serial = 'M-{}')"
STEADY, STEADY_METER = ACCOUNT.format("STEADY"), METER.format("STEADY")
LAST_DAY = f"(select max(id) from journals where kind = 'day' and account_id = {STEADY})"
APRIL_DAY = f"(select id from journals where account_id = {STEADY} and local_day = '2026-04-10')"
SOLD = "(select id from vends where status = 200 order by id limit 1)"
# An order under the next epoch of its meter, as a post writes it.
ORDER = """
with epoch as (update meter_state set order_epoch = order_epoch + 1 where meter_id = {meter} returning order_epoch)
insert into supply_orders (meter_id, account_id, shard, kind, epoch, relay, balance_minor, cause, state)
select {meter}, {account}, 0, 'supply', order_epoch, 'off', 0, 'test', '{state}' from epoch"""

# What is done to the database, the checks that must report it and no others, and what the first report says.
CORRUPTIONS = {
    "leg_changed": (
        [FREE_LEGS, f"update legs set amount_minor = amount_minor + 1 where journal_id = {LAST_DAY} and n = 2"],
        {"I1", "I2"},
        "of account STEADY: 5 legs that sum to 1 minor",
    ),
    "legs_deleted": (
        [
            FREE_LEGS,
            f"delete from legs using journals j where j.id = journal_id and kind = 'opening' and account_id = {STEADY}",
        ],
        {"I1", "I2"},
        "of account STEADY: no legs",
    ),
    "leg_without_journal": (
        [
            FREE_LEGS,
            "alter table legs drop constraint legs_journal_id_fkey",
            "insert into legs values (1000000, 1, 'prepaid', '', 5)",
        ],
        {"I1"},
        "journal 1000000 of account None: 1 legs that sum to 5 minor",
    ),
    "posted_balance_changed": (
        [f"update accounts set posted_minor = posted_minor + 100 where id = {STEADY}"],
        {"I2"},
        "account STEADY: posted minor: checkpoint",
    ),
    "charged_changed": (
        [f"update accounts set charged_minor = charged_minor + 1 where id = {STEADY}"],
        {"I2", "I5"},
        "account STEADY: charged minor: checkpoint",
    ),
    "closed_energy_changed": (
        [f"update accounts set closed_wh = closed_wh + 500 where id = {STEADY}"],
        {"I2", "I5"},
        "account STEADY: closed Wh: checkpoint",
    ),
    "period_start_changed": (
        [f"update accounts set part_start_wh = part_start_wh + 7 where id = {STEADY}"],
        {"I2", "I4-charged", "I5"},
        "account STEADY: part start Wh: checkpoint",
    ),
    "installation_deleted": (
        [f"delete from installations where meter_id = {METER.format('POSTPAID')}"],
        {"I2", "I3"},
        "account POSTPAID: no billing meter",
    ),
    "day_moved": (
        [FREE_JOURNALS, f"update journals set local_day = local_day - 100 where id = {APRIL_DAY}"],
        {"days"},
        "account STEADY: expected 40 days from 2026-04-01 to before 2026-05-11, got 40 from 2025-12-31",
    ),
    "day_deleted": (
        [
            FREE_LEGS,
            FREE_JOURNALS,
            f"delete from legs where journal_id = {APRIL_DAY}",
            f"delete from journals where id = {APRIL_DAY}",
        ],
        {"days", "I2", "I4-charged", "I5"},
        "account STEADY: posted minor",
    ),
    "reading_before_installation": (
        [f"insert into readings (meter_id, read_at, import_wh) values ({STEADY_METER}, '2026-03-31 18:29Z', 0)"],
        {"I3", "I3-rows"},
        "meter M-STEADY (id ",
    ),
    "reading_of_no_meter": (
        ["insert into readings (meter_id, read_at, import_wh) values (2000000000, '2026-04-10Z', 0)"],
        {"I3", "I3-rows"},
        "meter ? (id 2000000000): 1 from 2026-04-10",
    ),
    "reading_deleted": (
        [f"delete from readings where meter_id = {STEADY_METER} and read_at = '2026-04-10 19:30Z'"],
        {"I3-rows"},
        "the table holds",
    ),
    "batch_changed": (
        ["update batches set duplicate = duplicate + 3 where id = (select min(id) from batches)"],
        {"I3-batches"},
        "of shard None: received 160, stored 160, duplicate 3",
    ),
    "register_falls": (
        [f"update readings set import_wh = 0 where meter_id = {STEADY_METER} and read_at = '2026-04-10 19:30Z'"],
        {"I4"},
        "meter M-STEADY (id ",
    ),
    "first_register_below_installation": (
        [f"update register_segments set register_wh = register_wh + 5000 where meter_id = {STEADY_METER}"],
        {"I4", "I4-charged", "I5"},
        "falls 1 times, first at 2026-03-31T19:30",
    ),
    "segment_lost": (
        [f"delete from register_segments where meter_id = {METER.format('ROLLED')} and reason = 'rollover'"],
        {"I4", "I4-charged", "I5"},
        "meter M-ROLLED (id ",
    ),
    "edge_reading_changed": (
        [
            f"""update readings set import_wh = import_wh - 90
                where meter_id = {STEADY_METER} and read_at = '2026-04-30 19:30Z'"""
        ],
        {"I5"},
        "account STEADY, 2026-04: journals are short of",
    ),
    "closed_day_overcharged": (
        [
            FREE_LEGS,
            f"update legs set amount_minor = amount_minor - 100 where journal_id = {APRIL_DAY} and ledger = 'prepaid'",
            f"update legs set amount_minor = amount_minor + 100 where journal_id = {APRIL_DAY} and line = 'energy_1'",
            f"update accounts set posted_minor = posted_minor - 100 where id = {STEADY}",
        ],
        {"I5"},
        "account STEADY, 2026-04: journals are short of 0 Wh, energy_1 -100 minor",
    ),
    "token_deleted": (
        [FREE_TOKENS, f"delete from tokens where vend_id = {SOLD}"],
        {"I6"},
        "(message V1, account CUT, status 200): 1 journals and 0 tokens",
    ),
    "vend_amount_changed": (
        [f"update vends set amount_minor = amount_minor + 1 where id = {SOLD}"],
        {"I6"},
        "(message V1, account CUT, status 200): amount 50001 minor, journal",
    ),
    "vend_of_another_account": (
        [f"update vends set account_id = {STEADY} where id = {SOLD}"],
        {"I6", "I6-tokens"},
        "is no vend of its account",
    ),
    "vend_deleted": (
        [FREE_TOKENS, f"delete from tokens where vend_id = {SOLD}", f"delete from vends where id = {SOLD}"],
        {"I6"},
        "of account CUT: kind vend, and no vend names it",
    ),
    "refusal_with_token": (
        [
            f"""insert into tokens (vend_id, meter_id, tid, digits, subclass)
                select id, {METER.format("CUT")}, 50, '99999999999999999999', 4 from vends where status = 422"""
        ],
        {"I6", "I6-tokens"},
        "(message V3, account CUT, status 422): 0 journals and 1 tokens",
    ),
    "message_id_twice": (
        [
            "alter table vends drop constraint vends_vendor_id_message_id_key",
            "update vends set message_id = 'V1' where message_id = 'V2'",
        ],
        {"I6"},
        "its message id is used twice",
    ),
    "tid_twice": (
        [FREE_TOKENS, "alter table tokens drop constraint tokens_meter_id_tid_key", "update tokens set tid = 101"],
        {"I6-tokens"},
        "of meter M-CUT, TID 101: another token of the meter has the same TID",
    ),
    "last_tid_lowered": (
        [f"update meter_state set last_tid = 101 where meter_id = {METER.format('CUT')}"],
        {"I6-tokens"},
        "of meter M-CUT, TID 102: the meter's last TID is 101",
    ),
    "desired_changed": (
        [f"update accounts set desired = 'off' where id = {STEADY}"],
        {"I8"},
        "account STEADY: desired off, balance",
    ),
    "relay_differs": (
        [f"update meter_state set relay = 'off' where meter_id = {STEADY_METER}"],
        {"I8"},
        "account STEADY: desired on, meter M-STEADY has off and no open order",
    ),
    "order_lost": (
        ["delete from supply_orders where relay = 'off' and state = 'pending'"],
        {"I8"},
        "account CUT: desired off, meter M-CUT has on and no open order",
    ),
    "order_of_the_other_relay": (
        ["update supply_orders set relay = 'on' where relay = 'off' and state = 'pending'"],
        {"I8"},
        "account CUT: desired off, meter M-CUT was ordered on",
    ),
    "two_open_orders": (
        [
            "drop index one_open_order",
            ORDER.format(meter=METER.format("CUT"), account=ACCOUNT.format("CUT"), state="sent"),
        ],
        {"I8-orders"},
        "meter M-CUT (id ",
    ),
    "epoch_lowered": (
        [f"update meter_state set order_epoch = 1 where meter_id = {METER.format('CUT')}"],
        {"I8-orders"},
        "the meter's last is 1",
    ),
    "epoch_fallen": (
        [
            "alter table supply_orders drop constraint supply_orders_meter_id_epoch_key",
            """update supply_orders set epoch = 1
               where id = (select max(id) from supply_orders where state = 'superseded')""",
        ],
        {"I8-orders"},
        "orders whose epoch does not rise",
    ),
    "postpaid_account_cut": (
        [ORDER.format(meter=METER.format("POSTPAID"), account=ACCOUNT.format("POSTPAID"), state="superseded")],
        {"I8-orders"},
        "1 cut-offs of a postpaid account",
    ),
    "alarm_lost": (
        ["delete from alarms where level = 'low' and arm = 1"],
        {"I9"},
        "account CUT: level low at arm 2, raised: expected 2 alarms, got 1, first wrong at arm 1",
    ),
    "alarm_twice": (
        [
            "alter table alarms drop constraint alarms_account_id_level_arm_key",
            """insert into alarms (account_id, level, arm, level_minor, balance_minor)
               select account_id, level, arm, level_minor, balance_minor from alarms where level = 'low' and arm = 1""",
        ],
        {"I9"},
        "account CUT: level low at arm 2, raised: expected 2 alarms, got 3, first wrong at arm 1",
    ),
    "low_not_raised": (
        [
            f"update accounts set low_raised = false where id = {ACCOUNT.format('CUT')}",
            "delete from alarms where level = 'low' and arm = 2",
        ],
        {"I9"},
        "account CUT: balance",
    ),
    "exhausted_not_raised": (
        [
            f"update accounts set exhausted_raised = false where id = {ACCOUNT.format('CUT')}",
            "delete from alarms where level = 'exhausted' and arm = 2",
        ],
        {"I9"},
        "exhausted was not raised",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def template(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The name of a true database that nobody is connected to, to be copied by each test."""
    name = f"audited_{uuid.uuid4().hex}"
    with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as conn:
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    asyncio.run(_build(postgres.url_of(name)))
    yield name
    with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as conn:
        conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def audited_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A copy of the true database."""
    name = f"copy_{uuid.uuid4().hex}"
    identifiers = sql.Identifier(name), sql.Identifier(template)
    with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as conn:
        conn.execute(sql.SQL("create database {} template {}").format(*identifiers))
    yield postgres.url_of(name)
    with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as conn:
        conn.execute(sql.SQL("drop database {} with (force)").format(identifiers[0]))


async def _build(url: str) -> None:
    """Five homes: a steady one, one cut off twice, a postpaid one, a silent one, one whose register rolled over."""
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
        await add_segment(conn, rolled.meter_id, rolled_at, register_wh=3_000, start_wh=13_000)
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
    await take_tid(conn, home.meter_id, tid)
    await add_token(conn, vend_id=vend_id, meter_id=home.meter_id, tid=tid, digits=f"{tid:020}", subclass=4)


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
    )


def _audit(url: str) -> AuditReport:
    async def run() -> AuditReport:
        async with await connect(url, application="test") as conn:
            return await run_checks(conn, KOLKATA)

    return asyncio.run(run())


def _corrupt(url: str, statements: list[str]) -> None:
    with psycopg.connect(url) as conn:
        for statement in statements:
            changed = conn.execute(statement.encode())
            assert changed.rowcount != 0, f"nothing changed: {statement}"


def _broken(report: AuditReport) -> dict[str, list[str]]:
    return {check.id: check.examples for check in report.checks if check.broken}


def test_true_database_is_clean_and_counted(audited_url: str) -> None:
    """Nothing is reported where everything was done by the product's own functions, and everything was looked at."""
    report = _audit(audited_url)
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
            "I8-orders": "select count(*) from supply_orders",
        }
        for check_id, query in counted.items():
            row = conn.execute(query.encode()).fetchone()
            assert row == (checked[check_id],), check_id
    # Five accounts with a closed and an open period; the sixth, opened in May, has an open one.
    assert (checked["I5"], checked["I8"], checked["rechecks"]) == (11, 6, 0)


def test_story_reaches_what_it_is_meant_to(audited_url: str) -> None:
    """The true database holds late usage, roll-overs, both alarms twice, open and superseded orders."""
    with psycopg.connect(audited_url) as conn:
        late = conn.execute(
            "select number, count(*) from journals join accounts a on a.id = account_id"
            " where kind = 'late_usage' group by 1 order by 1"
        ).fetchall()
        alarms = conn.execute("select level, arm from alarms order by level, arm").fetchall()
        orders = conn.execute("select relay, state from supply_orders where kind = 'supply' order by id").fetchall()
    assert late == [("ROLLED", 2), ("SILENT", 1)]
    assert alarms == [("exhausted", 1), ("exhausted", 1), ("exhausted", 2), ("low", 1), ("low", 2)]
    assert sorted(orders) == [("off", "pending"), ("off", "pending"), ("off", "superseded"), ("on", "superseded")]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_is_reported_by_its_check(audited_url: str, name: str) -> None:
    """Each kind of damage is named by the checks it breaks and by no others."""
    statements, checks, example = CORRUPTIONS[name]
    _corrupt(audited_url, statements)
    broken = _broken(_audit(audited_url))
    assert broken.keys() == checks, broken
    assert any(example in text for text in next(iter(broken.values()))), broken


def test_waiting_account_is_not_judged_by_its_balance(audited_url: str) -> None:
    """A crossing that ingest has still to settle is no fault: asked for, or changed beside a batch of this moment."""
    _corrupt(audited_url, [f"update accounts set desired = 'off' where id = {STEADY}"])
    assert _broken(_audit(audited_url)).keys() == {"I8"}
    ask = f"insert into rechecks (account_id, shard) values ({STEADY}, 0)"
    _corrupt(audited_url, [ask])
    assert _audit(audited_url).clean
    feed = f"insert into change_feed (shard, account_id, version) values (7, {STEADY}, 99)"
    batch = "insert into batches (shard, epoch, messages, received, stored, duplicate, rejected, quarantined)"
    _corrupt(audited_url, ["delete from rechecks", feed])
    assert not _audit(audited_url).clean
    _corrupt(audited_url, [f"{batch} values (7, 1, 0, 0, 0, 0, 0, 0)"])
    assert _audit(audited_url).clean


def test_small_chunks_find_the_same(audited_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rows are read at a time changes nothing, neither counts nor findings."""
    _corrupt(audited_url, [*CORRUPTIONS["closed_day_overcharged"][0], *CORRUPTIONS["register_falls"][0]])
    whole = _audit(audited_url)
    for name in ("ACCOUNTS_PER_CHUNK", "METERS_PER_CHUNK", "ROWS_PER_CHUNK"):
        monkeypatch.setattr(db.audit, name, 1)
    assert _audit(audited_url).to_json() == whole.to_json()
    assert not whole.clean


def test_report_has_one_line_a_check_and_few_examples(audited_url: str) -> None:
    """A person gets a line per check with its counts, a script the same as JSON; long lists are cut."""
    _corrupt(audited_url, [FREE_LEGS, "delete from legs"])
    report = _audit(audited_url)
    shown = json.loads(json.dumps(report.to_json()))
    ledger = shown["checks"][0]
    assert shown["clean"] is False
    assert ledger["id"] == "I1"
    assert ledger["broken"] == ledger["checked"]
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
        assert _audit(audited_url).clean

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
