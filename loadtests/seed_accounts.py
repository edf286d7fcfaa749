"""Very many accounts into an empty database, by sets: the state that opening them one by one would leave.

Stage: before a benchmark's clock starts. Each account has consumer, usage point, billing meter with state, installation
and first register segment, one assignment from its opening on, and an opening credit with its journal. Foreign keys
are not looked up for each row, which would take longer than all the rest; what is written here fits by its numbers.
"""

from __future__ import annotations

import asyncio
from datetime import date, datetime
from typing import Final

import numpy as np
from psycopg import AsyncConnection

from db.binary_copy import HEAD, TAIL
from db.pool import connect
from loadtests.population import MARGIN_DAYS, RATED_W, REGISTER_END_WH, SERIAL_DIGITS, SERIAL_PREFIX, Homes, homes
from prepaid.keys import OWN_KRN, OWN_SGC
from vending.sts.identity import luhn_check_digit

# 500,000 homes are 30 MB of COPY.
_HOMES_PER_COPY: Final = 500_000
_HOME: Final = np.dtype(
    [("fields", ">i2")]
    + [
        part
        for name, width in (
            ("number", 4),
            ("shard", 4),
            ("load_w", 4),
            ("credit_minor", 8),
            ("threshold_minor", 8),
            ("register_wh", 8),
        )
        for part in ((f"{name}_length", ">i4"), (name, f">i{width}"))
    ]
)
_MAKE_HOMES: Final = b"""
create unlogged table bench_homes (
    number integer, shard integer, load_w integer, credit_minor bigint, threshold_minor bigint, register_wh bigint)
"""
_COPY_HOMES: Final = b"copy bench_homes from stdin (format binary)"
_SERIAL: Final = b"%(prefix)s || lpad(number::text, %(digits)s, '0')"
# Written side by side on two connections; each list in its order.
_PLACES: Final = (
    b"insert into consumers (id, name) overriding system value"
    b" select number, 'Simulated home ' || number from bench_homes order by number",
    b"insert into usage_points (id, code, area) overriding system value"
    b" select number, " + _SERIAL + b", 'bench-' || number %% %(areas)s from bench_homes order by number",
    b"insert into meters (id, serial, shard, rated_w, register_end_wh) overriding system value"
    b" select number, " + _SERIAL + b", shard, %(rated_w)s, %(register_end_wh)s from bench_homes order by number",
    b"insert into meter_state (meter_id) select number from bench_homes order by number",
    b"insert into installations (id, usage_point_id, meter_id, role, from_at) overriding system value"
    b" select number, number, number, 'billing', %(opened_at)s from bench_homes order by number",
    b"insert into register_segments (meter_id, from_at, register_wh, start_wh, reason)"
    b" select number, %(opened_at)s, register_wh, 0, 'installed' from bench_homes order by number",
)
_MONEY: Final = (
    b"insert into accounts (id, number, consumer_id, usage_point_id, shard, opened_on, threshold_minor, posted_minor,"
    b" through, anchor_at) overriding system value"
    b" select number, " + _SERIAL + b", number, number, shard, %(opened_on)s, nullif(threshold_minor, -1),"
    b" credit_minor, %(opened_on)s, %(opened_at)s from bench_homes order by number",
    b"insert into assignments (account_id, from_day, tariff_id, category, load_w)"
    b" select number, %(opened_on)s, %(tariff_id)s, 'DS', load_w from bench_homes order by number",
    b"insert into journals (id, kind, account_id) overriding system value"
    b" select number, 'opening', number from bench_homes order by number",
    b"insert into legs (journal_id, n, ledger, amount_minor)"
    b" select number, side.n, side.ledger, side.sign * credit_minor from bench_homes"
    b" cross join (values (1, 'prepaid', 1), (2, 'opening', -1)) side(n, ledger, sign) order by number, side.n",
)
# Two digits of a maker, for trials.
_MAKER_CODE: Final = "99"
_STS_KEYS: Final = b"""
with named as (
    update meters m set drn = k.drn
    from unnest(%(drns)s::text[]) with ordinality as k(drn, number) where m.id = k.number
    returning m.id
)
insert into meter_records (meter_id, version, state, engine, ea, tct, dkga, sgc, key_type, krn, tariff_index, ken,
                           base_year, key_change_tokens, capabilities, written_by, reason, valid_from)
select id, 1, 'active', 'sts', 11, 2, 4, %(sgc)s, 2, %(krn)s, '01', 255, 2014, 4, array['electricity', 'currency'],
       'benchmark', 'seeded', clock_timestamp()
from named order by id
"""
_NUMBERED: Final = ("consumers", "usage_points", "meters", "installations", "accounts", "journals")


