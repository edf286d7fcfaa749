"""The engine of STS meters: currency where the meter has a currency register, else units, minted by a security module.

Stage: see port. Enters: a record with a key record, money and the energy it buys. Leaves: tokens of classes 0 and 2.
Never: a vending key; credit under an expired or default key.

Standard: IEC 62055-41; amounts are rounded up into their field, in the consumer's favour.
"""

from __future__ import annotations

from dataclasses import dataclass

from billing.calendar import from_ms
from billing.money import MINOR_PER_MAJOR
from vending.engines.port import (
    Carried,
    CarriedUnit,
    Credit,
    IssuedToken,
    ManagementOrder,
    StsManagement,
    TokenReading,
    not_capable,
    takes,
)
from vending.engines.records import Capability, EngineName, MeterRecord, StsFacts
from vending.security import (
    CreditKeyTypeRefused,
    ExtendedSet,
    ModuleAbsent,
    ModuleRefused,
    RiskLimitReached,
    SecurityModule,
    TokenRefused,
    VendingKeyExpired,
    VendingKeyUnknown,
)
from vending.sts.amounts import CURRENCY_STEPS_PER_UNIT, CurrencyField, decode_unit_amount, encode_unit_amount
from vending.sts.errors import KeyChangeRefused, NewKeyExpired, StsError, TidOutOfRange
from vending.sts.identity import KeyType, MeterKeyRecord
from vending.sts.key_change import KEY_CHANGE_SUBCLASSES
from vending.sts.management import (
    AnyToken,
    ExtendedControl,
    ExtendedFlag,
    Management,
    ManagementKind,
    pack_management,
)
from vending.sts.tid import TidDeclined, TidDeclineReason, is_key_expired, minute_of_tid, next_tid, tid_at
from vending.sts.tokens import (
    CreditService,
    CurrencyCredit,
    DisplayTest,
    ExtendedRead,
    TokenNumber,
    UnitCredit,
    pack_fields,
)
from vending.vends import Declined, DeclineReason

CURRENCY_SUBCLASS_FIRST = 4
_STEPS_PER_MINOR = CURRENCY_STEPS_PER_UNIT // MINOR_PER_MAJOR
_TENTHS = 10
_WH_PER_TENTH_KWH = 100
_SERVICES = {
    CreditService.ELECTRICITY: Capability.ELECTRICITY,
    CreditService.WATER: Capability.WATER,
    CreditService.GAS: Capability.GAS,
    CreditService.TIME: Capability.TIME,
}
_UNITS = {
    CreditService.ELECTRICITY: CarriedUnit.KWH,
    CreditService.WATER: CarriedUnit.CUBIC_METRES,
    CreditService.GAS: CarriedUnit.CUBIC_METRES,
    CreditService.TIME: CarriedUnit.MINUTES,
}
_MANAGEMENT: dict[ManagementKind | ExtendedSet, Capability] = {
    ManagementKind.SET_POWER_LIMIT: Capability.POWER_LIMIT,
    ManagementKind.CLEAR_CREDIT: Capability.CLEAR_CREDIT,
    ManagementKind.SET_TARIFF_RATE: Capability.TARIFF_RATE,
    ManagementKind.CLEAR_TAMPER: Capability.CLEAR_TAMPER,
    ManagementKind.SET_UNBALANCE_LIMIT: Capability.UNBALANCE_LIMIT,
    ManagementKind.SET_WATER_FACTOR: Capability.WATER_FACTOR,
    ExtendedSet.EXTENDED_SET: Capability.EXTENDED_SET,
}


