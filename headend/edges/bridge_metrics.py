"""Prometheus counters of the bridge.

Stage: beside the bridge. One registry per process object, so that tests can have several.
"""

from __future__ import annotations

from enum import Enum

from prometheus_client import CollectorRegistry, Counter, Gauge


class Outcome(Enum):
    """What becomes of a foreign message; each has exactly one.

    FORWARDED gave a native message; WITHOUT_READING is understood and gives none (power alone, a phase of three, too
    soon after the last); MALFORMED went on with its bytes, to quarantine.
    """

    FORWARDED = "forwarded"
    WITHOUT_READING = "without_reading"
    MALFORMED = "malformed"
    IGNORED_RETAINED = "ignored_retained"


class BridgeMetrics:
    """What a bridge process counts, by source.

    Invariants: received = the sum of the outcomes, once the messages in hand are settled.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._messages = Counter(
            "prepaid_bridge_messages",
            "Messages from foreign brokers: received, and by what became of them",
            ["source", "outcome"],
            registry=self.registry,
        )
        self._connected = Gauge(
            "prepaid_bridge_connected",
            "1 while a source is subscribed and our own broker is there, else 0",
            ["source"],
            registry=self.registry,
        )

    def know(self, source: str) -> None:
        """Show a source from its start, with zeros."""
        for outcome in ("received", *(outcome.value for outcome in Outcome)):
            self._messages.labels(source, outcome)
        self.connected(source, False)

    def connected(self, source: str, is_connected: bool) -> None:
        """Show whether a source is served."""
        self._connected.labels(source).set(is_connected)

    def received(self, source: str, number: int) -> None:
        """Count messages that came."""
        self._messages.labels(source, "received").inc(number)

    def settled(self, source: str, outcome: Outcome) -> None:
        """Count what became of a message that is handed over."""
        self._messages.labels(source, outcome.value).inc()
