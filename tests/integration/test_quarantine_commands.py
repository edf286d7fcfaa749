"""The quarantine desk and the validation rules as an engineer gives the commands: whole commands as processes."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import from_ms
from db.batches import QuarantineRow, add_quarantine
from db.pool import connect
from tests.integration.test_money_commands import Office
from tests.integration.vending_shop import open_shop
from tests.support import T0

pytestmark = pytest.mark.db

WHO = ("--by", "A. Kaur", "--why", "seen on site")


def _row(number: int, reason: str) -> QuarantineRow:
    return QuarantineRow(
        shard=3,
        topic="amr/M1/rd",
        serial="M1",
        read_at=from_ms(T0 + number),
        reason=reason,
        detail=f"register: expected 5 Wh or more, got {number}, meter M1",
        raw=b'{"v":1}' if number == 0 else b"",
        sha256=b"frame",
        item=number,
        severity="alarm",
        stored_at=from_ms(T0),
        rejected=False,
    )


@pytest.fixture
def office(database_url: str, tmp_path: Path) -> Office:
    """An office with one account and three held readings of one frame."""

    async def fill() -> None:
        async with open_shop(database_url):
            pass
        async with await connect(database_url, application="test") as conn:
            await add_quarantine(conn, [_row(0, "jump"), _row(1, "jump"), _row(2, "conflict")])

    asyncio.run(fill())
    return Office(database_url, tmp_path)


def test_engineer_lists_shows_and_releases(office: Office) -> None:
    """Rows are chosen by number or by rule; who and why are kept; refusals are one line and status 2."""
    rows = office.ask("quarantine", "list", "--reason", "jump")["rows"]
    assert [(row["item"], row["severity"], row["state"]) for row in rows] == [
        (1, "alarm", "held"),
        (0, "alarm", "held"),
    ]
    ids = sorted(row["id"] for row in rows)
    released = office.ask("quarantine", "release", "--reason", "jump", "--serial", "M1", *WHO)
    assert released == {"state": "released", "ids": ids}
    refused = office.run("quarantine", "release", str(ids[-1] + 1), *WHO, status=2).stderr
    assert "quarantine_refused" in refused
    assert refused.count("\n") == 1
    shown = office.ask("quarantine", "show", str(ids[-1]))
    assert (shown["state"], shown["raw_hex"]) == ("released", b'{"v":1}'.hex())
    assert [(each["action"], each["by"], each["why"]) for each in shown["actions"]] == [
        ("release", "A. Kaur", "seen on site")
    ]


@pytest.mark.slow
def test_refused_arguments_of_the_desk_change_nothing(office: Office) -> None:
    """No rows chosen, a swap, a wrong rule, no name: one line and status 2; the plain output is for a person."""
    for arguments, told in (
        (("release", *WHO), "expected either numbers or some of"),
        (("release", "1", "--as", "swap", *WHO), "another meter's register"),
        (("list", "--reason", "spike"), "expected one of malformed"),
        (("list", "--since", "yesterday"), "expected YYYY-MM-DD or an instant"),
        (("reject", "1", "--by", " ", "--why", "x"), "by: expected 1 to 64"),
    ):
        assert told in " ".join(office.run("quarantine", *arguments, status=2).stderr.split())
    assert office.ask("quarantine", "reject", "1", *WHO) == {"state": "rejected", "ids": [1]}
    *rows, head, conflict, held, rejected = office.run("quarantine", "list").stdout.splitlines()
    assert [each.split()[2] for each in rows] == ["conflict", "jump"]
    assert head.split() == ["state", "rule", "rows", "times"]
    assert [conflict.split(), held.split()] == [["held", "conflict", "1", "1"], ["held", "jump", "1", "1"]]
    assert rejected.split() == ["rejected", "jump", "1", "1"]
    assert "b'{\"v\":1}'" in office.run("quarantine", "show", "1").stdout
    assert office.ask("quarantine", "flags") == {"flags": []}


@pytest.mark.slow
def test_office_puts_validation_rules_in_force(office: Office, tmp_path: Path) -> None:
    """The built-in rules hold first; a document takes over from its day, for the make it names."""
    assert office.ask("validation-rules", "show")["rules"]["gap"]["action"] == "accept_and_flag"
    today = datetime.now(ZoneInfo("Asia/Kolkata")).date()
    file = tmp_path / "rules.toml"
    text = 'id = "own"\ntitle = "t"\neffective_from = {}\n[[model]]\nmake = "Acme"\nrule.gap.action = "accept"\n'
    file.write_text(text.format(today), "utf-8")
    assert office.ask("validation-rules", "check", str(file))["models"] == ["acme"]
    assert office.ask("validation-rules", "add", str(file))["id"] == "own"
    assert office.ask("validation-rules", "add", str(file))["id"] == "own"
    assert office.ask("validation-rules", "show")["rules"]["gap"]["action"] == "accept_and_flag"
    assert office.ask("validation-rules", "show", "--make", "ACME")["rules"]["gap"]["action"] == "accept"
    file.write_text(text.format(today - timedelta(days=1)), "utf-8")
    assert "or later" in office.run("validation-rules", "add", str(file), status=2).stderr
    assert office.ask("accounts", "export", "100200300", "--allow")["changed"] is True
    assert office.ask("accounts", "export", "100200300", "--allow")["changed"] is False
