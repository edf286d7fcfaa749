"""The simulated meter: register, relay, alarm, commands by epoch, and nothing lost while offline."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_sim.meter import SWITCH_CLOSED, SWITCH_OPEN, MeterSettings, SimulatedMeter
from meter_sim.token_reader import Carrier, EntryResult, TokenEntry
from protocols.native import (
    BLOCK_INTERVALS_MAX,
    Command,
    CommandReply,
    MeterEvent,
    OrderKind,
    Readings,
    Relay,
    ReplyResult,
    TokenEntered,
    decode_uplink,
    encode_event,
    encode_readings,
    encode_reply,
    encode_token_entered,
)

T0 = 1_763_730_000_000
HALF_HOUR_MS = 1_800_000
TOKEN = "1" * 20
CAN_LIMIT = MeterSettings(can_limit=True)


def typed(*, accepted: bool, credit_minor: int | None) -> TokenEntry:
    """Make a token's result as the meter sees it."""
    return TokenEntry(
        result=EntryResult.ACCEPTED if accepted else EntryResult.CRC_ERROR,
        authentic=accepted,
        credit_minor=credit_minor,
    )


class ScriptedReader:
    """A token reader that gives one answer to every token."""

    def __init__(self, result: TokenEntry) -> None:
        self.result = result
        self.entered: list[tuple[str, int]] = []

    def enter(self, digits: str, now_ms: int, *, carrier: Carrier = Carrier.KEYPAD) -> TokenEntry:
        """Note what was typed and answer."""
        self.entered.append((digits, now_ms))
        return self.result


def meter(
    *,
    token: TokenEntry | None = None,
    settings: MeterSettings | None = None,
    register_wh: int = 0,
    relay: Relay = Relay.ON,
    balance_minor: int | None = None,
    threshold_minor: int | None = None,
) -> SimulatedMeter:
    """Build a meter whose reader refuses every token unless told otherwise."""
    return SimulatedMeter(
        serial="PB000001",
        token_reader=ScriptedReader(token or typed(accepted=False, credit_minor=None)),
        settings=settings,
        register_wh=register_wh,
        relay=relay,
        balance_minor=balance_minor,
        threshold_minor=threshold_minor,
    )


def encoded(said: MeterEvent | CommandReply | TokenEntered) -> bytes:
    """Encode what a meter says besides readings."""
    if isinstance(said, TokenEntered):
        return encode_token_entered(said)
    return encode_event(said) if isinstance(said, MeterEvent) else encode_reply(said)


def supply(relay: Relay, *, order_id: int = 1, epoch: int = 1, balance_minor: int | None = None) -> Command:
    """Compose a supply order valid for a minute from T0."""
    return Command(
        order_id=order_id,
        epoch=epoch,
        kind=OrderKind.SUPPLY,
        relay=relay,
        level=None,
        balance_minor=balance_minor,
        threshold_minor=None,
        expires_at_ms=T0 + 60_000,
    )


def limited(limit_w: int, *, epoch: int = 1, balance_minor: int | None = None) -> Command:
    """Compose an order that limits the load."""
    order = supply(Relay.LIMITED, order_id=epoch, epoch=epoch, balance_minor=balance_minor)
    return replace(order, limit_w=limit_w)


def alarm(*, balance_minor: int | None, threshold_minor: int | None, level: str = "low") -> Command:
    """Compose an alarm."""
    return replace(
        supply(Relay.ON),
        kind=OrderKind.ALARM,
        relay=None,
        level=level,
        balance_minor=balance_minor,
        threshold_minor=threshold_minor,
    )


def threshold(threshold_minor: int | None, *, epoch: int = 1, balance_minor: int | None = None) -> Command:
    """Compose a threshold order."""
    return replace(
        supply(Relay.ON),
        order_id=epoch,
        epoch=epoch,
        kind=OrderKind.THRESHOLD,
        relay=None,
        balance_minor=balance_minor,
        threshold_minor=threshold_minor,
    )


def drain(meter: SimulatedMeter) -> list[Readings | MeterEvent | CommandReply]:
    """Take everything a meter has to say, confirming each message."""
    taken: list[Readings | MeterEvent | CommandReply] = []
    while (uplink := meter.next_unsent(T0)) is not None:
        taken.append(uplink)
        meter.confirm(uplink)
    return taken


def result_of(messages: tuple[MeterEvent | CommandReply, ...]) -> ReplyResult:
    """Find the reply among a command's outgoing messages."""
    (reply,) = [message for message in messages if isinstance(message, CommandReply)]
    return reply.result


