"""What the tests of ingestion share."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagster_project.ingestion import process
from dagster_project.lake.store import Lake
from tests.ingestion.scripted import SECRET, Shop


@pytest.fixture
def shop(tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A connection of a scripted connector."""
    monkeypatch.setattr(process, "GRACE", 1.0)
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    monkeypatch.setenv("SHOP_PAGE", "1")
    return Shop(tmp_path, lake, monkeypatch)
