"""CSV imports on a real PostgreSQL: whole files or none, every error with its place, and a rerun that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest

import prepaid.imports
from db.registry import open_account
from prepaid.imports import ImportRefused, run_import_accounts, run_import_meters
from prepaid.settings import Settings

pytestmark = pytest.mark.db

METER_COLUMNS = "serial,rated_w,register_end_wh"
STS_COLUMNS = f"{METER_COLUMNS},drn,ea,dkga,sgc,key_type,krn,tariff_index,ken,base_year"
STS_METER = "M1,15000,1000000000,00000000018,07,02,123456,2,1,01,255,1993"
ACCOUNT_COLUMNS = "number,consumer,usage_point,meter_serial,opened_at,register_wh,tariff_id,sanctioned_load_w"
OPENED = "2026-04-01T00:00:00+05:30"
TARIFF_ID = "punjab-ds-2026-27"


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of an installation on the test's own database."""
    return Settings(database_url=database_url, data_dir=tmp_path / "var")


def write(tmp_path: Path, lines: Sequence[str], *, name: str = "file.csv", encoding: str = "utf-8") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def account(number: int, *, serial: str | None = None, rest: str = "") -> str:
    meter = serial or f"M{number}"
    return f"A{number},Name {number},UP{number},{meter},{OPENED},0,{TARIFF_ID},2000{rest}"


def meters(count: int) -> list[str]:
    return [METER_COLUMNS, *(f"M{number},15000,1000000000" for number in range(1, count + 1))]


def fetch(settings: Settings, query: str) -> list[tuple[object, ...]]:
    assert settings.database_url is not None
    with psycopg.connect(settings.database_url) as conn:
        return conn.execute(query.encode()).fetchall()


def refused(settings: Settings, file: Path, *, what: str = "meters") -> str:
    """Import a file that must be refused; return the message."""
    run = run_import_meters if what == "meters" else run_import_accounts
    with pytest.raises(ImportRefused) as caught:
        run(settings, file)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_meters_are_registered_with_all_columns_and_a_byte_order_mark(settings: Settings, tmp_path: Path) -> None:
    """Columns come in any order, spaces around fields do not count, optional ones have defaults."""
    lines = [
        "register_end_wh, make ,serial,rated_w,custody,drn,ea,dkga,sgc,key_type,krn,tariff_index,ken,base_year,model,"
        "can_limit",
        '1000000000,"Acme, Ltd", M1 ,15000,consumer,00000000018,7,2,123456,2,1,01,255,1993,A1,yes',
        "",
        "1000000,,M2,6000,,,,,,,,,,,,",
        "1000000,,M3,6000,,,,,,,,,,,,no",
    ]
    file = write(tmp_path, lines, encoding="utf-8-sig")
    assert run_import_meters(settings, file) == (3, 0)
    stored = fetch(
        settings,
        "select m.serial, make, model, rated_w, register_end_wh, custody, can_limit, drn, ea, dkga, sgc, key_type, krn,"
        " tariff_index, ken, base_year from meters m left join meter_records r on r.meter_id = m.id order by m.serial",
    )
    assert stored == [
        ("M1", "Acme, Ltd", "A1", 15000, 10**9, "consumer", True, "00000000018", 7, 2, "123456", 2, 1, "01", 255, 1993),
        ("M2", "", "", 6000, 1_000_000, "licensee", False, *[None] * 9),
        ("M3", "", "", 6000, 1_000_000, "licensee", False, *[None] * 9),
    ]
    assert fetch(settings, "select count(*) from meter_state") == [(3,)]


def test_import_run_again_adds_only_what_is_missing(settings: Settings, tmp_path: Path) -> None:
    """Serials and numbers that are there are left as they are, also when the file now says otherwise."""
    assert run_import_meters(settings, write(tmp_path, meters(2))) == (2, 0)
    more = [*meters(3)[:1], "M1,1,1", *meters(3)[2:]]
    assert run_import_meters(settings, write(tmp_path, more)) == (1, 2)
    assert fetch(settings, "select rated_w from meters where serial = 'M1'") == [(15000,)]
    accounts = [ACCOUNT_COLUMNS, account(1), account(2)]
    assert run_import_accounts(settings, write(tmp_path, accounts)) == (2, 0)
    assert run_import_accounts(settings, write(tmp_path, [*accounts, account(3)])) == (1, 2)


