"""The native JSON payload, version 1: what our own meters publish and obey.

Decode stage of the flow: a topic and its payload enter, columns of readings, an event or a reply leave;
commands go the other way. Every number is an integer in the unit its name ends with; a register or balance is
never a float. Unknown fields are skipped, so that newer meters keep working; of a repeated field the last one
counts. Integrity of the bytes is the transport's concern: nothing here carries a checksum. Never reads a
clock or a socket.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from protocols.errors import Malformed
from protocols.keypad import CouponEntered as CouponEntered
from protocols.keypad import EntryResult as EntryResult
from protocols.keypad import TokenEntered as TokenEntered
from protocols.topics import split_topic

PAYLOAD_BYTES_MAX: Final = 64_000  # 96 intervals of 7 channels of at most 20 digits are 14 kB; four times that.
BLOCK_INTERVALS_MAX: Final = 96  # A day of quarter hours.
BLOCK_STEP_S_MAX: Final = 86_400  # One reading a day is the slowest profile a prepaid meter keeps.
EVENTS_MAX: Final = 64  # Event ids are 1 to 302; more than 64 different ones never coincide in one message.
TIME_MS_MAX: Final = 253_402_300_799_999  # The last millisecond of year 9999, the end of Python's calendar.
INT64_MAX: Final = 2**63 - 1
TID_MAX: Final = 2**24 - 1
LIMIT_W_MAX: Final = 100_000_000  # The largest sanctioned load of an account: 100 MW.
_JSON_FIRST_BYTE_MAX: Final = b"\x7f"  # JSON is UTF-8 and begins with ASCII; the compact form does not.
_ERROR_SHOWN_MAX: Final = 200  # A parser's complaint may quote the payload; a message shows a line's worth.


class Relay(Enum):
    """What the load switch lets flow: ON everything, LIMITED a small load, OFF nothing."""

    ON = "on"
    LIMITED = "limited"
    OFF = "off"


class OrderKind(Enum):
    """What a command asks of a meter; epochs count separately for each kind."""

    SUPPLY = "supply"
    ALARM = "alarm"
    THRESHOLD = "threshold"
    READ = "read"
    TOKEN = "token"


class ReplyResult(Enum):
    """What became of a command at the meter.

    REFUSED may be otherwise at the next try; IMPOSSIBLE is what a meter of this make, as it is wired, can never do.
    """

    DONE = "done"
    STALE = "stale"
    EXPIRED = "expired"
    REFUSED = "refused"
    IMPOSSIBLE = "impossible"


# A struct, since every reading makes one: 0.4 us instead of the 2.3 of a frozen dataclass (2026-11-22).
class Readings(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The readings of one message as columns.

    Invariants: every list has the same length, at least one, one entry per reading; `read_at_ms` ascends and
    is the UTC end of each interval; `import_wh` is the cumulative register. `relay`, `credit_minor`, `events`
    and `clock_ms` hold for the moment of sending.
    """

    serial: str
    seq: int | None
    clock_ms: int | None
    read_at_ms: list[int]
    import_wh: list[int]
    export_wh: list[int | None]
    voltage_mv: list[int | None]
    current_ma: list[int | None]
    power_w: list[int | None]
    pf_milli: list[int | None]
    freq_mhz: list[int | None]
    relay: Relay | None
    credit_minor: int | None
    events: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterEvent:
    """Something a meter noticed.

    Invariants: `code` is an event id of the IS 15959 list or the vendor's own above it.
    """

    serial: str
    seq: int | None
    at_ms: int
    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandReply:
    """A meter's answer to one command.

    Invariants: repeats `order_id`, `epoch` and `kind` of the command; `relay` and `threshold_minor` are what
    the meter has after it.
    """

    serial: str
    seq: int | None
    at_ms: int
    order_id: int
    epoch: int
    kind: OrderKind
    result: ReplyResult
    relay: Relay | None
    threshold_minor: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One order to a meter.

    Invariants: SUPPLY names a relay position; ALARM names a level; a THRESHOLD without `threshold_minor`
    clears the stored one. `limit_w` is given exactly with relay LIMITED. READ alone names the span, ends included,
    whose stored readings are to be sent again. TOKEN alone carries a token's 20 digits, which `repr` hides.
    `balance_minor` is the account's truth when the command was sent.
    """

    order_id: int
    epoch: int
    kind: OrderKind
    relay: Relay | None
    level: str | None
    balance_minor: int | None
    threshold_minor: int | None
    expires_at_ms: int
    limit_w: int | None = None
    read_from_ms: int | None = None
    read_to_ms: int | None = None
    token: str | None = field(default=None, repr=False)


Uplink = Readings | MeterEvent | CommandReply | TokenEntered | CouponEntered

_Serial = Annotated[str, Meta(min_length=1, max_length=32)]
_TimeMs = Annotated[int, Meta(ge=0, le=TIME_MS_MAX)]
_Count = Annotated[int, Meta(ge=0, le=INT64_MAX)]
_Register = Annotated[int, Meta(ge=0, le=INT64_MAX)]
# A meter that sends a register below 0 is faulty, its frame is not: validation names it. No 64-bit sum overflows.
_ImportRegister = Annotated[int, Meta(ge=-(2**62), le=INT64_MAX)]
_Minor = Annotated[int, Meta(ge=-(2**63), le=INT64_MAX)]
# Measured channels are stored in 32 bits: two million volts or amperes are beyond any meter.
_Measured = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
_EventCode = Annotated[int, Meta(ge=0, le=65_535)]
_Events = Annotated[list[_EventCode], Meta(max_length=EVENTS_MAX)]
_Level = Annotated[str, Meta(min_length=1, max_length=32)]
_Limit = Annotated[int, Meta(ge=1, le=LIMIT_W_MAX)]
_Tid = Annotated[int, Meta(ge=0, le=TID_MAX)]
_LastDigits = Annotated[str, Meta(pattern="^[0-9]{4}$")]
_CouponPin = Annotated[str, Meta(pattern="^[0-9]{16}$")]
_TokenDigits = Annotated[str, Meta(pattern="^[0-9]{20}$")]
_RegisterList = Annotated[list[_Register | None], Meta(min_length=1, max_length=BLOCK_INTERVALS_MAX)]
_ImportList = Annotated[list[_ImportRegister | None], Meta(min_length=1, max_length=BLOCK_INTERVALS_MAX)]
_MeasuredList = Annotated[list[_Measured | None], Meta(max_length=BLOCK_INTERVALS_MAX)]


class _Block(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    at: _TimeMs
    step_s: Annotated[int, Meta(ge=1, le=BLOCK_STEP_S_MAX)]
    import_wh: _ImportList
    export_wh: _RegisterList | None = None
    voltage_mv: _MeasuredList | None = None
    current_ma: _MeasuredList | None = None
    power_w: _MeasuredList | None = None
    pf_milli: _MeasuredList | None = None
    freq_mhz: _MeasuredList | None = None


class _ReadingPayload(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    v: Literal[1]
    meter: _Serial
    seq: _Count | None = None
    clock: _TimeMs | None = None
    at: _TimeMs | None = None
    import_wh: _ImportRegister | None = None
    export_wh: _Register | None = None
    voltage_mv: _Measured | None = None
    current_ma: _Measured | None = None
    power_w: _Measured | None = None
    pf_milli: _Measured | None = None
    freq_mhz: _Measured | None = None
    relay: Relay | None = None
    credit_minor: _Minor | None = None
    events: _Events | None = None
    block: _Block | None = None


class _Event(msgspec.Struct, frozen=True, gc=False):
    code: _EventCode


class _Reply(msgspec.Struct, frozen=True, gc=False):
    order: _Count
    epoch: _Count
    kind: OrderKind
    result: ReplyResult
    relay: Relay | None = None
    threshold_minor: _Minor | None = None


class _Token(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    last: _LastDigits
    result: EntryResult
    tid: _Tid | None = None


class _Coupon(msgspec.Struct, frozen=True, gc=False):
    pin: _CouponPin


class _EventPayload(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    v: Literal[1]
    meter: _Serial
    at: _TimeMs
    seq: _Count | None = None
    event: _Event | None = None
    reply: _Reply | None = None
    token: _Token | None = None
    coupon: _Coupon | None = None


class _CommandPayload(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    v: Literal[1]
    order: _Count
    epoch: _Count
    kind: OrderKind
    expires: _TimeMs
    relay: Relay | None = None
    level: _Level | None = None
    limit_w: _Limit | None = None
    balance_minor: _Minor | None = None
    threshold_minor: _Minor | None = None
    read_from: _TimeMs | None = msgspec.field(default=None, name="from")
    read_to: _TimeMs | None = msgspec.field(default=None, name="to")
    token: _TokenDigits | None = None


_READING_DECODER: Final = msgspec.json.Decoder(_ReadingPayload)
_EVENT_DECODER: Final = msgspec.json.Decoder(_EventPayload)
_COMMAND_DECODER: Final = msgspec.json.Decoder(_CommandPayload)
_ENCODER: Final = msgspec.json.Encoder()

_Payload = TypeVar("_Payload")


def decode_uplink(topic: str, payload: bytes) -> Uplink:
    """Decode what a meter published, in JSON or in the compact form.

    Raises: Malformed when topic, size, JSON, a range or the payload's serial is wrong; IntegrityFailed when the
    check value of a compact frame is.
    """
    serial, level = split_topic(topic)
    if payload[:1] > _JSON_FIRST_BYTE_MAX:
        # Imported when the first one comes: the compact form is told in the facts of this module.
        from protocols.compact import decode_compact

        return decode_compact(serial, level, payload)
    if level == "rd":
        return _readings(serial, _parsed(_READING_DECODER, payload, topic))
    if level == "ev":
        return _event(serial, _parsed(_EVENT_DECODER, payload, topic))
    raise Malformed(f"topic: expected rd or ev from a meter, got {level}, meter {serial}")


def encode_readings(readings: Readings) -> bytes:
    """Encode readings: one as a plain reading, several as a block.

    Raises: Malformed if the columns differ in length, or several readings are not equally spaced by whole
    seconds, or exceed a block. Ranges are the caller's concern.
    """
    _require_equal_columns(readings)
    if len(readings.read_at_ms) > 1:
        return _ENCODER.encode(_block_payload(readings))
    return _ENCODER.encode(
        _ReadingPayload(
            v=1,
            meter=readings.serial,
            seq=readings.seq,
            clock=readings.clock_ms,
            at=readings.read_at_ms[0],
            import_wh=readings.import_wh[0],
            export_wh=readings.export_wh[0],
            voltage_mv=readings.voltage_mv[0],
            current_ma=readings.current_ma[0],
            power_w=readings.power_w[0],
            pf_milli=readings.pf_milli[0],
            freq_mhz=readings.freq_mhz[0],
            relay=readings.relay,
            credit_minor=readings.credit_minor,
            events=list(readings.events) or None,
        )
    )


def encode_event(event: MeterEvent) -> bytes:
    """Encode an event for the meter's event topic."""
    return _ENCODER.encode(
        _EventPayload(v=1, meter=event.serial, seq=event.seq, at=event.at_ms, event=_Event(code=event.code))
    )


