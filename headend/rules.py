"""The rules that readings are validated by: what each is called, how grave it is, what becomes of the reading.

Stage: the table behind `headend.validate`, `headend.column_plan` and the quarantine desk. The built-in table holds for
every meter; a document of the utility's own (headend.rule_document) changes severity, action and limits, for all meters
or for a make and model. Values only. Rules are named by the fault they catch (VEE: validate); docs/validation.md shows
the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

# A limit that nothing reaches: of a rule that is not applied.
NEVER: Final = 2**62
DAY_S: Final = 86_400


class Severity(StrEnum):
    """How grave something is to the utility."""

    INFO = "info"
    WARNING = "warning"
    ALARM = "alarm"


class Action(StrEnum):
    """What becomes of a reading that a rule has caught."""

    ACCEPT = "accept"
    ACCEPT_AND_FLAG = "accept_and_flag"
    QUARANTINE = "quarantine"
    REJECT = "reject"

    @property
    def holds(self) -> bool:
        """Tell whether the reading is kept from being stored and charged; its bytes are kept in quarantine."""
        return self in (Action.QUARANTINE, Action.REJECT)


class Reason(StrEnum):
    """The name of a rule: why a frame or a reading is not stored, or flagged; the value is what the database keeps."""

    MALFORMED = "malformed"
    UNKNOWN_TOPIC = "unknown_topic"
    UNKNOWN_METER = "unknown_meter"
    NOT_INSTALLED = "not_installed"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    CLOCK_ABSURD = "clock_absurd"
    FUTURE = "future"
    BEFORE_INSTALLATION = "before_installation"
    TOO_LATE = "too_late"
    NEGATIVE = "negative"
    ROLLOVER = "rollover"
    REGISTER_RESET = "register_reset"
    REGISTER_SWAP = "register_swap"
    REGISTER_FELL = "register_fell"
    JUMP = "jump"
    SCALE_SLIP = "scale_slip"
    GAP = "gap"
    CLOCK_DRIFT = "clock_drift"
    STUCK = "stuck"
    WRONG_INTERVAL = "wrong_interval"
    EXPORT = "export"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A figure of a rule that a document may change, with its unit last in the name."""

    name: str
    value: int
    least: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule as it is built in.

    Invariants: `action` is one of `actions`, which are those that a document may choose from.
    """

    reason: Reason
    catches: str
    severity: Severity
    action: Action
    actions: tuple[Action, ...]
    limits: tuple[Limit, ...] = ()


_REFUSED = (Action.REJECT,)
_HELD = (Action.QUARANTINE, Action.REJECT)
_NOTED = (Action.ACCEPT, Action.ACCEPT_AND_FLAG)


def _rule(
    reason: Reason,
    severity: Severity,
    action: Action,
    actions: tuple[Action, ...],
    catches: str,
    limits: tuple[Limit, ...] = (),
) -> Rule:
    return Rule(reason=reason, catches=catches, severity=severity, action=action, actions=actions, limits=limits)


_I, _W, _A = Severity.INFO, Severity.WARNING, Severity.ALARM
_QUARANTINE, _FLAG = Action.QUARANTINE, Action.ACCEPT_AND_FLAG
# Four half-hours: one or two that are missing come by themselves with the meter's next block.
_GAP = (Limit(name="longer_than_s", value=7_200, least=60, most=35 * DAY_S),)
# As far as a reading may be ahead of the broker before it is one of the future.
_DRIFT = (Limit(name="beyond_s", value=300, least=1, most=365 * DAY_S),)
# 200 W for six hours are 1.2 kWh that a register which counts Wh cannot miss; a home may be empty for a month.
_STUCK = (
    Limit(name="load_w", value=200, least=1, most=10**6),
    Limit(name="with_load_s", value=6 * 3_600, least=60, most=365 * DAY_S),
    Limit(name="without_load_s", value=30 * DAY_S, least=60, most=3_650 * DAY_S),
)
_STEP = (Limit(name="step_s", value=1_800, least=1, most=DAY_S),)

RULES: Final[Mapping[Reason, Rule]] = MappingProxyType(
    {
        rule.reason: rule
        for rule in (
            _rule(Reason.MALFORMED, _W, Action.REJECT, _REFUSED, "bytes that are no message of the protocol"),
            _rule(Reason.UNKNOWN_TOPIC, _W, Action.REJECT, _REFUSED, "a topic that no meter of ours has"),
            _rule(Reason.UNKNOWN_METER, _W, Action.REJECT, _REFUSED, "a serial that nobody registered"),
            _rule(Reason.NOT_INSTALLED, _W, _QUARANTINE, (_QUARANTINE,), "a meter that stands nowhere for billing"),
            _rule(Reason.DUPLICATE, _I, Action.ACCEPT, (Action.ACCEPT,), "a reading that is stored: counted, dropped"),
            _rule(Reason.CONFLICT, _A, _QUARANTINE, _HELD, "the meter and instant of a stored reading, other values"),
            _rule(Reason.CLOCK_ABSURD, _A, _QUARANTINE, _HELD, "an instant before 2000 or after 2099"),
            _rule(Reason.FUTURE, _W, _QUARANTINE, _HELD, "an instant more than 300 s after the broker stored it"),
            _rule(Reason.BEFORE_INSTALLATION, _W, _QUARANTINE, _HELD, "an instant before the meter was installed"),
            _rule(Reason.TOO_LATE, _W, _QUARANTINE, _HELD, "an instant more than 35 days before the meter's mark"),
            _rule(Reason.NEGATIVE, _A, _QUARANTINE, _HELD, "a register below 0"),
            _rule(Reason.ROLLOVER, _I, Action.ACCEPT, _NOTED, "a register that passed its end, plausible in its time"),
            _rule(
                Reason.REGISTER_RESET,
                _A,
                _QUARANTINE,
                (*_HELD, *_NOTED),
                "a register that fell by more than rated power allows, to no more than it allows from 0",
            ),
            _rule(
                Reason.REGISTER_SWAP,
                _A,
                _QUARANTINE,
                _HELD,
                "a register that fell by more than rated power allows, far above 0: another meter's",
            ),
            _rule(Reason.REGISTER_FELL, _A, _QUARANTINE, _HELD, "a register that fell by less: a bad or old reading"),
            _rule(Reason.JUMP, _A, _QUARANTINE, (*_HELD, _FLAG), "more energy than rated power allows in its time"),
            _rule(
                Reason.SCALE_SLIP,
                _A,
                _QUARANTINE,
                _HELD,
                "a register a thousand times what it should be, or a thousandth; or what it rose by a thousand times",
            ),
            _rule(Reason.GAP, _W, _FLAG, _NOTED, "nothing for longer than some intervals before a reading", _GAP),
            _rule(Reason.CLOCK_DRIFT, _W, _FLAG, _NOTED, "a meter's clock away from the broker's", _DRIFT),
            _rule(Reason.STUCK, _W, _FLAG, _NOTED, "a register that stands still, with load or for very long", _STUCK),
            _rule(Reason.WRONG_INTERVAL, _W, Action.ACCEPT, _NOTED, "a block whose step is not its model's", _STEP),
            _rule(Reason.EXPORT, _W, _FLAG, _NOTED, "energy sent to the grid without permission"),
        )
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a document says of a rule otherwise than the built-in table; None leaves it."""

    severity: Severity | None = None
    action: Action | None = None
    limits: Mapping[str, int] = field(default_factory=dict)


