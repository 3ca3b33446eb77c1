"""What a domain declares of its connections: mistakes are shown with their line, secrets never."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from dagster_project.failures import DeclarationError, MeshError, SettingsError
from dagster_project.ingestion import declaration
from dagster_project.ingestion.declaration import (
    Connection,
    identity,
    read_connections,
    resolve_config,
    table_name,
)
from dagster_project.ingestion.streams import load_stream
from dagster_project.settings import Settings
from tests.ingestion import scripted
from tests.ingestion.scripted import Shop

WHOLE = """\
type: dagster_project.components.AirbyteConnection
attributes:
  name: shop
  source: the shop
  connector: {environment: source-test, version: 1.0.0}
  config:
    password: ${SHOP_PASSWORD}
  streams:
    - name: users
      description: A customer.
      sync_mode: incremental
      destination_sync_mode: append_dedup
      primary_key: [id]
      cursor_field: at
      json_schema:
        properties: {id: {type: integer}, at: {type: integer}}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "defs.yaml"
    monkeypatch.setattr(declaration, "declaration_path", lambda domain: path)
    return path


def connection(config: dict[str, Any]) -> Connection:
    stream = {
        "name": "users",
        "description": "x",
        "sync_mode": "full_refresh",
        "destination_sync_mode": "overwrite",
        "json_schema": {"properties": {"id": {"type": "integer"}}},
    }
    connector = {"environment": "source-test", "version": "1"}
    return Connection.model_validate(
        {
            "name": "main",
            "source": "x",
            "connector": connector,
            "config": config,
            "streams": [stream],
        }
    )


def test_a_declaration_is_a_configured_catalog(file: Path) -> None:
    file.write_text(WHOLE)
    (found,) = read_connections("any")
    (configured,) = found.catalog()["streams"]
    assert configured["sync_mode"] == "incremental"
    assert configured["destination_sync_mode"] == "append_dedup"
    assert configured["primary_key"] == [["id"]]
    assert configured["cursor_field"] == ["at"]
    assert found.needs() == {"SHOP_PASSWORD"}


def test_other_components_of_the_file_are_not_connections(file: Path) -> None:
    file.write_text("type: something.Else\nattributes: {}\n---\n" + WHOLE)
    assert [found.name for found in read_connections("any")] == ["shop"]


def test_a_changed_declaration_is_read_again(file: Path) -> None:
    file.write_text(WHOLE)
    read_connections("any")
    file.write_text(WHOLE.replace("name: shop", "name: store"))
    os.utime(file, ns=(1, 1))
    assert [found.name for found in read_connections("any")] == ["store"]


def test_a_domain_without_a_declaration_has_no_connections(file: Path) -> None:
    assert read_connections("any") == []


@pytest.mark.parametrize(
    ("line", "mended", "said"),
    [
        (
            "sync_mode: incremental",
            "sync_mode: increment",
            "11: streams.0.sync_mode: Input should be 'full_refresh' or 'incremental'",
        ),
        (
            "destination_sync_mode: append_dedup",
            "destination_sync_mode: upsert",
            "12: streams.0.destination_sync_mode: Input should be 'overwrite', 'append' or",
        ),
        (
            "append_dedup",
            "overwrite",
            "9: streams.0: incremental with overwrite would lose what came before: use append or",
        ),
        ("primary_key: [id]", "primary_key: []", "9: streams.0: append_dedup needs a primary_key"),
        ("primary_key: [id]", "primary_key: [x]", "9: streams.0: x is not a property"),
        ("cursor_field: at", "cursor_field:", "9: streams.0: incremental needs a cursor_field"),
        ("cursor_field: at", "cursor: at", "14: streams.0.cursor: unknown key, did you mean curs"),
        ("name: users", 'name: ""', "9: streams.0.name: String should have at least 1"),
        ("name: users", r'name: "a\0b"', "9: streams.0.name: String should match pattern"),
        ("name: users", "name: users\n      table: Users", "10: streams.0.table: String should"),
        ("name: users", "name: a__rejects", "9: streams.0: a__rejects is called as the rejects of"),
        ("{type: integer}, at", "{type: integer}, _airbyte_x: {}, at", "_airbyte_x cannot be a"),
        ("{type: integer}, at", '{type: integer}, "": {}, at', "'' cannot be a column"),
        (
            "{type: integer}, at",
            r'{type: integer}, "a\0": {}, at',
            "cannot be a column: PostgreSQL",
        ),
        ("{type: integer}, at", "{}, xmin: {}, xmin_: {}, at", "both be the column xmin_"),
        (
            "{type: integer}, at",
            "{}, " + ", ".join(f"c{number}: {{}}" for number in range(1600)) + ", at",
            "json_schema has 1602 properties; a table of PostgreSQL can have 1590 beside",
        ),
        (
            "{type: integer}, at",
            "{}, " + ", ".join(f"c{number}: {{type: integer}}" for number in range(1100)) + ", at",
            "json_schema has 1102 properties, of which a whole row takes 9,0",
        ),
        ("  source: the shop\n", "", "3: source: required, but not there"),
    ],
)
def test_a_mistake_is_shown_with_its_line_and_what_is_allowed(
    file: Path, line: str, mended: str, said: str
) -> None:
    assert line in WHOLE
    file.write_text(WHOLE.replace(line, mended, 1))
    with pytest.raises(DeclarationError) as caught:
        read_connections("any")
    assert str(caught.value).startswith(f"{file}:")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "value", "most"), [("integer", 2**62, 993), ("number", 1.5, 1131)]
)
def test_the_widest_row_that_can_be_declared_can_be_loaded(
    shop: Shop, warehouse_url: str, kind: str, value: float, most: int
) -> None:
    def declare(columns: int) -> Connection:
        names = {f"c{number}": kind for number in range(columns - 1)}
        return scripted.connection(scripted.stream("s", id="integer", **names))

    shop.connection = declare(most)
    body = f'record("s", id=1, **{{f"c{{n}}": {value} for n in range({most - 1})}}); status("s")'
    assert shop.sync(body).rows == 1
    stream = shop.connection.stream("s")
    loaded = load_stream(
        "shop", shop.connection, stream, lake=shop.lake, warehouse_url=warehouse_url, run_id="r"
    )
    assert loaded.load.rows == 1
    with pytest.raises(ValidationError, match="properties, of which a whole row takes 8,1"):
        declare(most + 3)


