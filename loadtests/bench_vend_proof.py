"""What a round of vends has left in the database, compared with what its stations were told.

Stage: after each round of `bench vend`. Reads; never repairs. A vend whose answer was 200 must be there once, with one
journal and one token; a vend that is there without such an answer is counted, since its station would ask again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import AsyncConnection

_SOUND: Final = b"""
with asked as (
    select * from unnest(%(vendor_ids)s::bigint[], %(message_ids)s::text[], %(sold)s::boolean[])
        as a (vendor_id, message_id, sold)
), found as (
    select a.vendor_id, a.message_id, a.sold,
           (select count(*) from vends v where v.vendor_id = a.vendor_id and v.message_id = a.message_id
               and v.journal_id is not null) as vends,
           (select count(distinct v.journal_id) from vends v join journals j on j.id = v.journal_id
               where v.vendor_id = a.vendor_id and v.message_id = a.message_id and j.kind = 'vend') as journals,
           (select count(*) from tokens t join vends v on v.id = t.vend_id
               where v.vendor_id = a.vendor_id and v.message_id = a.message_id) as tokens
    from asked a
)
select count(*) filter (where sold and (vends, journals, tokens) = (1, 1, 1)) as kept,
       count(*) filter (where sold and (vends, journals, tokens) <> (1, 1, 1)) as lost,
       count(*) filter (where not sold and vends > 0) as unheard,
       count(*) filter (where not sold and (vends, journals, tokens) not in ((0, 0, 0), (1, 1, 1))) as torn
from found
"""
_BOOKS: Final = b"""
select (select coalesce(sum(v.amount_minor), 0)::bigint from vends v where v.journal_id is not null) as sold_minor,
       (select coalesce(sum(l.amount_minor), 0)::bigint from vends v join legs l on l.journal_id = v.journal_id
            where l.ledger = 'prepaid') as credited_minor,
       (select coalesce(sum(l.amount_minor), 0)::bigint from vends v join legs l on l.journal_id = v.journal_id)
           as unbalanced_minor,
       (select coalesce(sum(posted_minor), 0)::bigint from accounts) as balances_minor,
       (select coalesce(sum(amount_minor), 0)::bigint from legs where ledger = 'prepaid') as ledger_minor,
       (select count(*) from tokens t where t.vend_id is not null) as tokens,
       (select count(distinct (t.meter_id, t.tid)) from tokens t where t.vend_id is not null) as token_ids,
       (select count(*) from vends where journal_id is not null) as vends
"""
_WORK: Final = b"""
select xact_commit::bigint, xact_rollback::bigint, deadlocks::bigint, pg_current_wal_lsn() - '0/0'::pg_lsn
from pg_stat_database where datname = current_database()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Vends by what is there of them; `lost` were answered and are not there whole, `torn` are there in part."""

    kept: int
    lost: int
    unheard: int
    torn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Sums over all vends and accounts. Units: minor units, or rows."""

    sold_minor: int
    credited_minor: int
    unbalanced_minor: int
    balances_minor: int
    ledger_minor: int
    tokens: int
    token_ids: int
    vends: int

    @property
    def agree(self) -> bool:
        """Tell whether each vend is one token and all of it on its account, and balances are their legs' sums."""
        return (
            self.sold_minor == self.credited_minor
            and self.unbalanced_minor == 0
            and self.balances_minor == self.ledger_minor
            and self.tokens == self.token_ids == self.vends
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the database has done so far. Units: transactions, and bytes of write-ahead log."""

    commits: int
    rollbacks: int
    deadlocks: int
    wal_bytes: int

    def since(self, before: Work) -> Work:
        """Return what was done between two looks."""
        return Work(
            commits=self.commits - before.commits,
            rollbacks=self.rollbacks - before.rollbacks,
            deadlocks=self.deadlocks - before.deadlocks,
            wal_bytes=self.wal_bytes - before.wal_bytes,
        )


async def count_kept(
    conn: AsyncConnection, vendor_ids: Sequence[int], message_ids: Sequence[str], sold: Sequence[bool]
) -> Kept:
    """Look for every vend that was asked for; `sold` says which were answered with a receipt."""
    asked = {"vendor_ids": list(vendor_ids), "message_ids": list(message_ids), "sold": list(sold)}
    row = await (await conn.execute(_SOUND, asked)).fetchone()
    assert row is not None, "a count returns one row"
    return Kept(kept=row[0], lost=row[1], unheard=row[2], torn=row[3])


async def read_books(conn: AsyncConnection) -> Books:
    """Add up everything that was sold."""
    cursor = await conn.execute(_BOOKS)
    row = await cursor.fetchone()
    assert row is not None, "sums are one row"
    assert cursor.description is not None, "a query has columns"
    return Books(**{column.name: int(value) for column, value in zip(cursor.description, row, strict=True)})


async def read_work(conn: AsyncConnection) -> Work:
    """Read the database's own counters; those of the last second may be missing."""
    row = await (await conn.execute(_WORK)).fetchone()
    assert row is not None, "a database has counters"
    return Work(commits=row[0], rollbacks=row[1], deadlocks=row[2], wal_bytes=int(row[3]))
