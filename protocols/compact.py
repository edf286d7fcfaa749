"""The compact payload, version 1: the native facts in few bytes, for modems that pay by the byte.

Decode stage of the flow, on the same topics as the native JSON and with the same facts: `native.decode_uplink`
hands over what begins with a byte that no JSON text, being UTF-8, can begin with. A frame is

    A1 kind fields... CRC

where CRC is CRC-16/IBM-3740, high byte first, over the serial of the topic and the frame before it: so the
serial is covered and not sent. Numbers are LEB128 varints; signed ones are zigzag first. A column begins with
its first value and goes on with differences to the last value that was there; each entry is 0 where the value
is missing, else the zigzag number plus 1. Layout: docs/native-protocol.md. Never reads a clock or a socket.
Source of the check value and polynomial: the catalogue of parametrised CRC algorithms, CRC-16/IBM-3740.
"""

from binascii import crc_hqx
from itertools import pairwise
from math import gcd
from typing import Final

from protocols.errors import IntegrityFailed, Malformed
from protocols.native import (
    BLOCK_INTERVALS_MAX,
    BLOCK_STEP_S_MAX,
    EVENTS_MAX,
    INT64_MAX,
    PAYLOAD_BYTES_MAX,
    TID_MAX,
    TIME_MS_MAX,
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

FIRST_BYTE: Final = 0xA1  # 80 to BF begin no UTF-8 text; the low four bits are the version.
_CRC_BYTES: Final = 2
_CRC_START: Final = 0xFFFF
_VARINT_BITS_MAX: Final = 70  # Ten bytes hold the 65 bits of a zigzag 64-bit number plus 1.

_READINGS, _EVENT, _REPLY, _TOKEN, _COUPON = 1, 2, 3, 4, 5
# Flags of readings; the channels follow in the order of _CHANNELS.
_HAS_SEQ, _HAS_CLOCK, _HAS_RELAY, _HAS_CREDIT, _HAS_EVENTS, _FIRST_CHANNEL = 1, 2, 4, 8, 16, 32
_CHANNELS: Final = ("export_wh", "voltage_mv", "current_ma", "power_w", "pf_milli", "freq_mhz")
_FLAGS_MAX: Final = _FIRST_CHANNEL << len(_CHANNELS)
_RELAYS: Final = (Relay.ON, Relay.LIMITED, Relay.OFF)
_ORDER_KINDS: Final = (OrderKind.SUPPLY, OrderKind.ALARM, OrderKind.THRESHOLD, OrderKind.READ, OrderKind.TOKEN)
_RESULTS: Final = (
    ReplyResult.DONE,
    ReplyResult.STALE,
    ReplyResult.EXPIRED,
    ReplyResult.REFUSED,
    ReplyResult.IMPOSSIBLE,
)
# In the order of the interface's page; new ones go to the end.
_ENTRY_RESULTS: Final = tuple(EntryResult)
# Flags of replies, and of tokens.
_REPLY_RELAY, _REPLY_THRESHOLD = 2, 4
_TOKEN_TID = 2
_LAST_DIGITS_MAX: Final = 9_999
_PIN_MAX: Final = 10**16 - 1
_INT32: Final = (-(2**31), 2**31 - 1)
_INT64: Final = (-(2**63), INT64_MAX)
_REGISTER: Final = (0, INT64_MAX)
_IMPORT: Final = (-(2**62), INT64_MAX)  # As in JSON: a register below 0 is for validation to name.
_CODE_MAX: Final = 65_535


def decode_compact(serial: str, level: str, payload: bytes) -> Uplink:
    """Decode a compact frame that came on a meter's topic.

    Raises: Malformed when version, kind, length or a range is wrong; IntegrityFailed on a CRC mismatch.
    """
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise Malformed(f"frame: expected at most {PAYLOAD_BYTES_MAX} bytes, got {len(payload)}, meter {serial}")
    if len(payload) < 2 + _CRC_BYTES or payload[0] != FIRST_BYTE:
        raise Malformed(f"frame: expected version 1 and 4 bytes or more, got {payload[:4].hex()}, meter {serial}")
    if _crc(serial, payload[:-_CRC_BYTES]) != int.from_bytes(payload[-_CRC_BYTES:]):
        raise IntegrityFailed(f"frame: expected the CRC of its {len(payload)} bytes, got another, meter {serial}")
    fields = _Fields(payload[1:-_CRC_BYTES], serial)
    kind = fields.number("kind", 255)
    if (kind, level) == (_READINGS, "rd"):
        uplink: Uplink = _take_readings(fields)
    elif (kind, level) == (_EVENT, "ev"):
        uplink = _take_event(fields)
    elif (kind, level) == (_REPLY, "ev"):
        uplink = _take_reply(fields)
    elif (kind, level) == (_TOKEN, "ev"):
        uplink = _take_token(fields)
    elif (kind, level) == (_COUPON, "ev"):
        uplink = _take_coupon(fields)
    else:
        raise Malformed(f"kind: expected 1 on rd, 2 to 5 on ev, got {kind} on {level}, meter {serial}")
    fields.end()
    return uplink


def encode_compact(uplink: Uplink) -> bytes:
    """Encode readings, an event, a reply, a token or a coupon; readings may have gaps, as a block with null has.

    Raises: Malformed if readings are not whole seconds apart or exceed a block. Ranges are the caller's concern.
    """
    if isinstance(uplink, Readings):
        body = _put_readings(uplink)
    elif isinstance(uplink, MeterEvent):
        body = _put_head(_EVENT, uplink, 0) + _varint(uplink.code)
    elif isinstance(uplink, CommandReply):
        body = _put_reply(uplink)
    elif isinstance(uplink, TokenEntered):
        body = _put_token(uplink)
    else:
        body = _put_coupon(uplink)
    frame = bytes((FIRST_BYTE,)) + body
    return frame + _crc(uplink.serial, frame).to_bytes(_CRC_BYTES)


class _Fields:
    """The numbers of a frame, taken one by one; each is checked against its range."""

    __slots__ = ("_body", "_place", "serial")

    def __init__(self, body: bytes, serial: str) -> None:
        self._body = body
        self._place = 0
        self.serial = serial

    def number(self, name: str, most: int) -> int:
        """Take an unsigned number."""
        value = shift = 0
        while shift < _VARINT_BITS_MAX:
            if self._place >= len(self._body):
                raise Malformed(f"{name}: expected a number, got the end of the frame, meter {self.serial}")
            byte = self._body[self._place]
            self._place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return self._within(name, value, (0, most))
            shift += 7
        raise Malformed(f"{name}: expected a number of at most 10 bytes, got more, meter {self.serial}")

    def signed(self, name: str, bounds: tuple[int, int]) -> int:
        """Take a zigzag number."""
        return self._within(name, _unzigzag(self.number(name, 2**65)), bounds)

    def column(self, name: str, count: int, bounds: tuple[int, int]) -> list[int | None]:
        """Take a column of so many entries, each a value or nothing."""
        values: list[int | None] = []
        last, (least, most) = 0, bounds
        body, end = self._body, len(self._body)
        for _ in range(count):
            # Most differences are one byte; a call for each would double the time of a block.
            entry = body[self._place] if self._place < end else 0x80
            if entry < 0x80:
                self._place += 1
            else:
                entry = self.number(name, 2**66)
            if entry == 0:
                values.append(None)
                continue
            last += entry >> 1 if entry & 1 else -(entry >> 1)
            if not least <= last <= most:
                self._within(name, last, bounds)
            values.append(last)
        return values

    def end(self) -> None:
        """Check that nothing is left."""
        left = len(self._body) - self._place
        if left:
            raise Malformed(f"frame: expected its end, got {left} bytes more, meter {self.serial}")

    def _within(self, name: str, value: int, bounds: tuple[int, int]) -> int:
        if not bounds[0] <= value <= bounds[1]:
            raise Malformed(f"{name}: expected {bounds[0]} to {bounds[1]}, got {value}, meter {self.serial}")
        return value


def _take_readings(fields: _Fields) -> Readings:
    flags = fields.number("flags", _FLAGS_MAX - 1)
    seq = fields.number("seq", INT64_MAX) if flags & _HAS_SEQ else None
    first_ms = fields.number("at", TIME_MS_MAX)
    count = fields.number("intervals", BLOCK_INTERVALS_MAX)
    if count == 0:
        raise Malformed(f"intervals: expected 1 or more, got 0, meter {fields.serial}")
    step_ms = fields.number("step_s", BLOCK_STEP_S_MAX) * 1000 if count > 1 else 1
    if step_ms == 0:
        raise Malformed(f"step_s: expected 1 or more, got 0, meter {fields.serial}")
    last_ms = first_ms + (count - 1) * step_ms
    if last_ms > TIME_MS_MAX:
        raise Malformed(f"block end: expected at most {TIME_MS_MAX}, got {last_ms}, meter {fields.serial}")
    clock_ms: int | None = None
    if flags & _HAS_CLOCK:
        clock_ms = last_ms + fields.signed("clock", (-last_ms, TIME_MS_MAX - last_ms))
    relay = _RELAYS[fields.number("relay", len(_RELAYS) - 1)] if flags & _HAS_RELAY else None
    credit_minor = fields.signed("credit", _INT64) if flags & _HAS_CREDIT else None
    codes = fields.number("events", EVENTS_MAX) if flags & _HAS_EVENTS else 0
    events = tuple(fields.number("event", _CODE_MAX) for _ in range(codes))
    registers = fields.column("import_wh", count, _IMPORT)
    kept = [index for index, wh in enumerate(registers) if wh is not None]
    if not kept:
        raise Malformed(f"block: expected a register in some interval, got none, meter {fields.serial}")
    channels: dict[str, list[int | None]] = {}
    for number, name in enumerate(_CHANNELS):
        column: list[int | None] = [None] * count
        if flags & (_FIRST_CHANNEL << number):
            column = fields.column(name, count, _REGISTER if name == "export_wh" else _INT32)
        channels[name] = [column[index] for index in kept]
    return Readings(
        serial=fields.serial,
        seq=seq,
        clock_ms=clock_ms,
        read_at_ms=[first_ms + index * step_ms for index in kept],
        import_wh=[wh for wh in registers if wh is not None],
        relay=relay,
        credit_minor=credit_minor,
        events=events,
        **channels,
    )


def _take_event(fields: _Fields) -> MeterEvent:
    flags = fields.number("flags", _HAS_SEQ)
    return MeterEvent(
        serial=fields.serial,
        seq=fields.number("seq", INT64_MAX) if flags & _HAS_SEQ else None,
        at_ms=fields.number("at", TIME_MS_MAX),
        code=fields.number("event", _CODE_MAX),
    )


def _take_reply(fields: _Fields) -> CommandReply:
    flags = fields.number("flags", _HAS_SEQ | _REPLY_RELAY | _REPLY_THRESHOLD)
    return CommandReply(
        serial=fields.serial,
        seq=fields.number("seq", INT64_MAX) if flags & _HAS_SEQ else None,
        at_ms=fields.number("at", TIME_MS_MAX),
        order_id=fields.number("order", INT64_MAX),
        epoch=fields.number("epoch", INT64_MAX),
        kind=_ORDER_KINDS[fields.number("order kind", len(_ORDER_KINDS) - 1)],
        result=_RESULTS[fields.number("result", len(_RESULTS) - 1)],
        relay=_RELAYS[fields.number("relay", len(_RELAYS) - 1)] if flags & _REPLY_RELAY else None,
        threshold_minor=fields.signed("threshold", _INT64) if flags & _REPLY_THRESHOLD else None,
    )


def _take_token(fields: _Fields) -> TokenEntered:
    flags = fields.number("flags", _HAS_SEQ | _TOKEN_TID)
    return TokenEntered(
        serial=fields.serial,
        seq=fields.number("seq", INT64_MAX) if flags & _HAS_SEQ else None,
        at_ms=fields.number("at", TIME_MS_MAX),
        last_digits=f"{fields.number('last digits', _LAST_DIGITS_MAX):04d}",
        result=_ENTRY_RESULTS[fields.number("result", len(_ENTRY_RESULTS) - 1)],
        tid=fields.number("TID", TID_MAX) if flags & _TOKEN_TID else None,
    )


def _take_coupon(fields: _Fields) -> CouponEntered:
    flags = fields.number("flags", _HAS_SEQ)
    return CouponEntered(
        serial=fields.serial,
        seq=fields.number("seq", INT64_MAX) if flags & _HAS_SEQ else None,
        at_ms=fields.number("at", TIME_MS_MAX),
        pin=f"{fields.number('PIN', _PIN_MAX):016d}",
    )


def _put_readings(readings: Readings) -> bytes:
    times = readings.read_at_ms
    step_ms = _step_ms(times)
    if step_ms is None or (times[-1] - times[0]) // step_ms >= BLOCK_INTERVALS_MAX:
        raise Malformed(f"block: expected equal steps of whole seconds within a block, meter {readings.serial}")
    places = [(at_ms - times[0]) // step_ms for at_ms in times]
    count = places[-1] + 1
    columns = {name: getattr(readings, name) for name in _CHANNELS}
    flags = (
        _HAS_SEQ * (readings.seq is not None)
        | _HAS_CLOCK * (readings.clock_ms is not None)
        | _HAS_RELAY * (readings.relay is not None)
        | _HAS_CREDIT * (readings.credit_minor is not None)
        | _HAS_EVENTS * bool(readings.events)
    )
    for number, column in enumerate(columns.values()):
        flags |= (_FIRST_CHANNEL << number) * any(value is not None for value in column)
    parts = [_varint(_READINGS), _varint(flags)]
    if readings.seq is not None:
        parts.append(_varint(readings.seq))
    parts += [_varint(times[0]), _varint(count)]
    if count > 1:
        parts.append(_varint(step_ms // 1000))
    if readings.clock_ms is not None:
        parts.append(_varint(_zigzag(readings.clock_ms - times[-1])))
    if readings.relay is not None:
        parts.append(_varint(_RELAYS.index(readings.relay)))
    if readings.credit_minor is not None:
        parts.append(_varint(_zigzag(readings.credit_minor)))
    if readings.events:
        parts += [_varint(len(readings.events)), *(_varint(code) for code in readings.events)]
    parts.append(_column(readings.import_wh, places))
    for number, column in enumerate(columns.values()):
        if flags & (_FIRST_CHANNEL << number):
            parts.append(_column(column, places))
    return b"".join(parts)


def _step_ms(times: list[int]) -> int | None:
    """Return the longest step of whole seconds that all instants are multiples of; None if there is none."""
    if len(times) == 1:
        return 1000
    if any(at_ms >= following_ms for at_ms, following_ms in pairwise(times)):
        return None
    apart_ms = gcd(*(at_ms - times[0] for at_ms in times[1:]))
    # Of few readings with large gaps the common step may be longer than a block may have: then a part of it.
    for parts in range(1, BLOCK_INTERVALS_MAX):
        step_ms = apart_ms // parts
        if apart_ms % parts == 0 and step_ms % 1000 == 0 and step_ms <= BLOCK_STEP_S_MAX * 1000:
            return step_ms
    return None


def _put_reply(reply: CommandReply) -> bytes:
    flags = _REPLY_RELAY * (reply.relay is not None) | _REPLY_THRESHOLD * (reply.threshold_minor is not None)
    parts = [
        _put_head(_REPLY, reply, flags),
        _varint(reply.order_id),
        _varint(reply.epoch),
        _varint(_ORDER_KINDS.index(reply.kind)),
        _varint(_RESULTS.index(reply.result)),
    ]
    if reply.relay is not None:
        parts.append(_varint(_RELAYS.index(reply.relay)))
    if reply.threshold_minor is not None:
        parts.append(_varint(_zigzag(reply.threshold_minor)))
    return b"".join(parts)


def _put_token(entered: TokenEntered) -> bytes:
    head = _put_head(_TOKEN, entered, _TOKEN_TID * (entered.tid is not None))
    body = head + _varint(int(entered.last_digits)) + _varint(_ENTRY_RESULTS.index(entered.result))
    return body if entered.tid is None else body + _varint(entered.tid)


def _put_coupon(entered: CouponEntered) -> bytes:
    return _put_head(_COUPON, entered, 0) + _varint(int(entered.pin))


def _put_head(kind: int, uplink: MeterEvent | CommandReply | TokenEntered | CouponEntered, flags: int) -> bytes:
    if uplink.seq is None:
        return _varint(kind) + _varint(flags) + _varint(uplink.at_ms)
    return _varint(kind) + _varint(flags | _HAS_SEQ) + _varint(uplink.seq) + _varint(uplink.at_ms)


def _column(values: "list[int] | list[int | None]", places: list[int]) -> bytes:
    """Encode a column over all intervals; those that no reading has are missing."""
    entries = [0] * (places[-1] + 1)
    last = 0
    for place, value in zip(places, values, strict=True):
        if value is not None:
            entries[place] = _zigzag(value - last) + 1
            last = value
    return b"".join(map(_varint, entries))


def _varint(value: int) -> bytes:
    coded = bytearray()
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)


def _zigzag(value: int) -> int:
    return -2 * value - 1 if value < 0 else 2 * value


def _unzigzag(value: int) -> int:
    return -(value + 1) // 2 if value & 1 else value // 2


def _crc(serial: str, frame: bytes) -> int:
    return crc_hqx(frame, crc_hqx(serial.encode(), _CRC_START))
