"""The dispatcher: orders from the database to meters, each retried until its meter confirms it.

Stage: after the commit that wrote an order. A dispatcher owns shards by lease. In one transaction it finds what is due,
decides what leaves (`headend.dispatch_plan`) and claims it, which re-reads whether it is still current; then it
publishes with epoch and expiry at QoS 0, so that no command is left queued in the broker. Confirmations come back
through ingest like every word of a meter.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import nats
import nats.errors
import structlog
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.errors import IdleInTransactionSessionTimeout

from billing.calendar import LocalCalendar, to_ms
from db.errors import LeaseLost
from db.leases import Lease, Owner, fence, release_leases, take_leases
from db.named import sql
from db.pool import APPLICATION_ROLE, connect
from db.supply_rules import rules_in_force
from headend.dispatch_plan import CutOffLimits, Patience, SendPlan, hours_at, plan_sends
from headend.edges.command_ports import MODBUS, MQTT, NatsCommands, Outgoing, TransportDown, Transports
from headend.edges.dispatch_metrics import DispatchMetrics
from headend.edges.due_orders import (
    Claimed,
    ask_contradicting,
    claim,
    find_due,
    know_areas,
    order_anew,
    put_off,
    raise_alarms,
    refresh,
)
from headend.edges.gap_desk import GAP_LIMITS, GapLimits, forget_old_gaps, look_at_gaps
from headend.edges.token_desk import settle_local_credits
from headend.validate import FUTURE_SLACK_MS
from protocols.native import Command, OrderKind, Relay, encode_command
from protocols.topics import SHARDS

_log = structlog.get_logger("dispatch")

# A woken dispatcher is at work in milliseconds; without a wake-up it looks this often, 10 times within a 2 s retry.
POLL_S = 0.2
# After an outage of database or broker, or a deadlock, the next try comes this soon.
RETRY_S = 1.0
# Shards of a dispatcher that died are looked for this often.
TAKE_EVERY_S = 1.0
# Alarms that ended, old counts and contradictions are looked for this often: each is a statement of milliseconds.
TEND_EVERY_S = 5.0
# What is counted over all open orders, 50 ms for 100,000, is counted this often.
GAUGE_EVERY_S = 15.0
# A database clock that falls behind ours by more than this has been set back; a look at it costs milliseconds.
CLOCK_SLACK_S = 1.0
# A meter's clock may run as far ahead as its readings are still believed; then a minute more. The next try carries a
# new expiry, and epochs end older commands.
COMMAND_LIFE_MS = FUTURE_SLACK_MS + 60_000
# A word that crossed the confirmation on its way is followed by another in seconds. A switch that somebody moves back
# again and again is moved 6 times an hour at most: it wears out, and so does the family.
PATIENCE = Patience(grace_ms=15_000, again_ms=600_000)


def wall_clock_ms() -> int:
    """Tell the UTC time in milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """What a dispatcher needs to know."""

    database_url: str
    nats_url: str
    lease_s: float
    calendar: LocalCalendar
    limits: CutOffLimits
    patience: Patience = PATIENCE
    gaps: GapLimits = GAP_LIMITS


@dataclass(slots=True, kw_only=True)
class _Tending:
    """What a dispatcher does now and then, and where its sweeps stand."""

    tend_at_s: float = 0.0
    gauge_at_s: float = 0.0
    after_meter: int = 0
    after_account: int = 0
    behind_s: float | None = None
    shards_seen: set[int] = field(default_factory=set)


