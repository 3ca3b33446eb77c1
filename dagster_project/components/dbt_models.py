"""The component of a domain's dbt models: built where stale, by the day where partitioned."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context`.

import os
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from importlib import metadata
from typing import Any, Self
from uuid import uuid4

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster_dbt import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtCliResource,
    DbtProject,
)
from dagster_dbt.errors import DagsterDbtCliRuntimeError
from packaging.version import Version
from pydantic import Field

from dagster_project.components.folder import domain_of
from dagster_project.components.landing_feed import feed_partitions
from dagster_project.declarations import Declared
from dagster_project.failures import DeclarationError, TransformationError
from dagster_project.identity import DBT_PROJECT, Table, raw_table
from dagster_project.ingestion.feed import FeedDeclaration, read_feed
from dagster_project.settings import DBT_PROJECT_DIR, get_settings, warehouse_url
from dagster_project.transformation.project import (
    dbt_environment,
    dbt_executable,
    read_manifest,
)
from dagster_project.transformation.versions import (
    count_rows,
    decide,
    decide_days,
    domain_models,
    models,
    node_table,
    read_built,
    record_built,
)

_EVALUATED = {
    AssetCheckExecutionRecordStatus.SUCCEEDED,
    AssetCheckExecutionRecordStatus.FAILED,
}
#: The steps' names. Dagster takes every asset of a run over a range of partitions for partitioned
#: (and plans an event a partition for each) if the last step by name is; so this one, which never
#: is, comes last.
WHOLE_STEP = "transform_"
DAILY_STEP = "incremental_"


class DailyModels(Declared):
    """Incremental models that are built by the day."""

    feed: str = Field(description="The feed whose days they are partitioned by.")
    models: list[str] = Field(min_length=1)


class DbtModelsDeclaration(Declared):
    """What a domain says of its dbt models, which lie in dbt_project/models/<domain>/."""

    daily: DailyModels | None = None


class BuildConfig(dg.Config):
    """What a person can ask of a build in the launchpad."""

    rebuild: bool = Field(False, description="Build the selected models even if up to date.")


class TableTranslator(DagsterDbtTranslator):
    """Names a dbt node's asset by its table."""

    def __init__(self) -> None:
        super().__init__(DagsterDbtTranslatorSettings(enable_code_references=True))

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        return dg.AssetKey(list(node_table(dbt_resource_props).asset_key))

    def get_description(self, dbt_resource_props: Mapping[str, Any]) -> str:
        return str(dbt_resource_props.get("description") or "")

    def get_owners(self, dbt_resource_props: Mapping[str, Any]) -> None:
        # From domain.yaml, for all that a domain has.
        return None

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> None:
        return None

    def get_metadata(self, dbt_resource_props: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            **super().get_metadata(dbt_resource_props),
            "dagster/table_name": str(node_table(dbt_resource_props)),
        }


class DbtModels(dg.Component):
    """A domain's dbt models as assets, with their tests as asset checks."""

    def __init__(self, declaration: DbtModelsDeclaration) -> None:
        self.declaration = declaration

    @classmethod
    def get_model_cls(cls) -> type[DbtModelsDeclaration]:
        return DbtModelsDeclaration

    @classmethod
    def load(cls, attributes: Any, context: dg.ComponentLoadContext) -> Self:
        return cls(attributes or DbtModelsDeclaration())

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        domain = domain_of(context.path)
        manifest = read_manifest()
        daily = self.declaration.daily
        by_day = {f"model.{DBT_PROJECT}.{name}" for name in daily.models} if daily else set()
        ours = set(domain_models(manifest, domain))
        if unknown := sorted(by_day - ours):
            raise DeclarationError(
                f"{context.path}: daily: no dbt model of the domain {domain} is called "
                f"{', '.join(unique_id.rpartition('.')[2] for unique_id in unknown)}"
            )
        assets = [_whole(domain, manifest, ours - by_day)] if ours - by_day else []
        if daily:
            feed = read_feed(domain, daily.feed)
            assets.extend(_daily(domain, manifest, name, feed) for name in daily.models)
        return dg.Definitions(assets=assets, resources={"dbt": DBT})


class InstalledDbt(DbtCliResource):
    """The dbt of this Python environment, whose version is known without starting it."""

    @cached_property
    def _cli_version(self) -> Version:
        return Version(metadata.version("dbt-core"))


