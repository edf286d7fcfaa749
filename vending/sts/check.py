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
from typing import assert_never

from vending.sts.check_cases import LUHN_UNWANTED_DIGITS, read_case
from vending.sts.check_inputs import (
    CaseBroken,
    CaseInputs,
    CaseSkipped,
    ComputedField,
    DecimalDigits,
    Reading,
    plain_name,
    without_blanks,
)
from vending.sts.check_names import CaseName, NamedCheck
from vending.sts.check_tokens import NEEDS_TABLES
from vending.sts.errors import (
    StsError,
    UnsupportedCipher,
    UnsupportedKeyDerivation,
    UnsupportedToken,
)
from vending.sts.sta import StaTables
from vending.sts.sta_tables import parse_sta_tables
from vending.sts.tokens import TOKEN_DIGITS

# The longest case of the published files, a key change set, has 900 characters.
LINE_CHARS_MAX = 65_536
_TEXT_CHARS_SHOWN = 60
_HEXADECIMAL = re.compile("(?:0[xX])?[0-9A-Fa-f]{1,64}")
# Keys, what may hold parts of them, and the one form of a token that is not cut to its last four digits.
_HIDDEN_FIELDS = frozenset(
    {"decoderkey", "olddecoderkey", "newdecoderkey", "hex66", "block64", "field44", "nkho", "nklo", "nkmo1", "nkmo2"}
)
_SET_NAMES = ("1st", "2nd", "3rd", "4th")
_SET_PLACES = dict(zip("1234", _SET_NAMES, strict=True)) | dict(
    zip(("first", "second", "third", "fourth"), _SET_NAMES, strict=True)
)
_FLAGS = frozenset({"ro", "res3kct", "3kct", "res"})
_REMARKS = frozenset({"note", "comment"})
_DECIMAL_FIELDS = frozenset(
    {"class", "subclass", "rnd", "signexpnibble", "tid", "tidmsb8", "krn", "kt", "ro", "res3kct", "3kct", "res"}
    | {"kenho", "kenlo", "sgclo", "sgcho", "mfrcode", "index", "value", "register", "check", "drncheck"}
)


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
    # Of several readings none of which holds, one that only lacks tables may still be the right one.
    for _, verdict, why in compared:
        if verdict is Verdict.SKIPPED:
            return shown, verdict, why
    return shown, Verdict.FAILED, "; ".join(f"{each.note}: {why}" if each.note else why for each, _, why in compared)


def _parse_case(line: str) -> tuple[str, dict[str, object], dict[str, object]]:
    if len(line) > LINE_CHARS_MAX:
        raise ValueError(f"expected at most {LINE_CHARS_MAX} characters, got {len(line)}")
    try:
        case = json.loads(line, object_pairs_hook=_unique_fields, parse_float=Decimal)
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
    is_negative = CaseName.parse(algorithm).named is NamedCheck.LUHN_NEGATIVE
    unwanted = set(map(plain_name, LUHN_UNWANTED_DIGITS)) if is_negative else set()
    computed = {plain_name(name): value for name, value in reading.computed.items()}
    known = {name: wanted for name, wanted in expected.items() if plain_name(name) in computed}
    wrong = {
        name: _difference(name, wanted, computed[plain_name(name)])
        for name, wanted in known.items()
        if _agrees(plain_name(name), wanted, computed[plain_name(name)]) is (plain_name(name) in unwanted)
    }
    if wrong and wrong.keys() <= reading.unsure:
        return Verdict.SKIPPED, NEEDS_TABLES
    if wrong:
        return Verdict.FAILED, "; ".join(wrong.values())
    unknown = [name for name in expected if name not in known and plain_name(name) not in _REMARKS]
    if unknown:
        return Verdict.SKIPPED, f"expected field not computed here: {', '.join(unknown)[:_TEXT_CHARS_SHOWN]}"
    if not known:
        return Verdict.SKIPPED, "incomplete: nothing is expected"
    return Verdict.PASSED, ""


