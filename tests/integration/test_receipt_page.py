"""The page of a slip in a real browser, on paper of 80 mm."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path

import pytest

from billing.notices.kinds import Language
from tests.conftest import open_folder
from tests.integration.browser import Page, browser_path, open_browser
from tests.slip_samples import RECEIPT, slips
from vending.slips.html import render_html

MM_PER_INCH = 25.4
PAPER_MM = 80
MARGIN_MM = 4
# A roll is cut where the slip ends; the longest has every section and two key-change tokens.
ROLL_MM = (PAPER_MM, 420)
A4_MM = (210, 297)
# CSS counts 96 to the inch.
PAPER_PIXELS = round(PAPER_MM * 96 / MM_PER_INCH)
BEYOND = (
    "[...document.querySelectorAll('body *')].filter(e => { const b = e.getBoundingClientRect();"
    " return b.width && (b.left < 0 || b.right > innerWidth + 0.5 || e.scrollWidth > e.clientWidth + 1"
    " && getComputedStyle(e).display !== 'inline'); }).map(e => e.outerHTML)"
)

pytestmark = pytest.mark.skipif(browser_path() is None, reason="no Chromium on this machine: see docs/receipts.md")


def test_slips_fit_a_roll_of_80_mm_and_one_sheet_of_a4(tmp_path: Path) -> None:
    """Every kind in every language: nothing beyond the paper, one sheet, the token big, a title, nothing loaded."""

    async def story() -> None:
        path = browser_path()
        assert path is not None
        with open_folder() as profile:
            async with open_browser(path, profile) as page:
                for language in Language:
                    for kind, slip in slips(language).items():
                        file = tmp_path / f"{kind}-{language.value}.html"
                        file.write_text(render_html(slip), encoding="utf-8")
                        await page.open(file.as_uri())
                        await assert_printable(page)
                        assert await page.value("document.title") == f"{slip.title} {slip.reference}"
                        assert await page.value("document.documentElement.lang") == language.value
                        if kind in ("credit", "free_issue"):
                            await assert_token_seen(page)
                assert [url for url in page.requested if not url.startswith("file:")] == []
                assert page.complaints == []

    asyncio.run(story())


async def assert_printable(page: Page) -> None:
    """Look at the page as paper of a receipt printer."""
    await page.call("Emulation.setEmulatedMedia", media="print")
    metrics = {"width": PAPER_PIXELS, "height": 1_000, "deviceScaleFactor": 1, "mobile": False}
    await page.call("Emulation.setDeviceMetricsOverride", **metrics)
    assert await page.value("innerWidth") == PAPER_PIXELS
    assert await page.value("document.documentElement.scrollWidth") <= PAPER_PIXELS
    assert await page.value(BEYOND) == []
    for paper_mm in (ROLL_MM, A4_MM):
        assert await pages_on(page, *paper_mm) == 1


async def pages_on(page: Page, width_mm: int, height_mm: int) -> int:
    """Print on paper of a size; return how many sheets that takes."""
    sides = {f"margin{side}": MARGIN_MM / MM_PER_INCH for side in ("Top", "Bottom", "Left", "Right")}
    paper = {"paperWidth": width_mm / MM_PER_INCH, "paperHeight": height_mm / MM_PER_INCH}
    printed = await page.call("Page.printToPDF", **paper, **sides)
    return len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(printed["data"])))


async def assert_token_seen(page: Page) -> None:
    """The last digits are the token, in whole groups, twice as big as the text; the code is under them."""
    shown = await page.value("[...document.querySelectorAll('.digits')].at(-1).querySelector('b').innerText")
    assert shown.split() == RECEIPT.token.grouped.split()
    size = "parseFloat(getComputedStyle({}).fontSize)"
    big, usual = size.format("[...document.querySelectorAll('.digits b')].at(-1)"), size.format("document.body")
    assert await page.value(f"{big} >= 1.8 * {usual}")
    assert await page.value(
        "[...document.querySelectorAll('.digits b span')].every(s => s.getClientRects().length === 1)"
    )
    code = await page.value("document.querySelector('svg').getBoundingClientRect().width")
    assert 100 <= code <= PAPER_PIXELS
