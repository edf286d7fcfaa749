"""The token reader inside a simulated meter: 20 digits in, credit, a setting, a key or a refusal out.

Enters: digits as typed or pushed, the time. Leaves: a `TokenEntry`; what the meter has to keep is one value,
`ReaderMemory`, replaced as a whole, so that a failing supply leaves what was before the token or what is after it.
Never: the relay, a clock, storage of its own: whoever owns a memory is handed the value before it counts.

It is written apart from the vending engine, from the meter's side of the standard, so that the two check each
other; they share the ciphers alone.
Standard: IEC 62055-41 (class 0, 1 and 2), EA07 and EA11; STS 202-5 (extended tokens). Keypad lockout, the ten minutes
of key change sections and the size of the TID memory follow the manuals of makers; the standard leaves them open. Of
the forbidden changes of the key type only the way back to an initialisation key is known here.
"""

from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from meter_sim.key_sections import SECTION_SUBCLASSES, KeySections, NewKey, section_number
from meter_sim.token_blocks import (
    CREDIT_CLASS,
    MANAGEMENT_CLASS,
    MONEY_SUBCLASSES,
    RESERVED_CLASS,
    TEST_CLASS,
    Cipher,
    Opened,
    bits_of,
    class_of,
    credit_of,
    limit_of,
    number,
    open_block,
    tid_of,
)
from protocols.native import EntryResult
from vending.sts.misty1 import Misty1
from vending.sts.sta import Sta, StaTables

__all__ = [
    "TID_MEMORY_ENTRIES",
    "Carrier",
    "CreditUnit",
    "EntryResult",
    "ReaderMemory",
    "ReaderSettings",
    "TokenEntry",
    "TokenReader",
]

TID_MEMORY_ENTRIES = 50
# Two slips of the finger are free. Then 10 s, doubling up to about 21 minutes, holds a guesser to some 70
# tries a day against a CRC of 1 in 65,536: over two years for one lucky hit.
BAD_ENTRIES_FREE = 2
LOCKOUT_MS_FIRST = 10_000
LOCKOUT_MS_MAX = 1_280_000
E5_PER_UNIT = 100_000
REGISTERS = 8
# Electricity in kWh, and in currency: the one that a meter's copy of a balance stands for.
ENERGY_REGISTER, MONEY_REGISTER = 0, 4
_WH_PER_TENTH = 100
ALL_REGISTERS = 0xFFFF
_FLAG_INDEX = 63
_INITIALISATION_KEY_TYPE, _DEFAULT_KEY_TYPE = 0, 1
_POWER_LIMIT, _CLEAR_CREDIT, _CLEAR_TAMPER, _UNBALANCE_LIMIT, _EXTENDED_SET = 0, 1, 5, 6, 10
_TESTS_MAX = 18


class Carrier(Enum):
    """How the digits came: only a keypad can be guessed at by hand, so only it locks."""

    KEYPAD = "keypad"
    REMOTE = "remote"


