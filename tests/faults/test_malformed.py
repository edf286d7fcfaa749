"""Bytes that no meter should send, and senders that are not who they say: counted, kept, no harm to others."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping

import pytest

from meter_sim.edges.bulk import BulkPublisher, encode_connect
from prepaid.embedded import EmbeddedNats
from protocols import compact
from protocols.errors import FrameError
from protocols.native import (
    INT64_MAX,
    PAYLOAD_BYTES_MAX,
    TIME_MS_MAX,
    CommandReply,
    MeterEvent,
    OrderKind,
    Readings,
    Relay,
    ReplyResult,
    decode_uplink,
    encode_event,
    encode_reply,
)
from protocols.topics import event_topic, reading_topic
from tests.faults.harness import Facts, Trial, make_town, prove, settle_in
from tests.support import (
    HOUR_MS,
    REGISTER_WH,
    T0,
    Message,
    block,
    open_site,
    reading,
    running_ingest,
)

CASES = 10_000
SERIAL = "FUZZ"

Damage = Callable[[random.Random, bytes], bytes]


def _whole() -> list[Message]:
    """One good message of each shape."""
    event = MeterEvent(serial=SERIAL, seq=4, at_ms=T0, code=101)
    reply = CommandReply(
        serial=SERIAL,
        seq=5,
        at_ms=T0,
        order_id=1,
        epoch=1,
        kind=OrderKind.SUPPLY,
        result=ReplyResult.DONE,
        relay=Relay.ON,
        threshold_minor=None,
    )
    return [
        reading(SERIAL, T0 + HOUR_MS, REGISTER_WH + 10, voltage_mv=230_000, current_ma=900, power_w=180),
        block(SERIAL, T0 + HOUR_MS, [REGISTER_WH + step for step in range(24)], freq_mhz=50_000),
        (event_topic(SERIAL), encode_event(event)),
        (event_topic(SERIAL), encode_reply(reply)),
    ]


def _somewhere(rng: random.Random, payload: bytes, piece: bytes) -> bytes:
    at = rng.randrange(len(payload))
    return payload[:at] + piece + payload[at:]


def _number(rng: random.Random, payload: bytes, written: bytes) -> bytes:
    """Put something in the place of one of the payload's numbers."""
    starts = [at for at in range(1, len(payload)) if payload[at : at + 1].isdigit() and payload[at - 1 : at] in b":,["]
    at = rng.choice(starts)
    end = at
    while payload[end : end + 1].isdigit():
        end += 1
    return payload[:at] + written + payload[end:]


def _member(rng: random.Random, payload: bytes, value: bytes) -> bytes:
    """Add a member to the outer object: one that nobody knows, or one that is there already."""
    name = rng.choice([b"x", b"v", b"meter", b"at", b"import_wh", b"block", b"reply", b"event", b"seq"])
    return payload[:-1] + b',"' + name + b'":' + value + b"}"


def _changed(rng: random.Random, frame: bytes) -> bytes:
    """Change, drop or double a few bytes, at least one."""
    changed = bytearray(frame)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(changed))
        changed[at : at + 1] = rng.choice([rng.randbytes(1), b"\xff" * 9, b"", changed[at : at + 1] * 2])
        changed = changed or bytearray(b"\x00")
    return bytes(changed)


def _compact(payload: bytes) -> bytes:
    """Say the same in the compact form."""
    topic = reading_topic(SERIAL) if b"import_wh" in payload else event_topic(SERIAL)
    return compact.encode_compact(decode_uplink(topic, payload))


def _signed_again(rng: random.Random, payload: bytes) -> bytes:
    """Damage a compact frame behind its first byte, and give it the check value of what it is now."""
    frame = _compact(payload)
    body = frame[:1] + _changed(rng, frame[1:-2])
    return body + compact._crc(SERIAL, body).to_bytes(2)


