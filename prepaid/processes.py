"""Our processes, one by one: ingest, dispatch, notify, api. Each runs until SIGTERM or Ctrl-C and stops cleanly.

Stage: the outermost edge. Builds settings into what each edge needs; holds no rule of its own.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import structlog
import uvloop

from billing.calendar import LocalCalendar
from db.orders import PostingRules
from headend.dispatch_plan import CutOffLimits
from headend.edges.dispatch import Dispatcher, DispatchSettings
from headend.edges.dispatch_metrics import DispatchMetrics
from headend.edges.ingest import Ingest, IngestSettings
from headend.edges.metrics import IngestMetrics, serve_metrics
from headend.edges.stream_guard import GuardSettings, open_guard
from prepaid.embedded import mqtt_address
from prepaid.settings import Settings, SettingsError

_log = structlog.get_logger("process")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def calendar_of(settings: Settings) -> LocalCalendar:
    """Return the calendar of the installation's time zone."""
    return LocalCalendar(settings.zone)


def rules_of(settings: Settings) -> PostingRules:
    """Return what every post of the installation goes by."""
    stale_s = settings.stale_reading_s
    return PostingRules(calendar=calendar_of(settings), stale_ms=None if stale_s is None else stale_s * 1000)


def run_ingest(settings: Settings) -> None:
    """Run an ingest process."""
    nats_url = _required(settings.nats_url, "PREPAID_NATS_URL")
    ingest_settings = IngestSettings(
        database_url=_required(settings.database_url, "PREPAID_DATABASE_URL"),
        nats_url=nats_url,
        calendar=calendar_of(settings),
        lease_s=settings.lease_s,
        ack_wait_s=settings.ack_wait_s,
        stale_reading_s=settings.stale_reading_s,
    )
    mqtt_host, mqtt_port = mqtt_address(settings.mqtt_url, nats_url=nats_url)
    guard_settings = GuardSettings(
        nats_url=nats_url, mqtt_host=mqtt_host, mqtt_port=mqtt_port, ack_wait_s=settings.ack_wait_s
    )
    metrics = IngestMetrics()
    # Readings are short-lived and hold no cycles: the collector's full walks cost a third of ingest's time
    # (measured 2026-11-21, docs/benchmarks.md), so it walks what is old rarely.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)

    async def body(stop: asyncio.Event) -> None:
        with serve_metrics(metrics.registry, settings.ingest_metrics_port):
            async with open_guard(guard_settings, metrics) as guard, asyncio.TaskGroup() as group:
                keeping = group.create_task(guard.keep(), name="stream-guard")
                await Ingest(ingest_settings, metrics).run(stop)
                keeping.cancel()

    _run(body)


def run_dispatch(settings: Settings) -> None:
    """Run a dispatcher."""
    dispatch_settings = DispatchSettings(
        database_url=_required(settings.database_url, "PREPAID_DATABASE_URL"),
        nats_url=_required(settings.nats_url, "PREPAID_NATS_URL"),
        lease_s=settings.lease_s,
        calendar=calendar_of(settings),
        limits=CutOffLimits(
            per_minute_max=settings.cut_offs_per_minute_max, per_hour_max=settings.cut_offs_per_hour_max
        ),
    )
    metrics = DispatchMetrics()

    async def body(stop: asyncio.Event) -> None:
        with serve_metrics(metrics.registry, settings.dispatch_metrics_port):
            await Dispatcher(dispatch_settings, metrics).run(stop)

    _run(body)


def run_notify(settings: Settings) -> None:
    """Run a notifier.

    Raises: SettingsError when neither e-mail nor SMS is set up.
    """
    from headend.edges.notice_metrics import NoticeMetrics
    from headend.edges.notify import Notifier
    from prepaid.notice_ports import notice_ports, notify_settings

    database_url = _required(settings.database_url, "PREPAID_DATABASE_URL")
    metrics = NoticeMetrics()

    async def body(stop: asyncio.Event) -> None:
        with serve_metrics(metrics.registry, settings.notify_metrics_port):
            await Notifier(notify_settings(settings, database_url), notice_ports(settings), metrics).run(stop)

    _run(body)


def run_bridge(settings: Settings) -> None:
    """Run a bridge.

    Raises: SettingsError without a file of sources or an MQTT listener; SourcesError when the file is unusable.
    """
    from headend.edges.bridge import Bridge, BridgeSettings
    from headend.edges.bridge_metrics import BridgeMetrics
    from headend.edges.stream import prepare_stream
    from prepaid.sources import read_sources

    if settings.sources is None:
        raise SettingsError("PREPAID_SOURCES: expected the file of the bridge's sources")
    nats_url = _required(settings.nats_url, "PREPAID_NATS_URL")
    own = urlsplit(_required(settings.mqtt_url, "PREPAID_MQTT_URL"))
    bridge_settings = BridgeSettings(
        sources=read_sources(settings.sources, settings.zone),
        mqtt_host=own.hostname or "127.0.0.1",
        mqtt_port=own.port or 1883,
        member=settings.bridge_member,
    )
    metrics = BridgeMetrics()

    async def body(stop: asyncio.Event) -> None:
        with serve_metrics(metrics.registry, settings.bridge_metrics_port):
            # Before the first hand-over: our broker confirms and drops what no consumer asks for.
            own_host, own_port = bridge_settings.mqtt_host, bridge_settings.mqtt_port
            await prepare_stream(nats_url, own_host, own_port, ack_wait_s=settings.ack_wait_s)
            await Bridge(bridge_settings, metrics).run(stop)

    _run(body)


