"""Vending keys come in by two people and go out by name; a running module sees both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg import sql as compose

from db.keys import list_key_events, list_keys, list_loads
from db.migrate import migrate
from db.pool import APPLICATION_ROLE, connect
from prepaid.keys import INSTALLATION, OWN_SGC, ensure_own_vending_key
from tests.integration.test_command_line import prepaid
from tests.integration.vending_shop import open_shop
from vending.edges.key_loads import (
    LAPSES_AFTER,
    NOBODY,
    KeyLoadRefused,
    begin_load,
    cancel_load,
    complete_load,
    erase_lapsed,
    look_at_load,
    retire_key,
)
from vending.edges.key_watch import LOOK_EVERY_MS, KeyWatch
from vending.edges.keys import load_security_module
from vending.key_custody import key_check_value, vending_key_check_value
from vending.security import SealBroken, VendingKeyConflict, VendingKeyUnknown
from vending.sts.errors import InvalidKey

pytestmark = pytest.mark.db

MASTER = bytes(range(32))
SGC = "600001"
NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
FIRST = bytes.fromhex("00112233445566778899aabbccddeeff01234567")
SECOND = bytes.fromhex("5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a")
KEY = bytes(a ^ b for a, b in zip(FIRST, SECOND, strict=True))
CHECK_VALUE = key_check_value(KEY)

Story = Callable[[AsyncConnection], Awaitable[None]]


def told(database_url: str, story: Story) -> None:
    """Tell a story under the rights of a process, on a migrated database."""

    async def run() -> None:
        async with await connect(database_url, application="test") as conn:
            await migrate(conn)
        async with await connect(database_url, application="test", role=APPLICATION_ROLE) as conn:
            await story(conn)

    asyncio.run(run())


async def begin(conn: AsyncConnection, by: str = "Asha Rani", component: bytes = FIRST, krn: int = 1) -> str:
    """Enter the first component."""
    return await begin_load(conn, MASTER, sgc=SGC, krn=krn, component=component, by=by, now=NOW)


async def complete(
    conn: AsyncConnection,
    by: str = "Balbir Singh",
    *,
    component: bytes = SECOND,
    confirmed: str = CHECK_VALUE,
    now: datetime = NOW,
) -> str:
    """Enter the second component."""
    return await complete_load(conn, MASTER, sgc=SGC, krn=1, component=component, by=by, confirmed=confirmed, now=now)


def test_key_of_two_people_is_stored_and_recorded(database_url: str) -> None:
    """The key is the exclusive or of two components; people and check values are kept, components are erased."""

    async def story(conn: AsyncConnection) -> None:
        assert await begin(conn) == key_check_value(FIRST)
        (waiting,) = await list_loads(conn)
        assert FIRST not in waiting.component
        seen = await look_at_load(conn, MASTER, sgc=SGC, krn=1, component=SECOND, by="Balbir Singh", now=NOW)
        assert (seen.component_check_value, seen.key_check_value) == (key_check_value(SECOND), CHECK_VALUE)
        assert await list_keys(conn) == []
        assert await complete(conn, confirmed=f" {CHECK_VALUE.lower()} ") == CHECK_VALUE
        (key,) = await list_keys(conn)
        assert (key.sgc, key.krn, key.dkga, key.check_value) == (SGC, 1, 4, CHECK_VALUE)
        assert (key.loaded_at, key.loaded_by, key.loaded_beside) == (NOW, "Asha Rani", "Balbir Singh")
        module = await load_security_module(conn, MASTER)
        assert await module.key_check_value(sgc=SGC, krn=1) == CHECK_VALUE
        assert await list_loads(conn) == []
        loaded, begun = await list_key_events(conn, 10)
        assert (begun.event, begun.by, begun.check_value) == ("begun", "Asha Rani", key_check_value(FIRST))
        assert (loaded.event, loaded.by, loaded.beside) == ("loaded", "Asha Rani", "Balbir Singh")
        left = await (await conn.execute("select count(*) from key_loads where component is not null")).fetchone()
        assert left == (0,)

    told(database_url, story)


def test_one_person_never_loads_a_key_alone(database_url: str) -> None:
    """The same name is one person however it is written."""

    async def story(conn: AsyncConnection) -> None:
        await begin(conn, by="Asha Rani")
        for name in ("Asha Rani", "asha  rani", " ASHA RANI ", "\uff21sha Rani"):
            with pytest.raises(KeyLoadRefused, match="second person"):
                await complete(conn, by=name)
        assert await list_keys(conn) == []
        assert len(await list_loads(conn)) == 1

    told(database_url, story)


def test_load_that_does_not_fit_leaves_the_first_component_waiting(database_url: str) -> None:
    """A wrong check value, the same component, one of another length: refused, and it can be tried again."""

    async def story(conn: AsyncConnection) -> None:
        with pytest.raises(KeyLoadRefused, match="got none"):
            await complete(conn)
        await begin(conn)
        with pytest.raises(KeyLoadRefused, match="begun by Asha Rani"):
            await begin(conn, by="Charan Das")
        with pytest.raises(KeyLoadRefused, match="to be confirmed"):
            await complete(conn, confirmed="000000")
        for component in (FIRST, SECOND[:8]):
            with pytest.raises(InvalidKey):
                await complete(conn, component=component)
        wrong_master = bytes(32)
        with pytest.raises(SealBroken):
            await look_at_load(conn, wrong_master, sgc=SGC, krn=1, component=SECOND, by="Balbir Singh", now=NOW)
        assert await complete(conn) == CHECK_VALUE

    told(database_url, story)


def test_other_key_under_a_name_that_is_taken_is_refused_and_the_same_is_not(database_url: str) -> None:
    """A revision has one key for ever; bringing it in again changes nothing."""

    async def story(conn: AsyncConnection) -> None:
        await begin(conn)
        await complete(conn)
        await begin(conn, by="Charan Das")
        await complete(conn, by="Deepa Kaur")
        await begin(conn)
        other = bytes(reversed(SECOND[:-1])) + b"\x01"
        joined = key_check_value(bytes(a ^ b for a, b in zip(FIRST, other, strict=True)))
        with pytest.raises(VendingKeyConflict):
            await complete(conn, component=other, confirmed=joined)
        await cancel_load(conn, sgc=SGC, krn=1, by="Charan Das", now=NOW)
        with pytest.raises(KeyLoadRefused):
            await cancel_load(conn, sgc=SGC, krn=1, by="Charan Das", now=NOW)
        assert [each.check_value for each in await list_keys(conn)] == [CHECK_VALUE]

    told(database_url, story)


def test_nothing_is_sealed_under_another_master_key(database_url: str) -> None:
    """A start or a load with the wrong master key fails before it writes: keys under two would stop every start."""

    async def story(conn: AsyncConnection) -> None:
        await begin(conn)
        await complete(conn)
        strange = bytes(32)
        with pytest.raises(SealBroken):
            await begin_load(conn, strange, sgc=SGC, krn=2, component=FIRST, by="Asha Rani", now=NOW)
        with pytest.raises(SealBroken):
            await ensure_own_vending_key(conn, strange)
        assert len(await list_keys(conn)) == 1
        assert await list_loads(conn) == []
        await ensure_own_vending_key(conn, MASTER)
        await ensure_own_vending_key(conn, MASTER)
        assert [(each.sgc, each.loaded_by) for each in await list_keys(conn)] == [
            (SGC, "Asha Rani"),
            (OWN_SGC, INSTALLATION),
        ]

    told(database_url, story)


def test_component_lapses_after_a_day_and_is_erased(database_url: str) -> None:
    """Half a key does not lie about: from the lapse on it is gone, and the load begins anew."""

    async def story(conn: AsyncConnection) -> None:
        await begin(conn)
        await erase_lapsed(conn, now=NOW + LAPSES_AFTER - timedelta(seconds=1))
        assert len(await list_loads(conn)) == 1
        with pytest.raises(KeyLoadRefused, match="got none"):
            await complete(conn, now=NOW + LAPSES_AFTER)
        assert await list_loads(conn) == []
        lapsed = (await list_key_events(conn, 1))[0]
        assert (lapsed.event, lapsed.by) == ("lapsed", NOBODY)
        await begin(conn)

    told(database_url, story)


def test_des_key_is_loaded_and_a_sixteen_byte_one_only_where_allowed(database_url: str) -> None:
    """The component's length says the derivation; DKGA03 needs to be allowed."""

    async def story(conn: AsyncConnection) -> None:
        with pytest.raises(KeyLoadRefused, match="DKGA03"):
            await begin(conn, component=FIRST[:16])
        await begin(conn, component=FIRST[:8])
        key = KEY[:8]
        assert await complete(conn, component=SECOND[:8], confirmed=vending_key_check_value(key))
        assert [each.dkga for each in await list_keys(conn)] == [2]
        await begin_load(
            conn, MASTER, sgc=SGC, krn=2, component=FIRST[:16], by="Asha Rani", now=NOW, allow_triple_des=True
        )

    told(database_url, story)


