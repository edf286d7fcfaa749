"""The token reader inside a simulated meter: 20 digits in, credit or a refusal out.

Enters: digits as typed or pushed, the time, the room left in the credit register. Leaves: a `TokenEntry`.
Never: the credit register itself, a clock, storage; the meter persists `tids` with its credit.

It is written apart from the vending engine, from the meter's side of the standard, so that the two check each
other; they share the cipher alone.
Standard: IEC 62055-41 (class 0 and 1), EA11. Keypad lockout and the size of the TID memory follow the manuals
of makers; the standard leaves them open.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum

from vending.sts.misty1 import Misty1

TID_MEMORY_ENTRIES = 50
# Two slips of the finger are free. Then 10 s, doubling up to about 21 minutes, holds a guesser to some 70
# tries a day against a CRC of 1 in 65,536: over two years for one lucky hit.
BAD_ENTRIES_FREE = 2
LOCKOUT_MS_FIRST = 10_000
LOCKOUT_MS_MAX = 1_280_000
E5_PER_UNIT = 100_000
_DEFAULT_KEY_TYPE = 1
_CREDIT_SUBCLASSES = frozenset({0, 4})


class EntryResult(StrEnum):
    """What the meter says of an entry."""

    ACCEPTED = "accepted"
    FORMAT_ERROR = "format_error"
    CRC_ERROR = "crc_error"
    MFR_CODE_ERROR = "mfr_code_error"
    OLD = "old"
    USED = "used"
    KEY_EXPIRED = "key_expired"
    DDTK_ERROR = "ddtk_error"
    OVERFLOW_ERROR = "overflow_error"
    FUNCTION_ERROR = "function_error"
    LOCKOUT = "lockout"


class Carrier(Enum):
    """How the digits came: only a keypad can be guessed at by hand, so only it locks."""

    KEYPAD = "keypad"
    REMOTE = "remote"


class CreditUnit(Enum):
    """What a credit counts."""

    CURRENCY_E5 = "1e-5 of the base currency"
    UNIT_TENTHS = "0.1 kWh"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEntry:
    """The outcome of one entry.

    Invariants: `amount` and `unit` are set for an accepted credit only, `credit_minor` for one in currency,
    `control` for an accepted test or display request only, `locked_until_ms` for a lockout only. `tid` is set
    once the CRC of a credit has agreed.
    """

    result: EntryResult
    tid: int | None = None
    amount: int | None = None
    unit: CreditUnit | None = None
    credit_minor: int | None = None
    control: int | None = None
    locked_until_ms: int | None = None

    @property
    def accepted(self) -> bool:
        """Tell whether the token was this meter's (or for every meter), unused and intact."""
        return self.result is EntryResult.ACCEPTED


