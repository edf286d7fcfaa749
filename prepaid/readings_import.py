"""`prepaid import`: files of readings, of any size, through the same broker, ingest and database as meters' own.

Stage: the READ story with a file in the place of meters. A file is taken in chunks; a chunk's messages are acknowledged
by the broker before the progress is kept, so that an import that was killed goes on where it stood and sends at most
one chunk again, which costs nothing twice. What became of everything is asked of the database at the end, key by key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Final

from psycopg import AsyncConnection

from billing.calendar import from_ms
from db.pool import APPLICATION_ROLE, connect
from db.reading_imports import Outcome, RegisterStart, SentKeys, current_xid, ingest_lives, register_starts
from db.readings import ensure_partitions
from headend.edges.stream import StreamUnavailable, stream_backlog
from headend.validate import LATE_WINDOW_MS, REJECTED
from meter_sim.edges.bulk import BulkPublisher
from prepaid.import_progress import FileProgress, ProgressFile, digest_of, one_import_at_a_time
from prepaid.reading_files import FileReading, Format, LineError, Lines, ReadingsRefused, Tally, fields_of
from prepaid.reading_formats import FormatOptions, format_of
from prepaid.reading_registers import Metered, Registers, messages_of
from prepaid.replay import tended
from prepaid.system import System
from protocols.native import encode_readings
from protocols.topics import reading_topic

DAY_MS = 86_400_000
# 20,000 readings are 6 MB here and a second of ingest; that much at most is sent again after an interruption.
CHUNK_READINGS: Final = 20_000
# Live readings wait behind what an import has put into the stream: 50,000 messages are 5 s of ingest.
BACKLOG_MAX: Final = 50_000
BACKLOG_POLL_S: Final = 0.2
# With meters reporting all the time the stream is never empty: what was sent is looked for every 10 s.
LOOK_EVERY_S: Final = 10.0
BAD_LINES_SHOWN: Final = 20
# A meter's clock may be ahead of ours, by a day at most where a file's zone was mistaken.
_AHEAD_MS: Final = DAY_MS

# Called with a phase, the steps done and the steps in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What to import and how: `strict` ends it at the first bad line; without `wait` nothing is looked for later."""

    files: tuple[Path, ...]
    format: FormatOptions
    strict: bool = False
    wait: bool = True


@dataclass(slots=True, kw_only=True)
class ImportReport:
    """What was in the files, what was sent, and what became of it: sent = stored + duplicate + held + lost.

    `outcome` is None where nothing was waited for. `resumed` tells that an interrupted import was gone on with.
    """

    files: list[str] = field(default_factory=list)
    lines: int = 0
    bad_lines: int = 0
    bad: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    sent: int = 0
    messages: int = 0
    resumed: bool = False
    outcome: Outcome | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Return the report as the `--json` output shows it."""
        shown: dict[str, object] = {
            "files": self.files,
            "lines": self.lines,
            "bad_lines": self.bad_lines,
            "missing_values": self.tally.missing,
            "left_out": self.tally.left_out,
            "qualities": self.tally.qualities,
            "sent": self.sent,
            "messages": self.messages,
            "resumed": self.resumed,
        }
        if self.outcome is not None:
            held = self.outcome.held
            rejected = {reason: number for reason, number in held.items() if reason in set(REJECTED)}
            quarantined = {reason: number for reason, number in held.items() if reason not in rejected}
            shown |= {
                "stored": self.outcome.stored,
                "duplicate": self.outcome.duplicate,
                "quarantined": sum(quarantined.values()),
                "rejected": sum(rejected.values()),
                "lost": self.outcome.lost,
                "reasons": held,
            }
        return shown | {"bad": self.bad, "seconds": round(self.seconds, 3)}


def import_readings(system: System, options: ImportOptions, progress: Progress) -> ImportReport:
    """Import files one after the other; wait until all is settled, and report.

    Raises: ReadingsRefused; BrokerUnreachable, psycopg.OperationalError, after which the same command goes on.
    """
    began_s = time.monotonic()
    folder = system.settings.data_dir / "imports"
    with one_import_at_a_time(folder):
        report = asyncio.run(tended(system, _import(system, options, folder, progress)))
    report.seconds = time.monotonic() - began_s
    return report


async def _import(system: System, options: ImportOptions, folder: Path, progress: Progress) -> ImportReport:
    url = system.parts.database_url
    async with await connect(url, application="prepaid-import", role=APPLICATION_ROLE) as conn:
        if not await ingest_lives(conn):
            system.start("ingest")
        report, registers = ImportReport(), Registers()
        sources = []
        for path in options.files:
            place = ProgressFile(folder, digest_of(path, repr((options.format, path.name))))
            source = _Source(path, options, place, registers, report)
            await source.open(conn)
            sources.append(source)
            await _send_file(system, conn, source, progress, wait=options.wait)
        for source in sources:
            source.add_to(report)
        if options.wait:
            report.outcome = await _settled(system, conn, sources, registers, progress)
        for source in sources:
            source.place.remove()
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Readings of some lines, each with the number of its line."""

    readings: Sequence[tuple[int, FileReading]]
    bad: Sequence[str]


