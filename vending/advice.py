"""What a station's advice, or the utility's decision, does to a vend.

Stage: after a vend was answered. Enters: where the vend stands, what is said of it, whether its meter has its token.
Leaves: where it stands then, or that the two contradict each other. Never: a journal, a database, a clock.

A token that was given out cannot be called back: only one that was held back is taken back on a station's word. What a
station takes back afterwards is `unknown` until the meter shows the token, or the utility decides.
"""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from vending.vends import VendState


class Advice(StrEnum):
    """What is said of a vend; a cancel is asked before the token is given out, a reversal must be taken whenever."""

    CONFIRM = "confirm"
    REVERSE = "reverse"
    CANCEL = "cancel"


class AdviceRefusal(StrEnum):
    """Why an advice changes nothing and cannot be taken; the value is the code of the answer."""

    CONTRADICTS = "advice_contradicts"
    RELEASED_ALREADY = "released_already"


def advised(state: VendState, advice: Advice, *, delivered: bool) -> VendState | AdviceRefusal:
    """Return where a vend stands after a station's advice; the same advice again changes nothing.

    `delivered` says that the meter has accepted the vend's token: then the vend stands, whatever is advised.
    """
    match state:
        case VendState.REFUSED:
            # Nothing was sold: there is nothing to confirm, and nothing to take back.
            return state
        case VendState.HELD:
            return VendState.CONFIRMED if advice is Advice.CONFIRM else VendState.REVERSED
        case VendState.RELEASED | VendState.UNKNOWN if advice is Advice.CONFIRM or delivered:
            return VendState.CONFIRMED
        case VendState.RELEASED | VendState.UNKNOWN:
            return AdviceRefusal.RELEASED_ALREADY if advice is Advice.CANCEL else VendState.UNKNOWN
        case VendState.CONFIRMED:
            return state if advice is Advice.CONFIRM or delivered else AdviceRefusal.CONTRADICTS
        case VendState.REVERSED:
            return AdviceRefusal.CONTRADICTS if advice is Advice.CONFIRM else state
        case _:
            assert_never(state)


def decided(state: VendState, advice: Advice, *, delivered: bool) -> VendState | AdviceRefusal:
    """Return where a vend stands after the utility's decision, which is asked of what waits for one.

    A vend whose token the meter has cannot be taken back: its credit is used.
    """
    if state not in (VendState.HELD, VendState.UNKNOWN):
        wanted = VendState.CONFIRMED if advice is Advice.CONFIRM else VendState.REVERSED
        return state if state is wanted else AdviceRefusal.CONTRADICTS
    if advice is Advice.CONFIRM:
        return VendState.CONFIRMED
    return AdviceRefusal.CONTRADICTS if delivered else VendState.REVERSED
