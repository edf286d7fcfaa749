"""The vector check: it passes facts, fails lies, and never passes what it did not check."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.sts.amounts import CurrencyField
from vending.sts.check import CheckResult, Verdict, check_vectors
from vending.sts.check_tokens import FINE_UNITS, NEEDS_TABLES, WHOLE_UNITS
from vending.sts.errors import InvalidCipherTables
from vending.sts.identity import EncryptionAlgorithm
from vending.sts.keys import DecoderKey
from vending.sts.sta import IEC_SAMPLE_TABLES, Sta, StaTables
from vending.sts.sta_tables import parse_sta_tables
from vending.sts.tokens import (
    CreditService,
    CurrencyCredit,
    ExtendedRead,
    encode_token,
    join_class,
    seal_frame,
)

OWN_VECTORS = Path(__file__).parents[1] / "vectors" / "sts.jsonl"
SHARED_VECTORS = Path(__file__).parents[2].parent / "shared" / "vectors" / "sts_vectors.jsonl"
CASES = [json.loads(line) for line in OWN_VECTORS.read_text().splitlines()]
CREDIT = CASES[0]
CURRENCY = next(case for case in CASES if "currency" in case["algorithm"])
KEY_CHANGE = next(case for case in CASES if "key change" in case["algorithm"])


def operator_tables() -> str:
    """Write a tables file of permutations that are not the samples; no meter has them."""
    s1, s2, p = IEC_SAMPLE_TABLES.s2, IEC_SAMPLE_TABLES.s1, IEC_SAMPLE_TABLES.p
    key, block = bytes(range(8)), 0x0123456789ABCDEF
    token = join_class(0, Sta(key, StaTables(name="test", s1=s1, s2=s2, p=p)).encrypt(block)).digits
    self_test = {"decoder_key": key.hex(), "block": f"{block:016x}", "token": token}
    return json.dumps({"s1": s1, "s2": s2, "p": p, "self_test": self_test})


OPERATOR_TABLES = operator_tables()


def check_case(algorithm: str, inputs: object, expected: object) -> CheckResult:
    """Check one case."""
    return check_vectors([json.dumps({"algorithm": algorithm, "inputs": inputs, "expected": expected})])


def verdict_of(algorithm: str, inputs: object, expected: object) -> tuple[Verdict, str]:
    """Return the verdict and the reason of one case."""
    result = check_case(algorithm, inputs, expected)
    if result.passed:
        return Verdict.PASSED, ""
    (detail,) = result.details
    return detail.verdict, detail.reason


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['algorithm']}, {case['origin'][-20:]}")
def test_check_own_vector_passes(case: dict[str, Any]) -> None:
    """Each published fact is reproduced."""
    assert verdict_of(case["algorithm"], case["inputs"], case["expected"]) == (Verdict.PASSED, "")


def test_check_shared_file_has_no_failure() -> None:
    """The whole public file holds, and nothing in it is left out."""
    if not SHARED_VECTORS.exists():
        pytest.skip("the shared vector file lies outside the repository and is not present")
    result = check_vectors(SHARED_VECTORS.read_text().splitlines())
    assert [str(each) for each in result.details if each.verdict is Verdict.FAILED] == []
    assert (result.passed, result.failed, result.skipped) == (149, 0, 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['algorithm']}, {case['origin'][-20:]}")
def test_check_every_expected_field_that_is_changed_fails(case: dict[str, Any]) -> None:
    """Each expected field counts: a lie in any of them is a failure."""
    lies: dict[type, Any] = {
        bool: lambda v: not v,
        int: lambda v: v + 1,
        str: lambda v: v[:-1] + ("1" if v[-1] != "1" else "2"),
        dict: lambda v: {name: lies[str](token) for name, token in v.items()},
    }
    for name, told in case["expected"].items():
        lie = {**case["expected"], name: lies[type(told)](told)}
        assert verdict_of(case["algorithm"], case["inputs"], lie)[0] is Verdict.FAILED, name


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case["algorithm"].startswith(("class0/", "class2/")) and "DKGA" in case["algorithm"]],
    ids=lambda case: case["origin"][-20:],
)
def test_check_case_without_a_needed_input_is_skipped_with_its_name(
    case: dict[str, Any],
) -> None:
    """An incomplete case is skipped, never passed, and says what is missing."""
    for name in set(case["inputs"]) - {"class", "subclass", "ea", "dkga", "ken"}:
        inputs = {key: value for key, value in case["inputs"].items() if key != name}
        assert verdict_of(case["algorithm"], inputs, case["expected"]) == (
            Verdict.SKIPPED,
            f"incomplete: input {name} is missing",
        )


@pytest.mark.parametrize(
    ("algorithm", "reason"),
    [
        ("class0/0 DKGA01 EA07", "DKGA01 is not implemented"),
        ("class0/0 DKGA09 EA11", "DKGA09 is not implemented"),
        ("class0/0 DKGA04 EA09", "EA09 is not implemented"),
        ("class0/0 DKGA04 EA11", "incomplete: input pan is missing"),
        ("class2/3 DKGA04 EA11", "class 2 subclass 3 has no value to make it from"),
        ("class0/0 EA11 from decoder key", "incomplete: neither the contents nor a token are given"),
        ("class2 key change set DKGA04 EA11", "incomplete: input old is missing"),
        ("class9/9 something else", "this algorithm is not known here"),
    ],
)
def test_check_case_that_cannot_be_computed_is_skipped_with_reason(algorithm: str, reason: str) -> None:
    """What cannot be checked is counted apart."""
    inputs = {"decoder_key": "00" * 16, "ken": 1}
    assert verdict_of(algorithm, inputs, {"tid": 1}) == (Verdict.SKIPPED, reason)


def test_check_des_derivation_for_ea11_is_skipped_not_failed() -> None:
    """DKGA02 gives no key for EA11: nothing can be said of such a case."""
    inputs = {**CREDIT["inputs"], "vk": "ab" * 8, "dkga": "02"}
    verdict, reason = verdict_of("class0/0 DKGA02 EA11", inputs, CREDIT["expected"])
    assert verdict is Verdict.SKIPPED
    assert "64-bit" in reason


# Origin: STS 531 compliance tests, EA07: the decoder key of DKGA02 is published. The tokens of these cases are our
# own, made with the IEC sample tables.
EA07_INPUTS = {
    **CREDIT["inputs"],
    "sgc": "123456",
    "vk": "ab" * 8,
    "ea": "07",
    "dkga": "02",
}
EA07_KEY = "e653341f9d5bf36f"


def ea07_token(subclass: int = 0, token_class: int = 0, payload16: int = 1) -> str:
    """Make a token with the sample tables."""
    key = DecoderKey(ea=EncryptionAlgorithm.STA, key=bytes.fromhex(EA07_KEY), sta_tables=IEC_SAMPLE_TABLES)
    return seal_frame(token_class, subclass, 5 << 40 | 5_871_660 << 16 | payload16, key).digits


def test_check_ea07_case_passes_with_the_sample_tables_and_without_them_is_not_judged() -> None:
    """A key or TID that is wrong fails; a token that only other tables could give is skipped, never passed."""
    expected = {"decoder_key": EA07_KEY, "tid": 5871660, "payload16": "0001", "token": ea07_token()}
    name = "class0/0 DKGA02 EA07"
    assert verdict_of(name, EA07_INPUTS, expected) == (Verdict.PASSED, "")
    other = expected | {"token": ea07_token(payload16=2)}
    assert verdict_of(name, EA07_INPUTS, other) == (Verdict.SKIPPED, NEEDS_TABLES)
    assert verdict_of(name, EA07_INPUTS, other | {"tid": 1})[0] is Verdict.FAILED
    line = json.dumps({"algorithm": name, "inputs": EA07_INPUTS, "expected": other})
    assert check_vectors([line], ea07_tables=OPERATOR_TABLES).failed == 1


def test_check_with_an_operators_tables_uses_them_except_for_sample_cases() -> None:
    """The operator's tables judge EA07; a case named SAMPLE keeps the samples."""
    tables = parse_sta_tables(OPERATOR_TABLES)
    key = DecoderKey(ea=EncryptionAlgorithm.STA, key=bytes.fromhex(EA07_KEY), sta_tables=tables)
    field44 = 5 << 40 | 5_871_660 << 16 | 1
    token = seal_frame(0, 0, field44, key).digits
    inputs = {"decoder_key": EA07_KEY, "rnd": 5, "tid": 5871660, "units": "0.1"}
    lines = [
        json.dumps({"algorithm": name, "inputs": inputs, "expected": {"token": told}})
        for name, told in (("class0/0 EA07 from decoder key", token), ("class0/0 EA07 SAMPLE tables", ea07_token()))
    ]
    assert check_vectors(lines, ea07_tables=OPERATOR_TABLES).passed == 2
    result = check_vectors(lines)
    assert (result.passed, result.failed, result.skipped) == (1, 0, 1)
    with pytest.raises(InvalidCipherTables):
        check_vectors(lines, ea07_tables="{}")