#: One instance, so that the locations of several domains can be merged into one.
DBT = InstalledDbt(
    project_dir=str(DBT_PROJECT_DIR),
    profiles_dir=str(DBT_PROJECT_DIR),
    dbt_executable=str(dbt_executable()),
)


def _project() -> DbtProject:
    """Where the models' source code is, for the links in the UI."""
    return DbtProject(project_dir=DBT_PROJECT_DIR, target_path=get_settings().dbt_target)


def _specs(
    manifest: Mapping[str, Any], unique_ids: Collection[str]
) -> tuple[list[dg.AssetSpec], list[dg.AssetCheckSpec]]:
    """These models as assets, and their tests as asset checks, as dagster-dbt describes them.

    What `@dbt_assets` does, without its selection: which models are a domain's is read from the
    manifest, where dbt's selector would cost each code location the import of dbt's graph. A test
    of several models is a check of the one that it names, and of all of them in name only.
    """
    translator, project = TableTranslator(), _project()
    assets, checks = [], {}
    for unique_id in sorted(unique_ids):
        asset = translator.get_asset_spec(manifest, unique_id, project)
        assets.append(asset)
        for child in manifest["child_map"][unique_id]:
            if manifest["nodes"].get(child, {}).get("resource_type") != "test":
                continue
            if check := translator.get_asset_check_spec(asset, manifest, child, project):
                checks[check.key] = check
    return assets, list(checks.values())


def _whole(
    domain: str, manifest: Mapping[str, Any], unique_ids: Collection[str]
) -> dg.AssetsDefinition:
    """All of the domain's models but the daily ones."""
    assets, checks = _specs(manifest, unique_ids)

    @dg.multi_asset(
        name=f"{WHOLE_STEP}{domain}",
        specs=assets,
        check_specs=checks,
        can_subset=True,
        op_tags={"dagster/compute_kind": "dbt"},
    )
    def build(
        context: dg.AssetExecutionContext, dbt: DbtCliResource, config: BuildConfig
    ) -> Iterator[Any]:
        url = warehouse_url()
        selected = _selected(context, manifest)
        tables = {unique_id: node_table(node) for unique_id, node in models(manifest).items()}
        built = read_built(url)
        if config.rebuild:
            for unique_id in selected.values():
                built.models.pop(tables[unique_id], None)
        decision = decide(manifest, set(selected.values()), built)
        outputs = {unique_id: output for output, unique_id in selected.items()}
        # First those that are up to date: a model whose parent is built is built too, so none of
        # these comes after one that is.
        for unique_id in decision.up_to_date:
            yield _unchanged(
                outputs[unique_id], url, tables[unique_id], decision.versions[unique_id]
            )
        standing, again = _verdicts(context, [tables[u] for u in decision.up_to_date])
        yield from standing
        names = [models(manifest)[unique_id]["name"] for unique_id in decision.stale]
        for event in _run(context, dbt, url, manifest, [*names, *again]):
            unique_id = selected.get(getattr(event, "output_name", ""), "")
            if not unique_id:
                yield event
                continue
            record_built(url, tables[unique_id], {"": decision.versions[unique_id]})
            yield _output(event, url, tables[unique_id], decision.versions[unique_id])

    return build


def _daily(
    domain: str, manifest: Mapping[str, Any], name: str, feed: FeedDeclaration
) -> dg.AssetsDefinition:
    """One incremental model, partitioned by the days of a feed."""
    unique_id = f"model.{DBT_PROJECT}.{name}"
    raw = raw_table(domain, feed.name)
    assets, checks = _specs(manifest, [unique_id])

    @dg.multi_asset(
        name=f"{DAILY_STEP}{name}",
        specs=assets,
        check_specs=checks,
        can_subset=True,
        partitions_def=feed_partitions(feed),
        backfill_policy=dg.BackfillPolicy.single_run(),
        op_tags={"dagster/compute_kind": "dbt"},
    )
    def build(
        context: dg.AssetExecutionContext, dbt: DbtCliResource, config: BuildConfig
    ) -> Iterator[Any]:
        url = warehouse_url()
        table = node_table(models(manifest)[unique_id])
        (output,) = _selected(context, manifest) or (None,)
        built = read_built(url)
        if config.rebuild:
            built.model_partitions.pop(table, None)
        stale = decide_days(manifest, unique_id, raw, context.partition_keys, built)
        names = [name] if stale else []
        if not stale and output:
            yield _unchanged(output, url, table, built.version(table))
            standing, names = _verdicts(context, [table])
            yield from standing
        for event in _run(context, dbt, url, manifest, names, sorted(stale)):
            if getattr(event, "output_name", None) != output:
                yield event
                continue
            record_built(url, table, stale)
            yield _output(event, url, table, read_built(url).version(table))

    return build


