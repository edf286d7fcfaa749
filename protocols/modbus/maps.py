"""Register maps: a model of Modbus meter told as data, in TOML.

Stage: what the gateway, the probe and the simulated meters know of a make. A document names registers by quantity with
address, type, unit and scale; its form is described in docs/modbus-maps.md, shipped documents lie beside this module.
A new make needs a document and no code. What is wrong with one is found by `protocols.modbus.map_checks`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import ClassVar, Final

from protocols.errors import Malformed
from protocols.modbus.quantities import IMPORT
from protocols.modbus.values import Form, RegisterType, WordOrder, text_of, value_of

# What a map may leave to be found by a probe.
CONFIRMABLE: Final = ("base", "word_order")


class MapError(Exception):
    """A register map is unusable; the message is one line."""

    code: ClassVar[str] = "modbus_map"


class Parity(StrEnum):
    """The parity bit of a serial line."""

    NONE = "none"
    EVEN = "even"
    ODD = "odd"


class RelayKind(StrEnum):
    """By what a relay is switched."""

    COIL = "coil"
    REGISTER = "register"


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """One value of a meter.

    Units: raw value times `factor` is the unit that the quantity is stored in; where there is a `scale_address`, times
        ten to the power of the signed word there, too.
    Invariants: addresses are as the document writes them, a map's base still to be taken off; `words` is its width.
        A `doubtful` one is read only from a meter for which a probe has confirmed the map.
    """

    quantity: str
    address: int
    type: RegisterType
    function: int
    factor: Fraction
    unit: str
    scale_address: int | None = None
    order: WordOrder | None = None
    words: int
    invalid: frozenset[int] = frozenset()
    form: Form = Form.PLAIN
    doubtful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A register that tells the model: it holds one of `values`, a text one that begins with one of them."""

    register: Register
    values: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayMap:
    """How a relay is switched and read back.

    Invariants: `address` is a wire address; supply flows when the coil or register holds `on` and is cut when it holds
        `off`; any other value says neither.
    """

    kind: RelayKind
    address: int
    on: int
    off: int
    read_function: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LineDefaults:
    """How a meter of the model talks when it leaves the works."""

    baud: int = 9600
    parity: Parity = Parity.NONE
    stop_bits: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """What a meter of the model measures at most.

    Invariants: `current_a` is None for meters behind transformers, whose ratio is the installation's.
    """

    voltage_v: int = 230
    current_a: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterMap:
    """A model of meter.

    Invariants: registers do not overlap and are in the order of function and address; `import_wh` is among them unless
        the map is of a relay alone. Reads span at most `words_max` words and skip at most `gap_words_max` that no
        register of ours covers, since some makes refuse what they do not know. `confirm` names what a probe has to
        find before a meter of the model may be charged.
    """

    model: str
    make: str
    title: str
    source: str
    phases: int
    base: int
    word_order: WordOrder
    registers: tuple[Register, ...]
    identity: Identity | None
    serial: Register | None
    relay: RelayMap | None
    line: LineDefaults
    rated: Rated
    words_max: int
    gap_words_max: int
    confirm: frozenset[str]

    @property
    def doubts(self) -> tuple[str, ...]:
        """What has to be confirmed by a probe before a meter of this map may be charged; empty for most.

        By power and energy alone words in the wrong order are not always noticed: somebody has to have looked.
        """
        unsure = [entry.quantity for entry in self.registers if entry.doubtful and entry.quantity == IMPORT]
        blind = set() if self.has_vouching or self.is_relay_only else {"word_order"}
        return (*sorted(self.confirm | blind), *unsure)

    @property
    def has_vouching(self) -> bool:
        """Whether it shows a voltage or a frequency, which only a rightly read meter in service is likely to show."""
        return any(entry.quantity.startswith(("voltage_", "freq_")) for entry in self.registers)

    @property
    def is_relay_only(self) -> bool:
        """Whether this is no meter but a relay beside one."""
        return not self.registers

    def register(self, quantity: str) -> Register | None:
        """Return the register of a quantity, if the map names it."""
        return next((entry for entry in self.registers if entry.quantity == quantity), None)

    def variant(self, *, base: int | None = None, word_order: WordOrder | None = None) -> "RegisterMap":
        """Return the same map with another base or word order: what a probe found at one meter."""
        return replace(
            self,
            base=self.base if base is None else base,
            word_order=self.word_order if word_order is None else word_order,
        )

    def wire_address(self, entry: Register) -> int:
        """Return the address of a register as it goes over the wire."""
        return entry.address - self.base

    def value(self, entry: Register, data: bytes, *, exponent: int = 0) -> int | None:
        """Turn the bytes of a register into a value in its stored unit; None where the meter says it has none.

        `exponent` is what its scale register holds, for those that have one.
        Raises: Malformed when the bytes are not as many as the register has.
        """
        order = entry.order or self.word_order
        factor = entry.factor * Fraction(10) ** exponent if exponent else entry.factor
        return value_of(data, entry.type, order, factor, invalid=entry.invalid, form=entry.form)

    def told(self, entry: Register, data: bytes) -> int | str | None:
        """Turn the bytes of an identity or serial register into what it says.

        Raises: Malformed when the bytes are not as many as the register has.
        """
        if len(data) != 2 * entry.words:
            raise Malformed(f"{entry.quantity}: expected {2 * entry.words} bytes, got {len(data)}")
        if entry.type is RegisterType.TEXT:
            return text_of(data, entry.order or self.word_order)
        return self.value(entry, data)

    def is_identified_by(self, data: bytes) -> bool:
        """Tell whether the bytes of the identity register are those of this model."""
        assert self.identity is not None, f"map {self.model} has no identity"
        told = self.told(self.identity.register, data)
        if isinstance(told, str):
            return told.startswith(tuple(str(value) for value in self.identity.values))
        return told in self.identity.values


def words_of(kind: RegisterType, words: int | None) -> int:
    """Return the width of a register; only text has one of its own."""
    return words if kind is RegisterType.TEXT and words is not None else kind.words


def coil_at(relay: RelayMap, address: int) -> RelayMap:
    """Return the relay with another coil or register: one of many on the same module."""
    return replace(relay, address=address)


def in_wire_order(registers: Iterable[Register]) -> tuple[Register, ...]:
    """Sort registers by function and address."""
    return tuple(sorted(registers, key=lambda entry: (entry.function, entry.address)))


def load_map(text: str, name: str) -> RegisterMap:
    """Read a map; `name` is the file's, for messages.

    Raises: MapError, one line with file, line, entry, expected and got, for the first thing that is wrong.
    """
    from protocols.modbus.map_checks import examine  # That module makes these classes.

    made, complaints = examine(text, name)
    if made is None or complaints:
        raise MapError(complaints[0])
    return made


@cache
def builtin_maps() -> Mapping[str, RegisterMap]:
    """Return the shipped maps by model."""
    maps = (load_map(builtin_map_text(model), f"{model}.toml") for model in _builtin_models())
    return MappingProxyType({made.model: made for made in maps})


def builtin_map_text(model: str) -> str:
    """Return the text of a shipped map.

    Raises: MapError when there is none of that name.
    """
    if model not in _builtin_models():
        raise MapError(f"model: expected one of {', '.join(_builtin_models())}, got {model!r}")
    return _documents().joinpath(f"{model}.toml").read_text(encoding="utf-8")


def _builtin_models() -> list[str]:
    return sorted(entry.name.removesuffix(".toml") for entry in _documents().iterdir() if entry.name.endswith(".toml"))


def _documents() -> "resources.abc.Traversable":
    return resources.files("protocols.modbus").joinpath("documents")
