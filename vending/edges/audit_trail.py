"""Who did what at the vending interface, for ever: an act for each request, written with what it did or after it.

Stage: around every request whose key is known. An act is begun when its caller is known; the use case writes it in its
own transaction (`Act.write`), and what nobody has written is written just before the answer is sent. Only reading is
recorded for the utility's people, who see what is not their own, and not for vendors and consumers. Never: a body, a
token, a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import cast

import psycopg
import structlog
from psycopg import AsyncConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db.api_access import NewAct, record_act
from vending.roles import STAFF_ROLES, Role

# A serial, a number and a message id side by side; names of terminals and operators are shorter.
_TEXT_MAX = 200
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
DONE = "done"
FAULT = "internal_error"
STATUS_FAULT = 500

_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Act:
    """One request of a known key, on its way into the audit trail.

    Invariants: written at most once, unless the transaction that wrote it was given up (`refused`).
    """

    actor: str
    role: Role
    key_id: str
    vendor_id: int | None
    terminal: str | None
    # Method and template of the path.
    act: str
    request_digest: bytes | None = field(repr=False, default=None)
    operator: str | None = None
    subject: str = ""
    reference: str = ""
    outcome: str = DONE
    # A refusal at the gate is recorded whatever was asked.
    at_gate: bool = False
    written: bool = False

    async def write(
        self, conn: AsyncConnection, *, outcome: str, status: int, subject: str = "", reference: str = ""
    ) -> None:
        """Write the act in the transaction of what it did: both are there, or neither is."""
        await record_act(conn, self.ended(outcome=outcome, status=status, subject=subject, reference=reference))
        self.written = True

    def ended(self, *, outcome: str, status: int, subject: str = "", reference: str = "") -> NewAct:
        """Return the act as it is stored with what it did; whoever stores it says so by `written`."""
        self.subject, self.reference, self.outcome = subject or self.subject, reference, outcome
        return self.row(status)

    def refused(self, code: str) -> None:
        """Note the code of a refusal that was raised: whatever its transaction had written is gone."""
        self.outcome, self.written = code, False

    @property
    def is_recorded(self) -> bool:
        """Tell whether an act of this kind belongs into the trail."""
        return self.at_gate or self.act.partition(" ")[0] not in _READS or self.role in STAFF_ROLES

    def row(self, status: int) -> NewAct:
        """Return the act as it is stored."""
        return NewAct(
            actor=_text(self.actor) or "",
            role=self.role.value,
            key_id=self.key_id,
            vendor_id=self.vendor_id,
            terminal=_text(self.terminal),
            operator=_text(self.operator),
            act=_text(self.act) or "",
            subject=_text(self.subject) or "",
            reference=_text(self.reference) or "",
            outcome=self.outcome,
            status=status,
            request_digest=self.request_digest,
        )


Connect = Callable[[Scope], AbstractAsyncContextManager[AsyncConnection]]


class Trail:
    """Middleware that writes the acts that no transaction has written."""

    def __init__(self, app: ASGIApp, *, connection: Connect) -> None:
        self._app = app
        self._connection = connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._record(scope, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_recorded)
        except Exception:
            # A fault of ours is answered further out; whatever its transaction had written is gone.
            act = act_of(scope)
            if act is not None:
                act.refused(FAULT)
            await self._record(scope, STATUS_FAULT)
            raise

    async def _record(self, scope: Scope, status: int) -> None:
        act = act_of(scope)
        if act is None or act.written or not act.is_recorded:
            return
        act.subject = act.subject or subject_of(scope.get("path_params", {}))
        try:
            async with self._connection(scope) as conn:
                await record_act(conn, act.row(status))
        except psycopg.Error as error:
            # It has been done, and whoever asked must hear so; the log holds what the trail lacks.
            fields = {"act": act.act, "key_id": act.key_id, "outcome": act.outcome, "subject": act.subject}
            _log.error("act_not_recorded", error=type(error).__name__, status=status, **fields)
        act.written = True


def begin_act(scope: Scope, act: Act) -> None:
    """Let a request have an act from now on."""
    scope.setdefault("state", {})["act"] = act


def act_of(scope: Scope) -> Act | None:
    """Return the act of a request, None while its caller is not known."""
    # Starlette keeps a request's state untyped; `begin_act` is its only writer.
    return cast("Act | None", scope.get("state", {}).get("act"))


def subject_of(path_params: Mapping[str, object]) -> str:
    """Say what a request was about by its path."""
    return " ".join(str(value) for value in path_params.values())


def _text(text: str | None) -> str | None:
    """Cut what somebody sent to what the trail keeps; PostgreSQL has no text with a zero in it."""
    return None if text is None else text.replace("\0", "")[:_TEXT_MAX]
