"""`mesh` on the session's PostgreSQL, and in folders without any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from dagster_project.warehouse.embedded import MESH, WAREHOUSE, EmbeddedPostgres, Endpoint
from tests.e2e.platform import Platform


@pytest.fixture
def served(postgres: Endpoint, postgres_home: Path) -> Iterator[Platform]:
    """A home whose PostgreSQL runs, with a table and a sequence in the warehouse."""
    with psycopg.connect(postgres.url(MESH, WAREHOUSE)) as connection:
        connection.execute("DROP SCHEMA IF EXISTS asked CASCADE; CREATE SCHEMA asked")
        connection.execute("CREATE TABLE asked.things AS SELECT generate_series(1, 50000) AS id")
        connection.execute("CREATE SEQUENCE asked.counter")
    yield Platform(postgres_home)
    with psycopg.connect(postgres.url(MESH, WAREHOUSE)) as connection:
        connection.execute("DROP SCHEMA asked CASCADE")


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Platform]:
    """A home that does not exist yet."""
    platform = Platform(tmp_path / "home")
    yield platform
    EmbeddedPostgres(platform.home).stop(force=True)
