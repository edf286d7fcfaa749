"""Vends under kills, lost answers, copies, restores, and a key service that changes or goes: minted is posted, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httpx
import pytest

from billing.calendar import from_ms
from db.keys import KeyEvent, add_key_event
from db.pool import connect
from meter_sim.token_reader import TokenReader
from prepaid.embedded import EmbeddedPostgres
from prepaid.embedded.process import is_running
from prepaid.system import System
from tests.databases import scratch_database
from tests.faults.harness import Trial, kill
from tests.faults.proxy import PostgresProxy
from tests.faults.vend_street import (
    AMOUNT_MINOR,
    Street,
    api_processes,
    end,
    instance,
    nothing_sold,
    open_street,
    prove,
    sold_once,
    station,
    table_held,
)
from tests.integration.vending_shop import MASTER, SGC, VENDING_KEY, Clock, Home, key_of
from vending.edges.key_watch import LOOK_EVERY_MS, KeyWatch
from vending.edges.keys import add_vending_key, load_security_module
from vending.edges.record_desk import Wanted, change_key
from vending.security import ModuleTimeout, ModuleUnavailable, SecurityModule
from vending.sts.amounts import CurrencyField
from vending.sts.identity import MeterKeyRecord
from vending.sts.keys import derive_decoder_key
from vending.sts.tokens import CreditService, TokenNumber

pytestmark = pytest.mark.db

# Where a vend can be stopped before its commit, in the order in which it comes there: the writes of its transaction.
POINTS = ("last_tids", "journals", "legs", "vends", "tokens", "audit_trail", "vendor_floats")
MINUTE_MS, DAY_MS = 60_000, 86_400_000
COPIES = 50
TRIES_MAX = 400
# A vend has three answers of the database at least: its beginning, what it looked at, its commit.
CUTS_MIN = 3
VENDS_A_HOME = 6
# The vending key of the next revision; made up.
NEXT_KEY = bytes(range(20))


@pytest.fixture(autouse=True)
def master_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The master key that the street's vending key lies under, for processes that read the environment."""
    monkeypatch.setenv("PREPAID_MASTER_KEY", MASTER.hex())


# F3: the API process killed ------------------------------------------------------------------------------------------


async def _killed_before_commit(street: Street, systems: list[System], points: list[str], trial: Trial) -> None:
    """Kill one process after the other inside a vend; the retry goes to the last one, which lives."""
    for system, point in zip(systems, points, strict=False):
        message_id = f"before-{point}"
        async with station(system.api_url, street.key) as doomed, station(systems[-1].api_url, street.key) as other:
            async with table_held(street, point):
                vend = asyncio.create_task(doomed.post("/v1/vends", json=street.body(message_id)))
                await street.until(street.vend_waits, f"the vend waits for {point}")
                end(system)
                trial.note(f"killed before {point}")
            with pytest.raises(httpx.TransportError):
                await vend
            assert not is_running(system.pid("api"))
            await nothing_sold(street, message_id)
            first = await other.post("/v1/vends", json=street.body(message_id))
            await sold_once(street, message_id, first)
            again = await other.post("/v1/vends", json=street.body(message_id))
            assert (again.status_code, again.content) == (first.status_code, first.content)


