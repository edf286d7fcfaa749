"""`prepaid paygo`: the devices that take OpenPAYGO tokens, and their secret keys.

Stage: the command line's outermost layer. A key comes from its maker's list and is never an argument and never shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prepaid import console
from prepaid.arguments import By, DataDir, Json, line, read_name, settings_of

paygo_app = typer.Typer(help="OpenPAYGO devices and their keys.", no_args_is_help=True)


@paygo_app.command(name="import-keys")
def import_keys_command(
    file: Annotated[
        Path, typer.Argument(help="The maker's device list, readable by you alone; see docs/openpaygo.md.")
    ],
    by: By,
    replace: Annotated[bool, typer.Option("--replace", help="Write anew what is known otherwise.")] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Seal and keep the keys of a maker's device list."""
    from prepaid.paygo_import import run_import_device_keys

    done = run_import_device_keys(settings_of(data), file, by=read_name(by), replace=replace)
    if json_output:
        console.print_json(
            {"new": done.new, "same": done.same, "replaced": done.replaced, "sharing": done.sharing, "file": file.name}
        )
    else:
        line(f"new       {done.new}\nsame      {done.same}\nreplaced  {done.replaced}")
    if done.sharing:
        console.err.print(f"{done.sharing} devices share a key: who opens one of them can make tokens for all")
    console.err.print(f"{file.name} still holds the keys open: destroy it and its copies", markup=False)
