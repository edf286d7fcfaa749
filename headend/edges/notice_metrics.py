"""What a notifier counts, for Prometheus.

Stage: beside the notifier. One registry per process object, so that tests can have several.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from billing.notices import Channel

OUTCOMES = ("sent", "later", "dead")


class NoticeMetrics:
    """Counters of one notifier."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._planned = Counter("prepaid_notices_planned", "Notices that were given their way", registry=self.registry)
        self._tries = Counter(
            "prepaid_notice_tries",
            "Tries to deliver a message: sent, to be tried again later, or dead",
            ["channel", "outcome"],
            registry=self.registry,
        )
        for channel in (Channel.SMS, Channel.EMAIL):
            for outcome in OUTCOMES:
                self._tries.labels(channel.value, outcome)

    def planned(self, notices: int) -> None:
        """Count notices that were given their way."""
        self._planned.inc(notices)

    def tried(self, channel: Channel, outcome: str) -> None:
        """Count a try by what became of it."""
        self._tries.labels(channel.value, outcome).inc()