def encode_reply(reply: CommandReply) -> bytes:
    """Encode a reply for the meter's event topic."""
    body = _Reply(
        order=reply.order_id,
        epoch=reply.epoch,
        kind=reply.kind,
        result=reply.result,
        relay=reply.relay,
        threshold_minor=reply.threshold_minor,
    )
    return _ENCODER.encode(_EventPayload(v=1, meter=reply.serial, seq=reply.seq, at=reply.at_ms, reply=body))


def encode_token_entered(entered: TokenEntered) -> bytes:
    """Encode what became of a token for the meter's event topic."""
    body = _Token(last=entered.last_digits, result=entered.result, tid=entered.tid)
    return _ENCODER.encode(_EventPayload(v=1, meter=entered.serial, seq=entered.seq, at=entered.at_ms, token=body))


def encode_coupon_entered(entered: CouponEntered) -> bytes:
    """Encode a coupon's PIN for the meter's event topic."""
    body = _Coupon(pin=entered.pin)
    return _ENCODER.encode(_EventPayload(v=1, meter=entered.serial, seq=entered.seq, at=entered.at_ms, coupon=body))


def encode_command(command: Command) -> bytes:
    """Encode a command for the meter's command topic.

    Raises: Malformed if the kind or the relay lacks what it needs. Ranges are the caller's concern.
    """
    return _ENCODER.encode(
        _CommandPayload(
            v=1,
            order=command.order_id,
            epoch=command.epoch,
            kind=command.kind,
            expires=command.expires_at_ms,
            relay=command.relay,
            limit_w=command.limit_w,
            level=command.level,
            balance_minor=command.balance_minor,
            threshold_minor=_complete(command).threshold_minor,
            read_from=command.read_from_ms,
            read_to=command.read_to_ms,
            token=command.token,
        )
    )


