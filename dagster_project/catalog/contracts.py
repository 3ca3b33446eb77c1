"""Data contracts: what a domain promises of each table of its data products.

The table's columns, which dbt enforces when it builds the table; how old it may become; and the
expectations that stop what is downstream if they fail. Each is an assertion, to which the results
of checks belong. An assertion is known by the table and the check's name: what the check asks may
change, and its history stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dagster_project.catalog.aspects import schema_metadata, upserts
from dagster_project.catalog.domains import promised
from dagster_project.domain import Domain, duration
from dagster_project.identity import Table, Urns
from dagster_project.quality.suites import Expectation, Severity, Suite

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal
    from dagster_project.catalog.datasets import Dataset

#: What a contract asserts beside checks; no check of a suite can have a name with a hyphen.
SCHEMA, FRESHNESS = "contract-schema", "contract-freshness"


def contract_proposals(
    urns: Urns,
    name: str,
    domain: Domain,
    datasets: Mapping[str, Dataset],
    suites: Iterable[Suite],
) -> Iterator[Proposal]:
    """The contract of every table that the domain promises; `datasets` are all, by URN."""
    critical = {
        suite.table: [e for e in suite.expectations if e.severity is Severity.CRITICAL]
        for suite in suites
    }
    tables = {table for product in domain.data_products for table in promised(name, product)}
    for table in sorted(tables):
        if dataset := datasets.get(urns.table(table)):
            yield from _contract(urns, table, dataset, domain, critical.get(table, []))


def _contract(
    urns: Urns, table: Table, dataset: Dataset, domain: Domain, critical: Iterable[Expectation]
) -> Iterator[Proposal]:
    from datahub.metadata.schema_classes import (
        DataContractPropertiesClass,
        DataContractStateClass,
        DataContractStatusClass,
        DataQualityContractClass,
        FreshnessContractClass,
        SchemaContractClass,
        StatusClass,
    )

    yield from _assertion(urns, table, SCHEMA, _columns(urns, dataset), "dbt")
    yield from _assertion(urns, table, FRESHNESS, _freshness(dataset.urn, domain), "dagster")
    checks = []
    for expectation in critical:
        checks.append(urns.check(table, expectation.check))
        asked = _expectation(urns, dataset.urn, expectation)
        yield from _assertion(urns, table, expectation.check, asked, "great-expectations")
    yield from upserts(
        urns.contract(table),
        DataContractPropertiesClass(
            entity=dataset.urn,
            schema=[SchemaContractClass(assertion=urns.check(table, SCHEMA))],
            freshness=[FreshnessContractClass(assertion=urns.check(table, FRESHNESS))],
            dataQuality=[DataQualityContractClass(assertion=check) for check in checks] or None,
        ),
        DataContractStatusClass(state=DataContractStateClass.ACTIVE),
        StatusClass(removed=False),
    )


def _assertion(
    urns: Urns, table: Table, check: str, info: Any, platform: str
) -> Iterator[Proposal]:
    from datahub.metadata.schema_classes import DataPlatformInstanceClass, StatusClass

    yield from upserts(
        urns.check(table, check),
        info,
        DataPlatformInstanceClass(platform=urns.platform(platform)),
        StatusClass(removed=False),
    )


def _columns(urns: Urns, dataset: Dataset) -> Any:
    from datahub.metadata.schema_classes import (
        AssertionInfoClass,
        AssertionTypeClass,
        SchemaAssertionCompatibilityClass,
        SchemaAssertionInfoClass,
    )

    return AssertionInfoClass(
        type=AssertionTypeClass.DATA_SCHEMA,
        description="It has these columns, of these types.",
        schemaAssertion=SchemaAssertionInfoClass(
            entity=dataset.urn,
            schema=schema_metadata(urns, dataset),
            compatibility=SchemaAssertionCompatibilityClass.EXACT_MATCH,
        ),
        source=_external(),
    )


def _freshness(urn: str, domain: Domain) -> Any:
    from datahub.metadata.schema_classes import (
        AssertionInfoClass,
        AssertionTypeClass,
        CalendarIntervalClass,
        FixedIntervalScheduleClass,
        FreshnessAssertionInfoClass,
        FreshnessAssertionScheduleClass,
        FreshnessAssertionScheduleTypeClass,
        FreshnessAssertionTypeClass,
    )

    return AssertionInfoClass(
        type=AssertionTypeClass.FRESHNESS,
        description=f"It is no older than {domain.freshness}.",
        freshnessAssertion=FreshnessAssertionInfoClass(
            type=FreshnessAssertionTypeClass.DATASET_CHANGE,
            entity=urn,
            schedule=FreshnessAssertionScheduleClass(
                type=FreshnessAssertionScheduleTypeClass.FIXED_INTERVAL,
                fixedInterval=FixedIntervalScheduleClass(
                    unit=CalendarIntervalClass.SECOND,
                    multiple=int(duration(domain.freshness).total_seconds()),
                ),
            ),
        ),
        source=_external(),
    )


def _expectation(urns: Urns, urn: str, expectation: Expectation) -> Any:
    from datahub.metadata.schema_classes import (
        AssertionInfoClass,
        AssertionTypeClass,
        CustomAssertionInfoClass,
    )

    column = expectation.kwargs.get("column")
    return AssertionInfoClass(
        type=AssertionTypeClass.CUSTOM,
        description=expectation.description,
        customAssertion=CustomAssertionInfoClass(
            type="Expectation",
            entity=urn,
            field=urns.column(urn, column) if column else None,
            nativeType=expectation.type,
            nativeParameters={name: str(value) for name, value in expectation.kwargs.items()},
        ),
        source=_external(),
    )


def _external() -> Any:
    from datahub.metadata.schema_classes import AssertionSourceClass, AssertionSourceTypeClass

    return AssertionSourceClass(type=AssertionSourceTypeClass.EXTERNAL)
