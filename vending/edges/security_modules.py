"""Which security module an installation mints with: a hardware module where one is set, else the soft one.

Stage: process start. Enters: the address of a module with the map of its registers, or nothing. Leaves: a module
behind the port, held against its map. Never: a choice by meter, station or amount.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from vending.edges.sts_module import ModuleTimes, StsModule
from vending.edges.sts_module_line import line_to
from vending.security import SecurityModule
from vending.sts_module_settings import ModuleSetup


async def choose_security_module(
    setup: ModuleSetup | None, soft: Callable[[], Awaitable[SecurityModule]]
) -> SecurityModule:
    """Return the hardware module of a setup once its registers hold what the setup says, or the soft module.

    Raises: RegisterMismatch; VendingKeyUnknown for an empty register; ModuleAbsent where the module does not answer.
    """
    return await soft() if setup is None else await open_sts_module(setup)


async def open_sts_module(setup: ModuleSetup, *, times: ModuleTimes | None = None) -> StsModule:
    """Check a hardware module and return its client with the line closed: it opens in the loop that uses it.

    Raises: RegisterMismatch; VendingKeyUnknown for an empty register; ModuleAbsent where the module does not answer.
    """
    module = StsModule(line_to(setup.address), setup.registers, times=times)
    try:
        await module.check_registers()
    finally:
        module.close()
    return StsModule(line_to(setup.address), setup.registers, times=times)
