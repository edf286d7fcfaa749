"""Vending keys brought in by two people, each with a component of his own, and taken out again.

Stage: administration. The first component waits sealed in the database for the second, for a day at most; the key is
the exclusive or of both. Whoever enters one sees its check value; the key's own must be confirmed before it is stored.
Everything is recorded with its people and check values. Never: a key or component in an error, an event or a log.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from psycopg import AsyncConnection

from db.keys import (
    KeyEvent,
    KeyLoad,
    add_key_event,
    add_load,
    count_meters_under_key,
    drop_key,
    end_load,
    find_load,
    list_loads,
    lock_key,
)
from vending.edges.keys import add_vending_key, require_master
from vending.key_custody import (
    dkga_of_key,
    join_components,
    open_component,
    seal_component,
    vending_key_check_value,
)
from vending.sts.identity import KeyDerivation
from vending.vends import VendingError

# The second person is there the same day or the next; longer, half a key should not lie about.
LAPSES_AFTER = timedelta(hours=24)
# What ends a load that nobody ended.
NOBODY = "lapse of time"


class KeyLoadRefused(VendingError):
    """A key or component that may not be brought in, or taken out, in this way."""

    code: ClassVar[str] = "key_load_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedKey:
    """What a load would give, by check values: of the second component and of the key."""

    begun_by: str
    component_check_value: str
    key_check_value: str


async def begin_load(
    conn: AsyncConnection,
    master: bytes,
    *,
    sgc: str,
    krn: int,
    component: bytes,
    by: str,
    now: datetime,
    allow_triple_des: bool = False,
) -> str:
    """Keep the first component, sealed, for a day; return its check value.

    Raises: KeyLoadRefused where a load of this key waits already, or for DKGA03 unless allowed; SealBroken for another
        master key than that of the stored keys; InvalidKey, InvalidIdentity.
    """
    dkga = dkga_of_key(sgc, krn, component)
    if dkga is KeyDerivation.TRIPLE_DES and not allow_triple_des:
        raise KeyLoadRefused(f"key of SGC {sgc} KRN {krn}: expected one for DKGA02 or DKGA04, got one for DKGA03")
    await require_master(conn, master)
    sealed = seal_component(master, sgc, krn, component)
    check_value = vending_key_check_value(component)
    await erase_lapsed(conn, now=now)
    async with conn.transaction():
        await lock_key(conn, sgc, krn)
        waiting = await find_load(conn, sgc, krn)
        if waiting is not None:
            raise KeyLoadRefused(
                f"key of SGC {sgc} KRN {krn}: expected no load that waits, got one begun by {waiting.begun_by}"
            )
        await add_load(
            conn,
            sgc=sgc,
            krn=krn,
            dkga=int(dkga),
            component=sealed,
            check_value=check_value,
            by=by,
            now=now,
            lapses_at=now + LAPSES_AFTER,
        )
        await add_key_event(
            conn, KeyEvent(at=now, event="begun", sgc=sgc, krn=krn, dkga=int(dkga), check_value=check_value, by=by)
        )
    return check_value


async def look_at_load(
    conn: AsyncConnection, master: bytes, *, sgc: str, krn: int, component: bytes, by: str, now: datetime
) -> JoinedKey:
    """Tell which key a second component would give; changes nothing but what has lapsed.

    Raises: KeyLoadRefused where none waits, or for the person who began; InvalidKey, SealBroken.
    """
    await erase_lapsed(conn, now=now)
    load, key = await _joined(conn, master, sgc=sgc, krn=krn, component=component, by=by)
    return JoinedKey(
        begun_by=load.begun_by,
        component_check_value=vending_key_check_value(component),
        key_check_value=vending_key_check_value(key),
    )


async def complete_load(
    conn: AsyncConnection,
    master: bytes,
    *,
    sgc: str,
    krn: int,
    component: bytes,
    by: str,
    confirmed: str,
    now: datetime,
) -> str:
    """Store the key of both components, once its check value is confirmed; return that.

    Raises: KeyLoadRefused as `look_at_load` and for another check value; VendingKeyConflict where another key is
        stored. Both leave the first component waiting.
    """
    await erase_lapsed(conn, now=now)
    async with conn.transaction():
        await lock_key(conn, sgc, krn)
        load, key = await _joined(conn, master, sgc=sgc, krn=krn, component=component, by=by)
        check_value = vending_key_check_value(key)
        if confirmed.strip().upper() != check_value:
            raise KeyLoadRefused(
                f"key of SGC {sgc} KRN {krn}: expected its check value {check_value} to be confirmed, got another"
            )
        await add_vending_key(conn, master, sgc=sgc, krn=krn, key=key)
        await end_load(conn, load.id, "complete")
        await add_key_event(
            conn,
            KeyEvent(
                at=now,
                event="loaded",
                sgc=sgc,
                krn=krn,
                dkga=load.dkga,
                check_value=check_value,
                by=load.begun_by,
                beside=by,
            ),
        )
    return check_value


async def cancel_load(conn: AsyncConnection, *, sgc: str, krn: int, by: str, now: datetime) -> None:
    """Give a load up and erase its component; one person is enough.

    Raises: KeyLoadRefused where none waits.
    """
    async with conn.transaction():
        await lock_key(conn, sgc, krn)
        load = await find_load(conn, sgc, krn)
        if load is None:
            raise KeyLoadRefused(f"key of SGC {sgc} KRN {krn}: expected a load that waits, got none")
        await _end(conn, load, "cancelled", by=by, now=now)


async def erase_lapsed(conn: AsyncConnection, *, now: datetime) -> None:
    """Erase every component that has waited too long."""
    for seen in await list_loads(conn):
        if seen.lapses_at > now:
            continue
        async with conn.transaction():
            await lock_key(conn, seen.sgc, seen.krn)
            load = await find_load(conn, seen.sgc, seen.krn)
            if load is not None and load.id == seen.id:
                await _end(conn, load, "lapsed", by=NOBODY, now=now)


async def retire_key(
    conn: AsyncConnection, *, sgc: str, krn: int, check_value: str, by: str, reason: str, now: datetime
) -> None:
    """Take a vending key out of the installation; named by its check value, so that it is not another one.

    Raises: KeyLoadRefused while meters hold the key, since only tokens under it move them on, and where there is none.
    """
    async with conn.transaction():
        await lock_key(conn, sgc, krn)
        meters = await count_meters_under_key(conn, sgc, krn)
        if meters:
            raise KeyLoadRefused(f"key of SGC {sgc} KRN {krn}: expected no meter that holds it, got {meters}")
        value = check_value.strip().upper()
        dkga = await drop_key(conn, sgc=sgc, krn=krn, check_value=value)
        if dkga is None:
            raise KeyLoadRefused(f"key of SGC {sgc} KRN {krn}: expected one with this check value, got none")
        await add_key_event(
            conn,
            KeyEvent(at=now, event="retired", sgc=sgc, krn=krn, dkga=dkga, check_value=value, by=by, reason=reason),
        )


async def _joined(
    conn: AsyncConnection, master: bytes, *, sgc: str, krn: int, component: bytes, by: str
) -> tuple[KeyLoad, bytes]:
    whose = f"key of SGC {sgc} KRN {krn}"
    load = await find_load(conn, sgc, krn)
    if load is None:
        raise KeyLoadRefused(f"{whose}: expected a load that waits for its second component, got none")
    if _person(by) == _person(load.begun_by):
        raise KeyLoadRefused(f"{whose}: expected a second person, got {by} again")
    first = open_component(master, sgc, krn, load.component)
    return load, join_components(first, component, whose)


async def _end(conn: AsyncConnection, load: KeyLoad, state: str, *, by: str, now: datetime) -> None:
    await end_load(conn, load.id, state)
    await add_key_event(
        conn,
        KeyEvent(at=now, event=state, sgc=load.sgc, krn=load.krn, dkga=load.dkga, check_value=load.check_value, by=by),
    )


def _person(name: str) -> str:
    """Write a name in the one way in which two spellings of it agree."""
    return " ".join(unicodedata.normalize("NFKC", name).split()).casefold()
