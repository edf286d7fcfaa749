"""A process that opens keys leaves no image of its memory behind.

Stage: process start, before the master key is read. What a crash would write to disk, and what another process of the
same user could read, is forbidden for the rest of the process's life.
"""

from __future__ import annotations

import ctypes
import resource
import sys

from prepaid.settings import PrepaidError

_PR_SET_DUMPABLE = 4


class CoreDumpsPossible(PrepaidError):
    """The system does not let this process forbid images of its memory."""

    code = "core_dumps_possible"


def forbid_core_dumps() -> None:
    """Forbid core dumps of this process and of those it starts, and reading of its memory by others of its user.

    On Linux the second holds until another program is executed. Raises: CoreDumpsPossible.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise CoreDumpsPossible("process: expected to be made undumpable before it reads a key, got a refusal")
