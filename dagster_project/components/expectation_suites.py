"""The component of a domain's expectations: one asset check each, one op a table."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context`.

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from dagster_project.components.drift_check import drift_check, drift_result
from dagster_project.components.folder import domain_of
from dagster_project.components.loading import rejects_check, rejects_result
from dagster_project.components.partitions import PartitionedTable, partitioned_tables
from dagster_project.declarations import Declared
from dagster_project.failures import DeclarationError, LakeError
from dagster_project.lake.store import Lake
from dagster_project.orchestration.pools import WAREHOUSE
from dagster_project.orchestration.retries import retried
from dagster_project.quality.asked import Request
from dagster_project.quality.masking import personal_columns
from dagster_project.quality.outcome import Outcome, Partitions, Validation
from dagster_project.quality.own_checks import DRIFT, REJECTS
from dagster_project.quality.quarantine import quarantine
from dagster_project.quality.results import docs_link, keep
from dagster_project.quality.server import validate_here_or_there
from dagster_project.quality.standing import Failure, partitions_known, record, versions_held
from dagster_project.quality.suites import Expectation, Severity, Suite, read_suites
from dagster_project.settings import EXPECTATIONS, get_settings, warehouse_url
from dagster_project.warehouse.rejects import rejects_share

_SEVERITY = {
    Severity.CRITICAL: dg.AssetCheckSeverity.ERROR,
    Severity.WARNING: dg.AssetCheckSeverity.WARN,
    Severity.INFO: dg.AssetCheckSeverity.WARN,
}
#: Partitions that the metadata lists at most.
_SHOWN = 50


class ExpectationSuitesDeclaration(Declared):
    """A domain's suites, which lie in expectations/<domain>/."""


class ExpectationSuites(dg.Component):
    """Great Expectations suites as asset checks; critical ones block what is downstream."""

    @classmethod
    def get_model_cls(cls) -> type[ExpectationSuitesDeclaration]:
        return ExpectationSuitesDeclaration

    @classmethod
    def load(cls, attributes: Any, context: dg.ComponentLoadContext) -> Self:
        return cls()

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        domain = domain_of(context.path)
        suites = read_suites(domain)
        if not suites:
            raise DeclarationError(f"{EXPECTATIONS / domain} holds no suite: {context.path}")
        partitioned = partitioned_tables(domain)
        return dg.Definitions(
            asset_checks=[
                suite_checks(suite, partitioned.get(suite.table), personal_columns(suite))
                for suite in suites
            ]
        )


def _spec(suite: Suite, expectation: Expectation) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        name=expectation.check,
        asset=dg.AssetKey(list(suite.table.asset_key)),
        description=expectation.description,
        blocking=expectation.severity is Severity.CRITICAL,
        metadata={"severity": expectation.severity.value, "expectation": expectation.type},
    )


def suite_checks(
    suite: Suite, partitioned: PartitionedTable | None = None, personal: Sequence[str] = ()
) -> dg.AssetChecksDefinition:
    """The asset checks of a table, one op for all of them.

    On a partitioned table those of the run's partitions are validated. The checks themselves have
    no partitions: a check of Dagster's that has is an event a partition, ten milliseconds of
    processor time each, a minute for the checks of a year of days. What fails is kept by partition
    in the warehouse instead, and a check passes if none of the table's partitions stands failed.
    """
    expectations = {expectation.check: expectation for expectation in suite.expectations}

    @dg.multi_asset_check(
        name=f"expect_{suite.table.schema}_{suite.table.name}",
        specs=[
            *(_spec(suite, expectation) for expectation in suite.expectations),
            *([rejects_check(suite.table)] if suite.table.is_raw else []),
            *([drift_check(suite.table)] if suite.meta.drift else []),
        ],
        can_subset=True,
        pool=WAREHOUSE,
        op_tags={"dagster/compute_kind": "great_expectations"},
    )
    @retried
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        url = warehouse_url()
        chosen = {key.name for key in context.selected_asset_check_keys}
        partitions = _partitions(context.run.tags, partitioned, url) if partitioned else None
        if asked := [check for check in expectations if check in chosen]:
            yield from _validated(context, url, asked, partitions)
        if REJECTS in chosen:
            # After rows were set aside.
            yield rejects_result(suite.table, rejects_share(url, suite.table))
        if DRIFT in chosen and suite.meta.drift and (partitions or not partitioned):
            drift = suite.meta.drift
            yield drift_result(context, url, suite.table, drift, partitions, personal)

    def _validated(
        context: dg.AssetCheckExecutionContext,
        url: str,
        asked: Sequence[str],
        partitions: Partitions | None,
    ) -> Iterator[dg.AssetCheckResult]:
        run_id = context.run.run_id
        request = Request(suite, asked, partitions, personal)
        versions = versions_held(url, suite.table)[suite.table]
        try:
            validation = validate_here_or_there(url, request)
            first = validation.outcomes
            refused = _quarantined(url, suite, expectations, first, partitions, run_id)
            if refused:
                # Of the rows that are left, whether this run set them aside or another did
                # meanwhile. What was refused is told as it was found.
                versions = versions_held(url, suite.table)[suite.table]
                validation = validate_here_or_there(url, request)
        except Exception as error:
            # What nobody could look at is not known to be sound.
            unknown = [
                Outcome(check, False, error=str(error), failed={"": None}) for check in asked
            ]
            record(url, suite.table, unknown, expectations, partitions, versions, run_id)
            raise
        found = {outcome.check: outcome for outcome in first}
        outcomes = [
            replace(
                found[outcome.check],
                passed=outcome.passed,
                failed=outcome.failed,
                error=outcome.error,
            )
            if outcome.check in refused
            else outcome
            for outcome in validation.outcomes
        ]
        standing = record(url, suite.table, outcomes, expectations, partitions, versions, run_id)
        link = _kept(context, suite, partitions, validation)
        for outcome in outcomes:
            told = {"full result": link}
            if outcome.check in refused:
                told["quarantined rows"] = dg.MetadataValue.int(refused[outcome.check])
            failures = standing.get(outcome.check, [])
            expectation = expectations[outcome.check]
            yield _result(suite, expectation, outcome, partitions, failures, told)

    return checks


