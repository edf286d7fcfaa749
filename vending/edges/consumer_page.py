"""The consumer's page: a phone-sized view of the consumer's own facts.

Stage: beside the consumer's routes. Sends files that are the same for everybody; the page asks the interface with the
key that its reader enters. Never: a fact, a key, anything from another host.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

_FOLDER = "pages"
_MEDIA_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "words.json": "application/json",
    "recharge.html": "text/html; charset=utf-8",
    "recharge.css": "text/css; charset=utf-8",
    "recharge.js": "text/javascript; charset=utf-8",
    "recharge_words.json": "application/json",
}
# Only from here, nothing inline, in nobody's frame.
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

page_router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFile:
    """One file of the page with its entity tag."""

    content: bytes
    media_type: str
    tag: str


@page_router.get("/consumer")
async def get_page(request: Request) -> Response:
    """Return the page."""
    return send_file(request, "index.html")


@page_router.get("/consumer/{name}")
async def get_page_file(name: str, request: Request) -> Response:
    """Return a file that the page loads."""
    if name not in _MEDIA_TYPES:
        raise HTTPException(status_code=404, detail="Not Found")
    return send_file(request, name)


@cache
def page_file(name: str) -> PageFile:
    """Read a file of the page; it ships with the package."""
    content = (resources.files("vending.edges") / _FOLDER / name).read_bytes()
    return PageFile(content=content, media_type=_MEDIA_TYPES[name], tag=f'"{hashlib.sha256(content).hexdigest()[:16]}"')


def send_file(request: Request, name: str) -> Response:
    """Send a file of a page, or that the reader's copy of it still holds."""
    found = page_file(name)
    headers = {**_HEADERS, "etag": found.tag}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)
