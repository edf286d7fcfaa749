"""A fleet of simulated meters over real MQTT: each meter its own connection, session and conversation.

Load, typed tokens and a simulated clock enter; readings, events and replies go to the broker at QoS 1, and
commands from it reach the meter they are for. A meter's session is persistent (client id = user name =
serial), so commands sent while it is away are delivered when it returns. What a meter says is confirmed to it
only after the PUBACK. `BulkPublisher` is for very many meters without a conversation.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Final, Protocol, Self, assert_never

import aiomqtt
import structlog

from meter_sim.edges.bulk import BrokerRefused, BrokerUnreachable, BulkPublisher, FleetError
from meter_sim.meter import SimulatedMeter, TokenResult
from meter_sim.recorded import Profile
from protocols.errors import FrameError
from protocols.native import (
    CommandReply,
    CouponEntered,
    MeterEvent,
    Readings,
    TokenEntered,
    Uplink,
    decode_command,
    encode_coupon_entered,
    encode_event,
    encode_readings,
    encode_reply,
    encode_token_entered,
)
from protocols.topics import command_topic, event_topic, reading_topic

__all__ = [
    "BrokerRefused",
    "BrokerUnreachable",
    "BulkPublisher",
    "Clock",
    "Fleet",
    "FleetError",
    "FleetSettings",
    "ScaledClock",
]

# Twice the first wait after each failure: 0.2, 0.4 ... 30 s, each less up to half of it, so that a thousand
# meters do not return to a restarted broker in one instant.
BACKOFF_S_FIRST: Final = 0.2
BACKOFF_S_MAX: Final = 30.0
# A connect costs client and broker some 2 ms; 32 at once keep both busy and end within the connect time-out.
CONNECTS_MAX: Final = 32
# The head-end keeps one command in flight for a meter; room for each kind, and for repeats after a reconnect.
COMMANDS_WAITING_MAX: Final = 64

_log = structlog.get_logger(__name__)


class Clock(Protocol):
    """The simulated time a fleet lives in."""

    def now_ms(self) -> int:
        """Tell the simulated UTC time."""

    async def sleep_until(self, at_ms: int) -> None:
        """Return when the simulated time has come."""


class ScaledClock:
    """A clock that starts at a given instant and runs a whole number of times faster than the event loop's.

    Invariants: never runs backwards, whatever the wall clock does.
    """

    def __init__(self, start_ms: int, *, speed: int = 1) -> None:
        self._start_ms = start_ms
        self._speed = speed
        self._loop_start_s: float | None = None

    def now_ms(self) -> int:
        """Tell the simulated UTC time; the first call starts the clock."""
        now_s = asyncio.get_running_loop().time()
        if self._loop_start_s is None:
            self._loop_start_s = now_s
        return self._start_ms + int((now_s - self._loop_start_s) * 1000 * self._speed)

    async def sleep_until(self, at_ms: int) -> None:
        """Return when the simulated time has come."""
        if (wait_ms := at_ms - self.now_ms()) > 0:
            await asyncio.sleep(wait_ms / self._speed / 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """Where the broker is and how long to wait for it.

    Invariants: `password_of` gives each serial's own password, None where the listener asks for none.
    """

    host: str
    port: int
    password_of: Callable[[str], str | None] = lambda serial: None
    timeout_s: float = 10.0
    keepalive_s: int = 60


class _WentOffline(Exception):
    """The meter is to leave; ends its session's tasks."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Link:
    meter: SimulatedMeter
    work: asyncio.Event = field(default_factory=asyncio.Event)
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    handed: deque[tuple[bytes, asyncio.Future[None]]] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None
    connected: bool = False