def test_account_is_opened_with_everything_it_names(settings: Settings, tmp_path: Path) -> None:
    """Consumer, contacts, place, terms and money are those of the line."""
    run_import_meters(settings, write(tmp_path, meters(1)))
    optional = (
        "language,phone,email,area,feeder,mode,postpaid_approval,category,emergency_credit,threshold,opening_credit"
    )
    values = ",pa,+91 98765 43210,a@b.in,north,F-7,postpaid,CE/12,NRS,100,200.50,500"
    file = write(tmp_path, [f"{ACCOUNT_COLUMNS},{optional}", account(1, rest=values)])
    assert run_import_accounts(settings, file) == (1, 0)
    stored = fetch(
        settings,
        "select a.number, c.name, c.language, u.code, u.area, u.feeder, a.mode, a.postpaid_approval, x.category,"
        " a.emergency_credit_minor, a.threshold_minor, a.posted_minor, a.opened_on::text, x.load_w"
        " from accounts a join assignments x on x.account_id = a.id join consumers c on c.id = a.consumer_id"
        " join usage_points u on u.id = a.usage_point_id",
    )
    terms = ("postpaid", "CE/12", "NRS", 10_000, 20_050, 50_000, "2026-04-01", 2000)
    assert stored == [("A1", "Name 1", "pa", "UP1", "north", "F-7", *terms)]
    contacts = fetch(settings, "select channel, address, language from contacts order by channel")
    assert contacts == [("email", "a@b.in", "pa"), ("sms", "+919876543210", "pa")]
    journal = fetch(
        settings, "select kind, sum(abs(amount_minor)) from journals j join legs on journal_id = id group by 1"
    )
    assert journal == [("opening", 100_000)]
    assert fetch(settings, "select from_at = '2026-03-31 18:30Z' from installations") == [(True,)]


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("serial", "M 1", "expected 1 to 32 of A-Z a-z 0-9 _ -, got 'M 1'"),
        ("serial", "", "expected a value, got none"),
        ("rated_w", "0", "expected a whole number from 1 to 2147483647, got '0'"),
        ("rated_w", "15e3", "expected a whole number from 1 to 2147483647, got '15e3'"),
        ("rated_w", "-5", "expected a whole number from 1 to 2147483647, got '-5'"),
        ("rated_w", "٣", "expected a whole number from 1 to 2147483647, got '٣'"),
        ("register_end_wh", "9" * 5000, "expected a whole number from 1 to 9223372036854775807, got '99999"),
        ("drn", "00000000019", "expected check digit 8, got 9), got '00000000019'"),
        ("drn", "123", "expected 11 or 13 digits, got 3"),
        ("ea", "09", "expected one of 07, 11, got '09'"),
        ("dkga", "5", "expected one of 01, 02, 03, 04, got '5'"),
        ("sgc", "12345", "expected 6 digits, got '12345'"),
        ("key_type", "4", "expected a whole number from 0 to 3, got '4'"),
        ("krn", "0", "expected a whole number from 1 to 9, got '0'"),
        ("tariff_index", "1", "expected 2 digits, got '1'"),
        ("ken", "256", "expected a whole number from 0 to 255, got '256'"),
        ("base_year", "2020", "expected one of 1993, 2014, 2035, got '2020'"),
        ("base_year", "", "expected a value, got none"),
    ],
)
def test_wrong_meter_field_is_named_by_its_place(
    settings: Settings, tmp_path: Path, column: str, value: str, expected: str
) -> None:
    """The refusal says file, line, column, expected and got, and the good line before is not imported either."""
    fields = dict(zip(STS_COLUMNS.split(","), STS_METER.split(","), strict=True))
    bad = ",".join((fields | {column: value}).values())
    good = "M0,15000,1000000000,,,,,,,,,"
    message = refused(settings, write(tmp_path, [STS_COLUMNS, good, bad], name="m.csv"))
    assert message.startswith(f"m.csv line 3 column {column}: "), message
    assert expected in message
    assert message.endswith("nothing was imported")
    run_import_meters(settings, write(tmp_path, [METER_COLUMNS]))
    assert fetch(settings, "select count(*) from meters") == [(0,)]


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("number", "A/1", "expected 1 to 32 of A-Z a-z 0-9 _ -"),
        ("consumer", "a\u0000b", "expected at most 200 printable characters"),
        ("consumer", "x" * 201, "expected at most 200 printable characters"),
        ("opened_at", "2026-04-01T00:00", "expected an instant with its zone"),
        ("opened_at", "1 April", "expected an instant such as 2026-04-01T00:00:00+05:30, got '1 April'"),
        ("opened_at", "0026-04-01T00:00Z", "expected an instant of 2001 to 2099"),
        ("register_wh", "1.5", "expected a whole number from 0"),
        ("opening_credit", "500,00", "expected 13 fields"),
        ("opening_credit", "-5", "expected an amount such as 500 or 500.00, got '-5'"),
        ("threshold", "1.5", "expected an amount such as 500 or 500.00, got '1.5'"),
        ("area_type", "Urban", "expected a type of area such as urban or rural, a-z and _, got 'Urban'"),
        ("mode", "credit", "expected one of prepaid, postpaid, got 'credit'"),
        ("mode", "postpaid", "expected who approved that the account is postpaid, got none"),
        ("phone", "call me", "expected a telephone number"),
    ],
)
def test_wrong_account_field_is_named_by_its_place(
    settings: Settings, tmp_path: Path, column: str, value: str, expected: str
) -> None:
    """Amounts, instants and words are checked before anything is opened."""
    columns = f"{ACCOUNT_COLUMNS},mode,phone,threshold,opening_credit,area_type"
    fields = dict(zip(columns.split(","), account(1, rest=",,,,,").split(","), strict=True))
    bad = ",".join((fields | {column: value}).values())
    message = refused(settings, write(tmp_path, [columns, bad], name="a.csv"), what="accounts")
    assert message.startswith("a.csv line 2 column "), message
    assert expected in message


