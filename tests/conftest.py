"""What the tests share: one PostgreSQL a session, an empty warehouse and an empty lake a test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from psycopg import sql
from xdist.scheduler import LoadScopeScheduling

from dagster_project.lake import s3, store
from dagster_project.lake.store import Lake
from dagster_project.settings import get_settings
from dagster_project.warehouse.cluster import SUPERUSER
from dagster_project.warehouse.embedded import MESH, WAREHOUSE, EmbeddedPostgres, Endpoint
from tests.lake.s3 import S3Server

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
def lake(tmp_path: Path, request: pytest.FixtureRequest) -> Lake:
    """An empty lake: on disk, or, if the test asks for "s3", on an S3 that fails now and then."""
    if getattr(request, "param", "disk") == "disk":
        return Lake((tmp_path / "lake").as_uri())
    request.getfixturevalue("in_haste")
    server = cast(S3Server, request.getfixturevalue("s3_server"))
    server.storm(seed=len(request.node.name), share=0.1)
    return cast(Lake, request.getfixturevalue("s3_lake"))


@pytest.fixture(scope="session")
def s3_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The session's S3 server."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_server(s3_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server without faults, named by the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_session.environment.items():
        monkeypatch.setenv(name, value)
    s3_session.fail()
    return s3_session


@pytest.fixture
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a lake on S3 did not do is tried again at once."""
    hasty = s3.retry_config() | {"backoff": {"init_backoff": timedelta(milliseconds=5)}}
    monkeypatch.setattr(s3, "retry_config", lambda: hasty)
    monkeypatch.setattr(store, "PAUSES", (0.01, 0.1))


@pytest.fixture
def s3_lake(s3_server: S3Server) -> Lake:
    """An empty lake on S3, in a bucket of its own."""
    return Lake(f"{s3_server.new_bucket()}/lake")


@pytest.fixture
def fresh_settings() -> Iterator[None]:
    """Settings are read anew within the test, and again after it."""
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def together(nodeid: str) -> str:
    """Tests of the same are run by the same process, one after the other: those of a file, or of
    a platform that they share; of `e2e` those of the UI, and the others.
    """
    file = nodeid.partition("::")[0]
    if "/e2e/" not in file:
        return file
    return "e2e ui" if "/test_ui" in file else "e2e"


def turn(item: pytest.Item) -> int:
    """The longest first, so that no processor waits for another's last file; those of the UI once
    the others of `e2e` have made the home that they begin with.
    """
    group = together(item.nodeid)
    first = {"e2e": 0, "e2e ui": 2}
    is_long = "/components/" in group or "rehearsal" in group
    return first.get(group, 1 if is_long else 3)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=turn)


class Together(LoadScopeScheduling):
    """Of tests that run side by side those stay together that have to."""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests measured and recorded as `told`."""
    told = [
        (report.nodeid.rpartition("/")[2], what)
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, what in getattr(report, "user_properties", [])
        if name == "told" and getattr(report, "when", "") == "call"
    ]
    if told:
        terminalreporter.section("what tests told")
        for test, what in told:
            terminalreporter.write_line(f"{test}: {what}")
