"""Engineers' access: the head-end's routes beside the vending interface, behind the same keys.

Stage: where head-end and vending are put together, since neither imports the other.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from psycopg import AsyncConnection

from db.issues import holder_of_key
from db.orders import wall_ms
from headend.edges.case_api import CaseDesk, add_case_api
from headend.edges.desk_api import QueryDesk, add_query_api
from headend.edges.engineer_api import Desk, add_engineer_api
from headend.edges.exceptions_api import ExceptionsDesk, add_exceptions_api
from prepaid.settings import Settings
from vending.edges.auth import ReaderCaller, require_scope
from vending.edges.key_desk import give_key
from vending.edges.refusals import refusals
from vending.edges.routes import CallerOf, state_of
from vending.roles import Role, Scope


def add_engineers(app: FastAPI, settings: Settings) -> None:
    """Add the head-end's routes to the vending application; they share its pool and keys."""
    from prepaid.processes import calendar_of, rules_of

    desk = Desk(
        pool_of=lambda request: state_of(request).pool,
        calendar=calendar_of(settings),
        silent_after_h=settings.silent_after_h,
        clock=wall_ms,
    )
    add_engineer_api(app, desk, only_engineers, refusals("bad_instant", "unknown_meter"))
    queries = QueryDesk(pool_of=desk.pool_of, calendar=desk.calendar)
    refused = refusals("bad_instant", "unknown_meter", "unknown_account", "period_too_long")
    add_query_api(app, queries, area_of_reader, refused)
    cases = CaseDesk(
        pool_of=lambda request: state_of(request).pool, rules=rules_of(settings), clock=wall_ms, who_asks=who_asks
    )
    add_case_api(app, cases, only_engineers, refusals())
    exceptions = ExceptionsDesk(pool_of=desk.pool_of, rules=cases.rules, clock=wall_ms, who_asks=who_asks)
    add_exceptions_api(app, exceptions, only_engineers, refusals("bad_instant"))


async def only_engineers(request: Request, caller: CallerOf) -> None:
    """Let engineers pass, and auditors where nothing is changed. Raises: NotAllowed."""
    require_scope(caller, Scope.READ_ALL if request.method == "GET" else Scope.CHANGE_ACCOUNTS)


async def area_of_reader(caller: CallerOf) -> str | None:
    """Return the one area that a reader may see; engineers and auditors see all of them. Raises: NotAllowed."""
    if isinstance(caller, ReaderCaller):
        require_scope(caller, Scope.READ_AREA)
        return caller.area
    require_scope(caller, Scope.READ_ALL)
    return None


async def who_asks(request: Request, caller: CallerOf) -> str:
    """Name the person behind a key: by its label, else by the first key of its line."""
    async with state_of(request).pool.connection() as conn:
        holder = await holder_of_key(conn, caller.key_id)
    return holder.name or f"key {holder.first_key}"


def run_engineer_key(settings: Settings) -> str:
    """Return a new API key of an engineer."""
    from prepaid.administration import on_database
    from prepaid.keys import login_name, sealing_master

    async def work(conn: AsyncConnection) -> str:
        return (await give_key(conn, await sealing_master(settings, conn), Role.ENGINEER, by=login_name())).header

    return on_database(settings, work)
