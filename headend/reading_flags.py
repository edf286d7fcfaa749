"""What is noted of readings that are stored all the same: gaps, a clock that drifts, a register that stands still.

Stage: beside validation. Takes a reading as it was accepted, and where its meter stood before; returns what its meter's
rules note. The plan in columns finds the few readings that are worth asking about (headend.column_plan) and asks the
same functions. Never holds a reading back.
"""

from __future__ import annotations

from dataclasses import dataclass

from headend.rules import Reason
from headend.state import MeterState


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ReadingFlag:
    """One thing noted of a meter, at most once a local day and rule.

    Units: `expected` and `got` are seconds for `gap`, `clock_drift`, `stuck` and `wrong_interval`, else Wh. `at_ms` is
    the reading's instant; of a drifting clock, which cannot be believed, the broker's.
    """

    meter_id: int
    at_ms: int
    reason: Reason
    severity: str
    expected: int
    got: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A reading that is stored, and what its meter's register did up to it.

    Invariants: `still_before_ms` and `still_ms` are how long the register had stood still at the reading before and at
    this one; channels are None where the meter did not send them.
    """

    before_ms: int
    at_ms: int
    still_before_ms: int
    still_ms: int
    power_w: int | None
    export_wh: int | None


def reading_flags(meter: MeterState, found: Accepted) -> list[ReadingFlag]:
    """Return what a meter's rules note of an accepted reading."""
    rules = meter.rules
    flags = []
    elapsed_ms = found.at_ms - found.before_ms
    # Before its first reading a meter is not yet late.
    if elapsed_ms > rules.gap_ms and found.before_ms > meter.installed_ms:
        flags.append(flag(meter, found.at_ms, Reason.GAP, rules.gap_ms // 1_000, elapsed_ms // 1_000))
    stuck_ms = _stuck_ms(meter, found)
    if stuck_ms is not None:
        flags.append(flag(meter, found.at_ms, Reason.STUCK, stuck_ms // 1_000, found.still_ms // 1_000))
    if found.export_wh and rules.notes_export and not meter.may_export:
        flags.append(flag(meter, found.at_ms, Reason.EXPORT, 0, found.export_wh))
    return flags


def message_flags(
    meter: MeterState, *, clock_ms: int | None, step_ms: int | None, stored_at_ms: int
) -> list[ReadingFlag]:
    """Return what a meter's rules note of a message: its clock against the broker's, and the step of its block."""
    rules = meter.rules
    flags = []
    if clock_ms is not None and not -rules.drift_ms <= clock_ms - stored_at_ms <= rules.drift_ms:
        drift_s = (clock_ms - stored_at_ms) // 1_000
        flags.append(flag(meter, stored_at_ms, Reason.CLOCK_DRIFT, rules.drift_ms // 1_000, drift_s))
    if rules.step_ms is not None and step_ms is not None and step_ms != rules.step_ms:
        expected_s = rules.step_ms // 1_000
        flags.append(flag(meter, stored_at_ms, Reason.WRONG_INTERVAL, expected_s, step_ms // 1_000))
    return flags


def flag(meter: MeterState, at_ms: int, reason: Reason, expected: int, got: int) -> ReadingFlag:
    """Note something of a meter with the severity that its rules give it."""
    return ReadingFlag(
        meter_id=meter.meter_id,
        at_ms=at_ms,
        reason=reason,
        severity=meter.rules.severities[reason].value,
        expected=expected,
        got=got,
    )


def _stuck_ms(meter: MeterState, found: Accepted) -> int | None:
    """Return the limit that a register which stands still has passed: with load at any reading, without it once."""
    rules = meter.rules
    if found.power_w is not None and found.power_w >= rules.load_w and found.still_ms >= rules.still_with_load_ms:
        return rules.still_with_load_ms
    if found.still_before_ms < rules.still_without_load_ms <= found.still_ms:
        return rules.still_without_load_ms
    return None
