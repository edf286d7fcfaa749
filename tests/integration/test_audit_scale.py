"""The auditor at the size of a city: ten million legs of true history in less than three minutes."""

from __future__ import annotations

import asyncio
import resource
import time
from datetime import timedelta

import psycopg
import pytest
from psycopg import AsyncConnection

from db.batches import add_counts
from db.migrate import migrate
from db.pool import connect
from tests.integration.test_audit import audited, broken_checks, corrupt
from tests.integration.test_posting import APRIL, close, local, open_home, read

pytestmark = pytest.mark.db

# 20 homes that the product's own functions have charged are each copied 5,000 times: 100,000 accounts of 50 days,
# 5 million day journals of two legs each.
TEMPLATES, COPIES, DAYS = 20, 5_000, 50
SECONDS_MAX = 180
# What an audit may hold at a time, beyond what the process has used before.
PEAK_KB_MAX = 200_000

# Rows of a template under another id: copy c of template t has id t + c * templates.
COPY_ROWS = """
insert into {table} overriding system value
select (jsonb_populate_record(x, jsonb_build_object({columns}))).*
from {table} x, generate_series(1, {copies}) c where {key} <= {templates} order by c, {key}"""
# Table, its key, and the columns that differ in a copy.
COPIED = (
    ("consumers", "id", "'id', x.id + c * {t}"),
    ("usage_points", "id", "'id', x.id + c * {t}, 'code', x.code || '-' || c"),
    ("meters", "id", "'id', x.id + c * {t}, 'serial', x.serial || '-' || c"),
    ("meter_state", "meter_id", "'meter_id', x.meter_id + c * {t}"),
    (
        "installations",
        "id",
        "'id', x.id + c * {t}, 'usage_point_id', x.usage_point_id + c * {t}, 'meter_id', x.meter_id + c * {t}",
    ),
    ("register_segments", "meter_id", "'meter_id', x.meter_id + c * {t}"),
    (
        "accounts",
        "id",
        "'id', x.id + c * {t}, 'number', x.number || '-' || c, 'consumer_id', x.consumer_id + c * {t},"
        " 'usage_point_id', x.usage_point_id + c * {t}",
    ),
    ("assignments", "id", "'id', x.id + c * {t}, 'account_id', x.account_id + c * {t}"),
)
# What a sweep posts in one transaction is a batch: a usage_batch journal and its members after it, in account order.
# Accounts count from 0 here; {first} is the id of the day's first batch.
BATCH = 1_000
STORY = """
create temporary table day_of as
select account_id, local_day, j.id,
       (select sum(g.amount_minor) from legs g where g.journal_id = j.id and line <> '') as total
from journals j where kind = 'day';
create temporary table copied as
select n, n + {t} + 1 as account_id, n % {t} + 1 as template, n / {b} as batch from generate_series(0, {n} - 1) n;
analyze day_of; analyze copied;
insert into journals (id, kind, account_id, reason, booked_at) overriding system value
select 1000000 + n, kind, c.account_id, reason, booked_at
from copied c join journals j on j.account_id = c.template and j.kind = 'opening' order by n;
insert into legs select 1000000 + c.n, g.n, ledger, line, amount_minor
from copied c join journals j on j.account_id = c.template and j.kind = 'opening' join legs g on g.journal_id = j.id
order by c.n, 2;
insert into readings select meter_id + c * {t}, read_at, import_wh
from readings, generate_series(1, {copies}) c order by read_at, 1"""
DAY = """
insert into journals (id, kind, booked_at) overriding system value
select {first} + b * ({b} + 1), 'usage_batch', clock_timestamp() from generate_series(0, ({n} - 1) / {b}) b;
insert into journals (id, kind, account_id, local_day, period, from_wh, to_wh, energy_wh, edge_quality, lines, batch_id)
    overriding system value
select {first} + c.n + c.batch + 1, 'day', c.account_id, j.local_day, period, from_wh, to_wh, energy_wh, edge_quality,
       lines, {first} + c.batch * ({b} + 1)
from copied c join day_of d on d.account_id = c.template and d.local_day = '{day}' join journals j on j.id = d.id
order by c.n;
insert into legs (journal_id, n, ledger, amount_minor)
select {first} + c.n + c.batch + 1, s.n, s.ledger, s.sign * d.total
from copied c join day_of d on d.account_id = c.template and d.local_day = '{day}'
cross join (values (1, 'prepaid', -1), (2, 'usage_clearing', 1)) s (n, ledger, sign)
order by 1, 2;
insert into legs (journal_id, n, ledger, line, amount_minor)
select {first} + batch * ({b} + 1), row_number() over (partition by batch order by ledger, line), ledger, line, amount
from (
    select c.batch, case g.ledger when 'prepaid' then 'usage_clearing' else g.ledger end as ledger, line,
           sum(amount_minor) as amount
    from copied c join day_of d on d.account_id = c.template and d.local_day = '{day}'
    join legs g on g.journal_id = d.id
    group by 1, 2, 3
) x"""


