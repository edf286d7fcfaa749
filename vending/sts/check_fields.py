"""The fields of an opened token, by the names that vector files give them.

Enters: a token taken apart. Leaves: its fields as numbers. Never: a verdict (see check).
"""

from decimal import Decimal

from vending.sts.amounts import decode_unit_amount
from vending.sts.check_inputs import Computed, DecimalDigits
from vending.sts.errors import UnsupportedToken
from vending.sts.identity import EncryptionAlgorithm
from vending.sts.key_change import (
    KEY_CHANGE_SUBCLASSES,
    KeyChangeFirst,
    KeyChangeFourth,
    KeyChangeSecond,
    KeyChangeSection,
    KeyChangeThird,
    KeyChangeThirdSta,
    unpack_section,
)
from vending.sts.management import CONTROL_VALUE_MAX, EXTENDED_SET_SUBCLASS
from vending.sts.tokens import TokenFrame, is_currency_subclass

# Management values that stand in the token as they are, by subclass.
_RAW_NAMES = {1: "register", 2: "value", 5: "pad", 7: "value"}


def encrypted_fields(frame: TokenFrame, ea: EncryptionAlgorithm) -> Computed:
    """Return the fields of an opened token of class 0 or 2."""
    if frame.token_class == 2 and frame.subclass in KEY_CHANGE_SUBCLASSES:
        try:
            return _fields_of_section(unpack_section(frame, ea))
        except UnsupportedToken:
            return {}
    fields = _fields_with_tid(frame)
    payload16 = frame.field44 & 0xFFFF
    if frame.token_class == 0 and frame.subclass < 4:
        fields["units"] = Decimal(decode_unit_amount(payload16)) / 10
    elif frame.token_class == 2 and frame.subclass in (0, 6):
        fields["value"] = decode_unit_amount(payload16)
    elif frame.token_class == 2 and frame.subclass in _RAW_NAMES:
        fields[_RAW_NAMES[frame.subclass]] = payload16
    elif frame.token_class == 2 and frame.subclass == EXTENDED_SET_SUBCLASS:
        fields |= {"index": payload16 >> 10, "value": payload16 & CONTROL_VALUE_MAX}
    return fields


def clear_fields(frame: TokenFrame) -> Computed:
    """Return the fields of a token of class 1."""
    body = frame.field44
    if frame.subclass == 0:
        return {"control36": body >> 8, "control": body >> 8, "mfrcode": body & 0xFF}
    if frame.subclass == 1:
        return {"control28": body >> 16, "control": body >> 16, "mfrcode": body & 0xFFFF}
    return {"index": body >> 38} if frame.subclass == 2 else {}


def _fields_with_tid(frame: TokenFrame) -> Computed:
    """Return the fields of a credit or management token with a TID."""
    body = frame.field44
    head = "sign_exp_nibble" if is_currency_subclass(frame.token_class, frame.subclass) else "rnd"
    return {head: body >> 40, "tid": body >> 16 & 0xFFFFFF, "payload16": body & 0xFFFF, "amount16": body & 0xFFFF}


def _fields_of_section(section: KeyChangeSection) -> Computed:
    """Return the fields of one section by the names of the standard, in lower case."""
    match section:
        case KeyChangeFirst():
            flags: Computed = dict.fromkeys(("res_3kct", "3kct", "res"), int(section.third_section))
            return flags | {
                "kenho": section.ken_high,
                "krn": section.krn,
                "ro": int(section.roll_over),
                "kt": int(section.kt),
                "nkho": section.key_part,
            }
        case KeyChangeSecond():
            tariff_index = DecimalDigits(f"{section.tariff_index:02d}")
            return {"kenlo": section.ken_low, "ti": tariff_index, "nklo": section.key_part}
        case KeyChangeThirdSta():
            return {"sgc": DecimalDigits(f"{section.sgc:06d}")}
        case KeyChangeThird():
            return {"sgclo": section.sgc_low, "nkmo2": section.key_part}
        case KeyChangeFourth():
            return {"sgcho": section.sgc_high, "nkmo1": section.key_part}