async def seed_accounts(
    database_url: str,
    accounts: int,
    *,
    opened_at: datetime,
    opened_on: date,
    tariff_id: str,
    areas: int = 1,
    margin_days: int = MARGIN_DAYS,
) -> None:
    """Open accounts 1 to `accounts` in an empty, migrated database; `opened_at` is the midnight of `opened_on`."""
    parameters = {
        "prefix": SERIAL_PREFIX,
        "digits": SERIAL_DIGITS,
        "rated_w": RATED_W,
        "register_end_wh": REGISTER_END_WH,
        "opened_at": opened_at,
        "opened_on": opened_on,
        "tariff_id": tariff_id,
        "areas": areas,
    }
    async with await connect(database_url, application="prepaid-bench") as conn:
        await conn.execute(_MAKE_HOMES)
        for first in range(1, accounts + 1, _HOMES_PER_COPY):
            last = min(first + _HOMES_PER_COPY - 1, accounts)
            await _copy_homes(conn, homes(np.arange(first, last + 1, dtype=np.int64), margin_days=margin_days))
        await conn.execute("analyze bench_homes")
        async with asyncio.TaskGroup() as writing:
            for statements in (_PLACES, _MONEY):
                writing.create_task(_write(database_url, statements, parameters))
        await conn.execute("drop table bench_homes")
        await _finish(conn)


async def give_sts_keys(conn: AsyncConnection, accounts: int) -> None:
    """Give meters 1 to `accounts` the key record of the installation's own supply group, so that tokens can be made."""
    bodies = [f"{_MAKER_CODE}{number:08d}" for number in range(1, accounts + 1)]
    drns = [body + str(luhn_check_digit(body)) for body in bodies]
    await conn.execute(_STS_KEYS, {"drns": drns, "sgc": OWN_SGC, "krn": OWN_KRN})
    await conn.execute("vacuum analyze meters, meter_records")


async def _copy_homes(conn: AsyncConnection, made: Homes) -> None:
    records = np.zeros(len(made.number), dtype=_HOME)
    names = [name for name in _HOME.names or () if f"{name}_length" in (_HOME.names or ())]
    records["fields"] = len(names)
    for name in names:
        records[f"{name}_length"] = _HOME[name].itemsize
        records[name] = getattr(made, name)
    async with conn.cursor() as cursor, cursor.copy(_COPY_HOMES) as copy:
        await copy.write(HEAD + records.tobytes() + TAIL)


async def _write(database_url: str, statements: tuple[bytes, ...], parameters: dict[str, object]) -> None:
    async with await connect(database_url, application="prepaid-bench") as conn:
        await conn.execute("set statement_timeout = 0")
        # As a replica, which trusts what it is sent: no look-up of foreign keys.
        await conn.execute("set session_replication_role = replica")
        for statement in statements:
            await conn.execute(statement, parameters)


async def _finish(conn: AsyncConnection) -> None:
    """Leave the tables as a server finds them that has run for a while: numbered on, analysed, without chores."""
    await conn.execute("set statement_timeout = 0")
    for table in _NUMBERED:
        await conn.execute(
            "select setval(pg_get_serial_sequence(%(table)s, 'id'), (select max(id) from accounts))", {"table": table}
        )
    await conn.execute("vacuum analyze")
    await conn.execute("checkpoint")
