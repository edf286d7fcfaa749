"""The `prepaid sts` commands: what they print, what they keep to themselves, and how they end."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prepaid.settings import PrepaidError
from prepaid.sts_commands import StsCommandRefused, sts_app
from vending.sts.sta import IEC_SAMPLE_TABLES

VECTORS = Path(__file__).parents[1] / "vectors" / "sts.jsonl"
# Origin: STS 531 CTSA01 step 1, CTSA03 step 1, CTSA05 step 1: a published test meter and its tokens.
KEY = "f94b6ed353c3bfdb113e2d3a7ea3c41d"
CREDIT, LIMIT, FIRST_SECTION = "59386323472137426967", "26521936751055502278", "34812744915211133004"
# Own computation with the IEC sample tables, not from the standard.
SAMPLE_KEY, SAMPLE_TOKEN = "0abc12def3456789", "51043465443420856213"
TABLES = {
    "s1": IEC_SAMPLE_TABLES.s1,
    "s2": IEC_SAMPLE_TABLES.s2,
    "p": IEC_SAMPLE_TABLES.p,
    "self_test": {"decoder_key": SAMPLE_KEY, "block": "0b19eb230100c207", "token": SAMPLE_TOKEN},
}


def run(*arguments: str, status: int = 0) -> str:
    """Run a command and return its standard output."""
    result = CliRunner().invoke(sts_app, arguments)
    assert result.exit_code == status, result.output
    return result.stdout


def refusal_of(*arguments: str) -> PrepaidError:
    """Run a command that refuses."""
    result = CliRunner().invoke(sts_app, arguments)
    assert isinstance(result.exception, PrepaidError), result.output
    return result.exception


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    """A file with the published decoder key."""
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    return str(file)


def test_check_prints_the_counts_and_fails_by_status(tmp_path: Path) -> None:
    """The own vectors pass; a lie ends with status 1; both forms of output agree."""
    count = len(VECTORS.read_text().splitlines())
    assert f"passed {count}, failed 0, skipped 0" in run("check", str(VECTORS))
    told = json.loads(run("check", str(VECTORS), "--json"))
    assert told == {"passed": count, "failed": 0, "skipped": 0, "skipped_by_reason": {}, "failures": []}
    lie = tmp_path / "lie.jsonl"
    lie.write_text('{"algorithm": "Luhn mod 10", "inputs": {"digits": "1234567890"}, "expected": {"check": 4}}\nnot\n')
    assert len(json.loads(run("check", str(lie), "--json", status=1))["failures"]) == 2
    assert "failed 2" in run("check", str(lie), status=1)


def test_check_takes_an_operators_tables_and_refuses_bad_ones(tmp_path: Path) -> None:
    """Tables that do not prove themselves stop the command before a case is read."""
    tables = tmp_path / "tables.json"
    tables.write_text(json.dumps(TABLES))
    assert "failed 0" in run("check", str(VECTORS), "--ea07-tables", str(tables))
    tables.write_text("{}")
    assert "invalid_cipher_tables" in str(refusal_of("check", str(VECTORS), "--ea07-tables", str(tables)))
    tables.write_bytes(b"\xff\xfe")
    assert "UTF-8" in str(refusal_of("check", str(VECTORS), "--ea07-tables", str(tables)))


def test_decode_tells_the_contents_and_repeats_neither_key_nor_token(key_file: str) -> None:
    """Credit, management and key change sections by their fields; key parts stay out."""
    options = ("--decoder-key-file", key_file, "--ea", "11")
    credit = json.loads(run("decode", f"{CREDIT[:4]} {CREDIT[4:]}", *options, "--json"))
    assert credit["token"] == "...6967"
    assert (credit["class"], credit["kind"], credit["tid"], credit["amount_tenths"]) == (0, "unit_credit", 5871660, 1)
    limit = json.loads(run("decode", LIMIT, *options, "--json"))
    assert (limit["class"], limit["kind"], limit["limit_w"]) == (2, "set_power_limit", 1000)
    shown = run("decode", FIRST_SECTION, *options)
    assert "key_change_first" in shown
    for secret in (KEY[:8], FIRST_SECTION, "b2088343", str(0xB2088343)):
        assert secret not in shown


def test_decode_under_ea07_names_the_tables_it_used(tmp_path: Path) -> None:
    """Without an operator's file these are the samples, and the answer says so."""
    key = tmp_path / "key"
    key.write_text(SAMPLE_KEY)
    told = json.loads(run("decode", SAMPLE_TOKEN, "--decoder-key-file", str(key), "--ea", "07", "--json"))
    assert (told["tid"], told["rnd"], told["amount_tenths"]) == (1_698_595, 11, 256)
    assert "not for field meters" in told["ea07_tables"]


def test_decode_refuses_in_one_line_with_the_engines_code(key_file: str, tmp_path: Path) -> None:
    """A wrong token, a missing key and a key of another form each have their reason."""
    options = ("--decoder-key-file", key_file)
    assert "token_crc_mismatch" in str(refusal_of("decode", CREDIT[:-1] + "8", *options))
    assert "malformed_token" in str(refusal_of("decode", "1", *options))
    assert "invalid_key" in str(refusal_of("decode", CREDIT))
    for content in ("", KEY[:16], KEY + "00", "g" * 32, "0" * 1_000):
        bad = tmp_path / "bad"
        bad.write_text(content)
        refusal = refusal_of("decode", CREDIT, "--decoder-key-file", str(bad))
        assert refusal.code == StsCommandRefused.code
        assert KEY[:16] not in str(refusal)


def test_issue_prints_the_published_test_tokens() -> None:
    """Test-all, the KRN display and the extended read come out as meter manuals print them."""
    assert run("issue", "--test", "0").strip() == "5649 3153 7254 5031 3471"
    # Origin: the generic tokens of meter manuals; STS 531 CTSA02; STS 531-1-11 Ed 2.2 CTSA24.
    assert json.loads(run("issue", "--test", "0", "--maker-digits", "4", "--json"))["token"] == "02305843005052951967"
    assert json.loads(run("issue", "--test", "4", "--json"))["token"] == "18446744073843772416"
    assert json.loads(run("issue", "--read", "63", "--json"))["token"] == "03440750115445279822"
    assert "display_test" in run("decode", "56493153725450313471")


def test_issue_refuses_what_is_no_test_token() -> None:
    """One of the two kinds, in its range."""
    assert "expected one of" in str(refusal_of("issue"))
    assert "expected one of" in str(refusal_of("issue", "--test", "1", "--read", "1"))
    for arguments in (("--test", "19"), ("--read", "64"), ("--test", "1", "--maker-digits", "3")):
        assert "field_out_of_range" in str(refusal_of("issue", *arguments))
    assert "field_out_of_range" in str(refusal_of("issue", "--test", "1", "--maker-code", "256"))
