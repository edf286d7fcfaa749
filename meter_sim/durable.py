"""A simulated meter that outlives a failure of its supply: what it has to keep, written as one image.

Stage: in the place of `SimulatedMeter` where a test lets the power fail. Everything that a token, a command or an
interval changes goes to the memory in one write before anybody sees it, so that a token's credit, its TID and what is
told of it are all there after a restart, or none. Never: a connection, a clock, a file.
"""

from typing import Any, Self

import msgspec

from meter_sim.memory import MeterMemory
from meter_sim.meter import MeterSettings, SimulatedMeter, StoredReading
from meter_sim.token_reader import Carrier, ReaderMemory, ReaderSettings, TokenEntry, TokenReader
from protocols.native import (
    Command,
    CommandReply,
    CouponEntered,
    MeterEvent,
    OrderKind,
    Readings,
    Relay,
    TokenEntered,
    Uplink,
    decode_command,
    decode_uplink,
    encode_command,
    encode_coupon_entered,
    encode_event,
    encode_reply,
    encode_token_entered,
)
from protocols.topics import event_topic

# What is kept as it stands; the rest of the image has a form of its own.
_PLAIN = ("register_wh", "limit_w", "power_limit_w", "balance_minor", "threshold_minor", "_uncharged", "_seq")


class DurableMeter(SimulatedMeter):
    """A meter with a memory.

    Invariants: after every call that came back the memory holds the meter as it is; a call that raised PowerFailed
    leaves in the memory what was before it or what is after it, and this object is not to be used again.
    """

    def __init__(
        self,
        *,
        serial: str,
        token_reader: TokenReader,
        memory: MeterMemory,
        settings: MeterSettings | None = None,
        register_wh: int = 0,
        relay: Relay = Relay.ON,
        balance_minor: int | None = None,
        threshold_minor: int | None = None,
    ) -> None:
        super().__init__(
            serial=serial,
            token_reader=token_reader,
            settings=settings,
            register_wh=register_wh,
            relay=relay,
            balance_minor=balance_minor,
            threshold_minor=threshold_minor,
        )
        self.reader = token_reader
        self.memory = memory
        self._save()

    @classmethod
    def restarted(
        cls,
        memory: MeterMemory,
        *,
        settings: MeterSettings | None = None,
        reader_settings: ReaderSettings | None = None,
    ) -> Self:
        """Return the meter as its memory has it, after its supply came back."""
        image = memory.read()
        assert image is not None, "a meter was written to this memory"
        kept = msgspec.json.decode(image)
        reader = TokenReader(ReaderMemory.from_json(kept["reader"]), settings=reader_settings)
        meter = cls(
            serial=kept["serial"],
            token_reader=reader,
            memory=MeterMemory(),
            settings=settings,
            relay=Relay(kept["relay"]),
        )
        meter._load(kept)
        meter.memory = memory
        return meter

    def advance(self, now_ms: int, energy_wh: int, **channels: int | None) -> tuple[MeterEvent, ...]:
        """End an interval, and keep it."""
        said = super().advance(now_ms, energy_wh, **channels)
        self._save()
        return said

    def obey(self, command: Command, now_ms: int) -> tuple[MeterEvent | CommandReply, ...]:
        """Execute or refuse a command, and keep that."""
        said = super().obey(command, now_ms)
        self._save()
        return said

    def enter_token(
        self, digits: str, now_ms: int, *, carrier: Carrier = Carrier.KEYPAD
    ) -> tuple[TokenEntry, tuple[MeterEvent, ...]]:
        """Read a token; what it changed is kept as a whole before anybody is told.

        Raises: PowerFailed.
        """
        result, events = super().enter_token(digits, now_ms, carrier=carrier)
        assert isinstance(result, TokenEntry), "this meter's reader is a TokenReader"
        self._save()
        return result, events

    def confirm(self, uplink: Uplink) -> None:
        """Forget what the head-end has acknowledged."""
        super().confirm(uplink)
        self._save()

    def _save(self) -> None:
        image: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}  # Numbers or nothing.
        image |= {
            "serial": self.serial,
            "relay": self.relay.value,
            "before_token": None if self._before_token is None else self._before_token.value,
            "interval_ends_ms": self._interval_ends_ms,
            "executed": [encode_command(command).decode() for command in self._executed.values()],
            "messages": [_said(message).decode() for message in self._messages],
            "entries": [_said(entry).decode() for entry in self._entries],
            "readings": [msgspec.to_builtins(reading) for reading in self._readings],
            "profile": [msgspec.to_builtins(reading) for reading in self._profile],
            "reader": self.reader.kept.to_json(),
        }
        self.memory.write(msgspec.json.encode(image))

    def _load(self, kept: dict[str, Any]) -> None:  # As written by `_save`.
        for name in _PLAIN:
            setattr(self, name, kept[name])
        self._before_token = None if kept["before_token"] is None else Relay(kept["before_token"])
        self._interval_ends_ms = kept["interval_ends_ms"]
        executed = [decode_command(command.encode()) for command in kept["executed"]]
        self._executed: dict[OrderKind, Command] = {command.kind: command for command in executed}
        for said in map(self._heard, kept["messages"]):
            assert isinstance(said, MeterEvent | CommandReply), "messages are events and replies"
            self._messages.append(said)
        for said in map(self._heard, kept["entries"]):
            assert isinstance(said, TokenEntered | CouponEntered), "entries are tokens and coupons"
            self._entries.append(said)
        self._readings.extend(msgspec.convert(reading, StoredReading) for reading in kept["readings"])
        self._profile.extend(msgspec.convert(reading, StoredReading) for reading in kept["profile"])
        self._alarm_if_low()

    def _heard(self, payload: str) -> Uplink:
        return decode_uplink(event_topic(self.serial), payload.encode())


def _said(uplink: Uplink) -> bytes:
    assert not isinstance(uplink, Readings), "readings are kept one by one"
    if isinstance(uplink, MeterEvent):
        return encode_event(uplink)
    if isinstance(uplink, CouponEntered):
        return encode_coupon_entered(uplink)
    return encode_reply(uplink) if isinstance(uplink, CommandReply) else encode_token_entered(uplink)
