"""The token cases of a vector file: credit, management, and tokens under a given decoder key.

Enters: a case with the class, subclass, derivation and cipher of its name. Leaves: the readings of it. Never:
a verdict (see check). A case that does not give the whole contents is read by opening the expected token; what
is given of RND, TID and value must then agree with it.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal

from vending.sts.amounts import CurrencyField, encode_unit_amount
from vending.sts.check_fields import encrypted_fields
from vending.sts.check_inputs import Case, CaseBroken, CaseInputs, CaseSkipped, Computed, Reading, without_blanks
from vending.sts.errors import AmountOutOfRange
from vending.sts.identity import EncryptionAlgorithm, MeterKeyRecord, MeterPan
from vending.sts.keys import DECODER_KEY_BYTES, VENDING_KEY_BYTES_BY_DKGA, DecoderKey, derive_decoder_key
from vending.sts.management import FLAG_INDEX, ExtendedControl, ExtendedFlag, pack_management
from vending.sts.sta import IEC_SAMPLE_TABLES, StaTables
from vending.sts.tid import tid_at
from vending.sts.tokens import TokenFrame, TokenNumber, crc_of, is_currency_subclass, open_frame, seal_frame

WHOLE_UNITS = "currency_amount read as whole units of the currency"
FINE_UNITS = "currency_amount read in 10^-5 of the currency unit"
NEEDS_TABLES = (
    "EA07: the tables file of its source is missing (--ea07-tables), and the IEC sample tables do not confirm it"
)
CURRENCY_DECIMALS = 5
_CIPHER_FIELDS = frozenset({"token", "tokens"})
_VALUE_DECIMALS = {"units": 1, "value": 0}
_EXTENDED = re.compile(
    rf"index ({FLAG_INDEX}) flag (\d{{1,3}}) value ([01])|index (\d{{1,2}}) control value (\d{{1,4}})"
)
_VALUE_NAMES = {
    (0, 0): "units",
    (0, 1): "units",
    (0, 2): "units",
    (0, 3): "units",
    (2, 0): "value",
    (2, 1): "register",
    (2, 2): "value",
    (2, 5): "pad",
    (2, 6): "value",
    (2, 7): "value",
    (2, 10): "ext",
}
# The values whose amount is coded with an exponent; the others stand as they are.
_CODED = frozenset({(0, 0), (0, 1), (0, 2), (0, 3), (2, 0), (2, 6)})


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKind:
    """What the name of a case says of its token."""

    token_class: int
    subclass: int
    ea: EncryptionAlgorithm

    @property
    def is_currency(self) -> bool:
        """Tell whether the amount is in currency."""
        return is_currency_subclass(self.token_class, self.subclass)


def read_derived(case: Case, kind: TokenKind, dkga: str) -> tuple[Reading, ...]:
    """Read a case whose decoder key comes from a vending key."""
    case.inputs.agree_dkga(dkga)
    if _value_name(kind) is None:
        raise CaseSkipped(f"class {kind.token_class} subclass {kind.subclass} has no value to make it from")
    decoder_key, meter = derive_for_case(case, case.inputs, dkga, kind.ea)
    tid = tid_at(case.inputs.issued_at(), meter.base_date)
    return tuple(_sealed_reading(case, kind, decoder_key, tid, value) for value in _values(case.inputs, kind))


def read_given_key(case: Case, kind: TokenKind) -> tuple[Reading, ...]:
    """Read a case that gives the decoder key: made from its contents where they are whole, else opened."""
    inputs = case.inputs
    decoder_key = given_decoder_key(case, kind.ea)
    if inputs.has("block64"):
        return (_block_reading(case, kind, decoder_key, inputs.hexadecimal("block64", 16)),)
    tid = _given_tid(inputs)
    name = _value_name(kind)
    whole = name is not None and any(inputs.has(each) for each in (name, "payload16", "amount16"))
    whole = whole and tid is not None and (kind.is_currency or inputs.has("rnd"))
    if whole and tid is not None:
        return tuple(_sealed_reading(case, kind, decoder_key, tid, value) for value in _values(inputs, kind))
    return (_opened_reading(case, kind, decoder_key, tid),)


def derive_for_case(
    case: Case, inputs: CaseInputs, dkga: str, ea: EncryptionAlgorithm, *, ken: int | None = None
) -> tuple[DecoderKey, MeterKeyRecord]:
    """Derive the decoder key of a meter that the inputs describe; an unconfirmed derivation may be put to test."""
    offered = {str(each): each for each in VENDING_KEY_BYTES_BY_DKGA}
    if dkga not in offered:
        raise CaseSkipped(f"DKGA{dkga[:2]} is not implemented")
    derivation = offered[dkga]
    pan = MeterPan.parse(inputs.digits("pan", 18))
    if ken is None:
        # The digits of a token do not depend on the expiry number; the vectors that test it are named so.
        ken = inputs.number("ken") if inputs.has("ken") else 255
    vending_key = inputs.octets("vk", VENDING_KEY_BYTES_BY_DKGA[derivation])
    meter = MeterKeyRecord(
        iin=pan.iin,
        drn=pan.drn,
        ea=ea,
        dkga=derivation,
        sgc=inputs.digits("sgc", 6),
        kt=inputs.key_type(),
        krn=inputs.number("krn"),
        tariff_index=inputs.number("ti"),
        ken=ken,
        base_date=inputs.base_date(),
    )
    return derive_decoder_key(vending_key, meter, sta_tables=_tables(case), allow_unconfirmed=True), meter


def given_decoder_key(case: Case, ea: EncryptionAlgorithm) -> DecoderKey:
    """Return the decoder key that the case gives, with the tables its name asks for."""
    key = case.inputs.octets("decoder_key", DECODER_KEY_BYTES[ea])
    if ea is not EncryptionAlgorithm.STA:
        return DecoderKey(ea=ea, key=key)
    return DecoderKey(ea=ea, key=key, sta_tables=_tables(case))


def token_of_case(case: Case) -> TokenNumber | None:
    """Return the token that the case gives or expects."""
    if case.inputs.has("token"):
        return case.inputs.token()
    told = case.expected.get("token")
    return TokenNumber(without_blanks(told)) if isinstance(told, str) else None


def hangs_on_tables(case: Case, ea: EncryptionAlgorithm) -> bool:
    """Tell whether this case would need tables that nobody gave."""
    return ea is EncryptionAlgorithm.STA and case.ea07_tables is None and not case.is_sample


def _tables(case: Case) -> StaTables:
    return IEC_SAMPLE_TABLES if case.ea07_tables is None or case.is_sample else case.ea07_tables


def _value_name(kind: TokenKind) -> str | None:
    return "currency_amount" if kind.is_currency else _VALUE_NAMES.get((kind.token_class, kind.subclass))


def _given_tid(inputs: CaseInputs) -> int | None:
    if inputs.has("issue_time") and inputs.has("bdt"):
        tid = tid_at(inputs.issued_at(), inputs.base_date())
        inputs.agree("tid", tid, or_hexadecimal=True)
        return tid
    return inputs.number("tid", or_hexadecimal=True) if inputs.has("tid") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """The value of a token as coded; `sign_exponent` stands in place of RND and is of a currency credit only."""

    payload16: int
    sign_exponent: int | None = None
    amount: Decimal | None = None
    note: str = ""


def _values(inputs: CaseInputs, kind: TokenKind) -> list[_Value]:
    """Return the ways to read the value that is given."""
    if kind.is_currency:
        return _currency_values(inputs)
    name = _value_name(kind)
    assert name is not None
    if not inputs.has(name) and (inputs.has("payload16") or inputs.has("amount16")):
        return [_Value(payload16=inputs.hexadecimal("payload16" if inputs.has("payload16") else "amount16", 4))]
    if name == "ext":
        return [_Value(payload16=_extended_value(inputs))]
    if (kind.token_class, kind.subclass) in _CODED:
        steps = _steps_up(inputs.amount(name), decimals=_VALUE_DECIMALS[name])
        return [_Value(payload16=encode_unit_amount(steps))]
    # A register of all is told as FFFF by some and as 65535 by others.
    return [_Value(payload16=inputs.number(name, or_hexadecimal=True))]


def _currency_values(inputs: CaseInputs) -> list[_Value]:
    amount = inputs.amount("currency_amount")
    values = []
    # Published cases hold for whole units, and their description says steps of 10^-5: both are tried. An amount
    # too large for whole units may still be one of steps, so only the second refusal counts.
    with suppress(AmountOutOfRange):
        field = CurrencyField.encode(_steps_up(amount, decimals=CURRENCY_DECIMALS))
        values.append((field, WHOLE_UNITS))
    try:
        values.append((CurrencyField.encode(_steps_up(amount, decimals=0)), FINE_UNITS))
    except AmountOutOfRange:
        if not values:
            raise
    return [
        _Value(payload16=field.amount16, sign_exponent=field.sign_exponent, amount=amount, note=note)
        for field, note in values
    ]


def _extended_value(inputs: CaseInputs) -> int:
    match = _EXTENDED.fullmatch(inputs.text("ext", r"[a-z0-9 ]{1,60}").strip())
    if match is None:
        raise CaseBroken("input ext is neither a control nor a flag in words")
    _, flag, flag_value, index, control = match.groups()
    token: ExtendedFlag | ExtendedControl
    if flag is not None:
        token = ExtendedFlag(rnd=0, tid=0, flag=int(flag), value=flag_value == "1")
    else:
        token = ExtendedControl(rnd=0, tid=0, index=int(index), value=int(control))
    return pack_management(token)[1] & 0xFFFF


def _sealed_reading(case: Case, kind: TokenKind, decoder_key: DecoderKey, tid: int, value: _Value) -> Reading:
    head = case.inputs.number("rnd", or_hexadecimal=True) if value.sign_exponent is None else value.sign_exponent
    field44 = head << 40 | tid << 16 | value.payload16
    crc = crc_of(kind.token_class, kind.subclass, field44)
    computed: Computed = {
        "class": kind.token_class,
        "subclass": kind.subclass,
        "decoder_key": int.from_bytes(decoder_key.key, "big"),
        "tid": tid,
        "payload16": value.payload16,
        "field44": field44,
        "crc": crc,
        "block64": kind.subclass << 60 | field44 << 16 | crc,
        "token": seal_frame(kind.token_class, kind.subclass, field44, decoder_key).digits,
        "sign_exp_nibble" if kind.is_currency else "rnd": head,
    }
    if value.amount is not None:
        computed["source_amount"] = value.amount
    unsure = _CIPHER_FIELDS if hangs_on_tables(case, kind.ea) else frozenset()
    return Reading(computed=computed, note=value.note, unsure=unsure)


def _block_reading(case: Case, kind: TokenKind, decoder_key: DecoderKey, block: int) -> Reading:
    subclass, field44, crc = block >> 60, block >> 16 & (1 << 44) - 1, block & 0xFFFF
    if subclass != kind.subclass or crc != crc_of(kind.token_class, subclass, field44):
        raise CaseBroken("input block64 is no block of the class and subclass that the name says")
    frame = TokenFrame(token_class=kind.token_class, subclass=subclass, field44=field44, crc=crc, crc_ok=True)
    computed = encrypted_fields(frame, kind.ea) | {"field44": field44, "crc": crc, "block64": block}
    _require_agreement(case.inputs, kind, computed)
    computed["decoder_key"] = int.from_bytes(decoder_key.key, "big")
    computed["token"] = seal_frame(kind.token_class, subclass, field44, decoder_key).digits
    return Reading(computed=computed, unsure=_CIPHER_FIELDS if hangs_on_tables(case, kind.ea) else frozenset())


def _opened_reading(case: Case, kind: TokenKind, decoder_key: DecoderKey, tid: int | None) -> Reading:
    """Open the expected token, where the contents are not given whole, and check it on what is given."""
    number = token_of_case(case)
    if number is None:
        raise CaseSkipped("incomplete: neither the contents nor a token are given")
    frame = open_frame(number, decoder_key)
    if not (frame.crc_ok and (frame.token_class, frame.subclass) == (kind.token_class, kind.subclass)):
        if hangs_on_tables(case, kind.ea):
            raise CaseSkipped(NEEDS_TABLES)
        raise CaseBroken(f"token {number} is under this decoder key none of the class and subclass the name says")
    computed = encrypted_fields(frame, kind.ea) | {"field44": frame.field44, "crc": frame.crc, "block64": frame.block}
    computed |= {"decoder_key": int.from_bytes(decoder_key.key, "big"), "crc_ok": True, "token": number.digits}
    if tid is not None and computed.get("tid") != tid:
        raise CaseBroken(f"token {number}: expected TID {tid} from the issue time, got another")
    _require_agreement(case.inputs, kind, computed)
    return Reading(computed=computed)


def _require_agreement(inputs: CaseInputs, kind: TokenKind, computed: Computed) -> None:
    """Refuse a token whose contents are not the inputs that are given."""
    for name in ("rnd", "tid"):
        if name in computed and inputs.has(name) and inputs.number(name, or_hexadecimal=True) != computed[name]:
            raise CaseBroken(f"input {name} is not what the token carries")
    for name in ("payload16", "amount16"):
        if inputs.has(name) and inputs.hexadecimal(name, 4) != computed.get("payload16"):
            raise CaseBroken(f"input {name} is not what the token carries")
    value_name = _value_name(kind)
    if value_name is not None and inputs.has(value_name):
        carried = (computed.get("payload16"), computed.get("sign_exp_nibble"))
        if carried not in {(value.payload16, value.sign_exponent) for value in _values(inputs, kind)}:
            raise CaseBroken(f"input {value_name} is not what the token carries")


def _steps_up(amount: Decimal, *, decimals: int) -> int:
    """Return an amount in steps of so many decimal places.

    Rounds: up, so a credit finer than a step grows and a debit shrinks.
    """
    # 70 digits hold any accepted input (40 before the point, 20 after it), so only the last step rounds.
    return int(amount.scaleb(decimals, Context(prec=70)).to_integral_value(ROUND_CEILING))
