"""First looks against the stock expectations, on tables of many kinds: same verdicts and counts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

import great_expectations as gx
from great_expectations.core.expectation_suite import ExpectationSuite
from great_expectations.expectations import core as stock
from great_expectations.expectations.row_conditions import Column

from dagster_project.quality.pushdown import as_configured, first_look

TABLES = {
    "empty": "",
    "one": "(1, 'a', 10, 1.5, '2013-01-01')",
    "nulls": "(NULL, NULL, NULL, NULL, NULL), (NULL, NULL, NULL, NULL, NULL)",
    "sound": ", ".join(
        f"({i}, '{'abc'[i % 3]}', {i * 10}, {i}, '2013-01-0{i}')" for i in range(1, 9)
    ),
    "bad": "(1, 'a', 10, 1.5, '2013-01-01'), (1, 'b', -5, NULL, '2013-01-02'), "
    "(2, 'a', 10, 99, '2013-01-02'), (3, 'zz', NULL, 2, '2013-01-03'), "
    "(NULL, 'b%', 10, 2, NULL), (4, NULL, 30, 7, '2013-01-04'), (1, 'a', 30, 7, '2013-01-04')",
}
SET = ["a", "b", "c"]
CONDITION = {"row_condition": Column("number") > 1}


def expectations() -> list[Any]:
    """One of each kind that is asked for in another way, and of those that are not."""
    return [
        stock.ExpectTableRowCountToBeBetween(min_value=1, max_value=7),
        stock.ExpectTableRowCountToEqual(value=8),
        stock.ExpectColumnValuesToNotBeNull(column="number"),
        stock.ExpectColumnValuesToNotBeNull(column="code", mostly=0.5),
        stock.ExpectColumnValuesToBeNull(column="code"),
        stock.ExpectColumnValuesToBeUnique(column="number"),
        stock.ExpectColumnValuesToBeUnique(column="code", mostly=0.1),
        stock.ExpectColumnValuesToBeUnique(column="number", **CONDITION),
        stock.ExpectColumnValuesToBeBetween(column="amount", min_value=0, max_value=50),
        stock.ExpectColumnValuesToBeBetween(column="amount", min_value=0, mostly=0.8),
        stock.ExpectColumnValuesToBeBetween(column="amount", min_value=20, **CONDITION),
        stock.ExpectColumnValuesToBeInSet(column="code", value_set=SET),
        stock.ExpectColumnValuesToMatchRegex(column="code", regex="^[a-c]%?$"),
        stock.ExpectColumnDistinctValuesToBeInSet(column="code", value_set=SET),
        stock.ExpectColumnDistinctValuesToEqualSet(column="code", value_set=SET),
        stock.ExpectColumnDistinctValuesToContainSet(column="code", value_set=SET),
        stock.ExpectColumnDistinctValuesToBeInSet(column="day", value_set=["2013-01-01"]),
        stock.ExpectColumnUniqueValueCountToBeBetween(column="code", min_value=1, max_value=3),
        stock.ExpectColumnProportionOfUniqueValuesToBeBetween(column="code", min_value=0.5),
        stock.ExpectColumnMeanToBeBetween(column="share", min_value=1, max_value=9),
        stock.ExpectColumnMaxToBeBetween(column="amount", max_value=80),
        stock.ExpectColumnSumToBeBetween(column="amount", min_value=0),
        stock.ExpectColumnMedianToBeBetween(column="share", max_value=5),
        stock.ExpectColumnPairValuesAToBeGreaterThanB(column_A="amount", column_B="share"),
        stock.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A="amount", column_B="share", or_equal=True, ignore_row_if="neither"
        ),
        stock.ExpectColumnPairValuesToBeEqual(
            column_A="amount", column_B="number", ignore_row_if="either_value_is_missing"
        ),
        stock.ExpectCompoundColumnsToBeUnique(column_list=["number", "code"]),
        stock.ExpectCompoundColumnsToBeUnique(
            column_list=["number", "code"], ignore_row_if="any_value_is_missing"
        ),
        stock.ExpectCompoundColumnsToBeUnique(
            column_list=["number", "day"], ignore_row_if="never", **CONDITION
        ),
        stock.ExpectMulticolumnSumToEqual(column_list=["number", "amount"], sum_total=11),
        stock.ExpectSelectColumnValuesToBeUniqueWithinRecord(column_list=["number", "amount"]),
        stock.UnexpectedRowsExpectation(
            unexpected_rows_query="SELECT number FROM {batch} WHERE code LIKE '%b%' AND amount > 0"
        ),
        stock.ExpectColumnToExist(column="code"),
        stock.ExpectColumnToExist(column="nope"),
        stock.ExpectColumnValuesToBeBetween(column="nope", min_value=0),
    ]


@pytest.fixture
def tables(warehouse_url: str) -> str:
    """A warehouse with the tables of TABLES in the schema shop."""
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("CREATE SCHEMA shop")
        for table, rows in TABLES.items():
            connection.execute(
                f"CREATE TABLE shop.{table} "
                "(number bigint, code text, amount bigint, share double precision, day date)"
            )
            if rows:
                connection.execute(f"INSERT INTO shop.{table} VALUES {rows}")
    return warehouse_url


@contextmanager
def statements() -> Iterator[list[str]]:
    """The statements that are executed meanwhile, catalogue look-ups left out."""
    found: list[str] = []

    def note(*arguments: Any) -> None:
        if "pg_catalog" not in arguments[2]:
            found.append(arguments[2])

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def batch_of(url: str, table: str) -> Any:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_postgres(
        "w", connection_string=url.replace("postgresql:", "postgresql+psycopg2:")
    )
    asset = source.add_table_asset("t", table_name=table, schema_name="shop")
    return asset.add_batch_definition_whole_table("all").get_batch()


def found(batch: Any, looks: list[Any]) -> list[tuple[Any, ...]]:
    """Of each expectation, in order: its verdict, and what was counted or observed."""
    for number, look in enumerate(looks):
        look.meta = {**(look.meta or {}), "number": number}
    suite = ExpectationSuite(name="s", expectations=looks)
    results = batch.validate(suite, result_format="BASIC").results
    names = ("element_count", "unexpected_count", "unexpected_percent", "missing_count")
    told = {
        r.expectation_config.meta["number"]: (
            r.success,
            r.result.get("observed_value"),
            # Of no rows at all, a sum is missing where a count is 0.
            *(r.result.get(name) or 0 for name in names),
        )
        for r in results
    }
    return [told[number] for number in range(len(looks))]


@pytest.mark.filterwarnings("ignore:`schema_name` is deprecated")
@pytest.mark.parametrize("table", TABLES)
def test_a_first_look_says_what_the_stock_expectation_says(tables: str, table: str) -> None:
    batch = batch_of(tables, table)
    expected = found(batch, expectations())
    looked = found(batch, [first_look(expectation) for expectation in expectations()])
    for expectation, ours, theirs in zip(expectations(), looked, expected, strict=True):
        assert ours == theirs, expectation
    if table == "bad":
        assert {verdict for verdict, *_ in looked} == {True, False}


@pytest.mark.filterwarnings("ignore:`schema_name` is deprecated")
@pytest.mark.parametrize("table", TABLES)
def test_so_it_does_on_some_of_the_rows(tables: str, table: str) -> None:
    """All of a suite's expectations have the condition that their partition is."""
    batch = batch_of(tables, table)
    condition = Column("amount") > 9

    def within(expectation: Any) -> Any:
        kwargs = {
            k: v for k, v in expectation.configuration.kwargs.items() if k != "condition_parser"
        }
        own = expectation.row_condition
        return type(expectation)(
            **kwargs | {"row_condition": own & condition if own else condition}
        )

    some = [
        within(expectation)
        for expectation in expectations()
        if "row_condition" in type(expectation).__fields__
    ]
    every_row = as_configured(condition)
    looked = found(batch, [first_look(expectation, every_row) for expectation in some])
    for expectation, ours, theirs in zip(some, looked, found(batch, some), strict=True):
        assert ours == theirs, expectation


