"""What a register can hold: the quantities of a meter, the units they come in, and the channels of a reading.

Stage: the vocabulary of the maps. A quantity's name ends with the unit it is stored in. Seven of them are the channels
of native readings; the others serve to judge and to show.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Final

from protocols.native import INT64_MAX

IMPORT: Final = "import_wh"
EXPORT: Final = "export_wh"
CHANNELS: Final = (IMPORT, EXPORT, "voltage_mv", "current_ma", "power_w", "pf_milli", "freq_mhz")
PHASES: Final = ("l1", "l2", "l3")

_STEMS: Final = ("voltage", "current", "power", "reactive", "apparent", "pf", "import", "export")
_SUFFIX: Final = {
    "voltage": "mv",
    "current": "ma",
    "power": "w",
    "reactive": "var",
    "apparent": "va",
    "pf": "milli",
    "import": "wh",
    "export": "wh",
}
_UNITS_BY_SUFFIX: Final[dict[str, dict[str, Fraction]]] = {
    "wh": {"Wh": Fraction(1), "kWh": Fraction(1000), "MWh": Fraction(10**6)},
    "varh": {"varh": Fraction(1), "kvarh": Fraction(1000)},
    "mv": {"mV": Fraction(1), "V": Fraction(1000), "kV": Fraction(10**6)},
    "ma": {"mA": Fraction(1), "A": Fraction(1000)},
    "w": {"W": Fraction(1), "kW": Fraction(1000), "MW": Fraction(10**6)},
    "var": {"var": Fraction(1), "kvar": Fraction(1000)},
    "va": {"VA": Fraction(1), "kVA": Fraction(1000)},
    "milli": {"1": Fraction(1000), "%": Fraction(10)},
    "mhz": {"mHz": Fraction(1), "Hz": Fraction(1000)},
}
_LINE_TO_LINE: Final = ("voltage_ll_mv", "voltage_l12_mv", "voltage_l23_mv", "voltage_l31_mv")
QUANTITIES: Final = (
    *CHANNELS,
    "reactive_var",
    "apparent_va",
    "import_varh",
    "export_varh",
    *_LINE_TO_LINE,
    *(f"{stem}_{phase}_{_SUFFIX[stem]}" for stem in _STEMS for phase in PHASES),
)
# Which phases a channel is made of where a map does not name it.
PHASES_OF_CHANNEL: Final = {
    "voltage_mv": tuple(f"voltage_{phase}_mv" for phase in PHASES),
    "current_ma": tuple(f"current_{phase}_ma" for phase in PHASES),
    "power_w": tuple(f"power_{phase}_w" for phase in PHASES),
}
# The channels of a reading that are measured are stored in 32 bits.
_INT32: Final = range(-(2**31), 2**31)
_REGISTER: Final = range(INT64_MAX + 1)
_ALLOWED: Final = {name: _REGISTER if name in (IMPORT, EXPORT) else _INT32 for name in CHANNELS}

# Values by quantity; None where the meter said that it has none.
Values = Mapping[str, int | None]


def units_of(quantity: str) -> Mapping[str, Fraction]:
    """Return the units that a quantity may come in, each with what it is in the stored unit."""
    return _UNITS_BY_SUFFIX[quantity.rsplit("_", 1)[1]]


def phase_quantity(stem: str, phase: str) -> str:
    """Name the quantity of one phase: `voltage` and `l1` are `voltage_l1_mv`."""
    return f"{stem}_{phase}_{_SUFFIX[stem]}"


def native_channels(values: Values) -> dict[str, int | None]:
    """Return the seven channels of a native reading.

    A channel that the map does not name is made of its phases, where all of them are known: voltage their mean over
    those that are live, current and power their sums. Measured values beyond 32 bits and registers below 0 are none.
    Rounds: the mean voltage down, by less than a millivolt.
    """
    channels: dict[str, int | None] = {}
    for name, allowed in _ALLOWED.items():
        value = values.get(name)
        if value is None and name in PHASES_OF_CHANNEL:
            value = _of_phases(name, values)
        channels[name] = value if value is not None and value in allowed else None
    return channels


def _of_phases(channel: str, values: Values) -> int | None:
    named = [values[name] for name in PHASES_OF_CHANNEL[channel] if name in values]
    parts = [value for value in named if value is not None]
    if not parts or len(parts) < len(named):
        return None
    if channel != "voltage_mv":
        return sum(parts)
    live = [part for part in parts if part > 0]
    return sum(live) // len(live) if live else None
