"""Probing a Modbus meter: which model it is, on which unit, by which framing, base address and word order.

Stage: before a meter is polled and charged. Every map is tried over an open line, reading only; what it makes of the
answers is judged, and a map stands when something speaks for its values and nothing against them. The report holds the
readings of those that stand and says of each other one why it was refused. Writes nothing, to no meter and no database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from headend.edges.modbus_line import LineError
from protocols.errors import FrameError
from protocols.modbus.blocks import BlockRead, decode_block, plan_reads
from protocols.modbus.frames import Framing, answer_bytes, read_pdu, registers_of
from protocols.modbus.maps import RegisterMap, builtin_maps
from protocols.modbus.plausible import Judgement, judge
from protocols.modbus.quantities import IMPORT, Values
from protocols.modbus.sunspec import Discovered, discover
from protocols.modbus.values import WordOrder

# Silence is a wrong unit or framing, or a meter that does not answer what it does not know. The shipped maps ask for
# some 20 different words first; 12 of them unanswered at 1 s each are as long as an operator waits for one unit.
SILENT_READS_MAX: Final = 12
# After a time-out the answer may still be on its way; on RTU it could be taken for the next one's.
QUIET_S: Final = 0.5


class Line(Protocol):
    """An open line, as `headend.edges.modbus_line` has it."""

    async def ask(self, unit: int, pdu: bytes, length: int) -> bytes:
        """Send a request and return the PDU of its answer, an exception's included.

        Raises: LineError when none comes.
        """

    def close(self) -> None:
        """End the connection."""


# Opens the line anew; raises OSError (time-outs are), or LineError.
OpenLine = Callable[[Framing], Awaitable[Line]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A map that stands.

    Invariants: `map` has the base and word order that were found. `is_identified`: the meter itself says that it is of
        this model. `is_as_documented`: neither base nor order had to be changed. `is_order_told`: the other word order
        makes no sense of the same words; without load and energy it may.
    """

    framing: Framing
    unit: int
    map: RegisterMap
    values: Values
    judgement: Judgement
    serial: str | None
    is_identified: bool
    is_as_documented: bool
    is_order_told: bool

    @property
    def standing(self) -> tuple[bool, bool, int, int, int]:
        """What speaks for it, more is better: the meter's word, its document, how much it explains; then what does not.

        Zeros explain nothing, since a map that asks for more than a meter has may be answered zeros. Dead phases and
        registers that were refused speak against a map that explains no more than another.
        """
        explained = sum(1 for value in self.values.values() if value)
        dead = sum(1 for name, value in self.values.items() if name.startswith("voltage_") and not value)
        missing = len(self.map.registers) - len(self.values)
        return self.is_identified, self.is_as_documented, explained, -dead, -missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A map that does not stand, and why."""

    framing: Framing
    unit: int
    model: str
    base: int
    word_order: WordOrder
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """What a probe found.

    Invariants: `found` has the best first; of several that explain as much the one with the fewest registers.
    """

    found: tuple[Found, ...]
    refused: tuple[Refused, ...]
    silent: tuple[tuple[Framing, int], ...]

    @property
    def best(self) -> Found | None:
        """The best of what was found."""
        return self.found[0] if self.found else None

    @property
    def rivals(self) -> tuple[Found, ...]:
        """What stands as well as the best, so that an operator has to choose."""
        best = self.best
        if best is None:
            return ()
        return tuple(
            each
            for each in self.found[1:]
            if (each.framing, each.unit, each.standing) == (best.framing, best.unit, best.standing)
        )


async def probe(
    open_line: OpenLine,
    *,
    framings: Sequence[Framing] = (Framing.TCP, Framing.RTU),
    units: Sequence[int] = (1,),
    maps: Iterable[RegisterMap] | None = None,
    sunspec: bool = True,
    quiet_s: float = QUIET_S,
    silent_reads_max: int = SILENT_READS_MAX,
) -> ProbeReport:
    """Try maps on units by framings, without maps all that are shipped; and SunSpec.

    Raises: OSError, LineError when the line cannot be opened at all.
    """
    tried = [each for each in (builtin_maps().values() if maps is None else maps) if not each.is_relay_only]
    found: list[Found] = []
    refused: list[Refused] = []
    silent: list[tuple[Framing, int]] = []
    for framing in framings:
        line = _Reopened(open_line, framing, quiet_s)
        await line.open()
        try:
            for unit in units:
                reader = _Reader(line, unit, silent_reads_max)
                for each in tried:
                    await _try_map(reader, each, found, refused)
                if sunspec:
                    await _try_sunspec(reader, found)
                if not reader.has_answered:
                    silent.append((framing, unit))
        finally:
            line.close()
        if found:
            break
    found.sort(key=lambda each: (*each.standing, -len(each.map.registers)), reverse=True)
    return ProbeReport(found=tuple(found), refused=tuple(refused), silent=tuple(silent))


class _NotRead(Exception):
    """A read brought no words; the message says why."""


class _Reopened:
    """A line that is opened again when it was lost, as it is after a while of silence."""

    def __init__(self, open_line: OpenLine, framing: Framing, quiet_s: float) -> None:
        self.framing = framing
        self._open_line = open_line
        self._quiet_s = quiet_s
        self._line: Line | None = None

    async def open(self) -> None:
        self._line = await self._open_line(self.framing)

    async def ask(self, unit: int, pdu: bytes, length: int) -> bytes:
        try:
            if self._line is None:
                await self.open()
            assert self._line is not None
            return await self._line.ask(unit, pdu, length)
        except (LineError, OSError):
            self.close()
            await asyncio.sleep(self._quiet_s)
            raise

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


class _Reader:
    """The reads of one unit, each made once."""

    def __init__(self, line: _Reopened, unit: int, silent_reads_max: int) -> None:
        self.unit = unit
        self.framing = line.framing
        self.has_answered = False
        self._line = line
        self._silent_left = silent_reads_max
        self._known: dict[tuple[int, int, int], bytes | str] = {}

    async def read(self, function: int, address: int, count: int) -> bytes:
        """Return words.

        Raises: _NotRead.
        """
        key = (function, address, count)
        if key not in self._known:
            self._known[key] = await self._ask(function, address, count)
        known = self._known[key]
        if isinstance(known, str):
            raise _NotRead(known)
        return known

    async def _ask(self, function: int, address: int, count: int) -> bytes | str:
        if not self.has_answered and self._silent_left <= 0:
            return "no answer to any read before"
        try:
            answer = await self._line.ask(self.unit, read_pdu(function, address, count), answer_bytes(function, count))
            self.has_answered = True
            return registers_of(answer)
        except (LineError, OSError) as error:
            self._silent_left -= 1
            return str(error) or type(error).__name__
        except FrameError as error:
            return str(error)


async def _try_map(reader: _Reader, documented: RegisterMap, found: list[Found], refused: list[Refused]) -> None:
    def refuse(tried: RegisterMap, reason: str) -> None:
        refused.append(
            Refused(
                framing=reader.framing,
                unit=reader.unit,
                model=tried.model,
                base=tried.base,
                word_order=tried.word_order,
                reason=reason,
            )
        )

    for based in _bases(documented):
        try:
            await _require_identity(reader, based)
            answers = await _answers(reader, based)
        except (_NotRead, FrameError) as error:
            refuse(based, str(error))
            continue
        standing: list[tuple[RegisterMap, dict[str, int | None], Judgement]] = []
        for order in (based.word_order, based.word_order.other):
            tried = based.variant(word_order=order)
            values = _values(tried, answers)
            judgement = judge(tried, values)
            if judgement.is_plausible:
                standing.append((tried, values, judgement))
            else:
                refuse(tried, _reason(judgement))
        if standing:
            # Where both orders stand, words of 16 bits and zeros are all there is; the document's is taken.
            found.append(await _found(reader, documented, standing[0], is_order_told=len(standing) == 1))
            if "base" not in documented.confirm:
                return


def _bases(documented: RegisterMap) -> Iterator[RegisterMap]:
    """Yield the map as documented, then counted from the other number, where that leaves every address one."""
    yield documented
    other = documented.variant(base=1 - documented.base)
    if all(other.wire_address(entry) >= 0 for entry in other.registers):
        yield other


async def _require_identity(reader: _Reader, tried: RegisterMap) -> None:
    if tried.identity is None:
        return
    entry = tried.identity.register
    words = await reader.read(entry.function, tried.wire_address(entry), entry.words)
    if not tried.is_identified_by(words):
        expected = " or ".join(str(value) for value in tried.identity.values)
        raise _NotRead(f"identity: expected {expected}, got {tried.told(entry, words)}")


async def _answers(reader: _Reader, tried: RegisterMap) -> list[tuple[BlockRead, bytes]]:
    """Read every block that answers, the one with the charged register first; that one must.

    Raises: _NotRead.
    """
    blocks = plan_reads(tried, confirmed=True)
    answers: list[tuple[BlockRead, bytes]] = []
    for block in sorted(blocks, key=lambda block: not _holds_import(block)):
        for part in await _parts(reader, tried, block):
            try:
                answers.append((part, await reader.read(part.function, part.address, part.count)))
            except _NotRead as error:
                if _holds_import(part):
                    raise _NotRead(f"{IMPORT}: {error}") from None
    return answers


async def _parts(reader: _Reader, tried: RegisterMap, block: BlockRead) -> tuple[BlockRead, ...]:
    """Return the block, or what is left of it without gaps where the meter refuses those."""
    try:
        await reader.read(block.function, block.address, block.count)
    except _NotRead:
        if reader.has_answered:
            return plan_reads(tried, [entry.quantity for entry in block.registers], gap_words_max=0, confirmed=True)
    return (block,)


def _holds_import(block: BlockRead) -> bool:
    return any(entry.quantity == IMPORT for entry in block.registers)


def _values(tried: RegisterMap, answers: list[tuple[BlockRead, bytes]]) -> dict[str, int | None]:
    values: dict[str, int | None] = {}
    for block, words in answers:
        values |= decode_block(tried, block, words)
    return values


def _reason(judgement: Judgement) -> str:
    if not judgement.doubts:
        return "expected a voltage, a frequency or an energy that speaks for it, got none"
    more = len(judgement.doubts) - 1
    return f"{judgement.doubts[0]}{f', and {more} more' if more else ''}"


async def _found(
    reader: _Reader,
    documented: RegisterMap,
    standing: tuple[RegisterMap, dict[str, int | None], Judgement],
    *,
    is_order_told: bool,
    is_identified: bool | None = None,
    serial: str | None = None,
) -> Found:
    tried, values, judgement = standing
    return Found(
        framing=reader.framing,
        unit=reader.unit,
        map=tried,
        values=values,
        judgement=judgement,
        serial=serial or await _serial(reader, tried),
        is_identified=tried.identity is not None if is_identified is None else is_identified,
        is_as_documented=(tried.base, tried.word_order) == (documented.base, documented.word_order),
        is_order_told=is_order_told,
    )


async def _serial(reader: _Reader, tried: RegisterMap) -> str | None:
    if tried.serial is None:
        return None
    try:
        words = await reader.read(tried.serial.function, tried.wire_address(tried.serial), tried.serial.words)
        told = tried.told(tried.serial, words)
    except (_NotRead, FrameError):
        return None
    return None if told is None else str(told)


async def _try_sunspec(reader: _Reader, found: list[Found]) -> None:
    device = await discover_device(reader.read)
    for meter in device.meters if device else ():
        try:
            answers = await _answers(reader, meter)
        except _NotRead:
            continue
        values = _values(meter, answers)
        judgement = judge(meter, values)
        if device is not None and judgement.is_plausible:
            standing = (meter, values, judgement)
            found.append(
                await _found(reader, meter, standing, is_order_told=True, is_identified=True, serial=device.serial)
            )


async def discover_device(read: Callable[[int, int, int], Awaitable[bytes]]) -> Discovered | None:
    """Ask a device for its SunSpec models; None where it has none. `read` may fail in any way that a read can."""
    discovery = discover()
    words: bytes | None = None
    while True:
        try:
            ask = discovery.send(words)
        except StopIteration as end:
            device: Discovered | None = end.value
            return device
        try:
            words = await read(ask.function, ask.address, ask.count)
        except (_NotRead, LineError, FrameError, OSError):
            words = None
