"""The reference data and the connector as `make run` installs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dagster_project.reference.data import data_folder
from dagster_project.reference.server import running
from dagster_project.settings import get_settings


@pytest.fixture(scope="session")
def home() -> Path:
    return get_settings().home.absolute()


@pytest.fixture(scope="session")
def reference_data(home: Path) -> Path:
    return data_folder(home)


@pytest.fixture(scope="session")
def source(home: Path) -> Iterator[str]:
    """The base address of the running source systems."""
    with running(home) as url:
        yield url
