"""`mesh expect` proposes what holds of a table, `mesh lint` reads what people made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dagster_project.cli import expect
from dagster_project.cli.expect import lint_suites, propose_suite
from dagster_project.failures import DeclarationError, MeshError
from dagster_project.identity import Table
from dagster_project.ingestion.replay import raw_tables
from dagster_project.quality.asked import Request
from dagster_project.quality.lint import lint
from dagster_project.quality.outcome import Partitions
from dagster_project.quality.proposal import propose
from dagster_project.quality.suites import Suite, open_suite, read_suite
from dagster_project.quality.validation import validate
from dagster_project.settings import Settings
from dagster_project.transformation.project import ensure_manifest
from tests.e2e.platform import Platform

#: A value of each type that raw tables are declared with, by the number of the row.
VALUES = {
    "bigint": "n",
    "double precision": "n / 7.0",
    "numeric": "n * 1000000000000000000000.5",
    "boolean": "n % 2 = 0",
    "text": "'value ' || n % 7",
    "date": "date '2013-01-01' + (n % 4)",
    "timestamptz": "timestamptz '2013-02-01 00:00+00' + n * interval '1 hour'",
    "jsonb": "jsonb_build_object('n', n)",
}
#: Columns of types, names and values that are not every day's.
ODD = {
    "Größe in m²": "n * 1.5",
    "select": "'it''s %s {batch} ' || n % 3",
    "2nd": "'NaN'::float8",
    "up": "CASE n WHEN 3 THEN 'infinity'::date ELSE date '2020-05-05' + n END",
    "before": "CASE n WHEN 3 THEN '4713-01-01 BC'::timestamptz ELSE now() END",
    "mood": "'ok'::asked_mood",
    "uid": "md5(n::text)::uuid",
    "tags": "ARRAY['a', 'b']",
    "at_noon": "time '12:00'",
    "long": "repeat('x', 200)",
    "nothing": "NULL::text",
    "huge": "9223372036854775807 - n",
    "tiny": "n::numeric / 1e30",
    "flat": "-3",
    "é" * 31: "n % 2",
    "e" * 62: "n % 2",
    "e" * 61: "n % 2",
    "fixed": "'ab'::char(4)",
    "code": "CASE WHEN n > 1 THEN 'c' || n END",
}


@pytest.fixture
def expectations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(expect, "EXPECTATIONS", tmp_path / "expectations")
    return tmp_path / "expectations"


@pytest.fixture
def settings(tmp_path: Path, warehouse_url: str) -> Settings:
    return Settings(home=tmp_path / "home", warehouse_url=warehouse_url)


@pytest.fixture
def odd(warehouse_url: str) -> Iterator[str]:
    """A warehouse with a table of odd columns."""
    columns = ", ".join(f'{value} AS "{name}"' for name, value in ODD.items())
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("CREATE SCHEMA fleet; CREATE TYPE asked_mood AS ENUM ('ok', 'bad')")
        connection.execute(
            f"CREATE TABLE fleet.odd AS SELECT {columns} FROM generate_series(1, 100) AS n".encode()
        )
    yield warehouse_url
    with psycopg.connect(warehouse_url) as connection:
        connection.execute("DROP SCHEMA fleet CASCADE; DROP TYPE asked_mood")


def make(url: str, table: Table, columns: dict[str, str], rows: int = 100) -> None:
    values = ", ".join(f'{VALUES[kind]} AS "{name}"' for name, kind in columns.items())
    with psycopg.connect(url) as connection:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {table.schema}".encode())
        connection.execute(
            f"CREATE TABLE {table.relation} AS SELECT {values} "
            f"FROM generate_series(1, {rows}) AS n".encode()
        )


def by_check(expectations: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {expectation["meta"]["check"]: expectation for expectation in expectations}


def unmet(
    url: str, table: Table, proposed: list[dict[str, Any]], partitions: Partitions | None = None
) -> dict[str, str]:
    suite = Suite.model_validate({"name": str(table), "expectations": proposed})
    checks = [expectation.check for expectation in suite.expectations]
    assert len(set(checks)) == len(checks)
    found = validate(url, Request(suite, checks, partitions)).outcomes
    assert len(found) == len(checks)
    return {o.check: o.error or str(o.observed) for o in found if not o.passed}


def faults(url: str, folder: Path, table: Table, proposed: list[dict[str, Any]]) -> list[str]:
    """What the lint says, of a table with the columns that it has."""
    with psycopg.connect(url) as connection:
        columns = dict(
            connection.execute(
                "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
                "WHERE attrelid = to_regclass(%s) AND attnum > 0",
                [table.relation],
            ).fetchall()
        )
        connection.execute(f"ALTER SCHEMA {table.schema} RENAME TO away".encode())
    path = folder / table.domain / f"{table}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"name": str(table), "expectations": proposed}))
    try:
        return lint(url, [open_suite(path)], {table: columns})
    finally:
        with psycopg.connect(url) as connection:
            connection.execute(f"ALTER SCHEMA away RENAME TO {table.schema}".encode())


def test_what_is_proposed_holds_of_every_raw_table(tmp_path: Path, warehouse_url: str) -> None:
    for raw in raw_tables().values():
        target = raw.target
        columns = {c.name: c.type for c in (*target.own_columns, *target.columns)}
        make(warehouse_url, target.table, columns)
        proposed = propose(warehouse_url, target.table, (), target.primary_key, target.partition)
        days = ("2013-01-01", "2013-01-02", "2013-01-03", "2013-01-04")
        partitions = Partitions(target.partition, days) if target.partition else None
        assert unmet(warehouse_url, target.table, proposed, partitions) == {}
        assert faults(warehouse_url, tmp_path, target.table, proposed) == []


def test_what_is_proposed_holds_of_odd_columns(tmp_path: Path, odd: str) -> None:
    table = Table("fleet", "odd")
    proposed = propose(odd, table)
    assert unmet(odd, table, proposed) == {}
    assert faults(odd, tmp_path, table, proposed) == []
    found = by_check(proposed)
    assert "grosse_in_m2_plausible" in found or "groe_in_m2_plausible" in found
    assert found["select_known"]["kwargs"]["value_set"][0] == "it's %s {batch} 0"
    assert found["uid_unique"]["severity"] == "warning"
    # Nothing can be said of their values.
    for name in ("column_2nd", "before", "tags", "at_noon", "long", "huge_known"):
        assert not {f"{name}_plausible", f"{name}_known"} & found.keys()
    assert not any(name.startswith("nothing") for name in found)


def test_bounds_have_room_and_keys_are_critical(warehouse_url: str) -> None:
    table = Table("commerce_raw", "things")
    make(warehouse_url, table, {"id": "bigint", "kind": "text", "price": "double precision"}, 700)
    found = by_check(propose(warehouse_url, table))
    assert {check: e["severity"] for check, e in found.items()} == {
        "columns_present": "warning",
        "row_count": "warning",
        "id_present": "critical",
        "kind_present": "warning",
        "price_present": "warning",
        "id_unique": "critical",
        "kind_known": "warning",
        "price_plausible": "warning",
    }
    assert found["row_count"]["kwargs"] == {"min_value": 300, "max_value": 7000}
    # Prices go from 0.14 to 100; none is negative.
    assert found["price_plausible"]["kwargs"] == {
        "column": "price",
        "min_value": 0,
        "max_value": 110,
    }
    assert found["kind_known"]["kwargs"]["value_set"] == [f"value {n}" for n in range(7)]


def test_a_declared_key_of_several_columns_is_proposed_if_it_holds(warehouse_url: str) -> None:
    table = Table("weather_raw", "readings")
    make(warehouse_url, table, {"origin": "text", "at": "timestamptz", "day": "date"})
    found = by_check(propose(warehouse_url, table, key=("origin", "at")))
    assert found["key_unique"]["kwargs"] == {"column_list": ["origin", "at"]}
    assert {found[f"{name}_present"]["severity"] for name in ("origin", "at")} == {"critical"}
    assert found["day_present"]["severity"] == "warning"
    assert "key_unique" not in by_check(propose(warehouse_url, table, key=("origin", "day")))


def test_no_value_of_personal_data_stands_in_a_proposal(warehouse_url: str) -> None:
    table = Table("commerce_raw", "people")
    columns = {"id": "bigint", "name": "text", "age": "bigint", "born": "date", "pay": "numeric"}
    make(warehouse_url, table, columns)
    personal = ("name", "age", "born", "pay")
    about = {
        e["kwargs"].get("column"): e["type"]
        for e in propose(warehouse_url, table, personal)
        if e["type"] != "expect_column_values_to_not_be_null" and "unique" not in e["type"]
    }
    assert about == {None: "expect_table_row_count_to_be_between"}
    # Who has no value is no secret.
    assert "age_present" in by_check(propose(warehouse_url, table, personal))


def test_what_is_declared_personal_is_left_out_by_the_command(
    settings: Settings, warehouse_url: str, expectations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = raw_tables()["commerce_raw.users"].target
    make(warehouse_url, target.table, {c.name: c.type for c in target.columns})
    propose_suite(settings, "commerce_raw.users", write=False)
    out = capsys.readouterr().out
    assert "value 1" not in out
    assert (
        not {"age_plausible", "weight_plausible"} & by_check(json.loads(out)["expectations"]).keys()
    )
    assert not expectations.exists()


def test_what_people_wrote_stays(
    settings: Settings, warehouse_url: str, expectations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table("fleet_raw", "planes")
    make(warehouse_url, table, {"tailnum": "bigint", "year": "bigint"})
    path = expectations / "fleet" / "fleet_raw.planes.json"
    own = [
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "year", "min_value": 1900.5},
            "severity": "critical",
            "description": "Später als 1900.",
            "notes": "Ask Anna.",
            "meta": {"check": "nothing_older", "quarantine": True},
        },
        {
            "type": "expect_column_values_to_not_be_null",
            "kwargs": {"column": "tailnum", "mostly": 0.9},
            "severity": "info",
            "description": "Named.",
            "meta": {"check": "tailnum_unique"},
        },
    ]
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"name": str(table), "meta": {"drift": False}, "expectations": own}))
    propose_suite(settings, str(table), write=True)
    written = json.loads(path.read_text())
    assert written["expectations"][:2] == own
    assert written["meta"] == {"drift": False}
    added = by_check(written["expectations"][2:])
    assert added.keys() == {"columns_present", "row_count", "year_present"}
    assert read_suite(path).table == table
    once = path.read_bytes()
    propose_suite(settings, str(table), write=True)
    assert path.read_bytes() == once
    assert "0 checks added, the 5 that are there stay" in capsys.readouterr().out


def test_a_new_suite_is_written(
    settings: Settings, warehouse_url: str, expectations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(warehouse_url, Table("fleet", "dim_planes"), {"tail_number": "bigint"})
    propose_suite(settings, "fleet.dim_planes", write=True)
    path = expectations / "fleet" / "fleet.dim_planes.json"
    said = capsys.readouterr()
    assert said.out == f"{path}: 4 checks added. Edit them, then `make lint`\n"
    assert "fleet.dim_planes: 100 rows, 1 columns" in said.err
    assert len(read_suite(path).expectations) == 4


def test_a_suite_with_faults_is_not_written_to(
    settings: Settings, warehouse_url: str, expectations: Path
) -> None:
    make(warehouse_url, Table("fleet", "dim_planes"), {"tail_number": "bigint"})
    path = expectations / "fleet" / "fleet.dim_planes.json"
    path.parent.mkdir(parents=True)
    path.write_text("{\n")
    with pytest.raises(DeclarationError, match=r"dim_planes.json:2: not valid JSON"):
        propose_suite(settings, "fleet.dim_planes", write=True)
    assert path.read_text() == "{\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fleet.dim_plane", r"not in the warehouse: did you mean fleet\.dim_planes\?"),
        ("marts.dim_planes", r"did you mean fleet\.dim_planes\?"),
        ("planes", "not of the form schema.table"),
        ("fleet.empty", "holds no row"),
        ("cargo.there", "is of no domain: they are commerce, fleet"),
    ],
)
def test_a_table_that_cannot_be_profiled(
    settings: Settings, warehouse_url: str, expectations: Path, name: str, said: str
) -> None:
    make(warehouse_url, Table("fleet", "dim_planes"), {"tail_number": "bigint"})
    make(warehouse_url, Table("fleet", "empty"), {"id": "bigint"}, rows=0)
    make(warehouse_url, Table("cargo", "there"), {"id": "bigint"})
    with pytest.raises(MeshError, match=said):
        propose_suite(settings, name, write=True)
    assert not expectations.exists()


def test_standard_output_is_a_suite(served: Platform) -> None:
    ended = served.mesh("expect", "asked.things")
    assert ended.code == 1
    assert "asked.things is of no domain" in ended.err
    assert ended.out == ""


def test_the_lint_knows_every_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expectations: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write(name: str, column: str) -> Path:
        table = Table.parse(name)
        path = expectations / table.domain / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        one = {
            "type": "expect_column_values_to_not_be_null",
            "kwargs": {"column": column},
            "severity": "info",
            "description": "There.",
            "meta": {"check": "there"},
        }
        path.write_text(json.dumps({"name": name, "expectations": [one]}, indent=1))
        return path

    settings = Settings(home=tmp_path / "home")
    shutil.copytree(ensure_manifest().parent, settings.dbt_target)
    good = [("flights_raw.flights", "_loaded_at"), ("fleet_raw.planes", "_airbyte_meta")]
    good += [("fleet.dim_planes", "seat_count"), ("fleet_staging.stg_fleet__planes", "any")]
    for name, column in good:
        write(name, column)
    assert lint_suites(settings) == 0
    assert capsys.readouterr().out == "4 expectations in 4 suites can be evaluated\n"
    mart = write("fleet.dim_planes", "seats")
    nobodys = write("cargo.loads", "id")
    assert lint_suites(settings) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ", 1)[0] for line in said] == [
        f"{nobodys}:1",
        f"{nobodys}:2",
        f"{mart}:7",
    ]
    assert "lies in the folder of no domain" in said[0]
    assert "there is no such table" in said[1]
    assert "fleet.dim_planes has no column seats: did you mean" in said[2]
