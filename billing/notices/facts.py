"""The facts of a notice: what is stored in the transaction of its cause, to be put into words when it is read or sent.

Stage: between the cause of a notice and its text. One frozen class a kind, so that a template cannot name a fact that
is not there. The last part of a name is its unit: `_minor` money, `_ms` an instant, `_wh` energy, `_w` power; a date
is a local day. A fact that may be None is told only where it is given.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import date
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from billing.notices.kinds import NoticeError, NoticeKind
from billing.supply import Supply

# 20 digits in groups of four; a masked token shows the last group.
_TOKEN_SHOWN = 4


class TamperEvent(StrEnum):
    """What a meter has noticed that its consumer should hear of."""

    COVER_OPEN = "cover_open"
    TERMINAL_OPEN = "terminal_open"
    MAGNET = "magnet"
    NEUTRAL_DISTURBED = "neutral_disturbed"
    CURRENT_REVERSED = "current_reversed"


class CouponReason(StrEnum):
    """Why a coupon was not taken, as far as a person is told."""

    COUPON_MISTYPED = "coupon_mistyped"
    COUPON_UNKNOWN = "coupon_unknown"
    COUPON_USED = "coupon_used"
    COUPON_LAPSED = "coupon_lapsed"
    COUPON_UNUSABLE = "coupon_unusable"
    COUPON_WAIT = "coupon_wait"
    COUPON_METER = "coupon_meter"
    COUPON_NOT_NOW = "coupon_not_now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What every kind's facts can do: become JSON and come back the same."""

    kind: ClassVar[NoticeKind]

    def to_json(self) -> dict[str, object]:
        """Return the facts as stored: integers, texts, days in ISO form; a fact that is not given is left out."""
        told = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {
            name: value.isoformat() if isinstance(value, date) else value for name, value in told if value is not None
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, object]) -> Self:
        """Read stored facts.

        Raises: NoticeError when a fact is missing, unknown or of another type.
        """
        known = fact_types(cls)
        unknown = stored.keys() - known.keys()
        if unknown:
            raise NoticeError(f"facts of {cls.kind}: expected {', '.join(known)}, got {', '.join(sorted(unknown))}")
        # The constructor's types are checked value by value.
        values: dict[str, Any] = {name: _read(cls.kind, name, fact, stored.get(name)) for name, fact in known.items()}
        return cls(**values)

    def masked(self) -> Self:
        """Return the facts without what only their reader may know: of a token, its last digits are left."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class FactType:
    """Of what type a fact is, and whether it may be absent."""

    type: type
    optional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Low(Facts):
    """The balance has fallen to the amount that the consumer's threshold comes to."""

    kind: ClassVar[NoticeKind] = NoticeKind.LOW
    balance_minor: int
    threshold_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhausted(Facts):
    """Credit is used up; supply is protected until an instant, or cut off now where there is none."""

    kind: ClassVar[NoticeKind] = NoticeKind.EXHAUSTED
    balance_minor: int
    restores_minor: int
    protected_until_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut(Facts):
    """Supply was cut off at an instant."""

    kind: ClassVar[NoticeKind] = NoticeKind.CUT
    balance_minor: int
    restores_minor: int
    cut_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited(Facts):
    """Supply is limited to a load instead of cut off."""

    kind: ClassVar[NoticeKind] = NoticeKind.LIMITED
    balance_minor: int
    restores_minor: int
    limit_w: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored(Facts):
    """Supply is coming back."""

    kind: ClassVar[NoticeKind] = NoticeKind.RESTORED
    balance_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recharged(Facts):
    """A recharge was credited.

    `arrears_paid_minor` went to earlier arrears; `restores_minor` more is needed while supply stays off or limited.
    """

    kind: ClassVar[NoticeKind] = NoticeKind.RECHARGED
    amount_minor: int
    balance_minor: int
    arrears_paid_minor: int | None = None
    token: str | None = None
    restores_minor: int | None = None

    def masked(self) -> Self:
        """Leave the token's last digits."""
        return self if self.token is None else replace(self, token=mask_token(self.token))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast(Facts):
    """On which day credit ends at present use."""

    kind: ClassVar[NoticeKind] = NoticeKind.FORECAST
    balance_minor: int
    days_left: int
    ends_on: date


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementReady(Facts):
    """The statement of a period can be read."""

    kind: ClassVar[NoticeKind] = NoticeKind.STATEMENT_READY
    first: date
    last: date
    energy_wh: int
    charge_minor: int
    closing_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tamper(Facts):
    """The meter has noticed something at an instant."""

    kind: ClassVar[NoticeKind] = NoticeKind.TAMPER
    event: TamperEvent
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage(Facts):
    """There is no power; expected back at an instant if anybody knows."""

    kind: ClassVar[NoticeKind] = NoticeKind.OUTAGE
    since_ms: int
    expected_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredPower(Facts):
    """An outage is over."""

    kind: ClassVar[NoticeKind] = NoticeKind.RESTORED_POWER
    since_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Otp(Facts):
    """The code that proves who reads a contact's messages. Forgotten once it is delivered; never listed."""

    kind: ClassVar[NoticeKind] = NoticeKind.OTP
    code: str
    expires_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceAnswer(Facts):
    """The answer to BAL, at money time; `restores_minor` is given where credit is used up."""

    kind: ClassVar[NoticeKind] = NoticeKind.BALANCE_ANSWER
    balance_minor: int
    at_ms: int
    supply: Supply
    days_left: int | None = None
    restores_minor: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UseAnswer(Facts):
    """The answer to USE: the local day and month of money time."""

    kind: ClassVar[NoticeKind] = NoticeKind.USE_ANSWER
    day: date
    day_energy_wh: int
    day_charge_minor: int
    month_energy_wh: int
    month_charge_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenResend(Facts):
    """The answer to TOKEN: the last one, in groups of four, masked for whom has no right to it."""

    kind: ClassVar[NoticeKind] = NoticeKind.TOKEN_RESEND
    token: str
    amount_minor: int
    at_ms: int

    def masked(self) -> Self:
        """Leave the token's last digits."""
        return replace(self, token=mask_token(self.token))


