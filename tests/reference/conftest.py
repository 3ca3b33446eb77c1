"""The reference data and the connector as `make run` installs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dagster_project.ingestion.environments import install_all
from dagster_project.reference.data import data_folder
from dagster_project.reference.server import running


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with what the tests need installed, so that none of them depends on a run before."""
    home = tmp_path_factory.mktemp("sources")
    install_all(home, ["reference-data", "source-declarative-manifest"], lambda _: None)
    return home


@pytest.fixture(scope="session")
def reference_data(home: Path) -> Path:
    return data_folder(home)


@pytest.fixture(scope="session")
def source(home: Path) -> Iterator[str]:
    """The base address of the running source systems."""
    with running(home) as url:
        yield url