def decode_command(payload: bytes) -> Command:
    """Decode what arrived on a meter's command topic.

    Raises: Malformed when size, JSON, a range, or what the kind or the relay needs is wrong.
    """
    frame = _parsed(_COMMAND_DECODER, payload, "command")
    return _complete(
        Command(
            order_id=frame.order,
            epoch=frame.epoch,
            kind=frame.kind,
            relay=frame.relay,
            level=frame.level,
            balance_minor=frame.balance_minor,
            threshold_minor=frame.threshold_minor,
            expires_at_ms=frame.expires,
            limit_w=frame.limit_w,
            read_from_ms=frame.read_from,
            read_to_ms=frame.read_to,
            token=frame.token,
        )
    )


def _parsed(decoder: "msgspec.json.Decoder[_Payload]", payload: bytes, whose: str) -> _Payload:
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise Malformed(f"payload: expected at most {PAYLOAD_BYTES_MAX} bytes, got {len(payload)}, {whose}")
    try:
        return decoder.decode(payload)
    except (ValueError, RecursionError) as error:
        # msgspec's own errors and bad UTF-8 are ValueErrors; deep nesting in an unknown field ends in
        # recursion.
        complaint = str(error)[:_ERROR_SHOWN_MAX]
        raise Malformed(f"payload: expected version 1 JSON, got: {complaint}, {whose}") from error


