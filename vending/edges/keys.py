"""Keys in and out of the database: vending keys sealed, interface keys as digests.

Stage: administration and start. Enters: a master key as bytes, vending keys once, when they are added. Leaves: a
security module with its keys loaded; a new interface key, shown once. Never: an open vending key or a secret in the
database, a log or an error.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

from psycopg import AsyncConnection

from db.api_access import NewKey, add_key, newest_sealed_key
from db.keys import add_sealed_key, read_sealed_keys
from db.vends import end_api_key
from vending.key_custody import (
    SealedVendingKey,
    dkga_of_key,
    open_api_secret,
    open_vending_key,
    seal_api_secret,
    seal_vending_key,
    vending_key_check_value,
)
from vending.roles import VENDOR_ROLES, Role, Scope, narrow
from vending.security import VendingKeyConflict
from vending.soft_module import ChangedKeys, SoftSecurityModule
from vending.sts.sta import StaTables
from vending.vends import VendingError

# 32 random bytes cannot be guessed, so one round of SHA-256 keeps them as well as any slow hash.
_SECRET_BYTES = 32
_KEY_ID_BYTES = 8
_RND_VALUES = 16
_HEADER = re.compile(r"(?P<key_id>[A-Za-z0-9_-]{1,64})\.(?P<secret>[A-Za-z0-9_-]{16,128})")


class BadApiKeyOwner(VendingError):
    """A key's role and its owner do not go together."""

    code: ClassVar[str] = "bad_api_key_owner"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewApiKey:
    """An interface key at birth, the only time its secret is known."""

    key_id: str
    secret: str = field(repr=False)

    @property
    def header(self) -> str:
        """The value of the header `X-Api-Key`."""
        return f"{self.key_id}.{self.secret}"


async def load_security_module(
    conn: AsyncConnection,
    master: bytes,
    *,
    sta_tables: StaTables | None = None,
    allow_triple_des: bool = False,
    changed_keys: ChangedKeys | None = None,
) -> SoftSecurityModule:
    """Load every vending key into a soft security module.

    Raises: SealBroken when the master key is not the one they were sealed under; InvalidKey for its length.
    """
    return SoftSecurityModule(
        master,
        await read_vending_keys(conn),
        rnd_nibble=lambda: secrets.randbelow(_RND_VALUES),
        sta_tables=sta_tables,
        allow_triple_des=allow_triple_des,
        changed_keys=changed_keys,
    )


async def read_vending_keys(conn: AsyncConnection) -> list[SealedVendingKey]:
    """Read every vending key, sealed."""
    return [SealedVendingKey(sgc=sgc, krn=krn, sealed=sealed) for sgc, krn, sealed in await read_sealed_keys(conn)]


async def require_master(conn: AsyncConnection, master: bytes) -> None:
    """Refuse to seal anything under another master key than the installation's: keys under two would stop it for good.

    Raises: SealBroken when a vending key, or the newest interface key that can sign, does not open.
    """
    for each in await read_vending_keys(conn):
        open_vending_key(master, each.sgc, each.krn, each.sealed)
    newest = await newest_sealed_key(conn)
    if newest is not None:
        open_api_secret(master, *newest)


async def add_vending_key(conn: AsyncConnection, master: bytes, *, sgc: str, krn: int, key: bytes) -> str:
    """Seal and store a whole vending key; return its check value. The same key again changes nothing.

    For keys that no person has seen, and for tests: people bring a key in two components (see key_loads).
    Raises: VendingKeyConflict when another key is stored for the SGC and KRN; SealBroken for another master key than
        that of the stored ones; InvalidKey, InvalidIdentity.
    """
    await require_master(conn, master)
    check_value = vending_key_check_value(key)
    stored = await add_sealed_key(
        conn,
        sgc=sgc,
        krn=krn,
        dkga=int(dkga_of_key(sgc, krn, key)),
        sealed=seal_vending_key(master, sgc, krn, key),
        check_value=check_value,
    )
    if stored is not None and open_vending_key(master, sgc, krn, stored) != key:
        raise VendingKeyConflict(f"vending key: expected none or the same for SGC {sgc} KRN {krn}, got another")
    return check_value


async def issue_api_key(
    conn: AsyncConnection,
    role: Role,
    *,
    vendor_id: int | None = None,
    account_id: int | None = None,
    master: bytes | None = None,
    scopes: Collection[Scope] | None = None,
    terminal: str | None = None,
    label: str = "",
    by: str = "",
    replaces: str | None = None,
    area: str | None = None,
) -> NewApiKey:
    """Make an interface key: a vendor's, of the utility's people, a reader's of an area, a consumer's of an account.

    With the installation's master key its secret is kept sealed, too, so that its requests can be signed.
    Raises: BadApiKeyOwner when role and owner do not go together; BadScope; SealBroken for another master key.
    """
    owners = {
        "vendor": (role in VENDOR_ROLES, vendor_id),
        "account": (role is Role.CONSUMER, account_id),
        "area": (role is Role.READER, area or None),
    }
    if any(owned != (owner is not None) for owned, owner in owners.values()):
        raise BadApiKeyOwner(
            f"{role.value} key: expected a vendor for a vendor's role, an account for role consumer, an area for role "
            f"reader, else none, got vendor {vendor_id}, account {account_id} and area {area!r}"
        )
    narrowed = None if scopes is None else sorted(scope.value for scope in narrow(role, scopes))
    new = NewApiKey(key_id=secrets.token_hex(_KEY_ID_BYTES), secret=secrets.token_urlsafe(_SECRET_BYTES))
    if master is not None:
        await require_master(conn, master)
    await add_key(
        conn,
        NewKey(
            key_id=new.key_id,
            sha256=digest_secret(new.secret),
            sealed=None if master is None else seal_api_secret(master, new.key_id, new.secret.encode()),
            role=role.value,
            scopes=narrowed,
            vendor_id=vendor_id,
            account_id=account_id,
            terminal=terminal,
            label=label,
            issued_by=by,
            replaces=replaces,
            area=area,
        ),
    )
    return new


async def revoke_api_key(conn: AsyncConnection, key_id: str) -> bool:
    """Take an interface key back at once; False when there is none of this id."""
    return await end_api_key(conn, key_id)


def split_api_key(header: str) -> tuple[str, str] | None:
    """Cut the header `X-Api-Key` into key id and secret; None when it is not of the form."""
    match = _HEADER.fullmatch(header)
    return None if match is None else (match["key_id"], match["secret"])


def digest_secret(secret: str) -> bytes:
    """Return what is stored in place of a secret."""
    return hashlib.sha256(secret.encode()).digest()
