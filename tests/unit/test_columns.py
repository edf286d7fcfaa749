"""Columns of readings: shapes, order, and what the bytes of a COPY look like."""

import struct
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.calendar import from_ms
from db.binary_copy import HEAD, TAIL, encode_readings
from db.readings import columns_from_rows, rows_from_columns
from protocols.columns import ABSENT, CHANNELS, NAMES, ReadingColumns, concatenate
from protocols.rows import ReadingRow

ROW = ReadingRow(7, datetime(2000, 1, 1, 0, 0, 1, tzinfo=UTC), 11, None, 1, 2, 3, 4, 5)
INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**63 - 1)
# The end of the year 2199.
TIME_MS_MAX = 7_258_118_399_999
WIDTHS = dict(zip(NAMES, (4, 8, 8, 8, 4, 4, 4, 4, 4), strict=True))
ROWS = st.builds(
    ReadingRow,
    st.integers(0, 2**31 - 1),
    st.integers(0, TIME_MS_MAX).map(from_ms),
    INT64,
    st.none() | INT64,
    *[st.none() | INT32] * 5,
)


def _of(keys: list[tuple[int, int]]) -> ReadingColumns:
    """Make readings of (meter, instant); the register is the position."""
    meter_ids, ats = np.array(keys, dtype=np.int64).reshape(-1, 2).T
    return ReadingColumns.of(meter_ids, ats, np.arange(len(keys), dtype=np.int64))


def _plainly(rows: list[ReadingRow]) -> bytes:
    """Encode row by row, by the description of the format."""
    encoded = b""
    for row in rows:
        encoded += struct.pack(">h", len(row))
        for name, value in zip(NAMES, row, strict=True):
            if value is None:
                encoded += b"\xff\xff\xff\xff"
                continue
            if isinstance(value, datetime):
                value = round((value - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() * 1000) * 1000
            encoded += struct.pack(">iq" if WIDTHS[name] == 8 else ">ii", WIDTHS[name], value)
    return encoded


def test_row_is_that_of_the_binary_copy_format() -> None:
    """A row has a field count, then length and value of each column; null is length -1 (made by hand)."""
    fields = [
        *(struct.pack(">iq", 8, 1_000_000), struct.pack(">iq", 8, 11), b"\xff\xff\xff\xff"),
        *(struct.pack(">ii", 4, number) for number in (1, 2, 3, 4, 5)),
    ]
    expected = struct.pack(">hii", 9, 4, 7) + b"".join(fields)
    head = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
    assert bytes(encode_readings(columns_from_rows([ROW]))) == head + expected + b"\xff\xff"


def test_no_rows_are_an_empty_copy() -> None:
    """Without rows, head and tail are left."""
    assert bytes(encode_readings(columns_from_rows([]))) == HEAD + TAIL


@given(st.lists(ROWS, max_size=20))
def test_bytes_equal_those_of_encoding_row_by_row(rows: list[ReadingRow]) -> None:
    """Whatever is null, the vectorised bytes are those of the plain loop."""
    assert bytes(encode_readings(columns_from_rows(rows))) == HEAD + _plainly(rows) + TAIL


@given(st.lists(ROWS, max_size=20))
def test_rows_come_back_from_columns_as_they_went_in(rows: list[ReadingRow]) -> None:
    """Columns hold what rows hold, null included."""
    assert rows_from_columns(columns_from_rows(rows)) == rows


@pytest.mark.parametrize(("name", "value"), [("meter_id", 2**31), ("power_w", -(2**31) - 1), ("freq_mhz", 2**31)])
def test_value_wider_than_its_column_is_never_cut(name: str, value: int) -> None:
    """A value that does not fit its column stops the batch; it must not become another value."""
    rows = rows_from_columns(_of([(1, 0), (2, 0)]))
    rows[1] = ROW._replace(**{name: value})
    with pytest.raises(AssertionError, match=name):
        encode_readings(columns_from_rows(rows))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30))
def test_sorting_is_by_meter_then_instant_and_keeps_the_order_of_equal_keys(keys: list[tuple[int, int]]) -> None:
    """Of two readings with the same key the one that came first stays first."""
    ordered = _of(keys).sorted_by_meter()
    expected = sorted((key, position) for position, key in enumerate(keys))
    found = zip(ordered.meter_id.tolist(), ordered.at_ms.tolist(), ordered.import_wh.tolist(), strict=True)
    assert [((meter, at), position) for meter, at, position in found] == expected
    assert ordered.is_sorted_by_meter()


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=5), max_size=5))
def test_parts_follow_each_other(parts: list[list[tuple[int, int]]]) -> None:
    """Concatenating keeps every row, in order; of no parts there are no rows."""
    whole = concatenate([_of(part) for part in parts])
    assert len(whole) == sum(map(len, parts))
    found = zip(whole.meter_id.tolist(), whole.at_ms.tolist(), strict=True)
    assert list(found) == [key for part in parts for key in part]


def test_some_rows_are_taken_by_mask_position_or_slice() -> None:
    """A mask, positions and a slice name the same rows; channels left out are absent everywhere."""
    columns = _of([(1, 0), (2, 0), (3, 0)])
    by_mask = columns.take(columns.meter_id != 2)
    assert by_mask.meter_id.tolist() == [1, 3]
    assert columns.take(np.array([2, 0])).meter_id.tolist() == [3, 1]
    assert columns.take(slice(1, 2)).meter_id.tolist() == [2]
    assert all((getattr(by_mask, name) == ABSENT).all() for name in CHANNELS)


def test_columns_of_other_lengths_or_types_are_refused() -> None:
    """Every column has one value per reading, of 64 bits."""
    two, three = np.zeros(2, dtype=np.int64), np.zeros(3, dtype=np.int64)
    with pytest.raises(AssertionError, match="shape"):
        ReadingColumns.of(two, two, three)
    with pytest.raises(AssertionError, match="int64"):
        ReadingColumns.of(two, two, two.astype(np.int32))
    with pytest.raises(AssertionError, match="voltage"):
        ReadingColumns.of(two, two, two, voltage=two)
