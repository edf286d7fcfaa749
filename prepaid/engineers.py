"""Engineers' access: the head-end's routes beside the vending interface, behind the same keys.

Stage: where head-end and vending are put together, since neither imports the other.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from psycopg import AsyncConnection

from db.orders import wall_ms
from headend.edges.engineer_api import Desk, add_engineer_api
from prepaid.settings import Settings
from vending.edges.auth import require_scope
from vending.edges.key_desk import give_key
from vending.edges.refusals import refusals
from vending.edges.routes import CallerOf, state_of
from vending.roles import Role, Scope


def add_engineers(app: FastAPI, settings: Settings) -> None:
    """Add the head-end's routes to the vending application; they share its pool and keys."""
    from prepaid.processes import calendar_of

    desk = Desk(
        pool_of=lambda request: state_of(request).pool,
        calendar=calendar_of(settings),
        silent_after_h=settings.silent_after_h,
        clock=wall_ms,
    )
    add_engineer_api(app, desk, only_engineers, refusals("bad_instant", "unknown_meter"))


async def only_engineers(request: Request, caller: CallerOf) -> None:
    """Let engineers pass, and auditors where nothing is changed. Raises: NotAllowed."""
    require_scope(caller, Scope.READ_ALL if request.method == "GET" else Scope.CHANGE_ACCOUNTS)


def run_engineer_key(settings: Settings) -> str:
    """Return a new API key of an engineer."""
    from prepaid.administration import on_database
    from prepaid.keys import login_name, sealing_master

    async def work(conn: AsyncConnection) -> str:
        return (await give_key(conn, await sealing_master(settings, conn), Role.ENGINEER, by=login_name())).header

    return on_database(settings, work)
