"""The `tariffs` commands and `bill preview` with documents, as processes on a database of their own."""

from __future__ import annotations

import json
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest

from billing.tariff_document import builtin_documents
from tests.commands import run_command, settings_for

pytestmark = pytest.mark.db

RECORD = Path(str(resources.files("prepaid") / "recorded" / "home_hourly.csv"))
SHIPPED = "punjab-ds-2026-27"


class Shell:
    """Runs commands on one database."""

    def __init__(self, database_url: str, data: Path) -> None:
        self._settings = settings_for(database_url, data)

    def run(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run one command and check its exit status."""
        return run_command(*arguments, environment=self._settings, status=status)

    def answer(self, *arguments: str) -> dict[str, Any]:
        """Run one command with --json and read its one object."""
        told: dict[str, Any] = json.loads(self.run(*arguments, "--json").stdout)
        return told

    def refusal(self, *arguments: str) -> str:
        """Run one command that must be refused; return its one line."""
        ended = self.run(*arguments, status=2)
        assert (ended.stderr.strip().count("\n"), ended.stdout) == (0, "")
        return ended.stderr


@pytest.fixture
def shell(database_url: str, tmp_path: Path) -> Shell:
    """Commands on the test's own database."""
    return Shell(database_url, tmp_path / "var")


def document(tmp_path: Path, tariff_id: str, old: str = "", new: str = "") -> Path:
    """Write the shipped document under another id, with one place changed."""
    path = tmp_path / f"{tariff_id}.toml"
    path.write_text(builtin_documents()[SHIPPED].replace(f'"{SHIPPED}"', f'"{tariff_id}"').replace(old, new, 1))
    return path


def test_documents_are_checked_added_listed_and_shown(shell: Shell, tmp_path: Path) -> None:
    """What was added is there as it was written; the same again is known."""
    one, two = document(tmp_path, "one"), document(tmp_path, "two", "= 385_000", "= 390_000")
    checked = shell.answer("tariffs", "check", str(one), str(two))
    assert [each["id"] for each in checked["tariffs"]] == ["one", "two"]
    assert "one.toml: one, Punjab domestic supply" in shell.run("tariffs", "check", str(one)).stdout
    assert shell.answer("tariffs", "add", str(one)) == {"added": 1, "known": 0}
    assert shell.answer("tariffs", "add", str(one), str(two)) == {"added": 1, "known": 1}
    listed = {each["id"]: each for each in shell.answer("tariffs", "list")["tariffs"]}
    assert listed.keys() == {*builtin_documents(), "one", "two"}
    assert (listed["one"]["currency"], listed["one"]["accounts"]) == ("INR", 0)
    assert listed["punjab-tod-commercial-2026-27"]["area_types"] == ["rural", "urban"]
    assert len(shell.run("tariffs", "list").stdout.splitlines()) == len(listed)
    assert shell.run("tariffs", "show", "two").stdout == two.read_text()
    assert shell.answer("tariffs", "show", "two")["document"] == two.read_text()
    assert "expected one of kenya-domestic-2018-19, one" in shell.refusal("tariffs", "show", "three")


def test_documents_are_added_all_or_none(shell: Shell, tmp_path: Path) -> None:
    """A broken document, one whose id has another text, or a file that is no text adds nothing of the others."""
    good, broken = document(tmp_path, "good"), document(tmp_path, "broken", "= 385_000", "= -1")
    says = "tariff_error: tariff broken, line 18, [[band.energy]] 1: rate_milli_per_kwh: expected a whole number"
    assert says in shell.refusal("tariffs", "add", str(good), str(broken))
    assert says in shell.refusal("tariffs", "check", str(broken))
    taken = tmp_path / "taken.toml"
    taken.write_text(builtin_documents()[SHIPPED].replace("= 385_000", "= 1", 1))
    assert "tariff_conflict: tariff punjab-ds-2026-27" in shell.refusal("tariffs", "add", str(good), str(taken))
    bytes_ = tmp_path / "bytes.toml"
    bytes_.write_bytes(b'id = "a"\n\xff')
    assert "document_refused: bytes.toml line 2: expected UTF-8" in shell.refusal("tariffs", "check", str(bytes_))
    assert "file_unusable" in shell.refusal("tariffs", "check", str(tmp_path / "none.toml"))
    assert "good" not in {each["id"] for each in shell.answer("tariffs", "list")["tariffs"]}


def test_accounts_imported_by_area_are_assigned_another_tariff(shell: Shell, tmp_path: Path, database_url: str) -> None:
    """Import with an area, assign from a file, see the account counted under both tariffs."""
    meters, accounts, changes = (tmp_path / name for name in ("m.csv", "a.csv", "c.csv"))
    meters.write_text("serial,rated_w,register_end_wh\nM1,15000,1000000000\nM2,15000,1000000000\n")
    header = "number,consumer,usage_point,meter_serial,opened_at,register_wh,tariff_id,sanctioned_load_w,area_type\n"
    row = "A1,Name,UP1,M1,2026-04-01T00:00:00+05:30,0,punjab-nrs-2026-27,3000,rural\n"
    accounts.write_text(header + row)
    shell.run("meters", "import", str(meters))
    assert shell.answer("accounts", "import", str(accounts)) == {"added": 1, "known": 0}
    accounts.write_text(header + row.replace("1,", "2,").replace("rural", "hill"))
    assert "line 2 column area_type: expected one of rural, urban as in" in shell.refusal(
        "accounts", "import", str(accounts)
    )
    changes.write_text(f"account,from_day,tariff_id\nA1,2026-05-01,{SHIPPED}\n")
    assert shell.answer("tariffs", "assign", str(changes)) == {"added": 1, "known": 0}
    assert shell.answer("tariffs", "assign", str(changes)) == {"added": 0, "known": 1}
    counted = {each["id"]: each["accounts"] for each in shell.answer("tariffs", "list")["tariffs"]}
    assert (counted[SHIPPED], counted["punjab-nrs-2026-27"], counted["punjab-ds-2025-26"]) == (1, 1, 0)
    with psycopg.connect(database_url) as conn:
        stored = conn.execute("select area_type, load_w from assignments order by from_day").fetchall()
    assert stored == [("rural", 3_000), ("rural", 3_000)]
    changes.write_text("account,from_day,colour\nA1,2026-06-01,red\n")
    assert "import_refused: c.csv line 1 column 'colour': expected one of account" in shell.refusal(
        "tariffs", "assign", str(changes)
    )


def test_preview_takes_a_document_an_area_and_an_own_meter(shell: Shell, tmp_path: Path) -> None:
    """All lines are printed, those of 0 too; the answer names tariff and currency."""
    file = document(tmp_path, "dear", "= 385_000", "= 485_000")
    asked = ("bill", "preview", str(RECORD), "--load-kw", "2")
    cheap, dear = shell.answer(*asked), shell.answer(*asked, "--tariff", str(file))
    assert (dear["tariff"], dear["currency"], dear["energy_wh"]) == ("dear", "INR", cheap["energy_wh"])
    assert dear["total_minor"] > cheap["total_minor"]
    commercial = (*asked, "--tariff", "punjab-tod-commercial-2026-27")
    town = shell.run(*commercial).stdout
    for name in ("zone_normal", "meter_rent", "demand", "municipal", "infrastructure", "total"):
        assert f"  {name} " in town
    village = shell.answer(*commercial, "--area", "rural", "--own-meter")
    assert (village["area"], village["meter_rent"]) == ("rural", False)
    assert not {"meter_rent", "municipal"} & village["months"][0]["lines"].keys()
    assert "area_type: expected one of rural, urban" in shell.refusal(*commercial, "--area", "hill")
    broken = document(tmp_path, "broken", "= 385_000", "= -1")
    assert "line 18, [[band.energy]] 1" in shell.refusal(*asked, "--tariff", str(broken))
