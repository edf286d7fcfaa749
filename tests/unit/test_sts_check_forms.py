"""The vector check over every algorithm it must understand, in the forms that sources write, against an oracle."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests import sts_oracle as oracle
from tests.sts_cases import MAKERS, TABLES, MadeCase, derived, key_change
from vending.sts.check import CheckResult, Verdict, check_vectors
from vending.sts.check_tokens import NEEDS_TABLES
from vending.sts.sta import IEC_SAMPLE_TABLES

SEEDS = range(3)
SAMPLES: oracle.Tables = (IEC_SAMPLE_TABLES.s1, IEC_SAMPLE_TABLES.s2, IEC_SAMPLE_TABLES.p)
# The inputs that are digits with leading zeros, texts of hexadecimal digits, and small decimal numbers.
DIGITS = {"pan", "sgc", "ti", "iin", "iain", "digits"}
HEXADECIMAL = {"vk", "decoder_key", "key", "plain", "hex", "control_hex", "field44_hex"}


def tables_file() -> str:
    """Write the cases' tables as an operator's file, with its self-test made by the oracle."""
    key, body = "0123456789abcdef", oracle.with_tid(5, 1, 2)
    test = {"decoder_key": key, "block": f"{oracle.plain_block(0, 0, body):016x}"}
    test["token"] = oracle.token(0, 0, body, key=key, tables=TABLES)
    return json.dumps(dict(zip(("s1", "s2", "p"), TABLES, strict=True)) | {"self_test": test})


TABLES_FILE = tables_file()


def check_one(case: MadeCase, *, tables: bool = True, **changes: object) -> CheckResult:
    """Check a case, with fields of the line changed."""
    line = {
        "source": "made up",
        "algorithm": case.algorithm,
        "inputs": case.inputs,
        "expected": case.expected,
    } | changes
    return check_vectors([json.dumps(line)], ea07_tables=TABLES_FILE if tables else None)


def verdict_of(case: MadeCase, *, tables: bool = True, **changes: object) -> tuple[Verdict, str]:
    """Return the verdict of a case and why."""
    result = check_one(case, tables=tables, **changes)
    if result.passed:
        return Verdict.PASSED, ""
    (detail,) = result.details
    return detail.verdict, detail.reason


def made(seed: int) -> list[MadeCase]:
    """Return every kind of case once or more."""
    return [case for maker in MAKERS for case in maker(random.Random(f"{seed} {maker.__name__}"))]


def lie_of(told: Any) -> Any:
    """Return something else of the same form."""
    match told:
        case bool():
            return not told
        case int():
            return told + 1
        case str():
            return told[:-1] + ("1" if told[-1] != "1" else "2")
        case list():
            return [lie_of(told[0]), *told[1:]]
        case _:
            name = next(iter(told))
            return {**told, name: lie_of(told[name])}


@pytest.mark.parametrize("seed", SEEDS)
def test_check_of_every_algorithm_passes_what_the_oracle_says(seed: int) -> None:
    """Every row of the table, in every kind of token, key type, base date and length of number."""
    failed = [(case, verdict) for case in made(seed) if (verdict := verdict_of(case))[0] is not Verdict.PASSED]
    assert failed == []


def test_check_of_every_algorithm_fails_a_lie_in_any_field() -> None:
    """One expected field that is not so is a failure of the case, whatever the algorithm."""
    for case in made(7):
        lies = case.lies or tuple({name: lie_of(told)} for name, told in case.expected.items())
        for lie in lies:
            assert verdict_of(case, expected=case.expected | lie)[0] is Verdict.FAILED, (case, lie)


def test_check_of_every_algorithm_skips_a_case_that_lacks_a_needed_input() -> None:
    """Without one needed input nothing is passed; without an optional one everything still is."""
    for case in made(8):
        for name in case.inputs:
            inputs = {other: value for other, value in case.inputs.items() if other != name}
            verdict, reason = verdict_of(case, inputs=inputs)
            if name in case.optional:
                assert verdict is Verdict.PASSED, (case, name, reason)
            else:
                assert (verdict, reason[:10]) == (Verdict.SKIPPED, "incomplete"), (case, name, reason)


def test_check_of_a_key_change_without_a_part_of_a_key_is_skipped_with_its_name() -> None:
    """Old and new key need every field."""
    for case in key_change(random.Random(9)):
        for part in ("old", "new"):
            for name in case.inputs[part]:
                fields = {other: value for other, value in case.inputs[part].items() if other != name}
                verdict = verdict_of(case, inputs=case.inputs | {part: fields})
                assert verdict == (Verdict.SKIPPED, f"incomplete: input {part}.{name} is missing")


def test_check_without_the_tables_of_its_source_skips_with_the_name_of_what_is_missing() -> None:
    """An EA07 token by other tables is neither passed nor failed; what needs no tables is still judged."""
    for case in made(10):
        if case.needs_tables:
            assert verdict_of(case, tables=False) == (Verdict.SKIPPED, NEEDS_TABLES), case
            for name in {"decoder_key", "old_decoder_key", "new_decoder_key"} & case.expected.keys():
                lie = case.expected | {name: lie_of(case.expected[name])}
                assert verdict_of(case, tables=False, expected=lie)[0] is Verdict.FAILED
        else:
            assert verdict_of(case, tables=False)[0] is Verdict.PASSED, case
    assert "tables file" in NEEDS_TABLES


def test_check_of_sample_cases_needs_no_file() -> None:
    """The IEC sample tables are built in, and serve a case of their name also beside an operator's file."""
    for subclass in range(4):
        body, key = oracle.with_tid(3, 99, 256), "fedcba9876543210"
        digits = oracle.token(0, subclass, body, key=key, tables=SAMPLES)
        inputs = {"decoder_key": key, "rnd": 3, "tid": 99, "units": "25.6", "class": 0, "subclass": subclass}
        for name in (f"class0/{subclass} EA07 SAMPLE tables", "EA07 SAMPLE tables"):
            case = MadeCase(algorithm=name, inputs=inputs, expected={"token": digits, "tid": 99})
            assert verdict_of(case) == verdict_of(case, tables=False) == (Verdict.PASSED, "")
            lie = {"token": lie_of(digits)}
            assert verdict_of(case, tables=False, expected=lie)[0] is Verdict.FAILED


