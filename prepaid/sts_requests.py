"""What `prepaid sts issue` can be asked for: a kind and a value as typed, to a token's contents.

Stage: the command line over the pure STS engine. No key, no clock, no chance: TID and RND come as arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from enum import StrEnum
from typing import Final

from prepaid.sts_files import StsCommandRefused
from vending.sts.amounts import CURRENCY_STEPS_PER_UNIT, CurrencyField, encode_unit_amount
from vending.sts.management import (
    FLAG_INDEX,
    REGISTER_ALL,
    AnyToken,
    ExtendedControl,
    ExtendedFlag,
    Management,
    ManagementKind,
)
from vending.sts.tokens import (
    CreditService,
    CurrencyCredit,
    DisplayTest,
    ExtendedRead,
    UnitCredit,
    display_test_control,
)

# 40 digits before the point and 20 after it are more than any field holds; 70 of precision make the product exact.
_AMOUNT: Final = re.compile(r"-?\d{1,40}(\.\d{1,20})?", re.ASCII)
_EXACT: Final = Context(prec=70)


class TokenKind(StrEnum):
    """The tokens that can be issued one by one; key changes come as a set by a command of their own."""

    CREDIT = "credit"
    CURRENCY = "currency"
    TEST = "test"
    READ = "read"
    POWER_LIMIT = "power-limit"
    CLEAR_CREDIT = "clear-credit"
    TARIFF_RATE = "tariff-rate"
    CLEAR_TAMPER = "clear-tamper"
    UNBALANCE_LIMIT = "unbalance-limit"
    WATER_FACTOR = "water-factor"
    CONTROL = "control"
    FLAG = "flag"

    @property
    def is_clear(self) -> bool:
        """Tell whether any meter takes the token without a key (class 1)."""
        return self in (TokenKind.TEST, TokenKind.READ)

    @property
    def is_credit(self) -> bool:
        """Tell whether the token is a credit (class 0)."""
        return self in (TokenKind.CREDIT, TokenKind.CURRENCY)


_LIMITS: Final = {
    TokenKind.POWER_LIMIT: ManagementKind.SET_POWER_LIMIT,
    TokenKind.UNBALANCE_LIMIT: ManagementKind.SET_UNBALANCE_LIMIT,
}
_RAW: Final = {
    TokenKind.TARIFF_RATE: ManagementKind.SET_TARIFF_RATE,
    TokenKind.WATER_FACTOR: ManagementKind.SET_WATER_FACTOR,
}
_SERVICES: Final = tuple(service.name.lower() for service in CreditService)
REGISTERS: Final[Mapping[str, int]] = (
    {name: place for place, name in enumerate((*_SERVICES, *(f"currency-{name}" for name in _SERVICES)))}
    | {str(place): place for place in range(2 * len(_SERVICES))}
    | {"all": REGISTER_ALL}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """One token as asked for.

    Invariants: `value` is as typed; `service` matters to credit, the maker's code to tests.
    """

    kind: TokenKind
    value: str | None
    service: CreditService
    maker_digits: int
    maker_code: int

    def contents(self, *, rnd: int, tid: int) -> AnyToken:
        """Return the contents of the token.

        Rounds: amounts up, in the consumer's favour.
        Raises: StsCommandRefused for a value of another form; StsError for one out of range.
        """
        match self.kind:
            case TokenKind.CREDIT:
                amount16 = encode_unit_amount(self._steps(10))
                return UnitCredit(service=self.service, rnd=rnd, tid=tid, amount16=amount16)
            case TokenKind.CURRENCY:
                amount = CurrencyField.encode(self._steps(CURRENCY_STEPS_PER_UNIT))
                return CurrencyCredit(service=self.service, tid=tid, amount=amount)
            case TokenKind.TEST:
                control = display_test_control(self._number(), maker_digits=self.maker_digits)
                return DisplayTest(maker_digits=self.maker_digits, maker_code=self.maker_code, control=control)
            case TokenKind.READ:
                return ExtendedRead(index=self._number())
            case TokenKind.CONTROL:
                index, value = self._pair()
                return ExtendedControl(rnd=rnd, tid=tid, index=index, value=value)
            case TokenKind.FLAG:
                flag, value = self._pair()
                if value > 1:
                    raise StsCommandRefused(f"flag: expected 0 or 1 (index {FLAG_INDEX} holds flags), got {value}")
                return ExtendedFlag(rnd=rnd, tid=tid, flag=flag, value=bool(value))
            case _:
                kind, value16 = self._management()
                return Management(kind=kind, rnd=rnd, tid=tid, value16=value16)

    def _management(self) -> tuple[ManagementKind, int]:
        match self.kind:
            case TokenKind.POWER_LIMIT | TokenKind.UNBALANCE_LIMIT:
                return _LIMITS[self.kind], encode_unit_amount(self._steps(1))
            case TokenKind.TARIFF_RATE | TokenKind.WATER_FACTOR:
                return _RAW[self.kind], self._number()
            case TokenKind.CLEAR_TAMPER:
                if self.value is not None:
                    raise StsCommandRefused(f"clear-tamper: expected no value, got {self.value[:20]!r}")
                return ManagementKind.CLEAR_TAMPER, 0
            case TokenKind.CLEAR_CREDIT:
                register = REGISTERS.get(self._typed())
                if register is None:
                    raise StsCommandRefused(f"clear-credit: expected one of {', '.join(REGISTERS)}")
                return ManagementKind.CLEAR_CREDIT, register
            case _:
                raise AssertionError(f"{self.kind} has contents of its own")

    def _typed(self) -> str:
        if self.value is None:
            raise StsCommandRefused(f"{self.kind}: expected a value, got none")
        return self.value.strip()

    def _steps(self, steps_per_unit: int) -> int:
        typed = self._typed()
        if not _AMOUNT.fullmatch(typed):
            raise StsCommandRefused(f"{self.kind}: expected a decimal number, got {typed[:20]!r}")
        exact = _EXACT.multiply(Decimal(typed), Decimal(steps_per_unit))
        return int(exact.to_integral_value(ROUND_CEILING))

    def _number(self) -> int:
        typed = self._typed()
        if not re.fullmatch(r"\d{1,6}", typed, re.ASCII):
            raise StsCommandRefused(f"{self.kind}: expected a whole number, got {typed[:20]!r}")
        return int(typed)

    def _pair(self) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,4})=(\d{1,4})", self._typed(), re.ASCII)
        if match is None:
            raise StsCommandRefused(f"{self.kind}: expected NUMBER=VALUE, got {self._typed()[:20]!r}")
        return int(match.group(1)), int(match.group(2))