def test_offered_energy_moves_the_register_through_a_closed_relay() -> None:
    """The register is the running total of what flowed."""
    home = meter(register_wh=100)
    home.advance(T0, 250)
    home.advance(T0 + HALF_HOUR_MS, 50)
    assert home.register_wh == 400


def test_open_relay_lets_no_energy_current_or_power_through() -> None:
    """Behind an open switch there is voltage and nothing else."""
    home = meter(register_wh=100, relay=Relay.OFF)
    home.advance(T0, 250, voltage_mv=230_000, current_ma=4_000, power_w=900, pf_milli=990, freq_mhz=50_000)
    (readings,) = drain(home)
    assert isinstance(readings, Readings)
    assert readings.import_wh == [100]
    assert (readings.voltage_mv, readings.current_ma, readings.power_w) == ([230_000], [0], [0])
    assert (readings.pf_milli, readings.freq_mhz, readings.relay) == ([None], [50_000], Relay.OFF)


def test_register_rolls_over_at_its_number_of_digits() -> None:
    """After its last digit the register starts again at zero."""
    home = meter(register_wh=999_990, settings=MeterSettings(register_digits=6))
    home.advance(T0, 25)
    assert home.register_wh == 15


def test_readings_while_offline_are_sent_later_with_their_own_times() -> None:
    """A backlog becomes blocks of equal steps, oldest first, none twice."""
    home = meter()
    times = [T0 + index * HALF_HOUR_MS for index in range(BLOCK_INTERVALS_MAX + 4)]
    for now_ms in times:
        home.advance(now_ms, 10)
    blocks = drain(home)
    assert all(isinstance(block, Readings) for block in blocks)
    assert [len(block.read_at_ms) for block in blocks if isinstance(block, Readings)] == [96, 4]
    assert [at for block in blocks if isinstance(block, Readings) for at in block.read_at_ms] == times
    assert home.stored_count == 0


def test_gap_in_time_starts_another_block() -> None:
    """A block says only its start and step, so a gap ends it."""
    home = meter()
    for minutes in (0, 30, 60, 150, 180):
        home.advance(T0 + minutes * 60_000, 10)
    assert [len(block.read_at_ms) for block in drain(home) if isinstance(block, Readings)] == [3, 2]


def test_unconfirmed_readings_are_offered_again() -> None:
    """What was sent and not acknowledged is still the meter's to send."""
    home = meter()
    home.advance(T0, 10)
    first = home.next_unsent(T0)
    second = home.next_unsent(T0)
    assert isinstance(first, Readings)
    assert isinstance(second, Readings)
    assert (first.read_at_ms, first.import_wh) == (second.read_at_ms, second.import_wh)


def test_full_store_drops_the_oldest_and_counts_them() -> None:
    """The store holds 35 days of intervals; the newest are kept."""
    home = meter(settings=MeterSettings(interval_s=86_400))
    for day in range(40):
        home.advance(T0 + day * 86_400_000, 1)
    assert (home.stored_count, home.dropped_count) == (35, 5)
    (block,) = drain(home)
    assert isinstance(block, Readings)
    assert block.import_wh[0] == 6


def test_confirming_readings_pushed_out_meanwhile_takes_no_newer_one() -> None:
    """An acknowledgement covers exactly the readings it was for."""
    home = meter(settings=MeterSettings(interval_s=86_400))
    for day in range(35):
        home.advance(T0 + day * 86_400_000, 1)
    sent = home.next_unsent(T0)
    assert sent is not None
    for day in range(35, 37):
        home.advance(T0 + day * 86_400_000, 1)
    home.confirm(sent)
    assert home.stored_count == 2


def test_supply_order_moves_the_relay_and_is_answered_after_its_event() -> None:
    """Opening is event 301, closing 302, each before the reply."""
    home = meter()
    event, reply = home.obey(supply(Relay.OFF, balance_minor=-120), T0)
    assert isinstance(event, MeterEvent)
    assert isinstance(reply, CommandReply)
    assert (event.code, reply.result, reply.relay) == (SWITCH_OPEN, ReplyResult.DONE, Relay.OFF)
    assert (home.relay, home.balance_minor, home.display) == (Relay.OFF, -120, "SUPPLY OFF BALANCE -1.20")
    event, reply = home.obey(supply(Relay.ON, order_id=2, epoch=2, balance_minor=5_000), T0)
    assert isinstance(event, MeterEvent)
    assert (event.code, home.relay, home.display) == (SWITCH_CLOSED, Relay.ON, "BALANCE 50.00")


