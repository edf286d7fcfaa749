"""Commands of `prepaid`, each as a process of its own, as an operator gives them.

Loading the program costs 1.2 s of a core, many times what most commands do. So they are forked from a process that has
it loaded, `tests.command_server`: each has its own arguments, environment, standard streams and exit status all the
same. That `python -m prepaid` does the same is seen in `tests/integration/test_command_line.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


class _Server:
    """The process that commands are forked from. Invariants: one at a time; it runs from the first one to `stop`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, arguments: tuple[str, ...], environment: Mapping[str, str], within_s: float) -> tuple[int, str, str]:
        """Run one command; return its exit status and what it printed.

        Raises: TimeoutError when it had to be killed.
        """
        with self._lock, tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            child = self._started()
            assert child.stdin is not None
            request = {
                "arguments": arguments, "environment": dict(environment), "folder": os.getcwd(),
                "out": str(out), "err": str(err),
            }  # fmt: skip
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            pid = self._answer(child, within_s)
            assert pid is not None, f"the command server does not answer within {within_s:.0f} s"
            status = self._answer(child, within_s)
            if status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._answer(child, within_s)
                raise TimeoutError(f"{arguments}: killed after {within_s:.0f} s\n{_told(out)}\n{_told(err)}")
            return status, _told(out), _told(err)

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._child is not None:
            for pipe in (self._child.stdin, self._child.stdout):
                assert pipe is not None
                pipe.close()
            self._child.wait()
            self._child = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.command_server"],
                # Without a buffer of our own, what is there to be read is there to be waited for.
                bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT, env=clean_environment(),
            )  # fmt: skip
        return self._child

    def _answer(self, child: subprocess.Popen[bytes], within_s: float) -> int | None:
        """Read one number; nothing when it does not come in time."""
        assert child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            if not selector.select(within_s):
                return None
        return int(child.stdout.readline())


def _told(path: Path) -> str:
    return path.read_text() if path.exists() else ""


SERVER = _Server()


def clean_environment() -> dict[str, str]:
    """Return the environment without any setting of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREPAID_")}


def run_command(
    *arguments: str, environment: Mapping[str, str], status: int = 0, within_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run one command with these settings and no others, and check its exit status."""
    found, out, err = SERVER.run(arguments, clean_environment() | dict(environment), within_s)
    assert found == status, f"{arguments}: expected status {status}, got {found}\n{out}\n{err[-3000:]}"
    return subprocess.CompletedProcess(["prepaid", *arguments], found, out, err)


def settings_for(database_url: str, folder: Path) -> dict[str, str]:
    """Return the settings of a command on a test's own database."""
    return {"PREPAID_DATABASE_URL": database_url, "PREPAID_DATA_DIR": str(folder)}
