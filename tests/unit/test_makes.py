"""Makes of meter over MQTT: their traps, each with the native facts that come of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.makes.facts import Arrival, Joining, Make, Memory, Message, Naming, Native, Translation
from protocols.makes.mapping import Mapping, MappingError, builtin_mapping_text, builtin_mappings, read_mapping
from protocols.makes.shelly import ShellyGen1, ShellyGen2
from protocols.native import Readings, decode_uplink

KOLKATA, ATHENS = ZoneInfo("Asia/Kolkata"), ZoneInfo("Europe/Athens")
NAMING, JOINING = Naming(prefix="X-"), Joining()


def ms(text: str) -> int:
    """Read a UTC time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


NOON = ms("2026-11-21T12:00:00")


def mapping(name: str, zone: ZoneInfo = KOLKATA, naming: Naming = NAMING) -> Mapping:
    """Set a shipped document up."""
    return read_mapping(builtin_mapping_text(name), zone=zone, naming=naming, joining=JOINING)


class Listener:
    """A make with the memory of its devices, as the bridge keeps it."""

    def __init__(self, make: Make) -> None:
        self.make = make
        self.memories: dict[str, Memory] = {}

    def hear(self, topic: str, payload: object, received_ms: int = NOON) -> Translation:
        """Translate one message and remember what is to be remembered."""
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        made = self.make.translate(Arrival(topic=topic, payload=raw, received_ms=received_ms), self.memories)
        self.memories.update(made.memories)
        return made

    def readings(self, topic: str, payload: object, received_ms: int = NOON) -> list[Readings]:
        """Translate one message without a fault into readings."""
        made = self.hear(topic, payload, received_ms)
        assert made.fault is None
        return decoded(made.messages)


def decoded(messages: Sequence[Message]) -> list[Readings]:
    uplinks = [decode_uplink(topic, payload) for topic, payload in messages]
    assert all(isinstance(uplink, Readings) for uplink in uplinks)
    return [uplink for uplink in uplinks if isinstance(uplink, Readings)]


def tasmota(total: object, time: str = "2026-11-21T17:29:58", **energy: object) -> dict[str, object]:
    return {"Time": time, "ENERGY": {"TotalStartTime": "2026-01-01T00:00:00", "Total": total, **energy}}


def test_tasmota_reading_is_exact_and_in_the_zone_of_its_source() -> None:
    """kWh as decimals become Wh half up, local time becomes UTC, the other values their native units."""
    payload = tasmota(3.1855, Power=40, Voltage=231, Current=0.190, Factor=0.91, TotalTariff=[1.2, 1.985])
    (reading,) = Listener(mapping("tasmota")).readings("tele/plug/SENSOR", payload)
    assert (reading.serial, reading.read_at_ms, reading.import_wh) == ("X-plug", [ms("2026-11-21T11:59:58")], [3186])
    assert (reading.power_w, reading.voltage_mv, reading.current_ma) == ([40], [231_000], [190])
    assert reading.pf_milli == [910]


@pytest.mark.parametrize(("kwh", "wh"), [("4503599627370.497", 4503599627370497), ("0.0005", 1), ("0.00049", 0)])
def test_register_of_many_digits_passes_no_float(kwh: str, wh: int) -> None:
    """A number that a float would round keeps each Wh."""
    raw = json.dumps(tasmota(0)).replace('"Total": 0', f'"Total": {kwh}').encode()
    (reading,) = Listener(mapping("tasmota")).readings("tele/plug/SENSOR", raw)
    assert reading.import_wh == [wh]


@pytest.mark.parametrize(("document", "wh"), [("tasmota-before-8.4", 3185), ("tasmota-phases", 6370)])
def test_tasmota_total_as_an_array_is_what_the_source_says(document: str, wh: int) -> None:
    """An array is the total and its parts, or a total of each phase: told by the document, never guessed."""
    payload = tasmota([3.185, 1.2, 1.985], Power=[10, 20, 30], Voltage=[230, 231, 232])
    (reading,) = Listener(mapping(document)).readings("tele/plug/SENSOR", payload)
    assert (reading.import_wh, reading.power_w, reading.voltage_mv) == ([wh], [60], [None])


