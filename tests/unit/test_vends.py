"""Vend requests: their form, their digest, what is refused, and the token that is minted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.calendar import to_ms
from billing.money import BadAmount
from billing.prepayment import builtin_rules_text, parse_rules
from billing.supply import Mode
from meter_sim.token_reader import CreditUnit, EntryResult, TokenReader
from vending.security import SealedVendingKey, SoftSecurityModule, seal_vending_key
from vending.sts.errors import MalformedToken
from vending.sts.identity import MeterKeyRecord
from vending.sts.keys import derive_decoder_key
from vending.sts.tid import RESERVED_MINUTE_OF_DAY, TID_MAX
from vending.vends import (
    Declined,
    DeclineReason,
    DrnCheckDigit,
    IssuedToken,
    MalformedRequest,
    StsFields,
    VendLimits,
    VendRequest,
    category_limits,
    choose_tid,
    issue_token,
    judge_amount,
    judge_key,
    judge_mode,
    judge_vendor,
    key_record,
    read_request,
    read_token,
    request_digest,
    require_drn_check_digit,
)

MASTER = bytes(range(32))
# Origin: STS 531 compliance tests, a published test key.
VENDING_KEY = bytes.fromhex("abababababababab949494949494949401234567")
MODULE = SoftSecurityModule(
    MASTER,
    [SealedVendingKey(sgc="201457", krn=1, sealed=seal_vending_key(MASTER, "201457", 1, VENDING_KEY))],
    rnd_nibble=lambda: 5,
)
FIELDS = StsFields(
    drn="00000000000",
    ea=11,
    dkga=4,
    sgc="201457",
    key_type=2,
    krn=1,
    tariff_index="01",
    ken=255,
    base_year=2014,
    last_tid=None,
)
NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
NOW_MS = to_ms(NOON)
NOW_TID = (NOON - datetime(2014, 1, 1, tzinfo=UTC)) // timedelta(minutes=1)
LIMITS = VendLimits(min_minor=1_000, max_minor=5_000_000)


def request(**changes: str) -> VendRequest:
    """Read a good request with some fields changed."""
    return read_request(**{"message_id": "T17-1", "meter": "PB000123", "amount": "500.00", **changes})


def record_of(fields: StsFields) -> MeterKeyRecord:
    """Read a record that must be good."""
    record = key_record(fields)
    assert isinstance(record, MeterKeyRecord)
    return record


def reason_of(answer: object) -> DeclineReason:
    """Return the reason of what must be a refusal."""
    assert isinstance(answer, Declined), answer
    return answer.reason


def test_read_request_keeps_fields_and_counts_minor_units() -> None:
    """A well-formed request is read as it stands."""
    assert request() == VendRequest(message_id="T17-1", meter="PB000123", amount_minor=50_000)


@pytest.mark.parametrize(
    "amount",
    ["", " 5.00", "5.0", "5.000", "-5.00", "+5.00", "5,00", "1e3", "five", "0x10", "5.00\n", "\u0665.\u0660\u0660"],
)
def test_read_request_with_another_form_of_amount_is_refused(amount: str) -> None:
    """Only digits with none or two decimals are an amount."""
    with pytest.raises(BadAmount):
        request(amount=amount)


@pytest.mark.parametrize("message_id", ["", ".a", "a b", "a/b", "a\n", "x" * 65, "\u0a05", "a\x00"])
def test_read_request_with_another_form_of_message_id_is_refused(message_id: str) -> None:
    """A message id is safe in a path and a log."""
    with pytest.raises(MalformedRequest):
        request(message_id=message_id)


@pytest.mark.parametrize("meter", ["", "PB 1", "x" * 33, "PB\n", "\u0967\u0968"])
def test_read_request_with_another_form_of_meter_is_refused(meter: str) -> None:
    """A meter is named by what its table may hold."""
    with pytest.raises(MalformedRequest):
        request(meter=meter)


def test_digest_of_the_same_amount_written_otherwise_is_equal() -> None:
    """`500` and `500.00` are one request."""
    assert request_digest(request(amount="500")) == request_digest(request(amount="500.00"))


@given(st.integers(0, 10**14), st.integers(0, 10**14), st.sampled_from("AB"), st.sampled_from("AB"))
def test_digests_are_equal_exactly_for_the_same_meter_and_amount(one: int, other: int, a: str, b: str) -> None:
    """Nothing but meter and amount tells two requests of one id apart."""
    first = request_digest(VendRequest(message_id="1", meter=a, amount_minor=one))
    second = request_digest(VendRequest(message_id="2", meter=b, amount_minor=other))
    assert (first == second) == ((a, one) == (b, other))


@pytest.mark.parametrize(
    ("amount_minor", "reason"),
    [
        (0, DeclineReason.AMOUNT_BELOW_MINIMUM),
        (999, DeclineReason.AMOUNT_BELOW_MINIMUM),
        (1_000, None),
        (5_000_000, None),
        (5_000_001, DeclineReason.AMOUNT_ABOVE_MAXIMUM),
    ],
)
def test_amount_is_held_against_both_limits(amount_minor: int, reason: DeclineReason | None) -> None:
    """Both limits themselves are sold; beyond them the limit is named."""
    declined = judge_amount(amount_minor, LIMITS)
    assert (declined.reason if declined else None) is reason
    if declined:
        assert declined.limit_minor in (LIMITS.min_minor, LIMITS.max_minor)


def test_postpaid_account_and_stopped_vendor_are_refused() -> None:
    """One pays by bill, the other may not sell."""
    assert judge_mode(Mode.PREPAID, "1") is None
    assert reason_of(judge_mode(Mode.POSTPAID, "1")) is DeclineReason.POSTPAID_ACCOUNT
    assert judge_vendor(name="S", active=True) is None
    assert reason_of(judge_vendor(name="S", active=False)) is DeclineReason.VENDOR_INACTIVE


def test_drn_check_digit_is_asked_of_digits_of_its_length_only() -> None:
    """A serial of another form is just unknown."""
    for unknown in ("PB000123", "1234", "00000000000", "0000000000000"):
        require_drn_check_digit(unknown)
    for mistyped in ("00000000001", "0000000000001"):
        with pytest.raises(DrnCheckDigit):
            require_drn_check_digit(mistyped)


def test_token_is_read_with_or_without_groups() -> None:
    """Spaces and dashes are how people copy a token."""
    assert read_token("1234-5678 9012 3456 7890").digits == "12345678901234567890"


@pytest.mark.parametrize("text", ["1" * 19, "1" * 21, "", "1234567890123456789x", "\u0661" * 20, "9" * 20])
def test_other_than_twenty_digits_is_no_token(text: str) -> None:
    """Nineteen digits, twenty-one, letters, other scripts, and a number above 66 bits."""
    with pytest.raises(MalformedToken) as caught:
        read_token(text)
    assert text == "" or text not in str(caught.value)


def test_issued_token_is_credited_by_the_meter_once() -> None:
    """The meter's own reader finds amount and TID, the second entry is used."""
    issued = issue_token(MODULE, FIELDS, 50_000, now_ms=NOW_MS)
    assert isinstance(issued, IssuedToken)
    assert issued.tid == NOW_TID
    reader = TokenReader(derive_decoder_key(VENDING_KEY, record_of(FIELDS)).key)
    entry = reader.enter(issued.number.digits, now_ms=0)
    assert (entry.result, entry.tid, entry.unit) == (EntryResult.ACCEPTED, issued.tid, CreditUnit.CURRENCY_E5)
    assert entry.amount == issued.amount_e5 == 50_002_624
    assert reader.enter(issued.number.digits, now_ms=1).result is EntryResult.USED