Changes = Mapping[Reason, Change]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RuleSet:
    """The rules as they hold for the meters of a model.

    Units: limits of what is only noted in milliseconds and W, `NEVER` where it is not noted. Two sets are equal only if
    they are the same one.
    """

    severities: Mapping[Reason, Severity]
    actions: Mapping[Reason, Action]
    gap_ms: int
    drift_ms: int
    load_w: int
    still_with_load_ms: int
    still_without_load_ms: int
    step_ms: int | None
    notes_export: bool

    def holds(self, reason: Reason) -> bool:
        """Tell whether what a rule has caught is kept from being stored."""
        return self.actions[reason].holds

    def flags(self, reason: Reason) -> bool:
        """Tell whether what a rule has caught is stored and noted."""
        return self.actions[reason] is Action.ACCEPT_AND_FLAG


def rule_set(*several: Changes) -> RuleSet:
    """Return the built-in rules with changes, the later over the earlier."""
    severities = {reason: rule.severity for reason, rule in RULES.items()}
    actions = {reason: rule.action for reason, rule in RULES.items()}
    limits = {(reason, limit.name): limit.value for reason, rule in RULES.items() for limit in rule.limits}
    for changes in several:
        for reason, change in changes.items():
            severities[reason] = change.severity or severities[reason]
            actions[reason] = change.action or actions[reason]
            limits.update({(reason, name): value for name, value in change.limits.items()})

    def limit_ms(reason: Reason, name: str) -> int:
        return limits[reason, name] * 1_000 if actions[reason] is _FLAG else NEVER

    return RuleSet(
        severities=MappingProxyType(severities),
        actions=MappingProxyType(actions),
        gap_ms=limit_ms(Reason.GAP, "longer_than_s"),
        drift_ms=limit_ms(Reason.CLOCK_DRIFT, "beyond_s"),
        load_w=limits[Reason.STUCK, "load_w"],
        still_with_load_ms=limit_ms(Reason.STUCK, "with_load_s"),
        still_without_load_ms=limit_ms(Reason.STUCK, "without_load_s"),
        step_ms=limits[Reason.WRONG_INTERVAL, "step_s"] * 1_000 if actions[Reason.WRONG_INTERVAL] is _FLAG else None,
        notes_export=actions[Reason.EXPORT] is _FLAG,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ValidationRules:
    """The rules of a utility from a day on: a set for every model that has its own, and one for all others.

    Invariants: `models` is keyed by (make, model), in lower case; an empty model stands for every model of its make.
    """

    id: str
    default: RuleSet
    models: Mapping[tuple[str, str], RuleSet]

    def of(self, make: str, model: str) -> RuleSet:
        """Return the rules of a meter's make and model."""
        if not self.models:
            return self.default
        make, model = make.casefold(), model.casefold()
        return self.models.get((make, model)) or self.models.get((make, "")) or self.default


BUILTIN_RULES: Final = ValidationRules(id="built-in", default=rule_set(), models=MappingProxyType({}))
