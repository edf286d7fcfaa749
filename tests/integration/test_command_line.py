"""The command line as a new user meets it: whole commands as processes, on real parts and the packaged record."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from billing.tariff_document import builtin_documents
from meter_sim.recorded import Profile, parse_profile
from tests.commands import clean_environment, run_command
from tests.properties import oracle

pytestmark = [pytest.mark.db, pytest.mark.broker]

RECORD = Path(str(resources.files("prepaid") / "recorded" / "home_hourly.csv"))
# The longest command here, the demo, takes 10 s on two quiet cores.
COMMAND_S_MAX = 120


def prepaid(
    *arguments: str, data: Path | None = None, status: int = 0, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command and check its exit status."""
    chosen = {"PREPAID_DATA_DIR": str(data)} if data else {}
    return run_command(*arguments, environment=chosen | (environment or {}), status=status, within_s=COMMAND_S_MAX)


def answer(*arguments: str, data: Path | None = None, status: int = 0) -> dict[str, Any]:
    """Run one command with --json and read its one object."""
    return dict(json.loads(prepaid(*arguments, "--json", data=data, status=status).stdout))


def oracle_bills(profile: Profile, *, load_w: int) -> dict[str, oracle.Bill]:
    """Bill the record with the oracle; a gap's end is a reading of its own, as the meters send it."""
    opened = (_instant(profile.start_ms[0]), 0)
    readings, register_wh = [], 0
    for number, (start_ms, end_ms) in enumerate(zip(profile.start_ms, profile.end_ms, strict=True)):
        if number and start_ms > profile.end_ms[number - 1]:
            readings.append((_instant(start_ms), register_wh))
        register_wh += profile.energy_wh[number]
        readings.append((_instant(end_ms), register_wh))
    assigned = oracle.Assigned(
        from_day=date(1970, 1, 1),
        text=builtin_documents()["punjab-ds-2026-27"],
        load_w=load_w,
        area="urban",
        meter_rent=True,
    )
    bills = oracle.bill(opened, readings, assigned=[assigned], zone_name="Asia/Kolkata")
    return {f"{month:%Y-%m}": bill for month, bill in oracle.by_month(bills).items()}


def _instant(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, UTC)


def assert_money_of_replay(report: dict[str, Any], profile: Profile, previews: dict[int, dict[str, Any]]) -> None:
    """Each meter and month is charged what the preview and the oracle say, to the paisa."""
    assert report["meter_months"]
    for row in report["meter_months"]:
        expected = oracle_bills(profile, load_w=row["load_w"])[row["period"]]
        assert (row["energy_wh"], row["total_minor"]) == (expected.energy_wh, expected.total_minor), row
        shown = previews[row["load_w"]][row["period"]]
        assert (row["energy_wh"], row["total_minor"]) == (shown["energy_wh"], shown["total_minor"]), row


def test_replay_of_a_record_charges_every_meter_and_month_as_preview_and_oracle_do(data_dir: Path) -> None:
    """Nothing is lost, energy adds up to the Wh, money to the paisa; a second replay moves nothing."""
    arguments = ("replay", str(RECORD), "--meters", "7", "--detail")
    first = answer(*arguments, data=data_dir)
    profile = parse_profile(RECORD.name, RECORD.read_bytes())
    assert first["sent"] == first["stored"] == 7 * len(profile.start_ms)
    assert (first["lost"], first["duplicate"], first["rejected"], first["quarantined"]) == (0, 0, 0, 0)
    assert first["energy_charged_wh"] == first["energy_sent_wh"] == 7 * sum(profile.energy_wh)
    previews: dict[int, dict[str, Any]] = {}
    for load_w in {row["load_w"] for row in first["meter_months"]}:
        shown = answer("bill", "preview", str(RECORD), "--load-kw", f"{load_w / 1000:g}")
        previews[load_w] = {month["period"]: month for month in shown["months"]}
    assert_money_of_replay(first, profile, previews)
    second = answer(*arguments, data=data_dir)
    assert (second["stored"], second["duplicate"], second["lost"]) == (0, first["stored"], 0)
    for unmoved in ("charges", "charged_minor", "energy_charged_wh", "alarms", "meter_months"):
        assert second[unmoved] == first[unmoved]
    assert answer("audit", data=data_dir)["clean"] is True


def test_replay_with_little_credit_alarms_and_cuts_each_home_once(data_dir: Path) -> None:
    """Credit runs low and out: one alarm per level and home, one cut-off each, no restore."""
    report = answer("replay", str(RECORD), "--meters", "3", "--credit", "300.00", "--threshold", "50.00", data=data_dir)
    assert (report["alarms"], report["cut_offs"], report["restores"]) == (6, 3, 0)
    assert answer("audit", data=data_dir)["clean"] is True


