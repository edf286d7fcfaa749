"""Keys are nowhere but under their seal: not in logs, the database, answers, arguments, or the image of a process."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import psycopg
import pytest

from db.migrate import migrate
from db.pool import connect
from db.registry import add_vendor
from prepaid.embedded import EmbeddedPostgres
from prepaid.embedded.process import accepts, child_environment, free_ports
from tests.databases import scratch_database
from tests.integration.vending_shop import STS, Home, add_home, key_of
from tests.secret_scan import PART_BYTES, dump_of, forms_of, memory_of, secrets_in
from tests.support import WAIT_S
from vending.edges.keys import Role, add_vending_key, issue_api_key
from vending.key_custody import vending_key_check_value
from vending.sts.keys import derive_decoder_key

pytestmark = pytest.mark.db

SGC = "600001"
# A different key each time would make a find by chance possible, however unlikely; these were seen not to.
CHANCE = random.Random(600_001)
COMPONENTS = {krn: (CHANCE.randbytes(20), CHANCE.randbytes(20)) for krn in (1, 2)}
KEYS = {krn: bytes(a ^ b for a, b in zip(*parts, strict=True)) for krn, parts in COMPONENTS.items()}
MASTER = CHANCE.randbytes(32)
PLANTED = CHANCE.randbytes(20)


@dataclass(slots=True, kw_only=True)
class Utility:
    """A utility that loads keys, sells and changes keys by real processes; `said` is all that they and it said."""

    database_url: str
    folder: Path
    home: Home
    stranger: Home
    api_keys: Mapping[str, str]
    said: bytearray = field(default_factory=bytearray)
    arguments: list[str] = field(default_factory=list)

    @property
    def secrets(self) -> dict[str, bytes]:
        """Everything that must be nowhere: vending keys, components, decoder keys, and the master key."""
        drn = self.home.drn or ""
        found = {"master key": MASTER}
        for krn, key in KEYS.items():
            found[f"vending key {krn}"] = key
            found[f"first component {krn}"], found[f"second component {krn}"] = COMPONENTS[krn]
            found[f"decoder key {krn}"] = derive_decoder_key(key, key_of(drn, sgc=SGC, krn=krn)).key
        return found

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a process of ours."""
        ours = {
            "PREPAID_DATABASE_URL": self.database_url,
            "PREPAID_DATA_DIR": str(self.folder),
            "PREPAID_MASTER_KEY_FILE": str(self.folder / "master"),
            "PREPAID_LOG_LEVEL": "debug",
            # A key that is broken over two lines would not be found.
            "COLUMNS": "1000",
        }
        return child_environment() | ours | more

    def command(self, *arguments: str, typed: str | None = None, status: int = 0, **more: str) -> None:
        """Run a command to its end; what it says is kept, what it was given as arguments too."""
        ended = subprocess.run(
            [sys.executable, "-m", "prepaid", *arguments],
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
            env=self.environment(**more),
            check=False,
        )
        self.arguments += arguments
        self.said += (ended.stdout + ended.stderr).encode()
        assert ended.returncode == status, f"{arguments}: {ended.returncode}\n{ended.stdout}\n{ended.stderr[-3000:]}"

    def load_key(self) -> None:
        """Bring the first vending key in by two people, through standard input; once with a wrong confirmation."""
        first, second = COMPONENTS[1]
        self.command("keys", "begin", SGC, "1", "--by", "Asha Rani", typed=first.hex())
        ending = ("keys", "complete", SGC, "1", "--by", "Balbir Singh", "--confirm")
        self.command(*ending, "000000", typed=second.hex(), status=2)
        self.command(*ending, vending_key_check_value(KEYS[1]), typed=second.hex())

    @contextmanager
    def interface(self, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
        """Run the interface as its own process, free to dump a core if it may."""
        port = free_ports(["api"], taken=set())["api"]
        hard_limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
        with log.open("wb") as written:
            child = subprocess.Popen(
                [sys.executable, "-m", "prepaid", "api"],
                stdout=written,
                stderr=subprocess.STDOUT,
                env=self.environment(PREPAID_API_PORT=str(port), PYTHONUNBUFFERED="1"),
                cwd=self.folder,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard_limit, hard_limit)),
            )
            try:
                deadline = time.monotonic() + WAIT_S
                while not accepts(port):
                    assert child.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                yield child, f"http://127.0.0.1:{port}"
            finally:
                child.kill()
                child.wait()
        self.said += log.read_bytes()


