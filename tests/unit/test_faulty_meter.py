"""The faults of a simulated meter: each one happens, is counted, and spoils nothing but what it says."""

from collections import Counter
from random import Random

import pytest

from meter_sim.faulty import Fault, FaultDeck, FaultyMeter
from meter_sim.meter import TokenResult
from protocols.native import Command, CommandReply, OrderKind, Relay, ReplyResult, Uplink

NOW_MS = 1_763_730_000_000


class _NoReader:
    def enter(self, digits: str, now_ms: int) -> TokenResult:
        raise AssertionError("no token is typed here")


def _meter(*faults: Fault) -> FaultyMeter:
    """Make a meter each of whose commands suffers one of the faults."""
    deck = FaultDeck(Random(1), faults, good=0)
    return FaultyMeter(serial="M1", token_reader=_NoReader(), supply_faults=deck, message_faults=deck)


def _cut(epoch: int = 1, relay: Relay = Relay.OFF) -> Command:
    return Command(
        order_id=epoch,
        epoch=epoch,
        kind=OrderKind.SUPPLY,
        relay=relay,
        level=None,
        balance_minor=-1,
        threshold_minor=None,
        expires_at_ms=NOW_MS + 60_000,
    )


def _said(meter: FaultyMeter) -> list[Uplink]:
    """Take everything the meter has to say."""
    said: list[Uplink] = []
    while (uplink := meter.next_unsent(NOW_MS)) is not None:
        said.append(uplink)
        meter.confirm(uplink)
    return said


def _replies(meter: FaultyMeter) -> list[tuple[int, ReplyResult, Relay | None]]:
    return [(each.epoch, each.result, each.relay) for each in _said(meter) if isinstance(each, CommandReply)]


DONE_OFF = (1, ReplyResult.DONE, Relay.OFF)


@pytest.mark.parametrize(
    ("fault", "relay", "replies"),
    [
        (Fault.LOST, Relay.ON, []),
        (Fault.UNANSWERED, Relay.OFF, []),
        (Fault.DOUBLED, Relay.OFF, [DONE_OFF, DONE_OFF]),
        (Fault.ANSWERED_TWICE, Relay.OFF, [DONE_OFF, DONE_OFF]),
        (Fault.DELAYED, Relay.ON, []),
        (Fault.ANSWERED_LATE, Relay.OFF, []),
        (Fault.STUCK, Relay.ON, [(1, ReplyResult.REFUSED, Relay.ON)]),
        (Fault.CONTRADICTED, Relay.ON, [DONE_OFF]),
        (Fault.CONTRADICTED_UNANSWERED, Relay.ON, []),
    ],
)
def test_fault_spoils_what_it_names(fault: Fault, relay: Relay, replies: list[tuple[int, ReplyResult, Relay]]) -> None:
    """After one command with the fault, relay and answers are what the fault leaves of them; it is counted once."""
    meter = _meter(fault)
    meter.obey(_cut(), NOW_MS)
    assert meter.relay is relay
    assert _replies(meter) == replies
    assert dict(meter.met) == {fault: 1}


def test_delayed_command_arrives_with_the_next_reading() -> None:
    """It is executed then, or found stale when a newer one came meanwhile."""
    meter = _meter(Fault.DELAYED)
    meter.obey(_cut(), NOW_MS)
    meter.advance(NOW_MS + 1, 0)
    assert _replies(meter) == [DONE_OFF]
    meter.obey(_cut(2, Relay.ON), NOW_MS + 2)
    meter.heal(NOW_MS + 3)
    meter.obey(_cut(3), NOW_MS + 4)
    meter.obey(_cut(2, Relay.ON), NOW_MS + 5)
    assert meter.relay is Relay.OFF
    assert _replies(meter) == [
        (2, ReplyResult.DONE, Relay.ON),
        (3, ReplyResult.DONE, Relay.OFF),
        (2, ReplyResult.STALE, Relay.OFF),
    ]


def test_delayed_command_expires() -> None:
    """A command that arrives after its expiry moves nothing."""
    meter = _meter(Fault.DELAYED)
    meter.obey(_cut(), NOW_MS)
    meter.heal(NOW_MS + 60_001)
    assert _replies(meter) == [(1, ReplyResult.EXPIRED, Relay.ON)]


def test_late_answer_leaves_with_the_next_reading() -> None:
    """The meter did it at once; only its word comes later."""
    meter = _meter(Fault.ANSWERED_LATE)
    meter.obey(_cut(), NOW_MS)
    assert _replies(meter) == []
    meter.advance(NOW_MS + 1, 0)
    assert _replies(meter) == [DONE_OFF]


def test_stale_answer_repeats_an_old_one() -> None:
    """The answer to an earlier order comes once more behind the right one."""
    meter = _meter(Fault.STALE_ANSWER)
    meter.obey(_cut(), NOW_MS)
    meter.obey(_cut(2, Relay.ON), NOW_MS)
    assert _replies(meter) == [DONE_OFF, (2, ReplyResult.DONE, Relay.ON), DONE_OFF]
    assert meter.met[Fault.STALE_ANSWER] == 1


def test_deck_deals_every_fault_once_in_its_length() -> None:
    """Whatever the chance, of so many commands each fault befalls one, and the rest is good."""
    deck = FaultDeck(Random(3), Fault, good=5)
    for _ in range(4):
        dealt = Counter(deck.deal() for _ in range(len(Fault) + 5))
        assert dealt == Counter([*Fault, *[None] * 5])


def test_healed_meter_is_a_good_one() -> None:
    """After `heal` nothing happens but what is ordered."""
    meter = _meter(Fault.LOST)
    meter.heal(NOW_MS)
    meter.obey(_cut(), NOW_MS)
    assert _replies(meter) == [DONE_OFF]
