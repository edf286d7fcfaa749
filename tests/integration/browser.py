"""A headless Chromium for tests, driven over its debugging pipe: no driver, no port, ended by its own process id."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# A cold browser starts in some 2 s on two busy cores; an answer takes milliseconds.
ANSWER_TIMEOUT_S = 30.0
# A screenshot of a long page is some 200 kB, one message.
MESSAGE_BYTES_MAX = 32_000_000
# A phone; the browser's own traffic is off, and no name but loopback resolves.
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--no-default-browser-check", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--hide-scrollbars", "--window-size=390,844", "--lang=en", "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


def browser_path() -> str | None:
    """Return the browser of this machine, None without one."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@dataclass(slots=True, kw_only=True)
class Page:
    """One open page; `requested` has the address of everything it asked for, `complaints` what its console said."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    session: str = ""
    last_id: int = 0
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    async def call(self, method: str, **parameters: object) -> Any:  # The browser's answer, of any shape.
        """Ask the browser for something and wait for its answer; remember events on the way."""
        self.last_id += 1
        asked = {"id": self.last_id, "method": method, "params": parameters}
        if self.session:
            asked["sessionId"] = self.session
        self.writer.write(json.dumps(asked).encode() + b"\0")
        while True:
            told = json.loads((await asyncio.wait_for(self.reader.readuntil(b"\0"), ANSWER_TIMEOUT_S))[:-1])
            if told.get("id") == self.last_id:
                assert "error" not in told, f"{method}: {told['error']}"
                return told["result"]
            self._note(told)

    async def open(self, url: str) -> None:
        """Open an address in a fresh page; the answer to `navigate` comes when the new document is there."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:  # A JSON value of the page's.
        """Return what an expression is in the page, waiting for a promise."""
        found = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def state(self, name: str) -> None:
        """Wait until the page says that it is in a state."""
        await self.value(
            "new Promise(done => {"
            f" const seen = () => document.body && document.body.dataset.state === {name!r};"
            " const look = () => { if (seen()) { watch.disconnect(); done(true); } };"
            " const watch = new MutationObserver(look);"
            " watch.observe(document, {subtree: true, attributes: true, childList: true}); look(); })"
        )

    async def text(self, id_: str) -> str:
        """Return the text of an element."""
        return str(await self.value(f"document.getElementById({id_!r}).textContent"))

    async def screenshot(self, path: Path) -> None:
        """Store a picture of the whole page."""
        taken = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def _note(self, told: dict[str, Any]) -> None:
        match told.get("method"):
            case "Network.requestWillBeSent":
                self.requested.append(told["params"]["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(told["params"]["exceptionDetails"]["text"])
            case "Log.entryAdded" if told["params"]["entry"]["source"] != "network":
                self.complaints.append(told["params"]["entry"]["text"])


@asynccontextmanager
async def open_browser(path: str, folder: Path) -> AsyncIterator[Page]:
    """Start a browser with its profile in a folder; end it with the context."""
    to_read, to_write = os.pipe(), os.pipe()
    # The browser reads commands at descriptor 3 and answers at 4. Not sh: some know one-digit descriptors only.
    joined = f'exec "$@" 3<&{to_read[0]} 4>&{to_write[1]}'
    child = await asyncio.create_subprocess_exec(
        "bash", "-c", joined, "bash", path, *_FLAGS, f"--user-data-dir={folder}", "about:blank",
        pass_fds=(to_read[0], to_write[1]), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_read[0])
    os.close(to_write[1])
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MESSAGE_BYTES_MAX)
    incoming, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(to_write[0], "rb", 0)
    )
    outgoing, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(to_read[1], "wb", 0))
    writer = asyncio.StreamWriter(outgoing, protocol, None, loop)
    page = Page(reader=reader, writer=writer)
    try:
        yield page
    finally:
        await _close(page, child)
        incoming.close()
        outgoing.close()


async def _close(page: Page, child: asyncio.subprocess.Process) -> None:
    """Ask the browser to end with all its processes; end it by its id when it does not."""
    page.session = ""
    with suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        await page.call("Browser.close")
    try:
        await asyncio.wait_for(child.wait(), ANSWER_TIMEOUT_S)
    except TimeoutError:
        child.kill()
        await child.wait()
