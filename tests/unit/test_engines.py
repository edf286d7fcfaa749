"""Token engines: chosen by the record, each with its own kind of token, and the checks of a record that is entered."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.calendar import to_ms
from db.meter_records import RecordFields
from meter_sim.openpaygo_reader import OpenPaygoReader
from meter_sim.token_reader import CreditUnit, EntryResult, ReaderSettings, TokenReader
from vending.engines.choice import engine_of
from vending.engines.orders import read_order
from vending.engines.paygo import PaygoEngine
from vending.engines.port import CarriedUnit, Credit, IssuedToken, TokenReading
from vending.engines.records import (
    MeterRecord,
    StoredDevice,
    StsFacts,
    faults_of,
    read_record,
    sts_facts,
)
from vending.engines.sts import StsEngine, choose_tid
from vending.key_custody import SealedVendingKey, seal_device_key, seal_vending_key
from vending.openpaygo.devices import PaygoDevice
from vending.security import TokenRefused
from vending.soft_module import SoftSecurityModule
from vending.sts.identity import MeterKeyRecord
from vending.sts.keys import derive_decoder_key
from vending.sts.sta import IEC_SAMPLE_TABLES
from vending.sts.tid import RESERVED_MINUTE_OF_DAY, TID_MAX
from vending.vends import Declined, DeclineReason, MalformedRequest

MASTER = bytes(range(32))
# Origin: STS 531 compliance tests, published test keys.
VENDING_KEY = bytes.fromhex("abababababababab949494949494949401234567")
NEW_VENDING_KEY = bytes.fromhex("0123456789abcdef0123456789abcdef01234567")
SGC, DRN = "201457", "00000000000"
FIELDS = RecordFields(
    engine="sts",
    capabilities=("electricity", "currency", "units", "clear_tamper", "power_limit"),
    ea=11,
    tct=2,
    dkga=4,
    sgc=SGC,
    key_type=2,
    krn=1,
    tariff_index="01",
    ken=255,
    base_year=2014,
    key_change_tokens=4,
)
UNITS_ONLY = replace(FIELDS, capabilities=("electricity", "units"))
NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
NOW_MS = to_ms(NOON)
NOW_TID = (NOON - datetime(2014, 1, 1, tzinfo=UTC)) // timedelta(minutes=1)
CREDIT = Credit(amount_minor=50_000, energy_wh=87_650)


def module_of(**more: object) -> SoftSecurityModule:
    """Open a soft module with two revisions of one supply group's key."""
    keys = {1: VENDING_KEY, 2: NEW_VENDING_KEY}
    sealed = [
        SealedVendingKey(sgc=SGC, krn=krn, sealed=seal_vending_key(MASTER, SGC, krn, key)) for krn, key in keys.items()
    ]
    # The keyword arguments of the module are not typed one by one here.
    return SoftSecurityModule(MASTER, sealed, rnd_nibble=lambda: 5, **more)  # type: ignore[arg-type]


MODULE = module_of()


def meter(fields: RecordFields = FIELDS, *, drn: str | None = DRN, last_tid: int | None = None) -> MeterRecord:
    """Read a record that must be good."""
    record = read_record(fields, serial="PB000123", drn=drn, last_tid=last_tid)
    assert isinstance(record, MeterRecord), record
    return record


def key_of(fields: RecordFields = FIELDS) -> MeterKeyRecord:
    """Return the key record of good fields."""
    facts = sts_facts(fields, DRN)
    assert isinstance(facts, StsFacts), facts
    return facts.key


def issue(record: MeterRecord, credit: Credit = CREDIT, *, now_ms: int = NOW_MS) -> IssuedToken | Declined:
    """Issue a credit by the record's engine."""
    return asyncio.run(engine_of(record, MODULE).issue_credit(record, credit, now_ms=now_ms))


def issued(record: MeterRecord, credit: Credit = CREDIT) -> IssuedToken:
    """Issue a credit that must be granted."""
    token = issue(record, credit)
    assert isinstance(token, IssuedToken), token
    return token


def reason_of(answer: object) -> DeclineReason:
    """Return the reason of what must be a refusal."""
    assert isinstance(answer, Declined), answer
    return answer.reason


def reader_of(fields: RecordFields) -> TokenReader:
    """Return the meter's own reader under its record's key."""
    return TokenReader(derive_decoder_key(VENDING_KEY, key_of(fields)).key)