class TokenReader:
    """Reads tokens under one decoder key.

    Invariants: a TID is credited at most once for as long as it is remembered; what was forgotten is old.
    The memory holds at most 50 TIDs, the highest ones seen. No key shows in `repr`.
    """

    def __init__(
        self,
        decoder_key: bytes,
        *,
        key_type: int = 2,
        ken: int = 255,
        maker_code: int = 0,
        subclasses: Collection[int] = _CREDIT_SUBCLASSES,
        tids: Iterable[int] = (),
        minor_per_unit: int = 100,
    ) -> None:
        """Start with a 16-byte key, the credit subclasses this meter takes, and the remembered TIDs.

        Units: `minor_per_unit` is how many minor units (paise) make one unit of the base currency.
        """
        self._cipher = Misty1(decoder_key)
        self._key_type = key_type
        self._ken = ken
        self._maker_code = maker_code
        self._subclasses = frozenset(subclasses)
        self._tids = sorted(set(tids))[-TID_MEMORY_ENTRIES:]
        self._minor_per_unit = minor_per_unit
        self._bad_entries = 0
        self._locked_until_ms: int | None = None

    def __repr__(self) -> str:
        return f"TokenReader({len(self._tids)} TIDs, {self._bad_entries} bad entries)"

    @property
    def tids(self) -> tuple[int, ...]:
        """The remembered TIDs, lowest first, for the meter to store with its credit."""
        return tuple(self._tids)

    def power_cycle(self) -> None:
        """Lose the lockout, as a meter does when its supply returns; TIDs are kept."""
        self._bad_entries = 0
        self._locked_until_ms = None

    def enter(
        self, digits: str, now_ms: int, *, room: int | None = None, carrier: Carrier = Carrier.KEYPAD
    ) -> TokenEntry:
        """Judge one entry and remember its TID when it credits.

        Units: `now_ms` of any clock that is not set back; `room` in the unit of the token, the largest credit
            the register still takes, no limit when absent.
        """
        if carrier is Carrier.REMOTE:
            return self._judge(digits, room)
        if self._locked_until_ms is not None and now_ms < self._locked_until_ms:
            return self._enter_while_locked(digits, room)
        entry = self._judge(digits, room)
        if entry.result in (EntryResult.FORMAT_ERROR, EntryResult.CRC_ERROR):
            self._count_bad_entry(now_ms)
        elif entry.amount is not None:
            # A test token is printed in every manual: were it to clear the count, a guesser would enter one
            # after every second try and never be locked out.
            self.power_cycle()
        return entry

    def _enter_while_locked(self, digits: str, room: int | None) -> TokenEntry:
        bits = _bits_of(digits)
        if bits is not None and _class_of(bits) == 1:
            entry = self._judge(digits, room)
            if entry.result is EntryResult.ACCEPTED:
                return entry
        return TokenEntry(result=EntryResult.LOCKOUT, locked_until_ms=self._locked_until_ms)

    def _count_bad_entry(self, now_ms: int) -> None:
        self._bad_entries += 1
        beyond_free = self._bad_entries - BAD_ENTRIES_FREE
        if beyond_free > 0:
            # The shift is held at 7, where the doubling has reached the longest lockout.
            self._locked_until_ms = now_ms + min(LOCKOUT_MS_MAX, LOCKOUT_MS_FIRST << min(beyond_free - 1, 7))

    def _judge(self, digits: str, room: int | None) -> TokenEntry:
        bits = _bits_of(digits)
        if bits is None or _class_of(bits) == 3:
            return TokenEntry(result=EntryResult.FORMAT_ERROR)
        token_class = _class_of(bits)
        # The class displaced two bits of the block to the very top; put them back.
        block = bits[2:37] + bits[:2] + bits[39:]
        if token_class != 1:
            block = f"{self._cipher.decrypt(int(block, 2)):064b}"
        subclass, body, crc = int(block[:4], 2), block[4:48], int(block[48:], 2)
        money = token_class == 0 and 4 <= subclass <= 7
        if _checksum(f"{token_class:02b}" + block[:48], money=money) != crc:
            return TokenEntry(result=EntryResult.CRC_ERROR)
        if token_class == 0:
            return self._judge_credit(subclass, body, room)
        if token_class == 1:
            return self._judge_request(subclass, body)
        return TokenEntry(result=EntryResult.FUNCTION_ERROR)

    def _judge_credit(self, subclass: int, body: str, room: int | None) -> TokenEntry:
        tid = int(body[4:28], 2)
        if self._key_type == _DEFAULT_KEY_TYPE:
            return TokenEntry(result=EntryResult.DDTK_ERROR, tid=tid)
        if subclass not in self._subclasses:
            return TokenEntry(result=EntryResult.FUNCTION_ERROR, tid=tid)
        if self._is_remembered(tid):
            return TokenEntry(result=EntryResult.USED, tid=tid)
        if len(self._tids) == TID_MEMORY_ENTRIES and tid < self._tids[0]:
            return TokenEntry(result=EntryResult.OLD, tid=tid)
        if tid >> 16 > self._ken:
            return TokenEntry(result=EntryResult.KEY_EXPIRED, tid=tid)
        amount, unit = _credit_of(subclass, body)
        if room is not None and amount > room:
            # Not remembered: the customer may enter it again once some credit is used up.
            return TokenEntry(result=EntryResult.OVERFLOW_ERROR, tid=tid)
        self._remember(tid)
        # A token carries its price rounded up; whole minor units of it are never less than was paid.
        credit_minor = amount * self._minor_per_unit // E5_PER_UNIT if unit is CreditUnit.CURRENCY_E5 else None
        return TokenEntry(result=EntryResult.ACCEPTED, tid=tid, amount=amount, unit=unit, credit_minor=credit_minor)

    def _judge_request(self, subclass: int, body: str) -> TokenEntry:
        if subclass not in (0, 1):
            return TokenEntry(result=EntryResult.FUNCTION_ERROR)
        control_bits = 36 if subclass == 0 else 28
        maker_code = int(body[control_bits:], 2)
        if maker_code not in (0, self._maker_code):
            return TokenEntry(result=EntryResult.MFR_CODE_ERROR)
        return TokenEntry(result=EntryResult.ACCEPTED, control=int(body[:control_bits], 2))

    def _is_remembered(self, tid: int) -> bool:
        place = bisect_left(self._tids, tid)
        return place < len(self._tids) and self._tids[place] == tid

    def _remember(self, tid: int) -> None:
        insort(self._tids, tid)
        if len(self._tids) > TID_MEMORY_ENTRIES:
            del self._tids[0]


def _bits_of(digits: str) -> str | None:
    if len(digits) != 20 or any(digit not in "0123456789" for digit in digits):
        return None
    bits = f"{int(digits):066b}"
    return bits if len(bits) == 66 else None


def _class_of(bits: str) -> int:
    # Places 28 and 27 counted from the right, of 66.
    return int(bits[37:39], 2)


def _credit_of(subclass: int, body: str) -> tuple[int, CreditUnit]:
    if subclass < 4:
        return _expand(int(body[28:30], 2), int(body[30:], 2)), CreditUnit.UNIT_TENTHS
    magnitude = _expand(int(body[1:4] + body[28:30], 2), int(body[30:], 2))
    return (-magnitude if body[0] == "1" else magnitude), CreditUnit.CURRENCY_E5


def _expand(exponent: int, mantissa: int) -> int:
    """Undo the amount coding: each exponent goes on, ten times coarser, where the last one ended."""
    amount, step = 0, 1
    for _ in range(exponent):
        amount += 16384 * step
        step *= 10
    return amount + mantissa * step


def _checksum(bits50: str, *, money: bool) -> int:
    """CRC-16 of 0x8005 by shifting bits in, least significant bit of each byte first, 7 bytes."""
    padded = "0" * 6 + bits50
    message = [padded[i : i + 8] for i in range(0, 56, 8)]
    if money:
        message.append("00000001")
    register = 0xFFFF
    for byte in message:
        for bit in reversed(byte):
            carry = register & 1 ^ int(bit)
            register >>= 1
            if carry:
                register ^= 0xA001
    low, high = register & 0xFF, register >> 8
    return low * 256 + high