def test_repeated_order_is_confirmed_again_and_moves_nothing() -> None:
    """Delivered twice equals delivered once, even after a token closed the relay and the order expired."""
    home = meter(token=typed(accepted=True, credit_minor=10_000))
    home.obey(supply(Relay.OFF, balance_minor=-120), T0)
    home.enter_token(TOKEN, T0)
    (reply,) = home.obey(supply(Relay.OFF, balance_minor=-120), T0 + 3_600_000)
    assert isinstance(reply, CommandReply)
    assert (reply.result, reply.relay) == (ReplyResult.DONE, Relay.ON)
    assert (home.relay, home.balance_minor) == (Relay.ON, 9_880)


@pytest.mark.parametrize("epoch", [6, 7])
def test_order_of_older_or_equal_epoch_is_stale(epoch: int) -> None:
    """A superseded order changes neither relay nor balance."""
    home = meter()
    home.obey(supply(Relay.ON, order_id=1, epoch=7, balance_minor=500), T0)
    messages = home.obey(supply(Relay.OFF, order_id=2, epoch=epoch, balance_minor=-1), T0)
    assert result_of(messages) is ReplyResult.STALE
    assert (home.relay, home.balance_minor) == (Relay.ON, 500)


def test_epochs_of_one_kind_do_not_outdate_another_kind() -> None:
    """Each kind of order counts its own epochs."""
    home = meter()
    home.obey(supply(Relay.OFF, epoch=9), T0)
    assert result_of(home.obey(threshold(1_000, epoch=1), T0)) is ReplyResult.DONE


def test_order_after_its_expiry_is_refused_by_the_meters_own_clock() -> None:
    """At its expiry an order still counts, a millisecond later not; a clock ahead expires it early."""
    late = supply(Relay.OFF)
    assert result_of(meter().obey(late, T0 + 60_000)) is ReplyResult.DONE
    home = meter()
    assert result_of(home.obey(late, T0 + 60_001)) is ReplyResult.EXPIRED
    assert home.relay is Relay.ON
    fast = meter()
    fast.clock_error_ms = 120_000
    assert result_of(fast.obey(late, T0)) is ReplyResult.EXPIRED


def test_expired_order_does_not_outdate_a_later_one_of_its_epoch() -> None:
    """Only executed orders count as the last epoch."""
    home = meter()
    home.obey(supply(Relay.OFF), T0 + 60_001)
    assert result_of(home.obey(supply(Relay.OFF), T0)) is ReplyResult.DONE


def test_stuck_relay_refuses_and_keeps_its_position() -> None:
    """A welded switch is reported, not hidden."""
    home = meter()
    home.relay_stuck = True
    messages = home.obey(supply(Relay.OFF), T0)
    assert result_of(messages) is ReplyResult.REFUSED
    assert (len(messages), home.relay) == (1, Relay.ON)


def test_limited_meter_lets_at_most_the_limit_flow() -> None:
    """500 W are 250 Wh in half an hour; a smaller load flows whole; power and current are those that flow."""
    home = meter(settings=CAN_LIMIT)
    home.advance(T0, 1_000)
    home.obey(limited(500, balance_minor=-120), T0)
    home.advance(T0 + HALF_HOUR_MS, 1_000, power_w=2_000, current_ma=9_000, pf_milli=900)
    assert home.register_wh == 1_250
    home.advance(T0 + 2 * HALF_HOUR_MS, 249, power_w=498, current_ma=2_200)
    assert home.register_wh == 1_499
    home.advance(T0 + 2 * HALF_HOUR_MS + 60_000, 1_000)
    assert home.register_wh == 1_499 + 500 // 60
    (sent,) = [uplink for uplink in drain(home) if isinstance(uplink, Readings) and len(uplink.read_at_ms) > 1]
    assert (sent.power_w, sent.current_ma) == ([None, 500, 498], [None, 2_250, 2_200])
    assert (sent.pf_milli, sent.relay) == ([None, 900, None], Relay.LIMITED)


def test_limited_meter_whose_first_interval_ends_goes_by_its_length() -> None:
    """A meter that has not measured yet knows how long an interval is."""
    home = meter(settings=CAN_LIMIT)
    home.obey(limited(500), T0)
    home.advance(T0, 1_000)
    assert home.register_wh == 250


