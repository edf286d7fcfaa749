"""Whether a set of values can come from a meter in service: what notices a wrong map, base or word order.

Stage: after decoding, when a meter is probed and when the gateway first reads one; not the validation of readings,
which has its own rules. A single doubt may be a load that changed between two reads: who acts on one reads again first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from protocols.modbus.maps import RegisterMap
from protocols.modbus.quantities import EXPORT, IMPORT, PHASES, Values, phase_quantity

_NEUTRAL_MV: Final = range(80_000, 300_001)
# The same limits between two phases, by the square root of 3.
_LINE_MV: Final = range(138_000, 520_001)
_FREQUENCY_MHZ: Final = range(45_000, 65_001)
# Meters round; a thousandth too much is rounding, a hundredth is not.
_PF_MILLI_MAX: Final = 1005
# A meter measures above its rating for a while; twice is beyond any.
_CURRENT_TIMES_RATED: Final = 2
# Behind transformers the ratio is unknown here; 10 kA is the largest primary current in use.
_CURRENT_A_MAX: Final = 10_000
# Two years at twice the rating are four at the rating: more than a third of full load for twelve years, the life of a
# meter. Words in the wrong order make energies of that size and above.
_HOURS_MAX: Final = 2 * 8766
# Below this much apparent power a coarse current says little: 0.1 A at 230 V.
_FLOOR_VA: Final = 25
_LINE_TO_LINE: Final = ("voltage_ll_mv", "voltage_l12_mv", "voltage_l23_mv", "voltage_l31_mv")
_NEUTRAL: Final = ("voltage_mv", *(phase_quantity("voltage", phase) for phase in PHASES))
_CURRENTS: Final = ("current_ma", *(phase_quantity("current", phase) for phase in PHASES))
_POWER_FACTORS: Final = ("pf_milli", *(phase_quantity("pf", phase) for phase in PHASES))
_POWERS: Final = ("power_w", *(phase_quantity("power", phase) for phase in PHASES))
_ENERGIES: Final = (
    IMPORT,
    EXPORT,
    *(phase_quantity(stem, phase) for stem in ("import", "export") for phase in PHASES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """A value that cannot be."""

    quantity: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.quantity}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What was found.

    Invariants: `vouched` are the quantities whose values only a rightly read meter in service is likely to show.
    """

    doubts: tuple[Doubt, ...]
    vouched: tuple[str, ...]

    @property
    def is_plausible(self) -> bool:
        """Whether something speaks for the values and nothing against them."""
        return not self.doubts and bool(self.vouched)


def judge(meter: RegisterMap, values: Values) -> Judgement:
    """Judge the values read with a map; those that were not read are not judged, save the register that is charged."""
    doubts = [
        *_voltages(values),
        *_frequency(values),
        *_currents(meter, values),
        *_power_factors(values),
        *_powers(meter, values),
        *_energies(meter, values),
    ]
    doubted = {doubt.quantity for doubt in doubts}
    return Judgement(doubts=tuple(doubts), vouched=tuple(sorted(_vouched(values) - doubted)))


def _doubt(quantity: str, expected: str, got: int | None) -> Doubt:
    return Doubt(quantity=quantity, expected=expected, got="none" if got is None else str(got))


