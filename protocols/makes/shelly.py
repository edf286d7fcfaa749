"""Shelly energy meters: Gen1 with one number a topic, Gen2 and later with components as JSON.

Stage: a make beside the mapping documents; code, since its topics name channel and phase. Enters a message; leave
native ones through `facts`. All energy here is Wh: of Gen1 `total` and `total_returned` (the topic `energy` counts
watt-minutes since it was last sent and is not read), of Gen2 `em1data` and `emdata`. A three-phase device is one meter;
every channel of the others is a meter of its own, named `<device>-<channel>`.
Source: Shelly API documentation, Gen1 status and Gen2 EM, EMData, EM1, EM1Data; Gen1's topics as public examples
have them. Not tried with devices.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final
from zoneinfo import ZoneInfo

from protocols.errors import Malformed
from protocols.makes.facts import (
    EXPORT,
    IMPORT,
    POWER,
    Arrival,
    Joining,
    Memory,
    Naming,
    Observed,
    Translation,
    collect,
    phase_key,
)
from protocols.makes.local_time import ClockForm, instant_ms
from protocols.makes.numbers import Json, number_of, parse_json

_PHASES: Final = 3
_THREE_PHASE_PREFIX: Final = "shellyem3"
_UTC: Final = ZoneInfo("UTC")
_GEN1_NUMBER: Final = re.compile(r"shellies/(?P<device>[^/]+)/emeter/(?P<channel>[0-2])/(?P<quantity>[a-z_]+)")
_GEN1_INFO: Final = re.compile(r"shellies/(?P<device>[^/]+)/info")
_GEN2_RPC: Final = re.compile(r"(?P<device>.+)/events/rpc")
_GEN2_STATUS: Final = re.compile(r"(?P<device>.+)/status/(?P<component>[a-z0-9]+:[0-9]{1,2})")
_COMPONENT: Final = re.compile(r"(em1data|em1|emdata|em):([0-9]{1,2})")
_RPC_FILTER_END: Final = "/events/rpc"
GEN1_FILTERS: Final = ("shellies/+/emeter/+/+",)
GEN2_FILTERS: Final = (f"+{_RPC_FILTER_END}",)

_Fields = Mapping[str, tuple[str, int]]
_GEN1_FIELDS: Final[_Fields] = {
    "total": (IMPORT, 1),
    "total_returned": (EXPORT, 1),
    "power": (POWER, 1),
    "voltage": ("voltage_mv", 1000),
    "current": ("current_ma", 1000),
    "pf": ("pf_milli", 1000),
}
_GEN2_FIELDS: Final[Mapping[str, _Fields]] = {
    "em1": {
        "act_power": (POWER, 1),
        "voltage": ("voltage_mv", 1000),
        "current": ("current_ma", 1000),
        "pf": ("pf_milli", 1000),
        "freq": ("freq_mhz", 1000),
    },
    "em1data": {"total_act_energy": (IMPORT, 1), "total_act_ret_energy": (EXPORT, 1)},
    "em": {"total_act_power": (POWER, 1), "a_freq": ("freq_mhz", 1000)},
    "emdata": {"total_act": (IMPORT, 1), "total_act_ret": (EXPORT, 1)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellyGen1:
    """Shelly EM and 3EM: one number a topic, no clock.

    Invariants: of a 3EM the sum counts when all three phases have reported since the last reading.
    """

    naming: Naming
    joining: Joining
    filters: tuple[str, ...] = GEN1_FILTERS
    timed: bool = False

    def translate(self, arrival: Arrival, memories: Mapping[str, Memory]) -> Translation:
        """Turn a message into native ones; wrong bytes are a fault, never an exception."""
        match = _GEN1_NUMBER.fullmatch(arrival.topic) or _GEN1_INFO.fullmatch(arrival.topic)
        if match is None:
            return _foreign(arrival)
        device = match["device"]
        try:
            payload = parse_json(arrival.payload)
            if match.re is _GEN1_INFO:
                rows = list(_gen1_info(device, payload, arrival.received_ms))
            else:
                rows = list(_gen1_number(device, int(match["channel"]), {match["quantity"]: payload}, None))
        except Malformed as error:
            return _fault(error, device, self.naming)
        return collect(rows, arrival, memories, naming=self.naming, joining=self.joining)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellyGen2:
    """Shelly EM and 3EM of Gen2 and later: status of components, or notifications that carry the time.

    Invariants: notifications (`events/rpc`) and status say the same; a source subscribes to one of them.
    """

    naming: Naming
    joining: Joining
    filters: tuple[str, ...] = GEN2_FILTERS

    @property
    def timed(self) -> bool:
        """Whether only notifications are asked for: a status has no clock."""
        return all(name.endswith(_RPC_FILTER_END) for name in self.filters)

    def translate(self, arrival: Arrival, memories: Mapping[str, Memory]) -> Translation:
        """Turn a message into native ones; wrong bytes are a fault, never an exception."""
        match = _GEN2_RPC.fullmatch(arrival.topic) or _GEN2_STATUS.fullmatch(arrival.topic)
        if match is None:
            return _foreign(arrival)
        device = match["device"]
        try:
            payload = parse_json(arrival.payload)
            if match.re is _GEN2_STATUS:
                rows = list(_gen2_component(device, match["component"], payload, None))
            else:
                rows = list(_gen2_notification(device, payload, arrival.received_ms))
        except Malformed as error:
            return _fault(error, device, self.naming)
        return collect(rows, arrival, memories, naming=self.naming, joining=self.joining)


def _gen1_number(device: str, channel: int, fields: Mapping[str, Json], clock_ms: int | None) -> Iterator[Observed]:
    values = _values(fields, _GEN1_FIELDS)
    if not values:
        return
    if device.startswith(_THREE_PHASE_PREFIX):
        # One number for all phases has no place for voltage, current and power factor of each.
        summed = {phase_key(name, channel): value for name, value in values.items() if name in (IMPORT, EXPORT, POWER)}
        yield Observed(device=device, clock_ms=clock_ms, values=summed, phases=_PHASES)
    else:
        yield Observed(device=f"{device}-{channel}", clock_ms=clock_ms, values=values)


def _gen1_info(device: str, payload: Json, received_ms: int) -> Iterator[Observed]:
    """Read the device's whole status; what it calls invalid itself is not read."""
    meters = payload.get("emeters") if isinstance(payload, dict) else None
    if not isinstance(meters, list) or not all(isinstance(meter, dict) for meter in meters):
        raise Malformed("status: expected emeters, got none")
    # 0 says that the device has not been told the time.
    clock_ms = (
        instant_ms(payload["unixtime"], ClockForm.EPOCH_S, _UTC, received_ms) if payload.get("unixtime") else None
    )
    for channel, meter in enumerate(meters[:_PHASES]):
        if meter.get("is_valid") is True:
            yield from _gen1_number(device, channel, meter, clock_ms)


