"""`prepaid tariffs`: the tariffs that are there, documents checked and added, accounts given other terms.

Stage: the command line's outermost layer, as in `__main__`. A document is checked as a whole (docs/tariffs.md) and
never changed once it is added: a new order, quarter or levy is a new document with an id of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from psycopg import AsyncConnection

from billing.tariff import Tariff
from billing.tariff_document import parse_tariff
from db.named import sql
from db.tariffs import TariffConflict, add_tariff
from prepaid import console
from prepaid.arguments import DataDir, Json, read_text, settings_of
from prepaid.settings import Settings

tariffs_app = typer.Typer(help="Tariff documents, and what accounts are charged by.", no_args_is_help=True)

Documents = Annotated[list[Path], typer.Argument(help="Tariff documents (TOML); see docs/tariffs.md.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTariff:
    """A tariff of an installation, and how many accounts are charged by it at some time."""

    tariff: Tariff
    document: str
    sha256: str
    accounts: int

    def to_json(self) -> dict[str, object]:
        """Return the tariff as the `--json` output shows it."""
        return {**summary(self.tariff), "sha256": self.sha256, "accounts": self.accounts}


@tariffs_app.command(name="list")
def list_command(data: DataDir = None, json_output: Json = False) -> None:
    """The tariffs of the installation: id, first day, currency, accounts, title."""
    stored = _read_stored(settings_of(data))
    if json_output:
        console.print_json({"tariffs": [each.to_json() for each in stored]})
        return
    for each in stored:
        tariff = each.tariff
        told = f"{tariff.id:<32} {tariff.effective_from}  {tariff.currency}  {each.accounts:>8}  {tariff.title}"
        console.out.print(told, markup=False)


@tariffs_app.command(name="show")
def show_command(
    tariff_id: Annotated[str, typer.Argument(help="The tariff's id.")], data: DataDir = None, json_output: Json = False
) -> None:
    """The document of a tariff, as it was added."""
    stored = {each.tariff.id: each for each in _read_stored(settings_of(data))}
    if tariff_id not in stored:
        raise TariffConflict(f"tariff: expected one of {', '.join(stored)}, got {tariff_id!r}")
    if json_output:
        console.print_json({**stored[tariff_id].to_json(), "document": stored[tariff_id].document})
    else:
        console.out.print(stored[tariff_id].document.rstrip("\n"), markup=False)


@tariffs_app.command(name="check")
def check_command(files: Documents, json_output: Json = False) -> None:
    """Check documents without an installation; the first broken rule is named with its line."""
    tariffs = [read_document(file)[0] for file in files]
    if json_output:
        console.print_json({"tariffs": [summary(tariff) for tariff in tariffs]})
        return
    for file, tariff in zip(files, tariffs, strict=True):
        console.out.print(f"{file.name}: {tariff.id}, {tariff.title}: good", markup=False)


@tariffs_app.command(name="add")
def add_command(files: Documents, data: DataDir = None, json_output: Json = False) -> None:
    """Add documents, all or none; one that is there with the same text is left as it is."""
    from prepaid.administration import on_database

    documents = [read_document(file)[1] for file in files]

    async def work(conn: AsyncConnection) -> int:
        async with conn.transaction():
            return sum([await add_tariff(conn, document) for document in documents])

    added = on_database(settings_of(data), work)
    _print_counts(added, len(documents) - added, json_output)


@tariffs_app.command(name="assign")
def assign_command(
    file: Annotated[Path, typer.Argument(help="CSV with a header line; see docs/tariffs.md.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Give accounts other terms from a day on that is not closed; resumable, harmless twice."""
    from prepaid.tariff_assignments import run_assign

    added, known = run_assign(settings_of(data), file)
    _print_counts(added, known, json_output)


def read_document(file: Path) -> tuple[Tariff, str]:
    """Read a tariff document; return it and its text.

    Raises: TariffError naming line and rule; DocumentRefused for a file that is no text.
    """
    text = read_text(file)
    return parse_tariff(text), text


def summary(tariff: Tariff) -> dict[str, object]:
    """Return what a tariff is, in short."""
    return {
        "id": tariff.id,
        "title": tariff.title,
        "source": tariff.source,
        "currency": tariff.currency,
        "effective_from": str(tariff.effective_from),
        "bands": len(tariff.bands),
        "zones": list(tariff.zones.names) if tariff.zones else [],
        "levies": sorted(tariff.levies),
        "area_types": sorted({area for share in tariff.shares for area in share.areas}),
    }


def _read_stored(settings: Settings) -> list[StoredTariff]:
    from prepaid.administration import on_database

    async def work(conn: AsyncConnection) -> list[StoredTariff]:
        cursor = await conn.execute(sql("list_tariffs"))
        return [
            StoredTariff(tariff=parse_tariff(document), document=document, sha256=sha256, accounts=accounts)
            for _, document, sha256, accounts in await cursor.fetchall()
        ]

    return on_database(settings, work)


def _print_counts(added: int, known: int, json_output: bool) -> None:
    if json_output:
        console.print_json({"added": added, "known": known})
    else:
        console.out.print(f"added {added}, already there {known}")
