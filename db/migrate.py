"""Migrations: numbered SQL files, forward only, applied under an advisory lock.

Stage: before any process works. Each file runs once in its own transaction with a lock timeout; its checksum is
kept, so that an edited migration is refused rather than silently skipped.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from psycopg import AsyncConnection

from billing.tariff_document import builtin_documents
from db.errors import MigrationError
from db.tariffs import add_tariff

# Any constant will do; it only has to be the same in every process of this product.
_LOCK_KEY = 7_405_206_101
LOCK_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One numbered file."""

    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Checksum of the file's text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Return the product's migrations in order."""
    folder = resources.files("db") / "migrations"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda e: e.name)
    return [Migration(name=entry.name, sql=entry.read_text(encoding="utf-8")) for entry in files]


async def migrate(conn: AsyncConnection) -> list[str]:
    """Apply what is missing; return the names applied. Also adds built-in tariffs that are missing.

    Raises: MigrationError when an applied file differs from the one at hand.
    """
    await conn.set_autocommit(True)
    await conn.execute("select pg_advisory_lock(%s)", (_LOCK_KEY,))
    try:
        await conn.execute(
            "create table if not exists migrations (name text primary key, sha256 text not null,"
            " applied_at timestamptz not null default now())"
        )
        cursor = await conn.execute("select name, sha256 from migrations")
        done: dict[str, str] = dict(await cursor.fetchall())
        applied = []
        for migration in migrations():
            if migration.name not in done:
                await _apply(conn, migration)
                applied.append(migration.name)
            elif done[migration.name] != migration.sha256:
                raise MigrationError(
                    f"migration {migration.name}: expected checksum {done[migration.name][:12]} as applied,"
                    f" got {migration.sha256[:12]} in this version"
                )
        await _add_tariffs(conn)
        return applied
    finally:
        await conn.execute("select pg_advisory_unlock(%s)", (_LOCK_KEY,))


async def _apply(conn: AsyncConnection, migration: Migration) -> None:
    async with conn.transaction():
        await conn.execute(f"set local lock_timeout = '{LOCK_TIMEOUT_S}s'")
        await conn.execute(migration.sql.encode())
        await conn.execute("insert into migrations (name, sha256) values (%s, %s)", (migration.name, migration.sha256))


async def _add_tariffs(conn: AsyncConnection) -> None:
    for _, document in sorted(builtin_documents().items()):
        await add_tariff(conn, document)
