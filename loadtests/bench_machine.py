"""What a measured figure was measured on: facts of the machine, its load and the disk below a folder.

Stage: beside every benchmark. Reads the system, and asks the parts of a run what they are; never a host name or a
user name.
"""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import nats
from psycopg import AsyncConnection

WARNING_SHOWN_MAX: Final = 100


def machine_facts() -> dict[str, object]:
    """Return processor, memory and interpreter, and how busy the machine was before the run."""
    return {
        "cpu_model": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
    }


def measured_at() -> str:
    """Return the present instant in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def file_system(folder: Path) -> str:
    """Return the type of the file system that holds a folder: on one in memory a sync costs nothing."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "unknown"
    # A later line covers an earlier one of the same place.
    holding = [(len(mount[1]), number, mount[2]) for number, mount in enumerate(mounts) if _below(folder, mount[1])]
    return max(holding)[2] if holding else "unknown"


async def parts_facts(conn: AsyncConnection, nats_url: str, shown: Sequence[str]) -> dict[str, dict[str, object]]:
    """Return versions of the database and the broker under `machine`, and some settings of the database."""
    cursor = await conn.execute(
        "select name, current_setting(name) from unnest(%s::text[]) name",
        (["server_version", "data_directory", *shown],),
    )
    found: dict[str, str] = dict(await cursor.fetchall())
    client = await nats.connect(nats_url)
    version = client.connected_server_version
    await client.close()
    return {
        "machine": {
            "postgresql": found["server_version"],
            "nats_server": f"{version.major}.{version.minor}.{version.patch}",
            "file_system": file_system(Path(found["data_directory"])),
        },
        "settings": {name: found[name] for name in shown},
    }


def cpu_seconds(pid: int) -> float | None:
    """Return the processor time a process has used so far; unlike the clock it hardly depends on who else runs."""
    fields = _stat(pid)
    # Fields 14 and 15, user and system time in clock ticks. Source: proc(5).
    return None if fields is None else _ticks_s(fields[11:13])


def family_cpu_seconds(pid: int) -> float | None:
    """Return the processor time of a process and of its children, those that have ended too."""
    fields = _stat(pid)
    if fields is None:
        return None
    children = (_stat(int(place.name)) for place in Path("/proc").iterdir() if place.name.isdigit())
    # Fields 16 and 17 are those of the children that were waited for; field 4 is the parent.
    return _ticks_s(fields[11:15]) + sum(_ticks_s(child[11:13]) for child in children if child and child[1] == str(pid))


def machine_cpu_seconds() -> float | None:
    """Return the processor time that all processes and the system have used so far on all cores."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    # user, nice, system, idle, iowait, irq, softirq; what follows is not ours, or counted already. Source: proc(5).
    return _ticks_s([*fields[:3], *fields[5:7]])


def resident_mib(pid: int) -> float | None:
    """Return the memory that a process holds; None if it has ended."""
    found = _memory_kib(pid)
    return None if found is None else found["VmRSS"] / 1024


def family_resident_mib(pid: int) -> float:
    """Return the memory that a process and its children hold, what they share counted once: that of who has most."""
    places = [int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit()]
    members = [pid, *(each for each in places if (fields := _stat(each)) and fields[1] == str(pid))]
    found = [memory for each in members if (memory := _memory_kib(each)) is not None]
    shared = max((memory["RssShmem"] for memory in found), default=0)
    return (sum(memory["RssAnon"] for memory in found) + shared) / 1024


def _memory_kib(pid: int) -> dict[str, int] | None:
    """Return what the system tells of a process's memory; files that are mapped are nobody's own."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    pairs = (line.split(":", 1) for line in lines)
    found = {name: int(value.split()[0]) for name, value in pairs if name in ("VmRSS", "RssAnon", "RssShmem")}
    return found if len(found) == 3 else None


def log_warnings(log_paths: Iterable[Path]) -> dict[str, int]:
    """Count what processes have warned of: each event with the beginning of its detail."""
    found: Counter[str] = Counter()
    for path in log_paths:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if event["level"] in ("warning", "error"):
                    found[f"{event['event']}: {event.get('detail', '')}"[:WARNING_SHOWN_MAX]] += 1
    return dict(found)


def _stat(pid: int) -> list[str] | None:
    """Return what the system tells of a process from its third field on; None if it has ended."""
    try:
        # The second field is a name in brackets that may hold blanks.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None


def _ticks_s(fields: list[str]) -> float:
    return sum(map(int, fields)) / os.sysconf("SC_CLK_TCK")


def _below(folder: Path, place: str) -> bool:
    return folder.resolve().is_relative_to(place)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"
