"""What a case of a vector file gives, read by the form that each input's name promises.

Enters: decoded JSON. Leaves: numbers, bytes, times and tokens. Never: the content of an input in a message,
since some are keys.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from vending.sts.identity import BaseDate
from vending.sts.sta import StaTables
from vending.sts.tokens import TokenNumber


class DecimalDigits(str):
    """A number that files write as decimal digits, as SGC and TI: compared as a number."""

    __slots__ = ()


# A number is compared as a number, text as 20 digits, a Decimal to the digits its source prints; several
# texts are the tokens of a set, first to last.
ComputedField = int | bool | str | Decimal | tuple[str, ...]
Computed = dict[str, ComputedField]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One way to understand a case, and what comes out of it.

    Invariants: `note` says which way where there are several; `unsure` are the fields that hang on EA07 tables
    nobody gave, so that another value for them proves nothing.
    """

    computed: Computed
    note: str = ""
    unsure: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case: its name, its inputs, what is expected, and the operator's EA07 tables where there are any."""

    algorithm: str
    inputs: "CaseInputs"
    expected: Mapping[str, object]
    ea07_tables: StaTables | None = None


class CaseSkipped(Exception):
    """The case cannot be checked here; its text is the reason."""


class CaseBroken(Exception):
    """An input is there and cannot be what its name says; its text says which."""


class CaseInputs:
    """The inputs of one case, read by the form their name promises.

    Invariants: an absent input raises CaseSkipped, one of a wrong form CaseBroken; no message repeats the
    content of an input, since some are keys.
    """

    def __init__(self, inputs: Mapping[str, object], *, within: str = "") -> None:
        """Take the inputs; `within` names the part of the case they are of, such as `old.`."""
        self._inputs = inputs
        self._within = within

    def has(self, name: str) -> bool:
        """Tell whether the input is given."""
        return self._inputs.get(name) is not None

    def text(self, name: str, pattern: str) -> str:
        """Return an input that matches the pattern as a whole; a JSON number counts as its digits."""
        if not self.has(name):
            raise CaseSkipped(f"incomplete: input {self._within}{name} is missing")
        raw = self._inputs[name]
        text = str(raw) if isinstance(raw, str | int | float) and not isinstance(raw, bool) else ""
        if not re.fullmatch(pattern, text, re.ASCII):
            raise CaseBroken(f"input {self._within}{name} is not of the form {pattern}")
        return text

    def part(self, name: str) -> "CaseInputs":
        """Return the inputs of a part, such as the old key of a key change."""
        if not self.has(name):
            raise CaseSkipped(f"incomplete: input {name} is missing")
        inputs = self._inputs[name]
        if not isinstance(inputs, dict):
            raise CaseBroken(f"input {name} is not a JSON object")
        return CaseInputs(inputs, within=f"{name}.")

    def number(self, name: str) -> int:
        """Return a decimal whole number."""
        return int(self.text(name, r"\d{1,20}"))

    def amount(self, name: str) -> Decimal:
        """Return a decimal number of bounded length."""
        return Decimal(self.text(name, r"-?\d{1,40}(\.\d{1,20})?"))

    def hexadecimal(self, name: str, digits_max: int) -> int:
        """Return a hexadecimal number of bounded length."""
        return int(self.text(name, rf"[0-9A-Fa-f]{{1,{digits_max}}}"), 16)

    def octets(self, name: str, count: int) -> bytes:
        """Return exactly so many bytes of hexadecimal text."""
        return bytes.fromhex(self.text(name, rf"[0-9A-Fa-f]{{{2 * count}}}"))

    def token(self) -> TokenNumber:
        """Return the token, with or without the blanks of its print."""
        return TokenNumber(self.text("token", r"[0-9 ]{20,30}").replace(" ", ""))

    def base_date(self) -> BaseDate:
        """Return the base date from its two-digit code."""
        return BaseDate(self.text("bdt", "93|14|35"))

    def issued_at(self) -> datetime:
        """Return the issue time; without a zone it is the clock TIDs count by."""
        try:
            issued_at = datetime.fromisoformat(self.text("issue_time", r"[0-9TZ:.+ -]{10,40}"))
            return issued_at.astimezone(UTC) if issued_at.tzinfo else issued_at.replace(tzinfo=UTC)
        except (ValueError, OverflowError) as error:
            raise CaseBroken("input issue_time is not an ISO 8601 time") from error

    def agree(self, name: str, told: int) -> None:
        """Refuse an input that contradicts the algorithm's name; it may be absent."""
        if self.has(name) and self.number(name) != told:
            raise CaseBroken(f"input {self._within}{name} contradicts the algorithm's name: expected {told}")
