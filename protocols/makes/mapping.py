"""Mapping documents: a make of meter told as data, in TOML.

Stage: where most makes enter. A document says on which topics a make publishes, where in its JSON device, clock and
values stand, in which units; `Mapping` then turns messages into native ones. The form is described in docs/makes.md;
shipped documents lie beside this module. Never guesses: what a document does not name is not read.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from importlib import resources
from typing import ClassVar, Final
from zoneinfo import ZoneInfo

import msgspec

from protocols.errors import Malformed
from protocols.makes.facts import (
    CHANNELS,
    EXPORT,
    IMPORT,
    Arrival,
    Joining,
    Memory,
    Naming,
    Observed,
    Translation,
    collect,
)
from protocols.makes.local_time import ClockForm, instant_ms
from protocols.makes.numbers import Json, number_of, parse_json
from protocols.makes.thingsboard import gateway_rows, telemetry_rows

_UNITS: Final[dict[str, dict[str, Fraction]]] = {
    IMPORT: {"Wh": Fraction(1), "kWh": Fraction(1000), "MWh": Fraction(10**6), "W-min": Fraction(1, 60)},
    "voltage_mv": {"mV": Fraction(1), "V": Fraction(1000)},
    "current_ma": {"mA": Fraction(1), "A": Fraction(1000)},
    "power_w": {"W": Fraction(1), "kW": Fraction(1000)},
    "pf_milli": {"1": Fraction(1000), "%": Fraction(10)},
    "freq_mhz": {"mHz": Fraction(1), "Hz": Fraction(1000)},
}
_UNITS[EXPORT] = _UNITS[IMPORT]
_DEVICE: Final = "{device}"
_LEVEL: Final = re.compile(r"[^/#]+")
_FACTOR: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_ABSENT: Final = object()


class MappingError(Exception):
    """A mapping document is unusable; the message is one line."""

    code: ClassVar[str] = "mapping_error"


class Wrapping(Enum):
    """What a payload is wrapped into: itself one object, or rows of a platform."""

    NONE = "none"
    THINGSBOARD = "thingsboard"
    THINGSBOARD_GATEWAY = "thingsboard_gateway"


class WhenArray(Enum):
    """What an array in the place of a number stands for."""

    REFUSE = "refuse"
    FIRST = "first"
    SUM = "sum"


class _Clock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    form: ClockForm
    optional: bool = False


class _Valid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    values: list[bool | int | str]


class _Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    unit: str
    path: str | None = None
    sum_of: list[str] | None = None
    scale: str = "1"
    when_array: WhenArray = WhenArray.REFUSE


class _Topic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pattern: str
    channels: dict[str, _Channel]
    device_path: str | None = None
    wrapping: Wrapping = Wrapping.NONE
    clock: _Clock | None = None
    valid: _Valid | None = None


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    source: str
    topic: list[_Topic]
    illustrative: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One topic of a document, ready to be matched."""

    topic: _Topic
    pattern: re.Pattern[str]
    factors: MappingOf[str, Fraction]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A make as its document tells it, set up for one source.

    Invariants: the first topic of the document that matches a message is the one that reads it.
    """

    rules: Sequence[_Rule]
    zone: ZoneInfo
    naming: Naming
    joining: Joining

    @property
    def filters(self) -> tuple[str, ...]:
        """The topics to subscribe to."""
        return tuple(rule.topic.pattern.replace(_DEVICE, "+") for rule in self.rules)

    @property
    def timed(self) -> bool:
        """Whether every energy comes with a clock."""
        return all(
            rule.topic.clock is not None and not rule.topic.clock.optional
            for rule in self.rules
            if IMPORT in rule.topic.channels
        )

    def translate(self, arrival: Arrival, memories: MappingOf[str, Memory]) -> Translation:
        """Turn a message into native ones; wrong bytes are a fault, never an exception."""
        for rule in self.rules:
            match = rule.pattern.fullmatch(arrival.topic)
            if match is not None:
                device = match.groupdict().get("device")
                break
        else:
            return Translation(fault="topic: expected one of the document's, got another")
        try:
            rows = list(self._rows(rule, device, arrival))
        except Malformed as error:
            serial = None if device is None else self.naming.serial_of(device)
            return Translation(fault=f"{error}, device {device or 'unknown'}", serial=serial)
        return collect(rows, arrival, memories, naming=self.naming, joining=self.joining)

    def _rows(self, rule: _Rule, named: str | None, arrival: Arrival) -> Iterator[Observed]:
        topic = rule.topic
        for row in _unwrapped(topic.wrapping, parse_json(arrival.payload)):
            device = named
            if topic.device_path is not None:
                told = _look(row, topic.device_path)
                if not isinstance(told, str | int) or isinstance(told, bool) or told == "":
                    raise Malformed(f"{topic.device_path}: expected the device's name, got none")
                device = str(told)
            assert device is not None, "a document names the device by topic or path"
            if topic.valid is not None and _look(row, topic.valid.path) not in topic.valid.values:
                continue
            values: dict[str, Fraction] = {}
            for name, channel in topic.channels.items():
                value = _value(row, name, channel)
                if value is not None:
                    values[name] = value * rule.factors[name]
            if values:
                clock_ms = _clock_ms(row, topic.clock, self.zone, arrival.received_ms)
                yield Observed(device=device, clock_ms=clock_ms, values=values)


def read_mapping(text: str, *, zone: ZoneInfo, naming: Naming, joining: Joining) -> Mapping:
    """Read a document.

    Raises: MappingError, one line, when it is no TOML or breaks a rule.
    """
    try:
        document = msgspec.convert(tomllib.loads(text), _Document)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise MappingError(f"mapping: {error}") from None
    rules = [_rule(topic, number) for number, topic in enumerate(document.topic, start=1)]
    if not any(IMPORT in rule.topic.channels for rule in rules):
        raise MappingError(f"mapping {document.name}: expected {IMPORT} among its channels, got none")
    return Mapping(rules=rules, zone=zone, naming=naming, joining=joining)


def builtin_mappings() -> list[str]:
    """Name the shipped documents."""
    return sorted(entry.name.removesuffix(".toml") for entry in _documents().iterdir() if entry.name.endswith(".toml"))


def builtin_mapping_text(name: str) -> str:
    """Return the text of a shipped document.

    Raises: MappingError when there is none of that name.
    """
    if name not in builtin_mappings():
        raise MappingError(f"make: expected one of {', '.join(builtin_mappings())}, got {name!r}")
    return _documents().joinpath(f"{name}.toml").read_text(encoding="utf-8")


def _documents() -> "resources.abc.Traversable":
    return resources.files("protocols.makes").joinpath("documents")


def _rule(topic: _Topic, number: int) -> _Rule:
    named = _DEVICE in topic.pattern.split("/")
    if named == (topic.device_path is not None) or topic.pattern.count("{") > named:
        raise MappingError(f"topic {number}: expected the device as a level {_DEVICE} or by device_path, and not both")
    levels = topic.pattern.split("/")
    if not all(_LEVEL.fullmatch(level) and ("+" not in level or level == "+") for level in levels):
        raise MappingError(f"topic {number}: expected levels of text, + or {_DEVICE}, got {topic.pattern!r}")
    factors = {}
    for name, channel in topic.channels.items():
        if name not in CHANNELS:
            raise MappingError(f"topic {number}: expected channels of {', '.join(CHANNELS)}, got {name!r}")
        if channel.unit not in _UNITS[name]:
            raise MappingError(f"{name}: expected a unit of {', '.join(_UNITS[name])}, got {channel.unit!r}")
        if (channel.path is None) == (not channel.sum_of):
            raise MappingError(f"{name}: expected path or sum_of, and not both")
        if _FACTOR.fullmatch(channel.scale) is None or not Fraction(channel.scale):
            raise MappingError(f'{name}: expected a scale such as "0.1", got {channel.scale!r}')
        factors[name] = _UNITS[name][channel.unit] * Fraction(channel.scale)
    pattern = "/".join({"+": "[^/]+", _DEVICE: "(?P<device>[^/]+)"}.get(level, re.escape(level)) for level in levels)
    return _Rule(topic=topic, pattern=re.compile(pattern), factors=factors)


def _unwrapped(wrapping: Wrapping, payload: Json) -> Iterator[Json]:
    match wrapping:
        case Wrapping.NONE:
            yield payload
        case Wrapping.THINGSBOARD:
            yield from telemetry_rows(payload)
        case Wrapping.THINGSBOARD_GATEWAY:
            yield from gateway_rows(payload)


def _look(row: Json, path: str) -> Json:
    """Follow a path of keys and array places; `_ABSENT` where it ends early. An empty path is the whole."""
    value = row
    for key in path.split(".") if path else ():
        if isinstance(value, dict):
            value = value.get(key, _ABSENT)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return _ABSENT
    return value


def _clock_ms(row: Json, clock: _Clock | None, zone: ZoneInfo, received_ms: int) -> int | None:
    if clock is None:
        return None
    value = _look(row, clock.path)
    if value is _ABSENT or value is None:
        if clock.optional:
            return None
        raise Malformed(f"{clock.path}: expected the time, got none")
    return instant_ms(value, clock.form, zone, received_ms)


def _value(row: Json, name: str, channel: _Channel) -> Fraction | None:
    """Read a channel; None where it is not said, or not of all phases.

    Raises: Malformed for a register that is no number. Of other channels that is as if it were not said.
    """
    try:
        parts = [_number(_look(row, path), path, channel.when_array) for path in channel.sum_of or [channel.path or ""]]
    except Malformed:
        if name in (IMPORT, EXPORT):
            raise
        return None
    return None if None in parts else sum((part for part in parts if part is not None), Fraction(0))


def _number(value: Json, path: str, when_array: WhenArray) -> Fraction | None:
    if value is _ABSENT:
        return None
    if not isinstance(value, list):
        return number_of(value, path)
    if when_array is WhenArray.REFUSE or not value:
        raise Malformed(f"{path}: expected one number, got an array of {len(value)}")
    numbers = [number_of(part, path) for part in value]
    if when_array is WhenArray.FIRST:
        return numbers[0]
    return None if None in numbers else sum((number for number in numbers if number is not None), Fraction(0))
