"""Meters, accounts and vendors as an operator enters them.

Stage: administration. Each function writes whole things (a meter with its state; an account with consumer, usage
point, installation, first register segment and opening credit) and leaves what is there already as it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date, datetime

from psycopg import AsyncConnection
from psycopg.errors import ForeignKeyViolation

from billing.calendar import to_ms
from billing.journals import JournalKind
from billing.notices import Channel, Language
from billing.notices.addresses import stored_phone
from billing.supply import Mode
from db.errors import DatabaseError
from db.named import sql
from db.orders import PostingRules
from db.posting import lock_and_look, post_money, post_readings
from db.tariffs import tariff_by_id
from protocols.topics import shard_of

# What an STS meter takes of which nobody says more; as vending.engines.records has it.
USUAL_CAPABILITIES = (
    "clear_credit",
    "clear_tamper",
    "currency",
    "electricity",
    "power_limit",
    "unbalance_limit",
    "units",
)
_KEY_CHANGE_TOKENS = {7: 2, 11: 4}


class RegistryError(DatabaseError):
    """What an operator entered does not fit what is there."""

    code = "registry_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class StsIdentity:
    """Key record of an STS meter (IEC 62055-41); see vending.sts.identity for the rules of each field."""

    drn: str
    ea: int
    dkga: int
    sgc: str
    key_type: int
    krn: int
    tariff_index: str
    ken: int
    base_year: int
    tct: int = 2
    # The set that any meter of the cipher takes, where nobody says how many.
    key_change_tokens: int | None = None
    capabilities: tuple[str, ...] = USUAL_CAPABILITIES


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMeter:
    """A meter to register.

    Its register rolls over at `register_end_wh`; one that has `can_limit` limits the load where others cut it; one that
    has `can_read_again` sends stored readings again when ordered to. `interval_s` None is learnt from its readings.
    """

    serial: str
    make: str = ""
    model: str = ""
    rated_w: int
    register_end_wh: int
    custody: str = "licensee"
    can_limit: bool = False
    can_read_again: bool = True
    interval_s: int | None = None
    sts: StsIdentity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAccount:
    """An account to open at a meter that stands nowhere yet.

    Units: register in Wh at `opened_at`; money in minor units.
    """

    number: str
    consumer: str
    language: str = "en"
    phone: str | None = None
    email: str | None = None
    usage_point: str
    area: str = ""
    feeder: str = ""
    meter_serial: str
    opened_at: datetime
    register_wh: int
    mode: Mode = Mode.PREPAID
    postpaid_approval: str | None = None
    category: str = "DS"
    tariff_id: str
    sanctioned_load_w: int
    area_type: str = "urban"
    emergency_credit_minor: int = 0
    threshold_minor: int | None = None
    opening_credit_minor: int = 0


async def add_meter(conn: AsyncConnection, meter: NewMeter) -> bool:
    """Register a meter; return whether it is new."""
    identity = asdict(meter.sts) if meter.sts else dict.fromkeys(StsIdentity.__dataclass_fields__)
    if meter.sts:
        identity["capabilities"] = sorted(meter.sts.capabilities)
        if meter.sts.key_change_tokens is None:
            identity["key_change_tokens"] = _KEY_CHANGE_TOKENS.get(meter.sts.ea, 0)
    parameters = {
        "serial": meter.serial,
        "shard": shard_of(meter.serial),
        "make": meter.make,
        "model": meter.model,
        "rated_w": meter.rated_w,
        "register_end_wh": meter.register_end_wh,
        "custody": meter.custody,
        "can_limit": meter.can_limit,
        "can_read_again": meter.can_read_again,
        "interval_s": meter.interval_s,
        **identity,
    }
    cursor = await conn.execute(sql("add_meter"), parameters)
    return cursor.rowcount == 1


async def open_account(conn: AsyncConnection, account: NewAccount, *, rules: PostingRules, now_ms: int) -> int | None:
    """Open an account in one transaction; return its id, or None when its number is taken.

    Raises: RegistryError for an unknown or installed meter, or an unknown tariff.
    """
    async with conn.transaction():
        if await account_id_of(conn, account.number) is not None:
            return None
        meter_id, shard, own_meter = await _free_meter(conn, account)
        usage_point_id = await _insert(
            conn, "add_usage_point", code=account.usage_point, area=account.area, feeder=account.feeder
        )
        consumer_id = await _add_consumer(conn, account)
        place = {"meter_id": meter_id, "usage_point_id": usage_point_id, "from_at": account.opened_at}
        await conn.execute(sql("install_meter"), place)
        await conn.execute(sql("begin_segment"), {**place, "register_wh": account.register_wh})
        opened_on = rules.calendar.day_of(to_ms(account.opened_at))
        account_id = await _insert(
            conn,
            "add_account",
            number=account.number,
            consumer_id=consumer_id,
            usage_point_id=usage_point_id,
            shard=shard,
            mode=account.mode.value,
            postpaid_approval=account.postpaid_approval,
            opened_on=opened_on,
            emergency_credit_minor=account.emergency_credit_minor,
            threshold_minor=account.threshold_minor,
            from_at=account.opened_at,
        )
        await _assign_first(conn, account, account_id, opened_on, meter_rent=not own_meter)
        view = await lock_and_look(conn, account_id, rules)
        if account.opening_credit_minor:
            amount_minor = account.opening_credit_minor
            await post_money(conn, view, JournalKind.OPENING, amount_minor, rules=rules, now_ms=now_ms)
        else:
            # Without credit the first day's fixed charge is a debt already: alarm and order, not only at a reading.
            await post_readings(conn, view, late_since_ms=None, rules=rules, now_ms=now_ms)
        return account_id


async def account_id_of(conn: AsyncConnection, number: str) -> int | None:
    """Return the id of an account by its number."""
    cursor = await conn.execute(sql("find_account"), {"number": number})
    row = await cursor.fetchone()
    return None if row is None else int(row[0])


async def add_vendor(conn: AsyncConnection, name: str) -> int:
    """Register a vendor, or find the one of that name; return its id.

    Raises: RegistryError for the name of a seller of the utility's own.
    """
    cursor = await conn.execute(sql("register_vendor"), {"name": name})
    row = await cursor.fetchone()
    if row is None:
        raise RegistryError(f"vendor {name}: expected a name that the utility does not sell under itself")
    return int(row[0])


async def _assign_first(
    conn: AsyncConnection, account: NewAccount, account_id: int, opened_on: date, *, meter_rent: bool
) -> None:
    """Write what a new account is charged by."""
    assignment = {
        "account_id": account_id,
        "from_day": opened_on,
        "tariff_id": account.tariff_id,
        "category": account.category,
        "load_w": account.sanctioned_load_w,
        "area_type": account.area_type,
        "meter_rent": meter_rent,
    }
    try:
        await _insert(conn, "add_assignment", **assignment)
    except ForeignKeyViolation:
        raise RegistryError(f"account {account.number}: expected a known tariff, got {account.tariff_id!r}") from None
    tariff = await tariff_by_id(conn, account.tariff_id)
    if tariff.zones:
        await conn.execute(sql("begin_zones"), {"id": account_id, "zones": [0] * len(tariff.zones.names)})


async def _free_meter(conn: AsyncConnection, account: NewAccount) -> tuple[int, int, bool]:
    """Return id and shard of an account's meter, and whether it is the consumer's own."""
    cursor = await conn.execute(sql("find_meter"), {"serial": account.meter_serial})
    row = await cursor.fetchone()
    if row is None:
        raise RegistryError(
            f"account {account.number}: expected a registered meter, got serial {account.meter_serial!r}"
        )
    meter_id, shard, installed, custody = row
    if installed:
        raise RegistryError(
            f"account {account.number}: expected a meter that stands nowhere, got {account.meter_serial}"
        )
    return meter_id, shard, custody == "consumer"


async def _add_consumer(conn: AsyncConnection, account: NewAccount) -> int:
    consumer_id = await _insert(conn, "add_consumer", name=account.consumer, language=account.language)
    language = Language.of(account.language)
    phone = account.phone and stored_phone(account.phone)
    for channel, address in ((Channel.SMS, phone), (Channel.EMAIL, account.email)):
        if address:
            contact = {"consumer_id": consumer_id, "channel": channel, "address": address, "language": language}
            await conn.execute(sql("add_contact"), contact)
    return consumer_id


async def _insert(conn: AsyncConnection, query: str, **parameters: object) -> int:
    cursor = await conn.execute(sql(query), parameters)
    row = await cursor.fetchone()
    assert row is not None, f"{query} returns an id"
    return int(row[0])
