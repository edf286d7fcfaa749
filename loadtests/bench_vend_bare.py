"""The reference of `bench vend`: the least that a vend could be, one row inserted and committed behind the same server.

Stage: a process of its own beside the vending interface, with the same framework, server settings, pool and database.
It reads a vend's body and asks nobody anything: no caller, no account, no token, no ledger.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from db.pool import make_pool
from vending.edges.api import OPEN_TIMEOUT_S, POOL_CONNECTIONS_MAX

PATH: Final = "/v1/bare"
DATABASE_VARIABLE: Final = "BENCH_DATABASE_URL"
MAKE_TABLE: Final = b"""
create table bench_bare (
    id bigint generated always as identity primary key, message_id text not null unique, meter text not null,
    amount text not null, at timestamptz not null default clock_timestamp())
"""
GRANT: Final = b"grant select, insert on bench_bare to prepaid_app"
_INSERT: Final = b"insert into bench_bare (message_id, meter, amount) values (%s, %s, %s)"


class BareBody(BaseModel):
    """What a station sends to sell a recharge."""

    message_id: str
    meter: str
    amount: str


def bare_app(database_url: str) -> FastAPI:
    """Build the application; its lifespan opens and closes the pool."""
    pool = make_pool(database_url, application="bench-bare", size_max=POOL_CONNECTIONS_MAX)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await pool.open(wait=True, timeout=OPEN_TIMEOUT_S)
        try:
            yield
        finally:
            await pool.close()

    app = FastAPI(lifespan=lifespan)

    @app.post(PATH)
    async def post_bare(body: BareBody) -> dict[str, str]:
        async with pool.connection() as conn, conn.transaction():
            await conn.execute(_INSERT, (body.message_id, body.meter, body.amount))
        return {"message_id": body.message_id}

    return app


def main() -> None:
    """Serve on a port of loopback until told to stop."""
    app = bare_app(os.environ[DATABASE_VARIABLE])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)


if __name__ == "__main__":
    main()
