"""Token identifiers: the minute a token is issued, which a meter takes once only.

Enters: an aware instant and a base date, or the meter's last TID. Leaves: the TID to mint with, or why there
is none. Never: a clock, or the storage of the last TID: the caller persists it before minting.

Standard: IEC 62055-41 Ed 3 (TID in UTC minutes, KEN); the 00:01 rule as STS 531 CTSA09 tests it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from vending.sts.errors import TidOutOfRange
from vending.sts.identity import BaseDate

TID_MAX = 0xFFFFFF
MINUTES_PER_DAY = 1440
# Base dates begin at 00:00, so the minute of the day is the TID modulo a day.
RESERVED_MINUTE_OF_DAY = 1
# One token a minute is the pace of the standard. An hour of them covers a customer who buys 60 tokens in one
# minute; further ahead, either the clock was set back or the meter's last TID is wrong, and minting on would
# lock the meter out of the tokens that come after the repair.
TID_LOOKAHEAD_MINUTES_MAX = 60


class TidDeclineReason(StrEnum):
    """Why no TID can be given."""

    TOO_FAR_AHEAD = "tid_too_far_ahead"
    ERA_EXHAUSTED = "tid_era_exhausted"


@dataclass(frozen=True, slots=True, kw_only=True)
class TidDeclined:
    """The answer when a meter can get no TID now.

    Invariants: `wanted_tid` is what the rule would have given; `now_tid` what the caller asked at.
    """

    reason: TidDeclineReason
    wanted_tid: int
    now_tid: int


def tid_at(issued_at: datetime, base_date: BaseDate) -> int:
    """Return the TID of a normal token issued at this instant.

    Rounds: down to the whole minute; the reserved minute 00:01 becomes 00:02.
    Raises: TidOutOfRange before the base date or after the last minute of its era.
    """
    tid = special_tid_at(issued_at, base_date)
    return tid + 1 if is_reserved(tid) else tid


def special_tid_at(issued_at: datetime, base_date: BaseDate) -> int:
    """Return the plain minute count, for a special token that may use the reserved minute.

    Rounds: down to the whole minute.
    Raises: TidOutOfRange before the base date or after the last minute of its era.
    """
    assert issued_at.tzinfo is not None
    tid = (issued_at - base_date.starts_at) // timedelta(minutes=1)
    if not 0 <= tid <= TID_MAX:
        raise TidOutOfRange(
            f"issue time: expected {base_date.starts_at:%Y-%m-%d %H:%M} to "
            f"{minute_of_tid(TID_MAX, base_date):%Y-%m-%d %H:%M} UTC, got {issued_at.isoformat()}"
        )
    return tid


def minute_of_tid(tid: int, base_date: BaseDate) -> datetime:
    """Return the minute a TID stands for, in UTC.

    Raises: TidOutOfRange when the TID is not 24 bits.
    """
    require_tid(tid)
    return base_date.starts_at + timedelta(minutes=tid)


def is_reserved(tid: int) -> bool:
    """Tell whether this TID is the minute 00:01, kept for special tokens."""
    return tid % MINUTES_PER_DAY == RESERVED_MINUTE_OF_DAY


def next_tid(
    last_tid: int | None, now_tid: int, *, lookahead_minutes_max: int = TID_LOOKAHEAD_MINUTES_MAX
) -> int | TidDeclined:
    """Return the TID for a meter's next token, always above its last one.

    A clock set back by less than the look-ahead is bridged by counting on; by more, it is declined.
    Raises: TidOutOfRange when an argument is not 24 bits.
    """
    require_tid(now_tid)
    if last_tid is not None:
        require_tid(last_tid)
    tid = now_tid if last_tid is None else max(now_tid, last_tid + 1)
    if is_reserved(tid):
        tid += 1
    if tid > TID_MAX:
        return TidDeclined(reason=TidDeclineReason.ERA_EXHAUSTED, wanted_tid=tid, now_tid=now_tid)
    if tid - now_tid > lookahead_minutes_max:
        return TidDeclined(reason=TidDeclineReason.TOO_FAR_AHEAD, wanted_tid=tid, now_tid=now_tid)
    return tid


def is_key_expired(tid: int, ken: int) -> bool:
    """Tell whether a key with this expiry number may no longer credit at this TID."""
    return tid >> 16 > ken


def require_tid(tid: int) -> None:
    """Refuse a TID that is not 24 bits.

    Raises: TidOutOfRange.
    """
    if not 0 <= tid <= TID_MAX:
        raise TidOutOfRange(f"TID: expected 0-{TID_MAX}, got {tid}")
