"""Notices as e-mail: one SMTP session at a time, kept open from message to message.

Stage: behind the notifier. A message has the same Message-ID and Date on every try, so that readers and their mail
programs can tell a copy. Only what the server says about this recipient or this message refuses it for good; that it
does not let us in, or asks us to come again, is for later. Never: a login over an open line.

Standard: RFC 5321 (4xx for now, 5xx for good), RFC 5322 (message), RFC 3207 (STARTTLS), RFC 3834 (Auto-Submitted).
"""

from __future__ import annotations

import asyncio
import smtplib
import ssl
import threading
import time
from dataclasses import dataclass, field
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime
from enum import StrEnum
from pathlib import Path

from billing.calendar import from_ms
from headend.edges.notice_port import Answer, NotNow, Outgoing, Refused, Taken, detail_of

# Servers end idle sessions after a minute or some, and long ones after a hundred messages or some.
SESSION_IDLE_S_MAX = 20.0
SESSION_MESSAGES_MAX = 50
# Connect, greeting, STARTTLS, EHLO twice, login, MAIL, RCPT, DATA, its end: each waits for one answer.
_WAITS_A_MESSAGE = 10
_PERMANENT = 5


class Security(StrEnum):
    """How a session is kept secret."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpSettings:
    """Where mail goes and as whom. `timeout_s` bounds the wait for one answer of the server."""

    host: str
    port: int
    security: Security
    user: str | None
    password: str | None = field(repr=False)
    sender: str
    timeout_s: float
    ca_file: Path | None = None


class SmtpPort:
    """E-mail as a channel. The standard library's client waits in a thread, one message at a time."""

    parallel = 1

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings
        # Of threads, not of tasks: a task that is cancelled leaves its thread at work with the session.
        self._turn = threading.Lock()
        self._session: smtplib.SMTP | None = None
        self._messages = 0
        self._used_s = 0.0

    @property
    def send_s_max(self) -> float:
        """How long one message takes at most, also if the session that was kept has ended."""
        return (_WAITS_A_MESSAGE + 1) * self._settings.timeout_s

    async def send(self, message: Outgoing) -> Answer:
        """Hand one message over."""
        return await asyncio.to_thread(self._send, message)

    async def close(self) -> None:
        """End the session."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._turn:
            self._end_session()

    def _send(self, message: Outgoing) -> Answer:
        with self._turn:
            return self._send_alone(message)

    def _send_alone(self, message: Outgoing) -> Answer:
        if not message.address.isascii():
            return Refused(detail="address: expected plain letters, got others")
        mail = compose(message, sender=self._settings.sender).as_bytes()
        kept, begun_s = self._kept_session() is not None, time.monotonic()
        answer = self._try_once(message, mail)
        ended = kept and self._session is None and time.monotonic() - begun_s < self._settings.timeout_s
        # The server may have ended the session that we kept; that says nothing about this message.
        return self._try_once(message, mail) if ended else answer

    def _try_once(self, message: Outgoing, mail: bytes) -> Answer:
        try:
            session = self._kept_session() or self._open_session()
            session.sendmail(self._settings.sender, [message.address], mail)
        except smtplib.SMTPRecipientsRefused as error:
            return _judged(*error.recipients[message.address])
        except smtplib.SMTPDataError as error:
            return _judged(error.smtp_code, error.smtp_error)
        except (smtplib.SMTPException, OSError) as error:
            # The session's state is unknown. That we are refused as a sender is no fault of the message.
            self._end_session()
            return NotNow(detail=detail_of(f"{type(error).__name__}: {error}"))
        self._messages += 1
        self._used_s = time.monotonic()
        return Taken()

    def _kept_session(self) -> smtplib.SMTP | None:
        idle_s = time.monotonic() - self._used_s
        if self._session and (idle_s > SESSION_IDLE_S_MAX or self._messages >= SESSION_MESSAGES_MAX):
            self._end_session()
        return self._session

    def _open_session(self) -> smtplib.SMTP:
        settings = self._settings
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.security is Security.TLS:
            session: smtplib.SMTP = smtplib.SMTP_SSL(
                settings.host, settings.port, timeout=settings.timeout_s, context=context
            )
        else:
            session = smtplib.SMTP(settings.host, settings.port, timeout=settings.timeout_s)
        self._session, self._messages, self._used_s = session, 0, time.monotonic()
        if settings.security is Security.STARTTLS:
            session.starttls(context=context)
        if settings.user is not None and settings.password is not None:
            session.login(settings.user, settings.password)
        return session

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        try:
            session.quit()
        except (smtplib.SMTPException, OSError):
            session.close()


def compose(message: Outgoing, *, sender: str) -> EmailMessage:
    """Return the message as mail; the same one on every try."""
    mail = EmailMessage(policy=policy.SMTP)
    mail["From"] = sender
    mail["To"] = message.address
    mail["Subject"] = message.subject
    mail["Message-ID"] = f"<{message.message_id}>"
    mail["Date"] = format_datetime(from_ms(message.created_ms))
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.body)
    # Setting content drops the headers about the one before.
    mail["Content-Language"] = message.language
    return mail


def _judged(code: int, text: bytes | str) -> Answer:
    """Tell a refusal for good from one for now by the first digit of the server's answer."""
    words = text.decode(errors="replace") if isinstance(text, bytes) else text
    detail = detail_of(f"{code} {words}")
    return Refused(detail=detail) if code // 100 == _PERMANENT else NotNow(detail=detail)
