"""Prometheus counters of the head-end's processes.

Stage: beside the edges. One registry per process object, so that tests can have several.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

OUTCOMES = ("received", "stored", "duplicate", "rejected", "quarantined")


class IngestMetrics:
    """What an ingest process counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._readings = Counter(
            "prepaid_ingest_readings",
            "Readings by what became of them; received = stored + duplicate + rejected + quarantined",
            ["outcome"],
            registry=self.registry,
        )
        self._messages = Counter("prepaid_ingest_messages", "Messages acknowledged", registry=self.registry)
        self._lag = Gauge(
            "prepaid_ingest_lag_seconds",
            "Age of the last message at its commit, by the broker's store time",
            registry=self.registry,
        )
        self._shards = Gauge("prepaid_ingest_shards", "Shards this process owns", registry=self.registry)
        self._flags = Counter(
            "prepaid_ingest_flags", "Stored readings that a validation rule noted", ["rule"], registry=self.registry
        )
        self._batch = Histogram(
            "prepaid_ingest_batch_seconds",
            "Time from taking a batch to its commit",
            buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5),
            registry=self.registry,
        )
        self._stream_lost = Counter(
            "prepaid_ingest_stream_lost",
            "Times that the broker had lost the stream or a consumer, which this process made again",
            registry=self.registry,
        )
        self._stream_dropped = Counter(
            "prepaid_ingest_stream_dropped_at_most",
            "Messages that the broker may have acknowledged and dropped meanwhile",
            registry=self.registry,
        )
        for outcome in OUTCOMES:
            self._readings.labels(outcome)

    def stream_made_again(self, dropped_at_most: int) -> None:
        """Count a loss of the stream, and what went with it."""
        self._stream_lost.inc()
        self._stream_dropped.inc(dropped_at_most)

    def noted(self, rules: Iterable[str]) -> None:
        """Count what validation rules have noted of readings that are stored."""
        for rule in rules:
            self._flags.labels(rule).inc()

    def shards_held(self, count: int) -> None:
        """Say how many shards the process owns."""
        self._shards.set(count)

    def batch_stored(
        self,
        counts: Mapping[int | None, Mapping[str, int]],
        messages: int,
        last_stored_at_ms: int,
        seconds: float,
    ) -> None:
        """Count a committed batch."""
        for counted in counts.values():
            for outcome in OUTCOMES:
                self._readings.labels(outcome).inc(counted.get(outcome, 0))
        self._messages.inc(messages)
        self._lag.set(max(0.0, time.time() - last_stored_at_ms / 1000))
        self._batch.observe(seconds)


@contextmanager
def serve_metrics(registry: CollectorRegistry, port: int | None) -> Iterator[None]:
    """Serve a registry at `/metrics` on loopback for as long as the context lasts; without a port, do not."""
    if port is None:
        yield
        return
    server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
