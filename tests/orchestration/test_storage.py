"""Dagster's storage: one connection a process, and none that was lost is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa
import yaml
from dagster_postgres import utils

from dagster_project.orchestration import storage
from dagster_project.orchestration.storage import wait_for_database
from dagster_project.warehouse.embedded import DAGSTER, Endpoint

CONFIG = {
    "module": "dagster_project.orchestration.storage",
    "class": "PooledPostgresStorage",
    "config": {"postgres_url": {"env": "MESH_DAGSTER_URL"}},
}
KEY = dg.AssetKey("readings")


@pytest.fixture
def instance(
    postgres: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance as a `dagster.yaml` names it."""
    monkeypatch.setenv("MESH_DAGSTER_URL", postgres.url(DAGSTER, DAGSTER))
    settings = {"storage": {"custom": CONFIG}, "telemetry": {"enabled": False}}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def server(postgres: Endpoint) -> Iterator[psycopg.Connection[tuple[int]]]:
    with psycopg.connect(postgres.url(DAGSTER, DAGSTER), autocommit=True) as connection:
        yield connection


def opened(server: psycopg.Connection[tuple[int]]) -> int:
    """Connections to Dagster's database so far."""
    row = server.execute(
        "SELECT pg_stat_clear_snapshot(), sessions FROM pg_stat_database WHERE datname = %s",
        (DAGSTER,),
    ).fetchone()
    assert row
    return row[1]


def report(instance: dg.DagsterInstance, times: int) -> None:
    for _ in range(times):
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY))


def events(instance: dg.DagsterInstance) -> int:
    return len(instance.fetch_materializations(KEY, limit=1000).records)


def test_events_share_a_connection(
    instance: dg.DagsterInstance, server: psycopg.Connection[tuple[int]]
) -> None:
    report(instance, 1)
    before, there = opened(server), events(instance)
    report(instance, 40)
    instance.get_runs()
    instance.all_instigator_state()
    assert events(instance) - there == 40
    assert opened(server) - before <= 2


def test_a_lost_connection_is_replaced(
    instance: dg.DagsterInstance, server: psycopg.Connection[tuple[int]]
) -> None:
    report(instance, 1)
    there = events(instance)
    server.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    report(instance, 1)
    assert events(instance) - there == 1


def test_a_run_waits_for_a_database_that_restarts(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utils, "retry_pg_connection_fn", utils.retry_pg_connection_fn)
    monkeypatch.setattr(storage, "PAUSE", 0.01)
    wait_for_database()
    tries: list[int] = []
    engine = instance.event_log_storage._engine
    connect = engine.connect

    def refused_at_first() -> sa.Connection:
        tries.append(1)
        if len(tries) < 20:  # Dagster itself gives up after the sixth
            raise sa.exc.OperationalError("connect", None, Exception("refused"))
        return connect()

    monkeypatch.setattr(engine, "connect", refused_at_first)
    report(instance, 1)
    assert len(tries) >= 20
    monkeypatch.setattr(engine, "connect", connect)
    assert events(instance) >= 1


def test_a_database_that_does_not_come_back_is_not_waited_for_for_ever(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utils, "retry_pg_connection_fn", utils.retry_pg_connection_fn)
    monkeypatch.setattr(storage, "PAUSE", 0.01)
    monkeypatch.setattr(storage, "PATIENCE", 0.05)
    wait_for_database()

    def refused() -> sa.Connection:
        raise sa.exc.OperationalError("connect", None, Exception("refused"))

    monkeypatch.setattr(instance.event_log_storage._engine, "connect", refused)
    with pytest.raises(utils.DagsterPostgresException, match="did not answer for"):
        report(instance, 1)
