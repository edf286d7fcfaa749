"""Contacts and the codes that prove them: what is allowed, within one transaction each.

Stage: between the routes and the database. A code goes out as a notice to the very contact it is to prove; only its
digest is kept, and the notice forgets it once it is delivered. Never: a code in an answer or a log.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from psycopg import AsyncConnection

from billing.calendar import from_ms
from billing.notices import Channel, Language, Otp
from billing.notices.addresses import BadAddress, mask_address, read_address
from billing.notices.kinds import kind_rules
from db.contacts import (
    ContactRow,
    NewContact,
    OtpRow,
    add_otp,
    count_contacts,
    count_otps,
    count_try,
    list_contacts,
    lock_contact,
    newest_otp,
    put_contact,
    remove_contact,
    verify_contact,
)
from db.notices import write_answer
from db.vends import find_account
from vending.edges.auth import Caller, VendorCaller, require_account, require_account_or_vendor
from vending.edges.contact_errors import (
    AddressRefused,
    CodeExpired,
    CodeSpent,
    CodeWrong,
    ContactUnknown,
    NoCode,
    TooManyCodes,
    TooManyContacts,
)
from vending.edges.contact_models import ContactBody
from vending.edges.errors import AccountUnknown

# A family has some telephones.
CONTACTS_MAX = 10
# Six digits and five tries: a guess succeeds once in 200,000 codes. Six codes a day to one address are 30 guesses.
CODE_DIGITS = 6
CODE_TRIES_MAX = 5
CODES_PER_HOUR_MAX = 3
CODES_PER_DAY_MAX = 6
# Of all contacts of one consumer, so that no key of his can send codes to any number of strangers.
CODES_PER_CONSUMER_MAX = 12
_SALT_BYTES = 16
_MS = 1_000
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000


async def read_contacts(conn: AsyncConnection, caller: Caller, number: str) -> dict[str, object]:
    """Read where an account's consumer is reached; addresses are masked for vendors.

    Raises: AccountUnknown, NotAllowed.
    """
    account_id = await _account_for(conn, caller, number)
    contacts = await list_contacts(conn, account_id)
    return {"account_number": number, "contacts": [contact_to_api(contact, caller) for contact in contacts]}


async def add_contact(conn: AsyncConnection, caller: Caller, number: str, body: ContactBody) -> dict[str, object]:
    """Add a contact; one that is there gets the language and priority, and stays proven.

    Raises: AccountUnknown, NotAllowed, AddressRefused, TooManyContacts.
    """
    account_id = await _account_for(conn, caller, number)
    channel = Channel(body.channel)
    try:
        address = read_address(channel, body.address)
    except BadAddress as error:
        raise AddressRefused(str(error)) from None
    new = NewContact(channel=channel, address=address, language=Language(body.language), priority=body.priority)
    async with conn.transaction():
        contact = await put_contact(conn, account_id, new)
        # Counted after it was added: an address that is there is no further one.
        if await count_contacts(conn, account_id) > CONTACTS_MAX:
            raise TooManyContacts(f"contacts of account {number}: expected at most {CONTACTS_MAX}, got one more")
    return contact_to_api(contact, caller)


async def drop_contact(
    conn: AsyncConnection, caller: Caller, number: str, contact_id: int, *, now_ms: int
) -> dict[str, object]:
    """Take a contact out of use; return those that are left.

    Raises: AccountUnknown, NotAllowed (also for vendors), ContactUnknown.
    """
    account_id = await find_account(conn, number)
    require_account(caller, account_id)
    if account_id is None:
        raise AccountUnknown(f"account {number}: expected a known number")
    if not await remove_contact(conn, account_id, contact_id, now_ms=now_ms):
        raise _unknown(number, contact_id)
    return await read_contacts(conn, caller, number)


async def send_code(
    conn: AsyncConnection, caller: Caller, number: str, contact_id: int, *, now_ms: int
) -> dict[str, object]:
    """Send a new code to a contact; it takes the place of an earlier one.

    Raises: AccountUnknown, NotAllowed, ContactUnknown, TooManyCodes.
    """
    account_id = await _account_for(conn, caller, number)
    async with conn.transaction():
        contact = await lock_contact(conn, account_id, contact_id)
        if contact is None:
            raise _unknown(number, contact_id)
        await _require_few_codes(conn, account_id, contact, now_ms)
        code = f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}d}"
        facts = Otp(code=code, expires_ms=now_ms + kind_rules()[Otp.kind].life_s * _MS)
        salt = secrets.token_bytes(_SALT_BYTES)
        await add_otp(
            conn,
            contact,
            salt=salt,
            digest=_digest(salt, code),
            asked_by=caller.key_id,
            now_ms=now_ms,
            expires_ms=facts.expires_ms,
        )
        await write_answer(conn, account_id, facts, contact_id=contact.id)
    return {"contact_id": contact.id, "expires_at": _iso(facts.expires_ms)}


async def verify_code(
    conn: AsyncConnection, caller: Caller, number: str, contact_id: int, code: str, *, now_ms: int
) -> dict[str, object]:
    """Take a code back; the right one proves the contact, a wrong one is counted.

    Raises: AccountUnknown, NotAllowed, ContactUnknown, NoCode, CodeExpired, CodeSpent, CodeWrong.
    """
    account_id = await _account_for(conn, caller, number)
    async with conn.transaction():
        contact = await lock_contact(conn, account_id, contact_id)
        if contact is None:
            raise _unknown(number, contact_id)
        otp = _require_usable(await newest_otp(conn, contact.id), contact.id, now_ms)
        right = hmac.compare_digest(bytes(otp.digest), _digest(bytes(otp.salt), code.strip()))
        if right:
            contact = await verify_contact(conn, contact.id, otp_id=otp.id, verified_by=caller.key_id, now_ms=now_ms)
        else:
            # Committed: raising inside would take the count back.
            tries = await count_try(conn, otp.id)
    if not right:
        raise CodeWrong(
            f"code of contact {contact_id}: expected the one sent, got another; {CODE_TRIES_MAX - tries} tries left"
        )
    return contact_to_api(contact, caller)


def contact_to_api(contact: ContactRow, caller: Caller) -> dict[str, object]:
    """Return a contact; its address masked for vendors, who have no need to know it."""
    address = mask_address(contact.address) if isinstance(caller, VendorCaller) else contact.address
    instants = {"verified_at": contact.verified_at, "failed_at": contact.failed_at, "stopped_at": contact.stopped_at}
    return {
        "id": contact.id,
        "channel": contact.channel,
        "address": address,
        "language": contact.language,
        "priority": contact.priority,
        **{name: None if at is None else at.isoformat(timespec="milliseconds") for name, at in instants.items()},
    }


async def _account_for(conn: AsyncConnection, caller: Caller, number: str) -> int:
    account_id = await find_account(conn, number)
    require_account_or_vendor(caller, account_id)
    if account_id is None:
        raise AccountUnknown(f"account {number}: expected a known number")
    return account_id


async def _require_few_codes(conn: AsyncConnection, account_id: int, contact: ContactRow, now_ms: int) -> None:
    counts = await count_otps(
        conn, account_id, contact.address, hour_ago_ms=now_ms - _HOUR_MS, day_ago_ms=now_ms - _DAY_MS
    )
    if (
        counts.address_hour >= CODES_PER_HOUR_MAX
        or counts.address_day >= CODES_PER_DAY_MAX
        or counts.consumer_day >= CODES_PER_CONSUMER_MAX
    ):
        raise TooManyCodes(
            f"codes of contact {contact.id}: expected at most {CODES_PER_HOUR_MAX} an hour and {CODES_PER_DAY_MAX} a"
            f" day to an address, {CODES_PER_CONSUMER_MAX} a day for a consumer, got one more; try again later"
        )


def _require_usable(otp: OtpRow | None, contact_id: int, now_ms: int) -> OtpRow:
    if otp is None:
        raise NoCode(f"contact {contact_id}: expected a code that was sent and not used, got none; ask for one")
    if otp.tries >= CODE_TRIES_MAX:
        raise CodeSpent(
            f"code of contact {contact_id}: expected fewer than {CODE_TRIES_MAX} wrong tries; ask for another"
        )
    if from_ms(now_ms) >= otp.expires_at:
        raise CodeExpired(f"code of contact {contact_id}: expected it in time, got it too late; ask for another")
    return otp


def _unknown(number: str, contact_id: int) -> ContactUnknown:
    return ContactUnknown(f"contact: expected one of account {number}, got id {contact_id}")


def _digest(salt: bytes, code: str) -> bytes:
    return hashlib.sha256(salt + code.encode()).digest()


def _iso(at_ms: int) -> str:
    return from_ms(at_ms).isoformat(timespec="milliseconds")