def _quarantined(
    url: str,
    suite: Suite,
    expectations: Mapping[str, Expectation],
    outcomes: Sequence[Outcome],
    partitions: Partitions | None,
    run_id: str,
) -> dict[str, int]:
    """Rows set aside, by the check that refused them; then what is left meets it."""
    conditions = {
        outcome.check: (outcome.condition, expectations[outcome.check].description)
        for outcome in outcomes
        if not outcome.passed and outcome.condition and expectations[outcome.check].meta.quarantine
    }
    if not conditions:
        return {}
    counted = {outcome.check: outcome.unexpected_count or 0 for outcome in outcomes}
    return quarantine(url, suite.table, conditions, partitions, run_id, counted)


def _kept(
    context: dg.AssetCheckExecutionContext,
    suite: Suite,
    partitions: Partitions | None,
    validation: Validation,
) -> dg.MetadataValue[Any]:
    """A link to the full result. That it could not be kept is told, and fails no sound check."""
    settings = get_settings()
    try:
        lake, run_id = Lake(settings.lake), context.run.run_id
        key = keep(lake, suite.table, run_id, partitions, validation.result)
    except LakeError as error:
        context.log.error(f"the full result of {suite.table} was not kept: {error}")
        return dg.MetadataValue.text(f"not kept: {error}")
    return dg.MetadataValue.url(docs_link(settings, key))


def _partitions(
    tags: Mapping[str, str], partitioned: PartitionedTable, url: str
) -> Partitions | None:
    """The run's partitions; in a run of none, those that the table has; None if it has none.

    It has those, too, of which the ledger or a verdict knows and no row is left, and those that
    were loaded before they were left out of the declaration.
    """
    single = tags.get(PARTITION_NAME_TAG)
    first = tags.get(ASSET_PARTITION_RANGE_START_TAG, single)
    last = tags.get(ASSET_PARTITION_RANGE_END_TAG, single)
    if first and last:
        keys = partitioned.definition.get_partition_keys_in_range(dg.PartitionKeyRange(first, last))
    else:
        keys = sorted(partitions_known(url, partitioned.table).union(partitioned.held(url)))
    return Partitions(partitioned.column, tuple(keys)) if keys else None


def _result(
    suite: Suite,
    expectation: Expectation,
    outcome: Outcome,
    partitions: Partitions | None,
    standing: Sequence[Failure],
    told: Mapping[str, dg.MetadataValue[Any]],
) -> dg.AssetCheckResult:
    # What failed earlier, in other partitions than this run's, is shown, and stops nothing here.
    elsewhere = [failure for failure in standing if failure.partition not in outcome.failed]
    severity = _SEVERITY[expectation.severity]
    return dg.AssetCheckResult(
        asset_key=dg.AssetKey(list(suite.table.asset_key)),
        check_name=expectation.check,
        passed=outcome.passed and not elsewhere,
        severity=dg.AssetCheckSeverity.WARN if outcome.passed and elsewhere else severity,
        description=_description(outcome, partitions, elsewhere),
        metadata={**_metadata(expectation, outcome, partitions, standing), **told},
    )


def _description(
    outcome: Outcome, partitions: Partitions | None, elsewhere: Sequence[Failure]
) -> str | None:
    if outcome.error:
        return f"could not be evaluated: {outcome.error}"
    if outcome.passed and elsewhere:
        days = ", ".join(failure.partition for failure in elsewhere[:5])
        more = f" and {len(elsewhere) - 5} more" if len(elsewhere) > 5 else ""
        return f"{partitions} passes; what stands failed are {days}{more}"
    return None


def _metadata(
    expectation: Expectation,
    outcome: Outcome,
    partitions: Partitions | None,
    standing: Sequence[Failure],
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"severity": expectation.severity.value}
    if partitions:
        metadata["partitions"] = str(partitions)
    if outcome.observed is not None:
        metadata["observed value"] = str(outcome.observed)
    if outcome.unexpected_count is not None:
        metadata["unexpected rows"] = outcome.unexpected_count
    if outcome.unexpected_percent is not None:
        metadata["unexpected %"] = round(outcome.unexpected_percent, 3)
    if outcome.rows is not None:
        metadata["rows"] = outcome.rows
    if outcome.error:
        metadata["could not be evaluated"] = outcome.error
    if standing:
        metadata["fails since"] = dg.MetadataValue.timestamp(min(f.since for f in standing))
        metadata["fails since run"] = dg.MetadataValue.dagster_run(
            min(standing, key=lambda failure: failure.since).run_id
        )
    if partitions and standing:
        metadata["failing partitions"] = _table(
            [
                {"partition": f.partition, "unexpected rows": f.unexpected, "since": f.since}
                for f in standing[:_SHOWN]
            ]
        )
    if outcome.sample:
        metadata["sample"] = _table(outcome.sample)
    if outcome.query:
        metadata["query"] = dg.MetadataValue.md(f"```sql\n{outcome.query}\n```")
    return metadata


def _table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows as a table of text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return dg.MetadataValue.table(
        records=[dg.TableRecord({name: _shown(row.get(name)) for name in names}) for row in rows],
        schema=dg.TableSchema([dg.TableColumn(name) for name in names]),
    )


def _shown(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
