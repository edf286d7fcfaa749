"""The security module in software: for tests and small systems.

Its vending keys lie sealed in memory and are open for the time of one call; the master key is open as long as the
process lives, which is what a hardware module is bought for (see docs/security-module.md).

Standard: IEC 62055-41 (tokens, key change, KEN); OpenPAYGO Token.
"""

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime

from vending.key_custody import SealedVendingKey, open_device_key, open_vending_key, vending_key_check_value
from vending.openpaygo.devices import PaygoDevice
from vending.openpaygo.errors import PaygoError
from vending.openpaygo.tokens import COUNTS_AHEAD, PaygoKind, PaygoToken
from vending.openpaygo.tokens import decode_token as decode_paygo_token
from vending.openpaygo.tokens import encode_token as encode_paygo_token
from vending.security import (
    CreditKeyTypeRefused,
    ExtendedSet,
    ModuleUnavailable,
    SecurityModuleError,
    TokenRefused,
    VendingKeyConflict,
    VendingKeyExpired,
    VendingKeyUnknown,
)
from vending.sts.amounts import CurrencyField
from vending.sts.errors import StsError
from vending.sts.identity import KeyType, MeterKeyRecord
from vending.sts.key_change import issue_key_change, require_key_change
from vending.sts.keys import DecoderKey, derive_decoder_key
from vending.sts.management import (
    CONTROL_VALUE_MAX,
    FLAG_INDEX,
    FLAG_MAX,
    AnyToken,
    ExtendedControl,
    ExtendedFlag,
    Management,
    ManagementKind,
    decode_any_token,
    encode_any_token,
)
from vending.sts.sta import StaTables
from vending.sts.tid import is_key_expired, require_tid
from vending.sts.tokens import CreditService, CurrencyCredit, TokenNumber, UnitCredit, encode_token

# Gives all vending keys when they have changed since it was last asked, else nothing.
ChangedKeys = Callable[[], Awaitable[Iterable[SealedVendingKey] | None]]