class CreditUnit(Enum):
    """What a credit counts."""

    CURRENCY_E5 = "1e-5 of the base currency"
    UNIT_TENTHS = "0.1 kWh, m3 or minute"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderSettings:
    """What is fixed for a reader when its meter leaves the factory.

    Units: `minor_per_unit` minor units (paise) make one unit of the base currency; `credit_max` is the most a register
    takes, in the unit of its tokens, no limit when absent. Invariants: `credits` are the credit subclasses that the
    meter has registers for; tariff rate and water factor, whose meaning the standard reserves, and makers' own
    management tokens are not implemented; `extended` are the controls of the extended list, `flags` how many flags it
    has; `sta_tables` are given for a meter of EA07, which takes two or three `key_change_tokens`.
    """

    maker_code: int = 0
    credits: frozenset[int] = frozenset({0, 4})
    extended: frozenset[int] = frozenset()
    flags: int = 0
    key_change_tokens: int = 3
    credit_max: int | None = None
    power_limit_w_max: int = 100_000_000
    minor_per_unit: int = 100
    sta_tables: StaTables | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderMemory:
    """What the reader keeps when the supply fails.

    Invariants: `tids` ascend, at most 50; `credits` has a number for each register, by the tokens alone: a meter whose
    balance is a copy of its account's leaves it be. `controls` are pairs of number and value, `flags` the numbers of
    those set. The key shows in no `repr`.
    """

    key: bytes = field(repr=False)
    key_type: int = 2
    krn: int = 1
    ken: int = 255
    tariff_index: int = 1
    sgc: int = 0
    tids: tuple[int, ...] = ()
    credits: tuple[int, ...] = (0,) * REGISTERS
    power_limit_w: int | None = None
    unbalance_limit_w: int | None = None
    tampered: bool = False
    controls: tuple[tuple[int, int], ...] = ()
    flags: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:  # JSON: numbers, texts and lists of them.
        """Return what a memory of bytes can keep."""
        kept: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}  # Of any type, as above.
        return kept | {"key": self.key.hex()}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "ReaderMemory":  # As written by `to_json`.
        """Return what was kept."""
        lists = {name: tuple(kept[name]) for name in ("tids", "credits", "flags")}
        controls = tuple((index, value) for index, value in kept["controls"])
        return cls(**kept | lists | {"key": bytes.fromhex(kept["key"]), "controls": controls})


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEntry:
    """The outcome of one entry.

    Invariants: `tid` is set once the CRC of a token that has one has agreed, `authentic` once that of any encrypted
    token has. Of an accepted token only: `amount`, `unit` and `register` of a credit, and `credit_minor` of one in
    currency for electricity; `control` and `shown` of a test or display request; `cleared` of a clear credit, a
    register or all; `power_limit_w` of a power limit; `section` and `missing` of a key change section, nothing missing
    once the new key is in force. `locked_until_ms` is set for a lockout only.
    """

    result: EntryResult
    authentic: bool = False
    tid: int | None = None
    amount: int | None = None
    unit: CreditUnit | None = None
    register: int | None = None
    credit_minor: int | None = None
    control: int | None = None
    shown: tuple[str, ...] = ()
    cleared: int | None = None
    power_limit_w: int | None = None
    section: int | None = None
    missing: tuple[int, ...] = ()
    locked_until_ms: int | None = None

    @property
    def accepted(self) -> bool:
        """Tell whether the token was this meter's (or for every meter), unused and intact."""
        return self.result is EntryResult.ACCEPTED

    @property
    def energy_wh(self) -> int | None:
        """Give the energy of an accepted credit in kWh."""
        return None if self.amount is None or self.register != ENERGY_REGISTER else self.amount * _WH_PER_TENTH

    @property
    def clears_credit(self) -> bool:
        """Tell whether the credit for electricity was cleared."""
        return self.cleared in (ENERGY_REGISTER, MONEY_REGISTER, ALL_REGISTERS)

    @property
    def key_changed(self) -> bool:
        """Tell whether this was the last section of a key change."""
        return self.section is not None and not self.missing


