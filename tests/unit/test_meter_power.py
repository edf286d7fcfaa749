"""The supply of a simulated meter fails at every step of a write: what was before or what is after, nothing between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meter_sim.durable import DurableMeter
from meter_sim.memory import MeterMemory, PowerFailed
from meter_sim.meter import MeterSettings
from meter_sim.token_reader import EntryResult, TokenReader
from protocols.native import Command, OrderKind, Readings, Relay, TokenEntered
from tests.unit.test_meter_key_change import NEW, OLD, change, key_of
from vending.sts.amounts import CurrencyField
from vending.sts.tokens import CreditService, CurrencyCredit, encode_token

T0 = 1_763_730_000_000
HALF_HOUR_MS = 1_800_000
SETTINGS = MeterSettings(fallback_rate_milli_per_kwh=1_000_000)
PAID_MINOR = 10_000
TID = 0x677100


def money(tid: int = TID) -> str:
    """Make a currency credit of what was paid."""
    token = CurrencyCredit(service=CreditService.ELECTRICITY, tid=tid, amount=CurrencyField.encode(PAID_MINOR * 1_000))
    return encode_token(token, key_of(OLD)).digits


def new_meter() -> DurableMeter:
    """Make a meter that is cut off with a debt of 1.00."""
    return DurableMeter(
        serial="PB000001",
        token_reader=TokenReader(key_of(OLD).key),
        memory=MeterMemory(),
        settings=SETTINGS,
        relay=Relay.OFF,
        balance_minor=-100,
    )


def restarted(meter: DurableMeter) -> DurableMeter:
    """Let the meter's supply come back."""
    return DurableMeter.restarted(meter.memory, settings=SETTINGS)


def walk(make: Callable[[], DurableMeter], act: Callable[[DurableMeter], object]) -> list[tuple[bool, DurableMeter]]:
    """Let the power fail at each step of what an act writes; return whether it did, and the meter after its restart."""
    found = []
    for steps in range(1_000):
        meter = make()
        meter.memory.fails_after = steps
        try:
            act(meter)
        except PowerFailed:
            found.append((True, restarted(meter)))
        else:
            meter.memory.fails_after = None
            return [*found, (False, restarted(meter))]
    raise AssertionError("a write has fewer steps than that")


def test_power_failing_at_any_step_of_a_credit_leaves_both_or_neither() -> None:
    """Credit, TID, relay and what is told of it are there together; entered again, the token is worth itself once."""
    found = walk(new_meter, lambda meter: meter.enter_token(money(), T0))
    assert len(found) > 8
    states = []
    for _, meter in found:
        credited = meter.balance_minor != -100
        states.append(credited)
        assert (TID in meter.reader.tids) is credited
        assert (meter.reader.kept.credits[4] > 0) is credited
        assert (meter.relay is Relay.ON) is credited
        assert meter.stored_count == (2 if credited else 0)
        result, _ = meter.enter_token(money(), T0 + 1)
        assert result.result is (EntryResult.USED if credited else EntryResult.ACCEPTED)
        assert meter.balance_minor == PAID_MINOR - 100
        assert meter.reader.tids == (TID,)
    # Steps up to the check value leave what was before, those behind it what is after.
    assert states == sorted(states)
    assert states[0] is False
    assert states[-1] is True


def test_power_failing_at_any_step_of_a_key_change_leaves_one_whole_key() -> None:
    """The meter is under its old key and takes the set again, or under its new one and has all that goes with it."""
    tokens = change(OLD, NEW)

    def before_the_last() -> DurableMeter:
        meter = new_meter()
        for token in tokens[:3]:
            meter.enter_token(token, T0)
        return meter

    keys = []
    for _, meter in walk(before_the_last, lambda meter: meter.enter_token(tokens[3], T0)):
        keys.append(meter.reader.kept.key)
        if meter.reader.kept.key == key_of(OLD).key:
            assert [len(meter.enter_token(token, T0)[0].missing) for token in tokens] == [3, 2, 1, 0]
        assert (meter.reader.kept.key, meter.reader.kept.sgc) == (key_of(NEW).key, 123456)
    assert set(keys) == {key_of(OLD).key, key_of(NEW).key}


def test_meter_restarted_goes_on_where_it_was() -> None:
    """Register, copy of the balance, supply of a token, executed commands and everything untold outlive the supply."""
    meter = new_meter()
    meter.obey(
        Command(
            order_id=1, epoch=1, kind=OrderKind.SUPPLY, relay=Relay.OFF, level=None, balance_minor=-100,
            threshold_minor=500, expires_at_ms=T0 + 60_000,
        ),
        T0,
    )  # fmt: skip
    meter.enter_token(money(), T0)
    meter.advance(T0 + HALF_HOUR_MS, 5_000)
    again = restarted(meter)
    assert (again.register_wh, again.relay, again.threshold_minor) == (5_000, Relay.ON, 500)
    assert again.balance_minor == meter.balance_minor
    assert again.stored_count == meter.stored_count
    told = []
    while (uplink := again.next_unsent(T0)) is not None:
        told.append(type(uplink))
        again.confirm(uplink)
    # What became of the token is told after the readings.
    assert told[-2:] == [Readings, TokenEntered]
    # It was the token that closed the relay: at zero the meter still opens it.
    again.advance(T0 + 2 * HALF_HOUR_MS, 5_000)
    assert (again.relay, again.balance_minor) == (Relay.OFF, PAID_MINOR - 100 - 10_000)


def test_lockout_ends_with_a_power_cycle() -> None:
    """It is not kept."""
    meter = new_meter()
    for _ in range(3):
        meter.enter_token("12345678901234567890", T0)
    assert meter.enter_token(money(), T0)[0].result is EntryResult.LOCKOUT
    assert restarted(meter).enter_token(money(), T0)[0].accepted


@pytest.mark.parametrize("image", [b"", b"x", b"y" * 1_000])
def test_memory_gives_the_last_whole_image(image: bytes) -> None:
    """Of two slots the newer whole one counts, for as many writes as there are."""
    memory = MeterMemory()
    assert memory.read() is None
    for number in range(5):
        memory.write(image + bytes([number]))
        assert memory.read() == image + bytes([number])
    for steps in range(memory.steps):
        memory.fails_after = steps
        with pytest.raises(PowerFailed):
            memory.write(image + b"new")
        assert memory.read() in (image + b"\x04", image + b"new")