async def _open(database_url: str, folder: Path) -> Utility:
    async with await connect(database_url, application="test") as conn:
        await migrate(conn)
        await add_vending_key(conn, MASTER, sgc=SGC, krn=2, key=KEYS[2])
        home = await add_home(conn, "PB000123", "100200300", sts=replace(STS, sgc=SGC))
        stranger = await add_home(conn, "PB000124", "100200301", sts=replace(STS, sgc="600009"))
        vendor_id = await add_vendor(conn, "Station 17")
        vendor = await issue_api_key(conn, Role.VENDOR, vendor_id=vendor_id)
        engineer = await issue_api_key(conn, Role.ENGINEER)
    api_keys = {"vendor": vendor.header, "engineer": engineer.header}
    (folder / "master").write_text(MASTER.hex())
    (folder / "other_master").write_text("5a" * 32)
    return Utility(database_url=database_url, folder=folder, home=home, stranger=stranger, api_keys=api_keys)


@pytest.fixture
def utility(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Utility]:
    """A utility on a database of its own, with a meter under its key and one under a key that it does not have."""
    with scratch_database(postgres) as name:
        yield asyncio.run(_open(postgres.url_of(name), tmp_path))


def _trade(utility: Utility, url: str) -> str:
    """Sell, and provoke every kind of error; keep all answers. Return a sold token."""
    vendor = {"X-Api-Key": utility.api_keys["vendor"]}
    serial = utility.home.serial
    # The server closes a connection after a fault of its own: each request has one for itself.
    alone = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=url, timeout=30, limits=alone) as http:

        def post(path: str, body: object, headers: Mapping[str, str] = vendor) -> httpx.Response:
            content = body if isinstance(body, bytes) else None
            response = http.post(path, content=content, json=None if content else body, headers=headers)
            utility.said.extend(response.content + str(response.headers).encode())
            return response

        sold = post("/v1/vends", {"message_id": "m-1", "meter": serial, "amount": "500.00"})
        assert sold.status_code == 200, sold.text
        digits = sold.json()["token"]["digits"]
        assert post("/v1/tokens/verify", {"meter": serial, "token": digits}).status_code == 200
        engineer = {"X-Api-Key": utility.api_keys["engineer"]}
        refused = [
            post("/v1/vends", {"message_id": "m-2", "meter": utility.stranger.serial, "amount": "500.00"}),
            post("/v1/vends", {"message_id": "m-3", "meter": serial, "amount": "0.01"}),
            post("/v1/vends", {"message_id": "m-1", "meter": serial, "amount": "501.00"}),
            post("/v1/vends", b'{"message_id": "m-4", "meter": '),
            post("/v1/vends", {"message_id": 7, "meter": [serial], "amount": None}),
            post("/v1/vends", {}, {"X-Api-Key": "0123456789abcdef.wrong-wrong-wrong-wrong"}),
            post("/v1/tokens/verify", {"meter": serial, "token": "1" * 20}, engineer),
            post("/v1/tokens/verify", {"meter": utility.stranger.serial, "token": digits}, engineer),
            post("/v1/nowhere", {}),
        ]
        assert all(400 <= each.status_code < 500 for each in refused), [each.text for each in refused]
        with psycopg.connect(utility.database_url, autocommit=True) as conn:
            conn.execute("alter table tokens rename to tokens_away")
            assert post("/v1/vends", {"message_id": "m-5", "meter": serial, "amount": "20.00"}).status_code == 500
            conn.execute("alter table tokens_away rename to tokens")
        assert post("/v1/vends", {"message_id": "m-5", "meter": serial, "amount": "20.00"}).status_code == 200
        utility.said.extend(http.get("/metrics").content)
    return str(digits)


def _found_in(image: Iterable[bytes], secrets: Mapping[str, bytes]) -> set[str]:
    return {found for piece in image for found in secrets_in(piece, secrets)}


def _server_log(database_url: str) -> bytes:
    """Return what the database server has logged: failed statements, with what was in them."""
    with psycopg.connect(database_url) as conn:
        row = conn.execute("show data_directory").fetchone()
    assert row is not None
    return (Path(row[0]).parent / "postgres.log").read_bytes()


