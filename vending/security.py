"""The port to a security module, the only place where a vending key is open.

Enters: a meter's record, a coded amount and a TID. Leaves: 20 digits. The caller chooses the amount and the
TID and decides to sell; the module holds the vending keys, adds RND and CRC and encrypts, the cut of the
STS 600-8-6 messages, so that a hardware module fits behind the same port. Never: a key or a whole token in a
message; credit under an expired key.

A lost answer is asked for again with the same TID: the meter takes one token of a TID, whichever comes first.
Standard: IEC 62055-41 (tokens, KEN).
"""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Protocol

from vending.openpaygo.devices import PaygoDevice
from vending.openpaygo.tokens import PaygoKind, PaygoToken
from vending.sts.amounts import CurrencyField
from vending.sts.errors import StsError
from vending.sts.identity import MeterKeyRecord
from vending.sts.management import EXTENDED_SET_SUBCLASS, AnyToken, ManagementKind
from vending.sts.tokens import CreditService, TokenNumber


class SecurityModuleError(StsError):
    """Anything the security module refuses by itself."""

    code = "security_module_error"


class VendingKeyUnknown(SecurityModuleError):
    """The module holds no vending key for this supply group and key revision."""

    code = "vending_key_unknown"


class VendingKeyConflict(SecurityModuleError):
    """Two different sealed keys are given for one supply group and key revision."""

    code = "vending_key_conflict"


class VendingKeyExpired(SecurityModuleError):
    """The TID lies beyond the key's expiry number: the meter needs a key change before anything else."""

    code = "vending_key_expired"


class CreditKeyTypeRefused(SecurityModuleError):
    """The meter still holds an initialisation or default key, under which it takes no credit."""

    code = "credit_key_type_refused"


class SealBroken(SecurityModuleError):
    """A sealed key does not open: another master key, another SGC or KRN, or altered bytes."""

    code = "seal_broken"


class RiskLimitReached(SecurityModuleError):
    """The module has made as many tokens, or as much credit, as it may on one day."""

    code = "risk_limit"


class ModuleRefused(SecurityModuleError):
    """The module understood the request and refuses it; asking again will not help."""

    code = "module_refused"


class ModuleAbsent(SecurityModuleError):
    """The module gave no answer to this request: try again, with the same TID."""

    code = "module_absent"


class ModuleBusy(ModuleAbsent):
    """The module is at work for others."""

    code = "module_busy"


class ModuleTimeout(ModuleAbsent):
    """No answer came in time; whether a token was made is not known."""

    code = "module_timeout"


class ModuleUnavailable(ModuleAbsent):
    """The module cannot be reached."""

    code = "module_unavailable"


class ExtendedSet(IntEnum):
    """The one class 2 kind whose 16 bits are an index (6) and a value (10); the value is its subclass."""

    EXTENDED_SET = EXTENDED_SET_SUBCLASS


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRefused:
    """The answer of `verify` when the digits are no token of this meter; `code` is that of the error."""

    code: str
    reason: str


class SecurityModule(Protocol):
    """What vending needs of any module, soft or hardware.

    Every method raises ModuleAbsent where the module does not answer, and SecurityModuleError for what it refuses.
    """

    async def mint_unit_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount16: int, tid: int
    ) -> TokenNumber:
        """Make a class 0 subclass 0-3 token of an encoded amount."""
        ...

    async def mint_currency_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount: CurrencyField, tid: int
    ) -> TokenNumber:
        """Make a class 0 subclass 4-7 token of an encoded amount."""
        ...

    async def mint_management(
        self, meter: MeterKeyRecord, *, kind: ManagementKind | ExtendedSet, value16: int, tid: int
    ) -> TokenNumber:
        """Make a class 2 token with a TID; what the 16 bits mean follows from the kind."""
        ...

    async def mint_key_change(
        self, old: MeterKeyRecord, new: MeterKeyRecord, *, carry_sgc: bool, issued_at: datetime
    ) -> tuple[TokenNumber, ...]:
        """Make the 2, 3 or 4 tokens that move a meter from one key to another, in the order of their numbers."""
        ...

    async def verify(self, meter: MeterKeyRecord, number: TokenNumber) -> AnyToken | TokenRefused:
        """Read a token as this meter would, without regard to whether it was used."""
        ...

    async def key_check_value(self, *, sgc: str, krn: int) -> str:
        """Return the check value by which two people compare a vending key without seeing it."""
        ...

    async def mint_paygo(
        self, device: PaygoDevice, *, sealed_key: bytes, kind: PaygoKind, value: int | None, count: int
    ) -> PaygoToken:
        """Make the OpenPAYGO token of a count; the device's key comes sealed, as the module has sealed it.

        Raises: PaygoError for what the token cannot say.
        """
        ...

    async def verify_paygo(
        self, device: PaygoDevice, *, sealed_key: bytes, digits: str, last_count: int
    ) -> PaygoToken | TokenRefused:
        """Read an OpenPAYGO token as this device would that has taken all tokens up to a count, used ones too."""
        ...
