"""`prepaid notify`, `notices` and `contacts` as an operator meets them, and an installation that had rows before."""

from __future__ import annotations

import asyncio
import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from billing.notices import Restored
from db.migrate import migrate, migrations
from db.pool import connect
from prepaid.notice_ports import notice_ports, notify_settings, sends_notices
from prepaid.settings import Settings, SettingsError
from tests.commands import clean_environment, run_command
from tests.integration.vending_shop import open_shop
from tests.notice_support import (
    DOMAIN,
    PHONE,
    SECRET,
    SENDER,
    Gateway,
    MailServer,
    add_contact,
    mail_server,
    sms_gateway,
    states,
    tell,
    until,
)

pytestmark = pytest.mark.db

COMMAND_S_MAX = 60


def environment(database_url: str, folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of a command; settings of the machine's own are left out."""
    ours = {"DATABASE_URL": database_url, "NATS_URL": "nats://127.0.0.1:4222", "DATA_DIR": str(folder), **more}
    return clean_environment() | {f"PREPAID_{name}": value for name, value in ours.items()}


def channels(gateway: Gateway, mail: MailServer) -> dict[str, str]:
    """Return the settings that set both channels up."""
    return {
        "SMS_URL": gateway.url,
        "SMS_SECRET": SECRET.decode(),
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(mail.port),
        "SMTP_SECURITY": "none",
        "SMTP_FROM": SENDER,
        "QUIET_HOURS": "none",
    }


def prepaid(variables: dict[str, str], *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run one command and check its exit status."""
    return run_command(*arguments, environment=variables, status=status)


@contextmanager
def notifier_process(variables: dict[str, str], *, ends_with: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Run `prepaid notify` as an operator does; it has to end cleanly, unless the test killed it."""
    child = subprocess.Popen([sys.executable, "-m", "prepaid", "notify"], env=variables)
    try:
        yield child
        child.send_signal(signal.SIGTERM)
        assert child.wait(COMMAND_S_MAX) == ends_with
    finally:
        child.kill()
        child.wait()


def test_notifier_process_delivers_and_a_killed_one_loses_nothing(database_url: str, tmp_path: Path) -> None:
    """Both channels from settings alone; after `kill -9` another process goes on, every message id once a row."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.conn.execute("delete from notices")
            with sms_gateway() as gateway, mail_server(tmp_path) as mail:
                variables = environment(database_url, tmp_path / "var", **channels(gateway, mail))
                phone = await add_contact(shop.conn, shop.home.account_id)
                await add_contact(shop.conn, shop.home.account_id, "home@b.in")
                ids = [await tell(shop.conn, shop.home.account_id, Restored(balance_minor=n)) for n in range(3)]
                with notifier_process(variables, ends_with=-signal.SIGKILL) as killed:
                    await until(lambda: gateway.requests, "the first has come", within_s=COMMAND_S_MAX)
                    killed.kill()
                await shop.conn.execute("update contacts set verified_at = null where id = %s", (phone,))
                ids += [await tell(shop.conn, shop.home.account_id, Restored(balance_minor=n)) for n in range(3)]
                # What the dead process had claimed comes again when its claim runs out; a test need not wait for it.
                await shop.conn.execute("update notice_deliveries set next_try_at = now() where state = 'sending'")
                with notifier_process(variables):
                    left = "select count(*) from notice_deliveries where state in ('sent', 'skipped')"
                    await until(lambda: shop.one(f"select ({left}) = 9"), "all are delivered", within_s=COMMAND_S_MAX)
                assert set(gateway.keys()) == {f"notice-{notice_id}-sms@{DOMAIN}" for notice_id in ids[:3]}
                assert set(mail.message_ids()) == {f"<notice-{notice_id}-email@{DOMAIN}>" for notice_id in ids[3:]}
                assert await states(shop.conn, ids[5]) == {"sms": ("skipped", "unverified"), "email": ("sent", None)}

    asyncio.run(story())


@pytest.mark.slow
def test_operator_sees_what_is_dead_and_tries_it_again(database_url: str, tmp_path: Path) -> None:
    """Every state of every message is visible; a dead one comes back under its id."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            await shop.conn.execute("delete from notices")
            await add_contact(shop.conn, shop.home.account_id)
            with sms_gateway() as gateway, mail_server(tmp_path) as mail:
                gateway.answers = [(400, {})]
                variables = environment(database_url, tmp_path / "var", **channels(gateway, mail))
                notice_id = await tell(shop.conn, shop.home.account_id, Restored(balance_minor=123_456))
                with notifier_process(variables):
                    settled = "select count(*) from notice_deliveries where state in ('dead', 'skipped')"
                    await until(lambda: shop.one(f"select ({settled}) = 2"), "it is dead", within_s=COMMAND_S_MAX)
                    (dead,) = json_of(variables, "notices", "dead")["dead"]
                    assert (dead["channel"], dead["address"], dead["last_error"]) == ("sms", PHONE, "400")
                    assert f"sms {PHONE}  1 tries: 400" in prepaid(variables, "notices", "dead").stdout
                    listed = json_of(variables, "notices", "list", "100200300", "--language", "hi")["notices"]
                    assert [(each["id"], each["body"]) for each in listed] == [
                        (notice_id, "आपकी बिजली बहाल की जा रही है। आपका बैलेंस ₹1,234.56 है। कोई शुल्क नहीं लगेगा।")
                    ]
                    ways = [(each["channel"], each["state"], each["last_error"]) for each in listed[0]["deliveries"]]
                    assert ways == [("sms", "dead", "400"), ("email", "skipped", "no_contact")]
                    counted = json_of(variables, "notices", "states")
                    assert [(each["channel"], each["state"], each["reason"]) for each in counted["deliveries"]] == [
                        ("email", "skipped", "no_contact"), ("sms", "dead", None),
                    ]  # fmt: skip
                    assert counted["without_way"] == {"count": 0, "since": None}
                    assert "0 notices wait" in prepaid(variables, "notices", "states").stdout
                    assert json_of(variables, "notices", "retry", "--all")["retried"] == [dead["id"]]
                    sent = "select count(*) from notice_deliveries where state = 'sent'"
                    await until(lambda: shop.one(sent), "the retry has come", within_s=COMMAND_S_MAX)
                assert gateway.keys() == [f"notice-{notice_id}-sms@{DOMAIN}"] * 2
                assert "sms +919876543210: sent" in prepaid(variables, "notices", "list", "100200300").stdout
                prepaid(variables, "notices", "retry", status=2)
                prepaid(variables, "notices", "list", "NONE", status=2)

    asyncio.run(story())


@pytest.mark.slow
def test_operator_keeps_contacts_and_lists_whom_nobody_reaches(database_url: str, tmp_path: Path) -> None:
    """Add, list and remove; the report on the screen, as JSON and as a file."""

    async def story() -> None:
        async with open_shop(database_url) as shop:
            variables = environment(database_url, tmp_path / "var")
            added = json_of(variables, "contacts", "add", "100200300", "sms", "98765 43210", "--language", "pa")
            (contact,) = added["contacts"]
            assert (contact["address"], contact["language"], contact["verified_at"]) == (PHONE, "pa", None)
            assert "not verified" in prepaid(variables, "contacts", "list", "100200300").stdout
            assert "bad_address" in prepaid(variables, "contacts", "add", "100200300", "sms", "12", status=2).stderr
            file = tmp_path / "unreachable.csv"
            told = json_of(variables, "contacts", "unreachable", "--csv", str(file))
            assert told == {"accounts": 1, "unreachable": 1, "by_reason": {"unverified": 1}}
            with file.open(newline="", encoding="utf-8") as opened:
                (row,) = csv.DictReader(opened)
            assert (row["account"], row["reason"], row["contacts"]) == ("100200300", "unverified", "1")
            assert prepaid(variables, "contacts", "unreachable").stdout.splitlines()[1].startswith("100200300,")
            await shop.conn.execute("update contacts set verified_at = now()")
            assert json_of(variables, "contacts", "unreachable") == {
                "accounts": 1, "unreachable": 0, "by_reason": {}, "rows": [],
            }  # fmt: skip
            assert json_of(variables, "contacts", "remove", "100200300", str(contact["id"]))["contacts"] == []

    asyncio.run(story())


def json_of(variables: dict[str, str], *arguments: str) -> dict[str, Any]:
    """Run one command with --json and read its one object."""
    return dict(json.loads(prepaid(variables, *arguments, "--json").stdout))


def test_notifier_without_a_channel_does_not_start(database_url: str, tmp_path: Path) -> None:
    """One line says what is missing; `up` starts no notifier then."""
    told = prepaid(environment(database_url, tmp_path), "notify", status=2).stderr
    assert "expected PREPAID_SMTP_HOST or PREPAID_SMS_URL" in told
    assert not sends_notices(Settings())
    with pytest.raises(SettingsError, match="expected PREPAID_SMTP_HOST"):
        notice_ports(Settings())


def test_settings_become_channels_and_rules() -> None:
    """What is set up is planned for; message ids carry the sender's domain."""
    secret = SECRET.decode()
    mail = Settings(smtp_host="mail.b.in", smtp_from="a@b.in", quiet_hours="none", notices_per_day_max=3)
    settings = notify_settings(mail, "postgresql://")
    assert (settings.domain, settings.rules.quiet, settings.rules.per_day_max) == ("b.in", None, 3)
    assert settings.rules.channels == {"email"} == set(notice_ports(mail))
    sms = Settings(sms_url="https://gateway.in/sms", sms_secret=secret)
    settings = notify_settings(sms, "postgresql://")
    assert settings.rules.channels == {"sms"}
    assert settings.domain == "prepaid.invalid"
    assert settings.rules.quiet is not None


def test_rows_of_an_earlier_version_are_upgraded(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contacts get one form of numbers and a language, the proven one of two copies stays, old notices stay unsent."""
    every = migrations()

    async def story() -> None:
        async with await connect(empty_database_url, application="test") as conn:
            with monkeypatch.context() as earlier:
                earlier.setattr("db.migrate.migrations", lambda: [each for each in every if each.name < "0007"])
                await migrate(conn)
            await conn.execute("insert into consumers (name, language) values ('A', 'pa-IN'), ('B', 'fr'), ('C', 'HI')")
            await conn.execute(
                "insert into contacts (consumer_id, kind, address, verified_at) values"
                " (1, 'phone', '+91 98765 43210', null), (1, 'phone', '98765-43210', now()),"
                " (1, 'phone', '09876543210', null), (2, 'phone', '0172 270 0000', now()),"
                " (2, 'phone', '0049 30 901820', null), (3, 'email', 'C@d.in', null)"
            )
            await conn.execute(
                "insert into usage_points (code) values ('U');"
                " insert into accounts (number, consumer_id, usage_point_id, shard, opened_on, through, anchor_at)"
                " values ('1', 1, 1, 0, '2026-01-01', '2026-01-01', '2026-01-01');"
                " insert into notices (account_id, kind, channel, body) values (1, 'low', 'app', 'Low.')"
            )
            assert "0007_notices.sql" in await migrate(conn)
            cursor = await conn.execute(
                "select consumer_id, channel, address, language, verified_at is not null from contacts order by 1, 3"
            )
            assert await cursor.fetchall() == [
                (1, "sms", "+919876543210", "pa", True),
                (2, "sms", "+4930901820", "en", False),
                (2, "sms", "01722700000", "en", True),
                (3, "email", "C@d.in", "hi", False),
            ]
            cursor = await conn.execute("select body, facts, planned_at is not null from notices")
            assert await cursor.fetchall() == [("Low.", {}, True)]

    asyncio.run(story())
