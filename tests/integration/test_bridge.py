"""The bridge: meters of other makes on another broker, charged as our own, each message once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import aiomqtt
import pytest
from aiomqtt import ProtocolVersion

from billing.calendar import from_ms
from headend.edges.bridge import Bridge, BridgeSettings, Source, wall_ms
from headend.edges.bridge_metrics import BridgeMetrics
from prepaid.embedded import EmbeddedNats
from prepaid.embedded.process import LOOPBACK, spawn, stop_child
from protocols.makes.facts import Joining, Make, Naming, Native
from protocols.makes.mapping import builtin_mapping_text, read_mapping
from protocols.makes.shelly import ShellyGen1
from tests.mosquitto import running_mosquitto
from tests.support import HOUR_MS, MINUTE_MS, REGISTER_WH, T0, Message, Site, open_site, reading, running_ingest

pytestmark = [pytest.mark.db, pytest.mark.broker]

KOLKATA = ZoneInfo("Asia/Kolkata")
NAMING = Naming(prefix="X-")
TASMOTA: Make = read_mapping(builtin_mapping_text("tasmota"), zone=KOLKATA, naming=NAMING, joining=Joining())
SHELLY: Make = ShellyGen1(naming=NAMING, joining=Joining())
# Kills itself in the place of its first acknowledgement: after the hand-over, before the other broker knows of it.
DIES_BEFORE_ACKNOWLEDGING = """
import os, signal
from headend.edges import bridge
bridge.acknowledge = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from prepaid.processes import run_bridge
from prepaid.settings import load_settings
run_bridge(load_settings())
"""


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[int]:
    """Another broker; its port."""
    with running_mosquitto(tmp_path / "mosquitto") as port:
        yield port


def tasmota(at_ms: int, wh: int) -> bytes:
    """Say what a Tasmota plug says: local time without a zone, kWh."""
    local = (from_ms(at_ms) + timedelta(hours=5, minutes=30)).replace(tzinfo=None)
    return json.dumps({"Time": local.isoformat(), "ENERGY": {"Total": wh / 1000, "Power": 950}}).encode()


def source(port: int, make: Make, *, version: ProtocolVersion = ProtocolVersion.V5, share: str | None = None) -> Source:
    name = type(make).__name__.lower()
    return Source(name=name, host=LOOPBACK, port=port, make=make, version=version, share=share)


async def publish(port: int, *messages: Message, retain: bool = False) -> None:
    """Publish at QoS 1 as meters of another make do."""
    async with aiomqtt.Client(LOOPBACK, port, identifier="meters") as client:
        for topic, payload in messages:
            await client.publish(topic, payload, qos=1, retain=retain)


@asynccontextmanager
async def running_bridge(
    site: Site, sources: Sequence[Source], *, member: int = 1, clock_ms: Callable[[], int] = wall_ms
) -> AsyncIterator[BridgeMetrics]:
    """Run a bridge as a task; return when all its sources are subscribed."""
    metrics, stop = BridgeMetrics(), asyncio.Event()
    settings = BridgeSettings(
        sources=sources, mqtt_host=site.nats.mqtt_host, mqtt_port=site.nats.mqtt_port, member=member
    )
    task = asyncio.create_task(Bridge(settings, metrics, clock_ms=clock_ms).run(stop))
    site.tasks.append(task)

    async def joined() -> bool:
        return all(
            metrics.registry.get_sample_value("prepaid_bridge_connected", {"source": each.name}) for each in sources
        )

    try:
        await site.until(joined, "the bridge has subscribed")
        yield metrics
    finally:
        site.tasks.remove(task)
        stop.set()
        await asyncio.wait_for(task, 20)


def count(metrics: BridgeMetrics, name: str, outcome: str) -> int:
    labels = {"source": name, "outcome": outcome}
    return int(metrics.registry.get_sample_value("prepaid_bridge_messages_total", labels) or 0)


async def settled(site: Site, metrics: BridgeMetrics, name: str, received: int) -> None:
    """Wait until so many messages of a source are handed over and what came of them is stored."""

    async def seen() -> bool:
        done = ("forwarded", "without_reading", "malformed", "ignored_retained")
        return sum(count(metrics, name, outcome) for outcome in done) >= received

    await site.until(seen, f"{received} messages of {name} are handed over")
    await site.settled()


def test_tasmota_and_shelly_readings_are_charged_and_what_is_wrong_is_quarantined(
    database_url: str, nats: EmbeddedNats, mosquitto: int
) -> None:
    """Two makes over MQTT 5 and 3.1.1; bytes that are wrong keep their meter, unknown devices their topic."""
    clock = {"ms": T0 + HOUR_MS}

    async def story() -> None:
        async with open_site(database_url, nats) as site, running_ingest(site):
            plug, clamp = await site.add_home("X-plug"), await site.add_home("X-shellyem-1-0")
            await publish(mosquitto, ("shellies/shellyem-1/emeter/0/total", b"99999"), retain=True)
            sources = [source(mosquitto, TASMOTA), source(mosquitto, SHELLY, version=ProtocolVersion.V311)]
            async with running_bridge(site, sources, clock_ms=lambda: clock["ms"]) as metrics:
                await settled(site, metrics, "shellygen1", 1)
                await publish(
                    mosquitto,
                    ("tele/plug/SENSOR", tasmota(T0 + HOUR_MS, REGISTER_WH + 900)),
                    ("tele/plug/STATE", b"{}"),
                    ("tele/plug/SENSOR", b"{"),
                    ("tele/no such/SENSOR", tasmota(T0 + HOUR_MS, 5)),
                    ("shellies/shellyem-1/emeter/0/power", b"950.0"),
                    ("shellies/shellyem-1/emeter/0/total", b"1700.4"),
                )
                await settled(site, metrics, "mapping", 3)
                await settled(site, metrics, "shellygen1", 3)
                assert [count(metrics, "mapping", what) for what in ("received", "forwarded", "malformed")] == [3, 1, 2]
                shelly = [count(metrics, "shellygen1", what) for what in ("received", "forwarded", "ignored_retained")]
                assert shelly == [3, 1, 1]
            assert await site.registers("X-plug") == {T0 + HOUR_MS: REGISTER_WH + 900}
            assert await site.registers("X-shellyem-1-0") == {T0 + HOUR_MS: 1700}
            assert {(await site.balance(home)) < 100_000 for home in (plug, clamp)} == {True}
            held = await site.rows("select topic, reason, raw from quarantine order by reason")
            assert [(topic, reason) for topic, reason, _ in held] == [
                ("amr/X-plug/rd", "malformed"),
                ("foreign/mapping/tele/no%20such/SENSOR", "unknown_topic"),
            ]
            assert bytes(held[0][2]) == b"{"

    asyncio.run(story())


@pytest.mark.parametrize("version", [ProtocolVersion.V5, ProtocolVersion.V311])
def test_messages_wait_in_the_other_broker_while_the_bridge_or_ours_is_away(
    version: ProtocolVersion, database_url: str, nats: EmbeddedNats, mosquitto: int
) -> None:
    """A session is kept over a stop of the bridge and over the death of our broker; native meters pass unchanged.

    Where payloads have no clock nothing waits beyond a minute, or at all by MQTT 3.1.1.
    """
    waited = 1 if version is ProtocolVersion.V5 else 0

    async def story() -> None:
        async with open_site(database_url, nats) as site, running_ingest(site):
            await site.add_home("X-plug")
            await site.add_home("M1")
            sources = [source(mosquitto, make, version=version) for make in (TASMOTA, Native(), SHELLY)]
            async with running_bridge(site, sources):
                pass
            await publish(
                mosquitto,
                ("shellies/shellyem-1/emeter/0/power", b"1"),
                ("tele/plug/SENSOR", tasmota(T0 + HOUR_MS, REGISTER_WH + 1)),
            )
            async with running_bridge(site, sources) as metrics:
                await settled(site, metrics, "mapping", 1)
                nats.kill()
                await publish(
                    mosquitto,
                    ("tele/plug/SENSOR", tasmota(T0 + 2 * HOUR_MS, REGISTER_WH + 2)),
                    reading("M1", T0 + HOUR_MS, REGISTER_WH + 3),
                )
                nats.start()
                await settled(site, metrics, "mapping", 2)
                await settled(site, metrics, "native", 1)
                await settled(site, metrics, "shellygen1", waited)
            assert count(metrics, "shellygen1", "received") == waited
            assert await site.registers("X-plug") == {
                T0 + HOUR_MS: REGISTER_WH + 1,
                T0 + 2 * HOUR_MS: REGISTER_WH + 2,
            }
            assert await site.registers("M1") == {T0 + HOUR_MS: REGISTER_WH + 3}

    asyncio.run(story())


def test_bridges_that_share_a_source_settle_each_message_once(
    database_url: str, nats: EmbeddedNats, mosquitto: int
) -> None:
    """With a shared subscription two bridges divide the messages between them."""
    readings = 40

    async def story() -> None:
        async with open_site(database_url, nats) as site, running_ingest(site):
            await site.add_home("X-plug")
            sources = [source(mosquitto, TASMOTA, share="town")]
            async with (
                running_bridge(site, sources) as first,
                running_bridge(site, sources, member=2) as second,
            ):
                sent = {T0 + number * MINUTE_MS: REGISTER_WH + number for number in range(1, readings + 1)}
                await publish(mosquitto, *(("tele/plug/SENSOR", tasmota(at_ms, wh)) for at_ms, wh in sent.items()))

                async def all_stored() -> bool:
                    return await site.registers("X-plug") == sent

                await site.until(all_stored, "both bridges together hand over everything")
                await site.settled()
            shares = [count(metrics, "mapping", "received") for metrics in (first, second)]
            assert sum(shares) == readings
            assert min(shares) > 0

    asyncio.run(story())


@contextmanager
def bridge_process(
    site: Site, folder: Path, command: Sequence[str], sources: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a bridge as a process of its own."""
    environment = {
        **os.environ,
        "PREPAID_SOURCES": str(sources),
        "PREPAID_NATS_URL": site.nats.nats_url,
        "PREPAID_MQTT_URL": f"mqtt://{site.nats.mqtt_host}:{site.nats.mqtt_port}",
    }
    child = spawn(
        [sys.executable, "-P", *command],
        log_path=folder / "bridge.log",
        death_signal=signal.SIGTERM,
        environment=environment,
    )
    try:
        yield child
    finally:
        stop_child(child, name="bridge", ladder=((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)))


