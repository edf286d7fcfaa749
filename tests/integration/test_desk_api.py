"""The billing engineers' desk: its answers are what plain SQL on the tables says, page by page, to whom they belong."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.desk_town import FROM, HALF_HOUR, SPAN, TO, Town, add_town_home, open_town

pytestmark = pytest.mark.db

PATHS = ("readings", "profiles", "charges", "events", "meters", "accounts")
LISTS = ("meters", "accounts")


def asked(path: str) -> dict[str, str]:
    return {} if path in LISTS else SPAN


async def plain(town: Town, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    return await (await town.shop.conn.execute(query.encode(), parameters)).fetchall()


def test_readings_are_those_of_the_table_with_the_value_before_an_edit(database_url: str) -> None:
    """Every reading of the span once, in order; an edited one shows both values, a flagged one its rule."""

    async def story() -> None:
        async with open_town(database_url) as town:
            at = FROM + 4 * HALF_HOUR
            n1 = town.meter_ids["N1"]
            await town.shop.conn.execute(
                "with c as (insert into corrections (kind, reason, scope, asked_by)"
                " values ('edit', 'test', '{}', 'A. Kaur') returning id)"
                " insert into reading_edits (meter_id, read_at, import_wh, correction_id)"
                " select %s, %s, %s, c.id from c",
                (n1, at, 12_345),
            )
            await town.shop.conn.execute(
                "insert into reading_flags (meter_id, day, rule, severity, at, expected, got)"
                " values (%s, %s, 'spike', 'warning', %s, 1, 2)",
                (n1, at.date(), at),
            )
            rows = await town.pages("readings", area="north", limit="37", **SPAN)
            wanted = await plain(
                town,
                "select m.serial, r.read_at, r.import_wh from readings r join meters m on m.id = r.meter_id"
                " where m.serial like 'N%%' and r.read_at >= %s and r.read_at < %s order by m.id, r.read_at",
                FROM, TO,
            )  # fmt: skip
            got = [(row["meter"], datetime.fromisoformat(row["read_at"]), row["received_wh"]) for row in rows]
            assert got == wanted
            assert len(got) == 3 * 144
            edited = [row for row in rows if row["edited"]]
            assert [(row["meter"], row["import_wh"], row["flags"]) for row in edited] == [("N1", 12_345, ["spike"])]
            assert rows[0]["read_at"].endswith("+05:30"), "instants are told in local time"
            narrow = await town.get("readings", meter="N1", fields="read_at,voltage_mv", limit="2", **SPAN)
            assert [sorted(row) for row in narrow.json()["rows"]] == [["read_at", "voltage_mv"]] * 2

    asyncio.run(story())


def test_profiles_add_up_to_the_registers(database_url: str) -> None:
    """By every interval, a span's energy is the curve at its end less that at its begin, also where it is split."""

    async def story() -> None:
        async with open_town(database_url) as town:
            sums: dict[str, set[int]] = {}
            for serial in ("N1", "N2", "S1"):
                for interval in ("15min", "30min", "hour", "day"):
                    rows = await town.pages("profiles", meter=serial, interval=interval, limit="100", **SPAN)
                    per_day = {"15min": 96, "30min": 48, "hour": 24, "day": 1}[interval]
                    assert len(rows) == 3 * per_day, (serial, interval)
                    assert all(row["final"] for row in rows)
                    sums.setdefault(serial, set()).add(sum(row["import_wh"] for row in rows))
                    split = sum(row["estimated_wh"] for row in rows)
                    assert (split > 0) == (serial == "N2" or interval == "15min"), (serial, interval)
            assert {serial: len(each) for serial, each in sums.items()} == {"N1": 1, "N2": 1, "S1": 1}
            ((first, last),) = await plain(
                town,
                "select min(import_wh), max(import_wh) from readings where meter_id = %s and read_at between %s and %s",
                town.meter_ids["N1"], FROM, TO,
            )  # fmt: skip
            assert sums["N1"] == {last - first}
            hours = await town.pages("profiles", meter="N1", interval="hour", **SPAN)
            halves = await town.pages("profiles", meter="N1", interval="30min", **SPAN)
            tops = [max(pair) for pair in zip(*[iter([row["demand_w"] for row in halves])] * 2, strict=True)]
            assert tops == [row["demand_w"] for row in hours], "an hour's demand is its greater half hour's"
            months = await town.pages(
                "profiles", account="AN1", interval="month", **{"from": "2026-11-01", "to": "2026-12-01"}
            )
            assert [(row["started_at"], row["final"]) for row in months] == [("2026-11-01T00:00:00+05:30", False)]
            total = await town.pages("profiles", area="north", interval="day", total="true", **SPAN)
            each = [await town.pages("profiles", meter=s, interval="day", **SPAN) for s in ("N1", "N2", "N3")]
            wanted = [sum(row["import_wh"] for row in rows) for rows in zip(*each, strict=True)]
            assert [(row["meters"], row["import_wh"]) for row in total] == [(3, wh) for wh in wanted]

    asyncio.run(story())