def test_tasmota_total_as_an_array_is_refused_where_one_number_is_expected() -> None:
    """Rather quarantine than half or twice the energy."""
    made = Listener(mapping("tasmota")).hear("tele/plug/SENSOR", tasmota([3.185, 1.2, 1.985]))
    assert (made.messages, made.serial) == ((), "X-plug")
    assert made.fault is not None


@pytest.mark.parametrize(
    ("received", "meant"),
    [
        ("2026-10-25T00:30:05", "2026-10-25T00:30:00"),  # As it happens, before the hour repeats.
        ("2026-10-25T01:30:05", "2026-10-25T01:30:00"),  # As it happens, after.
        ("2026-10-25T01:29:50", "2026-10-25T01:30:00"),  # By a clock that is ahead by ten seconds.
        ("2026-10-25T00:55:00", "2026-10-25T00:30:00"),  # 25 minutes on its way.
    ],
)
def test_repeated_hour_is_told_by_the_time_of_arrival(received: str, meant: str) -> None:
    """03:30 came twice in Athens on 25 October 2026."""
    payload = tasmota(1, time="2026-10-25T03:30:00")
    (reading,) = Listener(mapping("tasmota", ATHENS)).readings("tele/plug/SENSOR", payload, ms(received))
    assert reading.read_at_ms == [ms(meant)]


@pytest.mark.parametrize(
    ("time", "received"),
    [("2026-10-25T03:30:00", "2026-10-25T06:00:00"), ("2026-03-29T03:30:00", "2026-03-29T01:30:05")],
)
def test_local_time_that_means_two_instants_or_none_is_refused(time: str, received: str) -> None:
    """A repeated hour that waited too long, and the hour that summer time skips."""
    made = Listener(mapping("tasmota", ATHENS)).hear("tele/plug/SENSOR", tasmota(1, time=time), ms(received))
    assert made.fault is not None
    assert made.messages == ()


def test_tasmota_total_that_reset_is_passed_on_as_it_is() -> None:
    """A register that fell is for the ordinary rules to judge."""
    meter = Listener(mapping("tasmota"))
    first = meter.readings("tele/plug/SENSOR", tasmota(3.185))
    second = meter.readings("tele/plug/SENSOR", tasmota(0, time="2026-11-21T17:34:58"))
    assert [reading.import_wh for reading in (*first, *second)] == [[3185], [0]]


def test_register_below_zero_is_passed_on_for_validation_to_name() -> None:
    """The bytes are right; what is wrong is the meter."""
    (reading,) = Listener(mapping("tasmota")).readings("tele/plug/SENSOR", tasmota(-1))
    assert reading.import_wh == [-1000]


@pytest.mark.parametrize("total", [None, "nan", ""])
def test_energy_that_is_null_or_nan_gives_no_reading(total: object) -> None:
    """The payload says that there is none: nothing is stored and nothing is wrong."""
    assert Listener(mapping("tasmota")).readings("tele/plug/SENSOR", tasmota(total, Power=40)) == []


@pytest.mark.parametrize(
    "raw",
    [b'{"Time":"2026-11-21T17:29:58","ENERGY":{"Total":NaN}}', b"", b"\xff", b"[" * 9_999, b'{"ENERGY":{"Total":1}}']
    + [json.dumps(tasmota(total)).encode() for total in (True, {}, "3 kWh", 1e17)]
    + [b'{"Time":"2026-11-21T17:29:58","ENERGY":{"Total":1e999999999}}'],
)
def test_payload_that_is_wrong_is_a_fault_with_its_meter(raw: bytes) -> None:
    """NaN is no JSON, a register is a number that a register can hold, a reading needs its time."""
    made = Listener(mapping("tasmota")).hear("tele/plug/SENSOR", raw)
    assert made.fault is not None
    assert (made.messages, made.serial) == ((), "X-plug")


def test_sensor_message_without_energy_gives_no_reading() -> None:
    """A thermometer on the same topic is no meter."""
    assert Listener(mapping("tasmota")).readings("tele/plug/SENSOR", {"Time": "2026-11-21T17:29:58", "T": 1}) == []


def test_device_without_a_serial_is_a_fault_without_a_meter() -> None:
    """Only a prefix or the map gives a serial; a device cannot take a meter's by its name."""
    only_mapped = mapping("tasmota", naming=Naming(serials={"plug": "PB000001"}))
    assert Listener(only_mapped).readings("tele/plug/SENSOR", tasmota(1))[0].serial == "PB000001"
    made = Listener(only_mapped).hear("tele/PB000001/SENSOR", tasmota(1))
    assert made.fault is not None
    assert (made.messages, made.serial) == ((), None)
    assert Listener(mapping("tasmota")).hear("tele/Device A/SENSOR", tasmota(1)).fault is not None