def test_run_leaves_no_key_behind(utility: Utility) -> None:
    """Keys loaded, tokens sold, errors forced, a key changed, a crash: nothing that is left holds a key in any form."""
    utility.load_key()
    utility.command("api", status=2, PREPAID_MASTER_KEY_FILE=str(utility.folder / "other_master"))
    with utility.interface(utility.folder / "api.log") as (child, url):
        token = _trade(utility, url)
        utility.command(
            "meters", "keys", "change", utility.home.serial, "--krn", "2", "--by", "Asha Rani", "--reason", "new key"
        )
        image = memory_of(child.pid)
        child.send_signal(signal.SIGABRT)
        child.wait()
        status = os.waitstatus_to_exitcode(0) if child.returncode is None else child.returncode
    assert status == -signal.SIGABRT
    left = {path.name for path in utility.folder.iterdir()}
    assert left == {"master", "other_master", "api.log"}, "a core or another file was left behind"

    secrets = utility.secrets
    assert b"vend_answered" in utility.said
    assert secrets_in(bytes(utility.said), secrets) == set()
    assert secrets_in("\0".join(utility.arguments).encode(), secrets) == set()
    dump = dump_of(utility.database_url)
    assert token.encode() in dump, "the dump holds what was sold, so it is a whole one"
    assert secrets_in(dump, secrets) == set()
    assert secrets_in(_server_log(utility.database_url), secrets) == set()
    # The soft module's own secret has to be open while it runs; it shows that the image is a whole one.
    assert "master key: raw" in _found_in(image, {"master key": MASTER})
    del secrets["master key"]
    assert _found_in(image, secrets) == set()


def test_process_that_reads_the_master_key_dumps_no_core(utility: Utility) -> None:
    """A crash leaves no image, whatever the limits it was started with, and none of its user may read its memory."""
    with utility.interface(utility.folder / "api.log") as (child, _):
        limits = Path(f"/proc/{child.pid}/limits").read_text()
        core = next(each for each in limits.splitlines() if each.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
        # What is not dumpable belongs to root, whoever runs it.
        assert Path(f"/proc/{child.pid}/mem").stat().st_uid == 0
        pid, _ = child.pid, child.send_signal(signal.SIGABRT)
        _, status = os.waitpid(pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert not os.WCOREDUMP(status)


def test_planted_key_is_found_in_every_form() -> None:
    """A scan that finds nothing must be one that would have found something."""
    for form, text in forms_of(PLANTED):
        if len(text) >= PART_BYTES:
            content = CHANCE.randbytes(1_000) + text + CHANCE.randbytes(1_000)
            assert f"planted: {form}" in secrets_in(content, {"planted": PLANTED}), form


def test_planted_key_is_found_in_base64_of_more_than_the_key() -> None:
    """Whatever stands before and after it."""
    for before in range(9):
        text = base64.b64encode(CHANCE.randbytes(before) + PLANTED + CHANCE.randbytes(7))
        assert secrets_in(text, {"planted": PLANTED})


def test_planted_key_is_found_in_each_place_that_is_scanned(utility: Utility) -> None:
    """In a log, in an answer, in a column of any type, and in the memory of a process that holds it open."""
    planted = {"planted": PLANTED}
    utility.command("accounts", "key", PLANTED.hex(), status=2)
    assert secrets_in("\0".join(utility.arguments).encode(), planted)
    assert secrets_in(bytes(utility.said), planted)
    with psycopg.connect(utility.database_url, autocommit=True) as conn:
        assert not secrets_in(dump_of(utility.database_url), planted)
        for column, value in (("bytea", PLANTED), ("text", PLANTED.hex()), ("numeric", int.from_bytes(PLANTED, "big"))):
            conn.execute(f"create table planted (kept {column})".encode())
            conn.execute("insert into planted values (%s)", (value,))
            assert secrets_in(dump_of(utility.database_url), planted), column
            conn.execute("drop table planted")
    holding = "import sys; key = bytes.fromhex(sys.stdin.readline()); print(len(key), flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(PLANTED.hex() + "\n")
        child.stdin.flush()
        assert child.stdout.readline() == "20\n"
        found = _found_in(memory_of(child.pid), planted)
        child.stdin.close()
    assert "planted: raw" in found


def test_planted_key_is_found_in_the_core_of_a_process_that_forbids_none(tmp_path: Path) -> None:
    """Where the system writes core dumps at all, a process like ours without its precaution leaves its keys in one."""
    hard_limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard_limit == 0 or "/" in Path("/proc/sys/kernel/core_pattern").read_text():
        pytest.skip("this system writes no core dumps into the folder of a process")
    crashing = "import os, sys; key = bytes.fromhex(sys.stdin.readline()); os.abort()"
    subprocess.run(
        [sys.executable, "-c", crashing],
        input=PLANTED.hex(),
        text=True,
        cwd=tmp_path,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard_limit, hard_limit)),
    )
    (core,) = tmp_path.glob("core*")
    assert "planted: raw" in secrets_in(core.read_bytes(), {"planted": PLANTED})
    core.unlink()