@dataclass(frozen=True, slots=True)
class StsEngine:
    """STS tokens by one security module, soft or hardware."""

    module: SecurityModule

    async def judge(self, meter: MeterRecord, *, now_ms: int) -> Declined | None:
        """Tell what would refuse the meter credit now. Raises: ModuleAbsent."""
        facts = _facts(meter)
        declined = _credit_refusal(meter, CreditService.ELECTRICITY)
        if declined:
            return declined
        tid = choose_tid(facts.key, meter.last_tid, now_ms=now_ms)
        return tid if isinstance(tid, Declined) else await judge_key(self.module, facts.key)

    async def preview_credit(self, meter: MeterRecord, credit: Credit, *, now_ms: int) -> IssuedToken | Declined:
        """Tell what the token of a credit would hold. Raises: ModuleAbsent."""
        declined = await self.judge(meter, now_ms=now_ms)
        if declined:
            return declined
        try:
            carried, subclass = _carried(meter, credit)
        except StsError as error:
            return declined_by_module(_facts(meter).key, error)
        return IssuedToken(
            engine=EngineName.STS, digits="", grouped="", tid=None, token_class=0, subclass=subclass, carried=carried
        )

    async def issue_credit(self, meter: MeterRecord, credit: Credit, *, now_ms: int) -> IssuedToken | Declined:
        """Mint a credit: the amount in currency, or in units of 0.1 kWh for a meter without a currency register.

        Rounds: up to what the field can hold. Raises: ModuleAbsent.
        """
        key = _facts(meter).key
        declined = _credit_refusal(meter, credit.service)
        if declined:
            return declined
        tid = choose_tid(key, meter.last_tid, now_ms=now_ms)
        if isinstance(tid, Declined):
            return tid
        try:
            if takes(meter, Capability.CURRENCY):
                return await self._currency(key, credit, tid)
            return await self._units(key, credit, tid)
        except StsError as error:
            return declined_by_module(key, error)

    async def issue_management(
        self, meter: MeterRecord, order: ManagementOrder, *, now_ms: int
    ) -> IssuedToken | Declined:
        """Mint a class 2 token with a TID. Raises: ModuleAbsent."""
        key = _facts(meter).key
        if not isinstance(order, StsManagement) or not takes(meter, _MANAGEMENT[order.kind]):
            return not_capable(meter, order.kind.name.lower())
        tid = choose_tid(key, meter.last_tid, now_ms=now_ms)
        if isinstance(tid, Declined):
            return tid
        try:
            number = await self.module.mint_management(key, kind=order.kind, value16=order.value16, tid=tid)
        except StsError as error:
            return declined_by_module(key, error)
        return _issued(number, tid=tid, token_class=2, subclass=int(order.kind))

    async def issue_key_change(
        self, meter: MeterRecord, new: MeterRecord, *, now_ms: int
    ) -> tuple[IssuedToken, ...] | Declined:
        """Mint the two, three or four tokens of a key change, as many as the meter takes. Raises: ModuleAbsent."""
        facts, key = _facts(meter), _facts(new).key
        if not facts.key_change_tokens:
            return not_capable(meter, "key-change tokens")
        if facts.key == key:
            return _refused_change(key, "the meter's key is this one already")
        try:
            numbers = await self.module.mint_key_change(
                facts.key, key, carry_sgc=facts.key_change_tokens == 3, issued_at=from_ms(now_ms)
            )
        except NewKeyExpired as error:
            return Declined(reason=DeclineReason.KEY_EXPIRED, message=f"meter {key.drn}: {error}")
        except KeyChangeRefused as error:
            return _refused_change(key, str(error))
        except StsError as error:
            return declined_by_module(key, error)
        return tuple(
            _issued(number, tid=None, token_class=2, subclass=subclass)
            for number, subclass in zip(numbers, KEY_CHANGE_SUBCLASSES, strict=False)
        )

    async def verify(self, meter: MeterRecord, digits: str) -> TokenReading | TokenRefused | Declined:
        """Read a token under the record's key. Raises: MalformedToken, ModuleAbsent."""
        key, number = _facts(meter).key, TokenNumber(digits)
        try:
            read = await self.module.verify(key, number)
        except StsError as error:
            return declined_by_module(key, error)
        if isinstance(read, TokenRefused):
            return read
        return _reading(number, read, key)

    async def _currency(self, key: MeterKeyRecord, credit: Credit, tid: int) -> IssuedToken:
        amount = CurrencyField.encode(credit.amount_minor * _STEPS_PER_MINOR)
        number = await self.module.mint_currency_credit(key, service=credit.service, amount=amount, tid=tid)
        carried = _of_currency(amount)
        return _issued(
            number, tid=tid, token_class=0, subclass=CURRENCY_SUBCLASS_FIRST + credit.service, carried=carried
        )

    async def _units(self, key: MeterKeyRecord, credit: Credit, tid: int) -> IssuedToken:
        amount16 = encode_unit_amount(-(-credit.energy_wh // _WH_PER_TENTH_KWH))
        number = await self.module.mint_unit_credit(key, service=credit.service, amount16=amount16, tid=tid)
        carried = _of_units(amount16, credit.service)
        return _issued(number, tid=tid, token_class=0, subclass=int(credit.service), carried=carried)


def _carried(meter: MeterRecord, credit: Credit) -> tuple[Carried, int]:
    """Return what the token of a credit holds, and its subclass. Raises: StsError for more than a field can hold."""
    if takes(meter, Capability.CURRENCY):
        amount = CurrencyField.encode(credit.amount_minor * _STEPS_PER_MINOR)
        return _of_currency(amount), CURRENCY_SUBCLASS_FIRST + credit.service
    amount16 = encode_unit_amount(-(-credit.energy_wh // _WH_PER_TENTH_KWH))
    return _of_units(amount16, credit.service), int(credit.service)


def choose_tid(record: MeterKeyRecord, last_tid: int | None, *, now_ms: int) -> int | Declined:
    """Return the TID of the meter's next token, above its last one; the caller persists it with the token."""
    try:
        now_tid = tid_at(from_ms(now_ms), record.base_date)
    except TidOutOfRange as error:
        return Declined(reason=DeclineReason.TID_ERA_EXHAUSTED, message=f"meter {record.drn}: {error}")
    tid = next_tid(last_tid, now_tid)
    if isinstance(tid, TidDeclined):
        return _declined_tid(record, tid)
    if is_key_expired(tid, record.ken):
        return Declined(
            reason=DeclineReason.KEY_EXPIRED,
            message=f"meter {record.drn}: expected a key with KEN {tid >> 16} or more, got {record.ken}; "
            "the meter needs a key change first",
        )
    return tid


async def judge_key(module: SecurityModule, record: MeterKeyRecord) -> Declined | None:
    """Tell before a sale, as far as can be told without minting, whether the meter's key takes credit.

    Raises: ModuleAbsent.
    """
    if record.kt in (KeyType.INITIALISATION, KeyType.DEFAULT):
        return Declined(
            reason=DeclineReason.KEY_TYPE_REFUSED,
            message=f"meter {record.drn}: expected key type 2 or 3 to take credit, got {record.kt:d}",
        )
    try:
        await module.key_check_value(sgc=record.sgc, krn=record.krn)
    except StsError as error:
        return declined_by_module(record, error)
    return None


def declined_by_module(record: MeterKeyRecord, error: StsError) -> Declined:
    """Turn what the security module refuses into the answer; its messages hold neither keys nor tokens.

    Raises: the error itself where the module did not answer.
    """
    if isinstance(error, ModuleAbsent):
        raise error
    reasons: dict[type[StsError], DeclineReason] = {
        VendingKeyExpired: DeclineReason.KEY_EXPIRED,
        CreditKeyTypeRefused: DeclineReason.KEY_TYPE_REFUSED,
        VendingKeyUnknown: DeclineReason.VENDING_KEY_UNKNOWN,
        RiskLimitReached: DeclineReason.RISK_LIMIT,
        ModuleRefused: DeclineReason.MODULE_REFUSED,
    }
    reason = reasons.get(type(error), DeclineReason.METER_KEY_UNSUPPORTED)
    return Declined(reason=reason, message=f"meter {record.drn}: {error}")


def _facts(meter: MeterRecord) -> StsFacts:
    assert isinstance(meter.facts, StsFacts), f"meter {meter.serial}: chosen by its record, it is an STS meter"
    return meter.facts


def _credit_refusal(meter: MeterRecord, service: CreditService) -> Declined | None:
    if not takes(meter, _SERVICES[service]):
        return not_capable(meter, f"credit of {service.name.lower()}")
    if not (takes(meter, Capability.CURRENCY) or takes(meter, Capability.UNITS)):
        return not_capable(meter, "currency or units")
    return None


def _declined_tid(record: MeterKeyRecord, declined: TidDeclined) -> Declined:
    if declined.reason is TidDeclineReason.ERA_EXHAUSTED:
        reason, expected = DeclineReason.TID_ERA_EXHAUSTED, "a TID inside the meter's era"
    else:
        reason, expected = DeclineReason.TID_TOO_FAR_AHEAD, f"a TID near {declined.now_tid}"
    return Declined(
        reason=reason, message=f"meter {record.drn}: expected {expected}, got {declined.wanted_tid} as the next one"
    )


def _refused_change(key: MeterKeyRecord, message: str) -> Declined:
    return Declined(reason=DeclineReason.KEY_CHANGE_REFUSED, message=f"meter {key.drn}: {message}")


def _issued(
    number: TokenNumber, *, tid: int | None, token_class: int, subclass: int, carried: Carried | None = None
) -> IssuedToken:
    return IssuedToken(
        engine=EngineName.STS,
        digits=number.digits,
        grouped=number.grouped,
        tid=tid,
        token_class=token_class,
        subclass=subclass,
        carried=carried,
    )


def _of_currency(amount: CurrencyField) -> Carried:
    return Carried(steps=amount.amount_e5, steps_per_unit=CURRENCY_STEPS_PER_UNIT, unit=CarriedUnit.CURRENCY)


def _of_units(amount16: int, service: CreditService) -> Carried:
    return Carried(steps=decode_unit_amount(amount16), steps_per_unit=_TENTHS, unit=_UNITS[service])


def _reading(number: TokenNumber, token: AnyToken, key: MeterKeyRecord) -> TokenReading:
    carried, tid = None, None
    match token:
        case UnitCredit():
            carried, tid = _of_units(token.amount16, token.service), token.tid
        case CurrencyCredit():
            carried, tid = _of_currency(token.amount), token.tid
        case Management() | ExtendedControl() | ExtendedFlag():
            tid = token.tid
        case _:
            pass
    token_class, subclass = _place(token)
    return TokenReading(
        masked=number.masked,
        token_class=token_class,
        subclass=subclass,
        carried=carried,
        tid=tid,
        tid_minute=None if tid is None else minute_of_tid(tid, key.base_date),
    )


def _place(token: AnyToken) -> tuple[int, int]:
    match token:
        case UnitCredit() | CurrencyCredit() | DisplayTest() | ExtendedRead():
            return pack_fields(token)[:2]
        case _:
            return 2, pack_management(token)[0]
