"""The MQTT topics a meter publishes and listens on, and the shard its serial belongs to.

Up: `amr/<serial>/rd` (readings) and `amr/<serial>/ev` (events, replies to commands). Down:
`amr/<serial>/cmd`. A serial has no character that means anything in an MQTT topic or a NATS subject, so one
meter owns exactly one subtree and cannot name another's. Nothing here opens a connection.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from protocols.errors import Malformed

SHARDS: Final = 32  # Fixed for ever: the shard is stored on the meter and is part of the broker's subjects.
# A lane is what the broker hands out as one: the shards with the same remainder. Every lane costs it time for every
# message (85 us each with 32 lanes, 66 with 8), so there are fewer than shards: as many processes may share them.
LANES: Final = 8
SERIAL_LENGTH_MAX: Final = 32

_TOPIC: Final = re.compile(r"amr/([A-Za-z0-9_-]{1,32})/(rd|ev|cmd)", re.ASCII)
_SERIAL: Final = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
_TOPIC_SHOWN_MAX: Final = 80  # An MQTT topic may have 65,535 bytes; an error message shows a line's worth.
_FNV_OFFSET_BASIS: Final = 0x811C9DC5
_FNV_PRIME: Final = 0x01000193


class TopicKind(Enum):
    """What a topic carries; the value is its last level."""

    READING = "rd"
    EVENT = "ev"
    COMMAND = "cmd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One meter's topic.

    Invariants: `serial` matches `[A-Za-z0-9_-]{1,32}`.
    """

    serial: str
    kind: TopicKind


_KIND_OF: Final = {kind.value: kind for kind in TopicKind}


def parse_topic(topic: str) -> Topic:
    """Split a topic into serial and kind.

    Raises: Malformed on anything that is not exactly one of the three topics.
    """
    serial, level = split_topic(topic)
    return Topic(serial=serial, kind=_KIND_OF[level])


def split_topic(topic: str) -> tuple[str, str]:
    """Split a topic into serial and last level, as `parse_topic` does, without building a value.

    Raises: Malformed on anything that is not exactly one of the three topics.
    """
    match = _TOPIC.fullmatch(topic)
    if match is None:
        shown = topic[:_TOPIC_SHOWN_MAX]
        raise Malformed(f"topic: expected amr/<serial>/rd, ev or cmd, got {shown!r}, meter unknown")
    return match[1], match[2]


def reading_topic(serial: str) -> str:
    """Name the topic a meter publishes readings on.

    Raises: Malformed if the serial cannot stand in a topic.
    """
    return f"amr/{_checked(serial)}/rd"


def event_topic(serial: str) -> str:
    """Name the topic a meter publishes events and replies on.

    Raises: Malformed if the serial cannot stand in a topic.
    """
    return f"amr/{_checked(serial)}/ev"


def command_topic(serial: str) -> str:
    """Name the topic a meter takes commands from.

    Raises: Malformed if the serial cannot stand in a topic.
    """
    return f"amr/{_checked(serial)}/cmd"


def shard_of(serial: str) -> int:
    """Place a meter in its shard: FNV-1a-32 of the serial, modulo 32.

    Equal to the partition the broker's subject mapping computes for the serial's level.
    Source: FNV-1a reference, offset basis 811C9DC5, prime 01000193; NATS server, partition mapping function.
    """
    digest = _FNV_OFFSET_BASIS
    for byte in serial.encode():
        digest = ((digest ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return digest % SHARDS


def lane_of(shard: int) -> int:
    """Place a shard in its lane."""
    return shard % LANES


def _checked(serial: str) -> str:
    if _SERIAL.fullmatch(serial) is None:
        shown = serial[:_TOPIC_SHOWN_MAX]
        raise Malformed(f"serial: expected 1 to {SERIAL_LENGTH_MAX} of A-Z a-z 0-9 _ -, got {shown!r}")
    return serial