def test_what_is_stored_is_checked_before_anything_is_written(settings: Settings, tmp_path: Path) -> None:
    """Unknown and occupied meters, taken usage points, unknown tariffs and impossible registers refuse the file."""
    run_import_meters(settings, write(tmp_path, [*meters(5), "SMALL,15000,1000"]))
    run_import_accounts(settings, write(tmp_path, [ACCOUNT_COLUMNS, account(1)]))
    lines = [
        ACCOUNT_COLUMNS,
        account(2),
        account(3, serial="NONE"),
        account(4, serial="M1"),
        account(5).replace("UP5", "UP1"),
        account(6, serial="M4").replace(TARIFF_ID, "no-such"),
        account(7, serial="SMALL").replace(",0,", ",1000,"),
    ]
    message = refused(settings, write(tmp_path, lines, name="a.csv"), what="accounts")
    assert message.split("; ") == [
        "a.csv line 3 column meter_serial: expected a registered meter, got 'NONE'",
        "a.csv line 4 column meter_serial: expected a meter that stands nowhere, got 'M1'",
        "a.csv line 5 column usage_point: expected one that has no account, got 'UP1'",
        "a.csv line 6 column tariff_id: expected a tariff that was added (prepaid tariffs list), got 'no-such'",
        "a.csv line 7 column register_wh: expected less than 1000, where the register ends, got 1000",
        "nothing was imported",
    ]
    assert fetch(settings, "select number from accounts") == [("A1",)]


def test_drn_of_another_meter_is_refused(settings: Settings, tmp_path: Path) -> None:
    """A DRN names one meter, also across files."""
    run_import_meters(settings, write(tmp_path, [STS_COLUMNS, STS_METER]))
    other = STS_METER.replace("M1", "M2")
    message = refused(settings, write(tmp_path, [STS_COLUMNS, other]))
    assert "line 2 column drn: expected a DRN that no other meter has, got 00000000018 of meter M1" in message
    message = refused(settings, write(tmp_path, [STS_COLUMNS, STS_METER, other]))
    assert "line 3 column drn: expected each value once, got '00000000018' again after line 2" in message
    assert run_import_meters(settings, write(tmp_path, [STS_COLUMNS, STS_METER])) == (0, 1)


