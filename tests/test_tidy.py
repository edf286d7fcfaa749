"""House rules that a machine can check, over every file git tracks or would track."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("protocols", "billing", "vending", "headend", "db", "meter_sim", "prepaid", "loadtests")
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
BANNED_NAMES = re.compile(r"(^|_)(manager|helper|utils|misc|common)($|_)|^(process|handle|do)_")
# Modules of the top of each package that must stay pure: no clock, no environment, no randomness of their own.
PURE = (
    "protocols/",
    "billing/",
    "vending/sts/",
    "vending/openpaygo/",
    "vending/xmlvend/",
    "headend/pipeline.py",
    "headend/validate.py",
    "headend/state.py",
)
IMPURE_CALLS = ("time.time", "time.monotonic", "datetime.now", "os.environ", "random.", "open(")


@cache
def python_files() -> tuple[Path, ...]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return tuple(sorted(ROOT / name for name in listed if (ROOT / name).exists()))


def product_files() -> list[Path]:
    return [path for path in python_files() if path.relative_to(ROOT).parts[0] in PRODUCT]


def test_files_stay_under_six_hundred_lines() -> None:
    """A file is split before it passes 600 lines."""
    long = {str(path.relative_to(ROOT)): text.count("\n") for path in python_files() if (text := path.read_text())}
    assert {name: lines for name, lines in long.items() if lines > FILE_LINES_MAX} == {}


def test_functions_stay_under_seventy_lines() -> None:
    """A function of the product fits a screen."""
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in product_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert long == []


def test_names_say_what_a_metering_engineer_would_say() -> None:
    """No manager, helper, utils, misc, common; no process_, handle_ or do_."""
    named = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in product_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and BANNED_NAMES.search(node.name.lower().strip("_"))
    ]
    assert named == []


def test_public_things_of_the_product_have_docstrings() -> None:
    """Modules, classes and functions that others call say what they are for."""
    silent = []
    for path in product_files():
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            silent.append(f"{path.relative_to(ROOT)}: module")
        silent += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]
    assert silent == []


def test_money_has_no_float() -> None:
    """No float literal and no float() on the path to a debit."""
    floats = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in product_files()
        if path.relative_to(ROOT).parts[0] == "billing"
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Name) and node.id == "float")
        # A division of numbers is a float; one by a text joins a path.
        or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and not isinstance(node.right, ast.Constant))
    ]
    assert floats == []


def test_pure_modules_ask_no_clock_environment_or_chance() -> None:
    """Pure modules take `now` and values; they never fetch them."""
    found = [
        f"{path.relative_to(ROOT)}: {call}"
        for path in product_files()
        if str(path.relative_to(ROOT)).startswith(PURE)
        for call in IMPURE_CALLS
        if re.search(rf"(?<![\w.]){re.escape(call)}", path.read_text())
    ]
    assert found == []


def test_sql_lives_in_named_files() -> None:
    """Queries stand in db/queries under a name and a purpose; each name is used."""
    from db.named import queries

    text = "\n".join(path.read_text() for path in python_files())
    unused = [name for name in queries() if not re.search(rf"[\"']{name}[\"']", text)]
    assert unused == []


@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX"])
def test_no_unfinished_marks(word: str) -> None:
    """What is not done is an issue, not a mark in the code."""
    marked = [str(path.relative_to(ROOT)) for path in product_files() if re.search(rf"\b{word}\b", path.read_text())]
    assert marked == []
