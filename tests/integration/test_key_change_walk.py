"""A key change and a change of base date, from the desk that makes the tokens to the meter that takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from random import Random

import pytest

from billing.calendar import to_ms
from db.token_deliveries import note_entries
from meter_sim.token_reader import TID_MEMORY_ENTRIES, EntryResult, ReaderMemory, TokenEntry, TokenReader
from protocols.native import TokenEntered
from tests.integration.vending_shop import MASTER, NOON, SGC, STS, VENDING_KEY, Shop, add_home, key_of, open_shop
from vending.edges.record_desk import KeyChanged, Wanted, change_key
from vending.key_custody import SealedVendingKey, seal_vending_key
from vending.soft_module import SoftSecurityModule
from vending.sts.key_change import key_change_sections, pack_section
from vending.sts.keys import derive_decoder_key
from vending.sts.tokens import seal_frame

pytestmark = pytest.mark.db

# The vending key of the next revision; made up.
NEXT_KEY = bytes(range(20))
DAY_MS = 86_400_000


@dataclass(slots=True, kw_only=True)
class Walk:
    """A home's meter with its reader, the shop that sells to it, and the head-end's ear for what the meter says."""

    shop: Shop
    reader: TokenReader
    said: int = 0

    async def buy(self, message_id: str) -> str:
        """Buy a token for the home, a minute after the last."""
        self.shop.clock.now_ms += 60_000
        answer = await self.shop.vend(message_id, meter=self.shop.home.serial)
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["token"]["digits"])

    async def type(self, digits: str) -> TokenEntry:
        """Type a token; the meter tells the head-end of it."""
        self.said += 1
        entry = self.reader.enter(digits, now_ms=self.shop.clock.now_ms)
        if entry.authentic:
            told = TokenEntered(
                serial=self.shop.home.serial,
                seq=None,
                at_ms=self.shop.clock.now_ms + self.said,
                tid=entry.tid,
                last_digits=digits[-4:],
                result=entry.result,
            )
            async with self.shop.conn.transaction():
                await note_entries(self.shop.conn, [(self.shop.home.meter_id, told)])
        return entry

    async def change(self, **changes: object) -> KeyChanged:
        """Make a key change set at the desk."""
        home = self.shop.home
        wanted = Wanted(serial=home.serial, changes=changes, by="A. Kaur", reason="tariff category")
        changed = await change_key(self.shop.conn, module(), wanted, now_ms=self.shop.clock.now_ms)
        # The station asks for the set, and gives it to the consumer, before it sells again.
        body = {"message_id": f"kc-{home.serial}"}
        given = await self.shop.http.post(
            f"/v1/meters/{home.serial}/key-change", json=body, headers=self.shop.headers("vendor")
        )
        assert given.status_code == 200, given.text
        return changed

    async def version(self) -> int:
        """Return the version of the meter's record in force."""
        query = "select version from meter_records where meter_id = %s and state = 'active'"
        return int(await self.shop.one(query, self.shop.home.meter_id))


def module() -> SoftSecurityModule:
    """Make a security module that holds the vending keys of both revisions."""
    keys = [
        SealedVendingKey(sgc=SGC, krn=krn, sealed=seal_vending_key(MASTER, SGC, krn, key))
        for krn, key in ((1, VENDING_KEY), (2, NEXT_KEY))
    ]
    return SoftSecurityModule(MASTER, keys, rnd_nibble=lambda: 5)


def walk(database_url: str, story: Callable[[Walk], Awaitable[None]], **sts: object) -> None:
    """Walk through a story with a meter whose record differs from the usual one in some fields."""

    async def walked() -> None:
        async with open_shop(database_url, module=module()) as shop:
            shop.home = await add_home(shop.conn, "PB000777", "100200777", sts=replace(STS, **sts))
            record = key_of(shop.home.drn or "", **sts)
            key = derive_decoder_key(VENDING_KEY, record).key
            reader = TokenReader(ReaderMemory(key=key, krn=1, sgc=int(SGC)))
            await story(Walk(shop=shop, reader=reader))

    asyncio.run(walked())


def test_key_change_is_walked_through_on_a_meter(database_url: str) -> None:
    """New credit is refused before the set and taken after it; what was not typed by then is named, and lost."""

    async def story(home: Walk) -> None:
        first, unused = await home.buy("before-1"), await home.buy("before-2")
        assert (await home.type(first)).accepted
        changed = await home.change(krn=2, tariff_index="07")
        # The warning names what dies with the old key, by its last digits: not what the meter has told of.
        assert [each.last_four for each in changed.open_tokens] == [unused[-4:]]
        sections = [token.digits for token in changed.tokens]
        assert len(sections) == 4
        after = await home.buy("after-1")
        assert (await home.type(after)).result is EntryResult.CRC_ERROR
        Random(4).shuffle(sections)
        credit_before = home.reader.kept.credits
        for number, section in enumerate(sections):
            entry = await home.type(section)
            assert entry.accepted
            assert entry.key_changed is (number == 3)
        kept = home.reader.kept
        assert (kept.krn, kept.tariff_index, kept.sgc, kept.credits) == (2, 7, int(SGC), credit_before)
        # Entered, but no credit yet: the new version is still pending.
        assert await home.version() == 1
        assert (await home.type(unused)).result is EntryResult.CRC_ERROR
        assert (await home.type(after)).accepted
        assert await home.version() == 2
        assert (await home.type(after)).result is EntryResult.USED
        delivered = await home.shop.conn.execute(
            "select t.kind, count(*) from token_deliveries d join tokens t on t.id = d.token_id group by 1 order by 1"
        )
        assert await delivered.fetchall() == [("credit", 2), ("key_change", 4)]
        # The credit of the lost token is the account's all the same: in central mode nothing is lost but the digits.
        assert await home.shop.count("vends") == 3

    walk(database_url, story)


def test_base_date_changes_from_1993_to_2014_with_roll_over_alone(database_url: str) -> None:
    """A meter full of the last era's TIDs finds the new era's old, unless the set told it to forget them."""

    async def story(home: Walk) -> None:
        # 20 November 2024: the last days of the era.
        home.shop.clock.now_ms = to_ms(NOON) - 731 * DAY_MS
        unused = await home.buy("old-unused")
        last_tid = int(await home.shop.one("select max(tid) from tokens"))
        home.reader = TokenReader(replace(home.reader.kept, tids=tuple(range(last_tid - TID_MEMORY_ENTRIES, last_tid))))
        changed = await home.change(krn=2, base_year=2014)
        assert [each.last_four for each in changed.open_tokens] == [unused[-4:]]
        home.shop.clock.now_ms = to_ms(NOON)
        credit = await home.buy("new-era")
        assert int(await home.shop.one("select tid from tokens where digits = %s", credit)) < last_tid

        without = TokenReader(home.reader.kept)
        old, new = (key_of(home.shop.home.drn or "", **each) for each in ({"base_year": 1993}, {"krn": 2}))
        old_key, new_key = derive_decoder_key(VENDING_KEY, old), derive_decoder_key(NEXT_KEY, new)
        for section in key_change_sections(new, new_key, roll_over=False, third_section=False):
            assert without.enter(seal_frame(2, *pack_section(section), old_key).digits, 0).accepted
        assert without.enter(credit, 0).result is EntryResult.OLD

        for token in reversed(changed.tokens):
            assert (await home.type(token.digits)).accepted
        assert home.reader.tids == ()
        assert (await home.type(unused)).result is EntryResult.CRC_ERROR
        assert (await home.type(credit)).accepted
        assert await home.version() == 2

    walk(database_url, story, base_year=1993)
