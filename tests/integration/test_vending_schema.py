"""Whatever is sent to the interface's own description of itself: no fault of the server, no status it does not name."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from prepaid.engineers import add_engineers
from prepaid.settings import load_settings
from tests.faults.vend_street import AMOUNT, Street, api_processes, open_street, prove, station
from tests.integration.vending_shop import MASTER, Home, open_shop
from vending.edges.keys import issue_api_key
from vending.roles import VENDOR_ROLES, Role

pytestmark = pytest.mark.db

# A message id that has been answered.
SOLD = "T17-sold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What requests may be made of beside what the description says: keys, and names that exist."""

    keys: tuple[str | None, ...]
    known: Mapping[str, tuple[str, ...]]


@pytest.fixture(autouse=True)
def master_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The master key of the street, for the process that reads the environment."""
    monkeypatch.setenv("PREPAID_MASTER_KEY", MASTER.hex())


def _probe(database_url: str, folder: Path, *, examples: int) -> None:
    """Send so many requests to each operation, made from its description; afterwards the books must be sound."""

    async def story() -> None:
        async with open_street(database_url) as street, api_processes([database_url], folder) as (system,):
            told = await _told(street)
            async with station(system.api_url, street.key) as till:
                assert (await till.post("/v1/vends", json=street.body(SOLD))).status_code == 200
            # In a thread: requests and their answers are made and judged one by one.
            answered = await asyncio.to_thread(_ask_everything, system.api_url, told, examples)
            assert answered[200] > 0, "some requests are answered"
            assert answered[401] > 0, "some come without a key"
            await prove(street)

    asyncio.run(story())


async def _told(street: Street) -> Told:
    home: Home = street.homes[0]
    keys: list[str | None] = [None]
    for role in Role:
        vendor_id = street.vendor_id if role in VENDOR_ROLES else None
        account_id = home.account_id if role is Role.CONSUMER else None
        area = "test" if role is Role.READER else None
        key = await issue_api_key(
            street.conn, role, vendor_id=vendor_id, account_id=account_id, area=area, master=MASTER
        )
        keys.append(key.header)
    known = {
        "serial": (home.serial,),
        "meter": (home.serial, home.drn or ""),
        "id": (home.number,),
        "account": (home.number,),
        "message_id": (SOLD,),
        "amount": (AMOUNT, "0.01", "99999999.00"),
    }
    return Told(keys=tuple(keys), known=known)


def _ask_everything(address: str, told: Told, examples: int) -> Counter[int]:
    """Ask every operation; return how often each status came."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    answered: Counter[int] = Counter()
    faults: list[str] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        asked = _asking(operation.as_strategy(), told, examples, lambda case, key: _judged(case, key, answered))
        try:
            asked()
        except Exception as error:  # noqa: BLE001 - All operations are asked, then all faults shown.
            faults.append(f"{operation.label}: {type(error).__name__}: {error}"[:600])
    assert faults == [], "\n\n".join(faults)
    return answered


def _asking(
    cases: st.SearchStrategy[Case], told: Told, examples: int, judge: Callable[[Case, str | None], None]
) -> Callable[[], None]:
    """Return a test of one operation: seeded, so that a fault comes again."""

    @seed(17)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, key=st.sampled_from(told.keys), real=st.booleans(), choice=st.integers(0, 7))
    def ask(case: Case, key: str | None, real: bool, choice: int) -> None:
        if real:
            for part in (case.path_parameters, case.query, case.body):
                _put_known(part, told.known, choice)
        judge(case, key)

    return ask


def _put_known(part: Any, known: Mapping[str, tuple[str, ...]], choice: int) -> None:  # Of any JSON type.
    """Let a request name what exists, where it is of a form that names anything."""
    if isinstance(part, dict):
        for name in part.keys() & known.keys():
            part[name] = known[name][choice % len(known[name])]


def _judged(case: Case, key: str | None, answered: Counter[int]) -> None:
    """Send a request; its status must be one that the operation names itself, with the form that it says."""
    headers = {} if key is None else {"X-Api-Key": key}
    response = case.call(headers=headers, timeout=60)
    answered[response.status_code] += 1
    assert response.status_code < 500, f"{case.as_curl_command()}: {response.status_code} {response.text}"
    named = set(case.operation.definition.raw["responses"])
    assert str(response.status_code) in named, (
        f"{case.as_curl_command()}: expected one of {sorted(named)}, got {response.status_code} {response.text}"
    )
    case.validate_response(response, checks=[content_type_conformance, response_schema_conformance])


def test_every_operation_answers_as_its_description_says(database_url: str, data_dir: Path) -> None:
    """A few requests to each operation, with keys of every role and with none."""
    _probe(database_url, data_dir, examples=6)


def test_zero_character_in_a_question_is_refused_and_no_fault(database_url: str) -> None:
    """The database has no text with a zero in it: whoever sends one is told so, by every operation with a query."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            add_engineers(shop.app, load_settings())
            auditor = await issue_api_key(shop.conn, Role.AUDITOR, master=MASTER)
            faults = []
            for path, operations in shop.app.openapi()["paths"].items():
                named = re.sub(r"\{[^}]*\}", shop.home.number, path)
                for part in operations.get("get", {}).get("parameters", []):
                    if part["in"] == "query":
                        asked = f"{named}?{part['name']}=%00"
                        answer = await shop.http.get(asked, headers={"X-Api-Key": auditor.header})
                        faults += [(asked, answer.status_code)] if answer.status_code >= 500 else []
            assert faults == []

    asyncio.run(story())


@pytest.mark.slow
def test_every_operation_answers_as_its_description_says_at_length(database_url: str, data_dir: Path) -> None:
    """The same with many requests each."""
    _probe(database_url, data_dir, examples=150)
