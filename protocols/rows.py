"""A reading as it is stored: what decoding ends in and the database begins with."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple


class ReadingRow(NamedTuple):
    """One meter and instant; field order is the order of COPY. Two rows with equal fields are the same reading."""

    meter_id: int
    read_at: datetime
    import_wh: int
    export_wh: int | None
    voltage_mv: int | None
    current_ma: int | None
    power_w: int | None
    pf_milli: int | None
    freq_mhz: int | None
