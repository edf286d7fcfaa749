"""Columns of readings to the bytes of one binary COPY.

Stage: right before the hot statement. Columns in, bytes out; pure, vectorised. The plain form, row by row, is
`db.readings.copy_readings`.
Source: PostgreSQL 18 documentation, COPY, "Binary Format": signature, flags, tuples of a 16-bit field count and per
field a 32-bit length and the value, all big-endian; length -1 is null; trailer -1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.columns import ABSENT, CHANNELS, NAMES, Int64Column, ReadingColumns

HEAD: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TAIL: Final = b"\xff\xff"
# Bytes of each column's value in `copy_readings`; instants are 64-bit microseconds.
_WIDTHS: Final = {
    "meter_id": 4,
    "at_ms": 8,
    "import_wh": 8,
    "export_wh": 8,
    "voltage_mv": 4,
    "current_ma": 4,
    "power_w": 4,
    "pf_milli": 4,
    "freq_mhz": 4,
}
_POSTGRES_EPOCH_MS: Final = 946_684_800_000
# Seven columns can be null: 128 patterns, of which an installation's makes send a handful.
_LAYOUTS_MAX: Final = 128
_INT32: Final = np.iinfo(np.int32)

# Records of a layout that is known only at run time: their fields are checked by numpy, not by types.
_Records = npt.NDArray[Any]
_Bytes = npt.NDArray[np.uint8]


def encode_readings(columns: ReadingColumns) -> memoryview:
    """Encode readings as one whole binary COPY, rows in their order.

    A column that is null in every row, or in none, costs nothing more: 0.03 µs a reading. Where one is mixed, it is 0.2
    to 0.3 µs (20,000 rows, one row in ten to one in two, 2026-11-21).
    """
    if not len(columns):
        return memoryview(HEAD + TAIL)
    null_in = {name: column == ABSENT for name, column in columns.named() if name in CHANNELS}
    empty = frozenset(name for name, nulls in null_in.items() if nulls.all())
    mixed = {name: nulls for name, nulls in null_in.items() if name not in empty and nulls.any()}
    template = _template(empty)
    encoded, rows = _framed(len(columns), template.itemsize)
    rows[:] = np.frombuffer(template.tobytes(), dtype=np.uint8)
    records = rows.reshape(-1).view(template.dtype)
    for name, column in columns.named():
        if name not in empty:
            records[name] = _stored(name, column)
    if not mixed:
        return encoded.data
    for name, nulls in mixed.items():
        records[f"{name}_length"][nulls] = -1
    kept = _without_values(records, mixed)
    encoded, rows = _framed(1, kept.nbytes)
    rows[0] = kept.view(np.uint8)
    return encoded.data


def _framed(rows: int, row_bytes: int) -> tuple[_Bytes, _Bytes]:
    """Return a whole COPY with head and tail, and the part for the rows in between, one a line.

    An array of numpy's, which is made in a tenth of the time of a `bytes` of 1.5 MB (2026-11-21).
    """
    encoded = np.empty(len(HEAD) + rows * row_bytes + len(TAIL), dtype=np.uint8)
    encoded[: len(HEAD)] = np.frombuffer(HEAD, dtype=np.uint8)
    encoded[-len(TAIL) :] = np.frombuffer(TAIL, dtype=np.uint8)
    return encoded, encoded[len(HEAD) : -len(TAIL)].reshape(rows, row_bytes)


def _stored(name: str, column: Int64Column) -> Int64Column:
    """Return a column as PostgreSQL stores it; a value that is absent is of no meaning."""
    if name == "at_ms":
        return (column - _POSTGRES_EPOCH_MS) * 1000
    if _WIDTHS[name] == 4:
        _require_32_bits(name, column)
    return column


@lru_cache(maxsize=_LAYOUTS_MAX)
def _template(empty: frozenset[str]) -> npt.NDArray[Any]:
    """Return a record with field count and lengths filled in; `empty` columns have a length of -1 and no value."""
    layout: list[tuple[str, str]] = [("fields", ">i2")]
    for name in NAMES:
        layout.append((f"{name}_length", ">i4"))
        if name not in empty:
            layout.append((name, f">i{_WIDTHS[name]}"))
    template = np.zeros((), dtype=layout)
    template["fields"] = len(NAMES)
    for name in NAMES:
        template[f"{name}_length"] = -1 if name in empty else _WIDTHS[name]
    return template


def _without_values(records: _Records, nulls: dict[str, npt.NDArray[np.bool_]]) -> npt.NDArray[np.uint16]:
    """Return the records' bytes, leaving out the values that are null. All fields are whole pairs of bytes."""
    layout = records.dtype
    pairs = records.view(np.uint16).reshape(len(records), layout.itemsize // 2)
    kept = np.ones(pairs.shape, dtype=np.bool_)
    assert layout.fields is not None, "a record has fields"
    for name, absent in nulls.items():
        first = layout.fields[name][1] // 2
        kept[absent, first : first + _WIDTHS[name] // 2] = False
    return pairs[kept]


def _require_32_bits(name: str, column: Int64Column) -> None:
    """A value that is cut to 32 bits would be another one, in silence; decoders let none pass."""
    present = column if column.min() >= _INT32.min else column[column != ABSENT]
    fits = present.min() >= _INT32.min and present.max() <= _INT32.max
    assert fits, f"column {name}: expected 32 bits, got {present.min()} to {present.max()}"
