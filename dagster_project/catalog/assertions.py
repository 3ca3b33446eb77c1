"""Every check as an assertion: what it asks of which table. How it fared, the runs tell.

An assertion is known by the table and the check's name: what the check asks may change, and its
history stays. It is of DataHub's type CUSTOM, the one that is meant for checks of other systems
(DATASET is deprecated), but for what a data product promises.

What people wrote in a suite or in a test is shown, but for values that may have been taken from
rows of personal data. Of a check of such a column these are texts, and lists of anything; a single
number is a threshold, and stays. SQL that names such a column is left out whole if it quotes a text
or says what something equals.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dagster_project.catalog.aspects import schema_metadata, upserts
from dagster_project.catalog.links import asset_link, check_link
from dagster_project.catalog.operators import Asked, asked_by, standard_parameters
from dagster_project.domain import Domain, domain_names, duration, read_domain
from dagster_project.identity import Table, Urns, raw_table
from dagster_project.ingestion.declaration import read_connections
from dagster_project.ingestion.feed import read_feeds
from dagster_project.quality.masking import personal_columns
from dagster_project.quality.outcome import MASK
from dagster_project.quality.own_checks import (
    COLUMNS,
    DECLARATION,
    DECLARATION_ASKS,
    DRIFT,
    DRIFT_ASKS,
    REJECTS,
    rejects_asks,
)
from dagster_project.quality.suites import Expectation, Severity, Suite
from dagster_project.transformation.tested import tested_model
from dagster_project.transformation.versions import models, node_table

if TYPE_CHECKING:
    from dagster_project.catalog.aspects import Proposal
    from dagster_project.catalog.datasets import Dataset

#: The assertion that a table is as fresh as its domain promises. No asset check says so, but
#: Dagster's freshness; no check of a suite can have a name with a hyphen.
FRESHNESS = "contract-freshness"
#: Arguments of an expectation, or of a test, that name the columns that it is of.
_NAMING = ("column", "column_A", "column_B", "column_list", "column_name", "columns")
#: Those that name others, and no value.
_NO_VALUES = {*_NAMING, "column_set", "to", "field", "of", "ignore_row_if"}
#: A value in SQL that may have been taken from a row; limits, as of `between`, are thresholds.
_VALUE = re.compile(
    r"""['$]                                        # a text
    | ((?<![<>])= | <> | \bdistinct\s+from) \s* \(?-?\d  # what something equals, or does not
    | \b\d+\)? \s* (= | <> | != | is\b)             # the other way round
    | \bin\s*\( \s* \(?-?\d | \barray\s*\[ | \bvalues\s*\(
    """,
    re.IGNORECASE | re.VERBOSE,
)
#: How a test of dbt judges what it finds, if nobody says otherwise.
_JUDGED = {
    "where": None,
    "limit": None,
    "fail_calc": "count(*)",
    "warn_if": "!= 0",
    "error_if": "!= 0",
}


@dataclass(frozen=True, slots=True)
class Check:
    """What a check asks of an asset, most often of a table."""

    asset_key: tuple[str, ...]
    name: str
    description: str
    #: Who asks: great-expectations, dbt or dagster.
    platform: str
    #: What the platform calls such a check.
    kind: str
    #: Whether what is downstream is stopped if it fails.
    blocks: bool
    severity: str
    columns: tuple[str, ...] = ()
    #: What it is asked with, and may be shown.
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sql: str | None = None


def checks_of(name: str, suites: Iterable[Suite], manifest: Mapping[str, Any]) -> Iterator[Check]:
    """Every check of a domain's tables, but for the promises of its contracts."""
    for suite in suites:
        personal = personal_columns(suite)
        for expectation in suite.expectations:
            yield _expectation(suite.table, expectation, personal)
        if suite.table.is_raw:
            yield _own(suite.table, REJECTS, rejects_asks(suite.table))
        if suite.meta.drift:
            yield _own(suite.table, DRIFT, DRIFT_ASKS)
    streams = (stream.name for each in read_connections(name) for stream in each.streams)
    for loaded in (*streams, *(feed.name for feed in read_feeds(name))):
        yield _own(raw_table(name, loaded), DECLARATION, DECLARATION_ASKS)
    yield from _tests(name, manifest)


def assertion_proposals(
    urns: Urns, checks: Iterable[Check], datasets: Container[str], ui: str
) -> Iterator[Proposal]:
    """The assertions of these checks; `datasets` are the URNs of all of the domain."""
    for check in checks:
        # An asset in Python need not be a table of the warehouse.
        asserted = [urns.asset(check.asset_key)]
        if len(check.asset_key) == 2:
            asserted.append(urns.table(Table(*check.asset_key)))
        for urn in asserted:
            if urn in datasets:
                info = _custom(urns, urn, check, ui)
                yield from _assertion(urns, check.asset_key, check.name, info, check.platform)


def promise_proposals(
    urns: Urns, domain: Domain, name: str, datasets: Mapping[str, Dataset], ui: str
) -> Iterator[Proposal]:
    """What a domain promises of its data products' tables: their columns, and how old they get."""
    for table in promised_tables(name, domain):
        if dataset := datasets.get(urns.table(table)):
            pages = check_link(ui, table.asset_key, COLUMNS), asset_link(ui, table.asset_key)
            yield from _assertion(urns, table.asset_key, COLUMNS, _columns(urns, dataset, pages[0]))
            yield from _assertion(
                urns, table.asset_key, FRESHNESS, _freshness(dataset.urn, domain, pages[1])
            )


def promised_tables(name: str, domain: Domain) -> list[Table]:
    """The tables of a domain's data products."""
    return sorted({t for product in domain.data_products for t in product.promised(name)})


def _expectation(table: Table, expectation: Expectation, personal: Collection[str]) -> Check:
    arguments = _shown(expectation.kwargs, personal)
    sql = arguments.pop("unexpected_rows_query", None)
    return Check(
        asset_key=table.asset_key,
        name=expectation.check,
        description=expectation.description,
        platform="great-expectations",
        kind=expectation.type,
        blocks=expectation.severity is Severity.CRITICAL,
        severity=expectation.severity.value,
        columns=_columns_of(expectation.kwargs),
        arguments=arguments,
        sql=sql,
    )


def _own(table: Table, name: str, asks: str) -> Check:
    return Check(table.asset_key, name, asks, "dagster", name, blocks=False, severity="warning")


def _tests(name: str, manifest: Mapping[str, Any]) -> Iterator[Check]:
    """dbt's tests of the domain's models."""
    ours, nodes = models(manifest), {**manifest["nodes"], **manifest["sources"]}
    personal = {
        table: columns
        for domain in domain_names()
        for table, columns in read_domain(domain).personal_data.items()
    }
    for test in manifest["nodes"].values():
        model = tested_model(manifest, test) if test["resource_type"] == "test" else None
        if model not in ours:
            continue
        table = node_table(ours[model])
        if table.domain != name:
            continue
        read = [str(node_table(nodes[u])) for u in test["depends_on"]["nodes"] if u in nodes]
        yield _test(test, table, {column for each in read for column in personal.get(each, ())})


def _test(test: Mapping[str, Any], table: Table, personal: Collection[str]) -> Check:
    generic, config = test.get("test_metadata") or {}, test["config"]
    called = ".".join(filter(None, (generic.get("namespace"), generic.get("name") or test["name"])))
    arguments = {k: v for k, v in (generic.get("kwargs") or {}).items() if k != "model"}
    columns = _columns_of(arguments)
    asked = f"The dbt test {called}" + (f" of {', '.join(columns)}" if columns else "")
    blocks = str(config["severity"]).lower() == "error"
    judged = {k: config[k] for k, usual in _JUDGED.items() if config.get(k) not in (None, usual)}
    return Check(
        asset_key=table.asset_key,
        name=test["name"],
        description=test["description"] or f"{asked}.",
        platform="dbt",
        kind=called if generic else "singular",
        blocks=blocks,
        severity=(Severity.CRITICAL if blocks else Severity.WARNING).value,
        columns=columns,
        arguments=_shown({**arguments, **judged}, personal),
        sql=None if generic else _without_values(test["raw_code"].strip(), personal),
    )


def _columns_of(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(each) for name in _NAMING for each in _listed(arguments.get(name)))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _shown(arguments: Mapping[str, Any], personal: Collection[str]) -> dict[str, Any]:
    """The arguments, without values where they are compared with personal data."""
    is_personal = bool(set(_columns_of(arguments)) & set(personal))
    return {name: _masked(name, arguments[name], is_personal, personal) for name in arguments}


def _masked(name: str, value: Any, is_personal: bool, personal: Collection[str]) -> Any:
    if name in _NO_VALUES:
        return value
    if is_personal:
        return value if isinstance(value, bool | int | float | None) else MASK
    if isinstance(value, list | tuple):
        return [_masked("", each, is_personal, personal) for each in value]
    if isinstance(value, Mapping):
        return {key: _masked(key, each, is_personal, personal) for key, each in value.items()}
    return _without_values(value, personal) if isinstance(value, str) else value


def _without_values(sql: str, personal: Collection[str]) -> str:
    """SQL as it is, unless it names personal data and holds a value that may be some."""
    named = any(re.search(rf"\b{re.escape(each)}\b", sql, re.IGNORECASE) for each in personal)
    return MASK if named and _VALUE.search(sql) else sql


def _assertion(
    urns: Urns, asset_key: tuple[str, ...], name: str, info: Any, platform: str = "dagster"
) -> Iterator[Proposal]:
    from datahub.metadata.schema_classes import DataPlatformInstanceClass, StatusClass

    yield from upserts(
        urns.check(asset_key, name),
        info,
        DataPlatformInstanceClass(platform=urns.platform(platform)),
        StatusClass(removed=False),
    )


def _custom(urns: Urns, urn: str, check: Check, ui: str) -> Any:
    from datahub.metadata.schema_classes import (
        AssertionInfoClass,
        AssertionTypeClass,
        CustomAssertionInfoClass,
    )

    asked = asked_by(check.kind, check.arguments, bool(check.columns))
    if check.platform == "dagster":
        # What these look at, or what somebody wrote in Python, no standard word says.
        asked = Asked("UNKNOWN")
    columns = [urns.column(urn, column) for column in check.columns]
    return AssertionInfoClass(
        type=AssertionTypeClass.CUSTOM,
        description=check.description,
        customProperties={"severity": check.severity, "blocking": str(check.blocks).lower()},
        externalUrl=check_link(ui, check.asset_key, check.name),
        customAssertion=CustomAssertionInfoClass(
            type=_TYPES[check.platform],
            entity=urn,
            # The first, for what does not know of several.
            field=columns[0] if columns else None,
            fields=columns or None,
            scope=asked.scope,
            aggregation=asked.aggregation,
            operator=asked.operator,
            parameters=standard_parameters(asked),
            nativeType=check.kind,
            nativeParameters={name: str(value) for name, value in check.arguments.items()},
            logic=check.sql,
        ),
        source=_external(),
    )


#: What a check is called that a platform makes.
_TYPES = {"great-expectations": "Expectation", "dbt": "dbt test", "dagster": "Asset check"}


def _columns(urns: Urns, dataset: Dataset, link: str) -> Any:
    from datahub.metadata.schema_classes import (
        AssertionInfoClass,
        AssertionTypeClass,
        SchemaAssertionCompatibilityClass,
        SchemaAssertionInfoClass,
    )

    return AssertionInfoClass(
        type=AssertionTypeClass.DATA_SCHEMA,
        description="It has these columns, of these types: dbt builds it in no other way, and the "
        "check tells of the version in which they change.",
        externalUrl=link,
        schemaAssertion=SchemaAssertionInfoClass(
            entity=dataset.urn,
            schema=schema_metadata(urns, dataset),
            compatibility=SchemaAssertionCompatibilityClass.EXACT_MATCH,
        ),
        source=_external(),
    )


def _freshness(urn: str, domain: Domain, link: str) -> Any:
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
        externalUrl=link,
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


def _external() -> Any:
    from datahub.metadata.schema_classes import AssertionSourceClass, AssertionSourceTypeClass

    return AssertionSourceClass(type=AssertionSourceTypeClass.EXTERNAL)