def test_value_repeated_in_a_file_is_refused(settings: Settings, tmp_path: Path) -> None:
    """Two lines for one serial, number, place or meter are a mistake, never the last one wins."""
    message = refused(settings, write(tmp_path, [*meters(2), "M1,15000,1000000000"]))
    assert "file.csv line 4 column serial: expected each value once, got 'M1' again after line 2" in message
    run_import_meters(settings, write(tmp_path, meters(2)))
    twice = [ACCOUNT_COLUMNS, account(1), account(2, serial="M1"), account(1, serial="M2")]
    message = refused(settings, write(tmp_path, twice), what="accounts")
    assert "line 4 column number: expected each value once, got 'A1' again after line 2" in message
    assert "line 4 column usage_point: expected each value once, got 'UP1' again after line 2" in message
    assert "line 3 column meter_serial: expected each value once, got 'M1' again after line 2" in message


def test_many_errors_are_counted_and_the_first_shown(settings: Settings, tmp_path: Path) -> None:
    """A refusal stays readable: five places and how many more there are."""
    lines = [METER_COLUMNS, *(f"M{number},x,1" for number in range(9))]
    message = refused(settings, write(tmp_path, lines))
    assert message.count("column rated_w") == 5
    assert message.endswith("; and 4 more errors; nothing was imported")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "line 1 column serial: expected this column in the header, got none"),
        (b"serial,rated_w\nM1,5\n", "line 1 column register_end_wh: expected this column in the header, got none"),
        (b"serial,rated_w,register_end_wh,colour\n", "line 1 column 'colour': expected one of serial, rated_w"),
        (b"serial,rated_w,serial,register_end_wh\n", "line 1 column 'serial': expected each column once, got 2"),
        (b"serial,rated_w,register_end_wh\nM1,5\n", "line 2 column rated_w: expected 3 fields, got 2"),
        (b"serial,rated_w,register_end_wh\nM1,5,6,7\n", "line 2 column register_end_wh: expected 3 fields, got 4"),
        (b'serial,rated_w,register_end_wh\nM1,"5,6\n', "line 2 column any: expected CSV in UTF-8, got unexpected end"),
        (b"serial,rated_w,register_end_wh\nM\xff,5,6\n", "expected CSV in UTF-8, got 'utf-8' codec can't decode"),
        (b'serial,rated_w,register_end_wh\n"M\n1",5,6\nM2,x,6\n', "line 2 column serial: expected 1 to 32 of"),
        (b'serial,rated_w,register_end_wh\n"M\n1",5,6\nM2,x,6\n', "line 4 column rated_w: expected a whole number"),
    ],
)
def test_file_that_is_not_of_the_form_is_refused(
    settings: Settings, tmp_path: Path, content: bytes, expected: str
) -> None:
    """Header, field counts, quotes and encoding are checked; lines count as an editor counts them."""
    file = tmp_path / "file.csv"
    file.write_bytes(content)
    assert expected in refused(settings, file)


def test_import_stopped_between_transactions_goes_on(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody else takes while a file is written stops it with its line; a rerun says what stands in the way."""
    monkeypatch.setattr(prepaid.imports, "LINES_PER_TRANSACTION", 2)
    run_import_meters(settings, write(tmp_path, meters(5)))
    accounts = write(tmp_path, [ACCOUNT_COLUMNS, *(account(number) for number in range(1, 6))])
    opened = 0

    async def open_while_another_takes_a_place(conn, line, **more):  # type: ignore[no-untyped-def]  # As the real one.
        nonlocal opened
        opened += 1
        if opened == 4:
            assert settings.database_url is not None
            with psycopg.connect(settings.database_url) as other:
                other.execute("insert into usage_points (code) values ('UP4')")
        return await open_account(conn, line, **more)

    monkeypatch.setattr(prepaid.imports, "open_account", open_while_another_takes_a_place)
    message = refused(settings, accounts, what="accounts")
    assert "file.csv line 5: expected what was free to stay so, got a second usage_points_code_key" in message
    assert "2 lines before are imported, run the import again" in message
    assert fetch(settings, "select number from accounts order by number") == [("A1",), ("A2",)]
    assert "line 5 column usage_point" in refused(settings, accounts, what="accounts")
    assert settings.database_url is not None
    with psycopg.connect(settings.database_url) as other:
        other.execute("delete from usage_points where code = 'UP4'")
    assert run_import_accounts(settings, accounts) == (3, 2)
