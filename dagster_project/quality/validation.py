"""Running a suite on its table with Great Expectations: one validation, all expectations.

Two looks: the first asks for the figures that the verdicts need, in few statements. Only for what
failed a second one fetches the rows to show.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from dagster_project.failures import WarehouseError
from dagster_project.quality.arguments import SOURCE
from dagster_project.quality.asked import Asked, Request, asked_of, in_range
from dagster_project.quality.masking import masked_result, without_values
from dagster_project.quality.outcome import SAMPLE_ROWS, Outcome, Validation
from dagster_project.quality.reading import error_of, key_of, outcome_of, plain
from dagster_project.warehouse.connection import failure, masked


def validate(url: str, request: Request) -> Validation:
    """The outcomes of these checks, in the suite's order; all share one validation.

    Raises WarehouseError if the table cannot be read (TransientWarehouseError if the warehouse
    cannot be reached), DeclarationError if the suite has an expectation that Great Expectations
    does not know.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
    )
    from great_expectations.datasource.fluent.interfaces import TestConnectionError
    from great_expectations.exceptions import GreatExpectationsError
    from sqlalchemy.exc import SQLAlchemyError

    suite = request.suite
    # Without the folders that it makes for documents, which nobody would remove.
    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
    context = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=stores,
            progress_bars={"globally": False},
            analytics_enabled=False,
        ),
    )
    try:
        source = context.data_sources.add_postgres(
            SOURCE, connection_string=url.replace("postgresql://", "postgresql+psycopg2://", 1)
        )
    except TestConnectionError as error:
        raise failure(url, f"validating {suite.table}", error) from None
    try:
        asset = source.add_table_asset(
            "table", table_name=suite.table.name, schema_name=suite.table.schema
        )
        batch = asset.add_batch_definition_whole_table("all").get_batch()
        return _looked(url, request, batch)
    except (GreatExpectationsError, SQLAlchemyError, TestConnectionError) as error:
        if f'relation "{suite.table}" does not exist' in str(error):
            raise WarehouseError(
                f"{suite.table} could not be validated: it is not in the warehouse. Load or build "
                "it, and run its checks again"
            ) from None
        said = without_values(str(error)) if request.personal else str(error)
        raise WarehouseError(f"{suite.table} could not be validated: {masked(said)}") from None


def _looked(url: str, request: Request, batch: Any) -> Validation:
    from great_expectations.core import ExpectationSuiteValidationResult

    from dagster_project.quality.pushdown import as_configured, first_look, second_look

    partitions = request.partitions
    condition = in_range(partitions, partitions.keys) if partitions else None
    asked = list(asked_of(request, condition))
    every_row = as_configured(condition)
    found = _validated(
        batch,
        {a: first_look(a.stock, every_row) for a in asked},
        {"result_format": "BASIC"},
    )
    unmet = [a for a in asked if not found[a].success and not error_of(found[a].exception_info)]
    if unmet:
        partition = [partitions.column] if partitions else []
        shown = list(dict.fromkeys([*partition, *key_of(url, request)]))
        found |= _validated(
            batch,
            {a: second_look(a.stock, every_row, shown) for a in unmet},
            {"result_format": "BASIC", "partial_unexpected_count": SAMPLE_ROWS},
        )
    by_check: dict[str, dict[Asked, Any]] = {}
    for a in asked:
        by_check.setdefault(a.check, {})[a] = found[a]
    outcomes = [outcome_of(url, request, check, results) for check, results in by_check.items()]
    told = [
        result
        for results in by_check.values()
        for result in [r for r in results.values() if not r.success] or list(results.values())[:1]
    ]
    result = ExpectationSuiteValidationResult(
        success=all(outcome.passed for outcome in outcomes),
        results=told,
        suite_name=request.suite.name,
        statistics=_statistics(outcomes),
    )
    return Validation(outcomes, masked_result(result.to_json_dict(), request.personal))


def _statistics(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    passed = sum(outcome.passed for outcome in outcomes)
    return {
        "evaluated_expectations": len(outcomes),
        "successful_expectations": passed,
        "unsuccessful_expectations": len(outcomes) - passed,
        "success_percent": 100 * passed / len(outcomes) if outcomes else None,
    }


def _validated(
    batch: Any, looks: Mapping[Asked, Any], result_format: Mapping[str, Any]
) -> dict[Asked, Any]:
    """One validation of these expectations, each result with the stock one's configuration."""
    from great_expectations.core.expectation_suite import ExpectationSuite

    from dagster_project.quality.pushdown import REASON

    asked = list(looks)
    for number, look in enumerate(looks.values()):
        look.meta["asked"] = number
    suite = ExpectationSuite(name="suite", expectations=list(looks.values()))
    found = {}
    for result in batch.validate(suite, result_format=dict(result_format)).results:
        a = asked[result.expectation_config.meta["asked"]]
        result.expectation_config = a.stock.configuration
        result.result = plain(result.result)
        if reason := (result.result or {}).pop(REASON, ""):
            told = {"raised_exception": True, "exception_message": reason}
            result.exception_info = {**told, "exception_traceback": ""}
        found[a] = result
    return {a: found[a] for a in asked}
