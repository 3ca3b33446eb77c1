"""Which models are built anew: those whose code or inputs changed, and no others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from dagster_project.failures import TransientWarehouseError
from dagster_project.identity import Table
from dagster_project.transformation.versions import (
    Built,
    Decision,
    code_versions,
    decide,
    decide_days,
    make_schemas,
    read_built,
    read_shape,
    record_built,
)

RAW = Table("shop_raw", "orders")
SOURCE = "source.mesh.shop_raw.orders"
STAGING, FACT, MART, OTHER = (
    f"model.mesh.{name}" for name in ("stg_orders", "fct_orders", "revenue", "dim_shops")
)
TABLES = {
    STAGING: Table("shop_staging", "stg_orders"),
    FACT: Table("shop", "fct_orders"),
    MART: Table("shop", "revenue"),
    OTHER: Table("shop", "dim_shops"),
}
PARENTS = {STAGING: [SOURCE], FACT: [STAGING], MART: [FACT], OTHER: []}
ALL = set(PARENTS)

Manifest = dict[str, Any]


def node(unique_id: str) -> dict[str, Any]:
    table = TABLES[unique_id]
    return {
        "resource_type": "model",
        "schema": table.schema,
        "name": table.name,
        "alias": table.name,
        "checksum": {"name": "sha256", "checksum": f"sql of {table.name}"},
        "unrendered_config": {"materialized": "table"},
        "columns": {"id": {"name": "id", "data_type": "bigint", "description": "Number."}},
        "depends_on": {
            "nodes": PARENTS[unique_id],
            "macros": ["macro.mesh.money"] if unique_id == FACT else [],
        },
        "description": "x",
    }


def macro(name: str, package: str, sql: str, *used: str) -> dict[str, Any]:
    return {
        "package_name": package,
        "name": name,
        "macro_sql": sql,
        "depends_on": {"macros": list(used)},
    }


@pytest.fixture
def manifest() -> Manifest:
    """raw orders → staging → fact → mart, and a model beside them that reads nothing."""
    return {
        "nodes": {
            **{unique_id: node(unique_id) for unique_id in PARENTS},
            "test.mesh.unique": {
                "resource_type": "test",
                "name": "unique",
                "depends_on": {"macros": ["macro.mesh.test_unique"]},
            },
        },
        "sources": {SOURCE: {"schema": RAW.schema, "name": RAW.name, "identifier": RAW.name}},
        "macros": {
            "macro.mesh.money": macro("money", "mesh", "round(x, 2)", "macro.mesh.digits"),
            "macro.mesh.digits": macro("digits", "mesh", "2"),
            "macro.mesh.test_unique": macro("test_unique", "mesh", "count(*) = 0"),
            "macro.mesh.schema_name": macro("schema_name", "mesh", "x"),
            "macro.dbt.other": macro("other", "dbt", "x"),
        },
        "parent_map": PARENTS,
    }


def built_by(manifest: Manifest, raw: str = "raw 1") -> Built:
    """What the warehouse holds once everything was built."""
    built = Built(raw={RAW: raw}, relations={RAW, *TABLES.values()})
    decision = decide(manifest, ALL, built)
    built.models = {TABLES[unique_id]: v for unique_id, v in decision.versions.items()}
    return built


def stale(decision: Decision) -> set[str]:
    return set(decision.stale)


def test_nothing_is_stale_when_nothing_changed(manifest: Manifest) -> None:
    decision = decide(manifest, ALL, built_by(manifest))
    assert decision.stale == ()
    assert set(decision.up_to_date) == ALL


def test_everything_is_stale_in_an_empty_warehouse_parents_first(manifest: Manifest) -> None:
    decision = decide(manifest, ALL, Built())
    assert stale(decision) == ALL
    assert [name for name in decision.stale if name != OTHER] == [STAGING, FACT, MART]


def change_code(manifest: Manifest) -> None:
    manifest["nodes"][FACT]["checksum"]["checksum"] = "other sql"


def change_config(manifest: Manifest) -> None:
    manifest["nodes"][FACT]["unrendered_config"]["indexes"] = [{"columns": ["id"]}]


def change_contract(manifest: Manifest) -> None:
    manifest["nodes"][FACT]["columns"]["id"]["data_type"] = "integer"


def add_contract_column(manifest: Manifest) -> None:
    manifest["nodes"][FACT]["columns"]["code"] = {"name": "code", "data_type": "text"}


def change_macro(manifest: Manifest) -> None:
    manifest["macros"]["macro.mesh.money"]["macro_sql"] = "round(x, 3)"


def change_macro_of_a_macro(manifest: Manifest) -> None:
    manifest["macros"]["macro.mesh.digits"]["macro_sql"] = "3"


def change_macro_that_dbt_calls(manifest: Manifest) -> None:
    manifest["macros"]["macro.mesh.schema_name"]["macro_sql"] = "y"


def change_macro_of_a_test(manifest: Manifest) -> None:
    manifest["macros"]["macro.mesh.test_unique"]["macro_sql"] = "count(*) < 1"


def change_description(manifest: Manifest) -> None:
    manifest["nodes"][FACT]["description"] = "y"
    manifest["nodes"][FACT]["columns"]["id"]["description"] = "z"


def change_dbt_itself(manifest: Manifest) -> None:
    manifest["macros"]["macro.dbt.other"]["macro_sql"] = "y"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_code, {FACT, MART}),
        (change_config, {FACT, MART}),
        (change_contract, {FACT, MART}),
        (add_contract_column, {FACT, MART}),
        (change_macro, {FACT, MART}),
        (change_macro_of_a_macro, {FACT, MART}),
        (change_macro_that_dbt_calls, ALL),
        (change_macro_of_a_test, set()),
        (change_description, set()),
        (change_dbt_itself, set()),
    ],
)
def test_a_changed_model_is_stale_with_what_reads_it(
    manifest: Manifest, change: Callable[[Manifest], None], expected: set[str]
) -> None:
    built = built_by(manifest)
    changed = copy.deepcopy(manifest)
    change(changed)
    assert stale(decide(changed, ALL, built)) == expected


def test_changed_raw_rows_make_stale_what_reads_them(manifest: Manifest) -> None:
    built = built_by(manifest)
    built.raw[RAW] = "raw 2"
    assert stale(decide(manifest, ALL, built)) == {STAGING, FACT, MART}


def test_a_parent_that_another_run_rebuilt_makes_its_readers_stale(manifest: Manifest) -> None:
    built = built_by(manifest)
    built.models[TABLES[FACT]] = "built elsewhere"
    assert stale(decide(manifest, {MART, OTHER}, built)) == {MART}


def test_only_what_is_selected_is_decided(manifest: Manifest) -> None:
    decision = decide(manifest, {FACT}, Built())
    assert decision.stale == (FACT,)
    assert set(decision.versions) == {FACT}


def test_a_relation_that_is_gone_is_built_and_its_readers_are_not(manifest: Manifest) -> None:
    built = built_by(manifest)
    built.relations.discard(TABLES[FACT])
    # The table will hold what it held.
    assert stale(decide(manifest, ALL, built)) == {FACT}


def test_a_change_that_is_taken_back_is_no_change(manifest: Manifest) -> None:
    before = code_versions(manifest)
    changed = copy.deepcopy(manifest)
    change_contract(changed)
    assert code_versions(changed) != before
    changed["nodes"][FACT]["columns"]["id"]["data_type"] = "bigint"
    assert code_versions(changed) == before


# By the day

DAYS = ["2026-01-01", "2026-01-02", "2026-01-03"]


def built_days(manifest: Manifest) -> Built:
    built = Built(raw_partitions={RAW: dict.fromkeys(DAYS, "v1")})
    built.model_partitions[TABLES[FACT]] = decide_days(manifest, FACT, RAW, DAYS, built)
    return built


def test_only_changed_days_are_built(manifest: Manifest) -> None:
    built = built_days(manifest)
    assert decide_days(manifest, FACT, RAW, DAYS, built) == {}
    built.raw_partitions[RAW]["2026-01-02"] = "v2"
    assert list(decide_days(manifest, FACT, RAW, DAYS, built)) == ["2026-01-02"]
    assert decide_days(manifest, FACT, RAW, ["2026-01-01", "2026-01-03"], built) == {}


def test_changed_code_makes_every_day_stale(manifest: Manifest) -> None:
    built = built_days(manifest)
    change_code(manifest)
    assert list(decide_days(manifest, FACT, RAW, DAYS, built)) == DAYS


def test_other_inputs_do_not_rebuild_the_past(manifest: Manifest) -> None:
    built = built_days(manifest)
    built.raw[RAW] = "raw 2"
    built.models[TABLES[STAGING]] = "rebuilt"
    assert decide_days(manifest, FACT, RAW, DAYS, built) == {}


def test_a_rebuilt_day_makes_stale_what_reads_the_model(manifest: Manifest) -> None:
    built = built_days(manifest)
    built.relations = set(TABLES.values())
    selected = {MART, OTHER}
    versions = decide(manifest, selected, built).versions
    built.models = {TABLES[unique_id]: version for unique_id, version in versions.items()}
    assert decide(manifest, selected, built).stale == ()
    built.model_partitions[TABLES[FACT]]["2026-01-02"] = "new"
    assert decide(manifest, selected, built).stale == (MART,)


# In the warehouse


def create(url: str, *tables: Table) -> None:
    with psycopg.connect(url) as connection:
        for table in tables:
            connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{table.schema}"')
            connection.execute(f"CREATE TABLE {table.relation} AS SELECT 1 AS id")


def test_what_was_built_is_read_back(warehouse_url: str) -> None:
    assert read_built(warehouse_url).models == {}
    create(warehouse_url, *TABLES.values())
    record_built(warehouse_url, TABLES[MART], {"": "v1"})
    record_built(warehouse_url, TABLES[FACT], dict.fromkeys(DAYS, "v1"))
    record_built(warehouse_url, TABLES[MART], {"": "v2"})
    record_built(warehouse_url, TABLES[FACT], {DAYS[0]: "v2"})
    built = read_built(warehouse_url)
    assert built.models == {TABLES[MART]: "v2"}
    assert built.model_partitions == {TABLES[FACT]: {DAYS[0]: "v2", DAYS[1]: "v1", DAYS[2]: "v1"}}
    assert set(TABLES.values()) <= built.relations
    shape = read_shape(warehouse_url, TABLES[MART])
    assert shape.rows == 1
    assert all(name and kind for name, kind in shape.columns)


@pytest.mark.parametrize("table", [TABLES[FACT], Table("select", 'a "b".c')])
def test_what_was_noted_of_a_dropped_relation_is_void(warehouse_url: str, table: Table) -> None:
    read_built(warehouse_url)
    create(warehouse_url, table, TABLES[MART])
    record_built(warehouse_url, table, dict.fromkeys(DAYS, "v1"))
    record_built(warehouse_url, TABLES[MART], {"": "v1"})
    assert table in read_built(warehouse_url).model_partitions
    with psycopg.connect(warehouse_url) as connection:
        connection.execute(f"DROP TABLE {table.relation}")
    built = read_built(warehouse_url)
    assert built.model_partitions == {}
    assert built.models == {TABLES[MART]: "v1"}
    # Created again by others, it is still not what was built.
    create(warehouse_url, table)
    assert read_built(warehouse_url).model_partitions == {}


def test_a_warehouse_that_is_down_is_a_transient_failure() -> None:
    with pytest.raises(TransientWarehouseError) as caught:
        read_built("postgresql://mesh:s3cr3t-word@127.0.0.1:1/warehouse")
    assert "s3cr3t-word" not in str(caught.value)


def test_schemas_are_made_by_several_at_once(warehouse_url: str) -> None:
    """As the steps of a domain do; PostgreSQL's IF NOT EXISTS does not hold against another's."""
    tables = [Table(f"shop_{number}", "sales") for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: make_schemas(warehouse_url, tables), range(8)))
    with psycopg.connect(warehouse_url) as connection:
        made = connection.execute(
            "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'shop\\_%'"
        ).fetchone()
    assert made == (20,)
