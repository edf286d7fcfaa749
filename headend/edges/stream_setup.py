"""The durable stream that the broker keeps for us: its subjects, and its 33 consumers, made here.

Stage: before any meter connects, at every start. Leaves the stream `$MQTT_msgs` with a consumer for each shard and
one for whatever else is published. Reads no message; `headend.edges.stream` does.

The stream has interest retention: what no durable consumer asks for is dropped although the meter was told
it is stored. So `prepare_stream` must have run before any meter may connect, and shards and leftovers
together ask for every subject there is.

Subjects. The broker maps `amr.<serial>.rd` to eight levels, `amr.<shard>.<serial>.rd.-.-.-.-`, and pushes any
other eight-level subject to nine. So the shards have a depth of their own that no client can publish to, and
the leftovers can ask for all other depths without overlap. A shorter form leaves a hole: with four levels,
`amr.<shard>.<serial>.rd`, a prefixed topic such as `/amr/M1/rd` is acknowledged to the meter and dropped, since a
filter cannot say "four levels, but not below amr". A mapping must keep the head of a subject: the broker applies
it again to `$MQTT.msgs.` + six levels on the way into the stream.
Source: experiments on NATS server 2.15.1, 2026-11-21; tests/integration/test_stream.py repeats them.
"""

import asyncio
import uuid
from typing import ClassVar, Final

import aiomqtt
import nats.errors
import structlog
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError

from protocols.topics import SHARDS

STREAM: Final = "$MQTT_msgs"
LEFTOVERS: Final = "leftovers"
SUBJECT_PREFIX: Final = "$MQTT.msgs."
DEPTH: Final = 8  # Levels of a shard's subject.
_FILLER: Final = ".-" * (DEPTH - 4)
# "/" inside a level cannot come from an MQTT topic: the broker turns it into ".", and "." into "//".
PUSHED: Final = "x/x"

SUBJECT_MAPPINGS: Final[dict[str, str]] = {
    **{
        f"amr.*.{kind}": f"amr.{{{{partition({SHARDS},1)}}}}.{{{{wildcard(1)}}}}.{kind}{_FILLER}"
        for kind in ("rd", "ev")
    },
    ".".join("*" * DEPTH): "".join(f"{{{{wildcard({level})}}}}." for level in range(1, DEPTH + 1)) + PUSHED,
}

SHARD_CONSUMERS: Final = tuple(f"shard-{shard:02d}" for shard in range(SHARDS))

# One shard may hold a whole backlog: two batches of 20,000 messages, one committing and one decoding, and what
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
    """Make the stream and its 33 durable consumers, or bring them up to date; keeps what is stored.

    `nats_url` may name several servers of one cluster, with commas.
    Raises: StreamUnavailable.
    """
    client = await _connect(nats_url)
    try:
        await _ensure_stream(client, mqtt_host, mqtt_port)
        context = client.jetstream(timeout=_REQUEST_TIMEOUT_S)
        for config in _consumers(ack_wait_s):
            await context.add_consumer(STREAM, config)
    except (nats.errors.Error, TimeoutError, aiomqtt.MqttError) as error:
        raise StreamUnavailable(f"cannot prepare {STREAM}: {error!r}") from error
    finally:
        await client.close()


def consumer_of(shard: int | None) -> str:
    """Name the durable consumer of a shard, or that of what belongs to none."""
    return LEFTOVERS if shard is None else SHARD_CONSUMERS[shard]


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


def _consumers(ack_wait_s: float) -> list[ConsumerConfig]:
    shards = [(consumer_of(shard), [f"{SUBJECT_PREFIX}amr.{shard}.*.*{_FILLER}"]) for shard in range(SHARDS)]
    other_depths = [SUBJECT_PREFIX + ".".join("*" * depth) for depth in range(1, DEPTH)]
    deeper = SUBJECT_PREFIX + ".".join("*" * DEPTH) + ".>"
    return [
        ConsumerConfig(
            durable_name=name,
            filter_subjects=subjects,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ack_wait_s,
            max_deliver=-1,
            max_ack_pending=UNACKNOWLEDGED_MAX,
        )
        for name, subjects in [*shards, (LEFTOVERS, [*other_depths, deeper])]
    ]
