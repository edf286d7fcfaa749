"""The outbox: what a gateway has made stays on disk, in order, until the broker has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headend.edges.gateway_outbox import Outbox, OutboxTaken

SEGMENT = 1_000


def messages(first: int, count: int) -> list[tuple[str, bytes]]:
    return [(f"amr/M{number}/rd", b"%06d" % number * 5) for number in range(first, first + count)]


def drained(outbox: Outbox) -> list[tuple[str, bytes]]:
    """Take everything out, batch by batch."""
    found: list[tuple[str, bytes]] = []
    while (batch := outbox.read()) is not None:
        found += batch.messages
        outbox.forget(batch.end)
    return found


def killed(outbox: Outbox) -> None:
    """Let go of the folder as a kill does, with nothing told to the disk."""
    outbox._file.close()
    os.close(outbox._lock)


def test_outbox_gives_messages_in_order_over_segments_and_restarts(tmp_path: Path) -> None:
    """Whatever was forgotten before a kill does not come again, whatever was not does, in the order it was made."""
    outbox = Outbox(tmp_path, segment_bytes=SEGMENT)
    for first in range(0, 100, 10):
        outbox.append(messages(first, 10))
    batch = outbox.read()
    assert batch is not None
    taken = list(batch.messages)
    outbox.forget(batch.end)
    killed(outbox)
    again = Outbox(tmp_path, segment_bytes=SEGMENT)
    again.append(messages(100, 5))
    assert taken + drained(again) == messages(0, 105)
    assert again.waiting_bytes == 0
    assert again.read() is None
    assert len(list(tmp_path.glob("*.seg"))) <= 2
    again.close()


@pytest.mark.parametrize("cut", [1, 9, 11, 30])
def test_outbox_torn_tail_is_cut_and_counted(tmp_path: Path, cut: int) -> None:
    """A record that a kill left half written is dropped; what follows is written behind whole ones."""
    outbox = Outbox(tmp_path)
    outbox.append(messages(0, 3))
    killed(outbox)
    (segment,) = tmp_path.glob("*.seg")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-cut])
    again = Outbox(tmp_path)
    assert again.torn_bytes == len(whole) // 3 - cut
    again.append(messages(3, 1))
    assert drained(again) == [*messages(0, 2), *messages(3, 1)]
    again.close()


def test_outbox_damaged_record_costs_itself_alone(tmp_path: Path) -> None:
    """A flipped bit is found by the check sum; what stands behind it comes all the same."""
    outbox = Outbox(tmp_path)
    outbox.append(messages(0, 4))
    killed(outbox)
    (segment,) = tmp_path.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[len(data) // 4 + 20] ^= 1
    segment.write_bytes(data)
    again = Outbox(tmp_path)
    assert drained(again) == [*messages(0, 1), *messages(2, 2)]
    assert again.lost_bytes == len(data) // 4
    assert again.torn_bytes == 0
    again.close()


def test_outbox_beyond_its_bound_drops_the_oldest_and_counts_them(tmp_path: Path) -> None:
    """The newest registers say the most: the oldest segment gives way."""
    outbox = Outbox(tmp_path, bytes_max=5 * SEGMENT, segment_bytes=SEGMENT)
    for first in range(0, 400, 10):
        outbox.append(messages(first, 10))
    lost = outbox.lost_bytes
    kept = drained(outbox)
    assert kept == messages(400 - len(kept), len(kept))
    assert lost > 0
    assert len(b"".join(topic.encode() + payload for topic, payload in kept)) + 10 * len(kept) >= 4 * SEGMENT
    assert outbox.waiting_bytes == 0
    outbox.close()


def test_outbox_folder_belongs_to_one_gateway(tmp_path: Path) -> None:
    """A second process on the folder is refused."""
    outbox = Outbox(tmp_path)
    with pytest.raises(OutboxTaken):
        Outbox(tmp_path)
    outbox.close()
    Outbox(tmp_path).close()


class _FullDisk:
    """A file that has room for so many bytes more."""

    def __init__(self, path: Path, room: int) -> None:
        self._path = path
        self._room = room

    def write(self, data: bytes) -> int:
        with self._path.open("ab") as file:
            return file.write(data[: self._room])


def test_outbox_on_a_full_disk_takes_all_of_a_batch_or_nothing(tmp_path: Path) -> None:
    """A batch that fits in part is taken back, so that the next one is found behind whole records."""
    outbox = Outbox(tmp_path)
    outbox.append(messages(0, 2))
    whole = outbox._file
    (segment,) = tmp_path.glob("*.seg")
    outbox._file = _FullDisk(segment, 50)  # type: ignore[assignment]
    with pytest.raises(OSError, match="room"):
        outbox.append(messages(2, 3))
    outbox._file = whole
    outbox.append(messages(5, 1))
    assert drained(outbox) == [*messages(0, 2), *messages(5, 1)]
    outbox.close()
