"""`prepaid vendors` as the utility gives it: whole commands as processes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.integration.test_money_commands import WHY, Office

pytestmark = [pytest.mark.db, pytest.mark.slow]


def test_vendor_is_registered_bounded_paid_for_and_stopped(database_url: str, tmp_path: Path) -> None:
    """Limits and deposits need a name; a reference is booked once; what is refused is one line."""
    office = Office(database_url, tmp_path)
    added = office.ask("vendors", "add", "Corner shop", "--credit-limit", "50")
    assert (added["vendor"], added["credit_limit_minor"]) == ("Corner shop", 5_000)
    assert "sells without a limit" in office.run("vendors", "add", "Kiosk").stderr
    refused = office.run("vendors", "add", "Coupons", status=2)
    assert (refused.stderr.count("\n"), "under itself" in refused.stderr) == (1, True)
    slip = ("vendors", "deposit", "Corner shop", "700.00", "--reference", "SBI-1", "--by", "R. Singh")
    taken = office.ask(*slip)
    assert (taken["balance_after"], taken["by"]) == ("700.00", "R. Singh")
    assert office.ask(*slip) == taken == office.ask("vendors", "receipt", "SBI-1")
    other = office.run(*slip[:3], "701.00", *slip[4:], status=2)
    assert "reference_reused" in other.stderr
    assert office.ask("vendors", "limit", "Corner shop", "0", *WHY)["credit_limit"] == "0.00"
    assert office.ask("vendors", "limit", "Corner shop", "--no-limit", *WHY)["credit_limit"] is None
    assert "either an amount or --no-limit" in office.run("vendors", "limit", "Corner shop", *WHY, status=2).stderr
    assert office.ask("vendors", "stop", "Corner shop", *WHY)["active"] is False
    assert office.ask("vendors", "resume", "Corner shop", *WHY)["active"] is True
    changes = office.ask("vendors", "show", "Corner shop")["changes"]
    assert [each["act"] for each in changes] == ["resume", "stop", "limit", "limit", "limit"]
    assert (changes[-1]["by"], changes[0]["by"]) == ("registration", "A. Kaur")
    assert office.ask("vendors", "deposit-return", "SBI-1", *WHY)["taken_back"] is True
    statement = office.ask("vendors", "statement", "Corner shop")
    assert [each["amount"] for each in statement["entries"]] == ["700.00", "-700.00"]
    printed = office.run("vendors", "statement", "Corner shop", "--format", "csv").stdout
    assert [row["kind"] for row in csv.DictReader(printed.splitlines())][1:-1] == ["vendor_deposit"] * 2
    assert "closing" in office.run("vendors", "statement", "Corner shop").stdout
    assert office.ask("vendors", "day", "Corner shop")["closing"] == "0.00"
    assert "Kiosk" in office.run("vendors", "list").stdout
    file = tmp_path / "vendors.csv"
    file.write_text("name,credit_limit\nKiosk,10\nStation A,250.00\nStation B,\n")
    assert office.ask("vendors", "import", str(file)) == {"lines": 3, "added": 2}
    limits = {each["vendor"]: each["credit_limit"] for each in office.ask("vendors", "list")["vendors"]}
    assert (limits["Kiosk"], limits["Station A"], limits["Station B"]) == (None, "250.00", None)
    file.write_text("name,credit_limit\nStation C,much\n,5\n")
    wrong = office.run("vendors", "import", str(file), status=2).stderr
    assert "vendors.csv line 2 column credit_limit: expected an amount" in wrong
    assert "line 3 column name: expected a value" in wrong
    office.run("audit")
