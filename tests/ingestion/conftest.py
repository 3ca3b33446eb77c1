"""What the tests of ingestion share."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagster_project.ingestion import process
from dagster_project.lake.store import Lake
from tests.ingestion.scripted import SECRET, Shop


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of a module that says `ON_S3_TOO` are made on both lakes, unless they are `on_disk`."""
    names = metafunc.fixturenames
    if "lake" in names and "on_disk" not in names and hasattr(metafunc.module, "ON_S3_TOO"):
        metafunc.parametrize("lake", ["disk", "s3"], indirect=True)


@pytest.fixture
def on_disk() -> None:
    """The test looks at a lake's files, or S3 makes no difference to what it is about."""


@pytest.fixture
def shop(tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A connection of a scripted connector."""
    monkeypatch.setattr(process, "GRACE", 1.0)
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    monkeypatch.setenv("SHOP_PAGE", "1")
    return Shop(tmp_path, lake, monkeypatch)
