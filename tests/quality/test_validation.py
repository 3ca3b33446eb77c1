"""Validations of real tables, in the validation server: Great Expectations is imported once."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from dagster_project.failures import DeclarationError, TransientWarehouseError, WarehouseError
from dagster_project.quality import server
from dagster_project.quality.asked import Request
from dagster_project.quality.outcome import Outcome
from dagster_project.quality.server import ADDRESS, validate_here_or_there, validation_server
from dagster_project.quality.suites import Suite

#: A run's process: it has a validation server for as long as it lives.
RUN = """\
import os, time
from dagster_project.quality.server import ADDRESS, validation_server
with validation_server():
    print(os.environ[ADDRESS], flush=True)
    time.sleep(600)
"""


@dataclass
class Run:
    process: subprocess.Popen[str]
    address: str
    #: What this process and those it started wrote: each import of a module is a line.
    log: Path

    def server(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def imports(self) -> Counter[str]:
        return Counter(re.findall(r"^import time:.*\| +(\S+)$", self.log.read_text(), re.M))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    log = tmp_path_factory.mktemp("server") / "stderr"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MESH_")}
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN],
            env=environment | {"PYTHONPROFILEIMPORTTIME": "1", "PYTHONPATH": str(Path.cwd())},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout
    yield Run(process, process.stdout.readline().strip(), log)
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def there(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Validations of this test are those of the run."""
    monkeypatch.setenv(ADDRESS, run.address)
    return run


@pytest.fixture
def orders(warehouse_url: str) -> str:
    """A warehouse with shop_raw.orders: four rows, one without a number, two of a code."""
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("CREATE SCHEMA shop_raw")
        connection.execute("CREATE TABLE shop_raw.orders (id bigint, code text)")
        connection.execute(
            "INSERT INTO shop_raw.orders VALUES (1, 'a'), (2, 'b'), (3, 'b'), (NULL, 'c')"
        )
    return warehouse_url


def forked(run: Run) -> list[psutil.Process]:
    """The validations that are under way."""
    return [
        child
        for child in run.server().children()
        if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    ]


def suite(name: str = "shop_raw.orders", **expectations: tuple[str, dict[str, Any]]) -> Suite:
    return Suite.model_validate(
        {
            "name": name,
            "expectations": [
                {
                    "type": kind,
                    "kwargs": kwargs,
                    "severity": "critical",
                    "description": "x",
                    "meta": {"check": check},
                }
                for check, (kind, kwargs) in expectations.items()
            ],
        }
    )


ROW_COUNT = ("expect_table_row_count_to_be_between", {"min_value": 1, "max_value": 9})
ID_PRESENT = ("expect_column_values_to_not_be_null", {"column": "id"})
CODE_UNIQUE = ("expect_column_values_to_be_unique", {"column": "code"})
NO_SUCH = ("expect_column_values_to_not_be_null", {"column": "nope"})


def validated(url: str, suite: Suite, *checks: str) -> dict[str, Outcome]:
    chosen = checks or [expectation.check for expectation in suite.expectations]
    validation = validate_here_or_there(url, Request(suite, chosen))
    return {outcome.check: outcome for outcome in validation.outcomes}


def test_a_table_passes_and_fails_with_counts(there: Run, orders: str) -> None:
    checks = suite(rows=ROW_COUNT, id_present=ID_PRESENT, code_unique=CODE_UNIQUE)
    found = validated(orders, checks)
    assert list(found) == ["rows", "id_present", "code_unique"]
    assert (found["rows"].passed, found["rows"].observed) == (True, 4)
    failed = found["id_present"]
    assert (failed.passed, failed.error) == (False, "")
    assert (failed.unexpected_count, failed.unexpected_percent, failed.rows) == (1, 25.0, 4)
    assert (found["code_unique"].passed, found["code_unique"].unexpected_count) == (False, 2)


def test_only_what_is_asked_for_is_validated(there: Run, orders: str) -> None:
    checks = suite(rows=ROW_COUNT, id_present=ID_PRESENT, code_unique=CODE_UNIQUE)
    assert list(validated(orders, checks, "code_unique", "rows")) == ["rows", "code_unique"]


def test_a_missing_column_is_not_bad_data(there: Run, orders: str) -> None:
    found = validated(orders, suite(missing=NO_SUCH, rows=ROW_COUNT, id_present=ID_PRESENT))
    assert not found["missing"].passed
    assert "nope" in found["missing"].error
    assert found["missing"].unexpected_count is None
    # The others are evaluated all the same.
    assert (found["rows"].passed, found["rows"].error) == (True, "")
    assert (found["id_present"].unexpected_count, found["id_present"].error) == (1, "")


