"""Frames of the NATS protocol, cut anywhere: what is read depends on the bytes alone, and is what nats-py reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.protocol import parser as nats_parser

from headend.nats_frames import (
    HEADER_BYTES_MAX,
    LINE_BYTES_MAX,
    Beat,
    Delivered,
    FrameReader,
    Info,
    Refusal,
    status_of,
)
from protocols.errors import Malformed

Read = tuple[list[Delivered], list[object]]

# What the broker takes in a topic and might be mistaken for space: a vertical tab, the file separator, two of Unicode.
ODD = "\x0b\x1c\x85\u00a0é/.$_-aZ9"
SUBJECTS = st.text(ODD, max_size=12).map(lambda rest: b"$MQTT.msgs.a" + rest.encode())
REPLIES = st.sampled_from([b"", b"$JS.ACK.$MQTT_msgs.shard-07.3.41.7.1795293406372230490.12", b"7"])
# Payloads that look like frames, and any others.
PAYLOADS = st.one_of(st.binary(max_size=40), st.sampled_from([b"\r\n", b"PING\r\n", b"MSG a 1 3\r\nabc\r\n", b"\r"]))
HEADERS = st.sampled_from([b"", b"NATS/1.0\r\nNmqtt-Pub:1\r\n\r\n"])
DELIVERED = st.builds(Delivered, SUBJECTS, REPLIES, HEADERS, PAYLOADS)
TEXTS = st.text("abc 'XYZ", min_size=1, max_size=12).map(str.strip).filter(bool)
INFOS = st.builds(
    lambda size, urls: Info(max_payload=size, connect_urls=tuple(urls)), st.integers(1, 2**40), st.lists(TEXTS)
)
REFUSALS = st.builds(lambda text: Refusal(text=text.strip(" '") or "x"), TEXTS)
CONTROLS: st.SearchStrategy[object] = st.one_of(st.sampled_from(list(Beat)), st.just("+OK"), REFUSALS, INFOS)
STREAMS = st.lists(st.one_of(DELIVERED, CONTROLS), max_size=8)


def encoded(frame: object) -> bytes:
    """Write a frame as the server does."""
    match frame:
        case Delivered(subject, reply, header, payload):
            words = [b"HMSG" if header else b"MSG", subject, b"1", *([reply] if reply else [])]
            sizes = [len(header), len(header) + len(payload)] if header else [len(payload)]
            return b" ".join([*words, *(b"%d" % size for size in sizes)]) + b"\r\n" + header + payload + b"\r\n"
        case Beat():
            return frame.value + b"\r\n"
        case Refusal(text=text):
            return f"-ERR '{text}'\r\n".encode()
        case Info():
            named = {"max_payload": frame.max_payload, "connect_urls": frame.connect_urls, "xkey": "X"}
            return f"INFO {json.dumps(named)} \r\n".encode()
        case _:
            return b"+OK\r\n"


def cut(data: bytes, places: Sequence[int]) -> Iterator[bytes]:
    """Cut bytes at some places."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return (data[begin:end] for begin, end in pairwise(edges))


def read(pieces: Iterator[bytes]) -> Read:
    """Read pieces as they come."""
    reader = FrameReader()
    delivered: list[Delivered] = []
    controls: list[object] = []
    for piece in pieces:
        more, others = reader.feed(piece)
        delivered += more
        controls += others
    return delivered, controls


class _Client:
    """Notes what nats-py's parser reports."""

    def __init__(self) -> None:
        self.delivered: list[Delivered] = []
        self.controls: list[object] = []

    async def _process_msg(self, _: int, subject: bytes, reply: bytes, payload: bytes, header: bytes | None) -> None:
        self.delivered.append(Delivered(subject, reply, header or b"", payload))

    async def _process_err(self, text: str) -> None:
        self.controls.append(Refusal(text=text.strip(" '")))

    async def _process_ping(self) -> None:
        self.controls.append(Beat.PING)

    async def _process_pong(self) -> None:
        self.controls.append(Beat.PONG)

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.controls.append(Info(max_payload=info["max_payload"], connect_urls=tuple(info["connect_urls"])))


def read_by_nats_py(pieces: Iterator[bytes]) -> Read:
    """Read pieces by nats-py's parser; it never waits here, so that no loop is needed."""
    client = _Client()
    parser = nats_parser.Parser(client)
    for piece in pieces:
        with pytest.raises(StopIteration):
            parser.parse(piece).send(None)
    return client.delivered, client.controls