class TokenReader:
    """Reads tokens under one decoder key.

    Invariants: a TID is applied at most once for as long as it is remembered; what was forgotten is old. The memory
    holds at most 50 TIDs, the highest ones seen. `kept` changes as a whole, after it was handed to `store`. No key
    shows in `repr`.
    """

    def __init__(
        self,
        key: bytes | ReaderMemory,
        *,
        settings: ReaderSettings | None = None,
        store: Callable[[ReaderMemory], None] | None = None,
    ) -> None:
        """Start with a decoder key, or with what was kept; `store` writes what is to be kept, or raises."""
        self.settings = settings or ReaderSettings()
        self._kept = key if isinstance(key, ReaderMemory) else ReaderMemory(key=key)
        self._cipher = self._cipher_of(self._kept.key)
        self._sections = KeySections(key_bytes=len(self._kept.key))
        self._store = store
        self._bad_entries = 0
        self._locked_until_ms: int | None = None

    def __repr__(self) -> str:
        return f"TokenReader({len(self._kept.tids)} TIDs, {self._bad_entries} bad entries)"

    @property
    def kept(self) -> ReaderMemory:
        """What the meter has to store together with all else that a token changes."""
        return self._kept

    @property
    def tids(self) -> tuple[int, ...]:
        """The remembered TIDs, lowest first."""
        return self._kept.tids

    def note_tamper(self) -> None:
        """Remember a tampering until a token clears it."""
        self._keep(replace(self._kept, tampered=True))

    def use_up(self, register: int, amount: int) -> None:
        """Take what was consumed off a credit register, in the unit of its tokens; it may go below zero."""
        self._keep(replace(self._kept, credits=_added(self._kept.credits, register, -amount)))

    def power_cycle(self) -> None:
        """Lose the lockout and the sections held, as a meter does when its supply returns; what is kept stays."""
        self._end_lockout()
        self._sections.forget()

    def enter(
        self, digits: str, now_ms: int, *, room: int | None = None, carrier: Carrier = Carrier.KEYPAD
    ) -> TokenEntry:
        """Judge one entry and apply it.

        Units: `now_ms` of any clock that is not set back; `room` in the unit of the token, the largest credit that a
            register kept elsewhere still takes, no limit when absent.
        """
        if carrier is Carrier.REMOTE:
            return self._judge(digits, now_ms, room)
        if self._locked_until_ms is not None and now_ms < self._locked_until_ms:
            return self._enter_while_locked(digits, now_ms)
        entry = self._judge(digits, now_ms, room)
        if entry.result in (EntryResult.FORMAT_ERROR, EntryResult.CRC_ERROR):
            self._count_bad_entry(now_ms)
        elif entry.accepted and entry.authentic:
            # A test token is printed in every manual: were it to clear the count, a guesser would enter one
            # after every second try and never be locked out.
            self._end_lockout()
        return entry

    def _enter_while_locked(self, digits: str, now_ms: int) -> TokenEntry:
        bits = bits_of(digits)
        if bits is not None and class_of(bits) == TEST_CLASS:
            entry = self._judge(digits, now_ms, None)
            if entry.accepted:
                return entry
        return TokenEntry(result=EntryResult.LOCKOUT, locked_until_ms=self._locked_until_ms)

    def _end_lockout(self) -> None:
        self._bad_entries = 0
        self._locked_until_ms = None

    def _count_bad_entry(self, now_ms: int) -> None:
        self._bad_entries += 1
        beyond_free = self._bad_entries - BAD_ENTRIES_FREE
        if beyond_free > 0:
            # The shift is held at 7, where the doubling has reached the longest lockout.
            self._locked_until_ms = now_ms + min(LOCKOUT_MS_MAX, LOCKOUT_MS_FIRST << min(beyond_free - 1, 7))

    def _judge(self, digits: str, now_ms: int, room: int | None) -> TokenEntry:
        bits = bits_of(digits)
        if bits is None or class_of(bits) == RESERVED_CLASS:
            return TokenEntry(result=EntryResult.FORMAT_ERROR)
        opened = open_block(bits, self._cipher)
        if not opened.intact:
            return TokenEntry(result=EntryResult.CRC_ERROR)
        if opened.token_class == TEST_CLASS:
            return self._answer(opened)
        if opened.token_class == MANAGEMENT_CLASS and opened.subclass in SECTION_SUBCLASSES:
            return self._take_section(opened, now_ms)
        return self._take_numbered(opened, room)

    def _take_numbered(self, opened: Opened, room: int | None) -> TokenEntry:
        """Judge a token with a TID, and apply it if nothing speaks against it."""
        tid, kept = tid_of(opened.body), self._kept
        refusal = self._refusal_by_kind(opened) or self._refusal_by_tid(tid)
        if refusal is not None:
            return TokenEntry(result=refusal, authentic=True, tid=tid)
        tids = list(kept.tids)
        insort(tids, tid)
        after = replace(kept, tids=tuple(tids[-TID_MEMORY_ENTRIES:]))
        if opened.token_class == CREDIT_CLASS:
            changed, entry = self._credited(opened, after, room)
        else:
            changed, entry = self._managed(opened, after)
        if entry.accepted:
            # Of a refused one not even the TID is kept: the customer may enter it again when there is room.
            self._keep(changed)
        return replace(entry, authentic=True, tid=tid)

    def _refusal_by_kind(self, opened: Opened) -> EntryResult | None:
        if opened.token_class == MANAGEMENT_CLASS:
            known = (_POWER_LIMIT, _CLEAR_CREDIT, _CLEAR_TAMPER, _UNBALANCE_LIMIT, _EXTENDED_SET)
            return None if opened.subclass in known else EntryResult.FUNCTION_ERROR
        if self._kept.key_type == _DEFAULT_KEY_TYPE:
            return EntryResult.DDTK_ERROR
        return None if opened.subclass in self.settings.credits else EntryResult.FUNCTION_ERROR

    def _refusal_by_tid(self, tid: int) -> EntryResult | None:
        tids = self._kept.tids
        if tid in tids:
            return EntryResult.USED
        if len(tids) == TID_MEMORY_ENTRIES and tid < tids[0]:
            return EntryResult.OLD
        return EntryResult.KEY_EXPIRED if tid >> 16 > self._kept.ken else None

    def _credited(self, opened: Opened, kept: ReaderMemory, room: int | None) -> tuple[ReaderMemory, TokenEntry]:
        register = opened.subclass
        amount = credit_of(register, opened.body)
        most = self.settings.credit_max
        rooms = (room, None if most is None else most - kept.credits[register])
        if any(free is not None and amount > free for free in rooms):
            return kept, TokenEntry(result=EntryResult.OVERFLOW_ERROR)
        minor = None
        if register == MONEY_REGISTER:
            # A token carries its price rounded up; whole minor units of it are never less than was paid.
            minor = amount * self.settings.minor_per_unit // E5_PER_UNIT
        entry = TokenEntry(
            result=EntryResult.ACCEPTED,
            amount=amount,
            unit=CreditUnit.CURRENCY_E5 if register in MONEY_SUBCLASSES else CreditUnit.UNIT_TENTHS,
            register=register,
            credit_minor=minor,
        )
        return replace(kept, credits=_added(kept.credits, register, amount)), entry

    def _managed(self, opened: Opened, kept: ReaderMemory) -> tuple[ReaderMemory, TokenEntry]:
        value, watts = number(opened.body, 28, 16), limit_of(opened.body)
        done, out_of_range = TokenEntry(result=EntryResult.ACCEPTED), TokenEntry(result=EntryResult.RANGE_ERROR)
        match opened.subclass:
            case 0 if watts <= self.settings.power_limit_w_max:
                return replace(kept, power_limit_w=watts), replace(done, power_limit_w=watts)
            case 1:
                return self._cleared(kept, value)
            case 5 if value == 0:
                return replace(kept, tampered=False), done
            case 6 if watts <= self.settings.power_limit_w_max:
                return replace(kept, unbalance_limit_w=watts), done
            case 10:
                return self._set_extended(kept, value >> 10, value & 0x3FF)
        return kept, out_of_range

    def _cleared(self, kept: ReaderMemory, register: int) -> tuple[ReaderMemory, TokenEntry]:
        if register == ALL_REGISTERS:
            registers: Iterable[int] = range(REGISTERS)
        elif register >= REGISTERS:
            return kept, TokenEntry(result=EntryResult.RANGE_ERROR)
        elif register not in self.settings.credits:
            return kept, TokenEntry(result=EntryResult.FUNCTION_ERROR)
        else:
            registers = (register,)
        # What is owed stays owed: only credit is taken away.
        left = tuple(min(0, each) if place in registers else each for place, each in enumerate(kept.credits))
        return replace(kept, credits=left), TokenEntry(result=EntryResult.ACCEPTED, cleared=register)

    def _set_extended(self, kept: ReaderMemory, index: int, value: int) -> tuple[ReaderMemory, TokenEntry]:
        if index == _FLAG_INDEX and value >> 1 < self.settings.flags:
            flags = set(kept.flags) - {value >> 1} | ({value >> 1} if value & 1 else set())
            return replace(kept, flags=tuple(sorted(flags))), TokenEntry(result=EntryResult.ACCEPTED)
        if index == _FLAG_INDEX or index not in self.settings.extended:
            return kept, TokenEntry(result=EntryResult.FUNCTION_ERROR)
        controls = tuple(sorted({**dict(kept.controls), index: value}.items()))
        return replace(kept, controls=controls), TokenEntry(result=EntryResult.ACCEPTED)

    def _take_section(self, opened: Opened, now_ms: int) -> TokenEntry:
        """Hold a section of a key change; with the last one the new key is in force."""
        refusal = self._refusal_of_section(opened)
        if refusal is not None:
            return TokenEntry(result=refusal, authentic=True)
        self._sections.put(opened.subclass, opened.body, now_ms)
        missing = self._sections.missing(now_ms)
        if not missing:
            self._change_key(self._sections.take())
        section = section_number(opened.subclass)
        return TokenEntry(result=EntryResult.ACCEPTED, authentic=True, section=section, missing=missing)

    def _refusal_of_section(self, opened: Opened) -> EntryResult | None:
        body, is_long = opened.body, len(self._kept.key) == 16
        two_only = not is_long and self.settings.key_change_tokens == 2
        match section_number(opened.subclass):
            case 1:
                if number(body, 10, 2) == _INITIALISATION_KEY_TYPE:
                    return EntryResult.KEY_TYPE_ERROR
                if two_only and body[9] == "1":
                    return EntryResult.FUNCTION_ERROR
                return None if 1 <= number(body, 4, 4) <= 9 else EntryResult.RANGE_ERROR
            case 2:
                return None if number(body, 4, 8) <= 99 else EntryResult.RANGE_ERROR
            case 3 if not is_long:
                if two_only:
                    return EntryResult.FUNCTION_ERROR
                return None if number(body, 24, 20) == 0 else EntryResult.RANGE_ERROR
            case 4 if not is_long:
                return EntryResult.FUNCTION_ERROR
        return None

    def _change_key(self, new: NewKey) -> None:
        # Credit and settings stay; TIDs go only where a new era makes their numbers small again.
        kept = replace(
            self._kept,
            key=new.key,
            key_type=new.key_type,
            krn=new.krn,
            ken=new.ken,
            tariff_index=new.tariff_index,
            sgc=new.sgc,
            tids=() if new.roll_over else self._kept.tids,
        )
        self._keep(kept)
        self._cipher = self._cipher_of(kept.key)

    def _answer(self, opened: Opened) -> TokenEntry:
        """Answer a request to test or show something."""
        if opened.subclass == 2:
            return self._show_extended(opened.body)
        if opened.subclass not in (0, 1):
            return TokenEntry(result=EntryResult.FUNCTION_ERROR)
        control_bits = 36 if opened.subclass == 0 else 28
        if number(opened.body, control_bits, 44 - control_bits) not in (0, self.settings.maker_code):
            return TokenEntry(result=EntryResult.MFR_CODE_ERROR)
        control = number(opened.body, 0, control_bits)
        tests = [test for test in range(1, _TESTS_MAX + 1) if control >> test - 1 & 1]
        if not tests:
            return TokenEntry(result=EntryResult.FUNCTION_ERROR)
        facts = self._facts()
        shown = tuple(facts[test] for test in tests if test in facts)
        return TokenEntry(result=EntryResult.ACCEPTED, control=control, shown=shown)

    def _facts(self) -> dict[int, str]:
        """Return what the reader can show, by the number of the test; the rest is the meter's."""
        kept = self._kept
        return {
            4: f"KRN {kept.krn} KT {kept.key_type}",
            5: f"TI {kept.tariff_index:02d}",
            7: f"LIMIT {'--' if kept.power_limit_w is None else kept.power_limit_w} W",
            8: "TAMPER" if kept.tampered else "NO TAMPER",
            11: f"UNBALANCE {'--' if kept.unbalance_limit_w is None else kept.unbalance_limit_w} W",
            14: "EA 11" if len(kept.key) == 16 else "EA 07",
            15: f"KCT {4 if len(kept.key) == 16 else self.settings.key_change_tokens}",
            16: f"SGC {kept.sgc:06d}",
            17: f"KEN {kept.ken}",
        }

    def _show_extended(self, body: str) -> TokenEntry:
        index = number(body, 0, 6)
        if number(body, 6, 38) or index not in self.settings.extended:
            return TokenEntry(result=EntryResult.FUNCTION_ERROR)
        value = dict(self._kept.controls).get(index, 0)
        return TokenEntry(result=EntryResult.ACCEPTED, shown=(f"CONTROL {index} = {value}",))

    def _keep(self, kept: ReaderMemory) -> None:
        if self._store is not None:
            self._store(kept)
        self._kept = kept

    def _cipher_of(self, key: bytes) -> Cipher:
        if len(key) == 16:
            return Misty1(key)
        assert self.settings.sta_tables is not None, "a meter of EA07 has its tables"
        return Sta(key, self.settings.sta_tables)


def _added(credits_: tuple[int, ...], register: int, amount: int) -> tuple[int, ...]:
    return tuple(each + amount * (place == register) for place, each in enumerate(credits_))
