"""The people and meters of `bench supply`: readings at a steady pace, meters that obey, a shop that sells recharges.

Stage: outside the product, on its two borders. Readings and answers go in over MQTT, recharges over HTTP; commands come
out of the broker, as meters see them. Each side keeps the instants that the report is made of, in nanoseconds of the
clock that database and dispatcher share on one machine.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiomqtt
import httpx

from billing.money import format_minor
from loadtests.population import readings_at, serial_of
from meter_sim.edges.bulk import BulkPublisher
from meter_sim.meter import SimulatedMeter
from meter_sim.token_reader import TokenReader
from protocols.columns import Int64Column
from protocols.native import (
    Command,
    CommandReply,
    MeterEvent,
    OrderKind,
    Readings,
    Relay,
    decode_command,
    encode_event,
    encode_readings,
    encode_reply,
)
from protocols.topics import event_topic, reading_topic, split_topic
from vending.sts.misty1 import KEY_BYTES

# Writes of a steady load: 100 a second are fine enough beside latencies of tens of milliseconds.
TICKS_PER_S: Final = 100
# A city's shops sell at once; more than the API has connections to the database.
SELLERS: Final = 16
RECHARGE_MINOR: Final = 50_000
VEND_TIMEOUT_S: Final = 30.0
# A till asks again under the same message id after a 503; the tenth such answer is a failure of the run.
VEND_TRIES_MAX: Final = 10
_COMMANDS: Final = "amr/+/cmd"
# Nobody types a token: one reader will do for all meters.
_NO_TOKENS: Final = TokenReader(bytes(KEY_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How steadily some messages were written: those of number `k` left at about `sent_ns[k // chunk]`."""

    messages: int
    seconds: float
    behind_ms_max: float
    chunk: int
    sent_ns: Sequence[int]

    def sent_at_ns(self, number: int) -> int:
        """Return when a message was handed over, not before the ones that it left with."""
        return self.sent_ns[number // self.chunk]


def encoded_sweep(numbers: Int64Column, step: int, opened_ms: int) -> list[tuple[str, bytes]]:
    """Encode one reading each of some meters, in their order: topic and payload."""
    columns = readings_at(numbers, step, opened_ms)
    fields = (columns.at_ms, columns.import_wh, columns.voltage_mv, columns.current_ma, columns.power_w)
    rows = zip(numbers, *fields, columns.pf_milli, columns.freq_mhz, strict=True)
    return [_encoded(*(int(value) for value in row)) for row in rows]


def _encoded(
    number: int,
    at_ms: int,
    import_wh: int,
    voltage_mv: int,
    current_ma: int,
    power_w: int,
    pf_milli: int,
    freq_mhz: int,
) -> tuple[str, bytes]:
    serial = serial_of(number)
    readings = Readings(
        serial=serial,
        seq=None,
        clock_ms=at_ms,
        read_at_ms=[at_ms],
        import_wh=[import_wh],
        export_wh=[None],
        voltage_mv=[voltage_mv],
        current_ma=[current_ma],
        power_w=[power_w],
        pf_milli=[pf_milli],
        freq_mhz=[freq_mhz],
        relay=None,
        credit_minor=None,
        events=(),
    )
    return reading_topic(serial), encode_readings(readings)


async def publish_at(publisher: BulkPublisher, messages: Sequence[tuple[str, bytes]], per_second: int) -> Pace:
    """Publish on a schedule that waits for nobody: who falls behind writes the next ones at once."""
    chunk = max(1, per_second // TICKS_PER_S)
    began_s, behind_s, sent_ns = time.monotonic(), 0.0, []
    for first in range(0, len(messages), chunk):
        late_s = time.monotonic() - began_s - first / per_second
        behind_s = max(behind_s, late_s)
        await asyncio.sleep(max(0.0, -late_s))
        sent_ns.append(time.time_ns())
        for topic, payload in messages[first : first + chunk]:
            await publisher.publish(topic, payload)
    return Pace(
        messages=len(messages),
        seconds=time.monotonic() - began_s,
        behind_ms_max=behind_s * 1_000,
        chunk=chunk,
        sent_ns=sent_ns,
    )


@dataclass(slots=True, kw_only=True)
class ListeningMeters:
    """All meters' ears on one connection: each obeys like a simulated meter and answers at QoS 1.

    Invariants: `arrived_ns` has the first arrival of each order; `on_cut` is called at that of each cut-off, before
    the meter answers.
    """

    publisher: BulkPublisher
    on_cut: Callable[[str, int], None]
    arrived_ns: dict[int, int] = field(default_factory=dict)
    repeated: int = 0
    listens: asyncio.Event = field(default_factory=asyncio.Event)
    _meters: dict[str, SimulatedMeter] = field(default_factory=dict)

    async def listen(self, host: str, port: int) -> None:
        """Obey until cancelled."""
        client = aiomqtt.Client(
            host, port, identifier=f"bench-{secrets.token_hex(4)}", protocol=aiomqtt.ProtocolVersion.V311
        )
        async with client:
            await client.subscribe(_COMMANDS, qos=1)
            self.listens.set()
            async for message in client.messages:
                at_ns = time.time_ns()
                assert isinstance(message.payload, bytes), f"command: expected bytes, got {type(message.payload)}"
                serial, _ = split_topic(message.topic.value)
                await self._obey(serial, decode_command(message.payload), at_ns)

    async def _obey(self, serial: str, command: Command, at_ns: int) -> None:
        if command.order_id in self.arrived_ns:
            self.repeated += 1
        else:
            self.arrived_ns[command.order_id] = at_ns
            if command.kind is OrderKind.SUPPLY and command.relay is Relay.OFF:
                self.on_cut(serial, command.order_id)
        for word in self._meter(serial).obey(command, at_ns // 1_000_000):
            await self.publisher.publish(event_topic(serial), _word(word))

    def _meter(self, serial: str) -> SimulatedMeter:
        """Make a meter when it is first spoken to."""
        if serial not in self._meters:
            self._meters[serial] = SimulatedMeter(serial=serial, token_reader=_NO_TOKENS)
        return self._meters[serial]


def _word(word: MeterEvent | CommandReply) -> bytes:
    return encode_event(word) if isinstance(word, MeterEvent) else encode_reply(word)


@dataclass(slots=True, kw_only=True)
class Shop:
    """Sells a recharge for each meter that was cut off, some seconds later, over the vending API.

    Invariants: `asked_ns` has when the first request for a meter was sent; `idle` means that nobody waits.
    """

    http: httpx.AsyncClient
    after_s: float
    asked_ns: dict[str, int] = field(default_factory=dict)
    sold: int = 0
    refused: int = 0
    repeated: int = 0
    _waiting: asyncio.Queue[tuple[float, str, int]] = field(default_factory=asyncio.Queue)
    _owed: int = 0

    def owe(self, serial: str, order_id: int) -> None:
        """Note that a meter was cut off."""
        self._owed += 1
        self._waiting.put_nowait((time.monotonic() + self.after_s, serial, order_id))

    @property
    def idle(self) -> bool:
        """Tell whether everybody who was cut off has been to the shop."""
        return self._owed == self.sold + self.refused

    async def sell(self) -> None:
        """Serve one customer after the other until cancelled."""
        while True:
            due_s, serial, order_id = await self._waiting.get()
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            self.asked_ns.setdefault(serial, time.time_ns())
            if await self._is_sold(serial, f"bench-{order_id}"):
                self.sold += 1
            else:
                self.refused += 1

    async def _is_sold(self, serial: str, message_id: str) -> bool:
        body = {"message_id": message_id, "meter": serial, "amount": format_minor(RECHARGE_MINOR)}
        for _ in range(VEND_TRIES_MAX):
            try:
                answer = await self.http.post("/v1/vends", json=body, timeout=VEND_TIMEOUT_S)
            except httpx.TransportError:
                # A connection that lay idle was closed as it was used again: the same id brings the same answer.
                self.repeated += 1
                continue
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer.status_code == httpx.codes.OK
            self.repeated += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))
        return False
