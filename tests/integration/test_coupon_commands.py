"""`prepaid coupons` as the office gives it: whole commands as processes."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.commands import settings_for
from tests.integration.coupon_counter import STATION_SEED
from tests.integration.test_money_commands import Office
from tests.integration.vending_shop import MASTER, open_shop
from vending.coupon_pins import coupon_keys, read_pin
from vending.coupons import read_serial
from vending.offline import LoggedSale, first_digest, public_key, read_licence, sign_sale

pytestmark = pytest.mark.db

WHY = ("--reason", "asked at the counter", "--by", "A. Kaur")


class CouponOffice(Office):
    """An office that knows the installation's master key."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self._settings = settings_for(database_url, folder) | {"PREPAID_MASTER_KEY": MASTER.hex()}


@pytest.fixture
def office(database_url: str, tmp_path: Path) -> CouponOffice:
    """An office of an installation with two vendors."""

    async def open_once() -> None:
        async with open_shop(database_url):
            pass

    asyncio.run(open_once())
    return CouponOffice(database_url, tmp_path)


@pytest.mark.slow
def test_office_prints_licenses_takes_logs_and_counts(office: CouponOffice, tmp_path: Path) -> None:
    """The print file is the owner's alone and written once; a log on a stick is booked; the report agrees."""
    out = tmp_path / "coupons.csv"
    order = ("coupons", "issue", "500", "10", "--reference", "PO-7", "--by", "A. Kaur")
    made = office.ask(*order, "--out", str(out))
    assert (made["coupons"], made["again"]) == (10, False)
    assert out.stat().st_mode & 0o777 == 0o600
    head, *rows = out.read_text().splitlines()
    assert head == "serial,pin,amount"
    serials = [read_serial(row.split(",")[0]) for row in rows]
    assert len({read_pin(row.split(",")[1]) for row in rows}) == 10
    assert office.ask(*order, "--out", str(tmp_path / "more.csv"))["again"] is True
    assert not (tmp_path / "more.csv").exists()
    taken = office.run("coupons", "issue", "500", "1", "--reference", "PO-8", "--by", "X", "--out", str(out), status=2)
    assert "expected a new file" in taken.stderr
    assert [each["state"] for each in office.ask("coupons", "list")["coupons"]] == ["issued"] * 10
    refused = office.run("coupons", "revalidate", serials[0], *WHY, status=2)
    assert "coupon_not_lapsed" in refused.stderr
    assert office.ask("coupons", "void", serials[9], *WHY)["state"] == "void"
    (event,) = office.ask("coupons", "show", serials[9])["events"]
    assert (event["by"], event["reason"]) == ("A. Kaur", "asked at the counter")

    station = Ed25519PrivateKey.from_private_bytes(STATION_SEED).public_key().public_bytes_raw().hex()
    asked = ("--vendor", "Station 17", "--limit", "1000", "--until", "2099-01-01", "--by", "A. Kaur")
    span = ("--coupons", f"{serials[0]}-{serials[3]}", "--key", station)
    assert "31 days at most" in office.run("coupons", "licence", "hill-3", *asked, *span, status=2).stderr
    until = (datetime.now(UTC) + timedelta(days=7)).isoformat()
    asked = ("--vendor", "Station 17", "--limit", "1000", "--until", until, "--by", "A. Kaur")
    signed = json.loads(office.run("coupons", "licence", "hill-3", *asked, *span).stdout)
    licence = read_licence(signed, public_key(coupon_keys(MASTER).licence_seed))
    sale = LoggedSale(
        licence=licence.number,
        seq=1,
        serial=serials[1],
        amount_minor=50_000,
        sold_at_ms=licence.valid_from_ms + 1,
        previous=first_digest(licence),
    )
    log = tmp_path / "log.json"
    log.write_text(json.dumps({"licence": licence.number, "entries": [sign_sale(STATION_SEED, sale).to_json()]}))
    stick = ("coupons", "upload", str(log), "--vendor", "Station 17", "--by", "A. Kaur")
    told = json.loads(office.run(*stick).stdout)
    assert (told["new"], told["findings"]) == (1, [])
    (row,) = office.ask("coupons", "licences")["licences"]
    assert (row["drawn_minor"], row["log_seq"], row["findings"]) == (50_000, 1, 0)
    office.run("coupons", "revoke", "1", *WHY)
    assert office.ask("coupons", "close", "1", *WHY)["given_back_minor"] == 50_000
    report = office.ask("coupons", "report")
    assert (report["total"]["outstanding"]["coupons"], report["ledger"]["agrees"]) == (1, True)
    assert "total" in office.run("coupons", "report").stdout
    assert "hill-3 of Station 17: closed" in office.run("coupons", "licences").stdout
    (check,) = [each for each in office.ask("audit")["checks"] if each["id"] == "coupons"]
    assert (check["checked"], check["broken"]) == (10, 0)


def test_slips_of_a_batch_come_from_its_print_file_for_what_is_redeemable(office: CouponOffice, tmp_path: Path) -> None:
    """One slip a coupon with its PIN, none of a void one, none from a file with other PINs; the file is the owner's."""
    csv, slips = tmp_path / "coupons.csv", tmp_path / "slips.txt"
    office.run("coupons", "issue", "500", "3", "--reference", "PO-9", "--by", "A. Kaur", "--out", str(csv))
    head, *rows = csv.read_text().splitlines()
    office.run("coupons", "void", rows[1].split(",")[0], *WHY)
    told = office.ask("coupons", "print", str(csv), "--out", str(slips), "--lang", "pa")
    assert (told["slips"], told["left_out"]) == (2, 1)
    assert slips.stat().st_mode & 0o777 == 0o600
    printed = slips.read_text()
    for row, is_there in zip(rows, (True, False, True), strict=True):
        serial, pin, _ = row.split(",")
        assert ("  ".join(pin.split()) in printed) is is_there
        assert (read_serial(serial) in printed) is is_there
    assert "ਤਿੰਨ ਮਹੀਨੇ" in printed
    swapped = tmp_path / "swapped.csv"
    pins = [row.split(",")[1] for row in rows]
    swapped.write_text("\n".join([head, f"{rows[0].split(',')[0]},{pins[2]},500.00"]) + "\n")
    refused = office.run("coupons", "print", str(swapped), "--out", str(tmp_path / "no.txt"), status=2).stderr
    assert "expected coupons of this installation with their PINs" in refused
    assert pins[2] not in refused
    assert not (tmp_path / "no.txt").exists()
