"""Rows of the billing engineers' desk: readings, buckets, events, charges, meters and accounts, in the order of keys.

Stage: below the desk's walk, which decides whose rows are read next. Each call is one short statement that gives a page
at most, so that no walk holds a snapshot, a lock or more than a page of memory. Reads only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from billing.calendar import LocalCalendar, from_ms
from db.accounts import look
from db.named import array_text, sql

# A look at 500 accounts is what other bulk readers take, too.
ACCOUNTS_A_LOOK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskWhose:
    """What rows must fit, all of it; None leaves a condition out. `only_area` is what a reader may see."""

    meter: str | None
    consumer: int | None
    account: str | None
    area: str | None
    feeder: str | None
    make: str | None
    only_area: str | None


class PlaceRow(NamedTuple):
    """Where a meter stood, and until and from when it stood elsewhere; None is without end."""

    meter_id: int
    serial: str
    from_at: datetime | None = None
    to_at: datetime | None = None
    apart_from: datetime | None = None
    apart_to: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskSpans:
    """Windows of some meters' rows: from an instant, or a local day for days and months, to before another."""

    meter_ids: list[int]
    froms: Sequence[datetime] | Sequence[date]
    tos: Sequence[datetime] | Sequence[date]

    def parameters(self, most: int) -> dict[str, Any]:
        """Return the parameters of a statement; the outermost bounds let it leave out partitions."""
        return {
            "meter_ids": array_text(self.meter_ids),
            "froms": _array_of_times(self.froms),
            "tos": _array_of_times(self.tos),
            "first": min(self.froms),
            "last": max(self.tos),
            "most": most,
        }


async def named_meters(conn: AsyncConnection, whose: DeskWhose) -> list[int] | None:
    """Return the meters of one meter's, account's or consumer's name, rising; None where none of these is named."""
    if whose.meter is not None:
        return await _ids(conn, "desk_meter", {"meter": whose.meter})
    if whose.account is not None:
        return await _ids(conn, "desk_meters_of_account", {"account": whose.account})
    if whose.consumer is not None:
        return await _ids(conn, "desk_meters_of_consumer", {"consumer": whose.consumer})
    return None


async def next_meters(conn: AsyncConnection, whose: DeskWhose, *, after: int, most: int) -> list[int]:
    """Return the next meters in id order among which all are that fit; what does not fit may be among them, too."""
    area = whose.only_area or whose.area
    parameters = {"area": area, "feeder": whose.feeder, "after": after, "most": most}
    if whose.feeder is not None:
        return await _ids(conn, "desk_meters_of_feeder", parameters)
    return await _ids(conn, "desk_meters_after" if area is None else "desk_meters_of_area", parameters)


async def named_accounts(conn: AsyncConnection, whose: DeskWhose) -> list[int] | None:
    """Return the accounts of one account's, meter's or consumer's name, rising; None where none of these is named."""
    if whose.account is not None:
        return await _ids(conn, "desk_account", {"account": whose.account})
    if whose.meter is not None:
        return await _ids(conn, "desk_accounts_of_meter", {"meter": whose.meter})
    if whose.consumer is not None:
        return await _ids(conn, "desk_accounts_of_consumer", {"consumer": whose.consumer})
    return None


async def next_accounts(conn: AsyncConnection, whose: DeskWhose, *, after: int, most: int) -> list[int]:
    """Return the next accounts in id order among which all are that fit; what does not fit may be among them, too."""
    area = whose.only_area or whose.area
    parameters = {"area": area, "feeder": whose.feeder, "after": after, "most": most}
    if whose.feeder is not None:
        return await _ids(conn, "desk_accounts_of_feeder", parameters)
    return await _ids(conn, "desk_accounts_after" if area is None else "desk_accounts_of_area", parameters)


async def fitting_accounts(conn: AsyncConnection, whose: DeskWhose, ids: Sequence[int]) -> list[int]:
    """Return those of some accounts that fit, rising."""
    return await _ids(conn, "desk_accounts_fitting", {**asdict(whose), "ids": list(ids)})


async def read_places(conn: AsyncConnection, whose: DeskWhose, ids: Sequence[int], *, whole: bool) -> list[PlaceRow]:
    """Return where some meters stood that fit, by meter and time; `whole` takes meters without looking where."""
    parameters = {**asdict(whose), "ids": list(ids)}
    cursor = await conn.execute(sql("desk_whole_meters" if whole else "desk_places"), parameters)
    return [PlaceRow(*row) for row in await cursor.fetchall()]


async def read_readings(
    conn: AsyncConnection, spans: DeskSpans, *, most: int, with_flags: bool
) -> list[tuple[Any, ...]]:
    """Return readings by meter and instant: meter, instant, channels, register before an edit, edited, rules' flags."""
    return await _rows(conn, "desk_readings", spans.parameters(most) | {"with_flags": with_flags})


async def read_hours(conn: AsyncConnection, spans: DeskSpans, *, most: int) -> list[tuple[Any, ...]]:
    """Return hours by meter and begin: meter, begin, values, and up to when the meter's readings are rolled up."""
    return await _rows(conn, "desk_hours", spans.parameters(most))


async def read_days(conn: AsyncConnection, spans: DeskSpans, *, most: int) -> list[tuple[Any, ...]]:
    """Return local days, as `read_hours`."""
    return await _rows(conn, "desk_days", spans.parameters(most))