def run_gateway(settings: Settings) -> None:
    """Run a Modbus gateway.

    Raises: OutboxTaken when another gateway has this member's folder; MapError for an unusable map of ours.
    """
    from headend.edges.gateway import Gateway, GatewaySettings
    from headend.edges.gateway_metrics import GatewayMetrics
    from prepaid.gateway_parts import known_maps, publishers

    nats_url = _required(settings.nats_url, "PREPAID_NATS_URL")
    host, port = mqtt_address(settings.mqtt_url, nats_url=nats_url)
    gateway_settings = GatewaySettings(
        database_url=_required(settings.database_url, "PREPAID_DATABASE_URL"),
        nats_url=nats_url,
        lease_s=settings.lease_s,
        folder=settings.data_dir / f"gateway-{settings.gateway_member}",
        outbox_bytes_max=settings.gateway_outbox_mb_max * 1_000_000,
    )
    maps = known_maps(settings.gateway_maps)
    metrics = GatewayMetrics()

    async def body(stop: asyncio.Event) -> None:
        with serve_metrics(metrics.registry, settings.gateway_metrics_port):
            broker = publishers(nats_url, host, port, ack_wait_s=settings.ack_wait_s)
            await Gateway(gateway_settings, maps, metrics, broker).run(stop)

    _run(body)


def run_watch(settings: Settings) -> None:
    """Run a watch: what only time shows, what is counted apart from the batches, and the rollups of readings."""
    from db.storage_classes import parse_retention
    from headend.edges.rollup import Rollup, RollupSettings
    from headend.edges.watch import Watch, WatchSettings

    database_url, calendar = _required(settings.database_url, "PREPAID_DATABASE_URL"), calendar_of(settings)
    watch_settings = WatchSettings(database_url=database_url, calendar=calendar, silent_after_h=settings.silent_after_h)
    rollup_settings = RollupSettings(
        database_url=database_url,
        calendar=calendar,
        # Nothing goes by itself before somebody has decided for how long it is kept.
        retention=parse_retention(settings.retention) if settings.retention else None,
    )

    async def body(stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(Watch(watch_settings).run(stop), name="watch")
            group.create_task(Rollup(rollup_settings).run(stop), name="rollup")

    _run(body)


def run_api(settings: Settings) -> None:
    """Run the HTTP API."""
    # Only this process pays for loading the web framework.
    import uvicorn

    from prepaid.engineers import add_engineers
    from prepaid.keys import installation_module, master_key
    from prepaid.payments import online_settings
    from vending.edges.api import create_app
    from vending.edges.client_certificates import CertificateProtocol, tls_options
    from vending.edges.gate import PlainKeys
    from vending.slips.blocks import Utility

    database_url = _required(settings.database_url, "PREPAID_DATABASE_URL")
    app = create_app(
        database_url=database_url,
        calendar=calendar_of(settings),
        security_module=asyncio.run(installation_module(settings, database_url)),
        vend_min_minor=settings.vend_min_minor,
        vend_max_minor=settings.vend_max_minor,
        held_max_s=settings.held_vend_max_s,
        stale_reading_s=settings.stale_reading_s,
        sms_secret=None if settings.sms_secret is None else settings.sms_secret.encode(),
        master=master_key(settings),
        plain_keys=PlainKeys(settings.api_plain_keys),
        utility=Utility(name=settings.utility_name, help_line=settings.utility_help),
        online=online_settings(settings),
    )
    add_engineers(app, settings)
    if settings.api_tls_cert is None and settings.api_host not in _LOOPBACK:
        _log.warning(
            "api_without_tls", note="amounts and tokens go over the line openly, unless a proxy before it ends TLS"
        )
    # What a request makes is gone with its answer, and the application itself is for ever: see run_ingest.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    uvicorn.run(
        app,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        access_log=False,
        http="auto" if settings.api_tls_client_ca is None else CertificateProtocol,
        **tls_options(settings.api_tls_cert, settings.api_tls_key, settings.api_tls_client_ca),
    )


def _run(body: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await body(stop)
        _log.info("stopped")

    uvloop.run(main())


def _required(value: str | None, name: str) -> str:
    if value is None:
        raise SettingsError(f"{name}: expected an address, since one process alone starts no embedded parts")
    return value
