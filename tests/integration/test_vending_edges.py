"""The borders of the vending interface: callers, malformed requests, limits, figures, keys."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from psycopg.errors import UniqueViolation

from tests.integration.vending_shop import MASTER, SGC, VENDING_KEY, Shop, add_home, open_shop
from vending.edges.body_limit import BODY_BYTES_MAX, BodyLimit
from vending.edges.keys import (
    BadApiKeyOwner,
    Role,
    add_vending_key,
    issue_api_key,
    load_security_module,
    revoke_api_key,
)
from vending.edges.routes import answer
from vending.key_custody import key_check_value
from vending.security import SealBroken, VendingKeyConflict

pytestmark = pytest.mark.db

MEGABYTE = 1_000_000


def code_of(response: httpx.Response) -> str:
    """Return the code of what must be an error of the one form."""
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    return str(response.json()["error"]["code"])


def test_wrong_key_of_any_kind_is_401_and_tells_no_kinds_apart(database_url: str) -> None:
    """Missing, malformed, unknown, wrong secret, another key's secret, taken back."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            good, other = shop.keys["vendor"], shop.keys["engineer"]
            revoked = await issue_api_key(shop.conn, Role.ENGINEER)
            assert await revoke_api_key(shop.conn, revoked.key_id)
            assert not await revoke_api_key(shop.conn, "nobody")
            wrong = [
                "",
                "no-dot",
                good.key_id,
                f"{good.key_id}.",
                f"{good.key_id}.{'x' * 43}",
                f"unknown.{good.secret}",
                f"{good.key_id}.{other.secret}",
                f"{good.header}x",
                f" {good.header}.",
                revoked.header,
                "\u00e9.\u00e9",
            ]
            requests = [{b"X-Api-Key": header.encode("latin-1")} for header in wrong]
            answers = [await shop.http.get("/v1/vends/m-1", headers=each) for each in ({}, *requests)]
            assert {(each.status_code, code_of(each)) for each in answers} == {(401, "api_key_wrong")}
            assert len({each.content for each in answers[6:8] + answers[10:11]}) == 1
            assert (await shop.get("/v1/vends/m-1")).status_code == 404

    asyncio.run(story())


def test_each_role_reaches_its_own_and_nothing_else(database_url: str) -> None:
    """Vendors sell, engineers look, a consumer sees one account."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await add_home(shop.conn, "PB2", "2")
            body = {"message_id": "m-1", "meter": shop.home.serial, "amount": "500.00"}
            for who in ("engineer", "consumer"):
                sold = await shop.http.post("/v1/vends", json=body, headers=shop.headers(who))
                assert (sold.status_code, code_of(sold)) == (403, "not_allowed")
                assert (await shop.get("/v1/vends/m-1", who)).status_code == 403
            own, foreign, none = (f"/v1/accounts/{number}" for number in (shop.home.number, "2", "3"))
            seen = {
                who: [(await shop.get(path, who)).status_code for path in (own, foreign, none)]
                for who in ("vendor", "engineer", "consumer")
            }
            assert seen == {"vendor": [403, 403, 403], "engineer": [200, 200, 404], "consumer": [200, 403, 403]}
            assert code_of(await shop.get(none, "engineer")) == "unknown_account"
            assert await shop.count("vends") == 0

    asyncio.run(story())


def _vend(**changes: object) -> bytes:
    body = {"message_id": "m-1", "meter": "PB000123", "amount": "500.00", **changes}
    return json.dumps({name: given for name, given in body.items() if given is not None}).encode()


@pytest.mark.parametrize(
    ("body", "code", "place"),
    [
        (_vend(amount="five"), "bad_amount", "amount"),
        (_vend(amount="5.000"), "bad_amount", "amount"),
        (_vend(amount="-5.00"), "bad_amount", "amount"),
        (_vend(amount="\u0665.\u0660\u0660"), "bad_amount", "amount"),
        (_vend(amount=500), "malformed", "body.amount"),
        (_vend(amount=None), "malformed", "body.amount"),
        (_vend(amount="5" * 33), "malformed", "body.amount"),
        (_vend(message_id="a b"), "malformed", "body.message_id"),
        (_vend(message_id="m-1\n"), "malformed", "body.message_id"),
        (_vend(meter="PB 1"), "malformed", "body.meter"),
        (_vend(meter="PB\x00"), "malformed", "body.meter"),
        (_vend(meter="\ud800"), "malformed", "body.meter"),
        (_vend(tip="5.00"), "malformed", "body.tip"),
        (_vend(meter="00000000001"), "drn_check_digit", "00000000001"),
        (_vend()[:-5], "malformed", "body"),
        (b"", "malformed", "body"),
        (b"[]", "malformed", "body"),
        (b"\xff{}", "malformed", "body"),
        (b"[" * 60_000, "malformed", "body"),
        (b'{"amount":' + b"1" * 6_000 + b"}", "malformed", "body"),
    ],
)  # fmt: skip
def test_malformed_vend_names_its_place_and_leaves_the_id_free(
    database_url: str, body: bytes, code: str, place: str
) -> None:
    """400, nothing stored: the corrected request may use the same message id."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            headers = {**shop.headers("vendor"), "content-type": "application/json"}
            refused = await shop.http.post("/v1/vends", content=body, headers=headers)
            assert (refused.status_code, code_of(refused)) == (400, code)
            assert place in refused.json()["error"]["message"]
            assert await shop.count("vends") == 0
            assert (await shop.vend("m-1")).status_code == 200

    asyncio.run(story())


