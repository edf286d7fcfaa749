"""What a channel is given and what it says: the port between the notifier and its adapters.

Stage: beside the notifier. A message is handed over with the id that stays the same on every try; the answer tells
whether it was taken, refused for good, or not taken now.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

# What is kept of the other side's words.
DETAIL_LENGTH_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One message for one address.

    Invariants: the same notice and channel always have the same `message_id`, and the same instant `created_ms`.
    """

    message_id: str
    address: str = field(repr=False)
    subject: str = field(repr=False)
    body: str = field(repr=False)
    language: str
    kind: str
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The other side has taken the message on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """This message will never be taken to this address; `contact_fails` unless the message itself is to blame."""

    detail: str
    contact_fails: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class NotNow:
    """Nobody was there, or asked to come again; `wait_ms` is for how long at least. The message may have been taken."""

    detail: str
    wait_ms: int = 0


Answer = Taken | Refused | NotNow


class NoticePort(Protocol):
    """How messages leave on one channel."""

    @property
    def parallel(self) -> int:
        """How many messages may be on their way at once."""

    @property
    def send_s_max(self) -> float:
        """How long one message takes at most."""

    async def send(self, message: Outgoing) -> Answer:
        """Hand one message over."""

    async def close(self) -> None:
        """End what is still open."""


def detail_of(text: str) -> str:
    """Return the beginning of a text on one line of printable characters."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())[:DETAIL_LENGTH_MAX]
