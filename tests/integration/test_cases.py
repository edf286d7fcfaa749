"""Cases on real parts: the how-to as it is written, a burnt meter by HTTP, right meters, bills and net meters."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from billing.correction import Fault, StatedEnergy
from billing.disputes.case import Area, CaseKind, CaseRefused, Decision, StepKind
from billing.disputes.proposal import Asked
from billing.disputes.rules import builtin_case_documents
from db.case_money import approve_money, post_money, propose_money, refuse_money
from db.case_tests import CheckReading, add_check_readings, bank_of, compare_meters, install_check_meter
from db.cases import (
    CaseConflict,
    Entry,
    NewCase,
    UnknownCase,
    add_document,
    add_rules,
    decide_case,
    enter_step,
    list_cases,
    open_case,
    read_case,
)
from db.corrections import CorrectionNotReady, apply
from db.readings import copy_readings, ensure_partitions
from db.registry import NewMeter, add_meter
from protocols.rows import ReadingRow
from tests.commands import run_command, settings_for
from tests.integration.correction_street import CLERK, OFFICER, assert_clean, curve
from tests.integration.test_engineer_api import open_desk
from tests.integration.test_posting import (
    APRIL,
    KOLKATA,
    RULES,
    Home,
    close,
    local,
    on_database,
    open_home,
    read,
    rows,
    view_of,
)
from tests.integration.vending_shop import MASTER, Shop
from vending.edges.keys import issue_api_key
from vending.roles import Role

pytestmark = pytest.mark.db

HOW_TO = Path(__file__).parents[2] / "docs" / "disputes.md"
HALF_HOUR = timedelta(minutes=30)


async def stand_side_by_side(
    conn: AsyncConnection, home: Home, *, first: datetime, until: datetime, percent: int, gone: Sequence[int] = ()
) -> list[CheckReading]:
    """Store half-hours of a meter that counts so many percent of what is used; return what a check meter counts."""
    start = local(APRIL)
    halves = range((first - start) // HALF_HOUR, (until - start) // HALF_HOUR + 1)
    used = {n: 250 * n + (50 if n % 2 else 0) for n in halves}
    registers = [
        ReadingRow(home.meter_id, start + n * HALF_HOUR, wh * percent // 100, wh // 2, None, None, None, None, None)
        for n, wh in used.items()
    ]
    await ensure_partitions(conn, {reading.read_at.date() for reading in registers})
    await copy_readings(conn, registers)
    return [
        CheckReading(at=start + n * HALF_HOUR, import_wh=7_000 + wh, export_wh=wh // 2 * 100 // 125)
        for n, wh in used.items()
        if n not in gone
    ]


async def check_meter(conn: AsyncConnection, serial: str) -> None:
    await add_meter(conn, NewMeter(serial=serial, rated_w=15_000, register_end_wh=1_000_000_000))


def entry(at: datetime, by: str = CLERK) -> Entry:
    return Entry(by=by, at=at, note="as seen")


async def opened(conn: AsyncConnection, kind: CaseKind, at: datetime, account: str = "A1") -> int:
    new = NewCase(
        account=account, kind=kind, area=Area.RURAL, accuracy_class="1", complaint="wrong", by=CLERK, at=at
    )  # fmt: skip
    return await open_case(conn, new, KOLKATA)


# The how-to ----------------------------------------------------------------------------------------------------------


def how_to() -> list[list[str]]:
    """Return the commands of the walk as the page has them."""
    walk = HOW_TO.read_text().split("## From complaint to posted overhaul")[1].split("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)```", walk, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines]


def test_how_to_leads_from_complaint_to_posted_overhaul(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of docs/disputes.md, one after the other, as an engineer types them; then the audit is clean."""

    async def town(conn: AsyncConnection) -> None:
        home = await open_home(conn, "100200300", opening_credit_minor=5_000_000)
        await conn.execute("update meters set serial = 'PB000123' where id = %s", (home.meter_id,))
        for serial in ("CHECK01", "PB000999"):
            await check_meter(conn, serial)
        seen = await stand_side_by_side(
            conn, home, first=local(APRIL, 0.5), until=local(date(2026, 7, 7), 11), percent=103
        )  # fmt: skip
        since = datetime.fromisoformat("2026-04-05T12:00+05:30")
        lines = [f"{each.at.isoformat()},{each.import_wh}" for each in seen if each.at >= since]
        (tmp_path / "check.csv").write_text("\n".join(["read_at,import_wh", *lines]) + "\n")
        (tmp_path / "complaint.txt").write_text("The meter counts while the main switch is off.\n")
        await conn.execute(
            "insert into batches (shard, epoch, messages, received, stored, duplicate, rejected, quarantined)"
            " select 0, 1, 1, count(*), count(*), 0, 0, 0 from readings"
        )

    on_database(database_url, town)
    monkeypatch.chdir(tmp_path)
    settings = settings_for(database_url, tmp_path)
    told: list[str] = []
    for arguments in how_to():
        if "propose" in arguments:
            run_command("close-day", "--until", "2026-07-31", environment=settings)
        told.append(run_command(*arguments, environment=settings).stdout)
    walked = "\n".join(told)
    assert "verdict fast: error 3.00 %, limit 1.00 %" in walked
    shown = json.loads(run_command("cases", "show", "1", "--json", environment=settings).stdout)
    assert (shown["state"], shown["verdict"], shown["decision"]) == ("closed", "fast", "overhaul")
    assert [clock["overdue"] for clock in shown["clocks"]] == [False, False]
    steps = {step["step"]: step["facts"] for step in shown["steps"]}
    # 3.05 % of what each month counted goes back to the account.
    assert [part["assessed_wh"] < 0 for part in steps["propose"]["parts"]] == [True] * 4
    assert steps["propose"]["after_minor"] > steps["propose"]["before_minor"]
    assert (steps["post"]["correction"], len(steps["post"]["journals"])) == (steps["propose"]["correction"], 4)
    assert (
        steps["post"]["summary"]["credited_minor"] == steps["propose"]["after_minor"] - steps["propose"]["before_minor"]
    )
    # Its account is billed by the new meter now, and the check meter stands nowhere.
    with psycopg.connect(database_url) as conn:
        standing = conn.execute(
            "select m.serial, i.role from installations i join meters m on m.id = i.meter_id where i.to_at is null"
        ).fetchall()
    assert standing == [("PB000999", "billing")]


