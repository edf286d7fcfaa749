"""The statement of an account: what came in and what was charged, day by day and line by line.

Stage: after the fact, between journals (and the open days that readings already tell of) and what a consumer reads.
Enters: entries of one account. Leaves: rows and totals. Never: rating, the database, a clock. Every column can be
added up by hand: closing balance = opening balance - charged + credited.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import assert_never

from billing.calendar import period_of
from billing.journals import USAGE_KINDS, JournalKind
from billing.money import BillingError, format_minor
from billing.rating import Lines, added, total
from billing.running import EdgeQuality

# A year and the month it is asked in. A statement is answered from memory, some 100 kB a year as JSON.
STATEMENT_DAYS_MAX = 400
# Days that every calendar and database of ours can hold.
DAY_MIN, DAY_MAX = date(1970, 1, 1), date(2999, 12, 31)
WH_PER_KWH = 1000

# The order and names of bill lines where the caller has no better ones.
_LINE_TITLES: Mapping[str, str] = {
    "fppca": "Fuel and power adjustment",
    "fixed": "Fixed charge",
    "meter_rent": "Meter rent",
    "demand": "Demand charge",
    "minimum": "Minimum charge",
    "rebate": "Prepaid rebate",
    "duty": "Electricity duty",
    "subsidy": "Government subsidy",
}
# Not from the platform's locale, which would print one statement in two ways.
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_ENERGY_LINE = re.compile(r"energy_(\d+)", re.ASCII)
_ZONE_PREFIX = "zone_"
_QUALITY_NOTES = {
    EdgeQuality.READ: "",
    EdgeQuality.ESTIMATED: ", day's end estimated",
    EdgeQuality.UNREAD: ", meter not heard at day's end",
}


class StatementError(BillingError):
    """Base of what statements refuse."""

    code = "statement_error"


class BadPeriod(StatementError):
    """No such days, or the last of them before the first."""

    code = "bad_period"


class PeriodTooLong(StatementError):
    """More days than one statement holds."""

    code = "period_too_long"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementHead:
    """Whose statement it is."""

    account_number: str
    consumer: str
    meter_serial: str
    currency: str
    time_zone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One journal of an account, or one open day.

    Units: `amount_minor` is what it adds to the consumer's money; `noted_minor` is kept apart from it.
    Invariants: `local_day` only for days; `period` and `lines` only for usage, whose amount is less their sum.
    `booked_on` is the local date of booking; `about_on` that of the journal it is about.
    """

    kind: JournalKind
    booked_on: date
    amount_minor: int
    local_day: date | None = None
    period: date | None = None
    energy_wh: int = 0
    quality: EdgeQuality | None = None
    lines: Lines | None = None
    reason: str | None = None
    vendor: str | None = None
    token_tail: str | None = None
    about_on: date | None = None
    noted_minor: int = 0
    posted: bool = True

    def __post_init__(self) -> None:
        assert (self.kind in USAGE_KINDS) == (self.lines is not None), f"entry {self.kind}: lines only for usage"
        if self.lines is not None:
            due_minor = -total(self.lines)
            assert self.amount_minor == due_minor, f"entry {self.kind}: expected {due_minor}, got {self.amount_minor}"

    @property
    def day(self) -> date:
        """The date it stands under: the day that was used, or else the day of booking."""
        return self.booked_on if self.local_day is None else self.local_day

    @property
    def energy_month(self) -> date | None:
        """The month that its energy belongs to; None for money events."""
        used_on = self.local_day or self.period
        return None if used_on is None else period_of(used_on)


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """What entries dated before the first day came to: balance, and energy of the first day's month."""

    balance_minor: int = 0
    month_wh: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementRow:
    """One printed row.

    Invariants: usage rows have energy, lines and their sum as charge, other rows a credit (below zero for money taken);
    `month` is set where energy of another month than the row's is charged, and then `month_wh` is None.
    """

    day: date
    kind: JournalKind
    text: str
    energy_wh: int | None
    month_wh: int | None
    month: date | None
    lines: Lines
    charge_minor: int | None
    credit_minor: int | None
    balance_minor: int
    reason: str | None
    vendor: str | None
    token_tail: str | None
    quality: EdgeQuality | None
    posted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementTotals:
    """The sum of each column."""

    energy_wh: int
    lines: Lines
    charge_minor: int
    credit_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """An account's statement of some local days.

    Invariants: closing balance = opening balance - charged + credited; each total is the sum of its column; the lines
    of a row, and of the totals, sum to its charge; the balance after the last row is the closing one. `columns` holds
    name and title of every bill line that occurs, in printing order.
    """

    head: StatementHead
    first: date
    last: date
    opening: Brought
    rows: tuple[StatementRow, ...]
    columns: tuple[tuple[str, str], ...]
    totals: StatementTotals
    closing_minor: int

    def __post_init__(self) -> None:
        totals, whose = self.totals, f"statement of {self.head.account_number}"
        closing_minor = self.opening.balance_minor - totals.charge_minor + totals.credit_minor
        assert closing_minor == self.closing_minor, f"{whose}: expected to close at {closing_minor}"
        last_minor = self.rows[-1].balance_minor if self.rows else self.opening.balance_minor
        assert last_minor == self.closing_minor, f"{whose}: expected the last row to close at {last_minor}"
        assert total(totals.lines) == totals.charge_minor, f"{whose}: lines and charge differ"
        assert all(total(row.lines) == (row.charge_minor or 0) for row in self.rows), f"{whose}: lines of a row"