def test_other_paths_methods_and_media_types_have_named_errors(database_url: str) -> None:
    """404, 405 and a body that is not JSON keep the one form of an error."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            missing = await shop.get("/v2/vends")
            assert (missing.status_code, code_of(missing)) == (404, "unknown_path")
            slash = await shop.get("/v1/vends/m-1/")
            assert (slash.status_code, code_of(slash)) == (404, "unknown_path")
            method = await shop.http.delete("/v1/vends", headers=shop.headers("vendor"))
            assert (method.status_code, code_of(method), method.headers["allow"]) == (405, "method_not_allowed", "POST")
            form = await shop.http.post("/v1/vends", data={"amount": "1"}, headers=shop.headers("vendor"))
            assert (form.status_code, code_of(form)) == (400, "malformed")
            for path in ("/v1/meters/%00", "/v1/vends/a%20b", "/v1/accounts/" + "9" * 33):
                bad = await shop.get(path)
                assert (bad.status_code, code_of(bad)) == (400, "malformed")

    asyncio.run(story())


def test_database_away_is_503_and_figures_still_come(database_url: str) -> None:
    """A closed pool stands for a database that does not answer."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            assert (await shop.http.get("/health")).json() == {"status": "ok", "database": "ok"}
            await shop.app.state.vending.pool.close()
            for response in (await shop.vend("m-1"), await shop.http.get("/health")):
                assert (response.status_code, code_of(response)) == (503, "database_busy")
                assert response.headers["retry-after"] == "2"
            figures = await shop.http.get("/metrics")
            assert figures.status_code == 200
            assert "prepaid_database_up 0.0" in figures.text
            assert 'prepaid_vends_total{outcome="database_busy"} 1.0' in figures.text

    asyncio.run(story())


