"""The component of a domain's dbt models: built where stale, by the day where partitioned."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context`.

import contextlib
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, DbtProject
from dagster_dbt.core.dbt_cli_event import DbtCoreCliEventMessage
from pydantic import Field

from dagster_project.components.column_lineage import of_model
from dagster_project.components.data_versions import version_before
from dagster_project.components.dbt_inputs import Inputs, refused_models, say_left_out
from dagster_project.components.dbt_tests import Tests
from dagster_project.components.folder import domain_of
from dagster_project.components.landing_feed import feed_partitions
from dagster_project.components.partitions import DbtModelsDeclaration
from dagster_project.failures import DeclarationError, LakeError
from dagster_project.identity import DBT_PROJECT, Table, fitting, raw_table
from dagster_project.ingestion.feed import FeedDeclaration, read_feed
from dagster_project.lake.store import Lake
from dagster_project.orchestration.conditions import when_inputs_change
from dagster_project.orchestration.retries import retried
from dagster_project.quality.suites import critical_checks
from dagster_project.settings import DBT_PROJECT_DIR, get_settings, warehouse_url
from dagster_project.transformation.artifacts import keep
from dagster_project.transformation.groups import model_groups, read_tables
from dagster_project.transformation.invocation import build as dbt_build
from dagster_project.transformation.project import read_manifest
from dagster_project.transformation.tested import refuse_tests
from dagster_project.transformation.versions import (
    decide,
    decide_days,
    domain_models,
    make_schemas,
    models,
    node_table,
    read_built,
    read_shape,
    record_building,
    record_built,
)

#: The steps' names. Dagster takes every asset of a run over a range of partitions for partitioned
#: (and plans an event a partition for each) if the last step by name is; so this one, which never
#: is, comes last.
WHOLE_STEP = "transform_"
DAILY_STEP = "incremental_"


#: For how long what a failed build left is kept.
KEPT = timedelta(days=14)


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
        refuse_tests(manifest, domain)
        checked = {u for u in ours if critical_checks(node_table(manifest["nodes"][u]))}
        groups = model_groups(manifest, ours, by_day, checked)
        assets = [
            _whole(_step_name(domain, tables, len(groups)), manifest, unique_ids)
            for tables, unique_ids in groups.items()
        ]
        if daily:
            feed = read_feed(domain, daily.feed)
            assets.extend(_daily(domain, manifest, name, feed) for name in daily.models)
        return dg.Definitions(assets=assets)


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
        # A run of a model and of a table that it reads by way of a view, without the view, has to
        # load and check the table first, too.
        behind = {dg.AssetKey(list(table.asset_key)) for table in read_tables(manifest, unique_id)}
        missing = behind - {dep.asset_key for dep in asset.deps}
        assets.append(asset.merge_attributes(deps=sorted(missing)))
        for child in manifest["child_map"][unique_id]:
            if manifest["nodes"].get(child, {}).get("resource_type") != "test":
                continue
            if check := translator.get_asset_check_spec(asset, manifest, child, project):
                checks[check.key] = check
    return assets, list(checks.values())


def _step_name(domain: str, tables: Collection[Table], groups: int) -> str:
    """Of the step for the models that descend from these tables."""
    if groups == 1 or not tables:
        return f"{WHOLE_STEP}{domain}"
    return fitting(f"{WHOLE_STEP}{domain}_{'_'.join(sorted(table.name for table in tables))}")


def _whole(
    step: str, manifest: Mapping[str, Any], unique_ids: Collection[str]
) -> dg.AssetsDefinition:
    """Models that are built whole."""
    assets, checks = _specs(manifest, unique_ids)
    condition = when_inputs_change()

    @dg.multi_asset(
        name=step,
        specs=[spec.replace_attributes(automation_condition=condition) for spec in assets],
        check_specs=checks,
        can_subset=True,
        # Two runs do not build the same tables at once: the second finds what the first has built.
        pool=step,
        op_tags={"dagster/compute_kind": "dbt"},
    )
    @retried
    def build(context: dg.AssetExecutionContext, config: BuildConfig) -> Iterator[Any]:
        url = warehouse_url()
        selected = _selected(context, manifest)
        nodes = models(manifest)
        tables = {unique_id: node_table(nodes[unique_id]) for unique_id in selected.values()}
        inputs = Inputs(url, manifest, tables)
        built = read_built(url)
        if config.rebuild:
            for table in tables.values():
                built.models.pop(table, None)
        decision = decide(manifest, set(tables), built)
        refused = refused_models(url, manifest, decision.versions)
        outputs = {unique_id: output for output, unique_id in selected.items()}
        stale = [unique_id for unique_id in decision.stale if unique_id not in refused]
        for unique_id, version in decision.versions.items():
            if unique_id not in refused:
                built.models[tables[unique_id]] = version
            # First those that are up to date: a model whose parent is built is built too, so none
            # of these comes after one that is.
            if unique_id not in refused and unique_id not in stale:
                found = of_model(tables[unique_id])
                yield _unchanged(outputs[unique_id], url, tables[unique_id], version, found)
        tests = Tests(context, url, manifest, checks, built, stale, refused)
        yield from tests.standing()
        record_building(url, {tables[unique_id]: [""] for unique_id in stale})
        for event in _run(context, url, manifest, [nodes[u]["name"] for u in stale], tests):
            unique_id = selected.get(getattr(event, "output_name", ""), "")
            if not unique_id:
                yield event
                continue
            if inputs.is_disturbed(unique_id):
                continue
            record_built(url, tables[unique_id], {"": decision.versions[unique_id]})
            found = of_model(tables[unique_id])
            version = decision.versions[unique_id]
            yield _output(event, url, tables[unique_id], version, found)
        say_left_out(context, manifest, refused, inputs)

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
        pool=f"{DAILY_STEP}{name}",
        op_tags={"dagster/compute_kind": "dbt"},
    )
    @retried
    def build(context: dg.AssetExecutionContext, config: BuildConfig) -> Iterator[Any]:
        url = warehouse_url()
        table = node_table(models(manifest)[unique_id])
        (output,) = _selected(context, manifest) or (None,)
        days = context.partition_keys
        inputs = Inputs(url, manifest, [unique_id] if output else [], days)
        refused = refused_models(url, manifest, [unique_id], days) if output else {}
        built = read_built(url)
        if output:
            # With the last day alone: there is an event a day, and the UI shows that of the last.
            context.add_asset_metadata(of_model(table), partition_key=days[-1])
        if config.rebuild:
            built.model_partitions.pop(table, None)
        stale = decide_days(manifest, unique_id, raw, days, built) if output else {}
        if refused:
            stale = {}
        elif output and not stale:
            before = version_before(context.instance, dg.AssetKey(list(table.asset_key)), days)
            yield _unchanged(output, url, table, before or built.version(table, days))
        built.model_partitions[table] = built.model_partitions.get(table, {}) | stale
        changed = [unique_id] if stale else ()
        tests = Tests(context, url, manifest, checks, built, changed, refused)
        yield from tests.standing()
        record_building(url, {table: stale} if stale else {})
        for event in _run(context, url, manifest, [name] if stale else [], tests, sorted(stale)):
            if getattr(event, "output_name", None) != output:
                yield event
                continue
            if inputs.is_disturbed(unique_id):
                continue
            record_built(url, table, stale)
            yield _output(event, url, table, read_built(url).version(table, days))
        say_left_out(context, manifest, refused, inputs)

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


def _run(
    context: dg.AssetExecutionContext,
    url: str,
    manifest: Mapping[str, Any],
    names: list[str],
    tests: Tests,
    days: list[str] | None = None,
) -> Iterator[Any]:
    """dbt's events for these models and for the tests that are to be run; none runs nothing."""
    tests.begin()
    if not names and not tests.to_run:
        context.log.info("every selected model is up to date")
        return
    make_schemas(url, (node_table(n) for n in models(manifest).values() if n["name"] in names))
    context.log.info(f"dbt builds {len(names)}: {', '.join(names) or 'only tests'}")
    builds = get_settings().dbt_runs.absolute()
    _clear(builds)
    target = builds / context.run.run_id / uuid4().hex[:8]
    translator, project = TableTranslator(), _project()
    try:
        for event in dbt_build(url, [*names, *tests.to_run], target, days or []):
            for found in DbtCoreCliEventMessage(event, {}).to_default_asset_events(
                manifest, translator, context, target, project
            ):
                if isinstance(found, dg.AssetCheckResult):
                    yield tests.shown(found, target)
                else:
                    yield found
    finally:
        _keep_artifacts(context, target)
    # What dbt compiled, and its log, are of use where it failed.
    shutil.rmtree(target, ignore_errors=True)
    with contextlib.suppress(OSError):  # another step's
        target.parent.rmdir()


