"""One simulated prepaid meter: register, clock, relay, buzzer, stored threshold and a copy of the balance.

Offered load, commands and typed tokens enter with the time they happen; readings, events and replies leave as
values, and stay in the meter until it is told that the head-end has them. Follows the head-end's rules only
as far as a real meter knows them: an epoch for each kind of command, an expiry, and its own threshold. Never
opens a connection and never reads a clock.

In central mode the account is the truth and the balance here is a copy: every executed command that carries a
balance overwrites it, and between contacts it stands still. A meter given a `fallback_rate_milli_per_kwh`
lets the copy fall by that rate instead, alarms from it without any contact, and takes away at zero the supply that
a token gave. What became of a token is told after the readings before it, so that the balance it is answered with
knows them.

While its relay is limited, the simulated home sheds what is above the limit.

Its profile outlives a failure of power and what was confirmed: asked to read, it sends stored readings again.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

from meter_sim.token_reader import Carrier
from protocols.native import (
    BLOCK_INTERVALS_MAX,
    BLOCK_STEP_S_MAX,
    Command,
    CommandReply,
    CouponEntered,
    EntryResult,
    MeterEvent,
    OrderKind,
    Readings,
    Relay,
    ReplyResult,
    TokenEntered,
    Uplink,
)

STORE_DAYS: Final = 35  # The head-end takes late readings for 35 days; a meter keeps what is still of use.
STORED_MESSAGES_MAX: Final = 1_000  # Ten replies and events an hour of a meter cut off for four days.
SWITCH_OPEN: Final = 301  # IS 15959 event ids, as in public code bases: load switch open, load switch closed.
SWITCH_CLOSED: Final = 302
_MS_PER_HOUR: Final = 3_600_000
_MILLI_MINOR_WH: Final = 1_000_000  # Thousandths of a minor unit per kWh, in minor units per Wh.


class TokenResult(Protocol):
    """What a token reader says of one entered number.

    Invariants: `credit_minor` is the amount of an accepted currency token for electricity, `energy_wh` that of one in
    kWh, None otherwise; `authentic` tells that it was made for this meter, whatever became of it.
    """

    @property
    def result(self) -> EntryResult:
        """Say what became of it."""

    @property
    def accepted(self) -> bool:
        """Tell whether it was this meter's (or for every meter), unused and intact."""

    @property
    def authentic(self) -> bool:
        """Tell whether it was encrypted under this meter's key."""

    @property
    def tid(self) -> int | None:
        """Give its TID."""

    @property
    def credit_minor(self) -> int | None:
        """Give the credit it carried, in minor units."""

    @property
    def energy_wh(self) -> int | None:
        """Give the energy it carried."""

    @property
    def clears_credit(self) -> bool:
        """Tell whether it takes the electricity credit away."""

    @property
    def power_limit_w(self) -> int | None:
        """Give the limit of power that it set."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Give what it asked to be shown."""


class TokenReader(Protocol):
    """The part of a meter that reads tokens with the meter's own decoder key."""

    def enter(self, digits: str, now_ms: int, *, carrier: Carrier = Carrier.KEYPAD) -> TokenResult:
        """Read one token of 20 digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSettings:
    """What is fixed for a meter when it leaves the factory.

    Invariants: `interval_s` divides a day; `register_digits` counts digits of Wh, after which the register
    rolls over to zero. `fallback_rate_milli_per_kwh` None keeps the balance copy still between contacts. Without
    `can_limit` the meter knows no other positions than on and off.
    """

    interval_s: int = 1800
    register_digits: int = 9
    fallback_rate_milli_per_kwh: int | None = None
    can_limit: bool = False

    @property
    def stored_readings_max(self) -> int:
        """Count the intervals that fit the meter's memory."""
        return STORE_DAYS * 86_400 // self.interval_s


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReading:
    """One interval as the meter has measured it."""

    read_at_ms: int
    register_wh: int
    voltage_mv: int | None
    current_ma: int | None
    power_w: int | None
    pf_milli: int | None
    freq_mhz: int | None


