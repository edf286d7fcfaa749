"""A batch of messages to what one transaction has to write, in columns where that is possible.

Stage: the whole of ingest between decoded messages and database. The ordinary readings are planned as columns
(`headend.column_plan`); meters with anything else in the batch (late, repeated, falling or absurd readings, the end
of a bill part, time-of-day zones) go through `headend.pipeline`, one by one. `headend.pipeline.plan` is the reference
of this form: a property test proves that both make the same of any batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from billing.calendar import LocalCalendar, from_ms
from billing.supply import Supply
from headend.charge_table import ChargeTable, Int64, Places
from headend.column_plan import plan_columns
from headend.pipeline import (
    Arrived,
    Plan,
    Received,
    hold_unknown,
    note_message,
    plan_meter,
    take_events,
    take_number,
    take_reply,
    take_status,
)
from headend.state import MeterState
from protocols.columns import ABSENT, CHANNELS, ReadingColumns
from protocols.native import CouponEntered, MeterEvent, Readings, TokenEntered
from protocols.rows import ReadingRow

# A message of readings: as it came, decoded, its meter but for the mark, and the meter's place in the table.
_Reading = tuple[Received, Readings, MeterState, int]


def plan_batch(messages: Iterable[Received], table: ChargeTable, calendar: LocalCalendar) -> Plan:
    """Turn a batch into what its transaction writes."""
    made = Plan()
    reading: list[_Reading] = []
    came: Counter[int | None] = Counter()
    for message in messages:
        came[message.shard] += 1
        uplink = message.uplink
        if uplink is None:
            assert message.fault is not None, "a message that did not decode has a fault"
            made.count(message.shard, "received")
            made.hold(message, message.fault)
            continue
        place = table.place_of.get(uplink.serial)
        if place is None:
            hold_unknown(made, message, uplink, table.uninstalled)
            continue
        meter = table.at(place)
        if uplink.seq is not None:
            take_number(made, meter.meter_id, uplink, message)
        if isinstance(uplink, Readings):
            note_message(made, meter, uplink, message)
            take_events(made, meter, uplink, message)
            reading.append((message, uplink, meter, place))
        elif isinstance(uplink, MeterEvent):
            made.events.append((meter.meter_id, uplink.at_ms, uplink.code))
        elif isinstance(uplink, TokenEntered):
            made.entries.append((meter.meter_id, uplink))
        elif isinstance(uplink, CouponEntered):
            made.coupons.append((meter.meter_id, uplink))
        else:
            take_reply(made, table[uplink.serial], uplink, message)
    for shard, number in came.items():
        made.count(shard, "messages", number)
    if reading:
        _plan_readings(made, reading, table, calendar)
        _take_statuses(made, reading, table)
    return made


def take_columns(
    made: Plan,
    table: ChargeTable,
    columns: ReadingColumns,
    places: Places,
    stored_at_ms: Int64,
    calendar: LocalCalendar,
) -> Places:
    """Plan what is ordinary of readings in columns; return the positions of what is left to the plan one by one.

    Arguments are those of `plan_columns`; of each plan at most once.
    """
    found = made.ordinary = plan_columns(table, columns, places, stored_at_ms, calendar)
    made.candidates.update(found.crossed)
    made.noted.extend(found.noted)
    for shard, number in enumerate(found.stored.tolist()):
        if number:
            made.count(shard, "received", number)
            made.count(shard, "stored", number)
    return found.left


def _plan_readings(made: Plan, reading: Sequence[_Reading], table: ChargeTable, calendar: LocalCalendar) -> None:
    messages, uplinks, meters, places_of = zip(*reading, strict=True)
    counts = np.array([len(uplink.read_at_ms) for uplink in uplinks], dtype=np.int64)
    places = np.repeat(np.array(places_of, dtype=np.intp), counts)
    stored_at_ms = np.repeat(np.array([message.stored_at_ms for message in messages], dtype=np.int64), counts)
    meter_ids = np.array([meter.meter_id for meter in meters], dtype=np.int64)
    columns = _columns(uplinks, np.repeat(meter_ids, counts))
    left = take_columns(made, table, columns, places, stored_at_ms, calendar)
    if len(left):
        _plan_left(made, reading, np.cumsum(counts) - counts, left, columns, table, calendar)


def _plan_left(
    made: Plan,
    reading: Sequence[_Reading],
    first_of: Int64,
    left: Places,
    columns: ReadingColumns,
    table: ChargeTable,
    calendar: LocalCalendar,
) -> None:
    """Plan one by one what the columns have left; readings stay in the order in which they came."""
    rows = columns.take(left)
    numbers = np.searchsorted(first_of, left, side="right") - 1
    items = left - first_of[numbers]
    arrived: dict[str, list[Arrived]] = {}
    channels = [[None if value == ABSENT else value for value in getattr(rows, name).tolist()] for name in CHANNELS]
    listed = zip(rows.meter_id.tolist(), rows.at_ms.tolist(), rows.import_wh.tolist(), *channels, strict=True)
    for number, item, (meter_id, at_ms, import_wh, *more) in zip(numbers.tolist(), items.tolist(), listed, strict=True):
        message, uplink, _, _ = reading[number]
        row = ReadingRow(meter_id, from_ms(at_ms), import_wh, *more)
        arrived.setdefault(uplink.serial, []).append((at_ms, row, message, item))
    for serial, readings in sorted(arrived.items(), key=lambda entry: table.kept(entry[0]).meter_id):
        plan_meter(made, table[serial], readings, calendar)


def _take_statuses(made: Plan, reading: Sequence[_Reading], table: ChargeTable) -> None:
    """Take what each meter's last message says of its relay, where that is news."""
    latest = {place: (message, uplink, meter) for message, uplink, meter, place in reading}
    for message, uplink, meter in latest.values():
        if uplink.relay is None or (meter.serial not in made.states and meter.relay is Supply(uplink.relay.value)):
            continue
        take_status(made, made.states.get(meter.serial) or table[meter.serial], uplink, message)


def _columns(uplinks: Sequence[Readings], meter_id: Int64) -> ReadingColumns:
    """Put the readings of messages one after the other, in the order in which they came."""
    return ReadingColumns.of(
        meter_id,
        _whole([uplink.read_at_ms for uplink in uplinks], len(meter_id)),
        _whole([uplink.import_wh for uplink in uplinks], len(meter_id)),
        **{name: _optional([getattr(uplink, name) for uplink in uplinks], len(meter_id)) for name in CHANNELS},
    )


def _whole(lists: Sequence[Sequence[int]], count: int) -> Int64:
    return np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=count)


def _optional(lists: Sequence[Sequence[int | None]], count: int) -> Int64:
    """Return a channel that some readings may lack."""
    try:
        return np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=count)
    except TypeError:
        values = (ABSENT if value is None else value for value in chain.from_iterable(lists))
        return np.fromiter(values, dtype=np.int64, count=count)
