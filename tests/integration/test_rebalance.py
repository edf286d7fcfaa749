"""Ingest processes share the shards: joining and leaving under load moves them in order and loses nothing."""

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from typing import Any

import pytest

from prepaid.embedded import EmbeddedNats
from prepaid.settings import Settings
from prepaid.up import processes_of
from prepaid.worker_commands import stretches
from tests.flow import add_homes, assert_in_order, assert_once, flowing, shares, until_shared, until_stored
from tests.support import Site, open_site, running_ingest

pytestmark = [pytest.mark.db, pytest.mark.broker]

# Above the 2 s after which a reader has come again what still came to it for a shard that it has left: else a new
# owner may begin before that is due, as no installation's does with its 10 s.
ACK_WAIT_S = 3.0


def test_processes_that_join_and_leave_under_load_share_the_shards(database_url: str, nats: EmbeddedNats) -> None:
    """16/16, a third under load 12/12/8, and back: each reading once, in order, none even sent twice."""

    async def story() -> None:
        async with open_site(database_url, nats, ack_wait_s=ACK_WAIT_S) as site, AsyncExitStack() as first:
            homes = await add_homes(site)
            await first.enter_async_context(running_ingest(site, ack_wait_s=ACK_WAIT_S))
            async with running_ingest(site, ack_wait_s=ACK_WAIT_S) as second:
                await until_shared(site, 16, 16)
                async with flowing(site, homes) as flow:
                    await until_stored(site, flow, more=500)
                    async with running_ingest(site, ack_wait_s=ACK_WAIT_S):
                        counts = await until_shared(site, 12, 12, 8)
                        await until_stored(site, flow, more=500)
                        assert await shares(site) == counts, "shares at rest stay where they are"
                        shown = await _workers(site)
                        assert {each["name"]: len(each["shards"]) for each in shown["workers"]} == counts
                        assert all(each["lag_ms"] is not None for each in shown["workers"])
                        assert shown["unowned_shards"] == []
                    await until_shared(site, 16, 16)
                    await until_stored(site, flow, more=500)
                    # The first one leaves, too: the second has them all.
                    await first.aclose()
                    await until_shared(site, 32)
                    await until_stored(site, flow, more=500)
                    assert second.registry.get_sample_value("prepaid_ingest_shards") == 32
                await assert_once(site, flow)
                assert (await site.totals()).duplicate == 0
                await assert_in_order(site, flow)

    asyncio.run(story())


async def _workers(site: Site) -> dict[str, Any]:
    """Ask the command line who owns what."""
    command = [sys.executable, "-m", "prepaid", "workers", "--json"]
    environment = {**os.environ, "PREPAID_DATABASE_URL": site.database_url}
    asked = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
    answer, _ = await asked.communicate()
    assert asked.returncode == 0
    return dict(json.loads(answer))


def test_up_runs_as_many_ingest_processes_as_are_set() -> None:
    """The first is `ingest`, others are counted from 2."""
    one = processes_of(Settings())
    assert one[0] == "ingest"
    assert processes_of(Settings(ingest_processes=3)) == ("ingest", "ingest.2", "ingest.3", *one[1:])


def test_stretches_of_shards_are_written_short() -> None:
    """Shards that follow each other are one stretch."""
    assert [stretches(shards) for shards in ([], [3], [0, 1, 2], [0, 2, 3, 7])] == ["", "3", "0-2", "0,2-3,7"]