def statement_days(first: date | None, last: date | None, *, today: date) -> tuple[date, date | None]:
    """Return the days that are asked for: by default those from the month's first to the latest, None.

    Raises: BadPeriod, PeriodTooLong.
    """
    end = today if last is None else last
    begin = period_of(end) if first is None else first
    if not DAY_MIN <= begin <= end <= DAY_MAX:
        raise BadPeriod(
            f"statement: expected a first day from {DAY_MIN} and a last one from it to {DAY_MAX}, got {begin} and {end}"
        )
    require_days(begin, end)
    return begin, last


def require_days(first: date, last: date) -> None:
    """Refuse more days than one statement holds.

    Raises: PeriodTooLong.
    """
    days = (last - first).days + 1
    if days > STATEMENT_DAYS_MAX:
        raise PeriodTooLong(f"statement: expected at most {STATEMENT_DAYS_MAX} days, got {days}, {first} to {last}")


def make_statement(
    head: StatementHead,
    entries: Iterable[Entry],
    *,
    first: date,
    last: date,
    brought: Brought,
    line_titles: Mapping[str, str],
) -> Statement:
    """Make the statement of the days from `first` to `last`.

    `brought` sums entries that are not given; given ones dated before `first` are added to it, those after `last`
    left out. Entries of one date keep their order, the use of the whole day last.
    """
    require_days(first, last)
    due = [entry for entry in entries if entry.day <= last]
    ordered = sorted(due, key=lambda entry: (entry.day, entry.kind is JournalKind.DAY))
    opening = _opening(brought, [entry for entry in ordered if entry.day < first], first)
    rows = _rows([entry for entry in ordered if entry.day >= first], opening, period_of(first))
    totals = _totals(rows)
    return Statement(
        head=head,
        first=first,
        last=last,
        opening=opening,
        rows=rows,
        columns=tuple((name, line_title(name, line_titles)) for name in printing_order(totals.lines, line_titles)),
        totals=totals,
        closing_minor=rows[-1].balance_minor if rows else opening.balance_minor,
    )


def line_title(name: str, titles: Mapping[str, str]) -> str:
    """Return the title of a bill line's column in plain English."""
    if name in titles:
        return titles[name]
    slab = _ENERGY_LINE.fullmatch(name)
    if slab is not None:
        return f"Energy, step {slab[1]}"
    if name.startswith(_ZONE_PREFIX):
        return f"Time of day, {_words(name.removeprefix(_ZONE_PREFIX))}"
    return _LINE_TITLES.get(name, _words(name).capitalize())


def format_kwh(energy_wh: int) -> str:
    """Print energy in kWh with three decimals, exactly, e.g. `-0.250`."""
    kwh, wh = divmod(abs(energy_wh), WH_PER_KWH)
    return f"{'-' if energy_wh < 0 else ''}{kwh}.{wh:03d}"


def format_month(month: date) -> str:
    """Print a month, e.g. `June 2026`."""
    return f"{_MONTHS[month.month - 1]} {month.year}"


