"""What tests of notices share: a mail server that can be killed, an SMS gateway, and a notifier at work."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar
from billing.notices import Channel, Facts, Language
from billing.notices.planning import DeliveryRules
from billing.notices.signing import judge_signature
from db.contacts import NewContact, put_contact
from db.notices import write_notice
from headend.edges.notice_metrics import NoticeMetrics
from headend.edges.notice_port import NoticePort
from headend.edges.notify import Notifier, NotifySettings
from headend.edges.sms_gateway import GatewayPort, GatewaySettings
from headend.edges.smtp import Security, SmtpPort, SmtpSettings

CALENDAR = LocalCalendar(ZoneInfo("Asia/Kolkata"))
SECRET = b"a secret that only a test can know"
PHONE, MAIL = "+919876543210", "gurpreet@example.in"
WAIT_S = 20.0
# One answer of a server on this machine.
TIMEOUT_S = 2.0
DOMAIN = "utility.example.in"
SENDER = f"no-reply@{DOMAIN}"


@dataclass(slots=True, kw_only=True)
class ShiftedClock:
    """The wall clock, moved: rows get the database's time, so that a test's clock runs beside it."""

    shift_ms: int = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.shift_ms


@dataclass(slots=True, kw_only=True)
class MailServer:
    """A mail server as a process; `folder` outlives it."""

    port: int
    folder: Path
    extra: tuple[str, ...] = ()
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when it listens."""
        command = [sys.executable, "-m", "tests.smtp_server", "--port", str(self.port), "--folder", str(self.folder)]
        self.child = subprocess.Popen([*command, *self.extra])
        deadline_s = time.monotonic() + WAIT_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert time.monotonic() < deadline_s, "the mail server listens"
            assert self.child.poll() is None, "the mail server runs"
            time.sleep(0.02)

    def revive(self) -> None:
        """Start it again if it has ended by itself."""
        if self.child is None or self.child.poll() is not None:
            self.start()

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.child is not None
        self.child.kill()
        self.child.wait()

    def messages(self) -> list[EmailMessage]:
        """Return what was kept, in the order it came."""
        kept = sorted(self.folder.glob("*.eml"))
        return [message_from_bytes(file.read_bytes(), policy=policy.default) for file in kept]

    def message_ids(self) -> list[str]:
        """Return the ids of what was kept, copies too."""
        return [str(message["Message-ID"]) for message in self.messages()]

    def settings(self, **changed: Any) -> SmtpSettings:  # Fields of any type.
        """Return what a client has to know of it."""
        plain = {
            "host": "127.0.0.1", "port": self.port, "security": Security.NONE, "user": None, "password": None,
            "sender": SENDER, "timeout_s": TIMEOUT_S,
        }  # fmt: skip
        return SmtpSettings(**{**plain, **changed})


@contextmanager
def mail_server(folder: Path, *extra: str) -> Iterator[MailServer]:
    """Run a mail server on a free port."""
    mail = folder / "mail"
    mail.mkdir()
    server = MailServer(port=free_port(), folder=mail, extra=extra)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class SmsRequest:
    """A request that a gateway has got."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    signed: bool

    @property
    def key(self) -> str:
        """What the sender calls the message."""
        return self.headers["Idempotency-Key"]


@dataclass(slots=True, kw_only=True)
class Gateway:
    """An SMS gateway: keeps every request, answers with the next of `answers` and then 200.

    An answer is a status with headers; None takes the message and closes the line without a word.
    """

    port: int
    requests: list[SmsRequest] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]] | None] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Where it takes messages."""
        return f"http://127.0.0.1:{self.port}/sms?route=7"

    def keys(self) -> list[str]:
        """Return the keys of all requests, in the order they came."""
        return [request.key for request in self.requests]

    def texts(self) -> list[str]:
        """Return the texts of all requests, in the order they came."""
        return [request.body["text"] for request in self.requests]

    def take(self, request: SmsRequest) -> tuple[int, dict[str, str]] | None:
        """Keep a request; return its answer."""
        self.requests.append(request)
        return self.answers.pop(0) if self.answers else (200, {})

    def port_of(self, *, parallel: int = 4) -> GatewayPort:
        """Return a client of it."""
        settings = GatewaySettings(url=self.url, secret=SECRET, sender="PSPCL", timeout_s=TIMEOUT_S, parallel=parallel)
        return GatewayPort(settings)


