"""Registers that files of intervals add up to, and readings cut into messages.

Stage: `prepaid import`, between a file's readings and the broker. The energy of intervals is added to where a meter's
register stands before them; what is less than a Wh is carried to the next interval: nothing is lost to rounding. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Context, Decimal
from typing import Final, NamedTuple

from db.reading_imports import RegisterStart
from prepaid.reading_files import FileReading
from protocols.native import BLOCK_INTERVALS_MAX, BLOCK_STEP_S_MAX, Readings

# 13 digits before the point and 20 behind, of a product with 1,000,000 and some additions: exact.
_EXACT: Final = Context(prec=60)


class Metered(NamedTuple):
    """A reading with its register."""

    serial: str
    at_ms: int
    register_wh: int
    voltage_mv: int | None = None
    current_ma: int | None = None
    power_w: int | None = None


class Registers:
    """Where each meter's register stands: whole Wh, what is less than one (in parts of `per_wh`), and as of when."""

    def __init__(self) -> None:
        self.starts: dict[str, RegisterStart] = {}
        self._stands: dict[str, tuple[int, Decimal, int]] = {}

    def unknown(self, readings: Iterable[FileReading]) -> dict[str, int]:
        """Return the meters that are met for the first time, with the instant before which their register counts."""
        first: dict[str, int] = {}
        for reading in readings:
            if reading.serial not in self.starts:
                # An interval's energy was used before its end: what is stored at that very instant is its result.
                first.setdefault(reading.serial, reading.at_ms - 1)
        return first

    def know(self, starts: Mapping[str, RegisterStart]) -> None:
        """Know where registers stand before the first reading."""
        self.starts.update(starts)

    def meter(self, reading: FileReading) -> Metered | None:
        """Return a reading with its register; None for an interval that does not come after the one before."""
        register_wh = reading.register_wh
        if register_wh is None:
            added = self._add(reading)
            if added is None:
                return None
            register_wh = added
        return Metered(
            reading.serial, reading.at_ms, register_wh, reading.voltage_mv, reading.current_ma, reading.power_w
        )

    def memory(self) -> dict[str, tuple[int, str, int]]:
        """Return where registers stand, as JSON values: Wh, rest, instant."""
        return {serial: (wh, str(rest), at_ms) for serial, (wh, rest, at_ms) in self._stands.items()}

    def remember(self, memory: Mapping[str, tuple[int, str, int]]) -> None:
        """Go on from where registers stood."""
        self._stands = {serial: (wh, Decimal(rest), at_ms) for serial, (wh, rest, at_ms) in memory.items()}

    def forget(self) -> None:
        """Let registers stand where they started."""
        self._stands.clear()

    def _add(self, reading: FileReading) -> int | None:
        start = self.starts[reading.serial]
        wh, rest, before_ms = self._stands.get(reading.serial, (start.register_wh, Decimal(0), -1))
        if reading.at_ms <= before_ms:
            return None
        if start.installed_ms is None or reading.at_ms > start.installed_ms:
            whole, rest = _EXACT.divmod(_EXACT.add(rest, reading.energy), Decimal(reading.per_wh))
            wh = (wh + int(whole)) % start.end_wh
        self._stands[reading.serial] = (wh, rest, reading.at_ms)
        return wh


def messages_of(readings: Iterable[Metered]) -> Iterator[Readings]:
    """Cut readings, in their order, into messages: neighbours of one meter at equal steps go together."""
    run: list[Metered] = []
    for reading in readings:
        if run and not _goes_with(run, reading):
            yield _message(run)
            run = []
        run.append(reading)
    if run:
        yield _message(run)


def _goes_with(run: list[Metered], reading: Metered) -> bool:
    step_ms = reading.at_ms - run[-1].at_ms
    if reading.serial != run[0].serial or len(run) >= BLOCK_INTERVALS_MAX:
        return False
    if len(run) > 1:
        return step_ms == run[1].at_ms - run[0].at_ms
    return 0 < step_ms <= BLOCK_STEP_S_MAX * 1000 and step_ms % 1000 == 0


def _message(run: list[Metered]) -> Readings:
    nothing: list[int | None] = [None] * len(run)
    return Readings(
        serial=run[0].serial,
        seq=None,
        clock_ms=None,
        read_at_ms=[each.at_ms for each in run],
        import_wh=[each.register_wh for each in run],
        export_wh=nothing,
        voltage_mv=[each.voltage_mv for each in run],
        current_ma=[each.current_ma for each in run],
        power_w=[each.power_w for each in run],
        pf_milli=nothing,
        freq_mhz=nothing,
        relay=None,
        credit_minor=None,
        events=(),
    )
