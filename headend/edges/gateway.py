"""The gateway: meters on Modbus lines, told to the broker as if they spoke MQTT themselves.

Stage: before ingest, and after the dispatcher. Polls the lines whose shards it holds by lease, writes every reading to
its outbox before anything is sent, publishes from there, and obeys the commands on its meters' topics. The database is
asked for lines and leases only: while it is away polling goes on, relays are left alone. Nothing here charges anybody.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Final, Protocol

import nats
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from psycopg import AsyncConnection, InterfaceError, OperationalError

from db.errors import LeaseLost
from db.gateways import ROLE, MeterStateNote, Obeyed, PolledMeter, note_obeyed, note_states, polled, wake_orders
from db.gateways import PolledLine as LineRow
from db.leases import Lease, Owner, fence, give_back, release_leases, take_leases
from db.pool import APPLICATION_ROLE, connect
from db.workers import beat, retire
from headend.edges.gateway_alarms import GatewayAlarms
from headend.edges.gateway_line import PolledLine
from headend.edges.gateway_meter import Message, MeterUnusable, Polled, PolledUnit
from headend.edges.gateway_metrics import GatewayMetrics
from headend.edges.gateway_outbox import OUTBOX_BYTES_MAX, SYNC_EVERY_S, Outbox
from headend.edges.gateway_relay import Answer
from headend.edges.modbus_line import LineAddress
from headend.polling import Schedule
from headend.shares import Census, surplus
from protocols.errors import Malformed
from protocols.modbus.frames import Framing
from protocols.modbus.maps import RegisterMap
from protocols.native import (
    Command,
    CommandReply,
    MeterEvent,
    Relay,
    ReplyResult,
    decode_command,
    encode_event,
    encode_reply,
)
from protocols.topics import SHARDS, command_topic, event_topic

_log = structlog.get_logger("gateway")

# After an outage of database or broker the next try comes this soon.
RETRY_S = 1.0
# New and changed lines are seen this soon; reading 2,000 meters takes some 10 ms.
ROSTER_EVERY_S = 5.0
_WORDS_IN_A_LEASE: Final = 5
_LOOK_EVERY_S: Final = 1.0
# An answer of before a meter had its relay is stored by then; its order is tried again.
WAKE_AFTER_S: Final = 2.0
# Answers wait for the broker in memory only: an order that nobody answers is sent again.
REPLIES_MAX: Final = 5_000
# While the disk takes nothing, so many wait in memory, 3 MB; then the oldest give way.
UNWRITTEN_MAX: Final = 10_000
# IS 15959 event ids, as in public code bases: load switch open, load switch closed.
_SWITCHED: Final = {Relay.OFF: 301, Relay.ON: 302}


class BrokerAway(Exception):
    """The broker does not take messages; what was handed over may or may not be there."""

    code: ClassVar[str] = "broker_away"


class Publisher(Protocol):
    """What publishes to our broker at QoS 1. All raise BrokerAway."""

    async def publish(self, topic: str, payload: bytes) -> None:
        """Hand a message over, in order."""

    async def drain(self) -> int:
        """Wait until everything handed over is on the broker's disk."""


