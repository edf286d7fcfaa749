"""Energy by quarter or half hour from readings, by the rule of the rollups.

What lies between two readings is split at a slot's edge in proportion to time, the remainder on the later side; a
reading at an edge belongs to the slot it ends.

Stage: behind the rows of one meter. Whole numbers only. Units: Wh, mV, thousandths, W, milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_HOUR_MS = 3_600_000
_HALF_HOUR_MS = 1_800_000
READ, EDITED, ESTIMATED, SUSPECT = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A meter's energy to date at an instant; where a register was installed (`opens`) the curve begins anew."""

    at_ms: int
    wh: int
    opens: bool = False
    export_wh: int | None = None
    voltage_mv: int | None = None
    pf_milli: int | None = None
    edited: bool = False
    suspect: bool = False


@dataclass(slots=True, kw_only=True)
class Slot:
    """What a meter did in one slot; `readings` = 0: all of it lies between two readings."""

    started_ms: int
    readings: int = 0
    import_wh: int = 0
    export_wh: int | None = None
    estimated_wh: int = 0
    voltages_mv: list[int] = field(default_factory=list)
    pfs_milli: list[int] = field(default_factory=list)
    mark: int = READ

    @property
    def quality(self) -> int:
        """Return the worst of it, by its number."""
        return max(self.mark, ESTIMATED if self.estimated_wh else READ)

    def demand_w(self, step_ms: int) -> int | None:
        """Return the mean power of a half hour that was read at both ends; None of other slots."""
        whole = step_ms == _HALF_HOUR_MS and self.readings > 0 and not self.estimated_wh
        return self.import_wh * _HOUR_MS // step_ms if whole else None


def slots_of(points: Sequence[CurvePoint], step_ms: int, *, from_ms: int, to_ms: int) -> list[Slot]:
    """Return the slots that begin from one instant to before another, rising, but those that nothing is known of.

    `points` rise in time and reach to both sides of the span; slots begin at whole steps after `from_ms`.
    """
    slots: dict[int, Slot] = {}

    def slot_ending(at_ms: int) -> Slot | None:
        started_ms = from_ms + (at_ms - 1 - from_ms) // step_ms * step_ms
        if not from_ms <= started_ms < to_ms:
            return None
        return slots.setdefault(started_ms, Slot(started_ms=started_ms))

    for point in points:
        slot = None if point.opens else slot_ending(point.at_ms)
        if slot is not None:
            _count(slot, point)
    for left, right in pairwise(points):
        if not right.opens and left.at_ms < right.at_ms:
            edge_ms = max(left.at_ms, from_ms)
            while edge_ms < min(right.at_ms, to_ms):
                end_ms = min(from_ms + ((edge_ms - from_ms) // step_ms + 1) * step_ms, right.at_ms)
                slot = slot_ending(end_ms)
                if slot is not None:
                    _share(slot, left, right, edge_ms, end_ms, step_ms)
                edge_ms = end_ms
    return [slots[started_ms] for started_ms in sorted(slots)]


def _count(slot: Slot, point: CurvePoint) -> None:
    slot.readings += 1
    if point.voltage_mv is not None:
        slot.voltages_mv.append(point.voltage_mv)
    if point.pf_milli is not None:
        slot.pfs_milli.append(point.pf_milli)
    slot.mark = max(slot.mark, SUSPECT if point.suspect else EDITED if point.edited else READ)


def _share(slot: Slot, left: CurvePoint, right: CurvePoint, from_ms: int, to_ms: int, step_ms: int) -> None:
    """Give a slot its part of the energy between two points."""
    span_ms = right.at_ms - left.at_ms

    def part(energy_wh: int) -> int:
        return energy_wh * (to_ms - left.at_ms) // span_ms - energy_wh * (from_ms - left.at_ms) // span_ms

    is_cut = from_ms > left.at_ms or to_ms < right.at_ms
    import_wh = part(right.wh - left.wh)
    slot.import_wh += import_wh
    slot.estimated_wh += import_wh if is_cut else 0
    if left.export_wh is not None and right.export_wh is not None and right.export_wh >= left.export_wh:
        slot.export_wh = (slot.export_wh or 0) + part(right.export_wh - left.export_wh)
