"""A mosquitto of the test's own: another broker, as meters of other makes have it. Skips where it is not installed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prepaid.embedded.process import LOOPBACK, accepts, spawn, stable_ports, stop_child, wait_until

_LADDER = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))


@contextmanager
def running_mosquitto(folder: Path) -> Iterator[int]:
    """Run the broker on loopback; give its port."""
    binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if binary is None:
        pytest.skip("mosquitto is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    port = stable_ports(folder / "ports.json", ("mqtt",))["mqtt"]
    config = folder / "mosquitto.conf"
    # The user is only looked at by root: the broker would otherwise become one that may not enter the folder.
    config.write_text(
        f"listener {port} {LOOPBACK}\nallow_anonymous true\npersistence false\nuser root\nlog_dest stdout\n"
        "max_queued_messages 0\n"
    )
    child = spawn([binary, "-c", str(config)], log_path=folder / "mosquitto.log", death_signal=signal.SIGTERM)
    try:
        wait_until(
            lambda: accepts(port), child=child, name="mosquitto", log_path=folder / "mosquitto.log", timeout_s=20
        )
        yield port
    finally:
        stop_child(child, name="mosquitto", ladder=_LADDER)
