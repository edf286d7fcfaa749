"""Prometheus metrics of a dispatcher.

Stage: beside the dispatcher. Counters are of this process; gauges are of the whole database, the same in every
dispatcher.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from psycopg import AsyncConnection

from db.order_control import read_open_orders, read_success
from headend.dispatch_plan import AlarmKind, SendPlan, Waits
from headend.edges.due_orders import Claimed

SUCCESS_HOURS = 24


class DispatchMetrics:
    """What a dispatcher counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._sent = Counter(
            "prepaid_dispatch_commands", "Commands handed to a transport", ["kind", "relay"], registry=self.registry
        )
        self._put_off = Counter("prepaid_dispatch_put_off", "Orders put off, by why", ["why"], registry=self.registry)
        self._round = Histogram(
            "prepaid_dispatch_round_seconds",
            "Time from looking for due orders to noting that they left",
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5),
            registry=self.registry,
        )
        self._open = Gauge(
            "prepaid_orders_open",
            "Orders that no meter has confirmed",
            ["kind", "relay", "state", "waits_for"],
            registry=self.registry,
        )
        self._oldest = Gauge(
            "prepaid_orders_oldest_open_seconds",
            "Age of the oldest open order",
            ["kind", "relay"],
            registry=self.registry,
        )
        self._differing = Gauge(
            "prepaid_supply_differing", "Meters that do not report yet what was ordered", registry=self.registry
        )
        self._areas = Gauge(
            "prepaid_supply_limited_areas", "Areas whose cut-offs a limit holds back", ["limit"], registry=self.registry
        )
        self._makes = Gauge(
            "prepaid_supply_orders_by_make",
            f"Supply orders first sent within {SUCCESS_HOURS} h, by make and what became of them",
            ["make", "outcome"],
            registry=self.registry,
        )
        for why in Waits:
            self._put_off.labels(why.value)
        for kind in AlarmKind:
            self._areas.labels(kind.value)

    def round_done(self, claimed: Sequence[Claimed], plan: SendPlan, seconds: float) -> None:
        """Count a round: what was claimed and left, what was put off."""
        for (kind, relay), number in Count((order.kind, order.relay or "") for order in claimed).items():
            self._sent.labels(kind, relay).inc(number)
        for why, number in Count(order.why.value for order in plan.put_off).items():
            self._put_off.labels(why).inc(number)
        self._round.observe(seconds)

    async def count_open(self, conn: AsyncConnection) -> None:
        """Count what is open in the database."""
        found = await read_open_orders(conn)
        self._open.clear()
        self._oldest.clear()
        oldest_s: dict[tuple[str, str], int] = {}
        for each in found.counts:
            lane = (each.kind, each.relay or "")
            self._open.labels(*lane, each.state, each.waits_for or "").set(each.count)
            oldest_s[lane] = max(oldest_s.get(lane, 0), each.oldest_s)
        for lane, age_s in oldest_s.items():
            self._oldest.labels(*lane).set(age_s)
        self._differing.set(found.differing)
        for kind in AlarmKind:
            self._areas.labels(kind.value).set(found.limited.get(kind.value, 0))
        self._makes.clear()
        for make in await read_success(conn, hours=SUCCESS_HOURS):
            for outcome in ("confirmed", "superseded", "open", "impossible"):
                self._makes.labels(make.make, outcome).set(getattr(make, outcome))
