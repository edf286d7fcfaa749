"""What the database layer refuses or asks to retry."""

from __future__ import annotations


class DatabaseError(Exception):
    """Base of this package's errors; `code` is stable."""

    code = "database_error"


class MigrationError(DatabaseError):
    """An applied migration is not the one at hand."""

    code = "migration_error"


class QueryMissing(DatabaseError):
    """No file of db/queries defines the name."""

    code = "query_missing"


class LeaseLost(DatabaseError):
    """Another owner has the shard: the batch must not be written by us."""

    code = "lease_lost"


class UnknownAccount(DatabaseError):
    """No account of that number or id, or none with a billing meter."""

    code = "unknown_account"
