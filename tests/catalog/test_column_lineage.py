"""Which columns a model's columns are computed from, by SQL of every kind that models have."""

from __future__ import annotations

from typing import Any

import pytest

from dagster_project.catalog.column_lineage import column_lineage
from dagster_project.identity import Table

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