def _agrees(name: str, wanted: object, got: ComputedField) -> bool:
    match got:
        case tuple():
            return _agrees_as_set(wanted, got)
        case bool():
            return _truth_of(wanted) is got
        case Decimal():
            return _agrees_as_printed(wanted, got)
        case DecimalDigits():
            digits = str(wanted) if type(wanted) is int or isinstance(wanted, str) else ""
            # Letters show that a source writes the field in hexadecimal.
            base = 10 if digits.isdigit() else 16
            return bool(re.fullmatch("[0-9A-Fa-f]{1,8}", digits)) and int(digits, base) == int(got)
        case str():
            return _token_of(wanted) == got
        case int():
            return _agrees_as_number(name, wanted, got)
        case _:
            assert_never(got)


def _agrees_as_number(name: str, wanted: object, got: int) -> bool:
    if isinstance(wanted, bool):
        return name in _FLAGS and int(wanted) == got
    if isinstance(wanted, int):
        return wanted == got
    if not isinstance(wanted, str) or not _HEXADECIMAL.fullmatch(wanted.strip()):
        return False
    # Numbers are in hexadecimal unless said; the small ones of these fields some sources print in decimal.
    return int(wanted, 16) == got or (name in _DECIMAL_FIELDS and wanted.strip().isdigit() and int(wanted) == got)


def _truth_of(wanted: object) -> bool | None:
    if isinstance(wanted, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(wanted.strip().lower())
    return bool(wanted) if isinstance(wanted, bool) or wanted in (0, 1) else None


def _token_of(wanted: object) -> str | None:
    """Return the digits of a token told in any print; a JSON number has lost its leading zeros."""
    if type(wanted) is int and 0 <= wanted < 10**TOKEN_DIGITS:
        return f"{wanted:0{TOKEN_DIGITS}d}"
    return without_blanks(wanted.strip()) if isinstance(wanted, str) else None


def _agrees_as_set(wanted: object, got: tuple[str, ...]) -> bool:
    """Compare the tokens that are told, by name or in order; a source may print the first of a set only."""
    if isinstance(wanted, list):
        wanted = dict(zip(_SET_NAMES, wanted, strict=False)) if len(wanted) <= len(got) else None
    if not isinstance(wanted, dict) or not wanted:
        return False
    computed = dict(zip(_SET_NAMES, got, strict=False))
    places = [_place_in_set(name) for name in wanted]
    if len(set(places)) < len(places):
        return False
    return all(
        place in computed and _token_of(told) == computed[place]
        for place, told in zip(places, wanted.values(), strict=True)
    )


def _place_in_set(name: str) -> str:
    """Return the name of a section as the set has it: `1st` is also `1`, `first` or `1st section`."""
    plain = plain_name(name).removesuffix("section").removesuffix("kct").strip()
    return _SET_PLACES.get(plain, plain)


def _agrees_as_printed(wanted: object, got: Decimal) -> bool:
    """Compare to as many digits as the source prints: it may abbreviate a long amount."""
    if not isinstance(wanted, str | int | Decimal) or isinstance(wanted, bool) or len(str(wanted)) > 64:
        return False
    try:
        printed = Decimal(wanted)
        return Context(prec=len(printed.as_tuple().digits)).plus(got) == printed
    except (ArithmeticError, ValueError):
        return False


def _difference(name: str, wanted: object, got: ComputedField) -> str:
    shown = name[:_TEXT_CHARS_SHOWN]
    if plain_name(name) in _HIDDEN_FIELDS:
        return f"{shown}: expected another than the one computed"
    if isinstance(got, tuple):
        return f"{shown}: expected others than {', '.join(f'...{each[-4:]}' for each in got)}"
    if isinstance(got, str):
        return f"{shown}: expected ...{str(wanted)[-4:]}, got ...{got[-4:]}"
    if isinstance(wanted, str) and isinstance(got, int):
        return f"{shown}: expected {wanted[:_TEXT_CHARS_SHOWN]}, got {got:x}"
    return f"{shown}: expected {str(wanted)[:_TEXT_CHARS_SHOWN]}, got {got}"
