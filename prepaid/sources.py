"""The sources of the bridge: a TOML file to what the bridge subscribes to.

Stage: the outermost edge, beside the settings. Reads the file that `PREPAID_SOURCES` names, and the mapping documents
and password files it names in turn; refuses it as a whole. The form is described in docs/makes.md.
"""

from __future__ import annotations

import re
import ssl
import tomllib
from enum import Enum
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import msgspec
from aiomqtt import ProtocolVersion
from msgspec import Meta

from headend.edges.bridge import Source
from prepaid.settings import PrepaidError
from protocols.makes.facts import EVERY_MS, JOIN_MS, Joining, Make, Naming, Native
from protocols.makes.mapping import MappingError, builtin_mapping_text, builtin_mappings, read_mapping
from protocols.makes.shelly import GEN1_FILTERS, GEN2_FILTERS, ShellyGen1, ShellyGen2
from protocols.topics import SERIAL_LENGTH_MAX

_NATIVE: Final = "native"
_SHELLY_GEN1, _SHELLY_GEN2 = "shelly-gen1", "shelly-gen2"
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_SERIAL: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{SERIAL_LENGTH_MAX}}}", re.ASCII)


class SourcesError(PrepaidError):
    """The file of sources is unusable; the message is one line naming the source."""

    code = "sources_error"


class _Protocol(Enum):
    V5 = "5"
    V311 = "3.1.1"


# It becomes part of client ids and topics.
_Name = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]{0,31}$")]
_Group = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,32}$")]
_Prefix = Annotated[str, Meta(pattern=f"^[A-Za-z0-9_-]{{0,{SERIAL_LENGTH_MAX - 1}}}$")]
_Seconds = Annotated[int, Meta(ge=1, le=86_400)]
_Filter = Annotated[str, Meta(min_length=1, max_length=1_000)]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: _Name
    url: str
    make: str | None = None
    mapping: str | None = None
    zone: str | None = None
    topics: list[_Filter] | None = None
    protocol: _Protocol = _Protocol.V5
    share: _Group | None = None
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    serial_prefix: _Prefix | None = None
    serials: dict[str, str] = {}
    join_s: _Seconds = JOIN_MS // 1000
    every_s: _Seconds = EVERY_MS // 1000


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: list[_Entry]


def read_sources(path: Path, default_zone: ZoneInfo) -> list[Source]:
    """Read the file of sources. Files that it names are found from its own folder.

    Raises: SourcesError.
    """
    try:
        file = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SourcesError(f"{path}: expected a TOML file of sources, got: {error}") from None
    names = [entry.name for entry in file.source]
    if not names or len(set(names)) != len(names):
        raise SourcesError(f"{path}: expected one source or more, each with a name of its own")
    return [_source(entry, path.parent, default_zone) for entry in file.source]


def _source(entry: _Entry, folder: Path, default_zone: ZoneInfo) -> Source:
    try:
        parts = urlsplit(entry.url)
        port = parts.port
    except ValueError:
        raise _refused(entry, "expected url as mqtt://host:port or mqtts://host:port") from None
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc or parts.path.strip("/"):
        raise _refused(entry, "expected url as mqtt://host:port or mqtts://host:port, login apart from it")
    if (entry.username is None) != (entry.password_file is None):
        raise _refused(entry, "expected username and password_file together")
    return Source(
        name=entry.name,
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        make=_make(entry, folder, default_zone),
        tls=_tls(entry, folder) if parts.scheme == "mqtts" else None,
        username=entry.username,
        password=None if entry.password_file is None else _text(entry, folder / entry.password_file).strip(),
        version=ProtocolVersion.V5 if entry.protocol is _Protocol.V5 else ProtocolVersion.V311,
        share=entry.share,
    )


def _make(entry: _Entry, folder: Path, default_zone: ZoneInfo) -> Make:
    if (entry.make is None) == (entry.mapping is None):
        raise _refused(entry, "expected make or mapping, and not both")
    if entry.make == _NATIVE:
        if entry.serial_prefix is not None or entry.serials:
            raise _refused(entry, "expected no serials, since native payloads name their meter")
        return Native(filters=tuple(entry.topics)) if entry.topics else Native()
    naming = _naming(entry)
    joining = Joining(join_ms=entry.join_s * 1000, every_ms=entry.every_s * 1000)
    if entry.make == _SHELLY_GEN1:
        return ShellyGen1(naming=naming, joining=joining, filters=tuple(entry.topics or GEN1_FILTERS))
    if entry.make == _SHELLY_GEN2:
        return ShellyGen2(naming=naming, joining=joining, filters=tuple(entry.topics or GEN2_FILTERS))
    if entry.topics:
        raise _refused(entry, "expected no topics, since the mapping document has them as patterns")
    known = (_NATIVE, _SHELLY_GEN1, _SHELLY_GEN2, *builtin_mappings())
    if entry.make is not None and entry.make not in known:
        raise _refused(entry, f"expected make of {', '.join(known)}")
    try:
        text = builtin_mapping_text(entry.make) if entry.make else _text(entry, folder / (entry.mapping or ""))
        return read_mapping(text, zone=_zone(entry, default_zone), naming=naming, joining=joining)
    except MappingError as error:
        raise _refused(entry, str(error)) from None


def _naming(entry: _Entry) -> Naming:
    """Read how devices get their serials: nobody may take a meter's serial only by calling itself so."""
    if entry.serial_prefix is None and not entry.serials:
        raise _refused(entry, "expected serial_prefix or serials, else no device would have a serial")
    wrong = [serial for serial in entry.serials.values() if _SERIAL.fullmatch(serial) is None]
    if wrong or len(set(entry.serials.values())) != len(entry.serials):
        raise _refused(entry, "expected serials of 1 to 32 of A-Z a-z 0-9 _ -, one for each device")
    return Naming(prefix=entry.serial_prefix, serials=entry.serials)


def _zone(entry: _Entry, default_zone: ZoneInfo) -> ZoneInfo:
    if entry.zone is None:
        return default_zone
    try:
        return ZoneInfo(entry.zone)
    except (KeyError, ValueError, OSError):
        raise _refused(entry, "expected zone as an IANA time zone such as Asia/Kolkata") from None


def _tls(entry: _Entry, folder: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if entry.ca_file is None else str(folder / entry.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise _refused(entry, f"expected ca_file as a PEM file: {error}") from None


def _text(entry: _Entry, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(entry, f"expected a readable file: {error}") from None


def _refused(entry: _Entry, rule: str) -> SourcesError:
    return SourcesError(f"source {entry.name}: {rule}")