def test_load_limit_is_shown_and_no_event_of_the_switch() -> None:
    """The switch stays closed: only opening and closing it are events. A ringing alarm hides no limit."""
    home = meter(settings=CAN_LIMIT, threshold_minor=1_000)
    (reply,) = home.obey(limited(500, balance_minor=-120), T0)
    assert isinstance(reply, CommandReply)
    assert (reply.result, reply.relay) == (ReplyResult.DONE, Relay.LIMITED)
    assert home.display == "SUPPLY LIMITED TO 500 W LOW BALANCE -1.20"
    (reply,) = home.obey(supply(Relay.ON, order_id=2, epoch=2, balance_minor=5_000), T0)
    assert (home.relay, home.limit_w, home.display) == (Relay.ON, None, "BALANCE 50.00")
    event, _ = home.obey(supply(Relay.OFF, order_id=3, epoch=3), T0)
    assert isinstance(event, MeterEvent)
    assert event.code == SWITCH_OPEN
    event, _ = home.obey(limited(500, epoch=4), T0)
    assert isinstance(event, MeterEvent)
    assert (event.code, home.relay) == (SWITCH_CLOSED, Relay.LIMITED)


def test_new_limit_replaces_the_one_before() -> None:
    """The limit last ordered holds."""
    home = meter(settings=CAN_LIMIT)
    home.obey(limited(500), T0)
    home.obey(limited(1_000, epoch=2), T0)
    home.advance(T0, 10_000)
    assert home.register_wh == 500


def test_meter_that_cannot_limit_refuses_and_keeps_its_supply() -> None:
    """It says so, and may be told again: a refused epoch is not used up."""
    home = meter()
    for _ in range(2):
        (reply,) = home.obey(limited(500), T0)
        assert isinstance(reply, CommandReply)
        assert (reply.result, reply.relay) == (ReplyResult.REFUSED, Relay.ON)
    assert home.display == "BALANCE --"
    home.advance(T0, 1_000)
    assert home.register_wh == 1_000
    assert result_of(home.obey(supply(Relay.OFF), T0)) is ReplyResult.DONE


def test_token_lifts_a_limit_until_its_credit_is_used_up() -> None:
    """Offline the meter goes back to what it was ordered: it limits again and cuts nothing."""
    settings = replace(CAN_LIMIT, fallback_rate_milli_per_kwh=1_000_000)
    home = meter(token=typed(accepted=True, credit_minor=1_000), settings=settings)
    home.obey(limited(500, balance_minor=-100), T0)
    home.enter_token(TOKEN, T0)
    assert home.relay is Relay.ON
    assert home.advance(T0 + HALF_HOUR_MS, 900) == ()
    assert (home.relay, home.limit_w, home.balance_minor) == (Relay.LIMITED, 500, 0)
    home.advance(T0 + 2 * HALF_HOUR_MS, 900)
    assert home.register_wh == 900 + 250


def test_alarm_command_shows_sounds_and_keeps_the_threshold() -> None:
    """The alarm is the meter's to show, and its threshold the meter's to keep."""
    home = meter()
    assert result_of(home.obey(alarm(balance_minor=900, threshold_minor=1_000), T0)) is ReplyResult.DONE
    assert (home.display, home.buzzer_on, home.threshold_minor) == ("LOW BALANCE 9.00", True, 1_000)
    home.press_button()
    assert (home.display, home.buzzer_on) == ("LOW BALANCE 9.00", False)


def test_alarm_ends_when_the_balance_rises_above_the_threshold() -> None:
    """A recharge that is not enough keeps the alarm."""
    home = meter()
    home.obey(alarm(balance_minor=900, threshold_minor=1_000), T0)
    home.obey(supply(Relay.ON, epoch=1, balance_minor=1_000), T0)
    assert home.buzzer_on
    home.obey(supply(Relay.ON, order_id=2, epoch=2, balance_minor=1_001), T0)
    assert (home.display, home.buzzer_on) == ("BALANCE 10.01", False)


def test_alarm_without_threshold_ends_when_the_balance_rises() -> None:
    """With no threshold stored, any rise ends the alarm."""
    home = meter()
    home.obey(alarm(balance_minor=900, threshold_minor=None, level="exhausted"), T0)
    assert home.display == "EXHAUSTED BALANCE 9.00"
    home.obey(supply(Relay.ON, balance_minor=901), T0)
    assert not home.buzzer_on


