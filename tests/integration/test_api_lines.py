"""The API on a real socket: the shell recipe of docs/signing.md, and client certificates."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.integration.test_vending_edges import code_of
from tests.integration.vending_shop import CALENDAR, MASTER, open_shop
from vending.edges.api import create_app
from vending.edges.client_certificates import CertificateProtocol, tls_options
from vending.edges.gate import PlainKeys
from vending.edges.key_desk import KeyRefused, bind_certificate_of, take_key_back
from vending.edges.keys import NewApiKey
from vending.soft_module import SoftSecurityModule

pytestmark = pytest.mark.db

ROOT = Path(__file__).parents[2]


@contextmanager
def listening(database_url: str, *, plain_keys: PlainKeys = PlainKeys.NEVER, **options: Any) -> Iterator[int]:
    """Serve the application on a free port of this machine; yields the port."""
    app = create_app(
        database_url=database_url,
        calendar=CALENDAR,
        security_module=SoftSecurityModule(MASTER, [], rnd_nibble=lambda: 0),
        vend_min_minor=1_000,
        vend_max_minor=5_000_000,
        stale_reading_s=None,
        master=MASTER,
        plain_keys=plain_keys,
        look_every_ms=0,
    )
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, **options)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # The test's own stay.
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server ended before it listened"
            thread.join(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


async def _keys(database_url: str) -> dict[str, NewApiKey]:
    async with open_shop(database_url) as shop:
        return shop.keys


def recipe() -> str:
    """Return the shell function of the documentation."""
    text = (ROOT / "docs/signing.md").read_text()
    begin = text.index("signed() {")
    return text[begin : text.index("\n\n", begin)]


def test_shell_recipe_of_the_documentation_signs(database_url: str) -> None:
    """openssl and curl alone read and change something; with another secret they are refused."""
    key = asyncio.run(_keys(database_url))["consumer"]
    with listening(database_url) as port:

        def shell(command: str, header: str) -> str:
            environment = {"API": f"http://127.0.0.1:{port}", "KEY": header, "PATH": "/usr/bin:/bin"}
            script = f"{recipe()}\n{command}"
            done = subprocess.run(
                ["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True
            )
            return done.stdout

        assert f'"key_id":"{key.key_id}"' in shell("signed GET /v1/me", key.header)
        assert '"threshold_minor":2500' in shell(
            """signed PUT /v1/accounts/100200300/threshold '{"threshold": "25.00"}'""", key.header
        )
        assert '"code":"signature_wrong"' in shell("signed GET '/v1/me?x=%20y'", key.header + "x")
        assert '"role":"consumer"' in shell("signed GET '/v1/me?x=%20y'", key.header)


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path
    pem: bytes


class Certifier:
    """Makes certificates in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        own = self._signed(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0))
        self.file.write_bytes(own.public_bytes(Encoding.PEM))

    def certify(self, name: str, usage: x509.ObjectIdentifier) -> Papers:
        """Make a certificate for a server or a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
        certificate = self._signed(subject, key, names, x509.ExtendedKeyUsage([usage]))
        pem = certificate.public_bytes(Encoding.PEM)
        papers = Papers(certificate=self._folder / f"{name}.crt", key=self._folder / f"{name}.key", pem=pem)
        papers.certificate.write_bytes(pem)
        papers.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return papers

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self._key, hashes.SHA256())


async def _bind(database_url: str, key: NewApiKey, pem: bytes | None) -> None:
    from db.pool import connect

    async with await connect(database_url, application="test") as conn:
        await bind_certificate_of(conn, key.key_id, pem, by="A. Kaur", now=datetime.now(UTC))


async def _take_back(database_url: str, key: NewApiKey) -> None:
    from db.pool import connect

    async with await connect(database_url, application="test") as conn:
        await take_key_back(conn, key.key_id, by="A. Kaur", reason="lost", now=datetime.now(UTC))


def test_client_certificate_calls_as_the_key_it_is_bound_to(database_url: str, tmp_path: Path) -> None:
    """One of our certifier and bound to a key is let in; unbound, of a key taken back, of a stranger, or none: not."""
    keys = asyncio.run(_keys(database_url))
    ours, strange = Certifier(tmp_path, "ours"), Certifier(tmp_path, "strange")
    server = ours.certify("server", ExtendedKeyUsageOID.SERVER_AUTH)
    till, other = (ours.certify(name, ExtendedKeyUsageOID.CLIENT_AUTH) for name in ("till", "other"))
    stranger = strange.certify("stranger", ExtendedKeyUsageOID.CLIENT_AUTH)
    asyncio.run(_bind(database_url, keys["vendor"], till.pem))
    with pytest.raises(KeyRefused, match="in use"):
        asyncio.run(_bind(database_url, keys["other_vendor"], till.pem))
    with pytest.raises(KeyRefused, match="PEM"):
        asyncio.run(_bind(database_url, keys["other_vendor"], b"no certificate"))
    options = tls_options(server.certificate, server.key, ours.file)
    with listening(database_url, http=CertificateProtocol, **options) as port:

        def ask(papers: Papers | None, **headers: str) -> httpx.Response:
            context = ssl.create_default_context(cafile=str(ours.file))
            if papers is not None:
                context.load_cert_chain(papers.certificate, papers.key)
            with httpx.Client(verify=context, timeout=60) as http:
                return http.get(f"https://127.0.0.1:{port}/v1/me", headers=headers)

        assert ask(till).json()["vendor"] == "Station 17"
        unbound = ask(other)
        assert (unbound.status_code, code_of(unbound)) == (401, "api_key_wrong")
        # What the caller writes itself is no certificate.
        assert ask(other, **{"x-client-cert": till.pem.hex()}).status_code == 401
        for papers in (stranger, None):
            with pytest.raises(httpx.TransportError):
                ask(papers)
        asyncio.run(_take_back(database_url, keys["vendor"]))
        assert ask(till).status_code == 401
        asyncio.run(_bind(database_url, keys["other_vendor"], till.pem))
        assert ask(till).json()["vendor"] == "Station 18"