def test_currency_meter_gets_currency_and_takes_it_once() -> None:
    """Where the meter has a currency register, the token carries the amount; the second entry is used."""
    token = issued(meter())
    assert (token.tid, token.token_class, token.subclass) == (NOW_TID, 0, 4)
    assert token.carried is not None
    assert (token.carried.steps, token.carried.unit) == (50_002_624, CarriedUnit.CURRENCY)
    reader = reader_of(FIELDS)
    entry = reader.enter(token.digits, now_ms=0)
    assert (entry.result, entry.tid, entry.unit) == (EntryResult.ACCEPTED, token.tid, CreditUnit.CURRENCY_E5)
    assert entry.amount == token.carried.steps
    assert reader.enter(token.digits, now_ms=1).result is EntryResult.USED


def test_unit_meter_gets_energy_rounded_up_to_tenths() -> None:
    """Without a currency register the token carries what the money buys, never less."""
    token = issued(meter(UNITS_ONLY))
    assert token.carried is not None
    assert (token.carried.text, token.carried.unit, token.subclass) == ("87.7", CarriedUnit.KWH, 0)
    entry = reader_of(UNITS_ONLY).enter(token.digits, now_ms=0)
    assert (entry.result, entry.amount, entry.unit) == (EntryResult.ACCEPTED, 877, CreditUnit.UNIT_TENTHS)


@given(st.integers(1, 10**9), st.integers(1, 1_000_000_000))
def test_token_never_carries_less_than_was_paid(amount_minor: int, energy_wh: int) -> None:
    """Either field rounds in the consumer's favour, and by little."""
    credit = Credit(amount_minor=amount_minor, energy_wh=energy_wh)
    money, energy = issued(meter(), credit).carried, issued(meter(UNITS_ONLY), credit).carried
    assert money is not None
    assert energy is not None
    paid_e5 = amount_minor * 1_000
    assert paid_e5 <= money.steps <= paid_e5 + paid_e5 // 1_000
    assert energy_wh <= energy.steps * 100 <= energy_wh + max(100, energy_wh // 1_000)


def test_sample_table_meter_is_sold_to_only_where_the_module_allows_it() -> None:
    """EA07 needs tables: without any a typed refusal, with the sample ones a token that a sample meter takes."""
    fields = replace(FIELDS, ea=7, key_change_tokens=2)
    assert reason_of(issue(meter(fields))) is DeclineReason.METER_KEY_UNSUPPORTED
    allowed = StsEngine(module_of(sta_tables=IEC_SAMPLE_TABLES))
    token = asyncio.run(allowed.issue_credit(meter(fields), CREDIT, now_ms=NOW_MS))
    assert isinstance(token, IssuedToken)
    key = derive_decoder_key(VENDING_KEY, key_of(fields)).key
    reader = TokenReader(key, settings=ReaderSettings(sta_tables=IEC_SAMPLE_TABLES))
    assert reader.enter(token.digits, now_ms=0).result is EntryResult.ACCEPTED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ken": NOW_TID // 65_536 - 1}, DeclineReason.KEY_EXPIRED),
        ({"key_type": 1}, DeclineReason.KEY_TYPE_REFUSED),
        ({"sgc": "999999"}, DeclineReason.VENDING_KEY_UNKNOWN),
        ({"dkga": 2}, DeclineReason.METER_KEY_UNSUPPORTED),
        ({"base_year": 1993}, DeclineReason.TID_ERA_EXHAUSTED),
        ({"base_year": 2035}, DeclineReason.TID_ERA_EXHAUSTED),
        ({"capabilities": ("water", "currency")}, DeclineReason.METER_NOT_CAPABLE),
        ({"capabilities": ("electricity",)}, DeclineReason.METER_NOT_CAPABLE),
    ],
)
def test_credit_that_the_meter_would_not_take_is_declined(changes: dict[str, object], reason: DeclineReason) -> None:
    """Each cause has its name, before the sale as in it, and the message holds no key."""
    # The keyword arguments of a dataclass are not typed one by one here.
    record = meter(replace(FIELDS, **changes))  # type: ignore[arg-type]
    declined = issue(record)
    assert reason_of(declined) is reason
    assert VENDING_KEY.hex() not in str(declined)
    if reason is not DeclineReason.METER_KEY_UNSUPPORTED:
        assert reason_of(asyncio.run(engine_of(record, MODULE).judge(record, now_ms=NOW_MS))) is reason


