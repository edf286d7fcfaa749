"""A simulated hardware security module: one line of text in, one line out.

Enters: a request as it came on the line. Leaves: the answer as it goes on the line. Never: sockets, time, a fault (the
edge makes those); the code of the client's messages: this side reads and writes the lines on its own, so that the two
check each other. They share the ciphers, the key derivation and the key-change sections alone.

Standard: STS 600-8-6 as public drivers show it, see docs/security-module-protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vending.sts.errors import StsError
from vending.sts.identity import BaseDate, EncryptionAlgorithm, KeyDerivation, KeyType, MeterKeyRecord, MeterPan
from vending.sts.key_change import issue_key_change
from vending.sts.keys import DecoderKey, derive_decoder_key
from vending.sts.sta import StaTables
from vending.sts.tokens import TokenNumber, open_frame, seal_frame

DONE = "00"
DEVICE_FAILURE = "01"
TOKEN_CRC = "03"
KEY_TYPE_ERROR = "05"
CHECKSUM_ERROR = "20"
INVALID_HEADER = "21"
REGISTER_EMPTY = "22"
KEY_CHANGE_NOT_ALLOWED = "29"
KEY_EXPIRED = "41"
FIELDS_WRONG = "60"
INVALID_PAN = "76"
DEFAULT_KEY_CREDIT = "80"
INVALID_NUMBER_OF_TOKENS = "85"
# The status is the simulator's own choice: no public source names one for "busy".
BUSY_LINE = "GL!ER99"
_CLASS_OF = {"VC": 0, "VM": 2}
_MINT_FIELDS = "NPNNNNHH"
_DKGA_OF_KEY_BYTES = {8: KeyDerivation.DES, 16: KeyDerivation.TRIPLE_DES, 20: KeyDerivation.HMAC_SHA256}


@dataclass(frozen=True, slots=True, kw_only=True)
class VendingRegister:
    """One register of the module and the key in it; the key's length says how decoder keys are derived."""

    sgc: str
    krn: int
    kt: KeyType
    base_date: BaseDate
    ken: int
    key: bytes = field(repr=False)
    check_value: str | None = None


class _Refused(Exception):
    """The command is understood and not done; the only argument is its status."""


