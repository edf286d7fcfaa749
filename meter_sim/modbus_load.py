"""What a home on a Modbus meter draws, from a recorded profile or a formula, at any instant.

Stage: below `meter_sim.modbus_meter`. A profile of minutes (or hours) enters; power, reactive power, voltage and the
energy up to an instant leave. The profile repeats itself for ever. Integers only; never a clock, never chance.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from meter_sim.recorded import Profile

MS_PER_HOUR: Final = 3_600_000
_MINUTE_MS: Final = 60_000
_MINUTES_A_DAY: Final = 1_440
# A file of hours or half hours has energy alone: an ordinary socket, and the power factor 0.97 of a home.
_VOLTAGE_MV: Final = 230_000
_REACTIVE_PER_MILLE: Final = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What is drawn at an instant, with all loads switched on."""

    power_w: int
    reactive_var: int
    voltage_mv: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load that repeats itself, as columns of rows that last `step_ms` each.

    Invariants: the columns have one length, at least one; no power is negative; `energy_before` and `reactive_before`
    are what the rows before each have used, in W ms and var ms, one entry more than rows.
    """

    step_ms: int
    power_w: Sequence[int]
    reactive_var: Sequence[int]
    voltage_mv: Sequence[int]
    energy_before: Sequence[int]
    reactive_before: Sequence[int]

    def at(self, at_ms: int) -> Drawn:
        """Return what is drawn at an instant."""
        row = at_ms // self.step_ms % len(self.power_w)
        return Drawn(power_w=self.power_w[row], reactive_var=self.reactive_var[row], voltage_mv=self.voltage_mv[row])

    def energy_w_ms(self, at_ms: int) -> int:
        """Return the energy used from instant 0 to this one, with all loads switched on."""
        return self._until(at_ms, self.power_w, self.energy_before)

    def reactive_var_ms(self, at_ms: int) -> int:
        """Return the reactive energy from instant 0 to this one."""
        return self._until(at_ms, self.reactive_var, self.reactive_before)

    def _until(self, at_ms: int, rates: Sequence[int], before: Sequence[int]) -> int:
        rows, within_ms = divmod(at_ms, self.step_ms)
        rounds, row = divmod(rows, len(rates))
        return rounds * before[-1] + before[row] + rates[row] * within_ms


def recorded_load(profile: Profile) -> Load:
    """Return the load of a recorded home; gaps of the recording are closed up.

    What the file lacks is taken as an ordinary socket has it: 230 V, and a quarter of the power as reactive power.
    """
    rows = range(len(profile.start_ms))
    power_w = [_mean_power_w(profile, row) for row in rows]
    reactive = profile.reactive_var or [None] * len(power_w)
    return load_of(
        profile.step_ms,
        power_w,
        [_or(var, watts * _REACTIVE_PER_MILLE // 1000) for var, watts in zip(reactive, power_w, strict=True)],
        [_or(profile.voltage_mv[row], _VOLTAGE_MV) for row in rows],
    )


def formula_load() -> Load:
    """Return a day in minutes without any recording: a fridge that comes and goes, a kettle, an evening."""
    power_w, reactive_var, voltage_mv = [], [], []
    for minute in range(_MINUTES_A_DAY):
        evening = bisect_right((1_080, 1_380), minute) == 1
        watts = 180 + minute * 7 % 23 + (90 if minute % 40 < 15 else 0) + (1_900 if minute % 360 < 4 else 0)
        watts += 640 if evening else 0
        power_w.append(watts)
        reactive_var.append(60 + watts * 12 // 100)
        voltage_mv.append(228_000 + minute * 797 % 5_001)
    return load_of(_MINUTE_MS, power_w, reactive_var, voltage_mv)


def steady_load(power_w: int) -> Load:
    """Return a load that never changes."""
    return load_of(_MINUTE_MS, [power_w], [power_w * _REACTIVE_PER_MILLE // 1000], [_VOLTAGE_MV])


def load_of(step_ms: int, power_w: list[int], reactive_var: list[int], voltage_mv: list[int]) -> Load:
    """Return a load by its columns."""
    return Load(
        step_ms=step_ms,
        power_w=power_w,
        reactive_var=reactive_var,
        voltage_mv=voltage_mv,
        energy_before=list(accumulate((rate * step_ms for rate in power_w), initial=0)),
        reactive_before=list(accumulate((rate * step_ms for rate in reactive_var), initial=0)),
    )


def _mean_power_w(profile: Profile, row: int) -> int:
    power_w = profile.power_w[row]
    return profile.energy_wh[row] * MS_PER_HOUR // profile.step_ms if power_w is None else power_w


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