async def build_city(url: str, *, templates: int, copies: int, days: int) -> None:
    """Charge some homes for so many days; copy them with readings, and journals as a sweep would have posted them."""
    async with await connect(url, application="test") as conn:
        await migrate(conn)
        await _charge_templates(conn, templates, days)
        await conn.execute("set statement_timeout = 0")
        # The copies are true by construction: what they refer to need not be looked up ten million times.
        await conn.execute("set session_replication_role = replica")
        sizes = {"t": templates, "copies": copies, "n": templates * copies, "b": BATCH}
        for table, key, columns in COPIED:
            changed = columns.format(t=templates)
            copy = COPY_ROWS.format(table=table, columns=changed, key=f"x.{key}", copies=copies, templates=templates)
            await conn.execute(copy.encode())
        await conn.execute(STORY.format(**sizes).encode())
        first = 10_000_000
        for number in range(days):
            day = APRIL + timedelta(days=number)
            await conn.execute(DAY.format(first=first, day=day, **sizes).encode())
            first += (templates * copies // BATCH + 1) * (BATCH + 1)
        stored = templates * copies * days
        await add_counts(conn, {}, {None: {"messages": 1, "received": stored, "stored": stored}})
        await conn.execute("set session_replication_role = origin")
        await conn.execute("vacuum (analyze) journals")
        await conn.execute("vacuum (analyze) legs")
        await conn.execute("vacuum (analyze)")


async def _charge_templates(conn: AsyncConnection, templates: int, days: int) -> None:
    """Homes of different use that are read every day at nine and closed up to the day before the last reading."""
    for number in range(1, templates + 1):
        home = await open_home(conn, f"T{number}", opening_credit_minor=10_000_000)
        seen = [(local(APRIL, 24 * day + 9), (day + 1) * (3_000 + 700 * number)) for day in range(days)]
        await read(conn, home, seen)
    stored = templates * days
    await add_counts(conn, {}, {None: {"messages": 1, "received": stored, "stored": stored}})
    await close(conn, APRIL + timedelta(days=days - 1))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_million_legs_within_three_minutes(database_url: str) -> None:
    """A whole city's ledger is audited in the time an operator waits, in little memory."""
    asyncio.run(build_city(database_url, templates=TEMPLATES, copies=COPIES, days=DAYS))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun_s = time.monotonic()
    report = audited(database_url, connections=2)
    seconds = time.monotonic() - begun_s
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert report.clean, report.lines()
    with psycopg.connect(database_url) as conn:
        row = conn.execute("select count(*) from legs").fetchone()
    assert row is not None
    assert row[0] > 10_000_000
    assert seconds < SECONDS_MAX
    assert peak_kb < PEAK_KB_MAX


def test_city_is_true_at_any_size(database_url: str) -> None:
    """What the audit is timed on is clean, has batches of more than one member, and damage to a copy is found."""
    asyncio.run(build_city(database_url, templates=2, copies=3, days=32))
    report = audited(database_url)
    assert report.clean, report.lines()
    checked = {check.id: check.checked for check in report.checks}
    # Two homes and their copies: an opening and 32 days each, and the copies' 32 batches.
    assert (checked["I2"], checked["I1"]) == (8, 8 * 33 + 32)
    corrupt(
        database_url,
        [
            "alter table legs disable trigger append_only",
            "update legs set amount_minor = 0 where journal_id = 10000000",
        ],
    )
    assert broken_checks(audited(database_url)).keys() == {"I1"}
