"""The simulated meter's reader against tokens the vending side makes, and on its own."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_sim.token_reader import (
    TID_MEMORY_ENTRIES,
    Carrier,
    CreditUnit,
    EntryResult,
    ReaderMemory,
    ReaderSettings,
    TokenReader,
)
from vending.sts.amounts import CurrencyField, decode_unit_amount
from vending.sts.identity import EncryptionAlgorithm
from vending.sts.keys import DecoderKey
from vending.sts.sta import IEC_SAMPLE_TABLES
from vending.sts.tokens import (
    CreditService,
    CurrencyCredit,
    DisplayTest,
    ExtendedRead,
    UnitCredit,
    display_test_control,
    encode_token,
    seal_frame,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "sts.jsonl"
CREDITS = [case for case in map(json.loads, VECTORS.read_text().splitlines()) if case["algorithm"].startswith("class0")]
# Origin: STS 531 CTSA01 step 1, the decoder key of a published test meter.
KEY = bytes.fromhex("f94b6ed353c3bfdb113e2d3a7ea3c41d")
DECODER_KEY = DecoderKey(ea=EncryptionAlgorithm.MISTY1, key=KEY)
# Right form, wrong CRC for this key.
BAD_DIGITS = "12345678901234567890"

tids = st.integers(0, 0xFFFFFF)
fields = st.builds(CurrencyField, sign_exponent=st.integers(0, 15), amount16=st.integers(0, 0xFFFF))


def credit(tid: int, amount16: int = 10, service: CreditService = CreditService.ELECTRICITY) -> str:
    """Mint a unit credit for the test meter."""
    return encode_token(UnitCredit(service=service, rnd=5, tid=tid, amount16=amount16), DECODER_KEY).digits


def money(tid: int, amount: CurrencyField) -> str:
    """Mint a currency credit for the test meter."""
    token = CurrencyCredit(service=CreditService.ELECTRICITY, tid=tid, amount=amount)
    return encode_token(token, DECODER_KEY).digits


@pytest.mark.parametrize("case", CREDITS, ids=lambda case: case["origin"][-20:])
def test_reader_takes_the_published_token_once(case: dict[str, Any]) -> None:
    """Each published credit is accepted by the meter of its key, then used."""
    reader = TokenReader(
        bytes.fromhex(case["expected"]["decoder_key"]), settings=ReaderSettings(credits=frozenset(range(8)))
    )
    entry = reader.enter(case["expected"]["token"], now_ms=0)
    assert (entry.result, entry.tid) == (EntryResult.ACCEPTED, case["expected"]["tid"])
    assert reader.enter(case["expected"]["token"], now_ms=1_000).result is EntryResult.USED


@given(tid=tids, amount16=st.integers(0, 0xFFFF))
def test_reader_and_vending_agree_on_every_unit_amount(tid: int, amount16: int) -> None:
    """Two implementations read one amount, in tenths of a kWh."""
    entry = TokenReader(KEY).enter(credit(tid, amount16), now_ms=0)
    assert (entry.result, entry.unit) == (EntryResult.ACCEPTED, CreditUnit.UNIT_TENTHS)
    assert (entry.tid, entry.amount) == (tid, decode_unit_amount(amount16))


@given(tid=tids, amount=fields)
def test_reader_and_vending_agree_on_every_currency_amount(tid: int, amount: CurrencyField) -> None:
    """Two implementations read one amount, in 10^-5 of the base currency."""
    entry = TokenReader(KEY).enter(money(tid, amount), now_ms=0)
    assert (entry.result, entry.unit) == (EntryResult.ACCEPTED, CreditUnit.CURRENCY_E5)
    assert (entry.tid, entry.amount) == (tid, amount.amount_e5)


@given(entered=st.lists(st.integers(1, 90), max_size=150))
def test_reader_credits_every_tid_at_most_once_in_any_order(entered: list[int]) -> None:
    """However tokens are repeated and mixed, each credits once, and only forgotten ones are old."""
    reader, credited = TokenReader(KEY), set()
    for tid in entered:
        result = reader.enter(credit(tid), now_ms=0).result
        if result is EntryResult.ACCEPTED:
            assert tid not in credited
            credited.add(tid)
        elif result is EntryResult.USED:
            assert tid in credited
        else:
            assert result is EntryResult.OLD
            assert sum(newer > tid for newer in credited) >= TID_MEMORY_ENTRIES
    assert reader.tids == tuple(sorted(credited)[-TID_MEMORY_ENTRIES:])


def test_reader_takes_an_older_token_until_50_newer_ones_came() -> None:
    """A gap may be filled late; once 50 newer TIDs are held, what is below them is old."""
    reader = TokenReader(KEY)
    for tid in range(100, 100 + TID_MEMORY_ENTRIES - 1):
        assert reader.enter(credit(tid), now_ms=0).result is EntryResult.ACCEPTED
    assert reader.enter(credit(50), now_ms=0).result is EntryResult.ACCEPTED
    assert reader.enter(credit(40), now_ms=0).result is EntryResult.OLD
    assert reader.enter(credit(60), now_ms=0).result is EntryResult.ACCEPTED
    assert 50 not in reader.tids
    assert reader.enter(credit(50), now_ms=0).result is EntryResult.OLD


def test_reader_built_anew_from_its_tids_refuses_used_tokens() -> None:
    """The memory outlives a restart."""
    reader = TokenReader(KEY)
    reader.enter(credit(7), now_ms=0)
    again = TokenReader(ReaderMemory.from_json(json.loads(json.dumps(reader.kept.to_json()))))
    assert again.kept == reader.kept
    assert again.enter(credit(7), now_ms=0).result is EntryResult.USED
    assert again.enter(credit(6), now_ms=0).result is EntryResult.ACCEPTED


@given(digits=st.text(max_size=24) | st.text("0123456789", min_size=20, max_size=20))
def test_reader_answers_any_entry(digits: str) -> None:
    """Nothing typed can crash a meter, and what it takes for a credit it takes once."""
    reader = TokenReader(KEY)
    entry = reader.enter(digits, now_ms=0)
    if entry.result is EntryResult.ACCEPTED and entry.amount is not None:
        assert reader.enter(digits, now_ms=0).result is EntryResult.USED
    else:
        assert (entry.amount, reader.tids) == (None, ())


@given(tid=tids, amount16=st.integers(0, 0xFFFF))
def test_reader_refuses_single_digit_slips_as_often_as_the_crc_can(tid: int, amount16: int) -> None:
    """Of 180 slips the CRC lets one in 65,536 through; three in one token have odds of 3 in 10^9."""
    digits = credit(tid, amount16)
    accepted = 0
    for place in range(20):
        for other in set("0123456789") - {digits[place]}:
            slipped = digits[:place] + other + digits[place + 1 :]
            entry = TokenReader(KEY).enter(slipped, now_ms=0)
            accepted += entry.result is EntryResult.ACCEPTED
    assert accepted <= 2


@pytest.mark.parametrize("digits", ["", "1" * 19, "1" * 21, "a" * 20, "१" * 20, "9" * 20, f"{3 << 27:020d}"])
def test_reader_of_no_token_says_format_error(digits: str) -> None:
    """Too short, too long, not digits, beyond 66 bits, or of the reserved class."""
    assert TokenReader(KEY).enter(digits, now_ms=0).result is EntryResult.FORMAT_ERROR


def test_reader_under_another_key_says_crc_error() -> None:
    """A token for another meter looks like a slip."""
    assert TokenReader(bytes(16)).enter(credit(1), now_ms=0).result is EntryResult.CRC_ERROR


def test_reader_with_expired_key_refuses_and_does_not_remember() -> None:
    """A TID beyond KEN is refused; the last one within is taken."""
    reader = TokenReader(ReaderMemory(key=KEY, ken=1))
    assert reader.enter(credit(2 << 16), now_ms=0).result is EntryResult.KEY_EXPIRED
    assert reader.enter(credit((2 << 16) - 1), now_ms=0).result is EntryResult.ACCEPTED
    assert reader.tids == ((2 << 16) - 1,)


def test_reader_under_default_key_refuses_credit() -> None:
    """A meter not yet coded takes no credit."""
    assert TokenReader(ReaderMemory(key=KEY, key_type=1)).enter(credit(1), now_ms=0).result is EntryResult.DDTK_ERROR


def test_reader_without_room_refuses_and_takes_it_later() -> None:
    """A credit that would overflow the register is not used up by the attempt."""
    reader = TokenReader(KEY)
    assert reader.enter(credit(5, 100), now_ms=0, room=99).result is EntryResult.OVERFLOW_ERROR
    assert reader.tids == ()
    assert reader.enter(credit(5, 100), now_ms=0, room=100).result is EntryResult.ACCEPTED


def test_reader_of_an_electricity_meter_refuses_what_it_has_no_function_for() -> None:
    """What the meter has no function for is refused with its own result."""
    reader = TokenReader(KEY)
    assert reader.enter(credit(5, service=CreditService.WATER), now_ms=0).result is EntryResult.FUNCTION_ERROR
    reserved = seal_frame(0, 9, 0, DECODER_KEY).digits
    assert reader.enter(reserved, now_ms=0).result is EntryResult.FUNCTION_ERROR
    for subclass in (2, 7, 11, 12, 13, 14, 15):
        management = seal_frame(2, subclass, 0, DECODER_KEY).digits
        assert reader.enter(management, now_ms=0).result is EntryResult.FUNCTION_ERROR
    assert reader.tids == ()
    extended = encode_token(ExtendedRead(index=0), None).digits
    assert reader.enter(extended, now_ms=0).result is EntryResult.FUNCTION_ERROR


def test_reader_takes_a_display_test_of_its_maker_only() -> None:
    """Maker code 0 fits every meter, another code its own meters."""
    reader = TokenReader(KEY, settings=ReaderSettings(maker_code=0x21))
    for maker_code, result in ((0, "accepted"), (0x21, "accepted"), (0x22, "mfr_code_error")):
        token = DisplayTest(maker_digits=4, maker_code=maker_code, control=8)
        entry = reader.enter(encode_token(token, None).digits, now_ms=0)
        assert entry.result == result
        assert entry.control == (8 if result == "accepted" else None)


def test_reader_lockout_doubles_from_10_to_1280_seconds() -> None:
    """The third bad entry locks for 10 s, each further one for twice as long, up to 1280 s."""
    reader, now_ms, waits = TokenReader(KEY), 0, []
    for _ in range(2):
        assert reader.enter(BAD_DIGITS, now_ms=now_ms).result is EntryResult.CRC_ERROR
    for _ in range(10):
        assert reader.enter(BAD_DIGITS, now_ms=now_ms).result is EntryResult.CRC_ERROR
        locked = reader.enter(credit(1), now_ms=now_ms)
        assert locked.result is EntryResult.LOCKOUT
        assert locked.locked_until_ms is not None
        waits.append(locked.locked_until_ms - now_ms)
        now_ms = locked.locked_until_ms
    assert waits == [1000 * s for s in (10, 20, 40, 80, 160, 320, 640, 1280, 1280, 1280)]


def test_reader_while_locked_takes_nothing_but_a_test_token() -> None:
    """A good credit waits until the lockout ends and is not used up; a test token is answered."""
    reader = TokenReader(KEY)
    for _ in range(3):
        reader.enter(BAD_DIGITS, now_ms=100_000)
    test_token = encode_token(DisplayTest(maker_digits=2, maker_code=0, control=1), None).digits
    assert reader.enter(test_token, now_ms=105_000).result is EntryResult.ACCEPTED
    broken_test = test_token[:-1] + ("0" if test_token[-1] != "0" else "1")
    assert reader.enter(broken_test, now_ms=105_000).result is EntryResult.LOCKOUT
    assert reader.enter("x", now_ms=105_000).result is EntryResult.LOCKOUT
    assert reader.enter(credit(9), now_ms=109_999).result is EntryResult.LOCKOUT
    assert reader.enter(credit(9), now_ms=110_000).result is EntryResult.ACCEPTED


def test_reader_good_credit_and_power_cycle_clear_the_count() -> None:
    """After either, two more slips are free again."""
    reader = TokenReader(KEY)
    for _ in range(2):
        reader.enter(BAD_DIGITS, now_ms=0)
    reader.enter(credit(1), now_ms=0)
    for _ in range(2):
        reader.enter(BAD_DIGITS, now_ms=0)
    assert reader.enter(credit(2), now_ms=0).result is EntryResult.ACCEPTED
    for _ in range(3):
        reader.enter(BAD_DIGITS, now_ms=0)
    reader.power_cycle()
    assert reader.enter(credit(3), now_ms=0).result is EntryResult.ACCEPTED


def test_reader_test_and_used_tokens_do_not_clear_the_count() -> None:
    """Tokens anyone can hold must not buy a guesser new tries."""
    reader = TokenReader(KEY)
    reader.enter(credit(1), now_ms=0)
    test_token = encode_token(DisplayTest(maker_digits=2, maker_code=0, control=1), None).digits
    for _ in range(3):
        reader.enter(BAD_DIGITS, now_ms=0)
        reader.enter(test_token, now_ms=0)
        reader.enter(credit(1), now_ms=0)
    assert reader.enter(credit(2), now_ms=0).result is EntryResult.LOCKOUT


def test_reader_remote_entry_is_neither_locked_nor_counted() -> None:
    """Digits pushed over the air come from no keypad."""
    reader = TokenReader(KEY)
    for _ in range(5):
        assert reader.enter(BAD_DIGITS, now_ms=0, carrier=Carrier.REMOTE).result is EntryResult.CRC_ERROR
    for _ in range(3):
        reader.enter(BAD_DIGITS, now_ms=0)
    assert reader.enter(credit(4), now_ms=1_000, carrier=Carrier.REMOTE).result is EntryResult.ACCEPTED
    assert reader.enter(credit(5), now_ms=1_000).result is EntryResult.LOCKOUT


ALL = ReaderSettings(credits=frozenset(range(8)), extended=frozenset({0, 7}), flags=4, maker_code=0x21)


def managed(subclass: int, tid: int, value16: int) -> str:
    """Mint a management token for the test meter."""
    return seal_frame(2, subclass, 5 << 40 | tid << 16 | value16, DECODER_KEY).digits


def test_reader_credits_each_service_in_its_own_register() -> None:
    """Electricity, water, gas and time, in units and in currency; only currency for electricity is the balance's."""
    reader = TokenReader(KEY, settings=ALL)
    for service in CreditService:
        unit = reader.enter(credit(1 + service, 10 + service, service), now_ms=0)
        token = CurrencyCredit(service=service, tid=9 + service, amount=CurrencyField.encode(-100_000 * (1 + service)))
        currency = reader.enter(encode_token(token, DECODER_KEY).digits, now_ms=0)
        assert (unit.register, currency.register) == (service, 4 + service)
        assert (unit.energy_wh is None, currency.credit_minor is None) == (service != 0, service != 0)
    assert reader.kept.credits[:4] == (10, 11, 12, 13)
    # Of a debit the magnitude is rounded down.
    for service, owed_e5 in enumerate(reader.kept.credits[4:], 1):
        assert -100_000 * service <= owed_e5 <= -99_900 * service