def test_check_case_with_given_key_and_no_value_is_checked_on_what_is() -> None:
    """The token must open under the key, and what is told of it must agree."""
    name, told = "class0/0 EA11 with given decoder key", CREDIT["expected"]
    inputs = {"decoder_key": told["decoder_key"], "bdt": "93", "issue_time": CREDIT["inputs"]["issue_time"]}
    expected = {"token": told["token"], "payload16": "0001", "tid": 5871660}
    assert verdict_of(name, inputs, expected) == (Verdict.PASSED, "")
    assert verdict_of(name, inputs, expected | {"payload16": "0002"})[0] is Verdict.FAILED
    assert verdict_of(name, inputs | {"rnd": 4}, expected)[0] is Verdict.FAILED
    assert verdict_of(name, inputs | {"units": "0.2"}, expected)[0] is Verdict.FAILED
    assert verdict_of(name, inputs | {"issue_time": "2004-03-01T13:01:00"}, expected)[0] is Verdict.FAILED
    assert verdict_of(name, inputs | {"decoder_key": "00" * 16}, expected)[0] is Verdict.FAILED
    assert verdict_of("class0/1 EA11 from decoder key", inputs, expected)[0] is Verdict.FAILED
    ea07 = {"decoder_key": EA07_KEY}
    assert verdict_of("class0/0 EA07 SAMPLE tables", ea07, {"token": ea07_token()})[0] is Verdict.PASSED
    assert verdict_of("class0/0 EA07 SAMPLE tables", ea07, {"token": told["token"]})[0] is Verdict.FAILED
    unknown = verdict_of("class0/0 EA07 with given decoder key", ea07, {"token": told["token"]})
    assert unknown == (Verdict.SKIPPED, NEEDS_TABLES)
    block = {"decoder_key": "0abc12def3456789", "block64": "0b19eb230100c207"}
    token = {"token": "51043465443420856213"}
    assert verdict_of("class0/0 EA07 SAMPLE tables", block, token)[0] is Verdict.PASSED
    assert verdict_of("class2/0 EA07 SAMPLE tables", block, token)[0] is Verdict.FAILED


