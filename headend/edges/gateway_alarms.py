"""Alarms of a gateway: a meter whose values cannot be, and a device that stands in a meter's place.

Stage: between the outcomes of polls and the rows of alarms. What two polls in a row say rings, once until the meter is
read again; a read ends it. Silence is none of these: it rings by itself, whatever way the meter is heard by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from psycopg import AsyncConnection

from db.event_alarms import RingRow, ring_alarms
from db.gateways import end_gateway_alarms
from headend.edges.gateway_metrics import Outcome
from headend.event_alarms import SAME_WITHIN_MS
from headend.events import OTHER_METER, VALUES_IMPLAUSIBLE, meaning_of

CODES: Final[Mapping[Outcome, int]] = {Outcome.IMPLAUSIBLE: VALUES_IMPLAUSIBLE, Outcome.OTHER_METER: OTHER_METER}


class GatewayAlarms:
    """What rings, what is over, until the database has it.

    Invariants: a meter is in at most one of doubt and `_fine`; what rings and is over before it was told rings nobody.
    """

    def __init__(self) -> None:
        self._doubted: dict[int, tuple[int, int]] = {}
        self._fine: set[int] = set()
        self._rung: set[tuple[int, int]] = set()
        self._rings: dict[int, RingRow] = {}
        self._over: set[int] = set()

    def took(self, meter_id: int, outcome: Outcome, at_ms: int) -> None:
        """Take how a poll went."""
        if outcome is Outcome.READ:
            if meter_id not in self._fine:
                self._is_fine(meter_id)
            return
        code = CODES.get(outcome)
        if code is None:
            return
        self._fine.discard(meter_id)
        self._over.discard(meter_id)
        before_code, first_ms = self._doubted.get(meter_id, (None, at_ms))
        if before_code != code:
            self._doubted[meter_id] = (code, at_ms)
        elif (meter_id, code) not in self._rung:
            self._rung.add((meter_id, code))
            self._rings[meter_id] = RingRow(
                meter_id=meter_id,
                code=code,
                severity=meaning_of(code).severity.value,
                first_ms=first_ms,
                last_ms=at_ms,
                times=1,
            )

    def _is_fine(self, meter_id: int) -> None:
        self._fine.add(meter_id)
        self._doubted.pop(meter_id, None)
        self._rings.pop(meter_id, None)
        self._rung -= {(meter_id, code) for code in CODES.values()}
        # Another gateway, or this one before it was started again, may have rung.
        self._over.add(meter_id)

    async def tell(self, conn: AsyncConnection) -> None:
        """Ring and end in the database; what cannot be told now is told later."""
        rings, over = dict(self._rings), set(self._over)
        if rings:
            await ring_alarms(conn, list(rings.values()), within_ms=SAME_WITHIN_MS)
        if over:
            await end_gateway_alarms(conn, over, sorted(CODES.values()))
        self._rings = {key: each for key, each in self._rings.items() if rings.get(key) is not each}
        self._over -= over
