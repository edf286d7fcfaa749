"""Holds that keep supply on, and the exempt list, as rows.

Stage: behind the office's commands. Changes rows under the account's lock, in a transaction of its own, and tells the
shard's owner through the change feed, so that supply is decided again. Decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.errors import DatabaseError
from db.named import sql


class HoldRefused(DatabaseError):
    """A hold that cannot be asked for, approved or released so."""

    code = "hold_refused"


class ExemptionRefused(DatabaseError):
    """A change of the exempt list that changes nothing."""

    code = "exemption_refused"


class HoldState(StrEnum):
    """How far a hold has come."""

    ASKED = "asked"
    IN_FORCE = "in_force"
    ENDED = "ended"
    RELEASED = "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A hold on one account.

    Invariants: approved by another person than the one who asked; an account has at most one that is not released.
    """

    id: int
    account_id: int
    number: str
    reason: str
    asked_by: str
    asked_at: datetime
    until_at: datetime | None
    approved_by: str | None
    approved_at: datetime | None
    released_by: str | None
    released_at: datetime | None

    def state(self, now: datetime) -> HoldState:
        """Return how far the hold has come; only one in force keeps supply on."""
        if self.released_at is not None:
            return HoldState.RELEASED
        if self.until_at is not None and self.until_at <= now:
            return HoldState.ENDED
        return HoldState.ASKED if self.approved_at is None else HoldState.IN_FORCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemption:
    """An account on the exempt list, and who put it there."""

    account_id: int
    number: str
    reason: str
    set_by: str | None
    set_at: datetime | None


async def ask_hold(
    conn: AsyncConnection, account_id: int, *, reason: str, by: str, until: datetime | None, now: datetime
) -> int:
    """Ask for a hold on an account, without end or until an instant; return its id. It keeps nothing on by itself.

    Raises: HoldRefused for an end that is past, or an account that has a hold.
    """
    if until is not None and until <= now:
        raise HoldRefused(f"hold: expected an end later than {now.isoformat()}, got {until.isoformat()}")
    async with conn.transaction():
        await _lock(conn, account_id)
        await conn.execute(sql("end_past_hold"), {"account_id": account_id, "now": now})
        for hold in await list_holds(conn, account_id=account_id, most=1):
            if hold.released_at is None:
                raise HoldRefused(
                    f"account {hold.number}: expected one without a hold, got hold {hold.id}, {hold.state(now)}"
                )
        parameters = {"account_id": account_id, "reason": reason, "asked_by": by, "asked_at": now, "until_at": until}
        cursor = await conn.execute(sql("add_hold"), parameters)
        row = await cursor.fetchone()
        assert row is not None, "an insert returns its row"
        return int(row[0])


async def approve_hold(conn: AsyncConnection, hold_id: int, *, by: str, now: datetime) -> Hold:
    """Put a hold in force as a second person.

    Raises: HoldRefused for one that is not waiting, or for the person who asked.
    """
    async with conn.transaction():
        hold = await _locked_hold(conn, hold_id)
        if hold.state(now) is not HoldState.ASKED:
            raise HoldRefused(f"hold {hold_id}: expected one that waits for approval, got one {hold.state(now)}")
        if by.casefold() == hold.asked_by.casefold():
            raise HoldRefused(f"hold {hold_id}: expected another person than the one who asked, got {by}")
        await conn.execute(sql("approve_hold"), {"id": hold_id, "by": by, "now": now})
        await _touch(conn, hold.account_id)
    return await _require_hold(conn, hold_id)


async def release_hold(conn: AsyncConnection, hold_id: int, *, by: str, now: datetime) -> Hold:
    """End a hold, or give it up before its approval: one person is enough.

    Raises: HoldRefused for one that is released.
    """
    async with conn.transaction():
        hold = await _locked_hold(conn, hold_id)
        if hold.released_at is not None:
            raise HoldRefused(f"hold {hold_id}: expected one not released yet, got one released by {hold.released_by}")
        await conn.execute(sql("release_hold"), {"id": hold_id, "by": by, "now": now})
        await _touch(conn, hold.account_id)
    return await _require_hold(conn, hold_id)


