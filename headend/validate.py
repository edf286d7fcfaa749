"""Validation of readings: named rules, each a reason that quarantine keeps.

Stage: after decode, before rating. Takes a reading, what is known of its meter and the broker's store time; returns
None for a good reading, or the reason and a sentence. Rules are named by the fault (VEE: validate).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from billing.calendar import from_ms
from headend.state import MeterState

DAY_MS = 86_400_000
# Readings may come this long after the mark: the store of a meter with half-hourly profiles (R-17, F14).
LATE_WINDOW_MS = 35 * DAY_MS
# A meter's clock may run ahead of the broker's by this much before its readings are from the future.
FUTURE_SLACK_MS = 300_000
# No meter of ours was read before 2000; a clock that says so was lost, typically to 1970.
CLOCK_FLOOR_MS = 946_684_800_000
CLOCK_CEILING_MS = 4_102_444_800_000
# A register counts whole Wh and may have been read a moment after its time stamp.
JUMP_SLACK_WH = 10
# A roll-over is believed when the register was in the last tenth before its end.
ROLLOVER_FROM_PERCENT = 90


class Reason(StrEnum):
    """Why a frame or a reading is not stored; the value is what quarantine keeps."""

    MALFORMED = "malformed"
    UNKNOWN_METER = "unknown_meter"
    UNKNOWN_TOPIC = "unknown_topic"
    CLOCK_ABSURD = "clock_absurd"
    FUTURE = "future"
    BEFORE_INSTALLATION = "before_installation"
    REGISTER_FELL = "register_fell"
    JUMP = "jump"
    CONFLICT = "conflict"
    TOO_LATE = "too_late"


# Refused before they are readings of a meter of ours; everything else is held for an engineer.
REJECTED = frozenset({Reason.MALFORMED, Reason.UNKNOWN_METER, Reason.UNKNOWN_TOPIC})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a reading is not stored."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollover:
    """The register passed its end between the mark and this reading."""

    consumed_wh: int


def validate_time(meter: MeterState, at_ms: int, stored_at_ms: int) -> Fault | None:
    """Check the instant of a reading against the calendar, the broker's store time and the installation."""
    if not CLOCK_FLOOR_MS <= at_ms < CLOCK_CEILING_MS:
        return _fault(Reason.CLOCK_ABSURD, meter, f"read_at: expected 2000 to 2099, got {from_ms(at_ms):%Y-%m-%d}")
    if at_ms > stored_at_ms + FUTURE_SLACK_MS:
        ahead_s = (at_ms - stored_at_ms) // 1000
        return _fault(Reason.FUTURE, meter, f"read_at: expected at most 300 s after arrival, got {ahead_s} s")
    if at_ms < meter.installed_ms:
        return _fault(
            Reason.BEFORE_INSTALLATION,
            meter,
            f"read_at: expected {from_ms(meter.installed_ms).isoformat()} or later, got {from_ms(at_ms).isoformat()}",
        )
    return None


def validate_register(
    meter: MeterState, mark_ms: int, mark_wh: int, at_ms: int, register_wh: int
) -> Fault | Rollover | None:
    """Check a register against that of an earlier mark."""
    limit_wh = energy_limit_wh(meter.rated_w, at_ms - mark_ms)
    consumed_wh = register_wh - mark_wh
    if 0 <= consumed_wh <= limit_wh:
        return None
    if consumed_wh < 0:
        rolled_wh = consumed_wh + meter.register_end_wh
        near_end = mark_wh * 100 >= meter.register_end_wh * ROLLOVER_FROM_PERCENT
        if near_end and 0 <= rolled_wh <= limit_wh:
            return Rollover(consumed_wh=rolled_wh)
        return _fault(Reason.REGISTER_FELL, meter, f"register: expected {mark_wh} Wh or more, got {register_wh}")
    return _fault(
        Reason.JUMP,
        meter,
        f"register: expected at most {limit_wh} Wh more ({meter.rated_w} W rated), got {consumed_wh} Wh more",
    )


def validate_late(
    meter: MeterState,
    at_ms: int,
    energy_wh: int,
    *,
    before: tuple[int, int] | None,
    after: tuple[int, int] | None,
) -> Fault | None:
    """Check a reading that comes after later ones: in the window, and between its neighbours (ms, energy to date)."""
    if not in_late_window(meter, at_ms):
        late_days = (meter.mark_ms - at_ms) // DAY_MS
        return _fault(Reason.TOO_LATE, meter, f"read_at: expected at most 35 days before the mark, got {late_days}")
    if before is not None and energy_wh < before[1]:
        return _fault(Reason.REGISTER_FELL, meter, f"energy: expected {before[1]} Wh or more, got {energy_wh}")
    if before is not None and energy_wh - before[1] > energy_limit_wh(meter.rated_w, at_ms - before[0]):
        return _fault(Reason.JUMP, meter, f"energy: got {energy_wh - before[1]} Wh more than the reading before")
    if after is not None and energy_wh > after[1]:
        return _fault(Reason.REGISTER_FELL, meter, f"energy: expected at most {after[1]} Wh, got {energy_wh}")
    if after is not None and after[1] - energy_wh > energy_limit_wh(meter.rated_w, after[0] - at_ms):
        return _fault(Reason.JUMP, meter, f"energy: got {after[1] - energy_wh} Wh less than the reading after")
    return None


def in_late_window(meter: MeterState, at_ms: int) -> bool:
    """Tell whether a reading before the meter's mark is still accepted."""
    return at_ms >= meter.mark_ms - LATE_WINDOW_MS


def energy_limit_wh(rated_w: int, elapsed_ms: int) -> int:
    """Return the most energy a meter of a rating can have passed in a time, in Wh.

    Rounds: down, plus a fixed slack.
    """
    return rated_w * elapsed_ms // 3_600_000 + JUMP_SLACK_WH


def _fault(reason: Reason, meter: MeterState, detail: str) -> Fault:
    return Fault(reason=reason, detail=f"{detail}, meter {meter.serial}")
