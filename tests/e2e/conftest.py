"""One platform for all tests here: what one leaves, the next finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dagster_project.reference.data import data_folder
from tests.e2e.platform import Ended, Platform


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A home with a PostgreSQL that stays up; nothing has run in it yet."""
    platform = Platform(tmp_path_factory.mktemp("e2e") / "home")
    assert platform.mesh("up").code == 0
    yield platform
    ended = platform.mesh("clean", "-y")
    assert ended.code == 0, ended.err
    assert not platform.home.exists()
    platform.wait_until_quiet(10)


@pytest.fixture(scope="session")
def first_run(platform: Platform) -> Ended:
    """The first `mesh run` there: connectors' environments, a year of flights, every mart."""
    return platform.run()


@pytest.fixture(scope="session")
def data(platform: Platform, first_run: Ended) -> Path:
    """The folder of the CSV files that the sources serve."""
    return data_folder(platform.home)
