"""A slip as one HTML page, for a screen, a receipt printer or a sheet of paper.

Stage: after a slip is made. Leaves: a page that needs nothing else: no script, no font, no picture; the QR code is
drawn in it. Never: text that was not escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import assert_never

import segno

from billing.statement import printable
from vending.slips.blocks import Amount, Block, Code, Digits, Fact, Notice, Section, Sentence, Slip

# 72 mm are what a printer of 80 mm can reach, on a roll of any length; a sheet of A4 has two such columns.
_STYLE = """\
@page { margin: 4mm; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #000; font: 9.5pt/1.3 sans-serif; }
main { width: 100%; max-width: 72mm; margin: 0 auto; overflow-wrap: anywhere; }
h1 { font-size: 1.2em; text-align: center; margin: .3em 0; }
.utility, .help { text-align: center; margin: .3em 0; }
.notice { border: 2px solid #000; padding: .3em .5em; margin: .5em 0; text-align: center; }
.notice strong { display: block; font-size: 1.25em; }
section { border-top: 1px dashed #000; margin-top: .4em; padding-top: .3em; break-inside: avoid; }
h2 { font-size: 1em; margin: 0 0 .2em; }
dl { margin: 0; }
dl div { display: flex; flex-wrap: wrap; justify-content: space-between; column-gap: .8em; }
dt { flex: 1 1 0; min-width: 40%; }
dd { margin: 0 0 0 auto; max-width: 100%; text-align: right; }
.amount dd { white-space: nowrap; font-variant-numeric: tabular-nums; }
.strong { font-weight: bold; }
.digits { margin: .6em 0; text-align: center; break-inside: avoid; }
.digits b { display: flex; flex-wrap: wrap; justify-content: center; gap: 0 .6em; font: bold 19pt/1.35 monospace; }
svg { display: block; width: 32mm; height: auto; margin: .3em auto; }
p { margin: .3em 0; }
@media screen { main { padding: 4mm 0; } }
@media print and (min-width: 150mm) {
  main { max-width: 152mm; columns: 2; column-gap: 8mm; }
  h1, .utility, .help { column-span: all; }
}
"""
_CODE_TITLE = "QR"


def render_html(slip: Slip) -> str:
    """Print a slip as a whole page."""
    title = f"{slip.title} {printable(slip.reference)}"
    utility, help_line = (printable(text or "") for text in (slip.utility.name, slip.utility.help_line))
    body = "".join(_blocks(slip))
    return (
        f'<!DOCTYPE html>\n<html lang="{slip.words.language.value}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + (f'<p class="utility">{escape(utility)}</p>\n' if utility else "")
        + f"<h1>{escape(slip.title)}</h1>\n{body}"
        + (f'<p class="help">{escape(help_line)}</p>\n' if help_line else "")
        + "</main>\n</body>\n</html>\n"
    )


def _blocks(slip: Slip) -> Iterator[str]:
    """Yield the blocks, rows that follow each other as one list, each section with what belongs to it."""
    inside = False
    for is_row, run in groupby(slip.blocks, key=lambda block: isinstance(block, Fact | Amount)):
        if is_row:
            rows = "".join(_row(slip, block) for block in run)
            yield f"<dl>\n{rows}</dl>\n"
            continue
        for block in run:
            if isinstance(block, Section):
                head = f"<h2>{escape(block.text)}</h2>\n" if block.text else ""
                yield f"{'</section>' if inside else ''}<section>\n{head}"
                inside = True
            else:
                yield _other(block)
    if inside:
        yield "</section>\n"


def _row(slip: Slip, block: Block) -> str:
    match block:
        case Fact():
            return f"<div><dt>{_text(block.label)}</dt><dd>{_text(block.value)}</dd></div>\n"
        case Amount():
            kind = "amount strong" if block.strong else "amount"
            money = escape(slip.words.money(block.amount_minor, slip.currency))
            return f'<div class="{kind}"><dt>{_text(block.label)}</dt><dd>{money}</dd></div>\n'
        case _:
            raise AssertionError(f"slip {slip.reference}: expected a row, got {type(block).__name__}")


def _other(block: Block) -> str:
    match block:
        case Notice():
            return f'<div class="notice" role="note"><strong>{_text(block.head)}</strong>{_text(block.text)}</div>\n'
        case Digits():
            groups = " ".join(f"<span>{escape(group)}</span>" for group in block.groups)
            return f'<div class="digits">{_text(block.label)}<b>{groups}</b></div>\n'
        case Code():
            code = segno.make(block.payload, micro=False, error="m")
            return code.svg_inline(border=4, omitsize=True, title=_CODE_TITLE) + "\n"
        case Sentence():
            return f"<p>{_text(block.text)}</p>\n"
        case Section() | Fact() | Amount():
            raise AssertionError(f"expected a block of its own, got {type(block).__name__}")
        case _:
            assert_never(block)


def _text(text: str) -> str:
    return escape(printable(text))