def test_check_currency_amount_is_read_both_ways_and_the_note_says_which() -> None:
    """Whole units hold for the published cases; 10^-5 is tried next; a mismatch of both never passes."""
    lines = [json.dumps(CURRENCY)]
    fine = CURRENCY["inputs"] | {"currency_amount": "100000"}
    whole = CURRENCY["inputs"] | {"currency_amount": "1"}
    key = DecoderKey(ea=EncryptionAlgorithm.MISTY1, key=bytes.fromhex(CURRENCY["expected"]["decoder_key"]))
    amount = CurrencyField.encode(100_000)
    token = encode_token(CurrencyCredit(service=CreditService.ELECTRICITY, tid=7171995, amount=amount), key).digits
    for inputs in (fine, whole):
        case = {"algorithm": CURRENCY["algorithm"], "inputs": inputs, "expected": {"token": token}}
        lines.append(json.dumps(case))
    result = check_vectors(lines)
    assert [each.reason for each in result.notes] == [WHOLE_UNITS, FINE_UNITS, WHOLE_UNITS]
    assert (result.passed, result.details) == (3, ())
    verdict, reason = verdict_of(CURRENCY["algorithm"], fine | {"currency_amount": "2"}, {"token": token})
    assert verdict is Verdict.FAILED
    assert WHOLE_UNITS in reason
    assert FINE_UNITS in reason


