"""E-mail against a real server: form of a message, secrets on the line, refusals for good and for now, restarts."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from billing.calendar import to_ms
from headend.edges.notice_port import Answer, NotNow, Outgoing, Refused, Taken
from headend.edges.smtp import Security, SmtpPort, compose
from tests.notice_support import DOMAIN, MailServer, free_port, mail_server

CREATED = datetime(2026, 11, 22, 12, 34, 56, tzinfo=UTC)
# With a dot alone on a line, which the protocol has to keep from ending the message.
BODY = "ਖਾਤਾ 100200300: ਬੈਲੇਂਸ ₹123.45।\n.\nRs 1,23,456.78\n"


def message(address: str = "gurpreet@example.in", *, number: int = 7) -> Outgoing:
    """Return a message to an address."""
    return Outgoing(
        message_id=f"notice-{number}-email@{DOMAIN}",
        address=address,
        subject="ਘੱਟ ਬੈਲੇਂਸ: ₹123.45",
        body=BODY,
        language="pa",
        kind="low",
        created_ms=to_ms(CREATED),
    )


def send(port: SmtpPort, *messages: Outgoing) -> list[Answer]:
    """Send messages one after the other, and end the session."""

    async def story() -> list[Answer]:
        try:
            return [await port.send(each) for each in messages]
        finally:
            await port.close()

    return asyncio.run(story())


def test_message_arrives_as_it_was_written(tmp_path: Path) -> None:
    """Identity, date, language and mark of an automatic message; text of any script, line by line."""
    with mail_server(tmp_path) as server:
        assert send(SmtpPort(server.settings()), message()) == [Taken()]
        (mail,) = server.messages()
    assert mail["Message-ID"] == f"<notice-7-email@{DOMAIN}>"
    assert mail["Date"].datetime == CREATED
    assert (mail["From"], mail["To"]) == (f"no-reply@{DOMAIN}", "gurpreet@example.in")
    assert mail["Subject"] == "ਘੱਟ ਬੈਲੇਂਸ: ₹123.45"
    assert (mail["Content-Language"], mail["Auto-Submitted"]) == ("pa", "auto-generated")
    assert mail.get_content().splitlines() == BODY.splitlines()


def test_message_is_the_same_on_every_try() -> None:
    """A copy can be told by its bytes, not only by its id."""
    first, second = (compose(message(), sender=f"no-reply@{DOMAIN}").as_bytes() for _ in range(2))
    assert first == second
    assert max(map(len, first.splitlines())) <= 998


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("gone@b.in", Refused(detail="550 5.1.1 no such mailbox")),
        ("spam@b.in", Refused(detail="554 5.7.1 not this message")),
        ("busy@b.in", NotNow(detail="451 4.2.1 come again later")),
        ("ਗੁਰ@b.in", Refused(detail="address: expected plain letters, got others")),
    ],
)
def test_refusal_for_good_is_told_from_one_for_now(tmp_path: Path, address: str, answer: Answer) -> None:
    """5xx about this recipient or message ends it, 4xx does not; the session serves the next message."""
    with mail_server(tmp_path) as server:
        assert send(SmtpPort(server.settings()), message(address), message()) == [answer, Taken()]


def test_server_that_is_away_is_for_later(tmp_path: Path) -> None:
    """Nobody listens: nothing is known about the message."""
    server = MailServer(port=free_port(), folder=tmp_path)
    (answer,) = send(SmtpPort(server.settings()), message())
    assert isinstance(answer, NotNow)
    assert "ConnectionRefused" in answer.detail


def test_session_is_kept_and_opened_again_when_the_server_was_restarted(tmp_path: Path) -> None:
    """A message does not wait for its backoff because the line it would have taken is gone."""

    async def story(server: MailServer) -> list[Answer]:
        port = SmtpPort(server.settings())
        answers = [await port.send(message(number=number)) for number in (1, 2)]
        server.kill()
        server.start()
        answers.append(await port.send(message(number=3)))
        await port.close()
        return answers

    with mail_server(tmp_path) as server:
        assert asyncio.run(story(server)) == [Taken()] * 3
        assert server.message_ids() == [f"<notice-{number}-email@{DOMAIN}>" for number in (1, 2, 3)]


def test_server_that_dies_before_its_answer_leaves_the_message_for_later(tmp_path: Path) -> None:
    """It may have been taken: it is sent again under the same id, and the reader can tell the copy."""
    with mail_server(tmp_path) as server:
        (lost,) = send(SmtpPort(server.settings()), message("crash@b.in"))
        assert isinstance(lost, NotNow)
        server.revive()
        assert send(SmtpPort(server.settings()), message("crash@b.in")) == [Taken()]
        assert len(server.message_ids()) == 2
        assert len(set(server.message_ids())) == 1


def certificate(folder: Path) -> Path:
    """Make a certificate of this machine and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "server.pem"
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


def test_login_goes_over_a_line_that_is_secret(tmp_path: Path) -> None:
    """STARTTLS against a trusted certificate, then the password; a wrong one or an untrusted server is for later."""
    pem = certificate(tmp_path)
    with mail_server(tmp_path, "--certificate", str(pem), "--login", "pspcl:hunter2") as server:
        known = {"security": Security.STARTTLS, "user": "pspcl", "ca_file": pem}
        assert send(SmtpPort(server.settings(**known, password="hunter2")), message()) == [Taken()]
        (wrong,) = send(SmtpPort(server.settings(**known, password="guess")), message())
        (untrusted,) = send(
            SmtpPort(server.settings(security=Security.STARTTLS, user="pspcl", password="hunter2")), message()
        )
        (open_line,) = send(SmtpPort(server.settings()), message())
        assert len(server.messages()) == 1
    for answer, told in ((wrong, "535"), (untrusted, "CERTIFICATE_VERIFY_FAILED"), (open_line, "530")):
        assert isinstance(answer, NotNow)
        assert told in answer.detail
    assert "hunter2" not in repr(server.settings(**known, password="hunter2"))


def test_server_without_starttls_gets_no_password(tmp_path: Path) -> None:
    """Settings that ask for a secret line never fall back to an open one."""
    with mail_server(tmp_path) as server:
        settings = server.settings(security=Security.STARTTLS, user="pspcl", password="hunter2")
        (answer,) = send(SmtpPort(settings), message())
        assert isinstance(answer, NotNow)
        assert "STARTTLS" in answer.detail
        assert server.messages() == []
