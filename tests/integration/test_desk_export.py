"""`prepaid export`: a file that is whole or not there, gone on with after an end, with the rows of the tables."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from headend.edges.desk_export import export_file
from headend.edges.desk_formats import Format
from headend.queries.columns import Subject
from headend.queries.errors import QueryRefused
from headend.queries.questions import Question, read_question
from prepaid.__main__ import app
from tests.integration.desk_town import SPAN, Town, open_town
from tests.integration.vending_shop import CALENDAR, MASTER

pytestmark = pytest.mark.db

ROWS = 4 * 144


class Ended(Exception):
    """Stands for whatever ends a process."""


def question(**more: str) -> Question:
    return read_question(Subject.READINGS, {**SPAN, **more}, CALENDAR)


async def write(town: Town, file: Path, form: Format, *, ended_after: int | None = None) -> int:
    """Export the town's readings in small pages, ending after some rows; return how many were there before."""

    def count(rows: int, share: int) -> None:
        assert 0 <= share <= 1_000
        if ended_after is not None and rows >= ended_after:
            raise Ended

    done = await export_file(
        town.shop.conn, question(), CALENDAR, form=form, file=file, progress=count, page_rows=30, rows_a_note=70
    )
    assert done.rows == ROWS
    assert done.file_bytes == file.stat().st_size
    return done.rows_before


@pytest.mark.parametrize("form", [Format.CSV, Format.ARROW, Format.PARQUET])
def test_export_that_was_ended_goes_on_and_is_the_same_file(database_url: str, tmp_path: Path, form: Format) -> None:
    """Nothing has the file's name until it is whole; ended twice and gone on with, it is as an undisturbed one."""

    async def story() -> None:
        async with open_town(database_url) as town:
            whole, broken = tmp_path / "whole", tmp_path / "broken"
            assert await write(town, whole, form) == 0
            for rows in (100, 400):
                with pytest.raises(Ended):
                    await write(town, broken, form, ended_after=rows)
                assert not broken.exists()
                # What no note tells of is written anew, whatever the end has left of it.
                with (tmp_path / "broken.part").open("ab") as part:
                    part.write(b"half a row")
            assert await write(town, broken, form) >= 350
            assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "whole"]
            if form is Format.PARQUET:
                assert pq.read_table(broken).equals(pq.read_table(whole))
            elif form is Format.ARROW:
                assert pa.ipc.open_stream(broken.read_bytes()).read_all().num_rows == ROWS
            if form is not Format.PARQUET:
                assert broken.read_bytes() == whole.read_bytes()

    asyncio.run(story())


def test_export_of_another_question_is_refused(database_url: str, tmp_path: Path) -> None:
    """A file that is there, or was begun for something else, is left alone."""

    async def story() -> None:
        async with open_town(database_url) as town:
            file = tmp_path / "readings.csv"
            with pytest.raises(Ended):
                await write(town, file, Format.CSV, ended_after=100)
            other = question(meter="N1")
            with pytest.raises(QueryRefused, match="another's"):
                await export_file(town.shop.conn, other, CALENDAR, form=Format.CSV, file=file)
            await write(town, file, Format.CSV)
            with pytest.raises(QueryRefused, match="no such file"):
                await write(town, file, Format.CSV)

    asyncio.run(story())


def test_export_command_prints_its_figures(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of the exported registers is the table's; rows, speed and memory are told; a refusal is one line."""

    async def prepare() -> int:
        async with open_town(database_url) as town:
            return int(await town.shop.one("select sum(import_wh) from readings"))

    total_wh = asyncio.run(prepare())
    monkeypatch.setenv("PREPAID_DATABASE_URL", database_url)
    monkeypatch.setenv("PREPAID_LOG_LEVEL", "error")
    monkeypatch.setenv("PREPAID_MASTER_KEY", MASTER.hex())
    file = tmp_path / "all.parquet"
    span = ["--from", "2026-11-01", "--to", "2026-12-01"]
    ended = CliRunner().invoke(app, ["export", "readings", str(file), *span, "--json"], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    figures = json.loads(ended.stdout)
    table = pq.read_table(file)
    assert figures["rows"] == table.num_rows == 4 * 240
    assert figures["memory_peak_mb"] > 0
    assert sum(table.column("received_wh").to_pylist()) == total_wh
    days = tmp_path / "days.csv"
    told = CliRunner().invoke(app, ["export", "profiles", str(days), *span, "--interval", "day", "--format", "csv"])
    assert "rows/s" in told.stdout, told.output
    assert len(days.read_text().splitlines()) == 1 + 4 * 14
    with pytest.raises(Exception, match="bad_format"):
        CliRunner().invoke(app, ["export", "readings", str(file), *span, "--format", "xml"], catch_exceptions=False)
