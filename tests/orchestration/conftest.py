from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from dagster_project.settings import get_settings
from tests.orchestration.domain_runs import BROKEN


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    BROKEN.clear()
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    get_settings.cache_clear()
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance
    get_settings.cache_clear()