@pytest.fixture(autouse=True, scope="module")
def _nats_py_with_vertical_tabs() -> Iterator[None]:
    """As it comes, nats-py ends a subject at a vertical tab, which is why it cannot read our stream."""
    patch = pytest.MonkeyPatch()
    for name in ("MSG_RE", "HMSG_RE"):
        pattern = getattr(nats_parser, name).pattern
        patch.setattr(nats_parser, name, re.compile(pattern.replace(rb"[^\s]+", rb"[^ \t\r\n]+")))
    yield
    patch.undo()


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=12))
def test_frames_cut_anywhere_are_read_as_sent_and_as_nats_py_does(frames: list[object], places: list[int]) -> None:
    """Every frame is read once, in order, whatever its bytes and wherever they were cut."""
    data = b"".join(map(encoded, frames))
    delivered = [frame for frame in frames if isinstance(frame, Delivered)]
    controls = [frame for frame in frames if isinstance(frame, Beat | Refusal | Info)]
    assert read(cut(data, places)) == (delivered, controls)
    others = [Refusal(text=each.text.lower()) if isinstance(each, Refusal) else each for each in controls]
    assert read_by_nats_py(cut(data, places)) == (delivered, others)


@given(STREAMS, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3), st.binary(max_size=60))
def test_wrong_bytes_are_malformed_wherever_they_are_cut(
    frames: list[object], changes: list[tuple[int, int]], tail: bytes
) -> None:
    """Any bytes are read or refused, never anything else, and alike in one piece and byte by byte."""
    data = bytearray(b"".join(map(encoded, frames)) + tail)
    for place, value in changes:
        if data:
            data[place % len(data)] = value

    def outcome(pieces: Iterator[bytes]) -> Read | None:
        try:
            return read(pieces)
        except Malformed:
            return None

    whole = outcome(iter([bytes(data)]))
    assert outcome(cut(bytes(data), range(len(data)))) == whole
    assert outcome(cut(bytes(data), [7, 19, 64])) == whole


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"MSG a 1\r\n",
        b"MSG a x 3\r\n",
        b"MSG  1 3\r\n",
        b"MSG a 1 r s 3\r\n",
        b"MSG a 1 -3\r\n",
        b"MSG a 1 +3\r\n",
        b"MSG a 1 1_0\r\n",
        b"MSG a 1 9999999999\r\n",
        b"MSG a 1 3\r\nabcd\r\n",
        b"HMSG a 1 5 3\r\n",
        b"HMSG a 1 r -1 3\r\n",
        b"msg a 1 3\r\nabc\r\n",
        b"PING now\r\n",
        b"INFO nothing\r\n",
        b"INFO " + b"[" * 100_000 + b"\r\n",
        b"\r\n",
        b"X" * (LINE_BYTES_MAX + 1),
        b"MSG " + b"X" * LINE_BYTES_MAX + b" 1 3\r\nabc\r\n",
    ],
)
def test_what_no_server_sends_is_malformed(data: bytes) -> None:
    """A line that is none of the protocol's, or a size that is none, says what was expected."""
    with pytest.raises(Malformed, match=r"NATS .*: expected"):
        FrameReader().feed(data)


def test_payload_above_what_the_server_says_it_takes_is_malformed() -> None:
    """No memory is set aside for a payload that the server could not have been given; headers come on top."""
    reader = FrameReader()
    reader.limit_payloads(1_000)
    most = 1_000 + HEADER_BYTES_MAX
    assert reader.feed(b"MSG a 1 %d\r\n%b\r\n" % (most, bytes(most)))[0] == [Delivered(b"a", b"", b"", bytes(most))]
    with pytest.raises(Malformed):
        reader.feed(b"MSG a 1 %d\r\n" % (most + 1))


def test_topic_of_the_longest_kind_is_read_in_pieces() -> None:
    """A subject far above the server's limit for what clients send is taken: it comes from a topic."""
    frame = Delivered(b"$MQTT.msgs." + b"//" * 60_000, b"r", b"", b"x")
    assert read(cut(encoded(frame), range(0, 130_000, 4_096))) == ([frame], [])


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1\r\n\r\n", "408"),
        (b"NATS/1.0 503\r\n\r\n", "503"),
        (b"NATS/1.0\r\nNmqtt-Pub:1\r\n\r\n", ""),
        (b"", ""),
    ],
)
def test_status_of_a_header_is_its_number(header: bytes, status: str) -> None:
    """The broker's word on a request stands in the header's first line."""
    assert status_of(header) == status