def test_streams_of_one_name_are_refused(file: Path) -> None:
    stream = WHOLE[WHOLE.index("    - name") :]
    file.write_text(WHOLE + stream)
    with pytest.raises(DeclarationError, match="streams declared twice: users"):
        read_connections("any")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("users", "users"),
        ("order__items", "order__items"),
        ("Order Items", "order_items"),
        ("/v1/Orders?x=1", "v1_orders_x_1"),
        ("select", "select"),
        ("Größe № 5", "grosse_no_5"),
        ("2024", "2024"),
    ],
)
def test_a_table_is_called_after_its_stream(name: str, table: str) -> None:
    assert table_name(name) == table


def test_a_name_without_a_latin_letter_or_too_long_has_a_digest() -> None:
    names = ["注文", "顧客", "x" * 200, "x" * 199 + "y", "!"]
    tables = [table_name(name) for name in names]
    assert len(set(tables)) == 5
    assert all(re.fullmatch(r"[a-z0-9_]{1,63}", table) for table in tables)
    assert tables[0].startswith("stream_")
    assert tables[2].startswith("x" * 54 + "_")


def test_a_stream_is_known_by_its_table_but_to_its_source(file: Path) -> None:
    file.write_text(WHOLE.replace("name: users", "name: Users of the shop\n      table: customers"))
    (found,) = read_connections("any")
    stream = found.stream("customers")
    assert stream.name == found.catalog()["streams"][0]["stream"]["name"] == "Users of the shop"
    name = identity("commerce", found, stream)
    assert name.prefix == "commerce/shop/customers"
    assert str(name.table) == "commerce_raw.customers"


def test_streams_of_one_table_are_refused(file: Path) -> None:
    stream = WHOLE[WHOLE.index("    - name") :]
    file.write_text(WHOLE + stream.replace("name: users", "name: Users"))
    with pytest.raises(DeclarationError, match="users and Users would both be the table users"):
        read_connections("any")
    file.write_text(WHOLE + stream.replace("name: users", "name: Users\n      table: others"))
    assert len(read_connections("any")[0].streams) == 2


# The configuration


def resolved(config: dict[str, Any], **found: str) -> Any:
    settings = Settings(faker_users=7, warehouse_url=SecretStr("postgresql://u:hush@h/d"))
    return resolve_config("shop", connection(config), settings, found)


def test_variables_are_replaced_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "x")
    config = {"one": "${A}", "deep": [{"two": "-${A}-${A}-"}], "number": 5, "money": "$A"}
    assert resolved(config) == {
        "one": "x",
        "deep": [{"two": "-x-x-"}],
        "number": 5,
        "money": "$A",
    }


def test_a_setting_keeps_its_type_and_what_the_platform_found_goes_first() -> None:
    config = {"count": "${MESH_FAKER_USERS}", "url": "${MESH_REFERENCE_URL}/x"}
    found = resolved(config, MESH_REFERENCE_URL="http://127.0.0.1:1")
    assert found == {"count": 7, "url": "http://127.0.0.1:1/x"}


def test_every_missing_secret_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVE", "hush")
    monkeypatch.delenv("NEED_1", raising=False)
    monkeypatch.delenv("NEED_2", raising=False)
    with pytest.raises(SettingsError) as caught:
        resolved({"a": "${NEED_2}", "b": "${HAVE}", "c": ["${NEED_1}"]})
    assert "shop/main needs the environment variables NEED_1, NEED_2" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_no_secret_of_the_platform_reaches_a_connector() -> None:
    with pytest.raises(MeshError, match="MESH_WAREHOUSE_URL is a secret of the platform") as caught:
        resolved({"url": "${MESH_WAREHOUSE_URL}"})
    assert "hush" not in str(caught.value)
