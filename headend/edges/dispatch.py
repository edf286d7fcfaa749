"""The dispatcher: orders from the database to meters, each retried until its meter confirms it.

Stage: after the commit that wrote an order. A dispatcher owns shards by lease, claims what is due in one
statement that re-reads whether it is still current, and publishes it with epoch and expiry at QoS 0, so that no
command is left queued in the broker. Confirmations come back through ingest like every word of a meter.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import nats
import nats.errors
import structlog
from nats.aio.client import Client
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.errors import IdleInTransactionSessionTimeout

from db.errors import LeaseLost
from db.leases import Lease, Owner, fence, release_leases, take_leases
from db.named import sql
from db.pool import APPLICATION_ROLE, connect
from headend.validate import FUTURE_SLACK_MS
from protocols.native import Command, OrderKind, Relay, encode_command
from protocols.topics import SHARDS, command_topic

_log = structlog.get_logger("dispatch")

# A woken dispatcher is at work in milliseconds; without a wake-up it looks this often, 10 times within a 2 s retry.
POLL_S = 0.2
# After an outage of database or broker, or a deadlock, the next try comes this soon.
RETRY_S = 0.5
# Shards of a dispatcher that died are looked for this often.
TAKE_EVERY_S = 1.0
# A meter answers within a second when it can be reached; then 2, 4, 8 s ... up to 5 minutes for one that is away.
BACKOFF_S_FIRST, BACKOFF_S_MAX = 2, 300
# A meter's clock may run as far ahead as its readings are still believed; then a minute more. The next try carries a
# new expiry, and epochs end older commands.
COMMAND_LIFE_MS = FUTURE_SLACK_MS + 60_000
# 500 commands of 200 bytes are one write of 100 kB to the broker.
ORDERS_MAX = 500


class CommandPort(Protocol):
    """How a command leaves for a meter: MQTT now, other transports later."""

    async def send(self, serial: str, payload: bytes) -> None:
        """Hand one command over; it may be lost, the order is retried."""

    async def flush(self) -> None:
        """Return when everything handed over has left this process.

        Raises: TransientError-like nats errors when the broker is away.
        """


class NatsCommands:
    """Commands over the broker's own protocol: a NATS publish reaches MQTT subscribers at QoS 0."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def send(self, serial: str, payload: bytes) -> None:
        """Publish to the meter's command topic."""
        await self._client.publish(command_topic(serial).replace("/", "."), payload)

    async def flush(self) -> None:
        """Wait for the broker to have read everything."""
        await self._client.flush(timeout=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """What a dispatcher needs to know."""

    database_url: str
    nats_url: str
    lease_s: float
    cut_offs_per_minute_max: int


class Dispatcher:
    """One dispatcher process.

    Invariants: an order is sent only by the owner of its shard's lease, and only while it is the current one.
    """

    def __init__(self, settings: DispatchSettings) -> None:
        self._settings = settings
        name = f"dispatch-{os.getpid()}-{secrets.token_hex(4)}"
        self._owner = Owner(role="dispatch", name=name, lease_s=settings.lease_s)
        self._leases: dict[int, Lease] = {}
        self._take_at_s = 0.0
        self._unmarked: dict[int, datetime] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Dispatch until `stop` is set; outages of database and broker are waited out."""
        while not stop.is_set():
            try:
                client = await nats.connect(self._settings.nats_url, max_reconnect_attempts=-1, name=self._owner.name)
                try:
                    await self._session(NatsCommands(client), stop)
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
                    await asyncio.wait_for(stop.wait(), 1.0)

    async def _session(self, port: CommandPort, stop: asyncio.Event) -> None:
        below_lease_s = max(1, int(self._settings.lease_s / 2))
        async with await connect(
            self._settings.database_url,
            application=self._owner.name,
            idle_in_transaction_s=below_lease_s,
            role=APPLICATION_ROLE,
        ) as conn:
            await conn.execute("listen orders")
            while not stop.is_set():
                await self._keep_leases(conn)
                sent = await self._send_due(conn, port)
                if sent < ORDERS_MAX:
                    await _await_wake(conn, POLL_S)
            await release_leases(conn, self._owner)

    async def _keep_leases(self, conn: AsyncConnection) -> None:
        missing = set(range(SHARDS)) - self._leases.keys()
        now_s = time.monotonic()
        if missing and now_s >= self._take_at_s:
            self._take_at_s = now_s + TAKE_EVERY_S
            taken = await take_leases(conn, self._owner, missing)
            self._leases.update({lease.shard: lease for lease in taken})

    async def _send_due(self, conn: AsyncConnection, port: CommandPort) -> int:
        """Claim what is due under our leases, publish it, note that it left."""
        shards = list(self._leases)
        async with conn.transaction():
            await fence(conn, self._owner, self._leases.values())
            cursor = await conn.execute(
                sql("due_orders"),
                {
                    "shards": shards,
                    "most": ORDERS_MAX,
                    "cut_offs_per_minute_max": self._settings.cut_offs_per_minute_max,
                },
            )
            ids = [row[0] for row in await cursor.fetchall()]
            rows = await _claim(conn, ids) if ids else []
        for order_id, serial, *fields in rows:
            await port.send(serial, _payload(order_id, *fields))
        if rows:
            await port.flush()
            left_at = datetime.now(UTC)
            self._unmarked |= {row[0]: left_at for row in rows}
            _log.info("orders_published", orders=len(rows))
        await self._mark_published(conn)
        return len(rows)

    async def _mark_published(self, conn: AsyncConnection) -> None:
        """Note when orders left. Rows are never waited for, so that no deadlock can end a dispatcher's round."""
        if self._unmarked:
            parameters = {"ids": list(self._unmarked), "ats": list(self._unmarked.values())}
            cursor = await conn.execute(sql("mark_published"), parameters)
            for (order_id,) in await cursor.fetchall():
                del self._unmarked[order_id]


async def _claim(conn: AsyncConnection, ids: Sequence[int]) -> list[tuple[Any, ...]]:
    # Rows of `send_orders`: typed by the migration.
    cursor = await conn.execute(
        sql("send_orders"),
        {"ids": list(ids), "backoff_s_first": BACKOFF_S_FIRST, "backoff_s_max": BACKOFF_S_MAX},
    )
    return await cursor.fetchall()


def _payload(
    order_id: int,
    kind: str,
    epoch: int,
    relay: str | None,
    level: str | None,
    balance_minor: int,
    threshold_minor: int | None,
) -> bytes:
    return encode_command(
        Command(
            order_id=order_id,
            epoch=epoch,
            kind=OrderKind(kind),
            relay=None if relay is None else Relay(relay),
            level=level,
            balance_minor=balance_minor,
            threshold_minor=threshold_minor,
            expires_at_ms=time.time_ns() // 1_000_000 + COMMAND_LIFE_MS,
        )
    )


async def _await_wake(conn: AsyncConnection, timeout_s: float) -> None:
    """Wait for a notification of new orders, at most `timeout_s`."""
    async for _ in conn.notifies(timeout=timeout_s, stop_after=1):
        return
