"""Interface keys, limits and the audit trail as rows.

Stage: below the gate of the vending interface and the commands that give keys out. Values in, rows out and back; who
may do what is decided by the caller. Secrets are stored sealed; nothing here opens one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class CalledKey:
    """An interface key that somebody calls with, its vendor, and the limits in force of vendor and terminal.

    Units: amounts in minor units.
    """

    key_id: str
    sha256: bytes = field(repr=False)
    sealed: bytes | None = field(repr=False)
    role: str
    scopes: list[str] | None
    terminal: str | None
    certificate_sha256: bytes | None
    active: bool
    ends_at: datetime | None
    vendor_id: int | None
    vendor_name: str | None
    vendor_active: bool | None
    account_id: int | None
    area: str | None
    requests_per_s: int | None
    burst: int | None
    vends_per_day: int | None
    amount_per_day: int | None
    terminal_requests_per_s: int | None
    terminal_burst: int | None
    terminal_vends_per_day: int | None
    terminal_amount_per_day: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """An interface key to be stored; `sealed` is None for one that cannot sign."""

    key_id: str
    sha256: bytes = field(repr=False)
    sealed: bytes | None = field(repr=False)
    role: str
    scopes: list[str] | None
    vendor_id: int | None
    account_id: int | None
    terminal: str | None
    label: str
    issued_by: str
    replaces: str | None = None
    area: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedKey:
    """An interface key without its secret."""

    key_id: str
    role: str
    vendor: str | None
    account: str | None
    area: str | None
    terminal: str | None
    scopes: list[str] | None
    label: str
    issued_by: str
    created_at: datetime
    replaces: str | None
    ends_at: datetime | None
    active: bool
    can_sign: bool
    certificate_sha256: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedKey:
    """An interface key in force, locked for a change; `beside_old` while the one that it replaces is in force, too."""

    key_id: str
    role: str
    vendor_id: int | None
    account_id: int | None
    area: str | None
    terminal: str | None
    scopes: list[str] | None
    label: str
    ends_at: datetime | None
    beside_old: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLimit:
    """Limits of a vendor (terminal '') or of one of its terminals; None is no limit.

    Units: `amount_per_day` minor units.
    """

    vendor_id: int
    terminal: str
    requests_per_s: int | None
    burst: int | None
    vends_per_day: int | None
    amount_per_day: int | None
    set_by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedLimit:
    """Limits as they were set by somebody."""

    vendor: str
    terminal: str
    requests_per_s: int | None
    burst: int | None
    vends_per_day: int | None
    amount_per_day: int | None
    set_at: datetime
    set_by: str
    reason: str
    in_force: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DayLimit:
    """What may be sold on a local day: by a vendor (terminal '') or at one of its terminals; None is no limit."""

    terminal: str
    vends_max: int | None
    amount_max: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAct:
    """An act for the audit trail."""

    actor: str
    role: str
    key_id: str | None
    vendor_id: int | None
    terminal: str | None
    operator: str | None
    act: str
    subject: str
    reference: str
    outcome: str
    status: int | None
    request_digest: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailQuestion:
    """Which acts to read: those that fit everything that is given; `act` is how it begins."""

    key_id: str | None = None
    actor: str | None = None
    act: str | None = None
    subject: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before_id: int | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailRow:
    """An act as it stands in the audit trail."""

    id: int
    at: datetime
    actor: str
    role: str
    key_id: str | None
    terminal: str | None
    operator: str | None
    act: str
    subject: str
    reference: str
    outcome: str
    status: int | None
    request_digest: bytes | None


async def access_version(conn: AsyncConnection) -> int:
    """Return how often keys, vendors and limits were changed."""
    row = await (await conn.execute(sql("api_access_version"))).fetchone()
    assert row is not None, "api_access_version has one row"
    return int(row[0])


async def read_called_keys(
    conn: AsyncConnection, *, key_ids: Sequence[str], certificates: Sequence[bytes]
) -> list[CalledKey]:
    """Read interface keys by id or certificate; those that are there, whether in force or not."""
    parameters = {"key_ids": list(key_ids), "certificates": list(certificates)}
    async with conn.cursor(row_factory=class_row(CalledKey)) as cursor:
        await cursor.execute(sql("api_keys_called"), parameters)
        return await cursor.fetchall()


async def add_key(conn: AsyncConnection, key: NewKey) -> None:
    """Store an interface key."""
    await conn.execute(sql("add_signing_key"), asdict(key))


async def newest_sealed_key(conn: AsyncConnection) -> tuple[str, bytes] | None:
    """Read id and sealed secret of the newest interface key that can sign."""
    row = await (await conn.execute(sql("newest_sealed_key"))).fetchone()
    return None if row is None else (str(row[0]), bytes(row[1]))


async def list_keys(
    conn: AsyncConnection, *, vendor: str | None, role: str | None, now: datetime, limit: int
) -> list[ListedKey]:
    """Read interface keys without their secrets, the newest first."""
    async with conn.cursor(row_factory=class_row(ListedKey)) as cursor:
        await cursor.execute(sql("api_keys_listed"), {"vendor": vendor, "role": role, "now": now, "limit": limit})
        return await cursor.fetchall()


async def lock_key(conn: AsyncConnection, key_id: str, *, now: datetime) -> LockedKey | None:
    """Lock an interface key in force; None when there is none of this id."""
    async with conn.cursor(row_factory=class_row(LockedKey)) as cursor:
        await cursor.execute(sql("lock_api_key"), {"key_id": key_id, "now": now})
        return await cursor.fetchone()


async def retire_key(conn: AsyncConnection, key_id: str, *, ends_at: datetime) -> None:
    """Let an interface key be good until an instant."""
    await conn.execute(sql("retire_api_key"), {"key_id": key_id, "ends_at": ends_at})


async def bind_certificate(conn: AsyncConnection, key_id: str, certificate_sha256: bytes | None) -> None:
    """Let a client certificate call as an interface key, or none."""
    await conn.execute(sql("bind_certificate"), {"key_id": key_id, "certificate": certificate_sha256})


async def take_nonce(conn: AsyncConnection, key_id: str, nonce: str, *, now: datetime) -> bool:
    """Remember a signed request's number; False when it was used before."""
    cursor = await conn.execute(sql("take_nonce"), {"key_id": key_id, "nonce": nonce, "now": now})
    return cursor.rowcount == 1


