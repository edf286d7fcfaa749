"""Times of foreign payloads: epoch numbers, ISO texts, and local time without a zone.

Stage: below every make. A local time is read in the zone that the source was given. In the hour that summer time
repeats it means one of two instants; the time of arrival tells which, or the message is refused, since a guess would
put energy into the wrong hour.
"""

from datetime import UTC, datetime, tzinfo
from enum import Enum
from fractions import Fraction
from typing import Final
from zoneinfo import ZoneInfo

from protocols.errors import Malformed
from protocols.makes.numbers import Json, number_of, round_half_up
from protocols.native import TIME_MS_MAX

# A clock set by the network is seconds off; a message under way takes seconds, or waits for minutes in a bad network.
_AHEAD_MS_MAX: Final = 300_000
_BEHIND_MS_MAX: Final = 1_800_000
_TEXT_LENGTH_MAX: Final = 40
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ClockForm(Enum):
    """How a payload writes its time."""

    EPOCH_S = "epoch_s"
    EPOCH_MS = "epoch_ms"
    ISO = "iso"
    LOCAL = "local"


def instant_ms(value: Json, form: ClockForm, zone: ZoneInfo, received_ms: int) -> int:
    """Read a time as UTC milliseconds; ISO without an offset is local.

    Raises: Malformed for what is no time, for a local time that summer time skips, and for one that it repeats where
    the arrival does not tell which is meant.
    """
    if form in (ClockForm.EPOCH_S, ClockForm.EPOCH_MS):
        number = number_of(value, "clock")
        if number is None:
            raise Malformed("clock: expected a time, got none")
        at_ms = round_half_up(number * (1000 if form is ClockForm.EPOCH_S else 1))
    else:
        moment = _parsed(value)
        if moment.tzinfo is not None and form is ClockForm.LOCAL:
            raise Malformed("clock: expected local time without a zone, got one with an offset")
        at_ms = _to_ms(moment) if moment.tzinfo is not None else _local_ms(moment, zone, received_ms)
    return _in_calendar(at_ms)


def _parsed(value: Json) -> datetime:
    if not isinstance(value, str) or len(value) > _TEXT_LENGTH_MAX:
        raise Malformed(f"clock: expected a time as text, got {type(value).__name__}")
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        raise Malformed(f"clock: expected a time such as 2026-11-21T10:00:00, got {value!r}") from None


def _local_ms(moment: datetime, zone: tzinfo, received_ms: int) -> int:
    first_ms = _to_ms(moment.replace(tzinfo=zone, fold=0))
    second_ms = _to_ms(moment.replace(tzinfo=zone, fold=1))
    if first_ms == second_ms:
        return first_ms
    if first_ms > second_ms:
        # Only in the skipped hour does the later offset give the earlier instant.
        raise Malformed(f"clock: expected a local time, got {moment.isoformat()}, which summer time skips")
    if received_ms < second_ms - _AHEAD_MS_MAX:
        return first_ms
    if received_ms <= second_ms + _BEHIND_MS_MAX:
        return second_ms
    raise Malformed(f"clock: expected one instant, got {moment.isoformat()}, which came twice, too late to tell which")


def _to_ms(moment: datetime) -> int:
    try:
        elapsed = moment.astimezone(UTC) - _EPOCH
    except OverflowError:
        raise Malformed(f"clock: expected a time of the calendar, got {moment.isoformat()}") from None
    return (elapsed.days * 86_400 + elapsed.seconds) * 1000 + elapsed.microseconds // 1000


def _in_calendar(at_ms: int) -> int:
    if not 0 <= at_ms <= TIME_MS_MAX:
        raise Malformed(f"clock: expected 1970 to 9999, got {Fraction(at_ms, 1000)} s")
    return at_ms
