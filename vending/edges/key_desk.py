"""Interface keys and limits as the utility gives them out: each act with who did it, in the audit trail.

Stage: behind the commands. Enters: names as a person types them. Leaves: a new key, shown once; what was changed. Every
API process sees it within a second. Never: a secret in a row, a log or an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation

from billing.calendar import LocalCalendar, from_ms, to_ms
from db.api_access import (
    LockedKey,
    NewAct,
    NewLimit,
    add_limit,
    bind_certificate,
    find_vendor,
    lock_key,
    record_act,
    retire_key,
)
from vending.edges.keys import NewApiKey, issue_api_key, revoke_api_key
from vending.roles import Role, Scope
from vending.vends import VendingError

# Long enough to bring a new key to every station of a chain, short enough that an old one is not forgotten.
OVERLAP_H_MAX = 720
# Whoever works at the command line has a name, and no interface key.
OPERATOR = "operator"


class KeyRefused(VendingError):
    """A key, a vendor or a certificate that does not fit what is asked."""

    code: ClassVar[str] = "key_refused"


async def give_key(
    conn: AsyncConnection,
    master: bytes,
    role: Role,
    *,
    vendor: str | None = None,
    account_id: int | None = None,
    area: str | None = None,
    scopes: Collection[Scope] | None = None,
    terminal: str | None = None,
    label: str = "",
    by: str,
) -> NewApiKey:
    """Make an interface key.

    Raises: KeyRefused for a vendor that is not known; BadApiKeyOwner, BadScope, SealBroken.
    """
    async with conn.transaction():
        vendor_id = None if vendor is None else await known_vendor(conn, vendor)
        new = await issue_api_key(
            conn,
            role,
            vendor_id=vendor_id,
            account_id=account_id,
            area=area,
            master=master,
            scopes=scopes,
            terminal=terminal,
            label=label,
            by=by,
        )
        await _record(conn, "api-keys add", by, subject=new.key_id, vendor_id=vendor_id)
    return new


async def rotate_key(
    conn: AsyncConnection, master: bytes, key_id: str, *, overlap: timedelta, by: str, now: datetime
) -> NewApiKey:
    """Make the key that takes the place of another one, which is good for as long as `overlap` yet.

    Raises: KeyRefused for a key that is not in force, or of which there are two already; SealBroken.
    """
    async with conn.transaction():
        old = await _locked(conn, key_id, now)
        if old.ends_at is not None or old.beside_old:
            raise KeyRefused(f"key {key_id}: expected one alone in force, got one of two: revoke the old one first")
        await retire_key(conn, key_id, ends_at=now + overlap)
        new = await issue_api_key(
            conn,
            Role(old.role),
            vendor_id=old.vendor_id,
            account_id=old.account_id,
            area=old.area,
            master=master,
            scopes=None if old.scopes is None else [Scope(scope) for scope in old.scopes],
            terminal=old.terminal,
            label=old.label,
            by=by,
            replaces=key_id,
        )
        await _record(
            conn, "api-keys rotate", by, subject=key_id, reference=f"by {new.key_id}", vendor_id=old.vendor_id
        )
    return new


async def take_key_back(conn: AsyncConnection, key_id: str, *, by: str, reason: str, now: datetime) -> None:
    """End an interface key, for every API process within a second.

    Raises: KeyRefused for a key that is not in force.
    """
    async with conn.transaction():
        old = await _locked(conn, key_id, now)
        await revoke_api_key(conn, key_id)
        await _record(conn, "api-keys revoke", by, subject=key_id, reference=reason, vendor_id=old.vendor_id)


async def bind_certificate_of(
    conn: AsyncConnection, key_id: str, pem: bytes | None, *, by: str, now: datetime
) -> bytes | None:
    """Let a client certificate call as a key, or none; return its digest.

    Raises: KeyRefused for a key that is not in force, a file without a certificate, or one that calls as another key.
    """
    digest = None if pem is None else _digest_of(pem)
    async with conn.transaction():
        old = await _locked(conn, key_id, now)
        try:
            async with conn.transaction():
                await bind_certificate(conn, key_id, digest)
        except UniqueViolation:
            raise KeyRefused(f"certificate for key {key_id}: expected one of no other key, got one in use") from None
        told = "none" if digest is None else digest.hex()
        await _record(conn, "api-keys certificate", by, subject=key_id, reference=told, vendor_id=old.vendor_id)
    return digest


async def set_limits(
    conn: AsyncConnection, vendor: str, limit: NewLimit, *, calendar: LocalCalendar, now: datetime
) -> None:
    """Set what a vendor, or one of its terminals, may send and sell from now on; today's sales count.

    `limit` names no vendor yet (0). Raises: KeyRefused for a vendor that is not known.
    """
    day = calendar.day_of(to_ms(now))
    async with conn.transaction():
        vendor_id = await known_vendor(conn, vendor)
        midnight = from_ms(calendar.midnight_ms(day))
        await add_limit(conn, replace(limit, vendor_id=vendor_id), day=day, midnight=midnight)
        subject = f"{vendor} {limit.terminal}".strip()
        await _record(
            conn, "api-keys limit", limit.set_by, subject=subject, reference=limit.reason, vendor_id=vendor_id
        )


async def known_vendor(conn: AsyncConnection, name: str) -> int:
    """Return the id of a vendor by its name.

    Raises: KeyRefused.
    """
    vendor_id = await find_vendor(conn, name)
    if vendor_id is None:
        raise KeyRefused(f"vendor: expected a known name, got {name!r}")
    return vendor_id


def _digest_of(pem: bytes) -> bytes:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise KeyRefused(f"certificate: expected one in PEM, got {len(pem)} other bytes") from None
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


async def _locked(conn: AsyncConnection, key_id: str, now: datetime) -> LockedKey:
    key = await lock_key(conn, key_id, now=now)
    if key is None:
        raise KeyRefused(f"key: expected one in force, got {key_id!r}")
    return key


async def _record(
    conn: AsyncConnection, act: str, by: str, *, subject: str, vendor_id: int | None, reference: str = ""
) -> None:
    await record_act(
        conn,
        NewAct(
            actor=by,
            role=OPERATOR,
            key_id=None,
            vendor_id=vendor_id,
            terminal=None,
            operator=None,
            act=act,
            subject=subject,
            reference=reference,
            outcome="done",
            status=None,
            request_digest=None,
        ),
    )