def test_charges_are_those_of_the_ledger(database_url: str) -> None:
    """Journals of closed days line by line; months and bill parts add them up; all as the legs have it."""

    async def story() -> None:
        async with open_town(database_url) as town:
            days = await town.pages("charges", account="AN1", limit="2", **SPAN)
            assert [row["day"] for row in days] == ["2026-11-11", "2026-11-12", "2026-11-13"]
            assert all(row["charge_minor"] == sum(row["lines"].values()) for row in days)
            everything = {"from": "2026-11-01", "to": "2026-12-01"}
            ((legs_minor, energy_wh),) = await plain(
                town,
                "select -sum(g.amount_minor)::bigint, (select sum(energy_wh)::bigint from journals q"
                "  where q.account_id = a.id and q.kind = 'day') from accounts a join journals j on j.account_id = a.id"
                " join legs g on g.journal_id = j.id and g.ledger = 'prepaid'"
                " where a.number = 'AN1' and j.kind = 'day' group by a.id",
            )
            for interval in ("day", "month", "billing"):
                rows = await town.pages("charges", account="AN1", interval=interval, **everything)
                assert sum(row["charge_minor"] for row in rows) == legs_minor, interval
                assert sum(row["energy_wh"] for row in rows) == energy_wh, interval
            north = await town.pages("charges", area="north", interval="month", limit="1", **everything)
            assert [row["account"] for row in north] == ["AN1", "AN2", "AN3"]

    asyncio.run(story())


def test_pages_are_stable_while_rows_are_added(database_url: str) -> None:
    """What is stored before and behind the page's end while somebody pages gives nothing twice and loses nothing."""

    async def story() -> None:
        async with open_town(database_url) as town:
            before = {(row["meter"], row["read_at"]) for row in await town.pages("readings", **SPAN)}
            got: list[tuple[str, str]] = []
            cursor: dict[str, str] = {}
            for number in range(1_000):
                page = (await town.get("readings", limit="50", **SPAN, **cursor)).json()
                got += [(row["meter"], row["read_at"]) for row in page["rows"]]
                if page["next"] is None:
                    break
                cursor = {"cursor": page["next"]}
                # Late readings of every meter, between those that are there.
                for serial in ("N1", "N3", "S1"):
                    late = FROM + timedelta(minutes=1 + number)
                    await town.add_readings(serial, late, 1, from_wh=6_000)
            assert len(got) == len(set(got))
            assert before <= set(got)
            keys = [(serial, datetime.fromisoformat(at)) for serial, at in got]
            assert keys == sorted(keys)
            other = await town.get("readings", meter="N1", **SPAN, **cursor)
            assert (other.status_code, other.json()["error"]["code"]) == (400, "bad_cursor")
            changed = cursor["cursor"][:-2] + ("AA" if not cursor["cursor"].endswith("AA") else "BB")
            assert (await town.get("readings", cursor=changed, **SPAN)).status_code == 400
            events = await town.pages("events", meter="N1", limit="3", **SPAN)
            assert [row["code"] for row in events] == [101, 201] * 5

    asyncio.run(story())