class Dispatcher:
    """One dispatcher process.

    Invariants: an order is sent only by the owner of its shard's lease, and only while it is the current one; a
    cut-off only within the hours of its scheme and the limits of its area. `ports` has further transports;
    `now_ms` tells the time that schemes and expiries go by, `steady_s` one that is never set.
    """

    def __init__(
        self,
        settings: DispatchSettings,
        metrics: DispatchMetrics,
        *,
        ports: Transports | None = None,
        now_ms: Callable[[], int] = wall_clock_ms,
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._ports = dict(ports or {})
        self._now_ms = now_ms
        self._steady_s = steady_s
        name = f"dispatch-{os.getpid()}-{secrets.token_hex(4)}"
        self._owner = Owner(role="dispatch", name=name, lease_s=settings.lease_s)
        self._leases: dict[int, Lease] = {}
        self._take_at_s = 0.0
        self._unmarked: dict[int, datetime] = {}
        self._tending = _Tending()

    async def run(self, stop: asyncio.Event) -> None:
        """Dispatch until `stop` is set; outages of database and broker are waited out."""
        while not stop.is_set():
            try:
                client = await nats.connect(self._settings.nats_url, max_reconnect_attempts=-1, name=self._owner.name)
                try:
                    over_broker = NatsCommands(client)
                    await self._session({MQTT: over_broker, MODBUS: over_broker} | self._ports, stop)
                finally:
                    await client.close()
            except LeaseLost as lost:
                _log.warning("lease_lost", owner=self._owner.name, detail=str(lost))
                self._leases.clear()
            except (
                OperationalError,
                InterfaceError,
                IdleInTransactionSessionTimeout,
                nats.errors.Error,
                OSError,
                TimeoutError,
            ) as error:
                _log.warning("dispatch_retry", detail=str(error).strip()[:200])
                self._leases.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), RETRY_S)

    async def _session(self, ports: Transports, stop: asyncio.Event) -> None:
        below_lease_s = max(1, int(self._settings.lease_s / 2))
        self._tending = _Tending()
        async with await connect(
            self._settings.database_url,
            application=self._owner.name,
            idle_in_transaction_s=below_lease_s,
            role=APPLICATION_ROLE,
        ) as conn:
            await conn.execute(sql("listen_for_orders"))
            while not stop.is_set():
                await self._keep_leases(conn)
                more = await self._send_due(conn, ports)
                await self._tend(conn)
                if not more:
                    await _await_wake(conn, POLL_S)
            await release_leases(conn, self._owner)

    async def _keep_leases(self, conn: AsyncConnection) -> None:
        missing = set(range(SHARDS)) - self._leases.keys()
        now_s = time.monotonic()
        if missing and now_s >= self._take_at_s:
            self._take_at_s = now_s + TAKE_EVERY_S
            taken = await take_leases(conn, self._owner, missing)
            self._leases.update({lease.shard: lease for lease in taken})

    async def _send_due(self, conn: AsyncConnection, ports: Transports) -> bool:
        """Claim what is due under our leases and may leave, publish it, note that it left; tell whether more is due."""
        began_s = time.monotonic()
        now_ms = self._now_ms()
        async with conn.transaction():
            await fence(conn, self._owner, self._leases.values())
            today = self._settings.calendar.day_of(now_ms)
            due = await find_due(conn, list(self._leases), self._settings.limits, today)
            await self._notice_clock(conn, due.clock)
            # Read for every round: rules may have been replaced, and only those in force now count.
            rules = await rules_in_force(conn, today)
            plan = plan_sends(
                due.orders,
                transports=ports.keys(),
                hours_of=hours_at(rules, now_ms, self._settings.calendar),
                patience=self._settings.patience,
                areas=due.areas,
                limits=self._settings.limits,
            )
            raised = await raise_alarms(conn, plan.alarms)
            await put_off(conn, plan.put_off)
            anew = await order_anew(conn, plan.anew)
            claimed = await claim(conn, [order.id for order in plan.send], self._settings.limits)
            claimed = await refresh(conn, claimed, self._settings.calendar)
        await know_areas(conn, due.new_areas)
        for area, kind in raised:
            _log.warning("cut_offs_held_back", area=area, kind=kind)
        await self._publish(claimed, plan, ports, now_ms)
        await self._mark_published(conn)
        self._metrics.round_done(claimed, plan, time.monotonic() - began_s)
        return due.more or anew > 0 or bool(due.new_areas)

    async def _publish(self, claimed: Iterable[Claimed], plan: SendPlan, ports: Transports, now_ms: int) -> None:
        """Hand claimed orders to the ports of their meters' transports; one that is down stops no other."""
        by_transport: dict[str, list[Outgoing]] = {}
        for order in claimed:
            expires_ms = min(now_ms + COMMAND_LIFE_MS, plan.closes_ms.get(order.id, now_ms + COMMAND_LIFE_MS))
            outgoing = Outgoing(order_id=order.id, serial=order.serial, payload=_payload(order, expires_ms))
            by_transport.setdefault(order.transport, []).append(outgoing)
        for transport, commands in by_transport.items():
            try:
                await ports[transport].send(commands)
            except TransportDown as down:
                _log.warning("transport_down", transport=transport, orders=len(commands), detail=str(down)[:200])
                continue
            left_at = datetime.now(UTC)
            self._unmarked |= {command.order_id: left_at for command in commands}
            _log.info("orders_published", transport=transport, orders=len(commands))

    async def _mark_published(self, conn: AsyncConnection) -> None:
        """Note when orders left. Rows are never waited for, so that no deadlock can end a dispatcher's round."""
        if self._unmarked:
            parameters = {"ids": list(self._unmarked), "ats": list(self._unmarked.values())}
            cursor = await conn.execute(sql("mark_published"), parameters)
            for (order_id,) in await cursor.fetchall():
                del self._unmarked[order_id]

    async def _notice_clock(self, conn: AsyncConnection, clock: datetime) -> None:
        """Let what was scheduled under a later clock be due: after it was set back, and on shards new to us."""
        behind_s = self._steady_s() - clock.timestamp()
        set_back = self._tending.behind_s is not None and behind_s > self._tending.behind_s + CLOCK_SLACK_S
        fresh = set(self._leases) - self._tending.shards_seen
        self._tending.behind_s = behind_s
        self._tending.shards_seen |= fresh
        shards = list(self._leases) if set_back else list(fresh)
        if shards:
            cursor = await conn.execute(sql("retry_after_clock"), {"shards": shards})
            if cursor.rowcount:
                _log.warning("clock_set_back", orders=cursor.rowcount)

    async def _tend(self, conn: AsyncConnection) -> None:
        """Now and then: end alarms, drop old counts, look at gaps, for contradictions nobody ordered away, count."""
        now_s, tending = time.monotonic(), self._tending
        if now_s >= tending.tend_at_s:
            tending.tend_at_s = now_s + TEND_EVERY_S
            for (area,) in await (await conn.execute(sql("end_capped"))).fetchall():
                _log.info("cut_offs_no_longer_capped", area=area)
            await conn.execute(sql("trim_counts"), {"hour_s": self._settings.limits.hour_s})
            await look_at_gaps(conn, list(self._leases), self._now_ms(), self._settings.gaps)
            settled = await settle_local_credits(conn, list(self._leases), self._settings.calendar)
            if settled:
                _log.info("local_credits_settled", meters=settled)
            tending.after_meter, tending.after_account, asked = await ask_contradicting(
                conn, list(self._leases), tending.after_meter, tending.after_account
            )
            if asked:
                _log.warning("contradicting_meters", accounts=asked)
        if now_s >= tending.gauge_at_s:
            tending.gauge_at_s = now_s + GAUGE_EVERY_S
            await forget_old_gaps(conn)
            await self._metrics.count_open(conn)


def _payload(order: Claimed, expires_ms: int) -> bytes:
    return encode_command(
        Command(
            order_id=order.id,
            epoch=order.epoch,
            kind=OrderKind(order.kind),
            relay=None if order.relay is None else Relay(order.relay),
            limit_w=order.limit_w,
            level=order.level,
            balance_minor=order.balance_minor,
            threshold_minor=order.threshold_minor,
            read_from_ms=None if order.read_from is None else to_ms(order.read_from),
            read_to_ms=None if order.read_to is None else to_ms(order.read_to),
            token=order.token,
            expires_at_ms=expires_ms,
        )
    )


async def _await_wake(conn: AsyncConnection, timeout_s: float) -> None:
    """Wait for a notification of new orders, at most `timeout_s`."""
    async for _ in conn.notifies(timeout=timeout_s, stop_after=1):
        return
