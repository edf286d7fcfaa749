"""Client certificates: TLS with a certificate of the caller, whose digest the gate finds in the request.

Stage: between the socket and the application. uvicorn checks the certificate against the certifier and hands on nothing
of it; this protocol puts the digest of the certificate of a line into the scope of each of its requests. Never: a
certificate from a header, which anybody could write.

Standard: RFC 8446 (client authentication); the digest is SHA-256 over the certificate in DER.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from pathlib import Path
from typing import TypedDict, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from vending.edges.gate import CERTIFICATE_SCOPE


class TlsOptions(TypedDict, total=False):
    """What uvicorn is told of TLS; empty for plain HTTP."""

    ssl_certfile: Path
    ssl_keyfile: Path
    ssl_ca_certs: str
    ssl_cert_reqs: int


def tls_options(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsOptions:
    """Return the options of a server with a certificate, and of its callers if somebody certifies them."""
    if cert is None or key is None:
        return {}
    options = TlsOptions(ssl_certfile=cert, ssl_keyfile=key)
    if client_ca is not None:
        options |= TlsOptions(ssl_ca_certs=str(client_ca), ssl_cert_reqs=ssl.CERT_REQUIRED)
    return options


class CertificateProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # Whichever parser uvicorn has found.
    """HTTP/1.1 on a line, each of whose requests carries the digest of the line's client certificate, if it has one."""

    app: ASGIApp

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a line after its handshake."""
        super().connection_made(transport)
        # The line is a ssl.SSLObject to asyncio and to uvloop; None without TLS.
        line = cast("ssl.SSLObject | None", transport.get_extra_info("ssl_object"))
        certificate = None if line is None else line.getpeercert(binary_form=True)
        if certificate is not None:
            self.app = _certified(self.app, hashlib.sha256(certificate).digest())


def _certified(app: ASGIApp, digest: bytes) -> ASGIApp:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "extensions": {**scope.get("extensions", {}), CERTIFICATE_SCOPE: digest}}
        await app(scope, receive, send)

    return call