def test_shelly_gen1_single_phase_joins_power_to_energy_within_a_minute() -> None:
    """Each quantity has its own topic; each channel is a meter; W-min and others are not read."""
    meter = Listener(ShellyGen1(naming=NAMING, joining=JOINING))
    topic = "shellies/shellyem-A1/emeter/1/{}"
    for quantity, value in (("power", "950.4"), ("voltage", "231.25"), ("energy", "77777")):
        assert meter.readings(topic.format(quantity), value.encode()) == []
    (first,) = meter.readings(topic.format("total"), b"12345.5", NOON + 1_000)
    assert (first.serial, first.read_at_ms, first.import_wh) == ("X-shellyem-A1-1", [NOON + 1_000], [12346])
    assert (first.power_w, first.voltage_mv, first.export_wh) == ([950], [231_250], [None])
    (later,) = meter.readings(topic.format("total"), b"12400", NOON + 61_001)
    assert later.power_w == [None]


def test_source_without_a_clock_gives_a_reading_a_minute() -> None:
    """What repeats its register every few seconds is thinned; the last value still counts when it is due."""
    meter = Listener(mapping("zigbee2mqtt"))
    given_wh = [
        reading.import_wh[0]
        for second in range(0, 180, 10)
        for reading in meter.readings("zigbee2mqtt/plug", {"energy": second / 1000}, NOON + second * 1000)
    ]
    assert given_wh == [0, 60, 120]


def test_shelly_3em_sum_waits_for_each_phase() -> None:
    """The sum of three phases counts only when all have reported since the last reading; export is summed too."""
    meter = Listener(ShellyGen1(naming=NAMING, joining=JOINING))

    def total(phase: int, wh: str, at_ms: int, quantity: str = "total") -> list[Readings]:
        return meter.readings(f"shellies/shellyem3-B2/emeter/{phase}/{quantity}", wh.encode(), at_ms)

    for phase in range(3):
        total(phase, "5.5", NOON, "total_returned")
        total(phase, "100.4", NOON, "power")
    assert total(0, "100.4", NOON) == total(1, "200.4", NOON) == []
    (first,) = total(2, "300.4", NOON)
    assert (first.serial, first.import_wh, first.export_wh) == ("X-shellyem3-B2", [601], [17])
    assert first.power_w == [301]
    later_ms = NOON + 600_000
    assert total(2, "310", later_ms) == total(2, "311", later_ms) == total(0, "110", later_ms) == []
    (second,) = total(1, "210", later_ms)
    assert (second.import_wh, second.power_w) == ([631], [None])


