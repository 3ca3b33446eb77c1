"""Which models are built in one step, and which tests are refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from dagster_project.failures import DeclarationError
from dagster_project.identity import Table
from dagster_project.settings import Settings
from dagster_project.transformation import project
from dagster_project.transformation.groups import left_out, model_groups
from dagster_project.transformation.project import ensure_manifest
from dagster_project.transformation.tested import refuse_tests

PROFILES = """\
mesh:
  target: warehouse
  outputs:
    warehouse: {type: postgres, host: 127.0.0.1, port: 1, user: u, password: p, dbname: d,
                schema: shop, threads: 1}
"""
SOURCES = """\
version: 2
sources:
  - name: shop_raw
    tables:
      - {name: orders, columns: [{name: id, data_tests: [not_null]}]}
      - {name: people}
models:
  - name: facts
    columns:
      - name: id
        data_tests:
          - unique
          - accepted_values: {arguments: {values: ['a b', 3], quote: false}}
          - accepted_values: {name: ids_of_facts, arguments: {values: [1, 2]}}
  - name: by_member
    columns:
      - name: id
        data_tests: [{relationships: {arguments: {to: ref('facts'), field: id}}}]
"""
#: Parents first.
MODELS = ("orders", "facts", "by_day", "members", "by_member")
#: Orders become facts, of which two marts are made; one of them knows people, too.
FILES = {
    "dbt_project.yml": "name: mesh\nversion: 1.0.0\nprofile: mesh\n",
    "profiles.yml": PROFILES,
    "models/sources.yml": SOURCES,
    "models/orders.sql": "{{ config(materialized='view') }} "
    "select * from {{ source('shop_raw', 'orders') }}",
    "models/facts.sql": "{{ config(materialized='table') }} select * from {{ ref('orders') }}",
    "models/by_day.sql": "{{ config(materialized='table') }} select * from {{ ref('facts') }}",
    "models/members.sql": "{{ config(materialized='table') }} "
    "select * from {{ source('shop_raw', 'people') }}",
    "models/by_member.sql": "{{ config(materialized='table') }} "
    "select * from {{ ref('facts') }}, {{ ref('members') }}",
    "tests/nothing_lost.sql": "select * from {{ ref('facts') }}, {{ ref('by_day') }}",
    "tests/of_another.sql": "{{ config(meta={'dagster': {'ref': {'name': 'members'}}}) }} "
    "select * from {{ ref('facts') }}, {{ ref('by_day') }}",
    "tests/said.sql": "{{ config(meta={'dagster': {'ref': {'name': 'by_day'}}}) }} "
    "select * from {{ ref('facts') }}, {{ ref('by_day') }}",
    "tests/of_one.sql": "select * from {{ ref('by_day') }} where false",
    "tests/of_nothing.sql": "select 1",
}


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The manifest of a shop's dbt project."""
    folder = tmp_path_factory.mktemp("shop") / "dbt"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "DBT_PROJECT_DIR", folder)
        return ensure_manifest(Settings(home=folder.parent / "home")).read_bytes()


@pytest.fixture
def manifest(parsed: bytes) -> dict[str, Any]:
    """The manifest without the tests that are to be refused."""
    found: dict[str, Any] = orjson.loads(parsed)
    relationship = "relationships_by_member_id__id__ref_facts_"
    keep(found, "unique_facts_id", relationship, "ids_of_facts", "said", "of_one")
    return found


def keep(manifest: dict[str, Any], *tests: str) -> None:
    manifest["nodes"] = {
        unique_id: node
        for unique_id, node in manifest["nodes"].items()
        if node["resource_type"] != "test" or node["name"] in tests
    }


