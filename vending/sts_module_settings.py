"""Where a hardware security module is and what its registers hold, as an operator writes it.

Stage: process start. Enters: the text of two settings. Leaves: an address and a map of registers. Never: a line, a
file; a key, which is in the module only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from vending.security import ModuleRefused, ModuleUnavailable, VendingKeyUnknown
from vending.sts.errors import StsError
from vending.sts.identity import BaseDate, MeterKeyRecord
from vending.sts_module_messages import RegisterAttributes

BAUD_DEFAULT = 9600
# The rates that every POSIX system has and public drivers of such modules use.
BAUDS = (1200, 2400, 4800, 9600, 19_200, 38_400, 57_600, 115_200)
REGISTER_MAX = 999
_REGISTER = re.compile(
    r"(?P<number>[0-9]{1,3})=(?P<sgc>[0-9]{6})/(?P<krn>[1-9])/(?P<year>[0-9]{4})/(?P<ken>[0-9]{1,3})"
)
_BASE_DATE_OF_YEAR = {str(each.starts_at.year): each for each in BaseDate}


class BadModuleSetting(StsError):
    """The address or the map of registers is not of its form."""

    code = "bad_module_setting"


class RegisterMismatch(ModuleUnavailable):
    """A register of the module holds another key than the settings say: nothing may be minted with it."""

    code = "register_mismatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpAddress:
    """A module behind a serial server, or one that listens itself."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialAddress:
    """A module at a serial port: 8 data bits, no parity, one stop bit, no flow control."""

    path: str
    baud: int


ModuleAddress = TcpAddress | SerialAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRegister:
    """What one register of a module must hold.

    Invariants: `number` is 1-999; the rest as in a meter's record.
    """

    number: int
    sgc: str
    krn: int
    base_date: BaseDate
    ken: int

    def require(self, told: RegisterAttributes) -> None:
        """Refuse a register that holds something else.

        Raises: RegisterMismatch.
        """
        expected = (self.sgc, self.krn, self.base_date, self.ken)
        if expected != (told.sgc, told.krn, told.base_date, told.ken):
            raise RegisterMismatch(
                f"security module register {self.number}: expected {_said(*expected)}, "
                f"got {_said(told.sgc, told.krn, told.base_date, told.ken)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterMap:
    """Every register that may be used.

    Invariants: no number and no pair of SGC and KRN stands twice.
    """

    registers: tuple[KeyRegister, ...]

    def of_key(self, sgc: str, krn: int) -> KeyRegister:
        """Return the register of a key.

        Raises: VendingKeyUnknown.
        """
        for each in self.registers:
            if (each.sgc, each.krn) == (sgc, krn):
                return each
        raise VendingKeyUnknown(f"security module: expected a register for SGC {sgc} KRN {krn}, got none")

    def of_meter(self, meter: MeterKeyRecord) -> KeyRegister:
        """Return the register whose key a meter's own comes from.

        Raises: VendingKeyUnknown; ModuleRefused where the base dates differ, since the tokens would never work.
        """
        register = self.of_key(meter.sgc, meter.krn)
        if register.base_date is not meter.base_date:
            raise ModuleRefused(
                f"security module register {register.number}: expected base date "
                f"{meter.base_date.starts_at.year}, got {register.base_date.starts_at.year}, meter {meter.drn}"
            )
        return register


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSetup:
    """A module as the settings name it."""

    address: ModuleAddress
    registers: RegisterMap


def parse_module_address(text: str) -> ModuleAddress:
    """Read `tcp://host:port` or `serial:///dev/ttyS0?baud=9600`.

    Raises: BadModuleSetting.
    """
    refused = BadModuleSetting("expected tcp://host:port or serial:///dev/ttyS0?baud=9600")
    try:
        parts = urlsplit(text)
        options = parse_qs(parts.query, strict_parsing=bool(parts.query))
        port = parts.port
        if parts.scheme == "tcp" and parts.hostname and port and parts.path in ("", "/") and not parts.query:
            return TcpAddress(host=parts.hostname, port=port)
        if parts.scheme != "serial" or parts.netloc or len(parts.path) < len("/x"):
            raise refused
        baud = int(options.pop("baud", [str(BAUD_DEFAULT)])[0])
    except ValueError:
        raise refused from None
    if baud not in BAUDS or options:
        raise BadModuleSetting(f"expected no option but baud, one of {', '.join(map(str, BAUDS))}")
    return SerialAddress(path=parts.path, baud=baud)


def parse_register_map(text: str) -> RegisterMap:
    """Read `1=201457/1/2014/255, 2=...`: register = SGC / KRN / year of the base date / KEN.

    Raises: BadModuleSetting.
    """
    registers = tuple(_parse_register(each.strip()) for each in text.split(",") if each.strip())
    numbers = {each.number for each in registers}
    keys = {(each.sgc, each.krn) for each in registers}
    if not registers or not len(registers) == len(numbers) == len(keys):
        raise BadModuleSetting("expected one or more registers, each number and each SGC with KRN once")
    return RegisterMap(registers=registers)


def _parse_register(text: str) -> KeyRegister:
    match = _REGISTER.fullmatch(text)
    base_date = None if match is None else _BASE_DATE_OF_YEAR.get(match["year"])
    if match is None or base_date is None or int(match["ken"]) > 255 or int(match["number"]) == 0:
        raise BadModuleSetting(f"expected register=SGC/KRN/base year/KEN as 1=201457/1/2014/255, got {text[:40]!r}")
    return KeyRegister(
        number=int(match["number"]),
        sgc=match["sgc"],
        krn=int(match["krn"]),
        base_date=base_date,
        ken=int(match["ken"]),
    )


def _said(sgc: str, krn: int, base_date: BaseDate, ken: int) -> str:
    return f"SGC {sgc} KRN {krn} base date {base_date.starts_at.year} KEN {ken}"
