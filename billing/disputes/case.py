"""A case: its kind, its steps in order, where it stands, which step may come next, and the clocks that run.

Stage: between what an engineer enters and the rows of the trail. A case is the fold of its steps; nothing else is kept
of where it stands. A step that does not fit is refused with what was expected.

Source: requirements R-18 (check meter within 5 days, three months, then laboratory, then a third party), R-19
(replacement in 24 or 72 hours), R-20 and R-21 (overhaul), R-28 (a disputed bill within 24 hours).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from billing.calendar import LocalCalendar, days_in, next_period, period_of
from billing.disputes.rules import CaseRules
from billing.money import BillingError

HOUR_MS = 3_600_000


class CaseRefused(BillingError):
    """A step that the case is not ready for, or that the rules do not allow."""

    code = "case_refused"


class CaseKind(StrEnum):
    """What is disputed."""

    INACCURATE = "inaccurate"
    DEFECTIVE = "defective"
    BURNT = "burnt"
    STOLEN = "stolen"
    SEASONAL = "seasonal"
    DISPUTED_BILL = "disputed_bill"
    NET_METER = "net_meter"


class Area(StrEnum):
    """Where the meter stands, for the time in which it has to be replaced."""

    URBAN = "urban"
    RURAL = "rural"


class StepKind(StrEnum):
    """What can be done in a case, in the order in which it usually is."""

    OPEN = "open"
    ASK = "ask"
    ANSWER = "answer"
    INSTALL_CHECK = "install_check"
    COMPARE = "compare"
    LABORATORY = "laboratory"
    THIRD_PARTY = "third_party"
    REPLACE = "replace"
    DECIDE = "decide"
    PROPOSE = "propose"
    APPROVE = "approve"
    REFUSE = "refuse"
    POST = "post"
    CLOSE = "close"


class State(StrEnum):
    """Where a case stands."""

    OPENED = "opened"
    PAIRED = "paired"
    COMPARED = "compared"
    LABORATORY = "laboratory"
    THIRD_PARTY = "third_party"
    REPLACED = "replaced"
    DECIDED = "decided"
    PROPOSED = "proposed"
    APPROVED = "approved"
    POSTED = "posted"
    CLOSED = "closed"


class Verdict(StrEnum):
    """What a test says of a meter."""

    RIGHT = "right"
    FAST = "fast"
    SLOW = "slow"
    INCONCLUSIVE = "inconclusive"


class Decision(StrEnum):
    """What follows from a case for the account."""

    OVERHAUL = "overhaul"
    ADJUST = "adjust"
    METER_RIGHT = "meter_right"
    NOTHING = "nothing"


# Kinds whose meter is tested against another one, and those whose meter is replaced at once.
TESTED = frozenset({CaseKind.INACCURATE, CaseKind.NET_METER})
REPLACED_AT_ONCE = frozenset({CaseKind.DEFECTIVE, CaseKind.BURNT, CaseKind.STOLEN})
_TESTS = (StepKind.COMPARE, StepKind.LABORATORY, StepKind.THIRD_PARTY)
# From which states a step may be taken, and where it leads; None leaves the case where it stands.
_STEPS: dict[StepKind, tuple[frozenset[State], State | None]] = {
    StepKind.ASK: (frozenset({State.OPENED}), None),
    StepKind.ANSWER: (frozenset({State.OPENED}), None),
    StepKind.INSTALL_CHECK: (frozenset({State.OPENED}), State.PAIRED),
    StepKind.COMPARE: (frozenset({State.PAIRED, State.COMPARED}), State.COMPARED),
    StepKind.LABORATORY: (frozenset({State.COMPARED}), State.LABORATORY),
    StepKind.THIRD_PARTY: (frozenset({State.LABORATORY}), State.THIRD_PARTY),
    StepKind.REPLACE: (
        frozenset({State.OPENED, State.COMPARED, State.LABORATORY, State.THIRD_PARTY, State.DECIDED}),
        State.REPLACED,
    ),
    StepKind.DECIDE: (
        frozenset({State.OPENED, State.REPLACED, State.COMPARED, State.LABORATORY, State.THIRD_PARTY}),
        State.DECIDED,
    ),
    StepKind.PROPOSE: (frozenset({State.DECIDED}), State.PROPOSED),
    StepKind.APPROVE: (frozenset({State.PROPOSED}), State.APPROVED),
    StepKind.REFUSE: (frozenset({State.PROPOSED, State.APPROVED}), State.DECIDED),
    StepKind.POST: (frozenset({State.APPROVED, State.DECIDED}), State.POSTED),
    StepKind.CLOSE: (frozenset({State.POSTED, State.DECIDED}), State.CLOSED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a case: what, when, by whom.

    Invariants: tests have a `verdict`, a decision has its `decision`.
    """

    kind: StepKind
    at_ms: int
    by: str
    verdict: Verdict | None = None
    decision: Decision | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """A time within which something has to be done; `met_ms` is when it was."""

    name: str
    since_ms: int
    due_ms: int
    met_ms: int | None
    source: str

    def overdue(self, now_ms: int) -> bool:
        """Tell whether it was, or is being, done too late."""
        return (now_ms if self.met_ms is None else self.met_ms) > self.due_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A case as its steps have left it.

    Invariants: `steps` begin with OPEN, were taken in order, and each was allowed by `taken`.
    """

    kind: CaseKind
    area: Area
    steps: tuple[Step, ...]

    @property
    def opened_ms(self) -> int:
        """When the complaint came."""
        return self.steps[0].at_ms

    @property
    def state(self) -> State:
        """Where the case stands."""
        state = State.OPENED
        for step in self.steps[1:]:
            state = _after(self.kind, state, step.kind)
        return state

    @property
    def verdict(self) -> Verdict | None:
        """What the latest test says; a later kind of test goes before an earlier one."""
        return next((step.verdict for step in reversed(self.steps) if step.kind in _TESTS), None)

    @property
    def decision(self) -> Decision | None:
        """What was decided."""
        return next((step.decision for step in reversed(self.steps) if step.decision is not None), None)

    def last(self, kind: StepKind) -> Step | None:
        """Return the latest step of a kind."""
        return next((step for step in reversed(self.steps) if step.kind is kind), None)


def opened(kind: CaseKind, area: Area, *, at_ms: int, by: str) -> Case:
    """Open a case with a complaint."""
    return Case(kind=kind, area=area, steps=(Step(kind=StepKind.OPEN, at_ms=at_ms, by=by),))


def resumed(kind: CaseKind, area: Area, steps: Iterable[Step]) -> Case:
    """Return a case from its stored steps, which were allowed when they were taken."""
    return Case(kind=kind, area=area, steps=tuple(steps))


def taken(case: Case, step: Step) -> Case:
    """Take a further step.

    Raises: CaseRefused.
    """
    state = case.state
    if step.kind not in _STEPS or state not in _STEPS[step.kind][0]:
        allowed = ", ".join(sorted(kind.value for kind, (states, _) in _STEPS.items() if state in states)) or "nothing"
        raise CaseRefused(f"{step.kind}: expected one of {allowed} in a case that is {state}")
    if step.at_ms < case.steps[-1].at_ms:
        raise CaseRefused("instant: expected one that is not before the case's latest step")
    _require_kind(case, step)
    match step.kind:
        case StepKind.DECIDE:
            _require_decidable(case, step)
        case StepKind.PROPOSE:
            _require(
                case.decision in (Decision.OVERHAUL, Decision.ADJUST), "propose", "an overhaul or adjustment", case
            )
        case StepKind.APPROVE:
            proposed = case.last(StepKind.PROPOSE)
            if proposed is not None and proposed.by.casefold() == step.by.casefold():
                raise CaseRefused(f"approve: expected another person than {proposed.by}, who proposed it")
        case StepKind.POST:
            right = case.decision is Decision.METER_RIGHT
            _require(state is State.APPROVED or right, "post", "an approved proposal, or a meter that is right", case)
        case StepKind.CLOSE:
            done = state is State.POSTED or case.decision is Decision.NOTHING
            _require(done, "close", "what was decided to be posted", case)
        case _:
            pass
    return replace(case, steps=(*case.steps, step))


def clocks(case: Case, rules: CaseRules, calendar: LocalCalendar) -> list[Clock]:
    """Return the clocks of a case, those that were met as well."""
    found: list[Clock] = []
    if case.kind in TESTED:
        found.append(
            _clock(case, "check_meter", 24 * rules.check_meter_days, StepKind.INSTALL_CHECK, rules.check_meter_source)
        )
        installed = case.last(StepKind.INSTALL_CHECK)
        if installed is not None:
            compared = next((step.at_ms for step in case.steps if step.kind is StepKind.COMPARE), None)
            ends_ms = paired_until_ms(installed.at_ms, rules, calendar)
            late_ms = ends_ms + 24 * HOUR_MS * rules.check_meter_days
            found.append(
                Clock(
                    name="comparison",
                    since_ms=ends_ms,
                    due_ms=late_ms,
                    met_ms=compared,
                    source=f"{rules.check_meter_source}; the same days again, once the pairing ends, are ours",
                )
            )
    if case.kind in REPLACED_AT_ONCE:
        hours = rules.urban_hours if case.area is Area.URBAN else rules.rural_hours
        found.append(_clock(case, "replacement", hours, StepKind.REPLACE, rules.replacement_source))
    if case.kind is CaseKind.DISPUTED_BILL:
        found += _settlement(case, rules)
    return found


def due_ms(case: Case, rules: CaseRules, calendar: LocalCalendar) -> int | None:
    """Return when the first clock that still runs is out; None where none runs."""
    return min((clock.due_ms for clock in clocks(case, rules, calendar) if clock.met_ms is None), default=None)


def paired_until_ms(installed_ms: int, rules: CaseRules, calendar: LocalCalendar) -> int:
    """Return the instant up to which a check meter has to stand beside the meter at least.

    Whole calendar months: from 31 January to the last day of April.
    """
    day = calendar.day_of(installed_ms)
    period = period_of(day)
    for _ in range(rules.paired_months):
        period = next_period(period)
    end = period.replace(day=min(day.day, days_in(period)))
    return calendar.midnight_ms(end) + installed_ms - calendar.midnight_ms(day)


def _after(kind: CaseKind, state: State, step: StepKind) -> State:
    # A meter that was tested is replaced without losing its place in the case.
    if step is StepKind.REPLACE and (kind not in REPLACED_AT_ONCE or state is not State.OPENED):
        return state
    return _STEPS[step][1] or state


def _require_kind(case: Case, step: Step) -> None:
    kinds = {
        StepKind.ASK: {CaseKind.DISPUTED_BILL},
        StepKind.ANSWER: {CaseKind.DISPUTED_BILL},
        StepKind.INSTALL_CHECK: TESTED,
        StepKind.REPLACE: TESTED | REPLACED_AT_ONCE | {CaseKind.SEASONAL},
    }.get(step.kind)
    if kinds is not None and case.kind not in kinds:
        expected = ", ".join(sorted(kinds))
        raise CaseRefused(f"{step.kind}: expected a case of kind {expected}, got {case.kind}")
    if step.kind in (StepKind.ASK, StepKind.ANSWER):
        waiting = _waits(case)
        if waiting is (step.kind is StepKind.ASK):
            raise CaseRefused(
                f"{step.kind}: expected a case that {'does not wait' if waiting else 'waits'} for an answer"
            )


def _require_decidable(case: Case, step: Step) -> None:
    follows = Decision.ADJUST if case.kind is CaseKind.DISPUTED_BILL else Decision.OVERHAUL
    allowed = {follows, Decision.NOTHING}
    if case.kind in TESTED:
        if case.state is State.OPENED:
            raise CaseRefused("decide: expected a meter that was compared with a check meter, got one that was not")
        by_verdict = {
            Verdict.RIGHT: {Decision.METER_RIGHT},
            Verdict.FAST: {Decision.OVERHAUL},
            Verdict.SLOW: {Decision.OVERHAUL},
        }
        # Without a verdict nothing follows for the account.
        allowed = by_verdict.get(case.verdict or Verdict.INCONCLUSIVE, {Decision.NOTHING})
    if case.kind in REPLACED_AT_ONCE and case.state is State.OPENED and step.decision is Decision.OVERHAUL:
        raise CaseRefused("decide: expected a meter that was replaced, got one that was not")
    if step.decision not in allowed:
        expected = " or ".join(sorted(allowed))
        raise CaseRefused(f"decide: expected {expected} in a case of kind {case.kind}, got {step.decision}")


def _require(good: bool, step: str, expected: str, case: Case) -> None:
    if not good:
        raise CaseRefused(f"{step}: expected {expected}, got decision {case.decision or 'none'}")


def _clock(case: Case, name: str, hours: int, ends: StepKind, source: str) -> Clock:
    met = next((step.at_ms for step in case.steps if step.kind is ends), None)
    closed = case.last(StepKind.CLOSE)
    since_ms = case.opened_ms
    return Clock(
        name=name,
        since_ms=since_ms,
        due_ms=since_ms + hours * HOUR_MS,
        met_ms=met if met is not None or closed is None else closed.at_ms,
        source=source,
    )


def _waits(case: Case) -> bool:
    asked = [step for step in case.steps if step.kind in (StepKind.ASK, StepKind.ANSWER)]
    return bool(asked) and asked[-1].kind is StepKind.ASK


def _settlement(case: Case, rules: CaseRules) -> list[Clock]:
    """Return the clock of a disputed bill; it stands still while more information is asked for, then begins anew."""
    if _waits(case):
        return []
    answered = case.last(StepKind.ANSWER)
    clock = _clock(case, "settlement", rules.settle_hours, StepKind.DECIDE, rules.settle_source)
    if answered is None:
        return [clock]
    since_ms = answered.at_ms
    return [replace(clock, since_ms=since_ms, due_ms=since_ms + rules.settle_hours * HOUR_MS)]
