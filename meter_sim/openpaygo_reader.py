"""The token reader inside a simulated pay-as-you-go device: keys or digits in, time or a refusal out.

Enters: keys as pressed or digits as typed, the time. Leaves: a `PaygoEntry`, and whether supply is on. Never: a clock,
storage; the device persists `memory` after every entry, its waiting time too.

It is written apart from the vending engine, from the device's side of the specification, so that the two check each
other; they share nothing.
Standard: OpenPAYGO Token, general documentation (EnAccess): decoding, unordered entry, counter synchronisation, waiting
period. Left out, as it allows: the reset token of count 0, which would let every token be used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from struct import pack, unpack
from typing import Self

DAY_MS = 86_400_000
START_KEY = "*"
# How far above the highest count a token may lie: the specification's figure, and the one of its device code 2.x.
COUNTS_AHEAD_SPECIFIED = 30
COUNTS_AHEAD_DEVICE_CODE = 64
# Unused tokens to add time are taken when less than this below the highest count.
COUNTS_OLDER_SPECIFIED = 10
COUNTS_OLDER_DEVICE_CODE = 16
_SYNC_AHEAD = 100
_SYNC_BEHIND = 30
# One minute after the first wrong entry, doubling to 512: almost a year for 1,000 guesses.
_WAIT_MS_FIRST = 60_000
_WAIT_DOUBLINGS_MAX = 9
_DISABLE, _SYNC = 998, 999


class PaygoResult(StrEnum):
    """What the device says of an entry."""

    ACCEPTED = "accepted"
    USED = "used"
    INVALID = "invalid"
    RESERVED = "reserved"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaygoEntry:
    """The outcome of one entry.

    Invariants: `count` and `value` are set for an accepted token only, `wait_until_ms` for a waiting device only.
    """

    result: PaygoResult
    count: int | None = None
    value: int | None = None
    wait_until_ms: int | None = None

    @property
    def accepted(self) -> bool:
        """Tell whether the token did something."""
        return self.result is PaygoResult.ACCEPTED


@dataclass(frozen=True, slots=True, kw_only=True)
class PaygoMemory:
    """What a device keeps when its power fails.

    Invariants: every count up to `floor` is used up; `used` are those above it that were entered, `synced` those of
    synchronisations. Instants are of a clock that is never set back.
    """

    count: int = 1
    floor: int = 1
    used: frozenset[int] = frozenset()
    synced: frozenset[int] = frozenset()
    payg_enabled: bool = True
    active_until_ms: int = 0
    wrong_entries: int = 0
    wait_until_ms: int = 0

    @classmethod
    def of_factory(cls, count: int) -> Self:
        """Return the memory of a device that leaves the factory with a count."""
        return cls(count=count, floor=count)


class OpenPaygoReader:
    """Reads the tokens of one device.

    Invariants: a token that adds or sets time does so once, unless a synchronisation has set the count back below it;
    nothing below a token that sets time, ends PAYG or synchronises is taken after it. No key shows in `repr`.
    """

    def __init__(
        self,
        key: bytes,
        starting_code: int,
        *,
        time_divider: int = 1,
        four_keys: bool = False,
        extended: bool = False,
        counts_ahead: int = COUNTS_AHEAD_SPECIFIED,
        counts_older: int = COUNTS_OLDER_SPECIFIED,
        memory: PaygoMemory | None = None,
    ) -> None:
        """Start with what the factory wrote into the device, and what it remembers from before its power failed."""
        self._key = key
        self._starting_code = starting_code
        self._time_divider = time_divider
        self._four_keys = four_keys
        self._extended = extended
        self._counts_ahead = counts_ahead
        self._counts_older = counts_older
        self._memory = memory or PaygoMemory()
        self._typed: str | None = None

    def __repr__(self) -> str:
        return f"OpenPaygoReader(count {self._memory.count})"

    @property
    def memory(self) -> PaygoMemory:
        """What the device must keep."""
        return self._memory

    @property
    def token_length(self) -> int:
        """How many digits a token of this device has."""
        if self._four_keys:
            return 20 if self._extended else 15
        return 12 if self._extended else 9

    def time_left_ms(self, now_ms: int) -> int | None:
        """Return how long the device stays on; none when PAYG is off and it stays on for good."""
        return max(0, self._memory.active_until_ms - now_ms) if self._memory.payg_enabled else None

    def is_active(self, now_ms: int) -> bool:
        """Tell whether the output is on."""
        return self.time_left_ms(now_ms) != 0

    def press(self, key: str, now_ms: int) -> PaygoEntry | None:
        """Take one key: a star begins an entry, its last digit ends it and is answered."""
        if key == START_KEY:
            self._typed = ""
            return self._waiting(now_ms)
        if self._typed is None or key not in ("1234" if self._four_keys else "0123456789"):
            return None
        self._typed += key
        if len(self._typed) < self.token_length:
            return None
        digits, self._typed = self._typed, None
        return self.enter(digits, now_ms)

    def enter(self, digits: str, now_ms: int) -> PaygoEntry:
        """Judge a whole entry, and do what it says."""
        waiting = self._waiting(now_ms)
        if waiting is not None:
            return waiting
        number = self._number(digits)
        entry = PaygoEntry(result=PaygoResult.INVALID) if number is None else self._judge(number)
        if entry.result is PaygoResult.INVALID:
            self._lengthen_wait(now_ms)
        elif entry.count is not None and entry.value is not None:
            self._remember(entry.count, entry.value)
            self._obey(entry.count, entry.value, now_ms)
        return entry

    def _waiting(self, now_ms: int) -> PaygoEntry | None:
        if now_ms >= self._memory.wait_until_ms:
            return None
        return PaygoEntry(result=PaygoResult.WAITING, wait_until_ms=self._memory.wait_until_ms)

    def _lengthen_wait(self, now_ms: int) -> None:
        wrong = self._memory.wrong_entries
        wait_ms = _WAIT_MS_FIRST << min(wrong, _WAIT_DOUBLINGS_MAX)
        self._memory = replace(self._memory, wrong_entries=wrong + 1, wait_until_ms=now_ms + wait_ms)

    def _number(self, digits: str) -> int | None:
        keys = "1234" if self._four_keys else "0123456789"
        if len(digits) != self.token_length or set(digits) - set(keys):
            return None
        if not self._four_keys:
            return int(digits)
        number = 0
        for digit in digits:
            number = number << 2 | keys.index(digit)
        return number

    def _judge(self, number: int) -> PaygoEntry:
        memory = self._memory
        value = self._value(number)
        found_used = False
        for count in self._counts_of(number, memory.count + (_SYNC_AHEAD if value == _SYNC else self._counts_ahead)):
            if self._may_take(count, value):
                if value in (996, 997):
                    return PaygoEntry(result=PaygoResult.RESERVED)
                return PaygoEntry(result=PaygoResult.ACCEPTED, count=count, value=value)
            found_used = True
        return PaygoEntry(result=PaygoResult.USED if found_used else PaygoResult.INVALID)

    def _may_take(self, count: int, value: int) -> bool:
        memory = self._memory
        if value == _SYNC:
            return count > max(0, memory.count - _SYNC_BEHIND) and count not in memory.synced
        if count > memory.count:
            return True
        adds_time = count % 2 == 0 and value != _DISABLE
        return adds_time and count > memory.floor and count not in memory.used

    def _remember(self, count: int, value: int) -> None:
        memory = self._memory
        if value == _SYNC:
            synced = frozenset(each for each in memory.synced | {count} if each > count - _SYNC_BEHIND)
            self._memory = replace(memory, count=count, floor=count, used=frozenset(), synced=synced)
        else:
            highest = max(memory.count, count)
            sets = count % 2 == 1 or value == _DISABLE
            floor = count if sets else max(memory.floor, highest - self._counts_older)
            used = frozenset(each for each in memory.used | {count} if each > floor)
            self._memory = replace(memory, count=highest, floor=floor, used=used)
        self._memory = replace(self._memory, wrong_entries=0)

    def _obey(self, count: int, value: int, now_ms: int) -> None:
        memory = self._memory
        if value == _DISABLE:
            self._memory = replace(memory, payg_enabled=False)
        elif value != _SYNC:
            # A part of a day that is not whole milliseconds is rounded up, in the consumer's favour.
            time_ms = -(-value * DAY_MS // self._time_divider)
            if count % 2:
                self._memory = replace(memory, payg_enabled=True, active_until_ms=now_ms + time_ms)
            elif memory.payg_enabled:
                self._memory = replace(memory, active_until_ms=max(now_ms, memory.active_until_ms) + time_ms)

    def _value(self, number: int) -> int:
        return (number - self._starting_code) % self._values

    @property
    def _values(self) -> int:
        return 10**6 if self._extended else 10**3

    def _counts_of(self, number: int, last: int) -> Iterator[int]:
        """Give the counts at which the number is a token of this device, by walking the whole chain of hashes."""
        base, rest = number % self._values, number // self._values
        code = self._starting_code // self._values * self._values + base
        for count in range(last + 1):
            if code // self._values == rest and count > 0:
                yield count
            code = self._hashed(code)

    def _hashed(self, code: int) -> int:
        if self._extended:
            number = _siphash(self._key, pack(">Q", code)) // 2**24
            return number - 99_511_627_777 if number > 999_999_999_999 else number
        high, low = divmod(_siphash(self._key, pack(">LL", code, code)), 2**32)
        number = (high ^ low) // 4
        return number - 73_741_825 if number > 999_999_999 else number


def _siphash(key: bytes, eight: bytes) -> int:
    """SipHash-2-4 of a message of eight bytes, which is all that a device ever hashes."""
    words: tuple[int, int, int] = unpack("<QQQ", key + eight)
    k0, k1, message = words
    a, b, c, d = (
        k ^ int.from_bytes(word, "big")
        for k, word in zip((k0, k1, k0, k1), (b"somepseu", b"dorandom", b"lygenera", b"tedbytes"), strict=True)
    )
    # Two blocks of two rounds: the message, then its length in the top byte; four rounds to end.
    for word, rounds in ((message, 2), (8 << 56, 2), (None, 4)):
        if word is None:
            c ^= 0xFF
        else:
            d ^= word
        for _ in range(rounds):
            a = (a + b) % 2**64
            b = _turned(b, 13) ^ a
            a = _turned(a, 32)
            c = (c + d) % 2**64
            d = _turned(d, 16) ^ c
            a = (a + d) % 2**64
            d = _turned(d, 21) ^ a
            c = (c + b) % 2**64
            b = _turned(b, 17) ^ c
            c = _turned(c, 32)
        if word is not None:
            a ^= word
    return a ^ b ^ c ^ d


def _turned(word: int, left: int) -> int:
    return (word << left | word >> 64 - left) % 2**64