class SoftSecurityModule:
    """A security module in software.

    Invariants: holds its vending keys sealed; minting the same thing twice gives other digits only by RND;
    `repr` and every error are free of keys.
    """

    __slots__ = ("_allow_triple_des", "_changed_keys", "_master", "_rnd_nibble", "_sealed", "_sta_tables")

    def __init__(
        self,
        master: bytes,
        sealed_keys: Iterable[SealedVendingKey],
        *,
        rnd_nibble: Callable[[], int],
        sta_tables: StaTables | None = None,
        allow_triple_des: bool = False,
        changed_keys: ChangedKeys | None = None,
    ) -> None:
        """Take the master key, the sealed keys and the source of RND, a CSPRNG giving 0-15.

        Without tables nothing is made or read for EA07; DKGA03, which no published vector confirms, is for a caller
        who allows it; `changed_keys` is asked before each use of a vending key.
        Raises: SealBroken when any of the keys does not open, so that a wrong master key shows at start;
            VendingKeyConflict for two different keys of one SGC and KRN.
        """
        self._master = master
        self._rnd_nibble = rnd_nibble
        self._sta_tables = sta_tables
        self._allow_triple_des = allow_triple_des
        self._changed_keys = changed_keys
        self._sealed = self._opening(sealed_keys)

    def __repr__(self) -> str:
        return f"SoftSecurityModule({len(self._sealed)} sealed keys)"

    async def mint_unit_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount16: int, tid: int
    ) -> TokenNumber:
        """Make a class 0 subclass 0-3 token of an encoded amount.

        Raises: VendingKeyExpired, CreditKeyTypeRefused, VendingKeyUnknown, and what the engine refuses.
        """
        await self._look_for_changes()
        key = self._credit_key(meter, tid)
        rnd = self._rnd_nibble()
        return encode_token(UnitCredit(service=service, rnd=rnd, tid=tid, amount16=amount16), key)

    async def mint_currency_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount: CurrencyField, tid: int
    ) -> TokenNumber:
        """Make a class 0 subclass 4-7 token of an encoded amount.

        Raises: VendingKeyExpired, CreditKeyTypeRefused, VendingKeyUnknown, and what the engine refuses.
        """
        await self._look_for_changes()
        key = self._credit_key(meter, tid)
        return encode_token(CurrencyCredit(service=service, tid=tid, amount=amount), key)

    async def mint_management(
        self, meter: MeterKeyRecord, *, kind: ManagementKind | ExtendedSet, value16: int, tid: int
    ) -> TokenNumber:
        """Make a class 2 token with a TID.

        Raises: VendingKeyExpired, VendingKeyUnknown, and what the engine refuses.
        """
        await self._look_for_changes()
        _require_in_force(meter, tid)
        key = self._decoder_key(meter)
        rnd = self._rnd_nibble()
        if isinstance(kind, ExtendedSet):
            return encode_any_token(_extended(rnd, tid, value16), key)
        return encode_any_token(Management(kind=kind, rnd=rnd, tid=tid, value16=value16), key)

    async def mint_key_change(
        self, old: MeterKeyRecord, new: MeterKeyRecord, *, carry_sgc: bool, issued_at: datetime
    ) -> tuple[TokenNumber, ...]:
        """Make the tokens that move a meter from one key to another; the old one may be expired.

        Raises: NewKeyExpired, KeyChangeRefused, VendingKeyUnknown for either key, and what the engine refuses.
        """
        await self._look_for_changes()
        # Before a key is derived: what the meter would not take is said as such.
        require_key_change(old=old, new=new, issued_at=issued_at)
        return issue_key_change(
            old=old,
            new=new,
            old_key=self._decoder_key(old),
            new_key=self._decoder_key(new),
            carry_sgc=carry_sgc,
            issued_at=issued_at,
        )

    async def verify(self, meter: MeterKeyRecord, number: TokenNumber) -> AnyToken | TokenRefused:
        """Read a token as this meter would; an expired key still reads, it only credits no more.

        Raises: VendingKeyUnknown, and UnsupportedKeyDerivation or UnsupportedCipher for the meter's record.
        """
        await self._look_for_changes()
        key = self._decoder_key(meter)
        # Asked here, so that a cipher not offered is an error of the record and not a refusal of the token.
        key.cipher()
        try:
            return decode_any_token(number, key)
        except StsError as error:
            return TokenRefused(code=error.code, reason=str(error))

    async def key_check_value(self, *, sgc: str, krn: int) -> str:
        """Return the check value of a vending key.

        Raises: VendingKeyUnknown.
        """
        await self._look_for_changes()
        return vending_key_check_value(self._vending_key(sgc, krn))

    async def mint_paygo(
        self, device: PaygoDevice, *, sealed_key: bytes, kind: PaygoKind, value: int | None, count: int
    ) -> PaygoToken:
        """Make the OpenPAYGO token of a count; the device's key is open for this call only.

        Raises: SealBroken; PaygoValueOutOfRange, PaygoCountRefused.
        """
        key = open_device_key(self._master, device.serial, sealed_key)
        return encode_paygo_token(key, device, kind=kind, value=value, count=count)

    async def verify_paygo(
        self, device: PaygoDevice, *, sealed_key: bytes, digits: str, last_count: int
    ) -> PaygoToken | TokenRefused:
        """Read an OpenPAYGO token as this device would that has taken all tokens up to a count, used ones too.

        Raises: SealBroken.
        """
        key = open_device_key(self._master, device.serial, sealed_key)
        try:
            return decode_paygo_token(key, device, digits, counts=range(1, last_count + COUNTS_AHEAD + 1))
        except PaygoError as error:
            return TokenRefused(code=error.code, reason=str(error))

    async def _look_for_changes(self) -> None:
        """Take the vending keys anew where they have changed.

        Raises: ModuleUnavailable for keys that do not open: whoever changed them does not have our master key.
        """
        changed = None if self._changed_keys is None else await self._changed_keys()
        if changed is not None:
            try:
                self._sealed = self._opening(changed)
            except SecurityModuleError as error:
                raise ModuleUnavailable(f"security module: expected changed keys that open: {error}") from None

    def _opening(self, sealed_keys: Iterable[SealedVendingKey]) -> dict[tuple[str, int], bytes]:
        """Put sealed keys by their names, once each has been seen to open. Raises: SealBroken, VendingKeyConflict."""
        by_name: dict[tuple[str, int], bytes] = {}
        for each in sealed_keys:
            if by_name.setdefault((each.sgc, each.krn), each.sealed) != each.sealed:
                raise VendingKeyConflict(
                    f"vending key: expected one for SGC {each.sgc} KRN {each.krn}, got two different ones"
                )
            open_vending_key(self._master, each.sgc, each.krn, each.sealed)
        return by_name

    def _credit_key(self, meter: MeterKeyRecord, tid: int) -> DecoderKey:
        _require_in_force(meter, tid)
        if meter.kt in (KeyType.INITIALISATION, KeyType.DEFAULT):
            raise CreditKeyTypeRefused(f"credit: expected key type 2 or 3, got {meter.kt:d}, meter {meter.drn}")
        return self._decoder_key(meter)

    def _decoder_key(self, meter: MeterKeyRecord) -> DecoderKey:
        return derive_decoder_key(
            self._vending_key(meter.sgc, meter.krn),
            meter,
            sta_tables=self._sta_tables,
            allow_unconfirmed=self._allow_triple_des,
        )

    def _vending_key(self, sgc: str, krn: int) -> bytes:
        sealed = self._sealed.get((sgc, krn))
        if sealed is None:
            raise VendingKeyUnknown(f"vending key: expected one for SGC {sgc} KRN {krn}, got none")
        return open_vending_key(self._master, sgc, krn, sealed)


def _require_in_force(meter: MeterKeyRecord, tid: int) -> None:
    require_tid(tid)
    if is_key_expired(tid, meter.ken):
        raise VendingKeyExpired(
            f"key of SGC {meter.sgc} KRN {meter.krn}: expected TID block up to KEN {meter.ken}, "
            f"got {tid >> 16}, meter {meter.drn}"
        )


def _extended(rnd: int, tid: int, value16: int) -> ExtendedControl | ExtendedFlag:
    index, value = value16 >> 10, value16 & CONTROL_VALUE_MAX
    if index == FLAG_INDEX:
        return ExtendedFlag(rnd=rnd, tid=tid, flag=value >> 1 & FLAG_MAX, value=bool(value & 1))
    return ExtendedControl(rnd=rnd, tid=tid, index=index, value=value)