class SimulatedModule:
    """A module with keys in its registers.

    Invariants: answers depend on the request and on RND only; `minted` counts the tokens made, also of answers that
    never arrived.
    """

    def __init__(
        self,
        registers: Mapping[int, VendingRegister],
        *,
        rnd_nibble: Callable[[], int],
        sta_tables: StaTables | None = None,
        module_id: str = "SIM00001",
    ) -> None:
        self.registers = dict(registers)
        self.minted = 0
        self._rnd_nibble = rnd_nibble
        self._sta_tables = sta_tables
        self._module_id = module_id

    def answer(self, request: str) -> str:
        """Answer one request; both without the end of line, both with their CRC."""
        text, crc = request[:-4], request[-4:]
        if crc != _crc(text):
            return with_crc(f"GL!ER{CHECKSUM_ERROR}")
        header, body = text[:5], text[5:]
        if header == "GL?EC":
            return with_crc(f"GL!EC{DONE}{body[2:]}")
        command = header[3:]
        answers: dict[str, Callable[[str], str]] = {
            "DI": self._identity,
            "GA": self._attributes,
            "VC": lambda fields: self._mint("VC", fields),
            "VM": lambda fields: self._mint("VM", fields),
            "VK": self._key_change,
            "VT": self._verify,
        }
        if not header.startswith("SM?") or command not in answers:
            return with_crc(f"GL!ER{INVALID_HEADER}")
        try:
            return with_crc(f"SM!{command}{DONE}{answers[command](body)}")
        except _Refused as refused:
            return with_crc(f"SM!{command}{refused.args[0]}")

    def _identity(self, body: str) -> str:
        _values(body, "")
        return f"P{self._module_id}~PSIM-1~"

    def _attributes(self, body: str) -> str:
        (number,) = _values(body, "N")
        held = self._register(number)
        told = [
            "ACT20140101000000",
            f"BDT{held.base_date.starts_at.year}",
            f"KEN{held.ken}",
            f"KRN{held.krn}",
            f"SGC{held.sgc}",
        ]
        if held.check_value is not None:
            told.insert(2, f"KCV{held.check_value}")
        return f"P{';'.join(told)}~"

    def _mint(self, command: str, body: str) -> str:
        number, pan, tariff_index, ea, _, subclass, amount, tid = _values(body, _MINT_FIELDS)
        held = self._register(number)
        token_class = _CLASS_OF[command]
        if token_class == 0 and held.kt is KeyType.DEFAULT:
            raise _Refused(KEY_TYPE_ERROR)
        if int(tid, 16) >> 16 > held.ken:
            raise _Refused(KEY_EXPIRED)
        # A currency amount brings its own upper four bits; where there is none, RND stands in their place.
        upper = int(amount, 16) >> 16 if len(amount) > 4 else self._rnd_nibble()
        field44 = upper << 40 | int(tid, 16) << 16 | int(amount, 16) & 0xFFFF
        token = seal_frame(token_class, int(subclass), field44, self._decoder_key(held, pan, tariff_index, ea))
        self.minted += 1
        return f"P{_hex17(token)}~P{token.digits}~"

    def _key_change(self, body: str) -> str:
        old_number, new_number, pan, old_ti, ea, _, new_ti, count = _values(body, "NNPNNNNN")
        held, wanted = self._register(old_number), self._register(new_number)
        if count not in {"07": ("2", "3"), "11": ("4",)}[f"{int(ea):02d}"]:
            raise _Refused(INVALID_NUMBER_OF_TOKENS)
        if wanted.base_date.starts_at < held.base_date.starts_at:
            raise _Refused(KEY_CHANGE_NOT_ALLOWED)
        tokens = issue_key_change(
            old=_record(held, pan, old_ti, ea),
            new=_record(wanted, pan, new_ti, ea),
            old_key=self._decoder_key(held, pan, old_ti, ea),
            new_key=self._decoder_key(wanted, pan, new_ti, ea),
            carry_sgc=count == "3",
        )
        self.minted += len(tokens)
        roll_over = int(wanted.base_date.starts_at > held.base_date.starts_at)
        joined = "".join(_hex17(each) for each in tokens), "".join(each.digits for each in tokens)
        return f"N{roll_over}~N{len(tokens)}~P{joined[0]}~P{joined[1]}~"

    def _verify(self, body: str) -> str:
        number, pan, tariff_index, ea, digits = _values(body, "NPNNP")
        held = self._register(number)
        frame = open_frame(TokenNumber(digits), self._decoder_key(held, pan, tariff_index, ea))
        if not frame.crc_ok:
            return f"N{int(TOKEN_CRC)}~N0~N0~H~H~"
        if frame.token_class == 0 and held.kt is KeyType.DEFAULT:
            return f"N{DEFAULT_KEY_CREDIT}~N0~N0~H~H~"
        amount = f"{frame.field44 & 0xFFFF:04X}"
        if frame.token_class == 0 and frame.subclass >= 4:
            amount = f"{frame.field44 >> 40:02X}{amount}"
        tid = frame.field44 >> 16 & 0xFFFFFF
        return f"N0~N{frame.token_class}~N{frame.subclass}~H{amount}~H{tid:06X}~"

    def _register(self, number: str) -> VendingRegister:
        held = self.registers.get(int(number))
        if held is None:
            raise _Refused(REGISTER_EMPTY)
        return held

    def _decoder_key(self, held: VendingRegister, pan: str, tariff_index: str, ea: str) -> DecoderKey:
        return derive_decoder_key(held.key, _record(held, pan, tariff_index, ea), sta_tables=self._sta_tables)


def with_crc(text: str) -> str:
    """Return a line with its CRC."""
    return text + _crc(text)


def _record(held: VendingRegister, pan: str, tariff_index: str, ea: str) -> MeterKeyRecord:
    try:
        meter = MeterPan.parse(pan)
    except StsError:
        raise _Refused(INVALID_PAN) from None
    return MeterKeyRecord(
        iin=meter.iin,
        drn=meter.drn,
        ea=EncryptionAlgorithm(f"{int(ea):02d}"),
        dkga=_DKGA_OF_KEY_BYTES[len(held.key)],
        sgc=held.sgc,
        kt=held.kt,
        krn=held.krn,
        tariff_index=int(tariff_index),
        ken=held.ken,
        base_date=held.base_date,
    )


def _values(body: str, types: str) -> list[str]:
    fields = body.split("~")
    if fields.pop() or "".join(each[:1] for each in fields) != types:
        raise _Refused(FIELDS_WRONG)
    return [each[1:] for each in fields]


def _hex17(token: TokenNumber) -> str:
    return f"{int(token.digits):017X}"


def _crc(text: str) -> str:
    """Return the CRC as the module counts it: a byte at a time, by the parity of what is fed in."""
    crc = 0
    for byte in text.encode("ascii"):
        fed = (crc ^ byte) & 0xFF
        crc = crc >> 8 ^ fed << 7 ^ fed << 6 ^ (0xC001 if fed.bit_count() & 1 else 0)
    return f"{crc & 0xFFFF:04X}"
