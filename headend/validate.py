"""Validation of readings: named rules, each a reason that quarantine keeps.

Stage: after decode, before rating. Takes a reading, what is known of its meter and the broker's store time; returns
None for a good reading, or the reason and a sentence. Rules are named by the fault (VEE: validate); what becomes of a
reading that one has caught is said by `headend.rules`.
"""

from __future__ import annotations

from dataclasses import dataclass

from billing.calendar import from_ms
from billing.tariff import ENERGY_WH_MAX
from headend.rules import RULES, Action, Reason
from headend.state import MeterState

__all__ = ["Fault", "Reason", "Reset", "Rollover"]

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


# Refused before they are readings of a meter of ours; everything else is held for an engineer.
REJECTED = frozenset(reason for reason, rule in RULES.items() if rule.action is Action.REJECT)
# A scale that slipped is told apart from a register of another meter from 10 kWh on; below, any register would fit.
SLIP_FROM_WH = 10_000
SLIP_FACTOR = 1_000
# What a meter used until now is a measure of what it uses from a day on, give or take a factor of four.
SLIP_HISTORY_MS = DAY_MS
SLIP_SPREAD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a reading is not stored."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollover:
    """The register passed its end between the mark and this reading."""

    consumed_wh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """The register began again at 0 between the mark and this reading."""

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
    if register_wh < 0:
        return _fault(Reason.NEGATIVE, meter, f"register: expected 0 Wh or more, got {register_wh}")
    limit_wh = energy_limit_wh(meter.rated_w, at_ms - mark_ms)
    consumed_wh = register_wh - mark_wh
    if 0 <= consumed_wh <= limit_wh:
        return None
    if consumed_wh < 0:
        return _fallen(meter, mark_wh, register_wh, limit_wh)
    if _slipped_up(meter, mark_ms, mark_wh, at_ms, register_wh):
        return _fault(
            Reason.SCALE_SLIP, meter, f"register: expected about a thousandth after {mark_wh} Wh, got {register_wh}"
        )
    return _fault(
        Reason.JUMP,
        meter,
        f"register: expected at most {limit_wh} Wh more ({meter.rated_w} W rated), got {consumed_wh} Wh more",
    )


def began_again(meter: MeterState, elapsed_ms: int, register_wh: int) -> Reset | None:
    """Return the reset that a fallen register may be: what it shows was used since, as far as rated power allows."""
    if 0 <= register_wh <= energy_limit_wh(meter.rated_w, elapsed_ms):
        return Reset(consumed_wh=register_wh)
    return None


def is_possible_jump(meter: MeterState, mark_wh: int, register_wh: int) -> bool:
    """Tell whether somebody may accept a jump: a register cannot show more than it has digits for."""
    return mark_wh <= register_wh < meter.register_end_wh and register_wh - mark_wh <= ENERGY_WH_MAX


def _fallen(meter: MeterState, mark_wh: int, register_wh: int, limit_wh: int) -> Fault | Rollover:
    """Tell apart why a register fell: past its end, out of scale, begun again, another meter's, or just wrong."""
    rolled_wh = register_wh - mark_wh + meter.register_end_wh
    near_end = mark_wh * 100 >= meter.register_end_wh * ROLLOVER_FROM_PERCENT
    if near_end and 0 <= rolled_wh <= limit_wh:
        return Rollover(consumed_wh=rolled_wh)
    scaled_wh = register_wh * SLIP_FACTOR
    if mark_wh >= SLIP_FROM_WH and mark_wh - SLIP_FACTOR < scaled_wh <= mark_wh + limit_wh:
        reason, what = Reason.SCALE_SLIP, "a thousandth of what was to come"
    elif mark_wh - register_wh <= limit_wh:
        reason, what = Reason.REGISTER_FELL, "less"
    elif register_wh <= limit_wh:
        reason, what = Reason.REGISTER_RESET, "a register that began again"
    else:
        reason, what = Reason.REGISTER_SWAP, "another meter's register"
    return _fault(reason, meter, f"register: expected {mark_wh} Wh or more, got {register_wh}, {what}")


def _slipped_up(meter: MeterState, mark_ms: int, mark_wh: int, at_ms: int, register_wh: int) -> bool:
    """Tell whether a register that jumped, or what it rose by, is a thousand times what was to come."""
    limit_wh = energy_limit_wh(meter.rated_w, at_ms - mark_ms)
    if mark_wh >= SLIP_FROM_WH and mark_wh - 1 <= register_wh // SLIP_FACTOR <= mark_wh + limit_wh:
        return True
    used_wh, span_ms = meter.energy_to_date(mark_ms, mark_wh), mark_ms - meter.installed_ms
    if span_ms < SLIP_HISTORY_MS or used_wh < SLIP_FACTOR:
        return False
    # Consumed over elapsed, against a thousand times what was used over the time before: as whole numbers.
    rose = (register_wh - mark_wh) * span_ms
    as_ever = SLIP_FACTOR * used_wh * (at_ms - mark_ms)
    return as_ever <= rose * SLIP_SPREAD and rose <= as_ever * SLIP_SPREAD


def validate_late(
    meter: MeterState,
    at_ms: int,
    energy_wh: int,
    *,
    before: tuple[int, int] | None,
    after: tuple[int, int] | None,
    passed: frozenset[Reason] = frozenset(),
) -> Fault | None:
    """Check a reading that comes after later ones: in the window, and between its neighbours (ms, energy to date).

    Rules in `passed` are not applied.
    """
    if not in_late_window(meter, at_ms) and Reason.TOO_LATE not in passed:
        late_days = (meter.mark_ms - at_ms) // DAY_MS
        return _fault(Reason.TOO_LATE, meter, f"read_at: expected at most 35 days before the mark, got {late_days}")
    if before is not None and energy_wh < before[1]:
        return _fault(Reason.REGISTER_FELL, meter, f"energy: expected {before[1]} Wh or more, got {energy_wh}")
    if after is not None and energy_wh > after[1]:
        return _fault(Reason.REGISTER_FELL, meter, f"energy: expected at most {after[1]} Wh, got {energy_wh}")
    if Reason.JUMP in passed:
        return None
    if before is not None and energy_wh - before[1] > energy_limit_wh(meter.rated_w, at_ms - before[0]):
        return _fault(Reason.JUMP, meter, f"energy: got {energy_wh - before[1]} Wh more than the reading before")
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
