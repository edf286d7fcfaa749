"""Answers of the desk as bytes: a page of JSON; CSV, Arrow stream and Parquet piece by piece.

Stage: last before bytes leave. Enters: pages of rows. Leaves: bytes that make one file when put one behind the other,
from a head, pieces and an end, never more than a piece in memory.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from headend.queries.columns import Column, Kind

if TYPE_CHECKING:
    import pyarrow as pa

# A row group of readings is some 2 MB: enough for its columns to compress, little enough to be held.
ROWS_A_GROUP = 65_536

_ARROW_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"

# Values in the order of the columns.
Rows = Sequence[tuple[Any, ...]]


class Format(StrEnum):
    """How an answer is written."""

    JSON = "json"
    CSV = "csv"
    ARROW = "arrow"
    PARQUET = "parquet"


MEDIA_TYPES = {
    Format.JSON: "application/json",
    Format.CSV: "text/csv; charset=utf-8",
    Format.ARROW: "application/vnd.apache.arrow.stream",
    Format.PARQUET: "application/vnd.apache.parquet",
}


class Writer(Protocol):
    """Turns rows into the bytes of one file."""

    def head(self) -> bytes:
        """Return what stands before the first row."""

    def rows(self, rows: Rows) -> bytes:
        """Return some rows; they may come with a later piece."""

    def end(self) -> bytes:
        """Return what makes the file whole."""


def page_to_json(columns: Sequence[Column], rows: Rows, following: str | None) -> bytes:
    """Return a page of rows as objects, and the cursor to go on with."""
    names = [column.name for column in columns]
    return msgspec.json.encode({"rows": [dict(zip(names, row, strict=True)) for row in rows], "next": following})


def writer_of(form: Format, columns: Sequence[Column], zone: str) -> Writer:
    """Return a writer of a file; instants of Arrow and Parquet are of the zone."""
    match form:
        case Format.CSV:
            return CsvWriter(columns)
        case Format.ARROW:
            return ArrowWriter(columns, zone)
        case Format.PARQUET:
            return ParquetWriter(columns, zone)
        case Format.JSON:
            raise AssertionError("JSON is written page by page")


class CsvWriter:
    """Writes CSV with a line of names; what is null is empty, words stand with spaces between."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns

    def head(self) -> bytes:
        """Return the line of names."""
        return _csv([[column.name for column in self._columns]])

    def rows(self, rows: Rows) -> bytes:
        """Return some rows."""
        return _csv([[_text(value) for value in row] for row in rows])

    def end(self) -> bytes:
        """Return nothing: a CSV file has no end of its own."""
        return b""


class ArrowWriter:
    """Writes an Arrow IPC stream; one that is only to be read again here may be compressed."""

    def __init__(self, columns: Sequence[Column], zone: str, *, compression: str | None = None) -> None:
        import pyarrow as pa

        self._columns = columns
        self._schema = arrow_schema(columns, zone)
        self._options = pa.ipc.IpcWriteOptions(compression=compression)

    def head(self) -> bytes:
        """Return the schema."""
        return bytes(self._schema.serialize())

    def rows(self, rows: Rows) -> bytes:
        """Return some rows as a record batch."""
        if not rows:
            return b""
        return _serialized(to_batch(self._schema, self._columns, rows), self._options)

    def end(self) -> bytes:
        """Return the mark of the end."""
        return _ARROW_END


class ParquetWriter:
    """Writes Parquet with a row group for every `ROWS_A_GROUP` rows."""

    def __init__(self, columns: Sequence[Column], zone: str) -> None:
        import pyarrow.parquet as pq

        self._columns = columns
        self._schema = arrow_schema(columns, zone)
        self._pieces = _Pieces()
        self._file = pq.ParquetWriter(self._pieces, self._schema, compression="zstd")
        self._waiting: list[pa.RecordBatch] = []
        self._count = 0

    def head(self) -> bytes:
        """Return the mark of the begin."""
        return self._pieces.take()

    def rows(self, rows: Rows) -> bytes:
        """Take some rows; return a row group when there are enough of them."""
        if rows:
            self.batch(to_batch(self._schema, self._columns, rows))
        return self._pieces.take()

    def batch(self, batch: pa.RecordBatch) -> None:
        """Take some rows that are a record batch already."""
        self._waiting.append(batch)
        self._count += batch.num_rows
        if self._count >= ROWS_A_GROUP:
            self._write_group()

    def end(self) -> bytes:
        """Return the last rows and the footer."""
        self._write_group()
        self._file.close()
        return self._pieces.take()

    def _write_group(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._file.write_table(pa.Table.from_batches(self._waiting, self._schema), row_group_size=ROWS_A_GROUP * 2)
        self._waiting, self._count = [], 0


class _Pieces(io.RawIOBase):
    """A file that only keeps what was not taken from it yet."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = bytearray()
        self._at = 0

    def writable(self) -> bool:
        """Tell that it is written to."""
        return True

    def write(self, piece: Any) -> int:  # Whatever has the buffer interface.
        """Keep a piece."""
        self._kept += piece
        length = memoryview(piece).nbytes
        self._at += length
        return length

    def tell(self) -> int:
        """Return how much was written."""
        return self._at

    def take(self) -> bytes:
        """Return what was written since the last time."""
        found = bytes(self._kept)
        self._kept.clear()
        return found


def arrow_schema(columns: Sequence[Column], zone: str) -> pa.Schema:
    """Return the Arrow types of columns; instants are microseconds, shown in the zone."""
    import pyarrow as pa

    types = {
        Kind.TEXT: pa.string(),
        Kind.INTEGER: pa.int64(),
        Kind.INSTANT: pa.timestamp("us", tz=zone),
        Kind.DAY: pa.date32(),
        Kind.FLAG: pa.bool_(),
        Kind.WORDS: pa.list_(pa.string()),
        Kind.AMOUNTS: pa.map_(pa.string(), pa.int64()),
    }
    return pa.schema([(column.name, types[column.kind]) for column in columns])


def to_batch(schema: pa.Schema, columns: Sequence[Column], rows: Rows) -> pa.RecordBatch:
    """Return rows as a record batch."""
    import pyarrow as pa

    arrays = []
    for column, field, values in zip(columns, schema, zip(*rows, strict=True), strict=True):
        if column.kind is Kind.AMOUNTS:
            values = tuple(None if value is None else list(value.items()) for value in values)
        arrays.append(pa.array(values, type=field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _serialized(batch: pa.RecordBatch, options: Any) -> bytes:  # The library has no types of its own.
    """Return a record batch as a stream has it, without the schema that the stream begins with."""
    import pyarrow as pa

    sink, schema_bytes = pa.BufferOutputStream(), len(batch.schema.serialize())
    with pa.ipc.new_stream(sink, batch.schema, options=options) as stream:
        stream.write_batch(batch)
    whole = sink.getvalue()
    return bytes(memoryview(whole)[schema_bytes : len(whole) - len(_ARROW_END)])


def _csv(lines: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def _text(value: Any) -> Any:  # A column's value, of any kind.
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, list):
        return " ".join(value)
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return value
