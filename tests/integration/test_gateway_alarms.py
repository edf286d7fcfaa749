"""When a gateway's polls ring: what two in a row say, once, until the meter is read again."""

from __future__ import annotations

import asyncio

import pytest

from db.pool import connect
from db.registry import NewMeter, add_meter
from headend.edges.gateway_alarms import GatewayAlarms
from headend.edges.gateway_metrics import Outcome
from headend.events import OTHER_METER, VALUES_IMPLAUSIBLE

NOW_MS = 1_700_000_000_000


@pytest.mark.db
def test_gateway_alarm_rings_once_for_two_bad_polls_in_a_row_and_ends_by_a_read(database_url: str) -> None:
    """One bad poll rings nobody; the second rings; more ring no more; a read ends it, another gateway's as well."""

    async def story() -> None:
        async with await connect(database_url, application="test") as conn:
            await add_meter(conn, NewMeter(serial="M1", rated_w=15_000, register_end_wh=10**9))
            cursor = await conn.execute("select id from meters")
            (meter_id,) = await cursor.fetchone() or (0,)

            async def rung() -> list[tuple[int, str, int, bool]]:
                cursor = await conn.execute(
                    "select code, severity, times, ended_at is null from event_alarms order by id"
                )
                return await cursor.fetchall()

            alarms = GatewayAlarms()
            for outcome in (Outcome.IMPLAUSIBLE, Outcome.SILENT, Outcome.READ, Outcome.IMPLAUSIBLE):
                alarms.took(meter_id, outcome, NOW_MS)
            await alarms.tell(conn)
            assert await rung() == []
            for later_ms in (1, 2, 3):
                alarms.took(meter_id, Outcome.IMPLAUSIBLE, NOW_MS + later_ms)
                await alarms.tell(conn)
            assert await rung() == [(VALUES_IMPLAUSIBLE, "warning", 1, True)]
            for later_ms in (4, 5):
                alarms.took(meter_id, Outcome.OTHER_METER, NOW_MS + later_ms)
            await alarms.tell(conn)
            assert (await rung())[1] == (OTHER_METER, "alarm", 1, True)
            anew = GatewayAlarms()
            anew.took(meter_id, Outcome.READ, NOW_MS + 6)
            await anew.tell(conn)
            assert [ringing for *_, ringing in await rung()] == [False, False]

    asyncio.run(story())
