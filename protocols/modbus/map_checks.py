"""Reading and checking register maps: what is wrong with a document, all of it, each in one line.

Stage: before any meter is asked. Enters the text of a map; leave the map, and complaints that name file, line, entry,
what was expected and what stood there.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from protocols.modbus.frames import ADDRESS_MAX, READ_WORDS_MAX
from protocols.modbus.maps import (
    CONFIRMABLE,
    Identity,
    LineDefaults,
    Parity,
    Rated,
    Register,
    RegisterMap,
    RelayKind,
    RelayMap,
    in_wire_order,
    words_of,
)
from protocols.modbus.quantities import IMPORT, PHASES, QUANTITIES, units_of
from protocols.modbus.values import Form, RegisterType, WordOrder

# Where an answer of 253 bytes fits every meter and converter read of, many RS-485 meters stop at 80 words.
WORDS_MAX: Final = 80
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}", re.ASCII)
_SCALE: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_READS_OF_RELAYS: Final = {RelayKind.COIL: 1, RelayKind.REGISTER: 3}
_BAUDS: Final = (1200, 2400, 4800, 9600, 19_200, 38_400, 57_600, 115_200)
_TEXT_WORDS_MAX: Final = 32

_Positive = Annotated[int, Meta(ge=1, le=1_000_000)]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    at: int
    unit: str = ""
    type: RegisterType | None = None
    scale: str = "1"
    function: int | None = None
    invalid: list[str] | None = None
    form: Form = Form.PLAIN
    word_order: WordOrder | None = None
    scale_at: int | None = None
    words: int | None = None
    values: list[int | str] | None = None
    doubtful: bool = False


class _Relay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: RelayKind
    at: int
    on: int
    off: int
    read_function: int | None = None


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    baud: int = 9600
    parity: Parity = Parity.NONE
    stop_bits: int = 1


class _Rated(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    voltage_v: _Positive = 230
    current_a: _Positive | None = None


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    make: str
    title: str
    source: str
    phases: Annotated[int, Meta(ge=1, le=3)] = 1
    function: int = 3
    base: Annotated[int, Meta(ge=0, le=1)] = 0
    word_order: WordOrder = WordOrder.ABCD
    type: RegisterType | None = None
    confirm: list[str] = msgspec.field(default_factory=list)
    words_max: Annotated[int, Meta(ge=1, le=READ_WORDS_MAX)] = WORDS_MAX
    gap_words_max: Annotated[int, Meta(ge=0, le=READ_WORDS_MAX)] = 0
    line: _Line = msgspec.field(default_factory=_Line)
    rated: _Rated = msgspec.field(default_factory=_Rated)
    invalid: dict[RegisterType, list[str]] = msgspec.field(default_factory=dict)
    registers: dict[str, _Entry] = msgspec.field(default_factory=dict)
    identity: _Entry | None = None
    serial: _Entry | None = None
    relay: _Relay | None = None


class _Wrong(Exception):
    """One entry is unusable: `path` says which."""

    def __init__(self, path: Sequence[str], complaint: str) -> None:
        super().__init__(complaint)
        self.path = tuple(path)


def check_map(text: str, name: str) -> tuple[str, ...]:
    """Return what is wrong with a map, one line each; nothing for one that may be used. `name` is the file's."""
    return examine(text, name)[1]


def examine(text: str, name: str) -> tuple[RegisterMap | None, tuple[str, ...]]:
    """Read a map and say what is wrong with it; no map where it cannot even be read."""
    try:
        document = msgspec.convert(tomllib.loads(text), _Document)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        return None, (f"{name}: {_with_line(text, str(error))}",)
    wrong: list[_Wrong] = []
    attempts = [_made(wrong, document, quantity, entry) for quantity, entry in document.registers.items()]
    registers = [attempt for attempt in attempts if attempt is not None]
    identity, serial, relay = _beside(wrong, document)
    made = RegisterMap(
        model=document.model,
        make=document.make,
        title=document.title,
        source=document.source,
        phases=document.phases,
        base=document.base,
        word_order=document.word_order,
        registers=in_wire_order(registers),
        identity=identity,
        serial=serial,
        relay=relay,
        line=LineDefaults(**msgspec.structs.asdict(document.line)),
        rated=Rated(**msgspec.structs.asdict(document.rated)),
        words_max=document.words_max,
        gap_words_max=document.gap_words_max,
        confirm=frozenset(document.confirm),
    )
    wrong += _of_the_whole(document, made)
    return made, tuple(_line(text, name, each) for each in wrong)


