"""The consumer's page: what it is made of, and what a person sees in a real browser."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing.supply_policy import Reason
from tests.conftest import open_folder
from tests.integration.browser import Page, browser_path, open_browser
from tests.integration.test_statement import tell_story
from tests.integration.test_vending_edges import served
from tests.integration.vending_shop import Shop, open_shop
from vending.edges.consumer_page import page_file

FILES = ("index.html", "page.css", "page.js", "words.json")
needs_browser = pytest.mark.skipif(
    browser_path() is None, reason="no Chromium on this machine: see docs/consumer-api.md"
)


def words() -> dict[str, dict[str, Any]]:  # Texts, lists and groups of texts.
    """Return what the page says, by language."""
    found: dict[str, dict[str, Any]] = json.loads(page_file("words.json").content)
    return found


def test_page_loads_nothing_from_elsewhere() -> None:
    """No address of another host stands in any of its files, and nothing that its policy forbids."""
    for name in FILES:
        text = page_file(name).content.decode()
        assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", text) == [], name
        assert "innerHTML" not in text
    html = page_file("index.html").content.decode()
    assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son[a-z]+=", html)


def test_page_says_everything_in_three_languages() -> None:
    """Each word in each language, with the same places for figures; each reason of supply translated."""
    english, *others = words().values()
    assert set(words()) == {"en", "hi", "pa"}
    for other in others:
        assert set(other) == set(english) | {"why", "lines"}
        assert len(other["months"]) == len(english["months"]) == 12
        for name, text in english.items():
            assert sorted(re.findall(r"\{\w+\}", str(text))) == sorted(re.findall(r"\{\w+\}", str(other[name]))), name
        assert set(other["why"]) == {reason.value for reason in Reason}
    named = set(re.findall(r'data-word="(\w+)"', page_file("index.html").content.decode()))
    asked = set(re.findall(r'word\("(\w+)"', page_file("page.js").content.decode()))
    shown = {"on", "off", "limited", "api_key_wrong", "not_allowed"}
    assert named | asked | shown | {"away"} == set(english)


@pytest.mark.db
def test_page_is_sent_with_a_policy_and_kept_by_tag(database_url: str) -> None:
    """Anybody may have the page, its files come from here only, and unknown files are unknown paths."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            page = await shop.http.get("/consumer")
            assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            again = await shop.http.get("/consumer", headers={"If-None-Match": page.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            for link in re.findall(r'(?:href|src)="(/[^"]+)"', page.text):
                assert (await shop.http.get(link)).status_code == 200
            missing = await shop.http.get("/consumer/secrets.txt")
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_path")

    asyncio.run(story())


@pytest.fixture
def profile() -> Iterator[Path]:
    """A fresh profile for a browser."""
    with open_folder() as folder:
        yield folder


async def enter(page: Page, key: str) -> None:
    """Type a key and send the form."""
    await page.value(
        f"document.body.dataset.state = 'typed'; document.getElementById('key').value = {json.dumps(key)};"
        " document.getElementById('entry').requestSubmit()"
    )


async def choose(page: Page, language: str) -> None:
    """Choose a language as a person does."""
    await page.value(
        "document.body.dataset.state = 'chosen'; var box = document.getElementById('language');"
        f" box.value = {language!r}; box.dispatchEvent(new Event('change'))"
    )
    await page.state("shown")


@needs_browser
@pytest.mark.db
def test_family_reads_balance_supply_and_use_on_a_phone(database_url: str, profile: Path, tmp_path: Path) -> None:
    """A wrong key is refused in words; the right one shows the facts in three languages, and closing forgets it."""

    async def story() -> None:
        path = browser_path()
        assert path is not None
        async with open_shop(database_url) as shop, served(shop) as url, open_browser(path, profile) as page:
            await tell_story(shop)
            await page.open(f"{url}/consumer")
            await page.state("key")
            await enter(page, "nobody." + "x" * 43)
            await page.state("key")
            assert await page.text("problem") == words()["en"]["api_key_wrong"]
            await enter(page, shop.keys["consumer"].header)
            await page.state("shown")
            await assert_shows(shop, page)
            await page.screenshot(tmp_path / "consumer.png")
            for language in ("hi", "pa"):
                await choose(page, language)
                assert await page.text("why") == words()[language]["why"]["still_off"]
                assert await page.value("document.documentElement.lang") == language
                await page.screenshot(tmp_path / f"consumer-{language}.png")
            assert {address.split("/")[2] for address in page.requested} == {url.removeprefix("http://")}
            assert all(shop.keys["consumer"].secret not in address for address in page.requested)
            assert page.complaints == []
            await page.value("document.body.dataset.state = 'closing'; document.getElementById('forget').click()")
            await page.state("key")
            assert await page.value("sessionStorage.length") == 0

    asyncio.run(story())


async def assert_shows(shop: Shop, page: Page) -> None:
    """Compare what the page shows with what the interface answers."""
    summary = (await shop.get("/v1/consumer/me/summary", "consumer")).json()
    balance = (await page.text("balance")).replace("₹", "").replace(",", "")
    assert balance == summary["balance"]
    assert await page.text("days-left") == words()["en"]["used_up"]
    assert await page.text("supply") == "Off"
    assert await page.text("money-time") == "as of 3 Dec 2026, 10:00"
    assert await page.text("why") == summary["supply"]["why"]["text"]
    assert summary["supply"]["restores_with"] in (await page.text("restores")).replace(",", "")
    assert await page.text("month") == f"11.2 kWh, ₹{summary['month']['charge']}"
    assert await page.value("document.querySelectorAll('#bars li').length") == 31
    assert await page.value("Math.max(...[...document.querySelectorAll('#bars i')].map(b => b.clientHeight))") > 90
    notices = (await shop.get("/v1/consumer/me/notices", "consumer")).json()["notices"]
    first = await page.value("document.querySelector('#notices li').firstChild.textContent")
    assert (await page.value("document.querySelectorAll('#notices li').length"), first) == (
        len(notices),
        notices[0]["text"],
    )
    # A narrow phone shows it without scrolling sideways.
    assert await page.value("document.documentElement.scrollWidth <= window.innerWidth")
