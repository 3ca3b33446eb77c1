"""dbt in a process of its own: what it says, what it leaves, how it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import psycopg
import pytest

from dagster_project.failures import TransformationError
from dagster_project.settings import get_settings
from dagster_project.transformation import invocation
from dagster_project.transformation.project import ensure_manifest

RAW = """
CREATE SCHEMA fleet_raw;
CREATE TABLE fleet_raw.airlines (_airbyte_raw_id text, _airbyte_extracted_at timestamptz,
    _airbyte_meta jsonb, _airbyte_generation_id bigint, carrier text PRIMARY KEY, name text);
INSERT INTO fleet_raw.airlines VALUES (NULL, NULL, NULL, NULL, 'UA', 'United Air Lines Inc.');
"""
MODELS = ["stg_fleet__airlines", "dim_airlines"]
TEST = "not_null_dim_airlines_carrier_name"


@pytest.fixture
def url(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A warehouse with the airlines, and the project parsed."""
    monkeypatch.setenv("MESH_HOME", str(tmp_path_factory.getbasetemp() / "dbt-home"))
    monkeypatch.setenv("MESH_WAREHOUSE_URL", warehouse_url)
    get_settings.cache_clear()
    ensure_manifest()
    invocation.preload()
    with psycopg.connect(warehouse_url) as connection:
        connection.execute(RAW)
    yield warehouse_url
    get_settings.cache_clear()


def said(target: Path) -> str:
    return (target / "dbt.log").read_text()


def test_the_project_is_not_read_again(url: str, tmp_path: Path) -> None:
    results = list(invocation.build(url, [*MODELS, TEST], tmp_path))
    built = [e for e in results if e["info"]["name"] == "LogModelResult"]
    assert [event["data"]["node_info"]["node_name"] for event in built] == MODELS
    assert len(results) == len(built) + 1, "of the tests, the one that was asked for"
    assert "pars" not in said(tmp_path).lower().replace("partial_parse", "").replace("parser", "")
    assert "DBT_MESH_HOST" not in os.environ


def test_a_project_parsed_for_another_database_is_read_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invocation, "_database", lambda manifest: "another")
    assert list(invocation.build(url, MODELS, tmp_path))
    assert "Starting full parse" in said(tmp_path)


def test_what_failed_is_told_without_the_password(url: str, tmp_path: Path) -> None:
    password = unquote(urlsplit(url).password or "")
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE fleet_raw.airlines SET name = NULL")
    with pytest.raises(TransformationError, match=r"(?s)could not build.*not_null_dim_airlines"):
        list(invocation.build(url, [*MODELS, TEST], tmp_path))
    with pytest.raises(TransformationError, match=r"authentication failed") as failed:
        list(invocation.build(url.replace(password, f"not{password}"), MODELS, tmp_path))
    assert password not in str(failed.value)
    assert password not in said(tmp_path)


@pytest.mark.parametrize("how", ["interrupted", "closed"])
def test_who_asks_no_more_cancels_its_queries(url: str, tmp_path: Path, how: str) -> None:
    """A model waits for a lock; nobody waits for it any more, and its query is gone."""
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as watcher:
        list(invocation.build(url, MODELS, tmp_path))
        holder.execute("LOCK TABLE fleet_raw.airlines IN ACCESS EXCLUSIVE MODE")

        def waiting() -> bool:
            row = watcher.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE wait_event_type = 'Lock' AND application_name = 'dbt'"
            ).fetchone()
            assert row
            return row[0] > 0

        def interrupt() -> None:
            while not waiting():
                time.sleep(0.05)
            if how == "interrupted":
                os.kill(os.getpid(), signal.SIGINT)
            else:
                os.kill(active_children()[0].pid or 0, signal.SIGTERM)

        interrupting = Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt if how == "interrupted" else TransformationError):
            list(invocation.build(url, MODELS, tmp_path))
        interrupting.join()
        assert not active_children()
        assert not waiting()
