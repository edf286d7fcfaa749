"""The guard of the stream: what meters publish is kept, whatever happens to the broker's store while we run.

Stage: in every ingest process, beside the reader. A broker that comes back without its store has no consumers: it
acknowledges what meters send, and drops it. The guard looks at the start, at every new connection and each second
whether all is there; what lacks is made again, told as an error and counted. Never reads a message. What was dropped
meanwhile is a gap of its meter, and read again from the meter's store (docs/gaps.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from headend.edges.metrics import IngestMetrics
from headend.edges.nats_wire import NatsWire
from headend.edges.stream_setup import (
    LANE_CONSUMERS,
    LEFTOVERS,
    STREAM,
    StreamUnavailable,
    prepare_stream,
    stream_of,
)

_log = structlog.get_logger(__name__)

# Ten small questions, some 0.5 ms of the broker; a second is what a meter needs to connect again.
LOOK_EVERY_S: Final = 1.0
_ANSWER_S_MAX: Final = 5.0
_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """Where the broker is; the MQTT listener is used only to have the stream made."""

    nats_url: str
    mqtt_host: str
    mqtt_port: int
    ack_wait_s: float


class _Error(msgspec.Struct):
    code: int = 0


class _State(msgspec.Struct):
    last_seq: int = 0


class _Answer(msgspec.Struct):
    """What we use of an answer about a stream or a consumer."""

    error: _Error | None = None
    created: str = ""
    state: _State = msgspec.field(default_factory=_State)


class StreamGuard:
    """Sees that the streams and their consumers are there."""

    def __init__(self, wire: NatsWire, settings: GuardSettings, metrics: IngestMetrics) -> None:
        self._wire = wire
        self._settings = settings
        self._metrics = metrics
        self.look_again = asyncio.Event()
        # When the broker's own stream was made, and the last number it had given when all was there. It takes, and
        # drops, what lanes would if they were there.
        self._made, self._numbered = "", 0
        # What lacked and is not told yet.
        self._lost: list[str] = []

    async def begin(self) -> None:
        """Make what lacks, and bring the rest up to date.

        Raises: StreamUnavailable; StreamError while a former version has messages to read.
        """
        self._lost = await self._lacking()
        await self._prepare()
        await self._note(first=True)

    async def keep(self) -> None:
        """Look again and again, for ever; a broker that is away is waited for.

        Raises: StreamError while a former version has messages to read.
        """
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.look_again.wait(), LOOK_EVERY_S)
            self.look_again.clear()
            with suppress(StreamUnavailable):
                await self._look()

    async def _look(self) -> None:
        lacking = await self._lacking()
        if lacking:
            self._lost = lacking
            await self._prepare()
        await self._note(first=False)

    async def _prepare(self) -> None:
        settings = self._settings
        await prepare_stream(settings.nats_url, settings.mqtt_host, settings.mqtt_port, ack_wait_s=settings.ack_wait_s)

    async def _note(self, *, first: bool) -> None:
        """Take the stream's last number, and tell what was lost and how many messages nobody may have asked for."""
        stream = await self._ask(f"STREAM.INFO.{STREAM}") or _Answer()
        made, numbered = stream.created, stream.state.last_seq
        # A stream that was made anew counts from 1.
        unheard = numbered - self._numbered if made == self._made else numbered
        self._made, self._numbered = made, numbered
        lost, self._lost = self._lost, []
        if LEFTOVERS not in lost:
            # A lane's stream keeps its messages without a consumer; only the broker's own asks whether somebody waits.
            unheard = 0
        if lost and first and not unheard:
            _log.info("stream_made", consumers=lost)
        elif lost:
            _log.error("stream_was_lost", lacking=lost, dropped_at_most=unheard)
            self._metrics.stream_made_again(unheard)

    async def _lacking(self) -> list[str]:
        names = [LEFTOVERS, *LANE_CONSUMERS]
        answers = await asyncio.gather(*(self._ask(f"CONSUMER.INFO.{stream_of(name)}.{name}") for name in names))
        return [name for name, answer in zip(names, answers, strict=True) if answer is None]

    async def _ask(self, what: str) -> _Answer | None:
        """Ask about a stream or a consumer; None if there is no such thing.

        Raises: StreamUnavailable, also while a cluster has no leader.
        """
        try:
            raw = await self._wire.request(f"$JS.API.{what}", timeout_s=_ANSWER_S_MAX)
            answer = msgspec.json.decode(raw, type=_Answer)
        except (TimeoutError, OSError, msgspec.MsgspecError) as error:
            raise StreamUnavailable(f"no word on {what}: {error!r}") from error
        if answer.error is None:
            return answer
        if answer.error.code == _NOT_FOUND:
            return None
        raise StreamUnavailable(f"no word on {what}: the broker's error {answer.error.code}")


@asynccontextmanager
async def open_guard(settings: GuardSettings, metrics: IngestMetrics) -> AsyncIterator[StreamGuard]:
    """Connect a guard for as long as the context lasts; all is there when it begins.

    Raises: StreamUnavailable; StreamError while a former version has messages to read.
    """
    wire = NatsWire(settings.nats_url, arrived=lambda _: None, reconnected=lambda: guard.look_again.set())
    guard = StreamGuard(wire, settings, metrics)
    try:
        try:
            await wire.open()
        except ConnectionError as error:
            raise StreamUnavailable(str(error)) from error
        await guard.begin()
        yield guard
    finally:
        await wire.close()
