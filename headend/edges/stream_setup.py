"""The durable streams that the broker keeps for us: their subjects and consumers, made here.

Stage: before any meter connects, at every start. Leaves nine streams with a consumer each: one for each lane of four
shards, and the broker's own `$MQTT_msgs` for whatever else is published. Reads no message; `headend.edges.stream` does.

A lane's stream keeps every message until its reader says that all before it are stored (`headend.edges.stream`).
`$MQTT_msgs` has interest retention: what no durable consumer asks for is dropped although the sender was told it is
stored. So `prepare_stream` must have run before any meter may connect.

Subjects. The broker maps `amr.<serial>.rd` to eight levels, `amr.<lane>.<shard>.<serial>.rd.-.-.-`, and pushes any
other eight-level subject to nine. So the lanes have a depth of their own that no client can publish to, and
`$MQTT_msgs` takes all other depths without overlap. A shorter form leaves a hole: with five levels,
`amr.<lane>.<shard>.<serial>.rd`, a prefixed topic such as `/amr/M1/rd` is acknowledged to the meter and dropped, since
a filter cannot say "five levels, but not below amr". A mapping must keep the head of a subject: the broker applies
it again to `$MQTT.msgs.` + six levels on the way into the stream.
Source: experiments on NATS server 2.15.1, 2026-11-21 and 22; tests/integration/test_stream.py repeats them.
"""

import asyncio
import re
import uuid
from typing import ClassVar, Final

import aiomqtt
import nats.errors
import structlog
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from protocols.topics import LANES, SHARDS, lane_of

STREAM: Final = "$MQTT_msgs"
LEFTOVERS: Final = "leftovers"
SUBJECT_PREFIX: Final = "$MQTT.msgs."
DEPTH: Final = 8  # Levels of a lane's subjects.
_FILLER: Final = ".-" * (DEPTH - 5)
# "/" inside a level cannot come from an MQTT topic: the broker turns it into ".", and "." into "//".
PUSHED: Final = "x/x"

_PLACE: Final = f"amr.{{{{partition({LANES},1)}}}}.{{{{partition({SHARDS},1)}}}}.{{{{wildcard(1)}}}}"
SUBJECT_MAPPINGS: Final[dict[str, str]] = {
    **{f"amr.*.{kind}": f"{_PLACE}.{kind}{_FILLER}" for kind in ("rd", "ev")},
    ".".join("*" * DEPTH): "".join(f"{{{{wildcard({level})}}}}." for level in range(1, DEPTH + 1)) + PUSHED,
}

LANE_CONSUMERS: Final = tuple(f"lane-{lane}" for lane in range(LANES))

_OTHER_DEPTHS: Final = (
    *(SUBJECT_PREFIX + ".".join("*" * depth) for depth in range(1, DEPTH)),
    SUBJECT_PREFIX + ".".join("*" * DEPTH) + ".>",
)
_FORMER_CONSUMER: Final = re.compile(r"shard-\d\d|lane-\d")

# One lane may hold a whole backlog: two batches of 20,000 messages, one committing and one decoding, and what
# is buffered here (1,000) stay unacknowledged at once; 41,000 rounded up.
UNACKNOWLEDGED_MAX: Final = 50_000
_CONNECT_TIMEOUT_S: Final = 15.0
_REQUEST_TIMEOUT_S: Final = 5
_RECONNECT_WAIT_S: Final = 1
_PREPARE_TRIES_MAX: Final = 10  # At 0.5 s: a cluster elects a leader within 5 s.
_PREPARE_WAIT_S: Final = 0.5

_log = structlog.get_logger(__name__)


class StreamError(Exception):
    """Base of what goes wrong with the stream; `code` is stable."""

    code: ClassVar[str] = "stream_error"


class StreamUnavailable(StreamError):
    """The broker does not answer; try again. Nothing is lost: what is unacknowledged comes again."""

    code: ClassVar[str] = "stream_unavailable"