def test_shelly_gen1_status_that_calls_itself_invalid_gives_no_reading() -> None:
    """`is_valid` false is honoured."""
    meter = Listener(ShellyGen1(naming=NAMING, joining=JOINING))
    valid = {"power": 10.66, "pf": 1.0, "voltage": 232.06, "is_valid": True, "total": 5.3, "total_returned": 0}
    status = {"unixtime": NOON // 1000, "emeters": [valid, {**valid, "is_valid": False}]}
    (reading,) = meter.readings("shellies/shellyem-A1/info", status)
    assert (reading.serial, reading.import_wh, reading.export_wh) == ("X-shellyem-A1-0", [5], [0])


def rpc(at_s: float, **components: object) -> dict[str, object]:
    renamed = {name.replace("_", ":"): value for name, value in components.items()}
    return {"src": "shellypro3em-1", "dst": "x", "method": "NotifyStatus", "params": {"ts": at_s, **renamed}}


def test_shelly_gen2_notification_carries_its_time() -> None:
    """Power of an earlier notification is joined; a channel is a meter; Wh need no scaling."""
    meter = Listener(ShellyGen2(naming=NAMING, joining=JOINING))
    power = {"id": 0, "current": 22.78, "voltage": 224.6, "act_power": -5080.3, "pf": 0.99, "freq": 50.0}
    at_s = NOON // 1000 + 0.25
    assert meter.readings("em-1/events/rpc", rpc(at_s - 20, em1_0=power)) == []
    energy = {"id": 0, "total_act_energy": 6644.9, "total_act_ret_energy": 2595.26}
    (reading,) = meter.readings("em-1/events/rpc", rpc(at_s, em1data_0=energy))
    assert (reading.serial, reading.read_at_ms) == ("X-em-1-0", [NOON + 250])
    assert (reading.import_wh, reading.export_wh, reading.power_w) == ([6645], [2595], [-5080])
    assert meter.readings("em-1/events/rpc", rpc(at_s + 60, em1_0={**power, "errors": ["power_meter_failure"]})) == []


def test_shelly_pro_3em_is_one_meter_by_status_or_notification() -> None:
    """The device's own total of three phases counts; a status has no clock."""
    by_status = Listener(ShellyGen2(naming=NAMING, joining=JOINING, filters=("+/status/+",)))
    assert by_status.make.timed is False
    assert by_status.readings("pro-1/status/em:0", {"id": 0, "total_act_power": 2413.8, "a_freq": 49.9}) == []
    (reading,) = by_status.readings("pro-1/status/emdata:0", {"id": 0, "total_act": 1010.0, "total_act_ret": 210.0})
    assert (reading.serial, reading.import_wh, reading.export_wh) == ("X-pro-1", [1010], [210])
    assert (reading.power_w, reading.read_at_ms) == ([2414], [NOON])


def test_shelly_gen2_other_notifications_give_no_reading() -> None:
    """A switch, a wifi status, another method."""
    meter = Listener(ShellyGen2(naming=NAMING, joining=JOINING))
    assert meter.readings("em-1/events/rpc", rpc(1.0, switch_0={"output": True})) == []
    assert meter.readings("em-1/events/rpc", {"method": "NotifyEvent", "params": {}}) == []


def test_thingsboard_flat_timed_and_arrays_are_read() -> None:
    """All forms of device telemetry; rows of the same millisecond are one, the later value counts."""
    meter = Listener(mapping("thingsboard"))
    topic = "v1/devices/me/telemetry"
    (flat,) = meter.readings(topic, {"serial": "A", "energy_kwh": "1.5", "power": 10})
    assert (flat.serial, flat.read_at_ms, flat.import_wh, flat.power_w) == ("X-A", [NOON], [1500], [10])
    rows = [
        {"ts": NOON - 60_000, "values": {"serial": "A", "energy_kwh": 2}},
        {"ts": NOON - 60_000, "values": {"serial": "A", "power": 7, "energy_kwh": 2.5}},
        {"ts": NOON - 120_000, "values": {"serial": "B", "energy_kwh": 9}},
    ]
    made = meter.readings(topic, rows)
    assert [(each.serial, each.read_at_ms, each.import_wh, each.power_w) for each in made] == [
        ("X-A", [NOON - 60_000], [2500], [7]),
        ("X-B", [NOON - 120_000], [9000], [None]),
    ]


def test_thingsboard_device_that_is_not_named_is_a_fault() -> None:
    """The topic is the same for all: without a serial in the payload nobody can tell whose it is."""
    made = Listener(mapping("thingsboard")).hear("v1/devices/me/telemetry", {"energy_kwh": 1.5})
    assert (made.messages, made.serial) == ((), None)
    assert made.fault is not None


def test_thingsboard_gateway_names_its_devices_and_one_that_is_wrong_spoils_no_other() -> None:
    """What is right is forwarded; what is wrong is a fault beside it."""
    rows = {
        "A": [{"ts": NOON, "values": {"energy_kwh": 1}}],
        "B": [{"ts": NOON, "values": {"energy_kwh": 1, "export_kwh": -1}}],
        "C": [{"values": {"energy_kwh": 3}}],
    }
    made = Listener(mapping("thingsboard-gateway")).hear("v1/gateway/telemetry", rows)
    assert [reading.serial for reading in decoded(made.messages)] == ["X-A", "X-C"]
    assert made.serial == "X-B"


def test_mapping_sums_phases_only_when_all_are_known_and_valid() -> None:
    """A phase that is missing or a row that is invalid gives no reading."""
    meter = Listener(mapping("phases-summed"))
    phases = [{"import": 100.24, "power": 5}, {"import": 200.24, "power": 6}, {"import": 300.02}]
    whole = {"time": "2026-11-21T12:00:00+00:00", "is_valid": True, "phases": phases}
    (reading,) = meter.readings("gateway/7/G1/energy", whole)
    assert (reading.serial, reading.import_wh, reading.power_w) == ("X-G1", [6005], [None])
    assert meter.readings("gateway/7/G1/energy", {**whole, "is_valid": False}) == []
    assert meter.readings("gateway/7/G1/energy", {**whole, "phases": [*phases[:2], {"import": None}]}) == []


def test_amsreader_power_alone_gives_no_reading() -> None:
    """Counters come once an hour; the pushes between carry power alone."""
    meter = Listener(mapping("amsreader"))
    frame = {"id": "ams", "t": NOON // 1000, "data": {"P": 1234, "I1": 5.1}}
    assert meter.readings("amsleser/ams-1", frame) == []
    hourly = {**frame, "t": NOON // 1000 + 10, "data": {"P": 1240, "tPI": 24680.123, "tPO": 0.5}}
    (reading,) = meter.readings("amsleser/ams-1", hourly)
    assert (reading.import_wh, reading.export_wh, reading.read_at_ms) == ([24680123], [500], [NOON + 10_000])


def test_native_payload_is_passed_on_and_nothing_else() -> None:
    """Native meters on another broker: bytes unchanged, commands and other topics never."""
    assert Listener(Native()).hear("amr/M1/rd", b"{").messages == (("amr/M1/rd", b"{"),)
    for topic in ("amr/M1/cmd", "amr/M1/rd/x", "tele/M1/SENSOR"):
        assert Listener(Native()).hear(topic, b"{}").fault is not None


@pytest.mark.parametrize("name", builtin_mappings())
def test_shipped_mapping_is_whole(name: str) -> None:
    """Each shipped document is usable and asks for topics."""
    assert mapping(name).filters


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('unit = "kWh"', 'unit = "kwh"'),
        ("import_wh", "import_kwh"),
        ('pattern = "zigbee2mqtt/{device}"', 'pattern = "zigbee2mqtt/#"'),
        ('pattern = "zigbee2mqtt/{device}"', 'pattern = "zigbee2mqtt/all"'),
        ('path = "energy"', 'path = "energy", scale = "0"'),
        ('path = "energy"', 'path = "energy", sum_of = ["a"]'),
        ("illustrative", "ilustrative"),
        ("[[topic]]", "[topic]"),
        ("=", "=="),
    ],
)
def test_mapping_document_that_breaks_a_rule_is_refused(old: str, new: str) -> None:
    """A slip in a document stops the start and is never read as something else."""
    text = builtin_mapping_text("zigbee2mqtt").replace(old, new)
    with pytest.raises(MappingError):
        read_mapping(text, zone=KOLKATA, naming=NAMING, joining=JOINING)


MAKES: list[tuple[Make, str]] = [
    (mapping("tasmota"), "tele/d/SENSOR"),
    (mapping("tasmota-phases"), "tele/d/SENSOR"),
    (mapping("thingsboard"), "v1/devices/me/telemetry"),
    (mapping("thingsboard-gateway"), "v1/gateway/telemetry"),
    (mapping("phases-summed"), "gateway/1/d/energy"),
    (ShellyGen1(naming=NAMING, joining=JOINING), "shellies/d/emeter/0/total"),
    (ShellyGen1(naming=NAMING, joining=JOINING), "shellies/d/info"),
    (ShellyGen2(naming=NAMING, joining=JOINING), "d/events/rpc"),
    (ShellyGen2(naming=NAMING, joining=JOINING), "d/status/emdata:0"),
]
KEYS = ["Time", "ENERGY", "Total", "Power", "ts", "values", "serial", "energy_kwh", "params", "method", "emdata:0"]
KEYS += ["total_act", "errors", "emeters", "is_valid", "total", "unixtime", "phases", "import", "time"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "1.5", "NotifyStatus"])
VALUES = st.recursive(
    LEAVES | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(MAKES), VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
@settings(max_examples=400, deadline=None)
def test_any_payload_gives_sound_readings_or_a_fault(made_of: tuple[Make, str], payload: bytes) -> None:
    """Whatever a device sends, translating never fails, and what it gives is a native message."""
    make, topic = made_of
    made = make.translate(Arrival(topic=topic, payload=payload, received_ms=NOON), {})
    decoded(made.messages)
