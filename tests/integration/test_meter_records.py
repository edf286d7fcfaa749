"""Meter records on a real PostgreSQL: engines by record, versions and their history, key changes, makers' lists."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from typer.testing import CliRunner

from billing.calendar import to_ms
from billing.estimate import energy_bought_wh
from db.accounts import look
from db.audit import run_checks
from db.meter_records import (
    RecordConflict,
    begin_pending,
    record_in_force,
    record_to_mint,
    records_of_meter,
    token_accepted,
)
from db.migrate import migrate, migrations
from db.paygo_devices import PaygoDeviceRow, write_paygo_devices
from db.pool import connect
from db.registry import NewMeter, StsIdentity, add_meter
from db.vends import take_tid
from meter_sim.openpaygo_reader import OpenPaygoReader
from meter_sim.token_reader import CreditUnit, EntryResult, ReaderSettings, TokenReader
from prepaid.__main__ import app
from prepaid.csv_lines import ImportRefused
from prepaid.record_formats import FormRefused, form_named, is_secret_header, parse_form
from prepaid.record_import import ImportOutcome, run_import_records
from prepaid.settings import Settings
from tests.integration.vending_shop import (
    CALENDAR,
    MASTER,
    NOON,
    SGC,
    STS,
    VENDING_KEY,
    Home,
    Shop,
    add_home,
    key_of,
    open_shop,
)
from vending.edges.errors import RequestDeclined
from vending.edges.record_desk import (
    MeterUnknown,
    RecordRefused,
    Wanted,
    change_key,
    confirm_change,
    issue_management,
    set_record,
    withdraw_change,
)
from vending.engines.orders import read_order
from vending.key_custody import SealedVendingKey, seal_device_key, seal_vending_key
from vending.soft_module import SoftSecurityModule
from vending.sts.keys import derive_decoder_key
from vending.sts.sta import IEC_SAMPLE_TABLES
from vending.sts.tokens import TokenNumber

pytestmark = pytest.mark.db

NEW_VENDING_KEY = bytes.fromhex("0123456789abcdef0123456789abcdef01234567")
# Origin: the example device list of EnAccess/OpenPAYGO-Token, a published test key.
DEVICE_KEY, STARTING_CODE = bytes.fromhex("dac86b1a29ab82edc5fbbc41ec9530f6"), 432_435_255
UNITS_ONLY = replace(STS, capabilities=("electricity", "units"))
SAMPLE_TABLES = replace(STS, ea=7)
NOW_MS = to_ms(NOON)
TEN_MINUTES_MS = 600_000
DAY_MS = 86_400_000
ROW = "PB000123,00000000018,123456,2,1,01,255,11,4,2014"
GENERIC = "serial,drn,sgc,key type,krn,tariff index,ken,ea,dkga,base year"


def module() -> SoftSecurityModule:
    """Open a module with two revisions of the shop's key, and with the sample tables explicitly allowed."""
    keys = {1: VENDING_KEY, 2: NEW_VENDING_KEY}
    sealed = [
        SealedVendingKey(sgc=SGC, krn=krn, sealed=seal_vending_key(MASTER, SGC, krn, key)) for krn, key in keys.items()
    ]
    return SoftSecurityModule(MASTER, sealed, rnd_nibble=lambda: 5, sta_tables=IEC_SAMPLE_TABLES)


def wanted(serial: str, **changes: object) -> Wanted:
    return Wanted(serial=serial, changes=changes, by="A. Kaur", reason="test")


def reader(home: Home, **changes: Any) -> TokenReader:
    """Return the reader of an EA11 meter under the first key."""
    return TokenReader(derive_decoder_key(VENDING_KEY, key_of(home.drn or "", **changes)).key)


async def sold(shop: Shop, message_id: str, home: Home, amount: str = "500.00") -> dict[str, Any]:
    """Sell what must be sold; return the receipt."""
    response = await shop.vend(message_id, amount, meter=home.serial)
    assert response.status_code == 200, response.text
    receipt: dict[str, Any] = response.json()
    return receipt


async def taken_along(shop: Shop, home: Home) -> None:
    """Let a station ask for the key-change set that waits, as it must before it sells."""
    path = f"/v1/meters/{home.serial}/key-change"
    given = await shop.http.post(path, json={"message_id": f"kc-{home.serial}"}, headers=shop.headers("vendor"))
    assert given.status_code == 200, given.text


