"""Databases that nobody has used yet, and an environment that is no laptop."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from dagster_project.settings import PREFIX, Settings, get_settings, read_settings
from dagster_project.warehouse.cluster import SUPERUSER
from dagster_project.warehouse.embedded import DAGSTER, MESH, EmbeddedPostgres, Endpoint
from tests.e2e.platform import Ended, Platform


@dataclass
class Staging:
    """An environment `staging`: two databases, a lake and a home, all of them empty."""

    folder: Path
    #: How the superuser reaches a database.
    administrator: Callable[[str], str]
    environment: dict[str, str]

    @property
    def warehouse(self) -> str:
        return self.environment["MESH_WAREHOUSE_URL"]

    @property
    def dagster(self) -> str:
        return self.environment["MESH_DAGSTER_URL"]

    def settings(self, **other: str | None) -> Settings:
        """As a process reads them; None leaves a variable out."""
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        given = {**self.environment, **other}
        os.environ.update({name: value for name, value in given.items() if value is not None})
        get_settings.cache_clear()
        return read_settings()

    def mesh(self, *arguments: str, **environment: str) -> Ended:
        return Platform(self.folder / "home").mesh(*arguments, **self.environment, **environment)

    def run(self, statement: str, url: str | None = None) -> list[tuple[Any, ...]]:
        with psycopg.connect(url or self.warehouse, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def administer(self, statement: str) -> None:
        """As superuser, in the warehouse's database."""
        self.run(statement, self.administrator(self.warehouse.rpartition("/")[2]))


@pytest.fixture
def staging(
    postgres: Endpoint, postgres_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Staging]:
    passwords = EmbeddedPostgres(postgres_home)._passwords()
    administrator = Endpoint(postgres.host, postgres.port, passwords)
    names = {role: f"deploy_{role}_{uuid.uuid4().hex[:8]}" for role in (MESH, DAGSTER)}
    with psycopg.connect(administrator.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        for role, name in names.items():
            parts = (sql.Identifier(name), sql.Identifier(role))
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(*parts))
        for name in [n for n in os.environ if n.startswith((PREFIX, "AWS_", "DAGSTER_"))]:
            monkeypatch.delenv(name)
        yield Staging(
            tmp_path,
            lambda database: administrator.url(SUPERUSER, database),
            {
                "MESH_ENV": "staging",
                "MESH_HOME": str(tmp_path / "home"),
                "MESH_WAREHOUSE_URL": postgres.url(MESH, names[MESH]),
                "MESH_DAGSTER_URL": postgres.url(DAGSTER, names[DAGSTER]),
                "MESH_LAKE_URL": (tmp_path / "lake").as_uri(),
            },
        )
        for name in [n for n in os.environ if n.startswith(PREFIX)]:
            del os.environ[name]
        get_settings.cache_clear()
        for name in names.values():
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Platform]:
    """A home that does not exist yet."""
    platform = Platform(tmp_path / "laptop")
    yield platform
    EmbeddedPostgres(platform.home).stop(force=True)
