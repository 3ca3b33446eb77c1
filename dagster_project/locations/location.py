"""A domain's code location: what its folder defines, under the policy that holds for all."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import dagster as dg
from dagster_shared.record import replace

from dagster_project.catalog.links import dataset_link
from dagster_project.catalog.metadata import assets
from dagster_project.components.partitions import tables_of_a_day
from dagster_project.domain import domain_folder, duration, read_domain
from dagster_project.ingestion.feed import read_feeds
from dagster_project.orchestration.alerts import alert_sensor
from dagster_project.orchestration.conditions import automation
from dagster_project.orchestration.execution import forking_executor
from dagster_project.orchestration.landing import landing_sensor
from dagster_project.settings import PACKAGE, PROJECT, Executor, get_settings


def job_name(domain: str) -> str:
    """The job that carries the domain's data the whole way."""
    return f"{domain}_pipeline"


@lru_cache
def domain_definitions(name: str) -> dg.Definitions:
    """Everything the domain's folder defines, owned by the domain, with the job that runs it all.

    Touches no network and no database. Raises DeclarationError for a mistake in the domain's files.
    """
    domain_folder(name)
    # A tree of the domain's own folder: what is broken in another domain's does not matter here,
    # and nobody reads all of them to load one.
    folder = import_module(f"{PACKAGE.name}.defs.{name}")
    tree = dg.ComponentTree(defs_module=folder, project_root=PROJECT)
    found = owned_by(name, tree.build_defs_at_path(tree.defs_module_path))
    job = dg.define_asset_job(
        job_name(name),
        selection=dg.AssetSelection.all(),
        description=f"All of {name}: from its sources to its data products.",
    )
    promised = _promised(name)
    # One step for all: a check that only warns is not worth one a table.
    checks = dg.build_column_schema_change_checks(assets=promised) if promised else []
    policy = dg.Definitions(
        asset_checks=checks,
        jobs=[job],
        sensors=[automation(name), alert_sensor(name, promised), *_landing_sensors(name)],
        executor=_executor(),
    )
    return dg.Definitions.merge(found, policy)


def _executor() -> dg.ExecutorDefinition:
    """What this location's settings choose."""
    chosen: dg.ExecutorDefinition = forking_executor
    if get_settings().executor is Executor.K8S_JOB:
        # The client of Kubernetes is loaded where there is a cluster, and takes a second there.
        from dagster_project.orchestration.step_pods import step_pods

        chosen = step_pods
    return chosen


def _landing_sensors(domain: str) -> list[dg.SensorDefinition]:
    """One a feed: it runs the raw table, and the models that are built by its days."""
    return [
        landing_sensor(
            domain,
            feed,
            [dg.AssetKey(list(table.asset_key)) for table in tables_of_a_day(domain, feed)],
        )
        for feed in read_feeds(domain)
    ]


def _promised(domain: str) -> list[dg.AssetKey]:
    """The tables of the domain's data products."""
    return [
        dg.AssetKey(list(table.asset_key))
        for product in read_domain(domain).data_products
        for table in product.promised(domain)
    ]


def owned_by(name: str, definitions: dg.Definitions) -> dg.Definitions:
    """The definitions with owner, group and source code on every asset of the domain.

    The tables of its data products have its freshness, too. What a file declares has a link to its
    page in DataHub, where there is one.
    """
    domain = read_domain(name)
    fresh = dg.FreshnessPolicy.time_window(fail_window=duration(domain.freshness))
    promised = set(_promised(name))

    datahub = get_settings().datahub_url
    datasets = assets(get_settings()).datasets if datahub else {}

    def own(spec: dg.AssetSpec) -> dg.AssetSpec:
        urn = datasets.get(tuple(spec.key.path))
        link = (
            {"DataHub": dg.MetadataValue.url(dataset_link(datahub, urn))} if datahub and urn else {}
        )
        return spec.replace_attributes(
            metadata={**spec.metadata, **link},
            owners=spec.owners or [domain.owner],
            group_name=name,
            kinds=spec.kinds or {"python"},
            freshness_policy=fresh if spec.key in promised else spec.freshness_policy,
            description=spec.description or f"{spec.key.to_user_string()}, of {name}.",
        )

    linked = replace(definitions, assets=[_linked(asset) for asset in definitions.assets or ()])
    return linked.map_resolved_asset_specs(func=own)


def _linked(asset: Any) -> Any:
    """With a link to its function, if it is written in Python: components link to their files."""
    if not isinstance(asset, dg.AssetsDefinition) or any(
        "dagster/code_references" in metadata for metadata in asset.metadata_by_key.values()
    ):
        return asset
    return dg.with_source_code_references([asset])[0]
