"""Answers of the desk as files on disk: whole ones only, written in constant memory, gone on with after an end.

Stage: behind `prepaid export`. What is written stands beside the file under another name, with a note of how far it has
come; the file has its own name when it is whole. Readings of many meters are walked day by day, as they are stored.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import msgspec
from psycopg import AsyncConnection

from billing.calendar import LocalCalendar
from headend.edges.desk_formats import ArrowWriter, Format, ParquetWriter, Writer, writer_of
from headend.edges.desk_rows import read_page
from headend.queries.columns import Subject
from headend.queries.errors import QueryRefused
from headend.queries.questions import DAY_MS, Question, behind

# Some 10 MB of rows at a time.
EXPORT_PAGE_ROWS = 20_000
# What is lost by an end at most: a second's work.
ROWS_A_NOTE = 200_000

# Rows that are written, and the share of the span that is behind, in thousandths.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A whole file: all its rows, those that were written before it was gone on with, and its bytes."""

    rows: int
    rows_before: int
    file_bytes: int


class _Note(msgspec.Struct, kw_only=True):
    """How far a file has come: so many rows and bytes, in which part of the span, behind which key."""

    question: str
    rows: int = 0
    bytes: int = 0
    part: int = 0
    key: tuple[int, ...] | None = None


async def export_file(
    conn: AsyncConnection,
    question: Question,
    calendar: LocalCalendar,
    *,
    form: Format,
    file: Path,
    progress: Progress = lambda rows, share: None,
    page_rows: int = EXPORT_PAGE_ROWS,
    rows_a_note: int = ROWS_A_NOTE,
) -> Exported:
    """Write all rows of an answer into a file, or go on with one that was not finished.

    Raises: QueryRefused where the file is there, or was begun for another question.
    """
    if file.exists():
        raise QueryRefused("file_exists", f"{file.name}: expected no such file, got one; name another")
    part, noted = _beside(file, "part"), _beside(file, "part.json")
    note = _begun(question, calendar, form, part, noted)
    rows_before = note.rows
    writer = _part_writer(form, question, calendar)
    with part.open("r+b" if part.exists() else "w+b") as out:
        out.truncate(note.bytes)
        out.seek(note.bytes)
        if note.bytes == 0:
            out.write(writer.head())
        await _write_rows(
            conn, question, calendar, writer=writer, out=out, note=note, noted=noted, progress=progress,
            page_rows=page_rows, rows_a_note=rows_a_note,
        )  # fmt: skip
        out.write(writer.end())
        _sync(out)
    if form is Format.PARQUET:
        _to_parquet(part, file, question, calendar)
        part.unlink()
    else:
        os.replace(part, file)
    noted.unlink()
    return Exported(rows=note.rows, rows_before=rows_before, file_bytes=file.stat().st_size)


async def _write_rows(
    conn: AsyncConnection,
    question: Question,
    calendar: LocalCalendar,
    *,
    writer: Writer,
    out: BinaryIO,
    note: _Note,
    noted: Path,
    progress: Progress,
    page_rows: int,
    rows_a_note: int,
) -> None:
    spans = _spans(question)
    rows_noted = note.rows
    while note.part < len(spans):
        from_ms, to_ms = spans[note.part]
        asked = replace(question, from_ms=from_ms, to_ms=to_ms, limit=page_rows)
        page = await read_page(conn, behind(asked, note.key), calendar)
        out.write(writer.rows(page.rows))
        note.rows += len(page.rows)
        note.key = page.after
        if page.after is None:
            note.part += 1
        if note.rows - rows_noted >= rows_a_note:
            _sync(out)
            note.bytes = out.tell()
            _save(noted, note)
            rows_noted = note.rows
        progress(note.rows, note.part * 1_000 // len(spans))


def _spans(question: Question) -> list[tuple[int, int]]:
    """Cut the span of many meters' readings into days, as their partitions are; other answers stay whole."""
    if question.subject is not Subject.READINGS or question.whose.is_one:
        return [(question.from_ms, question.to_ms)]
    edges = [question.from_ms, *range(question.from_ms // DAY_MS * DAY_MS + DAY_MS, question.to_ms, DAY_MS)]
    return list(zip(edges, [*edges[1:], question.to_ms], strict=True))


def _begun(question: Question, calendar: LocalCalendar, form: Format, part: Path, noted: Path) -> _Note:
    """Return how far a file has come; where nothing of it is there, one that begins."""
    told = (question.identity, [column.name for column in question.columns], form.value, calendar.zone.key)
    asked = hashlib.sha256(repr(told).encode()).hexdigest()
    if not part.exists() or not noted.exists():
        note = _Note(question=asked)
        _save(noted, note)
        return note
    note = msgspec.json.decode(noted.read_bytes(), type=_Note)
    if note.question != asked:
        raise QueryRefused(
            "other_question", f"{part.name}: expected to be of this question, got another's; remove it to begin anew"
        )
    return note


def _part_writer(form: Format, question: Question, calendar: LocalCalendar) -> Writer:
    if form is Format.PARQUET:
        # A Parquet file cannot be gone on with: its rows wait as an Arrow stream, which can.
        return ArrowWriter(question.columns, calendar.zone.key, compression="zstd")
    return writer_of(form, question.columns, calendar.zone.key)


def _to_parquet(part: Path, file: Path, question: Question, calendar: LocalCalendar) -> None:
    """Turn a whole Arrow stream into a Parquet file, a row group at a time."""
    import pyarrow as pa

    made = _beside(part, "parquet")
    writer = ParquetWriter(question.columns, calendar.zone.key)
    with part.open("rb") as stream, made.open("wb") as out:
        out.write(writer.head())
        for batch in pa.ipc.open_stream(stream):
            writer.batch(batch)
            out.write(writer.rows(()))
        out.write(writer.end())
        _sync(out)
    os.replace(made, file)


def _save(noted: Path, note: _Note) -> None:
    fresh = _beside(noted, "new")
    with fresh.open("wb") as out:
        out.write(msgspec.json.encode(note))
        _sync(out)
    os.replace(fresh, noted)


def _sync(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(f"{file.name}.{ending}")