def test_balance_falling_to_the_stored_threshold_alarms_without_an_alarm_command() -> None:
    """The meter itself alarms when its copy reaches the consumer's threshold, once for each fall."""
    home = meter(threshold_minor=1_000, balance_minor=5_000)
    assert not home.buzzer_on
    home.obey(supply(Relay.ON, balance_minor=1_000), T0)
    assert (home.buzzer_on, home.display) == (True, "LOW BALANCE 10.00")
    home.press_button()
    home.obey(supply(Relay.ON, order_id=2, epoch=2, balance_minor=400), T0)
    assert not home.buzzer_on
    home.obey(supply(Relay.ON, order_id=3, epoch=3, balance_minor=2_000), T0)
    home.obey(supply(Relay.ON, order_id=4, epoch=4, balance_minor=900), T0)
    assert home.buzzer_on


def test_threshold_above_the_present_balance_alarms_at_once_and_clearing_it_ends_the_alarm() -> None:
    """A consumer's new threshold takes effect when the meter stores it."""
    home = meter(balance_minor=5_000)
    home.obey(threshold(6_000, epoch=1), T0)
    assert home.buzzer_on
    home.obey(threshold(None, epoch=2), T0)
    assert (home.buzzer_on, home.threshold_minor) == (False, None)


def test_threshold_command_ends_an_alarm_that_is_not_by_the_stored_threshold() -> None:
    """A further warning of the head-end ends with it, though nothing rose; one by the meter's own threshold stays."""
    home = meter(balance_minor=5_000, threshold_minor=1_000)
    home.obey(alarm(balance_minor=4_000, threshold_minor=1_000), T0)
    home.obey(threshold(1_000, epoch=1, balance_minor=4_000), T0)
    assert (home.display, home.buzzer_on) == ("BALANCE 40.00", False)
    home.obey(supply(Relay.ON, balance_minor=1_000), T0)
    home.obey(threshold(1_000, epoch=2, balance_minor=900), T0)
    assert (home.display, home.buzzer_on) == ("LOW BALANCE 9.00", True)


def test_balance_copy_stands_still_between_contacts_in_central_mode() -> None:
    """Without a fallback rate, energy does not move the copy."""
    home = meter(balance_minor=5_000, threshold_minor=1_000)
    home.advance(T0, 1_000_000)
    assert home.balance_minor == 5_000


def test_balance_copy_with_a_fallback_rate_alarms_offline_from_the_threshold() -> None:
    """At 7.00 a kWh, 5.001 kWh cost 35.00 and leave 0.007 to be charged next."""
    home = meter(
        balance_minor=5_000, threshold_minor=1_500, settings=MeterSettings(fallback_rate_milli_per_kwh=700_000)
    )
    home.advance(T0, 4_999)
    assert (home.balance_minor, home.buzzer_on) == (1_501, False)
    home.advance(T0 + HALF_HOUR_MS, 2)
    assert (home.balance_minor, home.buzzer_on) == (1_500, True)


def test_accepted_currency_token_raises_the_balance_and_closes_the_relay() -> None:
    """A token restores supply without any contact."""
    reader = ScriptedReader(typed(accepted=True, credit_minor=10_000))
    home = SimulatedMeter(serial="PB000001", token_reader=reader, relay=Relay.OFF, balance_minor=-120)
    result, (event,) = home.enter_token(TOKEN, T0)
    assert (result.accepted, reader.entered) == (True, [(TOKEN, T0)])
    assert (event.code, home.relay, home.balance_minor) == (SWITCH_CLOSED, Relay.ON, 9_880)
    assert home.display == "TOKEN ACCEPTED"
    home.press_button()
    assert home.display == "BALANCE 98.80"


@pytest.mark.parametrize("token", [typed(accepted=False, credit_minor=None), typed(accepted=True, credit_minor=None)])
def test_refused_or_management_token_moves_neither_relay_nor_balance(token: TokenEntry) -> None:
    """Only credit restores supply."""
    home = meter(token=token, relay=Relay.OFF, balance_minor=-120)
    _, events = home.enter_token(TOKEN, T0)
    assert (events, home.relay, home.balance_minor) == ((), Relay.OFF, -120)


def test_token_that_leaves_a_debt_keeps_the_relay_open() -> None:
    """A recharge smaller than the debt does not restore supply."""
    home = meter(token=typed(accepted=True, credit_minor=100), relay=Relay.OFF, balance_minor=-120)
    home.enter_token(TOKEN, T0)
    assert (home.relay, home.balance_minor) == (Relay.OFF, -20)


