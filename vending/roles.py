"""Who may do what: roles of interface keys, and the scopes that each role has.

Stage: between the caller's key and every use case. Enters: a role, and the scopes that a key was narrowed to. Leaves:
the scopes in force. Never: a key, a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import ClassVar

from vending.vends import VendingError


class Role(StrEnum):
    """Whose interface key it is: the first two are a vendor's; a reader's has an area, a consumer's an account."""

    VENDOR = "vendor"
    SUPERVISOR = "supervisor"
    ENGINEER = "engineer"
    CASHIER = "cashier"
    AUDITOR = "auditor"
    # Looks at one area and changes nothing.
    READER = "reader"
    CONSUMER = "consumer"


class Scope(StrEnum):
    """One thing that a key may do."""

    # A vendor's.
    SELL = "sell"
    READ_OWN = "read_own"
    FLOAT = "float"
    VERIFY = "verify"
    BATCHES = "batches"
    CANCEL = "cancel"
    # Hand out the key-change tokens that a meter's record waits for.
    KEY_CHANGE = "key_change"
    # The utility's.
    READ_ALL = "read_all"
    READ_AREA = "read_area"
    CHANGE_ACCOUNTS = "change_accounts"
    ISSUE = "issue"
    ENGINEERING = "engineering"
    DECIDE = "decide"
    DEPOSIT = "deposit"
    READ_VENDORS = "read_vendors"
    READ_TRAIL = "read_trail"
    # A consumer's.
    OWN_ACCOUNT = "own_account"


_VENDORS = frozenset({Scope.SELL, Scope.READ_OWN, Scope.FLOAT, Scope.VERIFY, Scope.KEY_CHANGE})
SCOPES_OF: Mapping[Role, frozenset[Scope]] = {
    Role.VENDOR: _VENDORS,
    Role.SUPERVISOR: _VENDORS | {Scope.BATCHES, Scope.CANCEL},
    Role.ENGINEER: frozenset(
        {
            Scope.READ_ALL,
            Scope.CHANGE_ACCOUNTS,
            Scope.VERIFY,
            Scope.ISSUE,
            Scope.ENGINEERING,
            Scope.KEY_CHANGE,
            Scope.DECIDE,
        }
    ),
    Role.CASHIER: frozenset({Scope.DEPOSIT, Scope.READ_VENDORS}),
    Role.AUDITOR: frozenset({Scope.READ_ALL, Scope.READ_VENDORS, Scope.READ_TRAIL}),
    Role.READER: frozenset({Scope.READ_AREA}),
    Role.CONSUMER: frozenset({Scope.OWN_ACCOUNT}),
}
VENDOR_ROLES = frozenset({Role.VENDOR, Role.SUPERVISOR})
# Whoever looks at other people's facts is recorded, too, when only reading.
STAFF_ROLES = frozenset({Role.ENGINEER, Role.CASHIER, Role.AUDITOR, Role.READER})
# The gate lets them only read.
READING_ROLES = frozenset({Role.AUDITOR, Role.READER})


class BadScope(VendingError):
    """A scope that is none, or none of a role's."""

    code: ClassVar[str] = "bad_scope"


def scopes_of(role: Role, narrowed: Iterable[str] | None) -> frozenset[Scope]:
    """Return the scopes of a key: its role's, or those of them that it was narrowed to."""
    kept = None if narrowed is None else set(narrowed)
    return frozenset(scope for scope in SCOPES_OF[role] if kept is None or scope in kept)


def narrow(role: Role, asked: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes of a new key that may do less than its role.

    Raises: BadScope.
    """
    wanted = set(asked)
    scopes = scopes_of(role, wanted)
    if not wanted or scopes != wanted:
        may, got = (", ".join(sorted(each)) or "none" for each in (SCOPES_OF[role], wanted))
        raise BadScope(f"scopes of a {role.value} key: expected some of {may}, got {got}")
    return scopes