@contextmanager
def sms_gateway() -> Iterator[Gateway]:
    """Run a gateway on a free port."""
    gateway = Gateway(port=0)

    class Desk(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fault = judge_signature(
                self.headers, secret=SECRET, method="POST", path=self.path, body=body, now_s=int(time.time())
            )
            asked = SmsRequest(path=self.path, headers=dict(self.headers), body=json.loads(body), signed=fault is None)
            answered = gateway.take(asked)
            if answered is None:
                self.close_connection = True
                return
            status, headers = answered
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Desk) as server:
        gateway.port, gateway.server = server.server_port, server
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield gateway
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def delivery_rules(ports: Mapping[Channel, NoticePort], **changed: Any) -> DeliveryRules:  # Fields of any type.
    """Return rules without quiet hours and with room for many messages."""
    plain = {"channels": frozenset(ports), "quiet": None, "per_day_max": 1_000, "calendar": CALENDAR}
    return DeliveryRules(**{**plain, **changed})


@asynccontextmanager
async def running_notifier(
    database_url: str,
    ports: Mapping[Channel, NoticePort],
    *,
    clock: Callable[[], int] | None = None,
    rules: DeliveryRules | None = None,
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a notifier as a task of this process; a fault of its own fails the test."""
    settings = NotifySettings(database_url=database_url, rules=rules or delivery_rules(ports), domain=DOMAIN)
    stop = asyncio.Event()
    notifier = Notifier(settings, ports, NoticeMetrics(), clock=clock or ShiftedClock())
    task = asyncio.create_task(notifier.run(stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait_for(task, WAIT_S)


async def until(
    happened: Callable[[], Awaitable[object]] | Callable[[], object], what: str, *, within_s: float = WAIT_S
) -> None:
    """Ask again and again until the answer is true."""
    deadline_s = time.monotonic() + within_s
    while True:
        answer = happened()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return
        assert time.monotonic() < deadline_s, f"within {within_s:.0f} s: {what}"
        await asyncio.sleep(0.02)


async def add_contact(
    conn: AsyncConnection,
    account_id: int,
    address: str = PHONE,
    *,
    language: Language = Language.ENGLISH,
    verified: bool = True,
    priority: int = 1,
) -> int:
    """Add a contact, proven unless said otherwise; return its id."""
    channel = Channel.EMAIL if "@" in address else Channel.SMS
    new = NewContact(channel=channel, address=address, language=language, priority=priority)
    contact = await put_contact(conn, account_id, new)
    if verified:
        await conn.execute("update contacts set verified_at = now() where id = %s", (contact.id,))
    return contact.id


async def tell(conn: AsyncConnection, account_id: int, facts: Facts, *, age_ms: int = 0) -> int:
    """Write a notice of some time ago; return its id."""
    async with conn.transaction():
        notice_id = await write_notice(conn, account_id, facts)
        await conn.execute(
            "update notices set created_at = created_at - %s * interval '1 millisecond' where id = %s",
            (age_ms, notice_id),
        )
    return notice_id


async def states(conn: AsyncConnection, notice_id: int) -> dict[str, tuple[str, str | None]]:
    """Return state and last error of each way of a notice, by channel."""
    cursor = await conn.execute(
        "select channel, state, last_error from notice_deliveries where notice_id = %s order by id", (notice_id,)
    )
    return {channel: (state, error) for channel, state, error in await cursor.fetchall()}


def smtp_port(server: MailServer) -> SmtpPort:
    """Return a client of a mail server."""
    return SmtpPort(server.settings())
