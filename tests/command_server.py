"""Becomes any number of `prepaid` commands: loads the program once, then forks at each request.

One line of JSON comes in for each command: its arguments, its whole environment, and the files that take what it
prints. Two lines go out: the command's process id, then its exit status, negative if a signal ended it. Ends with its
input.
"""

import json
import os
import pkgutil
import sys
from importlib import import_module
from typing import Any

import prepaid
from prepaid.__main__ import main


def take_over(request: dict[str, Any]) -> None:  # JSON.
    """Let this process be what the request says: its arguments, environment and standard streams."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for stream, path in enumerate((os.devnull, request["out"], request["err"])):
        flags = os.O_RDWR if stream == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, stream)
        os.close(opened)
    sys.argv = ["prepaid", *request["arguments"]]


def tell(number: int) -> None:
    """Answer with one number."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def load() -> None:
    """Load what commands would load each for itself, when it is given."""
    for module in pkgutil.walk_packages(prepaid.__path__, "prepaid."):
        import_module(module.name)


def serve() -> None:
    """Fork at each request and tell how the command ended; return only in the processes that are commands."""
    for line in sys.stdin.buffer:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            take_over(request)
            return
        tell(pid)
        _, ended = os.waitpid(pid, 0)
        tell(os.waitstatus_to_exitcode(ended))
    sys.exit()


if __name__ == "__main__":
    load()
    serve()
    main()
