"""Facts of notices: stored and read back the same, and what stored ones are refused for."""

from __future__ import annotations

import json
from datetime import date

import pytest

from billing.notices import Exhausted, Forecast, NoticeError, NoticeKind, Recharged, Tamper, TokenResend, read_facts
from billing.notices.facts import mask_token
from tests.unit.test_notice_texts import GREATEST


@pytest.mark.parametrize("kind", NoticeKind)
def test_facts_come_back_from_storage_the_same(kind: NoticeKind) -> None:
    """What is stored in the transaction of a cause is what is told later."""
    stored = json.loads(json.dumps(GREATEST[kind].to_json()))
    assert read_facts(kind.value, stored) == GREATEST[kind]


def test_fact_that_is_not_given_is_left_out_of_storage() -> None:
    """Absent and null are one."""
    facts = Exhausted(balance_minor=-5, restores_minor=6)
    assert facts.to_json() == {"balance_minor": -5, "restores_minor": 6}
    assert read_facts("exhausted", {**facts.to_json(), "protected_until_ms": None}) == facts


@pytest.mark.parametrize(
    ("kind", "stored", "told"),
    [
        ("restored", {}, "expected balance_minor of type int, got NoneType"),
        ("restored", {"balance_minor": "5"}, "expected balance_minor of type int, got str"),
        ("restored", {"balance_minor": True}, "got bool"),
        ("restored", {"balance_minor": 1.5}, "got float"),
        ("restored", {"balance_minor": 1, "extra": 2}, "got extra"),
        ("tamper", {"event": "quake", "at_ms": 1}, "expected event of type TamperEvent, got another"),
        ("forecast", {"balance_minor": 1, "days_left": 1, "ends_on": "soon"}, "expected ends_on of type date"),
        ("wedding", {}, "got kind 'wedding'"),
    ],
)
def test_stored_facts_that_do_not_fit_are_refused(kind: str, stored: dict[str, object], told: str) -> None:
    """A row of another version, or a spoiled one, is named, never half told."""
    with pytest.raises(NoticeError, match=told):
        read_facts(kind, stored)


def test_token_is_masked_to_its_last_digits() -> None:
    """Who has no right to a token sees which one it was, no more."""
    masked = "**** **** **** **** 7890"
    token = "1234 5678 9012 3456 7890"
    assert mask_token(token) == masked
    assert TokenResend(token=token, amount_minor=1, at_ms=1).masked().token == masked
    assert Recharged(amount_minor=1, balance_minor=1, token=token).masked().token == masked
    plain = Recharged(amount_minor=1, balance_minor=1)
    assert plain.masked() == plain
    forecast = Forecast(balance_minor=1, days_left=1, ends_on=date(2026, 1, 1))
    assert forecast.masked() is forecast
    assert Tamper.from_json({"event": "magnet", "at_ms": 1}).event == "magnet"
