"""What an expectation would fail of at night is found by day, with file and line.

Great Expectations is imported here once; what each fault of `FAULTY` gives is one look.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dagster_project.identity import Table
from dagster_project.quality.lint import Columns, lint
from dagster_project.quality.suites import open_suite

ORDERS = Table("shop_raw", "orders")
TABLES: dict[Table, Columns] = {
    ORDERS: {
        "id": "bigint",
        "status": "text",
        "placed_at": "timestamptz",
        "total": "numeric",
        "at_the_till": "timestamp without time zone",
        "Odd name%": "jsonb",
    },
    Table("shop", "fct_orders"): {"id": "bigint", "status": "text"},
    Table("shop_staging", "stg_orders"): None,
    Table("shop_raw", "undeclared"): None,
}
#: By check: the expectation, where it is at fault, and what is said.
FAULTY: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "no_such_type": (
        "expect_column_values_to_be_betwen",
        {"column": "id"},
        "type",
        "did you mean expect_column_values_to_be_between",
    ),
    "unknown_argument": (
        "expect_column_values_to_not_be_null",
        {"column": "id", "mostli": 0.9},
        "kwargs.mostli",
        "unknown argument, did you mean mostly?",
    ),
    "missing_argument": (
        "expect_column_values_to_not_be_null",
        {"mostly": 0.9},
        "kwargs.column",
        "the argument column is required, but not there",
    ),
    "argument_out_of_range": (
        "expect_column_values_to_not_be_null",
        {"column": "id", "mostly": 90},
        "kwargs.mostly",
        "less than or equal to 1.0",
    ),
    "no_bound": (
        "expect_column_values_to_be_between",
        {"column": "id"},
        "kwargs",
        "min_value and max_value cannot both be None",
    ),
    "no_date": (
        "expect_column_values_to_be_between",
        {"column": "placed_at", "min_value": "2013-99-99"},
        "kwargs.min_value",
        "invalid date format",
    ),
    "upside_down": (
        "expect_column_values_to_be_between",
        {"column": "id", "min_value": 5, "max_value": 1},
        "kwargs.min_value",
        "min_value 5.0 is greater than max_value 1.0, so that nothing is between them: exchange",
    ),
    "mean_upside_down": (
        "expect_column_mean_to_be_between",
        {"column": "total", "min_value": 5, "max_value": 1},
        "kwargs.min_value",
        "min_value 5.0 is greater than max_value 1.0",
    ),
    "days_upside_down": (
        "expect_column_max_to_be_between",
        {"column": "placed_at", "min_value": "2013-02-01", "max_value": "2013-01-01"},
        "kwargs.min_value",
        "min_value 2013-02-01 is greater than max_value 2013-01-01",
    ),
    "strictly_the_same": (
        "expect_column_values_to_be_between",
        {"column": "id", "min_value": 1, "max_value": 1, "strict_max": True},
        "kwargs.strict_max",
        "nothing is between 1.0 and 1.0 without being 1.0: take strict_max away, or give two",
    ),
    "strictly_so_many_rows": (
        "expect_table_row_count_to_be_between",
        {"min_value": 3, "max_value": 3, "strict_min": True},
        "kwargs.strict_min",
        "nothing is between 3 and 3 without being 3",
    ),
    "mean_without_bounds": (
        "expect_column_mean_to_be_between",
        {"column": "total"},
        "kwargs",
        "neither min_value nor max_value is given, so that it cannot fail: give one",
    ),
    "no_zone": (
        "expect_column_max_to_be_between",
        {"column": "placed_at", "max_value": "2013-01-01T12:00:00"},
        "kwargs.max_value",
        (
            "2013-01-01T12:00:00 names no zone, but the column placed_at is timestamptz: write "
            "2013-01-01T12:00:00+00:00 if UTC is meant"
        ),
    ),
    "no_zone_of_rows": (
        "expect_column_values_to_be_between",
        {"column": "placed_at", "min_value": "2013-01-01 12:00"},
        "kwargs.min_value",
        "2013-01-01T12:00:00 names no zone",
    ),
    "a_zone_too_many": (
        "expect_column_min_to_be_between",
        {"column": "at_the_till", "min_value": "2013-01-01T12:00:00Z"},
        "kwargs.min_value",
        (
            "names a zone, but the column at_the_till is timestamp without time zone, which has "
            "none: write 2013-01-01T12:00:00"
        ),
    ),
    "a_range_too_few": (
        "expect_column_quantile_values_to_be_between",
        {"column": "total", "quantile_ranges": {"quantiles": [0.1, 0.9], "value_ranges": [[1, 2]]}},
        "kwargs.quantile_ranges",
        "there are 2 quantiles, but 1 value_ranges: give each quantile its own range",
    ),
    "a_range_too_many": (
        "expect_column_quantile_values_to_be_between",
        {"column": "total", "quantile_ranges": {"quantiles": [0.1], "value_ranges": [[1, 2]] * 2}},
        "kwargs.quantile_ranges",
        "there are 1 quantiles, but 2 value_ranges",
    ),
    "no_quantiles": (
        "expect_column_quantile_values_to_be_between",
        {"column": "total", "quantile_ranges": {"quantiles": [], "value_ranges": []}},
        "kwargs.quantile_ranges",
        "it has to name quantiles and their ranges",
    ),
    "no_such_quantile": (
        "expect_column_quantile_values_to_be_between",
        {"column": "total", "quantile_ranges": {"quantiles": [5], "value_ranges": [[1, 2]]}},
        "kwargs.quantile_ranges.quantiles.0",
        "5 is no quantile: write one from 0 to 1",
    ),
    "a_range_upside_down": (
        "expect_column_quantile_values_to_be_between",
        {
            "column": "total",
            "quantile_ranges": {"quantiles": [0.1, 0.9], "value_ranges": [[None, 2], [4, 3]]},
        },
        "kwargs.quantile_ranges.value_ranges.1",
        "4 is greater than 3: exchange them",
    ),
    "a_range_of_three": (
        "expect_column_quantile_values_to_be_between",
        {"column": "total", "quantile_ranges": {"quantiles": [0.1], "value_ranges": [[1, 2, 3]]}},
        "kwargs.quantile_ranges.value_ranges.0",
        "[1, 2, 3] is no range: write [least, most]",
    ),
    "no_values": (
        "expect_column_values_to_be_in_set",
        {"column": "status", "value_set": []},
        "kwargs.value_set",
        "value_set is empty, so that nothing is looked for: name at least one",
    ),
    "no_pairs": (
        "expect_column_pair_values_to_be_in_set",
        {"column_A": "id", "column_B": "status", "value_pairs_set": []},
        "kwargs.value_pairs_set",
        "value_pairs_set is empty",
    ),
    "no_types": (
        "expect_column_values_to_be_in_type_list",
        {"column": "status", "type_list": []},
        "kwargs.type_list",
        "type_list is empty",
    ),
    "no_types_at_all": (
        "expect_column_values_to_be_in_type_list",
        {"column": "status", "type_list": None},
        "kwargs.type_list",
        "type_list is empty",
    ),
    "no_such_column_type": (
        "expect_column_values_to_be_of_type",
        {"column": "status", "type_": "STRNG"},
        "kwargs.type_",
        "status of shop_raw.orders is of the type TEXT: write that",
    ),
    "type_by_another_name": (
        "expect_column_type_to_be",
        {"column": "placed_at", "type_": "timestamptz"},
        "kwargs.type_",
        "placed_at of shop_raw.orders is of the type TIMESTAMP WITH TIME ZONE: write that",
    ),
    "no_such_types": (
        "expect_column_values_to_be_in_type_list",
        {"column": "id", "type_list": ["INT", "STRNG"]},
        "kwargs.type_list",
        "id of shop_raw.orders is of the type BIGINT: write that",
    ),
    "no_such_table": (
        "expect_table_row_count_to_equal_other_table",
        {"other_table_name": "oders"},
        "kwargs.other_table_name",
        "there is no such table as shop_raw.oders, did you mean shop_raw.orders",
    ),
    "no_such_source": (
        "expect_query_results_to_match_comparison",
        {
            "base_query": "select count(*) from {batch}",
            "comparison_data_source_name": "lake",
            "comparison_query": "select 1",
        },
        "kwargs.comparison_data_source_name",
        "there is no data source lake: write warehouse, which is the only one",
    ),
    "comparison_with_no_table": (
        "expect_query_results_to_match_comparison",
        {
            "base_query": "select count(*) from {batch}",
            "comparison_data_source_name": "warehouse",
            "comparison_query": "select count(*) from shop.fct_oders",
        },
        "kwargs",
        'relation "shop.fct_oders" does not exist',
    ),
    "query_of_all_rows": (
        "unexpected_rows_expectation",
        {"unexpected_rows_query": "select id from shop_raw.orders where id < 0 -- {{batch}}"},
        "kwargs.unexpected_rows_query",
        (
            "it does not say {batch}, so that it would look at all rows, whichever partition is "
            "checked: write {batch} where the table's name stands"
        ),
    ),
    "no_such_column": (
        "expect_column_values_to_be_unique",
        {"column": "stauts"},
        "kwargs.column",
        "shop_raw.orders has no column stauts: did you mean status?",
    ),
    "no_such_second_column": (
        "expect_column_pair_values_to_be_equal",
        {"column_A": "id", "column_B": "zzz"},
        "kwargs.column_B",
        "has no column zzz: it has id, status",
    ),
    "no_such_column_of_several": (
        "expect_compound_columns_to_be_unique",
        {"column_list": ["id", "totl"]},
        "kwargs.column_list.1",
        "did you mean total?",
    ),
    "no_such_column_of_a_set": (
        "expect_table_columns_to_match_set",
        {"column_set": ["id", "placed"], "exact_match": False},
        "kwargs.column_set.1",
        "did you mean placed_at?",
    ),
    "number_for_text": (
        "expect_column_values_to_be_between",
        {"column": "status", "min_value": 1},
        "kwargs",
        "could not be evaluated: ColumnValuesBetween metrics cannot be computed on column of type",
    ),
    "text_for_number": (
        "expect_column_values_to_be_in_set",
        {"column": "id", "value_set": ["new"]},
        "kwargs",
        'invalid input syntax for type bigint: "new"',
    ),
    "numbers_for_text": (
        "expect_column_values_to_be_in_set",
        {"column": "status", "value_set": [1, 2]},
        "kwargs",
        "operator does not exist: text <> integer",
    ),
    "pattern_for_number": (
        "expect_column_values_to_match_regex",
        {"column": "id", "regex": "a"},
        "kwargs",
        "operator does not exist: bigint ~",
    ),
    "broken_pattern": (
        "expect_column_values_to_match_regex",
        {"column": "status", "regex": "(["},
        "kwargs.regex",
        "([ is no pattern of PostgreSQL: invalid regular expression",
    ),
    "one_broken_pattern": (
        "expect_column_values_to_match_regex_list",
        {"column": "status", "regex_list": ["a", "(?<name>b)"]},
        "kwargs.regex_list",
        "(?<name>b) is no pattern of PostgreSQL",
    ),
    "not_for_postgresql": (
        "expect_column_values_to_match_strftime_format",
        {"column": "status", "strftime_format": "%Y"},
        "kwargs",
        "has no such expectation for tables of PostgreSQL",
    ),
    "broken_query": (
        "unexpected_rows_expectation",
        {"unexpected_rows_query": "selec id from {batch}"},
        "kwargs.unexpected_rows_query",
        'syntax error at or near "from"',
    ),
    "query_of_no_column": (
        "unexpected_rows_expectation",
        {"unexpected_rows_query": "select idd from {batch}"},
        "kwargs.unexpected_rows_query",
        'column "idd" does not exist (Perhaps you meant',
    ),
    "query_of_no_table": (
        "unexpected_rows_expectation",
        {"unexpected_rows_query": "select id from {batch} join shop.fct_oders using (id)"},
        "kwargs.unexpected_rows_query",
        'relation "shop.fct_oders" does not exist',
    ),
}
#: What can be evaluated, although there are no rows; a quarantine where there can be one.
SOUND: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "present": (
        "expect_column_values_to_not_be_null",
        {"column": "Odd name%"},
        {"quarantine": True},
    ),
    "mean": ("expect_column_mean_to_be_between", {"column": "total", "min_value": 1}, {}),
    "spread": ("expect_column_stdev_to_be_between", {"column": "total", "min_value": 1}, {}),
    "shares": (
        "expect_column_kl_divergence_to_be_less_than",
        {
            "column": "status",
            "partition_object": {"values": ["a"], "weights": [1]},
            "threshold": 0.1,
        },
        {},
    ),
    "pattern": (
        "expect_column_values_to_match_regex",
        {"column": "status", "regex": r"^[[:alpha:]]+\M"},
        {},
    ),
    "since": (
        "expect_column_values_to_be_between",
        {"column": "placed_at", "min_value": "2013-01-01"},
        {"quarantine": True},
    ),
    "since_noon": (
        "expect_column_max_to_be_between",
        {"column": "placed_at", "min_value": "2013-01-01T12:00:00Z"},
        {},
    ),
    "since_noon_there": (
        "expect_column_max_to_be_between",
        {"column": "at_the_till", "min_value": "2013-01-01T12:00:00"},
        {},
    ),
    "exactly": (
        "expect_column_values_to_be_between",
        {"column": "id", "min_value": 1, "max_value": 1},
        {},
    ),
    "quantiles": (
        "expect_column_quantile_values_to_be_between",
        {
            "column": "total",
            "quantile_ranges": {"quantiles": [0.1, 0.9], "value_ranges": [[None, 2], [3, 3]]},
        },
        {},
    ),
    "type": ("expect_column_values_to_be_of_type", {"column": "id", "type_": "bigint"}, {}),
    "types": (
        "expect_column_values_to_be_in_type_list",
        {"column": "status", "type_list": ["varchar", "text"]},
        {},
    ),
    "as_many": (
        "expect_table_row_count_to_equal_other_table",
        {"other_table_name": "undeclared"},
        {},
    ),
    "compared": (
        "expect_query_results_to_match_comparison",
        {
            "base_query": "select count(*) from {batch}",
            "comparison_data_source_name": "warehouse",
            "comparison_query": "select count(*) from shop.fct_orders",
        },
        {},
    ),
    "joined": (
        "unexpected_rows_expectation",
        {"unexpected_rows_query": "select id, 1 / id from {batch} join shop.fct_orders using (id)"},
        {},
    ),
    "columns": (
        "expect_table_columns_to_match_set",
        {"column_set": ["id", "status"], "exact_match": False},
        {},
    ),
    "pair": (
        "expect_select_column_values_to_be_unique_within_record",
        {"column_list": ["id", "total"]},
        {"quarantine": True},
    ),
}


def expectation(check: str, kind: str, kwargs: dict[str, Any], **meta: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "kwargs": kwargs,
        "severity": "warning",
        "description": "Said.",
        "meta": {"check": check, **meta},
    }


def write(folder: Path, table: Table, *expectations: dict[str, Any], **more: Any) -> Path:
    path = folder / table.domain / f"{table}.json"
    path.parent.mkdir(exist_ok=True)
    suite = {"name": str(table), "expectations": expectations, **more}
    path.write_text(json.dumps(suite, indent=2))
    return path


def linted(url: str, *paths: Path) -> list[str]:
    return lint(url, [open_suite(path) for path in paths], TABLES)


@pytest.fixture
def sound(tmp_path: Path) -> list[dict[str, Any]]:
    return [expectation(check, kind, kwargs, **m) for check, (kind, kwargs, m) in SOUND.items()]


def test_what_can_be_evaluated_passes(
    tmp_path: Path, warehouse_url: str, sound: list[dict[str, Any]]
) -> None:
    staging = expectation("p", "expect_column_values_to_not_be_null", {"column": "anything"})
    paths = [
        write(tmp_path, ORDERS, *sound, meta={"drift": {"exclude": ["id"]}}),
        # Nobody has declared its columns.
        write(tmp_path, Table("shop_staging", "stg_orders"), staging),
    ]
    assert linted(warehouse_url, *paths) == []
    with psycopg.connect(warehouse_url) as connection:
        left = connection.execute("SELECT to_regnamespace('shop_raw'), to_regnamespace('shop')")
        assert left.fetchone() == (None, None)


def test_each_fault_is_told_with_file_and_line_and_no_other(
    tmp_path: Path, warehouse_url: str, sound: list[dict[str, Any]]
) -> None:
    faulty = [expectation(check, kind, kwargs) for check, (kind, kwargs, *_) in FAULTY.items()]
    path = write(tmp_path, ORDERS, *faulty, *sound)
    found = linted(warehouse_url, path)
    lines = path.read_text().splitlines()
    assert len(found) == len(FAULTY), "\n".join(found)
    for place, (fault, (check, (*_, at, said))) in enumerate(
        zip(found, FAULTY.items(), strict=True)
    ):
        told, number, where, message = re.split(":", fault, maxsplit=3)
        assert told == str(path), check
        assert where == f" expectations.{place}.{at}", check
        assert said in message, check
        # The line is that of what is at fault, or of what it is missing in.
        key = {"missing_argument": "kwargs"}.get(check) or re.findall(r"[a-z_A-Z]+", at)[-1]
        line = int(number) - 1
        assert f'"{key}"' in lines[line] or at[-1].isdigit(), check
        assert next(n for n in lines[line:] if '"check"' in n).strip() == f'"check": "{check}"'


def test_a_table_has_to_be_there(tmp_path: Path, warehouse_url: str) -> None:
    present = expectation("p", "expect_column_values_to_not_be_null", {"column": "id"})
    path = write(tmp_path, Table("shop", "fct_order"), present)
    (fault,) = linted(warehouse_url, path)
    said = "there is no such table as shop.fct_order, did you mean shop.fct_orders"
    assert fault.startswith(f"{path}:2: name: {said}")


def test_what_needs_no_columns_is_told_of_tables_whose_columns_nobody_declares(
    tmp_path: Path, warehouse_url: str
) -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("expect_column_values_to_be_of_type", {"column": "id", "type_": "STRNG"}),
        ("expect_column_values_to_be_of_type", {"column": "id", "type_": "NUMERIC(10, 2)"}),
        ("expect_column_values_to_match_regex", {"column": "id", "regex": "(["}),
        ("expect_column_max_to_be_between", {"column": "id", "min_value": 2, "max_value": 1}),
    ]
    faulty = [expectation(f"c{place}", *kind) for place, kind in enumerate(kinds)]
    path = write(tmp_path, Table("shop_staging", "stg_orders"), *faulty)
    unknown, pattern, upside_down = linted(warehouse_url, path)
    assert "expectations.0.kwargs.type_: STRNG is no type of PostgreSQL" in unknown
    assert "expectations.2.kwargs.regex: ([ is no pattern of PostgreSQL" in pattern
    assert "expectations.3.kwargs.min_value: min_value 2.0 is greater" in upside_down


def test_rows_are_put_aside_of_raw_tables_by_what_is_about_single_rows(
    tmp_path: Path, warehouse_url: str
) -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("expect_column_values_to_be_unique", {"column": "id"}),
        ("expect_compound_columns_to_be_unique", {"column_list": ["id", "total"]}),
        ("expect_table_row_count_to_be_between", {"min_value": 0}),
        ("unexpected_rows_expectation", {"unexpected_rows_query": "select id from {batch}"}),
    ]
    raw = write(
        tmp_path,
        ORDERS,
        *(expectation(f"c{n}", *kind, quarantine=True) for n, kind in enumerate(kinds)),
    )
    mart = write(
        tmp_path,
        Table("shop", "fct_orders"),
        expectation("p", "expect_column_values_to_not_be_null", {"column": "id"}, quarantine=True),
    )
    found = linted(warehouse_url, raw, mart)
    assert [fault.split(":")[0] for fault in found] == [str(raw)] * 4 + [str(mart)]
    assert all("is not about single rows" in fault for fault in found[:4])
    assert "only rows of a raw table can be put aside" in found[4]
    assert all("meta.quarantine" in fault for fault in found)


def test_what_the_file_tells_comes_with_what_great_expectations_tells(
    tmp_path: Path, warehouse_url: str
) -> None:
    silent = expectation("a", "expect_column_values_to_not_be_null", {"column": "id"})
    del silent["severity"]
    odd = expectation("b", "expect_column_values_to_not_be_null", {"column": "idd"})
    path = write(tmp_path, ORDERS, odd, silent, meta={"drift": {"exclude": ["statis"]}})
    broken = tmp_path / "shop" / "shop.fct_orders.json"
    broken.write_text('{"name": "shop.fct_orders",\n"expectations": [}')
    found = linted(warehouse_url, path, broken)
    assert [fault.split(": ", 2)[:2] for fault in found] == [
        [f"{path}:7", "expectations.0.kwargs.column"],
        [f"{path}:15", "expectations.1.severity"],
        [f"{broken}:2", "not valid JSON"],
    ]
