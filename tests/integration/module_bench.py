"""A simulated hardware module with keys in its registers, its client, and a soft module with the same keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from meter_sim.edges.security_module import Fault, ModuleServer
from meter_sim.security_module import SimulatedModule, VendingRegister
from vending.edges.sts_module import ModuleTimes, StsModule
from vending.edges.sts_module_line import TcpLine
from vending.key_custody import SealedVendingKey, seal_vending_key
from vending.soft_module import SoftSecurityModule
from vending.sts.identity import BaseDate, Drn, EncryptionAlgorithm, KeyDerivation, KeyType, MeterKeyRecord
from vending.sts.sta import IEC_SAMPLE_TABLES
from vending.sts_module_settings import RegisterMap, TcpAddress, parse_register_map

MASTER = bytes(range(32))
LOOPBACK = "127.0.0.1"
RND = 5
# Origin of both: STS 531 compliance tests, published test keys; the others are made up.
VUDK = bytes.fromhex("abababababababab949494949494949401234567")
DES_VUDK = bytes.fromhex("abababababababab")
REGISTERS = {
    1: VendingRegister(sgc="201457", krn=1, kt=KeyType.UNIQUE, base_date=BaseDate.Y2014, ken=255, key=VUDK),
    2: VendingRegister(sgc="201457", krn=2, kt=KeyType.UNIQUE, base_date=BaseDate.Y2014, ken=200, key=VUDK[::-1]),
    3: VendingRegister(
        sgc="123456", krn=1, kt=KeyType.UNIQUE, base_date=BaseDate.Y1993, ken=255, key=DES_VUDK, check_value="A1B2C3"
    ),
    4: VendingRegister(sgc="123456", krn=2, kt=KeyType.UNIQUE, base_date=BaseDate.Y2014, ken=255, key=DES_VUDK),
    5: VendingRegister(sgc="999001", krn=1, kt=KeyType.DEFAULT, base_date=BaseDate.Y2014, ken=255, key=bytes(20)),
}
MAP_TEXT = "1=201457/1/2014/255, 2=201457/2/2014/200, 3=123456/1/1993/255, 4=123456/2/2014/255, 5=999001/1/2014/255"
MAP = parse_register_map(MAP_TEXT)
# A lost answer costs one of the first; a busy machine may lose some by that, which the client must bear as well.
TIMES = ModuleTimes(connect_s=5.0, answer_s=0.3, request_s=30.0, busy_s_first=0.001, busy_s_max=0.01)
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
EA07_METER = replace(
    METER,
    ea=EncryptionAlgorithm.STA,
    dkga=KeyDerivation.DES,
    sgc="123456",
    base_date=BaseDate.Y1993,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The server, its client and the soft module beside them."""

    server: ModuleServer
    client: StsModule
    soft: SoftSecurityModule


def simulated_module(*, rnd: int = RND) -> SimulatedModule:
    """Return a module with every register."""
    return SimulatedModule(REGISTERS, rnd_nibble=lambda: rnd, sta_tables=IEC_SAMPLE_TABLES)


def soft_module(*, rnd: int = RND) -> SoftSecurityModule:
    """Return a soft module with the same keys."""
    sealed = [
        SealedVendingKey(sgc=each.sgc, krn=each.krn, sealed=seal_vending_key(MASTER, each.sgc, each.krn, each.key))
        for each in REGISTERS.values()
    ]
    return SoftSecurityModule(MASTER, sealed, rnd_nibble=lambda: rnd, sta_tables=IEC_SAMPLE_TABLES)


@asynccontextmanager
async def open_bench(
    *,
    fault_of: Callable[[str], Fault] = lambda request: Fault.NONE,
    times: ModuleTimes = TIMES,
    registers: RegisterMap = MAP,
    module: SimulatedModule | None = None,
) -> AsyncIterator[Bench]:
    """Open a module on a port of loopback and a client of it."""
    async with ModuleServer(module or simulated_module(), fault_of=fault_of) as server:
        client = StsModule(TcpLine(TcpAddress(host=LOOPBACK, port=server.port)), registers, times=times)
        try:
            yield Bench(server=server, client=client, soft=soft_module())
        finally:
            client.close()
            # One turn of the loop lets aborted transports close.
            await asyncio.sleep(0)
