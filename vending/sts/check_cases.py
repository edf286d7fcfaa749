"""What each named algorithm of a vector file computes from its inputs.

Enters: an algorithm name and the case's inputs as decoded JSON. Leaves: every field this engine can compute
from them, by the file's own field names. Never: a verdict (see check), files.
"""

import re
from collections.abc import Callable, Mapping

from vending.sts.check_fields import clear_fields, encrypted_fields
from vending.sts.check_inputs import Case, CaseBroken, CaseInputs, CaseSkipped, Computed, Reading
from vending.sts.check_key_change import read_key_change
from vending.sts.check_tokens import (
    NEEDS_TABLES,
    TokenKind,
    given_decoder_key,
    hangs_on_tables,
    read_derived,
    read_given_key,
)
from vending.sts.identity import (
    EncryptionAlgorithm,
    KeyType,
    control_block,
    is_luhn_valid,
    luhn_check_digit,
    pan_block,
    split_pan,
)
from vending.sts.misty1 import Misty1
from vending.sts.sta import StaTables
from vending.sts.tid import is_key_expired, tid_at
from vending.sts.tokens import (
    DisplayTest,
    bits66_of,
    crc16,
    crc_of,
    display_test_control,
    encode_token,
    is_currency_subclass,
    open_frame,
    seal_frame,
)

__all__ = ["CaseBroken", "CaseInputs", "CaseSkipped", "Computed", "compute_case", "read_case"]

_KIND = r"class([0-2])/(\d{1,2})(?: currency)? "
_DERIVED_NAME = re.compile(_KIND + r"DKGA(\d\d) EA(\d\d)")
_GIVEN_KEY_NAME = re.compile(
    rf"(?:{_KIND})?(?:DKGA\d\d )?EA(07|11) (?:from decoder key|with given decoder key|SAMPLE tables)(?: .{{0,80}})?"
)
_KEY_CHANGE_NAME = re.compile(r"class2 key change set DKGA(\d\d) EA(\d\d)(?: SAMPLE tables)?")
_CLEAR_NAME = re.compile(r"class(1)/([0-2])(?: extended read)? \(not encrypted\)")
# What an opened token says without its cipher.
_CLEAR_FIELDS = frozenset({"class", "hex66"})


def compute_case(algorithm: str, inputs: CaseInputs) -> Computed:
    """Compute every field of a case, read in the first way where there are several.

    Raises: CaseSkipped, CaseBroken, or the StsError of the computation itself.
    """
    return read_case(algorithm, inputs)[0].computed


def read_case(
    algorithm: str,
    inputs: CaseInputs,
    *,
    expected: Mapping[str, object] | None = None,
    ea07_tables: StaTables | None = None,
) -> tuple[Reading, ...]:
    """Return what comes out of a case, in each way it can be read; the likelier way first.

    `expected` is looked at only where a case gives a token and its key in place of the contents.
    Raises: CaseSkipped, CaseBroken, or the StsError of the computation itself.
    """
    case = Case(algorithm=algorithm, inputs=inputs, expected=expected or {}, ea07_tables=ea07_tables)
    if match := _DERIVED_NAME.fullmatch(algorithm):
        token_class, subclass, dkga, ea = match.groups()
        return read_derived(case, _kind(inputs, token_class, subclass, ea), dkga)
    if match := _KEY_CHANGE_NAME.fullmatch(algorithm):
        return read_key_change(case, match.group(1), _cipher_of(match.group(2)))
    if match := _GIVEN_KEY_NAME.fullmatch(algorithm):
        token_class, subclass, ea = match.groups()
        return read_given_key(case, _kind(inputs, token_class, subclass, ea))
    if match := _CLEAR_NAME.fullmatch(algorithm):
        return (Reading(computed=_compute_clear(inputs, int(match.group(2)))),)
    if algorithm.startswith("decode "):
        return (_decode_reading(case),)
    if compute := _BY_NAME.get(algorithm):
        return (Reading(computed=compute(inputs)),)
    raise CaseSkipped("this algorithm is not known here")


def _kind(inputs: CaseInputs, token_class: str | None, subclass: str | None, ea: str) -> TokenKind:
    """Return what the name says of the token, and by the inputs where the name is silent."""
    class_number = int(token_class) if token_class is not None else int(inputs.text("class", "[0-2]"))
    subclass_number = int(subclass) if subclass is not None else inputs.number("subclass")
    if class_number == 1:
        raise CaseSkipped("class 1 is not encrypted, so it has no key to check")
    if subclass_number > 15:
        raise CaseSkipped("this algorithm is not known here")
    for name, told in (("class", class_number), ("subclass", subclass_number), ("ea", int(ea))):
        inputs.agree(name, told)
    return TokenKind(token_class=class_number, subclass=subclass_number, ea=_cipher_of(ea))


def _cipher_of(ea: str) -> EncryptionAlgorithm:
    try:
        return EncryptionAlgorithm(ea)
    except ValueError:
        raise CaseSkipped(f"EA{ea[:2]} is not implemented") from None


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


def _decode_reading(case: Case) -> Reading:
    number = case.inputs.token()
    computed = _compute_form(case.inputs)
    if computed["class"] in (0, 2):
        ea = _decode_cipher(case)
        frame = open_frame(number, given_decoder_key(case, ea))
        if not frame.crc_ok and hangs_on_tables(case, ea):
            raise CaseSkipped(NEEDS_TABLES)
        more = encrypted_fields(frame, ea)
    else:
        frame = open_frame(number, None)
        more = clear_fields(frame)
    computed |= {"subclass": frame.subclass, "field44": frame.field44, "crc": frame.crc, "crc_ok": frame.crc_ok}
    computed["block64"] = frame.subclass << 60 | frame.field44 << 16 | frame.crc
    return Reading(computed=computed | more)


def _decode_cipher(case: Case) -> EncryptionAlgorithm:
    """Return the cipher by the input, else by the name, else by the length of the key."""
    named = re.search(r"EA(\d\d)", case.algorithm)
    if case.inputs.has("ea"):
        ea = _cipher_of(f"{case.inputs.number('ea'):02d}")
        if named and named.group(1) != ea:
            raise CaseBroken(f"input ea contradicts the algorithm's name: expected {named.group(1)}")
        return ea
    if named:
        return _cipher_of(named.group(1))
    key = case.inputs.text("decoder_key", "[0-9A-Fa-f]{16}|[0-9A-Fa-f]{32}")
    return EncryptionAlgorithm.STA if len(key) == 16 else EncryptionAlgorithm.MISTY1


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
