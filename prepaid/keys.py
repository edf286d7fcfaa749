"""What an installation mints with: its master key, the vending keys sealed under it, the limits of its module.

Stage: process start. The master key is a file that only its owner can read, made at the first start unless the
operator names one or gives the key in the environment. A new installation gets one random vending key for its own
supply group, so that tokens can be made; a utility's own groups and keys are given to it by the STS Association and
brought in by two people (`prepaid keys`).
"""

from __future__ import annotations

import getpass
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path

import structlog
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from billing.calendar import LocalCalendar
from db.keys import KeyEvent, add_key_event, list_keys, lock_key
from db.orders import wall_ms
from db.pool import APPLICATION_ROLE, connect
from prepaid.embedded.process import write_private
from prepaid.hardening import forbid_core_dumps
from prepaid.settings import Settings, SettingsError
from vending.edges.key_loads import erase_lapsed
from vending.edges.key_watch import KeyWatch
from vending.edges.keys import add_vending_key, load_security_module, require_master
from vending.edges.risk_limited import RiskLimitedModule, taking_from
from vending.edges.security_modules import choose_security_module
from vending.key_custody import MASTER_KEY_BYTES
from vending.risk_limits import RiskLimits
from vending.security import ModuleAbsent, SealBroken, SecurityModule, VendingKeyUnknown
from vending.soft_module import SoftSecurityModule
from vending.sts.errors import InvalidCipherTables
from vending.sts.identity import KeyDerivation
from vending.sts.keys import VENDING_KEY_BYTES
from vending.sts.sta import IEC_SAMPLE_TABLES, StaTables
from vending.sts.sta_tables import TABLES_CHARS_MAX, parse_sta_tables

_log = structlog.get_logger(__name__)

# Supply group and key revision of meters that are registered without a utility's own.
OWN_SGC = "999999"
OWN_KRN = 1
SOFT_MODULE = "soft"
# Who made a key that no person has seen.
INSTALLATION = "this installation"


