"""The columns of every answer of the desk: their names, what they hold, and in which order they come.

Stage: beside the parser of questions and the writers of answers, which must agree. Values only.

Units: `_wh` Wh, `_w` W, `_mv` mV, `_ma` mA, `_milli` thousandths, `_mhz` mHz, `_minor` minor units of money.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Subject(StrEnum):
    """What is asked for."""

    READINGS = "readings"
    PROFILES = "profiles"
    CHARGES = "charges"
    EVENTS = "events"
    METERS = "meters"
    ACCOUNTS = "accounts"


class Kind(StrEnum):
    """What a column holds; an instant has its zone, `WORDS` are a list of texts, `AMOUNTS` whole numbers by name."""

    TEXT = "text"
    INTEGER = "integer"
    INSTANT = "instant"
    DAY = "day"
    FLAG = "flag"
    WORDS = "words"
    AMOUNTS = "amounts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of an answer."""

    name: str
    kind: Kind


def _columns(**kinds: Kind) -> tuple[Column, ...]:
    return tuple(Column(name=name, kind=kind) for name, kind in kinds.items())


_T, _I, _AT, _D, _F = Kind.TEXT, Kind.INTEGER, Kind.INSTANT, Kind.DAY, Kind.FLAG
_VALUES = {
    "readings": _I, "import_wh": _I, "export_wh": _I, "estimated_wh": _I, "demand_w": _I, "voltage_min_mv": _I,
    "voltage_max_mv": _I, "voltage_avg_mv": _I, "pf_avg_milli": _I, "quality": _T, "final": _F,
}  # fmt: skip
_PROFILES = _columns(meter=_T, started_at=_AT, **_VALUES)
# An area's bucket: voltages and power factor are of all its readings, demand is not added up over meters.
TOTALS = _columns(
    started_at=_AT, meters=_I, readings=_I, import_wh=_I, export_wh=_I, estimated_wh=_I, voltage_min_mv=_I,
    voltage_max_mv=_I, voltage_avg_mv=_I, pf_avg_milli=_I, quality=_T, final=_F,
)  # fmt: skip
COLUMNS: Mapping[Subject, tuple[Column, ...]] = {
    Subject.READINGS: _columns(
        meter=_T, read_at=_AT, import_wh=_I, export_wh=_I, voltage_mv=_I, current_ma=_I, power_w=_I, pf_milli=_I,
        freq_mhz=_I, received_wh=_I, edited=_F, flags=Kind.WORDS,
    ),
    Subject.PROFILES: _PROFILES,
    Subject.CHARGES: _columns(
        account=_T, kind=_T, day=_D, period=_D, booked_at=_AT, from_wh=_I, to_wh=_I, energy_wh=_I, charge_minor=_I,
        lines=Kind.AMOUNTS, quality=_T, reason=_T,
    ),
    Subject.EVENTS: _columns(
        meter=_T, at=_AT, received_at=_AT, code=_I, title=_T, sort=_T, severity=_T,
    ),
    Subject.METERS: _columns(
        meter=_T, make=_T, model=_T, rated_w=_I, custody=_T, role=_T, account=_T, usage_point=_T, area=_T, feeder=_T,
        installed_at=_AT, relay=_T, relay_at=_AT, readings_until=_AT,
    ),
    Subject.ACCOUNTS: _columns(
        account=_T, consumer=_I, meter=_T, usage_point=_T, area=_T, feeder=_T, category=_T, tariff=_T, load_w=_I,
        mode=_T, opened_on=_D, currency=_T, balance_minor=_I, balance_at=_AT, threshold_minor=_I, supply_desired=_T,
        supply_reported=_T,
    ),
}  # fmt: skip
# Sums of charges by month or bill part: `from` is its first day.
CHARGE_SUMS = _columns(account=_T, period=_D, journals=_I, energy_wh=_I, charge_minor=_I, lines=Kind.AMOUNTS)
# By their number in rollups.
QUALITIES = ("read", "edited", "estimated", "suspect")
