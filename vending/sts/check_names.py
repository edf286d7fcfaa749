"""What the name of a case in a vector file says: token class, derivation, cipher, and what is to be done.

Enters: an algorithm name. Leaves: its parts, whatever the order of its words. Never: inputs (see check_inputs).
"""

import re
from dataclasses import dataclass
from enum import StrEnum

NAME_CHARS_MAX = 200
_CLASS = re.compile(r"\bclass ?(\d)(?:/(\d{1,2}))?\b")
_DKGA = re.compile(r"\bdkga ?(\d\d)\b")
_EA = re.compile(r"\bea ?(\d\d)\b")
_GIVEN_KEY = re.compile(r"\b(?:decoder key|sample)\b")


class NamedCheck(StrEnum):
    """A check that has a name of its own; the value is that name, in lower case."""

    CRC = "crc-16"
    CONTROL_BLOCK = "controlblock"
    KEN = "ken check"
    LUHN = "luhn mod 10"
    LUHN_NEGATIVE = "luhn mod 10 negative"
    MISTY1 = "misty1 ecb"
    PAN_CHECK_DIGITS = "meterpan check digits"
    PAN_BLOCK = "panblock"
    TID = "tid"
    TOKEN_FORM = "decimal/hex form of a 66-bit token"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseName:
    """The parts of an algorithm name.

    Invariants: a part the name is silent on is None; `named` is set for a check with a name of its own, and then
    the rest says nothing.
    """

    token_class: int | None = None
    subclass: int | None = None
    dkga: str | None = None
    ea: str | None = None
    is_decode: bool = False
    is_key_change: bool = False
    gives_decoder_key: bool = False
    is_sample: bool = False
    named: NamedCheck | None = None

    @classmethod
    def parse(cls, algorithm: str) -> "CaseName":
        """Read a name; upper and lower case are alike, and words it does not know are passed over."""
        name = " ".join(algorithm[:NAME_CHARS_MAX].lower().split())
        named = _named_check(name)
        if named is not None:
            return cls(named=named)
        token_class, subclass = match.groups() if (match := _CLASS.search(name)) else (None, None)
        return cls(
            token_class=None if token_class is None else int(token_class),
            subclass=None if subclass is None else int(subclass),
            dkga=match.group(1) if (match := _DKGA.search(name)) else None,
            ea=match.group(1) if (match := _EA.search(name)) else None,
            is_decode=name.split(" ", 1)[0] == "decode",
            is_key_change="key change" in name and not name.startswith("decode"),
            gives_decoder_key=bool(_GIVEN_KEY.search(name)),
            is_sample=bool(re.search(r"\bsample\b", name)),
        )


def _named_check(name: str) -> NamedCheck | None:
    # Longest first: one of the names begins with another.
    for check in sorted(NamedCheck, key=len, reverse=True):
        if name == check or name.startswith(f"{check} "):
            return check
    return None
