"""A warehouse that goes away, is full or takes nobody more, in the middle of a load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

from dagster_project.failures import TransientWarehouseError
from dagster_project.identity import Table
from dagster_project.warehouse import loader
from dagster_project.warehouse.arrow import ArrowSession
from dagster_project.warehouse.cluster import SUPERUSER
from dagster_project.warehouse.embedded import MESH, WAREHOUSE, EmbeddedPostgres, Endpoint
from dagster_project.warehouse.ledger import Load, PartitionState, TableState
from dagster_project.warehouse.loader import load
from dagster_project.warehouse.staging import Piece, Plan
from dagster_project.warehouse.target import Column, Mode, Target

SCHEMA = pa.schema([("id", pa.int64()), ("note", pa.string())])
TARGET = Target(
    Table("shop_raw", "orders"),
    (Column("id", "bigint"), Column("note", "text")),
    Mode.APPEND_DEDUP,
    primary_key=("id",),
)
Batches = Callable[[], Iterator[pa.RecordBatch]]


def batch(first: int, rows: int) -> pa.RecordBatch:
    keys = range(first, first + rows)
    return pa.RecordBatch.from_pydict({"id": keys, "note": ["x" * 100] * rows}, schema=SCHEMA)


def bring(url: str, batches: Batches, position: int = 1, **options: Callable[[str], None]) -> Load:
    def plan(state: TableState, partitions: dict[str, PartitionState]) -> Plan:
        pieces = [Piece("an/object", batches)] if state.position < position else []
        return Plan(SCHEMA, pieces, position, content=str(position))

    return load(url, TARGET, plan, run_id="run", **options)


def held(url: str) -> tuple[int, int]:
    """How many rows and how many different keys the table has, and that the ledger agrees."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*), count(DISTINCT id), (SELECT rows FROM mesh.tables) "
            "FROM shop_raw.orders"
        ).fetchone()
    assert row
    assert row[0] == row[2]
    return row[0], row[1]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that follow each other more closely."""
    monkeypatch.setattr(loader, "PAUSES", (0.1, 0.3, 1.0, 2.0, 4.0))


def superuser(postgres_home: Path, postgres: Endpoint) -> psycopg.Connection:
    server = EmbeddedPostgres(postgres_home)
    endpoint = Endpoint(postgres.host, postgres.port, server._passwords())
    return psycopg.connect(endpoint.url(SUPERUSER, WAREHOUSE), autocommit=True)


def test_a_load_whose_session_is_ended_begins_again(
    warehouse_url: str, postgres_home: Path, postgres: Endpoint
) -> None:
    attempts = 0
    said: list[str] = []

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal attempts
        attempts += 1
        yield batch(0, 5_000)
        if attempts < 3:
            with superuser(postgres_home, postgres) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s",
                    (MESH,),
                )
        for number in range(1, 40):
            yield batch(number * 5_000, 5_000)

    done = bring(warehouse_url, batches, say=said.append)
    assert attempts == 3
    assert (done.received, done.new, done.rows) == (200_000, 200_000, 200_000)
    assert held(warehouse_url) == (200_000, 200_000)
    assert len(said) == 2
    assert "does not answer or is out of connections" in said[0]
    assert "Trying again in 0 s" in said[0]


def test_a_warehouse_that_stays_away_is_given_up(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "PAUSES", (0.01, 0.01))
    said: list[str] = []
    with pytest.raises(TransientWarehouseError) as caught:
        bring("postgresql://mesh:s3cr3t-word@127.0.0.1:1/warehouse", iter, say=said.append)
    text = f"{caught.value} {caught.value.__cause__!r} {said}"
    assert "loading shop_raw.orders" in text
    assert "127.0.0.1:1/warehouse" in text
    assert "s3cr3t-word" not in text
    assert len(said) == 2


def test_a_commit_whose_answer_is_lost_is_not_done_twice(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = ArrowSession.commit
    lost = []

    def forgetful(session: ArrowSession) -> None:
        schemas_only = not session.run("SELECT 1 WHERE to_regclass('shop_raw.orders') IS NOT NULL")
        commit(session)
        if not schemas_only and not lost:
            lost.append(True)
            raise TransientWarehouseError("the answer to the commit was lost")

    monkeypatch.setattr(ArrowSession, "commit", forgetful)
    done = bring(warehouse_url, lambda: iter([batch(0, 10)]))
    assert lost
    assert (done.received, done.new, done.rows, done.objects) == (10, 10, 10, 1)
    with psycopg.connect(warehouse_url) as connection:
        assert connection.execute("SELECT count(*) FROM mesh.loads").fetchone() == (1,)


def test_a_server_that_restarts_in_the_middle_is_waited_for(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "home")
    restarted: list[threading.Thread] = []
    with server.lease() as endpoint:
        url = endpoint.url(MESH, WAREHOUSE)

        def restart() -> None:
            port = server._cluster.postmaster().port  # type: ignore[union-attr]
            server._cluster.stop()
            server._cluster.start(port)

        def batches() -> Iterator[pa.RecordBatch]:
            yield batch(0, 5_000)
            if not restarted:
                restarted.append(threading.Thread(target=restart))
                restarted[0].start()
                restarted[0].join(0.2)
            for number in range(1, 20):
                yield batch(number * 5_000, 5_000)

        done = bring(url, batches)
        restarted[0].join()
        assert (done.new, done.rows) == (100_000, 100_000)
        assert held(url) == (100_000, 100_000)


def test_a_warehouse_out_of_connections_is_waited_for(
    warehouse_url: str, postgres_home: Path, postgres: Endpoint
) -> None:
    said: list[str] = []

    def free(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            with superuser(postgres_home, postgres) as connection:
                connection.execute(f"ALTER ROLE {MESH} CONNECTION LIMIT -1")

    with superuser(postgres_home, postgres) as connection:
        connection.execute(f"ALTER ROLE {MESH} CONNECTION LIMIT 0")
    try:
        done = bring(warehouse_url, lambda: iter([batch(0, 10)]), say=free)
    finally:
        free("")
    assert done.new == 10
    assert "too many connections" in said[0]


FULL = """
import os
import sys
from pathlib import Path
from tests.warehouse.test_faults import batch, bring, held
from dagster_project.failures import WarehouseError
from dagster_project.warehouse.embedded import MESH, WAREHOUSE, EmbeddedPostgres