def steps(
    manifest: dict[str, Any], apart: tuple[str, ...] = (), checked: tuple[str, ...] = ()
) -> dict[str, str]:
    """The models of each step, by the tables that they descend from."""
    ours = {u for u, node in manifest["nodes"].items() if node["resource_type"] == "model"}
    found = model_groups(
        manifest, ours, {f"model.mesh.{m}" for m in apart}, {f"model.mesh.{m}" for m in checked}
    )
    return {
        " ".join(sorted(table.name for table in tables)): " ".join(
            sorted(unique_id.rpartition(".")[2] for unique_id in unique_ids)
        )
        for tables, unique_ids in found.items()
    }


def test_models_of_the_same_tables_are_built_together(manifest: dict[str, Any]) -> None:
    assert steps(manifest) == {
        "orders": "by_day facts orders",
        "people": "members",
        "orders people": "by_member",
    }


def test_what_is_made_of_a_model_with_critical_checks_comes_after_them(
    manifest: dict[str, Any],
) -> None:
    assert steps(manifest, checked=("facts", "by_day")) == {
        "orders": "facts orders",
        "facts orders": "by_day",
        "people": "members",
        "facts orders people": "by_member",
    }


def test_a_view_with_critical_checks_is_not_built_with_its_reader(
    manifest: dict[str, Any],
) -> None:
    assert steps(manifest, apart=("facts",)) == {
        "orders": "orders",
        "facts orders": "by_day",
        "people": "members",
        "facts orders people": "by_member",
    }
    assert steps(manifest, checked=("orders",))["orders"] == "orders"


def test_what_descends_from_a_blocked_table_is_left_out(manifest: dict[str, Any]) -> None:
    ordered = [f"model.mesh.{m}" for m in MODELS]
    blocked = Table("shop", "facts")
    assert left_out(manifest, ordered, {blocked}) == {
        "model.mesh.by_day": [blocked],
        "model.mesh.by_member": [blocked],
    }
    # A view is built over a bad table, and what reads the table by way of it is not.
    raw = Table("shop_raw", "orders")
    assert left_out(manifest, ordered, {raw}) == {
        "model.mesh.facts": [raw],
        "model.mesh.by_day": [raw],
        "model.mesh.by_member": [raw],
    }


def test_what_reads_what_is_left_out_by_way_of_a_view_is_left_out_too(
    manifest: dict[str, Any],
) -> None:
    manifest["nodes"]["model.mesh.facts"]["config"]["materialized"] = "view"
    manifest["nodes"]["model.mesh.orders"]["config"]["materialized"] = "table"
    raw = Table("shop_raw", "orders")
    left = {f"model.mesh.{m}": [raw] for m in ("orders", "by_day", "by_member")}
    assert left_out(manifest, [f"model.mesh.{m}" for m in MODELS], {raw}) == left
    # The view need not be in the run.
    some = [f"model.mesh.{m}" for m in MODELS if m != "facts"]
    assert left_out(manifest, some, {raw}) == left


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("nothing_lost", r"tests/nothing_lost.sql.*reads by_day, facts: say of which model"),
        ("of_another", r"tests/of_another.sql.*a check of members, which it does not read"),
        ("of_nothing", r"tests/of_nothing.sql.*reads no model"),
        ("source_not_null_shop_raw_orders_id", r"models/sources.yml.*of a source, .*orders"),
        (
            "accepted_values_facts_id__False__a_b__3",
            r"sources.yml: the accepted_values test of facts.id .*`name: accepted_values_facts_id`",
        ),
    ],
)
def test_a_test_that_nobody_would_run_or_that_has_no_lasting_name_is_refused(
    parsed: bytes, test: str, said: str
) -> None:
    manifest = orjson.loads(parsed)
    keep(manifest, "unique_facts_id", "said", "of_one", test)
    with pytest.raises(DeclarationError, match=said):
        refuse_tests(manifest, "shop")


def test_tests_of_one_model_and_of_a_named_one_are_taken(manifest: dict[str, Any]) -> None:
    refuse_tests(manifest, "shop")
    # Another domain's are its own business.
    keep(manifest, "nothing_lost")
    refuse_tests(manifest, "bank")
