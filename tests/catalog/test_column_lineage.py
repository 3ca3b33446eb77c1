"""Which columns a model's columns are computed from, by SQL of every kind that models have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dagster_project.catalog import kept_lineage as kept_module
from dagster_project.catalog.column_lineage import column_lineage
from dagster_project.catalog.kept_lineage import kept_lineage, read_lineage
from dagster_project.identity import Table
from dagster_project.settings import get_settings

USERS, ORDERS = Table("shop_raw", "users"), Table("shop_raw", "orders")


def node(kind: str, table: Table, *columns: str) -> dict[str, Any]:
    return {
        "resource_type": kind,
        "schema": table.schema,
        "name": table.name,
        "columns": {c: {"name": c, "data_type": "text"} for c in columns},
    }


MANIFEST = {
    "nodes": {"model.mesh.one": node("model", Table("shop", "one"), "a", "b")},
    "sources": {
        "users": node("source", USERS, "id", "name", "Opened On"),
        "orders": node("source", ORDERS, "id", "user_id", "price", "amount"),
    },
}
FROM_BOTH = "from warehouse.shop_raw.users u join warehouse.shop_raw.orders o on o.user_id = u.id"


def lineage(sql: str) -> dict[str, set[str]]:
    found = column_lineage(MANIFEST, {"model.mesh.one": sql})["model.mesh.one"]
    return {name: {f"{t.name}.{column}" for t, column in made} for name, made in found.items()}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (
            'select id as user_id, "Opened On" as day from "warehouse"."shop_raw"."users"',
            {"user_id": {"users.id"}, "day": {"users.Opened On"}},
        ),
        (
            "with kept as (select * from warehouse.shop_raw.users) select * from kept",
            {"id": {"users.id"}, "name": {"users.name"}, "Opened On": {"users.Opened On"}},
        ),
        (
            f"select name, price * amount as total {FROM_BOTH}",
            {"name": {"users.name"}, "total": {"orders.price", "orders.amount"}},
        ),
        (
            f"select coalesce(o.amount, 'x') as a, 'fixed' as b {FROM_BOTH}",
            {"a": {"orders.amount"}, "b": set()},
        ),
        (
            """
            select id, name from warehouse.shop_raw.users
            union all
            select id, price from warehouse.shop_raw.orders
            """,
            {"id": {"users.id", "orders.id"}, "name": {"users.name", "orders.price"}},
        ),
        (
            """
            select
                name, count(*) as n, count(*) filter (where id = '1') as ones,
                row_number() over (order by name) as place
            from warehouse.shop_raw.users group by 1
            """,
            {"name": {"users.name"}, "n": set(), "ones": {"users.id"}, "place": {"users.name"}},
        ),
        (
            """
            select max(t.v) as best
            from warehouse.shop_raw.orders o
            cross join lateral (values (o.price), (o.amount)) as t (v)
            """,
            {"best": {"orders.price", "orders.amount"}},
        ),
    ],
)
def test_a_column_is_made_of_those_that_its_expression_names(
    sql: str, expected: dict[str, set[str]]
) -> None:
    assert lineage(sql) == expected


def test_a_table_is_known_whatever_its_database_is_called() -> None:
    for database in ("warehouse.", '"sales-mart".', ""):
        assert lineage(f"select name from {database}shop_raw.users") == {"name": {"users.name"}}


def test_a_table_that_nobody_declared_is_left_out() -> None:
    assert lineage("select u.id, o.x from warehouse.shop_raw.users u, elsewhere.things o") == {
        "id": {"users.id"},
        "x": set(),
    }


def test_sql_that_is_not_understood_costs_its_own_model_alone() -> None:
    said: list[str] = []
    sql = {
        "model.mesh.broken": "select from from where",
        "model.mesh.one": "select id from warehouse.shop_raw.users",
    }
    found = column_lineage(MANIFEST, sql, said.append)
    assert found == {"model.mesh.one": {"id": frozenset({(USERS, "id")})}}
    (fault,) = said
    assert "no column lineage of model.mesh.broken" in fault
    assert fault.isprintable()


def test_it_is_read_once_a_version_of_the_project(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = get_settings().model_copy(update={"home": tmp_path})
    settings.dbt_target.mkdir()
    sql = {"model.mesh.one": "select name as a, 1 as b from shop_raw.users", "model.mesh.two": "("}
    two = {"model.mesh.two": node("model", Table("shop", "two"), "a")}
    manifest = {**MANIFEST, "nodes": {**MANIFEST["nodes"], **two}}
    assert kept_lineage(settings) == {}
    said: list[str] = []
    first = read_lineage(settings, manifest, sql, said.append)
    assert first == {"model.mesh.one": {"a": frozenset({(USERS, "name")}), "b": frozenset()}}
    assert kept_lineage(settings) == {Table("shop", "one"): first["model.mesh.one"]}
    # What it has read it does not read again; what it did not understand it says again.
    assert read_lineage(settings, manifest, {}, said.append) == first
    assert len(said) == 2
    monkeypatch.setattr(kept_module, "project_digest", lambda: "another")
    assert kept_lineage(settings) == {}
    assert read_lineage(settings, manifest, {}, said.append) == {}


@pytest.mark.parametrize("content", [b"", b'{"digest": ', b"[]", b'{"digest": "of now"}'])
def test_what_is_kept_and_cannot_be_read_is_read_anew_and_fails_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    monkeypatch.setattr(kept_module, "project_digest", lambda: "of now")
    settings = get_settings().model_copy(update={"home": tmp_path})
    settings.dbt_target.mkdir()
    kept = settings.dbt_target / "column_lineage.json"
    kept.write_bytes(content)
    assert kept_lineage(settings) == {}
    sql = {"model.mesh.one": "select name as a from shop_raw.users"}
    made_of = {"a": frozenset({(USERS, "name")})}
    assert read_lineage(settings, MANIFEST, sql, print) == {"model.mesh.one": made_of}
    assert [path.name for path in settings.dbt_target.iterdir()] == [kept.name]
    assert kept_lineage(settings) == {Table("shop", "one"): made_of}