class _Source:
    """One file on its way: its lines, what they mean, and how far it has come."""

    def __init__(
        self, path: Path, options: ImportOptions, place: ProgressFile, registers: Registers, report: ImportReport
    ) -> None:
        self.path = path
        self.place = place
        self.state = FileProgress(since_xid="")
        self._options = options
        self._registers = registers
        self._report = report

    async def open(self, conn: AsyncConnection) -> None:
        """Read how far an earlier import has come, or begin."""
        kept = self.place.read()
        if kept is None:
            self.state = FileProgress(since_xid=await current_xid(conn))
            self.place.write(self.state)
            return
        self._report.resumed = True
        self.state = kept
        self._registers.know(
            {
                serial: RegisterStart(register_wh=wh, end_wh=end_wh, installed_ms=installed_ms, mark_ms=mark_ms)
                for serial, (wh, end_wh, installed_ms, mark_ms) in kept.starts.items()
            }
        )
        if kept.memory is not None:
            self._registers.remember(kept.registers)

    def add_to(self, report: ImportReport) -> None:
        """Add what was found and sent to a report."""
        state = self.state
        report.files.append(self.path.name)
        report.lines += state.line
        report.bad_lines += state.bad_lines
        report.sent += state.sent
        report.messages += state.messages
        report.tally.missing += state.missing
        for mine, all_of in ((state.left_out, report.tally.left_out), (state.qualities, report.tally.qualities)):
            for name, number in mine.items():
                all_of[name] = all_of.get(name, 0) + number

    def chunks(self, lines: Lines, tally: Tally, state: FileProgress) -> Iterator[tuple[_Chunk, Format]]:
        """Cut what follows a state into chunks; where one ends depends on the file alone."""
        try:
            first_line = lines.next()
        except LineError as error:
            raise ReadingsRefused(f"{self.path.name} line 1: {error}") from None
        if first_line is None:
            raise ReadingsRefused(f"{self.path.name}: expected a header line, got an empty file")
        form = format_of(self.path.name, first_line, self._options.format, tally)
        if state.memory is not None:
            form.remember(state.memory)
            lines.go_to(state.offset, state.line)
        while (chunk := self._take(lines, form)) is not None:
            yield chunk, form

    def _take(self, lines: Lines, form: Format) -> _Chunk | None:
        readings: list[tuple[int, FileReading]] = []
        bad: list[str] = []
        begins = lines.offset
        while len(readings) < CHUNK_READINGS or form.is_waiting:
            try:
                line = lines.next()
                found = (
                    form.end() if line is None else form.take(fields_of(line, form.delimiter)) if line.strip() else []
                )
            except LineError as error:
                found = error.readings
                bad.append(f"{self.path.name} line {lines.number}: {error}")
                line = ""
                self._end_if_strict(bad)
            readings += [(lines.number, reading) for reading in found]
            if line is None:
                break
        return _Chunk(readings=readings, bad=bad) if readings or bad or lines.offset > begins else None

    def metered(self, chunk: _Chunk) -> tuple[list[Metered], list[str]]:
        """Give readings their registers; those that do not come after the one before are bad lines."""
        metered: list[Metered] = []
        bad: list[str] = []
        for number, reading in chunk.readings:
            made = self._registers.meter(reading)
            if made is None:
                at = from_ms(reading.at_ms).isoformat()
                expected = "an interval that ends after the one before of its meter"
                bad.append(f"{self.path.name} line {number}: {LineError(expected, at)}")
            else:
                metered.append(made)
        self._end_if_strict(bad)
        return metered, bad

    def _end_if_strict(self, bad: Sequence[str]) -> None:
        if bad and self._options.strict:
            # The mended file is another one: whatever of this was sent costs nothing twice.
            self.place.remove()
            raise ReadingsRefused(f"{bad[0]}; nothing behind it was sent")

    def keep(self, lines: Lines, form: Format, tally: Tally, *, done: bool) -> None:
        """Keep how far we are."""
        state = self.state
        state.offset, state.line, state.memory, state.done = lines.offset, lines.number, form.memory(), done
        state.missing, state.left_out, state.qualities = tally.missing, tally.left_out, tally.qualities
        state.registers = self._registers.memory()
        self.place.write(state)


