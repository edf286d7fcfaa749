"""One polled meter: its registers read in blocks, judged, and told as a native reading.

Stage: between a line and the outbox. A poll asks for the blocks of the meter's map, turns words into quantities, and
gives a message, or says why there is none. What no meter of the model can have measured, a wrong word order above all,
is noticed and not published. Decides nothing about money: the head-end judges the reading as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from db.gateways import PolledMeter
from headend.edges.gateway_identity import OtherDevice, require_device, require_serial
from headend.edges.gateway_metrics import GatewayMetrics, Outcome
from headend.edges.gateway_relay import Ask, RelayDesk, RelayPort
from headend.edges.modbus_line import NoAnswer, Read
from headend.polling import RegisterWatch, Schedule, Verdict, backoff_s
from protocols.errors import FrameError
from protocols.modbus.blocks import BlockRead, decode_block, plan_reads, polled_quantities
from protocols.modbus.frames import ModbusExceptionAnswer, registers_of
from protocols.modbus.maps import RegisterMap, coil_at
from protocols.modbus.plausible import judge
from protocols.modbus.quantities import IMPORT, native_channels
from protocols.modbus.sunspec import SUNSPEC, discover
from protocols.modbus.values import WordOrder
from protocols.native import Readings, Relay, encode_readings
from protocols.topics import reading_topic

_DETAIL_LENGTH_MAX: Final = 200
# Source: Modbus application protocol 1.1b3, 7.
_ILLEGAL_ADDRESS: Final = 2

# A topic and its payload.
Message = tuple[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """What a poll gave: a reading's message, or none and why."""

    outcome: Outcome
    message: Message | None = None
    detail: str | None = None


class MeterUnusable(Exception):
    """A meter cannot be polled as it is entered; the message says what is missing."""

    code = "meter_unusable"