async def prepare_stream(nats_url: str, mqtt_host: str, mqtt_port: int, *, ack_wait_s: float) -> None:
    """Make the nine streams and their durable consumers, or bring them up to date; keeps what is stored.

    `nats_url` may name several servers of one cluster, with commas. The lanes get as many replicas as the broker gives
    its own stream.
    Raises: StreamUnavailable; StreamError while a former version has messages to read.
    """
    client = await _connect(nats_url)
    try:
        await _ensure_stream(client, mqtt_host, mqtt_port)
        context = client.jetstream(timeout=_REQUEST_TIMEOUT_S)
        await _require_read(context)
        await _lay_out_streams(context)
        for name in (*LANE_CONSUMERS, LEFTOVERS):
            await context.add_consumer(stream_of(name), _consumer(name, ack_wait_s))
    except (nats.errors.Error, TimeoutError, aiomqtt.MqttError) as error:
        raise StreamUnavailable(f"cannot prepare {STREAM}: {error!r}") from error
    finally:
        await client.close()


def consumer_of(shard: int | None) -> str:
    """Name the durable consumer of a shard's lane, or that of what belongs to none."""
    return LEFTOVERS if shard is None else LANE_CONSUMERS[lane_of(shard)]


def stream_of(consumer: str) -> str:
    """Name the stream that a consumer reads: a lane's has the name of its consumer."""
    return STREAM if consumer == LEFTOVERS else consumer


async def _connect(nats_url: str) -> Client:
    client = Client()
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await client.connect(
                nats_url.split(","),
                connect_timeout=2,
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_WAIT_S,
                error_cb=_note_error,
            )
    except (nats.errors.Error, TimeoutError, OSError) as error:
        await client.close()
        raise StreamUnavailable(f"no NATS server answers: {error!r}") from error
    return client


async def _note_error(error: Exception) -> None:
    _log.warning("stream_error", error=repr(error))


async def _ensure_stream(client: Client, mqtt_host: str, mqtt_port: int) -> None:
    """The server makes its MQTT streams when the first MQTT client connects, so be that client."""
    context = client.jetstream(timeout=_REQUEST_TIMEOUT_S)
    for tries in range(1, _PREPARE_TRIES_MAX + 1):
        try:
            await context.stream_info(STREAM)
            return
        except NotFoundError:
            async with aiomqtt.Client(
                mqtt_host, mqtt_port, identifier=f"prepare-{uuid.uuid4().hex}", timeout=_REQUEST_TIMEOUT_S
            ):
                pass
        except nats.errors.Error:
            if tries == _PREPARE_TRIES_MAX:
                raise
            await asyncio.sleep(_PREPARE_WAIT_S)
    raise StreamUnavailable(f"the server at {mqtt_host}:{mqtt_port} makes no stream {STREAM}")


async def _require_read(context: JetStreamContext) -> list[str]:
    """Name the consumers of an installation from before lanes had streams of their own.

    Raises: StreamError if messages wait for them, which only that version can read.
    """
    former = [info for info in await context.consumers_info(STREAM) if _FORMER_CONSUMER.fullmatch(info.name)]
    for info in former:
        waiting = (info.num_pending or 0) + (info.num_ack_pending or 0)
        if waiting:
            raise StreamError(
                f"consumer {info.name}: expected none of its messages to wait, got {waiting}: let the version that"
                " made it store them first"
            )
    return [info.name for info in former]


async def _lay_out_streams(context: JetStreamContext) -> None:
    """Take the lanes out of the broker's stream, drop their former consumers, and make their own streams.

    What a meter sends meanwhile has no stream: the broker does not acknowledge it, and it is sent again.
    Raises: StreamError while a former version has messages to read.
    """
    config = (await context.stream_info(STREAM)).config
    if config.subjects != [*_OTHER_DEPTHS]:
        config.subjects = [*_OTHER_DEPTHS]
        await context.update_stream(config)
    # Looked at again: nothing more comes for them now, and the broker would keep messages for them.
    for name in await _require_read(context):
        await context.delete_consumer(STREAM, name)
    present = {info.config.name: info.config.num_replicas for info in await context.streams_info()}
    for lane, name in enumerate(LANE_CONSUMERS):
        wanted = StreamConfig(
            name=name,
            subjects=[f"{SUBJECT_PREFIX}amr.{lane}.*.*.*{_FILLER}"],
            retention=RetentionPolicy.LIMITS,
            num_replicas=config.num_replicas,
        )
        if name not in present:
            await context.add_stream(wanted)
        elif present[name] != config.num_replicas:
            await context.update_stream(wanted)


def _consumer(name: str, ack_wait_s: float) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=name,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        max_deliver=-1,
        max_ack_pending=UNACKNOWLEDGED_MAX,
    )
