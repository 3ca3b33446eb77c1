"""`mesh deploy migrate`: two databases as this release needs them, however often it is asked."""

from __future__ import annotations

import os
import signal
import time

import pytest

from dagster_project.deployment.migration import NOTHING, lacking, revisions
from tests.deployment.conftest import Staging
from tests.e2e.platform import Platform

TABLES = ["mesh.tables", "mesh.verdicts", "mesh.profiles"]


def are_there(staging: Staging) -> bool:
    mine = [
        staging.run(f"SELECT to_regclass('{name}') IS NOT NULL") == [(True,)] for name in TABLES
    ]
    theirs = [
        staging.run(f"SELECT to_regclass('{name}') IS NOT NULL", staging.dagster) == [(True,)]
        for name in ("mesh.catalog_destinations", "event_logs", "runs", "instigators")
    ]
    return all([*mine, *theirs])


def is_current(staging: Staging) -> bool:
    return all(now == needed for now, needed in revisions(staging.dagster).values())


def test_it_makes_what_is_not_there_and_finds_nothing_to_do_the_second_time(
    staging: Staging,
) -> None:
    first = staging.mesh("deploy", "migrate")
    assert first.code == 0, first.err
    assert are_there(staging)
    assert is_current(staging)
    warehouse, dagster = first.out.splitlines()
    assert "ledger: 1 step taken, profiles: 1 step taken" in warehouse
    assert "Dagster's tables: made, catalog books: 1 step taken" in dagster
    second = staging.mesh("deploy", "migrate")
    assert (second.code, second.err, first.err) == (0, "", "")
    assert second.out.count(NOTHING) == 4
    assert "taken" not in second.out


def test_two_at_once_do_it_once(staging: Staging) -> None:
    platform = Platform(staging.folder / "home", staging.environment)
    both = [platform.start("deploy", "migrate") for _ in range(2)]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    out = "".join(out for out, _ in said)
    assert out.count("1 step taken") == 3
    assert out.count("Dagster's tables: made") == 1
    assert out.count(NOTHING) == 4
    assert are_there(staging)
    assert is_current(staging)


def test_who_is_killed_in_the_middle_has_the_next_one_do_the_rest(staging: Staging) -> None:
    platform = Platform(staging.folder / "home", staging.environment)
    process = platform.start("deploy", "migrate")
    deadline = time.monotonic() + 120
    # Once the warehouse is done, and while Dagster's tables are being made.
    begun = (
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
        "WHERE locktype = 'advisory' AND granted AND datname = current_database()"
    )
    while staging.run(begun, staging.dagster) == [(0,)]:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = staging.mesh("deploy", "migrate")
    assert again.code == 0, again.err
    assert lacking(staging.dagster) == []
    assert f"ledger: {NOTHING}" in again.out
    assert are_there(staging)
    assert is_current(staging)


@pytest.mark.parametrize("stamped", [True, False])
def test_tables_of_dagster_that_are_half_made_are_made_whole(
    staging: Staging, stamped: bool
) -> None:
    """As it leaves them itself when it is killed: it makes them one by one."""
    assert staging.mesh("deploy", "migrate").code == 0
    all_of_them = tables_of_dagster(staging)
    for name in ("bulk_actions", "event_logs", "asset_keys", "job_ticks"):
        staging.run(f"DROP TABLE {name} CASCADE", staging.dagster)
    if not stamped:
        staging.run("DROP TABLE alembic_version", staging.dagster)
    assert tables_of_dagster(staging) != all_of_them
    done = staging.mesh("deploy", "migrate")
    assert done.code == 0, done.err
    assert "Dagster's tables: made" in done.out
    assert tables_of_dagster(staging) == all_of_them
    assert is_current(staging)
    assert f"Dagster's tables: {NOTHING}" in staging.mesh("deploy", "migrate").out


def tables_of_dagster(staging: Staging) -> list[tuple[str]]:
    return staging.run(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1", staging.dagster
    )


def test_dagsters_tables_of_an_older_release_are_migrated(staging: Staging) -> None:
    assert staging.mesh("deploy", "migrate").code == 0
    # As the release before the last one has left them.
    staging.run("UPDATE alembic_version SET version_num = 'f495c27d5019'", staging.dagster)
    done = staging.mesh("deploy", "migrate")
    assert done.code == 0, done.err
    assert "Dagster's tables: migrated" in done.out
    assert is_current(staging)


@pytest.mark.parametrize("whose", ["ours", "dagster's"])
def test_what_a_newer_release_has_migrated_is_left_as_it_is(staging: Staging, whose: str) -> None:
    assert staging.mesh("deploy", "migrate").code == 0
    if whose == "ours":
        staging.run("INSERT INTO mesh.migrations VALUES ('ledger', 2)")
        said = "the warehouse: 2 steps of the ledger were taken, and this release knows 1"
    else:
        staging.run("UPDATE alembic_version SET version_num = 'abcabcabcabc'", staging.dagster)
        said = "was migrated by a newer Dagster, to abcabcabcabc"
    done = staging.mesh("deploy", "migrate")
    assert done.code == 1
    assert said in done.err
    assert "Traceback" not in done.err


def test_without_their_addresses_no_other_database_is_migrated(staging: Staging) -> None:
    del staging.environment["MESH_WAREHOUSE_URL"]
    done = staging.mesh("deploy", "migrate")
    assert done.code == 2
    assert "MESH_WAREHOUSE_URL not set, which staging needs" in done.err
    assert not (staging.folder / "home" / "postgres").exists(), "an embedded one was started"


def test_a_laptop_can_do_it_too(fresh: Platform) -> None:
    done = fresh.mesh("deploy", "migrate")
    assert done.code == 0, done.err
    assert done.out.count("1 step taken") == 3