def test_check_key_change_set_counts_every_token_it_names() -> None:
    """By name or as a list, each told token is compared; a set without tokens told is not passed."""
    inputs, expected = KEY_CHANGE["inputs"], KEY_CHANGE["expected"]
    listed = list(expected["tokens"].values())
    name = KEY_CHANGE["algorithm"]
    assert verdict_of(name, inputs, expected | {"tokens": listed})[0] is Verdict.PASSED
    for place in range(4):
        wrong = [*listed[:place], listed[place - 1], *listed[place + 1 :]]
        assert verdict_of(name, inputs, expected | {"tokens": wrong})[0] is Verdict.FAILED
        verdict, reason = verdict_of(name, inputs, expected | {"tokens": dict(zip("abcd", listed, strict=True))})
        assert verdict is Verdict.FAILED
        assert listed[place] not in reason
    unusable: list[object] = [[], {}, "1", None, [*listed, listed[0]]]
    for tokens in unusable:
        assert verdict_of(name, inputs, {"tokens": tokens})[0] is Verdict.FAILED
    for missing in ("ken", "ro", "res_3kct", "old", "new"):
        part = {key: value for key, value in inputs.items() if key != missing}
        assert verdict_of(name, part, expected) == (Verdict.SKIPPED, f"incomplete: input {missing} is missing")
    old = {key: value for key, value in inputs["old"].items() if key != "vk"}
    reason = "incomplete: input old.vk is missing"
    assert verdict_of(name, inputs | {"old": old}, expected) == (Verdict.SKIPPED, reason)


def test_check_decode_of_key_change_and_management_tokens() -> None:
    """The fields of each section and of management tokens, by the names of the standard in any case."""
    key = {"decoder_key": KEY_CHANGE["expected"]["old_decoder_key"], "ea": "11"}
    tokens = KEY_CHANGE["expected"]["tokens"]
    sections = {
        "1st": {"subclass": 3, "KENHO": 15, "krn": 1, "ro": 0, "res_3kct": 0, "kt": 2, "nkho": "b2088343"},
        "2nd": {"subclass": 4, "ken_lo": 15, "ti": "02", "nklo": "593090d4"},
        "3rd": {"subclass": 8, "sgclo": 123457 & 0xFFF, "nkmo2": "72ef892e"},
        "4th": {"subclass": 9, "sgcho": 123457 >> 12, "nkmo1": "f6e04c28"},
    }
    for name, expected in sections.items():
        inputs = {"token": tokens[name], **key}
        assert verdict_of("decode class2 key change EA11", inputs, expected) == (Verdict.PASSED, ""), name
    lie = {"subclass": 4, "ti": "03", "nklo": "593090d5"}
    verdict, reason = verdict_of("decode class2/4 EA11", {"token": tokens["2nd"], **key}, lie)
    assert verdict is Verdict.FAILED
    assert "593090d" not in reason
    limit = {"class": 2, "subclass": 0, "rnd": 5, "tid": 5910301, "payload16": "03e8", "value": 1000}
    assert check_case("decode class2/0", {"token": "26521936751055502278", **key}, limit).passed == 1
    ea07 = {"token": ea07_token(), "decoder_key": EA07_KEY}
    assert check_case("decode class0/0 EA07", ea07, {"tid": 5871660, "crc_ok": True}).passed == 1
    assert check_case("decode class0/0", ea07 | {"decoder_key": "00" * 8}, {"crc_ok": False}).skipped == 1
    assert check_case("decode class0/0 EA07 SAMPLE", ea07 | {"decoder_key": "00" * 8}, {"crc_ok": False}).passed == 1
    assert check_case("decode class0/0 EA07", ea07 | {"ea": "11"}, {"crc_ok": False}).failed == 1