class _Killer:
    """Kills a process at the commit of the next transaction that wrote something, before it learns of it."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.killed = False

    def at_step(self, step: str) -> bool:
        """Kill when it is time."""
        if self.pid is None or step != "committed":
            return False
        kill(self.pid)
        self.pid, self.killed = None, True
        return True


async def _killed_after_commit(street: Street, system: System, other: System, killer: _Killer, trial: Trial) -> None:
    """The vend is committed, its process dies before it knows: the retry gets what was stored."""
    async with station(system.api_url, street.key) as doomed, station(other.api_url, street.key) as living:
        killer.pid = system.pid("api")
        with pytest.raises(httpx.TransportError):
            await doomed.post("/v1/vends", json=street.body("committed"))
        trial.note("killed after the commit")
        assert killer.killed
        assert not is_running(system.pid("api"))
        assert await street.one("select count(*) from vends where message_id = 'committed' and status = 200") == 1
        token = await street.one(
            "select digits from tokens t join vends v on v.id = t.vend_id where message_id = 'committed'"
        )
        again = await living.post("/v1/vends", json=street.body("committed"))
        assert again.json()["token"]["digits"] == token
        await sold_once(street, "committed", again)


def _kill_story(database_url: str, folder: Path, *, seed: int, points: Callable[[Trial], list[str]]) -> None:
    async def story() -> None:
        with Trial(seed) as trial:
            chosen, killer = points(trial), _Killer()
            async with (
                open_street(database_url) as street,
                PostgresProxy(database_url, killer.at_step) as proxy,
            ):
                urls = [*([database_url] * len(chosen)), proxy.database_url, database_url]
                async with api_processes(urls, folder) as systems:
                    *doomed, before_last, last = systems
                    await _killed_before_commit(street, [*doomed, last], chosen, trial)
                    await _killed_after_commit(street, before_last, last, killer, trial)
                assert await street.one("select count(*) from vends") == len(chosen) + 1
                assert await street.one("select sum(posted_minor) from accounts") == (len(chosen) + 1) * AMOUNT_MINOR
                await prove(street)

    asyncio.run(story())


@pytest.mark.parametrize("seed", [7])
def test_api_killed_around_the_commit_of_a_vend_sells_once(database_url: str, data_dir: Path, seed: int) -> None:
    """`kill -9` before the commit leaves nothing, after it a stored answer; the retry sells once either way."""
    _kill_story(database_url, data_dir, seed=seed, points=lambda trial: sorted(trial.rng.sample(POINTS, 2)))


@pytest.mark.slow
def test_api_killed_at_every_write_of_a_vend_sells_once(database_url: str, data_dir: Path) -> None:
    """The same at each table that a vend writes to."""
    _kill_story(database_url, data_dir, seed=0, points=lambda _: list(POINTS))


# F26: lost answers, copies, old copies, restores ---------------------------------------------------------------------


def test_copies_of_a_vend_with_lost_answers_sell_once(database_url: str) -> None:
    """50 copies at once over two instances, 20 of whom nobody waits for any more: one sale, one answer, for ever."""

    async def story() -> None:
        with Trial(26) as trial:
            async with (
                open_street(database_url) as street,
                instance(street, clock=Clock()) as one,
                instance(street, clock=Clock()) as other,
            ):
                copies = [
                    asyncio.create_task((one, other)[number % 2].post("/v1/vends", json=street.body("same")))
                    for number in range(COPIES)
                ]
                left = trial.rng.sample(copies, 20)
                for copy in left:
                    for _ in range(trial.rng.randrange(12)):
                        await asyncio.sleep(0)
                    copy.cancel()
                answers = await asyncio.gather(*copies, return_exceptions=True)
                lost = [answer for answer in answers if isinstance(answer, asyncio.CancelledError)]
                assert lost, "some answers are lost"
                trial.note(f"{len(lost)} answers lost")
                heard = [answer for answer in answers if isinstance(answer, httpx.Response)]
                assert len(heard) == COPIES - len(lost)
                assert {(answer.status_code, answer.content) for answer in heard} == {(200, heard[0].content)}
                await sold_once(street, "same", await one.post("/v1/vends", json=street.body("same")))

                other_body = await other.post("/v1/vends", json=street.body("same", amount="500.01"))
                assert (other_body.status_code, other_body.json()["error"]["code"]) == (409, "message_id_reused")
                assert await street.one("select count(*) from vends") == 1
                assert await street.one("select posted_minor from accounts") == AMOUNT_MINOR
                await prove(street)

    asyncio.run(story())


def test_vend_is_answered_the_same_after_a_month_and_after_a_restore(
    postgres: EmbeddedPostgres, database_url: str
) -> None:
    """What the backup holds is answered byte for byte; what was sold after it is sold anew, under a later token id."""
    clock = Clock()

    async def before() -> tuple[bytes, Street]:
        async with open_street(database_url) as street, instance(street, clock=clock) as till:
            return (await till.post("/v1/vends", json=street.body("kept"))).content, street

    async def after(url: str, street: Street) -> tuple[bytes, int]:
        async with await connect(url, application="test") as conn:
            street = replace(street, conn=conn, database_url=url)
            async with instance(street, clock=clock) as till:
                kept = await till.post("/v1/vends", json=street.body("kept"))
                assert kept.status_code == 200
                clock.now_ms += MINUTE_MS
                late = await till.post("/v1/vends", json=street.body("late"))
                await sold_once(street, "late", late)
                assert await street.one("select count(*) from vends") == 2
                await prove(street)
                return kept.content, int(late.json()["tid"])

    first, street = asyncio.run(before())
    # The copy is the backup: made after the first vend, restored after the second.
    with scratch_database(postgres, template=urlsplit(database_url).path[1:]) as backup:
        clock.now_ms += 30 * DAY_MS
        month_later, lost_tid = asyncio.run(after(database_url, street))
        clock.now_ms += DAY_MS
        restored, tid = asyncio.run(after(postgres.url_of(backup), street))
    assert month_later == first
    assert restored == first
    assert tid > lost_tid, "a token id that was given out before the restore is not given out again"


# F8: the line to the database cut at every step of a vend ------------------------------------------------------------


# A step of a vend's transaction by its number, or the first one of a name.
Moment = int | str


class _Cutter:
    """Cuts the line at a step of a vend's transaction, counted from when it is armed."""

    def __init__(self) -> None:
        self.steps = 0
        self.cut_at: list[str] = []
        self._moment: Moment | None = None

    def arm(self, moment: Moment | None) -> None:
        """Count from now on; None cuts nothing."""
        self.steps, self._moment = 0, moment

    def at_step(self, step: str) -> bool:
        """Cut when it is time."""
        self.steps += 1
        if self._moment not in (step, self.steps):
            return False
        self._moment = None
        self.cut_at.append(step)
        return True