def redressed(value: Any, name: str, rng: random.Random) -> Any:
    """Write an input in another form that says the same."""
    if isinstance(value, dict):
        return {each: redressed(told, each, rng) for each, told in value.items()}
    if name in HEXADECIMAL:
        return rng.choice((value, value.upper(), f"0x{value}" if name != "hex" else value, f" {value} "))
    if name in DIGITS:
        return rng.choice((value, int(value)) if name not in {"iin", "iain", "digits"} else (value,))
    if name == "bdt":
        return rng.choice((value, int(value), oracle.BASE_YEARS[value], str(oracle.BASE_YEARS[value])))
    if name in {"ea", "dkga"}:
        return rng.choice((value, int(value), f"{name.upper()}{value}"))
    if name in {"ro", "res_3kct"}:
        return rng.choice((value, bool(value), str(value)))
    if name == "token":
        return rng.choice((value, " ".join(value[at : at + 4] for at in range(0, 20, 4)), int(value)))
    if name == "issue_time":
        return rng.choice((value, value.replace("T", " "), value + "Z", value + ".000"))
    return rng.choice((value, str(value))) if isinstance(value, int) else value


def redressed_name(algorithm: str, rng: random.Random) -> str:
    """Write an algorithm's name with its words in another order or case."""
    if not algorithm.startswith("class") or "key change" in algorithm or algorithm.startswith("class1"):
        return rng.choice((algorithm, algorithm.upper()))
    words = [f" {word} " for word in algorithm.replace("from decoder key", "from_decoder_key").split()]
    rng.shuffle(words)
    return "".join(words).replace("_", " ") + rng.choice(("", " (step 3)"))


def test_check_reads_the_same_case_in_any_dress() -> None:
    """Case of letters, numbers or texts, blanks, order of words and of fields, and fields beyond make no difference."""
    rng = random.Random(11)
    for case in made(12):
        inputs = list({name: redressed(value, name, rng) for name, value in case.inputs.items()}.items())
        rng.shuffle(inputs)
        expected = {
            name: rng.choice((told, told.upper())) if isinstance(told, str) else told
            for name, told in case.expected.items()
        }
        extra = {"note": "as printed", "page": 3}
        name = redressed_name(case.algorithm, rng)
        dressed = {"algorithm": name, "inputs": dict(inputs) | extra, "expected": expected, "page": [1]}
        assert verdict_of(case, **dressed) == (Verdict.PASSED, ""), dressed


def test_check_of_a_case_whose_name_contradicts_its_inputs_fails() -> None:
    """The name's class, cipher and derivation bind; an input that says another is a broken case."""
    for case in derived(random.Random(13)):
        other = {"ea": "11" if case.inputs["ea"] == "07" else "07", "dkga": "03"}
        other |= {name: case.inputs[name] + 1 for name in ("class", "subclass")}
        for name, told in other.items():
            assert verdict_of(case, inputs=case.inputs | {name: told})[0] is Verdict.FAILED, (case.algorithm, name)


def test_check_of_a_given_key_takes_class_and_contents_from_the_token_where_nothing_else_tells_them() -> None:
    """A token among the inputs is opened like an expected one; its class bits stand in for a class not named."""
    key, body = "0abc12def3456789", oracle.with_tid(11, 1_698_595, 256)
    digits, block = oracle.token(0, 0, body, key=key, tables=SAMPLES), f"{oracle.plain_block(0, 0, body):016x}"
    told = {"tid": 1_698_595, "payload16": "0100", "block64": block}
    opened = MadeCase(
        algorithm="class0/0 EA07 SAMPLE tables", inputs={"decoder_key": key, "token": digits}, expected=told
    )
    assert verdict_of(opened) == (Verdict.PASSED, "")
    assert verdict_of(opened, expected=told | {"tid": 1_698_596})[0] is Verdict.FAILED
    sealed = MadeCase(
        algorithm="EA07 SAMPLE tables", inputs={"decoder_key": key, "block64": block}, expected={"token": digits}
    )
    assert verdict_of(sealed) == (Verdict.PASSED, "")
    assert verdict_of(sealed, expected={"token": lie_of(digits)})[0] is Verdict.FAILED
    nothing = {"decoder_key": key}
    assert verdict_of(sealed, inputs=nothing, expected=told)[0] is Verdict.SKIPPED


@pytest.mark.parametrize("digit", [4, "4"])
def test_check_of_a_negative_luhn_case_reads_the_unwanted_digit_as_number_or_text(digit: object) -> None:
    """The digit that must not come out passes as long as it does not."""
    case = MadeCase(algorithm="Luhn mod 10 negative", inputs={"digits": "1234567890"}, expected={"check": digit})
    assert verdict_of(case)[0] is Verdict.PASSED
    assert verdict_of(case, inputs={"digits": "12345678903"}, expected={"valid": True})[0] is Verdict.PASSED
    wrong = {"check": "3" if isinstance(digit, str) else 3}
    assert verdict_of(case, expected=wrong)[0] is Verdict.FAILED
