"""A simulated Modbus meter of any mapped make: a home's load in, registers out, and a relay that cuts the load.

Stage: what a line's requests reach. The load and the time of each request enter; values leave as the map's registers,
encoded by `meter_sim.modbus_registers`. A relay is the meter's own, or a module beside it on the line. Integers only;
never a connection, never a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Final, Protocol

from meter_sim.modbus_faults import LineFault, ModbusFault
from meter_sim.modbus_load import MS_PER_HOUR, Load
from meter_sim.modbus_registers import RegisterBank, encode, ordered, text_registers
from meter_sim.modbus_sunspec import SunSpec, SunSpecRegisters
from meter_sim.modbus_wire import (
    COIL_OFF,
    COIL_ON,
    READ_COILS,
    READ_DISCRETE,
    READ_HOLDING,
    READ_INPUT,
    WRITE_COIL,
    WRITE_REGISTER,
    Exceptional,
    refusal,
)
from protocols.modbus.maps import Register, RegisterMap, RelayKind, RelayMap

# Registers are worked out anew at most once a second, as a meter does.
REFRESH_MS: Final = 1_000
# How a home's load lies on three phases, in percent, and how far each phase's voltage is from the recorded one.
_PHASE_SHARES: Final = {"l1": 40, "l2": 35, "l3": 25}
_PHASE_OFFSETS_MV: Final = {"l1": 0, "l2": 700, "l3": -600}
# Energy is counted in hundredths of a W ms, so that no share of a load is lost between two looks.
_COUNTS_PER_WH: Final = 100 * MS_PER_HOUR
_OTHER_ORDER: Final = {"abcd": "cdab", "cdab": "abcd", "badc": "dcba", "dcba": "badc"}
_NO_NUMBER: Final = {"f32": "7fc00000", "f64": "7ff8000000000000"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterPlate:
    """What is fixed for a meter when it is installed.

    Units: `scale_percent` is how much of the load's power the home draws; `offset_ms` is how far into the load it
    begins, so that homes on one profile differ. Invariants: `map` has the base and the word order that this meter
    really has; a SunSpec meter has no map, but a model.
    """

    serial_number: int
    map: RegisterMap | SunSpec
    load: Load
    register_wh: int = 0
    offset_ms: int = 0
    scale_percent: int = 100


class Switched(Protocol):
    """What a relay cuts."""

    @property
    def is_supplied(self) -> bool:
        """Tell whether supply flows."""

    def switch(self, supplied: bool, now_ms: int) -> None:
        """Let supply flow, or cut it."""


class MapRegisters:
    """The registers of a map, holding any values.

    Invariants: what the map does not name is not there; a value that was never written reads as zero.
    """

    def __init__(self, register_map: RegisterMap, *, serial_number: int) -> None:
        self.map = register_map
        entries = [*register_map.registers, *_plates(register_map)]
        widths = {(entry.function, register_map.wire_address(entry)): entry.words for entry in entries}
        # A make whose values have a scale of their own shows them at scale 0: the power of ten reads as zero.
        widths |= {
            (entry.function, entry.scale_address - register_map.base): 1
            for entry in entries
            if entry.scale_address is not None
        }
        self._bank = RegisterBank(widths, gap_max=register_map.gap_words_max)
        # Some makes answer at an address inside a value with what they are, if that register alone is read.
        self._alone: dict[tuple[int, int, int], bytes] = {}
        for entry in _plates(register_map):
            self._engrave(entry, self._plate_bytes(entry, serial_number))

    def write(self, values: Mapping[str, int | None], *, words_swapped: bool = False) -> None:
        """Put values where the map has them; None as the make says that it has none."""
        for entry in self.map.registers:
            value = values.get(entry.quantity)
            order = self._order(entry)
            data = (
                ordered(_nothing(entry), order)
                if value is None
                else encode(
                    value,
                    kind=entry.type.value,
                    order=_OTHER_ORDER[order] if words_swapped else order,
                    step=entry.factor,
                )
            )
            self._bank.write(entry.function, self.map.wire_address(entry), data)

    def read(self, function: int, address: int, count: int) -> bytes | None:
        """Return so many registers; None if the make has not all of them."""
        alone = self._alone.get((function, address, count))
        return self._bank.read(function, address, count) if alone is None else alone

    def _order(self, entry: Register) -> str:
        return (entry.order or self.map.word_order).value

    def _plate_bytes(self, entry: Register, serial_number: int) -> bytes:
        identity = self.map.identity
        is_identity = identity is not None and entry is identity.register
        told: int | str = identity.values[0] if identity is not None and is_identity else serial_number
        order = self._order(entry)
        if entry.type.value == "text":
            swapped = "badc" if order in ("badc", "dcba") else "abcd"
            return ordered(text_registers(str(told), entry.words), swapped)
        return encode(int(told), kind=entry.type.value, order=order, step=entry.factor or Fraction(1))

    def _engrave(self, entry: Register, data: bytes) -> None:
        address = self.map.wire_address(entry)
        self._alone[entry.function, address, entry.words] = data
        inside = any(
            entry.function == other.function
            and self.map.wire_address(other) < address + entry.words
            and address < self.map.wire_address(other) + other.words
            for other in self.map.registers
        )
        if not inside:
            self._bank.write(entry.function, address, data)


class ModbusMeter:
    """A meter as a state machine.

    Invariants: energy counts up with the load while supply flows and stands still while it does not; registers are
    those of an instant at most `REFRESH_MS` ago; only the relay can be written.
    """

    def __init__(self, plate: MeterPlate, *, now_ms: int) -> None:
        self.plate = plate
        self.is_supplied = True
        self.requests = 0
        # Faults that a test may set: a contact that does not move, and values the meter says it has not.
        self.relay_stuck = False
        self.lacking: frozenset[str] = frozenset()
        self._fault: LineFault | None = None
        self._registers = _registers_of(plate)
        self._relay = None if plate.map.relay is None else RelayPoints(plate.map.relay, {plate.map.relay.address: self})
        self._used_energy = 0
        self._used_reactive = 0
        self._reset_wh = plate.register_wh
        self._counted_ms = now_ms
        self._shown_ms: int | None = None

    @property
    def fault(self) -> LineFault | None:
        """What it suffers from."""
        return self._fault

    def suffer(self, fault: LineFault | None, now_ms: int) -> None:
        """Begin to suffer from something, or be repaired."""
        self._count(now_ms)
        self._fault = fault
        if fault is not None and fault.fault is ModbusFault.RESET:
            self._reset_wh = -(self._used_energy // _COUNTS_PER_WH)
        if fault is None or fault.fault is not ModbusFault.STUCK:
            self._show(now_ms)

    def switch(self, supplied: bool, now_ms: int) -> None:
        """Let supply flow, or cut it."""
        self._count(now_ms)
        if not self.relay_stuck:
            self.is_supplied = supplied
            self._shown_ms = None

    def register_wh(self, now_ms: int) -> int:
        """Return the energy register, in whole Wh."""
        self._count(now_ms)
        return self._reset_wh + self._used_energy // _COUNTS_PER_WH

    def values(self, now_ms: int) -> dict[str, int | None]:
        """Return every quantity a make could ask for, in the unit readings are kept in."""
        self._count(now_ms)
        drawn = self.plate.load.at(now_ms + self.plate.offset_ms)
        share = self.plate.scale_percent if self.is_supplied else 0
        power_w, reactive_var = drawn.power_w * share // 100, drawn.reactive_var * share // 100
        import_wh = self._reset_wh + self._used_energy // _COUNTS_PER_WH
        common: dict[str, int | None] = {
            "import_wh": import_wh,
            "export_wh": 0,
            "import_varh": self._used_reactive // _COUNTS_PER_WH,
            "export_varh": 0,
            # 49.95 to 50.05 Hz, moving on with each minute.
            "freq_mhz": 49_950 + now_ms // 60_000 * 7 % 101,
        }
        if self.plate.map.phases == 1:
            measured = _measured(power_w, reactive_var, drawn.voltage_mv)
        else:
            measured = _three_phases(power_w, reactive_var, drawn.voltage_mv, import_wh)
        return common | measured | dict.fromkeys(self.lacking, None)

    def answer(self, pdu: bytes, now_ms: int) -> bytes:
        """Answer a request, by an exception if it asks for what the make has not."""
        self.requests += 1
        if self._relay is not None and (said := self._relay.answer(pdu, now_ms)) is not None:
            return said
        if pdu[0] not in (READ_HOLDING, READ_INPUT):
            return refusal(pdu, Exceptional.FUNCTION)
        address, count = int.from_bytes(pdu[1:3]), int.from_bytes(pdu[3:5])
        if len(pdu) != 5 or not 1 <= count <= self.plate.map.words_max:
            return refusal(pdu, Exceptional.VALUE)
        if self._shown_ms is None or not 0 <= now_ms - self._shown_ms < REFRESH_MS:
            self._show(now_ms)
        found = self._registers.read(pdu[0], address, count)
        if found is None:
            return refusal(pdu, Exceptional.ADDRESS)
        return bytes((pdu[0], len(found))) + found

    def _show(self, now_ms: int) -> None:
        """Work the registers out anew, unless they stand still."""
        fault = None if self._fault is None else self._fault.fault
        if fault is not ModbusFault.STUCK or self._shown_ms is None:
            self._registers.write(self.values(now_ms), words_swapped=fault is ModbusFault.WRONG_WORDS)
        self._shown_ms = now_ms

    def _count(self, now_ms: int) -> None:
        """Count the energy up to now."""
        if now_ms <= self._counted_ms:
            return
        if self.is_supplied:
            load, before_ms, at_ms = self.plate.load, self._counted_ms, now_ms
            before_ms, at_ms = before_ms + self.plate.offset_ms, at_ms + self.plate.offset_ms
            percent = self.plate.scale_percent
            self._used_energy += (load.energy_w_ms(at_ms) - load.energy_w_ms(before_ms)) * percent
            self._used_reactive += (load.reactive_var_ms(at_ms) - load.reactive_var_ms(before_ms)) * percent
        self._counted_ms = now_ms


class RelayPoints:
    """The coils or registers by which relays are switched.

    Invariants: a coil or register reads as the contact stands, whatever was written.
    """

    def __init__(self, relay: RelayMap, switched: Mapping[int, Switched]) -> None:
        self._relay = relay
        self._switched = switched

    def answer(self, pdu: bytes, now_ms: int) -> bytes | None:
        """Answer what is asked of a relay; None if the request is about something else."""
        if self._relay.kind is RelayKind.COIL:
            return self._coil(pdu, now_ms)
        return self._register(pdu, now_ms)

    def _coil(self, pdu: bytes, now_ms: int) -> bytes | None:
        if pdu[0] in (READ_COILS, READ_DISCRETE):
            return self._read_coils(pdu)
        if pdu[0] != WRITE_COIL:
            return None
        address, value = int.from_bytes(pdu[1:3]), int.from_bytes(pdu[3:5])
        if address not in self._switched:
            return refusal(pdu, Exceptional.ADDRESS)
        if value not in (COIL_ON, COIL_OFF):
            return refusal(pdu, Exceptional.VALUE)
        self._switched[address].switch((value == COIL_ON) == bool(self._relay.on), now_ms)
        return pdu

    def _read_coils(self, pdu: bytes) -> bytes:
        address, count = int.from_bytes(pdu[1:3]), int.from_bytes(pdu[3:5])
        wanted = range(address, address + count)
        if pdu[0] != self._relay.read_function:
            return refusal(pdu, Exceptional.FUNCTION)
        if not count or any(each not in self._switched for each in wanted):
            return refusal(pdu, Exceptional.ADDRESS)
        bits = sum(self._position(each) << number for number, each in enumerate(wanted))
        return bytes((pdu[0], -(-count // 8))) + bits.to_bytes(-(-count // 8), "little")

    def _register(self, pdu: bytes, now_ms: int) -> bytes | None:
        address, value = int.from_bytes(pdu[1:3]), int.from_bytes(pdu[3:5])
        if address not in self._switched:
            return None
        if pdu[0] == self._relay.read_function and value == 1:
            return bytes((pdu[0], 2)) + self._position(address).to_bytes(2)
        if pdu[0] != WRITE_REGISTER:
            return None
        if value not in (self._relay.on, self._relay.off):
            return refusal(pdu, Exceptional.VALUE)
        self._switched[address].switch(value == self._relay.on, now_ms)
        return pdu

    def _position(self, address: int) -> int:
        return self._relay.on if self._switched[address].is_supplied else self._relay.off


class RelayModule:
    """A module of relays beside meters on a line: a unit of its own, whose contacts cut the meters' loads."""

    def __init__(self, relay: RelayMap, switched: Mapping[int, Switched]) -> None:
        self.fault: LineFault | None = None
        self.requests = 0
        self._points = RelayPoints(relay, switched)

    def answer(self, pdu: bytes, now_ms: int) -> bytes:
        """Answer a request, by an exception if it is not about its relays."""
        self.requests += 1
        said = self._points.answer(pdu, now_ms)
        return refusal(pdu, Exceptional.FUNCTION) if said is None else said