class Fleet:
    """Meters on line, each its own client.

    Invariants: `meters` holds every meter by serial for as long as the fleet lives; any change of a meter's
    state, connection or store notifies `changed` and then calls `on_change`.
    """

    def __init__(
        self,
        meters: Iterable[SimulatedMeter],
        *,
        settings: FleetSettings,
        clock: Clock,
        rng: Random,
        on_change: Callable[[SimulatedMeter], None] | None = None,
    ) -> None:
        self.meters = {meter.serial: meter for meter in meters}
        self.changed = asyncio.Condition()
        self.malformed_commands = 0
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._on_change = on_change
        self._links = {serial: _Link(meter=meter) for serial, meter in self.meters.items()}
        self._connects = asyncio.Semaphore(CONNECTS_MAX)
        self._stack = AsyncExitStack()
        self._group: asyncio.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        for serial in self._links:
            self._start(serial)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for link in self._links.values():
            link.leave.set()
            for _, published in link.handed:
                published.cancel()
        await self._stack.__aexit__(kind, error, trace)

    def is_connected(self, serial: str) -> bool:
        """Tell whether the meter has a session with the broker and listens on its command topic."""
        return self._links[serial].connected

    async def wait_for(self, predicate: Callable[[], bool], *, timeout_s: float) -> None:
        """Wait until something about the fleet is so, asking again at every change.

        Raises: TimeoutError.
        """
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(predicate)

    async def wait_connected(self, *, timeout_s: float) -> None:
        """Wait until every meter that is not told to be away is connected.

        Raises: TimeoutError.
        """
        links = [link for link in self._links.values() if not link.leave.is_set()]
        await self.wait_for(lambda: all(link.connected for link in links), timeout_s=timeout_s)

    async def wait_sent(self, serial: str, *, timeout_s: float) -> None:
        """Wait until the broker has everything the meter had to say.

        Raises: TimeoutError.
        """
        await self.wait_for(lambda: self.meters[serial].stored_count == 0, timeout_s=timeout_s)

    async def advance(
        self,
        serial: str,
        energy_wh: int,
        *,
        at_ms: int | None = None,
        voltage_mv: int | None = None,
        current_ma: int | None = None,
        power_w: int | None = None,
    ) -> None:
        self.meters[serial].advance(
            self._clock.now_ms() if at_ms is None else at_ms,
            energy_wh,
            voltage_mv=voltage_mv,
            current_ma=current_ma,
            power_w=power_w,
        )
        await self._note_change(serial)

    async def play(self, serial: str, profile: Profile) -> None:
        """Offer a recorded load to a meter, each interval when its end comes on the simulated clock."""
        columns = (
            profile.end_ms,
            profile.energy_wh,
            profile.voltage_mv,
            profile.current_ma,
            profile.power_w,
        )
        for end_ms, energy_wh, voltage_mv, current_ma, power_w in zip(*columns, strict=True):
            await self._clock.sleep_until(end_ms)
            await self.advance(
                serial,
                energy_wh,
                at_ms=end_ms,
                voltage_mv=voltage_mv,
                current_ma=current_ma,
                power_w=power_w,
            )

    async def report(self, serial: str, readings: Readings) -> None:
        """Publish given readings as they are on a meter's connection; return when the broker has them.

        Waits while the meter is offline. The meter's own register and store are not touched.
        Raises: Malformed if they cannot be encoded.
        """
        published: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        link = self._links[serial]
        link.handed.append((encode_readings(readings), published))
        link.work.set()
        await published

    async def enter_token(self, serial: str, digits: str) -> TokenResult:
        """Type a token into a meter, connected or not."""
        result, _ = self.meters[serial].enter_token(digits, self._clock.now_ms())
        await self._note_change(serial)
        return result

    async def enter_coupon(self, serial: str, pin: str) -> None:
        """Type a coupon's PIN into a meter, connected or not."""
        self.meters[serial].enter_coupon(pin, self._clock.now_ms())
        await self._note_change(serial)

    async def press_button(self, serial: str) -> None:
        """Silence a meter's buzzer as its customer would."""
        self.meters[serial].press_button()
        await self._note_change(serial)

    async def go_offline(self, serial: str) -> None:
        """Take a meter off the network; it goes on measuring and keeps what it cannot send."""
        link = self._links[serial]
        link.leave.set()
        if link.task is not None:
            await asyncio.wait([link.task])

    async def go_online(self, serial: str) -> None:
        """Let a meter connect again; return at once."""
        link = self._links[serial]
        if link.leave.is_set():
            await self.go_offline(serial)
            link.leave.clear()
            self._start(serial)

    def _start(self, serial: str) -> None:
        assert self._group is not None  # The fleet is entered before any meter can start.
        self._links[serial].task = self._group.create_task(self._live(serial), name=f"meter-{serial}")

    async def _live(self, serial: str) -> None:
        """Keep one meter connected until it is told to leave."""
        link = self._links[serial]
        failures = 0
        while not link.leave.is_set():
            try:
                async with AsyncExitStack() as stack:
                    async with self._connects:
                        client = await stack.enter_async_context(self._client(serial))
                        await client.subscribe(command_topic(serial), qos=1)
                    failures = 0
                    await self._converse(serial, client)
            except aiomqtt.MqttError as error:
                failures += 1
                _log.info("meter_connection_lost", serial=serial, reason=str(error), failures=failures)
                await self._back_off(link, failures)

    def _client(self, serial: str) -> aiomqtt.Client:
        return aiomqtt.Client(
            self._settings.host,
            self._settings.port,
            username=serial,
            password=self._settings.password_of(serial),
            identifier=serial,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=False,
            timeout=self._settings.timeout_s,
            keepalive=self._settings.keepalive_s,
            max_queued_incoming_messages=COMMANDS_WAITING_MAX,
        )

    async def _back_off(self, link: _Link, failures: int) -> None:
        delay_s = min(BACKOFF_S_MAX, BACKOFF_S_FIRST * 2 ** min(failures - 1, 10))
        try:
            async with asyncio.timeout(delay_s * self._rng.uniform(0.5, 1.0)):
                await link.leave.wait()
        except TimeoutError:
            return

    async def _converse(self, serial: str, client: aiomqtt.Client) -> None:
        link = self._links[serial]
        lost: BaseExceptionGroup[aiomqtt.MqttError] | None = None
        link.connected = True
        await self._note_change(serial)
        try:
            async with asyncio.TaskGroup() as session:
                session.create_task(self._send(serial, client), name=f"send-{serial}")
                session.create_task(self._listen(serial, client), name=f"listen-{serial}")
                await link.leave.wait()
                raise _WentOffline
        except* _WentOffline:
            _log.debug("meter_left", serial=serial)
        except* aiomqtt.MqttError as group:
            lost = group
        finally:
            link.connected = False
            await self._note_change(serial)
        if lost is not None:
            # Sender and listener may both have noticed; the first one's word is enough to reconnect.
            raise aiomqtt.MqttError(str(lost.exceptions[0]))

    async def _send(self, serial: str, client: aiomqtt.Client) -> None:
        link = self._links[serial]
        while True:
            if link.handed:
                payload, published = link.handed[0]
                await client.publish(reading_topic(serial), payload, qos=1)
                link.handed.popleft()
                if not published.done():
                    published.set_result(None)
            elif (uplink := link.meter.next_unsent(self._clock.now_ms())) is not None:
                topic, payload = _encoded(uplink)
                await client.publish(topic, payload, qos=1)
                link.meter.confirm(uplink)
                await self._note_change(serial, wake=False)
            else:
                link.work.clear()
                await link.work.wait()

    async def _listen(self, serial: str, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            try:
                command = decode_command(bytes(message.payload))
            except FrameError as error:
                self.malformed_commands += 1
                _log.warning("command_malformed", serial=serial, reason=str(error))
                continue
            self.meters[serial].obey(command, self._clock.now_ms())
            await self._note_change(serial)

    async def _note_change(self, serial: str, *, wake: bool = True) -> None:
        link = self._links[serial]
        if wake:
            link.work.set()
        async with self.changed:
            self.changed.notify_all()
        if self._on_change is not None:
            self._on_change(link.meter)


def _encoded(uplink: Uplink) -> tuple[str, bytes]:
    match uplink:
        case Readings():
            return reading_topic(uplink.serial), encode_readings(uplink)
        case MeterEvent():
            return event_topic(uplink.serial), encode_event(uplink)
        case CommandReply():
            return event_topic(uplink.serial), encode_reply(uplink)
        case TokenEntered():
            return event_topic(uplink.serial), encode_token_entered(uplink)
        case CouponEntered():
            return event_topic(uplink.serial), encode_coupon_entered(uplink)
        case _:
            assert_never(uplink)
