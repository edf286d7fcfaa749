"""What each named algorithm of a vector file computes from its inputs.

Enters: an algorithm name and the case's inputs as decoded JSON. Leaves: every field this engine can compute
from them, by the file's own field names. Never: a verdict (see check), files.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Context, Decimal

from vending.sts.amounts import CurrencyField, encode_unit_amount
from vending.sts.identity import (
    BaseDate,
    EncryptionAlgorithm,
    KeyDerivation,
    KeyType,
    MeterKeyRecord,
    MeterPan,
    control_block,
    is_luhn_valid,
    luhn_check_digit,
    pan_block,
    split_pan,
)
from vending.sts.keys import DecoderKey, derive_decoder_key
from vending.sts.misty1 import Misty1
from vending.sts.tid import is_key_expired, tid_at
from vending.sts.tokens import (
    CreditService,
    CurrencyCredit,
    DisplayTest,
    Token,
    TokenNumber,
    UnitCredit,
    bits66_of,
    crc16,
    crc_of,
    display_test_control,
    encode_token,
    is_currency_subclass,
    open_frame,
    seal_frame,
)

# A number is compared as a number, text as 20 digits, a Decimal to the digits its source prints.
Computed = dict[str, int | bool | str | Decimal]

_CREDIT_NAME = re.compile(r"class(0)/([0-7])(?: currency)? DKGA(\d\d) EA(\d\d)")
_CLEAR_NAME = re.compile(r"class(1)/([0-2])(?: extended read)? \(not encrypted\)")


class CaseSkipped(Exception):
    """The case cannot be checked here; its text is the reason."""


class CaseBroken(Exception):
    """An input is there and cannot be what its name says; its text says which."""


class CaseInputs:
    """The inputs of one case, read by the form their name promises.

    Invariants: an absent input raises CaseSkipped, one of a wrong form CaseBroken; no message repeats the
    content of an input, since some are keys.
    """

    def __init__(self, inputs: Mapping[str, object]) -> None:
        self._inputs = inputs

    def has(self, name: str) -> bool:
        """Tell whether the input is given."""
        return self._inputs.get(name) is not None

    def text(self, name: str, pattern: str) -> str:
        """Return an input that matches the pattern as a whole; a JSON number counts as its digits."""
        if not self.has(name):
            raise CaseSkipped(f"incomplete: input {name} is missing")
        raw = self._inputs[name]
        text = str(raw) if isinstance(raw, str | int | float) and not isinstance(raw, bool) else ""
        if not re.fullmatch(pattern, text, re.ASCII):
            raise CaseBroken(f"input {name} is not of the form {pattern}")
        return text

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
            raise CaseBroken(f"input {name} contradicts the algorithm's name: expected {told}")


def compute_case(algorithm: str, inputs: CaseInputs) -> Computed:
    """Compute every field of a case.

    Raises: CaseSkipped, CaseBroken, or the StsError of the computation itself.
    """
    if match := _CREDIT_NAME.fullmatch(algorithm):
        return _compute_credit(inputs, *(int(part) for part in match.groups()))
    if match := _CLEAR_NAME.fullmatch(algorithm):
        return _compute_clear(inputs, int(match.group(2)))
    if algorithm.startswith("decode "):
        return _compute_decode(algorithm, inputs)
    if compute := _BY_NAME.get(algorithm):
        return compute(inputs)
    raise CaseSkipped(_reason_to_skip(algorithm))


def _reason_to_skip(algorithm: str) -> str:
    if "EA07" in algorithm:
        return "EA07 is not implemented"
    if "key change" in algorithm:
        return "key change sets are not implemented"
    if algorithm.startswith("class2/"):
        return "class 2 tokens are not implemented"
    return "this algorithm is not known here"


def _compute_credit(inputs: CaseInputs, token_class: int, subclass: int, dkga: int, ea: int) -> Computed:
    for name, told in (("class", token_class), ("subclass", subclass), ("dkga", dkga), ("ea", ea)):
        inputs.agree(name, told)
    if ea != 11:
        raise CaseSkipped(f"EA{ea:02d} is not implemented")
    if dkga != 4:
        raise CaseSkipped(f"DKGA{dkga:02d} is not implemented")
    meter = _meter_record(inputs)
    decoder_key = derive_decoder_key(inputs.octets("vk", 20), meter)
    tid = tid_at(inputs.issued_at(), meter.base_date)
    computed: Computed = {"decoder_key": int.from_bytes(decoder_key.key, "big"), "tid": tid}
    token: Token
    if is_currency_subclass(token_class, subclass):
        amount = inputs.amount("currency_amount")
        # The vectors give whole units of the currency; the field counts steps of 10^-5 of one.
        field = CurrencyField.encode(_steps_up(amount, decimals=5))
        computed |= {"sign_exp_nibble": field.sign_exponent, "payload16": field.amount16}
        computed["source_amount"] = amount
        token = CurrencyCredit(service=CreditService(subclass - 4), tid=tid, amount=field)
    else:
        amount16 = encode_unit_amount(_steps_up(inputs.amount("units"), decimals=1))
        computed["payload16"] = amount16
        token = UnitCredit(service=CreditService(subclass), rnd=inputs.number("rnd"), tid=tid, amount16=amount16)
    computed["token"] = encode_token(token, decoder_key).digits
    return computed


def _steps_up(amount: Decimal, *, decimals: int) -> int:
    """Return an amount in steps of so many decimal places.

    Rounds: up, so a credit finer than a step grows and a debit shrinks.
    """
    # 70 digits hold any accepted input (40 before the point, 20 after it), so only the last step rounds.
    return int(amount.scaleb(decimals, Context(prec=70)).to_integral_value(ROUND_CEILING))


def _meter_record(inputs: CaseInputs) -> MeterKeyRecord:
    kt = int(inputs.text("kt", "[0-3]"))
    if kt not in (KeyType.DEFAULT, KeyType.UNIQUE):
        raise CaseSkipped(f"DKGA04 is not implemented for key type {kt}")
    pan = MeterPan.parse(inputs.text("pan", r"\d{18}"))
    return MeterKeyRecord(
        iin=pan.iin,
        drn=pan.drn,
        ea=EncryptionAlgorithm.MISTY1,
        dkga=KeyDerivation.HMAC_SHA256,
        sgc=inputs.text("sgc", r"\d{6}"),
        kt=KeyType(kt),
        krn=inputs.number("krn"),
        tariff_index=inputs.number("ti"),
        # The digits of a token do not depend on the expiry number; the vectors that test it are named so.
        ken=inputs.number("ken") if inputs.has("ken") else 255,
        base_date=inputs.base_date(),
    )


def _compute_clear(inputs: CaseInputs, subclass: int) -> Computed:
    if subclass == 2:
        return {"token": seal_frame(1, 2, inputs.hexadecimal("field44_hex", 11), None).digits}
    maker_digits = 2 if subclass == 0 else 4
    inputs.agree("control_bits", 44 - 4 * maker_digits)
    if not inputs.has("control_hex") and not inputs.has("test_number"):
        raise CaseSkipped("incomplete: inputs control_hex and test_number are missing")
    controls = set()
    if inputs.has("control_hex"):
        controls.add(inputs.hexadecimal("control_hex", 9))
    if inputs.has("test_number"):
        controls.add(display_test_control(inputs.number("test_number"), maker_digits=maker_digits))
    if len(controls) > 1:
        raise CaseBroken("inputs control_hex and test_number contradict each other")
    token = DisplayTest(maker_digits=maker_digits, maker_code=inputs.number("mfr_code"), control=controls.pop())
    return {"token": encode_token(token, None).digits}


def _compute_decode(algorithm: str, inputs: CaseInputs) -> Computed:
    number = inputs.token()
    computed = _compute_form(inputs)
    if computed["class"] == 2:
        raise CaseSkipped("class 2 tokens are not implemented")
    frame = open_frame(number, _decoder_key(algorithm, inputs) if computed["class"] == 0 else None)
    body = frame.field44
    computed |= {"subclass": frame.subclass, "field44": body, "crc": frame.crc, "crc_ok": frame.crc_ok}
    if frame.token_class == 0:
        head = "sign_exp_nibble" if is_currency_subclass(0, frame.subclass) else "rnd"
        computed |= {head: body >> 40, "tid": body >> 16 & 0xFFFFFF, "payload16": body & 0xFFFF}
    elif frame.subclass == 0:
        computed |= {"control36": body >> 8, "mfrcode": body & 0xFF}
    elif frame.subclass == 1:
        computed |= {"control28": body >> 16, "mfrcode": body & 0xFFFF}
    elif frame.subclass == 2:
        computed["index"] = body >> 38
    return computed


def _decoder_key(algorithm: str, inputs: CaseInputs) -> DecoderKey:
    if "EA07" in algorithm or (inputs.has("ea") and inputs.number("ea") == 7):
        raise CaseSkipped("EA07 is not implemented")
    inputs.agree("ea", 11)
    return DecoderKey(ea=EncryptionAlgorithm.MISTY1, key=inputs.octets("decoder_key", 16))


def _compute_form(inputs: CaseInputs) -> Computed:
    bits66 = bits66_of(inputs.token())
    return {"class": bits66 >> 27 & 0b11, "hex66": bits66}


def _compute_crc(inputs: CaseInputs) -> Computed:
    if inputs.has("bits50_decimal") or inputs.has("hex"):
        given = set()
        if inputs.has("bits50_decimal"):
            given.add(inputs.number("bits50_decimal"))
        if inputs.has("hex"):
            given.add(inputs.hexadecimal("hex", 14))
        if len(given) > 1 or (bits50 := given.pop()) >> 50:
            raise CaseBroken("inputs bits50_decimal and hex are not one number of 50 bits")
        crc = crc16(bits50, currency=is_currency_subclass(bits50 >> 48, bits50 >> 44 & 0xF))
        return {"crc": crc, "hex": crc}
    token_class, subclass = inputs.number("class"), inputs.number("subclass")
    head = inputs.number("sign_exp_nibble" if is_currency_subclass(token_class, subclass) else "rnd")
    field44 = head << 40 | inputs.number("tid") << 16 | inputs.hexadecimal("amount16", 4)
    crc = crc_of(token_class, subclass, field44)
    return {"crc": crc, "hex": crc}


def _compute_tid(inputs: CaseInputs) -> Computed:
    return {"tid": tid_at(inputs.issued_at(), inputs.base_date())}


def _compute_ken(inputs: CaseInputs) -> Computed:
    tid = tid_at(inputs.issued_at(), inputs.base_date())
    return {"tid": tid, "tid_msb8": tid >> 16, "expired": is_key_expired(tid, inputs.number("ken"))}


def _compute_luhn(inputs: CaseInputs) -> Computed:
    return {"check": luhn_check_digit(inputs.text("digits", r"\d{1,64}"))}


def _compute_luhn_negative(inputs: CaseInputs) -> Computed:
    """Say which digit comes out, and whether the given one (or the number's own last one) is it."""
    digits = inputs.text("digits", r"\d{1,64}")
    computed: Computed = dict.fromkeys(("check", "check_not", "not_check"), luhn_check_digit(digits))
    if inputs.has("check"):
        valid = luhn_check_digit(digits) == inputs.number("check")
    else:
        valid = len(digits) > 1 and is_luhn_valid(digits)
    return computed | dict.fromkeys(("valid", "is_valid", "check_ok", "ok"), valid)


def _compute_pan_checks(inputs: CaseInputs) -> Computed:
    pan = inputs.text("pan", r"\d{18}")
    _, iain = split_pan(pan)
    return {
        "pan_check_ok": is_luhn_valid(pan),
        "drn_check": luhn_check_digit(iain[:-1]),
        "drn_check_ok": is_luhn_valid(iain),
    }


def _compute_pan_block(inputs: CaseInputs) -> Computed:
    iin, iain = inputs.text("iin", r"\d{4}|\d{6}"), inputs.text("iain", r"\d{11}|\d{13}")
    block = int.from_bytes(pan_block(iin, iain, KeyType(int(inputs.text("kt", "[0-3]")))), "big")
    return {"panblock": block, "block": block}


def _compute_control_block(inputs: CaseInputs) -> Computed:
    block = control_block(
        kt=KeyType(int(inputs.text("kt", "[0-3]"))),
        sgc=inputs.text("sgc", r"\d{6}"),
        tariff_index=inputs.number("ti"),
        krn=inputs.number("krn"),
    )
    return {"block": int.from_bytes(block, "big"), "controlblock": int.from_bytes(block, "big")}


def _compute_misty1(inputs: CaseInputs) -> Computed:
    cipher = Misty1(inputs.octets("key", 16))
    if inputs.has("cipher") and not inputs.has("plain"):
        return {"plain": cipher.decrypt(inputs.hexadecimal("cipher", 16))}
    return {"cipher": cipher.encrypt(inputs.hexadecimal("plain", 16))}


_BY_NAME: dict[str, Callable[[CaseInputs], Computed]] = {
    "CRC-16": _compute_crc,
    "CONTROLBlock": _compute_control_block,
    "KEN check": _compute_ken,
    "Luhn mod 10": _compute_luhn,
    "Luhn mod 10 negative": _compute_luhn_negative,
    "MISTY1 ECB": _compute_misty1,
    "MeterPAN check digits": _compute_pan_checks,
    "PANBlock": _compute_pan_block,
    "TID": _compute_tid,
    "decimal/hex form of a 66-bit token": _compute_form,
}
