"""The recharge page: what the holder of a link or QR code opens, without a login.

Stage: beside the routes of online recharges. The page is the same for everybody; it asks the interface with the link
that stands in its own address. Never: a fact of an account, anything from another host.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from vending.edges.consumer_page import send_file

recharge_page_router = APIRouter(include_in_schema=False)


@recharge_page_router.get("/r/{link}")
async def get_recharge_page(link: str, request: Request) -> Response:
    """Return the page; whether the link is good is said when the page asks."""
    return send_file(request, "recharge.html")
