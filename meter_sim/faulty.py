"""A simulated meter whose link, switch and consumer misbehave: every fault between an order and its confirmation.

Stage: in the place of `SimulatedMeter`, in tests of the head-end. A seeded generator enters; which faults happened, and
how often, leaves in `met`. The meter itself stays a good one: epochs and expiry hold for a late command like for any.
"""

from collections import Counter
from collections.abc import Iterable
from enum import Enum
from random import Random
from typing import Final

from meter_sim.meter import MeterSettings, SimulatedMeter, TokenReader
from protocols.native import Command, CommandReply, MeterEvent, OrderKind, Relay


class Fault(Enum):
    """What happens to one command or to its answer."""

    LOST = "lost"
    UNANSWERED = "unanswered"
    DOUBLED = "doubled"
    ANSWERED_TWICE = "answered_twice"
    # The command, or its answer, arrives with the next reading, after whatever came meanwhile.
    DELAYED = "delayed"
    ANSWERED_LATE = "answered_late"
    # An answer of long ago comes once more behind the right one.
    STALE_ANSWER = "stale_answer"
    # The switch does not move this time.
    STUCK = "stuck"
    # The meter does it, and then somebody moves the switch back: after the answer, or with the answer lost.
    CONTRADICTED = "contradicted"
    CONTRADICTED_UNANSWERED = "contradicted_unanswered"


# What a command that moves no switch can suffer.
MESSAGE_FAULTS: Final = tuple(
    fault for fault in Fault if fault not in (Fault.STUCK, Fault.CONTRADICTED, Fault.CONTRADICTED_UNANSWERED)
)


class FaultDeck:
    """Faults dealt like cards: each once, with some good commands between, then shuffled again.

    Invariants: of every deck's length of commands, by whichever meters share it, each fault befalls one.
    """

    def __init__(self, rng: Random, faults: Iterable[Fault], *, good: int) -> None:
        self._rng = rng
        self._deck: tuple[Fault | None, ...] = (*faults, *[None] * good)
        self._cards: list[Fault | None] = []

    def deal(self) -> Fault | None:
        """Return the fault of the next command, or None."""
        if not self._cards:
            self._cards = list(self._deck)
            self._rng.shuffle(self._cards)
        return self._cards.pop()


class FaultyMeter(SimulatedMeter):
    """A meter whose commands suffer what the decks deal: one for supply, one for everything else.

    Invariants: `met` counts every fault that happened; after `heal` none does, and what was delayed has arrived.
    """

    def __init__(
        self,
        *,
        serial: str,
        token_reader: TokenReader,
        supply_faults: FaultDeck,
        message_faults: FaultDeck,
        settings: MeterSettings | None = None,
        register_wh: int = 0,
    ) -> None:
        super().__init__(serial=serial, token_reader=token_reader, settings=settings, register_wh=register_wh)
        self.met: Counter[Fault] = Counter()
        self._faults = dict.fromkeys(OrderKind, message_faults) | {OrderKind.SUPPLY: supply_faults}
        self._healed = False
        self._late_commands: list[Command] = []
        self._late_replies: list[CommandReply] = []
        # The first answer of all: stale for every later order.
        self._answered: CommandReply | None = None

    def advance(
        self,
        now_ms: int,
        energy_wh: int,
        *,
        voltage_mv: int | None = None,
        current_ma: int | None = None,
        power_w: int | None = None,
        pf_milli: int | None = None,
        freq_mhz: int | None = None,
    ) -> tuple[MeterEvent, ...]:
        """End an interval; what was delayed arrives first."""
        self.deliver_late(now_ms)
        return super().advance(
            now_ms,
            energy_wh,
            voltage_mv=voltage_mv,
            current_ma=current_ma,
            power_w=power_w,
            pf_milli=pf_milli,
            freq_mhz=freq_mhz,
        )

    def obey(self, command: Command, now_ms: int) -> tuple[MeterEvent | CommandReply, ...]:
        """Execute or refuse a command, with the fault that chance brings."""
        fault = None if self._healed else self._faults[command.kind].deal()
        if fault is Fault.STALE_ANSWER and self._answered is None:
            fault = None
        if fault is not None:
            self.met[fault] += 1
        if fault is Fault.LOST:
            return ()
        if fault is Fault.DELAYED:
            self._late_commands.append(command)
            return ()
        stuck, self.relay_stuck = self.relay_stuck, self.relay_stuck or fault is Fault.STUCK
        said = super().obey(command, now_ms)
        self.relay_stuck = stuck
        if fault is Fault.DOUBLED:
            said = super().obey(command, now_ms)
        self._spoil_answer(said[-1], fault)
        if fault in (Fault.CONTRADICTED, Fault.CONTRADICTED_UNANSWERED):
            self.move_by_hand(Relay.ON if self.relay is Relay.OFF else Relay.OFF, now_ms)
        return said

    def move_by_hand(self, relay: Relay, now_ms: int) -> tuple[MeterEvent, ...]:
        """Let somebody move the switch without any order."""
        return self._move_relay(relay, now_ms)

    def deliver_late(self, now_ms: int) -> None:
        """Let delayed commands arrive and delayed answers leave."""
        commands, self._late_commands = self._late_commands, []
        replies, self._late_replies = self._late_replies, []
        for reply in replies:
            self._store_message(reply)
        for command in commands:
            super().obey(command, now_ms)

    def heal(self, now_ms: int) -> None:
        """End all faults."""
        self._healed = True
        self.deliver_late(now_ms)

    def _spoil_answer(self, answer: MeterEvent | CommandReply, fault: Fault | None) -> None:
        """Lose, repeat or keep back the answer that was just stored."""
        assert isinstance(answer, CommandReply), "the last thing a meter says to a command is its answer"
        if fault in (Fault.UNANSWERED, Fault.CONTRADICTED_UNANSWERED, Fault.ANSWERED_LATE):
            self._messages.remove(answer)
        if fault is Fault.ANSWERED_LATE:
            self._late_replies.append(answer)
        if fault is Fault.ANSWERED_TWICE:
            self._store_message(answer)
        if fault is Fault.STALE_ANSWER and self._answered is not None:
            self._store_message(self._answered)
        self._answered = self._answered or answer
