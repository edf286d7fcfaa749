"""A consumer's use in figures: energy, peak demand, load factor, energy by time-of-day zone, the period before.

Stage: behind the hours of an account. Whole numbers only. Units: Wh, W, milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from billing.calendar import next_period

_HOUR_MS = 3_600_000
_MILLI = 1_000

# The zone that an instant lies in, and when it ends; no name where the tariff has no zones.
ZoneAt = Callable[[int], tuple[str | None, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HourUse:
    """What a meter did in a local hour."""

    started_ms: int
    import_wh: int
    export_wh: int | None
    estimated_wh: int
    demand_w: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UseSummary:
    """What some hours come to; `peak_hour_ms` is when the hour of the peak begins, the first of equals.

    Invariants: the zones add up to `import_wh`, unless the tariff has none; then there are none.
    """

    hours: int
    import_wh: int
    export_wh: int | None
    estimated_wh: int
    peak_w: int | None
    peak_hour_ms: int | None
    zones_wh: Mapping[str, int]

    @property
    def load_factor_milli(self) -> int | None:
        """Return mean power by peak demand over the hours that are known, in thousandths. Rounds: down."""
        return self.import_wh * _MILLI // (self.peak_w * self.hours) if self.peak_w else None


def summarise(hours: Iterable[HourUse], zone_at: ZoneAt) -> UseSummary:
    """Put hours together. An hour that a zone's edge cuts is split in proportion to time, the remainder on the later
    side."""
    count = import_wh = estimated_wh = 0
    export_wh: int | None = None
    peak: HourUse | None = None
    zones_wh: dict[str, int] = {}
    for hour in hours:
        count += 1
        import_wh += hour.import_wh
        estimated_wh += hour.estimated_wh
        if hour.export_wh is not None:
            export_wh = (export_wh or 0) + hour.export_wh
        if hour.demand_w is not None and (peak is None or hour.demand_w > (peak.demand_w or 0)):
            peak = hour
        for name, part_wh in _zone_parts(hour, zone_at):
            zones_wh[name] = zones_wh.get(name, 0) + part_wh
    return UseSummary(
        hours=count,
        import_wh=import_wh,
        export_wh=export_wh,
        estimated_wh=estimated_wh,
        peak_w=None if peak is None else peak.demand_w,
        peak_hour_ms=None if peak is None else peak.started_ms,
        zones_wh=zones_wh,
    )


def period_before(first: date, last: date) -> tuple[date, date]:
    """Return the span of as many whole months, or else days, that ends where one begins."""
    if first.day == last.day == 1:
        months, at = 0, first
        while at < last:
            months, at = months + 1, next_period(at)
        before = first
        for _ in range(months):
            before = (before - timedelta(days=1)).replace(day=1)
        return before, first
    return first - (last - first), first


def _zone_parts(hour: HourUse, zone_at: ZoneAt) -> Iterable[tuple[str, int]]:
    at_ms, end_ms, given_wh = hour.started_ms, hour.started_ms + _HOUR_MS, 0
    while at_ms < end_ms:
        name, until_ms = zone_at(at_ms)
        at_ms = min(until_ms, end_ms)
        through_wh = hour.import_wh * (at_ms - hour.started_ms) // _HOUR_MS
        if name is not None:
            yield name, through_wh - given_wh
        given_wh = through_wh
