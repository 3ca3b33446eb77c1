"""Domains as DataHub has them, with their data products and the source systems that they read."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING

from dagster_project.catalog.aspects import PERSONAL_DATA, owned, upserts
from dagster_project.domain import DataProduct, Domain
from dagster_project.identity import Urns
from dagster_project.ingestion.declaration import Connection, identity

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal


def tag_proposals(urns: Urns) -> Iterator[Proposal]:
    """The tags that datasets and columns are given."""
    from datahub.metadata.schema_classes import TagPropertiesClass

    yield from upserts(
        urns.tag(PERSONAL_DATA),
        TagPropertiesClass(
            name="personal data",
            description="Holds personal data, as the domain that owns it says in its domain.yaml. "
            "Values are masked wherever the platform shows them.",
        ),
    )


def domain_proposals(
    urns: Urns, name: str, domain: Domain, datasets: Container[str]
) -> Iterator[Proposal]:
    """A domain, with its purpose and its owner, and its data products.

    `datasets` are the URNs of all of the domain; a product's table that is none is left out.
    """
    from datahub.metadata.schema_classes import DomainPropertiesClass

    owner, urn = urns.owner(domain.owner), urns.domain(name)
    yield from upserts(urn, DomainPropertiesClass(name=name, description=domain.purpose))
    yield from owned(urn, owner)
    for product in domain.data_products:
        yield from _product(urns, name, product, owner, datasets)


def _product(
    urns: Urns, domain: str, product: DataProduct, owner: str, datasets: Container[str]
) -> Iterator[Proposal]:
    """Added to: assets of other environments, and what people have put into it, stay there."""
    from datahub.metadata.schema_classes import DomainsClass, StatusClass
    from datahub.specific.dataproduct import DataProductPatchBuilder

    urn = urns.product(domain, product.name)
    patch = DataProductPatchBuilder(urn).set_name(product.name).set_description(product.description)
    for table in product.promised(domain):
        if (asset := urns.table(table)) in datasets:
            patch.add_asset(asset, output_port=True)
    yield from patch.build()
    yield from upserts(urn, DomainsClass(domains=[urns.domain(domain)]), StatusClass(removed=False))
    yield from owned(urn, owner)


def source_proposals(urns: Urns, domain: str, connection: Connection) -> Iterator[Proposal]:
    """The source system that a connection reads."""
    from datahub.metadata.schema_classes import DataPlatformInstancePropertiesClass

    stream = identity(domain, connection, connection.streams[0])
    told = DataPlatformInstancePropertiesClass(name=stream.source, description=connection.source)
    yield from upserts(urns.source(stream), told)