# By HTTP -------------------------------------------------------------------------------------------------------------


async def _post(shop: Shop, path: str, body: dict[str, Any], who: str = "engineer", status: int = 200) -> Any:
    answered = await shop.http.post(f"/v1/cases{path}", json=body, headers=shop.headers(who))
    assert answered.status_code == status, answered.text
    return answered.json() if status == 200 else answered.json()["error"]["code"]


def test_burnt_meter_is_replaced_overhauled_and_closed_by_http(database_url: str) -> None:
    """Opened, overdue, replaced, decided, proposed, approved by another person, posted; each key sees what it may."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            shop.keys["second"] = await issue_api_key(shop.conn, Role.ENGINEER, master=MASTER, label="S. Gill")
            first = APRIL
            home = await open_home(shop.conn, "H1", opening_credit_minor=3_000_000)
            await read(shop.conn, home, [(local(first, 24 * n + 6), 4_000 * n) for n in range(1, 20)])
            await check_meter(shop.conn, "NEW1")
            at = local(first, 24 * 20)
            complaint = {
                "account": home.number, "kind": "burnt", "area": "urban", "accuracy_class": "1",
                "complaint": "smoke", "at": at.isoformat(),
            }  # fmt: skip
            assert await _post(shop, "", complaint, "vendor", 403) == "not_allowed"
            assert await _post(shop, "", complaint | {"account": "X"}, status=404) == "unknown_case"
            assert await _post(shop, "", complaint | {"accuracy_class": "9"}, status=409) == "case_refused"
            case = await _post(shop, "", complaint)
            number = case["case"]
            assert (case["state"], case["overdue"]) == ("opened", True)
            listed = (await shop.get("/v1/cases?overdue=true&state=opened", "engineer")).json()
            assert [each["case"] for each in listed["cases"]] == [number]
            words = {"note": "seen"}
            decision = {"decision": "overhaul", "note": "burnt"}
            assert await _post(shop, f"/{number}/decision", decision, status=409) == "case_refused"
            swap = {
                "meter": "NEW1", "at": (at + timedelta(hours=20)).isoformat(), "closing_wh": None, "opening_wh": 100,
                "note": "burnt",
            }  # fmt: skip
            assert await _post(shop, f"/{number}/replacement", swap | {"meter": "X"}, status=409) == "swap_refused"
            replaced = await _post(shop, f"/{number}/replacement", swap)
            (clock,) = replaced["clocks"]
            assert (replaced["state"], clock["clock"], clock["overdue"]) == ("replaced", "replacement", False)
            await close(shop.conn, first + timedelta(days=40))
            await _post(shop, f"/{number}/decision", decision)
            proposal = {"overhaul": {"month_wh": 300_000}, "note": "as agreed"}
            both = proposal | {"amount": "1.00"}
            assert await _post(shop, f"/{number}/proposal", both, status=409) == "case_refused"
            proposed = await _post(shop, f"/{number}/proposal", proposal)
            assert proposed["steps"][-1]["facts"]["source"].startswith("R-20")
            assert await _post(shop, f"/{number}/approval", words, status=409) == "case_refused"
            assert await _post(shop, f"/{number}/posting", words, status=409) == "case_refused"
            await _post(shop, f"/{number}/approval", words, "second")
            posted = await _post(shop, f"/{number}/posting", words)
            assert (posted["state"], posted["steps"][-2]["by"]) == ("posted", "s. gill")
            assert await _post(shop, f"/{number}/posting", words, status=409) == "case_refused"
            assert (await _post(shop, f"/{number}/closing", words))["state"] == "closed"
            assert (await shop.get("/v1/cases?overdue=true", "engineer")).json() == {"cases": [], "next": None}
            await assert_clean(shop.conn)
            document = (await shop.http.get("/openapi.json")).json()["paths"]
            assert "409" in document["/v1/cases/{id}/posting"]["post"]["responses"]
            assert "example" in json.dumps(document["/v1/cases/{id}"])

    asyncio.run(story())


def test_documents_are_kept_once_and_given_back_as_they_came(database_url: str) -> None:
    """Name, digest and bytes; the same again stays one, an empty or large one is refused, none is served inline."""

    async def story() -> None:
        async with open_desk(database_url) as shop:
            complaint = {
                "account": shop.home.number, "kind": "disputed_bill", "area": "rural", "accuracy_class": "1",
                "complaint": "too much",
            }  # fmt: skip
            number = (await _post(shop, "", complaint))["case"]
            body = {"name": "bill.txt", "media_type": "text/plain", "content": "PGI+MTwvYj4="}
            for _ in range(2):
                kept = (await _post(shop, f"/{number}/documents", body))["documents"]
                assert [(each["name"], each["bytes"]) for each in kept] == [("bill.txt", 8)]
            await _post(shop, f"/{number}/documents", body | {"content": "no base 64!"}, status=400)
            found = await shop.get(f"/v1/cases/{number}/documents/{kept[0]['document']}", "engineer")
            assert found.content == b"<b>1</b>"
            assert found.headers["content-type"] == "application/octet-stream"
            assert found.headers["content-disposition"].startswith("attachment")
            assert (await shop.get(f"/v1/cases/{number}/documents/999", "engineer")).status_code == 404
            now = Entry(by=CLERK, at=datetime.now(UTC))
            for content in (b"", b"x" * 5_000_001):
                with pytest.raises(CaseRefused, match="5000000 bytes"):
                    await add_document(shop.conn, number, now, name="x", media_type="text/plain", content=content)
            trail = "update case_steps set note = 'other'"
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await shop.conn.execute(trail)

    asyncio.run(story())


# What follows for the account ----------------------------------------------------------------------------------------


def test_meter_that_proves_right_costs_the_test_fee_once(database_url: str) -> None:
    """Registers that differ by less than the class permits: the fee of the rules is charged, and nothing else."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=5_000_000)
        await check_meter(conn, "CHECK01")
        case = await opened(conn, CaseKind.INACCURATE, local(APRIL, 9))
        with pytest.raises(CaseRefused, match="as good as 1"):
            await install_check_meter(conn, case, "CHECK01", "2", entry(local(APRIL, 20)), KOLKATA)
        with pytest.raises(CaseRefused, match="stands nowhere"):
            await install_check_meter(conn, case, "M-A1", "1", entry(local(APRIL, 20)), KOLKATA)
        await install_check_meter(conn, case, "CHECK01", "0.5S", entry(local(APRIL, 20)), KOLKATA)
        seen = await stand_side_by_side(
            conn, home, first=local(APRIL, 20), until=local(date(2026, 7, 2)), percent=100, gone=range(500, 510)
        )  # fmt: skip
        assert await add_check_readings(conn, case, seen) == len(seen)
        assert await add_check_readings(conn, case, seen[:50]) == 0
        other = CheckReading(at=seen[3].at, import_wh=seen[3].import_wh + 1, export_wh=seen[3].export_wh)
        with pytest.raises(CaseConflict, match="stored register"):
            await add_check_readings(conn, case, [other])
        early = entry(local(date(2026, 6, 1)))
        _, report = await compare_meters(conn, case, early, KOLKATA)
        assert (report.verdict.value, report.reason[:10]) == ("inconclusive", "the meters")
        _, report = await compare_meters(conn, case, entry(local(date(2026, 7, 2))), KOLKATA)
        assert (report.verdict.value, report.taken.missing_instants) == ("right", 10)
        later = entry(local(date(2026, 7, 3)))
        await decide_case(conn, case, Decision.METER_RIGHT, later, KOLKATA)
        before_minor = (await view_of(conn, home)).balance_minor(KOLKATA)
        posted = await post_money(conn, case, later, rules=RULES)
        assert (await view_of(conn, home)).balance_minor(KOLKATA) == before_minor - 12_000
        (journal,) = posted.steps[-1].facts["journals"]
        (kept,) = await rows(conn, "select kind, reason from journals where id = %s", journal)
        assert (kept["kind"], kept["reason"]) == (
            "adjustment",
            f"case {case}: test fee, the meter is right (by {CLERK})",
        )
        with pytest.raises(CaseRefused):
            await post_money(conn, case, later, rules=RULES)
        await assert_clean(conn)

    on_database(database_url, story)


