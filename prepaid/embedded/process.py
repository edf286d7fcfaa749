"""Child processes of the embedded parts: start, stop by own id, recognise an orphan, keep ports and folders.

Nothing here knows a database or a broker. A child gets its own session, so that Ctrl-C in the terminal
reaches us first, and on Linux a death signal, so that it does not outlive a `kill -9` of its parent.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, TypedDict

import structlog

from prepaid.settings import PrepaidError

LOOPBACK: Final = "127.0.0.1"

_log = structlog.get_logger(__name__)
_PR_SET_PDEATHSIG: Final = 1  # Source: linux/prctl.h.
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
# Below 32_768, where Linux takes source ports from: a client that retries a dead port inside that range can
# connect to itself on loopback and so hold the port against the server that wants it back.
_PORT_FIRST: Final = 20_000
_PORT_LAST: Final = 32_000
_PORT_TRIES_MAX: Final = 200  # Of 12,000 ports; 200 misses mean that something is wrong with the machine.
_POLL_S: Final = 0.02  # Readiness is 0.1-0.5 s, so that a poll costs under a fifth of it.
_LOG_TAIL_BYTES: Final = 2_000  # A screenful: what a failed start shows of the child's last words.
_LOG_BYTES_MAX: Final = 20_000_000  # One old log of 20 MB is kept beside the current one.


class EmbeddedError(PrepaidError):
    """An embedded part cannot run; the message says what to change."""

    code: ClassVar[str] = "embedded_error"


class FolderInUse(EmbeddedError):
    """Another living process of ours runs this part on this folder."""

    code: ClassVar[str] = "folder_in_use"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The unprivileged user a child runs as when we are root."""

    name: str
    uid: int
    gid: int


class Switch(TypedDict, total=False):
    """Arguments of `subprocess` by which root starts a child as somebody else."""

    user: int
    group: int
    extra_groups: list[int]


class FolderLock:
    """Exclusive right to run one part on one folder, given up by the kernel when we die.

    Invariants: held by at most one process; never inherited by a child.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Make the folder and take it.

        Raises: FolderInUse if another process holds it; EmbeddedError if we may not write there.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EmbeddedError(f"data folder {self._path.parent}: expected to write there, got {error}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise FolderInUse(f"{self._path.parent} is in use by another running process") from None
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def spawn(
    command: Sequence[str],
    *,
    log_path: Path,
    death_signal: signal.Signals,
    identity: Identity | None = None,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in its own session, its output going to `log_path`; without `environment` a bare one."""
    if log_path.exists() and log_path.stat().st_size > _LOG_BYTES_MAX:
        log_path.replace(log_path.with_suffix(".log.1"))
    with log_path.open("ab") as log_file:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env=child_environment() if environment is None else environment,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_die_with_parent(death_signal),
            **as_identity(identity),
        )


def child_environment() -> dict[str, str]:
    """No `PG*` or locale variable of the operator may change what a child does."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def as_identity(identity: Identity | None) -> Switch:
    """Give the keyword arguments of `subprocess` that switch the user; none without an identity."""
    if identity is None:
        return {}
    return {"user": identity.uid, "group": identity.gid, "extra_groups": []}


def stop_child(child: subprocess.Popen[bytes], *, name: str, ladder: Sequence[tuple[signal.Signals, float]]) -> None:
    """Send each signal of the ladder in turn until the child has gone; the number is the wait in seconds."""
    for step, wait_s in ladder:
        if child.poll() is not None:
            return
        child.send_signal(step)
        child.send_signal(signal.SIGCONT)  # A frozen child would not see the signal otherwise.
        try:
            child.wait(wait_s)
            return
        except subprocess.TimeoutExpired:
            _log.warning("child_did_not_stop", child=name, pid=child.pid, sent=step.name, waited_s=wait_s)
    raise EmbeddedError(f"{name}: process {child.pid} does not end")


def stop_orphan(pid: int, *, name: str, ladder: Sequence[tuple[signal.Signals, float]]) -> None:
    """Do the same to a process that a dead parent left behind and that we cannot wait for."""
    for step, wait_s in ladder:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, step)
            os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            if not is_running(pid):
                return
            time.sleep(_POLL_S)
    raise EmbeddedError(f"{name}: orphan process {pid} does not end")


def is_running(pid: int) -> bool:
    """Tell whether a process exists and is more than a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return stat.read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
        except (OSError, IndexError):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def command_line(pid: int) -> list[str]:
    """Read a process's arguments, empty if it has gone or belongs to somebody who hides it."""
    proc = Path(f"/proc/{pid}/cmdline")
    try:
        if Path("/proc/self/cmdline").exists():
            return proc.read_bytes().decode(errors="replace").split("\0")
        shown = subprocess.run(
            ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False, timeout=5
        )
        return shown.stdout.split()
    except OSError:
        return []


