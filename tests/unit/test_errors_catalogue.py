"""The catalogue of codes: what is printed of it is what is answered by it."""

from __future__ import annotations

from pathlib import Path

from vending.errors_catalogue import CATALOGUE, Repeat, described
from vending.vends import DeclineReason

PAGE = Path(__file__).parents[2] / "docs" / "vending-errors.md"


def test_page_of_errors_prints_the_catalogue() -> None:
    """Each code has its line on the page, under what may be sent after it."""
    lines = set(PAGE.read_text().splitlines())
    for entry in CATALOGUE.values():
        assert f"| `{entry.code}` | {entry.status} | {entry.meaning} | {entry.to_do} |" in lines, entry.code


def test_refusals_of_a_sale_are_stored() -> None:
    """Whatever declines a sale is answered for ever, so that what is asked after it needs a new message id."""
    assert {CATALOGUE[reason.value].repeat for reason in DeclineReason} == {Repeat.NEW_ID}


def test_described_codes_share_their_status() -> None:
    """A route shows each status once, with every code it may have."""
    shown = described("unknown_meter", "unknown_vend", "database_busy")
    assert list(shown) == [404, 503]
    assert all(code in shown[404] for code in ("`unknown_meter`", "`unknown_vend`"))