def _registers_of(plate: MeterPlate) -> MapRegisters | SunSpecRegisters:
    if isinstance(plate.map, SunSpec):
        return SunSpecRegisters(plate.map, serial_number=plate.serial_number)
    return MapRegisters(plate.map, serial_number=plate.serial_number)


def _plates(register_map: RegisterMap) -> list[Register]:
    """Return the registers that tell what the meter is and which one."""
    identity = [] if register_map.identity is None else [register_map.identity.register]
    return identity + ([] if register_map.serial is None else [register_map.serial])


def _nothing(entry: Register) -> bytes:
    """Return what the make sends, high byte first, for a value that it has not."""
    if entry.invalid:
        return min(entry.invalid).to_bytes(2 * entry.words)
    return bytes.fromhex(_NO_NUMBER.get(entry.type.value, "0000" * entry.words))


def _measured(power_w: int, reactive_var: int, voltage_mv: int, suffix: str = "") -> dict[str, int | None]:
    """Return what one phase shows; the current follows from the powers, as recordings round it to a fifth of an A."""
    apparent_va = isqrt(power_w * power_w + reactive_var * reactive_var)
    return {
        f"voltage{suffix}_mv": voltage_mv,
        f"current{suffix}_ma": apparent_va * 1_000_000 // voltage_mv,
        f"power{suffix}_w": power_w,
        f"reactive{suffix}_var": reactive_var,
        f"apparent{suffix}_va": apparent_va,
        f"pf{suffix}_milli": power_w * 1_000 // apparent_va if apparent_va else 1_000,
    }


def _three_phases(power_w: int, reactive_var: int, voltage_mv: int, import_wh: int) -> dict[str, int | None]:
    """Share a load out over three phases; totals are those of all."""
    of_phases: dict[str, int | None] = {}
    current_ma = 0
    for phase, share in _PHASE_SHARES.items():
        mv = voltage_mv + _PHASE_OFFSETS_MV[phase]
        measured = _measured(power_w * share // 100, reactive_var * share // 100, mv, f"_{phase}")
        measured |= {f"import_{phase}_wh": import_wh * share // 100, f"export_{phase}_wh": 0}
        current_ma += measured[f"current_{phase}_ma"] or 0
        of_phases |= measured
    line_mv = isqrt(3 * voltage_mv * voltage_mv)
    totals = _measured(power_w, reactive_var, voltage_mv) | {"current_ma": current_ma}
    return of_phases | totals | {f"voltage_{pair}_mv": line_mv for pair in ("ll", "l12", "l23", "l31")}
