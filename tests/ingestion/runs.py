"""A sync and its load as a run of Dagster, which keeps its event log in the home's folder."""

from __future__ import annotations

import os
from typing import Any

import dagster as dg
from dagster._core.storage.event_log import ConsolidatedSqliteEventLogStorage
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.schedules import SqliteScheduleStorage
from dagster_airbyte import build_airbyte_assets_definitions

from dagster_project.components import airbyte_connection
from dagster_project.ingestion import workspace
from tests.ingestion.crashes import Job

#: What a run needs, imported before the first fork.
IMPORTED = (SqliteRunStorage, SqliteScheduleStorage)


def _recorded(_: ConsolidatedSqliteEventLogStorage, event: dg.EventLogEntry) -> str:
    found = event.dagster_event
    return f"record {found.event_type_value} of {found.step_key}" if found else "record"


#: What is killed before each event is recorded.
EVENTS: tuple[Any, ...] = (ConsolidatedSqliteEventLogStorage, "store_event", _recorded)


def make(job: Job) -> None:
    """Make the run, whole. Raises AssertionError if it fails."""
    os.environ |= {
        "MESH_HOME": str(job.home),
        "MESH_LAKE_URL": job.lake,
        "MESH_WAREHOUSE_URL": job.warehouse,
    }
    connection = job.connection
    workspace.read_connections = lambda domain: [connection]  # type: ignore[assignment]
    syncs = build_airbyte_assets_definitions(
        workspace=workspace.EmbeddedWorkspace(workspace_id=job.domain),
        dagster_airbyte_translator=airbyte_connection.StreamTranslator(),
    )
    loads = [airbyte_connection._raw(job.domain, connection, each) for each in connection.streams]
    storage = job.home.parent / "dagster"
    storage.mkdir(exist_ok=True)
    # All runs in one file: another one for each takes longer than the run.
    log = ConsolidatedSqliteEventLogStorage
    kept = {"module": log.__module__, "class": log.__name__, "config": {"base_dir": str(storage)}}
    with dg.DagsterInstance.local_temp(str(storage), {"event_log_storage": kept}) as instance:
        done = dg.materialize(
            [*(syncs if job.syncs else ()), *loads],
            instance=instance,
            resources={"airbyte": workspace.EmbeddedWorkspace()},
            raise_on_error=False,
        )
    assert done.success