def _known(values: Values, names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for name in names:
        value = values.get(name)
        if value is not None:
            yield name, value


def _voltages(values: Values) -> Iterator[Doubt]:
    """A phase may be missing, not all of them; none may be beyond the limits."""
    live = False
    first: str | None = None
    for names, limits in ((_NEUTRAL, _NEUTRAL_MV), (_LINE_TO_LINE, _LINE_MV)):
        for name in names:
            if name not in values:
                continue
            first = first or name
            value = values[name]
            if value is None:
                continue
            live = live or value in limits
            if not 0 <= value < limits.stop:
                yield _doubt(name, f"0 to {limits.stop - 1} mV", value)
    if first is not None and not live:
        got = values[first]
        yield _doubt(first, f"a voltage of {_NEUTRAL_MV.start} mV or more on some phase", got)


def _frequency(values: Values) -> Iterator[Doubt]:
    for name, value in _known(values, ("freq_mhz",)):
        if value not in _FREQUENCY_MHZ:
            yield _doubt(name, f"{_FREQUENCY_MHZ.start} to {_FREQUENCY_MHZ.stop - 1} mHz", value)


def _current_ma_max(meter: RegisterMap) -> int:
    rated_a = meter.rated.current_a
    return 1000 * (_CURRENT_A_MAX if rated_a is None else _CURRENT_TIMES_RATED * rated_a)


def _power_w_max(meter: RegisterMap) -> int:
    return meter.rated.voltage_v * _current_ma_max(meter) // 1000 * meter.phases


def _currents(meter: RegisterMap, values: Values) -> Iterator[Doubt]:
    most = _current_ma_max(meter)
    for name, value in _known(values, _CURRENTS):
        allowed = most * meter.phases if name == "current_ma" else most
        if abs(value) > allowed:
            yield _doubt(name, f"at most {allowed} mA", value)


def _power_factors(values: Values) -> Iterator[Doubt]:
    for name, value in _known(values, _POWER_FACTORS):
        if abs(value) > _PF_MILLI_MAX:
            yield _doubt(name, "at most 1000 thousandths", value)


def _powers(meter: RegisterMap, values: Values) -> Iterator[Doubt]:
    """Power is within the rating, and fits voltage and current, phase by phase and in all."""
    most = _power_w_max(meter)
    for name, value in _known(values, _POWERS):
        if abs(value) > most:
            yield _doubt(name, f"at most {most} W", value)
            return
    highest = max((value for _, value in _known(values, (*_NEUTRAL, *_LINE_TO_LINE))), default=None)
    total = _power(values, "power_w", highest, values.get("current_ma"), values.get("pf_milli"))
    if total is not None:
        yield total
    for phase in PHASES:
        voltage, current, factor = (values.get(phase_quantity(stem, phase)) for stem in ("voltage", "current", "pf"))
        doubt = _power(values, phase_quantity("power", phase), voltage, current, factor)
        if doubt is not None:
            yield doubt


def _power(
    values: Values, name: str, voltage_mv: int | None, current_ma: int | None, pf_milli: int | None
) -> Doubt | None:
    """Doubt a power above voltage times current, or far below what the power factor leaves of them.

    The lower limit is loose: a meter may show the factor of the fundamental alone, and a load of rectifiers has twice
    the current of it.
    """
    power = values.get(name)
    if power is None or voltage_mv is None or current_ma is None:
        return None
    apparent = abs(voltage_mv * current_ma) // 1_000_000
    most = apparent * 11 // 10 + _FLOOR_VA
    least = 0 if pf_milli is None else apparent * min(abs(pf_milli), 1000) // 3000 - _FLOOR_VA
    if least <= abs(power) <= most:
        return None
    return _doubt(name, f"{max(least, 0)} to {most} W by voltage and current", power)


def _energies(meter: RegisterMap, values: Values) -> Iterator[Doubt]:
    if IMPORT in values and values[IMPORT] is None:
        yield _doubt(IMPORT, "a register", None)
    most = _power_w_max(meter) * _HOURS_MAX
    for name, value in _known(values, _ENERGIES):
        if not 0 <= value <= most:
            yield _doubt(name, f"0 to {most} Wh", value)


def _vouched(values: Values) -> set[str]:
    voltages = {name for name, value in _known(values, _NEUTRAL) if value in _NEUTRAL_MV}
    lines = {name for name, value in _known(values, _LINE_TO_LINE) if value in _LINE_MV}
    frequency = {name for name, value in _known(values, ("freq_mhz",)) if value in _FREQUENCY_MHZ}
    return voltages | lines | frequency | {name for name, value in _known(values, _ENERGIES) if value > 0}