@pytest.mark.filterwarnings("ignore:`schema_name` is deprecated")
def test_rows_that_are_the_same_and_lack_a_value_are_duplicates(tables: str) -> None:
    """As Great Expectations finds on a data frame; its SQL joins them away."""
    with psycopg.connect(tables) as connection:
        connection.execute("UPDATE shop.bad SET number = 4, code = NULL WHERE amount = 30")
    expectation = stock.ExpectCompoundColumnsToBeUnique(column_list=["number", "code"])
    verdict, _, rows, duplicates, *_ = found(batch_of(tables, "bad"), [first_look(expectation)])[0]
    assert (verdict, rows, duplicates) == (False, 7, 2)


@pytest.mark.filterwarnings("ignore:`schema_name` is deprecated")
def test_a_query_for_unexpected_rows_is_about_the_partition_too(tables: str) -> None:
    batch = batch_of(tables, "bad")
    query = "SELECT number FROM {batch} WHERE amount > 0"
    expectation = stock.UnexpectedRowsExpectation(unexpected_rows_query=query)
    every_row = as_configured(Column("number") >= 4)
    assert found(batch, [first_look(expectation)])[0][1] == 5
    assert found(batch, [first_look(expectation, every_row)])[0][1] == 1


@pytest.mark.filterwarnings("ignore:`schema_name` is deprecated")
def test_expectations_of_all_kinds_take_four_statements(tables: str) -> None:
    batch = batch_of(tables, "sound")
    # A median is a statement of its own, and a condition of single expectations is one. With a
    # column that is not there everything of its wave is asked for one by one.
    apart = (stock.ExpectColumnMedianToBeBetween,)
    asked = [
        expectation
        for expectation in expectations()
        if not isinstance(expectation, apart)
        and expectation.configuration.kwargs.get("column") != "nope"
    ]
    plain = [e for e in asked if not getattr(e, "row_condition", None)]
    assert len(plain) > 27
    for looks, most in ((plain, 4), (asked, 5)):
        with statements() as seen:
            suite = ExpectationSuite(name="s", expectations=[first_look(e) for e in looks])
            batch.validate(suite, result_format="BASIC")
        assert len(seen) <= most, seen
        assert not any("LIMIT" in statement for statement in seen), "rows were fetched"
