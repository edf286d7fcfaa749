"""The processes of one installation: database and broker, then ours, started in order and stopped in reverse.

Stage: under `up`, `demo`, `replay` and the tests. Ours are child processes of the same program, so that each can be
killed and comes back by itself; `tend` brings back what died.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from db.migrate import migrate
from db.pool import connect
from db.readings import ensure_partitions, partition_span
from headend.edges.stream import prepare_stream
from prepaid.embedded import Parts, embedded_parts
from prepaid.embedded.process import accepts, log_tail, spawn, stable_ports, stop_child
from prepaid.settings import ENV_PREFIX, PrepaidError, Settings

_log = structlog.get_logger("system")

# A clean stop commits the batch in hand and gives leases back, well under 10 s; then SIGKILL.
_STOP_LADDER: Final = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))
# A process that dies within 10 s of its start was no use; the sixth such death in a row is not worth another try.
_QUICK_DEATH_S: Final = 10.0
_QUICK_DEATHS_MAX: Final = 5
# Between two starts of a process, so that a broken one does not eat a core.
_RESTART_S: Final = 1.0
API_START_S: Final = 20.0


class ProcessBroken(PrepaidError):
    """A process of ours does not stay up."""

    code = "process_broken"


@dataclass(slots=True)
class _Process:
    name: str
    child: subprocess.Popen[bytes]
    started_s: float
    quick_deaths: int = 0


@dataclass(slots=True, kw_only=True)
class System:
    """A running installation.

    Invariants: `tend` and start are called from the main thread, so that children end with a killed parent.
    """

    settings: Settings
    parts: Parts
    api_port: int
    _processes: dict[str, _Process] = field(default_factory=dict)
    _once: set[str] = field(default_factory=set)

    @property
    def api_url(self) -> str:
        """Address of the HTTP API, if its process was started."""
        scheme = "http" if self.settings.api_tls_cert is None else "https"
        return f"{scheme}://{self.settings.api_host}:{self.api_port}"

    def pid(self, name: str) -> int:
        """Return the process id of one of ours."""
        return self._processes[name].child.pid

    def runs(self, name: str) -> bool:
        """Tell whether one of ours was started and is to run."""
        return name in self._processes

    def start(self, name: str) -> None:
        """Start one of ours: `ingest`, `dispatch`, `notify` or `api`; `ingest.2` is another `ingest`."""
        what, _, number = name.partition(".")
        log_path = self._log_path(name)
        # -P: a folder named db where the operator stands must not hide our package.
        command = [sys.executable, "-P", "-m", "prepaid", what]
        environment = self._environment(int(number or 1))
        child = spawn(command, log_path=log_path, death_signal=signal.SIGTERM, environment=environment)
        self._processes[name] = _Process(name=name, child=child, started_s=time.monotonic())

    def start_all(self, names: Sequence[str]) -> None:
        """Start some of ours; return when the API, if it is among them, listens."""
        for name in names:
            self.start(name)
        if "api" in names:
            _await_api(self)

    def start_once(self, name: str) -> None:
        """Start a command of ours that ends by itself, such as `close-day`."""
        self.start(name)
        self._once.add(name)

    def tend(self) -> None:
        """Start again what has died, database and broker first.

        Raises: ProcessBroken when one of ours dies again and again as soon as it is started; EmbeddedError when a
            part does not come back.
        """
        self.parts.revive()
        for process in list(self._processes.values()):
            status = process.child.poll()
            lived_s = time.monotonic() - process.started_s
            if status is None or lived_s < _RESTART_S:
                continue
            if process.name in self._once and status == 0:
                self._once.discard(process.name)
                del self._processes[process.name]
                _log.info("process_ended", process=process.name, ended_with=status)
                continue
            deaths = process.quick_deaths + 1 if lived_s < _QUICK_DEATH_S else 0
            if deaths > _QUICK_DEATHS_MAX and process.name in self._once:
                # A daily command that fails must not end the installation; it comes again tomorrow.
                self._once.discard(process.name)
                del self._processes[process.name]
                _log.error("process_given_up", process=process.name, ended_with=status)
                continue
            if deaths > _QUICK_DEATHS_MAX:
                last_words = log_tail(self._log_path(process.name))
                raise ProcessBroken(f"{process.name}: expected it to run, got {deaths} quick deaths: {last_words}")
            _log.warning("process_restarted", process=process.name, ended_with=status)
            self.start(process.name)
            self._processes[process.name].quick_deaths = deaths

    def stop(self) -> None:
        """Stop ours, the last started first."""
        for process in reversed(self._processes.values()):
            stop_child(process.child, name=process.name, ladder=_STOP_LADDER)
        self._processes.clear()

    def _log_path(self, name: str) -> Path:
        return self.settings.data_dir / f"{name}.log"

    def _environment(self, number: int) -> dict[str, str]:
        values = {
            "DATABASE_URL": self.parts.database_url,
            "NATS_URL": self.parts.nats_url,
            "MQTT_URL": f"mqtt://{self.parts.mqtt_host}:{self.parts.mqtt_port}",
            "API_PORT": str(self.api_port),
            "DATA_DIR": str(self.settings.data_dir),
        }
        if number > 1 and self.settings.ingest_metrics_port is not None:
            # The first has the port itself.
            values["INGEST_METRICS_PORT"] = str(self.settings.ingest_metrics_port + number - 1)
        return {**os.environ, **{ENV_PREFIX + name: value for name, value in values.items()}}


@contextmanager
def running_system(settings: Settings, processes: Sequence[str]) -> Iterator[System]:
    """Run the parts, prepare database and stream, start some of our processes; stop all at the end.

    Raises: EmbeddedError; MigrationError.
    """
    settings = settings.model_copy(update={"data_dir": settings.data_dir.absolute()})
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with embedded_parts(settings) as parts:
        asyncio.run(prepare(settings, parts))
        api_port = settings.api_port or stable_ports(settings.data_dir / "ports.json", ["api"])["api"]
        system = System(settings=settings, parts=parts, api_port=api_port)
        try:
            system.start_all(processes)
            yield system
        finally:
            system.stop()


async def prepare(settings: Settings, parts: Parts) -> None:
    """Migrate the database, make the partitions of about now, and make the stream's consumers.

    The consumers must be there before a meter may connect: the broker drops what nobody has asked for.
    """
    async with await connect(parts.database_url, application="prepaid-prepare") as conn:
        applied = await migrate(conn)
        if applied:
            _log.info("migrated", applied=applied)
        await ensure_partitions(conn, partition_span(datetime.now(UTC).date()))
    await prepare_stream(parts.nats_url, parts.mqtt_host, parts.mqtt_port, ack_wait_s=settings.ack_wait_s)


def _await_api(system: System) -> None:
    deadline_s = time.monotonic() + API_START_S
    while not accepts(system.api_port):
        if time.monotonic() > deadline_s:
            raise ProcessBroken(f"api: expected it to listen within {API_START_S:.0f} s, got no answer")
        system.tend()
        time.sleep(0.05)