def printable(text: str) -> str:
    """Return a text on one line without control characters, fit for a terminal and a page."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())


def _opening(brought: Brought, earlier: Iterable[Entry], first: date) -> Brought:
    month = period_of(first)
    balance_minor, month_wh = brought.balance_minor, brought.month_wh
    for entry in earlier:
        balance_minor += entry.amount_minor
        month_wh += entry.energy_wh if entry.energy_month == month else 0
    return Brought(balance_minor=balance_minor, month_wh=month_wh)


def _rows(entries: Sequence[Entry], opening: Brought, first_month: date) -> tuple[StatementRow, ...]:
    balance_minor = opening.balance_minor
    months_wh = {first_month: opening.month_wh}
    rows = []
    for entry in entries:
        balance_minor += entry.amount_minor
        month = entry.energy_month
        if month is not None:
            months_wh[month] = months_wh.get(month, 0) + entry.energy_wh
        rows.append(_row(entry, balance_minor, months_wh))
    return tuple(rows)


def _row(entry: Entry, balance_minor: int, months_wh: Mapping[date, int]) -> StatementRow:
    usage = entry.lines is not None
    month = entry.energy_month
    own_month = month == period_of(entry.day)
    return StatementRow(
        day=entry.day,
        kind=entry.kind,
        text=_text(entry),
        energy_wh=entry.energy_wh if usage else None,
        month_wh=months_wh[month] if own_month and month is not None else None,
        month=None if own_month else month,
        lines=dict(entry.lines or {}),
        charge_minor=-entry.amount_minor if usage else None,
        credit_minor=None if usage else entry.amount_minor,
        balance_minor=balance_minor,
        reason=None if entry.reason is None else printable(entry.reason),
        vendor=None if entry.vendor is None else printable(entry.vendor),
        token_tail=entry.token_tail,
        quality=entry.quality,
        posted=entry.posted,
    )


def _totals(rows: Iterable[StatementRow]) -> StatementTotals:
    energy_wh, charge_minor, credit_minor = 0, 0, 0
    lines: Lines = {}
    for row in rows:
        energy_wh += row.energy_wh or 0
        charge_minor += row.charge_minor or 0
        credit_minor += row.credit_minor or 0
        lines = added(lines, row.lines)
    return StatementTotals(energy_wh=energy_wh, lines=lines, charge_minor=charge_minor, credit_minor=credit_minor)


def printing_order(lines: Iterable[str], titles: Mapping[str, str]) -> list[str]:
    """Order bill lines as a bill does: energy first, then as the titles say, then by name."""
    ranks = {name: number for number, name in enumerate(dict.fromkeys([*titles, *_LINE_TITLES]))}

    def rank(name: str) -> tuple[int, int, str]:
        slab = _ENERGY_LINE.fullmatch(name)
        if slab is not None:
            return 0, int(slab[1]), name
        return (1 if name.startswith(_ZONE_PREFIX) else 2), ranks.get(name, len(ranks)), name

    return sorted(lines, key=rank)


def _text(entry: Entry) -> str:
    """Say in plain words what a row is."""
    sentence = _usage_text(entry) if entry.lines is not None else _money_text(entry)
    if entry.reason is not None and entry.reason.strip():
        sentence += f": {printable(entry.reason)}"
    return sentence if entry.posted else f"{sentence}, not yet posted"


def _usage_text(entry: Entry) -> str:
    if entry.kind is JournalKind.DAY:
        # The end of an open day that no reading has passed is still to come.
        so_far = entry.quality is EdgeQuality.UNREAD and not entry.posted
        return "Use of the day" + (" so far" if so_far else _QUALITY_NOTES[entry.quality or EdgeQuality.READ])
    month = "" if entry.energy_month is None else f" {format_month(entry.energy_month)}"
    return f"Late usage of{month}" if entry.kind is JournalKind.LATE_USAGE else f"Correction of{month}"


def _money_text(entry: Entry) -> str:
    taken = entry.amount_minor < 0
    noted = format_minor(entry.noted_minor)
    match entry.kind:
        case JournalKind.VEND:
            return _recharge_text(entry)
        case JournalKind.REVERSAL:
            return "Recharge reversed" if entry.about_on is None else f"Recharge of {entry.about_on} reversed"
        case JournalKind.OPENING:
            given_back = taken and entry.about_on is not None
            return "Balance brought in at opening" + (" taken back" if given_back else "")
        case JournalKind.REFUND:
            return "Refund paid out" if taken else "Refund taken back"
        case JournalKind.ADJUSTMENT:
            return "Correction" if entry.about_on is None else f"Correction of an entry of {entry.about_on}"
        case JournalKind.SUBSIDY:
            return "Government subsidy taken back" if taken else "Government subsidy"
        case JournalKind.ARREARS_OPENING:
            return f"Old arrears of {noted} noted, apart from this balance"
        case JournalKind.ARREARS_RECOVERY:
            return "Payment towards old arrears" if taken else "Payment towards old arrears given back"
        case JournalKind.INTEREST:
            return "Interest taken back" if taken else "Interest credited"
        case JournalKind.SECURITY_OPENING:
            return f"Security deposit of {noted} noted, apart from this balance"
        case JournalKind.SECURITY:
            return "Moved to the security deposit" if taken else "Moved from the security deposit"
        case JournalKind.ABSENCE_DEPOSIT:
            return "Moved to the absence deposit" if taken else "Moved from the absence deposit"
        case JournalKind.WRITE_OFF:
            return "Write-off taken back" if taken else "Debt written off"
        case (
            JournalKind.DAY
            | JournalKind.LATE_USAGE
            | JournalKind.OVERHAUL
            | JournalKind.USAGE_BATCH
            | JournalKind.VENDOR_DEPOSIT
            | JournalKind.COUPON_SALE
        ):
            raise AssertionError(f"statement: expected a money event of an account, got {entry.kind}")
        case _:
            assert_never(entry.kind)


def _recharge_text(entry: Entry) -> str:
    where = f" at {printable(entry.vendor)}" if entry.vendor else ""
    token = f", token ending {entry.token_tail}" if entry.token_tail else ""
    return f"Recharge{where}{token}"


def _words(name: str) -> str:
    return name.replace("_", " ")