def test_reader_sets_limits_clears_tamper_and_remembers_the_tokens() -> None:
    """Management tokens have TIDs: one works once, and its TID is no other token's."""
    reader = TokenReader(KEY, settings=ALL)
    reader.note_tamper()
    limit = managed(0, 1, 1 << 14)
    assert reader.enter(limit, now_ms=0).power_limit_w == 16_384
    assert reader.enter(limit, now_ms=0).result is EntryResult.USED
    assert reader.enter(managed(6, 2, 500), now_ms=0).accepted
    assert reader.enter(managed(5, 3, 1), now_ms=0).result is EntryResult.RANGE_ERROR
    assert reader.enter(managed(5, 3, 0), now_ms=0).accepted
    assert reader.enter(credit(3), now_ms=0).result is EntryResult.USED
    kept = reader.kept
    assert (kept.power_limit_w, kept.unbalance_limit_w, kept.tampered, kept.tids) == (16_384, 500, False, (1, 2, 3))
    low = TokenReader(KEY, settings=ReaderSettings(power_limit_w_max=15_000))
    assert low.enter(limit, now_ms=0).result is EntryResult.RANGE_ERROR
    assert low.tids == ()


def test_reader_clears_credit_of_a_register_or_all_and_never_a_debt() -> None:
    """Register 0 is electricity, FFFF every one; what the meter lacks is a function it lacks, 8 no register."""
    reader = TokenReader(KEY, settings=ALL)
    for tid, service in enumerate(CreditService):
        reader.enter(credit(tid, 10, service), now_ms=0)
    reader.use_up(4, 300)
    assert reader.enter(managed(1, 10, 0), now_ms=0).clears_credit
    assert reader.kept.credits == (0, 10, 10, 10, -300, 0, 0, 0)
    assert not reader.enter(managed(1, 11, 2), now_ms=0).clears_credit
    assert reader.enter(managed(1, 12, 8), now_ms=0).result is EntryResult.RANGE_ERROR
    assert reader.enter(managed(1, 12, 0xFFFF), now_ms=0).accepted
    assert reader.kept.credits == (0, 0, 0, 0, -300, 0, 0, 0)
    assert TokenReader(KEY).enter(managed(1, 1, 1), now_ms=0).result is EntryResult.FUNCTION_ERROR


