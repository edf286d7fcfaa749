"""The engine of OpenPAYGO devices: money into days of use, minted by a security module that opens the device's key.

Stage: see port. The token id of a device is the count of its token, which tells adding time from setting it by being
even or odd.

Standard: OpenPAYGO Token (vending.openpaygo).
"""

from __future__ import annotations

from dataclasses import dataclass

from vending.engines.port import (
    Carried,
    CarriedUnit,
    Credit,
    IssuedToken,
    ManagementOrder,
    PaygoCommand,
    TokenReading,
    not_capable,
    takes,
)
from vending.engines.records import Capability, EngineName, MeterRecord, PaygoFacts
from vending.openpaygo.errors import MalformedPaygoToken, PaygoCountRefused, PaygoError
from vending.openpaygo.tokens import PaygoKind, next_count, value_max
from vending.security import (
    ModuleAbsent,
    ModuleRefused,
    RiskLimitReached,
    SecurityModule,
    SecurityModuleError,
    TokenRefused,
)
from vending.vends import Declined, DeclineReason

_COMMANDS = {
    PaygoKind.SET_TIME: Capability.SET_TIME,
    PaygoKind.DISABLE_PAYG: Capability.DISABLE_PAYG,
    PaygoKind.COUNTER_SYNC: Capability.COUNTER_SYNC,
}


@dataclass(frozen=True, slots=True)
class PaygoEngine:
    """OpenPAYGO tokens by one security module."""

    module: SecurityModule

    async def judge(self, meter: MeterRecord, *, now_ms: int) -> Declined | None:
        """Tell what would refuse the device time; `now_ms` does not matter to a count."""
        if not takes(meter, Capability.TIME):
            return not_capable(meter, "time")
        count = _next_count(meter, PaygoKind.ADD_TIME)
        return count if isinstance(count, Declined) else None

    async def preview_credit(self, meter: MeterRecord, credit: Credit, *, now_ms: int) -> IssuedToken | Declined:
        """Tell what the token of a credit would hold."""
        declined = await self.judge(meter, now_ms=now_ms)
        value = declined or _value(meter, credit)
        if isinstance(value, Declined):
            return value
        return IssuedToken(engine=EngineName.OPENPAYGO, digits="", grouped="", tid=None, carried=_of_days(meter, value))

    async def issue_credit(self, meter: MeterRecord, credit: Credit, *, now_ms: int) -> IssuedToken | Declined:
        """Mint the time that an amount pays for, at the record's price of a day.

        Rounds: up to the parts of a day that the device counts. Raises: ModuleAbsent.
        """
        declined = await self.judge(meter, now_ms=now_ms)
        value = declined or _value(meter, credit)
        return value if isinstance(value, Declined) else await self._mint(meter, PaygoKind.ADD_TIME, value)

    async def issue_management(
        self, meter: MeterRecord, order: ManagementOrder, *, now_ms: int
    ) -> IssuedToken | Declined:
        """Mint a command of OpenPAYGO. Raises: ModuleAbsent."""
        if not isinstance(order, PaygoCommand):
            return not_capable(meter, order.kind.name.lower())
        capability = _COMMANDS.get(order.kind)
        if capability is None or not takes(meter, capability):
            return not_capable(meter, order.kind.value)
        return await self._mint(meter, order.kind, order.value)

    async def issue_key_change(
        self, meter: MeterRecord, new: MeterRecord, *, now_ms: int
    ) -> tuple[IssuedToken, ...] | Declined:
        """Refuse: a device keeps the key of its making."""
        return not_capable(meter, "key-change tokens")

    async def verify(self, meter: MeterRecord, digits: str) -> TokenReading | TokenRefused | Declined:
        """Read a token of the device, given out or within the counts it would look at. Raises: ModuleAbsent."""
        stored = _facts(meter).stored
        try:
            read = await self.module.verify_paygo(
                stored.device, sealed_key=stored.sealed_key, digits=digits, last_count=meter.last_tid or 0
            )
        except MalformedPaygoToken as error:
            return TokenRefused(code=error.code, reason=str(error))
        except (PaygoError, SecurityModuleError) as error:
            return _declined(meter, error)
        if isinstance(read, TokenRefused):
            return read
        carried = _of_days(meter, read.value or 0) if read.kind.carries_time else None
        return TokenReading(masked=read.masked, token_class=None, subclass=None, carried=carried, tid=read.count)

    async def _mint(self, meter: MeterRecord, kind: PaygoKind, value: int | None) -> IssuedToken | Declined:
        stored = _facts(meter).stored
        count = _next_count(meter, kind)
        if isinstance(count, Declined):
            return count
        try:
            token = await self.module.mint_paygo(
                stored.device, sealed_key=stored.sealed_key, kind=kind, value=value, count=count
            )
        except (PaygoError, SecurityModuleError) as error:
            return _declined(meter, error)
        return IssuedToken(
            engine=EngineName.OPENPAYGO,
            digits=token.digits,
            grouped=token.grouped,
            tid=token.count,
            carried=_of_days(meter, token.value or 0) if kind.carries_time else None,
        )


def _facts(meter: MeterRecord) -> PaygoFacts:
    assert isinstance(meter.facts, PaygoFacts), f"meter {meter.serial}: chosen by its record, it is a device"
    return meter.facts


def _value(meter: MeterRecord, credit: Credit) -> int | Declined:
    """Return the parts of a day that a credit pays for, rounded up."""
    facts = _facts(meter)
    device = facts.stored.device
    value = -(-credit.amount_minor * device.time_divider // facts.day_price_minor)
    if value <= value_max(device):
        return value
    limit_minor = value_max(device) * facts.day_price_minor // device.time_divider
    return Declined(
        reason=DeclineReason.AMOUNT_ABOVE_MAXIMUM,
        message=f"meter {meter.serial}: expected an amount that one token carries, got one for {value} parts",
        limit_minor=limit_minor,
    )


def _next_count(meter: MeterRecord, kind: PaygoKind) -> int | Declined:
    try:
        return next_count(meter.last_tid or 0, kind)
    except PaygoCountRefused as error:
        return Declined(reason=DeclineReason.TID_ERA_EXHAUSTED, message=f"meter {meter.serial}: {error}")


def _declined(meter: MeterRecord, error: PaygoError | SecurityModuleError) -> Declined:
    """Turn what the module refuses into the answer. Raises: the error itself where the module did not answer."""
    if isinstance(error, ModuleAbsent):
        raise error
    reasons: dict[type[Exception], DeclineReason] = {
        RiskLimitReached: DeclineReason.RISK_LIMIT,
        ModuleRefused: DeclineReason.MODULE_REFUSED,
    }
    reason = reasons.get(type(error), DeclineReason.METER_KEY_UNSUPPORTED)
    return Declined(reason=reason, message=f"meter {meter.serial}: {error}")


def _of_days(meter: MeterRecord, value: int) -> Carried:
    divider = _facts(meter).stored.device.time_divider
    return Carried(steps=value, steps_per_unit=divider, unit=CarriedUnit.DAYS)
