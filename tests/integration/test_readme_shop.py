"""The README as a shopkeeper follows it: from an empty installation to a printed receipt, by its own commands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prepaid.embedded import Parts
from prepaid.embedded.process import LOOPBACK, stable_ports
from prepaid.settings import load_settings
from prepaid.system import System
from tests.commands import clean_environment, settings_for

pytestmark = pytest.mark.db

ROOT = Path(__file__).parents[2]
# 48 cells of an 80 mm printer.
SLIP_CELLS = 48
COMMANDS_S_MAX = 120


def blocks_to_run() -> tuple[str, list[str]]:
    """Return what the office types, and the shop's commands one by one."""
    office, shop = re.findall(r"```sh run\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return office, shop.replace("\\\n", "").strip().splitlines()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_readme_as_a_shopkeeper_follows_it_ends_with_a_printed_receipt(database_url: str, data_dir: Path) -> None:
    """Five commands of curl alone, after the office's three, sell a token and print its slip for an 80 mm printer."""
    office, shop = blocks_to_run()
    assert len(shop) == 5
    assert all(command.startswith("curl ") for command in shop)
    parts = Parts(database_url=database_url, nats_url=f"nats://{LOOPBACK}:1", mqtt_host=LOOPBACK, mqtt_port=1)
    port = stable_ports(data_dir / "ports.json", ["api"])["api"]
    system = System(settings=load_settings().model_copy(update={"data_dir": data_dir}), parts=parts, api_port=port)
    try:
        system.start_all(["api"])
        environment = clean_environment() | settings_for(database_url, data_dir)
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        script = "\n".join([office, *(f"{command}; echo '#'" for command in shop)])
        done = subprocess.run(
            ["sh", "-e", "-c", script], cwd=ROOT, env=environment | {"PATH": path, "API": system.api_url},
            capture_output=True, text=True, timeout=COMMANDS_S_MAX, check=True,
        )  # fmt: skip
    finally:
        system.stop()
    told, confirmed, trial, sold, slip = re.split(r"#\n", done.stdout)[:5]
    assert json.loads(told[told.index("{") :])["vendor"] == "Corner shop"
    assert json.loads(confirmed)["vendable"] is True
    assert json.loads(trial)["token_withheld"] == "trial"
    token = json.loads(sold)["token"]["grouped"]
    assert "  ".join(token.split()) in slip
    assert "RECHARGE RECEIPT" in slip
    assert "till7-000123" in slip
    assert max(len(line) for line in slip.splitlines()) <= SLIP_CELLS
