"""`prepaid workers`: which process owns which shards, how far behind it is, and which shards nobody owns.

Stage: the command line's outermost layer, as in `__main__`. Reads only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING

from prepaid import console
from prepaid.arguments import DataDir, Json, settings_of

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from db.workers import Worker


def workers_command(data: DataDir = None, json_output: Json = False) -> None:
    """Processes that share the shards: which each owns, since when it was heard of, how far behind it is."""
    from db.workers import list_workers, live_s, unowned_shards
    from prepaid.administration import on_database

    settings = settings_of(data)

    async def work(conn: AsyncConnection) -> tuple[list[Worker], list[int]]:
        return await list_workers(conn), await unowned_shards(conn, "ingest")

    workers, unowned = on_database(settings, work)
    if json_output:
        shown = [asdict(each) | {"started_at": each.started_at and each.started_at.isoformat()} for each in workers]
        console.print_json({"workers": shown, "unowned_shards": unowned})
        return
    for each in workers:
        console.out.print(_line(each, live_s(settings.lease_s)), markup=False)
    if unowned:
        console.out.print(f"shards of ingest that nobody owns: {stretches(unowned)}", markup=False)


def stretches(shards: Sequence[int]) -> str:
    """Write shard numbers in rising order as stretches of them: `0-15,17`."""
    starts = [shards[0], *(after for before, after in pairwise(shards) if after != before + 1)] if shards else []
    ends = [*(before for before, after in pairwise(shards) if after != before + 1), shards[-1]] if shards else []
    return ",".join(f"{start}-{end}" if start != end else str(start) for start, end in zip(starts, ends, strict=True))


def _line(worker: Worker, alive_s: float) -> str:
    owns = f"{len(worker.shards):>2} shards" + (f": {stretches(worker.shards)}" if worker.shards else "")
    if worker.silent_s is None or worker.started_at is None:
        return f"{worker.role:<8} {worker.name:<32} {owns}"
    heard = "alive" if worker.silent_s <= alive_s else f"silent for {worker.silent_s:.0f} s"
    lag = "nothing stored yet" if worker.lag_ms is None else f"{worker.lag_ms / 1000:.1f} s behind"
    return f"{worker.role:<8} {worker.name:<32} {owns}, {heard}, {lag}, since {worker.started_at:%F %T} UTC"
