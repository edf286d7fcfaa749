"""The commands of supply rules, holds and the exempt list as the office gives them: whole commands as processes."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from billing.supply_rule_document import builtin_supply_documents
from tests.integration.test_money_commands import Office
from tests.integration.vending_shop import open_shop

pytestmark = pytest.mark.db

NUMBER = "100200300"


@pytest.fixture
def office(database_url: str, tmp_path: Path) -> Office:
    """An office with one account."""

    async def open_account() -> None:
        async with open_shop(database_url):
            pass

    asyncio.run(open_account())
    return Office(database_url, tmp_path)


def days_from_now(days: int) -> str:
    """Return a local day as the commands write it."""
    return str(datetime.now(ZoneInfo("Asia/Kolkata")).date() + timedelta(days=days))


def test_office_begins_with_a_shipped_document_checks_it_and_puts_it_in_force(office: Office, tmp_path: Path) -> None:
    """The built-in rules hold first; a copy of another state's, with a day of its own, takes over from that day."""
    shown = office.ask("supply-rules", "show")
    assert (shown["id"], shown["default"], shown["categories"]["GOVT"]) == ("punjab", "supply_code", "pspcl_government")
    assert shown["schemes"]["pspcl_government"]["windows"]["friday"] == [["10:00", "13:00"]]
    assert shown["schemes"]["pspcl_government"]["windows"]["saturday"] == []
    text = office.run("supply-rules", "show", "--builtin", "bihar").stdout
    assert text.rstrip("\n") == builtin_supply_documents()["bihar"].rstrip("\n")
    file = tmp_path / "rules.toml"
    file.write_text(text.replace("effective_from = 2026-01-01", f"effective_from = {days_from_now(1)}"), "utf-8")
    assert office.ask("supply-rules", "check", str(file))["default"] == "happy_hours"
    assert office.ask("supply-rules", "add", str(file)) == {"id": "bihar", "from_day": days_from_now(1)}
    assert office.ask("supply-rules", "show")["id"] == "punjab"
    told = office.run("supply-rules", "show", "--day", days_from_now(1)).stdout
    assert "happy_hours: every other category" in told
    assert "cut monday: 11:00-17:30" in told
    assert "cut sunday: never" in told
    file.write_text(text.replace('from = "11:00"', 'from = "18:00"'), "utf-8")
    broken = office.run("supply-rules", "check", str(file), status=2).stderr
    assert "supply_rules_error: supply rules bihar, line" in broken
    assert "to: expected a time after 18:00, got 17:30" in broken
    file.write_bytes(b"id = 'x'\n\xff\xfe")
    assert "rules.toml line 2: expected UTF-8" in office.run("supply-rules", "add", str(file), status=2).stderr
    assert "expected one of bihar, punjab" in office.run("supply-rules", "show", "--builtin", "x", status=2).stderr


@pytest.mark.slow
def test_office_holds_supply_with_two_people(office: Office) -> None:
    """Ask, approve as another person, list, release; refusals are one line and status 2."""
    why = ("--reason", "oxygen at home", "--by", "A. Kaur")
    asked = office.ask("supply", "hold", "ask", NUMBER, *why, "--until", days_from_now(30))
    hold = str(asked["hold"])
    refused = office.run("supply", "hold", "approve", hold, "--by", "A. KAUR", status=2)
    assert refused.stderr.count("\n") == 1
    assert "hold_refused: hold 1: expected another person than the one who asked" in refused.stderr
    assert office.ask("supply", "hold", "approve", hold, "--by", "B. Singh")["state"] == "in_force"
    (listed,) = office.ask("supply", "hold", "list")["holds"]
    assert (listed["account"], listed["reason"], listed["approved_by"]) == (NUMBER, "oxygen at home", "B. Singh")
    # The hold ends with the local midnight that begins the day.
    ends = datetime.fromisoformat(listed["until_at"]).astimezone(ZoneInfo("Asia/Kolkata"))
    assert f"{ends:%Y-%m-%d %H:%M}" == f"{days_from_now(30)} 00:00"
    assert "released" in office.run("supply", "hold", "release", hold, "--by", "A. Kaur").stdout
    assert office.ask("supply", "hold", "list")["holds"] == []
    assert [each["state"] for each in office.ask("supply", "hold", "list", NUMBER)["holds"]] == ["released"]
    office.run("supply", "hold", "ask", "999", *why, status=2)
    office.run("supply", "hold", "ask", NUMBER, "--reason", " ", "--by", "A. Kaur", status=2)
    office.run("supply", "hold", "ask", NUMBER, *why, "--until", "soon", status=2)


@pytest.mark.slow
def test_office_keeps_the_exempt_list(office: Office) -> None:
    """Set with a reason and a name, listed, cleared; an account not on the list cannot be taken off."""
    why = ("--reason", "dialysis", "--by", "A. Kaur")
    assert office.ask("supply", "exempt", "set", NUMBER, *why)["exempt"] is True
    (listed,) = office.ask("supply", "exempt", "list")["exempt"]
    assert (listed["account"], listed["reason"], listed["set_by"]) == (NUMBER, "dialysis", "A. Kaur")
    assert f"{NUMBER:<16} dialysis, by A. Kaur" in office.run("supply", "exempt", "list").stdout
    assert "is exempt no more" in office.run("supply", "exempt", "clear", NUMBER, *why).stdout
    assert "exemption_refused" in office.run("supply", "exempt", "clear", NUMBER, *why, status=2).stderr
