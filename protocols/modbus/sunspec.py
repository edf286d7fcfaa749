"""SunSpec: a device that tells its own registers, turned into a register map.

Stage: beside the shipped maps. The models of a device are found by walking their headers; a meter model (201 to 204 in
integers with scale registers, 211 to 214 in floating point) becomes a map like any other. Source: sunspec/models,
json/model_1, 201 to 204, 211 to 214.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from protocols.modbus.frames import ADDRESS_MAX, READ_WORDS_MAX
from protocols.modbus.maps import LineDefaults, Rated, Register, RegisterMap, in_wire_order, words_of
from protocols.modbus.quantities import units_of
from protocols.modbus.values import RegisterType, WordOrder, text_of

# What a meter of this kind is called in place of a map's name; its map is found by asking.
SUNSPEC: Final = "sunspec"
FUNCTION: Final = 3
BASES: Final = (40_000, 50_000, 0)
MODELS_MAX: Final = 64  # A device has a dozen; a walk that finds more has lost its way.
_SIGNATURE: Final = b"SunS"
_END: Final = 0xFFFF
_HEADER_WORDS: Final = 2
_NAME_PLATE: Final = 1
# Places of the common model, the name plate: maker, device, serial number; each a text of 16 words.
_MAKER_AT, _DEVICE_AT, _SERIAL_AT, _TEXT_WORDS = 2, 18, 50, 16
_INTEGER_MODELS: Final = {201: 1, 202: 2, 203: 3, 204: 3}
_FLOAT_MODELS: Final = {211: 1, 212: 2, 213: 3, 214: 3}
_PHASES: Final = {**_INTEGER_MODELS, **_FLOAT_MODELS}

# Quantity: place from the model's start, place of its scale, unit.
_INTEGERS: Final[Mapping[str, tuple[int, int, str]]] = {
    "current_ma": (2, 6, "A"),
    "current_l1_ma": (3, 6, "A"),
    "current_l2_ma": (4, 6, "A"),
    "current_l3_ma": (5, 6, "A"),
    "voltage_mv": (7, 15, "V"),
    "voltage_l1_mv": (8, 15, "V"),
    "voltage_l2_mv": (9, 15, "V"),
    "voltage_l3_mv": (10, 15, "V"),
    "voltage_ll_mv": (11, 15, "V"),
    "voltage_l12_mv": (12, 15, "V"),
    "voltage_l23_mv": (13, 15, "V"),
    "voltage_l31_mv": (14, 15, "V"),
    "freq_mhz": (16, 17, "Hz"),
    "power_w": (18, 22, "W"),
    "power_l1_w": (19, 22, "W"),
    "power_l2_w": (20, 22, "W"),
    "power_l3_w": (21, 22, "W"),
    "apparent_va": (23, 27, "VA"),
    "reactive_var": (28, 32, "var"),
    "pf_milli": (33, 37, "%"),
    "export_wh": (38, 54, "Wh"),
    "import_wh": (46, 54, "Wh"),
    "import_l1_wh": (48, 54, "Wh"),
    "import_l2_wh": (50, 54, "Wh"),
    "import_l3_wh": (52, 54, "Wh"),
}
_FLOATS: Final[Mapping[str, tuple[int, str]]] = {
    "current_ma": (2, "A"),
    "current_l1_ma": (4, "A"),
    "current_l2_ma": (6, "A"),
    "current_l3_ma": (8, "A"),
    "voltage_mv": (10, "V"),
    "voltage_l1_mv": (12, "V"),
    "voltage_l2_mv": (14, "V"),
    "voltage_l3_mv": (16, "V"),
    "voltage_ll_mv": (18, "V"),
    "voltage_l12_mv": (20, "V"),
    "voltage_l23_mv": (22, "V"),
    "voltage_l31_mv": (24, "V"),
    "freq_mhz": (26, "Hz"),
    "power_w": (28, "W"),
    "power_l1_w": (30, "W"),
    "power_l2_w": (32, "W"),
    "power_l3_w": (34, "W"),
    "apparent_va": (36, "VA"),
    "reactive_var": (44, "var"),
    "pf_milli": (52, "1"),
    "export_wh": (60, "Wh"),
    "import_wh": (68, "Wh"),
    "import_l1_wh": (70, "Wh"),
    "import_l2_wh": (72, "Wh"),
    "import_l3_wh": (74, "Wh"),
}
_NOT_IMPLEMENTED_I16: Final = 0x8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A read that discovery wants made."""

    function: int
    address: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model of a device: its id, where it starts (at its id) and how many words follow its header."""

    id: int
    address: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovered:
    """What a device says of itself.

    Invariants: `meters` are maps, one for each meter model, in the order of the device.
    """

    maker: str | None
    device: str | None
    serial: str | None
    models: tuple[Model, ...]
    meters: tuple[RegisterMap, ...]


# Yields the reads it wants, is sent their words, or None where the device refused or stayed silent.
Discovery = Generator[Ask, bytes | None, Discovered | None]


def discover() -> Discovery:
    """Look for SunSpec at its three places and walk the models; returns None where there is none."""
    for base in BASES:
        signature = yield Ask(function=FUNCTION, address=base, count=2)
        if signature == _SIGNATURE:
            models = yield from _walk(base + 2)
            maker, device, serial = yield from _name_plate(models)
            meters = tuple(
                meter_map(model, maker=maker, device=device)
                for model in models
                if model.id in _PHASES and model.length + _HEADER_WORDS >= _length_needed(model.id)
            )
            return Discovered(maker=maker, device=device, serial=serial, models=tuple(models), meters=meters)
    return None


def meter_map(model: Model, *, maker: str | None, device: str | None) -> RegisterMap:
    """Make the map of a meter model at its place in a device."""
    phases = _PHASES[model.id]
    registers = _integer_registers(model) if model.id in _INTEGER_MODELS else _float_registers(model)
    return RegisterMap(
        model=f"{SUNSPEC}-{model.id}",
        make=maker or "unnamed",
        title=f"{maker or 'unnamed'} {device or 'device'} (SunSpec model {model.id})",
        source="sunspec/models",
        phases=phases,
        base=0,
        word_order=WordOrder.ABCD,
        registers=in_wire_order(entry for entry in registers if phases > 1 or _is_of_one_phase(entry.quantity)),
        identity=None,
        serial=None,
        relay=None,
        line=LineDefaults(),
        rated=Rated(),
        words_max=READ_WORDS_MAX,
        # A model's words lie side by side, so what is skipped exists.
        gap_words_max=READ_WORDS_MAX,
        confirm=frozenset(),
    )


def _walk(address: int) -> Generator[Ask, bytes | None, list[Model]]:
    models: list[Model] = []
    while len(models) < MODELS_MAX and address + 1 <= ADDRESS_MAX:
        header = yield Ask(function=FUNCTION, address=address, count=_HEADER_WORDS)
        if header is None or len(header) != 2 * _HEADER_WORDS:
            break
        number, length = int.from_bytes(header[:2], "big"), int.from_bytes(header[2:], "big")
        ends = address + _HEADER_WORDS + length
        if number == _END or length == 0 or ends > ADDRESS_MAX + 1:
            break
        models.append(Model(id=number, address=address, length=length))
        address = ends
    return models


def _name_plate(models: Sequence[Model]) -> Generator[Ask, bytes | None, tuple[str | None, str | None, str | None]]:
    plate = next((model for model in models if model.id == _NAME_PLATE), None)
    if plate is None or plate.length + _HEADER_WORDS < _SERIAL_AT + _TEXT_WORDS:
        return None, None, None
    said: list[str | None] = []
    for place in (_MAKER_AT, _DEVICE_AT, _SERIAL_AT):
        words = yield Ask(function=FUNCTION, address=plate.address + place, count=_TEXT_WORDS)
        said.append(None if words is None else text_of(words, WordOrder.ABCD))
    maker, device, serial = said
    return maker, device, serial


def _length_needed(model_id: int) -> int:
    """Return how many words of a model hold what is read of it, its header included."""
    if model_id in _INTEGER_MODELS:
        return max(max(place + 2, scale + 1) for place, scale, _ in _INTEGERS.values())
    return max(place + 2 for place, _ in _FLOATS.values())


def _is_of_one_phase(quantity: str) -> bool:
    return not any(f"_{other}_" in quantity for other in ("l2", "l3", "l12", "l23", "l31"))


def _integer_registers(model: Model) -> list[Register]:
    registers = []
    for quantity, (place, scale, unit) in _INTEGERS.items():
        is_energy = quantity.endswith("_wh")
        registers.append(
            Register(
                quantity=quantity,
                address=model.address + place,
                scale_address=model.address + scale,
                type=RegisterType.ACC32 if is_energy else RegisterType.I16,
                function=FUNCTION,
                factor=units_of(quantity)[unit],
                unit=unit,
                words=words_of(RegisterType.ACC32 if is_energy else RegisterType.I16, None),
                invalid=frozenset() if is_energy else frozenset({_NOT_IMPLEMENTED_I16}),
            )
        )
    return registers


def _float_registers(model: Model) -> list[Register]:
    return [
        Register(
            quantity=quantity,
            address=model.address + place,
            type=RegisterType.F32,
            function=FUNCTION,
            factor=Fraction(units_of(quantity)[unit]),
            unit=unit,
            words=words_of(RegisterType.F32, None),
        )
        for quantity, (place, unit) in _FLOATS.items()
    ]
