"""`dagster-airbyte`'s workspace and client, with the connectors run here, as subprocesses.

The assets come from dagster-airbyte's own factory; only the calls to an Airbyte server are
replaced. What the client answers has the form of Airbyte's public and configuration API.

Whether a run was done with the sync that it made, Dagster's event log knows, whoever killed it at
whichever moment: it was if it recorded the sync and then succeeded or failed by itself, or if
another run, such as its re-execution from where it failed, has loaded what it synced. A run that
comes after that is to have a sync of its own; one that comes after a run that was cut short goes on
with what that one had synced. A run that still goes is not done either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster_airbyte import AirbyteWorkspace
from dagster_airbyte.resources import AirbyteClient
from dagster_airbyte.types import AirbyteOutput
from pydantic import PrivateAttr

from dagster_project.failures import DeclarationError
from dagster_project.ingestion import engine
from dagster_project.ingestion.declaration import (
    REFERENCE_URL,
    Connection,
    DestinationSyncMode,
    identity,
    read_connections,
    resolve_config,
)
from dagster_project.ingestion.drift import in_words
from dagster_project.ingestion.synced import Synced, SyncReport
from dagster_project.lake.commits import Commit
from dagster_project.lake.store import Lake
from dagster_project.reference import server
from dagster_project.settings import get_settings


def connection_id(domain: str, connection: Connection) -> str:
    """`<domain>/<connection>`, which stands for the identifier that an Airbyte server gives."""
    return f"{domain}/{connection.name}"


def find_connection(identifier: str) -> tuple[str, Connection]:
    """The domain and declaration of `<domain>/<connection>`. Raises DeclarationError."""
    domain, _, name = identifier.partition("/")
    for connection in read_connections(domain):
        if connection.name == name:
            return domain, connection
    raise DeclarationError(f"{identifier}: {domain} declares no connection of this name")


class EmbeddedClient(AirbyteClient):
    """Answers as an Airbyte server would, from the declarations of one domain."""

    #: The run that it is of.
    _run_id: str = PrivateAttr(default="")
    _instance: dg.DagsterInstance | None = PrivateAttr(default=None)
    #: What its last sync brought.
    _synced: Synced | None = PrivateAttr(default=None)
    _report: SyncReport = PrivateAttr(default_factory=lambda: SyncReport(lambda text: None))

    def validate_workspace_id(self) -> None:
        read_connections(self.workspace_id)

    def get_connections(self) -> Sequence[Mapping[str, Any]]:
        return [
            {"connectionId": connection_id(self.workspace_id, connection)}
            for connection in read_connections(self.workspace_id)
        ]

    def get_connection_details(self, connection_id: str) -> Mapping[str, Any]:
        _, connection = find_connection(connection_id)
        return {
            "connectionId": connection_id,
            "name": connection_id,
            "destinationId": "lake",
            "syncCatalog": {
                "streams": [
                    {
                        "stream": {"name": stream.table, "jsonSchema": stream.json_schema},
                        "config": {"selected": True},
                    }
                    for stream in connection.streams
                ]
            },
        }

    def get_destination_details(self, destination_id: str) -> Mapping[str, Any]:
        return {
            "destinationId": destination_id,
            "destinationType": "parquet",
            "configuration": {},
        }

    def sync_and_poll(self, connection_id: str) -> AirbyteOutput:
        domain, connection = find_connection(connection_id)
        settings = get_settings()
        with ExitStack() as stack:
            found: dict[str, str] = {}
            if REFERENCE_URL in connection.needs() and settings.reference_url is None:
                found[REFERENCE_URL] = stack.enter_context(server.running(settings.home))
            synced = self._synced = engine.sync(
                domain,
                connection,
                config=resolve_config(domain, connection, settings, found),
                lake=Lake(settings.lake),
                home=settings.home,
                timeout=settings.sync_timeout,
                run_id=self._run_id,
                heard=lambda commit: was_heard(self._instance, domain, connection, commit),
                progress=self._report.progress,
                say=self._report.say,
            )
        self._report.end(synced)
        job = {
            "jobId": synced.commit.number,
            "status": "succeeded",
            "jobType": "sync",
            "connectionId": connection_id,
            "startTime": synced.commit.started_at,
            "lastUpdatedAt": synced.commit.ended_at,
            "rowsSynced": synced.rows,
        }
        return AirbyteOutput(
            job_details=job, connection_details=self.get_connection_details(connection_id)
        )


class EmbeddedWorkspace(AirbyteWorkspace):
    """The connections of one domain, or at run time of whichever domain is asked for."""

    rest_api_base_url: str = "embedded"
    configuration_api_base_url: str = "embedded"
    workspace_id: str = ""

    @contextmanager
    def process_config_and_initialize_cm_cached(self) -> Iterator[Self]:
        """Itself: there is no configuration to resolve, and resolving it makes a whole instance."""
        yield self

    def get_client(self) -> EmbeddedClient:
        return EmbeddedClient(
            workspace_id=self.workspace_id,
            # The parent asks for credentials; nothing is ever sent.
            username="embedded",
            password="embedded",  # noqa: S106
            request_max_retries=0,
            request_retry_delay=0,
            request_timeout=1,
        )

    def sync_and_poll(self, context: dg.AssetExecutionContext) -> Iterator[Any]:
        """The parent's, with the counts of the sync on each stream's materialisation."""
        client = self.get_client()
        client._report = SyncReport(context.log.info)
        client._run_id = context.run.run_id
        client._instance = context.instance
        # The parent asks get_client() for the client it uses.
        workspace = self.model_copy()
        object.__setattr__(workspace, "get_client", lambda: client)
        for result in AirbyteWorkspace.sync_and_poll(workspace, context):
            yield _with_counts(result, client._synced)


#: What Dagster records of a step that was ended from without.
_ENDED = {"ChildProcessCrashException", "DagsterExecutionInterruptedError", "KeyboardInterrupt"}


def was_heard(
    instance: dg.DagsterInstance | None, domain: str, connection: Connection, commit: Commit
) -> bool:
    """Whether the run of a sync's last commit was done with it."""
    if instance is None or not instance.has_run(commit.run):
        # Of another Dagster, or deleted: nobody will run it again.
        return True
    names = [identity(domain, connection, stream) for stream in connection.streams]
    tellings = [
        record
        for record in (_latest(instance, name.asset_key) for name in names)
        if record
        and record.asset_materialization
        and _commit_of(record.asset_materialization) == commit.number
    ]
    if not tellings:
        return False
    told = max(tellings, key=lambda record: record.storage_id)
    run = instance.get_run_by_id(told.run_id)
    if run is None or run.is_success:
        return True
    loads = [
        _latest(instance, name.table.asset_key)
        for name, stream in zip(names, connection.streams, strict=True)
        if stream.destination_sync_mode is DestinationSyncMode.APPEND
    ]
    if all(
        load and load.run_id != run.run_id and load.storage_id > told.storage_id for load in loads
    ):
        return True
    failed = dg.DagsterEventType.STEP_FAILURE
    failures = instance.get_records_for_run(told.run_id, of_type=failed).records
    return any(_by_itself(record.event_log_entry, told.event_log_entry) for record in failures)


