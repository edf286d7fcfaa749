"""What the vending interface counts, and the totals it reads for the head-end.

Stage: beside the routes. One registry per application, so that tests can have several. The head-end's counts are
read from the database when asked for: they survive every restart, and one interface shows those of all processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from psycopg import AsyncConnection

from db.vends import BatchTotals, StoreGauges, read_batch_totals, read_gauges

BATCH_OUTCOMES = ("received", "stored", "duplicate", "rejected", "quarantined")
# A vend takes some milliseconds; at 5 s the pool gives up, at 10 s the point of sale.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class VendingMetrics:
    """Counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._vends = Counter(
            "prepaid_vends",
            "Vend requests answered: vended, repeated, or the reason of a refusal",
            ["outcome"],
            registry=self.registry,
        )
        self._never_confirmed = Counter(
            "prepaid_vends_never_confirmed",
            "Held vends that were taken back since nobody confirmed them",
            registry=self.registry,
        )
        self._requests = Histogram(
            "prepaid_api_request_seconds",
            "Time from a request to its answer",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.figures = StoreFigures()
        self.registry.register(self.figures)

    def vend_answered(self, outcome: str) -> None:
        """Count the answer to a vend request."""
        self._vends.labels(outcome).inc()

    def never_confirmed(self, vends: int) -> None:
        """Count held vends that were taken back."""
        self._never_confirmed.inc(vends)

    def request_answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request of any kind under its route's template."""
        self._requests.labels(method, route, str(status)).observe(seconds)

    def render(self) -> bytes:
        """Write everything in the Prometheus text format."""
        return generate_latest(self.registry)


class StoreFigures(Collector):
    """The database's own figures as of the last refresh; none before the first.

    Invariants: `_settled` is the sum of all batches up to `_settled_id`, to which no row can be added any more, so
    that each refresh reads only the minutes since.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._settled_id = 0
        self._settled = dict.fromkeys(BATCH_OUTCOMES, 0)
        self._young = dict.fromkeys(BATCH_OUTCOMES, 0)
        self._gauges: StoreGauges | None = None

    async def refresh(self, conn: AsyncConnection) -> None:
        """Read what has come since the last refresh."""
        async with self._lock:
            runs = await read_batch_totals(conn, self._settled_id)
            self._gauges = await read_gauges(conn)
            self._young = dict.fromkeys(BATCH_OUTCOMES, 0)
            for run in runs:
                self._take(run)

    def forget(self) -> None:
        """Show no gauges: the database did not answer."""
        self._gauges = None

    def collect(self) -> Iterable[Metric]:
        """Yield the figures for one scrape."""
        yield GaugeMetricFamily(
            "prepaid_database_up", "1 if the database answered this scrape", value=0 if self._gauges is None else 1
        )
        if self._gauges is not None:
            yield from self._families(self._gauges)

    def _take(self, run: BatchTotals) -> None:
        counts = {outcome: int(getattr(run, outcome)) for outcome in BATCH_OUTCOMES}
        if run.settled:
            self._settled = {outcome: self._settled[outcome] + counts[outcome] for outcome in BATCH_OUTCOMES}
            self._settled_id = run.last_id
        else:
            self._young = counts

    def _families(self, gauges: StoreGauges) -> Iterator[Metric]:
        readings = CounterMetricFamily(
            "prepaid_readings", "Readings of all batches by what became of them", labels=["outcome"]
        )
        for outcome in BATCH_OUTCOMES:
            readings.add_metric([outcome], self._settled[outcome] + self._young[outcome])
        yield readings
        yield GaugeMetricFamily("prepaid_quarantine_rows", "Rows in quarantine", value=gauges.quarantine_rows)
        yield GaugeMetricFamily(
            "prepaid_open_orders", "Orders that no meter has confirmed yet", value=gauges.open_orders
        )
        if gauges.newest_batch_age_s is not None:
            yield GaugeMetricFamily(
                "prepaid_newest_batch_age_seconds",
                "Time since the newest batch of readings was written: the lag of ingest while meters report",
                value=gauges.newest_batch_age_s,
            )
