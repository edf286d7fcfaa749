"""Key change sections at the simulated meter, made by the vending engine, with which it shares the ciphers alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_sim.key_sections import SECTION_MS
from meter_sim.token_reader import TID_MEMORY_ENTRIES, EntryResult, ReaderMemory, ReaderSettings, TokenReader
from vending.sts.identity import BaseDate, Drn, EncryptionAlgorithm, KeyDerivation, KeyType, MeterKeyRecord
from vending.sts.key_change import KeyChangeFirst, KeyChangeSecond, issue_key_change, key_change_sections, pack_section
from vending.sts.keys import DecoderKey, derive_decoder_key
from vending.sts.sta import IEC_SAMPLE_TABLES
from vending.sts.tokens import CreditService, UnitCredit, encode_token, seal_frame

# Origin: STS 531 compliance tests, a published test key; the other is made up.
VENDING_KEY = bytes.fromhex("abababababababab949494949494949401234567")
OTHER_KEY = bytes(range(20))
OLD = MeterKeyRecord(
    iin="600727",
    drn=Drn("00000000000"),
    ea=EncryptionAlgorithm.MISTY1,
    dkga=KeyDerivation.HMAC_SHA256,
    sgc="201457",
    kt=KeyType.UNIQUE,
    krn=1,
    tariff_index=1,
    ken=255,
    base_date=BaseDate.Y2014,
)
NEW = replace(OLD, sgc="123456", krn=2, tariff_index=99, ken=0xA7)
STA_OLD, STA_NEW = (replace(each, ea=EncryptionAlgorithm.STA) for each in (OLD, NEW))


def key_of(record: MeterKeyRecord) -> DecoderKey:
    """Derive a meter's key; KRN 1 is of one vending key, all others of another."""
    return derive_decoder_key(VENDING_KEY if record.krn == 1 else OTHER_KEY, record, sta_tables=IEC_SAMPLE_TABLES)


def change(old: MeterKeyRecord, new: MeterKeyRecord, *, carry_sgc: bool = True) -> list[str]:
    """Make a key change set."""
    made = issue_key_change(old=old, new=new, old_key=key_of(old), new_key=key_of(new), carry_sgc=carry_sgc)
    return [each.digits for each in made]


def credit(record: MeterKeyRecord, tid: int) -> str:
    """Make a unit credit."""
    token = UnitCredit(service=CreditService.ELECTRICITY, rnd=5, tid=tid, amount16=10)
    return encode_token(token, key_of(record)).digits


def reader_of(record: MeterKeyRecord, *, key_change_tokens: int = 3, **kept: object) -> TokenReader:
    """Make the reader of a meter."""
    settings = ReaderSettings(sta_tables=IEC_SAMPLE_TABLES, key_change_tokens=key_change_tokens)
    return TokenReader(ReaderMemory(key=key_of(record).key, sgc=int(record.sgc), **kept), settings=settings)  # type: ignore[arg-type]  # What a test gives.


def test_key_change_in_any_order_moves_the_meter_to_the_new_key() -> None:
    """All 24 orders end in the new key, its attributes, the old credit and TIDs; what was sold before is lost."""
    tokens = change(OLD, NEW)
    for order in permutations(range(4)):
        reader = reader_of(OLD)
        assert reader.enter(credit(NEW, 8), 0).result is EntryResult.CRC_ERROR
        assert reader.enter(credit(OLD, 7), 0).accepted
        entries = [reader.enter(tokens[number], 1_000) for number in order]
        assert [entry.section for entry in entries] == [number + 1 for number in order]
        assert [len(entry.missing) for entry in entries] == [3, 2, 1, 0]
        kept = reader.kept
        assert (kept.key, kept.sgc, kept.krn, kept.tariff_index, kept.ken) == (key_of(NEW).key, 123456, 2, 99, 0xA7)
        assert (kept.key_type, kept.credits[0], kept.tids) == (2, 10, (7,))
        assert reader.enter(credit(OLD, 6), 2_000).result is EntryResult.CRC_ERROR
        assert reader.enter(credit(NEW, 8), 2_000).accepted


@pytest.mark.parametrize("carry_sgc", [True, False])
def test_key_change_of_ea07_takes_two_tokens_or_three(carry_sgc: bool) -> None:
    """With the third the supply group comes along; without it the meter's own becomes 0."""
    tokens = change(STA_OLD, STA_NEW, carry_sgc=carry_sgc)
    assert len(tokens) == (3 if carry_sgc else 2)
    for order in permutations(tokens):
        reader = reader_of(STA_OLD)
        assert all(reader.enter(token, 0).accepted for token in order)
        assert (reader.kept.key, reader.kept.sgc) == (key_of(STA_NEW).key, 123456 if carry_sgc else 0)
        assert reader.enter(credit(STA_NEW, 8), 0).accepted


