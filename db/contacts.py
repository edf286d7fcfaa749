"""Contacts of consumers: where they are reached, the codes that prove it, who cannot be reached, and what they send.

Stage: inside the transactions of the contact desk and of administration. Values in, rows out and back; what is allowed
is decided by the caller. Times are arguments. Never a code in the clear.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from billing.calendar import from_ms
from billing.notices import Channel, Language
from db.named import sql

# A range of 5,000 accounts is read in some 30 ms.
ACCOUNTS_PER_RANGE = 5_000
# A number that stands for more accounts than this is a shop's, not a family's; one more says that there are several.
ACCOUNTS_OF_NUMBER_MAX = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactRow:
    """Where a consumer is reached, in use."""

    id: int
    channel: str
    address: str
    language: str
    priority: int
    verified_at: datetime | None
    failed_at: datetime | None
    stopped_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewContact:
    """Where a consumer says to be reached; the address in its stored form (`billing.notices.addresses`)."""

    channel: Channel
    address: str
    language: Language
    priority: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OtpRow:
    """The code that counts for a contact, as a digest."""

    id: int
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)
    tries: int
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OtpCounts:
    """Codes asked for: to an address within an hour and a day, and for a consumer's contacts within a day."""

    address_hour: int
    address_day: int
    consumer_day: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """An account whose consumer no message can reach, and how many contacts there are of which kind."""

    id: int
    number: str
    consumer: str
    area: str
    contacts: int
    verified: int
    failing: int
    stopped: int

    @property
    def reason(self) -> str:
        """Return why: `no_contact`, `unverified`, `stopped`, or `failing`."""
        if not self.contacts:
            return "no_contact"
        if not self.verified:
            return "unverified"
        return "stopped" if self.stopped == self.verified else "failing"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountOfNumber:
    """An account that a telephone number is a contact of."""

    contact_id: int
    language: str
    verified: bool
    account_id: int
    number: str


async def list_contacts(conn: AsyncConnection, account_id: int) -> list[ContactRow]:
    """Read where the consumer of an account is reached."""
    return await _contact_rows(conn, "contacts_of_consumer", account_id=account_id)


async def count_contacts(conn: AsyncConnection, account_id: int) -> int:
    """Count the contacts of an account's consumer."""
    cursor = await conn.execute(sql("count_contacts"), {"account_id": account_id})
    row = await cursor.fetchone()
    return row[0] if row else 0


async def put_contact(conn: AsyncConnection, account_id: int, contact: NewContact) -> ContactRow:
    """Add a contact to an account's consumer; one that is there gets this language and priority."""
    (row,) = await _contact_rows(
        conn,
        "put_contact",
        account_id=account_id,
        channel=contact.channel.value,
        address=contact.address,
        language=contact.language.value,
        priority=contact.priority,
    )
    return row


async def lock_contact(conn: AsyncConnection, account_id: int, contact_id: int) -> ContactRow | None:
    """Lock a contact of an account's consumer; None when it is not one."""
    rows = await _contact_rows(conn, "lock_contact", account_id=account_id, contact_id=contact_id)
    return rows[0] if rows else None


async def remove_contact(conn: AsyncConnection, account_id: int, contact_id: int, *, now_ms: int) -> bool:
    """Take a contact of an account's consumer out of use; False when it is not one."""
    parameters = {"account_id": account_id, "contact_id": contact_id, "now": from_ms(now_ms)}
    cursor = await conn.execute(sql("remove_contact"), parameters)
    return cursor.rowcount == 1


async def count_otps(
    conn: AsyncConnection, account_id: int, address: str, *, hour_ago_ms: int, day_ago_ms: int
) -> OtpCounts:
    """Count codes asked for; from here to the end of the transaction nobody else sends one to the address."""
    await conn.execute(sql("lock_address"), {"address": address})
    parameters = {
        "account_id": account_id,
        "address": address,
        "hour_ago": from_ms(hour_ago_ms),
        "day_ago": from_ms(day_ago_ms),
    }
    cursor = await conn.execute(sql("count_otps"), parameters)
    row = await cursor.fetchone()
    assert row is not None, "count_otps returns one row"
    return OtpCounts(address_hour=row[0], address_day=row[1], consumer_day=row[2])


async def add_otp(
    conn: AsyncConnection,
    contact: ContactRow,
    *,
    salt: bytes,
    digest: bytes,
    asked_by: str,
    now_ms: int,
    expires_ms: int,
) -> None:
    """Store the digest of a code; from now on it is the one that counts."""
    parameters = {
        "contact_id": contact.id,
        "address": contact.address,
        "salt": salt,
        "digest": digest,
        "asked_by": asked_by,
        "asked_at": from_ms(now_ms),
        "expires_at": from_ms(expires_ms),
    }
    await conn.execute(sql("add_otp"), parameters)


