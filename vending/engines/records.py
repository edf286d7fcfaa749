"""What a point of sale holds of a meter, checked: which engine makes its tokens, and by which facts.

Enters: fields as typed, imported or stored. Leaves: the faults of an entry, or a `MeterRecord`. Never: a key; what a
token costs. An entry is checked strictly; a stored record that cannot be used is a refusal at the sale, since it may
have been written by another version of this product.

Standard: IEC 62055-41 for the fields of an STS meter; OpenPAYGO Token for those of a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from vending.openpaygo.devices import PaygoDevice
from vending.sts.errors import StsError
from vending.sts.identity import (
    DRN_DIGITS,
    IIN_OF_13_DIGIT_DRN,
    BaseDate,
    Drn,
    EncryptionAlgorithm,
    KeyDerivation,
    KeyType,
    MeterKeyRecord,
)
from vending.vends import Declined, DeclineReason

IIN_OF_11_DIGIT_DRN = "600727"
# Token carrier technology: 01 magnetic card, 02 keypad, 07 and 08 virtual carriers.
TOKEN_CARRIERS = (1, 2, 7, 8)
KEYPAD_CARRIER = 2
_BASE_YEARS = {base.starts_at.year: base for base in BaseDate}
# The key-change sets that each cipher's meters take; a meter of either may take none.
_KEY_CHANGE_TOKENS = {EncryptionAlgorithm.STA: (0, 2, 3), EncryptionAlgorithm.MISTY1: (0, 4)}
# Which keys the engine can derive; for the others see vending.sts.keys.
_DERIVED: dict[tuple[EncryptionAlgorithm, KeyDerivation], tuple[KeyType, ...]] = {
    (EncryptionAlgorithm.STA, KeyDerivation.DES): (KeyType.DEFAULT, KeyType.UNIQUE, KeyType.COMMON),
    (EncryptionAlgorithm.STA, KeyDerivation.HMAC_SHA256): (KeyType.DEFAULT, KeyType.UNIQUE),
    (EncryptionAlgorithm.MISTY1, KeyDerivation.HMAC_SHA256): (KeyType.DEFAULT, KeyType.UNIQUE),
}


class EngineName(StrEnum):
    """Who makes a meter's tokens, as the record says it."""

    STS = "sts"
    OPENPAYGO = "openpaygo"


class Capability(StrEnum):
    """One thing that a meter takes."""

    ELECTRICITY = "electricity"
    WATER = "water"
    GAS = "gas"
    TIME = "time"
    CURRENCY = "currency"
    UNITS = "units"
    POWER_LIMIT = "power_limit"
    CLEAR_CREDIT = "clear_credit"
    TARIFF_RATE = "tariff_rate"
    CLEAR_TAMPER = "clear_tamper"
    UNBALANCE_LIMIT = "unbalance_limit"
    WATER_FACTOR = "water_factor"
    EXTENDED_SET = "extended_set"
    SET_TIME = "set_time"
    DISABLE_PAYG = "disable_payg"
    COUNTER_SYNC = "counter_sync"


_PAYGO_COMMANDS = frozenset({Capability.SET_TIME, Capability.DISABLE_PAYG, Capability.COUNTER_SYNC})
_SERVICES = frozenset({Capability.ELECTRICITY, Capability.WATER, Capability.GAS, Capability.TIME})
# What a record says that does not say it itself: the credit of a household's meter, and the management every STS meter
# has; a device of OpenPAYGO takes all of its kinds.
USUAL_CAPABILITIES: dict[str, frozenset[Capability]] = {
    EngineName.STS.value: frozenset(
        {
            Capability.ELECTRICITY,
            Capability.CURRENCY,
            Capability.UNITS,
            Capability.POWER_LIMIT,
            Capability.CLEAR_CREDIT,
            Capability.CLEAR_TAMPER,
            Capability.UNBALANCE_LIMIT,
        }
    ),
    EngineName.OPENPAYGO.value: frozenset({Capability.TIME, *_PAYGO_COMMANDS}),
}


