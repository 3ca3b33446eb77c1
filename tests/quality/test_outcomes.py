"""What a failed expectation shows: which rows, of which partitions, and what it does not show."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from dagster_project.domain import read_domain
from dagster_project.quality.asked import Request
from dagster_project.quality.masking import personal_columns
from dagster_project.quality.outcome import MASK, SAMPLE_ROWS, Outcome, Partitions
from dagster_project.quality.suites import Suite
from dagster_project.quality.validation import validate

pytestmark = pytest.mark.filterwarnings("ignore:`schema_name` is deprecated")


@pytest.fixture
def sales(warehouse_url: str) -> str:
    """Six days of ten sales each; the third has a negative amount, the fifth is truncated."""
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("CREATE SCHEMA shop_raw")
        connection.execute(
            "CREATE TABLE shop_raw.sales (id bigint PRIMARY KEY, day date, amount numeric, "
            "email text, code text)"
        )
        connection.execute(
            "INSERT INTO shop_raw.sales SELECT i, date '2013-01-01' + (i / 10)::int, i, "
            "'person' || i || '@example.com', 'c' || i FROM generate_series(0, 59) AS i"
        )
        connection.execute("UPDATE shop_raw.sales SET amount = -1 WHERE id IN (21, 22)")
        connection.execute("DELETE FROM shop_raw.sales WHERE id > 42 AND id < 50")
        connection.execute("UPDATE shop_raw.sales SET code = 'same' WHERE id IN (3, 53)")
    return warehouse_url


def suite(**expectations: tuple[str, dict[str, Any]]) -> Suite:
    return Suite.model_validate(
        {
            "name": "shop_raw.sales",
            "expectations": [
                {
                    "type": kind,
                    "kwargs": kwargs,
                    "severity": "critical",
                    "description": "x",
                    "meta": {"check": check},
                }
                for check, (kind, kwargs) in expectations.items()
            ],
        }
    )


CHECKS = suite(
    rows=("expect_table_row_count_to_be_between", {"min_value": 8, "max_value": 12}),
    amount=("expect_column_values_to_be_between", {"column": "amount", "min_value": 0}),
    code_unique=("expect_column_values_to_be_unique", {"column": "code"}),
    email=("expect_column_values_to_match_regex", {"column": "email", "regex": "@example.org$"}),
    small=(
        "unexpected_rows_expectation",
        {"unexpected_rows_query": "SELECT id, email FROM {batch} WHERE amount > 57 OR amount < 0"},
    ),
    nope=("expect_column_values_to_not_be_null", {"column": "nope"}),
)


def outcomes(
    url: str, *days: str, checks: Suite = CHECKS, personal: tuple[str, ...] = ()
) -> dict[str, Outcome]:
    partitions = Partitions("day", days) if days else None
    chosen = [expectation.check for expectation in checks.expectations]
    found = validate(url, Request(checks, chosen, partitions, personal))
    return {outcome.check: outcome for outcome in found.outcomes}


def test_a_failed_expectation_shows_rows_by_their_key(sales: str) -> None:
    found = outcomes(sales)
    amount = found["amount"]
    assert (amount.passed, amount.unexpected_count, amount.rows) == (False, 2, 53)
    assert amount.sample == [
        {"id": 21, "amount": Decimal(-1)},
        {"id": 22, "amount": Decimal(-1)},
    ]
    assert amount.failed == {"": 2}
    with psycopg.connect(sales) as connection:
        assert len(connection.execute(amount.query.encode()).fetchall()) == 2
        refused = f"SELECT id FROM shop_raw.sales WHERE {amount.condition} ORDER BY id"
        assert connection.execute(refused.encode()).fetchall() == [(21,), (22,)]
    assert sorted(row["id"] for row in found["code_unique"].sample) == [3, 53]
    # Whether a row is a duplicate is not about the row alone.
    assert found["code_unique"].condition == ""
    small = found["small"]
    assert (small.observed, small.unexpected_count) == (4, 4)
    assert sorted(row["id"] for row in small.sample) == [21, 22, 58, 59]
    assert len(found["email"].sample) == SAMPLE_ROWS
    assert found["email"].unexpected_count == 53


def test_only_the_partitions_that_are_asked_for_are_validated(sales: str) -> None:
    good = outcomes(sales, "2013-01-02")
    assert {check: o.passed for check, o in good.items()} == {
        "rows": True,
        "amount": True,
        "code_unique": True,
        "email": False,
        "small": True,
        "nope": False,
    }
    assert good["email"].failed == {"2013-01-02": 10}
    assert "could not" not in good["nope"].error
    assert good["nope"].error

    bad = outcomes(sales, "2013-01-03")
    assert bad["amount"].failed == {"2013-01-03": 2}
    assert bad["small"].observed == 2
    refused = bad["amount"].condition
    assert "day >= '2013-01-03'" in refused


def test_a_range_tells_which_of_its_partitions_fail(sales: str) -> None:
    days = tuple(f"2013-01-0{day}" for day in range(1, 7))
    found = outcomes(sales, *days)
    # About a partition as a whole: each by itself.
    assert found["rows"].failed == {"2013-01-05": None}
    assert found["rows"].observed == 3
    assert found["amount"].failed == {"2013-01-03": 2}
    assert found["code_unique"].failed == {"2013-01-01": 1, "2013-01-06": 1}
    # A query that says nothing of days: all that were asked for.
    assert set(found["small"].failed) == set(days)
    query = "SELECT day, count(*) AS sales FROM {batch} GROUP BY day HAVING count(*) < 9"
    few = suite(few=("unexpected_rows_expectation", {"unexpected_rows_query": query}))
    assert outcomes(sales, *days, checks=few)["few"].failed == {"2013-01-05": 1}
    assert outcomes(sales, *days[:2])["rows"].passed


@pytest.mark.parametrize("days", [("2013-01-02",), ("2013-01-01", "2013-01-02")])
@pytest.mark.parametrize("day", ["day", "NULL::date AS day", "id"])
def test_a_query_that_finds_rows_of_no_asked_day_fails_all_of_them(
    sales: str, day: str, days: tuple[str, ...]
) -> None:
    query = f"SELECT {day} FROM shop_raw.sales WHERE amount < 0"
    checks = suite(all_days=("unexpected_rows_expectation", {"unexpected_rows_query": query}))
    found = outcomes(sales, *days, checks=checks)["all_days"]
    assert (found.passed, found.error) == (False, "")
    assert set(found.failed) == set(days)


def test_an_index_serves_the_partitions(sales: str) -> None:
    with psycopg.connect(sales, autocommit=True) as connection:
        connection.execute("CREATE INDEX ON shop_raw.sales (day)")
        connection.execute(
            "INSERT INTO shop_raw.sales SELECT i, date '2014-01-01' + (i / 10)::int, 1, 'x', 'x' "
            "FROM generate_series(1000, 60000) AS i"
        )
        connection.execute("ANALYZE shop_raw.sales")
        query = outcomes(sales, "2013-01-03")["amount"].query
        plan = connection.execute(f"EXPLAIN {query}".encode()).fetchall()
    assert any("Index" in line for (line,) in plan), plan


def test_personal_data_is_shown_nowhere(sales: str) -> None:
    chosen = [expectation.check for expectation in CHECKS.expectations]
    found = validate(sales, Request(CHECKS, chosen, None, ("email",)))
    by_check = {outcome.check: outcome for outcome in found.outcomes}
    assert {row["email"] for row in by_check["email"].sample} == {MASK}
    # A query can give a column another name: of one that reads it no row is shown.
    assert by_check["small"].sample == []
    assert all(row["id"] is not None for row in by_check["email"].sample)
    assert "person" not in json.dumps(found.result, default=str)
    shown = validate(sales, Request(CHECKS, chosen))
    assert "person" in json.dumps(shown.result, default=str)


def test_the_full_result_is_great_expectations_own(sales: str) -> None:
    result = validate(sales, Request(CHECKS, ["rows", "amount", "nope"])).result
    assert result["statistics"]["evaluated_expectations"] == 3
    types = [each["expectation_config"]["type"] for each in result["results"]]
    assert types == [
        "expect_table_row_count_to_be_between",
        "expect_column_values_to_be_between",
        "expect_column_values_to_not_be_null",
    ]


@pytest.mark.parametrize("name", ["select", "Mixed Case", "percent%s", "colon:name", "x" * 63])
def test_columns_of_any_name_are_validated(warehouse_url: str, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("CREATE SCHEMA shop_raw")
        table = f"CREATE TABLE shop_raw.sales (id bigint PRIMARY KEY, {quoted} text)"
        connection.execute(table.encode())
        connection.execute(
            "INSERT INTO shop_raw.sales VALUES (1, 'a'), (2, 'b'), (3, 'b'), (4, NULL)"
        )
    checks = suite(
        there=("expect_column_values_to_not_be_null", {"column": name}),
        unique=("expect_column_values_to_be_unique", {"column": name}),
        within=("expect_column_distinct_values_to_be_in_set", {"column": name, "value_set": ["a"]}),
        sets=("expect_column_values_to_be_in_set", {"column": name, "value_set": ["a", "x%:y"]}),
    )
    found = outcomes(warehouse_url, checks=checks)
    assert {check: (o.error, o.passed) for check, o in found.items()} == dict.fromkeys(
        ["there", "unique", "within", "sets"], ("", False)
    )
    assert [row["id"] for row in found["there"].sample] == [4]
    assert sorted(row["id"] for row in found["sets"].sample) == [2, 3]


@pytest.mark.parametrize(
    ("kind", "kwargs", "refused"),
    [
        ("expect_column_values_to_match_regex", {"column": "code", "regex": r"^c\d+$"}, 2),
        ("expect_column_values_to_not_match_regex", {"column": "code", "regex": r"^c\d+$"}, 51),
        ("expect_column_values_to_be_in_set", {"column": "code", "value_set": ["same", r"\d"]}, 51),
        (
            "expect_column_pair_values_a_to_be_greater_than_b",
            {"column_A": "amount", "column_B": "id", "or_equal": True},
            2,
        ),
        (
            "expect_column_pair_values_a_to_be_greater_than_b",
            {
                "column_A": "amount",
                "column_B": "id",
                "row_condition": 'col("id") > 21',
                "condition_parser": "great_expectations",
            },
            31,
        ),
        (
            "expect_select_column_values_to_be_unique_within_record",
            {"column_list": ["amount", "id"], "ignore_row_if": "any_value_is_missing"},
            51,
        ),
    ],
)
@pytest.mark.parametrize("days", [(), ("2013-01-03",), ("2013-01-02", "2013-01-03")])
def test_the_condition_is_of_the_rows_that_were_counted(
    sales: str, kind: str, kwargs: dict[str, Any], refused: int, days: tuple[str, ...]
) -> None:
    with psycopg.connect(sales, autocommit=True) as connection:
        connection.execute("UPDATE shop_raw.sales SET amount = NULL WHERE id = 20")
        found = outcomes(sales, *days, checks=suite(it=(kind, kwargs)))["it"]
        assert not found.error
        if found.passed:
            return
        for text in (
            f"SELECT count(*) FROM ({found.query}) AS q",
            f"SELECT count(*) FROM shop_raw.sales WHERE {found.condition}",
        ):
            counted = connection.execute(text.encode()).fetchone()
            assert counted == (found.unexpected_count,), text
    if days:
        assert set(found.failed) <= set(days)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT id, lower(email) AS e FROM {batch}",
        "SELECT id, email || '' AS id2 FROM {batch}",
        'SELECT EMAIL AS "id" FROM {batch}',
        "SELECT * FROM {batch}",
        "SELECT id FROM {batch} WHERE email::int > 0",
        "SELECT id FROM {batch} WHERE (email || '!')::date > now()",
        "SELECT id, s::text AS t FROM {batch} JOIN shop_raw.sales s USING (id)",
        "SELECT c AS code FROM {batch} JOIN shop_raw.sales AS s (id, a, b, c, d) USING (id)",
        "SELECT s AS t FROM {batch}, shop_raw.sales s",
        "SELECT s AS t FROM shop_raw.sales s, {batch}",
        "SELECT t FROM {batch} CROSS JOIN LATERAL (SELECT s AS t FROM shop_raw.sales s) AS l",
    ],
)
def test_a_query_shows_no_personal_data_under_another_name(sales: str, query: str) -> None:
    checks = suite(
        it=("unexpected_rows_expectation", {"unexpected_rows_query": query}),
        beside=("expect_column_values_to_not_be_null", {"column": "id"}),
    )
    found = validate(sales, Request(checks, ["it", "beside"], None, ("email",)))
    assert not found.outcomes[0].passed
    told = json.dumps([found.result, [vars(o) for o in found.outcomes]], default=str)
    assert "person" not in told
    shown = validate(sales, Request(checks, ["it", "beside"]))
    assert "person" in json.dumps([shown.result, [vars(o) for o in shown.outcomes]], default=str)


def test_columns_of_personal_data_are_those_of_every_table_that_a_query_names() -> None:
    (named, columns), *_ = read_domain("commerce").personal_data.items()
    schema, _, table = named.partition(".")
    for written in (named, f'"{schema}"."{table}"', named.upper()):
        query = f"SELECT o.id FROM {{batch}} o JOIN {written} u USING (id)"
        checks = suite(it=("unexpected_rows_expectation", {"unexpected_rows_query": query}))
        assert personal_columns(checks) == sorted(columns)
    assert personal_columns(CHECKS) == []


def test_values_of_any_type_can_be_shown(sales: str) -> None:
    with psycopg.connect(sales) as connection:
        connection.execute(
            "ALTER TABLE shop_raw.sales ADD took interval DEFAULT '1 hour', "
            "ADD raw bytea DEFAULT '\\xdeadbeef', ADD tags text[] DEFAULT '{a,b}', "
            "ADD more jsonb DEFAULT '{\"a\": 1}', ADD at time DEFAULT '10:00'"
        )
    names = ("took", "raw", "tags", "more", "at")
    checks = suite(**{n: ("expect_column_values_to_be_null", {"column": n}) for n in names})
    found = validate(sales, Request(checks, names))
    assert [(o.passed, o.error, len(o.sample)) for o in found.outcomes] == [(False, "", 20)] * 5
    assert json.dumps(found.result, default=None)


@pytest.mark.parametrize(("kind", "zone"), [("timestamptz", ""), ("timestamp", "Z")])
def test_times_of_which_one_has_a_zone_are_told_with_what_to_write(
    sales: str, kind: str, zone: str
) -> None:
    with psycopg.connect(sales) as connection:
        connection.execute(f"ALTER TABLE shop_raw.sales ADD at {kind} DEFAULT '2013-01-01'")
    bound = {"column": "at", "min_value": f"2013-01-01T00:00:00{zone}"}
    found = outcomes(sales, checks=suite(at=("expect_column_max_to_be_between", bound)))["at"]
    assert not found.passed
    assert "one has a time zone and the other has none: write the zone, as in" in found.error


#: Of which NaN, or infinity, leaves nothing: what is expected, and whether infinity does so.
OF_NUMBERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "mean": ("expect_column_mean_to_be_between", {"min_value": -1}, True),
    "spread": ("expect_column_stdev_to_be_between", {"min_value": 0}, True),
    "total": ("expect_column_sum_to_be_between", {"min_value": -1}, True),
    "z": (
        "expect_column_value_z_scores_to_be_less_than",
        {"threshold": 9, "double_sided": True},
        True,
    ),
    "outliers": (
        "expect_column_values_to_not_be_outliers",
        {"method": "std", "multiplier": 9},
        True,
    ),
    "shares": (
        "expect_column_kl_divergence_to_be_less_than",
        {"partition_object": {"bins": [-1, 2, 5], "weights": [0.5, 0.5]}, "threshold": 9},
        True,
    ),
    "median": ("expect_column_median_to_be_between", {"min_value": -1}, False),
    "most": ("expect_column_max_to_be_between", {"min_value": -1}, False),
    "quantile": (
        "expect_column_quantile_values_to_be_between",
        {"quantile_ranges": {"quantiles": [0.1], "value_ranges": [[-1, None]]}},
        False,
    ),
}


@pytest.mark.parametrize("kind", ["numeric", "double precision", "numeric(20, 4)"])
def test_figures_of_what_is_no_number_are_not_evaluated(sales: str, kind: str) -> None:
    """One day has two NaN and another one infinite value; what passes of the others still does."""
    with psycopg.connect(sales) as connection:
        connection.execute(f'ALTER TABLE shop_raw.sales ADD "The share" {kind}')
        connection.execute('UPDATE shop_raw.sales SET "The share" = id % 5')
        connection.execute("UPDATE shop_raw.sales SET \"The share\" = 'NaN' WHERE id IN (11, 12)")
        if kind != "numeric(20, 4)":
            connection.execute("UPDATE shop_raw.sales SET \"The share\" = 'Infinity' WHERE id = 23")
    about = {"column": "The share"}
    checks = suite(**{name: (k, kwargs | about) for name, (k, kwargs, _) in OF_NUMBERS.items()})

    def told(*days: str) -> dict[str, tuple[bool, str, int | None]]:
        found = outcomes(sales, *days, checks=checks)
        return {name: (o.passed, o.error, o.unexpected_count) for name, o in found.items()}

    assert set(told("2013-01-01").values()) == {(True, "", None), (True, "", 0)}
    for passed, error, count in told("2013-01-02").values():
        assert (passed, count) == (False, 2)
        assert error.startswith("The share has NaN or infinite values, 2 of them: mend them")
    if kind != "numeric(20, 4)":
        for name, (passed, _, _) in told("2013-01-03").items():
            assert passed is not OF_NUMBERS[name][2], name
    both = outcomes(sales, "2013-01-01", "2013-01-02", checks=checks)
    # Of a day as a whole the day is told; of rows among others of all days, all.
    assert set(both["mean"].failed) == {"2013-01-02"}
    assert set(both["z"].failed) == {"2013-01-01", "2013-01-02"}
    assert not any(outcome.passed for outcome in outcomes(sales, checks=checks).values())
    left_out = {"row_condition": 'col("The share") < 99', "condition_parser": "great_expectations"}
    some = suite(mean=("expect_column_mean_to_be_between", {"min_value": 0} | about | left_out))
    assert outcomes(sales, "2013-01-02", checks=some)["mean"].passed
