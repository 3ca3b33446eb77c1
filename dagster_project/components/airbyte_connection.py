"""The component of an Airbyte connection: source streams, their objects in the lake, raw tables."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context`.

from collections.abc import Iterator, Sequence
from typing import Any, Self

import dagster as dg
from dagster_airbyte import (
    AirbyteConnectionTableProps,
    DagsterAirbyteTranslator,
)
from dagster_airbyte.resources import BaseAirbyteWorkspace

from dagster_project.components.column_lineage import of_load
from dagster_project.components.folder import domain_of
from dagster_project.components.loading import (
    LoadProgress,
    declaration_check,
    declaration_result,
    load_metadata,
    load_step,
    table_metadata,
)
from dagster_project.ingestion.declaration import Connection, StreamDeclaration, identity
from dagster_project.ingestion.records import column_names
from dagster_project.ingestion.streams import (
    lake_columns,
    load_stream,
    source_columns,
    table_columns,
)
from dagster_project.ingestion.workspace import (
    EmbeddedWorkspace,
    connection_id,
    find_connection,
)
from dagster_project.lake.store import Lake
from dagster_project.orchestration.conditions import when_source_reports, when_synced
from dagster_project.orchestration.pools import WAREHOUSE, source_pool
from dagster_project.orchestration.retries import retried
from dagster_project.settings import get_settings, warehouse_url


class Workspace(EmbeddedWorkspace):
    """The connections, whose syncs are tried again where that can help."""

    @retried
    def sync_and_poll(self, context: dg.AssetExecutionContext) -> Iterator[Any]:
        return super().sync_and_poll(context)


#: One instance, so that the locations of several domains can be merged into one.
AIRBYTE = Workspace()


class StreamTranslator(DagsterAirbyteTranslator):
    """Names a stream's asset by its place in the lake."""

    def get_asset_spec(self, props: AirbyteConnectionTableProps) -> dg.AssetSpec:
        spec = super().get_asset_spec(props)
        domain, connection = find_connection(props.connection_id)
        stream = connection.stream(props.stream_name)
        name = identity(domain, connection, stream)
        return spec.replace_attributes(
            key=dg.AssetKey(list(name.asset_key)),
            deps=[dg.AssetKey(list(name.source_key))],
            description=f"{stream.description}\n\nObjects of the lake under `{name.prefix}`.",
            kinds={"airbyte", "parquet"},
            automation_condition=when_source_reports(),
        ).merge_attributes(metadata=table_metadata(name.prefix, lake_columns(stream)))


class AirbyteConnection(dg.Component):
    """An Airbyte connection of a domain: a sync into the lake, and a raw table a stream.

    Attributes: see `dagster_project.ingestion.declaration.Connection`.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @classmethod
    def get_model_cls(cls) -> type[Connection]:
        return Connection

    @classmethod
    def load(cls, attributes: Any, context: dg.ComponentLoadContext) -> Self:
        return cls(attributes)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        domain = domain_of(context.path)
        identifier = connection_id(domain, self.connection)
        specs = EmbeddedWorkspace(workspace_id=domain).load_asset_specs(
            StreamTranslator(), lambda connection: connection.id == identifier
        )
        streams = self.connection.streams
        return dg.Definitions(
            assets=[
                _sync(domain, self.connection, specs),
                *(_source(domain, self.connection, stream) for stream in streams),
                *(_raw(domain, self.connection, stream) for stream in streams),
            ],
            resources={"airbyte": AIRBYTE},
            schedules=self._schedules(domain),
        )

    def _schedules(self, domain: str) -> list[dg.ScheduleDefinition]:
        """The connection's schedule, where its declaration says it exists."""
        schedule = self.connection.schedule
        if schedule is None or get_settings().env not in schedule.environments:
            return []
        keys = [
            dg.AssetKey(list(identity(domain, self.connection, stream).asset_key))
            for stream in self.connection.streams
        ]
        return [
            dg.ScheduleDefinition(
                name=f"sync_{domain}_{self.connection.name}",
                target=dg.AssetSelection.assets(*keys).downstream(),
                cron_schedule=schedule.cron,
                execution_timezone=schedule.timezone,
                default_status=dg.DefaultScheduleStatus.RUNNING,
            )
        ]


def _sync(
    domain: str, connection: Connection, specs: Sequence[dg.AssetSpec]
) -> dg.AssetsDefinition:
    """The connection's sync, as dagster-airbyte's factory makes it, which knows no pools."""

    @dg.multi_asset(
        name=f"airbyte_{domain}_{connection.name}",
        specs=specs,
        can_subset=True,
        pool=connection.pool or source_pool(domain, connection.name),
    )
    def sync(context: dg.AssetExecutionContext, airbyte: BaseAirbyteWorkspace) -> Iterator[Any]:
        yield from airbyte.sync_and_poll(context=context)

    return sync


def _source(domain: str, connection: Connection, stream: StreamDeclaration) -> dg.AssetSpec:
    name = identity(domain, connection, stream)
    return dg.AssetSpec(
        key=dg.AssetKey(list(name.source_key)),
        description=f"{stream.description}\n\nIn its source system: {connection.source}.",
        kinds={"source"},
        metadata=table_metadata(f"{connection.name}.{stream.name}", source_columns(stream)),
    )


def _raw(domain: str, connection: Connection, stream: StreamDeclaration) -> dg.AssetsDefinition:
    name = identity(domain, connection, stream)
    spec = dg.AssetSpec(
        key=dg.AssetKey(list(name.table.asset_key)),
        deps=[dg.AssetKey(list(name.asset_key))],
        description=f"{stream.description}\n\nAs the source gave it, loaded from the lake.",
        kinds={"postgres", "table"},
        metadata=table_metadata(str(name.table), table_columns(stream)),
        automation_condition=when_synced(),
    )
    columns = of_load(name.asset_key, column_names(stream.json_schema))

    @dg.multi_asset(
        name=load_step(name.table),
        specs=[spec],
        check_specs=[declaration_check(name.table)],
        pool=WAREHOUSE,
    )
    @retried
    def raw(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        lake = Lake(get_settings().lake)
        done = load_stream(
            domain,
            connection,
            stream,
            lake=lake,
            warehouse_url=warehouse_url(),
            run_id=context.run.run_id,
            progress=LoadProgress(context.log.info, lake),
            say=context.log.warning,
        )
        yield dg.MaterializeResult(
            metadata={**load_metadata(name.table, done.load), **columns},
            data_version=dg.DataVersion(done.load.version),
            check_results=[declaration_result(name.table, done.load, done.drift)],
        )

    return raw
