"""What a simulated meter does with tokens: its copy of the balance, its relay, its limit, and what it tells of them."""

from __future__ import annotations

from dataclasses import replace

from meter_sim.meter import SWITCH_OPEN, MeterSettings
from meter_sim.token_reader import EntryResult, TokenEntry
from protocols.native import OrderKind, Readings, Relay, ReplyResult, TokenEntered
from tests.unit.test_simulated_meter import (
    CAN_LIMIT,
    HALF_HOUR_MS,
    T0,
    TOKEN,
    drain,
    limited,
    meter,
    result_of,
    supply,
    typed,
)


def test_energy_token_counts_at_the_rate_the_meter_counts_down_by() -> None:
    """1.0 kWh at 7.00 is 7.00 on the copy; without a rate it cannot be money, and closes nothing."""
    token = TokenEntry(result=EntryResult.ACCEPTED, authentic=True, amount=10, register=0)
    for rate, expected in ((700_000, (Relay.ON, 580)), (None, (Relay.OFF, -120))):
        settings = MeterSettings(fallback_rate_milli_per_kwh=rate)
        home = meter(token=token, settings=settings, relay=Relay.OFF, balance_minor=-120)
        home.enter_token(TOKEN, T0)
        assert (home.relay, home.balance_minor) == expected


def test_clear_credit_ends_the_supply_of_a_token_and_keeps_a_debt() -> None:
    """The copy falls to zero, never up to it."""
    home = meter(token=typed(accepted=True, credit_minor=1_000), relay=Relay.OFF, balance_minor=-120)
    home.enter_token(TOKEN, T0)
    home._token_reader.result = TokenEntry(result=EntryResult.ACCEPTED, authentic=True, cleared=0xFFFF)
    _, (event,) = home.enter_token(TOKEN, T0)
    assert (event.code, home.relay, home.balance_minor) == (SWITCH_OPEN, Relay.OFF, 0)
    home.obey(supply(Relay.OFF, balance_minor=-50), T0)
    home.enter_token(TOKEN, T0)
    assert home.balance_minor == -50


def test_power_limit_of_a_token_holds_whatever_is_ordered() -> None:
    """1,000 W let 500 Wh of a half hour flow, and show in what is measured."""
    token = TokenEntry(result=EntryResult.ACCEPTED, authentic=True, power_limit_w=1_000)
    home = meter(token=token, settings=CAN_LIMIT)
    home.enter_token(TOKEN, T0)
    home.advance(T0, 5_000, power_w=10_000, current_ma=40_000)
    assert home.register_wh == 500
    sent = home.next_unsent(T0)
    assert isinstance(sent, Readings)
    assert (sent.power_w, sent.current_ma) == ([1_000], [4_000])
    home.obey(limited(300), T0)
    home.advance(T0 + HALF_HOUR_MS, 5_000)
    assert home.register_wh == 650


def test_pushed_token_is_entered_and_answered_whatever_its_epoch() -> None:
    """Tokens come in any order: an epoch below the last refuses none; the same order again enters nothing."""
    home = meter(token=typed(accepted=True, credit_minor=100), balance_minor=0)
    for epoch, digits in ((5, "1" * 20), (4, "2" * 20), (4, "2" * 20)):
        order = replace(supply(Relay.ON, order_id=epoch, epoch=epoch), kind=OrderKind.TOKEN, relay=None, token=digits)
        assert result_of(home.obey(order, T0)) is ReplyResult.DONE
    assert [digits for digits, _ in home._token_reader.entered] == ["1" * 20, "2" * 20]
    assert home.balance_minor == 200
    told = [uplink for uplink in drain(home) if isinstance(uplink, TokenEntered)]
    assert [(each.last_digits, each.result) for each in told] == [
        ("1111", EntryResult.ACCEPTED),
        ("2222", EntryResult.ACCEPTED),
    ]
