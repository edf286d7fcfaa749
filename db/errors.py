"""What the database layer refuses or asks to retry."""

from __future__ import annotations


class DatabaseError(Exception):
    """Base of this package's errors; `code` is stable."""

    code = "database_error"


class MigrationError(DatabaseError):
    code = "migration_error"


class QueryMissing(DatabaseError):
    code = "query_missing"


class LeaseLost(DatabaseError):
    """Another owner has the shard: the batch must not be written by us."""

    code = "lease_lost"


class UnknownAccount(DatabaseError):
    code = "unknown_account"
