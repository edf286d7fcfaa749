"""`up`: one machine's installation in one command, until Ctrl-C.

Stage: the operator's terminal. Starts the parts and processes, prints the addresses, brings back what dies, and runs
`close-day` once a day after the settled hour.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from datetime import date, datetime, timedelta
from types import FrameType

from psycopg import InterfaceError, OperationalError

from db.gateways import any_line
from db.pool import APPLICATION_ROLE, connect
from prepaid import console
from prepaid.notice_ports import sends_notices
from prepaid.settings import Settings
from prepaid.system import System, running_system

PROCESSES = ("dispatch", "watch", "api")
_LOOK_S = 0.5
# The first Modbus line that is entered is polled this soon; each look is a connection and a statement, 5 ms.
LINES_EVERY_S = 10.0


def run_up(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM."""
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with running_system(settings, processes_of(settings)) as system:
        _print_addresses(system)
        closed = _last_due(settings) - timedelta(days=1)
        gateway_at_s = 0.0
        while not stop.wait(_LOOK_S):
            system.tend()
            if not system.runs("gateway") and time.monotonic() >= gateway_at_s:
                gateway_at_s = time.monotonic() + LINES_EVERY_S
                if _has_lines(system):
                    system.start("gateway")
            due = _last_due(settings)
            if due > closed:
                system.start_once("close-day")
                closed = due
        console.out.print("stopping")


def processes_of(settings: Settings) -> tuple[str, ...]:
    """Name the processes that run all the time."""
    more_ingest = [f"ingest.{number}" for number in range(2, settings.ingest_processes + 1)]
    notify = ["notify"] if sends_notices(settings) else []
    bridge = ["bridge"] if settings.sources is not None else []
    return ("ingest", *more_ingest, *PROCESSES, *notify, *bridge)


def _has_lines(system: System) -> bool:
    """Tell whether there are Modbus lines to poll; not while the database is away."""

    async def ask() -> bool:
        async with await connect(system.parts.database_url, application="prepaid-up", role=APPLICATION_ROLE) as conn:
            return await any_line(conn)

    try:
        return asyncio.run(ask())
    except (OperationalError, InterfaceError, OSError):
        return False


def _last_due(settings: Settings) -> date:
    """Return the latest local day whose posting is due: it ended `close_day_delay_s` ago."""
    settled = datetime.now(settings.zone) - timedelta(seconds=settings.close_day_delay_s)
    return settled.date() - timedelta(days=1)


def _print_addresses(system: System) -> None:
    parts, data_dir = system.parts, system.settings.data_dir
    console.out.print(f"API        {system.api_url}  (documentation at {system.api_url}/docs)")
    console.out.print(f"MQTT       mqtt://{parts.mqtt_host}:{parts.mqtt_port}  (meters)")
    console.out.print(f"data, logs {data_dir}")
    console.out.print("Ctrl-C stops everything; the data stays.")
