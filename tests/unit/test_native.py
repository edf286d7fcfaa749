"""The native payload: what is encoded comes back, what is wrong is refused, nothing crashes."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from protocols.compact import encode_compact
from protocols.errors import FrameError, Malformed
from protocols.native import (
    BLOCK_INTERVALS_MAX,
    INT64_MAX,
    LIMIT_W_MAX,
    PAYLOAD_BYTES_MAX,
    TID_MAX,
    TIME_MS_MAX,
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
    decode_command,
    decode_uplink,
    encode_command,
    encode_coupon_entered,
    encode_event,
    encode_readings,
    encode_reply,
    encode_token_entered,
)

RD = "amr/PB000001/rd"
EV = "amr/PB000001/ev"

SERIALS = st.text("ABCxyz019_-", min_size=1, max_size=32)
REGISTERS = st.integers(0, INT64_MAX)
MEASURED = st.none() | st.integers(-(2**31), 2**31 - 1)
MINOR = st.integers(-(2**63), INT64_MAX)
TIMES = st.integers(0, TIME_MS_MAX)
COUNTS = st.integers(0, INT64_MAX)
RELAYS = st.none() | st.sampled_from(Relay)


def columns(channel: st.SearchStrategy[int | None], count: int) -> st.SearchStrategy[list[int | None]]:
    """Draw one optional channel: absent, or an entry per interval."""
    return st.lists(channel, min_size=count, max_size=count)


@st.composite
def readings(draw: st.DrawFn) -> Readings:
    """Draw readings of one interval or of equally spaced ones."""
    count = draw(st.integers(1, 12) | st.just(BLOCK_INTERVALS_MAX))
    first_ms = draw(st.integers(0, 4_000_000_000_000))
    step_ms = draw(st.integers(1, 86_400)) * 1000
    return Readings(
        serial=draw(SERIALS),
        seq=draw(st.none() | COUNTS),
        clock_ms=draw(st.none() | TIMES),
        read_at_ms=[first_ms + index * step_ms for index in range(count)],
        import_wh=draw(st.lists(REGISTERS, min_size=count, max_size=count)),
        export_wh=draw(columns(st.none() | REGISTERS, count)),
        voltage_mv=draw(columns(MEASURED, count)),
        current_ma=draw(columns(MEASURED, count)),
        power_w=draw(columns(MEASURED, count)),
        pf_milli=draw(columns(MEASURED, count)),
        freq_mhz=draw(columns(MEASURED, count)),
        relay=draw(RELAYS),
        credit_minor=draw(st.none() | MINOR),
        events=tuple(draw(st.lists(st.integers(0, 65_535), max_size=4))),
    )


EVENTS = st.builds(MeterEvent, serial=SERIALS, seq=st.none() | COUNTS, at_ms=TIMES, code=st.integers(0, 65_535))
REPLIES = st.builds(
    CommandReply,
    serial=SERIALS,
    seq=st.none() | COUNTS,
    at_ms=TIMES,
    order_id=COUNTS,
    epoch=COUNTS,
    kind=st.sampled_from(OrderKind),
    result=st.sampled_from(ReplyResult),
    relay=RELAYS,
    threshold_minor=st.none() | MINOR,
)


ENTRIES = st.builds(
    TokenEntered,
    serial=SERIALS,
    seq=st.none() | COUNTS,
    at_ms=TIMES,
    tid=st.none() | st.integers(0, TID_MAX),
    last_digits=st.from_regex("[0-9]{4}", fullmatch=True),
    result=st.sampled_from(EntryResult),
)


@st.composite
def commands(draw: st.DrawFn) -> Command:
    """Draw a command that has what its kind and its relay need."""
    relay = draw(st.sampled_from(Relay))
    kind = draw(st.sampled_from(OrderKind))
    span = sorted([draw(TIMES), draw(TIMES)]) if kind is OrderKind.READ else (None, None)
    return Command(
        order_id=draw(COUNTS),
        epoch=draw(COUNTS),
        kind=kind,
        relay=relay,
        level=draw(st.text(min_size=1, max_size=32)),
        balance_minor=draw(st.none() | MINOR),
        threshold_minor=draw(st.none() | MINOR),
        expires_at_ms=draw(TIMES),
        limit_w=draw(st.integers(1, LIMIT_W_MAX)) if relay is Relay.LIMITED else None,
        read_from_ms=span[0],
        read_to_ms=span[1],
        token=draw(st.from_regex("[0-9]{20}", fullmatch=True)) if kind is OrderKind.TOKEN else None,
    )


COMMANDS = commands()


def one_reading(**changes: object) -> bytes:
    """Compose a reading payload with some fields changed; None removes one."""
    fields: dict[str, object] = {"v": 1, "meter": "PB000001", "at": 1763730000000, "import_wh": 123456}
    fields.update(changes)
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def one_block(**changes: object) -> bytes:
    """Compose a block payload of three hours with some block fields changed."""
    block: dict[str, object] = {"at": 1763730000000, "step_s": 3600, "import_wh": [10, 20, 30]}
    block.update(changes)
    return json.dumps({"v": 1, "meter": "PB000001", "block": block}).encode()


@given(readings())
def test_readings_of_any_content_come_back_as_encoded(value: Readings) -> None:
    """Encoding and decoding readings are inverse, single and block."""
    assert decode_uplink(f"amr/{value.serial}/rd", encode_readings(value)) == value


@given(EVENTS)
def test_event_of_any_content_comes_back_as_encoded(value: MeterEvent) -> None:
    """Encoding and decoding an event are inverse."""
    assert decode_uplink(f"amr/{value.serial}/ev", encode_event(value)) == value


@given(REPLIES)
def test_reply_of_any_content_comes_back_as_encoded(value: CommandReply) -> None:
    """Encoding and decoding a reply are inverse."""
    assert decode_uplink(f"amr/{value.serial}/ev", encode_reply(value)) == value


@given(ENTRIES)
def test_token_of_any_content_comes_back_as_encoded(value: TokenEntered) -> None:
    """Encoding and decoding what became of a token are inverse."""
    assert decode_uplink(f"amr/{value.serial}/ev", encode_token_entered(value)) == value


@given(st.text("0123456789", min_size=16, max_size=16), st.none() | st.integers(0, 2**63 - 1))
def test_coupon_of_any_pin_comes_back_as_encoded_and_shows_it_nowhere(pin: str, seq: int | None) -> None:
    """Encoding and decoding a coupon are inverse, in both forms; every strict prefix is refused."""
    value = CouponEntered(serial="M1", seq=seq, at_ms=1_763_730_000_000, pin=pin)
    assert pin not in repr(value)
    for payload in (encode_coupon_entered(value), encode_compact(value)):
        assert decode_uplink("amr/M1/ev", payload) == value
        for cut in range(len(payload)):
            with pytest.raises(FrameError):
                decode_uplink("amr/M1/ev", payload[:cut])


@given(COMMANDS)
def test_command_of_any_content_comes_back_as_encoded(value: Command) -> None:
    """Encoding and decoding a command are inverse."""
    assert decode_command(encode_command(value)) == value


@settings(max_examples=30)
@given(readings())
def test_every_strict_prefix_of_readings_is_malformed(value: Readings) -> None:
    """A payload cut short anywhere is refused, never half read."""
    payload = encode_readings(value)
    topic = f"amr/{value.serial}/rd"
    stride = max(1, len(payload) // 200)
    for cut in range(0, len(payload), stride):
        with pytest.raises(Malformed):
            decode_uplink(topic, payload[:cut])


@settings(max_examples=30)
@given(EVENTS, REPLIES, ENTRIES, COMMANDS)
def test_every_strict_prefix_of_events_and_commands_is_malformed(
    event: MeterEvent, reply: CommandReply, entered: TokenEntered, command: Command
) -> None:
    """A cut event, reply, token or command is refused."""
    for topic, payload in (
        (f"amr/{event.serial}/ev", encode_event(event)),
        (f"amr/{reply.serial}/ev", encode_reply(reply)),
        (f"amr/{entered.serial}/ev", encode_token_entered(entered)),
    ):
        for cut in range(len(payload)):
            with pytest.raises(Malformed):
                decode_uplink(topic, payload[:cut])
    payload = encode_command(command)
    for cut in range(len(payload)):
        with pytest.raises(Malformed):
            decode_command(payload[:cut])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
FIELD_NAMES = st.sampled_from(
    ["v", "meter", "seq", "clock", "at", "import_wh", "relay", "events", "block", "event", "reply", "order"]
)


@given(st.sampled_from([RD, EV]), st.binary(max_size=300))
@example(RD, b'{"v":1,"x":' + b"[" * 30_000)
@example(RD, b'{"v":1,"meter":"\xff\xfe"}')
@example(RD, b'\xef\xbb\xbf{"v":1}')
@example(RD, b'{"v":1,"meter":"PB000001","at":1,"import_wh":NaN}')
@example(RD, b'{"v":1,"meter":"PB000001","at":1,"import_wh":Infinity}')
@example(RD, b'{"v":1,"meter":"PB000001","at":1,"import_wh":1e999}')
@example(RD, b'{"v":1,"meter":"PB000001","at":1,"import_wh":' + b"9" * 20_000 + b"}")
@example(EV, b'{"v":1,"meter":"\\ud800","at":1}')
def test_arbitrary_bytes_raise_nothing_but_frame_error(topic: str, payload: bytes) -> None:
    """No payload, however broken, escapes as another exception."""
    for decode in (lambda: decode_uplink(topic, payload), lambda: decode_command(payload)):
        with suppress(FrameError):
            decode()


@given(st.sampled_from([RD, EV]), st.dictionaries(FIELD_NAMES, JSON_VALUES))
def test_arbitrary_json_raises_nothing_but_frame_error(topic: str, fields: dict[str, Any]) -> None:
    """Well-formed JSON of the wrong shape is refused as malformed."""
    payload = json.dumps({"v": 1, "meter": "PB000001", **fields}).encode()
    for decode in (lambda: decode_uplink(topic, payload), lambda: decode_command(payload)):
        with suppress(FrameError):
            decode()


@given(readings(), st.data())
def test_any_one_changed_byte_is_read_or_refused(value: Readings, data: st.DataObject) -> None:
    """A damaged payload is another payload or malformed; JSON has no checksum to tell."""
    payload = bytearray(encode_readings(value))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    assume(bytes(payload) != encode_readings(value))
    with suppress(FrameError):
        decode_uplink(f"amr/{value.serial}/rd", bytes(payload))


def test_documented_reading_decodes_to_its_columns() -> None:
    """The example of the format keeps its meaning."""
    payload = (
        b'{"v":1,"meter":"PB000001","seq":42,"clock":1763730000123,"at":1763730000000,"import_wh":123456,'
        b'"export_wh":0,"voltage_mv":231200,"current_ma":4210,"power_w":950,"pf_milli":976,"freq_mhz":49980,'
        b'"relay":"on","credit_minor":12345,"events":[101]}'
    )
    assert decode_uplink(RD, payload) == Readings(
        serial="PB000001",
        seq=42,
        clock_ms=1763730000123,
        read_at_ms=[1763730000000],
        import_wh=[123456],
        export_wh=[0],
        voltage_mv=[231200],
        current_ma=[4210],
        power_w=[950],
        pf_milli=[976],
        freq_mhz=[49980],
        relay=Relay.ON,
        credit_minor=12345,
        events=(101,),
    )


def test_reading_with_only_the_mandatory_fields_is_accepted() -> None:
    """Version, meter, time and register are enough."""
    decoded = decode_uplink(RD, one_reading())
    assert isinstance(decoded, Readings)
    assert (decoded.read_at_ms, decoded.import_wh, decoded.relay) == ([1763730000000], [123456], None)
    assert (decoded.seq, decoded.voltage_mv, decoded.events) == (None, [None], ())


def test_reading_with_unknown_fields_is_accepted() -> None:
    """A newer meter may say more than version 1 knows."""
    assert decode_uplink(RD, one_reading(firmware={"id": "x"})) == decode_uplink(RD, one_reading())


def test_reading_with_a_repeated_field_takes_the_last() -> None:
    """Of a repeated field the last one counts."""
    payload = b'{"v":1,"meter":"PB000001","at":1,"import_wh":1,"import_wh":2}'
    decoded = decode_uplink(RD, payload)
    assert isinstance(decoded, Readings)
    assert decoded.import_wh == [2]


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": None},
        {"v": "1"},
        {"v": True},
        {"meter": "PB000002"},
        {"meter": None},
        {"meter": ""},
        {"at": None},
        {"at": -1},
        {"at": TIME_MS_MAX + 1},
        {"at": "2025-11-21T10:00:00Z"},
        {"import_wh": None},
        {"import_wh": -(2**62) - 1},
        {"import_wh": INT64_MAX + 1},
        {"import_wh": 1.5},
        {"import_wh": "12"},
        {"import_wh": True},
        {"export_wh": -1},
        {"voltage_mv": 2**31},
        {"credit_minor": 2**63},
        {"relay": "open"},
        {"events": [-1]},
        {"events": list(range(65))},
        {"block": {"at": 1, "step_s": 1, "import_wh": [1]}},
    ],
)
def test_reading_out_of_range_is_malformed(changes: dict[str, object]) -> None:
    """Each field has its type and range; nothing is converted or clamped."""
    with pytest.raises(Malformed):
        decode_uplink(RD, one_reading(**changes))


def test_register_at_the_end_of_int64_is_accepted() -> None:
    """The largest storable register is a register."""
    decoded = decode_uplink(RD, one_reading(import_wh=INT64_MAX))
    assert isinstance(decoded, Readings)
    assert decoded.import_wh == [INT64_MAX]


def test_block_with_a_missing_interval_skips_it_in_every_column() -> None:
    """A null register means no reading of that interval, whatever the other channels say."""
    decoded = decode_uplink(RD, one_block(import_wh=[10, None, 30], voltage_mv=[1, 2, None]))
    assert isinstance(decoded, Readings)
    assert decoded.read_at_ms == [1763730000000, 1763737200000]
    assert decoded.import_wh == [10, 30]
    assert decoded.voltage_mv == [1, None]
    assert decoded.power_w == [None, None]


@pytest.mark.parametrize(
    "changes",
    [
        {"import_wh": []},
        {"import_wh": [None, None]},
        {"import_wh": list(range(BLOCK_INTERVALS_MAX + 1))},
        {"import_wh": [1, -(2**62) - 1, 3]},
        {"voltage_mv": [1, 2]},
        {"export_wh": [1, 2, 3, 4]},
        {"step_s": 0},
        {"step_s": -3600},
        {"step_s": 86_401},
        {"step_s": 0.5},
        {"at": TIME_MS_MAX},
    ],
)
def test_block_out_of_shape_is_malformed(changes: dict[str, object]) -> None:
    """A block has 1 to 96 equally spaced intervals and columns of one length."""
    with pytest.raises(Malformed):
        decode_uplink(RD, one_block(**changes))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"event": {"code": 301}, "reply": {"order": 1, "epoch": 1, "kind": "supply", "result": "done"}},
        {"event": {"code": 70_000}},
        {"event": {}},
        {"reply": {"order": 1, "epoch": 1, "kind": "supply", "result": "maybe"}},
        {"reply": {"order": 1, "epoch": 1, "kind": "reboot", "result": "done"}},
        {"reply": {"order": -1, "epoch": 1, "kind": "supply", "result": "done"}},
    ],
)
def test_event_payload_of_neither_or_both_kinds_is_malformed(body: dict[str, object]) -> None:
    """An event payload carries exactly one event or one reply, of known words."""
    payload = json.dumps({"v": 1, "meter": "PB000001", "at": 1, **body}).encode()
    with pytest.raises(Malformed):
        decode_uplink(EV, payload)


def test_documented_reply_decodes_with_its_null_threshold() -> None:
    """The example of the format keeps its meaning."""
    payload = (
        b'{"v":1,"meter":"PB000001","seq":3,"at":1763730000000,"reply":{"order":12,"epoch":7,'
        b'"kind":"supply","result":"done","relay":"off","threshold_minor":null}}'
    )
    assert decode_uplink(EV, payload) == CommandReply(
        serial="PB000001",
        seq=3,
        at_ms=1763730000000,
        order_id=12,
        epoch=7,
        kind=OrderKind.SUPPLY,
        result=ReplyResult.DONE,
        relay=Relay.OFF,
        threshold_minor=None,
    )


def test_documented_command_decodes_to_its_order() -> None:
    """The example of the format keeps its meaning."""
    payload = b'{"v":1,"order":12,"epoch":7,"kind":"supply","relay":"off","expires":1763730060000,"balance_minor":-120}'
    assert decode_command(payload) == Command(
        order_id=12,
        epoch=7,
        kind=OrderKind.SUPPLY,
        relay=Relay.OFF,
        level=None,
        balance_minor=-120,
        threshold_minor=None,
        expires_at_ms=1763730060000,
    )


@pytest.mark.parametrize(
    "payload",
    [
        b'{"v":1,"order":1,"epoch":1,"kind":"supply","expires":1}',
        b'{"v":1,"order":1,"epoch":1,"kind":"alarm","expires":1}',
        b'{"v":1,"order":1,"epoch":1,"kind":"supply","relay":"off"}',
        b'{"v":1,"order":1,"kind":"supply","relay":"off","expires":1}',
    ],
)
def test_command_without_what_its_kind_needs_is_malformed(payload: bytes) -> None:
    """A supply order names a position, an alarm a level, and every order its epoch and expiry."""
    with pytest.raises(Malformed):
        decode_command(payload)


def test_documented_load_limit_decodes_to_its_order() -> None:
    """The example of the format keeps its meaning."""
    payload = (
        b'{"v":1,"order":15,"epoch":10,"kind":"supply","relay":"limited","limit_w":500,"expires":1763730060000,'
        b'"balance_minor":-120}'
    )
    assert decode_command(payload) == Command(
        order_id=15,
        epoch=10,
        kind=OrderKind.SUPPLY,
        relay=Relay.LIMITED,
        level=None,
        balance_minor=-120,
        threshold_minor=None,
        expires_at_ms=1763730060000,
        limit_w=500,
    )


@pytest.mark.parametrize("limit", ["0", "-1", "0.5", '"500"', "true", "null", str(LIMIT_W_MAX + 1), str(10**40)])
def test_load_limit_out_of_range_is_malformed(limit: str) -> None:
    """A limit is a whole number of watts from 1 to the largest load; nothing is converted or clamped."""
    payload = f'{{"v":1,"order":1,"epoch":1,"kind":"supply","relay":"limited","limit_w":{limit},"expires":1}}'
    with pytest.raises(Malformed):
        decode_command(payload.encode())


@pytest.mark.parametrize(
    "fields",
    [
        '"kind":"supply","relay":"limited"',
        '"kind":"supply","relay":"on","limit_w":500',
        '"kind":"supply","relay":"off","limit_w":500',
        '"kind":"threshold","limit_w":500',
    ],
)
def test_load_limit_without_its_relay_or_the_other_way_round_is_malformed(fields: str) -> None:
    """Relay limited and a limit come together or not at all."""
    with pytest.raises(Malformed, match="expected limit_w with relay limited alone"):
        decode_command(f'{{"v":1,"order":1,"epoch":1,{fields},"expires":1}}'.encode())


def test_incomplete_command_cannot_be_encoded() -> None:
    """What a meter would refuse is never sent."""
    whole = decode_command(b'{"v":1,"order":1,"epoch":1,"kind":"supply","relay":"limited","limit_w":1,"expires":1}')
    for lacking in (replace(whole, limit_w=None), replace(whole, relay=Relay.OFF), replace(whole, relay=None)):
        with pytest.raises(Malformed):
            encode_command(lacking)


def test_uplink_on_the_command_topic_is_malformed() -> None:
    """A meter never publishes where it listens."""
    with pytest.raises(Malformed, match="meter PB000001"):
        decode_uplink("amr/PB000001/cmd", one_reading())


def test_payload_above_the_limit_is_malformed_before_it_is_parsed() -> None:
    """The size limit is checked first, at its exact value."""
    padded = one_reading().ljust(PAYLOAD_BYTES_MAX)
    assert decode_uplink(RD, padded) == decode_uplink(RD, one_reading())
    with pytest.raises(Malformed, match="at most 64000 bytes, got 64001"):
        decode_uplink(RD, padded + b" ")


def test_refusal_names_expected_got_and_whose() -> None:
    """A quarantined frame says enough to act on."""
    with pytest.raises(Malformed, match=r"Expected `int \| null`, got `str` - at `\$.import_wh`, amr/PB000001/rd"):
        decode_uplink(RD, one_reading(import_wh="12"))
    with pytest.raises(Malformed, match="expected PB000001, got 'PB000002', meter PB000001"):
        decode_uplink(RD, one_reading(meter="PB000002"))


@pytest.mark.parametrize(
    "read_at_ms", [[0, 1000, 3000], [0, 1500], [1000, 0], [0, 0], [0, 86_401_000], [0, 1000, 2000, 3000]]
)
def test_block_of_unequal_steps_cannot_be_encoded(read_at_ms: list[int]) -> None:
    """A block says only where it starts and how far apart its intervals are."""
    decoded = decode_uplink(RD, one_block())
    assert isinstance(decoded, Readings)
    count = min(len(read_at_ms), 3)
    empty: list[int | None] = [None] * count
    value = Readings(
        serial="PB000001",
        seq=None,
        clock_ms=None,
        read_at_ms=read_at_ms,
        import_wh=[1] * count,
        export_wh=empty,
        voltage_mv=empty,
        current_ma=empty,
        power_w=empty,
        pf_milli=empty,
        freq_mhz=empty,
        relay=None,
        credit_minor=None,
        events=(),
    )
    with pytest.raises(Malformed):
        encode_readings(value)