async def declined(shop: Shop, message_id: str, home: Home, amount: str = "500.00") -> str:
    """Sell what must be refused; return the reason."""
    response = await shop.vend(message_id, amount, meter=home.serial)
    assert response.status_code == 409, response.text
    return str(response.json()["error"]["code"])


async def broken(conn: AsyncConnection) -> list[str]:
    """Return the audit's findings about vends, tokens and records."""
    report = await run_checks(conn, CALENDAR)
    return [check.line() for check in report.checks if check.broken and check.id.startswith("I6")]


async def add_device(conn: AsyncConnection, number: str, *, price: int = 2_500) -> Home:
    """Add a home whose meter is an OpenPAYGO device with a price of a day."""
    home = await add_home(conn, f"SLT{number}", number, sts=None)
    device = PaygoDeviceRow(
        meter_id=home.meter_id,
        starting_code=STARTING_CODE,
        time_divider=1,
        restricted_digits=False,
        extended=False,
        sealed_key=seal_device_key(MASTER, home.serial, DEVICE_KEY),
        count=1,
        written_by="test",
        reason="test",
    )
    await write_paygo_devices(conn, [device])
    assert await set_record(conn, wanted(home.serial, engine="openpaygo", day_price_minor=price), now_ms=NOW_MS) == 1
    return home


