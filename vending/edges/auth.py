"""Who is calling, and what a caller may touch.

Stage: behind the gate, before every use case. Enters: a key that has proven itself. Leaves: a caller with its scopes
and an act for the audit trail, or a refusal. Never: a secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import assert_never

from db.api_access import CalledKey, DayLimit
from vending.edges.audit_trail import Act
from vending.edges.errors import NotAllowed
from vending.edges.limits import day_limits
from vending.roles import Role, Scope, scopes_of

__all__ = [
    "AuditorCaller",
    "Caller",
    "CashierCaller",
    "ConsumerCaller",
    "EngineerCaller",
    "ReaderCaller",
    "VendorCaller",
    "caller_of_key",
    "require_account",
    "require_account_or_vendor",
    "require_engineer",
    "require_scope",
    "require_vendor",
    "terminal_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    key_id: str
    role: Role
    scopes: frozenset[Scope]
    # Written by the use case in its own transaction, else after it.
    act: Act = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorCaller(_Known):
    """A vendor's station or supervisor; an inactive vendor may still read what it was answered.

    `terminal` is the one that the key is for, None where it is for any. `day_limits` go to `count_vend`.
    """

    vendor_id: int
    name: str
    active: bool
    terminal: str | None
    day_limits: tuple[DayLimit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineerCaller(_Known):
    """A billing engineer, who may look at every account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CashierCaller(_Known):
    """Who takes vendors' deposits for the utility."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditorCaller(_Known):
    """Who looks at everything and changes nothing; the gate lets an auditor only read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderCaller(_Known):
    """Who looks at one area and changes nothing."""

    area: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerCaller(_Known):
    """A consumer, bound to one account."""

    account_id: int


Caller = VendorCaller | EngineerCaller | CashierCaller | AuditorCaller | ReaderCaller | ConsumerCaller


def caller_of_key(row: CalledKey, act: Act) -> Caller:
    """Return the caller behind a key in force."""
    role = Role(row.role)
    scopes = scopes_of(role, row.scopes)
    match role:
        case Role.VENDOR | Role.SUPERVISOR:
            # The table's checks tie each role to its owner.
            assert row.vendor_id is not None
            assert row.vendor_name is not None
            return VendorCaller(
                key_id=row.key_id,
                role=role,
                scopes=scopes,
                act=act,
                vendor_id=row.vendor_id,
                name=row.vendor_name,
                active=bool(row.vendor_active),
                terminal=row.terminal,
                day_limits=day_limits(row),
            )
        case Role.ENGINEER:
            return EngineerCaller(key_id=row.key_id, role=role, scopes=scopes, act=act)
        case Role.CASHIER:
            return CashierCaller(key_id=row.key_id, role=role, scopes=scopes, act=act)
        case Role.AUDITOR:
            return AuditorCaller(key_id=row.key_id, role=role, scopes=scopes, act=act)
        case Role.READER:
            assert row.area is not None
            return ReaderCaller(key_id=row.key_id, role=role, scopes=scopes, act=act, area=row.area)
        case Role.CONSUMER:
            assert row.account_id is not None
            return ConsumerCaller(key_id=row.key_id, role=role, scopes=scopes, act=act, account_id=row.account_id)
        case _:
            assert_never(role)


def require_scope(caller: Caller, scope: Scope) -> None:
    """Raises: NotAllowed unless the caller's key has a scope."""
    if scope not in caller.scopes:
        raise NotAllowed(
            f"key {caller.key_id}: expected one with scope {scope.value}, got one of role {caller.role.value} without"
        )


def require_vendor(caller: Caller, scope: Scope = Scope.SELL) -> VendorCaller:
    """Raises: NotAllowed unless a vendor calls with a key that has a scope."""
    if not isinstance(caller, VendorCaller):
        raise _refused(caller, "a vendor's")
    require_scope(caller, scope)
    return caller


def require_engineer(caller: Caller, scope: Scope = Scope.READ_ALL) -> EngineerCaller:
    """Raises: NotAllowed unless an engineer calls with a key that has a scope."""
    if not isinstance(caller, EngineerCaller):
        raise _refused(caller, "an engineer's")
    require_scope(caller, scope)
    return caller


def require_account(caller: Caller, account_id: int | None) -> None:
    """Let engineers and auditors pass, and the consumer of this very account; None is an account that does not exist.

    Raises: NotAllowed, for a consumer the same whether another account exists or not.
    """
    match caller:
        case EngineerCaller() | AuditorCaller():
            require_scope(caller, Scope.READ_ALL)
        case ConsumerCaller():
            if account_id != caller.account_id:
                raise _refused(caller, "an engineer's or that account's consumer's")
        case VendorCaller() | CashierCaller() | ReaderCaller():
            raise _refused(caller, "an engineer's or that account's consumer's")
        case _:
            assert_never(caller)


def require_account_or_vendor(caller: Caller, account_id: int | None) -> None:
    """Let vendors, engineers and auditors pass, and the consumer of this very account.

    Raises: NotAllowed.
    """
    if isinstance(caller, VendorCaller):
        require_scope(caller, Scope.SELL)
    else:
        require_account(caller, account_id)


def terminal_of(caller: VendorCaller, named: str | None) -> str | None:
    """Return the terminal of a vendor's request: the key's, else the one that the request names.

    Raises: NotAllowed where the request names another one than the key's.
    """
    if caller.terminal is not None and named not in (None, caller.terminal):
        raise NotAllowed(f"key {caller.key_id}: expected terminal {caller.terminal}, got a request of another one")
    return caller.terminal or named


def _refused(caller: Caller, expected: str) -> NotAllowed:
    return NotAllowed(f"key {caller.key_id}: expected {expected} key, got one of role {caller.role.value}")
