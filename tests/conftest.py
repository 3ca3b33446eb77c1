"""What the tests share: one PostgreSQL a session, an empty warehouse and an empty lake a test."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dagster_project.lake.store import Lake
from dagster_project.settings import get_settings
from dagster_project.warehouse.cluster import SUPERUSER
from dagster_project.warehouse.embedded import MESH, WAREHOUSE, EmbeddedPostgres, Endpoint

# Programs that the tests start are ended by Ctrl-C; one that ignores it passes that on to all that
# it starts, and a shell has its background jobs ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the session's PostgreSQL."""
    return tmp_path_factory.mktemp("warehouse")


@pytest.fixture(scope="session")
def postgres(postgres_home: Path) -> Iterator[Endpoint]:
    """The session's PostgreSQL, which does not wait for the disk: its data dies with the tests."""
    server = EmbeddedPostgres(postgres_home)
    with server.lease() as endpoint:
        administrator = Endpoint(endpoint.host, endpoint.port, server._passwords())
        url = administrator.url(SUPERUSER, "postgres")
        with psycopg.connect(url, autocommit=True) as connection:
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("SELECT pg_reload_conf()")
        yield endpoint


@pytest.fixture
def warehouse_url(postgres: Endpoint) -> str:
    """A warehouse without any schema of ours."""
    url = postgres.url(MESH, WAREHOUSE)
    with psycopg.connect(url) as connection:
        schemas = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspowner = current_user::regrole"
        ).fetchall()
        for (schema,) in schemas:
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    return url


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return Lake((tmp_path / "lake").as_uri())


@pytest.fixture
def fresh_settings() -> Iterator[None]:
    """Settings are read anew within the test, and again after it."""
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()