def test_supply_closed_by_a_token_opens_when_the_copy_is_used_up() -> None:
    """Offline, the meter itself ends the supply a token gave, and only that."""
    settings = MeterSettings(fallback_rate_milli_per_kwh=1_000_000)
    home = meter(token=typed(accepted=True, credit_minor=100), settings=settings, relay=Relay.OFF, balance_minor=0)
    home.enter_token(TOKEN, T0)
    assert home.advance(T0, 99) == ()
    (event,) = home.advance(T0, 1)
    assert (event.code, home.relay) == (SWITCH_OPEN, Relay.OFF)
    central = meter(settings=settings, balance_minor=50)
    assert central.advance(T0, 1_000) == ()
    assert central.relay is Relay.ON


STEPS = st.one_of(
    st.tuples(st.just("advance"), st.integers(0, 5_000)),
    st.tuples(st.just("off"), st.integers(1, 6)),
    st.tuples(st.just("on"), st.integers(1, 6)),
    st.tuples(st.just("limited"), st.integers(1, 6)),
    st.tuples(st.just("token"), st.just(0)),
    st.tuples(st.just("send"), st.just(0)),
)


@given(st.lists(STEPS, max_size=40))
def test_any_history_is_told_completely_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    """Every interval is sent exactly once in ascending time, and every message survives the wire."""
    home = meter(token=typed(accepted=True, credit_minor=100), settings=CAN_LIMIT)
    expected: list[tuple[int, int]] = []
    sent: list[tuple[int, int]] = []
    now_ms = T0

    def send() -> None:
        for uplink in drain(home):
            if isinstance(uplink, Readings):
                assert decode_uplink("amr/PB000001/rd", encode_readings(uplink)) == uplink
                sent.extend(zip(uplink.read_at_ms, uplink.import_wh, strict=True))
            else:
                assert decode_uplink("amr/PB000001/ev", encoded(uplink)) == uplink

    for step, amount in steps:
        before_wh, limit_w = home.register_wh, home.limit_w
        # Twice as many watts as watt-hours of half an hour.
        most_wh = {Relay.ON: amount, Relay.LIMITED: (limit_w or 0) // 2, Relay.OFF: 0}[home.relay]
        if step == "advance":
            now_ms += HALF_HOUR_MS
            home.advance(now_ms, amount)
            expected.append((now_ms, home.register_wh))
            assert home.register_wh == before_wh + min(amount, most_wh)
        elif step == "token":
            home.enter_token(TOKEN, now_ms)
        elif step == "send":
            send()
        else:
            order = replace(supply(Relay(step), order_id=amount, epoch=amount), expires_at_ms=now_ms + 1)
            if order.relay is Relay.LIMITED:
                order = replace(order, limit_w=1_000 * amount)
            home.obey(order, now_ms)
            state = (home.relay, home.limit_w, home.balance_minor, home.register_wh)
            home.obey(order, now_ms)
            assert (home.relay, home.limit_w, home.balance_minor, home.register_wh) == state
    send()
    assert sent == expected


def read_again(first: int, last: int, *, epoch: int = 1) -> Command:
    """Make an order to send the readings of some half hours again."""
    return Command(
        order_id=epoch,
        epoch=epoch,
        kind=OrderKind.READ,
        relay=None,
        level=None,
        balance_minor=None,
        threshold_minor=None,
        expires_at_ms=T0 + 48 * HALF_HOUR_MS,
        read_from_ms=T0 + first * HALF_HOUR_MS,
        read_to_ms=T0 + last * HALF_HOUR_MS,
    )


def test_stored_readings_are_sent_again_when_ordered() -> None:
    """Ends included, with their own times and registers, in blocks; what is about to be sent anyway comes once."""
    simulated = meter()
    for number in range(1, 8):
        simulated.advance(T0 + number * HALF_HOUR_MS, 100)
        if number == 5:
            drain(simulated)
    assert result_of(simulated.obey(read_again(3, 6), T0 + 8 * HALF_HOUR_MS)) is ReplyResult.DONE
    sent = [uplink for uplink in drain(simulated) if isinstance(uplink, Readings)]
    expected = [[6, 7], [3, 4, 5]]
    assert [uplink.read_at_ms for uplink in sent] == [[T0 + n * HALF_HOUR_MS for n in run] for run in expected]
    assert [uplink.import_wh for uplink in sent] == [[n * 100 for n in run] for run in expected]
    # A repeated delivery is answered, and the readings do not come a third time.
    assert result_of(simulated.obey(read_again(3, 6), T0 + 8 * HALF_HOUR_MS)) is ReplyResult.DONE
    assert [uplink for uplink in drain(simulated) if isinstance(uplink, Readings)] == []