def test_figures_count_vends_requests_and_the_totals_of_batches(database_url: str) -> None:
    """Totals only rise: batches that are settled are read once, young ones again until they are settled."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            assert "newest_batch_age" not in (await shop.http.get("/metrics")).text
            await shop.vend("m-1")
            await shop.vend("m-1")
            await shop.vend("m-2", "0.00")
            await shop.set_balance(-1)
            for minutes in (30, 20, 1, 0):
                await shop.conn.execute(
                    "insert into batches (shard, epoch, messages, received, stored, duplicate, rejected, quarantined,"
                    " committed_at) values (0, 1, 1, 100, 90, 5, 2, 3, now() - make_interval(mins => %s))",
                    (minutes,),
                )
                text = (await shop.http.get("/metrics")).text
            assert 'prepaid_readings_total{outcome="received"} 400.0' in text
            assert 'prepaid_readings_total{outcome="stored"} 360.0' in text
            assert 'prepaid_readings_total{outcome="quarantined"} 12.0' in text
            await shop.conn.execute("update batches set committed_at = committed_at - interval '1 hour'")
            text = (await shop.http.get("/metrics")).text
            assert 'prepaid_readings_total{outcome="received"} 400.0' in text
            assert 'prepaid_vends_total{outcome="vended"} 1.0' in text
            assert 'prepaid_vends_total{outcome="repeated"} 1.0' in text
            assert 'prepaid_vends_total{outcome="amount_below_minimum"} 1.0' in text
            assert "prepaid_quarantine_rows 0.0" in text
            assert "prepaid_open_orders 1.0" in text
            assert "prepaid_newest_batch_age_seconds 36" in text
            route = 'method="POST",route="/v1/vends",status="200"'
            assert f"prepaid_api_request_seconds_count{{{route}}} 2.0" in text
            await shop.get("/v9/" + "x" * 20)
            assert 'route="unmatched",status="404"' in (await shop.http.get("/metrics")).text

    asyncio.run(story())


def test_openapi_lists_what_each_operation_may_answer(database_url: str) -> None:
    """The document is made of the code: every operation has a summary and its statuses, none of FastAPI's own."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            document = (await shop.http.get("/openapi.json")).json()
            assert {"/v1/vends", "/v1/trial-vends", "/v1/errors", "/health"} <= set(document["paths"])
            for path, method, operation in _operations(document):
                assert operation.get("summary"), (method, path)
                statuses = set(operation["responses"])
                assert statuses & {"4XX", "default"} or "500" in statuses or path == "/metrics", (
                    method,
                    path,
                    statuses,
                )
            assert document["components"]["schemas"]["VendAnswer"]["examples"]
            assert "HTTPValidationError" not in document["components"]["schemas"]

    asyncio.run(story())


def test_example_of_every_body_is_well_formed(database_url: str) -> None:
    """What the document shows can be sent: it may be refused for what it asks, never for its form."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            document = (await shop.http.get("/openapi.json")).json()
            asked = 0
            for path, method, operation in _operations(document):
                content = operation.get("requestBody", {}).get("content", {}).get("application/json")
                # Bodies that are read as they were signed, by somebody else's rules, have no form of ours.
                if content is None or path == "/v1/sms/inbound" or content["schema"] == {"type": "object"}:
                    continue
                example = _example(document, content["schema"])
                who = "engineer" if path.startswith(_ENGINEERS) else "vendor"
                where = _PLACE.sub(lambda place: _PLACES.get(place[1], "1"), path)
                answer = await shop.http.request(method, where, json=example, headers=shop.headers(who))
                assert answer.status_code < 500, (method, path, example, answer.text)
                if answer.status_code == 400:
                    error = answer.json()["error"]
                    well_formed = error["code"] != "malformed" or error["message"].startswith("path.")
                    assert well_formed, (method, path, example, answer.text)
                asked += 1
            assert asked >= 10

    asyncio.run(story())


_ENGINEERS = ("/v1/issues", "/v1/open-vends", "/v1/accounts", "/v1/consumer")
_PLACE = re.compile(r"{(\w+)}")
_PLACES = {"serial": "PB000123", "id": "100200300", "account": "100200300", "kind": "sales"}


def _operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, found) for path, methods in document["paths"].items() for method, found in methods.items()]


def _example(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Return the example of a body: of the whole, or of its fields, those that may be left out left out."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "examples" in schema:
        return schema["examples"][0]
    if schema.get("type") == "array":
        return []
    if schema.get("type") == "integer":
        return int(schema.get("minimum", 0))
    assert "properties" in schema, f"expected an example, got none: {schema}"
    return {name: _example(document, schema["properties"][name]) for name in schema.get("required", ())}


def test_body_above_the_limit_is_413_with_or_without_a_length(database_url: str) -> None:
    """The limit itself is still read; one byte more is refused, and nothing is parsed."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            headers = {**shop.headers("vendor"), "content-type": "application/json"}
            fits = await shop.http.post("/v1/vends", content=b"x" * BODY_BYTES_MAX, headers=headers)
            assert (fits.status_code, code_of(fits)) == (400, "malformed")
            for content in (b"x" * (BODY_BYTES_MAX + 1), _chunks(MEGABYTE), _chunks(8 * MEGABYTE)):
                refused = await shop.http.post("/v1/vends", content=content, headers=headers)
                assert (refused.status_code, code_of(refused)) == (413, "body_too_large")

    asyncio.run(story())