def test_meter_of_two_key_change_tokens_refuses_sets_of_three() -> None:
    """Neither the flag nor the third section is one of its functions, and it keeps its key."""
    reader = reader_of(STA_OLD, key_change_tokens=2)
    results = [reader.enter(token, 0).result for token in change(STA_OLD, STA_NEW)]
    assert results == [EntryResult.FUNCTION_ERROR, EntryResult.ACCEPTED, EntryResult.FUNCTION_ERROR]
    assert reader.kept.key == key_of(STA_OLD).key


@given(waits=st.lists(st.integers(0, SECTION_MS + 1_000), min_size=3, max_size=3))
def test_section_is_forgotten_after_ten_minutes(waits: list[int]) -> None:
    """The key changes only if every section is younger than ten minutes at the last one; entered anew, it does."""
    tokens = change(OLD, NEW)
    reader, now_ms, times = reader_of(OLD), 0, []
    for token, wait_ms in zip(tokens, [0, *waits], strict=True):
        now_ms += wait_ms
        times.append(now_ms)
        last = reader.enter(token, now_ms)
    forgotten = tuple(number for number, at_ms in enumerate(times, 1) if now_ms - at_ms >= SECTION_MS)
    assert last.missing == forgotten
    for number in forgotten:
        last = reader.enter(tokens[number - 1], now_ms)
    assert last.key_changed
    assert reader.kept.key == key_of(NEW).key


def test_power_cycle_forgets_sections_and_keeps_the_key() -> None:
    """Half a set does not survive the meter's supply: it is entered again as a whole."""
    tokens = change(OLD, NEW)
    reader = reader_of(OLD)
    for token in tokens[:3]:
        reader.enter(token, 0)
    reader.power_cycle()
    assert reader.enter(tokens[3], 0).missing == (1, 2, 3)
    assert reader.kept.key == key_of(OLD).key


def test_only_roll_over_clears_the_tid_memory() -> None:
    """A new era's TIDs are small: old to a meter that remembers the last era's, new to one that was told to forget."""
    old = replace(OLD, base_date=BaseDate.Y1993)
    last_tids = tuple(range(0xFFFF00, 0xFFFF00 + TID_MEMORY_ENTRIES))
    for roll_over, result in ((False, EntryResult.OLD), (True, EntryResult.ACCEPTED)):
        reader = reader_of(old, tids=last_tids)
        sections = key_change_sections(NEW, key_of(NEW), roll_over=roll_over, third_section=False)
        for section in sections:
            assert reader.enter(seal_frame(2, *pack_section(section), key_of(old)).digits, 0).accepted
        assert reader.kept.tids == (() if roll_over else last_tids)
        assert reader.enter(credit(NEW, 0x677100), 0).result is result


def test_section_with_what_no_key_has_is_refused() -> None:
    """The way back to an initialisation key, KRN 0 and tariff index 100 are refused at the section that says so."""
    reader = reader_of(OLD)
    first = KeyChangeFirst(ken_high=15, krn=2, roll_over=False, third_section=False, kt=KeyType.UNIQUE, key_part=1)
    second = KeyChangeSecond(ken_low=15, tariff_index=100, key_part=1)
    for section, result in (
        (replace(first, kt=KeyType.INITIALISATION), EntryResult.KEY_TYPE_ERROR),
        (replace(first, krn=0), EntryResult.RANGE_ERROR),
        (second, EntryResult.RANGE_ERROR),
    ):
        entry = reader.enter(seal_frame(2, *pack_section(section), key_of(OLD)).digits, 0)
        assert (entry.result, entry.authentic) == (result, True)
    assert reader.enter(change(OLD, NEW)[0], 0).missing == (2, 3, 4)


def test_default_key_takes_no_credit_until_it_is_changed() -> None:
    """Under a DDTK credit is refused by its own result; a key change leads out of it, even from an expired key."""
    old = replace(OLD, kt=KeyType.DEFAULT, ken=1)
    reader = reader_of(old, key_type=1, ken=1)
    assert reader.enter(credit(old, 7), 0).result is EntryResult.DDTK_ERROR
    for token in change(old, NEW):
        assert reader.enter(token, 0).accepted
    assert reader.enter(credit(NEW, 7), 0).accepted
