"""The messages of a hardware security module: text on its line to values and back.

Stage: between the client of such a module (`vending.edges.sts_module`) and the bytes of its line. Enters: a meter's
record and what to mint, or a line that came. Leaves: a line to send, or a typed answer. Never: a line, a clock, a
retry; a whole token or a whole line in a message.

Standard: STS 600-8-6. Its text was not at hand: commands, fields, CRC and statuses are as three public drivers of
such modules have them (`docs/security-module-protocol.md` names them and marks what is inferred).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from vending.security import (
    CreditKeyTypeRefused,
    ExtendedSet,
    ModuleBusy,
    ModuleRefused,
    ModuleUnavailable,
    RiskLimitReached,
    SecurityModuleError,
    TokenRefused,
    VendingKeyExpired,
    VendingKeyUnknown,
)
from vending.sts.amounts import CurrencyField
from vending.sts.errors import KeyChangeRefused, MalformedToken, StsError, TokenCrcMismatch, UnsupportedToken
from vending.sts.identity import BaseDate, EncryptionAlgorithm, MeterKeyRecord
from vending.sts.management import (
    CONTROL_VALUE_MAX,
    FLAG_INDEX,
    AnyToken,
    ExtendedControl,
    ExtendedFlag,
    Management,
    ManagementKind,
)
from vending.sts.tokens import TOKEN_DIGITS, CreditService, CurrencyCredit, TokenNumber, UnitCredit

LINE_END = b"\r"
# The longest reply, four key-change tokens in both forms, has 172 characters; attributes and extended errors are
# of open length. More than this without an end is no reply.
LINE_BYTES_MAX = 1024
# Numeric: keypad and everything that carries the 20 digits (TCT 02).
TOKEN_CARRIER = 2
KEY_CHANGE_SUBCLASS_ORDER = (3, 4, 8, 9)
ECHO_CHARS_MAX = 999
_TOKEN_HEX_DIGITS = 17
_CURRENCY_SUBCLASS_FIRST = 4
_CRC_HEX_DIGITS = 4
_HEADER_AND_STATUS = 7
_TID_OCTETS = 3
_OK = "00"
_GENERAL_ERROR = "GL!ER"
_REPLY = re.compile(rb"(?P<header>[A-Z]{2}![A-Z]{2})(?P<status>[0-9]{2}|EE)(?P<body>[ -~]*)")
_FIELD = {
    "N": re.compile(r"N(0|[1-9][0-9]{0,18})~"),
    "P": re.compile(r"P([ -}]*)~"),
    "H": re.compile(r"H((?:[0-9A-Fa-f]{2})*)~"),
}
_ATTRIBUTE = re.compile(r"([A-Z]{3})(.+)")


class Command(StrEnum):
    """What can be asked of a module; the reply has a `!` in place of the `?`."""

    ECHO = "GL?EC"
    IDENTIFY = "SM?DI"
    KEY_ATTRIBUTES = "SM?GA"
    CREDIT = "SM?VC"
    MANAGEMENT = "SM?VM"
    KEY_CHANGE = "SM?VK"
    VERIFY = "SM?VT"


class GarbledReply(StsError):
    """What came is no answer to what was asked: damaged, cut short, or of another request."""

    code = "module_reply_garbled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A command with its fields, written as they go on the line."""

    command: Command
    body: str = field(default="", repr=False)

    @property
    def line(self) -> bytes:
        """The whole line: command, fields, CRC, end."""
        text = (self.command + self.body).encode("ascii")
        return text + _crc_digits(text) + LINE_END


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A line from the module that is whole.

    Invariants: `status` is two digits, or EE with a text of the maker's as body.
    """

    header: str
    status: str
    body: str = field(repr=False)

    @property
    def is_general_error(self) -> bool:
        """Whether it is an error outside of any command, which names no request."""
        return self.header == _GENERAL_ERROR

    def answers(self, request: Request) -> bool:
        """Tell whether this can be the answer to a request."""
        return self.is_general_error or self.header == request.command.replace("?", "!")


@dataclass(frozen=True, slots=True, kw_only=True)
class MintedSet:
    """The answer to a key change: its tokens in their order, and whether the meter's base date moves on."""

    roll_over: bool
    tokens: tuple[TokenNumber, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReading:
    """What a module reads in a token; RND it does not tell.

    Invariants: `amount` is 16 bits, for currency with the sign and upper exponent bits above them.
    """

    token_class: int
    subclass: int
    amount: int
    tid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterAttributes:
    """What a module tells of the key in one of its registers."""

    sgc: str
    krn: int
    base_date: BaseDate
    ken: int
    check_value: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleIdentity:
    """Which module it is."""

    module_id: str
    firmware: str


def echo_request(text: str) -> Request:
    """Ask for a text to be sent back.

    Shape: two digits of waiting time, 00; three digits of length; the text.
    """
    assert 0 < len(text) <= ECHO_CHARS_MAX, f"echo: got {len(text)} characters"
    assert text.isascii(), "echo: got other characters than ASCII"
    return Request(command=Command.ECHO, body=f"00{len(text):03d}{text}")


def identity_request() -> Request:
    """Ask which module it is."""
    return Request(command=Command.IDENTIFY)


def attributes_request(register: int) -> Request:
    """Ask what key a register holds."""
    return Request(command=Command.KEY_ATTRIBUTES, body=_number(register))


def unit_credit_request(
    register: int, meter: MeterKeyRecord, *, service: CreditService, amount16: int, tid: int
) -> Request:
    """Ask for a class 0 token of units."""
    return _mint_request(Command.CREDIT, register, meter, service, _octets(amount16, 2), tid)


def currency_credit_request(
    register: int, meter: MeterKeyRecord, *, service: CreditService, amount: CurrencyField, tid: int
) -> Request:
    """Ask for a class 0 token of currency; the amount is three octets, sign and upper exponent bits first."""
    subclass = service + _CURRENCY_SUBCLASS_FIRST
    return _mint_request(Command.CREDIT, register, meter, subclass, _octets(_joined(amount), 3), tid)


def management_request(
    register: int, meter: MeterKeyRecord, *, kind: ManagementKind | ExtendedSet, value16: int, tid: int
) -> Request:
    """Ask for a class 2 token with a TID."""
    return _mint_request(Command.MANAGEMENT, register, meter, kind, _octets(value16, 2), tid)


def key_change_request(
    old_register: int, new_register: int, old: MeterKeyRecord, new: MeterKeyRecord, *, tokens: int
) -> Request:
    """Ask for the set that moves a meter from the key of one register to that of another."""
    fields = (
        _number(old_register),
        _number(new_register),
        _text(old.pan.digits),
        _number(old.tariff_index),
        _number(int(old.ea)),
        _number(TOKEN_CARRIER),
        _number(new.tariff_index),
        _number(tokens),
    )
    return Request(command=Command.KEY_CHANGE, body="".join(fields))


def verify_request(register: int, meter: MeterKeyRecord, number: TokenNumber) -> Request:
    """Ask what a token says under a meter's key."""
    fields = (
        _number(register),
        _text(meter.pan.digits),
        _number(meter.tariff_index),
        _number(int(meter.ea)),
        _text(number.digits),
    )
    return Request(command=Command.VERIFY, body="".join(fields))


def key_change_tokens(ea: EncryptionAlgorithm, *, carry_sgc: bool) -> int:
    """Return how many tokens a key change takes."""
    match ea:
        case EncryptionAlgorithm.MISTY1:
            return 4
        case EncryptionAlgorithm.STA:
            return 3 if carry_sgc else 2
        case _:
            assert_never(ea)


def decode_reply(line: bytes) -> Reply:
    """Read a line that came, without its end.

    A general error may come without CRC, as one public driver has it.
    Raises: GarbledReply.
    """
    text = line.strip(b"\n")
    if not (text.startswith(_GENERAL_ERROR.encode()) and len(text) == _HEADER_AND_STATUS):
        text, crc = text[:-_CRC_HEX_DIGITS], text[-_CRC_HEX_DIGITS:]
        if crc.upper() != _crc_digits(text):
            raise GarbledReply(f"module's reply: expected the CRC of its {len(text)} characters, got another")
    match = _REPLY.fullmatch(text)
    if match is None:
        raise GarbledReply(f"module's reply: expected header, status and fields, got {len(text)} other characters")
    return Reply(header=match["header"].decode(), status=match["status"].decode(), body=match["body"].decode("ascii"))


def require_done(reply: Reply, whose: str) -> None:
    """Let a reply through that reports success.

    Raises: GarbledReply when the request arrived damaged; ModuleBusy, ModuleUnavailable; VendingKeyExpired,
        VendingKeyUnknown, CreditKeyTypeRefused, RiskLimitReached, KeyChangeRefused, and ModuleRefused for the rest.
    """
    if reply.is_general_error:
        _raise_general(reply.status, whose)
    if reply.status == _OK:
        return
    name = STATUS_NAMES.get(reply.status, "a status of the maker's own")
    kind = _REFUSALS.get(reply.status, ModuleRefused)
    raise kind(f"security module: expected {reply.header} done, got status {reply.status} ({name}), {whose}")


def read_echo(reply: Reply) -> str:
    """Return the text that was sent back.

    Raises: GarbledReply.
    """
    length, text = reply.body[:3], reply.body[3:]
    if not length.isdigit() or int(length) != len(text):
        raise GarbledReply(f"module's echo: expected its length and text, got {len(reply.body)} characters")
    return text


def read_identity(reply: Reply) -> ModuleIdentity:
    """Return which module answered.

    Raises: GarbledReply.
    """
    module_id, firmware = _fields(reply, "PP")
    return ModuleIdentity(module_id=module_id, firmware=firmware)


def read_attributes(reply: Reply) -> RegisterAttributes:
    """Return what a register holds.

    Shape: one text of attributes between semicolons, each a name of three letters and its value.
    Raises: GarbledReply.
    """
    (text,) = _fields(reply, "P")
    told = {match[1]: match[2] for each in text.split(";") if (match := _ATTRIBUTE.fullmatch(each))}
    try:
        return RegisterAttributes(
            sgc=f"{int(told['SGC']):06d}",
            krn=int(told["KRN"]),
            base_date=BaseDate(told["BDT"][-2:]),
            ken=int(told["KEN"]),
            check_value=told.get("KCV"),
        )
    except (KeyError, ValueError):
        raise GarbledReply(
            f"module's key attributes: expected SGC, KRN, BDT and KEN, got {', '.join(sorted(told)) or 'none'}"
        ) from None


def read_token(reply: Reply) -> TokenNumber:
    """Return the one token of a reply, which has it in hexadecimal and in decimal digits.

    Raises: GarbledReply.
    """
    in_hex, in_digits = _fields(reply, "PP")
    return _tokens(in_hex, in_digits, 1)[0]


def read_key_change(reply: Reply, tokens: int) -> MintedSet:
    """Return the tokens of a key change.

    Raises: GarbledReply when there are others than asked for.
    """
    roll_over, count, in_hex, in_digits = _fields(reply, "NNPP")
    if roll_over not in ("0", "1") or count != str(tokens):
        raise GarbledReply(f"module's key change: expected {tokens} tokens, got {count}")
    return MintedSet(roll_over=roll_over == "1", tokens=_tokens(in_hex, in_digits, tokens))


def read_verification(reply: Reply, whose: str) -> TokenReading | TokenRefused:
    """Return what the module read in a token, or why it is none of the meter's.

    Raises: what `require_done` raises; GarbledReply.
    """
    if reply.status == _CRC_STATUS and not reply.is_general_error:
        return _refused(reply.status, whose)
    require_done(reply, whose)
    # Only a good token has the other fields: what stands in them otherwise is not known.
    (result,) = _fields(reply, "N")
    if int(result) != 0:
        return _refused(f"{int(result):02d}", whose)
    _, token_class, subclass, amount, tid = _fields(reply, "NNNHH")
    return TokenReading(
        token_class=int(token_class), subclass=int(subclass), amount=int(amount or "0", 16), tid=int(tid or "0", 16)
    )


def token_of(reading: TokenReading) -> AnyToken:
    """Return a reading as the token it is; RND, which the module does not tell, as 0.

    Raises: UnsupportedToken for a key-change section, whose contents no module gives out, and for what is reserved.
    """
    subclass, amount16, tid = reading.subclass, reading.amount & 0xFFFF, reading.tid
    match reading.token_class, subclass:
        case 0, (0 | 1 | 2 | 3):
            return UnitCredit(service=CreditService(subclass), rnd=0, tid=tid, amount16=amount16)
        case 0, (4 | 5 | 6 | 7):
            amount = CurrencyField(sign_exponent=reading.amount >> 16 & 0xF, amount16=amount16)
            return CurrencyCredit(service=CreditService(subclass - _CURRENCY_SUBCLASS_FIRST), tid=tid, amount=amount)
        case 2, ExtendedSet.EXTENDED_SET:
            index, value = amount16 >> 10, amount16 & CONTROL_VALUE_MAX
            if index == FLAG_INDEX:
                return ExtendedFlag(rnd=0, tid=tid, flag=value >> 1, value=bool(value & 1))
            return ExtendedControl(rnd=0, tid=tid, index=index, value=value)
        case 2, (0 | 1 | 2 | 5 | 6 | 7):
            return Management(kind=ManagementKind(subclass), rnd=0, tid=tid, value16=amount16)
    raise UnsupportedToken(
        f"token: expected a credit or a management token, got class {reading.token_class} subclass {subclass}"
    )


def reading_of_credit(service: CreditService, amount16: int, tid: int) -> TokenReading:
    """Return what a module must read in a unit credit."""
    return TokenReading(token_class=0, subclass=service, amount=amount16, tid=tid)


def reading_of_currency(service: CreditService, amount: CurrencyField, tid: int) -> TokenReading:
    """Return what a module must read in a currency credit."""
    return TokenReading(token_class=0, subclass=service + _CURRENCY_SUBCLASS_FIRST, amount=_joined(amount), tid=tid)


def reading_of_management(kind: ManagementKind | ExtendedSet, value16: int, tid: int) -> TokenReading:
    """Return what a module must read in a management token."""
    return TokenReading(token_class=2, subclass=kind, amount=value16, tid=tid)


def crc16_arc(text: bytes) -> int:
    """Return the CRC of a line: CRC-16/ARC, which is that of the tokens with another start and byte order."""
    crc = 0
    for byte in text:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc


def _crc_digits(text: bytes) -> bytes:
    return b"%04X" % crc16_arc(text)


def _mint_request(
    command: Command, register: int, meter: MeterKeyRecord, subclass: int, amount_field: str, tid: int
) -> Request:
    fields = (
        _number(register),
        _text(meter.pan.digits),
        _number(meter.tariff_index),
        _number(int(meter.ea)),
        _number(TOKEN_CARRIER),
        _number(subclass),
        amount_field,
        _octets(tid, _TID_OCTETS),
    )
    return Request(command=command, body="".join(fields))


def _number(value: int) -> str:
    return f"N{value:d}~"


def _text(value: str) -> str:
    return f"P{value}~"


def _octets(value: int, octets: int) -> str:
    return f"H{value:0{2 * octets}X}~"


def _joined(amount: CurrencyField) -> int:
    return amount.sign_exponent << 16 | amount.amount16


def _fields(reply: Reply, types: str) -> list[str]:
    """Read the first fields of a reply; further ones, which a later edition may add, are left alone."""
    values: list[str] = []
    at = 0
    for letter in types:
        match = _FIELD[letter].match(reply.body, at)
        if match is None:
            raise GarbledReply(
                f"module's reply {reply.header}: expected fields {types}, got another in place {len(values) + 1}"
            )
        values.append(match[1])
        at = match.end()
    return values


def _tokens(in_hex: str, in_digits: str, tokens: int) -> tuple[TokenNumber, ...]:
    if len(in_hex) != tokens * _TOKEN_HEX_DIGITS or len(in_digits) != tokens * TOKEN_DIGITS:
        raise GarbledReply(f"module's reply: expected {tokens} tokens in both forms, got other lengths")
    hexes = [in_hex[at : at + _TOKEN_HEX_DIGITS] for at in range(0, len(in_hex), _TOKEN_HEX_DIGITS)]
    digits = [in_digits[at : at + TOKEN_DIGITS] for at in range(0, len(in_digits), TOKEN_DIGITS)]
    try:
        numbers = tuple(TokenNumber(each) for each in digits)
        agree = [int(each, 16) for each in hexes] == [int(each) for each in digits]
    except (MalformedToken, ValueError):
        raise GarbledReply(f"module's reply: expected {tokens} tokens in both forms, got other characters") from None
    if not agree:
        raise GarbledReply("module's reply: expected one token in two forms, got two different ones")
    return numbers


def _refused(status: str, whose: str) -> TokenRefused:
    name = STATUS_NAMES.get(status, "a status of the maker's own")
    kind = _REFUSALS_OF_TOKEN.get(status, ModuleRefused)
    return TokenRefused(code=kind.code, reason=f"token: expected a good one, got {name}, {whose}")


def _raise_general(status: str, whose: str) -> None:
    name = STATUS_NAMES.get(status, "a status of the maker's own")
    message = f"security module: expected an answer, got general error {status} ({name}), {whose}"
    match status:
        case "20":
            raise GarbledReply(message)
        case "21":
            raise ModuleRefused(message)
        case "01" | "57" | "58":
            raise ModuleUnavailable(message)
        case _:
            # No public source names a status for "busy". A general error of another number says nothing of the
            # request itself, so the request may be sent again.
            raise ModuleBusy(message)


_CRC_STATUS = "03"
# Source: the table of leovel/PrepaidTokenServer (HsmResponseHeaderFactory), in the words of STS 600-8-6.
STATUS_NAMES = {
    "01": "device failure",
    "02": "format error",
    "03": "token CRC error",
    "05": "key type error",
    "20": "checksum error",
    "21": "invalid request header",
    "22": "register empty",
    "26": "KMC key state error",
    "27": "KEK slot not found",
    "28": "vending key register not found",
    "29": "key change not allowed",
    "31": "insufficient credit balance",
    "40": "key parameter error",
    "41": "key expired",
    "42": "key issue expired",
    "43": "key not yet active",
    "44": "TID out of window",
    "48": "subclass not allowed",
    "49": "format error in key data",
    "57": "tampered",
    "58": "application error",
    "60": "wrong number of fields",
    "61": "wrong type of field",
    "62": "wrong encoding of field",
    "63": "field out of range",
    "76": "invalid PAN",
    "80": "credit under a default key",
    "85": "invalid number of tokens",
    "EE": "extended error",
}
_REFUSALS: dict[str, type[SecurityModuleError | KeyChangeRefused]] = {
    "01": ModuleUnavailable,
    "05": CreditKeyTypeRefused,
    "22": VendingKeyUnknown,
    "28": VendingKeyUnknown,
    "29": KeyChangeRefused,
    "31": RiskLimitReached,
    "41": VendingKeyExpired,
}
_REFUSALS_OF_TOKEN: dict[str, type[StsError]] = {
    "03": TokenCrcMismatch,
    "41": VendingKeyExpired,
    "80": CreditKeyTypeRefused,
}
