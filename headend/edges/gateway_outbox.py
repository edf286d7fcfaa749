"""The outbox: messages of a gateway on disk, from the moment they are made until our broker has them.

Stage: between polling and publishing. Every message is appended before anything is sent, so that a gateway that is
killed loses none that it has made; what is published again after that is dropped by its key. Files are segments of
records, each with its length and check sum; the place up to which the broker has everything stands in a file beside
them. Within the bound the oldest segment gives way: registers are cumulative, the newest say the most.

A write reaches the kernel at once, which a kill cannot undo. It reaches the disk with `sync`, which the gateway calls
every `SYNC_EVERY_S` while the broker is away: a failure of power costs at most that.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final
from zlib import crc32

import structlog

from protocols.native import PAYLOAD_BYTES_MAX

_log = structlog.get_logger("gateway")

# A day of 5,000 meters each minute at 250 bytes is 1.8 GB; of the usual few hundred meters a week fits.
OUTBOX_BYTES_MAX: Final = 1_000_000_000
# The unit in which the oldest give way, and what is read over at a start: 1 % of the bound, 0.1 s.
SEGMENT_BYTES: Final = 8_000_000
# Some 500 messages, as many as are published at once.
READ_BYTES: Final = 131_072
SYNC_EVERY_S: Final = 1.0
_HEAD: Final = struct.Struct(">IIH")  # Length of topic and payload, CRC-32 of both, length of the topic.
_RECORD_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + 1_000
_SUFFIX: Final = ".seg"

# A topic and its payload.
Message = tuple[str, bytes]


class OutboxError(Exception):
    """The outbox cannot be used."""

    code: ClassVar[str] = "outbox_error"


class OutboxTaken(OutboxError):
    """Another gateway works on this folder."""

    code: ClassVar[str] = "outbox_taken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in the outbox: a segment's number and the bytes before it."""

    segment: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Messages to publish, in order, and the place behind them."""

    messages: Sequence[Message]
    end: Place


class Outbox:
    """Messages on disk, first in, first out.

    Invariants: one process works on a folder; `read` gives what stands behind the last `forget`, in the order of
    `append`. `torn_bytes` are what a kill had left half written, `lost_bytes` what gave way to the bound or was
    damaged: both are counted, and logged when they happen.
    """

    def __init__(self, folder: Path, *, bytes_max: int = OUTBOX_BYTES_MAX, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.torn_bytes = 0
        self.lost_bytes = 0
        self._folder = folder
        self._bytes_max = bytes_max
        self._segment_bytes = segment_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked(folder / "lock")
        self._sizes = {int(path.stem): path.stat().st_size for path in sorted(folder.glob("*" + _SUFFIX))}
        self._at = self._kept_place()
        self._cut_torn_tail()
        if not self._sizes:
            self._sizes[self._at.segment] = 0
        self._file = self._opened(max(self._sizes))
        self._unsynced = False

    @property
    def waiting_bytes(self) -> int:
        """Count the bytes that the broker does not have yet."""
        return sum(self._sizes.values()) - self._at.offset

    def append(self, messages: Sequence[Message]) -> None:
        """Write messages behind all others; they survive a kill from here on.

        Raises: OSError when the disk takes no more; nothing of them is written then.
        """
        data = b"".join(_record(topic, payload) for topic, payload in messages)
        last = max(self._sizes)
        if self._sizes[last] + len(data) > self._segment_bytes and self._sizes[last]:
            last = self._begin_segment(last + 1)
        if self._file.write(data) != len(data):
            # What stands half written would hide what comes behind it.
            os.truncate(self._path(last), self._sizes[last])
            raise OSError(errno.ENOSPC, "outbox: expected room for a batch of messages, got less")
        self._sizes[last] += len(data)
        self._unsynced = True
        while sum(self._sizes.values()) > self._bytes_max and len(self._sizes) > 1:
            self._give_way()

    def read(self) -> Batch | None:
        """Return what comes next, None where nothing waits. Reading changes nothing."""
        while True:
            place = self._at
            with self._path(place.segment).open("rb") as file:
                file.seek(place.offset)
                data = file.read(READ_BYTES)
            messages, used = _records(data)
            if messages:
                return Batch(messages=messages, end=Place(segment=place.segment, offset=place.offset + used))
            if not self._skip(place, data):
                return None

    def forget(self, end: Place) -> None:
        """Note that the broker has everything up to a place; whole segments before it are deleted."""
        self._at = end
        for number in [number for number in self._sizes if number < end.segment]:
            self._delete(number)
        last = max(self._sizes)
        if end.segment == last and end.offset == self._sizes[last] and self._sizes[last] > READ_BYTES:
            self._begin_segment(last + 1)
            self._delete(last)
            self._at = Place(segment=last + 1, offset=0)
        self._keep_place()

    def sync(self) -> None:
        """Let what was written reach the disk."""
        if self._unsynced:
            os.fsync(self._file.fileno())
            self._unsynced = False

    def close(self) -> None:
        """Leave the folder to another process."""
        self.sync()
        self._file.close()
        os.close(self._lock)

    def _locked(self, path: Path) -> int:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise OutboxTaken(f"outbox {path.parent}: expected it free, got one that another gateway uses") from None
        return lock

    def _kept_place(self) -> Place:
        """Read the place up to which the broker has everything; without it that is the first segment's begin."""
        first = min(self._sizes, default=1)
        try:
            segment, offset = (int(word) for word in (self._folder / "place").read_text().split())
        except (OSError, ValueError):
            return Place(segment=first, offset=0)
        if segment not in self._sizes or offset > self._sizes[segment]:
            return Place(segment=max(first, segment) if not self._sizes else first, offset=0)
        for number in [number for number in self._sizes if number < segment]:
            self._delete(number)
        return Place(segment=segment, offset=offset)

    def _keep_place(self) -> None:
        """Write the place beside, and give it its name at once: an older one costs copies, a torn one no more."""
        fresh = self._folder / "place.new"
        fresh.write_text(f"{self._at.segment} {self._at.offset}\n")
        fresh.replace(self._folder / "place")

    def _cut_torn_tail(self) -> None:
        """Cut off what a kill has left half written at the end of the last segment."""
        if not self._sizes:
            return
        last = max(self._sizes)
        data = self._path(last).read_bytes()
        _, good = _records(data)
        if good == len(data) or _skippable(data[good:]):
            return
        self.torn_bytes += len(data) - good
        _log.warning("outbox_tail_torn", segment=last, cut_bytes=len(data) - good)
        os.truncate(self._path(last), good)
        self._sizes[last] = good
        if self._at.segment == last and self._at.offset > good:
            self._at = Place(segment=last, offset=good)

    def _skip(self, place: Place, data: bytes) -> bool:
        """Go behind the end of a segment, or behind what is damaged in it; return False at the end of all."""
        rest = self._sizes[place.segment] - place.offset
        if rest == 0 and place.segment == max(self._sizes):
            return False
        damaged = _skippable(data) or rest
        if rest:
            self.lost_bytes += damaged
            _log.error("outbox_damaged", segment=place.segment, offset=place.offset, lost_bytes=damaged)
        if damaged < rest:
            self._at = Place(segment=place.segment, offset=place.offset + damaged)
            return True
        if place.segment == max(self._sizes):
            self._begin_segment(place.segment + 1)
        self._at = Place(segment=min(number for number in self._sizes if number > place.segment), offset=0)
        self._delete(place.segment)
        return True

    def _give_way(self) -> None:
        """Drop the oldest segment."""
        oldest = min(self._sizes)
        lost = self._sizes[oldest] - (self._at.offset if self._at.segment == oldest else 0)
        self._delete(oldest)
        if self._at.segment == oldest:
            self._at = Place(segment=min(self._sizes), offset=0)
        self.lost_bytes += lost
        _log.error("outbox_full", lost_bytes=lost, bytes_max=self._bytes_max)
        self._keep_place()

    def _begin_segment(self, number: int) -> int:
        self.sync()
        self._file.close()
        self._file = self._opened(number)
        self._sizes[number] = 0
        return number

    def _opened(self, number: int) -> io.FileIO:
        return self._path(number).open("ab", buffering=0)

    def _delete(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)
        del self._sizes[number]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:012d}{_SUFFIX}"


def _record(topic: str, payload: bytes) -> bytes:
    name = topic.encode()
    return b"".join((_HEAD.pack(len(name) + len(payload), crc32(payload, crc32(name)), len(name)), name, payload))


def _records(data: bytes) -> tuple[list[Message], int]:
    """Return the whole records at the front, and how many bytes they are."""
    messages: list[Message] = []
    at = 0
    while at + _HEAD.size <= len(data):
        length, check, name_length = _HEAD.unpack_from(data, at)
        begins, ends = at + _HEAD.size, at + _HEAD.size + length
        if ends > len(data) or name_length > length or crc32(data[begins:ends]) != check:
            break
        middle = begins + name_length
        messages.append((data[begins:middle].decode(), data[middle:ends]))
        at = ends
    return messages, at


def _skippable(data: bytes) -> int:
    """Return the length of a damaged record behind which a sound one stands; 0 where there is none."""
    if len(data) < _HEAD.size:
        return 0
    length = _HEAD.unpack_from(data)[0]
    size = _HEAD.size + int(length)
    if length > _RECORD_BYTES_MAX or size >= len(data):
        return 0
    return size if _records(data[size:])[0] else 0
