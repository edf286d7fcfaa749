"""What accounts should have been charged, from the rows that are stored and the plain rating: the benchmarks' judge.

Stage: after a measured run. Takes registers, loads and openings from the database's own tables and rates each pair of
load and energy that occurs by `billing.terms.part_lines`; nothing of the charge path takes part in it.
"""

from __future__ import annotations

from datetime import date
from typing import Final

import psycopg

from billing.calendar import from_ms
from billing.rating import total
from billing.tariff_document import builtin_tariff
from billing.terms import one_assignment, part_lines
from loadtests.population import OPENED_ON, TARIFF

_USED: Final = b"""
select x.load_w, r.import_wh - g.register_wh + g.start_wh as energy_wh, count(*)
from readings r
join installations i on i.meter_id = r.meter_id and i.role = 'billing' and i.to_at is null
join accounts a on a.usage_point_id = i.usage_point_id
join assignments x on x.account_id = a.id
join register_segments g on g.meter_id = r.meter_id
where r.read_at = %(at)s
group by 1, 2
"""


def owed_minor(conn: psycopg.Connection, at_ms: int, through_day: date) -> tuple[int, int]:
    """Return how many accounts were read at an instant and what their bills up to and including a day come to."""
    accounts = owed = 0
    for load_w, energy_wh, number in conn.execute(_USED, {"at": from_ms(at_ms)}):
        part = one_assignment(builtin_tariff(TARIFF), load_w=load_w, opened_on=OPENED_ON).part_at(through_day)
        lines = part_lines(part, before_wh=0, energy_wh=energy_wh, zone_wh=(), through_day=through_day)
        accounts += number
        owed += number * total(lines)
    return accounts, owed
