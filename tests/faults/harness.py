"""Towns under faults: seeded meters' histories, a load that flows while something breaks, and what must hold after it.

Stage: shared by the fault tests of ingestion. A `Town` knows all that its meters will ever say; `prove` compares what
the database holds after a fault with that, with the auditor, and with the plain oracle of the property tests, which
shares no code with the product. A `Trial` shows seed and fault timeline with whatever failed.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from billing.calendar import LocalCalendar, from_ms, to_ms
from billing.tariff_document import builtin_documents
from db.audit import run_checks
from db.orders import PostingRules
from db.readings import ensure_partitions
from db.registry import NewAccount, NewMeter, add_meter, open_account
from db.reports import look_all
from meter_sim.edges.bulk import BulkPublisher
from prepaid.embedded.process import is_running
from prepaid.system import System
from tests.properties import oracle
from tests.support import (
    CALENDAR,
    DAY_MS,
    HOUR_MS,
    RATED_W,
    REGISTER_END_WH,
    REGISTER_WH,
    T0,
    TARIFF,
    WAIT_S,
    Message,
    Site,
    now_ms,
    reading,
)

# After the last fault, everything has to be stored within this (I12).
DRAIN_S = 60.0
LOAD_W = 3_000
# What a load of 3 kW draws in most hours; a few hours draw what the meter is rated for.
HOUR_WH = (0, 40, 300, 900, 2_900)

# A serial and an instant in milliseconds: the key of a reading.
Key = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """One meter and all that it will ever say: energy to date by instant, rising."""

    serial: str
    opened_ms: int
    start_wh: int
    end_wh: int
    credit_minor: int
    threshold_minor: int | None
    energy_wh: Mapping[int, int]

    def register_wh(self, at_ms: int) -> int:
        """Return what the register shows: it rolls over at its end."""
        return (self.start_wh + self.energy_wh[at_ms]) % self.end_wh

    def message(self, at_ms: int) -> Message:
        """Return the message of one reading."""
        return reading(self.serial, at_ms, self.register_wh(at_ms))


@dataclass(frozen=True, slots=True, kw_only=True)
class Town:
    """Meters on one tariff, made from a seed."""

    seed: int
    meters: tuple[Meter, ...]
    tariff_id: str = TARIFF
    calendar: LocalCalendar = CALENDAR

    @property
    def keys(self) -> list[Key]:
        """Every reading there will be, in order of time."""
        found = [(at_ms, meter.serial) for meter in self.meters for at_ms in meter.energy_wh]
        return [(serial, at_ms) for at_ms, serial in sorted(found)]

    @property
    def messages(self) -> list[Message]:
        """Every message, in order of time."""
        by_serial = {meter.serial: meter for meter in self.meters}
        return [by_serial[serial].message(at_ms) for serial, at_ms in self.keys]


def make_town(
    seed: int,
    *,
    meters: int = 60,
    readings: int = 48,
    step_ms: int = HOUR_MS,
    opened_ms: int = T0,
    end_wh: Sequence[int] = (REGISTER_END_WH,),
    ends_after_wh: int | None = None,
    drift_ms: int = 0,
    tariff_id: str = TARIFF,
    calendar: LocalCalendar = CALENDAR,
) -> Town:
    """Make a town.

    With `ends_after_wh`, registers begin so far before their end; ends are dealt in turn. Each clock gains or loses up
    to `drift_ms` a reading.
    """
    rng = random.Random(seed)
    made = []
    for number in range(meters):
        ends = end_wh[number % len(end_wh)]
        energy, energy_wh, gains_ms = 0, {}, rng.randint(-drift_ms, drift_ms)
        for step in range(1, readings + 1):
            hours = step_ms / HOUR_MS
            energy += int(rng.choice(HOUR_WH) * rng.random() * hours)
            energy_wh[opened_ms + step * (step_ms + gains_ms)] = energy
        made.append(
            Meter(
                serial=f"T{number}",
                opened_ms=opened_ms,
                start_wh=REGISTER_WH if ends_after_wh is None else ends - ends_after_wh,
                end_wh=ends,
                # Some run low and out of credit in a day or two.
                credit_minor=rng.choice((8_000, 15_000, 1_000_000)),
                threshold_minor=rng.choice((None, 5_000)),
                energy_wh=energy_wh,
            )
        )
    return Town(seed=seed, meters=tuple(made), tariff_id=tariff_id, calendar=calendar)


async def settle_in(site: Site, town: Town) -> None:
    """Register a town's meters, open its accounts, make the partitions of its days."""
    rules = PostingRules(calendar=town.calendar)
    async with site.conn.transaction():
        for meter in town.meters:
            await add_meter(site.conn, NewMeter(serial=meter.serial, rated_w=RATED_W, register_end_wh=meter.end_wh))
            account = NewAccount(
                number=meter.serial,
                consumer=f"Household {meter.serial}",
                usage_point=meter.serial,
                area="test",
                meter_serial=meter.serial,
                opened_at=from_ms(meter.opened_ms),
                register_wh=meter.start_wh,
                tariff_id=town.tariff_id,
                sanctioned_load_w=LOAD_W,
                threshold_minor=meter.threshold_minor,
                opening_credit_minor=meter.credit_minor,
            )
            assert await open_account(site.conn, account, rules=rules, now_ms=now_ms()) is not None
    instants = {at_ms // DAY_MS for meter in town.meters for at_ms in meter.energy_wh}
    await ensure_partitions(site.conn, {from_ms(day * DAY_MS).date() for day in instants})


class Trial:
    """A test with faults: its seed, and what was done when; both are shown with whatever fails inside."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self._began_s = time.monotonic()
        self._timeline: list[str] = []

    def note(self, what: str) -> None:
        """Write into the timeline."""
        self._timeline.append(f"{time.monotonic() - self._began_s:7.2f} s  {what}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note("\n".join([f"seed {self.seed}; fault timeline:", *self._timeline]))


@dataclass(slots=True, kw_only=True)
class Flow:
    """A load that is being published."""

    publisher: BulkPublisher
    published: int = 0

    @property
    def acknowledged(self) -> int:
        """Messages that the broker says it has stored."""
        return self.publisher.acknowledged


@asynccontextmanager
async def flowing(site: Site, messages: Sequence[Message], *, over_s: float) -> AsyncIterator[Flow]:
    """Publish evenly over a time, beside what the context does; at its end, wait until all is acknowledged."""
    ticks = max(1, round(over_s / 0.05))
    size = -(-len(messages) // ticks)
    async with BulkPublisher(site.nats.mqtt_host, site.nats.mqtt_port, connections=2) as publisher:
        flow = Flow(publisher=publisher)

        async def send() -> None:
            began_s = time.monotonic()
            for tick in range(ticks):
                await asyncio.sleep(max(0.0, began_s + tick * over_s / ticks - time.monotonic()))
                for topic, payload in messages[tick * size : (tick + 1) * size]:
                    await publisher.publish(topic, payload)
                    flow.published += 1

        sending = asyncio.create_task(send())
        try:
            yield flow
            await sending
            assert await publisher.drain() == len(messages)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What must be there at the end beside what is stored by default: every reading of the town, and nothing held."""

    held: frozenset[Key] = frozenset()
    not_stored: frozenset[Key] = frozenset()


async def prove(site: Site, town: Town, facts: Facts | None = None, *, drain_s: float = DRAIN_S) -> None:
    """Wait for the backlog to drain, then check the invariants I1 to I5, I8, I9, I12 and I13.

    Readings are there exactly once or held, nothing else is there, batches add up, the auditor finds nothing, and every
    balance is what the plain oracle makes of the stored readings in order of time.
    """
    facts = facts or Facts()
    await site.settled(within_s=drain_s)
    serials = [meter.serial for meter in town.meters]
    expected = {
        (meter.serial, at_ms): meter.register_wh(at_ms)
        for meter in town.meters
        for at_ms in meter.energy_wh
        if (meter.serial, at_ms) not in facts.not_stored
    }
    _same(await _stored(site, serials), expected, "readings stored")
    held = await site.rows("select serial, read_at from quarantine where serial = any(%s)", serials)
    _same(dict.fromkeys((serial, at and to_ms(at)) for serial, at in held), dict.fromkeys(facts.held), "readings held")
    await prove_money(site, town, expected)


async def prove_money(site: Site, town: Town, stored: Iterable[Key]) -> None:
    """Check counts, books and every account's balance, as the oracle rates these readings of the town."""
    unsound = await site.rows("select * from batches where received <> stored + duplicate + rejected + quarantined")
    assert unsound == [], "received = stored + duplicate + rejected + quarantined"
    report = await run_checks(site.conn, town.calendar)
    assert report.clean, "\n".join(report.lines())
    _same(await _balances(site, town), _judged(town, stored), "balances")


async def _stored(site: Site, serials: Sequence[str]) -> dict[Key, int]:
    rows = await site.rows(
        "select m.serial, r.read_at, r.import_wh from readings r join meters m on m.id = r.meter_id"
        " where m.serial = any(%s)",
        list(serials),
    )
    found = {(serial, to_ms(read_at)): register_wh for serial, read_at, register_wh in rows}
    assert len(found) == len(rows), "a reading is stored once"
    return found


async def _balances(site: Site, town: Town) -> dict[str, int]:
    """Return balances by account number, which is the serial of the meter that stood there first."""
    numbers = [meter.serial for meter in town.meters]
    rows = await site.rows("select number, id from accounts where number = any(%s)", numbers)
    views = await look_all(site.conn, sorted(account_id for _, account_id in rows), town.calendar)
    return {number: views[account_id].balance_minor(town.calendar) for number, account_id in rows}


def _judged(town: Town, stored: Iterable[Key]) -> dict[str, int]:
    """Return every balance as the oracle rates the readings that are stored."""
    instants: dict[str, list[int]] = {}
    for serial, at_ms in stored:
        instants.setdefault(serial, []).append(at_ms)
    text = builtin_documents()[town.tariff_id]
    return {
        meter.serial: meter.credit_minor
        - oracle.total_minor(
            oracle.bill(
                (from_ms(meter.opened_ms), 0),
                [(from_ms(at_ms), meter.energy_wh[at_ms]) for at_ms in sorted(instants.get(meter.serial, ()))],
                assigned=[
                    oracle.Assigned(
                        from_day=town.calendar.day_of(meter.opened_ms),
                        text=text,
                        load_w=LOAD_W,
                        area="urban",
                        meter_rent=True,
                    )
                ],
                zone_name=town.calendar.zone.key,
            )
        )
        for meter in town.meters
    }


def _same(found: Mapping[object, object], expected: Mapping[object, object], what: str) -> None:
    """Compare, and show a handful of what differs."""
    missing = [key for key in expected if key not in found]
    surplus = [key for key in found if key not in expected]
    other = [(key, found[key], expected[key]) for key in expected if key in found and found[key] != expected[key]]
    differs = missing or surplus or other
    assert not differs, (
        f"{what}: {len(missing)} missing {missing[:5]}, {len(surplus)} not expected {surplus[:5]},"
        f" {len(other)} different (key, found, expected) {other[:5]}"
    )


def process_tree(pid: int) -> list[int]:
    """Return a process and its children, the parent first."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            children.append(int(stat.parent.name))
    return [pid, *children]


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process and its children for as long as the context lasts, as a machine does that hangs."""
    stopped: list[int] = []
    try:
        # The parent first, so that it makes no more children.
        os.kill(pid, signal.SIGSTOP)
        for each in process_tree(pid):
            os.kill(each, signal.SIGSTOP)
            stopped.append(each)
        yield
        for each in stopped:
            state = Path(f"/proc/{each}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            assert state == "T", f"process {each}: expected it to stand still, got state {state}"
    finally:
        for each in reversed(stopped or [pid]):
            os.kill(each, signal.SIGCONT)


def kill(pid: int) -> None:
    """End a process without warning; return when it is gone."""
    os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + WAIT_S
    while is_running(pid):
        assert time.monotonic() < deadline_s, f"process {pid} ends"
        time.sleep(0.001)


async def at_work(site: Site, system: System) -> bool:
    """Tell whether the ingest process that now runs owns every shard; bring back one that died."""
    system.tend()
    return is_running(system.pid("ingest")) and bool(
        await site.one(
            "select count(*) = 32 from shard_leases"
            " where role = 'ingest' and owner like %s and expires_at > clock_timestamp()",
            f"ingest-{system.pid('ingest')}-%",
        )
    )