Publishers = Callable[[], AbstractAsyncContextManager[Publisher]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What a gateway needs to know; `folder` is its own, for its outbox."""

    database_url: str
    nats_url: str
    lease_s: float
    folder: Path
    outbox_bytes_max: int = OUTBOX_BYTES_MAX
    roster_every_s: float = ROSTER_EVERY_S


@dataclass(slots=True, kw_only=True)
class _Running:
    """A line that is polled, as it was entered."""

    row: LineRow
    meters: list[PolledMeter]
    line: PolledLine
    task: asyncio.Task[None]


def wall_ms() -> int:
    """Tell the UTC time in milliseconds."""
    return time.time_ns() // 1_000_000


class Gateway:
    """One gateway process.

    Invariants: a line is polled by the owner of its shard's lease; nothing is sent that is not in the outbox, replies
    apart, which their orders ask for again; a relay is written only while the leases are ours for certain.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        maps: Mapping[str, RegisterMap],
        metrics: GatewayMetrics,
        publishers: Publishers,
        *,
        clock_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._settings = settings
        self._maps = maps
        self._metrics = metrics
        self._publishers = publishers
        self._clock_ms = clock_ms
        name = f"gateway-{os.getpid()}-{secrets.token_hex(4)}"
        self._owner = Owner(role=ROLE, name=name, lease_s=settings.lease_s)
        self._leases: dict[int, Lease] = {}
        self._held_until_s = 0.0
        self._census: Census | None = None
        self._lines: dict[int, _Running] = {}
        self._units: dict[str, tuple[PolledLine, PolledUnit]] = {}
        self._states: dict[str, str] = {}
        self._notes: dict[str, MeterStateNote] = {}
        self._obeyed: dict[str, Obeyed] = {}
        self._alarms = GatewayAlarms()
        self._relays_since_s: dict[int, float] = {}
        self._unwritten: list[Message] = []
        self._retrying = False
        self._replies: deque[Message] = deque(maxlen=REPLIES_MAX)
        self._news = asyncio.Event()
        self._caught_up_s = 0.0
        self._outbox: Outbox | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Poll until `stop` is set; outages of database, broker and lines are waited out.

        Raises: OutboxTaken.
        """
        self._outbox = Outbox(self._settings.folder, bytes_max=self._settings.outbox_bytes_max)
        try:
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(self._publish(), name="gateway-publish"),
                    group.create_task(self._listen(), name="gateway-commands"),
                    group.create_task(self._sync(), name="gateway-sync"),
                ]
                try:
                    await self._keep(group, stop)
                finally:
                    for task in [*beside, *(each.task for each in self._lines.values())]:
                        task.cancel()
        finally:
            self._write()
            self._outbox.close()

    # What lines hand over -----------------------------------------------------------------------------------------

    def told(self, message: Message) -> None:
        """Take a reading; it is on disk with the others of this turn of the loop."""
        if not self._unwritten or self._retrying:
            asyncio.get_running_loop().call_soon(self._write)
        self._unwritten.append(message)

    def went(self, unit: PolledUnit, polled: Polled) -> None:
        """Note how a meter's poll went, if that has changed; what is wrong twice in a row rings."""
        self._alarms.took(unit.meter.meter_id, polled.outcome, self._clock_ms())
        self._note(unit.meter.serial, polled.outcome.value, polled.detail)

    def answered(self, unit: PolledUnit, command: Command, answer: Answer) -> None:
        """Reply as the meter would, and tell that its switch moved."""
        serial, now_ms = unit.meter.serial, self._clock_ms()
        if answer.moved and answer.relay is not None:
            event = MeterEvent(serial=serial, seq=None, at_ms=now_ms, code=_SWITCHED[answer.relay])
            self.told((event_topic(serial), encode_event(event)))
        if answer.result is ReplyResult.DONE:
            self._obeyed[serial] = Obeyed(serial=serial, epoch=command.epoch, order_id=command.order_id)
        if answer.result in (ReplyResult.REFUSED, ReplyResult.IMPOSSIBLE):
            self._metrics.write_refused(command.kind.value)
        reply = CommandReply(
            serial=serial,
            seq=None,
            at_ms=now_ms,
            order_id=command.order_id,
            epoch=command.epoch,
            kind=command.kind,
            result=answer.result,
            relay=answer.relay,
            threshold_minor=None,
        )
        self._metrics.commanded(command.kind.value, answer.result.value)
        _log.info("command_answered", meter=serial, order=command.order_id, result=answer.result.value)
        self._replies.append((event_topic(serial), encode_reply(reply)))
        self._news.set()

    def may_write(self) -> bool:
        """Tell whether our leases cannot have run out."""
        return time.monotonic() < self._held_until_s

    def _write(self) -> None:
        if not self._unwritten or self._outbox is None:
            return
        try:
            self._outbox.append(self._unwritten)
        except OSError as error:
            dropped = max(0, len(self._unwritten) - UNWRITTEN_MAX)
            del self._unwritten[:dropped]
            self._metrics.unwritable(dropped)
            if not self._retrying:
                _log.error("outbox_unwritable", detail=str(error), waiting=len(self._unwritten))
                self._retrying = True
                asyncio.get_running_loop().call_later(RETRY_S, self._write_again)
            return
        self._unwritten = []
        self._news.set()

    def _write_again(self) -> None:
        self._retrying = False
        self._write()

    def _note(self, serial: str, state: str, detail: str | None) -> None:
        if self._states.get(serial) == state:
            return
        if state != "read" or serial in self._states:
            _log.info("meter_state", meter=serial, state=state, detail=detail)
        self._states[serial] = state
        at = datetime.fromtimestamp(self._clock_ms() / 1000, UTC)
        self._notes[serial] = MeterStateNote(serial=serial, state=state, detail=detail, at=at)

    # Leases and lines ---------------------------------------------------------------------------------------------

    async def _keep(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        """Hold leases and run what they give, on one database session after another."""
        while not stop.is_set():
            try:
                await self._session(group, stop)
            except LeaseLost as lost:
                _log.warning("lease_lost", owner=self._owner.name, detail=str(lost))
                self._leases.clear()
                self._run_lines(group, [], [])
            except (OperationalError, InterfaceError, OSError, TimeoutError) as error:
                # Nobody can take our leases while the database is away for all; if it is for us alone, a line is
                # polled twice for a while, which costs nothing but its time.
                _log.warning("gateway_retry", detail=str(error).strip()[:200])
                await _pause(stop, RETRY_S)

    async def _session(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        below_lease_s = max(1, int(self._settings.lease_s / 2))
        async with await connect(
            self._settings.database_url,
            application=self._owner.name,
            idle_in_transaction_s=below_lease_s,
            lock_timeout_s=below_lease_s,
            role=APPLICATION_ROLE,
        ) as conn:
            roster_at_s = 0.0
            while not stop.is_set():
                changed = await self._hold(conn)
                if changed or time.monotonic() >= roster_at_s:
                    roster_at_s = time.monotonic() + self._settings.roster_every_s
                    self._run_lines(group, *(await polled(conn, self._leases)))
                await self._tell_database(conn)
                self._show()
                await _pause(stop, min(_LOOK_EVERY_S, self._settings.lease_s / _WORDS_IN_A_LEASE))
            self._run_lines(group, [], [])
            await release_leases(conn, self._owner)
            await retire(conn, self._owner)

    async def _hold(self, conn: AsyncConnection) -> bool:
        """Say that we live, renew, take what is free and give back what is above our share; tell what changed.

        Raises: LeaseLost.
        """
        asked_at_s = time.monotonic()
        if self._leases:
            await fence(conn, self._owner, self._leases.values())
        processes = await beat(conn, self._owner, lag_ms=None)
        self._census = self._census.then(processes) if self._census else Census(last=processes, before=processes)
        before = set(self._leases)
        room = self._census.most_taken - len(self._leases)
        if room > 0:
            free = set(range(SHARDS)) - before
            self._leases |= {lease.shard: lease for lease in await take_leases(conn, self._owner, free, most=room)}
        else:
            gone = surplus(self._leases, self._census.most_kept)
            for shard in gone:
                del self._leases[shard]
            self._stop_lines(lambda row: row.id % SHARDS in gone)
            await give_back(conn, self._owner, gone)
        self._held_until_s = asked_at_s + self._settings.lease_s
        return set(self._leases) != before

    def _run_lines(self, group: asyncio.TaskGroup, rows: list[LineRow], meters: list[PolledMeter]) -> None:
        """Run the lines as they are entered now: new ones begin, changed ones begin anew, others end."""
        on_line: dict[int, list[PolledMeter]] = {row.id: [] for row in rows}
        for meter in meters:
            on_line[meter.line_id].append(meter)
        wanted = {row.id: row for row in rows}
        # Meters of a line that only changed go on with their count, their register and what they have obeyed.
        former = {serial: unit for serial, (_, unit) in self._units.items() if unit.meter.line_id in wanted}
        self._stop_lines(lambda row: wanted.get(row.id) != row or on_line[row.id] != self._lines[row.id].meters)
        for row in rows:
            if row.id not in self._lines:
                self._lines[row.id] = self._begin_line(group, row, on_line[row.id], former)

    def _stop_lines(self, ends: Callable[[LineRow], bool]) -> None:
        for running in [each for each in self._lines.values() if ends(each.row)]:
            running.task.cancel()
            del self._lines[running.row.id]
            for meter in running.meters:
                self._units.pop(meter.serial, None)
                self._states.pop(meter.serial, None)

    def _begin_line(
        self, group: asyncio.TaskGroup, row: LineRow, meters: list[PolledMeter], former: Mapping[str, PolledUnit]
    ) -> _Running:
        units = [unit for meter in meters if (unit := self._unit(meter, former)) is not None]
        address = LineAddress(
            framing=Framing(row.framing),
            timeout_s=row.timeout_ms / 1000,
            host=row.host,
            port=row.port,
            device=row.device,
            baud=row.baud,
            parity=row.parity,
        )
        line = PolledLine(row.name, address, units, self, self._metrics, self._clock_ms)
        self._units |= {unit.meter.serial: (line, unit) for unit in units}
        now_s = time.monotonic()
        self._relays_since_s |= {unit.meter.meter_id: now_s for unit in units if unit.desk.port is not None}
        task = group.create_task(_until_cancelled(line.run()), name=f"line-{row.name}")
        return _Running(row=row, meters=meters, line=line, task=task)

    def _unit(self, meter: PolledMeter, former: Mapping[str, PolledUnit]) -> PolledUnit | None:
        loop = asyncio.get_running_loop()
        wall_s = self._clock_ms() / 1000
        schedule = Schedule.starting(meter.serial, meter.poll_s, wall_s=wall_s, steady_s=loop.time())
        try:
            unit = PolledUnit(meter, self._maps, schedule, self._metrics, self._clock_ms)
        except MeterUnusable as unusable:
            self._note(meter.serial, "unusable", str(unusable))
            return None
        if meter.serial in former:
            unit.go_on_from(former[meter.serial])
        return unit

    async def _tell_database(self, conn: AsyncConnection) -> None:
        """Keep what changed about meters; what cannot be kept now is kept later."""
        obeyed, notes = dict(self._obeyed), dict(self._notes)
        if obeyed:
            await note_obeyed(conn, list(obeyed.values()))
        if notes:
            await note_states(conn, list(notes.values()))
        await self._alarms.tell(conn)
        now_s = time.monotonic()
        wired = {key for key, since_s in self._relays_since_s.items() if now_s - since_s >= WAKE_AFTER_S}
        if wired:
            await wake_orders(conn, wired)
            self._relays_since_s = {key: each for key, each in self._relays_since_s.items() if key not in wired}
        self._obeyed = {key: each for key, each in self._obeyed.items() if obeyed.get(key) is not each}
        self._notes = {key: each for key, each in self._notes.items() if notes.get(key) is not each}

    def _show(self) -> None:
        up = sum(each.line.up for each in self._lines.values())
        self._metrics.lines(up, len(self._lines) - up)
        self._metrics.meters(dict(Counter(self._states.values())))
        outbox = self._outbox
        assert outbox is not None, "a running gateway has its outbox"
        self._metrics.outbox(waiting=outbox.waiting_bytes, torn=outbox.torn_bytes, lost=outbox.lost_bytes)

    # The broker ---------------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        """Publish what the outbox holds, in order, and forget it when the broker has it."""
        outbox = self._outbox
        assert outbox is not None, "a running gateway has its outbox"
        while True:
            try:
                async with self._publishers() as publisher:
                    while True:
                        await self._hand_over(outbox, publisher)
            except BrokerAway as away:
                self._metrics.broker_away()
                _log.warning("broker_away", detail=str(away)[:200], waiting_bytes=outbox.waiting_bytes)
                await asyncio.sleep(RETRY_S)

    async def _hand_over(self, outbox: Outbox, publisher: Publisher) -> None:
        self._news.clear()
        replies = list(self._replies)
        batch = outbox.read()
        messages = [*replies, *(batch.messages if batch else ())]
        if not messages:
            self._caught_up_s = time.monotonic()
            await self._news.wait()
            return
        for topic, payload in messages:
            await publisher.publish(topic, payload)
        await publisher.drain()
        for _ in replies:
            self._replies.popleft()
        if batch:
            outbox.forget(batch.end)
        self._metrics.published(len(messages))

    async def _sync(self) -> None:
        """Let the outbox reach the disk while the broker does not take it."""
        while True:
            await asyncio.sleep(SYNC_EVERY_S)
            outbox = self._outbox
            if outbox is not None and outbox.waiting_bytes and time.monotonic() - self._caught_up_s > SYNC_EVERY_S:
                outbox.sync()

    async def _listen(self) -> None:
        """Take the commands of the meters that are polled here."""
        while True:
            try:
                client = await nats.connect(
                    self._settings.nats_url.split(","), max_reconnect_attempts=-1, name=self._owner.name
                )
                try:
                    await self._follow_roster(client)
                finally:
                    await client.close()
            except (nats.errors.Error, OSError, TimeoutError) as error:
                _log.warning("commands_away", detail=str(error)[:200])
                await asyncio.sleep(RETRY_S)

    async def _follow_roster(self, client: Client) -> None:
        """Keep one subscription for each meter that is polled."""
        subscriptions: dict[str, Subscription] = {}
        while True:
            for serial in self._units.keys() - subscriptions.keys():
                subject = command_topic(serial).replace("/", ".")
                subscriptions[serial] = await client.subscribe(subject, cb=self._taker(serial))
            for serial in subscriptions.keys() - self._units.keys():
                await subscriptions.pop(serial).unsubscribe()
            await asyncio.sleep(min(_LOOK_EVERY_S, self._settings.roster_every_s))

    def _taker(self, serial: str) -> Callable[[Msg], Awaitable[None]]:
        async def take(message: Msg) -> None:
            try:
                command = decode_command(message.data)
            except Malformed as wrong:
                self._metrics.write_refused("malformed")
                _log.warning("command_malformed", meter=serial, detail=str(wrong)[:200])
                return
            if serial in self._units:
                line, unit = self._units[serial]
                line.order(unit, command)

        return take


async def _until_cancelled(body: Awaitable[None]) -> None:
    """Run a line's task; that it is cancelled is its way to end."""
    with suppress(asyncio.CancelledError):
        await body


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
