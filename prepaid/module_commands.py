"""`prepaid module`: ask the hardware security module who it is and what it holds; start a simulated one.

Stage: the command line over the module's client and over the simulator. Never: a key as an argument or in the output.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from meter_sim.edges.security_module import ModuleServer
from meter_sim.security_module import SimulatedModule, VendingRegister
from prepaid import console
from prepaid.arguments import CommandRefused, Json, line, settings_of
from prepaid.settings import SettingsError
from vending.edges.sts_module import StsModule
from vending.edges.sts_module_line import line_to
from vending.security import ModuleAbsent, VendingKeyUnknown
from vending.sts.identity import BaseDate, KeyType
from vending.sts.sta import IEC_SAMPLE_TABLES
from vending.sts_module_messages import ModuleIdentity
from vending.sts_module_settings import ModuleSetup

# A register takes some hundred characters, a module has 999 of them at most.
_FILE_BYTES_MAX = 262_144
_RND_VALUES = 16

module_app = typer.Typer(help="The hardware security module.", no_args_is_help=True)


@module_app.command(name="check")
def check_module(json_output: Json = False) -> None:
    """Ask the module who it is and hold its registers against PREPAID_STS_MODULE_REGISTERS; status 2 if they differ."""
    setup = settings_of(None).module_setup
    if setup is None:
        raise SettingsError("PREPAID_STS_MODULE: expected the address of a module, got none")
    try:
        identity = asyncio.run(_check(setup))
    except (ModuleAbsent, VendingKeyUnknown) as error:
        raise SettingsError(f"PREPAID_STS_MODULE: {error}") from error
    registers = [
        {
            "register": each.number,
            "sgc": each.sgc,
            "krn": each.krn,
            "base_year": each.base_date.starts_at.year,
            "ken": each.ken,
        }
        for each in setup.registers.registers
    ]
    if json_output:
        console.print_json(
            {"module_id": identity.module_id, "firmware": identity.firmware, "registers": registers, "agree": True}
        )
        return
    line(f"module {identity.module_id}, firmware {identity.firmware}; registers as set:")
    for each in registers:
        line("  " + "  ".join(f"{name} {value}" for name, value in each.items()))


@module_app.command(name="simulate")
def simulate_module(
    file: Annotated[
        Path, typer.Argument(help="JSON of registers with TEST keys, see docs/security-module-protocol.md.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65_535, help="TCP port on loopback; 0: any free one.")] = 5100,
) -> None:
    """Simulate a module on loopback until Ctrl-C. For tests and demonstration: its keys lie open in the file."""
    registers = _registers(file)
    try:
        asyncio.run(_simulate(registers, port))
    except KeyboardInterrupt:
        line("stopped")


async def _check(setup: ModuleSetup) -> ModuleIdentity:
    module = StsModule(line_to(setup.address), setup.registers)
    try:
        identity = await module.identify()
        await module.check_registers()
        return identity
    finally:
        module.close()


async def _simulate(registers: dict[int, VendingRegister], port: int) -> None:
    module = SimulatedModule(registers, rnd_nibble=lambda: secrets.randbelow(_RND_VALUES), sta_tables=IEC_SAMPLE_TABLES)
    server = ModuleServer(module)
    await server.listen(port)
    try:
        line(f"simulated security module, test keys only, at tcp://127.0.0.1:{server.port}")
        await server.serve_forever()
    finally:
        await server.stop()


def _registers(file: Path) -> dict[int, VendingRegister]:
    with file.open("rb") as opened:
        content = opened.read(_FILE_BYTES_MAX + 1)
    try:
        # The file's own shape is checked field by field below.
        listed: dict[str, dict[str, Any]] = json.loads(content)
        return {int(number): _register(fields) for number, fields in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CommandRefused(
            f"{file.name}: expected a JSON object of registers with sgc, krn, key_type, base_year, ken and key"
        ) from None


def _register(fields: dict[str, Any]) -> VendingRegister:
    return VendingRegister(
        sgc=f"{int(fields['sgc']):06d}",
        krn=int(fields["krn"]),
        kt=KeyType(int(fields["key_type"])),
        base_date=BaseDate(f"{int(fields['base_year']) % 100:02d}"),
        ken=int(fields["ken"]),
        key=bytes.fromhex(fields["key"]),
        check_value=fields.get("check_value"),
    )
