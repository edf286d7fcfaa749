"""A statement as plain text of 100 columns and as CSV.

Stage: after `billing.statement`. Enters: a statement. Leaves: text; the same figures in either form, printed from
integers. Never: the locale, a file.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from billing.money import format_minor
from billing.statement import Statement, StatementRow, format_kwh, printable

TEXT_COLUMNS = 100
# What numbers need comes first; with this left for sentences, amounts of up to 99999999.99 fit the width.
_WHAT_COLUMNS_MIN = 16
# A title breaks at blanks; its longest word and an amount of up to 99999.99 fit.
_TITLE_COLUMNS = 11
_GAP = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """A column of a text table: its title and one cell a row, the last row being the total."""

    title: str
    cells: tuple[str, ...]
    left: bool = False

    def width(self) -> int:
        """Return how wide the column is when its title is broken into lines."""
        cells = max((len(cell) for cell in self.cells), default=0)
        return max(cells, *(len(line) for line in _title_lines(self.title)))


def render_text(statement: Statement) -> str:
    """Print a statement for a screen or a printer: the account's rows, then the bill lines of each.

    Shape: lines of at most `TEXT_COLUMNS` characters, numbers right-aligned; a row has the same number in both tables.
    """
    lines = ["ACCOUNT STATEMENT", ""]
    labels = head_lines(statement)
    label_columns = max(len(label) for label, _ in labels) + 2
    for label, value in labels:
        lines += _wrapped(value, TEXT_COLUMNS, first=f"{label}:".ljust(label_columns), rest=" " * label_columns)
    lines += ["", *_main_table(statement), "", *_wrapped(sum_line(statement), TEXT_COLUMNS)]
    if statement.columns:
        lines += ["", "WHAT WAS CHARGED, LINE BY LINE", ""]
        lines += _wrapped("Numbers are those of the rows above; the lines of a row add up to Charged.", TEXT_COLUMNS)
        for block in _line_blocks(statement):
            lines += ["", *_table(block)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def render_csv(statement: Statement) -> str:
    """Print a statement as CSV: opening balance, rows, total, closing balance.

    Source: RFC 4180, lines that end in CR LF, cells with comma, quote or line break in quotes.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    names = [name for name, _ in statement.columns]
    blank_lines = [""] * len(names)
    writer.writerow(csv_titles(statement))
    month_kwh, opening = format_kwh(statement.opening.month_wh), format_minor(statement.opening.balance_minor)
    first, last = statement.first.isoformat(), statement.last.isoformat()
    writer.writerow([first, "Opening balance", "", month_kwh, "", *blank_lines, "", "", opening, ""])
    for row in statement.rows:
        month = "" if row.month is None else f"{row.month:%Y-%m}"
        writer.writerow(
            [
                row.day.isoformat(),
                row.text,
                kwh_cell(row.energy_wh),
                kwh_cell(row.month_wh),
                month,
                *(line_cell(row, name) for name in names),
                money_cell(row.charge_minor),
                money_cell(row.credit_minor),
                format_minor(row.balance_minor),
                "yes" if row.posted else "no",
            ]
        )
    totals = statement.totals
    sums = [format_minor(totals.lines[name]) for name in names]
    charged, credited = format_minor(totals.charge_minor), format_minor(totals.credit_minor)
    writer.writerow([last, "Total", format_kwh(totals.energy_wh), "", "", *sums, charged, credited, "", ""])
    closing = format_minor(statement.closing_minor)
    writer.writerow([last, "Closing balance", "", "", "", *blank_lines, "", "", closing, ""])
    return stream.getvalue()


def csv_titles(statement: Statement) -> list[str]:
    """Return the titles of the CSV's columns."""
    lines = [title for _, title in statement.columns]
    return ["Date", "What", "kWh", "Month to date kWh", "Of month", *lines, "Charged", "Credited", "Balance", "Posted"]


def head_lines(statement: Statement) -> list[tuple[str, str]]:
    """Return label and value of what stands above the rows."""
    head = statement.head
    return [
        ("Account", head.account_number),
        ("Name", printable(head.consumer)),
        ("Meter", printable(head.meter_serial)),
        ("Period", f"{statement.first} to {statement.last}, days of {head.time_zone}"),
        ("Amounts in", head.currency),
    ]


def sum_line(statement: Statement) -> str:
    """Say how the closing balance comes about."""
    return (
        f"Opening balance {format_minor(statement.opening.balance_minor)}"
        f" - charged {format_minor(statement.totals.charge_minor)}"
        f" + credited {format_minor(statement.totals.credit_minor)}"
        f" = closing balance {format_minor(statement.closing_minor)}"
    )


def kwh_cell(energy_wh: int | None) -> str:
    """Print energy, or nothing where there is none to show."""
    return "" if energy_wh is None else format_kwh(energy_wh)


def money_cell(amount_minor: int | None) -> str:
    """Print an amount, or nothing where the column does not concern the row."""
    return "" if amount_minor is None else format_minor(amount_minor)


