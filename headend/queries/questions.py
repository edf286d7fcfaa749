"""Questions to the desk as values: what, whose, from when to when, by which interval, which columns.

Stage: first behind HTTP and the command line. Enters: texts of parameters. Leaves: a question that fits, or a refusal
with a code. Never: a look at the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum

from billing.calendar import LocalCalendar, to_ms
from headend.queries.columns import CHARGE_SUMS, COLUMNS, TOTALS, Column, Subject
from headend.queries.cursors import Key, read_cursor, write_cursor
from headend.queries.errors import QueryRefused

DAY_MS = 86_400_000
YEARS = (2000, 2100)
# A page is encoded at once: 10,000 rows are some 2 MB of JSON and 0.1 s of a core.
PAGE_ROWS = 1_000
PAGE_ROWS_MAX = 10_000
# Sums are of all meters of an area at once: a month of hours of 10,000 meters are 7 million buckets, some seconds.
_DAYS_MAX_OF_TOTALS = {"hour": 31, "day": 400, "month": 4_000, "billing": 4_000}
_FIELDS_MAX = 50
# Slots are made from readings when they are asked for: 0.1 s for a year of a meter.
SLOTS_DAYS_MAX = 400


class Interval(StrEnum):
    """How finely an answer is cut; a billing period of profiles is a calendar month, of charges a bill part."""

    RAW = "raw"
    QUARTER_HOUR = "15min"
    HALF_HOUR = "30min"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    BILLING = "billing"


INTERVALS: Mapping[Subject, tuple[Interval, ...]] = {
    Subject.READINGS: (Interval.RAW,),
    Subject.PROFILES: (
        Interval.HOUR, Interval.QUARTER_HOUR, Interval.HALF_HOUR, Interval.DAY, Interval.MONTH, Interval.BILLING,
    ),
    Subject.CHARGES: (Interval.DAY, Interval.MONTH, Interval.BILLING),
}  # fmt: skip
SLOT_MS: Mapping[Interval, int] = {Interval.QUARTER_HOUR: 900_000, Interval.HALF_HOUR: 1_800_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Whose:
    """Of whom: everything that is named must fit. `only_area` is the one that a reader's key is bound to."""

    meter: str | None = None
    consumer: int | None = None
    account: str | None = None
    area: str | None = None
    feeder: str | None = None
    make: str | None = None
    only_area: str | None = None

    @property
    def is_one(self) -> bool:
        """Tell whether it is about one meter or consumer, and not about many."""
        return any(each is not None for each in (self.meter, self.account, self.consumer))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question.

    Invariants: `from_ms` <= `to_ms`; both are 0 for meters and accounts, which are listed as they are now; `after` is
    the key of the last row given before, None at the start; with `total` buckets are summed over all meters.
    """

    subject: Subject
    whose: Whose
    from_ms: int
    to_ms: int
    interval: Interval | None
    columns: tuple[Column, ...]
    total: bool
    limit: int
    after: Key | None

    @property
    def identity(self) -> str:
        """Return what a cursor of this question belongs to: all of it but columns, limit and place."""
        return repr((self.subject, self.whose, self.from_ms, self.to_ms, self.interval, self.total))

    def cursor(self, key: Key) -> str:
        """Return the cursor behind a row."""
        return write_cursor(self.identity, key)


def read_question(
    subject: Subject, asked: Mapping[str, str | None], calendar: LocalCalendar, *, only_area: str | None = None
) -> Question:
    """Read a question from the texts of its parameters; a missing one is None or not there.

    Raises: QueryRefused.
    """
    interval = _interval(subject, asked.get("interval"))
    total = _flag("total", asked.get("total"))
    from_ms, to_ms = _span(subject, asked, calendar)
    if total:
        _require_total(subject, interval, to_ms - from_ms)
    elif interval in SLOT_MS and to_ms - from_ms > SLOTS_DAYS_MAX * DAY_MS:
        raise QueryRefused("period_too_long", f"{interval}: expected at most {SLOTS_DAYS_MAX} days, got more")
    question = Question(
        subject=subject,
        whose=_whose(asked, only_area),
        from_ms=from_ms,
        to_ms=to_ms,
        interval=interval,
        columns=_chosen(columns_of(subject, interval, total=total), asked.get("fields")),
        total=total,
        limit=_limit(asked.get("limit")),
        after=None,
    )
    cursor = asked.get("cursor")
    if cursor is None:
        return question
    return behind(question, read_cursor(question.identity, cursor, key_length(subject)))


def behind(question: Question, key: Key | None) -> Question:
    """Return the same question from behind a row on."""
    return Question(
        subject=question.subject,
        whose=question.whose,
        from_ms=question.from_ms,
        to_ms=question.to_ms,
        interval=question.interval,
        columns=question.columns,
        total=question.total,
        limit=question.limit,
        after=key,
    )


def key_length(subject: Subject) -> int:
    """Return how many numbers name a row."""
    return {Subject.EVENTS: 3, Subject.METERS: 1, Subject.ACCOUNTS: 1}.get(subject, 2)


def columns_of(subject: Subject, interval: Interval | None, *, total: bool = False) -> tuple[Column, ...]:
    """Return all columns of an answer."""
    if subject is Subject.PROFILES and total:
        return TOTALS
    if subject is Subject.CHARGES and interval is not Interval.DAY:
        return CHARGE_SUMS
    return COLUMNS[subject]


def read_instant(name: str, text: str, calendar: LocalCalendar) -> int:
    """Read an instant in milliseconds: with its zone, or in local time; a day alone is its local midnight.

    Raises: QueryRefused.
    """
    # A plus sign that was not escaped in an address arrives as a space.
    plain = text.strip()
    if " " in plain and "T" in plain:
        plain = plain.replace(" ", "+")
    try:
        if len(plain) == len("2026-11-22"):
            day = date.fromisoformat(plain)
            at = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - Its zone is the calendar's, below.
        else:
            at = datetime.fromisoformat(plain)
    except ValueError:
        at = None
    if at is None or not YEARS[0] <= at.year < YEARS[1]:
        raise QueryRefused(
            "bad_instant",
            f"{name}: expected a day or an instant of {YEARS[0]} to {YEARS[1] - 1} such as 2026-11-01 or "
            f"2026-11-01T06:00:00+05:30, got {text[:40]!r}",
        )
    return to_ms(at.replace(tzinfo=calendar.zone) if at.tzinfo is None else at)


def read_days(asked: Mapping[str, str | None]) -> tuple[date, date]:
    """Read a span of whole local days, the second one excluded.

    Raises: QueryRefused.
    """
    found = []
    for name in ("from", "to"):
        try:
            day = date.fromisoformat((asked.get(name) or "").strip())
        except ValueError:
            day = None
        if day is None or not YEARS[0] <= day.year < YEARS[1]:
            raise QueryRefused("bad_day", f"{name}: expected a local day such as 2026-11-01, got none of that form")
        found.append(day)
    if not timedelta(0) < found[1] - found[0] <= timedelta(days=_DAYS_MAX_OF_TOTALS["day"]):
        days = _DAYS_MAX_OF_TOTALS["day"]
        raise QueryRefused("bad_span", f"from, to: expected 1 to {days} days, got {(found[1] - found[0]).days}")
    return found[0], found[1]


def _interval(subject: Subject, text: str | None) -> Interval | None:
    known = INTERVALS.get(subject, ())
    if text is None:
        return known[0] if known else None
    if text not in {each.value for each in known}:
        names = ", ".join(each.value for each in known) or "none"
        raise QueryRefused("bad_interval", f"interval of {subject.value}: expected {names}, got {text[:20]!r}")
    return Interval(text)


def _span(subject: Subject, asked: Mapping[str, str | None], calendar: LocalCalendar) -> tuple[int, int]:
    if subject in (Subject.METERS, Subject.ACCOUNTS):
        return 0, 0
    first, last = asked.get("from"), asked.get("to")
    if first is None or last is None:
        raise QueryRefused(
            "span_missing", f"{subject.value}: expected `from` and `to`, got {'no to' if first else 'no from'}"
        )
    from_ms, to_ms_ = read_instant("from", first, calendar), read_instant("to", last, calendar)
    if to_ms_ < from_ms:
        raise QueryRefused("bad_span", "to: expected an instant not before `from`, got an earlier one")
    return from_ms, to_ms_


def _require_total(subject: Subject, interval: Interval | None, span_ms: int) -> None:
    days_max = _DAYS_MAX_OF_TOTALS.get(interval.value) if interval else None
    if subject is not Subject.PROFILES or days_max is None:
        raise QueryRefused("bad_total", "total: expected profiles by hour, day or month, got another question")
    if span_ms > days_max * DAY_MS:
        raise QueryRefused(
            "period_too_long", f"total by {interval}: expected at most {days_max} days, got {span_ms // DAY_MS}"
        )


def _whose(asked: Mapping[str, str | None], only_area: str | None) -> Whose:
    texts: dict[str, str | None] = {}
    for name in ("meter", "account", "area", "feeder", "make"):
        text = asked.get(name)
        if text is not None and ("\0" in text or len(text) > 200):
            raise QueryRefused("bad_name", f"{name}: expected at most 200 characters and no zero, got others")
        texts[name] = text
    consumer = asked.get("consumer")
    if consumer is not None and not (consumer.isascii() and consumer.isdigit() and int(consumer) < 2**62):
        raise QueryRefused("bad_name", "consumer: expected a consumer's number, got something else")
    return Whose(consumer=None if consumer is None else int(consumer), only_area=only_area, **texts)


def _chosen(columns: tuple[Column, ...], text: str | None) -> tuple[Column, ...]:
    if text is None:
        return columns
    by_name = {column.name: column for column in columns}
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in by_name]
    if unknown or len(names) > _FIELDS_MAX or len(set(names)) != len(names):
        raise QueryRefused(
            "bad_fields", f"fields: expected each at most once of {','.join(by_name)}, got {text[:80]!r}"
        )
    return tuple(by_name[name] for name in names)


def _limit(text: str | None) -> int:
    if text is None:
        return PAGE_ROWS
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= PAGE_ROWS_MAX):
        raise QueryRefused("bad_limit", f"limit: expected 1 to {PAGE_ROWS_MAX} rows, got {text[:20]!r}")
    return int(text)


def _flag(name: str, text: str | None) -> bool:
    if text not in (None, "true", "false"):
        raise QueryRefused("bad_total", f"{name}: expected true or false, got {text[:20]!r}")
    return text == "true"