def _commit_of(materialization: dg.AssetMaterialization) -> Any:
    """The number of the commit that it tells of; None if of none."""
    return getattr(materialization.metadata.get("commit"), "value", None)


def _by_itself(failure: dg.EventLogEntry, told: dg.EventLogEntry) -> bool:
    """Whether a step failed that is not the sync's, and was not ended from without."""
    event = failure.get_dagster_event()
    error = event.step_failure_data.error
    return event.step_key != told.step_key and (error is None or error.cls_name not in _ENDED)


def _latest(instance: dg.DagsterInstance, path: Sequence[str]) -> dg.EventLogRecord | None:
    """The latest materialisation of an asset."""
    records = instance.fetch_materializations(dg.AssetKey(list(path)), limit=1).records
    return records[0] if records else None


def _with_counts(result: Any, synced: Synced | None) -> Any:
    """A stream's materialisation, of one that the run has not selected too, with its counts."""
    if not isinstance(result, (dg.MaterializeResult, dg.AssetMaterialization)) or synced is None:
        return result
    assert isinstance(result.asset_key, dg.AssetKey)
    stream = synced.stream(result.asset_key.path[-1])
    metadata = {
        **(result.metadata or {}),
        "dagster/row_count": stream.rows,
        "objects": len(stream.objects),
        "bytes": stream.bytes,
        "sent bytes": stream.sent_bytes,
        "seconds": round(synced.seconds, 1),
        "rows per second": round(stream.rows / synced.seconds) if synced.seconds else 0,
        "commit": synced.commit.number,
        "sync_mode": stream.last.sync_mode,
        "refused rows": stream.drift.refused,
        **in_words(stream.drift),
    }
    if isinstance(result, dg.MaterializeResult):
        return result._replace(metadata=metadata, data_version=dg.DataVersion(stream.last.version))
    return dg.AssetMaterialization(
        result.asset_key,
        description=result.description,
        metadata=metadata,
        tags={DATA_VERSION_TAG: stream.last.version},
    )
