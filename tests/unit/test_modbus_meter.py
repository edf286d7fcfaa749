"""Simulated Modbus meters: registers by the reference, energy by the load, a relay that cuts it, and each fault."""

from __future__ import annotations

import struct
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_sim.modbus_faults import FaultSettings, LineFault, ModbusFault
from meter_sim.modbus_load import MS_PER_HOUR, formula_load, load_of, recorded_load, steady_load
from meter_sim.modbus_meter import MapRegisters, MeterPlate, ModbusMeter, RelayModule
from meter_sim.modbus_registers import encode
from meter_sim.modbus_sunspec import SunSpec
from meter_sim.modbus_wire import Exceptional, Framing, Request, RequestStream, crc16, framed
from meter_sim.recorded import parse_profile
from protocols.errors import Malformed
from protocols.modbus.blocks import decode_block, plan_reads, polled_quantities
from protocols.modbus.maps import RegisterMap, RelayKind, RelayMap, builtin_maps
from protocols.modbus.plausible import judge
from protocols.modbus.sunspec import discover
from protocols.modbus.values import WordOrder

NOW_MS = 1_780_000_000_000 // 60_000 * 60_000
METERS = {model: made for model, made in builtin_maps().items() if not made.is_relay_only}
COIL = RelayMap(kind=RelayKind.COIL, address=3, on=1, off=0, read_function=1)


def _meter(
    model: str = "sdm120", *, power_w: int = 3_600, register_wh: int = 0, relay: RelayMap | None = None
) -> ModbusMeter:
    made = METERS[model]
    if relay is not None:
        made = _with_relay(made, relay)
    plate = MeterPlate(serial_number=21_000_001, map=made, load=steady_load(power_w), register_wh=register_wh)
    return ModbusMeter(plate, now_ms=NOW_MS)


def _with_relay(made: RegisterMap, relay: RelayMap) -> RegisterMap:
    return RegisterMap(**{name: getattr(made, name) for name in made.__slots__} | {"relay": relay})


def _read(meter: ModbusMeter, function: int, address: int, count: int, now_ms: int = NOW_MS) -> bytes:
    answer = meter.answer(struct.pack(">BHH", function, address, count), now_ms)
    assert answer[:2] == bytes((function, 2 * count)), f"exception {answer.hex()}"
    return answer[2:]


def test_sdm120_registers_are_big_endian_floats_at_the_addresses_of_its_manual() -> None:
    """Voltage at 0000, power at 000C and the import register at 0048 read as plain floats of V, W and kWh."""
    meter = _meter(power_w=2_300, register_wh=1_234_500)
    assert struct.unpack(">f", _read(meter, 4, 0x0000, 2)) == (230.0,)
    assert struct.unpack(">f", _read(meter, 4, 0x000C, 2)) == (2_300.0,)
    assert struct.unpack(">f", _read(meter, 4, 0x0048, 2)) == (1_234.5,)
    assert int.from_bytes(_read(meter, 3, 0xFC00, 2)) == 21_000_001


