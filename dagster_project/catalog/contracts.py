"""Data contracts: what a domain promises of each table of its data products.

The table's columns, which dbt enforces when it builds the table; how old it may become; and the
checks that stop what is downstream if they fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from dagster_project.catalog.aspects import upserts
from dagster_project.catalog.assertions import FRESHNESS, Check, promised_tables
from dagster_project.domain import Domain
from dagster_project.identity import Urns
from dagster_project.quality.own_checks import COLUMNS

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal
    from dagster_project.catalog.datasets import Dataset


def contract_proposals(
    urns: Urns,
    name: str,
    domain: Domain,
    datasets: Mapping[str, Dataset],
    checks: Iterable[Check],
) -> Iterator[Proposal]:
    """The contract of every table that the domain promises; `datasets` are all, by URN."""
    from datahub.metadata.schema_classes import (
        DataContractPropertiesClass,
        DataContractStateClass,
        DataContractStatusClass,
        DataQualityContractClass,
        FreshnessContractClass,
        SchemaContractClass,
        StatusClass,
    )

    blocking = [
        (check.asset_key, urns.check(check.asset_key, check.name))
        for check in checks
        if check.blocks
    ]
    for table in promised_tables(name, domain):
        if not (dataset := datasets.get(urns.table(table))):
            continue
        asked = [
            DataQualityContractClass(assertion=urn) for of, urn in blocking if of == table.asset_key
        ]
        yield from upserts(
            urns.contract(table),
            DataContractPropertiesClass(
                entity=dataset.urn,
                schema=[SchemaContractClass(assertion=urns.check(table.asset_key, COLUMNS))],
                freshness=[
                    FreshnessContractClass(assertion=urns.check(table.asset_key, FRESHNESS))
                ],
                dataQuality=asked or None,
            ),
            DataContractStatusClass(state=DataContractStateClass.ACTIVE),
            StatusClass(removed=False),
        )