class RecordContents(Protocol):
    """The fields of a record as an edge holds them; those of other engines are None."""

    @property
    def engine(self) -> str: ...
    @property
    def capabilities(self) -> tuple[str, ...]: ...
    @property
    def ea(self) -> int | None: ...
    @property
    def tct(self) -> int | None: ...
    @property
    def dkga(self) -> int | None: ...
    @property
    def sgc(self) -> str | None: ...
    @property
    def key_type(self) -> int | None: ...
    @property
    def krn(self) -> int | None: ...
    @property
    def tariff_index(self) -> str | None: ...
    @property
    def ken(self) -> int | None: ...
    @property
    def base_year(self) -> int | None: ...
    @property
    def key_change_tokens(self) -> int | None: ...
    @property
    def day_price_minor(self) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFault:
    """One field of an entry that is wrong."""

    field: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StsFacts:
    """What the STS engine needs of a meter."""

    key: MeterKeyRecord
    key_change_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDevice:
    """An OpenPAYGO device with its key, which only the security module opens."""

    device: PaygoDevice
    sealed_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PaygoFacts:
    """What the OpenPAYGO engine needs of a device, and what a day of use costs."""

    stored: StoredDevice
    day_price_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterRecord:
    """A meter's record, fit for its engine.

    Invariants: `last_tid` is the last token id given out in the record's era, TID or count, None before the first.
    """

    serial: str
    capabilities: frozenset[Capability]
    last_tid: int | None
    facts: StsFacts | PaygoFacts


def faults_of(fields: RecordContents, *, drn: str | None) -> list[RecordFault]:
    """Return what is wrong with a record that somebody enters, and with the DRN of its meter."""
    try:
        engine = EngineName(fields.engine)
    except ValueError:
        return [RecordFault(field="engine", expected=f"one of {', '.join(EngineName)}", got=repr(fields.engine))]
    faults = list(_capability_faults(engine, fields))
    if engine is EngineName.OPENPAYGO:
        if fields.day_price_minor is None or fields.day_price_minor < 1:
            faults.append(_fault("day_price", "what a day costs, above 0", fields.day_price_minor))
        return faults
    return [*faults, *_sts_faults(fields, drn)]


def read_record(
    fields: RecordContents, *, serial: str, drn: str | None, last_tid: int | None, device: StoredDevice | None = None
) -> MeterRecord | Declined:
    """Read a stored record as its engine takes it."""
    try:
        engine = EngineName(fields.engine)
        capabilities = frozenset(Capability(name) for name in fields.capabilities)
    except ValueError as error:
        return Declined(reason=DeclineReason.ENGINE_NOT_OFFERED, message=f"meter {serial}: {error}")
    facts = sts_facts(fields, drn) if engine is EngineName.STS else _paygo_facts(fields, serial, device)
    if isinstance(facts, Declined):
        return facts
    return MeterRecord(serial=serial, capabilities=capabilities, last_tid=last_tid, facts=facts)


def sts_facts(fields: RecordContents, drn: str | None) -> StsFacts | Declined:
    """Read the fields of an STS meter."""
    try:
        # The codes of the standard; a missing one is refused by its enumeration or range.
        key = MeterKeyRecord(
            iin=IIN_OF_13_DIGIT_DRN if len(drn or "") == max(DRN_DIGITS) else IIN_OF_11_DIGIT_DRN,
            drn=Drn(drn or ""),
            ea=EncryptionAlgorithm(f"{fields.ea or 0:02d}"),
            dkga=KeyDerivation(f"{fields.dkga or 0:02d}"),
            sgc=fields.sgc or "",
            kt=KeyType(-1 if fields.key_type is None else fields.key_type),
            krn=fields.krn or 0,
            tariff_index=int(fields.tariff_index or "-1"),
            ken=-1 if fields.ken is None else fields.ken,
            base_date=BaseDate(f"{(fields.base_year or 0) % 100:02d}"),
        )
    except (StsError, ValueError) as error:
        return Declined(reason=DeclineReason.METER_KEY_UNSUPPORTED, message=f"meter {drn}: {error}")
    return StsFacts(key=key, key_change_tokens=fields.key_change_tokens or 0)


def usual_key_change_tokens(ea: int) -> int:
    """Return how many key-change tokens a meter of a cipher takes where nobody says: those that any of them takes."""
    return 4 if ea == int(EncryptionAlgorithm.MISTY1) else 2


def _paygo_facts(fields: RecordContents, serial: str, device: StoredDevice | None) -> PaygoFacts | Declined:
    if device is None or fields.day_price_minor is None:
        what = "the device's key and starting code" if device is None else "the price of a day"
        return Declined(
            reason=DeclineReason.METER_KEY_UNSUPPORTED, message=f"meter {serial}: expected {what}, got none"
        )
    return PaygoFacts(stored=device, day_price_minor=fields.day_price_minor)