class SimulatedMeter:
    """A meter as a state machine.

    Invariants: the register never falls but by rollover, never moves while the relay is open, and while it is
    limited moves by at most `limit_w` times the interval; a reading, event or reply stays stored until confirmed or
    pushed out by newer ones, and those are counted in `dropped_count`; a command of an epoch once executed is never
    executed again. A meter begins on or off; `limit_w` is set whenever its relay is limited.
    """

    def __init__(
        self,
        *,
        serial: str,
        token_reader: TokenReader,
        settings: MeterSettings | None = None,
        register_wh: int = 0,
        relay: Relay = Relay.ON,
        balance_minor: int | None = None,
        threshold_minor: int | None = None,
    ) -> None:
        self.serial = serial
        self.settings = settings or MeterSettings()
        self.register_wh = register_wh % 10**self.settings.register_digits
        self.relay = relay
        self.limit_w: int | None = None
        # Set by a token, and in force whatever the head-end ordered.
        self.power_limit_w: int | None = None
        self.balance_minor = balance_minor
        self.threshold_minor = threshold_minor
        self.buzzer_on = False
        self.dropped_count = 0
        # Faults a test may set: the clock's error, and a switch that no longer moves.
        self.clock_error_ms = 0
        self.relay_stuck = False
        self._token_reader = token_reader
        self._executed: dict[OrderKind, Command] = {}
        self._alarm_text: str | None = None
        self._alarm_ends_above_minor: int | None = None
        self._notice: str | None = None
        # Where the relay stood before a token closed it, and goes back to when the token's credit is used up.
        self._before_token: Relay | None = None
        self._uncharged = 0
        self._interval_ends_ms: int | None = None
        self._seq = 0
        self._readings: deque[StoredReading] = deque()
        # What the meter has measured, sent or not, and what of it was asked for again.
        self._profile: deque[StoredReading] = deque(maxlen=self.settings.stored_readings_max)
        self._asked_again: deque[StoredReading] = deque()
        self._messages: deque[MeterEvent | CommandReply] = deque()
        self._entries: deque[TokenEntered | CouponEntered] = deque()
        self._alarm_if_low()

    @property
    def display(self) -> str:
        """Show what the customer reads on the meter."""
        if self._notice is not None:
            return self._notice
        head = self._alarm_text or ("SUPPLY OFF" if self.relay is Relay.OFF else "")
        # An alarm that rings does not hide that the load is limited: who switches on too much has to know why.
        limit = f"SUPPLY LIMITED TO {self.limit_w} W" if self.relay is Relay.LIMITED else ""
        return " ".join(filter(None, (limit, head, f"BALANCE {_money(self.balance_minor)}")))

    @property
    def stored_count(self) -> int:
        """Count readings, events, replies and tokens not yet confirmed."""
        return len(self._readings) + len(self._asked_again) + len(self._messages) + len(self._entries)

    def clock_ms(self, now_ms: int) -> int:
        """Tell the meter's own time."""
        return now_ms + self.clock_error_ms

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
        """End an interval: let the offered load flow through the relay as it stands, and store the reading.

        A caller whose relay moves inside an interval offers the part before the change first.
        """
        self._notice = None
        consumed_wh = self._flowing_wh(energy_wh, now_ms)
        power_w, current_ma = self._flowing_load(power_w, current_ma)
        self._interval_ends_ms = now_ms
        self.register_wh = (self.register_wh + consumed_wh) % 10**self.settings.register_digits
        self._store_reading(
            StoredReading(
                read_at_ms=self.clock_ms(now_ms),
                register_wh=self.register_wh,
                voltage_mv=voltage_mv,
                current_ma=current_ma,
                power_w=power_w,
                pf_milli=None if self.relay is Relay.OFF else pf_milli,
                freq_mhz=freq_mhz,
            )
        )
        return self._count_down(consumed_wh, now_ms)

    def obey(self, command: Command, now_ms: int) -> tuple[MeterEvent | CommandReply, ...]:
        """Execute or refuse a command; return its reply, after the event of a moved relay."""
        self._notice = None
        last = self._executed.get(command.kind)
        if last is not None and command.order_id == last.order_id and command.epoch == last.epoch:
            # A repeated delivery is confirmed again but moves nothing: a token may have closed the relay
            # since.
            return (self._reply(command, ReplyResult.DONE, now_ms),)
        if last is not None and command.epoch <= last.epoch and command.kind is not OrderKind.TOKEN:
            # Tokens come in any order: it is the TID by which one counts once.
            return (self._reply(command, ReplyResult.STALE, now_ms),)
        if self.clock_ms(now_ms) > command.expires_at_ms:
            return (self._reply(command, ReplyResult.EXPIRED, now_ms),)
        if command.kind is OrderKind.SUPPLY and not self._can_move_to(command.relay):
            return (self._reply(command, ReplyResult.REFUSED, now_ms),)
        self._executed[command.kind] = command
        events = self._execute(command, now_ms)
        return (*events, self._reply(command, ReplyResult.DONE, now_ms))

    def enter_token(
        self, digits: str, now_ms: int, *, carrier: Carrier = Carrier.KEYPAD
    ) -> tuple[TokenResult, tuple[MeterEvent, ...]]:
        """Read a token that the customer typed, or that was pushed; an accepted credit may close the relay.

        The credit goes on the local copy, and the relay closes if that leaves a credit: a debt keeps supply
        off or limited.
        """
        result = self._token_reader.enter(digits, now_ms, carrier=carrier)
        events: tuple[MeterEvent, ...] = ()
        credit_minor = self._credit_of(result)
        if credit_minor is not None:
            self._set_balance((self.balance_minor or 0) + credit_minor)
            closes = self.relay is not Relay.ON and not self.relay_stuck
            if closes and (self.balance_minor or 0) > 0:
                self._before_token = self.relay
                events = self._move_relay(Relay.ON, now_ms)
        if result.clears_credit and self.balance_minor is not None:
            self._set_balance(min(0, self.balance_minor))
            events = self._end_supply_of_token(now_ms)
        if result.power_limit_w is not None:
            self.power_limit_w = result.power_limit_w
        if result.authentic:
            self._store_entry(result, digits, now_ms)
        self._notice = " ".join(result.shown) or ("TOKEN ACCEPTED" if result.accepted else "TOKEN REJECTED")
        return result, events

    def enter_coupon(self, pin: str, now_ms: int) -> None:
        """Pass on the 16 digits of a coupon that the customer typed: no token has so many, only the head-end knows."""
        self._seq += 1
        at_ms = self.clock_ms(now_ms)
        self._keep_entry(CouponEntered(serial=self.serial, seq=self._seq, at_ms=at_ms, pin=pin))
        self._notice = "COUPON SENT"

    def press_button(self) -> None:
        """Let the customer silence the buzzer; an alarm stays on the display."""
        self._notice = None
        self.buzzer_on = False

    def next_unsent(self, now_ms: int) -> Uplink | None:
        """Compose the next message the head-end lacks, or None: events, readings, tokens, what was asked for again.

        Consecutive readings go as one block with their original times. Composing changes nothing but `seq`.
        """
        if self._messages:
            return self._messages[0]
        if self._entries and not self._readings:
            return self._entries[0]
        unsent = self._readings or self._asked_again
        if not unsent:
            return None
        run = _oldest_run(unsent)
        self._seq += 1
        return Readings(
            serial=self.serial,
            seq=self._seq,
            clock_ms=self.clock_ms(now_ms),
            read_at_ms=[stored.read_at_ms for stored in run],
            import_wh=[stored.register_wh for stored in run],
            export_wh=[None] * len(run),
            voltage_mv=[stored.voltage_mv for stored in run],
            current_ma=[stored.current_ma for stored in run],
            power_w=[stored.power_w for stored in run],
            pf_milli=[stored.pf_milli for stored in run],
            freq_mhz=[stored.freq_mhz for stored in run],
            relay=self.relay,
            credit_minor=self.balance_minor,
            events=(),
        )

    def confirm(self, uplink: Uplink) -> None:
        """Forget what the head-end has acknowledged; what was pushed out meanwhile is no matter."""
        if not isinstance(uplink, Readings):
            for said in (self._messages, self._entries):
                if said and said[0] is uplink:
                    said.popleft()
            return
        for read_at_ms, register_wh in zip(uplink.read_at_ms, uplink.import_wh, strict=True):
            for unsent in (self._readings, self._asked_again):
                if unsent and (unsent[0].read_at_ms, unsent[0].register_wh) == (read_at_ms, register_wh):
                    unsent.popleft()
                    break

    def lose_unsent(self) -> int:
        """Let what waits to be sent count as sent, as if a broker had taken it and lost its disk; return how many."""
        lost = len(self._readings)
        self._readings.clear()
        return lost

    def _execute(self, command: Command, now_ms: int) -> tuple[MeterEvent, ...]:
        events: tuple[MeterEvent, ...] = ()
        if command.kind is OrderKind.THRESHOLD or command.threshold_minor is not None:
            self._set_threshold(command.threshold_minor)
        if command.balance_minor is not None:
            self._uncharged = 0
            self._set_balance(command.balance_minor)
        if command.kind is OrderKind.THRESHOLD and not self._low:
            # The head-end warns by more than this threshold, and sends it when one of its warnings has ended.
            self._silence()
        if command.kind is OrderKind.SUPPLY and command.relay is not None:
            events = self._move_relay(command.relay, now_ms)
            self.limit_w = command.limit_w
            self._before_token = None
        if command.kind is OrderKind.ALARM:
            self._sound((command.level or "low").upper())
        if command.kind is OrderKind.READ:
            self._send_again(command.read_from_ms or 0, command.read_to_ms or 0)
        if command.kind is OrderKind.TOKEN and command.token is not None:
            _, events = self.enter_token(command.token, now_ms, carrier=Carrier.REMOTE)
        return events

    def _send_again(self, begins_ms: int, ends_ms: int) -> None:
        """Line up stored readings of a span, ends included, but for those that are about to be sent anyway."""
        waiting = {stored.read_at_ms for stored in (*self._readings, *self._asked_again)}
        self._asked_again.extend(
            stored
            for stored in self._profile
            if begins_ms <= stored.read_at_ms <= ends_ms and stored.read_at_ms not in waiting
        )

    def _can_move_to(self, relay: Relay | None) -> bool:
        if relay is Relay.LIMITED and not self.settings.can_limit:
            return False
        return relay is self.relay or not self.relay_stuck

    def _credit_of(self, result: TokenResult) -> int | None:
        """Return what a token adds to the copy of the balance; energy is worth what the meter counts down by."""
        rate = self.settings.fallback_rate_milli_per_kwh
        if result.energy_wh is not None and rate is not None:
            return result.energy_wh * rate // _MILLI_MINOR_WH
        return result.credit_minor

    def _flowing_wh(self, energy_wh: int, now_ms: int) -> int:
        """Return what of the offered energy flows in the interval that ends now."""
        limit_w = self._flowing_w_max()
        if limit_w is None:
            return energy_wh
        begins_ms = self._interval_ends_ms
        interval_ms = self.settings.interval_s * 1000 if begins_ms is None else max(0, now_ms - begins_ms)
        return min(energy_wh, limit_w * interval_ms // _MS_PER_HOUR)

    def _flowing_load(self, power_w: int | None, current_ma: int | None) -> tuple[int | None, int | None]:
        """Return what of the offered power and current flows; what is not measured stays unknown."""
        limit_w = self._flowing_w_max()
        if limit_w == 0:
            return None if power_w is None else 0, None if current_ma is None else 0
        if limit_w is None or power_w is None or power_w <= limit_w:
            return power_w, current_ma
        return limit_w, None if current_ma is None else current_ma * limit_w // power_w

    def _flowing_w_max(self) -> int | None:
        """Return the most that the relay and a limit of power let flow, None for everything."""
        match self.relay:
            case Relay.ON:
                return self.power_limit_w
            case Relay.LIMITED:
                assert self.limit_w is not None, f"meter {self.serial}: a limited relay has its limit"
                return self.limit_w if self.power_limit_w is None else min(self.limit_w, self.power_limit_w)
            case Relay.OFF:
                return 0
            case _:
                assert_never(self.relay)

    def _move_relay(self, relay: Relay, now_ms: int) -> tuple[MeterEvent, ...]:
        """Move the relay unless it sticks; return the event of a switch that opened or closed."""
        if relay is self.relay or self.relay_stuck:
            return ()
        switched = Relay.OFF in (relay, self.relay)
        self.relay = relay
        if not switched:
            return ()
        self._seq += 1
        event = MeterEvent(
            serial=self.serial,
            seq=self._seq,
            at_ms=self.clock_ms(now_ms),
            code=SWITCH_OPEN if relay is Relay.OFF else SWITCH_CLOSED,
        )
        self._store_message(event)
        return (event,)

    def _reply(self, command: Command, result: ReplyResult, now_ms: int) -> CommandReply:
        self._seq += 1
        reply = CommandReply(
            serial=self.serial,
            seq=self._seq,
            at_ms=self.clock_ms(now_ms),
            order_id=command.order_id,
            epoch=command.epoch,
            kind=command.kind,
            result=result,
            relay=self.relay,
            threshold_minor=self.threshold_minor,
        )
        self._store_message(reply)
        return reply

    def _count_down(self, consumed_wh: int, now_ms: int) -> tuple[MeterEvent, ...]:
        rate = self.settings.fallback_rate_milli_per_kwh
        if rate is None or self.balance_minor is None:
            return ()
        charge_minor, self._uncharged = divmod(self._uncharged + consumed_wh * rate, _MILLI_MINOR_WH)
        self._set_balance(self.balance_minor - charge_minor)
        return self._end_supply_of_token(now_ms) if self.balance_minor <= 0 else ()

    def _end_supply_of_token(self, now_ms: int) -> tuple[MeterEvent, ...]:
        """Take away the supply that a token gave, if one did."""
        if self._before_token is None:
            return ()
        before, self._before_token = self._before_token, None
        return self._move_relay(before, now_ms)

    def _set_balance(self, balance_minor: int) -> None:
        rose = self.balance_minor is None or balance_minor > self.balance_minor
        self.balance_minor = balance_minor
        ends_above_minor = self._alarm_ends_above_minor
        if rose and (ends_above_minor is None or balance_minor > ends_above_minor):
            self._silence()
        self._alarm_if_low()

    def _set_threshold(self, threshold_minor: int | None) -> None:
        if threshold_minor == self.threshold_minor:
            return
        self.threshold_minor = threshold_minor
        self._silence()
        self._alarm_if_low()

    def _alarm_if_low(self) -> None:
        """Alarm by the meter's own knowledge, once for each fall to the threshold."""
        if self._low and self._alarm_text is None:
            self._sound("LOW")

    @property
    def _low(self) -> bool:
        if self.balance_minor is None or self.threshold_minor is None:
            return False
        return self.balance_minor <= self.threshold_minor

    def _sound(self, level: str) -> None:
        """Show and sound an alarm, to end when the balance rises above the threshold, or above this balance."""
        self._alarm_text = level
        self._alarm_ends_above_minor = self.balance_minor if self.threshold_minor is None else self.threshold_minor
        self.buzzer_on = True

    def _silence(self) -> None:
        self._alarm_text = None
        self.buzzer_on = False

    def _store_reading(self, stored: StoredReading) -> None:
        self._profile.append(stored)
        if len(self._readings) >= self.settings.stored_readings_max:
            self._readings.popleft()
            self.dropped_count += 1
        self._readings.append(stored)

    def _store_entry(self, result: TokenResult, digits: str, now_ms: int) -> None:
        self._seq += 1
        self._keep_entry(
            TokenEntered(
                serial=self.serial,
                seq=self._seq,
                at_ms=self.clock_ms(now_ms),
                tid=result.tid,
                last_digits=digits[-4:],
                result=result.result,
            )
        )

    def _keep_entry(self, entry: TokenEntered | CouponEntered) -> None:
        if len(self._entries) >= STORED_MESSAGES_MAX:
            self._entries.popleft()
            self.dropped_count += 1
        self._entries.append(entry)

    def _store_message(self, message: MeterEvent | CommandReply) -> None:
        if len(self._messages) >= STORED_MESSAGES_MAX:
            self._messages.popleft()
            self.dropped_count += 1
        self._messages.append(message)


def _oldest_run(unsent: Iterable[StoredReading]) -> list[StoredReading]:
    """Take the longest equally spaced beginning of what is unsent that a block can carry."""
    run: list[StoredReading] = []
    step_ms = 0
    for stored in unsent:
        if len(run) == BLOCK_INTERVALS_MAX:
            break
        if run:
            spacing_ms = stored.read_at_ms - run[-1].read_at_ms
            step_ms = step_ms or spacing_ms
            fits = 0 < spacing_ms <= BLOCK_STEP_S_MAX * 1000 and spacing_ms % 1000 == 0
            if spacing_ms != step_ms or not fits:
                break
        run.append(stored)
    return run


def _money(amount_minor: int | None) -> str:
    if amount_minor is None:
        return "--"
    whole, rest = divmod(abs(amount_minor), 100)
    return f"{'-' if amount_minor < 0 else ''}{whole}.{rest:02d}"