def _selected(context: dg.AssetExecutionContext, manifest: Mapping[str, Any]) -> dict[str, str]:
    """The models that this step is to materialise: output name to dbt unique id."""
    by_key = {
        dg.AssetKey(list(node_table(node).asset_key)): unique_id
        for unique_id, node in models(manifest).items()
    }
    return {
        context.assets_def.get_output_name_for_asset_key(key): by_key[key]
        for key in context.selected_asset_keys
    }


def _verdicts(
    context: dg.AssetExecutionContext, tables: list[Table]
) -> tuple[list[dg.AssetCheckResult], list[str]]:
    """Of models that are not built: the verdicts that stand, and the tests to run again.

    Neither the table nor its tests changed, so what was found of it still holds. A test that has
    no verdict yet, or failed, is run again: a failure is never left behind by a model's being up to
    date.
    """
    keys = {dg.AssetKey(list(table.asset_key)) for table in tables}
    standing, again = [], []
    for key in sorted(context.selected_asset_check_keys):
        if key.asset_key not in keys:
            continue
        history = context.instance.event_log_storage.get_asset_check_execution_history(
            key, limit=1, status=_EVALUATED
        )
        last = history[0].evaluation if history else None
        if last is None or (not last.passed and last.severity is dg.AssetCheckSeverity.ERROR):
            again.append(key.name)
            continue
        standing.append(
            dg.AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=last.passed,
                severity=last.severity,
                metadata={
                    **last.metadata,
                    "as found by": dg.MetadataValue.dagster_run(history[0].run_id),
                },
            )
        )
    return standing, again


def _run(
    context: dg.AssetExecutionContext,
    dbt: DbtCliResource,
    url: str,
    manifest: Mapping[str, Any],
    names: list[str],
    days: list[str] | None = None,
) -> Iterator[Any]:
    """dbt's events for these models, their tests, and these tests; none runs nothing."""
    if not names:
        context.log.info("every selected model is up to date")
        return
    context.log.info(f"dbt builds {len(names)}: {', '.join(names)}")
    os.environ.update(dbt_environment(url) | {"DBT_MESH_DAYS": ",".join(days or [])})
    target = get_settings().dbt_target.absolute() / "runs" / context.run.run_id / uuid4().hex[:8]
    # Without the context, which would add what the step has in all to what is selected here.
    invocation = dbt.cli(
        ["build", "--select", " ".join(names)],
        manifest=manifest,
        dagster_dbt_translator=TableTranslator(),
        target_path=target,
    )
    try:
        for event in invocation.stream_raw_events():
            yield from event.to_default_asset_events(
                manifest,
                invocation.dagster_dbt_translator,
                context,
                invocation.target_path,
                _project(),
            )
    except DagsterDbtCliRuntimeError as error:
        raise TransformationError(_what_failed(str(error))) from None


def _what_failed(message: str) -> str:
    """dbt's own words, without the command line that dagster-dbt puts before them."""
    _, found, errors = message.partition("Errors parsed from dbt logs:")
    lines = [line.strip() for line in (errors if found else message).splitlines() if line.strip()]
    return "dbt could not build every model:\n  " + "\n  ".join(lines[:40])


def _unchanged(output: str, url: str, table: Table, version: str) -> dg.Output[Any]:
    """What is yielded for a model that did not have to be built: it has the version it had."""
    return dg.Output(
        None,
        output_name=output,
        metadata={"up to date": True, "dagster/row_count": count_rows(url, table)},
        data_version=dg.DataVersion(version),
    )


def _output(event: dg.Output[Any], url: str, table: Table, version: str) -> dg.Output[Any]:
    return dg.Output(
        event.value,
        output_name=event.output_name,
        metadata={**event.metadata, "dagster/row_count": count_rows(url, table)},
        data_version=dg.DataVersion(version),
    )