def test_vend_whose_database_line_is_cut_at_any_step_sells_once(database_url: str) -> None:
    """At every answer of the database, that of the commit too: 503, and the retry under the same id sells once."""

    async def story() -> None:
        cutter = _Cutter()
        async with (
            open_street(database_url) as street,
            PostgresProxy(database_url, cutter.at_step) as proxy,
            instance(street, clock=_steps(), database_url=proxy.database_url) as till,
        ):
            assert (await till.post("/v1/vends", json=street.body("whole"))).status_code == 200
            cutter.arm(None)
            await sold_once(street, "counted", await till.post("/v1/vends", json=street.body("counted")))
            for moment in (*range(1, cutter.steps + 1), "committed"):
                await _cut_at(street, till, cutter, moment)
            assert cutter.cut_at[-1] == "committed", "the answer of a commit was lost"
            assert len(cutter.cut_at) >= CUTS_MIN, cutter.cut_at
            await prove(street)

    asyncio.run(story())


async def _cut_at(street: Street, till: httpx.AsyncClient, cutter: _Cutter, moment: Moment) -> None:
    """Cut the line at a step of a vend, and ask again."""
    for number in range(TRIES_MAX):
        before, message_id = len(cutter.cut_at), f"cut-{moment}-{number}"
        cutter.arm(moment)
        answer = await till.post("/v1/vends", json=street.body(message_id))
        if answer.status_code == 503:
            assert len(cutter.cut_at) == before + 1, answer.text
            await _retried(street, till, message_id)
            return
        # The steps of the line on which coupons typed at meters are looked for, every second, were counted, too.
        await sold_once(street, message_id, answer)
        if len(cutter.cut_at) == before and moment != "committed":
            return
    raise AssertionError(f"expected a vend to be cut at step {moment}")


async def _retried(street: Street, till: httpx.AsyncClient, message_id: str) -> None:
    """Ask again under the same id, as a station does, while the pool replaces its lines."""
    for _ in range(TRIES_MAX):
        answer = await till.post("/v1/vends", json=street.body(message_id))
        if answer.status_code != 503:
            break
    await sold_once(street, message_id, answer)


def _steps() -> Callable[[], int]:
    """Return a clock that goes a minute a look: every token has a minute of its own."""
    return count(Clock().now_ms, MINUTE_MS).__next__


# F31: the vending key's revision changes, the key service goes away --------------------------------------------------


class _Service:
    """A security module that is away now and then: before it makes a token, or after it, with the answer lost."""

    def __init__(self, sound: SecurityModule, trial: Trial) -> None:
        self._sound = sound
        self._trial = trial
        self.down = False
        self.unreached = self.lost = self.made = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._sound, name)

    async def mint_currency_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount: CurrencyField, tid: int
    ) -> TokenNumber:
        """Make a token, or fail."""
        if self.down:
            self.unreached += 1
            raise ModuleUnavailable("module: expected an answer, got none")
        token = await self._sound.mint_currency_credit(meter, service=service, amount=amount, tid=tid)
        if self._trial.rng.random() < 0.2:
            self.lost += 1
            raise ModuleTimeout("module: expected an answer in time, got none")
        self.made += 1
        return token


