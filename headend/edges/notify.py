"""The notifier: notices from the database to people, each tried until it is taken or no longer worth reading.

Stage: after the commit that wrote a notice. One task gives notices their way, one a channel claims what is due and
hands it over. Several notifiers at once are safe. What was handed over when a notifier died is handed over again under
the same message id once its claim has run out: at least once, never another row. Never waits for another channel.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import assert_never

import structlog
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.errors import IdleInTransactionSessionTimeout

from billing.calendar import to_ms
from billing.notices import Channel, NoticeError
from billing.notices.kinds import rule_of
from billing.notices.planning import DeliveryRules, backoff_ms, may_send_ms
from db.notices import PLAN_MOST, Claimed, claim_deliveries, end_dead, end_later, end_sent, plan_notices, put_back
from db.pool import APPLICATION_ROLE, connect
from headend.edges.notice_metrics import NoticeMetrics
from headend.edges.notice_port import Answer, NoticePort, NotNow, Outgoing, Refused, Taken, detail_of

_log = structlog.get_logger("notify")

# A message leaves within about a second of its cause; a look at an empty partial index costs 0.1 ms.
POLL_S = 0.5
# After an outage of the database the next try comes this soon.
RETRY_S = 1.0
# So many messages are claimed for each that may be on its way at once; a claim lasts as long as two of them can take,
# and what was not begun in the first half is given back.
CLAIM_ROUNDS = 5
CLAIM_SENDS = 2
# Planning holds no lock that others wait for; a stuck session ends all the same.
IDLE_IN_TRANSACTION_S = 30
JITTER_PERCENT = (75, 125)
_MS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifySettings:
    """What a notifier needs to know. `domain` is the right side of message ids."""

    database_url: str
    rules: DeliveryRules
    domain: str


class Notifier:
    """One notifier process.

    Invariants: a message is handed over only under a claim; the end of a try is written only by who made it.
    """

    def __init__(
        self,
        settings: NotifySettings,
        ports: Mapping[Channel, NoticePort],
        metrics: NoticeMetrics,
        *,
        clock: Callable[[], int] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._ports = ports
        self._metrics = metrics
        self._clock = clock or _wall_clock_ms
        self._rng = rng or random.Random()
        self._name = f"notify-{os.getpid()}-{secrets.token_hex(4)}"

    async def run(self, stop: asyncio.Event) -> None:
        """Plan and send until `stop` is set; outages of the database are waited out."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_on(self._plan_round, stop), name="notify-plan")
                for channel, port in self._ports.items():
                    group.create_task(self._keep_on(_Sender(self, channel, port, stop).round, stop), name=channel.value)
        finally:
            for port in self._ports.values():
                await port.close()

    async def _keep_on(self, work: Callable[[AsyncConnection], Awaitable[bool]], stop: asyncio.Event) -> None:
        """Do rounds of work on a connection of its own; a round says whether more waits."""
        while not stop.is_set():
            try:
                async with await connect(
                    self._settings.database_url,
                    application=self._name,
                    idle_in_transaction_s=IDLE_IN_TRANSACTION_S,
                    role=APPLICATION_ROLE,
                ) as conn:
                    while not stop.is_set():
                        if not await work(conn):
                            await _rest(stop, POLL_S)
            except* (OperationalError, InterfaceError, IdleInTransactionSessionTimeout) as failed:
                _log.warning("notify_retry", detail=str(failed.exceptions[0]).strip()[:200])
                await _rest(stop, RETRY_S)

    async def _plan_round(self, conn: AsyncConnection) -> bool:
        settings = self._settings
        planned = await plan_notices(conn, settings.rules, domain=settings.domain, now_ms=self._clock())
        if planned:
            self._metrics.planned(planned)
            _log.info("notices_planned", notices=planned)
        return planned == PLAN_MOST

    def end(self, claimed: Claimed, answer: Answer) -> _End:
        """Say what an answer means for a delivery: its end, or its next try."""
        now_ms = self._clock()
        match answer:
            case Taken():
                return _End(outcome="sent", next_try_ms=None, error=None, contact_fails=False)
            case Refused():
                fails = answer.contact_fails
                return _End(outcome="dead", next_try_ms=None, error=answer.detail, contact_fails=fails)
            case NotNow():
                jitter = self._rng.randint(*JITTER_PERCENT)
                next_ms = now_ms + backoff_ms(claimed.attempts, jitter_percent=jitter, at_least_ms=answer.wait_ms)
                alive = next_ms < to_ms(claimed.expires_at)
                return _End(
                    outcome="later" if alive else "dead",
                    next_try_ms=next_ms if alive else None,
                    error=answer.detail,
                    contact_fails=False,
                )
            case _:
                assert_never(answer)

    def may_send_ms(self, claimed: Claimed) -> int:
        """Return when a claimed delivery may be sent at the earliest."""
        now_ms, rule = self._clock(), rule_of(claimed.kind)
        return now_ms if rule is None else may_send_ms(rule, now_ms, self._settings.rules)

    @property
    def now_ms(self) -> int:
        """The time by this notifier's clock."""
        return self._clock()

    async def write_end(self, conn: AsyncConnection, channel: Channel, claimed: Claimed, end: _End) -> None:
        """Write what became of a try."""
        if end.outcome == "sent":
            await end_sent(conn, claimed, now_ms=self._clock())
        elif end.next_try_ms is not None:
            await end_later(conn, claimed, next_try_ms=end.next_try_ms, error=end.error or "")
        else:
            await end_dead(conn, claimed, error=end.error or "", contact_fails=end.contact_fails, now_ms=self._clock())
        self._metrics.tried(channel, end.outcome)
        log = _log.info if end.outcome == "sent" else _log.warning
        log(
            "notice_tried",
            delivery_id=claimed.id,
            notice_id=claimed.notice_id,
            channel=channel.value,
            outcome=end.outcome,
            attempts=claimed.attempts,
        )

    def outgoing(self, channel: Channel, claimed: Claimed) -> Outgoing:
        """Put a claimed delivery into words.

        Raises: NoticeError when its facts cannot be read.
        """
        words = claimed.render(channel, self._settings.rules.calendar)
        return Outgoing(
            message_id=claimed.message_id,
            address=claimed.address,
            subject=words.subject,
            body=words.body,
            language=claimed.language,
            kind=claimed.kind,
            created_ms=to_ms(claimed.created_at),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """What is written about a try; `next_try_ms` None ends the delivery."""

    outcome: str
    next_try_ms: int | None
    error: str | None
    contact_fails: bool


class _Sender:
    """Sends on one channel."""

    def __init__(self, notifier: Notifier, channel: Channel, port: NoticePort, stop: asyncio.Event) -> None:
        self._notifier = notifier
        self._channel = channel
        self._port = port
        self._stop = stop

    async def round(self, conn: AsyncConnection) -> bool:
        """Claim what is due, hand it over, write the ends; tell whether more may wait."""
        most = CLAIM_ROUNDS * self._port.parallel
        claim_s = CLAIM_SENDS * self._port.send_s_max
        now_ms = self._notifier.now_ms
        claims = await claim_deliveries(
            conn, self._channel, most=most, now_ms=now_ms, until_ms=now_ms + int(claim_s * _MS)
        )
        if not claims:
            return False
        begun_s, turns = time.monotonic(), asyncio.Semaphore(self._port.parallel)
        async with asyncio.TaskGroup() as group:
            for claimed in claims:
                group.create_task(self._send(conn, claimed, turns, send_by_s=begun_s + claim_s - self._port.send_s_max))
        return len(claims) == most

    async def _send(
        self, conn: AsyncConnection, claimed: Claimed, turns: asyncio.Semaphore, *, send_by_s: float
    ) -> None:
        async with turns:
            may_ms = self._notifier.may_send_ms(claimed)
            now_ms = self._notifier.now_ms
            if may_ms > now_ms or self._stop.is_set() or time.monotonic() > send_by_s:
                await put_back(conn, claimed, next_try_ms=max(may_ms, now_ms))
                return
            if now_ms >= to_ms(claimed.expires_at):
                # How the last try went says more than that there is no other.
                answer: Answer = NotNow(detail=claimed.last_error or "nobody was there to send it in time")
            else:
                answer = await self._hand_over(claimed)
        await self._notifier.write_end(conn, self._channel, claimed, self._notifier.end(claimed, answer))

    async def _hand_over(self, claimed: Claimed) -> Answer:
        try:
            message = self._notifier.outgoing(self._channel, claimed)
        except NoticeError as error:
            _log.error("notice_unreadable", notice_id=claimed.notice_id, kind=claimed.kind, detail=str(error))
            return Refused(detail=detail_of(str(error)), contact_fails=False)
        return await self._port.send(message)


async def _rest(stop: asyncio.Event, rest_s: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), rest_s)


def _wall_clock_ms() -> int:
    return time.time_ns() // _MS**2
