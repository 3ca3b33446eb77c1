"""One platform for the tests of a process: what one leaves, the next finds."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psycopg
import pytest

from dagster_project.lake.store import Lake
from dagster_project.reference.data import data_folder
from tests.e2e.platform import Ended, Platform


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, Ended]]:
    """A home in which `mesh run` ran once, its PostgreSQL up.

    Of tests that run side by side the first process makes it and leaves a copy to the other.
    """
    mine = tmp_path_factory.mktemp("e2e")
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    shared = mine if alone else tmp_path_factory.getbasetemp().parent
    platform, left = Platform(mine / "home"), shared / "e2e"
    with (shared / "e2e.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if found := left.exists():
            shutil.move(left / "home", platform.home)
            ended = Ended(**json.loads((left / "first_run.json").read_text()))
            shutil.rmtree(left)
        else:
            ended = platform.run()
            if not alone:
                assert platform.mesh("down").code == 0
                shutil.copytree(platform.home, shared / "e2e.part" / "home", symlinks=True)
                (shared / "e2e.part" / "first_run.json").write_text(json.dumps(asdict(ended)))
                (shared / "e2e.part").rename(left)
    assert platform.mesh("up").code == 0
    if found:
        _know(platform)
    yield platform, ended
    ended = platform.mesh("clean", "-y")
    if not found:
        shutil.rmtree(left, ignore_errors=True)
    assert ended.code == 0, ended.err
    assert not platform.home.exists()
    platform.wait_until_quiet(10)


def _know(platform: Platform) -> None:
    """Have the warehouse know the copies of the files that it has loaded.

    A file that lies elsewhere on the disk is another one: all days would be looked at again.
    """
    landed = Lake((platform.home / "lake").as_uri()).list("landing")
    versions = [(each.version, each.key) for each in landed]
    statement = "UPDATE mesh.partitions SET object_version = %s WHERE object = %s"
    with psycopg.connect(platform.url()) as connection, connection.cursor() as cursor:
        cursor.executemany(statement, versions)
        assert cursor.rowcount == len(versions) > 0


@pytest.fixture(scope="session")
def platform(begun: tuple[Platform, Ended]) -> Platform:
    """A home with a PostgreSQL that stays up."""
    return begun[0]


@pytest.fixture(scope="session")
def first_run(begun: tuple[Platform, Ended]) -> Ended:
    """The first `mesh run` there: connectors' environments, a year of flights, every mart."""
    return begun[1]


@pytest.fixture(scope="session")
def data(platform: Platform, first_run: Ended) -> Path:
    """The folder of the CSV files that the sources serve."""
    return data_folder(platform.home)
