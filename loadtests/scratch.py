"""A scratch place to measure on: an empty data folder and a database of its own, removed afterwards.

Stage: around every benchmark. Nothing of it touches an installation's data.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from prepaid.embedded import EmbeddedError, EmbeddedPostgres
from prepaid.embedded.home import settle
from prepaid.settings import PrepaidError, Settings

# What is being done, how much of it is done, and of how much.
Progress = Callable[[str, int, int], None]


class BenchError(PrepaidError):
    """A benchmark that cannot be run as asked, or that came to a halt."""

    code: ClassVar[str] = "bench_error"


@contextmanager
def scratch_settings(settings: Settings) -> Iterator[Settings]:
    """Lend settings with embedded parts on an empty folder beside the installation's data; remove it afterwards."""
    data_dir = settings.data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=data_dir))
    # The database of a command run as root is another user's, who has to pass.
    folder.chmod(0o755)
    try:
        yield settings.model_copy(
            update={
                "data_dir": folder,
                "database_url": None,
                "nats_url": None,
                "mqtt_url": None,
                "ingest_metrics_port": None,
                # Set, so that none is looked for: no API runs here.
                "api_port": 1,
            }
        )
    finally:
        with suppress(EmbeddedError):
            # Where that user may not pass, the data is elsewhere.
            shutil.rmtree(settle(folder / "pg").folder, ignore_errors=True)
        shutil.rmtree(folder)


@contextmanager
def scratch_database(settings: Settings) -> Iterator[str]:
    """Run an empty database of its own on a scratch folder, without a broker; yield its address.

    Raises: EmbeddedError.
    """
    with scratch_settings(settings) as scratch, EmbeddedPostgres(scratch.data_dir / "pg") as server:
        yield server.database_url