def wait_until(
    ready: Callable[[], bool],
    *,
    child: subprocess.Popen[bytes] | None,
    name: str,
    log_path: Path,
    timeout_s: float,
) -> None:
    """Raises: EmbeddedError with the end of the child's log if it dies or is not ready in time."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if child is not None and child.poll() is not None:
            raise EmbeddedError(f"{name} ended with status {child.returncode}: {log_tail(log_path)}")
        if time.monotonic() > deadline:
            raise EmbeddedError(f"{name} not ready after {timeout_s:.0f} s: {log_tail(log_path)}")
        time.sleep(_POLL_S)


def log_tail(log_path: Path) -> str:
    """Return the last words of a child."""
    try:
        with log_path.open("rb") as log_file:
            log_file.seek(0, os.SEEK_END)
            log_file.seek(max(0, log_file.tell() - _LOG_TAIL_BYTES))
            return log_file.read().decode(errors="replace").strip()
    except OSError:
        return "(no log)"


def stable_ports(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Give each name the loopback port it had at the last start, or a new one where that is taken."""
    kept = read_ports(path)
    ports: dict[str, int] = {}
    for name in names:
        port = kept.get(name)
        if port is None or port in ports.values() or not port_is_free(port):
            port = _free_port(taken=set(ports.values()))
        ports[name] = port
    if ports != kept:
        write_private(path, json.dumps(ports))
    return ports


def free_ports(names: Sequence[str], *, taken: set[int]) -> dict[str, int]:
    """Give each name a free loopback port, for once."""
    ports: dict[str, int] = {}
    for name in names:
        ports[name] = _free_port(taken=taken | set(ports.values()))
    return ports


def read_ports(path: Path) -> dict[str, int]:
    """Return the ports of the last start, empty if there are none."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): int(port) for name, port in kept.items()} if isinstance(kept, dict) else {}


def port_is_free(port: int) -> bool:
    """Tell whether a server could listen on a loopback port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers themselves do: connections of the last run in TIME_WAIT do not bar the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    """Tell whether something listens on a loopback port."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole, readable by us alone."""
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as part_file:
        part_file.write(text)
        part_file.flush()
        os.fsync(part_file.fileno())
    part.replace(path)


def _free_port(*, taken: set[int]) -> int:
    chooser = random.SystemRandom()
    for _ in range(_PORT_TRIES_MAX):
        port = chooser.randint(_PORT_FIRST, _PORT_LAST)
        if port not in taken and port_is_free(port):
            return port
    raise EmbeddedError(f"no free port on {LOOPBACK} between {_PORT_FIRST} and {_PORT_LAST}")


def _die_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    # The kernel ties the signal to the thread that forked, so only the main thread, which lives as long as
    # the process, may set it. Elsewhere an orphan is found and stopped at the next start.
    if _LIBC is None or threading.current_thread() is not threading.main_thread():
        return None
    prctl = _LIBC.prctl
    parent_pid = os.getpid()

    def ask_for_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != parent_pid:
            os._exit(1)

    return ask_for_signal
