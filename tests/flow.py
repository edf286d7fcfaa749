"""Meters that report without a pause while something else happens, and what must be stored of it afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

from db.audit import run_checks
from meter_sim.edges.bulk import BulkPublisher
from tests.support import CALENDAR, MINUTE_MS, REGISTER_WH, T0, Home, Site, reading

# A round of 64 meters each 20 ms is 3,200 messages a second: batches are always under way, none lasts.
METERS, ROUND_S = 64, 0.02


@dataclass(slots=True, kw_only=True)
class Flow:
    """What was sent: in each round each meter's reading of the next minute, one Wh more."""

    homes: Sequence[Home]
    rounds: int = 0

    @property
    def sent(self) -> int:
        """Count the readings sent."""
        return self.rounds * len(self.homes)


async def add_homes(site: Site, count: int = METERS) -> list[Home]:
    """Register meters of all shards."""
    return [await site.add_home(f"M{number}") for number in range(count)]


@asynccontextmanager
async def flowing(site: Site, homes: Sequence[Home], flow: Flow | None = None) -> AsyncIterator[Flow]:
    """Publish rounds as long as the context lasts, after those of an earlier flow; at its end all are acknowledged."""
    flow = flow or Flow(homes=homes)
    stop = asyncio.Event()

    async def publish() -> None:
        async with BulkPublisher(site.nats.mqtt_host, site.nats.mqtt_port, connections=2) as publisher:
            while not stop.is_set():
                flow.rounds += 1
                for home in homes:
                    at_ms = T0 + flow.rounds * MINUTE_MS
                    await publisher.publish(*reading(home.serial, at_ms, REGISTER_WH + flow.rounds))
                await asyncio.sleep(ROUND_S)

    task = asyncio.create_task(publish())
    site.tasks.append(task)
    try:
        yield flow
    finally:
        site.tasks.remove(task)
        stop.set()
        await task


async def shares(site: Site) -> dict[str, int]:
    """Return how many shards each process owns."""
    found = await site.rows(
        "select owner, count(*) from shard_leases"
        " where role = 'ingest' and expires_at > clock_timestamp() group by owner"
    )
    return dict(found)


async def until_shared(site: Site, *counts: int, within_s: float = 30.0) -> dict[str, int]:
    """Wait until the shards are shared like this, and return who has how many."""

    async def shared() -> dict[str, int] | None:
        found = await shares(site)
        return found if sorted(found.values()) == sorted(counts) else None

    found = await site.until(shared, f"the shards are shared {counts}", within_s=within_s)
    assert found is not None
    return found


async def until_stored(site: Site, flow: Flow, *, more: int, within_s: float = 30.0) -> None:
    """Wait until so many more readings are stored: every owner is at work."""
    before = await site.one("select count(*) from readings")

    async def grown() -> bool:
        return bool(await site.one("select count(*) from readings") >= before + more)

    await site.until(grown, f"{more} more readings of {flow.sent} are stored", within_s=within_s)


async def assert_once(site: Site, flow: Flow) -> None:
    """Everything sent is stored once, charged, and nothing else; the auditor finds nothing."""
    await site.settled(within_s=60)
    stored = await site.rows(
        "select m.serial, count(*), min(r.import_wh), max(r.import_wh) from readings r"
        " join meters m on m.id = r.meter_id group by 1 order by 1"
    )
    expected = (flow.rounds, REGISTER_WH + 1, REGISTER_WH + flow.rounds)
    assert stored == [(serial, *expected) for serial in sorted(home.serial for home in flow.homes)]
    assert await site.reasons() == []
    assert (await site.totals()).stored == flow.sent
    unsound = await site.rows("select * from batches where received <> stored + duplicate + rejected + quarantined")
    assert unsound == []
    snapshot = await site.snapshot(flow.homes)
    assert {bill[0] for bill in snapshot.bills.values()} == {flow.rounds}
    report = await run_checks(site.conn, CALENDAR)
    assert report.clean, "\n".join(report.lines())


async def assert_in_order(site: Site, flow: Flow) -> None:
    """No reading was committed before an earlier one of its meter."""
    written = await site.rows("select meter_id, xmin::text::bigint from readings order by meter_id, read_at")
    assert len(written) == flow.sent
    for (meter, earlier), (same, later) in pairwise(written):
        assert meter != same or earlier <= later, f"meter {meter}: a later reading was stored first"
