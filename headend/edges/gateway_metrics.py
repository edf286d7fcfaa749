"""Prometheus counters of a gateway.

Stage: beside the gateway. One registry per process object, so that tests can have several.
"""

from __future__ import annotations

from enum import Enum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from headend.polling import Begun


class Outcome(Enum):
    """What becomes of a poll; each has exactly one.

    READ gave a reading. SILENT had no answer in time; REFUSED an exception; MALFORMED bytes that are none of what was
    asked; IMPLAUSIBLE values that no meter of the model has, a wrong word order above all, or no energy; DROPPED a
    register that two reads told differently; OTHER_METER
    a device that says it is not the registered one; LINE_LOST a line that went away meanwhile; FAULT is our own.
    """

    READ = "read"
    SILENT = "silent"
    REFUSED = "refused"
    MALFORMED = "malformed"
    IMPLAUSIBLE = "implausible"
    DROPPED = "dropped"
    OTHER_METER = "other_meter"
    LINE_LOST = "line_lost"
    FAULT = "fault"


class GatewayMetrics:
    """What a gateway process counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        polls = Counter("prepaid_gateway_polls", "Polls by their outcome", ["outcome"], registry=self.registry)
        self._polls = {outcome: polls.labels(outcome.value) for outcome in Outcome}
        self._late = Histogram(
            "prepaid_gateway_poll_late_seconds",
            "How long after its time a poll began",
            buckets=(0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 300),
            registry=self.registry,
        )
        self._missed = Counter(
            "prepaid_gateway_polls_missed", "Places of meters that passed without a poll", registry=self.registry
        )
        self._doubted = Counter(
            "prepaid_gateway_registers_doubted",
            "Registers that fell or jumped, by what the second read made of them",
            ["became"],
            registry=self.registry,
        )
        self._implausible = Counter(
            "prepaid_gateway_implausible",
            "Reads that no meter of the model can give, by the quantity that shows it",
            ["model", "quantity"],
            registry=self.registry,
        )
        self._commands = Counter(
            "prepaid_gateway_commands", "Commands by kind and answer", ["kind", "result"], registry=self.registry
        )
        self._writes_refused = Counter(
            "prepaid_gateway_writes_refused", "Writes that were not made, by why", ["why"], registry=self.registry
        )
        self._stray_bytes = Counter(
            "prepaid_gateway_stray_bytes", "Bytes on lines that belonged to no awaited answer", registry=self.registry
        )
        self._lines = Gauge(
            "prepaid_gateway_lines", "Lines that this gateway polls, by whether they are up", ["up"],
            registry=self.registry,
        )  # fmt: skip
        self._meters = Gauge("prepaid_gateway_meters", "Meters by how it goes", ["state"], registry=self.registry)
        self._published = Counter(
            "prepaid_gateway_published", "Messages that our broker has confirmed", registry=self.registry
        )
        self._broker = Gauge("prepaid_gateway_broker_up", "1 while our broker confirms", registry=self.registry)
        self._waiting = Gauge("prepaid_gateway_outbox_bytes", "Bytes that wait on disk", registry=self.registry)
        self._unwritable = Counter(
            "prepaid_gateway_unwritable_dropped",
            "Messages that gave way in memory while the disk took none",
            registry=self.registry,
        )
        self._torn = Gauge("prepaid_gateway_outbox_torn_bytes", "Bytes a kill left half", registry=self.registry)
        self._lost = Gauge(
            "prepaid_gateway_outbox_lost_bytes", "Bytes that gave way to the bound, or damaged", registry=self.registry
        )

    def began(self, begun: Begun) -> None:
        """Count how late a poll began, and what was missed before it."""
        self._late.observe(begun.late_s)
        if begun.missed:
            self._missed.inc(begun.missed)

    def polled(self, outcome: Outcome) -> None:
        """Count what became of a poll."""
        self._polls[outcome].inc()

    def doubted(self, became: str) -> None:
        """Count a register that was read twice."""
        self._doubted.labels(became).inc()

    def implausible(self, model: str, quantity: str) -> None:
        """Count a read that no meter of the model can give."""
        self._implausible.labels(model, quantity).inc()

    def commanded(self, kind: str, result: str) -> None:
        """Count a command."""
        self._commands.labels(kind, result).inc()

    def write_refused(self, why: str) -> None:
        """Count a write that was not made."""
        self._writes_refused.labels(why).inc()

    def strayed(self, count: int) -> None:
        """Count bytes that belonged to nothing."""
        self._stray_bytes.inc(count)

    def lines(self, up: int, down: int) -> None:
        """Show how many lines are up and down."""
        self._lines.labels("yes").set(up)
        self._lines.labels("no").set(down)

    def meters(self, by_state: dict[str, int]) -> None:
        """Show how many meters are in each state."""
        self._meters.clear()
        for state, count in by_state.items():
            self._meters.labels(state).set(count)

    def published(self, count: int) -> None:
        """Count messages that our broker has."""
        self._published.inc(count)
        self._broker.set(1)

    def broker_away(self) -> None:
        """Show that our broker does not confirm."""
        self._broker.set(0)

    def unwritable(self, dropped: int) -> None:
        """Count messages that were dropped because the disk takes none."""
        self._unwritable.inc(dropped)

    def outbox(self, *, waiting: int, torn: int, lost: int) -> None:
        """Show how the outbox stands."""
        self._waiting.set(waiting)
        self._torn.set(torn)
        self._lost.set(lost)