def master_key(settings: Settings) -> bytes:
    """Read the master key; make it if the installation has none and the operator named no file.

    Whoever reads it leaves no core dump from then on.
    Raises: SettingsError when a named file is missing, or where there are no 64 hexadecimal digits.
    """
    forbid_core_dumps()
    if settings.master_key is not None:
        return _read_master(settings.master_key, "PREPAID_MASTER_KEY")
    path: Path = settings.master_key_file or settings.data_dir / "master.key"
    if not path.exists():
        if settings.master_key_file:
            raise SettingsError(
                f"PREPAID_MASTER_KEY_FILE: expected a file with 64 hexadecimal digits, got none: {path}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, secrets.token_hex(MASTER_KEY_BYTES) + "\n")
    try:
        text = path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        # Raised afresh below: the codec's own error carries what is in the file.
        text = ""
    return _read_master(text, str(path))


async def sealing_master(settings: Settings, conn: AsyncConnection) -> bytes:
    """Read the master key for a command that seals something under it.

    Raises: SettingsError where it is missing, or is not the one that the installation's keys are sealed under.
    """
    master = master_key(settings)
    try:
        await require_master(conn, master)
    except SealBroken as error:
        raise SettingsError(f"master key: {error}") from None
    return master


def login_name() -> str:
    """Return who gives a command that asks for no name, as the machine knows them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user may have no name.
        return "command line"


def _read_master(text: str, where: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != MASTER_KEY_BYTES:
        raise SettingsError(f"master key: expected 64 hexadecimal digits in {where}")
    return key


async def ensure_own_vending_key(conn: AsyncConnection, master: bytes, key: bytes | None = None) -> None:
    """Give a new installation a vending key for its own supply group; an existing one stays.

    Raises: VendingKeyConflict for a given key that is not the stored one.
    """
    async with conn.transaction():
        await lock_key(conn, OWN_SGC, OWN_KRN)
        known = {(each.sgc, each.krn) for each in await list_keys(conn)}
        is_new = (OWN_SGC, OWN_KRN) not in known
        if not is_new and key is None:
            return
        new = key or secrets.token_bytes(VENDING_KEY_BYTES)
        check_value = await add_vending_key(conn, master, sgc=OWN_SGC, krn=OWN_KRN, key=new)
        if is_new:
            event = KeyEvent(
                at=datetime.now(UTC),
                event="generated",
                sgc=OWN_SGC,
                krn=OWN_KRN,
                dkga=int(KeyDerivation.HMAC_SHA256),
                check_value=check_value,
                by=INSTALLATION,
            )
            await add_key_event(conn, event)


async def soft_security_module(settings: Settings, database_url: str) -> SoftSecurityModule:
    """Open the installation's soft security module; it sees keys that are loaded and retired later.

    Raises: SettingsError for unusable EA07 tables; SealBroken for another master key.
    """
    master = master_key(settings)
    tables = sta_tables(settings)
    if tables is not None and tables.is_iec_sample:
        _log.warning(
            "ea07_sample_tables", note="tokens for EA07 are made with the IEC sample tables: NOT FOR FIELD METERS"
        )
    async with await connect(database_url, application="prepaid-keys", role=APPLICATION_ROLE) as conn:
        await ensure_own_vending_key(conn, master)
        await erase_lapsed(conn, now=datetime.now(UTC))
        return await load_security_module(
            conn,
            master,
            sta_tables=tables,
            allow_triple_des=settings.allow_dkga03,
            changed_keys=KeyWatch(database_url, clock=lambda: time.monotonic_ns() // 1_000_000),
        )


def sta_tables(settings: Settings) -> StaTables | None:
    """Read the EA07 tables to mint with; the IEC samples only where they are asked for by name, no tables by default.

    Raises: SettingsError.
    """
    tables = IEC_SAMPLE_TABLES if settings.ea07_sample_tables else None
    if settings.ea07_tables is not None:
        try:
            with settings.ea07_tables.open(encoding="utf-8") as opened:
                tables = parse_sta_tables(opened.read(TABLES_CHARS_MAX + 1))
        except (OSError, UnicodeDecodeError):
            raise SettingsError(f"PREPAID_EA07_TABLES: expected a readable file, got {settings.ea07_tables}") from None
        except InvalidCipherTables as error:
            raise SettingsError(f"PREPAID_EA07_TABLES: {error}") from None
        if tables.is_iec_sample and not settings.ea07_sample_tables:
            raise SettingsError(
                "PREPAID_EA07_TABLES: expected an operator's tables, got the IEC samples, which no field meter has; "
                "PREPAID_EA07_SAMPLE_TABLES=true allows them for tests"
            )
    return tables


async def installation_module(settings: Settings, database_url: str) -> SecurityModule:
    """Open what the installation mints with, within its limits of the day: its hardware or its soft module.

    Raises: SettingsError for another master key than the keys were sealed under, and where the hardware module does
        not answer, or holds other keys than the settings say.
    """
    try:
        module = await choose_security_module(
            settings.module_setup, lambda: soft_security_module(settings, database_url)
        )
    except SealBroken as error:
        raise SettingsError(f"master key: {error}") from None
    except (ModuleAbsent, VendingKeyUnknown) as error:
        raise SettingsError(f"PREPAID_STS_MODULE: {error}") from error
    limits = risk_limits(settings)
    if limits.unlimited:
        return module
    name = module_name(settings)
    return RiskLimitedModule(
        module,
        name=name,
        limits=limits,
        calendar=LocalCalendar(settings.zone),
        clock=wall_ms,
        take=taking_from(database_url, name),
    )


async def module_beside(settings: Settings, conn: AsyncConnection) -> SecurityModule:
    """Open what the installation mints with for a command that has a connection already. Raises: SettingsError."""
    # What a connection tells of itself leaves the password out.
    return await installation_module(settings, make_conninfo(conn.info.dsn, password=conn.info.password))


def module_name(settings: Settings) -> str:
    """Return the name under which a module's day is counted."""
    return settings.sts_module or SOFT_MODULE


def risk_limits(settings: Settings) -> RiskLimits:
    """Return the limits of a module's day; a unit is ten tenths."""
    units = settings.mint_units_per_day_max
    return RiskLimits(
        tokens=settings.mint_tokens_per_day_max,
        minor=settings.mint_minor_per_day_max,
        tenths=None if units is None else 10 * units,
    )