def _line(text: str, name: str, wrong: _Wrong) -> str:
    number = line_of(text, wrong.path)
    place = f"{name}: line {number}" if number else name
    return f"{place}: {'.'.join(wrong.path)}: {wrong}" if wrong.path else f"{place}: {wrong}"


def _made(wrong: list[_Wrong], document: _Document, quantity: str, entry: _Entry) -> Register | None:
    try:
        return _register(document, ("registers", quantity), quantity, entry)
    except _Wrong as error:
        wrong.append(error)
        return None


def _beside(wrong: list[_Wrong], document: _Document) -> tuple[Identity | None, Register | None, RelayMap | None]:
    """Make what a map has beside its registers."""
    identity, serial, relay = None, None, None
    try:
        if document.serial is not None:
            serial = _told_register(document, "serial", document.serial)
        if document.identity is not None:
            if not document.identity.values:
                raise _Wrong(("identity", "values"), "expected at least one value that tells the model, got none")
            register = _told_register(document, "identity", document.identity)
            identity = Identity(register=register, values=tuple(document.identity.values))
        if document.relay is not None:
            relay = _relay(document, document.relay)
    except _Wrong as error:
        wrong.append(error)
    return identity, serial, relay


def _register(document: _Document, path: tuple[str, ...], quantity: str, entry: _Entry) -> Register:
    if quantity not in QUANTITIES:
        raise _Wrong(path, f"expected a known quantity ({', '.join(QUANTITIES[:9])}, ...), got {quantity!r}")
    if document.phases == 1 and any(f"_{phase}_" in quantity for phase in PHASES[1:]):
        raise _Wrong(path, "expected quantities of one phase, got one of another in a map with phases = 1")
    units = units_of(quantity)
    if entry.unit not in units:
        raise _Wrong(path, f"expected a unit of {', '.join(units)}, got {entry.unit!r}")
    if _SCALE.fullmatch(entry.scale) is None or not Fraction(entry.scale):
        raise _Wrong(path, f'expected a scale above 0 such as "0.1", got {entry.scale!r}')
    kind = entry.type or document.type
    if kind is None or kind is RegisterType.TEXT:
        raise _Wrong(path, f"expected the type of a number, got {'none' if kind is None else kind.value}")
    if entry.form is not Form.PLAIN and not quantity.endswith("_milli"):
        raise _Wrong(path, f"expected form four_quadrant at a power factor alone, got it at {quantity}")
    if entry.words is not None or entry.values is not None:
        raise _Wrong(path, "expected words and values at texts and identities alone, got them at a quantity")
    return _placed(document, path, quantity, entry, kind, units[entry.unit] * Fraction(entry.scale))


def _told_register(document: _Document, name: str, entry: _Entry) -> Register:
    """Make an identity or serial register: a whole number or a text, without unit."""
    kind = entry.type or document.type
    if kind is None or kind in (RegisterType.F32, RegisterType.F64):
        raise _Wrong((name,), f"expected the type of a whole number or text, got {kind.value if kind else 'none'}")
    if entry.unit or entry.scale != "1" or entry.scale_at is not None:
        raise _Wrong((name,), "expected neither unit nor scale, got one")
    if kind is RegisterType.TEXT and not 1 <= (entry.words or 0) <= _TEXT_WORDS_MAX:
        raise _Wrong((name,), f"expected words of 1 to {_TEXT_WORDS_MAX} for a text, got {entry.words}")
    return _placed(document, (name,), name, entry, kind, Fraction(1))


def _placed(
    document: _Document, path: tuple[str, ...], name: str, entry: _Entry, kind: RegisterType, factor: Fraction
) -> Register:
    function = document.function if entry.function is None else entry.function
    if function not in (3, 4):
        raise _Wrong(path, f"expected function 3 or 4, got {function}")
    words = words_of(kind, entry.words)
    first = entry.at - document.base
    if first < 0 or first + words - 1 > ADDRESS_MAX:
        raise _Wrong(path, f"expected wire addresses of 0 to {ADDRESS_MAX}, got {first} to {first + words - 1}")
    if words > document.words_max:
        raise _Wrong(path, f"expected a value of at most words_max = {document.words_max} words, got {words}")
    if entry.scale_at is not None and not 0 <= entry.scale_at - document.base <= ADDRESS_MAX:
        raise _Wrong(path, f"expected a scale_at of 0 to {ADDRESS_MAX} on the wire, got {entry.scale_at}")
    return Register(
        quantity=name,
        address=entry.at,
        scale_address=entry.scale_at,
        type=kind,
        function=function,
        factor=factor,
        unit=entry.unit,
        order=entry.word_order,
        words=words,
        invalid=_patterns(path, document.invalid.get(kind, []) if entry.invalid is None else entry.invalid, words),
        form=entry.form,
        doubtful=entry.doubtful,
    )


