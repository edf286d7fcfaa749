"""The file of the bridge's sources: what it says is what is subscribed to; a slip stops the start."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from aiomqtt import ProtocolVersion

from prepaid.sources import SourcesError, read_sources

ZONE = ZoneInfo("Asia/Kolkata")
GOOD = """
[[source]]
name = "town"
url = "mqtt://127.0.0.1"
make = "tasmota"
serial_prefix = "TS-"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "sources.toml"
    path.write_text(text)
    return path


def test_sources_of_each_kind_are_read(tmp_path: Path) -> None:
    """Shipped make, own mapping, Shelly with topics of its own, native; login and defaults."""
    (tmp_path / "secret").write_text("water under bridges\n")
    (tmp_path / "own.toml").write_text(
        'name = "own"\nsource = "ours"\n[[topic]]\npattern = "site/{device}"\n'
        '[topic.channels]\nimport_wh = { path = "e", unit = "MWh" }\n'
    )
    more = """
[[source]]
name = "own"
url = "mqtts://broker.example"
mapping = "own.toml"
serials = { "a b" = "PB000001" }
protocol = "3.1.1"
username = "bridge"
password_file = "secret"
[[source]]
name = "clamps"
url = "mqtt://127.0.0.1:1884"
make = "shelly-gen2"
topics = ["site/+/status/+"]
serial_prefix = ""
share = "prepaid"
[[source]]
name = "others"
url = "mqtt://127.0.0.1:1884"
make = "native"
"""
    town, own, clamps, others = read_sources(write(tmp_path, GOOD + more), ZONE)
    assert (town.host, town.port, town.tls, town.version) == ("127.0.0.1", 1883, None, ProtocolVersion.V5)
    assert (town.make.filters, town.make.timed) == (("tele/+/SENSOR",), True)
    assert (own.port, own.username, own.password) == (8883, "bridge", "water under bridges")
    assert own.tls is not None
    assert (own.version, own.make.filters, own.make.timed) == (ProtocolVersion.V311, ("site/+",), False)
    assert (clamps.share, clamps.make.filters, clamps.make.timed) == ("prepaid", ("site/+/status/+",), False)
    assert others.make.filters == ("amr/+/rd", "amr/+/ev")
    assert "water" not in repr(own)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mqtt://127.0.0.1", "mqtt://user:secret@127.0.0.1"),
        ("mqtt://127.0.0.1", "http://127.0.0.1"),
        ("mqtt://127.0.0.1", "mqtt://127.0.0.1:99999"),
        ('make = "tasmota"', 'make = "tasmoto"'),
        ('make = "tasmota"', 'make = "tasmota"\nmapping = "own.toml"'),
        ('make = "tasmota"', 'mapping = "missing.toml"'),
        ('make = "tasmota"', 'make = "tasmota"\ntopics = ["x/+"]'),
        ('make = "tasmota"', 'make = "native"'),
        ('make = "tasmota"', 'make = "tasmota"\nzone = "Mars/Olympus"'),
        ('make = "tasmota"', 'make = "tasmota"\nusername = "bridge"'),
        ('make = "tasmota"', 'make = "tasmota"\nprotocol = "3.1"'),
        ('serial_prefix = "TS-"', ""),
        ('serial_prefix = "TS-"', 'serial_prefix = "T S"'),
        ('serial_prefix = "TS-"', 'serials = { a = "M1", b = "M1" }'),
        ('serial_prefix = "TS-"', 'prefix = "TS-"'),
        ('name = "town"', 'name = "Town/1"'),
        (GOOD, GOOD + GOOD),
        (GOOD, ""),
        ("[[source]]", "[["),
    ],
)
def test_sources_file_that_breaks_a_rule_is_refused_in_one_line(tmp_path: Path, old: str, new: str) -> None:
    """Nothing is subscribed to on a guess, and no password is shown."""
    with pytest.raises(SourcesError) as refusal:
        read_sources(write(tmp_path, GOOD.replace(old, new)), ZONE)
    assert "secret" not in str(refusal.value)