def _keep_artifacts(context: dg.AssetExecutionContext, target: Path) -> None:
    """Keep what dbt says of the build. That it could not be kept is told, and fails no build."""
    settings = get_settings()
    manifest = settings.dbt_target / "manifest.json"
    try:
        lake = Lake(settings.lake)
        keep(
            lake, context.run.run_id, context.op_execution_context.op_handle.name, target, manifest
        )
    except (LakeError, OSError) as error:
        context.log.error(f"dbt's results of this build were not kept: {error}")


def _clear(builds: Path) -> None:
    """Remove what builds have left that failed long ago, or were killed."""
    long_ago = time.time() - KEPT.total_seconds()
    with contextlib.suppress(FileNotFoundError):  # removed meanwhile by another step
        for folder in builds.iterdir():
            if folder.stat().st_mtime < long_ago:
                shutil.rmtree(folder, ignore_errors=True)


def _unchanged(
    output: str, url: str, table: Table, version: str, more: Mapping[str, Any] | None = None
) -> dg.Output[Any]:
    """What is yielded for a model that did not have to be built: it has the version it had."""
    return dg.Output(
        None,
        output_name=output,
        metadata={"up to date": True, **_shape(url, table), **(more or {})},
        data_version=dg.DataVersion(version),
    )


def _output(
    event: dg.Output[Any],
    url: str,
    table: Table,
    version: str,
    more: Mapping[str, Any] | None = None,
) -> dg.Output[Any]:
    return dg.Output(
        event.value,
        output_name=event.output_name,
        metadata={**event.metadata, **_shape(url, table), **(more or {})},
        data_version=dg.DataVersion(version),
    )


def _shape(url: str, table: Table) -> dict[str, Any]:
    """Of a table as it is now; that its columns changed is found by these."""
    shape = read_shape(url, table)
    columns = [dg.TableColumn(name, kind) for name, kind in shape.columns]
    return {
        "dagster/row_count": shape.rows,
        "dagster/column_schema": dg.TableSchema(columns=columns),
    }
