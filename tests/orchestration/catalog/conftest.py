from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import yaml

from dagster_project.settings import get_settings
from dagster_project.transformation.project import ensure_manifest
from dagster_project.warehouse.embedded import DAGSTER, Endpoint
from tests.catalog.gms import RecordingGms
from tests.orchestration.catalog.told_runs import BROKEN

CONFIG = {
    "module": "dagster_project.orchestration.storage",
    "class": "PooledPostgresStorage",
    "config": {"postgres_url": {"env": "MESH_DAGSTER_URL"}},
}


@pytest.fixture
def url(postgres: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The database of the event log, with nothing of ours in it."""
    BROKEN.clear()
    url = postgres.url(DAGSTER, DAGSTER)
    # What dbt has parsed it need not parse for each test.
    parsed = ensure_manifest().parent
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dbt").symlink_to(parsed)
    monkeypatch.setenv("MESH_DAGSTER_URL", url)
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    (tmp_path / "dagster").mkdir()
    settings = {"storage": {"custom": CONFIG}, "telemetry": {"enabled": False}}
    (tmp_path / "dagster" / "dagster.yaml").write_text(yaml.safe_dump(settings))
    get_settings.cache_clear()
    with psycopg.connect(url) as connection:
        connection.execute("DROP SCHEMA IF EXISTS mesh CASCADE")
    yield url
    get_settings.cache_clear()


@pytest.fixture
def instance(url: str) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.get() as instance:
        instance.event_log_storage.wipe()
        yield instance


@pytest.fixture
def gms(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingGms]:
    with RecordingGms() as gms:
        monkeypatch.setenv("MESH_DATAHUB_GMS_URL", gms.url)
        get_settings.cache_clear()
        yield gms
