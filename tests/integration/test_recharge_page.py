"""The recharge page: what it is made of, and a recharge paid by somebody with a phone."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn

from tests.conftest import open_folder
from tests.integration.browser import browser_path, open_browser
from tests.integration.payment_shop import LINK_SECRET, Street, open_street
from tests.integration.test_vending_edges import served
from vending.edges.consumer_page import page_file
from vending.edges.sandbox_gateway import create_sandbox
from vending.payments import PaymentState
from vending.recharge_links import make_link

needs_browser = pytest.mark.skipif(
    browser_path() is None, reason="no Chromium on this machine: see docs/consumer-api.md"
)


def words() -> dict[str, dict[str, str]]:
    """Return what the page says, by language."""
    found: dict[str, dict[str, str]] = json.loads(page_file("recharge_words.json").content)
    return found


def test_page_says_everything_in_three_languages() -> None:
    """Each word in each language, with the same places; every state of an order; nothing from another host."""
    assert set(words()) == {"en", "hi", "pa"}
    for language in ("hi", "pa"):
        assert set(words()[language]) == set(words()["en"])
        for name, text in words()["en"].items():
            assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", words()[language][name])), name
    english = words()["en"]
    assert all(f"{part}_{state.value}" in english for state in PaymentState for part in ("title", "text"))
    html, script = (page_file(name).content.decode() for name in ("recharge.html", "recharge.js"))
    assert set(re.findall(r'data-word="(\w+)"', html)) | set(re.findall(r'word\("(\w+)"', script)) <= set(english)
    assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son[a-z]+=|innerHTML|https?://", html + script)


@pytest.fixture
def profile() -> Iterator[Path]:
    """A fresh profile for a browser."""
    with open_folder() as folder:
        yield folder


@asynccontextmanager
async def gateway_served(street: Street) -> AsyncIterator[None]:
    """Serve the gateway's pages on a real socket."""
    config = uvicorn.Config(create_sandbox(street.sandbox), lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        street.sandbox.public_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.should_exit = True
            await serving


async def until(seen: Callable[[], bool]) -> None:
    """Wait for what a click brings about."""
    for _ in range(2_000):
        if seen():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing came of the click")


@needs_browser
@pytest.mark.db
def test_neighbour_pays_by_link_and_sees_the_token(database_url: str, profile: Path, tmp_path: Path) -> None:
    """Masked facts, an amount, the gateway's page, back to the outcome with its token, in three languages."""

    async def story() -> None:
        path = browser_path()
        assert path is not None
        async with (
            open_street(database_url) as street,
            gateway_served(street),
            served(street.shop) as url,
            open_browser(path, profile) as page,
        ):
            link = make_link(LINK_SECRET, street.shop.home.account_id, expires_s=2**32 - 1)
            await page.open(f"{url}/r/{link[:-2]}AA")
            await page.state("problem")
            assert await page.text("problem") == words()["en"]["recharge_link_wrong"]
            await page.open(f"{url}/r/{link}")
            await page.state("shown")
            assert await page.text("balance") == "-₹8.05"
            assert await page.text("whose") == "G*** S***, account ******300"
            await page.screenshot(tmp_path / "recharge.png")
            await page.value("document.querySelectorAll('#amounts button')[1].click()")
            amount = await page.value("document.getElementById('amount').value")
            await page.value("document.getElementById('pay').requestSubmit()")
            await until(lambda: bool(street.sandbox.links))
            (begun,) = street.sandbox.links.values()
            assert f"{begun['amount'] / 100:.2f}" == amount
            await page.open(begun["short_url"])
            await page.state("to_pay")
            await page.value("document.getElementById('pay').click()")
            await until(lambda: bool(street.sandbox.outbox))
            await page.open(begun["callback_url"].replace("http://shop", url))
            await page.state("open")
            assert await page.text("outcome-title") == words()["en"]["title_open"]
            assert await street.deliver_all() == ["credited"]
            await page.state("credited")
            told = await street.read(begun["reference_id"])
            assert await page.text("token") == told["token"]
            await page.screenshot(tmp_path / "recharged.png")
            for language in ("hi", "pa"):
                await page.value(
                    f"var box = document.getElementById('language'); box.value = {language!r};"
                    " box.dispatchEvent(new Event('change'))"
                )
                assert await page.text("outcome-title") == words()[language]["title_credited"]
            # A narrow phone shows it without scrolling sideways.
            assert await page.value("document.documentElement.scrollWidth <= window.innerWidth")
            assert page.complaints == []

    asyncio.run(story())