def _capability_faults(engine: EngineName, fields: RecordContents) -> Iterator[RecordFault]:
    unknown = sorted(set(fields.capabilities) - {*Capability})
    if unknown:
        yield _fault("capabilities", f"some of {', '.join(Capability)}", ", ".join(unknown))
        return
    said = {Capability(name) for name in fields.capabilities}
    if engine is EngineName.OPENPAYGO:
        foreign = sorted(said - USUAL_CAPABILITIES[engine.value])
        if foreign or Capability.TIME not in said:
            yield _fault("capabilities", "time, and commands of OpenPAYGO", ", ".join(foreign) or "no time")
        return
    foreign = sorted(said & _PAYGO_COMMANDS)
    if foreign:
        yield _fault("capabilities", "those of an STS meter", ", ".join(foreign))
    if not said & _SERVICES:
        yield _fault("capabilities", "a service: electricity, water, gas or time", "none")
    if not said & {Capability.CURRENCY, Capability.UNITS}:
        yield _fault("capabilities", "currency, units or both", "neither")


def _sts_faults(fields: RecordContents, drn: str | None) -> Iterator[RecordFault]:
    """Hold each field against its range first, so that every wrong one is named, then the fields together."""
    found = [fault for fault in _field_faults(fields, drn) if fault]
    yield from found
    facts = None if found else sts_facts(fields, drn)
    if isinstance(facts, Declined):
        yield RecordFault(field="record", expected="a record that fits together", got=facts.message)
    if not isinstance(facts, StsFacts):
        return
    key = facts.key
    kinds = _DERIVED.get((key.ea, key.dkga))
    if kinds is None:
        yield _fault("dkga", "02 or 04 with EA 07, 04 with EA 11", f"{key.dkga} with EA {key.ea}")
    elif key.kt not in kinds:
        expected = f"one of {', '.join(str(int(kind)) for kind in kinds)} with EA {key.ea} and DKGA {key.dkga}"
        yield _fault("key_type", expected, int(key.kt))
    if facts.key_change_tokens not in _KEY_CHANGE_TOKENS[key.ea]:
        numbers = ", ".join(map(str, _KEY_CHANGE_TOKENS[key.ea]))
        yield _fault("key_change_tokens", f"one of {numbers} with EA {key.ea}", facts.key_change_tokens)


def _field_faults(fields: RecordContents, drn: str | None) -> Iterator[RecordFault | None]:
    try:
        Drn(drn or "")
    except StsError as error:
        yield _fault("drn", f"11 or 13 digits with their check digit ({error})", drn or "none")
    yield _of_code("ea", fields.ea, [int(code) for code in EncryptionAlgorithm])
    yield _of_code("dkga", fields.dkga, [int(code) for code in KeyDerivation])
    yield _of_code("tct", fields.tct, TOKEN_CARRIERS)
    yield _of_digits("sgc", fields.sgc, 6)
    yield _of_code("key_type", fields.key_type, [int(code) for code in KeyType])
    yield _in_range("krn", fields.krn, 1, 9)
    yield _of_digits("tariff_index", fields.tariff_index, 2)
    yield _in_range("ken", fields.ken, 0, 255)
    yield _of_code("base_year", fields.base_year, sorted(_BASE_YEARS))
    yield _of_code("key_change_tokens", fields.key_change_tokens, (0, 2, 3, 4))


def _of_code(field: str, value: int | None, codes: list[int] | tuple[int, ...]) -> RecordFault | None:
    return None if value in codes else _fault(field, f"one of {', '.join(map(str, codes))}", value)


def _in_range(field: str, value: int | None, lowest: int, highest: int) -> RecordFault | None:
    fits = value is not None and lowest <= value <= highest
    return None if fits else _fault(field, f"{lowest} to {highest}", value)


def _of_digits(field: str, text: str | None, length: int) -> RecordFault | None:
    fits = text is not None and len(text) == length and text.isascii() and text.isdigit()
    return None if fits else _fault(field, f"{length} digits", text)


def _fault(field: str, expected: str, got: object) -> RecordFault:
    return RecordFault(field=field, expected=expected, got="none" if got is None else str(got)[:40])