async def _send_file(system: System, conn: AsyncConnection, source: _Source, progress: Progress, *, wait: bool) -> None:
    """Send what is left of a file, chunk by chunk."""
    state, registers = source.state, source._registers
    if state.done:
        return
    tally = Tally(missing=state.missing, left_out=state.left_out, qualities=state.qualities)
    parts = system.parts
    with Lines(source.path) as lines:
        async with BulkPublisher(parts.mqtt_host, parts.mqtt_port) as publisher:
            form: Format | None = None
            for chunk, form in source.chunks(lines, tally, state):
                new = await register_starts(conn, registers.unknown(reading for _, reading in chunk.readings))
                registers.know(new)
                state.starts |= {
                    serial: (start.register_wh, start.end_wh, start.installed_ms, start.mark_ms)
                    for serial, start in new.items()
                }
                metered, unordered = source.metered(chunk)
                await ensure_partitions(conn, _days(metered, registers))
                for message in messages_of(metered):
                    await publisher.publish(reading_topic(message.serial), encode_readings(message))
                    state.messages += 1
                await publisher.drain()
                _note_bad(source._report, [*chunk.bad, *unordered])
                state.sent += len(metered)
                state.bad_lines += len(chunk.bad) + len(unordered)
                source.keep(lines, form, tally, done=False)
                progress(f"{source.path.name[:17]}", lines.bytes_read, lines.size)
                if wait:
                    await _make_way(system)
            if form is not None:
                source.keep(lines, form, tally, done=True)


async def _make_way(system: System) -> None:
    """Wait while much of what was sent is still before what meters send."""
    while True:
        if await _backlog(system) <= BACKLOG_MAX:
            return
        await asyncio.sleep(BACKLOG_POLL_S)


async def _settled(
    system: System, conn: AsyncConnection, sources: Sequence[_Source], registers: Registers, progress: Progress
) -> Outcome:
    """Wait until the stream is empty, or everything that was sent is found; tell what became of it."""
    keys = SentKeys(conn)
    await keys.begin()
    look_at_s = time.monotonic() + LOOK_EVERY_S
    most = 0
    while backlog := await _backlog(system):
        most = max(most, backlog)
        progress("messages settled", most - backlog, most)
        if time.monotonic() >= look_at_s:
            outcome = await _look(keys, sources, registers)
            if not outcome.lost:
                return outcome
            look_at_s = time.monotonic() + LOOK_EVERY_S
        await asyncio.sleep(BACKLOG_POLL_S)
    return await _look(keys, sources, registers)


async def _look(keys: SentKeys, sources: Sequence[_Source], registers: Registers) -> Outcome:
    """Read the files once more and look for each of their readings among what is stored and what is held."""
    registers.forget()
    made = Outcome()
    for source in sources:
        await keys.empty()
        with Lines(source.path) as lines:
            for chunk, _ in source.chunks(lines, Tally(), FileProgress(since_xid="")):
                metered, _ = source.metered(chunk)
                await keys.add((each.serial, from_ms(each.at_ms), each.register_wh) for each in metered)
        found = await keys.outcome(source.state.since_xid)
        made.stored += found.stored
        made.duplicate += found.duplicate
        made.lost += found.lost
        for reason, number in found.held.items():
            made.held[reason] = made.held.get(reason, 0) + number
    return made


async def _backlog(system: System) -> int:
    """Count what is left in the stream; while the broker is away that is not nothing."""
    try:
        return await stream_backlog(system.parts.nats_url)
    except StreamUnavailable:
        return 1


def _days(metered: Sequence[Metered], registers: Registers) -> set[date]:
    """Return the days for which readings may be stored: of installed meters, in the late window, not of the future."""
    ends_ms = time.time_ns() // 1_000_000 + _AHEAD_MS
    days = set()
    for reading in metered:
        start = registers.starts[reading.serial]
        if start.installed_ms is None or start.mark_ms is None:
            continue
        if max(start.installed_ms, start.mark_ms - LATE_WINDOW_MS) <= reading.at_ms <= ends_ms:
            days.add(reading.at_ms // DAY_MS)
    return {from_ms(day * DAY_MS).date() for day in days}


def _note_bad(report: ImportReport, bad: Sequence[str]) -> None:
    """Keep the first bad lines by name."""
    report.bad += bad[: max(0, BAD_LINES_SHOWN - len(report.bad))]
