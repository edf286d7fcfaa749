"""Where tables, fields and elements of a TOML text stand."""

from __future__ import annotations

import tomllib
from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st

from billing.tariff_document import builtin_documents
from billing.toml_lines import Path, lines_by_path

# Pieces that often make TOML, and traps for whoever counts brackets.
PIECES = (
    *"[]{}=,. \n\"'#", "a", "b", "1", "1.5", "[a]\n", "[[a]]\n", "[[a.b]]\n", "a = ", "b = [\n", "{ a = 1 }", "true",
    '"""\n[x]"""', "'''\n'''", "2026-04-01", '"[[a]]"', "\\", "a.b = 1\n",
)  # fmt: skip
TOML_PARTS = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


def paths_of(value: object, path: Path = ()) -> set[Path]:
    """Return the path of every table, field and element of a value."""
    found = {path} if path else set()
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return found.union(*(paths_of(each, (*path, key)) for key, each in items))


def test_lines_are_those_of_tables_fields_and_elements_whatever_stands_in_texts() -> None:
    """Brackets in texts and comments, dotted keys and arrays over lines do not mislead."""
    text = '''a.b = "[x] = 1" # [[band]]
t = """
[zones]
"""
[[band]]
e = [ { k = 1 }, # {
  { k = 2, s = 'it[' },
]
[[band.sub]]
"q" = 2026-01-01 10:00:00
[[band]]
[[band.sub]]
z = [[1, 2],
 [3]]
'''
    lines = lines_by_path(text)
    expected = {
        ("a",): 1, ("a", "b"): 1, ("t",): 2, ("band",): 5, ("band", 0): 5, ("band", 0, "e"): 6, ("band", 0, "e", 0): 6,
        ("band", 0, "e", 0, "k"): 6, ("band", 0, "e", 1): 7, ("band", 0, "e", 1, "k"): 7, ("band", 0, "e", 1, "s"): 7,
        ("band", 0, "sub"): 9, ("band", 0, "sub", 0): 9, ("band", 0, "sub", 0, "q"): 10, ("band", 1): 11,
        ("band", 1, "sub"): 12, ("band", 1, "sub", 0): 12, ("band", 1, "sub", 0, "z"): 13,
        ("band", 1, "sub", 0, "z", 0): 13, ("band", 1, "sub", 0, "z", 1): 14,
    }  # fmt: skip
    assert {path: line for path, line in lines.items() if path in expected} == expected
    # The numbers within z have lines too.
    assert len(lines) == len(expected) + 3


@given(TOML_PARTS)
@example("[[a]]\n[[a.b]]\n[[a.b]]\n[a.b.a]\n")
def test_every_part_of_any_toml_has_a_line_within_the_text(text: str) -> None:
    """Whatever `tomllib` reads is found, element for element."""
    with suppress(ValueError):
        value = tomllib.loads(text)
        lines = lines_by_path(text)
        assert paths_of(value) <= lines.keys()
        assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


def test_every_part_of_the_shipped_documents_has_a_line() -> None:
    """The line of a field holds its name."""
    for text in builtin_documents().values():
        content = text.splitlines()
        lines = lines_by_path(text)
        assert paths_of(tomllib.loads(text)) <= lines.keys()
        for path, line in lines.items():
            name = path[-1]
            assert isinstance(name, int) or name in content[line - 1]
