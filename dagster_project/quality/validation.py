"""Running a suite on its table with Great Expectations: one validation, all expectations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dagster_project.failures import DeclarationError, WarehouseError
from dagster_project.quality.suites import Suite
from dagster_project.warehouse.connection import failure, masked


@dataclass(frozen=True)
class Outcome:
    """What came of one expectation."""

    check: str
    passed: bool
    #: Why it could not be evaluated; empty if it could.
    error: str = ""
    observed: Any = None
    unexpected_count: int | None = None
    unexpected_percent: float | None = None
    rows: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def validate(url: str, suite: Suite, checks: Sequence[str]) -> list[Outcome]:
    """The outcomes of these checks of the suite, in its order; all share one validation.

    Raises WarehouseError if the table cannot be read (TransientWarehouseError if the warehouse
    cannot be reached), DeclarationError if the suite has an
    expectation that Great Expectations does not know.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.datasource.fluent.interfaces import TestConnectionError
    from great_expectations.exceptions import GreatExpectationsError
    from sqlalchemy.exc import SQLAlchemyError

    chosen = [e for e in suite.expectations if e.check in checks]
    configurations = [
        expectation.model_dump(mode="json", exclude_none=True) for expectation in chosen
    ]
    expectations = _built(suite, configurations)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    try:
        source = context.data_sources.add_postgres(
            "warehouse", connection_string=url.replace("postgresql://", "postgresql+psycopg2://", 1)
        )
    except TestConnectionError as error:
        raise failure(url, f"validating {suite.table}", error) from None
    try:
        asset = source.add_table_asset(
            "table", table_name=suite.table.name, schema_name=suite.table.schema
        )
        batch = asset.add_batch_definition_whole_table("all").get_batch()
        result = batch.validate(expectations, result_format="BASIC")
    except (GreatExpectationsError, SQLAlchemyError, TestConnectionError) as error:
        raise WarehouseError(
            f"{suite.table} could not be validated: {masked(str(error))}"
        ) from None
    by_check = {r.expectation_config.meta["check"]: r for r in result.results}
    return [_outcome(expectation.check, by_check[expectation.check]) for expectation in chosen]


def _built(suite: Suite, configurations: Sequence[Mapping[str, Any]]) -> Any:
    """The suite as Great Expectations has it, which would leave out what it does not know."""
    from great_expectations.core.expectation_suite import ExpectationSuite
    from great_expectations.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    built = []
    for configuration in configurations:
        try:
            built.append(ExpectationConfiguration(**configuration).to_domain_obj())
        except (GreatExpectationsError, ValueError, TypeError) as error:
            raise DeclarationError(
                f"expectations/{suite.table.domain}/{suite.name}.json: the check "
                f"{configuration['meta']['check']} is not an expectation: {error}"
            ) from None
    return ExpectationSuite(name=suite.name, expectations=built)


def _outcome(check: str, result: Any) -> Outcome:
    found = result.result or {}
    return Outcome(
        check=check,
        passed=bool(result.success),
        error=_error(result.exception_info),
        observed=found.get("observed_value"),
        unexpected_count=found.get("unexpected_count"),
        unexpected_percent=found.get("unexpected_percent"),
        rows=found.get("element_count"),
    )


def _error(info: Mapping[str, Any] | None) -> str:
    """The message of an expectation that could not be evaluated.

    Great Expectations gives it in two shapes: one exception, or one a metric.
    """
    if not info:
        return ""
    shapes = [info] if "raised_exception" in info else list(info.values())
    messages = [s["exception_message"] for s in shapes if s.get("raised_exception")]
    return masked("; ".join(str(message) for message in dict.fromkeys(messages)))
