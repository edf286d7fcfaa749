"""A statement as one HTML page for the screen and the printer.

Stage: after `billing.statement`. Enters: a statement. Leaves: a page that needs nothing else: no script, no font, no
picture. Never: text that was not escaped. The table has a caption, a header for each column and row, and totals.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from billing.money import format_minor
from billing.statement import Statement, StatementRow, format_kwh
from billing.statement_text import head_lines, kwh_cell, line_cell, money_cell, sum_line

_STYLE = """\
@page { size: A4 landscape; margin: 12mm; }
body { font: 11pt/1.35 sans-serif; color: #000; background: #fff; margin: 1.5em; }
h1 { font-size: 1.4em; margin: 0 0 .5em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em; margin: 0 0 1em; }
dt { font-weight: bold; }
dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .85em; }
caption { text-align: left; font-weight: bold; padding-bottom: .4em; }
th, td { border: 1px solid #767676; padding: .2em .4em; vertical-align: top; }
thead th { background: #eee; vertical-align: bottom; }
th { font-weight: normal; text-align: left; white-space: nowrap; }
thead th { font-weight: bold; white-space: normal; }
td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
tr.sum th, tr.sum td { font-weight: bold; }
tr.open td, tr.open th { font-style: italic; }
tr { break-inside: avoid; }
thead { display: table-header-group; }
tfoot { display: table-row-group; }
@media print { body { margin: 0; font-size: 9pt; } .wide { overflow: visible; } }
"""


def render_html(statement: Statement) -> str:
    """Print a statement as a whole page."""
    title = f"Statement of account {statement.head.account_number}, {statement.first} to {statement.last}"
    facts = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>\n" for label, value in head_lines(statement) if value
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>Account statement</h1>\n<dl>\n{facts}</dl>\n"
        f'<div class="wide" role="region" aria-label="Statement rows" tabindex="0">\n{_table(statement)}</div>\n'
        f"<p>{escape(sum_line(statement))}</p>\n"
        "<p>Every column adds up to its total. Bill lines of a row add up to Charged.</p>\n"
        "</main>\n</body>\n</html>\n"
    )


def _table(statement: Statement) -> str:
    titles = ["Date", "What", "kWh", "kWh of month to date", *(title for _, title in statement.columns)]
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in [*titles, "Charged", "Credited", "Balance"])
    body = "".join(_row(statement, row) for row in statement.rows)
    return (
        f"<table>\n<caption>Every day and every payment, amounts in {escape(statement.head.currency)}</caption>\n"
        f"<thead>\n<tr>{heads}</tr>\n</thead>\n<tbody>\n{_opening(statement)}{body}</tbody>\n"
        f"<tfoot>\n{_totals(statement)}{_closing(statement)}</tfoot>\n</table>\n"
    )


def _opening(statement: Statement) -> str:
    numbers = ["", format_kwh(statement.opening.month_wh), *([""] * len(statement.columns))]
    money = ["", "", format_minor(statement.opening.balance_minor)]
    return _cells("sum", statement.first.isoformat(), "Opening balance", [*numbers, *money])


def _row(statement: Statement, row: StatementRow) -> str:
    lines = [line_cell(row, name) for name, _ in statement.columns]
    numbers = [kwh_cell(row.energy_wh), kwh_cell(row.month_wh), *lines]
    money = [money_cell(row.charge_minor), money_cell(row.credit_minor), format_minor(row.balance_minor)]
    return _cells("" if row.posted else "open", row.day.isoformat(), row.text, [*numbers, *money])


def _totals(statement: Statement) -> str:
    totals = statement.totals
    lines = [format_minor(totals.lines[name]) for name, _ in statement.columns]
    numbers = [format_kwh(totals.energy_wh), "", *lines]
    money = [format_minor(totals.charge_minor), format_minor(totals.credit_minor), ""]
    return _cells("sum", statement.last.isoformat(), "Total", [*numbers, *money])


def _closing(statement: Statement) -> str:
    blank = [""] * (len(statement.columns) + 4)
    balance = format_minor(statement.closing_minor)
    return _cells("sum", statement.last.isoformat(), "Closing balance", [*blank, balance])


def _cells(kind: str, day: str, what: str, numbers: Iterable[str]) -> str:
    shown = "".join(f'<td class="n">{escape(number)}</td>' for number in numbers)
    row_class = f' class="{kind}"' if kind else ""
    return f'<tr{row_class}><th scope="row">{escape(day)}</th><td>{escape(what)}</td>{shown}</tr>\n'
