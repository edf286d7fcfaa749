"""What commands share: the options that many have, how their texts are read, and where the work is done.

Stage: the command line's outermost layer, below the commands. Whatever does not fit is refused in one line.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from psycopg import AsyncConnection

from billing.toml_table import DOCUMENT_CHARACTERS_MAX
from prepaid import console
from prepaid.settings import PrepaidError, Settings, load_settings

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
DataDir = Annotated[Path | None, typer.Option("--data", help="Folder of the embedded parts (PREPAID_DATA_DIR).")]
By = Annotated[str, typer.Option("--by", help="Who: the name is kept.")]

# A sentence or two, and a name.
REASON_LENGTH_MAX = 200
NAME_LENGTH_MAX = 64


class CommandRefused(PrepaidError):
    """The arguments of a command do not fit; the message is one line."""

    code = "command_refused"


class DocumentRefused(PrepaidError):
    """A file that should be a document is no text; the message names the line."""

    code = "document_refused"


def settings_of(data: Path | None) -> Settings:
    """Read the settings of a command, on this data folder if one is given, and let its logs be written."""
    settings = load_settings()
    if data is not None:
        settings = settings.model_copy(update={"data_dir": data})
    console.configure_logs(settings.log_level)
    return settings


def run(settings: Settings, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Do some work on one connection to the installation's database."""
    # What only asks for help does not pay for loading the database's parts.
    from prepaid.administration import on_database

    return on_database(settings, work)


def line(text: str) -> None:
    """Print a line as it is."""
    console.out.print(text, markup=False)


def read_day(text: str, name: str = "day") -> date:
    """Read a day.

    Raises: CommandRefused.
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise CommandRefused(f"{name}: expected YYYY-MM-DD, got {text!r}") from None


def read_instant(name: str, text: str | None, settings: Settings) -> datetime | None:
    """Read a local day, whose midnight is meant, or an instant with its zone.

    Raises: CommandRefused.
    """
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is not None and len(text) == len("2026-11-22"):
        return at.replace(tzinfo=settings.zone)
    if at is None or at.tzinfo is None:
        raise CommandRefused(f"{name}: expected YYYY-MM-DD or an instant with its zone, got {text[:40]!r}")
    return at


def local(at: datetime | str, settings: Settings) -> str:
    """Return an instant as a person reads it: by the installation's clock, to the second."""
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    return at.astimezone(settings.zone).isoformat(timespec="seconds")


def read_words(name: str, text: str, length_max: int = REASON_LENGTH_MAX) -> str:
    """Read words of a person that are kept: a reason, a name.

    Raises: CommandRefused.
    """
    stripped = text.strip()
    if not stripped.isprintable() or not 0 < len(stripped) <= length_max:
        raise CommandRefused(f"{name}: expected 1 to {length_max} printable characters, got {len(stripped)}")
    return stripped


def read_name(by: str) -> str:
    """Read who does something.

    Raises: CommandRefused.
    """
    return read_words("by", by, NAME_LENGTH_MAX)


def read_text(file: Path) -> str:
    """Read a document.

    Raises: DocumentRefused for a file that is no text.
    """
    with file.open("rb") as opened:
        # Every character is at most 4 bytes of UTF-8; what is longer than that is refused when it is parsed.
        content = opened.read(4 * DOCUMENT_CHARACTERS_MAX + 1)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DocumentRefused(f"{file.name} line {number}: expected UTF-8 text, got other bytes") from None