async def newest_otp(conn: AsyncConnection, contact_id: int) -> OtpRow | None:
    """Read the code that counts for a locked contact; None once it was used, or before the first."""
    async with conn.cursor(row_factory=class_row(OtpRow)) as cursor:
        await cursor.execute(sql("newest_otp"), {"contact_id": contact_id})
        return await cursor.fetchone()


async def count_try(conn: AsyncConnection, otp_id: int) -> int:
    """Count a wrong try; return how many there were."""
    cursor = await conn.execute(sql("otp_tried"), {"id": otp_id})
    row = await cursor.fetchone()
    assert row is not None, "otp_tried returns its row"
    return int(row[0])


async def verify_contact(
    conn: AsyncConnection, contact_id: int, *, otp_id: int, verified_by: str, now_ms: int
) -> ContactRow:
    """Note that a contact's code came back."""
    (row,) = await _contact_rows(
        conn,
        "contact_verified",
        contact_id=contact_id,
        otp_id=otp_id,
        verified_by=verified_by,
        now=from_ms(now_ms),
    )
    return row


async def unreachable_accounts(
    conn: AsyncConnection, *, accounts_per_range: int = ACCOUNTS_PER_RANGE
) -> AsyncIterator[tuple[int, list[Unreachable]]]:
    """Walk over all accounts in ranges; yield how many a range has and those that no message can reach."""
    after = 0
    while True:
        parameters = {"after": after, "most": accounts_per_range}
        cursor = await conn.execute(sql("last_account_of_range"), parameters)
        bounds = await cursor.fetchone()
        if bounds is None or bounds[0] is None:
            return
        async with conn.cursor(row_factory=class_row(Unreachable)) as rows:
            await rows.execute(sql("unreachable_accounts"), parameters)
            yield bounds[1], await rows.fetchall()
        after = bounds[0]


async def find_inbound(conn: AsyncConnection, message_id: str) -> tuple[bytes, str] | None:
    """Read digest and outcome of a message by its id, waiting for one that is under way; None for a new one."""
    await conn.execute(sql("lock_inbound"), {"message_id": message_id})
    cursor = await conn.execute(sql("inbound_by_id"), {"message_id": message_id})
    row = await cursor.fetchone()
    return None if row is None else (bytes(row[0]), row[1])


async def add_inbound(
    conn: AsyncConnection,
    *,
    message_id: str,
    digest: bytes,
    sender: str,
    command: str | None,
    outcome: str,
    account_id: int | None,
    notice_id: int | None,
    now_ms: int,
) -> None:
    """Store a message's id for ever, with what became of it."""
    parameters = {
        "message_id": message_id,
        "digest": digest,
        "sender": sender,
        "command": command,
        "outcome": outcome,
        "account_id": account_id,
        "notice_id": notice_id,
        "received_at": from_ms(now_ms),
    }
    await conn.execute(sql("add_inbound"), parameters)


async def count_inbound_answers(conn: AsyncConnection, sender: str, *, since_ms: int) -> int:
    """Count how many messages of a number were answered since an instant."""
    cursor = await conn.execute(sql("count_inbound_answers"), {"sender": sender, "since": from_ms(since_ms)})
    row = await cursor.fetchone()
    return row[0] if row else 0


async def accounts_of_number(conn: AsyncConnection, address: str) -> list[AccountOfNumber]:
    """Read the accounts that a number is a contact of, those first where it is proven."""
    async with conn.cursor(row_factory=class_row(AccountOfNumber)) as cursor:
        await cursor.execute(sql("accounts_of_number"), {"address": address, "most": ACCOUNTS_OF_NUMBER_MAX})
        return await cursor.fetchall()


async def stop_number(conn: AsyncConnection, address: str, *, stop: bool, now_ms: int) -> None:
    """Send no more messages to a number, or send them again."""
    await conn.execute(sql("stop_number"), {"address": address, "stop": stop, "now": from_ms(now_ms)})


async def last_token(conn: AsyncConnection, account_id: int) -> tuple[str, int, datetime] | None:
    """Read digits, amount and instant of the last recharge's token; None before the first."""
    cursor = await conn.execute(sql("last_token"), {"account_id": account_id})
    row = await cursor.fetchone()
    return None if row is None else (row[0], row[1], row[2])


async def _contact_rows(conn: AsyncConnection, query: str, **parameters: object) -> list[ContactRow]:
    async with conn.cursor(row_factory=class_row(ContactRow)) as cursor:
        await cursor.execute(sql(query), parameters)
        return await cursor.fetchall()