disk = Path(sys.argv[1])
with EmbeddedPostgres(disk / "home").lease() as endpoint:
    url = endpoint.url(MESH, WAREHOUSE)
    bring(url, lambda: iter([batch(0, 100)]), 1)
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(b"x" * 100_000)
        except OSError:
            pass
    os.truncate(ballast, ballast.stat().st_size - 5_000_000)
    try:
        bring(url, lambda: (batch(n * 10_000, 10_000) for n in range(10)), 2)
        print("it went in")
    except WarehouseError as error:
        print(type(error).__name__, error)
    print(*held(url))
    ballast.unlink()
    print(bring(url, lambda: (batch(n * 10_000, 10_000) for n in range(10)), 2).new)
    print(*held(url))
"""


def test_a_full_disk_stops_the_load_and_nothing_else(tmp_path: Path) -> None:
    """On a file system of its own, which needs Linux and a kernel that lets us mount one."""
    unshare = shutil.which("unshare")
    alone = [unshare, "--mount"] if os.geteuid() == 0 else [unshare, "-U", "-r", "--mount"]
    mount = f'mount -t tmpfs -o size=160m tmpfs "{tmp_path}"'
    if not unshare or subprocess.run([*alone, "sh", "-c", mount], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run(
        [*alone, "sh", "-c", f'{mount} && exec "$0" -c "$1" "{tmp_path}"', sys.executable, FULL],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout.splitlines()
    assert said[0].startswith("WarehouseError loading shop_raw.orders: "), done.stdout + done.stderr
    assert "has no disk space left. Free some and run again" in said[0]
    assert said[-3:] == ["100 100", "99900", "100000 100000"]
