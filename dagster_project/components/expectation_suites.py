"""The component of a domain's expectations: one asset check each, one op a table."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context`.

from collections.abc import Iterator
from typing import Any, Self

import dagster as dg

from dagster_project.components.folder import domain_of
from dagster_project.declarations import Declared
from dagster_project.failures import DeclarationError
from dagster_project.quality.server import validate_here_or_there
from dagster_project.quality.suites import Expectation, Severity, Suite, read_suites
from dagster_project.quality.validation import Outcome
from dagster_project.settings import EXPECTATIONS, warehouse_url

_SEVERITY = {
    Severity.CRITICAL: dg.AssetCheckSeverity.ERROR,
    Severity.WARNING: dg.AssetCheckSeverity.WARN,
    Severity.INFO: dg.AssetCheckSeverity.WARN,
}


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
        return dg.Definitions(asset_checks=[suite_checks(suite) for suite in suites])


def _spec(suite: Suite, expectation: Expectation) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        name=expectation.check,
        asset=dg.AssetKey(list(suite.table.asset_key)),
        description=expectation.description,
        blocking=expectation.severity is Severity.CRITICAL,
        metadata={"severity": expectation.severity.value, "expectation": expectation.type},
    )


def suite_checks(suite: Suite) -> dg.AssetChecksDefinition:
    """The asset checks of a table, one op for all of them."""
    expectations = {expectation.check: expectation for expectation in suite.expectations}

    @dg.multi_asset_check(
        name=f"expect_{suite.table.schema}_{suite.table.name}",
        specs=[_spec(suite, expectation) for expectation in suite.expectations],
        can_subset=True,
        op_tags={"dagster/compute_kind": "great_expectations"},
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        chosen = [key.name for key in context.selected_asset_check_keys]
        for outcome in validate_here_or_there(warehouse_url(), suite, chosen):
            yield _result(suite, expectations[outcome.check], outcome)

    return checks


def _result(suite: Suite, expectation: Expectation, outcome: Outcome) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {"severity": expectation.severity.value}
    if outcome.observed is not None:
        metadata["observed value"] = dg.MetadataValue.text(str(outcome.observed))
    if outcome.unexpected_count is not None:
        metadata["unexpected rows"] = outcome.unexpected_count
    if outcome.unexpected_percent is not None:
        metadata["unexpected %"] = round(outcome.unexpected_percent, 3)
    if outcome.rows is not None:
        metadata["rows"] = outcome.rows
    if outcome.error:
        metadata["could not be evaluated"] = outcome.error
    return dg.AssetCheckResult(
        asset_key=dg.AssetKey(list(suite.table.asset_key)),
        check_name=expectation.check,
        passed=outcome.passed,
        severity=_SEVERITY[expectation.severity],
        description=f"could not be evaluated: {outcome.error}" if outcome.error else None,
        metadata=metadata,
    )
