"""Whether what was stored was charged: each account's running balance beside the plain rating of its latest register.

Stage: after the runs of `bench ingest`. The balance is what the product says (`db.balances`); what it should be comes
from openings, loads and registers by `billing.terms.part_lines`, in which nothing of the charge path takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

from psycopg import AsyncConnection

from billing.calendar import to_ms
from billing.rating import total
from billing.tariff_document import builtin_tariff
from billing.terms import one_assignment, part_lines
from db.balances import Asked, read_balances
from loadtests.ingest_stage import Stage
from loadtests.population import TARIFF

# Simulated registers only rise, so that the latest is the highest: one pass, where a probe for each meter would look
# into every partition.
_LATEST: Final = b"""
select a.number, a.posted_minor, x.load_w, l.read_at, l.import_wh - g.register_wh + g.start_wh
from (select meter_id, max(read_at) as read_at, max(import_wh) as import_wh from readings group by 1) l
join installations i on i.meter_id = l.meter_id and i.role = 'billing' and i.to_at is null
join accounts a on a.usage_point_id = i.usage_point_id
join assignments x on x.account_id = a.id
join register_segments g on g.meter_id = l.meter_id
"""
_READINGS: Final = b"select m.serial, count(*) from readings r join meters m on m.id = r.meter_id group by 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """Readings stored, those of them of accounts whose balance is right, and what all balances have gone down by."""

    stored: int
    charged: int
    accounts: int
    accounts_wrong: int
    charged_minor: int
    expected_minor: int

    def report(self) -> dict[str, int]:
        """Return it by name."""
        return {name: getattr(self, name) for name in self.__slots__}


async def read_charged(conn: AsyncConnection, stage: Stage) -> Charged:
    """Compare every account that has been read. All its days have to be of one billing period."""
    expected = await _owed_minor(conn, stage)
    readings: dict[str, int] = dict(await (await conn.execute(_READINGS)).fetchall())
    wrong: set[str] = set(readings)
    charged_minor = 0
    async for found in read_balances(conn, stage.calendar, Asked()):
        for row in found.rows:
            if row.number in expected:
                posted_minor, owed_minor = expected[row.number]
                charged_minor += posted_minor - row.balance_minor
                if posted_minor - row.balance_minor == owed_minor:
                    wrong.discard(row.number)
    return Charged(
        stored=sum(readings.values()),
        charged=sum(count for serial, count in readings.items() if serial not in wrong),
        accounts=len(expected),
        accounts_wrong=len(wrong),
        charged_minor=charged_minor,
        expected_minor=sum(owed for _, owed in expected.values()),
    )


async def _owed_minor(conn: AsyncConnection, stage: Stage) -> dict[str, tuple[int, int]]:
    """Return what was posted to each account, and what its use comes to by the plain rating."""
    tariff = builtin_tariff(TARIFF)

    @cache
    def owed(load_w: int, energy_wh: int, at_ms: int) -> int:
        day = stage.calendar.day_of(at_ms)
        part = one_assignment(tariff, load_w=load_w, opened_on=stage.opened_on).part_at(day)
        return total(part_lines(part, before_wh=0, energy_wh=energy_wh, zone_wh=(), through_day=day))

    found = await (await conn.execute(_LATEST)).fetchall()
    return {
        number: (posted_minor, owed(load_w, energy_wh, to_ms(read_at)))
        for number, posted_minor, load_w, read_at, energy_wh in found
    }
