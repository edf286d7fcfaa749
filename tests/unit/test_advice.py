"""What advices do to a vend: every state against every advice, in any order and any number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.advice import Advice, AdviceRefusal, advised, decided
from vending.vends import VendState

S, A, R = VendState, Advice, AdviceRefusal
_EXPECTED = {
    # state: (confirm, reverse, cancel) while the meter has not shown the token
    S.REFUSED: (S.REFUSED, S.REFUSED, S.REFUSED),
    S.HELD: (S.CONFIRMED, S.REVERSED, S.REVERSED),
    S.RELEASED: (S.CONFIRMED, S.UNKNOWN, R.RELEASED_ALREADY),
    S.UNKNOWN: (S.CONFIRMED, S.UNKNOWN, R.RELEASED_ALREADY),
    S.CONFIRMED: (S.CONFIRMED, R.CONTRADICTS, R.CONTRADICTS),
    S.REVERSED: (R.CONTRADICTS, S.REVERSED, S.REVERSED),
}


@pytest.mark.parametrize("state", S)
def test_advice_of_each_kind_moves_each_state_as_the_table_says(state: VendState) -> None:
    """A held token is taken back on the station's word; one that was given out is not."""
    found = tuple(advised(state, advice, delivered=False) for advice in (A.CONFIRM, A.REVERSE, A.CANCEL))
    assert found == _EXPECTED[state]


@given(st.sampled_from(S), st.lists(st.sampled_from(A), max_size=8), st.booleans())
def test_repeated_advice_changes_nothing(state: VendState, advices: list[Advice], delivered: bool) -> None:
    """An advice that is delivered again, or late, finds what it did."""
    for advice in advices:
        after = advised(state, advice, delivered=delivered)
        if isinstance(after, VendState):
            assert advised(after, advice, delivered=delivered) is after
            state = after


@given(st.sampled_from(S), st.lists(st.sampled_from(A), max_size=8))
def test_released_token_is_never_taken_back_by_advices_alone(state: VendState, advices: list[Advice]) -> None:
    """From a token that was given out, only the utility's decision leads to a reversal."""
    given_out = state in (S.RELEASED, S.UNKNOWN, S.CONFIRMED)
    for advice in advices:
        after = advised(state, advice, delivered=False)
        state = after if isinstance(after, VendState) else state
    assert not (given_out and state is S.REVERSED)


@pytest.mark.parametrize("state", [S.RELEASED, S.UNKNOWN, S.CONFIRMED])
@pytest.mark.parametrize("advice", A)
def test_vend_whose_token_the_meter_has_stands(state: VendState, advice: Advice) -> None:
    """What was used was sold."""
    assert advised(state, advice, delivered=True) is S.CONFIRMED


def test_utility_decides_what_waits_and_nothing_else() -> None:
    """Held and unknown vends are decided either way, unless the meter has the token; a decision may be repeated."""
    for state in (S.HELD, S.UNKNOWN):
        assert decided(state, A.CONFIRM, delivered=False) is S.CONFIRMED
        assert decided(state, A.REVERSE, delivered=False) is S.REVERSED
        assert decided(state, A.REVERSE, delivered=True) is R.CONTRADICTS
    assert decided(S.REVERSED, A.REVERSE, delivered=False) is S.REVERSED
    assert decided(S.CONFIRMED, A.REVERSE, delivered=False) is R.CONTRADICTS
    assert decided(S.RELEASED, A.REVERSE, delivered=False) is R.CONTRADICTS
