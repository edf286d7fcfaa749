"""SMS against a real HTTP server: what is asked, and what each answer means."""

from __future__ import annotations

import asyncio
import socket
import time
from email.utils import formatdate

import pytest

from headend.edges.notice_port import Answer, NotNow, Outgoing, Refused, Taken
from headend.edges.sms_gateway import GatewayPort, GatewaySettings
from tests.notice_support import PHONE, SECRET, Gateway, free_port, sms_gateway

MESSAGE = Outgoing(
    message_id="notice-7-sms@utility.example.in",
    address=PHONE,
    subject="",
    body="ਖਾਤਾ 100200300",
    language="pa",
    kind="low",
    created_ms=0,
)


def send(port: GatewayPort, times: int = 1) -> list[Answer]:
    """Send the message several times, and close."""

    async def story() -> list[Answer]:
        try:
            return [await port.send(MESSAGE) for _ in range(times)]
        finally:
            await port.close()

    return asyncio.run(story())


def test_request_is_signed_and_the_same_on_every_try() -> None:
    """Body and key are the same; the nonce is new, so that a gateway can refuse what was recorded."""
    with sms_gateway() as gateway:
        assert send(gateway.port_of(), 2) == [Taken(), Taken()]
        first, second = gateway.requests
    assert first.signed
    assert second.signed
    assert first.body == second.body
    assert first.key == second.key == MESSAGE.message_id
    assert first.headers["X-Prepaid-Nonce"] != second.headers["X-Prepaid-Nonce"]
    assert first.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("status", [400, 404, 410, 422])
def test_refusal_of_a_message_is_for_good(status: int) -> None:
    """What the gateway says about this message will not change."""
    with sms_gateway() as gateway:
        gateway.answers = [(status, {})]
        assert send(gateway.port_of()) == [Refused(detail=str(status))]


@pytest.mark.parametrize("status", [301, 401, 403, 408, 409, 425, 429, 500, 502, 503])
def test_refusal_of_the_moment_or_of_us_is_for_later(status: int) -> None:
    """A wrong secret, a busy gateway or a moved address kills no message, and no redirect is followed."""
    with sms_gateway() as gateway:
        gateway.answers = [(status, {"Location": gateway.url})]
        assert send(gateway.port_of()) == [NotNow(detail=str(status))]
        assert len(gateway.requests) == 1


@pytest.mark.parametrize(
    ("header", "least_ms", "most_ms"),
    [("120", 120_000, 120_000), ("date", 118_000, 120_000), ("soon", 0, 0), ("-5", 0, 0), ("9" * 30, 0, 0)],
)
def test_wait_that_a_gateway_asks_for_is_read(header: str, least_ms: int, most_ms: int) -> None:
    """Seconds or a date (RFC 9110); what cannot be read asks for nothing."""
    with sms_gateway() as gateway:
        text = formatdate(time.time() + 120, usegmt=True) if header == "date" else header
        gateway.answers = [(429, {"Retry-After": text})]
        (answer,) = send(gateway.port_of())
    assert isinstance(answer, NotNow)
    assert least_ms <= answer.wait_ms <= most_ms


def test_gateway_that_is_away_or_hangs_up_is_for_later() -> None:
    """The message may have been taken; its key says so when it comes again."""
    with sms_gateway() as gateway:
        gateway.answers = [None]
        (answer,) = send(gateway.port_of())
        assert isinstance(answer, NotNow)
        assert gateway.keys() == [MESSAGE.message_id]
    (answer,) = send(Gateway(port=free_port()).port_of())
    assert isinstance(answer, NotNow)
    assert "ConnectError" in answer.detail


def test_gateway_that_does_not_answer_in_time_is_for_later() -> None:
    """A wait has an end; a secret is never shown."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = GatewaySettings(
            url=f"http://127.0.0.1:{silent.getsockname()[1]}/", secret=SECRET, sender=None, timeout_s=0.2, parallel=1
        )
        (answer,) = send(GatewayPort(settings))
    assert isinstance(answer, NotNow)
    assert "Timeout" in answer.detail
    assert SECRET.decode() not in repr(settings)
