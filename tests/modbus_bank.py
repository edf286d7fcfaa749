"""A bank of Modbus registers for tests, with its own encoding of values: struct and decimals, none of ours."""

from __future__ import annotations

import struct
from decimal import ROUND_HALF_EVEN, Decimal

from protocols.modbus.maps import Register, RegisterMap
from protocols.modbus.values import RegisterType, WordOrder

_FORMATS = {
    RegisterType.U16: ">H",
    RegisterType.I16: ">h",
    RegisterType.U32: ">I",
    RegisterType.ACC32: ">I",
    RegisterType.I32: ">i",
    RegisterType.U64: ">Q",
    RegisterType.I64: ">q",
    RegisterType.F32: ">f",
    RegisterType.F64: ">d",
}
_PER_UNIT = {
    "Wh": 1, "kWh": 1000, "varh": 1, "kvarh": 1000, "V": 1000, "A": 1000, "W": 1, "kW": 1000,
    "var": 1, "kvar": 1000, "VA": 1, "kVA": 1000, "1": 1000, "%": 10, "Hz": 1000,
}  # fmt: skip


class Bank:
    """Words by function and wire address, answering reads as a meter does: exception 2 where there is none."""

    def __init__(self) -> None:
        self.words: dict[tuple[int, int], bytes] = {}
        self.reads: list[tuple[int, int, int]] = []

    def put(self, function: int, address: int, data: bytes) -> None:
        for offset in range(0, len(data), 2):
            self.words[function, address + offset // 2] = data[offset : offset + 2]

    def put_raw(self, meter: RegisterMap, entry: Register, raw: float) -> None:
        self.put(entry.function, entry.address - meter.base, encoded(entry, raw, entry.order or meter.word_order))

    def put_values(self, meter: RegisterMap, values: dict[str, Decimal]) -> None:
        """Hold values in stored units, as near as the registers can."""
        for entry in meter.registers:
            raw = values[entry.quantity] / per_raw(entry)
            is_float = entry.type in (RegisterType.F32, RegisterType.F64)
            self.put_raw(meter, entry, float(raw) if is_float else int(raw.to_integral_value()))

    def fill(self, function: int, first: int, last: int) -> None:
        """Answer zeros where no register of ours is."""
        for address in range(first, last + 1):
            self.words.setdefault((function, address), b"\0\0")

    def read(self, function: int, address: int, count: int) -> bytes | None:
        self.reads.append((function, address, count))
        words = [self.words.get((function, address + offset)) for offset in range(count)]
        return None if None in words else b"".join(word for word in words if word is not None)

    def answer(self, pdu: bytes) -> bytes:
        function, address, count = struct.unpack(">BHH", pdu)
        words = self.read(function, address, count)
        return bytes((function | 0x80, 2)) if words is None else bytes((function, len(words))) + words


def encoded(entry: Register, raw: float, order: WordOrder) -> bytes:
    """Encode a raw number, then lay its bytes as the order says: A is the highest byte."""
    straight = struct.pack(_FORMATS[entry.type], raw)
    words = [straight[at : at + 2] for at in range(0, len(straight), 2)]
    if order.value in ("cdab", "dcba"):
        words.reverse()
    if order.value in ("badc", "dcba"):
        words = [bytes((word[1], word[0])) for word in words]
    return b"".join(words)


def per_raw(entry: Register) -> Decimal:
    """Return what one raw count is in the stored unit, from unit and scale as a document writes them."""
    return Decimal(entry.factor.numerator) / Decimal(entry.factor.denominator)


def stored(entry: Register, raw: float) -> int:
    """Return the stored value of a raw number, by decimals."""
    form = _FORMATS[entry.type]
    number = raw if isinstance(raw, int) else struct.unpack(form, struct.pack(form, raw))[0]
    return int((Decimal(number) * per_raw(entry)).quantize(Decimal(1), ROUND_HALF_EVEN))


def of_unit(value: str, unit: str) -> Decimal:
    """Return a value of a unit in the stored unit."""
    return Decimal(value) * _PER_UNIT[unit]


def household(meter: RegisterMap, *, volts: str, amperes: str, factor: str, import_kwh: str) -> dict[str, Decimal]:
    """Return what a meter shows of a home: the same load on each of its phases."""
    voltage, current, pf = (Decimal(text) for text in (volts, amperes, factor))
    phases = Decimal(meter.phases)
    energy = Decimal(import_kwh) * 1000
    sine = (1 - pf * pf).sqrt()
    totals = {
        "voltage": voltage * 1000,
        "current": current * 1000,
        "power": voltage * current * pf,
        "apparent": voltage * current,
        "reactive": voltage * current * sine,
        "pf": pf * 1000,
        "import": energy,
        "export": energy / 50,
        "freq": Decimal(49_980),
    }
    values = {}
    for entry in meter.registers:
        stem, _, rest = entry.quantity.partition("_")
        is_phase = rest.startswith("l")
        value = totals[stem]
        if (
            "_l12_" in entry.quantity
            or "_l23_" in entry.quantity
            or "_l31_" in entry.quantity
            or "_ll_" in entry.quantity
        ):
            value *= Decimal(3).sqrt()
        elif stem in ("import", "export"):
            value = value / phases if is_phase else value
        elif stem in ("current", "power", "apparent", "reactive") and not is_phase:
            value *= phases
        values[entry.quantity] = value
    return values
