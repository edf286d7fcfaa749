"""A database server that fault tests may stop, kill and freeze without disturbing any other test."""

from collections.abc import Iterator

import pytest

from prepaid.embedded import EmbeddedPostgres
from tests.conftest import open_folder
from tests.databases import scratch_database


@pytest.fixture(scope="session")
def own_server() -> Iterator[EmbeddedPostgres]:
    """The server; a test that ends it starts it again."""
    with open_folder() as folder, EmbeddedPostgres(folder / "pg") as server:
        yield server


@pytest.fixture
def own_url(own_server: EmbeddedPostgres) -> Iterator[str]:
    """An empty database on that server."""
    with scratch_database(own_server) as name:
        yield own_server.url_of(name)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short leases and redelivery, for the processes that read the environment."""
    monkeypatch.setenv("PREPAID_LEASE_S", "1")
    monkeypatch.setenv("PREPAID_ACK_WAIT_S", "1")
