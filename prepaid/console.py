"""What a person sees: progress on standard error, one JSON object or plain lines on standard output."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from billing.money import format_minor
from billing.rating import Lines, total

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logs(level: str) -> None:
    """Log events as JSON lines to standard error; for a person at a terminal, in plain form."""
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def rupees(amount_minor: int) -> str:
    """Print an amount as `Rs 12.34`."""
    return f"Rs {format_minor(amount_minor)}"


def print_lines(title: str, lines: Lines) -> None:
    """Print the lines of a bill and their sum."""
    out.print(title)
    width = max([12, *map(len, lines)])
    for name, amount_minor in lines.items():
        out.print(f"  {name:<{width}} {format_minor(amount_minor):>14}")
    out.print(f"  {'total':<{width}} {format_minor(total(lines)):>14}")


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Show one bar per phase on standard error while the context lasts."""
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=not err.is_terminal, disable=not err.is_terminal) as progress:
        yield Bars(progress)


class Bars:
    """Progress by phase name."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, object] = {}

    def __call__(self, phase: str, done: int, of: int) -> None:
        """Set a phase's bar."""
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=of)
        self._progress.update(self._tasks[phase], completed=done, total=of)  # type: ignore[arg-type]  # A TaskID.