@pytest.mark.parametrize(
    ("changes", "drn", "reason"),
    [
        ({"ea": 9}, DRN, DeclineReason.METER_KEY_UNSUPPORTED),
        ({}, "00000000001", DeclineReason.METER_KEY_UNSUPPORTED),
        ({}, None, DeclineReason.METER_KEY_UNSUPPORTED),
        ({"engine": "vendor_cloud"}, DRN, DeclineReason.ENGINE_NOT_OFFERED),
        ({"capabilities": ("teleport",)}, DRN, DeclineReason.ENGINE_NOT_OFFERED),
        ({"engine": "openpaygo", "day_price_minor": 500}, None, DeclineReason.METER_KEY_UNSUPPORTED),
    ],
)
def test_stored_record_that_cannot_be_used_is_a_typed_refusal(
    changes: dict[str, object], drn: str | None, reason: DeclineReason
) -> None:
    """What another version wrote, or nobody finished, stops a sale and not the process."""
    fields = replace(FIELDS, **changes)  # type: ignore[arg-type]  # As above.
    assert reason_of(read_record(fields, serial="PB000123", drn=drn, last_tid=None)) is reason


def test_key_in_its_last_block_still_sells() -> None:
    """KEN is the last block in force."""
    issued(meter(replace(FIELDS, ken=NOW_TID // 65_536)))


@given(st.integers(0, TID_MAX - 5_000), st.integers(0, 61))
def test_chosen_tid_rises_and_is_never_reserved(last_tid: int, ahead: int) -> None:
    """Whatever was sold last, the next TID is later and not 00:01."""
    now_ms = to_ms(datetime(2014, 1, 1, tzinfo=UTC) + timedelta(minutes=max(0, last_tid - ahead)))
    tid = choose_tid(key_of(), last_tid, now_ms=now_ms)
    if isinstance(tid, int):
        assert tid > last_tid
        assert tid % 1440 != RESERVED_MINUTE_OF_DAY
    else:
        assert tid.reason is DeclineReason.TID_TOO_FAR_AHEAD


def test_thirteen_digit_drn_takes_the_short_issuer_number() -> None:
    """11 digits go with IIN 600727, 13 with 0000."""
    assert key_of().iin == "600727"
    facts = sts_facts(FIELDS, "0000000000000")
    assert isinstance(facts, StsFacts)
    assert facts.key.iin == "0000"


def test_management_is_made_for_what_the_record_says() -> None:
    """A meter is sent only what it takes; an order has a name, a range and its own coding."""
    engine = engine_of(meter(), MODULE)
    limit = asyncio.run(engine.issue_management(meter(), read_order("power_limit", 4_600), now_ms=NOW_MS))
    assert isinstance(limit, IssuedToken)
    assert (limit.token_class, limit.subclass) == (2, 0)
    assert reader_of(FIELDS).enter(limit.digits, now_ms=0).result is EntryResult.ACCEPTED
    for name in ("clear_credit", "disable_payg"):
        refused = asyncio.run(engine.issue_management(meter(), read_order(name, 0), now_ms=NOW_MS))
        assert reason_of(refused) is DeclineReason.METER_NOT_CAPABLE
    for name, value in (("explode", 0), ("clear_credit", 8), ("tariff_rate", 1 << 16)):
        with pytest.raises(MalformedRequest):
            read_order(name, value)


def test_key_change_moves_the_reader_to_the_new_record() -> None:
    """Four tokens in any order; then credit under the new key is taken and under the old one is not."""
    old, new = meter(), meter(replace(FIELDS, krn=2, tariff_index="07"))
    tokens = asyncio.run(engine_of(old, MODULE).issue_key_change(old, new, now_ms=NOW_MS))
    assert isinstance(tokens, tuple)
    assert [token.subclass for token in tokens] == [3, 4, 8, 9]
    reader = reader_of(FIELDS)
    for token in reversed(tokens):
        assert reader.enter(token.digits, now_ms=0).result is EntryResult.ACCEPTED
    assert reader.enter(issued(old).digits, now_ms=1).result is EntryResult.CRC_ERROR
    assert reader.enter(issued(new).digits, now_ms=2).result is EntryResult.ACCEPTED


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ({}, {}, DeclineReason.KEY_CHANGE_REFUSED),
        ({}, {"krn": 2, "base_year": 1993}, DeclineReason.KEY_CHANGE_REFUSED),
        ({}, {"krn": 2, "ken": 1}, DeclineReason.KEY_EXPIRED),
        ({}, {"krn": 3}, DeclineReason.VENDING_KEY_UNKNOWN),
        ({"key_change_tokens": 0}, {"krn": 2}, DeclineReason.METER_NOT_CAPABLE),
    ],
)
def test_key_change_that_would_harm_is_declined(
    old: dict[str, object], new: dict[str, object], reason: DeclineReason
) -> None:
    """The same key, an earlier era, an expired or unknown new key, a meter that takes no set."""
    before = meter(replace(FIELDS, **old))  # type: ignore[arg-type]  # As above.
    after = meter(replace(FIELDS, **new))  # type: ignore[arg-type]  # As above.
    answer = asyncio.run(engine_of(before, MODULE).issue_key_change(before, after, now_ms=NOW_MS))
    assert reason_of(answer) is reason


def test_verify_reads_credit_and_names_what_is_no_token_of_the_meter() -> None:
    """What a token carries is read back as it was issued; another meter's digits are refused with the code."""
    token, engine = issued(meter(UNITS_ONLY)), engine_of(meter(UNITS_ONLY), MODULE)
    read = asyncio.run(engine.verify(meter(UNITS_ONLY), token.digits))
    assert isinstance(read, TokenReading)
    assert (read.carried, read.tid, read.tid_minute) == (token.carried, token.tid, NOON)
    other = meter(replace(UNITS_ONLY, tariff_index="02"))
    refused = asyncio.run(engine.verify(other, token.digits))
    assert isinstance(refused, TokenRefused)
    assert refused.code == "token_crc_mismatch"


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"sgc": "12345"}, {"sgc"}),
        ({"krn": 0, "ken": 256, "tariff_index": "1"}, {"krn", "ken", "tariff_index"}),
        ({"ea": 9}, {"ea"}),
        ({"tct": 3}, {"tct"}),
        ({"base_year": 2000}, {"base_year"}),
        ({"dkga": 2}, {"dkga"}),
        ({"dkga": 3, "ea": 7, "key_change_tokens": 2}, {"dkga"}),
        ({"key_type": 3}, {"key_type"}),
        ({"key_type": 0}, {"key_type"}),
        ({"key_change_tokens": 2}, {"key_change_tokens"}),
        ({"ea": 7, "dkga": 2}, {"key_change_tokens"}),
        ({"capabilities": ("currency",)}, {"capabilities"}),
        ({"capabilities": ("electricity",)}, {"capabilities"}),
        ({"capabilities": ("electricity", "units", "disable_payg")}, {"capabilities"}),
        ({"capabilities": ("teleport",)}, {"capabilities"}),
        ({"engine": "telepathy"}, {"engine"}),
        ({"engine": "openpaygo", "capabilities": ("time",)}, {"day_price"}),
        ({"engine": "openpaygo", "capabilities": ("units",), "day_price_minor": 5}, {"capabilities"}),
        ({"ea": 7, "dkga": 2, "key_type": 3, "key_change_tokens": 3}, set()),
        ({"engine": "openpaygo", "capabilities": ("time",), "day_price_minor": 5}, set()),
        ({}, set()),
    ],
)
def test_entered_record_is_held_against_ranges_and_the_engine(changes: dict[str, object], fields: set[str]) -> None:
    """Every wrong field is named at once; what fits the engine passes."""
    faults = faults_of(replace(FIELDS, **changes), drn=DRN)  # type: ignore[arg-type]  # As above.
    assert {fault.field for fault in faults} == fields