async def read_months(conn: AsyncConnection, spans: DeskSpans, *, most: int) -> list[tuple[Any, ...]]:
    """Return calendar months, as `read_hours`."""
    return await _rows(conn, "desk_months", spans.parameters(most))


async def read_sums(conn: AsyncConnection, interval: str, spans: DeskSpans) -> list[tuple[Any, ...]]:
    """Return hours, days or months of some meters put together."""
    name = {"hour": "desk_hour_sums", "day": "desk_day_sums", "month": "desk_month_sums"}[interval]
    return await _rows(conn, name, spans.parameters(0))


async def read_points(conn: AsyncConnection, meter_id: int, first: datetime, last: datetime) -> list[tuple[Any, ...]]:
    """Return a meter's curve in a span, and the points next to it: instant, energy to date, opens, channels, marks."""
    return await _rows(conn, "desk_points", {"meter_id": meter_id, "first": first, "last": last})


async def read_events(
    conn: AsyncConnection, spans: DeskSpans, after_codes: Sequence[int], *, most: int
) -> list[tuple[Any, ...]]:
    """Return events by meter, instant and code."""
    return await _rows(conn, "desk_events", spans.parameters(most) | {"codes": list(after_codes)})


async def read_meters(
    conn: AsyncConnection, whose: DeskWhose, ids: Sequence[int], *, most: int
) -> list[dict[str, Any]]:
    """Return those of some meters that fit where they stand now, by id."""
    return await _records(conn, "desk_meters_listed", {**asdict(whose), "ids": list(ids), "most": most})


async def read_accounts(
    conn: AsyncConnection, ids: Sequence[int], calendar: LocalCalendar, *, with_balance: bool
) -> list[dict[str, Any]]:
    """Return accounts by id; their running balance at money time is None for those without a billing meter."""
    rows = await _records(conn, "desk_accounts_listed", {"ids": list(ids)})
    for row in rows:
        row.update(currency=None, balance_minor=None, balance_at=None)
    for first in range(0, len(rows) if with_balance else 0, ACCOUNTS_A_LOOK):
        some = rows[first : first + ACCOUNTS_A_LOOK]
        views = await look(conn, [row["id"] for row in some], calendar)
        for row in some:
            view = views.get(row["id"])
            if view is not None:
                known_ms = max(view.points[-1].at_ms, calendar.midnight_ms(view.checkpoint.through))
                row.update(
                    currency=view.terms.tariff.currency,
                    balance_minor=view.balance_minor(calendar),
                    balance_at=from_ms(known_ms),
                )
    return rows


async def read_charges(conn: AsyncConnection, parameters: Mapping[str, Any], *, most: int) -> list[dict[str, Any]]:
    """Return usage journals of some accounts by account and journal.

    `parameters`: account_ids, afters (journal ids); first_day, last_day; first, last (instants).
    """
    return await _records(conn, "desk_charges", {**parameters, "most": most})


async def read_charge_sums(
    conn: AsyncConnection, parameters: Mapping[str, Any], *, most: int, by_month: bool
) -> list[dict[str, Any]]:
    """Return usage of some accounts by bill part or month; `parameters` as for `read_charges`, afters by their `n`."""
    rows = await _records(conn, "desk_charge_sums", {**parameters, "most": most, "by_month": by_month})
    for row in rows:
        lines: dict[str, int] = {}
        for each in row["lines"]:
            for name, amount_minor in each.items():
                lines[name] = lines.get(name, 0) + amount_minor
        row.update(lines=lines, charge_minor=sum(lines.values()))
    return rows


async def read_similar(conn: AsyncConnection, parameters: Mapping[str, Any]) -> tuple[int, list[int] | None]:
    """Return how many accounts are like one, and the quartiles of what they used, Wh; see the query's parameters."""
    count, quartiles = (await _rows(conn, "desk_similar", parameters))[0]
    return count, quartiles


async def may_read_feeder(conn: AsyncConnection, feeder: str, only_area: str | None) -> bool:
    """Tell whether a feeder is there, and all of it in an area where one is named."""
    return bool((await _ids(conn, "desk_feeder", {"feeder": feeder, "only_area": only_area}))[0])


async def read_feeder_days(conn: AsyncConnection, feeder: str, first: date, last: date) -> list[tuple[Any, ...]]:
    """Return what went into a feeder by its own meter: day, import, export, quality."""
    return await _rows(conn, "desk_feeder_days", {"feeder": feeder, "first": first, "last": last})


async def set_feeder_meter(conn: AsyncConnection, feeder: str, meter: str, from_day: date, *, by: str) -> bool:
    """Let a meter measure a feeder from a day on; False for an unknown meter, or a day that has one."""
    parameters = {"feeder": feeder, "meter": meter, "from_day": from_day, "set_by": by}
    cursor = await conn.execute(sql("desk_set_feeder_meter"), parameters)
    return cursor.rowcount == 1


def _array_of_times(times: Sequence[datetime] | Sequence[date]) -> str:
    """Write instants or days as PostgreSQL reads an array: a tenth of what psycopg takes for a list."""
    return "{" + ",".join([each.isoformat() for each in times]) + "}"


async def _ids(conn: AsyncConnection, name: str, parameters: Mapping[str, Any]) -> list[int]:
    return [row[0] for row in await _rows(conn, name, parameters)]


async def _rows(conn: AsyncConnection, name: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    # Of the types of the statement's columns. Binary rows are read in half the time of texts.
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(sql(name), parameters)
        return await cursor.fetchall()


async def _records(conn: AsyncConnection, name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql(name), parameters)
        return await cursor.fetchall()