class PolledUnit:
    """One meter on a line.

    Invariants: `schedule` and `watch` outlive a session of the line; `seq` counts the readings from 1. Of a relay that
    does not answer nothing is asked for a while, so that it never delays the readings. Nothing is published before the
    device has been asked who it is.
    """

    def __init__(
        self,
        meter: PolledMeter,
        maps: Mapping[str, RegisterMap],
        schedule: Schedule,
        metrics: GatewayMetrics,
        clock_ms: Callable[[], int],
    ) -> None:
        self.meter = meter
        self.schedule = schedule
        self.watch = RegisterWatch(rated_w=meter.rated_w)
        self.seq = 0
        self.desk = RelayDesk(port=relay_port_of(meter, maps), epoch=meter.supply_epoch, order_id=meter.supply_order_id)
        self._map: RegisterMap | None = None
        self._blocks: list[tuple[BlockRead, Read]] = []
        if not meter.model.startswith(SUNSPEC):
            self._read_by(usable_map(meter, maps))
        self._proven = False
        self._doubted = False
        self._is_known = False
        self._topic = reading_topic(meter.serial)
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._relay_failures = 0
        self._relay_at_ms = 0

    def go_on_from(self, former: PolledUnit) -> None:
        """Take over what the same meter has counted, shown and obeyed before its line was entered anew."""
        self.seq = former.seq
        self.watch.known = former.watch.known
        if former.desk.epoch > self.desk.epoch:
            self.desk.epoch, self.desk.order_id = former.desk.epoch, former.desk.order_id

    def may_be_another(self) -> None:
        """Note that another device may stand in the meter's place: it is asked who it is before it is read again."""
        self._is_known = False
        if self.meter.model.startswith(SUNSPEC) and self.meter.device_serial is not None:
            self._map = None

    async def poll(self, ask: Ask) -> Polled:
        """Read the meter once, or twice where the register is in doubt.

        Raises: LineLost when the line went away.
        """
        try:
            return await self._polled(ask)
        except NoAnswer as silent:
            self.may_be_another()
            return Polled(outcome=Outcome.SILENT, detail=str(silent))
        except ModbusExceptionAnswer as refused:
            if refused.exception_code == _ILLEGAL_ADDRESS and self._map is not None and not self._proven:
                # It may refuse words between its registers that it does not know: the next poll reads none of them.
                self._blocks = _reads_of(self._map, confirmed=self.meter.confirmed, gap_words_max=0)
            return Polled(outcome=Outcome.REFUSED, detail=str(refused))
        except OtherDevice as other:
            return Polled(outcome=Outcome.OTHER_METER, detail=str(other)[:_DETAIL_LENGTH_MAX])
        except MeterUnusable as unusable:
            return Polled(outcome=Outcome.REFUSED, detail=str(unusable))
        except FrameError as wrong:
            return Polled(outcome=Outcome.MALFORMED, detail=str(wrong)[:_DETAIL_LENGTH_MAX])
        finally:
            self.watch.forget_doubt()

    def _read_by(self, made: RegisterMap) -> RegisterMap:
        self._map, self._blocks = made, _reads_of(made, confirmed=self.meter.confirmed)
        return made

    async def _discover(self, ask: Ask) -> RegisterMap:
        """Let a SunSpec device say where its meter is; it is asked once, its answer holds until it makes no sense.

        Raises: MeterUnusable where it has no such meter; OtherDevice; LineError; FrameError.
        """
        discovery = discover()
        words: bytes | None = None
        try:
            while True:
                wanted = discovery.send(words)
                answer = await ask(self.meter.unit, Read.of(wanted.function, wanted.address, wanted.count))
                try:
                    words = registers_of(answer)
                except ModbusExceptionAnswer:
                    words = None
        except StopIteration as ended:
            found = ended.value
        if found is not None:
            require_serial(self.meter.device_serial, found.serial)
        for made in found.meters if found is not None else ():
            if self.meter.model in (SUNSPEC, made.model):
                return self._read_by(made)
        raise MeterUnusable(f"model {self.meter.model}: expected such a meter in a SunSpec device, got none")

    async def _know(self, ask: Ask) -> None:
        """Let the device say who it is, and a SunSpec device where its meter is; once, until it may be another.

        Raises: OtherDevice; MeterUnusable; LineError; FrameError.
        """
        if self._map is None:
            await self._discover(ask)
        elif not self._is_known and not self.meter.model.startswith(SUNSPEC):
            await require_device(self._map, self.meter.unit, self.meter.device_serial, ask)
        self._is_known = True

    async def _polled(self, ask: Ask) -> Polled:
        await self._know(ask)
        relay = await self._relay(ask)
        began_known = self.watch.known
        doubt = None
        for _ in range(2):
            values, read_at_ms = await self._read(ask)
            doubt = self._doubt(values)
            if doubt is not None:
                if self._map is None:
                    break
                continue
            register_wh = values[IMPORT]
            assert register_wh is not None, f"meter {self.meter.serial}: without a register it is in doubt"
            verdict = self.watch.judge(read_at_ms, register_wh)
            if verdict in (Verdict.ACCEPTED, Verdict.CONFIRMED):
                self._proven = True
                self._count_doubt(verdict, began_known)
                return Polled(outcome=Outcome.READ, message=(self._topic, self._payload(values, read_at_ms, relay)))
            self._doubted = True
            # What moves like this may be another meter, or the same with its words another way round.
            self._proven = False
            if began_known is not None:
                self.may_be_another()
                await self._know(ask)
        if doubt is not None:
            return Polled(outcome=Outcome.IMPLAUSIBLE, detail=doubt)
        self._metrics.doubted("dropped")
        return Polled(outcome=Outcome.DROPPED, detail="register: expected two reads that agree, got others")

    def _doubt(self, values: Mapping[str, int | None]) -> str | None:
        """Say what no meter of the model can have measured, until one read has made sense; later its register alone."""
        made = self._map
        assert made is not None, "what was read was read by a map"
        if self._proven:
            return None if values.get(IMPORT) is not None else f"{made.model}: {IMPORT}: expected one, got none"
        judgement = judge(made, values)
        # Of a new meter that shows power and energy alone nothing can vouch but who confirmed how it is read.
        vouched = bool(judgement.vouched) or (self.meter.confirmed and not made.has_vouching)
        if not judgement.doubts and vouched and values.get(IMPORT) is not None:
            return None
        worst = judgement.doubts[0] if judgement.doubts else None
        self._metrics.implausible(made.model, worst.quantity if worst else "nothing_vouches")
        said = worst or "expected a voltage, frequency or register that shows a meter in service, got none"
        if made.model.startswith(SUNSPEC):
            # The device may have been exchanged for one that keeps its meter elsewhere.
            self._map = None
        order = made.word_order.value
        return f"{made.model}, base {made.base}, order {order}: {said}"[:_DETAIL_LENGTH_MAX]

    def _count_doubt(self, verdict: Verdict, began_known: tuple[int, int] | None) -> None:
        """Count a register that the second read decided on; the first one of all is no doubt."""
        if self._doubted and began_known is not None:
            self._metrics.doubted("confirmed" if verdict is Verdict.CONFIRMED else "corrected")
        self._doubted = False

    def _payload(self, values: Mapping[str, int | None], read_at_ms: int, relay: Relay | None) -> bytes:
        channels = native_channels(values)
        register_wh = channels[IMPORT]
        assert register_wh is not None, f"meter {self.meter.serial}: a judged reading has its register"
        self.seq += 1
        return encode_readings(
            Readings(
                serial=self.meter.serial,
                seq=self.seq,
                clock_ms=None,
                read_at_ms=[read_at_ms],
                import_wh=[register_wh],
                export_wh=[channels["export_wh"]],
                voltage_mv=[channels["voltage_mv"]],
                current_ma=[channels["current_ma"]],
                power_w=[channels["power_w"]],
                pf_milli=[channels["pf_milli"]],
                freq_mhz=[channels["freq_mhz"]],
                relay=relay,
                credit_minor=None,
                events=(),
            )
        )

    async def _read(self, ask: Ask) -> tuple[dict[str, int | None], int]:
        """Read all blocks; also return when the energy register was read."""
        made = self._map
        assert made is not None, "a map is found before it is read by"
        values: dict[str, int | None] = {}
        read_at_ms = 0
        for block, read in self._blocks:
            data = registers_of(await ask(self.meter.unit, read))
            found = decode_block(made, block, data)
            if IMPORT in found:
                read_at_ms = self._clock_ms()
            values |= found
        return values, read_at_ms

    async def _relay(self, ask: Ask) -> Relay | None:
        """Read the relay, unless there is none or it has not answered lately."""
        port = self.desk.port
        if port is None or self._clock_ms() < self._relay_at_ms:
            return None
        try:
            relay = await port.read(ask)
        except (NoAnswer, FrameError):
            self._relay_failures += 1
            self._relay_at_ms = self._clock_ms() + int(backoff_s(self._relay_failures) * 1000)
            return None
        self._relay_failures = 0
        self.desk.relay = relay or self.desk.relay
        return relay


