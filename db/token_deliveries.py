"""Tokens at their meters: what meters say of them, which are delivered, and tokens that the head-end enters itself.

Stage: `note_entries` inside a batch's transaction, one statement each and only where a token was entered; the rest in
transactions of the dispatcher or of whoever pushes a token. The credit of a token is the account's from the moment it
was sold: what is written here moves no money.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from billing.calendar import from_ms
from db.errors import DatabaseError
from db.meter_records import token_accepted
from db.named import sql
from protocols.native import EntryResult, TokenEntered

_DELIVERED = (EntryResult.ACCEPTED.value, EntryResult.USED.value)


class TokenNotPushable(DatabaseError):
    """The token is none of a meter that is installed for billing."""

    code = "token_not_pushable"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCredit:
    """A meter whose copy of the balance a token has moved; `account_id` is None where it stands nowhere."""

    meter_id: int
    account_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pushed:
    meter_id: int
    account_id: int
    shard: int
    delivered: bool
    under_way: bool


async def note_entries(conn: AsyncConnection, entries: Iterable[tuple[int, TokenEntered]]) -> None:
    """Keep what meters say of tokens, each word once: deliveries, keys in force, copies of balances to be settled."""
    rows = list(entries)
    if not rows:
        return
    parameters = {
        "meter_ids": [meter_id for meter_id, _ in rows],
        "ats": [from_ms(entered.at_ms) for _, entered in rows],
        "last_digits": [entered.last_digits for _, entered in rows],
        "results": [entered.result.value for _, entered in rows],
        "tids": [entered.tid for _, entered in rows],
    }
    cursor = await conn.execute(sql("add_token_entries"), parameters)
    new: list[tuple[int, datetime, str, int | None]] = await cursor.fetchall()
    delivered = {
        token_id: (meter_id, result, at)
        for meter_id, at, result, token_id in reversed(new)
        if token_id is not None and result in _DELIVERED
    }
    await _deliver(conn, delivered)
    for meter_id, _, result, token_id in new:
        if token_id is not None and result == EntryResult.ACCEPTED.value:
            await token_accepted(conn, meter_id, token_id)
    await note_local_credits(conn, {meter_id for meter_id, _, result, _ in new if result == EntryResult.ACCEPTED.value})


async def note_local_credits(conn: AsyncConnection, meter_ids: Collection[int]) -> None:
    """Let meters be told their account's balance: a token has moved their copy of it."""
    if meter_ids:
        await conn.execute(sql("note_local_credits"), {"meter_ids": sorted(meter_ids)})


async def take_local_credits(conn: AsyncConnection, shards: Sequence[int], most: int) -> list[LocalCredit]:
    """Take meters that are to be told their account's balance; they come again if the transaction fails."""
    async with conn.cursor(row_factory=class_row(LocalCredit)) as cursor:
        await cursor.execute(sql("take_local_credits"), {"shards": list(shards), "most": most})
        return await cursor.fetchall()


async def push_token(conn: AsyncConnection, token_id: int) -> int | None:
    """Order a token to be entered at its meter by the head-end; return the order's id.

    None where the meter has it already, or is being told. Raises: TokenNotPushable.
    """
    async with conn.transaction():
        async with conn.cursor(row_factory=class_row(_Pushed)) as cursor:
            await cursor.execute(sql("token_to_push"), {"token_id": token_id})
            found = await cursor.fetchone()
        if found is None:
            raise TokenNotPushable(f"token id {token_id}: expected one of an installed meter, got another")
        if found.delivered or found.under_way:
            return None
        parameters = {
            "meter_id": found.meter_id,
            "account_id": found.account_id,
            "shard": found.shard,
            "token_id": token_id,
        }
        made = await (await conn.execute(sql("order_token"), parameters)).fetchone()
        await conn.execute(sql("wake_dispatch"), {"shard": found.shard})
    assert made is not None, f"meter id {found.meter_id} has a state"
    return int(made[0])


async def digits_of_tokens(conn: AsyncConnection, token_ids: Collection[int]) -> dict[int, str]:
    """Read the digits of tokens that are about to leave for their meters."""
    if not token_ids:
        return {}
    cursor = await conn.execute(sql("digits_of_tokens"), {"token_ids": list(token_ids)})
    return dict(await cursor.fetchall())


async def _deliver(conn: AsyncConnection, delivered: Mapping[int, tuple[int, str, datetime]]) -> None:
    if not delivered:
        return
    # In ascending order, so that two batches that tell of the same tokens cannot wait for each other.
    ordered = sorted(delivered.items())
    parameters = {
        "token_ids": [token_id for token_id, _ in ordered],
        "meter_ids": [meter_id for _, (meter_id, _, _) in ordered],
        "results": [result for _, (_, result, _) in ordered],
        "ats": [at for _, (_, _, at) in ordered],
    }
    await conn.execute(sql("add_token_deliveries"), parameters)
    await conn.execute(sql("confirm_delivered"), {"token_ids": parameters["token_ids"]})
