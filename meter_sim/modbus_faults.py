"""What goes wrong on a Modbus line: one fault of a unit at a time, and what of its answer is left.

Stage: between a unit's good answer and the wire. The seeded generator is an argument; which faults happened leaves in
`met`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Final

from meter_sim.modbus_wire import Exceptional, Request, framed, refusal

_NOISE_BYTES_MAX: Final = 12


class ModbusFault(Enum):
    """What a unit suffers from."""

    SILENT = "silent"
    SLOW = "slow"
    # Refuses with an exception.
    EXCEPTION = "exception"
    # The two words of each value stand the other way round, as in a batch of another firmware.
    WRONG_WORDS = "wrong_words"
    # Answers, but its registers stand still.
    STUCK = "stuck"
    # Its energy registers begin again at zero, once.
    RESET = "reset"
    # Bytes that belong to nobody before the answer.
    GARBAGE = "garbage"
    # The answer comes in two pieces, the second a little later.
    TORN = "torn"
    # An answer to another request before the right one.
    STRAY = "stray"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSettings:
    """How bad it is: each `every`-th request suffers; a slow or torn answer's end comes `delay_ms` late."""

    every: int = 1
    delay_ms: int = 500
    exception: Exceptional = Exceptional.BUSY


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes for the wire, so long after the request."""

    delay_ms: int
    data: bytes


@dataclass(slots=True)
class LineFault:
    """A fault that a unit has.

    Invariants: `met` counts the requests that suffered; of every `every` requests it is the last.
    """

    fault: ModbusFault
    rng: Random
    settings: FaultSettings = field(default_factory=FaultSettings)
    met: Counter[ModbusFault] = field(default_factory=Counter)
    _requests: int = 0

    def spoil(self, request: Request, pdu: bytes) -> tuple[Piece, ...]:
        """Return what goes on the wire in the place of a good answer."""
        self._requests += 1
        whole = framed(request, pdu)
        if self._requests % self.settings.every:
            return (Piece(delay_ms=0, data=whole),)
        self.met[self.fault] += 1
        delay_ms = self.settings.delay_ms
        match self.fault:
            case ModbusFault.SILENT:
                return ()
            case ModbusFault.SLOW:
                return (Piece(delay_ms=delay_ms, data=whole),)
            case ModbusFault.EXCEPTION:
                return (Piece(delay_ms=0, data=framed(request, refusal(request.pdu, self.settings.exception))),)
            case ModbusFault.GARBAGE:
                return (Piece(delay_ms=0, data=self._noise() + whole),)
            case ModbusFault.TORN:
                cut = self.rng.randrange(1, len(whole))
                return (Piece(delay_ms=0, data=whole[:cut]), Piece(delay_ms=delay_ms, data=whole[cut:]))
            case ModbusFault.STRAY:
                return (Piece(delay_ms=0, data=self._stray(request, pdu) + whole),)
            case ModbusFault.WRONG_WORDS | ModbusFault.STUCK | ModbusFault.RESET:
                # These are in the registers already.
                return (Piece(delay_ms=0, data=whole),)

    def _noise(self) -> bytes:
        return self.rng.randbytes(self.rng.randrange(1, _NOISE_BYTES_MAX + 1))

    def _stray(self, request: Request, pdu: bytes) -> bytes:
        transaction = None if request.transaction is None else (request.transaction - 1) % 65_536
        # One of another unit, where nothing else tells that it is not the awaited one.
        unit = request.unit if transaction is not None else request.unit % 247 + 1
        return framed(Request(unit, transaction, request.pdu), pdu)