def test_files_hold_what_the_pages_hold(database_url: str) -> None:
    """CSV, Arrow stream and Parquet of every subject have the rows and values of JSON."""

    async def story() -> None:
        async with open_town(database_url) as town:
            for path in PATHS:
                rows = await town.pages(path, **asked(path))
                assert rows, path
                arrow = await town.get(path, format="arrow", **asked(path))
                table = pa.ipc.open_stream(arrow.content).read_all()
                parquet = pq.read_table(io.BytesIO((await town.get(path, format="parquet", **asked(path))).content))
                assert table.num_rows == parquet.num_rows == len(rows), path
                assert parquet.to_pylist() == table.to_pylist(), path
                lines = list(csv.DictReader(io.StringIO((await town.get(path, format="csv", **asked(path))).text)))
                names = [name for name, value in rows[0].items() if isinstance(value, str | int)]
                for name in names:
                    told = [row[name] for row in rows]
                    read = [_as_json(value) for value in table.column(name).to_pylist()]
                    assert read == told, (path, name)
                    assert [line[name] for line in lines] == [_as_csv(value) for value in told], (path, name)
            refused = await town.get("readings", format="csv", limit="5", **SPAN)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_limit")

    asyncio.run(story())


def _as_json(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


def _as_csv(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def test_a_page_has_a_tag_and_is_sent_once(database_url: str) -> None:
    """The same page again is 304 with no body; after a late reading it is another one."""

    async def story() -> None:
        async with open_town(database_url) as town:
            first = await town.get("readings", meter="N1", **SPAN)
            tag = {"If-None-Match": first.headers["etag"], **town.shop.headers("engineer")}
            query = {"meter": "N1", **SPAN}
            again = await town.shop.http.get("/v1/readings", params=query, headers=tag)
            assert (again.status_code, again.content) == (304, b"")
            await town.add_readings("N1", FROM + timedelta(minutes=3), 1, from_wh=6_000)
            assert (await town.shop.http.get("/v1/readings", params=query, headers=tag)).status_code == 200

    asyncio.run(story())


def test_a_reader_sees_nothing_of_another_area(database_url: str) -> None:
    """Rows of the own area alone; another area's meter is unknown in the same words as one that is not there."""

    async def story() -> None:
        async with open_town(database_url) as town:
            own = {"N1", "N2", "N3", "AN1", "AN2", "AN3"}
            consumer = (await town.pages("accounts", account="AS1"))[0]["consumer"]
            for path in PATHS:
                seen = await town.pages(path, "north", **asked(path))
                name = "account" if path in ("charges", "accounts") else "meter"
                assert {row[name] for row in seen} <= own, path
                assert seen, path
                assert await town.pages(path, "north", area="south", **asked(path)) == [], path
                assert await town.pages(path, "north", feeder="F2", **asked(path)) == [], path
                strangers = (("meter", "S1", "S9"), ("account", "AS1", "AS9"), ("consumer", str(consumer), "999999"))
                for whose, other, nobody in strangers:
                    hidden = await town.get(path, "north", **{whose: other}, **asked(path))
                    missing = await town.get(path, "north", **{whose: nobody}, **asked(path))
                    assert hidden.status_code == missing.status_code == 404, path
                    assert hidden.text.replace(other, "?") == missing.text.replace(nobody, "?"), path
            total = await town.pages("profiles", "north", interval="day", total="true", **SPAN)
            assert {row["meters"] for row in total} == {3}
            for path in ("/v1/accounts/AN1", "/v1/accounts/AS1", "/v1/accounts/A9", "/v1/meters/N1", "/v1/meters/S1",
                         "/v1/meters/S9", "/v1/headend/silent", "/v1/accounts/AN1/statement"):  # fmt: skip
                assert (await town.shop.get(path, "north")).status_code == 403, path
            told = (await town.shop.get("/v1/me", "north")).json()
            assert (told["role"], told["area"], told["scopes"]) == ("reader", "north", ["read_area"])

    asyncio.run(story())


def test_a_meter_that_moved_shows_each_place_its_own_readings(database_url: str) -> None:
    """Readings before the move are the first area's, later ones the second's; the day of both is the meter's alone."""

    async def story() -> None:
        async with open_town(database_url) as town:
            moved_at = FROM + timedelta(days=1, hours=10)
            meter_id = town.meter_ids["N1"]
            await town.shop.conn.execute(
                "update installations set to_at = %s where meter_id = %s", (moved_at, meter_id)
            )
            await town.shop.conn.execute(
                "with p as (insert into usage_points (code, area) values ('UP-X', 'south') returning id)"
                " insert into installations (usage_point_id, meter_id, role, from_at)"
                " select p.id, %s, 'billing', %s from p",
                (meter_id, moved_at),
            )
            parts = {
                who: await town.pages("readings", who, meter="N1", **SPAN) for who in ("north", "south", "engineer")
            }
            instants = {who: {datetime.fromisoformat(row["read_at"]) for row in rows} for who, rows in parts.items()}
            assert instants["north"] | instants["south"] == instants["engineer"]
            assert max(instants["north"]) < moved_at == min(instants["south"])
            days = {who: await town.pages("profiles", who, meter="N1", interval="day", **SPAN) for who in parts}
            begun = {who: [row["started_at"][:10] for row in rows] for who, rows in days.items()}
            assert begun == {
                "north": ["2026-11-11"], "south": ["2026-11-13"],
                "engineer": ["2026-11-11", "2026-11-12", "2026-11-13"],
            }  # fmt: skip

    asyncio.run(story())


def test_wrong_questions_are_refused_by_name(database_url: str) -> None:
    """Each fault has a code of its own; who has no key, or one of another role, is refused on every route."""

    async def story() -> None:
        async with open_town(database_url) as town:
            await add_town_home(town.shop, "Q1", area="empty")
            cases: dict[str, tuple[str, int, dict[str, str]]] = {
                "bad_instant": ("readings", 400, {"from": "yesterday", "to": "2026-11-14"}),
                "bad_span": ("readings", 400, {"from": "2026-11-14", "to": "2026-11-13"}),
                "bad_fields": ("readings", 400, {**SPAN, "fields": "meter,colour"}),
                "bad_limit": ("readings", 400, {**SPAN, "limit": "0"}),
                "bad_cursor": ("readings", 400, {**SPAN, "cursor": "x"}),
                "bad_total": ("profiles", 400, {**SPAN, "total": "true", "interval": "15min"}),
                "period_too_long": ("profiles", 422, {"from": "2020-01-01", "to": "2026-01-01", "total": "true"}),
                "unknown_consumer": ("accounts", 404, {"consumer": "999999"}),
                "malformed": ("readings", 400, {**SPAN, "colour": "red"}),
            }
            for code, (path, status, query) in cases.items():
                answer = await town.get(path, **query)
                assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
            assert (await town.get("readings", meter="Q1", **SPAN)).json() == {"rows": [], "next": None}
            for path in PATHS:
                assert (await town.shop.http.get(f"/v1/{path}", params=asked(path))).status_code == 401
                for who in ("vendor", "consumer"):
                    assert (await town.get(path, who, **asked(path))).status_code == 403, path

    asyncio.run(story())


def test_examples_of_the_description_run(database_url: str) -> None:
    """Every example that the OpenAPI document shows is answered 200."""

    async def story() -> None:
        async with open_town(database_url) as town:
            document = (await town.shop.http.get("/openapi.json")).json()
            ran = 0
            for path, operations in document["paths"].items():
                for sample in operations.get("get", {}).get("x-codeSamples", []):
                    found = re.search(r'"\$API([^"]*)"', sample["source"])
                    assert found, sample
                    answer = await town.shop.http.get(found[1], headers=town.shop.headers("engineer"))
                    assert answer.status_code == 200, (path, found[1], answer.text[:300])
                    ran += 1
            assert ran >= 2 * len(PATHS) - 1

    asyncio.run(story())
