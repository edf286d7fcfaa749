"""Our processes, one by one: ingest, dispatch, notify, api. Each runs until SIGTERM or Ctrl-C and stops cleanly.

Stage: the outermost edge. Builds settings into what each edge needs; holds no rule of its own.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable

import structlog
import uvloop

from billing.calendar import LocalCalendar
from db.orders import PostingRules
from headend.dispatch_plan import CutOffLimits
from headend.edges.dispatch import Dispatcher, DispatchSettings
from headend.edges.dispatch_metrics import DispatchMetrics
from headend.edges.ingest import Ingest, IngestSettings
from headend.edges.metrics import IngestMetrics, serve_metrics
from prepaid.settings import Settings, SettingsError

_log = structlog.get_logger("process")


def calendar_of(settings: Settings) -> LocalCalendar:
    """Return the calendar of the installation's time zone."""
    return LocalCalendar(settings.zone)


def rules_of(settings: Settings) -> PostingRules:
    """Return what every post of the installation goes by."""
    stale_s = settings.stale_reading_s
    return PostingRules(calendar=calendar_of(settings), stale_ms=None if stale_s is None else stale_s * 1000)


def run_ingest(settings: Settings) -> None:
    """Run an ingest process."""
    ingest_settings = IngestSettings(
        database_url=_required(settings.database_url, "PREPAID_DATABASE_URL"),
        nats_url=_required(settings.nats_url, "PREPAID_NATS_URL"),
        calendar=calendar_of(settings),
        lease_s=settings.lease_s,
        ack_wait_s=settings.ack_wait_s,
        stale_reading_s=settings.stale_reading_s,
    )
    metrics = IngestMetrics()
    # Readings are short-lived and hold no cycles: the collector's full walks cost a third of ingest's time
    # (measured 2026-11-21, docs/benchmarks.md), so it walks what is old rarely.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)

    async def body(stop: asyncio.Event) -> None:
        with serve_metrics(metrics.registry, settings.ingest_metrics_port):
            await Ingest(ingest_settings, metrics).run(stop)

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


def run_api(settings: Settings) -> None:
    """Run the HTTP API."""
    # Only this process pays for loading the web framework.
    import uvicorn

    from prepaid.keys import soft_security_module
    from vending.edges.api import create_app

    database_url = _required(settings.database_url, "PREPAID_DATABASE_URL")
    app = create_app(
        database_url=database_url,
        calendar=calendar_of(settings),
        security_module=asyncio.run(soft_security_module(settings, database_url)),
        vend_min_minor=settings.vend_min_minor,
        vend_max_minor=settings.vend_max_minor,
        stale_reading_s=settings.stale_reading_s,
        sms_secret=None if settings.sms_secret is None else settings.sms_secret.encode(),
    )
    uvicorn.run(app, host=settings.api_host, port=settings.api_port, log_config=None, access_log=False)


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