def test_entered_drn_with_a_wrong_check_digit_is_named() -> None:
    """One digit mistyped on a label is found before any token is made."""
    assert [fault.field for fault in faults_of(FIELDS, drn="00000000001")] == ["drn"]
    assert [fault.field for fault in faults_of(FIELDS, drn=None)] == ["drn"]


# OpenPAYGO ---------------------------------------------------------------------------------------------------------

# Origin: the example device list of EnAccess/OpenPAYGO-Token, a published test key.
DEVICE_KEY, STARTING_CODE = bytes.fromhex("dac86b1a29ab82edc5fbbc41ec9530f6"), 432_435_255
PAYGO = RecordFields(
    engine="openpaygo", capabilities=("counter_sync", "disable_payg", "set_time", "time"), day_price_minor=1_200
)
DAY_MS = 86_400_000


def device(*, last_tid: int | None = None, time_divider: int = 4, fields: RecordFields = PAYGO) -> MeterRecord:
    """Read the record of a device that counts quarters of a day."""
    stored = StoredDevice(
        device=PaygoDevice(serial="SLT1", starting_code=STARTING_CODE, time_divider=time_divider),
        sealed_key=seal_device_key(MASTER, "SLT1", DEVICE_KEY),
    )
    record = read_record(fields, serial="SLT1", drn=None, last_tid=last_tid, device=stored)
    assert isinstance(record, MeterRecord), record
    return record


