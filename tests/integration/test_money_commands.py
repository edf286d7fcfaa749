"""The money, rules and accounts commands as the billing office gives them: whole commands as processes."""

from __future__ import annotations

import asyncio
import json
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from billing.prepayment import builtin_rules_text
from billing.supply import Mode
from tests.commands import run_command, settings_for
from tests.integration.vending_shop import add_home, open_shop

pytestmark = pytest.mark.db

WHY = ("--reason", "test of the office", "--by", "A. Kaur")


class Office:
    """Gives commands on one database."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self._settings = settings_for(database_url, folder)

    def run(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run one command and check its exit status."""
        return run_command(*arguments, environment=self._settings, status=status)

    def ask(self, *arguments: str) -> dict[str, Any]:
        """Run one command with --json and read its one object."""
        return dict(json.loads(self.run(*arguments, "--json").stdout))


@pytest.fixture
def office(database_url: str, tmp_path: Path) -> Office:
    """An office with a prepaid account 100200300 and a postpaid account 2."""

    async def open_accounts() -> None:
        async with open_shop(database_url) as shop:
            await shop.set_balance(0)
            await add_home(shop.conn, "POST-1", "2", mode=Mode.POSTPAID)

    asyncio.run(open_accounts())
    return Office(database_url, tmp_path)


def test_office_credits_refunds_and_reverses(office: Office) -> None:
    """Each answer names journals and balance; a reference is done once; refusals are one line and status 2."""
    credit = office.ask("money", "adjust", "100200300", "500.00", *WHY, "--reference", "A-1")
    assert (credit["event"], credit["amount_minor"], credit["balance_minor"]) == ("adjustment", 50_000, 50_000)
    assert office.ask("money", "adjust", "100200300", "500", *WHY, "--reference", "A-1") == credit
    reused = office.run("money", "adjust", "100200300", "1", *WHY, "--reference", "A-1", status=2)
    assert reused.stderr.startswith("prepaid: reference_reused: reference A-1: expected")
    assert office.ask("money", "adjust", "100200300", "100", "--debit", *WHY)["balance_minor"] == 40_000
    assert office.ask("money", "refund", "100200300", "50", *WHY)["balance_minor"] == 35_000
    refused = office.run("money", "refund", "100200300", "350.01", *WHY, status=2)
    assert refused.stderr.count("\n") == 1
    assert "money_refused: account 100200300: expected a balance of 350.01 to refund, got 350.00" in refused.stderr
    journal = str(credit["journals"][0])
    assert office.ask("money", "reverse", journal, *WHY)["balance_minor"] == -15_000
    assert "expected one not taken back yet" in office.run("money", "reverse", journal, *WHY, status=2).stderr
    assert office.ask("money", "write-off", "100200300", "150", *WHY)["balance_minor"] == 0
    office.run("money", "refund", "999", "1", *WHY, status=2)
    office.run("money", "refund", "100200300", "1", "--reason", " ", "--by", "A. Kaur", status=2)
    # Without a reason it is no command at all.
    office.run("money", "refund", "100200300", "1", "--by", "A. Kaur", status=2)


def test_office_converts_pays_instalments_and_lets_consumers_go_away(office: Office) -> None:
    """Conversion, arrears, security, instalments, subsidy, interest, absence and return, one after the other."""
    converted = office.ask(
        "accounts", "convert", "2", "--arrears", "1500", "--security", "900", "--debt-to-arrears", *WHY
    )
    assert (converted["security_minor"], converted["balance_minor"], converted["supply"]) == (90_000, 0, "off")
    assert converted["arrears_minor"] > 150_000
    paid = office.ask("money", "instalments")
    assert paid["instalments"] == 0
    assert office.ask("money", "security", "2", "100", "--action", "return", *WHY)["balance_minor"] == 10_000
    assert office.ask("money", "subsidy", "2", "50", *WHY)["balance_minor"] == 15_000
    assert office.ask("money", "interest", "2", "--amount", "0.50", *WHY)["balance_minor"] == 15_050
    unpaid = office.run("money", "interest", "2", "--advance", "1000", "--days", "30", *WHY, status=2)
    assert "category DS: expected rules that pay interest on an advance" in unpaid.stderr
    less = office.ask("money", "write-off", "2", "500", "--arrears", *WHY)
    assert less["arrears_minor"] == converted["arrears_minor"] - 50_000
    assert office.ask("money", "arrears", "2", "10", *WHY)["arrears_minor"] == less["arrears_minor"] + 1_000
    office.run("accounts", "absent", "2", "--until", "soon", "--deposit", "100", *WHY, status=2)
    day = _days_from_now(30)
    away = office.ask("accounts", "absent", "2", "--until", day, "--deposit", "100", *WHY)
    assert (away["absence_deposit_minor"], away["balance_minor"]) == (10_000, 5_050)
    back = office.run("accounts", "return", "2", *WHY)
    assert "balance          Rs 150.50" in back.stdout


def test_office_puts_rules_in_force(office: Office, tmp_path: Path) -> None:
    """A document holds from its day; what it breaks is named; the sweep gives the category's emergency credit."""
    shown = office.ask("rules", "show")
    assert (shown["id"], shown["categories"]["GOVT"]["recharge_min_minor"]) == ("punjab", 100_000)
    file = tmp_path / "rules.toml"
    text = builtin_rules_text().replace("effective_from = 2024-11-14", f"effective_from = {_days_from_now(1)}")
    file.write_text(text.replace("emergency_credit_minor = 0", "emergency_credit_minor = 5_000"), encoding="utf-8")
    assert office.ask("rules", "add", str(file)) == {"id": "punjab", "from_day": _days_from_now(1)}
    assert office.ask("rules", "apply")["changed"] == 0
    assert office.ask("rules", "apply", "--day", _days_from_now(1))["changed"] == 2
    assert "emergency credit Rs 50.00" in office.run("rules", "show", "--day", _days_from_now(1)).stdout
    file.write_text(text.replace("instalments = 6", "instalments = 0"), encoding="utf-8")
    broken = office.run("rules", "add", str(file), status=2).stderr
    assert "rules_error: rules punjab, category default: security.instalments: expected a whole number" in broken


def _days_from_now(days: int) -> str:
    return str(datetime.now(ZoneInfo("Asia/Kolkata")).date() + timedelta(days=days))