def _require_same_serial(expected: str, got: str) -> None:
    if got != expected:
        raise Malformed(f"serial in payload: expected {expected}, got {got!r}, meter {expected}")


def _readings(serial: str, frame: _ReadingPayload) -> Readings:
    _require_same_serial(serial, frame.meter)
    if frame.block is not None:
        if frame.at is not None or frame.import_wh is not None:
            raise Malformed(f"reading: expected a block or one reading, got both, meter {frame.meter}")
        return _from_block(frame, frame.block)
    if frame.at is None or frame.import_wh is None:
        missing = "at" if frame.at is None else "import_wh"
        raise Malformed(f"reading: expected at and import_wh, got no {missing}, meter {frame.meter}")
    return Readings(
        serial=frame.meter,
        seq=frame.seq,
        clock_ms=frame.clock,
        read_at_ms=[frame.at],
        import_wh=[frame.import_wh],
        export_wh=[frame.export_wh],
        voltage_mv=[frame.voltage_mv],
        current_ma=[frame.current_ma],
        power_w=[frame.power_w],
        pf_milli=[frame.pf_milli],
        freq_mhz=[frame.freq_mhz],
        relay=frame.relay,
        credit_minor=frame.credit_minor,
        events=tuple(frame.events) if frame.events else (),
    )


def _from_block(frame: _ReadingPayload, block: _Block) -> Readings:
    count = len(block.import_wh)
    step_ms = block.step_s * 1000
    last_ms = block.at + (count - 1) * step_ms
    if last_ms > TIME_MS_MAX:
        raise Malformed(f"block end: expected at most {TIME_MS_MAX}, got {last_ms}, meter {frame.meter}")
    import_wh = [wh for wh in block.import_wh if wh is not None]
    if not import_wh:
        raise Malformed(f"block: expected a register in some interval, got only null, meter {frame.meter}")
    read_at_ms = list(range(block.at, last_ms + 1, step_ms))
    kept: list[int] | None = None
    if len(import_wh) != count:
        kept = [index for index, wh in enumerate(block.import_wh) if wh is not None]
        read_at_ms = [read_at_ms[index] for index in kept]
    return Readings(
        serial=frame.meter,
        seq=frame.seq,
        clock_ms=frame.clock,
        read_at_ms=read_at_ms,
        import_wh=import_wh,
        export_wh=_column("export_wh", block.export_wh, count, kept, frame.meter),
        voltage_mv=_column("voltage_mv", block.voltage_mv, count, kept, frame.meter),
        current_ma=_column("current_ma", block.current_ma, count, kept, frame.meter),
        power_w=_column("power_w", block.power_w, count, kept, frame.meter),
        pf_milli=_column("pf_milli", block.pf_milli, count, kept, frame.meter),
        freq_mhz=_column("freq_mhz", block.freq_mhz, count, kept, frame.meter),
        relay=frame.relay,
        credit_minor=frame.credit_minor,
        events=tuple(frame.events) if frame.events else (),
    )


def _column(
    name: str, values: list[int | None] | None, count: int, kept: list[int] | None, serial: str
) -> list[int | None]:
    if values is None:
        return [None] * (count if kept is None else len(kept))
    if len(values) != count:
        raise Malformed(f"{name}: expected {count} intervals, got {len(values)}, meter {serial}")
    return values if kept is None else [values[index] for index in kept]


