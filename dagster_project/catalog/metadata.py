"""All that can be said before anything has run: every domain as its files declare it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from dagster_project.catalog.aspects import dataset_proposals
from dagster_project.catalog.column_lineage import column_lineage
from dagster_project.catalog.contracts import contract_proposals
from dagster_project.catalog.datasets import (
    Dataset,
    Models,
    feed_datasets,
    model_datasets,
    stream_datasets,
)
from dagster_project.catalog.domains import domain_proposals, source_proposals, tag_proposals
from dagster_project.catalog.jobs import job_proposals
from dagster_project.domain import domain_names, read_domain
from dagster_project.identity import Urns
from dagster_project.ingestion.declaration import read_connections
from dagster_project.ingestion.feed import read_feeds
from dagster_project.quality.suites import read_suites
from dagster_project.settings import Environment, Settings
from dagster_project.transformation.compiled import read_compiled
from dagster_project.transformation.project import read_manifest
from dagster_project.warehouse.embedded import WAREHOUSE

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal

#: DataHub's words for the environments.
FABRICS = {
    Environment.LOCAL: "DEV",
    Environment.STAGING: "STG",
    Environment.PRODUCTION: "PROD",
}


def urns_of(settings: Settings) -> Urns:
    """DataHub's names in this environment."""
    database = WAREHOUSE
    if settings.warehouse_url:
        database = unquote(urlsplit(settings.warehouse_url.get_secret_value()).path.lstrip("/"))
    return Urns(FABRICS[settings.env], database, settings.lake)


def static_metadata(
    settings: Settings, say: Callable[[str], None] = lambda text: None
) -> Iterator[Proposal]:
    """Every domain, dataset, data product and contract: what they are before anything has run.

    Raises DeclarationError for a mistake in the domains' files or in the dbt project; `say` hears
    of models whose columns cannot be traced.
    """
    urns = urns_of(settings)
    manifest, compiled = read_manifest(settings), read_compiled(settings)
    dbt = Models(manifest, compiled, column_lineage(manifest, compiled, say))
    yield from tag_proposals(urns)
    for name in domain_names():
        yield from of_domain(urns, name, dbt, settings.ui)


def of_domain(urns: Urns, name: str, dbt: Models, ui: str) -> Iterator[Proposal]:
    """What is said of one domain; `ui` is where Dagster's UI answers."""
    domain = read_domain(name)
    yield from domain_proposals(urns, name, domain)
    for connection in read_connections(name):
        yield from source_proposals(urns, name, connection)
    found = list(datasets_of(urns, name, dbt))
    for dataset in found:
        yield from dataset_proposals(urns, dataset, urns.owner(domain.owner))
    yield from job_proposals(urns, name, domain, found, ui)
    by_urn = {dataset.urn: dataset for dataset in found}
    yield from contract_proposals(urns, name, domain, by_urn, read_suites(name))


def datasets_of(urns: Urns, name: str, dbt: Models) -> Iterator[Dataset]:
    """A domain's datasets, from its sources to its marts."""
    domain = read_domain(name)
    for connection in read_connections(name):
        for stream in connection.streams:
            yield from stream_datasets(urns, name, domain, connection, stream)
    for feed in read_feeds(name):
        yield from feed_datasets(urns, name, domain, feed)
    yield from model_datasets(urns, name, domain, dbt)