def test_disputed_bill_is_put_right_by_an_amount_that_two_people_agree_on(database_url: str) -> None:
    """Its clock stands still while information is asked for; a proposal that is refused leaves nothing behind."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1")
        now = local(APRIL, 30)
        case = await opened(conn, CaseKind.DISPUTED_BILL, local(APRIL, 1))
        listed = await list_cases(conn, now=now, overdue=True, most=10)
        assert [each.id for each in listed] == [case]
        await enter_step(conn, case, StepKind.ASK, entry(now), KOLKATA)
        assert await list_cases(conn, now=local(APRIL, 900), overdue=True, most=10) == []
        file = await enter_step(conn, case, StepKind.ANSWER, entry(local(APRIL, 40)), KOLKATA)
        assert file.row.due_at == local(APRIL, 64)
        await decide_case(conn, case, Decision.ADJUST, entry(local(APRIL, 41)), KOLKATA)
        before_minor = (await view_of(conn, home)).balance_minor(KOLKATA)
        for _ in range(2):
            at = datetime.now(UTC)
            await propose_money(conn, case, 2_550, entry(at), rules=RULES)
            with pytest.raises(CaseRefused, match="another person"):
                await approve_money(conn, case, entry(at, CLERK.upper()), rules=RULES)
            await approve_money(conn, case, entry(at, OFFICER), rules=RULES)
            if _ == 0:
                await refuse_money(conn, case, entry(at, OFFICER), rules=RULES)
        await post_money(conn, case, entry(datetime.now(UTC)), rules=RULES)
        assert (await view_of(conn, home)).balance_minor(KOLKATA) == before_minor + 2_550
        with pytest.raises(UnknownCase):
            await read_case(conn, case + 1)
        await assert_clean(conn)

    on_database(database_url, story)


def test_overhaul_whose_posting_was_stopped_goes_on_and_is_posted_once(database_url: str) -> None:
    """The correction was applied and the step was not written: posting again writes the step, and no journal more."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=3_000_000)
        await read(conn, home, curve(45))
        await close(conn, date(2026, 5, 5))
        case = await opened(conn, CaseKind.SEASONAL, local(APRIL, 24 * 40))
        at = entry(datetime.now(UTC))
        await decide_case(conn, case, Decision.OVERHAUL, entry(local(APRIL, 24 * 41)), KOLKATA)
        asked = Asked(last=date(2026, 4, 30), fault=Fault.DEFECTIVE, assessment=StatedEnergy(month_wh=500_000))
        file = await propose_money(conn, case, asked, at, rules=RULES)
        correction = file.steps[-1].facts["correction"]
        await approve_money(conn, case, entry(at.at, OFFICER), rules=RULES)
        await apply(conn, correction, rules=RULES)
        with pytest.raises(CorrectionNotReady):
            await refuse_money(conn, case, at, rules=RULES)
        posted = await post_money(conn, case, at, rules=RULES)
        assert len(posted.steps[-1].facts["journals"]) == 1
        await assert_clean(conn)

    on_database(database_url, story)


