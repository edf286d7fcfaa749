"""Readings as columns: what a batch is from decoding to COPY.

Stage: between decode and commit, whenever a batch has more than a handful of readings. A row of `ReadingColumns` is a
`ReadingRow` of `protocols.rows`, with instants as milliseconds and absent values as one number. Nothing here knows
what a reading is worth or where it is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, Self

import numpy as np
import numpy.typing as npt

Int64Column = npt.NDArray[np.int64]

# In the place of a value that a meter did not send. No channel can hold it: the widest are 64-bit registers, of which
# the decoders take -2**62 and more only, and every other channel is 32 bits wide.
ABSENT: Final = -(2**63)
# What may be absent, in the order of `ReadingRow` and of COPY.
CHANNELS: Final = ("export_wh", "voltage_mv", "current_ma", "power_w", "pf_milli", "freq_mhz")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadingColumns:
    """Readings of one meter and instant each.

    Shape: nine one-dimensional int64 arrays of one length, in the order of `ReadingRow`.
    Units: `at_ms` UTC milliseconds since 1970, the end of the interval; registers in Wh; voltage in mV, current in mA,
        power in W, power factor in thousandths, frequency in mHz.
    Invariants: meter, instant and import register are never `ABSENT`, any other channel may be. Arrays are shared
        between batches: nobody writes into one after it was put here.
    """

    meter_id: Int64Column
    at_ms: Int64Column
    import_wh: Int64Column
    export_wh: Int64Column
    voltage_mv: Int64Column
    current_ma: Int64Column
    power_w: Int64Column
    pf_milli: Int64Column
    freq_mhz: Int64Column

    def __post_init__(self) -> None:
        shape = (len(self.meter_id),)
        for name, column in self.named():
            assert column.dtype == np.int64, f"column {name}: expected int64, got {column.dtype}"
            assert column.shape == shape, f"column {name}: expected shape {shape}, got {column.shape}"

    def __len__(self) -> int:
        return len(self.meter_id)

    @classmethod
    def of(
        cls, meter_id: Int64Column, at_ms: Int64Column, import_wh: Int64Column, **channels: Int64Column | None
    ) -> Self:
        """Make columns; channels that are left out or None are absent in every reading."""
        unknown = channels.keys() - set(CHANNELS)
        assert not unknown, f"channels: expected some of {CHANNELS}, got {sorted(unknown)}"
        nothing = np.full(len(meter_id), ABSENT, dtype=np.int64)
        given = {name: column for name, column in channels.items() if column is not None}
        return cls(meter_id=meter_id, at_ms=at_ms, import_wh=import_wh, **dict.fromkeys(CHANNELS, nothing) | given)

    def named(self) -> list[tuple[str, Int64Column]]:
        """Return the columns with their names, in the order of COPY."""
        return [(name, getattr(self, name)) for name in NAMES]

    def take(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.integer] | slice) -> Self:
        """Return some rows: those of a mask, those at positions in their order, or a slice."""
        return type(self)(**{name: column[rows] for name, column in self.named()})

    def sorted_by_meter(self) -> Self:
        """Return the rows by meter, then instant; of two with the same key the one that came first stays first."""
        if self.is_sorted_by_meter():
            return self
        return self.take(np.lexsort((self.at_ms, self.meter_id)))

    def is_sorted_by_meter(self) -> bool:
        """Tell whether the rows stand by meter, then instant; equal keys may follow each other."""
        same_meter = self.meter_id[1:] == self.meter_id[:-1]
        rises = (self.meter_id[1:] > self.meter_id[:-1]) | (same_meter & (self.at_ms[1:] >= self.at_ms[:-1]))
        return bool(rises.all())


NAMES: Final = tuple(field.name for field in fields(ReadingColumns))


def concatenate(parts: Sequence[ReadingColumns]) -> ReadingColumns:
    """Put parts one after the other; of no parts, no rows."""
    if len(parts) == 1:
        return parts[0]
    nothing = np.empty(0, dtype=np.int64)
    return ReadingColumns(
        **{name: np.concatenate([nothing, *(getattr(part, name) for part in parts)]) for name in NAMES}
    )
