"""What an installation mints with, from its settings: master key, EA07 tables, limits of the day."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prepaid import keys
from prepaid.keys import master_key, module_name, risk_limits, sta_tables
from prepaid.settings import Settings, SettingsError
from vending.risk_limits import RiskLimits
from vending.sts.sta import IEC_SAMPLE_TABLES

# Origin: sts.md, section 4, a regression value of the IEC sample tables.
SELF_TEST = {"decoder_key": "0abc12def3456789", "block": "0b19eb230100c207", "token": "51043465443420856213"}


@pytest.fixture(autouse=True)
def dumpable(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """The process of the tests stays as it is; returns a list that grows with each call to be made undumpable."""
    calls: list[None] = []
    monkeypatch.setattr(keys, "forbid_core_dumps", lambda: calls.append(None))
    return calls


def tables_file(folder: Path) -> Path:
    """Write the sample tables as an operator's file."""
    file = folder / "tables.json"
    tables = {"s1": IEC_SAMPLE_TABLES.s1, "s2": IEC_SAMPLE_TABLES.s2, "p": IEC_SAMPLE_TABLES.p}
    file.write_text(json.dumps({**tables, "self_test": SELF_TEST}))
    return file


def test_sample_tables_mint_only_where_they_are_asked_for(tmp_path: Path) -> None:
    """No table by default; the samples are refused as an operator's file too, unless allowed by name."""
    assert sta_tables(Settings()) is None
    with pytest.raises(SettingsError, match="got the IEC samples"):
        sta_tables(Settings(ea07_tables=tables_file(tmp_path)))
    for settings in (
        Settings(ea07_sample_tables=True),
        Settings(ea07_sample_tables=True, ea07_tables=tables_file(tmp_path)),
    ):
        tables = sta_tables(settings)
        assert tables is not None
        assert "not for field meters" in tables.name


def test_unusable_tables_stop_the_start_without_being_shown(tmp_path: Path) -> None:
    """A file that is missing, no JSON, or fails its own test."""
    file = tables_file(tmp_path)
    told = json.loads(file.read_text())
    told["self_test"]["token"] = "51043465443420856214"
    for content in (None, b"", b"\xff\xfe", json.dumps(told).encode()):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with pytest.raises(SettingsError, match="PREPAID_EA07_TABLES"):
            sta_tables(Settings(ea07_tables=file))


def test_master_key_comes_from_the_environment_a_file_or_is_made(tmp_path: Path, dumpable: list[None]) -> None:
    """Each way forbids core dumps first; what is made is private and stays the same."""
    assert master_key(Settings(master_key="5a" * 32)) == b"\x5a" * 32
    made = master_key(Settings(data_dir=tmp_path))
    assert made == master_key(Settings(data_dir=tmp_path))
    assert (tmp_path / "master.key").stat().st_mode & 0o777 == 0o600
    assert len(dumpable) == 3


@pytest.mark.parametrize("content", ["", "5a" * 31, "zz" * 32, "5a" * 33])
def test_master_key_of_another_form_is_refused_without_being_shown(tmp_path: Path, content: str) -> None:
    """From the environment and from a file alike."""
    file = tmp_path / "master"
    file.write_text(content)
    for settings in (Settings(master_key=content or " "), Settings(master_key_file=file)):
        with pytest.raises(SettingsError, match="64 hexadecimal digits") as refusal:
            master_key(settings)
        assert not content or content not in str(refusal.value)
        assert "5a5a" not in repr(settings)


def test_limits_are_those_of_the_settings_in_the_units_of_tokens() -> None:
    """A unit is ten tenths; without settings there is no limit. A hardware module counts under its own address."""
    assert risk_limits(Settings()).unlimited
    limited = Settings(mint_tokens_per_day_max=9, mint_minor_per_day_max=8, mint_units_per_day_max=7)
    assert risk_limits(limited) == RiskLimits(tokens=9, minor=8, tenths=70)
    assert module_name(limited) == "soft"
    address = "tcp://127.0.0.1:5100"
    hardware = Settings(sts_module=address, sts_module_registers="1=201457/1/2014/255")
    assert module_name(hardware) == address
