"""What a case of a vector file gives, read by the form that each input's name promises.

Enters: decoded JSON. Leaves: numbers, bytes, times and tokens. Never: the content of an input in a message,
since some are keys.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from vending.sts.identity import BaseDate, KeyType
from vending.sts.sta import StaTables
from vending.sts.tokens import TOKEN_DIGITS, TokenNumber

# More places than any amount of a token has.
_PLACES_MAX = 40


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
    """One case: its name, its inputs, what is expected, and the operator's EA07 tables where there are any.

    `is_sample` says that it asks for the IEC sample tables by its name.
    """

    algorithm: str
    inputs: "CaseInputs"
    expected: Mapping[str, object]
    ea07_tables: StaTables | None = None
    is_sample: bool = False


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
        self._inputs = {plain_name(name): value for name, value in inputs.items()}
        self._within = within

    def has(self, name: str) -> bool:
        """Tell whether the input is given."""
        return self._inputs.get(plain_name(name)) is not None

    def _given(self, name: str) -> object:
        if not self.has(name):
            raise CaseSkipped(f"incomplete: input {self._within}{name} is missing")
        return self._inputs[plain_name(name)]

    def text(self, name: str, pattern: str) -> str:
        """Return an input that matches the pattern as a whole; a JSON number counts as its digits."""
        text = _text_of(self._given(name))
        if text is None or not re.fullmatch(pattern, text, re.ASCII):
            raise CaseBroken(f"input {self._within}{name} is not of the form {pattern}")
        return text

    def part(self, name: str) -> "CaseInputs":
        """Return the inputs of a part, such as the old key of a key change."""
        inputs = self._given(name)
        if not isinstance(inputs, dict):
            raise CaseBroken(f"input {name} is not a JSON object")
        return CaseInputs(inputs, within=f"{name}.")

    def number(self, name: str, *, or_hexadecimal: bool = False) -> int:
        """Return a decimal whole number; where sources differ, letters or 0x make it a hexadecimal one."""
        form = r"\d{1,20}|0[xX][0-9A-Fa-f]{1,16}"
        text = self.text(name, form + "|[0-9A-Fa-f]{1,16}" if or_hexadecimal else form)
        return int(text) if text.isdigit() else int(text, 16)

    def digits(self, name: str, count: int) -> str:
        """Return exactly so many decimal digits; a JSON number has lost its leading zeros and gets them back."""
        if type(self._given(name)) is int:
            return self.text(name, rf"\d{{1,{count}}}").zfill(count)
        return without_blanks(self.text(name, rf"\d(?:[ -]?\d){{{count - 1}}}"))

    def flag(self, name: str) -> bool:
        """Return a bit, told as 0 or 1 or as a JSON truth value."""
        given = self._given(name)
        return given if isinstance(given, bool) else self.text(name, "[01]") == "1"

    def amount(self, name: str) -> Decimal:
        """Return a decimal number of bounded length."""
        return Decimal(self.text(name, r"[+-]?\d{1,40}(\.\d{1,20})?"))

    def hexadecimal(self, name: str, digits_max: int) -> int:
        """Return a hexadecimal number of bounded length."""
        return int(self.text(name, rf"(?:0[xX])?[0-9A-Fa-f]{{1,{digits_max}}}"), 16)

    def octets(self, name: str, count: int) -> bytes:
        """Return exactly so many bytes of hexadecimal text, as sources write them: with blanks, with 0x."""
        form = rf"(?:0[xX])?[0-9A-Fa-f](?:[ :-]?[0-9A-Fa-f]){{{2 * count - 1}}}"
        return bytes.fromhex(re.sub("^0[xX]|[ :-]", "", self.text(name, form)))

    def token(self) -> TokenNumber:
        """Return the token, with or without the blanks of its print."""
        return TokenNumber(self.digits("token", TOKEN_DIGITS))

    def key_type(self) -> KeyType:
        """Return the key type."""
        return KeyType(int(self.text("kt", "[0-3]")))

    def base_date(self) -> BaseDate:
        """Return the base date from its two-digit code or its year."""
        return BaseDate(self.text("bdt", "(?:19)?93|(?:20)?(?:14|35)")[-2:])

    def ea(self) -> str:
        """Return the two-digit code of the cipher."""
        return self._code("ea", "[Ee][Aa]")

    def dkga(self) -> str:
        """Return the two-digit code of the key derivation."""
        return self._code("dkga", "[Dd][Kk][Gg][Aa]")

    def agree_ea(self, told: str) -> None:
        """Refuse a cipher that contradicts the algorithm's name; it may be absent."""
        if self.has("ea") and self.ea() != told:
            self._contradiction("ea", told)

    def agree_dkga(self, told: str) -> None:
        """Refuse a key derivation that contradicts the algorithm's name; it may be absent."""
        if self.has("dkga") and self.dkga() != told:
            self._contradiction("dkga", told)

    def _code(self, name: str, prefix: str) -> str:
        return re.sub(r"\D", "", self.text(name, rf"(?:{prefix} ?)?\d{{1,2}}")).zfill(2)

    def _contradiction(self, name: str, told: object) -> None:
        raise CaseBroken(f"input {self._within}{name} contradicts the algorithm's name: expected {told}")

    def issued_at(self) -> datetime:
        """Return the issue time; without a zone it is the clock TIDs count by."""
        try:
            issued_at = datetime.fromisoformat(self.text("issue_time", r"[0-9TZ:.+ -]{10,40}"))
            return issued_at.astimezone(UTC) if issued_at.tzinfo else issued_at.replace(tzinfo=UTC)
        except (ValueError, OverflowError) as error:
            raise CaseBroken("input issue_time is not an ISO 8601 time") from error

    def agree(self, name: str, told: int, *, or_hexadecimal: bool = False) -> None:
        """Refuse an input that contradicts the algorithm's name; it may be absent."""
        if self.has(name) and self.number(name, or_hexadecimal=or_hexadecimal) != told:
            self._contradiction(name, told)


def plain_name(name: str) -> str:
    """Return a field's name as compared: sources write KENHO, kenho and ken_ho for one field."""
    return name.lower().replace("_", "")


def without_blanks(text: str) -> str:
    """Return digits without the blanks or dashes that group them in print."""
    return text.replace(" ", "").replace("-", "")


def _text_of(given: object) -> str | None:
    """Return what a text or a number says, without the blanks around it; nothing for any other JSON value."""
    if isinstance(given, str):
        return given.strip()
    if type(given) is int:
        return str(given)
    # A number with a point comes as a Decimal. Written out it is as long as its exponent says, so that is bounded.
    if isinstance(given, Decimal) and given.is_finite() and -_PLACES_MAX <= given.adjusted() <= _PLACES_MAX:
        return format(given, "f")
    return None
