"""Run a file of test vectors against the engine and say what passed, failed and was skipped.

Enters: JSON lines, one case each (`algorithm`, `inputs`, `expected`). Leaves: counts and the reason of every
case that did not pass. Never: a pass for a case with a field that was not checked; a key or a whole token in
a reason; files, which the command line opens.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Context, Decimal
from enum import StrEnum

from vending.sts.check_cases import read_case
from vending.sts.check_inputs import CaseBroken, CaseInputs, CaseSkipped, ComputedField, DecimalDigits, Reading
from vending.sts.check_tokens import NEEDS_TABLES
from vending.sts.errors import (
    StsError,
    UnsupportedCipher,
    UnsupportedKeyDerivation,
    UnsupportedToken,
)
from vending.sts.sta import StaTables
from vending.sts.sta_tables import parse_sta_tables

# The longest case of the published files, a key change set, has 900 characters.
LINE_CHARS_MAX = 65_536
_TEXT_CHARS_SHOWN = 60
_HEXADECIMAL = re.compile("[0-9A-Fa-f]{1,64}")
# Keys, what may hold parts of them, and the one form of a token that is not cut to its last four digits.
_HIDDEN_FIELDS = frozenset(
    {"decoderkey", "olddecoderkey", "newdecoderkey", "hex66", "block64", "field44", "nkho", "nklo", "nkmo1", "nkmo2"}
)
_SET_NAMES = ("1st", "2nd", "3rd", "4th")


class Verdict(StrEnum):
    """What became of one case."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckDetail:
    """One case that did not pass.

    Invariants: `line` counts from 1, blank lines included; `reason` holds no key and no whole token.
    """

    line: int
    algorithm: str
    verdict: Verdict
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.verdict}: {self.algorithm}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The outcome of a vector file.

    Invariants: every line that is not blank is in exactly one count; `details` has each failed and skipped
    case in file order, and `notes` each passed one that can be read in more ways than one, with the way it holds.
    """

    passed: int
    failed: int
    skipped: int
    details: tuple[CheckDetail, ...]
    notes: tuple[CheckDetail, ...] = ()

    @property
    def skipped_by_reason(self) -> dict[str, int]:
        """How many cases each reason skipped."""
        return dict(Counter(each.reason for each in self.details if each.verdict is Verdict.SKIPPED))


def check_vectors(lines: Iterable[str], *, ea07_tables: str | None = None) -> CheckResult:
    """Check every case; a malformed line counts as failed, a blank one not at all.

    `ea07_tables` is the text of an operator's tables file; without it the IEC sample tables serve, and an EA07
    token that they do not give is skipped: the tables of its source may be others.
    Raises: InvalidCipherTables.
    """
    tables = None if ea07_tables is None else parse_sta_tables(ea07_tables)
    counts: Counter[Verdict] = Counter()
    details: list[CheckDetail] = []
    notes: list[CheckDetail] = []
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        algorithm, verdict, reason = _check_line(line, tables)
        counts[verdict] += 1
        if reason:
            (notes if verdict is Verdict.PASSED else details).append(
                CheckDetail(
                    line=line_number,
                    algorithm=_printable(algorithm),
                    verdict=verdict,
                    reason=_printable(reason),
                )
            )
    return CheckResult(
        passed=counts[Verdict.PASSED],
        failed=counts[Verdict.FAILED],
        skipped=counts[Verdict.SKIPPED],
        details=tuple(details),
        notes=tuple(notes),
    )


def _printable(text: str) -> str:
    # JSON may carry half a surrogate pair, which no terminal and no log can write.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _check_line(line: str, tables: StaTables | None) -> tuple[str, Verdict, str]:
    try:
        algorithm, inputs, expected = _parse_case(line)
    except ValueError as error:
        return "(unreadable)", Verdict.FAILED, f"malformed line: {error}"
    shown = algorithm[:_TEXT_CHARS_SHOWN]
    try:
        readings = read_case(algorithm, CaseInputs(inputs), expected=expected, ea07_tables=tables)
    except (CaseSkipped, UnsupportedCipher, UnsupportedKeyDerivation, UnsupportedToken) as reason:
        return shown, Verdict.SKIPPED, str(reason)
    except CaseBroken as reason:
        return shown, Verdict.FAILED, str(reason)
    except StsError as error:
        return shown, Verdict.FAILED, f"{error.code}: {error}"
    compared = [(reading, *_compare(algorithm, expected, reading)) for reading in readings]
    for reading, verdict, _ in compared:
        if verdict is Verdict.PASSED:
            return shown, verdict, reading.note
    # With several readings none of which holds, the report says what each of them gives.
    whys = [f"{reading.note}: {why}" if reading.note else why for reading, _, why in compared]
    return shown, compared[0][1], "; ".join(whys if compared[0][1] is Verdict.FAILED else whys[:1])


def _parse_case(line: str) -> tuple[str, dict[str, object], dict[str, object]]:
    if len(line) > LINE_CHARS_MAX:
        raise ValueError(f"expected at most {LINE_CHARS_MAX} characters, got {len(line)}")
    try:
        case = json.loads(line, object_pairs_hook=_unique_fields)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(case, dict):
        raise ValueError("expected a JSON object")
    algorithm, inputs, expected = (case.get(name) for name in ("algorithm", "inputs", "expected"))
    if not isinstance(algorithm, str):
        raise ValueError("expected the text algorithm")
    if not isinstance(inputs, dict) or not isinstance(expected, dict):
        raise ValueError("expected the objects inputs and expected")
    return algorithm, inputs, expected


def _unique_fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is given twice")
    return fields


def _compare(algorithm: str, expected: dict[str, object], reading: Reading) -> tuple[Verdict, str]:
    # A negative case names the digit that must not come out.
    unwanted = int if algorithm == "Luhn mod 10 negative" else None
    computed = {_plain_name(name): value for name, value in reading.computed.items()}
    known = {name: wanted for name, wanted in expected.items() if _plain_name(name) in computed}
    wrong = {
        name: _difference(name, wanted, computed[_plain_name(name)])
        for name, wanted in known.items()
        if _agrees(wanted, computed[_plain_name(name)]) is (type(wanted) is unwanted)
    }
    if wrong and wrong.keys() <= reading.unsure:
        return Verdict.SKIPPED, NEEDS_TABLES
    if wrong:
        return Verdict.FAILED, "; ".join(wrong.values())
    unknown = [name for name in expected if name not in known]
    if unknown:
        return Verdict.SKIPPED, f"expected field not computed here: {', '.join(unknown)[:_TEXT_CHARS_SHOWN]}"
    if not expected:
        return Verdict.SKIPPED, "incomplete: nothing is expected"
    return Verdict.PASSED, ""


def _plain_name(name: str) -> str:
    """Return a field's name as compared: sources write KENHO, kenho and ken_ho for one field."""
    return name.lower().replace("_", "")


