"""A slip as text for a printer of 80 mm: lines of at most 48 cells.

Stage: after a slip is made. English is ASCII, since every printer has that; Hindi and Punjabi are UTF-8 and measured in
cells by wcwidth, as a terminal and a printer with the script show them. Never: a byte that moves a printer's head, from
whatever name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import assert_never

import segno
import wcwidth

from billing.notices.kinds import Language
from billing.statement import printable
from vending.slips.blocks import Amount, Block, Code, Digits, Fact, Notice, Section, Sentence, Slip

COLUMNS = 48
_QUIET_MODULES = 4
# Upper and lower half of a cell, dark or not.
_HALVES = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}


def render_text(slip: Slip, *, with_code: bool = False) -> str:
    """Print a slip; `with_code` draws its QR code in half blocks, which are not ASCII.

    Shape: lines of at most `COLUMNS` cells. What no line can hold without a break, such as a long name, is broken.
    """
    clean = _ascii if slip.words.language is Language.ENGLISH else printable
    lines = [*_lines(slip, clean), *(_code_lines(slip) if with_code else ())]
    return "\n".join(line.rstrip() for line, before in zip(lines, ["", *lines], strict=False) if line or before) + "\n"


def cells(text: str) -> int:
    """Return how many cells of a line a text takes."""
    return wcwidth.wcswidth(text)


def qr_matrix(payload: str) -> list[list[bool]]:
    """Return a QR code with its quiet zone, dark modules true."""
    code = segno.make(payload, micro=False, error="m")
    return [[bool(module) for module in row] for row in code.matrix_iter(border=_QUIET_MODULES)]


def _lines(slip: Slip, clean: Callable[[str], str]) -> Iterator[str]:
    if slip.utility.name:
        yield from _centred(clean(slip.utility.name))
    yield from _centred(slip.title)
    yield "=" * COLUMNS
    for block in slip.blocks:
        yield from _block(slip, _cleaned(block, clean))
    if slip.utility.help_line:
        yield "=" * COLUMNS
        yield from _centred(clean(slip.utility.help_line))


def _cleaned(block: Block, clean: Callable[[str], str]) -> Block:
    texts = {each.name: getattr(block, each.name) for each in fields(block)}
    cleaned = {name: clean(text) for name, text in texts.items() if isinstance(text, str)}
    # The fields that are text differ from block to block, and stay text.
    return replace(block, **cleaned)  # type: ignore[arg-type]


def _ascii(text: str) -> str:
    """Return a text in ASCII: letters without their accents, a question mark for what has no such letter."""
    if text.isascii():
        return printable(text)
    marks = (mark for mark in unicodedata.normalize("NFKD", printable(text)) if not unicodedata.combining(mark))
    return printable("".join(mark if mark.isascii() else "?" for mark in marks))


def _block(slip: Slip, block: Block) -> Iterator[str]:
    match block:
        case Notice():
            yield from _framed(block)
        case Section():
            yield "-" * COLUMNS
            yield from _wrapped(block.text)
        case Fact():
            yield from _row(block.label, block.value)
        case Amount():
            yield from _row(block.label, slip.words.money(block.amount_minor, slip.currency))
        case Digits():
            yield from ("", *_centred(block.label), *_centred_groups(block.groups), "")
        case Sentence():
            yield from _wrapped(block.text)
        case Code():
            # Drawn after everything else, where a printer can draw it at all.
            return
        case _:
            assert_never(block)


def _framed(notice: Notice) -> Iterator[str]:
    # No sides: a printer whose letters are wider than a terminal's would not close them.
    yield "*" * COLUMNS
    yield from _centred(notice.head)
    yield from _centred(notice.text)
    yield "*" * COLUMNS


def _row(label: str, value: str) -> Iterator[str]:
    """Print a label at the left and its value at the right end, below it where both do not fit."""
    *above, last = _wrapped(label) or [""]
    yield from above
    if cells(last) + 1 + cells(value) <= COLUMNS:
        yield last + " " * (COLUMNS - cells(last) - cells(value)) + value
        return
    yield last
    for line in _wrapped(value):
        yield " " * (COLUMNS - cells(line)) + line


def _centred(text: str) -> Iterator[str]:
    for line in _wrapped(text):
        yield _margin(line) + line


def _centred_groups(groups: tuple[str, ...]) -> Iterator[str]:
    """Print digits with wide gaps, no group ever broken."""
    line = ""
    for group in groups:
        longer = f"{line}  {group}" if line else group
        if len(longer) > COLUMNS:
            yield _margin(line) + line
            longer = group
        line = longer
    yield _margin(line) + line


def _margin(line: str) -> str:
    return " " * ((COLUMNS - cells(line)) // 2)


def _wrapped(text: str) -> list[str]:
    return wcwidth.wrap(text, COLUMNS, break_on_hyphens=False)


def _code_lines(slip: Slip) -> Iterator[str]:
    for block in slip.blocks:
        if isinstance(block, Code):
            rows = qr_matrix(block.payload)
            blank = [False] * len(rows[0])
            for at in range(0, len(rows), 2):
                below = rows[at + 1] if at + 1 < len(rows) else blank
                line = "".join(_HALVES[pair] for pair in zip(rows[at], below, strict=True))
                yield _margin(line) + line
