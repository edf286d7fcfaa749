"""The soft security module of an installation: its master key file, and vending keys sealed in the database.

Stage: process start. The master key is a file that only its owner can read, made at the first start unless the
operator names one. A new installation gets one random vending key for its own supply group, so that tokens can be
made; a utility's own groups and keys are given to it by the STS Association.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from psycopg import AsyncConnection

from db.pool import APPLICATION_ROLE, connect
from prepaid.embedded.process import write_private
from prepaid.settings import Settings, SettingsError
from vending.edges.keys import add_vending_key, load_security_module
from vending.security import MASTER_KEY_BYTES, SoftSecurityModule, VendingKeyConflict
from vending.sts.keys import VENDING_KEY_BYTES

# Supply group and key revision of meters that are registered without a utility's own.
OWN_SGC = "999999"
OWN_KRN = 1


def master_key(settings: Settings) -> bytes:
    """Read the master key; make it if the installation has none and the operator named no file.

    Raises: SettingsError when a named file is missing or does not hold 64 hexadecimal digits.
    """
    path: Path = settings.master_key_file or settings.data_dir / "master.key"
    if not path.exists():
        if settings.master_key_file:
            raise SettingsError(
                f"PREPAID_MASTER_KEY_FILE: expected a file with 64 hexadecimal digits, got none: {path}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, secrets.token_hex(MASTER_KEY_BYTES) + "\n")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError:
        key = b""
    if len(key) != MASTER_KEY_BYTES:
        raise SettingsError(f"master key: expected 64 hexadecimal digits in {path}")
    return key


async def ensure_own_vending_key(conn: AsyncConnection, master: bytes, key: bytes | None = None) -> None:
    """Give a new installation a vending key for its own supply group; an existing one stays."""
    new = key or secrets.token_bytes(VENDING_KEY_BYTES)
    try:
        await add_vending_key(conn, master, sgc=OWN_SGC, krn=OWN_KRN, key=new)
    except VendingKeyConflict:
        if key is not None:
            raise


async def soft_security_module(settings: Settings, database_url: str) -> SoftSecurityModule:
    """Open the installation's soft security module."""
    master = master_key(settings)
    async with await connect(database_url, application="prepaid-keys", role=APPLICATION_ROLE) as conn:
        await ensure_own_vending_key(conn, master)
        return await load_security_module(conn, master)
