"""Looks for secrets in whatever a run leaves behind, in every form in which they could stand there."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import psycopg
from psycopg import sql as compose

# A part of a key this long is as good as the key to whoever looks for it, and never there by chance.
PART_BYTES = 8


def forms_of(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """Give every form of a secret that is looked for, with its name."""
    parts = {"": secret, " first part": secret[:PART_BYTES], " last part": secret[-PART_BYTES:]}
    for part, key in parts.items():
        for order, value in ((part, key), (f"{part} reversed", key[::-1])):
            yield f"raw{order}", value
            yield f"hex{order}", value.hex().encode()
            yield f"HEX{order}", value.hex().upper().encode()
            yield f"hex pairs{order}", value.hex(":").encode()
            yield f"hex blanks{order}", value.hex(" ").encode()
            yield f"hex fours{order}", value.hex(" ", -2).encode()
            yield f"decimal{order}", str(int.from_bytes(value, "big")).encode()
            yield f"list{order}", ", ".join(map(str, value)).encode()
            yield f"repr{order}", repr(value)[2:-1].encode()
        # What stands before a key shifts its base64 by none, one or two bytes; the ends depend on the neighbours.
        for shift in range(3):
            text = base64.b64encode(bytes(shift) + key)[4 * (shift > 0) : -4].rstrip(b"=")
            yield f"base64 {shift}{part}", text
            yield f"base64url {shift}{part}", text.replace(b"+", b"-").replace(b"/", b"_")


def secrets_in(content: bytes, secrets: Mapping[str, bytes]) -> set[str]:
    """Name what is found: the secret and its form."""
    wanted: dict[bytes, list[tuple[bytes, str]]] = {}
    for name, secret in secrets.items():
        for form, text in forms_of(secret):
            # Fewer characters are there by chance.
            if len(text) >= PART_BYTES:
                wanted.setdefault(text[:PART_BYTES], []).append((text, f"{name}: {form}"))
    return {
        found
        for at in _places(content, list(wanted))
        for text, found in wanted.get(content[at : at + PART_BYTES], [])
        if content.startswith(text, at)
    }


def _places(content: bytes, heads: list[bytes]) -> list[int]:
    """Find where any of many heads of one length may begin: all at once, since an image is 100 MB and heads are 600."""
    data = np.frombuffer(content, dtype=np.uint8)
    if len(data) < PART_BYTES:
        return []
    pairs = data[:-1].astype(np.uint16) << 8 | data[1:]
    places = np.arange(len(data) - PART_BYTES + 1)
    for offset in range(0, PART_BYTES, 2):
        known = np.zeros(1 << 16, dtype=bool)
        known[[head[offset] << 8 | head[offset + 1] for head in heads]] = True
        places = places[known[pairs[places + offset]]]
    return [int(place) for place in places]


def dump_of(database_url: str) -> bytes:
    """Return every row of every table as text, as a dump would have it."""
    with psycopg.connect(database_url) as conn:
        tables = conn.execute(
            "select schemaname, tablename from pg_tables where schemaname not in ('information_schema')"
        ).fetchall()
        return b"".join(_rows(conn, *table) for table in tables)


def memory_of(pid: int) -> list[bytes]:
    """Return all that a process can write to, by pieces: what a core dump would hold of it."""
    image = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for entry in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights = entry.split()[:2]
            first, last = (int(each, 16) for each in span.split("-"))
            if rights.startswith("rw"):
                memory.seek(first)
                image.append(memory.read(last - first))
    return image


def _rows(conn: psycopg.Connection, schema: str, table: str) -> bytes:
    query = compose.SQL("copy (select t::text from {} t) to stdout").format(compose.Identifier(schema, table))
    with conn.cursor().copy(query) as copy:
        return b"".join(bytes(block) for block in copy)