def usable_map(meter: PolledMeter, maps: Mapping[str, RegisterMap]) -> RegisterMap:
    """Return the map that a meter is read by, as a probe has found it.

    Raises: MeterUnusable for a model without a map, or one that a probe has to confirm first.
    """
    made = maps.get(meter.model)
    if made is None:
        raise MeterUnusable(f"model: expected one of the maps, got {meter.model!r}")
    if made.is_relay_only:
        raise MeterUnusable(f"model {meter.model}: expected a meter, got a relay")
    if made.doubts and not meter.confirmed:
        raise MeterUnusable(f"model {meter.model}: expected {', '.join(made.doubts)} confirmed by a probe")
    order = None if meter.word_order is None else WordOrder(meter.word_order)
    return made.variant(base=meter.base, word_order=order)


def relay_port_of(meter: PolledMeter, maps: Mapping[str, RegisterMap]) -> RelayPort | None:
    """Return where a meter's relay is: on a module of its own, in the meter itself, or nowhere.

    Raises: MeterUnusable for a module whose map has no relay.
    """
    if meter.relay_model is None or meter.relay_unit is None:
        own = maps[meter.model].relay if meter.model in maps else None
        return None if own is None else RelayPort(unit=meter.unit, map=own)
    module = maps.get(meter.relay_model)
    if module is None or module.relay is None:
        raise MeterUnusable(f"relay model: expected a map with a relay, got {meter.relay_model!r}")
    relay = module.relay if meter.relay_address is None else coil_at(module.relay, meter.relay_address)
    return RelayPort(unit=meter.relay_unit, map=relay)


def _reads_of(made: RegisterMap, *, confirmed: bool, gap_words_max: int | None = None) -> list[tuple[BlockRead, Read]]:
    blocks = plan_reads(made, polled_quantities(made), confirmed=confirmed, gap_words_max=gap_words_max)
    return [(block, Read.of(block.function, block.address, block.count)) for block in blocks]
