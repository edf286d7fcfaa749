"""Held sales that nobody confirmed: taken back after a time, with their money, for the one reason `never_confirmed`.

Stage: beside the interface, a task of every API process; several at once do no harm, since each vend is decided under
the lock of its message id. The token of a held sale was shown to nobody, so that nothing is lost by taking it back.
Never: a sale that was released, confirmed, or whose token the meter has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import structlog
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg_pool import AsyncConnectionPool

from billing.calendar import from_ms
from db.vend_states import NEVER_CONFIRMED, held_before
from vending.advice import Advice
from vending.edges.advice import decide
from vending.edges.desk import Desk
from vending.edges.errors import AdviceContradicts

_log = structlog.get_logger(__name__)

# What is stated in hours is kept to within a minute.
STEP_S = 60
# At 10 ms each a step is done within a second; what is left comes with the next one.
TAKEN_A_STEP = 100
_BY = "the vending desk"


async def take_back_held(conn: AsyncConnection, desk: Desk, *, held_max_s: int) -> int:
    """Take back some sales that are held for longer than allowed, the oldest first; return how many."""
    before = from_ms(desk.clock()) - timedelta(seconds=held_max_s)
    taken = 0
    for vend_id in await held_before(conn, before, most=TAKEN_A_STEP):
        # Confirmed or taken back by somebody since it was listed: that stands.
        with suppress(AdviceContradicts):
            await decide(conn, desk, vend_id, Advice.REVERSE, by=_BY, reason=NEVER_CONFIRMED)
            taken += 1
            _log.info("vend_never_confirmed", vend_id=vend_id)
    return taken


@asynccontextmanager
async def taking_back_held(
    pool: AsyncConnectionPool[AsyncConnection], desk: Desk, *, held_max_s: int, count: Callable[[int], None]
) -> AsyncIterator[None]:
    """Take held sales back while the context lasts; outages of the database are waited out."""
    stop = asyncio.Event()
    task = asyncio.create_task(_keep_taking(pool, desk, stop, held_max_s=held_max_s, count=count), name="held-vends")
    try:
        yield
    finally:
        stop.set()
        await task


async def _keep_taking(
    pool: AsyncConnectionPool[AsyncConnection],
    desk: Desk,
    stop: asyncio.Event,
    *,
    held_max_s: int,
    count: Callable[[int], None],
) -> None:
    while not stop.is_set():
        try:
            async with pool.connection() as conn:
                count(await take_back_held(conn, desk, held_max_s=held_max_s))
        except (OperationalError, InterfaceError) as error:
            _log.warning("database_away", detail=type(error).__name__)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), STEP_S)