DAMAGES: Mapping[str, Damage] = {
    "compact, damaged": lambda rng, payload: _changed(rng, _compact(payload)),
    "compact, signed again": _signed_again,
    "truncated": lambda rng, payload: payload[: rng.randrange(len(payload))],
    "changed bytes": lambda rng, payload: bytes(
        byte if rng.random() > 0.03 else rng.randrange(256) for byte in payload
    ),
    "random bytes": lambda rng, payload: rng.randbytes(rng.randrange(200)),
    "huge length": lambda rng, payload: payload.ljust(PAYLOAD_BYTES_MAX + rng.randrange(1, 9)),
    "huge array": lambda rng, payload: _member(rng, payload, b"[" + b"0," * rng.randrange(97, 3_000) + b"0]"),
    "many digits": lambda rng, payload: _number(rng, payload, b"9" * rng.choice([19, 20, 40, 400, 5_000])),
    "not a number": lambda rng, payload: _number(
        rng,
        payload,
        rng.choice([b"NaN", b"Infinity", b"-Infinity", b"nan", b"1e308", b"1e999", b"0.5", b'"NaN"', b"null"]),
    ),
    "negative": lambda rng, payload: _number(rng, payload, b"-%d" % rng.choice([1, 2**31, 2**63, 2**64])),
    "edge of range": lambda rng, payload: _number(
        rng, payload, b"%d" % rng.choice([0, 2**31, INT64_MAX, INT64_MAX + 1, TIME_MS_MAX, TIME_MS_MAX + 1])
    ),
    "bad UTF-8": lambda rng, payload: _somewhere(
        rng, payload, rng.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x00"])
    ),
    "half surrogate": lambda rng, payload: payload.replace(b'"meter":"', b'"meter":"\\ud800'),
    "deep nesting": lambda rng, payload: _member(
        rng, payload, rng.choice([b"[", b'{"a":']) * rng.choice([50, 5_000, 50_000 // 5])
    ),
    "closed deep nesting": lambda rng, payload: _member(rng, payload, b"[" * 20_000 + b"]" * 20_000),
    "duplicated keys": lambda rng, payload: _member(rng, payload, rng.choice([b"1", b"null", b'"FUZZ"', b"{}", b"[]"])),
    "wrong serial": lambda rng, payload: payload.replace(b"FUZZ", rng.choice([b"", b"fuzz", b"F/Z", b"F" * 33, b"*"])),
}


def _cases(seed: int) -> list[tuple[str, Message]]:
    """Damage good messages in every way, each way equally often."""
    rng = random.Random(seed)
    whole, names = _whole(), list(DAMAGES)
    cases = []
    for number in range(CASES):
        name = names[number % len(names)]
        topic, payload = rng.choice(whole)
        cases.append((name, (topic, DAMAGES[name](rng, payload))))
    return cases


def _require_sound(readings: Readings) -> None:
    """What a decoder lets through is what everything behind it relies on."""
    count = len(readings.read_at_ms)
    columns = (readings.import_wh, readings.export_wh, readings.voltage_mv, readings.current_ma, readings.power_w)
    assert count >= 1
    assert {len(column) for column in columns} == {count}
    assert readings.read_at_ms == sorted(set(readings.read_at_ms))
    assert all(type(at_ms) is int and 0 <= at_ms <= TIME_MS_MAX for at_ms in readings.read_at_ms)
    # What a register may say is for validation; that it is a number of 64 bits is not.
    assert all(type(wh) is int and abs(wh) <= INT64_MAX for wh in readings.import_wh)


@pytest.mark.parametrize("seed", [2_101, pytest.param(2_102, marks=pytest.mark.faults)])
def test_no_damaged_frame_gets_past_the_decoder_unsound(seed: int) -> None:
    """F21: of 10,000 damaged frames each is refused by name or decodes to sound values; nothing else is raised."""
    with Trial(seed) as trial:
        longest = 0
        refused: Counter[str] = Counter()
        taken: Counter[str] = Counter()
        for name, (topic, payload) in _cases(seed):
            try:
                uplink = decode_uplink(topic, payload)
            except FrameError as error:
                longest = max(longest, len(str(error)))
                refused[name] += 1
                continue
            except BaseException:
                trial.note(f"{name}: {topic} {payload[:400]!r}")
                raise
            taken[name] += 1
            assert uplink.serial == SERIAL
            if isinstance(uplink, Readings):
                _require_sound(uplink)
        trial.note(f"refused {dict(refused)}, taken {dict(taken)}")
        assert refused.total() + taken.total() == CASES
        assert longest < 1_000, "a message shows a line's worth of a frame"
        assert refused.total() > CASES // 2
        # Whatever else it does, each kind of damage is met and refused somewhere.
        assert refused.keys() == DAMAGES.keys()


@pytest.mark.db
@pytest.mark.broker
def test_damaged_frames_are_counted_and_stop_no_other_meter(database_url: str, nats: EmbeddedNats) -> None:
    """F21: one meter sends nothing but damage; each frame is counted, all others are charged as without it."""
    seed = 2_111

    async def story() -> None:
        town = make_town(seed, meters=20, readings=24)
        with Trial(seed) as trial:
            async with open_site(database_url, nats, ack_wait_s=60.0) as site:
                await settle_in(site, town)
                await site.add_home(SERIAL)
                async with running_ingest(site, lease_s=60.0, ack_wait_s=60.0):
                    damaged = [message for _, message in trial.rng.sample(_cases(seed), 600)]
                    mixed = town.messages + damaged
                    trial.rng.shuffle(mixed)
                    # In the order of time again, what is good of it.
                    good = iter(town.messages)
                    known = set(town.messages)
                    mixed = [next(good) if message in known else message for message in mixed]
                    await site.publish(*mixed)
                    await prove(site, town)
                    assert await site.one("select sum(messages) from batches") == len(mixed)
                    totals = await site.totals()
                    trial.note(f"{totals}")
                    assert totals.rejected > len(damaged) // 2
                    kept = await site.one("select sum(times) from quarantine")
                    assert kept == totals.rejected + totals.quarantined

    asyncio.run(story())


@pytest.mark.db
@pytest.mark.broker
def test_stranger_thief_and_replay_change_no_account(database_url: str, nats: EmbeddedNats) -> None:
    """F23: unknown meters, wrong topics, another's serial or bytes, and replayed frames: on record, not charged."""
    seed = 2_301

    async def story() -> None:
        town = make_town(seed, meters=20, readings=24)
        with Trial(seed) as trial:
            # Nothing comes again of itself, however slow the machine: what does is counted.
            async with open_site(database_url, nats, ack_wait_s=60.0) as site:
                await settle_in(site, town)
                async with running_ingest(site, lease_s=60.0, ack_wait_s=60.0):
                    attacks: dict[str, list[Message]] = {"stranger": [], "topic": [], "serial": [], "command": []}
                    for topic, payload in trial.rng.sample(town.messages, 100):
                        own = topic.split("/")[1]
                        other = trial.rng.choice([meter.serial for meter in town.meters if meter.serial != own])
                        stranger = payload.replace(own.encode(), b"NOBODY")
                        attacks["stranger"].append(("amr/NOBODY/rd", stranger))
                        attacks["topic"].append((f"amr/{own}/{trial.rng.choice(['xx', 'rd/x'])}", payload))
                        # What one meter has sent, on the topic of another.
                        attacks["serial"].append((f"amr/{other}/rd", payload))
                        attacks["command"].append((f"home/{own}/rd", payload))
                    bad = [message for kind in attacks.values() for message in kind]
                    trial.rng.shuffle(bad)
                    half = len(town.messages) // 2
                    await site.publish(*town.messages[:half], *bad, *town.messages[half:])
                    # Everything that went over the wire once more, as somebody who listened can send it.
                    await site.publish(*town.messages, *bad)
                    await prove(site, town, Facts())
                    totals = await site.totals()
                    trial.note(f"{totals}")
                    assert totals.duplicate == len(town.messages)
                    assert totals.rejected == 2 * len(bad)
                    reasons = dict(await site.rows("select reason, sum(times) from quarantine group by 1"))
                    assert reasons == {
                        "unknown_meter": 2 * len(attacks["stranger"]),
                        "unknown_topic": 2 * (len(attacks["topic"]) + len(attacks["command"])),
                        "malformed": 2 * len(attacks["serial"]),
                    }

    asyncio.run(story())


# The broker keeps a client waiting for ten seconds whose name goes to and fro.
@pytest.mark.faults
@pytest.mark.db
@pytest.mark.broker
def test_stolen_client_id_costs_its_owner_a_connection_and_no_reading(database_url: str, nats: EmbeddedNats) -> None:
    """F23: a thief connects under the name of a client; that one comes back, and everything is stored."""
    seed = 2_311

    async def steal(client_id: str) -> None:
        reader, writer = await asyncio.open_connection(nats.mqtt_host, nats.mqtt_port)
        try:
            writer.write(encode_connect(client_id, None, None))
            assert await reader.readexactly(4) == b"\x20\x02\x00\x00", "the thief is let in"
            # Until the owner is back and it is the thief's turn to be thrown out.
            assert await asyncio.wait_for(reader.read(), 20) == b""
        finally:
            writer.transport.abort()

    async def story() -> None:
        town = make_town(seed, meters=20, readings=24)
        with Trial(seed) as trial:
            async with open_site(database_url, nats) as site:
                await settle_in(site, town)
                async with running_ingest(site):
                    async with BulkPublisher(nats.mqtt_host, nats.mqtt_port, connections=1) as publisher:
                        half = len(town.messages) // 2
                        for message in town.messages[:half]:
                            await publisher.publish(*message)
                        await steal(publisher._lanes[0].name)
                        trial.note("stolen, and taken back")
                        for message in town.messages[half:]:
                            await publisher.publish(*message)
                    assert publisher.acknowledged == len(town.messages)
                    await prove(site, town)

    asyncio.run(story())
