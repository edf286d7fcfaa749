"""`prepaid accounts thresholds` as the office gives it: whole commands as processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_money_commands import Office, office

pytestmark = pytest.mark.db

__all__ = ["office"]
NUMBER = ("accounts", "thresholds", "100200300")


@pytest.mark.slow
def test_wishes_are_shown_set_and_ended_by_command(office: Office, tmp_path: Path) -> None:
    """Without a wish the command shows what is in force; with wishes these are all; a contradiction is one line."""
    assert office.run(*NUMBER).stdout == "balance Rs 0.00\n"
    wanted = ("--amount", "50.00", "--amount", "20", "--days", "3", "--percent", "20")
    told = office.ask(*NUMBER, *wanted)
    assert [(each["kind"], each["warns_at"], each["rung"]) for each in told["thresholds"]] == [
        ("amount", "50.00", True),
        ("amount", "20.00", True),
        ("days", None, False),
        ("percent", None, False),
    ]
    assert office.ask(*NUMBER) == office.ask(*NUMBER, *wanted) == told
    assert office.run(*NUMBER).stdout.splitlines()[1:] == [
        "amount 50.00: warns at Rs 50.00, has rung",
        "amount 20.00: warns at Rs 20.00, has rung",
        "3 days left: not known yet",
        "20 % of the last recharge: not known yet",
    ]
    for wrong, said in (
        (("--days", "91"), "expected 1 to 90 days, got 91"),
        (("--days", "3", "--days", "3"), "expected no two equal"),
        (("--days", "3", "--none"), "expected either wishes or --none"),
        (("--amount", "five"), "expected digits"),
    ):
        refused = office.run(*NUMBER, *wrong, status=2)
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert office.ask(*NUMBER, "--none")["thresholds"] == []
    assert "100200999" in office.run("accounts", "thresholds", "100200999", status=2).stderr