def line_cell(row: StatementRow, name: str) -> str:
    """Print one bill line of a row; a usage row without that line shows zero."""
    return "" if row.charge_minor is None else format_minor(row.lines.get(name, 0))


def _main_table(statement: Statement) -> list[str]:
    rows, totals = statement.rows, statement.totals
    opening, closing = format_minor(statement.opening.balance_minor), format_minor(statement.closing_minor)
    month_kwh = format_kwh(statement.opening.month_wh)
    days = [statement.first, *(row.day for row in rows), statement.last, statement.last]
    whats = ("Opening balance", *(row.text for row in rows), "Total", "Closing balance")
    keys = [
        _Column(title="No.", cells=("", *map(str, range(1, len(rows) + 1)), "", "")),
        _Column(title="Date", cells=tuple(day.isoformat() for day in days), left=True),
    ]
    numbers = [
        _framed("kWh", "", [kwh_cell(row.energy_wh) for row in rows], format_kwh(totals.energy_wh)),
        _framed("kWh of month to date", month_kwh, [kwh_cell(row.month_wh) for row in rows], ""),
        _framed("Charged", "", [money_cell(row.charge_minor) for row in rows], format_minor(totals.charge_minor)),
        _framed("Credited", "", [money_cell(row.credit_minor) for row in rows], format_minor(totals.credit_minor)),
        _framed("Balance", opening, [format_minor(row.balance_minor) for row in rows], "", closing),
    ]
    taken = sum(column.width() + len(_GAP) for column in [*keys, *numbers])
    what = _Column(title="What", cells=whats, left=True)
    return _table([*keys, what, *numbers], what_columns=max(_WHAT_COLUMNS_MIN, TEXT_COLUMNS - taken))


def _framed(title: str, opening: str, cells: Sequence[str], total: str, closing: str = "") -> _Column:
    return _Column(title=title, cells=(opening, *cells, total, closing))


def _line_blocks(statement: Statement) -> Iterator[list[_Column]]:
    """Yield tables of bill lines side by side, as many as fit, the charge last of all."""
    usage = [(number, row) for number, row in enumerate(statement.rows, start=1) if row.charge_minor is not None]
    totals = statement.totals
    keys = [
        _Column(title="No.", cells=(*(str(number) for number, _ in usage), "")),
        _Column(title="Date", cells=(*(row.day.isoformat() for _, row in usage), "Total"), left=True),
    ]
    columns = [
        _Column(
            title=title,
            cells=(*(line_cell(row, name) for _, row in usage), format_minor(totals.lines[name])),
        )
        for name, title in statement.columns
    ]
    charged = (*(money_cell(row.charge_minor) for _, row in usage), format_minor(totals.charge_minor))
    columns.append(_Column(title="Charged", cells=charged))
    key_columns = sum(key.width() for key in keys) + len(_GAP)
    block, taken = list(keys), key_columns
    for column in columns:
        needed = column.width() + len(_GAP)
        if len(block) > len(keys) and taken + needed > TEXT_COLUMNS:
            yield block
            block, taken = list(keys), key_columns
        block.append(column)
        taken += needed
    yield block


def _table(columns: Sequence[_Column], *, what_columns: int | None = None) -> list[str]:
    """Lay a table out: titles broken into lines, a rule, rows, a rule, totals.

    `what_columns` is the width of the column of sentences, which break into lines; the others never do.
    """
    widths = [column.width() for column in columns]
    sentences = next((n for n, column in enumerate(columns) if column.title == "What"), None)
    footers = 1
    if sentences is not None and what_columns is not None:
        widths[sentences], footers = what_columns, 2
    titles = [_title_lines(column.title) for column in columns]
    height = max(len(lines) for lines in titles)
    lines = [
        _joined(columns, widths, [([""] * (height - len(each)) + each)[number] for each in titles])
        for number in range(height)
    ]
    rule = _GAP.join("-" * width for width in widths)
    lines.append(rule)
    count = len(columns[0].cells)
    for number in range(count):
        if number == count - footers:
            lines.append(rule)
        cells = [column.cells[number] for column in columns]
        broken = [""] if sentences is None else _wrapped(cells[sentences], widths[sentences]) or [""]
        for part, text in enumerate(broken):
            shown = cells if part == 0 else [""] * len(cells)
            if sentences is not None:
                shown = [*shown[:sentences], text, *shown[sentences + 1 :]]
            lines.append(_joined(columns, widths, shown))
    return lines


def _joined(columns: Sequence[_Column], widths: Sequence[int], cells: Sequence[str]) -> str:
    padded = [
        cell.ljust(width) if column.left else cell.rjust(width)
        for column, width, cell in zip(columns, widths, cells, strict=True)
    ]
    return _GAP.join(padded).rstrip()


def _title_lines(title: str) -> list[str]:
    return textwrap.wrap(title, _TITLE_COLUMNS, break_on_hyphens=False) or [""]


def _wrapped(text: str, columns: int, *, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(text, columns, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