@given(st.integers(1, 10**9))
def test_issued_token_never_carries_less_than_was_paid(amount_minor: int) -> None:
    """The field's rounding is in the consumer's favour, and small."""
    issued = issue_token(MODULE, FIELDS, amount_minor, now_ms=NOW_MS)
    assert isinstance(issued, IssuedToken)
    paid_e5 = amount_minor * 1_000
    assert paid_e5 <= issued.amount_e5 <= paid_e5 + paid_e5 // 1_000


@given(st.integers(0, TID_MAX - 5_000), st.integers(0, 61))
def test_chosen_tid_rises_and_is_never_reserved(last_tid: int, ahead: int) -> None:
    """Whatever was sold last, the next TID is later and not 00:01."""
    now_ms = to_ms(datetime(2014, 1, 1, tzinfo=UTC) + timedelta(minutes=max(0, last_tid - ahead)))
    tid = choose_tid(record_of(FIELDS), last_tid, now_ms=now_ms)
    if isinstance(tid, int):
        assert tid > last_tid
        assert tid % 1440 != RESERVED_MINUTE_OF_DAY
    else:
        assert tid.reason is DeclineReason.TID_TOO_FAR_AHEAD


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ken": NOW_TID // 65_536 - 1}, DeclineReason.KEY_EXPIRED),
        ({"key_type": 1}, DeclineReason.KEY_TYPE_REFUSED),
        ({"sgc": "999999"}, DeclineReason.VENDING_KEY_UNKNOWN),
        ({"ea": 7}, DeclineReason.METER_KEY_UNSUPPORTED),
        ({"ea": 9}, DeclineReason.METER_KEY_UNSUPPORTED),
        ({"dkga": 2}, DeclineReason.METER_KEY_UNSUPPORTED),
        ({"drn": "00000000001"}, DeclineReason.METER_KEY_UNSUPPORTED),
        ({"base_year": 1993}, DeclineReason.TID_ERA_EXHAUSTED),
        ({"base_year": 2035}, DeclineReason.TID_ERA_EXHAUSTED),
        ({"last_tid": NOW_TID + 60}, DeclineReason.TID_TOO_FAR_AHEAD),
    ],
)
def test_token_that_the_meter_would_not_take_is_declined(changes: dict[str, object], reason: DeclineReason) -> None:
    """Each cause has its name, and the message holds no key."""
    # The keyword arguments of a dataclass are not typed one by one here.
    declined = issue_token(MODULE, replace(FIELDS, **changes), 50_000, now_ms=NOW_MS)  # type: ignore[arg-type]
    assert reason_of(declined) is reason
    assert VENDING_KEY.hex() not in str(declined)