def test_megabyte_over_a_socket_is_answered_413_and_not_reset(database_url: str) -> None:
    """A client that sends on while it is refused still reads the named error, and the server goes on."""

    async def story() -> None:
        async with open_shop(database_url) as shop, served(shop) as url, httpx.AsyncClient(base_url=url) as http:
            headers = {**shop.headers("vendor"), "content-type": "application/json"}
            for content in (b"x" * MEGABYTE, _chunks(MEGABYTE)):
                refused = await http.post("/v1/vends", content=content, headers=headers)
                assert (refused.status_code, code_of(refused)) == (413, "body_too_large")
            declared = {**headers, "content-length": "100000000000", "expect": "100-continue"}
            head = f"POST /v1/vends HTTP/1.1\r\nhost: shop\r\n{_lines(declared)}\r\n"
            assert b" 413 " in await _first_line(url, head)
            sold = await http.post("/v1/vends", content=_vend(), headers=headers)
            assert sold.status_code == 200

    asyncio.run(story())


def test_body_that_does_not_come_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that stops half way holds nothing for ever."""
    monkeypatch.setattr("vending.edges.body_limit.BODY_TIMEOUT_S", 0.01)

    async def never(scope: object, receive: object, send: object) -> None:
        raise AssertionError("the application must not see half a body")

    async def silent() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    sent: list[object] = []

    async def send(message: object) -> None:
        sent.append(message)

    limit = BodyLimit(never, too_large=answer({}, status=413), too_slow=answer({}, status=408))
    scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"10")]}
    asyncio.run(limit(scope, silent, send))
    assert isinstance(sent[0], dict)
    assert sent[0]["status"] == 408


def test_vending_keys_lie_sealed_and_open_under_their_master_only(database_url: str) -> None:
    """The same key twice is one, another is refused, another master key does not start."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            check_value = await add_vending_key(shop.conn, MASTER, sgc=SGC, krn=1, key=VENDING_KEY)
            assert check_value == key_check_value(VENDING_KEY)
            with pytest.raises(VendingKeyConflict):
                await add_vending_key(shop.conn, MASTER, sgc=SGC, krn=1, key=bytes(20))
            assert await shop.count("vending_keys") == 1
            assert VENDING_KEY not in await shop.one("select sealed from vending_keys")
            module = await load_security_module(shop.conn, MASTER)
            assert await module.key_check_value(sgc=SGC, krn=1) == check_value
            with pytest.raises(SealBroken):
                await load_security_module(shop.conn, bytes(32))

    asyncio.run(story())


def test_interface_keys_are_kept_as_digests_and_bound_to_their_owner(database_url: str) -> None:
    """The secret is nowhere in the table, nor in `repr`; a role without its owner is refused."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            key = shop.keys["vendor"]
            stored = await shop.one("select string_agg(k::text, ' ') from api_keys k")
            assert key.key_id in stored
            assert key.secret not in stored
            assert key.secret.encode().hex() not in stored
            assert key.secret not in repr(key)
            for role, owner in (
                (Role.VENDOR, {}),
                (Role.ENGINEER, {"vendor_id": shop.vendor_id}),
                (Role.CONSUMER, {"vendor_id": shop.vendor_id}),
            ):
                with pytest.raises(BadApiKeyOwner):
                    await issue_api_key(shop.conn, role, **owner)

    asyncio.run(story())


def test_database_itself_refuses_a_second_vend_under_a_message_id(database_url: str) -> None:
    """The unique key stands behind the lock, whoever writes."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.vend("m-1", "0.00")
            with pytest.raises(UniqueViolation):
                await shop.conn.execute(
                    "insert into vends (vendor_id, message_id, request_sha256, amount_minor, status, answer, state,"
                    " funding) select vendor_id, message_id, request_sha256, amount_minor, status, answer, state,"
                    " funding from vends"
                )

    asyncio.run(story())


async def _chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(0, size, 10_000):
        yield b"x" * 10_000


@asynccontextmanager
async def served(shop: Shop) -> AsyncIterator[str]:
    """Serve the application on a real socket; its lifespan is open already."""
    server = uvicorn.Server(uvicorn.Config(shop.app, lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


def _lines(headers: dict[str, str]) -> str:
    return "".join(f"{name}: {text}\r\n" for name, text in headers.items())


async def _first_line(url: str, head: str) -> bytes:
    """Send the head of a request and return the first line of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    writer.write(head.encode())
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line