def test_device_gets_time_at_its_price_of_a_day_rounded_up() -> None:
    """Money becomes parts of a day, never fewer than were paid for; the next count follows the last one."""
    token = issued(device(last_tid=1), Credit(amount_minor=2_500, energy_wh=0))
    assert token.carried is not None
    assert (token.engine.value, token.tid, token.token_class) == ("openpaygo", 2, None)
    assert (token.carried.steps, token.carried.text, token.carried.unit) == (9, "2.25", CarriedUnit.DAYS)
    keypad = OpenPaygoReader(DEVICE_KEY, STARTING_CODE, time_divider=4)
    assert keypad.enter(token.digits, 0).accepted
    assert keypad.time_left_ms(0) == 9 * DAY_MS // 4
    read = asyncio.run(engine_of(device(last_tid=2), MODULE).verify(device(last_tid=2), token.digits))
    assert isinstance(read, TokenReading)
    assert (read.carried, read.tid, read.masked) == (token.carried, 2, f"...{token.digits[-4:]}")


def test_device_obeys_the_commands_that_its_record_names() -> None:
    """A command has the next odd count; one that the record does not name is not made."""
    engine, keypad = engine_of(device(), MODULE), OpenPaygoReader(DEVICE_KEY, STARTING_CODE, time_divider=4)
    order = read_order("disable_payg", 0)
    token = asyncio.run(engine.issue_management(device(last_tid=4), order, now_ms=NOW_MS))
    assert isinstance(token, IssuedToken)
    assert token.tid == 5
    assert keypad.enter(token.digits, 0).accepted
    assert keypad.is_active(100 * DAY_MS)
    limited = device(fields=replace(PAYGO, capabilities=("time",)))
    for order in (read_order("set_time", 5), read_order("clear_tamper", 0)):
        answer = asyncio.run(engine.issue_management(limited, order, now_ms=NOW_MS))
        assert reason_of(answer) is DeclineReason.METER_NOT_CAPABLE
    assert reason_of(asyncio.run(engine.issue_key_change(limited, limited, now_ms=NOW_MS))) is (
        DeclineReason.METER_NOT_CAPABLE
    )


def test_device_refuses_what_one_token_cannot_carry() -> None:
    """More time than fits is a limit in money; a device without counts left, or whose key does not open, a refusal."""
    too_much = issue(device(), Credit(amount_minor=300_000, energy_wh=0))
    assert reason_of(too_much) is DeclineReason.AMOUNT_ABOVE_MAXIMUM
    assert isinstance(too_much, Declined)
    assert too_much.limit_minor == 995 * 1_200 // 4
    issued(device(), Credit(amount_minor=too_much.limit_minor, energy_wh=0))
    assert reason_of(issue(device(last_tid=20_000))) is DeclineReason.TID_ERA_EXHAUSTED
    other_master = SoftSecurityModule(bytes(32), [], rnd_nibble=lambda: 5)
    answer = asyncio.run(PaygoEngine(other_master).issue_credit(device(), CREDIT, now_ms=NOW_MS))
    assert reason_of(answer) is DeclineReason.METER_KEY_UNSUPPORTED


def test_device_digits_of_another_form_are_no_token_of_it() -> None:
    """Eleven digits, or those of another device, are refused with the engine's own code."""
    engine = engine_of(device(), MODULE)
    for digits, code in (("1" * 11, "malformed_paygo_token"), ("123456789", "paygo_token_mismatch")):
        refused = asyncio.run(engine.verify(device(), digits))
        assert isinstance(refused, TokenRefused)
        assert refused.code == code
