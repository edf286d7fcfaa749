"""What each named algorithm of a vector file computes from its inputs.

Enters: an algorithm name and the case's inputs as decoded JSON. Leaves: every field this engine can compute
from them, by the file's own field names. Never: a verdict (see check), files.
"""

from collections.abc import Callable, Mapping

from vending.sts.check_fields import clear_fields, encrypted_fields
from vending.sts.check_inputs import Case, CaseBroken, CaseInputs, CaseSkipped, Computed, Reading
from vending.sts.check_key_change import read_key_change
from vending.sts.check_names import CaseName, NamedCheck
from vending.sts.check_tokens import (
    NEEDS_TABLES,
    TokenKind,
    given_decoder_key,
    hangs_on_tables,
    read_derived,
    read_given_key,
    token_of_case,
)
from vending.sts.identity import (
    EncryptionAlgorithm,
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
    split_class,
)

__all__ = ["CaseBroken", "CaseInputs", "CaseSkipped", "Computed", "compute_case", "read_case"]


# How files name the digit that must not follow.
LUHN_UNWANTED_DIGITS = ("check", "check_not", "not_check", "wrong_check")


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
    name = CaseName.parse(algorithm)
    case = Case(
        algorithm=algorithm,
        inputs=inputs,
        expected=expected or {},
        ea07_tables=ea07_tables,
        is_sample=name.is_sample,
    )
    if name.named is not None:
        return (Reading(computed=_BY_NAME[name.named](inputs)),)
    if name.is_decode:
        return (_decode_reading(case, name.ea),)
    if name.is_key_change:
        return read_key_change(case, name.dkga or inputs.dkga(), _cipher_of(name.ea or inputs.ea()))
    if name.token_class == 1 and name.subclass in (0, 1, 2):
        return (Reading(computed=_compute_clear(inputs, name.subclass)),)
    if name.token_class not in (0, 2) and not (name.token_class is None and name.gives_decoder_key and name.ea):
        raise CaseSkipped("this algorithm is not known here")
    kind = _kind(case, name)
    if name.gives_decoder_key or (name.dkga is None and inputs.has("decoder_key")):
        return read_given_key(case, kind)
    return read_derived(case, kind, name.dkga or inputs.dkga())


def _kind(case: Case, name: CaseName) -> TokenKind:
    """Return what the name says of the token, and by the inputs or the token itself where the name is silent."""
    inputs = case.inputs
    token_class = name.token_class if name.token_class is not None else _class_given(case)
    subclass = name.subclass if name.subclass is not None else _subclass_given(case)
    ea = name.ea or inputs.ea()
    if token_class == 1:
        raise CaseSkipped("class 1 is not encrypted, so it has no key to check")
    if token_class not in (0, 2) or subclass > 15:
        raise CaseSkipped("this algorithm is not known here")
    for told, number in (("class", token_class), ("subclass", subclass)):
        inputs.agree(told, number)
    inputs.agree_ea(ea)
    return TokenKind(token_class=token_class, subclass=subclass, ea=_cipher_of(ea))


def _class_given(case: Case) -> int:
    number = token_of_case(case)
    return case.inputs.number("class") if case.inputs.has("class") or number is None else split_class(number)[0]


def _subclass_given(case: Case) -> int:
    """Return the subclass of a case that gives a block in place of it; else it must be given."""
    if not case.inputs.has("subclass") and case.inputs.has("block64"):
        return case.inputs.hexadecimal("block64", 16) >> 60
    return case.inputs.number("subclass")


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


def _decode_reading(case: Case, named_ea: str | None) -> Reading:
    number = case.inputs.token()
    computed = _compute_form(case.inputs)
    if computed["class"] in (0, 2):
        ea = _decode_cipher(case, named_ea)
        frame = open_frame(number, given_decoder_key(case, ea))
        if not frame.crc_ok and hangs_on_tables(case, ea):
            raise CaseSkipped(NEEDS_TABLES)
        more = encrypted_fields(frame, ea)
    else:
        frame = open_frame(number, None)
        more = clear_fields(frame)
    computed |= {"subclass": frame.subclass, "field44": frame.field44, "crc": frame.crc, "crc_ok": frame.crc_ok}
    computed["block64"] = frame.block
    return Reading(computed=computed | more)


def _decode_cipher(case: Case, named_ea: str | None) -> EncryptionAlgorithm:
    """Return the cipher by the name, else by the input, else by the length of the key."""
    if named_ea is not None:
        case.inputs.agree_ea(named_ea)
        return _cipher_of(named_ea)
    if case.inputs.has("ea"):
        return _cipher_of(case.inputs.ea())
    key = case.inputs.text("decoder_key", "[0-9A-Fa-f]{16}|[0-9A-Fa-f]{32}")
    return EncryptionAlgorithm.STA if len(key) == 16 else EncryptionAlgorithm.MISTY1


def _compute_form(inputs: CaseInputs) -> Computed:
    bits66 = bits66_of(inputs.token())
    return {"class": bits66 >> 27 & 0b11, "hex66": bits66, "hex": bits66}


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
    computed: Computed = dict.fromkeys(LUHN_UNWANTED_DIGITS, luhn_check_digit(digits))
    if inputs.has("check"):
        valid = luhn_check_digit(digits) == inputs.number("check")
    else:
        valid = len(digits) > 1 and is_luhn_valid(digits)
    computed |= dict.fromkeys(("valid", "is_valid", "check_ok", "ok", "match", "matches"), valid)
    return computed | dict.fromkeys(("invalid", "rejected"), not valid)


def _compute_pan_checks(inputs: CaseInputs) -> Computed:
    pan = inputs.digits("pan", 18)
    _, iain = split_pan(pan)
    return {
        "pan_check_ok": is_luhn_valid(pan),
        "drn_check": luhn_check_digit(iain[:-1]),
        "drn_check_ok": is_luhn_valid(iain),
    }


def _compute_pan_block(inputs: CaseInputs) -> Computed:
    iin, iain = inputs.text("iin", r"\d{4}|\d{6}"), inputs.text("iain", r"\d{11}|\d{13}")
    block = int.from_bytes(pan_block(iin, iain, inputs.key_type()), "big")
    return {"panblock": block, "block": block}


def _compute_control_block(inputs: CaseInputs) -> Computed:
    block = control_block(
        kt=inputs.key_type(),
        sgc=inputs.digits("sgc", 6),
        tariff_index=inputs.number("ti"),
        krn=inputs.number("krn"),
    )
    return {"block": int.from_bytes(block, "big"), "controlblock": int.from_bytes(block, "big")}


def _compute_misty1(inputs: CaseInputs) -> Computed:
    cipher = Misty1(inputs.octets("key", 16))
    if inputs.has("cipher") and not inputs.has("plain"):
        return {"plain": cipher.decrypt(inputs.hexadecimal("cipher", 16))}
    return {"cipher": cipher.encrypt(inputs.hexadecimal("plain", 16))}


_BY_NAME: dict[NamedCheck, Callable[[CaseInputs], Computed]] = {
    NamedCheck.CRC: _compute_crc,
    NamedCheck.CONTROL_BLOCK: _compute_control_block,
    NamedCheck.KEN: _compute_ken,
    NamedCheck.LUHN: _compute_luhn,
    NamedCheck.LUHN_NEGATIVE: _compute_luhn_negative,
    NamedCheck.MISTY1: _compute_misty1,
    NamedCheck.PAN_CHECK_DIGITS: _compute_pan_checks,
    NamedCheck.PAN_BLOCK: _compute_pan_block,
    NamedCheck.TID: _compute_tid,
    NamedCheck.TOKEN_FORM: _compute_form,
}
