"""The messages of a hardware security module and the settings that name it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.security import (
    CreditKeyTypeRefused,
    ExtendedSet,
    ModuleBusy,
    ModuleRefused,
    ModuleUnavailable,
    RiskLimitReached,
    TokenRefused,
    VendingKeyExpired,
    VendingKeyUnknown,
)
from vending.sts.amounts import CurrencyField
from vending.sts.errors import KeyChangeRefused, UnsupportedToken
from vending.sts.identity import BaseDate, Drn, EncryptionAlgorithm, KeyDerivation, KeyType, MeterKeyRecord
from vending.sts.management import ExtendedControl, ExtendedFlag, Management, ManagementKind
from vending.sts.tokens import CreditService, CurrencyCredit, TokenNumber, UnitCredit
from vending.sts_module_messages import (
    GarbledReply,
    TokenReading,
    attributes_request,
    crc16_arc,
    currency_credit_request,
    decode_reply,
    echo_request,
    identity_request,
    key_change_request,
    key_change_tokens,
    management_request,
    read_attributes,
    read_echo,
    read_identity,
    read_key_change,
    read_token,
    read_verification,
    require_done,
    token_of,
    unit_credit_request,
    verify_request,
)
from vending.sts_module_settings import (
    BadModuleSetting,
    RegisterMismatch,
    SerialAddress,
    TcpAddress,
    parse_module_address,
    parse_register_map,
)

METER = MeterKeyRecord(
    iin="600727",
    drn=Drn("00000000000"),
    ea=EncryptionAlgorithm.MISTY1,
    dkga=KeyDerivation.HMAC_SHA256,
    sgc="201457",
    kt=KeyType.UNIQUE,
    krn=1,
    tariff_index=1,
    ken=255,
    base_date=BaseDate.Y2014,
)
DIGITS = "12345678901234567890"
HEX17 = "0AB54A98CEB1F0AD2"


def reply(text: str) -> bytes:
    """Return a line as it comes, with its CRC."""
    return f"{text}{crc16_arc(text.encode()):04X}".encode()


def test_crc_of_lines_is_arc() -> None:
    """The check value of CRC-16/ARC, as two public drivers state it."""
    assert crc16_arc(b"123456789") == 0xBB3D


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        # The text of this echo is that of leovel/PrepaidTokenServer (HsmDiagnosticService).
        (echo_request("12345"), "GL?EC0000512345"),
        (identity_request(), "SM?DI"),
        (attributes_request(3), "SM?GAN3~"),
        (
            unit_credit_request(3, METER, service=CreditService.WATER, amount16=0x102, tid=0x19EB23),
            "SM?VCN3~P600727000000000009~N1~N11~N2~N1~H0102~H19EB23~",
        ),
        (
            currency_credit_request(
                3, METER, service=CreditService.ELECTRICITY, amount=CurrencyField.encode(-100_000), tid=7
            ),
            "SM?VCN3~P600727000000000009~N1~N11~N2~N4~H0860A9~H000007~",
        ),
        (
            management_request(3, METER, kind=ManagementKind.SET_POWER_LIMIT, value16=0xFFFF, tid=0xFFFFFF),
            "SM?VMN3~P600727000000000009~N1~N11~N2~N0~HFFFF~HFFFFFF~",
        ),
        (
            management_request(3, METER, kind=ExtendedSet.EXTENDED_SET, value16=0, tid=0),
            "SM?VMN3~P600727000000000009~N1~N11~N2~N10~H0000~H000000~",
        ),
        (
            key_change_request(3, 12, METER, replace(METER, tariff_index=99), tokens=4),
            "SM?VKN3~N12~P600727000000000009~N1~N11~N2~N99~N4~",
        ),
        (
            verify_request(3, METER, TokenNumber(DIGITS)),
            f"SM?VTN3~P600727000000000009~N1~N11~P{DIGITS}~",
        ),
    ],
)
def test_request_is_command_typed_fields_crc_and_carriage_return(request_: object, text: str) -> None:
    """Every command has its fields in the order that public drivers send them."""
    assert request_.line == reply(text) + b"\r"  # type: ignore[attr-defined]  # A Request, named by its line.


def test_request_shows_no_fields_in_its_text() -> None:
    """A verify request carries a whole token, which belongs in no log."""
    assert DIGITS not in repr(verify_request(3, METER, TokenNumber(DIGITS)))
    assert DIGITS not in repr(decode_reply(reply(f"SM!VC00P{HEX17}~P{DIGITS}~")))


def test_replies_read_as_typed_answers() -> None:
    """Echo, identity, attributes, one token, a set, and a verification."""
    assert read_echo(decode_reply(reply("GL!EC0000512345"))) == "12345"
    identity = read_identity(decode_reply(reply("SM!DI00P00000001~PSTS6-001~")))
    assert (identity.module_id, identity.firmware) == ("00000001", "STS6-001")
    told = read_attributes(
        decode_reply(reply("SM!GA00PACT20140101000000;BDT2014;IUT20300101000000;KEN255;KRN1;SGC201457~"))
    )
    assert (told.sgc, told.krn, told.base_date, told.ken, told.check_value) == ("201457", 1, BaseDate.Y2014, 255, None)
    assert read_attributes(decode_reply(reply("SM!GA00PBDT1993;KCVA1B2C3;KEN85;KRN7;SGC460~"))).check_value == "A1B2C3"
    assert read_token(decode_reply(reply(f"SM!VC00P{HEX17}~P{DIGITS}~N9~"))) == TokenNumber(DIGITS)
    minted = read_key_change(decode_reply(reply(f"SM!VK00N1~N2~P{HEX17 * 2}~P{DIGITS * 2}~")), 2)
    assert (minted.roll_over, minted.tokens) == (True, (TokenNumber(DIGITS),) * 2)
    reading = read_verification(decode_reply(reply("SM!VT00N0~N0~N4~H0860A9~H19EB23~")), "meter")
    assert reading == TokenReading(token_class=0, subclass=4, amount=0x860A9, tid=0x19EB23)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"SM!VC00",
        b"SM!VC00P1~0000",
        reply("SM?VC00P1~"),
        reply("SM!VCX0P1~"),
        reply("sm!vc00P1~"),
        reply("SM!VC00P\x07~"),
        reply("SM!VC00") + b"0",
        b"GL!ER2",
        b"\xff\xfe\x00",
    ],
)
def test_line_that_is_no_whole_reply_is_garbled(line: bytes) -> None:
    """What is damaged, cut short or no reply is never read as one."""
    with pytest.raises(GarbledReply):
        decode_reply(line)


@given(at=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_reply_with_any_bit_changed_is_garbled_or_the_same(at: int, bit: int) -> None:
    """The CRC covers every character; only the case of its own letters does not matter."""
    line = bytearray(reply(f"SM!VC00P{HEX17}~P{DIGITS}~"))
    whole = decode_reply(bytes(line))
    line[at % len(line)] ^= 1 << bit
    with suppress(GarbledReply):
        assert decode_reply(bytes(line)) == whole


@pytest.mark.parametrize(
    "text",
    [
        f"SM!VC00P{HEX17}~",
        f"SM!VC00N1~P{DIGITS}~",
        f"SM!VC00P{HEX17}~P{DIGITS[:-1]}1~",
        f"SM!VC00P{HEX17}~P{DIGITS[:-1]}~",
        f"SM!VC00P{HEX17}~P{DIGITS}",
        f"SM!VC00P{'F' * 17}~P{'9' * 20}~",
        f"SM!VC00P{'G' * 17}~P{DIGITS}~",
    ],
)
def test_token_reply_whose_two_forms_disagree_is_garbled(text: str) -> None:
    """A token comes in hexadecimal and in digits; both must be the same number."""
    with pytest.raises(GarbledReply) as refusal:
        read_token(decode_reply(reply(text)))
    assert DIGITS[:-4] not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "SM!GA00PBDT2014;KEN255;KRN1~",
        "SM!GA00PSGC201457;BDT2015;KEN255;KRN1~",
        "SM!GA00PSGC201457;BDT2014;KENx;KRN1~",
        "SM!GA00P~",
        "SM!GA00N1~",
    ],
)
def test_attributes_without_what_must_be_checked_are_garbled(text: str) -> None:
    """A register of which SGC, KRN, base date or KEN is not told is not used."""
    with pytest.raises(GarbledReply):
        read_attributes(decode_reply(reply(text)))


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("SM!VC01", ModuleUnavailable),
        ("SM!VC05", CreditKeyTypeRefused),
        ("SM!VC22", VendingKeyUnknown),
        ("SM!VC31", RiskLimitReached),
        ("SM!VC41", VendingKeyExpired),
        ("SM!VK29", KeyChangeRefused),
        ("SM!VC44", ModuleRefused),
        ("SM!VC97", ModuleRefused),
        ("SM!VCEEPsomething the maker says~", ModuleRefused),
        ("GL!ER20", GarbledReply),
        ("GL!ER21", ModuleRefused),
        ("GL!ER57", ModuleUnavailable),
        ("GL!ER99", ModuleBusy),
    ],
)
def test_status_becomes_the_error_that_says_what_to_do(text: str, refusal: type[Exception]) -> None:
    """Refusals are told from what may be asked again, with the number and its name."""
    with pytest.raises(refusal, match=r"status|general error"):
        require_done(decode_reply(reply(text)), "meter 00000000000")


def test_general_error_without_crc_is_read() -> None:
    """One public driver has modules that answer so."""
    assert decode_reply(b"GL!ER20").is_general_error


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("SM!VT00N3~N0~N0~H~H~", "token_crc_mismatch"),
        ("SM!VT03", "token_crc_mismatch"),
        ("SM!VT00N41~N0~N0~H~H~", "vending_key_expired"),
        ("SM!VT00N80~", "credit_key_type_refused"),
        ("SM!VT00N42~", "module_refused"),
    ],
)
def test_token_that_is_none_of_the_meter_is_refused_by_name(text: str, code: str) -> None:
    """What the module finds wrong with a token is an answer, not an error."""
    refused = read_verification(decode_reply(reply(text)), "meter")
    assert isinstance(refused, TokenRefused)
    assert refused.code == code


def test_readings_become_tokens_with_rnd_not_told() -> None:
    """Every class and subclass that a module reads, and those that no module opens."""

    def token(token_class: int, subclass: int, amount: int) -> object:
        return token_of(TokenReading(token_class=token_class, subclass=subclass, amount=amount, tid=9))

    assert token(0, 2, 5) == UnitCredit(service=CreditService.GAS, rnd=0, tid=9, amount16=5)
    field = CurrencyField(sign_exponent=8, amount16=0x60A9)
    assert token(0, 7, 0x860A9) == CurrencyCredit(service=CreditService.TIME, tid=9, amount=field)
    assert token(2, 5, 0) == Management(kind=ManagementKind.CLEAR_TAMPER, rnd=0, tid=9)
    assert token(2, 10, 3 << 10 | 1023) == ExtendedControl(rnd=0, tid=9, index=3, value=1023)
    assert token(2, 10, 63 << 10 | 511 << 1 | 1) == ExtendedFlag(rnd=0, tid=9, flag=511, value=True)
    for token_class, subclass in ((0, 8), (2, 3), (2, 9), (2, 11), (1, 0)):
        with pytest.raises(UnsupportedToken):
            token(token_class, subclass, 0)


def test_key_change_takes_as_many_tokens_as_the_cipher_says() -> None:
    """EA11 always four; EA07 two, or three with the supply group."""
    assert key_change_tokens(EncryptionAlgorithm.MISTY1, carry_sgc=False) == 4
    assert key_change_tokens(EncryptionAlgorithm.STA, carry_sgc=False) == 2
    assert key_change_tokens(EncryptionAlgorithm.STA, carry_sgc=True) == 3


def test_address_names_a_tcp_port_or_a_serial_port() -> None:
    """Two forms, with 9600 baud unless another is named."""
    assert parse_module_address("tcp://10.0.0.7:5100") == TcpAddress(host="10.0.0.7", port=5100)
    assert parse_module_address("serial:///dev/ttyS0") == SerialAddress(path="/dev/ttyS0", baud=9600)
    assert parse_module_address("serial:///dev/ttyUSB1?baud=115200") == SerialAddress(path="/dev/ttyUSB1", baud=115_200)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.7:5100",
        "tcp://10.0.0.7",
        "tcp://10.0.0.7:0",
        "tcp://10.0.0.7:70000",
        "tcp://10.0.0.7:1/x",
        "tcp://a:1?baud=9600",
        "serial://dev/ttyS0",
        "serial:///",
        "serial:///dev/ttyS0?baud=9601",
        "serial:///dev/ttyS0?baud=fast",
        "serial:///dev/ttyS0?parity=even",
        "serial:///dev/ttyS0?baud",
    ],
)
def test_address_of_another_form_is_refused(text: str) -> None:
    """A misspelt address stops the start."""
    with pytest.raises(BadModuleSetting):
        parse_module_address(text)


def test_register_map_finds_the_register_of_a_meter() -> None:
    """By SGC and KRN, and only with the meter's base date."""
    registers = parse_register_map("1=201457/1/2014/255, 12=201457/2/2035/85,")
    assert registers.of_meter(METER).number == 1
    assert registers.of_key("201457", 2).ken == 85
    with pytest.raises(ModuleRefused, match="register 12: expected base date 2014, got 2035"):
        registers.of_meter(replace(METER, krn=2))
    with pytest.raises(VendingKeyUnknown, match="SGC 201457 KRN 3"):
        registers.of_meter(replace(METER, krn=3))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "1",
        "0=201457/1/2014/255",
        "1=20145/1/2014/255",
        "1=201457/0/2014/255",
        "1=201457/1/2015/255",
        "1=201457/1/2014/256",
        "1=201457/1/2014/255,1=201458/1/2014/255",
        "1=201457/1/2014/255,2=201457/1/1993/255",
    ],
)
def test_register_map_of_another_form_is_refused(text: str) -> None:
    """A number or a key that stands twice would leave open which is meant."""
    with pytest.raises(BadModuleSetting):
        parse_register_map(text)


@pytest.mark.parametrize(
    "told",
    [
        "SGC201458;KRN1;BDT2014;KEN255",
        "SGC201457;KRN2;BDT2014;KEN255",
        "SGC201457;KRN1;BDT1993;KEN255",
        "SGC201457;KRN1;BDT2014;KEN254",
    ],
)
def test_register_that_holds_another_key_is_a_mismatch(told: str) -> None:
    """Supply group, revision, base date and expiry must all be as set."""
    (register,) = parse_register_map("1=201457/1/2014/255").registers
    with pytest.raises(RegisterMismatch, match="register 1: expected SGC 201457 KRN 1 base date 2014 KEN 255, got SGC"):
        register.require(read_attributes(decode_reply(reply(f"SM!GA00P{told}~"))))