def test_one_station_sells_each_meter_the_token_of_its_own_engine(database_url: str) -> None:
    """The same request to four makes: currency, kWh, EA07 under allowed tables, days; each reader takes its own."""

    async def story() -> None:
        async with open_shop(database_url, module=module()) as shop:
            unit = await add_home(shop.conn, "UNIT-1", "2", sts=UNITS_ONLY)
            sample = await add_home(shop.conn, "SAMPLE-1", "3", sts=SAMPLE_TABLES)
            device = await add_device(shop.conn, "4")
            view = (await look(shop.conn, [unit.account_id], CALENDAR))[unit.account_id]
            walk = view.walk(CALENDAR)
            used_wh = walk.last.energy_wh - walk.start_wh
            worth_wh = energy_bought_wh(walk.part, before_wh=walk.before_wh, used_wh=used_wh, credit_minor=50_000)

            token = (await sold(shop, "m-1", shop.home))["token"]
            assert (token["engine"], token["subclass"], token["unit"]) == ("sts", 4, "currency")
            entry = reader(shop.home).enter(token["digits"], now_ms=0)
            assert (entry.result, entry.unit) == (EntryResult.ACCEPTED, CreditUnit.CURRENCY_E5)

            receipt = await sold(shop, "m-2", unit)
            token = receipt["token"]
            assert (token["subclass"], token["unit"]) == (0, "kWh")
            entry = reader(unit).enter(token["digits"], now_ms=0)
            assert (entry.result, entry.amount, entry.unit) == (
                EntryResult.ACCEPTED, -(-worth_wh // 100), CreditUnit.UNIT_TENTHS
            )  # fmt: skip
            carries = next(line["text"] for line in receipt["lines"] if line["code"] == "token_amount")
            assert carries == f"The token carries: {token['amount']} kWh"

            token = (await sold(shop, "m-3", sample))["token"]
            key = derive_decoder_key(VENDING_KEY, key_of(sample.drn or "", ea=7)).key
            with_tables = TokenReader(key, settings=ReaderSettings(sta_tables=IEC_SAMPLE_TABLES))
            assert with_tables.enter(token["digits"], now_ms=0).result is EntryResult.ACCEPTED

            keypad = OpenPaygoReader(DEVICE_KEY, STARTING_CODE)
            for number, days in ((1, 20), (2, 40)):
                token = (await sold(shop, f"m-4-{number}", device))["token"]
                assert (token["engine"], token["class"], token["unit"], token["amount"]) == (
                    "openpaygo", None, "days", "20"
                )  # fmt: skip
                assert keypad.enter(token["digits"], 0).accepted
                assert keypad.time_left_ms(0) == days * DAY_MS
            body = {"meter": device.serial, "token": token["grouped"]}
            read = (await shop.http.post("/v1/tokens/verify", json=body, headers=shop.headers("vendor"))).json()
            assert (read["amount"], read["unit"], read["tid"]) == ("20", "days", 4)
            too_much = await shop.vend("m-5", "30000.00", meter=device.serial, tender="upi")
            assert (too_much.status_code, too_much.json()["error"]["limit"]) == (422, "24875.00")
            assert await broken(shop.conn) == []

    asyncio.run(story())


def test_meter_without_usable_record_is_a_typed_refusal(database_url: str) -> None:
    """EA07 without allowed tables, an engine that is not offered, a device without key, no record at all."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            sample = await add_home(shop.conn, "SAMPLE-1", "3", sts=SAMPLE_TABLES)
            other = await add_home(shop.conn, "OTHER-1", "4", sts=None)
            none = await add_home(shop.conn, "NONE-1", "5", sts=None)
            device = await add_home(shop.conn, "SLT6", "6", sts=None)
            changes: dict[str, object] = {"engine": "openpaygo", "day_price_minor": 100}
            await set_record(shop.conn, wanted(device.serial, **changes), now_ms=NOW_MS)
            await shop.conn.execute(
                "insert into meter_records (meter_id, version, state, engine, capabilities, written_by, reason,"
                " valid_from) values (%s, 1, 'active', 'vendor_cloud', array['units'], 'test', 'test', now())",
                (other.meter_id,),
            )
            reasons = [
                await declined(shop, f"m-{number}", home) for number, home in enumerate((sample, other, device, none))
            ]
            assert reasons == [
                "meter_key_unsupported", "engine_not_offered", "meter_key_unsupported", "meter_without_sts"
            ]  # fmt: skip
            assert await shop.count("tokens") == await shop.count("last_tids") == 0

    asyncio.run(story())


def test_twenty_vends_at_once_get_twenty_token_ids(database_url: str) -> None:
    """One allocator a meter: whoever sells at the same time, no two tokens share a TID or a count."""

    async def story() -> None:
        async with open_shop(database_url, module=module()) as shop:
            device = await add_device(shop.conn, "4")
            receipts = await asyncio.gather(
                *(sold(shop, f"s-{number}", shop.home) for number in range(20)),
                *(sold(shop, f"d-{number}", device) for number in range(20)),
            )
            tids = [receipt["tid"] for receipt in receipts]
            assert len(set(tids[:20])) == len(set(tids[20:])) == 20
            assert sorted(tids[20:]) == list(range(2, 42, 2))
            assert await shop.one("select max(last_tid) from last_tids where era = 2014") == max(tids[:20])
            assert await broken(shop.conn) == []

    asyncio.run(story())


def test_key_change_waits_for_the_first_good_token_under_the_new_key(database_url: str) -> None:
    """Its tokens come with a pending version; credit is made under that; the meter's first good token confirms it."""

    async def story() -> None:
        async with open_shop(database_url, module=(made := module())) as shop:
            meter = reader(shop.home)
            old = (await sold(shop, "m-1", shop.home))["token"]["digits"]
            changed = await change_key(
                shop.conn, made, wanted(shop.home.serial, krn=2, tariff_index="07"), now_ms=NOW_MS
            )
            assert (changed.version, len(changed.tokens)) == (2, 4)
            assert [each.last_four for each in changed.open_tokens] == [old[-4:]]
            with pytest.raises(RecordConflict):
                await change_key(shop.conn, made, wanted(shop.home.serial, krn=2), now_ms=NOW_MS)
            with pytest.raises(RecordConflict):
                await set_record(shop.conn, wanted(shop.home.serial, tariff_index="09"), now_ms=NOW_MS)
            assert await declined(shop, "m-1b", shop.home) == "key_change_needed"
            await taken_along(shop, shop.home)
            receipt = await sold(shop, "m-2", shop.home)
            assert "key_change_first" in [line["code"] for line in receipt["lines"]]
            new = receipt["token"]["digits"]
            assert meter.enter(new, now_ms=0).result is EntryResult.CRC_ERROR
            for token in changed.tokens:
                assert meter.enter(token.digits, now_ms=0).result is EntryResult.ACCEPTED
            assert meter.enter(new, now_ms=0).result is EntryResult.ACCEPTED
            assert meter.enter(old, now_ms=0).result is EntryResult.CRC_ERROR
            token_ids = [await shop.one("select id from tokens where digits = %s", digits) for digits in (old, new)]
            assert await token_accepted(shop.conn, shop.home.meter_id, token_ids[0]) is None
            assert await token_accepted(shop.conn, shop.home.meter_id, token_ids[1]) == 2
            assert await token_accepted(shop.conn, shop.home.meter_id, token_ids[1]) is None
            rows = await records_of_meter(shop.conn, shop.home.meter_id)
            assert [(row.version, row.state, row.krn, row.tariff_index) for row in rows] == [
                (2, "active", 2, "07"),
                (1, "past", 1, "01"),
            ]
            assert rows[1].valid_to == rows[0].valid_from
            assert rows[0].settled_by == f"the meter, which took token {receipt['tid']}"
            # Both tokens are still read back, each under the key it was made by.
            for digits in (old, new):
                body = {"meter": shop.home.serial, "token": digits}
                answer = await shop.http.post("/v1/tokens/verify", json=body, headers=shop.headers("vendor"))
                assert (answer.status_code, answer.json()["unit"]) == (200, "currency")
            assert await broken(shop.conn) == []

    asyncio.run(story())


def test_base_date_change_restarts_token_ids_and_refuses_the_old_tokens(database_url: str) -> None:
    """From 1993 to 2014: the old era can sell no more, the new one counts anew, the reader forgets its TIDs."""

    async def story() -> None:
        async with open_shop(database_url, module=(made := module())) as shop:
            home = await add_home(shop.conn, "OLD-1", "2", sts=replace(STS, base_year=1993))
            meter = reader(home, base_year=1993)
            last_tid = 0xFFFFF0
            await take_tid(shop.conn, home.meter_id, 1993, last_tid)
            in_hand = await _minted(made, home, tid=last_tid)
            # The meter has taken a later one: without forgetting it, every TID of the new era would look old.
            assert meter.enter((await _minted(made, home, tid=last_tid + 1)), now_ms=0).result is EntryResult.ACCEPTED
            assert await declined(shop, "m-1", home) == "tid_era_exhausted"
            changed = await change_key(shop.conn, made, wanted(home.serial, krn=2, base_year=2014), now_ms=NOW_MS)
            for token in changed.tokens:
                assert meter.enter(token.digits, now_ms=0).result is EntryResult.ACCEPTED
            await taken_along(shop, home)
            receipt = await sold(shop, "m-2", home)
            assert receipt["tid"] < last_tid
            assert meter.enter(receipt["token"]["digits"], now_ms=0).result is EntryResult.ACCEPTED
            assert meter.enter(in_hand, now_ms=0).result is EntryResult.CRC_ERROR
            eras = "select jsonb_object_agg(era, last_tid) from last_tids where meter_id = %s"
            assert await shop.one(eras, home.meter_id) == {"1993": last_tid, "2014": receipt["tid"]}
            assert await confirm_change(shop.conn, home.serial, by="A. Kaur", now_ms=NOW_MS) == 2
            with pytest.raises(RequestDeclined, match="earlier base date"):
                await change_key(shop.conn, made, wanted(home.serial, krn=1, base_year=1993), now_ms=NOW_MS)
            assert await broken(shop.conn) == []

    asyncio.run(story())


async def _minted(made: SoftSecurityModule, home: Home, *, tid: int) -> str:
    from vending.sts.amounts import CurrencyField
    from vending.sts.tokens import CreditService

    number: TokenNumber = await made.mint_currency_credit(
        key_of(home.drn or "", base_year=1993),
        service=CreditService.ELECTRICITY,
        amount=CurrencyField.encode(100_000),
        tid=tid,
    )
    return number.digits


def test_records_change_by_entered_versions_and_withdrawn_key_changes(database_url: str) -> None:
    """What is entered is checked and kept with who and why; a set given up leaves the key in force."""

    async def story() -> None:
        async with open_shop(database_url, module=(made := module())) as shop:
            serial, meter_id = shop.home.serial, shop.home.meter_id
            with pytest.raises(RecordRefused) as refused:
                await set_record(shop.conn, wanted(serial, sgc="12", krn=0), now_ms=NOW_MS)
            assert {fault.field for fault in refused.value.faults} == {"sgc", "krn"}
            assert await set_record(shop.conn, wanted(serial, tariff_index="01"), now_ms=NOW_MS) is None
            await _name_once(shop, "00000000018", "00000000026")
            assert await set_record(shop.conn, wanted(serial, tariff_index="02"), now_ms=NOW_MS) == 2
            with pytest.raises(RecordConflict):
                await confirm_change(shop.conn, serial, by="A. Kaur", now_ms=NOW_MS)
            with pytest.raises(MeterUnknown):
                await confirm_change(shop.conn, "NOBODY-1", by="A. Kaur", now_ms=NOW_MS)
            first = await change_key(shop.conn, made, wanted(serial, krn=2), now_ms=NOW_MS)
            assert await withdraw_change(shop.conn, serial, by="B. Singh") == 3
            # The same change again gives the same digits, which are kept again.
            second = await change_key(shop.conn, made, wanted(serial, krn=2), now_ms=NOW_MS)
            assert [token.digits for token in first.tokens] == [token.digits for token in second.tokens]
            token = await issue_management(
                shop.conn, made, serial, read_order("clear_tamper", 0), by="A. Kaur", reason="seal", now_ms=NOW_MS
            )
            pending = await record_to_mint(shop.conn, meter_id)
            assert pending is not None
            assert (pending.state, pending.last_tid) == ("pending", token.tid)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await shop.conn.execute("update meter_records set krn = 9")
            assert await begin_pending(shop.conn, meter_id, by="A. Kaur", at=NOON) == 4
            in_force = await record_in_force(shop.conn, meter_id)
            assert in_force is not None
            assert (in_force.version, in_force.krn) == (4, 2)
            states = [row.state for row in await records_of_meter(shop.conn, meter_id)]
            assert states == ["active", "withdrawn", "past", "past"]
            assert await broken(shop.conn) == []

    asyncio.run(story())


async def _name_once(shop: Shop, entered: str, corrected: str) -> None:
    """Correct a DRN while no token bears it, and not after."""
    home = await add_home(shop.conn, "NAME-1", "7")
    for version, drn in enumerate((entered, corrected), 2):
        named = replace(wanted(home.serial), drn=drn)
        assert await set_record(shop.conn, named, now_ms=NOW_MS) == version
    await sold(shop, "m-name", home)
    with pytest.raises(RecordConflict, match="which has tokens"):
        await set_record(shop.conn, replace(wanted(home.serial), drn=entered), now_ms=NOW_MS)
    assert await shop.one("select drn from meters where id = %s", home.meter_id) == corrected


def test_upgrade_keeps_keys_token_ids_and_tokens(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of before has its key columns as version 1, its last TIDs and tokens in the meter's era."""
    every = migrations()

    async def story() -> None:
        async with await connect(empty_database_url, application="test") as conn:
            with monkeypatch.context() as earlier:
                earlier.setattr("db.migrate.migrations", lambda: [each for each in every if each.name < "0019"])
                await migrate(conn)
            await conn.execute(BEFORE)
            await migrate(conn)
            cursor = await conn.execute("select version, state, krn, base_year, last_tid, drn from known_records")
            assert await cursor.fetchall() == [
                (1, "active", 1, 1993, 16_000_000, "00000000018"),
                (1, "active", 2, 2014, None, "00000000026"),
            ]
            cursor = await conn.execute(
                "select t.engine, t.kind, t.era, t.tid, t.made_at = v.created_at, r.version, t.digits"
                " from tokens t join vends v on v.id = t.vend_id join meter_records r on r.id = t.record_id"
            )
            assert await cursor.fetchall() == [("sts", "credit", 1993, 16_000_000, True, 1, "1" * 20)]
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await conn.execute("delete from tokens")

    asyncio.run(story())


BEFORE = """
insert into meters (serial, shard, rated_w, register_end_wh, drn, ea, dkga, sgc, key_type, krn, tariff_index, ken,
                    base_year)
values ('M1', 0, 1, 1, '00000000018', 7, 2, '123456', 2, 1, '01', 255, 1993),
       ('M2', 0, 1, 1, '00000000026', 11, 4, '123456', 2, 2, '01', 255, 2014),
       ('M3', 0, 1, 1, null, null, null, null, null, null, null, null, null);
insert into meter_state (meter_id, last_tid) values (1, 16000000), (2, null), (3, null);
insert into vendors (name) values ('V');
insert into vends (vendor_id, message_id, request_sha256, amount_minor, status, answer)
values (1, 'm', '', 1, 200, '{}');
insert into tokens (vend_id, meter_id, tid, digits, subclass) values (1, 1, 16000000, repeat('1', 20), 4);
"""


# Makers' lists -----------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """An installation with registered meters, the last with its record."""
    made = Settings(database_url=database_url, data_dir=tmp_path / "var")

    async def register() -> None:
        async with await connect(database_url, application="test") as conn:
            await migrate(conn)
            sts = StsIdentity(
                drn="00000000034", ea=11, dkga=4, sgc=SGC, key_type=2, krn=1, tariff_index="01", ken=255, base_year=2014
            )
            for serial, record in (("PB000123", None), ("PB000124", None), ("PB000126", None), ("PB000125", sts)):
                await add_meter(conn, NewMeter(serial=serial, rated_w=15_000, register_end_wh=10**9, sts=record))

    asyncio.run(register())
    return made


def imported(settings: Settings, tmp_path: Path, lines: Sequence[str], **options: Any) -> ImportOutcome:
    """Import lines as a file."""
    path = tmp_path / "list.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    form = options.pop("form", form_named(options.pop("format", "generic")))
    return run_import_records(settings, path, form, by="A. Kaur", dry_run=options.pop("dry_run", False))


def versions(settings: Settings, serial: str) -> list[tuple[object, ...]]:
    """Return version, KRN, tariff index and reason of a meter's records."""
    assert settings.database_url is not None
    with psycopg.connect(settings.database_url) as conn:
        query = "select version, krn, tariff_index, reason from known_records where serial = %s order by version"
        return conn.execute(query, (serial,)).fetchall()


def test_makers_list_goes_in_line_by_line_and_again_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    """Good lines are kept, bad ones named; what is known stays, what is said otherwise is a version of this file."""
    lines = [
        f"{GENERIC},carton",
        f"{ROW},C1",
        ROW.replace("PB000123,00000000018", "PB000124,00000000019") + ",C1",
        "PB000125,00000000034,201457,2,2,5,255,11,4,2014,C2",
        "NOBODY-1,00000000042,123456,2,1,01,255,11,4,2014,C2",
        f"{ROW},C3",
        "PB000124,short",
        "PB000126,00000000018,123456,2,1,01,255,11,4,2014,C4",
    ]
    for dry_run in (True, False):
        outcome = imported(settings, tmp_path, lines, dry_run=dry_run)
        # In a dry run the first line's DRN is free again when the last one asks for it.
        counts = (outcome.new, outcome.changed, outcome.same)
        assert counts == ((2 if dry_run else 1), 1, 0)
        assert outcome.ignored_columns == ["carton"]
        refused = dict(outcome.refused)
        assert set(refused) == ({3, 5, 6, 7} if dry_run else {3, 5, 6, 7, 8})
        assert versions(settings, "PB000123") == ([] if dry_run else [(1, 1, "01", "import list.csv")])
    assert "check digit" in refused[3]
    assert "a registered meter" in refused[5]
    assert "again after line 2" in refused[6]
    assert "expected 11 fields, got 2" in refused[7]
    assert "a DRN that no other meter has" in refused[8]
    again = imported(settings, tmp_path, [*lines[:2], lines[3]])
    assert (again.new, again.changed, again.same, again.refused) == (0, 0, 2, [])
    assert versions(settings, "PB000125") == [(1, 1, "01", "as registered"), (2, 2, "05", "import list.csv")]


def test_makers_forms_read_their_headers_separators_and_words(settings: Settings, tmp_path: Path) -> None:
    """A delivery list with words, a list of codes by DRN, and a form of the operator's own say the same."""
    delivery = [
        "Meter No;DRN;Supply Group Code;Key Revision No.;Tariff Index;Key Type;Key Expiry No;Encryption Algorithm;"
        "Decoder Key Generation Algorithm;Base Date;KCT Count",
        "PB000123;00000000018;123456;2;1;DUTK;255;MISTY1;04;01/01/2014;4",
    ]
    outcome = imported(settings, tmp_path, delivery, format="delivery-list")
    assert (outcome.new, outcome.refused) == (1, [])
    codes = ["DRN,SGC,KRN,TI,KT,KEN,EA,DKGA,BDT,TCT,KCT", "00000000018,123456,2,01,2,255,11,04,14,02,4"]
    assert imported(settings, tmp_path, codes, format="code-list").same == 1
    own = 'separator = "|"\n[columns]\n"Zaehler" = "serial"\n"Tarif" = "tariff_index"\n[constants]\nkrn = "3"\n'
    lines = ["Zaehler|Tarif", "PB000123|7"]
    assert imported(settings, tmp_path, lines, form=parse_form(own, "own.toml")).changed == 1
    assert [each[:3] for each in versions(settings, "PB000123")] == [(1, 2, "01"), (2, 3, "07")]


@pytest.mark.parametrize("header", ["Vending Key", "DECODER_KEY", "key", "VUDK", "DK", "Device Key (hex)", "password"])
def test_list_with_a_column_of_keys_is_refused_whole(settings: Settings, tmp_path: Path, header: str) -> None:
    """Keys never come by this way, and nothing of such a file is kept or repeated."""
    with pytest.raises(ImportRefused, match="without keys") as caught:
        imported(settings, tmp_path, [f"{GENERIC},{header}", f"{ROW},0123456789abcdef"])
    assert "0123456789abcdef" not in str(caught.value)
    assert versions(settings, "PB000123") == []


def test_form_is_refused_where_it_names_keys_or_nothing_known() -> None:
    """An operator's form cannot open the way for keys either; names that only sound like one pass."""
    for text in ("[columns]\nserial = 'serial'\n'Vending Key' = 'sgc'", "[columns]\na = 'colour'", "x = 1", "[columns"):
        with pytest.raises(FormRefused):
            parse_form(text, "own.toml")
    with pytest.raises(FormRefused):
        form_named("telepathy")
    assert not any(map(is_secret_header, ("Key Type", "Key Revision No.", "KRN", "Key Expiry No", "KCT count", "DKGA")))


def test_commands_show_set_change_and_confirm_a_record(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way by hand: history, a key change with its tokens, its confirmation, a management token."""
    assert settings.database_url is not None
    monkeypatch.setenv("PREPAID_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("PREPAID_DATA_DIR", str(settings.data_dir))

    def run(*words: str, status: int = 0) -> dict[str, Any]:
        result = CliRunner().invoke(app, ["meters", *words, "--json"], catch_exceptions=status == 1)
        assert (result.exit_code, status) in {(0, 0), (1, 1)}, result.output
        told: dict[str, Any] = json.loads(result.stdout) if status == 0 else {"error": str(result.exception)}
        return told

    by = ("--by", "A. Kaur", "--reason", "moved to our own group")
    # The installation has one key, of its own supply group.
    assert run("keys", "set", "PB000125", *by, "--sgc", "999999")["version"] == 2
    changed = run("keys", "change", "PB000125", *by, "--ti", "42")
    assert (changed["version"], len(changed["tokens"])) == (3, 4)
    shown = run("keys", "show", "PB000125")
    assert [record["state"] for record in shown["records"]] == ["pending", "active"]
    assert shown["key_change_tokens"] == changed["tokens"]
    assert run("keys", "confirm", "PB000125", "--by", "B. Singh")["state"] == "active"
    history = run("keys", "history", "PB000125")["records"]
    assert [(each["version"], each["state"], each["sgc"], each["tariff_index"]) for each in history] == [
        (3, "active", "999999", "42"),
        (2, "past", "999999", "01"),
        (1, "past", SGC, "01"),
    ]
    assert len(run("token", "PB000125", "clear_tamper", *by)["token"]) == 20
    assert "got none" in run("keys", "withdraw", "PB000125", "--by", "B. Singh", status=1)["error"]
    wrong = run("keys", "set", "PB000125", *by, "--krn", "0", status=1)["error"]
    assert wrong.startswith("record_refused: meter PB000125: krn: expected 1 to 9")