@dataclass(frozen=True, slots=True, kw_only=True)
class NoToken(Facts):
    """The answer to TOKEN where none was ever issued."""

    kind: ClassVar[NoticeKind] = NoticeKind.NO_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class WhichAccount(Facts):
    """A number stands for several accounts: the same command again, with the account."""

    kind: ClassVar[NoticeKind] = NoticeKind.WHICH_ACCOUNT
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HelpAnswer(Facts):
    """What can be asked by SMS."""

    kind: ClassVar[NoticeKind] = NoticeKind.HELP_ANSWER


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Facts):
    """A number gets no more messages."""

    kind: ClassVar[NoticeKind] = NoticeKind.STOPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Facts):
    """A number gets messages again."""

    kind: ClassVar[NoticeKind] = NoticeKind.STARTED


@dataclass(frozen=True, slots=True, kw_only=True)
class CouponRefused(Facts):
    """A coupon that was sent by SMS or typed at the meter was not taken."""

    kind: ClassVar[NoticeKind] = NoticeKind.COUPON_REFUSED
    reason: CouponReason


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentRefunded(Facts):
    """Money paid online goes back to its payer; `taken_back_minor` had been credited for it and is credited no more."""

    kind: ClassVar[NoticeKind] = NoticeKind.PAYMENT_REFUNDED
    amount_minor: int
    order: str
    taken_back_minor: int | None = None


FACTS: Mapping[NoticeKind, type[Facts]] = {
    each.kind: each
    for each in (
        Low, Exhausted, Cut, Limited, Restored, Recharged, Forecast, StatementReady, Tamper, Outage, RestoredPower, Otp,
        BalanceAnswer, UseAnswer, TokenResend, NoToken, WhichAccount, HelpAnswer, Stopped, Started,
        CouponRefused, PaymentRefunded,
    )
}  # fmt: skip


def read_facts(kind: str, stored: Mapping[str, object]) -> Facts:
    """Read the stored facts of a kind.

    Raises: NoticeError, also for a kind that this version does not know.
    """
    if kind not in set(NoticeKind):
        raise NoticeError(f"notice: expected one of {', '.join(NoticeKind)}, got kind {kind[:40]!r}")
    return FACTS[NoticeKind(kind)].from_json(stored)


def fact_types(facts: type[Facts]) -> Mapping[str, FactType]:
    """Return the type of each fact of a class, in the order of its fields."""
    return _types_of(facts.kind)


def mask_token(token: str) -> str:
    """Return a token of which the last digits can be read, e.g. `**** **** **** **** 7890`."""
    shown = len(token) - _TOKEN_SHOWN
    return "".join("*" if mark.isdigit() and place < shown else mark for place, mark in enumerate(token))


@cache
def _types_of(kind: NoticeKind) -> Mapping[str, FactType]:
    hints = get_type_hints(FACTS[kind])
    return {each.name: _fact_type(hints[each.name]) for each in fields(FACTS[kind])}


def _fact_type(hint: object) -> FactType:
    if get_origin(hint) is types.UnionType:
        (inner,) = (each for each in get_args(hint) if each is not types.NoneType)
        return FactType(type=inner, optional=True)
    assert isinstance(hint, type), hint
    return FactType(type=hint, optional=False)


def _read(kind: NoticeKind, name: str, fact: FactType, stored: object) -> object:
    if stored is None and fact.optional:
        return None
    try:
        if issubclass(fact.type, StrEnum | date) and isinstance(stored, str):
            return fact.type.fromisoformat(stored) if issubclass(fact.type, date) else fact.type(stored)
    except ValueError:
        raise NoticeError(f"facts of {kind}: expected {name} of type {fact.type.__name__}, got another") from None
    # JSON knows true and false, which are integers here.
    if fact.type not in (int, str) or type(stored) is not fact.type:
        raise NoticeError(f"facts of {kind}: expected {name} of type {fact.type.__name__}, got {type(stored).__name__}")
    return stored
