"""Who is calling: the header `X-Api-Key` against the stored digest, and what each role may touch.

Stage: first in every request but health and metrics. Never: a secret in a log or an answer, or an answer that tells
an unknown key from a wrong one.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import assert_never

from psycopg import AsyncConnection

from db.vends import ApiKeyRow, find_api_key
from vending.edges.errors import ApiKeyWrong, NotAllowed
from vending.edges.keys import Role, digest_secret, split_api_key

# Compared with when there is no such key, so that an unknown id takes as long as a wrong secret.
_NO_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorCaller:
    """A vendor's station; an inactive vendor may still read what it was answered."""

    key_id: str
    vendor_id: int
    name: str
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineerCaller:
    """A billing engineer, who may look at every account."""

    key_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerCaller:
    """A consumer, bound to one account."""

    key_id: str
    account_id: int


Caller = VendorCaller | EngineerCaller | ConsumerCaller


async def authenticate(conn: AsyncConnection, header: str | None) -> Caller:
    """Find the caller behind a header.

    Raises: ApiKeyWrong, the same for a malformed, unknown, revoked or wrong key.
    """
    parts = None if header is None else split_api_key(header)
    if parts is None:
        raise ApiKeyWrong("header X-Api-Key: expected <key id>.<secret>, got none of that form")
    key_id, secret = parts
    row = await find_api_key(conn, key_id)
    stored = _NO_DIGEST if row is None else bytes(row.sha256)
    if not hmac.compare_digest(stored, digest_secret(secret)) or row is None or not row.active:
        raise ApiKeyWrong("header X-Api-Key: expected a key in force, got one that is unknown, wrong or taken back")
    return _caller_from_row(row)


def require_vendor(caller: Caller) -> VendorCaller:
    """Raises: NotAllowed unless a vendor calls."""
    if isinstance(caller, VendorCaller):
        return caller
    raise _refused(caller, "a vendor's")


def require_staff(caller: Caller) -> None:
    """Raises: NotAllowed unless a vendor or an engineer calls."""
    if isinstance(caller, ConsumerCaller):
        raise _refused(caller, "a vendor's or an engineer's")


def require_engineer(caller: Caller) -> EngineerCaller:
    """Raises: NotAllowed unless an engineer calls."""
    if isinstance(caller, EngineerCaller):
        return caller
    raise _refused(caller, "an engineer's")


def require_account(caller: Caller, account_id: int | None) -> None:
    """Let engineers pass, and the consumer of this very account; None is an account that does not exist.

    Raises: NotAllowed, for a consumer the same whether another account exists or not.
    """
    match caller:
        case EngineerCaller():
            return
        case ConsumerCaller():
            if account_id != caller.account_id:
                raise _refused(caller, "an engineer's or that account's consumer's")
        case VendorCaller():
            raise _refused(caller, "an engineer's or that account's consumer's")
        case _:
            assert_never(caller)


def require_account_or_vendor(caller: Caller, account_id: int | None) -> None:
    """Let vendors and engineers pass, and the consumer of this very account.

    Raises: NotAllowed.
    """
    if not isinstance(caller, VendorCaller):
        require_account(caller, account_id)


def _refused(caller: Caller, expected: str) -> NotAllowed:
    role = {VendorCaller: Role.VENDOR, EngineerCaller: Role.ENGINEER, ConsumerCaller: Role.CONSUMER}[type(caller)]
    return NotAllowed(f"key {caller.key_id}: expected {expected} key, got one of role {role.value}")


def _caller_from_row(row: ApiKeyRow) -> Caller:
    match Role(row.role):
        case Role.VENDOR:
            # The table's checks tie each role to its owner.
            assert row.vendor_id is not None
            assert row.vendor_name is not None
            return VendorCaller(
                key_id=row.key_id, vendor_id=row.vendor_id, name=row.vendor_name, active=bool(row.vendor_active)
            )
        case Role.ENGINEER:
            return EngineerCaller(key_id=row.key_id)
        case Role.CONSUMER:
            assert row.account_id is not None
            return ConsumerCaller(key_id=row.key_id, account_id=row.account_id)
        case role:
            assert_never(role)