def test_reader_sets_and_shows_its_extended_list() -> None:
    """Controls and flags it has are set; any other number is a function it lacks."""
    reader = TokenReader(KEY, settings=ALL)
    assert reader.enter(managed(10, 1, 7 << 10 | 513), now_ms=0).accepted
    assert reader.enter(managed(10, 2, 63 << 10 | 3 << 1 | 1), now_ms=0).accepted
    assert (reader.kept.controls, reader.kept.flags) == (((7, 513),), (3,))
    assert reader.enter(encode_token(ExtendedRead(index=7), None).digits, now_ms=0).shown == ("CONTROL 7 = 513",)
    assert reader.enter(managed(10, 3, 63 << 10 | 3 << 1), now_ms=0).accepted
    assert reader.kept.flags == ()
    for value in (8 << 10, 63 << 10 | 4 << 1):
        assert reader.enter(managed(10, 4, value), now_ms=0).result is EntryResult.FUNCTION_ERROR
    assert reader.enter(encode_token(ExtendedRead(index=1), None).digits, now_ms=0).result is EntryResult.FUNCTION_ERROR


@pytest.mark.parametrize("maker_digits", [2, 4])
def test_reader_shows_what_a_display_token_asks_for(maker_digits: int) -> None:
    """One test one fact; test 0 all it knows; a reserved number is a function it lacks."""
    kept = ReaderMemory(key=KEY, krn=3, ken=200, tariff_index=7, sgc=1234, power_limit_w=5_000)
    reader = TokenReader(kept, settings=ALL)

    def shown(test: int) -> tuple[str, ...]:
        control = display_test_control(test, maker_digits=maker_digits)
        token = DisplayTest(maker_digits=maker_digits, maker_code=0, control=control)
        return reader.enter(encode_token(token, None).digits, now_ms=0).shown

    expected = {
        4: "KRN 3 KT 2", 5: "TI 07", 7: "LIMIT 5000 W", 8: "NO TAMPER", 11: "UNBALANCE -- W", 14: "EA 11", 15: "KCT 4",
        16: "SGC 001234", 17: "KEN 200",
    }  # fmt: skip
    assert {test: shown(test) for test in expected} == {test: (text,) for test, text in expected.items()}
    assert shown(0) == tuple(expected.values())
    reserved = DisplayTest(maker_digits=maker_digits, maker_code=0, control=1 << 19)
    assert reader.enter(encode_token(reserved, None).digits, now_ms=0).result is EntryResult.FUNCTION_ERROR