def test_demo_tells_the_whole_story_and_leaves_a_clean_audit(data_dir: Path) -> None:
    """Every step happens, orders leave within a second, and the auditor agrees on the same data."""
    told = answer("demo", "--data", str(data_dir))
    assert told["ok"] is True
    assert told["off_delay_p99_ms"] < 1000
    assert told["on_delay_p99_ms"] < 1000
    story = "\n".join(told["story"])
    for step in (
        "less the 1 % prepaid rebate",
        "the meter sounds",
        "supply is off",
        "supply is on",
        "accepted",
        "wrote coil 0",
    ):
        assert step in story
    assert answer("audit", data=data_dir)["clean"] is True


def test_demo_refuses_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    """The scratch folder is emptied, so it must be the demo's own. Here the program is run as an operator does."""
    (tmp_path / "keep.txt").write_text("mine")
    ended = subprocess.run(
        [sys.executable, "-m", "prepaid", "demo", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=COMMAND_S_MAX,
        env=clean_environment(),
        check=False,
    )
    assert ended.returncode == 2
    assert "expected a new or empty folder" in ended.stderr
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_import_vendor_and_keys_from_the_command_line(data_dir: Path, tmp_path: Path) -> None:
    """An operator enters a vendor and closes days on an empty installation."""
    assert answer("migrate", data=data_dir)["applied"]
    assert answer("migrate", data=data_dir)["applied"] == []
    shop = answer("vendors", "add", "Corner shop", data=data_dir)
    assert shop["vendor"] == "Corner shop"
    assert "." in shop["api_key"]
    assert answer("close-day", "--until", "2026-01-31", data=data_dir)["days"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("bill", "preview", "no-such-file.csv", "--load-kw", "3"), "no-such-file.csv"),
        (("bill", "preview", str(RECORD), "--load-kw", "3.0001"), "expected kW"),
        (("bill", "preview", str(RECORD), "--load-kw", "3", "--tariff", "nowhere"), "expected one of"),
        (("replay", str(RECORD), "--meters", "0"), "expected 1 or more meters"),
        (("replay", str(RECORD), "--speed", "slow"), "expected a factor above 0 or max"),
        (("replay", str(RECORD), "--credit", "3.5"), "none or two decimals"),
        (("close-day", "--until", "2999-01-01"), "has not ended"),
        (("close-day", "--until", "yesterday"), "YYYY-MM-DD"),
    ],
)
def test_wrong_arguments_end_with_one_clear_line(arguments: Sequence[str], says: str, tmp_path: Path) -> None:
    """A refusal is one line that names what was expected and what came, and status 2."""
    ended = prepaid(*arguments, data=tmp_path / "unused", status=2)
    assert says in ended.stderr
    assert ended.stderr.strip().count("\n") == 0
    assert "Traceback" not in ended.stderr


def test_unknown_setting_stops_the_start() -> None:
    """A misspelt variable under our prefix is refused by name."""
    ended = prepaid("bill", "preview", str(RECORD), "--load-kw", "3", status=2, environment={"PREPAID_LEASE": "10"})
    assert "PREPAID_LEASE" in ended.stderr


def test_sts_check_counts_passed_failed_and_skipped(tmp_path: Path) -> None:
    """A vector file passes, a wrong expectation fails with status 1, an unknown algorithm is skipped with a reason."""
    vectors = tmp_path / "vectors.jsonl"
    good = {"algorithm": "Luhn mod 10", "source": "test", "inputs": {"digits": "60072700000000000"}, "expected": {}}
    packaged = Path(__file__).parent.parent / "vectors" / "sts.jsonl"
    vectors.write_text(packaged.read_text() + json.dumps(good | {"algorithm": "no such thing"}) + "\n")
    counted = answer("sts", "check", str(vectors))
    assert counted["failed"] == 0
    assert counted["passed"] > 0
    assert counted["skipped"] >= 1
    vectors.write_text("not json\n")
    assert answer("sts", "check", str(vectors), status=1)["failed"] == 1


SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the recorded files are not beside this checkout")
@pytest.mark.parametrize(
    "name", ["uk-electricity-hdd-only-hourly-sample-1.csv.gz", "uci_household_power_2007-02-01_02.txt"]
)
def test_replay_of_other_records_agrees_with_preview_and_oracle(name: str, data_dir: Path) -> None:
    """Half-hourly and one-minute records, with their gaps, are charged as preview and oracle say."""
    path = SHARED / name
    report = answer("replay", str(path), "--meters", "4", "--detail", data=data_dir)
    assert report["lost"] == 0
    assert report["energy_charged_wh"] == report["energy_sent_wh"]
    profile = parse_profile(path.name, path.read_bytes())
    previews = {}
    for load_w in {row["load_w"] for row in report["meter_months"]}:
        shown = answer("bill", "preview", str(path), "--load-kw", f"{load_w / 1000:g}")
        previews[load_w] = {month["period"]: month for month in shown["months"]}
    assert_money_of_replay(report, profile, previews)
