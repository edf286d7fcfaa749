"""`tariffs assign`: dated changes of terms from a CSV file, checked as a whole, done account by account.

Stage: administration. Columns account* and from_day*, then tariff_id, category, sanctioned_load_w, area_type and
meter_rent (yes or no); an empty field is as before. The whole file is checked against what is stored before anything
is written. Each line is one transaction under its account's lock; a line that is done already changes nothing, so that
a file that was stopped goes on when it is given again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from psycopg import AsyncConnection
from psycopg.errors import DeadlockDetected

from billing.assigning import AssignmentRefused, AssignmentRequest, assignment_of
from billing.tariff import LOAD_W_MAX, Tariff
from db.assignments import Standing, assign, standing_of
from db.errors import DatabaseError
from db.orders import PostingRules
from db.tariffs import TariffConflict, tariff_by_id
from prepaid.administration import on_database
from prepaid.console import progress_bars
from prepaid.csv_lines import (
    FIRST_YEAR,
    TARIFF_EXPECTED,
    Errors,
    Fields,
    ImportRefused,
    Line,
    area_type_field,
    day_field,
    name_field,
    one_of,
    read_lines,
    shown,
    text_field,
    whole_field,
)
from prepaid.processes import rules_of
from prepaid.settings import Settings

_REQUIRED = ("account", "from_day")
_OPTIONAL = ("tariff_id", "category", "sanctioned_load_w", "area_type", "meter_rent")
# The request's fields by another name than the file's.
_COLUMNS = {"load_w": "sanctioned_load_w"}
# One look-up of 500 accounts takes some 20 ms.
LINES_PER_LOOK = 500
# As in a sweep of days: a batch of the same meters can stand across a line; five times in a row it does not.
DEADLOCKS_MAX = 5
DEADLOCK_WAIT_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What one line asks for; the tariff is still a name."""

    account: str
    tariff_id: str | None
    request: AssignmentRequest


def run_assign(settings: Settings, file: Path) -> tuple[int, int]:
    """Assign what a file says; return how many lines changed something and how many were done already.

    Raises: ImportRefused.
    """
    errors = Errors(file)
    changes = _read_changes(file, errors)
    errors.refuse_any()
    rules = rules_of(settings)

    async def work(conn: AsyncConnection) -> tuple[int, int]:
        tariffs = await _tariffs(conn, changes, errors)
        errors.refuse_any()
        known = [_with_tariff(line, tariffs) for line in changes]
        standing = await _check(conn, known, errors)
        errors.refuse_any()
        return await _write(conn, file, known, standing, rules)

    return on_database(settings, work)


def _with_tariff(line: Line[_Change], tariffs: Mapping[str, Tariff]) -> Line[_Change]:
    """Return a line whose request has the tariff that it names."""
    change = line.value
    if change.tariff_id is None:
        return line
    request = replace(change.request, tariff=tariffs[change.tariff_id])
    return Line(number=line.number, value=replace(change, request=request))


def _read_changes(file: Path, errors: Errors) -> list[Line[_Change]]:
    read: list[Line[_Change]] = []
    seen: dict[tuple[str, date], int] = {}
    for number, fields in read_lines(file, _REQUIRED, _OPTIONAL, errors):
        line = Fields(number, fields, errors)
        account = line.require("account", name_field, "")
        day = line.require("from_day", day_field, date(FIRST_YEAR, 1, 1))
        rent = line.read("meter_rent", one_of("yes", "no"), None)
        request = AssignmentRequest(
            from_day=day,
            category=line.read("category", text_field, None),
            load_w=line.read("sanctioned_load_w", whole_field(1, LOAD_W_MAX), None),
            area=line.read("area_type", area_type_field, None),
            meter_rent=None if rent is None else rent == "yes",
        )
        tariff_id = line.read("tariff_id", text_field, None)
        if line.good and seen.setdefault((account, day), number) != number:
            line.refuse("from_day", "one line for an account and day", f"another after line {seen[account, day]}")
        if line.good:
            value = _Change(account=account, tariff_id=tariff_id, request=request)
            read.append(Line(number=number, value=value))
    return read


async def _tariffs(conn: AsyncConnection, changes: Sequence[Line[_Change]], errors: Errors) -> dict[str, Tariff]:
    """Read the tariffs that a file names; note those that are not there."""
    found: dict[str, Tariff] = {}
    missing: set[str] = set()
    for line in changes:
        name = line.value.tariff_id
        if name is None or name in found:
            continue
        try:
            if name not in missing:
                found[name] = await tariff_by_id(conn, name)
        except TariffConflict:
            missing.add(name)
        if name in missing:
            errors.add(line.number, "tariff_id", TARIFF_EXPECTED, shown(name))
    return found


async def _check(conn: AsyncConnection, changes: Sequence[Line[_Change]], errors: Errors) -> dict[str, int]:
    """Note what cannot be done as things stand; return the accounts' ids by number."""
    standing: dict[str, Standing] = {}
    numbers = sorted({line.value.account for line in changes})
    for first in range(0, len(numbers), LINES_PER_LOOK):
        standing |= await standing_of(conn, numbers[first : first + LINES_PER_LOOK])
    for line in changes:
        account, request = line.value.account, line.value.request
        now = standing.get(account)
        if now is None:
            errors.add(line.number, "account", "a known account", shown(account))
            continue
        try:
            added = assignment_of(request, now.assignments, first_open_day=now.first_open_day)
        except AssignmentRefused as refused:
            column = _COLUMNS.get(refused.column, refused.column)
            errors.add(line.number, column, refused.expected, refused.got)
            continue
        if added is not None:
            standing[account] = replace(now, assignments=(*now.assignments, added))
    return {number: now.account_id for number, now in standing.items()}


async def _write(
    conn: AsyncConnection,
    file: Path,
    changes: Sequence[Line[_Change]],
    account_ids: Mapping[str, int],
    rules: PostingRules,
) -> tuple[int, int]:
    added = 0
    with progress_bars() as bars:
        for done, line in enumerate(changes):
            try:
                added += await _assign_again(conn, account_ids[line.value.account], line.value.request, rules)
            except (AssignmentRefused, DatabaseError) as error:
                # Checked a moment ago: days have been closed or terms changed since.
                raise ImportRefused(
                    f"{file.name} line {line.number}: {error}; the {done} lines before are done, give the file again"
                ) from error
            bars("assignments", done + 1, len(changes))
    return added, len(changes) - added


async def _assign_again(
    conn: AsyncConnection, account_id: int, request: AssignmentRequest, rules: PostingRules
) -> bool:
    """Assign; once more when the database ended it to resolve a deadlock."""
    for _ in range(DEADLOCKS_MAX):
        try:
            return await assign(conn, account_id, request, rules=rules, now_ms=time.time_ns() // 1_000_000)
        except DeadlockDetected:
            await asyncio.sleep(DEADLOCK_WAIT_S)
    return await assign(conn, account_id, request, rules=rules, now_ms=time.time_ns() // 1_000_000)
