"""Vends of before there were kinds and states, after the upgrade: where each stands; it is answered as before."""

from __future__ import annotations

import asyncio

import pytest

from db.migrate import migrate, migrations
from db.pool import connect
from db.vends import find_message


def test_vends_of_before_stand_where_their_journals_say(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sold: released; refused: refused; taken back by the office: reversed. A vendor keeps a name."""
    every = migrations()

    async def story() -> None:
        async with await connect(empty_database_url, application="test") as conn:
            with monkeypatch.context() as earlier:
                earlier.setattr("db.migrate.migrations", lambda: [each for each in every if each.name < "0024"])
                await migrate(conn)
            for statement in SEED.split(";\n"):
                await conn.execute(statement.encode())
            await migrate(conn)
            rows = await conn.execute(b"select message_id, state, funding from vends order by message_id")
            assert await rows.fetchall() == [
                ("m-1", "released", "vendor"),
                ("m-2", "reversed", "vendor"),
                ("m-3", "refused", "vendor"),
            ]
            rows = await conn.execute(b"select name, system from vendors order by id")
            assert await rows.fetchall() == [
                ("Utility", None),
                ("Coupons", "coupons"),
                ("Online recharge", "online"),
                ("Utility (system)", "utility"),
            ]
            stored = (await find_message(conn, 1, "m-1")).vend
            assert stored is not None
            assert (stored.status, stored.answer, stored.request_sha256) == (200, {"tid": 7}, b"digest")

    asyncio.run(story())


SEED = """
insert into vendors (name) values ('Utility');
insert into consumers (id, name, language) overriding system value values (1, 'C', 'en');
insert into usage_points (id, code, area, feeder) overriding system value values (1, 'UP', '', '');
insert into accounts (id, number, consumer_id, usage_point_id, shard, mode, opened_on, emergency_credit_minor, through,
                      anchor_at) overriding system value
values (1, 'A', 1, 1, 0, 'prepaid', '2026-04-01', 0, '2026-04-01', '2026-03-31 18:30+00');
insert into journals (id, kind, account_id, about_id, reason) overriding system value
values (1, 'vend', 1, null, null), (2, 'vend', 1, null, null), (3, 'reversal', 1, 2, 'why');
insert into legs (journal_id, n, ledger, amount_minor)
values (1, 1, 'prepaid', 100), (1, 2, 'vendor_clearing', -100), (2, 1, 'prepaid', 70), (2, 2, 'vendor_clearing', -70),
       (3, 1, 'prepaid', -70), (3, 2, 'vendor_clearing', 70);
insert into vends (vendor_id, message_id, request_sha256, account_id, amount_minor, journal_id, status, answer)
values (1, 'm-1', 'digest', 1, 100, 1, 200, '{"tid": 7}'), (1, 'm-2', '', 1, 70, 2, 200, '{}'),
       (1, 'm-3', '', null, 1, null, 422, '{}')"""
