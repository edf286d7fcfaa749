"""Rollups kept up with the readings: a sweep every few minutes, and what retention drops once a day.

Stage: beside the watch, in its process, on a connection of its own, since a sweep after a long outage takes longer than
the watch may wait. Nothing depends on when it runs; several at once share the blocks of meters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import structlog
from psycopg import AsyncConnection, InterfaceError, OperationalError

from billing.calendar import LocalCalendar, from_ms
from db.orders import wall_ms
from db.pool import APPLICATION_ROLE, connect
from db.rollups import RollupSweep, ZoneChanged
from db.storage_classes import Retention
from db.storage_retention import retain

_log = structlog.get_logger("rollup")

# A meter that reports by quarters of an hour has its running hour, day and month rewritten once for each.
SWEEP_EVERY_S: Final = 900.0
# A database restart of 2 s is met within the second try.
RETRY_S: Final = 5.0
# Long after the day's close, when nobody waits for the disk.
RETAIN_AFTER: Final = timedelta(hours=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class RollupSettings:
    """What keeping rollups needs to know. Without a retention nothing is dropped."""

    database_url: str
    calendar: LocalCalendar
    retention: Retention | None
    clock: Callable[[], int] = wall_ms


class Rollup:
    """Keeps rollups up, and drops what is kept long enough."""

    def __init__(self, settings: RollupSettings) -> None:
        self._settings = settings
        self._sweep = RollupSweep(calendar=settings.calendar)
        self._retained_on: date | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep until `stop` is set; outages of the database are waited out."""
        while not stop.is_set():
            wait_s = SWEEP_EVERY_S
            try:
                async with await connect(
                    self._settings.database_url, application="rollup", role=APPLICATION_ROLE
                ) as conn:
                    await self.step(conn, stop)
            except (OperationalError, InterfaceError) as error:
                _log.warning("database_away", detail=str(error).strip()[:200], retry_s=RETRY_S)
                wait_s = RETRY_S
            except ZoneChanged as error:
                _log.error("rollups_stand_still", detail=str(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait_s)

    async def step(self, conn: AsyncConnection, stop: asyncio.Event) -> None:
        """Roll up what is new and what changed; once a local day, drop what is kept long enough."""
        done = await self._sweep.run(conn, stop=stop)
        if done.hours:
            _log.info("rolled_up", blocks=done.blocks, hours=done.hours, whole=done.whole)
        now = from_ms(self._settings.clock())
        today = (now.astimezone(self._settings.calendar.zone) - RETAIN_AFTER).date()
        retention = self._settings.retention
        if retention is not None and today != self._retained_on and done.whole:
            dropped = await retain(conn, retention, now=now, calendar=self._settings.calendar)
            for each in dropped.dropped:
                _log.info("dropped", kind=each.kind.value, partition=each.partition, rows=each.rows)
            self._retained_on = today