@pytest.mark.parametrize("seed", [31, 32])
def test_key_revision_that_changes_amid_vends_leaves_no_token_without_its_journal(database_url: str, seed: int) -> None:
    """Records move to the next revision, the module goes away while stations sell: tokens open under their keys."""

    async def story() -> None:
        with Trial(seed) as trial:
            async with open_street(database_url, homes=6) as street:
                watch = KeyWatch(database_url, clock=count(0, LOOK_EVERY_MS).__next__)
                service = _Service(await load_security_module(street.conn, MASTER, changed_keys=watch), trial)
                async with instance(street, clock=_steps(), module=cast(SecurityModule, service)) as till:
                    await _sell_through(street, till, service, trial)
                assert min(service.unreached, service.lost) > 0, "the service was away, and lost an answer"
                trial.note(f"made {service.made}, lost {service.lost}, not reached {service.unreached}")
                sales = await street.one("select count(*) from vends where journal_id is not null")
                assert service.made == sales == 6 * VENDS_A_HOME
                revisions = dict(
                    await street.rows(
                        "select r.krn, count(*) from tokens t join meter_records r on r.id = t.record_id"
                        " where t.kind = 'credit' group by 1"
                    )
                )
                assert set(revisions) == {1, 2}, "tokens were made under both revisions"
                await _every_token_opens(street)
                await prove(street)

    asyncio.run(story())


async def _sell_through(street: Street, till: httpx.AsyncClient, service: _Service, trial: Trial) -> None:
    """Sell to all homes; half of them get the next revision on the way, and the module is away for a while."""
    sold = 0

    async def sell(home: Home) -> None:
        nonlocal sold
        for number in range(VENDS_A_HOME):
            message_id = f"{home.serial}-{number}"
            answer = await _asked(till, "/v1/vends", street.body(message_id, home=home))
            if answer.status_code == 409:
                assert answer.json()["error"]["code"] == "key_change_needed"
                trial.note(f"{home.serial} is told to change its key first")
                set_path = f"/v1/meters/{home.serial}/key-change"
                assert (await _asked(till, set_path, {"message_id": f"{message_id}-key"})).status_code == 200
                answer = await _asked(till, "/v1/vends", street.body(f"{message_id}-again", home=home))
            assert answer.status_code == 200, answer.text
            sold += 1

    async def after(number: int) -> None:
        await street.until(lambda: _reached(number), f"{number} vends")

    async def _reached(number: int) -> bool:
        return sold >= number

    async def disturb() -> None:
        await after(6)
        check_value = await add_vending_key(street.conn, MASTER, sgc=SGC, krn=2, key=NEXT_KEY)
        loaded = KeyEvent(
            at=from_ms(Clock().now_ms), event="loaded", sgc=SGC, krn=2, dkga=4, check_value=check_value, by="A. Kaur"
        )
        await add_key_event(street.conn, loaded)
        desk = await load_security_module(street.conn, MASTER)
        for home in trial.rng.sample(street.homes, 3):
            wanted = Wanted(serial=home.serial, changes={"krn": 2}, by="A. Kaur", reason="new revision")
            await change_key(street.conn, desk, wanted, now_ms=Clock().now_ms)
            trial.note(f"{home.serial} moves to revision 2")
        await after(12)
        service.down = True
        unreached = service.unreached

        async def felt() -> bool:
            return service.unreached > unreached + 2

        await street.until(felt, "the module is away")
        service.down = False

    await asyncio.gather(disturb(), *(sell(home) for home in street.homes))


async def _asked(till: httpx.AsyncClient, path: str, body: dict[str, str]) -> httpx.Response:
    """Ask under the same id until there is an answer, as a station does."""
    for _ in range(TRIES_MAX):
        answer = await till.post(path, json=body)
        if answer.status_code != 503:
            return answer
        await asyncio.sleep(0.005)
    raise AssertionError(f"{path}: expected an answer within {TRIES_MAX} tries, got 503 each time")


async def _every_token_opens(street: Street) -> None:
    """A meter that holds the key of a token's record takes it, once."""
    keys = {1: VENDING_KEY, 2: NEXT_KEY}
    for home in street.homes:
        tokens = await street.rows(
            "select r.krn, t.digits from tokens t join meter_records r on r.id = t.record_id"
            " where t.kind = 'credit' and t.meter_id = %s order by t.id",
            home.meter_id,
        )
        for krn, digits in tokens:
            reader = TokenReader(derive_decoder_key(keys[krn], key_of(home.drn or "", krn=krn)).key)
            assert reader.enter(digits, now_ms=0).accepted
