"""The real PostgreSQL and NATS servers that tests run against, each stopped by its own process id."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import structlog
from psycopg import sql

from prepaid.embedded import EmbeddedNats, EmbeddedPostgres


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A command that ran inside a test has set where logs go: to a stream that is closed by now."""
    yield
    structlog.reset_defaults()


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
    with open_folder() as folder, EmbeddedPostgres(folder / "pg") as server:
        yield server


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """An empty database of its own for each test."""
    name = sql.Identifier(f"test_{uuid.uuid4().hex}")
    with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
    yield postgres.url_of(name.as_string().strip('"'))
    with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[EmbeddedNats]:
    """A broker of its own for each test, on an empty store."""
    with EmbeddedNats(tmp_path / "nats") as server:
        yield server