async def list_holds(conn: AsyncConnection, *, account_id: int | None = None, most: int) -> list[Hold]:
    """Return the holds that are not released, or all that one account ever had; newest first."""
    query = "open_holds" if account_id is None else "holds_of"
    async with conn.cursor(row_factory=class_row(Hold)) as cursor:
        await cursor.execute(sql(query), {"account_id": account_id, "most": most})
        return await cursor.fetchall()


async def any_hold_ended(conn: AsyncConnection, *, since: datetime, until: datetime) -> bool:
    """Tell whether a hold in force has come to its end between two instants: after one, at the latest at the other."""
    cursor = await conn.execute(sql("any_hold_ended"), {"since": since, "until": until})
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def set_exemption(conn: AsyncConnection, account_id: int, *, reason: str, by: str, now: datetime) -> None:
    """Put an account on the exempt list, or give another reason for its being there.

    Raises: ExemptionRefused where that changes nothing.
    """
    await _change_exemption(conn, account_id, exempt_reason=reason, reason=reason, by=by, now=now)


async def clear_exemption(conn: AsyncConnection, account_id: int, *, reason: str, by: str, now: datetime) -> None:
    """Take an account off the exempt list.

    Raises: ExemptionRefused for one that is not on it.
    """
    await _change_exemption(conn, account_id, exempt_reason=None, reason=reason, by=by, now=now)


async def list_exemptions(conn: AsyncConnection, *, after: int = 0, most: int) -> list[Exemption]:
    """Return the exempt list in the order of account ids from one id on."""
    async with conn.cursor(row_factory=class_row(Exemption)) as cursor:
        await cursor.execute(sql("exemptions"), {"after": after, "most": most})
        return await cursor.fetchall()


async def _change_exemption(
    conn: AsyncConnection, account_id: int, *, exempt_reason: str | None, reason: str, by: str, now: datetime
) -> None:
    async with conn.transaction():
        await _lock(conn, account_id)
        parameters = {"account_id": account_id, "exempt_reason": exempt_reason}
        if not await _change(conn, "change_exemption", parameters):
            got = "one that is not" if exempt_reason is None else "one that is, for this reason"
            wanted = "on the exempt list" if exempt_reason is None else "not on the exempt list"
            raise ExemptionRefused(f"account id {account_id}: expected one {wanted}, got {got}")
        change = {"account_id": account_id, "exempt": exempt_reason is not None, "reason": reason}
        await conn.execute(sql("add_exemption_change"), {**change, "changed_by": by, "changed_at": now})


async def _locked_hold(conn: AsyncConnection, hold_id: int) -> Hold:
    """Lock a hold's account, then read the hold as it is now."""
    hold = await _require_hold(conn, hold_id)
    await _lock(conn, hold.account_id)
    return await _require_hold(conn, hold_id)


async def _require_hold(conn: AsyncConnection, hold_id: int) -> Hold:
    async with conn.cursor(row_factory=class_row(Hold)) as cursor:
        await cursor.execute(sql("hold_by_id"), {"id": hold_id})
        hold = await cursor.fetchone()
    if hold is None:
        raise HoldRefused(f"hold: expected a known number, got {hold_id}")
    return hold


async def _lock(conn: AsyncConnection, account_id: int) -> None:
    await conn.execute(sql("lock_accounts"), {"ids": [account_id]})


async def _touch(conn: AsyncConnection, account_id: int) -> None:
    await _change(conn, "touch_account", {"account_id": account_id})


async def _change(conn: AsyncConnection, query: str, parameters: Mapping[str, object]) -> bool:
    """Change an account's row and tell its shard's owner; return whether there was something to change."""
    cursor = await conn.execute(sql(query), parameters)
    row = await cursor.fetchone()
    if row is not None:
        feed = {"shard": row[0], "id": parameters["account_id"], "version": row[1]}
        await conn.execute(sql("feed_account"), feed)
    return row is not None
