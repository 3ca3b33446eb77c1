"""What is asked of Great Expectations: expectations on a table, or on partitions of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dagster_project.failures import DeclarationError
from dagster_project.quality.outcome import Partitions
from dagster_project.quality.suites import Suite


@dataclass(frozen=True, slots=True)
class Request:
    """What to validate: these checks of a suite, on the whole table or on some partitions."""

    suite: Suite
    checks: Sequence[str]
    partitions: Partitions | None = None
    #: Columns whose values are never shown.
    personal: Collection[str] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """An expectation of Great Expectations, for a check; for one partition or for all."""

    check: str
    stock: Any
    partition: str = ""


def asked_of(request: Request, condition: Any) -> Iterator[Asked]:
    """The suite's expectations; what is about a partition as a whole, one a partition."""
    partitions = request.partitions
    for expectation in request.suite.expectations:
        if expectation.check not in request.checks:
            continue
        stock = _built(request.suite, expectation.model_dump(mode="json", exclude_none=True))
        if not partitions or "row_condition" not in type(stock).__fields__:
            yield Asked(expectation.check, stock)
        elif is_about_rows(stock) or len(partitions.keys) == 1:
            yield Asked(expectation.check, _within(stock, condition))
        else:
            for key in partitions.keys:
                within = _within(stock, in_range(partitions, [key]))
                yield Asked(expectation.check, within, key)


def _built(suite: Suite, configuration: Mapping[str, Any]) -> Any:
    """The expectation as Great Expectations has it. Raises DeclarationError if it does not."""
    from great_expectations.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    try:
        return ExpectationConfiguration(**configuration).to_domain_obj()
    except (GreatExpectationsError, ValueError, TypeError) as error:
        raise DeclarationError(
            f"expectations/{suite.table.domain}/{suite.name}.json: the check "
            f"{configuration['meta']['check']} is not an expectation: {error}"
        ) from None


def is_about_rows(stock: Any) -> bool:
    """Whether each row by itself, or with others of its value, meets it or does not."""
    from great_expectations.expectations.expectation import (
        ColumnMapExpectation,
        ColumnPairMapExpectation,
        MulticolumnMapExpectation,
    )

    return isinstance(
        stock, (ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)
    )


def in_range(partitions: Partitions, keys: Sequence[str]) -> Any:
    """The rows of these partitions, as a range that an index serves."""
    from great_expectations.expectations.row_conditions import Column

    column = Column(partitions.column)
    return (column >= keys[0]) & (column <= keys[-1])


def _within(stock: Any, condition: Any) -> Any:
    """The expectation on the rows of a condition, beside its own if it has one."""
    kept = {k: v for k, v in stock.configuration.kwargs.items() if k != "condition_parser"}
    own = stock.row_condition
    return type(stock)(
        **kept | {"row_condition": own & condition if own else condition},
        meta=stock.meta,
        description=stock.description,
        severity=stock.severity,
    )