def test_bridge_killed_between_hand_over_and_acknowledgement_loses_nothing_and_doubles_nothing(
    database_url: str, nats: EmbeddedNats, mosquitto: int, tmp_path: Path
) -> None:
    """What was handed over comes again after the crash, and the key of the reading drops the copy."""
    sources = tmp_path / "sources.toml"
    sources.write_text(
        f'[[source]]\nname = "town"\nurl = "mqtt://{LOOPBACK}:{mosquitto}"\nmake = "tasmota"\nserial_prefix = "X-"\n'
    )
    sent = {T0 + number * MINUTE_MS: REGISTER_WH + number for number in range(1, 61)}

    async def story() -> None:
        async with open_site(database_url, nats) as site, running_ingest(site):
            home = await site.add_home("X-plug")

            async def joined() -> bool:
                return "source_joined" in (tmp_path / "bridge.log").read_text()

            with bridge_process(site, tmp_path, ["-c", DIES_BEFORE_ACKNOWLEDGING], sources) as child:
                await site.until(joined, "the bridge has subscribed")
                await publish(mosquitto, *(("tele/plug/SENSOR", tasmota(at_ms, wh)) for at_ms, wh in sent.items()))
                assert await asyncio.to_thread(child.wait, 20) == -signal.SIGKILL
            await site.settled()
            handed_over = await site.registers("X-plug")
            assert handed_over, "the hand-over was durable when the process died"

            async def all_stored() -> bool:
                return await site.registers("X-plug") == sent

            with bridge_process(site, tmp_path, ["-m", "prepaid", "bridge"], sources) as child:
                await site.until(all_stored, "everything comes, what was handed over included")
                await site.settled()
                child.terminate()
                assert await asyncio.to_thread(child.wait, 20) == 0
            totals = await site.totals()
            assert (totals.received, totals.stored, totals.quarantined) == (
                len(sent) + totals.duplicate,
                len(sent),
                0,
            )
            assert totals.duplicate == len(handed_over)
            assert (await site.view(home)).meter.serial == "X-plug"

    asyncio.run(story())
