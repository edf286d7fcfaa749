"""The watch: what only time shows, and what is counted apart from the batches.

Stage: a process beside ingest, without shards and leases. Counts the numbers that messages came with, takes each day's
completeness at its hours, looks for meters that are not heard of, ends alarms that nothing repeats. Every step is
paced, may be stopped anywhere and does nothing twice; several processes at once share the work or leave it to one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog
from psycopg import AsyncConnection, InterfaceError, OperationalError

from billing.calendar import LocalCalendar, from_ms
from db.completeness import take_intervals
from db.orders import wall_ms
from db.pool import APPLICATION_ROLE, connect
from db.silence import SilenceAlarms, look_at_contacts, ring_silence
from headend.completeness import due_marks
from headend.edges.event_alarms import end_old_flags
from headend.edges.reconcile import count_arrivals
from headend.events import COMMUNICATION_LOST

_log = structlog.get_logger("watch")

# Looked at each minute: the hours of completeness are met to the minute.
STEP_S: Final = 60.0
# Silence is measured in hours; a look at a hundred thousand meters takes seconds.
SILENCE_EVERY_MS: Final = 300_000
# An hour of numbers is counted at once: four messages a meter where it reports by quarters of an hour.
COUNTED_AFTER_MS: Final = 3_600_000
# 5,000 meters are looked at in some 0.2 s.
CONTACTS_A_PAGE: Final = 5_000
CONTACTS_PAUSE_S: Final = 0.02
# A street's transformer serves a hundred meters: twenty that fall silent within two hours of each other are its outage.
SILENCE: Final = SilenceAlarms(code=COMMUNICATION_LOST, area_meters_min=20, area_within=timedelta(hours=2))
# A database restart of 2 s is met within the second try.
RETRY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings:
    """What a watch needs to know; a meter is silent after `silent_after_h` hours."""

    database_url: str
    calendar: LocalCalendar
    silent_after_h: int
    clock: Callable[[], int] = wall_ms


class Watch:
    """One watch process."""

    def __init__(self, settings: WatchSettings) -> None:
        self._settings = settings
        self._looked_ms = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop` is set; outages of the database are waited out."""
        while not stop.is_set():
            try:
                async with await connect(
                    self._settings.database_url, application="watch", role=APPLICATION_ROLE
                ) as conn:
                    while not stop.is_set():
                        await self.step(conn)
                        await _pause(stop, STEP_S)
            except (OperationalError, InterfaceError) as error:
                _log.warning("database_away", detail=str(error).strip()[:200], retry_s=RETRY_S)
                await _pause(stop, RETRY_S)

    async def step(self, conn: AsyncConnection) -> None:
        """Do what is due."""
        now_ms = self._settings.clock()
        for day, hour in due_marks(now_ms, self._settings.calendar):
            if await take_intervals(conn, day, hour, self._settings.calendar, now=from_ms(now_ms)):
                _log.info("completeness_taken", day=str(day), hour=hour)
        counted = await count_arrivals(conn, before=from_ms(now_ms - COUNTED_AFTER_MS))
        if counted:
            _log.info("numbers_counted", messages=counted)
        await end_old_flags(conn, now_ms=now_ms)
        # A clock that was set back begins anew.
        if not 0 <= now_ms - self._looked_ms < SILENCE_EVERY_MS:
            await look_for_silence(conn, now_ms=now_ms, silent_after_h=self._settings.silent_after_h)
            self._looked_ms = now_ms


async def look_for_silence(
    conn: AsyncConnection,
    *,
    now_ms: int,
    silent_after_h: int,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> int:
    """Look at all meters not heard of for so many hours, ring and end their alarms; return how many were looked at."""
    now = from_ms(now_ms)
    cutoff = now - timedelta(hours=silent_after_h)
    looked, after, found = 0, 0, CONTACTS_A_PAGE
    while found == CONTACTS_A_PAGE:
        found, after = await look_at_contacts(conn, now=now, cutoff=cutoff, after=after, most=CONTACTS_A_PAGE)
        looked += found
        await pause(CONTACTS_PAUSE_S)
    await ring_silence(conn, SILENCE, now=now, cutoff=cutoff)
    return looked


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
