"""A real SMTP server (aiosmtpd) as a process of its own, so that it can be killed and started again.

`python -m tests.smtp_server --port P --folder DIR [--certificate PEM] [--login USER:PASSWORD]` keeps each message in a
file of DIR. Some recipients have a fate: `gone@` is refused for good, `busy@` for now, `spam@` only after the data,
`crash@` ends the process after its message was kept and before the sender hears of it, once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import ssl
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


class Mailbox:
    """Keeps messages, or plays a recipient's fate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        match address.partition("@")[0]:
            case "gone":
                return "550 5.1.1 no such mailbox"
            case "busy":
                return "451 4.2.1 come again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        recipient = envelope.rcpt_tos[0].partition("@")[0]
        if recipient == "spam":
            return "554 5.7.1 not this message"
        assert isinstance(envelope.content, bytes)
        place = self._folder / f"{len(list(self._folder.iterdir())):06d}.eml"
        place.with_suffix(".part").write_bytes(envelope.content)
        os.replace(place.with_suffix(".part"), place)
        crashed = self._folder.parent / "crashed"
        if recipient == "crash" and not crashed.exists():
            crashed.touch()
            os._exit(1)
        return "250 OK"


async def serve(arguments: argparse.Namespace) -> None:
    """Listen on loopback until killed."""
    options: dict[str, Any] = {"hostname": "localhost"}
    if arguments.certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(arguments.certificate)
        options |= {"tls_context": context, "require_starttls": True}
    if arguments.login:
        user, _, password = arguments.login.partition(":")

        def allowed(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object) -> AuthResult:
            good = data == LoginPassword(login=user.encode(), password=password.encode())
            return AuthResult(success=good, handled=False)

        options |= {"auth_required": True, "authenticator": allowed}
    mailbox = Mailbox(arguments.folder)
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(mailbox, **options), "127.0.0.1", arguments.port
    )
    await server.serve_forever()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--login")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
