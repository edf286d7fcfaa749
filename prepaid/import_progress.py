"""How far the import of a file has come, kept in a small file beside the data: what is in it is in the broker.

Stage: `prepaid import`. Written after the broker has acknowledged everything up to an offset, in one rename; read when
the same file is imported with the same options again, and removed when the import has come to its end.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from prepaid.reading_files import ReadingsRefused

_READ_BYTES: Final = 1 << 20


class FileProgress(msgspec.Struct, kw_only=True):
    """What was taken of a file up to `offset`, and all that is needed to go on from there.

    Invariants: every message of what lies before `offset` was acknowledged by the broker. `starts` has the meters first
    met in this file; `registers` all that were met until here.
    """

    since_xid: str
    offset: int = 0
    line: int = 0
    sent: int = 0
    messages: int = 0
    bad_lines: int = 0
    missing: int = 0
    left_out: dict[str, int] = {}
    qualities: dict[str, int] = {}
    memory: dict[str, object] | None = None
    starts: dict[str, tuple[int, int, int | None, int | None]] = {}
    registers: dict[str, tuple[int, str, int]] = {}
    done: bool = False


class ProgressFile:
    """The place of one file's progress."""

    def __init__(self, folder: Path, digest: str) -> None:
        self._path = folder / f"{digest}.json"
        self._part = folder / f"{digest}.part"

    def read(self) -> FileProgress | None:
        """Return what was kept, if anything was. Raises: ReadingsRefused."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=FileProgress)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise ReadingsRefused(f"{self._path}: expected the progress of an import, got {error}") from None

    def write(self, progress: FileProgress) -> None:
        """Keep progress; a crash leaves the old or the new."""
        with self._part.open("wb") as part:
            part.write(msgspec.json.encode(progress))
            part.flush()
            os.fsync(part.fileno())
        os.replace(self._part, self._path)

    def remove(self) -> None:
        """Forget the progress."""
        self._path.unlink(missing_ok=True)


def digest_of(path: Path, options: str) -> str:
    """Return what names the import of a file with some options: half of a SHA-256, in hexadecimal."""
    digest = hashlib.sha256(options.encode())
    with path.open("rb") as opened:
        while chunk := opened.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()[:32]


@contextmanager
def one_import_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the folder of progress for as long as the context lasts. Raises: ReadingsRefused."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReadingsRefused(f"import: expected no other one on {folder}, one is running") from None
        yield
