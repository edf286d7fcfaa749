"""What a consumer can be told, and how each kind travels: channels, quiet hours, how long it is worth reading.

Stage: below everything about notices. The rules of the kinds are data (`kinds.toml`), checked when they are read.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cache
from importlib import resources
from typing import Any

from billing.money import BillingError


class NoticeError(BillingError):
    """Something about a notice that does not fit: a template, a kind's rule, stored facts."""

    code = "notice_error"


class NoticeKind(StrEnum):
    """What a consumer can be told."""

    LOW = "low"
    EXHAUSTED = "exhausted"
    CUT = "cut"
    LIMITED = "limited"
    RESTORED = "restored"
    RECHARGED = "recharged"
    FORECAST = "forecast"
    STATEMENT_READY = "statement_ready"
    TAMPER = "tamper"
    OUTAGE = "outage"
    RESTORED_POWER = "restored_power"
    OTP = "otp"
    BALANCE_ANSWER = "balance_answer"
    USE_ANSWER = "use_answer"
    TOKEN_RESEND = "token_resend"
    NO_TOKEN = "no_token"
    WHICH_ACCOUNT = "which_account"
    HELP_ANSWER = "help_answer"
    STOPPED = "stopped"
    STARTED = "started"
    COUPON_REFUSED = "coupon_refused"
    PAYMENT_REFUNDED = "payment_refunded"


class Channel(StrEnum):
    """How a notice reaches a person. The list in the app has every notice; it needs no delivery."""

    SMS = "sms"
    EMAIL = "email"
    APP = "app"


class Language(StrEnum):
    """A language that notices are written in."""

    ENGLISH = "en"
    HINDI = "hi"
    PUNJABI = "pa"

    @classmethod
    def of(cls, tag: str) -> Language:
        """Return the language of a tag such as `pa` or `pa-Guru-IN`; English for one that there are no texts in."""
        primary = tag.split("-")[0].lower()
        return cls(primary) if primary in set(cls) else cls.ENGLISH


class Rank(IntEnum):
    """What is sent first when much waits."""

    ASKED = 0
    SUPPLY = 1
    OTHER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRule:
    """How a kind travels.

    Invariants: the second channel is for when the first has no usable contact or has failed for good. `waits` holds
    it back during quiet hours. `life_s` after its cause it is no longer worth reading, and tries end. `capped` counts
    it in the day's messages of an account and channel; what a consumer has asked for is not counted.
    """

    channels: tuple[Channel, ...]
    waits: bool
    life_s: int
    rank: Rank
    capped: bool


@cache
def kind_rules() -> Mapping[NoticeKind, KindRule]:
    """Return the rule of every kind.

    Raises: NoticeError for a kind without a rule, a rule of no kind, or one that does not make sense.
    """
    text = resources.files("billing.notices").joinpath("kinds.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    if set(tables) != set(NoticeKind):
        raise NoticeError(f"kinds.toml: expected one table a kind, got {sorted(set(tables) ^ set(NoticeKind))} amiss")
    return {kind: _rule(kind, tables[kind]) for kind in NoticeKind}


def rule_of(kind: str) -> KindRule | None:
    """Return the rule of a stored kind; None for one that this version does not know."""
    return kind_rules()[NoticeKind(kind)] if kind in set(NoticeKind) else None


def _rule(kind: NoticeKind, table: Mapping[str, Any]) -> KindRule:
    # TOML values: of the types that the checks below allow.
    try:
        channels = tuple(Channel(name) for name in table["channels"])
        rule = KindRule(
            channels=channels,
            waits={"wait": True, "pass": False}[table["at_night"]],
            life_s=table["life_s"],
            rank=Rank[table["rank"].upper()],
            capped=table["capped"],
        )
    except (KeyError, ValueError) as error:
        raise NoticeError(f"kinds.toml, {kind}: expected channels, at_night, life_s, rank, capped: {error}") from None
    if not channels or Channel.APP in channels or len(set(channels)) != len(channels) or rule.life_s < 1:
        raise NoticeError(f"kinds.toml, {kind}: expected different channels that deliver and a life above 0 s")
    return rule