def _event(serial: str, frame: _EventPayload) -> MeterEvent | CommandReply | TokenEntered | CouponEntered:
    _require_same_serial(serial, frame.meter)
    match frame.event, frame.reply, frame.token, frame.coupon:
        case _Event() as event, None, None, None:
            return MeterEvent(serial=frame.meter, seq=frame.seq, at_ms=frame.at, code=event.code)
        case None, _Reply() as reply, None, None:
            return CommandReply(
                serial=frame.meter,
                seq=frame.seq,
                at_ms=frame.at,
                order_id=reply.order,
                epoch=reply.epoch,
                kind=reply.kind,
                result=reply.result,
                relay=reply.relay,
                threshold_minor=reply.threshold_minor,
            )
        case None, None, _Token() as token, None:
            return TokenEntered(
                serial=frame.meter,
                seq=frame.seq,
                at_ms=frame.at,
                tid=token.tid,
                last_digits=token.last,
                result=token.result,
            )
        case None, None, None, _Coupon() as coupon:
            return CouponEntered(serial=frame.meter, seq=frame.seq, at_ms=frame.at, pin=coupon.pin)
    given = sum(part is not None for part in (frame.event, frame.reply, frame.token, frame.coupon))
    raise Malformed(f"event payload: expected one of event, reply, token, coupon; got {given}, meter {frame.meter}")


def _complete(command: Command) -> Command:
    if command.kind is OrderKind.SUPPLY and command.relay is None:
        raise Malformed(f"supply command: expected a relay position, got none, order {command.order_id}")
    if command.kind is OrderKind.ALARM and command.level is None:
        raise Malformed(f"alarm command: expected a level, got none, order {command.order_id}")
    if (command.relay is Relay.LIMITED) != (command.limit_w is not None):
        got = f"{'no' if command.limit_w is None else 'a'} limit_w"
        raise Malformed(f"command: expected limit_w with relay limited alone, got {got}, order {command.order_id}")
    begins_ms, ends_ms = command.read_from_ms, command.read_to_ms
    if command.kind is OrderKind.READ and (begins_ms is None or ends_ms is None or begins_ms > ends_ms):
        raise Malformed(
            f"read command: expected from up to to, got {begins_ms} and {ends_ms}, order {command.order_id}"
        )
    if command.kind is not OrderKind.READ and (begins_ms, ends_ms) != (None, None):
        raise Malformed(f"command: expected from and to with kind read alone, order {command.order_id}")
    if (command.kind is OrderKind.TOKEN) != (command.token is not None):
        raise Malformed(f"command: expected a token with kind token and no other, order {command.order_id}")
    return command


def _require_equal_columns(readings: Readings) -> None:
    count = len(readings.read_at_ms)
    lengths = [
        len(column)
        for column in (
            readings.import_wh,
            readings.export_wh,
            readings.voltage_mv,
            readings.current_ma,
            readings.power_w,
            readings.pf_milli,
            readings.freq_mhz,
        )
    ]
    if count == 0 or any(length != count for length in lengths):
        raise Malformed(f"columns: expected {max(count, 1)} entries each, got {lengths}, meter {readings.serial}")


def _block_payload(readings: Readings) -> _ReadingPayload:
    times = readings.read_at_ms
    step_ms = times[1] - times[0]
    expected = list(range(times[0], times[0] + len(times) * step_ms, step_ms)) if step_ms > 0 else []
    if step_ms % 1000 or times != expected:
        raise Malformed(f"block: expected equal steps of whole seconds, got others, meter {readings.serial}")
    if len(times) > BLOCK_INTERVALS_MAX or step_ms > BLOCK_STEP_S_MAX * 1000:
        raise Malformed(
            f"block: expected at most {BLOCK_INTERVALS_MAX} intervals of at most {BLOCK_STEP_S_MAX} s, "
            f"got {len(times)} of {step_ms // 1000} s, meter {readings.serial}"
        )
    block = _Block(
        at=times[0],
        step_s=step_ms // 1000,
        import_wh=list(readings.import_wh),
        export_wh=_unless_empty(readings.export_wh),
        voltage_mv=_unless_empty(readings.voltage_mv),
        current_ma=_unless_empty(readings.current_ma),
        power_w=_unless_empty(readings.power_w),
        pf_milli=_unless_empty(readings.pf_milli),
        freq_mhz=_unless_empty(readings.freq_mhz),
    )
    return _ReadingPayload(
        v=1,
        meter=readings.serial,
        seq=readings.seq,
        clock=readings.clock_ms,
        relay=readings.relay,
        credit_minor=readings.credit_minor,
        events=list(readings.events) or None,
        block=block,
    )


def _unless_empty(column: list[int | None]) -> list[int | None] | None:
    return None if all(value is None for value in column) else column
