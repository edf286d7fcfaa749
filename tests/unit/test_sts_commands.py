"""The `prepaid sts` commands: what they print, what they keep to themselves, and how they end."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prepaid.settings import PrepaidError
from prepaid.sts_commands import sts_app
from prepaid.sts_files import StsCommandRefused
from vending.sts.sta import IEC_SAMPLE_TABLES

VECTORS = Path(__file__).parents[1] / "vectors" / "sts.jsonl"
# Origin: STS 531 CTSA01 step 1, CTSA03 step 1, CTSA05 step 1: a published test meter and its tokens.
KEY = "f94b6ed353c3bfdb113e2d3a7ea3c41d"
CREDIT, LIMIT, FIRST_SECTION = "59386323472137426967", "26521936751055502278", "34812744915211133004"
# Own computation with the IEC sample tables, not from the standard.
SAMPLE_KEY, SAMPLE_TOKEN = "0abc12def3456789", "51043465443420856213"
VENDING_KEY = bytes(range(20)).hex()
METER = "drn=12345678903,sgc=123456,krn=1,ti=1"
OLD_METER = "drn=00000000000,sgc=123457,krn=1,ti=01,base_date=1993"
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
    assert run("issue", "test", "0").strip() == "5649 3153 7254 5031 3471"
    # Origin: the generic tokens of meter manuals; STS 531 CTSA02; STS 531-1-11 Ed 2.2 CTSA24.
    assert issued("test", "0", "--maker-digits", "4")["token"] == "02305843005052951967"
    assert issued("test", "4")["token"] == "18446744073843772416"
    assert issued("read", "63")["token"] == "03440750115445279822"
    assert "display_test" in run("decode", "56493153725450313471")


def issued(*arguments: str) -> dict[str, Any]:
    """Issue a token and return the answer as JSON."""
    told: dict[str, Any] = json.loads(run("issue", *arguments, "--json"))
    return told


@pytest.mark.parametrize(
    ("kind", "value", "options", "fields"),
    [
        ("credit", "25.6", (), {"kind": "unit_credit", "service": "electricity", "amount_tenths": 256}),
        ("credit", "1638.45", ("--service", "water"), {"service": "water", "amount_tenths": 16_394}),
        ("credit", "0.1", ("--service", "gas"), {"service": "gas", "amount_tenths": 1}),
        ("credit", "0.1", ("--service", "time"), {"service": "time", "amount_tenths": 1}),
        ("currency", "1.00", (), {"kind": "currency_credit", "service": "electricity", "amount_e5": 100_004}),
        ("currency", "-1.00", ("--service", "time"), {"service": "time", "amount_e5": -99_994}),
        ("currency", "0.00001", ("--service", "water"), {"service": "water", "amount_e5": 1}),
        ("currency", "5", ("--service", "gas"), {"service": "gas", "amount_e5": 500_024}),
        ("power-limit", "1000", (), {"kind": "set_power_limit", "limit_w": 1000}),
        ("clear-credit", "all", (), {"kind": "clear_credit", "value16": 0xFFFF, "register": "all"}),
        ("clear-credit", "currency-time", (), {"kind": "clear_credit", "value16": 7}),
        ("clear-credit", "1", (), {"kind": "clear_credit", "register": "water"}),
        ("tariff-rate", "65535", (), {"kind": "set_tariff_rate", "value16": 0xFFFF}),
        ("clear-tamper", None, (), {"kind": "clear_tamper", "value16": 0}),
        ("unbalance-limit", "16385", (), {"kind": "set_unbalance_limit", "limit_w": 16_394}),
        ("water-factor", "7", (), {"kind": "set_water_factor", "value16": 7}),
        ("control", "5=1023", (), {"kind": "extended_control", "index": 5, "value": 1023}),
        ("flag", "9=1", (), {"kind": "extended_flag", "flag": 9, "value": True}),
    ],
)
@pytest.mark.parametrize("ea", ["07", "11"])
def test_issue_makes_every_token_that_decode_reads_back(
    kind: str, value: str | None, options: tuple[str, ...], fields: dict[str, object], ea: str, tmp_path: Path
) -> None:
    """Each kind carries what was asked for, amounts rounded up, under either cipher."""
    vending_key = tmp_path / "vending_key"
    vending_key.write_text(VENDING_KEY)
    key = ("--vending-key-file", str(vending_key), "--meter", f"{METER},ea={ea}")
    asked = (kind,) if value is None else (kind, value)
    told = issued(*asked, *options, *key, "--at", "2026-11-21T10:07:30")
    assert fields.items() <= told.items()
    assert told["minute"] == "2026-11-21T10:07Z"
    assert ("not for field meters" in told.get("ea07_tables", "")) is (ea == "07")
    read = json.loads(run("decode", told["grouped"], *key, "--json"))
    assert fields.items() <= read.items()
    assert read["tid"] == told["tid"] == 6_778_687


def test_issue_with_the_published_inputs_prints_the_published_token(key_file: str, tmp_path: Path) -> None:
    """From the decoder key or from the vending key it is the token of STS 531."""
    vending_key = tmp_path / "vending_key"
    vending_key.write_text("ab" * 8 + "94" * 8 + "01234567")
    asked = ("credit", "0.1", "--rnd", "5", "--at", "2004-03-01T13:00:00Z")
    assert issued(*asked, "--decoder-key-file", key_file, "--meter", "base_date=1993")["token"] == CREDIT
    assert issued(*asked, "--vending-key-file", str(vending_key), "--meter", OLD_METER)["token"] == CREDIT
    assert issued("credit", "0.1", "--rnd", "5", "--tid", "5871660", "--decoder-key-file", key_file)["token"] == CREDIT


def test_issue_keeps_the_reserved_minute_for_special_tokens(key_file: str) -> None:
    """A normal token of 00:01 is one of 00:02."""
    asked = ("credit", "1", "--decoder-key-file", key_file, "--at", "2026-11-21T00:01:59+00:00")
    assert issued(*asked)["minute"] == "2026-11-21T00:02Z"
    assert issued(*asked, "--special")["minute"] == "2026-11-21T00:01Z"


def test_issue_refuses_in_one_line_with_its_reason(key_file: str, tmp_path: Path) -> None:
    """A value of another form or range, an expired or default key, a record that does not fit: each says which."""
    key = ("--decoder-key-file", key_file)
    for arguments, reason in {
        ("test", "19"): "field_out_of_range",
        ("read", "64"): "field_out_of_range",
        ("test", "1", "--maker-digits", "3"): "field_out_of_range",
        ("test", "1", "--maker-code", "256"): "field_out_of_range",
        ("credit", "-1", *key): "amount_out_of_range",
        ("credit", "1820162.5", *key): "amount_out_of_range",
        ("credit", "1e3", *key): "expected a decimal number",
        ("credit", *key): "expected a value",
        ("credit", "1"): "--decoder-key-file",
        ("clear-tamper", "1", *key): "expected no value",
        ("clear-credit", "8", *key): "expected one of",
        ("control", "63=1", *key): "field_out_of_range",
        ("control", "5", *key): "NUMBER=VALUE",
        ("flag", "1=2", *key): "0 or 1",
        ("flag", "512=1", *key): "field_out_of_range",
        ("tariff-rate", "65536", *key): "field_out_of_range",
        ("credit", "1", *key, "--rnd", "16"): "field_out_of_range",
        ("credit", "1", *key, "--tid", str(1 << 24)): "tid_out_of_range",
        ("credit", "1", *key, "--tid", "1", "--at", "2026-01-01"): "got both",
        ("credit", "1", *key, "--at", "yesterday"): "ISO 8601",
        ("credit", "1", *key, "--at", "1999-01-01"): "tid_out_of_range",
        ("credit", "1", *key, "--tid", str(101 << 16), "--meter", "ken=100"): "vending_key_expired",
        ("credit", "1", *key, "--meter", "kt=1"): "credit_key_type_refused",
        ("credit", "1", *key, "--meter", "colour=blue"): "meter record",
        ("credit", "1", *key, "--meter", "ea=07", "--ea", "11"): "alike",
        ("credit", "1", *key, "--meter", "ea=09"): "expected ea as one of",
        ("credit", "1", *key, "--vending-key-file", key_file): "got both",
        ("credit", "1", "--vending-key-file", key_file): "expected drn, sgc, krn, ti",
        ("credit", "1", "--vending-key-file", key_file, "--meter", METER): "expected 40 hexadecimal digits",
        ("credit", "1", "--vending-key-file", str(tmp_path / "none"), "--meter", METER): "No such file",
        ("credit", "1", "--vending-key-file", key_file, "--meter", "drn=12345678901,sgc=1,krn=1,ti=1"): "check digit",
    }.items():
        assert reason in str(refusal_of("issue", *arguments)), arguments
    default = issued("power-limit", "100", *key, "--meter", "kt=1")
    assert default["limit_w"] == 100, "a default key takes no credit, but engineering tokens"


def test_keychange_prints_the_published_set_and_warns_by_name(tmp_path: Path) -> None:
    """The set of CTSA05 comes out, with what dies by it; neither key shows."""
    vending_key = tmp_path / "vending_key"
    vending_key.write_text("ab" * 8 + "94" * 8 + "01234567")
    asked = ("keychange", "--meter", OLD_METER, "--vending-key-file", str(vending_key), "--at", "2004-04-01")
    told = json.loads(run(*asked, "--new", "ti=02", "--json"))
    assert told["tokens"] == [FIRST_SECTION, "46903925208523674737", "71464563847088610152", "67904239402617643990"]
    assert told["roll_over"] is False
    assert [each["name"] for each in told["warnings"]] == ["unused_tokens_die", "enter_together"]
    shown = run(*asked, "--new", "ti=02")
    assert "3481 2744 9152 1113 3004" in shown
    assert "warning: unused_tokens_die: every token made under SGC 123457 KRN 1 TI 01" in shown
    asked = (*asked[:-1], "2024-11-01")
    rolled = (*asked, "--new", "krn=2,base_date=2014", "--new-vending-key-file", str(vending_key))
    told = json.loads(run(*rolled, "--json"))
    assert told["roll_over"] is True
    assert "tid_memory_cleared" in [each["name"] for each in told["warnings"]]
    assert KEY not in run(*rolled)


def test_keychange_makes_two_or_three_tokens_for_ea07(tmp_path: Path) -> None:
    """Two clear the meter's SGC and say so; three carry it; the decoder keys may be given as such."""
    old_key, new_key = tmp_path / "old", tmp_path / "new"
    old_key.write_text(SAMPLE_KEY)
    new_key.write_text("0123456789abcdef")
    asked = ("keychange", "--meter", f"{METER},ea=07", "--new", "sgc=654321,kt=1", "--json")
    asked = (*asked, "--decoder-key-file", str(old_key), "--new-decoder-key-file", str(new_key))
    two, three = json.loads(run(*asked)), json.loads(run(*asked, "--tokens", "3"))
    assert (len(two["tokens"]), len(three["tokens"])) == (2, 3)
    assert {"sgc_cleared", "no_credit"} <= {each["name"] for each in two["warnings"]}
    assert "sgc_cleared" not in {each["name"] for each in three["warnings"]}
    read = json.loads(run("decode", three["tokens"][2], "--decoder-key-file", str(old_key), "--ea", "07", "--json"))
    assert (read["kind"], read["sgc"]) == ("key_change_third_sta", 654_321)


def test_keychange_refuses_what_a_meter_would_not_take(tmp_path: Path) -> None:
    """No key to move to, an expired one, an earlier base date, a number of tokens the cipher has not."""
    file = tmp_path / "key"
    file.write_text(VENDING_KEY)
    asked = ("keychange", "--meter", METER, "--vending-key-file", str(file), "--at", "2026-11-21")
    for new, options, reason in (
        ("krn=2", (), "--new-vending-key-file"),
        ("ti=2,ken=10", (), "new_key_expired"),
        ("base_date=1993", ("--new-vending-key-file", str(file)), "no earlier base date"),
        ("kt=0", (), "unsupported_key_derivation"),
        ("ti=2", ("--tokens", "3"), "expected 4 tokens for EA11"),
        ("ti=2,ti=3", (), "once as name=value"),
        ("ti=100", (), "invalid_identity"),
    ):
        assert reason in str(refusal_of(*asked, "--new", new, *options)), new
