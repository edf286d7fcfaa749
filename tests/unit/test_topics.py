"""Topics and shards: one meter, one subtree, one shard."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import FrameError, Malformed
from protocols.topics import (
    SHARDS,
    Topic,
    TopicKind,
    command_topic,
    event_topic,
    parse_topic,
    reading_topic,
    shard_of,
)

SERIALS = st.text("ABCXYZabcxyz0189_-", min_size=1, max_size=32)


@given(SERIALS)
def test_topic_of_any_serial_parses_back_to_its_serial_and_kind(serial: str) -> None:
    """Composing and parsing a topic are inverse."""
    assert parse_topic(reading_topic(serial)) == Topic(serial=serial, kind=TopicKind.READING)
    assert parse_topic(event_topic(serial)) == Topic(serial=serial, kind=TopicKind.EVENT)
    assert parse_topic(command_topic(serial)) == Topic(serial=serial, kind=TopicKind.COMMAND)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "amr",
        "amr//rd",
        "amr/m0",
        "amr/m0/",
        "amr/m0/rd/",
        "/amr/m0/rd",
        "amr/m0/rd\n",
        "amr/m0/xx",
        "AMR/m0/rd",
        "amr/+/rd",
        "amr/#",
        "amr/m.0/rd",
        "amr/m 0/rd",
        "amr/mé/rd",
        "amr/m0\x00/rd",
        "amr/../rd",
        "amr/" + "m" * 33 + "/rd",
    ],
)
def test_topic_outside_the_grammar_is_refused(topic: str) -> None:
    """Only amr, one serial and one of three last levels make a topic."""
    with pytest.raises(Malformed):
        parse_topic(topic)


@given(st.text(max_size=50))
def test_arbitrary_text_as_topic_raises_nothing_but_frame_error(topic: str) -> None:
    """Whatever a client publishes on, the parser answers or refuses."""
    with suppress(FrameError):
        parse_topic(topic)


@pytest.mark.parametrize("serial", ["", "a/b", "a+", "#", "a b", "a\n", "x" * 33])
def test_serial_that_breaks_a_topic_is_refused_when_composing(serial: str) -> None:
    """A serial with a separator or wildcard would name another meter's subtree."""
    for compose in (reading_topic, event_topic, command_topic):
        with pytest.raises(Malformed):
            compose(serial)


@pytest.mark.parametrize(
    ("serial", "digest"),
    # From the FNV reference test suite (FNV-1a, 32 bits).
    [("", 0x811C9DC5), ("a", 0xE40C292C), ("b", 0xE70C2DE5), ("foobar", 0xBF9CF968)],
)
def test_shard_follows_the_published_hash(serial: str, digest: int) -> None:
    """The shard is FNV-1a-32 modulo the number of shards."""
    assert shard_of(serial) == digest % SHARDS


def test_shards_of_many_serials_are_even() -> None:
    """No shard of a city's serials holds more than a tenth above the mean."""
    counts = [0] * SHARDS
    for number in range(32_000):
        counts[shard_of(f"PB{number:06d}")] += 1
    assert max(counts) < 1100
    assert min(counts) > 900