def test_two_people_at_once_complete_one_load_once(database_url: str) -> None:
    """Whoever comes second finds no load: the key is stored once, with the people who did it."""

    async def story(conn: AsyncConnection) -> None:
        await begin(conn)
        async with await connect(database_url, application="test") as other:
            answers = await asyncio.gather(
                complete(conn, by="Balbir Singh"), complete(other, by="Charan Das"), return_exceptions=True
            )
        assert sorted(type(each).__name__ for each in answers) == ["KeyLoadRefused", "str"]
        assert [each.event for each in await list_key_events(conn, 10)] == ["loaded", "begun"]

    told(database_url, story)


def test_key_events_can_not_be_changed_by_a_process(database_url: str) -> None:
    """What was done to keys stays on record."""

    async def story(conn: AsyncConnection) -> None:
        await begin(conn)
        for change in ("update key_events set by = 'x'", "delete from key_events"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await conn.execute(compose.SQL(change))  # type: ignore[arg-type]  # Two texts of this test.

    told(database_url, story)


def test_key_is_retired_by_its_check_value_once_no_meter_holds_it(database_url: str) -> None:
    """While meters hold a key only tokens under it move them on; a running module forgets a retired one."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            conn = shop.conn
            held = await list_keys(conn)
            with pytest.raises(KeyLoadRefused, match="got 1"):
                await retire_key(
                    conn, sgc="201457", krn=1, check_value=held[0].check_value, by="A", reason="old", now=NOW
                )
            ticks = iter(range(0, 100 * LOOK_EVERY_MS, LOOK_EVERY_MS))
            watch = KeyWatch(database_url, clock=lambda: next(ticks))
            module = await load_security_module(conn, MASTER, changed_keys=watch)
            with pytest.raises(VendingKeyUnknown):
                await module.key_check_value(sgc=SGC, krn=1)
            await begin(conn)
            await complete(conn)
            assert await module.key_check_value(sgc=SGC, krn=1) == CHECK_VALUE
            with pytest.raises(KeyLoadRefused, match="check value"):
                await retire_key(conn, sgc=SGC, krn=1, check_value="000000", by="A", reason="old", now=NOW)
            await retire_key(conn, sgc=SGC, krn=1, check_value=CHECK_VALUE, by="A", reason="leaked", now=NOW)
            with pytest.raises(VendingKeyUnknown):
                await module.key_check_value(sgc=SGC, krn=1)
            assert (await list_key_events(conn, 1))[0].reason == "leaked"

    asyncio.run(story())


def test_commands_load_a_key_by_two_people_and_show_check_values_only(database_url: str, data_dir: Path) -> None:
    """From files that nobody else can read; what is printed holds no component, and the key is listed."""
    first, second = data_dir / "first", data_dir / "second"
    first.write_text(" ".join(FIRST.hex()[at : at + 4] for at in range(0, 40, 4)) + "\n")
    second.write_text(SECOND.hex())
    first.chmod(0o600)
    second.chmod(0o644)
    environment = {"PREPAID_DATABASE_URL": database_url, "PREPAID_MINT_TOKENS_PER_DAY_MAX": "500"}

    def keys(*arguments: str, status: int = 0) -> str:
        ended = prepaid("keys", *arguments, data=data_dir / "data", status=status, environment=environment)
        return ended.stdout + ended.stderr

    ending = ("complete", SGC, "1", "--by", "Balbir Singh", "--component", str(second), "--confirm", CHECK_VALUE)
    assert "chmod 600" in keys(*ending, status=2)
    second.chmod(0o600)
    said = keys("begin", SGC, "1", "--by", "Asha Rani", "--component", str(first))
    assert f"check value {key_check_value(FIRST)}" in said
    said += keys(*ending, "--json") + keys("list")
    assert f"SGC {SGC} KRN 1 DKGA04 {CHECK_VALUE} Asha Rani and Balbir Singh" in said
    for secret in (FIRST, SECOND, KEY):
        assert secret.hex()[:8] not in said.lower()
    assert "tokens  limit 500, taken 0, left 500" in keys("limits")