def test_net_meter_with_a_wrong_export_is_overhauled_in_its_bank_alone(database_url: str) -> None:
    """Import is right, export 25 % fast: no verdict, no fee; the bank says which months were billed short."""

    async def story(conn: AsyncConnection) -> None:
        home = await open_home(conn, "A1", opening_credit_minor=5_000_000)
        await check_meter(conn, "CHECK01")
        case = await opened(conn, CaseKind.NET_METER, local(APRIL))
        await install_check_meter(conn, case, "CHECK01", "1", entry(local(APRIL)), KOLKATA)
        seen = await stand_side_by_side(
            conn, home, first=local(APRIL), until=local(date(2026, 7, 1)), percent=100
        )  # fmt: skip
        await add_check_readings(conn, case, seen)
        _, report = await compare_meters(conn, case, entry(local(date(2026, 7, 1))), KOLKATA)
        assert report.sent is not None
        assert (report.taken.error_basis_points, report.sent.error_basis_points) == (0, 2_500)
        assert report.verdict.value == "inconclusive"
        with pytest.raises(CaseRefused, match="expected nothing"):
            await decide_case(conn, case, Decision.METER_RIGHT, entry(local(date(2026, 7, 1))), KOLKATA)
        errors = {"import_error_basis_points": 0, "export_error_basis_points": 2_500}
        found = await bank_of(conn, case, KOLKATA, first=APRIL, last=date(2026, 6, 30), **errors)
        counted, corrected = found.counted[0], found.corrected[0]
        assert (counted.import_wh, counted.export_wh, corrected.export_wh) == (360_000, 180_000, 144_000)
        assert found.short_wh[APRIL] == 36_000
        with pytest.raises(CaseRefused, match="rise through 2026-07"):
            await bank_of(conn, case, KOLKATA, first=APRIL, last=date(2026, 7, 31), **errors)

    on_database(database_url, story)


def test_case_goes_by_the_rules_of_the_day_it_was_opened(database_url: str) -> None:
    """The utility's own document holds from its day on; another one of the same id or day is refused."""

    async def story(conn: AsyncConnection) -> None:
        await open_home(conn, "A1")
        text = builtin_case_documents()["punjab"].replace('id = "punjab"', 'id = "utility-2026"')
        text = text.replace("2024-11-14", "2026-04-15").replace("settle_hours = 24", "settle_hours = 12")
        await add_rules(conn, text, by=CLERK, now=local(APRIL))
        with pytest.raises(CaseConflict):
            await add_rules(conn, text.replace("utility-2026", "other"), by=CLERK, now=local(APRIL))
        for day, name, hours in ((14, "punjab", 24), (15, "utility-2026", 12)):
            at = local(date(2026, 4, day), 1)
            file = await read_case(conn, await opened(conn, CaseKind.DISPUTED_BILL, at))
            assert (file.row.rules, file.row.due_at) == (name, at + timedelta(hours=hours))

    on_database(database_url, story)
