"""Ingest processes that die or stand still while they share the shards: each reading is stored once, by whomever."""

import asyncio
import json
import os
import signal
from collections.abc import Collection
from pathlib import Path

import pytest

from prepaid.embedded import EmbeddedNats
from prepaid.embedded.process import is_running
from prepaid.system import System
from tests.flow import Flow, add_homes, assert_once, flowing, shares, until_shared, until_stored
from tests.support import Site, child_processes, open_site

pytestmark = [pytest.mark.db, pytest.mark.broker]

NAMES = ("ingest", "ingest.2", "ingest.3")
LEASE_S, ACK_WAIT_S = 2, 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short leases and redelivery, for the processes that read the environment."""
    monkeypatch.setenv("PREPAID_LEASE_S", str(LEASE_S))
    monkeypatch.setenv("PREPAID_ACK_WAIT_S", str(ACK_WAIT_S))


async def _owned(site: Site, system: System, name: str) -> int:
    """Count the shards of one of the processes that now run."""
    return sum(count for owner, count in (await shares(site)).items() if _is(owner, system, name))


def _is(owner: str, system: System, name: str) -> bool:
    return owner.startswith(f"ingest-{system.pid(name)}-")


async def _until_owned(site: Site, system: System, counts: dict[str, int | Collection[int]], what: str) -> None:
    async def so() -> bool:
        owned = {name: await _owned(site, system, name) for name in counts}
        return all(owned[n] in (c if isinstance(c, Collection) else (c,)) for n, c in counts.items())

    await site.until(so, what, within_s=40)


def _events(folder: Path, name: str) -> list[str]:
    # A library's warning goes to the same file: a connection that was cut inside a pipeline says so in plain words.
    lines = (folder / f"{name}.log").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines if line.startswith("{")]


@pytest.mark.faults
def test_killed_process_loses_its_shards_to_the_others_and_gets_its_part_back(
    database_url: str, nats: EmbeddedNats, data_dir: Path
) -> None:
    """`kill -9` of one of three under load: the others take its shards within a lease; a new one gets its share."""

    async def story() -> None:
        async with open_site(database_url, nats, ack_wait_s=ACK_WAIT_S) as site:
            homes = await add_homes(site)
            with child_processes(site.parts, data_dir, NAMES) as system:
                await until_shared(site, 12, 12, 8)
                async with flowing(site, homes) as flow:
                    await until_stored(site, flow, more=300)
                    pid = system.pid("ingest.2")
                    os.kill(pid, signal.SIGKILL)
                    await _until_owned(site, system, {"ingest": 16, "ingest.3": 16}, "the others have its shards")
                    assert not is_running(pid)
                    await until_stored(site, flow, more=300)
                    system.tend()
                    await until_shared(site, 12, 12, 8, within_s=40)
                    await _until_owned(site, system, {"ingest.2": (8, 12)}, "the new one has its part")
                    await until_stored(site, flow, more=300)
                await assert_once(site, flow)

    asyncio.run(story())


def test_process_that_stood_still_beyond_its_lease_is_fenced_and_gets_its_part_back(
    database_url: str, nats: EmbeddedNats, data_dir: Path
) -> None:
    """SIGSTOP of one of three beyond the lease, under load: it may not write what it had in hand, then has a share."""

    async def story() -> None:
        async with open_site(database_url, nats, ack_wait_s=ACK_WAIT_S) as site:
            homes = await add_homes(site)
            with child_processes(site.parts, data_dir, NAMES) as system:
                await until_shared(site, 12, 12, 8)
                async with flowing(site, homes) as flow:
                    await until_stored(site, flow, more=300)
                    os.kill(system.pid("ingest.2"), signal.SIGSTOP)
                    await _until_owned(site, system, {"ingest": 16, "ingest.3": 16}, "the others have its shards")
                    await until_stored(site, flow, more=300)
                    assert "lease_lost" not in _events(data_dir, "ingest.2")
                    os.kill(system.pid("ingest.2"), signal.SIGCONT)
                    await _until_fenced(site, data_dir, flow)
                    await until_shared(site, 12, 12, 8, within_s=40)
                    await _until_owned(site, system, {"ingest.2": (8, 12)}, "it has its part again")
                    await until_stored(site, flow, more=300)
                await assert_once(site, flow)
                assert "lease_lost" not in _events(data_dir, "ingest") + _events(data_dir, "ingest.3")

    asyncio.run(story())


async def _until_fenced(site: Site, folder: Path, flow: Flow) -> None:
    async def fenced() -> bool:
        return "lease_lost" in _events(folder, "ingest.2")

    await site.until(fenced, f"it notices that it owns nothing, {flow.rounds} rounds sent", within_s=30)