def test_check_unconfirmed_dkga03_may_be_put_to_the_test() -> None:
    """A file with a DKGA03 case confirms or refutes it; two equal halves are single DES without the key added."""
    inputs = EA07_INPUTS | {"vk": "ab" * 16, "dkga": "03"}
    key = f"{int(EA07_KEY, 16) ^ int('ab' * 8, 16):016x}"
    assert verdict_of("class0/0 DKGA03 EA07", inputs, {"decoder_key": key})[0] is Verdict.PASSED
    assert verdict_of("class0/0 DKGA03 EA07", inputs, {"decoder_key": EA07_KEY})[0] is Verdict.FAILED


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "1",
        '"text"',
        "nonsense",
        "{}",
        '{"algorithm": 1, "inputs": {}, "expected": {}}',
        '{"algorithm": "TID", "inputs": [], "expected": {}}',
        '{"algorithm": "TID", "inputs": {}}',
        '{"algorithm": "TID", "algorithm": "TID", "inputs": {}, "expected": {}}',
        "[" * 60_000,
        '{"algorithm": "' + "x" * 70_000 + '"}',
        '{"algorithm": "TID", "inputs": {"bdt": ' + "1" * 5_000 + '}, "expected": {}}',
    ],
    ids=lambda line: line[:40],
)
def test_check_malformed_line_fails_with_its_line_number(line: str) -> None:
    """A line that is no case is a failure of the file, named by its place."""
    result = check_vectors(["", json.dumps(CREDIT), line, "\n"])
    assert (result.passed, result.failed, result.skipped) == (1, 1, 0)
    (detail,) = result.details
    assert detail.line == 3
    assert "malformed" in str(detail)


@given(
    case=st.sampled_from(CASES),
    data=st.data(),
    junk=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    ),
)
def test_check_any_junk_in_a_field_gets_a_verdict(case: dict[str, Any], data: st.DataObject, junk: object) -> None:
    """Whatever stands in a field, the check answers and its reasons can be printed."""
    part = data.draw(st.sampled_from(["inputs", "expected"]))
    name = data.draw(st.sampled_from(sorted(case[part])))
    result = check_vectors([json.dumps({**case, part: {**case[part], name: junk}})])
    assert result.passed + result.failed + result.skipped == 1
    assert all(str(detail).encode("utf-8") for detail in result.details)


def test_check_failing_case_shows_no_key_and_no_whole_token() -> None:
    """A reason may stand in a build log: keys stay out and tokens are masked."""
    expected = {**CREDIT["expected"], "decoder_key": "0" * 32, "token": "59386323472137426960"}
    verdict, reason = verdict_of(CREDIT["algorithm"], CREDIT["inputs"], expected)
    assert verdict is Verdict.FAILED
    assert "6960" in reason
    for secret in ("f94b6ed3", "5938632347213742", "abababab", "00000000"):
        assert secret not in reason


def test_check_unknown_expected_field_is_skipped_not_passed() -> None:
    """A field that is not understood keeps the case from passing."""
    expected = {**CREDIT["expected"], "colour": "blue"}
    verdict, reason = verdict_of(CREDIT["algorithm"], CREDIT["inputs"], expected)
    assert (verdict, reason) == (Verdict.SKIPPED, "expected field not computed here: colour")
    assert verdict_of(CREDIT["algorithm"], CREDIT["inputs"], {})[0] is Verdict.SKIPPED


def test_check_input_that_contradicts_the_name_fails() -> None:
    """The name says the class; an input that says another is a broken case."""
    verdict, reason = verdict_of(CREDIT["algorithm"], {**CREDIT["inputs"], "subclass": 1}, CREDIT["expected"])
    assert verdict is Verdict.FAILED
    assert "subclass" in reason


def test_check_currency_source_amount_is_compared_to_its_printed_digits() -> None:
    """An abbreviated source amount is checked as far as it goes."""
    expected = dict(CURRENCY["expected"])
    assert expected["source_amount"] == "-1.82044E+14"
    expected["source_amount"] = "-1.82045E+14"
    assert verdict_of(CURRENCY["algorithm"], CURRENCY["inputs"], expected)[0] is Verdict.FAILED
    for junk in ("NaN", "Infinity", "sNaN", "1E+999999999", ""):
        expected["source_amount"] = junk
        assert verdict_of(CURRENCY["algorithm"], CURRENCY["inputs"], expected)[0] is Verdict.FAILED


