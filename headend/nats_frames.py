"""Frames of the NATS client protocol, as far as a reader of JetStream receives them: bytes to facts.

Stage: between the socket of `headend.edges.nats_wire` and the stream's lanes. Enters what the server sent, cut
anywhere; leaves deliveries and control frames. Pure: opens nothing, answers nothing. Fields of a line stand between
single spaces, as the server writes them: it refuses an MQTT topic with a space, tab, line end, form feed, NUL or
broken UTF-8, and takes one with a vertical tab, which therefore belongs to the subject.
Source: NATS client protocol, docs.nats.io; topics and line lengths by experiment on NATS server 2.15.1, 2026-11-22.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

import msgspec

from protocols.errors import Malformed

# A topic has at most 65,535 bytes, of which each "." takes two as a subject: 131,070, and reply and numbers. Doubled.
LINE_BYTES_MAX: Final = 262_144
# The largest payload any server can be set to send; one that says what it takes lowers it.
PAYLOAD_BYTES_MAX: Final = 64 * 2**20
# Headers come on top of what a publisher may send; those of an MQTT message repeat its topic at most.
HEADER_BYTES_MAX: Final = 262_144
_SIZE_DIGITS_MAX: Final = 9
_LINE_SHOWN_MAX: Final = 80  # What is wrong stands at the front of a line.
_VERSION: Final = b"NATS/1.0"


class Delivered(NamedTuple):
    """One message of a subscription; `reply` is empty where there is none, `header` is the block as it came."""

    subject: bytes
    reply: bytes
    header: bytes
    payload: bytes


class Beat(Enum):
    """A sign of life, or the question for one."""

    PING = b"PING"
    PONG = b"PONG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What the server would not do; it closes the connection where that is meant to be the end."""

    text: str


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of itself: at first contact, and whenever the cluster changes."""

    server_name: str = ""
    max_payload: int = 1_048_576
    tls_required: bool = False
    connect_urls: tuple[str, ...] = ()


Control = Info | Beat | Refusal

_INFO_DECODER: Final = msgspec.json.Decoder(Info)


class FrameReader:
    """Takes frames off a stream of bytes that is cut anywhere.

    Invariants: what it returns depends on the bytes, never on where they were cut; it keeps less than one frame, of
    at most `LINE_BYTES_MAX` and what the payload may have. After a `Malformed` it is of no more use.
    """

    def __init__(self) -> None:
        self._bytes_max = PAYLOAD_BYTES_MAX
        self._pieces: list[bytes] = []
        self._kept_bytes = 0
        self._needed_bytes = 0

    def feed(self, data: bytes) -> tuple[list[Delivered], list[Control]]:
        """Take more bytes; return the frames that are whole now, each kind in its order.

        Raises: Malformed on what no server sends; the frames that came with it are lost with the connection.
        """
        if self._pieces:
            self._pieces.append(data)
            self._kept_bytes += len(data)
            if self._kept_bytes < self._needed_bytes:
                return [], []
            data = b"".join(self._pieces)
            self._pieces.clear()
        delivered: list[Delivered] = []
        controls: list[Control] = []
        at, end = 0, len(data)
        while at < end:
            line_end = data.find(b"\r\n", at)
            if (line_end if line_end >= 0 else end) - at > LINE_BYTES_MAX:
                raise Malformed(f"NATS line: expected at most {LINE_BYTES_MAX} bytes, got {_shown(data, at)}")
            if line_end < 0:
                self._keep(data[at:], end - at + 1)
                break
            words = data[at:line_end].split(b" ")
            if words[0] != b"HMSG" and words[0] != b"MSG":
                control = _control(data[at:line_end])
                if control is not None:
                    controls.append(control)
                at = line_end + 2
                continue
            reply, header_bytes, total_bytes = self._sizes(words, data, at)
            head = line_end + 2
            body, body_end = head + header_bytes, head + total_bytes
            if body_end + 2 > end:
                self._keep(data[at:], body_end + 2 - at)
                break
            if data[body_end : body_end + 2] != b"\r\n":
                raise Malformed(f"NATS payload: expected a line end after {total_bytes} bytes, got {_shown(data, at)}")
            delivered.append(Delivered(words[1], reply, data[head:body], data[body:body_end]))
            at = body_end + 2
        return delivered, controls

    def limit_payloads(self, payload_bytes_max: int) -> None:
        """Take no larger payloads, headers aside, than the server says that it does."""
        self._bytes_max = min(PAYLOAD_BYTES_MAX, payload_bytes_max) + HEADER_BYTES_MAX

    def _sizes(self, words: list[bytes], data: bytes, at: int) -> tuple[bytes, int, int]:
        """Return reply, size of the header and size of header and payload, from the words of a delivery's line."""
        has_header = words[0] == b"HMSG"
        most = 6 if has_header else 5
        if len(words) in (most, most - 1) and words[1] and words[2].isdigit() and words[3] and words[-1].isdigit():
            header_bytes = _size(words[-2]) if has_header else 0
            total_bytes = _size(words[-1])
            if 0 <= header_bytes <= total_bytes <= self._bytes_max:
                return words[3] if len(words) == most else b"", header_bytes, total_bytes
        raise Malformed(
            f"NATS delivery: expected subject, number, reply and at most {self._bytes_max} bytes, "
            f"got {_shown(data, at)}"
        )

    def _keep(self, rest: bytes, needed_bytes: int) -> None:
        """Wait with the beginning of a frame until so many bytes are here."""
        self._pieces.append(rest)
        self._kept_bytes, self._needed_bytes = len(rest), needed_bytes


def status_of(header: bytes) -> str:
    """Return the three digits in a header block by which the server answers a request; empty if it has none."""
    line, _, _ = header.partition(b"\r\n")
    words = line.split(b" ", 2)
    return words[1].decode("ascii", "replace") if len(words) > 1 and words[0] == _VERSION else ""


def _control(line: bytes) -> Control | None:
    """Read a line that delivers nothing; None for one that says nothing either.

    Raises: Malformed.
    """
    word, _, rest = line.partition(b" ")
    match word:
        case b"PING" if not rest:
            return Beat.PING
        case b"PONG" if not rest:
            return Beat.PONG
        case b"+OK" if not rest:
            return None
        case b"-ERR":
            return Refusal(text=rest.decode("utf-8", "replace").strip(" '"))
        case b"INFO":
            try:
                return _INFO_DECODER.decode(rest)
            except (ValueError, RecursionError) as error:
                raise Malformed(f"NATS INFO: expected an object, got: {str(error)[:_LINE_SHOWN_MAX]}") from error
        case _:
            raise Malformed(f"NATS line: expected an operation, got {line[:_LINE_SHOWN_MAX]!r}")


def _size(word: bytes) -> int:
    """Read a size; -1 where it is none."""
    return int(word) if len(word) <= _SIZE_DIGITS_MAX and word.isdigit() else -1


def _shown(data: bytes, at: int) -> str:
    return repr(data[at : at + _LINE_SHOWN_MAX])