def test_key_in_its_last_block_still_sells() -> None:
    """KEN is the last block in force."""
    fields = replace(FIELDS, ken=NOW_TID // 65_536)
    assert isinstance(issue_token(MODULE, fields, 50_000, now_ms=NOW_MS), IssuedToken)


def test_key_is_judged_before_a_sale_without_minting() -> None:
    """The confirmation says what the vend would."""
    assert judge_key(MODULE, record_of(FIELDS)) is None
    assert reason_of(judge_key(MODULE, record_of(replace(FIELDS, krn=2)))) is DeclineReason.VENDING_KEY_UNKNOWN
    assert reason_of(judge_key(MODULE, record_of(replace(FIELDS, key_type=1)))) is DeclineReason.KEY_TYPE_REFUSED


def test_thirteen_digit_drn_takes_the_short_issuer_number() -> None:
    """11 digits go with IIN 600727, 13 with 0000."""
    assert record_of(FIELDS).iin == "600727"
    assert record_of(replace(FIELDS, drn="0000000000000")).iin == "0000"


@pytest.mark.parametrize(
    ("recharge", "limits"),
    [
        # Inside, wider than, below and above the installation's bounds of 1,000 to 5,000,000.
        ((20_000, 60_000), (20_000, 60_000)),
        ((1, 9_000_000), (1_000, 5_000_000)),
        ((1, 500), (1_000, 1_000)),
        ((6_000_000, 9_000_000), (5_000_000, 5_000_000)),
    ],
)
def test_category_limits_stay_inside_the_installations(recharge: tuple[int, int], limits: tuple[int, int]) -> None:
    """A category narrows what the installation allows and never widens it."""
    least_minor, most_minor = recharge
    rules = replace(
        parse_rules(builtin_rules_text()).default, recharge_min_minor=least_minor, recharge_max_minor=most_minor
    )
    assert category_limits(LIMITS, rules) == VendLimits(min_minor=limits[0], max_minor=limits[1])