def _agrees(wanted: object, got: ComputedField) -> bool:
    if isinstance(got, tuple):
        return _agrees_as_set(wanted, got)
    if isinstance(got, bool) or isinstance(wanted, bool):
        return got is wanted
    if isinstance(got, Decimal):
        return _agrees_as_printed(wanted, got)
    if isinstance(got, DecimalDigits):
        digits = str(wanted) if isinstance(wanted, int | str) else ""
        return bool(re.fullmatch("[0-9]{1,8}", digits)) and int(digits) == int(got)
    if isinstance(got, str):
        return isinstance(wanted, str) and wanted.replace(" ", "") == got
    if isinstance(wanted, int):
        return wanted == got
    return isinstance(wanted, str) and bool(_HEXADECIMAL.fullmatch(wanted)) and int(wanted, 16) == got


def _agrees_as_set(wanted: object, got: tuple[str, ...]) -> bool:
    """Compare the tokens that are told, by name or in order; a source may print the first of a set only."""
    if isinstance(wanted, list):
        wanted = dict(zip(_SET_NAMES, wanted, strict=False)) if len(wanted) <= len(got) else None
    if not isinstance(wanted, dict) or not wanted:
        return False
    computed = dict(zip(_SET_NAMES, got, strict=False))
    return all(name in computed and _agrees(told, computed[name]) for name, told in wanted.items())


def _agrees_as_printed(wanted: object, got: Decimal) -> bool:
    """Compare to as many digits as the source prints: it may abbreviate a long amount."""
    if not isinstance(wanted, str) or len(wanted) > 64:
        return False
    try:
        printed = Decimal(wanted)
        return Context(prec=len(printed.as_tuple().digits)).plus(got) == printed
    except (ArithmeticError, ValueError):
        return False


def _difference(name: str, wanted: object, got: ComputedField) -> str:
    shown = name[:_TEXT_CHARS_SHOWN]
    if _plain_name(name) in _HIDDEN_FIELDS:
        return f"{shown}: expected another than the one computed"
    if isinstance(got, tuple):
        return f"{shown}: expected others than {', '.join(f'...{each[-4:]}' for each in got)}"
    if isinstance(got, str):
        return f"{shown}: expected ...{str(wanted)[-4:]}, got ...{got[-4:]}"
    if isinstance(wanted, str) and isinstance(got, int):
        return f"{shown}: expected {wanted[:_TEXT_CHARS_SHOWN]}, got {got:x}"
    return f"{shown}: expected {str(wanted)[:_TEXT_CHARS_SHOWN]}, got {got}"