def _gen2_notification(device: str, payload: Json, received_ms: int) -> Iterator[Observed]:
    if not isinstance(payload, dict):
        raise Malformed(f"notification: expected an object, got {type(payload).__name__}")
    params = payload.get("params")
    if payload.get("method") not in ("NotifyStatus", "NotifyFullStatus") or not isinstance(params, dict):
        return
    rows = [(key, value) for key, value in params.items() if _COMPONENT.fullmatch(key)]
    if rows:
        clock_ms = instant_ms(params.get("ts"), ClockForm.EPOCH_S, _UTC, received_ms)
        for key, value in rows:
            yield from _gen2_component(device, key, value, clock_ms)


def _gen2_component(device: str, name: str, payload: Json, clock_ms: int | None) -> Iterator[Observed]:
    match = _COMPONENT.fullmatch(name)
    if match is None:
        return
    if not isinstance(payload, dict):
        raise Malformed(f"{name}: expected an object, got {type(payload).__name__}")
    kind, channel = match[1], match[2]
    whole = kind in ("em", "emdata") and channel == "0"
    # A meter that reports an error of its own measures nothing that counts.
    values = {} if payload.get("errors") else _values(payload, _GEN2_FIELDS[kind])
    if values:
        yield Observed(device=device if whole else f"{device}-{channel}", clock_ms=clock_ms, values=values)


def _values(fields: Mapping[str, Json], known: _Fields) -> dict[str, Fraction]:
    """Read the fields that are known; null is none.

    Raises: Malformed for a field that is no number.
    """
    values: dict[str, Fraction] = {}
    for name, (channel, factor) in known.items():
        number = number_of(fields.get(name), name)
        if number is not None:
            values[channel] = number * factor
    return values


def _foreign(arrival: Arrival) -> Translation:
    return Translation(fault=f"topic: expected a Shelly meter's, got {arrival.topic[:80]!r}")


def _fault(error: Malformed, device: str, naming: Naming) -> Translation:
    return Translation(fault=f"{error}, device {device[:80]}", serial=naming.serial_of(device))