def _patterns(path: tuple[str, ...], patterns: list[str], words: int) -> frozenset[int]:
    for pattern in patterns:
        if re.fullmatch(rf"[0-9A-Fa-f]{{{4 * words}}}", pattern) is None:
            raise _Wrong(path, f"expected an invalid pattern of {4 * words} hexadecimal digits, got {pattern!r}")
    return frozenset(int(pattern, 16) for pattern in patterns)


def _relay(document: _Document, relay: _Relay) -> RelayMap:
    most = 1 if relay.kind is RelayKind.COIL else 0xFFFF
    if relay.on == relay.off or not (0 <= relay.on <= most and 0 <= relay.off <= most):
        raise _Wrong(("relay",), f"expected on and off to differ within 0 to {most}, got {relay.on} and {relay.off}")
    if not 0 <= relay.at - document.base <= ADDRESS_MAX:
        raise _Wrong(("relay",), f"expected a wire address of 0 to {ADDRESS_MAX}, got {relay.at - document.base}")
    read_function = _READS_OF_RELAYS[relay.kind] if relay.read_function is None else relay.read_function
    if read_function not in ((1, 2) if relay.kind is RelayKind.COIL else (3, 4)):
        raise _Wrong(("relay",), f"expected a function that reads a {relay.kind.value}, got {read_function}")
    return RelayMap(
        kind=relay.kind,
        address=relay.at - document.base,
        on=relay.on,
        off=relay.off,
        read_function=read_function,
    )


def _of_the_whole(document: _Document, made: RegisterMap) -> Iterator[_Wrong]:
    for name, text in (("make", made.make), ("title", made.title), ("source", made.source)):
        if not text.strip():
            yield _Wrong((name,), "expected a text, got an empty one")
    if _NAME.fullmatch(made.model) is None:
        yield _Wrong(("model",), f"expected lower-case letters, digits and hyphens, got {made.model!r}")
    for fact in sorted(made.confirm - set(CONFIRMABLE)):
        yield _Wrong(("confirm",), f"expected facts of {', '.join(CONFIRMABLE)}, got {fact!r}")
    if made.line.baud not in _BAUDS or made.line.stop_bits not in (1, 2):
        yield _Wrong(("line",), f"expected a usual speed and 1 or 2 stop bits, got {made.line.baud} baud")
    if IMPORT not in document.registers and not (made.relay is not None and not document.registers):
        yield _Wrong(("registers",), f"expected {IMPORT}, got none: without energy nothing can be charged")
    for before, after in pairwise(made.registers):
        if before.function == after.function and before.address + before.words > after.address:
            yield _Wrong(
                ("registers", after.quantity),
                f"expected words of its own, got 0x{after.address:04X}, which {before.quantity} covers",
            )


_HEADER: Final = re.compile(r"\s*\[\s*([A-Za-z0-9_.-]+)\s*\]")
_KEY: Final = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")
_PATH_SHOWN: Final = re.compile(r"`\$\.([^`]*)`")


def line_of(text: str, path: Sequence[str]) -> int | None:
    """Return the line of an entry of a TOML text, or of the nearest entry around it; None where there is none."""
    table: tuple[str, ...] = ()
    found: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = tuple(header[1].split("."))
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, key[1]), number)
    for length in range(len(path), 0, -1):
        if (number_found := found.get(tuple(path[:length]))) is not None:
            return number_found
    return None


def _with_line(text: str, complaint: str) -> str:
    """Put the line before what the parser says where it names an entry; broken TOML names its line itself."""
    shown = _PATH_SHOWN.search(complaint)
    if shown is None:
        return complaint
    number = line_of(text, re.split(r"[.\[]", shown[1]))
    return complaint if number is None else f"line {number}: {complaint}"
