"""A database server that fault tests may stop, kill and freeze without disturbing any other test."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from prepaid.embedded import EmbeddedPostgres
from tests.conftest import open_folder


@pytest.fixture(scope="session")
def own_server() -> Iterator[EmbeddedPostgres]:
    """The server; a test that ends it starts it again."""
    with open_folder() as folder, EmbeddedPostgres(folder / "pg") as server:
        yield server


@pytest.fixture
def own_url(own_server: EmbeddedPostgres) -> Iterator[str]:
    """An empty database on that server."""
    name = f"faults_{uuid.uuid4().hex}"
    with psycopg.connect(own_server.url_of("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    yield own_server.url_of(name)
    with psycopg.connect(own_server.url_of("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short leases and redelivery, for the processes that read the environment."""
    monkeypatch.setenv("PREPAID_LEASE_S", "1")
    monkeypatch.setenv("PREPAID_ACK_WAIT_S", "1")
