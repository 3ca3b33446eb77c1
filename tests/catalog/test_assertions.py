"""Every asset check is an assertion, by a name that its thresholds have no part in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from dagster import AssetKey
from datahub.utilities.urns.urn import Urn

from dagster_project.catalog.assertions import Check, assertion_proposals, checks_of
from dagster_project.catalog.files import as_record
from dagster_project.domain import domain_names, read_domain
from dagster_project.identity import DBT_PROJECT, Table, Urns
from dagster_project.locations.location import domain_definitions
from dagster_project.quality.suites import Suite, read_suites
from dagster_project.transformation.project import read_manifest

USERS = Table("commerce_raw", "users")


@pytest.fixture(scope="module")
def assertions(records: list[dict[str, Any]]) -> Mapping[str, Any]:
    return {
        record["entityUrn"]: record["aspect"]["json"]
        for record in records
        if record["aspectName"] == "assertionInfo"
    }


def test_they_are_those_that_dagster_has_and_the_freshness_of_what_is_promised(
    assertions: Mapping[str, Any], urns: Urns
) -> None:
    checks, fresh = set(), set()
    for name in domain_names():
        graph = domain_definitions(name).resolve_asset_graph()
        for key in graph.asset_check_keys:
            checks.add(urns.check(tuple(key.asset_key.path), key.name))
        for product in read_domain(name).data_products:
            fresh |= {urns.check((name, t), "contract-freshness") for t in product.tables}
    assert len(checks) > 370
    assert assertions.keys() == checks | fresh


def test_each_says_what_it_asks_who_asks_and_where_it_is_seen(
    assertions: Mapping[str, Any], urns: Urns
) -> None:
    for urn, said in assertions.items():
        assert said["description"].strip(), urn
        assert said["externalUrl"].startswith("http://127.0.0.1:3000/assets/"), urn
    flights = Table("flights", "fct_flights")
    name = "relationships_fct_flights_carrier_code__carrier_code__ref_dim_airlines_"
    relation = assertions[urns.check(flights.asset_key, name)]
    assert relation["customProperties"] == {"severity": "critical", "blocking": "true"}
    column = urns.column(urns.table(flights), "carrier_code")
    assert relation["customAssertion"] == {
        "type": "dbt test",
        "nativeType": "relationships",
        "entity": urns.table(flights),
        "field": column,
        "fields": [column],
        "scope": "DATASET_COLUMN",
        "aggregation": "_NATIVE_",
        "operator": "_NATIVE_",
        "nativeParameters": {
            "column_name": "carrier_code",
            "to": "ref('dim_airlines')",
            "field": "carrier_code",
        },
    }
    # A test that is a file shows its SQL, and is of the model that it says.
    of = urns.check(("commerce", "revenue_by_month"), "assert_revenue_reconciles")
    assert "select" in assertions[of]["customAssertion"]["logic"].lower()


def test_each_is_of_a_dataset_and_of_columns_that_are_told_of(
    assertions: Mapping[str, Any], datasets: dict[str, dict[str, Any]]
) -> None:
    kinds: Counter[tuple[str, str | None]] = Counter()
    for urn, said in assertions.items():
        assert Urn.from_string(urn).urn() == urn
        (about,) = [said[each] for each in said if each.endswith("Assertion")]
        columns = {
            field["fieldPath"] for field in datasets[about["entity"]]["schemaMetadata"]["fields"]
        }
        for field in about.get("fields") or ():
            of, column = Urns.column_of(field)
            assert (of, column in columns) == (about["entity"], True), urn
        kinds[said["type"], about.get("operator")] += 1
    assert {kind for kind, _ in kinds} == {"CUSTOM", "DATA_SCHEMA", "FRESHNESS"}
    for operator in ("NOT_NULL", "EQUAL_TO", "BETWEEN", "IN", "NOT_IN", "REGEX_MATCH", "CONTAIN"):
        assert kinds["CUSTOM", operator], operator


def test_a_query_and_rows_that_a_test_leaves_out_are_told(
    assertions: Mapping[str, Any], urns: Urns
) -> None:
    airports = Table("flights", "on_time_by_airport")
    query = assertions[urns.check(airports.asset_key, "roles_agree")]["customAssertion"]
    assert query["logic"].startswith("select airport_role, sum(flights_scheduled)")
    assert query["nativeParameters"] == {}
    name = "sums_to_row_count_on_time_by_airport_flights_scheduled__ref_fct_flights_"
    some = assertions[urns.check(airports.asset_key, name)]
    assert some["customAssertion"]["nativeParameters"]["where"] == "airport_role = 'origin'"
    assert some["description"] == "The dbt test sums_to_row_count of flights_scheduled."


def test_a_contract_has_all_that_stops_what_is_downstream_and_nothing_else(
    records: list[dict[str, Any]], urns: Urns
) -> None:
    contracts = {
        record["entityUrn"]: record["aspect"]["json"]
        for record in records
        if record["aspectName"] == "dataContractProperties"
    }
    for name in domain_names():
        graph = domain_definitions(name).resolve_asset_graph()
        for product in read_domain(name).data_products:
            for table in product.tables:
                asked = contracts[urns.contract(Table(name, table))]["dataQuality"]
                assert sorted(each["assertion"] for each in asked) == sorted(
                    urns.check((name, table), key.name)
                    for key in graph.get_check_keys_for_assets({AssetKey([name, table])})
                    if graph.get_check_spec(key).blocking
                )


def suite(**changes: Any) -> Suite:
    """A suite of the users of the shop, with one expectation."""
    (found,) = [each for each in read_suites("commerce") if each.table == USERS]
    (expectation, *_) = found.expectations
    kwargs = changes.pop("kwargs")
    changed = expectation.model_copy(update={"kwargs": kwargs, **changes})
    return found.model_copy(update={"expectations": [changed]})


def asked(urns: Urns, of: Suite) -> dict[str, Any]:
    """The first assertion of a suite, with its URN."""
    (check, *_) = checks_of("commerce", [of], read_manifest())
    table = {urns.table(USERS)}
    record = as_record(next(iter(assertion_proposals(urns, [check], table, "http://ui"))))
    return {"urn": record["entityUrn"], **record["aspect"]["json"]["customAssertion"]}


def test_a_threshold_that_changes_orphans_nothing(urns: Urns) -> None:
    first = asked(urns, suite(kwargs={"column": "id", "min_value": 0}))
    second = asked(urns, suite(kwargs={"column": "id", "min_value": 7}))
    assert first["urn"] == second["urn"]
    assert (first["nativeParameters"]["min_value"], second["nativeParameters"]["min_value"]) == (
        *("0", "7"),
    )


def dbt_test(urns: Urns, **changes: Any) -> dict[str, Any]:
    """The assertion of a test of dim_users and of the raw users, as dbt has it, with its URN."""
    manifest = read_manifest()
    (model,) = [
        unique_id for unique_id, node in manifest["nodes"].items() if node["name"] == "dim_users"
    ]
    test: dict[str, Any] = {
        "resource_type": "test",
        "name": "age_known",
        "description": "",
        "raw_code": "",
        "attached_node": model,
        "config": {"severity": "error"},
        "depends_on": {"nodes": [model, f"source.{DBT_PROJECT}.{USERS}"], "macros": []},
        **changes,
    }
    nodes = {model: manifest["nodes"][model], "test": test}
    found = checks_of("commerce", [], {**manifest, "nodes": nodes})
    (check,) = [each for each in found if each.platform == "dbt"]
    urn = urns.table(Table(*check.asset_key))
    record = as_record(next(iter(assertion_proposals(urns, [check], {urn}, "http://ui"))))
    return {"urn": record["entityUrn"], **record["aspect"]["json"]}


@pytest.mark.parametrize(
    ("kwargs", "shown"),
    [
        ({"column": "email", "value_set": ["a@b.c"]}, {"column": "email", "value_set": "•••"}),
        ({"column": "email", "regex": "^ann@"}, {"column": "email", "regex": "•••"}),
        ({"column": "age", "value_set": [41, 57]}, {"column": "age", "value_set": "•••"}),
        ({"column": "age", "max_value": 120}, {"column": "age", "max_value": "120"}),
        (
            {"column_set": ["id", "email"], "exact_match": False},
            {"column_set": "['id', 'email']", "exact_match": "False"},
        ),
        (
            {"column": "id", "row_condition": "email = 'a@b.c'"},
            {"column": "id", "row_condition": "•••"},
        ),
        ({"column": "email", "mostly": 0.9}, {"column": "email", "mostly": "0.9"}),
        ({"column_list": ["id", "email"]}, {"column_list": "['id', 'email']"}),
        ({"column": "id", "value_set": [1, 2]}, {"column": "id", "value_set": "[1, 2]"}),
        (
            {"expressions": ["email = 'a@b.c'", "id > 3", {"where": "age = 57"}]},
            {"expressions": "['•••', 'id > 3', {'where': '•••'}]"},
        ),
    ],
)
def test_no_value_that_personal_data_is_compared_with_is_told(
    urns: Urns, kwargs: dict[str, Any], shown: dict[str, str]
) -> None:
    assert "email" in read_domain("commerce").personal_data[str(USERS)]
    told = asked(urns, suite(kwargs=kwargs))
    assert told["nativeParameters"] == shown
    assert "a@b.c" not in str(told)
    assert "57" not in str(told)


@pytest.mark.parametrize(
    ("sql", "is_shown"),
    [
        ("select id from {batch} where email is null", True),
        ("select id from {batch} where age not between 0 and 120 or age >= 130", True),
        ("select id from {batch} where updated_at < '2013-01-01'", True),
        ("select id from {batch} where Email = 'a@b.c'", False),
        ("select id from {batch} where email like $$a@%$$", False),
        ("select id from {batch} where telephone = 5551234", False),
        ("select id from {batch} where age <> 41", False),
        ("select id from {batch} where age in (41, 57)", False),
        ("select id from {batch} where 41 = age", False),
        ("select id from {batch} where 41 <= age and id <> age", True),
        ("select id from {batch} where age is not distinct from 41", False),
        ("select id from {batch} where 41 is not distinct from age", False),
        ("select id from {batch} where age = any (array[41, 57])", False),
        ("select id from {batch} where (age, height) = (41, 180)", False),
        ("select id from {batch} where (41, 180) = (age, height)", False),
        ("select id from {batch} where (age, height) in ((41, 180))", False),
        ("select id from {batch} join (values (41)) as of (age) using (age)", False),
    ],
)
def test_sql_is_told_unless_it_holds_values_of_personal_data(
    urns: Urns, sql: str, is_shown: bool
) -> None:
    shown = sql if is_shown else "•••"
    kwargs = {"unexpected_rows_query": sql}
    assert asked(urns, suite(type="unexpected_rows_expectation", kwargs=kwargs))["logic"] == shown
    # Of a test it is the same, whichever of the tables that it reads has the column.
    assert dbt_test(urns, raw_code=sql)["customAssertion"]["logic"] == shown


def test_values_of_a_test_of_dbt_are_told_unless_they_are_of_personal_data(urns: Urns) -> None:
    def told(column: str) -> dict[str, Any]:
        kwargs = {"column_name": column, "values": ["a", "b"], "model": "{{ ref('x') }}"}
        test = dbt_test(urns, test_metadata={"name": "accepted_values", "kwargs": kwargs})
        return {
            name: test["customAssertion"][name]
            for name in ("nativeType", "nativeParameters", "operator", "parameters")
        }

    assert told("age_band") == {
        "nativeType": "accepted_values",
        "nativeParameters": {"column_name": "age_band", "values": "['a', 'b']"},
        "operator": "IN",
        "parameters": {"value": {"value": '["a", "b"]', "type": "SET"}},
    }
    assert told("email") == {
        "nativeType": "accepted_values",
        "nativeParameters": {"column_name": "email", "values": "•••"},
        "operator": "IN",
        "parameters": {"value": {"value": "•••", "type": "STRING"}},
    }


def test_how_a_test_of_dbt_judges_may_change(urns: Urns) -> None:
    first = dbt_test(urns)
    second = dbt_test(urns, config={"severity": "warn", "warn_if": "> 10", "error_if": "!= 0"})
    assert first["urn"] == second["urn"]
    assert first["customProperties"] == {"severity": "critical", "blocking": "true"}
    assert second["customProperties"] == {"severity": "warning", "blocking": "false"}
    assert second["customAssertion"]["nativeParameters"] == {"warn_if": "> 10"}


def test_a_check_of_a_table_that_the_catalog_does_not_have_is_not_told(urns: Urns) -> None:
    check = Check(("elsewhere", "t"), "c", "d", "dbt", "unique", blocks=True, severity="x")
    assert list(assertion_proposals(urns, [check], {}, "")) == []