@pytest.mark.parametrize(
    ("inputs", "expected", "verdict"),
    [
        ({"digits": "1234567890"}, {"check": 4}, Verdict.PASSED),
        ({"digits": "1234567890"}, {"check": 3}, Verdict.FAILED),
        ({"digits": "1234567890"}, {"check_not": 4}, Verdict.PASSED),
        ({"digits": "1234567890", "check": 4}, {"valid": False}, Verdict.PASSED),
        ({"digits": "1234567890", "check": 3}, {"valid": False}, Verdict.FAILED),
        ({"digits": "12345678904"}, {"valid": False}, Verdict.PASSED),
        ({"digits": "12345678903"}, {"valid": False}, Verdict.FAILED),
    ],
)
def test_check_negative_luhn_case_passes_when_the_digit_does_not_come_out(
    inputs: dict[str, object], expected: dict[str, object], verdict: Verdict
) -> None:
    """A negative case names a digit that must not follow, or a number that must not be valid."""
    assert verdict_of("Luhn mod 10 negative", inputs, expected)[0] is verdict


def test_check_decode_of_published_tokens_passes() -> None:
    """Fields of class 0 and class 1 tokens, and the plain form of any token."""
    # Origin: NectarAPI/tokens-service NativeTokenDecoderTest and PrismHSMConnectorTest; STS 531 CTSA01, CTSA20.
    key = {"decoder_key": CREDIT["expected"]["decoder_key"], "ea": "11"}
    unit = {"class": 0, "subclass": 0, "rnd": 5, "tid": 5871660, "payload16": "0001", "crc_ok": True}
    token = CREDIT["expected"]["token"]
    assert check_case("decode class0/0 EA11", {"token": token, **key}, unit).passed == 1
    wrong_key = {"token": token, "decoder_key": "00" * 16}
    assert check_case("decode class0/0 EA11", wrong_key, {"crc_ok": False}).passed == 1
    assert verdict_of("decode class0/0 EA11", {"token": token}, unit)[0] is Verdict.SKIPPED
    money = {"class": 0, "subclass": 4, "sign_exp_nibble": 11, "tid": 7171995, "crc_ok": True}
    key = {"decoder_key": CURRENCY["expected"]["decoder_key"]}
    assert check_case("decode class0/4 EA11", {"token": CURRENCY["expected"]["token"], **key}, money).passed == 1
    form = {"class": 1, "hex66": "00000000008000BC0"}
    digits = {"token": "0000 0000 0001 3422 0736"}
    assert check_case("decimal/hex form of a 66-bit token", digits, form).passed == 1
    assert check_case("decode class1/0 + decimal/hex form", digits, {**form, "subclass": 0}).passed == 1
    four = {"subclass": 1, "field44": "00000010000", "control28": "0000001", "mfrcode": 0}
    assert check_case("decode class1/1 (not encrypted)", {"token": "01152921509036054672"}, four).passed == 1


def test_check_reserved_minute_and_test_number_and_extended_read_are_understood() -> None:
    """Inputs that the published file seldom uses."""
    # Origin: STS 531 CTSA09 step 2 and the printed KRN display token.
    inputs = {"issue_time": "2004-03-29T00:01:00", "bdt": "93"}
    assert check_case("TID", inputs, {"tid": 5911202}).passed == 1
    token = {"token": "18446744073843772416"}
    name = "class1/0 (not encrypted)"
    assert check_case(name, {"mfr_code": 0, "test_number": 4}, token).passed == 1
    assert check_case(name, {"mfr_code": 0, "test_number": 4, "control_hex": "9"}, token).failed == 1
    assert check_case(name, {"mfr_code": 0}, token).skipped == 1
    # Made by our own code: no published extended-read token is at hand.
    own = encode_token(ExtendedRead(index=63), None).digits
    name = "class1/2 extended read (not encrypted)"
    assert check_case(name, {"field44_hex": "fc000000000"}, {"token": own}).passed == 1
    assert check_case(name, {"field44_hex": "00000000000"}, {"token": own}).failed == 1
