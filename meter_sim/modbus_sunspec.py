"""A SunSpec meter's registers: a device that tells what it is by a chain of models.

Stage: in the place of a map's registers, below `meter_sim.modbus_meter`. Values enter, the words of the models leave:
the signature, the common model with maker, device and serial number, one meter model, the end. Written from the
models, not from the head-end's discovery.

Source: sunspec/models, models 1, 201 to 204 (integers with scale registers) and 211 to 214 (floating point).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from meter_sim.modbus_registers import encode, text_registers
from meter_sim.modbus_wire import READ_HOLDING, REGISTERS_READ_MAX
from protocols.modbus.maps import RelayMap

_SIGNATURE: Final = b"SunS"
_END: Final = bytes.fromhex("ffff0000")
_COMMON_WORDS: Final = 66
_INTEGER_WORDS: Final = 105
_FLOAT_WORDS: Final = 124
_HEADER_WORDS: Final = 2
_SCALED_MODELS: Final = range(201, 205)
_PHASES: Final = {1: 1, 2: 2, 3: 3, 4: 3}
_NOTHING_I16: Final = bytes.fromhex("8000")
_NOTHING_ACC32: Final = bytes(4)
_NOTHING_F32: Final = bytes.fromhex("7fc00000")
_EACH: Final = ("l1", "l2", "l3")
_LINE_VOLTAGES: Final = ("voltage_ll_mv", "voltage_l12_mv", "voltage_l23_mv", "voltage_l31_mv")

# Of the integer models: places from the model's id, the place of their scale, its power of ten, and how much of the
# quantity's own unit the unscaled one is. Power factor is in percent.
_SCALED: Final = (
    (("current_ma", *(f"current_{phase}_ma" for phase in _EACH)), 2, 6, -2, 1_000),
    (("voltage_mv", *(f"voltage_{phase}_mv" for phase in _EACH), *_LINE_VOLTAGES), 7, 15, -1, 1_000),
    (("freq_mhz",), 16, 17, -2, 1_000),
    (("power_w", *(f"power_{phase}_w" for phase in _EACH)), 18, 22, 0, 1),
    (("apparent_va", *(f"apparent_{phase}_va" for phase in _EACH)), 23, 27, 0, 1),
    (("reactive_var", *(f"reactive_{phase}_var" for phase in _EACH)), 28, 32, 0, 1),
    (("pf_milli", *(f"pf_{phase}_milli" for phase in _EACH)), 33, 37, -1, 10),
)
_ENERGY_SCALE_AT: Final = 54
_ENERGIES: Final = (
    (("export_wh", *(f"export_{phase}_wh" for phase in _EACH)), 38),
    (("import_wh", *(f"import_{phase}_wh" for phase in _EACH)), 46),
)
# Of the floating-point models: places of runs of values, two words each, and their unit.
_FLOATS: Final = (
    (_SCALED[0][0], 2, 1_000),
    (_SCALED[1][0], 10, 1_000),
    (_SCALED[2][0], 26, 1_000),
    (_SCALED[3][0], 28, 1),
    (_SCALED[4][0], 36, 1),
    (_SCALED[5][0], 44, 1),
    (_SCALED[6][0], 52, 1_000),
    (_ENERGIES[0][0], 60, 1),
    (_ENERGIES[1][0], 68, 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SunSpec:
    """What kind of SunSpec meter it is: a model of 201 to 204 or 211 to 214, at one of the places it may begin."""

    model: int
    base: int = 40_000
    maker: str = "Simulated"

    @property
    def phases(self) -> int:
        """Return how many phases a meter of the model has."""
        return _PHASES[self.model % 10]

    @property
    def words_max(self) -> int:
        """Return how many words it gives at once."""
        return REGISTERS_READ_MAX

    @property
    def relay(self) -> RelayMap | None:
        """Return no relay: none of the models has one."""
        return None


class SunSpecRegisters:
    """All words of a device from its signature to its end.

    Invariants: each model says its length; what a meter has not is marked as not implemented.
    """

    def __init__(self, kind: SunSpec, *, serial_number: int) -> None:
        self._base = kind.base
        self._is_scaled = kind.model in _SCALED_MODELS
        words = _INTEGER_WORDS if self._is_scaled else _FLOAT_WORDS
        texts = (kind.maker, f"Meter {kind.model}", "", "1", str(serial_number))
        maker, device, options, version, serial = (
            text_registers(text, width) for text, width in zip(texts, (16, 16, 8, 8, 16), strict=True)
        )
        common = _header(1, _COMMON_WORDS) + maker + device + options + version + serial + bytes(4)
        assert len(common) == 2 * (_HEADER_WORDS + _COMMON_WORDS), "the common model is as long as it says"
        self._meter_at = len(_SIGNATURE) + len(common)
        self._bytes = bytearray(_SIGNATURE + common + _header(kind.model, words) + bytes(2 * words) + _END)

    def write(self, values: Mapping[str, int | None], *, words_swapped: bool = False) -> None:
        """Put values where the model has them; None, or what is not among them, as not implemented."""
        order = "cdab" if words_swapped else "abcd"
        if self._is_scaled:
            self._write_scaled(values, order)
            return
        for quantities, at, unit in _FLOATS:
            for place, quantity in enumerate(quantities):
                value = values.get(quantity)
                data = _NOTHING_F32 if value is None else encode(value, kind="f32", order=order, step=Fraction(unit))
                self._put(at + 2 * place, data)

    def read(self, function: int, address: int, count: int) -> bytes | None:
        """Return so many words; None if one of them is none of the device's."""
        at = 2 * (address - self._base)
        if function != READ_HOLDING or at < 0:
            return None
        found = self._bytes[at : at + 2 * count]
        return bytes(found) if len(found) == 2 * count else None

    def _write_scaled(self, values: Mapping[str, int | None], order: str) -> None:
        for quantities, at, scale_at, exponent, unit in _SCALED:
            step = unit * Fraction(10) ** exponent
            self._put(scale_at, exponent.to_bytes(2, signed=True))
            for place, quantity in enumerate(quantities):
                value = values.get(quantity)
                data = _NOTHING_I16 if value is None else encode(value, kind="i16", order="abcd", step=step)
                self._put(at + place, data)
        self._put(_ENERGY_SCALE_AT, bytes(2))
        for quantities, at in _ENERGIES:
            for place, quantity in enumerate(quantities):
                value = values.get(quantity)
                data = _NOTHING_ACC32 if value is None else encode(value, kind="acc32", order=order, step=Fraction(1))
                self._put(at + 2 * place, data)

    def _put(self, place: int, data: bytes) -> None:
        at = self._meter_at + 2 * place
        self._bytes[at : at + len(data)] = data


def _header(model: int, words: int) -> bytes:
    return model.to_bytes(2) + words.to_bytes(2)