@pytest.mark.parametrize(
    ("model", "function", "address", "registers"),
    [
        # 230 V, 2.3 kW, 50 Hz or so and 1,234.56 kWh, worked out by hand from the reference page.
        ("sdm630", 4, 0x0000, "43660000"),
        ("sdm630", 4, 0x0034, "450fc000"),
        ("sdm72", 4, 0x0048, "449a51ec"),
        ("iem3155", 3, 0x0BD3, "43660000"),
        ("iem3155", 3, 0x0BF3, "40133333"),
        ("iem3155", 3, 0x0C83, "000000000012d680"),
        ("em340", 4, 0x0000, "08fc0000"),
        ("em340", 4, 0x0028, "59d80000"),
        ("em340", 4, 0x0034, "30390000"),
        ("em24-ethernet", 4, 0x0034, "30390000"),
        ("ddsu666", 4, 0x2004, "40133333"),
        ("ddsu666", 4, 0x4000, "449a51ec"),
        ("dtsu666", 3, 0x2006, "450fc000"),
        ("dtsu666", 3, 0x2012, "46b3b000"),
        ("dtsu666", 3, 0x101E, "449a51ec"),
        ("abb-b23", 3, 0x5B00, "000008fc"),
        ("abb-b23", 3, 0x5B14, "00038270"),
        ("abb-b23", 3, 0x5000, "000000000001e240"),
        ("abb-b21", 3, 0x5000, "000000000001e240"),
        ("adw300", 3, 20, "08fc"),
        ("adw300", 3, 36, "000008fc"),
        ("adw300", 3, 62, "0001e240"),
        ("we514", 3, 0x0131, "59d8"),
        ("we514", 3, 0x0140, "000008fc"),
        ("we514", 3, 0xA000, "0001e240"),
        ("pzem-014", 4, 0, "08fc"),
        ("pzem-014", 4, 3, "59d80000"),
        ("pzem-014", 4, 5, "d6800012"),
        ("em2m", 4, 0x15, "43660000"),
        ("em2m", 4, 0x03, "449a51ec"),
        ("shelly-pro-3em", 4, 1020, "00004366"),
        ("shelly-pro-3em", 4, 1162, "b4004996"),
    ],
)
def test_registers_of_makes_are_those_of_the_reference_page(
    model: str, function: int, address: int, registers: str
) -> None:
    """Function, address, type, scale and word order of each make hold a home's values as worked out by hand."""
    meter = _meter(model, power_w=2_300, register_wh=1_234_560)
    assert _read(meter, function, address, len(registers) // 4).hex() == registers


@pytest.mark.parametrize(
    ("value", "kind", "order", "step", "registers"),
    [
        (2_301_00, "i32", "cdab", Fraction(100), "08fd0000"),
        (2_301_99, "i32", "abcd", Fraction(100), "000008fd"),
        (-1, "i32", "cdab", Fraction(1), "ffffffff"),
        (-950, "i16", "abcd", Fraction(1), "fc4a"),
        (70_000, "u16", "abcd", Fraction(1), "1170"),
        (0x0102030405060708, "u64", "cdab", Fraction(1), "0708050603040102"),
        (0x01020304, "acc32", "badc", Fraction(1), "02010403"),
        (0x01020304, "u32", "dcba", Fraction(1), "04030201"),
        (230_000, "f32", "cdab", Fraction(1000), "00004366"),
    ],
)
def test_values_lie_in_registers_as_worked_out_by_hand(
    value: int, kind: str, order: str, step: Fraction, registers: str
) -> None:
    """Counts are cut to whole steps and wrap at the counter's end; words and bytes go by the make's order."""
    assert encode(value, kind=kind, order=order, step=step).hex() == registers


@pytest.mark.parametrize("order", [WordOrder.ABCD, WordOrder.CDAB])
@pytest.mark.parametrize("model", METERS)
def test_values_of_every_map_come_out_as_they_went_in_to_the_last_digit_of_their_type(
    model: str, order: WordOrder
) -> None:
    """What the head-end's decoder says equals what went in, cut to the step or to the digits that the type holds."""
    made = METERS[model].variant(word_order=order)
    meter = ModbusMeter(
        MeterPlate(serial_number=7, map=made, load=formula_load(), register_wh=5_432_198), now_ms=NOW_MS
    )
    values = meter.values(NOW_MS + MS_PER_HOUR)
    registers = MapRegisters(made, serial_number=7)
    registers.write(values)
    for entry in made.registers:
        went_in = values[entry.quantity]
        assert went_in is not None, f"{entry.quantity}: no simulated value"
        data = registers.read(entry.function, made.wire_address(entry), entry.words)
        assert data is not None, entry.quantity
        held = _held(went_in / entry.factor, entry.type.value) * entry.factor
        assert made.value(entry, data) == round(held), entry.quantity
        # A step of the counter at most is lost, or what the 24 digits of a float32 do not hold.
        assert abs(held - went_in) < max(entry.factor, Fraction(went_in, 2**23)), entry.quantity


def _held(count: Fraction, kind: str) -> Fraction:
    """Return what a register of some type holds of a count."""
    if kind == "f32":
        return Fraction(struct.unpack(">f", struct.pack(">f", float(count)))[0])
    return Fraction(float(count)) if kind == "f64" else Fraction(count // 1)


@pytest.mark.parametrize("base", [40_000, 50_000, 0])
@pytest.mark.parametrize("model", [201, 202, 203, 204, 211, 212, 213, 214])
def test_sunspec_meter_is_discovered_and_says_what_went_in(model: int, base: int) -> None:
    """Walking the chain of models finds maker, serial number and the meter, whose values come out as they went in."""
    plate = MeterPlate(serial_number=4_711, map=SunSpec(model=model, base=base), load=formula_load(), register_wh=5_432)
    meter = ModbusMeter(plate, now_ms=NOW_MS)
    walk = discover()
    found, ask = None, next(walk)
    while found is None:
        answer = meter.answer(struct.pack(">BHH", ask.function, ask.address, ask.count), NOW_MS)
        try:
            ask = walk.send(None if answer[0] & 0x80 else answer[2:])
        except StopIteration as end:
            found = end.value
    assert (found.maker, found.serial) == ("Simulated", "4711")
    (made,) = found.meters
    values = meter.values(NOW_MS)
    for block in plan_reads(made, polled_quantities(made)):
        got = decode_block(made, block, _read(meter, block.function, block.address, block.count))
        for quantity, value in got.items():
            went_in = values.get(quantity)
            if went_in is None:
                assert not value, quantity
            else:
                # The steps of the integer models: 10 mA, 100 mV, 10 mHz, 1 in 1000 of the power factor.
                step = 1 if model > 204 else {"ma": 10, "mv": 100, "mhz": 10}.get(quantity.rsplit("_", 1)[1], 1)
                assert value is not None
                assert 0 <= went_in - value < step or value == went_in, quantity


@given(st.lists(st.integers(1, 4 * 3_600_000), max_size=30))
def test_energy_does_not_depend_on_how_often_the_meter_is_asked(waits: list[int]) -> None:
    """The register after some time is the load's energy of that time, whoever looked in between."""
    plate = MeterPlate(serial_number=1, map=METERS["sdm120"], load=steady_load(1_001), scale_percent=37)
    meter, now_ms = ModbusMeter(plate, now_ms=NOW_MS), NOW_MS
    for wait_ms in waits:
        now_ms += wait_ms
        meter.values(now_ms)
    assert meter.register_wh(now_ms) == 37 * 1_001 * (now_ms - NOW_MS) // (100 * MS_PER_HOUR)


def test_recorded_minutes_move_the_register_by_the_energy_they_hold() -> None:
    """A file of minutes gives power, reactive power and voltage as recorded, and repeats itself."""
    rows = [
        "16/12/2006;17:24:00;4.216;0.418;234.840;18.4;0;1;17",
        "16/12/2006;17:25:00;5.360;0.436;233.630;23.0;0;1;16",
    ]
    head = "Date;Time;Global_active_power;Global_reactive_power;Voltage;Global_intensity;a;b;c"
    load = recorded_load(parse_profile("home.txt", "\n".join([head, *rows]).encode()))
    second = load.at(60_000)
    assert (second.power_w, second.reactive_var, second.voltage_mv) == (5_360, 436, 233_630)
    assert load.at(120_000) == load.at(0)
    assert load.energy_w_ms(150_000) == 60_000 * (4_216 + 5_360) + 30_000 * 4_216
    assert load.reactive_var_ms(120_000) == 60_000 * (418 + 436)


def test_load_of_hours_is_taken_for_an_ordinary_socket() -> None:
    """A file with energy alone has its mean power, 230 V and some reactive power."""
    profile = parse_profile("h.csv", b"start,value\n2020-12-01 00:00:00+00:00,0.4\n2020-12-01 01:00:00+00:00,0.8\n")
    drawn = recorded_load(profile).at(0)
    assert (drawn.power_w, drawn.reactive_var, drawn.voltage_mv) == (400, 100, 230_000)


def test_scaled_home_begins_elsewhere_in_the_load_and_draws_its_share() -> None:
    """Two homes of one recording differ by where they begin and by how much they draw."""
    load = load_of(60_000, [100, 900], [0, 0], [230_000, 231_000])
    plate = MeterPlate(serial_number=1, map=METERS["sdm120"], load=load, offset_ms=60_000, scale_percent=200)
    values = ModbusMeter(plate, now_ms=0).values(0)
    assert (values["power_w"], values["voltage_mv"]) == (1_800, 231_000)


def test_three_phase_totals_are_the_sums_of_the_phases() -> None:
    """Power and current of the three phases make the totals; line voltage is that of the phases times root 3."""
    values = _meter("sdm630", power_w=12_000).values(NOW_MS)
    assert values["power_w"] == sum(values[f"power_{phase}_w"] or 0 for phase in ("l1", "l2", "l3")) == 12_000
    assert values["current_ma"] == sum(values[f"current_{phase}_ma"] or 0 for phase in ("l1", "l2", "l3"))
    assert values["voltage_ll_mv"] == 398_371


@pytest.mark.parametrize("model", METERS)
def test_every_make_is_believed_at_every_minute_of_a_day(model: str) -> None:
    """What a home shows is what a meter can have measured, whatever it draws, as the head-end judges it."""
    load = formula_load()
    for scale_percent in (3, 40, 120):
        plate = MeterPlate(serial_number=1, map=METERS[model], load=load, scale_percent=scale_percent, register_wh=900)
        meter = ModbusMeter(plate, now_ms=NOW_MS)
        for minute in range(0, 1_440, 11):
            assert judge(METERS[model], meter.values(NOW_MS + minute * 60_000)).is_plausible, minute


@pytest.mark.parametrize("model", METERS)
def test_every_make_with_swapped_words_is_not_believed(model: str) -> None:
    """The same home's values in the wrong word order are nothing that a meter can have measured."""
    made = METERS[model]
    plate = MeterPlate(serial_number=1, map=made, load=formula_load(), register_wh=5_432_198)
    meter, registers = ModbusMeter(plate, now_ms=NOW_MS), MapRegisters(made, serial_number=1)
    for minute in range(0, 1_440, 97):
        registers.write(meter.values(NOW_MS + minute * 60_000), words_swapped=True)
        told: dict[str, int | None] = {}
        for entry in made.registers:
            data = registers.read(entry.function, made.wire_address(entry), entry.words)
            assert data is not None
            told[entry.quantity] = made.value(entry, data)
        assert not judge(made, told).is_plausible, (minute, told)


@pytest.mark.parametrize("kind", [RelayKind.COIL, RelayKind.REGISTER])
def test_relay_written_off_stops_the_register_until_it_is_written_on(kind: RelayKind) -> None:
    """While the relay is open no energy is counted and no power flows; it reads back as it stands."""
    on, off = (1, 0) if kind is RelayKind.COIL else (0xAAAA, 0x5555)
    write = 5 if kind is RelayKind.COIL else 6
    meter = _meter(relay=RelayMap(kind=kind, address=900, on=on, off=off, read_function=1 if write == 5 else 3))
    words = {True: 0xFF00, False: 0} if kind is RelayKind.COIL else {True: on, False: off}

    def order(supplied: bool, now_ms: int) -> bytes:
        return meter.answer(struct.pack(">BHH", write, 900, words[supplied]), now_ms)

    def position(now_ms: int) -> int:
        return int.from_bytes(meter.answer(struct.pack(">BHH", 1 if write == 5 else 3, 900, 1), now_ms)[2:])

    hour = MS_PER_HOUR
    assert position(NOW_MS) == on
    assert order(False, NOW_MS + hour) == struct.pack(">BHH", write, 900, words[False])
    assert position(NOW_MS + hour) == off
    assert struct.unpack(">f", _read(meter, 4, 0x000C, 2, NOW_MS + 2 * hour)) == (0.0,)
    order(True, NOW_MS + 3 * hour)
    assert meter.register_wh(NOW_MS + 4 * hour) == 7_200
    assert order(True, NOW_MS)[0] == write
    assert meter.answer(struct.pack(">BHH", write, 900, 17), NOW_MS) == bytes((write | 0x80, Exceptional.VALUE.value))
    meter.relay_stuck = True
    order(False, NOW_MS + 5 * hour)
    assert position(NOW_MS + 5 * hour) == on, "a welded contact reads back as closed"


def test_relay_module_cuts_the_meter_beside_it_and_no_other() -> None:
    """Each coil of a module is one meter's; a coil that it has not is refused, as is everything but coils."""
    first, second = _meter(), _meter()
    module = RelayModule(COIL, {3: first, 4: second})
    module.answer(bytes.fromhex("0500040000"), NOW_MS)
    assert (first.is_supplied, second.is_supplied) == (True, False)
    assert module.answer(bytes.fromhex("0100030002"), NOW_MS) == b"\x01\x01\x01"
    assert module.answer(bytes.fromhex("050005ff00"), NOW_MS) == b"\x85\x02"
    assert module.answer(bytes.fromhex("0300000001"), NOW_MS) == b"\x83\x01"


def test_meter_refuses_what_its_make_has_not() -> None:
    """Unknown functions, addresses and lengths are answered by exceptions, and nothing but the relay can be written."""
    meter = _meter()
    for asked, why in (
        ("0400480000", Exceptional.VALUE),
        ("04004800ff", Exceptional.VALUE),
        ("0448480002", Exceptional.ADDRESS),
        ("0300480002", Exceptional.ADDRESS),
        ("06001c0001", Exceptional.FUNCTION),
        ("10001c00010200ff", Exceptional.FUNCTION),
        ("0500000000", Exceptional.FUNCTION),
        ("2b0e0100", Exceptional.FUNCTION),
    ):
        pdu = bytes.fromhex(asked)
        assert meter.answer(pdu, NOW_MS) == bytes((pdu[0] | 0x80, why.value)), asked


def test_meter_says_that_it_lacks_a_value_as_its_make_does() -> None:
    """A value the meter has not reads as the make's invalid pattern, or as no number."""
    for model, made in METERS.items():
        meter = _meter(model)
        meter.lacking = frozenset({"freq_mhz"})
        registers = MapRegisters(made, serial_number=1)
        registers.write(meter.values(NOW_MS))
        entry = made.register("freq_mhz")
        if entry is not None and (entry.invalid or entry.type.value == "f32"):
            data = registers.read(entry.function, made.wire_address(entry), entry.words)
            assert data is not None
            assert made.value(entry, data) is None, model


def _line_fault(fault: ModbusFault, **settings: int) -> LineFault:
    return LineFault(fault, Random(3), FaultSettings(**settings))  # type: ignore[arg-type]  # Numbers alone are set.


def test_faults_in_the_registers_swap_words_stand_still_or_begin_again_at_zero() -> None:
    """Wrong words swap each value's words, a stuck meter shows the old ones, a reset one counts from zero."""
    meter, hour = _meter(register_wh=500_000), MS_PER_HOUR
    right = _read(meter, 4, 0x0000, 2)
    meter.suffer(_line_fault(ModbusFault.WRONG_WORDS), NOW_MS)
    assert _read(meter, 4, 0x0000, 2) == right[2:] + right[:2]
    meter.suffer(None, NOW_MS)
    before = _read(meter, 4, 0x0048, 2)
    meter.suffer(_line_fault(ModbusFault.STUCK), NOW_MS)
    assert _read(meter, 4, 0x0048, 2, NOW_MS + hour) == before
    meter.suffer(None, NOW_MS + hour)
    assert struct.unpack(">f", _read(meter, 4, 0x0048, 2, NOW_MS + hour))[0] == pytest.approx(503.6)
    meter.suffer(_line_fault(ModbusFault.RESET), NOW_MS + hour)
    assert meter.register_wh(NOW_MS + hour) == 0
    assert meter.register_wh(NOW_MS + 2 * hour) == 3_600


@pytest.mark.parametrize("framing", Framing)
def test_faults_on_the_line_lose_delay_refuse_soil_tear_or_precede_every_second_answer(framing: Framing) -> None:
    """Each fault spoils the requests it is due for, counts them, and leaves the others alone."""
    request = Request(9, None if framing is Framing.RTU else 700, bytes.fromhex("0400000001"))
    good = b"\x04\x02\x01\x02"
    whole = framed(request, good)
    for fault in set(ModbusFault) - {ModbusFault.WRONG_WORDS, ModbusFault.STUCK, ModbusFault.RESET}:
        line_fault = _line_fault(fault, every=2, delay_ms=80)
        assert [piece.data for piece in line_fault.spoil(request, good)] == [whole]
        pieces = line_fault.spoil(request, good)
        assert line_fault.met == {fault: 1}
        sent = b"".join(piece.data for piece in pieces)
        if fault is ModbusFault.SILENT:
            assert not pieces
        elif fault is ModbusFault.EXCEPTION:
            assert sent == framed(request, b"\x84\x06")
        elif fault in (ModbusFault.SLOW, ModbusFault.TORN):
            assert sent == whole
            assert pieces[-1].delay_ms == 80
        else:
            assert sent.endswith(whole)
            assert len(sent) > len(whole)


def test_check_value_is_that_of_the_serial_line_standard() -> None:
    """The check value of 02 07 is 41 12, low byte first, as in the standard's own example."""
    assert crc16(b"\x02\x07").hex() == "4112"


@pytest.mark.parametrize("framing", Framing)
@given(cuts=st.lists(st.integers(1, 12), min_size=1, max_size=40), count=st.integers(1, 6))
def test_requests_come_out_the_same_however_their_bytes_are_cut(framing: Framing, cuts: list[int], count: int) -> None:
    """A stream gives each request once, whole, in order."""
    requests = [
        Request(n + 1, None if framing is Framing.RTU else 500 + n, struct.pack(">BHH", 4, n, 2)) for n in range(count)
    ]
    sent = b"".join(framed(request, request.pdu) for request in requests)
    stream, heard, at = RequestStream(framing), [], 0
    for number in range(len(sent)):
        size = cuts[number % len(cuts)]
        heard += stream.feed(sent[at : at + size])
        at += size
    assert heard == requests


def test_serial_requests_are_found_again_behind_noise_and_a_broken_one() -> None:
    """Bytes that check to nothing are skipped and counted; a TCP head that is none ends the connection."""
    good = framed(Request(5, None, b"\x04\x00\x00\x00\x02"), b"\x04\x00\x00\x00\x02")
    broken = good[:-1] + bytes((good[-1] ^ 1,))
    stream = RequestStream(Framing.RTU)
    assert [request.unit for request in stream.feed(b"\x77\x00" + broken + good)] == [5]
    assert stream.skipped == 10
    with pytest.raises(Malformed):
        RequestStream(Framing.TCP).feed(b"GET / HTTP/1.1\r\n")