def test_reader_of_ea07_takes_credit_under_the_sample_tables() -> None:
    """An 8-byte key is one of EA07; its cipher is the only code it shares with the vending side."""
    key = DecoderKey(ea=EncryptionAlgorithm.STA, key=KEY[:8], sta_tables=IEC_SAMPLE_TABLES)
    token = encode_token(UnitCredit(service=CreditService.ELECTRICITY, rnd=5, tid=9, amount16=10), key).digits
    reader = TokenReader(KEY[:8], settings=ReaderSettings(sta_tables=IEC_SAMPLE_TABLES))
    assert (reader.enter(token, now_ms=0).amount, reader.tids) == (10, (9,))


def test_reader_register_that_would_overflow_takes_the_token_when_there_is_room() -> None:
    """The TID is not remembered; what was used up makes room."""
    reader = TokenReader(KEY, settings=ReaderSettings(credit_max=100))
    assert reader.enter(credit(1, 60), now_ms=0).accepted
    assert reader.enter(credit(2, 60), now_ms=0).result is EntryResult.OVERFLOW_ERROR
    reader.use_up(0, 20)
    assert reader.enter(credit(2, 60), now_ms=0).accepted
    assert reader.kept.credits[0] == 100


@given(paid_minor=st.integers(1, 10**9))
def test_reader_credits_at_least_what_was_paid_in_minor_units(paid_minor: int) -> None:
    """From paise paid to paise on the meter nothing is lost, and less than 0.1 % is given."""
    entry = TokenReader(KEY).enter(money(8, CurrencyField.encode(paid_minor * 1_000)), now_ms=0)
    assert entry.accepted
    assert entry.credit_minor is not None
    assert 0 <= entry.credit_minor - paid_minor <= paid_minor // 1_000
    units = TokenReader(KEY).enter(credit(8), now_ms=0)
    assert (units.accepted, units.credit_minor) == (True, None)


def test_reader_repr_hides_the_key() -> None:
    """A reader in a log line gives its key away in no form."""
    assert "f94b" not in repr(TokenReader(KEY))
