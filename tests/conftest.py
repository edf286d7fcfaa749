"""The real PostgreSQL and NATS servers that tests run against, each stopped by its own process id."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from prepaid.embedded import EmbeddedNats, EmbeddedPostgres, process
from tests import commands
from tests.databases import migrated_database, scratch_database

# Time tells of the machine's other work, not of the code.
settings.register_profile("busy_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy_machine")


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A command that ran inside a test has set where logs go: to a stream that is closed by now."""
    yield
    structlog.reset_defaults()


# Of the 12,000 that embedded parts choose from.
PORTS_OF_A_WORKER = 1_500


@pytest.fixture(autouse=True, scope="session")
def ports_of_its_own(worker_id: str) -> Iterator[None]:
    """Beside other workers none may take a port that another one's stopped server will want back."""
    number = int(worker_id.removeprefix("gw")) if worker_id != "master" else 0
    first = process._PORT_FIRST + number * PORTS_OF_A_WORKER
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "_PORT_FIRST", first)
        patch.setattr(process, "_PORT_LAST", first + PORTS_OF_A_WORKER - 1)
        yield


@pytest.fixture(autouse=True, scope="session")
def command_server_ends() -> Iterator[None]:
    """What commands were forked from ends with the session."""
    yield
    commands.SERVER.stop()


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that other users may enter, unlike pytest's own: root's database runs as another user."""
    folder = Path(tempfile.mkdtemp(prefix="prepaid-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A fresh data folder for embedded parts."""
    with open_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One server for the whole session; a server that does not start fails the tests that ask for it."""
    # What is committed survives every end of the server, also without syncs; nobody cuts the machine's power.
    with open_folder() as folder, EmbeddedPostgres(folder / "pg", options={"fsync": "off"}) as server:
        yield server


@pytest.fixture(scope="session")
def migrated(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The name of a database with all migrations, which the tests' own are copies of."""
    with migrated_database(postgres) as name:
        yield name


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, migrated: str) -> Iterator[str]:
    """A database of its own for each test, with all migrations and nothing else."""
    with scratch_database(postgres, template=migrated) as name:
        yield postgres.url_of(name)


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database of its own that no migration has seen."""
    with scratch_database(postgres) as name:
        yield postgres.url_of(name)


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[EmbeddedNats]:
    """A broker of its own for each test, on an empty store."""
    with EmbeddedNats(tmp_path / "nats") as server:
        yield server