def test_a_missing_table_is_named(there: Run, orders: str) -> None:
    with pytest.raises(WarehouseError, match=r"shop_raw\.others could not be validated: it is not"):
        validated(orders, suite("shop_raw.others", rows=ROW_COUNT))


@pytest.mark.parametrize(
    "expectation",
    [
        ("expect_the_unexpected", {"column": "id"}),
        ("expect_column_values_to_not_be_null", {"colum": "id"}),
        ("expect_column_values_to_be_between", {"column": "id", "min_value": []}),
    ],
    ids=["unknown type", "unknown argument", "argument of the wrong type"],
)
def test_an_expectation_that_does_not_exist_is_a_mistake_of_the_suite(
    there: Run, orders: str, expectation: tuple[str, dict[str, Any]]
) -> None:
    with pytest.raises(DeclarationError) as caught:
        validated(orders, suite(odd=expectation, rows=ROW_COUNT))
    assert "expectations/shop/shop_raw.orders.json: the check odd " in str(caught.value)


def test_a_warehouse_that_is_down_is_told_without_its_password(there: Run) -> None:
    with pytest.raises(TransientWarehouseError, match=r"validating shop_raw\.orders") as caught:
        validated("postgresql://mesh:s3cr3t-word@127.0.0.1:1/warehouse", suite(rows=ROW_COUNT))
    assert "s3cr3t-word" not in str(caught.value)


def test_two_validations_run_at_once(there: Run, orders: str) -> None:
    """One waits for a locked table; the other, which came later, does not wait for it."""
    with psycopg.connect(orders) as connection:
        connection.execute("CREATE TABLE shop_raw.free (id bigint)")
    with psycopg.connect(orders) as holder, ThreadPoolExecutor() as pool:
        holder.execute("LOCK TABLE shop_raw.orders")
        waiting = pool.submit(validated, orders, suite(rows=ROW_COUNT))
        free = suite("shop_raw.free", rows=("expect_table_row_count_to_equal", {"value": 0}))
        try:
            assert validated(orders, free)["rows"].passed
            assert not waiting.done()
            assert forked(there), "the one that waits"
        finally:
            holder.rollback()
        assert waiting.result(30)["rows"].passed
    deadline = time.monotonic() + 10
    while forked(there) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert forked(there) == []


def test_a_wrong_key_is_refused_and_the_server_goes_on(
    there: Run, orders: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = there.address.partition(":")[0]
    monkeypatch.setenv(ADDRESS, f"{port}:{'0' * 32}")
    with pytest.raises(WarehouseError, match="could not be validated"):
        validated(orders, suite(rows=ROW_COUNT))
    monkeypatch.setenv(ADDRESS, there.address)
    assert validated(orders, suite(rows=ROW_COUNT))["rows"].passed


def test_who_connects_and_says_nothing_holds_up_nobody(there: Run, orders: str) -> None:
    port = int(there.address.partition(":")[0])
    with socket.create_connection(("127.0.0.1", port)):
        assert validated(orders, suite(rows=ROW_COUNT))["rows"].passed


def test_great_expectations_is_imported_once_for_all_validations(there: Run, orders: str) -> None:
    validated(orders, suite(rows=ROW_COUNT))
    before = there.imports()
    assert before["great_expectations.core"] == 1
    validated(orders, suite(rows=ROW_COUNT, id_present=ID_PRESENT))
    heavy = ("great_expectations", "pandas", "numpy", "psycopg2", "sqlalchemy.")
    assert [name for name in there.imports() - before if name.startswith(heavy)] == []


def test_the_address_is_of_the_runs_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, "1:key")
    monkeypatch.setattr(server.subprocess, "Popen", None)
    # One that is there serves: none is started, and it is not ended.
    with validation_server():
        assert os.environ[ADDRESS] == "1:key"
    assert os.environ[ADDRESS] == "1:key"


def test_a_server_that_is_gone_is_told(orders: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, "1:key")
    with pytest.raises(WarehouseError, match="Run the checks again"):
        validated(orders, suite(rows=ROW_COUNT))


# Last, since it ends the server of the tests above.
def test_the_server_ends_when_its_parent_is_killed(run: Run) -> None:
    child = run.server()
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    # It may still be importing, if no test came before.
    gone = threading.Event()
    threading.Thread(target=lambda: (child.wait(), gone.set()), daemon=True).start()
    assert gone.wait(60)
