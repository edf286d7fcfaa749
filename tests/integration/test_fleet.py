"""Simulated meters and the bulk publisher against a real broker: nothing lost, order kept, commands obeyed."""

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import aiomqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_sim.edges import bulk
from meter_sim.edges.bulk import encode_connect, encode_publish, take_packets
from meter_sim.edges.fleet import (
    BrokerRefused,
    BrokerUnreachable,
    BulkPublisher,
    Fleet,
    FleetSettings,
    ScaledClock,
)
from meter_sim.meter import SWITCH_CLOSED, SWITCH_OPEN, SimulatedMeter
from meter_sim.recorded import Profile
from meter_sim.token_reader import Carrier, EntryResult, TokenEntry
from protocols.errors import Malformed
from protocols.native import (
    Command,
    CommandReply,
    MeterEvent,
    OrderKind,
    Readings,
    Relay,
    ReplyResult,
    Uplink,
    decode_uplink,
    encode_command,
)

T0 = 1_763_730_000_000
HALF_HOUR_MS = 1_800_000
WAIT_S = 20.0
TOKEN = "1" * 20


class Broker:
    """A NATS server with its MQTT listener, started and killed by the test."""

    def __init__(self, folder: Path) -> None:
        self.port = _free_port()
        self._config = folder / "nats.conf"
        self._config.write_text(
            f'server_name: "test-fleet"\nlisten: "127.0.0.1:{_free_port()}"\n'
            f'jetstream {{ store_dir: "{folder / "store"}" }}\n'
            # What was on its way to a subscriber when the server was killed is sent again only after this time.
            f'mqtt {{ host: "127.0.0.1", port: {self.port}, ack_wait: "1s" }}\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server; it answers some tenths of a second later."""
        binary = Path(sys.executable).with_name("nats-server")
        self._process = subprocess.Popen(
            [binary, "-c", self._config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        """End the server without any warning to it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT_S)
            self._process = None

    async def wait_ready(self) -> None:
        """Wait until the MQTT listener accepts connections."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A running broker on free ports with an empty store."""
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        server = Broker(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()


class HeadEnd:
    """A durable subscriber to every reading and event, and the sender of commands."""

    def __init__(self, broker: Broker) -> None:
        self.uplinks: list[Uplink] = []
        self._broker = broker
        self._arrived = asyncio.Condition()
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """Listen from now on, over lost connections; return when the durable subscription exists."""
        self._ready.clear()
        self._task = asyncio.create_task(self._run(), name="head-end")
        # Before the subscription exists the broker keeps nothing.
        async with asyncio.timeout(WAIT_S):
            await self._ready.wait()

    async def leave(self) -> None:
        """Stop listening; the broker goes on keeping what is published."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            try:
                async with self._client("head-end", clean=False) as client:
                    await client.subscribe([("amr/+/rd", 1), ("amr/+/ev", 1)])
                    self._ready.set()
                    async for message in client.messages:
                        self.uplinks.append(decode_uplink(message.topic.value, bytes(message.payload)))
                        async with self._arrived:
                            self._arrived.notify_all()
            except aiomqtt.MqttError:
                await asyncio.sleep(0.1)

    async def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Wait until what arrived satisfies a condition."""
        async with asyncio.timeout(WAIT_S), self._arrived:
            await self._arrived.wait_for(predicate)

    async def command(self, serial: str, payload: bytes) -> None:
        """Send one command payload to a meter."""
        async with self._client("commander", clean=True) as client:
            await client.publish(f"amr/{serial}/cmd", payload, qos=1)

    def readings_of(self, serial: str) -> list[tuple[int, int]]:
        """List the (time, register) pairs of a meter in order of arrival."""
        return [
            pair
            for uplink in self.uplinks
            if isinstance(uplink, Readings) and uplink.serial == serial
            for pair in zip(uplink.read_at_ms, uplink.import_wh, strict=True)
        ]

    def replies(self) -> list[CommandReply]:
        """List the replies that arrived."""
        return [uplink for uplink in self.uplinks if isinstance(uplink, CommandReply)]

    def event_codes(self) -> list[int]:
        """List the codes of the events that arrived."""
        return [uplink.code for uplink in self.uplinks if isinstance(uplink, MeterEvent)]

    def _client(self, identifier: str, *, clean: bool) -> aiomqtt.Client:
        return aiomqtt.Client(
            "127.0.0.1", self._broker.port, identifier=identifier, clean_session=clean, timeout=WAIT_S
        )


@asynccontextmanager
async def head_end(broker: Broker) -> AsyncIterator[HeadEnd]:
    """Run a head-end beside the test."""
    await broker.wait_ready()
    listener = HeadEnd(broker)
    await listener.listen()
    try:
        yield listener
    finally:
        await listener.leave()


class GenerousReader:
    """A token reader that takes every token."""

    def enter(self, digits: str, now_ms: int, *, carrier: Carrier = Carrier.KEYPAD) -> TokenEntry:
        """Accept a token that gives 100.00."""
        return TokenEntry(result=EntryResult.ACCEPTED, credit_minor=10_000)


class StandingClock:
    """A clock a test sets by hand."""

    def __init__(self) -> None:
        self.at_ms = T0

    def now_ms(self) -> int:
        """Tell the time set."""
        return self.at_ms

    async def sleep_until(self, at_ms: int) -> None:
        """Be there at once."""
        self.at_ms = max(self.at_ms, at_ms)


def meter(serial: str, *, relay: Relay = Relay.ON, balance_minor: int | None = None) -> SimulatedMeter:
    """Build a meter that accepts every token."""
    return SimulatedMeter(serial=serial, token_reader=GenerousReader(), relay=relay, balance_minor=balance_minor)


def fleet_of(broker: Broker, *meters: SimulatedMeter) -> Fleet:
    """Build a fleet in standing time."""
    settings = FleetSettings(host="127.0.0.1", port=broker.port, timeout_s=WAIT_S)
    return Fleet(meters, settings=settings, clock=StandingClock(), rng=Random(1))


def supply(relay: Relay, *, order_id: int, epoch: int) -> bytes:
    """Encode a supply order that does not expire during a test."""
    return encode_command(
        Command(
            order_id=order_id,
            epoch=epoch,
            kind=OrderKind.SUPPLY,
            relay=relay,
            level=None,
            balance_minor=-120,
            threshold_minor=None,
            expires_at_ms=T0 + 3_600_000,
        )
    )


def one_reading(serial: str, number: int) -> bytes:
    """Compose the number-th reading of a meter."""
    return json.dumps({"v": 1, "meter": serial, "at": T0 + number, "import_wh": number}).encode()


@pytest.mark.broker
def test_supply_order_opens_the_relay_and_is_answered_and_told(broker: Broker) -> None:
    """A command reaches the meter, moves its relay, and its event and reply come back."""

    async def story() -> None:
        async with head_end(broker) as listener, fleet_of(broker, meter("PB000001")) as fleet:
            await fleet.wait_connected(timeout_s=WAIT_S)
            home = fleet.meters["PB000001"]
            await fleet.advance("PB000001", 500)
            await listener.command("PB000001", supply(Relay.OFF, order_id=12, epoch=7))
            await fleet.wait_for(lambda: home.relay is Relay.OFF, timeout_s=WAIT_S)
            await listener.wait_for(lambda: len(listener.replies()) == 1)
            (reply,) = listener.replies()
            assert (reply.order_id, reply.epoch, reply.result) == (12, 7, ReplyResult.DONE)
            assert reply.relay is Relay.OFF
            await listener.wait_for(lambda: listener.event_codes() == [SWITCH_OPEN])
            await listener.wait_for(lambda: listener.readings_of("PB000001") == [(T0, 500)])
            await fleet.wait_sent("PB000001", timeout_s=WAIT_S)

    asyncio.run(story())


@pytest.mark.broker
def test_meter_offline_keeps_readings_takes_a_token_and_hears_its_command_on_return(broker: Broker) -> None:
    """Away, a meter measures and reads tokens; back, it tells all with original times and obeys what waited."""

    async def story() -> None:
        home = meter("PB000002", relay=Relay.OFF, balance_minor=-120)
        async with head_end(broker) as listener, fleet_of(broker, home) as fleet:
            await fleet.wait_connected(timeout_s=WAIT_S)
            await fleet.go_offline("PB000002")
            assert not fleet.is_connected("PB000002")
            await listener.command("PB000002", supply(Relay.OFF, order_id=1, epoch=1))
            await fleet.enter_token("PB000002", TOKEN)
            assert (home.relay, home.balance_minor) == (Relay.ON, 9_880)
            for index in range(5):
                await fleet.advance("PB000002", 100, at_ms=T0 + index * HALF_HOUR_MS)
            await fleet.go_online("PB000002")
            await fleet.wait_for(lambda: home.relay is Relay.OFF, timeout_s=WAIT_S)
            await fleet.wait_sent("PB000002", timeout_s=WAIT_S)
            await listener.wait_for(lambda: len(listener.readings_of("PB000002")) >= 5)
            assert listener.readings_of("PB000002") == [
                (T0 + index * HALF_HOUR_MS, 100 * (index + 1)) for index in range(5)
            ]
            await listener.wait_for(lambda: listener.event_codes() == [SWITCH_CLOSED, SWITCH_OPEN])

    asyncio.run(story())


@pytest.mark.broker
def test_fleet_returns_after_the_broker_was_killed_and_loses_no_reading(broker: Broker) -> None:
    """Meters reconnect by themselves and send what they could not."""

    async def story() -> None:
        meters = [meter(f"PB{number:06d}") for number in range(20)]
        async with head_end(broker) as listener, fleet_of(broker, *meters) as fleet:
            await fleet.wait_connected(timeout_s=WAIT_S)
            for serial in fleet.meters:
                await fleet.advance(serial, 1, at_ms=T0)
            broker.kill()
            for serial in fleet.meters:
                await fleet.advance(serial, 2, at_ms=T0 + HALF_HOUR_MS)
            broker.start()
            for serial in fleet.meters:
                await fleet.wait_sent(serial, timeout_s=2 * WAIT_S)
            wanted = {(T0, 1), (T0 + HALF_HOUR_MS, 3)}
            await listener.wait_for(lambda: all(set(listener.readings_of(serial)) == wanted for serial in fleet.meters))

    asyncio.run(story())


@pytest.mark.broker
def test_recorded_load_is_played_on_the_simulated_clock(broker: Broker) -> None:
    """Each interval is reported at its end, with the register and channels it leads to."""
    profile = Profile(
        step_ms=HALF_HOUR_MS,
        start_ms=[T0, T0 + HALF_HOUR_MS],
        end_ms=[T0 + HALF_HOUR_MS, T0 + 2 * HALF_HOUR_MS],
        energy_wh=[250, 300],
        voltage_mv=[230_000, None],
        current_ma=[None, None],
        power_w=[500, 600],
        missing_rows=0,
        duplicate_rows=0,
    )

    async def story() -> None:
        settings = FleetSettings(host="127.0.0.1", port=broker.port, timeout_s=WAIT_S)
        clock = ScaledClock(T0, speed=36_000)
        changes: list[str] = []
        async with (
            head_end(broker) as listener,
            Fleet(
                [meter("PB000003")],
                settings=settings,
                clock=clock,
                rng=Random(1),
                on_change=lambda changed: changes.append(changed.serial),
            ) as fleet,
        ):
            await fleet.play("PB000003", profile)
            assert clock.now_ms() >= T0 + 2 * HALF_HOUR_MS
            await fleet.wait_sent("PB000003", timeout_s=WAIT_S)
            await listener.wait_for(lambda: len(listener.readings_of("PB000003")) == 2)
            assert listener.readings_of("PB000003") == [
                (T0 + HALF_HOUR_MS, 250),
                (T0 + 2 * HALF_HOUR_MS, 550),
            ]
            assert set(changes) == {"PB000003"}

    asyncio.run(story())


@pytest.mark.broker
def test_given_readings_go_out_as_they_are_and_malformed_commands_are_counted(broker: Broker) -> None:
    """A test may report anything in a meter's name; a broken command changes nothing."""

    async def story() -> None:
        async with head_end(broker) as listener, fleet_of(broker, meter("PB000004")) as fleet:
            given_readings = decode_uplink("amr/PB000004/rd", one_reading("PB000004", 77))
            assert isinstance(given_readings, Readings)
            await fleet.report("PB000004", given_readings)
            await listener.wait_for(lambda: given_readings in listener.uplinks)
            await listener.command("PB000004", b"not a command")
            await listener.command("PB000004", supply(Relay.OFF, order_id=1, epoch=1))
            await listener.wait_for(lambda: len(listener.replies()) == 1)
            assert fleet.malformed_commands == 1
            assert fleet.meters["PB000004"].register_wh == 0

    asyncio.run(story())


@pytest.mark.broker
def test_bulk_readings_are_acknowledged_once_and_arrive_in_each_meters_order(broker: Broker) -> None:
    """Every publish is counted once, and no meter's readings overtake each other."""

    async def story() -> None:
        serials = [f"BK{number:04d}" for number in range(50)]
        async with head_end(broker) as listener:
            async with BulkPublisher("127.0.0.1", broker.port) as publisher:
                for number in range(100):
                    for serial in serials:
                        await publisher.publish(f"amr/{serial}/rd", one_reading(serial, number))
                assert await publisher.drain() == 5_000
                assert publisher.republished == 0
            await listener.wait_for(lambda: len(listener.uplinks) == 5_000)
            for serial in serials:
                assert [wh for _, wh in listener.readings_of(serial)] == list(range(100))

    asyncio.run(story())


@pytest.mark.broker
def test_bulk_publisher_sends_again_what_a_killed_broker_did_not_acknowledge(broker: Broker) -> None:
    """After a crash of the broker everything published is stored at least once, in order."""
    serials = ("BK0001", "BK0002", "BK0003")

    async def publish(publisher: BulkPublisher, numbers: range) -> None:
        for number in numbers:
            for serial in serials:
                await publisher.publish(f"amr/{serial}/rd", one_reading(serial, number))

    async def story() -> None:
        async with head_end(broker) as listener:
            await listener.leave()
            async with BulkPublisher("127.0.0.1", broker.port, connections=2) as publisher:
                await publish(publisher, range(300))
                broker.kill()
                broker.start()
                await publish(publisher, range(300, 600))
                assert await publisher.drain() == 1_800
                assert publisher.republished > 0
            await broker.wait_ready()
            await listener.listen()
            wanted = {(T0 + number, number) for number in range(600)}
            await listener.wait_for(lambda: all(set(listener.readings_of(serial)) == wanted for serial in serials))
            for serial in serials:
                seen = [wh for _, wh in listener.readings_of(serial)]
                assert list(dict.fromkeys(seen)) == list(range(600))

    asyncio.run(story())


def test_bulk_publisher_gives_up_on_a_broker_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its last try the failure reaches the caller."""
    monkeypatch.setattr(bulk, "TRIES_MAX", 2)

    async def story() -> None:
        async with BulkPublisher("127.0.0.1", _free_port(), connections=1):
            pytest.fail("entered without a broker")

    with pytest.raises(BrokerUnreachable, match="in 2 tries"):
        asyncio.run(story())


def test_bulk_publisher_refused_by_the_broker_does_not_try_again() -> None:
    """Wrong credentials do not become right by repetition."""
    connects: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connects.append(await reader.read(100))
        writer.write(b"\x20\x02\x00\x05")
        await reader.read()
        writer.close()

    async def story() -> None:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, BulkPublisher("127.0.0.1", port, connections=1, username="a", password="b"):
            pytest.fail("entered although refused")

    with pytest.raises(BrokerRefused, match="got 5"):
        asyncio.run(story())
    assert len(connects) == 1


def test_publish_and_connect_frames_have_their_published_layout() -> None:
    """Lengths, flags and fields stand where MQTT 3.1.1 puts them."""
    assert encode_publish("a/b", b"xy", 10) == b"\x32\x09\x00\x03a/b\x00\x0axy"
    assert encode_publish("a", bytes(200), 1)[:3] == b"\x32\xcd\x01"
    assert encode_connect("id", None, None) == b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x00\x00\x02id"
    assert encode_connect("id", "u", "p") == b"\x10\x14\x00\x04MQTT\x04\xc2\x00\x00\x00\x02id\x00\x01u\x00\x01p"


@given(st.lists(st.tuples(st.integers(1, 65_535), st.binary(max_size=300)), max_size=5), st.integers(0, 200))
def test_packets_are_taken_whole_whatever_way_the_bytes_arrive(messages: list[tuple[int, bytes]], cut: int) -> None:
    """Every strict prefix of a packet waits in the buffer for the rest."""
    stream = b"".join(encode_publish("t", payload, packet_id) for packet_id, payload in messages)
    buffer = bytearray(stream[:cut])
    packets = take_packets(buffer)
    buffer += stream[cut:]
    packets += take_packets(buffer)
    assert packets == [(0x32, b"\x00\x01t" + number.to_bytes(2) + payload) for number, payload in messages]
    assert not buffer


@pytest.mark.parametrize("cut", range(5))
def test_every_strict_prefix_of_a_long_packet_is_left_waiting(cut: int) -> None:
    """A length cut in its middle is not yet a length."""
    buffer = bytearray(encode_publish("t", bytes(20_000), 1)[:cut])
    assert take_packets(buffer) == []
    assert len(buffer) == cut


def test_length_of_more_than_four_bytes_is_malformed() -> None:
    """A peer that does not speak MQTT is cut off."""
    with pytest.raises(Malformed):
        take_packets(bytearray(b"\x40\xff\xff\xff\xff\x01"))