async def drop_nonces(conn: AsyncConnection, *, before: datetime) -> int:
    """Forget numbers of requests that came before an instant; return how many."""
    cursor = await conn.execute(sql("drop_nonces"), {"before": before})
    return cursor.rowcount


async def find_vendor(conn: AsyncConnection, name: str) -> int | None:
    """Return the id of a vendor by its name."""
    cursor = await conn.execute(sql("vendor_by_name"), {"name": name})
    row = await cursor.fetchone()
    return None if row is None else int(row[0])


async def add_limit(conn: AsyncConnection, limit: NewLimit, *, day: date, midnight: datetime) -> None:
    """Set limits from now on; for a whole vendor what it has sold since `midnight` counts for `day`."""
    await conn.execute(sql("add_api_limit"), asdict(limit))
    if not limit.terminal:
        begun = {"vendor_id": limit.vendor_id, "day": day, "from_at": midnight}
        await conn.execute(sql("begin_vend_day"), begun)


async def list_limits(conn: AsyncConnection, vendor: str | None) -> list[ListedLimit]:
    """Read limits of a vendor or of all, past ones too."""
    async with conn.cursor(row_factory=class_row(ListedLimit)) as cursor:
        await cursor.execute(sql("api_limits_listed"), {"vendor": vendor})
        return await cursor.fetchall()


async def take_vend_day(
    conn: AsyncConnection, vendor_id: int, limits: Sequence[DayLimit], *, day: date, amount_minor: int
) -> DayLimit | None:
    """Count a vend under limits of the day; return the one that it would pass, None when it passes none.

    The counts stay locked to the end of the transaction: call it last. After a limit the caller rolls back.
    """
    if not limits:
        return None
    parameters = {
        "vendor_id": vendor_id,
        "day": day,
        "amount_minor": amount_minor,
        "terminals": [each.terminal for each in limits],
        "vends_max": [each.vends_max for each in limits],
        "amounts_max": [each.amount_max for each in limits],
    }
    cursor = await conn.execute(sql("take_vend_day"), parameters)
    counted = {terminal for (terminal,) in await cursor.fetchall()}
    return next((each for each in limits if each.terminal not in counted), None)


async def record_act(conn: AsyncConnection, act: NewAct) -> None:
    """Write an act into the audit trail."""
    await conn.execute(
        sql("record_act"),
        {
            "actor": act.actor,
            "role": act.role,
            "key_id": act.key_id,
            "vendor_id": act.vendor_id,
            "terminal": act.terminal,
            "operator": act.operator,
            "act": act.act,
            "subject": act.subject,
            "reference": act.reference,
            "outcome": act.outcome,
            "status": act.status,
            "request_digest": act.request_digest,
        },
    )


async def read_trail(conn: AsyncConnection, question: TrailQuestion) -> list[TrailRow]:
    """Read acts that fit, the newest first."""
    async with conn.cursor(row_factory=class_row(TrailRow)) as cursor:
        await cursor.execute(sql("audit_trail_listed"), asdict(question))
        return await cursor.fetchall()


async def has_other_key(conn: AsyncConnection, key_id: str, *, now: datetime) -> bool:
    """Tell whether a key's vendor has another one in force, apart from those that it was rotated from or into."""
    row = await (await conn.execute(sql("has_other_key"), {"key_id": key_id, "now": now})).fetchone()
    assert row is not None, "has_other_key returns one row"
    return bool(row[0])
